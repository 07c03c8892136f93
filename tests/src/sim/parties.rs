//! The real parties, on the simulator's machines: server and dealer start again whenever they crash, a device runs
//! one errand after the other.

use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redb::{Builder, Database, DatabaseError};
use secure_router::dealer::{Deal, DealError, DealRefusal, Dealer, DealerHandle, Peer};
use secure_router::device::{self, DriverError, FileCounters};
use secure_router::host::{Host, Listen};
use secure_router::link::{Moved, Patience};
use secure_router::provision::{DealerFile, DeviceFile, ServerFile};
use secure_router::server::Service;
use secure_router::stock::Store;
use secure_router_core::channel::{FRAME_OVERHEAD, PublicKey, StaticSecret};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::clear;
use secure_router_core::routing::{Routing, settled};
use secure_router_core::session::{
    CounterError, Counters, DeviceIdentity, DeviceMemory, DeviceSession, Event, Infer, LinkProfile, Refusal, Request,
    ToServer, encoded_bytes,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::chance::Chance;
use super::disk::Disk;
use super::flash::{self, Flash};
use super::link::{End, Wire};
use super::pools::{Known, pools};
use super::world::{Life, Party, World, lock};

/// Server and dealer wait this long.
pub const PATIENCE: Patience = Patience { exchange: Duration::from_secs(3), idle: Duration::from_secs(20) };
/// A device waits this long.
pub const DEVICE_PATIENCE: Duration = Duration::from_secs(8);

// ---- machines

/// The machine of a party in one of its lives.
struct Node(Arc<Life>);

impl Host for Node {
    type Stream = End;
    type Random = Chance;

    async fn dial(&self, _: &str) -> io::Result<End> {
        if self.0.world.goes_wrong("NoRoute", |weather| weather.no_route) {
            pending::<()>().await;
        }
        self.0.world.dial(&self.0, Party::Dealer).ok_or(io::ErrorKind::ConnectionRefused.into())
    }

    fn random(&self) -> Chance {
        self.0.world.random()
    }

    fn block<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// Where a party's links arrive.
struct Door(Arc<World>, mpsc::UnboundedReceiver<End>);

impl Listen for Door {
    type Stream = End;
    type From = &'static str;

    async fn accept(&mut self) -> io::Result<(End, &'static str)> {
        let Some(end) = self.1.recv().await else { return pending().await };
        if self.0.goes_wrong("NoRoom", |weather| weather.no_room) {
            return Err(io::Error::other("too many open files"));
        }
        Ok((end, "somebody"))
    }
}

fn database(disk: &Disk, life: &Arc<Life>) -> impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static {
    let (disk, life) = (disk.clone(), Arc::clone(life));
    let open = move |disk: &Disk| Builder::new().set_cache_size(1 << 20).create_with_backend(disk.of(&life));
    move || {
        // As `secure_router::database::open` does with a file and a name.
        if disk.is_empty() {
            let part = Disk::default();
            drop(open(&part)?);
            disk.replace(&part);
        }
        open(&disk)
    }
}

/// What the parties were given before they met.
pub struct Keys {
    /// The server's.
    pub server: ServerFile,
    /// The dealer's.
    pub dealer: DealerFile,
    /// The devices'.
    pub devices: Vec<DeviceFile>,
}

impl Keys {
    /// Those of `devices` devices, the same at every call.
    #[must_use]
    pub fn of(devices: usize) -> Self {
        let mut chance = Chance(7);
        let mut draw = || -> [u8; 32] { std::array::from_fn(|_| chance.word() as u8) };
        let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let public = |secret: &[u8; 32]| hex(&StaticSecret::from_bytes(secret).unwrap().public_key().0);
        let (server, dealer) = (draw(), draw());
        let (mut of_server, mut of_dealer, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for device in 0..devices {
            let (secret, device_dealer, device_server, server_dealer) = (draw(), draw(), draw(), draw());
            let (name, own) = (format!("d{device}"), public(&secret));
            let [device_dealer, device_server, server_dealer] =
                [device_dealer, device_server, server_dealer].map(|seed| hex(&seed));
            of_server.push(json!({
                "name": name, "public": own, "device_server": device_server, "server_dealer": server_dealer
            }));
            of_dealer.push(json!({ "public": own, "device_dealer": device_dealer, "server_dealer": server_dealer }));
            files.push(json!({
                "secret": hex(&secret), "server": public(&server),
                "device_dealer": device_dealer, "device_server": device_server, "routing": "Open"
            }));
        }
        let server_file = json!({ "secret": hex(&server), "dealer": public(&dealer), "devices": of_server });
        let dealer_file = json!({ "secret": hex(&dealer), "server": public(&server), "devices": of_dealer });
        let from = "a key file as provisioning writes it";
        Self {
            server: serde_json::from_value(server_file).expect(from),
            dealer: serde_json::from_value(dealer_file).expect(from),
            devices: files.into_iter().map(|file| serde_json::from_value(file).expect(from)).collect(),
        }
    }
}

// ---- server and dealer

/// Runs the dealer, one life after the other.
pub async fn dealer(world: Arc<World>, keys: Arc<Keys>) {
    let disk = Disk::default();
    loop {
        let life = Life::start(&world, Party::Dealer);
        let living = async {
            let dealer = loop {
                match Dealer::on(Node(Arc::clone(&life)), keys.dealer.clone(), database(&disk, &life), PATIENCE) {
                    Ok(dealer) => break dealer,
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            };
            Arc::new(dealer).run(Door(Arc::clone(&world), world.open(&life))).await;
        };
        tokio::select! {
            biased;
            () = life.fallen() => {}
            () = living => {}
        }
        after_a_fall(&world, &disk).await;
    }
}

/// Runs the server of one of two pools, one life after the other.
pub async fn server(world: Arc<World>, keys: Arc<Keys>, shape: usize) {
    let (mut disk, mut contents) = (Disk::default(), 0);
    loop {
        let life = Life::start(&world, Party::Server);
        let pool = pools(&keys.server)[shape][contents].pool.clone();
        let living = async {
            let store = loop {
                match Store::over(database(&disk, &life)) {
                    Ok(store) => break store,
                    Err(_) => sleep(Duration::from_millis(200)).await,
                }
            };
            let (node, keys) = (Node(Arc::clone(&life)), keys.server.clone());
            let service = Service::on(node, keys, pool, store, String::new(), PATIENCE).expect("good keys");
            Arc::new(service).run(Door(Arc::clone(&world), world.open(&life))).await;
        };
        tokio::select! {
            biased;
            () = life.fallen() => {}
            () = living => {}
        }
        after_a_fall(&world, &disk).await;
        if world.per_mille(50) {
            world.count("fault: DiskReplaced");
            disk = Disk::default();
        }
        if world.per_mille(200) {
            world.count("fault: OtherPool");
            contents = 1 - contents;
        }
    }
}

async fn after_a_fall(world: &World, disk: &Disk) {
    // A process that is killed leaves what it wrote, the machine's power does not.
    if world.per_mille(600) {
        disk.lose_power(world);
    }
    sleep(Duration::from_millis(world.below(2000) as u64)).await;
}

/// Asks the dealer, as the server, for what it has dealt.
///
/// # Panics
/// When it deals it again.
pub async fn ask_again(world: &Arc<World>, keys: &Keys, shape: usize, device: usize, (slot, counter): (Slot, u64)) {
    let known = &pools(&keys.server)[shape][0];
    let life = Life::start(world, Party::Impostor);
    let own = keys.server.secret().expect("a good key");
    let peer = Peer { address: String::new(), key: keys.server.dealer(), own };
    let pool = Arc::new(known.pool.clone());
    let dealer = DealerHandle::start(Arc::new(Node(life)), peer, pool, known.fingerprint, PATIENCE);
    let device = keys.devices[device].secret().expect("a good key").public_key();
    let seed = keys.server.device(&device).expect("a known device").device_seed();
    let bytes = Program::of(&known.pool.spec, slot).unwrap().layout().unwrap().stock;
    match dealer.deal(Deal { device, seed, slot, counter, bytes }).await {
        Ok(_) => panic!("the dealer dealt {slot:?} {counter} twice"),
        Err(DealError::Refused(DealRefusal::Counter { next })) => {
            assert!(next > counter);
            world.count("dealer: refused to deal again");
        }
        Err(_) => {}
    }
}

// ---- devices

/// How a device's errand ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With so many answers, all right.
    Answers(usize),
    /// Nobody listens.
    Unreachable,
    /// The server refused, and there was no answer.
    Refused(Refusal),
    /// With a typed error, by its name.
    Failed(String),
    /// The device's power was cut.
    PowerCut,
}

/// What a device sets out to do.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Programs to ask, one after the other.
    pub slots: Vec<Slot>,
    /// Inferences to prepare of each program that has none.
    pub prepare: usize,
    /// Tokens masked at a time.
    pub tile: u16,
    /// Milliseconds between two questions.
    pub pause: u64,
}

/// A device, over all its lives.
#[derive(Clone)]
pub struct Device {
    /// Its world.
    pub world: Arc<World>,
    keys: Arc<Keys>,
    shape: usize,
    /// Its number.
    pub index: usize,
    /// Its memory.
    pub flash: Flash,
}

/// What the counters tell the watch.
#[derive(Debug, Default)]
struct Current {
    input: Vec<i16>,
    /// Bytes on the link before the first that depends on the input.
    ahead: usize,
    wire: Option<Arc<Wire>>,
}

/// The device's own counters, watched.
struct Watched {
    counters: FileCounters<flash::Mounted>,
    current: Arc<std::sync::Mutex<Current>>,
    world: Arc<World>,
    device: usize,
}

impl Counters for Watched {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        self.counters.next(slot)
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        self.counters.burn(slot, counter)?;
        let current = lock(&self.current);
        let seen = current.wire.as_ref().expect("burned without a link").mark(current.ahead);
        lock(&self.world.watch).burned(self.device, slot, counter, &current.input, seen);
        if self.world.goes_wrong("FallsAfterBurn", |weather| weather.falls_after_burn) {
            self.world.arm(Party::Device(self.device), self.world.below(6));
        }
        Ok(())
    }
}

type Session<'b> = DeviceSession<'b, Watched>;

impl Device {
    /// Device `index`.
    #[must_use]
    pub fn new(world: &Arc<World>, keys: &Arc<Keys>, shape: usize, index: usize) -> Self {
        Self { world: Arc::clone(world), keys: Arc::clone(keys), shape, index, flash: Flash::default() }
    }

    fn known(&self) -> &'static [Known; 2] {
        &pools(&self.keys.server)[self.shape]
    }

    /// The programs of its server's pools.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        self.known()[0].pool.spec.slots().collect()
    }

    fn public_key(&self) -> PublicKey {
        self.keys.devices[self.index].secret().expect("a good key").public_key()
    }

    /// One session, from dialling to its end.
    pub async fn run(self, errand: Errand) -> Outcome {
        let life = Life::start(&self.world, Party::Device(self.index));
        let outcome = tokio::select! {
            biased;
            () = life.fallen() => Outcome::PowerCut,
            outcome = self.session(&life, &errand) => outcome,
        };
        if life.is_over() {
            self.flash.lose_power(&self.world);
        }
        lock(&self.world.watch).judge(self.index);
        if life.is_over() { Outcome::PowerCut } else { outcome }
    }

    async fn session(&self, life: &Arc<Life>, errand: &Errand) -> Outcome {
        let words = |slot: &Slot| {
            let program = Program::of(&self.known()[0].pool.spec, *slot).unwrap();
            secure_router_core::device::work_words(&program, errand.tile).unwrap()
        };
        let frame = || vec![0; DeviceMemory::FRAME_BYTES];
        let (mut rx, mut tx) = (frame(), frame());
        let mut work = vec![0; self.slots().iter().map(words).max().unwrap()];
        let mut input = vec![0; usize::from(self.known()[0].pool.spec.input_len)];
        let memory = DeviceMemory { rx: &mut rx, tx: &mut tx, work: &mut work, input: &mut input };
        let outcome = self.session_in(life, errand, memory).await.unwrap_or_else(|outcome| outcome);
        assert!(rx.iter().chain(&tx).all(|byte| *byte == 0) && work.iter().all(|word| *word == 0), "not wiped");
        assert!(input.iter().all(|value| *value == 0), "not wiped");
        outcome
    }

    async fn session_in(
        &self,
        life: &Arc<Life>,
        errand: &Errand,
        memory: DeviceMemory<'_>,
    ) -> Result<Outcome, Outcome> {
        let world = &self.world;
        let opened = FileCounters::on(self.flash.of(life), Path::new("counters"));
        let counters = opened.map_err(|error| {
            let error = error.to_string();
            assert!(!error.contains("damaged"), "{error}");
            Outcome::Failed("counters".into())
        })?;
        let mut stream = world.dial(life, Party::Server).ok_or(Outcome::Unreachable)?;
        let current = Arc::new(std::sync::Mutex::new(Current { wire: Some(stream.wire()), ..Current::default() }));
        let counters =
            Watched { counters, current: Arc::clone(&current), world: Arc::clone(world), device: self.index };
        let keys = &self.keys.devices[self.index];
        let (secret, seeds) = (keys.secret().expect("a good key"), keys.seeds());
        let identity = DeviceIdentity { secret: &secret, server: keys.server(), seeds: &seeds, routing: Routing::Open };
        let session = DeviceSession::connect(identity, memory, errand.tile, counters, &mut world.random());
        let mut session = session.expect("good buffers");
        expect(self.next(&mut stream, &mut session).await?, Event::Ready);
        let (mut answers, mut refused) = (0, None);
        for slot in &errand.slots {
            match self.ask(&mut stream, &mut session, &current, errand, *slot).await {
                Ok(()) => answers += 1,
                // A refusal ends the request, not the session.
                Err(Outcome::Refused(refusal)) => refused = Some(refusal),
                Err(outcome) => return Err(outcome),
            }
            sleep(Duration::from_millis(errand.pause)).await;
        }
        match refused {
            Some(refusal) if answers == 0 => Err(Outcome::Refused(refusal)),
            _ => Ok(Outcome::Answers(answers)),
        }
    }

    /// Prepares what is missing, asks one program, and holds the answer to the reference.
    async fn ask(
        &self,
        stream: &mut End,
        session: &mut Session<'_>,
        current: &std::sync::Mutex<Current>,
        errand: &Errand,
        slot: Slot,
    ) -> Result<(), Outcome> {
        let world = &self.world;
        let fingerprint = session.pool().expect("ready").fingerprint().expect("a valid pool");
        let known = self.known().iter().find(|known| known.fingerprint == fingerprint).expect("a pool of this server");
        let spec = &known.pool.spec;
        let wanted = if slot == Slot::Router { self.slots() } else { vec![slot] };
        for slot in wanted {
            let lacking = if session.ready(slot) == 0 { errand.prepare } else { 0 };
            for _ in 0..lacking {
                session.prepare(slot).map_err(|error| failed(&error.into()))?;
                expect(self.next(stream, session).await?, Event::Prepared(slot));
            }
        }
        let shift = world.below(100) as i32;
        let limit = spec.words().map_or(128, |words| 1 << words.bits);
        let input: Vec<i16> = (0..i32::from(spec.input_len)).map(|i| ((i * 37 + shift * 11) % limit) as i16).collect();
        let request = Request { slot, lambda: world.below(300) as u16, link: LinkProfile::BLE };
        let announce = Infer { slot, counter: 0, lambda: request.lambda, allowed: 0, link: request.link };
        {
            let mut current = lock(current);
            current.input.clone_from(&input);
            current.ahead = encoded_bytes(&ToServer::Infer(announce)) + FRAME_OVERHEAD;
        }
        session.infer(request, &input).map_err(|error| failed(&error.into()))?;
        lock(current).ahead = 0;
        let (mut model, mut own) = (slot, Vec::new());
        let burned = self.burned(slot);
        let mut event = self.next(stream, session).await?;
        if slot == Slot::Router {
            let allowed = (1 << spec.models.len()) - 1;
            let scores = known.pool.scores(request.lambda, allowed, &request.link).expect("good scores");
            let mut told = known.reference(&self.keys.dealer, &self.public_key(), burned, &input, &scores);
            let program = Program::of(spec, Slot::Router).expect("a router");
            let choice = clear::chosen(&program, &told);
            own = told.split_off(spec.models.len());
            lock(&world.watch).answered(self.index, burned);
            model = Slot::Model(settled(choice, allowed));
            if !spec.router_answers(model) {
                expect(event, Event::Routed(model));
                event = self.next(stream, session).await?;
            }
        }
        expect(event, Event::Answer);
        assert_eq!(session.answered_by(), Some(model));
        let right = if slot == Slot::Router && spec.router_answers(model) {
            world.count("answers of the router itself");
            own
        } else {
            let burned = self.burned(model);
            lock(&world.watch).answered(self.index, burned);
            known.reference(&self.keys.dealer, &self.public_key(), burned, &input, &[])
        };
        let answer: Vec<i64> = session.logits().map(i64::from).collect();
        assert_eq!(answer, right, "a wrong answer was reported as right");
        world.count("answers");
        Ok(())
    }

    /// What the device burned last, which must be for `slot`.
    fn burned(&self, slot: Slot) -> (Slot, u64) {
        let last = lock(&self.world.watch).last(self.index).expect("nothing was burned");
        assert_eq!(last.0, slot, "the session runs another program than it was asked for");
        last
    }

    /// The session's next event; a refusal is an outcome.
    async fn next(&self, stream: &mut End, session: &mut Session<'_>) -> Result<Event, Outcome> {
        match device::run(stream, session, &mut Moved::default(), DEVICE_PATIENCE).await {
            Ok(Event::Refused(refusal)) => Err(Outcome::Refused(refusal)),
            Ok(event) => Ok(event),
            Err(error) => {
                assert!(session.is_closed() && session.logits().count() == 0, "not closed after {error}");
                Err(failed(&error))
            }
        }
    }
}

fn expect(found: Event, wanted: Event) {
    assert_eq!(found, wanted, "an event out of turn");
}

/// The name of an error, without its numbers.
fn failed(error: &DriverError) -> Outcome {
    let name = format!("{error:?}");
    let short: Vec<&str> = name.split(['(', '{', ')', '}', ',']).map(str::trim).take(3).collect();
    Outcome::Failed(short.join(" "))
}
