//! A trained process on disk: diffusers' `scheduler_config.json` of `DDPMScheduler` and `DDIMScheduler`.

use crate::{Clip, DdimSettings, Error, Process, Result, Sampler, SamplerKind};
use ddpm_core::{Prediction, Schedule, Spacing, Variance};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The version of diffusers whose files these are: written as `_diffusers_version`.
const DIFFUSERS_VERSION: &str = "0.42.1";

/// More steps than any network was trained with; a broken file would ask for all memory.
const MAX_STEPS: usize = 1_000_000;

/// The betas of training, as diffusers' `beta_schedule` and `trained_betas` say them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Betas {
    /// `linear`: [`Schedule::linear`].
    Linear {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// `scaled_linear`: [`Schedule::scaled_linear`].
    ScaledLinear {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// `squaredcos_cap_v2`: [`Schedule::cosine`].
    Cosine,
    /// `sigmoid`: [`Schedule::sigmoid`]; `DDPMScheduler` alone knows it.
    Sigmoid {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// `laplace`: [`Schedule::laplace`]; `DDPMScheduler` alone knows it.
    Laplace,
    /// `trained_betas`: any others, [`Schedule::from_betas`].
    Trained(Vec<f64>),
}

/// What `scheduler_config.json` says: how a network was trained, and how its owner would sample.
///
/// ```
/// use ddpm_samplers::SchedulerConfig;
///
/// let config = SchedulerConfig::from_json(r#"{
///     "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "variance_type": "fixed_large"
/// }"#)?;
/// let process = config.process(50)?;
/// assert_eq!(process.schedule.steps(), 50);
/// assert_eq!(config, SchedulerConfig::from_json(&config.to_json())?);
/// # Ok::<(), ddpm_samplers::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerConfig {
    class: SamplerKind,
    steps: usize,
    betas: Betas,
    zero_terminal_snr: bool,
    prediction: Prediction,
    variance: Variance,
    clip: Clip,
    spacing: Spacing,
    set_alpha_to_one: bool,
}

impl SchedulerConfig {
    /// The configuration of a network trained here: a `DDPMScheduler` with trailing spacing.
    ///
    /// # Errors
    /// When the betas make no schedule of `steps` steps, at most a million; when the range of the clipping is not a finite
    /// number above 0, or the file has no words for it: for [`Clip::PerChannel`] write [`Clip::None`] and set the clip of
    /// the [`Process`] where the range of the data is known.
    pub fn ddpm(
        betas: Betas,
        steps: usize,
        prediction: Prediction,
        variance: Variance,
        clip: Clip,
    ) -> Result<Self> {
        check_steps(steps)?;
        match clip {
            Clip::None => {}
            Clip::Range(range) => check_range(range)?,
            Clip::PerChannel(_) => {
                return Err(Error::Inexpressible {
                    what: "clipping that differs between channels",
                });
            }
        }
        let config = SchedulerConfig {
            class: SamplerKind::Ddpm,
            steps,
            betas,
            zero_terminal_snr: false,
            prediction,
            variance,
            clip,
            spacing: Spacing::Trailing,
            set_alpha_to_one: true,
        };
        config.schedule()?;
        Ok(config)
    }

    /// The same with the betas rescaled to zero terminal SNR (`rescale_betas_zero_snr`).
    ///
    /// # Errors
    /// When the schedule has only one step.
    pub fn with_zero_terminal_snr(mut self) -> Result<Self> {
        self.zero_terminal_snr = true;
        self.schedule()?;
        Ok(self)
    }

    /// Reads `scheduler_config.json`; keys that are missing or null take diffusers' defaults.
    ///
    /// # Errors
    /// When the text is no JSON object; when its class is neither `DDPMScheduler` nor `DDIMScheduler`; when a key is unknown
    /// (unless it is null or starts with `_`); when a value has the wrong type or asks for something that is not there.
    pub fn from_json(text: &str) -> Result<Self> {
        let map: Map<String, Value> = serde_json::from_str(text).map_err(Error::Json)?;
        let mut keys = Keys { map };
        let class = keys.word(
            "_class_name",
            None,
            &[
                ("DDPMScheduler", SamplerKind::Ddpm),
                ("DDIMScheduler", SamplerKind::Ddim),
            ],
        )?;
        let steps = keys.count("num_train_timesteps", 1000)?;
        check_steps(steps)?;
        let config = SchedulerConfig {
            class,
            steps,
            betas: read_betas(&mut keys, steps)?,
            zero_terminal_snr: keys.flag("rescale_betas_zero_snr", false)?,
            prediction: keys.word("prediction_type", Some(Prediction::Noise), &PREDICTIONS)?,
            variance: keys.word("variance_type", Some(Variance::FixedSmall), &VARIANCES)?,
            clip: read_clip(&mut keys)?,
            spacing: read_spacing(&mut keys)?,
            set_alpha_to_one: keys.flag("set_alpha_to_one", true)?,
        };
        keys.finish(class)?;
        config.schedule()?;
        Ok(config)
    }

    /// `scheduler_config.json`, its keys in order as diffusers writes them.
    pub fn to_json(&self) -> String {
        let (word, start, end) = match self.betas {
            Betas::Linear { start, end } => ("linear", start, end),
            Betas::ScaledLinear { start, end } => ("scaled_linear", start, end),
            Betas::Sigmoid { start, end } => ("sigmoid", start, end),
            Betas::Cosine => ("squaredcos_cap_v2", BETA_START, BETA_END),
            Betas::Laplace => ("laplace", BETA_START, BETA_END),
            Betas::Trained(_) => ("linear", BETA_START, BETA_END),
        };
        let trained = match &self.betas {
            Betas::Trained(betas) => json!(betas),
            _ => Value::Null,
        };
        let range = if let Clip::Range(r) = self.clip {
            r
        } else {
            1.0
        };
        let (spacing, offset) = match self.spacing {
            Spacing::Leading { offset } => ("leading", offset),
            Spacing::Linspace => ("linspace", 0),
            Spacing::Trailing => ("trailing", 0),
        };
        let mut file = BTreeMap::from([
            ("_class_name", json!(class_name(self.class))),
            ("_diffusers_version", json!(DIFFUSERS_VERSION)),
            ("num_train_timesteps", json!(self.steps)),
            ("beta_start", json!(start)),
            ("beta_end", json!(end)),
            ("beta_schedule", json!(word)),
            ("trained_betas", json!(trained)),
            ("rescale_betas_zero_snr", json!(self.zero_terminal_snr)),
            (
                "prediction_type",
                json!(word_of(&PREDICTIONS, self.prediction)),
            ),
            ("clip_sample", json!(self.clip != Clip::None)),
            ("clip_sample_range", json!(range)),
            ("thresholding", json!(false)),
            ("dynamic_thresholding_ratio", json!(0.995)),
            ("sample_max_value", json!(1.0)),
            ("timestep_spacing", json!(spacing)),
            ("steps_offset", json!(offset)),
        ]);
        // Each class has one key of its own; the other class's is written where it would be missed.
        if self.class == SamplerKind::Ddpm || self.variance != Variance::FixedSmall {
            file.insert("variance_type", json!(word_of(&VARIANCES, self.variance)));
        }
        if self.class == SamplerKind::Ddim || !self.set_alpha_to_one {
            file.insert("set_alpha_to_one", json!(self.set_alpha_to_one));
        }
        format!("{:#}\n", json!(file))
    }

    /// The schedule of training.
    ///
    /// # Errors
    /// When the betas make no schedule; not for a configuration that was read or made without an error.
    pub fn schedule(&self) -> Result<Schedule> {
        let schedule = match &self.betas {
            Betas::Linear { start, end } => Schedule::linear(self.steps, *start, *end),
            Betas::ScaledLinear { start, end } => Schedule::scaled_linear(self.steps, *start, *end),
            Betas::Sigmoid { start, end } => Schedule::sigmoid(self.steps, *start, *end),
            Betas::Cosine => Schedule::cosine(self.steps),
            Betas::Laplace => Schedule::laplace(self.steps),
            Betas::Trained(betas) if betas.len() != self.steps => {
                let expected = format!("num_train_timesteps = {} numbers", self.steps);
                return Err(wrong(
                    "trained_betas",
                    format!("a list of {}", betas.len()),
                    expected,
                ));
            }
            Betas::Trained(betas) => Schedule::from_betas(betas),
        }?;
        match self.zero_terminal_snr {
            true => Ok(schedule.rescaled_to_zero_terminal_snr()?),
            false => Ok(schedule),
        }
    }

    /// What a walk over `steps` of the steps of training needs, spaced as the file says.
    ///
    /// # Errors
    /// When there are not so many steps, or the offset of the file runs over the end.
    pub fn process(&self, steps: usize) -> Result<Process> {
        let schedule = self.schedule()?;
        let schedule = match steps == schedule.steps() {
            true => schedule,
            false => schedule.respaced(self.spacing, steps)?,
        };
        Ok(Process {
            schedule,
            prediction: self.prediction,
            clip: self.clip.clone(),
        })
    }

    /// The sampler of this kind with the settings of the file; `eta` is for DDIM alone.
    ///
    /// # Errors
    /// When the schedule cannot be made; see [`SchedulerConfig::schedule`].
    pub fn sampler(&self, kind: SamplerKind, eta: f64) -> Result<Sampler> {
        match kind {
            SamplerKind::Ddpm => Ok(Sampler::Ancestral(self.variance)),
            SamplerKind::Ddim => Ok(Sampler::Ddim(self.ddim_settings(eta)?)),
        }
    }

    /// DDIM as the file has it, with this `eta`.
    ///
    /// # Errors
    /// When the schedule cannot be made; see [`SchedulerConfig::schedule`].
    pub fn ddim_settings(&self, eta: f64) -> Result<DdimSettings> {
        let mut settings = DdimSettings::new(eta);
        if !self.set_alpha_to_one {
            let schedule = self.schedule()?;
            settings.alpha_bar_end = schedule.alpha_bar(schedule.timestep(1)?);
        }
        Ok(settings)
    }

    /// The sampler that the file names: `DDPMScheduler` or `DDIMScheduler`.
    pub fn kind(&self) -> SamplerKind {
        self.class
    }

    /// The number of steps of training T.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The betas as the file says them, before any rescaling.
    pub fn betas(&self) -> &Betas {
        &self.betas
    }

    /// Whether the betas are rescaled to zero terminal SNR.
    pub fn zero_terminal_snr(&self) -> bool {
        self.zero_terminal_snr
    }

    /// Why diffusers cannot sample with this file, in words for whoever opens it; `None` when it can.
    pub fn beyond_diffusers(&self) -> Option<&'static str> {
        match self.prediction {
            Prediction::PosteriorMean => Some(
                "the network predicts posterior means, for which diffusers has no prediction_type",
            ),
            _ => None,
        }
    }

    /// What the network outputs.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The variance of ancestral sampling.
    pub fn variance(&self) -> Variance {
        self.variance
    }

    /// How x_0-hat is clipped.
    pub fn clip(&self) -> Clip {
        self.clip.clone()
    }

    /// Which steps a shorter walk keeps.
    pub fn spacing(&self) -> Spacing {
        self.spacing
    }

    /// The same with another spacing.
    pub fn with_spacing(mut self, spacing: Spacing) -> Self {
        self.spacing = spacing;
        self
    }
}

