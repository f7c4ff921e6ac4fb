//! The variational bound on -log p(x_0), term by term in closed form, and the discretised decoder that ends it.
//!
//! L = L_T + sum over t > 1 of L_{t-1} + L_0 (equation 5 of Ho et al. 2020). Every function returns one number for every
//! image, in bits per dimension, f64.

use crate::mix::{check_times, in_f64, mean_per_image, per_image, same_shape};
use crate::posterior::q_posterior_mean;
use crate::{Result, Schedule, Timestep, Variance};
use candle_core::Tensor;
use std::f64::consts::{LN_2, PI};

/// L_T = KL(q(x_T | x_0) || N(0, I)), which no training changes (equation 5 of Ho et al. 2020).
///
/// # Shapes
/// `x_0`: `[B, ...]`. Returns `[B]` in bits per dimension, f64.
///
/// # Errors
/// When a tensor operation fails.
pub fn prior_term(schedule: &Schedule, x_0: &Tensor) -> Result<Tensor> {
    let alpha_bar = schedule.alpha_bar(schedule.last());
    let mean = (in_f64(x_0)? * alpha_bar.sqrt())?;
    let log_variance = mean.affine(0.0, (-alpha_bar).ln_1p())?;
    let zero = mean.zeros_like()?;
    bits_per_dim(&normal_kl(&mean, &log_variance, &zero, &zero)?)
}

/// The term of step t: L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 1, L_0 = -log p(x_0 | x_1) for t = 1
/// (equation 5 of Ho et al. 2020), where p is the Gaussian with the posterior mean of `x_0_hat` and the given variance.
///
/// # Shapes
/// `x_0`: `[B, ...]` in [-1, 1], 8-bit values; `x_t`, drawn by [`q_sample`](crate::q_sample); `x_0_hat`, what the network
/// makes of it; `t`: one for every image. Returns `[B]` in bits per dimension, f64.
///
/// # Errors
/// When the shapes differ, or `t` does not fit the batch or the schedule.
pub fn step_term(
    schedule: &Schedule,
    variance: Variance,
    x_0: &Tensor,
    x_t: &Tensor,
    t: &[Timestep],
    x_0_hat: &Tensor,
) -> Result<Tensor> {
    let like = in_f64(x_0)?;
    check_times(schedule, t, &like)?;
    let log_variances = per_image(
        t.iter().map(|&t| variance.of_likelihood(schedule, t).ln()),
        &like,
    )?;
    let log_variances = log_variances.broadcast_as(like.dims())?;
    let mean = q_posterior_mean(schedule, &in_f64(x_0_hat)?, &in_f64(x_t)?, t)?;
    step_term_of(schedule, x_0, x_t, t, &mean, &log_variances)
}

/// [`step_term`] for any Gaussian p(x_{t-1} | x_t), also one with a learned variance
/// ([`log_variance_between`](crate::log_variance_between)).
///
/// # Shapes
/// `x_0`, `x_t`, and `mean` and `log_variance` of p(x_{t-1} | x_t): `[B, ...]`; `t`: one for every image.
/// Returns `[B]` in bits per dimension, f64.
///
/// # Errors
/// When the shapes differ, or `t` does not fit the batch or the schedule.
pub fn step_term_of(
    schedule: &Schedule,
    x_0: &Tensor,
    x_t: &Tensor,
    t: &[Timestep],
    mean: &Tensor,
    log_variance: &Tensor,
) -> Result<Tensor> {
    let (x_0, x_t) = (in_f64(x_0)?, in_f64(x_t)?);
    let (mean, log_variance) = (in_f64(mean)?, in_f64(log_variance)?);
    check_times(schedule, t, &x_0)?;
    same_shape("the mean of p", &mean, "x_0", &x_0)?;
    same_shape("the log-variance of p", &log_variance, "x_0", &x_0)?;
    let true_mean = q_posterior_mean(schedule, &x_0, &x_t, t)?;
    let mut terms = Vec::with_capacity(t.len());
    for (i, &t) in t.iter().enumerate() {
        let image = |x: &Tensor| x.narrow(0, i, 1);
        let (mean, log_variance) = (image(&mean)?, image(&log_variance)?);
        let nats = match t.previous() {
            Some(_) => {
                let true_log_variance = log_variance.affine(0.0, schedule.beta_tilde(t).ln())?;
                normal_kl(
                    &image(&true_mean)?,
                    &true_log_variance,
                    &mean,
                    &log_variance,
                )?
            }
            None => decoder_log_likelihood(&image(&x_0)?, &mean, &(log_variance * 0.5)?)?.neg()?,
        };
        terms.push(bits_per_dim(&nats)?);
    }
    Ok(Tensor::cat(&terms, 0)?)
}

