//! Models of the Hub from a server on this machine that has its routes: what is fetched, gone on with, verified, refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use ddpm_checkpoint::{Hub, HubModel, HubName, Pipeline, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::hub_cache::offline;
use crate::layouts::golden;
use crate::{assert_same, message, tiny_pipeline};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a server answers, beyond its files.
#[derive(Debug, Clone, Default)]
struct Manner {
    /// It hangs up after so many bytes of each answer.
    hangs_up: Option<usize>,
    /// It knows no ranges.
    no_ranges: bool,
    /// It sends other bytes than it announces.
    lies: bool,
    /// It announces this in place of the hash.
    etag: Option<String>,
    /// It gives large files from this server.
    elsewhere: Option<String>,
    /// It asks for this token.
    token: Option<String>,
}

/// A request: path, range, token.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    path: String,
    range: Option<String>,
    token: Option<String>,
}

struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn new(files: BTreeMap<String, Vec<u8>>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        // It ends with the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                drop(answer(stream, &files, &manner, &noted));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As the Hub announces: SHA-256 of large files, git's hash of small ones.
fn hash_of(path: &str, content: &[u8]) -> String {
    if path.ends_with(".safetensors") || path.ends_with(".bin") {
        return hex(&Sha256::digest(content));
    }
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    hash.update(content);
    hex(&hash.finalize())
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    manner: &Manner,
    noted: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut asked = Asked {
        path: path.clone(),
        range: None,
        token: None,
    };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                asked.range = value.split('=').nth(1).map(str::to_owned);
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                asked.token = value.strip_prefix("Bearer ").map(str::to_owned);
            }
            _ => {}
        }
    }
    noted.lock().unwrap().push(asked.clone());
    let mut say = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body[..manner.hangs_up.unwrap_or(length).min(length)])
    };
    if manner.token.is_some() && manner.token != asked.token {
        return say("401 Unauthorized", "", b"");
    }
    let Some(content) = files.get(&path) else {
        return say("404 Not Found", "", b"");
    };
    let etag = manner
        .etag
        .clone()
        .unwrap_or_else(|| hash_of(&path, content));
    if let (Some(elsewhere), true) = (&manner.elsewhere, path.ends_with(".safetensors")) {
        let size = content.len();
        let headers = format!(
            "location: {elsewhere}{path}\r\nx-linked-etag: \"{etag}\"\r\nx-linked-size: {size}\r\nx-repo-commit: {COMMIT}\r\n"
        );
        return say("302 Found", &headers, b"");
    }
    let range = asked.range.as_deref().filter(|_| !manner.no_ranges);
    let ends = range.and_then(|range| range.split_once('-'));
    let (from, to) = match ends {
        None => (0, content.len()),
        Some((from, to)) => (
            from.parse().unwrap(),
            to.parse().map_or(content.len(), |to: usize| to + 1),
        ),
    };
    let mut body = content[from..to].to_vec();
    if manner.lies && from == 0 && body.len() > 1 && path.contains("/resolve/") {
        body[1] ^= 1;
    }
    let (size, last) = (content.len(), to - 1);
    let common = format!("etag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\n");
    match ends {
        None => say("200 OK", &common, &body),
        Some(_) => say(
            "206 Partial Content",
            &format!("content-range: bytes {from}-{last}/{size}\r\n{common}"),
            &body,
        ),
    }
}

/// Every file of a folder and some that no model needs, as the Hub has them at a revision.
fn repository(folder: &Path, revision: &str) -> BTreeMap<String, Vec<u8>> {
    let mut names = Vec::new();
    for below in ["", "unet", "scheduler"] {
        let Ok(entries) = fs::read_dir(folder.join(below)) else {
            continue;
        };
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            names.push(if below.is_empty() {
                name
            } else {
                format!("{below}/{name}")
            });
        }
    }
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for name in &names {
        let path = format!("/someone/tiny/resolve/{revision}/{name}");
        files.insert(path, fs::read(folder.join(name)).unwrap());
    }
    let unneeded = [
        "README.md",
        "samples.png",
        "unet/diffusion_flax_model.msgpack",
        "../../evil",
    ];
    let siblings: Vec<String> = names
        .iter()
        .map(String::as_str)
        .chain(unneeded)
        .map(|name| format!("{{\"rfilename\":\"{name}\"}}"))
        .collect();
    let info = format!(
        "{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}",
        siblings.join(",")
    );
    let revision = revision.replace('/', "%2F");
    files.insert(
        format!("/api/models/someone/tiny/revision/{revision}"),
        info.into_bytes(),
    );
    files
}

