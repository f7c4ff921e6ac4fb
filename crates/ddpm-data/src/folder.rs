//! A folder of picture files as a data set: sorted, and labelled by sub-folder.
//!
//! Pictures are the files named `*.png`, `*.jpg`, `*.jpeg`, `*.webp`, `*.gif`, `*.bmp`, `*.tif` or `*.tiff`, in capitals
//! or not, at any depth; other files, and names that begin with a dot, are passed over. Links are followed, but for those
//! that lead back to a folder they lie in. Pictures are ordered by path. Where all lie in sub-folders, the first sub-folder
//! of each is its class, and classes are ordered by name. A folder has no test part of its own: of every twenty pictures,
//! in order, the last is held out.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::shelf::{Content, Item, Part, Shelf};
use crate::{Error, Result};

/// How the names of pictures end.
const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// A picture that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why it could not be read.
    pub why: String,
}

/// On one line, whatever characters the file's name has.
impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.path.to_string_lossy().chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => write!(f, "{c}")?,
            }
        }
        write!(f, ": {}", self.why)
    }
}

/// The pictures of a folder.
///
/// # Errors
/// [`Error::Open`] for a folder that cannot be read, [`Error::Folder`] where it holds no pictures, or some with a class
/// and some without.
pub(crate) fn shelf(folder: &Path) -> Result<Shelf<'static>> {
    let files = files(folder, &ENDINGS)?;
    let classes = classes(folder, &files)?;
    let items: Vec<Item> = files
        .iter()
        .map(|file| Item {
            name: file.clone(),
            label: class(folder, file, &classes),
            part: Part::Dealt,
            content: Content::File,
        })
        .collect();
    Ok(Shelf {
        name: "folder".to_owned(),
        origin: folder.to_owned(),
        classes,
        files,
        size: None,
        items: Box::new(items.into_iter().map(Ok)),
    })
}

/// The files in a folder, and in the folders inside it, whose names end so; in order of path.
pub(crate) fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    list(folder, &mut Vec::new(), endings, &mut files)?;
    files.sort();
    Ok(files)
}

/// Appends the files in a folder and in the folders inside it. `within` are the folders on the way here by their true
/// paths: a link to one of them leads in a circle.
fn list(
    folder: &Path,
    within: &mut Vec<PathBuf>,
    endings: &[&str],
    files: &mut Vec<PathBuf>,
) -> Result<()> {
    let cannot = |source| Error::Open {
        path: folder.to_owned(),
        source,
    };
    let itself = folder.canonicalize().map_err(cannot)?;
    if within.contains(&itself) {
        return Ok(());
    }
    within.push(itself);
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            list(&path, within, endings, files)?;
        } else if path.extension().is_some_and(|ending| {
            endings
                .iter()
                .any(|known| ending.eq_ignore_ascii_case(known))
        }) {
            files.push(path);
        }
    }
    within.pop();
    Ok(())
}

/// The names of the classes: all first sub-folders, or none where the pictures lie in the folder itself.
fn classes(folder: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let wrong = |what: String| Error::Folder {
        folder: folder.to_owned(),
        what,
    };
    let (inside, outside): (Vec<_>, Vec<_>) =
        files.iter().partition(|file| file.parent() != Some(folder));
    match (inside.first(), outside.first()) {
        (None, None) => Err(wrong(format!(
            "holds no pictures, expected files named *.{}",
            ENDINGS.join(" *.")
        ))),
        (Some(inside), Some(outside)) => Err(wrong(format!(
            "has pictures with a class ({}) and without one ({}), expected all in sub-folders or none",
            inside.display(),
            outside.display()
        ))),
        (None, _) => Ok(Vec::new()),
        (Some(_), None) => {
            let mut names: Vec<String> = files
                .iter()
                .filter_map(|file| class_name(folder, file))
                .collect();
            names.sort();
            names.dedup();
            Ok(names)
        }
    }
}

/// The first folder on the way from `folder` to a file.
fn class_name(folder: &Path, file: &Path) -> Option<String> {
    let first = file.strip_prefix(folder).ok()?.components().next()?;
    Some(first.as_os_str().to_string_lossy().into_owned())
}

/// The number of a file's class, where there are classes.
fn class(folder: &Path, file: &Path, classes: &[String]) -> Option<u32> {
    let place = classes.binary_search(&class_name(folder, file)?).ok()?;
    u32::try_from(place).ok()
}
