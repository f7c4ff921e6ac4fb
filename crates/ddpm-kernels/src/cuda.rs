//! The operations on an NVIDIA card: kernels of our own (the folder `cuda` of this crate), and cuDNN's convolutions.
//!
//! Every operation is written once over a [`launch::Machine`]. The card is one; the other, in tests, runs the same source on
//! the host, thread by thread, so that all arithmetic, indices, barriers and launches are tested without a card.

#![cfg_attr(not(feature = "cuda"), allow(dead_code))] // tests use not all of it

pub(crate) mod attention;
pub(crate) mod convolution;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod launch;
pub(crate) mod nhwc;
pub(crate) mod norm;
pub(crate) mod optimise;
pub(crate) mod planes;
pub(crate) mod product;
pub(crate) mod sums;

pub(crate) mod notes;
pub(crate) mod settings;

#[cfg(feature = "cuda")]
pub(crate) mod card;
#[cfg(feature = "cuda")]
pub(crate) mod conv;
#[cfg(feature = "cuda")]
mod cublas;
#[cfg(feature = "cuda")]
mod cudnn;
#[cfg(feature = "cuda")]
mod engines;
#[cfg(feature = "cuda")]
pub(crate) mod linear;
#[cfg(feature = "cuda")]
pub(crate) mod recording;

#[cfg(test)]
#[path = "cuda/tests/host.rs"]
pub(crate) mod host;
#[cfg(feature = "cuda")]
#[cfg(test)]
#[path = "cuda/tests/on_a_card.rs"]
mod on_a_card;
#[cfg(test)]
#[path = "cuda/tests/oracle.rs"]
pub(crate) mod oracle;

#[cfg(feature = "cuda")]
pub use dropout::dropout_drawn;
pub use settings::{use_deterministic, use_tf32};
