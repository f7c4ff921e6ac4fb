//! The order in which training sees a data set: epochs without end, each shuffled anew, each image perhaps cropped
//! elsewhere and mirrored.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};
use ddpm_image::PixelMap;
use ddpm_random::{Permutation, Stream, uniform_u64_below};

use crate::{Dataset, Error, Result};

/// An endless, seeded order over a data set, with random crops and mirroring.
///
/// Position `p` (how many images came before) lies in epoch `p / n`; which image it is, where it is cropped and whether
/// it is mirrored are functions of seed, epoch and `p % n` alone. So nothing has to be saved for an exact resume, and how positions are split
/// into batches changes nothing. It shares the data set's memory, and remembers the last epoch's order: keep it.
#[derive(Debug)]
pub struct Feed {
    dataset: Dataset,
    seed: u64,
    flip: bool,
    last_epoch: Mutex<Option<Arc<Epoch>>>,
}

/// What stands at one position of a [`Feed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// The image's number in the data set.
    pub index: usize,
    /// The first row and column that are seen of an image that is kept larger than it is shown; (0, 0) for others.
    pub corner: (usize, usize),
    /// Whether it is mirrored, left for right.
    pub flip: bool,
}

impl Feed {
    /// The order of this seed; with `flip`, each image is mirrored with probability 1/2, anew in each epoch.
    pub fn new(dataset: &Dataset, seed: u64, flip: bool) -> Self {
        Self {
            dataset: dataset.clone(),
            seed,
            flip,
            last_epoch: Mutex::new(None),
        }
    }

    /// The data set it feeds from.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// What stands at `position`.
    ///
    /// # Errors
    /// [`Error::Position`] beyond epoch 2^44, where the addresses of randomness end.
    pub fn draw(&self, position: u64) -> Result<Drawn> {
        let found = self.drawn(position);
        found.map_err(|source| Error::Position { position, source })
    }

    /// What stands at `position` and after it, in order.
    ///
    /// # Errors
    /// As [`draw`](Self::draw).
    pub fn draws(&self, position: u64, count: usize) -> Result<Vec<Drawn>> {
        (0..count as u64)
            .map(|place| self.draw(position.saturating_add(place)))
            .collect()
    }

    /// The `count` images at `position` and after it, as f32 `[count, channels, height, width]`.
    ///
    /// # Errors
    /// As [`draw`](Self::draw), and what the pixel map refuses.
    pub fn batch(
        &self,
        position: u64,
        count: usize,
        map: &PixelMap,
        device: &Device,
    ) -> Result<Tensor> {
        let mut pixels = Vec::with_capacity(count * self.dataset.image_len());
        for drawn in self.draws(position, count)? {
            let start = pixels.len();
            self.dataset
                .window_into(drawn.index, drawn.corner, &mut pixels);
            if drawn.flip {
                mirror(
                    &mut pixels[start..],
                    self.dataset.width(),
                    self.dataset.channels(),
                );
            }
        }
        self.dataset.to_tensor(&pixels, count, map, device)
    }

    fn drawn(&self, position: u64) -> ddpm_random::Result<Drawn> {
        let n = self.dataset.len() as u64;
        let epoch = self.epoch(position / n)?;
        let index = epoch.order.get((position % n) as usize);
        let flip = self.flip
            && uniform_u64_below(self.seed, Stream::Flip, index as u64, epoch.number, 2)? == 1;
        // Every corner is equally likely: one number says which.
        let (rows, columns) = self.dataset.room(index);
        let corners = (rows as u64 + 1) * (columns as u64 + 1);
        let corner = match corners {
            1 => 0,
            _ => uniform_u64_below(self.seed, Stream::Crop, index as u64, epoch.number, corners)?,
        };
        let (row, column) = (corner / (columns as u64 + 1), corner % (columns as u64 + 1));
        Ok(Drawn {
            index,
            corner: (row as usize, column as usize),
            flip,
        })
    }

    /// The order of an epoch, computed when the epoch changes.
    fn epoch(&self, number: u64) -> ddpm_random::Result<Arc<Epoch>> {
        let mut last = self
            .last_epoch
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = last.as_ref().filter(|epoch| epoch.number == number) {
            return Ok(Arc::clone(epoch));
        }
        let order = Permutation::new(self.seed, number, self.dataset.len())?;
        let epoch = Arc::new(Epoch { number, order });
        *last = Some(Arc::clone(&epoch));
        Ok(epoch)
    }
}

/// One pass over the data set.
#[derive(Debug)]
struct Epoch {
    number: u64,
    order: Permutation,
}

/// Reverses the pixels of each row of an image, height x width x channels.
fn mirror(image: &mut [u8], width: usize, channels: usize) {
    for row in image.chunks_exact_mut(width * channels) {
        // All values backwards, then those of each pixel forwards again.
        row.reverse();
        row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
    }
}
