//! Each gate by itself: exhaustively over small rings, at the edges of every opening, against plain integers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use lab::{Dither, Secret, Seeds, random_secret, reference, run};
use proptest::collection::vec;
use proptest::prelude::*;
use secure_router_core::circuit::{Embed, HeadView, Linear, Operand, Product, Program, Slot, Table, Wire};
use secure_router_core::clear::{self, ClearError, Nearest};
use secure_router_core::gate::{self, embed, linear, margin, opening, product, requantise, table};
use secure_router_core::keys::DeviceSeeds;
use secure_router_core::model::COST_BIAS_MAX;
use secure_router_core::prg::{Purpose, Stream, StreamId};
use secure_router_core::ring::{low_bits, signed};
use secure_router_core::routing::{Bias, Routing};
use secure_router_core::spec::{ModelSpec, Opening, Output, RouterSpec, Words};

fn shape(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

/// The server's index for a true value `y`, as the three parties make it.
fn opened(o: Opening, y: i64, offset: u32, rho_device: u32, rho_server: u32, mask: u32) -> u32 {
    let y_hat = (y as u32).wrapping_add(mask);
    opening::server_index(o, y_hat.wrapping_add(offset), gate::correction(rho_device, mask), rho_server)
}

/// A requantised value, from the entry and the pad that its key bit selects.
fn requantised(o: Opening, y: i64, rho_device: u32, rho_server: u32, mask: u32, wire_mask: u32, bits: u8) -> i64 {
    let index = opened(o, y, requantise::offset(o), rho_device, rho_server, mask);
    let sigma = opening::dealer_sigma(o, rho_device.wrapping_add(rho_server));
    let pad = mask.rotate_left(9) ^ 0x5bd1_e995;
    let entry = requantise::dealer_entry(o, sigma, requantise::key_bit(o, index), wire_mask).wrapping_sub(pad);
    i64::from(signed(low_bits(requantise::server_share(index, entry, pad, bits).wrapping_sub(wire_mask), bits), bits))
}

/// A spec whose input is made of words alone, with this gate at its front.
fn embedding(words: Words, rows: u16, width: u16) -> (Program, Embed) {
    let spec = ModelSpec { tokens: rows, features: width, heads: 0, ffn: 0, layers: 0, width: 0, ..base() };
    let program = Program::Model { spec, words: Some(words), classes: 2, output: Output::Logits };
    let Operand::Embed(embed) = program.gate(0).unwrap().unwrap().operand else { panic!("no embedding") };
    (program, embed)
}

#[test]
fn an_embedding_is_the_sum_of_its_words_vectors_under_the_wires_mask_and_nothing_more() {
    for (rows, each, bits, width) in
        [(1, 1, 1, 1), (1, 7, 5, 4), (3, 2, 4, 3), (2, 3, 6, 16), (4, 1, 3, 17), (1, 2, 2, 40)]
    {
        let words = Words { count: rows * each, bits };
        let (program, embed) = embedding(words, rows, width);
        let secret = random_secret(program, 3, 3000);
        let seeds = Seeds::fixed(width as u8);
        let device = DeviceSeeds { dealer: seeds.device_dealer.clone(), server: seeds.device_server.clone() };
        for counter in 0..6 {
            let keys = device.keys(&seeds.pool, seeds.slot, counter);
            let input: Vec<i16> =
                (0..words.count as i16).map(|i| (i * 29 + counter as i16 * 7) & ((1 << bits) - 1)).collect();
            let mut entries = Vec::new();
            let masked = lab::masked_weights(&secret, &seeds);
            embed::dealer_entries(0, &embed, &seeds.dealer_keys(counter).device, &masked, |entry| entries.push(entry));
            assert_eq!(entries.len() as u32, embed.entries());
            let mut sigma = Stream::new(&keys.run, StreamId::new(0, Purpose::IndexMask));
            let sent: Vec<u32> = input.iter().map(|word| embed::device_word(*word, sigma.draw())).collect();
            let mut wire = Stream::new(&keys.run, StreamId::new(0, Purpose::WireMask));
            let mut expected = Vec::new();
            embed::evaluate(&embed, &secret.weights, &input, |_, sum: i64| expected.push(sum));
            for row in 0..rows {
                let mut work = vec![0; width.into()];
                let sums = embed::device_row(0, &embed, &keys, row, &input, &mut work).unwrap().to_vec();
                for (column, sum) in (0..).zip(sums) {
                    let word = |i: u16| sent[usize::from(i)];
                    let share = embed::server_share(&embed, row, column, sum, word, |at| entries[at as usize]);
                    let value = expected[usize::from(row * width + column)];
                    assert_eq!(share.wrapping_sub(wire.draw()), value as u32, "{embed:?} {row} {column}");
                }
            }
        }
    }
}

#[test]
fn requantisation_is_unbiased_and_within_one_unit_for_every_value_and_every_mask() {
    for (s, n) in [(0, 3), (1, 3), (2, 4), (3, 5), (4, 6), (6, 4)] {
        let o = shape(s, n);
        let ring = 1u32 << o.bits();
        let unit = 1i64 << s;
        let limit = 1i64 << (n - 2);
        // Every value that stays in range however it is rounded.
        for y in (1 - limit) * unit..=(limit - 1) * unit {
            let mut sum = 0;
            for rho in 0..ring {
                let (mask, wire_mask) = (rho.wrapping_mul(0x9e37_79b9), rho.wrapping_mul(0x85eb_ca6b));
                let rho_device = rho.wrapping_mul(0xc2b2_ae35);
                let v = requantised(o, y, rho_device, rho.wrapping_sub(rho_device), mask, wire_mask, 20);
                assert_eq!(v, opening::round(o, y, low_bits(rho, s)), "y {y} rho {rho}");
                assert!((v * unit - y).abs() < unit, "y {y} rho {rho} gave {v}");
                assert!(requantise::in_range(o, v));
                sum += v;
            }
            // Exactly unbiased: the mean over the mask is y / 2^s.
            assert_eq!(sum * unit, y * i64::from(ring), "y {y}");
        }
    }
}

#[test]
fn the_mean_of_many_roundings_under_the_protocol_is_the_value() {
    // 24 biases as accumulators of a requantisation by 7 bits, over many inferences.
    let spec = ModelSpec { tokens: 1, features: 1, width: 8, heads: 1, ffn: 0, layers: 1, ..base() };
    let mut secret = random_secret(Program::Model { spec, words: None, classes: 8, output: Output::Logits }, 1, 1);
    secret.weights.iter_mut().for_each(|w| *w = 0);
    // The values come through the mixing: one token, and a score table that is 1.
    secret.tables.iter_mut().for_each(|entry| *entry = 1);
    let layout = secret.program.layout().unwrap();
    let read = layout.weights as usize - 8 * 8;
    (0..8).for_each(|class| secret.weights[read + class * 8 + class] = 1);
    let values: Vec<i32> = (0..8).map(|i| (i * 2 - 7) * 137 + 5).collect();
    secret.biases.iter_mut().for_each(|bias| *bias = 0);
    secret.biases[16..24].copy_from_slice(&values);
    let runs = 4000;
    let mut sums = [0i64; 8];
    for counter in 0..runs {
        let outcome = run(&secret, &Seeds::fixed(6), counter, &[0], Bias::NONE, 1024, 1);
        for ((sum, logit), value) in sums.iter_mut().zip(&outcome.logits).zip(&values) {
            assert!((i64::from(*logit) * 128 - i64::from(*value)).abs() < 128);
            *sum += i64::from(*logit);
        }
    }
    for (sum, value) in sums.iter().zip(&values) {
        let mean = *sum as f64 / runs as f64;
        let exact = f64::from(*value) / 128.0;
        // A rounding's standard deviation is at most half a unit.
        assert!((mean - exact).abs() < 5.0 * 0.5 / (runs as f64).sqrt(), "{mean} for {exact}");
    }
}

#[test]
fn a_table_gives_the_entry_of_the_rounded_value_for_every_value_and_every_mask() {
    for (s, n) in [(0, 2), (1, 3), (3, 4), (2, 5)] {
        let o = shape(s, n);
        let (entries, ring) = (1usize << n, 1u32 << o.bits());
        let tables: Vec<i16> = (0..entries as i16).map(|entry| entry * entry * 17 - 3000).collect();
        let mut function = vec![0; entries];
        table::tabulate(Table::Secret { at: 0 }, &tables, n, &mut function);
        let limit = 1i64 << (n - 1);
        // Up to the largest value that no rounding takes beyond the last entry.
        for y in -limit << s..=(limit - 1) << s {
            for rho in 0..ring {
                let (mask, wire_mask) = (rho.wrapping_mul(0x9e37_79b9), rho.wrapping_mul(0x27d4_eb2f));
                let rho_device = rho.wrapping_mul(0xc2b2_ae35);
                let index = opened(o, y, 0, rho_device, rho.wrapping_sub(rho_device), mask);
                assert!((index as usize) < entries);
                let mut shares = Vec::new();
                table::dealer_entries(&function, opening::dealer_sigma(o, rho), wire_mask, |entry| shares.push(entry));
                assert_eq!(shares.len(), entries);
                let pad = rho ^ 0xdead_beef;
                let share = table::server_share(shares[index as usize].wrapping_sub(pad), pad, 16);
                let value = signed(low_bits(share.wrapping_sub(wire_mask), 16), 16);
                let rounded = opening::round(o, y, low_bits(rho, s)) as i32;
                assert_eq!(value, table::value(Table::Secret { at: 0 }, &tables, n, rounded), "y {y} rho {rho}");
                // Within the carry: the entry at the floor, or the next one.
                let floor = (y >> s) as i32;
                assert!(rounded == floor || rounded == floor + 1 && y & ((1 << s) - 1) != 0);
            }
        }
    }
}

fn base() -> ModelSpec {
    ModelSpec {
        tokens: 1,
        features: 1,
        width: 2,
        heads: 1,
        ffn: 2,
        layers: 1,
        qkv: shape(0, 14),
        score: shape(6, 9),
        mix: shape(7, 14),
        ffn_in: shape(5, 8),
        output_bits: 24,
    }
}

/// A one-layer feed-forward program whose table indices are its biases, and whose logits are the entries.
fn tabled(o: Opening, values: &[i32], output_bits: u8) -> Secret {
    let count = values.len() as u16;
    let spec = ModelSpec { heads: 0, ffn: count, ffn_in: o, output_bits, ..base() };
    let mut secret = random_secret(Program::Model { spec, words: None, classes: count, output: Output::Logits }, 1, 1);
    secret.weights.iter_mut().for_each(|w| *w = 0);
    secret.biases.iter_mut().for_each(|b| *b = 0);
    secret.biases[..values.len()].copy_from_slice(values);
    let read = secret.weights.len() - values.len() * values.len();
    (0..values.len()).for_each(|class| secret.weights[read + class * values.len() + class] = 1);
    secret.tables = (0..1u32 << o.index_bits).map(|entry| signed(entry, o.index_bits) as i16).collect();
    secret
}

#[test]
fn every_opening_takes_the_extreme_values_that_fit_it() {
    for (s, n) in [(0, 2), (0, 12), (5, 8), (20, 12), (30, 2), (23, 9)] {
        let o = shape(s, n);
        let (low, high) = (-(1i64 << (n - 1)) << s, ((1i64 << (n - 1)) - 1) << s);
        let values: Vec<i32> = [low, low + 1, -1, 0, 1, high - 1, high].map(|y| y.clamp(low, high) as i32).to_vec();
        for input_bits in [o.bits().max(16), 32] {
            let secret = tabled(o, &values, input_bits);
            for counter in 0..40 {
                let seeds = Seeds::fixed(2);
                let wanted = reference(&secret, &[7], Bias::NONE, &mut Dither(seeds.dealer_keys(counter))).unwrap();
                let logits = run(&secret, &seeds, counter, &[7], Bias::NONE, 1024, 1).logits;
                assert_eq!(logits.iter().map(|l| i64::from(*l)).collect::<Vec<_>>(), wanted, "{o:?}");
                for (value, rounded) in values.iter().zip(&wanted) {
                    assert!(*rounded == i64::from(*value) >> s || *rounded == (i64::from(*value) >> s) + 1);
                }
            }
        }
        // One more wraps around to the other end; the reference refuses it.
        let beyond = high + (1 << s);
        if beyond <= i64::from(i32::MAX) {
            let secret = tabled(o, &[beyond as i32], 24.max(o.bits()));
            let refused = reference(&secret, &[7], Bias::NONE, &mut Nearest);
            assert_eq!(refused, Err(ClearError::Range { gate: 1, value: beyond >> s, bits: n }), "{o:?}");
            let wrapped = run(&secret, &Seeds::fixed(2), 1, &[7], Bias::NONE, 1024, 1).logits;
            assert_eq!(wrapped, [-(1 << (n - 1))], "{o:?}");
        }
    }
}

#[test]
fn a_table_that_saturates_saturates_at_its_last_entries() {
    let o = shape(4, 6);
    let values = [-512, -511, -100, 99, 480, 495].map(|v: i32| v.min(31 << 4));
    let mut secret = tabled(o, &values, 24);
    // A clamp to -7..=7 in steps of the index.
    secret.tables.iter_mut().for_each(|entry| *entry = (*entry).clamp(-7, 7));
    for counter in 0..50 {
        let logits = run(&secret, &Seeds::fixed(4), counter, &[1], Bias::NONE, 64, 1).logits;
        assert_eq!(logits[..2], [-7, -7]);
        assert_eq!(logits[4..], [7, 7]);
        assert!((-7..=-6).contains(&logits[2]) && (6..=7).contains(&logits[3]));
    }
}

#[test]
fn the_output_takes_the_extreme_logits() {
    for bits in [2u8, 9, 24, 31, 32] {
        let (low, high) = (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1);
        let spec = ModelSpec { heads: 0, ffn: 0, layers: 0, output_bits: bits, ..base() };
        let mut secret = random_secret(Program::Model { spec, words: None, classes: 4, output: Output::Logits }, 1, 1);
        secret.weights.iter_mut().for_each(|w| *w = 0);
        secret.biases = vec![low as i32, high as i32, 0, -1];
        let logits = run(&secret, &Seeds::fixed(1), 3, &[5], Bias::NONE, 1024, 1).logits;
        assert_eq!(logits, [low as i32, high as i32, 0, -1]);
        assert!(reference(&secret, &[5], Bias::NONE, &mut Nearest).is_ok());
        if bits < 32 {
            secret.biases[1] = high as i32 + 1;
            let refused = ClearError::Range { gate: 1, value: high + 1, bits };
            assert_eq!(reference(&secret, &[5], Bias::NONE, &mut Nearest), Err(refused));
        }
    }
}

#[test]
fn requantised_queries_keys_and_values_take_their_extremes() {
    // One token and one head: the score is q times k, the mixture is the weight times v.
    let n = 9;
    let limit = (1i32 << (n - 2)) - 1;
    for (q, k, v) in [(limit, limit, limit), (-limit, limit, -limit), (-limit, -limit, limit), (0, -limit, -limit)] {
        let spec = ModelSpec { width: 1, ffn: 0, qkv: shape(3, n), score: shape(7, 9), mix: shape(4, 14), ..base() };
        let mut secret = random_secret(Program::Model { spec, words: None, classes: 1, output: Output::Logits }, 1, 1);
        secret.weights.iter_mut().for_each(|w| *w = 0);
        *secret.weights.last_mut().unwrap() = 1;
        secret.biases.iter_mut().for_each(|b| *b = 0);
        secret.biases[..3].copy_from_slice(&[q << 3, k << 3, v << 3]);
        secret.tables = (0..512).map(|entry| signed(entry, 9) as i16 / 4).collect();
        for counter in 0..30 {
            let seeds = Seeds::fixed(7);
            let wanted = reference(&secret, &[1], Bias::NONE, &mut Dither(seeds.dealer_keys(counter))).unwrap();
            let logits = run(&secret, &seeds, counter, &[1], Bias::NONE, 1024, 1).logits;
            assert_eq!(i64::from(logits[0]), wanted[0]);
            let weight = f64::from(q * k) / 128.0 / 4.0;
            assert!((wanted[0] as f64 - weight * f64::from(v) / 16.0).abs() < 12.0, "{q} {k} {v}: {}", wanted[0]);
        }
    }
}

fn wire(rows: u16, width: u16, blocks: u16, at: u32) -> Wire {
    Wire { gate: 0, rows, width, blocks, bits: 32, at }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_those_of_plain_integers(
        heads in 1u16..4, rows in 1u16..6, depth in 1u16..5, transposed: bool, seed: u64,
    ) {
        let size = usize::from(rows) * usize::from(heads);
        // Queries, keys and values side by side in one wire; weights in blocks, one a head.
        let joint = wire(rows, heads * depth * 3, 1, 3);
        let blocks = wire(rows, rows, heads, joint.at + joint.elements());
        let mut state = seed;
        let arena: Vec<i64> = (0..blocks.at + blocks.elements()).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as i64 - (1 << 23)
        }).collect();
        let part = |index: u16| HeadView { wire: joint, column: index * heads * depth, depth };
        let product = if transposed {
            Product { left: part(0), right: part(1), heads, rows, transposed }
        } else {
            Product { left: HeadView { wire: blocks, column: 0, depth: rows }, right: part(2), heads, rows, transposed }
        };
        let (h, t, d) = (usize::from(heads), usize::from(rows), usize::from(depth));
        let joined = |part: usize, head: usize, row: usize, column: usize| arena[3 + row * 3 * h * d + part * h * d + head * d + column];
        let mut wanted = Vec::new();
        for (head, row) in (0..h).flat_map(|head| (0..t).map(move |row| (head, row))) {
            for column in 0..usize::from(product.width()) {
                wanted.push(if transposed {
                    (0..d).map(|i| joined(0, head, row, i) * joined(1, head, column, i)).sum()
                } else {
                    (0..t).map(|i| arena[blocks.at as usize + (head * t + row) * t + i] * joined(2, head, i, column)).sum::<i64>()
                });
            }
        }
        let mut got = vec![0; wanted.len()];
        product::evaluate(&product, &arena, &mut vec![0; product::scratch(&product)], |element, value| got[element as usize] = value);
        prop_assert_eq!(&got, &wanted);
        prop_assert_eq!(got.len(), size * usize::from(product.width()));

        // The ring's product is the integers', modulo 2^32.
        let ring: Vec<u32> = arena.iter().map(|x| *x as u32).collect();
        let mut low = vec![0; wanted.len()];
        product::evaluate(&product, &ring, &mut vec![0; product::scratch(&product)], |element, value| low[element as usize] = value);
        prop_assert_eq!(low, wanted.iter().map(|x| *x as u32).collect::<Vec<_>>());
    }

    #[test]
    fn linear_gates_are_those_of_plain_integers(
        rows in 1u16..5, outputs in 1u16..6, shapes in vec((1u16..4, 1u16..4), 1..4), pooled: bool, seed: u64,
    ) {
        let mut at = 0;
        let terms: Vec<Wire> = shapes.iter().map(|(width, blocks)| {
            let term = wire(rows, *width, *blocks, at);
            at += term.elements();
            term
        }).collect();
        let gate = Linear {
            terms: terms.iter().copied().collect(), rows: if pooled { 1 } else { rows }, outputs, pooled, weights_at: 2, biases_at: 0,
        };
        let mut state = seed;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 48) as i16
        };
        let weights: Vec<i16> = (0..2 + gate.weights()).map(|_| draw()).collect();
        let arena: Vec<i64> = (0..at).map(|_| i64::from(draw())).collect();
        let value = |term: &Wire, row: u16, column: u16| {
            arena[(term.at + term.run(column / term.width, row)) as usize + usize::from(column % term.width)]
        };
        let mut wanted = Vec::new();
        for (row, output) in (0..gate.rows).flat_map(|row| (0..outputs).map(move |output| (row, output))) {
            let (mut sum, mut at) = (0i64, 2usize);
            for term in &terms {
                for column in 0..term.columns() {
                    let weight = i64::from(weights[at + usize::from(output * term.columns() + column)]);
                    let read = if pooled { 0..rows } else { row..row + 1 };
                    sum += read.map(|row| weight * value(term, row, column)).sum::<i64>();
                }
                at += usize::from(term.columns() * outputs);
            }
            wanted.push(sum);
        }
        let mut got = Vec::new();
        linear::evaluate(&gate, &weights, &arena, &mut vec![0; linear::scratch(&gate)], |element, value| {
            assert_eq!(element as usize, got.len());
            got.push(value);
        });
        prop_assert_eq!(got, wanted);
    }
}

