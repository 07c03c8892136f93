//! The page: one file without scripts and without anything to fetch.

use std::collections::BTreeMap;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::figures::{Figures, OnLink, Operation, Records};
use super::gates::ProgramCost;
use super::plane::Point;
use super::statistics::Bin;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: light-dark(#1a1a1a, #e8e8e8); --dim: light-dark(#666, #aaa); --line: light-dark(#d8d8d8, #444);
  --page: light-dark(#fff, #16181c); --a: light-dark(#b23a0e, #ff8a5c); --b: light-dark(#1457a8, #7db4ff); --c: light-dark(#2b7a3d, #7fd08f); }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin-bottom: .3rem }
p.dim, caption, figcaption, .dim { color: var(--dim); font-size: .87rem }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .87rem }
caption { text-align: left; padding-bottom: .3rem } th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { white-space: normal; border-bottom: 2px solid var(--line); font-weight: 600 } tr.own td { font-weight: 700 }
figure { margin: .5rem 0 1rem; display: inline-block } .wide { overflow-x: auto }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .axis { stroke: var(--line) } svg .dim { fill: var(--dim) }
@media print { body { margin: 0 } h2 { break-after: avoid } figure, table { break-inside: avoid } }
";

fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

fn percent(part: f64) -> String {
    format!("{:.2} %", 100.0 * part)
}

fn yes(it: bool) -> &'static str {
    if it { "yes" } else { "no" }
}

/// The page of one pool.
pub(super) fn of_pool(records: &Records, figures: &Figures) -> String {
    let largest = records.model(records.models().saturating_sub(1));
    let body = html! {
        h1 { "Private inference: " (records.task) }
        p.dim {
            (records.labels.len()) " of " (records.test_examples) " test inputs, answered under the protocol by real parties. "
            "Pool: seed " (records.seed) ", " code { (records.trained_by) } ", recommended lambda " (records.lambda) "/256. "
            "Measured " (records.date) " on " (records.machine) " by " code { "secure-router " (records.measured_by) } "."
        }
        p { "The router's own traffic is " (percent(figures.router_overhead)) " of that of " code { (largest) } ". A lambda that is said to be the fastest was "
            "picked among those listed by looking at these test answers; the pool's own lambda, in bold, was chosen on the train split." }
        @for link in &records.links {
            @if let Some(on_it) = figures.links.get(&link.name) { (on_link(records, &link.name, on_it, largest)) }
        }
        h2 { "Where the routes go" }
        (shares(records, figures))
        h2 { "Is the router calibrated?" }
        p.dim { "Utilities, as the reference in clear computes them, against how often the model is right under the protocol; bins of equal count with 95 % intervals. "
            "Utilities are cut below at a floor of the pool." }
        @for (name, calibration) in in_pool_order(records, &figures.calibration) {
            figure {
                (reliability(&calibration.bins))
                figcaption { (name) ": expected calibration error " (percent(calibration.error)) }
            }
        }
        h2 { "What the route tells" }
        (leakage(records, figures))
        h2 { "What each gate costs" }
        @for program in &records.programs { (gates(program)) }
    };
    document(&format!("SecureRouter: {}", records.task), &body)
}

/// How much faster, if ever.
fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "never".to_owned(), |ratio| format!("{ratio:.2} times faster"))
}

