//! What the network computes, described once in terms of a few operations that somebody else carries out.

use ddpm_kernels::Activation;

use crate::architecture::{
    Architecture, Attention, Change, ClassInput, Conv, Level, Linear, Mid, Norm, Resample, Resnet,
};
use crate::{Nonlinearity, Result};

/// The operations a U-Net is made of. One implementation computes, one records a plan, one only measures.
pub(crate) trait Operations {
    /// What flows between operations: tensors, or their shapes.
    type Value: Clone;

    /// A block begins. What is inside of it may be forgotten, and computed again where its gradients need it.
    fn begin_block(&mut self) {}
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
    /// An activation, element by element.
    fn activate(&mut self, x: &Self::Value, function: Nonlinearity) -> Result<Self::Value>;
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
    /// Another way to change the size, half or twice.
    fn change(&mut self, x: &Self::Value, change: Change) -> Result<Self::Value>;
    /// Dropout at the network's `place`-th residual block; the identity outside of training.
    fn dropout(&mut self, x: &Self::Value, place: usize) -> Result<Self::Value>;
}

/// What a network is told besides the image, for each of the batch.
pub(crate) struct Told<V> {
    /// `[B, W]`: sines and cosines of the time, or its learned vectors.
    pub(crate) time: V,
    /// The same of the class, or what is added to the time embedding, `[B, D]`; none without classes.
    pub(crate) class: Option<V>,
}

/// The network: x `[B, in, H, W]` and what it is told -> `[B, out, H, W]`, for Fourier's time embedding times the time.
pub(crate) fn unet<O: Operations>(
    network: &Architecture,
    ops: &mut O,
    x: O::Value,
    told: &Told<O::Value>,
) -> Result<O::Value> {
    let time = time_embedding(network, ops, told)?;
    unet_with(network, ops, x, &time)
}

/// The network after its time embedding `[B, D]`.
pub(crate) fn unet_with<O: Operations>(
    network: &Architecture,
    ops: &mut O,
    x: O::Value,
    time: &O::Value,
) -> Result<O::Value> {
    let act = network.act_fn;
    let mut h = ops.conv2d(&x, &network.conv_in)?;
    // The image beside the states: given on the way down, put together on the way up.
    let mut image = network.down[0].image.then_some(x);

    let mut skips = vec![h.clone()];
    for level in &network.down {
        h = down(level, ops, h, (time, act), &mut skips, &mut image)?;
    }
    if let Some(block) = &network.mid {
        h = mid(block, ops, h, (time, act))?;
    }
    image = None;
    for level in &network.up {
        h = up(level, ops, h, (time, act), &mut skips, &mut image)?;
    }
    ops.begin_block();
    h = ops.group_norm(&h, &network.norm_out, Activation::Silu)?;
    h = ops.conv2d(&h, &network.conv_out)?;
    match image {
        Some(image) => ops.add(&h, &image),
        None => Ok(h),
    }
}

/// Two linear maps with SiLU between, plus the class; the activation at the end is what every residual block would
/// begin with.
pub(crate) fn time_embedding<O: Operations>(
    network: &Architecture,
    ops: &mut O,
    told: &Told<O::Value>,
) -> Result<O::Value> {
    let mut embedding = mlp(ops, &network.time_mlp, &told.time)?;
    if let (Some(input), Some(class)) = (&network.class, &told.class) {
        embedding = match input {
            ClassInput::Timestep(maps) => {
                let class = mlp(ops, maps, class)?;
                ops.add(&embedding, &class)?
            }
            ClassInput::Table(_) | ClassInput::Identity => ops.add(&embedding, class)?,
        };
    }
    ops.activate(&embedding, network.act_fn)
}

fn mlp<O: Operations>(ops: &mut O, maps: &[Linear; 2], x: &O::Value) -> Result<O::Value> {
    let hidden = ops.linear(x, &maps[0])?;
    let hidden = ops.activate(&hidden, Nonlinearity::Silu)?;
    ops.linear(&hidden, &maps[1])
}

/// The way down remembers every state it passes.
pub(crate) fn down<O: Operations>(
    level: &Level,
    ops: &mut O,
    mut h: O::Value,
    (time, act): (&O::Value, Nonlinearity),
    skips: &mut Vec<O::Value>,
    image: &mut Option<O::Value>,
) -> Result<O::Value> {
    for (block, attention) in &level.layers {
        h = resnet(block, ops, h, (time, act))?;
        h = attend(attention.as_ref(), ops, h)?;
        skips.push(h.clone());
    }
    match &level.resample {
        None => return Ok(h),
        Some(Resample::Conv(conv)) => h = ops.conv2d(&h, conv)?,
        Some(Resample::Plain(change)) => h = changed(ops, &h, *change)?,
        Some(Resample::Resnet(block) | Resample::SkipUp { resnet: block, .. }) => {
            h = resnet(block, ops, h, (time, act))?;
        }
        Some(Resample::SkipDown {
            resnet: block,
            conv,
        }) => {
            h = resnet(block, ops, h, (time, act))?;
            if let Some(full) = image.take() {
                let half = ops.change(&full, Change::FirDown)?;
                let seen = ops.conv2d(&half, conv)?;
                h = ops.add(&seen, &h)?;
                *image = Some(half);
            }
        }
    }
    skips.push(h.clone());
    Ok(h)
}

