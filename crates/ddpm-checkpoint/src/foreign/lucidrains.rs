//! The `Unet` of lucidrains' `denoising-diffusion-pytorch` under its names: `downs.0.2.mem_kv`, `mid_attn.to_qkv`.
//!
//! Read are versions since 0.22.0 (June 2022). The names tell most of what versions differ in; where they do not, the
//! version does, which the trainer's files hold since 1.0.0. The schedule lies beside the network in the buffers of
//! `GaussianDiffusion`; since 1.5.0 these tell the objective too, in the weights of the loss.

use ddpm_core::{Prediction, Schedule, Variance};
use ddpm_samplers::{Betas, Clip, SchedulerConfig};
use ddpm_unet::{
    AttentionNorm, Halving, LucidrainsConfig, LucidrainsSettings, LucidrainsTime,
    WeightStandardization,
};

use super::arch::Answers;
use super::{Arch, Conversion, Goes, Layout, Shapes};
use crate::{Error, Result};

/// What a file tells besides its tensors' names and shapes.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The version of the program that wrote it.
    pub(super) version: Option<String>,
    /// What the network is a part of: `model` in a `GaussianDiffusion`, nothing for a bare one.
    pub(super) part_of: Option<String>,
    /// The variances that the steps add.
    pub(super) betas: Option<Vec<f64>>,
    /// The weight of each step in the loss.
    pub(super) loss_weight: Option<Vec<f64>>,
}

pub(super) fn convert(shapes: &Shapes<'_>, arch: &Arch, told: &Told) -> Result<Conversion> {
    refuse_others(shapes, told)?;
    let mut answers = Answers::new(shapes.path, Layout::Lucidrains, arch);
    let names = Names::of(shapes);
    let era = names.era(&mut answers, shapes, told)?;
    let images = images(&mut answers, shapes)?;
    let settings = LucidrainsSettings {
        sample_size: answers.image_size()?,
        channels: images.channels,
        out_channels: images.out,
        self_condition: images.self_condition,
        init_dim: shapes.side("init_conv.weight", 0)?,
        time: time(&mut answers, shapes)?,
        time_dim: shapes.side("time_mlp.1.weight", 0)?,
        weight_standardization: era.weight_standardization,
        attn_norm: era.attn_norm,
        attn_cosine_scale: era.attn_cosine_scale,
        linear_attn_mean: era.linear_attn_mean,
        halving: names.halving,
        ..names.levels(&mut answers, shapes)?
    };
    let groups = match names.groups {
        false => None,
        true => Some(groups(&mut answers, &settings)?),
    };
    let diffusion = diffusion(&mut answers, told, images.learned())?;
    answers.finish()?;
    let Some(scheduler) = diffusion else {
        return Err(shapes.refused("its diffusion is not known"));
    };
    let settings = LucidrainsSettings {
        resnet_block_groups: groups,
        ..settings
    };
    let names = shapes.of.keys();
    let goes = names.map(|name| (name.clone(), Goes::To(todays_name(name))));
    Ok(Conversion {
        unet: shapes.network(LucidrainsConfig::new(settings))?,
        scheduler,
        goes: goes.collect(),
    })
}

/// The name of a tensor in version 2: attention was the `fn.fn` of what normalises and adds until 1.7.7.
fn todays_name(name: &str) -> String {
    name.replace(".fn.fn.", ".").replace(".fn.norm.", ".norm.")
}

