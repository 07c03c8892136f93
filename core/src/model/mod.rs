//! The architectures, each written once.

mod router;
mod transformer;

pub use router::{COST_BIAS_MAX, UTILITY_MAX, router};
pub(crate) use transformer::trunk;
pub use transformer::transformer;
