//! The product's figures on the whole test split, measured by running the protocol.
//!
//! Needs `target/release/secure-router`; `tests/run` builds it. Takes minutes, so it is asked for.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

fn binary() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
    target.join("release/secure-router")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` is missing in {value}"))
}

#[test]
#[ignore = "minutes long; tests/run asks for it"]
fn the_headline_holds_on_the_whole_test_split() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("figures.json");
    // The demo's routes are those for a UART, whatever link its figures are for.
    let status = Command::new(binary()).args(["demo", "--all", "--json"]).arg(&json).status().unwrap();
    assert!(status.success());
    let report: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();

    assert_eq!(report["evaluated"], report["test_examples"]);
    assert_eq!(report["cost_model_matches_bytes"], true);
    let models = report["models"].as_array().unwrap();
    let router = &report["router"];
    assert!(models.len() >= 3);
    for figures in models.iter().chain([router]) {
        assert!(number(figures, "agreement") >= 0.995, "{figures}");
        let apart = number(figures, "accuracy_protocol") - number(figures, "accuracy_reference");
        assert!(apart.abs() < 0.003, "{figures}");
        assert!(number(figures, "device_ram_bytes") <= 65_536.0);
    }

    let online = |figures: &Value| number(figures, "online_up_bytes") + number(figures, "online_down_bytes");
    let (smallest, largest) = (&models[0], &models[models.len() - 1]);
    assert!(number(largest, "accuracy_protocol") >= 0.99, "{largest}");
    let lost = number(largest, "accuracy_protocol") - number(router, "accuracy_protocol");
    // Half a point, and 99 in 100 routes.
    assert!(lost <= 0.005, "{lost}: {router}");
    assert!(number(router, "routing_agreement") >= 0.99, "{router}");
    // Time on the link alone: computing is for benchmarks.
    for (bytes_per_second, round_trip) in [(92_160.0, 0.0), (100_000.0, 0.030), (12_500_000.0, 0.001)] {
        let time = |figures: &Value| online(figures) / bytes_per_second + number(figures, "round_trips") * round_trip;
        assert!(time(router) * 4.0 <= time(largest), "{bytes_per_second} B/s: {router}");
    }
    assert!(number(router, "accuracy_protocol") >= 0.993, "{router}");
    assert!(online(router) * 10.0 < online(largest));
    assert!(online(smallest) * 10.0 <= online(largest));

    let shape = |model: &&Value| {
        let spec = &model["spec"];
        (spec["tokens"].as_u64(), spec["width"].as_u64(), spec["layers"].as_u64()) == (Some(16), Some(32), Some(1))
    };
    let middle = models.iter().find(shape).expect("the pool has a model of 16 tokens, width 32, one layer");
    assert!(online(middle) <= 30_000.0 && number(middle, "round_trips") <= 8.0, "{middle}");
    let offline = number(middle, "offline_device_up_bytes") + number(middle, "offline_device_down_bytes");
    assert!(offline <= 15_000.0, "{middle}");
}
