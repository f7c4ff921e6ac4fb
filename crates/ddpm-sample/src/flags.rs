//! What was typed: the command line as clap reads it, not yet held against any file.

// The comments of fields are the program's help, where brackets are shapes.
#![allow(rustdoc::broken_intra_doc_links)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueEnum};
use ddpm_core::Spacing;
use ddpm_samplers::SamplerKind;
use ddpm_unet::{DeviceName, PrecisionName};

/// Makes images with a trained diffusion model.
#[derive(Debug, Parser)]
#[command(
    name = "ddpm-sample",
    version,
    after_help = "Examples:
  ddpm-sample                                            64 pieces of clothing in samples.png
  ddpm-sample --model runs/mine --num 9 --seed 7         from the newest checkpoint of a run
  ddpm-sample --sampler ddpm --out images/               every step of the original walk, one PNG an image
  ddpm-sample --sampler dpm++ --steps 12                 as good in a quarter of the time
  ddpm-sample --model FOLDER --rng torch --seed 0        the images that diffusers makes of FOLDER and this seed
  ddpm-sample --num 16 --out walk.gif                    how 16 images appear from noise
  ddpm-sample --num 8 --strip                            the same as a strip, one row an image
  ddpm-sample --inpaint old.png --mask keep.png --num 4  four ways to fill the black part of keep.png
  ddpm-sample --invert old.png --no-clip --out x.safetensors   the noise that --noise x.safetensors --sampler ddim --no-clip makes old.png of
  ddpm-sample --model runs/mine --inspect                what a model is
  ddpm-sample --model ema.pt --arch image_size=64 num_heads=4 ... --save-model DIR   another program's file as a folder

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)]
pub struct Flags {
    /// A run folder (its newest whole checkpoint), a checkpoint, a diffusers folder, another program's file (.pt, .ckpt, ...), or OWNER/NAME[@REVISION] of the Hugging Face Hub [default: the shipped checkpoints/fashion-mnist, or checkpoints/digits]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<PathBuf>,

    /// What another program's file does not say about its network: image_size=32 num_heads=4 ...; an error lists what is missing
    #[arg(long, value_name = "KEY=VALUE", num_args = 1.., requires = "model")]
    pub arch: Vec<String>,

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

    /// ddpm (the paper's Algorithm 2), ddim, dpm++ (also 3m, 2s, sde: dpm++sde), dpm, dpm-sde, unipc, deis, pndm, plms, lms, euler, euler-a,
    /// heun, kdpm2, kdpm2-a, edm, edm-dpm++, sde-ve [default: ddim, or what a foreign folder's scheduler says if it is not ddpm; with --rng torch the folder's own]
    #[arg(long, value_name = "NAME")]
    pub sampler: Option<SamplerKind>,

    /// Steps of the walk; heun and kdpm2 ask the network twice a step [default: 50, 20 for those of higher order, every step of the schedule for ddpm]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,

