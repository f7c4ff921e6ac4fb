//! A model as diffusers keeps it: network, weights and scheduler in one folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use ddpm_samplers::{SchedulerClass, SchedulerConfig};
use ddpm_unet::{DIFFUSERS_VERSION, NetworkConfig, WeightsMismatch};
use serde_json::Value;

use crate::durable;
use crate::tensor_file::write_tensors;
use crate::tensors::{Tensors, open_tensors};
use crate::{Card, Error, Result};

/// Everything that sampling needs: the network, its weights and the diffusion it was trained for.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// The network's configuration (`unet/config.json`).
    pub unet: NetworkConfig,
    /// The network's weights by diffusers' names, f32, or f16 as made by [`Pipeline::in_f16`] (`unet/diffusion_pytorch_model.safetensors`).
    pub weights: Vec<(String, Tensor)>,
    /// Schedule, prediction and clipping (`scheduler/scheduler_config.json`).
    pub scheduler: SchedulerConfig,
    /// What of this model diffusers cannot express, one sentence each; empty for models that it runs as they are.
    ///
    /// If there is any, the folder gets no `model_index.json`, so that `DDPMPipeline.from_pretrained` refuses it
    /// instead of making wrong images, and a `not-a-diffusers-pipeline.md` that says why.
    pub beyond_diffusers: Vec<String>,
}

impl Pipeline {
    /// A model that diffusers can express.
    pub fn new(
        unet: impl Into<NetworkConfig>,
        weights: Vec<(String, Tensor)>,
        scheduler: SchedulerConfig,
    ) -> Self {
        Self {
            unet: unet.into(),
            weights,
            scheduler,
            beyond_diffusers: Vec::new(),
        }
    }

    /// The same model with its weights rounded to f16: half the file, and what diffusers and [`Pipeline::load`] read as
    /// f32 again.
    ///
    /// # Errors
    /// A weight that f16 cannot hold, by name.
    pub fn in_f16(mut self) -> Result<Self> {
        for (name, tensor) in &mut self.weights {
            let rounded = tensor.to_dtype(DType::F16)?;
            let largest = rounded.to_dtype(DType::F32)?.flatten_all()?;
            let mut numbers = largest.to_vec1::<f32>()?.into_iter();
            if !numbers.all(f32::is_finite) {
                return Err(Error::BeyondF16 { name: name.clone() });
            }
            *tensor = rounded;
        }
        Ok(self)
    }

