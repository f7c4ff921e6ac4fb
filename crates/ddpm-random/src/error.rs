//! What can go wrong when noise is asked for.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Every way in which this crate refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image number beyond the address.
    #[error("image {image} has no noise: image numbers are below 2^44")]
    Image {
        /// The number.
        image: u64,
    },
    /// A step beyond the address.
    #[error("step {step} has no noise: steps are below 2^44")]
    Step {
        /// The step.
        step: u64,
    },
    /// More elements than an address has.
    #[error("{elements} elements of one image and step: at most 2^34 have noise")]
    Elements {
        /// How many were asked for.
        elements: usize,
    },
    /// Images of a batch whose numbers or elements overflow.
    #[error("{n} images from number {first} on: image numbers are below 2^44")]
    Images {
        /// The first image.
        first: u64,
        /// How many.
        n: usize,
    },
    /// A shape whose elements cannot be counted.
    #[error("a batch of shape {shape:?} does not fit in memory")]
    Shape {
        /// The shape.
        shape: Vec<usize>,
    },
    /// An integer below 0 was asked for.
    #[error("there is no integer below 0 to draw")]
    BelowZero,
    /// Integers from an empty range were asked for.
    #[error("there is no integer in {low}..{high} to draw")]
    Integers {
        /// The least.
        low: i64,
        /// One more than the greatest.
        high: i64,
    },
    /// A permutation of too many integers.
    #[error("a permutation of {n} integers: at most {most} are put in PyTorch's order")]
    Order {
        /// How many were asked for.
        n: usize,
        /// How many are possible.
        most: usize,
    },
    /// Noise for a tensor without an axis of images.
    #[error("noise is drawn for batches: a tensor of at least one axis was expected, not a scalar")]
    Scalar,
    /// More draws than there is fixed noise.
    #[error("draw {draw} (from 0) asks for more than the {given} draws of fixed noise")]
    Exhausted {
        /// The draw.
        draw: usize,
        /// Tensors that were given.
        given: usize,
    },
    /// Fixed noise of another shape than the images.
    #[error("fixed noise of draw {draw} has shape {given:?}, the images have shape {expected:?}")]
    FixedShape {
        /// The draw.
        draw: usize,
        /// Shape of the noise.
        given: Vec<usize>,
        /// Shape of the images.
        expected: Vec<usize>,
    },
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}
