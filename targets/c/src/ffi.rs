//! The functions of the C library, and all of its `unsafe`.
//!
//! What can be checked of a caller's pointers is: null, alignment, size, overlap with the memory
//! that a session was lent, and whether a session is open, was moved or is at work. That a pointer
//! leads to memory which is the caller's to lend is the caller's promise.
#![allow(unsafe_code)]

use core::ffi::c_char;
use core::fmt::Write as _;
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use secure_router_core::circuit::Slot;
use secure_router_core::rand_core::{TryCryptoRng, TryRng};
use secure_router_core::session::{CounterError, Counters, DeviceMemory, LinkProfile, Request};
use zeroize::Zeroizing;

use crate::abi::{
    SR_PROVISIONING_BYTES, sr_buffers, sr_config, sr_counters, sr_pool_info, sr_random, sr_request, sr_session,
};
use crate::code::*;
use crate::session::{ARGUMENT, Failed, Held, Outcome, RandomError, Span, Text, connected, returned, slot};

/// What lies in a [`sr_session`].
#[repr(C)]
struct Stored {
    /// 0 for none; else its place under [`OPEN`] or [`AT_WORK`], so that a copy is none.
    mark: AtomicU32,
    held: MaybeUninit<Held>,
}

const OPEN: u32 = 0x5352_6f70;
const AT_WORK: u32 = 0x5352_7772;

const _: () = assert!(size_of::<Stored>() <= size_of::<sr_session>(), "SR_SESSION_WORDS is too small");
const _: () = assert!(align_of::<Stored>() <= align_of::<sr_session>());
// No RAM wasted where it is short.
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<sr_session>() - size_of::<Stored>() < 256, "SR_SESSION_WORDS is too large");

// ---- memory of the caller

/// One `T` of the caller's, read out.
///
/// # Safety
/// `at` is null, misaligned or leads to an initialised `T`.
unsafe fn taken<T: Copy>(at: *const T) -> Outcome<T> {
    Span::of(at, 1)?;
    // SAFETY: checked, and the caller's promise.
    Ok(unsafe { at.read() })
}

/// Memory that the session keeps, blanked.
///
/// # Safety
/// `at` is null, misaligned or leads to `count` of `T` that nothing else touches until the session
/// is closed; all zeros are a `T`.
unsafe fn kept<T>(at: *mut T, count: usize) -> Outcome<&'static mut [T]> {
    Span::of(at, count)?;
    // SAFETY: checked, and the caller's promise; blanked, it is initialised.
    Ok(unsafe {
        at.write_bytes(0, count);
        core::slice::from_raw_parts_mut(at, count)
    })
}

/// Writes `value`, which must not go over the session or what it was lent.
///
/// # Safety
/// `at` is null, misaligned or leads to a `T` that may be written.
unsafe fn give<T>(session: &Held, at: *mut T, value: T) -> Outcome<()> {
    session.apart(at, 1)?;
    // SAFETY: checked, and the caller's promise.
    unsafe { at.write(value) };
    Ok(())
}

impl<'t> Text<'t> {
    /// # Safety
    /// `at` is null or leads to `room` bytes that may be written.
    unsafe fn at(session: &Held, at: *mut c_char, room: usize) -> Outcome<Self> {
        session.apart(at, room)?;
        // SAFETY: checked, and the caller's promise; `MaybeUninit` needs no initialised memory.
        let at: &'t mut [MaybeUninit<c_char>] = unsafe { core::slice::from_raw_parts_mut(at.cast(), room) };
        at.first_mut().ok_or(ARGUMENT)?.write(0);
        Ok(Self { at, length: 0 })
    }
}

// ---- the session in the caller's memory

fn place(session: *mut sr_session) -> u32 {
    session.addr() as u32
}

/// The mark of a session's storage, whatever it holds.
///
/// # Safety
/// `session` is null, misaligned or leads to a `sr_session` that was all zeros before its first use.
unsafe fn mark<'s>(session: *mut sr_session) -> Outcome<&'s AtomicU32> {
    Span::of(session, 1)?;
    // SAFETY: the mark lies at the start, is aligned with the storage, and is initialised; it is
    // only ever reached as an atomic.
    Ok(unsafe { AtomicU32::from_ptr(session.cast()) })
}

