//! The user's own labelled examples: CSV with a header, or JSON lines; numbers, or a text.

use super::PARTS;
use super::text::bytes;
use crate::data::{Dataset, Example, SPLIT_SEED, Split, folds};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use secure_router_core::motion::{AXES, FRAMES, UNITS};
use secure_router_core::spec::{MAX_INPUT, MAX_LABELS};
use secure_router_core::text;
use std::collections::BTreeMap;
use std::path::Path;

/// Which columns are not values, and what the values are.
#[derive(Args, Clone, Debug)]
pub(crate) struct Columns {
    /// Column of the class, in your own examples
    #[arg(long, default_value = "label")]
    pub(crate) label: String,
    /// Column of what is never split, in your own examples: a person, a device, a session
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Your own examples are windows of a motion sensor: 128 rows, 50 a second, of acceleration in g along three axes and
    /// rotation in rad/s about them. The device sends spectra
    #[arg(long)]
    pub(crate) motion: bool,
}

/// The column that holds a text; there are no values then.
const TEXT: &str = "text";
/// Fewest examples of a class: a fifth of them is tested on, and each fold needs some.
const MIN_PER_CLASS: usize = 20;

/// Reads `path` and splits off a fifth for the test.
pub(crate) fn read(path: &Path, name: &str, columns: &Columns) -> Result<Split> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = path.extension().is_some_and(|e| e == "jsonl" || e == "ndjson" || e == "json");
    let table = if lines { json_lines(&text, columns) } else { csv_rows(&text, columns) };
    let table = if columns.motion { table.and_then(Table::of_motion) } else { table };
    table.and_then(|t| t.into_split(name)).with_context(|| path.display().to_string())
}

/// Rows of equal length, or of the bytes of a text, with their labels and groups.
#[derive(Default)]
struct Table {
    of_text: bool,
    of_motion: bool,
    rows: Vec<Vec<f32>>,
    labels: Vec<String>,
    /// Rows that share a mark are never divided.
    marks: Vec<Vec<Mark>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Group(String),
    Text(String),
}

/// Groups of rows that share marks, also by way of others, in order of their first rows. A row without a mark is not counted
/// and has its own number.
fn groups(marks: &[Vec<Mark>]) -> (Vec<u32>, usize) {
    // A mark points to an earlier one of its group, or to itself.
    let (mut known, mut earlier): (BTreeMap<&Mark, usize>, Vec<usize>) = (BTreeMap::new(), Vec::new());
    let first = |earlier: &[usize], mut mark: usize| {
        while earlier[mark] != mark {
            mark = earlier[mark];
        }
        mark
    };
    for row in marks {
        let mut one: Option<usize> = None;
        for mark in row {
            let id = *known.entry(mark).or_insert_with(|| {
                earlier.push(earlier.len());
                earlier.len() - 1
            });
            let id = first(&earlier, id);
            let joined = one.map_or(id, |other| other.min(id));
            earlier[id] = joined;
            one.into_iter().for_each(|other| earlier[other] = joined);
            one = Some(joined);
        }
    }
    let mut numbers: BTreeMap<usize, u32> = BTreeMap::new();
    let of_row = |(i, row): (u32, &Vec<Mark>)| {
        let Some(mark) = row.first() else { return i };
        let next = numbers.len() as u32;
        *numbers.entry(first(&earlier, known[mark])).or_insert(next)
    };
    ((0u32..).zip(marks).map(of_row).collect(), numbers.len())
}

impl Table {
    /// Rows as windows of a motion sensor. Readings in another unit, or of another sensor, hardly fit.
    fn of_motion(mut self) -> Result<Self> {
        let most = UNITS.map(|unit| f32::from(i16::MAX) / f32::from(unit));
        for (row, nth) in self.rows.iter().zip(1..) {
            let fits = row.iter().zip(most.iter().cycle()).all(|(value, most)| value.abs() <= *most);
            ensure!(
                !self.of_text && row.len() == FRAMES * AXES,
                "a window of motion has {FRAMES} rows of {AXES} values, example {nth} has not"
            );
            ensure!(fits, "example {nth} goes beyond 16 g or 32 rad/s: windows of motion are in g and rad/s");
        }
        self.of_motion = true;
        Ok(self)
    }

