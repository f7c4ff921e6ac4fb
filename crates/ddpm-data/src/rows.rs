//! Parquet files as a data set: which of them are held out, what their classes are called, their rows in order.

use std::path::{Path, PathBuf};

use crate::folder;
use crate::parquet::{Pictures, Row};
use crate::shelf::{Content, Item, Part, Shelf, class};
use crate::{Error, Result};

/// The files that a path stands for: a file, all `*.parquet` in a folder, or those that a pattern with `*`, `?` and
/// `[...]` matches; in order.
///
/// # Errors
/// [`Error::Parquet`] where there are none, or the pattern is none.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |what: String| Error::Parquet {
        path: path.to_owned(),
        what,
    };
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let files = if path.is_dir() {
        folder::files(path, &["parquet"])?
    } else {
        let pattern = path
            .to_str()
            .ok_or_else(|| wrong("is no text".to_owned()))?;
        let matched = glob::glob(pattern).map_err(|error| wrong(error.to_string()))?;
        let mut files: Vec<PathBuf> = matched.flatten().filter(|file| file.is_file()).collect();
        files.sort();
        files
    };
    if files.is_empty() {
        return Err(wrong(
            "no such file; expected a parquet file, a folder of them, or a pattern like 'DIR/train-*.parquet'".to_owned(),
        ));
    }
    Ok(files)
}

/// The rows of these files. Files whose names begin with `test` are held out, or, where there are none, those that begin
/// with `val`; where there are neither, of every twenty rows the last.
///
/// # Errors
/// [`Error::Open`], [`Error::Parquet`].
pub(crate) fn shelf(name: &str, origin: &Path, files: Vec<PathBuf>) -> Result<Shelf<'static>> {
    let chosen = parts(&files);
    let mut classes: Option<(PathBuf, Vec<String>, bool)> = None;
    let mut opened = Vec::with_capacity(chosen.len());
    for (file, part) in &chosen {
        let pictures = Pictures::open(file)?;
        let found = (pictures.class_names().to_vec(), pictures.has_labels());
        let (first, names, labels) =
            classes.get_or_insert_with(|| (file.clone(), found.0.clone(), found.1));
        if (&found.0, found.1) != (names, *labels) {
            return Err(Error::Parquet {
                path: file.clone(),
                what: format!("has other classes than {}", first.display()),
            });
        }
        opened.push((pictures, *part));
    }
    let classes = classes.map(|(_, names, _)| names).unwrap_or_default();
    let n = classes.len();
    let items = opened.into_iter().flat_map(move |(pictures, part)| {
        let path = pictures.path().to_owned();
        let rows = pictures.rows().enumerate();
        rows.map(move |(number, row)| item(row?, (&path, number), part, n))
    });
    Ok(Shelf {
        name: name.to_owned(),
        origin: origin.to_owned(),
        classes,
        files: chosen.into_iter().map(|(file, _)| file).collect(),
        size: None,
        items: Box::new(items),
    })
}

/// One row as a picture.
fn item(row: Row, (path, number): (&Path, usize), part: Part, classes: usize) -> Result<Item> {
    // datasets writes -1 where a class is not known.
    let label = row.label.filter(|label| *label != -1);
    let label = label
        .map(|label| class(label, classes, path, number))
        .transpose()?;
    let content = row.picture.map_or(Content::Empty, Content::Bytes);
    Ok(Item {
        name: PathBuf::from(format!("{}: row {number}", path.display())),
        label,
        part,
        content,
    })
}

/// Which file is in which part.
fn parts(files: &[PathBuf]) -> Vec<(PathBuf, Part)> {
    // The Hub's own conversion has a folder a part.
    let folders = files
        .iter()
        .any(|file| file.parent().is_some_and(|above| above.ends_with("train")));
    let begins = |file: &Path, word: &str| {
        let named = if folders {
            file.parent().unwrap_or(file)
        } else {
            file
        };
        let name = named
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase());
        name.is_some_and(|name| name.starts_with(word))
    };
    let is_test = |file: &PathBuf| begins(file, "test");
    let is_validation = |file: &PathBuf| begins(file, "val");
    let (test, validation) = (files.iter().any(is_test), files.iter().any(is_validation));
    let part = |file: &PathBuf| match (is_test(file), is_validation(file)) {
        (true, _) => Some(Part::Test),
        (_, true) if test => None,
        (_, true) => Some(Part::Test),
        _ if test || validation => Some(Part::Train),
        _ => Some(Part::Dealt),
    };
    let chosen = files
        .iter()
        .filter_map(|file| Some((file.clone(), part(file)?)));
    chosen.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(files: &[&str], expected: &[Option<Part>]) {
        let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
        let found = parts(&files);
        let found = files.iter().map(|file| {
            let found = found.iter().find(|(known, _)| known == file);
            found.map(|(_, part)| *part)
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_names_of_files_say_what_is_held_out() {
        let (train, test, dealt) = (Some(Part::Train), Some(Part::Test), Some(Part::Dealt));
        check(&["d/train-0.parquet", "d/test-0.parquet"], &[train, test]);
        check(&["d/0.parquet", "d/Validation.parquet"], &[train, test]);
        check(&["train.parquet", "more.parquet"], &[dealt, dealt]);
        check(
            &["test/d/train/0.parquet", "test/d/test/0.parquet"],
            &[train, test],
        );
        check(
            &["test.parquet", "train.parquet", "validation.parquet"],
            &[test, train, None],
        );
    }
}
