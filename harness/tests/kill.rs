//! Server and dealer are killed, `SIGKILL`, again and again while devices ask. Every answer must be right, bit for bit,
//! no attempt may end without an answer or an error, and no stock item may be used twice. Environment: `KILLS`.
//!
//! Half of the devices forget their counters at once, so that the server's store alone keeps an item from being used
//! twice. Such a device may burn a counter again that no answer came for, which the documents say; never one that an
//! answer came for.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use secure_router::stock::{StockError, Store};
use secure_router_core::channel::PublicKey;
use secure_router_core::circuit::Slot;
use secure_router_core::session::{LinkProfile, Request};
use secure_router_tests::exact::{Exact, public_key};
use secure_router_tests::ledger::Ledger;
use secure_router_tests::process::Processes;
use secure_router_tests::{Device, examples, session_with};
use tokio::sync::{RwLock, mpsc};
use tokio::task::JoinSet;

const DEVICES: usize = 6;
/// Words of work space with which the largest model does not fit.
const WORK_WORDS: usize = 560;
/// Neither an answer nor an error within this time: lost.
const LOST: Duration = Duration::from_secs(120);

/// What all devices know.
struct World {
    exact: Exact,
    inputs: Vec<Vec<i16>>,
    directory: PathBuf,
    /// Written while a party is down.
    address: RwLock<String>,
}

/// What a device did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Connected,
    Prepared,
    Answered,
    Failed,
    Wrong,
}

/// A device that asks until it is stopped, and takes any error for "no answer".
struct Asker {
    world: Arc<World>,
    number: usize,
    key: PublicKey,
    ledger: Ledger,
    forgets: bool,
    /// Counters that a message of the server's run was seen for.
    used: BTreeSet<(Slot, u64)>,
    /// All counters burned.
    burned: BTreeSet<(Slot, u64)>,
    /// Counters burned again, after a run of which nothing was seen.
    again: usize,
    done: mpsc::UnboundedSender<(usize, Done)>,
}

impl Asker {
    fn tell(&self, done: Done) -> bool {
        self.done.send((self.number, done)).is_ok()
    }

    /// Asks until told to stop, or until the world ends.
    async fn ask_on(mut self) -> Result<Self> {
        let mut question = self.number;
        while !self.done.is_closed() {
            let attempt = tokio::time::timeout(LOST, self.session(&mut question)).await;
            match attempt.unwrap_or_else(|_| Err(anyhow!("neither an answer nor an error").context(Wrong))) {
                Ok(()) => break,
                // A wrong answer, or a counter used twice.
                Err(error) if error.is::<Wrong>() => {
                    self.tell(Done::Wrong);
                    return Err(error);
                }
                Err(_) => self.tell(Done::Failed),
            };
        }
        Ok(self)
    }

    /// One connection.
    async fn session(&mut self, question: &mut usize) -> Result<()> {
        let world = Arc::clone(&self.world);
        let address = world.address.read().await.clone();
        let name = format!("d{}", self.number);
        let session = session_with(&world.directory, &name, self.ledger.clone(), WORK_WORDS)?;
        let mut device = Device::over(session, &address).await?;
        self.tell(Done::Connected);
        loop {
            *question += 1;
            let slot = [Slot::Router, Slot::Model(0), Slot::Model(1)][*question % 3];
            let request = Request { slot, lambda: world.exact.pool.lambda, link: LinkProfile::UART };
            device.top_up(slot).await?;
            self.tell(Done::Prepared);
            let input = &world.inputs[*question * 37 % world.inputs.len()];
            let outcome = device.ask(request, input).await;
            let burned = self.ledger.take();
            self.note(&burned, outcome.is_ok()).map_err(|error| error.context(Wrong))?;
            outcome?;
            let answer: Vec<i64> = device.session.logits().map(i64::from).collect();
            let right = world.exact.check(&self.key, request, device.allowed(), input, &burned, &answer);
            right.map_err(|error| error.context(Wrong))?;
            if !self.tell(Done::Answered) {
                return Ok(());
            }
        }
    }

    /// Notes what one question burned.
    fn note(&mut self, burned: &[(Slot, u64)], answered: bool) -> Result<()> {
        for (place, item) in burned.iter().enumerate() {
            ensure!(!self.used.contains(item), "{item:?} is used a second time");
            if !self.burned.insert(*item) {
                ensure!(self.forgets, "{item:?} is burned a second time by a device that does not forget");
                self.again += 1;
            }
            // The router's run is over when its model's begins.
            if answered || place + 1 < burned.len() {
                self.used.insert(*item);
            }
        }
        Ok(())
    }
}

