//! What the functions return: events from 0 up, errors below 0.

use core::ffi::CStr;

use secure_router_core::channel::ChannelError;
use secure_router_core::session::{Event, Refusal, SessionError};

/// Nothing happened yet: go on with `sr_io`.
pub const SR_EVENT_NONE: i32 = 0;
/// The server said which pool it serves; requests may follow.
pub const SR_EVENT_READY: i32 = 1;
/// An inference is in stock of the program that `sr_detail` tells.
pub const SR_EVENT_PREPARED: i32 = 2;
/// The router chose the model that `sr_detail` tells; its run follows by itself.
pub const SR_EVENT_ROUTED: i32 = 3;
/// The answer is there: `sr_class`, `sr_logits`, `sr_answered_by`.
pub const SR_EVENT_ANSWER: i32 = 4;
/// The request was refused, by the server or for want of stock; `sr_detail` tells why. The session goes on.
pub const SR_EVENT_REFUSED: i32 = 5;

/// The router chose the model that `sr_detail` tells and told this device alone; nothing follows by
/// itself. What is asked for next must not depend on it.
pub const SR_EVENT_ADVISED: i32 = 6;

/// No stock for this program: prepare some.
pub const SR_REFUSED_STOCK_EMPTY: i32 = 1;
/// The counter is not the next in stock, or was seen before: connect again.
pub const SR_REFUSED_COUNTER: i32 = 2;
/// The pool has no such program.
pub const SR_REFUSED_NO_SUCH_PROGRAM: i32 = 3;
/// The server has got nothing from its dealer: try again later.
pub const SR_REFUSED_DEALER: i32 = 4;
/// The server's stock store failed: try again later.
pub const SR_REFUSED_STORE: i32 = 5;
/// The server's pool changed: connect again.
pub const SR_REFUSED_POOL_CHANGED: i32 = 6;
/// The server gives this device no more answers.
pub const SR_REFUSED_QUERY_BUDGET: i32 = 7;
/// The dealer deals this device no more private routes.
pub const SR_REFUSED_PRIVACY_BUDGET: i32 = 8;
/// The pool routes openly, and this device has a budget of privacy.
pub const SR_REFUSED_ROUTING: i32 = 9;
/// Another reason.
pub const SR_REFUSED_OTHER: i32 = 99;

/// A pointer is null or misaligned, a size is wrong, or memory overlaps.
pub const SR_ERROR_ARGUMENT: i32 = -1;
/// The session's storage or the configuration has another size than this library's.
pub const SR_ERROR_SIZE: i32 = -2;
/// The session is not open.
pub const SR_ERROR_NOT_OPEN: i32 = -3;
/// The session is open already.
pub const SR_ERROR_OPEN: i32 = -4;
/// The session is at work: it was called from a callback or an interrupt.
pub const SR_ERROR_REENTERED: i32 = -5;
/// The provisioning is blank or none.
pub const SR_ERROR_PROVISIONING: i32 = -6;
/// There is no answer to read.
pub const SR_ERROR_NO_ANSWER: i32 = -7;
/// The random source failed or repeats itself.
pub const SR_ERROR_RANDOM: i32 = -10;
/// The link is not the server's: forged, altered, cut off or of another protocol.
pub const SR_ERROR_CHANNEL: i32 = -11;
/// The server's pool is not valid.
pub const SR_ERROR_POOL: i32 = -12;
/// A buffer is too small for this program.
pub const SR_ERROR_BUFFER: i32 = -13;
/// The counter store failed.
pub const SR_ERROR_COUNTERS: i32 = -14;
/// A protocol message is not what its turn expects.
pub const SR_ERROR_PROTOCOL: i32 = -15;
/// The server offered a spent counter, or one far beyond the next.
pub const SR_ERROR_COUNTER_OFFERED: i32 = -16;
/// A request is under way, or the session is not ready.
pub const SR_ERROR_BUSY: i32 = -17;
/// The pool has no such program.
pub const SR_ERROR_NO_SUCH_PROGRAM: i32 = -18;
/// Nothing is in stock for this program: prepare first.
pub const SR_ERROR_STOCK_EMPTY: i32 = -19;
/// The input has the wrong number of values.
pub const SR_ERROR_INPUT_LENGTH: i32 = -20;
/// An input value is outside the pool's range.
pub const SR_ERROR_INPUT_RANGE: i32 = -21;
/// The session has ended: close it and open another.
pub const SR_ERROR_CLOSED: i32 = -22;
/// The server's pool has a less private routing than the device takes part in.
pub const SR_ERROR_ROUTING: i32 = -23;
/// Another error of the session.
pub const SR_ERROR_OTHER: i32 = -99;