fn on_link(records: &Records, name: &str, link: &OnLink, largest: &str) -> Markup {
    let profile = records.links.iter().find(|l| l.name == name);
    html! {
        h2 { "Accuracy and latency: " (name) }
        @if let Some(profile) = profile {
            p.dim { (profile.bytes_per_second) " B/s, round trip " (f64::from(profile.round_trip_us) / 1e3) " ms; latency is time on the link plus the computing measured here." }
        }
        ul {
            li { "At most half a point below " code { (largest) } ": " b { (times(link.worth.fastest_within_half_a_point)) }
                @if let Some(lambda) = &link.worth.fastest_lambda { " (lambda " (lambda) ")" } }
            li { "At no less accuracy than " code { (link.worth.best_fixed) } ", the cheapest model within half a point of " code { (largest) } ": "
                b { (times(link.worth.cheaper_than_best_fixed)) } }
        }
        figure { (plane(link)) }
        div.wide { table {
            thead { tr { th { "answer by" } th { "accuracy" } th { "latency ms" } th { "faster" } th { "points lost" } th { "bytes" } th { "round trips" }
                th { "random" } th { "oracle" } th { "gap closed" } th { "above all lines" } th { "as in clear" } } }
            tbody {
                @for (m, (model, point)) in in_order(records, link).into_iter().enumerate() {
                    @let program = records.programs.get(m);
                    @let top = link.fixed.get(largest).map_or(1.0, |p| p.latency_ms);
                    tr { td { (model) } td { (percent(point.accuracy)) } td { (format!("{:.1}", point.latency_ms)) } td { (format!("{:.1}", top / point.latency_ms)) } td {}
                        td { (program.map_or(0, |p| p.up + p.down)) } td { (program.map_or(0.0, |p| f64::from(p.half_trips) / 2.0)) } td {} td {} td {} td {} td {} }
                }
                @for o in &link.router {
                    tr.own[o.lambda == records.lambda] {
                        td { "router, lambda " (o.lambda) } td { (percent(o.accuracy)) } td { (format!("{:.1}", o.latency_ms)) } td { (format!("{:.1}", o.speed_up)) }
                        td { (format!("{:.2}", o.points_lost)) } td { (format!("{:.0}", o.bytes)) } td { (format!("{:.2}", o.round_trips)) }
                        td { (percent(o.random)) } td { (percent(o.oracle)) } td { (o.gap_closed.map_or_else(String::new, |gap| format!("{:.0} %", 100.0 * gap))) } td { (yes(o.above_all_lines)) } td { (percent(o.agreement)) }
                    }
                }
            }
        } }
    }
}

/// Entries of the models, cheapest first, then the others.
fn in_pool_order<'f, T>(records: &Records, entries: &'f BTreeMap<String, T>) -> Vec<(&'f String, &'f T)> {
    let place = |name: &str| (0..records.models()).find(|m| records.model(*m) == name).unwrap_or(records.models());
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by_key(|(name, _)| place(name));
    entries
}

/// The fixed models, cheapest first.
fn in_order<'l>(records: &'l Records, link: &'l OnLink) -> Vec<(&'l str, Point)> {
    (0..records.models()).filter_map(|m| Some((records.model(m), *link.fixed.get(records.model(m))?))).collect()
}

/// The operations at the pool's own lambda, one per link.
fn own<'f>(records: &Records, figures: &'f Figures) -> impl Iterator<Item = (&'f String, &'f Operation)> {
    let lambda = records.lambda;
    let of = move |(name, link): (&'f String, &'f OnLink)| {
        link.router.iter().find(|o| o.lambda == lambda).map(|operation| (name, operation))
    };
    figures.links.iter().filter_map(of)
}

fn shares(records: &Records, figures: &Figures) -> Markup {
    let models: Vec<&str> = (0..records.models()).map(|m| records.model(m)).collect();
    let cell = |share: f64| {
        let style = format!("background: color-mix(in srgb, var(--b) {:.0}%, transparent)", 70.0 * share);
        html! { td style=(style) { (format!("{:.1} %", 100.0 * share)) } }
    };
    html! {
        @for (name, operation) in own(records, figures) {
            table {
                caption { "By class, lambda " (records.lambda) ", " (name) }
                thead { tr { th { "class" } @for model in &models { th { (model) } } } }
                tbody {
                    @for (class, shares) in records.classes.iter().zip(&operation.shares_by_class) {
                        tr { td { (class) } @for share in shares { (cell(*share)) } }
                    }
                    tr { td { b { "all" } } @for share in &operation.shares { (cell(*share)) } }
                }
            }
        }
    }
}

fn leakage(records: &Records, figures: &Figures) -> Markup {
    html! {
        p.dim { "Mutual information of the route with the true label and with the answer, in bits an input (plug-in, corrected by Miller and Madow); "
            "the floor is what the same estimate finds after the labels were shuffled. A route cannot tell more than its own entropy." }
        table {
            thead { tr { th { "link, lambda" } th { "route and label" } th { "route and answer" } th { "floor" } th { "entropy of the route" } } }
            tbody {
                @for (name, link) in &figures.links { @for o in &link.router {
                    tr.own[o.lambda == records.lambda] { td { (name) ", " (o.lambda) }
                        @for bits in [o.label_bits, o.answer_bits, o.floor_bits, o.route_bits] { td { (format!("{bits:.4}")) } } }
                } }
            }
        }
    }
}

