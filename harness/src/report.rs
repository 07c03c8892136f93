//! `secure-router report`: what a pool is worth, measured under the protocol on its test split, as one page and as
//! JSON; or the same of several pools of one task, trained from other seeds, with the spread between them.

mod figures;
mod gates;
mod merge;
mod page;
mod plane;
mod statistics;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use clap::Args;
use secure_router::examples::Examples;
use secure_router::pool::{Estimate, Pool, in_range, slot_name};
use secure_router_core::circuit::Slot;
use secure_router_core::cost::Cost;
use secure_router_core::routing::Routing;
use secure_router_core::session::{LinkProfile, RECOMMENDED_LAMBDA};
use serde_json::json;

use crate::infer::{Answer, TILE, progress};
use crate::parties::Parties;
use figures::{Answers, Link, Records, Routed, VERSION};
use gates::ProgramCost;

#[derive(Args)]
pub(crate) struct Report {
    /// Directory of the pool: pool.safetensors, and its test split, test.safetensors.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech"))]
    pool: PathBuf,
    /// Test inputs, spread over the split.
    #[arg(long, default_value_t = 50)]
    count: usize,
    /// The whole test split.
    #[arg(long, conflicts_with = "count")]
    all: bool,
    /// Weights of cost to route with, in 1/256; the pool's own is always among them, and alone if this is given
    /// without a value.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "0,10,30,100",
        value_parser = clap::value_parser!(u16).range(..i64::from(RECOMMENDED_LAMBDA)))]
    lambdas: Vec<u16>,
    /// Links that the router reckons with: uart, ble, lan.
    #[arg(long, value_delimiter = ',', default_value = "uart,ble,lan", value_parser = named_link)]
    links: Vec<&'static str>,
    /// Sum up JSON files of earlier reports instead: pools of one task from several seeds.
    #[arg(long, num_args = 1.., conflicts_with_all = ["pool", "count", "all", "lambdas", "links"])]
    merge: Vec<PathBuf>,
    /// The page.
    #[arg(long)]
    html: Option<PathBuf>,
    /// The figures, and of one pool all records.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn named_link(text: &str) -> Result<&'static str> {
    let known = LinkProfile::NAMED.iter().find(|(name, _)| *name == text);
    known.map(|(name, _)| *name).context("a link of a report is uart, ble or lan")
}

