//! The three parties against the clear-text reference, bit for bit, over random shapes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use lab::{Dither, Seeds, random_secret as secret, reference, run};
use proptest::prelude::*;
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::clear::{self, ClearError};
use secure_router_core::model::COST_BIAS_MAX;
use secure_router_core::routing::{Bias, MAX_EPSILON, MAX_PRIVATE_MODELS, Routing};
use secure_router_core::spec::{ModelSpec, Opening, Output, RouterSpec, Words};

fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

prop_compose! {
    fn shapes()(
        tokens in 1u16..6, features in 1u16..7, heads in 0u8..3, depth in 1u16..5, ffn in 0u16..8,
        layers in 0u8..4, shift in 0u8..7,
    ) -> ModelSpec {
        ModelSpec {
            tokens, features, width: u16::from(heads) * depth, heads,
            ffn: if heads == 0 && ffn == 0 { 3 } else { ffn }, layers,
            qkv: opening(shift, 14), score: opening(shift, 10), mix: opening(shift, 14), ffn_in: opening(shift + 1, 10),
            output_bits: 26,
        }
    }
}

/// Some inputs are made of words, as many to each token.
fn words(spec: &ModelSpec, (each, bits): (u16, u8)) -> Option<Words> {
    (bits > 0).then_some(Words { count: each * spec.tokens, bits })
}

/// An input: values up to `edge` either way, or any words.
fn input(spec: &ModelSpec, words: Option<Words>, edge: i16) -> Vec<i16> {
    match words {
        None => (0..spec.tokens * spec.features).map(|i| ((i as i16 * 37) % (2 * edge + 1)) - edge).collect(),
        Some(words) => (0..words.count as i16).map(|i| (i * 37 + edge) & ((1 << words.bits) - 1)).collect(),
    }
}

/// Whether one item has won; of three or more it may be none, where rounding puts near ones in a circle.
fn winners(one_hot: &[i64]) -> bool {
    let least = i64::from((1..3).contains(&one_hot.len()));
    (least..=1).contains(&one_hot.iter().sum::<i64>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_model_equals_the_reference_bit_for_bit(
        spec in shapes(), classes in 1u16..5, seed: u64, size in 1i16..30, edge in 1i16..64, frame in 1usize..90, tile in 1u16..7,
        label: bool, vocabulary in (1u16..4, 0u8..7),
    ) {
        let output = if label { Output::Label } else { Output::Logits };
        let words = words(&spec, vocabulary);
        let secret = secret(Program::Model { spec, words, classes, output }, seed, size);
        let seeds = Seeds::fixed(seed as u8);
        let input = input(&spec, words, edge);
        let expected = match reference(&secret, &input, Bias::NONE, &mut Dither(seeds.dealer_keys(5))) {
            Ok(expected) => expected,
            Err(ClearError::Range { .. }) => return Err(TestCaseError::reject("the random model overflows its bits")),
            Err(error) => panic!("{error}"),
        };
        let outcome = run(&secret, &seeds, 5, &input, Bias::NONE, frame, tile);
        prop_assert_eq!(outcome.logits.iter().map(|l| i64::from(*l)).collect::<Vec<_>>(), expected);

        // Neither the frames nor the tile change a byte.
        let whole = run(&secret, &seeds, 5, &input, Bias::NONE, 1 << 16, 64);
        prop_assert_eq!(outcome, whole);
    }

    #[test]
    fn the_router_finds_the_best_score_and_ties_go_to_the_first(
        spec in shapes(), models in 2u16..=8, answers in 0u16..6, seed: u64, scores: [u8; 8], flat: bool, policy in 0..3, margin in 0u16..30,
        vocabulary in (1u16..4, 0u8..7),
    ) {
        let routing = match policy {
            0 => Routing::Open,
            // So private a route that it is the dealer's in one of millions.
            1 => Routing::Private { epsilon: MAX_EPSILON },
            _ => Routing::Device,
        };
        let models = if policy == 1 { models.min(MAX_PRIVATE_MODELS as u16) } else { models };
        let mut trunk = spec;
        trunk.output_bits = 24;
        let router = RouterSpec { trunk, answers };
        let words = words(&spec, vocabulary);
        let program = Program::Router { spec: router, words, models, output: Output::Label, routing };
        let mut secret = secret(program, seed, 9);
        if flat {
            // The last linear gate's.
            secret.weights.iter_mut().for_each(|w| *w = 0);
            secret.biases.iter_mut().for_each(|b| *b = 7);
        }
        let mut scores: Vec<i32> = scores.iter().map(|s| i32::from(*s) % 3 - 100).collect();
        scores.truncate(models.into());
        let by_margin = program.by_margin();
        if by_margin {
            scores[0] = -COST_BIAS_MAX;
        }
        let bias = Bias { scores: &scores, margin };
        let seeds = Seeds { slot: Slot::Router, ..Seeds::fixed(seed as u8) };
        let input = input(&spec, words, 3);
        let expected = match reference(&secret, &input, bias, &mut Dither(seeds.dealer_keys(1))) {
            Ok(expected) => expected,
            Err(ClearError::Range { .. }) => return Err(TestCaseError::reject("the random router overflows its bits")),
            Err(error) => panic!("{error}"),
        };
        let outcome = run(&secret, &seeds, 1, &input, bias, 64, 2);
        let (route, answer) = expected.split_at(if policy == 1 { 1 } else { usize::from(models) });
        let winner = if policy == 1 {
            route[0] as usize
        } else {
            prop_assert!(winners(route), "{:?}", route);
            clear::chosen(&program, &expected).into()
        };
        // An answer that is not clear has no winner.
        prop_assert!(winners(answer) || by_margin && answer.iter().all(|one| *one == 0), "{:?}", answer);
        if by_margin {
            prop_assert_eq!(winner == 0, answer.contains(&1));
        }
        let found: Vec<i64> = outcome.logits.iter().map(|one| i64::from(*one)).collect();
        prop_assert_eq!((outcome.choice, &found[..]), (Some(Slot::Model(winner as u8)), answer));
        if flat {
            let best = scores[..usize::from(models)].iter().max().unwrap();
            let clear = by_margin && (margin == 0 || answers == 1);
            let best = if clear { &scores[0] } else { best };
            prop_assert_eq!(winner, scores.iter().position(|score| score == best).unwrap());
        }
    }
}
