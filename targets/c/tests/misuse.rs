//! What a C caller can get wrong is an error, and leaves the session as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "a caller of the C functions")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "every pointer here is of memory that lives, or is refused")]

use std::ffi::{CStr, c_char, c_void};
use std::mem::{offset_of, zeroed};
use std::ptr::{null, null_mut};

use secure_router::abi::*;
use secure_router::code::*;
use secure_router::ffi::*;

unsafe extern "C" fn next(_: *mut c_void, _: u8, counter: *mut u64) -> i32 {
    unsafe { counter.write(0) };
    0
}

unsafe extern "C" fn burn(_: *mut c_void, _: u8, _: u64) -> i32 {
    0
}

unsafe extern "C" fn fill(_: *mut c_void, bytes: *mut u8, length: usize) -> i32 {
    for index in 0..length {
        unsafe { bytes.add(index).write((index as u8).wrapping_mul(37)) };
    }
    0
}

unsafe extern "C" fn failing(_: *mut c_void, _: *mut u8, _: usize) -> i32 {
    1
}

unsafe extern "C" fn stuck(_: *mut c_void, bytes: *mut u8, length: usize) -> i32 {
    unsafe { bytes.write_bytes(0xff, length) };
    0
}

const BLANK_SECRET: &[u8; SR_PROVISIONING_BYTES] = &{
    let mut bytes = [7; SR_PROVISIONING_BYTES];
    let mut index = 0;
    while index < 36 {
        bytes[index] = if index < 4 { b"SRK2"[index] } else { 0 };
        index += 1;
    }
    while index < SR_PROVISIONING_BYTES {
        bytes[index] = 0xff;
        index += 1;
    }
    bytes
};

/// Draws from a session that is being opened.
unsafe extern "C" fn reentering(session: *mut c_void, bytes: *mut u8, length: usize) -> i32 {
    assert_eq!(unsafe { sr_close(session.cast()) }, SR_ERROR_NOT_OPEN);
    unsafe { fill(null_mut(), bytes, length) }
}

/// A caller's memory, in a place that stays.
#[repr(C)]
struct Caller {
    session: sr_session,
    rx: [u8; SR_FRAME_BYTES],
    tx: [u8; SR_FRAME_BYTES],
    work: [u32; 256],
    input: [i16; 64],
    provisioning: [u8; SR_PROVISIONING_BYTES],
    config: sr_config,
}

impl Caller {
    fn new() -> *mut Self {
        let mut caller: Box<Self> = Box::new(unsafe { zeroed() });
        for (index, byte) in caller.provisioning.iter_mut().enumerate() {
            *byte = (index as u8).wrapping_mul(29);
        }
        caller.provisioning[..4].copy_from_slice(b"SRK2");
        caller.provisioning[SR_PROVISIONING_BYTES - 4..].fill(0xff);
        let caller = Box::into_raw(caller);
        unsafe {
            (*caller).config = sr_config {
                size: size_of::<sr_config>(),
                provisioning: (&raw const (*caller).provisioning).cast(),
                rx: (&raw mut (*caller).rx).cast(),
                rx_bytes: SR_FRAME_BYTES,
                tx: (&raw mut (*caller).tx).cast(),
                tx_bytes: SR_FRAME_BYTES,
                work: (&raw mut (*caller).work).cast(),
                work_words: 256,
                input: (&raw mut (*caller).input).cast(),
                input_values: 64,
                tile: 4,
                counters: sr_counters { context: null_mut(), next: Some(next), burn: Some(burn) },
                random: sr_random { context: null_mut(), fill: Some(fill) },
            };
        }
        caller
    }
}

fn open(caller: *mut Caller) -> i32 {
    unsafe { sr_open(&raw mut (*caller).session, size_of::<sr_session>(), &raw const (*caller).config) }
}

/// Opens with a configuration that was changed.
fn open_with(change: impl FnOnce(*mut Caller, &mut sr_config)) -> i32 {
    let caller = Caller::new();
    unsafe {
        change(caller, &mut (*caller).config);
        let code = open(caller);
        if code >= 0 {
            assert_eq!(sr_close(&raw mut (*caller).session), 0);
        } else {
            assert_eq!(sr_close(&raw mut (*caller).session), SR_ERROR_NOT_OPEN);
        }
        drop(Box::from_raw(caller));
        code
    }
}

