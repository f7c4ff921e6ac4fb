//! Files that are written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Temporary sibling, sync, rename, sync of the folder; nothing is left behind on failure.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let refuse = |source| Error::Write {
        path: path.to_path_buf(),
        source,
    };
    let (folder, temporary, mut file) = loop {
        let (folder, temporary) = temporary_sibling(path)?;
        match File::create_new(&temporary) {
            Ok(file) => break (folder, temporary, file),
            // Left by a process of the same number that was killed: the next name is free.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(refuse(source)),
        }
    };
    let write = || -> io::Result<()> {
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)
    };
    if let Err(source) = write() {
        // The first failure is the one to tell; a leftover that cannot be removed changes nothing.
        let _ = fs::remove_file(&temporary);
        return Err(refuse(source));
    }
    // Windows cannot open folders, and needs no sync for a rename.
    if cfg!(unix) {
        File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .map_err(refuse)?;
    }
    Ok(())
}

/// The folder of a file to be written, and a name in it that nobody else uses.
fn temporary_sibling(path: &Path) -> Result<(PathBuf, PathBuf)> {
    static FILES: AtomicU64 = AtomicU64::new(0);
    if path.file_name().is_none() || path.is_dir() {
        return Err(Error::NotAFile {
            path: path.to_path_buf(),
        });
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    if !folder.is_dir() {
        return Err(Error::NoFolder {
            path: path.to_path_buf(),
            folder,
        });
    }
    let (process, count) = (std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let temporary = folder.join(format!(".ddpm-image.{process}.{count}.tmp"));
    Ok((folder, temporary))
}
