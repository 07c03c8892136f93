//! A device's session against a scripted server: whole conversations, and everything that can go wrong in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use std::collections::BTreeSet;

use lab::peer::{
    Crossed, Fixture, Frame, Memory, Outcome, Peer, Session, Store, Tamper, answering_pool, carry, connect, event,
    margin, pool, request, word_pool,
};
use lab::{Dither, reference};
use secure_router_core::channel::ChannelError;
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::clear;
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::device::{DeviceError, work_words};
use secure_router_core::driver;
use secure_router_core::error::BufferError;
use secure_router_core::routing::{Bias, Routing};
use secure_router_core::session::{
    Control, DeviceMemory, DeviceSession, Event, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, MAX_COUNTER_SKIP,
    PreparedStock, Refusal, Request, SessionError, SlotStock, ToDevice, Welcome,
};
use secure_router_core::spec::{PoolSpec, SpecError};

const NANO: Slot = Slot::Model(0);
const MIDDLE: Slot = Slot::Model(1);
const LARGE: Slot = Slot::Model(2);

/// Gives back the memory of a session that has closed itself, without the wiping of its `drop`.
fn shut(session: Session<'_>) {
    assert!(session.is_closed());
    assert_eq!(session.logits().count(), 0);
    std::mem::forget(session);
}

/// No counter's masks are used twice: a run of a counter is the only one.
fn assert_no_reuse(peer: &Peer) {
    let mut seen = BTreeSet::new();
    for run in peer.runs.iter().filter(|run| !run.up.is_empty()) {
        assert!(seen.insert((run.slot, run.counter)), "{:?} {} ran twice", run.slot, run.counter);
    }
}

/// Ready, with `count` inferences of each of `slots` in stock.
fn stocked(session: &mut Session<'_>, peer: &mut Peer, slots: &[Slot], count: usize) {
    assert_eq!(event(session, peer), Event::Ready);
    for slot in slots.iter().flat_map(|slot| std::iter::repeat_n(*slot, count)) {
        session.prepare(slot).unwrap();
        assert_eq!(event(session, peer), Event::Prepared(slot));
    }
}

fn expected(fixture: &Fixture, slot: Slot, counter: u64, input: &[i16], bias: Bias<'_>) -> Vec<i64> {
    let mut rounding = Dither(fixture.seeds(slot).dealer_keys(counter));
    reference(fixture.secret(slot), input, bias, &mut rounding).unwrap()
}

/// Everything of a conversation that a byte-wise driver must not change.
#[derive(Debug, PartialEq)]
struct Transcript {
    events: Vec<Event>,
    logits: Vec<Vec<i32>>,
    answered_by: Vec<Option<Slot>>,
    runs: Vec<lab::peer::Run>,
    frames_up: Vec<(u8, usize)>,
    frames_down: Vec<(u8, usize)>,
    burned: Vec<(Slot, u64)>,
    crossed: Crossed,
}

/// Prepares everything twice, then answers by every model and by the router, twice.
fn converse(fixture: &'static Fixture, chunk: usize, tile: u16) -> Transcript {
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, tile);
    let (mut events, mut logits, mut answered_by) = (Vec::new(), Vec::new(), Vec::new());
    let mut crossed = Crossed::default();
    let mut next =
        |session: &mut Session<'_>, peer: &mut Peer| match carry(session, peer, chunk, u64::MAX, &mut crossed) {
            Outcome::Event(event) => {
                events.push(event);
                event
            }
            other => panic!("{other:?}"),
        };
    assert_eq!(next(&mut session, &mut peer), Event::Ready);
    let slots: Vec<Slot> = fixture.pool.slots().collect();
    for slot in slots.iter().flat_map(|slot| [*slot; 4]) {
        session.prepare(slot).unwrap();
        assert_eq!(next(&mut session, &mut peer), Event::Prepared(slot));
    }
    let (mut used, mut answered) = ([0u64; 9], 0);
    let mut take = |slot: Slot| {
        let next = &mut used[usize::from(slot.code())];
        *next += 1;
        *next - 1
    };
    for round in 0..2i16 {
        for slot in &slots {
            let input = fixture.input(round + 3 * i16::from(slot.code()));
            let ask = Request { lambda: [0, 300][round as usize], ..request(*slot) };
            session.infer(ask, &input).unwrap();
            let (mut last, mut own) = (*slot, Vec::new());
            let mut counter = take(*slot);
            if *slot == Slot::Router {
                let scores = router_scores(&fixture.pool, ask.lambda, 0b111, &ask.link).unwrap();
                let told =
                    expected(fixture, *slot, counter, &input, Bias { scores: &scores, margin: margin(ask.lambda) });
                own = told[fixture.pool.models.len()..].to_vec();
                let best = Slot::Model(clear::chosen(&fixture.secret(*slot).program, &told));
                last = best;
                if fixture.pool.router_answers(best) {
                    answered += 1;
                } else {
                    assert_eq!(next(&mut session, &mut peer), Event::Routed(best));
                    counter = take(best);
                    own.clear();
                }
            }
            assert_eq!(next(&mut session, &mut peer), Event::Answer);
            let answer: Vec<i32> = session.logits().collect();
            let wanted = if own.is_empty() { expected(fixture, last, counter, &input, Bias::NONE) } else { own };
            assert_eq!(answer.iter().map(|logit| i64::from(*logit)).collect::<Vec<_>>(), wanted, "{last:?}");
            let best = wanted.iter().max().unwrap();
            assert_eq!(session.class(), wanted.iter().position(|logit| logit == best));
            logits.push(answer);
            assert_eq!(session.answered_by(), Some(last));
            answered_by.push(session.answered_by());
        }
    }
    assert_no_reuse(&peer);
    assert_eq!(answered > 0, fixture.pool.router.unwrap().answers > 0, "the router's own answer was given");
    let burned = store.0.borrow().burned.clone();
    Transcript {
        events,
        logits,
        answered_by,
        runs: peer.runs,
        frames_up: peer.frames_up,
        frames_down: peer.frames_down,
        burned,
        crossed,
    }
}

