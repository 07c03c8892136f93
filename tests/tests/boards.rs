//! The firmware in QEMU against the real server. `targets/test.sh` builds what this needs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use secure_router::board::{self, Board, End, Files, Line, Plan, Running, Sizes, Way};
use secure_router::link::Moved;
use secure_router::pool::{Pool, slot_name};
use secure_router::provision;
use secure_router_core::channel::{HANDSHAKE_INITIATOR_BYTES, HANDSHAKE_RESPONDER_BYTES};
use secure_router_core::circuit::{SLOTS, Slot};
use secure_router_core::cost::Cost;
use secure_router_core::driver;
use secure_router_core::rand_core::{TryCryptoRng, TryRng};
use secure_router_core::session::{
    Control as _, CounterError, Counters, DeviceIdentity, DeviceMemory, DeviceSession, Event, Hello, LinkProfile,
    MAX_CONTROL_BYTES, Request, SlotStock, ToDevice, ToServer, Welcome, framed_bytes,
};
use secure_router_core::spec::MAX_SPEC_BYTES;
use secure_router_tests::{POOL, Parties, examples, reference};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const ENTROPY: [u8; 32] = *b"the same 32 bytes for both sides";
const NANO: Slot = Slot::Model(0);
/// Codes that the firmware ends with.
const FILES: Option<i32> = Some(2);
const LINE: Option<i32> = Some(3);
const SESSION: Option<i32> = Some(4);

/// A server, its dealer, and one provisioned board.
struct Bench {
    plan: Plan,
    parties: Parties,
    place: TempDir,
    pool: Pool,
    inputs: Vec<Vec<i16>>,
    _runtime: Runtime,
}

impl Bench {
    fn new(board: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let parties = runtime.block_on(Parties::start(&["board"])).unwrap();
        let mut plan = Plan::new(Board::named(board).unwrap());
        plan.limit = Duration::from_secs(240);
        let all = examples().unwrap().inputs;
        let (place, pool) = (tempfile::tempdir().unwrap(), Pool::load(POOL.as_ref()).unwrap());
        // One of them goes on to another model.
        let unsure = pool.least_sure(&all).unwrap().expect("the router is not sure of everything").to_vec();
        let inputs = all.iter().step_by(all.len() / 2).take(2).cloned().chain([unsure]).collect();
        Self { plan, parties, place, pool, inputs, _runtime: runtime }
    }

    /// One input to the smallest model, with a peer that soon falls silent in mind.
    fn short(board: &str) -> Self {
        let mut bench = Self::new(board);
        bench.inputs.truncate(1);
        bench.plan.programs = vec!["micro".to_owned()];
        bench.plan.patience = Duration::from_millis(1500);
        bench
    }

    fn log(&self) -> PathBuf {
        self.place.path().join("flash")
    }

    /// A new start of the board: its files, in a directory of this start's own.
    fn files(&self) -> Files {
        let here = tempfile::tempdir_in(self.place.path()).unwrap().keep();
        let keys = provision::read(&self.parties.path("device-board.json")).unwrap();
        let inputs: Vec<&[i16]> = self.inputs.iter().map(Vec::as_slice).collect();
        Files::write(&here, &keys, &self.log(), &inputs).unwrap()
    }

    fn server(&self) -> &str {
        &self.parties.server_address
    }

    /// A run with a tap on the line, and the bytes that went up.
    fn tapped(&self, tap: impl Fn(Way, &mut Vec<u8>) + Clone + Send + 'static) -> End {
        let files = self.files();
        files.entropy(&fresh()).unwrap();
        files.start(&self.plan, self.server(), tap).unwrap().wait().unwrap()
    }

    /// The next session, on a good line, answers every input.
    fn works(&self) -> Vec<Line> {
        let mut plan = self.plan.clone();
        plan.patience = Duration::from_secs(60);
        let mut running = self.files().start_fresh(&plan, self.server()).unwrap();
        let lines = lines(&mut running);
        let end = running.wait().unwrap();
        assert_eq!(end.code, Some(0), "{}", end.console);
        lines
    }

