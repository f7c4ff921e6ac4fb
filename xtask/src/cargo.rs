//! The cargo that started this program, started again.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

/// A cargo command that has not started yet.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Turns this process into `cargo ARGUMENTS`: signals, the terminal and the exit status are then the program's own,
/// so that Ctrl-C lets training save, with nothing in between.
#[cfg(unix)]
pub(crate) fn become_cargo(arguments: &[String]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    Err(cargo().args(arguments).exec()).context("cannot start cargo")
}

/// Runs `cargo ARGUMENTS` and passes its exit status on.
#[cfg(not(unix))]
pub(crate) fn become_cargo(arguments: &[String]) -> Result<ExitCode> {
    let status = cargo()
        .args(arguments)
        .status()
        .context("cannot start cargo")?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}
