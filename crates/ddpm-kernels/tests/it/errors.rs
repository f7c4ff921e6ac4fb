//! Every refusal names the operation, what it was given and what it expected; the same on every device.

use candle_core::{DType, Result, Shape, Tensor};
use ddpm_kernels::{Activation, AdamW, Conv2d, Padding};

use crate::support;

/// On the device of the tests.
fn numbers(shape: impl Into<Shape>, seed: u64) -> Tensor {
    ddpm_tests::here(&support::numbers(shape, seed))
}

const SAME: Conv2d = Conv2d::new(1, Padding::same(1));
const ADAMW: AdamW = AdamW {
    learning_rate: 1e-3,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    step: 1,
};

#[track_caller]
fn check<T>(result: Result<T>, expected: &str) {
    let Err(error) = result else {
        panic!("accepted, expected: {expected}")
    };
    let message = error.to_string(); // candle may append a backtrace
    assert_eq!(message.lines().next(), Some(expected));
}

#[test]
fn conv2d() {
    let (x, w) = (numbers((2, 3, 4, 6), 1), numbers((5, 3, 3, 3), 2));
    let conv = |x: &Tensor, w: &Tensor, b: Option<&Tensor>, c| ddpm_kernels::conv2d(x, w, b, c);
    check(
        conv(&numbers((3, 4), 1), &w, None, SAME),
        "conv2d: x has shape [3, 4], expected [batch, channels, height, width]",
    );
    check(
        conv(&x, &numbers((5, 4, 3, 3), 1), None, SAME),
        "conv2d: weight has shape [5, 4, 3, 3], expected [outputs, 3, height, width] for x of shape [2, 3, 4, 6]",
    );
    check(
        conv(&x, &w, Some(&numbers(4, 1)), SAME),
        "conv2d: bias has shape [4], expected [5] or [2, 5]",
    );
    check(
        conv(&x, &w, None, Conv2d { stride: 0, ..SAME }),
        "conv2d: stride is 0, expected at least 1",
    );
    check(
        conv(
            &numbers((1, 3, 2, 6), 1),
            &w,
            None,
            Conv2d::new(1, Padding::ZERO),
        ),
        "conv2d: weight has a kernel of 3 by 3, which is larger than x of 2 by 6 padded to 2 by 6",
    );
    check(
        conv(&numbers((0, 3, 4, 6), 1), &w, None, SAME),
        "conv2d: nothing to convolve in x of shape [0, 3, 4, 6] by weight of shape [5, 3, 3, 3]",
    );
    check(
        conv(&x.to_dtype(DType::F64).unwrap(), &w, None, SAME),
        "conv2d: x is F64 [2, 3, 4, 6], expected f32",
    );
}

#[test]
fn conv2d_of_groups_and_paddings_that_cannot_be() {
    let (x, w) = (numbers((2, 3, 4, 6), 1), numbers((5, 1, 3, 3), 2));
    let conv = |w: &Tensor, c| ddpm_kernels::conv2d(&x, w, None, c);
    check(
        conv(&w, Conv2d { groups: 0, ..SAME }),
        "conv2d: groups is 0, expected a divisor of the 3 channels of x of shape [2, 3, 4, 6]",
    );
    check(
        conv(&w, Conv2d { groups: 2, ..SAME }),
        "conv2d: groups is 2, expected a divisor of the 3 channels of x of shape [2, 3, 4, 6]",
    );
    check(
        conv(&w, Conv2d { groups: 3, ..SAME }),
        "conv2d: groups is 3, expected a divisor of the 5 outputs of weight of shape [5, 1, 3, 3]",
    );
    let w = numbers((5, 3, 3, 3), 2);
    let padding = Padding {
        left: usize::MAX - 2,
        ..Padding::ZERO
    };
    check(
        conv(&w, Conv2d::new(1, padding)),
        &format!("conv2d: padding is {padding:?}, expected less than 2^64 pixels around 4 by 6"),
    );
    let padding = Padding::same(usize::MAX / 4);
    let error = conv(&w, Conv2d::new(1, padding)).unwrap_err().to_string();
    assert!(
        error.contains("expected one that fits into memory"),
        "{error}"
    );
}

