//! The samplers by name, for programs that let their users choose, and a sampler with all its settings.

use crate::score_sde_ve::{score_sde_ve, sigmas as score_sigmas};
use crate::walk::draws;
use crate::{
    AncestralSettings, DdimSettings, DpmSettings, Error, Levels, Manner, PndmPlan, Process, Result,
    SchedulerClass, UniPcSettings, Walk, ancestral_with, ddim_inversion_of, ddim_with, deis,
    dpm_solver, dpm_solver_singlestep, euler, euler_ancestral, heun, kdpm2, kdpm2_ancestral, lms,
    pndm, unipc,
};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource};
use serde_json::{Value, json};
use std::fmt;
use std::str::FromStr;

/// A family of samplers, as it is called on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SamplerKind {
    /// `ddpm`: every step of the paper's algorithm 2, or some.
    Ddpm,
    /// `ddim`: few steps, without noise or with some.
    Ddim,
    /// `dpm++`: DPM-Solver++, multistep, order 2.
    DpmPlusPlus,
    /// `dpm++3m`: DPM-Solver++, multistep, order 3.
    DpmPlusPlus3,
    /// `dpm++2s`: DPM-Solver++, singlestep, order 2.
    DpmPlusPlusSingle,
    /// `dpm++sde`: SDE-DPM-Solver++, multistep.
    DpmPlusPlusSde,
    /// `dpm`: DPM-Solver, multistep.
    Dpm,
    /// `dpm-sde`: SDE-DPM-Solver, multistep.
    DpmSde,
    /// `unipc`.
    UniPc,
    /// `deis`.
    Deis,
    /// `pndm`, its first steps by Runge and Kutta's method.
    Pndm,
    /// `plms`: PNDM without them.
    Plms,
    /// `lms`.
    Lms,
    /// `euler`.
    Euler,
    /// `euler-a`: Euler, ancestral.
    EulerAncestral,
    /// `heun`.
    Heun,
    /// `kdpm2`.
    Kdpm2,
    /// `kdpm2-a`: KDPM2, ancestral.
    Kdpm2Ancestral,
    /// `edm`: Euler over the levels of Karras et al.
    Edm,
    /// `edm-dpm++`: DPM-Solver++ over the levels of Karras et al.
    EdmDpm,
    /// `sde-ve`: predictor and corrector of the variance exploding SDE.
    ScoreSdeVe,
}

/// A name, the class behind it, and the keys that it fixes.
type Name = (SamplerKind, &'static str, SchedulerClass);

const NAMES: [Name; 21] = [
    (SamplerKind::Ddpm, "ddpm", SchedulerClass::Ddpm),
    (SamplerKind::Ddim, "ddim", SchedulerClass::Ddim),
    (
        SamplerKind::DpmPlusPlus,
        "dpm++",
        SchedulerClass::DpmSolverMultistep,
    ),
    (
        SamplerKind::DpmPlusPlus3,
        "dpm++3m",
        SchedulerClass::DpmSolverMultistep,
    ),
    (
        SamplerKind::DpmPlusPlusSingle,
        "dpm++2s",
        SchedulerClass::DpmSolverSinglestep,
    ),
    (
        SamplerKind::DpmPlusPlusSde,
        "dpm++sde",
        SchedulerClass::DpmSolverMultistep,
    ),
    (SamplerKind::Dpm, "dpm", SchedulerClass::DpmSolverMultistep),
    (
        SamplerKind::DpmSde,
        "dpm-sde",
        SchedulerClass::DpmSolverMultistep,
    ),
    (SamplerKind::UniPc, "unipc", SchedulerClass::UniPc),
    (SamplerKind::Deis, "deis", SchedulerClass::Deis),
    (SamplerKind::Pndm, "pndm", SchedulerClass::Pndm),
    (SamplerKind::Plms, "plms", SchedulerClass::Pndm),
    (SamplerKind::Lms, "lms", SchedulerClass::Lms),
    (SamplerKind::Euler, "euler", SchedulerClass::Euler),
    (
        SamplerKind::EulerAncestral,
        "euler-a",
        SchedulerClass::EulerAncestral,
    ),
    (SamplerKind::Heun, "heun", SchedulerClass::Heun),
    (SamplerKind::Kdpm2, "kdpm2", SchedulerClass::Kdpm2),
    (
        SamplerKind::Kdpm2Ancestral,
        "kdpm2-a",
        SchedulerClass::Kdpm2Ancestral,
    ),
    (SamplerKind::Edm, "edm", SchedulerClass::EdmEuler),
    (
        SamplerKind::EdmDpm,
        "edm-dpm++",
        SchedulerClass::EdmDpmSolverMultistep,
    ),
    (
        SamplerKind::ScoreSdeVe,
        "sde-ve",
        SchedulerClass::ScoreSdeVe,
    ),
];

/// Other names in use.
const ALIASES: [(&str, SamplerKind); 8] = [
    ("dpm++2m", SamplerKind::DpmPlusPlus),
    ("dpmpp", SamplerKind::DpmPlusPlus),
    ("dpmpp-2m", SamplerKind::DpmPlusPlus),
    ("dpm++2m-sde", SamplerKind::DpmPlusPlusSde),
    ("dpm++-sde", SamplerKind::DpmPlusPlusSde),
    ("euler-ancestral", SamplerKind::EulerAncestral),
    ("edm-euler", SamplerKind::Edm),
    ("uni-pc", SamplerKind::UniPc),
];

/// A sampler with all its settings and the levels or steps of its walk.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Sampler {
    /// [`ancestral_with`].
    Ancestral(Process, AncestralSettings),
    /// [`ddim_with`].
    Ddim(Process, DdimSettings),
    /// [`ddim_inversion_of`], from an image to x_T.
    DdimInverse(Process, DdimSettings),
    /// [`dpm_solver`].
    Dpm(Levels, DpmSettings),
    /// [`dpm_solver_singlestep`].
    DpmSinglestep(Levels, DpmSettings),
    /// [`unipc`].
    UniPc(Levels, UniPcSettings),
    /// [`deis`] of this order, lower at the end or not.
    Deis(Levels, usize, bool),
    /// [`pndm`].
    Pndm(PndmPlan),
    /// [`lms`] of this order.
    Lms(Levels, usize),
    /// [`euler`].
    Euler(Levels),
    /// [`euler_ancestral`].
    EulerAncestral(Levels),
    /// [`heun`].
    Heun(Levels),
    /// [`kdpm2`].
    Kdpm2(Levels),
    /// [`kdpm2_ancestral`].
    Kdpm2Ancestral(Levels),
    /// [`score_sde_ve`] with this ratio and so many corrections.
    ScoreSdeVe(Levels, f64, usize),
}

