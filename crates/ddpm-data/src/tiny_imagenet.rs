//! Tiny ImageNet (Stanford CS231n, 2015) in its original layout: a folder, or the zip file that it comes in.
//!
//! ```text
//! tiny-imagenet-200/
//!   wnids.txt                          the classes, by WordNet's numbers
//!   words.txt                          what they are called
//!   train/n01443537/images/*.JPEG      500 a class, 64x64
//!   val/images/*.JPEG                  50 a class,
//!   val/val_annotations.txt            with the class of each: the held-out part
//!   test/images/*.JPEG                 without classes; not read
//! ```
//!
//! Classes are in the order of their numbers, as torchvision's `ImageFolder` has them; pictures in the order of their
//! paths. An archive with fewer of the classes is read alike.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::folder::files;
use crate::shelf::{Content, Item, Part, Shelf};
use crate::zipped::{Archive, Entry};
use crate::{Error, Result};

/// Rows and columns of each image.
pub(crate) const SIZE: usize = 64;
/// What the folder is called.
pub(crate) const FOLDER: &str = "tiny-imagenet-200";
/// The archive.
pub(crate) const ARCHIVE: &str = "tiny-imagenet-200.zip";

/// How the pictures' names end.
const ENDING: &str = ".JPEG";

/// The data set in the first of `places` that has its folder or its archive.
pub(crate) fn find(places: &[PathBuf]) -> Option<PathBuf> {
    places.iter().find_map(|place| {
        let folders = [place.join(FOLDER), place.clone()];
        let folder = folders
            .into_iter()
            .find(|folder| folder.join("wnids.txt").is_file());
        folder.or_else(|| archive(place))
    })
}

/// The archive in a folder; one of fewer classes is called otherwise.
fn archive(place: &Path) -> Option<PathBuf> {
    let original = place.join(ARCHIVE);
    if original.is_file() {
        return Some(original);
    }
    let is_archive = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("tiny-imagenet") && name.ends_with(".zip"))
    };
    let entries = std::fs::read_dir(place).ok()?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(is_archive);
    found.sort();
    found.into_iter().next()
}

/// The pictures of a folder or an archive.
///
/// # Errors
/// [`Error::Open`], [`Error::Zip`], [`Error::Folder`] where something of the layout is missing.
pub(crate) fn shelf(path: &Path) -> Result<Shelf<'static>> {
    let tree = Tree::open(path)?;
    let wrong = |what: String| Error::Folder {
        folder: path.to_owned(),
        what,
    };
    let missing = |what: &str| wrong(format!("has no {what}, which is part of {FOLDER}"));
    let ids = tree
        .text("wnids.txt")?
        .ok_or_else(|| missing("wnids.txt"))?;
    let mut ids: Vec<String> = ids.split_whitespace().map(str::to_owned).collect();
    ids.sort();
    ids.dedup();
    let words = tree.text("words.txt")?.unwrap_or_default();
    let annotations = tree.text("val/val_annotations.txt")?.unwrap_or_default();
    let held_out = annotations.lines().filter_map(|line| {
        let mut columns = line.split('\t');
        Some((columns.next()?, columns.next()?))
    });
    let held_out: HashMap<&str, &str> = held_out.collect();
    let mut items = Vec::new();
    for name in tree.names() {
        let folders: Vec<&str> = name.split('/').collect();
        let (part, id) = match folders[..] {
            ["train", id, "images", _] => (Part::Train, Some(id)),
            ["val", "images", file] => (Part::Test, held_out.get(file).copied()),
            _ => continue,
        };
        if !name.ends_with(ENDING) {
            continue;
        }
        let label = id.and_then(|id| ids.binary_search_by(|known| known.as_str().cmp(id)).ok());
        let Some(label) = label else {
            let id = id.unwrap_or("not in val/val_annotations.txt");
            return Err(wrong(format!(
                "{name} is of class {id}, expected one of wnids.txt"
            )));
        };
        items.push(Item {
            label: u32::try_from(label).ok(),
            part,
            ..tree.item(name)
        });
    }
    if !items.iter().any(|item| item.part == Part::Train) {
        return Err(missing("pictures train/CLASS/images/*.JPEG"));
    }
    Ok(Shelf {
        name: "tiny-imagenet".to_owned(),
        origin: path.to_owned(),
        classes: class_names(&ids, &words),
        files: tree.files(),
        size: Some((SIZE, SIZE)),
        items: Box::new(items.into_iter().map(Ok)),
    })
}

/// The first of the words that each class is called by, or its number.
fn class_names(ids: &[String], words: &str) -> Vec<String> {
    let lines = words.lines().filter_map(|line| line.split_once('\t'));
    let words: HashMap<&str, &str> = lines.collect();
    let name = |id: &String| {
        let words = words.get(id.as_str()).copied().unwrap_or(id);
        words.split(',').next().unwrap_or(words).trim().to_owned()
    };
    ids.iter().map(name).collect()
}

/// Files by their names below `tiny-imagenet-200/`.
enum Tree {
    Folder(PathBuf, BTreeMap<String, PathBuf>),
    Archive(Arc<Archive>, BTreeMap<String, Entry>),
}

impl Tree {
    fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            let mut found = BTreeMap::new();
            for file in files(path, &["txt", "jpeg"])? {
                let below = file.strip_prefix(path).unwrap_or(&file);
                let name: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
                found.insert(name.join("/"), file);
            }
            return Ok(Self::Folder(path.to_owned(), found));
        }
        let archive = Archive::open(path)?;
        let list = archive.entries().iter().map(|entry| entry.name.as_str());
        let root = list
            .filter_map(|name| name.strip_suffix("wnids.txt"))
            .min_by_key(|root| root.len())
            .unwrap_or_default()
            .to_owned();
        let entries = archive.entries().iter();
        let below = entries.filter_map(|entry| Some((entry.name.strip_prefix(&root)?, entry)));
        let found = below
            .map(|(name, entry)| (name.to_owned(), entry.clone()))
            .collect();
        Ok(Self::Archive(Arc::new(archive), found))
    }

    /// Every name, in order.
    fn names(&self) -> Vec<&str> {
        match self {
            Self::Folder(_, files) => files.keys().map(String::as_str).collect(),
            Self::Archive(_, entries) => entries.keys().map(String::as_str).collect(),
        }
    }

    /// A text file, if it is there.
    fn text(&self, name: &str) -> Result<Option<String>> {
        let bytes = match self {
            Self::Folder(folder, files) => match files.get(name) {
                None => return Ok(None),
                Some(file) => std::fs::read(file).map_err(|source| Error::Open {
                    path: folder.join(name),
                    source,
                })?,
            },
            Self::Archive(archive, entries) => match entries.get(name) {
                None => return Ok(None),
                Some(entry) => archive.content(entry).map_err(|what| Error::Zip {
                    path: archive.path().to_owned(),
                    what: format!("{name} {what}"),
                })?,
            },
        };
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// A picture, whose class and part are not known here.
    fn item(&self, name: &str) -> Item {
        let (name, content) = match self {
            Self::Folder(folder, _) => (folder.join(name), Content::File),
            Self::Archive(archive, entries) => (
                archive.path().join(name),
                entries.get(name).map_or(Content::Empty, |entry| {
                    Content::Zipped(Arc::clone(archive), entry.clone())
                }),
            ),
        };
        Item {
            name,
            label: None,
            part: Part::Train,
            content,
        }
    }

    /// Everything that the pictures depend on.
    fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Folder(_, files) => files.values().cloned().collect(),
            Self::Archive(archive, _) => vec![archive.path().to_owned()],
        }
    }
}
