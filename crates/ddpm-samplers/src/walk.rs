//! The walk: one iterator under all algorithms, which differ only in what they do at a step.

use crate::{Error, Manner, Process, Result};
use candle_core::Tensor;
use ddpm_core::{NoiseSource, Timestep};
use std::vec::IntoIter;

/// A walk of any algorithm: lazily evaluated, one [`Step`] for each step of the schedule; after an error it has ended.
pub struct Walk<'a> {
    /// The steps still to do, in order, each with the time that the network is told.
    left: IntoIter<(usize, f64)>,
    x: Tensor,
    /// Why the walk must not begin; told in place of its first step.
    refusal: Option<Error>,
    rule: Box<Rule<'a>>,
}

/// One step of a walk, done.
#[derive(Clone, Debug)]
pub struct Step {
    /// The step of the walk just done, N, ..., 1 on the way down and 1, ..., N on the way up: the t of the walk's schedule, where it has one.
    pub t: usize,
    /// The network time just used, on the schedule of training; between two of its steps for some walks over [`Levels`](crate::Levels).
    pub time: f64,
    /// The images after the step: `[B, C, H, W]`.
    pub x: Tensor,
    /// What the network took for the clean images at this step, clipped: `[B, C, H, W]`.
    pub x_0_hat: Tensor,
}

/// What an algorithm does with the images x at the step t.
type Rule<'a> = dyn FnMut(&Tensor, usize) -> Result<Moved> + 'a;

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
        let steps = process.schedule.timesteps().rev().collect();
        Walk::on_schedule(process, steps, x_t_last, rule)
    }

    /// From x_0 up to x_T: the steps 1, ..., T.
    pub(crate) fn up(
        process: &'a Process,
        x_0: &Tensor,
        rule: impl FnMut(&Tensor, Timestep) -> Result<Moved> + 'a,
    ) -> Self {
        let steps = process.schedule.timesteps().collect();
        Walk::on_schedule(process, steps, x_0, rule)
    }

    /// Steps of a schedule in the order given.
    fn on_schedule(
        process: &'a Process,
        steps: Vec<Timestep>,
        x: &Tensor,
        mut rule: impl FnMut(&Tensor, Timestep) -> Result<Moved> + 'a,
    ) -> Self {
        let schedule = &process.schedule;
        let numbered = steps.iter().map(|t| (t.get(), schedule.network_time(*t)));
        Walk::over(numbered.collect(), x, move |x, t| {
            rule(x, schedule.timestep(t)?)
        })
    }

    /// Over these steps, each with the time that the network is told.
    pub(crate) fn over(
        steps: Vec<(usize, f64)>,
        x: &Tensor,
        rule: impl FnMut(&Tensor, usize) -> Result<Moved> + 'a,
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

    /// The images where the walk stands: x_T before the first step.
    pub fn images(&self) -> &Tensor {
        &self.x
    }

    /// Goes on from these images instead of its own: `[B, C, H, W]`, at the level where the walk stands.
    pub fn put(&mut self, x: &Tensor) {
        self.x = x.detach();
    }

    /// Does the step t; nothing that is kept or yielded holds a graph.
    fn step(&mut self, t: usize, time: f64) -> Result<Step> {
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
    manner: Manner,
}

impl<'a> Noise<'a> {
    /// Nothing drawn yet.
    pub(crate) fn new(source: &'a mut dyn NoiseSource, manner: Manner) -> Self {
        Noise {
            source,
            draws: 0,
            manner,
        }
    }

    /// mean + sigma z with a fresh standard normal z; where sigma is 0, nothing is drawn, or what diffusers draws is passed over.
    pub(crate) fn around(&mut self, mean: Tensor, sigma: f64) -> Result<Tensor> {
        if sigma == 0.0 {
            if self.manner == Manner::Diffusers {
                self.source.skip(self.draws, &mean)?;
                self.draws += 1;
            }
            return Ok(mean);
        }
        let z = self.draw(&mean)?;
        Ok((mean + (z * sigma)?)?)
    }

    /// Noise of the shape of `x`, checked.
    pub(crate) fn draw(&mut self, x: &Tensor) -> Result<Tensor> {
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

/// How often a walk must be handed noise, given the factor of each of its draws in order: draws of factor 0 are not made, or in
/// diffusers' manner are counted, since those after them are.
pub(crate) fn draws(factors: impl IntoIterator<Item = f64>, manner: Manner) -> usize {
    let mut last = 0;
    let mut made = 0;
    for (place, factor) in factors.into_iter().enumerate() {
        if factor != 0.0 {
            made += 1;
            last = place + 1;
        }
    }
    match manner {
        Manner::Paper => made,
        Manner::Diffusers => last,
    }
}
