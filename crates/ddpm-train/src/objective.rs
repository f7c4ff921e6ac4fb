//! Algorithm 1, lines 2 to 5: what the network sees, what it should have said, and how wrong it was.

use candle_core::{Device, Tensor};
use ddpm_core::{Loss, Prediction, Schedule, Timestep, Variance, Weighting, q_sample};
use ddpm_kernels::upload;

use crate::settings::{
    DiffusionSettings, LossKind, PredictionKind, ScheduleKind, VarianceKind, WeightingKind,
};
use crate::{Error, Result};

/// The training objective: schedule, prediction, loss and weighting together.
#[derive(Clone, Debug)]
pub struct Objective {
    /// The noise schedule.
    pub schedule: Schedule,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The variance of the ancestral sampler, which training itself does not need.
    pub variance: Variance,
    /// The distance between prediction and target.
    pub loss: Loss,
    /// How much each t counts.
    weighting: Weighting,
}

/// Images with the t and the noise they are trained at.
#[derive(Clone, Debug)]
pub struct Examples {
    /// `[B, C, H, W]`, in [-1, 1] or normalised per channel.
    pub x_0: Tensor,
    /// A timestep for each image.
    pub t: Vec<Timestep>,
    /// Standard normal noise, `[B, C, H, W]`.
    pub eps: Tensor,
}

impl Examples {
    /// The same on a device; nobody waits for the copy.
    ///
    /// # Errors
    /// The device has no room.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            x_0: upload(&self.x_0, device)?,
            t: self.t.clone(),
            eps: upload(&self.eps, device)?,
        })
    }
}

impl Objective {
    /// Builds the objective that the settings describe.
    ///
    /// # Errors
    /// The schedule refuses its numbers, or a weight is not finite; the message names the key.
    pub fn new(d: &DiffusionSettings) -> Result<Self> {
        let schedule = schedule(d).map_err(|e| wrong("diffusion.schedule", e.to_string()))?;
        let prediction = match d.prediction {
            PredictionKind::Noise => Prediction::Noise,
            PredictionKind::Original => Prediction::Original,
            PredictionKind::Velocity => Prediction::Velocity,
        };
        if schedule.alpha_bar(schedule.last()) == 0.0 && d.prediction == PredictionKind::Noise {
            let problem = "cannot be `noise` with this schedule: nothing of the image is left in x_T; use `velocity`";
            return Err(wrong("diffusion.prediction", problem.into()));
        }
        let gamma = d.weighting_gamma;
        let weighting = match d.weighting {
            WeightingKind::Uniform => Weighting::Uniform,
            WeightingKind::Snr => Weighting::Snr,
            WeightingKind::MinSnr => Weighting::MinSnr {
                gamma: gamma.unwrap_or(5.0),
            },
            WeightingKind::P2 => Weighting::P2 {
                k: d.weighting_k.unwrap_or(1.0),
                gamma: gamma.unwrap_or(1.0),
            },
        };
        for t in schedule.timesteps() {
            let weight = weighting.weight(&schedule, prediction, t);
            if !weight.is_finite() {
                let problem = format!("gives {weight} at t = {t} of this schedule");
                return Err(wrong("diffusion.weighting", problem));
            }
        }
        let variance = match d.variance {
            VarianceKind::FixedLarge => Variance::FixedLarge,
            VarianceKind::FixedSmall => Variance::FixedSmall,
        };
        let loss = match d.loss {
            LossKind::Mse => Loss::Mse,
            LossKind::L1 => Loss::L1,
            LossKind::Huber => Loss::Huber {
                delta: d.huber_delta.unwrap_or(1.0),
            },
        };
        Ok(Self {
            schedule,
            prediction,
            variance,
            loss,
            weighting,
        })
    }

    /// x_t of each image (equation 4).
    pub fn x_t(&self, examples: &Examples) -> Result<Tensor> {
        Ok(q_sample(
            &self.schedule,
            &examples.x_0,
            &examples.t,
            &examples.eps,
        )?)
    }

    /// The weighted loss of each image, `[B]`, through which gradients flow to `output`.
    ///
    /// # Shapes
    /// `x_t`, `output`: `[B, C, H, W]`.
    pub fn per_image(&self, examples: &Examples, x_t: &Tensor, output: &Tensor) -> Result<Tensor> {
        let Examples { x_0, t, eps } = examples;
        let target = self.prediction.target(&self.schedule, x_0, x_t, t, eps)?;
        let loss = self.loss.per_image(output, &target)?; // [B]
        let weight = |t: &Timestep| {
            let weight = self.weighting.weight(&self.schedule, self.prediction, *t);
            weight as f32
        };
        let weights: Vec<f32> = t.iter().map(weight).collect();
        if weights.iter().all(|w| *w == 1.0) {
            return Ok(loss);
        }
        Ok(loss.mul(&Tensor::new(weights, loss.device())?)?)
    }

    /// What the network is told about the time of each image.
    pub fn network_times(&self, t: &[Timestep]) -> Vec<f64> {
        t.iter().map(|&t| self.schedule.network_time(t)).collect()
    }

    /// Which quarter of 1..=T a timestep lies in, 0..=3.
    pub fn quartile(&self, t: Timestep) -> usize {
        4 * t.previous().map_or(0, Timestep::get) / self.schedule.steps()
    }
}

fn schedule(d: &DiffusionSettings) -> ddpm_core::Result<Schedule> {
    let (steps, beta_1, beta_t) = (
        d.timesteps,
        d.beta_start.unwrap_or(1e-4),
        d.beta_end.unwrap_or(0.02),
    );
    let schedule = match d.schedule {
        ScheduleKind::Linear => Schedule::linear(steps, beta_1, beta_t),
        ScheduleKind::LinearScaled => Schedule::linear_scaled(steps),
        ScheduleKind::ScaledLinear => Schedule::scaled_linear(steps, beta_1, beta_t),
        ScheduleKind::Quadratic => Schedule::quadratic(steps, beta_1, beta_t),
        ScheduleKind::Cosine => Schedule::cosine(steps),
        ScheduleKind::Sigmoid => Schedule::sigmoid(steps, beta_1, beta_t),
        ScheduleKind::AlphaBarSigmoid => Schedule::alpha_bar_sigmoid(steps),
        ScheduleKind::Laplace => Schedule::laplace(steps),
        ScheduleKind::Jsd => Schedule::jsd(steps),
        ScheduleKind::Constant => Schedule::constant(steps, beta_t),
        ScheduleKind::WarmUp10 => Schedule::warm_up(steps, beta_1, beta_t, 0.1),
        ScheduleKind::WarmUp50 => Schedule::warm_up(steps, beta_1, beta_t, 0.5),
    }?;
    if d.zero_terminal_snr {
        schedule.rescaled_to_zero_terminal_snr()
    } else {
        Ok(schedule)
    }
}

fn wrong(key: &str, problem: String) -> Error {
    Error::Setting {
        key: key.into(),
        problem,
    }
}
