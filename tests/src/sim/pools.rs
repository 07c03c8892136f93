//! Small pools with random weights, and what each must answer, bit for bit.

use std::collections::HashMap;
use std::sync::OnceLock;

use safetensors::tensor::{Dtype, TensorView, serialize};
use secure_router::pool::{Pool, edition};
use secure_router::provision::{DealerFile, ServerFile};
use secure_router_core::channel::PublicKey;
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::clear;
use secure_router_core::cost::Cost;
use secure_router_core::routing::Routing;
use secure_router_core::spec::{MAX_SPEC_BYTES, ModelSpec, NamedModel, Opening, Output, PoolSpec, RouterSpec};

use super::chance::Chance;
use crate::exact::Dither;

fn opening(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

const CLASSES: u16 = 3;

fn spec(input_len: u16, models: &[ModelSpec], router: RouterSpec) -> PoolSpec {
    let named = |(index, spec): (usize, &ModelSpec)| NamedModel {
        name: format!("m{index}").as_str().try_into().unwrap(),
        spec: *spec,
    };
    PoolSpec {
        edition: [0; 16],
        task: "simulated".try_into().unwrap(),
        input_len,
        input_bits: 8,
        input_frac: 4,
        word_bits: 0,
        classes: CLASSES,
        output: Output::Label,
        routing: Routing::Open,
        models: models.iter().enumerate().map(named).collect(),
        router: Some(router),
    }
}

/// Shapes: one with attention and a router that answers itself, one whose messages take several frames and
/// whose answers are logits, one whose input takes several, and one of words. The last is of many words: a stock item
/// of it takes many frames.
fn specs() -> [PoolSpec; 5] {
    let base = ModelSpec {
        tokens: 2,
        features: 24,
        width: 0,
        heads: 0,
        ffn: 3,
        layers: 1,
        qkv: opening(6, 12),
        score: opening(8, 6),
        mix: opening(8, 12),
        ffn_in: opening(9, 6),
        output_bits: 20,
    };
    let trunk = ModelSpec { ffn: 2, output_bits: 17, ..base };
    let attention = ModelSpec { tokens: 4, features: 12, width: 4, heads: 2, ffn: 0, ..base };
    let frames = ModelSpec { tokens: 16, features: 3, ffn: 32, ..base };
    let wide = ModelSpec { tokens: 8, features: 64, ..base };
    let wide_trunk = ModelSpec { layers: 0, ffn: 0, tokens: 1, features: 512, ..trunk };
    let alone = |trunk| RouterSpec { trunk, answers: 0 };
    let bag = ModelSpec { tokens: 1, features: 5, ..base };
    let rows = ModelSpec { tokens: 8, features: 20, ..attention };
    let words = PoolSpec {
        input_bits: 6,
        input_frac: 0,
        word_bits: 5,
        ..spec(16, &[bag, rows], RouterSpec { trunk: bag, answers: CLASSES })
    };
    let many = PoolSpec { input_bits: 11, word_bits: 10, ..words.clone() };
    [
        spec(48, &[base, attention], RouterSpec { trunk: base, answers: CLASSES }),
        spec(48, &[attention, frames], alone(trunk)),
        spec(512, &[wide, ModelSpec { ffn: 5, ..wide }], alone(wide_trunk)),
        words,
        many,
    ]
}

/// A pool file with random contents, small enough that no value leaves its range.
fn file(spec: &PoolSpec, seed: u64) -> Vec<u8> {
    let mut chance = Chance(seed);
    let mut draw = move |limit: usize| chance.below(2 * limit + 1) as i32 - limit as i32;
    let (mut parts, mut about) = (Vec::new(), HashMap::new());
    // As a trainer writes it: the router last.
    let (routers, models): (Vec<_>, Vec<_>) = spec.slots().partition(|slot| *slot == Slot::Router);
    for slot in models.into_iter().chain(routers) {
        let layout = Program::of(spec, slot).unwrap().layout().unwrap();
        let name = secure_router::pool::slot_name(spec, slot);
        let mut shorts = |count: u32, limit| (0..count).map(|_| draw(limit) as i16).collect::<Vec<_>>();
        let (weights, tables) = (shorts(layout.weights, 2), shorts(layout.tables, 15));
        let biases: Vec<u8> = (0..layout.biases).flat_map(|_| draw(100).to_le_bytes()).collect();
        let bytes = |shorts: &[i16]| shorts.iter().flat_map(|value| value.to_le_bytes()).collect();
        parts.push((format!("{name}.weights"), Dtype::I16, bytes(&weights)));
        parts.push((format!("{name}.biases"), Dtype::I32, biases));
        parts.push((format!("{name}.tables"), Dtype::I16, bytes(&tables)));
        about.insert(format!("{name} cost"), Cost::of(spec, slot, 1).unwrap().online.to_string());
    }
    let advantages: Vec<&str> = spec.models.iter().map(|_| "4000:40").collect();
    about.insert("advantages".to_owned(), advantages.join(","));
    let spec = PoolSpec { edition: edition(parts.iter().map(|(_, _, data)| data.as_slice())), ..spec.clone() };
    let mut buffer = [0; MAX_SPEC_BYTES];
    parts.push(("spec".to_owned(), Dtype::U8, spec.to_bytes(&mut buffer).unwrap().to_vec()));
    let views = parts.iter().map(|(name, kind, data)| {
        let size = kind.bitsize() / 8;
        (name.as_str(), TensorView::new(*kind, vec![data.len() / size], data).unwrap())
    });
    serialize(views, Some(about)).unwrap()
}

/// A pool, sealed as its server does.
pub struct Known {
    /// As its file holds it.
    pub pool: Pool,
    /// Of the sealed pool.
    pub fingerprint: [u8; 32],
}

/// Two pools of each shape, all of one server.
pub fn pools(server: &ServerFile) -> &'static [[Known; 2]; 5] {
    static POOLS: OnceLock<[[Known; 2]; 5]> = OnceLock::new();
    POOLS.get_or_init(|| {
        let mut specs = specs().into_iter();
        std::array::from_fn(|shape| {
            let spec = specs.next().unwrap();
            std::array::from_fn(|contents| {
                let mut pool = Pool::from_bytes(&file(&spec, 11 + contents as u64)).unwrap();
                if shape == 1 {
                    pool = pool.with_logits();
                }
                pool.seal(&server.secret().unwrap());
                Known { fingerprint: pool.spec.fingerprint().unwrap(), pool }
            })
        })
    })
}

impl Known {
    /// What `slot` must reveal of `input` under a device's counter.
    pub fn reference(
        &self,
        dealer: &DealerFile,
        device: &PublicKey,
        (slot, counter): (Slot, u64),
        input: &[i16],
        scores: &[i32],
    ) -> Vec<i64> {
        let program = Program::of(&self.pool.spec, slot).unwrap();
        let parameters = self.pool.secrets(slot).unwrap().parameters();
        let keys = dealer.device(device).unwrap().seeds().keys(&self.fingerprint, slot, counter);
        let mut arena = vec![0; program.layout().unwrap().arena as usize];
        let mut scratch = vec![0; clear::scratch_elements(&program).unwrap()];
        let bias = self.pool.bias(scores);
        let wire = clear::run(&program, &parameters, input, bias, &mut arena, &mut scratch, &mut Dither(keys));
        let wire = wire.expect("a value left its range");
        arena[wire.at as usize..][..wire.elements() as usize].to_vec()
    }
}
