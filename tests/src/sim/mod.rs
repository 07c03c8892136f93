//! Whole worlds in one thread, each from one seed: the real device session, server and dealer, on links, disks,
//! clocks and randomness of the simulator's.

#[path = "../../../core/tests/lab/chance.rs"]
pub mod chance;
pub mod disk;
pub mod flash;
pub mod link;
pub mod parties;
pub mod pools;
pub mod watch;
pub mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use secure_router_core::circuit::Slot;
use secure_router_core::session::Refusal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use link::{FAULTS, Fault};
use parties::{Device, Errand, Keys, Outcome, PATIENCE};
use world::{Party, Weather, World, lock};

/// Storms in one world.
const STORMS: usize = 6;
/// Sessions without a fault that a device may need to an answer: one that meets a server that starts again, one for
/// each program whose counters were lost, and one for each link to the dealer that fell silent unnoticed.
const MOST_CALM: usize = 1 + 3 + 4;
/// Simulated time that a session may take.
const MOST_TIME: Duration = Duration::from_secs(900);

/// Events of one world by name, and where its chance stood at the end.
pub struct Tale {
    /// How often each happened.
    pub tally: BTreeMap<String, u64>,
    /// The same for the same seed.
    pub fingerprint: u64,
}

/// What happens in the world of `seed`; `told` prints it.
///
/// # Panics
/// When something happens that must not.
#[must_use]
pub fn tell(seed: u64, told: bool) -> Tale {
    on_a_still_clock(Story::run(seed, told))
}

/// Runs a future in one thread, whose time passes when all wait.
///
/// # Panics
/// When there is no runtime.
pub fn on_a_still_clock<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(story)
}

/// A world with its parties.
pub struct Story {
    /// The world.
    pub world: Arc<World>,
    /// The devices.
    pub devices: Vec<Device>,
    keys: Arc<Keys>,
    shape: usize,
    backups: Vec<Vec<flash::Flash>>,
    /// Server and dealer; they end with the story.
    _parties: JoinSet<()>,
}

impl Story {
    /// A world of `devices` devices and pools of this shape.
    #[must_use]
    pub fn new(seed: u64, devices: usize, shape: usize, told: bool) -> Self {
        let (world, keys) = (World::new(seed, told), Arc::new(Keys::of(devices)));
        let mut parties = JoinSet::new();
        parties.spawn(parties::dealer(Arc::clone(&world), Arc::clone(&keys)));
        parties.spawn(parties::server(Arc::clone(&world), Arc::clone(&keys), shape));
        let devices: Vec<_> = (0..devices).map(|index| Device::new(&world, &keys, shape, index)).collect();
        let backups = vec![Vec::new(); devices.len()];
        Self { world, devices, keys, shape, backups, _parties: parties }
    }

    async fn run(seed: u64, told: bool) -> Tale {
        let mut story = Self::new(seed, 1 + (seed / 4 % 3) as usize, (seed % 4) as usize, told);
        for storm in 0..STORMS {
            story.storm().await;
            if storm + 1 == STORMS || story.world.below(3) == 0 {
                story.world.calm();
                story.ask_again().await;
                for index in 0..story.devices.len() {
                    story.calm(index).await;
                }
            }
        }
        story.end().await;
        Tale { tally: story.world.tally(), fingerprint: story.world.fingerprint() }
    }

    /// An errand of so many questions.
    #[must_use]
    pub fn errand(&self, asks: usize) -> Errand {
        let (world, slots) = (&self.world, self.devices[0].slots());
        Errand {
            slots: (0..asks).map(|_| slots[world.below(slots.len())]).collect(),
            prepare: 1 + world.below(3),
            tile: [1, 2, 16][world.below(3)],
            pause: [0, 0, 100, 2000, 25_000][world.below(5)],
        }
    }

    /// One session of one device, counted.
    pub async fn session(device: Device, errand: Errand) -> Outcome {
        let world = Arc::clone(&device.world);
        let outcome = timeout(MOST_TIME, device.run(errand)).await.expect("a session without an end");
        world.count(match &outcome {
            Outcome::Answers(_) => "session: all answers".into(),
            Outcome::Refused(refusal) => {
                format!("session: Refused {}", format!("{refusal:?}").split('(').next().unwrap_or_default())
            }
            Outcome::Failed(error) => format!("session: Failed {error}"),
            other => format!("session: {other:?}"),
        });
        // An honest server never offers what is spent, unless the device forgot.
        let reused = matches!(&outcome, Outcome::Failed(error) if error.contains("CounterReused"));
        assert!(!reused, "the server offered a spent counter");
        outcome
    }

