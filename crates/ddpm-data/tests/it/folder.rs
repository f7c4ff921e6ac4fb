//! Folders of pictures: every format and colour kind, order, classes, sizes, and what is said of those that cannot be read.

use std::path::{Path, PathBuf};

use ddpm_data::{Color, Crop, DataSpec, Dataset, Keep, Pictures, Splits, load_with, resize};
use tempfile::TempDir;

/// The pictures that `tests/golden/pictures.py` makes.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures")
}

/// Copies pictures into a new folder under other names.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (from, to) in files {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(golden().join(from), to).unwrap();
    }
    folder
}

fn read(folder: &Path, pictures: &Pictures) -> ddpm_data::Result<Splits> {
    let spec: DataSpec = format!("folder:{}", folder.display()).parse().unwrap();
    load_with(&spec, None, pictures, &Keep::default())
}

/// What is said of a folder, its path left out.
fn refused(folder: &TempDir, pictures: &Pictures) -> String {
    let message = read(folder.path(), pictures).unwrap_err().to_string();
    message.replace(&folder.path().display().to_string(), "HERE")
}

/// All images, one after the other.
fn pixels(data: &Dataset) -> Vec<u8> {
    (0..data.len())
        .flat_map(|i| data.image(i).to_vec())
        .collect()
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let pairs = hexadecimal.as_bytes().chunks_exact(2);
    let text = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
    text.map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// The recipe is `tests/golden/pictures.py`.
#[test]
fn every_format_and_colour_kind_has_pillows_values() {
    let background = [10, 200, 30];
    let mut formats = 0;
    for line in include_str!("../golden/pictures.txt").lines().skip(1) {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, size, tolerance, values] = words[..] else {
            panic!("{line}");
        };
        let tolerance: u8 = tolerance.parse().unwrap();
        let folder = folder(&[(name, name)]);
        let rgb = Pictures {
            background,
            ..Pictures::default()
        };
        let train = read(folder.path(), &rgb).unwrap().train;
        assert_eq!(
            format!("{}x{}", train.height(), train.width()),
            size,
            "{name}"
        );
        let expected = bytes(values);
        assert_eq!(pixels(&train).len(), expected.len());
        let apart = pixels(&train)
            .iter()
            .zip(&expected)
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(
            apart <= Some(tolerance),
            "{name}: {apart:?} apart, {:?}",
            pixels(&train)
        );
        let color = Color::Grey;
        let one = read(folder.path(), &Pictures { color, ..rgb })
            .unwrap()
            .train;
        assert_eq!(one.channels(), 1);
        for (grey, rgb) in pixels(&one).iter().zip(pixels(&train).chunks_exact(3)) {
            let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(f64::from);
            assert!(
                (f64::from(*grey) - (0.299 * r + 0.587 * g + 0.114 * b)).abs() < 0.51,
                "{name}"
            );
        }
        formats += 1;
    }
    assert_eq!(formats, 20);
}

#[test]
fn files_are_in_order_of_path_and_sub_folders_are_classes() {
    let folder = folder(&[
        ("rgb.png", "zebra/1.png"),
        ("grey.png", "zebra/deeper/0.PNG"),
        ("rgba.png", "ant/b.png"),
        ("palette.png", "ant/a.png"),
    ]);
    std::fs::write(folder.path().join("notes.txt"), "not a picture").unwrap();
    std::fs::write(folder.path().join("ant/._a.png"), "hidden").unwrap();
    let splits = read(folder.path(), &Pictures::default()).unwrap();
    assert_eq!(splits.train.class_names(), ["ant", "zebra"]);
    assert_eq!(splits.train.labels(), Some([0, 0, 1, 1].as_slice()));
    // a.png is the palette: red, then green.
    assert_eq!(splits.train.image(0)[..6], [255, 0, 0, 0, 255, 0]);
    // 1.png before deeper/0.PNG: the second pixel of the one is (0, 50, 40), of the other grey 40.
    assert_eq!(splits.train.image(2)[3..6], [0, 50, 40]);
    assert_eq!(splits.train.image(3)[3..6], [40, 40, 40]);
    assert!(splits.test.is_none());
    assert!(splits.skipped.is_empty());
}

#[test]
fn of_twenty_pictures_the_last_is_held_out() {
    let names: Vec<String> = (0..45).map(|i| format!("{i:02}.png")).collect();
    let mut files: Vec<(&str, &str)> = names
        .iter()
        .map(|name| ("grey.png", name.as_str()))
        .collect();
    files[19].0 = "rgb.png";
    let folder = folder(&files);
    let splits = read(folder.path(), &Pictures::default()).unwrap();
    let test = splits.test.unwrap();
    assert_eq!((splits.train.len(), test.len()), (43, 2));
    assert_eq!(
        (test.image(0)[3..6].to_vec(), test.labels()),
        (vec![0, 50, 40], None)
    );
}

