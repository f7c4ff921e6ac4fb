//! What is to be done: flags held against the model, the noise file and the place for the result.

use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use candle_core::Tensor;
use ddpm_checkpoint::{
    Arch, Error, Model, Pipeline, check_new, find_shipped, resolve_model, resolve_model_with,
};
use ddpm_image::{Film, PixelMap};
use ddpm_samplers::{Clip, Process, SamplerKind, SchedulerClass};
use ddpm_unet::{
    DeviceName, Network, NetworkConfig, Place, Precision, PrecisionName, SampleSize, is_a_card,
};

use crate::classes::Labels;
use crate::flags::Rng;
use crate::noise_file::NoiseFile;
use crate::output::{Kind, Output, Story};
use crate::pictures::{check, read_images, read_mask};
use crate::scheduler::{Chosen, choose, clip_of, note, paint};
use crate::way::Way;
use crate::{Failure, Flags, PROGRAM};

/// Everything that sampling needs, checked: nothing that can be found out beforehand fails after it.
pub struct Request {
    pub(crate) network: Network,
    pub(crate) way: Way,
    /// The whole process of training, for a network that is told its last x_0-hat.
    pub(crate) process: Option<Process>,
    /// Where the walk goes.
    pub(crate) place: Place,
    /// The classes of a network that knows some.
    pub(crate) labels: Option<Labels>,
    /// The images that noise is to be found for.
    pub(crate) inverted: Option<Tensor>,
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
        let kind = kind(&flags)?;
        let model = find_model(&flags)?;
        let pixels = pixels(&model)?;
        pixels
            .check(model.unet.channels())
            .context("the model's pixel map does not fit its network")?;
        let precision = precision(&flags, &model.unet)?;
        let noise = flags.noise.as_deref().map(NoiseFile::read).transpose()?;
        let given = Given::read(&flags, &pixels)?;
        let images = images(&flags, &model.unet, noise.as_ref(), given.as_ref())?;
        let shape = image_shape(&model.unet, noise.as_ref(), given.as_ref())?;
        if let Some(given) = &given {
            given.check(images, shape)?;
        }
        let labels = Labels::choose(&flags, model.unet.class_kind(), noise.as_ref(), images)?;
        let (inverted, painted) = match given {
            Some(Given {
                images,
                known: None,
                ..
            }) => (Some(images.0), None),
            Some(Given {
                images,
                known: Some(known),
            }) => (None, Some((images.0, known.0))),
            None => (None, None),
        };
        let step_noise = noise.as_ref().is_some_and(|file| file.step_noise.is_some());
        let chosen = match painted {
            Some(painted) => paint(&flags, &model, &pixels, painted)?,
            None => choose(&flags, &model, &pixels, step_noise)?,
        };
        let draws = chosen.way.draws();
        let place = Place::open(flags.device).context("--device")?;
        let mut notes = notes(&model, draws, noise.as_ref());
        notes.extend(note(&flags, &model));
        let drawn = labels.as_ref().and_then(|labels| labels.note);
        notes.extend(drawn.map(str::to_owned));
        if place.plans() {
            notes.extend(unplanned(&flags, &model.unet)?);
        }
        notes.push(format!("device {place}"));
        check_seed(&flags, draws, noise.as_ref())?;
        if let Some(noise) = &noise {
            noise.check_shape(shape)?;
            noise.check_draws(draws)?;
        }
        let name = if inverted.is_some() {
            "noise"
        } else {
            "samples"
        };
        let output = Output::claim(&flags.out, kind, name)?;
        let pipeline = model.load(&flags.weights).map_err(anyhow::Error::from)?;
        let network = network(&pipeline, precision, &place)?;
        let story = story(&flags, &model, &chosen, labels.as_ref());
        let (batch_size, seed) = (flags.batch_size as usize, flags.seed.unwrap_or(0));
        Ok(Self {
            network,
            place,
            way: chosen.way,
            process: chosen.process,
            labels,
            inverted,
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
        self.way.steps()
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
            .write(
                samples,
                film,
                &self.pixels,
                (&self.story, self.labels.as_ref()),
            )?
            .display()
            .to_string())
    }
}

/// The model at the path given, or the shipped one.
pub(crate) fn find_model(flags: &Flags) -> Result<Model, Failure> {
    let model = match &flags.model {
        Some(path) => match Arch::new(&flags.arch) {
            Ok(arch) => resolve_model_with(path, &arch, &mut |file, have, size| {
                tell_fetched(flags.quiet, file, have, size);
            }),
            Err(error) => Err(error),
        },
        None => resolve_model(&shipped_model()?),
    };
    model.map_err(|error| match error {
        Error::Unsaid { .. } | Error::ArchText(_) => usage(error.to_string()),
        error => Failure::Failed(error.into()),
    })
}