#[test]
fn group_norm() {
    let norm = |x: &Tensor, groups, gamma: &Tensor, beta: &Tensor| {
        ddpm_kernels::group_norm(x, groups, gamma, beta, 1e-6, Activation::None)
    };
    let (x, c) = (numbers((2, 6, 4, 6), 1), numbers(6, 2));
    check(
        norm(&numbers((2, 6), 1), 2, &c, &c),
        "group_norm: x has shape [2, 6], expected [batch, channels, ...]",
    );
    check(
        norm(&x, 4, &c, &c),
        "group_norm: 6 channels of x of shape [2, 6, 4, 6] do not divide into 4 groups",
    );
    check(
        norm(&x, 0, &c, &c),
        "group_norm: 6 channels of x of shape [2, 6, 4, 6] do not divide into 0 groups",
    );
    check(
        norm(&x, 2, &c, &numbers(5, 1)),
        "group_norm: beta has shape [5], expected [6] or [2, 6]",
    );
    check(
        norm(&x, 2, &c, &numbers((2, 6), 1)),
        "group_norm: gamma has shape [6] and beta [2, 6], expected the same",
    );
    check(
        norm(&numbers((2, 6, 0), 1), 2, &c, &c),
        "group_norm: x of shape [2, 6, 0] has no elements",
    );
}

#[test]
fn linear() {
    let (x, w) = (numbers((2, 3), 1), numbers((5, 3), 2));
    let scalar = Tensor::new(1f32, x.device()).unwrap();
    check(
        ddpm_kernels::linear(&scalar, &w, None),
        "linear: x has no dimensions, expected [..., inputs]",
    );
    check(
        ddpm_kernels::linear(&x, &numbers((5, 4), 1), None),
        "linear: weight has shape [5, 4], expected [outputs, 3] for x of shape [2, 3]",
    );
    check(
        ddpm_kernels::linear(&x, &w, Some(&numbers(3, 1))),
        "linear: bias has shape [3], expected [5]",
    );
    let none = numbers((0, 3), 1);
    check(
        ddpm_kernels::linear(&none, &w, None),
        "linear: nothing to multiply in x of shape [0, 3] and weight of shape [5, 3]",
    );
}

#[test]
fn attention() {
    let (q, k, v) = (
        numbers((2, 3, 4, 5), 1),
        numbers((2, 3, 6, 5), 2),
        numbers((2, 3, 6, 7), 3),
    );
    let attend = |q: &Tensor, k: &Tensor, v: &Tensor| ddpm_kernels::attention(q, k, v, 1.0);
    check(
        attend(&numbers((3, 4, 5), 1), &k, &v),
        "attention: q has shape [3, 4, 5], expected [batch, heads, queries, size]",
    );
    check(
        attend(&q, &numbers((2, 3, 6, 4), 1), &v),
        "attention: k has shape [2, 3, 6, 4], expected [2, 3, keys, 5] as q [2, 3, 4, 5]",
    );
    check(
        attend(&q, &k, &numbers((2, 3, 4, 7), 1)),
        "attention: v has shape [2, 3, 4, 7], expected [2, 3, 6, size] as k [2, 3, 6, 5]",
    );
}

