//! From what a user points at to a model: a run, a checkpoint or any diffusers folder, and which of its weights.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ddpm_samplers::SchedulerConfig;
use ddpm_unet::NetworkConfig;

use crate::pipeline::{Parts, not_a_model, read_weights};
use crate::run_folder::{
    STATE, Skipped, checkpoints_folder, ema_rates, newest_whole, read_run_toml, step_of,
};
use crate::tensor_file::TensorFile;
use crate::{Arch, Error, ForeignFile, Hub, HubModel, HubName, Pipeline, Result, Tell};

/// A model folder that was found, with what is known about it before its weights are read.
#[derive(Debug)]
pub struct Model {
    /// The folder of the pipeline: of a run, its newest whole checkpoint; or the file of another program.
    pub folder: PathBuf,
    /// The network's configuration.
    pub unet: NetworkConfig,
    /// Schedule, prediction and clipping.
    pub scheduler: SchedulerConfig,
    /// The settings it was trained with, if the folder tells (`run.toml`).
    pub run: Option<toml::Table>,
    /// The counters of its training, if the folder holds a training state; the steps behind it are in `step`.
    pub counters: BTreeMap<String, String>,
    /// The rates of the averages that can be chosen, as written in the training state.
    pub ema_rates: Vec<String>,
    /// Whether raw weights can be chosen.
    pub has_raw: bool,
    /// Newer checkpoints of the run that were passed over because they are not whole.
    pub skipped: Vec<Skipped>,
    /// What was said of a file of another program, if that is what `folder` is.
    pub foreign: Option<Arch>,
    /// Where it comes from, if it is one of the Hub.
    pub hub: Option<HubModel>,
}

/// Which weights of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Weights {
    /// The model's own: the average of the first listed rate, or all there is in a foreign folder.
    #[default]
    Ema,
    /// The weights that training works on.
    Raw,
    /// The average of this rate, as written in the settings (`0.9999`).
    EmaRate(String),
}

/// Finds the model at a path: a run folder (its newest whole checkpoint), a checkpoint, or a diffusers folder.
///
/// # Errors
/// When nothing there is a model (what was looked for is listed), no checkpoint of the run is whole (each is named
/// with what is wrong), or the model is not one that can be read.
pub fn resolve_model(path: &Path) -> Result<Model> {
    resolve_model_as(path, &Arch::default())
}

/// As [`resolve_model`], where the path may also be a file that another program wrote; `arch` says what it does not.
///
/// # Errors
/// As [`resolve_model`] and [`ForeignFile::convert`]; facts about a folder, which tells all itself.
pub fn resolve_model_as(path: &Path, arch: &Arch) -> Result<Model> {
    resolve_model_with(path, arch, &mut |_, _, _| ())
}

/// As [`resolve_model_as`], where the path may also be the name of a model of the Hugging Face Hub, as long as no folder
/// here has the name of its owner; `tell` is told what comes of it.
///
/// # Errors
/// As [`resolve_model_as`] and [`HubName::resolve`].
pub fn resolve_model_with(path: &Path, arch: &Arch, tell: Tell<'_>) -> Result<Model> {
    if let Some(name) = HubName::of_no_path(path) {
        let hub = name.resolve(&Hub::of_environment()?, tell)?;
        let model = resolve_model_with(&hub.folder, arch, tell)?;
        return Ok(Model {
            hub: Some(hub),
            ..model
        });
    }
    if path.is_file() {
        return Model::of_file(path, arch);
    }
    if !arch.is_empty() {
        let folder = path.display();
        let text =
            format!("it would be ignored: {folder} is not a file; folders say what they are");
        return Err(Error::ArchText(text));
    }
    if !checkpoints_folder(path).is_dir() {
        return Model::open(path, Vec::new());
    }
    let newest = newest_whole(path)?;
    match newest.checkpoint {
        Some(checkpoint) => Model::open(&checkpoint.path, newest.skipped),
        None if newest.skipped.is_empty() && path.join("unet").is_dir() => {
            Model::open(path, Vec::new())
        }
        None => Err(Error::NoWholeCheckpoint {
            run: path.to_owned(),
            skipped: newest.skipped,
        }),
    }
}

/// Looks for `checkpoints/NAME` in the folders given and in all folders above each of them, nearest first.
///
/// # Errors
/// When it is nowhere.
pub fn find_shipped(name: &str, starts: &[PathBuf]) -> Result<PathBuf> {
    let shipped = Path::new("checkpoints").join(name);
    let mut candidates = starts
        .iter()
        .flat_map(|start| start.ancestors())
        .map(|folder| folder.join(&shipped));
    candidates
        .find(|folder| folder.is_dir())
        .ok_or_else(|| not_a_model(&shipped, "it is in no folder above"))
}