fn gates(program: &ProgramCost) -> Markup {
    let sum = |of: fn(&super::gates::GateCost) -> u64| program.gates.iter().map(of).sum::<u64>();
    html! {
        h3 { (program.name) }
        table {
            thead { tr { th { "gate" } th { "elements" } th { "index bits" } th { "up B" } th { "down B" } th { "offline B" } th { "dealer B" } } }
            tbody {
                @for gate in &program.gates {
                    tr { td { (gate.what) } td { (gate.elements) } td { @if gate.index_bits > 0 { (gate.index_bits) } } td { (gate.up) } td { (gate.down) }
                        td { (gate.offline_bits.div_ceil(8)) } td { (gate.stock) } }
                }
                tr { td { "frames and control messages" } td {} td {} td { (program.up - sum(|g| g.up)) } td { (program.down - sum(|g| g.down)) }
                    td { (program.offline.saturating_sub(sum(|g| g.offline_bits) / 8)) } td { (program.stock - sum(|g| g.stock)) } }
                tr.own { td { "all, in " (f64::from(program.half_trips) / 2.0) " round trips" } td {} td {} td { (program.up) } td { (program.down) } td { (program.offline) } td { (program.stock) } }
            }
        }
    }
}

/// A drawing area with linear accuracy and, if `log`, logarithmic x.
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    log: bool,
    size: (f64, f64),
}

const LEFT: f64 = 62.0;
const BOTTOM: f64 = 40.0;
const MARGIN: f64 = 12.0;

impl Frame {
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let scaled = |v: f64, (low, high): (f64, f64)| (v - low) / (high - low);
        let sx = if self.log { scaled(x.ln(), (self.x.0.ln(), self.x.1.ln())) } else { scaled(x, self.x) };
        let (width, height) = self.size;
        (LEFT + sx * (width - LEFT - MARGIN), height - BOTTOM - scaled(y, self.y) * (height - BOTTOM - MARGIN))
    }

    fn line(&self, points: &[(f64, f64)], style: &str) -> Markup {
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| {
                let (x, y) = self.at(*x, y.clamp(self.y.0, self.y.1));
                format!("{x:.1},{y:.1}")
            })
            .collect();
        html! { polyline points=(path.join(" ")) fill="none" style=(style) {} }
    }

    fn axes(&self, x_name: &str, y_name: &str, x_ticks: &[f64], y_ticks: &[f64], y_digits: usize) -> Markup {
        let (width, height) = self.size;
        html! {
            @for tick in x_ticks {
                @let (x, bottom) = self.at(*tick, self.y.0);
                line.axis x1=(x) x2=(x) y1=(bottom) y2=(MARGIN) {}
                text.dim x=(x) y=(bottom + 15.0) text-anchor="middle" { (tick) }
            }
            @for tick in y_ticks {
                @let (left, y) = self.at(self.x.0, *tick);
                line.axis x1=(left) x2=(width - MARGIN) y1=(y) y2=(y) {}
                text.dim x=(left - 5.0) y=(y + 4.0) text-anchor="end" { (format!("{tick:.y_digits$}")) }
            }
            text x=((LEFT + width) / 2.0) y=(height - 6.0) text-anchor="middle" { (x_name) }
            text transform=(format!("translate(13 {:.0}) rotate(-90)", height / 2.0 - BOTTOM / 2.0)) text-anchor="middle" { (y_name) }
        }
    }
}

/// Round numbers of 1, 2 and 5 between `low` and `high`.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let from = low.log10().floor() as i32;
    let all =
        (from..=high.log10().ceil() as i32).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    all.filter(|tick| *tick >= low && *tick <= high).collect()
}

