//! A tar archive, gzipped or not, read entry by entry: as much of POSIX's `ustar` as data sets are packed with.

use std::io::BufRead;
use std::path::Path;

use crate::Result;
use crate::reader::Reader;

/// Headers and contents begin at multiples of this.
const BLOCK: u64 = 512;

/// A file, a folder or something else in an archive.
pub(crate) struct Entry {
    /// Its path inside the archive.
    pub(crate) name: String,
    /// Bytes of its content.
    size: u64,
}

/// An archive being read.
pub(crate) struct Archive<'a> {
    reader: Reader<'a>,
}

impl<'a> Archive<'a> {
    /// Reads an archive from these bytes; `path` is what errors call them.
    pub(crate) fn new(file: impl BufRead + 'a, path: &Path) -> Result<Self> {
        let reader = Reader::new(file, path)?;
        Ok(Self { reader })
    }

    /// The next header, or nothing after the last; its content must be read or skipped before the next call.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let start = self.reader.offset();
        let header = self.reader.values(BLOCK, "a tar header of 512 bytes")?;
        if header.iter().all(|&byte| byte == 0) {
            self.reader.drain()?;
            return Ok(None);
        }
        // The sum counts its own eight bytes as blanks.
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        let own: u64 = header[148..156].iter().map(|&byte| u64::from(byte)).sum();
        if octal(&header[148..156]) != Some(sum - own + 8 * u64::from(b' ')) {
            let expected = "a tar header with its checksum".to_owned();
            return Err(self
                .reader
                .format(start, expected, "other bytes".to_owned()));
        }
        let Some(size) = octal(&header[124..136]) else {
            let expected = "the size of a tar entry in octal digits".to_owned();
            let found = String::from_utf8_lossy(&header[124..136]).into_owned();
            return Err(self.reader.format(start + 124, expected, found));
        };
        let name = header[..100].split(|&byte| byte == 0).next();
        let name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
        Ok(Some(Entry { name, size }))
    }

    /// An entry's content, which must be of `size` bytes: a larger one is not read.
    pub(crate) fn content(&mut self, entry: &Entry, size: u64) -> Result<Vec<u8>> {
        if entry.size > size {
            let (expected, found) = (format!("{} of {size} bytes", entry.name), entry.size);
            return Err(self
                .reader
                .format(self.reader.offset(), expected, format!("{found}")));
        }
        let what = format!("the {} bytes of {}", entry.size, entry.name);
        let content = self.reader.values(entry.size, &what)?;
        let rest = entry.size.next_multiple_of(BLOCK) - entry.size;
        self.reader.values(rest, &what)?;
        Ok(content)
    }

    /// Goes past an entry's content.
    pub(crate) fn skip(&mut self, entry: &Entry) -> Result<()> {
        let what = format!("the {} bytes of {}", entry.size, entry.name);
        let mut left = entry.size.next_multiple_of(BLOCK);
        while left > 0 {
            let piece = left.min(1 << 20);
            self.reader.values(piece, &what)?;
            left -= piece;
        }
        Ok(())
    }
}

/// A number in octal digits between blanks and zero bytes.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
}
