//! The mathematics of the paper, held to closed forms, identities and published values.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails should panic where it failed"
)]

mod forward;
mod likelihood;
mod loss;
mod prediction;
mod respacing;
mod schedule;

use candle_core::{Device, Tensor};
use ddpm_core::{Schedule, Timestep};
use ddpm_tests::device;

/// Unequal dimensions, so that a swapped axis is seen.
pub(crate) const SHAPE: (usize, usize, usize, usize) = (2, 3, 4, 6);

/// Numbers in [-1, 1] that no two formulas share.
pub(crate) fn wave(frequency: f64) -> Tensor {
    let n = SHAPE.0 * SHAPE.1 * SHAPE.2 * SHAPE.3;
    let values: Vec<f64> = (0..n).map(|i| (i as f64 * frequency + 0.3).sin()).collect();
    Tensor::from_vec(values, SHAPE, &device()).unwrap()
}

pub(crate) fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_device(&Device::Cpu)
        .unwrap()
        .to_dtype(candle_core::DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

pub(crate) fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &device()).unwrap()
}

#[track_caller]
pub(crate) fn close(got: f64, expected: f64, relative: f64) {
    assert!(
        (got - expected).abs() <= relative * expected.abs(),
        "got {got:e}, expected {expected:e}"
    );
}

#[track_caller]
pub(crate) fn same(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims());
    for (i, (got, expected)) in numbers(got).iter().zip(numbers(expected)).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance,
            "element {i}: got {got}, expected {expected}"
        );
    }
}

#[track_caller]
pub(crate) fn fails<T>(result: ddpm_core::Result<T>, message: &str) {
    match result {
        Ok(_) => panic!("no error, expected: {message}"),
        Err(error) => assert_eq!(error.to_string(), message),
    }
}

/// Every schedule that has a name, in several lengths.
pub(crate) fn every_schedule() -> Vec<(String, Schedule)> {
    let mut all = Vec::new();
    for steps in [1, 2, 3, 20, 50, 200, 999, 1000, 4000] {
        let mut add = |name: &str, schedule: ddpm_core::Result<Schedule>| {
            all.push((format!("{name} {steps}"), schedule.unwrap()));
        };
        add("linear", Schedule::linear(steps, 1e-4, 0.02));
        add(
            "scaled linear",
            Schedule::scaled_linear(steps, 0.00085, 0.012),
        );
        add("quadratic", Schedule::quadratic(steps, 1e-4, 0.02));
        add("cosine", Schedule::cosine(steps));
        add("sigmoid", Schedule::sigmoid(steps, 1e-4, 0.02));
        add("alpha-bar sigmoid", Schedule::alpha_bar_sigmoid(steps));
        add("laplace", Schedule::laplace(steps));
        add("constant", Schedule::constant(steps, 0.02));
        add("jsd", Schedule::jsd(steps));
        add("warm-up 10", Schedule::warm_up(steps, 1e-4, 0.02, 0.1));
        add("warm-up 50", Schedule::warm_up(steps, 1e-4, 0.02, 0.5));
        if steps >= 20 {
            add("linear scaled", Schedule::linear_scaled(steps));
        }
        if steps >= 2 {
            let linear = Schedule::linear(steps, 1e-4, 0.02).unwrap();
            add("zero terminal SNR", linear.rescaled_to_zero_terminal_snr());
            let cosine = Schedule::cosine(steps).unwrap();
            add(
                "cosine, zero terminal SNR",
                cosine.rescaled_to_zero_terminal_snr(),
            );
        }
    }
    all
}

pub(crate) fn linear() -> Schedule {
    Schedule::linear(1000, 1e-4, 0.02).unwrap()
}

pub(crate) fn zero_snr() -> Schedule {
    linear().rescaled_to_zero_terminal_snr().unwrap()
}

/// The steps t, one for each image.
pub(crate) fn at(schedule: &Schedule, t: [usize; 2]) -> [Timestep; 2] {
    t.map(|t| schedule.timestep(t).unwrap())
}
