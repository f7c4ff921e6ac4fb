//! CIFAR-10: read upright, from a folder and from the archive; what is said when a file is missing or damaged.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use ddpm_data::cifar::{ARCHIVE, FILES, FOLDER, read_archive, read_batch};
use ddpm_data::{DataSpec, Dataset, load};
use tempfile::TempDir;

use crate::gzip;

/// Bytes of a batch.
const BATCH: u64 = 30_730_000;

/// An image that shows which way is up: red grows downwards, green to the right, blue is the same everywhere.
fn slope(label: u8, blue: u8) -> Vec<u8> {
    let mut record = vec![label];
    record.extend((0..1024).map(|i| (i / 32) as u8));
    record.extend((0..1024).map(|i| 100 + (i % 32) as u8));
    record.extend([blue; 1024]);
    record
}

/// A batch that begins with a slope and is black, of class 0, from there on.
fn write_batch(path: &Path, label: u8, blue: u8) {
    let mut file = File::create(path).unwrap();
    file.write_all(&slope(label, blue)).unwrap();
    file.set_len(BATCH).unwrap();
}

/// All six batches; each has its number as the first label, and ten times that as blue.
fn write_all(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for (number, file) in (1..).zip(FILES) {
        write_batch(&folder.join(file), number, 10 * number);
    }
}

/// A tar entry: a header with its checksum, then the content in blocks of 512 bytes.
fn tar_entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = header.to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn archive(files: &[&str]) -> Vec<u8> {
    let mut bytes = tar_entry("cifar-10-batches-bin/readme.html", b"<html>");
    for (number, file) in (1..).zip(files) {
        let mut batch = slope(number, 10 * number);
        batch.resize(BATCH as usize, 0);
        bytes.extend(tar_entry(&format!("{FOLDER}/{file}"), &batch));
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// That image `index` is the slope of batch `number`, the right way up.
#[track_caller]
fn check_slope(data: &Dataset, index: usize, number: u8) {
    let image = data.image(index);
    for (row, column) in [(0, 0), (0, 31), (31, 0), (5, 17)] {
        let start = (row * 32 + column) * 3;
        let pixel = &image[start..start + 3];
        assert_eq!(pixel, [row as u8, 100 + column as u8, 10 * number]);
    }
    assert_eq!(data.labels().unwrap()[index], u32::from(number));
}

#[track_caller]
fn check_batch(write: impl FnOnce(&Path), expected: &str) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("data_batch_1.bin");
    write(&path);
    let message = read_batch(&path).unwrap_err().to_string();
    assert_eq!(message, format!("{}: {expected}", path.display()));
}

#[test]
fn batches_in_a_folder_are_read_upright_and_in_order() {
    let folder = TempDir::new().unwrap();
    write_all(&folder.path().join("cifar10").join(FOLDER));
    let splits = load(&DataSpec::Cifar10, Some(folder.path())).unwrap();
    let (train, test) = (splits.train, splits.test.unwrap());
    assert!(splits.origin.ends_with("cifar10/cifar-10-batches-bin"));
    assert_eq!((train.len(), test.len()), (50_000, 10_000));
    assert_eq!(
        (train.height(), train.width(), train.channels()),
        (32, 32, 3)
    );
    for number in 1..=5 {
        check_slope(&train, 10_000 * (usize::from(number) - 1), number);
    }
    check_slope(&test, 0, 6);
    assert_eq!(train.class_names()[6], "frog");
}

#[test]
fn the_archive_is_read_as_it_comes() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join(ARCHIVE), gzip(&archive(&FILES))).unwrap();
    let splits = load(&DataSpec::Cifar10, Some(folder.path())).unwrap();
    let (train, test) = (splits.train, splits.test.unwrap());
    assert_eq!((train.len(), test.len()), (50_000, 10_000));
    check_slope(&train, 40_000, 5);
    check_slope(&test, 0, 6);
}

#[test]
fn batches_of_a_wrong_size_or_label_are_refused() {
    let records = "10000 records of 3073 bytes, 30730000";
    check_batch(
        |path| {
            write_batch(path, 1, 0);
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(BATCH - 3073).unwrap();
        },
        &format!(
            "byte 30726927: expected {records}, found the end of the file after 30726927 of 30730000 bytes"
        ),
    );
    check_batch(
        |path| {
            write_batch(path, 1, 0);
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(BATCH + 1).unwrap();
        },
        &format!("byte 30730000: expected the end of the file after {records}, found more bytes"),
    );
    check_batch(
        |path| {
            let mut file = File::create(path).unwrap();
            file.write_all(&slope(9, 0)).unwrap();
            file.write_all(&slope(10, 0)).unwrap();
            file.set_len(BATCH).unwrap();
        },
        "byte 3073: expected the label of image 1, less than 10, found 10",
    );
}

