//! Inputs that are neither random nor regular, and comparisons, wherever tensors are.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use ddpm_tests::here;

/// Numbers in [-1, 1] from a linear congruential generator.
pub(crate) fn numbers(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let data: Vec<f32> = (0..shape.elem_count())
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

pub(crate) fn values(x: &Tensor) -> Vec<f64> {
    x.to_device(&Device::Cpu)
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    x.flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

/// Differences of at most `tolerance` of the largest expected value (or of 1, if all are smaller).
#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let (actual, expected) = (values(actual), values(expected));
    let scale = expected.iter().fold(1f64, |scale, x| scale.max(x.abs()));
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!(
            (a - e).abs() <= tolerance * scale,
            "{what}: element {i} is {a}, expected {e}"
        );
    }
}

/// An operation on any number of tensors.
pub(crate) type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// All of them on the device of the tests.
pub(crate) fn all_here(inputs: &[Tensor]) -> Vec<Tensor> {
    inputs.iter().map(here).collect()
}

/// The output, and the gradients of its sum with fixed weights, for every input, where the inputs are.
pub(crate) fn output_and_gradients(
    op: Op,
    inputs: &[Tensor],
    dtype: DType,
) -> (Tensor, Vec<Tensor>) {
    let inputs: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap())
        .collect();
    let tensors: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().clone()).collect();
    let y = op(&tensors).unwrap();
    let weights = numbers(y.shape(), 99)
        .to_dtype(dtype)
        .and_then(|weights| weights.to_device(y.device()))
        .unwrap();
    let gradients = (&y * weights)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let of_input = |x: &Var| {
        gradients
            .get(x)
            .expect("a gradient for every input")
            .clone()
    };
    (y.detach(), inputs.iter().map(of_input).collect())
}
