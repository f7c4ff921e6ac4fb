//! Every operation again in plain candle operations: slow, obvious, and the oracle the fast ones are held to.
//!
//! They take `f32` and `f64` on any device, and their gradients are candle's own.

use candle_core::{D, Result, Tensor};

use crate::{Activation, AdamW, Conv2d};

/// [`crate::conv2d`] by zero padding and candle's convolution.
#[allow(clippy::disallowed_methods)] // candle's convolution is the oracle here, its speed does not matter
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    let (_, _, height, width) = crate::check::conv2d(x, weight, bias, conv)?;
    let padding = conv.padding;
    let padded = x
        .pad_with_zeros(2, padding.top, padding.bottom)?
        .pad_with_zeros(3, padding.left, padding.right)?;
    // candle's gradient wants the kernel to end at the last pixel both ways: pixels beyond its last position are cut off.
    let reached = |outputs: usize, kernel: usize| (outputs - 1) * conv.stride + kernel;
    let reached = padded
        .narrow(2, 0, reached(height, weight.dim(2)?))?
        .narrow(3, 0, reached(width, weight.dim(3)?))?;
    let y = reached
        .contiguous()?
        .conv2d(weight, 0, conv.stride, 1, conv.groups)?;
    match bias {
        None => Ok(y),
        Some(bias) => y.broadcast_add(&bias.reshape(((), weight.dim(0)?, 1, 1))?),
    }
}

/// [`crate::group_norm`] by means over the elements of each group.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    crate::check::group_norm(x, groups, gamma, beta)?;
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let grouped = x.reshape((batch, groups, ()))?;
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(2)?)?;
    let variance = centred.sqr()?.mean_keepdim(2)?;
    let normalised = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let per_channel = normalised.reshape((batch, channels, ()))?; // [B, C, N]
    let affine_shape = if gamma.rank() == 2 {
        (batch, channels, 1)
    } else {
        (1, channels, 1)
    };
    let y = per_channel
        .broadcast_mul(&gamma.reshape(affine_shape)?)?
        .broadcast_add(&beta.reshape(affine_shape)?)?
        .reshape(x.shape())?;
    match activation {
        Activation::None => Ok(y),
        Activation::Silu => silu(&y),
    }
}

/// [`crate::silu`]: x / (1 + e^-x).
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x / (x.neg()?.exp()? + 1.0)?
}

/// [`crate::linear`] by a matrix product.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (inputs, outputs) = crate::check::linear(x, weight, bias)?;
    let rows = x.reshape(((), inputs))?;
    let y = rows.matmul(&weight.t()?)?;
    let y = match bias {
        None => y,
        Some(bias) => y.broadcast_add(bias)?,
    };
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    y.reshape(shape)
}

/// [`crate::attention`] with the whole matrix of probabilities in memory.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    crate::check::attention(q, k, v)?;
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?; // [B, heads, N, M]
    let exponentials = scores
        .broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?
        .exp()?;
    let probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
    probabilities.matmul(&v)
}

/// [`crate::upsample_nearest_2x`] by broadcasting two new axes.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = crate::check::image("upsample_nearest_2x", "x", x)?;
    x.reshape((batch, channels, height, 1, width, 1))?
        .broadcast_as((batch, channels, height, 2, width, 2))?
        .contiguous()?
        .reshape((batch, channels, 2 * height, 2 * width))
}

/// [`crate::average_pool_2x`] by means over two new axes.
pub fn average_pool_2x(x: &Tensor) -> Result<Tensor> {
    crate::check::even_image("average_pool_2x", "x", x)?;
    let (batch, channels, height, width) = x.dims4()?;
    x.reshape((batch, channels, height / 2, 2, width / 2, 2))?
        .mean(5)?
        .mean(3)
}

/// [`crate::fir_downsample_2x`] by a product with a matrix from each side.
pub fn fir_downsample_2x(x: &Tensor) -> Result<Tensor> {
    crate::check::even_image("fir_downsample_2x", "x", x)?;
    let (_, _, height, width) = x.dims4()?;
    between(
        &filter(
            height / 2,
            height,
            |small, large| large + 1 - 2 * small,
            8.0,
            x,
        )?,
        x,
        &filter(
            width / 2,
            width,
            |small, large| large + 1 - 2 * small,
            8.0,
            x,
        )?,
    )
}

/// [`crate::fir_upsample_2x`] by a product with a matrix from each side.
pub fn fir_upsample_2x(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = crate::check::image("fir_upsample_2x", "x", x)?;
    between(
        &filter(
            2 * height,
            height,
            |large, small| large + 1 - 2 * small,
            4.0,
            x,
        )?,
        x,
        &filter(
            2 * width,
            width,
            |large, small| large + 1 - 2 * small,
            4.0,
            x,
        )?,
    )
}

