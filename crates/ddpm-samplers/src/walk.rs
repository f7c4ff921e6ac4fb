//! The walk: one iterator under all algorithms, which differ only in what they do at a step.

use crate::{Error, Process, Result};
use candle_core::Tensor;
use ddpm_core::{NoiseSource, Schedule, Timestep};
use std::vec::IntoIter;

/// A walk of any algorithm: lazily evaluated, one [`Step`] for each step of the schedule; after an error it has ended.
pub struct Walk<'a> {
    /// The steps still to do, in order, each with the time that the network is told.
    left: IntoIter<(Timestep, f64)>,
    x: Tensor,
    /// Why the walk must not begin; told in place of its first step.
    refusal: Option<Error>,
    rule: Box<Rule<'a>>,
}

/// One step of a walk, done.
#[derive(Clone, Debug)]
pub struct Step {
    /// The step of the walk's schedule just done; x is now at the level before it, or after it for an inversion.
    pub t: Timestep,
    /// The network time just used, on the schedule of training; between two of its steps for some walks over [`Levels`](crate::Levels).
    pub time: f64,
    /// The images after the step: `[B, C, H, W]`.
    pub x: Tensor,
    /// What the network took for the clean images at this step, clipped: `[B, C, H, W]`.
    pub x_0_hat: Tensor,
}

/// What an algorithm does with the images x at the step t.
type Rule<'a> = dyn FnMut(&Tensor, Timestep) -> Result<Moved> + 'a;

/// What an algorithm made of x, each `[B, C, H, W]` as in [`Step`].
pub(crate) struct Moved {
    pub(crate) x: Tensor,
    pub(crate) x_0_hat: Tensor,
}

impl<'a> Walk<'a> {
    /// From x_T down to x_0: the steps T, ..., 1.
    pub(crate) fn down(
        process: &'a Process,
        x_t_last: &Tensor,
        rule: impl FnMut(&Tensor, Timestep) -> Result<Moved> + 'a,
    ) -> Self {
        let steps = process.schedule.timesteps().rev();
        Walk::over(with_times(&process.schedule, steps), x_t_last, rule)
    }

    /// From x_0 up to x_T: the steps 1, ..., T.
    pub(crate) fn up(
        process: &'a Process,
        x_0: &Tensor,
        rule: impl FnMut(&Tensor, Timestep) -> Result<Moved> + 'a,
    ) -> Self {
        let steps = process.schedule.timesteps();
        Walk::over(with_times(&process.schedule, steps), x_0, rule)
    }

    /// Over these steps, each with the time that the network is told.
    pub(crate) fn over(
        steps: Vec<(Timestep, f64)>,
        x: &Tensor,
        rule: impl FnMut(&Tensor, Timestep) -> Result<Moved> + 'a,
    ) -> Self {
        Walk {
            left: steps.into_iter(),
            x: x.detach(),
            refusal: None,
            rule: Box::new(rule),
        }
    }

    /// The same walk if its settings are possible; else one whose first step is their error.
    pub(crate) fn provided(mut self, settings: Result<()>) -> Self {
        self.refusal = settings.err();
        self
    }

    /// Does the step t; nothing that is kept or yielded holds a graph.
    fn step(&mut self, t: Timestep, time: f64) -> Result<Step> {
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        let moved = (self.rule)(&self.x, t)?;
        self.x = moved.x.detach();
        Ok(Step {
            t,
            time,
            x: self.x.clone(),
            x_0_hat: moved.x_0_hat.detach(),
        })
    }
}

fn with_times(schedule: &Schedule, steps: impl Iterator<Item = Timestep>) -> Vec<(Timestep, f64)> {
    steps.map(|t| (t, schedule.network_time(t))).collect()
}

impl Iterator for Walk<'_> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        let (t, time) = self.left.next()?;
        let step = self.step(t, time);
        if step.is_err() {
            self.left = IntoIter::default();
        }
        Some(step)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.left.size_hint()
    }
}

impl ExactSizeIterator for Walk<'_> {}

/// The noise of one walk, draw after draw.
pub(crate) struct Noise<'a> {
    source: &'a mut dyn NoiseSource,
    draws: usize,
}

impl<'a> Noise<'a> {
    /// Nothing drawn yet.
    pub(crate) fn new(source: &'a mut dyn NoiseSource) -> Self {
        Noise { source, draws: 0 }
    }

    /// mean + sigma z with a fresh standard normal z; where sigma is 0, nothing is drawn.
    pub(crate) fn around(&mut self, mean: Tensor, sigma: f64) -> Result<Tensor> {
        if sigma == 0.0 {
            return Ok(mean);
        }
        let z = self.draw(&mean)?;
        Ok((mean + (z * sigma)?)?)
    }

    /// Noise of the shape of `x`, checked.
    fn draw(&mut self, x: &Tensor) -> Result<Tensor> {
        let z = self.source.draw(self.draws, x)?;
        if z.dims() != x.dims() {
            let (got, expected) = (z.dims().to_vec(), x.dims().to_vec());
            return Err(Error::NoiseShape {
                draw: self.draws,
                got,
                expected,
            });
        }
        self.draws += 1;
        Ok(z)
    }
}
