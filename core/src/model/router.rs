//! The oblivious router: a utility per model, less its cost, and an argmax, all under sharing.
//!
//! Equal scores go to the earlier model. The policy says to whom the choice is opened: to the server,
//! as a one-hot or, where the dealer adds noise, as an index (its entries in the last table carry no
//! mask); or to the device, as a label is.
//!
//! A router that answers is the first model with more outputs: its trunk's logits go through the same
//! openings as the utilities and become a label beside the route. If the route is the first model,
//! the server reveals that label and nothing is left to run; else, and when the device alone learns the
//! route, it is never revealed.

use crate::circuit::{Circuit, Combination, Combine, Groups, Lookup, Operand, Party, Table};
use crate::routing::Routing;
use crate::spec::{Output, RouterSpec};

use super::{COMPARED_BITS, ITEM_BITS, ONE_HOT_BITS, argmax, open_index, trunk};

/// Largest utility: a probability in steps of 1/255.
pub const UTILITY_MAX: i32 = 255;
/// Largest cost bias of a model; together with [`UTILITY_MAX`] it keeps differences in range.
pub const COST_BIAS_MAX: i32 = 768;

const _: () = assert!(UTILITY_MAX + COST_BIAS_MAX < 1 << COMPARED_BITS);

/// Scores `models` models, opens the best to whom `routing` says and reveals the first model's answer
/// to the device, if the router gives it.
///
/// # Errors
/// The party's.
pub fn router<P: Party>(
    circuit: &mut Circuit<'_, P>,
    spec: &RouterSpec,
    models: u16,
    output: Output,
    routing: Routing,
) -> Result<(), P::Error> {
    let groups = Groups([models, spec.answers]);
    let estimates = trunk(circuit, &spec.trunk, groups.items())?;
    let sigmoid = circuit.secret_table(spec.utility.index_bits)?;
    let both = Lookup { first: sigmoid, split: models.into(), rest: Table::Identity, opened: 0 };
    let items = circuit.table(estimates, spec.utility, both, ITEM_BITS)?;
    let (best, decided) = match routing {
        Routing::Open => (argmax(circuit, items, groups, models)?, groups),
        Routing::Private { .. } => (open_index(circuit, items, groups)?, Groups([1, spec.answers])),
        Routing::Device => {
            let route = Groups::one(models);
            let wire = argmax(circuit, items, route, 0)?;
            circuit.reveal(
                Operand::Combine(Combine { wire, combination: Combination::Last, groups: route }),
                ONE_HOT_BITS,
            )?;
            return Ok(());
        }
    };
    if spec.answers > 0 {
        let (wire, groups, bits) = match output {
            Output::Label => (best, decided, ONE_HOT_BITS),
            Output::Logits => (items, groups, COMPARED_BITS),
        };
        circuit.reveal(Operand::Combine(Combine { wire, combination: Combination::Last, groups }), bits)?;
    }
    Ok(())
}
