//! Models that others' programs wrote: recognised by the names of their tensors, converted to folders, diffusers' where
//! diffusers has the network.
//!
//! | layout | recognised by | written by |
//! |---|---|---|
//! | Ho's | `temb.dense.0.weight` | pesser's conversion of Ho's models, DDIM's program, and their kin |
//! | OpenAI's | `input_blocks.0.0.weight` | improved-diffusion, guided-diffusion |
//! | lucidrains' | `init_conv.weight` | denoising-diffusion-pytorch, since version 0.22.0 |
//! | k-diffusion's `image_v1` | `u_net.d_blocks.0.1.main.2.weight` | k-diffusion |
//!
//! The last two are none of diffusers' networks: they become folders of our own kind. Others (k-diffusion's transformers,
//! EDM's, classifiers, latent diffusion's) are recognised too, and refused with what their network has that `UNet2DModel` has
//! not.
//!
//! What the shapes of the tensors tell is inferred. What a file does not tell (the size of the images, the noise
//! schedule, the number of heads) must be given as an [`Arch`]; an error lists everything that is missing at once.

mod arch;
mod ho;
mod k_diffusion;
mod lucidrains;
mod openai;
mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use ddpm_samplers::SchedulerConfig;
use ddpm_unet::{NetworkConfig, WeightsMismatch};

use crate::tensor_file::TensorFile;
use crate::tensors::{Format, Tensors};
use crate::torch_file::TorchFile;
use crate::{Error, Pipeline, Result, Weights};

pub use arch::Arch;

/// Whose names a file's tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Ho's network in PyTorch, as pesser and the authors of DDIM wrote it.
    Ho,
    /// improved-diffusion and guided-diffusion.
    OpenAi,
    /// diffusers' own names, which need their `config.json`.
    Diffusers,
    /// lucidrains' `denoising-diffusion-pytorch`.
    Lucidrains,
    /// k-diffusion's `image_v1`.
    KDiffusion,
    /// k-diffusion's transformers: not converted.
    KDiffusionTransformer,
    /// EDM's networks: not converted.
    Edm,
    /// A classifier of guided-diffusion: not converted.
    Classifier,
    /// A U-Net in the latent space of another network: not converted.
    Latent,
}

/// A file of another program's, opened: what is in it, but no numbers yet.
pub struct ForeignFile {
    path: PathBuf,
    states: Vec<Box<dyn Tensors>>,
    found: Vec<Found>,
    /// What the file says of the program that wrote it.
    version: Option<String>,
    /// The configuration that a program put into it.
    config: Option<serde_json::Value>,
}

/// A network in a file: which dict of tensors, and what comes before their names.
#[derive(Debug, Clone)]
struct Found {
    state: usize,
    /// Where in the file, in words of the file: `ema.model.`, `4.`, or nothing.
    place: String,
    prefix: String,
    layout: Layout,
}

/// What a layout's converter makes of names and shapes: the network, its diffusion, and where each tensor goes.
struct Conversion {
    unet: NetworkConfig,
    scheduler: SchedulerConfig,
    /// The file's name of each tensor, and what becomes of it.
    goes: BTreeMap<String, Goes>,
}

/// What becomes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goes {
    /// It is this one, perhaps with axes of length 1 at its end.
    To(String),
    /// It is query, key and value in one, of an attention with this name.
    Apart {
        attention: String,
        last: String,
        heads: usize,
        order: QkvOrder,
    },
}

/// How rows of query, key and value follow each other in one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QkvOrder {
    /// Head by head, each with its query, key and value: OpenAI's first order.
    HeadsFirst,
    /// All heads' queries, then their keys, then their values: OpenAI's new order.
    KindsFirst,
}

impl ForeignFile {
    /// Opens a file (safetensors, or torch.save's) and recognises the networks in it.
    ///
    /// # Errors
    /// The file is damaged or of another format; no network in it is known: a few of its names are told.
    pub fn open(path: &Path) -> Result<Self> {
        let mut places = Vec::new();
        let mut states: Vec<Box<dyn Tensors>> = Vec::new();
        let mut version = None;
        let config;
        match Format::of(path)? {
            Format::Safetensors => {
                let file = TensorFile::open(path)?;
                config = k_diffusion::config_in(&file.metadata());
                places.push(String::new());
                states.push(Box::new(file));
            }
            Format::Torch => {
                let file = TorchFile::open(path)?;
                version = file.text("version").map(str::to_owned);
                config = file.json("config");
                for state in file.states() {
                    let dot = if state.place.is_empty() { "" } else { "." };
                    places.push(format!("{}{dot}", state.place));
                    states.push(Box::new(state));
                }
            }
            Format::Index => {
                let reason = "it is an index; give the folder that it lies in";
                return Err(Error::unsupported(path, reason));
            }
        }
        let mut found = Vec::new();
        for (state, place) in places.iter().enumerate() {
            let names = states[state].shapes();
            found.extend(networks(&names).into_iter().map(|(prefix, layout)| Found {
                state,
                place: format!("{place}{prefix}"),
                prefix,
                layout,
            }));
        }
        if found.is_empty() {
            return Err(refused::unknown(path, &states));
        }
        Ok(Self {
            path: path.to_owned(),
            states,
            found,
            version,
            config,
        })
    }

