//! Dropout with an address: whether an activation is kept depends on the seed, the step, the place in the network, the
//! image and the element, and on nothing else, so that a batch may be split anywhere.

use candle_core::Tensor;
use ddpm_random::Stream;

use crate::{Error, Result};

/// Where the dropout of a training step is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutAddress<'a> {
    /// The run's seed.
    pub seed: u64,
    /// The optimiser step.
    pub step: u64,
    /// One index an image of the batch: the same image of the same step drops the same activations in any batch.
    pub images: &'a [u64],
}

/// The dropout of one call of the network.
pub(crate) struct Dropout<'a> {
    pub(crate) address: DropoutAddress<'a>,
    pub(crate) rate: f64,
    /// How many places of the network have dropout.
    pub(crate) places: usize,
}

impl Dropout<'_> {
    /// Zeroes a share of x `[B, C, H, W]` and scales the rest by 1 / (1 - rate).
    pub(crate) fn apply(&self, x: &Tensor, place: usize) -> Result<Tensor> {
        let mut mask = vec![0u8; x.elem_count()];
        let elements = x.elem_count() / self.address.images.len().max(1);
        let mut uniform = vec![0f32; elements];
        for (&image, mask) in self
            .address
            .images
            .iter()
            .zip(mask.chunks_mut(elements.max(1)))
        {
            ddpm_random::uniform_into(
                self.address.seed,
                Stream::Dropout,
                image,
                self.step(place),
                &mut uniform,
            )?;
            for (kept, &u) in mask.iter_mut().zip(&uniform) {
                *kept = u8::from(f64::from(u) >= self.rate);
            }
        }
        let mask = Tensor::from_vec(mask, x.shape(), x.device())?;
        Ok(ddpm_kernels::dropout(x, &mask, self.rate)?)
    }

    /// The step of the address: every place of every optimiser step has its own. What does not fit is refused there.
    fn step(&self, place: usize) -> u64 {
        self.address
            .step
            .saturating_mul(self.places as u64)
            .saturating_add(place as u64)
    }
}

/// The address must name every image of the batch.
pub(crate) fn check_address(address: &DropoutAddress<'_>, batch: usize) -> Result<()> {
    if address.images.len() == batch {
        return Ok(());
    }
    let found = format!("for {} images", address.images.len());
    Err(Error::Input {
        what: "the dropout address",
        found,
        expected: format!("one index for each of {batch} images"),
    })
}
