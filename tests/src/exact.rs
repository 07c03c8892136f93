//! What an answer must be, bit for bit: the clear-text reference with the rounding that the dealer drew for the
//! counters of this very question. An answer made of any other counter's stock differs from it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use secure_router::pool::Pool;
use secure_router::provision::{self, DealerFile, DeviceFile, ServerFile};
use secure_router_core::channel::PublicKey;
use secure_router_core::circuit::{Gate, Program, Slot};
use secure_router_core::clear::{self, Reference};
use secure_router_core::keys::DealerKeys;
use secure_router_core::prg::{Purpose, Stream, StreamId};
use secure_router_core::ring::low_bits;
use secure_router_core::routing::settled;
use secure_router_core::session::Request;

use crate::POOL;

/// Rounds as the protocol does: by the low bits of `rho`.
pub(crate) struct Dither(pub(crate) DealerKeys);

impl Reference for Dither {
    fn offset(&mut self, gate: &Gate, element: u32, shift: u8) -> u32 {
        let rho = |key| Stream::new(key, StreamId::new(gate.id, Purpose::IndexMask)).at(u64::from(element));
        low_bits(rho(&self.0.device).wrapping_add(rho(&self.0.server)), shift)
    }
}

/// The reference of one server's pool, with every device's secrets.
pub struct Exact {
    /// The pool, sealed as its server does.
    pub pool: Pool,
    /// Its fingerprint.
    pub fingerprint: [u8; 32],
    dealer: DealerFile,
}

impl Exact {
    /// Of the committed pool and the key files in `directory`.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn of(directory: &Path) -> Result<Self> {
        let (server, dealer, _) = provision::paths(directory, "");
        let mut pool = Pool::load(POOL.as_ref())?;
        pool.seal(&provision::read::<ServerFile>(&server)?.secret()?);
        let fingerprint = pool.spec.fingerprint()?;
        Ok(Self { pool, fingerprint, dealer: provision::read(&dealer)? })
    }

    fn run(&self, device: &PublicKey, slot: Slot, counter: u64, input: &[i16], scores: &[i32]) -> Result<Vec<i64>> {
        let program = Program::of(&self.pool.spec, slot)?;
        let secrets = self.pool.secrets(slot).context("the pool has no such program")?;
        let seeds = self.dealer.device(device).context("an unknown device")?.seeds();
        let keys = seeds.keys(&self.fingerprint, slot, counter);
        let mut arena = vec![0; program.layout()?.arena as usize];
        let mut scratch = vec![0; clear::scratch_elements(&program)?];
        let parameters = secrets.parameters();
        let bias = self.pool.bias(scores);
        let wire = clear::run(&program, &parameters, input, bias, &mut arena, &mut scratch, &mut Dither(keys))?;
        Ok(arena[wire.at as usize..][..wire.elements() as usize].to_vec())
    }

    /// Fails unless `answer` is right: that of the programs and counters that the device burned for `request`, in
    /// order, the second of them chosen by the first.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(
        &self,
        device: &PublicKey,
        request: Request,
        allowed: u8,
        input: &[i16],
        burned: &[(Slot, u64)],
        answer: &[i64],
    ) -> Result<()> {
        let scores = self.pool.scores(request.lambda, allowed, &request.link)?;
        let right = match *burned {
            [(slot, counter)] if slot == request.slot && slot != Slot::Router => {
                self.run(device, slot, counter, input, &[])?
            }
            [(Slot::Router, counter), ref rest @ ..] if request.slot == Slot::Router => {
                let mut told = self.run(device, Slot::Router, counter, input, &scores)?;
                let program = Program::of(&self.pool.spec, Slot::Router)?;
                let chosen = Slot::Model(settled(clear::chosen(&program, &told), allowed));
                let own = told.split_off(self.pool.spec.models.len());
                match *rest {
                    [] if self.pool.spec.router_answers(chosen) => own,
                    [(model, counter)] if model == chosen => self.run(device, model, counter, input, &[])?,
                    _ => bail!("routed to {chosen:?}, and {rest:?} was burned"),
                }
            }
            _ => bail!("{burned:?} was burned for a question to {:?}", request.slot),
        };
        ensure!(answer == right, "{answer:?} of {burned:?}, not {right:?}");
        Ok(())
    }
}

/// The public key of device `name`.
///
/// # Errors
/// A file that cannot be read.
pub fn public_key(directory: &Path, name: &str) -> Result<PublicKey> {
    let (_, _, keys) = provision::paths(directory, name);
    Ok(provision::read::<DeviceFile>(&keys)?.secret()?.public_key())
}
