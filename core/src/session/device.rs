//! The device's session: bytes in, bytes out, no I/O.
//!
//! A driver asks [`DeviceSession::io`] where the next bytes from the link belong and which bytes
//! wait to go out, and reports what it moved; see [`crate::driver`]. Everything that can arrive is
//! either what this turn expects or a typed error, after which the session is closed and its
//! buffers are wiped. A counter is burned before the first byte of its inference leaves.

use core::fmt;

use heapless::Vec;
use rand_core::TryCryptoRng;
use zeroize::Zeroize;

use crate::channel::{Channel, ChannelError, Link, PublicKey, StaticSecret, buffer_bytes};
use crate::circuit::{CircuitError, Program, SLOTS, Slot};
use crate::device::{self, DeviceError, Offline, Online, Outgoing, Step};
use crate::error::BufferError;
use crate::keys::DeviceSeeds;
use crate::routing::{Routing, settled};
use crate::spec::{PoolSpec, SpecError};

use super::counters::{CounterError, Counters, MAX_COUNTER_SKIP};
use super::message::{
    Control, FRAME_CONTROL, FRAME_DATA, FRAME_PAYLOAD, Hello, Infer, LinkProfile, Prepare, PreparedStock, Refusal,
    SlotStock, ToDevice, ToServer,
};

/// Bytes of session state, without the lent buffers; for memory budgets.
pub const SESSION_BYTES: usize = size_of::<DeviceSession<'static, NoCounters>>();

/// The buffers that a session works in. All are wiped when it ends.
#[derive(Debug)]
pub struct DeviceMemory<'b> {
    /// Incoming frame.
    pub rx: &'b mut [u8],
    /// Outgoing frame.
    pub tx: &'b mut [u8],
    /// Work space of the gates.
    pub work: &'b mut [u32],
    /// The private input of the inference under way.
    pub input: &'b mut [i16],
}

impl DeviceMemory<'_> {
    /// Bytes that `rx` and `tx` need, each.
    pub const FRAME_BYTES: usize = buffer_bytes(FRAME_PAYLOAD);
}

/// Who the device is, and whom it trusts; from provisioning.
#[derive(Clone, Copy)]
pub struct DeviceIdentity<'k> {
    /// The device's static key.
    pub secret: &'k StaticSecret,
    /// The server's public key.
    pub server: PublicKey,
    /// Seeds shared with dealer and server.
    pub seeds: &'k DeviceSeeds,
    /// The least private routing that it takes part in: a pool whose router leaks more is refused.
    pub routing: Routing,
}

/// What a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The router, or one model.
    pub slot: Slot,
    /// Weight of cost in the router's score, in 1/256, or [`RECOMMENDED_LAMBDA`](super::RECOMMENDED_LAMBDA); see [`Infer::lambda`].
    pub lambda: u16,
    /// The link in use.
    pub link: LinkProfile,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Event {
    /// The server said which pool it serves; requests may follow.
    Ready,
    /// An inference of this program is in stock.
    Prepared(Slot),
    /// The router chose this model; its answer follows by itself. Where the router has it already
    /// [`Answer`](Self::Answer) comes instead.
    Routed(Slot),
    /// The router chose this model and told this device alone; the session is idle. What is asked for next
    /// must not depend on it, or the server learns it: see [`crate::quota`].
    Advised(Slot),
    /// The answer is in [`DeviceSession::logits`], and whose it is in [`DeviceSession::answered_by`].
    Answer,
    /// The request was refused, by the server or for want of stock; the session goes on.
    Refused(Refusal),
}