#[test]
fn a_good_configuration_opens_and_has_bytes_to_send() {
    let caller = Caller::new();
    unsafe {
        let session = &raw mut (*caller).session;
        assert_eq!(sr_session_bytes(), size_of::<sr_session>());
        assert_eq!(open(caller), SR_EVENT_NONE);
        assert_eq!(open(caller), SR_ERROR_OPEN);
        let mut io: sr_buffers = zeroed();
        assert_eq!(sr_io(session, &mut io), 0);
        assert!(io.pending_bytes > 0 && !io.pending.is_null());
        assert_eq!(sr_sent(session, io.pending_bytes + 1), SR_ERROR_ARGUMENT);
        assert_eq!(sr_sent(session, io.pending_bytes), SR_EVENT_NONE);
        assert_eq!(sr_io(session, &mut io), 0);
        assert!(io.pending_bytes == 0 && io.wanted_bytes > 0);
        assert_eq!(sr_received(session, io.wanted_bytes + 1), SR_ERROR_ARGUMENT);
        // Not the server's bytes.
        io.wanted.write_bytes(0, io.wanted_bytes);
        assert_eq!(sr_received(session, io.wanted_bytes), SR_ERROR_CHANNEL);
        let mut text = [1; 80];
        assert_eq!(sr_error_text(session, text.as_mut_ptr(), text.len()), 0);
        assert!(CStr::from_ptr(text.as_ptr()).to_str().unwrap().len() > 10);
        assert_eq!(sr_prepare(session, 0), SR_ERROR_CLOSED);
        assert_eq!(sr_close(session), 0);
        assert_eq!(sr_close(session), SR_ERROR_NOT_OPEN);
        assert!((*caller).work.iter().all(|word| *word == 0));
        let bytes = std::slice::from_raw_parts(session.cast::<u8>(), size_of::<sr_session>());
        assert!(bytes.iter().all(|byte| *byte == 0));
        // The storage is good for the next session.
        assert_eq!(open(caller), SR_EVENT_NONE);
        assert_eq!(sr_link_ended(session), SR_ERROR_CHANNEL);
        assert_eq!(sr_close(session), 0);
        drop(Box::from_raw(caller));
    }
}

#[test]
fn bad_configurations_are_refused() {
    assert_eq!(open_with(|_, _| {}), 0);
    assert_eq!(open_with(|_, config| config.size -= 4), SR_ERROR_SIZE);
    let pointers = [offset_of!(sr_config, provisioning), offset_of!(sr_config, rx), offset_of!(sr_config, tx)];
    for offset in pointers.into_iter().chain([offset_of!(sr_config, work), offset_of!(sr_config, input)]) {
        let null = |_: *mut Caller, config: &mut sr_config| unsafe {
            (&raw mut *config).byte_add(offset).cast::<*mut u8>().write(null_mut());
        };
        assert_eq!(open_with(null), SR_ERROR_ARGUMENT, "{offset}");
    }
    assert_eq!(open_with(|_, c| c.work = c.work.wrapping_byte_add(2)), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.input = c.input.wrapping_byte_add(1)), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.rx_bytes -= 1), SR_ERROR_BUFFER);
    assert_eq!(open_with(|_, c| c.tx_bytes = 0), SR_ERROR_BUFFER);
    assert_eq!(open_with(|_, c| c.work_words = usize::MAX / 4 + 1), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.input_values = isize::MAX as usize), SR_ERROR_ARGUMENT);
    // Memory that is lent twice, or is the session's own.
    assert_eq!(open_with(|_, c| c.tx = c.rx), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.input = c.work.cast()), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|caller, c| c.work = caller.cast()), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.counters.next = None), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.counters.burn = None), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.random.fill = None), SR_ERROR_ARGUMENT);
    assert_eq!(open_with(|_, c| c.random.fill = Some(failing)), SR_ERROR_RANDOM);
    assert_eq!(open_with(|_, c| c.random.fill = Some(stuck)), SR_ERROR_RANDOM);
    assert_eq!(
        open_with(|caller, _| unsafe { (*caller).provisioning = [0; SR_PROVISIONING_BYTES] }),
        SR_ERROR_PROVISIONING
    );
    // More than any policy tells, and less than an open one.
    let odd = open_with(|caller, _| unsafe { (&mut (*caller).provisioning)[SR_PROVISIONING_BYTES - 1] = 0x7f });
    assert_eq!(odd, SR_ERROR_PROVISIONING);
    assert_eq!(open_with(|caller, _| unsafe { (*caller).provisioning = *BLANK_SECRET }), SR_ERROR_PROVISIONING);
    let reenter = |caller: *mut Caller, config: &mut sr_config| {
        config.random = sr_random { context: caller.cast(), fill: Some(reentering) };
    };
    assert_eq!(open_with(reenter), 0);
}

