//! Trains a pool of integer transformers and their router: see `secure-router-train --help`.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod bits;
mod cross_fit;
mod data;
mod evaluate;
mod feature;
mod frontier;
mod import;
mod integer;
mod lexicon;
mod nn;
mod npy;
mod pool;
mod reference;
mod rng;
mod router;
mod run;
mod task;
mod train;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use import::Columns;
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
        /// Column of the class, in your own examples
        #[arg(long, default_value = "label")]
        label: String,
        /// Column of what is never split, in your own examples: a person, a device, a session
        #[arg(long)]
        group: Option<String>,
    },
    /// Train a float transformer of the largest model's size, for comparison
    Baseline {
        /// Directory that holds the train file
        #[arg(long)]
        data: PathBuf,
        /// Everything random follows from this number
        #[arg(long, default_value_t = 1)]
        seed: u64,
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
    },
}

const TRAIN_FILE: &str = "train.safetensors";
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
            write_test(&out, &split)
        }
        Command::Train { task, data, out, seed, quick, label, group } => {
            let flag = |given: bool| if given { " --quick" } else { "" };
            let command = format!("secure-router-train train --task {task} --seed {seed}{}", flag(quick));
            let train = if data.is_dir() {
                data::read_train(&data.join(TRAIN_FILE))?
            } else {
                ensure!(!import::FETCHED.contains(&task.as_str()), "`{task}` is taken: give your task another name");
                let split = import::read_table(&data, &task, &Columns { label, group })?;
                write_test(&out, &split)?;
                split.train
            };
            ensure!(train.name == task, "{} holds the task `{}`, not `{task}`", data.display(), train.name);
            run::run(train, &run::Options { out: &out, seed, quick, command })
        }
        Command::Baseline { data, seed, quick } => {
            run::baseline(data::read_train(&data.join(TRAIN_FILE))?, seed, quick)
        }
        Command::Evaluate { pool, test } => {
            evaluate::run(&pool.join("pool.safetensors"), &test.unwrap_or_else(|| pool.join(TEST_FILE)))
        }
    }
}

/// The test half, as the train half normalises it.
fn write_test(out: &Path, split: &data::Split) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let task = task::Task::of(&split.train)?;
    let features = feature::Features::of(&split.train, task.arrangement);
    data::write_test(&out.join(TEST_FILE), &split.test, &features)?;
    println!("{} train and {} test examples", split.train.examples.len(), split.test.examples.len());
    Ok(())
}
