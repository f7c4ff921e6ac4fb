//! Algorithm 1 as an iterator: every `next()` is one optimiser step, and yields its report.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use ddpm_core::{Schedule, Timestep};
use ddpm_data::{Dataset, Feed};
use ddpm_image::PixelMap;
use ddpm_kernels::{Averaged, Gradients, sum_of_squares};
use ddpm_random::{Stream, normal_batch, uniform_u64_below};
use ddpm_unet::{DropoutAddress, Initialisation, Place, Precision, UNet, UNetConfig, initialise};

use crate::by_graph::{Ahead, are_finite};
use crate::prefetch::Prefetch;
use crate::settings::InitialisationKind;
use crate::{
    Adam, Error, Examples, LearningRate, Objective, Result, Settings, clip_factor, ema_decay,
};

/// What one optimiser step was like.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The step, from 1.
    pub step: usize,
    /// The weighted loss, averaged over the step's images.
    pub loss: f64,
    /// The same, over the images with t in each quarter of 1..=T; `None` where there was no such image.
    pub loss_by_quartile: [Option<f64>; 4],
    /// The global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Images trained on so far, repetitions counted.
    pub images: u64,
    /// How long the step took.
    pub seconds: f64,
    /// How long of it the network waited for its images.
    pub waited: f64,
}

/// A model in training. As an iterator it makes optimiser steps until `train.steps`, without end where there is none.
///
/// What is drawn for an image (which image, t, noise, dropout) depends on the seed and on how many images came before
/// it, so batch size and accumulation do not change it, and resuming needs only the counters.
pub struct Trainer {
    settings: Settings,
    objective: Objective,
    learning_rate: LearningRate,
    config: UNetConfig,
    feed: Feed,
    pixels: PixelMap,
    /// Behind a lock only because a step reads it while the trainer is borrowed.
    prefetch: Mutex<Prefetch>,
    names: Vec<String>,
    /// Shared with the network, and changed in place.
    parameters: Vec<Tensor>,
    network: UNet,
    gradients: Sums,
    pub(crate) adam: Adam,
    averages: Vec<Average>,
    images: u64,
    /// Where parameters, moments, averages and gradients are, and how the network goes there.
    place: Place,
    /// Steps that nobody has waited for.
    pub(crate) ahead: Ahead,
}

/// The gradients of a step, summed over its passes.
pub(crate) enum Sums {
    /// On the host, written by the plan.
    Planned(Gradients),
    /// Where the parameters are; none before the first step.
    Tensors(Vec<Tensor>),
}

/// One moving average of the parameters.
pub(crate) struct Average {
    pub(crate) rate: f64,
    pub(crate) weights: Vec<Tensor>,
}

/// What the passes of one optimiser step have gathered.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) losses: Vec<f64>,
    pub(crate) t: Vec<Timestep>,
}

impl Trainer {
    /// A new model for these images, initialised from the seed, on `train.device`. The settings must be
    /// [resolved](Settings::resolved).
    ///
    /// # Errors
    /// Settings that are impossible, alone or with this data; the message names the key. A device that cannot be had.
    pub fn new(settings: &Settings, data: Dataset) -> Result<Self> {
        Self::new_at(Place::open(settings.train.device)?, settings, data)
    }

    /// As [`Trainer::new`], on a device that is open already.
    pub(crate) fn new_at(place: Place, settings: &Settings, data: Dataset) -> Result<Self> {
        let (channels, height, width) = (data.channels(), data.height(), data.width());
        let config = settings.unet_config(channels, height, width)?;
        let how = match settings.model.initialisation {
            InitialisationKind::Ho => Initialisation::Ho,
            InitialisationKind::Pytorch => Initialisation::PyTorch,
            InitialisationKind::Torch => Initialisation::Torch,
        };
        let weights = initialise(&config, how, settings.train.seed, &Device::Cpu)?;
        Self::with_weights_at(place, settings, data, weights)
    }

