//! What the network predicts, and how each prediction becomes x_0 and noise.

use crate::mix::{Term, check_times, mix, same_shape};
use crate::posterior::{posterior_weights, q_posterior_mean};
use crate::{Error, Result, Schedule, Timestep};
use candle_core::Tensor;

/// What the network is trained to output, given x_t and t.
///
/// All four say the same in other words: from any of them and x_t follow [x_0](Prediction::x_0_hat) and
/// the [noise](Prediction::eps_hat). The one exception is alpha-bar_t = 0 (zero terminal SNR), where x_t is the noise, and to
/// name it says nothing about x_0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Prediction {
    /// The noise eps in x_t (section 3.2 of Ho et al. 2020); diffusers' `epsilon`.
    Noise,
    /// The clean image x_0; diffusers' `sample`.
    Original,
    /// v = sqrt(alpha-bar_t) eps - sqrt(1 - alpha-bar_t) x_0 (Salimans and Ho 2022, section 4); diffusers' `v_prediction`.
    Velocity,
    /// The mean of q(x_{t-1} | x_t, x_0) (equation 8 of Ho et al. 2020); guided-diffusion's `PREVIOUS_X`. diffusers has no name for it.
    PosteriorMean,
}

impl Prediction {
    /// What the network should have output for x_t = [`q_sample`](crate::q_sample)(x_0, t, eps).
    ///
    /// # Shapes
    /// `x_0`, `x_t`, `eps`: `[B, ...]`; `t`: one for every image. Returns `[B, ...]`.
    ///
    /// # Errors
    /// When the shapes differ, or `t` does not fit the batch or the schedule.
    pub fn target(
        self,
        schedule: &Schedule,
        x_0: &Tensor,
        x_t: &Tensor,
        t: &[Timestep],
        eps: &Tensor,
    ) -> Result<Tensor> {
        check_times(schedule, t, x_0)?;
        same_shape("x_t", x_t, "x_0", x_0)?;
        same_shape("eps", eps, "x_0", x_0)?;
        match self {
            Prediction::Noise => Ok(eps.clone()),
            Prediction::Original => Ok(x_0.clone()),
            Prediction::Velocity => velocity(schedule, x_0, t, eps),
            Prediction::PosteriorMean => q_posterior_mean(schedule, x_0, x_t, t),
        }
    }

    /// The clean image that `output` and x_t imply: equation 15 of Ho et al. 2020 for noise,
    /// x_0 = sqrt(alpha-bar_t) x_t - sqrt(1 - alpha-bar_t) v for v, equation 7 solved for x_0 for the posterior mean. Not clipped.
    ///
    /// # Shapes
    /// `x_t`, `output`: `[B, ...]`; `t`: one for every image. Returns `[B, ...]`.
    ///
    /// # Errors
    /// For noise where alpha-bar_t = 0; when the shapes differ, or `t` does not fit the batch or the schedule.
    pub fn x_0_hat(
        self,
        schedule: &Schedule,
        x_t: &Tensor,
        t: &[Timestep],
        output: &Tensor,
    ) -> Result<Tensor> {
        check_times(schedule, t, x_t)?;
        same_shape("the output of the network", output, "x_t", x_t)?;
        if self == Prediction::Original {
            return Ok(output.clone());
        }
        self.check_snr(schedule, t)?;
        weighed(schedule, x_t, t, output, |t| {
            self.x_0_weights(level(schedule, t)).unwrap_or_else(|| {
                let (of_x_0, of_x_t) = posterior_weights(schedule, t);
                (-of_x_t / of_x_0, 1.0 / of_x_0)
            })
        })
    }

    /// The noise that `output` and x_t imply, eps = (x_t - sqrt(alpha-bar_t) x_0) / sqrt(1 - alpha-bar_t)
    /// (equation 4 of Ho et al. 2020 solved for eps).
    ///
    /// # Shapes
    /// `x_t`, `output`: `[B, ...]`; `t`: one for every image. Returns `[B, ...]`.
    ///
    /// # Errors
    /// When the shapes differ, or `t` does not fit the batch or the schedule.
    pub fn eps_hat(
        self,
        schedule: &Schedule,
        x_t: &Tensor,
        t: &[Timestep],
        output: &Tensor,
    ) -> Result<Tensor> {
        match self {
            Prediction::Noise => {
                check_times(schedule, t, x_t)?;
                same_shape("the output of the network", output, "x_t", x_t)?;
                Ok(output.clone())
            }
            Prediction::Original => eps_from_x_0(schedule, x_t, t, output),
            Prediction::Velocity => weighed(schedule, x_t, t, output, |t| {
                let weights = self.eps_weights(level(schedule, t));
                weights.unwrap_or((f64::NAN, f64::NAN))
            }),
            Prediction::PosteriorMean => {
                let x_0 = self.x_0_hat(schedule, x_t, t, output)?;
                eps_from_x_0(schedule, x_t, t, &x_0)
            }
        }
    }

