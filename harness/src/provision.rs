//! Keys and seeds of the three parties, made in one place and handed out in one file per party.
//!
//! Whoever runs provisioning sees every secret of the files it makes; each file then goes to its
//! party alone. `server.json` and `dealer.json` grow by one entry per device.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rand_core::UnwrapErr;
use secure_router_core::channel::{PublicKey, StaticSecret};
use secure_router_core::keys::{DealerSeeds, DeviceSeeds, Seed};
use secure_router_core::routing::{MAX_EPSILON, Routing};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::files::{Disk, replace};

/// 32 bytes in hexadecimal.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes32([u8; 32]);

impl TryFrom<String> for Bytes32 {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a key must be 64 hexadecimal digits";
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(WRONG) };
        if pairs.len() != 32 {
            return Err(WRONG);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let digit = |c: u8| char::from(c).to_digit(16).ok_or(WRONG);
            let [high, low] = *pair;
            *byte = (digit(high)? * 16 + digit(low)?) as u8;
        }
        Ok(Self(bytes))
    }
}

impl From<Bytes32> for String {
    fn from(bytes: Bytes32) -> Self {
        bytes.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Bytes32 {
    fn seed(&self) -> Seed {
        Seed::from_bytes(self.0)
    }

    fn secret(&self) -> Result<StaticSecret> {
        StaticSecret::from_bytes(&self.0).context("a stored secret key is blank")
    }

    /// As a public key.
    #[must_use]
    pub const fn public(&self) -> PublicKey {
        PublicKey(self.0)
    }
}

/// The device's file.
#[derive(Clone, Serialize, Deserialize)]
pub struct DeviceFile {
    secret: Bytes32,
    server: Bytes32,
    device_dealer: Bytes32,
    device_server: Bytes32,
    /// The least private routing that the device takes part in.
    routing: Routing,
}

impl DeviceFile {
    /// The device's key.
    ///
    /// # Errors
    /// A blank key.
    pub fn secret(&self) -> Result<StaticSecret> {
        self.secret.secret()
    }

    /// The server's key.
    #[must_use]
    pub const fn server(&self) -> PublicKey {
        self.server.public()
    }

    /// The least private routing that the device takes part in.
    #[must_use]
    pub const fn routing(&self) -> Routing {
        self.routing
    }

    /// The file of a device that takes part in no routing less private than `least`, nor than its own.
    #[must_use]
    pub fn no_less_private(&self, least: Routing) -> Self {
        let routing = if least.leak() < self.routing.leak() { least } else { self.routing };
        Self { routing, ..self.clone() }
    }

    /// What firmware keeps of it: `SRK2`, its secret, the server's key, the seeds shared with dealer
    /// and server, and the most that a route may tell ([`Routing::leak`], little-endian).
    #[must_use]
    pub fn firmware(&self) -> Zeroizing<[u8; 136]> {
        let mut bytes = Zeroizing::new([0; 136]);
        let leak = self.routing.leak().to_le_bytes();
        let keys = [&self.secret.0, &self.server.0, &self.device_dealer.0, &self.device_server.0];
        let parts = std::iter::once(&b"SRK2"[..]).chain(keys.map(|key| &key[..])).chain([&leak[..]]);
        bytes.iter_mut().zip(parts.flatten()).for_each(|(slot, byte)| *slot = *byte);
        bytes
    }

    /// The device's seeds.
    #[must_use]
    pub fn seeds(&self) -> DeviceSeeds {
        DeviceSeeds { dealer: self.device_dealer.seed(), server: self.device_server.seed() }
    }
}

/// What the server keeps of a device.
#[derive(Clone, Serialize, Deserialize)]
pub struct ServerDevice {
    /// For people.
    pub name: String,
    public: Bytes32,
    device_server: Bytes32,
    server_dealer: Bytes32,
    /// Answers that the server gives this device over its life; without a limit unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<u64>,
}

impl ServerDevice {
    /// `k_DS`.
    #[must_use]
    pub fn device_seed(&self) -> Seed {
        self.device_server.seed()
    }

    /// `k_ST` for this device.
    #[must_use]
    pub fn dealer_seed(&self) -> Seed {
        self.server_dealer.seed()
    }
}

/// The server's file.
#[derive(Clone, Serialize, Deserialize)]
pub struct ServerFile {
    secret: Bytes32,
    dealer: Bytes32,
    devices: Vec<ServerDevice>,
}

impl ServerFile {
    /// The server's key.
    ///
    /// # Errors
    /// A blank key.
    pub fn secret(&self) -> Result<StaticSecret> {
        self.secret.secret()
    }

    /// The dealer's key.
    #[must_use]
    pub const fn dealer(&self) -> PublicKey {
        self.dealer.public()
    }

    /// The device of a key.
    #[must_use]
    pub fn device(&self, key: &PublicKey) -> Option<&ServerDevice> {
        self.devices.iter().find(|device| device.public.public() == *key)
    }
}

/// What the dealer keeps of a device.
#[derive(Clone, Serialize, Deserialize)]
pub struct DealerDevice {
    public: Bytes32,
    device_dealer: Bytes32,
    server_dealer: Bytes32,
    /// Thousandths of epsilon that routes may cost this device over its life; without a limit unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<u32>,
}

impl DealerDevice {
    /// The seeds shared with the device, and with the server for it.
    #[must_use]
    pub fn seeds(&self) -> DealerSeeds {
        DealerSeeds { device: self.device_dealer.seed(), server: self.server_dealer.seed() }
    }
}

/// The dealer's file.
#[derive(Clone, Serialize, Deserialize)]
pub struct DealerFile {
    secret: Bytes32,
    server: Bytes32,
    devices: Vec<DealerDevice>,
}

impl DealerFile {
    /// The dealer's key.
    ///
    /// # Errors
    /// A blank key.
    pub fn secret(&self) -> Result<StaticSecret> {
        self.secret.secret()
    }

    /// The server's key.
    #[must_use]
    pub const fn server(&self) -> PublicKey {
        self.server.public()
    }

    /// The device of a key.
    #[must_use]
    pub fn device(&self, key: &PublicKey) -> Option<&DealerDevice> {
        self.devices.iter().find(|device| device.public.public() == *key)
    }
}

/// Reads a party's file.
///
/// # Errors
/// Says what is wrong with it; never what it holds.
pub fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}; make it with `secure-router provision`", path.display()))?;
    serde_json::from_str(&text).map_err(|error| {
        // serde_json may quote a value, which is a key here: say only where.
        anyhow::anyhow!("{} is not a key file: line {}, column {}", path.display(), error.line(), error.column())
    })
}

