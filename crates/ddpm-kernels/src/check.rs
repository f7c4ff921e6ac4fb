//! What every operation demands of its arguments, and the words it refuses them with.

use candle_core::{DType, Result, Tensor, bail};

use crate::{AdamW, Conv2d, Padding};

/// As [`f32`], but on a card bf16 is known too; all are of one type.
pub(crate) fn floats(op: &str, arguments: &[(&str, &Tensor)]) -> Result<()> {
    let halves = |tensor: &Tensor| tensor.dtype() == DType::BF16 && tensor.device().is_cuda();
    if arguments.iter().all(|(_, tensor)| halves(tensor)) {
        return Ok(());
    }
    f32(op, arguments)
}

/// Whether an operation has loops or kernels of its own where a tensor is; elsewhere it falls back to its reference.
pub(crate) fn has_own(x: &Tensor) -> bool {
    x.device().is_cpu() || cfg!(feature = "cuda") && x.device().is_cuda()
}

/// Refuses anything but f32: the fast operations know no other type.
pub(crate) fn f32(op: &str, arguments: &[(&str, &Tensor)]) -> Result<()> {
    for (name, tensor) in arguments {
        if tensor.dtype() != DType::F32 {
            bail!(
                "{op}: {name} is {:?} {:?}, expected f32",
                tensor.dtype(),
                tensor.dims()
            );
        }
    }
    Ok(())
}

/// The four dimensions of an image batch.
pub(crate) fn image(op: &str, name: &str, x: &Tensor) -> Result<(usize, usize, usize, usize)> {
    match *x.dims() {
        [b, c, h, w] => Ok((b, c, h, w)),
        _ => bail!(
            "{op}: {name} has shape {:?}, expected [batch, channels, height, width]",
            x.dims()
        ),
    }
}

/// The same, of a batch whose images can be halved.
pub(crate) fn even_image(op: &str, name: &str, x: &Tensor) -> Result<()> {
    let (_, _, height, width) = image(op, name, x)?;
    if height % 2 != 0 || width % 2 != 0 {
        bail!(
            "{op}: {name} has shape {:?}, expected an even height and width",
            x.dims()
        );
    }
    Ok(())
}

/// A table, and numbers of its rows.
pub(crate) fn embedding(table: &Tensor, indices: &[usize]) -> Result<()> {
    let [rows, _] = *table.dims() else {
        bail!(
            "embedding: table has shape {:?}, expected [rows, width]",
            table.dims()
        );
    };
    match indices.iter().find(|&&index| index >= rows) {
        Some(index) => bail!("embedding: index {index} is beyond the {rows} rows of the table"),
        None => Ok(()),
    }
}

pub(crate) fn same_shape(
    op: &str,
    (x_name, x): (&str, &Tensor),
    (y_name, y): (&str, &Tensor),
) -> Result<()> {
    if x.dims() != y.dims() {
        bail!(
            "{op}: {x_name} has shape {:?} and {y_name} {:?}, expected the same",
            x.dims(),
            y.dims()
        );
    }
    Ok(())
}

/// The shape of the output of a convolution.
pub(crate) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    conv: Conv2d,
) -> Result<(usize, usize, usize, usize)> {
    let (batch, inputs, height, width) = image("conv2d", "x", x)?;
    let groups = conv.groups;
    if groups == 0 || inputs % groups != 0 {
        bail!(
            "conv2d: groups is {groups}, expected a divisor of the {inputs} channels of x of shape {:?}",
            x.dims()
        );
    }
    let (outputs, kernel_height, kernel_width) = match *weight.dims() {
        [outputs, i, kh, kw] if i == inputs / groups && kh > 0 && kw > 0 => (outputs, kh, kw),
        _ => bail!(
            "conv2d: weight has shape {:?}, expected [outputs, {}, height, width] for x of shape {:?}",
            weight.dims(),
            inputs / groups,
            x.dims()
        ),
    };
    if outputs % groups != 0 {
        bail!(
            "conv2d: groups is {groups}, expected a divisor of the {outputs} outputs of weight of shape {:?}",
            weight.dims()
        );
    }
    if let Some(bias) = bias
        && bias.dims() != [outputs]
        && bias.dims() != [batch, outputs]
    {
        bail!(
            "conv2d: bias has shape {:?}, expected [{outputs}] or [{batch}, {outputs}]",
            bias.dims()
        );
    }
    if x.elem_count() == 0 || outputs == 0 {
        bail!(
            "conv2d: nothing to convolve in x of shape {:?} by weight of shape {:?}",
            x.dims(),
            weight.dims()
        );
    }
    let (output_height, output_width) =
        conv2d_size((height, width), (kernel_height, kernel_width), conv)?;
    let output = [batch, outputs, output_height, output_width];
    let bytes = output
        .iter()
        .try_fold(size_of::<f32>(), |bytes, &side| bytes.checked_mul(side));
    if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
        bail!(
            "conv2d: padding is {:?}, which makes an output of shape {output:?}, expected one that fits into memory",
            conv.padding
        );
    }
    Ok((batch, outputs, output_height, output_width))
}