/// Why a session ended, or a request was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SessionError {
    /// The channel failed.
    Channel(ChannelError),
    /// The server's pool is not valid.
    Spec(SpecError),
    /// The server's pool has a less private routing than this device takes part in.
    Routing {
        /// The pool's.
        offered: Routing,
        /// The least private one that is accepted.
        least: Routing,
    },
    /// A buffer is too small for this pool or program.
    Buffer(BufferError),
    /// The counter store failed.
    Counters(CounterError),
    /// A protocol message is not what this turn expects.
    Device(DeviceError),
    /// A frame came out of turn, or with another length than its turn has.
    Frame,
    /// A control message is malformed or out of turn.
    Control,
    /// The server offered a counter far beyond the next: burning it would spend all before it.
    CounterAhead {
        /// Program.
        slot: Slot,
        /// Counter offered.
        offered: u64,
        /// Lowest counter that is still good.
        lowest: u64,
    },
    /// The server offered a counter that was used before.
    CounterReused {
        /// Program.
        slot: Slot,
        /// Counter offered.
        offered: u64,
        /// Lowest counter that is still good.
        lowest: u64,
    },
    /// A request was made while another is under way, or before the session was ready.
    Busy,
    /// The pool has no such program.
    NoSuchSlot,
    /// Nothing is in stock for this program.
    StockEmpty(Slot),
    /// The input has the wrong number of values.
    InputLength {
        /// Values that the pool takes.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// An input value is outside the pool's range.
    InputRange {
        /// Its place.
        index: usize,
        /// The range's signed bits.
        bits: u8,
    },
    /// The session is closed.
    Closed,
}