#[test]
fn conversations_end_in_the_references_answers_and_bytewise_driving_changes_nothing() {
    let converse = |chunk, tile| converse(Fixture::shared(), chunk, tile);
    let whole = converse(usize::MAX, 4);
    assert_eq!(whole.logits.len(), 8);
    // Messages of several frames are among them, and a frame that two incoming frames fill.
    assert!(whole.frames_up.iter().filter(|frame| frame.1 == FRAME_PAYLOAD).count() > 8);
    assert!(whole.frames_down.iter().filter(|frame| frame.1 == FRAME_PAYLOAD).count() > 4);
    assert_eq!(whole, converse(1, 4));
    assert_eq!(whole, converse(7, 1));
    assert_eq!(whole, converse(1021, 64));
}

#[test]
fn a_router_answers_for_the_first_model_and_for_no_other() {
    let whole = converse(Fixture::answering(), usize::MAX, 4);
    // The router is the first of four programs, and is asked twice: once it answers, and once it does not.
    assert_eq!(whole.events.iter().filter(|event| matches!(event, Event::Routed(_))).count(), 1);
    assert_ne!(whole.answered_by[0], whole.answered_by[4]);
    assert_eq!(whole, converse(Fixture::answering(), 1, 4));
}

#[test]
fn the_cost_model_is_right_to_the_byte() {
    [Fixture::shared(), Fixture::answering()].into_iter().for_each(the_cost_model_is_right_for);
    for routing in [Routing::Private { epsilon: 1000 }, Routing::Device] {
        [pool(), answering_pool()].into_iter().for_each(|pool| {
            the_cost_model_is_right_for(Fixture::new(PoolSpec { routing, ..pool }));
        });
    }
}

fn the_cost_model_is_right_for(fixture: &'static Fixture) {
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    let cost = |slot| Cost::of(&fixture.pool, slot, 4).unwrap();
    let routed = |slot: Slot| Cost::routed(&fixture.pool, slot.code() - 1, 4).unwrap();
    let measure = |session: &mut Session<'_>, peer: &mut Peer| {
        let mut crossed = Crossed::default();
        let mut half_trips = 0;
        loop {
            let outcome = carry(session, peer, usize::MAX, u64::MAX, &mut crossed);
            let Outcome::Event(event) = outcome else { panic!("{outcome:?}") };
            if !matches!(event, Event::Routed(_)) {
                let directions = std::mem::take(&mut peer.directions);
                half_trips += 1 + directions.windows(2).filter(|pair| pair[0] != pair[1]).count() as u32;
                return (crossed.up, crossed.down, half_trips);
            }
        }
    };
    let traffic = |t: secure_router_core::cost::Traffic| (t.up, t.down, t.half_trips);
    peer.directions.clear();
    for slot in fixture.pool.slots() {
        for _ in 0..17 {
            session.prepare(slot).unwrap();
            assert_eq!(measure(&mut session, &mut peer), traffic(cost(slot).offline), "{slot:?} offline");
        }
    }
    let mut chosen = BTreeSet::new();
    for round in 0..16 {
        for slot in fixture.pool.slots() {
            let mut ask = request(slot);
            ask.lambda = [0, 256, 300][round % 3];
            session.infer(ask, &fixture.input(round as i16)).unwrap();
            let measured = measure(&mut session, &mut peer);
            let model = match slot {
                // The device alone knows, and nothing follows.
                Slot::Router if fixture.pool.routing == Routing::Device => cost(slot),
                Slot::Router => {
                    chosen.insert(session.answered_by().unwrap());
                    routed(session.answered_by().unwrap())
                }
                Slot::Model(_) => cost(slot),
            };
            assert_eq!(measured, traffic(model.online), "{slot:?} online");
            let ran =
                session.answered_by().filter(|model| slot == Slot::Router && !fixture.pool.router_answers(*model));
            if let Some(model) = ran {
                session.prepare(model).unwrap();
                measure(&mut session, &mut peer);
            }
        }
    }
    assert!(chosen.len() > 1 || fixture.pool.routing == Routing::Device, "{chosen:?}");
    assert_eq!(routed(LARGE).offline.up, cost(Slot::Router).offline.up + cost(LARGE).offline.up);
}

