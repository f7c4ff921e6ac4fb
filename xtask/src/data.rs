//! `cargo xtask data`: ddpm-train's example `find_data` says where a data set is; it is built with what training needs anyway.

use crate::Usage;

/// What cargo is told: `[NAME] [--data-dir DIR]` as a command line of the example.
pub(crate) fn cargo_arguments(typed: &[String]) -> Result<Vec<String>, Usage> {
    let mut names = Vec::new();
    let mut words = typed.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--data-dir" if words.next().is_none() => {
                return Err(Usage("`--data-dir` needs a folder".to_owned()));
            }
            "--data-dir" => {}
            flag if flag.starts_with('-') => return Err(Usage(format!("unknown flag `{flag}`"))),
            name => names.push(name),
        }
    }
    if names.len() > 1 {
        return Err(Usage(format!(
            "one data set at a time, found `{}`",
            names.join(" ")
        )));
    }
    // Release, as training is: reading and hashing a data set takes seconds otherwise.
    let run = [
        "run",
        "--release",
        "--package",
        "ddpm-train",
        "--example",
        "find_data",
        "--",
    ];
    Ok(run
        .map(str::to_owned)
        .into_iter()
        .chain(typed.iter().cloned())
        .collect())
}
