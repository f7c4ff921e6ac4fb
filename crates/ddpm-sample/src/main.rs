//! The program: flags -> validated request -> library -> printed result.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use ddpm_sample::{Failure, Flags, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Ctrl-C was pressed; the walk looks between steps.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let flags = Flags::parse();
    let watched = ctrlc::set_handler(|| {
        // A second Ctrl-C does not wait for the step to end.
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
    if let Err(error) = watched {
        return report(&Failure::Failed(
            anyhow::Error::from(error).context("cannot watch for Ctrl-C"),
        ));
    }
    match run(flags, &|| STOP.load(Ordering::SeqCst)) {
        Ok(text) if text.is_empty() => ExitCode::SUCCESS,
        // A closed standard output (`| head`) is no failure: the images are written.
        Ok(text) => {
            drop(writeln!(stdout(), "{}", text.trim_end()));
            ExitCode::SUCCESS
        }
        Err(failure) => report(&failure),
    }
}

/// Prints the chain of causes on one line, each told once, and says the exit status.
fn report(failure: &Failure) -> ExitCode {
    let mut text = failure.to_string();
    if let Failure::Failed(error) = failure {
        for cause in error
            .chain()
            .skip(1)
            .map(ToString::to_string)
            .filter(|cause| !cause.is_empty())
        {
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
    }
    let hint = if matches!(failure, Failure::Usage(_)) {
        "\n\nFor more information, try '--help'."
    } else {
        ""
    };
    drop(writeln!(stderr(), "error: {text}{hint}"));
    ExitCode::from(failure.exit_status())
}