    /// Writes a diffusers folder, whole or not at all, with a page (`README.md`) that the Hub can read.
    ///
    /// # Errors
    /// When the folder already holds something, the weights are not the network's, or a file cannot be written; the
    /// error names the path and what was being written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.save_with(folder, &[])
    }

    /// The page of the model.
    pub(crate) fn write_card(&self, folder: &Path, card: &Card<'_>) -> Result<()> {
        let text = card.text(self);
        durable::write_file(&folder.join(CARD), "the model's page", text.as_bytes())
    }

    /// As [`Pipeline::save`], with other files beside the model: the settings it was trained with, a picture, a page.
    /// Each is a name without folders, and its bytes.
    pub fn save_with(&self, folder: &Path, beside: &[(&str, &[u8])]) -> Result<()> {
        check_new(folder)?;
        durable::replace_folder(folder, "the model", |draft| {
            self.write_files(draft)?;
            if beside.iter().all(|(name, _)| *name != CARD) {
                let title = folder.file_name().map(|name| name.display().to_string());
                let card = Card {
                    title: title.unwrap_or_default(),
                    ..Card::default()
                };
                self.write_card(draft, &card)?;
            }
            let mut files = beside.iter();
            files.try_for_each(|(name, bytes)| durable::write_file(&draft.join(name), name, bytes))
        })
    }

    /// Reads a diffusers folder: a pipeline with `model_index.json`, the flat layout of early uploads to the Hub, or
    /// a bare `unet` folder with a scheduler beside it.
    ///
    /// # Errors
    /// When the folder is no model, holds another pipeline, network or scheduler than can be read, a file is cut
    /// short or does not parse, or tensors are missing, unknown or of the wrong shape (all named).
    pub fn load(folder: &Path) -> Result<Self> {
        let parts = Parts::find(folder)?;
        let (unet, scheduler) = (parts.read_unet()?, parts.read_scheduler()?);
        let weights = read_weights(open_tensors(&parts.weights)?.as_mut(), "", &unet)?;
        Ok(Self {
            unet,
            weights,
            scheduler,
            beyond_diffusers: read_note(folder)?,
        })
    }

    /// Fills an existing empty folder.
    pub(crate) fn write_files(&self, folder: &Path) -> Result<()> {
        self.check_weights(&folder.join(WEIGHTS))?;
        let (scheduler, reasons) = (self.scheduler.to_json(), self.reasons());
        for part in ["unet", "scheduler"] {
            fs::create_dir(folder.join(part))
                .map_err(Error::write("the model", &folder.join(part)))?;
        }
        let write = |name: &str, what: &str, text: &str| {
            durable::write_file(&folder.join(name), what, text.as_bytes())
        };
        if reasons.is_empty() {
            write(
                INDEX,
                "the model's index",
                &index_text(self.scheduler.class()),
            )?;
        } else {
            write(
                NOTE,
                "the note on what diffusers lacks",
                &note_text(&self.unet, &reasons),
            )?;
        }
        write(
            UNET_CONFIG,
            "the network's configuration",
            &self.unet.to_json(),
        )?;
        write(
            SCHEDULER_CONFIG,
            "the scheduler's configuration",
            &scheduler,
        )?;
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(
            &folder.join(WEIGHTS),
            "the weights",
            &self.weights,
            &metadata,
        )
    }

    fn check_weights(&self, path: &Path) -> Result<()> {
        let shapes = self
            .weights
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()))
            .collect();
        check_shapes(path, &shapes, "", &self.unet)
    }

    /// Why diffusers cannot run this model: what its owner says, its network and its scheduler.
    pub(crate) fn reasons(&self) -> BTreeSet<&str> {
        self.beyond_diffusers
            .iter()
            .map(String::as_str)
            .chain(self.unet.beyond_diffusers())
            .chain(self.scheduler.beyond_diffusers())
            .collect()
    }
}

/// Refuses a place that already holds something, before work is put into what would go there.
///
/// # Errors
/// There is a file, or a folder that is not empty.
pub fn check_new(folder: &Path) -> Result<()> {
    let filled = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if filled || folder.is_file() {
        return Err(Error::Exists(folder.to_owned()));
    }
    Ok(())
}

/// The index of a pipeline.
pub(crate) const INDEX: &str = "model_index.json";
/// The page of a model.
pub(crate) const CARD: &str = "README.md";
/// The sentence-by-sentence account of what diffusers cannot express, in place of the index.
pub(crate) const NOTE: &str = "not-a-diffusers-pipeline.md";
pub(crate) const UNET_CONFIG: &str = "unet/config.json";
pub(crate) const SCHEDULER_CONFIG: &str = "scheduler/scheduler_config.json";
pub(crate) const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
/// The files that a model may have besides its weights, in folders or flat: all that is read of one.
#[cfg(feature = "hub")]
pub(crate) const BESIDE: [&str; 7] = [
    INDEX,
    NOTE,
    "run.toml",
    UNET_CONFIG,
    SCHEDULER_CONFIG,
    "config.json",
    "scheduler_config.json",
];

/// Where the three parts of a model folder are.
#[derive(Debug)]
pub(crate) struct Parts {
    unet: PathBuf,
    scheduler: Option<PathBuf>,
    pub(crate) weights: PathBuf,
}