struct House {
    cache: tempfile::TempDir,
    model: tempfile::TempDir,
}

impl House {
    /// An empty cache, and a model that is somewhere else.
    fn new() -> Self {
        let house = Self {
            cache: tempfile::tempdir().unwrap(),
            model: tempfile::tempdir().unwrap(),
        };
        tiny_pipeline(0)
            .save(&house.model.path().join("m"))
            .unwrap();
        house
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        repository(&self.model.path().join("m"), "main")
    }

    fn hub(&self, server: &Server) -> Hub {
        Hub {
            endpoint: format!("{}/", server.address),
            offline: false,
            ..offline(self.cache.path())
        }
    }

    #[allow(clippy::result_large_err, reason = "it is the library's")]
    fn fetch(&self, server: &Server) -> Result<HubModel> {
        let name: HubName = "someone/tiny".parse().unwrap();
        name.resolve(&self.hub(server), &mut |_, _, _| ())
    }

    #[track_caller]
    fn refused(&self, server: &Server) -> String {
        let text = message(self.fetch(server), self.cache.path());
        text.replace(&server.address, "SERVER")
            .replace("model `someone/tiny` of the Hugging Face Hub: ", "")
    }

    #[track_caller]
    fn check_whole(&self, found: &HubModel) {
        assert_eq!(found.commit, COMMIT);
        let read = Pipeline::load(&found.folder).unwrap();
        assert_same(&read.weights, &tiny_pipeline(0).weights);
    }
}

#[test]
fn only_what_is_needed_is_fetched_and_only_once() {
    let house = House::new();
    let server = Server::new(house.files(), Manner::default());
    let mut told = Vec::new();
    let name: HubName = "someone/tiny".parse().unwrap();
    let found = name
        .resolve(&house.hub(&server), &mut |file, have, size| {
            told.push((file.to_owned(), have, size))
        })
        .unwrap();
    house.check_whole(&found);
    assert_eq!(
        found.to_string(),
        format!("someone/tiny, revision {COMMIT}")
    );
    let size = fs::metadata(
        house
            .model
            .path()
            .join("m/unet/diffusion_pytorch_model.safetensors"),
    );
    let size = size.unwrap().len();
    let weights = "unet/diffusion_pytorch_model.safetensors".to_owned();
    assert!(told.contains(&(weights.clone(), 0, size)) && told.contains(&(weights, size, size)));

    let mut paths: Vec<String> = server.asked().into_iter().map(|asked| asked.path).collect();
    paths.dedup();
    let resolved = |file: &str| format!("/someone/tiny/resolve/main/{file}");
    let expected = [
        "/api/models/someone/tiny/revision/main".to_owned(),
        resolved("model_index.json"),
        resolved("unet/config.json"),
        resolved("scheduler/scheduler_config.json"),
        resolved("unet/diffusion_pytorch_model.safetensors"),
    ];
    assert_eq!(paths, expected);

    // The cache is that of Python's clients.
    let folder = house.cache.path().join("models--someone--tiny");
    assert_eq!(
        fs::read_to_string(folder.join("refs/main")).unwrap(),
        COMMIT
    );
    let link = folder
        .join("snapshots")
        .join(COMMIT)
        .join("unet/config.json");
    #[cfg(unix)]
    {
        let to = fs::read_link(&link).unwrap();
        let blob = hash_of("config.json", &fs::read(&link).unwrap());
        assert_eq!(to, Path::new("../../../blobs").join(blob));
    }
    assert!(link.is_file());

    let before = server.asked().len();
    house.check_whole(&house.fetch(&server).unwrap());
    assert_eq!(
        server.asked().len(),
        before + 1,
        "only whether there is a newer commit"
    );
    // A commit is not even asked for; nor is anything, offline.
    let name: HubName = format!("someone/tiny@{COMMIT}").parse().unwrap();
    house.check_whole(
        &name
            .resolve(&house.hub(&server), &mut |_, _, _| ())
            .unwrap(),
    );
    let name: HubName = "someone/tiny".parse().unwrap();
    house.check_whole(
        &name
            .resolve(&offline(house.cache.path()), &mut |_, _, _| ())
            .unwrap(),
    );
    assert_eq!(server.asked().len(), before + 1);
}

