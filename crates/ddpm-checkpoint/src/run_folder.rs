//! The checkpoints of a run: `RUN/checkpoints/step-00001000/`, written whole, listed, thinned out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::durable;
use crate::pipeline::{INDEX, NOTE, Parts, check_shapes, read_text};
use crate::tensor_file::{TensorFile, write_tensors};
use crate::{Card, Error, Pipeline, Result};

/// What training needs besides the model, to go on as if it had never stopped.
#[derive(Debug, Clone, Default)]
pub struct TrainState {
    /// `raw.NAME` (the weights that are trained), `adam.m.NAME` and `adam.v.NAME` (the moments), `ema.RATE.NAME` (every
    /// average), with diffusers' NAMEs.
    pub tensors: Vec<(String, Tensor)>,
    /// Everything countable (step, images seen, seed ...), as text; `step` is shown to users.
    pub counters: BTreeMap<String, String>,
}

/// One checkpoint folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The optimiser steps behind it, from the folder's name.
    pub step: u64,
    /// The folder.
    pub path: PathBuf,
}

/// A checkpoint that was passed over because it is not whole.
#[derive(Debug)]
pub struct Skipped {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What is wrong with it.
    pub reason: Box<Error>,
}

/// The newest checkpoint that can be read, and the newer ones that cannot.
#[derive(Debug)]
pub struct Newest {
    /// `None` if no checkpoint is whole.
    pub checkpoint: Option<Checkpoint>,
    /// Newer checkpoints that were passed over, newest first.
    pub skipped: Vec<Skipped>,
}

/// The folder of a run's checkpoints.
pub fn checkpoints_folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Writes `RUN/checkpoints/step-NNNNNNNN/`, whole or not at all, and synced to the disk before it becomes visible.
///
/// A checkpoint of the same step is replaced. Drafts left by a process that was killed are removed.
///
/// # Errors
/// When the weights are not the network's or something cannot be written; the error names the path and what it was.
pub fn write_checkpoint(
    run: &Path,
    step: u64,
    pipeline: &Pipeline,
    state: &TrainState,
    run_toml: &str,
) -> Result<PathBuf> {
    let folder = checkpoints_folder(run).join(format!("step-{step:08}"));
    durable::replace_folder(&folder, "the checkpoint", |draft| {
        pipeline.write_files(draft)?;
        pipeline.write_card(draft, &card(run, step, run_toml))?;
        write_tensors(
            &draft.join(STATE),
            "the training state",
            &state.tensors,
            &state.counters,
        )?;
        durable::write_file(
            &draft.join(RUN_TOML),
            "the run's settings",
            run_toml.as_bytes(),
        )
    })?;
    Ok(folder)
}

/// The page of a checkpoint: the run's name, its data, its settings.
fn card<'a>(run: &Path, step: u64, run_toml: &'a str) -> Card<'a> {
    let name = run.file_name().map(|name| name.display().to_string());
    let settings: Option<toml::Table> = run_toml.parse().ok();
    let data =
        settings.and_then(|table| Some(table.get("data")?.get("name")?.as_str()?.to_owned()));
    Card {
        title: name.unwrap_or_default(),
        data,
        rows: vec![("training", format!("{step} steps"))],
        settings: Some(run_toml),
        ..Card::default()
    }
}

/// All checkpoints of a run, whole or not, oldest first; none if the run has no such folder.
///
/// # Errors
/// When the folder is there but cannot be read.
pub fn list_checkpoints(run: &Path) -> Result<Vec<Checkpoint>> {
    let folder = checkpoints_folder(run);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::read(&folder)(error)),
    };
    let mut checkpoints = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::read(&folder))?;
        if let Some(step) = step_of(&entry.path()) {
            checkpoints.push(Checkpoint {
                step,
                path: entry.path(),
            });
        }
    }
    checkpoints.sort_by_key(|checkpoint| checkpoint.step);
    Ok(checkpoints)
}

/// The newest checkpoint of a run that passes [`validate`]; the newer ones that do not are named.
///
/// # Errors
/// When the run's folder cannot be read. That no checkpoint is whole is no error here.
pub fn newest_whole(run: &Path) -> Result<Newest> {
    let mut skipped = Vec::new();
    for checkpoint in list_checkpoints(run)?.into_iter().rev() {
        match validate(&checkpoint.path) {
            Ok(()) => {
                return Ok(Newest {
                    checkpoint: Some(checkpoint),
                    skipped,
                });
            }
            Err(reason) => skipped.push(Skipped {
                checkpoint,
                reason: Box::new(reason),
            }),
        }
    }
    Ok(Newest {
        checkpoint: None,
        skipped,
    })
}