impl Parts {
    /// Finds the parts of a pipeline, in folders or flat, or of a bare network.
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            let found = if folder.exists() {
                "it is a file"
            } else {
                "there is nothing"
            };
            return Err(not_a_model(folder, found));
        }
        if folder.join(INDEX).is_file() {
            check_index(&folder.join(INDEX))?;
        }
        let network = [folder.join("unet"), folder.to_owned()]
            .into_iter()
            .find(|at| at.join("config.json").is_file());
        let Some(network) = network else {
            if folder.join(INDEX).is_file() {
                let path = folder.join(UNET_CONFIG);
                return Err(Error::Missing {
                    path,
                    why: "it describes the network",
                });
            }
            return Err(not_a_model(folder, "none of its files is one of a model"));
        };
        let beside = folder
            .parent()
            .filter(|_| folder.file_name().is_some_and(|name| name == "unet"));
        let schedulers = [
            Some(folder.join(SCHEDULER_CONFIG)),
            Some(folder.join("scheduler_config.json")),
        ]
        .into_iter()
        .chain([beside.map(|parent| parent.join(SCHEDULER_CONFIG))]);
        let scheduler = schedulers.flatten().find(|path| path.is_file());
        Ok(Self {
            unet: network.join("config.json"),
            scheduler,
            weights: find_weights(&network)?,
        })
    }

    pub(crate) fn read_unet(&self) -> Result<NetworkConfig> {
        let text = read_text(&self.unet)?;
        NetworkConfig::from_json(&text).map_err(|source| Error::Network {
            path: self.unet.clone(),
            source,
        })
    }

    pub(crate) fn read_scheduler(&self) -> Result<SchedulerConfig> {
        let Some(path) = &self.scheduler else {
            let path = self.unet.with_file_name("scheduler_config.json");
            return Err(Error::Missing {
                path,
                why: "without a scheduler's configuration nobody knows the network's noise schedule; \
                      put it here or into ../scheduler",
            });
        };
        SchedulerConfig::from_json(&read_text(path)?).map_err(|source| Error::Scheduler {
            path: path.clone(),
            source,
        })
    }

    /// Checks everything but the numbers: all files there, JSON parses, headers and lengths right, tensors fit.
    pub(crate) fn validate(&self) -> Result<NetworkConfig> {
        let unet = self.read_unet()?;
        self.read_scheduler()?;
        let weights = open_tensors(&self.weights)?;
        check_shapes(&self.weights, &weights.shapes(), "", &unet)?;
        Ok(unet)
    }
}

/// Reads the network's tensors `PREFIX NAME`, in construction order, after checking names and shapes.
///
/// Attention weights under the names that diffusers used before 0.17 are read as today's.
pub(crate) fn read_weights(
    file: &mut dyn Tensors,
    prefix: &str,
    unet: &NetworkConfig,
) -> Result<Vec<(String, Tensor)>> {
    let path = file.path().to_owned();
    let shapes = file.shapes();
    check_shapes(&path, &shapes, prefix, unet)?;
    let stored_as: BTreeMap<String, String> = shapes
        .into_keys()
        .map(|name| (modern_name(&name), name))
        .collect();
    let mut weights = Vec::new();
    for (name, shape) in unet.parameters() {
        let full = format!("{prefix}{name}");
        let tensor = file.read_f32(stored_as.get(&full).unwrap_or(&full))?;
        weights.push((name, tensor.reshape(shape)?));
    }
    Ok(weights)
}

/// Compares the tensors whose names begin with `prefix` with the network's parameters.
pub(crate) fn check_shapes(
    path: &Path,
    shapes: &BTreeMap<String, Vec<usize>>,
    prefix: &str,
    unet: &NetworkConfig,
) -> Result<()> {
    let mut there: BTreeMap<String, &Vec<usize>> = shapes
        .iter()
        .filter_map(|(name, shape)| Some((modern_name(name.strip_prefix(prefix)?), shape)))
        .collect();
    let mut mismatch = WeightsMismatch::default();
    for (name, expected) in unet.parameters() {
        match there.remove(&name) {
            None => mismatch.missing.push(format!("{prefix}{name}")),
            Some(found) if fits(&name, found, &expected) => {}
            Some(found) => mismatch.wrong.push(format!(
                "`{prefix}{name}` is {found:?}, expected {expected:?}"
            )),
        }
    }
    mismatch.extra = there
        .into_keys()
        .map(|name| format!("{prefix}{name}"))
        .collect();
    if mismatch.is_empty() {
        Ok(())
    } else {
        Err(Error::Architecture {
            path: path.to_owned(),
            mismatch,
        })
    }
}