/// Prepares and runs the router and what it picks; then waits for what may still come.
fn scenario(
    session: &mut Session<'_>,
    peer: &mut Peer,
    slots: &[Slot],
    limit: u64,
    crossed: &mut Crossed,
) -> (Outcome, Option<Vec<i64>>) {
    let mut answer = None;
    let fixture = Fixture::shared();
    let input = fixture.input(1);
    let mut todo = slots.to_vec();
    todo.reverse();
    loop {
        match carry(session, peer, usize::MAX, limit, crossed) {
            Outcome::Event(Event::Ready | Event::Prepared(_)) => {}
            Outcome::Event(Event::Routed(_)) => continue,
            Outcome::Event(Event::Answer) => answer = Some(session.logits().map(i64::from).collect()),
            Outcome::Event(other) => panic!("{other:?}"),
            outcome => return (outcome, answer),
        }
        if let Some(slot) = todo.pop() {
            session.prepare(slot).unwrap();
        } else if answer.is_none() {
            session.infer(request(slots[0]), &input).unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Cut,
    Longer,
    Repeated,
    Swapped,
    OtherKind,
    UnknownKind,
    Empty,
    StrayControl,
    StrayData,
    Dropped,
}

const FAULTS: [Fault; 10] = [
    Fault::Cut,
    Fault::Longer,
    Fault::Repeated,
    Fault::Swapped,
    Fault::OtherKind,
    Fault::UnknownKind,
    Fault::Empty,
    Fault::StrayControl,
    Fault::StrayData,
    Fault::Dropped,
];

fn tamper(fault: Fault, at: usize) -> Tamper {
    let mut held: Option<Frame> = None;
    Box::new(move |number, (kind, payload)| {
        if let Some(held) = held.take() {
            return vec![(kind, payload), held];
        }
        if number != at {
            return vec![(kind, payload)];
        }
        let frame = (kind, payload.clone());
        let other = FRAME_CONTROL + FRAME_DATA - kind;
        match fault {
            Fault::Cut => vec![(kind, payload[..payload.len() - 1].to_vec())],
            Fault::Longer => vec![(
                kind,
                if payload.len() < FRAME_PAYLOAD { [&payload[..], &[0]].concat() } else { payload[1..].to_vec() },
            )],
            Fault::Repeated => vec![frame.clone(), frame],
            Fault::Swapped => {
                held = Some(frame);
                Vec::new()
            }
            Fault::OtherKind => vec![(other, payload)],
            Fault::UnknownKind => vec![(3, payload)],
            Fault::Empty => vec![(kind, Vec::new())],
            Fault::StrayControl => {
                let mut bytes = vec![0; FRAME_PAYLOAD];
                let stock = SlotStock { slot: NANO, first: 9, fresh: 10, ready: 1 };
                let len = ToDevice::Prepared(PreparedStock { stock }).to_bytes(&mut bytes).unwrap();
                vec![(FRAME_CONTROL, bytes[..len].to_vec()), frame]
            }
            Fault::StrayData => vec![(FRAME_DATA, vec![0; 64]), frame],
            Fault::Dropped => Vec::new(),
        }
    })
}

#[test]
fn every_wrong_frame_at_every_place_ends_the_session() {
    let fixture = Fixture::shared();
    for slots in [&[Slot::Router, NANO, Slot::Model(1), LARGE][..], &[LARGE]] {
        let frames = {
            let (mut memory, store) = (Memory::default(), Store::default());
            let mut peer = Peer::new(fixture);
            let mut session = connect(fixture, &mut memory, &store, 4);
            let clean = scenario(&mut session, &mut peer, slots, u64::MAX, &mut Crossed::default());
            assert!(matches!(clean, (Outcome::Stalled, Some(_))), "{clean:?}");
            peer.frames_down
        };
        for (at, fault) in (0..frames.len()).flat_map(|at| FAULTS.map(|fault| (at, fault))) {
            let (mut memory, store) = (Memory::default(), Store::default());
            let mut peer = Peer::new(fixture);
            peer.tamper = Some(tamper(fault, at));
            let mut session = connect(fixture, &mut memory, &store, 4);
            let (outcome, answer) = scenario(&mut session, &mut peer, slots, u64::MAX, &mut Crossed::default());
            let last = at + 1 == frames.len();
            // A frame that never comes is waited for; so is the one that a swap at the end holds.
            let waits = fault == Fault::Dropped && peer.frames_down.len() < frames.len()
                || fault == Fault::Swapped && matches!(outcome, Outcome::Stalled);
            match outcome {
                Outcome::Failed(
                    SessionError::Frame
                    | SessionError::Control
                    | SessionError::Spec(_)
                    | SessionError::Device(DeviceError::Message),
                ) => {
                    shut(session);
                    assert!(memory.is_wiped(), "{fault:?} at {at}");
                }
                Outcome::Stalled if waits => drop(session),
                outcome => panic!("{fault:?} at {at} of {:?}: {outcome:?}", frames[at]),
            }
            // An answer comes before the fault or not at all.
            assert!(answer.is_none() || last && fault == Fault::Repeated, "{fault:?} at {at}");
            // Nothing that was spent comes back in the next session.
            let mut peer = peer.again();
            let mut memory = Memory::default();
            let mut session = connect(fixture, &mut memory, &store, 4);
            let (outcome, answer) = scenario(&mut session, &mut peer, slots, u64::MAX, &mut Crossed::default());
            assert!(matches!(outcome, Outcome::Stalled) && answer.is_some(), "{fault:?} at {at}: {outcome:?}");
            assert_no_reuse(&peer);
        }
    }
}

#[test]
fn a_cut_at_every_byte_spends_what_was_started() {
    let fixture = Fixture::shared();
    let slots = [Slot::Router, NANO, Slot::Model(1), LARGE];
    let total = {
        let (mut memory, store) = (Memory::default(), Store::default());
        let mut crossed = Crossed::default();
        let mut session = connect(fixture, &mut memory, &store, 16);
        let (outcome, _) = scenario(&mut session, &mut Peer::new(fixture), &slots, u64::MAX, &mut crossed);
        assert_eq!(outcome, Outcome::Stalled);
        crossed.up + crossed.down
    };
    // Every byte of the handshake and the greeting, then a step that meets every place within a frame.
    let cuts = (1..1200).chain((1200..total).step_by(61));
    for limit in cuts {
        let (mut memory, store) = (Memory::default(), Store::default());
        let mut peer = Peer::new(fixture);
        let mut session = connect(fixture, &mut memory, &store, 16);
        let (outcome, answer) = scenario(&mut session, &mut peer, &slots, limit, &mut Crossed::default());
        assert!(
            matches!(outcome, Outcome::Cut(SessionError::Closed | SessionError::Channel(ChannelError::Truncated))),
            "{limit}: {outcome:?}"
        );
        assert!(answer.is_none());
        shut(session);
        assert!(memory.is_wiped(), "{limit}");
        // Whoever saw online bytes saw them of a burned counter.
        for run in peer.runs.iter().filter(|run| !run.up.is_empty()) {
            assert!(store.0.borrow().burned.contains(&(run.slot, run.counter)), "{limit}");
        }
        if limit % 7 == 0 {
            let mut peer = peer.again();
            let mut session = connect(fixture, &mut memory, &store, 16);
            let (outcome, answer) = scenario(&mut session, &mut peer, &slots, u64::MAX, &mut Crossed::default());
            assert!(matches!(outcome, Outcome::Stalled) && answer.is_some(), "{limit}: {outcome:?}");
            assert_no_reuse(&peer);
        }
    }
}

#[test]
fn a_counter_is_burned_before_the_first_byte_and_stays_burned_after_a_power_cut() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    stocked(&mut session, &mut peer, &[NANO], 2);
    assert!(store.0.borrow().burned.is_empty());
    session.infer(request(NANO), &fixture.input(0)).unwrap();
    assert_eq!(store.0.borrow().burned, [(NANO, 0)]);
    drop(session);
    assert!(memory.is_wiped());

    // A server that was rolled back offers the spent counter again.
    let mut peer = peer.again();
    let mut session = connect(fixture, &mut memory, &store, 4);
    peer.offer = Some(Box::new(|stock| {
        if stock.slot == NANO {
            (stock.first, stock.ready) = (0, 2)
        }
    }));
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    let reused = SessionError::CounterReused { slot: NANO, offered: 0, lowest: 1 };
    assert_eq!(session.infer(request(NANO), &fixture.input(0)), Err(reused));
    assert!(!session.is_closed() && session.io().1.is_empty());
    assert_eq!(store.0.borrow().burned, [(NANO, 0)]);
}

#[test]
fn a_preparation_that_is_repeated_sends_the_same_bytes() {
    // Corrections go out before their counter is burned: they must say the same each time.
    let fixture = Fixture::shared();
    let store = Store::default();
    let prepared = |tile| {
        let (mut memory, mut peer) = (Memory::default(), Peer::new(fixture));
        let mut session = connect(fixture, &mut memory, &store, tile);
        stocked(&mut session, &mut peer, &[Slot::Router, LARGE], 1);
        peer.corrections
    };
    let first = prepared(1);
    assert_eq!(first.keys().copied().collect::<Vec<_>>(), [(0, 0), (LARGE.code(), 0)]);
    assert_eq!(first, prepared(1));
    assert_eq!(first, prepared(16));
    assert!(store.0.borrow().burned.is_empty());
}

#[test]
fn a_counter_store_that_fails_starts_nothing() {
    let fixture = Fixture::shared();
    let failed = |outcome| {
        assert_eq!(outcome, Outcome::Failed(SessionError::Counters(secure_router_core::session::CounterError)))
    };
    let run = |session: &mut Session<'_>, peer: &mut Peer| {
        carry(session, peer, usize::MAX, u64::MAX, &mut Crossed::default())
    };

    // At the greeting.
    let (mut memory, store) = (Memory::default(), Store::default());
    store.0.borrow_mut().fail_next = true;
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    failed(run(&mut session, &mut peer));
    shut(session);
    assert!(memory.is_wiped());

    // At a request: nothing goes out, and the input is not kept.
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    stocked(&mut session, &mut peer, &[Slot::Router, NANO, Slot::Model(1), LARGE], 2);
    for (fail_next, fail_burn) in [(true, false), (false, true)] {
        (store.0.borrow_mut().fail_next, store.0.borrow_mut().fail_burn) = (fail_next, fail_burn);
        let refused = session.infer(request(NANO), &fixture.input(5));
        assert!(matches!(refused, Err(SessionError::Counters(_))));
        assert!(!session.is_closed() && session.io().1.is_empty());
    }
    store.0.borrow_mut().fail_next = true;
    assert!(matches!(session.prepare(NANO), Err(SessionError::Counters(_))));
    std::mem::forget(session);
    assert!(memory.input.iter().all(|value| *value == 0));

    // At the route.
    store.0.borrow_mut().fail_next = false;
    store.0.borrow_mut().fail_burn = false;
    let mut peer = peer.again();
    let mut session = connect(fixture, &mut memory, &store, 4);
    stocked(&mut session, &mut peer, &[], 0);
    session.infer(request(Slot::Router), &fixture.input(5)).unwrap();
    store.0.borrow_mut().fail_burn = true;
    failed(run(&mut session, &mut peer));
    shut(session);
    assert!(memory.is_wiped());
    assert!(peer.runs.iter().filter(|run| run.slot != Slot::Router).all(|run| run.up.is_empty()));
}

