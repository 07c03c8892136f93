//! The dealer: a process of its own that answers one server, over an encrypted link.
//!
//! The server registers, per device and program, its masked weights and its tables; then asks for
//! stock by counter. A counter is dealt at most once, durably: dealing it twice over two sets of
//! weights would tell the server the device's masks. The same transaction adds up what the device's routes
//! cost, over all pools.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use redb::{Database, DatabaseError, ReadableTable, TableDefinition};
use secure_router_core::channel::{Link as Kind, PublicKey, StaticSecret};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::dealer::{self, MaskedParameters};
use secure_router_core::keys::{Seed, weight_key};
use secure_router_core::routing::UNBOUNDED;
use secure_router_core::server::mask_weights;
use secure_router_core::spec::PoolSpec;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::database::{self, Durable};
use crate::host::{Host, Listen, Machine};
use crate::link::{Link, LinkError, Patience, accept};
use crate::pool::{Pool, Secrets};
use crate::provision::DealerFile;

/// Payload bytes of a full frame on this link.
const FRAME: usize = 32 * 1024;
const BUFFER: usize = secure_router_core::channel::buffer_bytes(FRAME);
const CONTROL: u8 = 1;
const DATA: u8 = 2;
/// Links that a server keeps to its dealer: so many requests are under way at once.
const LINKS: usize = 4;

/// What the server asks.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Masked weights (u32) and tables (i16), little-endian, follow as one message.
    Register { device: [u8; 32], pool: Vec<u8>, slot: Slot },
    /// Deal one inference.
    Deal { device: [u8; 32], fingerprint: [u8; 32], slot: Slot, counter: u64 },
}

/// What the dealer says.
#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Registered,
    /// The stock item follows as one message of this length.
    Dealt {
        bytes: u64,
    },
    Refused(DealRefusal),
}

/// Why the dealer does not deal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum DealRefusal {
    /// The device is not provisioned here.
    #[error("the dealer does not know this device")]
    UnknownDevice,
    /// The pool's spec is not valid.
    #[error("the dealer cannot read the pool's spec")]
    Spec,
    /// This program was not registered since the dealer started.
    #[error("the program is not registered with the dealer")]
    NotRegistered,
    /// The counter was dealt before.
    #[error("the dealer has dealt this counter before, and all below {next}")]
    Counter {
        /// The lowest that was not.
        next: u64,
    },
    /// The dealer's store failed.
    #[error("the dealer's store failed")]
    Store,
    /// The epsilons of this device's routes would pass its budget.
    #[error("the device's privacy budget is used up")]
    Budget,
    /// The pool routes openly, and the device has a budget.
    #[error("the device has a privacy budget and the pool routes openly")]
    Routing,
}

/// Device and slot to the lowest counter that was never dealt.
const DEALT: TableDefinition<'_, ([u8; 32], u8), u64> = TableDefinition::new("dealt");

/// Device to the thousandths of epsilon that were dealt to it.
const EPSILONS: TableDefinition<'_, [u8; 32], u64> = TableDefinition::new("epsilons");

struct Registered {
    program: Program,
    weights: Vec<u32>,
    tables: Vec<i16>,
}

type Key = ([u8; 32], [u8; 32], u8);

/// The dealer's state.
pub struct Dealer<H = Machine> {
    host: H,
    keys: DealerFile,
    secret: StaticSecret,
    dealt: Durable,
    patience: Patience,
    registered: Mutex<HashMap<Key, Arc<Registered>>>,
}

impl Dealer {
    /// A dealer of provisioned keys that records dealt counters at `store`.
    ///
    /// # Errors
    /// A blank key, or a store that cannot be opened.
    pub fn new(keys: DealerFile, store: &Path, patience: Patience) -> Result<Self> {
        let path = store.to_owned();
        let dealer = Self::on(Machine, keys, move || database::open(&path), patience);
        dealer.with_context(|| format!("cannot open the dealer's store {}", store.display()))
    }
}

