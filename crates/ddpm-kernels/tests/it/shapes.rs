//! Every operation on shapes that are not nice, at every level of the processor: the reference's values in double precision,
//! the same bits on any number of threads, at any place in the batch and in any memory. On a card: the reference's values, the
//! same bits in any memory, the same values at any place in the batch.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, Var};
use ddpm_kernels::processor::{Level, pool};
use ddpm_kernels::{Activation, Conv2d, Padding, reference};

use ddpm_tests::{device, here, tolerance};

use crate::support::{all_here, assert_close, bits, numbers, output_and_gradients};

/// Rounding of some hundreds of single-precision operations one after the other, as the levels may differ.
const ROUNDING: f64 = 1e-5;

type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

/// Pools of 1, 2 and 7 threads at each level.
fn pools() -> &'static [(Level, [rayon::ThreadPool; 3])] {
    static POOLS: OnceLock<Vec<(Level, [rayon::ThreadPool; 3])>> = OnceLock::new();
    POOLS.get_or_init(|| {
        let of = |level| {
            (
                level,
                [1, 2, 7].map(|threads| pool(level, threads).unwrap()),
            )
        };
        Level::available().into_iter().map(of).collect()
    })
}

fn all_bits((y, gradients): &Results) -> Vec<Vec<u32>> {
    std::iter::once(y).chain(gradients).map(bits).collect()
}

/// An output and the gradients of all inputs.
type Results = (Tensor, Vec<Tensor>);

/// Output and gradients at every level, on 1, 2 and 7 threads, and of arguments that are not contiguous; on a card, once.
#[track_caller]
fn check(what: &str, fast: Op, reference: Op, inputs: &[Tensor]) {
    let run = |inputs: &[Tensor]| output_and_gradients(&|t| fast(t), inputs, DType::F32);
    let expected = output_and_gradients(&|t| reference(t), inputs, DType::F64);
    if !device().is_cpu() {
        let inputs = all_here(inputs);
        let results = run(&inputs);
        check_values(what, &results, &expected);
        for elsewhere in [transposed, narrowed] {
            let inputs: Vec<Tensor> = inputs.iter().map(elsewhere).collect();
            let y = fast(&inputs).unwrap();
            assert!(bits(&results.0) == bits(&y), "{what}: not contiguous");
        }
        return;
    }
    for (level, pools) in pools() {
        let what = format!("{what}, {level:?}");
        let results = pools.each_ref().map(|pool| pool.install(|| run(inputs)));
        check_values(&what, &results[0], &expected);
        let once = all_bits(&results[0]);
        assert!(
            once == all_bits(&results[1]),
            "{what}: 2 threads differ from 1"
        );
        assert!(
            once == all_bits(&results[2]),
            "{what}: 7 threads differ from 1"
        );
        for elsewhere in [transposed, narrowed] {
            let inputs: Vec<Tensor> = inputs.iter().map(elsewhere).collect();
            let y = pools[1].install(|| fast(&inputs)).unwrap();
            assert!(once[0] == bits(&y), "{what}: not contiguous");
        }
    }
}

#[track_caller]
fn check_values(what: &str, results: &Results, expected: &Results) {
    let rounding = tolerance(ROUNDING);
    assert_close(what, &results.0, &expected.0, rounding);
    for (i, (gradient, expected)) in results.1.iter().zip(&expected.1).enumerate() {
        assert_close(
            &format!("{what}, gradient {i}"),
            gradient,
            expected,
            rounding,
        );
    }
}

/// The same tensor, its last two dimensions swapped in memory.
fn transposed(x: &Tensor) -> Tensor {
    if x.rank() < 2 {
        return x.clone();
    }
    let last = x.rank() - 1;
    let swapped = x.transpose(last - 1, last).unwrap().contiguous().unwrap();
    swapped.transpose(last - 1, last).unwrap()
}

/// The same tensor as a part of a larger one.
fn narrowed(x: &Tensor) -> Tensor {
    let last = x.rank() - 1;
    let padded = x.pad_with_zeros(last, 1, 2).unwrap();
    padded.narrow(last, 1, x.dim(last).unwrap()).unwrap()
}