/// A router without a trunk to speak of, that has these utilities whatever the input.
fn arbiter(models: u16, utilities: &[i16], output_bits: u8) -> Secret {
    let trunk = ModelSpec { heads: 0, ffn: 0, layers: 0, output_bits, ..base() };
    let program = Program::Router {
        spec: RouterSpec { trunk, answers: 0 },
        words: None,
        models,
        output: Output::Label,
        routing: Routing::Open,
    };
    let mut secret = random_secret(program, 1, 1);
    secret.weights.iter_mut().for_each(|w| *w = 0);
    // Whole steps: their differences are opened exactly, with a shift and without.
    let steps = secret.biases.iter_mut().zip(utilities);
    steps.for_each(|(bias, utility)| *bias = i32::from(*utility) << trunk.difference().shift);
    secret
}

fn choice(secret: &Secret, counter: u64, scores: &[i32]) -> Slot {
    let seeds = Seeds { slot: Slot::Router, ..Seeds::fixed(9) };
    run(secret, &seeds, counter, &[3], Bias { scores, margin: 0 }, 1024, 1).choice.unwrap()
}

fn best(totals: &[i32]) -> Slot {
    let largest = totals.iter().max().unwrap();
    Slot::Model(totals.iter().position(|total| total == largest).unwrap() as u8)
}