    /// What the board's counters say: for each slot the lowest that is still good. Fails if they
    /// ever went back.
    fn counters(&self) -> [u64; SLOTS] {
        let mut next = [0; SLOTS];
        for record in std::fs::read(self.log()).unwrap().chunks_exact(16) {
            if record[15] != 0 {
                let value = u64::from_le_bytes(record[1..9].try_into().unwrap());
                let slot = &mut next[usize::from(record[0])];
                assert!(value > *slot, "counter {value} of slot {} burned again", record[0]);
                *slot = value;
            }
        }
        next
    }
}

fn fresh() -> [u8; 32] {
    let mut bytes = [0; 32];
    provision::random().try_fill_bytes(&mut bytes).unwrap();
    bytes
}

fn lines(running: &mut Running) -> Vec<Line> {
    std::iter::from_fn(|| running.next_line().unwrap()).collect()
}

/// Input, what was asked, the model that answered, the class, the logits.
type Answered = (usize, Slot, Slot, usize, Vec<i32>);

fn answers(lines: &[Line]) -> Vec<Answered> {
    lines
        .iter()
        .filter_map(|line| match line {
            Line::Answer { index, asked, model, class, logits, .. } => {
                Some((*index, *asked, *model, *class, logits.clone()))
            }
            _ => None,
        })
        .collect()
}

// ---- the whole pool, on real inputs

fn the_whole_pool_answers_real_inputs(board: &str) {
    let bench = Bench::new(board);
    let lines = bench.works();
    let spec = &bench.pool.spec;
    let cost = |slot| Cost::of(spec, slot, bench.plan.board.tile()).unwrap();
    let mut agreed = 0;
    for line in &lines {
        match line {
            Line::Prepared(slot, moved) => {
                let cost = cost(*slot).offline;
                assert_eq!(*moved, Moved { sent: cost.up, received: cost.down });
            }
            Line::Answer { index, asked, model, class, moved, logits } => {
                let cost = match model {
                    Slot::Model(index) if *asked == Slot::Router => {
                        Cost::routed(spec, *index, bench.plan.board.tile()).unwrap()
                    }
                    _ => cost(*asked),
                }
                .online;
                assert_eq!(*moved, Moved { sent: cost.up, received: cost.down });
                assert_eq!(logits.len(), usize::from(spec.classes));
                agreed += usize::from(*class == reference(&bench.pool, *model, &bench.inputs[*index]).unwrap());
            }
            Line::Unfit(slot) => panic!("{} does not fit", slot_name(spec, *slot)),
            _ => {}
        }
    }
    let programs = spec.slots().count();
    assert_eq!(answers(&lines).len(), bench.inputs.len() * programs);
    // Rounding is random in the protocol: a close call may go the other way.
    assert!(agreed + 2 >= bench.inputs.len() * programs, "only {agreed} answers as in the clear");
    let routed: Vec<_> =
        answers(&lines).iter().filter(|answer| answer.1 == Slot::Router).map(|answer| answer.2).collect();
    assert!(routed.iter().any(|model| !spec.router_answers(*model)), "the router went on to no other model");
    for slot in spec.slots() {
        let routed = routed.iter().filter(|model| **model == slot && !spec.router_answers(slot)).count();
        let runs = routed + bench.inputs.len();
        assert_eq!(bench.counters()[usize::from(slot.code())], runs as u64);
    }
}

fn ram_and_flash_keep_their_limits(board: &str) {
    let bench = Bench::new(board);
    let sizes = Sizes::of(&bench.plan.firmware).unwrap();
    let Some(Line::Stack(stack)) = bench.works().pop() else { panic!("no stack reported") };
    let ram = sizes.ram + u32::try_from(stack).unwrap();
    assert!(stack > 1000, "the painting saw nothing");
    assert!(ram <= 32 * 1024, "{ram} bytes of RAM");
    assert!(sizes.flash <= 96 * 1024, "{} bytes of flash", sizes.flash);
}

// ---- the same bytes as the desktop device

type Transcript = Vec<(Way, Vec<u8>)>;

/// A link that writes down what crosses it.
struct Recorded {
    stream: TcpStream,
    transcript: Transcript,
}

impl Recorded {
    fn add(&mut self, way: Way, bytes: &[u8]) {
        match self.transcript.last_mut() {
            Some((last, all)) if *last == way => all.extend_from_slice(bytes),
            _ => self.transcript.push((way, bytes.to_vec())),
        }
    }
}

