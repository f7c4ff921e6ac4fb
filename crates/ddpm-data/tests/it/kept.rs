//! Images that do not fit into memory: the same as those that do, written once, found again, made anew when they must be.

use std::path::Path;

use ddpm_data::{Crop, DataSpec, Keep, Pictures, Splits, load_with};
use tempfile::TempDir;

/// 45 pictures of 6x5, each of one grey level; every fifth is 6x9.
fn pictures(folder: &Path) {
    for i in 0..45 {
        let width = if i % 5 == 0 { 9 } else { 5 };
        let picture = ddpm_image::Picture::new(width, 6, 1, vec![5 * i; 6 * width]).unwrap();
        let class = if i % 2 == 0 { "even" } else { "odd" };
        std::fs::create_dir_all(folder.join(class)).unwrap();
        let bytes = ddpm_image::encode_png(&picture, &[]).unwrap();
        std::fs::write(folder.join(class).join(format!("{i:02}.png")), bytes).unwrap();
    }
}

fn sized(crop: Crop) -> Pictures {
    Pictures {
        size: Some((4, 4)),
        crop,
        ..Pictures::default()
    }
}

fn read(
    folder: &Path,
    pictures: &Pictures,
    memory: u64,
    cache: &Path,
) -> ddpm_data::Result<Splits> {
    let keep = Keep {
        memory: Some(memory),
        cache: Some(cache.to_owned()),
    };
    load_with(&DataSpec::Folder(folder.to_owned()), None, pictures, &keep)
}

/// What is in a folder, in order; names that begin with a dot too.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn kept(cache: &Path) -> Vec<String> {
    let mut names = names(cache);
    names.retain(|name| !name.ends_with(".lock"));
    names
}

#[test]
fn images_on_disk_are_those_in_memory() {
    let folder = TempDir::new().unwrap();
    pictures(folder.path());
    for crop in [Crop::Centre, Crop::Random, Crop::Stretch] {
        let cache = TempDir::new().unwrap();
        let inside = read(folder.path(), &sized(crop), 1 << 20, cache.path()).unwrap();
        assert!(!inside.train.is_streamed());
        assert!(
            kept(cache.path()).is_empty(),
            "nothing is written that fits"
        );
        for memory in [0, 1000] {
            let outside = read(folder.path(), &sized(crop), memory, cache.path()).unwrap();
            assert!(outside.train.is_streamed());
            assert_eq!(outside.train, inside.train);
            assert_eq!(outside.test, inside.test);
            assert_eq!(outside.train.sha256(), inside.train.sha256());
            assert_eq!(kept(cache.path()).len(), 1, "the second time it is found");
        }
    }
}

#[test]
fn what_was_decoded_is_found_again_until_something_changes() {
    let folder = TempDir::new().unwrap();
    let cache = TempDir::new().unwrap();
    pictures(folder.path());
    let read = |pictures: &Pictures| read(folder.path(), pictures, 0, cache.path()).unwrap();
    let first = read(&sized(Crop::Centre));
    let key = kept(cache.path()).remove(0);
    let file = cache.path().join(&key).join("train.u8");
    let written = std::fs::metadata(&file).unwrap().modified().unwrap();
    read(&sized(Crop::Centre));
    assert_eq!(
        std::fs::metadata(&file).unwrap().modified().unwrap(),
        written
    );
    read(&sized(Crop::Stretch));
    assert_eq!(
        kept(cache.path()).len(),
        2,
        "another transform is another file"
    );
    let picture = ddpm_image::Picture::new(5, 6, 1, vec![255; 30]).unwrap();
    let bytes = ddpm_image::encode_png(&picture, &[]).unwrap();
    std::fs::write(folder.path().join("even/02.png"), [bytes, vec![0]].concat()).unwrap();
    let changed = read(&sized(Crop::Centre));
    assert_ne!(changed.train.sha256(), first.train.sha256());
    assert_eq!(kept(cache.path()).len(), 3);
}

#[test]
fn a_cache_that_is_not_whole_is_made_anew() {
    let folder = TempDir::new().unwrap();
    let cache = TempDir::new().unwrap();
    pictures(folder.path());
    let read = || read(folder.path(), &sized(Crop::Centre), 0, cache.path());
    let expected = read().unwrap().train.sha256();
    let key = kept(cache.path()).remove(0);
    let place = |name: &str| cache.path().join(&key).join(name);
    let damages: [&dyn Fn(); 4] = [
        &|| std::fs::write(place("train.u8"), "short").unwrap(),
        &|| std::fs::remove_file(place("test.u8")).unwrap(),
        &|| std::fs::write(place("index.json"), "{").unwrap(),
        &|| std::fs::remove_file(place("index.json")).unwrap(),
    ];
    for damage in damages {
        damage();
        assert_eq!(read().unwrap().train.sha256(), expected);
        assert_eq!(kept(cache.path()), std::slice::from_ref(&key));
    }
    // A process that was killed leaves a folder of another name, which the next one clears away.
    std::fs::remove_dir_all(cache.path().join(&key)).unwrap();
    let left = cache.path().join(format!(".{key}.tmp"));
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("train.u8"), "half").unwrap();
    assert_eq!(read().unwrap().train.sha256(), expected);
    assert_eq!(kept(cache.path()), [key]);
}

#[test]
fn nothing_is_left_of_pictures_that_are_refused() {
    let folder = TempDir::new().unwrap();
    let cache = TempDir::new().unwrap();
    pictures(folder.path());
    std::fs::write(folder.path().join("odd/zz.png"), "no picture").unwrap();
    let message = read(folder.path(), &sized(Crop::Centre), 0, cache.path())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("1 of 46 pictures cannot be read"),
        "{message}"
    );
    assert!(kept(cache.path()).is_empty());
    let file = cache.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let message = read(folder.path(), &sized(Crop::Stretch), 0, &file)
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with(&format!("cannot write `{}", file.display())),
        "{message}"
    );
    assert!(message.contains("(data.cache)"), "{message}");
}

/// Whatever the number of threads, the images and what is held out are the same.
#[test]
fn threads_change_nothing() {
    let folder = TempDir::new().unwrap();
    let cache = TempDir::new().unwrap();
    pictures(folder.path());
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| read(folder.path(), &sized(Crop::Random), 1 << 20, cache.path()).unwrap())
    };
    let (one, many) = (on(1), on(5));
    assert_eq!(one.train, many.train);
    assert_eq!(one.test, many.test);
}
