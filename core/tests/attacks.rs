//! Parties that depart from the protocol, and what they gain: nothing where the documents say so, and as much as they
//! say elsewhere. An attack that stops working here is good news for a document that must then be changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;
#[path = "lab/tamper.rs"]
mod tamper;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lab::chance::Chance;
use lab::peer::{Fixture, Frame, Memory, Store, connect, request, word_pool};
use lab::{Secret, Seeds, random_secret};
use secure_router_core::channel::{Channel, Event as Arrived, Link};
use secure_router_core::circuit::{Gate, Message, MessageKind, Operand, Program, Response, Slot};
use secure_router_core::gate::{self, embed, margin, opening, requantise, table};
use secure_router_core::ring::{bits_at, low_bits, signed};
use secure_router_core::routing::{Bias, Routing};
use secure_router_core::session::{
    Control, DeviceMemory, Event, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, PreparedStock, Refusal, SessionError,
    SlotStock, ToDevice, Welcome,
};
use secure_router_core::spec::{ModelSpec, Opening, Output, PoolSpec, RouterSpec, Words};
use tamper::{Honest, Tamper, View, add, gates, messages, run, tell_another};

fn shape(shift: u8, index_bits: u8) -> Opening {
    Opening { shift, index_bits }
}

// ---- a malicious server, gate by gate: every value of every mask

/// A strategy: any function of what was seen. Number 0 is honest, 1 to 3 shift what is honest, the others are noise.
fn strategy(number: u32, honest: u32, seen: &[u32]) -> u32 {
    match number {
        0..4 => honest.wrapping_add(number),
        _ => {
            let mixed = seen.iter().fold(u64::from(number), |mixed, word| (mixed ^ u64::from(*word)).wrapping_mul(31));
            Chance(mixed).word() as u32
        }
    }
}

const STRATEGIES: u32 = 10;

/// How often each view occurs over all masks.
type Views = BTreeMap<Vec<u32>, u32>;

/// All views of a server that is lied to by nobody and answers as `strategy` says; `masks` bits of randomness are
/// handed out from the low end.
fn views(masks: u8, view: impl Fn(&mut dyn FnMut(u8) -> u32) -> Vec<u32>) -> Views {
    let mut views = Views::new();
    for number in 0..1u32 << masks {
        let mut left = number;
        let mut draw = |bits: u8| {
            let value = low_bits(left, bits);
            left >>= bits;
            value
        };
        *views.entry(view(&mut draw)).or_default() += 1;
    }
    views
}

/// One opening with a table of one-time padded entries, seen from the server: its share, the correction, the entries,
/// and the pad that its index unlocks.
#[allow(clippy::too_many_arguments, reason = "one opening's whole state")]
fn opened(
    rule: Opening,
    out: u8,
    entries: u32,
    number: u32,
    y: u32,
    rho_server: u32,
    draw: &mut dyn FnMut(u8) -> u32,
    entry: impl Fn(u32, u32, u32) -> u32,
    masked: bool,
) -> Vec<u32> {
    let (mask, rho_device) = (draw(rule.bits()), draw(rule.bits()));
    let out_mask = if masked { draw(out) } else { 0 };
    let pads: Vec<u32> = (0..entries).map(|_| draw(out)).collect();
    let y_hat = low_bits(y.wrapping_add(mask), rule.bits());
    let correction = low_bits(gate::correction(rho_device, mask), rule.bits());
    let sigma = opening::dealer_sigma(rule, rho_device.wrapping_add(rho_server));
    let mut seen = vec![y_hat, correction];
    seen.extend((0..entries).map(|j| low_bits(entry(sigma, j, out_mask).wrapping_sub(pads[j as usize]), out)));
    let honest = opening::server_index(rule, y_hat, correction, rho_server);
    let honest = if entries == 2 { requantise::key_bit(rule, honest) } else { honest };
    let index = strategy(number, honest, &seen) % entries;
    seen.extend([index, pads[index as usize]]);
    seen
}

#[test]
fn a_tables_opening_shows_any_server_the_same_for_every_value() {
    let function = [1u32, 3, 0, 2];
    for (rule, out) in [(shape(0, 2), 2), (shape(1, 2), 1)] {
        for number in 0..STRATEGIES {
            let of = |y| {
                views(2 * rule.bits() + 5 * out, |draw| {
                    let entry = |sigma, j, mask| {
                        let mut entries = Vec::new();
                        table::dealer_entries(&function, sigma, mask, |entry| entries.push(entry));
                        entries[j as usize]
                    };
                    opened(rule, out, 4, number, y, 5, draw, entry, true)
                })
            };
            let first = of(0);
            (1..1 << rule.bits()).for_each(|y| assert!(of(y) == first, "strategy {number}: the view tells {y} from 0"));
        }
    }
}

