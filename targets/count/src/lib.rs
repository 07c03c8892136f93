//! QEMU plugin that counts guest instructions between the marks of the firmware's `span` module.
//!
//! Run QEMU with `-plugin libsecure_router_count.so,out=FILE`. Each finished span appends a line
//! to the file, `offline N` or `online N`, and the end of the run `total N`. Instructions are not
//! cycles: cores of one instruction set count the same whatever their clock does.
//!
//! The marks, each a 16-bit `mov` of a register onto itself:
//!
//! | mark           | meaning                                                          |
//! | -------------- | ---------------------------------------------------------------- |
//! | `mov r9, r9`   | an offline span starts                                           |
//! | `mov lr, lr`   | an online span starts                                            |
//! | `mov r10, r10` | the span ends                                                    |
//! | `mov r11, r11` | stop counting, nestable                                          |
//! | `mov r12, r12` | undo the last stop; the instruction after it is not counted either |
//!
//! Marks are not counted. Written for version 1 of QEMU's plugin interface (QEMU 4.2 to 8.x); a
//! QEMU that no longer serves it refuses the plugin at start, and the caller falls back to
//! `-icount`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

type Id = u64;
type OnMark = extern "C" fn(c_uint, *mut c_void);

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, cb: extern "C" fn(Id, *mut c_void));
    fn qemu_plugin_register_atexit_cb(id: Id, cb: extern "C" fn(Id, *mut c_void), data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(insn: *const c_void) -> *const c_void;
    fn qemu_plugin_insn_size(insn: *const c_void) -> usize;
    fn qemu_plugin_register_vcpu_insn_exec_inline(
        insn: *mut c_void,
        operation: c_int,
        counter: *mut c_void,
        addend: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(insn: *mut c_void, cb: OnMark, flags: c_int, data: *mut c_void);
}

/// The interface version this was written for.
// SAFETY: the one symbol of this name that QEMU looks up in the plugin.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

/// All instructions so far; QEMU adds to it before each runs.
static COUNT: AtomicU64 = AtomicU64::new(0);
static SPAN: Mutex<Option<Span>> = Mutex::new(None);
/// Stops that were not undone, in a span or out of it.
static STOPS: AtomicU64 = AtomicU64::new(0);
static OUT: Mutex<Option<File>> = Mutex::new(None);

struct Span {
    name: &'static str,
    counted: u64,
    /// Where counting started or went on.
    since: u64,
}

fn say(name: &str, count: u64) {
    let Ok(mut out) = OUT.lock() else { return };
    let result = match out.as_mut() {
        Some(file) => writeln!(file, "{name} {count}"),
        None => writeln!(std::io::stderr(), "{name} {count}"),
    };
    if let Err(error) = result {
        eprintln!("count: {error}");
    }
}

fn with_span(change: impl FnOnce(&mut Option<Span>, u64)) {
    if let Ok(mut span) = SPAN.lock() {
        change(&mut span, COUNT.load(Relaxed));
    }
}

fn start(name: &'static str) {
    with_span(|span, count| {
        *span = Some(Span { name, counted: 0, since: count });
    });
}

extern "C" fn start_offline(_: c_uint, _: *mut c_void) {
    start("offline");
}

extern "C" fn start_online(_: c_uint, _: *mut c_void) {
    start("online");
}

extern "C" fn end(_: c_uint, _: *mut c_void) {
    with_span(|span, count| {
        // The count has taken in the mark itself.
        if let Some(span) = span.take() {
            say(span.name, span.counted + (count - span.since - 1));
        }
    });
}

extern "C" fn stop(_: c_uint, _: *mut c_void) {
    with_span(|span, count| {
        if STOPS.fetch_add(1, Relaxed) == 0
            && let Some(span) = span
        {
            span.counted += count - span.since - 1;
        }
    });
}

extern "C" fn undo_stop(_: c_uint, _: *mut c_void) {
    with_span(|span, count| {
        let before = STOPS.load(Relaxed);
        STOPS.store(before.saturating_sub(1), Relaxed);
        if before == 1
            && let Some(span) = span
        {
            span.since = count + 1;
        }
    });
}

extern "C" fn on_block(_: Id, block: *mut c_void) {
    // SAFETY: QEMU hands over a block that is valid during this call; indices are below its
    // length, an instruction's data holds as many bytes as its size says, and the counter and
    // the callbacks live as long as the plugin.
    unsafe {
        for index in 0..qemu_plugin_tb_n_insns(block) {
            let insn = qemu_plugin_tb_get_insn(block, index);
            const ADD: c_int = 0;
            qemu_plugin_register_vcpu_insn_exec_inline(insn, ADD, COUNT.as_ptr().cast(), 1);
            // Not `!= 2`: at the end of a page QEMU takes the next instruction's first half for
            // part of this one. No 32-bit instruction starts like a mark.
            if qemu_plugin_insn_size(insn) < 2 {
                continue;
            }
            let code = qemu_plugin_insn_data(insn).cast::<[u8; 2]>().read();
            let on_mark: OnMark = match u16::from_le_bytes(code) {
                0x46c9 => start_offline,
                0x46f6 => start_online,
                0x46d2 => end,
                0x46db => stop,
                0x46e4 => undo_stop,
                _ => continue,
            };
            const NO_REGISTERS: c_int = 0;
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_mark, NO_REGISTERS, std::ptr::null_mut());
        }
    }
}

extern "C" fn on_exit(_: Id, _: *mut c_void) {
    say("total", COUNT.load(Relaxed));
}

/// QEMU's entry into the plugin.
///
/// # Safety
///
/// Called by QEMU, with `count` C strings in `arguments`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: QEMU gives `count` C strings.
        let argument = unsafe { CStr::from_ptr(*arguments.add(index)) }.to_string_lossy();
        let Some(path) = argument.strip_prefix("out=") else {
            eprintln!("count: no such option: {argument}");
            return -1;
        };
        match OpenOptions::new().append(true).create(true).open(path) {
            Ok(file) => {
                if let Ok(mut out) = OUT.lock() {
                    *out = Some(file);
                }
            }
            Err(error) => {
                eprintln!("count: {path}: {error}");
                return -1;
            }
        }
    }
    // SAFETY: the callbacks live as long as the plugin and expect no data.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
        qemu_plugin_register_atexit_cb(id, on_exit, std::ptr::null_mut());
    }
    0
}
