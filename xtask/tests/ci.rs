//! `cargo xtask ci` with a cargo that only pretends: what is run, what is passed over, what ends it.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes the functions that tests share for library code"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Writes down what it is told, and fails where `$FAILING` matches that.
const PRETENDER: &str =
    "#!/bin/sh\necho \"$*\" >> \"$LOG\"\n! echo \"$*\" | grep -Eqe \"$FAILING\"\n";

/// Written once, before any test starts a process: a file that is being written cannot be executed.
static CARGO: LazyLock<PathBuf> = LazyLock::new(|| {
    let cargo = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pretending-cargo");
    std::fs::write(&cargo, PRETENDER).unwrap();
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755)).unwrap();
    cargo
});

/// Its exit status, what it said, and the command lines of `cargo`, of which those matching `failing` failed.
fn ci(name: &str, failing: &str) -> (Option<i32>, String, Vec<String>) {
    let cargo = CARGO.as_path();
    let log = cargo.with_file_name(format!("{name}.log"));
    std::fs::write(&log, "").unwrap();
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.arg("ci").env("CARGO", cargo).env("LOG", &log);
    let output = xtask.env("FAILING", failing).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let run = std::fs::read_to_string(&log).unwrap();
    let run = run.lines().map(str::to_owned).collect();
    (output.status.code(), text, run)
}

#[test]
fn every_check_is_made_cheapest_first() {
    let (status, text, run) = ci("whole", "nothing");
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(
        run,
        [
            "fmt --version",
            "fmt --all -- --check",
            "clippy --version",
            "clippy --workspace --all-targets -- -D warnings",
            "test --workspace",
            "doc --workspace --no-deps",
        ]
    );
    assert!(text.contains("=== all is well; format 0 s, "), "{text}");
}

#[test]
fn what_the_toolchain_lacks_is_said_and_not_called_well() {
    let (status, text, run) = ci("minimal", "--version");
    assert_eq!(status, Some(0), "{text}");
    for part in [
        "=== format: passed over; `rustup component add rustfmt` brings it",
        "=== lints: passed over; `rustup component add clippy` brings it",
        "=== nothing failed, but not checked: format, lints; tests 0 s, ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("all is well"), "{text}");
    assert_eq!(run[2..], ["test --workspace", "doc --workspace --no-deps"]);
}

#[test]
fn the_first_failure_ends_it() {
    let (status, text, run) = ci("failing", "^clippy.*warnings");
    assert_eq!(status, Some(1), "{text}");
    let again = "once more: cargo clippy --workspace --all-targets -- -D warnings";
    assert!(
        text.contains("=== lints failed (format 0 s, ") && text.contains(again),
        "{text}"
    );
    assert!(!run.iter().any(|line| line.starts_with("test")), "{run:?}");
}
