//! lucidrains' networks, version by version, against PyTorch's answers, and what must be said of their files.
//!
//! `tests/golden/lucidrains.py` states the networks anew and made the files; `lucidrains_package.py` held the original
//! program to them.

use candle_core::Tensor;
use ddpm_checkpoint::{Arch, ForeignFile, Layout, Pipeline, TensorFile, Weights, resolve_model_as};
use ddpm_core::Prediction;
use ddpm_samplers::{Betas, Clip};
use ddpm_unet::{AttentionNorm, Halving, LucidrainsSettings, Network, NetworkConfig};

use crate::layouts::golden;
use crate::{assert_same, message};

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
    let largest = |x: &Tensor| {
        let x = x.abs().unwrap().flatten_all().unwrap();
        x.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    let (off, size) = (largest(&(found - &expected).unwrap()), largest(&expected));
    assert!(off < 2e-5 * size && size > 0.1, "{off} of {size}");

    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    pipeline.save(&model).unwrap();
    let read = Pipeline::load(&model).unwrap();
    assert_eq!(
        (&read.unet, &read.scheduler),
        (&pipeline.unet, &pipeline.scheduler)
    );
    assert_same(&read.weights, &pipeline.weights);
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
