//! The oblivious router: which model answers, found under sharing.
//!
//! A router that answers is the first model with more outputs (`RouterSpec::answers`). It goes by how far its own answer is ahead: where
//! the largest logit leads every other by the margin of the request, the device is told that class and is done; where none does, it is
//! told so, and turns to the other model that the request's public scores leave. How wide the margin is, the server takes from what its
//! trainer found another model to be worth at each lead, and from `lambda` and cost ([`crate::routing::margin`]). A lead is the difference of two
//! logits, which no linear output of a trunk can show; its signs are those that the argmax needs anyway.
//!
//! Another router has a utility per model, how likely it is to be right, in steps of `2^shift` of the opening of differences; less its cost, the
//! largest is chosen, and equal scores go to the earlier model. So does one under [`Routing::Private`], whose noise needs the choice in one
//! element: its utilities are compared in the same openings as its logits.
//!
//! The choice is told to the device, which asks for that model as for any. The server learns it from what the device asks for next, and
//! that is the affair of the policy.

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::circuit::{Circuit, Combination, Combine, Groups, Operand, Party};
use crate::routing::Routing;
use crate::spec::{MAX_TABLE_BITS, Output, RouterSpec, Words};

use super::{Items, argmax, margin_argmax, tell_index, trunk};

/// Steps between the least utility of interest and certainty. Utilities are not cut at either end.
pub const UTILITY_MAX: i32 = 255;
/// Most steps by which utilities of one input may differ.
pub const UTILITY_SPREAD: i32 = 768;
/// Cost bias of a model that must not be chosen, in steps: with it a model loses to the worst one at full cost.
pub const COST_BIAS_MAX: i32 = UTILITY_SPREAD + UTILITY_MAX + 1;

const _: () = assert!(UTILITY_SPREAD + COST_BIAS_MAX < 1 << (MAX_TABLE_BITS - 1));

/// Scores `models` models and tells the device the best of them, and the first model's answer if the router gives it.
///
/// # Errors
/// The party's.
pub fn router<P: Party>(
    circuit: &mut Circuit<'_, P>,
    spec: &RouterSpec,
    words: Option<Words>,
    models: u16,
    output: Output,
    routing: Routing,
) -> Result<(), P::Error> {
    let all = Groups([models, spec.answers]);
    let estimates = trunk(circuit, &spec.trunk, words, all.items())?;
    let wire = circuit.remask(estimates, spec.trunk.output_bits)?;
    let items = Items { wire, difference: spec.trunk.difference() };
    match routing {
        Routing::Open | Routing::Device if spec.answers > 0 => margin_argmax(circuit, items, all)?,
        Routing::Open | Routing::Device => argmax(circuit, items, all)?,
        Routing::Private { .. } if output == Output::Label => tell_index(circuit, items, all)?,
        // Logits are revealed as they are: there is no label to compare them for.
        Routing::Private { .. } => tell_index(circuit, items, Groups([models, 0]))?,
    }
    if routing == Routing::Device || output == Output::Label {
        return Ok(());
    }
    if spec.answers > 0 {
        let logits = Combine { wire, combination: Combination::Last, groups: all };
        circuit.reveal(Operand::Combine(logits), spec.trunk.output_bits)?;
    }
    Ok(())
}

/// The model that a router's one-hots come to. Of one that goes `by_margin`: the first model if its own answer, which stands behind the
/// `models`, is clear, and else the best of the others. Always one, in the same time whatever was told.
#[must_use]
pub fn choice(told: &[u32], models: u16, by_margin: bool) -> u8 {
    let (route, answer) = told.split_at(told.len().min(models.into()));
    if !by_margin {
        return first_one(route).0;
    }
    let (_, clear) = first_one(answer);
    let (other, _) = first_one(route.get(1..).unwrap_or(&[]));
    u8::conditional_select(&other.wrapping_add(1), &0, clear)
}

/// The place of the first 1, or 0, and whether there is one.
fn first_one(one_hot: &[u32]) -> (u8, Choice) {
    let (mut place, mut found) = (0, Choice::from(0));
    for (index, word) in (0u8..).zip(one_hot) {
        let one = word.ct_eq(&1);
        place.conditional_assign(&index, one & !found);
        found |= one;
    }
    (place, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So a server of bad faith learns one of the models, whatever it tells.
    #[test]
    fn whatever_is_told_is_one_of_the_models() {
        let words = [0, 1, 2, u32::MAX];
        for models in 2..=3u16 {
            let told = (0..4usize.pow(5)).map(|number| [0, 2, 4, 6, 8].map(|at| words[number >> at & 3]));
            for told in told {
                let told = &told[..usize::from(models) + 2];
                let (route, answer) = told.split_at(models.into());
                let first = |words: &[u32]| words.iter().position(|word| *word == 1);
                let wanted = match first(answer) {
                    Some(_) => 0,
                    None => 1 + first(&route[1..]).unwrap_or(0),
                };
                assert_eq!(usize::from(choice(told, models, true)), wanted, "{told:?}");
                assert_eq!(usize::from(choice(told, models, false)), first(route).unwrap_or(0), "{told:?}");
                assert!(wanted < usize::from(models));
            }
        }
    }
}
