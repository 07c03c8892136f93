//! Looks through firmware for instructions whose time depends on their operands.
//!
//!     secure-router-scan ELF --cpu Cortex-M3 [--root NAME].. [--allow FILE]
//!
//! Everywhere: `udiv`, `sdiv`, `vdiv`, `vsqrt`, and calls of the routines that stand for division
//! and floating point where the core has neither. On the Cortex-M3 also the long multiplies,
//! which end early there. With `--root` only functions that direct calls reach from one whose
//! name holds NAME are looked at, and the indirect calls among them, which nobody follows, are
//! named. Each finding is printed with its function, address and source line; exit code 1 if
//! one is not allowed, 2 if the scan could not be made.
//!
//! A line of the allow file is `WHERE WHAT # REASON`: a part of the function's name or of the
//! source file's (spaces left out), an instruction or routine or `*`, and why it is no leak.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};
use std::{env, fs};

/// Disassembled code, by function.
#[derive(Debug, Default)]
struct Program {
    functions: BTreeMap<String, Vec<Instruction>>,
}

#[derive(Debug)]
struct Instruction {
    address: String,
    /// Without its condition and width.
    mnemonic: String,
    /// The function it branches to, if it leaves its own and says where.
    target: Option<String>,
    indirect: bool,
    source: String,
}

impl Program {
    /// Reads `objdump -d -l -C --no-show-raw-insn`, of binutils or LLVM.
    fn parse(listing: &str) -> Self {
        let mut program = Self::default();
        let mut current = String::new();
        let mut source = String::new();
        for line in listing.lines() {
            if let Some(name) = header(line) {
                current = name.to_owned();
                source.clear();
                program.functions.entry(current.clone()).or_default();
            } else if let Some(place) = source_line(line) {
                source = place.to_owned();
            } else if let Some(mut instruction) = instruction(line) {
                instruction.source.clone_from(&source);
                if instruction.target.as_deref() == Some(current.as_str()) {
                    instruction.target = None;
                }
                if let Some(body) = program.functions.get_mut(&current) {
                    body.push(instruction);
                }
            }
        }
        program
    }

    /// The functions to look at: all, or what direct calls reach from the roots.
    fn reached(&self, roots: &[String]) -> Result<BTreeSet<&str>, String> {
        let mut todo = Vec::new();
        for root in roots {
            let before = todo.len();
            todo.extend(self.functions.keys().filter(|name| name.contains(root)));
            if todo.len() == before {
                return Err(format!("no function's name holds {root}"));
            }
        }
        if roots.is_empty() {
            todo.extend(self.functions.keys());
        }
        let mut reached = BTreeSet::new();
        while let Some(name) = todo.pop() {
            if reached.insert(name.as_str()) {
                let targets = self.functions[name].iter().filter_map(|i| i.target.as_ref());
                todo.extend(targets.filter_map(|t| self.functions.get_key_value(t).map(|(k, _)| k)));
            }
        }
        Ok(reached)
    }
}

/// `00000458 <name>:`. LLVM shows ARM's mapping symbols as well: `$t` behind a table in the midst of a function begins none.
fn header(line: &str) -> Option<&str> {
    let (address, rest) = line.split_once(" <")?;
    let hexadecimal = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit());
    rest.strip_suffix(">:").filter(|name| hexadecimal && !name.starts_with('$'))
}

/// `/path/file.rs:12`, in LLVM's listing after `; `.
fn source_line(line: &str) -> Option<&str> {
    let place = line.strip_prefix("; ").unwrap_or(line);
    let place = place.split(" (discriminator").next()?;
    let (path, number) = place.rsplit_once(':')?;
    let plain = !line.starts_with(char::is_whitespace) && path.contains('.');
    let numeric = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (plain && numeric).then_some(place)
}