/// Networks with these names that are others.
fn refuse_others(shapes: &Shapes<'_>, told: &Told) -> Result<()> {
    let axes = shapes.of.get("init_conv.weight").map_or(0, Vec::len);
    let has = |part: &str| shapes.of.keys().any(|name| name.contains(part));
    let last = shapes.count("downs.")?.saturating_sub(1);
    let part_of = told.part_of.as_deref();
    let continuous = has("time_mlp.0.weights") && told.betas.is_none();
    let why = if axes != 4 {
        format!(
            "`init_conv.weight` has {axes} axes: it is a network of sequences or films, not of images"
        )
    } else if has("null_classes_emb") {
        "`null_classes_emb`: its blocks are told a class besides the time (classifier_free_guidance.py), which is not read"
            .to_owned()
    } else if part_of == Some("net") {
        "it is the network of an ElucidatedDiffusion (`net.`), told a level of noise within Karras' preconditioning, which is \
         not read"
            .to_owned()
    } else if part_of == Some("model") && continuous {
        "it has no `betas` and learned frequencies of the time: it was trained in continuous time, which is not read".to_owned()
    } else if has("ds_conv") || !shapes.has(&format!("downs.{last}.3.weight")) {
        "its levels are not those of versions since 0.22.0: in older ones each hands on one state, or has ConvNeXt's blocks, \
         which is not read"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(shapes.refused(format!("it holds {}, but {why}", Layout::Lucidrains)))
}

/// What the names tell of the version.
struct Names {
    /// Normalisation in groups in residual blocks: before 2.0.0.
    groups: bool,
    /// Learned keys and values: since 1.9.0.
    memory: bool,
    /// Attention within what normalises and adds: before 1.8.0.
    wrapped: bool,
    /// A bias after the normalisation of attention: before 0.26.5.
    biased: bool,
    /// By pixels since 0.32.0.
    halving: Halving,
    levels: usize,
}

/// What only the version tells.
struct Era {
    weight_standardization: Option<WeightStandardization>,
    attn_norm: AttentionNorm,
    attn_cosine_scale: Option<f64>,
    linear_attn_mean: bool,
}

/// A version of denoising-diffusion-pytorch.
type Version = [u32; 3];

impl Names {
    fn of(shapes: &Shapes<'_>) -> Self {
        let ends = |ending: &str| shapes.of.keys().any(|name| name.ends_with(ending));
        let begins = |beginning: &str| shapes.of.keys().any(|name| name.starts_with(beginning));
        Self {
            groups: shapes.has("downs.0.0.block1.norm.weight"),
            memory: ends(".mem_kv"),
            wrapped: begins("mid_attn.fn."),
            biased: shapes.has("mid_attn.fn.norm.b"),
            halving: match begins("downs.0.3.1.") || !begins("downs.1.") {
                true => Halving::Pixels,
                false => Halving::Conv,
            },
            levels: shapes.count("downs.").unwrap_or(0),
        }
    }

    /// The first version with these names, and the first that is too new for them.
    fn versions(&self) -> (Version, Version) {
        let conv = self.levels > 1 && self.halving == Halving::Conv;
        let pixels = self.levels > 1 && self.halving == Halving::Pixels;
        match self {
            Self { groups: false, .. } => ([2, 0, 0], [u32::MAX; 3]),
            Self { memory: true, .. } => ([1, 9, 0], [2, 0, 0]),
            Self { wrapped: false, .. } => ([1, 8, 0], [1, 9, 0]),
            Self { biased: true, .. } => ([0, 22, 0], [0, 26, 5]),
            _ if conv => ([0, 26, 5], [0, 32, 0]),
            _ if pixels => ([0, 32, 0], [1, 8, 0]),
            _ => ([0, 26, 5], [1, 8, 0]),
        }
    }

    /// What the version tells, which is asked for where the names and the file do not.
    fn era(&self, answers: &mut Answers<'_>, shapes: &Shapes<'_>, told: &Told) -> Result<Era> {
        let said = answers.said("version", "a version as 1.5.4", version)?;
        let (first, next) = self.versions();
        let fits = |version: &Version| (first..next).contains(version);
        let range = || match next {
            [u32::MAX, ..] => format!("{} on", shown(first)),
            next => format!("{} to before {}", shown(first), shown(next)),
        };
        if let Some(said) = said.filter(|said| !fits(said)) {
            return Err(Error::ArchText(format!(
                "`version` is given as {}, but the names in {} are of versions from {}",
                shown(said),
                shapes.path.display(),
                range()
            )));
        }
        let own = told.version.as_deref().and_then(version).filter(fits);
        let version = match said.or(own) {
            Some(version) => version,
            // Before 1.8.0 versions with the same names compute differently.
            None if self.wrapped => {
                answers.miss("version", &shown(first));
                first
            }
            None => first,
        };
        Ok(Era::of(version, self.biased))
    }

    /// What each level tells: widths and attention.
    fn levels(&self, answers: &mut Answers<'_>, shapes: &Shapes<'_>) -> Result<LucidrainsSettings> {
        let inner = if self.wrapped { "fn.fn." } else { "" };
        let last = self.levels - 1;
        let mut found = LucidrainsSettings {
            level_dims: Vec::new(),
            full_attn: Vec::new(),
            attn_heads: Vec::new(),
            attn_dim_head: Vec::new(),
            num_mem_kv: 0,
            ..LucidrainsSettings::default()
        };
        for level in 0..self.levels {
            let halved = format!("downs.{level}.3.1.weight");
            let kept = format!("downs.{level}.3.weight");
            let down = match level < last && self.halving == Halving::Pixels {
                true => halved,
                false => kept,
            };
            found.level_dims.push(shapes.side(&down, 0)?);
            let full = format!("downs.{level}.2.{inner}to_out.weight");
            found.full_attn.push(shapes.has(&full));
        }
        let mut places: Vec<(String, bool)> = (0..self.levels)
            .map(|level| (format!("downs.{level}.2."), found.full_attn[level]))
            .collect();
        places.push(("mid_attn.".to_owned(), true));
        let heads = self.heads(answers, shapes, &places)?;
        for ((place, full), heads) in places.iter().zip(heads) {
            let name = format!("{place}{inner}to_qkv.weight");
            let rows = shapes.side(&name, 0)?;
            let hidden = rows / 3;
            if !rows.is_multiple_of(3) || heads == 0 || !hidden.is_multiple_of(heads) {
                return Err(shapes.refused(format!(
                    "`{name}` has {rows} rows, a third of which {heads} heads do not divide"
                )));
            }
            found.attn_heads.push(heads);
            found.attn_dim_head.push(hidden / heads);
            if self.memory {
                let axis = if *full { 2 } else { 3 };
                found.num_mem_kv = shapes.side(&format!("{place}mem_kv"), axis)?;
            }
        }
        Ok(found)
    }

    /// The heads of each attention: learned keys tell them, else 4 of 32 channels are what everybody had before they
    /// could be chosen.
    fn heads(
        &self,
        answers: &mut Answers<'_>,
        shapes: &Shapes<'_>,
        places: &[(String, bool)],
    ) -> Result<Vec<usize>> {
        let expected = "a whole number, or one a level as 4,4,8";
        let said = answers.said("attn_heads", expected, |text| {
            let numbers: Option<Vec<usize>> = text
                .split(',')
                .map(|number| number.parse().ok().filter(|n| (1..=65_536).contains(n)))
                .collect();
            numbers.filter(|numbers| [1, self.levels].contains(&numbers.len()))
        })?;
        let said = said.map(|said| {
            let level = |level: usize| said[level.min(said.len() - 1)];
            // The middle has the last level's.
            (0..=self.levels).map(level).collect::<Vec<_>>()
        });
        if self.memory {
            let mut found = Vec::new();
            for (place, _) in places {
                found.push(shapes.side(&format!("{place}mem_kv"), 1)?);
            }
            let said = said.map(|said| listed(&said));
            answers.agrees("attn_heads", said, listed(&found))?;
            return Ok(found);
        }
        if let Some(said) = said {
            return Ok(said);
        }
        let inner = if self.wrapped { "fn.fn." } else { "" };
        for (place, _) in places {
            if shapes.side(&format!("{place}{inner}to_qkv.weight"), 0)? != 3 * 4 * 32 {
                answers.miss("attn_heads", "N");
                return Ok(vec![1; places.len()]);
            }
        }
        Ok(vec![4; places.len()])
    }
}

impl Era {
    fn of(version: Version, biased: bool) -> Self {
        let between = |from: Version, to: Version| (from..to).contains(&version);
        let cosine = [
            ([0, 26, 0], [0, 27, 3], 16.0),
            ([0, 27, 3], [0, 28, 0], 10.0),
        ];
        let cosine = cosine.into_iter().find(|&(from, to, _)| between(from, to));
        Self {
            weight_standardization: match version {
                [1, 7, 1] => Some(WeightStandardization::Clamp),
                _ if between([0, 27, 3], [1, 7, 1]) => Some(WeightStandardization::Plus),
                _ => None,
            },
            attn_norm: match (version >= [1, 7, 0], biased) {
                (true, _) => AttentionNorm::Rms,
                (false, true) => AttentionNorm::LayerBias,
                (false, false) => AttentionNorm::Layer,
            },
            attn_cosine_scale: cosine.map(|(.., scale)| scale),
            linear_attn_mean: between([0, 26, 4], [1, 7, 4]),
        }
    }
}

fn version(text: &str) -> Option<Version> {
    let mut numbers = text
        .trim_start_matches('v')
        .split('.')
        .map(|n| n.parse().ok());
    let mut next = || numbers.next().unwrap_or(Some(0));
    Some([next()?, next()?, next()?])
}

fn shown([major, minor, patch]: Version) -> String {
    format!("{major}.{minor}.{patch}")
}

/// One number for all alike.
fn listed(numbers: &[usize]) -> String {
    match numbers.windows(2).all(|pair| pair[0] == pair[1]) {
        true => numbers[..1].iter().map(usize::to_string).collect(),
        false => {
            let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
            numbers.join(",")
        }
    }
}

/// What goes in and comes out.
struct Images {
    channels: usize,
    out: usize,
    self_condition: bool,
}

impl Images {
    fn learned(&self) -> bool {
        self.out == 2 * self.channels
    }
}

/// Twice the channels in are the image and what was last taken for it; twice the channels out tell the variance too.
fn images(answers: &mut Answers<'_>, shapes: &Shapes<'_>) -> Result<Images> {
    let (into, out) = (
        shapes.side("init_conv.weight", 1)?,
        shapes.side("final_conv.weight", 0)?,
    );
    let self_condition = into == 2 * out;
    let channels = if self_condition { out } else { into };
    if out != channels && out != 2 * channels {
        return Err(shapes.refused(format!(
            "its network has {into} channels in and {out} out; read are as many, twice as many in (self_condition) and twice as \
             many out (learned_variance)"
        )));
    }
    let images = Images {
        channels,
        out,
        self_condition,
    };
    let said = answers.truth("self_condition")?;
    answers.agrees("self_condition", said, self_condition)?;
    let said = answers.truth("learned_variance")?;
    answers.agrees("learned_variance", said, images.learned())?;
    let said = answers.whole("channels")?;
    answers.agrees("channels", said, channels)?;
    Ok(images)
}

fn time(answers: &mut Answers<'_>, shapes: &Shapes<'_>) -> Result<LucidrainsTime> {
    if shapes.has("time_mlp.0.weights") {
        let width = 2 * shapes.side("time_mlp.0.weights", 0)?;
        return Ok(LucidrainsTime::Fourier { width });
    }
    let width = shapes.side("time_mlp.1.weight", 1)?;
    let said = answers.whole("dim")?;
    answers.agrees("dim", said, width)?;
    let theta = answers.said("sinusoidal_pos_emb_theta", "a number above 1", |text| {
        text.parse()
            .ok()
            .filter(|&n: &f64| n > 1.0 && n.is_finite())
    })?;
    Ok(LucidrainsTime::Sinusoidal {
        width,
        theta: theta.unwrap_or(10_000.0),
    })
}

/// 8 unless it is said; asked for where 8 do not fit.
fn groups(answers: &mut Answers<'_>, settings: &LucidrainsSettings) -> Result<usize> {
    let groups = answers.whole("resnet_block_groups")?.unwrap_or(8);
    let mut widths = std::iter::once(&settings.init_dim).chain(&settings.level_dims);
    if widths.any(|width| width % groups != 0) {
        answers.miss("resnet_block_groups", "N");
    }
    Ok(groups)
}

/// The schedule and what the network tells, of the file's buffers or as said. `None` if something is missing.
fn diffusion(
    answers: &mut Answers<'_>,
    told: &Told,
    learned: bool,
) -> Result<Option<SchedulerConfig>> {
    let expected = "a whole number from 1 to 1000000";
    let steps = answers.said("timesteps", expected, |text| {
        text.parse().ok().filter(|n| (1..=MOST_STEPS).contains(n))
    })?;
    let named = answers.said("beta_schedule", "linear, cosine or sigmoid", |text| {
        CURVES.into_iter().find(|curve| curve.name() == text)
    })?;
    let betas = match &told.betas {
        Some(betas) => {
            answers.agrees("timesteps", steps, betas.len())?;
            let curve = CURVES.into_iter().find(|curve| curve.is(betas));
            let found = curve.map_or("another", Curve::name);
            answers.agrees("beta_schedule", named.map(Curve::name), found)?;
            let of_file = || Betas::Trained(betas.clone());
            let of_curve = curve.and_then(|curve| curve.betas(betas.len()));
            Some((of_curve.unwrap_or_else(of_file), betas.len()))
        }
        None => {
            if steps.is_none() {
                answers.miss("timesteps", "N");
            }
            if named.is_none() {
                answers.miss("beta_schedule", "linear|cosine|sigmoid");
            }
            let curve = named.zip(steps);
            curve.and_then(|(curve, steps)| Some((curve.betas(steps)?, steps)))
        }
    };
    let prediction = prediction(answers, told, learned)?;
    let (Some((betas, steps)), Some(prediction)) = (betas, prediction) else {
        return Ok(None);
    };
    let clip = Clip::Range(1.0);
    let config = SchedulerConfig::ddpm(betas, steps, prediction, Variance::FixedSmall, clip);
    let config = match learned {
        true => config.and_then(|config| config.with("variance_type", "learned_range")),
        false => config,
    };
    let refused = |source| Error::Scheduler {
        path: answers.path().to_owned(),
        source,
    };
    config.map(Some).map_err(refused)
}

/// More steps than any network was trained with.
pub(super) const MOST_STEPS: usize = 1_000_000;

/// The names of what networks tell.
const OBJECTIVES: [(&str, Prediction); 3] = [
    ("pred_noise", Prediction::Noise),
    ("pred_x0", Prediction::Original),
    ("pred_v", Prediction::Velocity),
];

/// What the network tells: by the weights of its loss, or as said.
fn prediction(answers: &mut Answers<'_>, told: &Told, learned: bool) -> Result<Option<Prediction>> {
    let expected = OBJECTIVES.map(|(name, _)| name).join(", ");
    let said = answers.said("objective", &expected, |text| {
        OBJECTIVES.into_iter().find(|(name, _)| *name == text)
    })?;
    let weighed = told.betas.as_deref().zip(told.loss_weight.as_deref());
    let found = match learned {
        // `LearnedGaussianDiffusion` learns the noise whatever its objective is.
        true => Some(OBJECTIVES[0]),
        false => weighed.and_then(|(betas, weights)| objective(betas, weights)),
    };
    match (said, found) {
        (said, Some((name, prediction))) => {
            answers.agrees("objective", said.map(|(name, _)| name), name)?;
            Ok(Some(prediction))
        }
        (Some((_, prediction)), None) => Ok(Some(prediction)),
        (None, None) => {
            answers.miss("objective", "pred_noise|pred_x0|pred_v");
            Ok(None)
        }
    }
}

/// The objective whose weights these are: with s the smaller of SNR(t) and a bound, s / SNR(t) for noise, s for the image,
/// s / (SNR(t) + 1) for v (Hang et al. 2023, arXiv:2303.09556).
fn objective(betas: &[f64], weights: &[f64]) -> Option<(&'static str, Prediction)> {
    let mut alpha_bar = 1.0;
    let snr: Vec<f64> = betas
        .iter()
        .map(|beta| {
            alpha_bar *= 1.0 - beta;
            alpha_bar / (1.0 - alpha_bar)
        })
        .collect();
    if snr.len() != weights.len() {
        return None;
    }
    OBJECTIVES.into_iter().find(|(_, prediction)| {
        let of_snr = |(weight, snr): (&f64, &f64)| match prediction {
            Prediction::Noise => weight * snr,
            Prediction::Original => *weight,
            _ => weight * (snr + 1.0),
        };
        let bounded: Vec<f64> = weights.iter().zip(&snr).map(of_snr).collect();
        let bound = bounded.iter().copied().fold(0.0, f64::max);
        let close = |(found, snr): (&f64, &f64)| near(*found, snr.min(bound), 1e-3);
        bounded.iter().zip(&snr).all(close)
    })
}

fn near(found: f64, expected: f64, share: f64) -> bool {
    (found - expected).abs() <= share * expected.abs()
}

/// A schedule by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    Linear,
    Cosine,
    Sigmoid,
}

