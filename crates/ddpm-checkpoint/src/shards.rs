//! Weights in several files, and the index that says which tensor is where: `NAME.safetensors.index.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value;

use crate::pipeline::read_text;
use crate::tensors::{Format, Tensors, open_tensors};
use crate::{Error, Result};

/// The shards of an index, all opened and checked.
pub(crate) struct Shards {
    path: PathBuf,
    /// Each tensor's shard.
    places: BTreeMap<String, usize>,
    shards: Vec<Box<dyn Tensors>>,
}

impl Shards {
    /// Reads an index and opens the files that it names, which lie beside it.
    ///
    /// # Errors
    /// The index does not parse, names a file elsewhere, or a tensor that its file does not have; a file is missing or
    /// has a tensor that the index does not place in it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let index = read_index(path)?;
        let names: BTreeSet<&String> = index.values().collect();
        if names.len() > MOST_SHARDS {
            let reason = format!(
                "it names {} files, at most {MOST_SHARDS} are read",
                names.len()
            );
            return Err(Error::malformed(path, reason));
        }
        let mut shards = Vec::new();
        let mut numbers = BTreeMap::new();
        for name in names {
            numbers.insert(name, shards.len());
            let shard = path.with_file_name(name);
            if !shard.is_file() {
                return Err(Error::Missing {
                    path: shard,
                    why: "the index beside it places tensors in it",
                });
            }
            if Format::of(&shard)? == Format::Index {
                return Err(Error::malformed(
                    path,
                    format!("its part {name} is an index"),
                ));
            }
            shards.push(open_tensors(&shard)?);
        }
        let places: BTreeMap<String, usize> = index
            .iter()
            .filter_map(|(tensor, name)| Some((tensor.clone(), *numbers.get(name)?)))
            .collect();
        let shards = Self {
            path: path.to_owned(),
            places,
            shards,
        };
        shards.check()?;
        Ok(shards)
    }

    fn check(&self) -> Result<()> {
        let mut expected = self.places.clone();
        for (number, shard) in self.shards.iter().enumerate() {
            for name in shard.shapes().into_keys() {
                if expected.get(&name) != Some(&number) {
                    let reason = format!(
                        "it holds `{name}`, which {} places elsewhere or nowhere",
                        self.path.display()
                    );
                    return Err(Error::malformed(shard.path(), reason));
                }
                expected.remove(&name);
            }
        }
        match expected.into_iter().next() {
            None => Ok(()),
            Some((name, number)) => {
                let shard = self.shards[number].path().display().to_string();
                let reason = format!("it places `{name}` in {shard}, which does not have it");
                Err(Error::malformed(&self.path, reason))
            }
        }
    }
}

impl Tensors for Shards {
    fn path(&self) -> &Path {
        &self.path
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.shapes())
            .collect()
    }

    fn read_f32(&mut self, name: &str) -> Result<Tensor> {
        match self.places.get(name) {
            Some(&shard) => self.shards[shard].read_f32(name),
            None => Err(Error::malformed(
                &self.path,
                format!("it has no tensor `{name}`"),
            )),
        }
    }
}

/// The files that an index names.
///
/// # Errors
/// As [`Shards::open`] of the index itself.
#[cfg(feature = "hub")]
pub(crate) fn shards_of(index: &Path) -> Result<BTreeSet<String>> {
    Ok(read_index(index)?.into_values().collect())
}

/// Files of one model: each is open at once.
const MOST_SHARDS: usize = 200;

/// Each tensor's file, by the index's `weight_map`.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let index: Value =
        serde_json::from_str(&read_text(path)?).map_err(|error| Error::malformed(path, error))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let Some(map) = map.filter(|map| !map.is_empty()) else {
        let reason =
            "expected an object with `weight_map`, from names of tensors to names of files";
        return Err(Error::malformed(path, reason));
    };
    let file = |(tensor, file): (&String, &Value)| match file.as_str() {
        Some(name) if is_plain(name) => Ok((tensor.clone(), name.to_owned())),
        _ => {
            let reason = format!(
                "`{tensor}` is placed in {file}, expected the name of a file beside the index"
            );
            Err(Error::malformed(path, reason))
        }
    };
    map.iter().map(file).collect()
}

/// A name without folders.
fn is_plain(name: &str) -> bool {
    let strange = |c: char| "/\\:".contains(c) || c.is_control();
    !name.is_empty() && !name.starts_with('.') && !name.contains(strange)
}
