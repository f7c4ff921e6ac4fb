//! Sums over the pixels of each channel, in an order that never changes.

use rayon::prelude::*;

use crate::simd;

/// The sum of each run of `pixels` floats: of every channel of every image of a plain layout.
pub(crate) fn channel_sums(x: &[f32], pixels: usize) -> Vec<f64> {
    x.par_chunks(pixels)
        .with_min_len(16)
        .map(simd::sum)
        .collect()
}
