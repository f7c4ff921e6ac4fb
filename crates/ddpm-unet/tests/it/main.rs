//! The network against diffusers and PyTorch, and what bad configurations, weights and inputs are told.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy sees only the tests themselves, not what they call"
)]

mod config;
mod dropout;
mod formula;
mod golden;
mod gradients;
mod initialisation;
mod inputs;
mod k_diffusion;
mod learn;
mod lucidrains;
mod memory;
mod plan;
mod weights;
