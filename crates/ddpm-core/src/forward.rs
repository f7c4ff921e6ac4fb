//! The forward process: q(x_t | x_{t-1}) one step at a time, and q(x_t | x_0) in closed form.

use crate::mix::{Term, mix};
use crate::{Result, Schedule, Timestep};
use candle_core::Tensor;

/// One step of the forward process, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps
/// (equation 2 of Ho et al. 2020).
///
/// # Shapes
/// `x_previous` (x_{t-1}) and `eps`: `[B, ...]`; `t`: one for every image. Returns x_t: `[B, ...]`.
///
/// # Errors
/// When the shapes differ, or `t` does not fit the batch or the schedule.
pub fn q_step(
    schedule: &Schedule,
    x_previous: &Tensor,
    t: &[Timestep],
    eps: &Tensor,
) -> Result<Tensor> {
    mix(
        schedule,
        t,
        Term {
            name: "x_{t-1}",
            tensor: x_previous,
            coefficient: &|t| schedule.alpha(t).sqrt(),
        },
        Term {
            name: "eps",
            tensor: eps,
            coefficient: &|t| schedule.beta(t).sqrt(),
        },
    )
}

/// Draws x_t from q(x_t | x_0) with the given noise, x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) eps
/// (equation 4 of Ho et al. 2020).
///
/// # Shapes
/// `x_0` and `eps` (standard normal): `[B, ...]`; `t`: one for every image. Returns x_t: `[B, ...]`.
///
/// # Errors
/// When the shapes differ, or `t` does not fit the batch or the schedule.
pub fn q_sample(schedule: &Schedule, x_0: &Tensor, t: &[Timestep], eps: &Tensor) -> Result<Tensor> {
    mix(
        schedule,
        t,
        Term {
            name: "x_0",
            tensor: x_0,
            coefficient: &|t| schedule.alpha_bar(t).sqrt(),
        },
        Term {
            name: "eps",
            tensor: eps,
            coefficient: &|t| (1.0 - schedule.alpha_bar(t)).sqrt(),
        },
    )
}
