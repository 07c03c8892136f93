//! What routing policies keep: epsilon, measured, and what a classifier makes of all that the server sees.
//!
//! Seeds are fixed, so a run that passes passes always.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;
#[path = "lab/tamper.rs"]
mod tamper;

use std::collections::BTreeMap;

use lab::chance::Chance;
use lab::peer::{Crossed, Fixture, Memory, Outcome, Peer, Store, carry, connect, event, pool, request};
use lab::{Secret, Seeds, deal, random_secret, reference};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::clear::{self, Nearest};
use secure_router_core::cost::router_scores;
use secure_router_core::quota::{Quotas, gather, keep};
use secure_router_core::rand_core::TryRng;
use secure_router_core::routing::{Bias, MAX_EPSILON, Routing};
use secure_router_core::session::{DeviceIdentity, DeviceSession, Event, SessionError};
use secure_router_core::spec::{ModelSpec, Opening, Output, PoolSpec, RouterSpec};
use tamper::{Tamper, View, messages, run, tell_another};

const MODELS: usize = 3;

// ---- epsilon

/// Runs per input; the figures of docs/security.md are of 100,000.
fn runs() -> u64 {
    std::env::var("AUDIT_RUNS").map_or(4_000, |runs| runs.parse().expect("a number"))
}

/// How unlikely it is that a bound below fails by chance.
const MISTRUST: f64 = 1e-6;

/// A router that finds the largest of three input values.
fn largest(routing: Routing) -> Secret {
    let opening = |shift, index_bits| Opening { shift, index_bits };
    let trunk = ModelSpec {
        tokens: 1,
        features: MODELS as u16,
        width: 0,
        heads: 0,
        ffn: 0,
        layers: 0,
        qkv: opening(5, 11),
        score: opening(4, 6),
        mix: opening(4, 11),
        ffn_in: opening(6, 6),
        output_bits: 12,
    };
    let spec = RouterSpec { trunk, answers: 0 };
    let mut secret = random_secret(
        Program::Router { spec, words: None, models: MODELS as u16, output: Output::Label, routing },
        1,
        1,
    );
    secret.weights = vec![8, 0, 0, 0, 8, 0, 0, 0, 8];
    secret.biases = vec![0; MODELS];
    secret
}

/// A server that tells another entry of the router's last table than the protocol's.
struct Shift<'a> {
    program: &'a Program,
    by: u32,
}

impl Tamper for Shift<'_> {
    fn down(&mut self, number: usize, message: &mut Vec<u8>, view: &View) {
        if number + 1 == messages(self.program, false).len() {
            tell_another(self.program, message, 0, self.by, &view.stock);
        }
    }
}

/// What the server hears of `input` from the device, in the run of `counter`.
fn told(secret: &Secret, counter: u64, input: &[i16], by: u32) -> usize {
    let seeds = Seeds { slot: Slot::Router, ..Seeds::fixed(70) };
    let mut server = Shift { program: &secret.program, by };
    let (view, _) = run(secret, &seeds, counter, input, Bias::NONE, &mut server);
    view.route.unwrap().into()
}

/// `ln P(X >= at)` or `P(X <= at)` for a binomial `X` of `runs` and `p`.
fn tail(runs: u64, at: u64, p: f64, upper: bool) -> f64 {
    let range = if upper { at..=runs } else { 0..=at };
    let mut log_choose = 0.0;
    let mut sum = 0.0;
    for k in 0..=*range.end() {
        if k > 0 {
            log_choose += ((runs - k + 1) as f64 / k as f64).ln();
        }
        if range.contains(&k) {
            sum += (log_choose + k as f64 * p.ln() + (runs - k) as f64 * (1.0 - p).ln()).exp();
        }
    }
    sum
}

/// The bound of Clopper and Pearson on the probability of what happened `at` times in `runs`.
fn bound(runs: u64, at: u64, lower: bool, mistrust: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        // The more likely it is, the likelier are many and the less likely are few.
        let unlikely = tail(runs, at, middle, lower) < mistrust;
        if unlikely == lower { low = middle } else { high = middle }
    }
    if lower { low } else { high }
}

