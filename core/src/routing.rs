//! Routing policies: who learns which model the router picks.
//!
//! The router tells its choice to the device, always. Where routes may be known, a device asks for that model next, which is how the
//! server learns it; there is nothing else that it could learn it from.
//!
//! | policy | the server learns | the device learns |
//! | --- | --- | --- |
//! | [`Open`](Routing::Open) | the route | the route |
//! | [`Private`](Routing::Private) | the route, or by the dealer's chance any other | what the server learns |
//! | [`Device`](Routing::Device) | nothing | as under `Open`; what it then asks for is its own affair, see [`crate::quota`] |
//!
//! Under `Private` the dealer answers for the router with a model of its own choosing in a public share
//! of all stock items (randomised response). For `M` models each model is that choice with probability
//! `q`, and else the router's own choice comes out. Whatever the server does, what it learns is one of
//! `M` values, of probability `q` at least and `1 - (M - 1) q` at most, so with `1 / q <= e^epsilon + M - 1`
//! no two inputs differ by more than the factor `e^epsilon` in any of them.

use core::fmt;

use crate::model::COST_BIAS_MAX;
use crate::spec::MAX_TABLE_BITS;
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

/// How a router leans, by what a request says of cost: public numbers that the server adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bias<'a> {
    /// Added to the models' utilities, in steps.
    pub scores: &'a [i32],
    /// By how much the first model's answer must be ahead of all others, in steps of the opening of differences, for a router that
    /// goes by that; below 2^11. The device is told.
    pub margin: u16,
}

impl Bias<'_> {
    /// None at all.
    pub const NONE: Self = Self { scores: &[], margin: 0 };
}

/// Widest margin, in steps of the opening of differences: a quarter of their range, so that differences up to three quarters of it do
/// not wrap.
pub const MAX_MARGIN: u16 = 1 << (MAX_TABLE_BITS - 3);

/// What another model is worth beside the first, by how far that one's answer leads: a bell of the given height, half as high at a
/// lead of `halving`, and a sixteenth at twice that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advantage {
    /// In sixteenths of a step of utility.
    pub worth: u16,
    /// In sixteenths of a step of the opening of differences.
    pub halving: u16,
}

/// As a pool file holds it: `worth:halving`.
impl fmt::Display for Advantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.worth, self.halving)
    }
}

impl core::str::FromStr for Advantage {
    type Err = NotAnAdvantage;

    fn from_str(text: &str) -> Result<Self, NotAnAdvantage> {
        let (worth, halving) = text.split_once(':').ok_or(NotAnAdvantage)?;
        let number = |text: &str| text.parse().map_err(|_| NotAnAdvantage);
        Ok(Self { worth: number(worth)?, halving: number(halving)? })
    }
}

/// A text is not two numbers of 16 bits with a colon between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAdvantage;

impl fmt::Display for NotAnAdvantage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not `worth:halving` in sixteenths")
    }
}

impl core::error::Error for NotAnAdvantage {}

impl Advantage {
    /// Cost as the worth counts. Where it does not count, a half step does.
    fn price(cost: u32) -> u32 {
        cost.saturating_mul(16).max(8)
    }

    /// The lead, in sixteenths, at which the other model is worth no more than `price`.
    fn lead_worth(self, price: u32) -> u32 {
        let halvings = log2(self.worth.into()).saturating_sub(log2(price));
        u32::from(self.halving).saturating_mul((halvings << LOG_BITS).isqrt()) >> LOG_BITS
    }

    /// What the other model is worth beyond `cost` steps, over all leads at which it is: an integral, in no unit.
    fn surplus(self, cost: u32) -> u64 {
        const PARTS: u32 = 16;
        let (price, halving) = (Self::price(cost), u32::from(self.halving).max(1));
        let end = self.lead_worth(price);
        let above = |part: u32| {
            let lead = (((2 * part + 1) * end / (2 * PARTS)) << LOG_BITS) / halving;
            let halvings = (lead * lead) >> LOG_BITS;
            let worth = (u32::from(self.worth) * ((2 << LOG_BITS) - halvings % (1 << LOG_BITS))) >> (LOG_BITS + 1);
            worth.checked_shr(halvings >> LOG_BITS).unwrap_or(0).saturating_sub(price)
        };
        u64::from(end) * u64::from((0..PARTS).map(above).sum::<u32>())
    }
}

/// Fractional bits of [`log2`].
const LOG_BITS: u32 = 8;

/// The logarithm of `x`, linear between powers of two; that of 0 is 0.
fn log2(x: u32) -> u32 {
    let whole = x.max(1).ilog2();
    let rest = (x.max(1) << (31 - whole)) & (u32::MAX >> 1);
    whole << LOG_BITS | rest >> (31 - LOG_BITS)
}

