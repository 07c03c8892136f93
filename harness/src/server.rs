//! The server party: one task per session of a device; they share a few links to the dealer, and the store.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use secure_router_core::channel::{Link as Kind, PublicKey, StaticSecret, buffer_bytes};
use secure_router_core::circuit::{Program, SLOTS, Slot};
use secure_router_core::keys::server_key;
use secure_router_core::routing::Routing;
use secure_router_core::server::{self, Server, Stock, Turn};
use secure_router_core::session::{
    Control, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, Infer, Prepare, PreparedStock, Refusal, SlotStock, ToDevice,
    ToServer, Welcome,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tracing::{debug, info, warn};

use crate::dealer::{Deal, DealError, DealRefusal, DealerHandle, Peer};
use crate::host::{Host, Listen, Machine};
use crate::link::{Link, LinkError, Patience, accept};
use crate::pool::{Pool, slot_name};
use crate::provision::{ServerDevice, ServerFile};
use crate::stock::{Charge, Item, StockError, Store};

const BUFFER: usize = buffer_bytes(FRAME_PAYLOAD);

/// What the server measured of one run of one program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The program's public name.
    pub program: String,
    /// Runs of messages in one direction, as they happened.
    pub half_trips: u32,
    /// The server's own computing.
    pub compute_ms: f64,
}

/// A server of one pool.
pub struct Service<H = Machine> {
    host: Arc<H>,
    keys: ServerFile,
    secret: StaticSecret,
    pool: Arc<Pool>,
    fingerprint: [u8; 32],
    /// Whoever waits for it waits here, in turn, and holds no thread.
    store: Mutex<Store>,
    dealer: DealerHandle,
    /// What some session is having dealt.
    under_way: std::sync::Mutex<HashSet<Counted>>,
    patience: Patience,
    /// Where each run's [`Record`] goes.
    records: Option<std::sync::Mutex<std::fs::File>>,
}

/// Why a request or a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{0}")]
    Server(#[from] server::ServerError),
    #[error("the stock store failed")]
    Store,
    #[error("{0}")]
    Circuit(#[from] secure_router_core::circuit::CircuitError),
    #[error("a control message is malformed or out of turn")]
    Control,
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The counter of an input could not be spent: told to the device, and the input is not read.
    #[error("refused: {0}")]
    Unspent(Refusal),
}

/// An item: a device's key, a program, a counter.
type Counted = ([u8; 32], Slot, u64);

/// Holds one item to one session, from before it is asked for until it is stored.
struct UnderWay<'s> {
    all: &'s std::sync::Mutex<HashSet<Counted>>,
    item: Counted,
}

impl<'s> UnderWay<'s> {
    /// None if another session has it.
    fn new(all: &'s std::sync::Mutex<HashSet<Counted>>, item: Counted) -> Option<Self> {
        all.lock().unwrap_or_else(PoisonError::into_inner).insert(item).then(|| Self { all, item })
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.item);
    }
}

type DeviceLink<'b, H> = Link<'b, <H as Host>::Stream>;

impl Service {
    /// A server of `pool` that keeps its stock at `store` and asks the dealer at `dealer_address`.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A blank key, or a store that cannot be opened.
    pub fn new(keys: ServerFile, pool: Pool, store: &Path, dealer_address: String, patience: Patience) -> Result<Self> {
        let store = Store::open(store).with_context(|| format!("cannot open the stock {}", store.display()))?;
        Self::on(Machine, keys, pool, store, dealer_address, patience)
    }
}

