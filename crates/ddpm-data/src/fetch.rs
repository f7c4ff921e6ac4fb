//! Fetching data sets: files with known SHA-256 from where their makers put them, and the Hub's through hf-hub. In the
//! feature `hub`.
//!
//! A file that has not wholly come is kept as `FILE.part`, and the next time goes on from there. It gets its name when its
//! SHA-256 is the one that is known, not before.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use sha2::{Digest, Sha256};

use crate::hub::{self, BRANCHES, HubName};
use crate::{DataSpec, Error, Result, cifar, source, tiny_imagenet};

/// A file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// Where it is.
    pub url: String,
    /// What it is called here.
    pub file: String,
    /// How long it is.
    pub bytes: u64,
    /// Its SHA-256, lower-case hexadecimal.
    pub sha256: &'static str,
}

/// What is happening to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetching {
    /// It was there, and is what it should be.
    There(PathBuf),
    /// So many of its bytes have come, of so many.
    Came(PathBuf, u64, u64),
    /// It has come, its SHA-256 is right, and it has its name.
    Done(PathBuf),
}

/// Tries before a download is given up; each goes on from where the last broke off.
const TRIES: usize = 4;
/// Bytes between two messages.
const TOLD: u64 = 4 << 20;

/// Fetches a data set into `data_dir`, or what is missing of it; returns the folder where it is.
///
/// `mirror` is a folder on another server (`http://host/path`) that has the same files under the same names.
///
/// # Errors
/// [`Error::Fetch`] with the address and how much is kept; [`Error::Hub`]; [`Error::Spec`] for what cannot be fetched.
pub fn fetch(
    spec: &DataSpec,
    data_dir: Option<&Path>,
    mirror: Option<&str>,
    tell: &mut dyn FnMut(Fetching),
) -> Result<PathBuf> {
    let data_dir = data_dir.map_or_else(source::default_data_dir, Path::to_owned);
    if let DataSpec::Hub(name) = spec {
        let name = HubName::parse(name).map_err(|why| Error::Spec {
            spec: spec.to_string(),
            why,
        })?;
        return fetch_hub(&name, &data_dir, mirror, tell);
    }
    let folder = data_dir.join(spec.name());
    let downloads = downloads(spec);
    if downloads.is_empty() {
        return Err(Error::Spec {
            spec: spec.to_string(),
            why: "there is nothing to fetch".to_owned(),
        });
    }
    for mut download in downloads {
        if let Some(mirror) = mirror {
            download.url = format!("{}/{}", mirror.trim_end_matches('/'), download.file);
        }
        fetch_file(&download, &folder, tell)?;
    }
    Ok(folder)
}

