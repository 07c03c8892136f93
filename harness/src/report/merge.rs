//! Figures of several pools of one task, one per training seed, as means and spreads.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::figures::{Figures, OnLink, Operation, Records, VERSION};
use super::plane::{Point, Worth, oracle, worth};
use super::statistics::{Spread, mean};

/// Stands for each pool's own lambda.
const OWN: &str = "own";

/// Every number of the pools' figures as its spread; what is no number is kept where all agree.
pub(crate) fn merged(all: &[Records]) -> Result<Value> {
    let Some((first, others)) = all.split_first() else { return Ok(Value::Null) };
    for records in all {
        ensure!(records.version == VERSION, "records of version {}, this build reads {VERSION}", records.version);
    }
    for (nth, records) in (1..).zip(others) {
        ensure!(
            records.task == first.task,
            "reports of `{}` and of `{}` have nothing to share",
            first.task,
            records.task
        );
        ensure!(records.links == first.links, "these reports reckon with other links");
        let names = |records: &Records| records.programs.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        ensure!(names(records) == names(first), "these pools have other models");
        let costs =
            |records: &Records| records.programs.iter().map(|p| (p.up, p.down, p.half_trips)).collect::<Vec<_>>();
        ensure!(costs(records) == costs(first), "models of one name cost different things in these pools");
        ensure!(records.labels == first.labels, "these reports are of other test inputs");
        let again = all.iter().take(nth).any(|earlier| earlier.seed == records.seed);
        ensure!(!again, "two reports are of seed {}", records.seed);
    }
    let figures: Vec<Figures> = all.iter().map(Records::figures).collect();
    let hits: Vec<Vec<Vec<bool>>> = all.iter().map(Records::hits).collect();
    let by_lambda = (0..).zip(all.iter().zip(&figures)).map(|(n, (records, figures))| {
        let others = hits.iter().enumerate().filter(|(other, _)| *other != n);
        by_lambda(records, figures, &others.map(|(_, hits)| hits.as_slice()).collect::<Vec<_>>())
    });
    let by_lambda: Vec<Value> = by_lambda.collect();
    let mut merged = spread(&by_lambda.iter().collect::<Vec<_>>());
    for link in &first.links {
        let of_link: Vec<(&Records, &OnLink)> =
            all.iter().zip(&figures).filter_map(|(records, f)| Some((records, f.links.get(&link.name)?))).collect();
        if let Some(links) = merged.pointer_mut(&format!("/links/{}", link.name)).and_then(Value::as_object_mut) {
            links.insert("in_the_mean".to_owned(), json!(in_the_mean(&of_link)));
        }
    }
    Ok(merged)
}

/// What the router is worth on the plane of mean latencies and mean accuracies.
fn in_the_mean(all: &[(&Records, &OnLink)]) -> Worth {
    let Some((records, link)) = all.first() else { return Worth::default() };
    let middle = |points: Vec<Point>| Point {
        latency_ms: mean(points.iter().map(|p| p.latency_ms)),
        accuracy: mean(points.iter().map(|p| p.accuracy)),
    };
    let fixed = (0..records.models()).filter_map(|m| {
        let points = all.iter().map(|(_, link)| link.fixed.get(records.model(m)).copied()).collect::<Option<_>>();
        Some((records.model(m).to_owned(), middle(points?)))
    });
    let at = |lambda: Option<u16>| {
        let operation = |(records, link): &(&Records, &OnLink)| {
            link.router.iter().find(|o| o.lambda == lambda.unwrap_or(records.lambda)).map(Operation::point)
        };
        let points = all.iter().map(operation).collect::<Option<_>>();
        Some((lambda.map_or(OWN.to_owned(), |lambda| lambda.to_string()), middle(points?)))
    };
    let lambdas = [None].into_iter().chain(link.router.iter().map(|o| Some(o.lambda)));
    worth(&fixed.collect::<Vec<_>>(), &lambdas.filter_map(at).collect::<Vec<_>>())
}

/// Figures with operations by their lambda, the pool's own beside the others; `elsewhere` are hits of models of other seeds.
fn by_lambda(records: &Records, figures: &Figures, elsewhere: &[&[Vec<bool>]]) -> Value {
    let right = records.hits();
    let mut by_lambda = json!(figures);
    for link in &records.links {
        let Some(operations) = figures.links.get(&link.name).map(|on_link| &on_link.router) else { continue };
        let routed = records.routed_ms(link);
        let mut named = Map::new();
        for operation in operations {
            let Operation { lambda, latency_ms, random, oracle: best, .. } = *operation;
            let gap = |told: &&[Vec<bool>]| (oracle(told, &right, &routed, latency_ms) - random) / (best - random);
            let foreseen = (best > random && !elsewhere.is_empty()).then(|| mean(elsewhere.iter().map(gap)));
            let mut operation = json!(operation);
            if let Some(fields) = operation.as_object_mut() {
                fields.insert("gap_foreseen".to_owned(), json!(foreseen));
            }
            if lambda == records.lambda {
                named.insert(OWN.to_owned(), operation.clone());
            }
            named.insert(lambda.to_string(), operation);
        }
        let Some(on_link) = by_lambda.pointer_mut(&format!("/links/{}", link.name)) else { continue };
        if let Some(on_link) = on_link.as_object_mut() {
            on_link.insert("router".to_owned(), named.into());
            on_link.remove("oracle");
        }
    }
    if let Some(calibration) = by_lambda.get_mut("calibration").and_then(Value::as_object_mut) {
        calibration.values_mut().filter_map(Value::as_object_mut).for_each(|c| _ = c.remove("bins"));
    }
    by_lambda
}

