//! A trained pool: its public spec and the server's secrets.

use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac256, Digest};
use safetensors::{Dtype, SafeTensors};
use secure_router_core::channel::StaticSecret;
use secure_router_core::circuit::{CircuitError, Combination, Program, Slot, Wire};
use secure_router_core::clear::{self, ClearError, Nearest, Parameters};
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::model::UTILITY_MAX;
use secure_router_core::routing::{Advantage, Bias, Routing, aim, margin};
use secure_router_core::session::{LinkProfile, RECOMMENDED_LAMBDA};
use secure_router_core::spec::{Output, PoolSpec, SpecError};

/// The secrets of one program.
#[derive(Clone, Default)]
pub struct Secrets {
    weights: Vec<i16>,
    biases: Vec<i32>,
    tables: Vec<i16>,
}

impl Secrets {
    /// As the kernel takes them.
    #[must_use]
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters { weights: &self.weights, biases: &self.biases, tables: &self.tables }
    }
}

/// A pool as its file holds it.
#[derive(Clone)]
pub struct Pool {
    /// What is public.
    pub spec: PoolSpec,
    /// Weight of cost that the trainer recommends; see [`secure_router_core::session::Infer`].
    pub lambda: u16,
    /// Names of the classes, or their numbers.
    pub classes: Vec<String>,
    /// What else the trainer says of it.
    pub about: HashMap<String, String>,
    /// Probability that the least utility stands for.
    utility_floor: f64,
    /// What the models are worth beside the first, of a router that goes by its own answer's lead.
    advantages: Vec<Advantage>,
    programs: Vec<(Slot, Secrets)>,
}