#[test]
fn offered_counters_that_are_spent_or_far_ahead_are_refused() {
    let fixture = Fixture::shared();
    let ahead = |offered| SessionError::CounterAhead { slot: NANO, offered, lowest: 3 };
    for (offered, wanted) in [
        (u64::MAX, Some(ahead(u64::MAX))),
        (u64::MAX - 1, Some(ahead(u64::MAX - 1))),
        (3 + MAX_COUNTER_SKIP + 1, Some(ahead(3 + MAX_COUNTER_SKIP + 1))),
        (3 + MAX_COUNTER_SKIP, None),
        (3, None),
        (2, Some(SessionError::CounterReused { slot: NANO, offered: 2, lowest: 3 })),
        (0, Some(SessionError::CounterReused { slot: NANO, offered: 0, lowest: 3 })),
    ] {
        let (mut memory, store) = (Memory::default(), Store::default());
        store.0.borrow_mut().next.insert(NANO.code(), 3);
        let mut peer = Peer::new(fixture);
        peer.offer =
            Some(Box::new(move |stock| (stock.first, stock.fresh, stock.ready) = (offered, offered, u32::MAX)));
        let mut session = connect(fixture, &mut memory, &store, 4);
        assert_eq!(event(&mut session, &mut peer), Event::Ready);
        assert_eq!(session.infer(request(NANO), &fixture.input(0)).err(), wanted, "infer {offered}");
        if wanted.is_some() {
            assert!(store.0.borrow().burned.is_empty() && session.io().1.is_empty());
            assert_eq!(session.prepare(NANO).err(), wanted, "prepare {offered}");
            assert!(!session.is_closed());
        }
    }

    // The same where the router has chosen and the request is under way already.
    for (counter, wanted) in [
        (u64::MAX, Some(SessionError::CounterAhead { slot: MIDDLE, offered: u64::MAX, lowest: 3 })),
        (2, Some(SessionError::CounterReused { slot: MIDDLE, offered: 2, lowest: 3 })),
        (5, None),
    ] {
        let (mut memory, store) = (Memory::default(), Store::default());
        store.0.borrow_mut().next.insert(MIDDLE.code(), 3);
        let mut peer = Peer::new(fixture);
        let mut session = connect(fixture, &mut memory, &store, 4);
        peer.offer = Some(Box::new(move |stock| {
            if stock.slot == MIDDLE {
                *stock = SlotStock { slot: MIDDLE, first: counter, fresh: counter.saturating_add(1), ready: 1 };
            }
        }));
        stocked(&mut session, &mut peer, &[Slot::Router], 1);
        let bytes = fixture.secret(MIDDLE).program.layout().unwrap().correction_bytes() as usize;
        peer.forged.insert((MIDDLE.code(), counter), vec![0; bytes]);
        session.infer(Request { lambda: 300, ..request(Slot::Router) }, &fixture.input(0)).unwrap();
        let outcome = carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default());
        match wanted {
            Some(error) => {
                assert_eq!(outcome, Outcome::Failed(error));
                shut(session);
                assert!(memory.is_wiped());
                assert!(peer.runs.iter().all(|run| run.slot == Slot::Router || run.up.is_empty()));
            }
            None => {
                assert_eq!(outcome, Outcome::Event(Event::Routed(MIDDLE)));
                assert_eq!(store.0.borrow().burned, [(Slot::Router, 0), (MIDDLE, 5)]);
            }
        }
    }
}

