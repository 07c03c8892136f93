//! What was recorded of one pool on its test split, and every figure that follows from it.

use std::collections::BTreeMap;

use secure_router_core::session::LinkProfile;
use serde::{Deserialize, Serialize};

use super::gates::ProgramCost;
use super::plane::{Point, Worth, mixture, oracle, worth};
use super::statistics::{Bin, calibration_error, entropy, information, mean, noise_floor, reliability};

/// Version of [`Records`] as JSON.
pub(crate) const VERSION: u32 = 1;

/// Everything that was recorded of one pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Records {
    pub(crate) version: u32,
    pub(crate) task: String,
    /// The seed that the pool was trained from.
    pub(crate) seed: String,
    /// How the pool was trained, and what measured it, where and when.
    pub(crate) trained_by: String,
    pub(crate) measured_by: String,
    pub(crate) machine: String,
    pub(crate) date: String,
    pub(crate) test_examples: usize,
    pub(crate) classes: Vec<String>,
    /// The pool's own lambda.
    pub(crate) lambda: u16,
    pub(crate) links: Vec<Link>,
    /// The models, cheapest first, then the router.
    pub(crate) programs: Vec<ProgramCost>,
    /// Online bytes both ways and half trips of a request that is routed to each model.
    pub(crate) routed_costs: Vec<(u64, u32)>,
    /// Label of each input.
    pub(crate) labels: Vec<usize>,
    /// Utilities of each input in clear, as probabilities; none where a value left its range.
    pub(crate) utilities: Vec<Vec<f64>>,
    /// Per model, under the protocol.
    pub(crate) fixed: Vec<Answers>,
    /// Per lambda and link that the router reckons with.
    pub(crate) routed: Vec<Routed>,
}

/// A link of the tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) bytes_per_second: u32,
    pub(crate) round_trip_us: u32,
}

impl Link {
    fn time_ms(&self, (bytes, half_trips): (u64, u32)) -> f64 {
        let profile = LinkProfile { bytes_per_second: self.bytes_per_second, round_trip_us: self.round_trip_us };
        profile.latency_us(bytes, half_trips) as f64 / 1e3
    }
}

/// Answers to all inputs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answers {
    pub(crate) classes: Vec<usize>,
    /// Computing of all parties, with loopback.
    pub(crate) ms: Vec<f32>,
}

/// Answers to all inputs, by the router.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Routed {
    pub(crate) lambda: u16,
    pub(crate) link: String,
    /// The model that each input was sent to.
    pub(crate) routes: Vec<usize>,
    /// The model that the reference in clear, rounding to nearest, sends it to; none where a value left its range.
    pub(crate) clear_routes: Vec<Option<usize>>,
    pub(crate) answers: Answers,
}

/// All figures of one pool.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) accuracy: BTreeMap<String, f64>,
    /// Online bytes of the router over those of the largest model.
    pub(crate) router_overhead: f64,
    pub(crate) links: BTreeMap<String, OnLink>,
    pub(crate) calibration: BTreeMap<String, Calibration>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct OnLink {
    pub(crate) fixed: BTreeMap<String, Point>,
    /// The router at each lambda.
    pub(crate) router: Vec<Operation>,
    /// Points of a router that knows the answers.
    pub(crate) oracle: Vec<Point>,
    #[serde(flatten)]
    pub(crate) worth: Worth,
}

/// The router at one lambda.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Operation {
    pub(crate) lambda: u16,
    pub(crate) accuracy: f64,
    pub(crate) latency_ms: f64,
    pub(crate) bytes: f64,
    pub(crate) round_trips: f64,
    /// Against the largest model.
    pub(crate) speed_up: f64,
    pub(crate) points_lost: f64,
    /// A blind mixture and a router that knows the answers, at this latency.
    pub(crate) random: f64,
    pub(crate) oracle: f64,
    /// Part of the way from the one to the other, if there is a way.
    pub(crate) gap_closed: Option<f64>,
    pub(crate) above_all_lines: bool,
    /// Part of the routes that are those in clear, rounding to nearest.
    pub(crate) agreement: f64,
    pub(crate) shares: Vec<f64>,
    /// Shares by class.
    pub(crate) shares_by_class: Vec<Vec<f64>>,
    /// Bits that the route tells of the label, and of the answer; bits found where there is nothing; bits of a route.
    pub(crate) label_bits: f64,
    pub(crate) answer_bits: f64,
    pub(crate) floor_bits: f64,
    pub(crate) route_bits: f64,
}

