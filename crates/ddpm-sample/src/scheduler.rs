//! Which sampler walks, and over which steps: flags held against the model's own scheduler.

use candle_core::Tensor;
use ddpm_checkpoint::Model;
use ddpm_image::PixelMap;
use ddpm_samplers::{
    Choice, Clip, Manner, Process, RePaintSettings, Sampler, SamplerKind, SchedulerClass,
    SchedulerConfig, Steps,
};

use crate::flags::{CurveName, Rng, SpacingName};
use crate::way::{Painting, Way};
use crate::{Failure, Flags};

/// The walk, the name of its sampler, its steps and where it has one its eta.
pub(crate) struct Chosen {
    pub(crate) way: Way,
    pub(crate) name: String,
    pub(crate) steps: usize,
    pub(crate) eta: Option<f64>,
    /// The whole process of training, for a network that is told its last x_0-hat.
    pub(crate) process: Option<Process>,
}

/// The sampler that the flags ask for, or else the model's own; `step_noise` says whether a file brings the noise of the steps.
///
/// # Errors
/// [`Failure::Usage`] for flags that the sampler would ignore or cannot follow.
pub(crate) fn choose(
    flags: &Flags,
    model: &Model,
    pixels: &PixelMap,
    step_noise: bool,
) -> Result<Chosen, Failure> {
    let config = config(flags, model, step_noise)?;
    check(flags, &config)?;
    let choice = Choice {
        steps: steps(flags, &config)?,
        eta: flags.eta.unwrap_or(0.0),
        manner: manner(flags, model),
        clip: clip(flags, pixels, model)?,
    };
    let sampler = config.sampler(&choice).map_err(refused)?;
    let whole = || config.whole_process(&choice).map_err(refused);
    Ok(Chosen {
        process: model.unet.self_conditioned().then(whole).transpose()?,
        steps: sampler.steps(),
        eta: match &sampler {
            Sampler::Ddim(_, settings) => Some(settings.eta),
            _ => None,
        },
        name: match flags.invert {
            Some(_) => "ddim, inverted".to_owned(),
            None => config.kind().to_string(),
        },
        way: Way::Sampler(sampler),
    })
}

/// As many steps as diffusers' `RePaintPipeline` takes.
const PAINTING_STEPS: usize = 250;

/// RePaint in this image, of which the part is kept where `known` is 1.
///
/// # Errors
/// [`Failure::Usage`] for more steps than there are, an eta that is none, a model that was not trained on steps.
pub(crate) fn paint(
    flags: &Flags,
    model: &Model,
    pixels: &PixelMap,
    (image, known): (Tensor, Tensor),
) -> Result<Chosen, Failure> {
    let config = model.scheduler.switched(SchedulerClass::RePaint);
    let config = config.map_err(refused)?;
    check_eta(flags.eta)?;
    let steps = number(flags.steps, PAINTING_STEPS, config.steps())?;
    let choice = Choice {
        steps: Steps::Number(steps),
        eta: flags.eta.unwrap_or(0.0),
        manner: manner(flags, model),
        clip: clip(flags, pixels, model)?,
    };
    let jumps = flags.jumps.unwrap_or_default();
    let settings = RePaintSettings {
        image,
        known,
        eta: choice.eta,
        jump_length: jumps.length,
        jump_count: jumps.count,
    };
    let process = config.whole_process(&choice).map_err(refused)?;
    let told = model.unet.self_conditioned();
    Ok(Chosen {
        process: told.then(|| process.clone()),
        way: Way::RePaint(Painting {
            process,
            steps,
            settings,
        }),
        name: "repaint".to_owned(),
        steps,
        eta: Some(choice.eta),
    })
}

/// What becomes of a folder whose scheduler cannot walk from noise alone.
pub(crate) fn note(flags: &Flags, model: &Model) -> Option<String> {
    let class = model.scheduler.class();
    let way = match class {
        SchedulerClass::RePaint => "paints in an image (--inpaint)",
        SchedulerClass::DdimInverse => "goes from an image to noise (--invert)",
        _ => return None,
    };
    let chosen = [&flags.inpaint, &flags.invert].iter().any(|f| f.is_some());
    (flags.sampler.is_none() && !chosen)
        .then(|| format!("the model's {class} {way}; new images are made by ddim"))
}

/// Others' folders get diffusers' images, number for number; ours, what the papers say.
fn manner(flags: &Flags, model: &Model) -> Manner {
    match model.run.is_none() || flags.rng == Rng::Torch {
        true => Manner::Diffusers,
        false => Manner::Paper,
    }
}

/// Models normalised per channel are clipped to the range of their pixels, which diffusers' files cannot tell.
pub(crate) fn clip_of(pixels: &PixelMap, model: &Model) -> anyhow::Result<Option<Clip>> {
    match pixels {
        PixelMap::MinusOneToOne => Ok(None),
        map => {
            let channels = model.unet.out_channels();
            Ok(Some(Clip::PerChannel(map.value_range(channels)?)))
        }
    }
}

fn clip(flags: &Flags, pixels: &PixelMap, model: &Model) -> anyhow::Result<Option<Clip>> {
    match flags.no_clip {
        true => Ok(Some(Clip::None)),
        false => clip_of(pixels, model),
    }
}

