//! What was typed.

use std::path::PathBuf;

use clap::Parser;
use ddpm_checkpoint::Weights;

/// Trains a denoising diffusion model: data in, a folder that diffusers opens out.
#[derive(Debug, Parser)]
#[command(name = "ddpm-train", version, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Flags {
    /// The recipe to follow; --list-presets shows them
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) preset: Option<String>,
    /// A recipe of your own, TOML; --preset digits --dry-run prints one to start from
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The data set: digits, mnist, fashion-mnist, cifar10, tiny-imagenet, folder:PATH, parquet:PATH_OR_GLOB,
    /// hub:OWNER/NAME
    #[arg(long, value_name = "SPEC")]
    pub(crate) data: Option<String>,
    /// Where to look for the data first; not for digits, which are inside the program, nor for what has a PATH
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The folder of the run [default: runs/NAME]
    #[arg(long, value_name = "RUN_DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Optimiser steps in all
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<usize>,
    /// Minutes in all, over every resume; alone it lifts the recipe's number of steps, unless the learning rate decays
    #[arg(long, value_name = "N")]
    pub(crate) minutes: Option<f64>,
    /// Images of one optimiser step
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    /// The seed of everything that is drawn
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Continue the run in --out (or runs/NAME) from its newest whole checkpoint, to the bit
    #[arg(long)]
    pub(crate) resume: bool,
    /// Begin with the weights of a trained model: a run, a checkpoint, a diffusers folder or another program's file (.pt,
    /// .ckpt, ...); network and noise schedule are the model's, optimiser and averages are new
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["resume", "export"])]
    pub(crate) init: Option<PathBuf>,
    /// What another program's file does not say about its network: image_size=32 diffusion_steps=1000 ...; an error lists
    /// what is missing
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., requires = "init")]
    pub(crate) arch: Vec<String>,
    /// Write the model of the run in --out (or runs/NAME) to the new folder DIR, as diffusers reads it, and stop
    #[arg(long, value_name = "DIR", conflicts_with_all = OF_TRAINING, conflicts_with = "report")]
    pub(crate) export: Option<PathBuf>,
    /// The type of the exported weights [default: f16]
    #[arg(long, value_name = "TYPE", value_enum)]
    pub(crate) dtype: Option<Dtype>,
    /// Which weights --init or --export take: ema, raw, ema:RATE [default: ema]
    #[arg(long, value_name = "WHICH")]
    pub(crate) weights: Option<Weights>,
    /// Write report.html and its pictures for the run in RUN_DIR, as it is, and stop
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = OF_TRAINING,
        conflicts_with_all = ["preset", "out", "dtype", "weights"])]
    pub(crate) report: Option<PathBuf>,
    /// Threads [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Where: auto, which is the first NVIDIA card that can be used, else the CPU; cpu; cuda; or cuda:N
    #[arg(long, value_name = "auto|cpu|cuda[:N]")]
    pub(crate) device: Option<String>,
    /// What the network computes in: f32, bf16, or auto, which is bf16 where the processor has units for it;
    /// on a card f32
    #[arg(long, value_name = "auto|f32|bf16")]
    pub(crate) precision: Option<String>,
    /// Any settings key, as in --set optimizer.learning_rate=1e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print the settings, the number of parameters and the memory needed, draw what the network would see, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the recipes and stop
    #[arg(long)]
    pub(crate) list_presets: bool,
    /// Print nothing but errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// The type of exported weights.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Dtype {
    /// As they were trained
    F32,
    /// Rounded to 16 bits
    F16,
}

/// What only a training reads, and what neither an export nor a report would look at.
const OF_TRAINING: [&str; 12] = [
    "config",
    "data",
    "data_dir",
    "steps",
    "minutes",
    "batch_size",
    "seed",
    "resume",
    "set",
    "device",
    "dry_run",
    "list_presets",
];

const EXAMPLES: &str = "Examples:
  ddpm-train --preset digits                              handwritten digits, a few minutes on two cores
  ddpm-train --preset fashion-mnist --minutes 20          clothes, for twenty minutes
  ddpm-train --preset digits --steps 3000 --resume        the first run again, for longer
  ddpm-train --preset digits --dry-run                    what it would do
  ddpm-train --preset digits --export checkpoints/mine    what it has made, to give away
  ddpm-train --preset digits --init runs/digits --data folder:mine --out runs/mine
                                                          from its weights, on other images of as many channels
  ddpm-train --init ema.pt --arch image_size=64 num_heads=4 ... --data folder:mine --out runs/mine
                                                          the same from another program's file
  ddpm-train --report runs/digits                         what has become of it, on one page
Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted (after saving).";

/// What is printed when nothing was typed.
pub(crate) const NOTHING_TYPED: &str = "ddpm-train trains a denoising diffusion model. Type

  cargo run --release -p ddpm-train -- --preset digits

for handwritten digits in a few minutes on two cores, --list-presets for the other recipes, --help for everything.";
