//! What was typed: the command line as clap reads it, not yet held against any file.

// The comments of fields are the program's help, where brackets are shapes.
#![allow(rustdoc::broken_intra_doc_links)]

use std::path::PathBuf;

use clap::Parser;
use ddpm_samplers::SamplerKind;

/// Makes images with a trained diffusion model.
#[derive(Debug, Parser)]
#[command(
    name = "ddpm-sample",
    version,
    after_help = "Examples:
  ddpm-sample                                            64 digits in samples.png
  ddpm-sample --model runs/mine --num 9 --seed 7         from the newest checkpoint of a run
  ddpm-sample --sampler ddpm --out images/               every step of the original walk, one PNG an image
  ddpm-sample --model runs/mine --inspect                what a model is

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)]
pub struct Flags {
    /// A run folder (its newest whole checkpoint), a checkpoint, or a diffusers folder [default: the shipped checkpoints/fashion-mnist, or checkpoints/digits]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// Which weights: ema, raw, or ema:RATE
    #[arg(long, value_name = "WHICH", default_value = "ema")]
    pub weights: ddpm_checkpoint::Weights,

    /// How many images [default: 64, or as many as --noise holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub num: Option<u64>,

    /// Images at a time; changes speed and memory, not the images
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    pub batch_size: u64,

    /// Image i of a seed is always the same image [default: 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,

    /// ddim (few steps), or ddpm (the paper's Algorithm 2)
    #[arg(long, value_name = "NAME", default_value_t = SamplerKind::Ddim)]
    pub sampler: SamplerKind,

    /// Network evaluations per image [default: 50 for ddim, every step of the schedule for ddpm]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,

    /// Noise of ddim's steps, from 0 (none) to 1 (as much as ddpm's) [default: 0]
    #[arg(long, value_name = "X")]
    pub eta: Option<f64>,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,

    /// FILE.png (a grid), FILE.npz (arr_0, u8 NHWC), FILE.safetensors (samples, f32 NCHW), or DIR/ (one PNG an image)
    #[arg(long, value_name = "PATH", default_value = "samples.png")]
    pub out: PathBuf,

    /// Start from this file's tensor noise, f32 [N,C,H,W]; its step_noise, f32 [S,N,C,H,W], is used in drawing order
    #[arg(long, value_name = "FILE.safetensors")]
    pub noise: Option<PathBuf>,

    /// Print what the model is and stop
    #[arg(long, conflicts_with_all = ["weights", "num", "batch_size", "seed", "sampler", "steps", "eta", "threads", "out", "noise"])]
    pub inspect: bool,

    /// No progress, only errors
    #[arg(long)]
    pub quiet: bool,
}
