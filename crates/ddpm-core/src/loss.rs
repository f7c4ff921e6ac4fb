//! How far the network's output is from its target: one number for every image, and the weight it gets.

use crate::mix::{check_times, mean_per_image, per_image, same_shape};
use crate::{Error, Prediction, Result, Schedule, Timestep};
use candle_core::Tensor;

/// The distance between output and target.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Loss {
    /// The mean of squared errors: L_simple, equation 14 of Ho et al. 2020.
    Mse,
    /// The mean of absolute errors (Chen et al. 2021, WaveGrad).
    L1,
    /// e^2 / 2 for errors up to `delta`, delta (|e| - delta / 2) beyond (Huber 1964).
    Huber {
        /// Where the parabola becomes a line, above 0.
        delta: f64,
    },
}

impl Loss {
    /// The mean loss over the pixels of each image, differentiable.
    ///
    /// # Shapes
    /// `output`, `target`: `[B, ...]`. Returns `[B]`.
    ///
    /// # Errors
    /// When the shapes differ or `delta` is not a positive number.
    pub fn per_image(&self, output: &Tensor, target: &Tensor) -> Result<Tensor> {
        same_shape("the output of the network", output, "the target", target)?;
        let error = (output - target)?;
        match *self {
            Loss::Mse => mean_per_image(&error.sqr()?),
            Loss::L1 => mean_per_image(&error.abs()?),
            Loss::Huber { delta } => mean_per_image(&huber(&error, delta)?),
        }
    }
}

/// How much the loss at each t counts, relative to the mean squared error of the network's own output.
///
/// The weightings are defined for the error of x_0 (or of noise), and then divided by what the same error weighs in the
/// network's own words, so that one weighting means one objective whatever is predicted. With e the error of x_0, the squared
/// errors are SNR e^2 for noise, (SNR + 1) e^2 for v, and w_0^2 e^2 for the posterior mean with w_0 the weight of x_0 in it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Weighting {
    /// 1 for every t and every prediction: L_simple, equation 14 of Ho et al. 2020.
    Uniform,
    /// The error of the noise counts 1, that of x_0 counts SNR_t, that of v SNR_t / (SNR_t + 1):
    /// L_simple of a noise-predicting network, whatever is predicted (Salimans and Ho 2022, section 4).
    Snr,
    /// The error of x_0 counts min(SNR_t, gamma), that of noise min(SNR_t, gamma) / SNR_t, that of v
    /// min(SNR_t, gamma) / (SNR_t + 1) (Hang et al. 2023, section 3.4; gamma = 5).
    MinSnr {
        /// Where the weight stops growing, above 0.
        gamma: f64,
    },
    /// The error of the noise counts 1 / (k + SNR_t)^gamma (Choi et al. 2022, equation 8; k = 1, gamma = 0.5 or 1).
    P2 {
        /// Keeps the weight finite where SNR is 0; above 0.
        k: f64,
        /// How strongly the nearly clean steps are held back; 0 is [`Weighting::Snr`].
        gamma: f64,
    },
}

impl Weighting {
    /// The weight of the loss at t for a network that predicts `prediction`, at least 0.
    ///
    /// It is finite also where SNR_t is 0; the weight of x_0 and of v is 0 there for all but [`Weighting::Uniform`].
    pub fn weight(&self, schedule: &Schedule, prediction: Prediction, t: Timestep) -> f64 {
        let snr = schedule.snr(t);
        // Weights of the error of the noise, which stay finite where SNR = 0.
        let of_noise = match *self {
            Weighting::Uniform => return 1.0,
            Weighting::Snr => 1.0,
            Weighting::MinSnr { gamma } if snr <= gamma => 1.0,
            Weighting::MinSnr { gamma } => gamma / snr,
            Weighting::P2 { k, gamma } => (k + snr).powf(-gamma),
        };
        match prediction {
            Prediction::Noise => of_noise,
            Prediction::Original => of_noise * snr,
            Prediction::Velocity => of_noise * snr / (snr + 1.0),
            Prediction::PosteriorMean => {
                of_noise * snr / crate::posterior::posterior_weights(schedule, t).0.powi(2)
            }
        }
    }

    /// The weight of every image, ready to multiply [`Loss::per_image`]: `[B]`, of the type and on the device of `losses`: `[B]`.
    ///
    /// # Errors
    /// When gamma or k is impossible, or `t` does not fit the batch or the schedule.
    pub fn per_image(
        &self,
        schedule: &Schedule,
        prediction: Prediction,
        t: &[Timestep],
        losses: &Tensor,
    ) -> Result<Tensor> {
        self.check()?;
        check_times(schedule, t, losses)?;
        per_image(
            t.iter().map(|&t| self.weight(schedule, prediction, t)),
            losses,
        )
    }

    /// Fails when gamma or k is impossible; for whoever reads settings.
    ///
    /// # Errors
    /// When min-SNR's gamma or P2's k is not above 0, or P2's gamma is negative.
    pub fn check(&self) -> Result<()> {
        let positive = |owner, name, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::Setting {
                owner,
                name,
                value,
                expected: "a finite number above 0",
            }),
        };
        match *self {
            Weighting::Uniform | Weighting::Snr => Ok(()),
            Weighting::MinSnr { gamma } => positive("min-SNR weighting", "gamma", gamma),
            Weighting::P2 { k, gamma } if gamma >= 0.0 && gamma.is_finite() => {
                positive("P2 weighting", "k", k)
            }
            Weighting::P2 { gamma, .. } => Err(Error::Setting {
                owner: "P2 weighting",
                name: "gamma",
                value: gamma,
                expected: "a finite number of at least 0",
            }),
        }
    }
}

/// With q = min(|e|, delta): q^2 / 2 + delta (|e| - q), which is both branches of Huber's loss.
fn huber(error: &Tensor, delta: f64) -> Result<Tensor> {
    if !(delta > 0.0 && delta.is_finite()) {
        let expected = "a finite number above 0";
        return Err(Error::Setting {
            owner: "Huber loss",
            name: "delta",
            value: delta,
            expected,
        });
    }
    let size = error.abs()?;
    let inner = size.minimum(delta)?;
    Ok(((inner.sqr()? * 0.5)? + ((size - &inner)? * delta)?)?)
}
