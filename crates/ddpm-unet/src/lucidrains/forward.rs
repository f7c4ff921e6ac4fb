//! What a `Unet` of lucidrains' computes, by the operations of ddpm-kernels and candle's, in f32.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use ddpm_kernels::{Activation, Conv2d, Padding};

use super::architecture::{Architecture, Attention, Level, Norm, Resample, Resnet};
use super::config::{AttentionNorm, LucidrainsConfig, LucidrainsTime, WeightStandardization};
use crate::layers::{LayerWeights, pixels_as_channels};
use crate::unet::size_of_input;
use crate::{Error, NamedTensors, Result};

/// A `Unet` of lucidrains' with its weights, for sampling.
#[derive(Clone)]
pub struct LucidrainsUNet {
    config: LucidrainsConfig,
    network: Arc<Architecture>,
    /// Detached, the kernels of residual blocks standardised where that is to be.
    weights: LayerWeights,
}

impl LucidrainsUNet {
    /// Builds the network from tensors by the names of [`LucidrainsConfig::parameters`].
    ///
    /// # Errors
    /// [`Error::Weights`], which names every tensor that is missing, extra, of the wrong shape or not f32.
    pub fn new(config: &LucidrainsConfig, weights: &(impl NamedTensors + ?Sized)) -> Result<Self> {
        let network = Architecture::new(config.settings());
        let mut weights = LayerWeights::matched(&network.parameters, weights)?;
        if let Some(how) = config.settings().weight_standardization {
            for (conv, _) in network.resnets().flat_map(|block| &block.halves) {
                weights[conv.weight] = standardised(&weights[conv.weight], how)?;
            }
        }
        Ok(Self {
            config: config.clone(),
            network: Arc::new(network),
            weights,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &LucidrainsConfig {
        &self.config
    }

    /// Evaluates the network; one that is told what it last took for the clean images is told `x_0_hat`, and zeros where
    /// there is none.
    ///
    /// # Shapes
    /// x_t and x_0-hat `[B, channels, H, W]` f32, time: one an image, 0..T-1 -> `[B, out_channels, H, W]`
    ///
    /// # Errors
    /// An input of another shape or type; a size that the network's depth does not suit; an x_0-hat that it is not told.
    pub fn forward(&self, x_t: &Tensor, time: &[f64], x_0_hat: Option<&Tensor>) -> Result<Tensor> {
        self.check_input(x_t, time)?;
        let network = &self.network;
        let x = self.with_last(x_t, x_0_hat)?;
        let first = self
            .weights
            .conv(&x, network.init_conv, Conv2d::new(1, Padding::same(3)))?;
        let time = self.time_embedding(time, x_t.device())?;

        let mut x = first.clone();
        let mut skips = Vec::new();
        for level in &network.downs {
            x = self.resnet(&x, &level.blocks[0], &time)?;
            skips.push(x.clone());
            x = self.resnet(&x, &level.blocks[1], &time)?;
            x = self.attention(&x, &level.attention)?;
            skips.push(x.clone());
            x = self.resample(&x, level)?;
        }
        let (before, attention, after) = &network.mid;
        x = self.resnet(&x, before, &time)?;
        x = self.attention(&x, attention)?;
        x = self.resnet(&x, after, &time)?;
        for level in &network.ups {
            for block in &level.blocks {
                if let Some(skip) = skips.pop() {
                    x = ddpm_kernels::concat_channels(&x, &skip)?;
                }
                x = self.resnet(&x, block, &time)?;
            }
            x = self.attention(&x, &level.attention)?;
            x = self.resample(&x, level)?;
        }
        x = ddpm_kernels::concat_channels(&x, &first)?;
        x = self.resnet(&x, &network.final_res_block, &time)?;
        self.weights.conv(&x, network.final_conv, ONE_BY_ONE)
    }

    /// x_t behind what the network last took for the clean images, where it is told that.
    fn with_last(&self, x_t: &Tensor, x_0_hat: Option<&Tensor>) -> Result<Tensor> {
        let expected = match (self.config.settings().self_condition, x_0_hat) {
            (false, None) => return Ok(x_t.clone()),
            (true, None) => {
                return Ok(ddpm_kernels::concat_channels(&x_t.zeros_like()?, x_t)?);
            }
            (true, Some(last)) if last.shape() == x_t.shape() && last.dtype() == DType::F32 => {
                return Ok(ddpm_kernels::concat_channels(last, x_t)?);
            }
            (true, Some(_)) => format!("F32 {:?}", x_t.dims()),
            (false, Some(_)) => "none: the network is not told it".to_owned(),
        };
        let found = x_0_hat.map(|last| format!("{:?} {:?}", last.dtype(), last.dims()));
        Err(Error::Input {
            what: "x_0_hat",
            found: found.unwrap_or_default(),
            expected,
        })
    }

    /// `[B, time_dim]`
    fn time_embedding(&self, time: &[f64], device: &Device) -> Result<Tensor> {
        let told = match (self.config.settings().time, self.network.frequencies) {
            (LucidrainsTime::Fourier { .. }, Some(at)) => {
                fourier_rows(time, &self.weights[at].to_vec1()?)
            }
            (LucidrainsTime::Sinusoidal { width, theta }, _) => sinusoids(time, width, theta),
            // The architecture has frequencies where the settings have them.
            (LucidrainsTime::Fourier { .. }, None) => Vec::new(),
        };
        let width = told.len() / time.len().max(1);
        let told = Tensor::from_vec(told, (time.len(), width), device)?;
        let [first, second] = self.network.time_mlp;
        let hidden = ddpm_kernels::gelu(&self.weights.linear(&told, first)?)?;
        self.weights.linear(&hidden, second)
    }

    fn resample(&self, x: &Tensor, level: &Level) -> Result<Tensor> {
        match level.resample {
            Resample::Pixels(conv) => {
                self.weights
                    .conv(&pixels_as_channels(x, 2)?, conv, ONE_BY_ONE)
            }
            Resample::Strided(conv) => self.weights.conv(x, conv, Conv2d::new(2, Padding::same(1))),
            Resample::Nearest(conv) => {
                let doubled = ddpm_kernels::upsample_nearest_2x(x)?;
                self.weights.conv(&doubled, conv, THREE_BY_THREE)
            }
            Resample::Same(conv) => self.weights.conv(x, conv, THREE_BY_THREE),
        }
    }

    fn resnet(&self, x: &Tensor, block: &Resnet, time: &Tensor) -> Result<Tensor> {
        let scale_shift = self.weights.linear(&ddpm_kernels::silu(time)?, block.mlp)?;
        let [(conv1, norm1), (conv2, norm2)] = &block.halves;
        let h = self.weights.conv(x, *conv1, THREE_BY_THREE)?;
        let h = self.block_norm(&h, norm1, Some(&scale_shift))?;
        let h = self.weights.conv(&h, *conv2, THREE_BY_THREE)?;
        let h = self.block_norm(&h, norm2, None)?;
        let x = match block.shortcut {
            None => x.clone(),
            Some(conv) => self.weights.conv(x, conv, ONE_BY_ONE)?,
        };
        Ok(ddpm_kernels::add(&h, &x)?)
    }

    /// Normalises, then h (1 + scale) + shift where the time has them, `[B, 2 C]`, then SiLU.
    fn block_norm(&self, x: &Tensor, norm: &Norm, scale_shift: Option<&Tensor>) -> Result<Tensor> {
        let channels = x.dim(1)?;
        // gain n (1 + scale) + bias (1 + scale) + shift: an affine map of each image's own.
        let gain = self.weights[norm.gain].flatten_all()?;
        let bias = norm.bias.map_or_else(
            || gain.zeros_like(),
            |bias| self.weights[bias].flatten_all(),
        )?;
        let (gain, bias) = match scale_shift {
            None => (gain, bias),
            Some(scale_shift) => {
                let factor = (scale_shift.narrow(D::Minus1, 0, channels)? + 1.0)?;
                let shift = scale_shift.narrow(D::Minus1, channels, channels)?;
                let bias = factor.broadcast_mul(&bias)?.add(&shift)?;
                (factor.broadcast_mul(&gain)?, bias)
            }
        };
        if let Some(groups) = self.config.settings().resnet_block_groups {
            let silu = Activation::Silu;
            return Ok(ddpm_kernels::group_norm(
                x, groups, &gain, &bias, EPS, silu,
            )?);
        }
        let shape = ((), channels, 1, 1);
        let h = rms(x)?.broadcast_mul(&gain.reshape(shape)?)?;
        Ok(ddpm_kernels::silu(
            &h.broadcast_add(&bias.reshape(shape)?)?,
        )?)
    }

    /// The normalisation before attention, and after linear attention.
    fn pixel_norm(&self, x: &Tensor, norm: &Norm) -> Result<Tensor> {
        let normal = match self.config.settings().attn_norm {
            AttentionNorm::Rms => rms(x)?,
            AttentionNorm::Layer | AttentionNorm::LayerBias => {
                let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
                let variance = centred.sqr()?.mean_keepdim(1)?;
                centred.broadcast_div(&(variance + EPS)?.sqrt()?)?
            }
        };
        let scaled = normal.broadcast_mul(&self.weights[norm.gain])?;
        match norm.bias {
            None => Ok(scaled),
            Some(bias) => Ok(scaled.broadcast_add(&self.weights[bias])?),
        }
    }

    /// x plus attention over it.
    fn attention(&self, x: &Tensor, attention: &Attention) -> Result<Tensor> {
        let (batch, _, height, width) = x.dims4()?;
        let normal = self.pixel_norm(x, &attention.norm)?;
        let qkv = ddpm_kernels::conv2d(&normal, &self.weights[attention.qkv], None, ONE_BY_ONE)?;
        let qkv = qkv.reshape((batch, 3, attention.heads, (), height * width))?;
        let kind = |at| qkv.narrow(1, at, 1)?.squeeze(1); // [B, heads, d, N]
        let qkv = [kind(0)?, kind(1)?, kind(2)?];
        let memory = attention.memory.map(|at| &self.weights[at]);
        let mixed = match attention.linear {
            Some(_) => self.mixed_linearly(qkv, memory)?,
            None => self.mixed_by_softmax(qkv, memory)?,
        };
        let mixed = mixed.reshape((batch, (), height, width))?;
        let mut out = self.weights.conv(&mixed, attention.out, ONE_BY_ONE)?;
        if let Some(norm) = &attention.linear {
            out = self.pixel_norm(&out, norm)?;
        }
        Ok(ddpm_kernels::add(&out, x)?)
    }

    /// Linear attention: (softmax over pixels of k) vᵀ once for all queries, each a softmax over its channels.
    ///
    /// # Shapes
    /// q, k, v `[B, heads, d, N]`, memory `[2, heads, d, M]` -> `[B, heads, d, N]`
    fn mixed_linearly(&self, [q, k, v]: [Tensor; 3], memory: Option<&Tensor>) -> Result<Tensor> {
        let (batch, _, size, pixels) = q.dims4()?;
        let v = match self.config.settings().linear_attn_mean {
            true => (v / pixels as f64)?,
            false => v,
        };
        let [k, v] = with_memory([k, v], memory, batch, 3)?;
        let q = (softmax(&q, 2)? / (size as f64).sqrt())?;
        let context = softmax(&k, 3)?.matmul(&v.transpose(2, 3)?.contiguous()?)?; // [B, heads, d, d]
        Ok(context.transpose(2, 3)?.contiguous()?.matmul(&q)?)
    }

    /// Softmax attention.
    ///
    /// # Shapes
    /// q, k, v `[B, heads, d, N]`, memory `[2, heads, M, d]` -> `[B, heads, d, N]`
    fn mixed_by_softmax(&self, qkv: [Tensor; 3], memory: Option<&Tensor>) -> Result<Tensor> {
        let (batch, _, size, _) = qkv[0].dims4()?;
        let [mut q, mut k, v] = qkv;
        let mut scale = 1.0 / (size as f64).sqrt();
        if let Some(cosine) = self.config.settings().attn_cosine_scale {
            (q, k) = (of_norm_1(&q, 3)?, of_norm_1(&k, 3)?);
            scale = cosine;
        }
        let rows = |x: Tensor| x.transpose(2, 3)?.contiguous(); // [B, heads, N, d]
        let [k, v] = with_memory([rows(k)?, rows(v)?], memory, batch, 2)?;
        let mixed = ddpm_kernels::attention(&rows(q)?, &k, &v, scale)?;
        Ok(mixed.transpose(2, 3)?.contiguous()?)
    }

    fn check_input(&self, x_t: &Tensor, time: &[f64]) -> Result<()> {
        let (height, width) = size_of_input(x_t, time, self.config.settings().channels)?;
        self.config.check_image(height, width)
    }
}

impl Architecture {
    fn resnets(&self) -> impl Iterator<Item = &Resnet> {
        let levels = self.downs.iter().chain(&self.ups);
        let ends = [&self.mid.0, &self.mid.2, &self.final_res_block];
        levels.flat_map(|level| &level.blocks).chain(ends)
    }
}

const ONE_BY_ONE: Conv2d = Conv2d::new(1, Padding::ZERO);
const THREE_BY_THREE: Conv2d = Conv2d::new(1, Padding::same(1));
/// Added to variances in f32.
const EPS: f64 = 1e-5;
/// The least norm that is divided by.
const LEAST_NORM: f64 = 1e-12;

/// Divided by the norm along an axis, as PyTorch's `normalize`.
fn of_norm_1(x: &Tensor, axis: usize) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(axis)?.sqrt()?;
    Ok(x.broadcast_div(&norm.maximum(LEAST_NORM)?)?)
}

/// Each pixel's channels to root mean square 1 (Zhang and Sennrich 2019, arXiv:1910.07467).
fn rms(x: &Tensor) -> Result<Tensor> {
    Ok((of_norm_1(x, 1)? * (x.dim(1)? as f64).sqrt())?)
}

fn softmax(x: &Tensor, axis: usize) -> Result<Tensor> {
    let exponentials = x.broadcast_sub(&x.max_keepdim(axis)?)?.exp()?;
    Ok(exponentials.broadcast_div(&exponentials.sum_keepdim(axis)?)?)
}

/// Keys and values behind learned ones, which come first along the axis of the pixels.
fn with_memory(
    [k, v]: [Tensor; 2],
    memory: Option<&Tensor>,
    batch: usize,
    axis: usize,
) -> Result<[Tensor; 2]> {
    let Some(memory) = memory else {
        return Ok([k, v]);
    };
    let joined = |kind: usize, own: Tensor| {
        let (heads, rows, columns) = memory.get(kind)?.dims3()?;
        let learned = memory.get(kind)?.unsqueeze(0)?;
        let learned = learned.broadcast_as((batch, heads, rows, columns))?;
        Tensor::cat(&[learned, own], axis)?.contiguous()
    };
    Ok([joined(0, k)?, joined(1, v)?])
}

/// Kernels `[O, I, h, w]` of mean 0 and variance 1, each output's for itself.
fn standardised(weight: &Tensor, how: WeightStandardization) -> Result<Tensor> {
    let rows = weight.flatten_from(1)?;
    let centred = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let variance = centred.sqr()?.mean_keepdim(1)?;
    let variance = match how {
        WeightStandardization::Plus => (variance + EPS)?,
        WeightStandardization::Clamp => variance.maximum(EPS)?,
    };
    let rows = centred.broadcast_div(&variance.sqrt()?)?;
    Ok(rows.reshape(weight.shape())?)
}

/// Sines, then cosines, a row a time, rounded to f32 where PyTorch rounds them.
fn sinusoids(time: &[f64], width: usize, theta: f64) -> Vec<f32> {
    let half = width / 2;
    let step = -(theta.ln() / (half - 1) as f64) as f32;
    let frequency = |i: usize| f64::from(i as f32 * step).exp() as f32;
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let row = |&t: &f64| {
        let angles = frequencies.iter().map(move |f| f64::from(t as f32 * f));
        let sines = angles.clone().map(f64::sin);
        sines.chain(angles.map(f64::cos)).map(|x| x as f32)
    };
    time.iter().flat_map(row).collect()
}

/// t, then the sines and cosines of 2π w t, a row a time.
fn fourier_rows(time: &[f64], frequencies: &[f32]) -> Vec<f32> {
    let row = |&t: &f64| {
        let t = t as f32;
        let angles = frequencies.iter().map(move |w| {
            let angle = t * w * 2.0 * std::f32::consts::PI;
            f64::from(angle)
        });
        let sines = angles.clone().map(f64::sin);
        let both = sines.chain(angles.map(f64::cos)).map(|x| x as f32);
        std::iter::once(t).chain(both)
    };
    time.iter().flat_map(row).collect()
}
