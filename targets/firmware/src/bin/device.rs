//! The device party: prepares and answers the inputs that it is given, over UART 0.
//!
//! Under QEMU what a board has in flash, a sensor and a display are the host's files, in the
//! directory QEMU runs in: `device.key` (see `provisioning.rs`), `counters.log`, `entropy.bin`
//! (32 fresh bytes per start), `inputs.bin` (values of 16 bits, first how many make an input) and
//! `answers.txt`. Words choose the rest: `programs=router,micro` (all that fit by default; `_` in a
//! name stands for a space, too), `lambda=`, `link=BYTES_PER_SECOND,ROUND_TRIP_US`, `timeout=` in
//! ms. It ends with code 0, or says why not and ends with 2 (files), 3 (line), 4 (session) or 5
//! (refused).
#![no_std]
#![no_main]

use core::fmt::{self, Write as _};
use core::mem::MaybeUninit;

use cortex_m::singleton;
use cortex_m_rt::entry;
use embedded_io::{Read, Write};
use secure_router_core::circuit::Slot;
use secure_router_core::driver::{self, DriverError};
use secure_router_core::session::{
    CounterError, DeviceMemory, DeviceSession, Event, LinkProfile, RECOMMENDED_LAMBDA, Refusal, Request, SessionError,
};
use secure_router_core::spec::PoolSpec;
use secure_router_firmware::board::{INPUT_VALUES, TILE, WORK_WORDS};
use secure_router_firmware::counters::CounterLog;
use secure_router_firmware::entropy::Entropy;
use secure_router_firmware::link::Link;
use secure_router_firmware::provisioning::{self, Provisioning};
use secure_router_firmware::semi::{self, File, Words};
use secure_router_firmware::span::{Phase, measured, ticks};
use secure_router_firmware::uart::{self, Uart};
use secure_router_firmware::{board, stack};
use zeroize::Zeroizing;

const FRAME: usize = DeviceMemory::FRAME_BYTES;

type Session<'b> = DeviceSession<'b, CounterLog<'static>>;

#[entry]
fn main() -> ! {
    let painted = stack::paint();
    let outcome = work();
    let peak = painted.peak();
    let code = match outcome.and_then(|mut report| report.stack(peak)) {
        Ok(()) => 0,
        Err(failure) => {
            let _ = writeln!(Console, "{}: {failure}", board::NAME);
            failure.code()
        }
    };
    semi::exit(code)
}

/// Why the device stopped.
enum Failure {
    File(&'static str, semi::Error),
    Key,
    Link(uart::Error),
    Session(SessionError),
    Refused(Refusal),
    InputLength(usize),
    Turn,
}

impl Failure {
    const fn code(&self) -> u8 {
        match self {
            Self::File(..) | Self::Key | Self::InputLength(_) => 2,
            Self::Link(_) => 3,
            Self::Session(_) | Self::Turn => 4,
            Self::Refused(_) => 5,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name, error) => write!(f, "{name}: {error}"),
            Self::Key => f.write_str("device.key is not a provisioning of this device"),
            Self::Link(error) => write!(f, "the line failed: {error}"),
            Self::Session(error) => error.fmt(f),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::InputLength(values) => {
                write!(f, "inputs of {values} values do not fit this board's buffer of {INPUT_VALUES}")
            }
            Self::Turn => f.write_str("the server answered out of turn"),
        }
    }
}

