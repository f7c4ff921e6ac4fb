//! Pages of a column: their headers, how they are packed, and the values in them, read one after the other.

use std::io::Read;
use std::ops::Range;

use super::hybrid::Hybrid;
use super::thrift::{Reader, Result};

/// Bytes of a page once it is unpacked: what a header promises is not believed beyond this.
const UNPACKED: usize = 512 << 20;
/// The same of a dictionary, which writers give up long before.
const DICTIONARY_UNPACKED: usize = 64 << 20;

/// How the values of a column are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Physical {
    Int32,
    Int64,
    Bytes,
}

/// A value of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Number(i64),
    Bytes(Vec<u8>),
}

/// How the pages of a column are packed, as parquet numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Codec(pub(super) i64);

impl Codec {
    /// Unpacks exactly `size` bytes.
    fn unpack(self, packed: &[u8], size: usize) -> Result<Vec<u8>> {
        let read = |from: &mut dyn Read| {
            let mut out = Vec::new();
            let unpacked = from.take(size as u64 + 1).read_to_end(&mut out);
            unpacked.map(|_| out).map_err(|error| error.to_string())
        };
        let out = match self.0 {
            0 => packed.to_vec(),
            1 => snappy(packed, size)?,
            2 => read(&mut flate2::bufread::MultiGzDecoder::new(packed))?,
            6 => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(packed);
                read(&mut decoder.map_err(|error| error.to_string())?)?
            }
            other => {
                let names = ["LZO", "Brotli", "LZ4", "Zstandard", "LZ4 (raw)"];
                let name = usize::try_from(other - 3).ok().and_then(|i| names.get(i));
                let name = name.map_or_else(|| format!("codec {other}"), |name| (*name).to_owned());
                return Err(format!(
                    "packed with {name}, expected snappy, zstd, gzip or nothing"
                ));
            }
        };
        if out.len() != size {
            return Err(format!(
                "a page of {} bytes, {size} were promised",
                out.len()
            ));
        }
        Ok(out)
    }
}

/// Snappy writes its length first. The most it packs is 64 bytes into three.
fn snappy(packed: &[u8], size: usize) -> Result<Vec<u8>> {
    let promised = snap::raw::decompress_len(packed).map_err(|error| error.to_string())?;
    if promised != size || size / 32 > packed.len() {
        return Err(format!(
            "{} bytes of snappy that promise {promised}, {size} were expected",
            packed.len()
        ));
    }
    let unpacked = snap::raw::Decoder::new().decompress_vec(packed);
    unpacked.map_err(|error| error.to_string())
}

/// A page's header.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// Bytes of the header itself.
    pub(super) length: usize,
    kind: i64,
    unpacked: i64,
    packed: i64,
    values: i64,
    encoding: i64,
    /// Lengths of the levels that stand before the values, in the second version of data pages.
    levels: Option<(i64, i64)>,
    not_packed: bool,
}

/// The kinds of pages that hold values.
const DATA: i64 = 0;
const DICTIONARY: i64 = 2;
const DATA_2: i64 = 3;

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Result<Self> {
        let mut header = Self::default();
        let mut reader = Reader::new(bytes);
        reader.fields(|r, number, kind| {
            match number {
                1 => header.kind = r.integer(kind)?,
                2 => header.unpacked = r.integer(kind)?,
                3 => header.packed = r.integer(kind)?,
                5 | 7 => r.structure(kind, |r, number, kind| {
                    match number {
                        1 => header.values = r.integer(kind)?,
                        2 => header.encoding = r.integer(kind)?,
                        _ => r.skip(kind)?,
                    }
                    Ok(())
                })?,
                8 => {
                    let (mut definition, mut repetition) = (0, 0);
                    r.structure(kind, |r, number, kind| {
                        match number {
                            1 => header.values = r.integer(kind)?,
                            4 => header.encoding = r.integer(kind)?,
                            5 => definition = r.integer(kind)?,
                            6 => repetition = r.integer(kind)?,
                            7 => header.not_packed = !r.flag(kind)?,
                            _ => r.skip(kind)?,
                        }
                        Ok(())
                    })?;
                    header.levels = Some((definition, repetition));
                }
                _ => r.skip(kind)?,
            }
            Ok(())
        })?;
        header.length = reader.at();
        Ok(header)
    }

    /// Bytes of the page as it is stored.
    pub(super) fn packed(&self) -> Result<usize> {
        size(self.packed, usize::MAX)
    }

    pub(super) fn is_dictionary(&self) -> bool {
        self.kind == DICTIONARY
    }

    pub(super) fn has_values(&self) -> bool {
        self.kind == DATA || self.kind == DATA_2
    }
}

fn size(n: i64, most: usize) -> Result<usize> {
    let n = usize::try_from(n).ok().filter(|n| *n <= most);
    n.ok_or_else(|| "a page of an impossible size".to_owned())
}

/// The values that pages refer to by number.
#[derive(Debug)]
pub(super) enum Dictionary {
    Numbers(Vec<i64>),
    Bytes {
        page: Vec<u8>,
        places: Vec<Range<usize>>,
    },
}

