//! A scripted server behind a real channel, and a link to it that a test can cut, slow and tamper with.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use secure_router_core::channel::{Channel, Event as Arrived, Link, StaticSecret};
use secure_router_core::circuit::{Gate, Operand, Program, Slot};
use secure_router_core::cost::router_scores;
use secure_router_core::keys::{DeviceSeeds, server_key};
use secure_router_core::routing::{Bias, MAX_MARGIN, Routing};
use secure_router_core::server::{Server, Stock, Turn, work_words};
use secure_router_core::session::{
    Control, CounterError, Counters, DeviceIdentity, DeviceMemory, DeviceSession, Event, FRAME_CONTROL, FRAME_DATA,
    FRAME_PAYLOAD, Hello, Infer, LinkProfile, Prepare, PreparedStock, Refusal, Request, SessionError, SlotStock,
    ToDevice, ToServer, Welcome,
};
use secure_router_core::spec::{ModelSpec, NamedModel, Opening, PoolSpec, RouterSpec};

use super::chance::Chance;
use super::{Secret, Seeds, deal, random_secret};

/// By how much the first model's answer must lead for a router to give it: not at all where cost counts.
pub fn margin(lambda: u16) -> u16 {
    if lambda == 0 { MAX_MARGIN } else { 0 }
}

fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

/// Three models of clearly different cost and a router. The largest model's messages take several frames.
pub fn pool() -> PoolSpec {
    let base = ModelSpec {
        tokens: 4,
        features: 12,
        width: 0,
        heads: 0,
        ffn: 6,
        layers: 1,
        qkv: opening(6, 12),
        score: opening(6, 9),
        mix: opening(8, 12),
        ffn_in: opening(7, 9),
        output_bits: 24,
    };
    let middle = ModelSpec { tokens: 8, features: 6, width: 8, heads: 2, ffn: 0, ..base };
    let large = ModelSpec { tokens: 16, features: 3, width: 16, heads: 2, ffn: 72, layers: 2, ..base };
    let trunk = ModelSpec { tokens: 2, features: 24, ffn: 5, output_bits: 16, ..base };
    let named = |name: &str, spec| NamedModel { name: name.try_into().unwrap(), spec };
    let models = [named("nano", base), named("middle", middle), named("large", large)];
    let spec = PoolSpec {
        edition: [7; 16],
        task: "bench".try_into().unwrap(),
        input_len: 48,
        input_bits: 8,
        input_frac: 4,
        word_bits: 0,
        classes: 5,
        output: secure_router_core::spec::Output::Logits,
        routing: Routing::Open,
        models: models.into_iter().collect(),
        router: Some(RouterSpec { trunk, answers: 0 }),
    };
    spec.validate().unwrap();
    spec
}

/// The same with inputs of words, of which the largest model's vectors fill several frames.
pub fn word_pool() -> PoolSpec {
    let mut spec = pool();
    (spec.input_len, spec.input_bits, spec.input_frac, spec.word_bits) = (16, 5, 0, 4);
    spec.models[2].spec.features = 40;
    spec.validate().unwrap();
    spec
}

/// The same with labels, and a router that is the cheapest model as well.
pub fn answering_pool() -> PoolSpec {
    let mut spec = pool();
    let trunk = spec.models[0].spec;
    spec.output = secure_router_core::spec::Output::Label;
    spec.router = Some(RouterSpec { trunk, answers: spec.classes });
    spec.validate().unwrap();
    spec
}

/// Everything that does not change from one session to the next.
pub struct Fixture {
    pub pool: PoolSpec,
    pub fingerprint: [u8; 32],
    pub device: StaticSecret,
    pub server: StaticSecret,
    pub seeds: DeviceSeeds,
    pub programs: Vec<(Slot, Secret)>,
}

