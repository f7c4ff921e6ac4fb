//! Pictures in parquet files, as data sets on the Hugging Face Hub have them; read from the file, a page at a time.
//!
//! What is read of the format (<https://parquet.apache.org/docs/file-format/>): one column of bytes, alone or as `bytes`
//! in a structure, and one of labels; plain values and dictionaries; pages of both versions, packed with snappy, zstd,
//! gzip or not at all. That is what pyarrow, datasets, polars and DuckDB write for such columns unless told otherwise.
//! Memory is bounded by a page, time by the rows that the file promises.

mod hybrid;
mod page;
mod thrift;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use page::{Cell, Codec, Dictionary, Header, Page, Physical};
use thrift::Reader;

use crate::bytes_at::BytesAt;
use crate::{Error, Result};

/// What a parquet file begins and ends with.
const MAGIC: &[u8; 4] = b"PAR1";
/// Bytes of the largest footer that is read.
const FOOTER: u64 = 64 << 20;
/// Bytes that hold the header of a page, and those that hold even one with statistics of large values.
const HEADER: [u64; 2] = [4 << 10, 16 << 20];
/// Nodes of a schema, and columns of all groups, beyond which a footer is not believed.
const NODES: usize = 1 << 16;
const CHUNKS: usize = 1 << 22;
/// Columns that hold pictures where several could.
const PICTURES: [&str; 2] = ["image", "img"];
/// Columns that hold labels.
const LABELS: [&str; 2] = ["label", "labels"];

/// A parquet file with a column of pictures.
#[derive(Debug)]
pub struct Pictures<B = File> {
    bytes: Arc<B>,
    path: PathBuf,
    groups: Vec<Group>,
    class_names: Vec<String>,
    has_labels: bool,
}

/// A picture of a parquet file, still packed as a file would be, and its label, where the file has any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The picture's bytes; none where the row is empty.
    pub picture: Option<Vec<u8>>,
    /// Its class; -1 stands for unknown.
    pub label: Option<i64>,
}

/// A group of rows: its pictures, and its labels.
#[derive(Debug, Clone)]
struct Group {
    rows: i64,
    picture: Chunk,
    label: Option<Chunk>,
}

/// One column of a group.
#[derive(Debug, Clone)]
struct Chunk {
    physical: Physical,
    definition: u32,
    codec: Codec,
    start: u64,
    end: u64,
}

impl Pictures {
    /// Opens a file and finds its pictures.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Parquet`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Self::new(file, path)
    }
}

impl<B: BytesAt> Pictures<B> {
    /// As [`Pictures::open`], from any bytes; `path` is what errors call them.
    ///
    /// # Errors
    /// [`Error::Parquet`].
    pub fn new(bytes: B, path: &Path) -> Result<Self> {
        let wrong = |what| Error::Parquet {
            path: path.to_owned(),
            what,
        };
        let footer = footer(&bytes).map_err(wrong)?;
        let content = Content::read(&footer).map_err(wrong)?;
        let picture = content.picture_column().map_err(wrong)?;
        let label = content.label_column();
        let groups = content.groups.iter().map(|group| {
            Ok(Group {
                rows: group.rows,
                picture: content.chunk(group, picture)?,
                label: label.map(|label| content.chunk(group, label)).transpose()?,
            })
        });
        let groups = groups.collect::<thrift::Result<_>>().map_err(wrong)?;
        let class_names = label.map(|label| content.class_names(label));
        Ok(Self {
            bytes: Arc::new(bytes),
            path: path.to_owned(),
            groups,
            class_names: class_names.unwrap_or_default(),
            has_labels: label.is_some(),
        })
    }

    /// What errors call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the classes are called, where the file says it as the library `datasets` does.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Whether there is a column of labels.
    pub fn has_labels(&self) -> bool {
        self.has_labels
    }

    /// How many rows the file promises.
    pub fn len(&self) -> u64 {
        let rows = self.groups.iter().map(|group| group.rows.max(0) as u64);
        rows.fold(0, u64::saturating_add)
    }

    /// Whether it promises none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, in order. After an error there are no more.
    pub fn rows(self) -> Rows<B> {
        Rows {
            file: self,
            group: 0,
            left: 0,
            done: 0,
            columns: None,
        }
    }
}

/// The rows of a file, one after the other.
#[derive(Debug)]
pub struct Rows<B> {
    file: Pictures<B>,
    group: usize,
    left: i64,
    done: u64,
    columns: Option<(Column<B>, Option<Column<B>>)>,
}

