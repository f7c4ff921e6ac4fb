//! Normals, uniforms and integers at an address, made in parallel and the same however they are asked for.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::address::{Address, BLOCK, Stream, check_elements};
use crate::box_muller::box_muller;
use crate::philox::{LANES, Words};
use crate::{Error, Result};

/// Elements that [`LANES`] blocks make.
const GROUP: usize = LANES * BLOCK;

/// Elements that one task makes: a whole number of groups, so that tasks do not share a block.
const TASK: usize = 256 * GROUP;

/// Standard normals, f32: the elements 0, 1, 2, ... of one image.
///
/// Words (0, 1) of a block give elements 0 and 1 by Box-Muller, words (2, 3) elements 2 and 3. A
/// shorter `out` gets the first elements of a longer one.
///
/// # Errors
/// [`Error::Image`], [`Error::Step`], [`Error::Elements`] when the address has no such number.
pub fn normal_into(
    seed: u64,
    stream: Stream,
    image: u64,
    step: u64,
    out: &mut [f32],
) -> Result<()> {
    fill(Address::new(seed, stream, image, step)?, out, normals_of)
}

/// Uniforms in [0, 1), f32, multiples of 2^-24: the elements 0, 1, 2, ... of one image.
///
/// # Errors
/// As [`normal_into`].
pub fn uniform_into(
    seed: u64,
    stream: Stream,
    image: u64,
    step: u64,
    out: &mut [f32],
) -> Result<()> {
    fill(Address::new(seed, stream, image, step)?, out, uniforms_of)
}

/// What makes the numbers of an address elsewhere, on a graphics card for one: Philox4x32-10's key, and words 1, 2 and 3 of
/// its counter. Word 0 counts blocks; the four words of block b are the elements 4 b to 4 b + 3, as in [`uniform_into`].
///
/// ```
/// let (key, counter) = ddpm_random::philox_words(5 << 32 | 7, ddpm_random::Stream::Dropout, 11, 13)?;
/// assert_eq!((key, counter), ([7, 5], [11, 13, 3 << 24]));
/// # Ok::<(), ddpm_random::Error>(())
/// ```
///
/// # Errors
/// [`Error::Image`] and [`Error::Step`] when there is no such address.
pub fn philox_words(
    seed: u64,
    stream: Stream,
    image: u64,
    step: u64,
) -> Result<([u32; 2], [u32; 3])> {
    Ok(Address::new(seed, stream, image, step)?.words())
}

