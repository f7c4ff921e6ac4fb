//! Values and gradients of every operation on odd shapes, on the device of the tests, against the references in double precision
//! on the CPU.

use candle_core::{DType, Tensor, Var};
use ddpm_kernels::{Activation, Conv2d, Padding, reference};
use ddpm_tests::{device, here, tolerance};

use crate::support::{Op, all_here, assert_close, numbers, output_and_gradients, values};

/// Rounding of some hundreds of single-precision operations one after the other: 128 units of 2^-24.
const ROUNDING: f64 = 1.0 / (1 << 17) as f64;

/// The fast operation against the reference, the reference against finite differences, then the fast one on the same
/// numbers in transposed memory.
#[track_caller]
fn check(what: &str, fast: Op, reference: Op, inputs: &[Tensor]) {
    let (y, gradients) = output_and_gradients(fast, &all_here(inputs), DType::F32);
    let (expected_y, expected_gradients) = output_and_gradients(reference, inputs, DType::F64);
    assert_close(
        &format!("{what}: output"),
        &y,
        &expected_y,
        tolerance(ROUNDING),
    );
    for (i, (gradient, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert_close(
            &format!("{what}: gradient of input {i}"),
            gradient,
            expected,
            tolerance(ROUNDING),
        );
        check_difference(
            &format!("{what}: difference along input {i}"),
            reference,
            inputs,
            i,
            expected,
        );
    }
    let there = all_here(inputs);
    let transposed: Vec<Tensor> = there.iter().map(in_transposed_memory).collect();
    assert_eq!(
        values(&fast(&transposed).unwrap()),
        values(&y),
        "{what}: not contiguous"
    );
}

/// The same tensor, its last two dimensions swapped in memory.
fn in_transposed_memory(x: &Tensor) -> Tensor {
    if x.rank() < 2 {
        return x.clone();
    }
    let last = x.rank() - 1;
    x.transpose(last - 1, last)
        .unwrap()
        .contiguous()
        .unwrap()
        .transpose(last - 1, last)
        .unwrap()
}

/// The derivative along a direction by central differences with step 1e-4 in double precision: the error is of the
/// order of the squared step.
#[track_caller]
fn check_difference(what: &str, op: Op, inputs: &[Tensor], i: usize, gradient: &Tensor) {
    const STEP: f64 = 1e-4;
    let inputs: Vec<Tensor> = inputs
        .iter()
        .map(|x| x.to_dtype(DType::F64).unwrap())
        .collect();
    let direction = numbers(inputs[i].shape(), 7).to_dtype(DType::F64).unwrap();
    let at = |step: f64| {
        let mut moved = inputs.clone();
        moved[i] = (&inputs[i] + (&direction * step).unwrap()).unwrap();
        let y = op(&moved).unwrap();
        let weights = numbers(y.shape(), 99).to_dtype(DType::F64).unwrap();
        (y * weights)
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
    };
    let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
    let expected = (gradient * direction)
        .unwrap()
        .sum_all()
        .unwrap()
        .to_scalar::<f64>()
        .unwrap();
    assert!(
        (difference - expected).abs() <= 1e-5 * expected.abs().max(1.0),
        "{what}: {difference}, by gradient {expected}"
    );
}

#[test]
fn conv2d_is_its_reference() {
    let same = Padding::same(1);
    let skewed = Padding {
        top: 2,
        left: 0,
        bottom: 1,
        right: 3,
    };
    // batch, inputs, height, width, outputs, kernel height and width, stride, padding
    let cases = [
        (1, 1, 7, 5, 1, 3, 3, 1, same),
        (2, 3, 7, 5, 5, 3, 3, 1, same),
        (3, 3, 7, 5, 5, 3, 3, 2, Padding::DDPM_DOWN),
        (2, 4, 6, 8, 3, 3, 3, 2, same),
        (2, 3, 7, 5, 4, 1, 1, 1, Padding::ZERO),
        (3, 5, 7, 5, 2, 1, 1, 2, Padding::ZERO),
        (2, 2, 7, 5, 3, 5, 2, 1, skewed),
        (2, 2, 7, 5, 3, 2, 4, 3, skewed),
        (2, 2, 5, 7, 3, 1, 1, 1, same), // padding beyond the kernel
        (5, 17, 4, 4, 33, 3, 3, 1, same),
        (2, 40, 12, 17, 6, 3, 3, 1, same),
        (1, 35, 29, 31, 3, 3, 3, 1, same),
        (1, 3, 20, 21, 4, 1, 1, 1, Padding::ZERO),
    ];
    for case in cases {
        let (batch, inputs, height, width, outputs, kernel_height, kernel_width, stride, padding) =
            case;
        let conv = Conv2d::new(stride, padding);
        let x = numbers((batch, inputs, height, width), 1);
        let weight = numbers((outputs, inputs, kernel_height, kernel_width), 2);
        let what = format!("{case:?}");
        check(
            &what,
            &|t| ddpm_kernels::conv2d(&t[0], &t[1], None, conv),
            &|t| reference::conv2d(&t[0], &t[1], None, conv),
            &[x.clone(), weight.clone()],
        );
        for bias in [numbers(outputs, 3), numbers((batch, outputs), 3)] {
            check(
                &what,
                &|t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), conv),
                &|t| reference::conv2d(&t[0], &t[1], Some(&t[2]), conv),
                &[x.clone(), weight.clone(), bias],
            );
        }
    }
}