impl embedded_io::ErrorType for Recorded {
    type Error = std::io::Error;
}

impl embedded_io::Read for Recorded {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(out)?;
        self.add(Way::Down, &out[..count]);
        Ok(count)
    }
}

impl embedded_io::Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.add(Way::Up, &bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Fixed(Vec<u8>);

impl TryRng for Fixed {
    type Error = std::io::Error;
    fn try_next_u32(&mut self) -> std::io::Result<u32> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn try_next_u64(&mut self) -> std::io::Result<u64> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.0.as_slice().read_exact(bytes)?;
        self.0.drain(..bytes.len());
        Ok(())
    }
}

impl TryCryptoRng for Fixed {}

#[derive(Default)]
struct Memory([u64; SLOTS]);

impl Counters for Memory {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        Ok(self.0[usize::from(slot.code())])
    }
    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        self.0[usize::from(slot.code())] = counter + 1;
        Ok(())
    }
}

/// What the firmware does, by the desktop's kernel: everything prepared on demand, every input to
/// every program.
fn desktop(bench: &Bench) -> (Transcript, Vec<Answered>) {
    let keys: provision::DeviceFile = provision::read(&bench.parties.path("device-board.json")).unwrap();
    let (secret, seeds) = (keys.secret().unwrap(), keys.seeds());
    let identity = DeviceIdentity { secret: &secret, server: keys.server(), seeds: &seeds, routing: keys.routing() };
    let (mut rx, mut tx) = ([0; DeviceMemory::FRAME_BYTES], [0; DeviceMemory::FRAME_BYTES]);
    let (mut work, mut input) = (vec![0; 1 << 16], vec![0; 1024]);
    let memory = DeviceMemory { rx: &mut rx, tx: &mut tx, work: &mut work, input: &mut input };
    let stream = TcpStream::connect(bench.server()).unwrap();
    let mut link = Recorded { stream, transcript: Vec::new() };
    // Another tile than any board's: it must not show.
    let mut session =
        DeviceSession::connect(identity, memory, 16, Memory::default(), &mut Fixed(ENTROPY.to_vec())).unwrap();
    assert_eq!(driver::run(&mut link, &mut session).unwrap(), Event::Ready);
    let pool = session.pool().unwrap().clone();
    let slots: Vec<Slot> = pool.slots().collect();
    let mut answers = Vec::new();
    for (index, input) in bench.inputs.iter().enumerate() {
        for &slot in &slots {
            let needed = match slot {
                Slot::Router => slots.iter().copied().filter(|slot| !pool.router_answers(*slot)).collect(),
                Slot::Model(_) => vec![slot],
            };
            for slot in needed {
                if session.ready(slot) == 0 {
                    session.prepare(slot).unwrap();
                    assert_eq!(driver::run(&mut link, &mut session).unwrap(), Event::Prepared(slot));
                }
            }
            session.infer(Request { slot, lambda: bench.plan.lambda, link: LinkProfile::UART }, input).unwrap();
            loop {
                match driver::run(&mut link, &mut session).unwrap() {
                    Event::Routed(_) => {}
                    Event::Answer => break,
                    event => panic!("{event:?}"),
                }
            }
            let model = session.answered_by().unwrap();
            answers.push((index, slot, model, session.class().unwrap(), session.logits().collect()));
        }
    }
    (link.transcript, answers)
}

/// The server's side of a transcript, played to a device that must play the other.
fn replay(listener: &TcpListener, transcript: &Transcript) -> Result<(), String> {
    let (mut line, _) = listener.accept().map_err(|error| error.to_string())?;
    line.set_read_timeout(Some(Duration::from_secs(120))).map_err(|error| error.to_string())?;
    let mut at = 0;
    for (way, bytes) in transcript {
        match way {
            Way::Down => line.write_all(bytes).map_err(|error| error.to_string())?,
            Way::Up => {
                let mut sent = vec![0; bytes.len()];
                line.read_exact(&mut sent).map_err(|error| format!("behind byte {at}: {error}"))?;
                if let Some(place) = sent.iter().zip(bytes).position(|(one, other)| one != other) {
                    return Err(format!("byte {} differs", at + place));
                }
                at += bytes.len();
            }
        }
    }
    match line.read(&mut [0]) {
        Ok(0) | Err(_) => Ok(()),
        Ok(_) => Err("the device sent more".to_owned()),
    }
}

