//! A new run that begins with the weights of a trained model: network and diffusion are the model's, all else is new.

use std::path::Path;

use candle_core::Tensor;
use ddpm_checkpoint::{Arch, Model, Weights, resolve_model_as};
use ddpm_core::{Prediction, Schedule, Variance};
use ddpm_samplers::{Betas, SchedulerConfig, StepVariance};
use ddpm_unet::{NetworkConfig, UNetConfig};
use toml::{Table, Value};

use crate::settings::ModelSettings;
use crate::{Error, Layer, Result, Settings};

/// The model that a run begins from: its weights, and what they oblige the settings to.
#[derive(Debug)]
pub struct Init {
    weights: Vec<(String, Tensor)>,
    unet: UNetConfig,
    layer: Layer,
    place: String,
    story: String,
}

impl Init {
    /// Reads a run (its newest whole checkpoint), a checkpoint, any diffusers folder, or a file that another program wrote,
    /// of which `arch` says what it does not.
    ///
    /// # Errors
    /// It is no such folder or file, has no such weights, or its network or schedule cannot be said in settings.
    pub fn read(path: &Path, arch: &Arch, weights: &Weights) -> Result<Self> {
        let model = resolve_model_as(path, arch)?;
        let place = path.display().to_string();
        let unet = trainable(&model.unet, &place)?.clone();
        let pipeline = model.load(weights)?;
        let mut table = Table::new();
        table.insert("model".into(), model_table(&unet, &place)?.into());
        table.insert("diffusion".into(), diffusion_table(&model, &place)?.into());
        let step = model
            .step()
            .map_or(String::new(), |n| format!(", step {n}"));
        Ok(Self {
            layer: Layer::from_text(&format!("--init {place}"), &table.to_string())?,
            story: format!("{}, {weights}{step}", model.folder.display()),
            weights: pipeline.weights,
            unet,
            place,
        })
    }

    /// The sections `model` and `diffusion` as the model has them, to be laid over a recipe and under what the user says.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// What the run's records say it began from.
    pub(crate) fn story(&self) -> &str {
        &self.story
    }

    /// The weights, in the network's order.
    pub(crate) fn weights(&self) -> &[(String, Tensor)] {
        &self.weights
    }

    /// Holds the settings against the network that the weights are of, without the data.
    ///
    /// # Errors
    /// A key of `[model]` that would make it another network, with both values.
    pub fn check(&self, settings: &Settings) -> Result<()> {
        let unet = self.unet.settings();
        let asked = settings.unet_config(unet.in_channels, 8, 8)?;
        match first_difference(&self.unet, &asked)? {
            None => Ok(()),
            Some((key, was, now)) => Err(Error::Setting {
                key: format!("model.{key}"),
                problem: format!(
                    "is {now}, but {was} in {}: --init takes the network from the model; leave the key out",
                    self.place
                ),
            }),
        }
    }

    /// # Errors
    /// The data have another number of channels than the model's images.
    pub(crate) fn check_channels(&self, channels: usize, data: &str) -> Result<()> {
        let its = self.unet.settings().in_channels;
        if its == channels && its == self.unet.settings().out_channels {
            return Ok(());
        }
        let kind = |n| match n {
            1 => "1 channel (grey)".to_owned(),
            3 => "3 channels (RGB)".to_owned(),
            n => format!("{n} channels"),
        };
        let hint = match (its, channels) {
            (1, 3) => "; pictures are read in grey by --set data.color=grey",
            _ => "",
        };
        Err(Error::State {
            place: self.place.clone(),
            problem: format!(
                "its images have {}, those of {data} {}: take a model or data that fit{hint}",
                kind(its),
                kind(channels)
            ),
        })
    }
}

/// The network of a model as one that is trained here.
///
/// # Errors
/// It is none of diffusers'.
pub(crate) fn trainable<'a>(unet: &'a NetworkConfig, place: &str) -> Result<&'a UNetConfig> {
    unet.as_unet_2d().ok_or_else(|| {
        let class = unet.class_name();
        let problem = format!(
            "its network is a {class}, which is sampled from but not trained here; trained are UNet2DModels"
        );
        state(place, problem)
    })
}

/// What only records something, or only matters while training: no part of what the weights are of.
const NOT_THE_NETWORK: [&str; 3] = ["sample_size", "dropout", "num_train_timesteps"];

/// The first key of diffusers' configuration that differs, with both values.
fn first_difference(
    one: &UNetConfig,
    other: &UNetConfig,
) -> Result<Option<(String, String, String)>> {
    let (one, other) = (keys(one)?, keys(other)?);
    let differs = |key: &&String| {
        one.get(*key) != other.get(*key) && !NOT_THE_NETWORK.contains(&key.as_str())
    };
    let text = |of: &serde_json::Map<String, serde_json::Value>, key: &str| {
        of.get(key)
            .map_or_else(|| "unset".into(), ToString::to_string)
    };
    let found = one.keys().find(differs);
    Ok(found.map(|key| (key.clone(), text(&one, key), text(&other, key))))
}

