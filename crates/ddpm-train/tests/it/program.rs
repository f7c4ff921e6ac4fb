//! The program as a user sees it: usage, exit status, Ctrl-C, kill -9.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::TINY;
use crate::resume::{newest_bits, timeless};

pub(crate) fn program(folder: &Path, flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ddpm-train"));
    command
        .current_dir(folder)
        .args(words(flags))
        .stdin(Stdio::null());
    command
}

/// What the program is told: to train on the device of the tests, where one is named and the flags name none.
pub(crate) fn words(flags: &str) -> Vec<String> {
    let mut words: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
    let trains = ["--config", "--preset", "--resume"]
        .iter()
        .any(|flag| words.iter().any(|word| word == flag));
    if let (Some(name), true) = (ddpm_tests::named(), trains && !flags.contains("device")) {
        words.extend(["--device".to_owned(), name.to_string()]);
    }
    words
}

fn run(folder: &Path, flags: &str) -> Output {
    program(folder, flags).output().unwrap()
}

/// A folder with `tiny.toml` in it.
pub(crate) fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    folder
}

#[track_caller]
pub(crate) fn check(folder: &Path, flags: &str, status: i32, expected: &[&str]) -> String {
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
        &[
            "error: no preset is called `cats`; there are: digits, fashion-mnist, mnist, cifar10, tiny-imagenet",
        ],
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
        1,
        &["error: nothing to resume in `runs/digits`"],
    );
    check(
        path,
        "--config none.toml",
        1,
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
    check(
        path,
        "--config tiny.toml --data cats",
        2,
        &["error: data set `cats`: unknown; this version reads digits, mnist"],
    );
    check(
        path,
        "--config tiny.toml --data-dir nowhere",
        2,
        &["error: `data.directory` (--data-dir) only goes with data that are files"],
    );
    check(
        path,
        "--config tiny.toml --data mnist --data-dir nowhere",
        1,
        &["nowhere"],
    );
    check(
        path,
        "--preset digits --device gpu",
        2,
        &["`gpu` is no device, expected auto, cpu, cuda or cuda:N"],
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
fn a_dry_run_says_everything_and_writes_only_what_the_network_would_see() {
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
            "1497 images, 8x8, 1 channels, inside the program",
            "# sheet       runs/tiny-data.png: the first images of training",
        ],
    );
    assert!(
        !text.contains("\nsteps = 10\n"),
        "--minutes alone lifts the steps:\n{text}"
    );
    assert!(!folder.path().join("runs/tiny").exists());
    let (sheet, texts) = ddpm_image::read_png(folder.path().join("runs/tiny-data.png")).unwrap();
    // 64 digits of 8x8, enlarged four times, in eight rows with two pixels between them.
    assert_eq!((sheet.width(), sheet.height()), (8 * 34 + 2, 8 * 34 + 2));
    assert!(texts.contains(&("data".to_owned(), "digits".to_owned())));
    check(
        folder.path(),
        "--preset digits --dry-run",
        0,
        &["# run         runs/digits"],
    );
}

#[test]
fn a_report_is_made_of_any_run_folder() {
    let folder = workplace();
    let path = folder.path();
    let page = path.join("runs/tiny/report.html");
    let flags = "--config tiny.toml --steps 2 --set train.report=false";
    let text = check(path, flags, 0, &["run         runs/tiny"]);
    assert!(!text.contains("report") && !page.exists(), "{text}");
    check(
        path,
        "--report runs/tiny",
        0,
        &["report      runs/tiny/report.html"],
    );
    assert!(page.exists());
    check(path, "--report runs/none", 1, &["error: ", "runs/none"]);
    for ignored in [
        "--steps 3",
        "--out runs/tiny",
        "--resume",
        "--preset digits",
    ] {
        let flags = format!("--report runs/tiny {ignored}");
        check(path, &flags, 2, &["cannot be used with"]);
    }
    // Training is not lost by a report that cannot be written.
    std::fs::remove_file(path.join("runs/tiny/loss.png")).unwrap();
    std::fs::create_dir(path.join("runs/tiny/loss.png")).unwrap();
    check(
        path,
        "--resume --out runs/tiny --steps 3 --set train.report=true",
        1,
        &[
            "loss.png",
            "the training itself is done and saved; write its report with: \
             cargo run --release -p ddpm-train -- --report runs/tiny",
        ],
    );
    assert!(path.join("runs/tiny/checkpoints/step-00000003").is_dir());
}

