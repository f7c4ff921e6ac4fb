//! Tiny ImageNet: the folder and the zip file are the same data set; what is missing is named.

use std::io::{Cursor, Write};
use std::path::Path;

use ddpm_data::zipped::Archive;
use ddpm_data::{Color, DataSpec, Keep, Pictures, Splits, load, load_with};
use flate2::write::DeflateEncoder;
use tempfile::TempDir;

/// A 64x64 PNG of one grey level (the reader tells pictures by their content, not by their name).
fn picture(level: u8) -> Vec<u8> {
    let picture = ddpm_image::Picture::new(64, 64, 1, vec![level; 64 * 64]).unwrap();
    ddpm_image::encode_png(&picture, &[]).unwrap()
}

/// Two classes of two training pictures each and one for validation, in an order that is neither that of `wnids.txt` nor
/// that of the archive.
fn files() -> Vec<(String, Vec<u8>)> {
    let text = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
    let mut files = vec![
        text("wnids.txt", "n02\nn01\n"),
        text(
            "words.txt",
            "n01\tgoldfish, Carassius auratus\nn03\tnot here\n",
        ),
        text(
            "val/val_annotations.txt",
            "val_1.JPEG\tn02\t0\t0\t9\t9\nval_0.JPEG\tn01\t1\t2\t3\t4\n",
        ),
        text("test/images/test_0.JPEG", "never read"),
    ];
    for (name, level) in [
        ("train/n02/images/n02_1.JPEG", 21),
        ("train/n02/images/n02_0.JPEG", 20),
        ("train/n01/images/n01_0.JPEG", 10),
        ("train/n01/images/n01_1.JPEG", 11),
        ("val/images/val_1.JPEG", 102),
        ("val/images/val_0.JPEG", 101),
    ] {
        files.push((name.to_owned(), picture(level)));
    }
    files.push(text("train/n01/n01_boxes.txt", "n01_0.JPEG\t0\t0\t9\t9\n"));
    files
}

/// A zip file by hand: local headers, the directory, its end. Every second file is deflated.
pub(crate) fn zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (i, (name, content)) in files.iter().enumerate() {
        let mut checksum = flate2::Crc::new();
        checksum.update(content);
        let mut packed = content.clone();
        if i % 2 == 1 {
            let mut deflate = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
            deflate.write_all(content).unwrap();
            packed = deflate.finish().unwrap();
        }
        let mut head = Vec::new();
        for number in [20u16, 0, if i % 2 == 1 { 8 } else { 0 }, 0, 0x21] {
            head.extend(number.to_le_bytes());
        }
        for number in [checksum.sum(), packed.len() as u32, content.len() as u32] {
            head.extend(number.to_le_bytes());
        }
        head.extend((name.len() as u16).to_le_bytes());
        head.extend(0u16.to_le_bytes());
        let start = bytes.len() as u32;
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&head);
        bytes.extend(name.as_bytes());
        bytes.extend(&packed);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&head);
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, n) = (bytes.len() as u32, files.len() as u16);
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend(n.to_le_bytes());
    bytes.extend(n.to_le_bytes());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0; 2]);
    bytes
}

