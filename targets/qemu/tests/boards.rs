//! Runs the firmware's `selftest` on every board. `targets/test.sh` builds what this needs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, thread};

use secure_router_qemu::{Board, End, Launch, Qemu, can_count};

const RING_FULL: [u8; 2] = [2, 2];
const TIMED_OUT: u8 = 5;

fn launch(board: &str) -> Launch {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/firmware");
    let out = env::var_os("FIRMWARE_OUT").map_or(root, PathBuf::from);
    let elf = out.join(board).join("selftest.elf");
    Launch::new(Board::named(board).unwrap(), elf)
}

/// An empty directory of a test's own.
fn directory(board: &str, test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{board}-{test}"));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Where cargo puts the counting plugin: beside this test's own folder.
fn plugin() -> PathBuf {
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    profile.join("libsecure_router_count.so")
}

fn ready(launch: Launch) -> Qemu {
    let mut qemu = launch.start().unwrap();
    let limit = Some(Duration::from_secs(40));
    qemu.line.set_read_timeout(limit).unwrap();
    assert_eq!(answer(&mut qemu.line), *b"RDY\n");
    qemu
}

fn command(line: &mut TcpStream, letter: u8, length: usize) {
    let mut head = vec![letter];
    head.extend(u32::try_from(length).unwrap().to_le_bytes());
    line.write_all(&head).unwrap();
}

fn answer<const N: usize>(line: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    line.read_exact(&mut bytes).unwrap();
    bytes
}

fn quit(mut qemu: Qemu) -> End {
    command(&mut qemu.line, b'Q', 0);
    qemu.wait().unwrap()
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    bytes.iter().fold(0x811c_9dc5u32, |h, &b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)).to_le_bytes()
}

fn every_byte_arrives_both_ways(board: &str) {
    let mut qemu = ready(launch(board));
    let data = pattern(16 * 1024);

    command(&mut qemu.line, b'T', data.len());
    let mut got = vec![0; data.len()];
    qemu.line.read_exact(&mut got).unwrap();
    assert!(got == data, "device to host");

    command(&mut qemu.line, b'R', data.len());
    qemu.line.write_all(&data).unwrap();
    assert_eq!(answer(&mut qemu.line), checksum(&data), "host to device");

    command(&mut qemu.line, b'E', data.len());
    let mut sender = qemu.line.try_clone().unwrap();
    let sent = data.clone();
    let sender = thread::spawn(move || sender.write_all(&sent));
    qemu.line.read_exact(&mut got).unwrap();
    sender.join().unwrap().unwrap();
    assert!(got == data, "both ways at once");
    assert_eq!(answer(&mut qemu.line), checksum(&data));

    assert_eq!(quit(qemu).code, Some(0));
}

fn a_busy_device_holds_the_line(board: &str) {
    let mut qemu = ready(launch(board));
    let data = pattern(4 * 1024);
    command(&mut qemu.line, b'H', data.len());
    qemu.line.write_all(&data).unwrap();
    assert_eq!(answer(&mut qemu.line), checksum(&data));
    assert_eq!(quit(qemu).code, Some(0));
}

fn a_lost_byte_is_an_error_until_cleared(board: &str) {
    let mut qemu = ready(launch(board));
    command(&mut qemu.line, b'O', 0);
    assert_eq!(answer(&mut qemu.line), *b"k");
    qemu.line.write_all(&[0xff; 2000]).unwrap();
    assert_eq!(answer(&mut qemu.line), RING_FULL);
    qemu.line.write_all(&[0]).unwrap(); // the end of the flood
    assert_eq!(answer(&mut qemu.line), *b"c");
    // The line works again.
    let data = pattern(1000);
    command(&mut qemu.line, b'R', data.len());
    qemu.line.write_all(&data).unwrap();
    assert_eq!(answer(&mut qemu.line), checksum(&data));
    assert_eq!(quit(qemu).code, Some(0));
}

fn silence_times_out(board: &str) {
    let mut qemu = ready(launch(board));
    command(&mut qemu.line, b'W', 300);
    assert_eq!(answer(&mut qemu.line), [TIMED_OUT]);
    command(&mut qemu.line, b'W', 20_000);
    qemu.line.write_all(&[7]).unwrap();
    assert_eq!(answer(&mut qemu.line), [0]);
    assert_eq!(quit(qemu).code, Some(0));
}

