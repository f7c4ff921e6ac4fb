//! What is common to all walks: the schedule, what the network says, how x_0-hat is clipped.

use crate::error::require;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
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
    /// Dynamic thresholding (Saharia et al. 2022, section 2.3): to [-s, s], then divided by s, where s is the `ratio` quantile of an
    /// image's |x_0-hat|, but at least 1, and at most `most` whatever that is; diffusers' `thresholding`.
    Dynamic {
        /// `dynamic_thresholding_ratio`, in 0..=1.
        ratio: f64,
        /// `sample_max_value`, above 0.
        most: f64,
    },
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
                let x = x_0_hat.broadcast_maximum(&along_axis(1, low, x_0_hat)?)?;
                Ok(x.broadcast_minimum(&along_axis(1, high, x_0_hat)?)?)
            }
            Clip::Dynamic { ratio, most } => {
                let thresholds = thresholds(x_0_hat, *ratio, *most)?;
                let x = x_0_hat.broadcast_minimum(&thresholds)?;
                let x = x.broadcast_maximum(&thresholds.neg()?)?;
                Ok(x.broadcast_div(&thresholds)?)
            }
        }
    }
}

/// So little of the image that dividing by its root leads to the end of any range in f32, and to no infinity.
const NEXT_TO_NOTHING: f64 = 1e-30;

impl Process {
    /// For diffusers' numbers: where x_T holds nothing of the image, predicted noise makes x_0-hat infinite there, which clipping
    /// takes to the ends of its range.
    pub(crate) fn divide_by_nothing(&mut self) -> Result<()> {
        let alpha_bars = self.schedule.alpha_bars();
        let (known, last) = (alpha_bars.get(1..), alpha_bars.last());
        let (Some(known), Some(0.0)) = (known, last) else {
            return Ok(());
        };
        if self.prediction != Prediction::Noise || !matches!(self.clip, Clip::Range(_)) {
            return Ok(());
        }
        let lifted: Vec<f64> = known.iter().map(|a| a.max(NEXT_TO_NOTHING)).collect();
        self.schedule = Schedule::from_alpha_bars(&lifted)?;
        Ok(())
    }

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
        let (output, variance) = halves(x, output)?;
        Ok(Answer {
            t,
            output,
            variance,
        })
    }

    /// The clean images that an answer implies, clipped.
    pub(crate) fn x_0_hat(&self, x_t: &Tensor, answer: &Answer) -> Result<Tensor> {
        let Answer { t, output, .. } = answer;
        let x_0_hat = self.prediction.x_0_hat(&self.schedule, x_t, t, output)?;
        self.clip.apply(&x_0_hat)
    }

    /// The noise that an answer implies.
    pub(crate) fn eps_hat(&self, x_t: &Tensor, answer: &Answer) -> Result<Tensor> {
        let Answer { t, output, .. } = answer;
        Ok(self.prediction.eps_hat(&self.schedule, x_t, t, output)?)
    }
}

/// What the network said.
pub(crate) struct Answer {
    /// t, once for every image.
    pub(crate) t: Vec<Timestep>,
    /// Detached from the network's weights.
    pub(crate) output: Tensor,
    /// The second half of the channels of a network with twice as many: its word on the variance.
    pub(crate) variance: Option<Tensor>,
}

/// A network's output as what it predicts and, if it has twice the channels of x, what it says of the variance.
pub(crate) fn halves(x: &Tensor, output: Tensor) -> Result<(Tensor, Option<Tensor>)> {
    if output.dims() == x.dims() {
        return Ok((output, None));
    }
    let channels = x.dims().get(1).copied().unwrap_or(0);
    let mut doubled = x.dims().to_vec();
    if let Some(both) = doubled.get_mut(1) {
        *both = 2 * channels;
    }
    match channels > 0 && output.dims() == doubled {
        true => {
            let variance = output.narrow(1, channels, channels)?.contiguous()?;
            Ok((output.narrow(1, 0, channels)?.contiguous()?, Some(variance)))
        }
        false => Err(Error::OutputShape {
            given: x.dims().to_vec(),
            returned: output.dims().to_vec(),
        }),
    }
}

/// s of dynamic thresholding for each image: `[B, 1, ..., 1]`. The quantile lies between two of the sorted values, as torch.quantile's.
fn thresholds(x: &Tensor, ratio: f64, most: f64) -> Result<Tensor> {
    require(
        (0.0..=1.0).contains(&ratio) && most > 0.0,
        "the ratio or the largest value of dynamic thresholding",
        if most > 0.0 { ratio } else { most },
        "a ratio in 0..=1 and a largest value above 0",
    )?;
    let sizes = x.abs()?.flatten_from(1)?.to_device(&Device::Cpu)?;
    let rows: Vec<Vec<f64>> = sizes.to_dtype(DType::F64)?.to_vec2()?;
    let threshold = |mut row: Vec<f64>| {
        row.sort_by(f64::total_cmp);
        let place = ratio * row.len().saturating_sub(1) as f64;
        let at = |place: f64| row.get(place as usize).copied().unwrap_or(f64::NAN);
        let (low, high) = (at(place.floor()), at(place.ceil()));
        (low + (high - low) * place.fract()).max(1.0).min(most)
    };
    along_axis(0, rows.into_iter().map(threshold).collect(), x)
}

/// These numbers along one axis, with 1 for the others: `[1, C, 1, 1]` for axis 1.
fn along_axis(axis: usize, values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    if let Some(size) = shape.get_mut(axis) {
        *size = values.len();
    }
    let values = Tensor::from_vec(values, shape, &Device::Cpu)?;
    Ok(values.to_dtype(like.dtype())?.to_device(like.device())?)
}

fn check_range(low: f64, high: f64) -> Result<()> {
    require(
        low < high,
        "the upper end of a clipping range",
        high,
        "a number above the lower end",
    )
}
