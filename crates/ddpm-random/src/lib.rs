//! Seeded Gaussian noise with an address; the same on every device, thread count and batch size.
//!
//! A number is not the next one of a generator: it stands at an address, and whoever asks for that
//! address gets that number. So a sample does not depend on its batch, training resumes exactly
//! from a step count alone, and noise is made in parallel without an order to keep.
//!
//! ```
//! use candle_core::Device;
//! use ddpm_random::{Permutation, Stream, normal_batch, sample_start, uniform_u64_below};
//!
//! let seed = 17;
//! // x_T of images 0, 1, 2, 3; and of image 2 alone: the same numbers.
//! let all = sample_start(seed, 0, 4, (3, 8, 8), &Device::Cpu)?; // [4, 3, 8, 8]
//! let one = sample_start(seed, 2, 1, (3, 8, 8), &Device::Cpu)?; // [1, 3, 8, 8]
//! assert_eq!(
//!     all.get(2)?.flatten_all()?.to_vec1::<f32>()?,
//!     one.flatten_all()?.to_vec1::<f32>()?,
//! );
//!
//! // The 100th and 101st training image: t from 1..=1000, and eps.
//! let t = uniform_u64_below(seed, Stream::Timestep, 100, 0, 1000)? + 1;
//! assert!((1..=1000).contains(&t));
//! let eps = normal_batch(seed, Stream::TrainingNoise, &[100, 101], 0, (3, 8, 8), &Device::Cpu)?;
//! assert_eq!(eps.dims(), [2, 3, 8, 8]);
//!
//! // The order in which epoch 5 visits 60,000 images.
//! let order = Permutation::new(seed, 5, 60_000)?;
//! assert!(order.get(0) < 60_000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The address
//!
//! | part | what it is | range |
//! |---|---|---|
//! | seed | what the user chose | all of u64 |
//! | [`Stream`] | what the number is for | below |
//! | image | which image (or tensor) it belongs to | below 2^44 |
//! | step | which draw for that image | below 2^44 |
//! | element | place in the image, C, H, W order | below 2^34 |
//!
//! What does not fit is an error; nothing wraps.
//!
//! | stream | for | image | step |
//! |---|---|---|---|
//! | 0 [`Initialisation`](Stream::Initialisation) | first weights | 44-bit hash of the tensor's name | 0 |
//! | 1 [`Timestep`](Stream::Timestep) | t of a training image | training images before it | 0 |
//! | 2 [`TrainingNoise`](Stream::TrainingNoise) | eps of a training image | training images before it | 0 |
//! | 3 [`Dropout`](Stream::Dropout) | dropout masks | training images before it | optimiser step · layers + layer |
//! | 4 [`Order`](Stream::Order) | [`Permutation`] | place in the order | epoch |
//! | 5 [`Flip`](Stream::Flip) | mirrored or not | index in the data | epoch |
//! | 6 [`SampleStart`](Stream::SampleStart) | x_T, [`sample_start`] | sample | 0 |
//! | 7 [`SampleStep`](Stream::SampleStep) | a sampler's noise, [`SampleNoise`] | sample | draws before it |
//! | 8 [`HeldOut`](Stream::HeldOut) | the held-out loss | index in the data | 0 for t, 1 for eps |
//! | 9 [`Crop`](Stream::Crop) | where a training image is cropped | index in the data | epoch |
//! | 10 [`SampleClass`](Stream::SampleClass) | the class of a sampled image that nobody chose one for | sample | 0 |
//!
//! # The numbers
//!
//! Philox4x32-10 (Salmon et al. 2011) turns key and counter into four words. The key is the seed,
//! low word first. The counter's word 0 counts blocks of four words within the address; word 1 is
//! the low half of image, word 2 the low half of step; word 3 holds, from its lowest bit, 12 more
//! bits of image, 12 more of step, and 8 bits of stream. The four words of block b become the four
//! elements 4b, ..., 4b + 3: uniforms from the upper 24 bits of each; normals by Box-Muller from
//! each pair of words (cosine first), with u = (word + 1/2) / 2^32, largest |z| 6.764.
//!
//! Logarithm, cosine and sine are polynomials of this crate, in f64 without fused operations, and
//! within 1e-11 of the truth: every bit is the same on every processor and system. All of it is
//! held to published answers and to literal numbers by tests.
//!
//! # PyTorch's numbers
//!
//! [`TorchGenerator`] is the exception without addresses: PyTorch's CPU generator after
//! `torch.manual_seed`, bit for bit, for images that equal those of PyTorch programs seed for seed.

mod address;
mod box_muller;
mod cephes;
mod draw;
mod error;
mod mt19937;
mod noise;
mod permutation;
mod philox;
mod torch;

pub use address::Stream;
pub use draw::{
    normal_batch, normal_into, philox_words, uniform_batch, uniform_f64, uniform_into,
    uniform_u64_below,
};
pub use error::{Error, Result};
pub use noise::{FixedNoise, SampleNoise, sample_start};
pub use permutation::Permutation;
pub use torch::TorchGenerator;