/// The likeliest epsilon, and one that is surely not less, of what a server is told that shifts its last index.
fn audit(routing: Routing, by: u32) -> (f64, f64) {
    let (secret, runs) = (largest(routing), runs());
    let mut counts = [[0u64; MODELS]; 2];
    for (world, input) in [[31, 0, 0], [0, 0, 31]].iter().enumerate() {
        for number in 0..runs {
            counts[world][told(&secret, 2 * number + world as u64, input, by)] += 1;
        }
    }
    let mistrust = MISTRUST / (4 * MODELS) as f64;
    let (mut estimate, mut surely) = (0f64, 0f64);
    for (a, b) in [(0, 1), (1, 0)] {
        for (a, b) in counts[a].iter().zip(&counts[b]) {
            estimate = estimate.max((*a as f64 / (*b).max(1) as f64).ln());
            surely = surely.max((bound(runs, *a, true, mistrust) / bound(runs, *b, false, mistrust)).ln());
        }
    }
    (estimate, surely)
}

#[test]
fn the_measured_epsilon_is_not_above_the_stated_one_whatever_the_server_asks() {
    for stated in [500, 1000, 2000] {
        let routing = Routing::Private { epsilon: stated };
        let stated = f64::from(stated) / 1e3;
        // The index has 4 bits: as the protocol says, and shifted so that other tournaments' winners come out.
        for by in [0, 1, 2, 7, 13] {
            let (estimate, surely) = audit(routing, by);
            println!("epsilon {stated}, index shifted by {by}: estimated {estimate:.3}, surely {surely:.3}");
            assert!(surely <= stated, "index shifted by {by}: {surely} of {stated}");
            // Neither is it a promise of something else: the protocol's own index tells nearly all of it.
            assert!(by > 0 || estimate > 0.8 * stated, "{estimate} of {stated}");
        }
    }
}

#[test]
fn the_audit_catches_a_dealer_that_keeps_half_of_the_noise() {
    for stated in [500u16, 1000] {
        let (estimate, surely) = audit(Routing::Private { epsilon: 2 * stated }, 0);
        println!("epsilon {stated}/1000 stated, twice that dealt: estimated {estimate:.3}, surely {surely:.3}");
        assert!(surely > f64::from(stated) / 1e3, "{surely}");
    }
}

/// A server that has its stock dealt for a pool of almost no noise.
struct Doubled {
    stock: Vec<u8>,
}

impl Tamper for Doubled {
    fn stock(&mut self, stock: &mut Vec<u8>) {
        stock.clone_from(&self.stock);
    }
}

#[test]
fn a_server_that_tells_dealer_and_device_different_policies_gets_noise() {
    let device = largest(Routing::Private { epsilon: 1000 });
    let dealer = largest(Routing::Private { epsilon: MAX_EPSILON });
    let seeds = Seeds { slot: Slot::Router, ..Seeds::fixed(71) };
    // The policy is in the fingerprint, and the fingerprint in every key.
    let others = Seeds { slot: Slot::Router, pool: [10; 32], ..Seeds::fixed(71) };
    let [open, noisy] = [Routing::Open, Routing::Device].map(|routing| PoolSpec { routing, ..pool() }.fingerprint());
    assert_ne!(open, noisy);
    const RUNS: u64 = 4000;
    for seeds_of_dealer in [&others, &seeds] {
        let mut counts = [[0f64; 8]; 2];
        for (world, input) in [[31, 0, 0], [0, 0, 31]].iter().enumerate() {
            for number in 0..RUNS {
                let counter = 2 * number + world as u64;
                let mut server = Doubled { stock: deal(&dealer, seeds_of_dealer, counter) };
                let (view, _) = run(&device, &seeds, counter, input, Bias::NONE, &mut server);
                counts[world][usize::from(view.route.unwrap())] += 1.0;
            }
        }
        let apart = counts[0].iter().zip(&counts[1]).map(|(a, b)| (a - b).abs() / (a + b).max(1.0).sqrt());
        let apart = apart.fold(0.0, f64::max);
        // With the dealer's own keys the route would be there.
        assert_eq!(apart < 5.0, seeds_of_dealer.pool != seeds.pool, "{counts:?}");
    }
}

// ---- traces

