//! The whole run: out-of-fold copies of every model, the models themselves, the router, the file.

use crate::calibration::expected_error;
use crate::cross_fit::CrossFit;
use crate::data::Dataset;
use crate::feature::Features;
use crate::frontier::{Case, Operation, Prices, accuracy, agreement, choose, operations};
use crate::integer::Integers;
use crate::nn::loss::argmax;
use crate::nn::model::Style;
use crate::pool::Pool;
use crate::reference::Stochastic;
use crate::rng::Rng;
use crate::router::{Judgements, Router, TrainedRouter, Utilities, train_router};
use crate::task::{Choice, Task};
use crate::train::Recipe;
use crate::worth::Worth;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;
use secure_router_core::circuit::Slot;
use secure_router_core::clear::Nearest;
use secure_router_core::cost::Cost;
use secure_router_core::routing::{Advantage, Routing};
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::{Output, PoolSpec, RouterSpec};
use std::collections::HashMap;
use std::path::Path;

/// What the command line asks for.
pub(crate) struct Options<'a> {
    pub(crate) out: &'a Path,
    pub(crate) seed: u64,
    pub(crate) quick: bool,
    /// Models other than the task's own.
    pub(crate) chosen: Option<Vec<Choice>>,
    /// Kept in the pool file.
    pub(crate) command: String,
}

const QUICK_STEP: usize = 5;
/// Parts of a single validated fold, for the router's own cross-fitting.
const ROUTER_PARTS: usize = 5;

/// The train split and its task, shortened if `quick`, and what is fed in of an example. That follows from the whole
/// split in any case, as the test file does.
fn prepare(whole: Dataset, chosen: Option<&[Choice]>, quick: bool) -> Result<(Dataset, Task, Features)> {
    let features = Features::of(&whole, Task::of(&whole, chosen)?.arrangement);
    let train = if quick { whole.thinned(QUICK_STEP) } else { whole };
    let task = Task::of(&train, chosen)?;
    Ok((train, if quick { task.quick() } else { task }, features))
}

