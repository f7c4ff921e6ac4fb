//! Group normalisation of activations in blocks: its statistics, the map x factor + offset that it comes to for each
//! channel of each image (which `source` applies on the way into a convolution), and its gradients.

use rayon::prelude::*;

use crate::bf16::Element;
use crate::simd::{per_processor, per_vector};
use crate::source::Source;
use crate::storage::Shared;
use crate::tile::LANES;
use crate::vector::Vector;

/// Groups and the number under the root.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Groups {
    pub(crate) count: usize,
    pub(crate) eps: f64,
}

/// γ and β of each channel, and of a conditioned normalisation what multiplies and shifts them for each image:
/// z = (γ x̂ + β)(1 + s) + t.
#[derive(Clone, Copy)]
pub(crate) struct Affinity<'a> {
    pub(crate) gamma: &'a [f32],
    pub(crate) beta: &'a [f32],
    /// s and then t, 2 channels in blocks of the images' vectors: `[blocks, B, LANES]`.
    pub(crate) scale_shift: Option<&'a [f32]>,
}

impl Affinity<'_> {
    /// 1 + s and t of one channel of one image.
    fn conditioned(&self, image: usize, batch: usize, channel: usize) -> (f32, f32) {
        let Some(vectors) = self.scale_shift else {
            return (1.0, 0.0);
        };
        let at = |channel: usize| vectors[vector_place(image, batch, channel)];
        (1.0 + at(channel), at(self.gamma.len() + channel))
    }
}

/// Where channel `channel` of image `image` lies among vectors `[blocks, B, LANES]`.
pub(crate) fn vector_place(image: usize, batch: usize, channel: usize) -> usize {
    (channel / LANES * batch + image) * LANES + channel % LANES
}

/// Mean and 1 / √(variance + eps) of every group of every image: `[B, groups]`.
pub(crate) fn statistics<E: Element>(
    x: &Source<'_>,
    batch: usize,
    groups: Groups,
    into: &mut [[f32; 2]],
) {
    let (channels, blocks) = (x.channels(), x.blocks());
    let pixels = x.height * x.width;
    let mut of_channels = vec![[0f64; 2]; batch * blocks * LANES];
    of_channels
        .par_chunks_mut(LANES)
        .enumerate()
        .for_each(|(task, to)| {
            channel_statistics(stored::<E>(x, task / blocks, task % blocks), to)
        });
    let of_group = channels / groups.count;
    for (image, into) in into.chunks_mut(groups.count).enumerate().take(batch) {
        let of_channels = &of_channels[image * blocks * LANES..][..channels];
        for (group, into) in of_channels.chunks(of_group).zip(into) {
            *into = together(group, pixels as f64, groups.eps);
        }
    }
}

/// Mean and Σ (x - mean)² of each lane of a plane.
fn channel_statistics<E: Element>(plane: &[E], to: &mut [[f64; 2]]) {
    let pixels = (plane.len() / LANES) as f64;
    let mean = lane_sums(plane).map(|sum| sum / pixels);
    let rounded = mean.map(|mean| mean as f32);
    let squares = lane_squares(plane, &rounded);
    for (lane, to) in to.iter_mut().enumerate() {
        let offset = mean[lane] - f64::from(rounded[lane]); // Σ (x - rounded)² = Σ (x - mean)² + n offset²
        *to = [
            mean[lane],
            (squares[lane] - pixels * offset * offset).max(0.0),
        ];
    }
}

/// The statistics of a group from those of its channels (Chan, Golub and LeVeque 1979).
fn together(channels: &[[f64; 2]], pixels: f64, eps: f64) -> [f32; 2] {
    let count = channels.len() as f64;
    let mean = channels.iter().map(|[mean, _]| mean).sum::<f64>() / count;
    let squares = channels
        .iter()
        .map(|[of, squares]| squares + pixels * (of - mean) * (of - mean))
        .sum::<f64>();
    [
        mean as f32,
        (1.0 / (squares / (count * pixels) + eps).sqrt()) as f32,
    ]
}