    /// Whose layout the network has that [`ForeignFile::convert`] would take for [`Weights::Ema`].
    pub fn layout(&self) -> Layout {
        self.found[self.averaged()].layout
    }

    /// Whether there are weights besides the averaged ones.
    pub fn has_raw(&self) -> bool {
        self.raw().is_some()
    }

    /// The network, its weights under diffusers' names or those of [`ddpm_unet::LucidrainsConfig`] and
    /// [`ddpm_unet::KDiffusionConfig`], and the scheduler of its diffusion.
    ///
    /// [`Weights::Ema`] is the average if the file has one, or else all there is.
    ///
    /// # Errors
    /// [`Error::Unsaid`] lists what the file does not tell and `arch` does not give; what `arch` says contradicts the
    /// file, or would be ignored; the network is none that is known here; tensors are missing, unknown or of the wrong
    /// shape.
    pub fn convert(&mut self, arch: &Arch, weights: &Weights) -> Result<Pipeline> {
        let (found, conversion) = self.understand(arch, weights)?;
        self.check(&found, &conversion)?;
        let unet = conversion.unet;
        let mut tensors = BTreeMap::new();
        for (name, goes) in &conversion.goes {
            let full = format!("{}{name}", found.prefix);
            let tensor = self.states[found.state].read_f32(&full)?;
            for (ours, tensor) in placed(&tensor, goes)? {
                tensors.insert(ours, tensor);
            }
        }
        let mut ordered = Vec::new();
        for (name, shape) in unet.parameters() {
            // Found to be there by `check`.
            if let Some(tensor) = tensors.remove(&name) {
                ordered.push((name, tensor.reshape(shape)?));
            }
        }
        let classes = unet.class_kind().is_some();
        let mut pipeline = Pipeline::new(unet, ordered, conversion.scheduler);
        if classes {
            let said = "the network is told a class, which no pipeline of diffusers does";
            pipeline.beyond_diffusers.push(said.to_owned());
        }
        Ok(pipeline)
    }

    /// The network and its diffusion without its numbers, as [`ForeignFile::convert`] would have them.
    ///
    /// # Errors
    /// As [`ForeignFile::convert`].
    pub fn describe(&mut self, arch: &Arch) -> Result<(NetworkConfig, SchedulerConfig)> {
        let (found, conversion) = self.understand(arch, &Weights::Ema)?;
        self.check(&found, &conversion)?;
        Ok((conversion.unet, conversion.scheduler))
    }

    fn understand(&mut self, arch: &Arch, weights: &Weights) -> Result<(Found, Conversion)> {
        let at = match weights {
            Weights::Ema => Some(self.averaged()),
            Weights::Raw => self.raw(),
            Weights::EmaRate(_) => None,
        };
        let Some(at) = at else {
            let raw = self.raw().map(|_| Weights::Raw.to_string());
            return Err(Error::NoSuchWeights {
                path: self.path.clone(),
                asked: weights.to_string(),
                there: [Weights::Ema.to_string()].into_iter().chain(raw).collect(),
            });
        };
        let found = self.found[at].clone();
        let told = match found.layout {
            Layout::Lucidrains => self.told(&found)?,
            _ => lucidrains::Told::default(),
        };
        let shapes = self.states[found.state].shapes();
        let own = |(name, shape): (String, Vec<usize>)| {
            Some((name.strip_prefix(&found.prefix)?.to_owned(), shape))
        };
        let shapes = Shapes {
            path: &self.path,
            of: shapes.into_iter().filter_map(own).collect(),
        };
        let conversion = match found.layout {
            Layout::Ho => ho::convert(&shapes, arch),
            Layout::OpenAi => openai::convert(&shapes, arch),
            Layout::Lucidrains => lucidrains::convert(&shapes, arch, &told),
            Layout::KDiffusion => k_diffusion::convert(&shapes, arch, self.config.as_ref()),
            other => Err(refused::refuse(&shapes, other)),
        }?;
        Ok((found, conversion))
    }