    fn weather(&self) -> Weather {
        let world = &self.world;
        let mut weather = Weather::default();
        if world.per_mille(600) {
            for _ in 0..1 + world.below(2) {
                weather.link.push((FAULTS[world.below(FAULTS.len())], 2 + world.below(40) as u32));
            }
        }
        for (rate, most) in [
            (&mut weather.no_route, 500),
            (&mut weather.no_room, 500),
            (&mut weather.disk_full, 60),
            (&mut weather.disk_fails, 60),
            (&mut weather.flash_fails, 60),
            (&mut weather.falls_after_burn, 800),
        ] {
            if world.per_mille(150) {
                *rate = 2 + world.below(most) as u32;
            }
        }
        weather
    }

    /// Every device runs an errand at the same time, and anything may go wrong.
    async fn storm(&mut self) {
        let world = Arc::clone(&self.world);
        *lock(&world.weather) = self.weather();
        for (party, most) in [(Party::Server, 800), (Party::Dealer, 200)] {
            if world.per_mille(350) {
                world.arm(party, world.below(most));
            }
        }
        let mut sessions = JoinSet::new();
        for index in 0..self.devices.len() {
            if world.per_mille(250) {
                world.arm(Party::Device(index), world.below(120));
            }
            let mut errand = self.errand(1 + world.below(3));
            if !self.backups[index].is_empty() && world.per_mille(150) {
                self.put_back(index, &mut errand);
            }
            let memory = self.devices[index].flash.backup();
            self.backups[index].push(memory);
            let wait = Duration::from_millis(world.below(500) as u64);
            let device = self.devices[index].clone();
            sessions.spawn(async move {
                sleep(wait).await;
                Self::session(device, errand).await;
            });
        }
        while let Some(session) = sessions.join_next().await {
            session.expect("a device's session panicked");
        }
    }

    /// Puts a device's memory back to what it was before an earlier storm, mostly the last, and lets it ask what it
    /// asked then.
    fn put_back(&mut self, index: usize, errand: &mut Errand) {
        let (world, backups) = (&self.world, &self.backups[index]);
        world.count("fault: PutBack");
        let ago = if world.per_mille(700) { 1 } else { 1 + world.below(backups.len()) };
        self.devices[index].flash = backups[backups.len() - ago].backup();
        let mut watch = lock(&world.watch);
        watch.put_back(index);
        if let Some((slot, _)) = watch.last(index) {
            errand.slots[0] = slot;
        }
    }

    /// Nothing goes wrong any more: an answer comes after few sessions.
    async fn calm(&self, index: usize) {
        for _ in 0..MOST_CALM {
            let outcome = Self::session(self.devices[index].clone(), self.errand(1)).await;
            match outcome {
                Outcome::Answers(_) => return,
                // Counters that were lost.
                Outcome::Refused(Refusal::Counter(_)) => {}
                // A server or a dealer that starts again, or a link to it that is found dead when it is used.
                Outcome::Refused(Refusal::Dealer) | Outcome::Unreachable => sleep(Duration::from_secs(3)).await,
                other => panic!("without a fault a session ended in {other:?}"),
            }
        }
        panic!("no answer in {MOST_CALM} sessions without a fault");
    }

    async fn ask_again(&self) {
        let index = self.world.below(self.devices.len());
        let burned: Option<(Slot, u64)> = lock(&self.world.watch).last(index);
        if let Some(burned) = burned {
            parties::ask_again(&self.world, &self.keys, self.shape, index, burned).await;
        }
    }

    /// When all devices are gone and nothing is asked any more, no party waits for a link.
    async fn end(&self) {
        let start = Instant::now();
        sleep(2 * (PATIENCE.idle + PATIENCE.exchange)).await;
        let waiting = self.world.answered();
        assert_eq!(waiting, 0, "links that nobody gave up, {:?} after the last session", start.elapsed());
    }
}

/// Names of everything that should go wrong at times.
#[must_use]
pub fn faults() -> Vec<String> {
    let links = FAULTS.iter().map(|fault: &Fault| format!("fault: {fault:?}"));
    let others = [
        "NoRoute",
        "NoRoom",
        "DiskFull",
        "DiskFails",
        "FlashFails",
        "DeviceFell",
        "ServerFell",
        "DealerFell",
        "DiskReplaced",
        "OtherPool",
        "PutBack",
        "FallsAfterBurn",
    ];
    links.chain(others.iter().map(|name| format!("fault: {name}"))).collect()
}
