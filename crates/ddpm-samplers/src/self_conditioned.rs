//! Networks that are told what they last took for the clean images (self-conditioning: Chen, Zhang and Hinton 2022,
//! arXiv:2208.04202), under every walk.

use std::cell::RefCell;

use candle_core::Tensor;
use ddpm_core::{Denoiser, Timestep};

use crate::process::{Answer, halves};
use crate::{Error, Process, Result};

/// A network that remembers the x_0-hat of its last answer, clipped as in its walk, and is told it at the next; at first
/// there is none. One walk has one.
///
/// Algorithms that ask more than once a step are told what came of the last question, whichever step that was of.
pub struct SelfConditioned<'a, F> {
    /// The whole process of training: it tells the level of every time.
    process: &'a Process,
    network: F,
    last: RefCell<Option<Tensor>>,
}

impl<'a, F> SelfConditioned<'a, F>
where
    F: Fn(&Tensor, &[f64], Option<&Tensor>) -> ddpm_core::Result<Tensor>,
{
    /// `network` is handed x_t and the times as a [`Denoiser`] is, and the last x_0-hat.
    pub fn new(process: &'a Process, network: F) -> Self {
        Self {
            process,
            network,
            last: RefCell::new(None),
        }
    }

    fn ask(&self, x_t: &Tensor, time: &[f64]) -> Result<Tensor> {
        let last = self.last.take();
        let output = (self.network)(x_t, time, last.as_ref())?.detach();
        let (predicted, variance) = halves(x_t, output.clone())?;
        let t = time.iter().map(|&time| self.timestep(time));
        let answer = Answer {
            t: t.collect::<Result<_>>()?,
            output: predicted,
            variance,
        };
        self.last.replace(Some(self.process.x_0_hat(x_t, &answer)?));
        Ok(output)
    }

    /// The step of training at a time that the network is told.
    fn timestep(&self, time: f64) -> Result<Timestep> {
        let whole = (time >= 0.0 && time.fract() == 0.0).then_some(time as usize);
        let step = whole.and_then(|time| self.process.schedule.timestep_at_network_time(time));
        step.ok_or(Error::Between { time })
    }
}

impl<F> Denoiser for SelfConditioned<'_, F>
where
    F: Fn(&Tensor, &[f64], Option<&Tensor>) -> ddpm_core::Result<Tensor>,
{
    fn predict(&self, x_t: &Tensor, time: &[f64]) -> ddpm_core::Result<Tensor> {
        self.ask(x_t, time).map_err(|error| match error {
            Error::Core(error) => error,
            error => ddpm_core::Error::Denoiser(Box::new(error)),
        })
    }
}
