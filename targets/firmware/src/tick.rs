//! SysTick as a free-running 24-bit clock. It interrupts nothing: while the firmware waits with
//! interrupts masked, a wrap wakes it, which is often enough for time-outs.

use cortex_m::peripheral::{SCB, SYST, syst::SystClkSource};

use crate::board;

const WRAP: u32 = 1 << 24;

/// Starts the clock.
pub(crate) fn start(syst: &mut SYST) {
    syst.set_clock_source(SystClkSource::Core);
    syst.set_reload(WRAP - 1);
    syst.clear_current();
    syst.enable_counter();
}

/// The clock's value; it counts down.
pub(crate) fn now() -> u32 {
    SYST::get_current()
}

/// Ticks from one value to a later one, less than a wrap away.
pub(crate) fn between(earlier: u32, later: u32) -> u32 {
    earlier.wrapping_sub(later) & (WRAP - 1)
}

/// A span of time that is up at some point.
pub(crate) struct Deadline {
    left: u64,
    last: u32,
}

impl Deadline {
    /// Up after `millis`.
    pub(crate) fn after(millis: u32) -> Self {
        Self { left: u64::from(millis) * u64::from(board::CLOCK / 1000), last: now() }
    }

    /// Whether the time is up; to be asked at least once a wrap.
    pub(crate) fn passed(&mut self) -> bool {
        let now = now();
        self.left = self.left.saturating_sub(u64::from(between(self.last, now)));
        self.last = now;
        self.left == 0
    }
}

/// Sleeps until an interrupt is pending or the clock wraps. Called with interrupts masked, so
/// that nothing is missed between looking and sleeping; the SysTick exception never runs.
pub(crate) fn sleep(syst: &mut SYST) {
    syst.enable_interrupt();
    cortex_m::asm::wfi();
    syst.disable_interrupt();
    SCB::clear_pendst();
}
