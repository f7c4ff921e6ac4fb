//! Real faults: another process on the run, disks that fill or turn read-only, power cuts, clocks that jump, other data.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ddpm_checkpoint::{RunLock, list_checkpoints};
use ddpm_image::{Picture, write_png};
use ddpm_train::{Progress, Run, Settings, on_threads, read_metrics};

use crate::program::{check, program, wait_for, words, workplace};
use crate::resume::{newest_bits, timeless};
use crate::tiny;

// ---------------------------------------------------------------- two processes

#[test]
fn a_run_has_one_process_at_a_time_and_is_free_when_that_dies() {
    let folder = workplace();
    let path = folder.path();
    let mut first = program(path, "--config tiny.toml --steps 1000000 --quiet")
        .spawn()
        .unwrap();
    wait_for(&path.join("runs/tiny/metrics.jsonl"), 6);
    let said = format!(
        "error: `runs/tiny` is being trained by process {}",
        first.id()
    );
    let wait = "stop that first, or train elsewhere with --out";
    check(path, "--resume --out runs/tiny", 1, &[&said, wait]);
    check(path, "--config tiny.toml", 1, &["already holds a run"]);
    first.kill().unwrap();
    first.wait().unwrap();
    let steps = 5 + newest_bits(&path.join("runs/tiny")).0;
    let flags = format!("--resume --out runs/tiny --steps {steps}");
    check(path, &flags, 0, &["goes on after step "]);
}

#[test]
fn two_that_begin_the_same_run_at_once_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let other = RunLock::take(&run).unwrap(); // it has not yet written anything
    let begin =
        || on_threads(1, || Run::begin(&run, &tiny("train.steps = 1"), None).err()).unwrap();
    let error = begin().unwrap().to_string();
    let this = std::process::id();
    assert!(
        error.contains(&format!("is being trained by process {this}")),
        "{error}"
    );
    drop(other);
    assert!(begin().is_none());
}

// ---------------------------------------------------------------- disks

/// A small file system of its own, if the system lets us make one.
struct Disk(PathBuf);

impl Disk {
    fn new(folder: &Path, options: &str) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(folder)
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder.to_owned()));
        }
        println!("skipped: this user may not mount a file system");
        None
    }

    fn turn(&self, options: &str) {
        let mut command = Command::new("mount");
        let done = command
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0);
        assert!(done.status().unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

/// Trains to the end with `trouble` done before and undone after the given steps; returns what every step said.
fn through(
    folder: &Path,
    settings: &Settings,
    mut trouble: impl FnMut(usize) + Send,
) -> Vec<Progress> {
    on_threads(1, || {
        let mut run = Run::begin(folder, settings, None).unwrap();
        let mut all = Vec::new();
        while !run.finished() {
            trouble(run.trainer().steps_done() + 1);
            all.push(run.advance().unwrap());
        }
        all
    })
    .unwrap()
}

fn texts(all: &[Progress], step: usize) -> String {
    all[step - 1].warnings.join("\n")
}

#[track_caller]
fn same_in_the_end(whole: &Path, parts: &Path) {
    assert!(
        newest_bits(whole) == newest_bits(parts),
        "the weights differ"
    );
    assert_eq!(timeless(whole), timeless(parts));
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_a_picture_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "disk"].map(|name| folder.path().join(name));
    let settings = tiny("train = { steps = 15, keep_last = 5 }\nsamples.every = 5");
    through(&whole, &settings, |_| ());
    std::fs::create_dir(&parts).unwrap();
    let Some(_disk) = Disk::new(&parts, "size=16m") else {
        return;
    };
    let filler = parts.join("filler");
    let all = through(&parts, &settings, |step| match step {
        7 => drop(std::fs::write(&filler, vec![1; 17 << 20])), // to the last byte
        12 => std::fs::remove_file(&filler).unwrap(),
        _ => (),
    });
    assert!(all[4].checkpoint.is_some() && all[14].checkpoint.is_some());
    assert!(all[9].checkpoint.is_none() && all[9].picture.is_none());
    let full = texts(&all, 10);
    for part in [
        "step 10: cannot write ",
        "No space left on device",
        "there is no picture of this step; training goes on",
        "there is no checkpoint of this step, ",
        "checkpoints/step-00000005 is kept; training goes on",
    ] {
        assert!(full.contains(part), "{part:?} is not in\n{full}");
    }
    let steps = |run: &Path| -> Vec<u64> {
        let all = list_checkpoints(run).unwrap();
        all.iter().map(|checkpoint| checkpoint.step).collect()
    };
    assert_eq!(steps(&parts), [5, 15]);
    same_in_the_end(&whole, &parts); // no line of metrics is missing
}

