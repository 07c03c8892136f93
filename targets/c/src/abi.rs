//! What crosses the border: types and sizes.
#![allow(non_camel_case_types, reason = "the names of the C header")]

use core::ffi::c_void;

use secure_router_core::circuit::SLOTS;
use secure_router_core::session::{DeviceMemory, RECOMMENDED_LAMBDA};
use secure_router_core::spec::MAX_NAME;

/// Bytes of `rx` and of `tx`, each.
pub const SR_FRAME_BYTES: usize = 1043;
/// Bytes of a device's provisioning.
pub const SR_PROVISIONING_BYTES: usize = 136;
/// Most programs of a pool: the router and eight models.
pub const SR_PROGRAMS: usize = 9;
/// The router's number. Model `i` has number `1 + i`.
pub const SR_ROUTER: u8 = 0;
/// A request's `lambda` that leaves the weight of cost to the pool, whose trainer recommends one.
pub const SR_LAMBDA_RECOMMENDED: u16 = 0xffff;
/// Enough for the name of a program and its NUL.
pub const SR_NAME_BYTES: usize = 17;
/// 64-bit words of a session.
#[cfg(target_pointer_width = "32")]
pub const SR_SESSION_WORDS: usize = 256;
/// 64-bit words of a session.
#[cfg(not(target_pointer_width = "32"))]
pub const SR_SESSION_WORDS: usize = 288;

const _: () = assert!(SR_FRAME_BYTES == DeviceMemory::FRAME_BYTES && SR_LAMBDA_RECOMMENDED == RECOMMENDED_LAMBDA);
const _: () = assert!(SR_PROGRAMS == SLOTS && SR_NAME_BYTES > MAX_NAME);

/// A session. Opaque, never copied or moved, and all zeros before it is first opened, as static
/// memory is.
#[repr(C)]
pub struct sr_session {
    pub(crate) opaque: [u64; SR_SESSION_WORDS],
}

/// The device's non-volatile memory of spent counters. Both functions return 0, or anything else
/// for a failure, after which nothing is started.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sr_counters {
    /// Passed on to both.
    pub context: *mut c_void,
    /// Tells the lowest counter of `program` that was never burned; 0 on a new device.
    pub next: Option<unsafe extern "C" fn(context: *mut c_void, program: u8, counter: *mut u64) -> i32>,
    /// Burns every counter of `program` up to and with `counter`. Must not return before that is
    /// durable: a power cut right after the return must not bring it back.
    pub burn: Option<unsafe extern "C" fn(context: *mut c_void, program: u8, counter: u64) -> i32>,
}

/// The device's generator. Drawn from while a session is opened, and never after.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sr_random {
    /// Passed on.
    pub context: *mut c_void,
    /// Fills `bytes` with unpredictable ones. Returns 0, or anything else for a failure.
    pub fill: Option<unsafe extern "C" fn(context: *mut c_void, bytes: *mut u8, length: usize) -> i32>,
}

/// What a session is opened with. The memory is the session's until `sr_close`; it is wiped.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sr_config {
    /// `sizeof(sr_config)`.
    pub size: usize,
    /// `SR_PROVISIONING_BYTES` bytes, needed during `sr_open` only: `SRK2`, the device's secret
    /// key, the server's public key, the seeds shared with dealer and server, and the most that a route
    /// may tell the server, in thousandths of epsilon: 4 bytes, little-endian, all 0xff for open routing.
    pub provisioning: *const u8,
    /// Incoming frame.
    pub rx: *mut u8,
    /// At least `SR_FRAME_BYTES`.
    pub rx_bytes: usize,
    /// Outgoing frame.
    pub tx: *mut u8,
    /// At least `SR_FRAME_BYTES`.
    pub tx_bytes: usize,
    /// Work space: what the largest program to run needs. `sr_fits` says whether a program fits,
    /// `sr_error_text` how many words it needs.
    pub work: *mut u32,
    /// Its words.
    pub work_words: usize,
    /// The input of the inference under way.
    pub input: *mut i16,
    /// At least the values of the pool's inputs.
    pub input_values: usize,
    /// Tokens of a linear gate that are masked at a time, 4 say: more take more work space and
    /// less computing.
    pub tile: u16,
    /// Spent counters.
    pub counters: sr_counters,
    /// Randomness.
    pub random: sr_random,
}

/// Where the link's bytes go and come from.
#[repr(C)]
pub struct sr_buffers {
    /// The next bytes from the link belong here.
    pub wanted: *mut u8,
    /// At most this many, 0 for none. Their number goes to `sr_received`.
    pub wanted_bytes: usize,
    /// These bytes wait to go out.
    pub pending: *const u8,
    /// This many, 0 for none. How many of them went goes to `sr_sent`.
    pub pending_bytes: usize,
}

/// What a device asks for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct sr_request {
    /// `SR_ROUTER`, or one model's number.
    pub program: u8,
    /// Weight of cost in the router's choice, in 1/256, or `SR_LAMBDA_RECOMMENDED`; 0 asks for accuracy whatever it costs.
    pub lambda: u16,
    /// Bytes a second of the link in use, for the router to reckon with; 92160 for a fast UART.
    pub bytes_per_second: u32,
    /// Its round trip in microseconds.
    pub round_trip_us: u32,
}

/// What the server serves.
#[repr(C)]
pub struct sr_pool_info {
    /// Values of an input.
    pub input_values: u16,
    /// Signed bits of an input value.
    pub input_bits: u8,
    /// An input value `v` stands for `v / 2^input_frac`.
    pub input_frac: u8,
    /// Classes of an answer.
    pub classes: u16,
    /// Bit `i` says that program `i` exists.
    pub programs: u16,
}
