//! The architectures, each written once.

mod argmax;
mod router;
mod transformer;

pub use router::{COST_BIAS_MAX, UTILITY_MAX, router};
pub(crate) use argmax::{COMPARED_BITS, ITEM_BITS, argmax};
pub(crate) use transformer::trunk;
pub use transformer::transformer;
