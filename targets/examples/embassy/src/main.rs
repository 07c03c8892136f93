//! The device party as an embassy task on an STM32F405: USART1 with RTS and CTS as the line, the
//! analogue input on PA4 as the sensor, the LED on PC1 as the display. Other tasks run on while a
//! message is on its way; the kernel's own work between two messages takes the core.
//!
//! It builds, and no board has run it: measure before you rely on it.
#![no_std]
#![no_main]

use embassy_executor::Spawner;
use embassy_stm32::adc::{Adc, SampleTime};
use embassy_stm32::bind_interrupts;
use embassy_stm32::flash::Flash;
use embassy_stm32::gpio::{Level, Output, Speed};
use embassy_stm32::peripherals::{RNG, USART1};
use embassy_stm32::rcc::{APBPrescaler, Hse, HseMode, Pll, PllMul, PllPDiv, PllPreDiv, PllQDiv, PllSource, Sysclk};
use embassy_stm32::rng::{self, Rng};
use embassy_stm32::rtc::{Rtc, RtcConfig};
use embassy_stm32::time::mhz;
use embassy_stm32::usart::{self, BufferedUart, Config};
use embassy_time::{Duration, Timer, with_timeout};
use panic_halt as _;
use secure_router_core::channel::{PublicKey, StaticSecret};
use secure_router_core::circuit::Slot;
use secure_router_core::driver::run_async;
use secure_router_core::keys::{DeviceSeeds, Seed};
use secure_router_core::rand_core::{TryCryptoRng, TryRng};
use secure_router_core::routing::Routing;
use secure_router_core::session::{
    CounterError, Counters, DeviceIdentity, DeviceMemory, DeviceSession, Event, LinkProfile, RECOMMENDED_LAMBDA,
    Request,
};
use static_cell::ConstStaticCell;

bind_interrupts!(struct Interrupts {
    USART1 => usart::BufferedInterruptHandler<USART1>;
    RNG => rng::InterruptHandler<RNG>;
});

const FRAME: usize = DeviceMemory::FRAME_BYTES;
/// Values of an input.
const VALUES: usize = 416;
/// Where provisioning left `SRK2`, the device's secret, the server's key, two seeds and what a route may
/// tell: the last sector of the flash.
const PROVISIONING: u32 = 0x000e_0000;
/// Register that provisioning marked, when all counters were 0.
const MARKED: usize = 19;
const MARK: u32 = 0x5352_4b31;

static RX: ConstStaticCell<[u8; FRAME]> = ConstStaticCell::new([0; FRAME]);
static TX: ConstStaticCell<[u8; FRAME]> = ConstStaticCell::new([0; FRAME]);
static WORK: ConstStaticCell<[u32; 1280]> = ConstStaticCell::new([0; 1280]);
static INPUT: ConstStaticCell<[i16; VALUES]> = ConstStaticCell::new([0; VALUES]);
static RECEIVED: ConstStaticCell<[u8; 2048]> = ConstStaticCell::new([0; 2048]);
static SENT: ConstStaticCell<[u8; 256]> = ConstStaticCell::new([0; 256]);

/// Spent counters in the registers that a cell keeps through a power cut, each written at once.
struct Battery<'r>(&'r Rtc);

impl Battery<'_> {
    fn read(&self, slot: Slot) -> Result<u32, CounterError> {
        // A cell that was empty took the counters with it: they must not begin again at 0.
        match self.0.read_backup_register(MARKED) {
            Some(MARK) => self.0.read_backup_register(usize::from(slot.code())).ok_or(CounterError),
            _ => Err(CounterError),
        }
    }
}

impl Counters for Battery<'_> {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        self.read(slot).map(u64::from)
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let next = u32::try_from(counter).ok().and_then(|counter| counter.checked_add(1)).ok_or(CounterError)?;
        self.0.write_backup_register(usize::from(slot.code()), next.max(self.read(slot)?));
        if self.read(slot)? >= next { Ok(()) } else { Err(CounterError) }
    }
}

/// Bytes of the chip's generator, each handed out once.
struct Drawn<'b>(&'b mut [u8]);

/// More was asked for than was drawn.
#[derive(Debug)]
struct Spent;

impl core::fmt::Display for Spent {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the bytes that were drawn are spent")
    }
}

impl core::error::Error for Spent {}

impl TryRng for Drawn<'_> {
    type Error = Spent;

    fn try_next_u32(&mut self) -> Result<u32, Spent> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Spent> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Spent> {
        let (first, rest) = core::mem::take(&mut self.0).split_at_mut_checked(bytes.len()).ok_or(Spent)?;
        bytes.copy_from_slice(first);
        first.fill(0);
        self.0 = rest;
        Ok(())
    }
}

impl TryCryptoRng for Drawn<'_> {}

