//! A file that is whole or as it was before, also after a power cut: a sibling, synced, renamed, its folder synced.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use ddpm_checkpoint::sync_folder;

use crate::{Error, Result};

/// Puts `bytes` in place of what `path` holds.
///
/// # Errors
/// Something cannot be written: the message names the file, which is then as it was.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = OsString::from(path);
    draft.push(".tmp");
    let draft = PathBuf::from(draft);
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(|e| Error::io("write", &draft, e))?;
    std::fs::rename(&draft, path).map_err(|e| Error::io("write", path, e))?;
    // The new name is on the disk only when the folder is.
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    sync_folder(folder).map_err(|e| Error::io("write", folder, e))
}
