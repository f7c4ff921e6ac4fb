//! A model to ship out of a run: its averaged weights as a diffusers folder, with recipe, measured result and picture.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use ddpm_checkpoint::{Card, Model, Pipeline, Weights, check_new, resolve_model};
use ddpm_image::PixelMap;
use ddpm_unet::{SampleSize, UNet};

use crate::init::trainable;
use crate::run::{PER_CHANNEL, read_data};
use crate::samples::picture_bytes;
use crate::state::counter;
use crate::{Error, HeldOut, Objective, Recorded, Result, Settings};

/// The type that shipped weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As they were trained.
    F32,
    /// Rounded to 16 bits: half the size.
    F16,
}

/// What [`export`] wrote, measured on the weights as they are stored.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The checkpoint that it comes from.
    pub checkpoint: PathBuf,
    /// The optimiser steps behind it.
    pub step: u64,
    /// Bytes of the weights' numbers.
    pub bytes: usize,
    /// The held-out loss, or why it was not measured.
    pub held_out_loss: std::result::Result<f64, String>,
    /// The picture, or why there is none.
    pub picture: std::result::Result<PathBuf, String>,
}

/// Writes the model of a run (its newest whole checkpoint, or a checkpoint itself) into the new folder `folder`: a
/// diffusers pipeline, `run.toml`, `samples.png` as the run draws it (none where `samples.count` is 0), and a `README.md`
/// that says how it was made and what was measured. Everything is measured and drawn with the weights as they are stored.
///
/// # Errors
/// `folder` holds something already; `run` is no run of this program, or has no such weights; a weight is beyond f16;
/// something cannot be written. Data that are not there are no error: the loss is then not measured.
pub fn export(run: &Path, folder: &Path, weights: &Weights, stored: Stored) -> Result<Exported> {
    check_new(folder)?;
    let model = resolve_model(run)?;
    let Recorded {
        settings, preset, ..
    } = Recorded::read(&model.folder)?;
    let mut pipeline = model.load(weights)?;
    if stored == Stored::F16 {
        pipeline = pipeline.in_f16()?;
    }
    let pixels = settings.data.normalisation.pixel_map()?;
    let said = PER_CHANNEL.to_owned();
    if pixels != PixelMap::MinusOneToOne && !pipeline.beyond_diffusers.contains(&said) {
        pipeline.beyond_diffusers.push(said);
    }
    let objective = Objective::new(&settings.diffusion)?;
    let place = model.folder.display().to_string();
    let unet = trainable(&pipeline.unet, &place)?;
    let network = UNet::new(unet, &in_f32(&pipeline)?)?.frozen();
    let exported = Exported {
        step: counter(&model.counters, "step", &place)?,
        bytes: pipeline.weights.iter().map(|(_, t)| size(t)).sum(),
        held_out_loss: held_out_loss(&settings, &objective, &network),
        checkpoint: model.folder.clone(),
        picture: match settings.samples.count {
            0 => Err("`samples.count` is 0".into()),
            _ => Ok(folder.join(PICTURE)),
        },
    };
    let picture = match exported.picture {
        Ok(_) => {
            let shape = image_shape(&model)?;
            picture_bytes(&objective, &network, &settings.samples, &pixels, shape).map(Some)?
        }
        Err(_) => None,
    };
    let run_toml = model.folder.join("run.toml");
    let run_toml =
        std::fs::read_to_string(&run_toml).map_err(|e| Error::io("read", &run_toml, e))?;
    let told = Told {
        name: folder
            .file_name()
            .map_or_else(String::new, |name| name.display().to_string()),
        preset,
        settings: &settings,
        model: &model,
        weights,
        stored,
        exported: &exported,
        parameters: pipeline.unet.parameter_count(),
    };
    let page = card(&told, &run_toml).text(&pipeline);
    let mut beside: Vec<(&str, &[u8])> = vec![
        ("run.toml", run_toml.as_bytes()),
        ("README.md", page.as_bytes()),
    ];
    beside.extend(picture.iter().map(|bytes| (PICTURE, bytes.as_slice())));
    pipeline.save_with(folder, &beside)?;
    Ok(exported)
}

const PICTURE: &str = "samples.png";

/// The weights as every program reads them out of the folder.
fn in_f32(pipeline: &Pipeline) -> Result<Vec<(String, Tensor)>> {
    let widen = |(name, tensor): &(String, Tensor)| {
        let tensor = tensor.to_dtype(DType::F32)?;
        Ok((name.clone(), tensor))
    };
    pipeline.weights.iter().map(widen).collect()
}