fn keys(unet: &UNetConfig) -> Result<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(&unet.to_json()).map_err(|e| state("unet/config.json", e))
}

fn state(place: &str, problem: impl ToString) -> Error {
    Error::State {
        place: place.into(),
        problem: problem.to_string(),
    }
}

/// `[model]`: every key of the configuration that is also one of the settings.
fn model_table(unet: &UNetConfig, place: &str) -> Result<Table> {
    let mut table = Table::new();
    for (key, value) in keys(unet)? {
        let Ok(value) = Value::try_from(&value) else {
            continue; // null is said by leaving the key out
        };
        let alone = Table::from_iter([(key.clone(), value.clone())]);
        if alone.try_into::<ModelSettings>().is_ok() {
            table.insert(key, value);
        }
    }
    let settings: ModelSettings = table.clone().try_into().map_err(|e| state(place, e))?;
    let settings = Settings {
        model: settings,
        ..Settings::default()
    };
    let again = settings.unet_config(unet.settings().in_channels, 8, 8)?;
    if let Some((key, value, _)) = first_difference(unet, &again)? {
        let problem = format!(
            "its network has `{key}` = {value}, which the settings of a training cannot say"
        );
        return Err(state(place, problem));
    }
    Ok(table)
}

/// `[diffusion]`: as the run's settings say, or, in a folder of others, its scheduler.
fn diffusion_table(model: &Model, place: &str) -> Result<Table> {
    let recorded = model.run.as_ref().and_then(|run| run.get("diffusion"));
    if let Some(Value::Table(recorded)) = recorded {
        return Ok(recorded.clone());
    }
    let scheduler = &model.scheduler;
    let mut table = Table::new();
    let mut put = |key: &str, value: Value| drop(table.insert(key.into(), value));
    let steps = i64::try_from(scheduler.steps()).map_err(|e| state(place, e))?;
    put("timesteps", steps.into());
    put("zero_terminal_snr", scheduler.zero_terminal_snr().into());
    put("prediction", prediction(scheduler, place)?.into());
    let variance = match scheduler.variance() {
        StepVariance::Fixed(Variance::FixedSmall) => "fixed-small",
        _ => "fixed-large",
    };
    put("variance", variance.into());
    let mut ends = |kind: &str, start: f64, end: f64| {
        put("schedule", kind.into());
        put("beta_start", start.into());
        put("beta_end", end.into());
    };
    match scheduler.betas().cloned() {
        Some(Betas::Linear { start, end }) => ends("linear", start, end),
        Some(Betas::ScaledLinear { start, end }) => ends("scaled-linear", start, end),
        Some(Betas::Sigmoid { start, end }) => ends("sigmoid", start, end),
        Some(Betas::Cosine) => put("schedule", "cosine".into()),
        Some(Betas::Laplace) => put("schedule", "laplace".into()),
        Some(Betas::Trained(betas)) if named(&betas).is_some() => {
            for (key, value) in named(&betas).into_iter().flatten() {
                put(key, value);
            }
        }
        _ => {
            return Err(state(
                place,
                "its noise schedule is none that has a name, which the settings of a training cannot say",
            ));
        }
    }
    Ok(table)
}

/// The keys of a schedule of ours that gives exactly these betas, among those that diffusers has no name for.
fn named(betas: &[f64]) -> Option<Vec<(&'static str, Value)>> {
    let (steps, start, end) = (betas.len(), *betas.first()?, *betas.last()?);
    let kinds = [
        ("jsd", Schedule::jsd(steps), 0),
        ("constant", Schedule::constant(steps, end), 1),
        ("warm-up-10", Schedule::warm_up(steps, start, end, 0.1), 2),
        ("warm-up-50", Schedule::warm_up(steps, start, end, 0.5), 2),
    ];
    let (kind, _, ends) = kinds
        .into_iter()
        .find(|(_, schedule, _)| schedule.as_ref().is_ok_and(|s| s.betas() == betas))?;
    let said = [("beta_end", end.into()), ("beta_start", start.into())];
    let said = said.into_iter().take(ends);
    Some(said.chain([("schedule", kind.into())]).collect())
}

fn prediction(scheduler: &SchedulerConfig, place: &str) -> Result<&'static str> {
    match scheduler.prediction() {
        Some(Prediction::Noise) => Ok("noise"),
        Some(Prediction::Original) => Ok("original"),
        Some(Prediction::Velocity) => Ok("velocity"),
        other => Err(state(
            place,
            format!("its network predicts {other:?}, for which there is no training"),
        )),
    }
}
