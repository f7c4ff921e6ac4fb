//! The program from outside: a small random model, every form of output, every mistake.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops by panicking, and says what it skips"
)]

mod arch;
mod classes;
mod device;
mod film;
mod foreign;
mod help;
mod images;
mod inspect;
mod interruption;
mod mistakes;
mod noise;
mod paint;
mod samplers;
mod torch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use ddpm_checkpoint::{Pipeline, TensorFile, TrainState, write_checkpoint};
use ddpm_core::{Prediction, Variance};
use ddpm_samplers::{Betas, Clip, SchedulerConfig};
use ddpm_unet::{DeviceName, Initialisation, SampleSize, UNetConfig, UNetSettings, initialise};

/// A folder with a run in it, removed at the end.
struct House {
    folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let house = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        write(
            &house.path("run"),
            3,
            "[run]\nprogram = \"ddpm-train 0.1.0\"\n[data]\nname = \"digits\"\n",
        );
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs the program in the folder, on the run in it.
    fn sample(&self, flags: &str) -> Output {
        self.run(&format!("--model run --num 3 --steps 4 {flags}"))
    }

    fn run(&self, flags: &str) -> Output {
        self.run_words(&flags.split_whitespace().collect::<Vec<_>>())
    }

    fn run_words(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// The program in the folder; it samples on the device of the tests, where one is named and the words name none.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ddpm-sample"));
        command.current_dir(self.folder.path()).args(words);
        let has = |flag: &&str| words.contains(flag);
        let elsewhere = ["--device", "--inspect", "--save-model"].iter().any(has);
        if let (Some(name), false) = (ddpm_tests::named(), elsewhere) {
            let lacks = name == DeviceName::CpuGraph && has(&"bf16");
            command.args((!lacks).then(|| format!("--device={name}")));
        }
        command
    }

    /// The samples that these flags give, as computed.
    #[track_caller]
    fn samples(&self, flags: &str) -> Tensor {
        self.samples_of(&format!("--model run --num 3 --steps 4 {flags}"))
    }

    #[track_caller]
    fn samples_of(&self, flags: &str) -> Tensor {
        check_done(&self.run(&format!("--out out.safetensors {flags}")));
        read_samples(&self.path("out.safetensors"))
    }

    /// Expects this exit status and message, and that no file was left.
    #[track_caller]
    fn check_error(&self, flags: &str, status: i32, message: &str) {
        let before = self.names();
        let output = self.run(flags);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert_eq!(text.trim_end(), message);
        assert_eq!(self.names(), before);
    }
}

/// A checkpoint of a random network for 3x4x6 images; the seed decides its weights.
fn write(run: &Path, step: u64, run_toml: &str) {
    let state = TrainState {
        tensors: weights(11)
            .into_iter()
            .map(|(name, tensor)| (format!("raw.{name}"), tensor))
            .collect(),
        counters: BTreeMap::from([("step".to_owned(), step.to_string())]),
    };
    write_checkpoint(run, step, &pipeline(), &state, run_toml).unwrap();
}

fn pipeline() -> Pipeline {
    let betas = Betas::Linear {
        start: 1e-3,
        end: 0.2,
    };
    let scheduler = SchedulerConfig::ddpm(
        betas,
        100,
        Prediction::Noise,
        Variance::FixedLarge,
        Clip::Range(1.0),
    )
    .unwrap();
    Pipeline::new(unet(), weights(10), scheduler)
}

fn unet() -> UNetConfig {
    let settings = UNetSettings {
        sample_size: Some(SampleSize::Rectangle(4, 6)),
        norm_num_groups: Some(2),
        layers_per_block: 1,
        ..UNetSettings::ho()
    };
    UNetConfig::new(settings.with_levels(&[(4, false), (8, true)])).unwrap()
}

fn weights(seed: u64) -> Vec<(String, Tensor)> {
    initialise(&unet(), Initialisation::PyTorch, seed, &Device::Cpu)
        .unwrap()
        .into_iter()
        .collect()
}

#[track_caller]
fn check_done(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn read_samples(path: &Path) -> Tensor {
    let mut file = TensorFile::open(path).unwrap();
    assert_eq!(file.names(), ["samples"]);
    file.read("samples").unwrap()
}

/// The same images: on the CPU bit for bit, whatever the batch and the threads; elsewhere but for rounding.
#[track_caller]
fn same_images(what: &str, got: &[u32], expected: &[u32]) {
    if ddpm_tests::device_name() == DeviceName::Cpu {
        assert!(got == expected, "{what}: other images");
        return;
    }
    assert_eq!(got.len(), expected.len(), "{what}");
    let floats = || {
        got.iter()
            .zip(expected)
            .map(|(&got, &expected)| (f32::from_bits(got), f32::from_bits(expected)))
    };
    let largest = floats().fold(1.0, |largest: f32, (_, expected)| {
        largest.max(expected.abs())
    });
    for (got, expected) in floats() {
        assert!(
            (got - expected).abs() < 1e-4 * largest,
            "{what}: {got}, expected {expected}"
        );
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
