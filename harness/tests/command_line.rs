//! The command line says what is wrong in one line, and exits with a failure.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{BufRead as _, BufReader, ErrorKind};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const POOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech/pool.safetensors");

/// Runs the command in `directory`.
fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_secure-router")).current_dir(directory).args(arguments).output().unwrap()
}

fn fails_with(directory: &Path, arguments: &[&str], words: &str) {
    let output = run(directory, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(said.contains(words), "{arguments:?} said: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?} said: {said}");
}

#[test]
fn errors_are_one_line_and_a_failing_exit() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    fails_with(here, &["device"], "make it with `secure-router provision`");
    fails_with(here, &["cost", "--pool", "nowhere"], "cannot read the pool nowhere");
    fails_with(here, &["provision", "--device", "a b"], "letters, digits");
    fails_with(here, &["demo", "--count", "0"], "--count must be between 1 and");
    fails_with(here, &["demo", "--count", "751"], "--count must be between 1 and");

    std::fs::write(here.join("pool"), b"not a pool").unwrap();
    fails_with(here, &["cost", "--pool", "pool"], "pool is not a valid pool");
    std::fs::write(here.join("broken.json"), "{\n  \"secret\": \"00\"\n}").unwrap();
    fails_with(here, &["deal", "--keys", "broken.json"], "broken.json is not a key file: line");

    let mut cut = std::fs::read(POOL).unwrap();
    cut.truncate(cut.len() / 2);
    std::fs::write(here.join("cut"), cut).unwrap();
    fails_with(here, &["cost", "--pool", "cut"], "cut is not a valid pool");
}

#[test]
fn a_device_is_provisioned_once_and_its_keys_are_its_owners() {
    let directory = tempfile::tempdir().unwrap();
    assert!(run(directory.path(), &["provision", "--device", "kitchen"]).status.success());
    let file = directory.path().join("keys/device-kitchen.json");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    fails_with(directory.path(), &["provision", "--device", "kitchen"], "provisioned once");
    // Into the directory that is made for it.
    let other = tempfile::tempdir().unwrap();
    let into = ["provision", "--device", "board", "--firmware", "keys/board.key"];
    assert!(run(other.path(), &into).status.success());
    // As firmware reads them; a file that cannot be made leaves no device.
    let board = ["provision", "--device", "board", "--firmware"];
    fails_with(directory.path(), &[&board[..], &["nowhere/device.key"]].concat(), "cannot write nowhere/device.key");
    fails_with(directory.path(), &["provision", "--device", "kitchen", "--firmware", "device.key"], "provisioned once");
    assert!(run(directory.path(), &[&board[..], &["device.key"]].concat()).status.success());
    let firmware = std::fs::read(directory.path().join("device.key")).unwrap();
    assert_eq!((firmware.len(), &firmware[..4], &firmware[132..]), (136, &b"SRK2"[..], &[0xff; 4][..]));
    // No secret of one party stands in another's file but those they share.
    let text = |name: &str| std::fs::read_to_string(directory.path().join("keys").join(name)).unwrap();
    let value = |name: &str| serde_json::from_str::<serde_json::Value>(&text(name)).unwrap();
    let secret = |name: &str| value(name)["secret"].as_str().unwrap().to_owned();
    for (owner, others) in [
        ("server.json", ["dealer.json", "device-kitchen.json"]),
        ("dealer.json", ["server.json", "device-kitchen.json"]),
        ("device-kitchen.json", ["server.json", "dealer.json"]),
    ] {
        others.iter().for_each(|other| assert!(!text(other).contains(&secret(owner)), "{owner} in {other}"));
    }
    let device = value("device-kitchen.json");
    assert!(!text("server.json").contains(device["device_dealer"].as_str().unwrap()));
    assert!(!text("dealer.json").contains(device["device_server"].as_str().unwrap()));
}

#[test]
fn nobody_listening_is_said() {
    let directory = tempfile::tempdir().unwrap();
    assert!(run(directory.path(), &["provision", "--device", "desktop"]).status.success());
    fails_with(directory.path(), &["device", "--server", "127.0.0.1:1"], "cannot reach the server at 127.0.0.1:1");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_secure-router"));
    let mut child = child.arg("cost").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert!(output.status.success());
}

#[test]
fn parties_end_with_the_demo_that_was_killed() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_secure-router"));
    let mut demo = demo.args(["demo", "--count", "750"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(demo.stderr.take().unwrap());
    let line = said.lines().map(Result::unwrap).find(|line| line.starts_with("dealer on")).unwrap();
    let addresses: Vec<&str> = line.split([' ', ',']).filter(|word| word.starts_with("127.0.0.1:")).collect();
    assert_eq!(addresses.len(), 2, "{line}");
    addresses.iter().for_each(|address| drop(TcpStream::connect(address).unwrap()));
    demo.kill().unwrap();
    demo.wait().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    for address in addresses {
        let gone = || TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        while !gone() {
            assert!(Instant::now() < patience, "{address} still listens");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_report_is_one_page_whose_figures_are_those_of_the_parties() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    fails_with(here, &["report"], "give --html or --json");
    fails_with(here, &["report", "--pool", "nowhere", "--json", "r.json"], "cannot read the pool nowhere");

    let quick =
        ["report", "--count", "4", "--lambdas", "200", "--links", "uart", "--html", "r.html", "--json", "r.json"];
    let output = run(here, &quick);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(here.join("r.json")).unwrap()).unwrap();
    let costs: serde_json::Value = serde_json::from_slice(&run(here, &["cost", "--json"]).stdout).unwrap();
    for cost in costs.as_array().unwrap() {
        let programs = report["records"]["programs"].as_array().unwrap();
        let program = programs.iter().find(|program| program["name"] == cost["name"]).unwrap();
        assert_eq!((&program["up"], &program["down"]), (&cost["online_up_bytes"], &cost["online_down_bytes"]));
    }
    assert_eq!(report["records"]["labels"].as_array().unwrap().len(), 4);
    // The pool's own lambda and the other one: a higher one is never dearer.
    let routed = report["figures"]["links"]["uart"]["router"].as_array().unwrap();
    assert_eq!(routed.len(), 2);
    assert!(routed.is_sorted_by(|a, b| a["bytes"].as_f64().unwrap() >= b["bytes"].as_f64().unwrap()));

    let page = std::fs::read_to_string(here.join("r.html")).unwrap();
    for foreign in ["http://", "https://", "src=", "<script", "@import", "url("] {
        assert!(!page.contains(foreign), "the page holds `{foreign}`");
    }
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));

    fails_with(here, &["report", "--merge", "r.json", "r.json", "--json", "m.json"], "two reports are of seed");
    std::fs::write(here.join("other.json"), "{}").unwrap();
    fails_with(
        here,
        &["report", "--merge", "other.json", "--json", "m.json"],
        "other.json is not the report of one pool",
    );
    assert!(run(here, &["report", "--merge", "r.json", "--json", "m.json", "--html", "m.html"]).status.success());
    let merged: serde_json::Value = serde_json::from_slice(&std::fs::read(here.join("m.json")).unwrap()).unwrap();
    let accuracy = &merged["figures"]["accuracy"]["large"];
    assert_eq!(
        (&accuracy["mean"], accuracy["deviation"].as_f64()),
        (&report["figures"]["accuracy"]["large"], Some(0.0))
    );
}
