//! Every operation on a CUDA device beside the CPU's: where DDPM_TEST_DEVICE is `cuda` or `cuda:N`.

use candle_core::{DType, Device, Result, Tensor};
use ddpm_kernels::{
    Activation, AdamW, Averaged, Conv2d, Padding, attention, average_pool_2x, concat_channels,
    conv2d, dropout, embedding, fir_downsample_2x, fir_upsample_2x, gelu, group_norm, linear, mish,
    optimise_tensors, relu, silu, upsample_nearest_2x,
};
use ddpm_random::Stream;

use crate::support::{Op, assert_close, bits, numbers, output_and_gradients};

/// The device asked for; nothing, and said, where it is no card.
#[allow(clippy::print_stdout)] // what is skipped
fn card() -> Option<Device> {
    let device = ddpm_tests::device();
    if !device.is_cuda() {
        println!("skipped: DDPM_TEST_DEVICE does not ask for `cuda`");
        return None;
    }
    Some(device)
}

/// Output and gradients on the card are those of the CPU, and the same bits when asked again.
#[track_caller]
fn check(what: &str, op: Op, inputs: &[Tensor]) {
    check_within(1e-5, what, op, inputs);
}

#[track_caller]
fn check_within(tolerance: f64, what: &str, op: Op, inputs: &[Tensor]) {
    let Some(card) = card() else { return };
    let there: Vec<Tensor> = inputs.iter().map(|x| x.to_device(&card).unwrap()).collect();
    let (y, gradients) = output_and_gradients(op, &there, DType::F32);
    let (again, gradients_again) = output_and_gradients(op, &there, DType::F32);
    let (expected, expected_gradients) = output_and_gradients(op, inputs, DType::F32);
    let all = |y: &Tensor, gradients: &[Tensor]| -> Vec<Tensor> {
        let all = [y].into_iter().chain(gradients);
        all.map(|x| x.to_device(&Device::Cpu).unwrap()).collect()
    };
    let expected = all(&expected, &expected_gradients);
    let (ran, again) = (all(&y, &gradients), all(&again, &gradients_again));
    for (i, ((ran, again), expected)) in ran.iter().zip(&again).zip(&expected).enumerate() {
        assert_close(&format!("{what}, {i}"), ran, expected, tolerance);
        assert_eq!(bits(ran), bits(again), "{what}, {i}");
    }
}

#[test]
fn convolutions() {
    let x = || numbers((3, 6, 10, 14), 1);
    for (conv, size) in [
        (Conv2d::new(1, Padding::same(1)), 3),
        (Conv2d::new(2, Padding::DDPM_DOWN), 3),
        (Conv2d::new(1, Padding::ZERO), 1),
    ] {
        let weight = numbers((8, 6, size, size), 2);
        for bias in [numbers(8, 3), numbers((3, 8), 4)] {
            let op = |t: &[Tensor]| conv2d(&t[0], &t[1], Some(&t[2]), conv);
            check(&format!("{conv:?}"), &op, &[x(), weight.clone(), bias]);
        }
    }
    let grouped = Conv2d {
        groups: 3,
        ..Conv2d::new(1, Padding::same(1))
    };
    let op = |t: &[Tensor]| conv2d(&t[0], &t[1], None, grouped);
    check("groups", &op, &[x(), numbers((9, 2, 3, 3), 2)]);
}

#[test]
fn normalisations() {
    for activation in [Activation::None, Activation::Silu] {
        let op = |t: &[Tensor]| group_norm(&t[0], 4, &t[1], &t[2], 1e-5, activation);
        let x = numbers((3, 12, 9, 5), 1);
        check(
            "one affine map",
            &op,
            &[x.clone(), numbers(12, 2), numbers(12, 3)],
        );
        let own = [x, numbers((3, 12), 2), numbers((3, 12), 3)];
        check("one of each image", &op, &own);
    }
}

#[test]
fn attention_of_any_width() {
    for (size, value_size) in [(8, 8), (64, 64), (300, 20), (512, 512), (900, 900)] {
        let op = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], 1.0 / (size as f64).sqrt());
        let inputs = [
            numbers((2, 2, 37, size), 1),
            numbers((2, 2, 50, size), 2),
            numbers((2, 2, 50, value_size), 3),
        ];
        check(&format!("{size} and {value_size} columns"), &op, &inputs);
    }
}

type Unary = fn(&Tensor) -> Result<Tensor>;

#[test]
fn the_others() {
    let x = || numbers((2, 3, 8, 6), 1);
    let unary: [(&str, Unary); 8] = [
        ("silu", silu),
        ("relu", relu),
        ("gelu", gelu),
        ("mish", mish),
        ("upsample_nearest_2x", upsample_nearest_2x),
        ("average_pool_2x", average_pool_2x),
        ("fir_downsample_2x", fir_downsample_2x),
        ("fir_upsample_2x", fir_upsample_2x),
    ];
    for (name, function) in unary {
        check(name, &|t| function(&t[0]), &[x()]);
    }
    let op = |t: &[Tensor]| linear(&t[0], &t[1], Some(&t[2]));
    let inputs = [numbers((2, 7, 5), 1), numbers((9, 5), 2), numbers(9, 3)];
    check("linear", &op, &inputs);
    let op = |t: &[Tensor]| concat_channels(&t[0], &t[1]);
    check("concat_channels", &op, &[x(), numbers((2, 5, 8, 6), 2)]);
    let op = |t: &[Tensor]| ddpm_kernels::add(&t[0], &t[1]);
    check("add", &op, &[x(), numbers((2, 3, 8, 6), 2)]);
    let op = |t: &[Tensor]| embedding(&t[0], &[3, 0, 3]);
    check("embedding", &op, &[numbers((4, 5), 1)]);
}

