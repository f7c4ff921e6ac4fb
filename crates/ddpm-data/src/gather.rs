//! Pictures -> u8 images of one kind: decoded once, in parallel, in order; kept in memory, or in the cache where they are many.

use std::io;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Writer};
use crate::dataset::Place;
use crate::picture::Picture;
use crate::shelf::{Item, Part, Shelf};
use crate::store::Store;
use crate::{Crop, Dataset, Error, Keep, Pictures, Result, Skipped, Splits};

/// One of so many pictures is held out where the data set does not say which.
const HELD_OUT: usize = 20;
/// Pictures that are decoded at once: enough for all threads, and few enough that their images fit into memory.
const AT_ONCE: usize = 512;
/// Bytes of the images that are decoded at once, where they are large.
const BYTES_AT_ONCE: usize = 256 << 20;

/// What is known of the images of one part besides their pixels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Described {
    /// How many.
    pub(crate) n: usize,
    /// Their classes; empty where there are none.
    pub(crate) labels: Vec<u32>,
    /// Height and width of each, where they are kept larger than they are shown.
    pub(crate) sizes: Vec<(u32, u32)>,
}

/// What is known of a data set besides its pixels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// Height and width of every image as it is shown.
    pub(crate) size: (usize, usize),
    pub(crate) parts: [Described; 2],
    pub(crate) skipped: Vec<(PathBuf, String)>,
}

/// Decodes every picture of a shelf, or finds them decoded in the cache.
///
/// # Errors
/// [`Error::Unreadable`] with the names of the pictures that cannot be read, unless they are to be skipped;
/// [`Error::Folder`] for pictures of different sizes where no size is set; [`Error::Cache`].
pub(crate) fn gather(shelf: Shelf<'_>, pictures: &Pictures, keep: &Keep) -> Result<Splits> {
    let cache = Cache::new(keep.folder(), &shelf, pictures);
    if let Some((index, stores)) = cache.find() {
        return splits(
            shelf.name,
            shelf.origin,
            shelf.classes,
            pictures,
            index,
            stores,
        );
    }
    let Shelf {
        name,
        origin,
        classes,
        size,
        items,
        ..
    } = shelf;
    let mut gathered = Gathered {
        origin: origin.clone(),
        expected: pictures.size.or(size),
        random: pictures.crop == Crop::Random,
        first: None,
        read: 0,
        index: Index::default(),
        pixels: Pixels::Memory(Default::default()),
        budget: keep.budget(),
        cache: &cache,
    };
    let mut items = items.peekable();
    let mut image = 1;
    while items.peek().is_some() {
        let threads = rayon::current_num_threads();
        let count = (BYTES_AT_ONCE / image).clamp(threads, AT_ONCE);
        let some: Vec<Item> = items.by_ref().take(count).collect::<Result<_>>()?;
        let read: Vec<_> = some.par_iter().map(|item| read(item, pictures)).collect();
        for (item, picture) in some.into_iter().zip(read) {
            if let Ok(picture) = &picture {
                image = picture.pixels.len().max(1);
            }
            gathered.add(item, picture)?;
        }
    }
    let (index, stores) = gathered.finish(pictures.skip_unreadable)?;
    splits(name, origin, classes, pictures, index, stores)
}

/// One picture, or why it cannot be read.
fn read(item: &Item, pictures: &Pictures) -> std::result::Result<Picture, String> {
    pictures.fit(pictures.decode(&item.bytes()?)?)
}

/// The images so far.
struct Gathered<'a> {
    origin: PathBuf,
    expected: Option<(usize, usize)>,
    random: bool,
    /// The first picture and its size, which all others must have.
    first: Option<(PathBuf, (usize, usize))>,
    read: usize,
    index: Index,
    pixels: Pixels,
    budget: u64,
    cache: &'a Cache,
}

/// Where the images of both parts go.
enum Pixels {
    Memory([Vec<u8>; 2]),
    Disk(Writer),
}

