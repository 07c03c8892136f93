//! Control messages, of fixed encoded length each, so that lengths tell nothing.

use core::fmt;

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::circuit::{SLOTS, Slot};
use crate::spec::MAX_SPEC_BYTES;

/// Payload bytes of a full frame.
pub const FRAME_PAYLOAD: usize = 1024;
/// Frame kind of a control message.
pub const FRAME_CONTROL: u8 = 1;
/// Frame kind of a piece of a packed message.
pub const FRAME_DATA: u8 = 2;
/// No control message is longer.
pub const MAX_CONTROL_BYTES: usize = FRAME_PAYLOAD;

/// Speed of the link in use, for the router's costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkProfile {
    /// Bytes per second, each way.
    #[serde(with = "postcard::fixint::le")]
    pub bytes_per_second: u32,
    /// Round-trip time in microseconds.
    #[serde(with = "postcard::fixint::le")]
    pub round_trip_us: u32,
}

impl LinkProfile {
    /// A UART at 921,600 baud, 8N1.
    pub const UART: Self = Self { bytes_per_second: 92_160, round_trip_us: 0 };
    /// Bluetooth Low Energy at 100 kB/s with 30 ms per round trip.
    pub const BLE: Self = Self { bytes_per_second: 100_000, round_trip_us: 30_000 };
    /// A local network of 100 Mbit/s with 1 ms per round trip.
    pub const LAN: Self = Self { bytes_per_second: 12_500_000, round_trip_us: 1_000 };
    /// These by their names, as command lines and reports have them.
    pub const NAMED: [(&str, Self); 3] = [("uart", Self::UART), ("ble", Self::BLE), ("lan", Self::LAN)];

    /// One of [`NAMED`](Self::NAMED).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, link)| *link)
    }

    /// Time of a transfer on this link, in microseconds; saturating.
    #[must_use]
    pub fn latency_us(&self, bytes: u64, half_trips: u32) -> u64 {
        let moving = bytes.saturating_mul(1_000_000).checked_div(u64::from(self.bytes_per_second)).unwrap_or(u64::MAX);
        moving.saturating_add(u64::from(half_trips) * u64::from(self.round_trip_us) / 2)
    }
}

/// First message of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The lowest unburned counter of each slot, by [`Slot::code`].
    #[serde(with = "fixed_counters")]
    pub counters: [u64; SLOTS],
}

/// Offline: the corrections of one inference follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Program.
    pub slot: Slot,
    /// Counter.
    #[serde(with = "postcard::fixint::le")]
    pub counter: u64,
}

/// A request's `lambda` that stands for what the pool's trainer recommends: the server knows it, a device need not.
pub const RECOMMENDED_LAMBDA: u16 = u16::MAX;

/// Online: the masked input follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Infer {
    /// Program to run on the input: the router, or one model.
    pub slot: Slot,
    /// Counter.
    #[serde(with = "postcard::fixint::le")]
    pub counter: u64,
    /// Weight of cost against accuracy in the router's score, in 1/256: 256 makes the dearest
    /// model's cost weigh as much as certainty to be right. 0 ignores cost, and [`RECOMMENDED_LAMBDA`]
    /// leaves the weight to the pool.
    #[serde(with = "postcard::fixint::le")]
    pub lambda: u16,
    /// Bit `i`: model `i` may be chosen.
    pub allowed: u8,
    /// The link in use.
    pub link: LinkProfile,
}

/// Messages of the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Prepare`].
    Prepare(Prepare),
    /// See [`Infer`].
    Infer(Infer),
}

/// Stock of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStock {
    /// Program.
    pub slot: Slot,
    /// Counter of the first inference in stock; of the next to prepare, if there is none.
    #[serde(with = "postcard::fixint::le")]
    pub first: u64,
    /// Counter of the next inference to prepare. Behind a preparation that failed half-way it is
    /// more than `first + ready`.
    #[serde(with = "postcard::fixint::le")]
    pub fresh: u64,
    /// Inferences in stock, of consecutive counters.
    #[serde(with = "postcard::fixint::le")]
    pub ready: u32,
}

/// First answer of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The pool, as [`PoolSpec::to_bytes`](crate::spec::PoolSpec::to_bytes) encodes it.
    pub pool: Vec<u8, MAX_SPEC_BYTES>,
    /// Stock of every slot of the pool.
    pub stock: Vec<SlotStock, SLOTS>,
}

