//! Sessions under faults, in one thread and from one seed: whatever happens, an answer is right or there is a typed
//! error, no counter's masks are used twice, nobody is stuck, and the next session works.
//!
//! The parties are the kernel's; links, clock, flash, stores and chance are the simulator's. `SIM_SESSIONS=100000` runs
//! that many sessions, `SIM_START=n` begins at another seed, `SIM_SEED=n` replays one world and prints its sessions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;
#[path = "lab/parties.rs"]
mod parties;
#[path = "lab/world.rs"]
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Instant;

use lab::peer::Fixture;
use parties::{Errand, Outcome};
use secure_router_core::circuit::Slot;
use secure_router_core::routing::Routing;
use secure_router_core::session::Refusal;
use secure_router_core::spec::{ModelSpec, NamedModel, Opening, Output, PoolSpec, RouterSpec};
use world::{Flash, LINK_FAULTS, Owner, Pause, Tasks, Weather, World};

/// Sessions in one world, calm ones not counted.
const STORMS: usize = 12;

fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

fn pool(input_len: u16, output: Output, models: &[ModelSpec], trunk: ModelSpec) -> &'static Fixture {
    let named = |(index, spec): (usize, &ModelSpec)| NamedModel {
        name: format!("m{index}").as_str().try_into().unwrap(),
        spec: *spec,
    };
    let spec = PoolSpec {
        edition: [5; 16],
        task: "simulated".try_into().unwrap(),
        input_len,
        input_bits: 8,
        input_frac: 4,
        classes: 3,
        output,
        routing: Routing::Open,
        models: models.iter().enumerate().map(named).collect(),
        router: Some(RouterSpec { trunk, utility: opening(9, 8), answers: 0 }),
    };
    spec.validate().unwrap();
    Fixture::new(spec)
}

/// Small pools: one with attention that answers with labels, one whose messages take several frames, and one whose
/// input does.
fn fixtures() -> [&'static Fixture; 3] {
    let base = ModelSpec {
        tokens: 2,
        features: 24,
        width: 0,
        heads: 0,
        ffn: 3,
        layers: 1,
        qkv: opening(6, 12),
        score: opening(8, 6),
        mix: opening(8, 12),
        ffn_in: opening(9, 6),
        output_bits: 20,
    };
    let trunk = ModelSpec { ffn: 2, output_bits: 17, ..base };
    let attention = ModelSpec { tokens: 4, features: 12, width: 4, heads: 2, ffn: 0, ..base };
    let frames = ModelSpec { tokens: 16, features: 3, ffn: 32, ..base };
    let wide = ModelSpec { tokens: 8, features: 64, ..base };
    let wide_trunk = ModelSpec { layers: 0, ffn: 0, tokens: 1, features: 512, ..trunk };
    [
        pool(48, Output::Label, &[base, attention], trunk),
        pool(48, Output::Logits, &[attention, frames], trunk),
        pool(512, Output::Label, &[wide, ModelSpec { ffn: 5, ..wide }], wide_trunk),
    ]
}

/// One world and everything that happens in it.
struct Story {
    world: Rc<World>,
    tasks: Tasks,
    fixture: &'static Fixture,
    told: bool,
    /// Copies of the flash, for a device that is put back.
    backups: Vec<Flash>,
}

impl Story {
    fn new(seed: u64, fixture: &'static Fixture, told: bool) -> Self {
        let world = World::new(seed);
        world.spawn(Owner::Server, parties::server(world.clone(), fixture, 0));
        world.spawn(Owner::Dealer, parties::dealer(world.clone(), fixture, 0));
        Self { world, tasks: Tasks::default(), fixture, told, backups: Vec::new() }
    }

    fn below(&self, limit: usize) -> usize {
        self.world.chance.borrow_mut().below(limit)
    }

    /// One session; `None` when the device's power was cut in it.
    fn session(&mut self, weather: Weather, errand: Errand, rest: u64) -> Option<Outcome> {
        let (world, fixture) = (self.world.clone(), self.fixture);
        if self.told {
            println!("t {} {weather:?} {errand:?}", world.now());
        }
        world.flash.borrow_mut().boot(weather.flash_words);
        *world.weather.borrow_mut() = weather;
        let outcome = Rc::new(RefCell::new(None));
        world.spawn(Owner::Device, parties::device(world.clone(), fixture, errand, rest, outcome.clone()));
        self.tasks.collect(&world);
        let paused = self.tasks.run(&world, |owner| {
            world.up.borrow_mut().remove(&owner);
            let rest = world.chance.borrow_mut().below(200) as u64;
            match owner {
                Owner::Server => world.spawn(owner, parties::server(world.clone(), fixture, rest)),
                Owner::Dealer => world.spawn(owner, parties::dealer(world.clone(), fixture, rest)),
                Owner::Device => {}
            }
        });
        let outcome = outcome.borrow_mut().take();
        assert_eq!(outcome.is_none(), paused == Pause::PowerCut, "a session without an end");
        if self.told {
            println!("t {} {outcome:?}", world.now());
        }
        let name = match outcome {
            None => "session: power cut".into(),
            Some(Outcome::Failed(error)) => {
                let error = format!("{error:?}");
                let short: Vec<&str> = error.split(['(', '{', ')']).map(str::trim).take(2).collect();
                format!("session: Failed {}", short.join(" "))
            }
            Some(Outcome::Refused(refusal)) => {
                format!("session: Refused {}", format!("{refusal:?}").split('(').next().unwrap())
            }
            Some(Outcome::Answers(_)) => "session: all answers".into(),
            Some(other) => format!("session: {other:?}"),
        };
        world.count(name);
        outcome
    }