/// `45c:`, `bl` and `1628 <name>`, white space between; indented unless the address is long.
fn instruction(line: &str) -> Option<Instruction> {
    let (address, code) = line.trim_start().split_once(':')?;
    let hexadecimal = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit());
    if !hexadecimal || !code.starts_with(char::is_whitespace) {
        return None;
    }
    let code = code.trim_start();
    let (mnemonic, operands) = code.split_once(char::is_whitespace).unwrap_or((code, ""));
    let mnemonic = base(mnemonic);
    let target = operands
        .split_once('<')
        .and_then(|(_, rest)| rest.rsplit_once('>'))
        .map(|(name, _)| strip_offset(name).to_owned())
        .filter(|_| mnemonic.starts_with('b') || mnemonic.starts_with("cb"));
    Some(Instruction {
        address: address.to_owned(),
        indirect: mnemonic == "blx" && target.is_none(),
        mnemonic,
        target,
        source: String::new(),
    })
}

fn strip_offset(name: &str) -> &str {
    match name.rsplit_once("+0x") {
        Some((function, offset)) if offset.bytes().all(|b| b.is_ascii_hexdigit()) => function,
        _ => name,
    }
}

/// The instructions sought, by what their mnemonic starts with: a condition may follow (`udivne`).
const ALWAYS: [&str; 4] = ["udiv", "sdiv", "vdiv", "vsqrt"];
const LONG_MULTIPLIES: [&str; 4] = ["umull", "smull", "umlal", "smlal"];

/// A mnemonic as the tables know it: `udivne.w` is `udiv`. What they do not know keeps its name.
fn base(mnemonic: &str) -> String {
    let plain = mnemonic.split('.').next().unwrap_or(mnemonic);
    let known = ALWAYS.iter().chain(&LONG_MULTIPLIES).find(|known| {
        // `smlalbb` and its kin multiply 16 bits; only `smlal` and a condition is the long one.
        plain.strip_prefix(*known).is_some_and(|rest| rest.is_empty() || CONDITIONS.contains(&rest))
    });
    known.map_or(plain, |known| known).to_owned()
}

const CONDITIONS: [&str; 16] =
    ["eq", "ne", "cs", "hs", "cc", "lo", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le"];

/// Whether a routine divides or computes in floating point in software.
fn is_slow_routine(name: &str) -> bool {
    const INTEGER: [&str; 12] = [
        "idiv", "idivmod", "uidiv", "uidivmod", "ldivmod", "uldivmod", "divsi3", "udivsi3", "modsi3", "umodsi3",
        "divdi3", "udivdi3",
    ];
    const MORE: [&str; 6] = ["moddi3", "umoddi3", "udivmodsi4", "udivmoddi4", "divti3", "udivti3"];
    const FLOAT: [&str; 10] = ["fadd", "fsub", "fmul", "fdiv", "dadd", "dsub", "dmul", "ddiv", "sqrtf", "sqrt"];
    let routine = name.trim_start_matches('_').trim_start_matches("aeabi_");
    name.starts_with("__")
        && (INTEGER.contains(&routine)
            || MORE.contains(&routine)
            || FLOAT.contains(&routine)
            || ["sf3", "df3"].iter().any(|end| routine.ends_with(end)))
        || name.contains("specialized_div_rem")
}

#[derive(Debug, PartialEq, Eq)]
struct Finding<'a> {
    function: &'a str,
    address: &'a str,
    what: &'a str,
    source: &'a str,
}

fn findings<'a>(program: &'a Program, reached: &BTreeSet<&str>, cpu: &str) -> Vec<Finding<'a>> {
    let mut found = Vec::new();
    for (function, body) in &program.functions {
        // A slow routine is reported where it is called.
        if !reached.contains(function.as_str()) || is_slow_routine(function) {
            continue;
        }
        for instruction in body {
            let mnemonic = instruction.mnemonic.as_str();
            let sought = ALWAYS.contains(&mnemonic) || cpu == "Cortex-M3" && LONG_MULTIPLIES.contains(&mnemonic);
            let what = match &instruction.target {
                _ if sought => mnemonic,
                Some(target) if is_slow_routine(target) => target,
                _ => continue,
            };
            found.push(Finding { function, address: &instruction.address, what, source: &instruction.source });
        }
    }
    found
}

