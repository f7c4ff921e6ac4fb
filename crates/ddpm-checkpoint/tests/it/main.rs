//! Models and checkpoints on disk: what is written is read back, and what is broken is named.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops by panicking, and says what it skips"
)]

mod broken;
mod disk;
mod foreign;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
mod hub_cache;
mod k_diffusion;
mod layouts;
mod lucidrains;
mod round_trip;
mod run_folder;
mod torch_files;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use ddpm_checkpoint::{Pipeline, TrainState};
use ddpm_core::{Prediction, Variance};
use ddpm_samplers::{Betas, Clip, SchedulerConfig};
use ddpm_unet::{Initialisation, SampleSize, UNetConfig, UNetSettings, initialise};

/// Two levels, attention in the second, 3x4x6.
fn tiny_unet() -> UNetConfig {
    let settings = UNetSettings {
        sample_size: Some(SampleSize::Rectangle(4, 6)),
        norm_num_groups: Some(2),
        layers_per_block: 1,
        ..UNetSettings::ho()
    };
    UNetConfig::new(settings.with_levels(&[(4, false), (8, true)])).unwrap()
}

fn tiny_scheduler() -> SchedulerConfig {
    let betas = Betas::Linear {
        start: 1e-4,
        end: 0.02,
    };
    SchedulerConfig::ddpm(
        betas,
        100,
        Prediction::Noise,
        Variance::FixedLarge,
        Clip::Range(1.0),
    )
    .unwrap()
}

/// Writes a model, and holds what is read again to it; the folder.
#[track_caller]
fn written_and_read(pipeline: &Pipeline) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pipeline.save(&folder.path().join("model")).unwrap();
    let read = Pipeline::load(&folder.path().join("model")).unwrap();
    assert_eq!(
        (&read.unet, &read.scheduler),
        (&pipeline.unet, &pipeline.scheduler)
    );
    assert_same(&read.weights, &pipeline.weights);
    folder
}

/// What is found differs by less than `within` of the largest that is expected, which is not little.
#[track_caller]
fn close(found: &Tensor, expected: &Tensor, within: f32) {
    let largest = |x: &Tensor| {
        let x = x.abs().unwrap().flatten_all().unwrap();
        x.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    let (off, size) = (largest(&(found - expected).unwrap()), largest(expected));
    assert!(off < within * size && size > 0.1, "{off} of {size}");
}

fn tiny_pipeline(seed: u64) -> Pipeline {
    let unet = tiny_unet();
    let weights = initialise(&unet, Initialisation::PyTorch, seed, &Device::Cpu).unwrap();
    Pipeline::new(unet, weights.into_iter().collect(), tiny_scheduler())
}

/// Raw weights, moments and two averages, all different.
fn tiny_state() -> TrainState {
    let mut tensors = Vec::new();
    for (seed, prefix) in [
        (1, "raw"),
        (2, "adam.m"),
        (3, "adam.v"),
        (4, "ema.0.9"),
        (5, "ema.0.999"),
    ] {
        let part = tiny_pipeline(seed).weights;
        tensors.extend(
            part.into_iter()
                .map(|(name, tensor)| (format!("{prefix}.{name}"), tensor)),
        );
    }
    let counters = [("step", "1000"), ("images", "64000")]
        .map(|(key, text)| (key.to_owned(), text.to_owned()));
    TrainState {
        tensors,
        counters: BTreeMap::from(counters),
    }
}

const RUN_TOML: &str = "[run]\nprogram = \"test\"\n";

#[track_caller]
fn assert_same(found: &[(String, Tensor)], expected: &[(String, Tensor)]) {
    assert_eq!(found.len(), expected.len());
    for ((name, found), (expected_name, expected)) in found.iter().zip(expected) {
        assert_eq!(name, expected_name);
        assert_eq!(found.dims(), expected.dims(), "{name}");
        assert_eq!(bits(found), bits(expected), "{name}");
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

/// The message of an error with `folder` written as FOLDER.
#[track_caller]
fn message<T>(result: ddpm_checkpoint::Result<T>, folder: &std::path::Path) -> String {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error
            .to_string()
            .replace(&folder.display().to_string(), "FOLDER"),
    }
}