/// KL(N(mean_1, exp(log_variance_1)) || N(mean_2, exp(log_variance_2))) of every element, in nats.
///
/// # Shapes
/// All `[B, ...]` alike. Returns the same shape, f64.
///
/// # Errors
/// When the shapes differ.
pub fn normal_kl(
    mean_1: &Tensor,
    log_variance_1: &Tensor,
    mean_2: &Tensor,
    log_variance_2: &Tensor,
) -> Result<Tensor> {
    same_shape("log_variance_1", log_variance_1, "mean_1", mean_1)?;
    same_shape("mean_2", mean_2, "mean_1", mean_1)?;
    same_shape("log_variance_2", log_variance_2, "mean_1", mean_1)?;
    let (mean_1, log_variance_1) = (in_f64(mean_1)?, in_f64(log_variance_1)?);
    let (mean_2, log_variance_2) = (in_f64(mean_2)?, in_f64(log_variance_2)?);
    let difference = (&log_variance_1 - &log_variance_2)?;
    let distance = ((mean_1 - mean_2)?.sqr()? * log_variance_2.neg()?.exp()?)?;
    // exp(d) - 1 - d, which cancels where d is small, but never below the precision of f64.
    let spread = ((difference.exp()? - 1.0)? - &difference)?;
    Ok(((spread + distance)? * 0.5)?)
}

/// log of the probability that a Gaussian falls into the bin of width 2/255 around each 8-bit value of `x_0`, the outermost
/// bins reaching to infinity (equation 13 of Ho et al. 2020), in nats, at least ln 1e-12.
///
/// The normal distribution function is the tanh approximation of Ho's code, so that published bits/dim compare.
///
/// # Shapes
/// `x_0` in [-1, 1], `mean` and `log_scale` (log of the standard deviation): `[B, ...]`. Returns the same shape, f64.
///
/// # Errors
/// When the shapes differ.
pub fn decoder_log_likelihood(x_0: &Tensor, mean: &Tensor, log_scale: &Tensor) -> Result<Tensor> {
    same_shape("mean", mean, "x_0", x_0)?;
    same_shape("log_scale", log_scale, "x_0", x_0)?;
    let (x_0, mean) = (in_f64(x_0)?, in_f64(mean)?);
    let per_scale = in_f64(log_scale)?.neg()?.exp()?;
    let centred = (&x_0 - mean)?;
    let below_upper = normal_cdf(&((&centred + 1.0 / 255.0)? * &per_scale)?)?;
    let above_lower = normal_cdf(&((&centred - 1.0 / 255.0)? * &per_scale)?.neg()?)?;
    let below_lower = above_lower.affine(-1.0, 1.0)?;
    let inside = (&below_upper - below_lower)?;
    let darkest = x_0.lt(-0.999)?;
    let brightest = x_0.gt(0.999)?;
    let probability =
        darkest.where_cond(&below_upper, &brightest.where_cond(&above_lower, &inside)?)?;
    Ok(probability.maximum(1e-12)?.log()?)
}

/// Nats for every element to bits per dimension for every image: `[B, ...]` -> `[B]`, the mean divided by ln 2.
///
/// # Errors
/// When a tensor operation fails.
pub fn bits_per_dim(nats: &Tensor) -> Result<Tensor> {
    Ok((mean_per_image(&in_f64(nats)?)? / LN_2)?)
}

/// The standard normal distribution function, (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 (Page 1977).
fn normal_cdf(x: &Tensor) -> Result<Tensor> {
    let cube = (x.sqr()? * x)?;
    let inner = ((x + (cube * 0.044715)?)? * (2.0 / PI).sqrt())?;
    Ok(inner.tanh()?.affine(0.5, 0.5)?)
}