/// An inference is in stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedStock {
    /// Stock of the slot now.
    pub stock: SlotStock,
}

/// Why a request ends without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Refusal {
    /// No stock for this program: prepare some.
    StockEmpty(Slot),
    /// The counter is not the next in stock, or was seen before.
    Counter(Slot),
    /// The pool has no such program.
    NoSuchSlot(Slot),
    /// The dealer cannot be reached or refuses, or deals what an earlier session asked for; try again later.
    Dealer,
    /// The server's stock store failed.
    Store,
    /// The pool has changed since the session began: connect again.
    PoolChanged,
    /// The server gives this device no more answers.
    QueryBudget,
    /// The dealer deals this device no more private routes: their epsilons add up to its budget.
    PrivacyBudget,
    /// The pool routes openly, and this device has a budget of privacy.
    Routing,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |f: &mut fmt::Formatter<'_>, slot: &Slot| match slot {
            Slot::Router => f.write_str("the router"),
            Slot::Model(index) => write!(f, "model {index}"),
        };
        match self {
            Self::StockEmpty(slot) => {
                f.write_str("no inference is in stock for ")?;
                name(f, slot)?;
                f.write_str(": prepare some first")
            }
            Self::Counter(slot) => {
                f.write_str("the counter for ")?;
                name(f, slot)?;
                f.write_str(" was used before or is not in stock: connect again")
            }
            Self::NoSuchSlot(slot) => {
                f.write_str("the pool does not have ")?;
                name(f, slot)
            }
            Self::Dealer => f.write_str("the server has got nothing from its dealer: try again later"),
            Self::Store => f.write_str("the server's stock store failed: try again later"),
            Self::PoolChanged => f.write_str("the server's pool changed: connect again"),
            Self::QueryBudget => f.write_str("this device's answers are used up"),
            Self::PrivacyBudget => {
                f.write_str("this device's privacy budget is used up: its routes would tell too much")
            }
            Self::Routing => f.write_str("the pool routes openly, which this device's privacy budget does not allow"),
        }
    }
}

/// Messages of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "parsed on the stack once per session; no heap to box it on")]
pub enum ToDevice {
    /// See [`Welcome`].
    Welcome(Welcome),
    /// See [`PreparedStock`].
    Prepared(PreparedStock),
    /// See [`Refusal`].
    Refused(Refusal),
}

/// The bytes are not one control message, or do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageError;

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a control message is malformed: cut off, too long, or out of range")
    }
}

impl core::error::Error for MessageError {}

/// Encoding of control messages.
pub trait Control: Serialize + for<'de> Deserialize<'de> {
    /// Reads exactly one message.
    ///
    /// # Errors
    /// [`MessageError`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Ok(message),
            _ => Err(MessageError),
        }
    }

    /// Writes the message and returns its bytes.
    ///
    /// # Errors
    /// [`MessageError`] when `buffer` is too small; [`MAX_CONTROL_BYTES`] are enough.
    fn to_bytes(&self, buffer: &mut [u8]) -> Result<usize, MessageError> {
        postcard::to_slice(self, buffer).map(|used| used.len()).map_err(|_| MessageError)
    }
}

impl Control for ToServer {}
impl Control for ToDevice {}

/// Bytes of [`Infer`], [`Prepare`] and [`PreparedStock`] as messages, for the cost model.
/// `Slot::Router` and `Slot::Model` differ by one byte.
#[must_use]
pub fn encoded_bytes<M: Control>(message: &M) -> usize {
    let mut buffer = [0; 64];
    message.to_bytes(&mut buffer).unwrap_or(0)
}

mod fixed_counters {
    //! Counters as little-endian words, whatever their values.
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::SLOTS;

    #[derive(Serialize, Deserialize)]
    struct Word(#[serde(with = "postcard::fixint::le")] u64);

    pub(super) fn serialize<S: Serializer>(counters: &[u64; SLOTS], serializer: S) -> Result<S::Ok, S::Error> {
        counters.map(Word).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u64; SLOTS], D::Error> {
        Ok(<[Word; SLOTS]>::deserialize(deserializer)?.map(|word| word.0))
    }
}
