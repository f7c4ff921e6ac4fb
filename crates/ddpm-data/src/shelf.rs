//! Pictures that are still packed, in order, each with its class and its part, wherever they lie: files, an archive, rows.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::zipped::{Archive, Entry};
use crate::{Error, Result};

/// All pictures of a data set, as they come.
pub(crate) struct Shelf<'a> {
    /// What the data set is called.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) origin: PathBuf,
    /// What the classes are called.
    pub(crate) classes: Vec<String>,
    /// The files that all pictures come from: when one of them changes, so do the pictures.
    pub(crate) files: Vec<PathBuf>,
    /// The height and width that every picture must have, where the data set is known for it.
    pub(crate) size: Option<(usize, usize)>,
    /// The pictures.
    pub(crate) items: Box<dyn Iterator<Item = Result<Item>> + 'a>,
}

/// One picture.
pub(crate) struct Item {
    /// What messages call it.
    pub(crate) name: PathBuf,
    /// Its class, where it has one.
    pub(crate) label: Option<u32>,
    /// Where it belongs.
    pub(crate) part: Part,
    /// Its bytes.
    pub(crate) content: Content,
}

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What is learnt from.
    Train,
    /// What is held out.
    Test,
    /// The data set does not say: of every twenty readable pictures, the last is held out.
    Dealt,
}

/// Where a picture's bytes are.
pub(crate) enum Content {
    /// In a file of their own.
    File,
    /// In an archive.
    Zipped(Arc<Archive>, Entry),
    /// Here.
    Bytes(Vec<u8>),
    /// Nowhere.
    Empty,
}

impl Item {
    /// The picture's bytes, packed as in a file.
    pub(crate) fn bytes(&self) -> std::result::Result<Cow<'_, [u8]>, String> {
        match &self.content {
            Content::File => file(&self.name).map(Cow::Owned),
            Content::Zipped(archive, entry) => archive.content(entry).map(Cow::Owned),
            Content::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Content::Empty => Err("the row has no picture".to_owned()),
        }
    }
}

/// The bytes of a file; of a pipe or a device, which may have no end, none.
fn file(path: &Path) -> std::result::Result<Vec<u8>, String> {
    let kind = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !kind.is_file() {
        return Err("is a pipe, a socket or a device, expected a file".to_owned());
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

/// A label that is a class of the data set.
pub(crate) fn class(label: i64, classes: usize, path: &Path, row: usize) -> Result<u32> {
    let known = u32::try_from(label)
        .ok()
        .filter(|label| classes == 0 || (*label as usize) < classes);
    known.ok_or_else(|| Error::Parquet {
        path: path.to_owned(),
        what: format!(
            "row {row}: label {label}, expected 0 to {}",
            classes.saturating_sub(1)
        ),
    })
}
