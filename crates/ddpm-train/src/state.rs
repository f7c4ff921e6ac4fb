//! What a checkpoint holds of a training, and a training out of a checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::Tensor;
use ddpm_checkpoint::TrainState;

use crate::trainer::Average;
use crate::{Error, Result, Trainer};

impl Trainer {
    /// Raw weights, Adam's moments, every average, and the counters: all that [`Trainer::load_state`] needs.
    pub fn state(&self) -> TrainState {
        let mut tensors = Vec::new();
        let mut put = |prefix: &str, list: &mut dyn Iterator<Item = Tensor>| {
            tensors.extend(
                self.names()
                    .iter()
                    .zip(list)
                    .map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)),
            );
        };
        put(
            "raw",
            &mut self.raw_weights().into_iter().map(|(_, tensor)| tensor),
        );
        put("adam.m", &mut self.adam.m.iter().cloned());
        put("adam.v", &mut self.adam.v.iter().cloned());
        for average in self.averages() {
            put(
                &format!("ema.{}", average.rate),
                &mut average.weights.iter().cloned(),
            );
        }
        let counters = [
            ("step", self.steps_done() as u64),
            ("images", self.images_done()),
        ];
        TrainState {
            tensors,
            counters: BTreeMap::from(counters.map(|(name, n)| (name.into(), n.to_string()))),
        }
    }

    /// Continues from a saved state, bit for bit.
    ///
    /// # Errors
    /// A tensor or counter is missing, left over or wrongly shaped; the message names it and `checkpoint`.
    pub fn load_state(&mut self, state: TrainState, checkpoint: &Path) -> Result<()> {
        let mut saved = Saved {
            place: checkpoint.display().to_string(),
            tensors: state.tensors.into_iter().collect(),
        };
        let raw = saved.take("raw", &self.raw_weights())?;
        let mut adam = self.adam.clone();
        adam.m = saved.take("adam.m", &self.raw_weights())?;
        adam.v = saved.take("adam.v", &self.raw_weights())?;
        adam.step = counter(&state.counters, "step", &saved.place)?;
        let rates: Vec<f64> = self.averages().iter().map(|a| a.rate).collect();
        let mut averages = Vec::with_capacity(rates.len());
        for rate in rates {
            averages.push(Average {
                rate,
                weights: saved.take(&format!("ema.{rate}"), &self.raw_weights())?,
            });
        }
        if let Some(name) = saved.tensors.keys().min() {
            return Err(saved.wrong(format!("tensor `{name}` belongs to nothing in this run")));
        }
        let images = counter(&state.counters, "images", &saved.place)?;
        self.restore(&raw, adam, averages, images)
    }
}

struct Saved {
    place: String,
    tensors: HashMap<String, Tensor>,
}

impl Saved {
    /// Takes out `prefix.NAME` for every parameter, each shaped as the parameter.
    fn take(&mut self, prefix: &str, parameters: &[(String, Tensor)]) -> Result<Vec<Tensor>> {
        let mut taken = Vec::with_capacity(parameters.len());
        for (name, parameter) in parameters {
            let name = format!("{prefix}.{name}");
            let Some(tensor) = self.tensors.remove(&name) else {
                return Err(self.wrong(format!(
                    "tensor `{name}` is missing from the training state"
                )));
            };
            if tensor.dims() != parameter.dims() || tensor.dtype() != parameter.dtype() {
                let (found, expected) = (tensor.dims(), parameter.dims());
                return Err(self.wrong(format!(
                    "tensor `{name}` is {found:?}, but this run needs {expected:?}"
                )));
            }
            taken.push(tensor);
        }
        Ok(taken)
    }

    fn wrong(&self, problem: String) -> Error {
        Error::State {
            place: self.place.clone(),
            problem,
        }
    }
}

pub(crate) fn counter<T: std::str::FromStr>(
    counters: &BTreeMap<String, String>,
    name: &str,
    place: &str,
) -> Result<T> {
    let found = counters.get(name).and_then(|text| text.parse().ok());
    found.ok_or_else(|| Error::State {
        place: place.into(),
        problem: format!("counter `{name}` is missing or not a number"),
    })
}
