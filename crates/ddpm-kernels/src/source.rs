//! Where the pixels of a convolution come from, and how a thread lays out those of its task: padded, sixteen channels side
//! by side, with whatever stands between the stored activations and the convolution (concatenation, normalisation, SiLU,
//! dropout, up-sampling) done on the way, so that none of these is ever stored.

use std::ops::Range;

use rayon::prelude::*;

use crate::bf16::{Bf16, Element};
use crate::processor::Level;
use crate::simd::{per_processor, sigmoid};
use crate::tile::LANES;
use crate::transpose::{Rows, transpose};

/// How the channels of a batch of images lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[blocks, height, width, LANES]` an image; the channels that the last block has too many are zeros.
    Blocked,
    /// `[channels, height, width]` an image.
    Plain,
    /// `[height, width, channels]` an image.
    Rows,
}

/// Numbers as they are stored.
#[derive(Clone, Copy)]
pub(crate) enum Data<'a> {
    Floats(&'a [f32]),
    Halves(&'a [Bf16]),
}

impl Data<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Data::Floats(floats) => floats.len(),
            Data::Halves(halves) => halves.len(),
        }
    }
}

/// Some channels of a batch of images.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) data: Data<'a>,
    pub(crate) layout: Layout,
    pub(crate) channels: usize,
    /// Numbers from one image to the next.
    pub(crate) image: usize,
}

/// What is done to a value on its way: x factor + offset, SiLU.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    /// For each image and block of all channels LANES factors, then LANES offsets; none for x itself.
    pub(crate) coefficients: Option<&'a [f32]>,
    pub(crate) silu: bool,
}

/// Activations that are dropped: zero where the mask is, otherwise scaled.
#[derive(Clone, Copy)]
pub(crate) struct Mask<'a> {
    /// Laid out in blocks, as the source's channels.
    pub(crate) kept: &'a [u8],
    pub(crate) scale: f32,
}

/// The input of a convolution: channels of several activations, one after the other.
#[derive(Clone)]
pub(crate) struct Source<'a> {
    pub(crate) parts: Vec<Part<'a>>,
    /// Rows and columns as stored.
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) affine: Option<Affine<'a>>,
    pub(crate) mask: Option<Mask<'a>>,
    /// Every pixel stands for two by two.
    pub(crate) upsampled: bool,
}

impl<'a> Source<'a> {
    /// The channels of one batch of images, as they are.
    pub(crate) fn plain(part: Part<'a>, height: usize, width: usize) -> Self {
        Source {
            parts: vec![part],
            height,
            width,
            affine: None,
            mask: None,
            upsampled: false,
        }
    }

    /// Whether its first channels are stored as bf16.
    pub(crate) fn is_half(&self) -> bool {
        matches!(self.parts[0].data, Data::Halves(_))
    }

    pub(crate) fn channels(&self) -> usize {
        self.parts.iter().map(|part| part.channels).sum()
    }

    pub(crate) fn blocks(&self) -> usize {
        self.channels().div_ceil(LANES)
    }

    /// Rows and columns as the convolution sees them.
    pub(crate) fn size(&self) -> (usize, usize) {
        let times = 1 + usize::from(self.upsampled);
        (times * self.height, times * self.width)
    }

    /// The blocks of the only part and the numbers from one image to the next, if they can be read where they are.
    pub(crate) fn as_stored<E: Element>(&self) -> Option<(&'a [E], usize)> {
        match self.parts.as_slice() {
            [part] if part.layout == Layout::Blocked => {
                let touched = self.affine.is_some() || self.mask.is_some() || self.upsampled;
                (!touched).then_some((E::of(part.data)?, part.image))
            }
            _ => None,
        }
    }