/// Not a lost answer, but a broken promise.
#[derive(Clone, Copy, Debug)]
struct Wrong;

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server broke a promise")
    }
}

/// Waits until every device has had an answer, then for `more` events; no longer once something is wrong.
async fn until_all_agree(
    events: &mut mpsc::UnboundedReceiver<(usize, Done)>,
    tally: &mut Tally,
    more: usize,
) -> Result<()> {
    let (mut agreed, mut left) = (BTreeSet::new(), more);
    while !tally.wrong && (agreed.len() < DEVICES || left > 0) {
        let (device, done) = events.recv().await.context("no device is left")?;
        match done {
            Done::Answered => tally.answers += 1,
            Done::Failed => tally.errors += 1,
            Done::Connected | Done::Prepared => {}
            Done::Wrong => tally.wrong = true,
        }
        if agreed.len() == DEVICES {
            left -= 1;
        } else if done == Done::Answered {
            agreed.insert(device);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Tally {
    answers: usize,
    errors: usize,
    /// A device has an error to report.
    wrong: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_parties_lose_no_answer_and_use_no_item_twice() -> Result<()> {
    let kills: usize = std::env::var("KILLS").map_or(50, |text| text.parse().expect("KILLS is not a number"));
    let names: Vec<String> = (0..DEVICES).map(|number| format!("d{number}")).collect();
    let mut processes = Processes::start(Path::new(env!("CARGO_BIN_EXE_secure-router")), &names)?;
    let directory = processes.directory().to_owned();
    let world = Arc::new(World {
        exact: Exact::of(&directory)?,
        inputs: examples()?.inputs,
        address: RwLock::new(processes.address()),
        directory,
    });
    let (done, mut events) = mpsc::unbounded_channel();
    let mut askers = JoinSet::new();
    for (number, name) in names.iter().enumerate() {
        let forgets = number % 2 == 1;
        let ledger = match forgets {
            true => Ledger::forgetful(),
            false => Ledger::open(&world.directory.join(format!("counters-{name}")))?,
        };
        let asker = Asker {
            world: Arc::clone(&world),
            number,
            key: public_key(&world.directory, name)?,
            ledger,
            forgets,
            used: BTreeSet::new(),
            burned: BTreeSet::new(),
            again: 0,
            done: done.clone(),
        };
        askers.spawn(asker.ask_on());
    }
    drop(done);

    let mut tally = Tally::default();
    for kill in 0..kills {
        // A place of its own in what the devices do, as far as that has an order.
        until_all_agree(&mut events, &mut tally, kill * 7 % 23).await?;
        if tally.wrong {
            break;
        }
        let mut address = world.address.write().await;
        if kill % 2 == 1 {
            // By itself: the server meets a dealer that knows no program.
            processes.kill_dealer()?;
            drop(address);
            until_all_agree(&mut events, &mut tally, kill * 5 % 19).await?;
            address = world.address.write().await;
        }
        processes.kill_server()?;
        *address = processes.address();
    }
    until_all_agree(&mut events, &mut tally, 0).await?;
    drop(events);
    let mut ended = Vec::new();
    while let Some(asker) = askers.join_next().await {
        ended.push(asker??);
    }
    processes.stop();

    // Of what was used the server's store gives nothing out.
    let store = Store::open(&processes.stock())?;
    let mut used = 0;
    for asker in &ended {
        for (slot, counter) in &asker.used {
            let spent = store.spend(&asker.key, *slot, *counter, &world.exact.fingerprint, None);
            assert!(matches!(spent, Err(StockError::Counter(_))), "{slot:?} {counter} is not spent");
            used += 1;
        }
    }
    let burned: usize = ended.iter().map(|asker| asker.burned.len()).sum();
    let again: usize = ended.iter().map(|asker| asker.again).sum();
    println!(
        "server killed {kills} times, dealer {}: {} answers, all right; {} errors; {burned} counters burned, {used} \
         used, none twice; {again} burned again without an answer, by devices that forget",
        kills / 2,
        tally.answers,
        tally.errors
    );
    assert_eq!(ended.len(), DEVICES);
    Ok(())
}
