//! Device, server and dealer of a `World`: the kernel's session, server, channel and dealer, between its links and
//! stores. Server and dealer are a model of `harness/src/{server,dealer,link}.rs` without tokio, and must follow them: as
//! there, an item is spent before the masked input is taken in.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use secure_router_core::channel::{
    Channel, ChannelError, Event as Arrived, Link as Kind, PublicKey, StaticSecret, buffer_bytes,
};
use secure_router_core::circuit::{Program, SLOTS, Slot};
use secure_router_core::cost::router_scores;
use secure_router_core::dealer::{self, MaskedParameters};
use secure_router_core::keys::server_key;
use secure_router_core::server::{self, Server, Stock, Turn};
use secure_router_core::session::{
    Control, DeviceMemory, DeviceSession, Event, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, Infer, LinkProfile, Prepare,
    PreparedStock, Refusal, Request, Route, SessionError, SlotStock, ToDevice, ToServer, Welcome,
};
use secure_router_core::spec::PoolSpec;
use serde::{Deserialize, Serialize};

use crate::lab::peer::{Fixture, Seeded};
use crate::lab::{Dither, masked_weights, reference};
use crate::world::{End, Item, Nvm, Owner, StockError, World};

/// Payload of a full frame between server and dealer.
const DEALER_FRAME: usize = 2048;

// ---- links

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkError {
    Channel(ChannelError),
    Ended,
    UnknownPeer,
    Frame,
}

impl From<ChannelError> for LinkError {
    fn from(error: ChannelError) -> Self {
        Self::Channel(error)
    }
}

struct Link<'b> {
    end: End,
    channel: Channel<'b>,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    taken: usize,
    patience: Option<u64>,
    world: Rc<World>,
}

impl<'b> Link<'b> {
    fn over(world: &Rc<World>, end: End, channel: Channel<'b>, patience: Option<u64>) -> Self {
        let mut link =
            Self { end, channel, outgoing: Vec::new(), incoming: Vec::new(), taken: 0, patience, world: world.clone() };
        link.gather().unwrap();
        link
    }

    fn gather(&mut self) -> Result<(), LinkError> {
        self.outgoing.extend_from_slice(self.channel.pending());
        let pending = self.channel.pending().len();
        Ok(self.channel.sent(pending)?)
    }

    fn queue(&mut self, kind: u8, payload: &[u8]) -> Result<(), LinkError> {
        self.channel.send(kind, payload)?;
        self.gather()
    }

    fn queue_message(&mut self, kind: u8, message: &[u8], size: usize) -> Result<(), LinkError> {
        message.chunks(size).try_for_each(|piece| self.queue(kind, piece))
    }

    fn flush(&mut self) {
        self.end.write(&self.outgoing);
        self.outgoing.clear();
    }

    async fn event(&mut self) -> Result<Arrived, LinkError> {
        loop {
            if let Some(rest @ [_, ..]) = self.incoming.get(self.taken..) {
                let (taken, event) = self.channel.feed(rest)?;
                self.taken += taken;
                if event != Arrived::NeedMore {
                    return Ok(event);
                }
                continue;
            }
            self.incoming.clear();
            self.taken = 0;
            let mut bytes = [0; 4096];
            let deadline = self.patience.map(|patience| self.world.now() + patience);
            match self.end.read(&mut bytes, deadline).await {
                Ok(0) => {
                    self.channel.end_of_input()?;
                    return Err(LinkError::Ended);
                }
                Ok(count) => self.incoming.extend_from_slice(&bytes[..count]),
                Err(_) => return Err(LinkError::Ended),
            }
        }
    }

    async fn frame(&mut self) -> Result<(u8, &[u8]), LinkError> {
        match self.event().await? {
            Arrived::Frame { kind, .. } => Ok((kind, self.channel.payload())),
            _ => Err(LinkError::Frame),
        }
    }

    /// A message of `len` bytes; `seen` is told of each piece and of its place.
    async fn message(
        &mut self,
        len: usize,
        size: usize,
        mut seen: impl FnMut(usize, &[u8]),
    ) -> Result<Vec<u8>, LinkError> {
        let mut message = Vec::with_capacity(len);
        while message.len() < len {
            let expected = (len - message.len()).min(size);
            match self.frame().await? {
                (FRAME_DATA, piece) if piece.len() == expected => {
                    seen(message.len(), piece);
                    message.extend_from_slice(piece);
                }
                _ => return Err(LinkError::Frame),
            }
        }
        Ok(message)
    }
}

