//! Writes the seed corpora to `corpus/`: inputs that reach deep into each target.

use std::fs;
use std::path::Path;

use bench::{SLOTS, pool, server_frames};
use secure_router_core::circuit::Slot;
use secure_router_core::routing::Routing;
use secure_router_core::session::{
    Control, Hello, Infer, LinkProfile, Prepare, PreparedStock, Refusal, SlotStock, ToDevice, ToServer, Welcome,
};

fn put(target: &str, name: &str, bytes: &[u8]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory).expect("corpus");
    fs::write(directory.join(name), bytes).expect("corpus");
}

fn encoded<M: Control>(message: &M) -> Vec<u8> {
    let mut buffer = vec![0; 1024];
    let len = message.to_bytes(&mut buffer).expect("fits");
    buffer[..len].to_vec()
}

fn main() {
    let spec = pool(Routing::Open);
    let mut buffer = [0; 512];
    let bytes = spec.to_bytes(&mut buffer).expect("fits").to_vec();
    put("spec", "pool", &bytes);
    let mut single = spec.clone();
    single.models.truncate(1);
    single.router = None;
    put("spec", "single", single.to_bytes(&mut buffer).expect("fits"));
    let mut words = spec.clone();
    (words.input_bits, words.input_frac, words.word_bits) = (9, 0, 8);
    words.validate().expect("a valid pool of words");
    put("spec", "words", words.to_bytes(&mut buffer).expect("fits"));

    let stock = SlotStock { slot: Slot::Model(1), first: 3, fresh: 5, ready: 2 };
    let welcome = Welcome { pool: bytes.iter().copied().collect(), stock: [stock].into_iter().collect() };
    let infer = Infer { slot: Slot::Router, counter: 3, lambda: 20, allowed: 7, link: LinkProfile::BLE };
    put("control", "welcome", &encoded(&ToDevice::Welcome(welcome)));
    put("control", "prepared", &encoded(&ToDevice::Prepared(PreparedStock { stock })));
    put("control", "refused", &encoded(&ToDevice::Refused(Refusal::Counter(Slot::Router))));
    put("control", "hello", &encoded(&ToServer::Hello(Hello { counters: [u64::MAX; 9] })));
    put("control", "prepare", &encoded(&ToServer::Prepare(Prepare { slot: Slot::Model(0), counter: 1 })));
    put("control", "infer", &encoded(&ToServer::Infer(infer)));

    // Both roles: frames that pass, one that is changed, one that is made up.
    let steps: [(&str, &[u8]); 3] = [
        ("frames", &[1, 7, 20, 9, 3, 1, 8, 0, 9, 3, 1, 9, 200, 5, 3]),
        ("changed", &[1, 7, 20, 9, 1, 30, 0, 4]),
        ("noise", &[0, 8, 0, b'S', b'R', 1, 0x12, 96, 0, 1, 2, 3]),
    ];
    for (name, steps) in steps {
        for role in 0..2 {
            put("channel", &format!("{name}-{role}"), &[&[role][..], steps].concat());
            // Behind the two messages of the handshake.
            put("handshake", &format!("{name}-{role}"), &[&[1, role, 1, 3, 1, 3][..], steps].concat());
        }
    }
    put("handshake", "connecting", &[0, b'S', b'R', 1, 0x12, 48, 0, 1, 2, 3]);

    // Whole conversations of every program; a step is its number, a slot and a counter.
    for (index, slot) in (0u8..).zip(&SLOTS[..4]) {
        let mut steps = vec![3, 0, 0, 0, 10, index, 0, 2, index, 10, 11, index, 5];
        let answers = |steps: &mut Vec<u8>, slot| {
            for frame in server_frames(slot, Routing::Open) {
                // Zeros, since padding must be; and something else where there is none.
                steps.extend([5, 0, 0, u8::from(frame.is_multiple_of(FULL)) * 9]);
            }
        };
        answers(&mut steps, *slot);
        if *slot == Slot::Router {
            answers(&mut steps, Slot::Model(1));
        }
        put("device", &format!("conversation-{index}"), &steps);
        put("server", &format!("run-{index}"), &[&[index, 3, 5, 3][..], &[7, 9].repeat(16)].concat());
        put(
            "server",
            &format!("lengths-{index}"),
            &[&[index, 3, 0, 0, 0, 3, 0, 1, 2, 3][..], &[7, 0].repeat(16)].concat(),
        );
    }
    put("device", "refused", &[0, 0, 0, 0, 11, 1, 0, 4, 1, 0]);
}

const FULL: usize = 1024;
