//! A world in one thread: clock, tasks, links, flash, stores and chance, all from one seed.
//!
//! Nothing here computes a gate or speaks the protocol; `parties.rs` does, with the kernel's own code.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use secure_router_core::circuit::{SLOTS, Slot};
use secure_router_core::session::{CounterError, Counters, SlotStock};

/// SplitMix64: the only source of chance.
#[derive(Debug)]
pub struct Chance(pub u64);

impl Chance {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `limit`, which is small.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() >> 33) as usize % limit.max(1)
    }

    pub fn per_mille(&mut self, chance: u32) -> bool {
        self.below(1000) < chance as usize
    }
}

/// Who a task belongs to: what a crash takes down together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Device,
    Server,
    Dealer,
}

type Task = (Owner, Pin<Box<dyn Future<Output = ()>>>);

/// What can happen to a piece of bytes on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Lost,
    Repeated,
    Reordered,
    Delayed,
    Truncated,
    Flipped,
    /// Both ends are told that the link ended.
    HungUp,
    /// Nothing passes any more, and nobody is told.
    Silent,
}

pub const LINK_FAULTS: [Fault; 8] = [
    Fault::Lost,
    Fault::Repeated,
    Fault::Reordered,
    Fault::Delayed,
    Fault::Truncated,
    Fault::Flipped,
    Fault::HungUp,
    Fault::Silent,
];

/// The weather of one session. All zero: nothing goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Chance of each link fault, per mille of pieces.
    pub link: Vec<(Fault, u32)>,
    /// A party crashes when the world has made this many steps of the session.
    pub crashes: Vec<(usize, Owner)>,
    /// Chance, per mille of commits, that the party that commits crashes before or after it.
    pub commit_crash: u32,
    /// Chance, per mille of commits, that the disk is full.
    pub disk_full: u32,
    /// The device's power is cut when it has written this many words of flash.
    pub flash_words: Option<u32>,
    /// Chance, per mille of burns, that the flash refuses a write.
    pub flash_fails: u32,
}

#[derive(Debug, Default)]
struct Pipe {
    pieces: VecDeque<(u64, Vec<u8>)>,
    last: u64,
    /// Held back to come behind the next piece.
    held: Option<Vec<u8>>,
    /// The writer is gone.
    closed: bool,
}

#[derive(Debug, Default)]
struct Wires {
    pipes: [Pipe; 2],
    silent: bool,
    hung_up: bool,
}

/// One end of a link.
#[derive(Debug)]
pub struct End {
    world: Rc<World>,
    wires: Rc<RefCell<Wires>>,
    /// The pipe that this end writes.
    side: usize,
}

