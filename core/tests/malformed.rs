//! Malformed frames, a thousand for each message and state: each meets a typed error, a closed session and wiped
//! buffers. What a change leaves well-formed is told apart by rules written out here, not by the session itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::collections::BTreeMap;

use lab::chance::Chance;
use lab::peer::{Crossed, Fixture, Frame, Memory, Outcome, Peer, Session, Store, carry, connect, event, request};
use lab::{Seeds, deal, offline, random_secret};
use secure_router_core::channel::ChannelError;
use secure_router_core::circuit::{MessageKind, Program, Slot};
use secure_router_core::keys::server_key;
use secure_router_core::routing::{Bias, Routing};
use secure_router_core::server::{Server, ServerError, Stock, Turn, work_words};
use secure_router_core::session::{
    Control, Event, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, Hello, Infer, LinkProfile, MAX_COUNTER_SKIP, Prepare,
    PreparedStock, Refusal, SessionError, SlotStock, ToDevice, ToServer, Welcome,
};
use secure_router_core::spec::{ModelSpec, NamedModel, Opening, Output, PoolSpec, RouterSpec, Words};

const CASES: usize = 1000;
const PLAIN: Slot = Slot::Model(0);
const ATTENTION: Slot = Slot::Model(1);

fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

fn fixture() -> &'static Fixture {
    let base = ModelSpec {
        tokens: 2,
        features: 24,
        width: 0,
        heads: 0,
        ffn: 3,
        layers: 1,
        qkv: opening(6, 12),
        score: opening(8, 5),
        mix: opening(8, 12),
        ffn_in: opening(9, 5),
        output_bits: 20,
    };
    let attention = ModelSpec { tokens: 3, features: 16, width: 2, heads: 1, ffn: 0, ..base };
    let named = |name: &str, spec| NamedModel { name: name.try_into().unwrap(), spec };
    let trunk = ModelSpec { layers: 0, ffn: 0, output_bits: 14, ..base };
    let spec = PoolSpec {
        edition: [6; 16],
        task: "malformed".try_into().unwrap(),
        input_len: 48,
        input_bits: 8,
        input_frac: 4,
        word_bits: 0,
        classes: 3,
        output: Output::Label,
        routing: Routing::Open,
        models: [named("plain", base), named("attention", attention)].into_iter().collect(),
        router: Some(RouterSpec { trunk, answers: 0 }),
    };
    spec.validate().unwrap();
    Fixture::new(spec)
}

/// Where the device stands when the frame comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It waits for the welcome.
    Greeting,
    /// No request is under way.
    Idle,
    /// It is still sending corrections.
    Preparing,
    /// It waits for the report of its preparation.
    Prepared,
    /// It waits for indices.
    Index,
    /// It waits for the operands of a product.
    Operands,
    /// It waits for the answer.
    Tell,
    /// It waits for the router's choice.
    Route,
}

use Place::*;

const PLACES: [Place; 8] = [Greeting, Idle, Preparing, Prepared, Index, Operands, Tell, Route];

impl Place {
    /// The program, and how many of the server's frames of its run come before this one.
    fn run(self) -> (Slot, usize) {
        match self {
            // qkv: one index message; then the operands.
            Operands => (ATTENTION, 1),
            // Indices of the table and of signs; then the label.
            Tell => (PLAIN, 2),
            // Signs; then the choice.
            Route => (Slot::Router, 1),
            _ => (PLAIN, 0),
        }
    }
}

