//! A file read from front to back, gzipped or not: every error knows the byte; memory grows with the bytes that are there.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::{Error, Result};

/// The first two bytes of every gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// How many bytes memory grows by while a file is read.
const PIECE: usize = 1 << 20;

/// Opens a file for [`Reader::new`].
///
/// # Errors
/// [`Error::Open`].
pub(crate) fn open(path: &Path) -> Result<BufReader<File>> {
    match File::open(path) {
        Ok(file) => Ok(BufReader::new(file)),
        Err(source) => Err(Error::Open {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A file being read: its bytes (unpacked), and how many came before.
pub(crate) struct Reader<'a> {
    bytes: Box<dyn Read + 'a>,
    path: PathBuf,
    gzip: bool,
    offset: u64,
}

impl<'a> Reader<'a> {
    /// Reads from these bytes, unpacked if they are gzipped; `path` is what errors call them.
    pub(crate) fn new(mut file: impl BufRead + 'a, path: &Path) -> Result<Self> {
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

    /// How many bytes were read, of the unpacked content.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next `n` bytes. Memory grows with the bytes that are there, not with the number promised.
    pub(crate) fn values(&mut self, n: u64, what: &str) -> Result<Vec<u8>> {
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
    pub(crate) fn end(&mut self, what: &str) -> Result<()> {
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

    /// Reads to the end whatever follows; for a gzipped file this checks its checksum.
    pub(crate) fn drain(&mut self) -> Result<()> {
        let read = std::io::copy(&mut self.bytes, &mut std::io::sink());
        read.map(|_| ()).map_err(|source| self.read_error(source))
    }

    fn read_error(&self, source: std::io::Error) -> Error {
        Error::Read {
            path: self.path.clone(),
            offset: self.offset,
            gzip: self.gzip,
            source,
        }
    }

    /// What is at byte `offset` is not what the format says.
    pub(crate) fn format(&self, offset: u64, expected: String, found: String) -> Error {
        Error::Format {
            path: self.path.clone(),
            offset,
            gzip: self.gzip,
            expected,
            found,
        }
    }
}