#[test]
fn a_stock_report_of_another_preparation_is_refused() {
    let fixture = Fixture::shared();
    for change in 0..3 {
        let (mut memory, store) = (Memory::default(), Store::default());
        let mut peer = Peer::new(fixture);
        let mut session = connect(fixture, &mut memory, &store, 4);
        assert_eq!(event(&mut session, &mut peer), Event::Ready);
        peer.offer = Some(Box::new(move |stock| match change {
            0 => stock.slot = LARGE,
            1 => stock.fresh += 1,
            _ => stock.fresh = 0,
        }));
        session.prepare(NANO).unwrap();
        let outcome = carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default());
        assert_eq!(outcome, Outcome::Failed(SessionError::Control));
        shut(session);
        assert!(memory.is_wiped());
    }
}

#[test]
fn a_refusal_at_the_servers_turn_ends_the_request_and_spends_the_counter() {
    let fixture = Fixture::shared();
    let slots = [Slot::Router, NANO, Slot::Model(1), LARGE];
    // How many messages of the device the server takes in before it refuses.
    for (slot, turns) in [(LARGE, 14), (Slot::Router, 5), (NANO, 2)] {
        for turn in 0..turns {
            let (mut memory, store) = (Memory::default(), Store::default());
            let mut peer = Peer::new(fixture);
            let mut session = connect(fixture, &mut memory, &store, 4);
            stocked(&mut session, &mut peer, &slots, 2);
            // Dear enough that the router leaves the stock of the large model alone.
            session.infer(Request { lambda: 300, ..request(slot) }, &fixture.input(2)).unwrap();
            let mut seen = 0;
            let sealed = peer.frames_down.len();
            // Replace the frame that follows by a refusal, and the rest of its message by nothing.
            let mut bytes = vec![0; FRAME_PAYLOAD];
            let len = ToDevice::Refused(Refusal::Dealer).to_bytes(&mut bytes).unwrap();
            let refusal = (FRAME_CONTROL, bytes[..len].to_vec());
            peer.tamper = Some(Box::new(move |_, frame| {
                seen += 1;
                match (seen - 1usize).cmp(&turn) {
                    std::cmp::Ordering::Less => vec![frame],
                    std::cmp::Ordering::Equal => vec![refusal.clone()],
                    std::cmp::Ordering::Greater => Vec::new(),
                }
            }));
            let outcome = carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default());
            let outcome = match outcome {
                Outcome::Event(Event::Routed(_)) => {
                    carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default())
                }
                outcome => outcome,
            };
            assert_eq!(outcome, Outcome::Event(Event::Refused(Refusal::Dealer)), "{slot:?} {turn} {sealed}");
            assert!(store.0.borrow().burned.contains(&(slot, 0)));
            assert_eq!(session.ready(slot), 1);
            assert_eq!(session.logits().filter(|logit| *logit != 0).count(), 0);

            // The session goes on, with the next counter.
            peer.tamper = None;
            let input = fixture.input(3);
            session.infer(request(LARGE), &input).unwrap();
            let counter = store.0.borrow().burned.last().unwrap().1;
            assert_eq!(event(&mut session, &mut peer), Event::Answer);
            let wanted = expected(fixture, LARGE, counter, &input, Bias::NONE);
            assert_eq!(session.logits().map(i64::from).collect::<Vec<_>>(), wanted, "{slot:?} {turn}");
            assert_no_reuse(&peer);
        }
    }
}

