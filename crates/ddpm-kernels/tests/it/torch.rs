//! PyTorch's own values, made by `tests/golden/kernels.py`, on the device of the tests.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::{Activation, AdamW, Conv2d, Padding, optimise_tensors};
use ddpm_tests::{here, tolerance};

use crate::support::{Op, assert_close};

/// sin(0.37 i + phase), as the recipe has it.
fn wave(shape: &[usize], phase: f64) -> Tensor {
    let data: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|i| (0.37 * i as f64 + phase).sin() as f32)
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn golden(name: &str) -> Tensor {
    let text = include_str!("../golden/kernels.txt");
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(name))
        .expect(name);
    let mut words = line.split(' ').skip(1);
    let shape: Vec<usize> = words
        .next()
        .unwrap()
        .split('x')
        .map(|n| n.parse().unwrap())
        .collect();
    Tensor::from_vec(
        words.map(|x| x.parse::<f64>().unwrap()).collect::<Vec<_>>(),
        shape,
        &Device::Cpu,
    )
    .unwrap()
}

/// Some hundreds of roundings of 2^-24, and inputs rounded to f32.
const TOLERANCE: f64 = 2e-6;

#[track_caller]
fn check(name: &str, op: Op, inputs: &[Tensor]) {
    let inputs: Vec<candle_core::Var> = inputs
        .iter()
        .map(|x| candle_core::Var::from_tensor(&here(x)).unwrap())
        .collect();
    let tensors: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().clone()).collect();
    let y = op(&tensors).unwrap();
    assert_close(
        name,
        &y,
        &golden(&format!("{name}.y")),
        tolerance(TOLERANCE),
    );
    let weights = here(&wave(y.dims(), 0.5));
    let gradients = (y * weights)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    for (i, input) in inputs.iter().enumerate() {
        let name = format!("{name}.d{i}");
        assert_close(
            &name,
            gradients.get(input).unwrap(),
            &golden(&name),
            tolerance(TOLERANCE),
        );
    }
}

#[test]
fn a_convolution_of_stride_2_padded_below_and_right() {
    let conv = Conv2d::new(2, Padding::DDPM_DOWN);
    let inputs = [
        wave(&[2, 3, 7, 5], 0.1),
        wave(&[4, 3, 3, 3], 0.2),
        wave(&[4], 0.3),
    ];
    check(
        "conv",
        &|t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), conv),
        &inputs,
    );
}

#[test]
fn group_norm_with_silu() {
    let inputs = [wave(&[2, 6, 3, 2], 0.1), wave(&[6], 0.2), wave(&[6], 0.3)];
    check(
        "norm",
        &|t| ddpm_kernels::group_norm(&t[0], 3, &t[1], &t[2], 1e-5, Activation::Silu),
        &inputs,
    );
}

#[test]
fn attention() {
    let inputs = [
        wave(&[2, 2, 5, 3], 0.1),
        wave(&[2, 2, 4, 3], 0.2),
        wave(&[2, 2, 4, 2], 0.3),
    ];
    check(
        "attention",
        &|t| ddpm_kernels::attention(&t[0], &t[1], &t[2], 0.7),
        &inputs,
    );
}

#[test]
fn what_other_blocks_need() {
    let x = [wave(&[2, 3, 4, 6], 0.1)];
    check("pool", &|t| ddpm_kernels::average_pool_2x(&t[0]), &x);
    check("fir_down", &|t| ddpm_kernels::fir_downsample_2x(&t[0]), &x);
    check("fir_up", &|t| ddpm_kernels::fir_upsample_2x(&t[0]), &x);
    check("relu", &|t| ddpm_kernels::relu(&(&t[0] * 4.0)?), &x);
    check("gelu", &|t| ddpm_kernels::gelu(&(&t[0] * 4.0)?), &x);
    check("mish", &|t| ddpm_kernels::mish(&(&t[0] * 4.0)?), &x);
    let table = [wave(&[5, 3], 0.1)];
    let rows: Op = &|t| ddpm_kernels::embedding(&t[0], &[4, 0, 4, 2]);
    check("embedding", rows, &table);
}

/// Tensor by tensor and by reference on the CPU, and all tensors of a step at once on the device of the tests.
#[test]
fn three_steps_of_adam_with_and_without_decay() {
    for (name, weight_decay) in [("adam", 0.0), ("adamw", 0.1)] {
        let p = wave(&[7], 0.1);
        let (m, v) = (p.zeros_like().unwrap(), p.zeros_like().unwrap());
        let [p_here, m_here, v_here] = [&p, &m, &v].map(|x| [here(&x.copy().unwrap())]);
        let mut by_reference = (
            p.to_dtype(DType::F64).unwrap(),
            m.to_dtype(DType::F64).unwrap(),
            v.to_dtype(DType::F64).unwrap(),
        );
        for step in 1..=3 {
            let adamw = AdamW {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-3,
                weight_decay,
                step,
            };
            let g = wave(&[7], 0.2 + (step - 1) as f64);
            ddpm_kernels::adamw_step(&p, &m, &v, &g, &adamw).unwrap();
            optimise_tensors((&p_here, &m_here, &v_here), &[here(&g)], 0.0, &adamw, &[]).unwrap();
            let (p, m, v) = by_reference;
            by_reference = ddpm_kernels::reference::adamw_step(
                &p,
                &m,
                &v,
                &g.to_dtype(DType::F64).unwrap(),
                &adamw,
            )
            .unwrap();
        }
        for (part, actual, [on_device], reference) in [
            ("p", p, p_here, by_reference.0),
            ("m", m, m_here, by_reference.1),
            ("v", v, v_here, by_reference.2),
        ] {
            let name = format!("{name}.{part}");
            assert_close(&name, &actual, &golden(&name), 2e-7);
            assert_close(&name, &on_device, &golden(&name), tolerance(2e-7));
            assert_close(&name, &reference, &golden(&name), 2e-7);
        }
    }
}