#[test]
fn the_argmax_is_right_for_every_order_and_every_tie() {
    let mut counter = 0;
    for models in 2..=4u16 {
        let flat = arbiter(models, &[100; 8], 12);
        // Every assignment of as many ranks as there are models: all permutations and all ties.
        for code in 0..u32::from(models).pow(u32::from(models)) {
            let scores: Vec<i32> = (0..u32::from(models))
                .map(|i| (code / u32::from(models).pow(i) % u32::from(models)) as i32 - 2)
                .collect();
            counter += 1;
            assert_eq!(choice(&flat, counter, &scores), best(&scores), "{scores:?}");
        }
    }
    let flat = arbiter(8, &[0; 8], 16);
    for shift in 0..8 {
        let scores: Vec<i32> = (0..8).map(|i| (i * 3 + shift) % 8 / 2).collect();
        counter += 1;
        assert_eq!(choice(&flat, counter, &scores), best(&scores), "{scores:?}");
    }
}

#[test]
fn the_argmax_takes_the_extreme_scores() {
    // The largest differences there are: the best model against a forbidden one that is useless, both ways, and a
    // useless model at full cost against forbidden ones as good as can be.
    for (utilities, scores) in [
        ([255, 0, 0, 0], [0, -COST_BIAS_MAX, -COST_BIAS_MAX, -COST_BIAS_MAX]),
        ([0, 255, 0, 0], [-COST_BIAS_MAX, 0, -COST_BIAS_MAX, 0]),
        ([255, 768, 0, 768], [-COST_BIAS_MAX, -COST_BIAS_MAX, -255, -COST_BIAS_MAX]),
        ([768, 0, 768, 768], [-COST_BIAS_MAX, 0, -COST_BIAS_MAX, -COST_BIAS_MAX]),
        ([0, 0, 0, 255], [0, 0, 0, 0]),
        ([255, 254, 255, 254], [-1, 0, 0, 0]),
    ] {
        let totals: Vec<i32> = utilities.iter().zip(scores).map(|(u, s)| i32::from(*u) + s).collect();
        for output_bits in [12, 16, 32] {
            let secret = arbiter(4, &utilities, output_bits);
            assert_eq!(choice(&secret, 1, &scores), best(&totals), "{utilities:?} {scores:?} {output_bits}");
        }
    }
}