    /// What the file tells of lucidrains' network and its diffusion besides names and shapes.
    fn told(&mut self, found: &Found) -> Result<lucidrains::Told> {
        let mut told = lucidrains::Told {
            version: self.version.clone(),
            ..lucidrains::Told::default()
        };
        if let Some((before, part_of)) = lucidrains::around(&found.prefix) {
            told.part_of = Some(part_of.to_owned());
            told.betas = self.numbers(found.state, &format!("{before}betas"))?;
            told.loss_weight = self.numbers(found.state, &format!("{before}loss_weight"))?;
        }
        Ok(told)
    }

    /// A list of numbers, one a step, if there is one of this name.
    fn numbers(&mut self, state: usize, name: &str) -> Result<Option<Vec<f64>>> {
        let state = &mut self.states[state];
        match state.shapes().get(name).map(Vec::as_slice) {
            Some([1..=lucidrains::MOST_STEPS]) => {
                let numbers = state.read_f32(name)?.to_vec1::<f32>()?;
                Ok(Some(numbers.into_iter().map(f64::from).collect()))
            }
            _ => Ok(None),
        }
    }

    /// Every tensor of the network is there and of its shape, and there are no others.
    fn check(&self, found: &Found, conversion: &Conversion) -> Result<()> {
        let shapes = self.states[found.state].shapes();
        let mut mismatch = WeightsMismatch::default();
        let mut there = BTreeMap::new();
        for (name, goes) in &conversion.goes {
            let shape = shapes.get(&format!("{}{name}", found.prefix));
            for ours in goes.names() {
                if there.insert(ours, (name, goes, shape)).is_some() {
                    mismatch.extra.push(name.clone());
                }
            }
        }
        for (name, expected) in conversion.unet.parameters() {
            match there.remove(&name) {
                None => mismatch.missing.push(name),
                // What is taken apart is checked where it is.
                Some((was, Goes::To(_), Some(shape))) if long(shape) != long(&expected) => {
                    let wrong = format!("`{was}` is {shape:?}, expected {expected:?}");
                    mismatch.wrong.push(wrong);
                }
                Some(_) => {}
            }
        }
        mismatch.extra.extend(there.into_keys());
        match mismatch.is_empty() {
            true => Ok(()),
            false => Err(Error::Architecture {
                path: self.path.clone(),
                mismatch,
            }),
        }
    }

    /// The averaged weights, or else the only ones.
    fn averaged(&self) -> usize {
        let named = self.found.iter().position(|found| is_average(&found.place));
        named.unwrap_or_else(|| match self.in_a_list() {
            // DDIM's program saves [model, optimizer, epoch, step, average].
            true => self.found.len() - 1,
            false => 0,
        })
    }

    fn raw(&self) -> Option<usize> {
        let averaged = self.averaged();
        let others = (0..self.found.len()).filter(|&at| at != averaged);
        let mut others = others.filter(|&at| !is_average(&self.found[at].place));
        others.next()
    }

    fn in_a_list(&self) -> bool {
        let numbered = |found: &Found| found.place.starts_with(|c: char| c.is_ascii_digit());
        self.found.iter().all(numbered)
    }
}

/// Names and shapes of one network.
struct Shapes<'a> {
    path: &'a Path,
    of: BTreeMap<String, Vec<usize>>,
}

impl Shapes<'_> {
    fn has(&self, name: &str) -> bool {
        self.of.contains_key(name)
    }

    /// One side of a tensor.
    ///
    /// # Errors
    /// There is no such tensor, or it has no such axis.
    fn side(&self, name: &str, axis: usize) -> Result<usize> {
        let shape = self.of.get(name);
        let side = shape.and_then(|shape| shape.get(axis)).copied();
        side.ok_or_else(|| match shape {
            None => self.refused(format!("there is no tensor `{name}`")),
            Some(shape) => self.refused(format!(
                "tensor `{name}` is {shape:?}, which has no axis {axis}"
            )),
        })
    }

    /// A configuration, or why it is none.
    fn network(
        &self,
        config: ddpm_unet::Result<impl Into<NetworkConfig>>,
    ) -> Result<NetworkConfig> {
        config.map(Into::into).map_err(|source| Error::Network {
            path: self.path.to_owned(),
            source,
        })
    }

    fn refused(&self, reason: impl fmt::Display) -> Error {
        Error::unsupported(self.path, reason)
    }

    /// How many of 0, 1, 2, ... are there, each with some name that begins `PREFIX NUMBER .`.
    ///
    /// # Errors
    /// One is missing below the largest.
    fn count(&self, prefix: &str) -> Result<usize> {
        let number = |name: &String| -> Option<usize> {
            name.strip_prefix(prefix)?.split_once('.')?.0.parse().ok()
        };
        let numbers: BTreeSet<usize> = self.of.keys().filter_map(number).collect();
        match numbers.iter().enumerate().find(|&(i, &n)| i != n) {
            None => Ok(numbers.len()),
            Some((missing, _)) => Err(self.refused(format!(
                "there is no tensor `{prefix}{missing}.*`, though there are such with higher numbers"
            ))),
        }
    }
}