#[test]
fn a_requantisation_shows_any_server_the_same_for_every_value() {
    for rule in [shape(1, 2), shape(0, 3)] {
        for number in 0..STRATEGIES {
            let of = |y| {
                views(2 * rule.bits() + 6, |draw| {
                    let entry = |sigma, j, mask| requantise::dealer_entry(rule, sigma, j, mask);
                    opened(rule, 2, 2, number, y, 3, draw, entry, true)
                })
            };
            let first = of(0);
            (1..1 << rule.bits()).for_each(|y| assert!(of(y) == first, "strategy {number}: the view tells {y} from 0"));
        }
    }
}

#[test]
fn a_told_table_shows_any_server_nothing_and_the_device_one_bit() {
    let rule = shape(0, 2);
    // 1 for an index of exactly 1, as the router's last gate.
    let function: Vec<u32> = (0..4).map(|index| u32::from(index == 1)).collect();
    for number in 0..STRATEGIES {
        // What the server sees, to how often the pad, which stays with the device, was 0 and 1, for each value.
        let mut before = BTreeMap::<Vec<u32>, BTreeMap<u32, [u32; 2]>>::new();
        for y in 0..1 << rule.bits() {
            let views = views(2 + 2 + 4, |draw| {
                let entry = |sigma, j, mask| {
                    let mut entries = Vec::new();
                    table::dealer_entries(&function, sigma, mask, |entry| entries.push(entry));
                    entries[j as usize]
                };
                opened(rule, 1, 4, number, y, 3, draw, entry, false)
            });
            for (mut view, count) in views {
                let pad = view.pop().unwrap();
                before.entry(view).or_default().entry(y).or_default()[pad as usize] += count;
            }
        }
        for (view, by_value) in &before {
            // To the server all values look alike.
            let total = |pads: &[u32; 2]| pads[0] + pads[1];
            assert_eq!(by_value.len(), 4, "strategy {number}: {view:?}");
            assert!(by_value.values().all(|pads| total(pads) == total(&by_value[&0])), "strategy {number}");
            // With the pad, so in what the device reads and may show, they fall into two classes at most: one element's bit.
            assert!(by_value.values().collect::<BTreeSet<_>>().len() <= 2, "strategy {number}");
        }
        let told = before.values().any(|by_value| by_value.values().collect::<BTreeSet<_>>().len() == 2);
        assert!(told, "the bit is there");
    }
}

#[test]
fn linear_gates_and_products_show_any_server_the_same_for_every_value() {
    const BITS: u8 = 2;
    let low = |value| low_bits(value, BITS);
    // Two gates that read one wire, with masked weights and weight masks of the server's choice.
    for weights in 0..256u32 {
        let [f1, f2, b1, b2] = [weights & 3, weights >> 2 & 3, weights >> 4 & 3, weights >> 6];
        let of = |x: u32| {
            views(10, |draw| {
                let (r, u1, u2, rho1, rho2) = (draw(2), draw(2), draw(2), draw(2), draw(2));
                let gate = |f: u32, b: u32, u: u32, rho| {
                    let mask = b.wrapping_mul(r).wrapping_add(u);
                    [low(f.wrapping_mul(r).wrapping_sub(u)), low(gate::correction(rho, mask))]
                };
                [[low(x.wrapping_add(r)), 0], gate(f1, b1, u1, rho1), gate(f2, b2, u2, rho2)].concat()
            })
        };
        let first = of(0);
        (1..4).for_each(|x| assert!(of(x) == first, "weights {weights}: the view tells {x} from 0"));
    }
    // A product with operands of the server's choice.
    for number in 0..STRATEGIES {
        let of = |x: u32, y: u32| {
            views(8, |draw| {
                let (r_x, r_y, u, rho) = (draw(2), draw(2), draw(2), draw(2));
                let (p_x, p_y) = (1u32, 2u32);
                let q = p_x * r_y + r_x * p_y + r_x * r_y;
                let mut seen = vec![low(x + r_x), low(y + r_y), low(q.wrapping_sub(u))];
                let e_x = strategy(number, x + r_x + p_x, &seen);
                let e_y = strategy(number + 1, y + r_y + p_y, &seen);
                let mask = e_x.wrapping_mul(r_y).wrapping_add(r_x.wrapping_mul(e_y)).wrapping_sub(u);
                seen.push(low(gate::correction(rho, mask)));
                seen
            })
        };
        let first = of(0, 0);
        (1..16).for_each(|xy| assert!(of(xy & 3, xy >> 2) == first, "strategy {number}: the view tells {xy} from 0"));
    }
}

