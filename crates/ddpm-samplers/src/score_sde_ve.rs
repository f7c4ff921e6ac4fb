//! Predictor and corrector for the variance exploding SDE: Song et al. 2021, "Score-based generative modeling", algorithm 2.

use crate::level::Level;
use crate::walk::{Moved, Noise};
use crate::{Levels, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource};

/// Walks down the levels by ancestral steps of the variance exploding SDE, each after `corrections` steps of Langevin's dynamics with
/// the signal-to-noise ratio `snr` (Song et al. 2021, algorithms 2 and 4): diffusers' `ScoreSdeVeScheduler`.
///
/// Each step asks the network once more than there are corrections, and draws noise as often. The last step's noise is drawn and left
/// away, as in diffusers' pipeline.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn score_sde_ve<'a>(
    levels: &'a Levels,
    snr: f64,
    corrections: usize,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let mut noise = Noise::new(noise, levels.manner());
    levels.walk_unasked(x_t_last, move |x, i| {
        let (from, to) = levels.step(i);
        let mut x = x.clone();
        for _ in 0..corrections {
            let score = score(&levels.guess(denoiser, &x, i)?.eps_hat, from)?;
            let z = noise.draw(&x)?;
            let step = step_size(&score, &z, snr)?;
            // Everything at the variance exploding scale; the images are back at theirs at once.
            let moved = ((x / from.signal)? + score.broadcast_mul(&step)?)?;
            let kick = z.broadcast_mul(&(&step * 2.0)?.sqrt()?)?;
            x = ((moved + kick)? * from.signal)?;
        }
        let guess = levels.guess(denoiser, &x, i)?;
        let fall = from.sigma().powi(2) - to.sigma().powi(2);
        let moved = ((x / from.signal)? + (score(&guess.eps_hat, from)? * fall)?)?;
        let sigma = if i + 1 == levels.steps() {
            0.0
        } else {
            fall.sqrt()
        };
        let x = (noise.around(moved, sigma)? * to.signal)?;
        Ok(Moved {
            x,
            x_0_hat: guess.x_0_hat,
        })
    })
}

/// The score of the images at this level: -eps / sigma.
fn score(eps: &Tensor, level: Level) -> Result<Tensor> {
    Ok((eps * (-1.0 / level.sigma()))?)
}

/// 2 (snr |z| / |score|)^2 with the means of both norms over the batch (Song et al. 2021, algorithm 4): `[1, 1, 1, 1]`.
fn step_size(score: &Tensor, z: &Tensor, snr: f64) -> Result<Tensor> {
    let norm = |x: &Tensor| -> Result<Tensor> {
        let squares = x.sqr()?.flatten_from(1)?.sum(1)?;
        Ok(squares.sqrt()?.mean_all()?)
    };
    let ratio = (norm(z)? / norm(score)?)?;
    let step = ((ratio * snr)?.sqr()? * 2.0)?;
    Ok(step.reshape(vec![1; z.rank()])?)
}

/// The noise that each draw adds, in order; that of a correction depends on the network.
pub(crate) fn sigmas(levels: &Levels, corrections: usize) -> Vec<f64> {
    let steps = levels.first()..levels.steps();
    let of_step = steps.flat_map(|i| {
        let last = if i + 1 == levels.steps() { 0.0 } else { 1.0 };
        std::iter::repeat_n(1.0, corrections).chain([last])
    });
    of_step.collect()
}