fn files_of_the_host_are_read_and_written(board: &str) {
    let directory = directory(board, "files");
    let input = pattern(1234);
    fs::write(directory.join("in.bin"), &input).unwrap();
    fs::write(directory.join("device.key"), [41, 1, 2, 3]).unwrap();
    let launch = launch(board).directory(&directory);
    let launch = ["mode=files", "in=in.bin", "out=out.bin", "key=device.key"].into_iter().fold(launch, Launch::word);
    let end = launch.start().unwrap().wait().unwrap();
    assert_eq!(end.code, Some(0), "{}", end.console);
    let inverted: Vec<u8> = input.iter().map(|b| !b).collect();
    assert!(fs::read(directory.join("out.bin")).unwrap() == inverted);
    assert_eq!(fs::read(directory.join("device.key")).unwrap(), [42, 1, 2, 3]);
}

fn a_missing_file_is_an_error(board: &str) {
    let directory = directory(board, "missing");
    let launch = launch(board).directory(directory).word("mode=files");
    let launch = launch.word("in=nothing.bin").word("out=out.bin");
    let end = launch.start().unwrap().wait().unwrap();
    assert_eq!(end.code, Some(1));
    assert!(end.console.contains("error"), "{:?}", end.console);
}

fn panics_and_faults_end_the_run(board: &str) {
    let end = |word| launch(board).word(word).start().unwrap().wait().unwrap();
    let panic = end("mode=panic");
    assert_eq!(panic.code, Some(101));
    assert!(panic.console.contains("panic: asked to at "), "{:?}", panic.console);
    let fault = end("mode=fault");
    assert_eq!(fault.code, Some(70));
    assert!(fault.console.contains("hard fault"), "{:?}", fault.console);
}

fn a_run_ends_when_killed_or_late(board: &str) {
    let qemu = ready(launch(board));
    assert_eq!(qemu.kill().unwrap().code, None);
    let late = ready(launch(board).limit(Duration::from_secs(2))).wait();
    assert_eq!(late.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

/// A span's count says nothing about how its bytes came: at once, or one by one.
fn transport_is_not_counted(board: &str) {
    let plugin = plugin();
    if !can_count(&plugin) {
        // A QEMU that serves another version of the plugin interface; measure.sh falls back.
        assert!(env::var_os("CI").is_none(), "nothing to count with");
        return;
    }
    let directory = directory(board, "count");
    let out = directory.join("spans");
    let mut qemu = ready(launch(board).count(&plugin, &out));
    for (fill, pause) in [(0, 0), (0xff, 0), (0x55, 5), (0xaa, 1)] {
        command(&mut qemu.line, b'S', 0);
        for byte in [fill; 64] {
            qemu.line.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_millis(pause));
        }
        let _: [u8; 4] = answer(&mut qemu.line);
    }
    assert_eq!(quit(qemu).code, Some(0));
    let text = fs::read_to_string(out).unwrap();
    let mut spans: Vec<_> = text.lines().collect();
    assert!(spans.pop().unwrap().starts_with("total "));
    assert_eq!(spans.len(), 4);
    assert!(spans[0].starts_with("online "));
    assert!(spans.iter().all(|span| *span == spans[0]), "{spans:?}");
}

macro_rules! on_boards {
    ($($module:ident $board:literal: $tests:tt;)*) => {
        $(mod $module { tests!($board $tests); })*

        #[test]
        fn every_board_is_tested() {
            let tested = [$($board),*];
            assert!(Board::ALL.iter().all(|board| tested.contains(&board.name)));
        }
    };
}

macro_rules! tests {
    ($board:literal [$($test:ident)*]) => {
        $(#[test] fn $test() { super::$test($board) })*
    };
    ($board:literal all) => {
        tests!($board [
            every_byte_arrives_both_ways
            a_busy_device_holds_the_line
            a_lost_byte_is_an_error_until_cleared
            silence_times_out
            files_of_the_host_are_read_and_written
            a_missing_file_is_an_error
            panics_and_faults_end_the_run
            a_run_ends_when_killed_or_late
            transport_is_not_counted
        ]);
    };
}

on_boards! {
    lm3s6965evb "lm3s6965evb": all;
    microbit "microbit": all;
    mps2_an386 "mps2-an386": all;
    mps2_an500 "mps2-an500": all;
    mps2_an505 "mps2-an505": all;
    netduinoplus2 "netduinoplus2": all;
}
