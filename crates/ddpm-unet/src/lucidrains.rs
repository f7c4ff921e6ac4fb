//! The network of lucidrains' `denoising-diffusion-pytorch`, for sampling: configured, named and computed.
//!
//! ```text
//!  x_t ─ 7x7 ─ downs.0 ─ halve ─ ... ─ downs.n ─ mid_block1, mid_attn, mid_block2 ─ ups.0 ─ double ─ ... ─ ups.n ─ final_res_block ─ 1x1
//!         │      └───── two states of every level are remembered and joined on the way up ─────┘                    │
//!         └─────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A level has two residual blocks and attention, linear (Shen et al. 2018, arXiv:1812.01243) or softmax. The time scales
//! and shifts the first half of each block. What versions differ in are settings; tensors are named as by version 2.

mod architecture;
mod config;
mod forward;
mod keys;

pub(crate) use keys::CLASS_NAME;

pub use config::{
    AttentionNorm, Halving, LucidrainsConfig, LucidrainsSettings, LucidrainsTime,
    WeightStandardization,
};
pub use forward::LucidrainsUNet;
