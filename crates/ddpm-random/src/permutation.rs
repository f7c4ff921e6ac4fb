//! The order in which an epoch visits its images.

use crate::{Result, Stream, uniform_u64_below};

/// The images 0..n in the order of one epoch, every order equally likely.
///
/// Fisher and Yates' shuffle (Durstenfeld 1964): for i = n-1, ..., 1 place i is exchanged with
/// place [`uniform_u64_below`] i + 1 at stream [`Stream::Order`], image i, step `epoch`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permutation(Vec<usize>);

impl Permutation {
    /// The order of `n` images in `epoch`.
    ///
    /// # Errors
    /// [`Error::Step`](crate::Error::Step) or [`Error::Image`](crate::Error::Image) when epoch or
    /// n do not fit below 2^44.
    pub fn new(seed: u64, epoch: u64, n: usize) -> Result<Permutation> {
        let mut order: Vec<usize> = (0..n).collect();
        for place in (1..n).rev() {
            let place_number = place as u64;
            let other =
                uniform_u64_below(seed, Stream::Order, place_number, epoch, place_number + 1)?;
            order.swap(place, other as usize);
        }
        Ok(Permutation(order))
    }

    /// The image at place i of the epoch.
    ///
    /// # Panics
    /// When i is not below [`Permutation::len`], as indexing does.
    pub fn get(&self, i: usize) -> usize {
        self.0[i]
    }

    /// The whole order.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    /// How many images it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
