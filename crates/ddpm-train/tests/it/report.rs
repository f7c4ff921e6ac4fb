//! The report of a run: every section, every picture, and the same from a folder as at the end of training.

use std::path::Path;

use ddpm_image::{Picture, read_png, write_png};
use ddpm_train::{Run, Settings, on_threads, report_on};

use crate::tiny;

const SECTIONS: [&str; 8] = [
    "numbers",
    "loss",
    "samples",
    "reverse",
    "nearest",
    "forward",
    "settings",
    "environment",
];
const PICTURES: [&str; 5] = [
    "loss.png",
    "samples/forward.png",
    "samples/reverse.png",
    "samples/beside-real.png",
    "samples/nearest.png",
];

/// Trains to the end and writes the report; returns the page.
fn train(folder: &Path, settings: &Settings) -> String {
    let page = on_threads(1, || {
        let mut run = Run::begin(folder, settings, None).unwrap();
        while !run.finished() {
            run.advance().unwrap();
        }
        run.report().unwrap()
    })
    .unwrap();
    assert_eq!(page, folder.join("report.html"));
    std::fs::read_to_string(page).unwrap()
}

/// A folder of 12 colour pictures of 4 rows and 6 columns, which has no test split, and settings to train on it.
fn colours(folder: &Path) -> Settings {
    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    for k in 0..12u32 {
        let pixels = (0..72).map(|i| ((k + 3) * (i * i + 7 * i) % 251) as u8);
        let picture = Picture::new(6, 4, 3, pixels.collect()).unwrap();
        write_png(data.join(format!("{k:02}.png")), &picture, &[]).unwrap();
    }
    let name = toml::Value::from(format!("folder:{}", data.display()));
    tiny(&format!(
        "data = {{ name = {name}, flip = true }}\ntrain.steps = 3"
    ))
}

/// The bytes of every `data:` address of a page, with its kind.
fn inlined(page: &str) -> Vec<(String, Vec<u8>)> {
    let addresses = page.split("src=\"").skip(1);
    addresses
        .map(|address| {
            let address = address.split('"').next().unwrap();
            let (kind, text) = address.split_once(";base64,").unwrap();
            (kind.to_owned(), decoded(text))
        })
        .collect()
}

/// Base64 by bits.
fn decoded(text: &str) -> Vec<u8> {
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = Vec::new();
    for letter in text.trim_end_matches('=').chars() {
        let value = letters.find(letter).unwrap();
        bits.extend((0..6).rev().map(|bit| value >> bit & 1 == 1));
    }
    let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    bits.chunks_exact(8).map(byte).collect()
}

/// Frames of a GIF.
fn frames(bytes: &[u8]) -> usize {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(bytes).unwrap();
    std::iter::from_fn(|| decoder.read_next_frame().unwrap().map(drop)).count()
}

#[track_caller]
fn check_page(folder: &Path, page: &str, sections: &[&str]) {
    for section in sections {
        let found = page.matches(&format!("<section id=\"{section}\">")).count();
        assert_eq!(found, 1, "section {section}");
    }
    for tag in ["section", "figure", "table", "svg", "div", "main", "html"] {
        let (opened, closed) = (
            page.matches(&format!("<{tag}")).count(),
            page.matches(&format!("</{tag}>")).count(),
        );
        assert_eq!(opened, closed, "<{tag}>");
    }
    // It needs nothing beside itself.
    for outside in ["<script", "<link", "@import", "src=\"http", "url(", "href="] {
        assert!(!page.contains(outside), "{outside}");
    }
    for (kind, bytes) in inlined(page) {
        match &kind[..] {
            "data:image/png" => {
                let path = folder.join("inlined.png");
                std::fs::write(&path, bytes).unwrap();
                read_png(&path).unwrap();
                std::fs::remove_file(&path).unwrap();
            }
            "data:image/gif" => assert!(frames(&bytes) > 1),
            other => panic!("{other}"),
        }
    }
    assert!(!page.contains("NaN"), "a number is missing");
}

#[test]
fn the_page_has_every_section_and_every_picture() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let page = train(&run, &tiny("train.held_out_every = 4"));
    check_page(&run, &page, &SECTIONS);
    // Samples, real images, strip, animation, a pair for each sample, forward.
    assert_eq!(inlined(&page).len(), 4 + 4 + 1);
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(page.contains("held-out images, which the network has never seen"));
    assert!(page.contains("<th>learning_rate</th><td>0.002</td>"));
    assert!(page.contains("<th>optimiser steps</th><td>10, of 4 images</td>"));
    for name in PICTURES {
        let (picture, texts) = read_png(run.join(name)).unwrap();
        assert!(picture.width() > 60, "{name}");
        assert_eq!(texts[0].0, "Software", "{name}");
    }
    let animation = std::fs::read(run.join("samples/reverse.gif")).unwrap();
    assert_eq!(frames(&animation), 4, "x_T and three steps");
    let kinds = inlined(&page).into_iter();
    let inlined = kinds.filter(|(kind, _)| kind.ends_with("gif"));
    assert_eq!(
        inlined.map(|(_, bytes)| bytes).collect::<Vec<_>>(),
        [animation]
    );
    let names = std::fs::read_dir(&run).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.contains("tmp")));
}