#[test]
fn group_norm_is_its_reference() {
    for (batch, channels, groups) in [(1, 1, 1), (2, 6, 3), (3, 4, 4), (2, 6, 1)] {
        for activation in [Activation::None, Activation::Silu] {
            for shape in [
                vec![batch, channels, 7, 5],
                vec![batch, channels, 19],
                vec![batch, channels, 33, 41],
            ] {
                for affine in [vec![channels], vec![batch, channels]] {
                    let x = (numbers(shape.as_slice(), 1) + 0.25).unwrap();
                    let (gamma, beta) =
                        (numbers(affine.as_slice(), 2), numbers(affine.as_slice(), 3));
                    check(
                        &format!("{shape:?} in {groups} groups, affine {affine:?}, {activation:?}"),
                        &|t| {
                            ddpm_kernels::group_norm(&t[0], groups, &t[1], &t[2], 1e-5, activation)
                        },
                        &|t| reference::group_norm(&t[0], groups, &t[1], &t[2], 1e-5, activation),
                        &[x, gamma, beta],
                    );
                }
            }
        }
    }
}

#[test]
fn group_norm_keeps_its_precision_far_from_zero() {
    let x = (numbers((2, 4, 5, 7), 1) + 100.0).unwrap();
    let (gamma, beta) = (numbers(4, 2), numbers(4, 3));
    let [there, gamma_there, beta_there] = [&x, &gamma, &beta].map(here);
    let y = ddpm_kernels::group_norm(&there, 2, &gamma_there, &beta_there, 1e-5, Activation::None);
    let y = y.unwrap();
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let expected = reference::group_norm(
        &wide(&x),
        2,
        &wide(&gamma),
        &wide(&beta),
        1e-5,
        Activation::None,
    )
    .unwrap();
    // The mean, near 100, is rounded to 4e-6; the deviation is about 0.6.
    assert_close("near 100", &y, &expected, 2e-5);
}

#[test]
fn attention_is_its_reference() {
    for (batch, heads, queries, keys, size, value_size) in [
        (1, 1, 1, 1, 1, 1),
        (2, 3, 7, 5, 4, 6),
        (3, 1, 35, 35, 8, 8),
        (1, 2, 150, 37, 5, 3),
    ] {
        let q = (numbers((batch, heads, queries, size), 1) * 3.0).unwrap();
        let k = numbers((batch, heads, keys, size), 2);
        let v = numbers((batch, heads, keys, value_size), 3);
        check(
            &format!("{queries} queries, {keys} keys"),
            &|t| ddpm_kernels::attention(&t[0], &t[1], &t[2], 0.8),
            &|t| reference::attention(&t[0], &t[1], &t[2], 0.8),
            &[q, k, v],
        );
    }
}

#[test]
fn attention_to_scores_far_apart_is_a_choice() {
    let q = Tensor::full(1000f32, (1, 1, 1, 1), &device()).unwrap();
    let k = Tensor::from_vec(vec![1f32, -1.0], (1, 1, 2, 1), q.device()).unwrap();
    let v = Tensor::from_vec(vec![5f32, 7.0], (1, 1, 2, 1), q.device()).unwrap();
    assert_eq!(
        values(&ddpm_kernels::attention(&q, &k, &v, 1.0).unwrap()),
        [5.0]
    );
}