/// The model's scheduler, with the sampler and the settings of the flags.
fn config(flags: &Flags, model: &Model, step_noise: bool) -> Result<SchedulerConfig, Failure> {
    let own = &model.scheduler;
    // A pipeline of diffusers runs the scheduler of its folder, be it the slow one; so does one whose noise is given.
    let as_it_is = flags.rng == Rng::Torch || (step_noise && model.run.is_none());
    if flags.invert.is_some() {
        let config = own.switched(SchedulerClass::DdimInverse).map_err(refused)?;
        return match flags.spacing {
            Some(spacing) => config.with_spacing(spacing.spacing()).map_err(refused),
            None => Ok(config),
        };
    }
    if let (true, None, Some(flag)) = (as_it_is, flags.sampler, image_of(own.class())) {
        return Err(usage(format!(
            "the model's {} needs an image: give {flag}, or another --sampler",
            own.class()
        )));
    }
    let config = match (flags.sampler, own.class()) {
        (Some(kind), _) if kind == own.kind() => Ok(own.clone()),
        (Some(kind), _) => own.with_kind(kind),
        (None, SchedulerClass::Ddim) => Ok(own.clone()),
        (None, SchedulerClass::Ddpm) if !as_it_is => own.with_kind(SamplerKind::Ddim),
        (None, _) if flags.eta.is_some() => own.with_kind(SamplerKind::Ddim),
        (None, SchedulerClass::RePaint | SchedulerClass::DdimInverse) => {
            own.with_kind(SamplerKind::Ddim)
        }
        (None, _) => Ok(own.clone()),
    };
    let mut config = config.map_err(refused)?;
    if let Some(order) = flags.order {
        needs(&config, "solver_order", "--order")?;
        config = config.with("solver_order", order).map_err(refused)?;
    }
    if let Some(spacing) = flags.spacing {
        needs(&config, "timestep_spacing", "--spacing")?;
        config = config.with_spacing(spacing.spacing()).map_err(refused)?;
    }
    match flags.levels {
        Some(curve) => with_levels(config, curve),
        None => Ok(config),
    }
}

/// The keys of the curves of sigmas.
const CURVES: [(CurveName, &str); 5] = [
    (CurveName::Karras, "use_karras_sigmas"),
    (CurveName::Exponential, "use_exponential_sigmas"),
    (CurveName::Beta, "use_beta_sigmas"),
    (CurveName::Lu, "use_lu_lambdas"),
    (CurveName::Flow, "use_flow_sigmas"),
];

fn with_levels(config: SchedulerConfig, curve: CurveName) -> Result<SchedulerConfig, Failure> {
    let mut config = config;
    for (_, key) in CURVES {
        if config.class().has(key) {
            config = config.with(key, false).map_err(refused)?;
        }
    }
    match CURVES.iter().find(|(name, _)| *name == curve) {
        Some((_, key)) => {
            needs(&config, key, &format!("--levels {curve}"))?;
            config.with(key, true).map_err(refused)
        }
        None => {
            needs(&config, "use_karras_sigmas", "--levels")?;
            Ok(config)
        }
    }
}

fn needs(config: &SchedulerConfig, key: &str, flag: &str) -> Result<(), Failure> {
    match config.class().has(key) {
        true => Ok(()),
        false => Err(usage(format!(
            "{flag} would be ignored: the sampler {} has nothing of the kind",
            config.kind()
        ))),
    }
}

/// Flags that this sampler would ignore.
fn check(flags: &Flags, config: &SchedulerConfig) -> Result<(), Failure> {
    let kind = config.kind();
    if flags.eta.is_some() && kind != SamplerKind::Ddim {
        return Err(usage(format!(
            "--eta belongs to the sampler ddim; {kind} would ignore it"
        )));
    }
    check_eta(flags.eta)?;
    if flags.no_clip {
        needs(config, "clip_sample", "--no-clip")?;
    }
    let spread = [
        SpacingName::Leading,
        SpacingName::Linspace,
        SpacingName::Trailing,
    ];
    let spaced = flags
        .spacing
        .is_some_and(|spacing| spread.contains(&spacing));
    let curved = flags
        .levels
        .is_some_and(|curve| curve != CurveName::Trained);
    // Curves of these solvers go between the ends of training.
    let whole = matches!(
        config.class(),
        SchedulerClass::DpmSolverMultistep | SchedulerClass::UniPc | SchedulerClass::Deis
    );
    if spaced && curved && whole {
        return Err(usage(format!(
            "--spacing would be ignored: with --levels {kind} goes between the ends of training"
        )));
    }
    Ok(())
}

fn check_eta(eta: Option<f64>) -> Result<(), Failure> {
    match eta.filter(|eta| !(0.0..=1.0).contains(eta)) {
        Some(eta) => Err(usage(format!("--eta is {eta}; it goes from 0 to 1"))),
        None => Ok(()),
    }
}

/// The flag that brings the image that a scheduler cannot do without.
fn image_of(class: SchedulerClass) -> Option<&'static str> {
    match class {
        SchedulerClass::RePaint => Some("--inpaint IMAGE --mask IMAGE"),
        SchedulerClass::DdimInverse => Some("--invert IMAGE"),
        _ => None,
    }
}

fn steps(flags: &Flags, config: &SchedulerConfig) -> Result<Steps, Failure> {
    if let Some(times) = &flags.timesteps {
        return Ok(Steps::Times(times.clone()));
    }
    if let Some(sigmas) = &flags.sigmas {
        return Ok(Steps::Sigmas(sigmas.clone()));
    }
    let all = config.steps();
    let usual = config.kind().usual_steps(all);
    number(flags.steps, usual, all).map(Steps::Number)
}

/// So many of `all` steps, or as many as usual.
fn number(asked: Option<u64>, usual: usize, all: usize) -> Result<usize, Failure> {
    match asked.map(|steps| usize::try_from(steps).unwrap_or(usize::MAX)) {
        None => Ok(usual.min(all)),
        Some(steps) if steps > all => Err(usage(format!(
            "--steps is {steps}, but the model's schedule has only {all} steps"
        ))),
        Some(steps) => Ok(steps),
    }
}

fn refused(error: ddpm_samplers::Error) -> Failure {
    usage(error.to_string())
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}
