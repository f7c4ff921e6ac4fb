//! Every way to walk from x_T back to x_0: one file an algorithm.
//!
//! A [`Walk`] is an iterator: each `next()` asks the network once (some algorithms: twice or more) and yields a [`Step`] with the time just
//! used, the images after it and the images that the network has in mind. Progress bars and films are consumers. Walks know a
//! [`Denoiser`](ddpm_core::Denoiser) and a [`NoiseSource`](ddpm_core::NoiseSource), no network and no random generator, and they
//! detach what they keep, so that a walk over weights in training holds no graph.
//!
//! # Any network, in ten lines
//!
//! The scheduler as diffusers wrote it, a network and its noise as closures, and a sampler by name; nothing else of this project:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use ddpm_samplers::{Choice, SamplerKind, SchedulerConfig, ddpm_core::Result};
//!
//! let json = r#"{ "_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2" }"#; // scheduler_config.json
//! let network = |x: &Tensor, _time: &[f64]| -> Result<Tensor> { Ok((x * 0.5)?) }; // [B, C, H, W] -> the noise in it
//! let mut noise = |_draw: usize, x: &Tensor| -> Result<Tensor> { Ok(x.randn_like(0., 1.)?) };
//! let sampler = SchedulerConfig::from_json(json)?
//!     .with_kind(SamplerKind::EulerAncestral)?
//!     .sampler(&Choice::steps(20))?;
//! let mut x = Tensor::randn(0f32, 1., (2, 3, 8, 8), &Device::Cpu)?;
//! for step in sampler.walk(&network, &x.clone(), &mut noise) {
//!     x = step?.x;
//! }
//! assert_eq!(x.dims(), [2, 3, 8, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The algorithms
//!
//! | name | algorithm | source | here | diffusers' class |
//! |---|---|---|---|---|
//! | `ddpm` | ancestral sampling | Ho et al. 2020, algorithm 2 | [`ancestral`] | `DDPMScheduler` |
//! | `ddim` | DDIM | Song et al. 2021, equations 12 and 16 | [`ddim`] | `DDIMScheduler` |
//! | | DDIM inversion | Song et al. 2021, section 4.3 | [`ddim_inversion`] | `DDIMInverseScheduler` |
//! | `dpm++`, `dpm++3m`, `dpm++sde`, `dpm`, `dpm-sde` | DPM-Solver and DPM-Solver++, multistep | Lu et al. 2022 | [`dpm_solver`] | `DPMSolverMultistepScheduler` |
//! | `dpm++2s` | the same, singlestep | Lu et al. 2022 | [`dpm_solver_singlestep`] | `DPMSolverSinglestepScheduler` |
//! | `unipc` | UniPC | Zhao et al. 2023 | [`unipc`] | `UniPCMultistepScheduler` |
//! | `deis` | DEIS | Zhang and Chen 2022 | [`deis`] | `DEISMultistepScheduler` |
//! | `pndm`, `plms` | PNDM | Liu et al. 2022 | [`pndm`] | `PNDMScheduler` |
//! | `lms` | linear multistep | Crowson's k-diffusion | [`lms`] | `LMSDiscreteScheduler` |
//! | `euler`, `edm` | Euler | Karras et al. 2022, equation 3 | [`euler`] | `EulerDiscreteScheduler`, `EDMEulerScheduler` |
//! | `euler-a` | Euler, ancestral | Crowson's k-diffusion | [`euler_ancestral`] | `EulerAncestralDiscreteScheduler` |
//! | `heun` | Heun | Karras et al. 2022, algorithm 1 | [`heun`] | `HeunDiscreteScheduler` |
//! | `kdpm2` | midpoint | Crowson's k-diffusion | [`kdpm2`] | `KDPM2DiscreteScheduler` |
//! | `kdpm2-a` | midpoint, ancestral | Crowson's k-diffusion | [`kdpm2_ancestral`] | `KDPM2AncestralDiscreteScheduler` |
//! | `edm-dpm++` | DPM-Solver++ | Lu et al. 2022 | [`dpm_solver`] | `EDMDPMSolverMultistepScheduler` |
//! | `sde-ve` | predictor and corrector | Song et al. 2021, "Score-based generative modeling" | [`score_sde_ve`] | `ScoreSdeVeScheduler` |
//! | | RePaint | Lugmayr et al. 2022 | [`repaint`] | `RePaintScheduler` |
//!
//! [`SchedulerConfig`] reads, writes and switches diffusers' `scheduler_config.json` of all of these, and makes the [`Sampler`] of a
//! walk. Every sampler runs on every network: [`Process`] is what those on steps share, a schedule, full or respaced, what the network
//! predicts, how x_0-hat is clipped; the others walk over [`Levels`] of noise, which are made from a process with the schedule of
//! training, or from the sigmas of a network that was trained at any. [`SelfConditioned`] is a network that is told its last x_0-hat. Where diffusers and the papers differ, [`Manner`] says who is followed.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use ddpm_core::{NoiseSource, Prediction, Result, Schedule, Spacing};
//! use ddpm_samplers::{Clip, Process, ddim};
//!
//! /// DDIM with eta = 0 draws nothing; ancestral sampling would need a real source, as `ddpm-random` has.
//! struct Silence;
//! impl NoiseSource for Silence {
//!     fn draw(&mut self, _: usize, like: &Tensor) -> Result<Tensor> {
//!         Ok(like.zeros_like()?)
//!     }
//! }
//!
//! let process = Process {
//!     schedule: Schedule::linear(1000, 1e-4, 0.02)?.respaced(Spacing::Trailing, 50)?,
//!     prediction: Prediction::Original,
//!     clip: Clip::Range(1.0),
//! };
//! // A network that has one image in mind, whatever it sees.
//! let image = Tensor::new(&[[[[0.5f32, -0.5], [1.0, 0.0]]]], &Device::Cpu)?;
//! let network = |_: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(image.clone()) };
//! let x_t = Tensor::new(&[[[[1.2f32, 0.3], [-0.7, 0.1]]]], &Device::Cpu)?;
//!
//! let mut x = x_t.clone();
//! for step in ddim(&process, 0.0, &network, &x_t, &mut Silence) {
//!     x = step?.x;
//! }
//! assert!((x - image)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod manner;

