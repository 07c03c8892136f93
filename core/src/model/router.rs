//! The oblivious router: a utility per model, less its cost, and an argmax, all under sharing.
//!
//! Equal scores go to the earlier model. The server learns the one-hot (policy `open`): the last
//! table's entries carry no mask.

use crate::circuit::{Circuit, Party};
use crate::spec::RouterSpec;

use super::{COMPARED_BITS, ITEM_BITS, argmax, trunk};

/// Largest utility: a probability in steps of 1/255.
pub const UTILITY_MAX: i32 = 255;
/// Largest cost bias of a model; together with [`UTILITY_MAX`] it keeps differences in range.
pub const COST_BIAS_MAX: i32 = 768;

const _: () = assert!(UTILITY_MAX + COST_BIAS_MAX < 1 << COMPARED_BITS);

/// Scores `models` models and opens the index of the best to the server.
///
/// # Errors
/// The party's.
pub fn router<P: Party>(circuit: &mut Circuit<'_, P>, spec: &RouterSpec, models: u16) -> Result<(), P::Error> {
    let estimate = trunk(circuit, &spec.trunk, models)?;
    let sigmoid = circuit.secret_table(spec.utility.index_bits)?;
    let utilities = circuit.table(estimate, spec.utility, sigmoid, ITEM_BITS)?;
    argmax(circuit, utilities, models, 1, true)?;
    Ok(())
}