fn size(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}

fn held_out_loss(
    settings: &Settings,
    objective: &Objective,
    network: &UNet,
) -> std::result::Result<f64, String> {
    let train = &settings.train;
    if train.held_out_images == 0 {
        return Err("the run held no images out".into());
    }
    let measured = || -> Result<Option<f64>> {
        let data = read_data(settings)?;
        let Some(test) = data.test else {
            return Ok(None);
        };
        let at_once = train.micro_batch.unwrap_or(train.batch_size);
        let pixels = settings.data.normalisation.pixel_map()?;
        let held_out = HeldOut::new(objective, &test, &pixels, train.held_out_images, at_once)?;
        held_out.loss(objective, network).map(Some)
    };
    match measured() {
        Ok(Some(loss)) => Ok(loss),
        Ok(None) => Err("the data have no test split".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn image_shape(model: &Model) -> Result<(usize, usize, usize)> {
    let (height, width) = match model.unet.sample_size() {
        Some(SampleSize::Square(side)) => (side, side),
        Some(SampleSize::Rectangle(height, width)) => (height, width),
        None => {
            return Err(Error::State {
                place: model.folder.display().to_string(),
                problem: "`sample_size` is missing: nobody knows how large its images are".into(),
            });
        }
    };
    Ok((model.unet.channels(), height, width))
}

/// What the page tells.
struct Told<'a> {
    name: String,
    preset: Option<String>,
    settings: &'a Settings,
    model: &'a Model,
    weights: &'a Weights,
    stored: Stored,
    exported: &'a Exported,
    parameters: usize,
}

/// The page beside the model: recipe, measured result, settings.
fn card<'a>(told: &Told<'_>, run_toml: &'a str) -> Card<'a> {
    let settings = told.settings;
    let count = |name: &str| told.model.counters.get(name).map_or("?", String::as_str);
    let recipe = match &told.preset {
        Some(preset) => format!("`cargo xtask train {preset}`, with the settings in `run.toml`"),
        None => format!(
            "`cargo run --release -p ddpm-train -- --config run.toml --out runs/{}`",
            told.name
        ),
    };
    let kind = match told.stored {
        Stored::F32 => "f32",
        Stored::F16 => "f16",
    };
    let weights = match (told.weights, settings.ema.rates.first()) {
        (Weights::Ema, Some(rate)) => format!("average of rate {rate}"),
        (Weights::Ema, None) => "raw".to_owned(),
        (other, _) => other.to_string(),
    };
    let loss = match &told.exported.held_out_loss {
        Ok(loss) => format!(
            "{loss:.5}, on {} images never trained on, at fixed t and noise, with the weights as stored",
            settings.train.held_out_images
        ),
        Err(why) => format!("not measured: {}", why.replace(['\n', '|'], " ")),
    };
    let minutes = count("seconds").parse().unwrap_or(f64::NAN) / 60.0;
    let samples = &settings.samples;
    let rows = vec![
        ("recipe", recipe),
        (
            "program",
            concat!("ddpm-train ", env!("CARGO_PKG_VERSION")).to_owned(),
        ),
        ("data", settings.data.name.clone()),
        (
            "training",
            format!(
                "{} steps of {} images ({} images), {minutes:.0} minutes",
                told.exported.step,
                settings.train.batch_size,
                count("images"),
            ),
        ),
        (
            "weights",
            format!(
                "{} parameters, {weights}, {kind}: {} bytes",
                told.parameters, told.exported.bytes
            ),
        ),
        ("held-out loss", loss),
        (
            "picture",
            match &told.exported.picture {
                Ok(_) => format!(
                    "`{PICTURE}`: `cargo run --release -p ddpm-sample -- --model {} --num {} --steps {} --seed {} --out {PICTURE}`",
                    told.name, samples.count, samples.steps, samples.seed
                ),
                Err(why) => format!("none: {why}"),
            },
        ),
    ];
    let loss = told.exported.held_out_loss.as_ref().ok();
    Card {
        title: told.name.clone(),
        data: Some(settings.data.name.clone()),
        metrics: loss
            .map(|&loss| ("held-out loss", loss))
            .into_iter()
            .collect(),
        picture: told.exported.picture.is_ok().then_some(PICTURE),
        rows,
        settings: Some(run_toml),
    }
}
