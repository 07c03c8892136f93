//! The oblivious router: a utility per model, less its cost, and an argmax, all under sharing.
//!
//! The argmax takes two round trips: a sign table on all pairwise differences, whose sums are the
//! wins, and a table that asks for a full score of wins. Differences are taken of table outputs and
//! opened without a shift, so the comparisons are exact: they are consistent with each other and
//! exactly one model wins. Equal scores go to the earlier model. The server learns the one-hot
//! (policy `open`): the last table's entries carry no mask.

use crate::circuit::{Circuit, Combination, Combine, Operand, Party, Table};
use crate::spec::{Opening, RouterSpec};

use super::trunk;

/// Largest utility: a probability in steps of 1/255.
pub const UTILITY_MAX: i32 = 255;
/// Largest cost bias of a model; together with [`UTILITY_MAX`] it keeps differences in range.
pub const COST_BIAS_MAX: i32 = 768;

const DIFFERENCE: Opening = Opening { shift: 0, index_bits: 11 };
const WINS: Opening = Opening { shift: 0, index_bits: 4 };
const _: () = assert!(UTILITY_MAX + COST_BIAS_MAX < 1 << (DIFFERENCE.index_bits - 1));
const _: () = assert!(crate::spec::MAX_MODELS - 1 < 1 << (WINS.index_bits - 1));

/// Scores `models` models and opens the index of the best to the server.
///
/// # Errors
/// The party's.
pub fn router<P: Party>(circuit: &mut Circuit<'_, P>, spec: &RouterSpec, models: u16) -> Result<(), P::Error> {
    let estimate = trunk(circuit, &spec.trunk, models)?;
    let sigmoid = circuit.secret_table(spec.utility.index_bits)?;
    let utilities = circuit.table(estimate, spec.utility, sigmoid, DIFFERENCE.bits())?;

    let combine = |wire, combination| Operand::Combine(Combine { wire, combination, items: models });
    let signs = circuit.table(combine(utilities, Combination::Differences), DIFFERENCE, Table::Sign, WINS.bits())?;
    let winner = Table::Equals(models.saturating_sub(1));
    circuit.open_table(combine(signs, Combination::Wins), WINS, winner, 1)?;
    Ok(())
}
