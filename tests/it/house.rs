//! From bytes to pictures through every crate: what training shows, what sampling makes, what is shipped.

use std::path::{Path, PathBuf};

use clap::Parser;
use ddpm_data::DataSpec;
use ddpm_image::{Picture, read_png};
use ddpm_sample::Flags;
use ddpm_train::{Layer, Run, Settings, on_threads};

/// A few seconds of training on the digits: the whole path, not a good model.
const SMALL: &str = r#"
data.name = "digits"
model = { block_out_channels = [8, 16], down_block_types = ["DownBlock2D", "AttnDownBlock2D"], norm_num_groups = 4 }
diffusion.timesteps = 100
optimizer = { learning_rate = 1e-3, warm_up = 0 }
ema.rates = [0.9]
train = { steps = 6, batch_size = 4, held_out_images = 8 }
samples = { count = 9, steps = 7, seed = 3 }
"#;

#[test]
fn what_training_shows_is_what_sampling_makes() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let settings = Settings::from_layers(&[Layer::from_text("small", SMALL).unwrap()]);
    let settings = settings.unwrap().resolved();
    let shown = on_threads(2, || {
        let mut run = Run::begin(&folder, &settings, None).unwrap();
        let progress = (0..6).map(|_| run.advance().unwrap()).last().unwrap();
        assert!(progress.last && progress.held_out_loss.unwrap().is_finite());
        progress.picture.unwrap()
    });
    let (shown, _) = read_png(shown.unwrap()).unwrap();

    let out = place.path().join("again.png");
    sample(
        &folder,
        &out,
        &["--num", "9", "--steps", "7", "--seed", "3"],
    );
    let (made, texts) = read_png(&out).unwrap();
    assert!(made == shown, "the same seed gives other pictures");
    assert!(
        texts
            .iter()
            .any(|(key, value)| key == "seed" && value == "3")
    );
}

/// Levels by which pixels may differ on average: other processors round other sums, and a picture shows it here and there.
const GRAIN: f64 = 1.0;

#[test]
fn the_shipped_digits_are_the_ones_in_the_picture_beside_them() {
    let shipped = root().join("checkpoints/digits");
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("digits/");
    sample(&shipped, &out, &["--num", "16"]);
    let pictures: Vec<Picture> = (0..16)
        .map(|i| read_png(out.join(format!("{i:06}.png"))).unwrap().0)
        .collect();

    // The shipped sheet is 8 wide, every picture enlarged 4 times.
    let (sheet, _) = read_png(shipped.join("samples.png")).unwrap();
    let mut differences = Vec::new();
    for (i, picture) in pictures.iter().enumerate() {
        for y in 0..8 {
            for x in 0..8 {
                let (left, top) = (2 + (i % 8) * 34 + 4 * x, 2 + (i / 8) * 34 + 4 * y);
                let on_sheet = sheet.pixels()[top * sheet.width() + left];
                differences.push(f64::from(on_sheet.abs_diff(picture.pixels()[y * 8 + x])));
            }
        }
    }
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    assert!(mean < GRAIN, "pixels differ by {mean} levels on average");
}

#[test]
fn the_shipped_digits_are_near_real_ones_and_no_copies() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("digits/");
    sample(
        &root().join("checkpoints/digits"),
        &out,
        &["--num", "16", "--seed", "5"],
    );
    let real = ddpm_data::load(&DataSpec::Digits, None).unwrap();
    let distances = |pixels: &[u8]| {
        let of = |i| squared_distance(pixels, &real.train.image(i));
        (0..real.train.len()).map(of).fold(f64::INFINITY, f64::min)
    };
    let test = real.test.unwrap();
    let nearest_of_real = mean((0..16).map(|i| distances(&test.image(i))));
    let nearest_of_made = mean((0..16).map(|i| {
        distances(
            read_png(out.join(format!("{i:06}.png")))
                .unwrap()
                .0
                .pixels(),
        )
    }));
    let nearest_of_noise = mean((0..16u32).map(|i| {
        let noise: Vec<u8> = (0..64)
            .map(|p| ((i * 64 + p).wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        distances(&noise)
    }));
    // As near to the training images as unseen digits are, give or take; far from noise, and not the training images.
    let ratio = nearest_of_made / nearest_of_real;
    assert!(
        (0.4..2.0).contains(&ratio),
        "{nearest_of_made} for made, {nearest_of_real} for real digits"
    );
    assert!(
        nearest_of_made < nearest_of_noise / 3.0,
        "{nearest_of_made}, noise {nearest_of_noise}"
    );
}

fn sample(model: &Path, out: &Path, more: &[&str]) {
    let (model, out) = (model.display().to_string(), out.display().to_string());
    // A folder is asked for by a slash at its end.
    let out = if out.ends_with("digits") {
        format!("{out}/")
    } else {
        out
    };
    let words = ["ddpm-sample", "--quiet", "--model", &model, "--out", &out];
    let flags = Flags::try_parse_from(words.into_iter().chain(more.iter().copied())).unwrap();
    ddpm_sample::run(flags, &|| false)
        .map_err(|e| format!("{e:?}"))
        .unwrap();
}

fn squared_distance(a: &[u8], b: &[u8]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2))
        .sum()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