/// The files of a data set, where they are, and what is known of them; none for what cannot be fetched by name.
///
/// The hashes are those that TensorFlow Datasets, PyTorch's mirrors and many others have recorded of the originals.
pub fn downloads(spec: &DataSpec) -> Vec<Download> {
    let files: &[(&str, &str, u64, &'static str)] = match spec {
        DataSpec::Mnist => &MNIST,
        DataSpec::FashionMnist => &FASHION_MNIST,
        DataSpec::Cifar10 => &CIFAR10,
        DataSpec::TinyImagenet => &TINY_IMAGENET,
        _ => &[],
    };
    let download = |&(place, file, bytes, sha256): &(&str, &str, u64, &'static str)| Download {
        url: format!("{place}/{file}"),
        file: file.to_owned(),
        bytes,
        sha256,
    };
    files.iter().map(download).collect()
}

const MNIST_PLACE: &str = "https://storage.googleapis.com/cvdf-datasets/mnist";
const FASHION_PLACE: &str =
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion";
#[rustfmt::skip]
const MNIST: [(&str, &str, u64, &str); 4] = [
    (MNIST_PLACE, "train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    (MNIST_PLACE, "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    (MNIST_PLACE, "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    (MNIST_PLACE, "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
];
#[rustfmt::skip]
const FASHION_MNIST: [(&str, &str, u64, &str); 4] = [
    (FASHION_PLACE, "train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    (FASHION_PLACE, "train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    (FASHION_PLACE, "t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    (FASHION_PLACE, "t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
];
#[rustfmt::skip]
const CIFAR10: [(&str, &str, u64, &str); 1] = [
    ("https://www.cs.toronto.edu/~kriz", cifar::ARCHIVE, 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
];
#[rustfmt::skip]
const TINY_IMAGENET: [(&str, &str, u64, &str); 1] = [
    ("http://cs231n.stanford.edu", tiny_imagenet::ARCHIVE, 248_100_043, "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
];

/// Fetches one file into a folder, or goes on with it.
///
/// # Errors
/// [`Error::Fetch`].
pub fn fetch_file(
    download: &Download,
    folder: &Path,
    tell: &mut dyn FnMut(Fetching),
) -> Result<()> {
    let wrong = |what: String| Error::Fetch {
        url: download.url.clone(),
        what,
    };
    let target = folder.join(&download.file);
    let part = folder.join(format!("{}.part", download.file));
    let disk = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| format!("{path}: {error}")
    };
    std::fs::create_dir_all(folder).map_err(|error| wrong(disk(folder)(error)))?;
    if target.is_file() {
        let found = sha256(&target).map_err(|error| wrong(disk(&target)(error)))?;
        if found == download.sha256 {
            tell(Fetching::There(target));
            return Ok(());
        }
        return Err(wrong(format!(
            "{} is there with sha256 {found}, expected {}: remove it to fetch it again",
            target.display(),
            download.sha256
        )));
    }
    let mut failed = String::new();
    for attempt in 0..TRIES {
        match go_on(download, &part, tell) {
            Ok(()) => return name(download, &part, &target, tell).map_err(wrong),
            Err(Stop::ForGood(what)) => return Err(wrong(what)),
            Err(Stop::Perhaps(what)) => failed = what,
        }
        std::thread::sleep(Duration::from_millis(200 << attempt));
    }
    let kept = part.metadata().map_or(0, |known| known.len());
    Err(wrong(format!(
        "{failed}; {kept} of {} bytes are kept in {}, and the same command goes on from there",
        download.bytes,
        part.display()
    )))
}

/// Why a download stopped.
enum Stop {
    /// Another try may help.
    Perhaps(String),
    /// None will.
    ForGood(String),
}

/// Appends to a part what is missing of it.
fn go_on(
    download: &Download,
    part: &Path,
    tell: &mut dyn FnMut(Fetching),
) -> std::result::Result<(), Stop> {
    let disk = |error: std::io::Error| Stop::ForGood(format!("{}: {error}", part.display()));
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(part)
        .map_err(disk)?;
    let mut have = file.metadata().map_err(disk)?.len();
    if have > download.bytes {
        file.set_len(0).map_err(disk)?;
        have = 0;
    }
    if have == download.bytes {
        return Ok(());
    }
    let mut request = ureq::get(&download.url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let response = request.call().map_err(|error| match error {
        ureq::Error::StatusCode(code) if (400..500).contains(&code) => {
            Stop::ForGood(format!("the server answers {code}"))
        }
        other => Stop::Perhaps(other.to_string()),
    })?;
    // A server that knows no ranges sends all of it.
    if have > 0 && response.status() != 206 {
        file.set_len(0).map_err(disk)?;
        have = 0;
    }
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    let mut told = have;
    loop {
        let read = body
            .read(&mut buffer)
            .map_err(|error| Stop::Perhaps(error.to_string()))?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).map_err(disk)?;
        have += read as u64;
        if have > download.bytes {
            drop(std::fs::remove_file(part));
            return Err(Stop::ForGood(format!(
                "the server sends more than the {} bytes of the file that is known: another file",
                download.bytes
            )));
        }
        if have - told >= TOLD {
            told = have;
            tell(Fetching::Came(part.to_owned(), have, download.bytes));
        }
    }
    file.sync_all().map_err(disk)?;
    if have < download.bytes {
        return Err(Stop::Perhaps("the connection ended".to_owned()));
    }
    Ok(())
}

/// Gives a whole part its name, if it is what it should be.
fn name(
    download: &Download,
    part: &Path,
    target: &Path,
    tell: &mut dyn FnMut(Fetching),
) -> std::result::Result<(), String> {
    let disk = |error: std::io::Error| format!("{}: {error}", part.display());
    let found = sha256(part).map_err(disk)?;
    if found != download.sha256 {
        std::fs::remove_file(part).map_err(disk)?;
        return Err(format!(
            "what came has sha256 {found}, expected {}; it was removed: try again, or another mirror",
            download.sha256
        ));
    }
    std::fs::rename(part, target).map_err(disk)?;
    tell(Fetching::Done(target.to_owned()));
    Ok(())
}

/// SHA-256 of a file, lower-case hexadecimal.
fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let digest = hash.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fetches the parquet files of a data set of the Hub into the cache in the data folder.
fn fetch_hub(
    name: &HubName,
    data_dir: &Path,
    endpoint: Option<&str>,
    tell: &mut dyn FnMut(Fetching),
) -> Result<PathBuf> {
    let cache = data_dir.join("hub");
    let wrong = |what: String| Error::Hub {
        name: name.repository.clone(),
        what,
    };
    let mut builder = ApiBuilder::from_env()
        .with_cache_dir(cache.clone())
        .with_progress(false)
        .with_retries(3);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let api = builder.build().map_err(|error| wrong(error.to_string()))?;
    let mut failed = String::new();
    for branch in BRANCHES {
        match fetch_branch(&api, name, branch, tell) {
            Ok(true) => return Ok(hub::folder(name, &cache)),
            Ok(false) => {}
            Err(Branch::Absent(what)) => failed = what,
            Err(Branch::Failed(error)) => return Err(error),
        }
    }
    if failed.is_empty() {
        failed = "it has no parquet files, and the Hub has converted none".to_owned();
    }
    Err(wrong(failed))
}

/// Why a branch was not fetched.
enum Branch {
    /// It could not be looked at: perhaps it is not there.
    Absent(String),
    Failed(Error),
}

/// Fetches the parquet files of one branch; says whether there are any.
fn fetch_branch(
    api: &Api,
    name: &HubName,
    branch: &str,
    tell: &mut dyn FnMut(Fetching),
) -> std::result::Result<bool, Branch> {
    let failed = |what: String| {
        Branch::Failed(Error::Hub {
            name: name.repository.clone(),
            what,
        })
    };
    let repo = Repo::with_revision(
        name.repository.clone(),
        RepoType::Dataset,
        branch.to_owned(),
    );
    let repo = api.repo(repo);
    let info = repo
        .info()
        .map_err(|error| Branch::Absent(error.to_string()))?;
    let files = info.siblings.into_iter().map(|file| file.rfilename);
    let files = name.choose(files.collect()).map_err(Branch::Failed)?;
    for file in &files {
        let said = |error: ApiError| failed(format!("{file}: {error}"));
        let known = api.metadata(&repo.url(file)).map_err(said)?;
        let path = repo.get(file).map_err(said)?;
        // Large files go by their SHA-256.
        let etag = known.etag();
        let found =
            sha256(&path).map_err(|error| failed(format!("{}: {error}", path.display())))?;
        if etag.len() == 64 && etag != found {
            // The name leads to the content, which is removed too, so that it is fetched again.
            let content = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
            drop((std::fs::remove_file(content), std::fs::remove_file(&path)));
            return Err(failed(format!(
                "{file} came with sha256 {found}, expected {etag}; it was removed: try again"
            )));
        }
        tell(Fetching::Done(path));
    }
    Ok(!files.is_empty())
}
