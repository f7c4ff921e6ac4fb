//! Which class each image is of: the flags and the noise file held against what the network can be told.

use anyhow::{Context, anyhow};
use candle_core::Tensor;
use ddpm_random::{Stream, uniform_u64_below};
use ddpm_unet::{ClassKind, Classes, Network};

use crate::flags::{ClassChoice, Rng};
use crate::noise_file::NoiseFile;
use crate::{Failure, Flags};

/// The class of every image.
pub(crate) struct Labels {
    told: Told,
    /// How they were chosen.
    pub(crate) how: String,
    /// How many columns a grid has that shows a class in each.
    pub(crate) columns: Option<usize>,
    /// What the user should know.
    pub(crate) note: Option<&'static str>,
}

/// In the form that the network takes.
enum Told {
    Indices(Vec<usize>),
    Numbers(Vec<f64>),
    /// `[N, D]`
    Vectors(Tensor),
}

/// The widest grid with a column for each class; with more classes it is square.
const COLUMNS: usize = 100;

impl Labels {
    /// The classes of `images` images; none for a network without.
    ///
    /// # Errors
    /// [`Failure::Usage`] for classes that the network does not have, or that nobody chose.
    pub(crate) fn choose(
        flags: &Flags,
        kind: Option<ClassKind>,
        noise: Option<&NoiseFile>,
        images: usize,
    ) -> Result<Option<Self>, Failure> {
        let file = noise.and_then(|noise| noise.classes.as_ref());
        let Some(kind) = kind else {
            return match (flags.class, file) {
                (None, None) => Ok(None),
                (Some(_), _) => Err(usage(
                    "--class would be ignored: the network knows no classes",
                )),
                (None, Some(_)) => Err(usage(
                    "the tensor `classes` of --noise would be ignored: the network knows no classes",
                )),
            };
        };
        let labels = match (flags.class, file) {
            (Some(_), Some(_)) => {
                return Err(usage(
                    "--class and the tensor `classes` of --noise exclude each other",
                ));
            }
            (None, Some(tensor)) => {
                let told = of_file(kind, tensor).context("the tensor `classes` of --noise")?;
                Self::new(told, "of the file".to_owned())
            }
            (Some(choice), None) => chosen(choice, kind, images)?,
            (None, None) => drawn(flags, kind, images)?,
        };
        Ok(Some(labels))
    }

    /// How many images are made where nobody says: whole rows of a grid with a column for each class.
    pub(crate) fn usual_number(flags: &Flags, kind: Option<ClassKind>, usual: usize) -> usize {
        match (flags.class, kind) {
            (Some(ClassChoice::All), Some(ClassKind::Below(classes))) => {
                classes * (usual / classes.max(1)).max(1)
            }
            _ => usual,
        }
    }

    /// The network, told the classes of the images `first..first + images`.
    pub(crate) fn tell(
        &self,
        network: &Network,
        first: usize,
        images: usize,
    ) -> anyhow::Result<Network> {
        let these = first..first + images;
        let classes = match &self.told {
            Told::Indices(indices) => Classes::Indices(indices[these].to_vec()),
            Told::Numbers(numbers) => Classes::Numbers(numbers[these].to_vec()),
            Told::Vectors(vectors) => Classes::Vectors(vectors.narrow(0, first, images)?),
        };
        Ok(network.with_classes(classes)?)
    }

    /// As whole numbers, where they are some.
    pub(crate) fn numbers(&self) -> Option<Vec<i64>> {
        match &self.told {
            Told::Indices(indices) => Some(indices.iter().map(|&index| index as i64).collect()),
            Told::Numbers(numbers) if numbers.iter().all(|number| number.fract() == 0.0) => {
                Some(numbers.iter().map(|&number| number as i64).collect())
            }
            _ => None,
        }
    }

    fn new(told: Told, how: String) -> Self {
        Self {
            told,
            how,
            columns: None,
            note: None,
        }
    }
}

