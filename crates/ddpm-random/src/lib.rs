//! Seeded Gaussian noise with an address; the same on every device, thread count and batch size.

mod address;
mod box_muller;
mod draw;
mod error;
mod noise;
mod permutation;
mod philox;

pub use address::Stream;
pub use draw::{
    normal_batch, normal_into, uniform_batch, uniform_f64, uniform_into, uniform_u64_below,
};
pub use error::{Error, Result};
pub use noise::{FixedNoise, SampleNoise, sample_start};
pub use permutation::Permutation;
