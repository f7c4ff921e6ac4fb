//! The program as a user sees it: usage, exit status, Ctrl-C, kill -9.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::TINY;
use crate::resume::{newest_bits, timeless};

fn program(folder: &Path, flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ddpm-train"));
    command
        .current_dir(folder)
        .args(flags.split_whitespace())
        .stdin(Stdio::null());
    command
}

fn run(folder: &Path, flags: &str) -> Output {
    program(folder, flags).output().unwrap()
}

/// A folder with `tiny.toml` in it.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    folder
}

#[track_caller]
fn check(folder: &Path, flags: &str, status: i32, expected: &[&str]) -> String {
    let output = run(folder, flags);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(status), "{flags}: {text}");
    for part in expected {
        assert!(text.contains(part), "{flags}: {part:?} is not in\n{text}");
    }
    text
}

#[test]
fn wrong_usage_says_what_to_type() {
    let folder = workplace();
    let path = folder.path();
    check(
        path,
        "",
        2,
        &["cargo run --release -p ddpm-train -- --preset digits"],
    );
    check(
        path,
        "--quiet",
        2,
        &["error: say what to train: --preset NAME", "--config FILE"],
    );
    check(
        path,
        "--preset cats",
        2,
        &["error: no preset is called `cats`; there are: digits, fashion-mnist"],
    );
    check(
        path,
        "--preset digits --config tiny.toml",
        2,
        &["--preset", "--config"],
    );
    check(
        path,
        "--resume",
        2,
        &["error: say which run to resume: --resume --out RUN_DIR"],
    );
    check(
        path,
        "--preset digits --resume",
        2,
        &["error: nothing to resume in `runs/digits`"],
    );
    check(
        path,
        "--config none.toml",
        2,
        &["error: cannot read `none.toml`"],
    );
    check(
        path,
        "--config tiny.toml --steps 0",
        2,
        &["error: `train.steps` is 0; at least 1 is needed"],
    );
    check(
        path,
        "--config tiny.toml --steps x",
        2,
        &["invalid value 'x' for '--steps <N>'"],
    );
    check(
        path,
        "--config tiny.toml --set train.stepz=1",
        2,
        &["error: --set train.stepz=1: unknown field `stepz`"],
    );
    check(path, "--config tiny.toml --data cats", 1, &["cats"]);
    check(
        path,
        "--config tiny.toml --data mnist --data-dir nowhere",
        1,
        &["nowhere"],
    );
    check(
        path,
        "--preset digits --device cpu",
        2,
        &["unexpected argument '--device'"],
    );
    check(
        path,
        "--help",
        0,
        &[
            "Examples:",
            "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted",
        ],
    );
    check(
        path,
        "--list-presets",
        0,
        &["digits\n    cargo xtask train digits", "fashion-mnist\n"],
    );
    assert!(!path.join("runs").exists(), "something was written");
}

#[test]
fn a_dry_run_says_everything_and_writes_nothing() {
    let folder = workplace();
    let text = check(
        folder.path(),
        "--config tiny.toml --minutes 3 --seed 7 --set optimizer.decay=constant --dry-run",
        0,
        &[
            "minutes = 3.0",
            "seed = 7",
            "beta_start = 0.0001",
            "# parameters  ",
            "# memory      about ",
            "1497 images, 8x8, 1 channels",
        ],
    );
    assert!(
        !text.contains("\nsteps = 10\n"),
        "--minutes alone lifts the steps:\n{text}"
    );
    assert!(!folder.path().join("runs").exists());
    check(
        folder.path(),
        "--preset digits --dry-run",
        0,
        &["# run         runs/digits"],
    );
}

