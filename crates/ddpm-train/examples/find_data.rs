//! Says where a data set is found, and what is in it, or how to get it: `cargo xtask data [NAME] [--data-dir DIR]`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the person who started it"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use ddpm_data::{DataSpec, Dataset, Error, load};

fn main() -> ExitCode {
    let mut specs = Vec::new();
    let mut data_dir: Option<PathBuf> = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--data-dir" {
            data_dir = arguments.next().map(PathBuf::from);
            continue;
        }
        match argument.parse::<DataSpec>() {
            Ok(spec) => specs.push(spec),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(2);
            }
        }
    }
    if specs.is_empty() {
        specs.extend(DataSpec::ALL);
    }
    let mut code = ExitCode::SUCCESS;
    for spec in specs {
        match load(&spec, data_dir.as_deref()) {
            Ok(splits) => {
                println!("{spec}: {}", splits.origin);
                for part in [Some(&splits.train), splits.test.as_ref()]
                    .into_iter()
                    .flatten()
                {
                    println!("  {}", describe(part));
                }
            }
            Err(error) => {
                code = ExitCode::FAILURE;
                say(&spec, &error);
            }
        }
    }
    code
}

/// Not having a data set is an answer; files that cannot be used are an error.
fn say(spec: &DataSpec, error: &Error) {
    match error {
        Error::NotFound { .. } => println!("{error}"),
        _ => println!("{spec}: {error}"),
    }
}

fn describe(part: &Dataset) -> String {
    let (n, h, w, c) = (part.len(), part.height(), part.width(), part.channels());
    let classes = part.class_names().len();
    format!(
        "{}: {n} images of {h}x{w}x{c}, {classes} classes, sha256 {}",
        part.name(),
        part.sha256()
    )
}