impl Operation {
    pub(crate) fn point(&self) -> Point {
        Point { latency_ms: self.latency_ms, accuracy: self.accuracy }
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Calibration {
    pub(crate) error: f64,
    pub(crate) bins: Vec<Bin>,
}

impl Records {
    pub(crate) fn models(&self) -> usize {
        self.fixed.len()
    }

    pub(crate) fn model(&self, index: usize) -> &str {
        self.programs.get(index).map_or("", |program| &program.name)
    }

    fn right(&self, answers: &Answers, input: usize) -> bool {
        answers.classes.get(input) == self.labels.get(input)
    }

    fn accuracy(&self, answers: &Answers) -> f64 {
        mean((0..self.labels.len()).map(|i| f64::from(self.right(answers, i))))
    }

    pub(crate) fn figures(&self) -> Figures {
        let named = |of: &dyn Fn(usize) -> f64| (0..self.models()).map(|m| (self.model(m).to_owned(), of(m))).collect();
        let bytes = |program: &ProgramCost| (program.up + program.down) as f64;
        let largest = self.models().checked_sub(1).and_then(|last| self.programs.get(last)).map_or(1.0, bytes);
        Figures {
            accuracy: named(&|m| self.fixed.get(m).map_or(0.0, |answers| self.accuracy(answers))),
            router_overhead: self.programs.last().map_or(0.0, bytes) / largest,
            links: self.links.iter().map(|link| (link.name.clone(), self.on_link(link))).collect(),
            calibration: self.calibration(),
        }
    }

    fn calibration(&self) -> BTreeMap<String, Calibration> {
        let mut all: BTreeMap<String, Vec<(f64, bool)>> = BTreeMap::new();
        for (m, answers) in self.fixed.iter().enumerate() {
            let each =
                self.utilities.iter().enumerate().filter_map(|(i, u)| Some((*u.get(m)?, self.right(answers, i))));
            all.insert(self.model(m).to_owned(), each.collect());
        }
        let own = self.routed.iter().find(|routed| routed.lambda == self.lambda);
        if let Some(routed) = own {
            let each = routed.routes.iter().zip(&self.utilities).enumerate();
            let of = |(i, (m, u)): (usize, (&usize, &Vec<f64>))| Some((*u.get(*m)?, self.right(&routed.answers, i)));
            all.insert("routed".to_owned(), each.filter_map(of).collect());
        }
        let of = |(name, predictions): (String, Vec<(f64, bool)>)| {
            let bins = reliability(&predictions);
            (name, Calibration { error: calibration_error(&bins), bins })
        };
        all.into_iter().map(of).collect()
    }

    fn on_link(&self, link: &Link) -> OnLink {
        let program_time = |m: usize| self.programs.get(m).map_or(0.0, |p| link.time_ms((p.up + p.down, p.half_trips)));
        let fixed: Vec<Point> = self
            .fixed
            .iter()
            .enumerate()
            .map(|(m, answers)| Point {
                latency_ms: program_time(m) + mean(answers.ms.iter().map(|ms| f64::from(*ms))),
                accuracy: self.accuracy(answers),
            })
            .collect();
        let (routed, right) = (self.routed_ms(link), self.hits());

        let of_link = self.routed.iter().filter(|r| r.link == link.name);
        let router: Vec<Operation> = of_link.map(|r| self.operation(r, &fixed, &right, &routed)).collect();
        let named: Vec<(String, Point)> =
            fixed.iter().enumerate().map(|(m, point)| (self.model(m).to_owned(), *point)).collect();
        let slowest = fixed.last().map_or(1.0, |largest| largest.latency_ms);
        let steps = (0..=60).map(|i| {
            let low = routed.iter().copied().fold(f64::MAX, f64::min);
            low * (slowest / low).powf(f64::from(i) / 60.0)
        });
        OnLink {
            oracle: steps
                .map(|latency_ms| Point { latency_ms, accuracy: oracle(&right, &right, &routed, latency_ms) })
                .collect(),
            worth: worth(&named, &router.iter().map(|o| (o.lambda.to_string(), o.point())).collect::<Vec<_>>()),
            fixed: named.into_iter().collect(),
            router,
        }
    }

    /// Of each input: is each model's answer right?
    pub(crate) fn hits(&self) -> Vec<Vec<bool>> {
        let of_input = |i: usize| self.fixed.iter().map(|answers| self.right(answers, i)).collect();
        (0..self.labels.len()).map(of_input).collect()
    }

    /// What a request takes that is routed to each model: its time on the link, and the mean computing of all runs.
    pub(crate) fn routed_ms(&self, link: &Link) -> Vec<f64> {
        let computing = |m: usize| {
            let taken = self.routed.iter().flat_map(|r| r.routes.iter().zip(&r.answers.ms).filter(|(to, _)| **to == m));
            let taken: Vec<f64> = taken.map(|(_, ms)| f64::from(*ms)).collect();
            // A route that was never taken: the router, whose trunk is the first model, and then the model.
            let alone = |m: usize| self.fixed.get(m).map_or(0.0, |a| mean(a.ms.iter().map(|ms| f64::from(*ms))));
            match (taken.is_empty(), m) {
                (false, _) => mean(taken.into_iter()),
                (true, 0) => alone(0),
                (true, _) => alone(0) + alone(m),
            }
        };
        self.routed_costs.iter().enumerate().map(|(m, cost)| link.time_ms(*cost) + computing(m)).collect()
    }

    fn operation(&self, routed: &Routed, fixed: &[Point], right: &[Vec<bool>], routed_ms: &[f64]) -> Operation {
        let costs = || routed.routes.iter().filter_map(|m| self.routed_costs.get(*m)).copied();
        // Not this run's own computing: on a busy machine two runs differ by more than two routes do.
        let latency_ms = mean(routed.routes.iter().filter_map(|m| routed_ms.get(*m)).copied());
        let accuracy = self.accuracy(&routed.answers);
        let largest = fixed.last().copied().unwrap_or(Point { latency_ms: 1.0, accuracy: 0.0 });
        let (random, oracle) = (mixture(fixed, latency_ms), oracle(right, right, routed_ms, latency_ms));
        let share = |inputs: &[usize], model: usize| {
            mean(inputs.iter().map(|i| f64::from(u8::from(routed.routes.get(*i) == Some(&model)))))
        };
        let all: Vec<usize> = (0..self.labels.len()).collect();
        let shares = |inputs: &[usize]| (0..self.models()).map(|m| share(inputs, m)).collect::<Vec<f64>>();
        let of_class = |class: usize| -> Vec<usize> {
            all.iter().copied().filter(|i| self.labels.get(*i) == Some(&class)).collect()
        };
        let same = routed.routes.iter().zip(&routed.clear_routes).filter(|(a, b)| Some(**a) == **b).count();
        let count = |m: usize| routed.routes.iter().filter(|route| **route == m).count();
        Operation {
            lambda: routed.lambda,
            accuracy,
            latency_ms,
            bytes: mean(costs().map(|(bytes, _)| bytes as f64)),
            round_trips: mean(costs().map(|(_, half)| f64::from(half) / 2.0)),
            speed_up: largest.latency_ms / latency_ms,
            points_lost: 100.0 * (largest.accuracy - accuracy),
            random,
            oracle,
            gap_closed: (oracle > random).then(|| (accuracy - random) / (oracle - random)),
            above_all_lines: accuracy > random,
            agreement: same as f64 / all.len().max(1) as f64,
            shares: shares(&all),
            shares_by_class: (0..self.classes.len()).map(|class| shares(&of_class(class))).collect(),
            label_bits: information(&routed.routes, &self.labels),
            answer_bits: information(&routed.routes, &routed.answers.classes),
            floor_bits: noise_floor(&routed.routes, &self.labels),
            route_bits: entropy((0..self.models()).map(count)),
        }
    }
}