    /// All pixels of a block of channels, `[height, width, LANES]`, if they are stored so.
    pub(crate) fn plane<E: Element>(&self, image: usize, block: usize) -> Option<&'a [E]> {
        let mut first = block * LANES;
        let at = self.parts.iter().find(|part| {
            let found = first < part.channels;
            first -= if found { 0 } else { part.channels };
            found
        });
        let pixels = self.height * self.width;
        let last = self.parts.last().map(std::ptr::from_ref);
        let stored = |part: &&Part<'_>| {
            // What the last block of all has too many are zeros.
            let whole = part.channels - first >= LANES || Some(std::ptr::from_ref(*part)) == last;
            part.layout == Layout::Blocked && first.is_multiple_of(LANES) && whole
        };
        let part = at.filter(stored)?;
        let data = E::of(part.data)?;
        Some(&data[part.image * image + first * pixels..][..pixels * LANES])
    }

    /// Copies some rows of a block of channels to `[rows, width, LANES]`.
    pub(crate) fn copy_rows(&self, image: usize, block: usize, rows: Range<usize>, to: &mut [f32]) {
        let pixels = rows.start * self.width..rows.end * self.width;
        let to = &mut to[..pixels.len() * LANES];
        let mut first = block * LANES;
        let mut lane = 0;
        for part in &self.parts {
            if first >= part.channels {
                first -= part.channels;
                continue;
            }
            let count = (part.channels - first).min(LANES - lane);
            if count < LANES && lane == 0 {
                to.fill(0.0);
            }
            let all = self.height * self.width;
            part.copy(image, first..first + count, (all, &pixels), &mut to[lane..]);
            lane += count;
            if lane == LANES {
                break;
            }
            first = 0;
        }
    }

    /// Copies a batch of images to blocks of channels.
    pub(crate) fn copy_blocks(&self, to: &mut [f32]) {
        let plane = self.height * self.width * LANES;
        to.par_chunks_mut(plane).enumerate().for_each(|(i, to)| {
            let (image, block) = (i / self.blocks(), i % self.blocks());
            self.copy_rows(image, block, 0..self.height, to);
        });
    }
}

impl Part<'_> {
    /// Copies up to LANES channels of some of all pixels to where pixels are LANES apart.
    fn copy(
        &self,
        image: usize,
        channels: Range<usize>,
        (all, pixels): (usize, &Range<usize>),
        to: &mut [f32],
    ) {
        let data = match self.data {
            Data::Floats(data) => &data[self.image * image..],
            // Only activations in blocks are stored so.
            Data::Halves(data) => {
                let data = &data[self.image * image..];
                return copy_blocked(data, channels, (all, pixels), to);
            }
        };
        match self.layout {
            Layout::Plain => {
                let data = &data[channels.start * all + pixels.start..];
                let data = &data[..(channels.len() - 1) * all + pixels.len()];
                let to = &mut to[..(pixels.len() - 1) * LANES + channels.len()];
                let (from, to) = (
                    Rows {
                        first: data.as_ptr(),
                        stride: all,
                    },
                    Rows {
                        first: to.as_mut_ptr(),
                        stride: LANES,
                    },
                );
                #[allow(unsafe_code)]
                // SAFETY: both slices reach from the first to the last element of their matrices.
                unsafe {
                    transpose(
                        Level::current(),
                        from,
                        (channels.len(), pixels.len()),
                        to,
                        false,
                    );
                }
            }
            Layout::Rows => {
                let rows = data[pixels.start * self.channels..].chunks(self.channels);
                for (row, to) in rows.zip(to.chunks_mut(LANES)).take(pixels.len()) {
                    copy_lanes(&mut to[..channels.len()], &row[channels.clone()]);
                }
            }
            Layout::Blocked => copy_blocked(data, channels, (all, pixels), to),
        }
    }
}

/// As [`Part::copy`], from blocks of one image.
fn copy_blocked<E: Element>(
    data: &[E],
    channels: Range<usize>,
    (all, pixels): (usize, &Range<usize>),
    to: &mut [f32],
) {
    for (lane, channel) in channels.enumerate() {
        let start = (channel / LANES * all + pixels.start) * LANES + channel % LANES;
        let from = data[start..].iter().step_by(LANES);
        let pairs = to[lane..].iter_mut().step_by(LANES).zip(from);
        pairs.for_each(|(to, from)| *to = from.widen());
    }
}

/// Copies one block of a row; nearly all are whole.
fn copy_lanes(to: &mut [f32], from: &[f32]) {
    if let (Some(to), Some(from)) = (to.first_chunk_mut::<LANES>(), from.first_chunk::<LANES>()) {
        *to = *from;
    } else {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
}

/// Which pixels a window reads: for each output, the inputs at `output * stride + offset`, one for each tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) stride: usize,
    /// Row and column of each tap; what lies outside of the image is zero.
    pub(crate) offsets: Vec<(isize, isize)>,
    /// Rows and columns of the output.
    pub(crate) height: usize,
    pub(crate) width: usize,
}

impl Window {
    /// Every output reads the one pixel under it.
    pub(crate) fn pointwise(height: usize, width: usize) -> Self {
        Window {
            stride: 1,
            offsets: vec![(0, 0)],
            height,
            width,
        }
    }

