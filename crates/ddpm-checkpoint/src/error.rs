//! What can go wrong between a trained model and its files; every message names the path.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be written: read-only folder, full disk, missing parent.
    #[error("cannot write {what} to {}: {source}", .path.display())]
    Write {
        /// What was being written, in words.
        what: String,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing at the path looks like a model.
    #[error("{} is not a model folder: {found}; looked for {}", .path.display(), .looked_for.join(", "))]
    NotAModel {
        /// The path that was given.
        path: PathBuf,
        /// What is there instead.
        found: &'static str,
        /// Every file or folder that would have made it one.
        looked_for: Vec<&'static str>,
    },
    /// Another process trains this run.
    #[error("`{}` is being trained by {holder}; stop that first, or train elsewhere with --out", .run.display())]
    Locked {
        /// The run folder.
        run: PathBuf,
        /// Who: `process 4711 on NAME`, as far as known.
        holder: String,
    },
    /// A run folder holds no checkpoint that can be read.
    #[error("run {} holds no whole checkpoint{}", .run.display(), list_skipped(.skipped))]
    NoWholeCheckpoint {
        /// The run folder.
        run: PathBuf,
        /// Checkpoints that were passed over, newest first.
        skipped: Vec<crate::Skipped>,
    },
    /// A part of a model folder is missing.
    #[error("{} is missing: {why}", .path.display())]
    Missing {
        /// The file that is not there.
        path: PathBuf,
        /// What it is needed for.
        why: &'static str,
    },
    /// A JSON file does not parse, or holds something else than it should.
    #[error("{}: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the line and column where known.
        reason: String,
    },
    /// A file holds something valid that this version does not read.
    #[error("{}: {reason}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it holds, and what can be read instead.
        reason: String,
    },
    /// A safetensors file is cut short or its header is wrong.
    #[error("{} is not a whole safetensors file: {reason}", .path.display())]
    TensorFile {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A file of PyTorch's is cut short, damaged, or wants more than tensors and containers.
    #[error("{} is not a file of tensors by torch.save: {reason}", .path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A model of the Hugging Face Hub is not in the cache, or cannot be fetched.
    #[error("model `{name}` of the Hugging Face Hub: {reason}")]
    Hub {
        /// What was asked for.
        name: String,
        /// What is in the way.
        reason: String,
    },
    /// A file of another program does not tell all that its network needs.
    #[error("{} holds {layout}, which does not say {}; give --arch {}", .path.display(), .keys.join(", "), .example.join(" "))]
    Unsaid {
        /// The file.
        path: PathBuf,
        /// What was recognised.
        layout: crate::Layout,
        /// Each key that must be given, with its meaning.
        keys: Vec<String>,
        /// What to give: `KEY=...`.
        example: Vec<String>,
    },
    /// What was said of a file of another program makes no sense, or contradicts the file.
    #[error("--arch: {0}")]
    ArchText(String),
    /// The tensors of a file are not those of the network that its configuration describes.
    #[error("{}: {mismatch}", .path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// Which tensors, in what way.
        mismatch: ddpm_unet::WeightsMismatch,
    },
    /// The weights that were asked for are not in the model.
    #[error("{}: no weights {asked:?}; there are {}", .path.display(), .there.join(", "))]
    NoSuchWeights {
        /// The model folder.
        path: PathBuf,
        /// What was asked for.
        asked: String,
        /// What can be asked for.
        there: Vec<String>,
    },
    /// A choice of weights that is none.
    #[error("weights {0:?} is not one of ema, raw, ema:RATE (such as ema:0.9999)")]
    WeightsText(String),
    /// The same tensor name is to be written twice.
    #[error("tensor `{name}` is given twice for {}", .path.display())]
    Twice {
        /// The name.
        name: String,
        /// The file it was meant for.
        path: PathBuf,
    },
    /// A tensor whose element type the file cannot hold.
    #[error("tensor `{name}` is {dtype}; {} holds f32, f16, f64, u8, u32 and i64", .path.display())]
    ElementType {
        /// The name.
        name: String,
        /// Its type.
        dtype: &'static str,
        /// The file it was meant for.
        path: PathBuf,
    },
    /// A weight is beyond what 16 bits can hold.
    #[error(
        "tensor `{name}` holds a number that f16 cannot (beyond 65504, or not a number): ship it as f32"
    )]
    BeyondF16 {
        /// The tensor.
        name: String,
    },
    /// A folder that should be new already holds something.
    #[error("{} already exists", .0.display())]
    Exists(PathBuf),
    /// The network's configuration is impossible or unknown.
    #[error("{}: {source}", .path.display())]
    Network {
        /// The file, or the folder it was to be written to.
        path: PathBuf,
        /// What the network says.
        source: ddpm_unet::Error,
    },
    /// The scheduler's configuration is impossible or unknown.
    #[error("{}: {source}", .path.display())]
    Scheduler {
        /// The file, or the folder it was to be written to.
        path: PathBuf,
        /// What the samplers say.
        source: ddpm_samplers::Error,
    },
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn write(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let (what, path) = (what.to_owned(), path.to_owned());
        move |source| Self::Write { what, path, source }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn malformed(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn unsupported(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn pickle(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Pickle {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn tensor_file(path: &Path, reason: impl fmt::Display) -> Self {
        Self::TensorFile {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

fn list_skipped(skipped: &[crate::Skipped]) -> String {
    skipped
        .iter()
        .map(|s| format!("; skipped {}", s.reason))
        .collect()
}