impl<B: BytesAt> Iterator for Rows<B> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        while self.left <= 0 {
            let group = self.file.groups.get(self.group)?;
            self.group += 1;
            self.left = group.rows;
            let column = |chunk: &Chunk| Column::new(Arc::clone(&self.file.bytes), chunk.clone());
            self.columns = Some((column(&group.picture), group.label.as_ref().map(column)));
        }
        let (pictures, labels) = self.columns.as_mut()?;
        let row = row(pictures, labels.as_mut());
        self.left -= 1;
        self.done += 1;
        Some(row.map_err(|what| {
            let error = Error::Parquet {
                path: self.file.path.clone(),
                what: format!("row {}: {what}", self.done - 1),
            };
            (self.left, self.group) = (0, self.file.groups.len());
            error
        }))
    }
}

fn row<B: BytesAt>(
    pictures: &mut Column<B>,
    labels: Option<&mut Column<B>>,
) -> thrift::Result<Row> {
    let picture = match pictures.next()? {
        Cell::Bytes(bytes) => Some(bytes),
        Cell::Null | Cell::Number(_) => None,
    };
    let label = match labels.map(Column::next).transpose()? {
        Some(Cell::Number(label)) => Some(label),
        _ => None,
    };
    Ok(Row { picture, label })
}

/// One column of a group, being read.
#[derive(Debug)]
struct Column<B> {
    bytes: Arc<B>,
    chunk: Chunk,
    at: u64,
    dictionary: Option<Dictionary>,
    page: Option<Page>,
}

impl<B: BytesAt> Column<B> {
    fn new(bytes: Arc<B>, chunk: Chunk) -> Self {
        Self {
            bytes,
            at: chunk.start,
            chunk,
            dictionary: None,
            page: None,
        }
    }

    fn next(&mut self) -> thrift::Result<Cell> {
        loop {
            if let Some(page) = &mut self.page
                && let Some(cell) = page.next(self.dictionary.as_ref())?
            {
                return Ok(cell);
            }
            self.next_page()?;
        }
    }

    /// Reads the next page, of whichever kind.
    fn next_page(&mut self) -> thrift::Result<()> {
        let left = self.chunk.end.saturating_sub(self.at);
        if left == 0 {
            return Err("the column ends before its rows".to_owned());
        }
        let read = |place, n| {
            let bytes = self.bytes.bytes_at(place, n);
            bytes.map_err(|error| format!("byte {place}: {error}"))
        };
        let mut header = Header::read(&read(self.at, left.min(HEADER[0]))?);
        if header.is_err() && left > HEADER[0] {
            header = Header::read(&read(self.at, left.min(HEADER[1]))?);
        }
        let header = header.map_err(|what| format!("the page at byte {}: {what}", self.at))?;
        let (start, packed) = (self.at + header.length as u64, header.packed()? as u64);
        let end = start
            .checked_add(packed)
            .filter(|end| *end <= self.chunk.end);
        let end = end.ok_or_else(|| format!("the page at byte {} is cut off", self.at))?;
        let packed = read(start, packed)?;
        let at = std::mem::replace(&mut self.at, end);
        let (codec, physical) = (self.chunk.codec, self.chunk.physical);
        let kind = (physical, self.chunk.definition);
        let placed = |what| format!("the page at byte {at}: {what}");
        if header.is_dictionary() {
            let dictionary = Dictionary::read(&header, &packed, codec, physical);
            self.dictionary = Some(dictionary.map_err(placed)?);
        } else if header.has_values() {
            self.page = Some(Page::read(&header, &packed, codec, kind).map_err(placed)?);
        }
        Ok(())
    }
}

/// The footer, which says where everything is.
fn footer(bytes: &impl BytesAt) -> thrift::Result<Vec<u8>> {
    const NOT: &str = "is no parquet file: expected PAR1 at its beginning and end";
    let said = |error: std::io::Error| error.to_string();
    let length = bytes.length().map_err(said)?;
    if length < 12 || bytes.bytes_at(0, 4).map_err(said)? != MAGIC {
        return Err(NOT.to_owned());
    }
    let tail = bytes.bytes_at(length - 8, 8).map_err(said)?;
    if !tail.ends_with(MAGIC) {
        return Err(format!(
            "{NOT}; it is cut off, or was not written to its end"
        ));
    }
    let size = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    if size > FOOTER.min(length - 12) {
        return Err(format!("a footer of {size} bytes in a file of {length}"));
    }
    bytes.bytes_at(length - 8 - size, size).map_err(said)
}

