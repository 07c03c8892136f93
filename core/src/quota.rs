//! Batches under [device routing](crate::routing::Routing::Device): how a device uses its routes without showing
//! them.
//!
//! The device routes all inputs of a batch and then makes exactly the inferences that public quotas say, in
//! the order of the models, whatever the routes were. Each input takes a place of its model; when those are
//! taken, of the next dearer model with room, or else of the next cheaper one. Places that are left run on
//! zeros. So the sequence of requests is a function of batch size and quotas, and the server, which sees
//! masked inputs only, learns nothing about any of them. One input and a quota of 1 for each model hides the
//! route in the usual sense: every model runs.
//!
//! Routes and places are secret: nothing here branches on one or uses one as an index. In outline:
//!
//! ```
//! # use secure_router_core::quota::{QuotaError, Quotas, gather, keep};
//! let quotas = Quotas::new(&[2, 1])?;
//! let (inputs, routes) = ([10, 11, 20, 21], [1, 1]); // two inputs of two values; both would go to model 1
//! let (mut places, mut answers, mut input) = ([0; 2], [0; 2], [0; 2]);
//! quotas.assign(&routes, &mut places)?;
//! let mut ran = Vec::new();
//! for place in 0..quotas.places() {
//!     gather(&places, place, &inputs, &mut input);
//!     ran.push((quotas.model(place), input)); // asks the model and gets a class
//!     let class = input[0] as u16;
//!     keep(&places, place, class, &mut answers);
//! }
//! assert_eq!(ran, [(Some(0), [20, 21]), (Some(0), [0, 0]), (Some(1), [10, 11])]);
//! assert_eq!(answers, [10, 20]);
//! # Ok::<(), QuotaError>(())
//! ```

use core::fmt;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeGreater, ConstantTimeLess};

use crate::spec::MAX_MODELS;

/// What is wrong with quotas or with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum QuotaError {
    /// More models than a pool has at most, or more inferences than 65,535.
    TooLarge,
    /// The batch has more inputs than the quotas have inferences.
    TooFew {
        /// Inputs.
        inputs: usize,
        /// Inferences.
        places: u16,
    },
    /// A lent slice does not have one element per input.
    Length,
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "quotas are for at most {MAX_MODELS} models and 65535 inferences"),
            Self::TooFew { inputs, places } => {
                write!(f, "a batch of {inputs} inputs does not fit quotas of {places} inferences")
            }
            Self::Length => f.write_str("a slice lent for a batch does not have one element per input"),
        }
    }
}

impl core::error::Error for QuotaError {}

/// How many inferences of each model a batch makes. Public, and fixed before routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    of: [u16; MAX_MODELS],
    places: u16,
}

impl Quotas {
    /// Quotas by model, cheapest first; 0 for models that are not given.
    ///
    /// # Errors
    /// [`QuotaError::TooLarge`].
    pub fn new(quotas: &[u16]) -> Result<Self, QuotaError> {
        let mut of = [0; MAX_MODELS];
        of.get_mut(..quotas.len()).ok_or(QuotaError::TooLarge)?.copy_from_slice(quotas);
        let places = quotas.iter().try_fold(0u16, |sum, quota| sum.checked_add(*quota)).ok_or(QuotaError::TooLarge)?;
        Ok(Self { of, places })
    }

    /// Inferences of a batch: its places, numbered from 0.
    #[must_use]
    pub const fn places(&self) -> u16 {
        self.places
    }

    /// The model that runs at `place`.
    #[must_use]
    pub fn model(&self, place: u16) -> Option<u8> {
        let ends = self.of.iter().scan(0u16, |end, quota| {
            *end += quota;
            Some(*end)
        });
        (0u8..).zip(ends).find(|(_, end)| place < *end).map(|(model, _)| model)
    }

    /// Gives each input, by the model that it was routed to, a place of its own.
    ///
    /// # Errors
    /// [`QuotaError::TooFew`], [`QuotaError::Length`].
    pub fn assign(&self, routes: &[u8], places: &mut [u16]) -> Result<(), QuotaError> {
        if routes.len() != places.len() {
            return Err(QuotaError::Length);
        }
        if routes.len() > usize::from(self.places) {
            return Err(QuotaError::TooFew { inputs: routes.len(), places: self.places });
        }
        let mut used = [0u16; MAX_MODELS];
        for (route, place) in routes.iter().zip(places) {
            let chosen = self.with_room(*route, &used);
            let mut first = 0;
            for ((model, quota), used) in (0u8..).zip(&self.of).zip(&mut used) {
                let here = model.ct_eq(&chosen);
                place.conditional_assign(&(first + *used), here);
                used.conditional_assign(&used.wrapping_add(1), here);
                first += quota;
            }
        }
        Ok(())
    }

    /// The first model from `route` up that has room, or else the first one down.
    fn with_room(&self, route: u8, used: &[u16; MAX_MODELS]) -> u8 {
        let (mut up, mut down, mut any_up) = (0, 0, Choice::from(0));
        for (model, (quota, used)) in (0u8..).zip(self.of.iter().zip(used)) {
            let room = quota.ct_gt(used);
            let below = model.ct_lt(&route);
            down.conditional_assign(&model, room & below);
            up.conditional_assign(&model, room & !below & !any_up);
            any_up |= room & !below;
        }
        u8::conditional_select(&down, &up, any_up)
    }
}

/// Writes the input that has `place` to `input`, or zeros if none has. `inputs` holds one after another, each
/// as long as `input`.
pub fn gather(places: &[u16], place: u16, inputs: &[i16], input: &mut [i16]) {
    input.fill(0);
    for (of, values) in places.iter().zip(inputs.chunks_exact(input.len().max(1))) {
        let here = of.ct_eq(&place);
        input.iter_mut().zip(values).for_each(|(slot, value)| slot.conditional_assign(value, here));
    }
}

/// Keeps the answer of `place` for the input that has it, if any has.
pub fn keep(places: &[u16], place: u16, answer: u16, answers: &mut [u16]) {
    for (of, slot) in places.iter().zip(answers) {
        slot.conditional_assign(&answer, of.ct_eq(&place));
    }
}
