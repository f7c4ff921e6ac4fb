//! Odd pictures: each is read as its format says, or refused in words that say what is odd about it.

use std::path::{Path, PathBuf};

use ddpm_data::{Crop, DataSpec, Keep, Pictures, Splits, load_with};
use tempfile::TempDir;

/// The pictures that `tests/golden/odd.py` and `tests/golden/pictures.py` make.
fn golden(file: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let odd = folder.join("odd").join(file);
    std::fs::read(odd)
        .unwrap_or_else(|_| std::fs::read(folder.join("pictures").join(file)).unwrap())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn read(folder: &Path, pictures: &Pictures) -> ddpm_data::Result<Splits> {
    load_with(
        &DataSpec::Folder(folder.to_owned()),
        None,
        pictures,
        &Keep::default(),
    )
}

/// The one image that these bytes, in a file of this name, are.
fn image(name: &str, bytes: &[u8]) -> (usize, usize, Vec<u8>) {
    let folder = TempDir::new().unwrap();
    write(folder.path(), name, bytes);
    let train = read(folder.path(), &Pictures::default()).unwrap().train;
    (train.height(), train.width(), train.image(0).to_vec())
}

/// What is said of the one picture in a folder.
fn refused(name: &str, bytes: &[u8], pictures: &Pictures) -> String {
    let folder = TempDir::new().unwrap();
    let path = write(folder.path(), name, bytes);
    let message = read(folder.path(), pictures).unwrap_err().to_string();
    let shown = path.display().to_string().replace('\n', "\\n");
    let why = message.split_once(&format!("\n  {shown}: "));
    why.unwrap_or_else(|| panic!("{message}")).1.to_owned()
}

#[test]
fn the_smallest_picture_and_the_first_of_a_film() {
    assert_eq!(image("one.png", &golden("one.png")), (1, 1, vec![7, 8, 9]));
    let (height, width, pixels) = image("film.gif", &golden("animated.gif"));
    assert_eq!((height, width, pixels), (4, 5, [255, 0, 0].repeat(20)));
}

#[test]
fn a_wrong_ending_changes_nothing() {
    assert_eq!(
        image("a.jpg", &golden("rgb.png")),
        image("a.png", &golden("rgb.png"))
    );
    assert_eq!(
        image("a.tif", &golden("photo.jpg")),
        image("a.jpeg", &golden("photo.jpg"))
    );
}

#[test]
fn names_may_be_in_any_script_and_folders_deep() {
    let folder = TempDir::new().unwrap();
    for name in ["кошки/зима/1.png", "猫/😀.png", "été/x y.png"] {
        write(folder.path(), name, &golden("one.png"));
    }
    let train = read(folder.path(), &Pictures::default()).unwrap().train;
    assert_eq!(train.class_names(), ["été", "кошки", "猫"]);
    assert_eq!(train.labels(), Some([0, 1, 2].as_slice()));
}

#[test]
fn what_is_no_picture_is_told_what_it_should_be() {
    let plain = Pictures::default();
    assert_eq!(refused("zero.png", b"", &plain), "is empty");
    assert_eq!(
        refused("text.png", b"hello, I am text", &plain),
        "does not begin as a PNG, JPEG, WebP, GIF, BMP or TIFF, whatever its name says"
    );
    let said = refused("float.tif", &golden("float.tif"), &plain);
    assert!(
        said.starts_with(
            "is of a kind that is not read: save it in grey or RGB with 8 or 16 bits ("
        ),
        "{said}"
    );
    let said = refused("a\nb.png", b"hello", &plain);
    assert!(said.starts_with("does not begin"), "{said}");
}

/// Links to pictures and folders are followed; what has no end or no bytes is named, and nothing is waited for.
#[cfg(unix)]
#[test]
fn links_that_lead_back_are_passed_over_and_pipes_are_not_read() {
    use std::os::unix::fs::symlink;
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    write(path, "ant/deeper/1.png", &golden("one.png"));
    write(path, "zebra/1.png", &golden("one.png"));
    symlink("../..", path.join("ant/deeper/back")).unwrap();
    symlink(".", path.join("ant/itself")).unwrap();
    symlink("zebra", path.join("horse")).unwrap();
    symlink("1.png", path.join("zebra/again.png")).unwrap();
    let train = read(path, &Pictures::default()).unwrap().train;
    assert_eq!(train.class_names(), ["ant", "horse", "zebra"]);
    assert_eq!(train.labels(), Some([0, 1, 1, 2, 2].as_slice()));

    symlink("loop.png", path.join("zebra/loop.png")).unwrap();
    symlink("missing.png", path.join("zebra/nowhere.png")).unwrap();
    symlink("/dev/zero", path.join("zebra/zeros.png")).unwrap();
    let message = read(path, &Pictures::default()).unwrap_err().to_string();
    let lines: Vec<&str> = message.lines().skip(1).collect();
    let expected = [
        ("horse/loop.png", "Too many levels of symbolic links"),
        ("horse/nowhere.png", "No such file or directory"),
        (
            "horse/zeros.png",
            "is a pipe, a socket or a device, expected a file",
        ),
        ("zebra/loop.png", "Too many levels of symbolic links"),
        ("zebra/nowhere.png", "No such file or directory"),
        (
            "zebra/zeros.png",
            "is a pipe, a socket or a device, expected a file",
        ),
    ];
    assert_eq!(lines.len(), expected.len(), "{message}");
    for (line, (name, why)) in lines.into_iter().zip(expected) {
        let start = format!("  {}: {why}", path.join(name).display());
        assert!(line.starts_with(&start), "{line}");
    }
}

#[test]
fn a_jpeg_in_printers_inks_is_refused() {
    let message = refused("cmyk.jpg", &golden("cmyk.jpg"), &Pictures::default());
    assert!(
        message.starts_with("is a JPEG in the four inks of a printer (CMYK)"),
        "{message}"
    );
}

/// A decoder would fill what is missing with grey and say nothing.
#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    for name in [
        "photo.jpg",
        "progressive.jpg",
        "rgb.png",
        "transparent.gif",
        "rgb.bmp",
        "rgb.tiff",
        "photo.webp",
    ] {
        let whole = golden(name);
        let ending = name.rsplit('.').next().unwrap();
        for left in [
            0,
            1,
            10,
            whole.len() / 2,
            whole.len() - whole.len() / 8,
            whole.len() - 12,
        ] {
            let folder = TempDir::new().unwrap();
            write(folder.path(), &format!("cut.{ending}"), &whole[..left]);
            // What is cut off may be no part of the first picture; then nothing is missing.
            match read(folder.path(), &Pictures::default()) {
                Ok(splits) => assert_eq!(
                    *splits.train.image(0),
                    image(&format!("whole.{ending}"), &whole).2,
                    "{name} {left}"
                ),
                Err(error) => assert!(error.to_string().contains("1 of 1 pictures cannot be read")),
            }
        }
        image(&format!("whole.{ending}"), &whole);
    }
    let whole = golden("photo.jpg");
    let said = refused("cut.jpg", &whole[..whole.len() - 2], &Pictures::default());
    let cut = whole.len() - 2;
    assert_eq!(
        said,
        format!("is a JPEG without an end: cut off after {cut} bytes")
    );
}