/// The matrix whose element (i, j) is the `tap(i, j)`-th of (1, 3, 3, 1), or 0 beyond, over `sum`.
fn filter(
    rows: usize,
    columns: usize,
    tap: impl Fn(i64, i64) -> i64,
    sum: f64,
    like: &Tensor,
) -> Result<Tensor> {
    let element = |(i, j)| match tap(i, j) {
        0 | 3 => 1.0 / sum,
        1 | 2 => 3.0 / sum,
        _ => 0.0,
    };
    let places = (0..rows as i64).flat_map(|i| (0..columns as i64).map(move |j| (i, j)));
    let elements: Vec<f64> = places.map(element).collect();
    Tensor::from_vec(elements, (rows, columns), like.device())?.to_dtype(like.dtype())
}

/// left x rightᵀ for each channel.
fn between(left: &Tensor, x: &Tensor, right: &Tensor) -> Result<Tensor> {
    let x = x
        .contiguous()?
        .broadcast_matmul(&right.t()?.contiguous()?)?;
    left.broadcast_matmul(&x)
}

/// [`crate::relu`] by candle's.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.relu()
}

/// [`crate::gelu`] by candle's error function.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    let distribution = (((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    x * distribution
}

/// [`crate::mish`] with the logarithm where it is safe: ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|).
pub fn mish(x: &Tensor) -> Result<Tensor> {
    let softplus = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    x * softplus.tanh()?
}

/// [`crate::embedding`] by a product with rows of the identity.
pub fn embedding(table: &Tensor, indices: &[usize]) -> Result<Tensor> {
    crate::check::embedding(table, indices)?;
    let rows = table.dim(0)?;
    let mut chosen = vec![0f32; indices.len() * rows];
    for (row, &index) in chosen.chunks_exact_mut(rows.max(1)).zip(indices) {
        row[index] = 1.0;
    }
    let chosen = Tensor::from_vec(chosen, (indices.len(), rows), table.device())?;
    chosen.to_dtype(table.dtype())?.matmul(table)
}

/// [`crate::concat_channels`] by candle's `cat`.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    crate::check::concat_channels(a, b)?;
    Tensor::cat(&[a, b], 1)
}

/// [`crate::add`] by candle's `+`.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    crate::check::same_shape("add", ("x", x), ("y", y))?;
    x + y
}

/// [`crate::dropout`] by a product with the scaled mask.
pub fn dropout(x: &Tensor, mask: &Tensor, rate: f64) -> Result<Tensor> {
    crate::check::dropout(x, mask, rate)?;
    let kept = (mask.to_dtype(x.dtype())? * (1.0 / (1.0 - rate)))?;
    x * kept.detach()
}

/// [`crate::adamw_step`] without changing anything: the next parameter and moments.
pub fn adamw_step(
    p: &Tensor,
    m: &Tensor,
    v: &Tensor,
    g: &Tensor,
    adamw: &AdamW,
) -> Result<(Tensor, Tensor, Tensor)> {
    crate::check::adamw_step(p, m, v, g, adamw)?;
    let m_next = ((m * adamw.beta1)? + (g * (1.0 - adamw.beta1))?)?;
    let v_next = ((v * adamw.beta2)? + (g.sqr()? * (1.0 - adamw.beta2))?)?;
    let (m_correction, v_correction) = adamw.bias_corrections();
    let denominator = ((v_next.sqrt()? * (1.0 / v_correction.sqrt()))? + adamw.eps)?;
    let decayed = (p * (1.0 - adamw.learning_rate * adamw.weight_decay))?;
    let p_next = (decayed - ((&m_next / denominator)? * (adamw.learning_rate / m_correction))?)?;
    Ok((p_next, m_next, v_next))
}

/// [`crate::ema_update`] without changing anything: the next average.
pub fn ema_update(ema: &Tensor, p: &Tensor, decay: f64) -> Result<Tensor> {
    crate::check::ema_update(ema, p, decay)?;
    (ema * decay)? + (p * (1.0 - decay))?
}

/// [`crate::sum_of_squares`] in double precision.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    x.to_dtype(candle_core::DType::F64)?
        .sqr()?
        .sum_all()?
        .to_scalar()
}

/// [`crate::scale_in_place`] without changing anything: the scaled tensor.
pub fn scale_in_place(x: &Tensor, factor: f64) -> Result<Tensor> {
    x * factor
}