/// Brings a device to `place`, and returns what an honest server would say there.
fn bring<'m>(
    place: Place,
    fixture: &'static Fixture,
    memory: &'m mut Memory,
    store: &Store,
    frames: &std::rc::Rc<std::cell::RefCell<Vec<Frame>>>,
) -> (Session<'m>, Peer, Frame) {
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, memory, store, 4);
    let (slot, before) = place.run();
    // Holds back the server's frames from this one on, all but the first of which are never sent.
    let hold = |peer: &mut Peer, from: usize| {
        let (mut seen, frames) = (0, frames.clone());
        frames.borrow_mut().clear();
        peer.tamper = Some(Box::new(move |_, frame| {
            seen += 1;
            if seen <= from {
                return vec![frame];
            }
            frames.borrow_mut().push(frame);
            Vec::new()
        }));
    };
    let stall = |session: &mut Session<'_>, peer: &mut Peer| {
        let outcome = carry(session, peer, usize::MAX, u64::MAX, &mut Crossed::default());
        assert!(matches!(outcome, Outcome::Stalled), "{place:?}: {outcome:?}");
    };
    if place == Greeting {
        hold(&mut peer, 0);
        stall(&mut session, &mut peer);
        let honest = frames.borrow()[0].clone();
        peer.tamper = None;
        return (session, peer, honest);
    }
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    let mut bytes = vec![0; FRAME_PAYLOAD];
    let stock = SlotStock { slot: PLAIN, first: 0, fresh: 1, ready: 1 };
    let len = ToDevice::Prepared(PreparedStock { stock }).to_bytes(&mut bytes).unwrap();
    let report = (FRAME_CONTROL, bytes[..len].to_vec());
    match place {
        Greeting | Idle => return (session, peer, report),
        Preparing => {
            session.prepare(PLAIN).unwrap();
            assert!(!session.io().1.is_empty());
            return (session, peer, report);
        }
        Prepared => {
            hold(&mut peer, 0);
            session.prepare(PLAIN).unwrap();
        }
        Index | Operands | Tell | Route => {
            session.prepare(slot).unwrap();
            assert_eq!(event(&mut session, &mut peer), Event::Prepared(slot));
            hold(&mut peer, before);
            session.infer(request(slot), &fixture.input(3)).unwrap();
        }
    }
    stall(&mut session, &mut peer);
    let honest = frames.borrow()[0].clone();
    peer.tamper = None;
    (session, peer, honest)
}

/// Some change of a frame.
fn change(chance: &mut Chance, (kind, payload): &Frame) -> Frame {
    let (mut kind, mut payload) = (*kind, payload.clone());
    let random = |chance: &mut Chance, len: usize| (0..len).map(|_| chance.word() as u8).collect::<Vec<u8>>();
    match chance.below(12) {
        0 => {
            let keep = chance.below(payload.len());
            payload.truncate(keep);
        }
        1 => {
            let more = 1 + chance.below(40);
            payload.extend(random(chance, more));
        }
        2 => payload = random(chance, payload.len()),
        3 => {
            let len = chance.below(FRAME_PAYLOAD + 1);
            payload = random(chance, len);
        }
        4 => kind = FRAME_CONTROL + FRAME_DATA - kind,
        5 => kind = chance.word() as u8,
        6 => payload = Vec::new(),
        7 => payload = vec![chance.word() as u8; 1 + chance.below(FRAME_PAYLOAD)],
        8 => {
            // Another message, well-formed by itself.
            kind = FRAME_CONTROL;
            let slot = [Slot::Router, PLAIN, ATTENTION, Slot::Model(2), Slot::Model(255)][chance.below(5)];
            let counter = [0, 1, 2, MAX_COUNTER_SKIP, u64::MAX - 1, u64::MAX][chance.below(6)];
            let stock = SlotStock { slot, first: counter, fresh: counter, ready: chance.word() as u32 };
            let other = match chance.below(3) {
                0 => ToDevice::Prepared(PreparedStock { stock }),
                1 => {
                    ToDevice::Refused([Refusal::Dealer, Refusal::Counter(slot), Refusal::PoolChanged][chance.below(3)])
                }
                _ => ToDevice::Welcome(random_welcome(chance, stock)),
            };
            let mut bytes = vec![0; FRAME_PAYLOAD];
            let len = other.to_bytes(&mut bytes).unwrap();
            payload = bytes[..len].to_vec();
        }
        _ => {
            for _ in 0..1 + chance.below(6) {
                if !payload.is_empty() {
                    let bit = chance.below(payload.len() * 8);
                    payload[bit / 8] ^= 1 << (bit % 8);
                }
            }
        }
    }
    (kind, payload)
}

fn random_welcome(chance: &mut Chance, stock: SlotStock) -> Welcome {
    let pool = (0..chance.below(200)).map(|_| chance.word() as u8).collect();
    Welcome { pool, stock: (0..chance.below(9)).map(|_| stock).collect() }
}

/// What the frame is, at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Malformed,
    /// A message that may come here.
    Fine,
}

