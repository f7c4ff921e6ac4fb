//! Convolutions on a card: by cuDNN, with padding that it does not know put around beforehand, and a bias added after.

use candle_core::{CudaStorage, Result, Tensor};

use super::card::Card;
use super::convolution::{Around, Pass, shape_of};
use super::cudnn::convolve;
use super::launch::{Address, Kind, Machine};
use super::{planes, sums};
use crate::Conv2d;
use crate::affine::OnCard;

/// y = W * x + b; all contiguous, shapes and types checked: the bias is f32.
pub(crate) fn forward(
    conv: Conv2d,
    x: OnCard<'_>,
    weight: OnCard<'_>,
    bias: Option<OnCard<'_>>,
) -> Result<CudaStorage> {
    let card = Card::of(&x.0.device)?;
    let (dims, weight_dims) = (x.1.shape().dims4()?, weight.1.shape().dims4()?);
    let (kind, x) = card.numbers("conv2d", "x", x.0, x.1)?;
    let (_, weight) = card.numbers("conv2d", "weight", weight.0, weight.1)?;
    let (shape, around) = shape_of(kind, dims.into(), weight_dims.into(), conv)?;
    let [images, channels, height, width] = shape.y.map(|size| size as usize);
    let y = card.allocate(kind, images * channels * height * width)?;
    with_padding(&card, kind, around, x, |x| {
        convolve(&card, &shape, Pass::Forward, [x, weight], card.address(&y))
    })?;
    if let Some((storage, layout)) = bias {
        let place = card.argument("conv2d", "bias", storage, layout)?;
        let biases = layout.shape().elem_count();
        let sizes = (images * channels * height * width, height * width, biases);
        planes::add_bias(&card, kind, card.address(&y), place, sizes)?;
    }
    Ok(card.storage(y))
}

/// dL/dx, dL/dW and dL/db of those that need one, from g = dL/dy.
pub(crate) fn gradients(
    conv: Conv2d,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    g: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let card = Card::of(x.device().as_cuda_device()?)?;
    let kind = Kind::of(x.dtype())?;
    let (shape, around) = shape_of(kind, x.dims4()?.into(), weight.dims4()?.into(), conv)?;
    let place = |name, tensor| card.place("conv2d", name, tensor);
    let (x_at, weight_at) = (place("x", x)?, place("weight", weight)?);
    let g_at = place("the gradient", g)?;
    let mut all = (None, None, None);
    if x.track_op() {
        let elements: u64 = shape.x.iter().map(|&size| u64::from(size)).product();
        let mut dx = card.allocate(kind, elements as usize)?;
        let to = card.address(&dx);
        convolve(&card, &shape, Pass::Data, [weight_at, g_at], to)?;
        if let Some(around) = around {
            let (planes, top, left) = (around.planes, around.top, around.left);
            dx = planes::window(
                &card,
                kind,
                to,
                planes,
                around.outer,
                around.inner,
                (-top, -left),
            )?;
        }
        all.0 = card.gradient(dx, x);
    }
    if weight.track_op() {
        let dw = card.allocate(kind, weight.elem_count())?;
        let to = card.address(&dw);
        with_padding(&card, kind, around, x_at, |x| {
            convolve(&card, &shape, Pass::Weights, [x, g_at], to)
        })?;
        all.1 = card.gradient(dw, weight);
    }
    if let Some(bias) = bias
        && bias.track_op()
    {
        let (images, channels, height, width) = g.dims4()?;
        let sizes = (images, channels, height * width);
        let db = sums::bias_gradient(&card, kind, g_at, sizes, bias.rank() == 2)?;
        all.2 = card.gradient(db, bias);
    }
    Ok(all)
}

/// Works on x, or on x with zeros around it.
fn with_padding(
    card: &Card<'_>,
    kind: Kind,
    around: Option<Around>,
    x: Address,
    work: impl FnOnce(Address) -> Result<()>,
) -> Result<()> {
    let Some(around) = around else {
        return work(x);
    };
    let offset = (around.top, around.left);
    let padded = planes::window(
        card,
        kind,
        x,
        around.planes,
        around.inner,
        around.outer,
        offset,
    )?;
    work(card.address(&padded))
}