impl<H: Host> Dealer<H> {
    /// As [`new`](Dealer::new), on any machine; `open` opens the database, now and after each failure.
    ///
    /// # Errors
    /// A blank key, or a store that cannot be opened.
    pub fn on(
        host: H,
        keys: DealerFile,
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
        patience: Patience,
    ) -> Result<Self> {
        let dealer = Self {
            host,
            secret: keys.secret()?,
            keys,
            dealt: Durable::new(open)?,
            patience,
            registered: Mutex::default(),
        };
        dealer.store(|dealt| {
            let write = dealt.begin_write()?;
            write.open_table(DEALT)?;
            write.open_table(EPSILONS)?;
            Ok(write.commit()?)
        })?;
        Ok(dealer)
    }

    fn store<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        self.dealt.with(|_| true, work)
    }

    /// Answers servers on `listener` until it is dropped.
    pub async fn run(self: Arc<Self>, listener: impl Listen<Stream = H::Stream>) {
        accept(listener, |stream, from| {
            let dealer = Arc::clone(&self);
            async move {
                match dealer.answer(stream).await {
                    Ok(()) | Err(LinkError::Ended) => debug!(%from, "server left"),
                    Err(error) => warn!(%from, %error, "link to a server ended"),
                }
            }
        })
        .await
    }

    async fn answer(&self, stream: H::Stream) -> Result<(), LinkError> {
        let (mut rx, mut tx) = (vec![0; BUFFER], vec![0; BUFFER]);
        let server = self.keys.server();
        let known = |key: &PublicKey| *key == server;
        let buffers = (rx.as_mut_slice(), tx.as_mut_slice());
        let kind = Kind::ServerDealer;
        let mut link =
            Link::answer(kind, &self.secret, known, &mut self.host.random(), stream, buffers, self.patience).await?;
        info!("server connected");
        loop {
            link.request().await?;
            let (CONTROL, payload) = link.frame().await? else { return Err(LinkError::Frame) };
            match postcard::from_bytes(payload).map_err(|_| LinkError::Frame)? {
                Ask::Register { device, pool, slot } => {
                    let tell = match registration(&pool, slot) {
                        // Without its lengths the message that follows cannot be skipped.
                        None => return Err(LinkError::Frame),
                        Some((program, fingerprint, weights, tables)) => {
                            let bytes = link.message(DATA, 4 * weights + 2 * tables, FRAME).await?;
                            let (weights, tables) = bytes.split_at(4 * weights);
                            let registered = Registered {
                                program,
                                weights: weights.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
                                tables: tables.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect(),
                            };
                            if self.keys.device(&PublicKey(device)).is_none() {
                                Tell::Refused(DealRefusal::UnknownDevice)
                            } else {
                                if let Ok(mut all) = self.registered.lock() {
                                    // A server that comes back with another pool does not come back with the old one.
                                    all.retain(|(of, _, program), _| *of != device || *program != slot.code());
                                    all.insert((device, fingerprint, slot.code()), Arc::new(registered));
                                }
                                Tell::Registered
                            }
                        }
                    };
                    say(&mut link, &tell)?;
                }
                Ask::Deal { device, fingerprint, slot, counter } => {
                    match self.deal(&PublicKey(device), &fingerprint, slot, counter) {
                        Ok(stock) => {
                            say(&mut link, &Tell::Dealt { bytes: stock.len() as u64 })?;
                            link.queue_message(DATA, &stock, FRAME)?;
                        }
                        Err(refusal) => say(&mut link, &Tell::Refused(refusal))?,
                    }
                }
            }
            link.flush().await?;
        }
    }

    fn deal(
        &self,
        device: &PublicKey,
        fingerprint: &[u8; 32],
        slot: Slot,
        counter: u64,
    ) -> Result<Vec<u8>, DealRefusal> {
        let known = self.keys.device(device).ok_or(DealRefusal::UnknownDevice)?;
        let key = (device.0, *fingerprint, slot.code());
        let registered = self.registered.lock().ok().and_then(|all| all.get(&key).cloned());
        let registered = registered.ok_or(DealRefusal::NotRegistered)?;
        let leak = match registered.program {
            Program::Router { routing, .. } => routing.leak(),
            Program::Model { .. } => 0,
        };
        match self.host.block(|| self.record(device, slot, counter, leak, known.budget)) {
            Ok(None) => {}
            Ok(Some(refusal)) => return Err(refusal),
            Err(error) => {
                warn!(%error, "the store of dealt counters failed");
                return Err(DealRefusal::Store);
            }
        }
        let deal = || -> Result<Vec<u8>, dealer::DealerError> {
            let parameters = MaskedParameters { weights: &registered.weights, tables: &registered.tables };
            let mut work = vec![0; dealer::work_words(&registered.program)?];
            let mut stock = vec![0; registered.program.layout()?.stock as usize];
            let keys = known.seeds().keys(fingerprint, slot, counter);
            dealer::deal(&registered.program, &keys, &parameters, &mut self.host.random(), &mut work, &mut stock)?;
            Ok(stock)
        };
        self.host.block(deal).map_err(|_| DealRefusal::Spec)
    }

    /// Records that `counter` is dealt and what it may tell; refuses if it, or a later one, was dealt before, or if
    /// it would tell more than is left of `budget`.
    fn record(
        &self,
        device: &PublicKey,
        slot: Slot,
        counter: u64,
        leak: u32,
        budget: Option<u32>,
    ) -> Result<Option<DealRefusal>, redb::Error> {
        let key = (device.0, slot.code());
        self.store(|dealt| {
            let write = dealt.begin_write()?;
            {
                let mut dealt = write.open_table(DEALT)?;
                let lowest = dealt.get(key)?.map_or(0, |next| next.value());
                let Some(next) = counter.checked_add(1).filter(|_| counter >= lowest) else {
                    return Ok(Some(DealRefusal::Counter { next: lowest }));
                };
                dealt.insert(key, next)?;
                // An open route has no epsilon to add.
                if leak != UNBOUNDED {
                    let mut epsilons = write.open_table(EPSILONS)?;
                    let told = epsilons.get(device.0)?.map_or(0, |told| told.value()) + u64::from(leak);
                    if budget.is_some_and(|budget| told > u64::from(budget)) {
                        return Ok(Some(DealRefusal::Budget));
                    }
                    epsilons.insert(device.0, told)?;
                } else if budget.is_some() {
                    return Ok(Some(DealRefusal::Routing));
                }
            }
            write.commit()?;
            Ok(None)
        })
    }
}

