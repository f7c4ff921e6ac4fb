//! A zip archive: what is in it, and the content of each file, checked, from any thread.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::{Crc, bufread::DeflateDecoder};
use zip::{CompressionMethod, ZipArchive};

use crate::bytes_at::{BytesAt, Forward};
use crate::{Error, Result};

/// Unpacked bytes of one file: a picture, or a list of pictures.
const UNPACKED: u64 = 256 << 20;

/// An archive whose directory was read.
#[derive(Debug)]
pub struct Archive<B = File> {
    bytes: B,
    path: PathBuf,
    entries: Vec<Entry>,
}

/// A file in an archive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name with its folders, separated by `/`.
    pub name: String,
    method: CompressionMethod,
    encrypted: bool,
    start: u64,
    packed: u64,
    unpacked: u64,
    checksum: u32,
}

impl Archive {
    /// Reads an archive's directory.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Zip`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::new(file, path)
    }
}

impl<B: BytesAt> Archive<B> {
    /// As [`Archive::open`], from any bytes; `path` is what errors call them.
    ///
    /// # Errors
    /// [`Error::Zip`].
    pub fn new(bytes: B, path: &Path) -> Result<Self> {
        let forward = BufReader::new(Forward {
            bytes: &bytes,
            at: 0,
        });
        let entries = directory(forward).map_err(|error| Error::Zip {
            path: path.to_owned(),
            what: error.to_string(),
        })?;
        Ok(Self {
            bytes,
            path: path.to_owned(),
            entries,
        })
    }

    /// What errors call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of the directory.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The content of a file of this archive, whose checksum was compared.
    ///
    /// # Errors
    /// Words that say what is wrong with it.
    pub fn content(&self, entry: &Entry) -> std::result::Result<Vec<u8>, String> {
        if entry.encrypted {
            return Err("is encrypted".to_owned());
        }
        if entry.unpacked > UNPACKED {
            return Err(format!(
                "unpacks to {} bytes, expected at most {UNPACKED}",
                entry.unpacked
            ));
        }
        let packed = self.bytes.bytes_at(entry.start, entry.packed);
        let packed = packed.map_err(|error| format!("cannot be read from the archive: {error}"))?;
        let content = match entry.method {
            CompressionMethod::Stored => packed,
            CompressionMethod::DEFLATE => {
                let mut content = Vec::new();
                let unpacked = DeflateDecoder::new(packed.as_slice())
                    .take(entry.unpacked + 1)
                    .read_to_end(&mut content);
                unpacked.map_err(|error| format!("does not unpack: {error}"))?;
                content
            }
            other => return Err(format!("is packed by {other}, expected stored or deflated")),
        };
        let mut checksum = Crc::new();
        checksum.update(&content);
        if content.len() as u64 != entry.unpacked || checksum.sum() != entry.checksum {
            return Err(format!(
                "is damaged: {} bytes with checksum {:08x}, expected {} with {:08x}",
                content.len(),
                checksum.sum(),
                entry.unpacked,
                entry.checksum
            ));
        }
        Ok(content)
    }
}

/// The files of an archive, folders left out.
fn directory(bytes: impl Read + std::io::Seek) -> zip::result::ZipResult<Vec<Entry>> {
    let mut archive = ZipArchive::new(bytes)?;
    let mut entries = Vec::new();
    for index in 0..archive.len() {
        let file = archive.by_index_raw(index)?;
        if file.is_dir() {
            continue;
        }
        entries.push(Entry {
            name: file.name()?.into_owned(),
            method: file.compression(),
            encrypted: file.encrypted(),
            start: file.data_start().unwrap_or(u64::MAX),
            packed: file.compressed_size(),
            unpacked: file.size(),
            checksum: file.crc32(),
        });
    }
    Ok(entries)
}
