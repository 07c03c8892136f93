//! Peak stack by painting: fill the unused stack with a pattern, work, see how far it changed.

use core::ptr::addr_of_mut;

const PAINT: u32 = 0xdead_beef;
/// Words painted at most; a board with megabytes of RAM need not fill all of it.
const MOST: usize = 1 << 16;

unsafe extern "C" {
    // From cortex-m-rt's linker script: the top of RAM, and the lowest address the stack may use.
    static mut _stack_start: u32;
    static mut _stack_end: u32;
}

/// A painted stack.
pub struct Painted {
    lowest: *mut u32,
    highest: *mut u32,
}

/// Paints the stack below the caller.
#[inline(never)]
pub fn paint() -> Painted {
    let bottom = addr_of_mut!(_stack_end);
    // A frame's distance below the stack pointer, so that this function's own is left alone.
    let highest = (cortex_m::register::msp::read() as usize - 128) as *mut u32;
    let lowest = highest.wrapping_sub(MOST).max(bottom);
    let mut word = lowest;
    while word < highest {
        // SAFETY: between the end of the static data and the stack pointer lies only unused
        // stack; no interrupt uses it at this moment, or if one does, its frame is not live
        // below the pointer of a frame that paints.
        unsafe { word.write_volatile(PAINT) };
        word = word.wrapping_add(1);
    }
    Painted { lowest, highest }
}

impl Painted {
    /// Bytes of stack used since the painting at the deepest point, counted from the top of RAM.
    #[inline(never)]
    pub fn peak(&self) -> usize {
        let mut word = self.lowest;
        // SAFETY: the same words that `paint` wrote.
        while word < self.highest && unsafe { word.read_volatile() } == PAINT {
            word = word.wrapping_add(1);
        }
        addr_of_mut!(_stack_start) as usize - word as usize
    }
}
