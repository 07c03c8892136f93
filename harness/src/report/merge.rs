//! Figures of several pools of one task, one per training seed, as means and spreads.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::figures::{Records, VERSION};
use super::statistics::Spread;

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
        let again = all.iter().take(nth).any(|earlier| earlier.seed == records.seed);
        ensure!(!again, "two reports are of seed {}", records.seed);
    }
    let figures: Vec<Value> =
        all.iter().map(|records| serde_json::to_value(by_lambda(records))).collect::<Result<_, _>>()?;
    Ok(spread(&figures.iter().collect::<Vec<_>>()))
}

/// Figures with operations by their lambda, the pool's own beside the others.
fn by_lambda(records: &Records) -> Value {
    let mut figures = json!(records.figures());
    let Some(links) = figures.get_mut("links").and_then(Value::as_object_mut) else { return figures };
    for link in links.values_mut() {
        let Some(operations) = link.get("router").and_then(Value::as_array).cloned() else { continue };
        let mut named = Map::new();
        for operation in operations {
            let lambda = operation.get("lambda").and_then(Value::as_u64).unwrap_or(0);
            if lambda == u64::from(records.lambda) {
                named.insert("own".to_owned(), operation.clone());
            }
            named.insert(lambda.to_string(), operation);
        }
        if let Some(link) = link.as_object_mut() {
            link.insert("router".to_owned(), named.into());
            link.remove("oracle");
        }
    }
    if let Some(calibration) = figures.get_mut("calibration").and_then(Value::as_object_mut) {
        calibration.values_mut().filter_map(Value::as_object_mut).for_each(|c| _ = c.remove("bins"));
    }
    figures
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
mod tests {
    use super::*;

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