/// Trains the pool and writes it; prints the report.
pub(crate) fn run(train: Dataset, options: &Options) -> Result<()> {
    let started = std::time::Instant::now();
    let (train, task, features) = prepare(train, options.chosen.as_deref(), options.quick)?;
    let models = &task.models;
    let mut pool = assemble(&train, &task, Vec::new())?;
    let prices = Prices::of(&pool.spec, LinkProfile::UART)?;
    if let Some(n) = (1..models.len()).find(|n| prices.models[n - 1] > prices.models[*n]) {
        let [dearer, cheaper] = [n - 1, n].map(|m| &models[m].name);
        bail!("model `{dearer}` takes longer on a UART than `{cheaper}` behind it: put the models cheapest first");
    }
    let epochs = models.iter().map(|r| r.epochs).sum::<usize>() * (task.copies + 1);
    let run = CrossFit::new(&train, features, &task, options.seed, epochs as u64)?;

    run.bar.set_message("models");
    let (out_of_fold, finals) = run.train_models(models, true)?;
    run.bar.set_message("validating");
    let everything = run.real_inputs(|_| true);
    // The first model is the router's.
    let programs = finals.par_iter().zip(&models[1..]).map(|(model, recipe)| run.export(model, recipe, &everything));
    pool.programs = programs.collect::<Result<Vec<_>>>()?;
    let (mut right, mut out_of_range) = run.out_of_fold_hits(models, 1, &pool.spec, &out_of_fold)?;

    run.bar.set_message("router");
    let largest = finals.last().context("the pool has no model")?;
    let parts = if options.quick { 2 } else { ROUTER_PARTS };
    let judgements = Judgements::collect(&run, &out_of_fold, largest, task.variants, parts);
    let held_out = judgements.held_out();
    run.bar.inc_length((held_out.len() * task.router.epochs) as u64);
    let train_one = |&fold: &Option<usize>| train_router(&judgements, &task.router, fold, options.seed, &run.bar);
    let mut routers: Vec<TrainedRouter> = held_out.par_iter().map(train_one).collect();
    let last = routers.pop().context("no router was trained")?;
    let outputs = judgements.outputs(&routers);
    for ((outputs, right), &i) in outputs.iter().zip(&mut right).zip(&run.validated) {
        right[0] = argmax(&outputs[models.len()..]) == train.examples[i].label;
    }
    let unrounded = right.iter().filter(|right| right[0]).count() as f64 / right.len().max(1) as f64;
    let utilities = Utilities::fit(&outputs, &right, models.len());
    let export = |router: TrainedRouter| router.export(&task.router, &utilities);
    let routers = routers.into_iter().map(export).collect::<Result<Vec<Router>>>()?;
    let last = export(last)?;
    let calibration: Vec<f64> = (0..models.len())
        .map(|m| {
            let probabilities: Vec<f32> = outputs.iter().map(|o| utilities.probabilities(o)[m]).collect();
            expected_error(&probabilities, &right.iter().map(|r| r[m]).collect::<Vec<_>>())
        })
        .collect();
    let cases = run.router_cases(&pool.spec, &routers, &judgements.folds, right.clone(), &mut Nearest)?;
    // What is said of the first model is said of the router's, too.
    let outside = cases.iter().filter(|case| !case.in_range).count();
    out_of_range[0] = outside;
    let mut rounded = Stochastic(Rng::new(options.seed, "agreement"));
    let at_random = run.router_cases(&pool.spec, &routers, &judgements.folds, right, &mut rounded)?;
    let worth: Vec<Worth> = (0..models.len()).map(|m| worth_of(&cases, m)).collect();
    let unit = f64::from(1u32 << prices.step_bits()) / last.logit;
    let advantages: Vec<Advantage> = worth.iter().map(|w| w.advantage(utilities.step(), unit)).collect();
    let prices = prices.by_lead(advantages.clone(), unit);
    let curve = operations(&cases, &prices)?;
    let chosen = choose(&cases, &curve, &prices, &worth)?.context("no operation to choose from")?;
    pool.programs.insert(0, last.answering);
    pool.programs.push(last.integers);
    pool.spec.edition = Pool::edition(&pool.programs);
    run.bar.finish_and_clear();

    let mut report = Report::default();
    for (m, recipe) in models.iter().enumerate() {
        let float = if m == 0 { unrounded } else { run.float_accuracy(&out_of_fold, m) };
        report.line(
            &recipe.name,
            format!(
                "validation {:.2} % (float {:.2} %), {} out of range, {} parameters, {} bytes online, {:.0} ms on a UART, \
                 calibration error of its utility {:.2} points",
                100.0 * accuracy(&cases, m),
                100.0 * float,
                out_of_range[m],
                out_of_fold[0][m].clone().size(),
                prices.bytes[m],
                prices.models[m] as f64 / 1e3,
                100.0 * calibration[m]
            ),
        );
    }
    say!("what a lambda buys, on validation:");
    curve.iter().for_each(|operation| say!("  {}", described(operation)));
    report.line(
        "router",
        format!(
            "validation {}, routed as with rounding to nearest {:.2} %, {} out of range, {} parameters, {} bytes online",
            described(chosen),
            100.0 * agreement(&cases, &at_random, &prices, chosen.lambda)?,
            outside,
            last.size,
            prices.router_bytes
        ),
    );
    for (name, watched) in run.check_ranges(&pool)? {
        report.line(&format!("{name} ranges"), watched);
    }
    let numbers = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
    let mut about = report.entries;
    let entries = [
        ("task", train.name.clone()),
        ("kind", train.kind.clone()),
        ("classes", train.classes.join(",")),
        ("data", train.source.clone()),
        ("seed", options.seed.to_string()),
        ("command", options.command.clone()),
        ("input_step", run.features.step().to_string()),
        ("input_mean", numbers(&run.features.mean)),
        ("input_scale", numbers(&run.features.scale)),
        ("lambda", chosen.lambda.to_string()),
        ("utility_floor", utilities.floor.to_string()),
        ("advantages", advantages.iter().map(Advantage::to_string).collect::<Vec<_>>().join(",")),
        ("recipe", serde_json::to_string(&task.choices)?),
    ];
    let slots = (0..models.len() as u8).map(Slot::Model).chain([Slot::Router]);
    for ((name, _), slot) in pool.named()?.into_iter().zip(slots) {
        about.insert(format!("{name} cost"), Cost::of(&pool.spec, slot, 1)?.online.to_string());
    }
    about.extend(entries.map(|(key, text)| (key.to_owned(), text)));
    std::fs::create_dir_all(options.out).with_context(|| format!("cannot create {}", options.out.display()))?;
    let path = options.out.join("pool.safetensors");
    let size = pool.write(&path, about)?;
    say!("wrote {} ({size} bytes) in {:.0} s", path.display(), started.elapsed().as_secs_f64());
    Ok(())
}