/// The transcript is the desktop's with the real server; a device that gets the same bytes must
/// send the same ones.
fn every_byte_is_the_desktops(board: &str) {
    let mut bench = Bench::new(board);
    bench.inputs.truncate(2);
    let (transcript, expected) = desktop(&bench);
    let up: usize = transcript.iter().filter(|(way, _)| *way == Way::Up).map(|(_, bytes)| bytes.len()).sum();
    assert!(up > 100_000, "only {up} bytes to compare");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || replay(&listener, &transcript));
    let files = bench.files();
    files.entropy(&ENTROPY).unwrap();
    let mut running = files.start(&bench.plan, &address, |_, _: &mut Vec<u8>| {}).unwrap();
    let lines = lines(&mut running);
    let end = running.wait().unwrap();
    server.join().unwrap().unwrap();
    assert_eq!(end.code, Some(0), "{}", end.console);
    assert_eq!(answers(&lines), expected);
}

/// The comparison above can fail: other randomness gives other bytes.
fn other_randomness_is_noticed(board: &str) {
    let bench = Bench::short(board);
    let (transcript, _) = desktop(&bench);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || replay(&listener, &transcript));
    let files = bench.files();
    files.entropy(&fresh()).unwrap();
    let end = files.start(&bench.plan, &address, |_, _: &mut Vec<u8>| {}).unwrap().wait().unwrap();
    assert!(server.join().unwrap().unwrap_err().contains("differs"));
    assert_ne!(end.code, Some(0));
}

/// The example for firmware authors, over a link of this test's own.
#[test]
fn the_example_classifies() {
    let bench = Bench::new("mps2-an386");
    let keys: provision::DeviceFile = provision::read(&bench.parties.path("device-board.json")).unwrap();
    let (secret, seeds) = (keys.secret().unwrap(), keys.seeds());
    let identity = DeviceIdentity { secret: &secret, server: keys.server(), seeds: &seeds, routing: keys.routing() };
    let mut memory = secure_router_example::Memory::EMPTY;
    let mut flash = Memory::default();
    let stream = TcpStream::connect(bench.server()).unwrap();
    let line = stream.try_clone().unwrap();
    let mut link = Recorded { stream, transcript: Vec::new() };
    let (mut inputs, mut classes) = (bench.inputs.iter(), Vec::new());
    let sample = || match inputs.next() {
        Some(input) => input.as_slice().try_into().unwrap(),
        None => {
            line.shutdown(Shutdown::Both).unwrap();
            [0; secure_router_example::VALUES]
        }
    };
    let show = |class| classes.push(class);
    let random = &mut provision::random();
    let ended = secure_router_example::serve(&mut link, &mut flash, random, identity, &mut memory, sample, show);
    assert!(matches!(ended, Err(secure_router_example::Ended::Failed(_))), "{ended:?}");
    // One session answered all, and the line failed under the question after them.
    assert_eq!((classes.len(), flash.0[0]), (bench.inputs.len(), bench.inputs.len() as u64 + 1));
    assert!(classes.iter().all(|class| *class < usize::from(bench.pool.spec.classes)));
}

// ---- bad lines, bad peers, power cuts

#[derive(Clone, Copy, Debug)]
enum Fault {
    Flip,
    Drop,
    Duplicate,
    Silence,
}

/// Does `fault` to byte `at` of one direction.
fn with_fault(fault: Fault, way: Way, at: usize) -> impl Fn(Way, &mut Vec<u8>) + Clone + Send + 'static {
    let passed = Arc::new(AtomicUsize::new(0));
    move |on, piece| {
        if on != way {
            return;
        }
        let first = passed.fetch_add(piece.len(), Ordering::Relaxed);
        if matches!(fault, Fault::Silence) {
            piece.truncate(at.saturating_sub(first));
        } else if let Some(place) = at.checked_sub(first).filter(|place| *place < piece.len()) {
            match fault {
                Fault::Flip => piece[place] ^= 0x10,
                Fault::Drop => drop(piece.remove(place)),
                Fault::Duplicate => piece.insert(place, piece[place]),
                Fault::Silence => {}
            }
        }
    }
}

