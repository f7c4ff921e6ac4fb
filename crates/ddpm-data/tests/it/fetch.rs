//! Fetching from a server on this machine: broken connections, servers without ranges, wrong files, and a small Hub.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use ddpm_data::{DataSpec, Download, Fetching, downloads, fetch, fetch_file, load};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// How a server answers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// As it should.
    Good,
    /// It knows no ranges, and sends all of it.
    NoRanges,
    /// It hangs up after so many bytes of each answer.
    HangsUp(usize),
    /// It sends a byte more than there is.
    OneMore,
}

/// Files on a server, by path, and the requests it got: path and range.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<(String, Option<String>)>>>,
}

impl Server {
    fn new(files: HashMap<String, Vec<u8>>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        // It ends with the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                drop(answer(stream, &files, manner, &noted));
            }
        });
        Self { address, asked }
    }

    fn of(file: &str, content: &[u8], manner: Manner) -> Self {
        Self::new(
            HashMap::from([(format!("/{file}"), content.to_vec())]),
            manner,
        )
    }

    fn ranges(&self) -> Vec<Option<String>> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|(_, range)| range.clone())
            .collect()
    }
}

fn answer(
    stream: TcpStream,
    files: &HashMap<String, Vec<u8>>,
    manner: Manner,
    noted: &Mutex<Vec<(String, Option<String>)>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if line.to_lowercase().starts_with("range:") {
            range = line.split('=').nth(1).map(str::to_owned);
        }
    }
    noted.lock().unwrap().push((path.clone(), range.clone()));
    let Some(content) = files.get(&path) else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        );
    };
    let hash: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let hub = format!("etag: \"{hash}\"\r\nx-repo-commit: 0123abcd\r\nconnection: close\r\n");
    let range = range.filter(|_| manner != Manner::NoRanges);
    let (mut from, mut to) = (0, content.len());
    if let Some((first, last)) = range.as_deref().and_then(|range| range.split_once('-')) {
        from = first.parse().unwrap();
        to = last.parse::<usize>().map_or(to, |last| last + 1);
    }
    let (status, extra) = match range {
        None => ("200 OK", String::new()),
        Some(_) => (
            "206 Partial Content",
            format!(
                "content-range: bytes {from}-{}/{}\r\n",
                to - 1,
                content.len()
            ),
        ),
    };
    let mut body = content[from..to].to_vec();
    if manner == Manner::OneMore {
        body.push(0);
    }
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{extra}{hub}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if let Manner::HangsUp(after) = manner {
        body.truncate(after);
    }
    stream.write_all(&body)
}