#[test]
fn a_read_only_disk_is_named_and_nothing_on_it_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "disk"].map(|name| folder.path().join(name));
    let settings = tiny("train = { steps = 8, checkpoint_every = 2 }");
    through(&whole, &settings, |_| ());
    std::fs::create_dir(&parts).unwrap();
    let Some(disk) = Disk::new(&parts, "size=16m") else {
        return;
    };
    let run = parts.join("run");
    on_threads(1, || {
        let read_only = |error: ddpm_train::Error, start: &str| {
            let error = error.to_string();
            assert!(error.starts_with(start), "{error}");
            assert!(
                error.ends_with("Read-only file system (os error 30)"),
                "{error}"
            );
        };
        disk.turn("ro");
        let refused = Run::begin(&run, &settings, None).err().unwrap();
        read_only(refused, "cannot make the folder `");
        disk.turn("rw");
        let mut begun = Run::begin(&run, &settings, None).unwrap();
        while begun.trainer().steps_done() < 5 {
            begun.advance().unwrap();
        }
        drop(begun);
        disk.turn("ro");
        let refused = Run::resume(&run, &settings).err().unwrap();
        read_only(refused, "cannot write the lock of the run to ");
        disk.turn("rw");
        let (mut again, _) = Run::resume(&run, &settings).unwrap();
        while !again.finished() {
            again.advance().unwrap();
        }
    })
    .unwrap();
    same_in_the_end(&whole, &run);
}

#[test]
fn a_place_for_pictures_that_is_none_costs_only_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let settings = tiny("train.steps = 6\nsamples.every = 2");
    through(&whole, &settings, |_| ());
    let samples = parts.join("samples");
    let all = through(&parts, &settings, |step| {
        if step == 3 {
            std::fs::remove_dir_all(&samples).unwrap();
        }
    });
    for step in [4, 6] {
        let text = texts(&all, step);
        assert!(
            text.contains("samples is not an existing folder: there is no picture"),
            "{text}"
        );
    }
    assert!(all[1].picture.is_some() && all[3].picture.is_none());
    same_in_the_end(&whole, &parts);
}

/// Every file may have 8 KiB: after 30 lines the metrics are refused.
#[cfg(unix)]
#[test]
fn metrics_that_the_disk_refuses_are_said_once_and_training_goes_on() {
    let folder = workplace();
    let limited = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    let flags =
        "--config tiny.toml --steps 60 --set samples.count=0 --set train.checkpoint_every=0";
    let output = Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", limited, env!("CARGO_BIN_EXE_ddpm-train")])
        .args(words(flags))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let refused = "metrics.jsonl`: File too large (os error 27): the metrics are kept until it can be written; training goes on";
    assert_eq!(text.matches(refused).count(), 1, "{text}");
    let unseen = "File too large (os error 27): TensorBoard misses what it would show until it can be written; training goes on";
    assert_eq!(text.matches(unseen).count(), 1, "{text}");
    assert!(
        text.contains(" to runs/tiny/checkpoints/step-00000060/"),
        "{text}"
    );
    // The file ends with a whole line.
    let lines = read_metrics(&folder.path().join("runs/tiny/metrics.jsonl")).unwrap();
    assert!((10..60).contains(&lines.len()), "{}", lines.len());
}

// ---------------------------------------------------------------- power

/// Does to a run what a power cut does.
type Damage = fn(&Path);

