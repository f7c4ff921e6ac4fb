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
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.apply_on_card(x, place);
        }
        let mut mask = vec![0u8; x.elem_count()];
        self.draw(place, &mut mask)?;
        let mask = Tensor::from_vec(mask, x.shape(), x.device())?;
        Ok(ddpm_kernels::dropout(x, &mask, self.rate)?)
    }

    /// The same with masks that are drawn where x is: those of [`Dropout::draw`], bit for bit.
    #[cfg(feature = "cuda")]
    fn apply_on_card(&self, x: &Tensor, place: usize) -> Result<Tensor> {
        let (key, counters) = self.words(place)?;
        Ok(ddpm_kernels::cuda::dropout_drawn(
            x, key, &counters, self.rate,
        )?)
    }

    /// Philox's key at a place, and the upper words of the counter of each image.
    #[cfg(feature = "cuda")]
    pub(crate) fn words(&self, place: usize) -> Result<([u32; 2], Vec<[u32; 3]>)> {
        let mut key = [0; 2];
        let mut counters = Vec::new();
        for &image in self.address.images {
            let (seed, step) = (self.address.seed, self.step(place));
            let words = ddpm_random::philox_words(seed, Stream::Dropout, image, step)?;
            key = words.0;
            counters.push(words.1);
        }
        Ok((key, counters))
    }

    /// Draws the mask of a place, one image after the other: 0 for what is dropped.
    pub(crate) fn draw(&self, place: usize, mask: &mut [u8]) -> Result<()> {
        let elements = mask.len() / self.address.images.len().max(1);
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
        Ok(())
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// What becomes of ones at two places of a network with seven.
    fn applied(place: usize, images: &[u64]) -> Vec<f32> {
        let address = DropoutAddress {
            seed: 5,
            step: 6,
            images,
        };
        let dropout = Dropout {
            address,
            rate: 0.3,
            places: 7,
        };
        let ones = Tensor::ones((images.len(), 3, 40, 60), DType::F32, &Device::Cpu).unwrap();
        let dropped = dropout.apply(&ones, place).unwrap();
        dropped.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn three_tenths_become_zero_and_the_rest_is_scaled() {
        let values = applied(2, &[8, 9]);
        let kept = (1.0 / 0.7) as f32;
        assert!(values.iter().all(|&value| value == 0.0 || value == kept));
        let share =
            values.iter().filter(|&&value| value == 0.0).count() as f64 / values.len() as f64;
        let deviation = (0.3 * 0.7 / values.len() as f64).sqrt();
        assert!((share - 0.3).abs() < 4.0 * deviation, "{share}");
    }

    /// Of two independent masks, 0.3² of the elements are dropped by both.
    #[test]
    fn places_and_images_are_independent() {
        let [here, there] = [applied(2, &[8, 9]), applied(3, &[8, 9])];
        let (first, second) = here.split_at(here.len() / 2);
        for (a, b) in [(here.as_slice(), there.as_slice()), (first, second)] {
            let both = a.iter().zip(b).filter(|&(&a, &b)| a == 0.0 && b == 0.0);
            let share = both.count() as f64 / a.len() as f64;
            let deviation = (0.09 * 0.91 / a.len() as f64).sqrt();
            assert!((share - 0.09).abs() < 4.0 * deviation, "{share}");
        }
    }
}
