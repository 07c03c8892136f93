//! Which positions of the pseudo-random streams the parties draw, recorded from whole runs over every program
//! of a pool: none is used for two things, both ends of a key agree, and the cost model counts the blocks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/lab/mod.rs"]
pub(crate) mod lab;

use std::collections::{BTreeMap, BTreeSet};

use crate::circuit::{CircuitError, Gate, MessageKind, Operand, Party, Program, Response, Slot};
use crate::cost::Cost;
use crate::device::{Online, Outgoing, Step, work_words};
use crate::keys::{DeviceSeeds, server_key, weight_key};
use crate::prg::trace::{Drawn, change, record};
use crate::prg::{Purpose, StreamId};
use crate::routing::{Bias, Routing};
use crate::session::FRAME_PAYLOAD;
use crate::spec::{ModelSpec, NamedModel, Opening, Output, PoolSpec, RouterSpec, Words};

use lab::peer::{Fixture, answering_pool, pool, word_pool};
use lab::{Outcome, Secret, Seeds, deal, offline, random_secret, run};

type Key = [u8; 32];
type Position = (Key, StreamId, u64);
/// First elements and ends of runs of elements, by stream.
type Ranges = BTreeMap<(Key, StreamId), Vec<(u64, u64)>>;

const ROUTINGS: [Routing; 3] = [Routing::Open, Routing::Private { epsilon: 1000 }, Routing::Device];

/// With a margin, where a router goes by one.
const BIAS: Bias<'static> = Bias { scores: &[], margin: 5 };

/// Ranges of words by stream, sorted; `None` if one word is drawn twice.
fn disjoint(drawn: &[Drawn]) -> Option<Ranges> {
    let mut ranges = Ranges::new();
    for part in drawn.iter().filter(|part| part.words > 0) {
        ranges.entry((part.key, part.id)).or_default().push((part.first, part.first + part.words));
    }
    for ranges in ranges.values_mut() {
        ranges.sort_unstable();
        if ranges.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return None;
        }
        // Neighbours become one.
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, end) in ranges.drain(..) {
            match merged.last_mut() {
                Some(last) if last.1 == first => last.1 = end,
                _ => merged.push((first, end)),
            }
        }
        *ranges = merged;
    }
    Some(ranges)
}

fn words(drawn: &[Drawn]) -> BTreeSet<Position> {
    drawn.iter().flat_map(|part| (part.first..part.first + part.words).map(|word| (part.key, part.id, word))).collect()
}

fn blocks(drawn: &[Drawn], keys: &[Key]) -> u64 {
    drawn.iter().filter(|part| keys.contains(&part.key)).map(|part| part.blocks).sum()
}

fn of_key(drawn: &[Drawn], key: Key) -> Vec<Drawn> {
    drawn.iter().filter(|part| part.key == key).copied().collect()
}

/// One inference, and who drew what.
struct Recorded {
    device_key: Key,
    server_key: Key,
    weight_key: Key,
    /// Dealer, and the server as it masks its weights.
    deal: Vec<Drawn>,
    offline: Vec<Drawn>,
    /// Device and server; their keys differ.
    online: Vec<Drawn>,
    outcome: Outcome,
}

fn recorded(secret: &Secret, seeds: &Seeds, counter: u64, input: &[i16], tile: u16) -> Recorded {
    let keys = seeds.dealer_keys(counter);
    let weights = weight_key(&seeds.device_server, &seeds.pool, seeds.slot);
    let server = server_key(&seeds.server_dealer, &seeds.pool, seeds.slot, counter);
    assert_eq!(keys.server.bytes(), server.bytes());
    let (_, deal) = record(|| deal(secret, seeds, counter));
    let (_, offline) = record(|| offline(secret, seeds, counter, FRAME_PAYLOAD, tile));
    let (outcome, whole) = record(|| run(secret, seeds, counter, input, BIAS, FRAME_PAYLOAD, tile));
    // The dealer comes first, then the offline phase.
    let (first, online) = whole.split_at(deal.len() + offline.len());
    assert!(first.iter().eq(deal.iter().chain(&offline)));
    let online = online.to_vec();
    Recorded {
        device_key: *keys.device.bytes(),
        server_key: *server.bytes(),
        weight_key: *weights.bytes(),
        deal,
        offline,
        online,
        outcome,
    }
}

