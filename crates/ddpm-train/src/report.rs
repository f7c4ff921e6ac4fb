//! `report.html`: what a run has come to, on one page that opens without a server, and its pictures as files beside it.

mod curves;
mod nearest;
mod page;
mod pictures;

use std::path::{Path, PathBuf};

use ddpm_checkpoint::{Weights, resolve_model};
use ddpm_data::Dataset;
use ddpm_image::{Film, Picture, PixelMap, beside, write_png};
use ddpm_unet::UNet;
use toml::Table;

use crate::durable::replace_file;
use crate::init::trainable;
use crate::metrics::whole_lines;
use crate::samples::film;
use crate::{Error, MetricsLine, Objective, Result, Settings};

pub use nearest::{Neighbour, nearest};

/// What a report is made from.
pub(crate) struct Evidence<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) settings: &'a Settings,
    /// The section `run` of `run.toml`: program, preset, SHA-256 of the data.
    pub(crate) run: Table,
    pub(crate) objective: &'a Objective,
    pub(crate) data: &'a Dataset,
    /// How the network sees its bytes.
    pub(crate) pixels: &'a PixelMap,
    /// Images of the test split, as many as there are samples, where there is such a split.
    pub(crate) held_out: Vec<Picture>,
    /// The samples and how they came about; none where the settings ask for none.
    pub(crate) samples: Option<Samples>,
    pub(crate) counts: Counts,
}

/// Samples from the averaged weights.
#[derive(Clone)]
pub(crate) struct Samples {
    pub(crate) pictures: Vec<Picture>,
    pub(crate) film: Film,
}

/// How much a run has done.
pub(crate) struct Counts {
    pub(crate) step: u64,
    pub(crate) images: u64,
    pub(crate) seconds: f64,
    pub(crate) parameters: usize,
    pub(crate) checkpoint: Option<PathBuf>,
}

/// What was made for the page, in the order in which it is shown.
struct Shown {
    metrics: Vec<MetricsLine>,
    forward: Picture,
    walk: Option<Walk>,
}

/// What the samples give.
struct Walk {
    reverse: Picture,
    animation: Vec<u8>,
    samples: Picture,
    real: Picture,
    likeness: nearest::Likeness,
}

/// Where the files of a report are, from the run's folder.
const PAGE: &str = "report.html";
const LOSS: &str = "loss.png";
const FORWARD: &str = "samples/forward.png";
const REVERSE: &str = "samples/reverse.png";
const ANIMATION: &str = "samples/reverse.gif";
const BESIDE_REAL: &str = "samples/beside-real.png";
const NEAREST: &str = "samples/nearest.png";

/// Writes the report and every picture on it, each file whole or not at all, the page last. Returns the page's path.
pub(crate) fn write(evidence: &Evidence<'_>) -> Result<PathBuf> {
    let folder = evidence.folder;
    let samples = folder.join("samples");
    std::fs::create_dir_all(&samples).map_err(|e| Error::io("make the folder", &samples, e))?;
    let metrics = whole_lines(&folder.join("metrics.jsonl"))?;
    let loss = curves::loss(&metrics, evidence.data.name());
    let png = |name: &str, picture: &Picture| {
        let program = ("Software", PROGRAM.to_owned());
        write_png(folder.join(name), picture, &[program]).map_err(Error::from)
    };
    png(LOSS, &loss.picture(960, 540)?)?;
    let forward = pictures::forward(evidence)?;
    png(FORWARD, &forward)?;
    let walk = evidence.samples.as_ref().map(|samples| -> Result<Walk> {
        let walk = pictures::walk(evidence, samples)?;
        png(REVERSE, &walk.reverse)?;
        replace_file(&folder.join(ANIMATION), &walk.animation)?;
        png(
            BESIDE_REAL,
            &beside(&[walk.samples.clone(), walk.real.clone()])?,
        )?;
        png(NEAREST, &pictures::pairs(&walk.likeness)?)?;
        Ok(walk)
    });
    let shown = Shown {
        metrics,
        forward,
        walk: walk.transpose()?,
    };
    let page = folder.join(PAGE);
    replace_file(&page, page::html(evidence, &shown)?.as_bytes())?;
    Ok(page)
}

/// The program, as files name it.
pub(crate) const PROGRAM: &str = concat!("ddpm-train ", env!("CARGO_PKG_VERSION"));

/// What a checkpoint tells of how far a run has come, and its network.
pub(crate) fn newest_network(folder: &Path) -> Result<(UNet, Counts)> {
    let model = resolve_model(folder)?;
    let pipeline = model.load(&Weights::Ema)?;
    let unet = trainable(&pipeline.unet, &folder.display().to_string())?;
    let network = UNet::new(unet, &pipeline.weights)?.frozen();
    let count = |name: &str| model.counters.get(name).and_then(|text| text.parse().ok());
    let seconds = model
        .counters
        .get("seconds")
        .and_then(|text| text.parse().ok());
    let counts = Counts {
        step: model.step().unwrap_or(0),
        images: count("images").unwrap_or(0),
        seconds: seconds.unwrap_or(0.0),
        parameters: pipeline.unet.parameter_count(),
        checkpoint: Some(model.folder.clone()),
    };
    Ok((network, counts))
}

/// The samples of the settings, with the film of their walk; none where the settings ask for none.
pub(crate) fn samples(
    objective: &Objective,
    network: &UNet,
    settings: &Settings,
    (data, pixels): (&Dataset, &PixelMap),
) -> Result<Option<Samples>> {
    if settings.samples.count == 0 {
        return Ok(None);
    }
    let shape = (data.channels(), data.height(), data.width());
    film(objective, network, &settings.samples, pixels, shape).map(Some)
}
