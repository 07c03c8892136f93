//! Parties for tests: a dealer and a server on loopback, and devices that dial them.

pub mod exact;
pub mod ledger;
pub mod process;
pub mod sim;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ledger::Ledger;
use secure_router::dealer::Dealer;
use secure_router::device::{self, DriverError, run};
use secure_router::examples::Examples;
use secure_router::link::{Moved, Patience};
use secure_router::pool::Pool;
use secure_router::provision::{self, Budgets, DeviceFile, random};
use secure_router::server::Service;
use secure_router_core::circuit::Slot;
use secure_router_core::session::{DeviceIdentity, DeviceMemory, DeviceSession, Event, LinkProfile, Request};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Words of work space, as the firmware has it.
const WORK_WORDS: usize = 4096;

/// The committed pool.
pub const POOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../harness/pools/speech/pool.safetensors");
/// Its test split.
pub const TEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../harness/pools/speech/test.safetensors");

/// A dealer and a server, their keys, and what they keep.
pub struct Parties {
    directory: TempDir,
    dealer: JoinHandle<()>,
    server: JoinHandle<()>,
    /// Where the dealer listens.
    pub dealer_address: String,
    /// Where the server listens.
    pub server_address: String,
}

impl Parties {
    /// Starts both, for devices of these names.
    ///
    /// # Errors
    /// Whatever keeps them from starting.
    pub async fn start(devices: &[&str]) -> Result<Self> {
        let unlimited: Vec<_> = devices.iter().map(|device| (*device, Budgets::default())).collect();
        Self::start_with(&unlimited, Pool::load(POOL.as_ref())?).await
    }

    /// Starts both, for devices with budgets and of this pool.
    ///
    /// # Errors
    /// Whatever keeps them from starting.
    pub async fn start_with(devices: &[(&str, Budgets)], pool: Pool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for (device, budgets) in devices {
            provision::provision_with(directory.path(), device, *budgets)?;
        }
        let (dealer_address, dealer) = start_dealer(&directory).await?;
        let (server_address, server) = start_server(&directory, &dealer_address, pool).await?;
        Ok(Self { directory, dealer, server, dealer_address, server_address })
    }

