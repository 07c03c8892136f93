//! One inference of a program with a party that does as it likes: every message passes through its hands.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use secure_router_core::circuit::{Gate, Message, Program, Response};
use secure_router_core::device::{self, Online, Outgoing, Step};
use secure_router_core::gate::{table, tell};
use secure_router_core::keys::{DeviceSeeds, server_key};
use secure_router_core::ring::{bits_at, low_bits};
use secure_router_core::server::{self, Server, Stock, Turn};

use crate::lab::{Secret, Seeds, deal, offline};
use secure_router_core::routing::Bias;

/// A party that departs from the protocol. What it does not change stays honest.
pub trait Tamper {
    /// What the server registers with the dealer, which knows no better.
    fn registered(&mut self, secret: &Secret) -> Secret {
        secret.clone()
    }
    /// The device's corrections, before they go.
    fn corrections(&mut self, corrections: &mut Vec<u8>) {
        let _ = corrections;
    }
    /// The server's stock item, before it is used.
    fn stock(&mut self, stock: &mut Vec<u8>) {
        let _ = stock;
    }
    /// The device's message of this number, before it goes.
    fn up(&mut self, number: usize, message: &mut Vec<u8>) {
        let _ = (number, message);
    }
    /// The server's message of this number, before it goes; `view` is all that the server got until then.
    fn down(&mut self, number: usize, message: &mut Vec<u8>, view: &View) {
        let _ = (number, message, view);
    }
}

/// Nobody departs.
pub struct Honest;

impl Tamper for Honest {}

/// What the server gets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub stock: Vec<u8>,
    pub corrections: Vec<u8>,
    pub up: Vec<Vec<u8>>,
    /// What it sent, after its own changes.
    pub down: Vec<Vec<u8>>,
    /// What a router told the device, which shows in what that asks for next.
    pub route: Option<u8>,
}

/// Runs one inference; returns the server's view and the device's answer.
pub fn run(
    secret: &Secret,
    seeds: &Seeds,
    counter: u64,
    input: &[i16],
    bias: Bias<'_>,
    tamper: &mut impl Tamper,
) -> (View, Vec<i32>) {
    let program = secret.program;
    let mut corrections = offline(secret, seeds, counter, 1024, 4);
    tamper.corrections(&mut corrections);
    let stock = deal(&tamper.registered(secret), seeds, counter);
    let mut view = View { stock, corrections, ..View::default() };
    tamper.stock(&mut view.stock);
    let device_seeds = DeviceSeeds { dealer: seeds.device_dealer.clone(), server: seeds.device_server.clone() };
    let keys = device_seeds.keys(&seeds.pool, seeds.slot, counter);
    let mut work = vec![0; device::work_words(&program, 4).unwrap()];
    let mut online = Online::new(program, keys, work.len()).unwrap();

    let (stock, corrections) = (view.stock.clone(), view.corrections.clone());
    let stock = Stock { correlations: &stock, corrections: &corrections };
    let key = server_key(&seeds.server_dealer, &seeds.pool, seeds.slot, counter);
    let mut server_work = vec![0; server::work_words(&program).unwrap()];
    let mut server = Server::new(program, secret.parameters(), key, stock, bias, &mut server_work).unwrap();

    let mut rx = Vec::new();
    loop {
        match server.turn() {
            Turn::Done => break,
            Turn::Send(message) => {
                let mut bytes = vec![0; message.bytes()];
                server.send(&mut bytes).unwrap();
                tamper.down(view.down.len(), &mut bytes, &view);
                assert_eq!(bytes.len(), message.bytes());
                rx.extend_from_slice(&bytes);
                view.down.push(bytes);
            }
            Turn::Receive(message) => {
                let mut bytes = vec![0; message.bytes()];
                let mut tx = Outgoing::new(&mut bytes);
                while tx.len < message.bytes() {
                    let (taken, step) = {
                        let mut rest = &rx[..];
                        let step = online.advance(input, &mut work, &mut rest, &mut tx).unwrap();
                        (rx.len() - rest.len(), step)
                    };
                    rx.drain(..taken);
                    assert!(step == Step::Flush || tx.len < message.bytes());
                }
                tamper.up(view.up.len(), &mut bytes);
                server.receive(&bytes).unwrap();
                view.up.push(bytes);
            }
        }
    }
    let mut nothing = [0; 8];
    let mut rest = &rx[..];
    assert_eq!(online.advance(input, &mut work, &mut rest, &mut Outgoing::new(&mut nothing)).unwrap(), Step::Done);
    view.route = matches!(program, Program::Router { .. }).then(|| online.route());
    let answer = match program {
        Program::Router { .. } => Vec::new(),
        Program::Model { classes, .. } => work.iter().take(usize::from(classes)).map(|word| *word as i32).collect(),
    };
    (view, answer)
}

/// Adds to one packed element.
pub fn add(bytes: &mut [u8], first_bit: u64, bits: u8, element: u64, value: u32) {
    let at = first_bit + element * u64::from(bits);
    let sum = low_bits(bits_at(bytes, at, bits).wrapping_add(value), bits);
    for bit in 0..u64::from(bits) {
        let (byte, place) = (((at + bit) / 8) as usize, (at + bit) % 8);
        bytes[byte] = bytes[byte] & !(1 << place) | ((sum >> bit & 1) as u8) << place;
    }
}

/// Makes a server tell the device another entry of `element` than the protocol's: the one that is `by` further on.
pub fn tell_another(program: &Program, message: &mut [u8], element: u32, by: u32, stock: &[u8]) {
    let last = gates(program).pop().unwrap();
    let Response::Tell { opening, .. } = last.response else { panic!("not told") };
    let (bits, all) = (last.out.bits, opening.index_bits + last.out.bits);
    let honest = bits_at(message, u64::from(element) * u64::from(all), all);
    let index = low_bits(tell::device_index(opening, honest).wrapping_add(by), opening.index_bits);
    let place = table::entry(element, last.response.entries(), index);
    let entry = bits_at(stock, last.entries_at * 8 + place * u64::from(bits), bits);
    let other = tell::server_message(opening, index, entry);
    add(message, 0, all, u64::from(element), other.wrapping_sub(honest));
}

/// Every gate of a program.
pub fn gates(program: &Program) -> Vec<Gate> {
    (0..).map_while(|id| program.gate(id).unwrap()).collect()
}

/// Every message of a program with its gate's place in [`gates`], those of the device (`true`) or of the server.
pub fn messages(program: &Program, from_device: bool) -> Vec<(usize, Message)> {
    let gates = gates(program).into_iter().enumerate();
    gates
        .flat_map(|(place, gate)| gate.messages().into_iter().map(move |message| (place, message)))
        .filter(|(_, message)| message.kind.from_device() == from_device)
        .collect()
}