// ---- a malicious server, over whole programs

fn model_spec() -> ModelSpec {
    ModelSpec {
        tokens: 2,
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

/// Registers other weights and tables than it uses, and sends any indices, operands and outputs, by what it saw. Padding
/// stays zero, or the device would hang up.
struct Liar {
    chance: Chance,
    /// Bits of each of the server's messages.
    used: Vec<u64>,
}

impl Tamper for Liar {
    fn registered(&mut self, secret: &Secret) -> Secret {
        random_secret(secret.program, 5, 3000)
    }
    fn down(&mut self, number: usize, message: &mut Vec<u8>, view: &View) {
        let seen = view.up.iter().flatten().chain(&view.corrections).map(|byte| u64::from(*byte)).sum::<u64>();
        match (seen ^ number as u64) % 3 {
            0 => {}
            1 => message.iter_mut().for_each(|byte| *byte = self.chance.word() as u8),
            _ => message.iter_mut().for_each(|byte| *byte ^= seen as u8 | 1),
        }
        for bit in self.used[number]..message.len() as u64 * 8 {
            message[(bit / 8) as usize] &= !(1 << (bit % 8));
        }
    }
}

/// A program's gates and messages.
struct Layout {
    gates: Vec<Gate>,
    up: Vec<(usize, Message)>,
    down: Vec<(usize, Message)>,
}

impl Layout {
    fn of(program: &Program) -> Self {
        Self { gates: gates(program), up: messages(program, true), down: messages(program, false) }
    }
}

/// The server's view as bits: what it can unlock, for each answer the entry under its index, and the bytes as they
/// came.
fn unlocked(layout: &Layout, view: &View) -> Vec<bool> {
    let mut unlocked = Vec::new();
    let Layout { gates, up, down } = layout;
    for (number, (place, message)) in up.iter().enumerate().filter(|(_, (_, m))| m.kind == MessageKind::Answer) {
        let gate = &gates[*place];
        let index_at = down.iter().position(|(have, m)| have == place && m.kind == MessageKind::Index).unwrap();
        let bits = down[index_at].1.bits;
        let sent = |at: u32| bits_at(&view.down[index_at], u64::from(at) * u64::from(bits), bits);
        for element in 0..message.elements {
            let entry = |index| {
                let place = table::entry(element, gate.response.entries(), index);
                bits_at(&view.stock, gate.entries_at * 8 + place * u64::from(message.bits), message.bits)
            };
            let pad = bits_at(&view.up[number], u64::from(element) * u64::from(message.bits), message.bits);
            let value = if let Response::Margin { even, .. } = gate.response {
                // The margin comes first, and an answer is for two entries.
                let margin = margin::margin_of(element, even, sent(0));
                let entries = margin::places(sent(1 + element), margin, bits).map(entry);
                margin::server_share(entries, pad, message.bits)
            } else {
                low_bits(entry(sent(element)).wrapping_add(pad), message.bits)
            };
            unlocked.extend((0..message.bits).map(|bit| value >> bit & 1 == 1));
        }
    }
    if let Some(Gate { operand: Operand::Embed(embed), stock_at, .. }) = gates.first() {
        // Of words the sums of the entries under them.
        let (bits, sent) = (up[0].1.bits, &view.up[0]);
        let word = |i: u16| bits_at(sent, u64::from(i) * u64::from(bits), bits);
        let entry = |at: u64| bits_at(&view.stock, stock_at * 8 + at * u64::from(bits), bits);
        for row in 0..embed.rows {
            for column in 0..embed.width {
                let at = u64::from(embed.words.count) + u64::from(row * embed.width + column);
                let share =
                    embed::server_share(embed, row, column, bits_at(sent, at * u64::from(bits), bits), word, entry);
                unlocked.extend((0..bits).map(|bit| share >> bit & 1 == 1));
            }
        }
    }
    let raw = view.corrections.iter().chain(view.up.iter().flatten()).chain(&view.stock);
    let raw = raw.flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    unlocked.into_iter().chain(raw).collect()
}

#[test]
fn a_lying_servers_view_of_a_program_does_not_tell_two_inputs_apart() {
    const RUNS: u64 = 1500;
    let trunk = ModelSpec { heads: 0, output_bits: 13, ..model_spec() };
    let spec = RouterSpec { trunk, answers: 3 };
    let router = |routing| Program::Router { spec, words: None, models: 3, output: Output::Label, routing };
    let programs = [
        Program::Model { spec: model_spec(), words: None, classes: 3, output: Output::Label },
        router(Routing::Open),
        router(Routing::Private { epsilon: 1000 }),
        router(Routing::Device),
        Program::Model { spec: trunk, words: Some(Words { count: 8, bits: 4 }), classes: 3, output: Output::Label },
    ];
    for program in programs {
        let slot = match program {
            Program::Model { .. } => Slot::Model(0),
            Program::Router { .. } => Slot::Router,
        };
        let secret = random_secret(program, 2, 100);
        let layout = Layout::of(&program);
        let used: Vec<u64> = layout.down.iter().map(|(_, m)| u64::from(m.elements) * u64::from(m.bits)).collect();
        let inputs = match program {
            Program::Model { words: Some(_), .. } => [vec![15; 8], vec![0; 8]],
            _ => [vec![-128; 8], vec![127; 8]],
        };
        let mut ones: [Vec<f64>; 2] = Default::default();
        let mut joint: [Vec<f64>; 2] = Default::default();
        for (world, input) in inputs.iter().enumerate() {
            for run_number in 0..RUNS {
                let seeds = Seeds { slot, ..Seeds::fixed(40) };
                let mut liar = Liar { chance: Chance(run_number), used: used.clone() };
                let (view, _) = run(&secret, &seeds, 2 * run_number + world as u64, input, Bias::NONE, &mut liar);
                let bits = unlocked(&layout, &view);
                let total = bits.len();
                ones[world].resize(total, 0.0);
                joint[world].resize(total, 0.0);
                for at in 0..total {
                    ones[world][at] += f64::from(u8::from(bits[at]));
                    joint[world][at] += f64::from(u8::from(bits[at] ^ bits[(at * 131 + 7) % total]));
                }
            }
        }
        for counts in [&ones, &joint] {
            for (at, (a, b)) in counts[0].iter().zip(&counts[1]).enumerate() {
                let n = RUNS as f64;
                let spread = ((a + b) / 2.0 * (1.0 - (a + b) / (2.0 * n)) * 2.0).sqrt();
                assert!((a - b).abs() <= 6.0 * spread, "bit {at} of {program:?}: {a} and {b} of {n}");
            }
        }
    }
}

// ---- a malicious server, over whole sessions: any frame at any time

/// What a server gets to see of a device.
#[derive(Debug, PartialEq)]
enum Seen {
    Frame(u8, Vec<u8>),
    /// Frames of a masked input of this program, put together.
    Share(Slot, Vec<u8>),
    /// What the device did next shows what happened to it.
    Happened(Result<Event, SessionError>),
}

/// The server's messages of a program with made-up contents, in frames. Padding is zero, or the device would hang up.
fn made_up(program: &Program, chance: &mut Chance) -> VecDeque<Frame> {
    let mut made_up = VecDeque::new();
    for (_, message) in messages(program, false) {
        let mut bytes: Vec<u8> = (0..message.bytes()).map(|_| chance.word() as u8).collect();
        for bit in u64::from(message.elements) * u64::from(message.bits)..bytes.len() as u64 * 8 {
            bytes[(bit / 8) as usize] &= !(1 << (bit % 8));
        }
        made_up.extend(bytes.chunks(FRAME_PAYLOAD).map(|piece| (FRAME_DATA, piece.to_vec())));
    }
    made_up
}

fn control(message: &ToDevice) -> Frame {
    let mut bytes = vec![0; FRAME_PAYLOAD];
    let len = message.to_bytes(&mut bytes).unwrap();
    (FRAME_CONTROL, bytes[..len].to_vec())
}

/// A device that asks about `input`, three times at most, and a server that says anything: mostly made-up messages of the
/// right length, but also other frames and refusals at any time. All that it sees, in order.
fn conversation(fixture: &Fixture, number: u64, input: &[i16]) -> Vec<Seen> {
    let mut chance = Chance(number);
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut session = connect(fixture, &mut memory, &store, 4);
    let (mut rx, mut tx) = (vec![0; DeviceMemory::FRAME_BYTES], vec![0; DeviceMemory::FRAME_BYTES]);
    let mut server = Channel::responder(Link::DeviceServer, &fixture.server, &mut Chance(6), &mut rx, &mut tx).unwrap();
    let slots: Vec<Slot> = fixture.pool.slots().collect();
    let (mut seen, mut questions) = (Vec::new(), 0);
    let (mut ready, mut share, mut due) = (false, None, VecDeque::new());
    let begin = |slot: Slot, chance: &mut Chance| {
        let program = fixture.secret(slot).program;
        let bytes = program.gate(0).unwrap().unwrap().messages()[0].bytes();
        (made_up(&program, chance), Some((slot, bytes)))
    };
    loop {
        let up = session.io().1.to_vec();
        let outcome = if !up.is_empty() {
            let mut rest = &up[..];
            while !rest.is_empty() {
                let (taken, event) = server.feed(rest).unwrap();
                rest = &rest[taken..];
                match event {
                    Arrived::Identity(_) => server.accept().unwrap(),
                    Arrived::Frame { kind, .. } => {
                        let payload = server.payload().to_vec();
                        match (&mut share, seen.last_mut()) {
                            (Some((_, left)), Some(Seen::Share(_, bytes))) if kind == FRAME_DATA && *left > 0 => {
                                *left -= payload.len();
                                bytes.extend(payload);
                            }
                            (Some((slot, left)), _) if kind == FRAME_DATA && *left > 0 => {
                                *left -= payload.len();
                                seen.push(Seen::Share(*slot, payload));
                            }
                            _ => seen.push(Seen::Frame(kind, payload)),
                        }
                    }
                    Arrived::NeedMore | Arrived::Established => {}
                }
            }
            session.sent(up.len())
        } else if !server.pending().is_empty() {
            let wanted = session.io().0;
            let count = wanted.len().min(server.pending().len());
            wanted[..count].copy_from_slice(&server.pending()[..count]);
            server.sent(count).unwrap();
            session.received(count)
        } else {
            let slot = slots[chance.below(slots.len())];
            let counter = [0, 0, 0, 1, 5][chance.below(5)];
            let (kind, payload) = if !ready {
                let pool = fixture.pool.to_bytes(&mut [0; 512]).unwrap().iter().copied().collect();
                let stock = slots.iter().map(|slot| SlotStock { slot: *slot, first: 0, fresh: 9, ready: 9 });
                control(&ToDevice::Welcome(Welcome { pool, stock: stock.collect() }))
            } else {
                match (chance.below(60), due.pop_front()) {
                    (0, _) => (chance.word() as u8 % 4, vec![chance.word() as u8; chance.below(FRAME_PAYLOAD + 1)]),
                    (1, _) => control(&ToDevice::Refused(Refusal::Counter(slot))),
                    (2, _) | (_, None) => {
                        let stock = SlotStock { slot, first: counter, fresh: counter + 1, ready: 1 };
                        control(&ToDevice::Prepared(PreparedStock { stock }))
                    }
                    (_, Some(frame)) => frame,
                }
            };
            server.send(kind, &payload).unwrap();
            Ok(None)
        };
        let event = match outcome {
            Ok(None) => continue,
            Ok(Some(event)) => event,
            Err(error) => {
                seen.push(Seen::Happened(Err(error)));
                break;
            }
        };
        seen.push(Seen::Happened(Ok(event)));
        ready = true;
        if let Event::Routed(slot) = event {
            (due, share) = begin(slot, &mut chance);
            continue;
        }
        if questions == 3 {
            break;
        }
        questions += 1;
        let slot = slots[chance.below(slots.len())];
        (due, share) = begin(slot, &mut chance);
        session.infer(request(slot), input).unwrap();
    }
    let burned = &store.0.borrow().burned;
    assert_eq!(burned.iter().collect::<BTreeSet<_>>().len(), burned.len(), "a counter twice: {burned:?}");
    seen
}

/// The simulator of such a server's view: it runs the device on zeros, and puts uniform bits for each masked input.
/// That the rest is then the view itself is what this test shows: nothing else that a device says or does, nor when it
/// hangs up, depends on its input. That a masked input is uniform, given the rest, the tests of the gates show.
#[test]
fn any_server_sees_of_an_input_its_masked_form_and_nothing_else() {
    let told = Fixture::new(PoolSpec { routing: Routing::Device, ..Fixture::shared().pool.clone() });
    let words = Fixture::new(word_pool());
    let mut tally = BTreeMap::<String, usize>::new();
    for number in 0..1200u64 {
        let fixture = [Fixture::shared(), Fixture::answering(), told, words][number as usize % 4];
        let input = fixture.input(number as i16 % 50);
        let (real, simulated) =
            (conversation(fixture, number, &input), conversation(fixture, number, &vec![0; input.len()]));
        assert_eq!(real.len(), simulated.len(), "{number}");
        for (real, simulated) in real.iter().zip(&simulated) {
            let name = match (real, simulated) {
                (Seen::Share(slot, real), Seen::Share(other, simulated)) => {
                    let gate = fixture.secret(*slot).program.gate(0).unwrap().unwrap();
                    let bits = gate.out.bits;
                    assert_eq!((slot, real.len()), (other, gate.messages()[0].bytes()), "{number}");
                    // Of words only the first part: what follows is under pads at other places, which the gate's tests are about.
                    for (at, value) in (0u64..).step_by(usize::from(bits)).zip(&input) {
                        let apart = bits_at(real, at, bits).wrapping_sub(bits_at(simulated, at, bits));
                        assert_eq!(low_bits(apart, bits), low_bits(i32::from(*value) as u32, bits), "{number}");
                    }
                    "share".to_owned()
                }
                (real, simulated) => {
                    assert_eq!(real, simulated, "{number}");
                    match real {
                        Seen::Happened(Ok(event)) => format!("{event:?}"),
                        Seen::Happened(Err(error)) => format!("{error:?}"),
                        Seen::Frame(..) | Seen::Share(..) => "frame".to_owned(),
                    }
                }
            };
            *tally.entry(name.split(['(', ' ']).next().unwrap().to_owned()).or_default() += 1;
        }
    }
    println!("{tally:?}");
    for seen in ["share", "frame", "Answer", "Routed", "Advised", "Refused", "Frame", "Control"] {
        assert!(tally.get(seen).is_some_and(|count| *count > 20), "{seen}: {tally:?}");
    }
}

// ---- how much a router of the server's own making learns

/// Who beats whom, for all pairs, to the wins of each.
fn wins(models: usize, tournament: u32) -> Vec<u32> {
    let mut wins = vec![0; models];
    let mut pair = 0;
    for first in 0..models {
        for second in first + 1..models {
            wins[if tournament >> pair & 1 == 1 { first } else { second }] += 1;
            pair += 1;
        }
    }
    wins
}

/// Asks each model for another number of wins than all of them.
struct Asks<'a> {
    program: &'a Program,
    asked: &'a [u32],
}

impl Tamper for Asks<'_> {
    fn down(&mut self, number: usize, message: &mut Vec<u8>, view: &View) {
        let sent = messages(self.program, false);
        if number + 1 == sent.len() {
            let all = self.asked.len() as u32 - 1;
            for (element, asked) in (0u32..).zip(self.asked) {
                tell_another(self.program, message, element, all.wrapping_sub(*asked), &view.stock);
            }
        }
    }
}

