//! The order in which training sees a data set: epochs without end, each shuffled anew, each image perhaps mirrored.

use candle_core::{Device, Tensor};
use ddpm_image::PixelMap;
use ddpm_random::{Permutation, Stream, uniform_u64_below};

use crate::{Dataset, Result};

/// An endless, seeded order over a data set, with mirroring.
///
/// Position `p` (how many images came before) lies in epoch `p / n`; which image it is and whether it is mirrored are
/// functions of seed, epoch and `p % n` alone. So nothing has to be saved for an exact resume, and how positions are split
/// into batches changes nothing. It borrows the data set and costs nothing to make.
#[derive(Debug, Clone, Copy)]
pub struct Feed<'a> {
    dataset: &'a Dataset,
    seed: u64,
    flip: bool,
}

/// What stands at one position of a [`Feed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// The image's number in the data set.
    pub index: usize,
    /// Whether it is mirrored, left for right.
    pub flip: bool,
}

impl<'a> Feed<'a> {
    /// The order of this seed; with `flip`, each image is mirrored with probability 1/2, anew in each epoch.
    pub fn new(dataset: &'a Dataset, seed: u64, flip: bool) -> Self {
        Self {
            dataset,
            seed,
            flip,
        }
    }

    /// What stands at `position`.
    pub fn draw(&self, position: u64) -> Drawn {
        let (epoch, place) = self.place(position);
        self.draw_from(&self.permutation(epoch), epoch, place)
    }

    /// What stands at `position` and after it, in order.
    pub fn draws(&self, position: u64, count: usize) -> Vec<Drawn> {
        let mut draws = Vec::with_capacity(count);
        let mut current: Option<(u64, Permutation)> = None;
        for position in position..position + count as u64 {
            let (epoch, place) = self.place(position);
            let permutation = match current.take() {
                Some((of, permutation)) if of == epoch => permutation,
                _ => self.permutation(epoch),
            };
            draws.push(self.draw_from(&permutation, epoch, place));
            current = Some((epoch, permutation));
        }
        draws
    }

    /// The `count` images at `position` and after it, as f32 `[count, channels, height, width]`.
    ///
    /// # Errors
    /// What the pixel map refuses.
    pub fn batch(
        &self,
        position: u64,
        count: usize,
        map: &PixelMap,
        device: &Device,
    ) -> Result<Tensor> {
        let mut pixels = Vec::with_capacity(count * self.dataset.image_len());
        for drawn in self.draws(position, count) {
            let image = self.dataset.image(drawn.index);
            if drawn.flip {
                mirror_into(
                    image,
                    self.dataset.width(),
                    self.dataset.channels(),
                    &mut pixels,
                );
            } else {
                pixels.extend_from_slice(image);
            }
        }
        self.dataset.to_tensor(&pixels, count, map, device)
    }

    /// The epoch a position lies in, and its place there, 0..n.
    fn place(&self, position: u64) -> (u64, usize) {
        let n = self.dataset.len() as u64;
        (position / n, (position % n) as usize)
    }

    fn permutation(&self, epoch: u64) -> Permutation {
        Permutation::new(self.seed, epoch, self.dataset.len())
    }

    fn draw_from(&self, permutation: &Permutation, epoch: u64, place: usize) -> Drawn {
        let index = permutation.get(place);
        let flip =
            self.flip && uniform_u64_below(self.seed, Stream::Flip, index as u64, epoch, 2) == 1;
        Drawn { index, flip }
    }
}

/// Appends an image, height x width x channels, with each row's pixels in reverse.
fn mirror_into(image: &[u8], width: usize, channels: usize, out: &mut Vec<u8>) {
    for row in image.chunks_exact(width * channels) {
        for pixel in row.chunks_exact(channels).rev() {
            out.extend_from_slice(pixel);
        }
    }
}
