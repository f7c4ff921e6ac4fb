//! Training on pictures: every setting of `[data]`, what is said of wrong ones, exact resume, colours that come back.

use std::path::Path;

use ddpm_data::DataSpec;
use ddpm_image::{Picture, PixelMap, write_png};
use ddpm_train::{Layer, Run, Settings, on_threads};

use crate::resume::{newest_bits, timeless};
use crate::tiny;

/// 44 pictures, 20 columns wide and 12 or 14 rows high, in two classes, and a file that is none.
fn folder(root: &Path) {
    for i in 0..44 {
        let height = if i % 3 == 0 { 14 } else { 12 };
        let pixels = (0..height * 20 * 3).map(|k| (k * k * 7 + k * i + 11 * i) as u8);
        let picture = Picture::new(20, height, 3, pixels.collect()).unwrap();
        let class = root.join(if i % 2 == 0 { "even" } else { "odd" });
        std::fs::create_dir_all(&class).unwrap();
        write_png(class.join(format!("{i:02}.png")), &picture, &[]).unwrap();
    }
    std::fs::write(root.join("odd/unreadable.jpg"), "<html>").unwrap();
}

fn settings(root: &Path, more: &str) -> Settings {
    let name = toml::Value::from(format!("folder:{}", root.display()));
    tiny(&format!(
        "data = {{ name = {name}, size = [8, 16], cover = [10, 16], crop = \"random\", flip = true, filter = \"bicubic\", \
         skip_unreadable = true, normalisation = \"imagenet\" }}\n{more}"
    ))
}

fn error(text: &str) -> String {
    let settings = tiny(text);
    let checked = settings
        .check()
        .and_then(|()| settings.data_spec().map(drop));
    checked.unwrap_err().to_string()
}

#[test]
fn a_run_on_pictures_goes_on_to_the_bit_and_records_how_bytes_became_numbers() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("pictures");
    folder(&data);
    let settings = settings(&data, "train = { steps = 6, checkpoint_every = 3 }");
    let [whole, parts] = ["whole", "parts"].map(|name| place.path().join(name));
    let streamed = Settings {
        data: ddpm_train::settings::DataSettings {
            memory: Some(0),
            cache: Some(place.path().join("cache")),
            ..settings.data.clone()
        },
        ..settings.clone()
    };
    on_threads(2, || {
        let mut run = Run::begin(&whole, &settings, None).unwrap();
        assert_eq!(run.skipped().len(), 1);
        assert!(run.skipped()[0].path.ends_with("odd/unreadable.jpg"));
        let data = run.trainer().data();
        assert_eq!((data.len(), data.height(), data.width()), (42, 8, 16));
        while !run.finished() {
            run.advance().unwrap();
        }
    })
    .unwrap();
    // The second from a cache instead of memory, stopped and continued, on another number of threads.
    on_threads(1, || {
        let mut run = Run::begin(&parts, &streamed, None).unwrap();
        assert!(run.trainer().data().is_streamed());
        (0..4).for_each(|_| drop(run.advance().unwrap()));
        drop(run);
        let (mut run, _) = Run::resume(&parts, &settings).unwrap();
        assert_eq!((run.trainer().steps_done(), run.skipped().len()), (3, 1));
        while !run.finished() {
            run.advance().unwrap();
        }
    })
    .unwrap();
    assert!(newest_bits(&whole) == newest_bits(&parts), "weights differ");
    assert_eq!(timeless(&whole), timeless(&parts));
    let picture = |run: &Path| std::fs::read(run.join("samples/step-00000006.png")).unwrap();
    assert_eq!(picture(&whole), picture(&parts));

    let checkpoint = whole.join("checkpoints/step-00000006");
    for folder in [&whole, &checkpoint] {
        let text = std::fs::read_to_string(folder.join("run.toml")).unwrap();
        let recorded: toml::Table = toml::from_str(&text).unwrap();
        let pixels: PixelMap = recorded["run"]["pixels"].clone().try_into().unwrap();
        let expected = PixelMap::per_channel(vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]);
        assert_eq!(pixels, expected.unwrap());
        assert_eq!(recorded["data"]["normalisation"].as_str(), Some("imagenet"));
    }
    // What was left out is recorded, by the run that began and by the one that went on.
    for folder in [&whole, &parts, &checkpoint] {
        let text = std::fs::read_to_string(folder.join("run.toml")).unwrap();
        let recorded: toml::Table = toml::from_str(&text).unwrap();
        let skipped = &recorded["run"]["skipped"];
        assert_eq!(skipped["pictures"].as_integer(), Some(1));
        let first = skipped["first"][0].as_str().unwrap();
        assert!(first.contains("odd/unreadable.jpg: "), "{first}");
    }
    // diffusers would show other colours, so that it is not told that it can.
    assert!(!checkpoint.join("model_index.json").exists());
    let note = std::fs::read_to_string(checkpoint.join("not-a-diffusers-pipeline.md")).unwrap();
    assert!(note.contains("normalised per channel"), "{note}");
    let scheduler =
        std::fs::read_to_string(checkpoint.join("scheduler/scheduler_config.json")).unwrap();
    assert!(scheduler.contains("\"clip_sample\": false"), "{scheduler}");
}

/// A network that says 0 for the clean image draws the mean colour, not grey.
#[test]
fn samples_of_a_normalised_model_have_its_colours() {
    let place = tempfile::tempdir().unwrap();
    let settings = tiny(
        "data.normalisation = { mean = [0.8], std = [0.1] }\ndiffusion.prediction = \"original\"\ntrain.steps = 1",
    );
    let run = place.path().join("run");
    on_threads(1, || {
        let mut run = Run::begin(&run, &settings, None).unwrap();
        run.advance().unwrap();
    })
    .unwrap();
    let (sheet, _) = ddpm_image::read_png(run.join("samples/step-00000001.png")).unwrap();
    // Four digits of 32x32 with frames of two pixels: the first pixel of the first is at (2, 2).
    let pixel = sheet.pixels()[2 * sheet.width() + 2];
    assert!(
        pixel.abs_diff(204) < 30,
        "{pixel}, expected about 0.8 of 255"
    );
}