#[test]
fn a_margin_is_exact_for_every_index_mask_and_margin() {
    const N: u8 = 5;
    let pad = |which: u32, j: u32| (which * 77 + j).wrapping_mul(0x9e37_79b9);
    for (sigma, wire_mask) in (0..1 << N).zip([0, 1, 9, 30].into_iter().cycle()) {
        let tables = [0, 1].map(|which| {
            let mut function = [0; 1 << N];
            table::tabulate(Table::Sign, &[], N, &mut function);
            let mut entries = Vec::new();
            table::dealer_entries(&function, sigma, margin::mask_of(which, wire_mask), |entry| entries.push(entry));
            (0..).zip(entries).map(|(j, entry)| entry.wrapping_sub(pad(which, j))).collect::<Vec<_>>()
        });
        let entries = tables.concat();
        for (y, margin) in (-16i64..16).flat_map(|y| (0..9u16).map(move |margin| (y, margin))) {
            let index = low_bits((y as u32).wrapping_add(sigma), N);
            let [one, other] = margin::places(index, margin.into(), N);
            let pads = pad(0, one).wrapping_add(pad(1, other - (1 << N)));
            let share = margin::server_share([one, other].map(|place| entries[place as usize]), pads, 6);
            let wanted = if y >= i64::from(margin) { 1 } else { -i64::from(y < -i64::from(margin)) };
            assert_eq!(margin::value(y, margin), wanted);
            if margin::in_range(y, margin, N) {
                assert_eq!(
                    signed(low_bits(share.wrapping_sub(wire_mask), 6), 6),
                    wanted as i32,
                    "{y} {margin} {sigma}"
                );
            }
        }
    }
    assert!(
        margin::in_range(12, 3, N)
            && !margin::in_range(13, 3, N)
            && margin::in_range(-13, 3, N)
            && !margin::in_range(-14, 3, N)
    );
}

