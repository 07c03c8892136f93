//! Links that lose, repeat, reorder, delay, cut and flip what they carry, hang up, or fall silent.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::world::{Life, Party, lock};

/// Bytes that a link holds before its writer must wait.
const ROOM: usize = 16 * 1024;

/// What can happen to a piece of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is dropped.
    Lost,
    /// It comes twice.
    Repeated,
    /// It comes behind the next.
    Reordered,
    /// It takes long.
    Delayed,
    /// Its end is dropped.
    Truncated,
    /// Bits are changed.
    Flipped,
    /// Both ends are told that the link ended.
    HungUp,
    /// Nothing passes any more, and nobody is told.
    Silent,
}

/// All of them.
pub const FAULTS: [Fault; 8] = [
    Fault::Lost,
    Fault::Repeated,
    Fault::Reordered,
    Fault::Delayed,
    Fault::Truncated,
    Fault::Flipped,
    Fault::HungUp,
    Fault::Silent,
];

/// When the far end took in a byte.
pub type Seen = Arc<OnceLock<Instant>>;

/// Bytes under way in one direction.
#[derive(Debug, Default)]
struct Pipe {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    last: Option<Instant>,
    /// Held back to come behind the next piece.
    held: Option<Vec<u8>>,
    /// Bytes that the reader has not taken.
    queued: usize,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    written: u64,
    read: u64,
    /// What was written from here on does not arrive as it was.
    faithful: Option<u64>,
    marks: Vec<(u64, Seen)>,
}

impl Pipe {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn close(&mut self) {
        self.closed = true;
        if let Some(held) = self.held.take() {
            self.pieces.push_back((Instant::now(), held));
        }
        self.wake();
    }

    /// What is read behind place `at` is not what was written.
    fn breaks(&mut self, at: u64) {
        self.faithful = Some(self.faithful.map_or(at, |before| before.min(at)));
    }
}

#[derive(Debug, Default)]
struct State {
    pipes: [Pipe; 2],
    silent: bool,
}

/// A link.
#[derive(Debug, Default)]
pub struct Wire(Mutex<State>);

impl Wire {
    /// The two ends of a new link.
    pub fn ends(dialling: &Arc<Life>, answering: &Arc<Life>) -> (End, End) {
        let wire = Arc::new(Self::default());
        answering.world.answered.fetch_add(1, Relaxed);
        let end = |life: &Arc<Life>, side| {
            life.holds(&wire);
            End { life: Arc::clone(life), wire: Arc::clone(&wire), side, alarm: None }
        };
        (end(dialling, 0), end(answering, 1))
    }

    /// Tells when the end that answers has taken in the byte that comes `ahead` bytes behind what the other has
    /// written so far.
    pub fn mark(&self, ahead: usize) -> Seen {
        let seen = Seen::default();
        let pipe = &mut lock(&self.0).pipes[0];
        pipe.marks.push((pipe.written + ahead as u64, Arc::clone(&seen)));
        seen
    }

    /// Hangs up on both ends, or falls silent.
    pub fn end(&self, silent: bool) {
        let mut state = lock(&self.0);
        state.silent |= silent;
        if !silent {
            state.pipes.iter_mut().for_each(Pipe::close);
        }
    }
}