impl Fixture {
    pub fn new(pool: PoolSpec) -> &'static Self {
        Box::leak(Box::new(Self::build(pool)))
    }

    pub fn build(pool: PoolSpec) -> Self {
        let seeds = Seeds::fixed(3);
        let programs = pool
            .slots()
            .map(|slot| {
                let program = Program::of(&pool, slot).unwrap();
                let mut secret = random_secret(program, 11 + u64::from(slot.code()), 2);
                if slot == Slot::Router && pool.router_answers(Slot::Model(0)) {
                    // Differences are cut to twelve bits to be compared: large weights, or all are ties.
                    let linear =
                        |gate: Gate| if let Operand::Linear(linear) = gate.operand { Some(linear) } else { None };
                    let last = program.gates().filter_map(|gate| linear(gate.unwrap())).last().unwrap();
                    let weights = &mut secret.weights[last.weights_at as usize..];
                    weights.iter_mut().for_each(|weight| *weight *= 400);
                    // A model is as useful as its column of the input is large.
                    for model in 0..pool.models.len() {
                        let row = &mut weights[model * usize::from(last.terms[0].columns())..];
                        row[..usize::from(last.terms[0].columns())].fill(0);
                        row[model] = 1500;
                    }
                }
                (slot, secret)
            })
            .collect();
        Self {
            fingerprint: pool.fingerprint().unwrap(),
            pool,
            device: StaticSecret::generate(&mut Chance(1)).unwrap(),
            server: StaticSecret::generate(&mut Chance(2)).unwrap(),
            seeds: DeviceSeeds { dealer: seeds.device_dealer, server: seeds.device_server },
            programs,
        }
    }

    pub fn shared() -> &'static Self {
        thread_local!(static FIXTURE: &'static Fixture = Fixture::new(pool()));
        FIXTURE.with(|fixture| *fixture)
    }

    pub fn answering() -> &'static Self {
        thread_local!(static FIXTURE: &'static Fixture = Fixture::new(answering_pool()));
        FIXTURE.with(|fixture| *fixture)
    }

    pub fn seeds(&self, slot: Slot) -> Seeds {
        Seeds { pool: self.fingerprint, slot, ..Seeds::fixed(3) }
    }

    pub fn secret(&self, slot: Slot) -> &Secret {
        &self.programs.iter().find(|(have, _)| *have == slot).unwrap().1
    }

    pub fn identity(&self) -> DeviceIdentity<'_> {
        let server = self.server.public_key();
        DeviceIdentity { secret: &self.device, server, seeds: &self.seeds, routing: Routing::Open }
    }

    pub fn input(&self, seed: i16) -> Vec<i16> {
        let limit = self.pool.words().map_or(128, |words| 1 << words.bits);
        (0..i32::from(self.pool.input_len)).map(|i| ((i * 37 + i32::from(seed) * 11) % limit) as i16).collect()
    }
}

/// What a counter store was asked, and when it fails.
#[derive(Debug, Default)]
pub struct Book {
    pub next: BTreeMap<u8, u64>,
    pub burned: Vec<(Slot, u64)>,
    pub fail_next: bool,
    pub fail_burn: bool,
}

/// A counter store that outlives sessions.
#[derive(Clone, Debug, Default)]
pub struct Store(pub Rc<RefCell<Book>>);

impl Counters for Store {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        let book = self.0.borrow();
        if book.fail_next { Err(CounterError) } else { Ok(book.next.get(&slot.code()).copied().unwrap_or(0)) }
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let mut book = self.0.borrow_mut();
        if book.fail_burn {
            return Err(CounterError);
        }
        let next = book.next.entry(slot.code()).or_default();
        *next = (*next).max(counter + 1);
        book.burned.push((slot, counter));
        Ok(())
    }
}

/// Memory that a test lends and looks at afterwards.
pub struct Memory {
    pub rx: Vec<u8>,
    pub tx: Vec<u8>,
    pub work: Vec<u32>,
    pub input: Vec<i16>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            rx: vec![0; DeviceMemory::FRAME_BYTES],
            tx: vec![0; DeviceMemory::FRAME_BYTES],
            work: vec![0; 4096],
            input: vec![0; 48],
        }
    }
}

impl Memory {
    pub fn lend(&mut self) -> DeviceMemory<'_> {
        DeviceMemory { rx: &mut self.rx, tx: &mut self.tx, work: &mut self.work, input: &mut self.input }
    }

    pub fn is_wiped(&self) -> bool {
        self.rx.iter().chain(&self.tx).all(|byte| *byte == 0)
            && self.work.iter().all(|word| *word == 0)
            && self.input.iter().all(|value| *value == 0)
    }
}

pub type Session<'b> = DeviceSession<'b, Store>;