/// What a power cut may leave of things that were not synced: nothing, empty files, zeros, half a line.
#[test]
fn what_a_power_cut_leaves_is_resumed_to_the_bit() {
    let settings = tiny("train = { steps = 9, checkpoint_every = 2, keep_last = 9 }");
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    through(&whole, &settings, |_| ());
    let cuts: [(&str, Damage); 7] = [
        ("the newest is empty files", |run| {
            for file in files(&newest(run)) {
                std::fs::write(file, "").unwrap();
            }
        }),
        ("the newest is zeros", |run| {
            for file in files(&newest(run)) {
                let length = std::fs::metadata(&file).unwrap().len();
                std::fs::write(file, vec![0; length as usize]).unwrap();
            }
        }),
        ("the newest is an empty folder", |run| {
            let newest = newest(run);
            std::fs::remove_dir_all(&newest).unwrap();
            std::fs::create_dir(&newest).unwrap();
        }),
        ("a draft is there, the newest is not", |run| {
            let newest = newest(run);
            let draft = newest.with_file_name(".step-00000008.tmp-77");
            std::fs::rename(newest, draft).unwrap();
        }),
        ("the metrics end in zeros and half a line", |run| {
            let path = run.join("metrics.jsonl");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.extend([0; 600]);
            bytes.extend(b"\xff\xfe{\"step\": 5, \"lo");
            std::fs::write(path, bytes).unwrap();
        }),
        ("the settings are empty", |run| {
            std::fs::write(run.join("run.toml"), "").unwrap()
        }),
        ("the settings are zeros", |run| {
            std::fs::write(run.join("run.toml"), [0; 900]).unwrap()
        }),
    ];
    for (what, cut) in cuts {
        let parts = folder.path().join(what);
        on_threads(1, || {
            let mut run = Run::begin(&parts, &settings, None).unwrap();
            while run.trainer().steps_done() < 8 {
                run.advance().unwrap();
            }
            drop(run);
            cut(&parts);
            let (mut run, _) =
                Run::resume(&parts, &settings).unwrap_or_else(|e| panic!("{what}: {e}"));
            while !run.finished() {
                run.advance().unwrap();
            }
        })
        .unwrap();
        assert!(newest_bits(&whole) == newest_bits(&parts), "{what}");
        assert_eq!(timeless(&whole), timeless(&parts), "{what}");
    }
}

fn newest(run: &Path) -> PathBuf {
    list_checkpoints(run).unwrap().pop().unwrap().path
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// The newest checkpoint is the one of the highest step, whatever the clock said when it was written.
#[test]
fn files_from_the_future_and_the_past_mislead_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let settings = tiny("train = { steps = 6, checkpoint_every = 2 }");
    through(folder.path(), &settings, |_| ());
    let now = std::time::SystemTime::now();
    for (age, checkpoint) in (1..).zip(list_checkpoints(folder.path()).unwrap()) {
        let years = std::time::Duration::from_secs(31_536_000);
        let when = now + 10 * years - age * 3 * years; // newer ones look older
        for file in files(&checkpoint.path) {
            let file = std::fs::File::options().write(true).open(file).unwrap();
            file.set_modified(when).unwrap();
        }
    }
    let more = Settings {
        train: ddpm_train::settings::TrainSettings {
            steps: Some(7),
            ..settings.train.clone()
        },
        ..settings
    };
    let from = on_threads(1, || {
        let (run, _) = Run::resume(folder.path(), &more).unwrap();
        run.trainer().steps_done()
    });
    assert_eq!(from.unwrap(), 6);
}

/// A C library whose wall clock is ten years ahead and ten years behind in turns.
#[cfg(target_os = "linux")]
const JUMPING: &str = "#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t clock, struct timespec *t) {
    static long calls;
    int result = syscall(SYS_clock_gettime, clock, t);
    if (clock == CLOCK_REALTIME) t->tv_sec += (++calls % 2 ? 1 : -1) * 315360000L;
    return result;
}
";

