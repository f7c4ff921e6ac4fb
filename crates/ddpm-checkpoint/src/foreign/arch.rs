//! What a user says about a file that the file itself does not: `KEY=VALUE`, each key used or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ddpm_core::{Prediction, Schedule, Variance};
use ddpm_samplers::{Betas, Clip, SchedulerConfig};
use ddpm_unet::SampleSize;

use super::Layout;
use crate::{Error, Result};

/// Facts about a foreign model, by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arch(BTreeMap<String, String>);

/// Every key, and what it says. Those of OpenAI's and of lucidrains' are called as in their programs.
const KEYS: [(&str, &str); 39] = [
    ("image_size", "the images' side, N or HxW"),
    ("noise_schedule", "the name of the schedule of its betas"),
    ("diffusion_steps", "the steps that it was trained with"),
    ("beta_start", "the first beta of a schedule with ends"),
    ("beta_end", "the last beta of a schedule with ends"),
    ("num_heads", "attention heads"),
    ("num_heads_upsample", "attention heads on the way up"),
    ("num_head_channels", "channels of a head"),
    ("use_new_attention_order", "true or false"),
    (
        "rescale_timesteps",
        "whether the network was told t * 1000 / diffusion_steps",
    ),
    (
        "predict_xstart",
        "whether the network tells the clean image",
    ),
    ("sigma_small", "whether the fixed variance is the small one"),
    ("num_groups", "groups of a normalisation"),
    ("learn_sigma", "whether the network tells the variance"),
    ("class_cond", "whether the network is told a class"),
    ("num_channels", "channels of the first level"),
    ("num_res_blocks", "residual blocks a level"),
    (
        "resblock_updown",
        "whether residual blocks halve and double",
    ),
    ("use_scale_shift_norm", "whether the time scales and shifts"),
    ("patch_size", "the side of the patches that become channels"),
    ("input_channels", "channels of an image"),
    ("has_variance", "whether the network tells a variance"),
    ("skip_stages", "stages that its training skipped"),
    ("sigma_data", "the deviation of the images' numbers"),
    ("sigma_min", "the least level of noise"),
    ("sigma_max", "the largest level of noise"),
    (
        "version",
        "the version of denoising-diffusion-pytorch that trained it",
    ),
    ("timesteps", "the steps that it was trained with"),
    ("beta_schedule", "linear, cosine or sigmoid"),
    ("objective", "pred_noise, pred_x0 or pred_v"),
    ("resnet_block_groups", "groups of a normalisation"),
    ("attn_heads", "attention heads, one number or one a level"),
    (
        "sinusoidal_pos_emb_theta",
        "the longest period of the time's sinusoids",
    ),
    ("dim", "as many sinusoids tell the time"),
    ("channels", "channels of an image"),
    (
        "self_condition",
        "whether the network is told what it last took for the image",
    ),
    ("learned_variance", "whether the network tells the variance"),
    ("conv_shortcut", "whether shortcuts are 3 by 3 convolutions"),
    ("resamp_with_conv", "whether convolutions halve and double"),
];

/// The noise schedules of Ho's program and of DDIM's (which has the sigmoid), and OpenAI's cosine on their network.
const HO_SCHEDULES: [&str; 8] = [
    "linear", "cosine", "quad", "sigmoid", "warmup10", "warmup50", "const", "jsd",
];
/// Those of improved- and guided-diffusion.
const OPENAI_SCHEDULES: [&str; 2] = ["linear", "cosine"];