const CURVES: [Curve; 3] = [Curve::Linear, Curve::Cosine, Curve::Sigmoid];

impl Curve {
    fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// Linear from 1e-4 to 0.02 times 1000 / T.
    fn ends(steps: usize) -> (f64, f64) {
        let scale = 1000.0 / steps as f64;
        (scale * 1e-4, scale * 0.02)
    }

    fn schedule(self, steps: usize) -> Option<Schedule> {
        let (start, end) = Self::ends(steps);
        match self {
            Self::Linear => Schedule::linear(steps, start, end),
            Self::Cosine => Schedule::cosine(steps),
            Self::Sigmoid => Schedule::alpha_bar_sigmoid(steps),
        }
        .ok()
    }

    /// As a scheduler's configuration says it; diffusers has no word for the sigmoid of alpha-bar.
    fn betas(self, steps: usize) -> Option<Betas> {
        let (start, end) = Self::ends(steps);
        Some(match self {
            Self::Linear => Betas::Linear { start, end },
            Self::Cosine => Betas::Cosine,
            Self::Sigmoid => Betas::Trained(numbers(&self.schedule(steps)?)),
        })
    }

    /// Whether these are its betas, in f32.
    fn is(self, betas: &[f64]) -> bool {
        let schedule = self.schedule(betas.len());
        schedule.is_some_and(|schedule| {
            let own = numbers(&schedule);
            own.iter()
                .zip(betas)
                .all(|(own, beta)| near(*beta, *own, 1e-5))
        })
    }
}

