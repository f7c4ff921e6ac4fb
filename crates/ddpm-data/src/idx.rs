//! MNIST's IDX files, gzipped or not: a big-endian header, then one byte a value.
//!
//! The format is Yann LeCun's: magic number (two zero bytes, the value type `08` = u8, the number of dimensions), each
//! dimension as a big-endian u32, then the values, last dimension fastest. Whether a file is gzipped is told from its
//! first bytes, not from its name. What a header promises is never allocated before the bytes are there.

use std::io::BufRead;
use std::path::Path;

use crate::Result;
use crate::reader::{Reader, open};

/// Magic number of a file of images: u8, three dimensions.
const IMAGES: u32 = 0x0000_0803;
/// Magic number of a file of labels: u8, one dimension.
const LABELS: u32 = 0x0000_0801;

/// The images of one IDX file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// How many.
    pub n: usize,
    /// Rows of each.
    pub height: usize,
    /// Columns of each.
    pub width: usize,
    /// u8 values, image by image, row by row.
    pub pixels: Vec<u8>,
}

/// Reads a file of images; `size` = (height, width) is what they must be, where that is known.
///
/// # Errors
/// [`Error::Open`](crate::Error::Open), [`Error::Read`](crate::Error::Read) (also corrupt gzip data), [`Error::Format`](crate::Error::Format) (wrong magic number or size, fewer or more
/// bytes than the header promises), [`Error::Memory`](crate::Error::Memory); each names file, byte and expectation.
pub fn read_images(path: &Path, size: Option<(usize, usize)>) -> Result<Images> {
    images_from(open(path)?, path, size)
}

/// Reads a file of labels, each of which must be less than `classes`.
///
/// # Errors
/// As [`read_images`], and [`Error::Format`](crate::Error::Format) for a label out of range.
pub fn read_labels(path: &Path, classes: u32) -> Result<Vec<u32>> {
    labels_from(open(path)?, path, classes)
}

/// As [`read_images`], from any bytes; `path` is what errors call them.
///
/// # Errors
/// As [`read_images`].
pub fn images_from(
    file: impl BufRead,
    path: &Path,
    size: Option<(usize, usize)>,
) -> Result<Images> {
    let mut reader = Reader::new(file, path)?;
    magic(&mut reader, IMAGES)?;
    let n = dimension(&mut reader, "one image or more", |n| n > 0)?;
    let height = match size {
        Some((height, _)) => dimension(&mut reader, &format!("{height} rows"), |rows| {
            rows == height
        })?,
        None => dimension(&mut reader, "one row or more", |rows| rows > 0)?,
    };
    let width = match size {
        Some((_, width)) => dimension(&mut reader, &format!("{width} columns"), |columns| {
            columns == width
        })?,
        None => dimension(&mut reader, "one column or more", |columns| columns > 0)?,
    };
    let bytes = (n as u128) * (height as u128) * (width as u128);
    let what = format!("{n} images of {height}x{width}, {bytes} bytes");
    let pixels = reader.values(u64::try_from(bytes).unwrap_or(u64::MAX), &what)?;
    reader.end(&what)?;
    Ok(Images {
        n,
        height,
        width,
        pixels,
    })
}

/// As [`read_labels`], from any bytes; `path` is what errors call them.
///
/// # Errors
/// As [`read_labels`].
pub fn labels_from(file: impl BufRead, path: &Path, classes: u32) -> Result<Vec<u32>> {
    let mut reader = Reader::new(file, path)?;
    magic(&mut reader, LABELS)?;
    let n = dimension(&mut reader, "one label or more", |n| n > 0)?;
    let what = format!("{n} labels");
    let first = reader.offset();
    let values = reader.values(n as u64, &what)?;
    reader.end(&what)?;
    let labels: Vec<u32> = values.into_iter().map(u32::from).collect();
    match labels.iter().position(|&label| label >= classes) {
        Some(i) => {
            let (expected, found) = (
                format!("a label less than {classes}"),
                labels[i].to_string(),
            );
            Err(reader.format(first + i as u64, expected, found))
        }
        None => Ok(labels),
    }
}

/// That the file begins with the magic number of its kind.
fn magic(reader: &mut Reader<'_>, expected: u32) -> Result<()> {
    let found = number(reader, "an IDX magic number")?;
    if found == expected {
        return Ok(());
    }
    let what = match found {
        IMAGES => " (a file of images)",
        LABELS => " (a file of labels)",
        _ if found.to_be_bytes()[0] == b'<' => " (a web page, by its first character)",
        _ => "",
    };
    let kind = if expected == IMAGES {
        "images"
    } else {
        "labels"
    };
    let expected = format!("the magic number {expected:#010x} of an IDX file of {kind}");
    Err(reader.format(0, expected, format!("{found:#010x}{what}")))
}

/// The next dimension, which must pass the test that `expected` puts into words.
fn dimension(
    reader: &mut Reader<'_>,
    expected: &str,
    fits: impl Fn(usize) -> bool,
) -> Result<usize> {
    let place = reader.offset();
    let found = number(reader, expected)?;
    match usize::try_from(found) {
        Ok(n) if fits(n) => Ok(n),
        _ => Err(reader.format(place, expected.to_owned(), found.to_string())),
    }
}

/// A big-endian u32.
fn number(reader: &mut Reader<'_>, what: &str) -> Result<u32> {
    let bytes = reader.values(4, what)?;
    Ok(bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u32::from(byte)))
}