#[test]
fn a_router_of_the_servers_making_learns_one_of_the_models_and_no_more() {
    const MODELS: usize = 3;
    // The secret is a number of 3 bits, in three input values; the router's weights put it together, once for each model.
    let trunk = ModelSpec {
        tokens: 1,
        features: 3,
        heads: 0,
        ffn: MODELS as u16,
        layers: 1,
        ffn_in: shape(0, 6),
        output_bits: 12,
        ..model_spec()
    };
    let program = Program::Router {
        spec: RouterSpec { trunk, answers: 0 },
        words: None,
        models: MODELS as u16,
        output: Output::Label,
        routing: Routing::Open,
    };
    let mut secret = random_secret(program, 1, 1);
    let identity = (0..MODELS * MODELS).map(|at| i16::from(at / MODELS == at % MODELS));
    secret.weights = [[1, 2, 4].repeat(MODELS), vec![0; 3 * MODELS], identity.collect()].concat();
    // Each model's utility is another part of one table.
    secret.biases = vec![0, 8, 16, 0, 0, 0];
    // Utilities for each way in which three models can beat each other: differences wrap modulo 2^12.
    let beats = |u: i32, v: i32| u32::from(signed(low_bits(u.wrapping_sub(v) as u32, 12), 12) >= 0);
    let mut utilities = [None; 8];
    for (p, q) in (-2000..=2000).step_by(200).flat_map(|p| (-2000..=2000).step_by(200).map(move |q| (p, q))) {
        utilities[(beats(0, p) | beats(0, q) << 1 | beats(p, q) << 2) as usize] = Some([0, p, q]);
    }
    for (value, utilities) in utilities.iter().enumerate() {
        let utilities = utilities.expect("every tournament has its utilities");
        (0..MODELS).for_each(|model| secret.tables[8 * model + value] = utilities[model] as i16);
    }
    let seeds = Seeds { slot: Slot::Router, ..Seeds::fixed(50) };
    let learn = |asked: &[u32]| {
        let mut routes = BTreeMap::<u8, Vec<u32>>::new();
        for value in 0..8u32 {
            let input: Vec<i16> = (0..3).map(|bit| (value >> bit & 1) as i16).collect();
            let (view, _) =
                run(&secret, &seeds, u64::from(value), &input, Bias::NONE, &mut Asks { program: &program, asked });
            // The device takes the first model that has what was asked for, and else the first of all.
            let wanted = wins(MODELS, value).iter().zip(asked).position(|(w, a)| w == a).unwrap_or(0);
            assert_eq!(view.route, Some(wanted as u8), "value {value}");
            routes.entry(wanted as u8).or_default().push(value);
        }
        routes
    };
    let honest = learn(&[MODELS as u32 - 1; MODELS]);
    assert_eq!(honest.len(), MODELS);
    let most = (0..27u32).map(|number| learn(&[number % 3, number / 3 % 3, number / 9])).max_by_key(BTreeMap::len);
    let most = most.unwrap();
    println!("3 models: {:.2} bits of an input per routed question at most: {most:?}", (most.len() as f64).log2());
    assert_eq!(most.len(), MODELS);
}

