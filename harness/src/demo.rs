//! `secure-router demo`: the whole product on one machine, on real inputs, measured.
//!
//! Dealer, server and device are three processes that speak TCP on loopback. What is printed was
//! measured at the device's socket and in the server's turns; the cost model's figures are compared
//! with it, and the links' latencies computed from it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use secure_router::board::{self, Board};
use secure_router::examples::Examples;
use secure_router::pool::{Pool, in_range, slot_name};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::cost::Cost;
use secure_router_core::routing::Routing;
use secure_router_core::session::{LinkProfile, RECOMMENDED_LAMBDA};
use secure_router_core::spec::ModelSpec;
use serde::Serialize;

use crate::infer::{Answer, TILE, progress};
use crate::parties::Parties;

/// The committed pool.
pub(crate) const POOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech/pool.safetensors");
/// The test split that goes with it.
pub(crate) const TEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech/test.safetensors");

#[derive(Args)]
pub(crate) struct Demo {
    /// The trained pool.
    #[arg(long, default_value = POOL)]
    pool: PathBuf,
    /// The test split.
    #[arg(long, default_value = TEST)]
    inputs: PathBuf,
    /// Test inputs to classify, spread over the split; each goes to the router and to every model.
    #[arg(long, default_value_t = 50)]
    count: usize,
    /// The whole test split.
    #[arg(long, conflicts_with = "count")]
    all: bool,
    /// Weight of cost in the router's choice, in 1/256; the pool's own by default.
    #[arg(long, value_parser = clap::value_parser!(u16).range(..i64::from(RECOMMENDED_LAMBDA)))]
    lambda: Option<u16>,
    /// The link that the router reckons with: uart, ble, lan, or BYTES_PER_SECOND,ROUND_TRIP_MS.
    #[arg(long, default_value = "uart", value_parser = crate::links::parse)]
    link: LinkProfile,
    /// The device: a board in QEMU, as qemu:BOARD, instead of this machine.
    #[arg(long, value_parser = board::parse)]
    device: Option<Board>,
    /// Answers are logits instead of labels.
    #[arg(long)]
    logits: bool,
    /// Who learns the router's choice: open, private:EPSILON or device (which then hides it: every model runs).
    #[arg(long, default_value = "open", value_parser = crate::policy::routing)]
    routing: Routing,
    /// Write the figures to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The figures of one way to answer.
#[derive(Clone, Debug, Default, Serialize)]
struct Figures {
    accuracy_protocol: f64,
    accuracy_reference: f64,
    agreement: f64,
    online_up_bytes: f64,
    online_down_bytes: f64,
    round_trips: f64,
    offline_device_up_bytes: f64,
    offline_device_down_bytes: f64,
    dealer_to_server_bytes: f64,
    device_ram_bytes: usize,
    latency_ms: f64,
    latency_links_ms: std::collections::BTreeMap<&'static str, f64>,
}

#[derive(Debug, Serialize)]
struct Shape {
    tokens: u16,
    width: u16,
    heads: u8,
    ffn: u16,
    layers: u8,
}

#[derive(Debug, Serialize)]
struct ModelFigures {
    name: String,
    spec: Shape,
    parameters: u32,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Debug, Serialize)]
struct RouterFigures {
    #[serde(flatten)]
    model: ModelFigures,
    shares: std::collections::BTreeMap<String, f64>,
    routing_agreement: f64,
    lambda: u16,
}

#[derive(Debug, Serialize)]
struct Report {
    task: String,
    test_examples: usize,
    evaluated: usize,
    models: Vec<ModelFigures>,
    router: Option<RouterFigures>,
    cost_model_matches_bytes: bool,
}

/// One answer with all that is known of it.
struct Case {
    answer: Answer,
    slot: Slot,
    model: Slot,
    label: usize,
    /// The reference's class by the reference's own route; none where a value left its range.
    reference: Option<usize>,
    reference_model: Option<Slot>,
    half_trips: u32,
}

