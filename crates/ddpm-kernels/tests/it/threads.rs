//! The same bits on any number of threads; of the CPU, whatever the device of the tests.

use candle_core::{DType, Result, Tensor};
use ddpm_kernels::{Activation, AdamW, Conv2d, Padding};

use crate::support::{Op, bits, numbers, output_and_gradients};

const SAME: Conv2d = Conv2d::new(1, Padding::same(1));
const DOWN: Conv2d = Conv2d::new(2, Padding::DDPM_DOWN);

fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(work)
}

#[track_caller]
fn check(op: impl Fn(&[Tensor]) -> Result<Tensor> + Sync, inputs: &[Tensor]) {
    let run = |threads| {
        on_threads(threads, || {
            let (y, gradients) = output_and_gradients(&op as Op, inputs, DType::F32);
            (bits(&y), gradients.iter().map(bits).collect::<Vec<_>>())
        })
    };
    let once = run(1);
    assert!(once == run(2), "2 threads differ from 1");
    assert!(once == run(7), "7 threads differ from 1");
}

#[test]
fn operations_give_the_same_bits() {
    let x = numbers((9, 40, 13, 11), 1);
    check(
        |t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), SAME),
        &[x.clone(), numbers((24, 40, 3, 3), 2), numbers(24, 3)],
    );
    check(
        |t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), DOWN),
        &[x.clone(), numbers((24, 40, 3, 3), 2), numbers(24, 3)],
    );
    check(
        |t| ddpm_kernels::group_norm(&t[0], 8, &t[1], &t[2], 1e-6, Activation::Silu),
        &[x.clone(), numbers(40, 2), numbers(40, 3)],
    );
    check(|t| ddpm_kernels::silu(&t[0]), std::slice::from_ref(&x));
    check(
        |t| ddpm_kernels::upsample_nearest_2x(&t[0]),
        std::slice::from_ref(&x),
    );
    check(
        |t| ddpm_kernels::linear(&t[0], &t[1], Some(&t[2])),
        &[
            numbers((2500, 40), 1),
            numbers((150, 40), 2),
            numbers(150, 3),
        ],
    );
    let even = numbers((9, 40, 14, 10), 1);
    for op in [
        ddpm_kernels::average_pool_2x,
        ddpm_kernels::fir_downsample_2x,
        ddpm_kernels::fir_upsample_2x,
        ddpm_kernels::relu,
        ddpm_kernels::gelu,
        ddpm_kernels::mish,
    ] {
        check(|t| op(&t[0]), std::slice::from_ref(&even));
    }
    let qkv = [
        numbers((3, 2, 200, 16), 1),
        numbers((3, 2, 200, 16), 2),
        numbers((3, 2, 200, 16), 3),
    ];
    check(|t| ddpm_kernels::attention(&t[0], &t[1], &t[2], 0.25), &qkv);
}

#[test]
fn training_steps_give_the_same_bits() {
    let run = |threads| {
        on_threads(threads, || {
            let [p, m, g] = [1, 2, 3].map(|seed| numbers(100_003, seed));
            let v = numbers(100_003, 4).sqr().unwrap();
            let adamw = AdamW {
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.01,
                step: 5,
            };
            ddpm_kernels::scale_in_place(&g, 0.7).unwrap();
            ddpm_kernels::adamw_step(&p, &m, &v, &g, &adamw).unwrap();
            ddpm_kernels::ema_update(&m, &p, 0.99).unwrap();
            (
                bits(&p),
                bits(&m),
                bits(&v),
                ddpm_kernels::sum_of_squares(&p).unwrap().to_bits(),
            )
        })
    };
    let once = run(1);
    assert!(once == run(2) && once == run(7));
}
