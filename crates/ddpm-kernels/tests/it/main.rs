//! The operations against their references, finite differences, PyTorch's values, and themselves on other threads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

#[cfg(feature = "cuda")]
mod card;
mod errors;
mod executor;
mod gradients;
mod shapes;
mod support;
mod threads;
mod torch;
mod training;
mod winograd;
