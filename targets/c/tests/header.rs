//! The header is what the Rust side says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::{env, fs};

#[test]
fn the_header_is_up_to_date() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in ["abi.rs", "code.rs", "ffi.rs"] {
        builder = builder.with_src(here.join("src").join(source));
    }
    builder.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    // What Rust asks of a caller is said in the header's words at its top.
    let made = tidied(&made);
    let path = here.join("include/secure_router.h");
    if env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap() == made, "run the tests with UPDATE_HEADER=1");
}

/// Drops the `# Safety` sections of the comments, and puts negative numbers in brackets.
fn tidied(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut dropping = false;
    for line in text.lines() {
        let comment = line.trim_start().strip_prefix("//");
        if comment.is_some_and(|words| words.trim() == "# Safety") {
            dropping = true;
            // The empty line in front.
            lines.pop();
        }
        dropping &= comment.is_some();
        if !dropping {
            lines.push(match line.strip_prefix("#define ").and_then(|rest| rest.split_once(" -")) {
                Some((name, number)) => format!("#define {name} (-{number})"),
                None => line.trim_end().to_owned(),
            });
        }
    }
    lines.join("\n") + "\n"
}
