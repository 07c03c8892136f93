//! Which shapes are worth their price on a link: candidates are costed by the kernel's cost model, judged out
//! of fold as integers, and fall by thirds (successive halving, Jamieson and Talwalkar 2016). What remains is
//! Pareto-optimal; a pool takes it in steps of price.

use crate::cross_fit::{CrossFit, in_parallel};
use crate::data::Dataset;
use crate::feature::Features;
use crate::frontier::Prices;
use crate::task::{Choice, Precision, Sizes, Task};
use crate::train::Recipe;
use anyhow::{Result, bail};
use secure_router_core::session::LinkProfile;

/// Part of the epochs, and folds to validate on, of each round.
const ROUNDS: [(f32, usize); 3] = [(0.2, 1), (0.5, 2), (1.0, 3)];
/// A pool's next cheaper model takes at most this part of the time of the one before.
const STEP: f64 = 0.6;
/// Most models of a recommended pool.
const MODELS: usize = 4;
/// Examples that are enough to rank shapes.
const EXAMPLES: usize = 20_000;
/// A model this far below the best is of no use to a router.
const USEFUL: f64 = 0.08;

/// What may be varied of a task's models.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub(crate) tokens: Vec<usize>,
    pub(crate) most_layers: usize,
    /// Columns of the embedding, where inputs are words, or else 0.
    pub(crate) columns: Vec<usize>,
}

impl Space {
    /// Without attention the stream's width is never opened: it costs nothing online.
    fn choices(&self) -> Vec<Choice> {
        let mut all = Vec::new();
        let mut add = |sizes: Sizes, precision| {
            let [tokens, _, heads, ffn, layers] = sizes;
            for &columns in &self.columns {
                let of_words = if columns > 0 { format!("c{columns}") } else { String::new() };
                let name = format!("t{tokens}h{heads}f{ffn}l{layers}{of_words}");
                all.push(Choice { name, sizes, columns, precision });
            }
        };
        for &tokens in &self.tokens {
            for (ffn, layers) in [(32, 1), (64, 1), (128, 1), (256, 1), (64, 2), (128, 2)] {
                add([tokens, 64, 0, ffn, layers], Precision::Usual);
            }
            if tokens == 1 {
                continue;
            }
            for [width, heads, ffn] in [[16, 1, 16], [32, 2, 64], [64, 4, 128]] {
                for layers in 1..=self.most_layers {
                    add([tokens, width, heads, ffn, layers], Precision::Usual);
                }
            }
            for precision in [Precision::Coarse, Precision::Fine] {
                add([tokens, 32, 2, 64, 1], precision);
            }
        }
        all
    }
}

/// A shape, its price and how good copies of it are on examples that they have not seen.
#[derive(Clone, Debug)]
struct Candidate {
    choice: Choice,
    /// Online time on the link, in microseconds.
    time: u64,
    bytes: u64,
    accuracy: f64,
}

impl Candidate {
    /// At least as good and as cheap, and not the same in both.
    fn beats(&self, other: &Self) -> bool {
        self.time <= other.time
            && self.accuracy >= other.accuracy
            && (self.time < other.time || self.accuracy > other.accuracy)
    }
}

/// Searches the space of `train`'s task and prints every round; the pool that it recommends, cheapest first.
pub(crate) fn search(train: &Dataset, link: LinkProfile, seed: u64, quick: bool) -> Result<Vec<Choice>> {
    let train = &train.clone().thinned(train.examples.len().div_ceil(EXAMPLES));
    let task = Task::of(train, None)?;
    let mut candidates = Vec::new();
    for choice in task.space.choices() {
        let spec = crate::run::spec_of(train, &task, &[task.recipe(&choice)], None)?;
        let prices = Prices::of(&spec, link)?;
        candidates.push(Candidate { choice, time: prices.models[0], bytes: prices.bytes[0], accuracy: 0.0 });
    }
    for (part, folds) in ROUNDS {
        let folds = folds.min(task.copies);
        say!("{} shapes, {:.0} % of the epochs, {folds} folds", candidates.len(), 100.0 * part);
        let of_epochs = if quick { part / 20.0 } else { part };
        judge(train, &task, &mut candidates, of_epochs, folds, seed)?;
        candidates.sort_by_key(|c| c.time);
        let front = front(&candidates);
        for (candidate, on) in candidates.iter().zip(&front) {
            let Candidate { choice: Choice { name, precision, .. }, time, bytes, accuracy } = candidate;
            let mark = if *on { "  <" } else { "" };
            say!(
                "  {name:16} {precision:?} {:6.2} % {bytes:7} bytes {:7.1} ms{mark}",
                100.0 * accuracy,
                *time as f64 / 1e3
            );
        }
        if part < 1.0 {
            candidates = better_third(candidates);
        }
    }
    let chosen = pool(candidates);
    let names: &[&str] = match chosen.len() {
        0 | 1 => bail!("no two shapes are worth their price: one model is all that this task needs"),
        2 => &["micro", "large"],
        3 => &["micro", "small", "large"],
        _ => &["micro", "small", "medium", "large"],
    };
    let mut models: Vec<Choice> =
        chosen.into_iter().zip(names).map(|(c, name)| Choice { name: (*name).to_owned(), ..c.choice }).collect();
    // The cheapest is the router's trunk, whose rounding changes routes.
    models.iter_mut().take(1).for_each(|first| first.precision = Precision::Fine);
    Ok(models)
}

