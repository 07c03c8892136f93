//! Marks in the instruction stream, counted from outside.
//!
//! A mark is `mov rX, rX` on a high register, which no compiler emits; it does nothing. The
//! counting plugin (`targets/count`) sums the instructions between the marks of a phase and leaves
//! out the pauses, so that a phase holds the kernel's work and neither the bytes' transport nor
//! the waiting for them. Without the plugin, and with QEMU's `-icount`, SysTick gives the same
//! within a tick: [`ticks`].

use core::sync::atomic::{AtomicU32, Ordering};

/// What a span measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the input exists.
    Offline,
    /// From the input to the answer.
    Online,
}

macro_rules! mark {
    ($register:literal) => {
        // SAFETY: moves a register onto itself.
        unsafe {
            core::arch::asm!(concat!("mov ", $register, ", ", $register), options(nomem, nostack, preserves_flags))
        }
    };
}

static SINCE: AtomicU32 = AtomicU32::new(0);
static TOTAL: AtomicU32 = AtomicU32::new(0);
static OPEN: AtomicU32 = AtomicU32::new(0);

/// Runs `work` as one span.
#[inline(always)]
pub fn measured<T>(phase: Phase, work: impl FnOnce() -> T) -> T {
    TOTAL.store(0, Ordering::Relaxed);
    OPEN.store(1, Ordering::Relaxed);
    SINCE.store(crate::tick::now(), Ordering::Relaxed);
    match phase {
        Phase::Offline => mark!("r9"),
        Phase::Online => mark!("lr"),
    }
    let result = work();
    mark!("r10");
    add_ticks();
    OPEN.store(0, Ordering::Relaxed);
    result
}

/// SysTick ticks of the last span without its pauses. Means something only under `-icount`, and
/// only if no piece between two pauses is longer than SysTick's 2^24 ticks.
pub fn ticks() -> u32 {
    TOTAL.load(Ordering::Relaxed)
}

fn add_ticks() {
    let since = SINCE.load(Ordering::Relaxed);
    let total = TOTAL.load(Ordering::Relaxed);
    TOTAL.store(total.wrapping_add(crate::tick::between(since, crate::tick::now())), Ordering::Relaxed);
}

/// Runs transport `work` that no span counts.
#[inline(always)]
pub(crate) fn paused<T>(work: impl FnOnce() -> T) -> T {
    mark!("r11");
    let open = OPEN.load(Ordering::Relaxed) == 1;
    if open {
        add_ticks();
    }
    let result = work();
    if open {
        SINCE.store(crate::tick::now(), Ordering::Relaxed);
    }
    mark!("r12");
    // The counter leaves out one instruction after the mark (an interrupt handler's return).
    cortex_m::asm::nop();
    result
}