/// Says how much of a file of the Hub has come.
fn tell_fetched(quiet: bool, file: &str, have: u64, size: u64) {
    if !quiet {
        let line = format!("fetching {file}: {} of {} kB", have / 1000, size / 1000);
        drop(writeln!(stderr(), "{line}"));
    }
}

/// Writes the chosen weights of the model as a folder, diffusers' where it has the network; returns what was done.
///
/// # Errors
/// The folder holds something already, or the model cannot be read.
pub(crate) fn save_model(flags: &Flags, folder: &Path) -> Result<String, Failure> {
    check_new(folder).map_err(anyhow::Error::from)?;
    let model = find_model(flags)?;
    let pipeline = model.load(&flags.weights).map_err(anyhow::Error::from)?;
    // The settings say how pixels are to be mapped.
    let settings = match &model.run {
        Some(_) => std::fs::read(model.folder.join("run.toml")).context("cannot read run.toml")?,
        None => Vec::new(),
    };
    let beside = [("run.toml", settings.as_slice())];
    let beside = if settings.is_empty() {
        &beside[..0]
    } else {
        &beside[..]
    };
    let saved = pipeline.save_with(folder, beside);
    saved.map_err(anyhow::Error::from)?;
    let kind = match pipeline.unet.as_unet_2d() {
        Some(unet) if unet.opens_in_diffusers() => "a diffusers folder".to_owned(),
        _ => format!(
            "a folder of a {}, which diffusers does not load",
            pipeline.unet.class_name()
        ),
    };
    let (folder, parameters) = (folder.display(), pipeline.unet.parameter_count());
    Ok(format!("{folder}: {kind}, {parameters} parameters"))
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
fn kind(flags: &Flags) -> Result<Kind, Failure> {
    let (place, strip) = (&flags.out, flags.strip);
    match Kind::of(place) {
        Some(kind) if flags.invert.is_some() && kind != Kind::Safetensors => Err(usage(format!(
            "--invert makes noise, which goes into --out FILE.safetensors, not {}",
            place.display()
        ))),
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

/// The network with its weights in the place, to be evaluated there.
fn network(pipeline: &Pipeline, precision: Precision, place: &Place) -> anyhow::Result<Network> {
    let moved = pipeline.weights.iter().map(|(name, weights)| {
        let weights = weights.to_device(place.device())?;
        Ok((name.clone(), weights))
    });
    let weights: Vec<(String, Tensor)> = moved.collect::<anyhow::Result<_>>()?;
    let network = Network::new(&pipeline.unet, &weights)?;
    let network = network.in_precision(precision);
    Ok(match place.goes_by_graph() {
        true => network.by_graph().frozen(),
        false => network.frozen(),
    })
}

/// What the network is to compute in.
fn precision(flags: &Flags, unet: &NetworkConfig) -> Result<Precision, Failure> {
    if (flags.precision, flags.device) == (PrecisionName::Bf16, DeviceName::CpuGraph) {
        return Err(usage(
            "--precision bf16 cannot be had: the operations of --device cpu-graph are f32; cpu and cuda have bf16",
        ));
    }
    if flags.precision == PrecisionName::Auto && is_a_card(flags.device) {
        return Ok(Precision::F32);
    }
    if flags.precision == PrecisionName::Bf16 {
        let why = unet.unplanned().map_err(anyhow::Error::from)?;
        if let Some(why) = why {
            return Err(usage(format!(
                "--precision bf16 cannot be had: this network has {why}, for which there is only f32"
            )));
        }
    }
    Ok(flags.precision.on_this_processor())
}

/// What there is to say of a network that goes another way than the fast one.
fn unplanned(flags: &Flags, unet: &NetworkConfig) -> anyhow::Result<Option<String>> {
    let in_f32 = match flags.precision {
        PrecisionName::Auto => ", and in f32",
        _ => "",
    };
    let why = unet.unplanned()?;
    Ok(why.map(|why| {
        format!("the network has {why}: it goes operation by operation, slower than others of its size{in_f32}")
    }))
}

/// Images that the walk is about, and where they are known; each with its file.
struct Given<'a> {
    images: (Tensor, &'a Path),
    /// For RePaint; without it the images are to be inverted.
    known: Option<(Tensor, &'a Path)>,
}

impl<'a> Given<'a> {
    fn read(flags: &'a Flags, pixels: &PixelMap) -> anyhow::Result<Option<Self>> {
        let Some(path) = flags.inpaint.as_deref().or(flags.invert.as_deref()) else {
            return Ok(None);
        };
        let known = flags.mask.as_deref();
        let known = known.map(|mask| Ok::<_, anyhow::Error>((read_mask(mask)?, mask)));
        Ok(Some(Self {
            images: (read_images(path, pixels)?, path),
            known: known.transpose()?,
        }))
    }

    /// Each must be one for all images, or one for each.
    fn check(&self, images: usize, shape: (usize, usize, usize)) -> anyhow::Result<()> {
        let (tensor, path) = &self.images;
        check(path, tensor, images, shape, false)?;
        match &self.known {
            Some((tensor, path)) => check(path, tensor, images, shape, true),
            None => Ok(()),
        }
    }

    /// How many images the files are for: 1 is for any number, but for images to be inverted.
    fn count(&self) -> anyhow::Result<usize> {
        let known = self
            .known
            .as_ref()
            .map_or(Ok(1), |(known, _)| known.dim(0))?;
        Ok(self.images.0.dim(0)?.max(known))
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
        return match (model.run.is_none(), model.scheduler.class()) {
            // diffusers' ScoreSdeVePipeline clamps to 0..1, and that is its image.
            (true, SchedulerClass::ScoreSdeVe) => {
                let channels = model.unet.channels();
                let zero_to_one = PixelMap::per_channel(vec![0.0; channels], vec![1.0; channels]);
                Ok(zero_to_one?)
            }
            _ => Ok(PixelMap::default()),
        };
    };
    said.clone()
        .try_into()
        .with_context(|| format!("{}: run.pixels", model.folder.join("run.toml").display()))
}

fn images(
    flags: &Flags,
    unet: &NetworkConfig,
    noise: Option<&NoiseFile>,
    given: Option<&Given<'_>>,
) -> Result<usize, Failure> {
    let asked = flags.num.map(|asked| asked as usize);
    let given = given.map(Given::count).transpose()?;
    let (there, what) = match (noise, given) {
        (Some(noise), _) => (noise.noise.dims()[0], "--noise holds the noise of"),
        (None, Some(1)) if flags.inpaint.is_some() => return Ok(asked.unwrap_or(1)),
        (None, Some(given)) if flags.inpaint.is_some() => (given, "--inpaint and --mask hold"),
        (None, Some(given)) => (given, "--invert holds"),
        (None, None) => {
            let usual = Labels::usual_number(flags, unet.class_kind(), 64);
            return Ok(asked.unwrap_or(usual));
        }
    };
    match asked {
        Some(asked) if asked != there => Err(usage(format!(
            "--num is {asked}, but {what} {there} images"
        ))),
        _ => Ok(there),
    }
}

/// Channels, height, width: as the network's configuration says, or else the noise.
fn image_shape(
    unet: &NetworkConfig,
    noise: Option<&NoiseFile>,
    given: Option<&Given<'_>>,
) -> Result<(usize, usize, usize), Failure> {
    let given = given.map(|given| &given.images.0);
    let like = noise.map(|file| &file.noise).or(given);
    let (h, w) = match (unet.sample_size(), like) {
        (Some(SampleSize::Square(side)), _) => (side, side),
        (Some(SampleSize::Rectangle(h, w)), _) => (h, w),
        (None, Some(like)) => (like.dims()[2], like.dims()[3]),
        (None, None) => {
            return Err(usage(
                "the model does not say how large its images are (`sample_size`); give --noise, whose shape says it",
            ));
        }
    };
    unet.check_image(h, w).map_err(anyhow::Error::from)?;
    let (c, out) = (unet.channels(), unet.out_channels());
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
    let hub = model.hub.iter().map(ToString::to_string);
    hub.chain(skipped).chain(unused).collect()
}

fn story(flags: &Flags, model: &Model, chosen: &Chosen, labels: Option<&Labels>) -> Story {
    let mut story = vec![
        ("Software", PROGRAM.to_owned()),
        (
            "model",
            model
                .hub
                .as_ref()
                .map_or_else(|| model.folder.display().to_string(), ToString::to_string),
        ),
        ("weights", flags.weights.to_string()),
        ("sampler", chosen.name.clone()),
        ("steps", chosen.steps.to_string()),
    ];
    if let Some(step) = model.step() {
        story.push(("training step", step.to_string()));
    }
    if let Some(eta) = chosen.eta {
        story.push(("eta", eta.to_string()));
    }
    if let Some(labels) = labels {
        story.push(("class", labels.how.clone()));
    }
    let files = [
        ("inpainted", &flags.inpaint),
        ("mask", &flags.mask),
        ("inverted", &flags.invert),
    ];
    for (key, file) in files {
        story.extend(file.iter().map(|file| (key, file.display().to_string())));
    }
    if flags.inpaint.is_some() {
        story.push(("jumps", flags.jumps.unwrap_or_default().to_string()));
    }
    match &flags.noise {
        Some(noise) => story.push(("noise", noise.display().to_string())),
        None if flags.invert.is_some() => {}
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