impl Arch {
    /// Reads `KEY=VALUE` texts.
    ///
    /// # Errors
    /// [`Error::ArchText`]: a text that is none, a key that is unknown or given twice.
    pub fn new<T: AsRef<str>>(pairs: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut arch = BTreeMap::new();
        for pair in pairs {
            let pair = pair.as_ref();
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.is_empty())
            else {
                return Err(Error::ArchText(format!("`{pair}` is not KEY=VALUE")));
            };
            let (key, value) = (key.trim().trim_start_matches("--"), value.trim());
            if !KEYS.iter().any(|(known, _)| *known == key) {
                let known = KEYS.map(|(known, _)| known).join(", ");
                return Err(Error::ArchText(format!("`{key}` is not one of {known}")));
            }
            if arch.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(Error::ArchText(format!("`{key}` is given twice")));
            }
        }
        Ok(Self(arch))
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Asks for keys one by one and keeps count of what is missing and what was used.
pub(super) struct Answers<'a> {
    path: &'a Path,
    layout: Layout,
    arch: &'a Arch,
    used: BTreeSet<&'static str>,
    missing: Vec<(&'static str, String)>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(path: &'a Path, layout: Layout, arch: &'a Arch) -> Self {
        Self {
            path,
            layout,
            arch,
            used: BTreeSet::new(),
            missing: Vec::new(),
        }
    }

    /// The file that is asked about.
    pub(super) fn path(&self) -> &Path {
        self.path
    }

    /// What was said for a key, read by `read`.
    pub(super) fn said<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        self.used.insert(key);
        let Some(value) = self.arch.0.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::ArchText(format!(
                "`{key}` is `{value}`, expected {expected}"
            ))),
        }
    }

    pub(super) fn whole(&mut self, key: &'static str) -> Result<Option<usize>> {
        self.said(key, "a whole number from 1 to 65536", |text| {
            text.parse().ok().filter(|n| (1..=65_536).contains(n))
        })
    }

    pub(super) fn truth(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.said(key, "true or false", |text| {
            match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" => Some(true),
                "false" | "0" | "no" => Some(false),
                _ => None,
            }
        })
    }

    fn number(&mut self, key: &'static str) -> Result<Option<f64>> {
        self.said(key, "a number between 0 and 1", |text| {
            text.parse().ok().filter(|&n: &f64| n > 0.0 && n < 1.0)
        })
    }

    /// Notes that a key must be given; `example` is what to write after its `=`.
    pub(super) fn miss(&mut self, key: &'static str, example: &str) {
        self.missing.push((key, example.to_owned()));
    }

    /// What was said of something that the file tells must be true.
    pub(super) fn agrees<T: PartialEq + std::fmt::Display>(
        &mut self,
        key: &'static str,
        said: Option<T>,
        found: T,
    ) -> Result<()> {
        match said {
            Some(said) if said != found => Err(Error::ArchText(format!(
                "`{key}` is given as {said}, but in {} it is {found}",
                self.path.display()
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn image_size(&mut self) -> Result<Option<SampleSize>> {
        let size = self.image_size_said()?;
        if size.is_none() {
            self.miss("image_size", "N");
        }
        Ok(size)
    }

    /// The same where it need not be said.
    pub(super) fn image_size_said(&mut self) -> Result<Option<SampleSize>> {
        let side = |text: &str| text.parse().ok().filter(|n| (1..=65_536).contains(n));
        self.said("image_size", "N or HEIGHTxWIDTH", |text| {
            match text.split_once('x') {
                None => side(text).map(SampleSize::Square),
                Some((h, w)) => Some(SampleSize::Rectangle(side(h)?, side(w)?)),
            }
        })
    }

    /// The noise schedule and what the network tells. `None` if something is missing.
    pub(super) fn diffusion(&mut self, learned: bool) -> Result<Option<(SchedulerConfig, usize)>> {
        let steps = self.said(
            "diffusion_steps",
            "a whole number from 1 to 1000000",
            |text| text.parse().ok().filter(|n| (1..=1_000_000).contains(n)),
        )?;
        if steps.is_none() {
            self.miss("diffusion_steps", "N");
        }
        let names = match self.layout {
            Layout::Ho => HO_SCHEDULES.as_slice(),
            _ => OPENAI_SCHEDULES.as_slice(),
        };
        let expected = format!("one of {}", names.join(", "));
        let schedule = self.said("noise_schedule", &expected, |text| {
            names.iter().copied().find(|name| *name == text)
        })?;
        if schedule.is_none() {
            self.miss("noise_schedule", &names.join("|"));
        }
        let (Some(steps), Some(schedule)) = (steps, schedule) else {
            // Used, whatever they say, once the others are there.
            self.used
                .extend(["beta_start", "beta_end", "predict_xstart", "sigma_small"]);
            return Ok(None);
        };
        let betas = self.betas(schedule, steps)?;
        let prediction = match self.truth("predict_xstart")? {
            Some(true) => Prediction::Original,
            _ => Prediction::Noise,
        };
        let variance = match learned {
            true => Variance::FixedLarge,
            false => match self.truth("sigma_small")? {
                Some(true) => Variance::FixedSmall,
                _ => Variance::FixedLarge,
            },
        };
        let refused = |source| Error::Scheduler {
            path: self.path.to_owned(),
            source,
        };
        let config = SchedulerConfig::ddpm(betas, steps, prediction, variance, Clip::Range(1.0));
        let mut config = config.map_err(refused)?;
        if learned {
            config = config
                .with("variance_type", "learned_range")
                .map_err(refused)?;
        }
        Ok(Some((config, steps)))
    }

    /// The betas of a schedule under Ho's, DDIM's or OpenAI's name. Linear ones of OpenAI's are scaled, so that fewer steps
    /// end in as much noise. What diffusers has no name for becomes its `trained_betas`.
    fn betas(&mut self, schedule: &str, steps: usize) -> Result<Betas> {
        let scale = match self.layout {
            Layout::OpenAi => 1000.0 / steps as f64,
            _ => 1.0,
        };
        let start = |answers: &mut Self| -> Result<f64> {
            Ok(answers.number("beta_start")?.unwrap_or(scale * 1e-4))
        };
        let end = |answers: &mut Self| -> Result<f64> {
            Ok(answers.number("beta_end")?.unwrap_or(scale * 0.02))
        };
        let schedule = match schedule {
            "linear" => {
                let (start, end) = (start(self)?, end(self)?);
                return Ok(Betas::Linear { start, end });
            }
            "quad" => {
                let (start, end) = (start(self)?, end(self)?);
                return Ok(Betas::ScaledLinear { start, end });
            }
            "sigmoid" => {
                let (start, end) = (start(self)?, end(self)?);
                return Ok(Betas::Sigmoid { start, end });
            }
            "warmup10" => Schedule::warm_up(steps, start(self)?, end(self)?, 0.1),
            "warmup50" => Schedule::warm_up(steps, start(self)?, end(self)?, 0.5),
            "const" => Schedule::constant(steps, end(self)?),
            "jsd" => Schedule::jsd(steps),
            _ => return Ok(Betas::Cosine),
        };
        let schedule = schedule.map_err(|source| Error::Scheduler {
            path: self.path.to_owned(),
            source: source.into(),
        })?;
        Ok(Betas::Trained(schedule.betas().to_vec()))
    }

    /// Nothing is missing, and nothing was said in vain.
    pub(super) fn finish(self) -> Result<()> {
        if !self.missing.is_empty() {
            let meaning = |key: &str| KEYS.iter().find(|(k, _)| *k == key).map_or("", |(_, m)| m);
            return Err(Error::Unsaid {
                path: self.path.to_owned(),
                layout: self.layout,
                keys: self
                    .missing
                    .iter()
                    .map(|(key, _)| format!("{key} ({})", meaning(key)))
                    .collect(),
                example: self
                    .missing
                    .iter()
                    .map(|(key, example)| format!("{key}={example}"))
                    .collect(),
            });
        }
        let vain = self
            .arch
            .0
            .keys()
            .find(|key| !self.used.contains(key.as_str()));
        match vain {
            None => Ok(()),
            Some(key) => Err(Error::ArchText(format!(
                "`{key}` would be ignored: {} holds {}",
                self.path.display(),
                self.layout
            ))),
        }
    }
}