impl<H: Host> Service<H> {
    /// As [`new`](Service::new), on any machine.
    ///
    /// # Errors
    /// A blank key.
    pub fn on(
        host: H,
        keys: ServerFile,
        mut pool: Pool,
        store: Store,
        dealer_address: String,
        patience: Patience,
    ) -> Result<Self> {
        let secret = keys.secret()?;
        pool.seal(&secret);
        let fingerprint = pool.spec.fingerprint()?;
        let (host, pool, store) = (Arc::new(host), Arc::new(pool), Mutex::new(store));
        let peer = Peer { address: dealer_address, key: keys.dealer(), own: keys.secret()? };
        let dealer = DealerHandle::start(Arc::clone(&host), peer, Arc::clone(&pool), fingerprint, patience);
        let under_way = std::sync::Mutex::default();
        Ok(Self { host, keys, secret, pool, fingerprint, store, dealer, under_way, patience, records: None })
    }

    /// Appends a line of JSON per run to `path`.
    ///
    /// # Errors
    /// The file system's.
    pub fn record_to(mut self, path: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        self.records = Some(std::sync::Mutex::new(file));
        Ok(self)
    }

    /// Answers devices on `listener` until it is dropped.
    pub async fn run(self: Arc<Self>, listener: impl Listen<Stream = H::Stream>) {
        accept(listener, |stream, from| {
            let service = Arc::clone(&self);
            async move {
                match service.answer(stream).await {
                    Ok(()) | Err(Ended::Link(LinkError::Ended)) => debug!(%from, "device left"),
                    Err(error) => warn!(%from, %error, "session ended"),
                }
            }
        })
        .await
    }

