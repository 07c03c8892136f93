//! Routing policies: who learns which model the router picks.
//!
//! The router tells its choice to the device, always. Where routes may be known, a device asks for that model next, which is how the
//! server learns it; there is nothing else that it could learn it from.
//!
//! | policy | the server learns | the device learns |
//! | --- | --- | --- |
//! | [`Open`](Routing::Open) | the route | the route |
//! | [`Private`](Routing::Private) | the route, or by the dealer's chance any other | what the server learns |
//! | [`Device`](Routing::Device) | nothing | the route; what it then asks for is its own affair, see [`crate::quota`] |
//!
//! Under `Private` the dealer answers for the router with a model of its own choosing in a public share
//! of all stock items (randomised response). For `M` models each model is that choice with probability
//! `q`, and else the router's own choice comes out. Whatever the server does, what it learns is one of
//! `M` values, of probability `q` at least and `1 - (M - 1) q` at most, so with `1 / q <= e^epsilon + M - 1`
//! no two inputs differ by more than the factor `e^epsilon` in any of them.

use core::fmt;

use rand_core::{TryCryptoRng, TryRng};
use serde::{Deserialize, Serialize};

/// Who learns the route; the server's policy, bound into every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Routing {
    /// Server and device.
    Open,
    /// Server and device, under local differential privacy.
    Private {
        /// Thousandths of epsilon per routed input, from 1 to [`MAX_EPSILON`].
        epsilon: u16,
    },
    /// The device alone.
    Device,
}

/// Largest epsilon, in thousandths: at 16 the route is true but for one in millions.
pub const MAX_EPSILON: u16 = 16_000;
/// Most models that private routing chooses among: the tournament of all pairs indexes one table.
pub const MAX_PRIVATE_MODELS: usize = 5;
/// What [`Routing::leak`] says of a route that is told as it is.
pub const UNBOUNDED: u32 = u32::MAX;

impl Routing {
    /// Thousandths of epsilon that the server learns of each routed input; [`UNBOUNDED`] when open.
    #[must_use]
    pub const fn leak(self) -> u32 {
        match self {
            Self::Open => UNBOUNDED,
            Self::Private { epsilon } => epsilon as u32,
            Self::Device => 0,
        }
    }

    /// The policy of a [`leak`](Self::leak).
    #[must_use]
    pub const fn of_leak(leak: u32) -> Option<Self> {
        match leak {
            UNBOUNDED => Some(Self::Open),
            0 => Some(Self::Device),
            epsilon if epsilon <= MAX_EPSILON as u32 => Some(Self::Private { epsilon: epsilon as u16 }),
            _ => None,
        }
    }

    /// The dealer's choice for one stock item among `models`, if it makes one.
    ///
    /// # Errors
    /// The generator's own.
    pub(crate) fn choice<R: TryCryptoRng + ?Sized>(
        self,
        models: u16,
        rng: &mut R,
    ) -> Result<Option<u32>, <R as TryRng>::Error> {
        let Self::Private { epsilon } = self else { return Ok(None) };
        // The values below M q choose a model each, q values per model; the others leave the choice to the router.
        let chosen = rng.try_next_u64()?.checked_div(share(epsilon, models)).unwrap_or(0);
        Ok(u32::try_from(chosen).ok().filter(|model| *model < u32::from(models)))
    }
}

/// `q` in parts of `2^64`, rounded up: `2^64 / (e^epsilon + models - 1)`. Since every rounding is towards more
/// noise, the epsilon that is kept is the stated one at most.
#[must_use]
pub const fn share(epsilon: u16, models: u16) -> u64 {
    let others = (models.saturating_sub(1) as u128) << 64;
    // ceil(2^128 / d) = floor((2^128 - 1) / d) + 1; a d of 2^64 would mean one model and no noise.
    let share = u128::MAX / exp(epsilon).saturating_add(others) + 1;
    if share > u64::MAX as u128 { u64::MAX } else { share as u64 }
}

/// `e^epsilon` in parts of `2^64`, rounded down: its power series, each term rounded down.
const fn exp(epsilon: u16) -> u128 {
    // Beyond the limit, which a validated spec keeps, the sum would not fit.
    let epsilon = if epsilon > MAX_EPSILON { MAX_EPSILON } else { epsilon } as u128;
    let mut term = 1u128 << 64;
    let (mut sum, mut divisor) = (0, 0);
    while term > 0 {
        sum += term;
        divisor += 1000;
        term = term * epsilon / divisor;
    }
    sum
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Private { epsilon } => write!(f, "private:{}.{:03}", epsilon / 1000, epsilon % 1000),
            Self::Device => f.write_str("device"),
        }
    }
}

/// The model that a choice comes to: the router's, or if that one is not `allowed` (bit `i` for model `i`) the first that
/// is. Nothing but a public number is added to the choice.
#[must_use]
pub const fn settled(choice: u8, allowed: u8) -> u8 {
    let fine = match 1u8.checked_shl(choice as u32) {
        Some(bit) => allowed & bit != 0,
        None => false,
    };
    if fine || allowed == 0 { choice } else { allowed.trailing_zeros() as u8 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    /// Forbidden models never come out while another is allowed, whoever won.
    #[test]
    fn a_choice_settles_on_an_allowed_model() {
        for (choice, allowed, wanted) in
            [(2, 0b111, 2), (0, 0b110, 1), (0, 0b100, 2), (1, 0b101, 0), (7, 0b1000_0000, 7)]
        {
            assert_eq!(settled(choice, allowed), wanted, "{choice} of {allowed:b}");
        }
        assert_eq!((settled(1, 0), settled(9, 0b10)), (1, 1));
    }

    use super::*;

    #[test]
    fn the_share_of_noise_keeps_epsilon_and_hardly_less() {
        for epsilon in (1..=MAX_EPSILON).step_by(7) {
            for models in 2..=MAX_PRIVATE_MODELS as u16 {
                let (epsilon_told, share) = (f64::from(epsilon) / 1e3, share(epsilon, models));
                // Parts of 2^64 of the two probabilities, exactly.
                let truth = (1u128 << 64) - u128::from(models - 1) * u128::from(share);
                let kept = (truth as f64 / share as f64).ln();
                assert!(kept <= epsilon_told + 1e-12, "{epsilon} among {models}: {kept}");
                assert!(kept > epsilon_told - 1e-9, "{epsilon} among {models}: {kept}");
            }
        }
    }

    #[test]
    fn the_exponential_is_never_too_large() {
        for epsilon in 0..=MAX_EPSILON {
            let (found, wanted) = (exp(epsilon) as f64 / 2f64.powi(64), (f64::from(epsilon) / 1e3).exp());
            assert!(found <= wanted * (1.0 + 1e-14) && found > wanted * (1.0 - 1e-14), "{epsilon}: {found} {wanted}");
        }
    }

    #[test]
    fn a_leak_and_its_policy_are_one() {
        for routing in
            [Routing::Open, Routing::Device, Routing::Private { epsilon: 1 }, Routing::Private { epsilon: MAX_EPSILON }]
        {
            assert_eq!(Routing::of_leak(routing.leak()), Some(routing));
        }
        assert_eq!(Routing::of_leak(u32::from(MAX_EPSILON) + 1), None);
        assert_eq!(Routing::of_leak(UNBOUNDED - 1), None);
    }
}