/// A PNG whose header promises 60000x60000 pixels of which there are none: refused, and no memory taken.
#[test]
fn a_header_that_lies_is_not_believed() {
    let mut bytes = golden("one.png");
    bytes[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
    let said = refused("huge.png", &bytes, &Pictures::default());
    assert!(
        said.starts_with("would take more than 512 MiB unpacked: make it smaller"),
        "{said}"
    );
}

/// A JPEG of 545 bytes that says it is a line of sixty thousand pixels: a decoder would make it grey.
#[test]
fn a_jpeg_cannot_promise_more_than_its_bytes_hold() {
    let mut bytes = golden("photo.jpg");
    let frame = bytes
        .windows(4)
        .position(|four| four == [0xff, 0xc0, 0x00, 0x11]);
    let frame = frame.unwrap();
    bytes[frame + 5..frame + 9].copy_from_slice(&[0x00, 0x0f, 0xfd, 0x10]); // 15x64784
    let said = refused("line.jpg", &bytes, &Pictures::default());
    let expected =
        "promises 15x64784 pixels (height x width), more than its 682 bytes can hold: is it whole?";
    assert_eq!(said, expected);
}

/// 3x40 to cover 64x64 would be 64x853; to cover 4000 it would be 4000x53333.
#[test]
fn a_picture_like_a_thread_is_refused_where_it_would_fill_memory() {
    let size = |n| Pictures {
        size: Some((n, n)),
        ..Pictures::default()
    };
    let folder = TempDir::new().unwrap();
    write(folder.path(), "long.png", &golden("long.png"));
    let train = read(folder.path(), &size(64)).unwrap().train;
    assert_eq!(*train.image(0), [200; 64 * 64 * 3]);
    let said = refused("long.png", &golden("long.png"), &size(4000));
    assert_eq!(
        said,
        "is 40x3 (height x width): too long to cover 4000x4000"
    );
}

/// Random crops see every part of a picture and no other, and are a function of seed, image and epoch.
#[test]
fn random_crops_move_along_the_longer_side() {
    use candle_core::Device;
    use ddpm_data::Feed;
    use ddpm_image::PixelMap;
    use std::collections::BTreeSet;
    let folder = TempDir::new().unwrap();
    write(folder.path(), "0.png", &golden("rgb.png")); // 5x6
    write(folder.path(), "1.jpg", &golden("photo.jpg")); // 8x16
    let random = Pictures {
        size: Some((4, 4)),
        cover: Some((5, 5)),
        crop: Crop::Random,
        ..Pictures::default()
    };
    let train = read(folder.path(), &random).unwrap().train;
    // 5x6 covers 5x5 as it is; 8x16 becomes 5x10.
    assert_eq!((train.height(), train.width()), (4, 4));
    assert_eq!((train.room(0), train.room(1)), ((1, 2), (1, 6)));
    let feed = Feed::new(&train, 3, false);
    let mut corners = BTreeSet::new();
    for drawn in feed.draws(0, 400).unwrap() {
        let (rows, columns) = train.room(drawn.index);
        assert!(drawn.corner.0 <= rows && drawn.corner.1 <= columns);
        corners.insert((drawn.index, drawn.corner));
    }
    assert_eq!(
        corners.len(),
        2 * 3 + 2 * 7,
        "every corner comes up: {corners:?}"
    );
    let again = Feed::new(&train, 3, false);
    assert_eq!(again.draws(390, 5).unwrap(), feed.draws(390, 5).unwrap());
    assert_ne!(
        Feed::new(&train, 4, false).draws(0, 40).unwrap(),
        feed.draws(0, 40).unwrap()
    );
    // What the batch holds is that part of the whole picture.
    let whole = read(
        folder.path(),
        &Pictures {
            cover: None,
            size: None,
            crop: Crop::Centre,
            ..random.clone()
        },
    );
    assert!(whole.is_err(), "two sizes");
    let (_, _, rgb) = image("rgb.png", &golden("rgb.png"));
    let map = PixelMap::MinusOneToOne;
    for position in 0..20 {
        let drawn = feed.draw(position).unwrap();
        if drawn.index != 0 {
            continue;
        }
        let batch = feed.batch(position, 1, &map, &Device::Cpu).unwrap();
        let seen = map.to_u8(&batch).unwrap();
        for y in 0..4 {
            let start = ((y + drawn.corner.0) * 6 + drawn.corner.1) * 3;
            assert_eq!(seen[y * 12..(y + 1) * 12], rgb[start..start + 12]);
        }
    }
    // Shown at rest, it is the middle: from the second column of the first row.
    let start = 3;
    assert_eq!(train.image(0)[..12], rgb[start..start + 12]);
}

#[test]
fn what_no_picture_can_be_made_into_is_refused_before_any_is_read() {
    let check = |pictures: Pictures, expected: &str| {
        let folder = Path::new("/nowhere/at/all");
        let message = read(folder, &pictures).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("pictures cannot be made so: {expected}")),
            "{message}"
        );
    };
    let plain = Pictures::default();
    check(
        Pictures {
            crop: Crop::Random,
            ..plain.clone()
        },
        "how to crop is said, but no size",
    );
    check(
        Pictures {
            size: Some((8, 8)),
            cover: Some((9, 7)),
            ..plain.clone()
        },
        "to cover 9x7 and then to crop to 8x8",
    );
    check(
        Pictures {
            size: Some((8, 8)),
            cover: Some((9, 9)),
            crop: Crop::Stretch,
            ..plain
        },
        "to stretch leaves nothing to cover",
    );
}
