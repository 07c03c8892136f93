//! Measures a finished pool on the test file, once, with the integer reference.

use crate::data::{TestSet, read_test};
use crate::nn::loss::argmax;
use crate::pool::Pool;
use crate::reference::{Interpreter, Stochastic};
use crate::rng::Rng;
use crate::router::Prices;
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use secure_router_core::circuit::Program;
use secure_router_core::clear::{Nearest, Reference};
use std::path::Path;

/// Inputs that one interpreter runs before it is made anew, for another thread.
const CHUNK: usize = 250;

/// Prints the accuracy of every model and of the routed pool, rounding to nearest and as the
/// protocol rounds.
pub(crate) fn run(pool_file: &Path, test_file: &Path) -> Result<()> {
    let (pool, about) = Pool::read(pool_file)?;
    let test = read_test(test_file)?;
    ensure!(!test.labels.is_empty(), "the test file is empty");
    ensure!(
        test.input_len == usize::from(pool.spec.input_len),
        "the test file's inputs have {} values, the pool's {}",
        test.input_len,
        pool.spec.input_len
    );
    let lambda = about.get("lambda").context("the pool file names no lambda")?;
    let lambda: u16 = lambda.parse().context("lambda is not a number of 16 bits")?;
    let prices = Prices::of(&pool.spec)?;
    let scores = prices.scores(lambda)?;
    let named = pool.named()?;
    println!("lambda {lambda}/256, {} test examples", test.labels.len());
    for rounding in ["nearest", "stochastic"] {
        println!("rounding: {rounding}");
        let answers = named
            .iter()
            .zip(&pool.programs)
            .map(|((_, program), integers)| {
                let parts = test.inputs.par_chunks(CHUNK * test.input_len).enumerate().map(|(part, inputs)| {
                    let mut interpreter = Interpreter::new(*program, integers)?;
                    let inputs = inputs.chunks_exact(test.input_len);
                    if rounding == "nearest" {
                        return Ok(answers(&mut interpreter, inputs, &scores, &mut Nearest));
                    }
                    let mut reference = Stochastic(Rng::new(part as u64, "evaluate"));
                    Ok(answers(&mut interpreter, inputs, &scores, &mut reference))
                });
                Ok(parts.collect::<Result<Vec<_>>>()?.concat())
            })
            .collect::<Result<Vec<Vec<Option<usize>>>>>()?;
        let (chosen, models) = answers.split_last().context("empty pool")?;
        for ((name, program), (answers, bytes)) in named.iter().zip(models.iter().zip(&prices.bytes)) {
            let Program::Model { .. } = program else {
                continue;
            };
            let right = hits(answers, &test);
            let out_of_range = answers.iter().filter(|a| a.is_none()).count();
            println!(
                "  {name}: {right} of {} right ({:.2} %), {out_of_range} out of range, {bytes} bytes online",
                test.labels.len(),
                percent(right, &test)
            );
        }
        let routed: Vec<Option<usize>> = chosen.iter().enumerate().map(|(i, m)| m.and_then(|m| models[m][i])).collect();
        let spent: u64 = chosen.iter().flatten().map(|&m| prices.routed[m]).sum();
        let time = spent as f64 / test.labels.len() as f64;
        let shares: Vec<String> = (0..models.len())
            .map(|m| format!("{:.1} %", percent(chosen.iter().filter(|c| **c == Some(m)).count(), &test)))
            .collect();
        let right = hits(&routed, &test);
        println!(
            "  routed: {right} of {} right ({:.2} %) in {:.0} ms ({:.1} % of the largest), shares {}, router {} bytes",
            test.labels.len(),
            percent(right, &test),
            time / 1e3,
            100.0 * time / prices.dearest(),
            shares.join(" / "),
            prices.router_bytes
        );
    }
    Ok(())
}

/// The class (or the chosen model) per example; `None` where a value left its range.
fn answers<'i>(
    interpreter: &mut Interpreter,
    inputs: impl Iterator<Item = &'i [i8]>,
    scores: &[i32],
    reference: &mut impl Reference,
) -> Vec<Option<usize>> {
    inputs.map(|i| interpreter.run(i, scores, reference).ok().map(argmax)).collect()
}

fn hits(answers: &[Option<usize>], test: &TestSet) -> usize {
    answers.iter().zip(&test.labels).filter(|(a, label)| **a == Some(**label)).count()
}

fn percent(count: usize, test: &TestSet) -> f64 {
    100.0 * count as f64 / test.labels.len() as f64
}
