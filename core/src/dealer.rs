//! The dealer: correlated randomness for one inference, in the order of the gates.
//!
//! It holds seeds, masked weights and the secret tables' functions; it sees neither an input nor an
//! online message. What it makes is the server's stock item; layout in [`Gate`].
//!
//! It is also whose noise hides the route under [`Routing::Private`](crate::routing::Routing): the
//! noise is in the entries of the router's last table, which are one-time padded, so it costs nothing
//! online and neither of the others can take it out.

use core::fmt;

use rand_core::TryCryptoRng;
use subtle::{Choice, ConditionallySelectable};

use crate::circuit::{CircuitError, Gate, Operand, Party, Program, Response, Table};
use crate::clear::scratch_elements;
use crate::error::BufferError;
use crate::gate::{embed, linear, margin, opening, product, requantise, table};
use crate::keys::DealerKeys;
use crate::prg::{Purpose, Stream, StreamId};
use crate::ring::BitWriter;
use crate::spec::MAX_TABLE_BITS;

/// What the server gives the dealer of one program, once per device and pool.
#[derive(Clone, Copy)]
pub struct MaskedParameters<'a> {
    /// `F = W - B` for this device.
    pub weights: &'a [u32],
    /// Entries of the secret tables.
    pub tables: &'a [i16],
}

impl fmt::Debug for MaskedParameters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaskedParameters").field("weights", &self.weights.len()).finish_non_exhaustive()
    }
}

/// What the dealer refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DealerError {
    /// The program is not valid.
    Circuit(CircuitError),
    /// A lent slice has the wrong length.
    Buffer(BufferError),
    /// The random source failed.
    RandomFailed,
}

impl From<CircuitError> for DealerError {
    fn from(error: CircuitError) -> Self {
        Self::Circuit(error)
    }
}

impl From<BufferError> for DealerError {
    fn from(error: BufferError) -> Self {
        Self::Buffer(error)
    }
}

impl fmt::Display for DealerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Circuit(error) => error.fmt(f),
            Self::Buffer(error) => error.fmt(f),
            Self::RandomFailed => f.write_str("the dealer's random source failed"),
        }
    }
}

impl core::error::Error for DealerError {}

/// Words of work space that [`deal`] needs for `program`.
///
/// # Errors
/// [`CircuitError`].
pub fn work_words(program: &Program) -> Result<usize, CircuitError> {
    Ok(program.layout()?.arena as usize + scratch_elements(program)? + TABLES)
}

/// A function's values and one element's pads.
const TABLES: usize = 2 << MAX_TABLE_BITS;

/// Writes the stock item of one inference to `stock` and returns its bytes
/// ([`Layout::stock`](crate::circuit::Layout)). `rng` is drawn from for a router of private routing only.
///
/// # Errors
/// [`DealerError`].
pub fn deal<R: TryCryptoRng + ?Sized>(
    program: &Program,
    keys: &DealerKeys,
    parameters: &MaskedParameters<'_>,
    rng: &mut R,
    work: &mut [u32],
    stock: &mut [u8],
) -> Result<usize, DealerError> {
    let layout = program.layout()?;
    let same = |buffer, needed, have| if needed == have { Ok(()) } else { Err(BufferError { buffer, needed, have }) };
    same("masked weights", layout.weights as usize, parameters.weights.len())?;
    same("tables", layout.tables as usize, parameters.tables.len())?;
    BufferError::check("dealer workspace", work_words(program)?, work.len())?;
    BufferError::check("stock buffer", layout.stock as usize, stock.len())?;
    let have = stock.len();
    let route = match program {
        Program::Router { models, routing, .. } => {
            routing.choice(*models, rng).map_err(|_| DealerError::RandomFailed)?
        }
        Program::Model { .. } => None,
    };

    let (arena, rest) = work.split_at_mut(layout.arena as usize);
    let (tables, scratch) = rest.split_at_mut(TABLES);
    let (function, pads) = tables.split_at_mut(TABLES / 2);
    let stock = BitWriter::new(stock);
    let mut dealer = Dealer { keys, parameters, route, arena, scratch, function, pads, stock };
    program.walk(&mut dealer)?;
    dealer.stock.finish().ok_or(DealerError::Buffer(BufferError {
        buffer: "stock buffer",
        needed: layout.stock as usize,
        have,
    }))
}

