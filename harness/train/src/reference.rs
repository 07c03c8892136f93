//! Runs exported integers through the kernel's clear-text reference: the only judge of a pool.

use crate::integer::Integers;
use crate::rng::Rng;
use anyhow::{Context, Result, bail};
use secure_router_core::circuit::{Combination, Combine, Gate, Program, Response};
use secure_router_core::clear::{self, ClearError, Nearest, Parameters, Reference};
use secure_router_core::routing::{Bias, MAX_MARGIN};
use secure_router_core::spec::MAX_TABLE_BITS;

/// One program with its integers, ready to run.
pub(crate) struct Interpreter<'a> {
    program: Program,
    parameters: Parameters<'a>,
    gates: Vec<Gate>,
    arena: Vec<i64>,
    scratch: Vec<i64>,
}

/// What a router makes of an input.
pub(crate) struct Estimates {
    pub(crate) utilities: Vec<i32>,
    /// How far its own answer is ahead of the next.
    pub(crate) lead: i32,
    /// Whether no difference wraps, with any margin.
    pub(crate) fits: bool,
}

/// The widest margin: what fits its bits with that fits with any.
pub(crate) const WIDEST: Bias<'static> = Bias { scores: &[], margin: MAX_MARGIN };

/// Rounds as the protocol does: up or down at random, unbiased.
pub(crate) struct Stochastic(pub(crate) Rng);

impl Reference for Stochastic {
    fn offset(&mut self, _: &Gate, _: u32, shift: u8) -> u32 {
        (self.0.next_u64() & ((1 << shift) - 1)) as u32
    }
}

/// Rounds to nearest and remembers the largest magnitude at each gate.
#[derive(Default)]
pub(crate) struct Watch(pub(crate) Vec<i64>);

impl Watch {
    /// The larger of each pair.
    pub(crate) fn merged(mut self, other: Self) -> Self {
        if self.0.len() < other.0.len() {
            return other.merged(self);
        }
        for (mine, other) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*other);
        }
        self
    }
}

impl Reference for Watch {
    fn offset(&mut self, gate: &Gate, element: u32, shift: u8) -> u32 {
        Nearest.offset(gate, element, shift)
    }

    fn observe(&mut self, gate: &Gate, value: i64) {
        let id = usize::from(gate.id);
        if self.0.len() <= id {
            self.0.resize(id + 1, 0);
        }
        self.0[id] = self.0[id].max(value.abs());
    }
}

impl<'a> Interpreter<'a> {
    pub(crate) fn new(program: Program, integers: &'a Integers) -> Result<Self> {
        let layout = program.layout()?;
        let Integers { weights, biases, tables } = integers;
        let parameters = Parameters { weights, biases, tables };
        parameters.check(&layout)?;
        Ok(Self {
            program,
            parameters,
            gates: program.gates().collect::<Result<_, _>>()?,
            arena: vec![0; layout.arena as usize],
            scratch: vec![0; clear::scratch_elements(&program)?],
        })
    }

    /// What the program ends in: logits, or what a router tells.
    pub(crate) fn run(
        &mut self,
        input: &[i16],
        bias: Bias<'_>,
        reference: &mut impl Reference,
    ) -> Result<&[i64], ClearError> {
        let wire =
            clear::run(&self.program, &self.parameters, input, bias, &mut self.arena, &mut self.scratch, reference)?;
        Ok(&self.arena[wire.at as usize..][..wire.elements() as usize])
    }

    /// What the router made of the input of the last run, in accumulators.
    pub(crate) fn estimates(&self) -> Result<Estimates> {
        let Combine { wire, groups, combination } = self.program.compared()?.context("not a router")?;
        let Combination::Differences { scale } = combination else { bail!("not a router") };
        let items = &self.arena[wire.at as usize..][..wire.elements() as usize];
        let (utilities, logits) = items.split_at(groups.0[0].into());
        let spread = logits.iter().max().unwrap_or(&0) - logits.iter().min().unwrap_or(&0);
        let fits = (spread >> scale) + i64::from(MAX_MARGIN) + 1 < 1 << (MAX_TABLE_BITS - 1);
        Ok(Estimates {
            utilities: utilities.iter().map(|&u| u as i32).collect(),
            lead: clear::lead(logits) as i32,
            fits,
        })
    }

    /// Per gate `id:largest value seen/range`.
    pub(crate) fn ranges(&self, watch: &Watch) -> String {
        self.gates
            .iter()
            .zip(&watch.0)
            .filter(|(_, seen)| **seen > 0)
            .map(|(gate, seen)| format!("{}:{seen}/{}", gate.id, signed_range(gate.response)))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn signed_range(response: Response) -> f64 {
    let bits = match response {
        Response::Share { .. } => 8,
        Response::Requantise(opening) => opening.index_bits - 1,
        Response::Table { opening, .. } | Response::Margin { opening, .. } | Response::Tell { opening, .. } => {
            opening.index_bits
        }
        Response::Remask { bits } | Response::Reveal { bits } => bits,
    };
    f64::from(1u32 << (bits - 1))
}