/// Reads what provisioning left; `None` for blank flash.
fn provisioned(
    flash: &mut Flash<'_, embassy_stm32::flash::Blocking>,
) -> Option<(StaticSecret, PublicKey, DeviceSeeds, Routing)> {
    let mut bytes = [0; 4 + 4 * 32 + 4];
    flash.blocking_read(PROVISIONING, &mut bytes).ok()?;
    let (b"SRK2", rest) = bytes.split_first_chunk()? else { return None };
    let ([secret, server, dealer_seed, server_seed], leak) = rest.as_chunks::<32>() else { return None };
    let seeds = DeviceSeeds { dealer: Seed::from_bytes(*dealer_seed), server: Seed::from_bytes(*server_seed) };
    let routing = Routing::of_leak(u32::from_le_bytes(leak.try_into().ok()?))?;
    Some((StaticSecret::from_bytes(secret).ok()?, PublicKey(*server), seeds, routing))
}

/// The session's next event; none if the line, the server or this device failed, if the server refused, or if it was silent: the kernel
/// has no clock.
async fn event<E>(
    uart: &mut (impl embedded_io_async::Read<Error = E> + embedded_io_async::Write<Error = E>),
    session: &mut DeviceSession<'_, Battery<'_>>,
) -> Option<Event> {
    match with_timeout(Duration::from_secs(60), run_async(uart, session)).await {
        Ok(Ok(Event::Refused(_))) | Ok(Err(_)) | Err(_) => None,
        Ok(Ok(event)) => Some(event),
    }
}

/// Prepares while there is time, takes a sample when it is due, and shows whether it is class 0; until something fails.
async fn serve<E>(
    uart: &mut (impl embedded_io_async::Read<Error = E> + embedded_io_async::Write<Error = E>),
    session: &mut DeviceSession<'_, Battery<'_>>,
    mut sample: impl FnMut() -> i16,
    led: &mut Output<'_>,
) -> Option<()> {
    event(uart, session).await?; // Event::Ready
    loop {
        for code in 0..9 {
            let slot = Slot::from_code(code);
            if session.fits(slot).is_ok() && session.ready(slot) == 0 {
                session.prepare(slot).ok()?;
                event(uart, session).await?; // Event::Prepared
            }
        }
        Timer::after_secs(5).await;
        let values: [i16; VALUES] = core::array::from_fn(|_| sample());
        session
            .infer(Request { slot: Slot::Router, lambda: RECOMMENDED_LAMBDA, link: LinkProfile::UART }, &values)
            .ok()?;
        while event(uart, session).await? != Event::Answer {} // Event::Routed: the model's part follows by itself
        led.set_level(if session.class() == Some(0) { Level::High } else { Level::Low });
    }
}

/// 168 MHz, and the generator's 48, from a crystal of 8.
fn clocks() -> embassy_stm32::Config {
    let mut config = embassy_stm32::Config::default();
    config.rcc.hse = Some(Hse { freq: mhz(8), mode: HseMode::Oscillator });
    config.rcc.pll_src = PllSource::HSE;
    config.rcc.pll = Some(Pll {
        prediv: PllPreDiv::DIV4,
        mul: PllMul::MUL168,
        divp: Some(PllPDiv::DIV2),
        divq: Some(PllQDiv::DIV7),
        divr: None,
    });
    config.rcc.apb1_pre = APBPrescaler::DIV4;
    config.rcc.apb2_pre = APBPrescaler::DIV2;
    config.rcc.sys = Sysclk::PLL1_P;
    config
}

#[embassy_executor::main]
async fn main(_spawner: Spawner) {
    let p = embassy_stm32::init(clocks());
    let mut led = Output::new(p.PC1, Level::Low, Speed::Low);
    let mut flash = Flash::new_blocking(p.FLASH);
    let Some((secret, server, seeds, routing)) = provisioned(&mut flash) else { return };
    let identity = DeviceIdentity { secret: &secret, server, seeds: &seeds, routing };
    let (clock, _) = Rtc::new(p.RTC, RtcConfig::default());
    let mut generator = Rng::new(p.RNG, Interrupts);
    let (mut adc, mut pin) = (Adc::new(p.ADC1), p.PA4);

    let mut config = Config::default();
    config.baudrate = 921_600;
    let (sent, received) = (SENT.take(), RECEIVED.take());
    let uart =
        BufferedUart::new_with_rtscts(p.USART1, p.PA10, p.PA9, p.PA12, p.PA11, Interrupts, sent, received, config);
    let Ok(mut uart) = uart else { return };

    let (rx, tx, work, input) = (RX.take(), TX.take(), WORK.take(), INPUT.take());
    loop {
        // A sample is 12 bits without a sign, an input value 8 with one.
        let sample = || (adc.blocking_read(&mut pin, SampleTime::CYCLES56) >> 4) as i16 - 128;
        let mut bytes = [0; 32];
        if generator.async_fill_bytes(&mut bytes).await.is_ok() {
            let memory = DeviceMemory { rx: &mut *rx, tx: &mut *tx, work: &mut *work, input: &mut *input };
            let session = DeviceSession::connect(identity, memory, 4, Battery(&clock), &mut Drawn(&mut bytes));
            if let Ok(mut session) = session {
                // Whatever ended it, what was burned stays burned, and the next session is a new one.
                let _ = serve(&mut uart, &mut session, sample, &mut led).await;
            }
        }
        // What the old session still gets is not the new one's.
        let mut old = [0; 64];
        while with_timeout(Duration::from_secs(2), embedded_io_async::Read::read(&mut uart, &mut old)).await.is_ok() {}
    }
}