/// The middle: a residual block, attention or none, a residual block.
pub(crate) fn mid<O: Operations>(
    mid: &Mid,
    ops: &mut O,
    h: O::Value,
    (time, act): (&O::Value, Nonlinearity),
) -> Result<O::Value> {
    let h = resnet(&mid.first, ops, h, (time, act))?;
    let h = attend(mid.attention.as_ref(), ops, h)?;
    resnet(&mid.second, ops, h, (time, act))
}

/// The way up takes the remembered states back, last first.
pub(crate) fn up<O: Operations>(
    level: &Level,
    ops: &mut O,
    mut h: O::Value,
    (time, act): (&O::Value, Nonlinearity),
    skips: &mut Vec<O::Value>,
    image: &mut Option<O::Value>,
) -> Result<O::Value> {
    for (block, attention) in &level.layers {
        // There are exactly as many skips as blocks on the way up: 1 + levels (layers + 1) - 1.
        if let Some(skip) = skips.pop() {
            h = ops.concat_channels(&h, &skip)?;
        }
        h = resnet(block, ops, h, (time, act))?;
        h = attend(attention.as_ref(), ops, h)?;
    }
    if let (true, Some(half)) = (level.image, image.take()) {
        *image = Some(ops.change(&half, Change::FirUp)?);
    }
    match &level.resample {
        None => Ok(h),
        Some(Resample::Plain(change)) => changed(ops, &h, *change),
        Some(Resample::Conv(conv)) => {
            h = ops.upsample_nearest_2x(&h)?;
            ops.conv2d(&h, conv)
        }
        Some(Resample::Resnet(block) | Resample::SkipDown { resnet: block, .. }) => {
            resnet(block, ops, h, (time, act))
        }
        Some(Resample::SkipUp {
            resnet: block,
            norm,
            conv,
        }) => {
            let part = ops.group_norm(&h, norm, Activation::Silu)?;
            let part = ops.conv2d(&part, conv)?;
            *image = Some(match image.take() {
                Some(image) => ops.add(&image, &part)?,
                None => part,
            });
            resnet(block, ops, h, (time, act))
        }
    }
}

/// norm, activation, (other size,) convolution; the time; norm, activation, dropout, convolution; plus the input, made
/// as wide and as large as the output.
pub(crate) fn resnet<O: Operations>(
    block: &Resnet,
    ops: &mut O,
    mut x: O::Value,
    (time, act): (&O::Value, Nonlinearity),
) -> Result<O::Value> {
    ops.begin_block();
    let mut h = normalised(ops, &x, &block.norm1, None, act)?;
    if let Some(change) = block.change {
        x = changed(ops, &x, change)?;
        h = changed(ops, &h, change)?;
    }
    let time = ops.linear(time, &block.time)?; // [B, C], or [B, 2 C] with scale_shift
    if block.scale_shift {
        h = ops.conv2d(&h, &block.conv1)?;
        h = normalised(ops, &h, &block.norm2, Some(&time), act)?;
    } else {
        h = ops.conv2d_plus(&h, &block.conv1, &time)?;
        h = normalised(ops, &h, &block.norm2, None, act)?;
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

/// The normalisation and the activation after it, in one operation where there is one.
fn normalised<O: Operations>(
    ops: &mut O,
    x: &O::Value,
    norm: &Norm,
    scale_shift: Option<&O::Value>,
    act: Nonlinearity,
) -> Result<O::Value> {
    let fused = match act {
        Nonlinearity::Silu => Activation::Silu,
        _ => Activation::None,
    };
    let h = match scale_shift {
        Some(scale_shift) => ops.group_norm_scale_shift(x, norm, scale_shift, fused)?,
        None => ops.group_norm(x, norm, fused)?,
    };
    match act {
        Nonlinearity::Silu => Ok(h),
        act => ops.activate(&h, act),
    }
}

fn changed<O: Operations>(ops: &mut O, x: &O::Value, change: Change) -> Result<O::Value> {
    match change {
        Change::Nearest => ops.upsample_nearest_2x(x),
        change => ops.change(x, change),
    }
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
    ops.begin_block();
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