/// Bytes up before the first that depends on a mask of an answer: handshake, hello, and the
/// preparation of the smallest model.
fn up_before_the_answer(bench: &Bench) -> usize {
    let hello = ToServer::Hello(Hello { counters: [0; SLOTS] });
    let cost = Cost::of(&bench.pool.spec, NANO, 1).unwrap();
    let hello = hello.to_bytes(&mut [0; MAX_CONTROL_BYTES]).unwrap() as u64;
    HANDSHAKE_INITIATOR_BYTES + (framed_bytes(hello) + cost.offline.up) as usize
}

/// Bytes to the device before the last half of the online phase.
fn down_before_the_answer(bench: &Bench) -> usize {
    let stock = bench.pool.spec.slots().map(|slot| SlotStock { slot, first: 0, fresh: 0, ready: 0 }).collect();
    let pool = bench.pool.spec.to_bytes(&mut [0; MAX_SPEC_BYTES]).unwrap().iter().copied().collect();
    let welcome = ToDevice::Welcome(Welcome { pool, stock });
    let welcome = welcome.to_bytes(&mut [0; MAX_CONTROL_BYTES]).unwrap() as u64;
    let cost = Cost::of(&bench.pool.spec, NANO, 1).unwrap();
    HANDSHAKE_RESPONDER_BYTES + (framed_bytes(welcome) + cost.offline.down + cost.online.down / 2) as usize
}

fn a_bad_line_ends_the_session_and_not_the_device(board: &str) {
    let bench = Bench::short(board);
    let infer = up_before_the_answer(&bench);
    let indices = down_before_the_answer(&bench);
    let cases = [
        // In the handshake's answer: its preamble, its length, its body.
        (Way::Down, 0),
        (Way::Down, 5),
        (Way::Down, 30),
        // In the welcome, and in the indices.
        (Way::Down, 100),
        (Way::Down, 300),
        (Way::Down, indices),
        // In the first message, the corrections, the masked input.
        (Way::Up, 20),
        (Way::Up, infer - 300),
        (Way::Up, infer + 400),
    ];
    let mut burned = bench.counters_or_none();
    for (case, (way, at)) in cases.into_iter().enumerate() {
        // Every kind of fault in turn, each kind at several places.
        for fault in [Fault::Flip, Fault::Drop, Fault::Duplicate, Fault::Silence].into_iter().skip(case % 2).step_by(2)
        {
            let end = bench.tapped(with_fault(fault, way, at));
            let what = format!("{fault:?} at byte {at} {way:?}: {end:?}");
            assert!(end.code == LINE || end.code == SESSION, "{what}");
            assert!(end.console.contains(&format!("{board}: ")), "{what}");
            let after = bench.counters();
            assert!(after.iter().zip(burned).all(|(after, before)| *after >= before), "{what}");
            burned = after;
        }
    }
    let before = bench.counters()[1];
    assert!(before > 0, "no case came as far as the answer");
    assert_eq!(answers(&bench.works()).len(), 1);
    assert!(bench.counters()[1] > before, "the next session burned nothing");
}

impl Bench {
    fn counters_or_none(&self) -> [u64; SLOTS] {
        if self.log().exists() { self.counters() } else { [0; SLOTS] }
    }
}