/// Standard normals for a batch: row i is what [`normal_into`] gives for `images[i]`.
///
/// # Shapes
/// `shape`: (C, H, W); result: f32 `[images.len(), C, H, W]`.
///
/// # Errors
/// As [`normal_into`]; [`Error::Shape`] when the batch cannot fit in memory; the device's.
pub fn normal_batch(
    seed: u64,
    stream: Stream,
    images: &[u64],
    step: u64,
    (channels, height, width): (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let shape = [images.len(), channels, height, width];
    Ok(Tensor::from_vec(
        batch(seed, stream, images, step, &shape, normals_of)?,
        &shape,
        device,
    )?)
}

/// Uniforms in [0, 1) for a batch: row i is what [`uniform_into`] gives for `images[i]`.
///
/// # Shapes
/// `shape`: (C, H, W); result: f32 `[images.len(), C, H, W]`.
///
/// # Errors
/// As [`normal_batch`].
pub fn uniform_batch(
    seed: u64,
    stream: Stream,
    images: &[u64],
    step: u64,
    (channels, height, width): (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let shape = [images.len(), channels, height, width];
    Ok(Tensor::from_vec(
        batch(seed, stream, images, step, &shape, uniforms_of)?,
        &shape,
        device,
    )?)
}

/// An integer in 0..n, all equally likely.
///
/// Lemire, "Fast random integer generation in an interval", 2019: the upper half of a 64-bit word
/// times n; the few words that would favour some integers are passed over, two tries a block.
///
/// # Errors
/// [`Error::BelowZero`] when n is 0; as [`normal_into`].
pub fn uniform_u64_below(seed: u64, stream: Stream, image: u64, step: u64, n: u64) -> Result<u64> {
    let address = Address::new(seed, stream, image, step)?;
    if n == 0 {
        return Err(Error::BelowZero);
    }
    let blocks = (0..=u32::MAX).map(|block| address.block(block));
    let words = blocks.flat_map(|[a, b, c, d]| [join(a, b), join(c, d)]);
    Ok(words
        .map(|word| below(word, n))
        .find_map(|drawn| drawn)
        .unwrap_or(0))
}

/// A uniform in [0, 1), a multiple of 2^-53.
///
/// # Errors
/// As [`normal_into`].
pub fn uniform_f64(seed: u64, stream: Stream, image: u64, step: u64) -> Result<f64> {
    let [low, high, ..] = Address::new(seed, stream, image, step)?.block(0);
    Ok((join(low, high) >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0))
}

/// What a group of blocks becomes: its elements in order.
type Group = fn([Words; BLOCK], &mut [f32; GROUP]);

/// Elements of many images, one after the other; `shape[0]` is the number of images.
pub(crate) fn batch(
    seed: u64,
    stream: Stream,
    images: &[u64],
    step: u64,
    shape: &[usize],
    group: Group,
) -> Result<Vec<f32>> {
    let too_large = || Error::Shape {
        shape: shape.to_vec(),
    };
    let product = |sizes: &[usize]| {
        sizes
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
    };
    let size = product(&shape[1..]).ok_or_else(too_large)?;
    let total = size.checked_mul(images.len()).ok_or_else(too_large)?;
    check_elements(size)?;
    let addresses: Vec<Address> = images
        .iter()
        .map(|&image| Address::new(seed, stream, image, step))
        .collect::<Result<_>>()?;
    let mut out = Vec::new();
    out.try_reserve_exact(total).map_err(|_| too_large())?;
    out.resize(total, 0.0);
    if size > 0 {
        let rows = out.par_chunks_mut(size).zip(addresses);
        rows.try_for_each(|(row, address)| fill(address, row, group))?;
    }
    Ok(out)
}

/// The elements of one address, in parallel where they are many.
fn fill(address: Address, out: &mut [f32], group: Group) -> Result<()> {
    check_elements(out.len())?;
    if out.len() <= TASK {
        fill_from(address, 0, out, group);
    } else {
        let tasks = out.par_chunks_mut(TASK).enumerate();
        tasks.for_each(|(task, out)| fill_from(address, task * (TASK / BLOCK), out, group));
    }
    Ok(())
}

fn fill_from(address: Address, first_block: usize, out: &mut [f32], group: Group) {
    let first = |index: usize| (first_block + index * LANES) as u32;
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let whole = groups.len();
    for (index, out) in groups.iter_mut().enumerate() {
        group(address.blocks(first(index)), out);
    }
    if !rest.is_empty() {
        let mut last = [0.0; GROUP];
        group(address.blocks(first(whole)), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

pub(crate) fn normals_of(words: [Words; BLOCK], out: &mut [f32; GROUP]) {
    let mut lanes = [[0.0; LANES]; BLOCK];
    for pair in [0, 2] {
        for lane in 0..LANES {
            let (cos, sin) = box_muller(words[pair][lane], words[pair + 1][lane]);
            lanes[pair][lane] = cos;
            lanes[pair + 1][lane] = sin;
        }
    }
    interleave(&lanes, out);
}

fn uniforms_of(words: [Words; BLOCK], out: &mut [f32; GROUP]) {
    let uniform = |word: u32| (word >> 8) as f32 * (1.0 / 16_777_216.0);
    interleave(&words.map(|word| word.map(uniform)), out);
}

/// Word by word to block by block.
#[inline(always)]
fn interleave(lanes: &[[f32; LANES]; BLOCK], out: &mut [f32; GROUP]) {
    for lane in 0..LANES {
        for word in 0..BLOCK {
            out[lane * BLOCK + word] = lanes[word][lane];
        }
    }
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The integer in 0..n that a word stands for; none for words beyond the last whole share.
fn below(word: u64, n: u64) -> Option<u64> {
    let product = u128::from(word) * u128::from(n);
    // 2^64 mod n words are too many: those whose product falls lowest within its share.
    let surplus = n.wrapping_neg() % n;
    (product as u64 >= surplus).then_some((product >> 64) as u64)
}
