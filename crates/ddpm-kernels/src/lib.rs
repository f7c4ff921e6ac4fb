//! The differentiable operations a U-Net spends its time in, fast on the CPU.
//!
//! | operation | formula | shapes | gradients |
//! |---|---|---|---|
//! | [`conv2d`] | y = W * x + b (cross-correlation) | x `[B, I, H, W]`, W `[O, I, k, k]`, b `[O]` or `[B, O]` -> `[B, O, H', W']` | x, W, b |
//! | [`group_norm`] | γ (x - μ) / √(σ² + eps) + β, then SiLU if asked | x `[B, C, ...]`, γ and β `[C]` or `[B, C]` | x, γ, β |
//! | [`silu`] | x / (1 + e^-x) | any | x |
//! | [`linear`] | x Wᵀ + b | x `[..., I]`, W `[O, I]`, b `[O]` -> `[..., O]` | x, W, b |
//! | [`attention`] | softmax(scale q kᵀ) v | q `[B, h, N, d]`, k `[B, h, M, d]`, v `[B, h, M, e]` -> `[B, h, N, e]` | q, k, v |
//! | [`upsample_nearest_2x`] | each pixel becomes 2 by 2 | `[B, C, H, W]` -> `[B, C, 2H, 2W]` | x |
//! | [`average_pool_2x`] | the mean of 2 by 2 pixels | `[B, C, H, W]` -> `[B, C, H/2, W/2]` | x |
//! | [`fir_downsample_2x`], [`fir_upsample_2x`] | filtered by (1, 3, 3, 1) along each axis | `[B, C, H, W]` -> half or twice the size | x |
//! | [`relu`], [`gelu`], [`mish`] | max(x, 0), x Φ(x), x tanh(ln(1 + e^x)) | any | x |
//! | [`embedding`] | rows of a table by number | table `[N, D]` -> `[B, D]` | table |
//! | [`concat_channels`] | a then b along channels | `[B, C, H, W]`, `[B, D, H, W]` -> `[B, C + D, H, W]` | a, b |
//! | [`add`] | x + y | any, equal | x, y |
//! | [`dropout`] | x mask / (1 - rate) | x and mask any, equal | x |
//! | [`adamw_step`] | one step of Adam with decoupled weight decay, in place | p, m, v, g any, equal | none |
//! | [`ema_update`] | ema = decay ema + (1 - decay) p, in place | any, equal | none |
//! | [`optimise`] | clipping, AdamW and every average of all parameters in one pass, in place | lists, equal | none |
//! | [`optimise_tensors`] | the same with the norm of the gradients, on the device where they are | lists, equal | none |
//! | [`sum_of_squares`] | Σ x² in double precision | any | none |
//! | [`scale_in_place`] | x = factor x | any | none |
//!
//! All take `f32` and say so otherwise. Arguments need not be contiguous. Work is divided in a way that does not
//! depend on the number of threads of rayon's current pool, so that results do not either, to the last bit.
//! On CUDA devices, with the feature `cuda`, the convolution is cuDNN's, and most of the others have kernels
//! of their own (`docs/kernels.md` lists them). Where there are neither loops nor kernels, the differentiable operations fall
//! back to their [`mod@reference`], which is written in plain candle operations; those in place are for the CPU only, and say
//! so, but for [`optimise_tensors`].
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use ddpm_kernels::{Activation, Conv2d, Padding, conv2d, group_norm};
//!
//! # fn main() -> candle_core::Result<()> {
//! let device = Device::Cpu;
//! let x = Tensor::arange(0f32, 2. * 4. * 6. * 6., &device)?.reshape((2, 4, 6, 6))?;
//! let weight = Var::ones((8, 4, 3, 3), candle_core::DType::F32, &device)?;
//! let (gamma, beta) = (Tensor::ones(4, x.dtype(), &device)?, Tensor::zeros(4, x.dtype(), &device)?);
//!
//! let y = group_norm(&x, 2, &gamma, &beta, 1e-6, Activation::Silu)?;
//! let y = conv2d(&y, &weight, None, Conv2d::new(2, Padding::DDPM_DOWN))?;
//! assert_eq!(y.dims(), [2, 8, 3, 3]);
//!
//! let gradients = y.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&weight).map(Tensor::dims), Some([8, 4, 3, 3].as_slice()));
//! # Ok(())
//! # }
//! ```
//!
//! Operations one by one leave the graph to candle, which keeps every result, allocates each anew and adds each gradient to
//! zeros. Two things help: an allocator that keeps freed memory, so that its pages are not faulted in and cleared each time
//! (mimalloc with `MIMALLOC_PURGE_DELAY=-1`, as this crate's benchmarks and `ddpm-train` have it), and to work on a thread of
//! rayon's pool (`ThreadPool::install`), where no operation waits for another thread to wake.
//!
//! A whole network is faster by plan: a [`Graph`] records it once, an [`Executor`] carries it out.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use ddpm_kernels::{Activation, Conv2d, Executor, Gradients, Graph, Padding, Use};
//!
//! # fn main() -> candle_core::Result<()> {
//! // Parameters by number: a convolution 3 -> 8, a normalisation, a convolution 8 -> 3.
//! let shapes = [vec![8, 3, 3, 3], vec![8], vec![8], vec![8], vec![3, 8, 3, 3], vec![3]];
//! let same = Conv2d::new(1, Padding::same(1));
//! let mut graph = Graph::new(2, shapes.to_vec(), 0.0);
//! let x = graph.images(3, 6, 4);
//! let h = graph.conv2d(&x, 0, 1, None, same)?;
//! let h = graph.group_norm(&h, (4, 1e-6), (2, 3), None, Activation::Silu)?;
//! let y = graph.conv2d(&h, 4, 5, None, same)?;
//! let mut network = Executor::new(graph, &y, Use::Training)?;
//!
//! let ones = |shape: &Vec<usize>| Tensor::ones(shape.as_slice(), DType::F32, &Device::Cpu);
//! let parameters = shapes.iter().map(ones).collect::<candle_core::Result<Vec<_>>>()?;
//! let images = Tensor::ones((2, 3, 6, 4), DType::F32, &Device::Cpu)?;
//! let vectors = Tensor::zeros((2, 1), DType::F32, &Device::Cpu)?; // this network has none
//! let y = network.forward(&parameters, &images, &vectors, &mut |_, _| Ok(()))?;
//! assert_eq!(y.dims(), [2, 3, 6, 4]);
//!
//! let mut gradients = Gradients::zeros(&shapes);
//! network.backward(&parameters, &images, &y.ones_like()?, &mut gradients, false)?;
//! assert_eq!(gradients.tensor(5)?.to_vec1::<f32>()?, [48.; 3]); // of the last bias: 2 images of 6 by 4 pixels
//! # Ok(())
//! # }
//! ```
//!
//! How it works and what was tried is in `docs/kernels.md`. The files `conv`, `norm`, `linear`, `attention`, `upsample`,
//! `pool`, `fir`, `elementwise`, `activations`, `embedding` and `training` are candle's side; `source` (pixels), `packing`
//! (weights), `tile` (the two inner loops), `planes` (a normalisation's, which stays in candle's layout) and
//! `vector` (the processor) are what they are made of.