#[test]
fn no_position_of_a_whole_pool_is_used_for_two_things() {
    pools().for_each(|pool| draw_a_whole_pool(Fixture::new(pool)));
}

/// Of each routing, with a router that answers and one that does not, and one of words.
fn pools() -> impl Iterator<Item = PoolSpec> {
    let routed = |routing| [pool(), answering_pool()].map(|pool| PoolSpec { routing, ..pool });
    ROUTINGS.into_iter().flat_map(routed).chain([word_pool()])
}

fn draw_a_whole_pool(fixture: &Fixture) {
    let (mut run_keys, mut weight_keys) = (Vec::new(), Vec::new());
    for slot in fixture.pool.slots() {
        let (secret, seeds) = (fixture.secret(slot), fixture.seeds(slot));
        for counter in [0, 1, u64::MAX] {
            let (_, drawn) = record(|| deal(secret, &seeds, counter));
            let weights = *weight_key(&seeds.device_server, &seeds.pool, slot).bytes();
            run_keys.extend(drawn.iter().filter(|part| part.key != weights));
            // The weight masks are the same for every counter, and for no other program.
            if counter == 0 {
                weight_keys.extend(drawn.iter().filter(|part| part.key == weights));
            }
        }
    }
    let ranges = disjoint(&run_keys).expect("a position is drawn twice");
    let keys: BTreeSet<Key> = ranges.keys().map(|(key, _)| *key).collect();
    assert_eq!(keys.len(), 2 * 3 * fixture.pool.slots().count());
    // Each stream is one run of elements from 0: nothing is skipped, nothing lies elsewhere.
    assert!(ranges.values().all(|ranges| ranges.len() == 1 && ranges[0].0 == 0));
    let weights = disjoint(&weight_keys).expect("a weight mask is drawn twice");
    let keys: BTreeSet<Key> = weights.keys().map(|(key, _)| *key).collect();
    assert_eq!(keys.len(), fixture.pool.slots().count());
    let masked: u64 = weights.values().flatten().map(|(first, end)| end - first).sum();
    let all: usize = fixture.programs.iter().map(|(_, secret)| secret.weights.len()).sum();
    assert_eq!(masked, all as u64);
}

#[test]
fn both_ends_of_a_key_draw_the_same_positions() {
    pools().for_each(|pool| draw_both_ends(Fixture::new(pool)));
}

fn draw_both_ends(fixture: &Fixture) {
    for slot in fixture.pool.slots() {
        let (secret, seeds) = (fixture.secret(slot), fixture.seeds(slot));
        let r = recorded(secret, &seeds, 4, &fixture.input(1), 3);
        let device: Vec<Drawn> =
            r.offline.iter().chain(&r.online).copied().filter(|part| part.key != r.server_key).collect();

        // The weight masks, with the server.
        // Of an embedding the device draws the rows of its words alone.
        let (device_masks, server_masks) =
            (words(&of_key(&device, r.weight_key)), words(&of_key(&r.deal, r.weight_key)));
        let count = counted(&secret.program);
        let embedding = |masks: &BTreeSet<Position>| masks.iter().filter(|at| count.embeds && at.1.gate == 0).count();
        assert!(device_masks.is_subset(&server_masks), "{slot:?}");
        assert_eq!(
            server_masks.len() - device_masks.len(),
            embedding(&server_masks) - embedding(&device_masks),
            "{slot:?}"
        );
        assert!(!count.embeds || embedding(&device_masks) > 0, "{slot:?}");
        // Whatever the server draws online, the dealer drew: index masks and operand masks.
        assert_eq!(words(&of_key(&r.online, r.server_key)), words(&of_key(&r.deal, r.server_key)), "{slot:?}");
        // The run key, with the dealer: of a table's pads only the chosen one, of wire masks all but the last's.
        let (device, dealer) = (words(&of_key(&device, r.device_key)), words(&of_key(&r.deal, r.device_key)));
        assert!(device.is_subset(&dealer), "{slot:?}");
        let purpose = |set: &BTreeSet<Position>, purpose| {
            set.iter().filter(|at| at.1.purpose == purpose).copied().collect::<BTreeSet<_>>()
        };
        for shared in [Purpose::OperandPad, Purpose::IndexMask] {
            assert_eq!(purpose(&device, shared), purpose(&dealer, shared), "{slot:?} {shared:?}");
        }
        assert_eq!(purpose(&device, Purpose::IndexMask).len() as u64, count.corrections);
        assert_eq!(purpose(&device, Purpose::TablePad).len() as u64, count.answers + count.requantised);
        // Nobody draws for another purpose, or under a key that is not named here.
        let known = [r.device_key, r.server_key, r.weight_key];
        assert!(r.deal.iter().chain(&r.offline).chain(&r.online).all(|part| known.contains(&part.key)));
    }
}

