//! Measures a finished pool on the test file, once, with the integer reference.

use crate::frontier::{Case, Prices, accuracy, agreement, operate};
use crate::held_out::TestSet;
use crate::nn::loss::argmax;
use crate::pool::Pool;
use crate::reference::{Estimates, Interpreter, Stochastic};
use crate::rng::Rng;
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use secure_router_core::clear::{Nearest, Reference};
use secure_router_core::routing::{Advantage, Bias};
use secure_router_core::session::LinkProfile;
use std::path::Path;

/// Inputs that one interpreter runs before it is made anew, for another thread.
const CHUNK: usize = 250;

/// Prints the accuracy of every model and of the routed pool, rounding to nearest and as the
/// protocol rounds.
pub(crate) fn run(pool_file: &Path, test_file: &Path, lambda: Option<u16>) -> Result<()> {
    let (pool, about) = Pool::read(pool_file)?;
    let test = TestSet::read(test_file)?;
    ensure!(!test.labels.is_empty(), "the test file is empty");
    ensure!(
        test.input_len == usize::from(pool.spec.input_len),
        "the test file's inputs have {} values, the pool's {}",
        test.input_len,
        pool.spec.input_len
    );
    let own = about.get("lambda").context("the pool file names no lambda")?;
    let own: u16 = own.parse().context("lambda is not a number of 16 bits")?;
    let lambda = lambda.unwrap_or(own);
    let advantages = about.get("advantages").context("the pool file names no advantages")?;
    let advantages: Vec<Advantage> = advantages.split(',').map(str::parse).collect::<Result<_, _>>()?;
    say!("lambda {lambda}/256, {} test examples", test.labels.len());
    // Bytes are the same on every link.
    let anywhere = Prices::of(&pool.spec, LinkProfile::UART)?;
    let mut nearest: Vec<Case> = Vec::new();
    for rounding in [Rounding::Nearest, Rounding::Stochastic] {
        say!("rounding: {rounding:?}");
        let (cases, out_of_range) = cases(&pool, &test, rounding)?;
        for (m, model) in pool.spec.models.iter().enumerate() {
            let (share, bytes) = (100.0 * accuracy(&cases, m), anywhere.bytes[m]);
            say!("  {}: {share:.2} %, {} out of range, {bytes} bytes", model.name, out_of_range[m]);
        }
        let failed = cases.iter().filter(|c| !c.in_range).count();
        say!("  router: {failed} out of range, {} bytes", anywhere.router_bytes);
        for (link, profile) in LinkProfile::NAMED {
            let prices = Prices::of(&pool.spec, profile)?.by_lead(advantages.clone(), 1.0);
            let routed = operate(&cases, &prices, lambda)?;
            let shares: Vec<String> = routed.shares.iter().map(|s| format!("{:.1} %", 100.0 * s)).collect();
            say!(
                "  {link}: routed {:.2} % in {:.0} ms, {:.2} times faster than the largest, shares {}",
                100.0 * routed.accuracy,
                routed.time / 1e3,
                prices.dearest() / routed.time,
                shares.join(" / ")
            );
            if !nearest.is_empty() {
                let same = agreement(&nearest, &cases, &prices, lambda)?;
                say!("  {link}: routed as with rounding to nearest {:.2} %", 100.0 * same);
            }
        }
        nearest = cases;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Rounding {
    Nearest,
    Stochastic,
}

/// Every test example as the router and all models judge it, and per model how often a value left
/// its range.
fn cases(pool: &Pool, test: &TestSet, rounding: Rounding) -> Result<(Vec<Case>, Vec<usize>)> {
    let models = pool.spec.models.len();
    let parts = test.inputs.par_chunks(CHUNK * test.input_len).zip(test.labels.par_chunks(CHUNK)).enumerate();
    let judged = parts.map(|(part, (inputs, labels))| match rounding {
        Rounding::Nearest => judge(pool, inputs, labels, &mut Nearest),
        Rounding::Stochastic => judge(pool, inputs, labels, &mut Stochastic(Rng::new(part as u64, "evaluate"))),
    });
    let judged = judged.collect::<Result<Vec<_>>>()?;
    let mut out_of_range = vec![0; models];
    for (_, failed) in &judged {
        out_of_range.iter_mut().zip(failed).for_each(|(sum, f)| *sum += f);
    }
    Ok((judged.into_iter().flat_map(|(cases, _)| cases).collect(), out_of_range))
}

fn judge(
    pool: &Pool,
    inputs: &[i16],
    labels: &[usize],
    reference: &mut impl Reference,
) -> Result<(Vec<Case>, Vec<usize>)> {
    let models = pool.spec.models.len();
    let mut out_of_range = vec![0; models];
    let empty = || Case { utilities: vec![0; models], lead: 0.0, right: Vec::new(), in_range: true };
    let mut cases: Vec<Case> = labels.iter().map(|_| empty()).collect();
    let step = f64::from(1u32 << Prices::of(&pool.spec, LinkProfile::UART)?.step_bits());
    for ((m, (_, program)), integers) in pool.named()?.iter().enumerate().zip(&pool.programs) {
        let mut interpreter = Interpreter::new(*program, integers)?;
        let size = inputs.len() / labels.len();
        for ((input, label), case) in inputs.chunks_exact(size).zip(labels).zip(&mut cases) {
            let told = interpreter.run(input, Bias::NONE, reference).ok();
            if m < models {
                case.right.push(told.map(argmax) == Some(*label));
                out_of_range[m] += usize::from(told.is_none());
            } else if let Some(told) = told {
                // The answer whose lead decides: a run of the first model alone rounds otherwise.
                case.right[0] = argmax(&told[models..]) == *label;
                let Estimates { utilities, lead, fits } = interpreter.estimates()?;
                (case.utilities, case.lead, case.in_range) = (utilities, f64::from(lead) / step, fits);
            } else {
                case.in_range = false;
            }
        }
    }
    Ok((cases, out_of_range))
}