macro_rules! from {
    ($($source:ty => $variant:ident),*) => {$(
        impl From<$source> for SessionError {
            fn from(error: $source) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
from!(ChannelError => Channel, SpecError => Spec, BufferError => Buffer, CounterError => Counters, DeviceError => Device);

impl From<CircuitError> for SessionError {
    fn from(error: CircuitError) -> Self {
        match error {
            CircuitError::NoSuchSlot => Self::NoSuchSlot,
            error => Self::Device(DeviceError::Circuit(error)),
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel(error) => error.fmt(f),
            Self::Spec(error) => error.fmt(f),
            Self::Routing { offered, least } => {
                write!(f, "the pool's routing is {offered}, this device takes part in {least} or more private: refused")
            }
            Self::Buffer(error) => error.fmt(f),
            Self::Counters(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::Frame => f.write_str("the server's frame is out of turn or has the wrong length"),
            Self::Control => f.write_str("the server's control message is malformed or out of turn"),
            Self::CounterReused { offered, lowest, .. } => {
                write!(f, "the server offered counter {offered}, but all below {lowest} are spent: refused")
            }
            Self::CounterAhead { offered, lowest, .. } => {
                write!(f, "the server offered counter {offered}, more than {MAX_COUNTER_SKIP} beyond {lowest}: refused")
            }
            Self::Busy => f.write_str("a request is under way, or the session is not ready yet"),
            Self::NoSuchSlot => f.write_str("the pool has no such model, or no router"),
            Self::StockEmpty(Slot::Router) => f.write_str("nothing is in stock for the router: prepare first"),
            Self::StockEmpty(Slot::Model(index)) => write!(f, "nothing is in stock for model {index}: prepare first"),
            Self::InputLength { expected, found } => {
                write!(f, "the input has {found} values, this pool takes {expected}")
            }
            Self::InputRange { index, bits } => {
                write!(f, "input value {index} does not fit the pool's {bits} signed bits, or is no word")
            }
            Self::Closed => f.write_str("the session is closed; connect again"),
        }
    }
}

impl core::error::Error for SessionError {}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the state is one static object; no heap to box it on")]
enum State {
    /// The channel's handshake is under way.
    Connecting,
    /// `Hello` is to be sent as soon as the channel allows.
    Greeting,
    AwaitWelcome,
    Idle,
    Preparing {
        slot: Slot,
        counter: u64,
        announced: bool,
        offline: Offline,
    },
    AwaitPrepared {
        slot: Slot,
        counter: u64,
    },
    Inferring {
        announced: bool,
        /// What is asked for; the router's request is followed by one like it for its choice.
        infer: Infer,
        online: Online,
    },
    Closed,
}

/// A control message, without what a welcome holds.
enum Heard {
    Welcome,
    Prepared(PreparedStock),
    Refused(Refusal),
}

/// A device's session with a server.
pub struct DeviceSession<'b, C> {
    channel: Channel<'b>,
    work: &'b mut [u32],
    input: &'b mut [i16],
    seeds: DeviceSeeds,
    least: Routing,
    counters: C,
    tile: u16,
    state: State,
    pool: Option<(PoolSpec, [u8; 32])>,
    stock: Vec<SlotStock, SLOTS>,
    /// Bytes of the frame in the channel that are used; `None` when no frame is held.
    used: Option<usize>,
    /// Bytes of the outgoing frame that are filled while more input is needed to complete it.
    filled: usize,
    classes: usize,
    answered_by: Option<Slot>,
}

impl<'b, C: Counters> DeviceSession<'b, C> {
    /// Opens a session; the first bytes to send are pending at once. `tile` is how many tokens of a
    /// linear gate are masked at a time: more take more work space and draw fewer blocks.
    ///
    /// # Errors
    /// [`SessionError::Channel`] for a failing random source, [`SessionError::Buffer`] for frame
    /// buffers shorter than [`DeviceMemory::FRAME_BYTES`].
    pub fn connect<R: TryCryptoRng + ?Sized>(
        identity: DeviceIdentity<'_>,
        memory: DeviceMemory<'b>,
        tile: u16,
        counters: C,
        rng: &mut R,
    ) -> Result<Self, SessionError> {
        let DeviceMemory { rx, tx, work, input } = memory;
        BufferError::check("receive buffer", DeviceMemory::FRAME_BYTES, rx.len())?;
        BufferError::check("send buffer", DeviceMemory::FRAME_BYTES, tx.len())?;
        let channel = Channel::initiator(Link::DeviceServer, identity.secret, identity.server, rng, rx, tx)?;
        Ok(Self::over(channel, State::Connecting, identity, work, input, tile, counters))
    }

    /// A session whose handshake is behind it, under keys that everyone knows: a fuzzer cannot spend its time on X25519.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    #[cfg(fuzzing)]
    pub fn established(
        identity: DeviceIdentity<'_>,
        memory: DeviceMemory<'b>,
        tile: u16,
        counters: C,
    ) -> Result<Self, SessionError> {
        let DeviceMemory { rx, tx, work, input } = memory;
        let channel = Channel::established(Link::DeviceServer, true, rx, tx)?;
        let mut session = Self::over(channel, State::Greeting, identity, work, input, tile, counters);
        session.start()?;
        Ok(session)
    }

    fn over(
        channel: Channel<'b>,
        state: State,
        identity: DeviceIdentity<'_>,
        work: &'b mut [u32],
        input: &'b mut [i16],
        tile: u16,
        counters: C,
    ) -> Self {
        Self {
            channel,
            work,
            input,
            seeds: identity.seeds.clone(),
            least: identity.routing,
            counters,
            tile: tile.max(1),
            state,
            pool: None,
            stock: Vec::new(),
            used: None,
            filled: 0,
            classes: 0,
            answered_by: None,
        }
    }

    /// Where the next bytes from the link belong, and the bytes that wait to go out. The first is
    /// empty while a frame is being worked on: then the second is not.
    pub fn io(&mut self) -> (&mut [u8], &[u8]) {
        if self.used.is_some() { (&mut [], self.channel.pending()) } else { self.channel.io() }
    }

    /// Reports that the first `count` bytes of the first half of [`io`](Self::io) were filled. What
    /// went out before they came must have been reported first: they may answer it.
    ///
    /// # Errors
    /// [`SessionError`]; the session is then closed.
    pub fn received(&mut self, count: usize) -> Result<Option<Event>, SessionError> {
        let outcome = self.take(count);
        self.settle(outcome)
    }

    /// Reports that the first `count` bytes of the second half of [`io`](Self::io) went out.
    ///
    /// # Errors
    /// [`SessionError`]; the session is then closed.
    pub fn sent(&mut self, count: usize) -> Result<Option<Event>, SessionError> {
        let outcome = self.channel.sent(count).map_err(SessionError::from).and_then(|()| self.pump());
        self.settle(outcome)
    }

    /// Reports that the link ended.
    ///
    /// # Errors
    /// Always one: a session ends by [`close`](Self::close).
    pub fn link_ended(&mut self) -> Result<Option<Event>, SessionError> {
        let outcome = self.channel.end_of_input();
        self.close();
        outcome?;
        Err(SessionError::Closed)
    }

    /// Prepares the next inference of `slot`: sends its corrections.
    ///
    /// # Errors
    /// [`SessionError`]. Before anything was sent the session stays as it was.
    #[inline(never)]
    pub fn prepare(&mut self, slot: Slot) -> Result<(), SessionError> {
        self.idle()?;
        let program = self.program(slot)?;
        let stock = self.stock_of(slot)?;
        let counter = stock.fresh;
        self.fresh(slot, counter)?;
        let keys = self.seeds.keys(&self.fingerprint()?, slot, counter);
        let offline = Offline::new(program, keys, self.tile, self.work.len())?;
        self.classes = 0;
        self.state = State::Preparing { slot, counter, announced: false, offline };
        self.start()
    }

    /// Answers a private input: by the model that the router picks, or by one model. A router that tells this
    /// device alone ends in [`Event::Advised`] instead.
    ///
    /// # Errors
    /// [`SessionError`]. Before anything was sent the session stays as it was.
    #[inline(never)]
    pub fn infer(&mut self, request: Request, input: &[i16]) -> Result<(), SessionError> {
        self.idle()?;
        let slot = request.slot;
        self.fits(slot)?;
        self.check_input(input)?;
        let stock = self.stock_of(slot)?;
        if stock.ready == 0 {
            return Err(SessionError::StockEmpty(slot));
        }
        let allowed = self.allowed();
        if slot == Slot::Router && allowed == 0 {
            // No model could follow: the router's stock would be spent for nothing.
            self.fits(Slot::Model(0))?;
        }
        self.burn(Infer { slot, counter: stock.first, lambda: request.lambda, allowed, link: request.link })?;
        for (slot, value) in self.input.iter_mut().zip(input) {
            *slot = *value;
        }
        self.classes = 0;
        self.start()
    }

    /// The pool that the server serves, once ready.
    #[must_use]
    pub fn pool(&self) -> Option<&PoolSpec> {
        self.pool.as_ref().map(|(pool, _)| pool)
    }

    /// Inferences in stock for `slot`.
    #[must_use]
    pub fn ready(&self, slot: Slot) -> u32 {
        self.stock_of(slot).map_or(0, |stock| stock.ready)
    }

    /// Whether program `slot` fits the lent buffers.
    ///
    /// # Errors
    /// [`SessionError::Buffer`] names the buffer and what it needs; [`SessionError::NoSuchSlot`].
    pub fn fits(&self, slot: Slot) -> Result<(), SessionError> {
        let program = self.program(slot)?;
        let (pool, _) = self.pool.as_ref().ok_or(SessionError::Busy)?;
        BufferError::check("input buffer", usize::from(pool.input_len), self.input.len())?;
        BufferError::check("device workspace", device::work_words(&program, self.tile)?, self.work.len())?;
        Ok(())
    }

    /// The last answer: its logits, each program's at a scale of its own, or under
    /// [`Output::Label`](crate::spec::Output) 1 for its class and 0 for the others; 0 for all where
    /// near equals left no winner, which [`class`](Self::class) takes for the first.
    pub fn logits(&self) -> impl Iterator<Item = i32> {
        self.work.iter().take(self.classes).map(|word| *word as i32)
    }

    /// The class of the last answer: the largest logit, the first of equals.
    #[must_use]
    pub fn class(&self) -> Option<usize> {
        // Branches on the answer are the device's own affair, but cost nothing to avoid in time
        // that the link could show: the answer is the last message.
        self.logits()
            .enumerate()
            .fold(None, |best, (class, logit)| match best {
                Some((_, largest)) if largest >= logit => best,
                _ => Some((class, logit)),
            })
            .map(|(class, _)| class)
    }

    /// Whose answer stands in [`logits`](Self::logits): the model that was asked for, or that the router chose.
    #[must_use]
    pub const fn answered_by(&self) -> Option<Slot> {
        if self.classes > 0 { self.answered_by } else { None }
    }

    /// Whether the session is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Ends the session and wipes what it lent.
    pub fn close(&mut self) {
        self.channel.close();
        self.state = State::Closed;
        self.used = None;
        self.filled = 0;
        self.classes = 0;
        self.work.zeroize();
        self.input.zeroize();
    }

    fn settle(&mut self, outcome: Result<Option<Event>, SessionError>) -> Result<Option<Event>, SessionError> {
        if outcome.is_err() {
            self.close();
        }
        outcome
    }

    fn idle(&self) -> Result<(), SessionError> {
        match self.state {
            State::Idle => Ok(()),
            State::Closed => Err(SessionError::Closed),
            _ => Err(SessionError::Busy),
        }
    }

    /// Sends the first frame of a request.
    fn start(&mut self) -> Result<(), SessionError> {
        let outcome = self.pump();
        self.settle(outcome).map(|_| ())
    }

    fn program(&self, slot: Slot) -> Result<Program, SessionError> {
        let (pool, _) = self.pool.as_ref().ok_or(SessionError::Busy)?;
        Ok(Program::of(pool, slot)?)
    }

    fn fingerprint(&self) -> Result<[u8; 32], SessionError> {
        self.pool.as_ref().map(|(_, fingerprint)| *fingerprint).ok_or(SessionError::Busy)
    }

    fn stock_of(&self, slot: Slot) -> Result<SlotStock, SessionError> {
        self.stock.iter().find(|stock| stock.slot == slot).copied().ok_or(SessionError::NoSuchSlot)
    }

    /// Bit `i` says that model `i` fits this device.
    fn allowed(&self) -> u8 {
        (0..8u8).filter(|index| self.fits(Slot::Model(*index)).is_ok()).fold(0, |bits, index| bits | 1 << index)
    }

    fn check_input(&self, input: &[i16]) -> Result<(), SessionError> {
        let (pool, _) = self.pool.as_ref().ok_or(SessionError::Busy)?;
        let expected = usize::from(pool.input_len);
        if input.len() != expected {
            return Err(SessionError::InputLength { expected, found: input.len() });
        }
        let bits = pool.input_bits;
        let limit = 1i32 << (bits - 1);
        let least = if pool.words().is_some() { 0 } else { -limit };
        match input.iter().position(|value| !(least..limit).contains(&i32::from(*value))) {
            Some(index) => Err(SessionError::InputRange { index, bits }),
            None => Ok(()),
        }
    }

    /// Refuses a counter that is spent, or so far ahead that burning it would use up the store.
    fn fresh(&mut self, slot: Slot, offered: u64) -> Result<(), SessionError> {
        let lowest = self.counters.next(slot)?;
        match offered.checked_sub(lowest) {
            None => Err(SessionError::CounterReused { slot, offered, lowest }),
            // The last counter stays unused, so that one always follows.
            Some(skipped) if skipped > MAX_COUNTER_SKIP || offered == u64::MAX => {
                Err(SessionError::CounterAhead { slot, offered, lowest })
            }
            Some(_) => Ok(()),
        }
    }

    /// Burns `counter` and only then makes anything that depends on its masks: the online phase
    /// that the session is in from here on.
    #[inline(never)]
    fn burn(&mut self, infer: Infer) -> Result<(), SessionError> {
        let Infer { slot, counter, .. } = infer;
        let program = self.program(slot)?;
        self.fresh(slot, counter)?;
        self.counters.burn(slot, counter)?;
        if let Some(stock) = self.stock.iter_mut().find(|stock| stock.slot == slot) {
            let skipped = counter.saturating_add(1).saturating_sub(stock.first);
            stock.ready = stock.ready.saturating_sub(u32::try_from(skipped).unwrap_or(u32::MAX));
            stock.first = counter.saturating_add(1);
        }
        let keys = self.seeds.keys(&self.fingerprint()?, slot, counter);
        let online = Online::new(program, keys, self.work.len())?;
        self.state = State::Inferring { announced: false, infer, online };
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<Option<Event>, SessionError> {
        use crate::channel::Event as Arrived;
        match self.channel.received(count)? {
            Arrived::NeedMore => Ok(None),
            Arrived::Established => {
                self.state = State::Greeting;
                self.pump()
            }
            Arrived::Identity(_) => Err(SessionError::Frame),
            Arrived::Frame { kind: FRAME_CONTROL, .. } => self.control(),
            Arrived::Frame { kind: FRAME_DATA, len } => match &self.state {
                State::Inferring { online, .. } if len > 0 && len == online.inbound().min(FRAME_PAYLOAD) => {
                    self.used = Some(0);
                    self.pump()
                }
                _ => Err(SessionError::Frame),
            },
            Arrived::Frame { .. } => Err(SessionError::Frame),
        }
    }

    /// Reads a control message; a welcome's contents go where they belong. On its own, so that the
    /// largest message is off the stack before anything is done about the others.
    #[inline(never)]
    fn hear(&mut self) -> Result<Heard, SessionError> {
        Ok(match ToDevice::from_bytes(self.channel.payload()).map_err(|_| SessionError::Control)? {
            ToDevice::Welcome(welcome) if matches!(self.state, State::AwaitWelcome) => {
                self.pool = Some((PoolSpec::decode(&welcome.pool)?, [0; 32]));
                self.stock = welcome.stock;
                Heard::Welcome
            }
            ToDevice::Welcome(_) => return Err(SessionError::Control),
            ToDevice::Prepared(prepared) => Heard::Prepared(prepared),
            ToDevice::Refused(refusal) => Heard::Refused(refusal),
        })
    }

    /// Judges the welcome that was heard.
    fn welcome(&mut self) -> Result<(), SessionError> {
        let (pool, fingerprint) = self.pool.as_mut().ok_or(SessionError::Control)?;
        pool.validate()?;
        if pool.router.is_some() && pool.routing.leak() > self.least.leak() {
            return Err(SessionError::Routing { offered: pool.routing, least: self.least });
        }
        *fingerprint = pool.fingerprint()?;
        let known = |stock: &SlotStock| pool.slots().any(|slot| slot == stock.slot);
        if self.stock.iter().all(known) { Ok(()) } else { Err(SessionError::Control) }
    }

    // Not part of the loop that moves bytes, whose stack every frame's work stands on.
    #[inline(never)]
    fn control(&mut self) -> Result<Option<Event>, SessionError> {
        match (self.hear()?, &mut self.state) {
            (Heard::Welcome, _) => {
                if let Err(error) = self.welcome() {
                    self.pool = None;
                    self.stock.clear();
                    return Err(error);
                }
                self.state = State::Idle;
                Ok(Some(Event::Ready))
            }
            (Heard::Prepared(prepared), State::AwaitPrepared { slot, counter }) => {
                let slot = *slot;
                if prepared.stock.slot != slot || prepared.stock.fresh != counter.saturating_add(1) {
                    return Err(SessionError::Control);
                }
                if let Some(stock) = self.stock.iter_mut().find(|stock| stock.slot == slot) {
                    *stock = prepared.stock;
                }
                self.state = State::Idle;
                Ok(Some(Event::Prepared(slot)))
            }
            (Heard::Refused(refusal), State::AwaitPrepared { .. } | State::Inferring { .. }) => {
                self.give_up();
                Ok(Some(Event::Refused(refusal)))
            }
            _ => Err(SessionError::Control),
        }
    }

    /// Ends a request without an answer.
    fn give_up(&mut self) {
        self.input.zeroize();
        self.work.zeroize();
        self.filled = 0;
        self.state = State::Idle;
    }

    /// Ends a program: with its answer, or with what a router chose.
    #[inline(never)]
    fn finish(&mut self, infer: Infer, route: u8) -> Result<Event, SessionError> {
        let program = self.program(infer.slot)?;
        let chosen = match program {
            Program::Model { .. } => infer.slot,
            Program::Router { routing: Routing::Device, .. } => {
                self.give_up();
                return Ok(Event::Advised(Slot::Model(route)));
            }
            Program::Router { .. } => Slot::Model(settled(route, infer.allowed)),
        };
        if infer.slot == chosen || program.answers() && matches!(chosen, Slot::Model(0)) {
            self.classes = self.pool.as_ref().map_or(0, |(pool, _)| usize::from(pool.classes));
            self.answered_by = Some(chosen);
            self.input.zeroize();
            // Behind the logits stand masks.
            self.work.get_mut(self.classes..).unwrap_or(&mut []).zeroize();
            self.state = State::Idle;
            return Ok(Event::Answer);
        }
        let stock = self.stock_of(chosen)?;
        if stock.ready == 0 {
            self.give_up();
            return Ok(Event::Refused(Refusal::StockEmpty(chosen)));
        }
        self.burn(Infer { slot: chosen, counter: stock.first, ..infer })?;
        Ok(Event::Routed(chosen))
    }

    /// Works until a frame is pending, the peer's next frame is needed, or something happened.
    fn pump(&mut self) -> Result<Option<Event>, SessionError> {
        let mut event = None;
        // What ends a program begins the next one, and does not stand on the stack of the gates' work.
        while let Some((infer, route)) = self.drive()? {
            event = Some(self.finish(infer, route)?);
        }
        Ok(event)
    }

    /// The same within one program; returns what it was when it is over, and what it chose if it was the router.
    #[inline(never)]
    fn drive(&mut self) -> Result<Option<(Infer, u8)>, SessionError> {
        while self.channel.can_send() {
            match &mut self.state {
                State::Greeting => {
                    let mut counters = [0; SLOTS];
                    for (code, counter) in (0u8..).zip(&mut counters) {
                        *counter = self.counters.next(Slot::from_code(code))?;
                    }
                    self.state = State::AwaitWelcome;
                    self.say(&ToServer::Hello(Hello { counters }))?;
                }
                State::Preparing { slot, counter, announced, offline } => {
                    let (slot, counter) = (*slot, *counter);
                    if !*announced {
                        *announced = true;
                        self.say(&ToServer::Prepare(Prepare { slot, counter }))?;
                        continue;
                    }
                    let room = self.channel.outgoing()?;
                    let mut frame = Outgoing::new(room.get_mut(..FRAME_PAYLOAD).ok_or(SessionError::Frame)?);
                    match offline.advance(self.work, &mut frame)? {
                        Step::Flush => {
                            let len = frame.len;
                            self.channel.seal(FRAME_DATA, len)?;
                        }
                        Step::Done | Step::Input => self.state = State::AwaitPrepared { slot, counter },
                    }
                }
                State::Inferring { announced, infer, online } => {
                    let infer = *infer;
                    if !*announced {
                        *announced = true;
                        self.say(&ToServer::Infer(infer))?;
                        continue;
                    }
                    let (held, room) = self.channel.exchange()?;
                    let mut rx = self.used.and_then(|used| held.get(used..)).unwrap_or(&[]);
                    let before = rx.len();
                    let mut frame = Outgoing::new(room.get_mut(..FRAME_PAYLOAD).ok_or(SessionError::Frame)?);
                    frame.len = self.filled;
                    let step = online.advance(self.input, self.work, &mut rx, &mut frame)?;
                    let (left, len) = (rx.len(), frame.len);
                    self.used = self.used.map(|used| used + before - left).filter(|_| left > 0);
                    self.filled = if step == Step::Input { len } else { 0 };
                    match step {
                        Step::Flush => self.channel.seal(FRAME_DATA, len)?,
                        Step::Input if left == 0 => return Ok(None),
                        Step::Input => return Err(SessionError::Frame),
                        Step::Done => {
                            let route = online.route();
                            self.state = State::Idle;
                            return Ok(Some((infer, route)));
                        }
                    }
                }
                State::Closed => return Err(SessionError::Closed),
                State::Connecting | State::AwaitWelcome | State::Idle | State::AwaitPrepared { .. } => return Ok(None),
            }
        }
        Ok(None)
    }

    fn say(&mut self, message: &ToServer) -> Result<(), SessionError> {
        let len = message.to_bytes(self.channel.outgoing()?).map_err(|_| SessionError::Control)?;
        Ok(self.channel.seal(FRAME_CONTROL, len)?)
    }
}

impl<C> Drop for DeviceSession<'_, C> {
    fn drop(&mut self) {
        self.channel.close();
        self.work.zeroize();
        self.input.zeroize();
    }
}

impl<C> fmt::Debug for DeviceSession<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSession").finish_non_exhaustive()
    }
}

/// Stands for a counter store where only a size is asked.
struct NoCounters;

impl Counters for NoCounters {
    fn next(&mut self, _: Slot) -> Result<u64, CounterError> {
        Err(CounterError)
    }
    fn burn(&mut self, _: Slot, _: u64) -> Result<(), CounterError> {
        Err(CounterError)
    }
}