fn plane(link: &OnLink) -> Markup {
    let fixed: Vec<(&String, &Point)> = link.fixed.iter().collect();
    let latencies = || {
        let all = fixed.iter().map(|(_, p)| p.latency_ms).chain(link.router.iter().map(|o| o.latency_ms));
        all.filter(|ms| *ms > 0.0)
    };
    let (low, high) = (latencies().fold(f64::MAX, f64::min) * 0.85, latencies().fold(0.0, f64::max) * 1.2);
    let accuracies =
        || fixed.iter().map(|(_, p)| p.accuracy).chain(link.router.iter().flat_map(|o| [o.accuracy, o.oracle]));
    let (worst, best) = (accuracies().fold(1.0, f64::min), accuracies().fold(0.0, f64::max));
    let room = (0.08 * (best - worst)).max(0.001);
    let frame = Frame {
        x: (low, high),
        y: (100.0 * (worst - room), 100.0 * (best + room).min(1.0)),
        log: true,
        size: (720.0, 380.0),
    };
    let ticks: Vec<f64> = (0..=5).map(|i| frame.y.0 + f64::from(i) / 5.0 * (frame.y.1 - frame.y.0)).collect();
    let oracle: Vec<(f64, f64)> = link
        .oracle
        .iter()
        .filter(|p| p.latency_ms >= low && p.latency_ms <= high)
        .map(|p| (p.latency_ms, 100.0 * p.accuracy))
        .collect();
    let points: Vec<Point> = fixed.iter().map(|(_, p)| **p).collect();
    let steps = (0..=80).map(|i| low * (high / low).powf(f64::from(i) / 80.0));
    let random: Vec<(f64, f64)> =
        steps.map(|ms| (ms, 100.0 * super::plane::mixture(&points, ms))).filter(|(_, a)| *a > 0.0).collect();
    let mut routed: Vec<(f64, f64)> = link.router.iter().map(|o| (o.latency_ms, 100.0 * o.accuracy)).collect();
    routed.sort_by(|a, b| a.0.total_cmp(&b.0));
    html! {
        svg viewBox="0 0 720 380" width="720" role="img" aria-label="accuracy against latency" {
            (frame.axes("latency, ms (logarithmic)", "accuracy, %", &decades(low, high), &ticks, 2))
            (frame.line(&random, "stroke: var(--dim); stroke-dasharray: 2 4; stroke-width: 1.5"))
            (frame.line(&oracle, "stroke: var(--c); stroke-dasharray: 7 4; stroke-width: 1.5"))
            (frame.line(&routed, "stroke: var(--a); stroke-width: 2"))
            @for (x, y) in &routed {
                @let (x, y) = frame.at(*x, *y);
                circle cx=(x) cy=(y) r="4" style="fill: var(--a)" {}
            }
            @for (name, point) in &fixed {
                @let (x, y) = frame.at(point.latency_ms, 100.0 * point.accuracy);
                rect x=(x - 4.5) y=(y - 4.5) width="9" height="9" style="fill: var(--b)" {}
                text x=(x) y=(y + 20.0) text-anchor="middle" { (name) }
            }
        }
        figcaption { "Squares: fixed models. Circles: the router at each lambda. Dashes: a router that knows the answers. Dots: the best blind mixture of fixed models." }
    }
}

fn reliability(bins: &[Bin]) -> Markup {
    let least = bins.iter().map(|bin| bin.predicted.min(bin.interval.0)).fold(1.0, f64::min);
    let low = (10.0 * least).floor() / 10.0;
    let frame = Frame { x: (low, 1.0), y: (low, 1.0), log: false, size: (320.0, 260.0) };
    let ticks: Vec<f64> =
        (0..=4).map(|i| ((low + f64::from(i) / 4.0 * (1.0 - low)) * 1000.0).round() / 1000.0).collect();
    html! {
        svg viewBox="0 0 320 260" width="320" role="img" aria-label="reliability" {
            (frame.axes("predicted", "right", &ticks, &ticks, 2))
            (frame.line(&[(low, low), (1.0, 1.0)], "stroke: var(--dim); stroke-dasharray: 2 4"))
            @for bin in bins {
                @let (x, y) = frame.at(bin.predicted, bin.right);
                @let (_, top) = frame.at(bin.predicted, bin.interval.1);
                @let (_, bottom) = frame.at(bin.predicted, bin.interval.0);
                line x1=(x) x2=(x) y1=(top) y2=(bottom) style="stroke: var(--b)" {}
                circle cx=(x) cy=(y) r="3.5" style="fill: var(--b)" { title { (bin.count) " inputs" } }
            }
        }
    }
}

