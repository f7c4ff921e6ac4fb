//! Models of the Hugging Face Hub by name: `OWNER/NAME`, `OWNER/NAME@REVISION`, and where its clients keep them.
//!
//! ```text
//! CACHE/models--OWNER--NAME/refs/main              the commit
//! CACHE/models--OWNER--NAME/snapshots/COMMIT/      its files, as links to
//! CACHE/models--OWNER--NAME/blobs/HASH             what is in them
//! ```
//!
//! The cache is that of Python's clients: `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`. It is
//! read by every build; fetching is in the feature `hub`. `HF_HUB_OFFLINE` forbids it, `HF_ENDPOINT` is another server,
//! `HF_TOKEN` (or the file `token` in `$HF_HOME`) opens models that are not public.

#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod fetch;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::pipeline::Parts;
use crate::{Error, Result};

/// A model's name on the Hub, and the branch, tag or commit of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `OWNER/NAME`.
    pub repository: String,
    /// `main` unless said otherwise.
    pub revision: String,
}

/// A model of the Hub as it lies in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// What was asked for.
    pub name: HubName,
    /// The commit that it is of.
    pub commit: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Why the Hub was not asked whether there is a newer commit, if it was not.
    pub unasked: Option<String>,
}

/// What is happening to a file of the Hub: its name, how many bytes have come, of how many.
pub type Tell<'a> = &'a mut dyn FnMut(&str, u64, u64);

impl FromStr for HubName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let part = |part: &str| {
            let letter = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            part.chars().all(letter) && !part.is_empty() && !part.starts_with('.')
        };
        let parts: Vec<&str> = repository.split('/').collect();
        let named = parts.len() == 2 && parts.iter().all(|name| part(name));
        if !named || !revision.split('/').all(part) {
            let reason = format!("`{text}` is not OWNER/NAME or OWNER/NAME@REVISION");
            return Err(Error::Hub {
                name: text.to_owned(),
                reason,
            });
        }
        Ok(Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl HubName {
    /// Whether a text is such a name and no path: its owner is no folder here.
    pub fn of_no_path(text: &Path) -> Option<Self> {
        let name: Self = text.to_str()?.parse().ok()?;
        let owner = name.repository.split('/').next()?;
        (!text.exists() && !Path::new(owner).exists()).then_some(name)
    }

    /// Finds the model, or fetches it: only the files that are needed, each verified.
    ///
    /// Without the feature `hub`, or where `HF_HUB_OFFLINE` is set, it is looked for in the cache alone. Where the Hub
    /// cannot be reached, what the cache has is taken, and said.
    ///
    /// # Errors
    /// [`Error::Hub`]: it is not in the cache (which is named) and may not be fetched; the Hub does not have it or does
    /// not give it; what came is not what was announced.
    pub fn resolve(&self, hub: &Hub, tell: Tell<'_>) -> Result<HubModel> {
        if hub.offline {
            return match hub.find(self) {
                Some(found) => Ok(found.unasked("HF_HUB_OFFLINE is set")),
                None => Err(self.wrong(format!(
                    "it is not in the cache {}, and HF_HUB_OFFLINE is set",
                    hub.folder(self).display()
                ))),
            };
        }
        self.resolve_online(hub, tell)
    }

    #[cfg(feature = "hub")]
    fn resolve_online(&self, hub: &Hub, tell: Tell<'_>) -> Result<HubModel> {
        fetch::resolve(self, hub, tell)
    }

    #[cfg(not(feature = "hub"))]
    fn resolve_online(&self, hub: &Hub, _tell: Tell<'_>) -> Result<HubModel> {
        match hub.find(self) {
            Some(found) => Ok(found.unasked("this program was built without the feature `hub`")),
            None => Err(self.wrong(format!(
                "there is no such folder, nor is it in the cache {}; this program was built without the feature `hub`: \
                 with `cargo run --release --features hub -p ddpm-sample -- --model {self}` it is fetched",
                hub.folder(self).display()
            ))),
        }
    }

    fn wrong(&self, reason: impl fmt::Display) -> Error {
        Error::Hub {
            name: self.to_string(),
            reason: reason.to_string(),
        }
    }
}

impl HubModel {
    fn unasked(self, why: &str) -> Self {
        Self {
            unasked: Some(why.to_owned()),
            ..self
        }
    }
}

/// The Hub as the environment describes it: where its clients keep what they fetch, and whom they ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// `$HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// `$HF_TOKEN`, else what is in the file `$HF_TOKEN_PATH` or `$HF_HOME/token`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: the cache alone is looked into.
    pub offline: bool,
}