/// Those of `--class`.
fn chosen(choice: ClassChoice, kind: ClassKind, images: usize) -> Result<Labels, Failure> {
    let how = choice.to_string();
    match (kind, choice) {
        (ClassKind::Below(classes), ClassChoice::Number(number)) => {
            let index = usize::try_from(number).unwrap_or(usize::MAX);
            match index < classes {
                true => Ok(Labels::new(Told::Indices(vec![index; images]), how)),
                false => Err(usage(format!(
                    "--class is {number}; the classes of the network go from 0 to {}",
                    classes.saturating_sub(1)
                ))),
            }
        }
        (ClassKind::Below(classes), ClassChoice::All) if images < classes => Err(usage(format!(
            "--class all makes at least one image of each of {classes} classes, but only {images} are asked for"
        ))),
        (ClassKind::Below(classes), ClassChoice::All) => {
            let each = (0..images).map(|image| image % classes).collect();
            Ok(Labels {
                columns: (classes <= COLUMNS).then_some(classes),
                ..Labels::new(Told::Indices(each), how)
            })
        }
        (ClassKind::Number, ClassChoice::Number(number)) => {
            Ok(Labels::new(Told::Numbers(vec![number as f64; images]), how))
        }
        (ClassKind::Number, ClassChoice::All) => Err(any_number()),
        (ClassKind::Vector(width), _) => Err(a_vector(width)),
    }
}

/// Those of the seed, an image's own whatever the batch.
fn drawn(flags: &Flags, kind: ClassKind, images: usize) -> Result<Labels, Failure> {
    let classes = match kind {
        ClassKind::Below(classes) => classes,
        ClassKind::Number => return Err(any_number()),
        ClassKind::Vector(width) => return Err(a_vector(width)),
    };
    let without_seed = [
        (flags.noise.is_some(), "--noise brings none"),
        (flags.rng == Rng::Torch, "--rng torch draws none"),
        (flags.invert.is_some(), "--invert draws none"),
    ];
    if let Some((_, why)) = without_seed.iter().find(|(applies, _)| *applies) {
        return Err(usage(format!(
            "the network knows {classes} classes, and {why}: give --class N or --class all"
        )));
    }
    let seed = flags.seed.unwrap_or(0);
    let class = |image: usize| {
        uniform_u64_below(seed, Stream::SampleClass, image as u64, 0, classes as u64)
    };
    let drawn: ddpm_random::Result<Vec<u64>> = (0..images).map(class).collect();
    let drawn = drawn.context("cannot draw the classes")?;
    let indices = drawn.into_iter().map(|index| index as usize).collect();
    Ok(Labels {
        note: Some(
            "each image is of a class that the seed draws; --class N or --class all chooses",
        ),
        ..Labels::new(Told::Indices(indices), "drawn by the seed".to_owned())
    })
}

/// Those of a file, f32.
fn of_file(kind: ClassKind, tensor: &Tensor) -> anyhow::Result<Told> {
    let wrong = |expected: String| anyhow!("it is {:?}, expected {expected}", tensor.dims());
    if let ClassKind::Vector(width) = kind {
        return match tensor.dims() {
            [_, w] if *w == width => Ok(Told::Vectors(tensor.clone())),
            _ => Err(wrong(format!("[N, {width}]"))),
        };
    }
    if tensor.rank() != 1 {
        return Err(wrong("[N]".to_owned()));
    }
    let numbers: Vec<f64> = tensor.to_dtype(candle_core::DType::F64)?.to_vec1()?;
    match kind {
        ClassKind::Below(classes) => {
            let right =
                |number: &f64| number.fract() == 0.0 && (0.0..classes as f64).contains(number);
            match numbers.iter().find(|number| !right(number)) {
                None => Ok(Told::Indices(numbers.iter().map(|&n| n as usize).collect())),
                Some(number) => Err(anyhow!(
                    "it holds {number}, expected whole numbers from 0 to {}",
                    classes.saturating_sub(1)
                )),
            }
        }
        _ => Ok(Told::Numbers(numbers)),
    }
}

fn any_number() -> Failure {
    usage(
        "the network is told its class by any number (`class_embed_type` \"timestep\") and does not say how many there are: give --class N",
    )
}

fn a_vector(width: usize) -> Failure {
    usage(format!(
        "the network is told its class by {width} numbers (`class_embed_type` \"identity\"): give --noise with a tensor `classes`, f32 [N, {width}]"
    ))
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}
