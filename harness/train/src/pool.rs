//! The pool file: the public spec, and per program its weights, biases and tables.

use crate::data::write_tensors;
use crate::integer::Integers;
use anyhow::{Context, Result};
use blake2::{Blake2s256, Digest};
use safetensors::tensor::{Dtype, SafeTensors};
use secure_router_core::circuit::{Program, Slot};
use secure_router_core::spec::{MAX_SPEC_BYTES, PoolSpec};
use std::collections::HashMap;
use std::path::Path;

/// A pool as it is stored: `programs` follow `spec.models`, the router comes last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) spec: PoolSpec,
    pub(crate) programs: Vec<Integers>,
}

impl Pool {
    /// Name and program of each entry of `programs`.
    pub(crate) fn named(&self) -> Result<Vec<(String, Program)>> {
        let models = self.spec.models.iter().zip(0u8..).map(|(m, i)| (m.name.to_string(), Slot::Model(i)));
        models
            .chain([("router".to_owned(), Slot::Router)])
            .map(|(name, slot)| Ok((name, Program::of(&self.spec, slot)?)))
            .collect()
    }

    /// Names the contents: a hash under a fixed key. Weights are not to be guessed, so the hash
    /// tells nothing; two pools of one shape still differ.
    pub(crate) fn edition(programs: &[Integers]) -> [u8; 16] {
        let mut hash = Blake2s256::new();
        hash.update(b"secure-router pool edition");
        for program in programs {
            for (_, _, bytes) in tensors(program) {
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
        }
        let digest = hash.finalize();
        std::array::from_fn(|i| digest[i])
    }

    pub(crate) fn write(&self, path: &Path, about: HashMap<String, String>) -> Result<usize> {
        let mut buffer = [0; MAX_SPEC_BYTES];
        let spec = self.spec.to_bytes(&mut buffer)?.to_vec();
        let mut owned = vec![("spec".to_owned(), Dtype::U8, spec)];
        for ((name, _), program) in self.named()?.iter().zip(&self.programs) {
            for (part, kind, bytes) in tensors(program) {
                owned.push((format!("{name}.{part}"), kind, bytes));
            }
        }
        let views: Vec<_> = owned
            .iter()
            .map(|(name, kind, bytes)| {
                let size = kind.bitsize() / 8;
                (name.as_str(), *kind, vec![bytes.len() / size], bytes.as_slice())
            })
            .collect();
        write_tensors(path, &views, about)?;
        Ok(std::fs::metadata(path)?.len() as usize)
    }

    pub(crate) fn read(path: &Path) -> Result<(Self, HashMap<String, String>)> {
        let shown = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", shown()))?;
        let file = SafeTensors::deserialize(&bytes).with_context(shown)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).with_context(shown)?;
        let about = header.metadata().clone().unwrap_or_default();
        let spec = PoolSpec::from_bytes(file.tensor("spec").with_context(shown)?.data())?;
        let mut pool = Self { spec, programs: Vec::new() };
        for (name, _) in pool.named()? {
            let data = |part: &str| -> Result<Vec<u8>> {
                Ok(file.tensor(&format!("{name}.{part}")).with_context(shown)?.data().to_vec())
            };
            let shorts = |bytes: Vec<u8>| -> Vec<i16> {
                bytes.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect()
            };
            pool.programs.push(Integers {
                weights: shorts(data("weights")?),
                biases: data("biases")?.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect(),
                tables: shorts(data("tables")?),
            });
        }
        Ok((pool, about))
    }
}

fn tensors(program: &Integers) -> [(&'static str, Dtype, Vec<u8>); 3] {
    let shorts = |values: &[i16]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let biases = program.biases.iter().flat_map(|v| v.to_le_bytes()).collect();
    [
        ("weights", Dtype::I16, shorts(&program.weights)),
        ("biases", Dtype::I32, biases),
        ("tables", Dtype::I16, shorts(&program.tables)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::assemble;
    use crate::task::Task;
    use crate::task::tests::toy;

    /// A pool of the real shapes whose numbers count up.
    fn counting_pool() -> Pool {
        let train = toy("speech", 13, 20, 40);
        let mut pool = assemble(&train, &Task::of(&train, None).unwrap(), Vec::new()).unwrap();
        for (_, program) in pool.named().unwrap() {
            let layout = program.layout().unwrap();
            pool.programs.push(Integers {
                weights: (0..layout.weights).map(|i| i as i16).collect(),
                biases: (0..layout.biases).map(|i| i as i32).collect(),
                tables: (0..layout.tables).map(|i| -(i as i16)).collect(),
            });
        }
        pool.spec.edition = Pool::edition(&pool.programs);
        pool
    }

    #[test]
    fn a_pool_file_round_trips_and_is_the_same_each_time() {
        let path = std::env::temp_dir().join(format!("pool-{}.safetensors", std::process::id()));
        let about = || (0..20).map(|i| (i.to_string(), "text".to_owned())).collect();
        let pool = counting_pool();
        pool.write(&path, about()).unwrap();
        let first = std::fs::read(&path).unwrap();
        pool.write(&path, about()).unwrap();
        let second = std::fs::read(&path).unwrap();
        let read = Pool::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(first, second);
        let (read, entries) = read.unwrap();
        assert_eq!(read, pool);
        assert_eq!(entries.len(), 20);
    }

    #[test]
    fn one_changed_weight_is_another_edition() {
        let mut pool = counting_pool();
        let before = pool.spec.edition;
        pool.programs[0].weights[7] ^= 1;
        assert_ne!(Pool::edition(&pool.programs), before);
    }
}