impl Pool {
    /// Reads a pool file. Answers are labels and routes are open; see [`with_logits`](Self::with_logits) and
    /// [`with_routing`](Self::with_routing).
    ///
    /// # Errors
    /// Says what the file lacks, which length does not fit the spec, or that spec, weights and costs disagree.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read the pool {}", path.display()))?;
        Self::from_bytes(&bytes).with_context(|| format!("{} is not a valid pool", path.display()))
    }

    /// As [`load`](Self::load), of a file's contents.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let about = header.metadata().clone().unwrap_or_default();
        let mut spec = PoolSpec::from_bytes(file.tensor("spec")?.data())?;
        (spec.output, spec.routing) = (Output::Label, Routing::Open);
        spec.validate()?;
        let mut programs = Vec::new();
        for slot in spec.slots() {
            let name = slot_name(&spec, slot);
            let secrets = Secrets {
                weights: shorts(&file, &format!("{name}.weights"))?,
                biases: tensor(&file, &format!("{name}.biases"), Dtype::I32)?
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|b| i32::from_le_bytes(*b))
                    .collect(),
                tables: shorts(&file, &format!("{name}.tables"))?,
            };
            secrets.parameters().check(&Program::of(&spec, slot)?.layout()?).with_context(|| name.clone())?;
            agrees(&about, &name, &Cost::of(&spec, slot, 1)?)?;
            programs.push((slot, secrets));
        }
        let (routers, models): (Vec<_>, Vec<_>) = spec.slots().partition(|slot| *slot == Slot::Router);
        let parts = models.into_iter().chain(routers).flat_map(|slot| {
            let name = slot_name(&spec, slot);
            PARTS.map(|part| file.tensor(&format!("{name}.{part}")).map_or(&[][..], |view| view.data()))
        });
        if spec.edition != edition(parts) {
            bail!("weights and spec are not of one training");
        }
        let classes: Vec<String> = match about.get("classes") {
            Some(names) => names.split(',').map(str::to_owned).collect(),
            None => (0..spec.classes).map(|class| class.to_string()).collect(),
        };
        let lambda = number(&about, "lambda")?.unwrap_or(0);
        let utility_floor = number(&about, "utility_floor")?.unwrap_or(0.0);
        let advantages = advantages(&about)?;
        let by_margin = spec.router.is_some() && Program::of(&spec, Slot::Router)?.by_margin();
        if by_margin && advantages.len() != spec.models.len() {
            bail!("the file names no advantages of the models: train the pool again");
        }
        Ok(Self { spec, lambda, classes, about, utility_floor, advantages, programs })
    }

    /// The public scores of the models under a request: [`router_scores`], and where the first model is chosen by its lead, one other
    /// model to turn to. [`RECOMMENDED_LAMBDA`] stands for the pool's own.
    ///
    /// # Errors
    /// As [`router_scores`].
    pub fn scores(&self, lambda: u16, allowed: u8, link: &LinkProfile) -> Result<Vec<i32>, CircuitError> {
        let lambda = if lambda == RECOMMENDED_LAMBDA { self.lambda } else { lambda };
        let mut scores = router_scores(&self.spec, lambda, allowed, link)?;
        if self.spec.router.is_some() && Program::of(&self.spec, Slot::Router)?.by_margin() {
            aim(&self.advantages, &mut scores);
        }
        Ok(scores.to_vec())
    }

    /// How a router leans under the [`scores`](Self::scores) of a request.
    #[must_use]
    pub fn bias<'s>(&self, scores: &'s [i32]) -> Bias<'s> {
        Bias { scores, margin: margin(&self.advantages, scores) }
    }

    /// Lets devices learn every class's logit.
    #[must_use]
    pub fn with_logits(mut self) -> Self {
        self.spec.output = Output::Logits;
        self
    }

    /// Says who learns the router's choice.
    ///
    /// # Errors
    /// [`SpecError`] when the policy does not fit the pool.
    pub fn with_routing(mut self, routing: Routing) -> Result<Self, SpecError> {
        self.spec.routing = routing;
        self.spec.validate()?;
        Ok(self)
    }

    /// Seals the pool under the server's secret: the edition becomes a keyed hash of the contents,
    /// which names them and tells nothing of them.
    pub fn seal(&mut self, secret: &StaticSecret) {
        let mut mac = Blake2sMac256::new(&(*secret.expose_bytes()).into());
        mac.update(b"secure-router pool edition");
        for (slot, secrets) in &self.programs {
            mac.update(&[slot.code()]);
            for shorts in [&secrets.weights, &secrets.tables] {
                mac.update(&(shorts.len() as u64).to_le_bytes());
                shorts.iter().for_each(|value| mac.update(&value.to_le_bytes()));
            }
            secrets.biases.iter().for_each(|value| mac.update(&value.to_le_bytes()));
        }
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        self.spec.edition.iter_mut().zip(digest).for_each(|(slot, byte)| *slot = byte);
    }

    /// The secrets of `slot`.
    #[must_use]
    pub fn secrets(&self, slot: Slot) -> Option<&Secrets> {
        self.programs.iter().find(|(have, _)| *have == slot).map(|(_, secrets)| secrets)
    }

    /// The program of a model's public name, or of `router`.
    #[must_use]
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.spec.slots().find(|slot| slot_name(&self.spec, *slot) == name)
    }

    /// What a utility stands for: how likely the model is to be right.
    #[must_use]
    pub fn probability(&self, utility: f64) -> f64 {
        let probability = self.utility_floor + (1.0 - self.utility_floor) * utility / f64::from(UTILITY_MAX);
        probability.clamp(0.0, 1.0)
    }

    /// What the router makes of `input`, by the clear-text reference.
    ///
    /// # Errors
    /// As [`reference`](Self::reference).
    pub fn estimate(&self, input: &[i16]) -> Result<Estimate> {
        let compared = Program::of(&self.spec, Slot::Router)?.compared()?.context("the router compares nothing")?;
        let Combination::Differences { scale } = compared.combination else { bail!("the router compares nothing") };
        let (arena, _) = self.run(Slot::Router, input, &[])?;
        let items =
            arena.get(compared.wire.at as usize..).and_then(|rest| rest.get(..compared.wire.elements() as usize));
        let step = |accumulator: i64| accumulator as f64 / f64::from(1u32 << scale);
        let (utilities, logits) = items.context("no utilities")?.split_at(self.spec.models.len());
        Ok(Estimate { utilities: utilities.iter().map(|u| step(*u)).collect(), lead: step(clear::lead(logits)) })
    }

    /// The model that an estimate comes to under the public `scores` of a request, without any rounding; the first of equals.
    ///
    /// # Errors
    /// A pool without a router.
    pub fn route(&self, estimate: &Estimate, scores: &[i32]) -> Result<usize> {
        let by_margin = Program::of(&self.spec, Slot::Router)?.by_margin();
        if by_margin && estimate.lead >= f64::from(self.bias(scores).margin) {
            return Ok(0);
        }
        let sums: Vec<f64> = estimate.utilities.iter().zip(scores).map(|(u, s)| u + f64::from(*s)).collect();
        Ok((usize::from(by_margin)..sums.len()).rev().max_by(|a, b| sums[*a].total_cmp(&sums[*b])).unwrap_or(0))
    }

    /// Of the `inputs` that the router sends on to another model where cost does not count, on a UART, that of which it is least sure.
    ///
    /// # Errors
    /// As [`reference`](Self::reference).
    pub fn least_sure<'i>(&self, inputs: &'i [Vec<i16>]) -> Result<Option<&'i [i16]>> {
        if self.spec.router.is_none() {
            return Ok(None);
        }
        let scores = self.scores(0, u8::MAX, &LinkProfile::UART)?;
        let mut least: Option<(f64, &[i16])> = None;
        for input in inputs {
            let Some(estimate) = in_range(self.estimate(input))? else { continue };
            if self.route(&estimate, &scores)? > 0 && least.is_none_or(|(lead, _)| estimate.lead < lead) {
                least = Some((estimate.lead, input));
            }
        }
        Ok(least.map(|(_, input)| input))
    }

    /// The model that the reference's router chooses for `input`.
    ///
    /// # Errors
    /// As [`reference`](Self::reference).
    pub fn chosen(&self, input: &[i16], scores: &[i32]) -> Result<Slot> {
        let program = Program::of(&self.spec, Slot::Router)?;
        Ok(Slot::Model(clear::chosen(&program, &self.reference(Slot::Router, input, scores)?)))
    }

    /// The clear-text reference, rounding to nearest: logits, or what a router tells; see [`clear::run`].
    ///
    /// # Errors
    /// [`clear::ClearError`], and a slot that the pool does not have.
    pub fn reference(&self, slot: Slot, input: &[i16], scores: &[i32]) -> Result<Vec<i64>> {
        let (arena, wire) = self.run(slot, input, scores)?;
        arena
            .get(wire.at as usize..)
            .and_then(|rest| rest.get(..wire.elements() as usize))
            .map(<[_]>::to_vec)
            .context("no output")
    }

    /// All wires, and which is the last.
    fn run(&self, slot: Slot, input: &[i16], scores: &[i32]) -> Result<(Vec<i64>, Wire)> {
        let program = Program::of(&self.spec, slot)?;
        let secrets = self.secrets(slot).context("the pool has no such program")?;
        let mut arena = vec![0; program.layout()?.arena as usize];
        let mut scratch = vec![0; clear::scratch_elements(&program)?];
        let (parameters, bias) = (secrets.parameters(), self.bias(scores));
        let wire = clear::run(&program, &parameters, input, bias, &mut arena, &mut scratch, &mut Nearest)?;
        Ok((arena, wire))
    }
}

