//! What is to be done: flags held against the model, the noise file and the place for the result.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use candle_core::Tensor;
use ddpm_checkpoint::{
    Arch, Error, Model, check_new, find_shipped, resolve_model, resolve_model_as,
};
use ddpm_image::{Film, PixelMap};
use ddpm_samplers::{Clip, Sampler, SamplerKind};
use ddpm_unet::{SampleSize, UNet, UNetConfig};

use crate::flags::Rng;
use crate::noise_file::NoiseFile;
use crate::output::{Kind, Output, Story};
use crate::scheduler::{Chosen, choose, clip_of};
use crate::{Failure, Flags, PROGRAM};

/// Everything that sampling needs, checked: nothing that can be found out beforehand fails after it.
pub struct Request {
    pub(crate) network: UNet,
    pub(crate) sampler: Sampler,
    pub(crate) images: usize,
    pub(crate) batch_size: usize,
    pub(crate) shape: (usize, usize, usize),
    pub(crate) seed: u64,
    pub(crate) rng: Rng,
    pub(crate) noise: Option<NoiseFile>,
    /// What the user should know that is no error.
    pub(crate) notes: Vec<String>,
    pub(crate) pixels: PixelMap,
    story: Story,
    output: Output,
}

impl Request {
    /// Finds the model, reads its weights, checks every flag against it, and claims the place for the result.
    ///
    /// # Errors
    /// [`Failure::Usage`] for flags that contradict each other or the model, [`Failure::Failed`] for files.
    pub fn new(flags: Flags) -> Result<Self, Failure> {
        check_flags(&flags)?;
        let kind = kind(&flags.out, flags.strip)?;
        let model = find_model(&flags)?;
        let pixels = pixels(&model)?;
        pixels
            .check(model.unet.settings().in_channels)
            .context("the model's pixel map does not fit its network")?;
        let noise = flags.noise.as_deref().map(NoiseFile::read).transpose()?;
        let step_noise = noise.as_ref().is_some_and(|file| file.step_noise.is_some());
        let chosen = choose(&flags, &model, &pixels, step_noise)?;
        let draws = chosen.sampler.draws();
        let notes = notes(&model, draws, noise.as_ref());
        let images = images(&flags, noise.as_ref())?;
        check_seed(&flags, draws, noise.as_ref())?;
        let shape = image_shape(&model.unet, noise.as_ref())?;
        if let Some(noise) = &noise {
            noise.check_shape(shape)?;
            noise.check_draws(draws)?;
        }
        let output = Output::claim(&flags.out, kind)?;
        let pipeline = model.load(&flags.weights).map_err(anyhow::Error::from)?;
        let network = UNet::new(&pipeline.unet, &pipeline.weights)
            .map_err(anyhow::Error::from)?
            .in_precision(flags.precision.on_this_processor())
            .frozen();
        let story = story(&flags, &model, &chosen);
        let (batch_size, seed) = (flags.batch_size as usize, flags.seed.unwrap_or(0));
        Ok(Self {
            network,
            sampler: chosen.sampler,
            images,
            batch_size,
            shape,
            seed,
            rng: flags.rng,
            noise,
            notes,
            pixels,
            story,
            output,
        })
    }

    /// Steps per image.
    pub fn steps(&self) -> usize {
        self.sampler.steps()
    }

    /// `3x32x32`: channels, height, width.
    pub fn size_text(&self) -> String {
        let (c, h, w) = self.shape;
        format!("{c}x{h}x{w}")
    }

    /// What the walk is to be shown to, if anything.
    pub(crate) fn film(&self) -> Option<Film> {
        self.output.film(self.steps())
    }

    /// Writes the images, or their film, to the claimed place and returns it.
    ///
    /// # Errors
    /// When they cannot be written; nothing half-written stays.
    pub fn write(self, samples: &Tensor, film: Option<&Film>) -> anyhow::Result<String> {
        Ok(self
            .output
            .write(samples, film, &self.pixels, &self.story)?
            .display()
            .to_string())
    }
}

