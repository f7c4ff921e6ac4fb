//! Says where a data set is found, and what is in it, or fetches it: `cargo xtask data [NAME] [--data-dir DIR]`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the person who started it"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use ddpm_data::{DataSpec, Dataset, Error, load};

/// The exit status for a data set that is nowhere.
const NOT_FOUND: u8 = 3;

/// What was typed.
#[derive(Default)]
struct Typed {
    specs: Vec<DataSpec>,
    data_dir: Option<PathBuf>,
    /// Fetch what is nowhere; only with the feature `hub`.
    fetch: bool,
    /// Another server that has the files.
    from: Option<String>,
}

fn main() -> ExitCode {
    let mut typed = match parse() {
        Ok(typed) => typed,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if typed.specs.is_empty() {
        typed.specs.extend(DataSpec::ALL);
    }
    let mut code = ExitCode::SUCCESS;
    for spec in &typed.specs {
        match find(spec, &typed) {
            Ok(()) => {}
            Err(error @ Error::NotFound { .. }) => {
                println!("{error}");
                code = ExitCode::from(NOT_FOUND);
            }
            Err(error) => {
                eprintln!("error: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn parse() -> Result<Typed, String> {
    let mut typed = Typed::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--data-dir" => typed.data_dir = words.next().map(PathBuf::from),
            "--from" => typed.from = words.next(),
            "--fetch" => typed.fetch = true,
            name => typed
                .specs
                .push(name.parse().map_err(|error: Error| error.to_string())?),
        }
    }
    Ok(typed)
}

/// Says what is there; where there is nothing and it was asked for, fetches it first.
fn find(spec: &DataSpec, typed: &Typed) -> Result<(), Error> {
    let found = load(spec, typed.data_dir.as_deref());
    let splits = match found {
        #[cfg(feature = "hub")]
        Err(Error::NotFound { .. } | Error::FileMissing { .. }) if typed.fetch => {
            fetch(spec, typed)?;
            load(spec, typed.data_dir.as_deref())?
        }
        found => found?,
    };
    println!("{spec}: {}", splits.origin);
    let parts = [Some(&splits.train), splits.test.as_ref()];
    for part in parts.into_iter().flatten() {
        println!("  {}", describe(part));
    }
    Ok(())
}

#[cfg(feature = "hub")]
fn fetch(spec: &DataSpec, typed: &Typed) -> Result<(), Error> {
    use ddpm_data::Fetching;
    let mut tell = |what: Fetching| match what {
        Fetching::There(path) => eprintln!("{} is there", path.display()),
        Fetching::Came(path, have, all) => {
            let percent = 100 * have / all.max(1);
            eprintln!("{}: {percent}% of {} MB", path.display(), all / 1_000_000);
        }
        Fetching::Done(path) => eprintln!("{} has come, sha256 verified", path.display()),
    };
    let data_dir = typed.data_dir.as_deref();
    let folder = ddpm_data::fetch(spec, data_dir, typed.from.as_deref(), &mut tell)?;
    eprintln!("{spec} is in {}", folder.display());
    Ok(())
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