/// Factor and offset of every channel of every image, as `source::Affine` wants them: γ' / s and β' - μ γ' / s.
pub(crate) fn coefficients(
    statistics: &[[f32; 2]],
    affinity: Affinity<'_>,
    batch: usize,
    groups: usize,
    into: &mut [f32],
) {
    let channels = affinity.gamma.len();
    let blocks = channels.div_ceil(LANES);
    for (task, into) in into
        .chunks_exact_mut(2 * LANES)
        .enumerate()
        .take(batch * blocks)
    {
        let (image, block) = (task / blocks, task % blocks);
        into.fill(0.0);
        for channel in block * LANES..channels.min((block + 1) * LANES) {
            let [mean, inverse] = statistics[image * groups + channel / (channels / groups)];
            let (times, plus) = affinity.conditioned(image, batch, channel);
            let factor = inverse * (affinity.gamma[channel] * times);
            let lane = channel % LANES;
            into[lane] = factor;
            into[LANES + lane] = affinity.beta[channel] * times + plus - mean * factor;
        }
    }
}

/// What the backward pass of a normalisation (with SiLU or without) needs.
pub(crate) struct Backward<'a> {
    /// The activations that were normalised.
    pub(crate) x: &'a Source<'a>,
    pub(crate) batch: usize,
    pub(crate) groups: usize,
    pub(crate) silu: bool,
    pub(crate) statistics: &'a [[f32; 2]],
    pub(crate) coefficients: &'a [f32],
    pub(crate) affinity: Affinity<'a>,
}

/// Where the gradient of some channels goes.
#[derive(Clone, Copy)]
pub(crate) struct PartGradient<'a, E> {
    pub(crate) memory: &'a Shared<'a, E>,
    /// Numbers from one image to the next.
    pub(crate) image: usize,
    /// Adds to what is there.
    pub(crate) accumulate: bool,
}

/// Sums over the pixels of each channel of each image, `[B, blocks * LANES]`: Σ h and Σ h x̂, where h is the gradient with
/// respect to z.
pub(crate) type ChannelSums = Vec<[f32; 2]>;

impl Backward<'_> {
    /// dL/dx of each part from dL/dy in `g` (blocks of all channels), which is overwritten.
    ///
    /// # Safety
    /// Nothing else touches the gradients of the parts while this runs.
    #[allow(unsafe_code)] // gradients are shared by the tasks
    pub(crate) unsafe fn run<E: Element>(
        &self,
        g: &mut [E],
        parts: &[Option<PartGradient<'_, E>>],
    ) -> ChannelSums {
        let blocks = self.x.blocks();
        let plane_length = self.x.height * self.x.width * LANES;
        let mut sums = vec![[0f32; 2]; self.batch * blocks * LANES];
        g.par_chunks_mut(plane_length)
            .zip(sums.par_chunks_mut(LANES))
            .enumerate()
            .for_each(|(task, (g, sums))| self.channel_sums(task / blocks, task % blocks, g, sums));
        let means = self.group_means(&sums);
        g.par_chunks(plane_length)
            .enumerate()
            .for_each(|(task, g)| {
                let (image, block) = (task / blocks, task % blocks);
                let (part, first) = part_of(self.x, block);
                let Some(part) = &parts[part] else {
                    return;
                };
                let start = part.image * image + first * plane_length;
                // SAFETY: the plane is this task's, by the caller's promise nobody else's, and `at` has seen that it is there.
                let dx = unsafe {
                    std::slice::from_raw_parts_mut(
                        part.memory.at(start, plane_length),
                        plane_length,
                    )
                };
                let lines = self.lines(image, block, &means);
                input_gradient(
                    dx,
                    g,
                    stored::<E>(self.x, image, block),
                    &lines,
                    part.accumulate,
                );
            });
        sums
    }

    /// Turns dL/dy into dL/dz, and sums it over the pixels.
    fn channel_sums<E: Element>(
        &self,
        image: usize,
        block: usize,
        g: &mut [E],
        sums: &mut [[f32; 2]],
    ) {
        let x = stored::<E>(self.x, image, block);
        let mut means = [0f32; LANES];
        let mut inverses = [0f32; LANES];
        for channel in self.channels(block) {
            [means[channel % LANES], inverses[channel % LANES]] =
                self.statistics_of(image, channel);
        }
        let place = (image * self.x.blocks() + block) * 2 * LANES;
        let silu = self
            .silu
            .then_some(&self.coefficients[place..][..2 * LANES]);
        let [of_g, of_g_x] = channel_gradients(g, x, &means, silu);
        for (lane, sums) in sums.iter_mut().enumerate() {
            *sums = [
                of_g[lane] as f32,
                (of_g_x[lane] * f64::from(inverses[lane])) as f32,
            ];
        }
    }

    /// The means over each group of γ' h and γ' h x̂: `[B, groups]`.
    fn group_means(&self, sums: &[[f32; 2]]) -> Vec<[f64; 2]> {
        let channels = self.x.channels();
        let of_group = channels / self.groups;
        let count = (of_group * self.x.height * self.x.width) as f64;
        let mean = |task: usize| {
            let (image, group) = (task / self.groups, task % self.groups);
            let mut mean = [0f64; 2];
            for channel in group * of_group..(group + 1) * of_group {
                let (times, _) = self.affinity.conditioned(image, self.batch, channel);
                let gamma = f64::from(self.affinity.gamma[channel] * times);
                let of = sums[image * self.x.blocks() * LANES + channel];
                mean[0] += gamma * f64::from(of[0]) / count;
                mean[1] += gamma * f64::from(of[1]) / count;
            }
            mean
        };
        (0..self.batch * self.groups).map(mean).collect()
    }

    /// For each lane: factor, slope, μ and shift of dx = factor h + slope (x - μ) + shift.
    fn lines(&self, image: usize, block: usize, means: &[[f64; 2]]) -> [[f32; LANES]; 4] {
        let mut lines = [[0f32; LANES]; 4];
        let place = (image * self.x.blocks() + block) * 2 * LANES;
        let of_group = self.x.channels() / self.groups;
        for channel in self.channels(block) {
            let lane = channel % LANES;
            let [mean, inverse] = self.statistics_of(image, channel);
            let [of_h, of_h_x] = means[image * self.groups + channel / of_group];
            let inverse = f64::from(inverse);
            lines[0][lane] = self.coefficients[place + lane];
            lines[1][lane] = (-of_h_x * inverse * inverse) as f32;
            lines[2][lane] = mean;
            lines[3][lane] = (-of_h * inverse) as f32;
        }
        lines
    }

    fn channels(&self, block: usize) -> std::ops::Range<usize> {
        block * LANES..self.x.channels().min((block + 1) * LANES)
    }

    fn statistics_of(&self, image: usize, channel: usize) -> [f32; 2] {
        self.statistics[image * self.groups + channel / (self.x.channels() / self.groups)]
    }
}