pub fn connect<'b>(fixture: &Fixture, memory: &'b mut Memory, store: &Store, tile: u16) -> Session<'b> {
    DeviceSession::connect(fixture.identity(), memory.lend(), tile, store.clone(), &mut Chance(77)).unwrap()
}

pub fn request(slot: Slot) -> Request {
    Request { slot, lambda: 20, link: LinkProfile::BLE }
}

/// A frame before it is sealed.
pub type Frame = (u8, Vec<u8>);
/// Replaces the frame of this number, counted from 0, by any frames.
pub type Tamper = Box<dyn FnMut(usize, Frame) -> Vec<Frame>>;

/// Changes a report of stock.
pub type Offer = Box<dyn FnMut(&mut SlotStock)>;

enum Work {
    Nothing,
    Collect { slot: Slot, counter: u64, got: Vec<u8> },
    Run { server: Box<Server<'static>>, got: Vec<u8> },
}

/// The online run of one program, as the server saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub slot: Slot,
    pub counter: u64,
    pub up: Vec<u8>,
    pub down: Vec<u8>,
}

/// The server's end.
pub struct Peer {
    fixture: &'static Fixture,
    channel: Channel<'static>,
    work: Work,
    outbox: VecDeque<Frame>,
    sealed: usize,
    /// Corrections by slot and counter; survives [`Peer::again`].
    pub corrections: BTreeMap<(u8, u64), Vec<u8>>,
    /// What a hostile server makes up, to run a counter that is not in stock.
    pub forged: BTreeMap<(u8, u64), Vec<u8>>,
    /// The first counter that was never prepared.
    pub fresh: BTreeMap<u8, u64>,
    pub runs: Vec<Run>,
    pub tamper: Option<Tamper>,
    /// Changes the server's stock answers.
    pub offer: Option<Offer>,
    pub refuse: Option<Refusal>,
    pub welcome: Option<Welcome>,
    pub infers: Vec<Infer>,
    /// Directions of whole messages since the last look: `true` is up.
    pub directions: Vec<bool>,
    /// Kinds and lengths of all frames from the device.
    pub frames_up: Vec<(u8, usize)>,
    pub frames_down: Vec<(u8, usize)>,
}

impl Peer {
    pub fn new(fixture: &'static Fixture) -> Self {
        let buffer = || Box::leak(vec![0; DeviceMemory::FRAME_BYTES].into_boxed_slice());
        let link = Link::DeviceServer;
        Self {
            fixture,
            channel: Channel::responder(link, &fixture.server, &mut Chance(78), buffer(), buffer()).unwrap(),
            work: Work::Nothing,
            outbox: VecDeque::new(),
            sealed: 0,
            corrections: BTreeMap::new(),
            forged: BTreeMap::new(),
            fresh: BTreeMap::new(),
            runs: Vec::new(),
            tamper: None,
            offer: None,
            refuse: None,
            welcome: None,
            infers: Vec::new(),
            directions: Vec::new(),
            frames_up: Vec::new(),
            frames_down: Vec::new(),
        }
    }

    /// The same server, for the next connection.
    pub fn again(self) -> Self {
        let fixture = self.fixture;
        Self { corrections: self.corrections, fresh: self.fresh, runs: self.runs, ..Self::new(fixture) }
    }

    pub fn say(&mut self, message: &ToDevice) {
        let mut bytes = vec![0; FRAME_PAYLOAD];
        let len = message.to_bytes(&mut bytes).unwrap();
        bytes.truncate(len);
        self.directions.push(false);
        self.queue((FRAME_CONTROL, bytes));
    }

    fn queue(&mut self, frame: Frame) {
        let number = self.sealed;
        self.sealed += 1;
        match &mut self.tamper {
            Some(tamper) => self.outbox.extend(tamper(number, frame)),
            None => self.outbox.push_back(frame),
        }
    }

    /// Bytes that wait for the device.
    pub fn pending(&mut self) -> &[u8] {
        if self.channel.can_send()
            && let Some((kind, payload)) = self.outbox.pop_front()
        {
            self.frames_down.push((kind, payload.len()));
            self.channel.send(kind, &payload).unwrap();
        }
        self.channel.pending()
    }

