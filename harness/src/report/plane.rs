//! The plane of accuracy and latency: what a blind mixture of fixed models and a router that knows the answers
//! reach at the same mean latency.

/// A mean latency, in milliseconds, and a part of answers that are right.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Point {
    pub(crate) latency_ms: f64,
    pub(crate) accuracy: f64,
}

/// Accuracy of the best random choice among the `fixed` models at a mean latency of at most `latency_ms`, or of the
/// cheapest model: the line between two of them, or one.
pub(crate) fn mixture(fixed: &[Point], latency_ms: f64) -> f64 {
    let latency_ms = fixed.iter().map(|p| p.latency_ms).fold(f64::INFINITY, f64::min).max(latency_ms);
    let between = |from: &Point, to: &Point| {
        let inside = from.latency_ms <= latency_ms && latency_ms < to.latency_ms;
        let share = (latency_ms - from.latency_ms) / (to.latency_ms - from.latency_ms);
        if inside { from.accuracy + share * (to.accuracy - from.accuracy) } else { 0.0 }
    };
    let lines = fixed.iter().flat_map(|from| fixed.iter().map(move |to| between(from, to)));
    let single = fixed.iter().filter(|p| p.latency_ms <= latency_ms).map(|p| p.accuracy);
    lines.chain(single).fold(0.0, f64::max)
}

/// Accuracy of a router that knows which models are `right`, at a mean latency of at most `latency_ms`, or of the
/// cheapest route. A route to model `m` takes `routed[m]`: it leaves the cheapest model only for one that is right instead, where that costs
/// least first.
pub(crate) fn oracle(right: &[Vec<bool>], routed: &[f64], latency_ms: f64) -> f64 {
    let cheapest = routed.iter().copied().fold(f64::INFINITY, f64::min);
    let extra = |models: &Vec<bool>| {
        let each = models.iter().zip(routed).filter(|(right, _)| **right).map(|(_, time)| time - cheapest);
        each.min_by(f64::total_cmp)
    };
    let mut needed: Vec<f64> = right.iter().filter_map(extra).collect();
    needed.sort_by(f64::total_cmp);
    let mut left = (latency_ms - cheapest).max(0.0) * right.len() as f64;
    let affordable = needed.iter().take_while(|extra| {
        left -= **extra;
        left >= -1e-9
    });
    affordable.count() as f64 / right.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_is_the_best_line() {
        let fixed =
            [(10.0, 0.8), (20.0, 0.7), (110.0, 0.9)].map(|(latency_ms, accuracy)| Point { latency_ms, accuracy });
        assert_eq!(mixture(&fixed, 5.0), 0.8);
        assert_eq!(mixture(&fixed, 10.0), 0.8);
        assert!((mixture(&fixed, 60.0) - 0.85).abs() < 1e-12);
        assert_eq!(mixture(&fixed, 500.0), 0.9);
    }

    #[test]
    fn an_oracle_buys_the_cheapest_right_answers_first() {
        let right = [vec![true, true], vec![false, true], vec![false, true], vec![false, false]];
        let routed = [10.0, 50.0];
        assert_eq!(oracle(&right, &routed, 10.0), 0.25);
        assert_eq!(oracle(&right, &routed, 20.0), 0.5);
        assert_eq!(oracle(&right, &routed, 1000.0), 0.75);
        assert_eq!(oracle(&right, &routed, 9.0), 0.25);
    }
}