#[test]
fn a_server_that_is_gone_leaves_what_the_cache_has() {
    let house = House::new();
    let server = Server::new(house.files(), Manner::default());
    house.fetch(&server).unwrap();
    let name: HubName = "someone/tiny".parse().unwrap();
    let gone = Hub {
        offline: false,
        ..offline(house.cache.path())
    };
    let found = name.resolve(&gone, &mut |_, _, _| ()).unwrap();
    house.check_whole(&found);
    assert!(
        found
            .to_string()
            .contains(" as the cache has it: http://127.0.0.1:9/api/models/"),
        "{found}"
    );
    let other: HubName = "someone/else".parse().unwrap();
    let text = message(other.resolve(&gone, &mut |_, _, _| ()), house.cache.path());
    assert!(
        text.ends_with("; nor is it in the cache FOLDER/models--someone--else"),
        "{text}"
    );
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_was() {
    let house = House::new();
    // Enough for the small files, not for the weights.
    let manner = Manner {
        hangs_up: Some(2500),
        ..Manner::default()
    };
    let server = Server::new(house.files(), manner);
    let text = house.refused(&server);
    assert!(
        text.contains("the connection ended")
            || text.contains("SERVER/someone/tiny/resolve/main/unet/"),
        "{text}"
    );
    assert!(
        text.contains(" bytes are kept in FOLDER/models--someone--tiny/blobs/"),
        "{text}"
    );
    let server = Server::new(house.files(), Manner::default());
    house.check_whole(&house.fetch(&server).unwrap());
    let gone_on = server
        .asked()
        .into_iter()
        .find(|asked| asked.range.as_deref().is_some_and(|r| r != "0-0"));
    let gone_on = gone_on.unwrap();
    assert!(gone_on.path.ends_with(".safetensors") && gone_on.range.unwrap().ends_with('-'));
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let house = House::new();
    let weights = fs::read(
        house
            .model
            .path()
            .join("m/unet/diffusion_pytorch_model.safetensors"),
    )
    .unwrap();
    let blobs = house.cache.path().join("models--someone--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.incomplete", hash_of("w.safetensors", &weights)));
    fs::write(&part, "half of another file").unwrap();
    let manner = Manner {
        no_ranges: true,
        ..Manner::default()
    };
    house.check_whole(&house.fetch(&Server::new(house.files(), manner)).unwrap());
    assert!(!part.exists());
}

#[test]
fn what_is_not_what_was_announced_is_removed() {
    let house = House::new();
    let manner = Manner {
        lies: true,
        ..Manner::default()
    };
    let text = house.refused(&Server::new(house.files(), manner));
    assert!(
        text.starts_with("model_index.json came with the hash "),
        "{text}"
    );
    assert!(text.ends_with("; it was removed: try again"), "{text}");
    let left = fs::read_dir(house.cache.path().join("models--someone--tiny/blobs")).unwrap();
    assert_eq!(left.count(), 0);
    // A hash that would be a path is none.
    for etag in ["../../../evil", "", "xyz", "0123"] {
        let manner = Manner {
            etag: Some(etag.to_owned()),
            ..Manner::default()
        };
        let text = house.refused(&Server::new(house.files(), manner));
        assert_eq!(
            text,
            "SERVER/someone/tiny/resolve/main/model_index.json does not tell the file's hash (etag)"
        );
    }
    let mut files = house.files();
    let listing = b"{\"sha\": \"../../evil\", \"siblings\": []}".to_vec();
    files.insert("/api/models/someone/tiny/revision/main".to_owned(), listing);
    let text = house.refused(&Server::new(files, Manner::default()));
    assert_eq!(
        text,
        "SERVER/api/models/someone/tiny/revision/main names the commit `../../evil`"
    );
}

