//! k-diffusion's `image_v1` under its names: `u_net.d_blocks.0.1.main.2`, `mapping.0`, `timestep_embed`.
//!
//! The configuration that its programs put into a file says what names and shapes do not. Stages that training skipped, what
//! told the network of augmentations (zeros when it samples) and the filters, which are fixed, are left out. Its output is
//! what Karras' preconditioning takes (diffusers' `EDM...` schedulers); the sampler is that of its demonstrations, DPM-Solver++
//! of order 2 over Karras' levels with rho 7.

use std::collections::BTreeMap;

use ddpm_samplers::SchedulerConfig;
use ddpm_unet::{KDiffusionConfig, KDiffusionSettings, SampleSize};
use serde_json::{Value, json};

use super::arch::Answers;
use super::{Arch, Conversion, Goes, Layout, Shapes};
use crate::{Error, Result};

pub(super) fn convert(
    shapes: &Shapes<'_>,
    arch: &Arch,
    config: Option<&Value>,
) -> Result<Conversion> {
    refuse_others(shapes, config)?;
    let mut asked = Asked {
        answers: Answers::new(shapes.path, Layout::KDiffusion, arch),
        model: config.and_then(|config| config.get("model")),
    };
    let levels = levels(shapes)?;
    let skipped = asked.skipped(shapes, levels.len())?;
    let images = asked.images(shapes)?;
    let sample_size = asked.size()?;
    let scheduler = asked.scheduler()?;
    asked.answers.finish()?;
    let (Some(skipped), Some(images), Some(scheduler)) = (skipped, images, scheduler) else {
        return Err(shapes.refused("its diffusion is not known"));
    };
    if skipped >= levels.len() {
        let stages = levels.len();
        return Err(shapes.refused(format!(
            "it skips {skipped} stages (skip_stages) of its {stages}, so that nothing is left of it"
        )));
    }
    let used = &levels[skipped..];
    let settings = KDiffusionSettings {
        sample_size,
        input_channels: images.channels,
        patch_size: images.patch,
        has_variance: images.variance,
        mapping_out: shapes.side("mapping.0.weight", 0)?,
        outer_channels: shapes.side("proj_in.weight", 0)?,
        channels: used.iter().map(|level| level.width).collect(),
        depths: used.iter().map(|level| level.depth).collect(),
        self_attn_depths: used.iter().map(|level| level.attention).collect(),
    };
    let names = shapes.of.keys();
    let goes = names.filter_map(|name| {
        let ours = kept(name, skipped, levels.len())?;
        Some((name.clone(), Goes::To(ours)))
    });
    Ok(Conversion {
        goes: goes.collect(),
        unet: shapes.network(KDiffusionConfig::new(settings))?,
        scheduler,
    })
}

/// The file's configuration, if it was written as JSON beside the tensors of a safetensors file.
pub(super) fn config_in(metadata: &BTreeMap<String, String>) -> Option<Value> {
    serde_json::from_str(metadata.get("config")?).ok()
}

/// A name without the stages that are skipped; `None` for what is not used.
fn kept(name: &str, skipped: usize, levels: usize) -> Option<String> {
    if name == "mapping_cond.weight" || name.ends_with(".kernel") {
        return None;
    }
    let block = |rest: &str| -> Option<(usize, String)> {
        let (number, rest) = rest.split_once('.')?;
        Some((number.parse().ok()?, rest.to_owned()))
    };
    if let Some((number, rest)) = name.strip_prefix(DOWN).and_then(block) {
        let number = number.checked_sub(skipped)?;
        return Some(format!("{DOWN}{number}.{rest}"));
    }
    match name.strip_prefix(UP).and_then(block) {
        // The way up is numbered from the smallest level.
        Some((number, _)) if number + skipped >= levels && number < levels => None,
        _ => Some(name.to_owned()),
    }
}

const DOWN: &str = "u_net.d_blocks.";
const UP: &str = "u_net.u_blocks.";
/// Numbers that tell how an image was augmented (Karras et al. 2022, appendix F.2).
const AUGMENTATIONS: usize = 9;

