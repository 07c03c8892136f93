//! Sessions under faults, in worlds of their own and each from one seed: whatever happens, an answer is right or there
//! is a typed error, no counter hides two inputs, nobody is stuck, and the next session works.
//!
//! `SIM_SESSIONS=100000` runs that many sessions, `SIM_THREADS=n` so many worlds at once, `SIM_START=n` begins at another
//! seed, `SIM_SEED=n` replays one world and prints what happens in it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use secure_router_core::circuit::Slot;
use secure_router_core::session::Refusal;
use secure_router_tests::sim::parties::{Errand, Outcome, PATIENCE};
use secure_router_tests::sim::world::{Life, Party};
use secure_router_tests::sim::{self, Story, on_a_still_clock, tell};

thread_local! {
    /// The last panic of this thread: tokio catches those of tasks.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// One world; says how to replay it if anything in it panics.
fn world(seed: u64, told: bool) -> sim::Tale {
    PANIC.take();
    let tale = catch_unwind(|| tell(seed, told));
    match (tale, PANIC.take()) {
        (Ok(tale), None) => tale,
        (_, why) => panic!(
            "world {seed} failed: {}\nreplay it with SIM_SEED={seed} cargo test -p secure-router-tests --test simulation -- \
             --nocapture",
            why.unwrap_or_default()
        ),
    }
}

fn watch_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANIC.set(Some(panic.to_string()));
        before(panic);
    }));
}

#[test]
fn sessions_under_faults_end_in_right_answers_or_typed_errors() {
    watch_panics();
    if let Some(seed) = variable("SIM_SEED") {
        for (name, count) in world(seed, true).tally {
            println!("{name}: {count}");
        }
        return;
    }
    let (wanted, first) = (variable("SIM_SESSIONS").unwrap_or(5000), variable("SIM_START").unwrap_or(0));
    let (start, sessions, next) = (Instant::now(), AtomicU64::new(0), AtomicU64::new(first));
    let total = Mutex::new(BTreeMap::<String, u64>::new());
    let run = || {
        while sessions.load(Relaxed) < wanted {
            let tale = world(next.fetch_add(1, Relaxed), false);
            let mut total = total.lock().unwrap();
            for (name, count) in tale.tally {
                if name.starts_with("session:") {
                    sessions.fetch_add(count, Relaxed);
                }
                *total.entry(name).or_default() += count;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..variable("SIM_THREADS").unwrap_or(1)).map(|_| scope.spawn(run)).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let total = total.into_inner().unwrap();
    for (name, count) in &total {
        println!("{name}: {count}");
    }
    let (sessions, worlds) = (sessions.into_inner(), next.into_inner() - first);
    println!("{sessions} sessions in {worlds} worlds, {:.0} a second", sessions as f64 / start.elapsed().as_secs_f64());
    // The weather is bad enough, and not too bad.
    let seen = ["session: PowerCut", "session: all answers", "dealer: refused to deal again"].map(str::to_owned);
    for what in sim::faults().into_iter().chain(seen) {
        assert!(total.contains_key(&what), "never met: {what}");
    }
    assert!(total["answers"] * 3 > sessions, "too few answers");
}

#[test]
fn a_world_replays() {
    for seed in [1, 2, 3] {
        let (once, again) = (world(seed, false), world(seed, false));
        assert_eq!(once.tally, again.tally);
        assert_eq!(once.fingerprint, again.fingerprint);
    }
}

#[test]
fn silent_devices_and_a_silent_link_to_the_dealer_delay_nobody_else() {
    on_a_still_clock(async {
        let story = Story::new(1, 4, 0, false);
        let errand = Errand { slots: vec![Slot::Model(0)], prepare: 1, tile: 1, pause: 0 };
        tokio::time::sleep(Duration::from_secs(1)).await;
        let silent = Life::start(&story.world, Party::Impostor);
        let _links: Vec<_> = (0..50).map(|_| story.world.dial(&silent, Party::Server).unwrap()).collect();
        let first = Story::session(story.devices[0].clone(), errand.clone()).await;
        assert_eq!(first, Outcome::Answers(1));
        // One link to the dealer is open now. Four requests take it and three more.
        story.world.silence(Party::Dealer);
        let mut sessions = tokio::task::JoinSet::new();
        for device in &story.devices {
            let (device, errand, start) = (device.clone(), errand.clone(), tokio::time::Instant::now());
            sessions.spawn(async move { (Story::session(device, errand).await, start.elapsed()) });
        }
        let (late, soon): (Vec<_>, Vec<_>) =
            sessions.join_all().await.into_iter().partition(|(_, took)| *took > Duration::from_secs(1));
        assert!(
            soon.len() == 3 && soon.iter().all(|(outcome, _)| *outcome == Outcome::Answers(1)),
            "{soon:?} {late:?}"
        );
        assert!(late[0].0 == Outcome::Refused(Refusal::Dealer) && late[0].1 < 2 * PATIENCE.exchange, "{late:?}");
    });
}

#[test]
fn a_slow_link_to_the_dealer_is_no_silent_one() {
    on_a_still_clock(async {
        const MANY_WORDS: usize = 4;
        let story = Story::new(1, 1, MANY_WORDS, false);
        let errand = Errand { slots: vec![Slot::Model(0)], prepare: 1, tile: 1, pause: 0 };
        tokio::time::sleep(Duration::from_secs(1)).await;
        story.world.weather.lock().unwrap().dealer_pace = PATIENCE.exchange / 10;
        let start = tokio::time::Instant::now();
        let session = || Story::session(story.devices[0].clone(), errand.clone());
        assert_eq!(session().await, Outcome::Answers(1));
        let took = start.elapsed();
        assert!(took > 3 * PATIENCE.exchange / 2, "the link is too fast for the test: {took:?}");
        // A device that gives up before its item is there does not lose it by asking again.
        story.world.weather.lock().unwrap().dealer_pace = PATIENCE.exchange / 4;
        assert_eq!(session().await, Outcome::Failed("Silent".to_owned()));
        assert_eq!(session().await, Outcome::Refused(Refusal::Dealer));
        tokio::time::sleep(10 * PATIENCE.exchange).await;
        story.world.silence(Party::Dealer);
        assert_eq!(session().await, Outcome::Answers(1));
    });
}

#[test]
fn a_store_that_fails_while_it_spends_ends_the_session_and_both_ends_agree_in_the_next() {
    on_a_still_clock(async {
        let story = Story::new(1, 1, 0, false);
        let errand = Errand { slots: vec![Slot::Model(0); 3], prepare: 2, tile: 1, pause: 4000 };
        tokio::time::sleep(Duration::from_secs(1)).await;
        let session = tokio::spawn(Story::session(story.devices[0].clone(), errand.clone()));
        // The first question is answered, and makes the second item durable; the second finds the disk full.
        tokio::time::sleep(Duration::from_secs(2)).await;
        story.world.weather.lock().unwrap().disk_full = 1000;
        tokio::time::sleep(Duration::from_secs(4)).await;
        story.world.calm();
        let outcome = session.await.unwrap();
        assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        assert_eq!(story.world.tally()["fault: DiskFull"], 1);
        assert_eq!(Story::session(story.devices[0].clone(), errand).await, Outcome::Answers(3));
    });
}