    /// As [`Trainer::new`], but the network begins with these weights: name and tensor, in the network's order.
    pub fn with_weights(
        settings: &Settings,
        data: Dataset,
        weights: Vec<(String, Tensor)>,
    ) -> Result<Self> {
        let place = Place::open(settings.train.device)?;
        Self::with_weights_at(place, settings, data, weights)
    }

    /// As [`Trainer::with_weights`], on a device that is open already.
    pub(crate) fn with_weights_at(
        place: Place,
        settings: &Settings,
        data: Dataset,
        weights: Vec<(String, Tensor)>,
    ) -> Result<Self> {
        settings.check()?;
        place.set_products(settings.train.tf32, settings.train.deterministic);
        let size = (data.channels(), data.height(), data.width());
        settings.check_data(data.len(), size)?;
        let config = settings.unet_config(size.0, size.1, size.2)?;
        let mut names = Vec::with_capacity(weights.len());
        let mut parameters = Vec::with_capacity(weights.len());
        for (name, tensor) in &weights {
            names.push(name.clone());
            parameters.push(parameter(tensor, &place)?);
        }
        drop(weights); // all at once: the optimiser finds room for its moments
        let named: Vec<_> = names
            .iter()
            .cloned()
            .zip(parameters.iter().cloned())
            .collect();
        let network = in_training(UNet::new(&config, &named)?, settings, &place);
        let shapes: Vec<Vec<usize>> = parameters.iter().map(|p| p.dims().to_vec()).collect();
        let copy = |rate: &f64| {
            let weights = parameters
                .iter()
                .map(|parameter| parameter.detach().copy())
                .collect::<candle_core::Result<_>>()?;
            Ok(Average {
                rate: *rate,
                weights,
            })
        };
        let objective = Objective::new(&settings.diffusion)?;
        let pixels = settings.data.normalisation.pixel_map()?;
        let prefetch = prefetch(settings, &data, &pixels, &objective.schedule);
        Ok(Self {
            objective,
            learning_rate: LearningRate {
                peak: settings.optimizer.learning_rate,
                warm_up: settings.optimizer.warm_up,
                decay: settings.optimizer.decay,
                decay_steps: settings.optimizer.decay_steps.unwrap_or(0),
            },
            adam: Adam::new(&settings.optimizer, &parameters)?,
            averages: settings.ema.rates.iter().map(copy).collect::<Result<_>>()?,
            settings: settings.clone(),
            config,
            feed: Feed::new(&data, settings.train.seed, settings.data.flip),
            pixels,
            prefetch: Mutex::new(prefetch),
            names,
            parameters,
            network,
            gradients: match (place.plans(), settings.one_pass_a_step()) {
                (true, true) => Sums::Planned(Gradients::of_one_pass(&shapes)),
                (true, false) => Sums::Planned(Gradients::zeros(&shapes)),
                (false, _) => Sums::Tensors(Vec::new()),
            },
            images: 0,
            place,
            ahead: Ahead::default(),
        })
    }

    /// Makes one optimiser step on the next `train.batch_size` images.
    ///
    /// # Errors
    /// [`Error::NotFinite`], before weights, moments or averages have changed.
    pub fn step(&mut self) -> Result<Report> {
        let started = Instant::now();
        if !self.place.plans() {
            self.step_ahead()?;
            return self.read_one();
        }
        let batch = self.settings.train.batch_size;
        let at_once = self.settings.train.micro_batch.unwrap_or(batch);
        self.step_with(started, |trainer, gradients| {
            let mut gathered = Gathered::default();
            for before in (0..batch).step_by(at_once) {
                let position = trainer.images + before as u64;
                let examples = trainer.prefetch().get(position, at_once)?;
                trainer.learn_from(&examples, position, batch, (gradients, &mut gathered))?;
            }
            Ok(gathered)
        })
    }

    /// Makes one optimiser step on examples given from outside, in one pass.
    pub fn step_on(&mut self, examples: &Examples) -> Result<Report> {
        if !self.place.plans() {
            self.step_ahead_on(examples)?;
            return self.read_one();
        }
        self.step_with(Instant::now(), |trainer, gradients| {
            let mut gathered = Gathered::default();
            let count = examples.t.len();
            trainer.learn_from(examples, trainer.images, count, (gradients, &mut gathered))?;
            Ok(gathered)
        })
    }

