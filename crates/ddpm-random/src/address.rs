//! Where a random number lives: seed, stream, image, step, element, and how they become Philox's input.
//!
//! ```text
//! key      word 0   seed, bits  0..32
//!          word 1   seed, bits 32..64
//! counter  word 0   block: four words of output each, counted from 0 within one address
//!          word 1   image, bits 0..32
//!          word 2   step, bits 0..32
//!          word 3   bits  0..12 image, bits 32..44
//!                   bits 12..24 step, bits 32..44
//!                   bits 24..32 stream
//! ```
//!
//! The layout is a bijection of its fields, and Philox is one of its counters: no two addresses of
//! one seed share a block. Images and steps are below 2^44, blocks below 2^32; whatever does not
//! fit is an error.

use crate::philox::{LANES, Words, philox, philox_lanes};
use crate::{Error, Result};

/// What random numbers are for. Two streams never share a number; the numbers of the variants are
/// part of the promise and do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Stream {
    /// First weights of a network; image: a 44-bit hash of the tensor's name, step: 0.
    Initialisation = 0,
    /// The t of a training image; image: training images that came before.
    Timestep = 1,
    /// eps of a training image; image: training images that came before.
    TrainingNoise = 2,
    /// Dropout masks; image: training images that came before, step: optimiser step · layers + layer.
    Dropout = 3,
    /// The order of an epoch; step: the epoch, image: the place being filled.
    Order = 4,
    /// Whether a training image is mirrored; image: its index, step: the epoch.
    Flip = 5,
    /// x_T of a sampled image; image: its index, step: 0.
    SampleStart = 6,
    /// Noise of a sampler's steps; image: its index, step: draws that came before.
    SampleStep = 7,
    /// The held-out loss; image: its index, step: 0 for t, 1 for eps.
    HeldOut = 8,
    /// Where a training image is cropped; image: its index, step: the epoch.
    Crop = 9,
    /// The class of a sampled image, where nobody chose it; image: its index, step: 0.
    SampleClass = 10,
}

impl Stream {
    /// Every stream, in the order of its number.
    pub const ALL: [Stream; 11] = [
        Stream::Initialisation,
        Stream::Timestep,
        Stream::TrainingNoise,
        Stream::Dropout,
        Stream::Order,
        Stream::Flip,
        Stream::SampleStart,
        Stream::SampleStep,
        Stream::HeldOut,
        Stream::Crop,
        Stream::SampleClass,
    ];
}

/// Images and steps are below this.
const FIELD_LIMIT: u64 = 1 << 44;

/// Blocks of one address.
const BLOCK_LIMIT: u64 = 1 << 32;

/// Output words of one block.
pub(crate) const BLOCK: usize = 4;

/// Everything but the element, checked and laid out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    key: [u32; 2],
    /// Words 1, 2 and 3 of the counter.
    counter: [u32; 3],
}

impl Address {
    pub(crate) fn new(seed: u64, stream: Stream, image: u64, step: u64) -> Result<Address> {
        if image >= FIELD_LIMIT {
            return Err(Error::Image { image });
        }
        if step >= FIELD_LIMIT {
            return Err(Error::Step { step });
        }
        let high = (image >> 32) | ((step >> 32) << 12) | (u64::from(stream as u8) << 24);
        Ok(Address {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [image as u32, step as u32, high as u32],
        })
    }

    /// The key, and words 1, 2 and 3 of the counter.
    pub(crate) fn words(&self) -> ([u32; 2], [u32; 3]) {
        (self.key, self.counter)
    }

    /// The four words of a block.
    pub(crate) fn block(&self, block: u32) -> [u32; BLOCK] {
        let [word_1, word_2, word_3] = self.counter;
        philox(self.key, [block, word_1, word_2, word_3])
    }

    /// The words of blocks `first..first + LANES`; lanes past the last block wrap and are not used.
    #[inline(always)]
    pub(crate) fn blocks(&self, first: u32) -> [Words; BLOCK] {
        let [word_1, word_2, word_3] = self.counter;
        let blocks = std::array::from_fn(|lane| first.wrapping_add(lane as u32));
        philox_lanes(
            self.key,
            [blocks, [word_1; LANES], [word_2; LANES], [word_3; LANES]],
        )
    }
}

/// Confirms that so many elements of four bytes fit into one address.
pub(crate) fn check_elements(elements: usize) -> Result<()> {
    match elements.div_ceil(BLOCK) as u64 {
        0..=BLOCK_LIMIT => Ok(()),
        _ => Err(Error::Elements { elements }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_documented_one() {
        let address = Address::new(
            0x0123_4567_89AB_CDEF,
            Stream::SampleStep,
            0xABC_1111_2222,
            0xDEF_3333_4444,
        )
        .unwrap();
        assert_eq!(address.key, [0x89AB_CDEF, 0x0123_4567]);
        assert_eq!(address.counter, [0x1111_2222, 0x3333_4444, 0x07DE_FABC]);
        let expected = philox(address.key, [9, 0x1111_2222, 0x3333_4444, 0x07DE_FABC]);
        assert_eq!(address.block(9), expected);
        let lanes = address.blocks(7);
        assert_eq!(lanes.map(|word| word[2]), expected);
    }

    #[test]
    fn the_numbers_of_the_streams_do_not_change() {
        let numbers = Stream::ALL.map(|stream| stream as u8);
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn addresses_that_do_not_fit_are_errors() {
        let last = (1 << 44) - 1;
        Address::new(u64::MAX, Stream::Order, last, last).unwrap();
        let message = Address::new(0, Stream::Order, last + 1, 0)
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "image 17592186044416 has no noise: image numbers are below 2^44"
        );
        let message = Address::new(0, Stream::Order, 0, u64::MAX)
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "step 18446744073709551615 has no noise: steps are below 2^44"
        );
        check_elements(1 << 34).unwrap();
        let message = check_elements((1 << 34) + 1).unwrap_err().to_string();
        assert_eq!(
            message,
            "17179869185 elements of one image and step: at most 2^34 have noise"
        );
    }
}
