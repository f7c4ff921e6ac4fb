//! How far the CPU's Winograd tiles are from the truth, with channels enough for rounding to add up, whatever the device of the tests.

use candle_core::{DType, Tensor};
use ddpm_kernels::{Conv2d, Padding, conv2d, reference};

use crate::support::{numbers, output_and_gradients, values};

/// The largest difference over the largest value.
fn error(actual: &Tensor, expected: &Tensor) -> f64 {
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected
        .iter()
        .fold(0f64, |largest, x| largest.max(x.abs()));
    let differences = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs());
    differences.fold(0.0, f64::max) / largest
}

/// Adding up 9 x 128 products one after the other would be off by about 1e-6; docs/kernels.md has the other points'
/// errors. The usual points 0, ±1, ±2 do not pass.
#[test]
fn the_error_is_that_of_a_plain_sum() {
    let conv = Conv2d::new(1, Padding::same(1));
    let inputs = [numbers((2, 128, 12, 9), 1), numbers((48, 128, 3, 3), 2)];
    let fast = output_and_gradients(&|t| conv2d(&t[0], &t[1], None, conv), &inputs, DType::F32);
    let exact = output_and_gradients(
        &|t| reference::conv2d(&t[0], &t[1], None, conv),
        &inputs,
        DType::F64,
    );
    for (what, actual, expected) in [
        ("the output", &fast.0, &exact.0),
        ("the image's gradient", &fast.1[0], &exact.1[0]),
        ("the weights' gradient", &fast.1[1], &exact.1[1]),
    ] {
        let error = error(actual, expected);
        assert!(error < 3e-6, "{what}: {error:e}");
    }
}