/// Why nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl End {
    /// Puts bytes on the link; they never wait.
    pub fn write(&self, bytes: &[u8]) {
        self.world.stir();
        let mut rest = bytes;
        while !rest.is_empty() {
            let cut = 1 + self.world.chance.borrow_mut().below(rest.len());
            // Mostly whole writes, as a link without trouble would carry them.
            let cut = if self.world.chance.borrow_mut().per_mille(700) { rest.len() } else { cut };
            let (piece, after) = rest.split_at(cut);
            self.piece(piece.to_vec());
            rest = after;
        }
    }

    fn piece(&self, mut piece: Vec<u8>) {
        let fault = self.world.link_fault();
        let mut chance = self.world.chance.borrow_mut();
        let mut wires = self.wires.borrow_mut();
        if wires.silent || wires.hung_up {
            return;
        }
        let mut at = self.world.now() + 1 + chance.below(4) as u64;
        let pipe = &mut wires.pipes[self.side];
        let mut copies = 1;
        match fault {
            None => {}
            Some(Fault::Lost) => return,
            Some(Fault::Repeated) => copies = 2,
            Some(Fault::Reordered) if pipe.held.is_none() => {
                pipe.held = Some(piece);
                return;
            }
            Some(Fault::Reordered) => {}
            Some(Fault::Delayed) => at += chance.below(800) as u64,
            Some(Fault::Truncated) => {
                let keep = chance.below(piece.len());
                piece.truncate(keep);
            }
            Some(Fault::Flipped) => {
                for _ in 0..1 + chance.below(3) {
                    let bit = chance.below(piece.len() * 8);
                    piece[bit / 8] ^= 1 << (bit % 8);
                }
            }
            Some(Fault::HungUp) => {
                wires.hung_up = true;
                wires.pipes.iter_mut().for_each(|pipe| pipe.closed = true);
                return;
            }
            Some(Fault::Silent) => {
                wires.silent = true;
                return;
            }
        }
        at = at.max(pipe.last);
        pipe.last = at;
        self.world.alarm(at);
        for _ in 0..copies {
            pipe.pieces.push_back((at, piece.clone()));
        }
        if let Some(held) = pipe.held.take() {
            pipe.pieces.push_back((at, held));
        }
    }

    /// Reads at least one byte; 0 at the end of the link.
    pub async fn read(&self, into: &mut [u8], deadline: Option<u64>) -> Result<usize, TimedOut> {
        poll_fn(|_| {
            let now = self.world.now();
            let mut wires = self.wires.borrow_mut();
            let silent = wires.silent;
            let pipe = &mut wires.pipes[1 - self.side];
            while pipe.pieces.front().is_some_and(|(_, piece)| piece.is_empty()) {
                pipe.pieces.pop_front();
            }
            if let Some((at, piece)) = pipe.pieces.front_mut()
                && *at <= now
            {
                let count = piece.len().min(into.len());
                into[..count].copy_from_slice(&piece[..count]);
                piece.drain(..count);
                self.world.stir();
                return Poll::Ready(Ok(count));
            }
            if pipe.closed && pipe.pieces.is_empty() && !silent {
                return Poll::Ready(Ok(0));
            }
            match deadline {
                Some(deadline) if deadline <= now => Poll::Ready(Err(TimedOut)),
                Some(deadline) => {
                    self.world.alarm(deadline);
                    Poll::Pending
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.world.stir();
        let mut wires = self.wires.borrow_mut();
        // A party that lost its power says nothing, half of the time.
        if self.world.crashing.get() && self.world.chance.borrow_mut().per_mille(500) {
            wires.silent = true;
        }
        wires.pipes[self.side].closed = true;
    }
}

/// Everything that all parties share.
#[derive(Debug)]
pub struct World {
    pub chance: RefCell<Chance>,
    pub weather: RefCell<Weather>,
    now: Cell<u64>,
    stirred: Cell<u64>,
    alarms: RefCell<BTreeSet<u64>>,
    spawned: RefCell<SpawnQueue>,
    crash: RefCell<Vec<Owner>>,
    crashing: Cell<bool>,
    /// Connections that wait for the server and for the dealer.
    pub to_server: RefCell<VecDeque<End>>,
    pub to_dealer: RefCell<VecDeque<End>>,
    pub up: RefCell<BTreeSet<Owner>>,
    pub flash: RefCell<Flash>,
    pub store: RefCell<Store>,
    pub dealt: RefCell<BTreeMap<u8, u64>>,
    pub watch: RefCell<Watch>,
    pub tally: RefCell<BTreeMap<String, u64>>,
}

#[derive(Default)]
struct SpawnQueue(Vec<Task>);

impl std::fmt::Debug for SpawnQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tasks", self.0.len())
    }
}

impl World {
    pub fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            chance: RefCell::new(Chance(seed)),
            weather: RefCell::default(),
            now: Cell::new(0),
            stirred: Cell::new(0),
            alarms: RefCell::default(),
            spawned: RefCell::default(),
            crash: RefCell::default(),
            crashing: Cell::new(false),
            to_server: RefCell::default(),
            to_dealer: RefCell::default(),
            up: RefCell::default(),
            flash: RefCell::default(),
            store: RefCell::default(),
            dealt: RefCell::default(),
            watch: RefCell::default(),
            tally: RefCell::default(),
        })
    }

    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// Something changed that another task may wait for.
    pub fn stir(&self) {
        self.stirred.set(self.stirred.get() + 1);
    }

    pub fn alarm(&self, at: u64) {
        self.alarms.borrow_mut().insert(at);
    }

    /// Whether the device lost its power while it wrote.
    pub fn flash_cut(&self) -> bool {
        self.flash.borrow().cut
    }

    pub fn count(&self, what: impl Into<String>) {
        *self.tally.borrow_mut().entry(what.into()).or_default() += 1;
    }

    fn link_fault(&self) -> Option<Fault> {
        let weather = self.weather.borrow();
        let mut chance = self.chance.borrow_mut();
        let fault = weather.link.iter().find(|(_, rate)| chance.per_mille(*rate)).map(|(fault, _)| *fault)?;
        drop(weather);
        self.count(format!("fault: {fault:?}"));
        Some(fault)
    }

    /// A link to a listener; refused where nobody listens.
    pub fn dial(self: &Rc<Self>, listener: Owner) -> Option<End> {
        if !self.up.borrow().contains(&listener) {
            return None;
        }
        let wires = Rc::new(RefCell::new(Wires::default()));
        let end = |side| End { world: self.clone(), wires: wires.clone(), side };
        let queue = if listener == Owner::Server { &self.to_server } else { &self.to_dealer };
        queue.borrow_mut().push_back(end(1));
        self.stir();
        Some(end(0))
    }

    pub fn spawn(&self, owner: Owner, task: impl Future<Output = ()> + 'static) {
        self.stir();
        self.spawned.borrow_mut().0.push((owner, Box::pin(task)));
    }

    pub fn crash(&self, owner: Owner) {
        self.crash.borrow_mut().push(owner);
    }

    /// Never returns: the party is about to be taken down.
    pub async fn halt(&self, owner: Owner) -> ! {
        self.crash(owner);
        poll_fn(|_| Poll::Pending).await
    }

    /// Makes a change durable, or not: the first half of every commit's fate. `Ok(true)` asks for a crash behind it.
    fn fate(&self) -> Result<bool, Fate> {
        let (crash, full) = {
            let weather = self.weather.borrow();
            (weather.commit_crash, weather.disk_full)
        };
        let mut chance = self.chance.borrow_mut();
        if chance.per_mille(full) {
            drop(chance);
            self.count("fault: DiskFull");
            return Err(Fate::Full);
        }
        if !chance.per_mille(crash) {
            return Ok(false);
        }
        let behind = chance.per_mille(500);
        drop(chance);
        self.count("fault: CrashAtCommit");
        if behind { Ok(true) } else { Err(Fate::Crashed) }
    }
}