#[test]
fn the_small_ones() {
    let (x, y) = (numbers((2, 3, 4, 6), 1), numbers((2, 3, 6, 4), 2));
    check(
        ddpm_kernels::add(&x, &y),
        "add: x has shape [2, 3, 4, 6] and y [2, 3, 6, 4], expected the same",
    );
    check(
        ddpm_kernels::concat_channels(&x, &y),
        "concat_channels: a has shape [2, 3, 4, 6] and b [2, 3, 6, 4], expected the same but for channels",
    );
    check(
        ddpm_kernels::dropout(&x, &y, 0.1),
        "dropout: x has shape [2, 3, 4, 6] and mask [2, 3, 6, 4], expected the same",
    );
    check(
        ddpm_kernels::dropout(&x, &x, 1.0),
        "dropout: rate is 1, expected 0 <= rate < 1",
    );
    let wide = x.to_dtype(DType::F64).unwrap();
    check(
        ddpm_kernels::dropout(&x, &wide, 0.1),
        "dropout: mask is F64, expected u8 or f32 of zeros and ones",
    );
    check(
        ddpm_kernels::silu(&wide),
        "silu: x is F64 [2, 3, 4, 6], expected f32",
    );
    check(
        ddpm_kernels::upsample_nearest_2x(&numbers(3, 1)),
        "upsample_nearest_2x: x has shape [3], expected [batch, channels, height, width]",
    );
}

/// Of what changes tensors of the CPU, one at a time.
#[test]
fn training() {
    use support::numbers;
    let (p, g) = (numbers((2, 3), 1), numbers((3, 2), 2));
    let other = || numbers((2, 3), 3);
    check(
        ddpm_kernels::adamw_step(&p, &other(), &other(), &g, &ADAMW),
        "adamw_step: p has shape [2, 3] and g [3, 2], expected the same",
    );
    check(
        ddpm_kernels::adamw_step(
            &p,
            &other(),
            &other(),
            &other(),
            &AdamW { step: 0, ..ADAMW },
        ),
        "adamw_step: step is 0, expected 1 for the first step",
    );
    check(
        ddpm_kernels::adamw_step(&p, &p, &other(), &other(), &ADAMW),
        "adamw_step: p and m share their memory",
    );
    check(
        ddpm_kernels::adamw_step(&p, &other(), &other(), &p, &ADAMW),
        "adamw_step: p and g share their memory",
    );
    check(
        ddpm_kernels::ema_update(&p, &p, 0.9),
        "ema_update: ema and p share their memory",
    );
    check(
        ddpm_kernels::ema_update(&p, &other(), 1.5),
        "ema_update: decay is 1.5, expected 0 <= decay <= 1",
    );
    check(
        ddpm_kernels::scale_in_place(&p.t().unwrap(), 0.5),
        "scale_in_place: x of shape [3, 2] is not contiguous",
    );
    let wide = p.to_dtype(DType::F64).unwrap();
    check(
        ddpm_kernels::sum_of_squares(&wide),
        "sum_of_squares: x is F64 [2, 3], expected f32",
    );
}

#[test]
fn what_other_blocks_need() {
    let odd = numbers((2, 3, 5, 6), 1);
    for (name, op) in [
        (
            "average_pool_2x",
            ddpm_kernels::average_pool_2x as fn(&Tensor) -> Result<Tensor>,
        ),
        ("fir_downsample_2x", ddpm_kernels::fir_downsample_2x),
    ] {
        check(
            op(&odd),
            &format!("{name}: x has shape [2, 3, 5, 6], expected an even height and width"),
        );
    }
    check(
        ddpm_kernels::fir_upsample_2x(&numbers((3, 4), 1)),
        "fir_upsample_2x: x has shape [3, 4], expected [batch, channels, height, width]",
    );
    check(
        ddpm_kernels::mish(&odd.to_dtype(DType::F64).unwrap()),
        "mish: x is F64 [2, 3, 5, 6], expected f32",
    );
    check(
        ddpm_kernels::embedding(&numbers((5, 3), 1), &[2, 5]),
        "embedding: index 5 is beyond the 5 rows of the table",
    );
    check(
        ddpm_kernels::embedding(&numbers(5, 1), &[2]),
        "embedding: table has shape [5], expected [rows, width]",
    );
}