    /// Makes as many optimiser steps on the same examples. A card is waited for once, after the last.
    ///
    /// # Errors
    /// As [`Trainer::step`]; on a card the steps after one that is not finite were made too.
    pub fn steps_on(&mut self, examples: &Examples, count: usize) -> Result<Vec<Report>> {
        if self.place.plans() {
            return (0..count).map(|_| self.step_on(examples)).collect();
        }
        (0..count).try_for_each(|_| self.step_ahead_on(examples))?;
        self.read()
    }

    /// The report of the step just made ahead.
    fn read_one(&mut self) -> Result<Report> {
        let last = self.read()?.pop();
        last.ok_or_else(|| candle_core::Error::Msg("no step was made".into()).into())
    }

    /// How many optimiser steps were made.
    pub fn steps_done(&self) -> usize {
        self.adam.step
    }

    /// How many images were trained on, repetitions counted.
    pub fn images_done(&self) -> u64 {
        self.images
    }

    /// What is trained for.
    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// What the network looks like.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// What was asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The device that was taken, and in words why.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The data that is learnt from.
    pub fn data(&self) -> &Dataset {
        self.feed.dataset()
    }

    /// How bytes become the network's numbers, and back.
    pub fn pixels(&self) -> &PixelMap {
        &self.pixels
    }

    /// The raw weights, detached, in the network's order. They share storage with the model: copy to keep.
    pub fn raw_weights(&self) -> Vec<(String, Tensor)> {
        let tensors = self.parameters.iter().map(Tensor::detach);
        self.names.iter().cloned().zip(tensors).collect()
    }

    /// The averaged weights of the `index`-th of `ema.rates`, sharing storage with the model.
    pub fn averaged_weights(&self, index: usize) -> Option<Vec<(String, Tensor)>> {
        let weights = &self.averages.get(index)?.weights;
        Some(
            self.names
                .iter()
                .cloned()
                .zip(weights.iter().cloned())
                .collect(),
        )
    }

    /// The weights to sample with: the first average, or the raw ones where there is none.
    pub fn best_weights(&self) -> Vec<(String, Tensor)> {
        self.averaged_weights(0)
            .unwrap_or_else(|| self.raw_weights())
    }

    /// A network with the weights to sample with, as they are at its first call.
    pub fn sampling_network(&self) -> Result<UNet> {
        let network = UNet::new(&self.config, &self.best_weights())?;
        Ok(going(network, &self.settings, &self.place).frozen())
    }

    /// What the network computes in.
    pub fn precision(&self) -> Precision {
        self.settings.train.precision.on_this_processor()
    }

    /// Checks that the last step, whose loss and gradient were finite, left every parameter and average finite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with that step, its images and the first bad tensor.
    pub fn check_weights(&self) -> Result<()> {
        let Some(tensor) = self.first_bad_weight()? else {
            return Ok(());
        };
        let batch = self.settings.train.batch_size as u64;
        let images = self.images.saturating_sub(batch)..self.images;
        Err(self.not_finite(self.adam.step, "updated model", images.collect(), tensor)?)
    }

    /// The gradient of the `index`-th parameter at the last step, before clipping; nothing before the first.
    pub(crate) fn gradient(&self, index: usize) -> Result<Cow<'_, [f32]>> {
        match &self.gradients {
            Sums::Planned(gradients) => Ok(gradients.get(index).unwrap_or_default()),
            Sums::Tensors(gradients) => match gradients.get(index) {
                Some(gradient) => Ok(gradient.flatten_all()?.to_vec1()?.into()),
                None => Ok(Cow::default()),
            },
        }
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn averages(&self) -> &[Average] {
        &self.averages
    }

    pub(crate) fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    pub(crate) fn network(&self) -> &UNet {
        &self.network
    }

    pub(crate) fn learning_rate(&self) -> &LearningRate {
        &self.learning_rate
    }