fn judge(place: Place, fixture: &Fixture, honest: &Frame, (kind, payload): &Frame) -> Verdict {
    let fine = match *kind {
        FRAME_DATA => {
            // Any contents are a message, all but those that pad it with something else than zeros.
            matches!(place, Index | Operands | Tell | Route) && payload.len() == honest.1.len() && {
                let (slot, before) = place.run();
                let messages = server_messages(fixture, slot);
                let used = u64::from(messages[before].0) * u64::from(messages[before].1);
                (used..payload.len() as u64 * 8).all(|bit| payload[(bit / 8) as usize] >> (bit % 8) & 1 == 0)
            }
        }
        FRAME_CONTROL => match (place, ToDevice::from_bytes(payload)) {
            (_, Err(_)) => false,
            (Greeting, Ok(ToDevice::Welcome(welcome))) => PoolSpec::from_bytes(&welcome.pool)
                .is_ok_and(|pool| welcome.stock.iter().all(|stock| pool.slots().any(|slot| slot == stock.slot))),
            (Prepared, Ok(ToDevice::Prepared(report))) => report.stock.slot == PLAIN && report.stock.fresh == 1,
            (Prepared | Index | Operands | Tell | Route, Ok(ToDevice::Refused(_))) => true,
            _ => false,
        },
        _ => false,
    };
    if fine { Verdict::Fine } else { Verdict::Malformed }
}

/// Elements and bits of the server's messages of a program, in order.
fn server_messages(fixture: &Fixture, slot: Slot) -> Vec<(u32, u8)> {
    let program = fixture.secret(slot).program;
    let mut messages = Vec::new();
    for id in 0.. {
        let Some(gate) = program.gate(id).unwrap() else { return messages };
        let down = gate.messages().into_iter().filter(|message| !message.kind.from_device());
        messages.extend(down.map(|message| (message.elements, message.bits)));
    }
    messages
}

/// Gives the device one frame of the server, before anything else happens.
fn give(session: &mut Session<'_>, peer: &mut Peer, frame: Frame) -> Result<Option<Event>, SessionError> {
    say(peer, frame);
    loop {
        let (wanted, _) = session.io();
        let pending = peer.pending();
        let count = wanted.len().min(pending.len());
        if count == 0 {
            return Ok(None);
        }
        wanted[..count].copy_from_slice(&pending[..count]);
        peer.sent(count);
        if let Some(event) = session.received(count)? {
            return Ok(Some(event));
        }
    }
}

/// Queues one frame of the server, whatever it holds.
fn say(peer: &mut Peer, frame: Frame) {
    let mut frame = Some(frame);
    peer.tamper = Some(Box::new(move |_, _| frame.take().into_iter().collect()));
    peer.say(&ToDevice::Refused(Refusal::Dealer));
    peer.tamper = None;
}

#[test]
fn a_thousand_malformed_frames_at_every_place_close_the_session() {
    let fixture = fixture();
    let frames = std::rc::Rc::default();
    let mut tally = BTreeMap::<String, usize>::new();
    for place in PLACES {
        let (mut malformed, mut number) = (0, 0u64);
        while malformed < CASES {
            let mut chance = Chance(number ^ (place as u64) << 40);
            let (mut memory, store) = (Memory::default(), Store::default());
            let (mut session, mut peer, honest) = bring(place, fixture, &mut memory, &store, &frames);
            // Changes that leave a message fine are passed over: the honest parties' tests are elsewhere. One in
            // twenty is tried all the same.
            let frame = loop {
                let frame = change(&mut chance, &honest);
                if judge(place, fixture, &honest, &frame) == Verdict::Malformed || number.is_multiple_of(20) {
                    break frame;
                }
            };
            number += 1;
            let verdict = judge(place, fixture, &honest, &frame);
            let burned = store.0.borrow().burned.len();
            let outcome = give(&mut session, &mut peer, frame.clone());
            match (verdict, outcome) {
                (Verdict::Malformed, Err(error)) => {
                    malformed += 1;
                    let name = format!("{error:?}");
                    *tally.entry(format!("{place:?}: {}", name.split(['(', '{']).next().unwrap())).or_default() += 1;
                    assert!(session.is_closed() && session.logits().count() == 0, "{place:?} {number}");
                    assert!(session.io().0.is_empty() && session.io().1.is_empty());
                    assert_eq!(session.prepare(PLAIN), Err(SessionError::Closed));
                    assert!(matches!(session.received(0), Err(SessionError::Channel(ChannelError::Closed))));
                    assert_eq!(store.0.borrow().burned.len(), burned, "{place:?} {number}: a counter was spent");
                    // Without the wiping of its `drop`.
                    std::mem::forget(session);
                    assert!(memory.is_wiped(), "{place:?} {number}");
                }
                (Verdict::Fine, outcome) => {
                    *tally.entry(format!("{place:?}: fine")).or_default() += 1;
                    assert_eq!(outcome.is_err(), session.is_closed(), "{place:?} {number}: {outcome:?}");
                }
                (_, outcome) => panic!("{place:?} {number}: {outcome:?} for {frame:?}"),
            }
        }
    }
    for (name, count) in &tally {
        println!("{count:5} {name}");
    }
}