#[test]
fn a_refusal_out_of_turn_ends_the_session() {
    let fixture = Fixture::shared();
    let refusal = ToDevice::Refused(Refusal::Store);
    for greeted in [false, true] {
        let (mut memory, store) = (Memory::default(), Store::default());
        let mut peer = Peer::new(fixture);
        if !greeted {
            peer.tamper = Some(Box::new(|_, _| {
                let mut bytes = vec![0; FRAME_PAYLOAD];
                let len = ToDevice::Refused(Refusal::Store).to_bytes(&mut bytes).unwrap();
                vec![(FRAME_CONTROL, bytes[..len].to_vec())]
            }));
        }
        let mut session = connect(fixture, &mut memory, &store, 4);
        if greeted {
            assert_eq!(event(&mut session, &mut peer), Event::Ready);
            peer.say(&refusal);
        }
        let outcome = carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default());
        assert_eq!(outcome, Outcome::Failed(SessionError::Control));
        shut(session);
        assert!(memory.is_wiped());
    }
}

#[test]
fn a_refused_request_leaves_nothing_in_the_buffers() {
    let fixture = Fixture::shared();
    for slot in [LARGE, Slot::Router] {
        let (mut memory, store) = (Memory::default(), Store::default());
        let mut peer = Peer::new(fixture);
        let mut session = connect(fixture, &mut memory, &store, 4);
        stocked(&mut session, &mut peer, &[slot], 1);
        peer.refuse = Some(Refusal::Store);
        session.infer(request(slot), &fixture.input(6)).unwrap();
        assert_eq!(event(&mut session, &mut peer), Event::Refused(Refusal::Store));
        assert!(!session.is_closed());
        std::mem::forget(session);
        assert!(memory.input.iter().all(|value| *value == 0));
        assert!(memory.work.iter().all(|word| *word == 0));
    }
}

#[test]
fn a_refused_preparation_leaves_a_session_that_works() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    peer.refuse = Some(Refusal::Dealer);
    session.prepare(NANO).unwrap();
    assert_eq!(event(&mut session, &mut peer), Event::Refused(Refusal::Dealer));
    assert_eq!(session.ready(NANO), 0);
    session.prepare(NANO).unwrap();
    assert_eq!(event(&mut session, &mut peer), Event::Prepared(NANO));
}

#[test]
fn wrong_requests_are_refused_before_anything_is_sent() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    let input = fixture.input(0);
    assert_eq!(session.infer(request(NANO), &input), Err(SessionError::Busy));
    assert_eq!(session.prepare(NANO), Err(SessionError::Busy));
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    assert_eq!(session.infer(request(NANO), &input), Err(SessionError::StockEmpty(NANO)));
    assert_eq!(session.infer(request(Slot::Router), &input), Err(SessionError::StockEmpty(Slot::Router)));
    assert_eq!(session.infer(request(Slot::Model(3)), &input), Err(SessionError::NoSuchSlot));
    assert_eq!(session.prepare(Slot::Model(255)), Err(SessionError::NoSuchSlot));
    session.prepare(NANO).unwrap();
    assert_eq!(session.prepare(NANO), Err(SessionError::Busy));
    assert_eq!(session.infer(request(NANO), &input), Err(SessionError::Busy));
    assert_eq!(event(&mut session, &mut peer), Event::Prepared(NANO));
    for wrong in [0, 47, 49] {
        let found = SessionError::InputLength { expected: 48, found: wrong };
        assert_eq!(session.infer(request(NANO), &vec![0; wrong]), Err(found));
    }
    for (index, value) in [(0, 128), (47, -129), (20, i16::MAX), (20, i16::MIN)] {
        let mut input = input.clone();
        input[index] = value;
        assert_eq!(session.infer(request(NANO), &input), Err(SessionError::InputRange { index, bits: 8 }));
    }
    let of_words = Fixture::new(word_pool());
    let (mut other_memory, other_store, mut other_peer) = (Memory::default(), Store::default(), Peer::new(of_words));
    let mut words = connect(of_words, &mut other_memory, &other_store, 4);
    assert_eq!(event(&mut words, &mut other_peer), Event::Ready);
    for value in [-1, 16] {
        let mut input = of_words.input(0);
        input[3] = value;
        assert_eq!(words.infer(request(NANO), &input), Err(SessionError::InputRange { index: 3, bits: 5 }));
    }
    assert_eq!(words.infer(request(NANO), &[15; 16]), Err(SessionError::StockEmpty(NANO)));
    assert!(session.io().1.is_empty() && store.0.borrow().burned.is_empty());
    let mut edges = input.clone();
    (edges[0], edges[47]) = (127, -128);
    session.infer(request(NANO), &edges).unwrap();
    assert_eq!(session.infer(request(NANO), &edges), Err(SessionError::Busy));
    assert_eq!(event(&mut session, &mut peer), Event::Answer);
    session.close();
    assert_eq!(session.infer(request(NANO), &edges), Err(SessionError::Closed));
    assert_eq!(session.prepare(NANO), Err(SessionError::Closed));
    assert!(session.io().0.is_empty() && session.io().1.is_empty());
    assert!(matches!(session.received(0), Err(SessionError::Channel(ChannelError::Closed))));
}

