//! CIFAR-10's binary batches (Krizhevsky, 2009): in a folder, or in the archive that they come in.
//!
//! A batch is 10,000 records of a label byte and 3 x 32 x 32 values: first all of red, then green, then blue, each row by
//! row from the top. <https://www.cs.toronto.edu/~kriz/cifar.html>, "binary version". What is read here is upright, each
//! pixel's red, green and blue side by side.

use std::io::BufRead;
use std::path::Path;

use crate::reader::{Reader, open};
use crate::tar::Archive;
use crate::{Error, Result};

/// Rows and columns of each image.
pub const SIZE: usize = 32;
/// The classes, class 0 first, as `batches.meta.txt` has them.
pub const CLASSES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];
/// The six files, the training batches in their order and then the test batch.
pub const FILES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];
/// The folder that the archive unpacks to.
pub const FOLDER: &str = "cifar-10-batches-bin";
/// The same images on the Hub, as `uoft-cs/cifar10`: pictures that keep every value (PNG) or a few shades of them (JPEG).
pub const PARQUET: [&str; 2] = [
    "train-00000-of-00001.parquet",
    "test-00000-of-00001.parquet",
];
/// The archive.
pub const ARCHIVE: &str = "cifar-10-binary.tar.gz";

/// Images of a batch.
const IMAGES: usize = 10_000;
/// Values of one colour of an image.
const PLANE: usize = SIZE * SIZE;
/// A label, then red, green and blue.
const RECORD: usize = 1 + 3 * PLANE;

/// Images and their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// u8 values, image by image, row by row, red, green and blue of a pixel side by side.
    pub pixels: Vec<u8>,
    /// The class of each image.
    pub labels: Vec<u32>,
}

impl Batch {
    /// Appends the images of another.
    pub(crate) fn extend(&mut self, other: Self) {
        self.pixels.extend(other.pixels);
        self.labels.extend(other.labels);
    }
}

/// Reads one batch, gzipped or not.
///
/// # Errors
/// [`Error::Open`], [`Error::Read`], [`Error::Format`] (fewer or more bytes than 10,000 records, a label that is no class);
/// each names file, byte and expectation.
pub fn read_batch(path: &Path) -> Result<Batch> {
    batch_from(open(path)?, path)
}

/// Reads the six batches of an archive, in the order of [`FILES`]; in which folder of it they lie does not matter.
///
/// # Errors
/// As [`read_batch`], [`Error::Format`] also for a damaged archive, and [`Error::FileMissing`].
pub fn read_archive(path: &Path) -> Result<Vec<Batch>> {
    archive_from(open(path)?, path)
}

/// As [`read_archive`], from any bytes; `path` is what errors call them.
///
/// # Errors
/// As [`read_archive`].
pub fn archive_from(file: impl BufRead, path: &Path) -> Result<Vec<Batch>> {
    let mut batches: [Option<Batch>; 6] = Default::default();
    let mut archive = Archive::new(file, path)?;
    while let Some(entry) = archive.next()? {
        let file = entry.name.rsplit('/').next().unwrap_or_default();
        match FILES.iter().position(|known| *known == file) {
            Some(place) => {
                let content = archive.content(&entry, (IMAGES * RECORD) as u64)?;
                batches[place] = Some(batch_from(content.as_slice(), &path.join(&entry.name))?);
            }
            None => archive.skip(&entry)?,
        }
    }
    if let Some(place) = batches.iter().position(Option::is_none) {
        return Err(Error::FileMissing {
            name: "cifar10".to_owned(),
            folder: path.to_owned(),
            expected: format!("`{}`", FILES[place]),
            files: "six",
            present: path.to_owned(),
        });
    }
    Ok(batches.into_iter().flatten().collect())
}

/// As [`read_batch`], from any bytes; `path` is what errors call them.
///
/// # Errors
/// As [`read_batch`].
pub fn batch_from(file: impl BufRead, path: &Path) -> Result<Batch> {
    let mut reader = Reader::new(file, path)?;
    let what = format!("{IMAGES} records of {RECORD} bytes, {}", IMAGES * RECORD);
    let records = reader.values((IMAGES * RECORD) as u64, &what)?;
    reader.end(&what)?;
    let mut batch = Batch::default();
    batch.pixels.reserve_exact(IMAGES * 3 * PLANE);
    for (i, record) in records.chunks_exact(RECORD).enumerate() {
        if usize::from(record[0]) >= CLASSES.len() {
            return Err(reader.format(
                (i * RECORD) as u64,
                format!("the label of image {i}, less than {}", CLASSES.len()),
                record[0].to_string(),
            ));
        }
        batch.labels.push(u32::from(record[0]));
        let (red, rest) = record[1..].split_at(PLANE);
        let (green, blue) = rest.split_at(PLANE);
        for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
            batch.pixels.extend([r, g, b]);
        }
    }
    Ok(batch)
}