#[test]
fn a_run_says_where_everything_is_and_goes_on_for_longer() {
    let folder = workplace();
    let path = folder.path();
    let expected = [
        "run         runs/tiny",
        "checkpoint  runs/tiny/checkpoints/step-00000003",
        "picture     runs/tiny/samples/step-00000003.png",
        "report      runs/tiny/report.html",
        "cargo run --release -p ddpm-sample -- --model runs/tiny",
        "held-out loss ",
        "step 3/3  loss ",
    ];
    check(path, "--config tiny.toml --steps 3", 0, &expected);
    check(
        path,
        "--config tiny.toml --steps 3",
        1,
        &["error: `runs/tiny` already holds a run; continue it with --resume"],
    );
    check(
        path,
        "--resume --out runs/tiny",
        1,
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
        &[
            "is not finite",
            "the first bad tensor is ",
            "\nthere is no checkpoint yet",
        ],
    );
}

#[test]
fn a_preset_that_a_resumed_run_would_ignore_is_refused() {
    let folder = workplace();
    let path = folder.path();
    let small =
        "--set model.block_out_channels=[4,8] --set model.norm_num_groups=2 --set samples.count=0";
    check(
        path,
        &format!("--preset digits --steps 1 --batch-size 2 {small}"),
        0,
        &["runs/digits"],
    );
    check(
        path,
        "--preset fashion-mnist --resume --out runs/digits --steps 2",
        2,
        &["error: `runs/digits` was begun with --preset digits, not fashion-mnist; leave"],
    );
    check(
        path,
        "--preset digits --resume --steps 2",
        0,
        &["goes on after step 1"],
    );
    check(
        path,
        "--resume --out runs/digits --steps 3",
        0,
        &["goes on after step 2"],
    );
    check(path, "--config tiny.toml --steps 1", 0, &[]);
    check(
        path,
        "--preset digits --resume --out runs/tiny --steps 2",
        2,
        &[
            "error: `runs/tiny` was not begun with --preset digits; ",
            "--resume --out runs/tiny",
        ],
    );
}

#[test]
fn minutes_do_not_replace_the_length_of_a_decay() {
    let folder = workplace();
    let path = folder.path();
    let decay = "--config tiny.toml --set optimizer.decay=cosine";
    // Both are limits: whichever comes first.
    let both = ["minutes = 1.0", "steps = 10", "decay_steps = 10"];
    check(path, &format!("{decay} --minutes 1 --dry-run"), 0, &both);
    check(path, &format!("{decay} --minutes 9 --steps 5"), 0, &[]);
    check(
        path,
        "--resume --out runs/tiny --minutes 20",
        1,
        &["error: `runs/tiny` is at its end already"],
    );
    std::fs::write(path.join("endless.toml"), TINY.replace("steps = 10\n", "")).unwrap();
    check(
        path,
        "--config endless.toml --set optimizer.decay=cosine --minutes 1",
        2,
        &["error: `optimizer.decay_steps` is missing: a decaying learning rate needs a length"],
    );
}

#[test]
fn a_lost_run_toml_is_said_and_replaced_by_the_checkpoints() {
    let folder = workplace();
    let path = folder.path();
    check(path, "--config tiny.toml --steps 5", 0, &[]);
    std::fs::remove_file(path.join("runs/tiny/run.toml")).unwrap();
    check(
        path,
        "--resume --out runs/tiny --steps 6",
        0,
        &[
            "warning: `runs/tiny` has lost its run.toml; its settings are those of runs/tiny/checkpoints/step-00000005",
            "goes on after step 5",
        ],
    );
    assert!(path.join("runs/tiny/run.toml").is_file());
}

