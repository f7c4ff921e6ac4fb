//! Parquet files as pyarrow writes them: every way of packing, holes, several files, CIFAR-10 the right way up.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use ddpm_data::parquet::Pictures as File;
use ddpm_data::{DataSpec, Dataset, Keep, Pictures, Splits, load, load_with};
use ddpm_image::PixelMap;
use tempfile::TempDir;

/// The files that `tests/golden/parquet.py` makes.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/parquet")
}

fn read(path: &Path) -> ddpm_data::Result<Splits> {
    let spec: DataSpec = format!("parquet:{}", path.display()).parse().unwrap();
    load(&spec, None)
}

/// That image `index` is picture `i` of the recipe.
#[track_caller]
fn check_picture(data: &Dataset, index: usize, i: usize) {
    let value = |place: usize| {
        let (y, x, c) = (place / 12, place / 3 % 4, place % 3);
        (31 * i + 7 * y + 3 * x + 50 * c) as u8
    };
    let expected: Vec<u8> = (0..60).map(value).collect();
    assert_eq!(*data.image(index), expected, "picture {i}");
}

#[test]
fn every_way_of_packing_has_the_same_pictures() {
    for (name, names, labels) in [
        ("snappy", true, true),
        ("zstd-2", true, true),
        ("gzip", false, true),
        ("none", false, true),
        ("none-2", false, false),
    ] {
        let splits = read(&golden().join(format!("{name}.parquet"))).unwrap();
        let train = splits.train;
        assert_eq!(
            (train.len(), train.height(), train.width(), train.channels()),
            (7, 5, 4, 3),
            "{name}"
        );
        (0..7).for_each(|i| check_picture(&train, i, i));
        let expected = labels.then_some([0, 3, 2, 1, 0, 3, 2]);
        assert_eq!(
            train.labels(),
            expected.as_ref().map(|labels| labels.as_slice()),
            "{name}"
        );
        let expected: &[&str] = if names {
            &["ant", "bee", "cat", "dog"]
        } else {
            &[]
        };
        assert_eq!(train.class_names(), expected, "{name}");
    }
}

#[test]
fn runs_and_groups_of_numbers_are_unpacked() {
    let file = File::open(&golden().join("many.parquet")).unwrap();
    assert_eq!(file.len(), 300);
    let rows: Vec<_> = file.rows().collect::<ddpm_data::Result<_>>().unwrap();
    assert_eq!(rows.len(), 300);
    for (i, row) in rows.iter().enumerate() {
        let label = if i < 150 { i / 7 % 3 } else { i * i % 4 };
        assert_eq!(row.label, Some(label as i64), "row {i}");
        assert_eq!(row.picture, rows[0].picture);
    }
}