/// The model at the path given, or the shipped one.
pub(crate) fn find_model(flags: &Flags) -> Result<Model, Failure> {
    let model = match &flags.model {
        Some(path) => match Arch::new(&flags.arch) {
            Ok(arch) => resolve_model_as(path, &arch),
            Err(error) => Err(error),
        },
        None => resolve_model(&shipped_model()?),
    };
    model.map_err(|error| match error {
        Error::Unsaid { .. } | Error::ArchText(_) => usage(error.to_string()),
        error => Failure::Failed(error.into()),
    })
}

/// Writes the chosen weights of the model as a diffusers folder; returns what was done.
///
/// # Errors
/// The folder holds something already, or the model cannot be read.
pub(crate) fn save_model(flags: &Flags, folder: &Path) -> Result<String, Failure> {
    check_new(folder).map_err(anyhow::Error::from)?;
    let model = find_model(flags)?;
    let pipeline = model.load(&flags.weights).map_err(anyhow::Error::from)?;
    pipeline.save(folder).map_err(anyhow::Error::from)?;
    let (folder, parameters) = (folder.display(), pipeline.unet.parameter_count());
    Ok(format!(
        "{folder}: a diffusers folder, {parameters} parameters"
    ))
}

/// The model that a clone of the project brings along, looked for above the current folder and above the program.
fn shipped_model() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().ok();
    let starts: Vec<PathBuf> = std::env::current_dir()
        .ok()
        .into_iter()
        .chain(program)
        .collect();
    // The clone that the user stands in goes before the one that the program lies in.
    let found = starts.iter().find_map(|start| {
        let start = std::slice::from_ref(start);
        SHIPPED
            .iter()
            .find_map(|name| find_shipped(name, start).ok())
    });
    found.ok_or_else(|| {
        anyhow!(
            "no --model given, and there is no checkpoints/{} in any folder above the current one or the program; \
             give --model DIR: a run folder, a checkpoint or a diffusers folder",
            SHIPPED.join(" or checkpoints/")
        )
    })
}

/// The first that is there.
const SHIPPED: [&str; 2] = ["fashion-mnist", "digits"];

fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}

/// What can be seen without any file.
fn check_flags(flags: &Flags) -> Result<(), Failure> {
    let ddim = flags.sampler == Some(SamplerKind::Ddim);
    match ddim && flags.eta.unwrap_or(0.0) == 0.0 && flags.noise.is_some() {
        true => refuse_seed(flags, "--noise is the only noise of ddim with eta 0"),
        false => Ok(()),
    }
}

/// The kind of result, by its name and whether it is to be a strip.
fn kind(place: &Path, strip: bool) -> Result<Kind, Failure> {
    match Kind::of(place) {
        Some(Kind::Grid) if strip => Ok(Kind::Strip),
        Some(_) if strip => Err(usage(format!(
            "--strip would be ignored: it is for --out FILE.png, not {}",
            place.display()
        ))),
        Some(kind) => Ok(kind),
        None => Err(usage(format!(
            "--out {} is none of FILE.png, FILE.gif, FILE.npz, FILE.safetensors and DIR/ (a folder, with its slash)",
            place.display()
        ))),
    }
}

/// A seed that no noise would be drawn with is a mistake.
fn check_seed(flags: &Flags, draws: usize, noise: Option<&NoiseFile>) -> Result<(), Failure> {
    match noise {
        Some(noise) if noise.step_noise.is_some() => {
            refuse_seed(flags, "--noise brings all the noise of the walk")
        }
        Some(_) if draws == 0 => refuse_seed(flags, "this walk draws no noise besides --noise"),
        _ => Ok(()),
    }
}

fn refuse_seed(flags: &Flags, reason: &str) -> Result<(), Failure> {
    match flags.seed {
        Some(_) => Err(usage(format!("--seed would be ignored: {reason}"))),
        None => Ok(()),
    }
}

