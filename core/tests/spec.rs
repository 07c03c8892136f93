//! Hostile pool specs: whatever the bytes, a typed error or a spec that every party can measure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use secure_router_core::circuit::{CircuitError, Gate, Party, Program, Slot};
use secure_router_core::clear::scratch_elements;
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::model::COST_BIAS_MAX;
use secure_router_core::routing::{MAX_EPSILON, Routing};
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::{
    MAX_CLASSES, MAX_COLUMNS, MAX_INDEX_BITS, MAX_INPUT, MAX_LABELS, MAX_LAYERS, MAX_MODELS, MAX_SPEC_BYTES,
    MAX_TABLE_BITS, MAX_TOKENS, MAX_WORD_BITS, ModelSpec, NamedModel, Opening, Output, PoolSpec, RouterSpec,
    SPEC_VERSION, SpecError,
};
use secure_router_core::{dealer, device, server};

fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

fn named(name: &str, spec: ModelSpec) -> NamedModel {
    NamedModel { name: name.try_into().unwrap(), spec }
}

fn small() -> PoolSpec {
    let model = ModelSpec {
        tokens: 4,
        features: 6,
        width: 8,
        heads: 2,
        ffn: 5,
        layers: 2,
        qkv: opening(6, 12),
        score: opening(5, 9),
        mix: opening(7, 12),
        ffn_in: opening(7, 9),
        output_bits: 20,
    };
    let trunk = ModelSpec { heads: 0, output_bits: 17, ..model };
    PoolSpec {
        edition: [1; 16],
        task: "test".try_into().unwrap(),
        input_len: 24,
        input_bits: 8,
        input_frac: 3,
        word_bits: 0,
        classes: 4,
        output: Output::Label,
        routing: Routing::Open,
        models: [named("one", model), named("two", ModelSpec { layers: 1, ..model })].into_iter().collect(),
        router: Some(RouterSpec { trunk, answers: 0 }),
    }
}

/// Every field at the limit that costs most.
fn largest() -> PoolSpec {
    let model = ModelSpec {
        tokens: MAX_TOKENS,
        features: MAX_INPUT / MAX_TOKENS,
        width: 336,
        heads: 16,
        ffn: MAX_COLUMNS,
        layers: MAX_LAYERS as u8,
        qkv: opening(16, MAX_INDEX_BITS),
        score: opening(20, MAX_TABLE_BITS),
        mix: opening(16, MAX_INDEX_BITS),
        ffn_in: opening(20, MAX_TABLE_BITS),
        output_bits: 32,
    };
    let names = ["AAAAAAAAAAAAAAAA"; MAX_MODELS];
    PoolSpec {
        edition: [0xff; 16],
        task: names[0].try_into().unwrap(),
        input_len: MAX_INPUT,
        input_bits: 16,
        input_frac: 16,
        word_bits: 0,
        classes: MAX_CLASSES,
        output: Output::Logits,
        routing: Routing::Open,
        models: names.iter().map(|name| named(name, model)).collect(),
        router: Some(RouterSpec { trunk: model, answers: 0 }),
    }
}

fn encoded(pool: &PoolSpec) -> Vec<u8> {
    let mut bytes = [0; 2 * MAX_SPEC_BYTES];
    pool.to_bytes(&mut bytes).unwrap().to_vec()
}

/// Everything that anyone computes from a spec alone.
fn measure(pool: &PoolSpec) {
    struct Messages(u64);
    impl Party for Messages {
        type Error = CircuitError;
        fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
            self.0 += gate.messages().iter().map(|message| message.bytes() as u64).sum::<u64>();
            Ok(())
        }
    }
    for slot in pool.slots() {
        let program = Program::of(pool, slot).unwrap();
        let layout = program.layout().unwrap();
        let mut messages = Messages(0);
        assert_eq!(program.walk(&mut messages).unwrap(), layout);
        assert_eq!(program.gate(layout.gates).unwrap(), None);
        assert_eq!(program.gate(layout.gates - 1).unwrap().unwrap().id, layout.gates - 1);
        for tile in [0, 1, 5, u16::MAX] {
            let cost = Cost::of(pool, slot, tile).unwrap();
            assert!(cost.online.bytes() > messages.0);
            let _ = (cost.device_ram_bytes(pool.input_len), cost.server_ram_bytes());
            assert_eq!(device::work_words(&program, tile.max(1)).unwrap(), cost.device_work_words);
        }
        server::work_words(&program).unwrap();
        dealer::work_words(&program).unwrap();
        scratch_elements(&program).unwrap();
    }
    for link in [LinkProfile::BLE, LinkProfile { bytes_per_second: 0, round_trip_us: u32::MAX }] {
        for allowed in [0, 0xff] {
            let scores = router_scores(pool, u16::MAX, allowed, &link).unwrap();
            assert_eq!(scores.len(), pool.router.map_or(0, |_| pool.models.len()));
            assert!(scores.iter().all(|score| (-COST_BIAS_MAX..=0).contains(score)));
        }
    }
    assert!(encoded(pool).len() <= MAX_SPEC_BYTES);
    pool.fingerprint().unwrap();
}

