//! The walk as an animation and as a strip: from the noise of the seed to the images of every other output.

use candle_core::Device;
use ddpm_image::{Picture, PixelMap, captioned_strip, read_png, sheet};
use ddpm_random::sample_start;

use crate::{House, check_done};

const MAP: PixelMap = PixelMap::MinusOneToOne;

/// Every frame, RGB, with its delay in hundredths of a second.
fn frames(bytes: &[u8]) -> Vec<(Vec<u8>, u16)> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(bytes).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        let rgb = frame.buffer.chunks_exact(4).flat_map(|p| p[..3].to_vec());
        frames.push((rgb.collect(), frame.delay));
    }
    frames
}

/// x_T of the first images of a seed.
fn noise(seed: u64, images: usize) -> Vec<Picture> {
    let x = sample_start(seed, 0, images, (3, 4, 6), &Device::Cpu).unwrap();
    Picture::from_tensor(&x, &MAP).unwrap()
}

#[test]
fn an_animation_goes_from_the_noise_to_the_grid() {
    let house = House::new();
    check_done(&house.sample("--seed 3 --out walk.gif"));
    check_done(&house.sample("--seed 3 --out grid.png"));
    let bytes = std::fs::read(house.path("walk.gif")).unwrap();
    let frames = frames(&bytes);
    let (grid, _) = read_png(house.path("grid.png")).unwrap();
    assert_eq!(frames.len(), 5, "x_T and four steps");
    // Three images of 24 pixels have at most 73 colours: nothing is lost.
    assert_eq!(frames[4].0, grid.pixels());
    assert_eq!(frames[0].0, sheet(&noise(3, 3)).unwrap().pixels());
    assert!(frames.windows(2).all(|pair| pair[0].0 != pair[1].0));
    let delays: Vec<u16> = frames.iter().map(|frame| frame.1).collect();
    assert_eq!(delays, [50, 50, 50, 50, 200], "the last is held");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    for part in [
        "seed: 3",
        "sampler: ddim",
        "model: run/checkpoints/step-00000003",
    ] {
        assert!(text.contains(part), "{part}");
    }
    assert_eq!(house.names(), ["grid.png", "run", "walk.gif"]);
}

#[test]
fn long_walks_are_shown_at_some_of_their_steps() {
    let house = House::new();
    let flags = "--model run --num 2 --sampler ddpm --steps 100";
    check_done(&house.run(&format!("{flags} --out all.gif")));
    let found = frames(&std::fs::read(house.path("all.gif")).unwrap());
    assert_eq!(found.len(), 101);
    assert_eq!((found[0].1, found[100].1), (4, 200));
}

#[test]
fn a_strip_has_a_row_for_each_image_and_its_times() {
    let house = House::new();
    check_done(&house.sample("--seed 3 --strip --out strip.png"));
    check_done(&house.sample("--seed 3 --out grid.safetensors"));
    let (strip, texts) = read_png(house.path("strip.png")).unwrap();
    // Five moments of 6x4 five times enlarged, below a line of words.
    assert_eq!((strip.width(), strip.height()), (2 + 5 * 32, 13 + 3 * 22));
    assert!(texts.contains(&("seed".to_owned(), "3".to_owned())));
    let samples = crate::read_samples(&house.path("grid.safetensors"));
    let ends = [noise(3, 3), Picture::from_tensor(&samples, &MAP).unwrap()];
    // 4 of 100 steps, trailing: t = 100, 75, 50, 25, then the image.
    let expected = captioned_strip(&ends, &["100", "0"].map(String::from)).unwrap();
    assert_eq!(column(&strip, 0, 34), column(&expected, 0, 34));
    assert_eq!(
        column(&strip, 2 + 4 * 32, 32),
        column(&expected, 2 + 32, 32)
    );
    // samples.png is where a strip goes when nothing else is said.
    check_done(&house.sample("--seed 3 --strip"));
    let (default, _) = read_png(house.path("samples.png")).unwrap();
    assert_eq!(default, strip);
}

/// Some columns of pixels.
fn column(picture: &Picture, left: usize, width: usize) -> Vec<u8> {
    let rows = picture.pixels().chunks_exact(3 * picture.width());
    rows.flat_map(|row| row[3 * left..3 * (left + width)].to_vec())
        .collect()
}

/// Whatever a sampler's own scale is, and however often it asks the network: as many moments as steps, the noise of the seed
/// first, the samples last.
#[test]
fn strips_of_every_kind_of_walk_go_from_the_noise_to_the_samples() {
    for sampler in [
        "edm",
        "edm-dpm++",
        "euler",
        "euler-a",
        "heun",
        "dpm++",
        "plms",
    ] {
        let house = House::new();
        let flags = format!("--model run --num 3 --seed 3 --steps 4 --sampler {sampler}");
        check_done(&house.run(&format!("{flags} --strip --out strip.png")));
        check_done(&house.run(&format!("{flags} --out grid.safetensors")));
        let (strip, _) = read_png(house.path("strip.png")).unwrap();
        assert_eq!(strip.height(), 13 + 3 * 22, "{sampler}");
        let columns = (strip.width() - 2) / 32;
        assert_eq!(strip.width(), 2 + columns * 32, "{sampler}");
        assert!((5..=6).contains(&columns), "{sampler}: {columns} moments");
        let samples = crate::read_samples(&house.path("grid.safetensors"));
        let samples = Picture::from_tensor(&samples, &MAP).unwrap();
        let expected =
            captioned_strip(&[noise(3, 3), samples], &["", "0"].map(String::from)).unwrap();
        // Below the line of words.
        let below =
            |picture: &Picture, k: usize| column(picture, 2 + 32 * k, 30).split_off(13 * 90);
        assert!(
            below(&strip, 0) == below(&expected, 0),
            "{sampler}: the noise"
        );
        assert!(
            below(&strip, columns - 1) == below(&expected, 1),
            "{sampler}: the samples"
        );
        assert!(below(&strip, 0) != below(&strip, columns - 1), "{sampler}");
    }
}

#[test]
fn the_batch_changes_neither() {
    let house = House::new();
    for (place, flags) in [("a.gif", ""), ("a.png", "--strip")] {
        let made = |batch: usize| {
            let flags = format!("{flags} --out {place} --batch-size {batch}");
            check_done(&house.sample(&flags));
            std::fs::read(house.path(place)).unwrap()
        };
        assert!(made(1) == made(3), "{place}");
        assert!(made(2) == made(3), "{place}");
    }
}
