//! MNIST's IDX files, gzipped or not: a big-endian header, then one byte a value.
//!
//! The format is Yann LeCun's: magic number (two zero bytes, the value type `08` = u8, the number of dimensions), each
//! dimension as a big-endian u32, then the values, last dimension fastest. Whether a file is gzipped is told from its
//! first bytes, not from its name. What a header promises is never allocated before the bytes are there.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::{Error, Result};

/// Magic number of a file of images: u8, three dimensions.
const IMAGES: u32 = 0x0000_0803;
/// Magic number of a file of labels: u8, one dimension.
const LABELS: u32 = 0x0000_0801;
/// The first two bytes of every gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// How many bytes memory grows by while a file is read.
const PIECE: usize = 1 << 20;

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
/// [`Error::Open`], [`Error::Read`] (also corrupt gzip data), [`Error::Format`] (wrong magic number or size, fewer or more
/// bytes than the header promises), [`Error::Memory`]; each names file, byte and expectation.
pub fn read_images(path: &Path, size: Option<(usize, usize)>) -> Result<Images> {
    images_from(open(path)?, path, size)
}

/// Reads a file of labels, each of which must be less than `classes`.
///
/// # Errors
/// As [`read_images`], and [`Error::Format`] for a label out of range.
pub fn read_labels(path: &Path, classes: u32) -> Result<Vec<u32>> {
    labels_from(open(path)?, path, classes)
}

/// As [`read_images`], from any bytes; `path` is what errors call them.
pub(crate) fn images_from(
    file: impl BufRead,
    path: &Path,
    size: Option<(usize, usize)>,
) -> Result<Images> {
    let mut reader = IdxReader::new(file, path)?;
    reader.magic(IMAGES)?;
    let n = reader.dimension("one image or more", |n| n > 0)?;
    let height = match size {
        Some((height, _)) => reader.dimension(&format!("{height} rows"), |rows| rows == height)?,
        None => reader.dimension("one row or more", |rows| rows > 0)?,
    };
    let width = match size {
        Some((_, width)) => {
            reader.dimension(&format!("{width} columns"), |columns| columns == width)?
        }
        None => reader.dimension("one column or more", |columns| columns > 0)?,
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
pub(crate) fn labels_from(file: impl BufRead, path: &Path, classes: u32) -> Result<Vec<u32>> {
    let mut reader = IdxReader::new(file, path)?;
    reader.magic(LABELS)?;
    let n = reader.dimension("one label or more", |n| n > 0)?;
    let what = format!("{n} labels");
    let first = reader.offset;
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

fn open(path: &Path) -> Result<BufReader<File>> {
    match File::open(path) {
        Ok(file) => Ok(BufReader::new(file)),
        Err(source) => Err(Error::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A file being read: its bytes (unpacked), and how many came before.
struct IdxReader<'a> {
    bytes: Box<dyn Read + 'a>,
    path: PathBuf,
    gzip: bool,
    offset: u64,
}

impl<'a> IdxReader<'a> {
    fn new(mut file: impl BufRead + 'a, path: &Path) -> Result<Self> {
        let read_error = |source| Error::Read {
            path: path.to_owned(),
            offset: 0,
            gzip: false,
            source,
        };
        let gzip = file.fill_buf().map_err(read_error)?.starts_with(&GZIP);
        let bytes: Box<dyn Read + 'a> = if gzip {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        Ok(Self {
            bytes,
            path: path.to_owned(),
            gzip,
            offset: 0,
        })
    }

    fn magic(&mut self, expected: u32) -> Result<()> {
        let found = self.number("an IDX magic number")?;
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
        Err(self.format(0, expected, format!("{found:#010x}{what}")))
    }

    /// The next dimension, which must pass the test that `expected` puts into words.
    fn dimension(&mut self, expected: &str, fits: impl Fn(usize) -> bool) -> Result<usize> {
        let place = self.offset;
        let found = self.number(expected)?;
        match usize::try_from(found) {
            Ok(n) if fits(n) => Ok(n),
            _ => Err(self.format(place, expected.to_owned(), found.to_string())),
        }
    }

    /// A big-endian u32.
    fn number(&mut self, what: &str) -> Result<u32> {
        let bytes = self.values(4, what)?;
        Ok(bytes
            .iter()
            .fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    /// The next `n` bytes. Memory grows with the bytes that are there, not with the number promised.
    fn values(&mut self, n: u64, what: &str) -> Result<Vec<u8>> {
        let start = self.offset;
        let mut values = Vec::new();
        while (values.len() as u64) < n {
            let piece = (n - values.len() as u64).min(PIECE as u64);
            if values.try_reserve(piece as usize).is_err() {
                return Err(Error::Memory {
                    path: self.path.clone(),
                    bytes: n,
                });
            }
            let read = (&mut self.bytes).take(piece).read_to_end(&mut values);
            self.offset = start + values.len() as u64;
            let read = read.map_err(|source| self.read_error(source))?;
            if read == 0 {
                let found = format!("the end of the file after {} of {n} bytes", values.len());
                return Err(self.format(self.offset, what.to_owned(), found));
            }
        }
        Ok(values)
    }

    /// That nothing follows. For a gzipped file this also reads its checksum.
    fn end(&mut self, what: &str) -> Result<()> {
        let mut one = Vec::new();
        (&mut self.bytes)
            .take(1)
            .read_to_end(&mut one)
            .map_err(|source| self.read_error(source))?;
        if one.is_empty() {
            return Ok(());
        }
        Err(self.format(
            self.offset,
            format!("the end of the file after {what}"),
            "more bytes".to_owned(),
        ))
    }

    fn read_error(&self, source: std::io::Error) -> Error {
        Error::Read {
            path: self.path.clone(),
            offset: self.offset,
            gzip: self.gzip,
            source,
        }
    }

    fn format(&self, offset: u64, expected: String, found: String) -> Error {
        Error::Format {
            path: self.path.clone(),
            offset,
            gzip: self.gzip,
            expected,
            found,
        }
    }
}