/// Program, fingerprint, weights and table entries of a registration.
fn registration(pool: &[u8], slot: Slot) -> Option<(Program, [u8; 32], usize, usize)> {
    let spec = PoolSpec::from_bytes(pool).ok()?;
    let program = Program::of(&spec, slot).ok()?;
    let layout = program.layout().ok()?;
    Some((program, spec.fingerprint().ok()?, layout.weights as usize, layout.tables as usize))
}

fn say<S: AsyncRead + AsyncWrite + Unpin>(link: &mut Link<'_, S>, tell: &Tell) -> Result<(), LinkError> {
    link.queue(CONTROL, &postcard::to_stdvec(tell).map_err(|_| LinkError::Frame)?)
}

/// Why the server has no stock from its dealer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DealError {
    /// The link failed.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// All links to the dealer have been busy for too long.
    #[error("all links to the dealer are busy")]
    Busy,
    /// The dealer refused.
    #[error("{0}")]
    Refused(DealRefusal),
    /// Nobody waits for the item any more, so it was not asked for.
    #[error("nobody waits for the item")]
    Unwanted,
}

impl From<std::io::Error> for DealError {
    fn from(error: std::io::Error) -> Self {
        Self::Link(error.into())
    }
}

/// One item that the server wants.
#[derive(Debug)]
pub struct Deal {
    /// For this device,
    pub device: PublicKey,
    /// with which the server shares this seed.
    pub seed: Seed,
    /// Program.
    pub slot: Slot,
    /// Counter.
    pub counter: u64,
    /// Bytes of the item.
    pub bytes: u64,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// For a link.
    Waits,
    /// A link has it.
    Taken,
    /// The dealer has answered: whatever there is to send goes on as long as it does not stop.
    Moves,
}

/// What somebody waits for.
struct Wanted {
    deal: Deal,
    stage: watch::Sender<Stage>,
    reply: oneshot::Sender<Result<Vec<u8>, DealError>>,
}