    pub fn sent(&mut self, count: usize) {
        self.channel.sent(count).unwrap();
    }

    /// Takes bytes of the device.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (taken, event) = self.channel.feed(bytes).unwrap();
            bytes = &bytes[taken..];
            match event {
                Arrived::NeedMore | Arrived::Established => {}
                Arrived::Identity(key) => {
                    assert_eq!(key, self.fixture.device.public_key());
                    self.channel.accept().unwrap();
                }
                Arrived::Frame { kind, len } => {
                    let payload = self.channel.payload().to_vec();
                    self.frames_up.push((kind, len));
                    self.frame(kind, &payload);
                }
            }
        }
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) {
        if kind == FRAME_CONTROL {
            self.directions.push(true);
            match ToServer::from_bytes(payload).unwrap() {
                ToServer::Hello(hello) => self.greet(&hello),
                ToServer::Prepare(Prepare { slot, counter }) => {
                    self.work = Work::Collect { slot, counter, got: Vec::new() };
                    self.collect(&[]);
                }
                ToServer::Infer(infer) => {
                    self.infers.push(infer);
                    self.infer(infer, infer.slot, infer.counter);
                }
            }
            return;
        }
        assert_eq!(kind, FRAME_DATA);
        match &self.work {
            Work::Collect { .. } => self.collect(payload),
            Work::Run { .. } => self.run(payload),
            Work::Nothing => panic!("data out of turn"),
        }
    }

    fn stock(&self, slot: Slot) -> SlotStock {
        let fresh = self.fresh.get(&slot.code()).copied().unwrap_or(0);
        let held: Vec<u64> =
            self.corrections.range((slot.code(), 0)..=(slot.code(), u64::MAX)).map(|(key, _)| key.1).collect();
        SlotStock { slot, first: held.first().copied().unwrap_or(fresh), fresh, ready: held.len() as u32 }
    }

    fn offered(&mut self, slot: Slot) -> SlotStock {
        let mut stock = self.stock(slot);
        if let Some(offer) = &mut self.offer {
            offer(&mut stock);
        }
        stock
    }

    fn greet(&mut self, hello: &Hello) {
        for slot in self.fixture.pool.slots() {
            let lowest = hello.counters[usize::from(slot.code())];
            self.corrections.retain(|(code, counter), _| *code != slot.code() || *counter >= lowest);
            let fresh = self.fresh.entry(slot.code()).or_default();
            *fresh = (*fresh).max(lowest);
        }
        let welcome = self.welcome.clone().unwrap_or_else(|| {
            let mut bytes = [0; 512];
            Welcome {
                pool: self.fixture.pool.to_bytes(&mut bytes).unwrap().iter().copied().collect(),
                stock: self.fixture.pool.slots().map(|slot| self.offered(slot)).collect(),
            }
        });
        self.say(&ToDevice::Welcome(welcome));
    }

    fn collect(&mut self, payload: &[u8]) {
        let Work::Collect { slot, counter, got } = &mut self.work else { panic!("out of turn") };
        let (slot, counter) = (*slot, *counter);
        let expected = self.fixture.secret(slot).program.layout().unwrap().correction_bytes() as usize;
        if !payload.is_empty() {
            assert_eq!(payload.len(), (expected - got.len()).min(FRAME_PAYLOAD), "a frame of another length");
        }
        got.extend_from_slice(payload);
        if got.len() < expected {
            return;
        }
        let got = std::mem::take(got);
        self.work = Work::Nothing;
        self.corrections.insert((slot.code(), counter), got);
        let fresh = self.fresh.entry(slot.code()).or_default();
        *fresh = (*fresh).max(counter + 1);
        let stock = self.offered(slot);
        match self.refuse.take() {
            Some(refusal) => self.say(&ToDevice::Refused(refusal)),
            None => self.say(&ToDevice::Prepared(PreparedStock { stock })),
        }
    }

    fn infer(&mut self, infer: Infer, slot: Slot, counter: u64) {
        let key = (slot.code(), counter);
        let Some(corrections) = self.corrections.remove(&key).or_else(|| self.forged.remove(&key)) else {
            self.work = Work::Nothing;
            return self.say(&ToDevice::Refused(Refusal::StockEmpty(slot)));
        };
        let fixture = self.fixture;
        let secret = fixture.secret(slot);
        let seeds = fixture.seeds(slot);
        let scores = router_scores(&fixture.pool, infer.lambda, infer.allowed, &infer.link).unwrap();
        let server = Server::new(
            secret.program,
            secret.parameters(),
            server_key(&seeds.server_dealer, &seeds.pool, slot, counter),
            Stock { correlations: deal(secret, &seeds, counter).leak(), corrections: corrections.leak() },
            Bias { scores: scores.to_vec().leak(), margin: margin(infer.lambda) },
            vec![0; work_words(&secret.program).unwrap()].leak(),
        );
        self.runs.push(Run { slot, counter, up: Vec::new(), down: Vec::new() });
        self.work = Work::Run { server: Box::new(server.unwrap()), got: Vec::new() };
    }

    fn run(&mut self, payload: &[u8]) {
        let Work::Run { server, got, .. } = &mut self.work else { panic!("out of turn") };
        let Turn::Receive(message) = server.turn() else { panic!("out of turn") };
        assert_eq!(payload.len(), (message.bytes() - got.len()).min(FRAME_PAYLOAD), "a frame of another length");
        got.extend_from_slice(payload);
        let run = self.runs.last_mut().unwrap();
        run.up.extend_from_slice(payload);
        if got.len() < message.bytes() {
            return;
        }
        server.receive(&std::mem::take(got)).unwrap();
        self.directions.push(true);
        self.answer();
    }

    fn answer(&mut self) {
        if let Some(refusal) = self.refuse.take() {
            self.work = Work::Nothing;
            return self.say(&ToDevice::Refused(refusal));
        }
        let Work::Run { server, .. } = &mut self.work else { panic!("out of turn") };
        let mut messages = Vec::new();
        while let Turn::Send(message) = server.turn() {
            let mut bytes = vec![0; message.bytes()];
            server.send(&mut bytes).unwrap();
            messages.push(bytes);
        }
        if server.turn() == Turn::Done {
            self.work = Work::Nothing;
        }
        for bytes in messages {
            self.directions.push(false);
            self.runs.last_mut().unwrap().down.extend_from_slice(&bytes);
            bytes.chunks(FRAME_PAYLOAD).for_each(|piece| self.queue((FRAME_DATA, piece.to_vec())));
        }
    }
}

