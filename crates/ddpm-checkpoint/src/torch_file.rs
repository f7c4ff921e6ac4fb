//! What `torch.save` writes (`.bin`, `.pt`, `.pth`, `.ckpt`): its pickle read by our own machine, its numbers where they lie.
//!
//! Since PyTorch 1.6 a file is a zip archive without compression: `NAME/data.pkl`, `NAME/data/KEY` for each storage,
//! `NAME/byteorder`. Before that it was five pickles in a row and the storages after them. Numbers are read when a tensor
//! is asked for; no name in the file is ever used as a path.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use crate::pickle::{Element, Id, Pickle, StoredTensor, Value, run};
use crate::tensors::Tensors;
use crate::{Error, Result};

/// A file whose pickle was read, with the place of every storage.
#[derive(Debug)]
pub(crate) struct TorchFile {
    path: PathBuf,
    pickle: Pickle,
    numbers: Arc<Mutex<Numbers>>,
}

/// Tensors by name, out of a file: a dict of it, at a path such as `ema` or `0`; the root's path is empty.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) place: String,
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
    path: PathBuf,
    numbers: Arc<Mutex<Numbers>>,
}

/// Where numbers lie in the file.
#[derive(Debug)]
struct Numbers {
    file: File,
    /// Start and bytes of each storage.
    places: HashMap<String, (u64, u64)>,
    big_endian: bool,
    /// Bytes that may still be read: tensors that share a storage must not add up to more memory than a file is worth.
    allowance: u64,
}

/// Bytes of a pickle, or of the front of an old file.
const LONGEST_PICKLE: u64 = 64 << 20;
/// Values of a configuration in a file, and how deep they may lie.
const MOST_OF_JSON: usize = 10_000;
const DEEPEST_JSON: usize = 12;
/// How deep a dict of tensors may lie in a file.
const DEEPEST: usize = 4;
/// Dicts of tensors in one file, and values looked at to find them.
const MOST_STATES: usize = 64;
const MOST_LOOKS: usize = 300_000;
/// Containers that are looked into at one depth.
const MOST_BELOW: usize = 1000;

impl TorchFile {
    /// Opens a file and reads its pickle.
    ///
    /// # Errors
    /// It cannot be read, is cut short, is no archive of PyTorch's, or its pickle wants anything but tensors and containers.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::read(path))?;
        let length = file.metadata().map_err(Error::read(path))?.len();
        let mut first = [0; 1];
        file.read_exact(&mut first).map_err(Error::read(path))?;
        file.rewind().map_err(Error::read(path))?;
        let (pickle, places, big_endian) = match first {
            [0x80] => read_old(path, &mut file, length)?,
            _ => read_archive(path, &file, length)?,
        };
        let numbers = Numbers {
            file,
            places,
            big_endian,
            allowance: length.saturating_mul(2),
        };
        Ok(Self {
            path: path.to_owned(),
            pickle,
            numbers: Arc::new(Mutex::new(numbers)),
        })
    }

    /// The dicts of tensors in the file, outer ones first.
    pub(crate) fn states(&self) -> Vec<State> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut looks = MOST_LOOKS;
        let mut level = vec![(String::new(), self.pickle.root)];
        for _ in 0..DEEPEST {
            let mut below = Vec::new();
            for (place, id) in level {
                if found.len() >= MOST_STATES || !seen.insert(id) {
                    continue;
                }
                let parts = self.parts(id);
                looks = looks.saturating_sub(parts.len());
                if looks == 0 {
                    return found;
                }
                let mut tensors = BTreeMap::new();
                for (name, id) in parts {
                    match self.pickle.get(id) {
                        Value::Tensor(tensor) => drop(tensors.insert(name, tensor.clone())),
                        Value::Items(_) | Value::Dict(_) if below.len() < MOST_BELOW => {
                            let dot = if place.is_empty() { "" } else { "." };
                            below.push((format!("{place}{dot}{name}"), id));
                        }
                        _ => {}
                    }
                }
                if !tensors.is_empty() {
                    found.push(State {
                        place,
                        tensors,
                        path: self.path.clone(),
                        numbers: self.numbers.clone(),
                    });
                }
            }
            level = below;
        }
        found
    }

    /// Names and values of a dict or list; keys that are no texts are passed over.
    fn parts(&self, id: Id) -> Vec<(String, Id)> {
        let short = |name: &str| name.chars().take(LONGEST_NAME).collect();
        match self.pickle.get(id) {
            Value::Dict(pairs) => pairs
                .iter()
                .take(MOST_LOOKS)
                .filter_map(|&(key, value)| Some((short(self.pickle.text(key)?), value)))
                .collect(),
            Value::Items(items) => items
                .iter()
                .enumerate()
                .take(MOST_LOOKS)
                .map(|(index, &id)| (index.to_string(), id))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// A text that the file's outermost dict has under this name.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        let parts = self.parts(self.pickle.root).into_iter();
        let mut found = parts.filter(|(key, _)| key == name);
        self.pickle.text(found.next()?.1)
    }

    /// What the file's outermost dict has under this name, as JSON, if it is small: a configuration. What JSON has no words
    /// for is null.
    pub(crate) fn json(&self, name: &str) -> Option<serde_json::Value> {
        let parts = self.parts(self.pickle.root).into_iter();
        let mut found = parts.filter(|(key, _)| key == name);
        let mut left = MOST_OF_JSON;
        self.as_json(found.next()?.1, DEEPEST_JSON, &mut left)
    }

    /// `None` where it is deeper than `depth`, or has more than `left` values.
    fn as_json(&self, id: Id, depth: usize, left: &mut usize) -> Option<serde_json::Value> {
        let depth = depth.checked_sub(1)?;
        *left = left.checked_sub(1)?;
        Some(match self.pickle.get(id) {
            Value::Int(number) => (*number).into(),
            Value::Fraction(number) => (*number).into(),
            Value::Truth(truth) => (*truth).into(),
            Value::Text(text) => text.chars().take(LONGEST_NAME).collect::<String>().into(),
            Value::Items(items) => {
                *left = left.checked_sub(items.len())?;
                let items = items.iter().map(|&item| self.as_json(item, depth, left));
                serde_json::Value::Array(items.collect::<Option<_>>()?)
            }
            Value::Dict(pairs) => {
                *left = left.checked_sub(pairs.len())?;
                let parts = self.parts(id).into_iter();
                let parts = parts.map(|(key, item)| Some((key, self.as_json(item, depth, left)?)));
                serde_json::Value::Object(parts.collect::<Option<_>>()?)
            }
            _ => serde_json::Value::Null,
        })
    }

    /// The one dict of tensors: weights of a diffusers folder.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub(crate) fn only_state(&self) -> Result<State> {
        let mut states = self.states();
        let root = states.iter().position(|state| state.place.is_empty());
        match (root, states.len()) {
            (Some(at), _) => Ok(states.swap_remove(at)),
            (None, 1) => Ok(states.swap_remove(0)),
            (None, 0) => Err(Error::pickle(&self.path, "there are no tensors in it")),
            (None, _) => {
                let places: Vec<&str> = states.iter().map(|state| state.place.as_str()).collect();
                let reason = format!(
                    "there are several sets of tensors in it: {}",
                    places.join(", ")
                );
                Err(Error::pickle(&self.path, reason))
            }
        }
    }
}

