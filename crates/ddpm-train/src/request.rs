//! What was typed, understood: settings laid over one another and checked, and the folder of the run.

use std::path::{Path, PathBuf};

use ddpm_train::{Layer, Preset, Recorded, Settings};

use crate::flags::Flags;

/// A run to begin or to continue.
pub(crate) struct Request {
    pub(crate) settings: Settings,
    pub(crate) preset: Option<String>,
    pub(crate) folder: PathBuf,
    pub(crate) resume: bool,
}

impl Request {
    pub(crate) fn new(flags: &Flags) -> Result<Self, Usage> {
        let folder = run_folder(flags)?;
        let mut layers = Vec::new();
        let mut preset = flags.preset.clone();
        if flags.resume {
            let recorded = Recorded::read(&folder)?;
            if let (Some(asked), Some(was)) = (&preset, &recorded.preset)
                && asked != was
            {
                let folder = folder.display();
                return Err(Usage(format!(
                    "`{folder}` was begun with --preset {was}, not {asked}; leave --preset out to resume it"
                )));
            }
            preset = recorded.preset;
            let text = recorded.settings.to_toml()?;
            layers.push(Layer::from_text(
                &folder.join("run.toml").display().to_string(),
                &text,
            )?);
        } else if let Some(name) = &flags.preset {
            layers.push(Preset::named(name)?.layer()?);
        }
        if let Some(path) = &flags.config {
            layers.push(read_config(path)?);
        }
        layers.extend(flag_layers(flags)?);
        let settings = Settings::from_layers(&layers)?.resolved();
        if !flags.resume {
            settings.check()?;
        }
        Ok(Self {
            settings,
            preset,
            folder,
            resume: flags.resume,
        })
    }
}

/// The flags were wrong: exit status 2.
pub(crate) struct Usage(pub(crate) String);

impl From<ddpm_train::Error> for Usage {
    fn from(error: ddpm_train::Error) -> Self {
        Self(error.to_string())
    }
}

fn run_folder(flags: &Flags) -> Result<PathBuf, Usage> {
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
        (None, None) if flags.resume => Err(Usage(
            "say which run to resume: --resume --out RUN_DIR".into(),
        )),
        (None, None) => Err(Usage("say where to write: --out RUN_DIR".into())),
    }
}

fn read_config(path: &Path) -> Result<Layer, Usage> {
    let place = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|e| Usage(format!("cannot read `{place}`: {e}")))?;
    Ok(Layer::from_text(&place, &text)?)
}

/// Flags above files, `--set` above flags. `--steps` and `--minutes` each stand for both limits: the one given alone
/// lifts the other.
fn flag_layers(flags: &Flags) -> Result<Vec<Layer>, Usage> {
    let mut layers = Vec::new();
    let mut flag = |name: &str, key: &str, value: Option<toml::Value>| -> Result<(), Usage> {
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
    match (flags.steps, flags.minutes) {
        (Some(_), None) => layers.push(Layer::lift("--steps".into(), "train", "minutes")),
        (None, Some(_)) => layers.push(Layer::lift("--minutes".into(), "train", "steps")),
        _ => {}
    }
    for text in &flags.set {
        layers.push(Layer::from_assignment(text)?);
    }
    Ok(layers)
}

fn whole(n: impl TryInto<i64> + Copy + std::fmt::Display) -> Result<toml::Value, Usage> {
    n.try_into().map(toml::Value::from).map_err(|_| {
        Usage(format!(
            "{n} is too large; at most {} can be recorded",
            i64::MAX
        ))
    })
}