fn welcome(pool: &PoolSpec) -> Welcome {
    let mut bytes = [0; 512];
    Welcome { pool: pool.to_bytes(&mut bytes).unwrap().iter().copied().collect(), stock: Default::default() }
}

#[test]
fn a_pool_that_is_not_valid_is_refused() {
    let fixture = Fixture::shared();
    let good = welcome(&fixture.pool);
    let mut version = good.clone();
    version.pool[0] = 9;
    let mut cut = good.clone();
    cut.pool.pop();
    let mut long = good.clone();
    long.pool.push(0).unwrap();
    let mut stray = good.clone();
    let stock = secure_router_core::session::SlotStock { slot: Slot::Model(3), first: 0, fresh: 0, ready: 0 };
    stray.stock.push(stock).unwrap();
    let mut zero = fixture.pool.clone();
    zero.classes = 0;
    for (welcome, wanted) in [
        (version, SessionError::Spec(SpecError::Version { found: 9 })),
        (cut, SessionError::Spec(SpecError::Malformed)),
        (long, SessionError::Spec(SpecError::Malformed)),
        (stray, SessionError::Control),
        (self::welcome(&zero), SessionError::Spec(SpecError::Size("classes"))),
    ] {
        let (mut memory, store) = (Memory::default(), Store::default());
        let mut peer = Peer::new(fixture);
        peer.welcome = Some(welcome);
        let mut session = connect(fixture, &mut memory, &store, 4);
        let outcome = carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default());
        assert_eq!(outcome, Outcome::Failed(wanted));
        shut(session);
        assert!(memory.is_wiped());
    }
}

#[test]
fn a_pool_that_changed_is_another_pool() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    stocked(&mut session, &mut peer, &[NANO], 1);
    drop(session);
    let mut changed = fixture.pool.clone();
    changed.edition = [8; 16];
    // The new pool's server has nothing in stock for it, and says so.
    let mut peer = peer.again();
    let mut new = welcome(&changed);
    let stock = secure_router_core::session::SlotStock { slot: NANO, first: 1, fresh: 1, ready: 0 };
    new.stock.push(stock).unwrap();
    peer.welcome = Some(new);
    let mut session = connect(fixture, &mut memory, &store, 4);
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    assert_eq!(session.pool().unwrap().edition, [8; 16]);
    assert_eq!(session.infer(request(NANO), &fixture.input(0)), Err(SessionError::StockEmpty(NANO)));
    assert_eq!(session.infer(request(LARGE), &fixture.input(0)), Err(SessionError::NoSuchSlot));
    assert_ne!(changed.fingerprint(), fixture.pool.fingerprint());
}

