//! Group normalisation from the moments of channels, and its gradient.

use candle_core::{Result, bail};

use super::sums::{Columns, sum_rows};
use super::tiles::{PARTS, Tiles, addresses, check_parts, of_parts, optional, tiled};
use super::{Images, Part, Sink};
use crate::cuda::launch::{Address, Argument, Launch, Machine, WARP, arguments, each_image, whole};

/// Threads of a block that has a group of an image, at most.
const THREADS: usize = 256;

/// A normalisation: z = gamma x_hat + beta, then times 1 + scale and plus shift, with x_hat of mean 0 and variance 1 in each group
/// of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    /// With the channels of all parts.
    pub(crate) images: Images,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    /// f32 [C].
    pub(crate) gamma: Address,
    /// f32 [C].
    pub(crate) beta: Address,
    /// f32 [B, 2 C]: scale, then shift.
    pub(crate) scale_shift: Option<Address>,
}

/// A part of what is normalised: x + bias + vector, of which only x is stored, as after a convolution whose result nothing but a
/// normalisation reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormPart {
    pub(crate) part: Part,
    /// Those of x, by [`super::finish::moments`] or [`super::finish::finish`].
    pub(crate) moments: Address,
    /// f32 [C] of the part.
    pub(crate) bias: Option<Address>,
    /// f32 [B, C] of the part.
    pub(crate) vector: Option<Address>,
}

impl Norm {
    /// Channels of a group.
    fn width(&self) -> Result<usize> {
        let channels = self.images.channels;
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            bail!(
                "cuda: {channels} channels in {} groups, expected groups of one size",
                self.groups
            );
        }
        Ok(channels / self.groups)
    }

    /// A block a group of an image, of about so many threads.
    fn each_group(&self, threads: usize, shared_of_thread: usize) -> Result<Launch> {
        let threads = threads.next_power_of_two().clamp(WARP as usize, THREADS);
        Ok(Launch {
            grid: [
                whole("groups", self.groups)?,
                each_image(self.images.count)?,
            ],
            block: threads as u32,
            shared: 4 * (shared_of_thread * threads) as u32,
        })
    }
}

/// From the moments of the parts, f32 [B, C, 2] each: `unit`, u and v with x_hat = u x + v, and `coefficients`, a and b with
/// z = a x + b, both of x as it is stored.
pub(crate) fn coefficients<M: Machine>(
    machine: &M,
    norm: &Norm,
    parts: &[NormPart],
    unit: Address,
    coefficients: Address,
) -> Result<()> {
    let images = norm.images;
    let channels: Vec<usize> = parts.iter().map(|part| part.part.channels).collect();
    check_parts("a normalisation", images, &channels)?;
    let width = norm.width()?;
    if images.numbers() == 0 {
        return Ok(());
    }
    let tiles = |part: &NormPart| {
        Tiles::of(Images {
            channels: part.part.channels,
            ..images
        })
    };
    let chunks = parts.iter().map(|part| tiles(part).chunks()).max();
    let mut all = Vec::new();
    let mut add = |of: &dyn Fn(&NormPart) -> Argument| {
        all.extend((0..PARTS).map(|i| parts.get(i).map_or(Argument(0), of)));
    };
    add(&|part| part.moments.into());
    add(&|part| optional(part.bias));
    add(&|part| optional(part.vector));
    add(&|part| Argument::from(part.part.channels as u32));
    add(&|part| Argument::from(tiles(part).chunk as u32));
    add(&|part| Argument::from(tiles(part).chunks() as u32));
    whole("numbers of an image", images.pixels() * images.channels)?;
    all.extend_from_slice(arguments![
        norm.gamma,
        norm.beta,
        optional(norm.scale_shift),
        unit,
        coefficients,
        images.channels as u32,
        width as u32,
        images.pixels() as u32,
        norm.eps,
    ]);
    // Two or three chunks of a channel a thread.
    let launch = norm.each_group(width * chunks.unwrap_or(1) / 4, 1)?;
    machine.launch("nhwc_coefficients", launch, &all)
}

/// The gradient of a normalisation, followed by SiLU or not, of parts as they are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormGradient<'a> {
    pub(crate) norm: Norm,
    pub(crate) silu: bool,
    pub(crate) parts: &'a [Part],
    /// Those of [`coefficients`].
    pub(crate) unit: Address,
    pub(crate) coefficients: Address,
}

/// Floats that [`norm_gradient`] works with.
pub(crate) fn norm_gradient_scratch(images: Images) -> usize {
    2 * images.count * images.channels * (Tiles::of(images).chunks() + 2)
}