// ---- a malicious device

/// Shifts what the device sends.
#[derive(Default)]
struct Shifts {
    /// Message, bits, element, shift.
    up: Vec<(usize, u8, u64, u32)>,
    /// First bit, bits, element, shift.
    corrections: Vec<(u64, u8, u64, u32)>,
}

impl Tamper for Shifts {
    fn corrections(&mut self, corrections: &mut Vec<u8>) {
        for (first, bits, element, shift) in &self.corrections {
            add(corrections, *first, *bits, *element, *shift);
        }
    }
    fn up(&mut self, number: usize, message: &mut Vec<u8>) {
        for (_, bits, element, shift) in self.up.iter().filter(|(have, ..)| *have == number) {
            add(message, 0, *bits, *element, *shift);
        }
    }
}

const FEATURES: usize = 5;
const FFN: usize = 4;
const CLASSES: usize = 4;
const LARGEST: i32 = 60;
/// Of the victim's wires: differences of logits that stand out by 2^16 times a weight fit twice.
const WIRE_BITS: u8 = 25;

fn victim(output: Output) -> Secret {
    let spec = ModelSpec {
        tokens: 2,
        features: FEATURES as u16,
        width: 0,
        heads: 0,
        ffn: FFN as u16,
        layers: 1,
        ffn_in: shape(7, 9),
        output_bits: WIRE_BITS,
        ..model_spec()
    };
    random_secret(Program::Model { spec, words: None, classes: CLASSES as u16, output }, 77, LARGEST as i16)
}