#[test]
fn a_spec_comes_back_and_nothing_else_passes_for_it() {
    let words = PoolSpec { word_bits: 7, input_frac: 0, ..small() };
    for pool in [small(), words, largest()] {
        let bytes = encoded(&pool);
        assert_eq!(PoolSpec::from_bytes(&bytes), Ok(pool));
        for cut in 0..bytes.len() {
            assert_eq!(PoolSpec::from_bytes(&bytes[..cut]), Err(SpecError::Malformed), "{cut}");
        }
        assert_eq!(PoolSpec::from_bytes(&[&bytes[..], &[0]].concat()), Err(SpecError::Malformed));
        for version in (0..100).filter(|version| *version != SPEC_VERSION) {
            let other = [&[version as u8][..], &bytes[1..]].concat();
            assert_eq!(PoolSpec::from_bytes(&other), Err(SpecError::Version { found: version }));
        }
    }
}

#[test]
fn the_largest_spec_is_measured_at_once() {
    let pool = largest();
    pool.validate().unwrap();
    let start = Instant::now();
    measure(&pool);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn every_limit_has_its_error() {
    type Change = fn(&mut PoolSpec);
    let cases: &[(Change, SpecError)] = &[
        (|p| p.input_len = 0, SpecError::Size("input_len")),
        (|p| p.input_len = MAX_INPUT + 1, SpecError::Size("input_len")),
        (|p| p.input_len = 25, SpecError::InputLength),
        (|p| p.classes = 0, SpecError::Size("classes")),
        (|p| p.classes = MAX_LABELS + 1, SpecError::Size("classes")),
        (|p| (p.output, p.classes) = (Output::Logits, MAX_CLASSES + 1), SpecError::Size("classes")),
        (|p| p.input_bits = 1, SpecError::Bits("input")),
        (|p| p.input_bits = 17, SpecError::Bits("input")),
        (|p| p.input_frac = 17, SpecError::Bits("input_frac")),
        (
            |p| (p.word_bits, p.input_bits, p.input_frac) = (MAX_WORD_BITS + 1, MAX_WORD_BITS + 2, 0),
            SpecError::Bits("word"),
        ),
        (|p| (p.word_bits, p.input_frac) = (8, 0), SpecError::Bits("word")),
        (|p| p.word_bits = 7, SpecError::Bits("word")),
        (|p| (p.word_bits, p.input_frac, p.models[0].spec.tokens) = (7, 0, 5), SpecError::InputLength),
        (
            |p| {
                (p.word_bits, p.input_bits, p.input_frac, p.input_len) = (14, 15, 0, MAX_INPUT);
                p.models[0].spec.features = 64;
            },
            SpecError::Program(CircuitError::TooLarge),
        ),
        (
            |p| {
                (p.word_bits, p.input_bits, p.input_frac) = (12, 13, 0);
                p.models[0].spec = ModelSpec { heads: 0, ffn: 0, layers: 0, output_bits: 11, ..p.models[0].spec };
            },
            SpecError::Program(CircuitError::WireTooNarrow { needed: 12, have: 11 }),
        ),
        (|p| p.models.clear(), SpecError::ModelCount),
        (|p| p.models.truncate(1), SpecError::ModelCount),
        (|p| p.task.clear(), SpecError::Name("task")),
        (|p| p.models[1].name = "\u{1b}[2J".try_into().unwrap(), SpecError::Name("model")),
        (|p| p.models[1].name = "é".try_into().unwrap(), SpecError::Name("model")),
        (|p| p.models[0].spec.tokens = 0, SpecError::Size("tokens")),
        (|p| p.models[0].spec.tokens = MAX_TOKENS + 1, SpecError::Size("tokens")),
        (|p| p.models[0].spec.features = 0, SpecError::Size("features")),
        (|p| p.models[0].spec.features = 7, SpecError::InputLength),
        (|p| p.models[0].spec.width = 0, SpecError::Size("width")),
        (|p| p.models[0].spec.width = 342, SpecError::Size("width")),
        (|p| p.models[0].spec.width = 9, SpecError::Heads),
        (|p| p.models[0].spec.heads = 17, SpecError::Size("heads")),
        (|p| p.models[0].spec.layers = 9, SpecError::Size("layers")),
        (|p| p.models[0].spec.ffn = MAX_COLUMNS + 1, SpecError::Size("ffn")),
        (|p| (p.models[0].spec.ffn, p.models[0].spec.heads) = (0, 0), SpecError::Size("ffn")),
        (|p| p.models[0].spec.qkv.index_bits = 1, SpecError::Bits("qkv")),
        (|p| p.models[0].spec.qkv.index_bits = MAX_INDEX_BITS + 1, SpecError::Bits("qkv")),
        (|p| p.models[0].spec.qkv.shift = 21, SpecError::Bits("qkv")),
        (|p| p.models[0].spec.qkv.shift = 255, SpecError::Bits("qkv")),
        (|p| p.models[0].spec.score.index_bits = MAX_TABLE_BITS + 1, SpecError::Bits("score")),
        (|p| p.models[0].spec.mix.index_bits = 0, SpecError::Bits("mix")),
        (|p| p.models[0].spec.ffn_in.index_bits = 255, SpecError::Bits("ffn_in")),
        (|p| p.models[0].spec.output_bits = 33, SpecError::Bits("output")),
        (|p| p.models[0].spec.output_bits = 1, SpecError::Bits("output")),
        (|p| p.routing = Routing::Private { epsilon: 0 }, SpecError::Routing),
        (|p| p.routing = Routing::Private { epsilon: MAX_EPSILON + 1 }, SpecError::Routing),
        (
            |p| {
                p.routing = Routing::Private { epsilon: 1 };
                (0..4).for_each(|_| p.models.push(p.models[0].clone()).unwrap());
            },
            SpecError::Routing,
        ),
        (|p| p.router.as_mut().unwrap().trunk.output_bits = 33, SpecError::Bits("output")),
        (|p| p.router.as_mut().unwrap().trunk.output_bits = MAX_TABLE_BITS - 1, SpecError::Bits("router")),
        (|p| p.router.as_mut().unwrap().trunk.ffn = 2000, SpecError::Size("ffn")),
        (|p| p.router.as_mut().unwrap().answers = p.classes, SpecError::Answers),
        (|p| p.router = Some(answering(p, p.classes + 1)), SpecError::Answers),
        (
            |p| {
                (p.output, p.classes) = (Output::Logits, MAX_LABELS + 1);
                p.router = Some(answering(p, p.classes));
            },
            SpecError::Size("answers"),
        ),
        (
            |p| {
                let mut router = answering(p, p.classes);
                router.trunk.output_bits += 1;
                p.router = Some(router);
            },
            SpecError::Answers,
        ),
    ];
    for (index, (change, wanted)) in cases.iter().enumerate() {
        let mut pool = small();
        change(&mut pool);
        assert_eq!(pool.validate(), Err(*wanted), "case {index}");
        assert_eq!(PoolSpec::from_bytes(&encoded(&pool)), Err(*wanted), "case {index}");
        assert!(!wanted.to_string().is_empty());
    }
    assert_eq!(Program::of(&small(), Slot::Model(2)), Err(CircuitError::NoSuchSlot));
    assert_eq!(Program::of(&small(), Slot::Model(255)), Err(CircuitError::NoSuchSlot));
    assert_eq!(Program::of(&PoolSpec { router: None, ..small() }, Slot::Router), Err(CircuitError::NoSuchSlot));
}

/// A value in range mostly, and at or beyond a limit often.
fn near(limit: u16) -> impl Strategy<Value = u16> {
    prop_oneof![4 => 1..=limit, 2 => 1u16..=16.min(limit), 1 => Just(limit), 1 => Just(0), 1 => Just(limit.saturating_add(1)), 1 => any::<u16>()]
}

fn bytewise(limit: u8) -> impl Strategy<Value = u8> {
    near(u16::from(limit)).prop_map(|value| value as u8)
}

prop_compose! {
    fn openings(index_max: u8)(index_bits in 2..=index_max, below in 0u8..32, wild: Option<(u8, u8)>, pick in 0u8..20) -> Opening {
        match (pick, wild) {
            (0, Some((shift, index_bits))) => opening(shift, index_bits),
            _ => opening(below.min(32 - index_bits), index_bits),
        }
    }
}

prop_compose! {
    fn models()(
        tokens_log in 0u32..9, wild in (any::<u16>(), any::<u16>(), 0u8..24), heads_log in 0u32..6, depth in near(40), ffn in near(MAX_COLUMNS),
        layers in bytewise(MAX_LAYERS as u8), qkv in openings(MAX_INDEX_BITS), score in openings(MAX_TABLE_BITS),
        mix in openings(MAX_INDEX_BITS), ffn_in in openings(MAX_TABLE_BITS), output_bits in bytewise(32),
    ) -> ModelSpec {
        let heads = (1u16 << heads_log) >> 1;
        let tokens = 1u16 << tokens_log;
        let mut spec = ModelSpec {
            tokens, features: 256 / tokens, width: heads.saturating_mul(depth), heads: heads as u8, ffn, layers, qkv, score, mix,
            ffn_in, output_bits,
        };
        match wild.2 {
            0 => (spec.tokens, spec.features) = (wild.0, wild.1),
            1 => spec.width = wild.0,
            2 => spec.heads = wild.0 as u8,
            3 => spec.ffn = 0,
            _ => {}
        }
        spec
    }
}

/// A router that has the first model's outputs beside its own.
fn answering(pool: &PoolSpec, answers: u16) -> RouterSpec {
    let trunk = pool.models[0].spec;
    RouterSpec { trunk, answers }
}

prop_compose! {
    fn pools()(
        edition: [u8; 16], classes in near(MAX_CLASSES), input_bits in bytewise(16), specs in vec(models(), 0..=4),
        router in proptest::option::of(models()), wild in 0u8..20, label: bool, own: bool, words: bool,
        leak in 0u32..20,
    ) -> PoolSpec {
        let mut pool = PoolSpec {
            edition, task: "t".try_into().unwrap(), input_len: if wild == 0 { 255 } else { 256 }, input_bits, input_frac: 8, word_bits: 0, classes,
            output: if label { Output::Label } else { Output::Logits },
            routing: match leak {
                0..5 => Routing::Open,
                5..10 => Routing::Device,
                _ => Routing::Private { epsilon: (leak as u16 - 10) * 1800 },
            },
            models: specs.into_iter().map(|spec| named("m", spec)).collect(),
            router: router.map(|trunk| RouterSpec { trunk, answers: 0 }),
        };
        if words {
            (pool.word_bits, pool.input_frac) = (pool.input_bits.wrapping_sub(1), 0);
        }
        if own && !pool.models.is_empty() && pool.router.is_some() {
            pool.router = Some(answering(&pool, pool.classes));
        }
        pool
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_spec_or_an_error(versioned: bool, bytes in vec(any::<u8>(), 0..700)) {
        let bytes = if versioned { [&[SPEC_VERSION as u8][..], &bytes].concat() } else { bytes };
        if let Ok(pool) = PoolSpec::from_bytes(&bytes) {
            measure(&pool);
        }
    }

    #[test]
    fn a_damaged_spec_is_a_spec_or_an_error(
        large: bool, changes in vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..4),
    ) {
        let mut bytes = encoded(&if large { largest() } else { small() });
        for (at, value, how) in changes {
            let at = at.index(bytes.len());
            match how {
                0 => { bytes.remove(at); }
                1 => bytes.insert(at, value),
                2 => bytes[at] ^= 1 << (value % 8),
                _ => bytes[at] = value,
            }
        }
        if let Ok(pool) = PoolSpec::from_bytes(&bytes) {
            measure(&pool);
        }
    }

    #[test]
    fn a_spec_that_validates_can_be_measured(pool in pools()) {
        let parsed = PoolSpec::from_bytes(&encoded(&pool));
        match pool.validate() {
            Ok(()) => {
                prop_assert_eq!(&parsed, &Ok(pool.clone()));
                measure(&pool);
            }
            Err(error) => prop_assert_eq!(parsed, Err(error)),
        }
    }
}