/// The same shape, or a linear layer of attention stored as the 1x1 convolution that it was in early files.
fn fits(name: &str, found: &[usize], expected: &[usize]) -> bool {
    found == expected
        || (name.contains(".attentions.") && found.strip_suffix(&[1, 1]) == Some(expected))
}

/// diffusers 0.17 renamed the four linear layers of attention.
fn modern_name(name: &str) -> String {
    let renamed = [
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    ];
    let (rest, last) = name.rsplit_once('.').unwrap_or(("", name));
    if !rest.contains("attentions.") {
        return name.to_owned();
    }
    match renamed
        .iter()
        .find_map(|(old, new)| Some((rest.strip_suffix(old)?.strip_suffix('.')?, new)))
    {
        Some((stem, new)) => format!("{stem}.{new}.{last}"),
        None => name.to_owned(),
    }
}

const LOOKED_FOR: [&str; 4] = [
    "checkpoints/step-*/ (a run)",
    INDEX,
    UNET_CONFIG,
    "config.json with diffusion_pytorch_model.safetensors",
];

pub(crate) fn not_a_model(folder: &Path, found: &'static str) -> Error {
    Error::NotAModel {
        path: folder.to_owned(),
        found,
        looked_for: LOOKED_FOR.to_vec(),
    }
}

/// The weights in a network's folder.
fn find_weights(network: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(network).map_err(Error::read(network))?;
    let files: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    match choose_weights(&files, &network.display().to_string())? {
        Some(file) => Ok(network.join(file)),
        None => Err(Error::Missing {
            path: network.join(format!("{STEM}{}", KINDS[0].0)),
            why: "it holds the network's weights",
        }),
    }
}

const STEM: &str = "diffusion_pytorch_model";
/// Endings of a file of weights, those read first before others, and of the same file as a variant: what comes before
/// the variant's name and after it.
const KINDS: [(&str, (&str, &str)); 4] = [
    (".safetensors", (".", ".safetensors")),
    (".safetensors.index.json", (".safetensors.index.", ".json")),
    (".bin", (".", ".bin")),
    (".bin.index.json", (".bin.index.", ".json")),
];

/// Of the files of a network's folder, the one that is read as its weights: whole or in shards, safetensors before
/// pickles, and else a variant of those.
///
/// # Errors
/// There are several variants and nothing else; `place` is what the error calls the folder.
pub(crate) fn choose_weights(files: &[String], place: &str) -> Result<Option<String>> {
    let plain = KINDS.map(|(ending, _)| format!("{STEM}{ending}"));
    if let Some(file) = plain.into_iter().find(|file| files.contains(file)) {
        return Ok(Some(file));
    }
    let mut variants = BTreeMap::new();
    for (_, (before, after)) in KINDS {
        for file in files {
            let rest = file.strip_prefix(STEM).and_then(|r| r.strip_prefix(before));
            let variant = rest.and_then(|rest| rest.strip_suffix(after)).unwrap_or("");
            // Shards have a number, and are found by their index.
            if !variant.is_empty() && !variant.contains(['.', '-']) {
                variants.entry(variant.to_owned()).or_insert(file.clone());
            }
        }
    }
    let usual = ["fp16", "bf16"];
    if let Some(file) = usual.into_iter().find_map(|usual| variants.remove(usual)) {
        return Ok(Some(file));
    }
    if variants.len() > 1 {
        let names: Vec<String> = variants.into_keys().collect();
        let reason = format!(
            "there are only variants of the weights: {}; keep one of them, or rename it to {STEM}{}",
            names.join(", "),
            KINDS[0].0
        );
        return Err(Error::unsupported(Path::new(place), reason));
    }
    Ok(variants.into_values().next())
}

