//! `cargo xtask ci`: every check, cheapest first, each with its time; the first that fails ends it.
//!
//! A check whose component a minimal toolchain lacks is passed over, and the last line says that not all was checked.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cargo::cargo;

/// The checks: what each is for, and the cargo command.
const STEPS: [(&str, &str); 4] = [
    ("format", "fmt --all -- --check"),
    ("lints", "clippy --workspace --all-targets -- -D warnings"),
    ("tests", "test --workspace"),
    ("documentation", "doc --workspace --no-deps"),
];

/// Runs the checks in the workspace's root.
pub(crate) fn run() -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in no workspace")?;
    let start = Instant::now();
    let mut times = Vec::new();
    let mut passed_over = Vec::new();
    for (what, command) in STEPS {
        if let Some(component) = missing_component(what) {
            println!("\n=== {what}: passed over; `rustup component add {component}` brings it");
            passed_over.push(what);
            continue;
        }
        println!("\n=== {what}: cargo {command}");
        let begun = Instant::now();
        let mut cargo = cargo();
        cargo.args(command.split(' ')).current_dir(root);
        if what == "documentation" {
            cargo.env("RUSTDOCFLAGS", "-D warnings");
        }
        let status = cargo
            .status()
            .with_context(|| format!("cannot start `cargo {command}`"))?;
        times.push(format!("{what} {:.0} s", begun.elapsed().as_secs_f64()));
        if !status.success() {
            println!(
                "\n=== {what} failed ({}); once more: cargo {command}",
                times.join(", ")
            );
            return Ok(ExitCode::FAILURE);
        }
        println!("=== {what}: {:.0} s", begun.elapsed().as_secs_f64());
    }
    let verdict = match passed_over.as_slice() {
        [] => "all is well".to_owned(),
        some => format!("nothing failed, but not checked: {}", some.join(", ")),
    };
    println!(
        "\n=== {verdict}; {} (in all {:.0} s)",
        times.join(", "),
        start.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// The component of the toolchain that a check needs and that is not installed: minimal toolchains lack two.
fn missing_component(what: &str) -> Option<&'static str> {
    let (tool, component) = match what {
        "format" => ("fmt", "rustfmt"),
        "lints" => ("clippy", "clippy"),
        _ => return None,
    };
    let asked = cargo().args([tool, "--version"]).output();
    let there = asked.is_ok_and(|output| output.status.success());
    (!there).then_some(component)
}