/// The page of pools from several seeds.
pub(super) fn of_seeds(all: &[Records], merged: &Value) -> String {
    let Some(first) = all.first() else { return String::new() };
    let seeds: Vec<&str> = all.iter().map(|records| records.seed.as_str()).collect();
    let spread = |value: Option<&Value>, scale: f64, digits: usize| {
        let number = |key: &str| value.and_then(|v| v.get(key)).and_then(Value::as_f64).map(|v| scale * v);
        let count = value.and_then(|v| v.get("count")).and_then(Value::as_u64).unwrap_or(0);
        match (number("mean"), number("deviation"), number("least"), number("most")) {
            (Some(mean), Some(deviation), Some(least), Some(most)) => html! {
                (format!("{mean:.digits$} ± {deviation:.digits$}")) span.dim { (format!(" ({least:.digits$} to {most:.digits$})")) }
                @if count < all.len() as u64 { span.dim { " in " (count) " of " (all.len()) } }
            },
            _ => html! { (value.and_then(Value::as_str).unwrap_or("")) },
        }
    };
    let at = |path: &[&str]| path.iter().try_fold(merged, |value, key| value.get(*key));
    let keys = |value: Option<&Value>| -> Vec<String> {
        let mut keys: Vec<String> =
            value.and_then(Value::as_object).map_or_else(Vec::new, |o| o.keys().cloned().collect());
        keys.sort_by_key(|key| (key.parse::<u32>().ok(), key.clone()));
        keys
    };
    let body = html! {
        h1 { "Private inference: " (first.task) ", " (all.len()) " training seeds" }
        p.dim { "Seeds " (seeds.join(", ")) "; " (first.labels.len()) " of " (first.test_examples) " test inputs each, answered under the protocol by real parties; mean ± sample "
            "standard deviation (least to most). Measured " (first.date) " on " (first.machine) ". ‘own’ is each pool's recommended lambda ("
            (all.iter().map(|r| r.lambda.to_string()).collect::<Vec<_>>().join(", ")) ")." }
        table {
            thead { tr { th { "model" } th { "accuracy %" } th { "calibration error of its utility, points" } } }
            tbody { @for m in 0..first.models() {
                tr { td { (first.model(m)) } td { (spread(at(&["accuracy", first.model(m)]), 100.0, 2)) } td { (spread(at(&["calibration", first.model(m), "error"]), 100.0, 2)) } }
            } }
        }
        p { "The router's own traffic over that of the largest model: " (spread(at(&["router_overhead"]), 100.0, 2)) " %." }
        p.dim { "Gap closed: of the way from the best blind mixture of models to an oracle, both at the router's latency. The oracle knows every label and which answers happen "
            "to be right. Foreseen: how far one gets that knows every label too, but goes by the answers of models trained from the other seeds. A lambda that is said to be the "
            "fastest was picked among those listed by looking at these test answers; ‘own’ was not." }
        @for link in &first.links {
            @let name = link.name.as_str();
            h2 { (name) }
            ul {
                li { "Faster than the largest model at most half a point below it: " b { (spread(at(&["links", name, "fastest_within_half_a_point"]), 1.0, 2)) } }
                li { "Faster than the cheapest model within half a point of the largest, at no less accuracy: " b { (spread(at(&["links", name, "cheaper_than_best_fixed"]), 1.0, 2)) } }
                @let mean = |key: &str| at(&["links", name, "in_the_mean", key]);
                @let ratio = |key: &str| times(mean(key).and_then(Value::as_f64));
                @let text = |key: &str| mean(key).and_then(Value::as_str).unwrap_or("none");
                li { "On the plane of the means: " b { (ratio("fastest_within_half_a_point")) } " than the largest model at most half a point below it (lambda "
                    (text("fastest_lambda")) "); " b { (ratio("cheaper_than_best_fixed")) } " than " code { (text("best_fixed")) }
                    ", the cheapest within half a point of the largest, at no less accuracy" }
            }
            div.wide { table {
                thead { tr { th { "lambda" } th { "accuracy %" } th { "latency ms" } th { "faster" } th { "points lost" } th { "gap closed %" } th { "foreseen %" } th { "above all lines" } th { "as in clear %" } th { "route and label, bits" } } }
                tbody { @for lambda in keys(at(&["links", name, "router"])) {
                    @let of = |key: &str| at(&["links", name, "router", &lambda, key]);
                    tr.own[lambda == "own"] { td { (lambda) } td { (spread(of("accuracy"), 100.0, 2)) } td { (spread(of("latency_ms"), 1.0, 1)) } td { (spread(of("speed_up"), 1.0, 2)) }
                        td { (spread(of("points_lost"), 1.0, 2)) } td { (spread(of("gap_closed"), 100.0, 0)) } td { (spread(of("gap_foreseen"), 100.0, 0)) } td { (spread(of("above_all_lines"), 1.0, 0)) }
                        td { (spread(of("agreement"), 100.0, 2)) } td { (spread(of("label_bits"), 1.0, 3)) } }
                } }
            } }
        }
    };
    document(&format!("SecureRouter: {}, {} seeds", first.task, all.len()), &body)
}