/// What its names or its configuration say it has that is not read.
fn refuse_others(shapes: &Shapes<'_>, config: Option<&Value>) -> Result<()> {
    let kind = config.and_then(|config| config.get("model")?.get("type")?.as_str());
    let has = |part: &str| shapes.of.keys().any(|name| name.contains(part));
    let why = match kind {
        Some(kind) if kind != "image_v1" => {
            let kind: String = kind.chars().take(100).collect();
            format!("its configuration says that it is of type `{kind}`, expected `image_v1`")
        }
        _ if has(".kv_proj.") => {
            "it has cross-attention (cross_cond_dim), which must be told a text or the like, and is not read".to_owned()
        }
        _ => match shapes.of.get("mapping_cond.weight").map(Vec::as_slice) {
            None | Some([_, AUGMENTATIONS]) => return Ok(()),
            Some([_, told]) if *told > AUGMENTATIONS => format!(
                "it is told {} numbers (mapping_cond_dim) besides the {AUGMENTATIONS} of augmentations, which is not read",
                told - AUGMENTATIONS
            ),
            Some(shape) => format!(
                "`mapping_cond.weight` is {shape:?}, of which the {AUGMENTATIONS} numbers of augmentations are read and no others"
            ),
        },
    };
    Err(shapes.refused(format!("it holds {}, but {why}", Layout::KDiffusion)))
}

/// What the names tell of a level.
struct Level {
    width: usize,
    depth: usize,
    attention: bool,
}

fn levels(shapes: &Shapes<'_>) -> Result<Vec<Level>> {
    let level = |level: usize| {
        let start = format!("{DOWN}{level}.");
        let ends = |ending: &'static str| {
            let names = shapes.of.keys();
            let start = start.clone();
            names.filter(move |name| name.starts_with(&start) && name.ends_with(ending))
        };
        Ok(Level {
            width: shapes.side(&format!("{start}1.main.2.weight"), 0)?,
            depth: ends(".main.2.weight").count(),
            attention: ends(".qkv_proj.weight").next().is_some(),
        })
    };
    (0..shapes.count(DOWN)?).map(level).collect()
}

/// How pixels go in and come out.
struct Images {
    channels: usize,
    patch: usize,
    variance: bool,
}

/// What is asked: of `--arch`, else of the file's configuration.
struct Asked<'a> {
    answers: Answers<'a>,
    /// The part `model` of the configuration.
    model: Option<&'a Value>,
}

