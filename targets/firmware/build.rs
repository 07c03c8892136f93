//! Turns the chosen board's file into `memory.x` for the linker and constants for the firmware.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let boards = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../boards");
    println!("cargo:rerun-if-changed={}", boards.display());
    println!("cargo:rerun-if-env-changed=FIRMWARE_WORK");
    let mut chosen = Vec::new();
    for entry in fs::read_dir(&boards)? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|s| s.to_str()) else {
            continue;
        };
        let feature = name.to_uppercase().replace('-', "_");
        if env::var_os(format!("CARGO_FEATURE_{feature}")).is_some() {
            chosen.push((name.to_owned(), path.clone()));
        }
    }
    let [(name, path)] = chosen.as_slice() else {
        return Err(format!("choose exactly one board feature; chosen: {chosen:?}").into());
    };
    let text = fs::read_to_string(path)?;
    let field = |key: &str| -> Result<&str, String> {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(k, _)| k.trim() == key)
            .map(|(_, v)| v.trim().trim_matches('"'))
            .ok_or(format!("{}: no `{key}`", path.display()))
    };
    if field("target")? != env::var("TARGET")? {
        return Err(format!("{name} is a {} board", field("target")?).into());
    }

    let mut memory = String::from("MEMORY\n{\n");
    for region in ["flash", "ram"] {
        let (origin, length) =
            field(region)?.split_once(' ').ok_or(format!("{name}: `{region}` is not ORIGIN LENGTH"))?;
        let region = region.to_uppercase();
        writeln!(memory, "  {region} : ORIGIN = {origin}, LENGTH = {length}")?;
    }
    memory.push_str("}\n");

    let mut board = String::new();
    writeln!(board, "/// The board's name.\npub const NAME: &str = {name:?};")?;
    let work = env::var("FIRMWARE_WORK").or_else(|_| field("work").map(str::to_owned))?;
    let mut clock = field("clock")?;
    if env::var_os("CARGO_FEATURE_QEMU").is_some() {
        clock = field("qemu-clock").unwrap_or(clock);
    }
    for (constant, kind, value, what) in [
        ("BASE", "usize", field("base")?, "Address of UART 0"),
        ("IRQ", "u16", field("irq")?, "Interrupt number of UART 0"),
        ("CLOCK", "u32", clock, "Core clock in Hz once the UART is set up"),
        ("TILE", "u16", field("tile")?, "Tokens of a linear gate that are masked at a time"),
        ("WORK_WORDS", "usize", &work, "Words of the session's work space"),
        ("RING", "usize", field("ring")?, "Received bytes that can wait while the firmware computes; a power of two"),
        ("INPUT_VALUES", "usize", field("input")?, "Most values of an input"),
    ] {
        writeln!(board, "/// {what}.\npub const {constant}: {kind} = {value};")?;
    }

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("memory.x"), memory)?;
    fs::write(out.join("board.rs"), board)?;
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    // Without it a linker may put the program headers into flash, in front of the vectors.
    println!("cargo:rustc-link-arg-bins=--nmagic");
    println!("cargo:rustc-check-cfg=cfg(uart, values(\"cmsdk\", \"pl011\", \"stm32\", \"nrf51\"))");
    println!("cargo:rustc-cfg=uart={:?}", field("uart")?);
    Ok(())
}
