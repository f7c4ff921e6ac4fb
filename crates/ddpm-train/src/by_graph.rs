//! Optimiser steps with everything on one device: on a card, or, through candle's graph, on the CPU when it is asked to.
//!
//! Nothing of a step waits for the host. Losses and norms stay where they are until they are asked for, all steps' at once.

use std::time::Instant;

use candle_core::{Tensor, Var};
use ddpm_core::Timestep;
use ddpm_kernels::Averaged;
use ddpm_unet::DropoutAddress;

use crate::trainer::{Gathered, Sums};
use crate::{Error, Examples, Report, Result, Trainer, ema_decay};

/// What a step has left on the device.
pub(crate) struct Unread {
    step: usize,
    learning_rate: f64,
    /// Images trained on before it.
    before: u64,
    t: Vec<Timestep>,
    /// The loss of each image, `[B]`, one tensor a pass.
    losses: Vec<Tensor>,
    /// The norm of the gradient before clipping and what it was multiplied by, `[2]`.
    told: Tensor,
}

/// Steps not yet read, since when.
#[derive(Default)]
pub(crate) struct Ahead {
    steps: Vec<Unread>,
    since: Option<Instant>,
}

impl Trainer {
    /// Makes one optimiser step without waiting for it. What it was like is had by [`Trainer::read`].
    pub(crate) fn step_ahead(&mut self) -> Result<()> {
        self.ahead.since.get_or_insert_with(Instant::now);
        let batch = self.settings().train.batch_size;
        let at_once = self.settings().train.micro_batch.unwrap_or(batch);
        let mut gradients = Vec::new();
        let (mut t, mut losses) = (Vec::new(), Vec::new());
        for before in (0..batch).step_by(at_once) {
            let position = self.images_done() + before as u64;
            let examples = self.prefetch().get(position, at_once)?;
            losses.push(self.pass(&examples, position, batch, &mut gradients)?);
            t.extend(examples.t);
        }
        self.move_along(gradients, t, losses)
    }

    /// As [`Trainer::step_ahead`], on examples given from outside, in one pass.
    pub(crate) fn step_ahead_on(&mut self, examples: &Examples) -> Result<()> {
        self.ahead.since.get_or_insert_with(Instant::now);
        let mut gradients = Vec::new();
        let count = examples.t.len();
        let losses = self.pass(examples, self.images_done(), count, &mut gradients)?;
        self.move_along(gradients, examples.t.clone(), vec![losses])
    }

    /// Steps made and not yet read, and the seconds since the first of them began.
    pub(crate) fn unread(&self) -> (usize, f64) {
        let since = self.ahead.since.map(|since| since.elapsed().as_secs_f64());
        (self.ahead.steps.len(), since.unwrap_or(0.0))
    }

    /// Waits for the steps made ahead; their reports, in order.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for the first step whose loss or gradient is not finite. It moved nothing; those after it did.
    pub(crate) fn read(&mut self) -> Result<Vec<Report>> {
        let ahead = std::mem::take(&mut self.ahead);
        let on_the_device: Vec<&Tensor> = ahead
            .steps
            .iter()
            .flat_map(|step| step.losses.iter().chain([&step.told]))
            .collect();
        if on_the_device.is_empty() {
            return Ok(Vec::new());
        }
        let numbers = Tensor::cat(&on_the_device, 0)?.to_vec1::<f32>()?;
        let mut numbers = numbers.into_iter().map(f64::from);
        let count = ahead.steps.len() as f64;
        let seconds = ahead
            .since
            .map_or(0.0, |since| since.elapsed().as_secs_f64());
        let waited = self.prefetch().take_waited().as_secs_f64();
        let last = self.steps_done();
        let mut reports = Vec::with_capacity(ahead.steps.len());
        for step in ahead.steps {
            let losses: Vec<f64> = numbers.by_ref().take(step.t.len()).collect();
            let told: Vec<f64> = numbers.by_ref().take(2).collect();
            let norm = told.first().copied().unwrap_or(f64::NAN);
            if !norm.is_finite() || losses.iter().any(|loss| !loss.is_finite()) {
                let error = self.broke_down(&step, &losses, step.step == last)?;
                if step.step == last {
                    self.take_back(step.step - 1, step.before);
                }
                return Err(error);
            }
            let gathered = Gathered { losses, t: step.t };
            let images = step.before + gathered.t.len() as u64;
            let sizes = (seconds / count, waited / count);
            reports.push(self.report(
                step.step,
                &gathered,
                (norm, step.learning_rate),
                images,
                sizes,
            ));
        }
        Ok(reports)
    }

