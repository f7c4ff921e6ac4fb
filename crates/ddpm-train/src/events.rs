//! What of a run TensorBoard shows: the numbers of `metrics.jsonl`, the pictures, how weights and gradients are spread.

use std::path::Path;

use ddpm_image::{Picture, encode_png};
use serde_json::Value;

use crate::event_file::{EventFile, Histogram, Shown};
use crate::{Error, MetricsLine, Result, Trainer};

/// The event file of a run in training.
pub(crate) struct Events {
    file: EventFile,
}

impl Events {
    /// Begins a file in the run's folder for what comes after `step`.
    pub(crate) fn open_at(folder: &Path, step: usize) -> Result<Self> {
        let file = EventFile::begin(folder, step)?;
        Ok(Self { file })
    }

    /// The numbers of a line of `metrics.jsonl`, each under its key there.
    pub(crate) fn numbers(&mut self, line: &MetricsLine) -> Result<()> {
        let keys = serde_json::to_value(line).map_err(|e| Error::State {
            place: "metrics.jsonl".into(),
            problem: e.to_string(),
        })?;
        let keys = keys.as_object().into_iter().flatten();
        let numbers = keys.filter(|(key, _)| *key != "step");
        let numbers = numbers.filter_map(|(key, value)| Some((key.clone(), shown(value)?)));
        self.file.write(line.step, &numbers.collect::<Vec<_>>())
    }

    /// The samples of a step.
    pub(crate) fn picture(&mut self, step: usize, picture: &Picture) -> Result<()> {
        let image = Shown::Image {
            width: picture.width(),
            height: picture.height(),
            channels: picture.channels(),
            png: encode_png(picture, &[])?,
        };
        self.file.write(step, &[("samples".into(), image)])
    }

    /// Of every parameter, how its weights and the gradient of the last step, before clipping, are spread.
    pub(crate) fn histograms(&mut self, trainer: &Trainer) -> Result<()> {
        let step = trainer.steps_done();
        let mut put = |group: &str, name: &str, numbers: &[f32]| -> Result<()> {
            match Histogram::of(numbers) {
                Some(spread) => {
                    let tag = format!("{group}/{name}");
                    self.file.write(step, &[(tag, Shown::Histogram(spread))])
                }
                None => Ok(()),
            }
        };
        for (index, (name, weights)) in trainer.raw_weights().into_iter().enumerate() {
            put("weights", &name, &weights.flatten_all()?.to_vec1::<f32>()?)?;
            put("gradients", &name, &trainer.gradient(index)?)?;
        }
        Ok(())
    }

    /// Asks the system to put what was written on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync()
    }
}

/// What was not measured is not shown.
fn shown(value: &Value) -> Option<Shown> {
    value.as_f64().map(Shown::Scalar)
}