/// Adds up the gradients of γ and β (and of s and t of each image, `[2 channels in blocks, B, LANES]`).
pub(crate) fn affine_gradients(
    sums: &[[f32; 2]],
    affinity: Affinity<'_>,
    batch: usize,
    mut into: impl FnMut(usize, f32, f32),
    mut conditioned: impl FnMut(usize, usize, f32, f32),
) {
    let channels = affinity.gamma.len();
    let stride = channels.next_multiple_of(LANES);
    for channel in 0..channels {
        let (mut gamma, mut beta) = (0f64, 0f64);
        for image in 0..batch {
            let [of_h, of_h_x] = sums[image * stride + channel];
            let (times, _) = affinity.conditioned(image, batch, channel);
            gamma += f64::from(of_h_x * times);
            beta += f64::from(of_h * times);
            if affinity.scale_shift.is_some() {
                let scale = affinity.gamma[channel] * of_h_x + affinity.beta[channel] * of_h;
                conditioned(image, channel, scale, of_h);
            }
        }
        into(channel, gamma as f32, beta as f32);
    }
}

/// Which part of a source a block of its channels belongs to, and which of the part's blocks it is. All parts but the
/// last have whole blocks.
fn part_of(x: &Source<'_>, mut block: usize) -> (usize, usize) {
    for (index, part) in x.parts.iter().enumerate() {
        let blocks = part.channels.div_ceil(LANES);
        if block < blocks {
            return (index, block);
        }
        block -= blocks;
    }
    (0, 0)
}

/// One block of channels of one image, which are kept in blocks.
fn stored<'a, E: Element>(x: &Source<'a>, image: usize, block: usize) -> &'a [E] {
    let plane = x.plane(image, block);
    debug_assert!(plane.is_some(), "only what lies in blocks is normalised");
    plane.unwrap_or_default()
}

/// Pixels summed in single precision before the sums go on in double.
const RUN: usize = 64;

per_processor! {
    /// Σ x of each lane.
    fn lane_sums<E: Element>(x: &[E]) -> [f64; LANES] {
        lanes(x, x, |x, _, _| x)
    }

    /// Σ (x - mean)² of each lane.
    fn lane_squares<E: Element>(x: &[E], mean: &[f32; LANES]) -> [f64; LANES] {
        lanes(x, x, |x, _, lane| (x - mean[lane]) * (x - mean[lane]))
    }
}