/// An image alone gives the same output and gradient as in a batch of five: the same bits at every level of the processor, the
/// same values on a card, where cuDNN takes another algorithm for another batch.
#[track_caller]
fn check_alone(what: &str, op: Op, x: &Tensor) {
    let x = &here(x);
    let run = |first: usize, count: usize| {
        let x = Var::from_tensor(&x.narrow(0, first, count).unwrap()).unwrap();
        let y = op(&[x.as_tensor().clone()]).unwrap();
        let shape = [&[5], &y.dims()[1..]].concat();
        let weights = here(&numbers(shape, 99)).narrow(0, first, count).unwrap();
        let loss = (&y * weights).unwrap().sum_all().unwrap();
        let gradient = loss.backward().unwrap().get(&x).unwrap().clone();
        (y, gradient)
    };
    if !device().is_cpu() {
        let (y, gradient) = run(0, 5);
        for image in 0..5 {
            let alone = run(image, 1);
            let part = |x: &Tensor| x.narrow(0, image, 1).unwrap();
            let rounding = tolerance(ROUNDING);
            assert_close(what, &alone.0, &part(&y), rounding);
            assert_close(what, &alone.1, &part(&gradient), rounding);
        }
        return;
    }
    for (level, pools) in pools() {
        let (y, gradient) = pools[1].install(|| run(0, 5));
        for image in 0..5 {
            let alone = pools[1].install(|| run(image, 1));
            let part = |x: &Tensor| bits(&x.narrow(0, image, 1).unwrap());
            assert!(
                bits(&alone.0) == part(&y),
                "{what}, {level:?}: image {image}"
            );
            assert!(
                bits(&alone.1) == part(&gradient),
                "{what}, {level:?}: gradient of {image}"
            );
        }
    }
}

const SKEWED: Padding = Padding {
    top: 2,
    left: 0,
    bottom: 1,
    right: 3,
};

#[test]
fn conv2d() {
    // inputs, outputs, groups
    let channels = [
        (1, 1, 1),
        (3, 17, 1),
        (17, 3, 1),
        (4, 6, 2),
        (33, 33, 1),
        (6, 6, 6),
        (3, 33, 3),
    ];
    let mut case = 0;
    for kernel in [(3, 3), (1, 1), (5, 2)] {
        for stride in [1, 2, 3] {
            for padding in [Padding::ZERO, Padding::same(1), Padding::DDPM_DOWN, SKEWED] {
                let (inputs, outputs, groups) = channels[case % channels.len()];
                check_conv2d(
                    [1, 2, 5][case % 3],
                    (inputs, outputs, groups),
                    (7, 5),
                    kernel,
                    stride,
                    padding,
                );
                case += 1;
            }
        }
    }
    for (inputs, outputs, groups) in channels {
        for stride in [1, 2] {
            check_conv2d(
                2,
                (inputs, outputs, groups),
                (1, 1),
                (3, 3),
                stride,
                Padding::same(1),
            );
        }
        check_conv2d(
            1,
            (inputs, outputs, groups),
            (1, 1),
            (1, 1),
            1,
            Padding::ZERO,
        );
        check_conv2d(
            1,
            (inputs, outputs, groups),
            (9, 37),
            (3, 3),
            1,
            Padding::same(1),
        );
    }
}

#[track_caller]
fn check_conv2d(
    batch: usize,
    (inputs, outputs, groups): (usize, usize, usize),
    (height, width): (usize, usize),
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
) {
    let conv = Conv2d {
        groups,
        ..Conv2d::new(stride, padding)
    };
    let x = numbers((batch, inputs, height, width), 1);
    let weight = numbers((outputs, inputs / groups, kernel.0, kernel.1), 2);
    check(
        &format!("{batch} x {inputs} x {height} x {width} to {outputs} by {kernel:?}, {conv:?}"),
        &|t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), conv),
        &|t| reference::conv2d(&t[0], &t[1], Some(&t[2]), conv),
        &[x, weight, numbers(outputs, 3)],
    );
}

#[test]
fn linear() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (7, 3, 17),
        (56, 17, 3),
        (113, 33, 16),
        (57, 16, 33),
    ] {
        check(
            &format!("{rows} rows of {inputs} to {outputs}"),
            &|t| ddpm_kernels::linear(&t[0], &t[1], Some(&t[2])),
            &|t| reference::linear(&t[0], &t[1], Some(&t[2])),
            &[
                numbers((rows, inputs), 1),
                numbers((outputs, inputs), 2),
                numbers(outputs, 3),
            ],
        );
    }
}

#[test]
fn attention() {
    for (batch, heads, queries, keys, size, value_size) in [
        (1, 1, 1, 1, 1, 1),
        (2, 3, 7, 5, 3, 17),
        (1, 2, 57, 35, 17, 3),
        (1, 1, 115, 70, 33, 16),
        (5, 4, 16, 16, 8, 8),
    ] {
        check(
            &format!(
                "{batch} x {heads} heads, {queries} queries, {keys} keys, {size}, {value_size}"
            ),
            &|t| ddpm_kernels::attention(&t[0], &t[1], &t[2], 0.7),
            &|t| reference::attention(&t[0], &t[1], &t[2], 0.7),
            &[
                numbers((batch, heads, queries, size), 1),
                numbers((batch, heads, keys, size), 2),
                numbers((batch, heads, keys, value_size), 3),
            ],
        );
    }
}