const BETA_START: f64 = 0.0001;
const BETA_END: f64 = 0.02;

/// `posterior_mean` is our word: diffusers has none, and stops with its own message instead of sampling wrongly.
const PREDICTIONS: [(&str, Prediction); 4] = [
    ("epsilon", Prediction::Noise),
    ("sample", Prediction::Original),
    ("v_prediction", Prediction::Velocity),
    ("posterior_mean", Prediction::PosteriorMean),
];

/// The first word of each variance is the one that is written. diffusers' other words: `fixed_small_log` comes to the same as
/// `fixed_small`; `fixed_large_log` takes the root of a logarithm there and yields NaN; the learned ones need two outputs.
const VARIANCES: [(&str, Variance); 3] = [
    ("fixed_small", Variance::FixedSmall),
    ("fixed_large", Variance::FixedLarge),
    ("fixed_small_log", Variance::FixedSmall),
];

fn read_betas(keys: &mut Keys, steps: usize) -> Result<Betas> {
    let start = keys.number("beta_start", BETA_START)?;
    let end = keys.number("beta_end", BETA_END)?;
    let named = keys.word(
        "beta_schedule",
        Some(Betas::Linear { start, end }),
        &[
            ("linear", Betas::Linear { start, end }),
            ("scaled_linear", Betas::ScaledLinear { start, end }),
            ("squaredcos_cap_v2", Betas::Cosine),
            ("sigmoid", Betas::Sigmoid { start, end }),
            ("laplace", Betas::Laplace),
        ],
    )?;
    let Some(value) = keys.take("trained_betas") else {
        return Ok(named);
    };
    let numbers = value
        .as_array()
        .and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
    match numbers {
        Some(betas) => Ok(Betas::Trained(betas)),
        None => Err(wrong(
            "trained_betas",
            value,
            format!("null or {steps} numbers"),
        )),
    }
}

