//! k-diffusion's networks against PyTorch's answers, walks of its samplers, and what must be said of its files.
//!
//! `tests/golden/k_diffusion.py` states the network anew and made the files; `k_diffusion_package.py` held the original
//! program to them.

use std::path::Path;

use candle_core::Tensor;
use ddpm_checkpoint::{Arch, ForeignFile, Layout, Pipeline, TensorFile, Weights, write_tensors};
use ddpm_core::NoiseSource;
use ddpm_samplers::{Choice, SamplerKind, SchedulerClass};
use ddpm_unet::{KDiffusionSettings, Network, NetworkConfig, SampleSize};

use crate::layouts::golden;
use crate::{close, message, written_and_read};

#[allow(clippy::result_large_err, reason = "it is the library's")]
fn convert(path: &Path, said: &[&str], weights: &Weights) -> ddpm_checkpoint::Result<Pipeline> {
    ForeignFile::open(path)?.convert(&Arch::new(said)?, weights)
}

fn known(answers: &str, name: &str) -> Tensor {
    let file = golden(&format!("{answers}.answers.safetensors"));
    TensorFile::open(&file).unwrap().read_f32(name).unwrap()
}

/// Compares an answer of the converted network, and of the folder it is written as, with PyTorch's.
#[track_caller]
fn check(pipeline: &Pipeline, answers: &str) {
    let noise = known(answers, "noise").to_vec1::<f32>().unwrap();
    let noise: Vec<f64> = noise.into_iter().map(f64::from).collect();
    let network = Network::new(&pipeline.unet, &pipeline.weights).unwrap();
    let found = network.forward(&known(answers, "x"), &noise).unwrap();
    close(&found, &known(answers, "y"), 2e-5);

    let folder = written_and_read(pipeline);
    let model = folder.path().join("model");
    assert!(model.join("not-a-diffusers-pipeline.md").is_file());
}

fn settings(pipeline: &Pipeline) -> &KDiffusionSettings {
    match &pipeline.unet {
        NetworkConfig::KDiffusion(config) => config.settings(),
        other => panic!("{other}"),
    }
}

struct NoNoise;

impl NoiseSource for NoNoise {
    fn draw(&mut self, draw: usize, _: &Tensor) -> ddpm_core::Result<Tensor> {
        panic!("draw {draw} of a walk that needs no noise");
    }
}

#[test]
fn a_training_checkpoint_says_all_itself() {
    let path = golden("k_diffusion.pt");
    assert_eq!(
        ForeignFile::open(&path).unwrap().layout(),
        Layout::KDiffusion
    );
    let pipeline = convert(&path, &[], &Weights::Ema).unwrap();
    check(&pipeline, "k_diffusion");
    let raw = convert(&path, &[], &Weights::Raw).unwrap();
    check(&raw, "k_diffusion_raw");
    let expected = KDiffusionSettings {
        sample_size: Some(SampleSize::Square(8)),
        input_channels: 3,
        patch_size: 1,
        has_variance: false,
        mapping_out: 8,
        outer_channels: 4,
        channels: vec![4, 8],
        depths: vec![1, 2],
        self_attn_depths: vec![false, true],
    };
    assert_eq!(settings(&pipeline), &expected);
    let json = pipeline.scheduler.to_json();
    for part in [
        "\"sigma_data\": 0.5",
        "\"sigma_min\": 0.02",
        "\"sigma_max\": 40.0",
    ] {
        assert!(json.contains(part), "{json}");
    }
}

/// By Heun's method, and by the sampler that the folder names, which k-diffusion's demonstrations have.
#[test]
fn walks_end_where_k_diffusions_do() {
    let pipeline = convert(&golden("k_diffusion.pt"), &[], &Weights::Ema).unwrap();
    let network = Network::new(&pipeline.unet, &pipeline.weights).unwrap();
    let scheduler = &pipeline.scheduler;
    assert_eq!(scheduler.class(), SchedulerClass::EdmDpmSolverMultistep);
    let heun = scheduler.with_kind(SamplerKind::Heun).unwrap();
    for (name, scheduler) in [("dpm", scheduler), ("heun", &heun)] {
        let sampler = scheduler.sampler(&Choice::steps(5)).unwrap();
        let start = known("k_diffusion", "start");
        let mut noise = NoNoise;
        let walk = sampler.walk(&network, &start, &mut noise);
        let end = walk.last().unwrap().unwrap().x;
        close(&end, &known("k_diffusion", name), 1e-4);
    }
}