/// Why a commit did not return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Full,
    Crashed,
}

/// What ended a run of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The device's task is over.
    Done,
    /// The device's power was cut.
    PowerCut,
}

/// Every task of a world, in a fixed order.
#[derive(Default)]
pub struct Tasks(Vec<Task>);

impl Tasks {
    /// Runs the world until the device's task is over or its power is cut. `restart` brings a crashed party back.
    ///
    /// Panics when nobody can go on, or nobody comes to an end.
    pub fn run(&mut self, world: &Rc<World>, mut restart: impl FnMut(Owner)) -> Pause {
        const MOST: usize = 100_000;
        let crashes = std::mem::take(&mut world.weather.borrow_mut().crashes);
        for step in 0..MOST {
            for (_, owner) in crashes.iter().filter(|(at, _)| *at == step) {
                world.count(format!("fault: {owner:?}Crash"));
                world.crash(*owner);
            }
            let before = world.stirred.get();
            let mut context = Context::from_waker(Waker::noop());
            let mut device_done = false;
            let mut index = 0;
            while index < self.0.len() {
                let (owner, task) = &mut self.0[index];
                let owner = *owner;
                if task.as_mut().poll(&mut context).is_ready() {
                    drop(self.0.remove(index));
                    device_done |= owner == Owner::Device;
                } else {
                    index += 1;
                }
                self.0.append(&mut world.spawned.borrow_mut().0);
                let fallen = std::mem::take(&mut *world.crash.borrow_mut());
                for owner in fallen {
                    self.fell(world, owner);
                    if owner == Owner::Device {
                        return if device_done { Pause::Done } else { Pause::PowerCut };
                    }
                    restart(owner);
                    index = 0;
                }
                self.0.append(&mut world.spawned.borrow_mut().0);
            }
            if device_done {
                return Pause::Done;
            }
            if world.stirred.get() != before {
                continue;
            }
            let next = world.alarms.borrow_mut().pop_first().expect("every party waits, and for nothing");
            world.now.set(world.now.get().max(next));
        }
        panic!("no end after {MOST} steps");
    }

