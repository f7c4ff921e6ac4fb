//! The operations against their references, finite differences, PyTorch's values, and themselves on other threads.

mod errors;
mod gradients;
mod support;
mod threads;
mod torch;
mod training;