#[derive(Default)]
struct Counted {
    corrections: u64,
    answers: u64,
    requantised: u64,
    embeds: bool,
}

impl Party for Counted {
    type Error = CircuitError;
    fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
        let elements = u64::from(gate.elements());
        if let Operand::Embed(embed) = &gate.operand {
            // Its words have masks as indices have, and each a row of pads.
            self.corrections += u64::from(embed.words.count);
            self.answers += u64::from(embed.words.count) * u64::from(embed.width);
            self.embeds = true;
        }
        if gate.response.entries() > 0 {
            self.corrections += elements;
            // Two tables, two pads.
            let tables = if matches!(gate.response, Response::Margin { .. }) { 2 } else { 1 };
            self.answers += tables * elements;
            // Both pads of a requantised element are drawn; one is sent.
            self.requantised += if gate.response.entries() == 2 { elements } else { 0 };
        }
        Ok(())
    }
}

fn counted(program: &Program) -> Counted {
    let mut counted = Counted::default();
    program.walk(&mut counted).unwrap();
    counted
}

/// One model whose input, corrections and answers fill several frames each.
fn wide() -> PoolSpec {
    let mut pool = pool();
    let (large, _) = (pool.models[2].spec, pool.models.clear());
    let spec = ModelSpec { tokens: 30, features: 32, width: 20, ffn: 30, layers: 1, output_bits: 23, ..large };
    pool.models.push(NamedModel { name: "wide".try_into().unwrap(), spec }).unwrap();
    (pool.input_len, pool.router) = (960, None);
    pool.validate().unwrap();
    pool
}

/// The same of words, which alone fill a frame and begin another.
fn many_words() -> PoolSpec {
    let mut pool = wide();
    pool.models[0].spec.features = 20;
    (pool.input_bits, pool.input_frac, pool.word_bits) = (4, 0, 3);
    pool.validate().unwrap();
    pool
}

#[test]
fn the_cost_model_counts_the_devices_blocks() {
    pools().chain([wide(), many_words()]).for_each(|pool| count_blocks(Fixture::new(pool)));
}

fn count_blocks(fixture: &Fixture) {
    for slot in fixture.pool.slots() {
        for tile in [1, 2, 3, 5, 16, 64] {
            let r = recorded(fixture.secret(slot), &fixture.seeds(slot), 9, &fixture.input(2), tile);
            let cost = Cost::of(&fixture.pool, slot, tile).unwrap();
            let device = [r.device_key, r.weight_key];
            assert_eq!(blocks(&r.offline, &device), cost.device_blocks_offline, "{slot:?} offline, tile {tile}");
            assert_eq!(blocks(&r.online, &device), cost.device_blocks_online, "{slot:?} online, tile {tile}");
        }
    }
}

