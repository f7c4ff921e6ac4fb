//! A model of the Hub into the cache: the files that it needs, each gone on with where it broke off, and verified.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::client::{Announced, Client, Failure, Listing};
use super::{Hub, HubModel, HubName, Tell, is_hash};
use crate::pipeline::{BESIDE, choose_weights};
use crate::shards::shards_of;
use crate::{Error, Result};

/// Tries before a download is given up; each goes on from where the last broke off.
const TRIES: usize = 4;
/// Bytes between two messages.
const TOLD: u64 = 8 << 20;

pub(super) fn resolve(name: &HubName, hub: &Hub, tell: Tell<'_>) -> Result<HubModel> {
    // A commit never changes.
    let pinned = is_hash(&name.revision) && name.revision.len() == 40;
    if let Some(found) = hub.find(name).filter(|_| pinned) {
        return Ok(found);
    }
    let client = Client::new(&hub.endpoint, hub.token.clone());
    let listing = match client.listing(&name.repository, &name.revision) {
        Ok(listing) => listing,
        Err(Failure::ForGood(what)) => return Err(name.wrong(what)),
        Err(Failure::Perhaps(what)) => {
            let found = hub.find(name).ok_or_else(|| {
                let place = hub.folder(name);
                name.wrong(format!(
                    "{what}; nor is it in the cache {}",
                    place.display()
                ))
            })?;
            return Ok(found.unasked(&what));
        }
    };
    let model = Fetched {
        name,
        client: &client,
        repository: &hub.folder(name),
        commit: &listing.sha,
    };
    model.fetch(&listing, tell)?;
    let reference = hub.folder(name).join("refs").join(&name.revision);
    write_file(&reference, listing.sha.as_bytes())
        .map_err(Error::write("the revision", &reference))?;
    let place = hub.folder(name).join("snapshots").join(&listing.sha);
    Ok(HubModel {
        name: name.clone(),
        commit: listing.sha,
        folder: place,
        unasked: None,
    })
}

/// A model on its way into the hub.
struct Fetched<'a> {
    name: &'a HubName,
    client: &'a Client,
    /// Its folder in the hub.
    repository: &'a Path,
    commit: &'a str,
}