#[test]
fn linear_is_its_reference() {
    let cases: [(&[usize], usize); 5] = [
        (&[3], 5),
        (&[2, 3], 1),
        (&[2, 7, 5], 4),
        (&[1, 1], 3),
        (&[1300, 6], 131),
    ];
    for (shape, outputs) in cases {
        let (x, weight, bias) = (
            numbers(shape, 1),
            numbers((outputs, shape[shape.len() - 1]), 2),
            numbers(outputs, 3),
        );
        let what = format!("{shape:?} to {outputs}");
        check(
            &what,
            &|t| ddpm_kernels::linear(&t[0], &t[1], None),
            &|t| reference::linear(&t[0], &t[1], None),
            &[x.clone(), weight.clone()],
        );
        check(
            &what,
            &|t| ddpm_kernels::linear(&t[0], &t[1], Some(&t[2])),
            &|t| reference::linear(&t[0], &t[1], Some(&t[2])),
            &[x, weight, bias],
        );
    }
}

#[test]
fn the_small_ones_are_their_references() {
    for shape in [(1, 1, 1, 1), (2, 3, 7, 5), (3, 5, 64, 65)] {
        let (x, y) = ((numbers(shape, 1) * 9.0).unwrap(), numbers(shape, 2));
        let one = [x.clone()];
        check(
            "silu",
            &|t| ddpm_kernels::silu(&t[0]),
            &|t| reference::silu(&t[0]),
            &one,
        );
        check(
            "upsample",
            &|t| ddpm_kernels::upsample_nearest_2x(&t[0]),
            &|t| reference::upsample_nearest_2x(&t[0]),
            &one,
        );
        check(
            "add",
            &|t| ddpm_kernels::add(&t[0], &t[1]),
            &|t| reference::add(&t[0], &t[1]),
            &[x.clone(), y.clone()],
        );
        let wider = numbers((shape.0, 4, shape.2, shape.3), 3);
        let both = [x.clone(), wider];
        check(
            "concat",
            &|t| ddpm_kernels::concat_channels(&t[0], &t[1]),
            &|t| reference::concat_channels(&t[0], &t[1]),
            &both,
        );
        for dtype in [DType::U8, DType::F32] {
            let mask = y.ge(0f32).unwrap().to_dtype(dtype).unwrap();
            let mask_there = here(&mask);
            check(
                "dropout",
                &|t| ddpm_kernels::dropout(&t[0], &mask_there, 0.3),
                &|t| reference::dropout(&t[0], &mask, 0.3),
                &one,
            );
        }
    }
}

#[test]
fn the_rare_activations_are_their_references() {
    for shape in [(1, 1, 1, 1), (2, 3, 7, 5), (3, 5, 64, 65)] {
        // Away from 0, where the slope of ReLU jumps.
        let far = (numbers(shape, 1) * 6.0).unwrap();
        let x = [(&far + (far.sign().unwrap() * 0.01).unwrap()).unwrap()];
        check(
            "relu",
            &|t| ddpm_kernels::relu(&t[0]),
            &|t| reference::relu(&t[0]),
            &x,
        );
        check(
            "gelu",
            &|t| ddpm_kernels::gelu(&t[0]),
            &|t| reference::gelu(&t[0]),
            &x,
        );
        check(
            "mish",
            &|t| ddpm_kernels::mish(&t[0]),
            &|t| reference::mish(&t[0]),
            &x,
        );
    }
}

#[test]
fn the_other_ways_to_halve_and_double_are_their_references() {
    for shape in [(1, 1, 2, 2), (2, 3, 8, 6), (3, 5, 62, 64), (2, 1, 2, 10)] {
        let x = [numbers(shape, 1)];
        check(
            "average_pool_2x",
            &|t| ddpm_kernels::average_pool_2x(&t[0]),
            &|t| reference::average_pool_2x(&t[0]),
            &x,
        );
        check(
            "fir_downsample_2x",
            &|t| ddpm_kernels::fir_downsample_2x(&t[0]),
            &|t| reference::fir_downsample_2x(&t[0]),
            &x,
        );
        check(
            "fir_upsample_2x",
            &|t| ddpm_kernels::fir_upsample_2x(&t[0]),
            &|t| reference::fir_upsample_2x(&t[0]),
            &x,
        );
    }
    for shape in [(1, 1, 1, 1), (2, 3, 7, 5)] {
        check(
            "fir_upsample_2x",
            &|t| ddpm_kernels::fir_upsample_2x(&t[0]),
            &|t| reference::fir_upsample_2x(&t[0]),
            &[numbers(shape, 1)],
        );
    }
}

