//! A full disk and a read-only folder: the error says what and where, and nothing half-written is visible.

use std::path::{Path, PathBuf};
use std::process::Command;

use ddpm_checkpoint::{list_checkpoints, newest_whole, write_checkpoint};

use crate::{RUN_TOML, tiny_pipeline, tiny_state};

/// A small file system of its own, if the system lets us make one.
struct Mounted(PathBuf);

impl Mounted {
    fn new(folder: &Path, options: &str) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(folder)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder.to_owned())),
            _ => {
                println!("skipped: this user may not mount a file system");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount")
            .args(["-o", options])
            .arg(&self.0)
            .status()
            .unwrap();
        assert!(done.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_leaves_the_older_checkpoint_and_no_trace_of_the_newer() {
    let folder = tempfile::tempdir().unwrap();
    let size = {
        let run = tempfile::tempdir().unwrap();
        let at =
            write_checkpoint(run.path(), 1, &tiny_pipeline(0), &tiny_state(), RUN_TOML).unwrap();
        std::fs::metadata(at.join("train_state.safetensors"))
            .unwrap()
            .len()
    };
    let Some(_disk) = Mounted::new(folder.path(), &format!("size={}", size * 2)) else {
        return;
    };
    write_checkpoint(folder.path(), 1, &tiny_pipeline(0), &tiny_state(), RUN_TOML).unwrap();
    let error =
        write_checkpoint(folder.path(), 2, &tiny_pipeline(0), &tiny_state(), RUN_TOML).unwrap_err();
    let expected = format!(
        "cannot write the training state to {}/checkpoints/step-00000002/train_state.safetensors: \
         No space left on device (os error 28)",
        folder.path().display()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(list_checkpoints(folder.path()).unwrap().len(), 1);
    assert_eq!(
        std::fs::read_dir(folder.path().join("checkpoints"))
            .unwrap()
            .count(),
        1,
        "no draft stays"
    );
    assert_eq!(
        newest_whole(folder.path())
            .unwrap()
            .checkpoint
            .unwrap()
            .step,
        1
    );
}

#[test]
fn a_read_only_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Mounted::new(folder.path(), "size=1m") else {
        return;
    };
    disk.remount("remount,ro");
    let error =
        write_checkpoint(folder.path(), 2, &tiny_pipeline(0), &tiny_state(), RUN_TOML).unwrap_err();
    let expected = format!(
        "cannot write the checkpoint to {}/checkpoints/step-00000002: Read-only file system (os error 30)",
        folder.path().display()
    );
    assert_eq!(error.to_string(), expected);
}
