//! What all parties of a simulation share, and the lives that they lead in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::chance::Chance;
use super::link::{End, Fault, Wire};
use super::watch::Watch;

/// A party: what a crash takes down together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// One of the devices.
    Device(usize),
    /// The server.
    Server,
    /// The dealer.
    Dealer,
    /// Somebody who has the server's key.
    Impostor,
}

/// What may go wrong; nothing by default. Chances are per mille.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Of each fault, for each piece of bytes on a link.
    pub link: Vec<(Fault, u32)>,
    /// Time between two pieces of what the dealer sends: no chance, but a slow link.
    pub dealer_pace: Duration,
    /// That dialling leads nowhere.
    pub no_route: u32,
    /// That a listener has no room for a connection.
    pub no_room: u32,
    /// That a disk is full when it is written.
    pub disk_full: u32,
    /// That a disk fails to read, write or sync.
    pub disk_fails: u32,
    /// That a device's memory fails.
    pub flash_fails: u32,
    /// That a device falls within the next steps behind a burn.
    pub falls_after_burn: u32,
}

/// Who listens, and how to reach them.
type Door = (Arc<Life>, mpsc::UnboundedSender<End>);

/// A world.
#[derive(Debug)]
pub struct World {
    chance: Mutex<Chance>,
    /// What may go wrong now.
    pub weather: Mutex<Weather>,
    /// What must never happen.
    pub watch: Mutex<Watch>,
    tally: Mutex<BTreeMap<String, u64>>,
    doors: Mutex<BTreeMap<Party, Door>>,
    /// Steps until a party falls.
    fuses: Mutex<BTreeMap<Party, u64>>,
    /// Links that were accepted and are not over.
    pub(super) answered: AtomicI64,
    start: Instant,
    told: bool,
}

/// A lock that a failed assertion does not poison.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A world of `seed`; `told` prints what happens in it. Needs a runtime whose clock stands still.
    #[must_use]
    pub fn new(seed: u64, told: bool) -> Arc<Self> {
        Arc::new(Self {
            chance: Mutex::new(Chance(seed)),
            weather: Mutex::default(),
            watch: Mutex::default(),
            tally: Mutex::default(),
            doors: Mutex::default(),
            fuses: Mutex::default(),
            answered: AtomicI64::new(0),
            start: Instant::now(),
            told,
        })
    }

    /// Uniform below `limit`.
    pub fn below(&self, limit: usize) -> usize {
        lock(&self.chance).below(limit)
    }

    /// True with this chance.
    pub fn per_mille(&self, chance: u32) -> bool {
        chance > 0 && lock(&self.chance).per_mille(chance)
    }

    /// Randomness for a party.
    pub fn random(&self) -> Chance {
        Chance(lock(&self.chance).word())
    }

    /// Where chance stands: the same for the same seed, whatever happened.
    pub fn fingerprint(&self) -> u64 {
        lock(&self.chance).0
    }

    /// Whether something with this chance goes wrong now.
    pub fn goes_wrong(&self, what: &str, chance: impl FnOnce(&Weather) -> u32) -> bool {
        let chance = chance(&lock(&self.weather));
        let wrong = self.per_mille(chance);
        if wrong {
            self.count(format!("fault: {what}"));
        }
        wrong
    }

    /// Counts an event.
    pub fn count(&self, what: impl Into<String>) {
        let what = what.into();
        if self.told {
            println!("{:>8} ms  {what}", self.start.elapsed().as_millis());
        }
        *lock(&self.tally).entry(what).or_default() += 1;
    }

    /// Counts of all events.
    pub fn tally(&self) -> BTreeMap<String, u64> {
        lock(&self.tally).clone()
    }

    /// Lets `party` fall after so many steps, each the use of a link, a disk or a file.
    pub fn arm(&self, party: Party, steps: usize) {
        lock(&self.fuses).insert(party, steps as u64);
    }

    /// Nothing goes wrong any more.
    pub fn calm(&self) {
        lock(&self.fuses).clear();
        *lock(&self.weather) = Weather::default();
    }

    /// Links that were accepted and are not over.
    pub fn answered(&self) -> i64 {
        self.answered.load(Relaxed)
    }

    /// Opens the door of a party.
    pub fn open(&self, life: &Arc<Life>) -> mpsc::UnboundedReceiver<End> {
        let (knock, queue) = mpsc::unbounded_channel();
        lock(&self.doors).insert(life.party, (Arc::clone(life), knock));
        queue
    }

    /// Nothing passes any more over the links that a party has now, and nobody is told.
    pub fn silence(&self, party: Party) {
        if let Some((life, _)) = lock(&self.doors).get(&party) {
            lock(&life.wires).iter().filter_map(Weak::upgrade).for_each(|wire| wire.end(true));
        }
    }

    /// A link to a party; nothing when nobody listens.
    pub fn dial(&self, from: &Arc<Life>, to: Party) -> Option<End> {
        let (life, knock) = lock(&self.doors).get(&to).cloned()?;
        let (ours, theirs) = Wire::ends(from, &life);
        knock.send(theirs).ok()?;
        Some(ours)
    }
}

/// One life of a party, from start to crash.
#[derive(Debug)]
pub struct Life {
    /// Its world.
    pub world: Arc<World>,
    /// Whose it is.
    pub party: Party,
    dead: AtomicBool,
    fallen: Notify,
    wires: Mutex<Vec<Weak<Wire>>>,
}

impl Life {
    /// A party starts.
    #[must_use]
    pub fn start(world: &Arc<World>, party: Party) -> Arc<Self> {
        let (dead, fallen, wires) = (AtomicBool::new(false), Notify::new(), Mutex::default());
        Arc::new(Self { world: Arc::clone(world), party, dead, fallen, wires })
    }

    /// Whether it is over. What a party still does then reaches nothing.
    pub fn is_over(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// One step; false when the party fell before it.
    pub fn step(&self) -> bool {
        if self.is_over() {
            return false;
        }
        let mut fuses = lock(&self.world.fuses);
        match fuses.get_mut(&self.party) {
            Some(0) => {
                fuses.remove(&self.party);
                drop(fuses);
                self.fall();
                false
            }
            Some(steps) => {
                *steps -= 1;
                true
            }
            None => true,
        }
    }

    /// The party crashes.
    pub fn fall(&self) {
        if self.dead.swap(true, Relaxed) {
            return;
        }
        let world = &self.world;
        world.count(match self.party {
            Party::Device(_) => "fault: DeviceFell",
            Party::Server => "fault: ServerFell",
            Party::Dealer => "fault: DealerFell",
            Party::Impostor => "fault: ImpostorFell",
        });
        if self.party == Party::Server {
            lock(&world.watch).trouble();
        }
        let mut doors = lock(&world.doors);
        if doors.get(&self.party).is_some_and(|(life, _)| std::ptr::eq(&**life, self)) {
            doors.remove(&self.party);
        }
        drop(doors);
        // A party that lost its power says nothing, one that crashed hangs up.
        let silent = world.per_mille(300);
        for wire in lock(&self.wires).drain(..).filter_map(|wire| wire.upgrade()) {
            wire.end(silent);
        }
        self.fallen.notify_one();
    }

    /// Waits for the crash.
    pub async fn fallen(&self) {
        self.fallen.notified().await;
    }

    pub(super) fn holds(&self, wire: &Arc<Wire>) {
        let mut wires = lock(&self.wires);
        wires.retain(|wire| wire.strong_count() > 0);
        wires.push(Arc::downgrade(wire));
    }
}