    /// Whether every output reads the one pixel under it.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.stride == 1 && self.offsets == [(0, 0)]
    }

    /// The first and the last row that an output in row 0 reads.
    pub(crate) fn rows(&self) -> (isize, isize) {
        extremes(self.offsets.iter().map(|offset| offset.0))
    }

    /// The first and the last column that an output in column 0 reads.
    pub(crate) fn columns(&self) -> (isize, isize) {
        extremes(self.offsets.iter().map(|offset| offset.1))
    }

    /// How so many images and rows of output are laid out.
    pub(crate) fn layout(&self, images: usize, rows: usize) -> Gathered {
        let (top, bottom) = self.rows();
        let (left, right) = self.columns();
        let input_rows = (rows - 1) * self.stride + (bottom - top) as usize + 1;
        let input_columns = (self.width - 1) * self.stride + (right - left) as usize + 1;
        let residue = input_columns.div_ceil(self.stride) * LANES;
        let row = residue * self.stride.min(input_columns);
        let taps = self.offsets.iter().map(|&(y, x)| {
            let (y, x) = ((y - top) as usize, (x - left) as usize);
            y * row + x % self.stride * residue + x / self.stride * LANES
        });
        Gathered {
            taps: taps.collect(),
            residue,
            row,
            input_rows,
            image: row * input_rows,
            block: row * input_rows * images,
            output_row: row * self.stride,
        }
    }
}

fn extremes(of: impl Iterator<Item = isize> + Clone) -> (isize, isize) {
    let least = of.clone().min().unwrap_or(0);
    (least, of.max().unwrap_or(0))
}

/// The layout of gathered pixels, `[blocks, images, rows, residues, columns, LANES]`: columns that a stride visits
/// together lie together.
pub(crate) struct Gathered {
    /// From an output's first pixel to each tap's.
    pub(crate) taps: Vec<usize>,
    pub(crate) residue: usize,
    pub(crate) row: usize,
    pub(crate) input_rows: usize,
    pub(crate) image: usize,
    pub(crate) block: usize,
    /// From the pixels of a row of output to those of the next.
    pub(crate) output_row: usize,
}

/// Lays out what the outputs of these images and rows need of these blocks of channels.
pub(crate) fn gather(
    source: &Source<'_>,
    window: &Window,
    layout: &Gathered,
    images: Range<usize>,
    first_row: usize,
    blocks: Range<usize>,
    to: &mut [f32],
) {
    let (height, width) = source.size();
    let (top, left) = (window.rows().0, window.columns().0);
    let line = source.width * LANES;
    let together = copied_together(source.width).min(source.height);
    let mut buffer = Vec::new();
    for (block, to) in blocks.zip(to.chunks_mut(layout.block)) {
        for (image, to) in images.clone().zip(to.chunks_mut(layout.image)) {
            let plane = source.plane::<f32>(image, block);
            let mut copied = 0..0;
            for (row, to) in to
                .chunks_mut(layout.row)
                .enumerate()
                .take(layout.input_rows)
            {
                let y = (first_row * window.stride + row) as isize + top;
                if y < 0 || y >= height as isize {
                    to.fill(0.0);
                    continue;
                }
                let y = y as usize >> usize::from(source.upsampled);
                let from = if let Some(plane) = plane {
                    &plane[y * line..][..line]
                } else {
                    if !copied.contains(&y) {
                        copied = y..(y + together).min(source.height);
                        buffer.resize(together * line, 0.0);
                        source.copy_rows(image, block, copied.clone(), &mut buffer);
                    }
                    &buffer[(y - copied.start) * line..][..line]
                };
                for (residue, to) in to.chunks_mut(layout.residue).enumerate() {
                    spread(
                        source,
                        (left + residue as isize, window.stride),
                        width,
                        from,
                        to,
                        (image, block, y),
                    );
                }
            }
        }
    }
}

/// Rows that are copied to a buffer at once: whole tiles of pixels, unless that were too many for the first-level cache.
pub(crate) fn copied_together(width: usize) -> usize {
    let whole = (1..=LANES).find(|rows| (rows * width).is_multiple_of(LANES));
    let whole = whole.filter(|rows| rows * width <= 8 * LANES);
    whole.unwrap_or((4 * LANES).div_ceil(width))
}