fn content() -> Vec<u8> {
    (0..100_000u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect()
}

fn download(server: &Server, content: &[u8]) -> Download {
    let sha256: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Download {
        url: format!("{}/file.bin", server.address),
        file: "file.bin".to_owned(),
        bytes: content.len() as u64,
        sha256: Box::leak(sha256.into_boxed_str()),
    }
}

/// What is said, with the address left out.
fn refused(server: &Server, folder: &Path, content: &[u8]) -> String {
    let message = fetch_file(&download(server, content), folder, &mut |_| {}).unwrap_err();
    message
        .to_string()
        .replace(&format!("{}/file.bin: ", server.address), "")
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_was() {
    let folder = TempDir::new().unwrap();
    let content = content();
    let server = Server::of("file.bin", &content, Manner::HangsUp(9_000));
    let part = folder.path().join("file.bin.part");
    let said = refused(&server, folder.path(), &content);
    let kept = std::fs::read(&part).unwrap();
    assert_eq!(kept.len(), 36_000, "four tries of 9,000 bytes each");
    assert_eq!(kept, content[..36_000]);
    assert!(
        said.contains("36000 of 100000 bytes are kept in "),
        "{said}"
    );
    let asked = ["9000-", "18000-", "27000-"].map(|range| Some(range.to_owned()));
    assert_eq!(server.ranges(), [&[None], &asked[..]].concat());

    let server = Server::of("file.bin", &content, Manner::Good);
    let mut told = Vec::new();
    fetch_file(&download(&server, &content), folder.path(), &mut |what| {
        told.push(what)
    })
    .unwrap();
    let target = folder.path().join("file.bin");
    assert_eq!(std::fs::read(&target).unwrap(), content);
    assert_eq!(told, [Fetching::Done(target.clone())]);
    assert_eq!(server.ranges(), [Some("36000-".to_owned())]);
    assert!(!part.exists());
    told.clear();
    fetch_file(&download(&server, &content), folder.path(), &mut |what| {
        told.push(what)
    })
    .unwrap();
    assert_eq!(told, [Fetching::There(target)]);
    assert_eq!(server.ranges().len(), 1, "nothing is asked for twice");
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let folder = TempDir::new().unwrap();
    let content = content();
    std::fs::write(folder.path().join("file.bin.part"), b"half of another file").unwrap();
    let server = Server::of("file.bin", &content, Manner::NoRanges);
    fetch_file(&download(&server, &content), folder.path(), &mut |_| {}).unwrap();
    assert_eq!(
        std::fs::read(folder.path().join("file.bin")).unwrap(),
        content
    );
}

#[test]
fn another_file_is_never_given_the_name() {
    let folder = TempDir::new().unwrap();
    let content = content();
    let mut other = content.clone();
    other[500] ^= 1;
    let server = Server::of("file.bin", &other, Manner::Good);
    let said = refused(&server, folder.path(), &content);
    assert!(said.starts_with("what came has sha256 "), "{said}");
    assert!(
        said.ends_with("it was removed: try again, or another mirror"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let server = Server::of("file.bin", &content, Manner::OneMore);
    let said = refused(&server, folder.path(), &content);
    assert!(said.contains("more than the 100000 bytes"), "{said}");
    let server = Server::of("other.bin", &content, Manner::Good);
    assert_eq!(
        refused(&server, folder.path(), &content),
        "the server answers 404"
    );
    std::fs::write(folder.path().join("file.bin"), "mine").unwrap();
    let said = refused(&server, folder.path(), &content);
    assert!(
        said.contains("is there with sha256 ") && said.ends_with("remove it to fetch it again"),
        "{said}"
    );
}

#[test]
fn what_can_be_fetched_by_name_is_known_to_the_byte() {
    for spec in DataSpec::ALL {
        let files = downloads(&spec);
        let expected = match spec {
            DataSpec::Digits => 0,
            DataSpec::Mnist | DataSpec::FashionMnist => 4,
            _ => 1,
        };
        assert_eq!(files.len(), expected, "{spec}");
        for file in files {
            assert!(file.bytes > 4000 && file.url.ends_with(&file.file));
            assert!(file.sha256.len() == 64 && file.sha256.chars().all(|c| c.is_ascii_hexdigit()));
        }
    }
    let folder = TempDir::new().unwrap();
    let server = Server::of("nothing", &[], Manner::Good);
    let mirror = format!("{}/a/", server.address);
    let message = fetch(
        &DataSpec::Cifar10,
        Some(folder.path()),
        Some(&mirror),
        &mut |_| {},
    )
    .unwrap_err();
    let url = format!("{mirror}cifar-10-binary.tar.gz");
    assert_eq!(
        message.to_string(),
        format!("{url}: the server answers 404")
    );
    let message = fetch(&DataSpec::Digits, None, None, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(message.contains("there is nothing to fetch"), "{message}");
}

/// A Hub of one data set: two parquet files and a page, found by its name, kept where its other clients look too.
#[test]
fn a_data_set_of_the_hub_is_fetched_once_and_then_found_without_a_network() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet/cifar10");
    let names = [
        "train-00000-of-00001.parquet",
        "test-00000-of-00001.parquet",
    ];
    let siblings: Vec<String> = names
        .iter()
        .map(|name| format!("{{\"rfilename\":\"plain_text/{name}\"}}"))
        .collect();
    let info = format!(
        "{{\"sha\":\"0123abcd\",\"siblings\":[{{\"rfilename\":\"README.md\"}},{}]}}",
        siblings.join(",")
    );
    let mut files = HashMap::from([(
        "/api/datasets/someone/pictures/revision/main".to_owned(),
        info.into_bytes(),
    )]);
    for name in names {
        let path = format!("/datasets/someone/pictures/resolve/main/plain_text/{name}");
        files.insert(path, std::fs::read(golden.join(name)).unwrap());
    }
    let server = Server::new(files, Manner::Good);
    let folder = TempDir::new().unwrap();
    let spec: DataSpec = "hub:someone/pictures".parse().unwrap();
    let place = fetch(
        &spec,
        Some(folder.path()),
        Some(&server.address),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(place, folder.path().join("hub/datasets--someone--pictures"));
    let asked = server.asked.lock().unwrap().len();
    let splits = load(&spec, Some(folder.path())).unwrap();
    assert_eq!(
        server.asked.lock().unwrap().len(),
        asked,
        "nothing is asked for again"
    );
    assert_eq!((splits.train.len(), splits.test.unwrap().len()), (3, 3));
    assert_eq!(splits.train.class_names()[1], "automobile");
    assert_eq!(splits.train.image(0)[..3], [0, 100, 10]);
    let other: DataSpec = "hub:someone/else".parse().unwrap();
    let message = fetch(
        &other,
        Some(folder.path()),
        Some(&server.address),
        &mut |_| {},
    )
    .unwrap_err();
    assert!(
        message
            .to_string()
            .starts_with("data set `hub:someone/else`: "),
        "{message}"
    );
}