#[test]
fn colours_oblong_images_and_no_test_split_are_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = colours(folder.path());
    let page = train(&run, &settings);
    check_page(&run, &page, &SECTIONS);
    assert!(page.contains("each with the nearest other one (there are no held-out images)"));
    assert!(page.contains("which also count mirrored"));
    assert!(page.contains("not measured: the data has no test split"));
    let (strip, _) = read_png(run.join("samples/forward.png")).unwrap();
    // 6x4 five times enlarged; T = 50, so nine moments; six rows.
    assert_eq!((strip.width(), strip.height()), (2 + 9 * 32, 13 + 6 * 22));
    assert_eq!(strip.channels(), 3);
}

/// Bytes come back as they were: what is shown of training images is they themselves, whatever the network was told.
#[test]
fn a_run_with_a_normalisation_of_its_own_shows_true_colours() {
    let folder = tempfile::tempdir().unwrap();
    let [plain, normalised] = ["plain", "normalised"].map(|name| folder.path().join(name));
    let settings = colours(folder.path());
    std::fs::write(folder.path().join("data/broken.png"), "no picture").unwrap();
    let with = |normalisation: &str| {
        let text = format!(
            "data = {{ name = {}, normalisation = {normalisation}, skip_unreadable = true }}\ntrain.steps = 2",
            toml::Value::from(settings.data.name.clone())
        );
        tiny(&text)
    };
    train(&plain, &with("\"minus-one-to-one\""));
    let own = "{ mean = [0.2, 0.5, 0.7], std = [0.1, 0.3, 0.6] }";
    let page = train(&normalised, &with(own));
    check_page(&normalised, &page, &SECTIONS);
    assert!(page.contains("<th>pictures left out</th><td>1, which could not be read"));
    let picture = |run: &Path, name: &str| read_png(run.join(name)).unwrap().0;
    // The first column of the forward strip is x_0, six rows of 4x6 pixels five times enlarged; noise follows.
    let column = |run: &Path| {
        let strip = picture(run, "samples/forward.png");
        let rows = strip.pixels().chunks_exact(3 * strip.width());
        rows.flat_map(|row| row[..3 * 32].to_vec())
            .collect::<Vec<u8>>()
    };
    assert!(column(&plain) == column(&normalised));
    // The right half of this sheet is real images.
    let real = |run: &Path| {
        let sheet = picture(run, "samples/beside-real.png");
        let rows = sheet.pixels().chunks_exact(3 * sheet.width());
        let right = 3 * (sheet.width() / 2 + 8);
        rows.flat_map(|row| row[right..].to_vec())
            .collect::<Vec<u8>>()
    };
    assert!(real(&plain) == real(&normalised));
    // In the last column x_T is the mean of q: the image's share, and for the rest what the network's 0 stands for.
    let schedule = ddpm_train::Objective::new(&with(own).diffusion)
        .unwrap()
        .schedule;
    let share = schedule.alpha_bar(schedule.timestep(50).unwrap()).sqrt();
    let strip = picture(&normalised, "samples/forward.png");
    let [first, last] = [0, 8].map(|moment| means(&strip, moment));
    for (channel, mean) in [0.2, 0.5].into_iter().enumerate() {
        let expected = share * first[channel] + (1.0 - share) * 255.0 * mean;
        let found = last[channel];
        assert!(
            (found - expected).abs() < 8.0,
            "channel {channel}: {found}, expected about {expected}"
        );
    }
}

/// The mean byte of each channel in a column of a strip of six rows of 4x6 pixels, five times enlarged.
fn means(strip: &Picture, moment: usize) -> [f64; 3] {
    let mut sums = [0f64; 3];
    for line in (0..6).flat_map(|row| (0..20).map(move |y| 15 + row * 22 + y)) {
        let start = 3 * (line * strip.width() + 2 + moment * 32);
        for pixel in strip.pixels()[start..start + 90].chunks_exact(3) {
            for (sum, value) in sums.iter_mut().zip(pixel) {
                *sum += f64::from(*value);
            }
        }
    }
    sums.map(|sum| sum / (6.0 * 20.0 * 30.0))
}

#[test]
fn a_run_folder_gives_the_same_pictures_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let page = train(&run, &tiny("train.steps = 4"));
    let files = || PICTURES.map(|name| std::fs::read(run.join(name)).unwrap());
    let before = files();
    for name in PICTURES {
        std::fs::remove_file(run.join(name)).unwrap();
    }
    std::fs::remove_file(run.join("report.html")).unwrap();
    on_threads(1, || report_on(&run)).unwrap().unwrap();
    assert!(files() == before);
    let again = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert_eq!(again, page);
}

#[test]
fn without_samples_the_rest_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let page = train(folder.path(), &tiny("train.steps = 2\nsamples.count = 0"));
    let sections = [
        "numbers",
        "loss",
        "samples",
        "forward",
        "settings",
        "environment",
    ];
    check_page(folder.path(), &page, &sections);
    assert!(page.contains("<code>samples.count</code> is 0"));
    assert!(!folder.path().join("samples/nearest.png").exists());
}

#[test]
fn what_stands_in_the_way_is_named_and_nothing_is_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let page = train(&run, &tiny("train.steps = 2"));
    let nearest = run.join("samples/nearest.png");
    std::fs::remove_file(&nearest).unwrap();
    std::fs::create_dir(&nearest).unwrap();
    let error = on_threads(1, || report_on(&run)).unwrap().unwrap_err();
    assert!(error.to_string().contains("nearest.png"), "{error}");
    let kept = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert_eq!(kept, page, "the page is written last");

    let error = report_on(&folder.path().join("nowhere")).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    assert!(report_on(&run).is_err());
}