    /// Takes a party down with everything that it holds in memory.
    fn fell(&mut self, world: &Rc<World>, owner: Owner) {
        world.crashing.set(true);
        self.0.retain(|(have, _)| *have != owner);
        match owner {
            Owner::Device => {}
            Owner::Server => {
                world.to_server.borrow_mut().clear();
                world.store.borrow_mut().lose_power();
            }
            Owner::Dealer => world.to_dealer.borrow_mut().clear(),
        }
        world.crashing.set(false);
    }

    /// Adds what was spawned outside of a run.
    pub fn collect(&mut self, world: &World) {
        self.0.append(&mut world.spawned.borrow_mut().0);
    }

    /// Tasks of one party.
    pub fn of(&self, owner: Owner) -> usize {
        self.0.iter().filter(|(have, _)| *have == owner).count()
    }
}

// ---- the device's memory

const ERASED: u32 = u32::MAX;
const PAGE: usize = 1 + 4 * 14;

/// Two pages of flash, written word by word and erased as a whole. A page counts once its first word is written,
/// which is written last.
#[derive(Clone, Debug)]
pub struct Flash {
    pages: [Vec<u32>; 2],
    /// Words until the power is cut.
    words: Option<u32>,
    cut: bool,
}

impl Default for Flash {
    fn default() -> Self {
        Self { pages: [vec![ERASED; PAGE], vec![ERASED; PAGE]], words: None, cut: false }
    }
}

fn record(slot: u8, next: u64) -> [u32; 4] {
    let (low, high) = (next as u32, (next >> 32) as u32);
    let check = [u32::from(slot), low, high]
        .iter()
        .fold(0x811c_9dc5u32, |check, word| (check ^ word).wrapping_mul(0x0100_0193).rotate_left(7));
    [u32::from(slot), low, high, check & 0x7fff_ffff]
}

impl Flash {
    /// The device starts: its power is on, for so many words of writing.
    pub fn boot(&mut self, words: Option<u32>) {
        (self.words, self.cut) = (words, false);
    }

    fn write(&mut self, page: usize, at: usize, word: u32) -> Result<(), CounterError> {
        match &mut self.words {
            _ if self.cut => return Err(CounterError),
            Some(0) => {
                self.cut = true;
                return Err(CounterError);
            }
            Some(words) => *words -= 1,
            None => {}
        }
        assert_eq!(self.pages[page][at], ERASED, "flash is written once between two erasures");
        self.pages[page][at] = word;
        Ok(())
    }

    /// The page that counts, the counters in it, and the first place that was never written.
    fn read(&self) -> (Option<usize>, [u64; SLOTS], usize) {
        let valid = |page: &usize| self.pages[*page][0] != ERASED;
        let Some(page) = (0..2).filter(valid).max_by_key(|page| self.pages[*page][0]) else {
            return (None, [0; SLOTS], 0);
        };
        let mut counters = [0; SLOTS];
        let mut end = 1;
        for (index, words) in self.pages[page][1..].chunks_exact(4).enumerate() {
            if words.iter().all(|word| *word == ERASED) {
                continue;
            }
            end = 1 + 4 * (index + 1);
            let (slot, next) = (words[0], u64::from(words[1]) | u64::from(words[2]) << 32);
            // A torn record was never acted on.
            if slot < SLOTS as u32 && record(slot as u8, next) == *words {
                counters[slot as usize] = counters[slot as usize].max(next);
            }
        }
        (Some(page), counters, end)
    }

    fn append(&mut self, slot: u8, next: u64) -> Result<(), CounterError> {
        let (page, mut counters, mut end) = self.read();
        let page = match page {
            Some(page) if end + 4 <= PAGE => page,
            full => {
                let fresh = full.map_or(0, |page| 1 - page);
                counters[usize::from(slot)] = counters[usize::from(slot)].max(next);
                self.write_erase(fresh)?;
                end = 1;
                for (code, next) in counters.iter().enumerate().filter(|(_, next)| **next > 0) {
                    for word in record(code as u8, *next) {
                        self.write(fresh, end, word)?;
                        end += 1;
                    }
                }
                let generation = full.map_or(0, |page| self.pages[page][0] + 1);
                return self.write(fresh, 0, generation);
            }
        };
        for word in record(slot, next) {
            self.write(page, end, word)?;
            end += 1;
        }
        Ok(())
    }

    fn write_erase(&mut self, page: usize) -> Result<(), CounterError> {
        match &mut self.words {
            _ if self.cut => return Err(CounterError),
            Some(0) => {
                self.cut = true;
                return Err(CounterError);
            }
            Some(words) => *words -= 1,
            None => {}
        }
        self.pages[page].fill(ERASED);
        Ok(())
    }
}

