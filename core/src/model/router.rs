//! The oblivious router: a utility per model, less its cost, and an argmax, all under sharing.
//!
//! Equal scores go to the earlier model. The policy says to whom the choice is opened: to the server,
//! as a one-hot or, where the dealer adds noise, as an index (the last table's entries carry no mask);
//! or to the device, as a label is.

use crate::circuit::{Circuit, Party};
use crate::routing::Routing;
use crate::spec::RouterSpec;

use super::{COMPARED_BITS, ITEM_BITS, argmax, open_index, reveal_argmax, trunk};

/// Largest utility: a probability in steps of 1/255.
pub const UTILITY_MAX: i32 = 255;
/// Largest cost bias of a model; together with [`UTILITY_MAX`] it keeps differences in range.
pub const COST_BIAS_MAX: i32 = 768;

const _: () = assert!(UTILITY_MAX + COST_BIAS_MAX < 1 << COMPARED_BITS);

/// Scores `models` models and opens the best to whom `routing` says.
///
/// # Errors
/// The party's.
pub fn router<P: Party>(
    circuit: &mut Circuit<'_, P>,
    spec: &RouterSpec,
    models: u16,
    routing: Routing,
) -> Result<(), P::Error> {
    let estimate = trunk(circuit, &spec.trunk, models)?;
    let sigmoid = circuit.secret_table(spec.utility.index_bits)?;
    let utilities = circuit.table(estimate, spec.utility, sigmoid, ITEM_BITS)?;
    match routing {
        Routing::Open => argmax(circuit, utilities, models, 1, true)?,
        Routing::Private { .. } => open_index(circuit, utilities, models)?,
        Routing::Device => reveal_argmax(circuit, utilities, models)?,
    };
    Ok(())
}