impl Report {
    pub(crate) fn run(self) -> Result<()> {
        ensure!(self.html.is_some() || self.json.is_some(), "nowhere to report to: give --html or --json");
        // Better now than after hours.
        for path in self.html.iter().chain(&self.json) {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
            file.with_context(|| format!("cannot write {}", path.display()))?;
        }
        let (page, json) = if self.merge.is_empty() {
            let records = self.measure()?;
            let figures = records.figures();
            let page = page::of_pool(&records, &figures);
            (page, json!({ "records": records, "figures": figures }))
        } else {
            let all = self.merge.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
            let merged = merge::merged(&all)?;
            (page::of_seeds(&all, &merged), json!({ "task": all.first().map(|r| &r.task), "figures": merged }))
        };
        if let Some(path) = &self.html {
            std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &self.json {
            std::fs::write(path, json.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Runs every model by itself and the router at every lambda.
    fn measure(&self) -> Result<Records> {
        let (pool_file, inputs) = (self.pool.join("pool.safetensors"), self.pool.join("test.safetensors"));
        let pool = Pool::load(&pool_file)?;
        ensure!(pool.spec.router.is_some(), "this pool has no router to report on");
        let examples = Examples::load(&inputs, pool.spec.input_len)?;
        let total = examples.inputs.len();
        let count = if self.all { total } else { self.count };
        ensure!(count > 0 && count <= total, "--count must be between 1 and the split's {total} inputs");
        let step = total / count;
        let chosen: Vec<usize> = (0..total).step_by(step).take(count).collect();
        let mut lambdas = self.lambdas.clone();
        lambdas.push(pool.lambda);
        lambdas.sort_unstable();
        lambdas.dedup();

        let estimates: Vec<Option<Estimate>> =
            chosen.iter().map(|i| in_range(pool.estimate(&examples.inputs[*i]))).collect::<Result<_>>()?;
        let parties = Parties::start(&pool_file, false, Routing::Open)?;
        let slots: Vec<Slot> = (0..pool.spec.models.len() as u8).map(Slot::Model).collect();
        let runs = slots.len() + lambdas.len() * self.links.len();
        let bar = progress((count * runs) as u64);
        let mut checked = Checked { pool: &pool, answers: Vec::new() };
        let mut ask = |slot: Slot, lambda: u16, link: &_| -> Result<Vec<Answer>> {
            let mut device = parties.device(&inputs, count, step, lambda, link);
            device.arg("--program").arg(slot_name(&pool.spec, slot));
            let mut answers = Vec::with_capacity(count);
            parties.answers(&mut device, |answer| {
                checked.add(&answer)?;
                answers.push(answer);
                bar.inc(1);
                Ok(())
            })?;
            ensure!(answers.len() == count, "the device gave {} answers", answers.len());
            Ok(answers)
        };
        let mut fixed = Vec::new();
        for slot in slots {
            fixed.push(answers(&ask(slot, 0, &LinkProfile::UART)?));
        }
        let mut routed = Vec::new();
        for name in &self.links {
            let link = &LinkProfile::named(name).context("no such link")?;
            for &lambda in &lambdas {
                let all = ask(Slot::Router, lambda, link)?;
                let route = |answer: &Answer| match pool.slot(&answer.model) {
                    Some(Slot::Model(index)) => Ok(usize::from(index)),
                    _ => anyhow::bail!("the device names an unknown model"),
                };
                let scores = pool.scores(lambda, u8::MAX, link)?;
                routed.push(Routed {
                    lambda,
                    link: (*name).to_owned(),
                    routes: all.iter().map(route).collect::<Result<_>>()?,
                    clear_routes: estimates
                        .iter()
                        .map(|estimate| estimate.as_ref().map(|e| pool.route(e, &scores)).transpose())
                        .collect::<Result<_>>()?,
                    answers: answers(&all),
                });
            }
        }
        bar.finish_and_clear();
        checked.half_trips(&parties)?;

        let programs = (0..pool.spec.models.len() as u8).map(Slot::Model).chain([Slot::Router]);
        let routed_costs = (0..pool.spec.models.len() as u8).map(|index| {
            let online = Cost::routed(&pool.spec, index, TILE)?.online;
            Ok((online.bytes(), online.half_trips))
        });
        let about = |key: &str| pool.about.get(key).cloned().unwrap_or_else(|| "unknown".to_owned());
        Ok(Records {
            version: VERSION,
            task: pool.spec.task.to_string(),
            seed: about("seed"),
            trained_by: about("command"),
            measured_by: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            machine: machine(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            test_examples: total,
            classes: pool.classes.clone(),
            lambda: pool.lambda,
            links: LinkProfile::NAMED
                .iter()
                .filter(|(name, _)| self.links.contains(name))
                .map(|(name, link)| Link {
                    name: (*name).to_owned(),
                    bytes_per_second: link.bytes_per_second,
                    round_trip_us: link.round_trip_us,
                })
                .collect(),
            programs: programs.map(|slot| ProgramCost::of(&pool.spec, slot)).collect::<Result<_>>()?,
            routed_costs: routed_costs.collect::<Result<_>>()?,
            labels: chosen.iter().map(|i| examples.labels[*i]).collect(),
            utilities: estimates
                .iter()
                .map(|of_input| of_input.iter().flat_map(|e| &e.utilities).map(|u| pool.probability(*u)).collect())
                .collect(),
            fixed,
            routed,
        })
    }
}

/// Holds every answer to the cost model.
struct Checked<'p> {
    pool: &'p Pool,
    answers: Vec<(Slot, Slot)>,
}

impl Checked<'_> {
    fn cost(&self, slot: Slot, model: Slot) -> Result<Cost> {
        Ok(match (slot, model) {
            (Slot::Router, Slot::Model(index)) => Cost::routed(&self.pool.spec, index, TILE)?,
            _ => Cost::of(&self.pool.spec, slot, TILE)?,
        })
    }

    fn add(&mut self, answer: &Answer) -> Result<()> {
        let slot = self.pool.slot(&answer.program).context("no such program")?;
        let model = self.pool.slot(&answer.model).context("no such model")?;
        let online = self.cost(slot, model)?.online;
        ensure!(
            (answer.online.sent, answer.online.received) == (online.up, online.down),
            "input {} to {} took other bytes than the cost model says",
            answer.index,
            answer.program
        );
        self.answers.push((slot, model));
        Ok(())
    }

    fn half_trips(&self, parties: &Parties) -> Result<()> {
        let mut trips = parties.half_trips();
        for (slot, model) in &self.answers {
            let seen = trips.of(&self.pool.spec, *slot, *model)?;
            let said = self.cost(*slot, *model)?.online.half_trips;
            ensure!(seen == said, "an answer took {seen} half trips, the cost model says {said}");
        }
        Ok(())
    }
}

fn answers(all: &[Answer]) -> Answers {
    Answers {
        classes: all.iter().map(|answer| answer.class).collect(),
        ms: all.iter().map(|answer| answer.latency_ms as f32).collect(),
    }
}

fn read(path: &Path) -> Result<Records> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut file: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let records = file.get_mut("records").map(serde_json::Value::take);
    let records = records.with_context(|| format!("{} is not the report of one pool", path.display()))?;
    serde_json::from_value(records).with_context(|| format!("{} is of another version", path.display()))
}

/// Cores and kind of processor.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(": "));
    format!("{cores} cores, {}", model.map_or(std::env::consts::ARCH, |(_, name)| name))
}