/// Every file that the program writes may have 8 KiB: enough for all but the tensors.
#[cfg(unix)]
fn on_a_small_disk(folder: &Path, flags: &str) -> Output {
    // Without the trap the system would end the program before it can say anything.
    let limited = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.current_dir(folder).args(["-c", limited]);
    shell.arg(env!("CARGO_BIN_EXE_ddpm-train"));
    shell.args(words(flags)).output().unwrap()
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_keeps_the_last_good_checkpoint_and_says_so() {
    let folder = workplace();
    let path = folder.path();
    check(path, "--config tiny.toml --out whole --steps 5", 0, &[]);
    check(path, "--resume --out whole --steps 10", 0, &[]);
    check(path, "--config tiny.toml --out parts --steps 5", 0, &[]);
    let checkpoints = path.join("parts/checkpoints");
    // What a kill in the middle of a checkpoint left; it may be what fills the disk, so it goes first.
    let left_over = checkpoints.join(".step-00000003.tmp-1");
    std::fs::create_dir_all(left_over.join("unet")).unwrap();
    std::fs::write(left_over.join("unet/config.json"), "{}").unwrap();

    // Without event files, which would be what does not fit.
    let flags = "--resume --out parts --steps 10 --set train.tensorboard=false";
    let output = on_a_small_disk(path, flags);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "error: cannot write ",
        " to parts/checkpoints/step-00000010/",
        "\nthe last good checkpoint is kept: parts/checkpoints/step-00000005",
        "\ngo on with: cargo run --release -p ddpm-train -- --resume --out parts\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let names: Vec<_> = std::fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["step-00000005"]);
    check(path, "--resume --out parts", 0, &["goes on after step 5"]);
    assert!(newest_bits(&path.join("whole")) == newest_bits(&path.join("parts")));
    assert_eq!(timeless(&path.join("whole")), timeless(&path.join("parts")));
}

/// The program after its first line on the error stream, all of which nobody reads any longer.
#[cfg(unix)]
fn unread(folder: &Path, flags: &str) -> Child {
    let mut command = program(folder, flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(child.stderr.take().unwrap());
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert!(line.ends_with("Ctrl-C stops it and saves\n"), "{line}");
    child
}

#[cfg(unix)]
#[test]
fn readers_that_go_away_lose_nothing() {
    let folder = workplace();
    let path = folder.path();
    // Something is said at every checkpoint.
    let flags =
        "--config tiny.toml --steps 40 --set samples.count=0 --set train.checkpoint_every=2";
    let status = unread(path, &format!("{flags} --out whole")).wait();
    assert_eq!(status.unwrap().code(), Some(0));
    assert_eq!(newest_bits(&path.join("whole")).0, 40);

    let mut child = unread(path, &format!("{flags} --out parts"));
    wait_for(&path.join("parts/metrics.jsonl"), 3);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let saved = newest_bits(&path.join("parts")).0;
    assert_eq!(timeless(&path.join("parts")).len() as u64, saved);
    check(path, "--resume --out parts", 0, &["goes on after step "]);
    assert!(newest_bits(&path.join("whole")) == newest_bits(&path.join("parts")));
}

#[cfg(target_os = "linux")]
#[test]
fn candle_has_as_many_threads_as_training_and_memory_is_kept() {
    let folder = workplace();
    let path = folder.path();
    let told = |flags: &str, by_hand: Option<&str>| {
        let flags = format!("--config tiny.toml --steps 100000 --quiet {flags}");
        let mut command = program(path, &flags);
        command.env_remove("CANDLE_NUM_THREADS");
        command.env_remove("RAYON_NUM_THREADS");
        command.env_remove("MIMALLOC_PURGE_DELAY");
        command.envs(by_hand.map(|n| ("CANDLE_NUM_THREADS", n)));
        let mut child = command.spawn().unwrap();
        let out = flags.rsplit(' ').next().unwrap();
        wait_for(&path.join(out).join("metrics.jsonl"), 1);
        let process = Path::new("/proc").join(child.id().to_string());
        let read = |file: &str| std::fs::read(process.join(file)).unwrap();
        let (environment, typed) = (read("environ"), read("cmdline"));
        child.kill().unwrap();
        child.wait().unwrap();
        let typed = String::from_utf8(typed).unwrap();
        let typed: Vec<&str> = typed.trim_end_matches('\0').split('\0').skip(1).collect();
        assert_eq!(typed, words(&flags));
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let value = |name: &str| environment.split('\0').find_map(|v| v.strip_prefix(name));
        assert_eq!(value("MIMALLOC_PURGE_DELAY="), Some("-1"));
        value("CANDLE_NUM_THREADS=").map(str::to_owned)
    };
    assert_eq!(told("--threads 1 --out one", None).unwrap(), "1");
    assert_eq!(told("--threads 1 --out hand", Some("3")).unwrap(), "3");
    let all = std::thread::available_parallelism().unwrap().to_string();
    assert_eq!(told("--out all", None), Some(all));
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
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
    interrupt(&child);
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

/// How often; the usual few take seconds. `DDPM_KILLS=100 cargo test -p ddpm-train --test it -- kill_9` is the long
/// proof; another `DDPM_KILLS_SEED` gives other moments.
fn number_from(variable: &str, usual: u64) -> u64 {
    let said = std::env::var(variable).ok();
    said.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn kill_9_at_any_moment_loses_nothing_but_time() {
    let kills = number_from("DDPM_KILLS", 8);
    let mut dice = number_from("DDPM_KILLS_SEED", 1);
    let folder = workplace();
    let path = folder.path();
    // Most of the time goes into writing: a checkpoint every step, pictures, held-out losses.
    let flags = "--config tiny.toml --set train.checkpoint_every=1 --set train.micro_batch=2 \
                 --set train.held_out_every=3 --set samples.every=2 --quiet";
    let parts = path.join("parts");
    let mut reached = 0;
    for kill in 0..kills {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wait = Duration::from_micros((dice >> 33) % 700_000);
        let what = match parts.join("run.toml").exists() {
            true => "--resume --quiet --out parts --steps 1000000".to_owned(),
            false => format!("{flags} --out parts --steps 1000000"),
        };
        let threads = 1 + kill % 2;
        let mut child = program(path, &format!("{what} --threads {threads}"));
        let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(wait);
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code().is_none(),
            "kill {kill}, after {wait:?}: {text}"
        );
        assert_eq!(text, "", "kill {kill}, after {wait:?}");
        let newest = ddpm_checkpoint::newest_whole(&parts).unwrap();
        assert!(newest.skipped.is_empty(), "{:?}", newest.skipped);
        let now = newest.checkpoint.map_or(0, |checkpoint| checkpoint.step);
        assert!(
            now >= reached,
            "kill {kill}: step {reached} is lost, {now} is there"
        );
        reached = now;
    }
    assert!(reached > 0, "no step in {kills} lives");
    let steps = reached + 3;
    println!("{kills} kills, {reached} steps");
    check(
        path,
        &format!("--resume --out parts --steps {steps}"),
        0,
        &[],
    );
    check(
        path,
        &format!("{flags} --out whole --steps {steps} --threads 2"),
        0,
        &[],
    );
    let whole = path.join("whole");
    assert!(newest_bits(&whole) == newest_bits(&parts));
    assert_eq!(timeless(&whole), timeless(&parts));
    for entry in std::fs::read_dir(whole.join("samples")).unwrap() {
        let entry = entry.unwrap();
        let again = std::fs::read(parts.join("samples").join(entry.file_name())).unwrap();
        assert!(
            std::fs::read(entry.path()).unwrap() == again,
            "{:?}",
            entry.file_name()
        );
    }
}

pub(crate) fn wait_for(metrics: &Path, lines: usize) {
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
