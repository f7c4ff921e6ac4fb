//! What an `image_v1` network computes, by the operations of ddpm-kernels and candle's, in f32.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use ddpm_kernels::{Activation, Conv2d, Padding};

use super::architecture::{Architecture, Attention, Resnet};
use super::config::{KDiffusionConfig, groups};
use crate::layers::{Affine, LayerWeights, pixels_as_channels};
use crate::unet::size_of_input;
use crate::{NamedTensors, Result};

/// An `image_v1` network of k-diffusion's with its weights, for sampling.
#[derive(Clone)]
pub struct KDiffusionUNet {
    config: KDiffusionConfig,
    network: Arc<Architecture>,
    weights: LayerWeights,
}

impl KDiffusionUNet {
    /// Builds the network from tensors by the names of [`KDiffusionConfig::parameters`].
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights), which names every tensor that is missing, extra, of the wrong shape or not f32.
    pub fn new(config: &KDiffusionConfig, weights: &(impl NamedTensors + ?Sized)) -> Result<Self> {
        let network = Architecture::new(config.settings());
        let weights = LayerWeights::matched(&network.parameters, weights)?;
        Ok(Self {
            config: config.clone(),
            network: Arc::new(network),
            weights,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &KDiffusionConfig {
        &self.config
    }

    /// Evaluates the network.
    ///
    /// # Shapes
    /// x `[B, input_channels, H, W]` f32, the noisy image divided by its root mean square; `noise`: ln(sigma) / 4, one an
    /// image -> `[B, input_channels, H, W]`
    ///
    /// # Errors
    /// An input of another shape or type; a size that the patches and the network's depth do not suit.
    pub fn forward(&self, x: &Tensor, noise: &[f64]) -> Result<Tensor> {
        self.check_input(x, noise)?;
        let (network, patch) = (&self.network, self.config.settings().patch_size);
        let told = self.mapping(noise, x.device())?;
        let mut h =
            self.weights
                .conv(&pixels_as_channels(x, patch)?, network.proj_in, ONE_BY_ONE)?;
        let mut skips = Vec::new();
        for (number, level) in network.down.iter().enumerate() {
            if number > 0 {
                h = halved(&h)?;
            }
            for (block, attention) in level {
                h = self.resnet(&h, block, &told)?;
                h = self.attend(&h, attention.as_ref(), &told)?;
            }
            skips.push(h.clone());
        }
        // The smallest level goes on with its own state.
        skips.pop();
        for (step, level) in network.up.iter().enumerate() {
            if step > 0
                && let Some(skip) = skips.pop()
            {
                h = ddpm_kernels::concat_channels(&doubled(&h)?, &skip)?;
            }
            for (block, attention) in level {
                h = self.resnet(&h, block, &told)?;
                h = self.attend(&h, attention.as_ref(), &told)?;
            }
        }
        h = self.weights.conv(&h, network.proj_out, ONE_BY_ONE)?;
        if self.config.settings().has_variance {
            h = h.narrow(1, 0, h.dim(1)? - 1)?.contiguous()?;
        }
        channels_as_pixels(&h, patch)
    }

    /// What the noise level becomes, `[B, mapping_out]`: cosines and sines, then twice a linear map and GELU.
    fn mapping(&self, noise: &[f64], device: &Device) -> Result<Tensor> {
        let frequencies = self.weights[self.network.frequencies].flatten_all()?;
        let rows = fourier_rows(noise, &frequencies.to_vec1()?);
        let width = self.config.settings().mapping_out;
        let mut told = Tensor::from_vec(rows, (noise.len(), width), device)?;
        for layer in self.network.mapping {
            told = ddpm_kernels::gelu(&self.weights.linear(&told, layer)?)?;
        }
        Ok(told)
    }

    /// Normalises in groups, then h (1 + scale) + shift, both of what the noise level became.
    fn norm(&self, x: &Tensor, mapper: Affine, told: &Tensor) -> Result<Tensor> {
        let channels = x.dim(1)?;
        let both = self.weights.linear(told, mapper)?; // [B, 2 C]
        let scale = (both.narrow(D::Minus1, 0, channels)? + 1.0)?;
        let shift = both.narrow(D::Minus1, channels, channels)?;
        let (groups, none) = (groups(channels), Activation::None);
        Ok(ddpm_kernels::group_norm(
            x, groups, &scale, &shift, EPS, none,
        )?)
    }

    fn resnet(&self, x: &Tensor, block: &Resnet, told: &Tensor) -> Result<Tensor> {
        let mut h = x.clone();
        for (mapper, conv) in block.halves {
            h = ddpm_kernels::gelu(&self.norm(&h, mapper, told)?)?;
            h = self.weights.conv(&h, conv, THREE_BY_THREE)?;
        }
        let x = match block.skip {
            None => x.clone(),
            Some(at) => ddpm_kernels::conv2d(x, &self.weights[at], None, ONE_BY_ONE)?,
        };
        Ok(ddpm_kernels::add(&h, &x)?)
    }

    /// x plus attention over it; without attention x itself.
    fn attend(&self, x: &Tensor, attention: Option<&Attention>, told: &Tensor) -> Result<Tensor> {
        let Some(attention) = attention else {
            return Ok(x.clone());
        };
        let (batch, channels, height, width) = x.dims4()?;
        let (heads, pixels) = (attention.heads, height * width);
        let qkv = self.norm(x, attention.norm, told)?;
        let qkv = self.weights.conv(&qkv, attention.qkv, ONE_BY_ONE)?;
        let qkv = qkv.reshape((batch, 3, heads, channels / heads, pixels))?;
        let rows = |kind| {
            let kind = qkv.narrow(1, kind, 1)?.squeeze(1)?;
            kind.transpose(2, 3)?.contiguous() // [B, heads, N, d]
        };
        let scale = 1.0 / ((channels / heads) as f64).sqrt();
        let mixed = ddpm_kernels::attention(&rows(0)?, &rows(1)?, &rows(2)?, scale)?;
        let mixed = mixed.transpose(2, 3)?.contiguous()?.reshape(x.shape())?;
        let out = self.weights.conv(&mixed, attention.out, ONE_BY_ONE)?;
        Ok(ddpm_kernels::add(x, &out)?)
    }

    fn check_input(&self, x: &Tensor, noise: &[f64]) -> Result<()> {
        let (height, width) = size_of_input(x, noise, self.config.settings().input_channels)?;
        self.config.check_image(height, width)
    }
}

const ONE_BY_ONE: Conv2d = Conv2d::new(1, Padding::ZERO);
const THREE_BY_THREE: Conv2d = Conv2d::new(1, Padding::same(1));
/// Added to variances.
const EPS: f64 = 1e-5;

/// Half the size through the filter (1, 3, 3, 1) / 8 along each axis; past the edges the image is mirrored.
///
/// `[B, C, H, W]`, H and W even -> `[B, C, H/2, W/2]`
fn halved(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    // A pixel more on each side keeps the sides even, and no number that stays sees it.
    let wide = mirrored(x)?;
    let wide = wide.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    let half = ddpm_kernels::fir_downsample_2x(&wide)?;
    let inner = half.narrow(2, 1, height / 2)?.narrow(3, 1, width / 2)?;
    Ok(inner.contiguous()?)
}

/// Twice the size through the filter (1, 3, 3, 1) / 4; past the edges the image is mirrored.
///
/// `[B, C, H, W]` -> `[B, C, 2 H, 2 W]`
fn doubled(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let double = ddpm_kernels::fir_upsample_2x(&mirrored(x)?)?;
    let inner = double.narrow(2, 2, 2 * height)?.narrow(3, 2, 2 * width)?;
    Ok(inner.contiguous()?)
}

/// A pixel more on each side, that next to the edge: `[B, C, H, W]`, both at least 2 -> `[B, C, H + 2, W + 2]`.
fn mirrored(x: &Tensor) -> Result<Tensor> {
    let along = |x: &Tensor, axis: usize| -> Result<Tensor> {
        let last = x.dim(axis)? - 2;
        let (before, after) = (x.narrow(axis, 1, 1)?, x.narrow(axis, last, 1)?);
        Ok(Tensor::cat(&[&before, x, &after], axis)?)
    };
    Ok(along(&along(x, 2)?, 3)?.contiguous()?)
}

/// What [`pixels_as_channels`] did, undone.
fn channels_as_pixels(x: &Tensor, p: usize) -> Result<Tensor> {
    if p == 1 {
        return Ok(x.clone());
    }
    let (batch, channels, height, width) = x.dims4()?;
    let channels = channels / (p * p);
    let apart = x.reshape(vec![batch, channels, p, p, height, width])?;
    let apart = apart.permute(vec![0, 1, 4, 2, 5, 3])?.contiguous()?;
    Ok(apart.reshape((batch, channels, p * height, p * width))?)
}

/// The cosines, then the sines of 2π c w, a row for each c, rounded to f32 where PyTorch rounds them.
fn fourier_rows(noise: &[f64], frequencies: &[f32]) -> Vec<f32> {
    let row = |&c: &f64| {
        let turns = (std::f64::consts::TAU * f64::from(c as f32)) as f32;
        let angles = frequencies.iter().map(move |w| f64::from(turns * w));
        let cosines = angles.clone().map(f64::cos);
        cosines.chain(angles.map(f64::sin)).map(|x| x as f32)
    };
    noise.iter().flat_map(row).collect()
}