impl Demo {
    pub(crate) fn run(self) -> Result<()> {
        let pool = Pool::load(&self.pool)?;
        let pool = if self.logits { pool.with_logits() } else { pool }.with_routing(self.routing)?;
        ensure!(
            self.routing != Routing::Device || self.device.is_none(),
            "a board does not hide routes: leave out --device or --routing device"
        );
        let examples = Examples::load(&self.inputs, pool.spec.input_len)?;
        let total = examples.inputs.len();
        let count = if self.all { total } else { self.count };
        ensure!(count > 0 && count <= total, "--count must be between 1 and the split's {total} inputs");
        let step = total / count;
        let lambda = self.lambda.unwrap_or(pool.lambda);
        let slots = self.slots(&pool)?;

        let cases = self.measure(&pool, &examples, &slots, count, step, lambda)?;
        let report = self.report(&pool, &slots, &cases, total, count, lambda)?;
        let printed = print(&report);
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_string_pretty(&report)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        ensure!(report.cost_model_matches_bytes, "the measured bytes differ from the cost model's");
        printed
    }

    /// The programs that fit the device; says which do not.
    fn slots(&self, pool: &Pool) -> Result<Vec<Slot>> {
        let mut slots: Vec<Slot> = pool.spec.slots().collect();
        if let Some(board) = self.device {
            for slot in pool.spec.slots() {
                if let Some(reason) = board::unfit(board, &pool.spec, slot)? {
                    eprintln!("{} does not fit: {reason}", slot_name(&pool.spec, slot));
                    slots.retain(|have| *have != slot);
                }
            }
            ensure!(!slots.is_empty(), "no program of the pool fits {}", board.name);
        }
        Ok(slots)
    }

    /// Bit `i` says that model `i` fits the device.
    fn allowed(slots: &[Slot]) -> u8 {
        slots.iter().filter_map(|slot| slot.code().checked_sub(1)).fold(0, |bits, model| bits | 1 << model)
    }

    fn tile(&self) -> u16 {
        self.device.map_or(TILE, Board::tile)
    }

    /// Runs the three parties and collects every answer.
    fn measure(
        &self,
        pool: &Pool,
        examples: &Examples,
        slots: &[Slot],
        count: usize,
        step: usize,
        lambda: u16,
    ) -> Result<Vec<Case>> {
        let parties = Parties::start(&self.pool, self.logits, self.routing)?;
        eprintln!("{parties}, {count} inputs to each of {} programs", slots.len());
        let scores = pool.scores(lambda, Self::allowed(slots), &self.link)?;
        let bar = progress((count * slots.len()) as u64);
        let mut cases = Vec::with_capacity(count * slots.len());
        // Routes that are to be hidden are asked for on their own.
        let hides = |slot: &Slot| *slot == Slot::Router && self.routing == Routing::Device;
        let (hidden, plain): (Vec<Slot>, Vec<Slot>) = slots.iter().partition(|slot| hides(slot));
        for slots in [plain, hidden].iter().filter(|slots| !slots.is_empty()) {
            let mut device = parties.device(&self.inputs, count, step, lambda, &self.link);
            if slots.iter().any(hides) {
                device.arg("--hidden");
            } else {
                slots.iter().for_each(|slot| _ = device.arg("--program").arg(slot_name(&pool.spec, *slot)));
            }
            if let Some(board) = self.device {
                device.arg(format!("--device=qemu:{}", board.name));
            }
            parties.answers(&mut device, |answer| {
                cases.push(case(pool, examples, &scores, answer)?);
                bar.inc(1);
                Ok(())
            })?;
        }
        bar.finish_and_clear();
        ensure!(cases.len() == count * slots.len(), "the device gave {} answers", cases.len());
        let mut trips = parties.half_trips();
        for case in &mut cases {
            case.half_trips = trips.of(&pool.spec, case.slot, case.model)?;
        }
        Ok(cases)
    }

