//! Where the bytes of a data set are: in memory, or in a file that the system reads as it is looked at.
#![allow(
    unsafe_code,
    reason = "mapping a file has no safe form; only files of this crate's cache are mapped, which are whole when they \
              get their name and are never written again"
)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// Bytes that do not change.
#[derive(Debug)]
pub(crate) enum Store {
    /// All of them, in memory.
    Memory(Vec<u8>),
    /// A file of the cache, mapped.
    Mapped(Mmap),
}

impl Store {
    /// Maps a whole file of the cache.
    pub(crate) fn map(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the file lies in the cache, where nothing is written to once it has its name. Should somebody cut it
        // off all the same, reading beyond its end stops the process; it cannot read other memory.
        let map = unsafe { Mmap::map(&file)? };
        #[cfg(unix)]
        map.advise(memmap2::Advice::Random)?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for Store {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

impl PartialEq for Store {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Store {}
