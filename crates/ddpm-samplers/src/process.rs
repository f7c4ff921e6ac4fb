//! What is common to all walks: the schedule, what the network says, how x_0-hat is clipped.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use ddpm_core::{Denoiser, Prediction, Schedule, Timestep};

/// The process that a network was trained on, as a walk needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// The steps to walk, full or respaced.
    pub schedule: Schedule,
    /// What the network outputs.
    pub prediction: Prediction,
    /// What happens to x_0-hat at every step.
    pub clip: Clip,
}

/// How far x_0-hat may leave the range of pixels; clipping keeps an early error from growing.
#[derive(Clone, Debug, PartialEq)]
pub enum Clip {
    /// Anywhere: for data without a range, such as latents.
    None,
    /// `[-r, r]`: 1 for images in [-1, 1].
    Range(f64),
    /// Each channel its own `(low, high)`: for images normalised per channel.
    PerChannel(Vec<(f64, f64)>),
}

impl Clip {
    /// x_0-hat (`[B, C, H, W]`) forced into the range.
    ///
    /// # Errors
    /// When the range is empty or not a number, or there are ranges for another number of channels.
    pub fn apply(&self, x_0_hat: &Tensor) -> Result<Tensor> {
        match self {
            Clip::None => Ok(x_0_hat.clone()),
            Clip::Range(r) => {
                check_range(-r, *r)?;
                Ok(x_0_hat.clamp(-r, *r)?)
            }
            Clip::PerChannel(ranges) => {
                let channels = x_0_hat.dims().get(1).copied().unwrap_or(0);
                if ranges.len() != channels {
                    return Err(Error::ClipChannels {
                        ranges: ranges.len(),
                        channels,
                    });
                }
                ranges
                    .iter()
                    .try_for_each(|&(low, high)| check_range(low, high))?;
                let (low, high): (Vec<f64>, Vec<f64>) = ranges.iter().copied().unzip();
                let x = x_0_hat.broadcast_maximum(&per_channel(low, x_0_hat)?)?;
                Ok(x.broadcast_minimum(&per_channel(high, x_0_hat)?)?)
            }
        }
    }
}

impl Process {
    /// The network's output for x at t.
    pub(crate) fn ask(&self, denoiser: &dyn Denoiser, x: &Tensor, t: Timestep) -> Result<Answer> {
        self.ask_at(denoiser, x, t, self.schedule.network_time(t))
    }

    /// The network's output for x at t, when the network is told `time`.
    pub(crate) fn ask_at(
        &self,
        denoiser: &dyn Denoiser,
        x: &Tensor,
        t: Timestep,
        time: f64,
    ) -> Result<Answer> {
        let images = x.dims().first().copied().unwrap_or(0);
        let t = vec![t; images];
        let times = vec![time; images];
        // Detached, so that weights that are being trained do not keep the graph of the whole walk alive.
        let output = denoiser.predict(x, &times)?.detach();
        match output.dims() == x.dims() {
            true => Ok(Answer { t, output }),
            false => Err(Error::OutputShape {
                given: x.dims().to_vec(),
                returned: output.dims().to_vec(),
            }),
        }
    }

    /// The clean images that an answer implies, clipped.
    pub(crate) fn x_0_hat(&self, x_t: &Tensor, answer: &Answer) -> Result<Tensor> {
        let Answer { t, output } = answer;
        let x_0_hat = self.prediction.x_0_hat(&self.schedule, x_t, t, output)?;
        self.clip.apply(&x_0_hat)
    }

    /// The noise that an answer implies.
    pub(crate) fn eps_hat(&self, x_t: &Tensor, answer: &Answer) -> Result<Tensor> {
        let Answer { t, output } = answer;
        Ok(self.prediction.eps_hat(&self.schedule, x_t, t, output)?)
    }
}

/// What the network said.
pub(crate) struct Answer {
    /// t, once for every image.
    pub(crate) t: Vec<Timestep>,
    /// Detached from the network's weights.
    pub(crate) output: Tensor,
}

fn per_channel(values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    if let Some(channels) = shape.get_mut(1) {
        *channels = values.len();
    }
    let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
    Ok(values.to_dtype(like.dtype())?.to_device(like.device())?)
}

fn check_range(low: f64, high: f64) -> Result<()> {
    match low < high {
        true => Ok(()),
        false => Err(Error::Setting {
            name: "the upper end of a clipping range",
            value: high,
            expected: "a number above the lower end",
        }),
    }
}
