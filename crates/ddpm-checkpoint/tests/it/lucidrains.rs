//! lucidrains' networks, version by version, against PyTorch's answers, and what must be said of their files.
//!
//! `tests/golden/lucidrains.py` states the networks anew and made the files; `lucidrains_package.py` held the original
//! program to them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddpm_checkpoint::{
    Arch, ForeignFile, Layout, Pipeline, TensorFile, Weights, open_tensors, resolve_model_as,
    write_tensors,
};
use ddpm_core::Prediction;
use ddpm_samplers::{Betas, Clip};
use ddpm_unet::{AttentionNorm, Halving, LucidrainsSettings, Network, NetworkConfig};

use crate::layouts::golden;
use crate::{close, message, written_and_read};

#[allow(clippy::result_large_err, reason = "it is the library's")]
fn convert(file: &str, said: &[&str], weights: &Weights) -> ddpm_checkpoint::Result<Pipeline> {
    ForeignFile::open(&golden(file))?.convert(&Arch::new(said)?, weights)
}

/// Compares an answer of the converted network, and of the folder it is written as, with PyTorch's.
#[track_caller]
fn check(pipeline: &Pipeline, answers: &str, key: &str) {
    let mut known = TensorFile::open(&golden(answers)).unwrap();
    let (x, expected) = (known.read_f32("x").unwrap(), known.read_f32(key).unwrap());
    let time = known.read_f32("time").unwrap().to_vec1::<f32>().unwrap();
    let time: Vec<f64> = time.into_iter().map(f64::from).collect();
    let last = (key == "y_after").then(|| known.read_f32("x_0_hat").unwrap());
    let network = Network::new(&pipeline.unet, &pipeline.weights).unwrap();
    let found = network.forward_after(&x, &time, last.as_ref()).unwrap();
    close(&found, &expected, 2e-5);
    written_and_read(pipeline);
}

