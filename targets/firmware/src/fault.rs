//! What panics and faults do: in QEMU they end the run with their own exit code, on a board they
//! restart it. A restart is safe at any point, since no mask's index is used before it is burned.

use core::panic::PanicInfo;

use cortex_m_rt::{ExceptionFrame, exception};

/// QEMU's exit code after a panic.
#[cfg(feature = "qemu")]
const PANIC: u8 = 101;
/// QEMU's exit code after a hard fault.
#[cfg(feature = "qemu")]
const FAULT: u8 = 70;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    #[cfg(feature = "qemu")]
    {
        // No formatting: it would cost more flash than the rest of this crate.
        crate::semi::print("panic: ");
        crate::semi::print(info.message().as_str().unwrap_or("(formatted message)"));
        if let Some(at) = info.location() {
            crate::semi::print(" at ");
            crate::semi::print(at.file());
            crate::semi::print(":");
            crate::semi::print_number(at.line());
        }
        crate::semi::print("\n");
        crate::semi::exit(PANIC)
    }
    #[cfg(not(feature = "qemu"))]
    {
        let _ = info;
        cortex_m::peripheral::SCB::sys_reset()
    }
}

// SAFETY: never returns and touches no state of the program it ends.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    #[cfg(feature = "qemu")]
    {
        crate::semi::print("hard fault at pc ");
        crate::semi::print_number(frame.pc());
        crate::semi::print("\n");
        crate::semi::exit(FAULT)
    }
    #[cfg(not(feature = "qemu"))]
    {
        let _ = frame;
        cortex_m::peripheral::SCB::sys_reset()
    }
}
