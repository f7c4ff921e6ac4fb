//! What networks that are none of diffusers' share: parameters named and numbered as their layers are made, weights that layers
//! point into, and pixels that become channels.

use std::ops::{Index, IndexMut};

use candle_core::Tensor;
use ddpm_kernels::Conv2d;

use crate::unet::matched;
use crate::{NamedTensors, Result};

/// The parameters of a network, in order: name and shape.
#[derive(Default)]
pub(crate) struct Layers {
    pub(crate) parameters: Vec<(String, Vec<usize>)>,
}

/// The numbers of a layer's weight and bias among the parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    pub(crate) weight: usize,
    pub(crate) bias: usize,
}

impl Layers {
    /// One more parameter, and its number.
    pub(crate) fn parameter(&mut self, name: impl Into<String>, shape: Vec<usize>) -> usize {
        self.parameters.push((name.into(), shape));
        self.parameters.len() - 1
    }

    /// A weight of this shape, and a bias of its first side.
    pub(crate) fn affine(&mut self, name: &str, shape: Vec<usize>) -> Affine {
        let outputs = vec![shape[0]];
        Affine {
            weight: self.parameter(format!("{name}.weight"), shape),
            bias: self.parameter(format!("{name}.bias"), outputs),
        }
    }

    pub(crate) fn linear(&mut self, name: &str, from: usize, to: usize) -> Affine {
        self.affine(name, vec![to, from])
    }

    /// A convolution with a square kernel.
    pub(crate) fn conv(&mut self, name: &str, from: usize, to: usize, kernel: usize) -> Affine {
        self.affine(name, vec![to, from, kernel, kernel])
    }
}

/// The weights of a network, outside of candle's graph, in the order of its parameters.
#[derive(Clone)]
pub(crate) struct LayerWeights(Vec<Tensor>);

impl LayerWeights {
    /// Those of the parameters' names and shapes.
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights), which names every tensor that is missing, extra, of the wrong shape or not f32.
    pub(crate) fn matched(
        parameters: &[(String, Vec<usize>)],
        weights: &(impl NamedTensors + ?Sized),
    ) -> Result<Self> {
        let named = parameters.iter();
        let named = named.map(|(name, shape)| (name.as_str(), shape.as_slice()));
        let weights = matched(named, weights)?;
        Ok(Self(weights.iter().map(Tensor::detach).collect()))
    }

    pub(crate) fn linear(&self, x: &Tensor, layer: Affine) -> Result<Tensor> {
        Ok(ddpm_kernels::linear(
            x,
            &self[layer.weight],
            Some(&self[layer.bias]),
        )?)
    }

    pub(crate) fn conv(&self, x: &Tensor, layer: Affine, how: Conv2d) -> Result<Tensor> {
        Ok(ddpm_kernels::conv2d(
            x,
            &self[layer.weight],
            Some(&self[layer.bias]),
            how,
        )?)
    }
}

impl Index<usize> for LayerWeights {
    type Output = Tensor;

    fn index(&self, number: usize) -> &Tensor {
        &self.0[number]
    }
}

impl IndexMut<usize> for LayerWeights {
    fn index_mut(&mut self, number: usize) -> &mut Tensor {
        &mut self.0[number]
    }
}

/// `[B, C, H, W]` -> `[B, p p C, H/p, W/p]`: the pixels of a channel's patch follow one another, row by row.
pub(crate) fn pixels_as_channels(x: &Tensor, p: usize) -> Result<Tensor> {
    if p == 1 {
        return Ok(x.clone());
    }
    let (batch, channels, height, width) = x.dims4()?;
    let (height, width) = (height / p, width / p);
    let apart = x.reshape(vec![batch, channels, height, p, width, p])?;
    let apart = apart.permute(vec![0, 1, 3, 5, 2, 4])?.contiguous()?;
    Ok(apart.reshape((batch, p * p * channels, height, width))?)
}
