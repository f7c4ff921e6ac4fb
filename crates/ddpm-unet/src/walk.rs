//! What the network computes, described once in terms of a few operations that somebody else carries out.

use ddpm_kernels::Activation;

use crate::Result;
use crate::architecture::{Architecture, Attention, Conv, Level, Linear, Norm, Resnet};

/// The operations a U-Net is made of. One implementation computes, another only measures.
pub(crate) trait Operations {
    /// What flows between operations: tensors, or their shapes.
    type Value: Clone;

    /// `[B, I, H, W]` -> `[B, O, H', W']`
    fn conv2d(&mut self, x: &Self::Value, conv: &Conv) -> Result<Self::Value>;
    /// The same, plus a number for each channel of each image: `[B, O]`.
    fn conv2d_plus(
        &mut self,
        x: &Self::Value,
        conv: &Conv,
        plus: &Self::Value,
    ) -> Result<Self::Value>;
    /// `[..., I]` -> `[..., O]`
    fn linear(&mut self, x: &Self::Value, linear: &Linear) -> Result<Self::Value>;
    /// `[B, C, ...]` -> the same
    fn group_norm(
        &mut self,
        x: &Self::Value,
        norm: &Norm,
        activation: Activation,
    ) -> Result<Self::Value>;
    /// Normalises, then h (1 + scale) + shift, then the activation; `scale_shift` is `[B, 2 C]`, scales first.
    fn group_norm_scale_shift(
        &mut self,
        x: &Self::Value,
        norm: &Norm,
        scale_shift: &Self::Value,
        activation: Activation,
    ) -> Result<Self::Value>;
    /// x / (1 + e^-x)
    fn silu(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Two values of one shape.
    fn add(&mut self, x: &Self::Value, y: &Self::Value) -> Result<Self::Value>;
    /// x / divisor
    fn divide(&mut self, x: &Self::Value, divisor: f64) -> Result<Self::Value>;
    /// `[B, C, H, W]` -> `[B, H W, C]`
    fn pixels_as_rows(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// `[B, H W, C]` -> `[B, C, H, W]`, the shape of `like`
    fn rows_as_pixels(&mut self, x: &Self::Value, like: &Self::Value) -> Result<Self::Value>;
    /// Softmax attention of each head over `[B, N, heads d]`, scaled by 1/sqrt(d) -> the same shape.
    fn attention(
        &mut self,
        query: &Self::Value,
        key: &Self::Value,
        value: &Self::Value,
        heads: usize,
    ) -> Result<Self::Value>;
    /// `[B, C, H, W]` and `[B, D, H, W]` -> `[B, C + D, H, W]`
    fn concat_channels(&mut self, a: &Self::Value, b: &Self::Value) -> Result<Self::Value>;
    /// `[B, C, H, W]` -> `[B, C, 2 H, 2 W]`
    fn upsample_nearest_2x(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Dropout at the network's `place`-th residual block; the identity outside of training.
    fn dropout(&mut self, x: &Self::Value, place: usize) -> Result<Self::Value>;
}

/// The network: x `[B, in, H, W]` and the sinusoids of its times `[B, C_0]` -> `[B, out, H, W]`.
pub(crate) fn unet<O: Operations>(
    network: &Architecture,
    ops: &mut O,
    x: O::Value,
    sinusoids: O::Value,
) -> Result<O::Value> {
    let time = time_embedding(network, ops, sinusoids)?;
    let mut h = ops.conv2d(&x, &network.conv_in)?;
    drop(x);

    let mut skips = vec![h.clone()];
    for level in &network.down {
        h = down(level, ops, h, &time, &mut skips)?;
    }
    if let Some(mid) = &network.mid {
        h = resnet(&mid.first, ops, h, &time)?;
        h = attend(mid.attention.as_ref(), ops, h)?;
        h = resnet(&mid.second, ops, h, &time)?;
    }
    for level in &network.up {
        h = up(level, ops, h, &time, &mut skips)?;
    }
    h = ops.group_norm(&h, &network.norm_out, Activation::Silu)?;
    ops.conv2d(&h, &network.conv_out)
}

/// Two linear maps with SiLU between; the SiLU at the end is what every residual block would begin with.
fn time_embedding<O: Operations>(
    network: &Architecture,
    ops: &mut O,
    sinusoids: O::Value,
) -> Result<O::Value> {
    let hidden = ops.linear(&sinusoids, &network.time_1)?;
    let hidden = ops.silu(&hidden)?;
    let embedding = ops.linear(&hidden, &network.time_2)?;
    ops.silu(&embedding)
}

/// The way down remembers every state it passes.
fn down<O: Operations>(
    level: &Level,
    ops: &mut O,
    mut h: O::Value,
    time: &O::Value,
    skips: &mut Vec<O::Value>,
) -> Result<O::Value> {
    for (block, attention) in &level.layers {
        h = resnet(block, ops, h, time)?;
        h = attend(attention.as_ref(), ops, h)?;
        skips.push(h.clone());
    }
    if let Some(conv) = &level.resample {
        h = ops.conv2d(&h, conv)?;
        skips.push(h.clone());
    }
    Ok(h)
}

/// The way up takes the remembered states back, last first.
fn up<O: Operations>(
    level: &Level,
    ops: &mut O,
    mut h: O::Value,
    time: &O::Value,
    skips: &mut Vec<O::Value>,
) -> Result<O::Value> {
    for (block, attention) in &level.layers {
        // There are exactly as many skips as blocks on the way up: 1 + levels (layers + 1) - 1.
        if let Some(skip) = skips.pop() {
            h = ops.concat_channels(&h, &skip)?;
        }
        h = resnet(block, ops, h, time)?;
        h = attend(attention.as_ref(), ops, h)?;
    }
    if let Some(conv) = &level.resample {
        h = ops.upsample_nearest_2x(&h)?;
        h = ops.conv2d(&h, conv)?;
    }
    Ok(h)
}

/// norm, SiLU, convolution; the time; norm, SiLU, dropout, convolution; plus the input, made as wide as the output.
fn resnet<O: Operations>(
    block: &Resnet,
    ops: &mut O,
    x: O::Value,
    time: &O::Value,
) -> Result<O::Value> {
    let mut h = ops.group_norm(&x, &block.norm1, Activation::Silu)?;
    let time = ops.linear(time, &block.time)?; // [B, C], or [B, 2 C] with scale_shift
    if block.scale_shift {
        h = ops.conv2d(&h, &block.conv1)?;
        h = ops.group_norm_scale_shift(&h, &block.norm2, &time, Activation::Silu)?;
    } else {
        h = ops.conv2d_plus(&h, &block.conv1, &time)?;
        h = ops.group_norm(&h, &block.norm2, Activation::Silu)?;
    }
    h = ops.dropout(&h, block.dropout)?;
    h = ops.conv2d(&h, &block.conv2)?;
    h = match &block.shortcut {
        Some(conv) => {
            let x = ops.conv2d(&x, conv)?;
            ops.add(&x, &h)?
        }
        None => ops.add(&x, &h)?,
    };
    divided(ops, h, block.divisor)
}

/// norm, every pixel looks at every pixel, plus the input; without attention the input itself.
fn attend<O: Operations>(
    attention: Option<&Attention>,
    ops: &mut O,
    x: O::Value,
) -> Result<O::Value> {
    let Some(attention) = attention else {
        return Ok(x);
    };
    let mut h = match &attention.norm {
        Some(norm) => ops.group_norm(&x, norm, Activation::None)?,
        None => x.clone(),
    };
    h = ops.pixels_as_rows(&h)?; // [B, H W, C]
    let query = ops.linear(&h, &attention.query)?;
    let key = ops.linear(&h, &attention.key)?;
    let value = ops.linear(&h, &attention.value)?;
    h = ops.attention(&query, &key, &value, attention.heads)?;
    h = ops.linear(&h, &attention.out)?;
    h = ops.rows_as_pixels(&h, &x)?; // [B, C, H, W]
    h = ops.add(&x, &h)?;
    divided(ops, h, attention.divisor)
}

fn divided<O: Operations>(ops: &mut O, x: O::Value, divisor: f64) -> Result<O::Value> {
    if divisor == 1.0 {
        Ok(x)
    } else {
        ops.divide(&x, divisor)
    }
}
