//! Algorithm 1 as an iterator: every `next()` is one optimiser step, and yields its report.

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use ddpm_core::Timestep;
use ddpm_data::{Dataset, Feed};
use ddpm_image::PixelMap;
use ddpm_kernels::{ema_update, scale_in_place, sum_of_squares};
use ddpm_random::{Stream, normal_batch, uniform_u64_below};
use ddpm_unet::{DropoutAddress, Initialisation, UNet, UNetConfig, initialise};

use crate::settings::InitialisationKind;
use crate::{
    Adam, Error, Examples, LearningRate, Objective, Result, Settings, clip_factor, ema_decay,
    global_norm,
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
    names: Vec<String>,
    parameters: Vec<Var>,
    network: UNet,
    pub(crate) adam: Adam,
    averages: Vec<Average>,
    images: u64,
}

/// One moving average of the parameters.
pub(crate) struct Average {
    pub(crate) rate: f64,
    pub(crate) weights: Vec<Tensor>,
}

/// What the passes of one optimiser step have gathered.
#[derive(Default)]
struct Gathered {
    gradients: Vec<Option<Tensor>>,
    losses: Vec<f64>,
    t: Vec<Timestep>,
}

impl Trainer {
    /// A new model for these images, initialised from the seed. The settings must be [resolved](Settings::resolved).
    ///
    /// # Errors
    /// Settings that are impossible, alone or with this data; the message names the key.
    pub fn new(settings: &Settings, data: Dataset) -> Result<Self> {
        let (channels, height, width) = (data.channels(), data.height(), data.width());
        let config = settings.unet_config(channels, height, width)?;
        let how = match settings.model.initialisation {
            InitialisationKind::Ho => Initialisation::Ho,
            InitialisationKind::Pytorch => Initialisation::PyTorch,
        };
        let weights = initialise(&config, how, settings.train.seed, &Device::Cpu)?;
        Self::with_weights(settings, data, weights)
    }

    /// As [`Trainer::new`], but the network begins with these weights: name and tensor, in the network's order.
    pub fn with_weights(
        settings: &Settings,
        data: Dataset,
        weights: Vec<(String, Tensor)>,
    ) -> Result<Self> {
        settings.check()?;
        let size = (data.channels(), data.height(), data.width());
        settings.check_data(data.len(), size)?;
        let config = settings.unet_config(size.0, size.1, size.2)?;
        let mut names = Vec::with_capacity(weights.len());
        let mut parameters = Vec::with_capacity(weights.len());
        for (name, tensor) in weights {
            names.push(name);
            parameters.push(Var::from_tensor(&tensor)?);
        }
        let tensors = parameters.iter().map(|p| p.as_tensor().clone());
        let network = UNet::new(
            &config,
            &names.iter().cloned().zip(tensors).collect::<Vec<_>>(),
        )?;
        let copy = |rate: &f64| {
            let weights = parameters
                .iter()
                .map(|p| p.as_detached_tensor().copy())
                .collect::<candle_core::Result<_>>()?;
            Ok(Average {
                rate: *rate,
                weights,
            })
        };
        Ok(Self {
            objective: Objective::new(&settings.diffusion)?,
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
            names,
            parameters,
            network,
            images: 0,
        })
    }

    /// Makes one optimiser step on the next `train.batch_size` images.
    ///
    /// # Errors
    /// [`Error::NotFinite`] and [`Error::NoGradient`], both before anything has changed.
    pub fn step(&mut self) -> Result<Report> {
        let started = Instant::now();
        let batch = self.settings.train.batch_size;
        let at_once = self.settings.train.micro_batch.unwrap_or(batch);
        let mut gathered = Gathered::default();
        for before in (0..batch).step_by(at_once) {
            let position = self.images + before as u64;
            let examples = self.draw(position, at_once)?;
            self.learn_from(&examples, position, batch, &mut gathered)?;
        }
        self.apply(gathered, started)
    }