/// Letters of a tensor's name.
const LONGEST_NAME: usize = 200;

impl Tensors for State {
    fn path(&self) -> &Path {
        &self.path
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shape = |(name, tensor): (&String, &StoredTensor)| (name.clone(), tensor.shape.clone());
        self.tensors.iter().map(shape).collect()
    }

    fn read_f32(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.tensors.get(name).ok_or_else(|| {
            Error::pickle(&self.path, format!("there is no tensor `{name}` in it"))
        })?;
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let wrong = |what: String| Error::pickle(&self.path, format!("tensor `{name}` {what}"));
        let dtype = match tensor.storage.element {
            Element::F16 => DType::F16,
            Element::Bf16 => DType::BF16,
            Element::F32 => DType::F32,
            Element::F64 => DType::F64,
            Element::Other(_) => {
                return Err(wrong(
                    "holds whole numbers, expected floating-point ones".to_owned(),
                ));
            }
        };
        let bytes = numbers.read(tensor).map_err(wrong)?;
        let stored = Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, &Device::Cpu)?;
        Ok(stored.to_dtype(DType::F32)?)
    }
}

impl Numbers {
    /// The bytes of a tensor's numbers, in order, little-endian.
    fn read(&mut self, tensor: &StoredTensor) -> std::result::Result<Vec<u8>, String> {
        let (storage, size) = (&tensor.storage, tensor.storage.element.size());
        let place = self.places.get(&storage.key);
        let &(start, length) = place
            .ok_or_else(|| format!("lies in the storage `{}`, which is missing", storage.key))?;
        let expected = storage.length.checked_mul(size).map(|bytes| bytes as u64);
        if expected != Some(length) {
            return Err(format!(
                "lies in the storage `{}` of {length} bytes, expected {} numbers of {size}",
                storage.key, storage.length
            ));
        }
        let reach = tensor.reach();
        let wanted = ((reach.end - reach.start) * size) as u64;
        let left = self.allowance.checked_sub(wanted);
        self.allowance = left.ok_or(
            "would make the tensors twice as large as the file: they share storages too often",
        )?;
        let from = start + (reach.start * size) as u64;
        let mut bytes = vec![0; wanted as usize];
        let cut = |error: std::io::Error| format!("cannot be read: {error}");
        self.file.seek(SeekFrom::Start(from)).map_err(cut)?;
        self.file.read_exact(&mut bytes).map_err(cut)?;
        if self.big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        if !tensor.is_contiguous() {
            bytes = in_order(&bytes, tensor, size);
        }
        Ok(bytes)
    }
}

