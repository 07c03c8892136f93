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
use redb::{Database, ReadableTable, TableDefinition};
use secure_router_core::channel::{Link as Kind, PublicKey, StaticSecret};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::dealer::{self, MaskedParameters};
use secure_router_core::keys::{Seed, weight_key};
use secure_router_core::routing::UNBOUNDED;
use secure_router_core::server::mask_weights;
use secure_router_core::spec::PoolSpec;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::link::{Link, LinkError, accept};
use crate::pool::{Pool, Secrets};
use crate::provision::{DealerFile, random};

/// Payload bytes of a full frame on this link.
const FRAME: usize = 32 * 1024;
const BUFFER: usize = secure_router_core::channel::buffer_bytes(FRAME);
const CONTROL: u8 = 1;
const DATA: u8 = 2;

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
    #[error("the dealer has dealt this counter before")]
    Counter,
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
pub struct Dealer {
    keys: DealerFile,
    secret: StaticSecret,
    dealt: Database,
    registered: Mutex<HashMap<Key, Arc<Registered>>>,
}

impl Dealer {
    /// A dealer of provisioned keys that records dealt counters at `store`.
    ///
    /// # Errors
    /// A blank key, or a store that cannot be opened.
    pub fn new(keys: DealerFile, store: &Path) -> Result<Self> {
        let dealt =
            Database::create(store).with_context(|| format!("cannot open the dealer's store {}", store.display()))?;
        let write = dealt.begin_write()?;
        write.open_table(DEALT)?;
        write.open_table(EPSILONS)?;
        write.commit()?;
        Ok(Self { secret: keys.secret()?, keys, dealt, registered: Mutex::default() })
    }

    /// Answers servers on `listener` until the process ends.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
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

    async fn answer(&self, stream: TcpStream) -> Result<(), LinkError> {
        let (mut rx, mut tx) = (vec![0; BUFFER], vec![0; BUFFER]);
        let server = self.keys.server();
        let known = |key: &PublicKey| *key == server;
        let buffers = (rx.as_mut_slice(), tx.as_mut_slice());
        let mut link = Link::answer(Kind::ServerDealer, &self.secret, known, &mut random(), stream, buffers).await?;
        info!("server connected");
        loop {
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
        match self.record(device, slot, counter, leak, known.budget) {
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
            dealer::deal(&registered.program, &keys, &parameters, &mut random(), &mut work, &mut stock)?;
            Ok(stock)
        };
        tokio::task::block_in_place(deal).map_err(|_| DealRefusal::Spec)
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
    ) -> Result<Option<DealRefusal>> {
        let key = (device.0, slot.code());
        let write = self.dealt.begin_write()?;
        {
            let mut dealt = write.open_table(DEALT)?;
            let lowest = dealt.get(key)?.map_or(0, |next| next.value());
            let Some(next) = counter.checked_add(1).filter(|_| counter >= lowest) else {
                return Ok(Some(DealRefusal::Counter));
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
    }
}

/// Program, fingerprint, weights and table entries of a registration.
fn registration(pool: &[u8], slot: Slot) -> Option<(Program, [u8; 32], usize, usize)> {
    let spec = PoolSpec::from_bytes(pool).ok()?;
    let program = Program::of(&spec, slot).ok()?;
    let layout = program.layout().ok()?;
    Some((program, spec.fingerprint().ok()?, layout.weights as usize, layout.tables as usize))
}

fn say<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    link: &mut Link<'_, S>,
    tell: &Tell,
) -> Result<(), LinkError> {
    link.queue(CONTROL, &postcard::to_stdvec(tell).map_err(|_| LinkError::Frame)?)
}

/// Why the server has no stock from its dealer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DealError {
    /// The link failed.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The dealer refused.
    #[error("{0}")]
    Refused(DealRefusal),
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

type Reply = oneshot::Sender<Result<Vec<u8>, DealError>>;

/// The server's end: a task that owns the link to the dealer and dials again when it is lost.
pub struct DealerHandle {
    requests: mpsc::Sender<(Deal, Reply)>,
}

impl DealerHandle {
    /// Starts the task. The dealer is dialled at the first request.
    #[must_use]
    pub fn start(
        address: String,
        own: StaticSecret,
        dealer: PublicKey,
        pool: Arc<Pool>,
        fingerprint: [u8; 32],
    ) -> Self {
        let (requests, mut waiting) = mpsc::channel::<(Deal, Reply)>(64);
        tokio::spawn(async move {
            let mut next = waiting.recv().await;
            while let Some((deal, reply)) = next {
                let (mut rx, mut tx) = (vec![0; BUFFER], vec![0; BUFFER]);
                let mut client = match DealerClient::dial(&address, &own, dealer, (&mut rx, &mut tx)).await {
                    Ok(client) => client,
                    Err(error) => {
                        let _ = reply.send(Err(error));
                        next = waiting.recv().await;
                        continue;
                    }
                };
                // A link that breaks is dialled anew for the next request: this one may have been
                // dealt, and a counter is dealt once.
                let (mut deal, mut reply) = (deal, reply);
                loop {
                    let dealt = client.item(&deal, &pool, &fingerprint).await;
                    let lost = matches!(dealt, Err(DealError::Link(_)));
                    let _ = reply.send(dealt);
                    next = waiting.recv().await;
                    match next.take() {
                        Some(more) if !lost => (deal, reply) = more,
                        last => {
                            next = last;
                            break;
                        }
                    }
                }
            }
        });
        Self { requests }
    }

    /// One item.
    ///
    /// # Errors
    /// [`DealError`].
    pub async fn deal(&self, deal: Deal) -> Result<Vec<u8>, DealError> {
        let (reply, answer) = oneshot::channel();
        let ended = |_| DealError::Link(LinkError::Ended);
        self.requests.send((deal, reply)).await.map_err(|_| DealError::Link(LinkError::Ended))?;
        answer.await.map_err(ended)?
    }
}

/// A link to the dealer.
struct DealerClient<'b> {
    link: Link<'b, TcpStream>,
}

impl<'b> DealerClient<'b> {
    async fn dial(
        address: &str,
        own: &StaticSecret,
        dealer: PublicKey,
        (rx, tx): (&'b mut [u8], &'b mut [u8]),
    ) -> Result<Self, DealError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { link: Link::dial(Kind::ServerDealer, own, dealer, &mut random(), stream, (rx, tx)).await? })
    }

    /// One item; the program is registered first if the dealer does not have it.
    async fn item(&mut self, deal: &Deal, pool: &Pool, fingerprint: &[u8; 32]) -> Result<Vec<u8>, DealError> {
        match self.deal(deal, fingerprint).await {
            Err(DealError::Refused(DealRefusal::NotRegistered)) => {
                let secrets = pool.secrets(deal.slot).ok_or(LinkError::Frame)?;
                self.register(&deal.device, &deal.seed, &pool.spec, deal.slot, secrets).await?;
                self.deal(deal, fingerprint).await
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

    async fn deal(&mut self, deal: &Deal, fingerprint: &[u8; 32]) -> Result<Vec<u8>, DealError> {
        let Deal { device, slot, counter, .. } = *deal;
        self.ask(&Ask::Deal { device: device.0, fingerprint: *fingerprint, slot, counter })?;
        match self.told().await? {
            Tell::Dealt { bytes } if bytes == deal.bytes => Ok(self.link.message(DATA, bytes as usize, FRAME).await?),
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