    /// The weights of x and of the output in [x_0-hat](Prediction::x_0_hat) at the level x = signal x_0 + noise eps, given as
    /// (signal, noise); none for the posterior mean, which needs the level before it.
    pub fn x_0_weights(self, (signal, noise): (f64, f64)) -> Option<(f64, f64)> {
        match self {
            Prediction::Noise => Some((1.0 / signal, -noise / signal)),
            Prediction::Original => Some((0.0, 1.0)),
            Prediction::Velocity => Some((signal, -noise)),
            Prediction::PosteriorMean => None,
        }
    }

    /// The weights of x and of the output in the [noise](Prediction::eps_hat) at the level x = signal x_0 + noise eps, given as
    /// (signal, noise); none for the posterior mean, which needs the level before it.
    pub fn eps_weights(self, (signal, noise): (f64, f64)) -> Option<(f64, f64)> {
        match self {
            Prediction::Noise => Some((0.0, 1.0)),
            Prediction::Original => Some((1.0 / noise, -signal / noise)),
            Prediction::Velocity => Some((noise, signal)),
            Prediction::PosteriorMean => None,
        }
    }

    fn check_snr(self, schedule: &Schedule, t: &[Timestep]) -> Result<()> {
        match t
            .iter()
            .find(|&&t| self == Prediction::Noise && schedule.alpha_bar(t) == 0.0)
        {
            None => Ok(()),
            Some(t) => Err(Error::ZeroSnr {
                quantity: "x_0 from predicted noise",
                t: t.get(),
                instead: "train the network to predict v or x_0, or use a schedule without zero terminal SNR",
            }),
        }
    }
}

/// The noise in x_t if `x_0` is the clean image: (x_t - sqrt(alpha-bar_t) x_0) / sqrt(1 - alpha-bar_t)
/// (equation 4 of Ho et al. 2020 solved for eps).
///
/// # Shapes
/// `x_t`, `x_0`: `[B, ...]`; `t`: one for every image. Returns `[B, ...]`.
///
/// # Errors
/// When the shapes differ, or `t` does not fit the batch or the schedule.
pub fn eps_from_x_0(
    schedule: &Schedule,
    x_t: &Tensor,
    t: &[Timestep],
    x_0: &Tensor,
) -> Result<Tensor> {
    mix(
        schedule,
        t,
        Term {
            name: "x_t",
            tensor: x_t,
            coefficient: &|t| 1.0 / root_of_rest(schedule, t),
        },
        Term {
            name: "x_0",
            tensor: x_0,
            coefficient: &|t| -root(schedule, t) / root_of_rest(schedule, t),
        },
    )
}

/// The sum of x_t and the output of the network, each with its weight at t.
fn weighed(
    schedule: &Schedule,
    x_t: &Tensor,
    t: &[Timestep],
    output: &Tensor,
    weights: impl Fn(Timestep) -> (f64, f64),
) -> Result<Tensor> {
    mix(
        schedule,
        t,
        Term {
            name: "x_t",
            tensor: x_t,
            coefficient: &|t| weights(t).0,
        },
        Term {
            name: "the output of the network",
            tensor: output,
            coefficient: &|t| weights(t).1,
        },
    )
}

/// v = sqrt(alpha-bar_t) eps - sqrt(1 - alpha-bar_t) x_0 (Salimans and Ho 2022, section 4).
fn velocity(schedule: &Schedule, x_0: &Tensor, t: &[Timestep], eps: &Tensor) -> Result<Tensor> {
    mix(
        schedule,
        t,
        Term {
            name: "eps",
            tensor: eps,
            coefficient: &|t| root(schedule, t),
        },
        Term {
            name: "x_0",
            tensor: x_0,
            coefficient: &|t| -root_of_rest(schedule, t),
        },
    )
}

/// The level of t as (signal, noise).
fn level(schedule: &Schedule, t: Timestep) -> (f64, f64) {
    (root(schedule, t), root_of_rest(schedule, t))
}

/// sqrt(alpha-bar_t)
fn root(schedule: &Schedule, t: Timestep) -> f64 {
    schedule.alpha_bar(t).sqrt()
}

/// sqrt(1 - alpha-bar_t)
fn root_of_rest(schedule: &Schedule, t: Timestep) -> f64 {
    (1.0 - schedule.alpha_bar(t)).sqrt()
}