/// What an error is, for people.
pub(crate) const fn text(code: i32) -> &'static CStr {
    match code {
        SR_ERROR_ARGUMENT => c"a pointer is null or misaligned, a size is wrong, or memory overlaps",
        SR_ERROR_SIZE => c"header and library do not belong together",
        SR_ERROR_NOT_OPEN => c"the session is not open",
        SR_ERROR_OPEN => c"the session is open already",
        SR_ERROR_REENTERED => c"the session was called while at work",
        SR_ERROR_PROVISIONING => c"the provisioning is blank or none",
        SR_ERROR_NO_ANSWER => c"there is no answer",
        SR_ERROR_RANDOM => c"the random source failed or repeats itself",
        SR_ERROR_CHANNEL => c"the link is not the server's, or was cut off or altered",
        SR_ERROR_POOL => c"the server's pool is not valid",
        SR_ERROR_BUFFER => c"a buffer is too small for this program",
        SR_ERROR_COUNTERS => c"the counter store failed",
        SR_ERROR_PROTOCOL => c"a message is not what its turn expects",
        SR_ERROR_COUNTER_OFFERED => c"the server offered a counter that is spent or too far ahead",
        SR_ERROR_BUSY => c"a request is under way, or the session is not ready",
        SR_ERROR_NO_SUCH_PROGRAM => c"the pool has no such program",
        SR_ERROR_STOCK_EMPTY => c"nothing is in stock for this program",
        SR_ERROR_INPUT_LENGTH => c"the input has the wrong number of values",
        SR_ERROR_INPUT_RANGE => c"an input value is outside the pool's range",
        SR_ERROR_CLOSED => c"the session has ended",
        SR_ERROR_ROUTING => c"the pool's routing is less private than this device takes part in",
        0.. => c"no error",
        _ => c"another error",
    }
}

/// The number of a session's error.
pub(crate) fn error(error: &SessionError) -> i32 {
    match error {
        SessionError::Channel(ChannelError::RandomFailed | ChannelError::RandomStuck) => SR_ERROR_RANDOM,
        SessionError::Channel(ChannelError::BlankSecret) => SR_ERROR_PROVISIONING,
        SessionError::Channel(ChannelError::Closed) | SessionError::Closed => SR_ERROR_CLOSED,
        SessionError::Channel(_) => SR_ERROR_CHANNEL,
        SessionError::Spec(_) => SR_ERROR_POOL,
        SessionError::Routing { .. } => SR_ERROR_ROUTING,
        SessionError::Buffer(_) => SR_ERROR_BUFFER,
        SessionError::Counters(_) => SR_ERROR_COUNTERS,
        SessionError::Device(_) | SessionError::Frame | SessionError::Control => SR_ERROR_PROTOCOL,
        SessionError::CounterAhead { .. } | SessionError::CounterReused { .. } => SR_ERROR_COUNTER_OFFERED,
        SessionError::Busy => SR_ERROR_BUSY,
        SessionError::NoSuchSlot => SR_ERROR_NO_SUCH_PROGRAM,
        SessionError::StockEmpty(_) => SR_ERROR_STOCK_EMPTY,
        SessionError::InputLength { .. } => SR_ERROR_INPUT_LENGTH,
        SessionError::InputRange { .. } => SR_ERROR_INPUT_RANGE,
        _ => SR_ERROR_OTHER,
    }
}

/// The number of an event, and its detail.
pub(crate) fn event(event: Event) -> (i32, i32) {
    match event {
        Event::Ready => (SR_EVENT_READY, 0),
        Event::Prepared(slot) => (SR_EVENT_PREPARED, i32::from(slot.code())),
        Event::Routed(slot) => (SR_EVENT_ROUTED, i32::from(slot.code())),
        Event::Advised(slot) => (SR_EVENT_ADVISED, i32::from(slot.code())),
        Event::Answer => (SR_EVENT_ANSWER, 0),
        Event::Refused(refusal) => (SR_EVENT_REFUSED, refused(refusal)),
    }
}

const fn refused(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::StockEmpty(_) => SR_REFUSED_STOCK_EMPTY,
        Refusal::Counter(_) => SR_REFUSED_COUNTER,
        Refusal::NoSuchSlot(_) => SR_REFUSED_NO_SUCH_PROGRAM,
        Refusal::Dealer => SR_REFUSED_DEALER,
        Refusal::Store => SR_REFUSED_STORE,
        Refusal::PoolChanged => SR_REFUSED_POOL_CHANGED,
        Refusal::QueryBudget => SR_REFUSED_QUERY_BUDGET,
        Refusal::PrivacyBudget => SR_REFUSED_PRIVACY_BUDGET,
        Refusal::Routing => SR_REFUSED_ROUTING,
        _ => SR_REFUSED_OTHER,
    }
}
