//! Hostile peers of server and dealer over real links. Malformed frames, a thousand for each message that they take: each
//! ends its session and nothing else. What the device takes is in `core/tests/malformed.rs`, as is what the server's half of a run takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use secure_router::dealer::Dealer;
use secure_router::link::{Link, Patience};
use secure_router::pool::Pool;
use secure_router::provision::{self, DealerFile, DeviceFile, ServerFile, random};
use secure_router::server::Service;
use secure_router_core::channel::{
    Channel, HANDSHAKE_INITIATOR_BYTES, Link as Kind, PublicKey, StaticSecret, buffer_bytes,
};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::session::{
    Control, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, Hello, Infer, LinkProfile, Prepare, ToDevice, ToServer,
};
use secure_router_core::spec::{MAX_SPEC_BYTES, PoolSpec};
use secure_router_tests::sim::chance::Chance;
use secure_router_tests::{Device, POOL, Parties, examples};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const CASES: u64 = 1000;
const NANO: Slot = Slot::Model(0);
/// Payload bytes of a full frame on the dealer's link.
const DEALER_FRAME: usize = 32 * 1024;
/// Of a smaller one, that holds any control message.
const SMALL: usize = 2048;

/// A peer that has not hung up after this long does not mean to.
const PATIENCE: Duration = Duration::from_secs(60);

type Frame = (u8, Vec<u8>);
type Raw = Link<'static, TcpStream>;

fn bytes(chance: &mut Chance, len: usize) -> Vec<u8> {
    (0..len).map(|_| chance.word() as u8).collect()
}