/// Columns `first`, `first + step`, ... of a row of stored pixels, zeros outside of the image.
fn spread(
    source: &Source<'_>,
    (first, step): (isize, usize),
    width: usize,
    from: &[f32],
    to: &mut [f32],
    (image, block, row): (usize, usize, usize),
) {
    let (before, inside) = inside(first, step, width, to.len() / LANES);
    let start = (first + (before * step) as isize) as usize;
    let (zeros, to) = to.split_at_mut(before * LANES);
    zeros.fill(0.0);
    let (to, zeros) = to.split_at_mut(inside * LANES);
    zeros.fill(0.0);
    let shift = usize::from(source.upsampled);
    match source.affine {
        None if step == 1 && shift == 0 => to.copy_from_slice(&from[start * LANES..][..to.len()]),
        None => copy(to, from, start, step, shift),
        Some(affine) => {
            let place = (image * source.blocks() + block) * 2 * LANES;
            let all = affine.coefficients.map(|all| &all[place..][..2 * LANES]);
            let coefficients = all.unwrap_or(&ITSELF);
            if affine.silu {
                scaled_silu(to, from, start, step, shift, coefficients);
            } else {
                scaled(to, from, start, step, shift, coefficients);
            }
        }
    }
    if let Some(mask) = source.mask {
        let place =
            ((image * source.blocks() + block) * source.height + row) * source.width * LANES;
        let kept = &mask.kept[place..][..source.width * LANES];
        drop_out(to, kept, start, step, shift, mask.scale);
    }
}

/// Of so many columns `first`, `first + step`, ... how many lie before an image of this width, and how many in it.
pub(crate) fn inside(first: isize, step: usize, width: usize, count: usize) -> (usize, usize) {
    let before = if first < 0 {
        (first.unsigned_abs()).div_ceil(step).min(count)
    } else {
        0
    };
    let start = (first + (before * step) as isize) as usize;
    let inside = width.saturating_sub(start).div_ceil(step);
    (before, inside.min(count - before))
}

/// Factors 1 and offsets 0.
pub(crate) const ITSELF: [f32; 2 * LANES] = {
    let mut coefficients = [0.0; 2 * LANES];
    let mut lane = 0;
    while lane < LANES {
        coefficients[lane] = 1.0;
        lane += 1;
    }
    coefficients
};

per_processor! {
    fn copy(to: &mut [f32], from: &[f32], start: usize, step: usize, shift: usize) {
        let (to, _) = to.as_chunks_mut::<LANES>();
        let (from, _) = from.as_chunks::<LANES>();
        for (i, to) in to.iter_mut().enumerate() {
            *to = from[(start + i * step) >> shift];
        }
    }

    fn scaled(to: &mut [f32], from: &[f32], start: usize, step: usize, shift: usize, coefficients: &[f32]) {
        on_the_way(to, from, (start, step, shift), coefficients, |z| z);
    }

    fn scaled_silu(to: &mut [f32], from: &[f32], start: usize, step: usize, shift: usize, coefficients: &[f32]) {
        on_the_way(to, from, (start, step, shift), coefficients, |z| z * sigmoid(z));
    }

    /// Zero wherever the mask is, even for an x that is not finite.
    fn drop_out(to: &mut [f32], kept: &[u8], start: usize, step: usize, shift: usize, scale: f32) {
        let (to, _) = to.as_chunks_mut::<LANES>();
        let (kept, _) = kept.as_chunks::<LANES>();
        for (i, to) in to.iter_mut().enumerate() {
            let kept = &kept[(start + i * step) >> shift];
            for lane in 0..LANES {
                to[lane] = if kept[lane] == 0 { 0.0 } else { to[lane] * scale };
            }
        }
    }
}

/// f(x factor + offset) of the pixels at `start`, `start + step`, ..., each of which may stand for two (`shift` 1).
#[inline(always)]
fn on_the_way(
    to: &mut [f32],
    from: &[f32],
    (start, step, shift): (usize, usize, usize),
    coefficients: &[f32],
    f: impl Fn(f32) -> f32,
) {
    let (to, _) = to.as_chunks_mut::<LANES>();
    let (from, _) = from.as_chunks::<LANES>();
    let [factor, offset] = *coefficients.as_chunks::<LANES>().0 else {
        return;
    };
    for (i, to) in to.iter_mut().enumerate() {
        let from = &from[(start + i * step) >> shift];
        for lane in 0..LANES {
            to[lane] = f(from[lane] * factor[lane] + offset[lane]);
        }
    }
}
