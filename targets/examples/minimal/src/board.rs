//! What an STM32F405 has for the kernel: counters that outlive a power cut, a generator, keys in
//! flash. It builds, and no board has run it.

use embedded_io::ErrorKind;
use panic_halt as _;
use secure_router_core::channel::{PublicKey, StaticSecret};
use secure_router_core::circuit::Slot;
use secure_router_core::keys::{DeviceSeeds, Seed};
use secure_router_core::rand_core::{TryCryptoRng, TryRng};
use secure_router_core::routing::Routing;
use secure_router_core::session::{CounterError, Counters, DeviceIdentity};

/// Reads a register.
pub fn get(address: usize) -> u32 {
    // SAFETY: every address in this program is a register of the chip, or its flash.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register.
pub fn set(address: usize, value: u32) {
    // SAFETY: as above; none of them changes what Rust knows of memory.
    unsafe { (address as *mut u32).write_volatile(value) }
}

fn turn_on(address: usize, bits: u32) {
    set(address, get(address) | bits);
}

/// Sets up clocks, pins and peripherals, and reads the keys; without keys there is nothing to do.
pub fn start() -> Keys {
    turn_on(0x4002_3800, 1 << 16); // crystal of 8 MHz
    while get(0x4002_3800) & 1 << 17 == 0 {}
    set(0x4002_3804, 7 << 24 | 1 << 22 | 168 << 6 | 4); // PLL: 48 MHz for the generator
    turn_on(0x4002_3800, 1 << 24);
    while get(0x4002_3800) & 1 << 25 == 0 {}
    turn_on(0x4002_3830, 1 << 0 | 1 << 2); // ports A and C
    turn_on(0x4002_3834, 1 << 6); // generator
    turn_on(0x4002_3840, 1 << 28); // power control
    turn_on(0x4002_3844, 1 << 4 | 1 << 8); // USART1, ADC1
    turn_on(0x4000_7000, 1 << 8); // backup registers may be written
    turn_on(0x5006_0800, 1 << 2);
    set(0x4002_0024, 0x7_7770); // PA9 to PA12 are USART1's,
    turn_on(0x4002_0000, 0b10_10_10_10 << 18 | 0b11 << 8); // and PA4 is analogue
    turn_on(0x4002_0800, 0b01 << 2); // PC1: the LED
    set(0x4001_1008, 16_000_000 / 115_200); // the processor stays on its 16 MHz
    set(0x4001_1014, 1 << 9 | 1 << 8); // CTS, RTS
    set(0x4001_100c, 1 << 13 | 1 << 3 | 1 << 2);
    set(0x4001_2034, 4); // channel 4
    turn_on(0x4001_2008, 1);
    loop {
        if let Some(keys) = Keys::read() {
            return keys;
        }
    }
}

/// Lights the LED for class 0.
pub fn show(class: usize) {
    set(0x4002_0818, if class == 0 { 1 << 1 } else { 1 << 17 });
}

/// Polls of a register in about a second, of eight cycles each.
pub const POLLS: u32 = 2_000_000;

/// Puts the LED out and drops what comes in for two seconds: the server has then ended the old session's connection.
pub fn pause() {
    show(usize::MAX);
    for _ in 0..2 * POLLS {
        let _ = (get(0x4001_1000), get(0x4001_1004));
    }
}

/// Spent counters in the registers that a cell keeps through a power cut, each written at once.
pub struct Backup;

const REGISTERS: usize = 0x4000_2850;
/// In the last register, from provisioning, when all counters were 0.
const MARK: u32 = 0x5352_4b31;

impl Counters for Backup {
    fn next(&mut self, slot: Slot) -> Result<u64, CounterError> {
        // A cell that was empty took the counters with it: they must not begin again at 0.
        if get(REGISTERS + 4 * 19) != MARK {
            return Err(CounterError);
        }
        Ok(u64::from(get(REGISTERS + 4 * usize::from(slot.code()))))
    }

    fn burn(&mut self, slot: Slot, counter: u64) -> Result<(), CounterError> {
        let next = counter.checked_add(1).ok_or(CounterError)?.max(self.next(slot)?);
        set(REGISTERS + 4 * usize::from(slot.code()), u32::try_from(next).map_err(|_| CounterError)?);
        if self.next(slot)? == next { Ok(()) } else { Err(CounterError) }
    }
}

/// The chip's generator.
pub struct Generator;

impl TryRng for Generator {
    type Error = ErrorKind;

    fn try_next_u32(&mut self) -> Result<u32, ErrorKind> {
        loop {
            match get(0x5006_0804) {
                status if status & (1 << 1 | 1 << 2 | 1 << 5 | 1 << 6) != 0 => return Err(ErrorKind::Other),
                status if status & 1 != 0 => return Ok(get(0x5006_0808)),
                _ => {}
            }
        }
    }

    fn try_next_u64(&mut self) -> Result<u64, ErrorKind> {
        Ok(u64::from(self.try_next_u32()?) << 32 | u64::from(self.try_next_u32()?))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), ErrorKind> {
        for four in bytes.chunks_mut(4) {
            let word = self.try_next_u32()?.to_le_bytes();
            four.iter_mut().zip(word).for_each(|(byte, drawn)| *byte = drawn);
        }
        Ok(())
    }
}

impl TryCryptoRng for Generator {}

/// What provisioning left in the last sector of the flash.
pub struct Keys {
    secret: StaticSecret,
    server: PublicKey,
    seeds: DeviceSeeds,
    routing: Routing,
}

impl Keys {
    fn read() -> Option<Self> {
        let word = |index: usize| get(0x080e_0000 + 4 * index).to_le_bytes();
        let part = |part: usize| {
            let mut bytes = [0; 32];
            bytes.iter_mut().zip((1 + 8 * part..9 + 8 * part).flat_map(word)).for_each(|(byte, read)| *byte = read);
            bytes
        };
        Some(Self {
            secret: StaticSecret::from_bytes(&part(0)).ok().filter(|_| word(0) == *b"SRK2")?,
            server: PublicKey(part(1)),
            seeds: DeviceSeeds { dealer: Seed::from_bytes(part(2)), server: Seed::from_bytes(part(3)) },
            routing: Routing::of_leak(u32::from_le_bytes(word(33)))?,
        })
    }

    /// As a session takes it.
    pub fn identity(&self) -> DeviceIdentity<'_> {
        DeviceIdentity { secret: &self.secret, server: self.server, seeds: &self.seeds, routing: self.routing }
    }
}