    /// Ends both and starts others over the same stores; `pool` replaces the pool.
    ///
    /// # Errors
    /// Whatever keeps them from starting.
    pub async fn restart(&mut self, pool: Pool) -> Result<()> {
        self.stop_server().await;
        self.stop_dealer().await;
        let mut last = None;
        for _ in 0..1000 {
            // The old dealer's sessions let go of its store as they are dropped, one by one.
            match start_dealer(&self.directory).await {
                Ok(started) => {
                    (self.dealer_address, self.dealer) = started;
                    return self.restart_server(pool).await;
                }
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        last.map_or(Ok(()), Err)
    }

    /// Ends the server and starts another over the same stock; `pool` replaces its pool.
    ///
    /// # Errors
    /// Whatever keeps it from starting.
    pub async fn restart_server(&mut self, pool: Pool) -> Result<()> {
        self.stop_server().await;
        // The old server's sessions let go of its store as they are dropped, one by one.
        let mut last = None;
        for _ in 0..1000 {
            match start_server(&self.directory, &self.dealer_address, pool.clone()).await {
                Ok(started) => {
                    (self.server_address, self.server) = started;
                    return Ok(());
                }
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        last.map_or(Ok(()), Err)
    }

    /// Ends the server.
    pub async fn stop_server(&mut self) {
        self.server.abort();
        if !self.server.is_finished() {
            let _ = (&mut self.server).await;
        }
    }

    /// Ends the dealer.
    pub async fn stop_dealer(&mut self) {
        self.dealer.abort();
        let _ = (&mut self.dealer).await;
    }

    /// A file of this test's own.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Connects device `name` to the server.
    ///
    /// # Errors
    /// The session's.
    pub async fn connect(&self, name: &str) -> Result<Device> {
        Device::connect(self, name, &self.server_address).await
    }
}

impl AsRef<Path> for Parties {
    fn as_ref(&self) -> &Path {
        self.directory.path()
    }
}

async fn start_dealer(directory: &TempDir) -> Result<(String, JoinHandle<()>)> {
    let (_, keys, _) = provision::paths(directory.path(), "");
    let store = directory.path().join("dealer.redb");
    let dealer = Arc::new(Dealer::new(provision::read(&keys)?, &store, Patience::default())?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    Ok((address, tokio::spawn(dealer.run(listener))))
}

async fn start_server(directory: &TempDir, dealer: &str, pool: Pool) -> Result<(String, JoinHandle<()>)> {
    let (keys, _, _) = provision::paths(directory.path(), "");
    let store = directory.path().join("stock.redb");
    let service =
        Arc::new(Service::new(provision::read(&keys)?, pool, &store, dealer.to_owned(), Patience::default())?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    Ok((address, tokio::spawn(service.run(listener))))
}

/// A connected desktop device.
pub struct Device {
    /// The session.
    pub session: DeviceSession<'static, Ledger>,
    stream: TcpStream,
    /// Bytes moved.
    pub moved: Moved,
}

impl Device {
    /// Connects device `name`, whose keys and counters are in `directory`, by way of `address`.
    ///
    /// # Errors
    /// The session's.
    pub async fn connect(directory: impl AsRef<Path>, name: &str, address: &str) -> Result<Self> {
        Self::over(session(directory, name)?, address).await
    }

    /// Connects a session that has not met its server.
    ///
    /// # Errors
    /// The session's.
    pub async fn over(session: DeviceSession<'static, Ledger>, address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut device = Self { session, stream, moved: Moved::default() };
        match device.event().await? {
            Event::Ready => Ok(device),
            event => bail!("the server began with {event:?}"),
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// The session's, or the link's.
    pub async fn event(&mut self) -> Result<Event, DriverError> {
        run(&mut self.stream, &mut self.session, &mut self.moved, device::PATIENCE).await
    }

    /// Prepares one inference of each program.
    ///
    /// # Errors
    /// The session's, or a refusal.
    pub async fn prepare_all(&mut self) -> Result<()> {
        for slot in self.slots()? {
            self.prepare(slot).await?;
        }
        Ok(())
    }

    /// Prepares one inference of each program that asking `slot` may use, where there is none.
    ///
    /// # Errors
    /// The session's, or a refusal.
    pub async fn top_up(&mut self, slot: Slot) -> Result<()> {
        for used in self.slots()? {
            if (slot == Slot::Router || slot == used) && self.session.ready(used) == 0 {
                self.prepare(used).await?;
            }
        }
        Ok(())
    }

    /// The programs that fit.
    fn slots(&self) -> Result<Vec<Slot>> {
        let pool = self.session.pool().context("not connected")?;
        Ok(pool.slots().filter(|slot| self.session.fits(*slot).is_ok()).collect())
    }

    /// The session and its stream, for a device that leaves the protocol.
    #[must_use]
    pub fn into_parts(self) -> (DeviceSession<'static, Ledger>, TcpStream) {
        (self.session, self.stream)
    }

    /// Prepares one inference of `slot`.
    ///
    /// # Errors
    /// The session's, or a refusal.
    pub async fn prepare(&mut self, slot: Slot) -> Result<()> {
        self.session.prepare(slot)?;
        match self.event().await? {
            Event::Prepared(_) => Ok(()),
            Event::Refused(refusal) => bail!("{refusal}"),
            event => bail!("unexpected {event:?}"),
        }
    }

    /// Classifies `input`: the class, and the model that answered.
    ///
    /// # Errors
    /// The session's, or a refusal.
    pub async fn infer(&mut self, slot: Slot, input: &[i16]) -> Result<(usize, Slot)> {
        let model = self.ask(Request { slot, lambda: 0, link: LinkProfile::UART }, input).await?;
        Ok((self.session.class().context("no class")?, model))
    }

    /// Asks about `input`: the model that answered; the answer is with the session.
    ///
    /// # Errors
    /// The session's, or a refusal.
    pub async fn ask(&mut self, request: Request, input: &[i16]) -> Result<Slot> {
        self.session.infer(request, input)?;
        loop {
            match self.event().await? {
                Event::Routed(_) => {}
                Event::Answer => return self.session.answered_by().context("nobody answered"),
                Event::Refused(refusal) => bail!("{refusal}"),
                event => bail!("unexpected {event:?}"),
            }
        }
    }

    /// Bit `i` says that model `i` may be chosen.
    #[must_use]
    pub fn allowed(&self) -> u8 {
        (0..8).filter(|model| self.session.fits(Slot::Model(*model)).is_ok()).fold(0, |bits, model| bits | 1 << model)
    }
}

/// A session of device `name` that has not met its server; keys and counters are in `directory`. Its buffers live as
/// long as the test.
///
/// # Errors
/// Files that cannot be read.
pub fn session(directory: impl AsRef<Path>, name: &str) -> Result<DeviceSession<'static, Ledger>> {
    let directory = directory.as_ref();
    let ledger = Ledger::open(&directory.join(format!("counters-{name}")))?;
    session_with(directory, name, ledger, WORK_WORDS)
}

/// As [`session`], with counters and work space of the caller's.
///
/// # Errors
/// Files that cannot be read.
pub fn session_with(
    directory: &Path,
    name: &str,
    ledger: Ledger,
    work_words: usize,
) -> Result<DeviceSession<'static, Ledger>> {
    let (_, _, keys) = provision::paths(directory, name);
    let keys: DeviceFile = provision::read(&keys)?;
    let (secret, seeds) = (keys.secret()?, keys.seeds());
    let identity = DeviceIdentity { secret: &secret, server: keys.server(), seeds: &seeds, routing: keys.routing() };
    let memory = DeviceMemory {
        rx: vec![0; DeviceMemory::FRAME_BYTES].leak(),
        tx: vec![0; DeviceMemory::FRAME_BYTES].leak(),
        work: vec![0; work_words].leak(),
        input: vec![0; 1024].leak(),
    };
    Ok(DeviceSession::connect(identity, memory, 4, ledger, &mut random())?)
}

/// The committed test split.
///
/// # Errors
/// A file that cannot be read.
pub fn examples() -> Result<Examples> {
    Examples::load(TEST.as_ref(), 416)
}

/// The reference's class of `input` under `slot`.
///
/// # Errors
/// The reference's.
pub fn reference(pool: &Pool, slot: Slot, input: &[i16]) -> Result<usize> {
    let logits = pool.reference(slot, input, &[])?;
    (0..logits.len()).rev().max_by_key(|class| logits[*class]).context("no logits")
}