/// Of values of one shape: keys and places that not all have are left out.
fn spread(values: &[&Value]) -> Value {
    match values {
        [Value::Object(first), others @ ..] => {
            let of_key = |(key, value): (&String, &Value)| {
                let rest: Option<Vec<&Value>> = others.iter().map(|other| other.get(key)).collect();
                rest.map(|rest| (key.clone(), spread(&[&[value][..], &rest].concat())))
            };
            Value::Object(first.iter().filter_map(of_key).collect())
        }
        [Value::Array(first), others @ ..] => {
            let of_place = |(i, value): (usize, &Value)| {
                let rest: Option<Vec<&Value>> = others.iter().map(|other| other.get(i)).collect();
                rest.map(|rest| spread(&[&[value][..], &rest].concat()))
            };
            Value::Array(first.iter().enumerate().filter_map(of_place).collect())
        }
        [Value::Bool(_), ..] => {
            let yes = values.iter().filter(|v| **v == &Value::Bool(true)).count();
            json!(format!("{yes} of {}", values.len()))
        }
        // Some pools may not have the figure.
        _ if values.iter().any(|v| v.is_number()) && values.iter().all(|v| v.is_number() || v.is_null()) => {
            json!(Spread::of(&values.iter().filter_map(|v| v.as_f64()).collect::<Vec<_>>()))
        }
        [first, others @ ..] if others.iter().all(|other| other == first) => (*first).clone(),
        _ => Value::Array(values.iter().map(|v| (*v).clone()).collect()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::figures::{Answers, Link, Routed};
    use super::super::gates::ProgramCost;
    use super::*;

    /// Of four inputs to two models of 10 and 90 bytes, on a link that takes a millisecond for a byte.
    fn records(seed: &str, hits: [[bool; 4]; 2], routes: [usize; 4]) -> Records {
        let answers = |right: [bool; 4]| Answers { classes: right.map(|r| usize::from(!r)).to_vec(), ms: vec![0.0; 4] };
        let program = |name: &str, up| ProgramCost {
            name: name.to_owned(),
            up,
            down: 0,
            half_trips: 0,
            offline: 0,
            stock: 0,
            gates: Vec::new(),
        };
        let routed = Routed {
            lambda: 8,
            link: "wire".to_owned(),
            clear_routes: routes.map(Some).to_vec(),
            answers: answers(std::array::from_fn(|i| hits[routes[i]][i])),
            routes: routes.to_vec(),
        };
        Records {
            version: VERSION,
            task: "task".to_owned(),
            seed: seed.to_owned(),
            trained_by: String::new(),
            measured_by: String::new(),
            machine: String::new(),
            date: String::new(),
            test_examples: 4,
            classes: vec!["right".to_owned(), "wrong".to_owned()],
            lambda: 8,
            links: vec![Link { name: "wire".to_owned(), bytes_per_second: 1000, round_trip_us: 0 }],
            programs: vec![program("micro", 10), program("large", 90), program("router", 10)],
            routed_costs: vec![(10, 0), (100, 0)],
            labels: vec![0; 4],
            utilities: vec![vec![1.0, 1.0]; 4],
            fixed: hits.map(answers).to_vec(),
            routed: vec![routed],
        }
    }

    #[test]
    fn seeds_tell_what_a_router_is_worth_in_the_mean_and_what_can_be_foreseen() {
        let a = records("a", [[true, false, false, true], [true, true, true, false]], [0, 1, 0, 0]);
        let b = records("b", [[true, false, true, true], [true, false, true, false]], [0; 4]);
        let merged = merged(&[a, b]).unwrap();
        let wire = &merged["links"]["wire"];
        let near = |value: &Value, expected: f64| assert!((value.as_f64().unwrap() - expected).abs() < 1e-6, "{value}");
        // Both models are right of five in eight; the router, at 32.5 and 10 ms, of three in four.
        near(&wire["in_the_mean"]["fastest_within_half_a_point"], 90.0 / 21.25);
        near(&wire["in_the_mean"]["cheaper_than_best_fixed"], 10.0 / 21.25);
        assert_eq!(
            (&wire["in_the_mean"]["best_fixed"], &wire["in_the_mean"]["fastest_lambda"]),
            (&json!("micro"), &json!("own"))
        );
        // Seed `a` has a gap: from half, and what 22.5 of 80 ms buy of a quarter, to three in four. The models of `b` would have asked the
        // larger one for nothing.
        let random = 0.5 + 22.5 / 80.0 * 0.25;
        near(&wire["router"]["own"]["gap_closed"]["mean"], 1.0);
        let foreseen = (0.5 - random) / (0.75 - random);
        near(&wire["router"]["own"]["gap_foreseen"]["mean"], foreseen);
        // Seed `b` has none, which is not counted.
        near(&wire["router"]["8"]["gap_foreseen"]["least"], foreseen);
    }

    #[test]
    fn numbers_become_spreads_and_odd_places_are_left_out() {
        let (a, b) = (
            json!({"x": 1.0, "y": [1, 2], "z": true, "name": "n", "only": 1}),
            json!({"x": 3.0, "y": [3], "z": false, "name": "n"}),
        );
        let merged = spread(&[&a, &b]);
        assert_eq!(spread(&[&json!(null), &json!(4), &json!(6)])["mean"], 5.0);
        assert_eq!(spread(&[&json!(null), &json!(null)]), json!(null));
        assert_eq!(merged["x"]["mean"], 2.0);
        assert_eq!(merged["y"].as_array().map(Vec::len), Some(1));
        assert_eq!(merged["z"], "1 of 2");
        assert_eq!(merged["name"], "n");
        assert!(merged.get("only").is_none());
    }
}