/// The device's online messages against fixed messages of the server.
fn replay(secret: &Secret, seeds: &Seeds, counter: u64, input: &[i16], down: &[Vec<u8>]) -> Vec<u8> {
    let device = DeviceSeeds { dealer: seeds.device_dealer.clone(), server: seeds.device_server.clone() };
    let keys = device.keys(&seeds.pool, seeds.slot, counter);
    let mut work = vec![0; work_words(&secret.program, 1).unwrap()];
    let mut online = Online::new(secret.program, keys, work.len()).unwrap();
    let mut down = down.iter();
    let (mut rx, mut up, mut tx): (&[u8], Vec<u8>, Vec<u8>) = (&[], Vec::new(), vec![0; 1 << 12]);
    loop {
        let mut out = Outgoing::new(&mut tx);
        let step = online.advance(input, &mut work, &mut rx, &mut out).unwrap();
        let len = out.len;
        up.extend_from_slice(&tx[..len]);
        match step {
            Step::Done => return up,
            Step::Input => rx = down.next().map_or(&[], Vec::as_slice),
            Step::Flush => {}
        }
    }
}

/// Where the elements of the device's messages lie: bits from and to, and of which message.
#[derive(Default)]
struct Elements {
    offline: Vec<(u64, u64)>,
    online: Vec<(u64, u64, MessageKind)>,
    at: u64,
}

impl Party for Elements {
    type Error = CircuitError;
    fn gate(&mut self, gate: &Gate) -> Result<(), CircuitError> {
        if gate.corrects_offline() {
            let bits = u64::from(gate.bits());
            let place = |element: u64| gate.corrections_at + element * bits;
            self.offline.extend((0..u64::from(gate.elements())).map(|e| (place(e), place(e + 1))));
        }
        for message in gate.messages().iter().filter(|message| message.kind.from_device()) {
            let bits = u64::from(message.bits);
            let first = self.at;
            let place = |element: u64| first + element * bits;
            self.online.extend((0..u64::from(message.elements)).map(|e| (place(e), place(e + 1), message.kind)));
            self.at += 8 * message.bytes() as u64;
        }
        Ok(())
    }
}

fn elements(program: &Program) -> Elements {
    let mut found = Elements::default();
    program.walk(&mut found).unwrap();
    found
}

fn differs(a: &[u8], b: &[u8], from: u64, to: u64) -> bool {
    (from..to).any(|bit| (a[(bit / 8) as usize] ^ b[(bit / 8) as usize]) >> (bit % 8) & 1 == 1)
}

