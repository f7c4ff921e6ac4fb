//! One contender of `cargo xtask bench`: this house's network at work, pass after pass, as the programs run it.
//!
//! ```text
//! network_speed prepare --network s|m --batch N --folder DIR
//! network_speed contend --work train|evaluate --folder DIR --output FILE [--threads N] [--precision f32|bf16]
//! ```
//!
//! `prepare` fills an empty folder with what all contenders share: the network as diffusers keeps it, weights included,
//! and `inputs.safetensors` (x_0, x_t, eps, and t as the network is told it). `contend` writes what its first pass gave
//! to FILE as raw f32, little end first (the prediction; of a training step its loss and the gradient's norm), prints
//! `ready`, and then answers lines: `go N` with the seconds that N passes took, `quit` with the most memory it ever held,
//! in bytes.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the person who started it"
)]

#[path = "../src/environment.rs"]
mod environment;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{Device, Tensor};
use ddpm_checkpoint::{Pipeline, TensorFile, write_tensors};
use ddpm_core::Timestep;
use ddpm_data::Dataset;
use ddpm_random::{Stream, normal_batch, uniform_batch, uniform_u64_below};
use ddpm_train::{Examples, Layer, Objective, Settings, Trainer, on_threads, scheduler};
use ddpm_unet::{DownBlock, Initialisation, Precision, UNet, UNetConfig, initialise};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// PyTorch's AdamW with its defaults, gradients clipped to norm 1, no averages; what the peers do too.
const TRAINING: &str = r#"
data.name = "noise"
ema.rates = []
[optimizer]
name = "adamw"
learning_rate = 1e-4
warm_up = 0
weight_decay = 0.01
gradient_clip = 1.0
[train]
steps = 1000000
"#;

/// The seed of weights and inputs.
const SEED: u64 = 0;

fn main() -> ExitCode {
    let typed: Vec<String> = std::env::args().skip(1).collect();
    match run(&typed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(typed: &[String]) -> Outcome<()> {
    let flags = Flags(typed);
    let folder = PathBuf::from(flags.value("--folder")?);
    match typed.first().map(String::as_str) {
        Some("prepare") => prepare(
            flags.value("--network")?,
            flags.value("--batch")?.parse()?,
            &folder,
        ),
        Some("contend") => {
            let threads = flags.value("--threads").unwrap_or("0").parse()?;
            let (work, output) = (flags.value("--work")?, flags.value("--output")?);
            // As the programs: ddpm-train settles its environment, ddpm-sample takes it as it is.
            if work == "train" {
                environment::settle(threads);
            }
            let precision = match flags.value("--precision").unwrap_or("f32") {
                "f32" => Precision::F32,
                "bf16" => Precision::Bf16,
                other => return Err(format!("there is no precision `{other}`: f32, bf16").into()),
            };
            on_threads(threads, || {
                contend(work, precision, &folder, Path::new(output))
            })?
        }
        _ => Err("say `prepare` or `contend`".into()),
    }
}

/// A command line: pairs of flag and value.
struct Flags<'a>(&'a [String]);

impl<'a> Flags<'a> {
    fn value(&self, flag: &str) -> Outcome<&'a str> {
        let place = self.0.iter().position(|word| word == flag);
        let value = place.and_then(|place| self.0.get(place + 1));
        Ok(value
            .ok_or_else(|| format!("`{flag}` is missing"))?
            .as_str())
    }
}

// ---------------------------------------------------------------- what all contenders share

/// Writes the network and the inputs of one pass.
fn prepare(network: &str, batch: usize, folder: &Path) -> Outcome<()> {
    // The settings' own network is S; M is Ho et al.'s for CIFAR-10, without dropout.
    let (levels, channels, side) = match network {
        "s" => ("", 1, 28),
        "m" => (
            "[model]\nblock_out_channels = [128, 256, 256, 256]\n\
             down_block_types = [\"DownBlock2D\", \"AttnDownBlock2D\", \"DownBlock2D\", \"DownBlock2D\"]\n",
            3,
            32,
        ),
        other => return Err(format!("there is no network `{other}`: s, m").into()),
    };
    let layer = Layer::from_text("network_speed", &format!("{TRAINING}{levels}"))?;
    let settings = Settings::from_layers(&[layer])?.resolved();
    let config = settings.unet_config(channels, side, side)?;
    let objective = Objective::new(&settings.diffusion)?;
    let weights = initialise(&config, Initialisation::PyTorch, SEED, &Device::Cpu)?;
    let noise = scheduler(&objective, &settings.diffusion, &Default::default())?;
    Pipeline::new(config, weights, noise).save(folder)?;

    let examples = draw(&objective, batch, (channels, side, side))?;
    let times: Vec<f32> = objective
        .network_times(&examples.t)
        .into_iter()
        .map(|time| time as f32)
        .collect();
    let tensors = [
        ("x_t", objective.x_t(&examples)?),
        ("x_0", examples.x_0),
        ("eps", examples.eps),
        ("t", Tensor::from_vec(times, batch, &Device::Cpu)?),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor));
    write_tensors(&inputs(folder), "the inputs", &tensors, &BTreeMap::new())?;
    Ok(())
}