    /// The last step by graph moved nothing: so many steps and images are behind.
    pub(crate) fn take_back(&mut self, steps: usize, images: u64) {
        self.adam.step = steps;
        self.images = images;
    }

    /// A step by graph was made on so many images.
    pub(crate) fn went_on(&mut self, gradients: Sums, images: u64) {
        self.gradients = gradients;
        self.images += images;
    }

    /// Puts a saved state in place of this one. All lists are in the network's order.
    pub(crate) fn restore(
        &mut self,
        raw: &[Tensor],
        adam: Adam,
        averages: Vec<Average>,
        images: u64,
    ) -> Result<()> {
        let (place, device) = (&self.place, self.place.device());
        let here = |tensors: Vec<Tensor>| -> Result<Vec<Tensor>> {
            let moved = tensors.iter().map(|tensor| tensor.to_device(device));
            Ok(moved.collect::<candle_core::Result<_>>()?)
        };
        let parameters = raw.iter().map(|raw| parameter(raw, place));
        let parameters: Vec<Tensor> = parameters.collect::<Result<_>>()?;
        let named = self.names.iter().cloned().zip(parameters.iter().cloned());
        let network = UNet::new(&self.config, &named.collect::<Vec<_>>())?;
        self.network = in_training(network, &self.settings, place);
        self.adam.m = here(adam.m)?;
        self.adam.v = here(adam.v)?;
        self.adam.step = adam.step;
        let moved = averages.into_iter().map(|average| {
            Ok(Average {
                rate: average.rate,
                weights: here(average.weights)?,
            })
        });
        self.averages = moved.collect::<Result<_>>()?;
        self.parameters = parameters;
        self.images = images;
        self.ahead = Ahead::default();
        Ok(())
    }

    pub(crate) fn prefetch(&self) -> MutexGuard<'_, Prefetch> {
        self.prefetch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Line 5: one pass forward and back; gradients of the sum of the losses over `batch` are added to what is gathered.
    fn learn_from(
        &self,
        examples: &Examples,
        position: u64,
        batch: usize,
        (gradients, gathered): (&mut Gradients, &mut Gathered),
    ) -> Result<()> {
        let count = examples.t.len();
        let images: Vec<u64> = (position..position + count as u64).collect();
        let x_t = self.objective.x_t(examples)?;
        let dropout = DropoutAddress {
            seed: self.settings.train.seed,
            step: 0,
            images: &images,
        };
        let mut losses = Vec::new();
        let gradient_of = |output: &Tensor| {
            let output = Var::from_tensor(output)?;
            let per_image = self.objective.per_image(examples, &x_t, &output)?; // [B]
            losses = per_image
                .detach()
                .to_vec1::<f32>()?
                .into_iter()
                .map(f64::from)
                .collect();
            let bad: Vec<u64> = images
                .iter()
                .zip(&losses)
                .filter(|(_, l)| !l.is_finite())
                .map(|(i, _)| *i)
                .collect();
            if !bad.is_empty() {
                return Err(self.loss_not_finite(bad, &output)?);
            }
            let store = (per_image.sum_all()? / batch as f64)?.backward()?;
            let gradient = store.get(&output).cloned();
            gradient.ok_or_else(|| {
                candle_core::Error::Msg("the loss does not depend on the network".into()).into()
            })
        };
        let times = self.objective.network_times(&examples.t);
        let sum = (gradients, !gathered.losses.is_empty());
        self.network
            .learn(&x_t, &times, &dropout, sum, gradient_of)?;
        gathered.losses.extend(losses);
        gathered.t.extend(&examples.t);
        Ok(())
    }

    /// Gathers gradients in the memory of those of the step before, and applies them.
    fn step_with(
        &mut self,
        started: Instant,
        gather: impl FnOnce(&Self, &mut Gradients) -> Result<Gathered>,
    ) -> Result<Report> {
        let mut gradients = match std::mem::replace(&mut self.gradients, Sums::Tensors(Vec::new()))
        {
            Sums::Planned(gradients) => gradients,
            Sums::Tensors(_) => Gradients::default(), // not where there are plans
        };
        let gathered = gather(self, &mut gradients);
        let applied = gathered.and_then(|gathered| self.apply(&gradients, &gathered, started));
        self.gradients = Sums::Planned(gradients);
        applied
    }