#[test]
fn group_norm() {
    for (batch, channels, groups, side) in [
        (1, 3, 1, (7, 5)),
        (2, 33, 11, (7, 5)),
        (5, 17, 17, (3, 1)),
        (2, 4, 2, (1, 1)),
    ] {
        for activation in [Activation::None, Activation::Silu] {
            check(
                &format!("{batch} x {channels} x {side:?} in {groups} groups, {activation:?}"),
                &|t| ddpm_kernels::group_norm(&t[0], groups, &t[1], &t[2], 1e-5, activation),
                &|t| reference::group_norm(&t[0], groups, &t[1], &t[2], 1e-5, activation),
                &[
                    numbers((batch, channels, side.0, side.1), 1),
                    numbers(channels, 2),
                    numbers(channels, 3),
                ],
            );
        }
    }
}

#[test]
fn the_small_ones() {
    for shape in [(1, 1, 1, 1), (1, 3, 7, 5), (2, 17, 7, 5), (5, 33, 3, 1)] {
        let (x, y) = (numbers(shape, 1), numbers(shape, 2));
        let wider = numbers((shape.0, 17, shape.2, shape.3), 3);
        let mask = y.ge(0f32).unwrap();
        let mask_there = here(&mask);
        let one = std::slice::from_ref(&x);
        check(
            "silu",
            &|t| ddpm_kernels::silu(&t[0]),
            &|t| reference::silu(&t[0]),
            one,
        );
        check(
            "upsample",
            &|t| ddpm_kernels::upsample_nearest_2x(&t[0]),
            &|t| reference::upsample_nearest_2x(&t[0]),
            one,
        );
        check(
            "dropout",
            &|t| ddpm_kernels::dropout(&t[0], &mask_there, 0.3),
            &|t| reference::dropout(&t[0], &mask, 0.3),
            one,
        );
        check(
            "add",
            &|t| ddpm_kernels::add(&t[0], &t[1]),
            &|t| reference::add(&t[0], &t[1]),
            &[x.clone(), y],
        );
        check(
            "concat",
            &|t| ddpm_kernels::concat_channels(&t[0], &t[1]),
            &|t| reference::concat_channels(&t[0], &t[1]),
            &[x.clone(), wider],
        );
    }
}

#[test]
fn the_ones_of_other_blocks() {
    let ops: [(&str, Op, Op); 6] = [
        ("relu", &|t| ddpm_kernels::relu(&t[0]), &|t| {
            reference::relu(&t[0])
        }),
        ("gelu", &|t| ddpm_kernels::gelu(&t[0]), &|t| {
            reference::gelu(&t[0])
        }),
        ("mish", &|t| ddpm_kernels::mish(&t[0]), &|t| {
            reference::mish(&t[0])
        }),
        ("pool", &|t| ddpm_kernels::average_pool_2x(&t[0]), &|t| {
            reference::average_pool_2x(&t[0])
        }),
        (
            "fir down",
            &|t| ddpm_kernels::fir_downsample_2x(&t[0]),
            &|t| reference::fir_downsample_2x(&t[0]),
        ),
        ("fir up", &|t| ddpm_kernels::fir_upsample_2x(&t[0]), &|t| {
            reference::fir_upsample_2x(&t[0])
        }),
    ];
    for shape in [(1, 1, 2, 2), (1, 3, 8, 6), (2, 17, 6, 14), (5, 33, 2, 4)] {
        for (name, fast, slow) in ops {
            check(name, fast, slow, &[numbers(shape, 1)]);
        }
    }
    for (name, fast, _) in ops {
        check_alone(name, fast, &numbers((5, 33, 6, 4), 1));
    }
}

#[test]
fn an_image_does_not_know_its_batch() {
    let x = numbers((5, 33, 7, 5), 1);
    for (stride, groups) in [(1, 1), (2, 1), (1, 3)] {
        let conv = Conv2d {
            groups,
            ..Conv2d::new(stride, Padding::same(1))
        };
        let (weight, bias) = (numbers((18, 33 / groups, 3, 3), 2), numbers(18, 3));
        let (weight, bias) = (here(&weight), here(&bias));
        let op = |t: &[Tensor]| ddpm_kernels::conv2d(&t[0], &weight, Some(&bias), conv);
        check_alone(&format!("{conv:?}"), &op, &x);
    }
    let (gamma, beta) = (here(&numbers(33, 2)), here(&numbers(33, 3)));
    let norm =
        |t: &[Tensor]| ddpm_kernels::group_norm(&t[0], 3, &gamma, &beta, 1e-5, Activation::Silu);
    check_alone("group_norm", &norm, &x);
    let weight = here(&numbers((17, 33), 2));
    let linear = |t: &[Tensor]| ddpm_kernels::linear(&t[0], &weight, None);
    check_alone("linear", &linear, &numbers((5, 35, 33), 1));
    let attend = |t: &[Tensor]| ddpm_kernels::attention(&t[0], &t[0], &t[0], 0.4);
    check_alone("attention", &attend, &numbers((5, 2, 61, 12), 1));
    check_alone("silu", &|t| ddpm_kernels::silu(&t[0]), &x);
    check_alone(
        "upsample",
        &|t| ddpm_kernels::upsample_nearest_2x(&t[0]),
        &x,
    );
}
