//! The architectures, each written once.

mod argmax;
mod router;
mod transformer;

pub(crate) use argmax::{Items, ONE_HOT_BITS, argmax, open_index};
pub use router::{COST_BIAS_MAX, UTILITY_MAX, UTILITY_SPREAD, router};
pub use transformer::transformer;
pub(crate) use transformer::trunk;