#[test]
fn a_session_that_is_none_is_refused() {
    type Call = unsafe extern "C" fn(*mut sr_session) -> i32;
    let calls: [Call; 5] = [sr_link_ended, sr_detail, sr_answered_by, sr_class, sr_close];
    let caller = Caller::new();
    unsafe {
        assert_eq!(sr_open(null_mut(), size_of::<sr_session>(), &raw const (*caller).config), SR_ERROR_ARGUMENT);
        let session = &raw mut (*caller).session;
        assert_eq!(sr_open(session, size_of::<sr_session>() - 8, &raw const (*caller).config), SR_ERROR_SIZE);
        assert_eq!(sr_open(session, size_of::<sr_session>(), null()), SR_ERROR_ARGUMENT);
        let beside = session.wrapping_byte_add(4);
        assert_eq!(sr_open(beside, size_of::<sr_session>(), &raw const (*caller).config), SR_ERROR_ARGUMENT);
        for call in calls {
            assert_eq!(call(null_mut()), SR_ERROR_ARGUMENT);
            assert_eq!(call(beside), SR_ERROR_ARGUMENT);
            assert_eq!(call(session), SR_ERROR_NOT_OPEN);
        }
        // A copy is none.
        assert_eq!(open(caller), 0);
        let mut copy: Box<sr_session> = Box::new(zeroed());
        (&raw mut *copy).copy_from(session, 1);
        for call in calls {
            assert_eq!(call(&raw mut *copy), SR_ERROR_NOT_OPEN);
        }
        assert_eq!(sr_close(session), 0);
        drop(Box::from_raw(caller));
    }
}

#[test]
fn bad_arguments_leave_the_session_as_it_was() {
    let caller = Caller::new();
    unsafe {
        let session = &raw mut (*caller).session;
        assert_eq!(open(caller), 0);
        let request = sr_request { program: 0, lambda: 64, bytes_per_second: 92_160, round_trip_us: 0 };
        let input = [0i16; 8];
        let mut logits = [0i32; 4];
        let mut text = [0 as c_char; 4];
        let mut pool: sr_pool_info = zeroed();
        assert_eq!(sr_io(session, null_mut()), SR_ERROR_ARGUMENT);
        // What it writes must not go over its own memory.
        assert_eq!(sr_io(session, session.cast()), SR_ERROR_ARGUMENT);
        assert_eq!(sr_io(session, (&raw mut (*caller).work).cast::<u8>().wrapping_add(8).cast()), SR_ERROR_ARGUMENT);
        assert_eq!(sr_infer(session, null(), input.as_ptr(), 8), SR_ERROR_ARGUMENT);
        assert_eq!(sr_infer(session, &request, null(), 8), SR_ERROR_ARGUMENT);
        assert_eq!(sr_infer(session, &request, input.as_ptr().wrapping_byte_add(1), 7), SR_ERROR_ARGUMENT);
        assert_eq!(sr_infer(session, &request, input.as_ptr(), usize::MAX), SR_ERROR_ARGUMENT);
        assert_eq!(sr_infer(session, &request, (&raw const (*caller).input).cast(), 8), SR_ERROR_ARGUMENT);
        let other = sr_request { program: SR_PROGRAMS as u8, ..request };
        assert_eq!(sr_infer(session, &other, input.as_ptr(), 8), SR_ERROR_NO_SUCH_PROGRAM);
        // Before the server was met.
        assert_eq!(sr_infer(session, &request, input.as_ptr(), 8), SR_ERROR_BUSY);
        assert_eq!(sr_prepare(session, 0), SR_ERROR_BUSY);
        assert_eq!(sr_prepare(session, 200), SR_ERROR_NO_SUCH_PROGRAM);
        assert_eq!(sr_fits(session, 0), SR_ERROR_BUSY);
        assert_eq!(sr_ready(session, 0), 0);
        assert_eq!(sr_ready(session, 255), SR_ERROR_NO_SUCH_PROGRAM);
        assert_eq!(sr_pool(session, &mut pool), SR_ERROR_BUSY);
        assert_eq!(sr_class(session), SR_ERROR_NO_ANSWER);
        assert_eq!(sr_answered_by(session), SR_ERROR_NO_ANSWER);
        assert_eq!(sr_logits(session, logits.as_mut_ptr(), 4), SR_ERROR_NO_ANSWER);
        assert_eq!(sr_logits(session, null_mut(), 4), SR_ERROR_ARGUMENT);
        assert_eq!(sr_program_name(session, 0, text.as_mut_ptr(), 4), SR_ERROR_BUSY);
        assert_eq!(sr_program_name(session, 0, null_mut(), 4), SR_ERROR_ARGUMENT);
        assert_eq!(sr_error_text(session, text.as_mut_ptr(), 0), SR_ERROR_ARGUMENT);
        // Cut, and ended.
        assert_eq!(sr_error_text(session, text.as_mut_ptr(), 4), 0);
        assert!(CStr::from_ptr(text.as_ptr()).to_bytes().len() < 4);
        let mut io: sr_buffers = zeroed();
        assert_eq!(sr_io(session, &mut io), 0);
        assert_eq!(sr_sent(session, io.pending_bytes), SR_EVENT_NONE);
        assert_eq!(sr_close(session), 0);
        drop(Box::from_raw(caller));
    }
}

#[test]
fn every_number_has_a_text() {
    for code in -110..10 {
        let text = unsafe { CStr::from_ptr(sr_describe(code)) };
        assert!(!text.is_empty());
    }
}
