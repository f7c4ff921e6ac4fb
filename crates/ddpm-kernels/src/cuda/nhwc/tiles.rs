//! How images are divided among blocks and threads.

use candle_core::{Result, bail};

use super::{Images, Part};
use crate::cuda::launch::{
    Address, Argument, Divisor, Kind, Launch, Machine, WARP, arguments, each_image, whole,
};

/// Threads of a block, at most.
const THREADS: usize = 256;
/// Blocks that keep a card busy.
const BUSY: usize = 1024;
/// What packs begin at a multiple of, in bytes.
const ALIGNMENT: u64 = 16;

/// A block has some channels of a chunk of the pixels of one image; a thread has a pack of channels, 16 bytes if the channels
/// divide so, of every `rows`-th of these pixels. All depends on shapes only, and chunks not on the number of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    kind: Kind,
    images: usize,
    pixels: usize,
    /// Channels that a thread has.
    pub(crate) lanes: usize,
    packs: usize,
    /// Packs of a block, and blocks next to each other for all packs.
    columns: usize,
    blocks: usize,
    rows: usize,
    /// Pixels of a chunk; the last may have fewer.
    pub(crate) chunk: usize,
}

/// The kernel of a name for tiles: for packs, or for single channels.
macro_rules! tiled {
    ($tiles:expr, $name:expr) => {
        if $tiles.lanes > 1 {
            $crate::cuda::launch::kernel!($tiles.kind(), $name)
        } else {
            $crate::cuda::launch::kernel!($tiles.kind(), concat!($name, "_each"))
        }
    };
}
pub(crate) use tiled;

impl Tiles {
    pub(crate) fn of(images: Images) -> Tiles {
        Tiles::in_packs(images, &[images.channels])
    }

    /// Of what lies in parts, so that no thread has channels of two.
    pub(crate) fn of_parts(images: Images, parts: &[Part]) -> Tiles {
        let channels: Vec<usize> = parts.iter().map(|part| part.channels).collect();
        Tiles::in_packs(images, &channels)
    }

    fn in_packs(images: Images, parts: &[usize]) -> Tiles {
        let division = |lanes: usize| {
            let packs = (images.channels / lanes).max(1);
            let blocks = packs.div_ceil(THREADS);
            let columns = packs.div_ceil(blocks);
            let rows = (THREADS / columns).min(images.pixels()).max(1);
            (packs, blocks, columns, rows)
        };
        let steps = match images.pixels() {
            0..=256 => 4,
            257..16384 => 8,
            _ => 16,
        };
        // In whatever parts the channels lie.
        let chunk = steps * division(images.kind.pack_of(&[images.channels])).3;
        let lanes = images.kind.pack_of(parts);
        let (packs, blocks, columns, rows) = division(lanes);
        Tiles {
            kind: images.kind,
            images: images.count,
            pixels: images.pixels(),
            lanes,
            packs,
            columns,
            blocks,
            rows,
            chunk,
        }
    }

    /// With smaller chunks if there are few blocks: for what does not sum over chunks.
    pub(crate) fn spread(mut self) -> Tiles {
        while self.images * self.chunks() * self.blocks < BUSY && self.chunk > self.rows {
            self.chunk = (self.chunk / self.rows).div_ceil(2) * self.rows;
        }
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Chunks of an image.
    pub(crate) fn chunks(&self) -> usize {
        self.pixels.div_ceil(self.chunk)
    }

    pub(crate) fn channels(&self) -> usize {
        self.packs * self.lanes
    }

    /// Launches a kernel that ends with these tiles, with so many shared floats of each thread and of each column. Memory that
    /// packs are read from or written to is `aligned`.
    pub(crate) fn launch<M: Machine>(
        &self,
        machine: &M,
        kernel: &'static str,
        (of_thread, of_column): (usize, usize),
        aligned: &[Option<Address>],
        first: &[Argument],
    ) -> Result<()> {
        if self.pixels * self.images * self.channels() == 0 {
            return Ok(());
        }
        let images = each_image(self.images)?;
        let begins_so = |at: &Address| self.lanes == 1 || at.0.is_multiple_of(ALIGNMENT);
        if let Some(at) = aligned.iter().flatten().find(|at| !begins_so(at)) {
            bail!(
                "cuda: {kernel} is given address {:#x}, expected a multiple of {ALIGNMENT}",
                at.0
            );
        }
        whole("numbers of an image", self.pixels * self.channels())?;
        let threads = (self.rows * self.columns).next_multiple_of(WARP as usize);
        let launch = Launch {
            grid: [whole("blocks", self.chunks() * self.blocks)?, images],
            block: threads as u32,
            shared: 4 * (of_thread * threads + of_column * self.columns) as u32,
        };
        let [columns, blocks] = [self.columns, self.blocks].map(|count| count as u32);
        let tiles = arguments![
            self.pixels as u32,
            self.packs as u32,
            columns,
            self.rows as u32,
            whole("pixels of a chunk", self.chunk)?,
            blocks,
            Divisor::by(columns),
            Divisor::by(blocks),
        ];
        machine.launch(kernel, launch, &[first, tiles].concat())
    }
}

/// The arguments of a kernel that reads a value in parts, or writes it: addresses, then channels.
pub(crate) fn of_parts(parts: &[(Option<Address>, usize)]) -> Vec<Argument> {
    let part = |i: usize| parts.get(i).copied().unwrap_or((None, 0));
    let addresses = (0..PARTS).map(|i| optional(part(i).0));
    let channels = (0..PARTS).map(|i| Argument::from(part(i).1 as u32));
    addresses.chain(channels).collect()
}

/// Parts that a kernel can have.
pub(crate) const PARTS: usize = 4;

/// Parts that are as many as a kernel can have, of all channels together.
pub(crate) fn check_parts(what: &str, images: Images, channels: &[usize]) -> Result<()> {
    if !(1..=PARTS).contains(&channels.len()) {
        bail!(
            "cuda: {what} of {} parts, expected 1 to {PARTS}",
            channels.len()
        );
    }
    let sum: usize = channels.iter().sum();
    if sum != images.channels {
        bail!(
            "cuda: {what} of parts with {sum} channels, expected {}",
            images.channels
        );
    }
    Ok(())
}

/// An address, or none.
pub(crate) fn optional(at: Option<Address>) -> Argument {
    Argument(at.map_or(0, |at| at.0))
}

/// What each of the parts is and has.
pub(crate) fn addresses(parts: &[Part]) -> Vec<(Option<Address>, usize)> {
    let of = |part: &Part| (Some(part.at), part.channels);
    parts.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pack_of_every_pixel_has_one_thread() {
        for (pixels, channels) in [(16, 1024), (35, 24), (4096, 64), (1, 2560), (70, 1001)] {
            for kind in [Kind::F32, Kind::Bf16] {
                let (height, width) = (1, pixels);
                let images = Images {
                    kind,
                    count: 1,
                    height,
                    width,
                    channels,
                };
                for tiles in [Tiles::of(images), Tiles::of(images).spread()] {
                    assert!(tiles.columns * tiles.blocks >= tiles.packs);
                    assert!(tiles.columns * (tiles.blocks - 1) < tiles.packs);
                    assert_eq!(tiles.channels(), channels);
                    assert!(tiles.chunks() * tiles.chunk >= pixels);
                    assert!(tiles.rows * tiles.columns <= THREADS);
                }
            }
        }
    }
}
