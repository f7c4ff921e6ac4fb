//! `cargo xtask train`: builds ddpm-train in release and becomes it.

use crate::Usage;

/// Flags that say themselves what to train, or that train nothing: no preset is added to them.
const WITHOUT_PRESET: [&str; 6] = [
    "--preset",
    "--config",
    "--list-presets",
    "--help",
    "-h",
    "--version",
];

/// What cargo is told: `[PRESET] [-- FLAGS]` as a command line of ddpm-train.
pub(crate) fn cargo_arguments(typed: &[String]) -> Result<Vec<String>, Usage> {
    let end = typed
        .iter()
        .position(|word| word == "--")
        .unwrap_or(typed.len());
    let (presets, flags) = (&typed[..end], typed.get(end + 1..).unwrap_or_default());
    let named = presets.first().filter(|word| !word.starts_with('-'));
    if let Some(extra) = presets.get(usize::from(named.is_some())) {
        let what = if extra.starts_with('-') {
            "is no preset"
        } else {
            "is one preset too many"
        };
        let (preset, flags) = presets.split_at(usize::from(named.is_some()));
        let better = [
            &["cargo xtask train".to_owned()],
            preset,
            &["--".to_owned()],
            flags,
        ]
        .concat()
        .join(" ");
        return Err(Usage(format!(
            "`{extra}` {what}; flags of ddpm-train follow `--`: {better}"
        )));
    }
    let mut arguments = ["run", "--release", "--package", "ddpm-train", "--"]
        .map(str::to_owned)
        .to_vec();
    let says_itself =
        |flag: &String| WITHOUT_PRESET.contains(&flag.split('=').next().unwrap_or_default());
    let is = |flag: &String, name: &str| flag.split('=').next() == Some(name);
    // A run that is continued knows its preset.
    let continues =
        flags.iter().any(|flag| is(flag, "--resume")) && flags.iter().any(|flag| is(flag, "--out"));
    if named.is_some() || !(continues || flags.iter().any(says_itself)) {
        arguments.push("--preset".to_owned());
        arguments.push(named.map_or("digits", String::as_str).to_owned());
    }
    arguments.extend_from_slice(flags);
    Ok(arguments)
}