/// The last linear layer: class, column (the input's, then the activations').
fn last_layer(secret: &Secret) -> Vec<Vec<i32>> {
    let first = secret.weights.len() - CLASSES * (FEATURES + FFN);
    let (input, ffn) = secret.weights[first..].split_at(CLASSES * FEATURES);
    let row = |class: usize| {
        let input = &input[class * FEATURES..][..FEATURES];
        input.iter().chain(&ffn[class * FFN..][..FFN]).map(|weight| i32::from(*weight)).collect()
    };
    (0..CLASSES).map(row).collect()
}

/// The shift that makes a column of the last layer stand out by 2^16: of the input's share, or of the activations'.
/// The layer before reads its wires modulo 2^16 and does not notice.
fn stand_out(column: usize) -> (usize, u8, u64, u32) {
    let (message, element) = if column < FEATURES { (0, column) } else { (1, column - FEATURES) };
    (message, WIRE_BITS, element as u64, 1 << 16)
}

#[test]
fn a_device_that_shifts_its_shares_reads_the_last_layer_from_logits() {
    let secret = victim(Output::Logits);
    let truth = last_layer(&secret);
    let seeds = Seeds::fixed(60);
    let input = vec![0; 2 * FEATURES];
    let mut found = vec![Vec::new(); CLASSES];
    let mut questions = 0u64;
    for column in 0..FEATURES + FFN {
        let mut shifts = Shifts { up: vec![stand_out(column)], ..Shifts::default() };
        let (_, logits) = run(&secret, &seeds, questions, &input, Bias::NONE, &mut shifts);
        questions += 1;
        for (found, logit) in found.iter_mut().zip(logits) {
            found.push((logit + (1 << 15)) >> 16);
        }
    }
    assert_eq!(found, truth);
    println!("logits: {} weights of the last layer, exactly, in {questions} questions", CLASSES * truth[0].len());
    assert_eq!(questions, 9);
}

