//! Data sets of the Hugging Face Hub as its clients keep them: a name, the places where it may be, its parquet files.
//!
//! ```text
//! CACHE/datasets--OWNER--NAME/refs/main            the commit
//! CACHE/datasets--OWNER--NAME/snapshots/COMMIT/    its files
//! ```
//!
//! Looked for without a network: in `hub` in the data folder, where `cargo xtask data` puts them, and where Python's
//! clients do (`$HF_HUB_CACHE`, `$HF_HOME/hub`, `~/.cache/huggingface/hub`). The files are those of the branch `main`, or
//! of `refs/convert/parquet`, to which the Hub converts what is uploaded otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::folder;
use crate::{Error, Result};

/// The branches that may hold parquet files.
pub(crate) const BRANCHES: [&str; 2] = ["main", "refs/convert/parquet"];

/// OWNER/NAME, and where its files lie in several folders, which of them: OWNER/NAME/FOLDER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubName {
    pub(crate) repository: String,
    pub(crate) folder: Option<String>,
}

impl HubName {
    /// Reads a name, or says why it is none.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let good = |part: &&str| {
            let letters = part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            letters && !part.is_empty() && !part.starts_with('.')
        };
        if parts.len() < 2 || !parts.iter().all(good) {
            return Err("expected hub:OWNER/NAME, as in hub:uoft-cs/cifar10".to_owned());
        }
        Ok(Self {
            repository: parts[..2].join("/"),
            folder: (parts.len() > 2).then(|| parts[2..].join("/")),
        })
    }

    /// The folder of a cache that the data set has.
    fn directory(&self) -> String {
        format!("datasets--{}", self.repository.replace('/', "--"))
    }

    /// The parquet files among these names, below the folder that was asked for.
    ///
    /// # Errors
    /// [`Error::Hub`] where they lie in several folders, or some are missing.
    pub(crate) fn choose(&self, files: Vec<String>) -> Result<Vec<String>> {
        let wrong = |what: String| Error::Hub {
            name: self.repository.clone(),
            what,
        };
        let mut folders: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in files.into_iter().filter(|file| file.ends_with(".parquet")) {
            let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
            folders.entry(group(folder)).or_default().push(file);
        }
        if let Some(folder) = &self.folder {
            let all: Vec<String> = folders.keys().cloned().collect();
            return folders.remove(folder).ok_or_else(|| {
                wrong(format!(
                    "no parquet files in {folder}; there are some in {}",
                    all.join(", ")
                ))
            });
        }
        let names: Vec<String> = folders.keys().cloned().collect();
        match folders.len() {
            0 | 1 => Ok(folders.into_values().flatten().collect()),
            _ => Err(wrong(format!(
                "it has parquet files in {}: say which, as in hub:{}/{}",
                names.join(", "),
                self.repository,
                names[0]
            ))),
        }
    }
}

/// The folder that says which version of a data set a file belongs to: that of the Hub's own conversion has one more a
/// part, as in `default/train/0000.parquet`.
fn group(folder: &str) -> String {
    let parts = ["train", "test", "validation"];
    match folder.rsplit_once('/') {
        Some((above, part)) if parts.contains(&part) => above.to_owned(),
        _ => folder.to_owned(),
    }
}

/// Where data sets of the Hub are kept.
pub(crate) fn caches(data_dir: &Path) -> Vec<PathBuf> {
    let set = |name: &str| {
        let path = std::env::var_os(name).filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    };
    let mut places = vec![data_dir.join("hub")];
    places.extend(set("HF_HUB_CACHE"));
    places.extend(set("HF_HOME").map(|home| home.join("hub")));
    places.extend(set("HOME").map(|home| home.join(".cache/huggingface/hub")));
    places.dedup();
    places
}

/// The folder of a cache that a data set is in.
#[cfg(feature = "hub")]
pub(crate) fn folder(name: &HubName, cache: &Path) -> PathBuf {
    cache.join(name.directory())
}