fn read_clip(keys: &mut Keys) -> Result<Clip> {
    let range = keys.number("clip_sample_range", 1.0)?;
    check_range(range)?;
    keys.number("dynamic_thresholding_ratio", 0.995)?;
    keys.number("sample_max_value", 1.0)?;
    if keys.flag("thresholding", false)? {
        return Err(wrong(
            "thresholding",
            true,
            "false: dynamic thresholding is not supported",
        ));
    }
    match keys.flag("clip_sample", true)? {
        true => Ok(Clip::Range(range)),
        false => Ok(Clip::None),
    }
}

fn read_spacing(keys: &mut Keys) -> Result<Spacing> {
    let leading = Spacing::Leading {
        offset: keys.count("steps_offset", 0)?,
    };
    let words = [
        ("leading", leading),
        ("linspace", Spacing::Linspace),
        ("trailing", Spacing::Trailing),
    ];
    keys.word("timestep_spacing", Some(leading), &words)
}

fn check_steps(steps: usize) -> Result<()> {
    match steps <= MAX_STEPS {
        true => Ok(()),
        false => {
            let expected = format!("at most {MAX_STEPS}");
            Err(wrong("num_train_timesteps", steps, expected))
        }
    }
}

/// JSON has no infinity and no NaN: they would be written as null, which is read as the default.
fn check_range(range: f64) -> Result<()> {
    match range > 0.0 && range.is_finite() {
        true => Ok(()),
        false => Err(wrong("clip_sample_range", range, "a finite number above 0")),
    }
}

