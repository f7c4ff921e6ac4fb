//! Damaged IDX files: each error names file, byte and expectation; no damage makes the reader panic or take much memory.

use std::path::PathBuf;

use ddpm_data::idx::{Images, read_images, read_labels};
use tempfile::TempDir;

use crate::{gzip, idx};

/// Two images of 3 rows and 4 columns.
fn good() -> Vec<u8> {
    idx(
        0x803,
        &[2, 3, 4],
        &std::array::from_fn::<u8, 24, _>(|i| i as u8),
    )
}

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// That reading these bytes as images of 3x4 says this, after the file's name.
#[track_caller]
fn check_images(bytes: &[u8], expected: &str) {
    let (_folder, path) = written(bytes);
    let message = read_images(&path, Some((3, 4))).unwrap_err().to_string();
    assert_eq!(message, format!("{}: {expected}", path.display()));
}

/// That reading these bytes as labels of 10 classes says this, after the file's name.
#[track_caller]
fn check_labels(bytes: &[u8], expected: &str) {
    let (_folder, path) = written(bytes);
    let message = read_labels(&path, 10).unwrap_err().to_string();
    assert_eq!(message, format!("{}: {expected}", path.display()));
}

#[test]
fn whole_files_are_read_gzipped_or_not() {
    let expected = Images {
        n: 2,
        height: 3,
        width: 4,
        pixels: (0..24).collect(),
    };
    let labels = idx(0x801, &[3], &[7, 0, 9]);
    for pack in [<[u8]>::to_vec, gzip] {
        let (_folder, path) = written(&pack(&good()));
        assert_eq!(read_images(&path, Some((3, 4))).unwrap(), expected);
        assert_eq!(read_images(&path, None).unwrap(), expected);
        let (_folder, path) = written(&pack(&labels));
        assert_eq!(read_labels(&path, 10).unwrap(), [7, 0, 9]);
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("absent");
    let message = read_images(&path, None).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "{}: cannot open: No such file or directory (os error 2)",
            path.display()
        )
    );
}

#[test]
fn a_folder_in_place_of_a_file_is_named() {
    let folder = TempDir::new().unwrap();
    let message = read_images(folder.path(), None).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("{}: byte 0: ", folder.path().display())),
        "{message}"
    );
}

#[test]
fn a_truncated_file_says_where_it_ends() {
    let all = "expected 2 images of 3x4, 24 bytes, found the end of the file after";
    check_images(
        &[],
        "byte 0: expected an IDX magic number, found the end of the file after 0 of 4 bytes",
    );
    check_images(
        &good()[..3],
        "byte 3: expected an IDX magic number, found the end of the file after 3 of 4 bytes",
    );
    check_images(
        &good()[..10],
        "byte 10: expected 3 rows, found the end of the file after 2 of 4 bytes",
    );
    check_images(&good()[..16], &format!("byte 16: {all} 0 of 24 bytes"));
    check_images(&good()[..39], &format!("byte 39: {all} 23 of 24 bytes"));
    check_images(
        &gzip(&good()[..39]),
        &format!("byte 39 of the unpacked content: {all} 23 of 24 bytes"),
    );
    let expected = "byte 10: expected 3 labels, found the end of the file after 2 of 3 bytes";
    check_labels(&idx(0x801, &[3], &[1, 2]), expected);
}

#[test]
fn a_truncated_or_corrupt_gzip_file_says_so() {
    let packed = gzip(&good());
    let fetch = "fetch the file again";
    check_images(
        &packed[..5],
        &format!("byte 0 of the unpacked content: unexpected end of file; {fetch}"),
    );
    // The checksum, 8 bytes before the end, is read after the last value.
    let whole = "byte 40 of the unpacked content";
    check_images(
        &packed[..packed.len() - 1],
        &format!("{whole}: unexpected end of file; {fetch}"),
    );
    let mut corrupt = packed.clone();
    let place = packed.len() - 8;
    corrupt[place] ^= 1;
    check_images(
        &corrupt,
        &format!("{whole}: corrupt gzip stream does not have a matching checksum; {fetch}"),
    );
    check_images(
        &[packed, b"a tail that is no gzip".to_vec()].concat(),
        &format!("{whole}: invalid gzip header; {fetch}"),
    );
}