struct Dealer<'a> {
    keys: &'a DealerKeys,
    parameters: &'a MaskedParameters<'a>,
    /// The route that comes out whatever the router says.
    route: Option<u32>,
    /// The wires' masks `r`, where the server has the wires.
    arena: &'a mut [u32],
    scratch: &'a mut [u32],
    function: &'a mut [u32],
    pads: &'a mut [u32],
    stock: BitWriter<'a>,
}

impl Party for Dealer<'_> {
    type Error = DealerError;

    fn gate(&mut self, gate: &Gate) -> Result<(), DealerError> {
        self.correlate(gate);
        self.draw_wire(gate);
        self.tabulate(gate);
        Ok(())
    }
}

impl Dealer<'_> {
    /// `s` of a linear gate or `q` of a product.
    fn correlate(&mut self, gate: &Gate) {
        let bits = gate.bits();
        let stock = &mut self.stock;
        match &gate.operand {
            Operand::Linear(linear) => {
                let mut pads = Stream::new(&self.keys.device, StreamId::new(gate.id, Purpose::OperandPad));
                linear::evaluate(linear, self.parameters.weights, self.arena, self.scratch, |_, value| {
                    stock.push(value.wrapping_sub(pads.draw()), bits);
                });
            }
            Operand::Product(product) => {
                let DealerKeys { device, server } = self.keys;
                product::dealer_correlation(gate.id, product, device, server, self.arena, self.scratch, |_, value| {
                    stock.push(value, bits);
                });
            }
            Operand::Embed(embed) => {
                let weights = self.parameters.weights;
                embed::dealer_entries(gate.id, embed, &self.keys.device, weights, |entry| stock.push(entry, bits));
            }
            Operand::Private | Operand::Combine(_) => {}
        }
        stock.align();
    }

    fn draw_wire(&mut self, gate: &Gate) {
        let at = gate.out.at as usize;
        let Some(masks) = self.arena.get_mut(at..at + gate.elements() as usize) else { return };
        match gate.response {
            // What the device learns is no wire.
            Response::Tell { .. } | Response::Reveal { .. } => masks.fill(0),
            _ => Stream::new(&self.keys.device, StreamId::new(gate.id, Purpose::WireMask)).fill(masks),
        }
    }

    /// The entries of a table or of a requantisation.
    fn tabulate(&mut self, gate: &Gate) {
        let tables = gate.response.tables();
        let entries = (gate.response.entries() / tables) as usize;
        let (Response::Requantise(opening)
        | Response::Table { opening, .. }
        | Response::Margin { opening, .. }
        | Response::Tell { opening, .. }) = gate.response
        else {
            return;
        };
        let mut rho_device = Stream::new(&self.keys.device, StreamId::new(gate.id, Purpose::IndexMask));
        let mut rho_server = Stream::new(&self.keys.server, StreamId::new(gate.id, Purpose::IndexMask));
        let mut pads = Stream::new(&self.keys.device, StreamId::new(gate.id, Purpose::TablePad));
        let at = gate.out.at as usize;
        let masks = self.arena.get(at..at + gate.elements() as usize).unwrap_or(&[]);
        let (function, pad_words) = (self.function.get_mut(..entries), self.pads.get_mut(..entries));
        let (Some(function), Some(pad_words)) = (function, pad_words) else { return };
        let mut tabulated = None;
        let bits = gate.out.bits;
        let stock = &mut self.stock;
        for (element, mask) in (0u32..).zip(masks) {
            let sigma = opening::dealer_sigma(opening, rho_device.draw().wrapping_add(rho_server.draw()));
            for which in 0..tables {
                pads.fill(pad_words);
                let mut pad_words = pad_words.iter();
                let mut push = |entry: u32| {
                    let pad = pad_words.next().copied().unwrap_or(0);
                    stock.push(entry.wrapping_sub(pad), bits);
                };
                match gate.response.table(element) {
                    Some(table) => {
                        if tabulated != Some(table) {
                            table::tabulate(table, self.parameters.tables, opening.index_bits, function);
                            tabulated = Some(table);
                        }
                        if matches!(table, Table::Winner(_)) {
                            // In the same time with noise and without.
                            let noise = Choice::from(u8::from(self.route.is_some()));
                            let route = self.route.unwrap_or(0);
                            function.iter_mut().for_each(|entry| entry.conditional_assign(&route, noise));
                            tabulated = None;
                        }
                        table::dealer_entries(function, sigma, margin::mask_of(which, *mask), push);
                    }
                    None => (0..2).for_each(|bit| push(requantise::dealer_entry(opening, sigma, bit, *mask))),
                }
            }
        }
        stock.align();
    }
}