/// `outcome`, or nothing where a value left its range: the protocol then wraps, and answers something.
///
/// # Errors
/// Any other.
pub fn in_range<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.downcast_ref(), Some(ClearError::Range { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a router makes of an input.
pub struct Estimate {
    /// Of each model, in steps.
    pub utilities: Vec<f64>,
    /// How far its own answer is ahead of the next, in steps of the opening of differences; without end where there is no other.
    pub lead: f64,
}

/// What a file holds of a program.
const PARTS: [&str; 3] = ["weights", "biases", "tables"];

/// The trainer's name of a file's contents: without a key, and never sent to anyone. `parts` are the bytes of weights,
/// biases and tables of each model, and then of the router.
#[must_use]
pub fn edition<'p>(parts: impl Iterator<Item = &'p [u8]>) -> [u8; 16] {
    let mut hash = Blake2s256::new();
    hash.update(b"secure-router pool edition");
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    std::array::from_fn(|i| digest[i])
}

/// Whether the program `name` costs here what its router was trained for.
fn agrees(about: &HashMap<String, String>, name: &str, cost: &Cost) -> Result<()> {
    let here = cost.online.to_string();
    match about.get(&format!("{name} cost")) {
        Some(there) if *there == here => Ok(()),
        Some(there) => bail!("`{name}` was trained at a cost of {there}, and has {here}: train the pool again"),
        None => bail!("the file names no cost of `{name}`: train the pool again"),
    }
}

/// What a file says of the models' worth beside the first.
fn advantages(about: &HashMap<String, String>) -> Result<Vec<Advantage>> {
    let all = about.get("advantages").map(|all| all.split(',').map(str::parse).collect::<Result<_, _>>());
    Ok(all.transpose().context("`advantages` are not one for each model")?.unwrap_or_default())
}

/// Public name of a program.
#[must_use]
pub fn slot_name(spec: &PoolSpec, slot: Slot) -> String {
    match slot {
        Slot::Router => "router".to_owned(),
        Slot::Model(index) => {
            spec.models.get(usize::from(index)).map_or_else(|| format!("model {index}"), |model| model.name.to_string())
        }
    }
}

pub(crate) fn tensor(file: &SafeTensors<'_>, name: &str, kind: Dtype) -> Result<Vec<u8>> {
    let view = file.tensor(name).with_context(|| format!("`{name}` is missing"))?;
    if view.dtype() != kind {
        bail!("`{name}` holds {:?} instead of {kind:?}", view.dtype());
    }
    Ok(view.data().to_vec())
}

pub(crate) fn shorts(file: &SafeTensors<'_>, name: &str) -> Result<Vec<i16>> {
    let bytes = tensor(file, name, Dtype::I16)?;
    Ok(bytes.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect())
}

fn number<T: FromStr>(about: &HashMap<String, String>, key: &str) -> Result<Option<T>> {
    about.get(key).map(|text| text.parse().ok().with_context(|| format!("`{key}` is not a number"))).transpose()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    type About = HashMap<String, String>;
    type Tensors = HashMap<String, Vec<u8>>;

    /// The committed pool's file with other metadata or tensors.
    fn changed(change: impl FnOnce(&mut About, &mut Tensors)) -> Result<Pool> {
        let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech/pool.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut about = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
        let mut tensors = Tensors::new();
        let mut kinds = HashMap::new();
        for (name, view) in file.tensors() {
            kinds.insert(name.clone(), view.dtype());
            tensors.insert(name, view.data().to_vec());
        }
        change(&mut about, &mut tensors);
        let views = tensors.iter().map(|(name, data)| {
            let kind = kinds[name];
            (name, safetensors::tensor::TensorView::new(kind, vec![data.len() * 8 / kind.bitsize()], data).unwrap())
        });
        Pool::from_bytes(&safetensors::serialize(views.collect::<Vec<_>>(), Some(about)).unwrap())
    }

    #[test]
    fn a_pool_loads_only_if_spec_weights_and_cost_agree() {
        let error = |change: fn(&mut About, &mut Tensors)| format!("{:#}", changed(change).err().unwrap());
        assert!(changed(|_, _| ()).is_ok());
        assert_eq!(
            error(|_, tensors| tensors.get_mut("large.weights").unwrap()[7] ^= 1),
            "weights and spec are not of one training"
        );
        assert!(error(|_, tensors| tensors.get_mut("large.weights").unwrap().truncate(8)).starts_with("large: "));
        let costs = error(|about, _| drop(about.insert("small cost".to_owned(), "1 bytes, 2 half trips".to_owned())));
        assert!(costs.starts_with("`small` was trained at a cost of 1 bytes, 2 half trips, and has "), "{costs}");
        assert_eq!(
            error(|about, _| drop(about.remove("router cost"))),
            "the file names no cost of `router`: train the pool again"
        );
        assert_eq!(
            error(|about, _| drop(about.remove("advantages"))),
            "the file names no advantages of the models: train the pool again"
        );
        let advantages = error(|about, _| drop(about.insert("advantages".to_owned(), "1:2,3,4:5".to_owned())));
        assert_eq!(advantages, "`advantages` are not one for each model: not `worth:halving` in sixteenths");
    }

    #[test]
    fn a_request_may_leave_the_weight_of_cost_to_the_pool() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/pools/speech/pool.safetensors");
        let pool = Pool::load(Path::new(path)).unwrap();
        let scores = |lambda| pool.scores(lambda, u8::MAX, &LinkProfile::UART).unwrap();
        assert_eq!(scores(RECOMMENDED_LAMBDA), scores(pool.lambda));
        assert_ne!(scores(RECOMMENDED_LAMBDA), scores(RECOMMENDED_LAMBDA - 1));
        assert_ne!(scores(RECOMMENDED_LAMBDA), scores(0));
    }
}
