//! What can go wrong in training, and what each message names.

use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why settings are refused, or why a run cannot begin, continue or be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A settings key has an impossible value.
    #[error("`{key}` {problem}")]
    Setting {
        /// The key, `section.name`.
        key: String,
        /// What is wrong with it and what was expected.
        problem: String,
    },
    /// A source of settings cannot be understood.
    #[error("{place}: {problem}")]
    Layer {
        /// The file, preset or flag.
        place: String,
        /// What is wrong there.
        problem: String,
    },
    /// No preset has this name.
    #[error("no preset is called `{name}`; there are: {known}")]
    UnknownPreset {
        /// What was asked for.
        name: String,
        /// All names, with commas.
        known: String,
    },
    /// The folder of a new run already holds one.
    #[error("`{}` already holds a run; continue it with --resume, or choose another folder with --out", .0.display())]
    RunExists(PathBuf),
    /// There is no run to resume.
    #[error("nothing to resume in `{}`: it has neither run.toml nor a whole checkpoint; start a run without --resume", .0.display())]
    NoRun(PathBuf),
    /// The run to resume has made all its steps, or used up its minutes.
    #[error("`{}` is at its end already; give it more --steps or --minutes", .0.display())]
    Finished(PathBuf),
    /// The run to resume has made all its steps, and its learning rate has come to 0 with them.
    #[error(
        "`{folder}` is at its end already, and its learning rate came to 0 at step {steps}, so that more steps would change \
         nothing. To train on, begin a new run from its weights: --init {folder} --out NEW_RUN"
    )]
    Decayed {
        /// The run.
        folder: String,
        /// Where the decay ended.
        steps: usize,
    },
    /// A run cannot be resumed with another value of this key.
    #[error(
        "`{key}` is {was} in the run that is to be resumed, and {now} now; a resumed run may change only steps, minutes, \
         cadences, threads, device and the place of the data"
    )]
    ResumeDiffers {
        /// The key, `section.name`.
        key: String,
        /// The value in the run.
        was: String,
        /// The value asked for.
        now: String,
    },
    /// The data on disk is not what the run was started on.
    #[error(
        "the data set {name} has sha256 {now}, but the run was started on {was}: it cannot be continued on other data. \
         To go on with these on purpose, begin a new run from its weights: --init {run} --out NEW_RUN"
    )]
    DataDiffers {
        /// The run, as it was named.
        run: String,
        /// The data set.
        name: String,
        /// Recorded in the run.
        was: String,
        /// Found now.
        now: String,
    },
    /// The training would not fit into memory.
    #[error(
        "this training needs about {needed} MiB of {whose}, and {available} MiB are to be had. Fewer images at once need less \
         and train the same: --set train.micro_batch=N, a divisor of the batch, now {at_once}. {checkpointing}To start \
         nevertheless: --set train.check_memory=false"
    )]
    Memory {
        /// The machine's, or the card's.
        whose: &'static str,
        /// MiB.
        needed: u64,
        /// MiB.
        available: u64,
        /// Images that go through the network at once.
        at_once: usize,
        /// A sentence on gradient checkpointing, with a space after it, where that is still to be had; else nothing.
        checkpointing: &'static str,
    },
    /// The numbers broke down.
    #[error(
        "step {step}: the {what} is not finite (images {}); the first bad tensor is {tensor}. \
         A lower `optimizer.learning_rate` or more `optimizer.warm_up` usually helps", list(.images)
    )]
    NotFinite {
        /// The optimiser step, from 1.
        step: usize,
        /// Loss, gradient norm or updated model.
        what: &'static str,
        /// Indices in the data set of the images whose loss is not finite, or of the whole batch.
        images: Vec<usize>,
        /// The first tensor, in the order of computation, that holds a NaN or an infinity.
        tensor: String,
    },
    /// A checkpoint lacks something that training needs.
    #[error("{place}: {problem}")]
    State {
        /// The checkpoint or run.
        place: String,
        /// What is missing or does not fit.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// `read`, `write`, ...
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The threads of the training could not be started.
    #[error("cannot start {0} threads: {1}")]
    Threads(usize, String),
    /// The device asked for cannot be had.
    #[error("--device: {0}")]
    Device(#[from] ddpm_unet::NoDevice),
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    /// The diffusion process refused something.
    #[error(transparent)]
    Core(#[from] ddpm_core::Error),
    /// A sampler's configuration was refused.
    #[error(transparent)]
    Sampler(#[from] ddpm_samplers::Error),
    /// Noise could not be drawn.
    #[error(transparent)]
    Random(#[from] ddpm_random::Error),
    /// A picture could not be made.
    #[error(transparent)]
    Image(#[from] ddpm_image::Error),
    /// The network was refused.
    #[error(transparent)]
    Network(Box<ddpm_unet::Error>),
    /// The data could not be read.
    #[error(transparent)]
    Data(Box<ddpm_data::Error>),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(Box<ddpm_checkpoint::Error>),
}

impl Error {
    /// Whether the disk, or whoever owns it, is to blame, not the training: it may be well again when the next file is due.
    pub(crate) fn is_the_disks(&self) -> bool {
        match self {
            Self::Io { .. } => true,
            Self::Checkpoint(error) => matches!(**error, ddpm_checkpoint::Error::Write { .. }),
            Self::Image(error) => matches!(
                error,
                ddpm_image::Error::Write { .. } | ddpm_image::Error::NoFolder { .. }
            ),
            _ => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

impl From<ddpm_unet::Error> for Error {
    fn from(error: ddpm_unet::Error) -> Self {
        Self::Network(Box::new(error))
    }
}

impl From<ddpm_data::Error> for Error {
    fn from(error: ddpm_data::Error) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<ddpm_checkpoint::Error> for Error {
    fn from(error: ddpm_checkpoint::Error) -> Self {
        Self::Checkpoint(Box::new(error))
    }
}

fn list(indices: &[usize]) -> String {
    let shown: Vec<_> = indices.iter().take(16).map(usize::to_string).collect();
    let more = indices.len().saturating_sub(16);
    if more > 0 {
        format!("{} and {more} more", shown.join(", "))
    } else {
        shown.join(", ")
    }
}