fn settings(pipeline: &Pipeline) -> &LucidrainsSettings {
    match &pipeline.unet {
        NetworkConfig::Lucidrains(config) => config.settings(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_of_the_trainer_lacks_the_size_of_the_images_alone() {
    let said = ["image_size=6x4"];
    let pipeline = convert("lucidrains.pt", &said, &Weights::Ema).unwrap();
    check(&pipeline, "lucidrains.safetensors", "y");
    let raw = convert("lucidrains.pt", &said, &Weights::Raw).unwrap();
    check(&raw, "lucidrains.safetensors", "y_raw");

    let settings = settings(&pipeline);
    assert_eq!(settings.full_attn, [false, true]);
    assert_eq!(settings.attn_heads, [2, 3, 3]);
    assert_eq!(settings.attn_dim_head, [3, 2, 2]);
    assert_eq!(settings.num_mem_kv, 3);
    assert_eq!(settings.resnet_block_groups, None);
    let scheduler = &pipeline.scheduler;
    assert_eq!(scheduler.prediction(), Some(Prediction::Velocity));
    assert_eq!(scheduler.clip(), Clip::Range(1.0));
    // The sigmoid of alpha-bar has no name in diffusers: its betas are written one by one, in double precision.
    let schedule = ddpm_core::Schedule::alpha_bar_sigmoid(12).unwrap();
    let betas = schedule.timesteps().map(|t| schedule.beta(t)).collect();
    assert_eq!(scheduler.betas(), Some(&Betas::Trained(betas)));
    assert!(scheduler.to_json().contains("\"fixed_small\""));

    let mut file = ForeignFile::open(&golden("lucidrains.pt")).unwrap();
    assert_eq!(file.layout(), Layout::Lucidrains);
    let (unet, _) = file.describe(&Arch::new(said).unwrap()).unwrap();
    assert_eq!(unet, pipeline.unet);
    let model = resolve_model_as(&golden("lucidrains.pt"), &Arch::new(said).unwrap()).unwrap();
    assert!(model.has_raw);
}

#[test]
fn a_bare_diffusion_tells_its_objective_by_the_weights_of_its_loss() {
    let said = [
        "image_size=4x8",
        "self_condition=true",
        "channels=1",
        "dim=4",
    ];
    let pipeline = convert("lucidrains_self.pt", &said, &Weights::Ema).unwrap();
    check(&pipeline, "lucidrains_self.safetensors", "y");
    check(&pipeline, "lucidrains_self.safetensors", "y_after");
    let settings = settings(&pipeline);
    assert!(settings.self_condition);
    assert_eq!((settings.init_dim, settings.channels), (6, 1));
    assert_eq!(pipeline.scheduler.prediction(), Some(Prediction::Original));
    assert_eq!(pipeline.scheduler.betas(), Some(&Betas::Cosine));
}

#[test]
fn a_bare_network_is_told_its_diffusion() {
    let said = ["image_size=6x4", "timesteps=40", "beta_schedule=linear"];
    let pipeline = convert("lucidrains_learned.pt", &said, &Weights::Ema).unwrap();
    check(&pipeline, "lucidrains_learned.safetensors", "y");
    assert_eq!(pipeline.unet.out_channels(), 6);
    assert_eq!(pipeline.scheduler.prediction(), Some(Prediction::Noise));
    let expected = Betas::Linear {
        start: 25.0 * 1e-4,
        end: 25.0 * 0.02,
    };
    assert_eq!(pipeline.scheduler.betas(), Some(&expected));
    assert!(pipeline.scheduler.to_json().contains("\"learned_range\""));
}

#[test]
fn groups_in_residual_blocks_and_no_learned_keys() {
    let said = ["image_size=4x6", "resnet_block_groups=2"];
    let pipeline = convert("lucidrains_1_9.pt", &said, &Weights::Ema).unwrap();
    check(&pipeline, "lucidrains_1_9.safetensors", "y");
    assert_eq!(pipeline.scheduler.prediction(), Some(Prediction::Noise));
    let said = ["image_size=4x6", "resnet_block_groups=2", "attn_heads=2,2"];
    let pipeline = convert("lucidrains_1_8.pt", &said, &Weights::Ema).unwrap();
    check(&pipeline, "lucidrains_1_8.safetensors", "y");
    assert_eq!(settings(&pipeline).num_mem_kv, 0);
}

#[test]
fn versions_of_the_same_names_compute_differently() {
    let files = [
        (
            "lucidrains_pixels",
            vec!["1.5.4", "1.7.0", "1.7.1", "1.7.2", "1.7.7"],
        ),
        ("lucidrains_strided", vec!["0.26.5", "0.27.3", "0.28.0"]),
        ("lucidrains_biased", vec!["0.22.0", "0.26.0", "0.26.4"]),
    ];
    for (file, versions) in files {
        for version in versions {
            let said = [
                "image_size=4x6".to_owned(),
                "resnet_block_groups=2".to_owned(),
                "timesteps=30".to_owned(),
                "beta_schedule=cosine".to_owned(),
                "objective=pred_noise".to_owned(),
                format!("version={version}"),
            ];
            let said: Vec<&str> = said.iter().map(String::as_str).collect();
            let pipeline = convert(&format!("{file}.pt"), &said, &Weights::Ema).unwrap();
            let answers = format!("{file}.safetensors");
            check(&pipeline, &answers, &format!("y.{version}"));
            let settings = settings(&pipeline);
            let halving = match file {
                "lucidrains_pixels" => Halving::Pixels,
                _ => Halving::Conv,
            };
            assert_eq!((settings.halving, settings.attn_heads[0]), (halving, 4));
            let biased = settings.attn_norm == AttentionNorm::LayerBias;
            assert_eq!(biased, file == "lucidrains_biased");
        }
    }
}

#[test]
fn what_a_file_does_not_say_is_asked_for_by_name_and_all_at_once() {
    let asked = |file: &str, said: &[&str]| {
        let text = message(convert(file, said, &Weights::Ema), &golden(""));
        text.replace("FOLDER", "")
    };
    assert_eq!(
        asked("lucidrains.pt", &[]),
        "lucidrains.pt holds a Unet of lucidrains' denoising-diffusion-pytorch, which does not say image_size (the images' \
         side, N or HxW); give --arch image_size=N"
    );
    let text = asked("lucidrains_pixels.pt", &[]);
    assert!(
        text.ends_with(
            "give --arch version=0.32.0 image_size=N resnet_block_groups=N timesteps=N beta_schedule=linear|cosine|sigmoid \
             objective=pred_noise|pred_x0|pred_v"
        ),
        "{text}"
    );
    let text = asked("lucidrains_1_8.pt", &["image_size=4"]);
    assert!(
        text.ends_with("give --arch attn_heads=N resnet_block_groups=N"),
        "{text}"
    );
    let text = asked("lucidrains_learned.pt", &["image_size=4"]);
    assert!(
        text.ends_with("give --arch timesteps=N beta_schedule=linear|cosine|sigmoid"),
        "{text}"
    );
}

#[test]
fn what_is_said_against_the_file_or_in_vain_is_refused() {
    let told = |file: &str, said: &[&str]| {
        let said: Vec<&str> = ["image_size=6x4"].iter().chain(said).copied().collect();
        let text = message(convert(file, &said, &Weights::Ema), &golden(""));
        text.replace("FOLDER", "")
    };
    let against = [
        (
            "timesteps=1000",
            "`timesteps` is given as 1000, but in lucidrains.pt it is 12",
        ),
        (
            "beta_schedule=cosine",
            "`beta_schedule` is given as cosine, but in lucidrains.pt it is sigmoid",
        ),
        (
            "objective=pred_noise",
            "`objective` is given as pred_noise, but in lucidrains.pt it is pred_v",
        ),
        (
            "attn_heads=4",
            "`attn_heads` is given as 4, but in lucidrains.pt it is 2,3,3",
        ),
        (
            "dim=64",
            "`dim` is given as 64, but in lucidrains.pt it is 4",
        ),
        (
            "channels=1",
            "`channels` is given as 1, but in lucidrains.pt it is 3",
        ),
        (
            "self_condition=true",
            "`self_condition` is given as true, but in lucidrains.pt it is false",
        ),
        (
            "version=1.9.0",
            "`version` is given as 1.9.0, but the names in lucidrains.pt are of versions from 2.0.0 on",
        ),
        (
            "resnet_block_groups=8",
            "`resnet_block_groups` would be ignored: lucidrains.pt holds a Unet of lucidrains' denoising-diffusion-pytorch",
        ),
        (
            "objective=noise",
            "`objective` is `noise`, expected pred_noise, pred_x0, pred_v",
        ),
        (
            "version=new",
            "`version` is `new`, expected a version as 1.5.4",
        ),
    ];
    for (said, expected) in against {
        assert_eq!(
            told("lucidrains.pt", &[said]),
            format!("--arch: {expected}")
        );
    }
    let text = told(
        "lucidrains_learned.pt",
        &["objective=pred_v", "timesteps=40", "beta_schedule=linear"],
    );
    assert_eq!(
        text,
        "--arch: `objective` is given as pred_v, but in lucidrains_learned.pt it is pred_noise"
    );
}

/// The tensors of a bare network, to be changed and written anew.
fn tensors() -> BTreeMap<String, Tensor> {
    let mut file = open_tensors(&golden("lucidrains_learned.pt")).unwrap();
    let names = file.names().into_iter();
    names
        .map(|name| (name.clone(), file.read_f32(&name).unwrap()))
        .collect()
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

/// Writes tensors, behind a prefix, and expects this of their conversion.
#[track_caller]
fn refused(tensors: &BTreeMap<String, Tensor>, prefix: &str, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let named: Vec<(String, Tensor)> = tensors
        .iter()
        .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
        .collect();
    write_tensors(&path, "a test", &named, &Default::default()).unwrap();
    let said = ["image_size=6x4", "timesteps=40", "beta_schedule=linear"];
    let mut file = ForeignFile::open(&path).unwrap();
    let converted = file.convert(&Arch::new(said).unwrap(), &Weights::Ema);
    let text = message(converted, folder.path());
    assert!(text.starts_with("FOLDER/net.safetensors: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text}\ndoes not say: {part}");
    }
    assert!(file.describe(&Arch::new(said).unwrap()).is_err());
}

#[test]
fn tensors_that_are_no_network_are_named() {
    let change = |name: &str, tensor: Option<Tensor>, parts: &[&str]| {
        let mut tensors = tensors();
        match tensor {
            Some(tensor) => drop(tensors.insert(name.to_owned(), tensor)),
            None => drop(tensors.remove(name).unwrap()),
        }
        refused(&tensors, "", parts);
    };
    change(
        "ups.0.1.block2.norm.g",
        None,
        &["missing (1): `ups.0.1.block2.norm.g`"],
    );
    change(
        "ups.9.extra",
        Some(zeros(&[1])),
        &["extra (1): `ups.9.extra`"],
    );
    change(
        "mid_block1.block2.proj.weight",
        Some(zeros(&[4, 4, 1, 9])),
        &["wrong (1): `mid_block1.block2.proj.weight` is [4, 4, 1, 9], expected [4, 4, 3, 3]"],
    );
    change(
        "init_conv.weight",
        Some(zeros(&[4, 3, 3, 3])),
        &["`init_conv.weight` is [4, 3, 3, 3], expected [4, 3, 7, 7]"],
    );
    // Heads that do not divide, that are none, and widths of nothing.
    change(
        "downs.0.2.mem_kv",
        Some(zeros(&[2, 3, 3, 2])),
        &["`downs.0.2.to_qkv.weight` has 12 rows, a third of which 3 heads do not divide"],
    );
    change(
        "downs.0.2.mem_kv",
        Some(zeros(&[2, 0, 3, 2])),
        &["a third of which 0 heads do not divide"],
    );
    change(
        "downs.0.2.to_qkv.weight",
        Some(zeros(&[10, 4, 1, 1])),
        &["has 10 rows, a third of which"],
    );
    change(
        "downs.1.3.weight",
        Some(zeros(&[0, 8, 3, 3])),
        &["`level_dims` is 0", "whole numbers from 1 to 65536"],
    );
    change(
        "init_conv.weight",
        Some(zeros(&[0, 3, 7, 7])),
        &["`init_dim` is 0"],
    );
    change(
        "time_mlp.0.weights",
        Some(zeros(&[0])),
        &["`time_width` is 0"],
    );
    change(
        "mid_attn.to_qkv.weight",
        None,
        &["there is no tensor `mid_attn.to_qkv.weight`"],
    );
    change(
        "final_conv.weight",
        Some(zeros(&[8, 4, 1, 1])),
        &["3 channels in and 8 out"],
    );
    // A level in between is missing.
    let mut tensors = tensors();
    tensors.insert("downs.7.0.mlp.1.weight".to_owned(), zeros(&[8, 16]));
    refused(&tensors, "", &["there is no tensor `downs.2.*`"]);
}

#[test]
fn networks_with_like_names_are_refused_by_what_they_are() {
    let with = |name: &str, tensor: Tensor| {
        let mut tensors = tensors();
        tensors.insert(name.to_owned(), tensor);
        tensors
    };
    let sequences = with("init_conv.weight", zeros(&[4, 3, 7]));
    refused(&sequences, "", &["3 axes: it is a network of sequences"]);
    let guided = with("null_classes_emb", zeros(&[16]));
    refused(&guided, "", &["classifier_free_guidance.py"]);
    refused(&tensors(), "net.", &["ElucidatedDiffusion"]);
    refused(&tensors(), "model.", &["trained in continuous time"]);
    let mut old = tensors();
    old.remove("downs.1.3.weight");
    refused(
        &old,
        "",
        &["its levels are not those of versions since 0.22.0"],
    );
}

/// As before 0.27.5, and as `torch.compile` renames.
#[test]
fn a_network_has_its_schedule_around_it_whatever_it_is_called() {
    let mut file = open_tensors(&golden("lucidrains_self.pt")).unwrap();
    let named: Vec<(String, Tensor)> = file
        .names()
        .into_iter()
        .map(|name| {
            let tensor = file.read_f32(&name).unwrap();
            let renamed = match name.strip_prefix("model.") {
                Some(name) => format!("ema_model.denoise_fn._orig_mod.{name}"),
                None => format!("ema_model.{name}"),
            };
            (renamed, tensor)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    write_tensors(&path, "a test", &named, &Default::default()).unwrap();
    let said = Arch::new(["image_size=4x8"]).unwrap();
    let known = ForeignFile::open(&golden("lucidrains_self.pt"))
        .unwrap()
        .describe(&said)
        .unwrap();
    let found = ForeignFile::open(&path).unwrap().describe(&said).unwrap();
    assert_eq!(found, known);
}

#[test]
fn schedules_that_are_none_are_refused() {
    let with = |betas: Vec<f32>| {
        let tensors = tensors().into_iter();
        let mut tensors: BTreeMap<_, _> = tensors
            .map(|(name, tensor)| (format!("model.{name}"), tensor))
            .collect();
        let betas = Tensor::new(betas, &Device::Cpu).unwrap();
        tensors.insert("betas".to_owned(), betas);
        tensors
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    for betas in [vec![0.1, f32::NAN], vec![0.1, 1.5], vec![-0.5, 0.1]] {
        let named: Vec<_> = with(betas).into_iter().collect();
        write_tensors(&path, "a test", &named, &Default::default()).unwrap();
        let mut file = ForeignFile::open(&path).unwrap();
        let converted = file.convert(&Arch::new(["image_size=6x4"]).unwrap(), &Weights::Ema);
        let text = message(converted, folder.path());
        assert!(
            text.starts_with("FOLDER/net.safetensors: ") && text.contains("beta"),
            "{text}"
        );
    }
    // Betas of nobody's are taken as they are.
    let named: Vec<_> = with(vec![0.25, 0.5]).into_iter().collect();
    write_tensors(&path, "a test", &named, &Default::default()).unwrap();
    let mut file = ForeignFile::open(&path).unwrap();
    let said = Arch::new(["image_size=6x4"]).unwrap();
    let (_, scheduler) = file.describe(&said).unwrap();
    assert_eq!(scheduler.betas(), Some(&Betas::Trained(vec![0.25, 0.5])));
    let said = Arch::new(["image_size=6x4", "beta_schedule=linear"]).unwrap();
    let text = message(file.describe(&said), folder.path());
    assert_eq!(
        text,
        "--arch: `beta_schedule` is given as linear, but in FOLDER/net.safetensors it is another"
    );
}