/// The paths of the files in a directory.
#[must_use]
pub fn paths(directory: &Path, device: &str) -> (PathBuf, PathBuf, PathBuf) {
    (directory.join("server.json"), directory.join("dealer.json"), directory.join(format!("device-{device}.json")))
}

/// What a device may use up over its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// Answers that the server gives it.
    pub queries: Option<u64>,
    /// Thousandths of epsilon that its routes may tell the server. The device then takes part in no
    /// routing that could pass this in one route, and in no open one.
    pub epsilon: Option<u32>,
}

/// Adds a device without budgets; see [`provision_with`].
///
/// # Errors
/// As [`provision_with`].
pub fn provision(directory: &Path, device: &str) -> Result<PathBuf> {
    provision_with(directory, device, Budgets::default())
}

/// Adds a device: makes its file, and its entries in the server's and the dealer's, which are made
/// if they do not exist.
///
/// # Errors
/// A bad name, an existing device, or a file that cannot be read or written.
pub fn provision_with(directory: &Path, device: &str, budgets: Budgets) -> Result<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if device.is_empty() || !device.chars().all(plain) {
        bail!("a device's name is made of letters, digits, - and _");
    }
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let (server_path, dealer_path, device_path) = paths(directory, device);
    if device_path.exists() {
        bail!("{} exists: a device is provisioned once; choose another name", device_path.display());
    }

    let (mut server, mut dealer) = match (server_path.exists(), dealer_path.exists()) {
        (true, true) => (read::<ServerFile>(&server_path)?, read::<DealerFile>(&dealer_path)?),
        (false, false) => {
            let (server, dealer) = (draw()?, draw()?);
            (
                ServerFile { secret: server.clone(), dealer: public(&dealer)?, devices: Vec::new() },
                DealerFile { secret: dealer, server: public(&server)?, devices: Vec::new() },
            )
        }
        _ => bail!("{} holds only one of server.json and dealer.json", directory.display()),
    };

    let secret = draw()?;
    let (device_dealer, device_server, server_dealer) = (draw()?, draw()?, draw()?);
    server.devices.push(ServerDevice {
        name: device.to_owned(),
        public: public(&secret)?,
        device_server: device_server.clone(),
        server_dealer: server_dealer.clone(),
        queries: budgets.queries,
    });
    dealer.devices.push(DealerDevice {
        public: public(&secret)?,
        device_dealer: device_dealer.clone(),
        server_dealer,
        budget: budgets.epsilon,
    });
    let most = |epsilon: u32| Routing::of_leak(epsilon.min(MAX_EPSILON.into()));
    let routing = budgets.epsilon.and_then(most).unwrap_or(Routing::Open);
    let server_key = public(&server.secret)?;
    write(&server_path, &server)?;
    write(&dealer_path, &dealer)?;
    write(&device_path, &DeviceFile { secret, server: server_key, device_dealer, device_server, routing })?;
    Ok(device_path)
}

fn draw() -> Result<Bytes32> {
    let seed = Seed::generate(&mut getrandom::SysRng).context("the system's random source failed")?;
    Ok(Bytes32(*seed.expose()))
}

fn public(secret: &Bytes32) -> Result<Bytes32> {
    Ok(Bytes32(secret.secret()?.public_key().0))
}

/// Replaces a file in one step, readable by its owner only.
///
/// # Errors
/// The file system's.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    let outcome = replace(&Disk, path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()));
    text.zeroize();
    outcome
}

/// [`provision_with`], and what firmware keeps of the new device's file in `firmware`, readable by its owner only.
///
/// # Errors
/// As [`provision_with`], and a `firmware` that exists or cannot be made: no device is then added. If it cannot be
/// filled, the device is there without it.
pub fn provision_board(directory: &Path, device: &str, budgets: Budgets, firmware: &Path) -> Result<PathBuf> {
    let context = || format!("cannot write {}", firmware.display());
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // A device is provisioned once: the file must be there before the device is.
    std::fs::File::create_new(firmware).with_context(context)?;
    let path = match provision_with(directory, device, budgets) {
        Ok(path) => path,
        Err(error) => {
            let _ = std::fs::remove_file(firmware);
            return Err(error);
        }
    };
    let keys: DeviceFile = read(&path)?;
    replace(&Disk, firmware, keys.firmware().as_slice())
        .with_context(|| format!("{} is made, but {}", path.display(), context()))?;
    Ok(path)
}

/// The system's random source as the kernel takes it.
#[must_use]
pub fn random() -> UnwrapErr<getrandom::SysRng> {
    UnwrapErr(getrandom::SysRng)
}