impl From<DriverError<uart::Error>> for Failure {
    fn from(error: DriverError<uart::Error>) -> Self {
        match error {
            DriverError::Link(error) => Self::Link(error),
            DriverError::Session(error) => Self::Session(error),
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<CounterError> for Failure {
    fn from(error: CounterError) -> Self {
        Self::Session(error.into())
    }
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        semi::print(text);
        Ok(())
    }
}

/// What the words say.
struct Plan {
    lambda: u16,
    link: LinkProfile,
    timeout: u32,
}

impl Plan {
    #[inline(never)]
    fn read() -> Self {
        let words = Words::new();
        let number = |text: &str| text.parse::<u32>().ok();
        let value = |key| words.value(key).and_then(number);
        let mut link = LinkProfile::UART;
        if let Some((rate, trip)) = words.value("link").and_then(|text| text.split_once(','))
            && let (Some(rate), Some(trip)) = (number(rate), number(trip))
        {
            (link.bytes_per_second, link.round_trip_us) = (rate, trip);
        }
        Self {
            lambda: value("lambda").map_or(RECOMMENDED_LAMBDA, |lambda| lambda as u16),
            link,
            timeout: value("timeout").unwrap_or(30_000),
        }
    }
}

/// `answers.txt`: a line for each thing that happened.
struct Report(File);

impl Report {
    fn line(&mut self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        let failed = |_| Failure::File(ANSWERS, semi::Error::Write);
        self.write_fmt(text).and_then(|()| self.write_str("\n")).map_err(failed)
    }

    fn stack(&mut self, peak: usize) -> Result<(), Failure> {
        self.line(format_args!("stack {peak}"))
    }
}

impl fmt::Write for Report {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_all(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

const KEY: &str = "device.key";
const COUNTERS: &str = "counters.log";
const ENTROPY: &str = "entropy.bin";
const INPUTS: &str = "inputs.bin";
const ANSWERS: &str = "answers.txt";

#[inline(never)]
fn provisioned() -> Result<Provisioning, Failure> {
    let mut bytes = Zeroizing::new([0; provisioning::BYTES]);
    let mut file = File::open(KEY).map_err(|error| Failure::File(KEY, error))?;
    file.read_exact(bytes.as_mut()).map_err(|_| Failure::File(KEY, semi::Error::Read))?;
    Provisioning::from_bytes(&bytes).ok_or(Failure::Key)
}

/// Opens the session where it stays.
#[inline(never)]
fn connect(
    memory: DeviceMemory<'static>,
    counters: CounterLog<'static>,
) -> Result<&'static mut Session<'static>, Failure> {
    let place = singleton!(: MaybeUninit<Session<'static>> = MaybeUninit::uninit()).ok_or(Failure::Turn)?;
    let (provisioning, mut entropy) = (provisioned()?, Entropy::of(ENTROPY));
    let session = DeviceSession::connect(provisioning.identity(), memory, TILE, counters, &mut entropy)?;
    Ok(place.write(session))
}

#[inline(never)]
fn work() -> Result<Report, Failure> {
    let (Some(rx), Some(tx), Some(space), Some(input), Some(sample)) = (
        singleton!(: [u8; FRAME] = [0; FRAME]),
        singleton!(: [u8; FRAME] = [0; FRAME]),
        singleton!(: [u32; WORK_WORDS] = [0; WORK_WORDS]),
        singleton!(: [i16; INPUT_VALUES] = [0; INPUT_VALUES]),
        singleton!(: [i16; INPUT_VALUES] = [0; INPUT_VALUES]),
    ) else {
        return Err(Failure::Turn);
    };
    let Some(peripherals) = cortex_m::Peripherals::take() else {
        return Err(Failure::Turn);
    };
    let plan = Plan::read();
    let mut report = Report(File::create(ANSWERS).map_err(|e| Failure::File(ANSWERS, e))?);
    let mut inputs = File::open(INPUTS).map_err(|e| Failure::File(INPUTS, e))?;
    let counters = CounterLog::open(COUNTERS)?;

    let mut uart = Uart::new(peripherals.SYST);
    uart.set_timeout(Some(plan.timeout));
    let mut link = Link::new(&mut uart);
    let memory = DeviceMemory { rx, tx, work: space, input };
    let session = connect(memory, counters)?;
    match driver::run(&mut link, session)? {
        Event::Ready => {}
        _ => return Err(Failure::Turn),
    }

    let fitting = fitting(session, &mut report)?;
    let programs = programs(session, fitting)?;
    let mut length = [0; 2];
    if inputs.read_exact(&mut length).is_err() {
        return Err(Failure::File(INPUTS, semi::Error::Read));
    }
    let values = usize::from(u16::from_le_bytes(length));
    let Some(sample) = sample.get_mut(..values) else {
        return Err(Failure::InputLength(values));
    };
    let mut index = 0;
    while next_input(&mut inputs, sample)? {
        for code in codes(programs) {
            let request = Request { slot: Slot::from_code(code), lambda: plan.lambda, link: plan.link };
            top_up(session, &mut link, &mut report, request.slot, fitting)?;
            answer(session, &mut link, &mut report, request, index, sample)?;
        }
        index += 1;
    }
    sample.fill(0);
    session.close();
    Ok(report)
}

/// The codes of a set of programs.
fn codes(programs: u16) -> impl Iterator<Item = u8> {
    (0..16).filter(move |code| programs & 1 << code != 0)
}

/// The name of a program of the pool.
fn name(pool: &PoolSpec, slot: Slot) -> &str {
    match slot {
        Slot::Router => "router",
        Slot::Model(model) => {
            let model = pool.models.get(usize::from(model));
            model.map_or("?", |model| model.name.as_str())
        }
    }
}

/// The programs that fit this board; says so of those that do not.
fn fitting(session: &Session<'_>, report: &mut Report) -> Result<u16, Failure> {
    let mut fitting = 0;
    let pool = session.pool().ok_or(Failure::Turn)?;
    for slot in pool.slots() {
        let (code, name) = (slot.code(), name(pool, slot));
        report.line(format_args!("program {code} {name}"))?;
        if pool.router_answers(slot) {
            report.line(format_args!("own {code}"))?;
        }
        match session.fits(slot) {
            Ok(()) => fitting |= 1 << code,
            Err(error) => {
                let _ = writeln!(Console, "{}: {name} does not fit: {error}", board::NAME);
                report.line(format_args!("unfit {code}"))?;
            }
        }
    }
    Ok(fitting)
}

/// The programs that are asked for, or all that fit.
#[inline(never)]
fn programs(session: &Session<'_>, fitting: u16) -> Result<u16, Failure> {
    let words = Words::new();
    let Some(names) = words.value("programs") else {
        return Ok(fitting);
    };
    let pool = session.pool().ok_or(Failure::Turn)?;
    let same = |have: &str, asked: &str| {
        let space = |byte| if byte == b' ' { b'_' } else { byte };
        have.bytes().map(space).eq(asked.bytes().map(space))
    };
    let mut programs = 0;
    for asked in names.split(',') {
        let slot = pool.slots().find(|slot| same(name(pool, *slot), asked));
        programs |= 1 << slot.ok_or(SessionError::NoSuchSlot)?.code();
    }
    Ok(programs)
}

/// Reads one input; false at the end of the file.
fn next_input(file: &mut File, sample: &mut [i16]) -> Result<bool, Failure> {
    const FAILED: Failure = Failure::File(INPUTS, semi::Error::Read);
    for (index, value) in sample.iter_mut().enumerate() {
        let mut bytes = [0; 2];
        let (first, rest) = bytes.split_at_mut(1);
        if file.read(first).map_err(|_| FAILED)? == 0 {
            return if index == 0 { Ok(false) } else { Err(FAILED) };
        }
        file.read_exact(rest).map_err(|_| FAILED)?;
        *value = i16::from_le_bytes(bytes);
    }
    Ok(true)
}

/// Prepares what an answer of `slot` may use, where nothing is in stock.
fn top_up(
    session: &mut Session<'_>,
    link: &mut Link<'_>,
    report: &mut Report,
    slot: Slot,
    fitting: u16,
) -> Result<(), Failure> {
    let pool = session.pool().ok_or(Failure::Turn)?;
    let own = pool.slots().filter(|slot| pool.router_answers(*slot)).fold(0, |own, slot| own | 1 << slot.code());
    let wanted = match slot {
        Slot::Router => fitting & !own,
        Slot::Model(_) => 1 << slot.code(),
    };
    for code in codes(wanted) {
        let slot = Slot::from_code(code);
        if session.ready(slot) > 0 {
            continue;
        }
        let before = (link.sent, link.received);
        let event = measured(Phase::Offline, || {
            session.prepare(slot)?;
            Ok::<_, Failure>(driver::run(link, session)?)
        });
        match event? {
            Event::Prepared(_) => {}
            Event::Refused(refusal) => return Err(Failure::Refused(refusal)),
            _ => return Err(Failure::Turn),
        }
        let (sent, received) = (link.sent - before.0, link.received - before.1);
        let ticks = ticks();
        report.line(format_args!("prepared {code} {sent} {received} {ticks}"))?;
    }
    Ok(())
}

fn answer(
    session: &mut Session<'_>,
    link: &mut Link<'_>,
    report: &mut Report,
    request: Request,
    index: usize,
    sample: &[i16],
) -> Result<(), Failure> {
    let before = (link.sent, link.received);
    let asked = request.slot.code();
    let mut event = measured(Phase::Online, || {
        #[cfg(feature = "leak")]
        for _ in sample.iter().filter(|value| **value > 0) {
            cortex_m::asm::nop();
        }
        session.infer(request, sample)?;
        Ok::<_, Failure>(driver::run(link, session)?)
    });
    loop {
        match event? {
            Event::Routed(slot) => report.line(format_args!("routed {} {}", slot.code(), ticks()))?,
            Event::Answer => break,
            Event::Refused(refusal) => return Err(Failure::Refused(refusal)),
            _ => return Err(Failure::Turn),
        }
        event = measured(Phase::Online, || Ok(driver::run(link, session)?));
    }
    let (sent, received) = (link.sent - before.0, link.received - before.1);
    let model = session.answered_by().ok_or(Failure::Turn)?.code();
    let (class, ticks) = (session.class().unwrap_or(0), ticks());
    write!(report, "answer {index} {asked} {model} {class} {sent} {received} {ticks}")
        .map_err(|_| Failure::File(ANSWERS, semi::Error::Write))?;
    for logit in session.logits() {
        write!(report, " {logit}").map_err(|_| Failure::File(ANSWERS, semi::Error::Write))?;
    }
    report.line(format_args!(""))
}
