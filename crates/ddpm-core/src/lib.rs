//! The paper: time, schedule, q(x_t|x_0), posterior, what the network predicts, losses, likelihood.
//!
//! The mathematics of *Denoising Diffusion Probabilistic Models* (Ho, Jain and Abbeel 2020) and of what followed it, on
//! [candle](candle_core) tensors. One equation is one function, with its number and source above it. Nothing here reads a
//! file, draws a random number or prints: noise is handed in, and the [`Schedule`] is all there is to know about time.
//!
//! # From the paper's symbols to this crate
//!
//! | symbol | what it is | here |
//! |---|---|---|
//! | t = 1, ..., T | time; the network is told 0, ..., T-1 | [`Timestep`], [`Schedule::network_time`] |
//! | beta_t | the variance that step t adds | [`Schedule::beta`] |
//! | alpha_t, alpha-bar_t | 1 - beta_t, and the product of the first t | [`Schedule::alpha`], [`Schedule::alpha_bar`] |
//! | q(x_t \| x_{t-1}) | one step of noise (equation 2) | [`q_step`] |
//! | q(x_t \| x_0) | all of them at once (equation 4) | [`q_sample`] |
//! | mu-tilde_t, beta-tilde_t | the posterior q(x_{t-1} \| x_t, x_0) (equations 6, 7) | [`q_posterior_mean`], [`Schedule::beta_tilde`] |
//! | (equations 10, 11) | its mean in terms of the noise | [`q_posterior_mean_from_noise`] |
//! | eps_theta, x_0, v, mu_theta | what the network predicts | [`Prediction`] |
//! | x_0-hat | the image that a prediction implies (equation 15) | [`Prediction::x_0_hat`] |
//! | sigma_t^2 | the variance of p(x_{t-1} \| x_t) (section 3.2) | [`Variance`] |
//! | L_simple | the loss (equation 14), and others | [`Loss`], [`Weighting`] |
//! | L_T, L_{t-1}, L_0 | the variational bound (equation 5) | [`prior_term`], [`step_term`] |
//! | p(x_0 \| x_1) | the discretised decoder (equation 13) | [`decoder_log_likelihood`] |
//! | SNR(t) | alpha-bar_t / (1 - alpha-bar_t) (Kingma et al. 2021) | [`Schedule::snr`] |
//!
//! The schedules are constructors of [`Schedule`]: [`linear`](Schedule::linear), [`linear_scaled`](Schedule::linear_scaled),
//! [`scaled_linear`](Schedule::scaled_linear), [`cosine`](Schedule::cosine), [`sigmoid`](Schedule::sigmoid),
//! [`alpha_bar_sigmoid`](Schedule::alpha_bar_sigmoid), [`laplace`](Schedule::laplace), [`quadratic`](Schedule::quadratic),
//! [`constant`](Schedule::constant), [`jsd`](Schedule::jsd), [`warm_up`](Schedule::warm_up), and any
//! [betas](Schedule::from_betas) or [alpha-bars](Schedule::from_alpha_bars). Each can be
//! [rescaled to zero terminal SNR](Schedule::rescaled_to_zero_terminal_snr) and [respaced](Schedule::respaced) to fewer steps.
//!
//! # Algorithm 1, one step of training
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use ddpm_core::{Loss, Prediction, Schedule, Weighting, q_sample};
//!
//! let schedule = Schedule::linear(1000, 1e-4, 0.02)?;
//! let prediction = Prediction::Noise;
//!
//! // Two grey 2x2 images in [-1, 1], a t for each, and the noise, drawn elsewhere.
//! let x_0 = Tensor::new(&[[[[-1f32, 1.], [1., -1.]]], [[[0., 0.5], [0.5, 0.]]]], &Device::Cpu)?;
//! let eps = Tensor::new(&[[[[0.3f32, -1.2], [0.8, 0.1]]], [[[1.1, 0.], [-0.4, 0.6]]]], &Device::Cpu)?;
//! let t = [schedule.timestep(1)?, schedule.timestep(640)?];
//!
//! let x_t = q_sample(&schedule, &x_0, &t, &eps)?;
//! let target = prediction.target(&schedule, &x_0, &x_t, &t, &eps)?;
//!
//! // A network is asked at `schedule.network_times(&t)`; this one says what is right.
//! assert_eq!(schedule.network_times(&t)?, [0.0, 639.0]);
//! let output = eps.clone();
//!
//! let losses = Loss::Mse.per_image(&output, &target)?;
//! let weights = Weighting::MinSnr { gamma: 5.0 }.per_image(&schedule, prediction, &t, &losses)?;
//! let loss = (losses * weights)?.mean_all()?;
//! assert_eq!(loss.to_scalar::<f32>()?, 0.0);
//!
//! // The prediction and x_t hold the image.
//! let x_0_hat = prediction.x_0_hat(&schedule, &x_t, &t, &output)?;
//! let error = (x_0_hat - x_0)?.abs()?.max_all()?.to_scalar::<f32>()?;
//! assert!(error < 1e-5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To sample, see the crate `ddpm-samplers`, whose walks are written in terms of [`Denoiser`] and [`NoiseSource`].
//!
//! # Where alpha-bar is 0
//!
//! With zero terminal SNR x_T is noise and nothing else. A network that predicts noise then says nothing about x_0, so
//! [`Prediction::x_0_hat`] is an error for [`Prediction::Noise`] there; all else is defined, without NaN.
//!
//! # References
//!
//! Ho, Jain and Abbeel 2020, *Denoising Diffusion Probabilistic Models*. Nichol and Dhariwal 2021, *Improved DDPM*.
//! Song, Meng and Ermon 2021, *DDIM*. Salimans and Ho 2022, *Progressive Distillation* (v). Choi et al. 2022, *Perception
//! Prioritized Training* (P2). Hang et al. 2023, *Efficient Diffusion Training via Min-SNR Weighting*. Lin et al. 2023, *Common
//! Diffusion Noise Schedules and Sample Steps are Flawed* (zero terminal SNR, spacing). Kingma et al. 2021, *Variational
//! Diffusion Models* (SNR). Jabri et al. 2022, *Scalable Adaptive Computation for Iterative Generation* (alpha-bar sigmoid).

mod timestep;

mod schedule;

mod betas;

mod zero_terminal_snr;

mod respacing;

mod forward;

mod posterior;

mod prediction;

mod variance;

mod loss;

mod likelihood;

mod denoiser;

mod mix;

mod error;

pub use denoiser::{Denoiser, NoiseSource};
pub use error::{Error, Result};
pub use forward::{q_sample, q_step};
pub use likelihood::{
    bits_per_dim, decoder_log_likelihood, normal_kl, prior_term, step_term, step_term_of,
};
pub use loss::{Loss, Weighting};
pub use posterior::{posterior_weights, q_posterior_mean, q_posterior_mean_from_noise};
pub use prediction::{Prediction, eps_from_x_0};
pub use respacing::Spacing;
pub use schedule::Schedule;
pub use timestep::Timestep;
pub use variance::{Variance, log_variance_between};