impl Model {
    fn open(folder: &Path, skipped: Vec<Skipped>) -> Result<Self> {
        let parts = Parts::find(folder)?;
        let (unet, scheduler) = (parts.read_unet()?, parts.read_scheduler()?);
        let run = if folder.join("run.toml").is_file() {
            Some(read_run_toml(folder)?)
        } else {
            None
        };
        let state = folder.join(STATE);
        let state = if state.is_file() {
            Some(TensorFile::open(&state)?)
        } else {
            None
        };
        let names = state.as_ref().map(TensorFile::names).unwrap_or_default();
        Ok(Self {
            folder: folder.to_owned(),
            ema_rates: ema_rates(names.iter(), &unet),
            has_raw: names.iter().any(|name| name.starts_with("raw.")),
            counters: state.as_ref().map(TensorFile::metadata).unwrap_or_default(),
            unet,
            scheduler,
            run,
            skipped,
            foreign: None,
            hub: None,
        })
    }

    fn of_file(path: &Path, arch: &Arch) -> Result<Self> {
        let mut file = ForeignFile::open(path)?;
        let (unet, scheduler) = file.describe(arch)?;
        Ok(Self {
            folder: path.to_owned(),
            unet,
            scheduler,
            run: None,
            counters: BTreeMap::new(),
            ema_rates: Vec::new(),
            has_raw: file.has_raw(),
            skipped: Vec::new(),
            foreign: Some(arch.clone()),
            hub: None,
        })
    }

    /// The optimiser steps behind the model, if it tells: its training state's counter `step`, or its folder's name.
    pub fn step(&self) -> Option<u64> {
        let counted = self.counters.get("step").and_then(|text| text.parse().ok());
        counted.or_else(|| step_of(&self.folder))
    }

    /// Reads the chosen weights.
    ///
    /// # Errors
    /// When the model has no such weights (those it has are listed), or a file is cut short or of another network.
    pub fn load(&self, weights: &Weights) -> Result<Pipeline> {
        if let Some(arch) = &self.foreign {
            return ForeignFile::open(&self.folder)?.convert(arch, weights);
        }
        let pipeline = |weights| Pipeline::new(self.unet.clone(), weights, self.scheduler.clone());
        match weights {
            Weights::Ema => Pipeline::load(&self.folder),
            Weights::Raw if self.has_raw => self.read_state("raw.").map(pipeline),
            Weights::EmaRate(asked) => {
                match self.ema_rates.iter().find(|rate| same_rate(rate, asked)) {
                    Some(rate) => self.read_state(&format!("ema.{rate}.")).map(pipeline),
                    None => Err(self.no_such(weights)),
                }
            }
            Weights::Raw => Err(self.no_such(weights)),
        }
    }

    fn read_state(&self, prefix: &str) -> Result<Vec<(String, candle_core::Tensor)>> {
        read_weights(
            &mut TensorFile::open(&self.folder.join(STATE))?,
            prefix,
            &self.unet,
        )
    }

    fn no_such(&self, asked: &Weights) -> Error {
        let raw = self.has_raw.then(|| Weights::Raw.to_string());
        let rates = self
            .ema_rates
            .iter()
            .map(|rate| Weights::EmaRate(rate.clone()).to_string());
        let there = [Weights::Ema.to_string()]
            .into_iter()
            .chain(raw)
            .chain(rates)
            .collect();
        Error::NoSuchWeights {
            path: self.folder.clone(),
            asked: asked.to_string(),
            there,
        }
    }
}

impl FromStr for Weights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.strip_prefix("ema:")) {
            ("ema", _) => Ok(Self::Ema),
            ("raw", _) => Ok(Self::Raw),
            (_, Some(rate)) if is_rate(rate) => Ok(Self::EmaRate(rate.to_owned())),
            _ => Err(Error::WeightsText(text.to_owned())),
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ema => f.write_str("ema"),
            Self::Raw => f.write_str("raw"),
            Self::EmaRate(rate) => write!(f, "ema:{rate}"),
        }
    }
}

/// An average that forgets nothing or everything is none.
fn is_rate(text: &str) -> bool {
    text.parse::<f64>()
        .is_ok_and(|rate| rate > 0.0 && rate < 1.0)
}

/// 0.9990 is 0.999.
fn same_rate(one: &str, other: &str) -> bool {
    one == other || matches!((one.parse::<f64>(), other.parse::<f64>()), (Ok(a), Ok(b)) if a == b)
}
