//! The server's half of a run, against messages of the fuzzer's: of any length, in or out of turn, over stock and
//! corrections that are noise. No panic; a wrong length changes nothing.
#![no_main]

use bench::{Bytes, Chance, ROUTINGS, SLOTS, program};
use libfuzzer_sys::fuzz_target;
use secure_router_core::clear::Parameters;
use secure_router_core::keys::{Seed, server_key};
use secure_router_core::rand_core::TryRng;
use secure_router_core::routing::Bias;
use secure_router_core::server::{Server, ServerError, Stock, Turn, work_words};

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let plan = usize::from(bytes.byte());
    let slot = SLOTS[plan % 4];
    let program = program(slot, ROUTINGS[plan / 4 % 3]);
    let layout = program.layout().unwrap();
    let mut noise = Chance(u64::from(bytes.byte()));
    let mut draw = || noise.try_next_u32().unwrap_or_default();
    let weights: Vec<i16> = (0..layout.weights).map(|_| draw() as i16).collect();
    let biases: Vec<i32> = (0..layout.biases).map(|_| draw() as i32).collect();
    let tables: Vec<i16> = (0..layout.tables).map(|_| draw() as i16).collect();
    let correlations: Vec<u8> = (0..layout.stock).map(|_| draw() as u8).collect();
    let corrections = bytes.fill(layout.correction_bytes() as usize);
    let margin = draw() as u16;
    let scores: Vec<i32> = (0..bytes.byte() % 5).map(|_| draw() as i32).collect();
    let mut work = vec![0; work_words(&program).unwrap()];
    let parameters = Parameters { weights: &weights, biases: &biases, tables: &tables };
    let stock = Stock { correlations: &correlations, corrections: &corrections };
    let key = server_key(&Seed::from_bytes([1; 32]), &[2; 32], slot, 0);
    let mut server = Server::new(program, parameters, key, stock, Bias { scores: &scores, margin }, &mut work).unwrap();
    let mut out = vec![0; 1 << 16];
    while !bytes.is_empty() {
        let turn = server.turn();
        match (bytes.byte() % 8, turn) {
            (0, _) => {
                let len = usize::from(bytes.word());
                let message = bytes.take(len);
                let outcome = server.receive(message);
                match turn {
                    Turn::Receive(wanted) if wanted.bytes() != message.len() => {
                        assert!(matches!(outcome, Err(ServerError::Length { .. })));
                        assert_eq!(server.turn(), turn);
                    }
                    Turn::Receive(_) => assert_eq!(outcome, Ok(())),
                    _ => assert_eq!(outcome, Err(ServerError::Turn)),
                }
            }
            (1, _) => {
                let len = usize::from(bytes.word());
                let outcome = server.send(&mut out[..len]);
                if let Turn::Send(message) = turn {
                    assert_eq!(outcome.is_ok(), len >= message.bytes());
                } else {
                    assert_eq!(outcome, Err(ServerError::Turn));
                }
            }
            (_, Turn::Send(message)) => assert_eq!(server.send(&mut out), Ok(message.bytes())),
            (_, Turn::Receive(message)) => {
                let message = bytes.fill(message.bytes());
                server.receive(&message).unwrap();
            }
            (_, Turn::Done) => break,
        }
    }
    drop(server);
    assert!(work.iter().all(|word| *word == 0));
});