/// The device's counters, over the world's flash.
#[derive(Clone, Debug)]
pub struct Nvm(pub Rc<World>);

impl Counters for Nvm {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        let flash = self.0.flash.borrow();
        if flash.cut { Err(CounterError) } else { Ok(flash.read().1[usize::from(slot.code())]) }
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let fails = self.0.weather.borrow().flash_fails;
        if self.0.chance.borrow_mut().per_mille(fails) {
            self.0.count("fault: FlashFails");
            return Err(CounterError);
        }
        let burned = self.0.flash.borrow_mut().append(slot.code(), counter + 1);
        if burned.is_err() {
            self.0.count("fault: PowerCutInFlash");
            self.0.crash(Owner::Device);
            return burned;
        }
        let (_, counters, _) = self.0.flash.borrow().read();
        assert!(counters[usize::from(slot.code())] > counter, "a burn is durable when it returns");
        self.0.watch.borrow_mut().burned(slot, counter);
        Ok(())
    }
}

// ---- the server's store

/// One item of stock.
#[derive(Debug)]
pub struct Item {
    pub correlations: Vec<u8>,
    pub corrections: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Tables {
    items: BTreeMap<(u8, u64), ([u8; 32], Rc<Item>)>,
    /// Slot to its lowest unspent and its lowest unprepared counter.
    counters: BTreeMap<u8, (u64, u64)>,
}

/// The server's store, in memory: the transactions of `harness/src/stock.rs`, of which some are durable when they
/// return and the others with the next durable one.
#[derive(Clone, Debug, Default)]
pub struct Store {
    live: Tables,
    durable: Tables,
}

/// What the store refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockError {
    Store,
    Counter,
    Empty,
    /// The server crashed in it.
    Crashed,
}

impl Store {
    fn lose_power(&mut self) {
        self.live = self.durable.clone();
    }

    fn stock(&self, slot: Slot) -> SlotStock {
        let (_, fresh) = self.live.counters.get(&slot.code()).copied().unwrap_or((0, 0));
        let mut stock = SlotStock { slot, first: fresh, fresh, ready: 0 };
        for (_, counter) in self.live.items.range((slot.code(), 0)..=(slot.code(), u64::MAX)).map(|(key, _)| key) {
            if stock.ready == 0 {
                stock.first = *counter;
            } else if *counter != stock.first + u64::from(stock.ready) {
                break;
            }
            stock.ready += 1;
        }
        stock
    }
}

impl World {
    fn commit(&self, tables: Tables, durable: bool) -> Result<(), StockError> {
        let crash = self.fate().map_err(|fate| match fate {
            Fate::Full => StockError::Store,
            Fate::Crashed => StockError::Crashed,
        })?;
        let mut store = self.store.borrow_mut();
        store.live = tables;
        if durable {
            store.durable = store.live.clone();
        }
        if crash { Err(StockError::Crashed) } else { Ok(()) }
    }

    /// Raises a slot's counters to what the device has spent, and drops what is behind or of another pool.
    pub fn meet(&self, slot: Slot, pool: &[u8; 32], device_next: u64) -> Result<SlotStock, StockError> {
        let mut tables = self.store.borrow().live.clone();
        let (spent, fresh) = tables.counters.get(&slot.code()).copied().unwrap_or((0, 0));
        let spent = spent.max(device_next);
        tables.counters.insert(slot.code(), (spent, fresh.max(spent)));
        tables.items.retain(|(code, counter), (of, _)| *code != slot.code() || *counter >= spent && of == pool);
        self.commit(tables, true)?;
        Ok(self.stock(slot))
    }

    pub fn stock(&self, slot: Slot) -> SlotStock {
        self.store.borrow().stock(slot)
    }

    fn claim(tables: &mut Tables, slot: Slot, counter: u64) -> Result<(), StockError> {
        let (spent, fresh) = tables.counters.get(&slot.code()).copied().unwrap_or((0, 0));
        if counter != fresh {
            return Err(StockError::Counter);
        }
        tables.counters.insert(slot.code(), (spent, counter + 1));
        Ok(())
    }