/// Where the dealer is, who it is, and as whom the server asks it.
pub struct Peer {
    /// Its address.
    pub address: String,
    /// Its key.
    pub key: PublicKey,
    /// The server's.
    pub own: StaticSecret,
}

/// The server's end: a few links to the dealer, dialled when they are needed, that take the requests in turn.
pub struct DealerHandle {
    requests: mpsc::Sender<Wanted>,
    patience: Patience,
    /// One task per link; they end with the handle.
    _links: JoinSet<()>,
}

impl DealerHandle {
    /// Starts the links' tasks.
    #[must_use]
    pub fn start<H: Host>(
        host: Arc<H>,
        peer: Peer,
        pool: Arc<Pool>,
        fingerprint: [u8; 32],
        patience: Patience,
    ) -> Self {
        let (requests, waiting) = mpsc::channel(LINKS);
        let client = Arc::new(Client { host, peer, pool, fingerprint, patience });
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        let mut links = JoinSet::new();
        for _ in 0..LINKS {
            links.spawn(Arc::clone(&client).serve(Arc::clone(&waiting)));
        }
        Self { requests, patience, _links: links }
    }

    /// One item, over however slow a link: a link must be free in time, the dealer answer in time, and then not fall
    /// silent.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn deal(&self, deal: Deal) -> Result<Vec<u8>, DealError> {
        let (stage, mut reached) = watch::channel(Stage::Waits);
        let (reply, mut answer) = oneshot::channel();
        let taken = async {
            self.requests.send(Wanted { deal, stage, reply }).await.map_err(|_| LinkError::Ended)?;
            reached.wait_for(|stage| *stage >= Stage::Taken).await.map(|_| ()).map_err(|_| LinkError::Ended)
        };
        timeout(self.patience.exchange, taken).await.map_err(|_| DealError::Busy)??;
        let early = async {
            tokio::select! {
                biased;
                answer = &mut answer => Some(answer),
                Ok(_) = reached.wait_for(|stage| *stage >= Stage::Moves) => None,
            }
        };
        let early = timeout(self.patience.exchange, early).await.map_err(|_| LinkError::Silent)?;
        let answer = if let Some(answer) = early { answer } else { answer.await };
        answer.map_err(|_| LinkError::Ended)?
    }
}

type Waiting = tokio::sync::Mutex<mpsc::Receiver<Wanted>>;

/// What the links' tasks share.
struct Client<H> {
    host: Arc<H>,
    peer: Peer,
    pool: Arc<Pool>,
    fingerprint: [u8; 32],
    patience: Patience,
}

impl<H: Host> Client<H> {
    /// Answers requests over one link after the other.
    async fn serve(self: Arc<Self>, waiting: Arc<Waiting>) {
        let mut next = take(&waiting).await;
        while let Some(wanted) = next {
            next = self.over_a_link(wanted, &waiting).await;
        }
    }

    /// Answers requests over one link until it is lost; the request that came then.
    async fn over_a_link(&self, mut wanted: Wanted, waiting: &Waiting) -> Option<Wanted> {
        let (mut rx, mut tx) = (vec![0; BUFFER], vec![0; BUFFER]);
        let mut link = match self.dial((&mut rx, &mut tx)).await {
            Ok(link) => link,
            Err(error) => {
                let _ = wanted.reply.send(Err(error));
                return take(waiting).await;
            }
        };
        let mut new = true;
        loop {
            let dealt = link.item(&wanted, &self.pool, &self.fingerprint).await;
            let lost = matches!(dealt, Err(DealError::Link(_)));
            // The dealer may have ended a link that was not used for long, or started again. Should it have dealt
            // for this request, it will say so.
            if lost && !new && !wanted.reply.is_closed() {
                return Some(wanted);
            }
            let _ = wanted.reply.send(dealt);
            if lost {
                // Let go of at once, not when the next request comes.
                drop(link);
                return take(waiting).await;
            }
            wanted = take(waiting).await?;
            new = false;
        }
    }

