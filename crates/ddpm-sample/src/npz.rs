//! NumPy's `.npz` with one array of bytes: an uncompressed zip archive around one `.npy` file.
//!
//! Written here because candle's writer forgets the errors of a full disk, and stops at 4 GiB.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// Writes `NAME.npy`, u8 of this shape in C order, as the only entry of an archive.
///
/// # Errors
/// Whatever the file system says; the file is synced when this returns.
pub(crate) fn write_npz(path: &Path, name: &str, shape: &[usize], bytes: &[u8]) -> Result<()> {
    let head = npy_head(shape);
    let entry = Entry::new(format!("{name}.npy"), &[&head, bytes]);
    let mut file = BufWriter::new(File::create(path)?);
    for part in [&entry.local_header(), &head, bytes, &entry.directory()] {
        file.write_all(part)?;
    }
    file.into_inner()?.sync_all()
}

/// The header of NumPy's format 1.0, padded so that the data starts at a multiple of 64.
fn npy_head(shape: &[usize]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let mut text = format!(
        "{{'descr': '|u1', 'fortran_order': False, 'shape': ({}), }}",
        sides.trim_end()
    );
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let length = (text.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat()
}

/// One stored file, told with the 64-bit fields of zip ("zip64") whatever its size.
struct Entry {
    name: String,
    crc: u32,
    size: u64,
}

/// Stands where a size or offset is told in 64 bits elsewhere.
const ELSEWHERE: u32 = u32::MAX;
/// Version 4.5 of the format: the one with 64-bit fields.
const VERSION: u16 = 45;
/// 1980-01-01, the first day that a zip archive can tell: equal images give equal files.
const DATE: u16 = (1 << 5) | 1;

impl Entry {
    fn new(name: String, parts: &[&[u8]]) -> Self {
        let mut crc = flate2::Crc::new();
        parts.iter().for_each(|part| crc.update(part));
        Self {
            name,
            crc: crc.sum(),
            size: parts.iter().map(|part| part.len() as u64).sum(),
        }
    }

    /// What stands before the data.
    fn local_header(&self) -> Vec<u8> {
        let mut out = Bytes::signed(b"PK\x03\x04");
        out.u16(VERSION);
        self.described(&mut out, 20);
        out.text(&self.name)
            .u16(1)
            .u16(16)
            .u64(self.size)
            .u64(self.size);
        out.0
    }

    /// What stands after the data: the archive's list of entries, and where that list is, in 64 and in 32 bits.
    fn directory(&self) -> Vec<u8> {
        let start = self.local_header().len() as u64 + self.size;
        let mut out = Bytes::signed(b"PK\x01\x02");
        out.u16(VERSION).u16(VERSION);
        self.described(&mut out, 28);
        // No comment, disk 0, no attributes; then the offset of the local header.
        out.u16(0).u16(0).u16(0).u32(0).u32(ELSEWHERE);
        out.text(&self.name)
            .u16(1)
            .u16(24)
            .u64(self.size)
            .u64(self.size)
            .u64(0);
        let length = out.0.len() as u64;
        out.0.extend(b"PK\x06\x06");
        out.u64(44)
            .u16(VERSION)
            .u16(VERSION)
            .u32(0)
            .u32(0)
            .u64(1)
            .u64(1)
            .u64(length)
            .u64(start);
        out.0.extend(b"PK\x06\x07");
        out.u32(0).u64(start + length).u32(1);
        out.0.extend(b"PK\x05\x06");
        out.u16(0)
            .u16(0)
            .u16(1)
            .u16(1)
            .u32(length as u32)
            .u32(ELSEWHERE)
            .u16(0);
        out.0
    }

    /// The fields that both headers share: stored, its date, checksum, sizes, lengths of name and extra field.
    fn described(&self, out: &mut Bytes, extra: u16) {
        out.u16(0)
            .u16(0)
            .u16(0)
            .u16(DATE)
            .u32(self.crc)
            .u32(ELSEWHERE)
            .u32(ELSEWHERE);
        out.u16(self.name.len() as u16).u16(extra);
    }
}

/// Little-endian fields, one after the other.
struct Bytes(Vec<u8>);

impl Bytes {
    fn signed(signature: &[u8; 4]) -> Self {
        Self(signature.to_vec())
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.0.extend(text.as_bytes());
        self
    }
}
