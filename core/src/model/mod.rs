//! The architectures, each written once.

mod argmax;
mod router;
mod transformer;

pub(crate) use argmax::{COMPARED_BITS, ITEM_BITS, argmax, open_index, reveal_argmax};
pub use router::{COST_BIAS_MAX, UTILITY_MAX, router};
pub use transformer::transformer;
pub(crate) use transformer::trunk;
