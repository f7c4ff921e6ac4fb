//! DDIM backwards: from an image to the x_T that DDIM with eta = 0 would turn into it.

use crate::process::{Process, Step};
use crate::{Error, Result};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Prediction};

/// Walks from x_0 to x_T by equation 12 of Song et al. 2021 with sigma = 0, solved for x_t with the noise of x_{t-1}
/// (section 4.3 there).
///
/// The network sees x_{t-1} with the time of t, as diffusers' `DDIMInverseScheduler` does; the noise in its answer is
/// read at the level of x_{t-1} for v, as there, and at the level of t for x_0 and posterior means, since a clean image holds
/// no noise to tell. More steps make the way back more exact; clipping makes it less so.
///
/// # Shapes
/// `x_0`: `[B, C, H, W]`.
pub fn ddim_inversion<'a>(
    process: &'a Process,
    denoiser: &'a dyn Denoiser,
    x_0: &Tensor,
) -> DdimInversion<'a> {
    ddim_inversion_with(process, 1.0, denoiser, x_0)
}

/// [`ddim_inversion`] from images at the level `alpha_bar_start`, in (0, 1]: the counterpart of
/// [`DdimSettings::alpha_bar_end`](crate::DdimSettings::alpha_bar_end).
pub fn ddim_inversion_with<'a>(
    process: &'a Process,
    alpha_bar_start: f64,
    denoiser: &'a dyn Denoiser,
    x_0: &Tensor,
) -> DdimInversion<'a> {
    DdimInversion {
        process,
        alpha_bar_start,
        denoiser,
        x: x_0.detach(),
        done: 0,
        failed: false,
    }
}

/// The iterator that [`ddim_inversion`] returns.
pub struct DdimInversion<'a> {
    process: &'a Process,
    alpha_bar_start: f64,
    denoiser: &'a dyn Denoiser,
    x: Tensor,
    done: usize,
    failed: bool,
}

impl DdimInversion<'_> {
    fn step(&mut self) -> Result<Step> {
        if !(self.alpha_bar_start > 0.0 && self.alpha_bar_start <= 1.0) {
            let (name, value) = ("alpha_bar_start", self.alpha_bar_start);
            return Err(Error::Setting {
                name,
                value,
                expected: "a number in (0, 1]",
            });
        }
        let Process {
            schedule,
            prediction,
            clip,
        } = self.process;
        let t = schedule.timestep(self.done + 1)?;
        let answer = self.process.ask(self.denoiser, &self.x, t)?;
        let before = t
            .previous()
            .map_or(self.alpha_bar_start, |t| schedule.alpha_bar(t));
        let (signal, noise) = (before.sqrt(), (1.0 - before).sqrt());
        let eps = match prediction {
            Prediction::Velocity => ((answer.output * signal)? + (&self.x * noise)?)?,
            _ => prediction.eps_hat(schedule, &self.x, &answer.t, &answer.output)?,
        };
        // Equation 4 of Ho et al. 2020 at the level of x_{t-1}, solved for x_0.
        let x_0_hat = ((&self.x - (&eps * noise)?)? / signal)?;
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
