//! The plane of accuracy and latency: what a blind mixture of fixed models and a router that knows the answers
//! reach at the same mean latency.

use super::statistics::mean;

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

/// Accuracy of a router that believes `told` of which models are right, at a mean latency of at most `latency_ms`, or of the
/// cheapest route. A route to model `m` takes `routed[m]`: it leaves the cheapest model only for one that it believes to be right
/// instead, where that costs least first. An oracle is `told` what is `right`.
pub(crate) fn oracle(told: &[Vec<bool>], right: &[Vec<bool>], routed: &[f64], latency_ms: f64) -> f64 {
    let Some((cheapest, least)) = routed.iter().copied().enumerate().min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return 0.0;
    };
    let cheapest_right = |models: &Vec<bool>| {
        let each = models.iter().zip(routed).enumerate().filter(|(_, (right, _))| **right);
        let dearer = each.map(|(model, (_, time))| (model, time - least)).min_by(|a, b| a.1.total_cmp(&b.1));
        dearer.unwrap_or((cheapest, 0.0))
    };
    let mut wanted: Vec<(usize, (usize, f64))> = told.iter().map(cheapest_right).enumerate().collect();
    wanted.sort_by(|(_, a), (_, b)| a.1.total_cmp(&b.1));
    let mut left = (latency_ms - least).max(0.0) * told.len() as f64;
    mean(wanted.into_iter().map(|(input, (model, extra))| {
        left -= extra;
        let route = if left >= -1e-9 { model } else { cheapest };
        let hit = right.get(input).and_then(|models| models.get(route));
        f64::from(u8::from(hit == Some(&true)))
    }))
}

/// Half a point of accuracy, and what rounding leaves of it.
const HALF_A_POINT: f64 = 0.005 + 1e-9;

/// What a router is worth beside fixed models, cheapest first.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct Worth {
    /// The most that the router is faster than the largest model at no more than half a point lost, if it ever loses so
    /// little, and which operation of it that is.
    pub(crate) fastest_within_half_a_point: Option<f64>,
    pub(crate) fastest_lambda: Option<String>,
    /// At no less accuracy than the cheapest model within half a point of the largest, how much faster than that model; none
    /// if the router never is as accurate.
    pub(crate) cheaper_than_best_fixed: Option<f64>,
    pub(crate) best_fixed: String,
}

/// Of models and of the router's operations, each with its name.
pub(crate) fn worth(fixed: &[(String, Point)], router: &[(String, Point)]) -> Worth {
    let Some((_, largest)) = fixed.last() else { return Worth::default() };
    let near = |(_, point): &&(String, Point)| point.accuracy >= largest.accuracy - HALF_A_POINT;
    let quicker = |a: &&(String, Point), b: &&(String, Point)| a.1.latency_ms.total_cmp(&b.1.latency_ms);
    let fastest = router.iter().filter(near).min_by(quicker);
    let Some((best_fixed, best)) = fixed.iter().filter(near).min_by(quicker) else { return Worth::default() };
    let as_good = router.iter().filter(|(_, point)| point.accuracy >= best.accuracy).min_by(quicker);
    Worth {
        fastest_within_half_a_point: fastest.map(|(_, point)| largest.latency_ms / point.latency_ms),
        fastest_lambda: fastest.map(|(name, _)| name.clone()),
        cheaper_than_best_fixed: as_good.map(|(_, point)| best.latency_ms / point.latency_ms),
        best_fixed: best_fixed.clone(),
    }
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
        let knowing = |latency_ms| oracle(&right, &right, &routed, latency_ms);
        assert_eq!(knowing(10.0), 0.25);
        assert_eq!(knowing(20.0), 0.5);
        assert_eq!(knowing(1000.0), 0.75);
        assert_eq!(knowing(9.0), 0.25);
    }

    #[test]
    fn an_oracle_that_is_told_wrong_pays_for_what_it_believes() {
        let right = [vec![true, false], vec![false, true], vec![false, true], vec![false, false]];
        let told = [vec![false, true], vec![false, true], vec![true, true], vec![false, false]];
        let routed = [10.0, 50.0];
        let misled = |latency_ms| oracle(&told, &right, &routed, latency_ms);
        assert_eq!(misled(10.0), 0.25);
        // The first it believes to need the dearer model, which is wrong of it.
        assert_eq!(misled(20.0), 0.0);
        assert_eq!(misled(1000.0), 0.25);
    }

    #[test]
    fn a_router_is_worth_what_it_saves_at_an_accuracy() {
        let named = |name: &str, latency_ms, accuracy| (name.to_owned(), Point { latency_ms, accuracy });
        let fixed = [named("micro", 10.0, 0.90), named("small", 30.0, 0.947), named("large", 100.0, 0.95)];
        let router =
            [named("0", 40.0, 0.951), named("8", 20.0, 0.947), named("32", 12.0, 0.945), named("64", 11.0, 0.944)];
        let Worth { fastest_within_half_a_point, fastest_lambda, cheaper_than_best_fixed, best_fixed } =
            worth(&fixed, &router);
        assert_eq!((best_fixed.as_str(), fastest_lambda.as_deref()), ("small", Some("32")));
        assert_eq!(fastest_within_half_a_point, Some(100.0 / 12.0));
        assert_eq!(cheaper_than_best_fixed, Some(1.5));
        assert_eq!(worth(&fixed, &router[2..]).cheaper_than_best_fixed, None);
        assert_eq!(worth(&fixed, &router[3..]).fastest_lambda, None);
        assert_eq!(worth(&[], &router), Worth::default());
    }
}