/// What model `m` is worth beside the first.
fn worth_of(cases: &[Case], m: usize) -> Worth {
    let hit = |right: bool| f64::from(u8::from(right));
    let inside = cases.iter().filter(|case| case.in_range);
    Worth::fit(&inside.map(|case| (case.lead, hit(case.right[m]) - hit(case.right[0]))).collect::<Vec<_>>())
}

/// Prints each line and keeps it for the file's metadata.
#[derive(Default)]
struct Report {
    entries: HashMap<String, String>,
}

impl Report {
    fn line(&mut self, key: &str, text: String) {
        say!("{key}: {text}");
        self.entries.insert(key.to_owned(), text);
    }
}

fn described(operation: &Operation) -> String {
    let Operation { lambda, accuracy, time, cost, shares, .. } = operation;
    format!(
        "lambda {lambda}: {:.2} % in {:.0} ms ({:.1} % of the largest), shares {}",
        100.0 * accuracy,
        time / 1e3,
        100.0 * cost,
        percentages(shares)
    )
}

fn percentages(shares: &[f64]) -> String {
    shares.iter().map(|s| format!("{:.1} %", 100.0 * s)).collect::<Vec<_>>().join(" / ")
}

/// Trains the float counterpart of the largest model of the pool in `out`, with layer norm and softmax, on the same
/// folds, and prints what both reach on validation.
pub(crate) fn baseline(train: Dataset, pool: &Path, quick: bool) -> Result<()> {
    let (_, about) = Pool::read(pool)?;
    let entry = |key: &str| about.get(key).with_context(|| format!("{} names no {key}", pool.display()));
    ensure!(*entry("task")? == train.name, "{} is a pool of another task", pool.display());
    let chosen: Vec<Choice> = serde_json::from_str(entry("recipe")?)?;
    let seed = entry("seed")?.parse()?;
    let (train, task, features) = prepare(train, Some(&chosen), quick)?;
    let largest = task.models.last().context("the task has no model")?;
    say!("{}: {}: {}", train.name, largest.name, entry(&largest.name)?);
    let usual = Recipe { name: "usual".to_owned(), style: Style::Usual, ..largest.clone() };
    let run = CrossFit::new(&train, features, &task, seed, (usual.epochs * task.copies) as u64)?;
    let (out_of_fold, _) = run.train_models(&[usual], false)?;
    run.bar.finish_and_clear();
    say!(
        "{}: layer norm, softmax and GELU in float: validation {:.2} %, {} parameters",
        train.name,
        100.0 * run.float_accuracy(&out_of_fold, 0),
        out_of_fold[0][0].clone().size()
    );
    Ok(())
}

/// The public spec around the models' integers; the router's are still to come.
pub(crate) fn assemble(train: &Dataset, task: &Task, programs: Vec<Integers>) -> Result<Pool> {
    Ok(Pool { spec: spec_of(train, task, &task.models, Some(&task.router))?, programs })
}

/// The public spec of `models` and of their router, if they have one.
pub(crate) fn spec_of(train: &Dataset, task: &Task, models: &[Recipe], router: Option<&Recipe>) -> Result<PoolSpec> {
    let name = train.name.as_str().try_into().map_err(|_| anyhow!("the name `{}` is too long", train.name))?;
    let classes = train.classes.len().try_into()?;
    let router = router.map(|router| anyhow::Ok(RouterSpec { trunk: router.spec()?, answers: classes }));
    let features = Features::of(train, task.arrangement.clone());
    let words = features.words();
    let spec = PoolSpec {
        edition: [0; 16],
        task: name,
        input_len: features.inputs().try_into()?,
        input_bits: words.map_or(8, |words| words.bits + 1),
        input_frac: task.arrangement.input_frac(),
        word_bits: words.map_or(0, |words| words.bits),
        classes,
        output: Output::Label,
        routing: Routing::Open,
        models: models.iter().map(Recipe::named).collect::<Result<_>>()?,
        router: router.transpose()?,
    };
    spec.validate()?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::tests::toy;

    /// The test file is written once, for pools of all kinds.
    #[test]
    fn a_quick_run_feeds_in_what_a_whole_one_does() {
        let whole = toy("speech", 13, 9, 200);
        let (thinned, _, quick) = prepare(whole.clone(), None, true).unwrap();
        let (all, _, features) = prepare(whole.clone(), None, false).unwrap();
        assert!(all == whole && thinned.examples.len() < whole.examples.len());
        assert_eq!((&quick.mean, &quick.scale), (&features.mean, &features.scale));
    }
}
