//! A run with one damaged file, which the first byte chooses: all that is read of it before it is continued.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ddpm_checkpoint::{Weights, newest_whole, read_train_state, resolve_model};
use ddpm_train::{Init, Layer, Metrics, Recorded, Run, Settings, on_threads, read_metrics};

/// What may be damaged.
const FILES: [&str; 8] = [
    "run.toml",
    "metrics.jsonl",
    "checkpoints/step-00000002/run.toml",
    "checkpoints/step-00000002/model_index.json",
    "checkpoints/step-00000002/unet/config.json",
    "checkpoints/step-00000002/scheduler/scheduler_config.json",
    "checkpoints/step-00000002/unet/diffusion_pytorch_model.safetensors",
    "checkpoints/step-00000002/train_state.safetensors",
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static RUN: OnceLock<(PathBuf, Vec<Vec<u8>>)> = OnceLock::new();
    let (run, whole) = RUN.get_or_init(made);
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let which = usize::from(*which) % FILES.len();
    let path = run.join(FILES[which]);
    std::fs::write(&path, bytes).unwrap();
    match FILES[which] {
        "run.toml" => drop(Recorded::read(run)),
        "metrics.jsonl" => metrics(&path),
        _ => checkpoint(run),
    }
    std::fs::write(&path, &whole[which]).unwrap();
});

fn metrics(path: &Path) {
    drop(read_metrics(path));
    if Metrics::open_at(path, 1).is_ok() {
        let kept = read_metrics(path).unwrap();
        assert!(kept.iter().all(|line| line.step <= 1));
    }
}

fn checkpoint(run: &Path) {
    drop(Init::read(run, &Weights::Raw));
    if let Ok(model) = resolve_model(run) {
        drop(model.load(&Weights::Ema));
    }
    if let Some(checkpoint) = newest_whole(run).unwrap().checkpoint {
        drop(read_train_state(&checkpoint.path));
    }
}

/// A run of two steps in a new folder, and its files.
fn made() -> (PathBuf, Vec<Vec<u8>>) {
    let run = std::env::temp_dir().join(format!("ddpm-fuzz-{}", std::process::id()));
    let settings = Layer::from_text("smallest", SMALLEST).unwrap();
    let settings = Settings::from_layers(&[settings]).unwrap().resolved();
    on_threads(1, || {
        let mut begun = Run::begin(&run, &settings, None).unwrap();
        while !begun.finished() {
            begun.advance().unwrap();
        }
    })
    .unwrap();
    let whole = FILES
        .iter()
        .map(|name| std::fs::read(run.join(name)).unwrap());
    let whole = whole.collect();
    (run, whole)
}

const SMALLEST: &str = r#"
data.name = "digits"
model = { block_out_channels = [4], layers_per_block = 1, down_block_types = ["DownBlock2D"], norm_num_groups = 2 }
diffusion.timesteps = 10
ema.rates = [0.9]
train = { steps = 2, batch_size = 2, held_out_images = 0, tensorboard = false, report = false }
samples = { count = 0, steps = 2 }
"#;