    fn into_split(self, name: &str) -> Result<Split> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for label in &self.labels {
            *counts.entry(label).or_default() += 1;
        }
        ensure!(counts.len() >= 2, "one class is not enough: at least two are needed");
        ensure!(counts.len() <= usize::from(MAX_LABELS), "{} classes are more than {MAX_LABELS}", counts.len());
        for (class, count) in &counts {
            ensure!(
                *count >= MIN_PER_CLASS,
                "class `{class}` has {count} examples; at least {MIN_PER_CLASS} are needed"
            );
            let plain = class.bytes().all(|b| (b == b' ' || b.is_ascii_graphic()) && b != b',');
            ensure!(plain, "class {class:?} has a comma or a character that is not printable ASCII");
        }
        let classes: Vec<String> = counts.keys().map(|c| (*c).to_owned()).collect();
        let (group_of, groups) = groups(&self.marks);
        let examples: Vec<Example> = self
            .rows
            .into_iter()
            .zip(self.labels.iter().zip(group_of))
            .map(|(values, (label, group))| Example { values, label: classes.partition_point(|c| c < label), group })
            .collect();
        ensure!(groups == 0 || groups >= 2 * PARTS, "{groups} groups are too few: at least {} are needed", 2 * PARTS);
        let part = folds(examples.iter(), PARTS, SPLIT_SEED);
        let columns = examples.first().map_or(0, |e| e.values.len());
        let (kind, channels) = match (self.of_text, self.of_motion) {
            (true, _) => ("text", 1),
            (_, true) => ("sensor", AXES),
            _ => ("table", columns),
        };
        let all = Dataset {
            kind: kind.to_owned(),
            name: name.to_owned(),
            channels,
            classes,
            source: "your own".to_owned(),
            examples,
        };
        let split = all.split(|i, _| part[i] == 0);
        for (class, label) in split.train.classes.iter().zip(0..) {
            let left = split.train.examples.iter().filter(|e| e.label == label).count();
            ensure!(left >= 2 * PARTS, "class `{class}` has {left} examples outside the groups tested on: too few");
        }
        Ok(split)
    }
}

fn number(text: &str, line: usize, column: &str) -> Result<f32> {
    let shown = || format!("line {line}, column `{column}`: `{text}` is not a number");
    finite(text.trim().parse::<f64>().with_context(shown)?, line, column)
}

fn finite(value: f64, line: usize, column: &str) -> Result<f32> {
    let narrow = value as f32;
    ensure!(narrow.is_finite(), "line {line}, column `{column}`: {value} is not a finite number");
    Ok(narrow)
}

/// A text that holds a word. One that occurs twice is on one side of every split, with the groups that it occurs in.
fn add_text(table: &mut Table, text: &str, group: Option<String>, line: usize) -> Result<()> {
    let mut found = 0;
    text::words(text.as_bytes(), |_, ends| found |= ends);
    ensure!(found != 0, "line {line} has no text, or none with a word of two letters");
    table.of_text = true;
    table.rows.push(bytes(text));
    table.marks.push(group.map(Mark::Group).into_iter().chain([Mark::Text(text.to_owned())]).collect());
    Ok(())
}

fn not_beside_text(name: &str) -> anyhow::Error {
    anyhow!("there is a column `{name}` beside `{TEXT}`: a text is an example by itself")
}

fn width(values: usize) -> Result<()> {
    ensure!(values > 0, "there is no column of values beside the label");
    ensure!(values <= usize::from(MAX_INPUT), "{values} columns are more than {MAX_INPUT}");
    Ok(())
}