    fn errand(&self, asks: usize) -> Errand {
        let slots: Vec<Slot> = self.fixture.pool.slots().collect();
        Errand {
            slots: (0..asks).map(|_| slots[self.below(slots.len())]).collect(),
            prepare: 1 + self.below(3),
            tile: [1, 2, 16][self.below(3)],
            patience: 5000,
        }
    }

    fn weather(&self) -> Weather {
        let mut weather = Weather::default();
        let maybe = |chance| self.world.chance.borrow_mut().per_mille(chance);
        if maybe(600) {
            for _ in 0..1 + self.below(2) {
                weather.link.push((LINK_FAULTS[self.below(LINK_FAULTS.len())], 3 + self.below(60) as u32));
            }
        }
        if maybe(350) {
            for _ in 0..1 + self.below(2) {
                let owner = [Owner::Device, Owner::Server, Owner::Dealer][self.below(3)];
                weather.crashes.push((self.below(400), owner));
            }
        }
        if maybe(150) {
            weather.commit_crash = 20 + self.below(200) as u32;
        }
        if maybe(150) {
            weather.disk_full = 50 + self.below(400) as u32;
        }
        if maybe(150) {
            weather.flash_words = Some(self.below(24) as u32);
        }
        if maybe(80) {
            weather.flash_fails = 300;
        }
        weather
    }

    /// A storm: anything may go wrong.
    fn storm(&mut self) {
        let asks = 1 + self.below(3);
        let mut errand = self.errand(asks);
        errand.patience = 400 + self.below(3000) as u64;
        let backup = self.world.flash.borrow().clone();
        self.backups.push(backup);
        let mut rest = self.below(300) as u64;
        if self.below(20) == 0 {
            // An old backup of the device's memory is put back, when nothing is under way any more.
            rest += 2000;
            let index = self.below(self.backups.len());
            *self.world.flash.borrow_mut() = self.backups[index].clone();
            self.world.watch.borrow_mut().rolled_back();
            self.world.count("fault: FlashRolledBack");
        }
        self.session(self.weather(), errand, rest);
    }

    /// Nothing goes wrong any more: how many sessions it takes to an answer.
    fn calm(&mut self) -> usize {
        const MOST: usize = 40;
        for session in 1..=MOST {
            let errand = self.errand(1);
            let rest = self.below(300) as u64;
            match self.session(Weather::default(), errand, rest) {
                Some(Outcome::Answers(1)) => return session,
                // The server steps over counters that were dealt and lost, one per attempt.
                Some(Outcome::Refused(Refusal::Counter(_) | Refusal::Dealer) | Outcome::Unreachable) => {}
                other => panic!("without a fault a session ended in {other:?}"),
            }
        }
        panic!("no answer in {MOST} sessions without a fault");
    }
}

/// The faults, ends and answers of one world, by name.
fn tell(seed: u64, fixture: &'static Fixture, told: bool) -> BTreeMap<String, u64> {
    let mut story = Story::new(seed, fixture, told);
    let mut most = 0;
    for storm in 0..STORMS {
        story.storm();
        if storm + 1 == STORMS || story.below(3) == 0 {
            most = most.max(story.calm());
        }
    }
    // Besides the one that listens and the one that asks the dealer.
    let waiting = story.tasks.of(Owner::Server).saturating_sub(2);
    let mut tally = std::mem::take(&mut *story.world.tally.borrow_mut());
    tally.insert("server's sessions with silent devices, at the end".into(), waiting as u64);
    tally.insert("most calm sessions to an answer".into(), most as u64);
    tally
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn sessions_under_faults_end_in_right_answers_or_typed_errors() {
    let fixtures = fixtures();
    let fixture = |seed: u64| fixtures[(seed % 3) as usize];
    if let Some(seed) = variable("SIM_SEED") {
        for (name, count) in tell(seed, fixture(seed), true) {
            println!("{name}: {count}");
        }
        return;
    }
    let wanted = variable("SIM_SESSIONS").unwrap_or(3000);
    let start = Instant::now();
    let mut total = BTreeMap::<String, u64>::new();
    let mut sessions = 0;
    let first = variable("SIM_START").unwrap_or(0);
    let mut seed = first;
    while sessions < wanted {
        let tally = catch_unwind(AssertUnwindSafe(|| tell(seed, fixture(seed), false))).unwrap_or_else(|_| {
            panic!("world {seed} failed: replay it with SIM_SEED={seed} cargo test --test simulation -- --nocapture")
        });
        for (name, count) in tally {
            let sum = total.entry(name.clone()).or_default();
            *sum = if name.starts_with("most") { (*sum).max(count) } else { *sum + count };
            if name.starts_with("session:") {
                sessions += count;
            }
        }
        seed += 1;
    }
    for (name, count) in &total {
        println!("{name}: {count}");
    }
    println!(
        "{sessions} sessions in {} worlds, {:.0} a second",
        seed - first,
        sessions as f64 / start.elapsed().as_secs_f64()
    );
    // The weather is bad enough, and not too bad.
    for what in LINK_FAULTS.iter().map(|fault| format!("fault: {fault:?}")).chain([
        "fault: CrashAtCommit".into(),
        "fault: DiskFull".into(),
        "fault: PowerCutInFlash".into(),
        "fault: DeviceCrash".into(),
        "fault: ServerCrash".into(),
        "fault: DealerCrash".into(),
        "session: power cut".into(),
        "session: TimedOut".into(),
        "session: all answers".into(),
    ]) {
        assert!(total.get(&what).copied().unwrap_or(0) > 0, "never met: {what}");
    }
    assert!(total["answers"] * 4 > sessions);
}