/// The parquet files of a data set in the first cache that has it whole.
///
/// # Errors
/// [`Error::Hub`] for a data set that is there in part.
pub(crate) fn find(name: &HubName, caches: &[PathBuf]) -> Result<Option<Vec<PathBuf>>> {
    let mut partly = None;
    for cache in caches {
        let repository = cache.join(name.directory());
        for branch in BRANCHES {
            let Ok(commit) = std::fs::read_to_string(repository.join("refs").join(branch)) else {
                continue;
            };
            let snapshot = repository.join("snapshots").join(commit.trim());
            if !snapshot.is_dir() {
                continue;
            }
            let files = folder::files(&snapshot, &["parquet"])?;
            let below = files.iter().filter_map(|file| {
                let below = file.strip_prefix(&snapshot).ok()?;
                let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
                Some(parts.join("/"))
            });
            let chosen = name.choose(below.collect())?;
            if chosen.is_empty() {
                continue;
            }
            match missing_shard(&chosen) {
                None => {
                    return Ok(Some(
                        chosen.iter().map(|file| snapshot.join(file)).collect(),
                    ));
                }
                Some(shard) => partly = partly.or(Some((snapshot, shard))),
            }
        }
    }
    match partly {
        None => Ok(None),
        Some((snapshot, shard)) => Err(Error::Hub {
            name: name.repository.clone(),
            what: format!(
                "{} has not all of it: {shard} is missing; cargo xtask data hub:{} fetches the rest",
                snapshot.display(),
                name.repository
            ),
        }),
    }
}

/// The first file that is missing among those named `PART-00000-of-00005...`.
fn missing_shard(files: &[String]) -> Option<String> {
    files.iter().find_map(|file| {
        let (before, after) = file.rsplit_once("-of-")?;
        let (part, number) = before.rsplit_once('-')?;
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        let rest = &after[digits.len()..];
        // A hash may stand between number and ending, another for each file.
        let (all, width): (usize, usize) = (digits.parse().ok()?, number.len());
        let is = |wanted: &str| {
            let exact = files
                .iter()
                .any(|known| *known == format!("{wanted}{rest}"));
            exact || files.iter().any(|known| known.starts_with(wanted))
        };
        (0..all)
            .map(|shard| format!("{part}-{shard:0width$}-of-{digits}"))
            .find(|wanted| !is(wanted))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let name = HubName::parse("uoft-cs/cifar10").unwrap();
        assert_eq!(
            (name.directory().as_str(), name.folder),
            ("datasets--uoft-cs--cifar10", None)
        );
        let name = HubName::parse("ylecun/mnist/mnist").unwrap();
        assert_eq!(name.folder.as_deref(), Some("mnist"));
        for bad in ["", "cifar10", "a//b", "a/../b", "/a/b", "a b/c", "a/b\\c"] {
            assert!(HubName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_of_one_folder_are_chosen() {
        let files = |list: &[&str]| {
            list.iter()
                .map(|file| (*file).to_owned())
                .collect::<Vec<_>>()
        };
        let name = HubName::parse("a/b").unwrap();
        let one = files(&["README.md", "d/train/0.parquet", "d/test/0.parquet"]);
        assert_eq!(
            name.choose(one).unwrap(),
            ["d/train/0.parquet", "d/test/0.parquet"]
        );
        let two = files(&["x/train-0.parquet", "y/train-0.parquet"]);
        let message = name.choose(two.clone()).unwrap_err().to_string();
        assert!(
            message.contains("in x, y: say which, as in hub:a/b/x"),
            "{message}"
        );
        let name = HubName::parse("a/b/y").unwrap();
        assert_eq!(name.choose(two).unwrap(), ["y/train-0.parquet"]);
    }

    #[test]
    fn a_missing_shard_is_named() {
        let shard = |i: usize| format!("data/train-{i:05}-of-00003.parquet");
        assert_eq!(missing_shard(&[shard(0), shard(1), shard(2)]), None);
        assert_eq!(
            missing_shard(&[shard(0), shard(2)]).as_deref(),
            Some("data/train-00001-of-00003")
        );
        let hashed = |i: usize| format!("data/train-{i:05}-of-00002-{i}abc.parquet");
        assert_eq!(missing_shard(&[hashed(0), hashed(1)]), None);
        assert_eq!(missing_shard(&["0000.parquet".to_owned()]), None);
    }
}
