//! What can go wrong between a data set's name and its batches; each message names thing, place and expectation.

use std::path::{Path, PathBuf};

use crate::Skipped;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a data set could not be found, read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is no data set that this version reads.
    #[error(
        "data set `{spec}`: {why}; this version reads digits, mnist, fashion-mnist, cifar10, tiny-imagenet, \
         folder:PATH, parquet:PATH and hub:OWNER/NAME"
    )]
    Spec {
        /// What was asked for.
        spec: String,
        /// What is wrong with it.
        why: String,
    },
    /// None of the places where the data set could be has it.
    #[error("data set `{name}` not found; looked in {}\n{how_to_get}", list(.looked))]
    NotFound {
        /// The data set.
        name: String,
        /// Every folder looked at, in order.
        looked: Vec<PathBuf>,
        /// The commands that would fetch it.
        how_to_get: String,
    },
    /// A folder has some of a data set's files but not this one.
    #[error(
        "{}: {expected} expected beside {}, which is there: the data set `{name}` has {files} files",
        .folder.display(),
        .present.display()
    )]
    FileMissing {
        /// The data set.
        name: String,
        /// Where the file should be.
        folder: PathBuf,
        /// The names it may have, in words.
        expected: String,
        /// How many files the data set has, in words.
        files: &'static str,
        /// One of the files that are there.
        present: PathBuf,
    },
    /// A file could not be opened.
    #[error("{}: cannot open: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be read on: a failing disk, or gzip data that do not unpack.
    #[error("{}: byte {offset}{}: {source}; fetch the file again", .path.display(), unpacked(*.gzip))]
    Read {
        /// The file.
        path: PathBuf,
        /// How many bytes were read before (of the unpacked content, if gzipped).
        offset: u64,
        /// Whether the file is gzipped.
        gzip: bool,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The bytes at a place in a file are not what the format says.
    #[error("{}: byte {offset}{}: expected {expected}, found {found}", .path.display(), unpacked(*.gzip))]
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it (in the unpacked content, if gzipped).
        offset: u64,
        /// Whether the file is gzipped.
        gzip: bool,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file's images need more memory than there is.
    #[error("{}: {bytes} bytes do not fit into this machine's memory", .path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// How many bytes its header promises.
        bytes: u64,
    },
    /// The files are those of another data set that uses the same file names.
    #[error("{}: these are the files of `{found}`, expected `{expected}`; put each into a folder of its name", .path.display())]
    OtherDataset {
        /// The label file that tells.
        path: PathBuf,
        /// The data set asked for.
        expected: String,
        /// The data set found.
        found: String,
    },
    /// Images and labels, or two parts of a data set, do not fit together.
    #[error("data set `{name}`: {what}")]
    Shape {
        /// The data set.
        name: String,
        /// What differs from what.
        what: String,
    },
    /// A folder cannot be a data set as it is.
    #[error("{}: {what}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is in it and what was expected.
        what: String,
    },
    /// Pictures of a folder cannot be read.
    #[error(
        "{}: {} of {pictures} pictures cannot be read; remove them, or allow that they are skipped (data.skip_unreadable=true){}",
        .folder.display(),
        .unreadable.len(),
        named(.unreadable)
    )]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// How many pictures it has.
        pictures: usize,
        /// Those that cannot be read.
        unreadable: Vec<Skipped>,
    },
    /// What pictures are to be made into is impossible.
    #[error("pictures cannot be made so: {what}")]
    Pictures {
        /// What contradicts what.
        what: String,
    },
    /// A zip archive, or a file in it that is needed, cannot be read.
    #[error("{}: {what}", .path.display())]
    Zip {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A parquet file cannot be read, or has no pictures.
    #[error("{}: {what}", .path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
    },
    /// A data set of the Hub cannot be used or fetched.
    #[error("data set `hub:{name}`: {what}")]
    Hub {
        /// OWNER/NAME.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// Decoded images that do not fit into memory cannot be kept on disk either.
    #[error(
        "cannot {action} `{}`, where decoded images are kept that do not fit into memory: {source}; \
         another folder (data.cache) or more memory (data.memory) may help",
        .path.display()
    )]
    Cache {
        /// `read` or `write`.
        action: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file could not be fetched.
    #[error("{url}: {what}")]
    Fetch {
        /// What was asked for.
        url: String,
        /// Why it did not come, and what is kept of it.
        what: String,
    },
    /// An image cannot be resized.
    #[error(
        "an image of {}x{}x{} in {bytes} bytes to {}x{}: expected sizes of 1 and more, and height x width x channels bytes",
        .from.0, .from.1, .from.2, .to.0, .to.1
    )]
    Resize {
        /// Its height, width and channels.
        from: (usize, usize, usize),
        /// The height and width asked for.
        to: (usize, usize),
        /// Bytes of its pixels.
        bytes: usize,
    },
    /// An image's number is beyond the data set.
    #[error("data set `{name}`: image {index} asked for, expected less than {len}")]
    Index {
        /// The data set.
        name: String,
        /// The image asked for.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// A position is so far on that it has no randomness of its own.
    #[error("image {position} of the feed: {source}")]
    Position {
        /// How many images came before.
        position: u64,
        /// What has no address.
        source: ddpm_random::Error,
    },
    /// Pixels could not become a tensor.
    #[error("{0}")]
    Image(#[from] ddpm_image::Error),
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn cache(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Cache {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

fn list(places: &[PathBuf]) -> String {
    let shown: Vec<String> = places
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    shown.join(", ")
}

/// The first twenty pictures with what is wrong, a line each, and how many more there are.
fn named(pictures: &[Skipped]) -> String {
    const SHOWN: usize = 20;
    let mut lines: String = pictures
        .iter()
        .take(SHOWN)
        .map(|picture| format!("\n  {picture}"))
        .collect();
    if let Some(more @ 1..) = pictures.len().checked_sub(SHOWN) {
        lines.push_str(&format!("\n  and {more} more"));
    }
    lines
}

fn unpacked(gzip: bool) -> &'static str {
    if gzip { " of the unpacked content" } else { "" }
}
