//! The network, configured and named as diffusers' UNet2DModel.
//!
//! A [`UNetConfig`] is diffusers' `unet/config.json`; [`initialise`] draws first weights, or they come by diffusers'
//! names from a file; [`UNet`] is the two together and a [`ddpm_core::Denoiser`].
//!
//! ```text
//!  x_t ─ conv_in ─ down_blocks.0 ─ halve ─ ... ─ down_blocks.n ─ mid_block ─ up_blocks.0 ─ double ─ ... ─ up_blocks.n ─ conv_out
//!                        └───────────── every state is remembered and joined on the way up ──────────────┘
//!  time ─ sinusoids ─ time_embedding ─ added in (or scaling and shifting) every residual block
//! ```
//!
//! | what | where |
//! |---|---|
//! | settings and their defaults; what makes them a network; JSON | `config`, `checks`, `keys` |
//! | layers, names, shapes, construction order | `architecture` |
//! | what is computed, said once | `walk` |
//! | the walk that computes, by ddpm-kernels | `compute` |
//! | the walk that records a plan for the CPU, and the plans in use | `record`, `engine` |
//! | what a pass takes, by its plan or by measuring | `memory`, `measure` |
//! | f32, bf16 or whichever is faster, by name | `precision` |
//! | the time as sinusoids, or as a row of a table; classes | `time_embedding`, `classes` |
//! | dropout with an address | `dropout` |
//! | one block alone | `block` |
//! | first weights as Ho's or PyTorch's | `initialisation` |
//! | any network that samples, be it diffusers' or not; how to add one | `network` |
//! | lucidrains' `Unet`, which is none of diffusers' | `lucidrains` |
//! | k-diffusion's `image_v1`, which is none either | `k_diffusion` |
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use ddpm_unet::{Initialisation, UNet, UNetConfig, UNetSettings, initialise};
//!
//! # fn main() -> ddpm_unet::Result<()> {
//! assert_eq!(UNetConfig::ddpm_cifar10().parameter_count(), 35_746_307);
//!
//! // A small one: two levels, attention in the second.
//! let settings = UNetSettings { in_channels: 1, out_channels: 1, norm_num_groups: Some(4), ..UNetSettings::ho() };
//! let config = UNetConfig::new(settings.with_levels(&[(8, false), (16, true)]))?;
//! let weights = initialise(&config, Initialisation::Ho, 17, &Device::Cpu)?;
//! let network = UNet::new(&config, &weights)?;
//!
//! let x_t = Tensor::zeros((2, 1, 4, 6), DType::F32, &Device::Cpu)?;
//! let eps = network.forward(&x_t, &[999.0, 0.0])?;
//! assert_eq!(eps.dims(), [2, 1, 4, 6]);
//! # Ok(())
//! # }
//! ```

mod architecture;
mod block;
mod checks;
mod classes;
mod compute;
mod config;
mod dropout;
mod engine;
mod error;
mod initialisation;
mod k_diffusion;
mod keys;
mod layers;
mod lucidrains;
mod measure;
mod memory;
mod network;
mod precision;
mod record;
mod time_embedding;
mod unet;
mod walk;

pub use block::{Block, BlockOutput, ResnetChange};
pub use classes::{ClassKind, Classes};
pub use config::{
    ClassEmbedType, DIFFUSERS_VERSION, DownBlock, DownsamplePadding, Nonlinearity, Resampling,
    SampleSize, TimeEmbeddingType, TimeScaleShift, UNetConfig, UNetSettings, UpBlock,
};
pub use ddpm_kernels::Precision;
pub use ddpm_kernels::device::{DeviceName, NoDevice, Place, is_a_card};
pub use ddpm_kernels::upload;
pub use dropout::DropoutAddress;
pub use error::{Error, Result, WeightsMismatch};
pub use initialisation::{Initialisation, initialise, initialise_as_torch};
pub use k_diffusion::{KDiffusionConfig, KDiffusionSettings, KDiffusionUNet};
pub use lucidrains::{
    AttentionNorm, Halving, LucidrainsConfig, LucidrainsSettings, LucidrainsTime, LucidrainsUNet,
    WeightStandardization,
};
pub use memory::{MemoryEstimate, Use};
pub use network::{Network, NetworkConfig};
pub use precision::PrecisionName;
pub use time_embedding::timestep_embedding;
pub use unet::{NamedTensors, UNet};