/// Images and weights are rounded to eight bits on the card, and so are results.
#[test]
fn stored_in_bf16() {
    let stored = |x: &Tensor| match x.device().is_cuda() {
        true => x.to_dtype(DType::BF16),
        false => Ok(x.clone()),
    };
    let conv = Conv2d::new(1, Padding::same(1));
    let op = |t: &[Tensor]| {
        conv2d(&stored(&t[0])?, &stored(&t[1])?, Some(&t[2]), conv)?.to_dtype(DType::F32)
    };
    let x = || numbers((3, 8, 10, 14), 1);
    let inputs = [x(), numbers((16, 8, 3, 3), 2), numbers(16, 3)];
    check_within(2e-2, "conv2d", &op, &inputs);
    let op = |t: &[Tensor]| {
        group_norm(&stored(&t[0])?, 4, &t[1], &t[2], 1e-5, Activation::Silu)?.to_dtype(DType::F32)
    };
    check_within(
        2e-2,
        "group_norm",
        &op,
        &[x(), numbers(8, 2), numbers(8, 3)],
    );
    for size in [8, 20, 24, 64, 128, 256, 512] {
        let op = |t: &[Tensor]| {
            let [q, k, v] = [stored(&t[0])?, stored(&t[1])?, stored(&t[2])?];
            attention(&q, &k, &v, 1.0 / (size as f64).sqrt())?.to_dtype(DType::F32)
        };
        let keys = |seed| numbers((2, 2, 150, size), seed);
        let inputs = [numbers((2, 2, 37, size), 1), keys(2), keys(3)];
        check_within(2e-2, &format!("attention of {size} columns"), &op, &inputs);
    }
    let op =
        |t: &[Tensor]| linear(&stored(&t[0])?, &stored(&t[1])?, Some(&t[2]))?.to_dtype(DType::F32);
    let inputs = [numbers((2, 7, 24), 1), numbers((16, 24), 2), numbers(16, 3)];
    check_within(2e-2, "linear", &op, &inputs);
}

#[test]
fn masks_are_those_of_the_cpu() {
    let Some(card) = card() else { return };
    let (seed, images, step, rate) = (7, [5u64, 1 << 40], 11, 0.3);
    let x = numbers((2, 3, 17, 5), 1);
    let mut mask = Vec::new();
    let mut words = Vec::new();
    for image in images {
        let mut uniform = vec![0f32; 255];
        ddpm_random::uniform_into(seed, Stream::Dropout, image, step, &mut uniform).unwrap();
        mask.extend(uniform.iter().map(|&u| u8::from(f64::from(u) >= rate)));
        words.push(ddpm_random::philox_words(seed, Stream::Dropout, image, step).unwrap());
    }
    let counters: Vec<[u32; 3]> = words.iter().map(|(_, counter)| *counter).collect();
    let mask = Tensor::from_vec(mask, x.shape(), &Device::Cpu).unwrap();
    let expected = dropout(&x, &mask, rate).unwrap();
    let there = x.to_device(&card).unwrap();
    let drawn = ddpm_kernels::cuda::dropout_drawn(&there, words[0].0, &counters, rate).unwrap();
    assert_eq!(
        bits(&drawn.to_device(&Device::Cpu).unwrap()),
        bits(&expected)
    );
}

#[test]
fn a_step_of_the_optimiser() {
    let Some(card) = card() else { return };
    let adamw = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 3,
    };
    let run = |device: &Device| -> Vec<Tensor> {
        let of = |seed: u64| -> Vec<Tensor> {
            let all = [numbers((200, 101), seed), numbers(7, seed + 1)];
            all.map(|x| x.to_device(device).unwrap()).to_vec()
        };
        let (p, m, g, ema) = (of(1), of(3), of(5), of(7));
        let v: Vec<Tensor> = of(9).iter().map(|v| v.sqr().unwrap()).collect();
        let averages = [Averaged {
            decay: 0.9,
            tensors: &ema,
        }];
        let told = optimise_tensors((&p, &m, &v), &g, 0.5, &adamw, &averages).unwrap();
        let all = [p, m, v, ema, vec![told]].concat();
        all.iter()
            .map(|x| x.to_device(&Device::Cpu).unwrap())
            .collect()
    };
    for (i, (ran, expected)) in run(&card).iter().zip(&run(&Device::Cpu)).enumerate() {
        assert_close(&format!("part {i}"), ran, expected, 1e-6);
    }
}