/// A column as the schema has it.
#[derive(Debug, Clone, Default)]
struct Leaf {
    path: Vec<String>,
    physical: Option<i64>,
    definition: u32,
    repeated: bool,
    is_text: bool,
}

/// A group of rows as the footer has it.
#[derive(Debug, Default)]
struct RowGroup {
    rows: i64,
    columns: Vec<RawChunk>,
}

/// A column of a group as the footer has it.
#[derive(Debug, Default)]
struct RawChunk {
    codec: i64,
    size: i64,
    data: i64,
    dictionary: Option<i64>,
    elsewhere: bool,
}

/// What the footer says.
#[derive(Debug, Default)]
struct Content {
    leaves: Vec<Leaf>,
    groups: Vec<RowGroup>,
    /// What the library `datasets` writes of its features, JSON.
    features: Option<String>,
}

impl Content {
    fn read(footer: &[u8]) -> thrift::Result<Self> {
        let (mut content, mut elements, mut chunks) = (Self::default(), Vec::new(), 0);
        Reader::new(footer).fields(|r, number, kind| {
            match number {
                2 => r.list(kind, |r, kind| {
                    elements.push(Element::read(r, kind)?);
                    few(elements.len(), NODES, "columns")
                })?,
                4 => r.list(kind, |r, kind| {
                    let group = RowGroup::read(r, kind)?;
                    chunks += 1 + group.columns.len();
                    content.groups.push(group);
                    few(chunks, CHUNKS, "groups of rows")
                })?,
                5 => r.list(kind, |r, kind| {
                    let (mut key, mut value) = (String::new(), String::new());
                    r.structure(kind, |r, number, kind| {
                        match number {
                            1 => key = r.text(kind)?,
                            2 => value = r.text(kind)?,
                            _ => r.skip(kind)?,
                        }
                        Ok(())
                    })?;
                    if key == "huggingface" {
                        content.features = Some(value);
                    }
                    Ok(())
                })?,
                _ => r.skip(kind)?,
            }
            Ok(())
        })?;
        let mut elements = elements.into_iter();
        let root = elements.next().ok_or("a footer without columns")?;
        for _ in 0..root.children {
            leaves(&mut elements, &Leaf::default(), &mut content.leaves, 0)?;
        }
        Ok(content)
    }

    /// The column of pictures: bytes alone, or `bytes` in a structure.
    fn picture_column(&self) -> thrift::Result<usize> {
        let is_picture = |leaf: &&Leaf| {
            let place = leaf.path.len() == 1 || leaf.path.len() == 2 && leaf.path[1] == "bytes";
            place && leaf.physical == Some(6) && !leaf.is_text && !leaf.repeated
        };
        let found: Vec<&Leaf> = self.leaves.iter().filter(is_picture).collect();
        let named = found
            .iter()
            .find(|leaf| PICTURES.contains(&leaf.path[0].as_str()));
        let names = |leaves: &[&Leaf]| {
            let names: Vec<String> = leaves.iter().map(|leaf| leaf.path.join(".")).collect();
            names.join(", ")
        };
        let chosen = match (named, &found[..]) {
            (Some(named), _) => named,
            (None, [one]) => one,
            (None, []) => {
                let all: Vec<&Leaf> = self.leaves.iter().collect();
                return Err(format!(
                    "no column of pictures among {}; expected one of bytes, alone or as `bytes` in a structure",
                    names(&all)
                ));
            }
            (None, several) => {
                return Err(format!(
                    "several columns may be pictures: {}; expected one, or one called `image` or `img`",
                    names(several)
                ));
            }
        };
        let place = self.leaves.iter().position(|leaf| leaf.path == chosen.path);
        place.ok_or_else(|| "a column that is not there".to_owned())
    }

    /// The column of labels: whole numbers called `label` or `labels`.
    fn label_column(&self) -> Option<usize> {
        self.leaves.iter().position(|leaf| {
            let number = matches!(leaf.physical, Some(1 | 2));
            number
                && !leaf.repeated
                && leaf.path.len() == 1
                && LABELS.contains(&leaf.path[0].as_str())
        })
    }

