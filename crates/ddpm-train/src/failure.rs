//! What ends the program early: what it says, and its exit status.

use ddpm_checkpoint::Error::{ArchText, Unsaid};
use ddpm_train::{Error, Run};

/// Why there is nothing, or nothing more, to do.
pub(crate) struct Failure {
    /// What is said.
    pub(crate) text: String,
    /// The exit status: 2 for what was typed, 1 for the state of files and of the training.
    pub(crate) status: u8,
}

pub(crate) const FAILED: u8 = 1;
pub(crate) const WRONG_USAGE: u8 = 2;

impl Failure {
    /// The flags were wrong, alone or with one another.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            status: WRONG_USAGE,
        }
    }

    /// Training broke off: says what is left of it, and how to go on where that helps.
    pub(crate) fn broke_off(error: &Error, run: &Run) -> Self {
        let left = match (run.newest_checkpoint(), error) {
            (None, _) => "there is no checkpoint yet".to_owned(),
            // To go on would end in the same place: what is drawn does not depend on how often one tries.
            (Some(kept), Error::NotFinite { .. }) => {
                format!("the last good checkpoint is kept: {}", kept.display())
            }
            (Some(kept), _) => format!(
                "the last good checkpoint is kept: {}\ngo on with: {}",
                kept.display(),
                go_on(run)
            ),
        };
        Self {
            text: format!("{error}\n{left}"),
            status: status(error),
        }
    }
}

impl Failure {
    /// Training is done and saved, but the report could not be written.
    pub(crate) fn without_report(error: &Error, run: &Run) -> Self {
        let folder = run.folder().display();
        let again = format!("cargo run --release -p ddpm-train -- --report {folder}");
        Self {
            text: format!(
                "{error}\nthe training itself is done and saved; write its report with: {again}"
            ),
            status: status(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            text: error.to_string(),
            status: status(&error),
        }
    }
}

/// The command that continues a run.
pub(crate) fn go_on(run: &Run) -> String {
    let folder = run.folder().display();
    format!("cargo run --release -p ddpm-train -- --resume --out {folder}")
}

fn status(error: &Error) -> u8 {
    match error {
        Error::Setting { .. } | Error::Layer { .. } | Error::UnknownPreset { .. } => WRONG_USAGE,
        Error::ResumeDiffers { .. } => WRONG_USAGE,
        Error::Checkpoint(error) if matches!(**error, Unsaid { .. } | ArchText(_)) => WRONG_USAGE,
        Error::Data(error) if matches!(**error, ddpm_data::Error::Spec { .. }) => WRONG_USAGE,
        _ => FAILED,
    }
}
