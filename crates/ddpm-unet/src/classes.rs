//! What a class-conditional network is told about the classes of a batch.

use candle_core::{DType, Tensor};

use crate::architecture::{Architecture, ClassInput};
use crate::{Error, Result, UNetConfig};

/// How a class-conditional network is told the class of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassKind {
    /// By a number below this one (`num_class_embeds`): [`Classes::Indices`].
    Below(usize),
    /// By any number (`class_embed_type` "timestep"): [`Classes::Numbers`].
    Number,
    /// By as many numbers as the time embedding is wide (`class_embed_type` "identity"): [`Classes::Vectors`].
    Vector(usize),
}

impl UNetConfig {
    /// How the network is told classes; `None` for an unconditional one.
    pub fn class_kind(&self) -> Option<ClassKind> {
        let network = Architecture::new(self.settings());
        Some(match network.class.as_ref()? {
            ClassInput::Table(at) => ClassKind::Below(network.parameters[*at].shape[0]),
            ClassInput::Timestep(_) => ClassKind::Number,
            ClassInput::Identity => ClassKind::Vector(network.time_width()),
        })
    }
}

/// The classes of a batch, one for each image, in the form that the network takes.
#[derive(Debug, Clone)]
pub enum Classes {
    /// For `num_class_embeds`, which they are below; also for `class_embed_type` "timestep".
    Indices(Vec<usize>),
    /// For `class_embed_type` "timestep".
    Numbers(Vec<f64>),
    /// For `class_embed_type` "identity": `[B, D]` f32, D the width of the time embedding.
    Vectors(Tensor),
}

impl Classes {
    /// Whether a network with these parameters can be told them.
    pub(crate) fn check(&self, network: &Architecture) -> Result<()> {
        let Some(input) = &network.class else {
            return self.refused("none: the network is not class-conditional".to_owned());
        };
        match (input, self) {
            (ClassInput::Table(at), Classes::Indices(indices)) => {
                let classes = network.parameters[*at].shape[0];
                match indices.iter().find(|&&index| index >= classes) {
                    None => Ok(()),
                    Some(_) => self.refused(format!("numbers below {classes}")),
                }
            }
            (ClassInput::Table(_), _) => self.refused("Classes::Indices".to_owned()),
            (ClassInput::Timestep(_), Classes::Vectors(_)) => {
                self.refused("Classes::Numbers".to_owned())
            }
            (ClassInput::Timestep(_), classes) => {
                match classes.numbers().iter().all(|number| number.is_finite()) {
                    true => Ok(()),
                    false => self.refused("finite".to_owned()),
                }
            }
            (ClassInput::Identity, Classes::Vectors(vectors)) => {
                let width = network.time_width();
                match vectors.dims() {
                    [_, w] if *w == width && vectors.dtype() == DType::F32 => Ok(()),
                    _ => self.refused(format!("F32 [batch, {width}]")),
                }
            }
            (ClassInput::Identity, _) => self.refused("Classes::Vectors".to_owned()),
        }
    }

    /// There must be one for each image.
    pub(crate) fn check_count(&self, batch: usize) -> Result<()> {
        let count = match self {
            Classes::Indices(indices) => indices.len(),
            Classes::Numbers(numbers) => numbers.len(),
            Classes::Vectors(vectors) => vectors.dim(0)?,
        };
        if count == batch {
            return Ok(());
        }
        Err(Error::Input {
            what: "the classes",
            found: format!("for {count} images"),
            expected: format!("one for each of {batch} images"),
        })
    }

    /// As numbers, where they are some.
    pub(crate) fn numbers(&self) -> Vec<f64> {
        match self {
            Classes::Indices(indices) => indices.iter().map(|&index| index as f64).collect(),
            Classes::Numbers(numbers) => numbers.clone(),
            Classes::Vectors(_) => Vec::new(),
        }
    }

    fn refused(&self, expected: String) -> Result<()> {
        let found = match self {
            Classes::Vectors(vectors) => {
                format!("Vectors of {:?} {:?}", vectors.dtype(), vectors.dims())
            }
            numbers => format!("{numbers:?}"),
        };
        Err(Error::Input {
            what: "the classes",
            found,
            expected,
        })
    }
}
