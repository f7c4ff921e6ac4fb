//! The network against diffusers and PyTorch, and what bad configurations, weights and inputs are told.

mod config;
mod dropout;
mod formula;
mod golden;
mod gradients;
mod initialisation;
mod inputs;
mod memory;
mod weights;
