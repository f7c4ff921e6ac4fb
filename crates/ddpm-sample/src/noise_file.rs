//! Noise from a file: x_T for every image, and optionally the noise of every step and the classes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use candle_core::{DType, Tensor};
use ddpm_checkpoint::TensorFile;

/// The noise that a walk is to use instead of its own.
#[derive(Debug)]
pub(crate) struct NoiseFile {
    path: PathBuf,
    /// x_T, `[N, C, H, W]`.
    pub(crate) noise: Tensor,
    /// Noise in drawing order, `[S, N, C, H, W]`.
    pub(crate) step_noise: Option<Tensor>,
    /// The class of each image as numbers, `[N]`, or as vectors, `[N, D]`.
    pub(crate) classes: Option<Tensor>,
}

impl NoiseFile {
    /// Reads `noise` and, if there, `step_noise` and `classes`.
    ///
    /// # Errors
    /// When the file cannot be read, holds other tensors, or the two shapes do not belong together.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let mut file = TensorFile::open(path)?;
        let names = file.names();
        if let Some(other) = names
            .iter()
            .find(|name| !["noise", "step_noise", "classes"].contains(&name.as_str()))
        {
            bail!(
                "{}: tensor `{other}` is none of `noise`, `step_noise` and `classes`",
                path.display()
            );
        }
        ensure!(
            names.iter().any(|name| name == "noise"),
            "{}: there is no tensor `noise`",
            path.display()
        );
        let noise = file.read_f32("noise")?;
        let images = noise.dims().first().copied().unwrap_or(0);
        ensure!(
            noise.rank() == 4 && images > 0,
            "{}: `noise` is {:?}, expected [N, C, H, W] with N at least 1",
            path.display(),
            noise.dims()
        );
        let step_noise = if names.iter().any(|name| name == "step_noise") {
            Some(file.read_f32("step_noise")?)
        } else {
            None
        };
        if let Some(step_noise) = &step_noise {
            ensure!(
                step_noise.rank() == 5 && step_noise.dims()[1..] == *noise.dims(),
                "{}: `step_noise` is {:?}, expected [S, {}] after `noise`",
                path.display(),
                step_noise.dims(),
                noise
                    .dims()
                    .iter()
                    .map(usize::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        let classes = if names.iter().any(|name| name == "classes") {
            let classes = file.read("classes")?.to_dtype(DType::F32)?;
            ensure!(
                classes.dims().first() == Some(&images),
                "{}: `classes` is {:?}, expected one for each of {images} images",
                path.display(),
                classes.dims()
            );
            Some(classes)
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            noise,
            step_noise,
            classes,
        })
    }

    /// Checks that every image is `[C, H, W]` as the model's.
    pub(crate) fn check_shape(&self, (c, h, w): (usize, usize, usize)) -> Result<()> {
        ensure!(
            self.noise.dims()[1..] == [c, h, w],
            "{}: `noise` is {:?}, the model makes [N, {c}, {h}, {w}]",
            self.path.display(),
            self.noise.dims()
        );
        Ok(())
    }

    /// Checks that there is enough step noise for so many draws.
    pub(crate) fn check_draws(&self, draws: usize) -> Result<()> {
        match &self.step_noise {
            Some(step_noise) if step_noise.dims()[0] < draws => bail!(
                "{}: `step_noise` is {:?}, this walk draws {draws} times",
                self.path.display(),
                step_noise.dims()
            ),
            _ => Ok(()),
        }
    }
}