#[test]
fn a_device_that_shifts_its_shares_reads_the_last_layer_from_labels() {
    let secret = victim(Output::Label);
    let truth = last_layer(&secret);
    let seeds = Seeds::fixed(61);
    let input = vec![0; 2 * FEATURES];
    // The argmax's gates: differences of all pairs, then wins.
    let all = gates(&secret.program);
    let [.., differences, wins] = &all[..] else { panic!("a label's last gates") };
    let pair = |first: usize, second: usize| {
        (0..CLASSES).flat_map(|a| (a + 1..CLASSES).map(move |b| (a, b))).position(|p| p == (first, second)).unwrap()
    };
    let mut questions = 0u64;
    // Whether the logit of class 0, shifted, is at least that of class c, for every c at once.
    let mut compare = |column: usize, shifts: &[i32]| {
        let mut tamper = Shifts { up: vec![stand_out(column)], ..Shifts::default() };
        let (at, bits) = (differences.corrections_at, differences.bits());
        for first in 0..CLASSES {
            for second in first + 1..CLASSES {
                // The other pairs are made to come out as 1.
                let shift = if first == 0 { shifts[second - 1] } else { 1 << (WIRE_BITS - 2) };
                tamper.corrections.push((at, bits, pair(first, second) as u64, shift as u32));
            }
        }
        // Class c then has CLASSES - c wins, less one if it loses to class 0: shifted to a full score, it says which.
        let (at, bits) = (wins.corrections_at, wins.bits());
        tamper.corrections.extend((1..CLASSES).map(|class| (at, bits, class as u64, class as u32)));
        let (_, label) = run(&secret, &seeds, questions, &input, Bias::NONE, &mut tamper);
        questions += 1;
        label[1..].iter().map(|one| *one == 1).collect::<Vec<bool>>()
    };
    let mut found = vec![Vec::new(); CLASSES - 1];
    for column in 0..FEATURES + FFN {
        // The difference of two weights, between these bounds.
        let mut bounds = vec![(-2 * LARGEST, 2 * LARGEST); CLASSES - 1];
        while bounds.iter().any(|(low, high)| low < high) {
            let middles: Vec<i32> = bounds.iter().map(|(low, high)| (low + high + 1).div_euclid(2)).collect();
            let shifts: Vec<i32> = middles.iter().map(|middle| -((middle << 16) - (1 << 15))).collect();
            for (bounds, (middle, at_least)) in bounds.iter_mut().zip(middles.iter().zip(compare(column, &shifts))) {
                *bounds = if at_least { (*middle, bounds.1) } else { (bounds.0, bounds.1.min(middle - 1)) };
            }
        }
        found.iter_mut().zip(bounds).for_each(|(found, (low, _))| found.push(low));
    }
    for (class, found) in (1..).zip(&found) {
        let differences: Vec<i32> = truth[0].iter().zip(&truth[class]).map(|(a, b)| a - b).collect();
        assert_eq!(*found, differences, "class 0 less class {class}");
    }
    println!(
        "labels: {} differences of weights of the last layer, which are all that a label depends on, exactly, in \
         {questions} questions",
        (CLASSES - 1) * truth[0].len()
    );
    assert_eq!(questions, 9 * 8);
}

#[test]
fn an_honest_device_gets_the_references_answer_from_the_same_bench() {
    for output in [Output::Logits, Output::Label] {
        let secret = victim(output);
        let input: Vec<i16> = (0..10).map(|i| i * 3 - 11).collect();
        let seeds = Seeds::fixed(62);
        let (_, answer) = run(&secret, &seeds, 4, &input, Bias::NONE, &mut Honest);
        let wanted = lab::reference(&secret, &input, Bias::NONE, &mut lab::Dither(seeds.dealer_keys(4))).unwrap();
        assert_eq!(answer.into_iter().map(i64::from).collect::<Vec<_>>(), wanted);
    }
}
