//! Files and folders that are either whole or not there: a hidden sibling, synced, then renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Makes `folder` by filling a hidden sibling and renaming it; what fails leaves nothing visible.
///
/// A folder that exists already is replaced. Every folder beneath is synced, and the parent after the rename;
/// `fill` must sync the files it writes. Left-over siblings of an earlier process that was killed are removed.
pub(crate) fn replace_folder(
    folder: &Path,
    what: &str,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let (parent, name) = split(folder)?;
    make_folder(&parent).map_err(Error::write(what, folder))?;
    let draft = parent.join(format!(".{name}{DRAFT}{}", std::process::id()));
    let retired = parent.join(format!(".{name}{RETIRED}{}", std::process::id()));
    // What a kill left behind may be what fills the disk.
    clear_left_overs(&parent, &name);
    let done = (|| {
        remove_if_there(&draft).map_err(Error::write(what, folder))?;
        fs::create_dir(&draft).map_err(Error::write(what, folder))?;
        fill(&draft)?;
        sync_folders(&draft).map_err(Error::write(what, folder))?;
        if folder.exists() {
            remove_if_there(&retired).map_err(Error::write(what, folder))?;
            fs::rename(folder, &retired).map_err(Error::write(what, folder))?;
        }
        fs::rename(&draft, folder).map_err(Error::write(what, folder))?;
        sync_folder(&parent).map_err(Error::write(what, folder))
    })();
    match done {
        Ok(()) => clear_left_overs(&parent, &name),
        Err(_) => drop(remove_if_there(&draft)),
    }
    done.map_err(|error| shown_at(error, &draft, folder))
}

/// Writes one small file and syncs it.
pub(crate) fn write_file(path: &Path, what: &str, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::write(what, path))?;
    file.write_all(bytes).map_err(Error::write(what, path))?;
    file.sync_all().map_err(Error::write(what, path))
}

/// Removes a folder so that a crash in between never leaves half of it visible: renamed first, then emptied.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    let (parent, name) = split(folder)?;
    let retired = parent.join(format!(".{name}{RETIRED}{}", std::process::id()));
    let what = "the removal of an old checkpoint";
    fs::rename(folder, &retired).map_err(Error::write(what, folder))?;
    fs::remove_dir_all(&retired).map_err(Error::write(what, folder))
}

/// Makes a folder and those above it that are missing, each on the disk before anything is put into it.
///
/// # Errors
/// A folder cannot be made or synced, or there is a file of that name.
pub fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() || folder.as_os_str().is_empty() {
        return Ok(());
    }
    let above = folder
        .parent()
        .filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    make_folder(above)?;
    match fs::create_dir(folder) {
        // Somebody else was quicker.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        made => made?,
    }
    sync_folder(above)
}

/// Puts the names in a folder on the disk: a new or renamed file is there after a power cut only when its folder is synced.
///
/// Does nothing where the system gives no handle to a folder that could be synced.
///
/// # Errors
/// The folder cannot be opened, or the disk refuses.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()
    } else {
        Ok(())
    }
}

const DRAFT: &str = ".tmp-";
const RETIRED: &str = ".old-";

fn split(folder: &Path) -> Result<(PathBuf, String)> {
    let name = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .ok_or_else(|| {
            let source =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path names no folder");
            Error::Write {
                what: "a folder".to_owned(),
                path: folder.to_owned(),
                source,
            }
        })?;
    let parent = folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok((parent.to_owned(), name))
}

/// Errors name the folder the user knows, not the hidden one.
fn shown_at(mut error: Error, draft: &Path, folder: &Path) -> Error {
    let path = match &mut error {
        Error::Write { path, .. }
        | Error::Twice { path, .. }
        | Error::ElementType { path, .. }
        | Error::Architecture { path, .. } => path,
        _ => return error,
    };
    if let Ok(rest) = path.strip_prefix(draft) {
        *path = folder.join(rest);
    }
    error
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes hidden drafts and retired folders of the same family (`step-...`, or exactly this name).
/// Failing to is harmless: they are invisible and the next write tries again.
fn clear_left_overs(parent: &Path, name: &str) {
    let family = if name.starts_with("step-") {
        "step-"
    } else {
        name
    };
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let text = file_name.to_string_lossy();
        let is_ours = text
            .strip_prefix('.')
            .is_some_and(|rest| rest.starts_with(family));
        if is_ours && (text.contains(DRAFT) || text.contains(RETIRED)) {
            drop(remove_if_there(&entry.path()));
        }
    }
}

fn sync_folders(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync_folder(folder)
}