#[test]
fn large_files_come_from_elsewhere_without_the_token() {
    let house = House::new();
    let elsewhere = Server::new(house.files(), Manner::default());
    let manner = Manner {
        elsewhere: Some(elsewhere.address.replace("127.0.0.1", "localhost")),
        token: Some("hf_secret".to_owned()),
        ..Manner::default()
    };
    let server = Server::new(house.files(), manner);
    let text = house.refused(&server);
    assert_eq!(
        text,
        "SERVER/api/models/someone/tiny/revision/main answers 401: there is no such model, or it is not public; HF_TOKEN \
         is not set"
    );
    let hub = Hub {
        token: Some("hf_secret".to_owned()),
        ..house.hub(&server)
    };
    let name: HubName = "someone/tiny".parse().unwrap();
    house.check_whole(&name.resolve(&hub, &mut |_, _, _| ()).unwrap());
    let came = elsewhere.asked();
    assert!(
        !came.is_empty()
            && came
                .iter()
                .all(|asked| asked.token.is_none() && asked.path.ends_with(".safetensors"))
    );
}

#[test]
fn branches_shards_and_pickles_are_fetched_too() {
    let house = House::new();
    let model = house.model.path().join("sharded");
    fs::create_dir_all(model.join("unet")).unwrap();
    fs::create_dir_all(model.join("scheduler")).unwrap();
    for name in [
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ] {
        fs::copy(golden("folder").join(name), model.join(name)).unwrap();
    }
    for entry in fs::read_dir(golden("folder/unet")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.contains("parts") {
            fs::copy(&path, model.join("unet").join(name)).unwrap();
        }
    }
    let server = Server::new(repository(&model, "refs/pr/1"), Manner::default());
    let name: HubName = "someone/tiny@refs/pr/1".parse().unwrap();
    let error = message(
        name.resolve(&house.hub(&server), &mut |_, _, _| ()),
        house.cache.path(),
    );
    // A branch with a slash is escaped in every route, which this server has not.
    assert!(
        error.contains("/someone/tiny/resolve/refs%2Fpr%2F1/model_index.json answers 404"),
        "{error}"
    );
    let mut files = repository(&model, "refs%2Fpr%2F1");
    let listing = files
        .keys()
        .find(|path| path.starts_with("/api/"))
        .unwrap()
        .clone();
    let listing = files.remove(&listing).unwrap();
    files.insert(
        "/api/models/someone/tiny/revision/refs%2Fpr%2F1".to_owned(),
        listing,
    );
    let server = Server::new(files, Manner::default());
    let found = name
        .resolve(&house.hub(&server), &mut |_, _, _| ())
        .unwrap();
    let weights = Pipeline::load(&found.folder).unwrap().weights;
    let here = Pipeline::load(&model).unwrap().weights;
    assert_same(&weights, &here);
}

#[test]
fn what_is_no_model_is_said_to_be_none() {
    let house = House::new();
    let server = Server::new(BTreeMap::new(), Manner::default());
    assert_eq!(
        house.refused(&server),
        "SERVER/api/models/someone/tiny/revision/main answers 404: there is no such model, revision or file"
    );
    let mut files = BTreeMap::new();
    let route = "/api/models/someone/tiny/revision/main".to_owned();
    files.insert(route.clone(), b"<html>".to_vec());
    let text = house.refused(&Server::new(files.clone(), Manner::default()));
    assert!(
        text.starts_with(
            "SERVER/api/models/someone/tiny/revision/main answers what is no listing: "
        ),
        "{text}"
    );
    let listing =
        format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{{\"rfilename\": \"config.json\"}}]}}");
    files.insert(route.clone(), listing.into_bytes());
    let text = house.refused(&Server::new(files.clone(), Manner::default()));
    assert_eq!(
        text,
        "it has no diffusion_pytorch_model.safetensors, nor another kind of it"
    );
    files.insert(
        route,
        format!("{{\"sha\": \"{COMMIT}\", \"siblings\": []}}").into_bytes(),
    );
    let text = house.refused(&Server::new(files, Manner::default()));
    assert_eq!(
        text,
        "it has neither unet/config.json nor config.json: it is no model that is read here"
    );
}