#[test]
fn a_slim_checkpoint_has_its_configuration_beside_its_tensors() {
    let path = golden("k_diffusion_slim.safetensors");
    let pipeline = convert(&path, &[], &Weights::Ema).unwrap();
    check(&pipeline, "k_diffusion_slim");
    // The first stage was skipped, and is not in the folder.
    let expected = KDiffusionSettings {
        sample_size: Some(SampleSize::Square(8)),
        input_channels: 1,
        patch_size: 2,
        has_variance: true,
        mapping_out: 6,
        outer_channels: 4,
        channels: vec![6, 8],
        depths: vec![2, 1],
        self_attn_depths: vec![false, true],
    };
    assert_eq!(settings(&pipeline), &expected);
    // Another size is as good, as are other ends of the levels.
    let said = ["image_size=16x8", "sigma_min=0.1"];
    let other = convert(&path, &said, &Weights::Ema).unwrap();
    assert_eq!(
        settings(&other).sample_size,
        Some(SampleSize::Rectangle(16, 8))
    );
    assert!(other.scheduler.to_json().contains("\"sigma_min\": 0.1"));
    let refused = |said: &[&str]| message(convert(&path, said, &Weights::Ema), &golden(""));
    assert_eq!(
        refused(&["patch_size=1"]).replace("FOLDER", ""),
        "--arch: `patch_size` is given as 1, but in k_diffusion_slim.safetensors it is 2"
    );
    assert_eq!(
        refused(&["sigma_data=1"]).replace("FOLDER", ""),
        "--arch: `sigma_data` is given as 1, but in k_diffusion_slim.safetensors it is 0.7"
    );
    assert_eq!(
        refused(&["skip_stages=0"]).replace("FOLDER", ""),
        "--arch: `skip_stages` is given as 0, but in k_diffusion_slim.safetensors it is 1"
    );
}

#[test]
fn a_bare_network_is_told_its_images_and_levels() {
    let path = golden("k_diffusion_bare.pt");
    let text = message(convert(&path, &[], &Weights::Ema), &golden(""));
    assert_eq!(
        text.replace("FOLDER", ""),
        "k_diffusion_bare.pt holds an image_v1 network of k-diffusion, which does not say image_size (the images' side, N or \
         HxW), sigma_data (the deviation of the images' numbers), sigma_min (the least level of noise), sigma_max (the \
         largest level of noise); give --arch image_size=N sigma_data=X sigma_min=X sigma_max=X"
    );
    let said = [
        "image_size=4x6",
        "sigma_data=1",
        "sigma_min=0.01",
        "sigma_max=80",
        "input_channels=1",
    ];
    let pipeline = convert(&path, &said, &Weights::Ema).unwrap();
    check(&pipeline, "k_diffusion_bare");
    let vain = [&said[..4], &["num_heads=2"]].concat();
    let text = message(convert(&path, &vain, &Weights::Ema), &golden(""));
    assert!(text.contains("`num_heads` would be ignored"), "{text}");
    let wrong = [&said[..3], &["sigma_max=-80"]].concat();
    let text = message(convert(&path, &wrong, &Weights::Ema), &golden(""));
    assert!(
        text.contains("`sigma_max` is `-80`, expected a number above 0"),
        "{text}"
    );
}

/// The bare network with other tensors, as a safetensors file.
fn altered(folder: &Path, remove: &str, add: &[(&str, &[usize])], metadata: &str) -> String {
    let pipeline = convert(
        &golden("k_diffusion_bare.pt"),
        &["image_size=4", "sigma_data=1", "sigma_min=1", "sigma_max=8"],
        &Weights::Ema,
    );
    let mut tensors = pipeline.unwrap().weights;
    tensors.retain(|(name, _)| name != remove);
    for (name, shape) in add {
        let zeros = Tensor::zeros(*shape, candle_core::DType::F32, &candle_core::Device::Cpu);
        tensors.push(((*name).to_owned(), zeros.unwrap()));
    }
    let path = folder.join("k.safetensors");
    let config = [("config".to_owned(), metadata.to_owned())];
    write_tensors(&path, "a test", &tensors, &config.into_iter().collect()).unwrap();
    let said = ["sigma_data=1", "sigma_min=0.01", "sigma_max=80"];
    let text = message(convert(&path, &said, &Weights::Ema), folder);
    std::fs::remove_file(&path).unwrap();
    text
}

#[test]
fn what_is_not_read_is_refused_by_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let check = |remove: &str, add: &[(&str, &[usize])], config: &str, expected: &str| {
        let text = altered(folder.path(), remove, add, config);
        assert!(text.contains(expected), "{text}");
    };
    check(
        "",
        &[("u_net.d_blocks.1.2.kv_proj.weight", &[12, 5])],
        "",
        "it has cross-attention (cross_cond_dim)",
    );
    check(
        "",
        &[("mapping_cond.weight", &[4, 12])],
        "",
        "it is told 3 numbers (mapping_cond_dim) besides the 9 of augmentations",
    );
    check(
        "proj_in.weight",
        &[("proj_in.weight", &[4, 3, 1, 1])],
        "",
        "it takes 3 channels and gives 1: it is told another image besides (unet_cond_dim)",
    );
    check(
        "",
        &[],
        r#"{"model": {"type": "image_transformer_v2"}}"#,
        "its configuration says that it is of type `image_transformer_v2`, expected `image_v1`",
    );
    // Without its filters nobody knows where the network halves.
    check(
        "",
        &[],
        "",
        "skip_stages (stages that its training skipped)",
    );
    check("", &[], r#"{"model": []}"#, "give --arch");
    let lone = folder.path().join("transformer.safetensors");
    let zeros = Tensor::zeros((4, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let tensors = [("aug_in_proj.weight".to_owned(), zeros)];
    write_tensors(&lone, "a test", &tensors, &Default::default()).unwrap();
    let text = message(convert(&lone, &[], &Weights::Ema), folder.path());
    assert!(
        text.contains("it holds a transformer of k-diffusion"),
        "{text}"
    );
}