/// Cuts the power as soon as so many bytes have left the device.
fn a_power_cut_anywhere_leaves_no_mask_usable_twice(board: &str) {
    let bench = Bench::short(board);
    let infer = up_before_the_answer(&bench);
    let whole = infer + Cost::of(&bench.pool.spec, NANO, 1).unwrap().online.up as usize;
    let mut cut = 0;
    for at in [1, 110, infer - 200, infer, infer + 1, infer + 60, infer + 800, whole - 700, whole - 1] {
        let before = bench.counters_or_none()[1];
        let (reached, wait) = std::sync::mpsc::channel::<()>();
        let state = Arc::new(Mutex::new((0, Some(reached))));
        let seen = Arc::clone(&state);
        let files = bench.files();
        files.entropy(&fresh()).unwrap();
        let running = files
            .start(&bench.plan, bench.server(), move |way, piece: &mut Vec<u8>| {
                let mut state = seen.lock().unwrap();
                if way == Way::Up {
                    state.0 += piece.len();
                    if state.0 >= at {
                        // Gone once: the channel closes, and the waiting ends.
                        state.1 = None;
                    }
                }
            })
            .unwrap();
        assert!(wait.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
        let end = running.kill().unwrap();
        cut += usize::from(end.code.is_none());
        // Whatever the server has seen of an answer, its counter was burned before.
        let sent = state.lock().unwrap().0;
        let burned = bench.counters()[1];
        if sent > infer {
            assert!(burned > before, "{sent} bytes went out, counter {before} is still good");
        }
        assert_eq!(answers(&bench.works()).len(), 1);
        assert!(bench.counters()[1] > burned);
    }
    assert!(cut >= 5, "only {cut} runs were cut");
}

fn torn_and_damaged_counters(board: &str) {
    let bench = Bench::short(board);
    bench.works();
    bench.works();
    let whole = std::fs::read(bench.log()).unwrap();
    assert_eq!(whole.len(), 32);
    // A record that was never finished was never acted on.
    for length in [17, 24, 31] {
        std::fs::write(bench.log(), &whole[..length]).unwrap();
        // The server knows that counter 1 is spent, whatever the device says.
        bench.works();
        let after = std::fs::read(bench.log()).unwrap();
        assert_eq!(after.len(), 48, "the torn record was filled up, another follows");
        assert!(bench.counters()[1] > 2);
    }
    for place in [0, 1, 9, 15] {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x40;
        std::fs::write(bench.log(), &damaged).unwrap();
        let end = bench.tapped(|way, piece: &mut Vec<u8>| assert!(way == Way::Down || piece.is_empty()));
        assert_eq!(end.code, SESSION, "{}", end.console);
        assert!(end.console.contains("counter store failed"), "{}", end.console);
    }
}

fn a_source_that_fails_or_stands_still_starts_nothing(board: &str) {
    let bench = Bench::short(board);
    let sent = Arc::new(AtomicUsize::new(0));
    let start = |files: &Files| {
        let sent = Arc::clone(&sent);
        let tap = move |way, piece: &mut Vec<u8>| {
            if way == Way::Up {
                sent.fetch_add(piece.len(), Ordering::Relaxed);
            }
        };
        files.start(&bench.plan, bench.server(), tap).unwrap().wait().unwrap()
    };
    for (entropy, says) in [
        (None, "the random source failed"),
        (Some(&[7; 31][..]), "the random source failed"),
        (Some(&[][..]), "the random source failed"),
        (Some(&[0; 32][..]), "the random source repeats itself"),
        (Some(&[0xa5; 32][..]), "the random source repeats itself"),
        (Some(b"12345678123456781234567812345678"), "the random source repeats itself"),
    ] {
        let files = bench.files();
        if let Some(bytes) = entropy {
            files.entropy(bytes).unwrap();
        }
        let end = start(&files);
        assert_eq!(end.code, SESSION, "{}", end.console);
        assert!(end.console.contains(says), "{}", end.console);
    }
    assert_eq!(sent.load(Ordering::Relaxed), 0, "bytes went out without randomness");
    // What a session drew is spent: a second start with it is refused.
    let files = bench.files();
    files.entropy(&fresh()).unwrap();
    assert_eq!(start(&files).code, Some(0));
    let sent_once = sent.load(Ordering::Relaxed);
    let end = start(&files);
    assert!(end.console.contains("repeats itself"), "{}", end.console);
    assert_eq!(sent.load(Ordering::Relaxed), sent_once);
}

fn bad_files_are_named(board: &str) {
    let bench = Bench::short(board);
    let end = |change: &dyn Fn(&std::path::Path)| {
        let here = tempfile::tempdir_in(bench.place.path()).unwrap();
        let keys = provision::read(&bench.parties.path("device-board.json")).unwrap();
        let files = Files::write(here.path(), &keys, &bench.log(), &[&bench.inputs[0]]).unwrap();
        change(here.path());
        files.start_fresh(&bench.plan, bench.server()).unwrap().wait().unwrap()
    };
    let blank = end(&|here| std::fs::write(here.join("device.key"), [0xff; 136]).unwrap());
    assert_eq!(blank.code, FILES);
    assert!(blank.console.contains("device.key"), "{}", blank.console);
    let none = end(&|here| std::fs::remove_file(here.join("inputs.bin")).unwrap());
    assert_eq!(none.code, FILES);
    assert!(none.console.contains("inputs.bin"), "{}", none.console);
    let cut = end(&|here| std::fs::write(here.join("inputs.bin"), [160, 1, 0]).unwrap());
    assert_eq!(cut.code, FILES);
    let long = end(&|here| std::fs::write(here.join("inputs.bin"), [0xff; 2]).unwrap());
    assert_eq!(long.code, FILES);
    assert!(long.console.contains("do not fit"), "{}", long.console);
    let other = end(&|here| {
        std::fs::write(here.join("inputs.bin"), [8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap()
    });
    assert_eq!(other.code, SESSION);
    assert!(other.console.contains("has 8 values, this pool takes 416"), "{}", other.console);
    assert_eq!(bench.counters(), [0; SLOTS]);
}

/// With work space for the small models only (`FIRMWARE_WORK=480`).
fn models_that_do_not_fit_are_named_and_the_rest_runs(board: &str) {
    let mut bench = Bench::new(board);
    bench.plan.firmware = board::firmware(bench.plan.board).with_file_name("device-480.elf");
    let mut running = bench.files().start_fresh(&bench.plan, bench.server()).unwrap();
    let lines = lines(&mut running);
    let end = running.wait().unwrap();
    assert_eq!(end.code, Some(0), "{}", end.console);
    for name in ["small", "large"] {
        let says = format!("{board}: {name} does not fit: the device workspace holds 480 elements, this pool needs ");
        assert!(end.console.contains(&says), "{}", end.console);
    }
    let unfit: Vec<_> = lines.iter().filter(|line| matches!(line, Line::Unfit(_))).collect();
    assert_eq!(unfit, [&Line::Unfit(Slot::Model(1)), &Line::Unfit(Slot::Model(2))]);
    // The router is told, and chooses among the rest.
    let answers = answers(&lines);
    assert_eq!(answers.len(), 2 * bench.inputs.len());
    assert!(answers.iter().all(|(_, _, model, ..)| *model == NANO));

    bench.plan.programs = vec!["large".to_owned()];
    let end = bench.files().start_fresh(&bench.plan, bench.server()).unwrap().wait().unwrap();
    assert_eq!(end.code, SESSION);
    assert_eq!(bench.counters()[3], 0);
}

macro_rules! on_boards {
    ($($module:ident $board:literal: [$($test:ident)*];)*) => {
        $(mod $module {
            $(#[test]
            #[ignore = "needs QEMU and firmware: targets/test.sh"]
            fn $test() {
                super::$test($board);
            })*
        })*

        #[test]
        fn every_board_is_tested() {
            let tested = [$($board),*];
            assert!(Board::ALL.iter().all(|board| tested.contains(&board.name)));
        }
    };
}

on_boards! {
    lm3s6965evb "lm3s6965evb": [
        the_whole_pool_answers_real_inputs
        every_byte_is_the_desktops
        ram_and_flash_keep_their_limits
        other_randomness_is_noticed
        a_bad_line_ends_the_session_and_not_the_device
        a_power_cut_anywhere_leaves_no_mask_usable_twice
        torn_and_damaged_counters
        a_source_that_fails_or_stands_still_starts_nothing
        bad_files_are_named
    ];
    microbit "microbit": [
        the_whole_pool_answers_real_inputs
        every_byte_is_the_desktops
        models_that_do_not_fit_are_named_and_the_rest_runs
    ];
    mps2_an386 "mps2-an386": [
        the_whole_pool_answers_real_inputs
        every_byte_is_the_desktops
        a_bad_line_ends_the_session_and_not_the_device
        a_power_cut_anywhere_leaves_no_mask_usable_twice
    ];
    mps2_an500 "mps2-an500": [the_whole_pool_answers_real_inputs every_byte_is_the_desktops];
    mps2_an505 "mps2-an505": [the_whole_pool_answers_real_inputs every_byte_is_the_desktops];
    netduinoplus2 "netduinoplus2": [the_whole_pool_answers_real_inputs every_byte_is_the_desktops];
}