/// One end of a link.
#[derive(Debug)]
pub struct End {
    life: Arc<Life>,
    wire: Arc<Wire>,
    /// The pipe that this end writes.
    side: usize,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl End {
    /// A handle on the link.
    #[must_use]
    pub fn wire(&self) -> Arc<Wire> {
        Arc::clone(&self.wire)
    }
}

fn carry(life: &Life, state: &mut State, side: usize, mut piece: Vec<u8>) {
    let world = &life.world;
    let pipe = &mut state.pipes[side];
    let from = pipe.written;
    pipe.written += piece.len() as u64;
    pipe.queued += piece.len();
    if state.silent {
        return;
    }
    let rates = lock(&world.weather).link.clone();
    let fault = rates.iter().find(|(_, rate)| world.per_mille(*rate)).map(|(fault, _)| *fault);
    if let Some(fault) = fault {
        world.count(format!("fault: {fault:?}"));
    }
    let mut at = Instant::now() + Duration::from_millis(world.below(4) as u64);
    let mut copies = 1;
    match fault {
        None => {}
        Some(Fault::Lost) => {
            pipe.breaks(from);
            pipe.queued -= piece.len();
            return;
        }
        Some(Fault::Repeated) => {
            pipe.breaks(from + piece.len() as u64);
            pipe.queued += piece.len();
            copies = 2;
        }
        Some(Fault::Reordered) if pipe.held.is_none() => {
            pipe.breaks(from);
            pipe.held = Some(piece);
            return;
        }
        Some(Fault::Reordered) => {}
        Some(Fault::Delayed) => at += Duration::from_millis(world.below(1500) as u64),
        Some(Fault::Truncated) => {
            let keep = world.below(piece.len());
            pipe.breaks(from + keep as u64);
            pipe.queued -= piece.len() - keep;
            piece.truncate(keep);
        }
        Some(Fault::Flipped) => {
            pipe.breaks(from);
            for _ in 0..1 + world.below(3) {
                let bit = world.below(piece.len() * 8);
                piece[bit / 8] ^= 1 << (bit % 8);
            }
        }
        Some(Fault::HungUp) => {
            state.pipes.iter_mut().for_each(Pipe::close);
            return;
        }
        Some(Fault::Silent) => {
            state.silent = true;
            return;
        }
    }
    let pace = if life.party == Party::Dealer { lock(&world.weather).dealer_pace } else { Duration::ZERO };
    let at = pipe.last.map_or(at, |last| (last + pace).max(at));
    pipe.last = Some(at);
    for _ in 0..copies {
        pipe.pieces.push_back((at, piece.clone()));
    }
    if let Some(held) = pipe.held.take() {
        pipe.pieces.push_back((at, held));
    }
    pipe.wake();
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.life.step() {
            return Poll::Pending;
        }
        let mut state = lock(&self.wire.0);
        let pipe = &mut state.pipes[self.side];
        if pipe.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.queued >= ROOM {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let room = bytes.len().min(ROOM - pipe.queued);
        // Mostly whole writes, as a link without trouble would take them.
        let world = &self.life.world;
        let count = if world.per_mille(800) { room } else { 1 + world.below(room) }.min(room);
        carry(&self.life, &mut state, self.side, bytes[..count].to_vec());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.wire.0).pipes[self.side].close();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.life.step() {
            return Poll::Pending;
        }
        let this = self.get_mut();
        let mut state = lock(&this.wire.0);
        let silent = state.silent;
        let pipe = &mut state.pipes[1 - this.side];
        pipe.reader = Some(context.waker().clone());
        let now = Instant::now();
        while pipe.pieces.front().is_some_and(|(_, piece)| piece.is_empty()) {
            pipe.pieces.pop_front();
        }
        match pipe.pieces.front_mut() {
            Some((at, piece)) if *at <= now => {
                let count = piece.len().min(into.remaining());
                into.put_slice(&piece[..count]);
                piece.drain(..count);
                pipe.queued = pipe.queued.saturating_sub(count);
                pipe.read += count as u64;
                let (read, faithful) = (pipe.read, pipe.faithful);
                pipe.marks.retain(|(at, seen)| {
                    let taken = *at < read;
                    if taken && faithful.is_none_or(|faithful| *at < faithful) {
                        let _ = seen.set(now);
                    }
                    !taken
                });
                pipe.writer.take().into_iter().for_each(Waker::wake);
                Poll::Ready(Ok(()))
            }
            Some((at, _)) => {
                let at = *at;
                drop(state);
                let alarm = this.alarm.get_or_insert_with(|| Box::pin(sleep_until(at)));
                alarm.as_mut().reset(at);
                if alarm.as_mut().poll(context).is_ready() {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
            None if pipe.closed && !silent => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.side == 1 {
            self.life.world.answered.fetch_sub(1, Relaxed);
        }
        // Of a party that fell, the link was dealt with then.
        if !self.life.is_over() {
            self.wire.end(false);
        }
    }
}