/// Refuses every pipeline that is not an unconditional one in pixel space.
fn check_index(path: &Path) -> Result<()> {
    let text = read_text(path)?;
    let index: Value =
        serde_json::from_str(&text).map_err(|error| Error::malformed(path, error))?;
    let Some(index) = index.as_object() else {
        return Err(Error::malformed(
            path,
            "expected an object with `_class_name`, `unet` and `scheduler`",
        ));
    };
    match index.get("_class_name") {
        Some(Value::String(class)) if PIPELINES.contains(&class.as_str()) => {}
        Some(Value::String(class)) => {
            let reason = format!(
                "pipeline {class} is not supported; supported are {}",
                PIPELINES.join(", ")
            );
            return Err(Error::unsupported(path, reason));
        }
        other => {
            return Err(Error::malformed(
                path,
                format!("`_class_name` should be a text, found {}", shown(other)),
            ));
        }
    }
    check_component(path, index.get("unet"), "unet", &["UNet2DModel"])?;
    let schedulers = SchedulerClass::NAMES.map(|(name, _)| name);
    check_component(path, index.get("scheduler"), "scheduler", &schedulers)
}

/// Those of one unconditional network in pixel space, the older ones among them.
const PIPELINES: [&str; 5] = [
    "DDPMPipeline",
    "DDIMPipeline",
    "PNDMPipeline",
    "ScoreSdeVePipeline",
    "RePaintPipeline",
];

fn check_component(
    path: &Path,
    entry: Option<&Value>,
    name: &str,
    supported: &[&str],
) -> Result<()> {
    let class = entry.and_then(|entry| match entry.as_array()?.as_slice() {
        [Value::String(_), Value::String(class)] => Some(class),
        _ => None,
    });
    let Some(class) = class else {
        let reason = format!(
            "`{name}` should be a library and a class, as [\"diffusers\", ...], found {}",
            shown(entry)
        );
        return Err(Error::malformed(path, reason));
    };
    if supported.contains(&class.as_str()) {
        return Ok(());
    }
    let reason = format!(
        "{name} {class} is not supported; supported are {}",
        supported.join(", ")
    );
    Err(Error::unsupported(path, reason))
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}

/// Bytes of a text: those of an index of a hundred thousand tensors, and no more memory than that.
const LONGEST_TEXT: u64 = 64 << 20;

pub(crate) fn read_text(path: &Path) -> Result<String> {
    let file = fs::File::open(path).map_err(Error::read(path))?;
    let mut bytes = Vec::new();
    let mut start = file.take(LONGEST_TEXT + 1);
    start.read_to_end(&mut bytes).map_err(Error::read(path))?;
    if bytes.len() as u64 > LONGEST_TEXT {
        let reason = format!("it has more than {LONGEST_TEXT} bytes");
        return Err(Error::malformed(path, reason));
    }
    String::from_utf8(bytes)
        .map_err(|error| Error::malformed(path, format!("it is not text: {error}")))
}

/// `DDIMPipeline` turns every scheduler into its own; `DDPMPipeline` runs the one it is given.
fn index_text(scheduler: SchedulerClass) -> String {
    let pipeline = match scheduler {
        SchedulerClass::Ddim => PIPELINES[1],
        _ => PIPELINES[0],
    };
    format!(
        "{{\n  \"_class_name\": \"{pipeline}\",\n  \"_diffusers_version\": \"{DIFFUSERS_VERSION}\",\n  \
         \"scheduler\": [\n    \"diffusers\",\n    \"{scheduler}\"\n  ],\n  \
         \"unet\": [\n    \"diffusers\",\n    \"UNet2DModel\"\n  ]\n}}\n"
    )
}

fn note_text(unet: &NetworkConfig, reasons: &BTreeSet<&str>) -> String {
    let head = format!("# Not a diffusers pipeline\n\n{}:\n\n", told_apart(unet));
    reasons.iter().fold(head, |text, reason| {
        format!("{text}- {}\n", reason.replace('\n', " "))
    })
}

/// What `unet/` is where no pipeline of diffusers makes a model's images.
pub(crate) fn told_apart(unet: &NetworkConfig) -> String {
    match unet.as_unet_2d() {
        Some(config) if config.opens_in_diffusers() => "`unet/` loads as diffusers' `UNet2DModel`, but no pipeline of diffusers makes its images"
            .to_owned(),
        _ => format!(
            "`unet/` is a `{}` that this project's programs load and diffusers does not",
            unet.class_name()
        ),
    }
}

fn read_note(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(NOTE);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    Ok(read_text(&path)?
        .lines()
        .filter_map(|line| line.strip_prefix("- "))
        .map(str::to_owned)
        .collect())
}
