//! Named data sets: where they are found, and what is said when they cannot be used.

use std::path::Path;

use candle_core::Device;
use ddpm_data::{DataSpec, Dataset, load, places};
use ddpm_image::PixelMap;
use tempfile::TempDir;

use crate::{gzip, idx};

/// Writes four small files in MNIST's format: `n` training images, 2 test images, one grey value a part.
fn write_mnist(folder: &Path, n: u32, value: u8) {
    std::fs::create_dir_all(folder).unwrap();
    let write = |file: &str, bytes: Vec<u8>| std::fs::write(folder.join(file), bytes).unwrap();
    write(
        "train-images-idx3-ubyte",
        idx(0x803, &[n, 28, 28], &vec![value; n as usize * 784]),
    );
    write(
        "train-labels-idx1-ubyte.gz",
        gzip(&idx(0x801, &[n], &vec![4; n as usize])),
    );
    write(
        "t10k-images.idx3-ubyte",
        idx(0x803, &[2, 28, 28], &[9; 2 * 784]),
    );
    write("t10k-labels-idx1-ubyte", idx(0x801, &[2], &[1, 2]));
}

fn mnist() -> DataSpec {
    "mnist".parse().unwrap()
}

#[track_caller]
fn check_refused(folder: &Path, expected: &str) {
    let message = load(&mnist(), Some(folder)).unwrap_err().to_string();
    assert_eq!(message, expected);
}

#[test]
fn the_digits_are_inside() {
    let splits = load(&DataSpec::Digits, Some(Path::new("/nowhere"))).unwrap();
    let (train, test) = (splits.train, splits.test.unwrap());
    assert_eq!((train.len(), test.len()), (1497, 300));
    for part in [&train, &test] {
        assert_eq!((part.height(), part.width(), part.channels()), (8, 8, 1));
        let labels = part.labels().unwrap();
        assert!((0..10).all(|class| labels.contains(&class)));
        let pixels: Vec<u8> = (0..part.len())
            .flat_map(|i| part.image(i).to_vec())
            .collect();
        assert_eq!(
            (pixels.iter().min(), pixels.iter().max()),
            (Some(&0), Some(&255))
        );
    }
    // The first image of the test part is scikit-learn's first, a nought: 0 0 5 13 9 1 0 0 of 16 in its first row.
    // python: [round(v * 255 / 16) for v in (0, 0, 5, 13, 9, 1, 0, 0)]
    assert_eq!(test.image(0)[..8], [0, 0, 80, 207, 143, 16, 0, 0]);
    assert_eq!(test.labels().unwrap()[0], 0);
}

/// The recipe: sha256 of struct.pack("<4Q", n, h, w, c) + pixels + b"\1" + labels as "<u4", in Python's hashlib.
#[test]
fn content_has_one_sha256_wherever_it_lies() {
    let splits = load(&DataSpec::Digits, None).unwrap();
    assert_eq!(
        splits.train.sha256(),
        "0d403f914ad0506067f166e4839dac05d20a03f3b7319ff366d6f9082ce57423"
    );
    assert_eq!(
        splits.test.unwrap().sha256(),
        "33bb69bafb549c9ad23958b54a9c570fd87b5093719bdbb3e3c1590185cdb664"
    );

    let make = |name: &str, pixels: &[u8], size, labels| {
        Dataset::new(name, pixels.to_vec(), size, labels, vec![]).unwrap()
    };
    let a = make("a", &[1, 2, 3, 4, 5, 6], (1, 3, 2), None);
    assert_eq!(
        a.sha256(),
        make("b", &[1, 2, 3, 4, 5, 6], (1, 3, 2), None).sha256()
    );
    assert_ne!(
        a.sha256(),
        make("a", &[1, 2, 3, 4, 5, 6], (1, 2, 3), None).sha256()
    );
    assert_ne!(
        a.sha256(),
        make("a", &[1, 2, 3, 4, 5, 6], (1, 3, 1), None).sha256()
    );
    assert_ne!(
        a.sha256(),
        make("a", &[1, 2, 3, 4, 5, 6], (1, 3, 2), Some(vec![0])).sha256()
    );
}