impl Fetched<'_> {
    fn fetch(&self, listing: &Listing, tell: Tell<'_>) -> Result<()> {
        let network = match (listing.has("unet/config.json"), listing.has("config.json")) {
            (true, _) => "unet/",
            (_, true) => "",
            _ => return Err(self.name.wrong(
                "it has neither unet/config.json nor config.json: it is no model that is read here",
            )),
        };
        let own = |file: &str| {
            file.strip_prefix(network)
                .filter(|rest| !rest.contains('/'))
                .map(str::to_owned)
        };
        let there: Vec<String> = listing.files().filter_map(own).collect();
        let weights = choose_weights(&there, &self.name.to_string())?.ok_or_else(|| {
            self.name.wrong(format!(
                "it has no {network}diffusion_pytorch_model.safetensors, nor another kind of it"
            ))
        })?;
        let wanted = BESIDE.into_iter().filter(|file| listing.has(file));
        for file in wanted {
            self.file(file, tell)?;
        }
        let weights = format!("{network}{weights}");
        self.file(&weights, tell)?;
        if weights.ends_with(".json") {
            let index = self
                .repository
                .join("snapshots")
                .join(self.commit)
                .join(&weights);
            for shard in shards_of(&index)? {
                self.file(&format!("{network}{shard}"), tell)?;
            }
        }
        Ok(())
    }

    /// One file into the snapshot, unless it is there.
    fn file(&self, file: &str, tell: Tell<'_>) -> Result<()> {
        let place = self
            .repository
            .join("snapshots")
            .join(self.commit)
            .join(file);
        if place.is_file() {
            return Ok(());
        }
        let wrong = |failure: Failure| match failure {
            Failure::Perhaps(what) | Failure::ForGood(what) => self.name.wrong(what),
        };
        let url = self
            .client
            .url(&self.name.repository, &self.name.revision, file);
        let announced = self
            .retried(|| self.client.announced(&url))
            .map_err(wrong)?;
        let blob = self.repository.join("blobs").join(&announced.hash);
        if !blob.is_file() {
            let part = blob.with_extension("incomplete");
            let folder = self.repository.join("blobs");
            fs::create_dir_all(&folder).map_err(Error::write("what is fetched", &folder))?;
            self.retried(|| self.go_on(&url, file, &part, &announced, tell))
                .map_err(|failure| {
                    let kept = part.metadata().map_or(0, |known| known.len());
                    match failure {
                        Failure::Perhaps(what) => self.name.wrong(format!(
                            "{what}; {kept} of {} bytes are kept in {}, and the same command goes on from there",
                            announced.size,
                            part.display()
                        )),
                        failure => wrong(failure),
                    }
                })?;
            self.verify(file, &part, &announced)?;
            fs::rename(&part, &blob).map_err(Error::write("what was fetched", &blob))?;
        }
        link(&blob, &place, file).map_err(Error::write("a link to what was fetched", &place))
    }

    fn retried<T>(
        &self,
        mut attempt: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> std::result::Result<T, Failure> {
        let mut last = attempt();
        for wait in 0..TRIES - 1 {
            match last {
                Err(Failure::Perhaps(_)) => {
                    std::thread::sleep(Duration::from_millis(200 << wait));
                    last = attempt();
                }
                done => return done,
            }
        }
        last
    }

    /// Appends to a part what is missing of it.
    fn go_on(
        &self,
        url: &str,
        file: &str,
        part: &Path,
        announced: &Announced,
        tell: &mut dyn FnMut(&str, u64, u64),
    ) -> std::result::Result<(), Failure> {
        let disk = |error: std::io::Error| {
            Failure::ForGood(format!("cannot write {}: {error}", part.display()))
        };
        let mut out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(part)
            .map_err(disk)?;
        let mut have = out.metadata().map_err(disk)?.len();
        if have > announced.size {
            out.set_len(0).map_err(disk)?;
            have = 0;
        }
        if have == announced.size {
            return Ok(());
        }
        let (response, continued) = self.client.content(url, have)?;
        if !continued && have > 0 {
            out.set_len(0).map_err(disk)?;
            have = 0;
        }
        let mut body = response
            .into_body()
            .into_reader()
            .take(announced.size - have + 1);
        let (mut buffer, mut told) = (vec![0; 1 << 16], have);
        tell(file, have, announced.size);
        loop {
            let read = body
                .read(&mut buffer)
                .map_err(|error| Failure::Perhaps(format!("{url}: {error}")))?;
            if read == 0 {
                break;
            }
            out.write_all(&buffer[..read]).map_err(disk)?;
            have += read as u64;
            if have - told >= TOLD {
                told = have;
                tell(file, have, announced.size);
            }
        }
        out.sync_all().map_err(disk)?;
        if have > announced.size {
            drop(fs::remove_file(part));
            return Err(Failure::ForGood(format!(
                "{url} sends more than the {} bytes that it announced",
                announced.size
            )));
        }
        match have == announced.size {
            true => {
                tell(file, have, announced.size);
                Ok(())
            }
            false => Err(Failure::Perhaps(format!("{url}: the connection ended"))),
        }
    }

    /// Compares what came with its hash: SHA-256 of large files, git's of small ones.
    fn verify(&self, file: &str, part: &Path, announced: &Announced) -> Result<()> {
        let found = match announced.hash.len() {
            64 => hashed(part, Sha256::new()),
            40 => {
                let mut hash = Sha1::new();
                hash.update(format!("blob {}\0", announced.size));
                hashed(part, hash)
            }
            // Another server's word, which is no hash of the content.
            _ => return Ok(()),
        };
        let found = found.map_err(Error::read(part))?;
        if found == announced.hash {
            return Ok(());
        }
        drop(fs::remove_file(part));
        Err(self.name.wrong(format!(
            "{file} came with the hash {found}, announced was {}; it was removed: try again",
            announced.hash
        )))
    }
}

/// The hash of a file's content, after what the hash has taken already, in lower-case digits.
fn hashed(path: &Path, mut hash: impl Digest) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let digits = hash.finalize();
    Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)
}

/// Puts a content into a snapshot under its name, as Python's clients do: by a relative link where there are such.
fn link(blob: &Path, place: &Path, file: &str) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    // A link to what is gone.
    drop(fs::remove_file(place));
    #[cfg(unix)]
    {
        let up = "../".repeat(file.matches('/').count() + 2);
        let name = blob
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        std::os::unix::fs::symlink(format!("{up}blobs/{}", name.unwrap_or_default()), place)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        fs::copy(blob, place).map(|_| ())
    }
}