    async fn dial<'b>(&self, buffers: (&'b mut [u8], &'b mut [u8])) -> Result<DealerClient<'b, H::Stream>, DealError> {
        let connecting = timeout(self.patience.exchange, self.host.dial(&self.peer.address)).await;
        let stream = connecting.map_err(|_| LinkError::Silent)??;
        let (kind, own, key) = (Kind::ServerDealer, &self.peer.own, self.peer.key);
        let link = Link::dial(kind, own, key, &mut self.host.random(), stream, buffers, self.patience).await?;
        Ok(DealerClient { link })
    }
}

/// The next request that somebody still waits for.
async fn take(waiting: &Waiting) -> Option<Wanted> {
    loop {
        let wanted = waiting.lock().await.recv().await?;
        if !wanted.reply.is_closed() {
            wanted.stage.send_replace(Stage::Taken);
            return Some(wanted);
        }
    }
}

/// A link to the dealer.
struct DealerClient<'b, S> {
    link: Link<'b, S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> DealerClient<'_, S> {
    /// One item; the program is registered first if the dealer does not have it.
    async fn item(&mut self, wanted: &Wanted, pool: &Pool, fingerprint: &[u8; 32]) -> Result<Vec<u8>, DealError> {
        match self.deal(wanted, fingerprint).await {
            Err(DealError::Refused(DealRefusal::NotRegistered)) => {
                wanted.stage.send_replace(Stage::Moves);
                let Deal { device, seed, slot, .. } = &wanted.deal;
                let secrets = pool.secrets(*slot).ok_or(LinkError::Frame)?;
                self.register(device, seed, &pool.spec, *slot, secrets).await?;
                self.deal(wanted, fingerprint).await
            }
            other => other,
        }
    }

    /// Gives the dealer the masked weights of one program for one device.
    async fn register(
        &mut self,
        device: &PublicKey,
        device_server: &Seed,
        spec: &PoolSpec,
        slot: Slot,
        secrets: &Secrets,
    ) -> Result<(), DealError> {
        let mut buffer = [0; secure_router_core::spec::MAX_SPEC_BYTES];
        let pool = spec.to_bytes(&mut buffer).map_err(|_| LinkError::Frame)?.to_vec();
        let fingerprint = spec.fingerprint().map_err(|_| LinkError::Frame)?;
        let program = Program::of(spec, slot).map_err(|_| LinkError::Frame)?;
        let weights = secrets.parameters().weights;
        let mut masked = vec![0; weights.len()];
        let key = weight_key(device_server, &fingerprint, slot);
        mask_weights(&program, &key, weights, &mut masked).map_err(|_| LinkError::Frame)?;
        let mut bytes: Vec<u8> = masked.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(secrets.parameters().tables.iter().flat_map(|entry| entry.to_le_bytes()));
        self.ask(&Ask::Register { device: device.0, pool, slot })?;
        self.link.queue_message(DATA, &bytes, FRAME)?;
        match self.told().await? {
            Tell::Registered => Ok(()),
            Tell::Refused(refusal) => Err(DealError::Refused(refusal)),
            Tell::Dealt { .. } => Err(LinkError::Frame.into()),
        }
    }

    async fn deal(&mut self, wanted: &Wanted, fingerprint: &[u8; 32]) -> Result<Vec<u8>, DealError> {
        let Deal { device, slot, counter, bytes, .. } = wanted.deal;
        // An item is dealt once: what nobody waits for would be lost, and of a private route its epsilon.
        if wanted.reply.is_closed() {
            return Err(DealError::Unwanted);
        }
        self.ask(&Ask::Deal { device: device.0, fingerprint: *fingerprint, slot, counter })?;
        match self.told().await? {
            Tell::Dealt { bytes: said } if said == bytes => {
                wanted.stage.send_replace(Stage::Moves);
                Ok(self.link.message(DATA, bytes as usize, FRAME).await?)
            }
            Tell::Refused(refusal) => Err(DealError::Refused(refusal)),
            _ => Err(LinkError::Frame.into()),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Result<(), LinkError> {
        self.link.queue(CONTROL, &postcard::to_stdvec(ask).map_err(|_| LinkError::Frame)?)
    }

    async fn told(&mut self) -> Result<Tell, LinkError> {
        self.link.flush().await?;
        let (CONTROL, payload) = self.link.frame().await? else { return Err(LinkError::Frame) };
        postcard::from_bytes(payload).map_err(|_| LinkError::Frame)
    }
}