fn csv_rows(text: &str, columns: &Columns) -> Result<Table> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().context("the header line")?.clone();
    let place = |name: &str| header.iter().position(|h| h == name);
    let Some(label_at) = place(&columns.label) else {
        bail!("there is no column `{}` in the header line; name it with --label", columns.label);
    };
    let group_at = match &columns.group {
        Some(name) => Some(place(name).with_context(|| format!("there is no column `{name}` in the header line"))?),
        None => None,
    };
    let text_at = place(TEXT);
    let values = (0..header.len()).filter(|i| ![Some(label_at), group_at, text_at].contains(&Some(*i)));
    match (text_at, values.clone().next()) {
        (Some(_), Some(other)) => return Err(not_beside_text(&header[other])),
        (Some(_), None) => {}
        (None, _) => width(values.clone().count())?,
    }
    let mut table = Table::default();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, |p| p.line() as usize);
        ensure!(
            record.len() == header.len(),
            "line {line} has {} fields, the header line has {}",
            record.len(),
            header.len()
        );
        ensure!(!record[label_at].is_empty(), "line {line} has no label");
        let group = group_at.map(|at| record[at].to_owned());
        table.labels.push(record[label_at].to_owned());
        if let Some(at) = text_at {
            add_text(&mut table, &record[at], group, line)?;
        } else {
            let row = values.clone().map(|i| number(&record[i], line, &header[i]));
            table.rows.push(row.collect::<Result<_>>()?);
            table.marks.push(group.map(Mark::Group).into_iter().collect());
        }
    }
    Ok(table)
}