    /// Clips, moves the parameters, then the averages.
    fn apply(
        &mut self,
        gradients: &Gradients,
        gathered: &Gathered,
        started: Instant,
    ) -> Result<Report> {
        let gradient_norm = gradients.sum_of_squares().sqrt();
        if !gradient_norm.is_finite() {
            return Err(self.gradient_not_finite(gradients, gathered.losses.len())?);
        }
        let factor = clip_factor(gradient_norm, self.settings.optimizer.gradient_clip);
        let step = self.adam.step + 1;
        let learning_rate = self.learning_rate.at(step);
        let averages = self.averages.iter().map(|average| Averaged {
            decay: ema_decay(average.rate, self.settings.ema.warm_up, step),
            tensors: &average.weights,
        });
        let averages: Vec<Averaged<'_>> = averages.collect();
        self.adam.step(
            &self.parameters,
            gradients,
            factor,
            learning_rate,
            &averages,
        )?;
        self.images += gathered.losses.len() as u64;
        let waited = self.prefetch().take_waited().as_secs_f64();
        Ok(self.report(
            self.adam.step,
            gathered,
            (gradient_norm, learning_rate),
            self.images,
            (started.elapsed().as_secs_f64(), waited),
        ))
    }

    /// What a step was like.
    pub(crate) fn report(
        &self,
        step: usize,
        gathered: &Gathered,
        (gradient_norm, learning_rate): (f64, f64),
        images: u64,
        (seconds, waited): (f64, f64),
    ) -> Report {
        Report {
            step,
            loss: mean(gathered.losses.iter().copied()).unwrap_or(f64::NAN),
            loss_by_quartile: self.by_quartile(gathered),
            gradient_norm,
            learning_rate,
            images,
            seconds,
            waited,
        }
    }

    fn by_quartile(&self, gathered: &Gathered) -> [Option<f64>; 4] {
        let quartiles = gathered.t.iter().map(|t| self.objective.quartile(*t));
        let pairs: Vec<(usize, f64)> = quartiles.zip(gathered.losses.iter().copied()).collect();
        std::array::from_fn(|q| {
            mean(
                pairs
                    .iter()
                    .filter(|(of, _)| *of == q)
                    .map(|(_, loss)| *loss),
            )
        })
    }

    /// The first parameter or average that holds a NaN or an infinity.
    pub(crate) fn first_bad_weight(&self) -> Result<Option<String>> {
        let raw = self.parameters.iter();
        let averaged = self.averages.iter().flat_map(|a| &a.weights);
        let names = self.names.iter().cycle();
        if !self.place.plans() {
            let finite = are_finite(&raw.chain(averaged).collect::<Vec<_>>())?;
            let mut bad = names.zip(finite).filter(|(_, finite)| !finite);
            return Ok(bad.next().map(|(name, _)| format!("parameter `{name}`")));
        }
        for (name, tensor) in names.zip(raw.chain(averaged)) {
            if !sum_of_squares(tensor)?.is_finite() {
                return Ok(Some(format!("parameter `{name}`")));
            }
        }
        Ok(None)
    }

    fn loss_not_finite(&self, positions: Vec<u64>, output: &Tensor) -> Result<Error> {
        let tensor = match self.first_bad_weight()? {
            Some(weight) => weight,
            None if !sum_of_squares(output)?.is_finite() => "the network's output".into(),
            None => "the loss itself".into(),
        };
        self.not_finite(self.adam.step + 1, "loss", positions, tensor)
    }

