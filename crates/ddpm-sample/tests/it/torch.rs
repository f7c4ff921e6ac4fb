//! `--rng torch`: the images of diffusers' pipelines for the same seed, golden ones made by tests/golden/torch_pipelines.py.

use std::fs;
use std::path::{Path, PathBuf};

use ddpm_checkpoint::TensorFile;
use serde_json::Value;

use crate::{House, bits, read_samples};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/pipelines")
        .join(name)
}

/// The golden network with this scheduler, as diffusers lays a pipeline out.
fn lay_out(folder: &Path, scheduler: &Value) {
    for part in ["unet", "scheduler"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(golden("unet").join(file), folder.join("unet").join(file)).unwrap();
    }
    let class = &scheduler["_class_name"];
    let index = format!(
        "{{\"_class_name\": \"DDPMPipeline\", \"unet\": [\"diffusers\", \"UNet2DModel\"], \"scheduler\": [\"diffusers\", {class}]}}"
    );
    fs::write(folder.join("model_index.json"), index).unwrap();
    let text = scheduler.to_string();
    fs::write(folder.join("scheduler/scheduler_config.json"), text).unwrap();
}

fn cases() -> Vec<Value> {
    serde_json::from_str(&fs::read_to_string(golden("cases.json")).unwrap()).unwrap()
}

#[test]
fn images_are_those_of_diffusers_pipelines() {
    let house = House::new();
    let mut file = TensorFile::open(&golden("images.safetensors")).unwrap();
    let cases = cases();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        lay_out(&house.path(name), &case["scheduler"]);
        let flags = case["flags"].as_str().unwrap();
        let mut words = vec!["--model", name, "--num", "3", "--batch-size", "2"];
        words.extend(["--rng", "torch", "--seed", "5", "--out", "x.safetensors"]);
        words.extend(flags.split_whitespace());
        let output = house.run_words(&words);
        crate::check_done(&output);
        let got = read_samples(&house.path("x.safetensors"));
        let expected = file.read_f32(name).unwrap();
        let off = (got - &expected).unwrap().abs().unwrap();
        let worst: f32 = off.max_all().unwrap().to_scalar().unwrap();
        // Without clipping an untrained network's images are large.
        let size = expected.abs().unwrap().max_all().unwrap();
        let size: f32 = size.to_scalar::<f32>().unwrap().max(1.0);
        println!("{name}: {:e}", worst / size);
        assert!(worst < 1e-4 * size, "{name}: {worst} of {size}");
    }
}

/// The folder's own scheduler is meant where nothing else is said, and its draws come in order, so the batch counts.
#[test]
fn the_batch_decides_torchs_numbers() {
    let house = House::new();
    let cases = cases();
    let ddpm = cases.iter().find(|case| case["name"] == "ddpm").unwrap();
    lay_out(&house.path("model"), &ddpm["scheduler"]);
    let made = |flags: &str| {
        let flags = format!("--model model --num 3 --steps 5 {flags}");
        bits(&house.samples_of(&flags))
    };
    let torch = made("--rng torch --batch-size 2");
    assert_eq!(torch, made("--rng torch --batch-size 2 --sampler ddpm"));
    assert_ne!(torch, made("--rng torch --batch-size 3"));
    assert_ne!(torch, made("--batch-size 2 --sampler ddpm"));
    let images = torch.len() / 3;
    let first_call = made("--rng torch --batch-size 2")[..2 * images].to_vec();
    assert_eq!(torch[..2 * images], first_call);
}