    fn report(
        &self,
        pool: &Pool,
        slots: &[Slot],
        cases: &[Case],
        total: usize,
        count: usize,
        lambda: u16,
    ) -> Result<Report> {
        let costs = slots
            .iter()
            .map(|slot| Ok((*slot, Cost::of(&pool.spec, *slot, self.tile())?)))
            .collect::<Result<Vec<_>>>()?;
        let cost = |slot: Slot| costs.iter().find(|(have, _)| *have == slot).map(|(_, cost)| *cost).unwrap_or_default();
        let routed = (0..pool.spec.models.len() as u8)
            .filter(|_| pool.spec.router.is_some())
            .map(|index| Ok(Cost::routed(&pool.spec, index, self.tile())?))
            .collect::<Result<Vec<_>>>()?;
        // A hidden route: the router and every model, each asked for.
        let hidden = costs.iter().fold(Cost::default(), |sum, (_, cost)| sum.plus(cost));
        let used = |case: &Case| match case.model {
            _ if case.slot == Slot::Router && self.routing == Routing::Device => hidden,
            Slot::Model(index) if case.slot == Slot::Router => routed[usize::from(index)],
            _ => cost(case.slot),
        };
        let whole_pool = costs.iter().map(|(_, cost)| cost.device_work_words).max().unwrap_or(0);

        let figures = |slot: Slot| -> Figures {
            let cases: Vec<&Case> = cases.iter().filter(|case| case.slot == slot).collect();
            let mean = |value: &dyn Fn(&Case) -> f64| {
                cases.iter().map(|case| value(case)).sum::<f64>() / cases.len().max(1) as f64
            };
            let latency = |link: &LinkProfile| {
                mean(&|case| {
                    let bytes = case.answer.online.sent + case.answer.online.received;
                    link.latency_us(bytes, case.half_trips) as f64 / 1e3 + case.answer.latency_ms
                })
            };
            let ram = Cost {
                device_work_words: if slot == Slot::Router { whole_pool } else { cost(slot).device_work_words },
                ..Cost::default()
            };
            Figures {
                accuracy_protocol: mean(&|case| f64::from(case.answer.class == case.label)),
                accuracy_reference: mean(&|case| f64::from(case.reference == Some(case.label))),
                agreement: mean(&|case| f64::from(Some(case.answer.class) == case.reference)),
                online_up_bytes: mean(&|case| case.answer.online.sent as f64),
                online_down_bytes: mean(&|case| case.answer.online.received as f64),
                round_trips: mean(&|case| f64::from(case.half_trips) / 2.0),
                offline_device_up_bytes: mean(&|case| case.answer.offline.sent as f64),
                offline_device_down_bytes: mean(&|case| case.answer.offline.received as f64),
                dealer_to_server_bytes: mean(&|case| used(case).dealer_to_server as f64),
                device_ram_bytes: ram.device_ram_bytes(pool.spec.input_len),
                latency_ms: mean(&|case| case.answer.latency_ms),
                latency_links_ms: LinkProfile::NAMED.iter().map(|(name, link)| (*name, latency(link))).collect(),
            }
        };
        let matches = cases.iter().all(|case| {
            let cost = used(case);
            (case.answer.online.sent, case.answer.online.received) == (cost.online.up, cost.online.down)
                && (case.answer.offline.sent, case.answer.offline.received) == (cost.offline.up, cost.offline.down)
                && case.half_trips == cost.online.half_trips
        });

        let model = |slot: Slot, spec: &ModelSpec| -> Result<ModelFigures> {
            let layout = Program::of(&pool.spec, slot)?.layout()?;
            Ok(ModelFigures {
                name: slot_name(&pool.spec, slot),
                spec: Shape {
                    tokens: spec.tokens,
                    width: spec.width,
                    heads: spec.heads,
                    ffn: spec.ffn,
                    layers: spec.layers,
                },
                parameters: layout.weights + layout.biases,
                figures: figures(slot),
            })
        };
        // What did not fit the device answered nothing.
        let models = (0u8..).zip(&pool.spec.models).map(|(index, named)| (Slot::Model(index), &named.spec));
        let models = models.filter(|(slot, _)| slots.contains(slot)).map(|(slot, spec)| model(slot, spec));
        let models = models.collect::<Result<Vec<_>>>()?;
        let router = pool.spec.router.filter(|_| slots.contains(&Slot::Router)).map(|router| {
            let routed: Vec<&Case> = cases.iter().filter(|case| case.slot == Slot::Router).collect();
            let share = |wanted: &dyn Fn(&Case) -> bool| {
                routed.iter().filter(|case| wanted(case)).count() as f64 / routed.len().max(1) as f64
            };
            anyhow::Ok(RouterFigures {
                model: model(Slot::Router, &router.trunk)?,
                shares: (0u8..)
                    .zip(&pool.spec.models)
                    .map(|(index, model)| (model.name.to_string(), share(&|case| case.model == Slot::Model(index))))
                    .collect(),
                routing_agreement: share(&|case| Some(case.model) == case.reference_model),
                lambda,
            })
        });
        let router = router.transpose()?;
        Ok(Report {
            task: pool.spec.task.to_string(),
            test_examples: total,
            evaluated: count,
            models,
            router,
            cost_model_matches_bytes: matches,
        })
    }
}

