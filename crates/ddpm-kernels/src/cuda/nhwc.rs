//! The operations of a plan on a card: on images that lie pixel after pixel, the channels of each side by side (NHWC), in memory
//! that the plan has set aside.

use super::launch::{Address, Kind};

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod finish;
pub(crate) mod mask;
pub(crate) mod norm;
pub(crate) mod order;
pub(crate) mod prepare;
pub(crate) mod sums;
pub(crate) mod weights;

mod tiles;

#[cfg(test)]
mod oracle;

/// Images of one size. Vectors, one an image, are the pixels of one image side by side: `count` 1, `height` 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Images {
    pub(crate) kind: Kind,
    pub(crate) count: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl Images {
    /// Of one image.
    pub(crate) fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Numbers of all of them.
    pub(crate) fn numbers(&self) -> usize {
        self.count * self.pixels() * self.channels
    }
}

/// Some of the channels of a value, which lie by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) at: Address,
    pub(crate) channels: usize,
}

/// Where a gradient is written, or added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sink {
    pub(crate) at: Address,
    pub(crate) accumulate: bool,
}
