//! Ancestral sampling: algorithm 2 of Ho et al. 2020, through x_0-hat.

use crate::Result;
use crate::process::{Process, Step, draw};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource, Timestep, Variance, q_posterior_mean};

/// Walks from x_T to x_0 by x_{t-1} = mu-tilde_t(x_t, x_0-hat) + sigma_t z (algorithm 2 of Ho et al. 2020, equations 7 and 15).
///
/// One path at every step: output of the network -> x_0-hat -> clip -> posterior mean -> noise. The last step draws no noise.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn ancestral<'a>(
    process: &'a Process,
    variance: Variance,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Ancestral<'a> {
    let next = Some(process.schedule.last());
    Ancestral {
        process,
        variance,
        denoiser,
        noise,
        draws: 0,
        x: x_t_last.detach(),
        next,
    }
}

/// The iterator that [`ancestral`] returns.
pub struct Ancestral<'a> {
    process: &'a Process,
    variance: Variance,
    denoiser: &'a dyn Denoiser,
    noise: &'a mut dyn NoiseSource,
    draws: usize,
    x: Tensor,
    /// The step to do next; None when done or after an error.
    next: Option<Timestep>,
}

impl Ancestral<'_> {
    fn step(&mut self, t: Timestep) -> Result<Step> {
        let Process {
            schedule,
            prediction,
            clip,
        } = self.process;
        let answer = self.process.ask(self.denoiser, &self.x, t)?;
        let x_0_hat = prediction.x_0_hat(schedule, &self.x, &answer.t, &answer.output)?;
        let x_0_hat = clip.apply(&x_0_hat)?;
        let mean = q_posterior_mean(schedule, &x_0_hat, &self.x, &answer.t)?;
        let x = match t.previous() {
            Some(_) => {
                let z = draw(self.noise, &mut self.draws, &self.x)?;
                (mean + (z * self.variance.at(schedule, t).sqrt())?)?
            }
            None => mean,
        };
        self.x = x.detach();
        Ok(Step {
            t,
            time: answer.time,
            x: self.x.clone(),
            x_0_hat: x_0_hat.detach(),
        })
    }
}

impl Iterator for Ancestral<'_> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        let t = self.next.take()?;
        let step = self.step(t);
        if step.is_ok() {
            self.next = t.previous();
        }
        Some(step)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.next.map_or(0, Timestep::get);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Ancestral<'_> {}
