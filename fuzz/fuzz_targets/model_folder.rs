//! A folder of diffusers with one damaged file, which the first byte chooses: configurations, indices, weights in each of
//! their formats.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use ddpm_checkpoint::{Weights, resolve_model};

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!(
            "../../crates/ddpm-checkpoint/tests/golden/folder/",
            $name
        ))
        .as_slice()
    };
}

/// What is always there.
const WHOLE: [(&str, &[u8]); 3] = [
    ("model_index.json", golden!("model_index.json")),
    ("unet/config.json", golden!("unet/config.json")),
    (
        "scheduler/scheduler_config.json",
        golden!("scheduler/scheduler_config.json"),
    ),
];
const WEIGHTS: [&str; 4] = [
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model.bin.index.json",
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    let model = MODEL.get_or_init(made);
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let which = usize::from(*which) % (WHOLE.len() + WEIGHTS.len());
    let (name, whole) = match which.checked_sub(WHOLE.len()) {
        None => (WHOLE[which].0, Some(WHOLE[which].1)),
        Some(at) => (WEIGHTS[at], None),
    };
    let path = model.join(name);
    // A damaged configuration is held against whole weights.
    let weights = model.join(WEIGHTS[1]);
    if whole.is_some() {
        std::fs::write(&weights, golden!("unet/diffusion_pytorch_model.bin")).unwrap();
    }
    std::fs::write(&path, bytes).unwrap();
    if let Ok(model) = resolve_model(model) {
        drop(model.load(&Weights::Ema));
    }
    match whole {
        Some(whole) => std::fs::write(&path, whole).unwrap(),
        None => std::fs::remove_file(&path).unwrap(),
    }
    drop(std::fs::remove_file(&weights));
});

/// A folder without weights, new for each process.
fn made() -> PathBuf {
    let model = std::env::temp_dir().join(format!("ddpm-fuzz-model-{}", std::process::id()));
    for (name, bytes) in WHOLE {
        let path = model.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    model
}