/// Sets every candidate's accuracy.
fn judge(train: &Dataset, task: &Task, candidates: &mut [Candidate], part: f32, folds: usize, seed: u64) -> Result<()> {
    let mut task = task.clone();
    task.copies = folds;
    let recipes: Vec<Recipe> = candidates
        .iter()
        .map(|c| {
            let recipe = task.recipe(&c.choice);
            Recipe { epochs: ((recipe.epochs as f32 * part) as usize).max(2), ..recipe }
        })
        .collect();
    let epochs = recipes.iter().map(|r| r.epochs * task.copies).sum::<usize>();
    let run = CrossFit::new(train, Features::of(train, task.arrangement.clone()), &task, seed, epochs as u64)?;
    // Longest first, so that no core idles at the end.
    let mut jobs: Vec<usize> = (0..recipes.len()).collect();
    jobs.sort_by_key(|&i| std::cmp::Reverse(candidates[i].time));
    let judged = in_parallel(&jobs, |&i| {
        let copies: Vec<_> = (0..task.copies).map(|fold| vec![run.train_one(&recipes[i], Some(fold), None)]).collect();
        let recipe = &recipes[i..=i];
        let spec = crate::run::spec_of(train, &task, recipe, None)?;
        let (right, _) = run.out_of_fold_hits(recipe, 0, &spec, &copies)?;
        anyhow::Ok(right.iter().filter(|hit| hit[0]).count() as f64 / right.len().max(1) as f64)
    });
    for (i, accuracy) in jobs.into_iter().zip(judged) {
        candidates[i].accuracy = accuracy?;
    }
    run.bar.finish_and_clear();
    Ok(())
}

/// Which candidates no other one beats.
fn front(candidates: &[Candidate]) -> Vec<bool> {
    candidates.iter().map(|c| !candidates.iter().any(|other| other.beats(c))).collect()
}

/// Front after front, until a third are kept.
fn better_third(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let enough = candidates.len().div_ceil(3);
    let mut kept = Vec::new();
    while kept.len() < enough {
        let front = front(&candidates);
        let mut on = front.iter();
        let (best, rest) = candidates.into_iter().partition(|_| on.next() == Some(&true));
        kept.extend::<Vec<_>>(best);
        candidates = rest;
    }
    kept
}

/// Of the Pareto-optimal candidates the best, cheaper ones in steps, and at least the cheapest.
fn pool(candidates: Vec<Candidate>) -> Vec<Candidate> {
    let best = candidates.iter().map(|c| c.accuracy).fold(0.0, f64::max);
    let mut on = front(&candidates).into_iter();
    let mut rest: Vec<Candidate> = candidates.into_iter().filter(|_| on.next() == Some(true)).collect();
    rest.retain(|c| c.accuracy >= best - USEFUL);
    rest.sort_by_key(|c| c.time);
    let cheapest = rest.first().cloned();
    let mut chosen: Vec<Candidate> = Vec::new();
    for candidate in rest.into_iter().rev() {
        let most = chosen.last().map_or(f64::MAX, |last| STEP * last.time as f64);
        if candidate.time as f64 <= most && chosen.len() < MODELS {
            chosen.push(candidate);
        }
    }
    if let (1, Some(cheapest)) = (chosen.len(), cheapest)
        && cheapest.time < chosen[0].time
    {
        chosen.push(cheapest);
    }
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::tests::{KINDS, toy};

    fn candidate(time: u64, accuracy: f64) -> Candidate {
        let choice = Choice { name: time.to_string(), sizes: [1, 8, 0, 8, 1], columns: 0, precision: Precision::Usual };
        Candidate { choice, time, bytes: time, accuracy }
    }

    fn times(candidates: Vec<Candidate>) -> Vec<u64> {
        candidates.iter().map(|c| c.time).collect()
    }

    #[test]
    fn a_third_is_the_best_fronts() {
        // 10 and 40 are on the front, 20 is on the next one, 30 and 50 are beaten twice.
        let all = [(10, 0.9), (20, 0.85), (30, 0.8), (40, 0.95), (50, 0.8)].map(|(t, a)| candidate(t, a));
        assert_eq!(times(better_third(all.to_vec())), [10, 40]);
        let more =
            [(10, 0.9), (11, 0.89), (12, 0.88), (13, 0.87), (14, 0.86), (15, 0.85)].map(|(t, a)| candidate(t, a));
        assert_eq!(times(better_third(more.to_vec())), [10, 11]);
    }

    #[test]
    fn a_pool_steps_down_the_front() {
        let all =
            [(10, 0.90), (15, 0.91), (30, 0.93), (35, 0.92), (90, 0.94), (100, 0.95)].map(|(t, a)| candidate(t, a));
        assert_eq!(times(pool(all.to_vec())), [15, 30, 100]);
        // Too far below the best is of no use, and the cheapest is kept though it is no step away.
        assert_eq!(times(pool(vec![candidate(1, 0.5), candidate(80, 0.9), candidate(100, 0.95)])), [80, 100]);
        assert_eq!(times(pool(vec![candidate(100, 0.95)])), [100]);
    }

    #[test]
    fn every_shape_of_every_space_is_priced() {
        for (kind, channels, rows) in KINDS {
            let train = toy(kind, channels, rows, 40);
            let task = Task::of(&train, None).unwrap();
            for choice in task.space.choices() {
                let spec = crate::run::spec_of(&train, &task, &[task.recipe(&choice)], None).unwrap();
                assert!(Prices::of(&spec, LinkProfile::BLE).unwrap().models[0] > 0, "{kind} {}", choice.name);
            }
        }
    }
}
