//! Shows a walk, batch after batch, to the film that the result is made of.

use anyhow::Context;
use candle_core::Tensor;
use ddpm_image::{Film, PixelMap};
use ddpm_samplers::Step;

/// A film being exposed; without one, nothing is looked at.
pub(crate) struct Camera<'a> {
    pub(crate) film: Option<Film>,
    /// Steps of the walk.
    steps: usize,
    map: &'a PixelMap,
    /// Steps of this batch that are done.
    moment: usize,
    /// Whether the times that the network is told are those of x_t, falling from T - 1.
    by_time: bool,
}

impl<'a> Camera<'a> {
    pub(crate) fn new(film: Option<Film>, steps: usize, map: &'a PixelMap) -> Self {
        Self {
            film,
            steps,
            map,
            moment: 0,
            by_time: true,
        }
    }

    /// A step was made from `x`.
    pub(crate) fn see(&mut self, step: &Step, x: &Tensor) -> anyhow::Result<()> {
        if self.moment == 0 {
            // A walk of N steps begins at N - 1 or later; some are told the logarithm of a noise level instead.
            self.by_time = step.time.round() + 1.0 >= self.steps as f64;
        }
        let time = match self.by_time {
            true => step.time.round() as usize + 1,
            false => self.steps.saturating_sub(self.moment),
        };
        let moment = self.moment;
        self.moment += 1;
        // The last moment is x_0, whatever a walk does before it.
        match moment < self.steps {
            true => self.show(moment, time, x),
            false => Ok(()),
        }
    }

    /// A batch is finished: `x` is x_0.
    pub(crate) fn see_the_end(&mut self, x: &Tensor) -> anyhow::Result<()> {
        self.moment = 0;
        self.show(self.steps, 0, x)
    }

    fn show(&mut self, moment: usize, time: usize, x: &Tensor) -> anyhow::Result<()> {
        match &mut self.film {
            Some(film) => film
                .show(moment, time, x, self.map)
                .context("cannot show the walk"),
            None => Ok(()),
        }
    }
}