/// A pool whose router finds the largest of the first three input values.
fn fixture(routing: Routing) -> &'static Fixture {
    let mut pool = PoolSpec { routing, ..pool() };
    // They run often.
    let nano = pool.models[0].spec;
    pool.models.iter_mut().zip([2, 4, 6]).for_each(|(model, ffn)| model.spec = ModelSpec { ffn, ..nano });
    let router = pool.router.as_mut().unwrap();
    router.trunk = ModelSpec { tokens: 1, features: 48, ffn: 0, layers: 0, output_bits: 12, ..router.trunk };
    let mut fixture = Fixture::build(pool);
    let (_, secret) = &mut fixture.programs[0];
    secret.weights = (0..3 * 48).map(|at| 2 * i16::from(at / 48 == at % 48)).collect();
    secret.biases = vec![0; 3];
    Box::leak(Box::new(fixture))
}

/// Everything that the server sees of a conversation but the values, which other tests show to be uniform: requests,
/// frames and their lengths, changes of direction, in their order.
type Trace = Vec<(u8, usize)>;

fn trace(peer: &mut Peer) -> Trace {
    let mut trace: Trace = peer.frames_up.drain(..).chain(peer.frames_down.drain(..)).collect();
    trace.extend(peer.directions.drain(..).map(|up| (u8::MAX, usize::from(up))));
    trace.extend(peer.infers.drain(..).map(|infer| (infer.slot.code(), usize::from(infer.allowed))));
    trace.extend(peer.runs.drain(..).map(|run| (run.slot.code(), run.up.len() + run.down.len())));
    trace
}

/// One routed input: what the server saw of its batch, its place there, and the secrets.
struct Seen {
    trace: Trace,
    number: usize,
    route: usize,
    label: usize,
}

/// Answers `count` batches under a policy; quotas go with device routing.
fn observe(routing: Routing, quotas: Option<(&[u16], usize)>, count: usize) -> Vec<Seen> {
    let fixture = fixture(routing);
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 4);
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    let quotas = quotas.map(|(quotas, inputs)| (Quotas::new(quotas).unwrap(), inputs));
    let mut chance = 0u64;
    let mut draw = |below: u64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % below
    };
    let mut seen = Vec::new();
    for _ in 0..count {
        trace(&mut peer);
        let size = quotas.map_or(1, |(_, inputs)| inputs);
        let mut inputs = Vec::new();
        for _ in 0..size {
            let route = draw(MODELS as u64) as usize;
            inputs.extend((0..MODELS).map(|model| if model == route { 31 } else { 0 }));
            inputs.extend((MODELS..48).map(|_| draw(256) as i16 - 128));
        }
        let truth = |input: &[i16]| {
            let ask = request(Slot::Router);
            let scores = router_scores(&fixture.pool, ask.lambda, 0b111, &ask.link).unwrap();
            let open = Program::of(&PoolSpec { routing: Routing::Open, ..fixture.pool.clone() }, Slot::Router).unwrap();
            let secret = Secret { program: open, ..fixture.secret(Slot::Router).clone() };
            let told = reference(&secret, input, Bias { scores: &scores, margin: 0 }, &mut Nearest).unwrap();
            usize::from(clear::chosen(&secret.program, &told))
        };
        let routes: Vec<usize> = inputs.chunks(48).map(truth).collect();
        let mut wanted = vec![Slot::Router; size];
        match quotas {
            None => wanted.extend((0..MODELS as u8).map(Slot::Model)),
            Some((quotas, _)) => {
                wanted.extend((0..quotas.places()).map(|place| Slot::Model(quotas.model(place).unwrap())))
            }
        }
        for slot in &wanted {
            let needed = wanted.iter().filter(|have| *have == slot).count();
            while (session.ready(*slot) as usize) < needed {
                session.prepare(*slot).unwrap();
                assert_eq!(event(&mut session, &mut peer), Event::Prepared(*slot));
            }
        }
        let mut labels = vec![0; size];
        match quotas {
            None => {
                session.infer(request(Slot::Router), &inputs).unwrap();
                while event(&mut session, &mut peer) != Event::Answer {}
                labels[0] = session.class().unwrap() as u16;
            }
            Some((quotas, _)) => {
                let mut told = Vec::new();
                for input in inputs.chunks(48) {
                    session.infer(request(Slot::Router), input).unwrap();
                    match event(&mut session, &mut peer) {
                        Event::Advised(Slot::Model(model)) => told.push(model),
                        other => panic!("{other:?}"),
                    }
                }
                assert!(told.iter().zip(&routes).all(|(told, truth)| usize::from(*told) == *truth));
                let (mut places, mut input) = (vec![0; size], vec![0; 48]);
                quotas.assign(&told, &mut places).unwrap();
                for place in 0..quotas.places() {
                    gather(&places, place, &inputs, &mut input);
                    session.infer(request(Slot::Model(quotas.model(place).unwrap())), &input).unwrap();
                    assert_eq!(event(&mut session, &mut peer), Event::Answer);
                    keep(&places, place, session.class().unwrap() as u16, &mut labels);
                }
            }
        }
        let trace = trace(&mut peer);
        seen.extend(routes.iter().zip(labels).enumerate().map(|(number, (route, label))| Seen {
            trace: trace.clone(),
            number,
            route: *route,
            label: usize::from(label),
        }));
    }
    seen
}