#[test]
fn a_run_says_where_everything_is_and_goes_on_for_longer() {
    let folder = workplace();
    let path = folder.path();
    let expected = [
        "run         runs/tiny",
        "checkpoint  runs/tiny/checkpoints/step-00000003",
        "picture     runs/tiny/samples/step-00000003.png",
        "cargo run --release -p ddpm-sample -- --model runs/tiny",
        "held-out loss ",
        "step 3/3  loss ",
    ];
    check(path, "--config tiny.toml --steps 3", 0, &expected);
    check(
        path,
        "--config tiny.toml --steps 3",
        2,
        &["error: `runs/tiny` already holds a run; continue it with --resume"],
    );
    check(
        path,
        "--resume --out runs/tiny",
        2,
        &["error: `runs/tiny` is at its end already; give it more --steps or --minutes"],
    );
    check(
        path,
        "--resume --out runs/tiny --batch-size 2",
        2,
        &["error: `train.batch_size` is 4 in the run"],
    );
    check(
        path,
        "--resume --out runs/tiny --steps 5",
        0,
        &["goes on after step 3", "step-00000005"],
    );
    assert_eq!(
        check(
            path,
            "--config tiny.toml --resume --steps 6 --quiet",
            0,
            &[]
        ),
        ""
    );
    assert_eq!(timeless(&path.join("runs/tiny")).len(), 6);
    check(
        path,
        "--config tiny.toml --minutes 0.001 --out timed",
        0,
        &["run         timed"],
    );
    check(
        path,
        "--config tiny.toml --out huge --set optimizer.learning_rate=1e30",
        1,
        &["is not finite", "the first bad tensor is "],
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_the_step_and_saves() {
    let folder = workplace();
    let path = folder.path();
    check(
        path,
        "--config tiny.toml --steps 40 --out whole --set samples.count=0",
        0,
        &[],
    );
    let child = program(
        path,
        "--config tiny.toml --steps 40 --out parts --set samples.count=0",
    )
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    wait_for(&path.join("parts/metrics.jsonl"), 3);
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(
        text.contains("stopped after step ") && text.contains("--resume --out parts"),
        "{text}"
    );
    check(path, "--resume --out parts", 0, &["goes on after step "]);
    assert!(newest_bits(&path.join("whole")) == newest_bits(&path.join("parts")));
    assert_eq!(timeless(&path.join("whole")), timeless(&path.join("parts")));
}

#[test]
fn kill_9_at_any_moment_loses_nothing_but_time() {
    let folder = workplace();
    let path = folder.path();
    let flags = "--config tiny.toml --steps 24 --set train.checkpoint_every=2 --set train.micro_batch=2 --set samples.every=7";
    check(path, &format!("{flags} --threads 2 --out whole"), 0, &[]);
    let mut child = program(path, &format!("{flags} --threads 1 --out parts --quiet"))
        .spawn()
        .unwrap();
    wait_for(&path.join("parts/metrics.jsonl"), 1);
    let mut kills = 0;
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(17 + 41 * round));
        child.kill().unwrap();
        let killed = !child.wait().unwrap().success();
        kills += usize::from(killed);
        if !killed || newest_is(path, 24) {
            break;
        }
        child = program(
            path,
            &format!("--resume --out parts --threads {} --quiet", 1 + round % 2),
        )
        .spawn()
        .unwrap();
    }
    child.wait().unwrap();
    assert!(kills >= 2, "only {kills} rounds were killed");
    if !newest_is(path, 24) {
        check(path, "--resume --out parts --threads 2", 0, &[]);
    }
    assert!(newest_bits(&path.join("whole")) == newest_bits(&path.join("parts")));
    let steps = |name: &str| timeless(&path.join(name));
    assert_eq!(steps("whole"), steps("parts"));
}

fn newest_is(path: &Path, step: u64) -> bool {
    ddpm_checkpoint::list_checkpoints(&path.join("parts"))
        .unwrap()
        .last()
        .is_some_and(|newest| newest.step == step)
}

fn wait_for(metrics: &Path, lines: usize) {
    let began = Instant::now();
    while std::fs::read_to_string(metrics).map_or(0, |text| text.lines().count()) < lines {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "no {lines} lines in {}",
            metrics.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