/// Does `work` on an open session, which nobody else can reach meanwhile.
///
/// # Safety
/// As [`mark`].
unsafe fn with(session: *mut sr_session, work: impl FnOnce(&mut Held) -> Outcome) -> i32 {
    // SAFETY: as the caller promises.
    let mark = match unsafe { mark(session) } {
        Ok(mark) => mark,
        Err(failed) => return failed.0,
    };
    match mark.load(Ordering::Relaxed).wrapping_sub(place(session)) {
        OPEN => {}
        AT_WORK => return SR_ERROR_REENTERED,
        _ => return SR_ERROR_NOT_OPEN,
    }
    mark.store(AT_WORK.wrapping_add(place(session)), Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    // SAFETY: `sr_open` put one there and marked it; its mark now keeps every other call out, so
    // that the reference is the only one.
    let held = unsafe { (*session.cast::<Stored>()).held.assume_init_mut() };
    let outcome = work(held);
    compiler_fence(Ordering::SeqCst);
    mark.store(OPEN.wrapping_add(place(session)), Ordering::Relaxed);
    returned(outcome)
}

// ---- callbacks

/// The counters as the kernel takes them.
pub(crate) struct Callbacks(pub(crate) sr_counters);

impl Counters for Callbacks {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        let mut counter = u64::MAX;
        let next = self.0.next.ok_or(CounterError)?;
        // SAFETY: a function of the caller's, called as the header says.
        match unsafe { next(self.0.context, slot.code(), &mut counter) } {
            0 => Ok(counter),
            _ => Err(CounterError),
        }
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let burn = self.0.burn.ok_or(CounterError)?;
        // SAFETY: a function of the caller's, called as the header says.
        match unsafe { burn(self.0.context, slot.code(), counter) } {
            0 => Ok(()),
            _ => Err(CounterError),
        }
    }
}

/// The generator as the kernel takes it.
pub(crate) struct Random(pub(crate) sr_random);

impl TryRng for Random {
    type Error = RandomError;

    fn try_next_u32(&mut self) -> Result<u32, RandomError> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, RandomError> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), RandomError> {
        let fill = self.0.fill.ok_or(RandomError)?;
        // SAFETY: a function of the caller's, called as the header says.
        match unsafe { fill(self.0.context, bytes.as_mut_ptr(), bytes.len()) } {
            0 => Ok(()),
            _ => Err(RandomError),
        }
    }
}

impl TryCryptoRng for Random {}

// ---- the functions

/// Bytes of a session, for a program that does not trust its header.
#[unsafe(no_mangle)]
pub extern "C" fn sr_session_bytes() -> usize {
    size_of::<sr_session>()
}

/// Opens a session in `session`; the first bytes to send are pending at once. `session_bytes` is
/// `sizeof(sr_session)`. Nothing is kept after an error.
///
/// # Safety
/// What `config` points to is the caller's to lend until `sr_close`, and used by nothing else.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_open(session: *mut sr_session, session_bytes: usize, config: *const sr_config) -> i32 {
    // SAFETY: as the caller promises.
    returned(unsafe { opened(session, session_bytes, config) })
}

/// # Safety
/// As [`sr_open`].
#[inline(never)]
unsafe fn opened(session: *mut sr_session, session_bytes: usize, config: *const sr_config) -> Outcome {
    if session_bytes != size_of::<sr_session>() {
        return Err(Failed(SR_ERROR_SIZE));
    }
    // SAFETY: as the caller promises.
    let mark = unsafe { mark(session)? };
    match mark.load(Ordering::Relaxed).wrapping_sub(place(session)) {
        OPEN => return Err(Failed(SR_ERROR_OPEN)),
        AT_WORK => return Err(Failed(SR_ERROR_REENTERED)),
        _ => {}
    }
    Span::of(config, 1)?;
    // SAFETY: checked, and the caller's promise; the size is read before anything it may be without.
    if unsafe { (&raw const (*config).size).read() } != size_of::<sr_config>() {
        return Err(Failed(SR_ERROR_SIZE));
    }
    // SAFETY: as the caller promises.
    let config = unsafe { taken(config)? };
    if config.counters.next.is_none() || config.counters.burn.is_none() || config.random.fill.is_none() {
        return Err(ARGUMENT);
    }
    let own = [
        Span::of(session, 1)?,
        Span::of(config.rx, config.rx_bytes)?,
        Span::of(config.tx, config.tx_bytes)?,
        Span::of(config.work, config.work_words)?,
        Span::of(config.input, config.input_values)?,
    ];
    for (index, span) in own.iter().enumerate() {
        if own.iter().skip(index + 1).any(|other| other.meets(*span)) {
            return Err(ARGUMENT);
        }
    }
    // SAFETY: as the caller promises; bytes need no alignment.
    let provisioning = Zeroizing::new(unsafe { taken(config.provisioning.cast::<[u8; SR_PROVISIONING_BYTES]>())? });
    // SAFETY: as the caller promises, and no two of them overlap; zeros are numbers.
    let memory = unsafe {
        DeviceMemory {
            rx: kept(config.rx, config.rx_bytes)?,
            tx: kept(config.tx, config.tx_bytes)?,
            work: kept(config.work, config.work_words)?,
            input: kept(config.input, config.input_values)?,
        }
    };
    let opened = connected(&provisioning, memory, &config)?;
    // SAFETY: the storage is large and aligned enough, and is marked as holding none.
    unsafe {
        (*session.cast::<Stored>()).held.write(Held { session: opened, error: None, detail: 0, own });
    }
    compiler_fence(Ordering::SeqCst);
    mark.store(OPEN.wrapping_add(place(session)), Ordering::Relaxed);
    Ok(SR_EVENT_NONE)
}