    /// The first gradient of the last step by graph that holds a NaN or an infinity.
    pub(crate) fn first_bad_gradient(&self) -> Result<Option<String>> {
        let Sums::Tensors(gradients) = &self.gradients else {
            return Ok(None);
        };
        let finite = are_finite(&gradients.iter().collect::<Vec<_>>())?;
        let mut bad = self.names.iter().zip(finite).filter(|(_, finite)| !finite);
        let told = |(name, _)| format!("the gradient of `{name}`");
        Ok(bad.next().map(told))
    }

    fn gradient_not_finite(&self, gradients: &Gradients, count: usize) -> Result<Error> {
        let mut tensor = "the norm itself".to_string();
        for (index, name) in self.names.iter().enumerate() {
            let gradient = gradients.get(index).unwrap_or_default();
            if gradient.iter().any(|g| !g.is_finite()) {
                tensor = format!("the gradient of `{name}`");
                break;
            }
        }
        let images = self.images..self.images + count as u64;
        self.not_finite(
            self.adam.step + 1,
            "gradient norm",
            images.collect(),
            tensor,
        )
    }

    pub(crate) fn not_finite(
        &self,
        step: usize,
        what: &'static str,
        positions: Vec<u64>,
        tensor: String,
    ) -> Result<Error> {
        let images = positions
            .into_iter()
            .map(|p| Ok(self.feed.draw(p)?.index))
            .collect::<Result<_>>()?;
        Ok(Error::NotFinite {
            step,
            what,
            images,
            tensor,
        })
    }
}

impl Iterator for Trainer {
    type Item = Result<Report>;

    fn next(&mut self) -> Option<Self::Item> {
        let more = self
            .settings
            .train
            .steps
            .is_none_or(|steps| self.steps_done() < steps);
        more.then(|| self.step())
    }
}

/// A network as its training computes it.
fn in_training(network: UNet, settings: &Settings, place: &Place) -> UNet {
    going(network, settings, place).recomputing(settings.train.gradient_checkpointing)
}

/// A network that goes the way of the place.
fn going(network: UNet, settings: &Settings, place: &Place) -> UNet {
    let network = network.in_precision(settings.train.precision.on_this_processor());
    match place.goes_by_graph() {
        true => network.by_graph(),
        false => network,
    }
}

/// A tensor of its own in the place, which a graph begins at where there is one.
fn parameter(from: &Tensor, place: &Place) -> Result<Tensor> {
    let own = from.detach().to_device(place.device())?.copy()?;
    Ok(match place.plans() {
        true => own,
        false => Var::from_tensor(&own)?.into_inner(),
    })
}

/// What makes examples on another thread, with a feed of its own over the same images.
fn prefetch(
    settings: &Settings,
    data: &Dataset,
    pixels: &PixelMap,
    schedule: &Schedule,
) -> Prefetch {
    let (seed, flip) = (settings.train.seed, settings.data.flip);
    let (data, pixels, schedule) = (data.clone(), pixels.clone(), schedule.clone());
    Prefetch::new(move || {
        let (feed, pixels, schedule) = (
            Feed::new(&data, seed, flip),
            pixels.clone(),
            schedule.clone(),
        );
        Box::new(move |position, count| draw(&feed, &pixels, &schedule, seed, position, count))
    })
}

/// Lines 2 to 4: the images at `position` and after it, a t for each, and noise.
fn draw(
    feed: &Feed,
    pixels: &PixelMap,
    schedule: &Schedule,
    seed: u64,
    position: u64,
    count: usize,
) -> Result<Examples> {
    let x_0 = feed.batch(position, count, pixels, &Device::Cpu)?;
    let positions: Vec<u64> = (position..position + count as u64).collect();
    let t = |p: &u64| {
        let before = uniform_u64_below(seed, Stream::Timestep, *p, 0, schedule.steps() as u64)?;
        Ok(schedule.timestep(before as usize + 1)?)
    };
    let t = positions.iter().map(t).collect::<Result<_>>()?;
    let data = feed.dataset();
    let shape = (data.channels(), data.height(), data.width());
    let eps = normal_batch(
        seed,
        Stream::TrainingNoise,
        &positions,
        0,
        shape,
        &Device::Cpu,
    )?;
    Ok(Examples { x_0, t, eps })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}