per_vector! {
    /// g = g silu'(x factor + offset) where there are coefficients; Σ g and Σ g (x - mean) of each lane.
    fn channel_gradients[E: Element](
        g: &mut [E],
        x: &[E],
        mean: &[f32; LANES],
        coefficients: Option<&[f32]>,
    ) -> [[f64; LANES]; 2];

    /// dx = factor h + slope (x - mean) + shift, or that added to dx.
    fn input_gradient[E: Element](
        dx: &mut [E],
        h: &[E],
        x: &[E],
        lines: &[[f32; LANES]; 4],
        accumulate: bool,
    );
}

mod body {
    #![allow(unsafe_code)] // the levels' instructions
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn channel_gradients<V: Vector, E: Element>(
        g: &mut [E],
        x: &[E],
        mean: &[f32; LANES],
        coefficients: Option<&[f32]>,
    ) -> [[f64; LANES]; 2] {
        // SAFETY: whole pixels of both slices.
        unsafe {
            match coefficients {
                Some(coefficients) => {
                    let of = V::load(coefficients.as_ptr());
                    let offset = V::load(coefficients[LANES..].as_ptr());
                    sums::<V, E, true>(g, x, mean, (of, offset))
                }
                None => sums::<V, E, false>(g, x, mean, (V::zero(), V::zero())),
            }
        }
    }

    #[inline(always)]
    unsafe fn sums<V: Vector, E: Element, const SILU: bool>(
        g: &mut [E],
        x: &[E],
        mean: &[f32; LANES],
        (factor, offset): (V, V),
    ) -> [[f64; LANES]; 2] {
        let mut totals = [[0f64; LANES]; 2];
        // SAFETY: the caller's promise.
        unsafe {
            let (mean, one) = (V::load(mean.as_ptr()), V::splat(1.0));
            for (g, x) in g.chunks_mut(RUN * LANES).zip(x.chunks(RUN * LANES)) {
                let mut sums = [V::zero(); 2];
                for (g, x) in g.chunks_exact_mut(LANES).zip(x.chunks_exact(LANES)) {
                    let x = E::load::<V>(x.as_ptr());
                    let mut h = E::load::<V>(g.as_ptr());
                    if SILU {
                        let z = offset.fused(x, factor);
                        let s = z.sigmoid();
                        h = h.mul(s.mul(one.fused(z, one.sub(s))));
                        E::store(h, g.as_mut_ptr());
                        // What is summed is what is stored.
                        h = E::load::<V>(g.as_ptr());
                    }
                    sums[0] = sums[0].add(h);
                    sums[1] = sums[1].fused(h, x.sub(mean));
                }
                for (total, sum) in totals.iter_mut().zip(sums) {
                    let mut lanes = [0f32; LANES];
                    sum.store(lanes.as_mut_ptr());
                    for (total, lane) in total.iter_mut().zip(lanes) {
                        *total += f64::from(lane);
                    }
                }
            }
        }
        totals
    }

    #[inline(always)]
    pub(super) unsafe fn input_gradient<V: Vector, E: Element>(
        dx: &mut [E],
        h: &[E],
        x: &[E],
        lines: &[[f32; LANES]; 4],
        accumulate: bool,
    ) {
        // SAFETY: whole pixels of all slices.
        unsafe {
            let [factor, slope, mean, shift] = lines.each_ref().map(|line| V::load(line.as_ptr()));
            for ((dx, h), x) in dx
                .chunks_exact_mut(LANES)
                .zip(h.chunks_exact(LANES))
                .zip(x.chunks_exact(LANES))
            {
                let from_mean = E::load::<V>(x.as_ptr()).sub(mean);
                let mut value = shift.fused(slope, from_mean);
                value = value.fused(factor, E::load::<V>(h.as_ptr()));
                if accumulate {
                    value = value.add(E::load::<V>(dx.as_ptr()));
                }
                E::store(value, dx.as_mut_ptr());
            }
        }
    }
}

/// Σ f(x, y, lane) of each lane of two slices of one length.
#[inline(always)]
pub(crate) fn lanes<E: Element>(
    x: &[E],
    y: &[E],
    f: impl Fn(f32, f32, usize) -> f32,
) -> [f64; LANES] {
    let mut total = [0f64; LANES];
    for (x, y) in x.chunks(RUN * LANES).zip(y.chunks(RUN * LANES)) {
        let mut sums = [0f32; LANES];
        for (x, y) in x
            .as_chunks::<LANES>()
            .0
            .iter()
            .zip(y.as_chunks::<LANES>().0)
        {
            for lane in 0..LANES {
                sums[lane] += f(x[lane].widen(), y[lane].widen(), lane);
            }
        }
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += f64::from(sum);
        }
    }
    total
}
