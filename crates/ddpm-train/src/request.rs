//! What was typed, understood: settings laid over one another and checked, and the folder of the run.

use std::path::{Path, PathBuf};

use ddpm_checkpoint::Arch;
use ddpm_train::{Decay, Init, Layer, Preset, Recorded, Settings};

use crate::failure::Failure;
use crate::flags::Flags;

/// A run to begin or to continue.
pub(crate) struct Request {
    pub(crate) settings: Settings,
    pub(crate) preset: Option<String>,
    pub(crate) folder: PathBuf,
    pub(crate) resume: bool,
    /// The model that the run begins from.
    pub(crate) init: Option<Init>,
    /// The checkpoint that the settings come from, where the run has lost its own.
    pub(crate) settings_from: Option<PathBuf>,
}

impl Request {
    pub(crate) fn new(flags: &Flags) -> Result<Self, Failure> {
        let folder = run_folder(flags)?;
        let mut layers = Vec::new();
        let mut preset = flags.preset.clone();
        let mut settings_from = None;
        if flags.resume {
            let recorded = Recorded::read(&folder)?;
            check_preset(&folder, preset.as_deref(), recorded.preset.as_deref())?;
            preset = recorded.preset;
            let text = recorded.settings.to_toml()?;
            layers.push(Layer::from_text(&folder.display().to_string(), &text)?);
            settings_from = recorded.from_checkpoint;
        } else if let Some(name) = &flags.preset {
            layers.push(Preset::named(name)?.layer()?);
        }
        let weights = flags.weights.clone().unwrap_or_default();
        let arch = Arch::new(&flags.arch).map_err(ddpm_train::Error::from)?;
        let init = flags.init.as_deref();
        let init = init.map(|path| Init::read(path, &arch, &weights));
        let init = init.transpose()?;
        if let Some(init) = &init {
            let recipes = layers
                .into_iter()
                .map(|layer| layer.without(&["model", "diffusion"]));
            layers = recipes.chain([init.layer().clone()]).collect();
        }
        if let Some(path) = &flags.config {
            layers.push(read_config(path)?);
        }
        layers.extend(flag_layers(flags)?);
        let settings = lift_steps(flags, layers)?.resolved();
        if !flags.resume {
            settings.check()?; // a resumed run first says what may not be changed
        }
        if let Some(init) = &init {
            init.check(&settings)?;
        }
        settings.data_spec()?;
        Ok(Self {
            settings,
            preset,
            folder,
            resume: flags.resume,
            init,
            settings_from,
        })
    }
}

/// `--preset` with `--resume` only finds the folder; that it would be ignored is said.
fn check_preset(folder: &Path, asked: Option<&str>, was: Option<&str>) -> Result<(), Failure> {
    let folder = folder.display();
    match (asked, was) {
        (Some(asked), Some(was)) if asked != was => Err(Failure::usage(format!(
            "`{folder}` was begun with --preset {was}, not {asked}; leave --preset out to resume it"
        ))),
        (Some(asked), None) => Err(Failure::usage(format!(
            "`{folder}` was not begun with --preset {asked}; resume it with --resume --out {folder}"
        ))),
        _ => Ok(()),
    }
}

/// Where the run is: `--out`, or `runs/NAME` after the preset or the file.
pub(crate) fn run_folder(flags: &Flags) -> Result<PathBuf, Failure> {
    let from_config = || {
        flags
            .config
            .as_ref()
            .and_then(|path| path.file_stem())
            .map(|stem| stem.display().to_string())
    };
    match (&flags.out, flags.preset.clone().or_else(from_config)) {
        (Some(out), _) => Ok(out.clone()),
        (None, Some(name)) => Ok(Path::new("runs").join(name)),
        (None, None) if flags.resume => Err(Failure::usage(
            "say which run to resume: --resume --out RUN_DIR",
        )),
        (None, None) if flags.export.is_some() => Err(Failure::usage(
            "say which run to export: --export DIR --out RUN_DIR",
        )),
        (None, None) => Err(Failure::usage("say where to write: --out RUN_DIR")),
    }
}

/// A file of settings. The `run.toml` of a run or of a shipped model is one too: what it says besides is passed over.
fn read_config(path: &Path) -> Result<Layer, Failure> {
    let mut text = std::fs::read_to_string(path).map_err(|source| ddpm_train::Error::Io {
        action: "read",
        path: path.into(),
        source,
    })?;
    if let Ok(mut table) = text.parse::<toml::Table>()
        && table.remove("run").is_some()
    {
        text = table.to_string();
    }
    Ok(Layer::from_text(&path.display().to_string(), &text)?)
}

/// Flags above files, `--set` above flags. `--steps` alone lifts the minutes.
fn flag_layers(flags: &Flags) -> Result<Vec<Layer>, Failure> {
    let mut layers = Vec::new();
    let mut flag = |name: &str, key: &str, value: Option<toml::Value>| -> Result<(), Failure> {
        if let Some(value) = value {
            layers.push(Layer::one(format!("--{name} {value}"), key, value)?);
        }
        Ok(())
    };
    let path = |path: &PathBuf| toml::Value::from(path.display().to_string());
    flag(
        "data",
        "data.name",
        flags.data.clone().map(toml::Value::from),
    )?;
    flag(
        "data-dir",
        "data.directory",
        flags.data_dir.as_ref().map(path),
    )?;
    flag("steps", "train.steps", flags.steps.map(whole).transpose()?)?;
    flag(
        "minutes",
        "train.minutes",
        flags.minutes.map(toml::Value::from),
    )?;
    flag(
        "batch-size",
        "train.batch_size",
        flags.batch_size.map(whole).transpose()?,
    )?;
    flag("seed", "train.seed", flags.seed.map(whole).transpose()?)?;
    flag(
        "threads",
        "train.threads",
        flags.threads.map(whole).transpose()?,
    )?;
    flag(
        "device",
        "train.device",
        flags.device.clone().map(toml::Value::from),
    )?;
    flag(
        "precision",
        "train.precision",
        flags.precision.clone().map(toml::Value::from),
    )?;
    if let (Some(_), None) = (flags.steps, flags.minutes) {
        layers.push(Layer::lift("--steps".into(), "train", "minutes"));
    }
    for text in &flags.set {
        layers.push(Layer::from_assignment(text)?);
    }
    Ok(layers)
}

/// `--minutes` alone lifts the steps, unless the learning rate decays over them: then there are both limits.
fn lift_steps(flags: &Flags, mut layers: Vec<Layer>) -> Result<Settings, Failure> {
    let settings = Settings::from_layers(&layers)?;
    let set = |text: &String| text.trim_start().starts_with("train.steps");
    let alone = flags.minutes.is_some() && flags.steps.is_none() && !flags.set.iter().any(set);
    if !alone || settings.optimizer.decay != Decay::Constant {
        return Ok(settings);
    }
    layers.push(Layer::lift("--minutes".into(), "train", "steps"));
    Ok(Settings::from_layers(&layers)?)
}

fn whole(n: impl TryInto<i64> + Copy + std::fmt::Display) -> Result<toml::Value, Failure> {
    n.try_into().map(toml::Value::from).map_err(|_| {
        Failure::usage(format!(
            "{n} is too large; at most {} can be recorded",
            i64::MAX
        ))
    })
}