#[test]
fn a_thousand_malformed_handshakes_and_a_thousand_altered_frames_close_the_session() {
    let fixture = fixture();
    // How many of the server's bytes come first: none of the handshake, or all of it and the welcome's frame.
    for sealed in [false, true] {
        for number in 0..CASES as u64 {
            let mut chance = Chance(number ^ 0x5ea1 << 30);
            let (mut memory, store) = (Memory::default(), Store::default());
            let mut peer = Peer::new(fixture);
            let mut session = connect(fixture, &mut memory, &store, 4);
            let up = |session: &mut Session<'_>, peer: &mut Peer| {
                let pending = session.io().1.to_vec();
                peer.feed(&pending);
                session.sent(pending.len()).unwrap();
            };
            up(&mut session, &mut peer);
            if sealed {
                while session.io().1.is_empty() {
                    let (wanted, _) = session.io();
                    let count = wanted.len();
                    wanted.copy_from_slice(&peer.pending()[..count]);
                    peer.sent(count);
                    session.received(count).unwrap();
                }
                up(&mut session, &mut peer);
            }
            let mut bytes = peer.pending().to_vec();
            assert!(!bytes.is_empty());
            match chance.below(4) {
                0 => {
                    let keep = chance.below(bytes.len());
                    bytes.truncate(keep);
                }
                1 => {
                    let from = chance.below(bytes.len());
                    bytes[from..].iter_mut().for_each(|byte| *byte = !*byte);
                }
                _ => {
                    for _ in 0..1 + chance.below(4) {
                        let bit = chance.below(bytes.len() * 8);
                        bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                }
            }
            let unchanged = bytes == peer.pending();
            let mut rest = &bytes[..];
            let outcome = loop {
                let (wanted, _) = session.io();
                let count = wanted.len().min(rest.len());
                if count == 0 {
                    // Cut short, or a length that promises more: the link ends.
                    break session.link_ended();
                }
                wanted[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                match session.received(count) {
                    Ok(None) if session.io().1.is_empty() => {}
                    outcome => break outcome,
                }
            };
            if unchanged {
                continue;
            }
            assert!(matches!(outcome, Err(SessionError::Channel(_) | SessionError::Closed)), "{number}: {outcome:?}");
            assert!(session.is_closed());
            std::mem::forget(session);
            assert!(memory.is_wiped() && store.0.borrow().burned.is_empty(), "{number}");
        }
    }
}

/// One run of the server's half on its own, up to and without the message of this number of the device.
fn server_at(words: Option<Words>, message: usize, test: impl FnOnce(&mut Server<'_>, MessageKind, usize)) -> Vec<u32> {
    let spec = ModelSpec {
        tokens: 2,
        features: 3,
        width: 2,
        heads: 1,
        ffn: 2,
        layers: 1,
        qkv: opening(5, 11),
        score: opening(5, 5),
        mix: opening(5, 11),
        ffn_in: opening(6, 5),
        output_bits: 16,
    };
    let program = Program::Model { spec, words, classes: 3, output: Output::Label };
    let (secret, seeds) = (random_secret(program, 4, 3), Seeds::fixed(8));
    let (correlations, corrections) = (deal(&secret, &seeds, 0), offline(&secret, &seeds, 0, 1024, 4));
    let mut work = vec![0; work_words(&program).unwrap()];
    let key = server_key(&seeds.server_dealer, &seeds.pool, seeds.slot, 0);
    let stock = Stock { correlations: &correlations, corrections: &corrections };
    let mut server = Server::new(program, secret.parameters(), key, stock, Bias::NONE, &mut work).unwrap();
    let mut taken = 0;
    loop {
        match server.turn() {
            Turn::Done => break,
            Turn::Send(next) => {
                // Out of turn, whatever the bytes.
                assert_eq!(server.receive(&vec![0; next.bytes()]), Err(ServerError::Turn));
                server.send(&mut vec![0; next.bytes()]).unwrap();
            }
            Turn::Receive(next) if taken == message => {
                assert_eq!(server.send(&mut [0; 4096]), Err(ServerError::Turn));
                test(&mut server, next.kind, next.bytes());
                break;
            }
            Turn::Receive(next) => {
                server.receive(&vec![0x5a; next.bytes()]).unwrap();
                taken += 1;
            }
        }
    }
    drop(server);
    work
}

#[test]
fn a_thousand_messages_of_the_wrong_length_change_nothing_at_the_server() {
    let mut kinds = BTreeMap::<String, usize>::new();
    for (words, message) in
        [None, Some(Words { count: 4, bits: 3 })].into_iter().flat_map(|w| (0..20).map(move |m| (w, m)))
    {
        let mut chance = Chance(message as u64);
        let mut met = None;
        let left = server_at(words, message, |server, kind, expected| {
            met = Some(kind);
            for number in 0..CASES {
                let found = match number % 4 {
                    0 => chance.below(expected),
                    1 => expected + 1 + chance.below(8),
                    2 => expected + 1 + chance.below(4096),
                    _ => expected - 1,
                };
                let bytes: Vec<u8> = (0..found).map(|_| chance.word() as u8).collect();
                let turn = server.turn();
                assert_eq!(server.receive(&bytes), Err(ServerError::Length { expected, found }));
                assert_eq!(server.turn(), turn);
            }
            // Any bytes of the right length are a message: the run goes on to its end.
            let mut next = expected;
            loop {
                server.receive(&(0..next).map(|_| chance.word() as u8).collect::<Vec<_>>()).unwrap();
                let receive = loop {
                    match server.turn() {
                        Turn::Send(message) => server.send(&mut vec![0; message.bytes()]).map(|_| ()).unwrap(),
                        Turn::Receive(message) => break Some(message.bytes()),
                        Turn::Done => break None,
                    }
                };
                match receive {
                    Some(bytes) => next = bytes,
                    None => break,
                }
            }
            assert_eq!(server.receive(&[]), Err(ServerError::Turn));
        });
        assert!(left.iter().all(|word| *word == 0), "a run that ends wipes its work space");
        if let Some(kind) = met {
            *kinds.entry(format!("{kind:?}")).or_default() += CASES;
        }
    }
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    println!("{kinds:?}");
}

#[test]
fn a_thousand_changes_of_each_control_message_are_read_or_refused() {
    let hello = ToServer::Hello(Hello { counters: [7, u64::MAX, 0, 0, 1, 2, 3, 4, 5] });
    let prepare = ToServer::Prepare(Prepare { slot: ATTENTION, counter: 1 << 40 });
    let infer = Infer { slot: Slot::Router, counter: 9, lambda: 256, allowed: 3, link: LinkProfile::BLE };
    for (seed, message) in [hello, prepare, ToServer::Infer(infer)].into_iter().enumerate() {
        let mut chance = Chance(seed as u64);
        let mut bytes = vec![0; FRAME_PAYLOAD];
        let len = message.to_bytes(&mut bytes).unwrap();
        bytes.truncate(len);
        assert_eq!(ToServer::from_bytes(&bytes), Ok(message));
        let mut malformed = 0;
        while malformed < CASES {
            let (_, changed) = change(&mut chance, &(FRAME_CONTROL, bytes.clone()));
            match ToServer::from_bytes(&changed) {
                Err(_) => malformed += 1,
                Ok(read) => {
                    // What was read is what it says, in as many bytes or fewer.
                    let mut again = vec![0; FRAME_PAYLOAD];
                    let len = read.to_bytes(&mut again).unwrap();
                    assert!(len <= changed.len());
                    assert_eq!(ToServer::from_bytes(&again[..len]), Ok(read));
                }
            }
        }
    }
}