/// Rows and columns of the output of a convolution.
pub(crate) fn conv2d_size(
    (height, width): (usize, usize),
    (kernel_height, kernel_width): (usize, usize),
    conv: Conv2d,
) -> Result<(usize, usize)> {
    if conv.stride == 0 {
        bail!("conv2d: stride is 0, expected at least 1");
    }
    let Padding {
        top,
        left,
        bottom,
        right,
    } = conv.padding;
    let padded =
        |side: usize, before: usize, after: usize| side.checked_add(before)?.checked_add(after);
    let (Some(padded_height), Some(padded_width)) =
        (padded(height, top, bottom), padded(width, left, right))
    else {
        bail!(
            "conv2d: padding is {:?}, expected less than 2^{} pixels around {height} by {width}",
            conv.padding,
            usize::BITS
        );
    };
    if padded_height < kernel_height || padded_width < kernel_width {
        bail!(
            "conv2d: weight has a kernel of {kernel_height} by {kernel_width}, which is larger than x of {height} by {width} padded to {padded_height} by {padded_width}"
        );
    }
    let output_height = (padded_height - kernel_height) / conv.stride + 1;
    let output_width = (padded_width - kernel_width) / conv.stride + 1;
    Ok((output_height, output_width))
}

pub(crate) fn group_norm(x: &Tensor, groups: usize, gamma: &Tensor, beta: &Tensor) -> Result<()> {
    let (batch, channels) = match *x.dims() {
        [b, c, _, ..] => (b, c),
        _ => bail!(
            "group_norm: x has shape {:?}, expected [batch, channels, ...]",
            x.dims()
        ),
    };
    if x.elem_count() == 0 {
        bail!("group_norm: x of shape {:?} has no elements", x.dims());
    }
    if groups == 0 || channels % groups != 0 {
        bail!(
            "group_norm: {channels} channels of x of shape {:?} do not divide into {groups} groups",
            x.dims()
        );
    }
    for (name, affine) in [("gamma", gamma), ("beta", beta)] {
        if affine.dims() != [channels] && affine.dims() != [batch, channels] {
            bail!(
                "group_norm: {name} has shape {:?}, expected [{channels}] or [{batch}, {channels}]",
                affine.dims()
            );
        }
    }
    same_shape("group_norm", ("gamma", gamma), ("beta", beta))
}

/// The numbers of inputs and outputs.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(usize, usize)> {
    let Some(&inputs) = x.dims().last() else {
        bail!("linear: x has no dimensions, expected [..., inputs]");
    };
    let outputs = match *weight.dims() {
        [outputs, i] if i == inputs => outputs,
        _ => bail!(
            "linear: weight has shape {:?}, expected [outputs, {inputs}] for x of shape {:?}",
            weight.dims(),
            x.dims()
        ),
    };
    if let Some(bias) = bias
        && bias.dims() != [outputs]
    {
        bail!(
            "linear: bias has shape {:?}, expected [{outputs}]",
            bias.dims()
        );
    }
    if x.elem_count() == 0 || outputs == 0 {
        bail!(
            "linear: nothing to multiply in x of shape {:?} and weight of shape {:?}",
            x.dims(),
            weight.dims()
        );
    }
    Ok((inputs, outputs))
}

pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
    let [batch, heads, _, size] = *q.dims() else {
        bail!(
            "attention: q has shape {:?}, expected [batch, heads, queries, size]",
            q.dims()
        );
    };
    let keys = match *k.dims() {
        [b, h, keys, d] if (b, h, d) == (batch, heads, size) && keys > 0 => keys,
        _ => bail!(
            "attention: k has shape {:?}, expected [{batch}, {heads}, keys, {size}] as q {:?}",
            k.dims(),
            q.dims()
        ),
    };
    match *v.dims() {
        [b, h, m, e] if (b, h, m) == (batch, heads, keys) && e > 0 && q.elem_count() > 0 => Ok(()),
        _ => bail!(
            "attention: v has shape {:?}, expected [{batch}, {heads}, {keys}, size] as k {:?}",
            v.dims(),
            k.dims()
        ),
    }
}

pub(crate) fn concat_channels(a: &Tensor, b: &Tensor) -> Result<()> {
    let (a_batch, _, a_height, a_width) = image("concat_channels", "a", a)?;
    let (b_batch, _, b_height, b_width) = image("concat_channels", "b", b)?;
    if (a_batch, a_height, a_width) != (b_batch, b_height, b_width) {
        bail!(
            "concat_channels: a has shape {:?} and b {:?}, expected the same but for channels",
            a.dims(),
            b.dims()
        );
    }
    Ok(())
}

pub(crate) fn dropout(x: &Tensor, mask: &Tensor, rate: f64) -> Result<()> {
    same_shape("dropout", ("x", x), ("mask", mask))?;
    if !(0.0..1.0).contains(&rate) {
        bail!("dropout: rate is {rate}, expected 0 <= rate < 1");
    }
    if !matches!(mask.dtype(), DType::U8 | DType::F32) {
        bail!(
            "dropout: mask is {:?}, expected u8 or f32 of zeros and ones",
            mask.dtype()
        );
    }
    Ok(())
}

pub(crate) fn adamw_step(
    p: &Tensor,
    m: &Tensor,
    v: &Tensor,
    g: &Tensor,
    adamw: &AdamW,
) -> Result<()> {
    for other in [("m", m), ("v", v), ("g", g)] {
        same_shape("adamw_step", ("p", p), other)?;
    }
    if adamw.step == 0 {
        bail!("adamw_step: step is 0, expected 1 for the first step");
    }
    for (name, beta) in [("beta1", adamw.beta1), ("beta2", adamw.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            bail!("adamw_step: {name} is {beta}, expected 0 <= {name} < 1");
        }
    }
    Ok(())
}

pub(crate) fn ema_update(ema: &Tensor, p: &Tensor, decay: f64) -> Result<()> {
    same_shape("ema_update", ("ema", ema), ("p", p))?;
    if !(0.0..=1.0).contains(&decay) {
        bail!("ema_update: decay is {decay}, expected 0 <= decay <= 1");
    }
    Ok(())
}