/// Inside of a constant image both filters give the constant: their weights sum to one.
#[test]
fn filters_keep_a_constant() {
    let x = Tensor::full(3f32, (1, 2, 6, 8), &device()).unwrap();
    for (y, side) in [
        (ddpm_kernels::fir_downsample_2x(&x).unwrap(), (3, 4)),
        (ddpm_kernels::fir_upsample_2x(&x).unwrap(), (12, 16)),
    ] {
        assert_eq!(y.dims(), [1, 2, side.0, side.1]);
        let inner = y.narrow(2, 1, side.0 - 2).unwrap();
        let inner = inner.narrow(3, 1, side.1 - 2).unwrap();
        assert!(values(&inner).iter().all(|&v| v == 3.0));
    }
}

#[test]
fn embedding_is_its_reference() {
    for (rows, width, indices) in [
        (1, 1, vec![0]),
        (5, 3, vec![4, 0, 4, 2, 4, 0, 3]),
        (3, 7, vec![1]),
    ] {
        check(
            &format!("{indices:?} of {rows}"),
            &|t| ddpm_kernels::embedding(&t[0], &indices),
            &|t| reference::embedding(&t[0], &indices),
            &[numbers((rows, width), 1)],
        );
    }
}

#[test]
fn activations_at_the_ends() {
    let x = [-1000f32, -100.0, 0.0, 100.0, 1000.0, f32::INFINITY];
    let x = Tensor::new(&x, &device()).unwrap();
    for (name, y) in [
        ("relu", ddpm_kernels::relu(&x)),
        ("gelu", ddpm_kernels::gelu(&x)),
        ("mish", ddpm_kernels::mish(&x)),
    ] {
        let y = values(&y.unwrap());
        assert!(y[0].abs() < 1e-30 && y[1].abs() < 1e-30, "{name}: {y:?}");
        assert_eq!(y[2..], [0.0, 100.0, 1000.0, f64::INFINITY], "{name}");
    }
}

#[test]
fn silu_at_the_ends() {
    let x = Tensor::new(
        &[-1000f32, -100.0, 0.0, 100.0, 1000.0, f32::INFINITY],
        &device(),
    )
    .unwrap();
    let y = values(&ddpm_kernels::silu(&x).unwrap());
    assert!(y[0].abs() < 1e-30 && y[1].abs() < 1e-30, "{y:?}");
    assert_eq!(y[2..], [0.0, 100.0, 1000.0, f64::INFINITY]);
    let nan = Tensor::new(&[f32::NAN], x.device()).unwrap();
    assert!(values(&ddpm_kernels::silu(&nan).unwrap())[0].is_nan());
}

#[test]
fn gradients_add_up_when_a_tensor_is_used_twice() {
    let x = Var::from_tensor(&here(&numbers((2, 3, 4, 6), 1))).unwrap();
    let up = ddpm_kernels::upsample_nearest_2x(&x).unwrap();
    let loss = (up.sum_all().unwrap() + x.sum_all().unwrap()).unwrap();
    let gradients = loss.backward().unwrap();
    assert!(values(gradients.get(&x).unwrap()).iter().all(|&g| g == 5.0)); // four copies and itself

    let joined = ddpm_kernels::concat_channels(&x, &ddpm_kernels::add(&x, &x).unwrap()).unwrap();
    let gradients = joined.sum_all().unwrap().backward().unwrap();
    assert!(values(gradients.get(&x).unwrap()).iter().all(|&g| g == 3.0));
}

#[test]
fn only_what_needs_a_gradient_gets_one() {
    let conv = Conv2d::new(1, Padding::same(1));
    let (x, weight, bias) = (
        here(&numbers((2, 3, 4, 6), 1)),
        here(&numbers((5, 3, 3, 3), 2)),
        Var::from_tensor(&here(&numbers(5, 3))).unwrap(),
    );
    let y = ddpm_kernels::conv2d(&x, &weight, Some(&bias), conv).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_none() && gradients.get(&weight).is_none());
    assert!(
        values(gradients.get(&bias).unwrap())
            .iter()
            .all(|&g| g == 48.0)
    ); // 2 images of 4 by 6
}
