//! The oblivious router: a utility per model, less its cost, and an argmax, all under sharing.
//!
//! A utility is an accumulator of the trunk's last linear gate: how likely the model is to be right, in steps of
//! `2^shift` of the opening of differences. Equal scores go to the earlier model. The policy says to whom the choice is
//! opened: to the server, as a one-hot or, where the dealer adds noise, as an index (its entries in the last table carry
//! no mask); or to the device, as a label is.
//!
//! A router that answers is the first model with more outputs: its logits are compared in the same
//! openings as the utilities and become a label beside the route. If the route is the first model,
//! the server reveals that label and nothing is left to run; else, and when the device alone learns the
//! route, it is never revealed.

use crate::circuit::{Circuit, Combination, Combine, Groups, Operand, Party};
use crate::routing::Routing;
use crate::spec::{MAX_TABLE_BITS, Output, RouterSpec};

use super::{Items, ONE_HOT_BITS, argmax, open_index, trunk};

/// Steps between the least utility of interest and certainty. Utilities are not cut at either end.
pub const UTILITY_MAX: i32 = 255;
/// Most steps by which utilities of one input may differ.
pub const UTILITY_SPREAD: i32 = 768;
/// Cost bias of a model that must not be chosen, in steps: with it a model loses to the worst one at full cost.
pub const COST_BIAS_MAX: i32 = UTILITY_SPREAD + UTILITY_MAX + 1;

const _: () = assert!(UTILITY_SPREAD + COST_BIAS_MAX < 1 << (MAX_TABLE_BITS - 1));

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
    let all = Groups([models, spec.answers]);
    let estimates = trunk(circuit, &spec.trunk, all.items())?;
    let wire = circuit.remask(estimates, spec.trunk.output_bits)?;
    let items = Items { wire, difference: spec.trunk.difference() };
    // Logits are revealed as they are: there is no label to compare them for.
    let groups = if output == Output::Label { all } else { Groups([models, 0]) };
    let (best, decided) = match routing {
        Routing::Open => (argmax(circuit, items, groups, models)?, groups),
        Routing::Private { .. } => (open_index(circuit, items, groups)?, Groups([1, groups.0[1]])),
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
            Output::Logits => (wire, all, spec.trunk.output_bits),
        };
        circuit.reveal(Operand::Combine(Combine { wire, combination: Combination::Last, groups }), bits)?;
    }
    Ok(())
}