/// How the model's own scheduler would clip.
pub(crate) fn clip(model: &Model) -> anyhow::Result<Clip> {
    Ok(clip_of(&pixels(model)?, model)?.unwrap_or_else(|| model.scheduler.clip()))
}

/// `pixels` in the section `run` of the settings that the model was trained with; [-1, 1] if nothing is said.
fn pixels(model: &Model) -> anyhow::Result<PixelMap> {
    let said = model
        .run
        .as_ref()
        .and_then(|run| run.get("run")?.get("pixels"));
    let Some(said) = said else {
        return Ok(PixelMap::default());
    };
    said.clone()
        .try_into()
        .with_context(|| format!("{}: run.pixels", model.folder.join("run.toml").display()))
}

fn images(flags: &Flags, noise: Option<&NoiseFile>) -> Result<usize, Failure> {
    let there = noise.map(|noise| noise.noise.dims()[0]);
    match (flags.num, there) {
        (Some(asked), Some(there)) if asked as usize != there => Err(usage(format!(
            "--num is {asked}, but --noise holds the noise of {there} images"
        ))),
        (_, Some(there)) => Ok(there),
        (asked, None) => Ok(asked.unwrap_or(64) as usize),
    }
}

/// Channels, height, width: as the network's configuration says, or else the noise.
fn image_shape(
    unet: &UNetConfig,
    noise: Option<&NoiseFile>,
) -> Result<(usize, usize, usize), Failure> {
    let (h, w) = match (unet.settings().sample_size, noise) {
        (Some(SampleSize::Square(side)), _) => (side, side),
        (Some(SampleSize::Rectangle(h, w)), _) => (h, w),
        (None, Some(noise)) => (noise.noise.dims()[2], noise.noise.dims()[3]),
        (None, None) => {
            return Err(usage(
                "the model does not say how large its images are (`sample_size`); give --noise, whose shape says it",
            ));
        }
    };
    unet.check_image(h, w).map_err(anyhow::Error::from)?;
    let (c, out) = (unet.settings().in_channels, unet.settings().out_channels);
    // Twice as many: the second half is its word on the variance.
    if out != c && out != 2 * c {
        return Err(
            anyhow!("the network has {c} channels in and {out} out; images need as many").into(),
        );
    }
    Ok((c, h, w))
}

fn notes(model: &Model, draws: usize, noise: Option<&NoiseFile>) -> Vec<String> {
    let skipped = model
        .skipped
        .iter()
        .map(|skipped| format!("skipped a checkpoint that is not whole: {}", skipped.reason));
    let unused = noise
        .filter(|noise| draws == 0 && noise.step_noise.is_some())
        .map(|_| "this walk draws no noise; step_noise is not used".to_owned());
    skipped.chain(unused).collect()
}

fn story(flags: &Flags, model: &Model, chosen: &Chosen) -> Story {
    let mut story = vec![
        ("Software", PROGRAM.to_owned()),
        ("model", model.folder.display().to_string()),
        ("weights", flags.weights.to_string()),
        ("sampler", chosen.kind.to_string()),
        ("steps", chosen.sampler.steps().to_string()),
    ];
    if let Some(step) = model.step() {
        story.push(("training step", step.to_string()));
    }
    if let Sampler::Ddim(_, settings) = &chosen.sampler {
        story.push(("eta", settings.eta.to_string()));
    }
    match &flags.noise {
        Some(noise) => story.push(("noise", noise.display().to_string())),
        None => story.push(("seed", flags.seed.unwrap_or(0).to_string())),
    }
    if flags.rng == Rng::Torch {
        story.push(("rng", "torch".to_owned()));
        story.push(("batch size", flags.batch_size.to_string()));
    }
    if let (Some(_), Some(seed)) = (&flags.noise, flags.seed) {
        story.push(("seed", seed.to_string()));
    }
    story
}