#[test]
fn settings_of_pictures_are_filled_in_and_come_back() {
    let settings =
        tiny("data = { name = \"folder:x\", size = 8, background = [1, 2, 3], memory = 64 }");
    let text = settings.to_toml().unwrap();
    for said in [
        "size = 8\n",
        "cover = 8\n",
        "filter = \"area\"",
        "crop = \"centre\"",
        "color = \"rgb\"",
        "background = [1, 2, 3]",
        "memory = 64",
        "normalisation = \"minus-one-to-one\"",
    ] {
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
    let again = Settings::from_layers(&[Layer::from_text("again", &text).unwrap()]).unwrap();
    assert_eq!(again, settings);
    assert_eq!(again.resolved(), settings);
    let text =
        tiny("data = { name = \"parquet:x\", normalisation = { mean = [0.5], std = [0.25] } }")
            .to_toml();
    let text = text.unwrap();
    assert!(
        text.contains("[data.normalisation]\nmean = [0.5]\nstd = [0.25]"),
        "{text}"
    );
    assert!(
        text.contains("color = \"rgb\"") && !text.contains("filter"),
        "{text}"
    );
    assert!(
        !tiny("").to_toml().unwrap().contains("color"),
        "digits have no such setting"
    );
    let both = |change: &str| {
        let (old, new) = (
            tiny("data.name = \"folder:x\""),
            tiny(&format!("data = {{ name = \"folder:x\", {change} }}")),
        );
        old.first_forbidden_change(&new)
            .unwrap()
            .map(|(key, _, _)| key)
    };
    assert_eq!(both("memory = 1, cache = \"c\""), None);
    assert_eq!(both("color = \"grey\"").as_deref(), Some("data.color"));
    assert_eq!(
        both("normalisation = \"imagenet\"").as_deref(),
        Some("data.normalisation")
    );
}

#[test]
fn wrong_settings_of_pictures_are_said_before_anything_is_read() {
    let folder = |more: &str| error(&format!("data = {{ name = \"folder:x\", {more} }}"));
    assert_eq!(
        error("data.size = 16"),
        "`data.size` only goes with pictures, as in folder:PATH; the images of digits are as their files have them"
    );
    assert_eq!(
        folder("crop = \"random\""),
        "`data.crop` only goes with `data.size`"
    );
    assert_eq!(
        folder("filter = \"area\""),
        "`data.filter` only goes with `data.size`"
    );
    assert_eq!(
        folder("cover = 9"),
        "`data.cover` only goes with `data.size`"
    );
    assert_eq!(
        folder("size = 0"),
        "`data.size` is 0x0; each side must be 1 to 4096 pixels"
    );
    assert_eq!(
        folder("size = [8, 16], cover = 12"),
        "`data.cover` is 12x12, smaller than `data.size` = 8x16"
    );
    assert_eq!(
        folder("size = 8, cover = 12, crop = \"stretch\""),
        "`data.cover` only goes with `data.crop` `centre` or `random`"
    );
    assert_eq!(
        folder("normalisation = { mean = [0.5], std = [0.0] }"),
        "`data.normalisation` cannot be: the per-channel pixel map is impossible: std 0 of channel 0 is not finite and above 0"
    );
    assert_eq!(
        error("data = { name = \"parquet:x\", directory = \"d\" }"),
        "`data.directory` (--data-dir) only goes with data that have a name: parquet files are where their path says"
    );
    let message = tiny("data.normalisation = \"imagenet\"")
        .check_data(99, (1, 8, 8))
        .unwrap_err()
        .to_string();
    assert_eq!(
        message,
        "`data.normalisation` does not fit digits: the pixel map has mean and std for 3 channels, the images have 1 channels"
    );
    let layer = |text: &str| Layer::from_text("my.toml", text).unwrap_err().to_string();
    for (text, expected) in [
        (
            "data.size = \"big\"",
            "found \"big\"; expected one number of pixels, or [height, width]",
        ),
        (
            "data.size = [1, 2, 3]",
            "expected one number of pixels, or [height, width]",
        ),
        (
            "data.normalisation = \"zero\"",
            "found \"zero\"; expected `minus-one-to-one`, `imagenet`, or `{ mean",
        ),
        (
            "data.normalisation = { mean = [1.0] }",
            "missing field `std`",
        ),
        ("data.crop = \"left\"", "unknown variant `left`"),
        ("data.background = [1, 2]", "invalid length 2"),
    ] {
        let message = layer(text);
        assert!(
            message.contains(expected),
            "{expected:?} is not in {message:?}"
        );
    }
}

/// A name of the Hub that was never fetched: what fetches it is said, and nothing is begun.
#[cfg(not(feature = "hub"))]
#[test]
fn a_name_of_the_hub_says_how_to_get_it() {
    let place = tempfile::tempdir().unwrap();
    let spec: DataSpec = "hub:nobody/nothing-of-the-kind".parse().unwrap();
    let message = ddpm_data::load(&spec, Some(place.path()))
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("data set `hub:nobody/nothing-of-the-kind` not found; looked in "),
        "{message}"
    );
    assert!(
        message.contains("cargo xtask data hub:nobody/nothing-of-the-kind"),
        "{message}"
    );
    assert!(message.contains("--features hub"), "{message}");
}