fn write_folder(root: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

fn below_root(files: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let file = |(name, content): &(String, Vec<u8>)| {
        (format!("tiny-imagenet-200/{name}"), content.clone())
    };
    files.iter().map(file).collect()
}

#[track_caller]
fn check(splits: &Splits) {
    let (train, test) = (&splits.train, splits.test.as_ref().unwrap());
    let level = |data: &ddpm_data::Dataset, i: usize| data.image(i)[0];
    assert_eq!(
        (0..4).map(|i| level(train, i)).collect::<Vec<_>>(),
        [10, 11, 20, 21]
    );
    assert_eq!(train.labels(), Some([0, 0, 1, 1].as_slice()));
    assert_eq!(train.class_names(), ["goldfish", "n02"]);
    assert_eq!(
        (0..2).map(|i| level(test, i)).collect::<Vec<_>>(),
        [101, 102]
    );
    assert_eq!(test.labels(), Some([0, 1].as_slice()));
    assert_eq!(
        (train.height(), train.width(), train.channels()),
        (64, 64, 3)
    );
}

#[test]
fn folder_and_archive_are_the_same_data_set() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("tiny-imagenet");
    write_folder(&place.join("tiny-imagenet-200"), &files());
    let unpacked = load(&DataSpec::TinyImagenet, Some(folder.path())).unwrap();
    check(&unpacked);
    let second = TempDir::new().unwrap();
    let archive = second.path().join("tiny-imagenet-200.zip");
    std::fs::write(&archive, zip(&below_root(&files()))).unwrap();
    let packed = load(&DataSpec::TinyImagenet, Some(second.path())).unwrap();
    check(&packed);
    assert_eq!(packed.origin, archive.display().to_string());
    assert_eq!(packed.train.sha256(), unpacked.train.sha256());
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let without = |left_out: &str| {
        let folder = TempDir::new().unwrap();
        let mut files = below_root(&files());
        files.retain(|(name, _)| !name.ends_with(left_out));
        std::fs::write(folder.path().join("tiny-imagenet-200.zip"), zip(&files)).unwrap();
        let message = load(&DataSpec::TinyImagenet, Some(folder.path()))
            .unwrap_err()
            .to_string();
        message.replace(&folder.path().display().to_string(), "HERE")
    };
    assert_eq!(
        without("wnids.txt"),
        "HERE/tiny-imagenet-200.zip: has no wnids.txt, which is part of tiny-imagenet-200"
    );
    assert_eq!(
        without("val_annotations.txt"),
        "HERE/tiny-imagenet-200.zip: val/images/val_0.JPEG is of class not in val/val_annotations.txt, \
         expected one of wnids.txt"
    );
    let folder = TempDir::new().unwrap();
    let message = load(&DataSpec::TinyImagenet, Some(folder.path()))
        .unwrap_err()
        .to_string();
    let place = folder.path().display();
    assert_eq!(
        message,
        format!(
            "data set `tiny-imagenet` not found; looked in {place}/tiny-imagenet, {place}, \
             /usr/share/datasets/tiny-imagenet\nto get it (248 MB):\n  cargo xtask data tiny-imagenet --data-dir {place}\n\
             or put into {place}/tiny-imagenet tiny-imagenet-200.zip, packed or unpacked"
        )
    );
    // A bit of a picture's bytes, which are stored: the archive's checksum tells.
    let files = below_root(&files());
    let mut bytes = zip(&files);
    let picture = picture(20);
    let at = bytes
        .windows(picture.len())
        .position(|window| window == picture);
    let at = at.unwrap_or_else(|| panic!("one of them is stored"));
    bytes[at + 60] ^= 1;
    std::fs::write(folder.path().join("tiny-imagenet-200.zip"), bytes).unwrap();
    let message = load(&DataSpec::TinyImagenet, Some(folder.path()))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("1 of 6 pictures cannot be read"),
        "{message}"
    );
    assert!(message.contains("n02_0.JPEG: is damaged: "), "{message}");
}

#[test]
fn no_mutation_makes_the_archive_reader_panic() {
    let mut small = files();
    small.truncate(4);
    let original = zip(&small);
    let mut below = crate::below(0x0bad_cafe_dead_beef);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..6000 {
        let bytes = crate::mutated(&original, &mut below);
        match Archive::new(Cursor::new(bytes), Path::new("mutated")) {
            Ok(archive) => {
                for entry in archive.entries() {
                    match archive.content(entry) {
                        Ok(_) => read += 1,
                        Err(_) => refused += 1,
                    }
                }
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("mutated: "), "{error}");
            }
        }
    }
    assert!(
        read > 1000 && refused > 1000,
        "{read} read, {refused} refused"
    );
}

/// The archive of twenty classes, where it is.
#[test]
fn the_real_archive_is_read() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !shared.join("tiny-imagenet-20.zip").is_file() {
        println!("../shared/data/tiny-imagenet-20.zip is not there: nothing to read");
        return;
    }
    let pictures = Pictures {
        size: Some((16, 16)),
        color: Color::Grey,
        ..Pictures::default()
    };
    let splits = load_with(
        &DataSpec::TinyImagenet,
        Some(&shared),
        &pictures,
        &Keep::default(),
    )
    .unwrap();
    let (train, test) = (splits.train, splits.test.unwrap());
    assert_eq!((train.len(), test.len()), (10_000, 1_000));
    assert_eq!((train.height(), train.channels()), (16, 1));
    for (part, each) in [(&train, 500), (&test, 50)] {
        let mut counts = vec![0; train.class_names().len()];
        part.labels()
            .unwrap()
            .iter()
            .for_each(|label| counts[*label as usize] += 1);
        assert_eq!(counts, [each; 20]);
    }
    assert_eq!(train.class_names()[0], "tailed frog");
}