#[test]
fn empty_rows_are_unreadable_pictures() {
    for name in ["nulls", "nulls-2"] {
        let path = golden().join(format!("{name}.parquet"));
        let message = read(&path).unwrap_err().to_string();
        let path = path.display();
        assert_eq!(
            message,
            format!(
                "{path}: 1 of 7 pictures cannot be read; remove them, or allow that they are skipped \
                 (data.skip_unreadable=true)\n  {path}: row 2: the row has no picture"
            )
        );
        let rows = File::open(&golden().join(format!("{name}.parquet")))
            .unwrap()
            .rows();
        let rows: Vec<_> = rows.collect::<ddpm_data::Result<_>>().unwrap();
        let labels: Vec<_> = rows.iter().map(|row| row.label).collect();
        assert_eq!(labels[4..], [Some(0), None, Some(2)]);
        assert!(rows[3].picture.is_some());
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    let said = |name: &str| {
        let path = golden().join(format!("{name}.parquet"));
        let message = read(&path).unwrap_err().to_string();
        message.replace(&path.display().to_string(), "FILE")
    };
    let brotli = said("brotli");
    assert!(
        brotli.starts_with("FILE: row 0: the page at byte "),
        "{brotli}"
    );
    assert!(
        brotli.ends_with(": packed with Brotli, expected snappy, zstd, gzip or nothing"),
        "{brotli}"
    );
    assert!(said("delta").ends_with(
        "values in parquet's encoding 5, expected plain values (0) or a dictionary (2, 8)"
    ));
    assert_eq!(
        said("no-picture"),
        "FILE: no column of pictures among text, label; expected one of bytes, alone or as `bytes` in a structure"
    );
    assert_eq!(
        said("two-columns"),
        "FILE: several columns may be pictures: a, b; expected one, or one called `image` or `img`"
    );
    assert!(
        said("absent").starts_with("FILE: no such file; expected a parquet file, a folder of them")
    );
    let html = Cursor::new(b"<html><body>Not found</body></html>".to_vec());
    let message = File::new(html, Path::new("x")).unwrap_err().to_string();
    assert_eq!(
        message,
        "x: is no parquet file: expected PAR1 at its beginning and end"
    );
    let whole = std::fs::read(golden().join("snappy.parquet")).unwrap();
    let cut = Cursor::new(whole[..whole.len() - 9].to_vec());
    let message = File::new(cut, Path::new("x")).unwrap_err().to_string();
    assert!(
        message.ends_with("it is cut off, or was not written to its end"),
        "{message}"
    );
}

#[test]
fn several_files_are_one_data_set_and_their_names_say_what_is_held_out() {
    let folder = TempDir::new().unwrap();
    for (from, to) in [
        ("snappy", "train-00000-of-00002"),
        ("zstd-2", "train-00001-of-00002"),
        ("snappy", "validation-00000-of-00001"),
    ] {
        let to = folder.path().join(format!("{to}.parquet"));
        std::fs::copy(golden().join(format!("{from}.parquet")), to).unwrap();
    }
    let splits = read(folder.path()).unwrap();
    let test = splits.test.unwrap();
    assert_eq!((splits.train.len(), test.len()), (14, 7));
    (0..14).for_each(|i| check_picture(&splits.train, i, i % 7));
    let matched = read(&folder.path().join("train-*-of-*.parquet")).unwrap();
    assert_eq!((matched.train.len(), matched.test), (14, None));
    let other = folder.path().join("train-00001-of-00002.parquet");
    std::fs::copy(golden().join("gzip.parquet"), &other).unwrap();
    let message = read(folder.path()).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("{}: has other classes than", other.display())),
        "{message}"
    );
}

/// A file whose pictures show which way is up. The permutation is the one of candle-datasets 0.11.1, which reads a
/// picture's rows (height, width, colour) as if they were columns: its images are ours with x and y exchanged.
#[test]
fn cifar10_from_parquet_is_upright_where_candle_datasets_is_transposed() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("cifar10");
    std::fs::create_dir(&place).unwrap();
    for part in ["train", "test"] {
        let file = format!("{part}-00000-of-00001.parquet");
        std::fs::copy(golden().join("cifar10").join(&file), place.join(&file)).unwrap();
    }
    let splits = load(&DataSpec::Cifar10, Some(folder.path())).unwrap();
    let (train, test) = (splits.train, splits.test.unwrap());
    assert_eq!((train.len(), test.len()), (3, 3));
    assert_eq!(
        (train.height(), train.width(), train.channels()),
        (32, 32, 3)
    );
    for (data, first) in [(&train, 1), (&test, 11)] {
        for i in 0..3 {
            let image = data.image(i);
            for (row, column) in [(0, 0), (0, 31), (31, 0), (5, 17)] {
                let start = (row * 32 + column) * 3;
                let expected = [row as u8, 100 + column as u8, 10 * (first + i) as u8];
                assert_eq!(image[start..start + 3], expected);
            }
            assert_eq!(data.labels().unwrap()[i] as usize, (first + i) % 10);
        }
    }
    let ours = train
        .tensor(&[1], &PixelMap::MinusOneToOne, &Device::Cpu)
        .unwrap();
    let theirs = Tensor::from_vec(train.image(1).to_vec(), (1, 32, 32, 3), &Device::Cpu)
        .and_then(|x| x.permute((0, 3, 2, 1)))
        .and_then(|x| (x.to_dtype(candle_core::DType::F32)? / 127.5)? - 1.0)
        .unwrap();
    let apart = |a: &Tensor, b: &Tensor| {
        let apart = (a - b).unwrap().abs().unwrap().max_all().unwrap();
        apart.to_scalar::<f32>().unwrap()
    };
    assert!(apart(&ours, &theirs) > 0.2);
    assert!(apart(&ours, &theirs.transpose(2, 3).unwrap()) < 1e-6);

    std::fs::remove_file(place.join("test-00000-of-00001.parquet")).unwrap();
    let message = load(&DataSpec::Cifar10, Some(folder.path()))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`test-00000-of-00001.parquet` expected beside"),
        "{message}"
    );
    assert!(
        message.ends_with("the data set `cifar10` has two files"),
        "{message}"
    );
    let other = place.join("test-00000-of-00001.parquet");
    std::fs::copy(golden().join("snappy.parquet"), &other).unwrap();
    std::fs::copy(
        golden().join("snappy.parquet"),
        place.join("train-00000-of-00001.parquet"),
    )
    .unwrap();
    let message = load(&DataSpec::Cifar10, Some(folder.path()))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("these are the files of `a data set of ant, bee, cat, dog`"),
        "{message}"
    );
}

