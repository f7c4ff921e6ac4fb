//! What changes parameters in place: tensor by tensor on the CPU, all tensors of a step on the device of the tests.

use candle_core::{DType, Device, Tensor, Var};
use ddpm_kernels::{
    AdamW, Averaged, adamw_step, ema_update, optimise_tensors, reference, scale_in_place,
    sum_of_squares,
};

use ddpm_tests::{here, tolerance};

use crate::support::{all_here, assert_close, numbers, values};

#[test]
fn the_average_moves_and_the_parameter_does_not() {
    let (ema, p) = (
        Var::from_tensor(&numbers((3, 5), 1)).unwrap(),
        Var::from_tensor(&numbers((3, 5), 2)).unwrap(),
    );
    let (before, p_before) = (ema.as_tensor().copy().unwrap(), values(&p));
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    ema_update(&ema, &p, 0.9).unwrap();
    assert_close(
        "ema",
        &ema,
        &reference::ema_update(&wide(&before), &wide(&p), 0.9).unwrap(),
        2e-7,
    );
    assert_eq!(values(&p), p_before);
    ema_update(&ema, &p, 0.0).unwrap();
    assert_eq!(values(&ema), p_before);
}

#[test]
fn an_average_that_has_arrived_stays() {
    let p = numbers((3, 5), 1);
    let ema = p.copy().unwrap();
    for _ in 0..100 {
        ema_update(&ema, &p, 0.9999).unwrap();
    }
    assert_eq!(values(&ema), values(&p));
}

#[test]
fn squares_are_added_in_double_precision() {
    let x = here(&numbers((37, 1001), 1));
    let expected = reference::sum_of_squares(&x).unwrap();
    assert!((sum_of_squares(&x).unwrap() - expected).abs() <= 1e-13 * expected);
    assert_eq!(
        sum_of_squares(&x.t().unwrap().narrow(0, 0, 1).unwrap()).unwrap(),
        reference::sum_of_squares(&x.narrow(1, 0, 1).unwrap()).unwrap()
    );
    let many = Tensor::full(1f32, 1 << 25, x.device()).unwrap(); // beyond what f32 can count
    assert_eq!(sum_of_squares(&many).unwrap(), (1 << 25) as f64);
}

#[test]
fn a_part_of_a_tensor_is_scaled_alone() {
    let x = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
    scale_in_place(&x.narrow(0, 1, 1).unwrap(), 0.5).unwrap();
    assert_eq!(
        values(&x),
        [1., 1., 1., 1., 0.5, 0.5, 0.5, 0.5, 1., 1., 1., 1.]
    );
}

const ADAMW: AdamW = AdamW {
    learning_rate: 1e-2,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 3,
};

/// Parameters, moments (the second ones positive) and an average, on the CPU.
fn state() -> [Vec<Tensor>; 4] {
    let of = |seed: u64| vec![numbers((3, 5), seed), numbers(7, seed + 1)];
    let squares = of(5).iter().map(|v| v.sqr().unwrap()).collect();
    [of(1), of(3), squares, of(7)]
}

#[test]
fn a_step_by_tensors_clips_by_the_norm_of_all() {
    let [p, m, v, ema] = state().map(|tensors| all_here(&tensors));
    let [other_p, other_m, other_v, other_ema] = state();
    let g = [numbers((5, 3), 9).t().unwrap(), numbers(7, 10)]; // one is not contiguous
    let norm = g
        .iter()
        .map(|g| sum_of_squares(g).unwrap())
        .sum::<f64>()
        .sqrt();
    for (max_norm, factor) in [(0.0, 1.0), (100.0, 1.0), (0.5, 0.5 / (norm + 1e-6))] {
        let averages = [Averaged {
            decay: 0.9,
            tensors: &ema,
        }];
        let there = all_here(&g);
        let told = optimise_tensors((&p, &m, &v), &there, max_norm, &ADAMW, &averages).unwrap();
        let expected = Tensor::new(&[norm as f32, factor as f32], &Device::Cpu).unwrap();
        assert_close("told", &told, &expected, tolerance(0.0));
        for i in 0..2 {
            let scaled = (&g[i] * factor).unwrap();
            adamw_step(&other_p[i], &other_m[i], &other_v[i], &scaled, &ADAMW).unwrap();
            ema_update(&other_ema[i], &other_p[i], 0.9).unwrap();
            for (what, ran, expected) in [
                ("p", &p, &other_p),
                ("m", &m, &other_m),
                ("v", &v, &other_v),
                ("ema", &ema, &other_ema),
            ] {
                assert_close(what, &ran[i], &expected[i], tolerance(1e-6));
            }
        }
    }
}

#[test]
fn a_step_by_tensors_that_are_not_finite_changes_nothing() {
    let [p, m, v, ema] = state().map(|tensors| all_here(&tensors));
    let g = [
        here(&numbers((3, 5), 9)),
        here(&Tensor::full(f32::NAN, 7, &Device::Cpu).unwrap()),
    ];
    let averages = [Averaged {
        decay: 0.9,
        tensors: &ema,
    }];
    let told = optimise_tensors((&p, &m, &v), &g, 1.0, &ADAMW, &averages).unwrap();
    assert!(told.to_vec1::<f32>().unwrap()[0].is_nan());
    for (now, before) in [p, m, v, ema]
        .iter()
        .flatten()
        .zip(state().iter().flatten())
    {
        assert_eq!(values(now), values(before));
    }
}

#[test]
fn a_step_by_tensors_refuses_what_does_not_fit() {
    let [p, m, v, _] = state().map(|tensors| all_here(&tensors));
    let step = |g: &[Tensor]| optimise_tensors((&p, &m, &v), g, 1.0, &ADAMW, &[]);
    let first = |message: String| message.lines().next().map(str::to_owned);
    let short = first(step(&p[..1]).unwrap_err().to_string());
    assert_eq!(
        short.unwrap(),
        "optimise: the lists differ in length, expected 2 each"
    );
    let turned = [numbers((5, 3), 1), numbers(7, 2)].map(|g| here(&g));
    let turned = first(step(&turned).unwrap_err().to_string());
    assert_eq!(
        turned.unwrap(),
        "optimise: p has shape [3, 5] and gradient [5, 3], expected the same"
    );
}
