//! Trains a pool of integer transformers and their router: see `secure-router-train --help`.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test fails by panicking"))]

/// `println!` for reports: nobody reading them is no reason to lose what was trained.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod bits;
mod calibration;
mod cross_fit;
mod data;
mod evaluate;
mod feature;
mod frontier;
mod held_out;
mod import;
mod integer;
mod lexicon;
mod motion;
mod nn;
mod npy;
mod pool;
mod reference;
mod rng;
mod router;
mod run;
mod search;
mod task;
mod train;
mod worth;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use data::Dataset;
use held_out::HeldOut;
use import::Columns;
use secure_router_core::session::{LinkProfile, RECOMMENDED_LAMBDA};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Split a task's raw data (see fetch.sh) into a train file and a test file
    Split {
        /// speech, sensor, image or text
        #[arg(long)]
        task: String,
        /// Directory that fetch.sh filled; the train file goes there
        #[arg(long)]
        data: PathBuf,
        /// Directory of the pool; the test file goes there
        #[arg(long)]
        out: PathBuf,
    },
    /// Train a pool and its router
    Train {
        /// Public name of the task
        #[arg(long)]
        task: String,
        /// Directory that holds the train file of `split`, or your own labelled examples: a CSV file
        /// with a header line, or JSON lines (.jsonl)
        #[arg(long)]
        data: PathBuf,
        /// Directory of the pool; of your own examples, a fifth becomes the test file there
        #[arg(long)]
        out: PathBuf,
        /// Everything random follows from this number
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A smoke test in seconds, of little accuracy
        #[arg(long)]
        quick: bool,
        /// Models that `search` chose, in place of the task's own
        #[arg(long)]
        models: Option<PathBuf>,
        #[command(flatten)]
        columns: Columns,
    },
    /// Search depth, width, tokens and bits for the models that are worth their price on a link
    Search {
        /// Public name of the task
        #[arg(long)]
        task: String,
        /// As for `train`
        #[arg(long)]
        data: PathBuf,
        /// Where the online phase will run
        #[arg(long, value_name = "uart|ble|lan", default_value = "uart", value_parser = named_link)]
        link: LinkProfile,
        /// File for `train --models`
        #[arg(long)]
        out: PathBuf,
        /// Everything random follows from this number
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// A smoke test, of little accuracy
        #[arg(long)]
        quick: bool,
        #[command(flatten)]
        columns: Columns,
    },
    /// Train a float transformer of the size of a pool's largest model, for comparison
    Baseline {
        /// Directory that holds the train file
        #[arg(long)]
        data: PathBuf,
        /// Directory of the pool; its seed decides the folds
        #[arg(long)]
        pool: PathBuf,
        /// A smoke test in seconds, of little accuracy
        #[arg(long)]
        quick: bool,
    },
    /// Measure a pool on its test file
    Evaluate {
        /// Directory of the pool
        #[arg(long)]
        pool: PathBuf,
        /// The test file, if it is not in the pool's directory
        #[arg(long)]
        test: Option<PathBuf>,
        /// Weight of cost, in 1/256, in place of the pool's own
        #[arg(long, value_parser = clap::value_parser!(u16).range(..i64::from(RECOMMENDED_LAMBDA)))]
        lambda: Option<u16>,
    },
}

fn named_link(text: &str) -> Result<LinkProfile, String> {
    LinkProfile::named(text).ok_or_else(|| "a link is uart, ble or lan".to_owned())
}

const TRAIN_FILE: &str = "train.safetensors";
const POOL_FILE: &str = "pool.safetensors";
const TEST_FILE: &str = "test.safetensors";

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("secure-router-train: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Split { task, data, out } => {
            let split = import::split(&task, &data)?;
            data::write_train(&data.join(TRAIN_FILE), &split.train)?;
            write_test(&out, &split.train, &split.test)
        }
        Command::Train { task, data, out, seed, quick, models, columns } => {
            let mut command = format!("secure-router-train train --task {task} --seed {seed}");
            for (given, flag) in
                [(quick, " --quick"), (models.is_some(), " --models FILE"), (columns.motion, " --motion")]
            {
                command.push_str(if given { flag } else { "" });
            }
            // These decide the split.
            if !data.is_dir() {
                command.push_str(&format!(" --data FILE --label {}", columns.label));
                columns.group.iter().for_each(|group| command.push_str(&format!(" --group {group}")));
            }
            let (train, test) = examples(&task, &data, columns)?;
            if let Some(test) = test {
                write_test(&out, &train, &test)?;
            }
            let chosen = models.as_deref().map(read_models).transpose()?;
            run::run(train, &run::Options { out: &out, seed, quick, chosen, command })
        }
        Command::Search { task, data, link, out, seed, quick, columns } => {
            let (train, _) = examples(&task, &data, columns)?;
            let chosen = search::search(&train, link, seed, quick)?;
            let lines: Vec<String> = chosen.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
            let text = format!("[\n  {}\n]\n", lines.join(",\n  "));
            say!("{}", text.trim_end());
            std::fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))
        }
        Command::Baseline { data, pool, quick } => {
            run::baseline(data::read_train(&data.join(TRAIN_FILE))?, &pool.join(POOL_FILE), quick)
        }
        Command::Evaluate { pool, test, lambda } => {
            evaluate::run(&pool.join(POOL_FILE), &test.unwrap_or_else(|| pool.join(TEST_FILE)), lambda)
        }
    }
}

/// The train split of a task; and of the user's own examples the test split, which is still to be written.
fn examples(task: &str, data: &Path, columns: Columns) -> Result<(Dataset, Option<HeldOut>)> {
    let (train, test) = if data.is_dir() {
        (data::read_train(&data.join(TRAIN_FILE))?, None)
    } else {
        ensure!(!import::FETCHED.contains(&task), "`{task}` is taken: give your task another name");
        let split = import::read_table(data, task, &columns)?;
        (split.train, Some(split.test))
    };
    ensure!(train.name == task, "{} holds the task `{}`, not `{task}`", data.display(), train.name);
    Ok((train, test))
}

fn read_models(path: &Path) -> Result<Vec<task::Choice>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a list of models", path.display()))
}

/// The test half, as the train half normalises it.
fn write_test(out: &Path, train: &Dataset, test: &HeldOut) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let task = task::Task::of(train, None)?;
    let features = feature::Features::of(train, task.arrangement);
    test.write(&out.join(TEST_FILE), &features)?;
    say!("{} train and {} test examples", train.examples.len(), test.len());
    Ok(())
}
