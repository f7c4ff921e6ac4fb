//! Resizing of u8 images with antialiasing, bit for bit as `Image.resize` of Pillow 12.0 does it for the modes `L` and `RGB`.
//!
//! Each output value is a weighted mean of the input values under a filter that is as wide as its step through the input
//! (never narrower than the filter itself): columns first, rounded to u8, then rows. Weights are rounded to 22 bits
//! after the point, as in Pillow's `Resample.c`, `ImagingResampleHorizontal_8bpc`.
//! (Pillow 13.0 takes the rows first for some sizes, which changes values by what is rounded in between.)

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bits after the point of a weight: 8 are a pixel's, 2 are left for sums beyond one and for the sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// How new pixels come from old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// The mean of the pixels that lie under the new one: Pillow's `BOX`. Enlarging repeats pixels.
    #[default]
    Area,
    /// Keys' cubic with a = -1/2: Pillow's `BICUBIC`.
    Bicubic,
}

impl Filter {
    /// How far from its middle the filter reaches.
    fn support(self) -> f64 {
        match self {
            Self::Area => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter at `x`.
    fn at(self, x: f64) -> f64 {
        match self {
            Self::Area if x > -0.5 && x <= 0.5 => 1.0,
            Self::Area => 0.0,
            Self::Bicubic => cubic(x.abs()),
        }
    }
}

/// Keys' cubic with a = -1/2 at `x` >= 0.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// An image of `from` = (height, width, channels) made `to` = (height, width).
///
/// # Shapes
/// `pixels`: height x width x channels, and so is what comes back.
///
/// # Errors
/// [`Error::Resize`] where a size is 0 or `pixels` are not of theirs.
pub fn resize(
    pixels: &[u8],
    from: (usize, usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>> {
    let (height, width, channels) = from;
    let expected = height
        .checked_mul(width)
        .and_then(|n| n.checked_mul(channels));
    if pixels.is_empty() || expected != Some(pixels.len()) || to.0 == 0 || to.1 == 0 {
        let bytes = pixels.len();
        return Err(Error::Resize { from, to, bytes });
    }
    let mut image = pixels.to_vec();
    if width != to.1 {
        image = columns(&image, width, channels, &Weights::all(width, to.1, filter));
    }
    if height != to.0 {
        image = rows(&image, to.1 * channels, &Weights::all(height, to.0, filter));
    }
    Ok(image)
}

/// Which old pixels a new one is made of, and how much of each.
struct Weights {
    first: usize,
    fixed: Vec<i32>,
}

impl Weights {
    /// Those of each of `to` pixels along a line of `from`.
    fn all(from: usize, to: usize, filter: Filter) -> Vec<Self> {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let one = |place: usize| {
            let centre = (place as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let weight = |x: usize| filter.at((x as f64 - centre + 0.5) * (1.0 / stretch));
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let mut sum = 0.0;
            for weight in &weights {
                sum += weight;
            }
            let fixed = weights.iter().map(|weight| fixed_point(weight / sum));
            Self {
                first,
                fixed: fixed.collect(),
            }
        };
        (0..to).map(one).collect()
    }
}

/// A weight as a whole number of 2^-22, halves away from zero.
fn fixed_point(weight: f64) -> i32 {
    let half = if weight < 0.0 { -0.5 } else { 0.5 };
    (half + weight * f64::from(1 << PRECISION_BITS)) as i32
}

/// A sum of values times weights, rounded and clipped to u8.
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resizes each row of an image.
fn columns(image: &[u8], width: usize, channels: usize, weights: &[Weights]) -> Vec<u8> {
    let mut out = Vec::with_capacity(image.len() / width * weights.len());
    for row in image.chunks_exact(width * channels) {
        for weights in weights {
            let old = &row[weights.first * channels..];
            for channel in 0..channels {
                let mut sum = 1 << (PRECISION_BITS - 1);
                for (pixel, weight) in old.chunks_exact(channels).zip(&weights.fixed) {
                    sum += i32::from(pixel[channel]) * weight;
                }
                out.push(to_u8(sum));
            }
        }
    }
    out
}

/// Resizes each column of an image whose rows are `row` bytes.
fn rows(image: &[u8], row: usize, weights: &[Weights]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row * weights.len());
    let mut sums = vec![0i32; row];
    for weights in weights {
        sums.fill(1 << (PRECISION_BITS - 1));
        let old = image[weights.first * row..].chunks_exact(row);
        for (values, weight) in old.zip(&weights.fixed) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| to_u8(sum)));
    }
    out
}