#[test]
fn a_buffer_that_is_too_small_is_named_with_what_it_needs() {
    let fixture = Fixture::shared();
    let frame = DeviceMemory::FRAME_BYTES;
    for (rx, tx, buffer) in [(frame - 1, frame, "receive buffer"), (frame, 0, "send buffer")] {
        let mut memory = Memory { rx: vec![0; rx], tx: vec![0; tx], ..Memory::default() };
        let mut rng = lab::chance::Chance(1);
        let opened = DeviceSession::connect(fixture.identity(), memory.lend(), 1, Store::default(), &mut rng);
        let wanted = BufferError { buffer, needed: frame, have: rx.min(tx) };
        assert_eq!(opened.err(), Some(SessionError::Buffer(wanted)));
    }

    let needed = |slot, tile| work_words(&Program::of(&fixture.pool, slot).unwrap(), tile).unwrap();
    for tile in [0, 1, 4, 16] {
        let least = needed(LARGE, tile.max(1));
        let (mut memory, store) = (Memory { work: vec![0; least - 1], ..Memory::default() }, Store::default());
        let mut peer = Peer::new(fixture);
        let mut session = connect(fixture, &mut memory, &store, tile);
        stocked(&mut session, &mut peer, &[Slot::Router, NANO, Slot::Model(1)], 1);
        let wanted = BufferError { buffer: "device workspace", needed: least, have: least - 1 };
        assert_eq!(session.fits(LARGE), Err(SessionError::Buffer(wanted)));
        assert_eq!(session.infer(request(LARGE), &fixture.input(0)), Err(SessionError::Buffer(wanted)));
        assert!(
            matches!(session.prepare(LARGE), Err(SessionError::Buffer(error) | SessionError::Device(DeviceError::Buffer(error))) if error == wanted)
        );
        // The router is told, and whatever it says, the model that does not fit is not asked for.
        for told in 0..64u8 {
            for slot in [Slot::Router, NANO, Slot::Model(1)] {
                session.prepare(slot).unwrap();
                assert_eq!(event(&mut session, &mut peer), Event::Prepared(slot));
            }
            // Indices of the trunk's table and of the signs; then the choice.
            let mut left = 3;
            peer.tamper = Some(Box::new(move |_, (kind, mut payload)| {
                left -= usize::from(left > 0 && kind == FRAME_DATA);
                if left == 0 && kind == FRAME_DATA {
                    payload[0] = told.wrapping_mul(37);
                    left = usize::MAX;
                }
                vec![(kind, payload)]
            }));
            session.infer(request(Slot::Router), &fixture.input(0)).unwrap();
            let routed = event(&mut session, &mut peer);
            assert!(matches!(routed, Event::Routed(NANO | Slot::Model(1))), "{routed:?}");
            peer.tamper = None;
            assert_eq!(event(&mut session, &mut peer), Event::Answer);
        }
        assert_eq!(peer.infers[0].allowed, 0b011);
    }

    let (mut memory, store) = (Memory { input: vec![0; 47], ..Memory::default() }, Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 1);
    stocked(&mut session, &mut peer, &[Slot::Router, NANO], 1);
    let wanted = SessionError::Buffer(BufferError { buffer: "input buffer", needed: 48, have: 47 });
    assert_eq!(session.infer(request(NANO), &fixture.input(0)), Err(wanted));
    // No model fits: the router's stock is not spent for nothing.
    assert_eq!(session.infer(request(Slot::Router), &fixture.input(0)), Err(wanted));
    assert!(store.0.borrow().burned.is_empty());
}

#[test]
fn an_answer_leaves_nothing_but_the_logits() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    stocked(&mut session, &mut peer, &[LARGE], 1);
    session.infer(request(LARGE), &fixture.input(0)).unwrap();
    assert_eq!(event(&mut session, &mut peer), Event::Answer);
    let logits: Vec<i32> = session.logits().collect();
    assert_eq!(logits.len(), 5);
    // No masks pass for logits while the next request is under way.
    session.prepare(LARGE).unwrap();
    assert_eq!(session.logits().count(), 0);
    assert_eq!(event(&mut session, &mut peer), Event::Prepared(LARGE));
    session.infer(request(LARGE), &fixture.input(0)).unwrap();
    assert_eq!(event(&mut session, &mut peer), Event::Answer);
    std::mem::forget(session);
    assert!(memory.work[5..].iter().all(|word| *word == 0));
    assert!(memory.input.iter().all(|value| *value == 0));
}

#[test]
fn padding_that_is_not_zero_is_refused() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    stocked(&mut session, &mut peer, &[NANO], 1);
    // 24 indices of 9 bits fill 27 bytes: no padding. The router's differences, 3 of 11 bits, leave 7 bits.
    stocked_router(&mut session, &mut peer);
    peer.tamper = Some(Box::new(|_, (kind, mut payload)| {
        if payload.len() == 5 {
            payload[4] |= 0x80;
        }
        vec![(kind, payload)]
    }));
    session.infer(request(Slot::Router), &fixture.input(0)).unwrap();
    let outcome = carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default());
    assert_eq!(outcome, Outcome::Failed(SessionError::Device(DeviceError::Message)));
    shut(session);
    assert!(memory.is_wiped());
}

fn stocked_router(session: &mut Session<'_>, peer: &mut Peer) {
    session.prepare(Slot::Router).unwrap();
    assert_eq!(event(session, peer), Event::Prepared(Slot::Router));
}

/// A link whose other end is the peer.
struct Wire {
    peer: Peer,
    dead: bool,
}

impl embedded_io::ErrorType for Wire {
    type Error = std::convert::Infallible;
}

impl embedded_io::Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Self::Error> {
        let pending = self.peer.pending();
        let count = buffer.len().min(pending.len()).min(100);
        buffer[..count].copy_from_slice(&pending[..count]);
        self.peer.sent(count);
        Ok(if self.dead { 0 } else { count })
    }
}

impl embedded_io::Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Self::Error> {
        let count = bytes.len().min(100);
        self.peer.feed(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

#[test]
fn the_blocking_driver_carries_a_session() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut wire = Wire { peer: Peer::new(fixture), dead: false };
    let mut session = connect(fixture, &mut memory, &store, 4);
    assert_eq!(driver::run(&mut wire, &mut session).unwrap(), Event::Ready);
    session.prepare(LARGE).unwrap();
    assert_eq!(driver::run(&mut wire, &mut session).unwrap(), Event::Prepared(LARGE));
    session.infer(request(LARGE), &fixture.input(4)).unwrap();
    assert_eq!(driver::run(&mut wire, &mut session).unwrap(), Event::Answer);
    let wanted = expected(fixture, LARGE, 0, &fixture.input(4), Bias::NONE);
    assert_eq!(session.logits().map(i64::from).collect::<Vec<_>>(), wanted);
    session.prepare(LARGE).unwrap();
    wire.dead = true;
    let ended = driver::run(&mut wire, &mut session);
    assert!(matches!(ended, Err(driver::DriverError::Session(SessionError::Closed | SessionError::Channel(_)))));
    assert!(session.is_closed());
}