/// How often a classifier that knows half of the cases is right about the other half, and how often one that sees
/// nothing is: each says what was most frequent.
fn guess(seen: &[Seen], secret: impl Fn(&Seen) -> usize) -> (f64, f64) {
    let most = |of: &mut dyn Iterator<Item = &Seen>| {
        let mut counts = BTreeMap::<usize, usize>::new();
        of.for_each(|seen| *counts.entry(secret(seen)).or_default() += 1);
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(value, _)| value)
    };
    let (train, test) = seen.split_at(seen.len() / 2);
    let blind = most(&mut train.iter());
    let mut by_trace = BTreeMap::<(&Trace, usize), Vec<&Seen>>::new();
    train.iter().for_each(|seen| by_trace.entry((&seen.trace, seen.number)).or_default().push(seen));
    let by_trace: BTreeMap<_, _> = by_trace.into_iter().map(|(key, of)| (key, most(&mut of.into_iter()))).collect();
    let right = |guess: &dyn Fn(&Seen) -> usize| {
        test.iter().filter(|seen| guess(seen) == secret(seen)).count() as f64 / test.len() as f64
    };
    (right(&|seen| by_trace.get(&(&seen.trace, seen.number)).copied().unwrap_or(blind)), right(&|_| blind))
}

#[test]
fn a_classifier_that_sees_everything_guesses_routes_and_labels_no_better_than_stated() {
    const CASES: usize = 600;
    // Four standard deviations of the share of right guesses among half of the cases.
    let doubt = 4.0 * (0.25 / (CASES as f64 / 2.0)).sqrt();

    let open = observe(Routing::Open, None, CASES);
    let (route, chance) = guess(&open, |seen| seen.route);
    println!("open: route guessed {:.1} %, by chance {:.1} %", 100.0 * route, 100.0 * chance);
    assert!(route > 0.95 && chance < 0.5);

    for epsilon in [500u16, 2000] {
        let private = observe(Routing::Private { epsilon }, None, CASES);
        let (route, _) = guess(&private, |seen| seen.route);
        let e = (f64::from(epsilon) / 1e3).exp();
        let stated = e / (e + MODELS as f64 - 1.0);
        println!(
            "private:{}: route guessed {:.1} %, at most {:.1} %",
            f64::from(epsilon) / 1e3,
            100.0 * route,
            100.0 * stated
        );
        assert!(route <= stated + doubt, "{route} of {stated}");
        assert!(route > stated - doubt, "the classifier misses what is there: {route} of {stated}");
    }

    for (name, quotas, inputs) in [("hidden", &[1u16, 1, 1][..], 1), ("quota", &[3, 2, 1], 4)] {
        let seen = observe(Routing::Device, Some((quotas, inputs)), CASES / inputs);
        assert!(seen.iter().all(|one| one.trace == seen[0].trace), "{name}: two batches look different");
        for (what, (guessed, chance)) in
            [("route", guess(&seen, |seen| seen.route)), ("label", guess(&seen, |seen| seen.label))]
        {
            println!("{name}: {what} guessed {:.1} %, by chance {:.1} %", 100.0 * guessed, 100.0 * chance);
            assert!(guessed <= chance + doubt, "{name}: {what} {guessed} against {chance}");
        }
        let (mut routes, mut labels) = ([0; MODELS], BTreeMap::<usize, usize>::new());
        seen.iter().for_each(|seen| routes[seen.route] += 1);
        seen.iter().for_each(|seen| *labels.entry(seen.label).or_default() += 1);
        assert!(routes.iter().all(|count| *count > seen.len() / 5) && labels.len() > 1, "{routes:?} {labels:?}");
    }
}

