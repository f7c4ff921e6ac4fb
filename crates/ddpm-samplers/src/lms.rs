//! Linear multistep along the probability flow: Adams and Bashforth's method on uneven levels, `sample_lms` of Crowson's k-diffusion.

use crate::error::require;
use crate::level::{along_all, straight};
use crate::{Levels, Manner, Walk};
use candle_core::Tensor;
use ddpm_core::Denoiser;

/// Walks down the levels along the polynomial in sigma through the latest `order` noises: diffusers' `LMSDiscreteScheduler`, whose
/// order is 4.
///
/// The first steps have fewer answers, and the order that they allow. Draws no noise. When `order` is not in 1..=4, the first step
/// says so.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn lms<'a>(
    levels: &'a Levels,
    order: usize,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
) -> Walk<'a> {
    let mut latest: Vec<Tensor> = Vec::new();
    let walk = levels.walk(denoiser, x_t_last, move |x, guess, i| {
        latest.insert(0, guess.eps_hat.detach());
        latest.truncate(order);
        // diffusers' walk that begins in the middle takes the weights of a full set of answers for those it has.
        let known = match levels.manner() {
            Manner::Paper => latest.len(),
            Manner::Diffusers => order.min(i + 1),
        };
        let (from, to) = levels.step(i);
        match known {
            1 => straight(x, &guess.x_0_hat, (from, to), to.sigma() / from.sigma()),
            _ => along_all(x, &latest, (from, to), |k| weight(levels, i, known, k)),
        }
    });
    walk.provided(require(
        (1..=4).contains(&order),
        "the order of LMS",
        order as f64,
        "1, 2, 3 or 4",
    ))
}

/// The integral over step i of Lagrange's polynomial that is 1 at sigma_{i-k} and 0 at the other `known` latest levels: at most cubic,
/// for which Gauss' rule of two points is exact.
fn weight(levels: &Levels, i: usize, known: usize, k: usize) -> f64 {
    let sigma = |back: usize| levels.level(i - back).sigma();
    let (from, to) = (sigma(0), levels.level(i + 1).sigma());
    let basis = |tau: f64| -> f64 {
        let others = (0..known).filter(|&j| j != k);
        others
            .map(|j| (tau - sigma(j)) / (sigma(k) - sigma(j)))
            .product()
    };
    let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
    let point = half / 3f64.sqrt();
    half * (basis(middle - point) + basis(middle + point))
}