impl Asked<'_> {
    /// A whole number, from both, which must agree.
    fn whole(&mut self, key: &'static str) -> Result<Option<usize>> {
        let said = self.answers.whole(key)?;
        let told = self.model.and_then(|model| model.get(key)?.as_u64());
        let told = told.and_then(|n| usize::try_from(n).ok());
        if let Some(told) = told {
            self.answers.agrees(key, said, told)?;
        }
        Ok(said.or(told))
    }

    /// A number above 0, of `--arch` first. Without either it is missing, unless there is a configuration and a `default` for
    /// what it leaves out.
    fn level(&mut self, key: &'static str, default: Option<f64>) -> Result<Option<f64>> {
        let fits = |n: &f64| n.is_finite() && *n > 0.0;
        let said = self.answers.said(key, "a number above 0", |text| {
            text.parse().ok().filter(fits)
        })?;
        let level = said.or(self.told(key, default).filter(fits));
        if level.is_none() {
            self.answers.miss(key, "X");
        }
        Ok(level)
    }

    /// A number of the configuration.
    fn told(&self, key: &str, default: Option<f64>) -> Option<f64> {
        match self.model?.get(key) {
            None => default,
            Some(told) => told.as_f64(),
        }
    }

    /// Stages at the full resolution that training skipped: the first filter that halves tells, where there is one.
    fn skipped(&mut self, shapes: &Shapes<'_>, levels: usize) -> Result<Option<usize>> {
        let said = self.whole_or_zero("skip_stages")?;
        let halves = |level: &usize| shapes.has(&format!("{DOWN}{level}.0.kernel"));
        let found = match (0..levels).find(halves) {
            Some(first) => Some(first.saturating_sub(1)),
            None if levels == 1 => Some(0),
            None => None,
        };
        if let Some(found) = found {
            self.answers.agrees("skip_stages", said, found)?;
        }
        let skipped = found.or(said);
        if skipped.is_none() {
            self.answers.miss("skip_stages", "N");
        }
        Ok(skipped)
    }

    fn whole_or_zero(&mut self, key: &'static str) -> Result<Option<usize>> {
        let said = self.answers.said(key, "a whole number", |text| {
            text.parse().ok().filter(|n| *n <= 65_536)
        })?;
        let told = self.model.map(|model| match model.get(key) {
            None => Some(0),
            Some(told) => told.as_u64().and_then(|n| usize::try_from(n).ok()),
        });
        Ok(said.or(told.flatten()))
    }

    /// Patches, channels and a variance, from what goes into the first convolution and comes out of the last.
    fn images(&mut self, shapes: &Shapes<'_>) -> Result<Option<Images>> {
        let (given, told) = (
            shapes.side("proj_in.weight", 1)?,
            shapes.side("proj_out.weight", 0)?,
        );
        let variance = told == given + 1;
        let said = self.answers.truth("has_variance")?;
        self.answers.agrees("has_variance", said, variance)?;
        let patch = match (self.whole("patch_size")?, self.model) {
            (Some(patch), _) => Some(patch),
            // What has as few channels has no patches.
            (None, None) if given >= 4 => {
                self.answers.miss("patch_size", "N");
                None
            }
            (None, _) => Some(1),
        };
        let said = self.whole("input_channels")?;
        let Some(patch) = patch else {
            return Ok(None);
        };
        let pixels = patch.saturating_mul(patch);
        if given % pixels != 0 {
            return Err(shapes.refused(format!(
                "`proj_in.weight` takes {given} channels, which are no patches of {patch}x{patch} pixels (patch_size)"
            )));
        }
        let channels = told / pixels;
        if !variance && told != given {
            return Err(shapes.refused(format!(
                "it holds {}, but it takes {given} channels and gives {told}: it is told another image besides \
                 (unet_cond_dim), which is not read",
                Layout::KDiffusion
            )));
        }
        self.answers.agrees("input_channels", said, channels)?;
        Ok(Some(Images {
            channels,
            patch,
            variance,
        }))
    }

    /// The size of its images; `--arch` wins over the configuration, as the network suits others too.
    fn size(&mut self) -> Result<Option<SampleSize>> {
        let told = self.model.and_then(|model| {
            let side = |at: usize| model.get("input_size")?.get(at)?.as_u64();
            let side = |at| usize::try_from(side(at)?).ok();
            Some(match (side(0)?, side(1)?) {
                (height, width) if height == width => SampleSize::Square(height),
                (height, width) => SampleSize::Rectangle(height, width),
            })
        });
        match told {
            Some(told) => Ok(Some(self.answers.image_size_said()?.unwrap_or(told))),
            None => self.answers.image_size(),
        }
    }

    fn scheduler(&mut self) -> Result<Option<SchedulerConfig>> {
        let usual = Some(1.0);
        let data = self.level("sigma_data", usual)?;
        if let Some(told) = self.told("sigma_data", usual) {
            // The network is another one within another preconditioning; the ends of its levels are the walk's alone.
            self.answers.agrees("sigma_data", data, told)?;
        }
        let low = self.level("sigma_min", None)?;
        let high = self.level("sigma_max", None)?;
        let (Some(data), Some(low), Some(high)) = (data, low, high) else {
            return Ok(None);
        };
        let keys = json!({
            "_class_name": "EDMDPMSolverMultistepScheduler",
            "sigma_data": data,
            "sigma_min": low,
            "sigma_max": high,
            "sigma_schedule": "karras",
            "rho": 7.0,
            "prediction_type": "epsilon",
            "solver_order": 2,
            "algorithm_type": "dpmsolver++",
            "solver_type": "heun",
        });
        let config = SchedulerConfig::from_json(&keys.to_string());
        config.map(Some).map_err(|source| Error::Scheduler {
            path: self.answers.path().to_owned(),
            source,
        })
    }
}