    /// Line 5: one pass forward and back; gradients of the sum of the losses over `batch` are added to those that are there.
    /// Returns the loss of each image.
    fn pass(
        &self,
        examples: &Examples,
        position: u64,
        batch: usize,
        gradients: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let examples = examples.to_device(self.place().device())?;
        let images: Vec<u64> = (position..position + examples.t.len() as u64).collect();
        let x_t = self.objective().x_t(&examples)?;
        let dropout = DropoutAddress {
            seed: self.settings().train.seed,
            step: 0,
            images: &images,
        };
        let mut losses = None;
        let gradient_of = |output: &Tensor| {
            let output = Var::from_tensor(output)?;
            let per_image = self.objective().per_image(&examples, &x_t, &output)?; // [B]
            losses = Some(per_image.detach());
            let store = (per_image.sum_all()? / batch as f64)?.backward()?;
            let gradient = store.get(&output).cloned();
            gradient.ok_or_else(independent)
        };
        let times = self.objective().network_times(&examples.t);
        self.network()
            .learn_on_device(&x_t, &times, &dropout, gradients, gradient_of)?;
        losses.ok_or_else(independent)
    }

    /// Clips, moves the parameters, then the averages.
    fn move_along(
        &mut self,
        gradients: Vec<Tensor>,
        t: Vec<Timestep>,
        losses: Vec<Tensor>,
    ) -> Result<()> {
        let step = self.adam.step + 1;
        let learning_rate = self.learning_rate().at(step);
        let warm_up = self.settings().ema.warm_up;
        let clip = self.settings().optimizer.gradient_clip;
        let averages: Vec<Averaged<'_>> = self
            .averages()
            .iter()
            .map(|average| Averaged {
                decay: ema_decay(average.rate, warm_up, step),
                tensors: &average.weights,
            })
            .collect();
        let told = self.adam.step_by_tensors(
            self.parameters(),
            &gradients,
            clip,
            learning_rate,
            &averages,
        )?;
        self.adam.step = step;
        self.ahead.steps.push(Unread {
            step,
            learning_rate,
            before: self.images_done(),
            losses,
            told,
            t,
        });
        let count = self.ahead.steps.last().map_or(0, |made| made.t.len());
        self.went_on(Sums::Tensors(gradients), count as u64);
        Ok(())
    }

    /// What is to be said of a step that is not finite; its gradients are there only if it was the last.
    fn broke_down(&self, step: &Unread, losses: &[f64], is_the_last: bool) -> Result<Error> {
        let bad = |(image, loss): (u64, &f64)| (!loss.is_finite()).then_some(image);
        let images = step.before..step.before + losses.len() as u64;
        let of_bad_losses: Vec<u64> = images.clone().zip(losses).filter_map(bad).collect();
        if !of_bad_losses.is_empty() {
            let tensor = self.first_bad_weight()?;
            let tensor = tensor.unwrap_or_else(|| "the loss itself".into());
            return self.not_finite(step.step, "loss", of_bad_losses, tensor);
        }
        let tensor = match is_the_last {
            true => self.first_bad_gradient()?,
            false => None,
        };
        let tensor = tensor.unwrap_or_else(|| "the norm itself".into());
        self.not_finite(step.step, "gradient norm", images.collect(), tensor)
    }
}

fn independent() -> Error {
    candle_core::Error::Msg("the loss does not depend on the network".into()).into()
}

/// Whether every number of each tensor is finite, asked for with one wait.
pub(crate) fn are_finite(tensors: &[&Tensor]) -> Result<Vec<bool>> {
    let sums = tensors
        .iter()
        .map(|tensor| tensor.detach().abs()?.sum_all())
        .collect::<candle_core::Result<Vec<_>>>()?;
    if sums.is_empty() {
        return Ok(Vec::new());
    }
    let sums = Tensor::stack(&sums, 0)?.to_vec1::<f32>()?;
    Ok(sums.into_iter().map(f32::is_finite).collect())
}
