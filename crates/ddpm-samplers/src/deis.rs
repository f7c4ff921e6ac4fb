//! DEIS: exponential integrators whose noise is a polynomial in log rho (Zhang and Chen 2022).

use crate::error::require;
use crate::level::{along_all, straight};
use crate::{Levels, Walk};
use candle_core::Tensor;
use ddpm_core::Denoiser;

/// Walks down the levels along the polynomial in ln rho, rho = sigma, through the latest `order` noises (Zhang and Chen 2022, section
/// 3.4, "rho AB" in log space): diffusers' `DEISMultistepScheduler` with `solver_type: logrho`.
///
/// With `lower_order_final` the last two steps of a walk of fewer than 15 have at most order 2 and 1; a step to the clean image
/// always has order 1. Draws no noise. When `order` is not in 1..=3, the first step says so.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn deis<'a>(
    levels: &'a Levels,
    order: usize,
    lower_order_final: bool,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
) -> Walk<'a> {
    let mut latest: Vec<Tensor> = Vec::new();
    let n = levels.steps();
    let walk = levels.walk(denoiser, x_t_last, move |x, guess, i| {
        latest.insert(0, guess.eps_hat.detach());
        latest.truncate(order);
        let (from, to) = levels.step(i);
        let left = n - i;
        let most = match lower_order_final && n < 15 && left < 3 {
            true => order.min(left),
            false => order,
        };
        let known = if to.is_clean() {
            1
        } else {
            most.min(latest.len())
        };
        match known {
            1 => straight(x, &guess.x_0_hat, (from, to), to.sigma() / from.sigma()),
            _ => along_all(x, &latest[..known], (from, to), |k| {
                weight(levels, i, known, k)
            }),
        }
    });
    walk.provided(require(
        (1..=3).contains(&order),
        "the order of DEIS",
        order as f64,
        "1, 2 or 3",
    ))
}

/// The integral over step i, in rho, of Lagrange's polynomial in u = ln rho that is 1 at u_{i-k} and 0 at the other `known` latest
/// levels (equation 15 of Zhang and Chen 2022): that of p(u) e^u du, which is e^u (p - p' + p'').
fn weight(levels: &Levels, i: usize, known: usize, k: usize) -> f64 {
    let u = |back: usize| levels.level(i - back).sigma().ln();
    let others: Vec<f64> = (0..known).filter(|&j| j != k).map(u).collect();
    let scale: f64 = others.iter().map(|other| u(k) - other).product();
    let integral = |at: f64| {
        let (p, slope, bend) = match others.as_slice() {
            [a] => (at - a, 1.0, 0.0),
            [a, b] => ((at - a) * (at - b), 2.0 * at - a - b, 2.0),
            _ => (1.0, 0.0, 0.0),
        };
        at.exp() * (p - slope + bend) / scale
    };
    integral(levels.level(i + 1).sigma().ln()) - integral(u(0))
}