/// Every one-time word of the device hides exactly one element that leaves it: changing the word changes that
/// element and no other, in either phase.
#[test]
fn each_one_time_position_enters_one_element_of_one_message() {
    let opening = |shift, index_bits| Opening { shift, index_bits };
    let spec = ModelSpec {
        tokens: 3,
        features: 2,
        width: 4,
        heads: 2,
        ffn: 3,
        layers: 1,
        qkv: opening(4, 9),
        score: opening(3, 6),
        mix: opening(4, 9),
        ffn_in: opening(4, 6),
        output_bits: 17,
    };
    let router = RouterSpec { trunk: ModelSpec { output_bits: 12, ..spec }, answers: 4 };
    let of_words = Some(Words { count: 6, bits: 3 });
    let programs = [
        (Slot::Model(0), Program::Model { spec, words: of_words, classes: 3, output: Output::Label }),
        (Slot::Model(0), Program::Model { spec, words: None, classes: 3, output: Output::Label }),
        (Slot::Model(1), Program::Model { spec, words: None, classes: 3, output: Output::Logits }),
        (
            Slot::Router,
            Program::Router { spec: router, words: None, models: 3, output: Output::Label, routing: Routing::Open },
        ),
        (
            Slot::Router,
            Program::Router {
                spec: router,
                words: None,
                models: 3,
                output: Output::Logits,
                routing: Routing::Private { epsilon: 1000 },
            },
        ),
        (
            Slot::Router,
            Program::Router { spec: router, words: None, models: 3, output: Output::Label, routing: Routing::Device },
        ),
    ];
    for (slot, program) in programs {
        let secret = random_secret(program, 5, 2);
        let seeds = Seeds { slot, ..Seeds::fixed(8) };
        let input = if secret.program.gate(0).unwrap().unwrap().correlated() > 0 {
            [5, 3, 0, 7, 1, 5]
        } else {
            [5, -3, 0, 7, 1, -8]
        };
        let r = recorded(&secret, &seeds, 2, &input, 2);
        let corrections = &r.outcome.corrections;
        let up = r.outcome.up.concat();
        assert_eq!(replay(&secret, &seeds, 2, &input, &r.outcome.down), up);
        let Elements { offline: offline_elements, online: online_elements, .. } = elements(&program);
        let device: Vec<Drawn> = r.offline.iter().chain(&r.online).copied().collect();
        let mut tried = 0;
        for (key, id, element) in words(&of_key(&device, r.device_key)) {
            let (a, b) = change(key, id, element, || {
                let corrections = offline(&secret, &seeds, 2, FRAME_PAYLOAD, 2);
                (corrections, replay(&secret, &seeds, 2, &input, &r.outcome.down))
            });
            let offline_changes = offline_elements.iter().filter(|e| differs(corrections, &a, e.0, e.1)).count();
            let online_changes =
                |kind| online_elements.iter().filter(|e| e.2 == kind && differs(&up, &b, e.0, e.1)).count();
            let (shares, given, answers) = (
                online_changes(MessageKind::Share),
                online_changes(MessageKind::Correction),
                online_changes(MessageKind::Answer),
            );
            let embeds = matches!(program.gate(id.gate).unwrap().unwrap().operand, Operand::Embed(_));
            match id.purpose {
                // A word's; its pads and those of the vector's share, in a single element of the sum.
                Purpose::IndexMask if embeds => {
                    assert!(shares > 0 && offline_changes + given + answers == 0, "{id:?} {element}")
                }
                Purpose::TablePad if embeds => {
                    assert_eq!((shares, offline_changes + given + answers), (1, 0), "{id:?} {element}")
                }
                // One correction, and nothing else.
                Purpose::IndexMask => {
                    assert_eq!((offline_changes + given, shares + answers), (1, 0), "{id:?} {element}")
                }
                // One answer or, of a requantisation's other pad, none; what is told stays at the device.
                Purpose::TablePad => {
                    assert!(answers <= 1 && offline_changes + given + shares == 0, "{id:?} {element}");
                    let response = program.gate(id.gate).unwrap().unwrap().response;
                    match response {
                        Response::Tell { .. } => assert_eq!(answers, 0, "{id:?} {element}"),
                        _ => assert!(answers == 1 || response.entries() == 2, "{id:?} {element}"),
                    }
                }
                // Under an index mask, in one correction; a reveal's pad stays at the device.
                Purpose::OperandPad => {
                    assert!(offline_changes + given <= 1 && shares + answers == 0, "{id:?} {element}")
                }
                // Bare in the input's share; in one correction of its own gate if that masks anew; elsewhere under index masks.
                Purpose::WireMask => {
                    assert_eq!(answers, 0, "{id:?} {element}");
                    let gate = program.gate(id.gate).unwrap().unwrap();
                    let private = matches!(gate.operand, Operand::Private | Operand::Embed(_));
                    assert_eq!(shares, usize::from(private), "{id:?} {element}");
                    let own = offline_elements.iter().filter(|e| {
                        let first = gate.corrections_at;
                        let end = first + u64::from(gate.elements()) * u64::from(gate.bits());
                        (first..end).contains(&e.0) && differs(corrections, &a, e.0, e.1)
                    });
                    let remasked = gate.response.corrected_to() == Some(Purpose::WireMask);
                    assert!(!remasked || own.count() == 1, "{id:?} {element}");
                }
                other => panic!("the device drew for {other:?}"),
            }
            tried += 1;
        }
        assert!(tried > 50);
    }
}