    /// Makes one optimiser step on examples given from outside, in one pass.
    pub fn step_on(&mut self, examples: &Examples) -> Result<Report> {
        let started = Instant::now();
        let mut gathered = Gathered::default();
        self.learn_from(examples, self.images, examples.t.len(), &mut gathered)?;
        self.apply(gathered, started)
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

    /// The data that is learnt from.
    pub fn data(&self) -> &Dataset {
        self.feed.dataset()
    }

    /// The raw weights, detached, in the network's order. They share storage with the model: copy to keep.
    pub fn raw_weights(&self) -> Vec<(String, Tensor)> {
        let tensors = self.parameters.iter().map(|p| p.as_detached_tensor());
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

    /// A network with the weights to sample with, which keeps no graph.
    pub fn sampling_network(&self) -> Result<UNet> {
        Ok(UNet::new(&self.config, &self.best_weights())?)
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

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn averages(&self) -> &[Average] {
        &self.averages
    }

    /// Puts a saved state in place of this one. All lists are in the network's order.
    pub(crate) fn restore(
        &mut self,
        raw: &[Tensor],
        adam: Adam,
        averages: Vec<Average>,
        images: u64,
    ) -> Result<()> {
        for (parameter, saved) in self.parameters.iter().zip(raw) {
            parameter.set(saved)?;
        }
        self.adam.m = adam.m;
        self.adam.v = adam.v;
        self.adam.step = adam.step;
        self.averages = averages;
        self.images = images;
        Ok(())
    }

    /// Lines 2 to 4: the images at `position` and after it, a t for each, and noise.
    fn draw(&self, position: u64, count: usize) -> Result<Examples> {
        let seed = self.settings.train.seed;
        let schedule = &self.objective.schedule;
        let x_0 = self
            .feed
            .batch(position, count, &PixelMap::MinusOneToOne, &Device::Cpu)?;
        let positions: Vec<u64> = (position..position + count as u64).collect();
        let t = |p: &u64| {
            let before = uniform_u64_below(seed, Stream::Timestep, *p, 0, schedule.steps() as u64)?;
            Ok(schedule.timestep(before as usize + 1)?)
        };
        let t = positions.iter().map(t).collect::<Result<_>>()?;
        let shape = (
            self.data().channels(),
            self.data().height(),
            self.data().width(),
        );
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

    /// Line 5: one pass forward and back; gradients of the sum of the losses over `batch` are added to what is gathered.
    fn learn_from(
        &self,
        examples: &Examples,
        position: u64,
        batch: usize,
        gathered: &mut Gathered,
    ) -> Result<()> {
        let count = examples.t.len();
        let images: Vec<u64> = (position..position + count as u64).collect();
        let x_t = self.objective.x_t(examples)?;
        let dropout = DropoutAddress {
            seed: self.settings.train.seed,
            step: 0,
            images: &images,
        };
        let output = self.network.forward_train(
            &x_t,
            &self.objective.network_times(&examples.t),
            &dropout,
        )?;
        let per_image = self.objective.per_image(examples, &x_t, &output)?; // [B]
        let losses: Vec<f64> = per_image
            .detach()
            .to_vec1::<f32>()?
            .into_iter()
            .map(f64::from)
            .collect();
        if losses.iter().any(|l| !l.is_finite()) {
            let bad = (0..count)
                .filter(|i| !losses[*i].is_finite())
                .map(|i| images[i])
                .collect();
            return Err(self.loss_not_finite(bad, &output)?);
        }
        let mut store = (per_image.sum_all()? / batch as f64)?.backward()?;
        gathered.gradients.resize(self.parameters.len(), None);
        for (parameter, sum) in self.parameters.iter().zip(&mut gathered.gradients) {
            let Some(gradient) = store.remove(parameter.as_tensor()) else {
                continue;
            };
            *sum = Some(match sum.take() {
                Some(sum) => (sum + gradient)?.detach(),
                None => gradient.detach(),
            });
        }
        gathered.losses.extend(losses);
        gathered.t.extend(&examples.t);
        Ok(())
    }

    /// Clips, moves the parameters, then the averages.
    fn apply(&mut self, mut gathered: Gathered, started: Instant) -> Result<Report> {
        let gradients = self.every_gradient(std::mem::take(&mut gathered.gradients))?;
        let gradient_norm = global_norm(&gradients)?;
        if !gradient_norm.is_finite() {
            return Err(self.gradient_not_finite(&gradients, gathered.losses.len())?);
        }
        let factor = clip_factor(gradient_norm, self.settings.optimizer.gradient_clip);
        if factor < 1.0 {
            gradients
                .iter()
                .try_for_each(|g| scale_in_place(g, factor))?;
        }
        let learning_rate = self.learning_rate.at(self.adam.step + 1);
        self.adam
            .step(&self.parameters, &gradients, learning_rate)?;
        for average in &self.averages {
            let decay = ema_decay(average.rate, self.settings.ema.warm_up, self.adam.step);
            for (weight, parameter) in average.weights.iter().zip(&self.parameters) {
                ema_update(weight, parameter.as_tensor(), decay)?;
            }
        }
        self.images += gathered.losses.len() as u64;
        Ok(Report {
            step: self.adam.step,
            loss: mean(gathered.losses.iter().copied()).unwrap_or(f64::NAN),
            loss_by_quartile: self.by_quartile(&gathered),
            gradient_norm,
            learning_rate,
            images: self.images,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn every_gradient(&self, gradients: Vec<Option<Tensor>>) -> Result<Vec<Tensor>> {
        let missing = self
            .names
            .iter()
            .zip(&gradients)
            .filter(|(_, g)| g.is_none())
            .map(|(n, _)| n.clone());
        let missing: Vec<String> = missing.collect();
        if missing.is_empty() {
            Ok(gradients.into_iter().flatten().collect())
        } else {
            Err(Error::NoGradient(missing))
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
    fn first_bad_weight(&self) -> Result<Option<String>> {
        let raw = self.parameters.iter().map(|p| p.as_tensor());
        let averaged = self.averages.iter().flat_map(|a| &a.weights);
        let names = self.names.iter().cycle();
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

    fn gradient_not_finite(&self, gradients: &[Tensor], count: usize) -> Result<Error> {
        let mut tensor = "the norm itself".to_string();
        for (name, gradient) in self.names.iter().zip(gradients) {
            if !sum_of_squares(gradient)?.is_finite() {
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

    fn not_finite(
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

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f64)
}