#[test]
fn a_wrong_magic_number_says_what_it_is() {
    let images = "byte 0: expected the magic number 0x00000803 of an IDX file of images, found";
    check_images(
        &idx(0x801, &[2], &[1, 2]),
        &format!("{images} 0x00000801 (a file of labels)"),
    );
    check_images(
        b"<!DOCTYPE html>",
        &format!("{images} 0x3c21444f (a web page, by its first character)"),
    );
    check_images(
        &gzip(&idx(0x0d03, &[1], &[])),
        &format!(
            "byte 0 of the unpacked content{} 0x00000d03",
            images.strip_prefix("byte 0").unwrap()
        ),
    );
    let labels = "byte 0: expected the magic number 0x00000801 of an IDX file of labels, found";
    check_labels(&good(), &format!("{labels} 0x00000803 (a file of images)"));
}

#[test]
fn wrong_dimensions_say_which() {
    check_images(
        &idx(0x803, &[0, 3, 4], &[]),
        "byte 4: expected one image or more, found 0",
    );
    check_images(
        &idx(0x803, &[1, 4, 4], &[0; 16]),
        "byte 8: expected 3 rows, found 4",
    );
    check_images(
        &idx(0x803, &[1, 3, 3], &[0; 9]),
        "byte 12: expected 4 columns, found 3",
    );
    check_labels(
        &idx(0x801, &[0], &[]),
        "byte 4: expected one label or more, found 0",
    );
    let (_folder, path) = written(&idx(0x803, &[1, 0, 4], &[]));
    let message = read_images(&path, None).unwrap_err().to_string();
    assert!(
        message.ends_with("byte 8: expected one row or more, found 0"),
        "{message}"
    );
}

#[test]
fn bytes_after_the_end_are_refused() {
    let expected = "expected the end of the file after 2 images of 3x4, 24 bytes, found more bytes";
    let longer = [good(), vec![0]].concat();
    check_images(&longer, &format!("byte 40: {expected}"));
    check_images(
        &gzip(&longer),
        &format!("byte 40 of the unpacked content: {expected}"),
    );
}

#[test]
fn a_label_out_of_range_is_named() {
    check_labels(
        &idx(0x801, &[4], &[1, 9, 10, 200]),
        "byte 10: expected a label less than 10, found 10",
    );
}

/// The header promises 2^96 bytes, then 4 GiB; 3 are there. Nothing near that may be allocated.
#[test]
fn a_promise_beyond_memory_costs_no_memory() {
    let (_folder, path) = written(&idx(0x803, &[u32::MAX; 3], &[1, 2, 3]));
    let message = read_images(&path, None).unwrap_err().to_string();
    let bytes = u128::from(u32::MAX).pow(3);
    let promised = format!(
        "byte 19: expected 4294967295 images of 4294967295x4294967295, {bytes} bytes, found the end"
    );
    assert!(message.contains(&promised), "{message}");
    let (_folder, path) = written(&idx(0x801, &[u32::MAX], &[1, 2, 3]));
    let message = read_labels(&path, 10).unwrap_err().to_string();
    assert!(
        message.contains("byte 11: expected 4294967295 labels, found the end of the file after 3"),
        "{message}"
    );
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(
            kib < 1 << 20,
            "the tests took {kib} KiB at their peak, expected less than 1 GiB"
        );
    }
}

/// 4,000 files with bytes changed, cut out, put in or cut off: either read, with the sizes they state, or refused.
#[test]
fn no_mutation_makes_the_reader_panic() {
    let labels = idx(0x801, &[24], &[3; 24]);
    let originals = [good(), gzip(&good()), labels.clone(), gzip(&labels)];
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("mutated");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let (mut read, mut refused) = (0, 0);
    for round in 0..4000 {
        let mut bytes = originals[round % originals.len()].clone();
        for _ in 0..=below(3) {
            let place = below(bytes.len().max(1));
            match below(4) {
                _ if bytes.is_empty() => bytes.push(below(256) as u8),
                0 => bytes[place] = below(256) as u8,
                1 => bytes.truncate(place),
                2 => bytes.insert(place, below(256) as u8),
                _ => drop(bytes.remove(place)),
            }
        }
        // A new file each time: some file systems wait for the disk when an old one is written over.
        std::fs::remove_file(&path).ok();
        std::fs::write(&path, &bytes).unwrap();
        let of_images = read_images(&path, None);
        if let Ok(images) = &of_images {
            assert_eq!(images.pixels.len(), images.n * images.height * images.width);
        }
        for error in [
            of_images.err().map(|e| e.to_string()),
            read_labels(&path, 10).err().map(|e| e.to_string()),
        ] {
            match error {
                None => read += 1,
                Some(message) => {
                    refused += 1;
                    assert!(
                        message.starts_with(&format!("{}: byte ", path.display())),
                        "{message}"
                    );
                }
            }
        }
    }
    // Changed pixels are read; anything else is noticed.
    assert!(
        read > 100 && refused > 4000,
        "{read} read, {refused} refused"
    );
}
