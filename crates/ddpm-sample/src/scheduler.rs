//! Which sampler walks, and over which steps: flags held against the model's own scheduler.

use ddpm_checkpoint::Model;
use ddpm_image::PixelMap;
use ddpm_samplers::{
    Choice, Clip, Manner, Sampler, SamplerKind, SchedulerClass, SchedulerConfig, Steps,
};

use crate::flags::{CurveName, Rng, SpacingName};
use crate::{Failure, Flags};

/// The sampler, and its name.
pub(crate) struct Chosen {
    pub(crate) sampler: Sampler,
    pub(crate) kind: SamplerKind,
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
    let kind = config.kind();
    check(flags, &config)?;
    let choice = Choice {
        steps: steps(flags, &config)?,
        eta: flags.eta.unwrap_or(0.0),
        manner: manner(flags, model),
        clip: clip_of(pixels, model)?,
    };
    let sampler = config.sampler(&choice).map_err(refused)?;
    Ok(Chosen { sampler, kind })
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
            let channels = model.unet.settings().out_channels;
            Ok(Some(Clip::PerChannel(map.value_range(channels)?)))
        }
    }
}

/// The model's scheduler, with the sampler and the settings of the flags.
fn config(flags: &Flags, model: &Model, step_noise: bool) -> Result<SchedulerConfig, Failure> {
    let own = &model.scheduler;
    // A pipeline of diffusers runs the scheduler of its folder, be it the slow one; so does one whose noise is given.
    let as_it_is = flags.rng == Rng::Torch || (step_noise && model.run.is_none());
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
    match flags.eta {
        Some(_) if kind != SamplerKind::Ddim => {
            return Err(usage(format!(
                "--eta belongs to the sampler ddim; {kind} would ignore it"
            )));
        }
        Some(eta) if !(0.0..=1.0).contains(&eta) => {
            return Err(usage(format!("--eta is {eta}; it goes from 0 to 1")));
        }
        _ => {}
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

fn steps(flags: &Flags, config: &SchedulerConfig) -> Result<Steps, Failure> {
    if let Some(times) = &flags.timesteps {
        return Ok(Steps::Times(times.clone()));
    }
    if let Some(sigmas) = &flags.sigmas {
        return Ok(Steps::Sigmas(sigmas.clone()));
    }
    let all = config.steps();
    let steps = match flags.steps {
        Some(steps) => usize::try_from(steps).unwrap_or(usize::MAX),
        None => config.kind().usual_steps(all),
    };
    match steps > all {
        true => Err(usage(format!(
            "--steps is {steps}, but the model's schedule has only {all} steps"
        ))),
        false => Ok(Steps::Number(steps)),
    }
}

fn refused(error: ddpm_samplers::Error) -> Failure {
    usage(error.to_string())
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}