impl Sampler {
    /// The walk of this sampler from x_T (`[B, C, H, W]`).
    pub fn walk<'a>(
        &'a self,
        denoiser: &'a dyn Denoiser,
        x: &Tensor,
        noise: &'a mut dyn NoiseSource,
    ) -> Walk<'a> {
        match self {
            Sampler::Ancestral(process, settings) => {
                ancestral_with(process, *settings, denoiser, x, noise)
            }
            Sampler::Ddim(process, settings) => {
                ddim_with(process, settings.clone(), denoiser, x, noise)
            }
            Sampler::DdimInverse(process, settings) => {
                ddim_inversion_of(process, settings.clone(), denoiser, x)
            }
            Sampler::Dpm(levels, settings) => dpm_solver(levels, *settings, denoiser, x, noise),
            Sampler::DpmSinglestep(levels, settings) => {
                dpm_solver_singlestep(levels, *settings, denoiser, x, noise)
            }
            Sampler::UniPc(levels, settings) => unipc(levels, settings.clone(), denoiser, x),
            Sampler::Deis(levels, order, lower) => deis(levels, *order, *lower, denoiser, x),
            Sampler::Pndm(plan) => pndm(plan, denoiser, x),
            Sampler::Lms(levels, order) => lms(levels, *order, denoiser, x),
            Sampler::Euler(levels) => euler(levels, denoiser, x),
            Sampler::EulerAncestral(levels) => euler_ancestral(levels, denoiser, x, noise),
            Sampler::Heun(levels) => heun(levels, denoiser, x),
            Sampler::Kdpm2(levels) => kdpm2(levels, denoiser, x),
            Sampler::Kdpm2Ancestral(levels) => kdpm2_ancestral(levels, denoiser, x, noise),
            Sampler::ScoreSdeVe(levels, snr, corrections) => {
                score_sde_ve(levels, *snr, *corrections, denoiser, x, noise)
            }
        }
    }

    /// How many draws of noise a walk must be handed.
    pub fn draws(&self) -> usize {
        let none = || (Vec::new(), Manner::Paper);
        let (sigmas, manner) = match self {
            Sampler::Ancestral(process, settings) => {
                (settings.sigmas(&process.schedule), settings.manner)
            }
            Sampler::Ddim(process, settings) => {
                let steps = process.schedule.timesteps().rev();
                let sigma = |t| settings.variance(&process.schedule, t).sqrt();
                (steps.map(sigma).collect(), settings.manner())
            }
            Sampler::Dpm(levels, settings) => (settings.sigmas(levels), levels.manner()),
            Sampler::DpmSinglestep(levels, settings) => {
                (settings.singlestep_sigmas(levels), levels.manner())
            }
            Sampler::EulerAncestral(levels) | Sampler::Kdpm2Ancestral(levels) => {
                let steps = levels.first()..levels.steps();
                let sigmas = steps.map(|i| levels.level(i + 1).sigma());
                (sigmas.collect(), levels.manner())
            }
            Sampler::ScoreSdeVe(levels, _, corrections) => {
                (score_sigmas(levels, *corrections), levels.manner())
            }
            _ => none(),
        };
        draws(sigmas, manner)
    }

    /// The steps of a walk.
    pub fn steps(&self) -> usize {
        match self {
            Sampler::Ancestral(process, _)
            | Sampler::Ddim(process, _)
            | Sampler::DdimInverse(process, _) => process.schedule.steps(),
            Sampler::Pndm(plan) => plan.steps(),
            Sampler::Dpm(levels, _)
            | Sampler::DpmSinglestep(levels, _)
            | Sampler::UniPc(levels, _)
            | Sampler::Deis(levels, ..)
            | Sampler::Lms(levels, _)
            | Sampler::Euler(levels)
            | Sampler::EulerAncestral(levels)
            | Sampler::Heun(levels)
            | Sampler::Kdpm2(levels)
            | Sampler::Kdpm2Ancestral(levels)
            | Sampler::ScoreSdeVe(levels, ..) => levels.steps(),
        }
    }

    /// How often a walk asks the network for each image.
    pub fn evaluations(&self) -> usize {
        let steps = self.steps();
        match self {
            Sampler::Heun(levels) | Sampler::Kdpm2(levels) | Sampler::Kdpm2Ancestral(levels) => {
                let last_is_euler = levels.level(steps).is_clean();
                2 * steps - usize::from(last_is_euler)
            }
            Sampler::ScoreSdeVe(_, _, corrections) => steps * (corrections + 1),
            _ => steps,
        }
    }
}

