//! Every way to walk from x_T back to x_0: one file an algorithm.
//!
//! A [`Walk`] is an iterator: each `next()` asks the network once ([`heun`]: twice) and yields a [`Step`] with the time just used, the images after
//! it and the images that the network has in mind. Progress bars and films are consumers. Walks know a
//! [`Denoiser`](ddpm_core::Denoiser) and a [`NoiseSource`](ddpm_core::NoiseSource), no network and no random generator, and they
//! detach what they keep, so that a walk over weights in training holds no graph.
//!
//! | algorithm | source | here |
//! |---|---|---|
//! | ancestral sampling | Ho et al. 2020, algorithm 2 | [`ancestral`] |
//! | DDIM | Song et al. 2021, equations 12 and 16 | [`ddim`], [`ddim_with`] |
//! | DDIM inversion | Song et al. 2021, section 4.3 | [`ddim_inversion`] |
//! | DPM-Solver, DPM-Solver++, SDE-DPM-Solver++ | Lu et al. 2022 | [`dpm_solver`] |
//! | Euler | Karras et al. 2022, equation 3 | [`euler`] |
//! | Euler, ancestral | Crowson's k-diffusion | [`euler_ancestral`] |
//! | Heun | Karras et al. 2022, algorithm 1 | [`heun`] |
//!
//! [`Process`] is what all of them share: a schedule, full or respaced, what the network predicts, how x_0-hat is clipped.
//! The last four walk over [`Levels`] of noise, which are made from a process with the schedule of training.
//! [`SchedulerConfig`] reads and writes it as diffusers' `scheduler_config.json`; [`Sampler`] and [`SamplerKind`] choose by name.
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

mod class;

mod keys;

mod trained;

mod solver;

mod sampler;

mod config;

mod error;

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
pub use trained::Betas;
pub use unipc::{UniPcKind, UniPcSettings, unipc};
pub use walk::{Step, Walk};