/// Some change of a frame that is not `fine`, of `full` bytes of payload at most.
fn change((kind, payload): &Frame, number: u64, full: usize, fine: impl Fn(&Frame) -> bool) -> Frame {
    let mut chance = Chance(number);
    loop {
        let (mut kind, mut payload) = (*kind, payload.clone());
        match chance.below(9) {
            0 => payload.truncate(chance.below(payload.len())),
            1 => payload.extend(bytes(&mut chance, 1 + number as usize % 40)),
            2 => payload = bytes(&mut chance, payload.len()),
            3 => payload = bytes(&mut chance, number as usize % (full + 1)),
            4 => kind = FRAME_CONTROL + FRAME_DATA - kind,
            5 => kind = chance.word() as u8,
            6 => payload = Vec::new(),
            7 => payload = vec![chance.word() as u8; 1 + chance.below(full)],
            _ => {
                for _ in 0..=chance.below(6) {
                    let bit = chance.below(payload.len() * 8);
                    if let Some(byte) = payload.get_mut(bit / 8) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
            }
        }
        payload.truncate(full);
        let frame = (kind, payload);
        if !fine(&frame) {
            return frame;
        }
    }
}

/// A message of data is fine in its length alone.
fn as_long(len: usize) -> impl Fn(&Frame) -> bool {
    move |(kind, payload)| *kind == FRAME_DATA && payload.len() == len
}

/// Buffers for payloads of these lengths, in and out; they live as long as the test.
fn buffers(payloads: (usize, usize)) -> (&'static mut [u8], &'static mut [u8]) {
    let buffer = |payload| vec![0; buffer_bytes(payload)].leak();
    (buffer(payloads.0), buffer(payloads.1))
}

async fn dial(kind: Kind, own: &StaticSecret, peer: PublicKey, address: &str, payloads: (usize, usize)) -> Raw {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Link::dial(kind, own, peer, &mut random(), stream, buffers(payloads), Patience::default()).await.unwrap()
}

async fn say(link: &mut Raw, message: &ToServer) {
    link.queue(FRAME_CONTROL, &encoded(message)).unwrap();
    link.flush().await.unwrap();
}

fn encoded(message: &ToServer) -> Vec<u8> {
    let mut buffer = vec![0; FRAME_PAYLOAD];
    let len = message.to_bytes(&mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

/// Gives the peer a malformed frame; the peer ends the link without a word.
async fn ends(mut link: Raw, (kind, payload): &Frame, what: &str) {
    link.queue(*kind, payload).unwrap();
    // It may hang up at the frame's first bytes.
    let _ = link.flush().await;
    match tokio::time::timeout(PATIENCE, link.frame()).await {
        Ok(Err(_)) => {}
        Ok(Ok((kind, answer))) => panic!("{what}: an answer of kind {kind} and {} bytes", answer.len()),
        Err(_) => panic!("{what}: the session goes on"),
    }
}

/// Where the server stands when a device's frame comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Hello,
    Request,
    Corrections,
    Share,
    Answer,
}

/// A device that speaks for itself: brings the server to `place`, and returns what would be said there.
async fn bring(parties: &Parties, name: &str, place: Place) -> (Raw, Frame) {
    let spec = Pool::load(POOL.as_ref()).unwrap().spec;
    let hello = ToServer::Hello(Hello { counters: [0; 9] });
    let infer = |counter| {
        let (link, allowed) = (LinkProfile::UART, 7);
        ToServer::Infer(Infer { slot: NANO, counter, lambda: 0, allowed, link })
    };
    let program = Program::of(&spec, NANO).unwrap();
    let share = program.gate(0).unwrap().unwrap().messages()[0].bytes();
    if place == Place::Answer {
        // The run of an honest device, as far as its masked input.
        let mut device = parties.connect(name).await.unwrap();
        device.prepare(NANO).await.unwrap();
    }
    let keys: DeviceFile = provision::read(&provision::paths(parties.as_ref(), name).2).unwrap();
    let server = (&keys.secret().unwrap(), keys.server());
    let mut link =
        dial(Kind::DeviceServer, server.0, server.1, &parties.server_address, (FRAME_PAYLOAD, FRAME_PAYLOAD)).await;
    if place == Place::Hello {
        return (link, (FRAME_CONTROL, encoded(&hello)));
    }
    say(&mut link, &hello).await;
    let (FRAME_CONTROL, welcome) = link.frame().await.unwrap() else { panic!("no welcome") };
    let Ok(ToDevice::Welcome(welcome)) = Control::from_bytes(welcome) else { panic!("no welcome") };
    let stock = *welcome.stock.iter().find(|stock| stock.slot == NANO).unwrap();
    match place {
        Place::Hello | Place::Request => (link, (FRAME_CONTROL, encoded(&infer(0)))),
        Place::Corrections => {
            say(&mut link, &ToServer::Prepare(Prepare { slot: NANO, counter: stock.fresh })).await;
            let len = program.layout().unwrap().correction_bytes() as usize;
            (link, (FRAME_DATA, vec![0; len.min(FRAME_PAYLOAD)]))
        }
        Place::Share => {
            say(&mut link, &infer(0)).await;
            (link, (FRAME_DATA, vec![0; share.min(FRAME_PAYLOAD)]))
        }
        Place::Answer => {
            link.queue(FRAME_CONTROL, &encoded(&infer(stock.first))).unwrap();
            link.queue_message(FRAME_DATA, &vec![0; share], FRAME_PAYLOAD).unwrap();
            link.flush().await.unwrap();
            let messages = (0..).map_while(|id| program.gate(id).unwrap()).flat_map(|gate| gate.messages());
            let answer = messages.into_iter().filter(|message| message.kind.from_device()).nth(1).unwrap();
            assert!(matches!(link.frame().await, Ok((FRAME_DATA, _))), "an index");
            (link, (FRAME_DATA, vec![0; answer.bytes().min(FRAME_PAYLOAD)]))
        }
    }
}

/// What the server may be told at `place`, by rules written out here.
fn fine(place: Place, honest: &Frame) -> impl Fn(&Frame) -> bool {
    let as_long = as_long(honest.1.len());
    move |frame| match (place, ToServer::from_bytes(&frame.1)) {
        (Place::Hello, message) => frame.0 == FRAME_CONTROL && matches!(message, Ok(ToServer::Hello(_))),
        (Place::Request, Ok(ToServer::Prepare(Prepare { slot, .. }) | ToServer::Infer(Infer { slot, .. }))) => {
            frame.0 == FRAME_CONTROL && matches!(slot, Slot::Router | Slot::Model(0..3))
        }
        (Place::Request, _) => false,
        _ => as_long(frame),
    }
}

/// Runs `CASES` cases, eight at a time.
async fn cases<F: Future<Output = ()> + Send + 'static>(case: impl Fn(u64) -> F) {
    let mut running = tokio::task::JoinSet::new();
    for number in 0..CASES {
        if running.len() == 8 {
            running.join_next().await.unwrap().unwrap();
        }
        running.spawn(case(number));
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

async fn answers(parties: &Parties) {
    let mut device = parties.connect("honest").await.unwrap();
    device.prepare(NANO).await.unwrap();
    device.infer(NANO, &examples().unwrap().inputs[0]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_malformed_frames_of_a_device_end_its_session_and_no_other() {
    let names: Vec<String> = (0..8).map(|number| format!("d{number}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).chain(["honest"]).collect();
    let parties = Arc::new(Parties::start(&all).await.unwrap());
    for place in [Place::Hello, Place::Request, Place::Corrections, Place::Share, Place::Answer] {
        // One device is in one session at a time.
        let free = Arc::new(std::sync::Mutex::new(names.clone()));
        cases(|number| {
            let (parties, free) = (Arc::clone(&parties), Arc::clone(&free));
            async move {
                let name = free.lock().unwrap().pop().unwrap();
                let (link, honest) = bring(&parties, &name, place).await;
                let frame = change(&honest, number ^ (place as u64) << 32, FRAME_PAYLOAD, fine(place, &honest));
                ends(link, &frame, &format!("{place:?} {number}: {frame:?}")).await;
                free.lock().unwrap().push(name);
            }
        })
        .await;
        answers(&parties).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_malformed_handshakes_get_no_answer_from_server_or_dealer() {
    let parties = Arc::new(Parties::start(&["honest"]).await.unwrap());
    for address in [parties.server_address.clone(), parties.dealer_address.clone()] {
        // Of a stranger: the sizes are right, the keys are not.
        let secret = StaticSecret::generate(&mut random()).unwrap();
        let kind = if address == parties.server_address { Kind::DeviceServer } else { Kind::ServerDealer };
        let mut buffer = [vec![0; 2048], vec![0; 2048]];
        let [rx, tx] = &mut buffer;
        let channel = Channel::initiator(kind, &secret, secret.public_key(), &mut random(), rx, tx);
        let honest = channel.unwrap().pending().to_vec();
        assert_eq!(honest.len(), HANDSHAKE_INITIATOR_BYTES);
        cases(|number| {
            let (address, honest) = (address.clone(), honest.clone());
            async move {
                // Without the change it is still a stranger's.
                let (_, bytes) = change(&(0, honest), number, 2048, |_| false);
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                assert!(answer.is_empty(), "{number}: {} bytes of answer", answer.len());
            }
        })
        .await;
    }
    answers(&parties).await;
}

// ---- the dealer's link, in its wire format

#[derive(Serialize, Deserialize)]
enum Ask {
    Register { device: [u8; 32], pool: Vec<u8>, slot: Slot },
    Deal { device: [u8; 32], fingerprint: [u8; 32], slot: Slot, counter: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Registered,
    Dealt { bytes: u64 },
    Refused(Refused),
}

#[derive(Debug, Serialize, Deserialize)]
enum Refused {
    UnknownDevice,
    Spec,
    NotRegistered,
    Counter,
    Store,
}

/// Whether the dealer can act on it. Bytes behind a message are passed over.
fn is_ask((kind, payload): &Frame) -> bool {
    let known =
        |pool: &[u8], slot: Slot| PoolSpec::from_bytes(pool).is_ok_and(|spec| spec.slots().any(|have| have == slot));
    *kind == FRAME_CONTROL
        && match postcard::from_bytes(payload) {
            Ok(Ask::Register { pool, slot, .. }) => known(&pool, slot),
            Ok(Ask::Deal { .. }) => true,
            Err(_) => false,
        }
}

/// The committed pool's spec, and the bytes of the cheapest model's registration.
fn registration() -> (Vec<u8>, usize) {
    let spec = Pool::load(POOL.as_ref()).unwrap().spec;
    let layout = Program::of(&spec, NANO).unwrap().layout().unwrap();
    let pool = spec.to_bytes(&mut [0; MAX_SPEC_BYTES]).unwrap().to_vec();
    (pool, 4 * layout.weights as usize + 2 * layout.tables as usize)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_malformed_frames_of_a_server_end_its_link_to_the_dealer() {
    let parties = Arc::new(Parties::start(&["honest"]).await.unwrap());
    let keys: ServerFile = provision::read(&parties.path("server.json")).unwrap();
    let (secret, dealer) = (Arc::new(keys.secret().unwrap()), keys.dealer());
    let (pool, bytes) = registration();
    let asks = [
        Ask::Register { device: [1; 32], pool, slot: NANO },
        Ask::Deal { device: [1; 32], fingerprint: [2; 32], slot: NANO, counter: 300 },
    ];
    let asks = asks.map(|ask| (FRAME_CONTROL, postcard::to_stdvec(&ask).unwrap()));
    let whole = (FRAME_DATA, vec![0; bytes.min(DEALER_FRAME)]);
    // A registration, a question, and the weights behind a registration.
    for place in 0..3 {
        cases(|number| {
            let (parties, secret, asks, whole) =
                (Arc::clone(&parties), Arc::clone(&secret), asks.clone(), whole.clone());
            async move {
                let address = &parties.dealer_address;
                let out = if place < asks.len() { SMALL } else { DEALER_FRAME };
                let mut link = dial(Kind::ServerDealer, &secret, dealer, address, (SMALL, out)).await;
                let frame = match asks.get(place) {
                    Some(ask) => change(ask, number, SMALL, is_ask),
                    None => {
                        link.queue(FRAME_CONTROL, &asks[0].1).unwrap();
                        change(&whole, number, DEALER_FRAME, as_long(whole.1.len()))
                    }
                };
                ends(link, &frame, &format!("{place} {number}")).await;
            }
        })
        .await;
        answers(&parties).await;
    }
}

async fn ask(link: &mut Raw, ask: &Ask) -> Tell {
    link.queue(FRAME_CONTROL, &postcard::to_stdvec(ask).unwrap()).unwrap();
    if let Ask::Register { .. } = ask {
        link.queue_message(FRAME_DATA, &vec![0; registration().1], DEALER_FRAME).unwrap();
    }
    link.flush().await.unwrap();
    let (FRAME_CONTROL, told) = link.frame().await.unwrap() else { panic!("not an answer") };
    let told = postcard::from_bytes(told).unwrap();
    if let Tell::Dealt { bytes } = told {
        link.message(FRAME_DATA, bytes as usize, DEALER_FRAME).await.unwrap();
    }
    told
}

/// The store is free when the last session of the party before it is dropped.
async fn restarted<T>(start: impl Fn() -> anyhow::Result<T>) -> T {
    for _ in 0..1000 {
        match start() {
            Ok(started) => return started,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
    start().unwrap()
}

/// Two items of one counter would be two linear views of one mask.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_gets_a_counter_once_whatever_it_registers_and_whoever_restarts() {
    let directory = tempfile::tempdir().unwrap();
    provision::provision(directory.path(), "a").unwrap();
    let (server, dealer, device) = provision::paths(directory.path(), "a");
    let server: ServerFile = provision::read(&server).unwrap();
    let device = provision::read::<DeviceFile>(&device).unwrap().secret().unwrap().public_key().0;
    let spec = Pool::load(POOL.as_ref()).unwrap().spec;
    for restart in 0..3u64 {
        let dealer = restarted(|| {
            Dealer::new(provision::read(&dealer).unwrap(), &directory.path().join("dealt"), Patience::default())
        })
        .await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let running = tokio::spawn(Arc::new(dealer).run(listener));
        let (secret, buffers) = (server.secret().unwrap(), (DEALER_FRAME, DEALER_FRAME));
        let mut link = dial(Kind::ServerDealer, &secret, server.dealer(), &address, buffers).await;
        // Two pools, which differ in a name.
        for name in ["one", "other"] {
            let mut spec = spec.clone();
            spec.models[0].name = name.try_into().unwrap();
            let pool = spec.to_bytes(&mut [0; MAX_SPEC_BYTES]).unwrap().to_vec();
            assert!(matches!(ask(&mut link, &Ask::Register { device, pool, slot: NANO }).await, Tell::Registered));
            let fingerprint = spec.fingerprint().unwrap();
            let deal = |counter| Ask::Deal { device, fingerprint, slot: NANO, counter };
            let fresh = 10 * restart + u64::from(name == "other");
            assert!(matches!(ask(&mut link, &deal(fresh)).await, Tell::Dealt { .. }), "{restart} {name}");
            for seen in [fresh, fresh.saturating_sub(1), 0] {
                let told = ask(&mut link, &deal(seen)).await;
                assert!(matches!(told, Tell::Refused(Refused::Counter)), "{restart} {name} {seen}: {told:?}");
            }
        }
        drop(link);
        running.abort();
        // The store is free when the last session is gone.
        let _ = running.await;
    }
}

/// What a dealer says to the server's first question, when it means harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// To a question.
    Dealt,
    /// To a registration.
    Registered,
    /// The item itself.
    Item,
}

/// A dealer that answers its next server badly; returns the link, which the server has given up.
async fn bad_dealer(listener: &TcpListener, secret: &StaticSecret, place: Told, number: u64, item: usize) -> Raw {
    let (stream, _) = listener.accept().await.unwrap();
    stream.set_nodelay(true).unwrap();
    let buffers = buffers(match place {
        Told::Dealt => (SMALL, SMALL),
        Told::Registered => (DEALER_FRAME, SMALL),
        Told::Item => (SMALL, DEALER_FRAME),
    });
    let mut link =
        Link::answer(Kind::ServerDealer, secret, |_| true, &mut random(), stream, buffers, Patience::default())
            .await
            .unwrap();
    let tell = |tell: &Tell| (FRAME_CONTROL, postcard::to_stdvec(tell).unwrap());
    assert!(matches!(link.frame().await, Ok((FRAME_CONTROL, _))), "a question");
    let dealt = Tell::Dealt { bytes: item as u64 };
    let frame = match place {
        Told::Dealt => change(&tell(&dealt), number, SMALL, |(kind, payload)| {
            let told = postcard::from_bytes(payload);
            *kind == FRAME_CONTROL
                && (matches!(told, Ok(Tell::Refused(_)))
                    || matches!(told, Ok(Tell::Dealt { bytes }) if bytes == item as u64))
        }),
        Told::Registered => {
            let (_, refused) = tell(&Tell::Refused(Refused::NotRegistered));
            link.queue(FRAME_CONTROL, &refused).unwrap();
            link.flush().await.unwrap();
            assert!(matches!(link.frame().await, Ok((FRAME_CONTROL, _))), "a registration");
            link.message(FRAME_DATA, registration().1, DEALER_FRAME).await.unwrap();
            change(&tell(&Tell::Registered), number, SMALL, |(kind, payload)| {
                let told = postcard::from_bytes(payload);
                *kind == FRAME_CONTROL && matches!(told, Ok(Tell::Registered | Tell::Refused(_)))
            })
        }
        Told::Item => {
            link.queue(FRAME_CONTROL, &tell(&dealt).1).unwrap();
            let len = item.min(DEALER_FRAME);
            change(&(FRAME_DATA, vec![0; len]), number, DEALER_FRAME, as_long(len))
        }
    };
    link.queue(frame.0, &frame.1).unwrap();
    let _ = link.flush().await;
    link
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_malformed_frames_of_a_dealer_are_refusals_to_the_device_and_the_link_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let here: &Path = directory.path();
    provision::provision(here, "a").unwrap();
    let (server, dealer, _) = provision::paths(here, "");
    let secret = provision::read::<DealerFile>(&dealer).unwrap().secret().unwrap();
    let dealers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (keys, pool) = (provision::read(&server).unwrap(), Pool::load(POOL.as_ref()).unwrap());
    let item = Program::of(&pool.spec, NANO).unwrap().layout().unwrap().stock as usize;
    let dealer_address = dealers.local_addr().unwrap().to_string();
    let service = Service::new(keys, pool, &here.join("stock.redb"), dealer_address, Patience::default()).unwrap();
    let serving = tokio::spawn(Arc::new(service).run(listener));

    let mut device = Device::connect(here, "a", &address).await.unwrap();
    let mut given_up: Option<Raw> = None;
    for place in [Told::Dealt, Told::Registered, Told::Item] {
        for number in 0..CASES {
            let (refused, link) =
                tokio::join!(device.prepare(NANO), bad_dealer(&dealers, &secret, place, number, item));
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("has got nothing from its dealer"), "{place:?} {number}: {refused}");
            // The server lets go of a link that failed.
            if let Some(mut last) = given_up.replace(link) {
                assert!(last.frame().await.is_err(), "{place:?} {number}: the link before is still in use");
            }
        }
    }
    serving.abort();
}