#[test]
fn a_missing_batch_is_named() {
    let folder = TempDir::new().unwrap();
    write_all(folder.path());
    std::fs::remove_file(folder.path().join(FILES[2])).unwrap();
    let place = folder.path().display();
    let message = load(&DataSpec::Cifar10, Some(folder.path())).unwrap_err();
    assert_eq!(
        message.to_string(),
        format!(
            "{place}: `data_batch_3.bin` expected beside {place}/data_batch_1.bin, which is there: \
             the data set `cifar10` has six files"
        )
    );
    let path = folder.path().join(ARCHIVE);
    std::fs::write(&path, gzip(&archive(&FILES[..1]))).unwrap();
    let message = read_archive(&path).unwrap_err().to_string();
    assert!(message.contains("`data_batch_2.bin` expected"), "{message}");
}

#[test]
fn a_damaged_archive_is_refused() {
    let folder = TempDir::new().unwrap();
    let path: PathBuf = folder.path().join(ARCHIVE);
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let message = read_archive(&path).unwrap_err().to_string();
        message.replace(&path.display().to_string(), "ARCHIVE")
    };
    let whole = archive(&FILES[..1]);
    let unpacked = "of the unpacked content";
    assert_eq!(
        refused(&gzip(&whole[..600])),
        format!(
            "ARCHIVE: byte 600 {unpacked}: expected the 6 bytes of cifar-10-batches-bin/readme.html, \
             found the end of the file after 88 of 512 bytes"
        )
    );
    let mut flipped = whole.clone();
    flipped[1024] ^= 1;
    assert_eq!(
        refused(&gzip(&flipped)),
        format!(
            "ARCHIVE: byte 1024 {unpacked}: expected a tar header with its checksum, found other bytes"
        )
    );
    let packed = gzip(&whole);
    assert!(refused(&packed[..packed.len() - 20]).starts_with("ARCHIVE: byte "));
    assert!(refused(b"<html>not found").contains("expected a tar header of 512 bytes"));
}

#[test]
fn what_is_nowhere_is_said_with_the_command_that_fetches_it() {
    let folder = TempDir::new().unwrap();
    let message = load(&DataSpec::Cifar10, Some(folder.path())).unwrap_err();
    let place = folder.path().display();
    assert_eq!(
        message.to_string(),
        format!(
            "data set `cifar10` not found; looked in {place}/cifar10, {place}, /usr/share/datasets/cifar10\n\
             to get it (170 MB):\n  cargo xtask data cifar10 --data-dir {place}\n\
             or put into {place}/cifar10 cifar-10-binary.tar.gz, packed or unpacked (the binary version, not the one for \
             Python), or the parquet files of the Hub's uoft-cs/cifar10"
        )
    );
}

/// The whole of CIFAR-10, where it is: one image of the training part, and it is a frog, begins as this one does.
///
/// Its first two pixels, and the first of its second row, as `data_batch_1` of the version for Python has them at
/// `data[0].reshape(3, 32, 32)[:, row, column]`. A few shades are allowed, and any place, for copies that went through
/// JPEG. Read with rows and columns swapped, no image begins so.
#[test]
fn whole_cifar10_is_read_upright() {
    let Ok(splits) = load(&DataSpec::Cifar10, None) else {
        println!("cifar10 is not in $DDPM_DATA: nothing to read");
        return;
    };
    let (train, test) = (splits.train, splits.test.unwrap());
    for part in [&train, &test] {
        let mut counts = [0; 10];
        for &label in part.labels().unwrap() {
            counts[label as usize] += 1;
        }
        assert_eq!(counts, [part.len() / 10; 10]);
    }
    let frog = [(0, [59, 62, 63]), (3, [43, 46, 45]), (96, [16, 20, 20])];
    let alike = |index: &usize| {
        let pixels = train.image(*index);
        frog.iter().all(|(start, pixel)| {
            let found = pixels[*start..].iter().zip(pixel);
            found
                .into_iter()
                .all(|(a, b): (&u8, &u8)| a.abs_diff(*b) <= 6)
        })
    };
    let found: Vec<usize> = (0..train.len()).filter(alike).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(train.labels().unwrap()[found[0]], 6);
}