#[test]
fn pictures_of_any_size_become_one() {
    let folder = folder(&[
        ("photo.jpg", "0.jpg"),
        ("turned.JPEG", "1.jpg"),
        ("rgb.png", "2.png"),
    ]);
    let size = Some((4, 4));
    assert_eq!(
        refused(&folder, &Pictures::default()),
        "HERE: has pictures of different sizes: HERE/0.jpg is 8x16, HERE/1.jpg is 16x8 (height x width); \
         expected one size: say which they are resized to (data.size)"
    );
    let splits = read(
        folder.path(),
        &Pictures {
            size,
            ..Pictures::default()
        },
    )
    .unwrap();
    assert_eq!(
        (
            splits.train.len(),
            splits.train.height(),
            splits.train.width()
        ),
        (3, 4, 4)
    );
    // Cropped, the middle eight columns of 0.jpg are left: green begins at 4 * 10. Stretched, all sixteen are.
    assert!(splits.train.image(0)[1].abs_diff(45) <= 3);
    let crop = Crop::Stretch;
    let stretched = read(
        folder.path(),
        &Pictures {
            size,
            crop,
            ..Pictures::default()
        },
    )
    .unwrap();
    assert!(stretched.train.image(0)[1].abs_diff(15) <= 3);
    // 5x6 to 4x4 covers with 4x4 (4.8 columns, rounded down), so both ways are Pillow's resize.
    let whole = folder_of_one("rgb.png");
    let one = read(whole.path(), &Pictures::default()).unwrap().train;
    let resized = resize::resize(&one.image(0), (5, 6, 3), (4, 4), resize::Filter::Area).unwrap();
    assert_eq!(*splits.train.image(2), resized);
    assert_eq!(*stretched.train.image(2), resized);
}

fn folder_of_one(file: &str) -> TempDir {
    folder(&[(file, file)])
}

#[test]
fn pictures_that_cannot_be_read_are_named_and_skipped_only_when_asked() {
    let folder = folder(&[("rgb.png", "0.png"), ("rgb.bmp", "3.bmp")]);
    std::fs::write(folder.path().join("1.png"), "<html>").unwrap();
    let cut = std::fs::read(golden().join("photo.jpg")).unwrap();
    std::fs::write(folder.path().join("2.jpg"), &cut[..20]).unwrap();
    let message = refused(&folder, &Pictures::default());
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(
        lines[0],
        "HERE: 2 of 4 pictures cannot be read; remove them, or allow that they are skipped (data.skip_unreadable=true)"
    );
    assert!(lines[1].starts_with("  HERE/1.png: "), "{message}");
    assert!(lines[2].starts_with("  HERE/2.jpg: "), "{message}");
    let skip_unreadable = true;
    let skip = Pictures {
        skip_unreadable,
        ..Pictures::default()
    };
    let splits = read(folder.path(), &skip).unwrap();
    assert_eq!(splits.train.len(), 2);
    let skipped: Vec<_> = splits
        .skipped
        .iter()
        .map(|skipped| skipped.path.clone())
        .collect();
    assert_eq!(
        skipped,
        ["1.png", "2.jpg"].map(|file| folder.path().join(file))
    );

    std::fs::remove_file(folder.path().join("0.png")).unwrap();
    std::fs::remove_file(folder.path().join("3.bmp")).unwrap();
    assert!(refused(&folder, &skip).starts_with("HERE: 2 of 2 pictures cannot be read"));
    for i in 0..30 {
        std::fs::write(folder.path().join(format!("x{i}.gif")), "").unwrap();
    }
    assert!(refused(&folder, &Pictures::default()).ends_with("\n  and 12 more"));
}

#[test]
fn folders_that_are_no_data_set_are_refused() {
    let empty = TempDir::new().unwrap();
    let plain = Pictures::default();
    assert_eq!(
        refused(&empty, &plain),
        "HERE: holds no pictures, expected files named *.png *.jpg *.jpeg *.webp *.gif *.bmp *.tif *.tiff"
    );
    let mixed = folder(&[("rgb.png", "a.png"), ("rgb.png", "cats/b.png")]);
    assert_eq!(
        refused(&mixed, &plain),
        "HERE: has pictures with a class (HERE/cats/b.png) and without one (HERE/a.png), \
         expected all in sub-folders or none"
    );
    let absent = read(&empty.path().join("absent"), &plain)
        .unwrap_err()
        .to_string();
    assert!(
        absent.ends_with("absent: cannot open: No such file or directory (os error 2)"),
        "{absent}"
    );
    let size = Some((0, 8));
    let one = folder_of_one("rgb.png");
    assert!(refused(&one, &Pictures { size, ..plain }).starts_with(
        "pictures cannot be made so: to cover 0x8 and then to crop to 0x8: expected sides of 1 and more"
    ));
    let message = "folder:".parse::<DataSpec>().unwrap_err().to_string();
    assert!(
        message.starts_with("data set `folder:`: no path given; "),
        "{message}"
    );
}