impl Goes {
    /// diffusers' names that it gives.
    fn names(&self) -> Vec<String> {
        match self {
            Self::To(name) => vec![name.clone()],
            Self::Apart {
                attention, last, ..
            } => ["to_q", "to_k", "to_v"]
                .map(|kind| format!("{attention}.{kind}.{last}"))
                .to_vec(),
        }
    }
}

/// A shape without axes of length 1 at its end.
fn long(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().rev().take_while(|&&side| side == 1).count();
    &shape[..shape.len() - ones]
}

/// A tensor under diffusers' name or names.
fn placed(tensor: &Tensor, goes: &Goes) -> Result<Vec<(String, Tensor)>> {
    let names = goes.names().into_iter();
    let Goes::Apart { heads, order, .. } = goes else {
        return Ok(names.map(|name| (name, tensor.clone())).collect());
    };
    let rows = tensor.dim(0)?;
    let inputs = tensor.elem_count() / rows.max(1);
    let head = rows / 3 / heads;
    let (shape, axis) = match order {
        QkvOrder::HeadsFirst => ((*heads, 3, head, inputs), 1),
        QkvOrder::KindsFirst => ((3, *heads, head, inputs), 0),
    };
    let apart = tensor.reshape(shape)?;
    let kind = |(kind, name)| {
        let rows = apart.narrow(axis, kind, 1)?.contiguous()?;
        let rows = match tensor.rank() {
            1 => rows.flatten_all()?,
            _ => rows.reshape((heads * head, inputs))?,
        };
        Ok((name, rows))
    };
    names.enumerate().map(kind).collect()
}

/// A tensor that only this layout has.
const MARKS: [(&str, Layout); 9] = [
    ("temb.dense.0.weight", Layout::Ho),
    ("input_blocks.0.0.weight", Layout::OpenAi),
    ("time_embedding.linear_1.weight", Layout::Diffusers),
    ("init_conv.weight", Layout::Lucidrains),
    ("u_net.d_blocks.0.1.main.2.weight", Layout::KDiffusion),
    ("aug_in_proj.weight", Layout::KDiffusionTransformer),
    ("map_layer0.weight", Layout::Edm),
    ("out.2.positional_embedding", Layout::Classifier),
    ("first_stage_model.quant_conv.weight", Layout::Latent),
];

/// The networks among names: what comes before their names, and whose they are.
fn networks(names: &BTreeMap<String, Vec<usize>>) -> Vec<(String, Layout)> {
    let mut found: Vec<(String, Layout)> = Vec::new();
    for (mark, layout) in MARKS {
        for name in names.keys() {
            let Some(prefix) = name.strip_suffix(mark) else {
                continue;
            };
            if prefix.is_empty() || prefix.ends_with('.') {
                found.push((prefix.to_owned(), layout));
            }
        }
    }
    // A classifier and a latent model's U-Net have OpenAI's names too.
    let special = [Layout::Classifier, Layout::Latent];
    match found.iter().find(|(_, layout)| special.contains(layout)) {
        Some(special) => vec![special.clone()],
        None => found,
    }
}

/// Whether a place in a file is that of an average: `ema`, `model_ema`, `ema_model.`, `shadow`.
fn is_average(place: &str) -> bool {
    let mut words = place.split(['.', '_']);
    words.any(|word| {
        matches!(
            word.to_ascii_lowercase().as_str(),
            "ema" | "shadow" | "averaged"
        )
    })
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ho => "Ho's network (as pesser and DDIM wrote it)",
            Self::OpenAi => "a network of OpenAI's improved- or guided-diffusion",
            Self::Diffusers => "a network under diffusers' names",
            Self::Lucidrains => "a Unet of lucidrains' denoising-diffusion-pytorch",
            Self::KDiffusion => "an image_v1 network of k-diffusion",
            Self::KDiffusionTransformer => "a transformer of k-diffusion",
            Self::Edm => "a network of EDM",
            Self::Classifier => "a classifier of guided-diffusion",
            Self::Latent => "a latent diffusion model",
        })
    }
}