mod activations;
mod attention;
mod conv;
mod elementwise;
mod embedding;
mod fir;
mod linear;
mod norm;
mod pool;
mod training;
mod upsample;

mod executor;

mod bf16;

#[cfg(any(test, feature = "cuda"))]
pub mod cuda;

mod correlate;
mod data_gradient;
mod geometry;
mod heads;
mod normalise;
mod packing;
mod planes;
mod simd;
mod source;
mod sums;
mod tile;
mod tiled;
mod tiled_gradient;
mod transpose;
mod vector;
mod weight_gradient;
mod winograd;

mod affine;
mod aligned;
mod check;
mod storage;

pub mod device;
pub mod processor;
pub mod reference;
mod upload;

pub use activations::{gelu, mish, relu};
pub use attention::attention;
pub use conv::{Conv2d, Padding, conv2d};
pub use elementwise::{add, concat_channels, dropout, silu};
pub use embedding::embedding;
#[cfg(feature = "cuda")]
pub use executor::{CardExecutor, Draws, DrawsOf};
pub use executor::{DrawMask, Executor, Gradients, Graph, Needed, Precision, Use, Value};
pub use fir::{fir_downsample_2x, fir_upsample_2x};
pub use linear::linear;
pub use norm::{Activation, group_norm};
pub use pool::average_pool_2x;
pub use training::{
    AdamW, Averaged, adamw_step, clip_factor, ema_update, optimise, optimise_tensors,
    scale_in_place, sum_of_squares,
};
pub use upload::upload;
pub use upsample::upsample_nearest_2x;