    async fn answer(&self, stream: H::Stream) -> Result<(), Ended> {
        let (mut rx, mut tx) = (vec![0; BUFFER], vec![0; BUFFER]);
        let known = |key: &PublicKey| self.keys.device(key).is_some();
        let buffers = (rx.as_mut_slice(), tx.as_mut_slice());
        let mut rng = self.host.random();
        let kind = Kind::DeviceServer;
        let mut link = Link::answer(kind, &self.secret, known, &mut rng, stream, buffers, self.patience).await?;
        let key = link.peer().ok_or(LinkError::UnknownPeer)?;
        let device = self.keys.device(&key).ok_or(LinkError::UnknownPeer)?;
        info!(device = device.name, "device connected");

        let ToServer::Hello(hello) = hear(&mut link).await? else { return Err(Ended::Control) };
        let welcome = self.welcome(&key, &hello.counters).await?;
        say(&mut link, &ToDevice::Welcome(welcome))?;
        link.flush().await?;
        loop {
            link.request().await?;
            let outcome = match hear(&mut link).await? {
                ToServer::Prepare(prepare) => self.prepare(&mut link, &key, device, prepare).await,
                ToServer::Infer(infer) => self.infer(&mut link, &key, device, infer).await,
                ToServer::Hello(_) => Err(Ended::Control),
            };
            match outcome {
                Ok(()) => {}
                Err(ended @ (Ended::Refused(refusal) | Ended::Unspent(refusal))) => {
                    info!(device = device.name, %refusal, "refused");
                    say(&mut link, &ToDevice::Refused(refusal))?;
                    link.flush().await?;
                    // What the device takes for spent and what is stored may differ now. The next session's
                    // greeting settles it.
                    if refusal == Refusal::Store {
                        return Err(Ended::Store);
                    }
                    if matches!(ended, Ended::Unspent(_)) {
                        return Err(ended);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn welcome(&self, device: &PublicKey, counters: &[u64; SLOTS]) -> Result<Welcome, Ended> {
        let mut buffer = [0; secure_router_core::spec::MAX_SPEC_BYTES];
        let spec = self.pool.spec.to_bytes(&mut buffer).map_err(|_| Ended::Control)?;
        let pool = heapless::Vec::from_slice(spec).map_err(|_| Ended::Control)?;
        let mut stock = heapless::Vec::<SlotStock, SLOTS>::new();
        for slot in self.pool.spec.slots() {
            let next = counters.get(usize::from(slot.code())).copied().unwrap_or(0);
            let met = self.stored(slot, |store| store.meet(device, slot, &self.fingerprint, next)).await?;
            stock.push(met).map_err(|_| Ended::Control)?;
        }
        Ok(Welcome { pool, stock })
    }

    /// What `work` makes of the store.
    async fn stored<T>(&self, slot: Slot, work: impl FnOnce(&Store) -> Result<T, StockError>) -> Result<T, Ended> {
        let store = self.store.lock().await;
        self.host.block(|| work(&store)).map_err(|error| refusal(&error, slot))
    }

    /// Offline: takes the device's corrections, asks the dealer, and puts both in stock.
    async fn prepare(
        &self,
        link: &mut DeviceLink<'_, H>,
        key: &PublicKey,
        device: &ServerDevice,
        Prepare { slot, counter }: Prepare,
    ) -> Result<(), Ended> {
        // Without a program the length of what follows is unknown: the session cannot go on.
        let layout = Program::of(&self.pool.spec, slot)?.layout()?;
        let corrections = link.message(FRAME_DATA, layout.correction_bytes() as usize, FRAME_PAYLOAD).await?;
        // An earlier session of the device, which it gave up, may still wait for this very item; asked for twice it would
        // be lost.
        let Some(_held) = UnderWay::new(&self.under_way, (key.0, slot, counter)) else {
            return Err(Ended::Refused(Refusal::Dealer));
        };
        let stock = self.stored(slot, |store| store.stock(key, slot)).await?;
        if stock.fresh != counter {
            return Err(Ended::Refused(Refusal::Counter(slot)));
        }
        let deal = Deal { device: *key, seed: device.device_seed(), slot, counter, bytes: layout.stock };
        let correlations = match self.dealer.deal(deal).await {
            Ok(correlations) => correlations,
            Err(error) => {
                warn!(%error, program = slot_name(&self.pool.spec, slot), counter, "no stock from the dealer");
                return Err(match error {
                    // Dealt, and lost before they were stored: these counters will never be in stock.
                    DealError::Refused(DealRefusal::Counter { next }) => {
                        self.stored(slot, |store| store.skip(key, slot, counter, next)).await?;
                        Ended::Refused(Refusal::Counter(slot))
                    }
                    DealError::Refused(DealRefusal::Budget) => Ended::Refused(Refusal::PrivacyBudget),
                    DealError::Refused(DealRefusal::Routing) => Ended::Refused(Refusal::Routing),
                    _ => Ended::Refused(Refusal::Dealer),
                });
            }
        };
        let item = Item { correlations, corrections };
        let put = |store: &Store| {
            store.put(key, slot, counter, &self.fingerprint, &item)?;
            store.stock(key, slot)
        };
        let stock = self.stored(slot, put).await?;
        say(link, &ToDevice::Prepared(PreparedStock { stock }))?;
        Ok(link.flush().await?)
    }

    /// Online: runs one program.
    async fn infer(
        &self,
        link: &mut DeviceLink<'_, H>,
        key: &PublicKey,
        device: &ServerDevice,
        Infer { slot, counter, lambda, allowed, link: profile }: Infer,
    ) -> Result<(), Ended> {
        let scores = self.pool.scores(lambda, allowed, &profile)?;
        let program = Program::of(&self.pool.spec, slot)?;
        let secrets = self.pool.secrets(slot).ok_or(Ended::Control)?;
        // Spent before a byte of the masked input is read: a link that ends inside the input leaves
        // no counter that a device put back to an old state could use for another one.
        // A route that only quotas see is no answer, if no label is told beside it; any other counts, and so does what is asked for next.
        let free = matches!(program, Program::Router { routing: Routing::Device, spec, .. } if spec.answers == 0);
        let charge = if free { Charge::Free } else { Charge::Answer { most: device.queries } };
        let spent = self.stored(slot, |store| store.spend(key, slot, counter, &self.fingerprint, charge)).await;
        if let Err(Ended::Refused(refusal @ (Refusal::Counter(_) | Refusal::Store))) = spent {
            // Of a device that was, or will be, put back to an old state: another input may lie under these masks.
            return Err(Ended::Unspent(refusal));
        }
        // The input follows the request whatever else becomes of it, so it is taken even if there is no
        // item: a refusal then finds both ends between two requests.
        let input = match program.gate(0)?.and_then(|gate| gate.messages().first().copied()) {
            Some(message) => link.message(FRAME_DATA, message.bytes(), FRAME_PAYLOAD).await?,
            None => return Err(Ended::Control),
        };
        let item = spent?;
        let mut work = vec![0; server::work_words(&program)?];
        let stock = Stock { correlations: &item.correlations, corrections: &item.corrections };
        let run_key = server_key(&device.dealer_seed(), &self.fingerprint, slot, counter);
        let mut run = Server::new(program, secrets.parameters(), run_key, stock, self.pool.bias(&scores), &mut work)?;

        let mut meter = Meter::default();
        meter.turn(true);
        meter.computing(|| run.receive(&input))?;
        let mut message = Vec::new();
        loop {
            match run.turn() {
                Turn::Done => break,
                Turn::Send(next) => {
                    meter.turn(false);
                    message.resize(next.bytes(), 0);
                    let bytes = meter.computing(|| run.send(&mut message))?;
                    link.queue_message(FRAME_DATA, message.get(..bytes).unwrap_or(&[]), FRAME_PAYLOAD)?;
                    link.flush().await?;
                }
                Turn::Receive(next) => {
                    meter.turn(true);
                    let bytes = link.message(FRAME_DATA, next.bytes(), FRAME_PAYLOAD).await?;
                    meter.computing(|| run.receive(&bytes))?;
                }
            }
        }
        self.record(slot, &meter);
        Ok(())
    }

    fn record(&self, slot: Slot, meter: &Meter) {
        let Some(file) = &self.records else { return };
        let record = Record {
            program: slot_name(&self.pool.spec, slot),
            half_trips: meter.half_trips,
            compute_ms: meter.compute.as_secs_f64() * 1e3,
        };
        let written = serde_json::to_string(&record).map_err(std::io::Error::from).and_then(|line| {
            use std::io::Write;
            match file.lock() {
                Ok(mut file) => writeln!(file, "{line}"),
                Err(_) => Ok(()),
            }
        });
        if let Err(error) = written {
            warn!(%error, "cannot write a record");
        }
    }
}

/// Counts turns as they happen and times the server's own work.
#[derive(Default)]
struct Meter {
    half_trips: u32,
    from_device: Option<bool>,
    compute: Duration,
}

impl Meter {
    fn turn(&mut self, from_device: bool) {
        if self.from_device != Some(from_device) {
            self.half_trips += 1;
            self.from_device = Some(from_device);
        }
    }

    fn computing<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.compute += start.elapsed();
        result
    }
}

fn refusal(error: &StockError, slot: Slot) -> Ended {
    Ended::Refused(match error {
        StockError::Counter(_) => Refusal::Counter(slot),
        StockError::Empty => Refusal::StockEmpty(slot),
        StockError::Budget => Refusal::QueryBudget,
        StockError::Store(error) => {
            warn!(%error, "stock store");
            Refusal::Store
        }
    })
}

async fn hear<S: AsyncRead + AsyncWrite + Unpin>(link: &mut Link<'_, S>) -> Result<ToServer, Ended> {
    match link.frame().await? {
        (FRAME_CONTROL, payload) => ToServer::from_bytes(payload).map_err(|_| Ended::Control),
        _ => Err(LinkError::Frame.into()),
    }
}

fn say<S: AsyncRead + AsyncWrite + Unpin>(link: &mut Link<'_, S>, message: &ToDevice) -> Result<(), Ended> {
    let mut buffer = [0; FRAME_PAYLOAD];
    let bytes = message.to_bytes(&mut buffer).map_err(|_| Ended::Control)?;
    Ok(link.queue(FRAME_CONTROL, buffer.get(..bytes).unwrap_or(&[]))?)
}