/// The keys of a file that have not been read yet.
struct Keys {
    map: Map<String, Value>,
}

impl Keys {
    /// The value of a key, unless it is missing or null.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    fn number(&mut self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        value.as_f64().ok_or_else(|| wrong(key, &value, "a number"))
    }

    fn count(&mut self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| wrong(key, &value, "a whole number of at least 0"))
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.take(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| wrong(key, &value, "true or false"))
    }

    fn word<T: Clone>(&mut self, key: &str, default: Option<T>, words: &[(&str, T)]) -> Result<T> {
        let value = self.take(key);
        if let (None, Some(default)) = (&value, default) {
            return Ok(default);
        }
        let word = value.as_ref().and_then(Value::as_str);
        let found = words.iter().find(|(name, _)| Some(*name) == word);
        found.map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
            let names: Vec<String> = words.iter().map(|(name, _)| format!("`{name}`")).collect();
            let value = value
                .as_ref()
                .map_or("missing".to_owned(), Value::to_string);
            wrong(key, value, format!("one of {}", names.join(", ")))
        })
    }

    /// Fails when a key is left that means something.
    fn finish(self, class: SamplerKind) -> Result<()> {
        let unknown = self
            .map
            .into_iter()
            .find(|(key, value)| !key.starts_with('_') && !value.is_null());
        match unknown {
            None => Ok(()),
            Some((key, _)) => Err(Error::UnknownKey {
                key,
                class: class_name(class),
            }),
        }
    }
}

fn class_name(class: SamplerKind) -> &'static str {
    match class {
        SamplerKind::Ddpm => "DDPMScheduler",
        SamplerKind::Ddim => "DDIMScheduler",
    }
}

fn word_of<T: PartialEq>(words: &[(&'static str, T)], meaning: T) -> Option<&'static str> {
    words
        .iter()
        .find(|(_, m)| *m == meaning)
        .map(|(word, _)| *word)
}

fn wrong(key: &str, value: impl ToString, expected: impl Into<String>) -> Error {
    Error::Value {
        key: key.to_owned(),
        value: value.to_string(),
        expected: expected.into(),
    }
}