impl Gathered<'_> {
    fn add(&mut self, item: Item, picture: std::result::Result<Picture, String>) -> Result<()> {
        let picture = match picture {
            Ok(picture) => picture,
            Err(why) => {
                self.index.skipped.push((item.name, why));
                return Ok(());
            }
        };
        if !self.random {
            self.same_size(&item, &picture)?;
        }
        let part = match item.part {
            Part::Train => 0,
            Part::Test => 1,
            Part::Dealt => usize::from(self.read % HELD_OUT == HELD_OUT - 1),
        };
        self.read += 1;
        let described = &mut self.index.parts[part];
        described.n += 1;
        described.labels.extend(item.label);
        if self.random {
            described
                .sizes
                .push((picture.height as u32, picture.width as u32));
        }
        self.keep(part, picture.pixels)
    }

    /// Appends the pixels of one image; where memory is used up, all go to the cache from now on.
    fn keep(&mut self, part: usize, pixels: Vec<u8>) -> Result<()> {
        if let Pixels::Memory(parts) = &mut self.pixels {
            let bytes = parts.iter().map(Vec::len).sum::<usize>() + pixels.len();
            if bytes as u64 <= self.budget && parts[part].try_reserve(pixels.len()).is_ok() {
                parts[part].extend(pixels);
                return Ok(());
            }
            let mut writer = self.cache.begin()?;
            for (part, pixels) in std::mem::take(parts).into_iter().enumerate() {
                writer.append(part, &pixels)?;
            }
            self.pixels = Pixels::Disk(writer);
        }
        match &mut self.pixels {
            Pixels::Disk(writer) => writer.append(part, &pixels),
            Pixels::Memory(_) => Ok(()),
        }
    }

    /// That a picture has the size of the first, or the one that is expected.
    fn same_size(&mut self, item: &Item, picture: &Picture) -> Result<()> {
        let found = (picture.height, picture.width);
        let (first, (height, width)) = self.first.get_or_insert_with(|| (item.name.clone(), found));
        let wrong = |what: String| {
            Err(Error::Folder {
                folder: self.origin.clone(),
                what,
            })
        };
        if let Some((height, width)) = self.expected.filter(|expected| *expected != found) {
            return wrong(format!(
                "{} is {}x{} (height x width), expected {height}x{width}",
                item.name.display(),
                found.0,
                found.1
            ));
        }
        if (*height, *width) == found {
            return Ok(());
        }
        wrong(format!(
            "has pictures of different sizes: {} is {height}x{width}, {} is {}x{} (height x width); \
             expected one size: say which they are resized to (data.size)",
            first.display(),
            item.name.display(),
            found.0,
            found.1
        ))
    }

    fn finish(mut self, skip: bool) -> Result<(Index, [Store; 2])> {
        let size = self.expected.or(self.first.map(|(_, size)| size));
        let (true, Some(size), true) = (self.index.skipped.is_empty() || skip, size, self.read > 0)
        else {
            return Err(Error::Unreadable {
                folder: self.origin,
                pictures: self.read + self.index.skipped.len(),
                unreadable: named(self.index.skipped),
            });
        };
        self.index.size = size;
        let stores = match self.pixels {
            Pixels::Memory(parts) => parts.map(|mut pixels| {
                pixels.shrink_to_fit();
                Store::Memory(pixels)
            }),
            Pixels::Disk(writer) => writer.finish(&self.index)?,
        };
        Ok((self.index, stores))
    }
}

fn named(skipped: Vec<(PathBuf, String)>) -> Vec<Skipped> {
    let skipped = skipped.into_iter();
    skipped.map(|(path, why)| Skipped { path, why }).collect()
}

/// The parts of a data set from what was gathered.
fn splits(
    name: String,
    origin: PathBuf,
    classes: Vec<String>,
    pictures: &Pictures,
    index: Index,
    stores: [Store; 2],
) -> Result<Splits> {
    let channels = pictures.color.channels();
    let size = (index.size.0, index.size.1, channels);
    let labelled = index.parts.iter().any(|part| !part.labels.is_empty());
    let mut parts = Vec::with_capacity(2);
    for ((what, part), store) in ["train", "test"].into_iter().zip(index.parts).zip(stores) {
        if part.n == 0 {
            parts.push(None);
            continue;
        }
        let places = (!part.sizes.is_empty()).then(|| places(&part.sizes, channels));
        let labels = labelled.then_some(part.labels);
        let name = format!("{name} {what}");
        let made = Dataset::from_store(
            &name,
            (store, places),
            size,
            part.n,
            labels,
            classes.clone(),
        )?;
        parts.push(Some(made));
    }
    let test = parts.pop().flatten();
    let Some(train) = parts.pop().flatten() else {
        return Err(Error::Folder {
            folder: origin,
            what: "has no pictures to train on, only some that are held out".to_owned(),
        });
    };
    Ok(Splits {
        origin: origin.display().to_string(),
        train,
        test,
        skipped: named(index.skipped),
    })
}

/// Images one after the other, each in its own size.
fn places(sizes: &[(u32, u32)], channels: usize) -> Vec<Place> {
    let mut start = 0;
    let place = |&(height, width): &(u32, u32)| {
        let place = Place {
            start,
            height,
            width,
        };
        start += u64::from(height) * u64::from(width) * channels as u64;
        place
    };
    sizes.iter().map(place).collect()
}

/// Reads a number of KiB from the line of `/proc/meminfo` that begins so.
fn kib(line: &str) -> io::Result<Option<u64>> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let found = text.lines().find_map(|known| known.strip_prefix(line));
    Ok(found.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()))
}

impl Keep {
    /// Bytes that images may take in memory.
    fn budget(&self) -> u64 {
        /// Where the system does not say what is free.
        const UNKNOWN: u64 = 4 << 30;
        self.memory.unwrap_or_else(|| {
            let free = kib("MemAvailable:").ok().flatten();
            free.map_or(UNKNOWN, |kib| kib.saturating_mul(1024) / 2)
        })
    }
}