fn numbers(schedule: &Schedule) -> Vec<f64> {
    schedule.timesteps().map(|t| schedule.beta(t)).collect()
}

/// By the place of a network in a file: where what it is a part of begins, and what the network is in that. `torch.compile`
/// and `DistributedDataParallel` put names of their own between.
pub(super) fn around(prefix: &str) -> Option<(&str, &str)> {
    let mut network = prefix.strip_suffix('.')?;
    while let Some(inner) = ["._orig_mod", ".module"]
        .iter()
        .find_map(|wrapper| network.strip_suffix(wrapper))
    {
        network = inner;
    }
    let begins = network.rfind('.').map_or(0, |dot| dot + 1);
    Some((&network[..begins], &network[begins..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weights of a loss as `GaussianDiffusion` keeps them, in f32.
    fn weights(schedule: &Schedule, prediction: Prediction, bound: f64) -> Vec<f64> {
        let weight = |t| {
            let snr = schedule.snr(t);
            let least = snr.min(bound);
            let weight = match prediction {
                Prediction::Noise => least / snr,
                Prediction::Original => least,
                _ => least / (snr + 1.0),
            };
            f64::from(weight as f32)
        };
        schedule.timesteps().map(weight).collect()
    }

    #[test]
    fn schedules_and_objectives_of_usual_sizes_are_told_from_their_numbers_in_f32() {
        for steps in [1000, 250, 4000] {
            for curve in CURVES {
                let schedule = curve.schedule(steps).unwrap();
                let single = |beta: f64| f64::from(beta as f32);
                let betas: Vec<f64> = numbers(&schedule).into_iter().map(single).collect();
                let found: Vec<Curve> = CURVES.into_iter().filter(|c| c.is(&betas)).collect();
                assert_eq!(found, [curve]);
                for (name, prediction) in OBJECTIVES {
                    for bound in [f64::INFINITY, 5.0, 1.0] {
                        let weights = weights(&schedule, prediction, bound);
                        let found = objective(&betas, &weights);
                        assert_eq!(found, Some((name, prediction)), "{curve:?} {steps} {bound}");
                    }
                }
                // P2's weights (0.16 to 1.4) say nothing of the objective; nor do too few.
                let p2: Vec<f64> = weights(&schedule, Prediction::Original, f64::INFINITY)
                    .iter()
                    .map(|snr| 1.0 / (1.0 + snr))
                    .collect();
                assert_eq!(objective(&betas, &p2), None);
                assert_eq!(objective(&betas, &p2[1..]), None);
            }
        }
    }

    #[test]
    fn versions_and_places_are_read() {
        assert_eq!(version("1.7.4"), Some([1, 7, 4]));
        assert_eq!(version("v2.3"), Some([2, 3, 0]));
        assert_eq!(version("2.0.0rc1"), None);
        assert_eq!(version(""), None);
        assert_eq!(around(""), None);
        assert_eq!(around("model."), Some(("", "model")));
        assert_eq!(
            around("ema_model.denoise_fn."),
            Some(("ema_model.", "denoise_fn"))
        );
        assert_eq!(around("model._orig_mod."), Some(("", "model")));
        assert_eq!(around("_orig_mod.model."), Some(("_orig_mod.", "model")));
    }
}