#[test]
fn both_the_folder_of_its_name_and_the_folder_itself_are_looked_at() {
    let folder = TempDir::new().unwrap();
    write_mnist(folder.path(), 3, 1);
    let splits = load(&mnist(), Some(folder.path())).unwrap();
    assert_eq!(splits.origin, folder.path().display().to_string());
    assert_eq!(
        (splits.train.len(), &*splits.train.image(2)),
        (3, [1; 784].as_slice())
    );
    assert_eq!(
        (splits.train.name(), splits.train.labels()),
        ("mnist train", Some([4; 3].as_slice()))
    );
    let test = splits.test.unwrap();
    assert_eq!(
        (test.len(), test.labels(), &*test.image(1)),
        (2, Some([1, 2].as_slice()), [9; 784].as_slice())
    );

    write_mnist(&folder.path().join("mnist"), 5, 2);
    let splits = load(&mnist(), Some(folder.path())).unwrap();
    assert_eq!(
        (splits.train.len(), &*splits.train.image(4)),
        (5, [2; 784].as_slice())
    );
    assert_eq!(
        places(&mnist(), Some(folder.path())),
        [
            folder.path().join("mnist"),
            folder.path().to_owned(),
            "/usr/share/datasets/mnist".into()
        ]
    );
}

#[test]
fn a_missing_file_of_the_four_is_named() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("mnist");
    write_mnist(&place, 3, 1);
    std::fs::remove_file(place.join("t10k-labels-idx1-ubyte")).unwrap();
    let (place, file) = (place.display(), "t10k-labels-idx1-ubyte");
    check_refused(
        folder.path(),
        &format!(
            "{place}: `{file}` or `{file}.gz` expected beside {place}/train-images-idx3-ubyte, which is there: \
         the data set `mnist` has four files"
        ),
    );
}

#[test]
fn counts_that_differ_are_both_named() {
    let folder = TempDir::new().unwrap();
    write_mnist(folder.path(), 3, 1);
    let labels = folder.path().join("train-labels-idx1-ubyte.gz");
    std::fs::write(&labels, idx(0x801, &[4], &[0; 4])).unwrap();
    let place = folder.path().display();
    check_refused(
        folder.path(),
        &format!(
            "data set `mnist`: {place}/train-images-idx3-ubyte has 3 images, {place}/train-labels-idx1-ubyte.gz has 4 labels, \
         expected as many"
        ),
    );
}

#[test]
fn images_of_another_size_and_labels_out_of_range_are_refused() {
    let folder = TempDir::new().unwrap();
    write_mnist(folder.path(), 3, 1);
    let place = folder.path().display();
    let labels = folder.path().join("train-labels-idx1-ubyte.gz");
    std::fs::write(&labels, idx(0x801, &[3], &[0, 10, 0])).unwrap();
    let expected = "byte 9: expected a label less than 10, found 10";
    check_refused(folder.path(), &format!("{}: {expected}", labels.display()));
    std::fs::write(&labels, idx(0x801, &[3], &[0; 3])).unwrap();
    std::fs::write(
        folder.path().join("train-images-idx3-ubyte"),
        idx(0x803, &[3, 32, 32], &[0; 3072]),
    )
    .unwrap();
    check_refused(
        folder.path(),
        &format!("{place}/train-images-idx3-ubyte: byte 8: expected 28 rows, found 32"),
    );
}

#[test]
fn another_data_set_under_the_same_file_names_is_noticed() {
    let folder = TempDir::new().unwrap();
    write_mnist(folder.path(), 10, 1);
    let labels = folder.path().join("train-labels-idx1-ubyte.gz");
    std::fs::write(
        &labels,
        gzip(&idx(0x801, &[10], &[9, 0, 0, 3, 0, 2, 7, 2, 5, 5])),
    )
    .unwrap();
    check_refused(
        folder.path(),
        &format!(
            "{}: these are the files of `fashion-mnist`, expected `mnist`; put each into a folder of its name",
            labels.display()
        ),
    );
}