// ---- what the device insists on

#[test]
fn a_device_refuses_a_pool_that_is_less_private_than_it_accepts() {
    let ladder = [
        Routing::Device,
        Routing::Private { epsilon: 1 },
        Routing::Private { epsilon: 2000 },
        Routing::Private { epsilon: MAX_EPSILON },
        Routing::Open,
    ];
    for (place, offered) in ladder.into_iter().enumerate() {
        let fixture = Fixture::new(PoolSpec { routing: offered, ..pool() });
        for (accepts, least) in ladder.into_iter().enumerate() {
            let (mut memory, store, mut peer) = (Memory::default(), Store::default(), Peer::new(fixture));
            let identity = DeviceIdentity { routing: least, ..fixture.identity() };
            let mut session =
                DeviceSession::connect(identity, memory.lend(), 4, store.clone(), &mut Chance(77)).unwrap();
            let outcome = carry(&mut session, &mut peer, usize::MAX, u64::MAX, &mut Crossed::default());
            if place <= accepts {
                assert_eq!(outcome, Outcome::Event(Event::Ready));
            } else {
                assert_eq!(outcome, Outcome::Failed(SessionError::Routing { offered, least }));
                assert!(session.is_closed() && session.pool().is_none());
            }
        }
    }
}

#[test]
fn whatever_a_server_tells_as_a_route_is_taken_for_a_model() {
    for routing in [Routing::Device, Routing::Open, Routing::Private { epsilon: 1000 }] {
        let fixture = fixture(routing);
        let mut told = [0; MODELS];
        for number in 0..200u64 {
            let (mut memory, store, mut peer) = (Memory::default(), Store::default(), Peer::new(fixture));
            let mut session = connect(fixture, &mut memory, &store, 4);
            assert_eq!(event(&mut session, &mut peer), Event::Ready);
            for slot in fixture.pool.slots() {
                session.prepare(slot).unwrap();
                assert_eq!(event(&mut session, &mut peer), Event::Prepared(slot));
            }
            session.infer(request(Slot::Router), &fixture.input(0)).unwrap();
            let messages = messages(&fixture.secret(Slot::Router).program, false);
            let (_, last) = messages[messages.len() - 1];
            let used = u64::from(last.elements) * u64::from(last.bits);
            let mut left = messages.len();
            let mut chance = Chance(number);
            peer.tamper = Some(Box::new(move |_, (kind, mut payload)| {
                left = left.wrapping_sub(1);
                if left == 0 {
                    chance.try_fill_bytes(&mut payload).unwrap();
                    (used..payload.len() as u64 * 8).for_each(|bit| payload[(bit / 8) as usize] &= !(1 << (bit % 8)));
                }
                vec![(kind, payload)]
            }));
            match (routing, event(&mut session, &mut peer)) {
                (Routing::Device, Event::Advised(Slot::Model(model))) => {
                    told[usize::from(model)] += 1;
                    // It stays quiet until it is asked for something.
                    assert_eq!(carry(&mut session, &mut peer, 1, u64::MAX, &mut Crossed::default()), Outcome::Stalled);
                    assert_eq!(session.class(), None);
                }
                (Routing::Open | Routing::Private { .. }, Event::Routed(Slot::Model(model))) => {
                    told[usize::from(model)] += 1;
                    assert_eq!(event(&mut session, &mut peer), Event::Answer);
                }
                (_, other) => panic!("{other:?}"),
            }
            assert!(!session.is_closed());
        }
        assert!(told.iter().all(|count| *count > 5), "{routing}: {told:?}");
    }
}