/// Leaves one model to turn to where the first one's answer is not clear: that which is worth most beyond its cost, over all leads, or else
/// the first that may be chosen. `advantages` and `scores` are those of the models, of which the first has no advantage; the latter are
/// [`router_scores`](crate::cost::router_scores).
pub fn aim(advantages: &[Advantage], scores: &mut [i32]) {
    let allowed = |score: i32| score > -COST_BIAS_MAX;
    let mut best: Option<(usize, u64)> = None;
    for (model, (advantage, score)) in advantages.iter().zip(&*scores).enumerate().skip(1) {
        let surplus = advantage.surplus(score.unsigned_abs());
        if allowed(*score) && best.is_none_or(|(_, most)| surplus > most) {
            best = Some((model, surplus));
        }
    }
    let Some((best, _)) = best else { return };
    for (model, score) in scores.iter_mut().enumerate().skip(1) {
        if model != best {
            *score = -COST_BIAS_MAX;
        }
    }
}

/// The margin of a request: the first model answers where no other that may be chosen is worth what it costs. `advantages` and
/// `scores` are those of the models, of which the first has no advantage; the latter are [`router_scores`](crate::cost::router_scores).
#[must_use]
pub fn margin(advantages: &[Advantage], scores: &[i32]) -> u16 {
    let others = advantages.iter().zip(scores).skip(1).filter(|(_, score)| **score > -COST_BIAS_MAX);
    let leads = others.map(|(advantage, score)| advantage.lead_worth(Advantage::price(score.unsigned_abs())) / 16);
    leads.max().unwrap_or(0).min(MAX_MARGIN.into()) as u16
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
/// is, the first model last: its answer was not clear. Nothing but a public number is added to the choice.
#[must_use]
pub const fn settled(choice: u8, allowed: u8) -> u8 {
    let fine = match 1u8.checked_shl(choice as u32) {
        Some(bit) => allowed & bit != 0,
        None => false,
    };
    let others = if choice > 0 { allowed & !1 } else { allowed };
    match (fine || allowed == 0, others) {
        (true, _) => choice,
        (false, 0) => 0,
        (false, others) => others.trailing_zeros() as u8,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    #[test]
    fn a_margin_shrinks_with_cost_and_is_that_of_the_model_that_is_worth_most() {
        let advantages =
            [(0, 0), (64 * 16, 20 * 16), (128 * 16, 30 * 16)].map(|(worth, halving)| Advantage { worth, halving });
        let of = |scores: [i32; 3]| margin(&advantages, &scores);
        // 64 steps are 32 at one halving and 4 at two, and 128 are 64 at one.
        assert_eq!(of([-COST_BIAS_MAX, -4, -COST_BIAS_MAX]), 40);
        assert_eq!(of([-COST_BIAS_MAX, -COST_BIAS_MAX, -64]), 30);
        assert_eq!((of([0, -4, -128]), of([0, -32, -64]), of([0, -64, -200])), (40, 30, 0));
        // Half a step where cost does not count: 2^-7 of the worth.
        assert_eq!(of([0, 0, -COST_BIAS_MAX]), 52);
        assert_eq!(of([0, -COST_BIAS_MAX, -COST_BIAS_MAX]), 0);
        assert_eq!(margin(&[Advantage { worth: u16::MAX, halving: u16::MAX }; 2], &[0, 0]), MAX_MARGIN);
        assert_eq!((margin(&[], &[0, 0]), margin(&[Advantage::default(); 2], &[0, 0])), (0, 0));
        let aimed = |mut scores: [i32; 3]| {
            aim(&advantages, &mut scores);
            scores
        };
        // Dear models are for small costs, cheap ones for larger, and no other than is allowed.
        const NO: i32 = -COST_BIAS_MAX;
        assert_eq!(aimed([NO, -1, -4]), [NO, NO, -4]);
        assert_eq!(aimed([NO, -16, -100]), [NO, -16, NO]);
        assert_eq!(aimed([NO, NO, -100]), [NO, NO, -100]);
        assert_eq!((aimed([NO, -70, -200]), aimed([NO; 3])), ([NO, -70, NO], [NO; 3]));
        let curve: Vec<u16> = (0..256).map(|cost| of([0, -cost, -cost])).collect();
        assert!(curve.windows(2).all(|pair| pair[1] <= pair[0]) && curve[0] > curve[255], "{curve:?}");
    }

    /// Forbidden models never come out while another is allowed, whoever won.
    #[test]
    fn a_choice_settles_on_an_allowed_model() {
        for (choice, allowed, wanted) in
            [(2, 0b111, 2), (0, 0b110, 1), (0, 0b100, 2), (1, 0b101, 2), (1, 0b001, 0), (7, 0b1000_0000, 7)]
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
