//! Which kernels of tensor cores serve attention of bf16, and how they are launched.

use candle_core::Result;

use super::{Heads, MOST_SHARED};
use crate::cuda::launch::{Kind, Launch, WARP, whole};

/// Warps of a block, at most.
const MOST_WARPS: usize = 4;
/// Blocks that there should be before they have more warps: two for each multiprocessor of an H200.
const BLOCKS: usize = 264;
/// Columns of the gradients of keys and values that a block can keep.
const KEPT_COLUMNS: usize = 128;

/// The kernels for heads of up to so many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) struct Tiles {
    columns: usize,
    kernels: [Tile; 3],
    /// Of a block, at most.
    pub(in crate::cuda) warps: usize,
}

/// One kernel: 16-row pieces that stay a warp, and rows that stream past at once, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    name: &'static str,
    pieces: usize,
    streaming: usize,
}

macro_rules! tiles {
    (tile, $name:literal, $columns:literal, $pieces:literal, $streaming:literal) => {
        Tile {
            name: concat!($name, $columns, "_", $pieces, "_", $streaming),
            pieces: $pieces,
            streaming: $streaming,
        }
    };
    ($columns:literal, [$a:literal, $b:literal], [$c:literal, $d:literal], [$e:literal, $f:literal]) => {
        Tiles {
            columns: $columns,
            kernels: [
                tiles!(tile, "attention_tiles_", $columns, $a, $b),
                tiles!(tile, "attention_tiles_query_gradient_", $columns, $c, $d),
                tiles!(tile, "attention_tiles_key_gradient_", $columns, $e, $f),
            ],
            warps: MOST_WARPS,
        }
    };
}

/// As many rows as fit into registers and shared memory.
const ALL: [Tiles; 5] = [
    tiles!(16, [2, 64], [2, 32], [2, 32]),
    tiles!(32, [2, 64], [2, 32], [2, 32]),
    tiles!(64, [2, 64], [2, 32], [2, 32]),
    tiles!(128, [2, 32], [1, 32], [1, 32]),
    tiles!(256, [1, 32], [1, 16], [1, 16]),
];

impl Tiles {
    /// Of bf16 heads of a multiple of 8 columns up to 256, the values' as many as the keys', and a scale above 0: the largest
    /// score is found before it is scaled.
    pub(in crate::cuda) fn of(heads: &Heads) -> Option<Tiles> {
        let scale = heads.scale.is_normal() && heads.scale > 1e-30;
        let even = heads.size == heads.value_size && heads.size.is_multiple_of(8);
        if heads.kind != Kind::Bf16 || !even || !scale {
            return None;
        }
        let tiles = ALL.iter().find(|tiles| heads.size <= tiles.columns)?;
        let pieces = heads.images * heads.heads * heads.queries.max(heads.keys).div_ceil(32);
        Some(Tiles {
            warps: (pieces / BLOCKS).clamp(1, MOST_WARPS),
            ..*tiles
        })
    }

    /// The name and launch of one of the three kernels.
    pub(super) fn of_kernel(&self, heads: &Heads, kernel: usize) -> Result<(&'static str, Launch)> {
        let tile = &self.kernels[kernel];
        let pieces = heads.staying(kernel).div_ceil(16 * tile.pieces);
        let blocks = pieces.div_ceil(self.warps);
        let warps = pieces.div_ceil(blocks); // alike in all blocks
        let parts = match kernel {
            2 => heads.size.div_ceil(KEPT_COLUMNS),
            _ => 1,
        };
        let blocks = heads.images * heads.heads * blocks;
        let launch = Launch {
            grid: [whole("rows of heads", blocks)?, parts as u32],
            block: warps as u32 * WARP,
            shared: self.shared(kernel, warps) as u32,
        };
        Ok((tile.name, launch))
    }

    /// Bytes of shared memory: queries stay, or they and their gradients, or keys and values; two turns of two others stream.
    fn shared(&self, kernel: usize, warps: usize) -> usize {
        let tile = &self.kernels[kernel];
        let staying = 16 * tile.pieces * warps * if kernel == 0 { 1 } else { 2 };
        let bytes = 2 * (self.columns + 8) * (staying + 4 * tile.streaming);
        debug_assert!(bytes <= MOST_SHARED);
        bytes
    }
}
