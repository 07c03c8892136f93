//! The architectures, each written once.

mod argmax;
mod router;
mod transformer;

pub(crate) use argmax::{Items, argmax, margin_argmax, tell_index};
pub use router::{COST_BIAS_MAX, UTILITY_MAX, UTILITY_SPREAD, choice, router};
pub use transformer::transformer;
pub(crate) use transformer::trunk;
