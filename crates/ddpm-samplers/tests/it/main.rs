//! Walks held to diffusers' numbers, to oracles with a known answer, and to what bad input gets.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails should panic where it failed"
)]

mod config;
mod diffusers;
mod golden;
mod levels;
mod oracles;
mod solvers;
mod walks;

use candle_core::{DType, Device, Tensor};
use ddpm_core::{NoiseSource, Prediction, Result, Schedule, Variance};
use ddpm_samplers::{
    AncestralSettings, Clip, DdimSettings, Manner, Process, Sampler, Step, StepVariance,
};
use ddpm_tests::device;

/// Unequal dimensions, so that a swapped axis is seen.
pub(crate) const SHAPE: (usize, usize, usize, usize) = (2, 3, 4, 6);

/// A formula over the flat index, as in the golden values' recipe.
pub(crate) fn formula(f: impl Fn(f64) -> f64) -> Tensor {
    let n = SHAPE.0 * SHAPE.1 * SHAPE.2 * SHAPE.3;
    let values: Vec<f32> = (0..n).map(|i| f(i as f64) as f32).collect();
    Tensor::from_vec(values, SHAPE, &device()).unwrap()
}

pub(crate) fn start() -> Tensor {
    formula(|i| (0.7 * i + 0.3).sin() * 1.4)
}

/// The golden recipe's noise; a formula needs no seed.
pub(crate) struct Waves;

impl NoiseSource for Waves {
    fn draw(&mut self, draw: usize, _: &Tensor) -> Result<Tensor> {
        Ok(formula(|i| (1.3 * i + 2.1 * draw as f64 + 0.5).sin() * 1.4))
    }
}

/// For walks that must not draw.
pub(crate) struct NoNoise;

impl NoiseSource for NoNoise {
    fn draw(&mut self, draw: usize, _: &Tensor) -> Result<Tensor> {
        panic!("draw {draw} of a walk that needs no noise");
    }
}

pub(crate) fn process(schedule: Schedule, prediction: Prediction, clip: Clip) -> Process {
    Process {
        schedule,
        prediction,
        clip,
    }
}

pub(crate) fn linear(steps: usize) -> Schedule {
    Schedule::linear(steps, 1e-4, 0.02).unwrap()
}

/// A sampler that works on steps, not yet on any.
#[derive(Clone, Debug)]
pub(crate) enum OnSteps {
    Ancestral(Variance),
    Ddim(DdimSettings),
}

impl OnSteps {
    pub(crate) fn of(&self, process: &Process) -> Sampler {
        match self {
            OnSteps::Ancestral(variance) => {
                let settings = AncestralSettings {
                    variance: StepVariance::Fixed(*variance),
                    manner: Manner::Paper,
                };
                Sampler::Ancestral(process.clone(), settings)
            }
            OnSteps::Ddim(settings) => Sampler::Ddim(process.clone(), settings.clone()),
        }
    }
}

/// Runs a walk, checks its promised length and order, and returns its last step.
#[track_caller]
pub(crate) fn last(walk: impl ExactSizeIterator<Item = ddpm_samplers::Result<Step>>) -> Step {
    let promised = walk.len();
    let steps: Vec<Step> = walk.map(|step| step.unwrap()).collect();
    assert_eq!(steps.len(), promised);
    steps.into_iter().next_back().unwrap()
}

pub(crate) fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_device(&Device::Cpu)
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
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
pub(crate) fn fails<T>(result: ddpm_samplers::Result<T>, message: &str) {
    match result {
        Ok(_) => panic!("no error, expected: {message}"),
        Err(error) => assert_eq!(error.to_string(), message),
    }
}
