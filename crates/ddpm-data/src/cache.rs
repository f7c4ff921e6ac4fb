//! Decoded images that do not fit into memory: a folder a data set, written whole or not at all, found again by what it
//! was made of.
//!
//! ```text
//! CACHE/3f786850e387550f/   a hash of: names, lengths and times of the files, and what pictures are made into
//!   train.u8                the images one after the other, as they are in memory
//!   test.u8
//!   index.json              their sizes and classes
//! ```

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gather::Index;
use crate::shelf::Shelf;
use crate::store::Store;
use crate::{Error, Pictures, Result};

/// How decoded images are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keep {
    /// Bytes that they may take in memory; left out, half of what is free.
    pub memory: Option<u64>,
    /// The folder of the cache, which is used where they take more; left out, `cache` in the default data folder.
    pub cache: Option<PathBuf>,
}

impl Keep {
    /// The folder of the cache.
    pub(crate) fn folder(&self) -> PathBuf {
        let default = || crate::source::default_data_dir().join("cache");
        self.cache.clone().unwrap_or_else(default)
    }
}

/// When what is written changes, so does this number, and nothing old is found.
const VERSION: u32 = 1;
const INDEX: &str = "index.json";
const PARTS: [&str; 2] = ["train.u8", "test.u8"];

/// Where one data set would be kept.
pub(crate) struct Cache {
    folder: PathBuf,
    key: String,
}

/// What `index.json` holds.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    key: String,
    bytes: [u64; 2],
    index: Index,
}

impl Cache {
    pub(crate) fn new(folder: PathBuf, shelf: &Shelf<'_>, pictures: &Pictures) -> Self {
        let mut hash = Sha256::new();
        let mut add = |text: &[u8]| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(format!(
            "{VERSION} {} {:?} {:?}",
            shelf.name, shelf.size, shelf.classes
        )
        .as_bytes());
        add(format!("{pictures:?}").as_bytes());
        add(shelf.origin.as_os_str().as_encoded_bytes());
        for file in &shelf.files {
            add(file.as_os_str().as_encoded_bytes());
            let known = file.metadata().ok();
            let time = known.as_ref().and_then(|known| known.modified().ok());
            let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            add(format!("{:?} {time:?}", known.map(|known| known.len())).as_bytes());
        }
        let key: String = hash.finalize()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self { folder, key }
    }

    /// What an earlier run has written, if it is whole.
    pub(crate) fn find(&self) -> Option<(Index, [Store; 2])> {
        let folder = self.folder.join(&self.key);
        let text = std::fs::read(folder.join(INDEX)).ok()?;
        let written: Written = serde_json::from_slice(&text).ok()?;
        if written.version != VERSION || written.key != self.key {
            return None;
        }
        let stores = open(&folder, written.bytes).ok()?;
        Some((written.index, stores))
    }

    /// Begins to write.
    ///
    /// # Errors
    /// [`Error::Cache`], also where another process writes the same.
    pub(crate) fn begin(&self) -> Result<Writer> {
        let folder = self.folder.join(format!(".{}.tmp", self.key));
        let cannot = |source| Error::cache("write", &folder, source);
        std::fs::create_dir_all(&self.folder).map_err(cannot)?;
        let lock = self.folder.join(format!(".{}.lock", self.key));
        let lock = File::create(&lock).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = "another process is decoding the same pictures; wait for it to end";
                return Err(cannot(std::io::Error::other(what)));
            }
            Err(TryLockError::Error(source)) => return Err(cannot(source)),
        }
        // Nobody else has it: whatever is there was left by a process that was killed.
        remove(&folder);
        std::fs::create_dir(&folder).map_err(cannot)?;
        let file = |name| File::create(folder.join(name)).map_err(cannot);
        let files = [file(PARTS[0])?, file(PARTS[1])?].map(|file| (BufWriter::new(file), 0));
        Ok(Writer {
            target: self.folder.join(&self.key),
            key: self.key.clone(),
            folder: folder.clone(),
            files: Some(files),
            _lock: lock,
        })
    }
}

/// A data set on its way to the disk. Dropped before its end, it leaves nothing behind.
pub(crate) struct Writer {
    folder: PathBuf,
    target: PathBuf,
    key: String,
    files: Option<[(BufWriter<File>, u64); 2]>,
    _lock: File,
}

impl Writer {
    /// Appends the pixels of an image to a part.
    pub(crate) fn append(&mut self, part: usize, pixels: &[u8]) -> Result<()> {
        let Some(files) = &mut self.files else {
            return Ok(());
        };
        let (file, bytes) = &mut files[part];
        *bytes += pixels.len() as u64;
        file.write_all(pixels)
            .map_err(|source| Error::cache("write", &self.folder, source))
    }

    /// Gives what was written its name, and maps it.
    pub(crate) fn finish(mut self, index: &Index) -> Result<[Store; 2]> {
        let cannot = |source| Error::cache("write", &self.folder, source);
        let mut bytes = [0; 2];
        for (part, (file, written)) in self.files.take().into_iter().flatten().enumerate() {
            let file = file
                .into_inner()
                .map_err(|error| cannot(error.into_error()))?;
            file.sync_all().map_err(cannot)?;
            bytes[part] = written;
        }
        let written = Written {
            version: VERSION,
            key: self.key.clone(),
            bytes,
            index: index.clone(),
        };
        let text = serde_json::to_vec(&written).map_err(|error| cannot(error.into()))?;
        let mut file = File::create(self.folder.join(INDEX)).map_err(cannot)?;
        file.write_all(&text).map_err(cannot)?;
        file.sync_all().map_err(cannot)?;
        remove(&self.target); // something that is not whole, or it would have been found
        std::fs::rename(&self.folder, &self.target).map_err(cannot)?;
        open(&self.target, bytes).map_err(|source| Error::cache("read", &self.target, source))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.files = None;
        remove(&self.folder);
    }
}

/// Maps the parts, which must have the lengths that were written.
fn open(folder: &Path, bytes: [u64; 2]) -> std::io::Result<[Store; 2]> {
    let one = |part: usize| -> std::io::Result<Store> {
        if bytes[part] == 0 {
            return Ok(Store::Memory(Vec::new()));
        }
        let store = Store::map(&folder.join(PARTS[part]))?;
        if store.len() as u64 != bytes[part] {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(store)
    };
    Ok([one(0)?, one(1)?])
}

/// Removes a folder of ours, if it is there.
fn remove(folder: &Path) {
    drop(std::fs::remove_dir_all(folder));
}