#[derive(Debug)]
struct Allowed {
    place: String,
    what: String,
}

impl Allowed {
    fn parse(text: &str) -> Result<Vec<Self>, String> {
        let lines = (1..).zip(text.lines());
        let entries = lines.filter(|(_, l)| !l.trim().is_empty() && !l.trim().starts_with('#'));
        entries
            .map(|(number, line)| {
                let (entry, reason) = line.split_once('#').unwrap_or((line, ""));
                match *entry.split_whitespace().collect::<Vec<_>>() {
                    [place, what] if !reason.trim().is_empty() => {
                        Ok(Self { place: place.to_owned(), what: what.to_owned() })
                    }
                    _ => Err(format!("line {number} is not `WHERE WHAT # REASON`: {line}")),
                }
            })
            .collect()
    }

    fn covers(&self, finding: &Finding<'_>) -> bool {
        let function = finding.function.replace(' ', "");
        (self.what == "*" || self.what == finding.what)
            && (function.contains(&self.place) || finding.source.contains(&self.place))
    }
}

fn disassemble(elf: &str) -> Result<String, String> {
    const TOOLS: [&str; 3] = ["arm-none-eabi-objdump", "llvm-objdump", "rust-objdump"];
    for tool in TOOLS {
        let Ok(output) = Command::new(tool).args(["-d", "-l", "-C", "--no-show-raw-insn", elf]).output() else {
            continue;
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{tool}: {}", error.trim()));
    }
    Err(format!("none of {} is installed", TOOLS.join(", ")))
}

fn run() -> Result<bool, String> {
    const USAGE: &str = "usage: secure-router-scan ELF --cpu Cortex-M3 [--root NAME].. [--allow FILE]";
    let mut elf = None;
    let mut cpu = None;
    let mut roots = Vec::new();
    let mut allowed = Vec::new();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(USAGE);
        match argument.as_str() {
            "--cpu" => cpu = Some(value()?),
            "--root" => roots.push(value()?),
            "--allow" => {
                let path = value()?;
                let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
                allowed.extend(Allowed::parse(&text).map_err(|e| format!("{path}: {e}"))?);
            }
            _ if elf.is_none() && !argument.starts_with('-') => elf = Some(argument),
            _ => return Err(USAGE.into()),
        }
    }
    let (elf, cpu) = elf.zip(cpu).ok_or(USAGE)?;
    let program = Program::parse(&disassemble(&elf)?);
    let reached = program.reached(&roots)?;
    let count: usize = reached.iter().map(|name| program.functions[*name].len()).sum();
    if count == 0 {
        return Err(format!("{elf}: nothing to disassemble"));
    }
    let found = findings(&program, &reached, &cpu);
    let (allowed, refused): (Vec<_>, Vec<_>) =
        found.iter().partition(|finding| allowed.iter().any(|entry| entry.covers(finding)));
    for Finding { function, address, what, source } in &refused {
        println!("{what} at 0x{address} in {function} ({source})");
    }
    if !roots.is_empty() {
        for name in &reached {
            let calls = program.functions[*name].iter().filter(|i| i.indirect).count();
            if calls > 0 {
                println!("note: {calls} indirect calls in {name} are not followed");
            }
        }
    }
    println!(
        "{cpu}: {count} instructions in {} functions: {} variable-time, {} of them allowed",
        reached.len(),
        found.len(),
        allowed.len()
    );
    Ok(refused.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINUTILS: &str = "
selftest.elf:     file format elf32-littlearm

Disassembly of section .text:

00000400 <kernel::step>:
kernel::step():
/src/kernel.rs:10
     400:\tpush\t{r7, lr}
     402:\tbl\t480 <kernel::inner>
/src/kernel.rs:11 (discriminator 2)
     406:\tumull\tr0, r1, r2, r3
     40a:\tsmlalbb\tr0, r1, r2, r3
     40e:\tblx\tr4
     410:\tbeq.n\t402 <kernel::step+0x2>
     412:\tb.w\t500 <__aeabi_uidiv>

00000480 <kernel::inner>:
/src/kernel.rs:20
     480:\tudivne\tr0, r0, r1

00000500 <__aeabi_uidiv>:
     500:\tudiv\tr0, r0, r1

10000600 <display>:
/src/display.rs:5
10000600:\tsdiv\tr0, r0, r1
";

    fn found(listing: &str, roots: &[&str], cpu: &str) -> Vec<(String, String)> {
        let program = Program::parse(listing);
        let roots: Vec<_> = roots.iter().map(|r| (*r).to_owned()).collect();
        let reached = program.reached(&roots).unwrap_or_default();
        findings(&program, &reached, cpu).iter().map(|f| (f.what.to_owned(), f.source.to_owned())).collect()
    }

    fn pair(what: &str, source: &str) -> (String, String) {
        (what.to_owned(), source.to_owned())
    }

    #[test]
    fn finds_divisions_and_on_the_m3_long_multiplies() {
        let everywhere = [
            pair("sdiv", "/src/display.rs:5"),
            pair("udiv", "/src/kernel.rs:20"),
            pair("__aeabi_uidiv", "/src/kernel.rs:11"),
        ];
        assert_eq!(found(BINUTILS, &[], "Cortex-M4F"), everywhere);
        assert_eq!(found(BINUTILS, &[], "Cortex-M3").len(), 4);
        assert!(found(BINUTILS, &[], "Cortex-M3").contains(&pair("umull", "/src/kernel.rs:11")));
    }

    #[test]
    fn follows_direct_calls_from_a_root() {
        let reached = found(BINUTILS, &["kernel::step"], "Cortex-M33");
        assert_eq!(reached, [pair("udiv", "/src/kernel.rs:20"), pair("__aeabi_uidiv", "/src/kernel.rs:11")]);
        assert!(Program::parse(BINUTILS).reached(&["nothing".into()]).is_err());
    }

    #[test]
    fn reads_llvm_listings() {
        let llvm = "
000081fc <kernel::step>:
; kernel::step():
; /src/kernel.rs:12
    81fc:       \tsmull\tr0, r1, r2, r3
    8200:       \tbl\t0x8280 <display> @ imm = #124
    8204:       \ttbb\t[pc, r0]

00008208 <$d>:
    8208:       02 04   .short  0x0402

0000820a <$t>:
    820a:       \tudiv\tr0, r1, r2

00008280 <display>:
; /src/display.rs:5
    8280:      \tvdiv.f32\ts0, s0, s1
";
        let of_step = |what| pair(what, "/src/kernel.rs:12");
        let expected = [pair("vdiv", "/src/display.rs:5"), of_step("smull"), of_step("udiv")];
        assert_eq!(found(llvm, &["step"], "Cortex-M3"), expected);
    }

    #[test]
    fn an_exception_needs_a_reason() {
        let entries = Allowed::parse("# comment\n\ndisplay.rs sdiv # prints a public number\n");
        let entries = entries.unwrap_or_default();
        let program = Program::parse(BINUTILS);
        let reached = program.reached(&[]).unwrap_or_default();
        let all = findings(&program, &reached, "Cortex-M33");
        let covered = all.iter().filter(|f| entries.iter().any(|e| e.covers(f)));
        assert_eq!(covered.map(|f| f.what).collect::<Vec<_>>(), ["sdiv"]);
        assert!(Allowed::parse("display sdiv").is_err());
        assert!(Allowed::parse("display sdiv #  ").is_err());
    }

    #[test]
    fn software_division_is_known_by_name() {
        assert!(is_slow_routine("__aeabi_uldivmod"));
        assert!(is_slow_routine("__udivsi3"));
        assert!(is_slow_routine("__aeabi_fmul"));
        assert!(!is_slow_routine("__aeabi_memcpy"));
        assert!(!is_slow_routine("__aeabi_lmul"));
        assert!(!is_slow_routine("kernel::divide"));
    }
}
