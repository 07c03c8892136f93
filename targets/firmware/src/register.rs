//! Memory-mapped registers.

/// A 32-bit device register.
#[derive(Clone, Copy)]
pub(crate) struct Register(usize);

impl Register {
    /// The register at `base + offset`.
    ///
    /// # Safety
    ///
    /// The address is that of a 32-bit device register on this board, which may be read and
    /// written at any time without breaking memory safety.
    pub(crate) const unsafe fn new(base: usize, offset: usize) -> Self {
        Self(base + offset)
    }

    #[inline(always)]
    pub(crate) fn read(self) -> u32 {
        // SAFETY: `new` was promised a readable 32-bit register.
        unsafe { (self.0 as *const u32).read_volatile() }
    }

    #[inline(always)]
    pub(crate) fn write(self, value: u32) {
        // SAFETY: `new` was promised a writable 32-bit register.
        unsafe { (self.0 as *mut u32).write_volatile(value) }
    }

    #[allow(dead_code, reason = "not every board's set-up changes single bits")]
    pub(crate) fn modify(self, change: impl FnOnce(u32) -> u32) {
        self.write(change(self.read()));
    }
}