/// Sets an answer beside its label and the reference's answer.
fn case(pool: &Pool, examples: &Examples, scores: &[i32], answer: Answer) -> Result<Case> {
    let input = examples.inputs.get(answer.index).context("no such input")?;
    let label = *examples.labels.get(answer.index).context("no such label")?;
    let slot = pool.slot(&answer.program).context("no such program")?;
    let model = pool.slot(&answer.model).context("no such model")?;
    let reference_model = if slot == Slot::Router { in_range(pool.chosen(input, scores))? } else { Some(slot) };
    let logits = match reference_model {
        Some(model) => in_range(pool.reference(model, input, scores))?,
        None => None,
    };
    // The first of equals, as the device takes it.
    let reference = logits.and_then(|logits| (0..logits.len()).rev().max_by_key(|class| logits.get(*class)));
    Ok(Case { answer, slot, model, label, reference, reference_model, half_trips: 0 })
}

fn print(report: &Report) -> Result<()> {
    say!(
        "{}: {} of {} test inputs, answered under the protocol\n",
        report.task,
        report.evaluated,
        report.test_examples
    );
    say!(
        "{:<9} {:>8} {:>8} {:>7}  {:>8} {:>8} {:>6}  {:>8} {:>10}  {:>8} {:>8} {:>8} {:>8}",
        "answer by",
        "accuracy",
        "in clear",
        "agree",
        "up B",
        "down B",
        "trips",
        "offl. B",
        "dealer B",
        "here ms",
        "uart ms",
        "ble ms",
        "lan ms"
    );
    let row = |name: &str, f: &Figures| -> Result<()> {
        let link = |name| f.latency_links_ms.get(name).copied().unwrap_or(0.0);
        say!(
            "{:<9} {:>7.2}% {:>7.2}% {:>6.2}%  {:>8.0} {:>8.0} {:>6.2}  {:>8.0} {:>10.0}  {:>8.1} {:>8.1} {:>8.1} {:>8.1}",
            name,
            100.0 * f.accuracy_protocol,
            100.0 * f.accuracy_reference,
            100.0 * f.agreement,
            f.online_up_bytes,
            f.online_down_bytes,
            f.round_trips,
            f.offline_device_up_bytes + f.offline_device_down_bytes,
            f.dealer_to_server_bytes,
            f.latency_ms,
            link("uart"),
            link("ble"),
            link("lan"),
        );
        Ok(())
    };
    for model in &report.models {
        row(&model.name, &model.figures)?;
    }
    if let Some(router) = &report.router {
        row("router", &router.model.figures)?;
        let shares: Vec<_> =
            router.shares.iter().map(|(name, share)| format!("{name} {:.1}%", 100.0 * share)).collect();
        say!(
            "\nthe router chose {}; as in the clear for {:.2}% of the inputs (lambda {}/256)",
            shares.join(", "),
            100.0 * router.routing_agreement,
            router.lambda
        );
        say!("static RAM of a device for the whole pool: {} bytes", router.model.figures.device_ram_bytes);
    }
    say!(
        "online bytes, offline bytes and round trips {} the cost model's",
        if report.cost_model_matches_bytes { "equal" } else { "DIFFER FROM" }
    );
    say!(
        "per inference, means; link latencies are time on the link ({}) plus the computing measured here",
        LinkProfile::NAMED
            .iter()
            .map(|(name, link)| format!(
                "{name} {} B/s, {} ms",
                link.bytes_per_second,
                f64::from(link.round_trip_us) / 1e3
            ))
            .collect::<Vec<_>>()
            .join("; ")
    );
    Ok(())
}
