//! DDIM backwards: from an image to the x_T that DDIM with eta = 0 would turn into it.

use crate::Result;
use crate::process::{Process, Step};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Prediction, Timestep};

/// Walks from x_0 to x_T by equation 12 of Song et al. 2021 with sigma = 0, solved for x_t with the noise of x_{t-1}
/// (section 4.3 there).
///
/// The network sees x_{t-1} with the time of t, as diffusers' `DDIMInverseScheduler` does; its answer is read at the level of
/// x_{t-1} for noise and v, and at the level of t for x_0 and posterior means, which at the clean image would leave no noise
/// to tell. More steps make the way back more exact; clipping makes it less so.
///
/// # Shapes
/// `x_0`: `[B, C, H, W]`.
pub fn ddim_inversion<'a>(
    process: &'a Process,
    denoiser: &'a dyn Denoiser,
    x_0: &Tensor,
) -> DdimInversion<'a> {
    DdimInversion {
        process,
        denoiser,
        x: x_0.detach(),
        done: 0,
        failed: false,
    }
}

/// The iterator that [`ddim_inversion`] returns.
pub struct DdimInversion<'a> {
    process: &'a Process,
    denoiser: &'a dyn Denoiser,
    x: Tensor,
    done: usize,
    failed: bool,
}

impl DdimInversion<'_> {
    fn step(&mut self) -> Result<Step> {
        let Process {
            schedule,
            prediction,
            clip,
        } = self.process;
        let t = schedule.timestep(self.done + 1)?;
        let answer = self.process.ask(self.denoiser, &self.x, t)?;
        let eps = self.noise(&answer.t, t, &answer.output)?;
        // The clean image seen from x_{t-1}: equation 4 of Ho et al. 2020 solved for x_0.
        let alpha_bar_before = schedule.alpha_bar_previous(t);
        let x_0_hat = match prediction {
            Prediction::Original | Prediction::PosteriorMean => {
                prediction.x_0_hat(schedule, &self.x, &answer.t, &answer.output)?
            }
            _ => {
                ((&self.x - (&eps * (1.0 - alpha_bar_before).sqrt())?)? / alpha_bar_before.sqrt())?
            }
        };
        let x_0_hat = clip.apply(&x_0_hat)?;
        let alpha_bar = schedule.alpha_bar(t);
        let x = ((&x_0_hat * alpha_bar.sqrt())? + (eps * (1.0 - alpha_bar).sqrt())?)?;
        self.x = x.detach();
        self.done += 1;
        Ok(Step {
            t,
            time: answer.time,
            x: self.x.clone(),
            x_0_hat: x_0_hat.detach(),
        })
    }

    /// The noise in x_{t-1}.
    fn noise(&self, times: &[Timestep], t: Timestep, output: &Tensor) -> Result<Tensor> {
        let Process {
            schedule,
            prediction,
            ..
        } = self.process;
        match (prediction, t.previous()) {
            // At the clean image v = eps.
            (Prediction::Velocity, None) => Ok(output.clone()),
            (Prediction::Velocity, Some(before)) => {
                Ok(prediction.eps_hat(schedule, &self.x, &vec![before; times.len()], output)?)
            }
            _ => Ok(prediction.eps_hat(schedule, &self.x, times, output)?),
        }
    }
}

impl Iterator for DdimInversion<'_> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.len() == 0 {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        Some(step)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = if self.failed {
            0
        } else {
            self.process.schedule.steps() - self.done
        };
        (left, Some(left))
    }
}

impl ExactSizeIterator for DdimInversion<'_> {}
