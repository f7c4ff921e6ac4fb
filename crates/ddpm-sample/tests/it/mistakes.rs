//! What bad input gets: one line that says what is wrong, the right exit status, and no file.

use std::process::Command;

use crate::{House, check_done};

const HINT: &str = "\n\nFor more information, try '--help'.";

#[test]
fn wrong_usage_exits_with_2() {
    let house = House::new();
    let usage =
        |flags: &str, text: &str| house.check_error(flags, 2, &format!("error: {text}{HINT}"));
    usage(
        "--model run --sampler ddpm --eta 0.5",
        "--eta belongs to the sampler ddim; ddpm would ignore it",
    );
    usage("--model run --eta 1.5", "--eta is 1.5; it goes from 0 to 1");
    usage("--model run --eta NaN", "--eta is NaN; it goes from 0 to 1");
    usage(
        "--model run --steps 101",
        "--steps is 101, but the model's schedule has only 100 steps",
    );
    // Seen before any file is looked for.
    for place in ["x.jpg", "x", "run.png.gz"] {
        let text = format!(
            "--out {place} is none of FILE.png, FILE.gif, FILE.npz, FILE.safetensors and DIR/ (a folder, with its slash)"
        );
        usage(&format!("--model nowhere --out {place}"), &text);
    }
    usage(
        "--model nowhere --noise nowhere.safetensors --seed 1 --sampler ddim",
        "--seed would be ignored: --noise is the only noise of ddim with eta 0",
    );
    for place in ["x.gif", "x.npz", "x.safetensors", "x/"] {
        let text = format!("--strip would be ignored: it is for --out FILE.png, not {place}");
        usage(&format!("--model nowhere --strip --out {place}"), &text);
    }
    for flags in [
        "--inspect --strip",
        "--num 0",
        "--num -1",
        "--batch-size 0",
        "--steps 0",
        "--threads 0",
        "--seed x",
        "--sampler leap",
        "--weights average",
        "--weights ema:1.5",
        "--inspect --num 3",
        "--device gpu",
        "--nonsense",
    ] {
        let output = house.run(flags);
        assert_eq!(output.status.code(), Some(2), "{flags}");
        assert!(output.stdout.is_empty(), "{flags}");
    }
}

#[test]
fn places_that_cannot_be_written_are_named_before_any_work() {
    let house = House::new();
    let failed = |flags: &str, text: &str| {
        house.check_error(
            &format!("--model run {flags}"),
            1,
            &format!("error: {text}"),
        )
    };
    std::fs::create_dir(house.path("full")).unwrap();
    std::fs::write(house.path("full/old.png"), "").unwrap();
    failed(
        "--out nowhere/x.png",
        "cannot write nowhere/x.png: there is no folder nowhere",
    );
    failed(
        "--out nowhere/x/",
        "cannot make nowhere/x/: there is no folder nowhere",
    );
    failed(
        "--out full",
        "full already holds files (old.png); name a new or empty folder",
    );
    failed(
        "--out full/",
        "full/ already holds files (old.png); name a new or empty folder",
    );
    failed(
        "--out full/old.png/x.png",
        "cannot write full/old.png/x.png: there is no folder full/old.png",
    );
    failed(
        "--out full/old.png/",
        "cannot write into full/old.png/: it is a file",
    );
}

#[test]
fn a_full_disk_leaves_nothing() {
    let house = House::new();
    std::fs::create_dir(house.path("disk")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4k,nr_inodes=20", "none"])
        .arg(house.path("disk"))
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: this user may not mount a file system");
        return;
    }
    let _mounted = Mounted(house.path("disk"));
    for place in ["disk/x.png", "disk/x.npz", "disk/x.safetensors", "disk/x/"] {
        let output = house.run(&format!(
            "--model run --num 200 --steps 1 --quiet --out {place}"
        ));
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{place}: {text}");
        assert!(
            text.starts_with(&format!("error: cannot write the images to {place}: ")),
            "{text}"
        );
        assert!(
            text.contains("No space left on device (os error 28)"),
            "{text}"
        );
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert_eq!(
            std::fs::read_dir(house.path("disk")).unwrap().count(),
            0,
            "{place}"
        );
    }
}

/// Unmounts at the end, however the test ends.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn models_that_are_none_are_named() {
    let house = House::new();
    let looked_for = "looked for checkpoints/step-*/ (a run), model_index.json, unet/config.json, \
                      config.json with diffusion_pytorch_model.safetensors";
    let text = format!("error: nowhere is not a model folder: there is nothing; {looked_for}");
    house.check_error("--model nowhere", 1, &text);
    let text = "error: run/checkpoints/step-00000003: no weights \"ema:0.9\"; there are ema, raw";
    house.check_error("--model run --weights ema:0.9", 1, text);
    std::fs::write(
        house.path("run/checkpoints/step-00000003/run.toml"),
        "[run]\npixels = \"none\"\n",
    )
    .unwrap();
    let output = house.run("--model run");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with(
            "error: run/checkpoints/step-00000003/run.toml: run.pixels: unknown variant `none`"
        ),
        "{text}"
    );
}

#[test]
fn without_a_model_the_shipped_one_is_looked_for_above() {
    let house = House::new();
    std::fs::create_dir_all(house.path("a/b")).unwrap();
    // The clothes go before the digits where there are both.
    for shipped in ["checkpoints/digits", "checkpoints/fashion-mnist"] {
        crate::pipeline().save(&house.path(shipped)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ddpm-sample"));
        let output = command
            .current_dir(house.path("a/b"))
            .args(["--inspect"])
            .output()
            .unwrap();
        check_done(&output);
        let text = String::from_utf8(output.stdout).unwrap();
        let folder = house.path(shipped).canonicalize().unwrap();
        assert!(
            text.starts_with(&format!("model       {}\n", folder.display())),
            "{text}"
        );
    }
}