async fn dial<'b>(
    world: &Rc<World>,
    kind: Kind,
    own: &StaticSecret,
    peer: PublicKey,
    end: End,
    (rx, tx): (&'b mut [u8], &'b mut [u8]),
    patience: Option<u64>,
) -> Result<Link<'b>, LinkError> {
    let channel = Channel::initiator(kind, own, peer, &mut random(world), rx, tx)?;
    let mut link = Link::over(world, end, channel, patience);
    link.flush();
    match link.event().await? {
        Arrived::Established => Ok(link),
        _ => Err(LinkError::Frame),
    }
}

async fn answer<'b>(
    world: &Rc<World>,
    kind: Kind,
    own: &StaticSecret,
    known: PublicKey,
    end: End,
    (rx, tx): (&'b mut [u8], &'b mut [u8]),
    patience: Option<u64>,
) -> Result<Link<'b>, LinkError> {
    let channel = Channel::responder(kind, own, &mut random(world), rx, tx)?;
    let mut link = Link::over(world, end, channel, patience);
    match link.event().await? {
        Arrived::Identity(peer) if peer == known => link.channel.accept()?,
        _ => {
            link.channel.refuse();
            return Err(LinkError::UnknownPeer);
        }
    }
    link.gather()?;
    link.flush();
    Ok(link)
}

fn random(world: &World) -> Seeded {
    Seeded(world.chance.borrow_mut().word())
}

async fn sleep(world: &World, ticks: u64) {
    let until = world.now() + ticks;
    poll_fn(|_| {
        if world.now() >= until {
            return Poll::Ready(());
        }
        world.alarm(until);
        Poll::Pending
    })
    .await;
}

// ---- the dealer