/// From g, the gradient of the result, those of every part (nothing, written or added), of gamma and beta (f32 [C]), and of scale
/// and shift (f32 [B, 2 C]). g stays as it is.
pub(crate) fn norm_gradient<M: Machine>(
    machine: &M,
    gradient: &NormGradient,
    g: Address,
    to: &[Option<Sink>],
    gamma: Sink,
    beta: Sink,
    scale_shift: Option<Sink>,
    scratch: Address,
) -> Result<()> {
    let norm = &gradient.norm;
    let images = norm.images;
    let parts = addresses(gradient.parts);
    let channels: Vec<usize> = parts.iter().map(|part| part.1).collect();
    check_parts("a normalisation", images, &channels)?;
    if to.len() != parts.len() {
        bail!(
            "cuda: gradients of {} parts, expected {}",
            to.len(),
            parts.len()
        );
    }
    norm.width()?;
    if images.numbers() == 0 {
        bail!("cuda: the gradient of a normalisation of nothing");
    }
    let tiles = Tiles::of_parts(images, gradient.parts);
    let of_chunks = scratch;
    let of_images = after(
        of_chunks,
        2 * images.count * tiles.chunks() * images.channels,
    );
    let pq = after(of_images, 2 * images.count * images.channels);

    let kernel = tiled!(tiles, "nhwc_norm_sums");
    let rest: &[Argument] = arguments![
        g,
        gradient.unit,
        gradient.coefficients,
        gradient.silu,
        of_chunks
    ];
    let own = [g, gradient.unit, gradient.coefficients, scratch].map(Some);
    let mut aligned: Vec<Option<Address>> = parts.iter().map(|part| part.0).collect();
    aligned.extend(own);
    let arguments = [&of_parts(&parts), rest].concat();
    let shared = (2 * tiles.lanes, 0);
    tiles.launch(machine, kernel, shared, &aligned, &arguments)?;

    means(
        machine,
        gradient,
        &tiles,
        [of_chunks, of_images, pq],
        scale_shift,
    )?;
    let columns = Columns {
        rows: images.count,
        columns: 2 * images.channels,
        half: images.channels,
        matrices: 1,
    };
    sum_rows(machine, columns, of_images, beta, Some(gamma))?;
    gradients_of_parts(machine, gradient, &tiles.spread(), g, to, pq)
}

/// An address so many floats behind another.
fn after(at: Address, floats: usize) -> Address {
    Address(at.0 + 4 * floats as u64)
}

/// From the sums of chunks those of images, and what a gradient is made of.
fn means<M: Machine>(
    machine: &M,
    gradient: &NormGradient,
    tiles: &Tiles,
    [of_chunks, of_images, pq]: [Address; 3],
    scale_shift: Option<Sink>,
) -> Result<()> {
    let norm = &gradient.norm;
    let width = norm.width()?;
    let launch = norm.each_group(width * tiles.chunks() / 2, 2)?;
    machine.launch(
        "nhwc_norm_means",
        launch,
        arguments![
            of_chunks,
            tiles.chunks() as u32,
            norm.gamma,
            norm.beta,
            optional(norm.scale_shift),
            gradient.unit,
            of_images,
            pq,
            optional(scale_shift.map(|sink| sink.at)),
            scale_shift.is_some_and(|sink| sink.accumulate),
            norm.images.channels as u32,
            width as u32,
            (width as u32).min(launch.block),
            norm.images.pixels() as u32,
        ],
    )
}

fn gradients_of_parts<M: Machine>(
    machine: &M,
    gradient: &NormGradient,
    tiles: &Tiles,
    g: Address,
    to: &[Option<Sink>],
    pq: Address,
) -> Result<()> {
    if to.iter().all(Option::is_none) {
        return Ok(());
    }
    let parts = addresses(gradient.parts);
    let sinks = |i: usize| to.get(i).copied().flatten();
    let mut all = of_parts(&parts);
    all.extend((0..PARTS).map(|i| optional(sinks(i).map(|sink| sink.at))));
    let added = (0..PARTS).filter(|&i| sinks(i).is_some_and(|sink| sink.accumulate));
    let added: u32 = added.map(|i| 1 << i).sum();
    all.extend_from_slice(arguments![
        added,
        g,
        gradient.coefficients,
        pq,
        gradient.silu
    ]);
    let mut aligned: Vec<Option<Address>> = to.iter().map(|to| to.map(|to| to.at)).collect();
    aligned.push(Some(pq));
    let kernel = tiled!(tiles, "nhwc_norm_gradient");
    tiles.launch(machine, kernel, (0, 0), &aligned, &all)
}

#[cfg(test)]
#[path = "norm_tests.rs"]
mod tests;