    pub fn skip(&self, slot: Slot, counter: u64) -> Result<(), StockError> {
        let mut tables = self.store.borrow().live.clone();
        Self::claim(&mut tables, slot, counter)?;
        self.commit(tables, true)
    }

    pub fn put(&self, slot: Slot, counter: u64, pool: &[u8; 32], item: Item) -> Result<(), StockError> {
        let mut tables = self.store.borrow().live.clone();
        Self::claim(&mut tables, slot, counter)?;
        tables.items.insert((slot.code(), counter), (*pool, Rc::new(item)));
        self.commit(tables, false)
    }

    pub fn spend(&self, slot: Slot, counter: u64, pool: &[u8; 32]) -> Result<Rc<Item>, StockError> {
        let mut tables = self.store.borrow().live.clone();
        let (spent, fresh) = tables.counters.get(&slot.code()).copied().unwrap_or((0, 0));
        if counter < spent {
            return Err(StockError::Counter);
        }
        let (of, item) = tables.items.remove(&(slot.code(), counter)).ok_or(StockError::Empty)?;
        if of != *pool {
            return Err(StockError::Empty);
        }
        tables.counters.insert(slot.code(), (counter + 1, fresh.max(counter + 1)));
        self.commit(tables, true)?;
        self.watch.borrow_mut().spent(slot, counter);
        Ok(item)
    }

    /// The dealer's record; `false` when the counter, or a later one, was dealt before.
    pub fn record_deal(&self, slot: Slot, counter: u64) -> Result<bool, StockError> {
        if counter < self.dealt.borrow().get(&slot.code()).copied().unwrap_or(0) {
            return Ok(false);
        }
        let crash = self.fate().map_err(|fate| match fate {
            Fate::Full => StockError::Store,
            Fate::Crashed => StockError::Crashed,
        })?;
        self.dealt.borrow_mut().insert(slot.code(), counter + 1);
        if crash { Err(StockError::Crashed) } else { Ok(true) }
    }
}

// ---- what must never happen

/// Sees every use of a counter, over all crashes and restarts.
#[derive(Debug, Default)]
pub struct Watch {
    burned: BTreeSet<(u8, u64)>,
    spent: BTreeSet<(u8, u64)>,
    dealt: BTreeSet<(u8, u64)>,
    /// Corrections may be sent again, and must then be the same.
    corrections: BTreeMap<(u8, u64), Vec<u8>>,
    /// Masked inputs that reached the server, whole or in part.
    inputs: BTreeMap<(u8, u64), Vec<u8>>,
    rolled_back: bool,
    pub last_burned: Option<(Slot, u64)>,
}

impl Watch {
    fn burned(&mut self, slot: Slot, counter: u64) {
        assert!(self.burned.insert((slot.code(), counter)), "mask reuse: the device burned {slot:?} {counter} twice");
        self.last_burned = Some((slot, counter));
    }

    /// The device's memory was put back. It may burn again what the server has no record of: a counter whose input
    /// went out, and whose spending could not be stored.
    pub fn rolled_back(&mut self) {
        self.rolled_back = true;
        self.burned.clear();
        self.inputs.retain(|key, _| self.spent.contains(key));
    }

    fn spent(&mut self, slot: Slot, counter: u64) {
        assert!(self.spent.insert((slot.code(), counter)), "the server spent {slot:?} {counter} twice");
    }

    pub fn dealt(&mut self, slot: Slot, counter: u64) {
        assert!(self.dealt.insert((slot.code(), counter)), "the dealer dealt {slot:?} {counter} twice");
    }

    pub fn corrections(&mut self, slot: Slot, counter: u64, bytes: &[u8]) {
        let first = self.corrections.entry((slot.code(), counter)).or_insert_with(|| bytes.to_vec());
        assert!(first == bytes, "two different corrections for {slot:?} {counter}");
    }

    /// `bytes` of the masked input under this counter reached the server, from `at` on.
    pub fn input(&mut self, slot: Slot, counter: u64, at: usize, bytes: &[u8], spent: bool) {
        if self.rolled_back && !spent {
            return;
        }
        let known = self.inputs.entry((slot.code(), counter)).or_default();
        for (place, byte) in (at..).zip(bytes) {
            match known.get(place) {
                Some(have) => assert!(have == byte, "mask reuse: two inputs under {slot:?} {counter} at byte {place}"),
                None => known.push(*byte),
            }
        }
    }
}
