//! What the tests of operations on pixels share: values that lie in parts, and bytes.

use super::{Images, Part};
use crate::cuda::host::{Host, Memory, kept};
use crate::cuda::launch::{Kind, Machine};
use crate::cuda::oracle::wave;

/// A value in parts.
pub(super) struct KeptParts {
    kind: Kind,
    /// The numbers of each, and its channels.
    pub(super) each: Vec<(Vec<f32>, usize)>,
    /// The numbers of all, side by side.
    pub(super) whole: Vec<f32>,
}

impl KeptParts {
    /// Numbers in [-2, 2].
    pub(super) fn new(images: Images, channels: &[usize], seed: u64) -> KeptParts {
        let numbers = wave(images.numbers(), seed);
        let numbers: Vec<f32> = numbers.iter().map(|x| 2.0 * x).collect();
        KeptParts::of(images, channels, &numbers)
    }

    pub(super) fn of(images: Images, channels: &[usize], numbers: &[f32]) -> KeptParts {
        let whole = kept(images.kind, numbers);
        KeptParts {
            kind: images.kind,
            each: split(&whole, channels)
                .into_iter()
                .zip(channels.iter().copied())
                .collect(),
            whole,
        }
    }

    pub(super) fn upload(&self, host: &Host) -> (Vec<Memory>, Vec<Part>) {
        let memory: Vec<Memory> = self
            .each
            .iter()
            .map(|(numbers, _)| host.numbers(self.kind, numbers))
            .collect();
        let parts = memory.iter().zip(&self.each).map(|(memory, part)| Part {
            at: host.address(memory),
            channels: part.1,
        });
        let parts = parts.collect();
        (memory, parts)
    }
}

/// The numbers of each part of a value.
pub(super) fn split(whole: &[f32], channels: &[usize]) -> Vec<Vec<f32>> {
    let all: usize = channels.iter().sum();
    let mut first = 0;
    let part = |&channels: &usize| {
        let range = first..first + channels;
        first += channels;
        let pixels = whole.chunks(all);
        pixels
            .flat_map(|pixel| pixel[range.clone()].iter().copied())
            .collect()
    };
    channels.iter().map(part).collect()
}

/// Memory of these bytes.
pub(super) fn bytes(host: &Host, bytes: &[u8]) -> Memory {
    let words = bytes.chunks(4).map(|chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        f32::from_le_bytes(word)
    });
    host.floats(&words.collect::<Vec<_>>())
}