impl Hub {
    /// By the variables of the environment.
    ///
    /// # Errors
    /// None of `HF_HUB_CACHE`, `HF_HOME` and `HOME` is set.
    pub fn of_environment() -> Result<Self> {
        Self::of(|name| std::env::var_os(name))
    }

    /// By variables that `get` knows.
    ///
    /// # Errors
    /// As [`Hub::of_environment`].
    pub fn of(get: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| get(name).map(PathBuf::from);
        let below_home = || Some(path("HOME")?.join(".cache/huggingface"));
        let home = path("HF_HOME").or_else(below_home);
        let cache = path("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| Error::Hub {
            name: "the cache".to_owned(),
            reason: "none of HF_HUB_CACHE, HF_HOME and HOME is set".to_owned(),
        })?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = text("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok());
        let token = token.map(|token| token.trim().to_owned());
        let offline = text("HF_HUB_OFFLINE")
            .unwrap_or_default()
            .to_ascii_uppercase();
        Ok(Self {
            cache,
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: token
                .filter(|token| !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic())),
            // As Python's clients read it.
            offline: matches!(offline.as_str(), "1" | "ON" | "YES" | "TRUE"),
        })
    }

    /// The folder of a model.
    fn folder(&self, name: &HubName) -> PathBuf {
        let folder = format!("models--{}", name.repository.replace('/', "--"));
        self.cache.join(folder)
    }

    /// The model, if it is there with its weights.
    fn find(&self, name: &HubName) -> Option<HubModel> {
        let folder = self.folder(name);
        let said = std::fs::read_to_string(folder.join("refs").join(&name.revision));
        let commit = match said {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => name.revision.clone(),
        };
        if !is_hash(&commit) {
            return None;
        }
        let folder = folder.join("snapshots").join(&commit);
        let whole = folder.is_dir() && Parts::find(&folder).is_ok();
        whole.then(|| HubModel {
            name: name.clone(),
            commit,
            folder,
            unasked: None,
        })
    }
}

/// Whether a server's word for a commit or a content can be the name of a file.
fn is_hash(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repository),
            revision => write!(f, "{}@{revision}", self.repository),
        }
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, revision {}", self.name, self.commit)?;
        match &self.unasked {
            None => Ok(()),
            Some(why) => write!(f, " as the cache has it: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let name: HubName = "google/ddpm-cifar10-32".parse().unwrap();
        assert_eq!(
            (name.revision.as_str(), name.to_string().as_str()),
            ("main", "google/ddpm-cifar10-32")
        );
        let name: HubName = "a/b@refs/pr/3".parse().unwrap();
        assert_eq!(
            (name.repository.as_str(), name.revision.as_str()),
            ("a/b", "refs/pr/3")
        );
        for bad in [
            "",
            "a",
            "a/b/c",
            "/a/b",
            "a/../b",
            "../b",
            "a/b@",
            "a/b@..",
            "a/b@x/../y",
            "a b/c",
            "a/b@-/",
            "C:\\a/b",
        ] {
            assert!(bad.parse::<HubName>().is_err(), "{bad}");
        }
        // An owner that is a folder here is none.
        assert_eq!(HubName::of_no_path(Path::new("src/nothing")), None);
        assert!(HubName::of_no_path(Path::new("google/nothing")).is_some());
    }
}
