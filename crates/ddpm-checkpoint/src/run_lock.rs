//! One process at a time trains a run: a lock on its folder that the system lets go of when its holder dies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Holds a run for this process; dropping it, or dying in any way, lets the run go.
///
/// Readers need no lock: checkpoints are whole or not there.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Closing is not enough where a child process was given the open file.
        drop(self.file.unlock());
    }
}

impl RunLock {
    /// Locks the run in this folder, which must exist. The lock is on a file that stays there and says who holds it.
    ///
    /// On a file system that knows no locks (some network shares) there is none, and nobody is kept out.
    ///
    /// # Errors
    /// [`Error::Locked`] with the process that holds it, as far as its file says; the folder cannot be written.
    pub fn take(run: &Path) -> Result<Self> {
        let path = run.join(LOCK);
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = opened.map_err(Error::write("the lock of the run", &path))?;
        let mut locked = file.try_lock();
        // A holder that was killed, or a child of one that has not yet become another program, needs a moment to let go.
        for _ in 0..20 {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked {
                    run: run.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(error)) if knows_no_locks(&error) => {
                return Ok(Self { file });
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::write("the lock of the run", &path)(error));
            }
        }
        // Only for whoever is kept out: a full disk does not stop a training here.
        let told = format!("process {}{}\n", std::process::id(), on_host());
        drop(
            file.set_len(0)
                .and_then(|()| file.write_all(told.as_bytes())),
        );
        Ok(Self { file })
    }

    /// The file that the lock is on.
    pub fn path(run: &Path) -> PathBuf {
        run.join(LOCK)
    }
}

const LOCK: &str = ".lock";

/// What the holder wrote about itself: one short line, or nothing yet.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(200).read_to_string(&mut text));
    let line = text.lines().next().unwrap_or_default();
    match read {
        Ok(_) if line.starts_with("process ") => line.to_owned(),
        _ => "another process".to_owned(),
    }
}

/// ` on NAME`, where the system tells the machine's name.
fn on_host() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = told.or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.or_else(|| std::env::var("COMPUTERNAME").ok());
    match name.as_deref().map(str::trim) {
        Some(name) if !name.is_empty() => format!(" on {name}"),
        _ => String::new(),
    }
}

fn knows_no_locks(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::Unsupported
}
