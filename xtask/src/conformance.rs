//! `cargo xtask conformance`: real diffusers beside this program, both ways, in a Python environment that it makes.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::Usage;
use crate::cargo::cargo;

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    /// Write `docs/conformance.md` from the tests, and nothing else.
    page: bool,
    /// The Python that has diffusers; without it one is made.
    python: Option<PathBuf>,
    /// Models that this program wrote.
    models: Vec<PathBuf>,
    /// Random networks, and the seed they come from.
    passed_on: Vec<String>,
}

impl Flags {
    pub(crate) fn parse(typed: &[String]) -> Result<Self, Usage> {
        let mut flags = Self {
            page: false,
            python: None,
            models: Vec::new(),
            passed_on: Vec::new(),
        };
        let mut words = typed.iter();
        while let Some(flag) = words.next() {
            if flag == "--page" {
                flags.page = true;
                continue;
            }
            let known = ["--python", "--model", "--networks", "--seed"];
            if !known.contains(&flag.as_str()) {
                return Err(Usage(format!("unknown flag `{flag}`")));
            }
            let value = words.next().filter(|word| !word.starts_with("--"));
            let value = value.ok_or_else(|| Usage(format!("`{flag}` needs a value")))?;
            match flag.as_str() {
                "--python" => flags.python = Some(value.into()),
                "--model" => flags.models.push(value.into()),
                _ if value.parse::<u32>().is_err() => {
                    let message = format!("`{flag}` needs a whole number, found `{value}`");
                    return Err(Usage(message));
                }
                _ => flags.passed_on.extend([flag.clone(), value.clone()]),
            }
        }
        if flags.page && typed.len() > 1 {
            return Err(Usage("`--page` goes alone".to_owned()));
        }
        Ok(flags)
    }
}

/// Compares, or writes the page.
pub(crate) fn run(typed: &[String]) -> Result<Result<ExitCode>, Usage> {
    let flags = Flags::parse(typed)?;
    Ok(if flags.page {
        write_page()
    } else {
        compare(flags)
    })
}

/// The page is written by the test that otherwise compares it.
fn write_page() -> Result<ExitCode> {
    let mut test = cargo();
    test.args("test --package ddpm-tests --test it -- conformance::page".split(' '));
    passed(test.env("DDPM_WRITE_PAGE", "1"))
}

fn compare(flags: Flags) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in no workspace")?;
    let python = match flags.python {
        Some(python) => python,
        None => environment(root)?,
    };
    // Both at once: built one by one, what they share would be built twice, with other features.
    let words = "build --release --package ddpm-sample --bin ddpm-sample --package ddpm-unet --example compare";
    let status = cargo().args(words.split(' ')).current_dir(root).status();
    if !status.context("cannot start cargo")?.success() {
        bail!("cargo {words} failed");
    }
    // One that is not absolute is relative to where cargo was started.
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let release = root.join(target).join("release");
    let models = if flags.models.is_empty() {
        vec![root.join("checkpoints/digits")]
    } else {
        flags.models
    };
    let mut command = Command::new(&python);
    command.arg(root.join("tests/golden/conformance.py"));
    command.arg("--sample").arg(release.join("ddpm-sample"));
    command
        .arg("--compare")
        .arg(release.join("examples/compare"));
    for model in models {
        command.arg("--model").arg(model);
    }
    passed(command.args(flags.passed_on))
}

/// A virtual environment in the target folder, with the versions that the list names.
fn environment(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/conformance-python");
    let python = folder.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    if !python.is_file() {
        println!("making a Python environment in {}", folder.display());
        run_to_the_end(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    let list = root.join("tests/golden/conformance.txt");
    let mut install = Command::new(&python);
    run_to_the_end(
        install
            .args(["-m", "pip", "install", "--quiet", "-r"])
            .arg(list),
    )?;
    Ok(python)
}

fn run_to_the_end(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed; with --python PYTHON another environment is taken");
    }
    Ok(())
}

/// Runs a command whose exit status is ours.
fn passed(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