    /// The network times of the walk instead, T-1 to 0, falling: 999,850,700,...
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["steps", "spacing", "levels"])]
    pub timesteps: Option<Vec<usize>>,

    /// The noise levels of the walk instead, falling, its end included: 80,20,5,1,0.2,0
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with_all = ["steps", "timesteps", "spacing", "levels"])]
    pub sigmas: Option<Vec<f64>>,

    /// Order of dpm++, dpm, unipc and deis: how many answers of the network a step uses [default: 2]
    #[arg(long, value_name = "N")]
    pub order: Option<usize>,

    /// How noise levels fall: as trained, karras, exponential, beta, lu or flow [default: as the scheduler says]
    #[arg(long, value_name = "CURVE", hide_possible_values = true)]
    pub levels: Option<CurveName>,

    /// Which steps of training a shorter walk takes: leading, linspace or trailing [default: as the scheduler says]
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub spacing: Option<SpacingName>,

    /// Noise of ddim's steps, from 0 (none) to 1 (as much as ddpm's) [default: 0]
    #[arg(long, value_name = "X")]
    pub eta: Option<f64>,

    /// Do not clip what the network takes for the image; for --invert and the way back from its noise, which clipping spoils
    #[arg(long)]
    pub no_clip: bool,

    /// Class of the images, 0 on, of a model that knows classes; all: each in turn, a column of the grid [default: drawn by the seed]
    #[arg(long, value_name = "N|all")]
    pub class: Option<ClassChoice>,

    /// Paint the black part of --mask in this image anew, by RePaint: FILE.png, or FILE.safetensors (samples, f32 [N,C,H,W])
    #[arg(long, value_name = "IMAGE", requires = "mask", conflicts_with_all = ["sampler", "timesteps", "sigmas", "order", "levels", "spacing"])]
    pub inpaint: Option<PathBuf>,

    /// White where --inpaint is kept, black where it is painted: FILE.png, or FILE.safetensors (mask, 1 is white, [1,1,H,W] or one an image)
    #[arg(long, value_name = "IMAGE", requires = "inpaint")]
    pub mask: Option<PathBuf>,

    /// RePaint goes back up by LENGTH steps, so that each stretch is walked COUNT times [default: 10,10]
    #[arg(long, value_name = "LENGTH,COUNT", requires = "inpaint")]
    pub jumps: Option<Jumps>,

    /// Go the way of ddim back, from this image to the noise that makes it: --out FILE.safetensors is for --noise
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["inpaint", "noise", "rng", "seed", "sampler", "eta", "order", "levels", "sigmas", "strip"])]
    pub invert: Option<PathBuf>,

    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,

    /// Where: auto, which is the first NVIDIA card that can be used, else the CPU; cpu; cuda; or cuda:N [default: auto]
    #[arg(
        long,
        value_name = "auto|cpu|cuda[:N]",
        default_value = "auto",
        hide_default_value = true
    )]
    pub device: DeviceName,

    /// What the network computes in: f32; bf16, rougher and several times faster where the processor has units for it; or auto, which is bf16 there; f32 on a card [default: f32]
    #[arg(
        long,
        value_name = "KIND",
        default_value = "f32",
        hide_default_value = true
    )]
    pub precision: PrecisionName,

    /// FILE.png (a grid), FILE.gif (the walk from noise to it), FILE.npz (arr_0, u8 NHWC; arr_1, the classes), FILE.safetensors (samples, f32 NCHW), or DIR/ (one PNG an image)
    #[arg(long, value_name = "PATH", default_value = "samples.png")]
    pub out: PathBuf,

    /// Make FILE.png a strip: x_t at some times from left to right, one row an image
    #[arg(long)]
    pub strip: bool,

    /// Noise by ddpm (an address for every number), or by torch: diffusers' pipeline called once a batch with one CPU generator [default: ddpm]
    #[arg(
        long,
        value_name = "WHOSE",
        default_value = "ddpm",
        hide_possible_values = true,
        hide_default_value = true,
        conflicts_with = "noise"
    )]
    pub rng: Rng,

    /// Start from this file's tensor noise, f32 [N,C,H,W]; its step_noise, f32 [S,N,C,H,W], is used in drawing order, its classes are those of the images
    #[arg(long, value_name = "FILE.safetensors")]
    pub noise: Option<PathBuf>,

    /// Write the model as a new folder, diffusers' where it has the network, and stop
    #[arg(long, value_name = "DIR", conflicts_with_all = ["num", "batch_size", "seed", "sampler", "steps", "timesteps", "sigmas", "order", "levels", "spacing", "eta", "no_clip", "class", "inpaint", "mask", "jumps", "invert", "device", "precision", "out", "strip", "rng", "noise", "inspect"])]
    pub save_model: Option<PathBuf>,

    /// Print what the model is and stop
    #[arg(long, conflicts_with_all = ["weights", "num", "batch_size", "seed", "sampler", "steps", "timesteps", "sigmas", "order", "levels", "spacing", "eta", "no_clip", "class", "inpaint", "mask", "jumps", "invert", "threads", "device", "precision", "out", "strip", "rng", "noise"])]
    pub inspect: bool,

    /// No progress, only errors
    #[arg(long)]
    pub quiet: bool,
}

/// `--class`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassChoice {
    /// Each in turn.
    All,
    /// One.
    Number(u64),
}

impl FromStr for ClassChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("all", _) => Ok(Self::All),
            (_, Ok(number)) => Ok(Self::Number(number)),
            _ => Err("expected a whole number of at least 0, or `all`".to_owned()),
        }
    }
}

impl fmt::Display for ClassChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// `--jumps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jumps {
    /// Steps of a jump.
    pub length: usize,
    /// How often each stretch is walked.
    pub count: usize,
}

impl Default for Jumps {
    /// As diffusers' `RePaintPipeline`.
    fn default() -> Self {
        Self {
            length: 10,
            count: 10,
        }
    }
}

impl FromStr for Jumps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(',').map(|(l, c)| (l.parse(), c.parse()));
        match numbers {
            Some((Ok(length), Ok(count))) if length > 0 && count > 0 => Ok(Self { length, count }),
            _ => Err("expected two whole numbers of at least 1, as 10,10".to_owned()),
        }
    }
}

impl fmt::Display for Jumps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.length, self.count)
    }
}

/// How noise levels fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it; see ddpm_samplers::Curve")]
pub enum CurveName {
    Trained,
    Karras,
    Exponential,
    Beta,
    Lu,
    Flow,
}

/// Which steps of training a shorter walk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it; see ddpm_core::Spacing")]
pub enum SpacingName {
    Leading,
    Linspace,
    Trailing,
}

/// Whose random numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rng {
    /// Ours: every number has an address.
    #[default]
    Ddpm,
    /// PyTorch's CPU generator.
    Torch,
}

impl SpacingName {
    /// Without an offset.
    pub(crate) fn spacing(self) -> Spacing {
        match self {
            Self::Leading => Spacing::Leading { offset: 0 },
            Self::Linspace => Spacing::Linspace,
            Self::Trailing => Spacing::Trailing,
        }
    }
}

impl fmt::Display for CurveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
