//! A fully connected layer on a card: products by cuBLAS, as candle calls it, and the bias by our kernels.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Layout, Result, Tensor};

use super::card::Card;
use super::launch::Kind;
use super::{planes, sums};
use crate::affine::OnCard;

/// x Wᵀ + b for so many rows, inputs and outputs; all contiguous, shapes and types checked: the bias is f32.
pub(crate) fn forward(
    (rows, inputs, outputs): (usize, usize, usize),
    x: OnCard<'_>,
    weight: OnCard<'_>,
    bias: Option<OnCard<'_>>,
) -> Result<CudaStorage> {
    let card = Card::of(&x.0.device)?;
    let matrix =
        |rows, of: &Layout| Layout::contiguous_with_offset((rows, inputs), of.start_offset());
    let turned = matrix(outputs, weight.1).transpose(0, 1)?;
    let sizes = (1, rows, outputs, inputs);
    let y = x.0.matmul(weight.0, sizes, &matrix(rows, x.1), &turned)?;
    if let Some((storage, layout)) = bias {
        let bias = card.argument("linear", "bias", storage, layout)?;
        let whole = Layout::contiguous((rows, outputs));
        let (kind, place) = card.numbers("linear", "the result", &y, &whole)?;
        planes::add_bias(&card, kind, place, bias, (rows * outputs, 1, outputs))?;
    }
    Ok(y)
}

/// dL/dx, dL/dW and dL/db of those that need one, from g = dL/dy.
pub(crate) fn gradients(
    (rows, inputs, outputs): (usize, usize, usize),
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    g: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let g = g.detach().reshape((rows, outputs))?;
    let mut all = (None, None, None);
    if x.track_op() {
        all.0 = Some(g.matmul(&weight.detach())?.reshape(x.shape())?);
    }
    if weight.track_op() {
        let x = x.detach().reshape((rows, inputs))?;
        all.1 = Some(g.t()?.matmul(&x)?);
    }
    if let Some(bias) = bias
        && bias.track_op()
    {
        let card = Card::of(g.device().as_cuda_device()?)?;
        let place = card.place("linear", "the gradient", &g)?;
        let db = sums::bias_gradient(
            &card,
            Kind::of(g.dtype())?,
            place,
            (rows, outputs, 1),
            false,
        )?;
        all.2 = card.gradient(db, bias);
    }
    Ok(all)
}