/// Objects with a label and a `text`, a list `values`, or numbers under names.
fn json_lines(text: &str, columns: &Columns) -> Result<Table> {
    use serde_json::{Map, Value};
    let scalar = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    let mut table = Table::default();
    let mut names: Option<Vec<String>> = None;
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let object: Map<String, Value> =
            serde_json::from_str(text).with_context(|| format!("line {line} is not a JSON object"))?;
        let label = object.get(&columns.label).and_then(scalar);
        let label = label.with_context(|| format!("line {line} has no label `{}`", columns.label))?;
        let group = match &columns.group {
            Some(name) => {
                let group = object.get(name).and_then(scalar);
                Some(group.with_context(|| format!("line {line} has no group `{name}`"))?)
            }
            None => None,
        };
        table.labels.push(label);
        if object.contains_key(TEXT) || table.of_text {
            let known = [&columns.label, TEXT];
            let other =
                object.keys().find(|name| !known.contains(&name.as_str()) && Some(*name) != columns.group.as_ref());
            ensure!(names.is_none(), "line {line} has a text, the first line has none");
            if let Some(other) = other {
                return Err(not_beside_text(other)).with_context(|| format!("line {line}"));
            }
            let text = object.get(TEXT).and_then(Value::as_str).unwrap_or_default();
            add_text(&mut table, text, group, line)?;
            continue;
        }
        let not_value = |name: &str| name == columns.label || Some(name) == columns.group.as_deref();
        let fields: Vec<(String, &Value)> = match object.get("values") {
            Some(Value::Array(values)) => (0..).zip(values).map(|(i, v)| (format!("values[{i}]"), v)).collect(),
            _ => object.iter().filter(|(name, _)| !not_value(name)).map(|(name, v)| (name.clone(), v)).collect(),
        };
        let found: Vec<String> = fields.iter().map(|(name, _)| name.clone()).collect();
        match &names {
            Some(names) if names.len() != found.len() => {
                bail!("line {line} has {} values, the first line has {}", found.len(), names.len())
            }
            Some(names) if *names != found => bail!("line {line} has other names than the first line"),
            Some(_) => {}
            None => {
                width(found.len())?;
                names = Some(found);
            }
        }
        let row = fields.iter().map(|(name, value)| match value.as_f64() {
            Some(value) => finite(value, line, name),
            None => bail!("line {line}, `{name}`: {value} is not a number"),
        });
        table.rows.push(row.collect::<Result<_>>()?);
        table.marks.push(group.map(Mark::Group).into_iter().collect());
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        Columns { label: "label".to_owned(), group: None, motion: false }
    }

    fn rows(count: usize, extra: &str) -> String {
        let line = |i: usize| format!("{i},{},{}\n", 2 * i, if i.is_multiple_of(2) { "walk" } else { "run" });
        format!("a,b,label\n{}{extra}", (0..count).map(line).collect::<String>())
    }

    fn csv_error(text: &str) -> String {
        let error = csv_rows(text, &columns()).and_then(|t| t.into_split("mine")).unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn csv_is_split_class_by_class() {
        let split = csv_rows(&rows(100, ""), &columns()).unwrap().into_split("mine").unwrap();
        assert_eq!(split.train.classes, ["run", "walk"]);
        assert_eq!((split.train.examples.len(), split.test.len()), (80, 20));
        assert_eq!(split.test.examples().iter().filter(|e| e.label == 0).count(), 10);
        let example = &split.train.examples[0];
        assert_eq!(example.values[1], 2.0 * example.values[0]);
        assert_eq!(example.label, usize::from((example.values[0] as usize).is_multiple_of(2)));
    }

    #[test]
    fn ragged_rows_are_named() {
        assert_eq!(csv_error(&rows(50, "1,walk\n")), "line 52 has 2 fields, the header line has 3");
    }

    #[test]
    fn missing_labels_are_named() {
        assert_eq!(csv_error(&rows(50, "1,2,\n")), "line 52 has no label");
        assert!(csv_error("a,b\n1,2\n").starts_with("there is no column `label`"));
    }

    #[test]
    fn values_that_are_not_finite_numbers_are_named() {
        assert_eq!(csv_error(&rows(50, "1,NaN,walk\n")), "line 52, column `b`: NaN is not a finite number");
        assert_eq!(csv_error(&rows(50, "inf,2,walk\n")), "line 52, column `a`: inf is not a finite number");
        assert!(csv_error(&rows(50, "x,2,walk\n")).starts_with("line 52, column `a`: `x` is not a number"));
        assert!(csv_error(&rows(50, "1e300,2,walk\n")).contains("is not a finite number"));
    }

    #[test]
    fn small_classes_are_named() {
        assert_eq!(csv_error(&rows(50, "1,2,sit\n")), "class `sit` has 1 examples; at least 20 are needed");
        assert_eq!(csv_error("a,label\n1,x\n"), "one class is not enough: at least two are needed");
        assert_eq!(csv_error("a,label\n"), "one class is not enough: at least two are needed");
        assert_eq!(csv_error("label\nx\n"), "there is no column of values beside the label");
    }

    #[test]
    fn groups_are_not_cut() {
        let line = |i: usize| format!("{i},p{},{}\n", i % 13, i % 2);
        let text = format!("a,who,label\n{}", (0..260).map(line).collect::<String>());
        let columns = Columns { label: "label".to_owned(), group: Some("who".to_owned()), motion: false };
        let split = csv_rows(&text, &columns).unwrap().into_split("mine").unwrap();
        assert!(split.test.examples().iter().all(|t| split.train.examples.iter().all(|e| e.group != t.group)));
        assert_eq!(split.train.channels, 1);
    }

    #[test]
    fn rows_that_share_a_mark_by_way_of_others_are_one_group() {
        let mark = |name: &str| if name.len() > 1 { Mark::Text(name.to_owned()) } else { Mark::Group(name.to_owned()) };
        let rows = ["A t1", "D t5", "B t2", "", "C t3", "B t3", "C t1", "t6"];
        let marks = rows.map(|row| row.split_whitespace().map(mark).collect());
        assert_eq!(groups(&marks), (vec![0, 1, 0, 3, 0, 0, 0, 2], 3));
    }

    #[test]
    fn a_text_of_two_people_is_on_one_side() {
        let words = ["warm", "dull", "quick", "slow", "kind", "loud", "bright", "grey"];
        let line = |i: usize| format!("{} {},p{},{}\n", words[i % 8], words[i / 2 % 8], i / 2 % 24, i % 2);
        let text = format!("text,who,label\n{}", (0..480).map(line).collect::<String>());
        let columns = Columns { label: "label".to_owned(), group: Some("who".to_owned()), motion: false };
        let table = csv_rows(&text, &columns).unwrap();
        let (of_row, _) = groups(&table.marks);
        for (a, row) in table.rows.iter().enumerate() {
            for (b, other) in table.rows.iter().enumerate() {
                assert!(row != other || of_row[a] == of_row[b], "rows {a} and {b}");
            }
        }
    }

    #[test]
    fn json_lines_are_read_and_their_faults_named() {
        let line = |i: usize| format!("{{\"label\":\"{}\",\"values\":[{i},0.5]}}\n", i % 2);
        let good: String = (0..60).map(line).collect();
        let split = json_lines(&good, &columns()).unwrap().into_split("mine").unwrap();
        assert_eq!(split.train.examples[0].values.len(), 2);
        let error = |extra: &str| format!("{:#}", json_lines(&format!("{good}{extra}\n"), &columns()).err().unwrap());
        assert_eq!(error(r#"{"values":[1,2]}"#), "line 61 has no label `label`");
        assert_eq!(error(r#"{"label":null,"values":[1,2]}"#), "line 61 has no label `label`");
        assert_eq!(error(r#"{"label":1,"values":[1]}"#), "line 61 has 1 values, the first line has 2");
        assert_eq!(error(r#"{"label":1,"values":[1,null]}"#), "line 61, `values[1]`: null is not a number");
        assert!(error("{").starts_with("line 61 is not a JSON object"));
        let named = json_lines(r#"{"label":"a","x":1,"y":2}"#, &columns()).unwrap();
        assert_eq!(named.rows, [[1.0, 2.0]]);
    }
    #[test]
    fn texts_are_read_and_their_faults_named() {
        let line = |i: usize| format!("\"Item {i}, fine\",{}\n", i % 2);
        let good = format!("text,label\n{}", (0..60).map(line).collect::<String>());
        let split = csv_rows(&good, &columns()).unwrap().into_split("mine").unwrap();
        assert_eq!((split.train.kind.as_str(), split.train.channels), ("text", 1));
        assert!(split.train.examples.iter().all(|e| e.values.ends_with(&bytes(", fine"))));
        assert_eq!(csv_error(&format!("{good}one\n")), "line 62 has 1 fields, the header line has 2");
        assert_eq!(csv_error(&format!("{good}one,\n")), "line 62 has no label");
        for empty in ["", "\"\"", "!?", "a b"] {
            let said = csv_error(&format!("{good}{empty},1\n"));
            assert_eq!(said, "line 62 has no text, or none with a word of two letters");
        }
        assert_eq!(csv_error(&format!("{good}one,x\n")), "class `x` has 1 examples; at least 20 are needed");
        let error = csv_error("text,label,size\none,1,2\n");
        assert_eq!(error, "there is a column `size` beside `text`: a text is an example by itself");

        let line = |i: usize| format!("{{\"label\":{},\"text\":\"item {i}\"}}\n", i % 2);
        let good: String = (0..60).map(line).collect();
        assert_eq!(json_lines(&good, &columns()).unwrap().into_split("mine").unwrap().train.kind, "text");
        let error = |extra: &str| format!("{:#}", json_lines(&format!("{good}{extra}\n"), &columns()).err().unwrap());
        assert_eq!(error(r#"{"text":"one"}"#), "line 61 has no label `label`");
        for line in [r#"{"label":1}"#, r#"{"label":1,"text":""}"#, r#"{"label":1,"text":7}"#] {
            assert_eq!(error(line), "line 61 has no text, or none with a word of two letters");
        }
        assert!(error(r#"{"label":1,"text":"one","x":1}"#).starts_with("line 61: there is a column `x` beside"));
        let mixed = json_lines("{\"label\":1,\"x\":1}\n{\"label\":1,\"text\":\"one\"}", &columns());
        assert_eq!(mixed.err().unwrap().to_string(), "line 2 has a text, the first line has none");
    }

    #[test]
    fn a_text_that_occurs_twice_is_not_split() {
        let line = |i: usize| format!("item {},{}\n", i / 2, i / 2 % 2);
        let text = format!("text,label\n{}", (0..200).map(line).collect::<String>());
        let split = csv_rows(&text, &columns()).unwrap().into_split("mine").unwrap();
        assert!(split.test.examples().iter().all(|t| split.train.examples.iter().all(|e| e.values != t.values)));
    }

    #[test]
    fn windows_of_motion_are_whole_and_in_range() {
        let lines = |values: usize, extra: f32| -> String {
            let row =
                |i: usize| format!("{{\"label\": {:?}, \"values\": {:?}}}\n", ["a", "b"][i % 2], vec![extra; values]);
            (0..100).map(row).collect()
        };
        let table = |text: &str| json_lines(text, &columns()).and_then(Table::of_motion);
        let train = table(&lines(768, 15.9)).unwrap().into_split("mine").unwrap().train;
        assert_eq!((train.kind.as_str(), train.channels, train.examples[0].values.len()), ("sensor", 6, 768));
        let error = |text: &str| table(text).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error(&lines(762, 1.0)), "a window of motion has 128 rows of 6 values, example 1 has not");
        assert_eq!(
            error(&lines(768, 16.1)),
            "example 1 goes beyond 16 g or 32 rad/s: windows of motion are in g and rad/s"
        );
    }
}