/// Images of no meaning, a t for each, and noise.
fn draw(objective: &Objective, batch: usize, shape: (usize, usize, usize)) -> Outcome<Examples> {
    let images: Vec<u64> = (0..batch as u64).collect();
    let steps = objective.schedule.steps() as u64;
    let t = |image: &u64| -> Outcome<Timestep> {
        let before = uniform_u64_below(SEED, Stream::Timestep, *image, 0, steps)?;
        Ok(objective.schedule.timestep(before as usize + 1)?)
    };
    let cpu = Device::Cpu;
    Ok(Examples {
        x_0: uniform_batch(SEED, Stream::SampleStart, &images, 0, shape, &cpu)?
            .affine(2.0, -1.0)?,
        t: images.iter().map(t).collect::<Outcome<_>>()?,
        eps: normal_batch(SEED, Stream::TrainingNoise, &images, 0, shape, &cpu)?,
    })
}

fn inputs(folder: &Path) -> PathBuf {
    folder.join("inputs.safetensors")
}

// ---------------------------------------------------------------- the work

/// Sets up the work, writes what its first pass gave, and then does as the lines of the standard input say.
fn contend(work: &str, precision: Precision, folder: &Path, output: &Path) -> Outcome<()> {
    let Pipeline { unet, weights, .. } = Pipeline::load(folder)?;
    let mut file = TensorFile::open(&inputs(folder))?;
    let times = file.read_f32("t")?.to_vec1::<f32>()?;
    let unet = unet.as_unet_2d().ok_or("the network is no UNet2DModel")?;
    let settings = settings_of(unet, times.len())?;
    let objective = Objective::new(&settings.diffusion)?;
    let t = |time: &f32| objective.schedule.timestep(*time as usize + 1);
    let examples = Examples {
        x_0: file.read_f32("x_0")?,
        t: times.iter().map(t).collect::<Result<_, _>>()?,
        eps: file.read_f32("eps")?,
    };
    match work {
        "evaluate" => {
            let network = UNet::new(unet, &weights)?.in_precision(precision).frozen();
            drop(weights);
            let (x_t, time) = (file.read_f32("x_t")?, objective.network_times(&examples.t));
            let first = network.forward(&x_t, &time)?.flatten_all()?.to_vec1()?;
            answer(output, &first, || {
                network.forward(&x_t, &time)?;
                Ok(())
            })
        }
        "train" => {
            let mut settings = settings;
            settings.train.precision = precision.into();
            let mut trainer = Trainer::with_weights(&settings, data_for(&examples)?, weights)?;
            let first = trainer.step_on(&examples)?;
            let first = [first.loss as f32, first.gradient_norm as f32];
            answer(output, &first, || {
                trainer.step_on(&examples)?;
                Ok(())
            })
        }
        other => Err(format!("there is no work `{other}`: train, evaluate").into()),
    }
}

/// The settings whose network is this one, for steps of so many images.
fn settings_of(config: &UNetConfig, batch: usize) -> Outcome<Settings> {
    let layer = Layer::from_text("network_speed", TRAINING)?;
    let mut settings = Settings::from_layers(&[layer])?;
    let named = |block: &DownBlock| block.name().to_owned();
    let network = config.settings();
    settings.model.block_out_channels = network.block_out_channels.clone();
    settings.model.down_block_types = network.down_block_types.iter().map(named).collect();
    settings.train.batch_size = batch;
    Ok(settings.resolved())
}

/// A trainer wants data to draw from; here it is given its examples, so that these are blank.
fn data_for(examples: &Examples) -> Outcome<Dataset> {
    let (batch, channels, height, width) = examples.x_0.dims4()?;
    let blank = vec![0; batch * channels * height * width];
    let size = (height, width, channels);
    Ok(Dataset::new("noise", blank, size, None, vec![])?)
}

// ---------------------------------------------------------------- the conversation

/// Writes `first`, says `ready`, and passes until it is told to quit or nobody is there any more.
fn answer(output: &Path, first: &[f32], mut pass: impl FnMut() -> Outcome<()>) -> Outcome<()> {
    let bytes: Vec<u8> = first.iter().copied().flat_map(f32::to_le_bytes).collect();
    std::fs::write(output, bytes)?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("go", passes)) => {
                let passes: usize = passes.parse()?;
                let started = Instant::now();
                (0..passes).try_for_each(|_| pass())?;
                println!("{}", started.elapsed().as_secs_f64());
            }
            _ if line == "quit" => {
                println!("{}", most_memory()?);
                return Ok(());
            }
            _ => return Err(format!("`{line}` is neither `go N` nor `quit`").into()),
        }
    }
    Ok(())
}

/// The most memory this process ever held, in bytes; 0 where the system does not say.
fn most_memory() -> Outcome<u64> {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else {
        return Ok(0);
    };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.map_or(Ok(0), str::parse::<u64>)? << 10)
}