#[derive(Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "a test")]
enum Ask {
    Register { pool: heapless::Vec<u8, 512>, slot: Slot },
    Deal { fingerprint: [u8; 32], slot: Slot, counter: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum DealRefusal {
    NotRegistered,
    Counter,
    Store,
}

#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Registered,
    Dealt { bytes: u64 },
    Refused(DealRefusal),
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut buffer = [0; 1024];
    postcard::to_slice(value, &mut buffer).unwrap().to_vec()
}

struct Registered {
    program: Program,
    weights: Vec<u32>,
    tables: Vec<i16>,
}

type Registry = Rc<RefCell<BTreeMap<([u8; 32], u8), Rc<Registered>>>>;

/// The dealer's process: what it does not store is lost with it.
pub async fn dealer(world: Rc<World>, fixture: &'static Fixture, rest: u64) {
    sleep(&world, rest).await;
    world.up.borrow_mut().insert(Owner::Dealer);
    let registry = Registry::default();
    loop {
        let end = poll_fn(|_| world.to_dealer.borrow_mut().pop_front().map_or(Poll::Pending, Poll::Ready)).await;
        let (w, registry) = (world.clone(), registry.clone());
        world.spawn(Owner::Dealer, async move {
            let _ = deal_for(w, fixture, registry, end).await;
        });
    }
}

/// The dealer's key.
fn dealer_secret() -> StaticSecret {
    StaticSecret::generate(&mut Seeded(3)).unwrap()
}

async fn deal_for(world: Rc<World>, fixture: &'static Fixture, registry: Registry, end: End) -> Result<(), LinkError> {
    let (mut rx, mut tx) = (vec![0; buffer_bytes(DEALER_FRAME)], vec![0; buffer_bytes(DEALER_FRAME)]);
    let known = fixture.server.public_key();
    let mut link = answer(&world, Kind::ServerDealer, &dealer_secret(), known, end, (&mut rx, &mut tx), None).await?;
    loop {
        let (FRAME_CONTROL, payload) = link.frame().await? else { return Err(LinkError::Frame) };
        match postcard::from_bytes(payload).map_err(|_| LinkError::Frame)? {
            Ask::Register { pool, slot } => {
                let spec = PoolSpec::from_bytes(&pool).map_err(|_| LinkError::Frame)?;
                let program = Program::of(&spec, slot).map_err(|_| LinkError::Frame)?;
                let layout = program.layout().map_err(|_| LinkError::Frame)?;
                let (weights, tables) = (layout.weights as usize, layout.tables as usize);
                let bytes = link.message(4 * weights + 2 * tables, DEALER_FRAME, |_, _| {}).await?;
                let (weights, tables) = bytes.split_at(4 * weights);
                let registered = Registered {
                    program,
                    weights: weights.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
                    tables: tables.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect(),
                };
                let key = (spec.fingerprint().map_err(|_| LinkError::Frame)?, slot.code());
                registry.borrow_mut().insert(key, Rc::new(registered));
                link.queue(FRAME_CONTROL, &encode(&Tell::Registered))?;
            }
            Ask::Deal { fingerprint, slot, counter } => {
                let registered = registry.borrow().get(&(fingerprint, slot.code())).cloned();
                let refusal = match registered {
                    None => Some(DealRefusal::NotRegistered),
                    Some(_) => match world.record_deal(slot, counter) {
                        Ok(true) => None,
                        Ok(false) => Some(DealRefusal::Counter),
                        Err(StockError::Crashed) => world.halt(Owner::Dealer).await,
                        Err(_) => Some(DealRefusal::Store),
                    },
                };
                match (refusal, registered_again(&registry, &fingerprint, slot)) {
                    (None, Some(registered)) => {
                        world.watch.borrow_mut().dealt(slot, counter);
                        let parameters = MaskedParameters { weights: &registered.weights, tables: &registered.tables };
                        let program = &registered.program;
                        let mut work = vec![0; dealer::work_words(program).unwrap()];
                        let mut stock = vec![0; program.layout().unwrap().stock as usize];
                        let keys = fixture.seeds(slot).dealer_keys(counter);
                        dealer::deal(program, &keys, &parameters, &mut random(&world), &mut work, &mut stock).unwrap();
                        link.queue(FRAME_CONTROL, &encode(&Tell::Dealt { bytes: stock.len() as u64 }))?;
                        link.queue_message(FRAME_DATA, &stock, DEALER_FRAME)?;
                    }
                    (refusal, _) => {
                        let refusal = refusal.unwrap_or(DealRefusal::NotRegistered);
                        link.queue(FRAME_CONTROL, &encode(&Tell::Refused(refusal)))?;
                    }
                }
            }
        }
        link.flush();
    }
}

fn registered_again(registry: &Registry, fingerprint: &[u8; 32], slot: Slot) -> Option<Rc<Registered>> {
    registry.borrow().get(&(*fingerprint, slot.code())).cloned()
}

// ---- the server's link to the dealer

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DealError {
    Link,
    Refused(DealRefusal),
}

impl From<LinkError> for DealError {
    fn from(_: LinkError) -> Self {
        Self::Link
    }
}

type Reply = Rc<RefCell<Option<Result<Vec<u8>, DealError>>>>;
type Requests = Rc<RefCell<VecDeque<(Slot, u64, Reply)>>>;

async fn dealer_handle(world: Rc<World>, fixture: &'static Fixture, requests: Requests) {
    let next = || poll_fn(|_| requests.borrow_mut().pop_front().map_or(Poll::Pending, Poll::Ready));
    let tell = |reply: &Reply, outcome| {
        *reply.borrow_mut() = Some(outcome);
        world.stir();
    };
    let mut waiting = next().await;
    loop {
        let (mut rx, mut tx) = (vec![0; buffer_bytes(DEALER_FRAME)], vec![0; buffer_bytes(DEALER_FRAME)]);
        let link = match world.dial(Owner::Dealer) {
            Some(end) => {
                let peer = dealer_secret().public_key();
                let patience = Some(4000);
                dial(&world, Kind::ServerDealer, &fixture.server, peer, end, (&mut rx, &mut tx), patience).await
            }
            None => Err(LinkError::Ended),
        };
        let mut link = match link {
            Ok(link) => link,
            Err(error) => {
                tell(&waiting.2, Err(error.into()));
                waiting = next().await;
                continue;
            }
        };
        loop {
            let (slot, counter, reply) = waiting;
            let dealt = item(&mut link, fixture, slot, counter).await;
            let lost = dealt == Err(DealError::Link);
            tell(&reply, dealt);
            waiting = next().await;
            if lost {
                break;
            }
        }
    }
}

async fn item(link: &mut Link<'_>, fixture: &Fixture, slot: Slot, counter: u64) -> Result<Vec<u8>, DealError> {
    match deal(link, fixture, slot, counter).await {
        Err(DealError::Refused(DealRefusal::NotRegistered)) => {
            let secret = fixture.secret(slot);
            let mut bytes: Vec<u8> =
                masked_weights(secret, &fixture.seeds(slot)).iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(secret.tables.iter().flat_map(|entry| entry.to_le_bytes()));
            let mut buffer = [0; 512];
            let pool = heapless::Vec::from_slice(fixture.pool.to_bytes(&mut buffer).unwrap()).unwrap();
            link.queue(FRAME_CONTROL, &encode(&Ask::Register { pool, slot }))?;
            link.queue_message(FRAME_DATA, &bytes, DEALER_FRAME)?;
            match told(link).await? {
                Tell::Registered => {}
                Tell::Refused(refusal) => return Err(DealError::Refused(refusal)),
                Tell::Dealt { .. } => return Err(DealError::Link),
            }
            deal(link, fixture, slot, counter).await
        }
        other => other,
    }
}

async fn deal(link: &mut Link<'_>, fixture: &Fixture, slot: Slot, counter: u64) -> Result<Vec<u8>, DealError> {
    let expected = fixture.secret(slot).program.layout().unwrap().stock;
    link.queue(FRAME_CONTROL, &encode(&Ask::Deal { fingerprint: fixture.fingerprint, slot, counter }))?;
    match told(link).await? {
        Tell::Dealt { bytes } if bytes == expected => Ok(link.message(bytes as usize, DEALER_FRAME, |_, _| {}).await?),
        Tell::Refused(refusal) => Err(DealError::Refused(refusal)),
        _ => Err(DealError::Link),
    }
}

async fn told(link: &mut Link<'_>) -> Result<Tell, LinkError> {
    link.flush();
    let (FRAME_CONTROL, payload) = link.frame().await? else { return Err(LinkError::Frame) };
    postcard::from_bytes(payload).map_err(|_| LinkError::Frame)
}

// ---- the server

#[derive(Debug)]
enum Ended {
    Link(LinkError),
    Server(server::ServerError),
    Control,
    Refused(Refusal),
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<server::ServerError> for Ended {
    fn from(error: server::ServerError) -> Self {
        Self::Server(error)
    }
}

/// The server's process.
pub async fn server(world: Rc<World>, fixture: &'static Fixture, rest: u64) {
    sleep(&world, rest).await;
    world.up.borrow_mut().insert(Owner::Server);
    let requests = Requests::default();
    world.spawn(Owner::Server, dealer_handle(world.clone(), fixture, requests.clone()));
    loop {
        let end = poll_fn(|_| world.to_server.borrow_mut().pop_front().map_or(Poll::Pending, Poll::Ready)).await;
        let service = Service { world: world.clone(), fixture, requests: requests.clone() };
        world.spawn(Owner::Server, async move {
            if let Err(error) = service.answer(end).await {
                let why = match error {
                    Ended::Link(error) => format!("server: {error:?}"),
                    other => format!("server: {other:?}"),
                };
                service.world.count(why.split(['(', '{']).take(2).collect::<Vec<_>>().join(" "));
            }
        });
    }
}

struct Service {
    world: Rc<World>,
    fixture: &'static Fixture,
    requests: Requests,
}

impl Service {
    async fn answer(&self, end: End) -> Result<(), Ended> {
        let (mut rx, mut tx) = (vec![0; DeviceMemory::FRAME_BYTES], vec![0; DeviceMemory::FRAME_BYTES]);
        let known = self.fixture.device.public_key();
        let buffers = (rx.as_mut_slice(), tx.as_mut_slice());
        let mut link = answer(&self.world, Kind::DeviceServer, &self.fixture.server, known, end, buffers, None).await?;

        let ToServer::Hello(hello) = hear(&mut link).await? else { return Err(Ended::Control) };
        let mut stock = heapless::Vec::<SlotStock, SLOTS>::new();
        for slot in self.fixture.pool.slots() {
            let next = hello.counters[usize::from(slot.code())];
            let met = self.stored(slot, self.world.meet(slot, &self.fixture.fingerprint, next)).await;
            stock.push(met.map_err(|_| Ended::Refused(Refusal::Store))?).unwrap();
        }
        let mut buffer = [0; 512];
        let pool = heapless::Vec::from_slice(self.fixture.pool.to_bytes(&mut buffer).unwrap()).unwrap();
        say(&mut link, &ToDevice::Welcome(Welcome { pool, stock }))?;
        link.flush();
        loop {
            let outcome = match hear(&mut link).await? {
                ToServer::Prepare(prepare) => self.prepare(&mut link, prepare).await,
                ToServer::Infer(infer) => self.infer(&mut link, infer).await,
                ToServer::Hello(_) => Err(Ended::Control),
            };
            match outcome {
                Ok(()) => {}
                Err(Ended::Refused(refusal)) => {
                    say(&mut link, &ToDevice::Refused(refusal))?;
                    link.flush();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A store's outcome: a crash in it ends the process.
    async fn stored<T>(&self, slot: Slot, outcome: Result<T, StockError>) -> Result<T, Ended> {
        Err(Ended::Refused(match outcome {
            Ok(value) => return Ok(value),
            Err(StockError::Crashed) => self.world.halt(Owner::Server).await,
            Err(StockError::Counter) => Refusal::Counter(slot),
            Err(StockError::Empty) => Refusal::StockEmpty(slot),
            Err(StockError::Store) => Refusal::Store,
        }))
    }

    async fn prepare(&self, link: &mut Link<'_>, Prepare { slot, counter }: Prepare) -> Result<(), Ended> {
        let world = &self.world;
        let program = Program::of(&self.fixture.pool, slot).map_err(|_| Ended::Control)?;
        let layout = program.layout().map_err(|_| Ended::Control)?;
        let corrections = link.message(layout.correction_bytes() as usize, FRAME_PAYLOAD, |_, _| {}).await?;
        world.watch.borrow_mut().corrections(slot, counter, &corrections);
        if world.stock(slot).fresh != counter {
            return Err(Ended::Refused(Refusal::Counter(slot)));
        }
        let reply = Reply::default();
        self.requests.borrow_mut().push_back((slot, counter, reply.clone()));
        world.stir();
        let dealt = poll_fn(|_| reply.borrow_mut().take().map_or(Poll::Pending, Poll::Ready)).await;
        let correlations = match dealt {
            Ok(correlations) => correlations,
            Err(DealError::Refused(DealRefusal::Counter)) => {
                self.stored(slot, world.skip(slot, counter)).await?;
                return Err(Ended::Refused(Refusal::Counter(slot)));
            }
            Err(_) => return Err(Ended::Refused(Refusal::Dealer)),
        };
        let item = Item { correlations, corrections };
        self.stored(slot, world.put(slot, counter, &self.fixture.fingerprint, item)).await?;
        say(link, &ToDevice::Prepared(PreparedStock { stock: world.stock(slot) }))?;
        link.flush();
        Ok(())
    }

    async fn infer(&self, link: &mut Link<'_>, infer: Infer) -> Result<(), Ended> {
        let scores =
            router_scores(&self.fixture.pool, infer.lambda, infer.allowed, &infer.link).map_err(|_| Ended::Control)?;
        let Some(slot) = self.program(link, infer.slot, infer.counter, &scores).await? else { return Ok(()) };
        let stock = self.world.stock(slot);
        if stock.ready == 0 {
            return Err(Ended::Refused(Refusal::StockEmpty(slot)));
        }
        say(link, &ToDevice::Route(Route { slot, counter: stock.first }))?;
        link.flush();
        self.program(link, slot, stock.first, &scores).await?;
        Ok(())
    }

    async fn program(
        &self,
        link: &mut Link<'_>,
        slot: Slot,
        counter: u64,
        scores: &[i32],
    ) -> Result<Option<Slot>, Ended> {
        let world = &self.world;
        let program = Program::of(&self.fixture.pool, slot).map_err(|_| Ended::Control)?;
        let secret = self.fixture.secret(slot);
        let first = program.gate(0).ok().flatten().and_then(|gate| gate.messages().first().copied());
        let bytes = first.ok_or(Ended::Control)?.bytes();
        // Spent before the first masked byte is taken in; and that is taken in whatever became of it, so that a
        // refusal finds both ends between two requests.
        let item = self.stored(slot, world.spend(slot, counter, &self.fixture.fingerprint)).await;
        let spent = item.is_ok();
        let seen = |at: usize, piece: &[u8]| world.watch.borrow_mut().input(slot, counter, at, piece, spent);
        let input = link.message(bytes, FRAME_PAYLOAD, seen).await?;
        let item = item?;
        let mut work = vec![0; server::work_words(&program).unwrap()];
        let stock = Stock { correlations: &item.correlations, corrections: &item.corrections };
        let key = server_key(&self.fixture.seeds(slot).server_dealer, &self.fixture.fingerprint, slot, counter);
        let mut run = Server::new(program, secret.parameters(), key, stock, scores, &mut work)?;
        run.receive(&input)?;
        let mut message = Vec::new();
        loop {
            match run.turn() {
                Turn::Done => break,
                Turn::Send(next) => {
                    message.resize(next.bytes(), 0);
                    let bytes = run.send(&mut message)?;
                    link.queue_message(FRAME_DATA, &message[..bytes], FRAME_PAYLOAD)?;
                    link.flush();
                }
                Turn::Receive(next) => {
                    let bytes = link.message(next.bytes(), FRAME_PAYLOAD, |_, _| {}).await?;
                    run.receive(&bytes)?;
                }
            }
        }
        Ok(run.choice()?)
    }
}

async fn hear(link: &mut Link<'_>) -> Result<ToServer, Ended> {
    match link.frame().await? {
        (FRAME_CONTROL, payload) => ToServer::from_bytes(payload).map_err(|_| Ended::Control),
        _ => Err(LinkError::Frame.into()),
    }
}

fn say(link: &mut Link<'_>, message: &ToDevice) -> Result<(), Ended> {
    let mut buffer = [0; FRAME_PAYLOAD];
    let bytes = message.to_bytes(&mut buffer).map_err(|_| Ended::Control)?;
    Ok(link.queue(FRAME_CONTROL, &buffer[..bytes])?)
}

// ---- the device

/// How a device's session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With so many answers, all right.
    Answers(usize),
    /// Nobody listens.
    Unreachable,
    Refused(Refusal),
    Failed(SessionError),
    /// The server was silent for too long.
    TimedOut,
}

/// What a device sets out to do.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Programs to ask, one after the other.
    pub slots: Vec<Slot>,
    /// Inferences to prepare of each program that has none.
    pub prepare: usize,
    pub tile: u16,
    /// Ticks of silence after which the device gives up.
    pub patience: u64,
}

/// One session of the device, from dialling to its end.
pub async fn device(
    world: Rc<World>,
    fixture: &'static Fixture,
    errand: Errand,
    rest: u64,
    outcome: Rc<RefCell<Option<Outcome>>>,
) {
    sleep(&world, rest).await;
    let needed = fixture
        .pool
        .slots()
        .map(|slot| secure_router_core::device::work_words(&fixture.secret(slot).program, errand.tile).unwrap())
        .max();
    let frame = || vec![0; DeviceMemory::FRAME_BYTES];
    let (mut rx, mut tx, mut work) = (frame(), frame(), vec![0; needed.unwrap()]);
    let mut input = vec![0; usize::from(fixture.pool.input_len)];
    let memory = DeviceMemory { rx: &mut rx, tx: &mut tx, work: &mut work, input: &mut input };
    let ended = errands(&world, fixture, &errand, memory).await;
    assert!(rx.iter().chain(&tx).all(|byte| *byte == 0) && work.iter().all(|word| *word == 0), "not wiped");
    assert!(input.iter().all(|value| *value == 0), "not wiped");
    *outcome.borrow_mut() = Some(ended);
}

type Session<'b> = DeviceSession<'b, Nvm>;

async fn errands(world: &Rc<World>, fixture: &'static Fixture, errand: &Errand, memory: DeviceMemory<'_>) -> Outcome {
    let Some(end) = world.dial(Owner::Server) else { return Outcome::Unreachable };
    let rng = &mut random(world);
    let mut session = match DeviceSession::connect(fixture.identity(), memory, errand.tile, Nvm(world.clone()), rng) {
        Ok(session) => session,
        Err(error) => return Outcome::Failed(error),
    };
    let mut answers = 0;
    match errands_in(world, fixture, errand, &mut session, &end, &mut answers).await {
        Ok(()) => Outcome::Answers(answers),
        Err(ended) => ended,
    }
}

async fn errands_in(
    world: &Rc<World>,
    fixture: &'static Fixture,
    errand: &Errand,
    session: &mut Session<'_>,
    end: &End,
    answers: &mut usize,
) -> Result<(), Outcome> {
    expect(next(world, errand, session, end).await?, Event::Ready);
    let mut refused = None;
    for slot in &errand.slots {
        match ask(world, fixture, errand, *slot, session, end).await {
            Ok(()) => {
                *answers += 1;
                world.count("answers");
            }
            // A refusal ends the request, not the session.
            Err(Outcome::Refused(refusal)) => refused = Some(refusal),
            Err(ended) => return Err(ended),
        }
    }
    match refused {
        Some(refusal) if *answers == 0 => Err(Outcome::Refused(refusal)),
        _ => Ok(()),
    }
}

/// Prepares what is missing and asks one program.
async fn ask(
    world: &World,
    fixture: &'static Fixture,
    errand: &Errand,
    slot: Slot,
    session: &mut Session<'_>,
    end: &End,
) -> Result<(), Outcome> {
    let wanted: Vec<Slot> = if slot == Slot::Router { fixture.pool.slots().collect() } else { vec![slot] };
    for slot in wanted {
        let lacking = if session.ready(slot) == 0 { errand.prepare } else { 0 };
        for _ in 0..lacking {
            session.prepare(slot).map_err(Outcome::Failed)?;
            expect(next(world, errand, session, end).await?, Event::Prepared(slot));
        }
    }
    let input = fixture.input(world.chance.borrow_mut().below(100) as i16);
    let lambda = world.chance.borrow_mut().below(300) as u16;
    let request = Request { slot, lambda, link: LinkProfile::BLE };
    let started = session.infer(request, &input);
    alive(world).await;
    started.map_err(Outcome::Failed)?;
    let mut model = slot;
    if slot == Slot::Router {
        let allowed = (1 << fixture.pool.models.len()) - 1;
        let scores = router_scores(&fixture.pool, lambda, allowed, &request.link).unwrap();
        let best = clear(world, fixture, slot, &input, &scores);
        model = Slot::Model(best.iter().position(|one| *one == 1).unwrap() as u8);
        expect(next(world, errand, session, end).await?, Event::Routed(model));
    }
    expect(next(world, errand, session, end).await?, Event::Answer);
    let wanted = clear(world, fixture, model, &input, &[]);
    let found: Vec<i64> = session.logits().map(i64::from).collect();
    assert_eq!(found, wanted, "a wrong answer was reported as right");
    Ok(())
}

/// What the reference says of the program whose counter was burned last.
fn clear(world: &World, fixture: &Fixture, slot: Slot, input: &[i16], scores: &[i32]) -> Vec<i64> {
    let (burned, counter) = world.watch.borrow().last_burned.unwrap();
    assert_eq!(burned, slot, "the session runs another program than it was asked for");
    let mut rounding = Dither(fixture.seeds(slot).dealer_keys(counter));
    reference(fixture.secret(slot), input, scores, &mut rounding).expect("the pool's values stay in range")
}

fn expect(found: Event, wanted: Event) {
    assert_eq!(found, wanted, "an event out of turn");
}

/// Does not return when the device's power is cut.
async fn alive(world: &World) {
    if world.flash_cut() {
        world.halt(Owner::Device).await;
    }
}

/// Carries bytes until the session's next event; a refusal ends the errand.
async fn next(world: &World, errand: &Errand, session: &mut Session<'_>, end: &End) -> Result<Event, Outcome> {
    loop {
        let (wanted, pending) = session.io();
        let outcome = if !pending.is_empty() {
            let count = 1 + world.chance.borrow_mut().below(2 * pending.len());
            let count = count.min(pending.len());
            end.write(&pending[..count]);
            session.sent(count)
        } else {
            assert!(!wanted.is_empty(), "the session neither sends nor waits");
            match end.read(wanted, Some(world.now() + errand.patience)).await {
                Ok(0) => session.link_ended(),
                Ok(count) => session.received(count),
                Err(_) => {
                    session.close();
                    return Err(Outcome::TimedOut);
                }
            }
        };
        alive(world).await;
        match outcome {
            Ok(None) => {}
            Ok(Some(Event::Refused(refusal))) => return Err(Outcome::Refused(refusal)),
            Ok(Some(event)) => return Ok(event),
            Err(error) => {
                assert!(session.is_closed() && session.logits().count() == 0);
                return Err(Outcome::Failed(error));
            }
        }
    }
}
