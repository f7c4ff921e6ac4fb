//! NumPy's `.npz`: an uncompressed zip archive around one `.npy` file an array.
//!
//! Written here because candle's writer forgets the errors of a full disk, and stops at 4 GiB.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// An array in C order.
pub(crate) struct Array<'a> {
    pub(crate) name: &'a str,
    /// NumPy's word for its numbers: `|u1` bytes, `<i8` eight bytes, the lowest first.
    pub(crate) kind: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

/// Writes each array as `NAME.npy`, in order.
///
/// # Errors
/// Whatever the file system says; the file is synced when this returns.
pub(crate) fn write_npz(path: &Path, arrays: &[Array<'_>]) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let (mut directory, mut at) = (Vec::new(), 0);
    for array in arrays {
        let head = npy_head(array);
        let entry = Entry::new(format!("{}.npy", array.name), at, &[&head, array.bytes]);
        let local = entry.local_header();
        for part in [&local, &head, array.bytes] {
            file.write_all(part)?;
        }
        at += local.len() as u64 + entry.size;
        directory.extend(entry.listed());
    }
    file.write_all(&directory)?;
    file.write_all(&end(arrays.len(), at, directory.len()))?;
    file.into_inner()?.sync_all()
}

/// The header of NumPy's format 1.0, padded so that the data starts at a multiple of 64.
fn npy_head(array: &Array<'_>) -> Vec<u8> {
    let sides: String = array.shape.iter().map(|side| format!("{side}, ")).collect();
    // A tuple of one keeps its comma.
    let sides = match array.shape {
        [side] => format!("{side},"),
        _ => sides.trim_end_matches(", ").to_owned(),
    };
    let mut text = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': ({sides}), }}",
        array.kind
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
    /// Where its local header is.
    at: u64,
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
    fn new(name: String, at: u64, parts: &[&[u8]]) -> Self {
        let mut crc = flate2::Crc::new();
        parts.iter().for_each(|part| crc.update(part));
        Self {
            name,
            at,
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

    /// What the archive's list of entries says of it.
    fn listed(&self) -> Vec<u8> {
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
            .u64(self.at);
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

/// Where the list of so many entries is, `at` with this length, in 64 and in 32 bits.
fn end(entries: usize, at: u64, length: usize) -> Vec<u8> {
    let (entries, length) = (entries as u64, length as u64);
    let mut out = Bytes::signed(b"PK\x06\x06");
    out.u64(44)
        .u16(VERSION)
        .u16(VERSION)
        .u32(0)
        .u32(0)
        .u64(entries)
        .u64(entries)
        .u64(length)
        .u64(at);
    out.0.extend(b"PK\x06\x07");
    out.u32(0).u64(at + length).u32(1);
    out.0.extend(b"PK\x05\x06");
    out.u16(0)
        .u16(0)
        .u16(entries as u16)
        .u16(entries as u16)
        .u32(length as u32)
        .u32(ELSEWHERE)
        .u16(0);
    out.0
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
