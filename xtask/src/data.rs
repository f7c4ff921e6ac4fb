//! `cargo xtask data`: ddpm-train's example `find_data` says where a data set is, or fetches it. It is built with what
//! training needs anyway; what speaks to networks is built only when something has to be fetched.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{Usage, cargo};

/// The example's exit status for a data set that is nowhere.
const NOT_FOUND: i32 = 3;

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// Flags and names, for the example.
    words: Vec<String>,
    /// Fetch it if it is nowhere: one was named, and `--where` was not.
    fetch: bool,
}

/// Understands `[NAME] [--where] [--data-dir DIR] [--from URL]`.
pub(crate) fn typed(words: &[String]) -> Result<Typed, Usage> {
    let (mut names, mut passed, mut only_say) = (Vec::new(), Vec::new(), false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--where" => only_say = true,
            flag @ ("--data-dir" | "--from") => {
                let what = if flag == "--from" {
                    "an address"
                } else {
                    "a folder"
                };
                let value = words.next();
                let value = value.ok_or_else(|| Usage(format!("`{flag}` needs {what}")))?;
                passed.extend([flag.to_owned(), value.clone()]);
            }
            flag if flag.starts_with('-') => return Err(Usage(format!("unknown flag `{flag}`"))),
            name => names.push(name.to_owned()),
        }
    }
    if names.len() > 1 {
        let names = names.join(" ");
        return Err(Usage(format!("one data set at a time, found `{names}`")));
    }
    Ok(Typed {
        fetch: !names.is_empty() && !only_say,
        words: [names, passed].concat(),
    })
}

/// Says where the data set is; where it is nowhere, builds what fetches it, and lets that do it.
pub(crate) fn run(typed: &Typed) -> Result<ExitCode> {
    if !typed.fetch {
        return cargo::become_cargo(&arguments(typed, false));
    }
    let found = cargo::cargo().args(arguments(typed, false)).status();
    let found = found.context("cannot start cargo")?;
    if found.code() != Some(NOT_FOUND) {
        let code = found.code().and_then(|code| u8::try_from(code).ok());
        return Ok(ExitCode::from(code.unwrap_or(1)));
    }
    eprintln!("\nfetching it; what speaks to networks is built first (once, a few minutes)");
    cargo::become_cargo(&arguments(typed, true))
}

/// A command line of cargo. Release, as training is: reading and hashing a data set takes seconds otherwise.
fn arguments(typed: &Typed, fetch: bool) -> Vec<String> {
    let run = "run --release --package ddpm-train --example find_data";
    let mut arguments: Vec<String> = run.split(' ').map(str::to_owned).collect();
    if fetch {
        arguments.extend(["--features", "hub", "--", "--fetch"].map(str::to_owned));
    } else {
        arguments.push("--".to_owned());
    }
    arguments.extend(typed.words.iter().cloned());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_network_is_only_spoken_to_when_something_is_nowhere() {
        let run = "run --release --package ddpm-train --example find_data";
        for (line, fetch, passed) in [
            ("", false, ""),
            ("mnist", true, "mnist"),
            ("mnist --where", false, "mnist"),
            ("--data-dir d", false, "--data-dir d"),
            ("--data-dir d hub:a/b", true, "hub:a/b --data-dir d"),
            ("mnist --from http://m", true, "mnist --from http://m"),
        ] {
            let typed = typed(&words(line)).unwrap();
            assert_eq!(typed.fetch, fetch, "{line}");
            let first = words(&format!("{run} -- {passed}"));
            assert_eq!(arguments(&typed, false), first, "{line}");
            let second = words(&format!("{run} --features hub -- --fetch {passed}"));
            assert_eq!(arguments(&typed, true), second, "{line}");
        }
    }
}