/// The numbers of a window, one after another.
fn in_order(bytes: &[u8], tensor: &StoredTensor, size: usize) -> Vec<u8> {
    let mut ordered = Vec::with_capacity(tensor.count() * size);
    let mut index = vec![0; tensor.shape.len()];
    for _ in 0..tensor.count() {
        let at: usize = index.iter().zip(&tensor.strides).map(|(i, s)| i * s).sum();
        ordered.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < tensor.shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    ordered
}

type Read3 = (Pickle, HashMap<String, (u64, u64)>, bool);

/// The zip archive of PyTorch 1.6 and later.
fn read_archive(path: &Path, file: &File, length: u64) -> Result<Read3> {
    let wrong = |what: String| Error::pickle(path, what);
    let zip_error =
        |error: zip::result::ZipError| wrong(format!("the archive does not read: {error}"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(zip_error)?;
    let mut entries = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(zip_error)?;
        let (start, bytes) = (
            entry.data_start().unwrap_or(u64::MAX),
            entry.compressed_size(),
        );
        let name = entry.name().map_err(zip_error)?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(wrong(format!(
                "`{name}` in the archive is packed; PyTorch packs nothing"
            )));
        }
        if start.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(wrong(format!(
                "`{name}` in the archive does not end within the file"
            )));
        }
        entries.insert(name, (start, bytes));
    }
    let roots = entries
        .keys()
        .filter_map(|name| name.strip_suffix("/data.pkl"));
    let mut roots: Vec<String> = roots
        .filter(|r| !r.contains('/'))
        .map(str::to_owned)
        .collect();
    let root = match (roots.pop(), roots.is_empty()) {
        (Some(root), true) => root,
        _ => {
            let what = "the archive is not one of PyTorch's: there is no `NAME/data.pkl`";
            return Err(wrong(what.to_owned()));
        }
    };
    if entries.contains_key(&format!("{root}/constants.pkl")) {
        let what =
            "it is a TorchScript program (torch.jit.save); save its state_dict() with torch.save";
        return Err(wrong(what.to_owned()));
    }
    let read = |name: &str, most: u64| match entries.get(&format!("{root}/{name}")) {
        None => Ok(None),
        Some(&(_, bytes)) if bytes > most => Err(wrong(format!(
            "`{name}` has {bytes} bytes, at most {most} are read"
        ))),
        Some(&place) => read_part(file, place).map(Some).map_err(Error::read(path)),
    };
    let pickle = read("data.pkl", LONGEST_PICKLE)?.unwrap_or_default();
    let (pickle, _) = run(&pickle, 0).map_err(wrong)?;
    let order = read("byteorder", 16)?.unwrap_or_default();
    let folder = format!("{root}/data/");
    let place = |(name, &place): (&String, &(u64, u64))| {
        Some((name.strip_prefix(&folder)?.to_owned(), place))
    };
    let places = entries.iter().filter_map(place).collect();
    Ok((pickle, places, order == b"big"))
}

fn read_part(mut file: &File, (start, bytes): (u64, u64)) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut part = Vec::new();
    file.take(bytes).read_to_end(&mut part)?;
    match part.len() as u64 == bytes {
        true => Ok(part),
        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The file of before PyTorch 1.6: mark, version, system, the pickle, the storages' keys, the storages.
fn read_old(path: &Path, file: &mut File, length: u64) -> Result<Read3> {
    let wrong = |what: String| Error::pickle(path, what);
    let mut front = Vec::new();
    let mut start = (&*file).take(LONGEST_PICKLE);
    start.read_to_end(&mut front).map_err(Error::read(path))?;
    let is_torch = front.get(2..).is_some_and(|rest| rest.starts_with(&MARK));
    if !is_torch {
        // Any other pickle: what it asks for is the best that can be said of it.
        run(&front, 0).map_err(wrong)?;
        return Err(wrong(
            "it is a pickle, but not one that torch.save wrote".to_owned(),
        ));
    }
    let mut at = 0;
    for _ in 0..3 {
        at = run(&front, at).map_err(wrong)?.1;
    }
    let (pickle, at) = run(&front, at).map_err(wrong)?;
    let (keys, at) = run(&front, at).map_err(wrong)?;
    let mut sizes = HashMap::new();
    for value in &pickle.values {
        if let Value::Storage(storage) = value {
            sizes.insert(storage.key.as_str(), storage.element.size() as u64);
        }
    }
    let mut places = HashMap::new();
    let mut at = at as u64;
    for &id in keys.items(keys.root).unwrap_or_default() {
        let key = keys.text(id).unwrap_or_default();
        let size = *sizes
            .get(key)
            .ok_or_else(|| wrong(format!("storage `{key}` belongs to nothing")))?;
        let mut count = [0; 8];
        count.copy_from_slice(&read_part(file, (at, 8)).map_err(Error::read(path))?);
        let bytes = u64::from_le_bytes(count).checked_mul(size);
        let end = bytes.and_then(|bytes| (at + 8).checked_add(bytes));
        match (bytes, end) {
            (Some(bytes), Some(end)) if end <= length => {
                places.insert(key.to_owned(), (at + 8, bytes));
                at = end;
            }
            _ => {
                return Err(wrong(format!(
                    "storage `{key}` does not end within the file"
                )));
            }
        }
    }
    Ok((pickle, places, false))
}

/// How the first pickle of an old file begins after its protocol: a number of ten bytes that is PyTorch's mark.
const MARK: [u8; 12] = [
    0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19,
];