/// The Hub's file, where it is: the first training image is a frog, and upright. Its values are those of the test on
/// the binary batches; a file that went through JPEG is a few shades off.
#[test]
fn the_hubs_cifar10_is_upright() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !shared
        .join("cifar10/train-00000-of-00001.parquet")
        .is_file()
    {
        println!("../shared/data/cifar10 is not there: nothing to read");
        return;
    }
    let splits = load(&DataSpec::Cifar10, Some(&shared)).unwrap();
    let (train, test) = (splits.train, splits.test.unwrap());
    assert_eq!((train.len(), test.len()), (50_000, 10_000));
    for part in [&train, &test] {
        let mut counts = [0; 10];
        part.labels()
            .unwrap()
            .iter()
            .for_each(|label| counts[*label as usize] += 1);
        assert_eq!(counts, [part.len() / 10; 10]);
    }
    assert_eq!(train.class_names()[6], "frog");
    let frog = [(0, [59, 62, 63]), (3, [43, 46, 45]), (96, [16, 20, 20])];
    let alike = |places: [usize; 3]| {
        let alike = |index: &usize| {
            let pixels = train.image(*index);
            frog.iter().zip(places).all(|((_, pixel), start)| {
                pixels[start..]
                    .iter()
                    .zip(pixel)
                    .all(|(a, b): (&u8, &u8)| a.abs_diff(*b) <= 6)
            })
        };
        (0..train.len()).filter(alike).collect::<Vec<_>>()
    };
    let upright = alike([0, 3, 96]);
    assert_eq!(upright.len(), 1, "{upright:?}");
    assert_eq!(train.labels().unwrap()[upright[0]], 6);
    assert!(
        !alike([0, 96, 3]).contains(&upright[0]),
        "transposed it is another image"
    );
}

/// Bytes changed, cut out, put in or cut off, anywhere in any of the files: rows, or an error that names the file.
#[test]
fn no_mutation_makes_the_reader_panic() {
    let originals = ["snappy", "zstd-2", "gzip", "none", "nulls-2", "many"]
        .map(|name| std::fs::read(golden().join(format!("{name}.parquet"))).unwrap());
    let mut below = crate::below(0x1234_5678_9abc_def1);
    let (mut read, mut refused) = (0, 0);
    for round in 0..6000 {
        let bytes = crate::mutated(&originals[round % originals.len()], &mut below);
        let rows = File::new(Cursor::new(bytes), Path::new("mutated")).and_then(|file| {
            file.rows()
                .take(1000)
                .collect::<ddpm_data::Result<Vec<_>>>()
        });
        match rows {
            Ok(rows) => {
                read += 1;
                assert!(rows.len() <= 1000);
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("mutated: "), "{error}");
            }
        }
    }
    assert!(
        read > 300 && refused > 1000,
        "{read} read, {refused} refused"
    );
}

#[test]
fn a_parquet_file_can_be_resized_as_pictures_are() {
    let path = golden().join("snappy.parquet");
    let pictures = Pictures {
        size: Some((8, 8)),
        ..Pictures::default()
    };
    let spec = DataSpec::Parquet(path);
    let train = load_with(&spec, None, &pictures, &Keep::default())
        .unwrap()
        .train;
    assert_eq!((train.height(), train.width()), (8, 8));
}