mod process;

mod walk;

mod level;

mod table;

mod curve;

mod meaning;

mod levels;

mod ancestral;

mod ddim;

mod ddim_inversion;

mod integral;

mod dpm_solver;

mod dpm_solver_singlestep;

mod unipc;

mod deis;

mod pndm;

mod lms;

mod euler;

mod euler_ancestral;

mod heun;

mod kdpm2;

mod kdpm2_ancestral;

mod score_sde_ve;

mod repaint;

mod self_conditioned;

mod class;

mod keys;

mod trained;

mod solver;

mod sampler;

mod config;

mod error;

/// The paper: what walks are handed ([`Denoiser`](ddpm_core::Denoiser), [`NoiseSource`](ddpm_core::NoiseSource)) and made of.
pub use ddpm_core;

pub use ancestral::{AncestralSettings, StepVariance, ancestral, ancestral_with};
pub use class::SchedulerClass;
pub use config::{Choice, SchedulerConfig, Steps};
pub use curve::{Curve, Flow};
pub use ddim::{DdimSettings, Direction, Landing, ddim, ddim_with};
pub use ddim_inversion::{ddim_inversion, ddim_inversion_of, ddim_inversion_with};
pub use deis::deis;
pub use dpm_solver::{DpmAlgorithm, DpmSecondOrder, DpmSettings, dpm_solver};
pub use dpm_solver_singlestep::dpm_solver_singlestep;
pub use error::{Error, Result};
pub use euler::euler;
pub use euler_ancestral::euler_ancestral;
pub use heun::heun;
pub use kdpm2::kdpm2;
pub use kdpm2_ancestral::kdpm2_ancestral;
pub use levels::{End, LevelChoice, Levels, Rounding};
pub use lms::lms;
pub use manner::Manner;
pub use pndm::{PndmPlan, pndm};
pub use process::{Clip, Process};
pub use repaint::{RePaintSettings, repaint};
pub use sampler::{Sampler, SamplerKind};
pub use score_sde_ve::score_sde_ve;
pub use self_conditioned::SelfConditioned;
pub use trained::Betas;
pub use unipc::{UniPcKind, UniPcSettings, unipc};
pub use walk::{Step, Walk};
