//! The newest whole checkpoint wins; half-written ones are skipped and named; old ones go.

use std::fs;
use std::path::Path;

use ddpm_checkpoint::{keep_last, list_checkpoints, newest_whole, resolve_model, write_checkpoint};

use crate::{RUN_TOML, message, tiny_pipeline, tiny_state};

fn write(run: &Path, step: u64) {
    write_checkpoint(run, step, &tiny_pipeline(step), &tiny_state(), RUN_TOML).unwrap();
}

fn steps(run: &Path) -> Vec<u64> {
    list_checkpoints(run)
        .unwrap()
        .iter()
        .map(|checkpoint| checkpoint.step)
        .collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Damages the newest of two checkpoints and expects the older one, and this reason for the newer.
#[track_caller]
fn check_skipped(damage: impl FnOnce(&Path), reason: &str) {
    let run = tempfile::tempdir().unwrap();
    write(run.path(), 9);
    write(run.path(), 10);
    damage(&run.path().join("checkpoints/step-00000010"));
    let newest = newest_whole(run.path()).unwrap();
    assert_eq!(newest.checkpoint.unwrap().step, 9);
    assert_eq!(newest.skipped.len(), 1);
    assert_eq!(newest.skipped[0].checkpoint.step, 10);
    let text = newest.skipped[0].reason.to_string();
    let at = run
        .path()
        .join("checkpoints/step-00000010")
        .display()
        .to_string();
    assert_eq!(text.replace(&at, "NEWER"), reason);
    assert_eq!(
        resolve_model(run.path()).unwrap().step(),
        Some(1000),
        "the counter of the state"
    );
}

fn cut(path: &Path, by: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - by).unwrap();
}

#[test]
fn a_half_written_checkpoint_is_skipped_and_named() {
    let weights = "unet/diffusion_pytorch_model.safetensors";
    let length = {
        let run = tempfile::tempdir().unwrap();
        write(run.path(), 1);
        fs::metadata(run.path().join("checkpoints/step-00000001").join(weights))
            .unwrap()
            .len()
    };
    check_skipped(
        |at| cut(&at.join(weights), 1),
        &format!(
            "NEWER/{weights} is not a whole safetensors file: it has {} bytes, its header describes {length}",
            length - 1
        ),
    );
    check_skipped(
        |at| fs::write(at.join("train_state.safetensors"), b"abc").unwrap(),
        "NEWER/train_state.safetensors is not a whole safetensors file: it has only 3 bytes",
    );
    check_skipped(
        |at| fs::remove_file(at.join("train_state.safetensors")).unwrap(),
        "NEWER/train_state.safetensors is missing: training cannot go on without it",
    );
    check_skipped(
        |at| fs::remove_file(at.join("run.toml")).unwrap(),
        "NEWER/run.toml is missing: it holds the run's settings",
    );
    check_skipped(
        |at| fs::remove_file(at.join("model_index.json")).unwrap(),
        "NEWER/model_index.json is missing: every checkpoint has one",
    );
    check_skipped(
        |at| fs::remove_dir_all(at.join("unet")).unwrap(),
        "NEWER/unet/config.json is missing: it describes the network",
    );
    check_skipped(
        |at| fs::remove_file(at.join(weights)).unwrap(),
        &format!("NEWER/{weights} is missing: it holds the network's weights"),
    );
    check_skipped(
        |at| fs::remove_dir_all(at.join("scheduler")).unwrap(),
        "NEWER/unet/scheduler_config.json is missing: without a scheduler's configuration nobody knows \
         the network's noise schedule; put it here or into ../scheduler",
    );
}

#[test]
fn a_run_without_a_whole_checkpoint_says_why() {
    let run = tempfile::tempdir().unwrap();
    fs::create_dir(run.path().join("checkpoints")).unwrap();
    assert_eq!(
        message(resolve_model(run.path()), run.path()),
        "run FOLDER holds no whole checkpoint"
    );
    fs::create_dir(run.path().join("checkpoints/step-00000003")).unwrap();
    let expected = "run FOLDER holds no whole checkpoint; \
                    skipped FOLDER/checkpoints/step-00000003/model_index.json is missing: every checkpoint has one";
    assert_eq!(message(resolve_model(run.path()), run.path()), expected);
    assert_eq!(newest_whole(run.path()).unwrap().checkpoint, None);
}

#[test]
fn drafts_are_no_checkpoints_and_the_next_write_clears_them() {
    let run = tempfile::tempdir().unwrap();
    write(run.path(), 1);
    let folder = run.path().join("checkpoints");
    for name in [
        ".step-00000002.tmp-17",
        ".step-00000001.old-17",
        "step-",
        "step-2x",
        "other",
    ] {
        fs::create_dir_all(folder.join(name).join("unet")).unwrap();
    }
    assert_eq!(steps(run.path()), [1]);
    write(run.path(), 3);
    assert_eq!(
        names(&folder),
        [
            "other",
            "step-",
            "step-00000001",
            "step-00000003",
            "step-2x"
        ]
    );
}

#[test]
fn the_same_step_again_replaces_the_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    write(run.path(), 5);
    fs::write(run.path().join("checkpoints/step-00000005/leftover"), b"").unwrap();
    write(run.path(), 5);
    assert!(
        !run.path()
            .join("checkpoints/step-00000005/leftover")
            .exists()
    );
    assert_eq!(names(&run.path().join("checkpoints")), ["step-00000005"]);
}

#[test]
fn the_newest_whole_checkpoints_are_kept() {
    let run = tempfile::tempdir().unwrap();
    for step in [1, 2, 3, 4] {
        write(run.path(), step);
    }
    fs::remove_file(run.path().join("checkpoints/step-00000004/run.toml")).unwrap();
    let removed = keep_last(run.path(), 2).unwrap();
    assert_eq!(removed, [run.path().join("checkpoints/step-00000001")]);
    assert_eq!(steps(run.path()), [2, 3, 4]);
    keep_last(run.path(), 0).unwrap();
    assert_eq!(
        steps(run.path()),
        [3, 4],
        "one whole checkpoint stays, whatever is asked"
    );
    assert_eq!(
        names(&run.path().join("checkpoints")),
        ["step-00000003", "step-00000004"]
    );
}

#[test]
fn a_folder_that_is_not_there_has_no_checkpoints() {
    assert_eq!(steps(Path::new("/nowhere")), Vec::<u64>::new());
}