#[test]
fn a_lead_is_what_the_largest_has_before_the_next() {
    for (logits, lead) in
        [(&[3, 9, -2, 5][..], 4), (&[9, 3], 6), (&[7, 7, 1], 0), (&[-5, -9], 4), (&[1], i32::MAX.into())]
    {
        assert_eq!(clear::lead(logits), lead, "{logits:?}");
    }
}

#[test]
fn an_answer_that_is_clear_is_the_routers_and_another_goes_to_the_best_of_the_others() {
    let (trunk, logits) = (ModelSpec { heads: 0, ffn: 0, layers: 0, output_bits: 16, ..base() }, [5, 9, 3, 9]);
    for (routing, output) in
        [(Routing::Open, Output::Label), (Routing::Open, Output::Logits), (Routing::Device, Output::Label)]
    {
        for (classes, ahead, label) in [(3, 3, 1), (4, 0, 1), (1, 2000, 0)] {
            let spec = RouterSpec { trunk, answers: classes };
            let program = Program::Router { spec, words: None, models: 3, output, routing };
            assert!(program.by_margin());
            let mut secret = random_secret(program, 1, 1);
            secret.weights.iter_mut().for_each(|w| *w = 0);
            // An earlier item must be beaten by more than the margin, of 4 here. The first utility is the largest, and does not matter.
            let steps = [200, 90, 100].into_iter().chain(logits);
            secret.biases.iter_mut().zip(steps).for_each(|(bias, steps)| *bias = steps << trunk.difference().shift);
            for (counter, margin) in (0u64..).zip([0, 1, 3, 4, 5, 100, 900]) {
                for (scores, other) in [([-COST_BIAS_MAX, 0, 0], 2), ([-COST_BIAS_MAX, 0, -20], 1)] {
                    let seeds = Seeds { slot: Slot::Router, ..Seeds::fixed(9) };
                    let bias = Bias { scores: &scores, margin };
                    let outcome = run(&secret, &seeds, counter, &[3], bias, 1024, 1);
                    let clear = ahead >= margin;
                    let route: u8 = if clear { 0 } else { other };
                    assert_eq!(outcome.choice, Some(Slot::Model(route)), "{routing:?} {classes} {margin}");
                    let one_hot = |class| i32::from(clear && class == label);
                    let wanted: Vec<i32> = match output {
                        Output::Logits => logits[..usize::from(classes)].iter().map(|l| l << 4).collect(),
                        Output::Label => (0..i32::from(classes)).map(one_hot).collect(),
                    };
                    assert_eq!(outcome.logits, wanted, "{routing:?} {output:?} {classes} {margin}");
                }
            }
        }
    }
}
