//! A folder of picture files as a data set: sorted, labelled by sub-folder, decoded once and in parallel.
//!
//! Pictures are the files named `*.png`, `*.jpg`, `*.jpeg`, `*.webp`, `*.gif`, `*.bmp`, `*.tif` or `*.tiff`, in capitals
//! or not, at any depth; other files, and names that begin with a dot, are passed over. They are ordered by path. Where all
//! lie in sub-folders, the first sub-folder of each is its class, and classes are ordered by name. A folder has no test
//! part of its own: of every twenty pictures, in order, the last is held out.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::picture::{Picture, Pictures};
use crate::{Dataset, Error, Result, Splits};

/// How the names of pictures end.
const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];
/// One of so many pictures is held out.
const HELD_OUT: usize = 20;
/// Folders in folders; a link that leads back to its own folder ends here.
const DEPTH: usize = 32;

/// A picture that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Why it could not be read.
    pub why: String,
}

/// Reads every picture of a folder.
///
/// # Errors
/// [`Error::Open`] for a folder that cannot be read, [`Error::Folder`] where it holds no pictures, or some with a class
/// and some without; [`Error::Unreadable`] with the names of the pictures that cannot be read, unless they are to be skipped;
/// [`Error::Folder`] for pictures of different sizes where no size is set.
pub(crate) fn load(folder: &Path, pictures: &Pictures) -> Result<Splits> {
    let mut files = Vec::new();
    list(folder, DEPTH, &mut files)?;
    files.sort();
    let classes = classes(folder, &files)?;
    let read: Vec<_> = files.par_iter().map(|file| read(file, pictures)).collect();
    let mut skipped = Vec::new();
    let mut parts: [Part; 2] = Default::default();
    let mut size = None;
    let mut place = 0;
    for (path, picture) in files.into_iter().zip(read) {
        let picture = match picture {
            Ok(picture) => picture,
            Err(why) => {
                skipped.push(Skipped { path, why });
                continue;
            }
        };
        same_size(folder, &mut size, &path, &picture)?;
        let part = &mut parts[usize::from(place % HELD_OUT == HELD_OUT - 1)];
        part.pixels.extend(picture.pixels);
        part.labels.extend(class(folder, &path, &classes));
        place += 1;
    }
    let size = size.map(|(_, size): (PathBuf, _)| size);
    let (true, Some(size)) = (skipped.is_empty() || pictures.skip_unreadable, size) else {
        return Err(Error::Unreadable {
            folder: folder.to_owned(),
            pictures: place + skipped.len(),
            unreadable: skipped,
        });
    };
    let size = (size.0, size.1, pictures.color.channels());
    let [train, test] = parts;
    let test = (!test.pixels.is_empty()).then(|| test.dataset("folder test", size, &classes));
    Ok(Splits {
        origin: folder.display().to_string(),
        train: train.dataset("folder train", size, &classes)?,
        test: test.transpose()?,
        skipped,
    })
}

/// Images and labels of one part.
#[derive(Default)]
struct Part {
    pixels: Vec<u8>,
    labels: Vec<u32>,
}

impl Part {
    fn dataset(
        self,
        name: &str,
        size: (usize, usize, usize),
        classes: &[String],
    ) -> Result<Dataset> {
        let labels = (!classes.is_empty()).then_some(self.labels);
        Dataset::new(name, self.pixels, size, labels, classes.to_vec())
    }
}

/// Appends the pictures in a folder and in the folders inside it.
fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    let cannot = |source| Error::Open {
        path: folder.to_owned(),
        source,
    };
    if depth == 0 {
        return Err(Error::Folder {
            folder: folder.to_owned(),
            what: format!("lies {DEPTH} folders deep, expected less; does a link lead back?"),
        });
    }
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            list(&path, depth - 1, files)?;
        } else if path.extension().is_some_and(|ending| {
            ENDINGS
                .iter()
                .any(|known| ending.eq_ignore_ascii_case(known))
        }) {
            files.push(path);
        }
    }
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

/// One picture, or why it cannot be read.
fn read(file: &Path, pictures: &Pictures) -> std::result::Result<Picture, String> {
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    let picture = pictures.decode(&bytes).map_err(|error| error.to_string())?;
    pictures.fit(picture).map_err(|error| error.to_string())
}

/// That a picture has the size of the first.
fn same_size(
    folder: &Path,
    size: &mut Option<(PathBuf, (usize, usize))>,
    path: &Path,
    picture: &Picture,
) -> Result<()> {
    let found = (picture.height, picture.width);
    let (first, expected) = size.get_or_insert_with(|| (path.to_owned(), found));
    if *expected == found {
        return Ok(());
    }
    Err(Error::Folder {
        folder: folder.to_owned(),
        what: format!(
            "has pictures of different sizes: {} is {}x{}, {} is {}x{} (height x width); expected one size: resize them first",
            first.display(),
            expected.0,
            expected.1,
            path.display(),
            found.0,
            found.1
        ),
    })
}