/// Bytes that crossed the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossed {
    pub up: u64,
    pub down: u64,
}

/// What a conversation came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Event(Event),
    Failed(SessionError),
    /// Neither end has anything to say.
    Stalled,
    /// The link was cut by the test.
    Cut(SessionError),
}

/// Carries at most `chunk` bytes at a time until the session's next event, and cuts the link when
/// `limit` bytes have crossed it.
pub fn carry(session: &mut Session<'_>, peer: &mut Peer, chunk: usize, limit: u64, crossed: &mut Crossed) -> Outcome {
    loop {
        let room = usize::try_from(limit - crossed.up - crossed.down).unwrap_or(usize::MAX);
        if room == 0 {
            return match session.link_ended() {
                Err(error) => Outcome::Cut(error),
                Ok(_) => Outcome::Stalled,
            };
        }
        let chunk = chunk.min(room);
        let (_, pending) = session.io();
        let step = if !pending.is_empty() {
            let count = pending.len().min(chunk);
            peer.feed(&pending[..count]);
            crossed.up += count as u64;
            session.sent(count)
        } else {
            let (wanted, _) = session.io();
            let pending = peer.pending();
            let count = wanted.len().min(pending.len()).min(chunk);
            if count == 0 {
                return Outcome::Stalled;
            }
            wanted[..count].copy_from_slice(&pending[..count]);
            peer.sent(count);
            crossed.down += count as u64;
            session.received(count)
        };
        match step {
            Ok(None) => {}
            Ok(Some(event)) => return Outcome::Event(event),
            Err(error) => return Outcome::Failed(error),
        }
    }
}

/// As [`carry`], where nothing goes wrong.
pub fn event(session: &mut Session<'_>, peer: &mut Peer) -> Event {
    match carry(session, peer, usize::MAX, u64::MAX, &mut Crossed::default()) {
        Outcome::Event(event) => event,
        other => panic!("{other:?}"),
    }
}
