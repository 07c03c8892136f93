//! What each party sees is uniform, whatever the input and the weights, and as long as ever.
//!
//! A party also knows its own keys. So what comes to it is looked at once more with its own masks taken off:
//! what is left must be hidden by the other side's alone.
//!
//! Seeds are fixed, so a run that passes passes always. Thresholds are six standard deviations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::collections::BTreeMap;

use lab::{Outcome, Secret, Seeds, random_secret, run};
use secure_router_core::circuit::{CircuitError, Gate, MessageKind, Operand, Party, Program, Response, Slot};
use secure_router_core::keys::StreamKey;
use secure_router_core::prg::{Purpose, Stream, StreamId};
use secure_router_core::ring::{bits_at, low_bits};
use secure_router_core::routing::{Bias, Routing};
use secure_router_core::spec::{ModelSpec, Opening, Output, RouterSpec, Words};

const RUNS: u64 = 4000;
const SIGMAS: f64 = 6.0;

fn shape(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

fn spec() -> ModelSpec {
    ModelSpec {
        tokens: 3,
        features: 4,
        width: 4,
        heads: 2,
        ffn: 4,
        layers: 1,
        qkv: shape(5, 11),
        score: shape(4, 6),
        mix: shape(4, 11),
        ffn_in: shape(6, 6),
        output_bits: 19,
    }
}

fn programs() -> [Program; 5] {
    let trunk = ModelSpec { heads: 0, output_bits: 13, ..spec() };
    let shape = RouterSpec { trunk, answers: 3 };
    let router = |routing| Program::Router { spec: shape, words: None, models: 3, output: Output::Label, routing };
    [
        Program::Model { spec: spec(), words: None, classes: 3, output: Output::Label },
        router(Routing::Open),
        // The dealer's choice in nearly every other item.
        router(Routing::Private { epsilon: 1300 }),
        router(Routing::Device),
        Program::Model {
            spec: ModelSpec { heads: 0, ..spec() },
            words: Some(Words { count: 12, bits: 4 }),
            classes: 3,
            output: Output::Label,
        },
    ]
}

/// With a margin, where a router goes by one.
const BIAS: Bias<'static> = Bias { scores: &[], margin: 300 };

fn slot(program: &Program) -> Slot {
    if matches!(program, Program::Router { .. }) { Slot::Router } else { Slot::Model(0) }
}

/// Two devices and servers that have nothing in common: nothing at all, and everything at its largest.
fn worlds(program: Program) -> [(Secret, Vec<i16>); 2] {
    let mut nothing = random_secret(program, 1, 1);
    nothing.weights.iter_mut().for_each(|weight| *weight = 0);
    nothing.biases.iter_mut().for_each(|bias| *bias = 0);
    nothing.tables.iter_mut().for_each(|entry| *entry = 0);
    let mut full = random_secret(program, 2, 100);
    full.tables.iter_mut().for_each(|entry| *entry = 63 - *entry / 8);
    let [least, _] = extremes(&program);
    [(nothing, vec![0; 12]), (full, least)]
}

/// Inputs as far apart as can be.
fn extremes(program: &Program) -> [Vec<i16>; 2] {
    let embeds = matches!(program.gate(0).unwrap().unwrap().operand, Operand::Embed(_));
    if embeds { [vec![15; 12], vec![0; 12]] } else { [vec![-128; 12], vec![127; 12]] }
}

/// A run of packed elements: the source (party and message), its first bit, elements and bits.
#[derive(Clone, Debug)]
struct Section {
    name: String,
    source: Source,
    first_bit: u64,
    elements: u64,
    bits: u8,
    own: Own,
}

/// What the parties know of an element's masks.
#[derive(Clone, Debug)]
enum Own {
    /// Nothing.
    Nothing,
    /// The device knows the mask of this element of this gate's wire.
    Wire(Vec<(u16, u64)>),
    /// Device and server know a part of this gate's index mask each.
    Index(u16, Opening, bool),
    /// The same of an index with the entry that it selects above it.
    Told(u16, Opening),
}

impl Own {
    /// An element without what the owner of `key` knows of its mask.
    fn unmasked(&self, key: &StreamKey, element: u64, value: u32, bits: u8) -> u32 {
        let word = |gate, purpose, at| Stream::new(key, StreamId::new(gate, purpose)).at(at);
        match self {
            Self::Nothing => value,
            Self::Wire(masks) => {
                let (gate, at) = masks[element as usize];
                low_bits(value.wrapping_sub(word(gate, Purpose::WireMask, at)), bits)
            }
            Self::Index(gate, opening, key_bit) => {
                let rho = low_bits(word(*gate, Purpose::IndexMask, element), opening.bits()) >> opening.shift;
                let known = if *key_bit { rho >> (opening.index_bits - 1) } else { rho };
                low_bits(value.wrapping_sub(known), bits)
            }
            Self::Told(gate, opening) => {
                let rho = low_bits(word(*gate, Purpose::IndexMask, element), opening.bits()) >> opening.shift;
                let index = low_bits(value.wrapping_sub(rho), opening.index_bits);
                value >> opening.index_bits << opening.index_bits | index
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Corrections,
    Stock,
    Up(usize),
    Down(usize),
}

fn bytes(outcome: &Outcome, source: Source) -> &[u8] {
    match source {
        Source::Corrections => &outcome.corrections,
        Source::Stock => &outcome.stock,
        Source::Up(message) => &outcome.up[message],
        Source::Down(message) => &outcome.down[message],
    }
}

/// Everything that crosses a link, offline and online, gate by gate.
fn sections(program: &Program) -> Vec<Section> {
    #[derive(Default)]
    struct Sections {
        all: Vec<Section>,
        up: usize,
        down: usize,
    }
    impl Party for Sections {
        type Error = CircuitError;
        fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
            let elements = u64::from(gate.elements());
            let mut add = |name: String, source, first_bit, elements, bits, own| {
                let name = format!("gate {} {name}", gate.id);
                self.all.push(Section { name, source, first_bit, elements, bits, own });
            };
            let correlated = u64::from(gate.correlated());
            add("correlation".into(), Source::Stock, gate.stock_at * 8, correlated, gate.bits(), Own::Nothing);
            let entries = elements * u64::from(gate.response.entries());
            add("entries".into(), Source::Stock, gate.entries_at * 8, entries, gate.out.bits, Own::Nothing);
            if gate.corrects_offline() {
                let at = gate.corrections_at;
                add("correction".into(), Source::Corrections, at, elements, gate.bits(), Own::Nothing);
            }
            for message in gate.messages() {
                let count = if message.kind.from_device() { &mut self.up } else { &mut self.down };
                let source = if message.kind.from_device() { Source::Up(*count) } else { Source::Down(*count) };
                *count += 1;
                let own = match (message.kind, &gate.operand, gate.response) {
                    (MessageKind::Operands, Operand::Product(product), _) => {
                        let mut masks = Vec::new();
                        for head in 0..product.heads {
                            for view in [&product.right, &product.left] {
                                for row in 0..product.rows {
                                    let first = u64::from(view.run(head, row));
                                    masks.extend((0..u64::from(view.depth)).map(|i| (view.wire.gate, first + i)));
                                }
                            }
                        }
                        Own::Wire(masks)
                    }
                    (MessageKind::Index, _, Response::Requantise(opening)) => Own::Index(gate.id, opening, true),
                    (MessageKind::Index, _, Response::Table { opening, .. }) => Own::Index(gate.id, opening, false),
                    (MessageKind::Index, _, Response::Margin { opening, .. }) => Own::Index(gate.id, opening, false),
                    (MessageKind::Tell, _, Response::Tell { opening, .. }) => Own::Told(gate.id, opening),
                    _ => Own::Nothing,
                };
                // The margin before the indices is public.
                let margin = message.kind == MessageKind::Index && matches!(gate.response, Response::Margin { .. });
                let skipped = u64::from(margin);
                let (first_bit, elements) = (skipped * u64::from(message.bits), u64::from(message.elements) - skipped);
                add(format!("{:?}", message.kind), source, first_bit, elements, message.bits, own);
            }
            self.all.retain(|section| section.elements > 0);
            Ok(())
        }
    }
    let mut found = Sections::default();
    program.walk(&mut found).unwrap();
    assert!(found.all.iter().any(|section| section.name.contains(&format!("{:?}", MessageKind::Answer))));
    found.all
}

/// Counts of each value's low byte and of each bit.
#[derive(Clone, Debug)]
struct Histogram {
    bits: u8,
    samples: u64,
    ones: Vec<u64>,
    values: Vec<u64>,
}

impl Histogram {
    fn new(bits: u8) -> Self {
        Self { bits, samples: 0, ones: vec![0; usize::from(bits)], values: vec![0; 1 << bits.min(8)] }
    }

    fn add(&mut self, value: u32) {
        self.samples += 1;
        (0..self.bits).for_each(|bit| self.ones[usize::from(bit)] += u64::from(value >> bit & 1));
        // The top bits of a value, where its size would show, and with up to 8 bits all of it.
        let top = self.bits.saturating_sub(8);
        self.values[(value >> top) as usize] += 1;
    }

    /// The largest deviation from uniform, in standard deviations.
    fn deviation(&self) -> f64 {
        let n = self.samples as f64;
        let bits = self.ones.iter().map(|ones| (*ones as f64 - n / 2.0).abs() / (n / 4.0).sqrt());
        let (cells, expected) = (self.values.len() as f64, n / self.values.len() as f64);
        // The approximation below needs a few samples per cell.
        let chi = if expected < 5.0 {
            0.0
        } else {
            let chi: f64 = self.values.iter().map(|count| (*count as f64 - expected).powi(2) / expected).sum();
            let spread = 2.0 / (9.0 * (cells - 1.0));
            // Too even is as suspicious as too uneven.
            (((chi / (cells - 1.0)).cbrt() - (1.0 - spread)) / spread.sqrt()).abs()
        };
        bits.fold(chi, f64::max)
    }
}

/// Histograms of each section: of all its elements, of its first and of its last.
fn observe(
    program: Program,
    secret: &Secret,
    input: &[i16],
    first_counter: u64,
    blank: bool,
) -> BTreeMap<String, Histogram> {
    let all = sections(&program);
    let mut histograms = BTreeMap::new();
    let seeds = Seeds { slot: slot(&program), ..Seeds::fixed(21) };
    for counter in first_counter..first_counter + RUNS {
        // Counters as they come after years, not only 0, 1, 2.
        let counter = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let outcome = run(secret, &seeds, counter, input, BIAS, 1024, 3);
        let keys = seeds.dealer_keys(counter);
        for section in &all {
            let packed = bytes(&outcome, section.source);
            for element in 0..section.elements {
                let bit = section.first_bit + element * u64::from(section.bits);
                let value = if blank { 0 } else { bits_at(packed, bit, section.bits) };
                let mut note = |which: &str, value| {
                    let name = format!("{} {which}", section.name);
                    histograms.entry(name).or_insert_with(|| Histogram::new(section.bits)).add(value);
                };
                if !blank && !matches!(section.own, Own::Nothing) {
                    note("to the device", section.own.unmasked(&keys.device, element, value, section.bits));
                }
                if !blank && matches!(section.own, Own::Index(..)) {
                    note("to the server", section.own.unmasked(&keys.server, element, value, section.bits));
                }
                let mut add = |which| note(which, value);
                // A table's entries are many: a sample of them is enough.
                if section.elements < 200 || element % 37 == counter % 37 {
                    add("all");
                }
                if element == 0 {
                    add("first");
                }
                if element + 1 == section.elements {
                    add("last");
                }
            }
        }
    }
    histograms
}

#[test]
fn every_message_is_uniform_whatever_input_and_weights() {
    for program in programs() {
        for (secret, input) in worlds(program) {
            let histograms = observe(program, &secret, &input, 1, false);
            assert!(histograms.len() > 40);
            for (name, histogram) in &histograms {
                assert!(histogram.samples >= RUNS);
                assert!(histogram.deviation() < SIGMAS, "{name}: {} standard deviations", histogram.deviation());
            }
        }
    }
}

/// The dealer's view, made once per device and pool.
#[test]
fn masked_weights_are_uniform_whatever_the_weights() {
    let programs = programs();
    for program in [programs[0], programs[4]] {
        for (secret, _) in worlds(program) {
            let mut histogram = Histogram::new(32);
            for pool in 0..=255 {
                let seeds = Seeds { pool: [pool; 32], ..Seeds::fixed(21) };
                lab::masked_weights(&secret, &seeds).into_iter().for_each(|weight| histogram.add(weight));
            }
            assert!(histogram.samples > 10_000);
            assert!(histogram.deviation() < SIGMAS, "{} standard deviations", histogram.deviation());
        }
    }
}

#[test]
fn the_statistics_see_what_is_not_uniform() {
    let program = programs()[0];
    let (secret, input) = &worlds(program)[1];
    for (name, histogram) in observe(program, secret, input, 1, true) {
        assert!(histogram.deviation() > SIGMAS, "{name}");
    }
    // A generator that counts, and a bit that leans by a tenth.
    let mut count = Histogram::new(8);
    (0..30_000u32).for_each(|i| count.add(i % 255));
    assert!(count.deviation() > SIGMAS);
    let mut lean = Histogram::new(16);
    (0..30_000u32)
        .for_each(|i| lean.add(i.wrapping_mul(0x9e37_79b9) >> 16 & if i % 10 == 0 { 0x7fff } else { 0xffff }));
    assert!(lean.deviation() > SIGMAS);
}

/// The server's view: its stock, the device's corrections and every message of the device.
fn view(program: &Program, outcome: &Outcome) -> Vec<u8> {
    let messages = outcome.up.iter().flatten();
    let view: Vec<u8> = outcome.corrections.iter().chain(messages).chain(&outcome.stock).copied().collect();
    let layout = program.layout().unwrap();
    assert!(view.len() as u64 >= layout.stock + layout.correction_bytes());
    view
}

#[test]
fn the_servers_joint_view_does_not_tell_two_inputs_apart() {
    for program in programs() {
        let (secret, _) = &worlds(program)[1];
        let inputs = extremes(&program);
        let seeds = Seeds { slot: slot(&program), ..Seeds::fixed(33) };
        let mut ones: [Vec<f64>; 2] = Default::default();
        let mut joint: [Vec<f64>; 2] = Default::default();
        let mut lengths = Vec::new();
        for (world, input) in inputs.iter().enumerate() {
            for counter in 0..RUNS {
                // The two worlds share no counter.
                let outcome = run(secret, &seeds, 2 * counter + world as u64, input, BIAS, 1024, 3);
                lengths.push((
                    outcome.up.iter().map(Vec::len).collect::<Vec<_>>(),
                    outcome.down.iter().map(Vec::len).collect::<Vec<_>>(),
                    outcome.corrections.len(),
                    outcome.stock.len(),
                ));
                let view = view(&program, &outcome);
                let bit = |at: usize| u8::from(view[at / 8] >> (at % 8) & 1 == 1);
                let head = (outcome.corrections.len() + outcome.up.iter().map(Vec::len).sum::<usize>()) * 8;
                let total = view.len() * 8;
                ones[world].resize(total, 0.0);
                (0..total).for_each(|at| ones[world][at] += f64::from(bit(at)));
                // Parities of each online or offline bit with a later one and with one of the stock.
                joint[world].resize(2 * head, 0.0);
                for at in 0..head {
                    joint[world][2 * at] += f64::from(bit(at) ^ bit((at + 1 + at % 61) % head));
                    joint[world][2 * at + 1] += f64::from(bit(at) ^ bit(head + (at * 131) % (total - head)));
                }
            }
        }
        assert!(lengths.windows(2).all(|pair| pair[0] == pair[1]), "a length depends on the input");
        for counts in [&ones, &joint] {
            for (at, (a, b)) in counts[0].iter().zip(&counts[1]).enumerate() {
                let n = RUNS as f64;
                // Padding is zero in both.
                let spread = ((a + b) / 2.0 * (1.0 - (a + b) / (2.0 * n)) * 2.0).sqrt();
                assert!((a - b).abs() <= SIGMAS * spread, "bit {at}: {a} and {b} of {n}");
            }
        }
    }
}

#[test]
fn no_two_inferences_share_a_message() {
    let program = programs()[0];
    let (secret, input) = &worlds(program)[0];
    let mut seen = std::collections::BTreeSet::new();
    for counter in 0..50 {
        let outcome = run(secret, &Seeds::fixed(3), counter, input, BIAS, 1024, 3);
        for message in outcome.up.iter().chain(&outcome.down).chain([&outcome.corrections, &outcome.stock]) {
            // Shorter ones meet by chance.
            assert!(message.len() < 8 || seen.insert(message.clone()));
        }
    }
}