#[cfg(target_os = "linux")]
#[test]
fn a_clock_that_jumps_changes_nothing() {
    let folder = workplace();
    let path = folder.path();
    std::fs::write(path.join("jumping.c"), JUMPING).unwrap();
    let built = Command::new("cc")
        .current_dir(path)
        .args(["-shared", "-fPIC", "-o", "jumping.so", "jumping.c"])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        println!("skipped: there is no C compiler");
        return;
    }
    let jumping = path.join("jumping.so");
    let year = Command::new("date")
        .arg("+%Y")
        .env("LD_PRELOAD", &jumping)
        .output();
    let year: i64 = String::from_utf8(year.unwrap().stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let real = Command::new("date").arg("+%Y").output().unwrap().stdout;
    let real: i64 = String::from_utf8(real).unwrap().trim().parse().unwrap();
    assert!(
        (year - real).abs() >= 9,
        "the clock does not jump: {year}, {real}"
    );

    check(
        path,
        "--config tiny.toml --steps 12 --out whole --set train.held_out_images=0",
        0,
        &[],
    );
    let jumps = |flags: &str| {
        let mut command = program(path, flags);
        let output = command.env("LD_PRELOAD", &jumping).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        text
    };
    jumps("--config tiny.toml --steps 7 --out parts --set train.held_out_images=0");
    jumps("--resume --out parts --steps 12");
    same_in_the_end(&path.join("whole"), &path.join("parts"));
    for line in read_metrics(&path.join("parts/metrics.jsonl")).unwrap() {
        let rate = line.images_per_second;
        assert!(
            rate > 1e-3 && rate < 1e7,
            "{rate} images/s at step {}",
            line.step
        );
    }
    // Half a second of training is half a second: neither nothing nor ten years.
    jumps("--config tiny.toml --minutes 0.008 --out timed");
    assert!(newest_bits(&path.join("timed")).0 > 1);
}

// ---------------------------------------------------------------- other data

fn pictures(folder: &Path, channels: usize, shade: u8) {
    std::fs::create_dir_all(folder).unwrap();
    for i in 0..6_u8 {
        let pixels = (0..64 * channels).map(|p| (p as u8).wrapping_mul(i + 3).wrapping_add(shade));
        let picture = Picture::new(8, 8, channels, pixels.collect()).unwrap();
        write_png(folder.join(format!("{i}.png")), &picture, &[]).unwrap();
    }
}

#[test]
fn data_that_changed_between_are_refused_with_the_way_to_go_on_deliberately() {
    let folder = workplace();
    let path = folder.path();
    pictures(&path.join("mine"), 1, 0);
    let flags = "--config tiny.toml --data folder:mine --steps 3";
    check(path, &format!("{flags} --out first"), 0, &[]);
    let before = newest_bits(&path.join("first"));
    pictures(&path.join("mine"), 1, 9);
    let text = check(
        path,
        "--resume --out first --steps 5",
        1,
        &[
            "error: the data set ",
            "but the run was started on ",
            "begin a new run from its weights: --init first --out NEW_RUN",
        ],
    );
    assert!(!text.contains("goes on after"), "{text}");
    assert!(newest_bits(&path.join("first")) == before);
    check(path, &format!("{flags} --init first --out second"), 0, &[]);
    // What the message promises works, and the old run can go on once its data are back.
    pictures(&path.join("mine"), 1, 0);
    check(
        path,
        "--resume --out first --steps 5",
        0,
        &["goes on after step 3"],
    );
}

#[test]
fn images_with_other_channels_than_the_models_are_refused_by_name() {
    let folder = workplace();
    let path = folder.path();
    pictures(&path.join("colours"), 3, 0);
    check(path, "--config tiny.toml --steps 1", 0, &[]);
    check(
        path,
        "--init runs/tiny --data folder:colours --steps 2 --batch-size 2 --out new",
        1,
        &[
            "error: runs/tiny: its images have 1 channel (grey), those of ",
            "3 channels (RGB): take a model or data that fit; pictures are read in grey by --set data.color=grey",
        ],
    );
    assert!(!path.join("new").exists());
}

// ---------------------------------------------------------------- memory

/// Of the CPU's plan, which could do with less.
#[test]
fn what_cannot_fit_into_memory_is_refused_before_it_starts() {
    let folder = workplace();
    let giant = "--config tiny.toml --device cpu --batch-size 1400 --set model.block_out_channels=[8192,16384]";
    check(
        folder.path(),
        giant,
        1,
        &[
            "error: this training needs about ",
            " MiB are to be had",
            "--set train.micro_batch=N, a divisor of the batch, now 1400",
            "--set train.gradient_checkpointing=true",
            "--set train.check_memory=false",
        ],
    );
    assert!(!folder.path().join("runs").exists());
    check(
        folder.path(),
        &format!("{giant} --dry-run --set train.check_memory=false"),
        0,
        &["# memory      about ", " MiB are to be had"],
    );
}
