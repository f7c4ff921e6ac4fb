//! The network of k-diffusion's `image_v1`, for sampling: configured, named and computed.
//!
//! ```text
//!  x ─ p x p pixels into channels ─ 1x1 ─ d_blocks.0 ─ halve ─ d_blocks.1 ─ ... ─ d_blocks.n
//!                                             └──────────┐        └──────┐           │ double
//!  y ─ channels into p x p pixels ─ 1x1 ─ u_blocks.n ─ double ─ ... ─ u_blocks.1 ─ u_blocks.0
//! ```
//!
//! A level has residual blocks with GELU, and after each attention or none. What the noise level becomes scales and shifts
//! every normalisation, those of attention too; none has weights of its own. Levels halve and double through the filter
//! (1, 3, 3, 1), past the edges of a mirrored image. It is told ln(sigma) / 4 within Karras' preconditioning (Karras et al.
//! 2022, arXiv:2206.00364, section 5), which is the samplers'. Tensors are named as k-diffusion names them.

mod architecture;
mod config;
mod forward;
mod keys;

pub(crate) use keys::CLASS_NAME;

pub use config::{KDiffusionConfig, KDiffusionSettings};
pub use forward::KDiffusionUNet;