#[test]
fn other_names_say_what_can_be_read() {
    let refused = |name: &str| name.parse::<DataSpec>().unwrap_err().to_string();
    let known = "this version reads digits, mnist, fashion-mnist, cifar10, tiny-imagenet, \
                 folder:PATH, parquet:PATH and hub:OWNER/NAME";
    for name in ["", "Digits", "fashion"] {
        assert_eq!(
            refused(name),
            format!("data set `{name}`: unknown; {known}")
        );
    }
    for text in [
        "folder:a b",
        "parquet:a/*.parquet",
        "hub:uoft-cs/cifar10",
        "hub:a/b/c",
    ] {
        assert_eq!(text.parse::<DataSpec>().unwrap().to_string(), text);
    }
    for name in ["hub:", "hub:cifar10", "hub:a/../b"] {
        assert!(
            refused(name).contains("expected hub:OWNER/NAME") || refused(name).contains("no path")
        );
    }
    for spec in DataSpec::ALL {
        assert_eq!(spec.to_string().parse::<DataSpec>().unwrap(), spec);
        let names = if spec == DataSpec::TinyImagenet {
            0
        } else {
            10
        };
        assert_eq!(spec.class_names().len(), names);
    }
}

#[test]
fn a_data_set_that_does_not_fit_together_cannot_be_made() {
    let refused = |pixels: usize, size, labels: Option<Vec<u32>>, classes: usize| {
        let names = vec![String::from("x"); classes];
        Dataset::new("mine", vec![0; pixels], size, labels, names)
            .unwrap_err()
            .to_string()
    };
    let whole = "expected one or more whole images of";
    assert_eq!(
        refused(25, (4, 3, 2), None, 0),
        format!("data set `mine`: 25 bytes of pixels, {whole} 4x3x2")
    );
    assert_eq!(
        refused(0, (4, 3, 2), None, 0),
        format!("data set `mine`: 0 bytes of pixels, {whole} 4x3x2")
    );
    assert_eq!(
        refused(24, (4, 0, 2), None, 0),
        format!("data set `mine`: 24 bytes of pixels, {whole} 4x0x2")
    );
    let labels = Some(vec![0]);
    assert_eq!(
        refused(48, (4, 3, 2), labels, 0),
        "data set `mine`: 2 images but 1 labels, expected as many"
    );
    let labels = Some(vec![1, 2]);
    assert_eq!(
        refused(48, (4, 3, 2), labels, 2),
        "data set `mine`: label 2 of image 1, expected less than 2"
    );
}

#[test]
fn chosen_images_become_a_tensor_and_others_are_refused() {
    let pixels = vec![0, 255, 0, 255, 255, 0, 255, 0, 0, 0, 0, 0];
    let data = Dataset::new("mine", pixels, (1, 2, 2), None, vec![]).unwrap();
    let x = data
        .tensor(&[2, 0], &PixelMap::MinusOneToOne, &Device::Cpu)
        .unwrap();
    assert_eq!(x.dims(), [2, 2, 1, 2]);
    // Image 0: channel 0 is 0 0, channel 1 is 255 255.
    assert_eq!(
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        [-1., -1., -1., -1., -1., -1., 1., 1.]
    );
    let message = data
        .tensor(&[0, 3], &PixelMap::MinusOneToOne, &Device::Cpu)
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "data set `mine`: image 3 asked for, expected less than 3"
    );
}

/// The whole of Fashion-MNIST, where Debian's package is installed.
#[test]
fn whole_fashion_mnist_is_read() {
    if !Path::new("/usr/share/datasets/fashion-mnist").is_dir() {
        println!("dataset-fashion-mnist is not installed: nothing to read");
        return;
    }
    let folder = TempDir::new().unwrap();
    let splits = load(&DataSpec::FashionMnist, Some(folder.path())).unwrap();
    assert_eq!(splits.origin, "/usr/share/datasets/fashion-mnist");
    assert_eq!(
        (splits.train.len(), splits.test.unwrap().len()),
        (60_000, 10_000)
    );
    assert_eq!(
        splits.train.class_names()[splits.train.labels().unwrap()[0] as usize],
        "Ankle boot"
    );
}
