//! The paper: time, schedule, q(x_t|x_0), posterior, what the network predicts, losses, likelihood.

mod betas;
mod denoiser;
mod error;
mod forward;
mod likelihood;
mod loss;
mod mix;
mod posterior;
mod prediction;
mod respacing;
mod schedule;
mod timestep;
mod variance;
mod zero_terminal_snr;

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