impl SamplerKind {
    /// All of them.
    pub fn all() -> impl ExactSizeIterator<Item = SamplerKind> {
        NAMES.into_iter().map(|(kind, ..)| kind)
    }

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// The class of diffusers behind it.
    pub fn class(self) -> SchedulerClass {
        self.entry().2
    }

    /// How many steps a walk of it usually has, of `all` of training: every one where fewer lose much, 50 for methods of the first order,
    /// 20 for those of higher ones.
    pub fn usual_steps(self, all: usize) -> usize {
        let steps = match self {
            SamplerKind::Ddpm | SamplerKind::ScoreSdeVe => all,
            SamplerKind::Ddim
            | SamplerKind::Euler
            | SamplerKind::EulerAncestral
            | SamplerKind::Edm
            | SamplerKind::Pndm
            | SamplerKind::Plms => 50,
            _ => 20,
        };
        steps.min(all)
    }

    /// The keys that tell it from others of its class.
    pub(crate) fn keys(self) -> Vec<(&'static str, Value)> {
        let dpm = |algorithm: &str| ("algorithm_type", json!(algorithm));
        let end = |end: &str| ("final_sigmas_type", json!(end));
        match self {
            SamplerKind::DpmPlusPlus | SamplerKind::EdmDpm => vec![dpm("dpmsolver++")],
            SamplerKind::DpmPlusPlusSingle => vec![dpm("dpmsolver++"), ("solver_order", json!(2))],
            SamplerKind::DpmPlusPlus3 => vec![dpm("dpmsolver++"), ("solver_order", json!(3))],
            SamplerKind::DpmPlusPlusSde => vec![dpm("sde-dpmsolver++")],
            SamplerKind::Dpm => vec![dpm("dpmsolver"), end("sigma_min")],
            SamplerKind::DpmSde => vec![dpm("sde-dpmsolver"), end("sigma_min")],
            SamplerKind::Pndm => vec![("skip_prk_steps", json!(false))],
            SamplerKind::Plms => vec![("skip_prk_steps", json!(true))],
            _ => Vec::new(),
        }
    }

    fn entry(self) -> Name {
        let mut names = NAMES.into_iter();
        let found = names.find(|(kind, ..)| *kind == self);
        found.unwrap_or((self, "", SchedulerClass::Ddim))
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = NAMES.into_iter().map(|(kind, name, _)| (name, kind));
        let found = names.chain(ALIASES).find(|(known, _)| *known == name);
        found.map(|(_, kind)| kind).ok_or_else(|| {
            let known: Vec<&str> = SamplerKind::all().map(SamplerKind::name).collect();
            Error::UnknownSampler {
                name: name.to_owned(),
                known: known.join(", "),
            }
        })
    }
}