    /// Where a column of a group lies.
    fn chunk(&self, group: &RowGroup, column: usize) -> thrift::Result<Chunk> {
        let leaf = &self.leaves[column];
        let raw = group
            .columns
            .get(column)
            .ok_or("a group of rows without all its columns")?;
        if raw.elsewhere {
            return Err("its values lie in another file".to_owned());
        }
        let start = raw
            .dictionary
            .filter(|at| *at > 0)
            .unwrap_or(raw.data)
            .min(raw.data);
        let (start, size) = (u64::try_from(start), u64::try_from(raw.size));
        let (Ok(start), Ok(size)) = (start, size) else {
            return Err("a column at an impossible place".to_owned());
        };
        Ok(Chunk {
            physical: match leaf.physical {
                Some(1) => Physical::Int32,
                Some(2) => Physical::Int64,
                _ => Physical::Bytes,
            },
            definition: leaf.definition,
            codec: Codec(raw.codec),
            start,
            end: start.saturating_add(size),
        })
    }

    fn class_names(&self, label: usize) -> Vec<String> {
        let features = self.features.as_deref().unwrap_or_default();
        let features: serde_json::Value = serde_json::from_str(features).unwrap_or_default();
        let column = self.leaves[label].path[0].as_str();
        let names = features["info"]["features"][column]["names"].as_array();
        let names = names.into_iter().flatten();
        names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    }
}

/// A node of the schema, which is a tree written from the top.
#[derive(Debug, Default)]
struct Element {
    physical: Option<i64>,
    repetition: i64,
    name: String,
    children: i64,
    is_text: bool,
}

impl Element {
    fn read(reader: &mut Reader<'_>, kind: thrift::Kind) -> thrift::Result<Self> {
        let mut element = Self::default();
        reader.structure(kind, |r, number, kind| {
            match number {
                1 => element.physical = Some(r.integer(kind)?),
                3 => element.repetition = r.integer(kind)?,
                4 => element.name = r.text(kind)?,
                5 => element.children = r.integer(kind)?,
                6 => element.is_text = r.integer(kind)? == 0,
                _ => r.skip(kind)?,
            }
            Ok(())
        })?;
        Ok(element)
    }
}

impl RowGroup {
    fn read(reader: &mut Reader<'_>, kind: thrift::Kind) -> thrift::Result<Self> {
        let mut group = Self::default();
        reader.structure(kind, |r, number, kind| {
            match number {
                1 => r.list(kind, |r, kind| {
                    group.columns.push(RawChunk::read(r, kind)?);
                    few(group.columns.len(), NODES, "columns")
                })?,
                3 => group.rows = r.integer(kind)?,
                _ => r.skip(kind)?,
            }
            Ok(())
        })?;
        Ok(group)
    }
}

impl RawChunk {
    fn read(reader: &mut Reader<'_>, kind: thrift::Kind) -> thrift::Result<Self> {
        let mut chunk = Self::default();
        reader.structure(kind, |r, number, kind| {
            match number {
                1 => chunk.elsewhere = !r.binary(kind)?.is_empty(),
                3 => r.structure(kind, |r, number, kind| {
                    match number {
                        4 => chunk.codec = r.integer(kind)?,
                        7 => chunk.size = r.integer(kind)?,
                        9 => chunk.data = r.integer(kind)?,
                        11 => chunk.dictionary = Some(r.integer(kind)?),
                        _ => r.skip(kind)?,
                    }
                    Ok(())
                })?,
                _ => r.skip(kind)?,
            }
            Ok(())
        })?;
        Ok(chunk)
    }
}

fn few(n: usize, most: usize, what: &str) -> thrift::Result<()> {
    if n > most {
        return Err(format!("a footer of more than {most} {what}"));
    }
    Ok(())
}

/// The columns below one node of the schema.
fn leaves(
    elements: &mut impl Iterator<Item = Element>,
    above: &Leaf,
    found: &mut Vec<Leaf>,
    depth: usize,
) -> thrift::Result<()> {
    const DEPTH: usize = 32;
    let element = elements.next().ok_or("a schema that is cut off")?;
    let mut here = above.clone();
    here.path.push(element.name);
    // Optional and repeated nodes may have nothing in them: each is a level more.
    here.definition += u32::from(element.repetition != 0);
    here.repeated |= element.repetition == 2;
    if element.children <= 0 {
        here.physical = element.physical;
        here.is_text = element.is_text;
        found.push(here);
        return Ok(());
    }
    if depth > DEPTH {
        return Err(format!("columns more than {DEPTH} deep"));
    }
    for _ in 0..element.children {
        leaves(elements, &here, found, depth + 1)?;
    }
    Ok(())
}
