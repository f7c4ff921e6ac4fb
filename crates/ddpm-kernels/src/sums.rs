//! Sums over the pixels of each channel, in an order that never changes.

use rayon::prelude::*;

use crate::bf16::Bf16;
use crate::normalise::lane_sums;
use crate::simd;
use crate::source::{Data, Source};
use crate::tile::LANES;

/// The sum of every channel of every image of a source that has one part, as it is: for each image the channels in whole
/// blocks, what they have too many being zeros.
pub(crate) fn channel_sums(x: &Source<'_>, batch: usize) -> Vec<Vec<f64>> {
    let (channels, blocks, pixels) = (x.channels(), x.blocks(), x.height * x.width);
    let of_block = |image: usize, block: usize, sums: &mut [f64]| {
        if let Some(plane) = x.plane::<Bf16>(image, block) {
            return sums.copy_from_slice(&lane_sums(plane));
        }
        if let Some(plane) = x.plane::<f32>(image, block) {
            return sums.copy_from_slice(&lane_sums(plane));
        }
        let part = &x.parts[0];
        if let Data::Floats(data) = part.data {
            for (sum, channel) in sums.iter_mut().zip(block * LANES..channels) {
                *sum = simd::sum(&data[part.image * image + channel * pixels..][..pixels]);
            }
        }
    };
    let mut sums = vec![vec![0f64; blocks * LANES]; batch];
    sums.par_iter_mut().enumerate().for_each(|(image, sums)| {
        let blocks = sums.par_chunks_mut(LANES).enumerate();
        blocks.for_each(|(block, sums)| of_block(image, block, sums));
    });
    sums
}