/// Checks a checkpoint without reading its numbers: every file there, JSON and TOML parse, the headers and lengths of
/// the tensor files right, and the weights, raw and averaged, those of the network.
///
/// # Errors
/// The first thing that is wrong.
pub fn validate(checkpoint: &Path) -> Result<()> {
    if !checkpoint.join(INDEX).is_file() && !checkpoint.join(NOTE).is_file() {
        let path = checkpoint.join(INDEX);
        return Err(Error::Missing {
            path,
            why: "every checkpoint has one",
        });
    }
    let unet = Parts::find(checkpoint)?.validate()?;
    let path = checkpoint.join(STATE);
    if !path.is_file() {
        return Err(Error::Missing {
            path,
            why: "training cannot go on without it",
        });
    }
    let shapes = TensorFile::open(&path)?.shapes();
    for prefix in weight_prefixes(&shapes, &unet) {
        check_shapes(&path, &shapes, &prefix, &unet)?;
    }
    read_run_toml(checkpoint).map(drop)
}

/// Reads the training state of a checkpoint, every tensor in the type it was written in.
///
/// # Errors
/// When it is missing, cut short or no safetensors file.
pub fn read_train_state(checkpoint: &Path) -> Result<TrainState> {
    let mut file = TensorFile::open(&checkpoint.join(STATE))?;
    let tensors = file
        .names()
        .into_iter()
        .map(|name| Ok((file.read(&name)?, name)));
    let tensors = tensors
        .map(|pair| pair.map(|(tensor, name)| (name, tensor)))
        .collect::<Result<_>>()?;
    Ok(TrainState {
        tensors,
        counters: file.metadata(),
    })
}

/// Reads `run.toml` of a run or a checkpoint.
///
/// # Errors
/// When it is missing or no TOML.
pub fn read_run_toml(folder: &Path) -> Result<toml::Table> {
    let path = folder.join(RUN_TOML);
    if !path.is_file() {
        return Err(Error::Missing {
            path,
            why: "it holds the run's settings",
        });
    }
    read_text(&path)?
        .parse()
        .map_err(|error: toml::de::Error| Error::malformed(&path, error.to_string().trim_end()))
}

/// Removes all but the newest `n` checkpoints and returns the folders removed; 0 keeps one, never none.
///
/// Whole checkpoints count, half-written ones older than the newest kept are removed as well.
///
/// # Errors
/// When a folder cannot be removed; it is then still whole or no longer visible.
pub fn keep_last(run: &Path, n: usize) -> Result<Vec<PathBuf>> {
    let mut whole = 0;
    let mut removed = Vec::new();
    for checkpoint in list_checkpoints(run)?.into_iter().rev() {
        if whole >= n.max(1) {
            durable::remove_folder(&checkpoint.path)?;
            removed.push(checkpoint.path);
        } else if validate(&checkpoint.path).is_ok() {
            whole += 1;
        }
    }
    Ok(removed)
}

/// The training state in a checkpoint.
pub(crate) const STATE: &str = "train_state.safetensors";
const RUN_TOML: &str = "run.toml";

/// `step-00001000` -> 1000; drafts and everything else are no checkpoints.
pub(crate) fn step_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix("step-")?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// `raw.`, and `ema.RATE.` for every rate, as far as the state holds any tensor of them.
fn weight_prefixes(
    shapes: &BTreeMap<String, Vec<usize>>,
    unet: &ddpm_unet::NetworkConfig,
) -> Vec<String> {
    let rates = ema_rates(shapes.keys(), unet)
        .into_iter()
        .map(|rate| format!("ema.{rate}."));
    let raw = shapes
        .keys()
        .any(|name| name.starts_with("raw."))
        .then(|| "raw.".to_owned());
    raw.into_iter().chain(rates).collect()
}

/// The rates of the averages in a state, from the names `ema.RATE.NAME` of the network's first parameter.
pub(crate) fn ema_rates<'a>(
    names: impl Iterator<Item = &'a String>,
    unet: &ddpm_unet::NetworkConfig,
) -> Vec<String> {
    let Some((first, _)) = unet.parameters().into_iter().next() else {
        return Vec::new();
    };
    let rate = |name: &String| {
        name.strip_prefix("ema.")?
            .strip_suffix(&first)?
            .strip_suffix('.')
            .map(str::to_owned)
    };
    names.filter_map(rate).collect()
}