impl Dictionary {
    pub(super) fn read(
        header: &Header,
        packed: &[u8],
        codec: Codec,
        physical: Physical,
    ) -> Result<Self> {
        let page = codec.unpack(packed, size(header.unpacked, DICTIONARY_UNPACKED)?)?;
        if physical != Physical::Bytes {
            let width = if physical == Physical::Int32 { 4 } else { 8 };
            let numbers = page.chunks_exact(width).map(number).collect();
            return Ok(Self::Numbers(numbers));
        }
        let (mut places, mut at) = (Vec::new(), 0);
        while at < page.len() {
            let place = length_and_bytes(&page, at)?;
            at = place.end;
            places.push(place);
        }
        Ok(Self::Bytes { page, places })
    }

    fn get(&self, index: u32) -> Result<Cell> {
        let index = index as usize;
        let cell = match self {
            Self::Numbers(numbers) => numbers.get(index).copied().map(Cell::Number),
            Self::Bytes { page, places } => {
                let place = places.get(index).cloned();
                place.map(|place| Cell::Bytes(page[place].to_vec()))
            }
        };
        cell.ok_or_else(|| format!("value {index} of a dictionary that ends before it"))
    }
}

/// A page of values.
#[derive(Debug)]
pub(super) struct Page {
    bytes: Vec<u8>,
    left: i64,
    /// Whether there is a value, told by the highest level.
    levels: Option<(Hybrid, u32)>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    /// One after the other, from this byte on.
    Plain(usize, Physical),
    /// Numbers in the dictionary.
    Indices(Hybrid),
    /// None are there: every row is empty.
    None,
}

impl Page {
    /// Unpacks a page of a column whose values have `definition` levels above them.
    pub(super) fn read(
        header: &Header,
        packed: &[u8],
        codec: Codec,
        (physical, definition): (Physical, u32),
    ) -> Result<Self> {
        let unpacked = size(header.unpacked, UNPACKED)?;
        let width = u32::BITS - definition.leading_zeros();
        let mut levels = None;
        let (bytes, values) = if let Some((length, repetition)) = header.levels {
            let (length, repetition) = (size(length, unpacked)?, size(repetition, unpacked)?);
            let before = length.saturating_add(repetition);
            if before > packed.len() || before > unpacked {
                return Err("levels longer than their page".to_owned());
            }
            let mut bytes = packed[..before].to_vec();
            let codec = if header.not_packed { Codec(0) } else { codec };
            let rest = unpacked - before;
            // Where every row is empty, nothing may stand for nothing.
            if rest > 0 {
                bytes.extend(codec.unpack(&packed[before..], rest)?);
            }
            if definition > 0 {
                levels = Some((Hybrid::new(repetition, before, width)?, definition));
            }
            (bytes, before)
        } else {
            let bytes = codec.unpack(packed, unpacked)?;
            let mut at = 0;
            if definition > 0 {
                let place = length_and_bytes(&bytes, 0)?;
                at = place.end;
                levels = Some((Hybrid::new(place.start, place.end, width)?, definition));
            }
            (bytes, at)
        };
        let values = match header.encoding {
            0 => Values::Plain(values, physical),
            2 | 8 => match bytes.get(values) {
                None => Values::None,
                Some(width) => {
                    let width = u32::from(*width);
                    Values::Indices(Hybrid::new(values + 1, bytes.len(), width)?)
                }
            },
            other => {
                let what = "expected plain values (0) or a dictionary (2, 8)";
                return Err(format!("values in parquet's encoding {other}, {what}"));
            }
        };
        Ok(Self {
            bytes,
            left: header.values,
            levels,
            values,
        })
    }

    /// The next value; `None` at the end of the page.
    pub(super) fn next(&mut self, dictionary: Option<&Dictionary>) -> Result<Option<Cell>> {
        if self.left <= 0 {
            return Ok(None);
        }
        self.left -= 1;
        if let Some((levels, highest)) = &mut self.levels
            && levels.next(&self.bytes)? < *highest
        {
            return Ok(Some(Cell::Null));
        }
        let cell = match &mut self.values {
            Values::None => return Err("fewer values than rows".to_owned()),
            Values::Indices(indices) => {
                let index = indices.next(&self.bytes)?;
                dictionary
                    .ok_or("a dictionary that is not there")?
                    .get(index)?
            }
            Values::Plain(at, Physical::Bytes) => {
                let place = length_and_bytes(&self.bytes, *at)?;
                *at = place.end;
                Cell::Bytes(self.bytes[place].to_vec())
            }
            Values::Plain(at, physical) => {
                let width = if *physical == Physical::Int32 { 4 } else { 8 };
                let value = self.bytes.get(*at..).and_then(|rest| rest.get(..width));
                *at += width;
                Cell::Number(number(value.ok_or("fewer values than rows")?))
            }
        };
        Ok(Some(cell))
    }
}

/// Where bytes lie whose length is written before them.
fn length_and_bytes(page: &[u8], at: usize) -> Result<Range<usize>> {
    const CUT: &str = "values that are cut off";
    let length = page.get(at..).and_then(|rest| rest.get(..4)).ok_or(CUT)?;
    let start = at + 4;
    let end = start.saturating_add(number(length) as u32 as usize);
    if end > page.len() {
        return Err(CUT.to_owned());
    }
    Ok(start..end)
}

/// Four or eight bytes, the lowest first, signed.
fn number(bytes: &[u8]) -> i64 {
    match *bytes {
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}