/// Tells where bytes of the link go and come from. What it tells holds until the next call.
///
/// # Safety
/// `session` and `buffers` are what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_io(session: *mut sr_session, buffers: *mut sr_buffers) -> i32 {
    let work = |held: &mut Held| {
        held.apart(buffers, 1)?;
        let (wanted, pending) = held.session.io();
        let told = sr_buffers {
            wanted: if wanted.is_empty() { ptr::null_mut() } else { wanted.as_mut_ptr() },
            wanted_bytes: wanted.len(),
            pending: if pending.is_empty() { ptr::null() } else { pending.as_ptr() },
            pending_bytes: pending.len(),
        };
        // SAFETY: as the caller promises.
        unsafe { give(held, buffers, told)? };
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Reports that `count` bytes from the link are where `sr_io` wanted them. Returns an event, or an
/// error, after which the session is closed.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_received(session: *mut sr_session, count: usize) -> i32 {
    let work = |held: &mut Held| {
        if count > held.session.io().0.len() {
            return Err(ARGUMENT);
        }
        let outcome = held.session.received(count);
        held.event(outcome)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Reports that the first `count` pending bytes went out. Returns an event, or an error, after
/// which the session is closed.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_sent(session: *mut sr_session, count: usize) -> i32 {
    let work = |held: &mut Held| {
        if count > held.session.io().1.len() {
            return Err(ARGUMENT);
        }
        let outcome = held.session.sent(count);
        held.event(outcome)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Reports that the link ended or failed. Returns the error that this is; the session is closed.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_link_ended(session: *mut sr_session) -> i32 {
    let work = |held: &mut Held| {
        let outcome = held.session.link_ended();
        held.event(outcome)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Prepares the next inference of a program: `SR_EVENT_PREPARED` follows. An error before anything
/// was sent leaves the session as it was.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_prepare(session: *mut sr_session, program: u8) -> i32 {
    let work = |held: &mut Held| {
        let outcome = held.session.prepare(slot(program)?);
        held.kept(outcome)?;
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Answers an input of `count` values: `SR_EVENT_ANSWER` follows, after `SR_EVENT_ROUTED` if the
/// router was asked and does not answer itself. The input may be overwritten after the return. An error before anything was
/// sent leaves the session as it was.
///
/// # Safety
/// The pointers are what their types say, and `input` leads to `count` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_infer(
    session: *mut sr_session,
    request: *const sr_request,
    input: *const i16,
    count: usize,
) -> i32 {
    let work = |held: &mut Held| {
        held.apart(input, count)?;
        held.apart(request, 1)?;
        // SAFETY: as the caller promises.
        let asked = unsafe { taken(request)? };
        let link = LinkProfile { bytes_per_second: asked.bytes_per_second, round_trip_us: asked.round_trip_us };
        let request = Request { slot: slot(asked.program)?, lambda: asked.lambda, link };
        // SAFETY: checked, and the caller's promise; the session's memory lies elsewhere.
        let input = unsafe { core::slice::from_raw_parts(input, count) };
        let outcome = held.session.infer(request, input);
        held.kept(outcome)?;
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// The program of the last `SR_EVENT_PREPARED`, `SR_EVENT_ROUTED` or `SR_EVENT_ADVISED`, or the
/// reason of the last `SR_EVENT_REFUSED`.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_detail(session: *mut sr_session) -> i32 {
    // SAFETY: as the caller promises.
    unsafe { with(session, |held| Ok(held.detail)) }
}

/// The program that gave the last answer: the model that was asked for, or that the router chose.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_answered_by(session: *mut sr_session) -> i32 {
    let program = |held: &mut Held| {
        held.session.answered_by().map(|slot| i32::from(slot.code())).ok_or(Failed(SR_ERROR_NO_ANSWER))
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, program) }
}

/// The class of the last answer.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_class(session: *mut sr_session) -> i32 {
    let class = |held: &mut Held| {
        let class = held.session.class().and_then(|class| i32::try_from(class).ok());
        class.ok_or(Failed(SR_ERROR_NO_ANSWER))
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, class) }
}

/// Writes the logits of the last answer, at the scale of the accumulators, and returns their
/// number. A server that gives labels only has 1 for the class and 0 for the others.
///
/// # Safety
/// `session` is what its type says, and `logits` leads to `room` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_logits(session: *mut sr_session, logits: *mut i32, room: usize) -> i32 {
    let work = |held: &mut Held| {
        held.apart(logits, room)?;
        let count = held.session.logits().count();
        if count == 0 {
            return Err(Failed(SR_ERROR_NO_ANSWER));
        }
        if count > room {
            return Err(ARGUMENT);
        }
        for (index, logit) in held.session.logits().enumerate() {
            // SAFETY: `index` is below `room`; as the caller promises.
            unsafe { logits.add(index).write(logit) };
        }
        i32::try_from(count).map_err(|_| ARGUMENT)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Inferences in stock for a program.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_ready(session: *mut sr_session, program: u8) -> i32 {
    let ready = |held: &mut Held| Ok(i32::try_from(held.session.ready(slot(program)?)).unwrap_or(i32::MAX));
    // SAFETY: as the caller promises.
    unsafe { with(session, ready) }
}

/// Once ready: 0 if a program fits the lent memory, else an error. `sr_error_text` then says which
/// buffer is too small and what it needs.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_fits(session: *mut sr_session, program: u8) -> i32 {
    let work = |held: &mut Held| {
        let outcome = held.session.fits(slot(program)?);
        held.kept(outcome)?;
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Tells which pool the server serves, once ready.
///
/// # Safety
/// `session` and `pool` are what their types say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_pool(session: *mut sr_session, pool: *mut sr_pool_info) -> i32 {
    let work = |held: &mut Held| {
        let served = held.session.pool().ok_or(Failed(SR_ERROR_BUSY))?;
        let told = sr_pool_info {
            input_values: served.input_len,
            input_bits: served.input_bits,
            input_frac: served.input_frac,
            classes: served.classes,
            programs: served.slots().fold(0, |bits, slot| bits | 1 << slot.code()),
        };
        // SAFETY: as the caller promises.
        unsafe { give(held, pool, told)? };
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Writes the name of a program of the pool, cut to `room` bytes with its NUL.
///
/// # Safety
/// `session` is what its type says, and `name` leads to `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_program_name(session: *mut sr_session, program: u8, name: *mut c_char, room: usize) -> i32 {
    let work = |held: &mut Held| {
        // SAFETY: as the caller promises.
        let mut text = unsafe { Text::at(held, name, room)? };
        let served = held.session.pool().ok_or(Failed(SR_ERROR_BUSY))?;
        let slot = slot(program)?;
        let known = served.slots().find(|have| *have == slot).ok_or(Failed(SR_ERROR_NO_SUCH_PROGRAM))?;
        // A name that does not fit is cut.
        let _ = text.write_str(match known {
            Slot::Router => "router",
            Slot::Model(index) => served.models.get(usize::from(index)).map_or("", |model| model.name.as_str()),
        });
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Writes what the session's last error was, cut to `room` bytes with its NUL. This links the
/// library's formatting; `sr_describe` does with less.
///
/// # Safety
/// `session` is what its type says, and `text` leads to `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_error_text(session: *mut sr_session, text: *mut c_char, room: usize) -> i32 {
    let work = |held: &mut Held| {
        // SAFETY: as the caller promises.
        let mut text = unsafe { Text::at(held, text, room)? };
        // Text that does not fit is cut.
        let _ = match held.error {
            None => text.write_str("no error"),
            Some(error) => write!(text, "{error}"),
        };
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    unsafe { with(session, work) }
}

/// Says what an error is, in a text that stays.
#[unsafe(no_mangle)]
pub extern "C" fn sr_describe(code: i32) -> *const c_char {
    crate::code::text(code).as_ptr()
}

/// Ends the session and wipes it and the memory it was lent, which are the caller's again. Without
/// an open session, it does nothing but say so.
///
/// # Safety
/// `session` is what its type says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sr_close(session: *mut sr_session) -> i32 {
    let close = |held: &mut Held| {
        held.session.close();
        Ok(SR_EVENT_NONE)
    };
    // SAFETY: as the caller promises.
    let closed = unsafe { with(session, close) };
    if closed == SR_EVENT_NONE {
        // SAFETY: `with` found an open session there, which is not used again; zeros are a storage
        // that holds none, written so that they are not optimised away.
        unsafe {
            (*session.cast::<Stored>()).held.assume_init_drop();
            for index in 0..crate::abi::SR_SESSION_WORDS {
                (&raw mut (*session).opaque).cast::<u64>().add(index).write_volatile(0);
            }
        }
    }
    closed
}

#[cfg(target_os = "none")]
mod panic {
    unsafe extern "C" {
        /// Ends the program: the firmware's to write.
        safe fn sr_panic() -> !;
    }

    /// A fault of the library's. What was burned stays burned, so that a restart is safe.
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        sr_panic()
    }
}
