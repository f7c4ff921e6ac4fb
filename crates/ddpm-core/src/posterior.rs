//! The posterior q(x_{t-1} | x_t, x_0), equations 6 and 7, in terms of x_0 and in terms of the noise.
//!
//! Its variance beta-tilde_t follows from the schedule alone: [`Schedule::beta_tilde`].

use crate::mix::{Term, mix};
use crate::{Error, Result, Schedule, Timestep};
use candle_core::Tensor;

/// The posterior mean mu-tilde_t(x_t, x_0) (equation 7 of Ho et al. 2020):
/// sqrt(alpha-bar_{t-1}) beta_t / (1 - alpha-bar_t) x_0 + sqrt(alpha_t) (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) x_t.
///
/// At t = 1 it is x_0.
///
/// # Shapes
/// `x_0` and `x_t`: `[B, ...]`; `t`: one for every image. Returns `[B, ...]`.
///
/// # Errors
/// When the shapes differ, or `t` does not fit the batch or the schedule.
pub fn q_posterior_mean(
    schedule: &Schedule,
    x_0: &Tensor,
    x_t: &Tensor,
    t: &[Timestep],
) -> Result<Tensor> {
    mix(
        schedule,
        t,
        Term {
            name: "x_0",
            tensor: x_0,
            coefficient: &|t| posterior_weights(schedule, t).0,
        },
        Term {
            name: "x_t",
            tensor: x_t,
            coefficient: &|t| posterior_weights(schedule, t).1,
        },
    )
}

/// The posterior mean in terms of the noise, (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t)
/// (equations 10 and 11 of Ho et al. 2020).
///
/// The same as [`q_posterior_mean`] where x_0 is what `x_t` and `eps` imply. Prefer that one for sampling: x_0 can be
/// clipped, and here an error of `eps` is multiplied by beta_t / sqrt(alpha_t (1 - alpha-bar_t)), 32 at the end of the cosine schedule.
///
/// # Shapes
/// `x_t` and `eps`: `[B, ...]`; `t`: one for every image. Returns `[B, ...]`.
///
/// # Errors
/// Where beta_t = 1, as after zero-terminal-SNR rescaling; when the shapes differ, or `t` does not fit the batch or the schedule.
pub fn q_posterior_mean_from_noise(
    schedule: &Schedule,
    x_t: &Tensor,
    eps: &Tensor,
    t: &[Timestep],
) -> Result<Tensor> {
    if let Some(t) = t.iter().find(|&&t| schedule.alpha_bar(t) == 0.0) {
        return Err(Error::ZeroSnr {
            quantity: "the posterior mean from noise",
            t: t.get(),
            instead: "use q_posterior_mean with x_0",
        });
    }
    let root = |t| schedule.alpha(t).sqrt();
    mix(
        schedule,
        t,
        Term {
            name: "x_t",
            tensor: x_t,
            coefficient: &|t| 1.0 / root(t),
        },
        Term {
            name: "eps",
            tensor: eps,
            coefficient: &|t| -schedule.beta(t) / ((1.0 - schedule.alpha_bar(t)).sqrt() * root(t)),
        },
    )
}

/// The weights of x_0 and of x_t in the posterior mean (equation 7 of Ho et al. 2020); (1, 0) at t = 1.
pub fn posterior_weights(schedule: &Schedule, t: Timestep) -> (f64, f64) {
    let noise = 1.0 - schedule.alpha_bar(t);
    let of_x_0 = match t.previous() {
        Some(_) => schedule.alpha_bar_previous(t).sqrt() * schedule.beta(t) / noise,
        None => 1.0,
    };
    let of_x_t = schedule.alpha(t).sqrt() * (1.0 - schedule.alpha_bar_previous(t)) / noise;
    (of_x_0, of_x_t)
}
