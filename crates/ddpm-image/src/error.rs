//! What can go wrong between pixels, tensors and PNG files.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Every way in which this crate refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Pixels and the shape they are said to have do not belong together.
    #[error(
        "{given} pixel values cannot be {n} images of {height}x{width} with {channels} channels: \
         {expected} were expected"
    )]
    PixelCount {
        /// Values that were given.
        given: usize,
        /// Images they should hold.
        n: usize,
        /// Rows of one image.
        height: usize,
        /// Columns of one image.
        width: usize,
        /// Channels of one image.
        channels: usize,
        /// Values that so many images have.
        expected: usize,
    },
    /// A shape whose number of values is 0 or does not fit in memory.
    #[error(
        "images of {height}x{width} with {channels} channels: every side must be at least 1 and \
         the whole must fit in memory"
    )]
    Size {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Channels.
        channels: usize,
    },
    /// A tensor that is not a batch of images.
    #[error("a tensor of shape {shape:?} is not a batch of images: [N, C, H, W] was expected")]
    NotABatch {
        /// The shape it has.
        shape: Vec<usize>,
    },
    /// A pixel that is no number; infinities are clamped instead.
    #[error(
        "image {image} of the batch is not a number at channel {channel}, row {row}, column \
         {column}: the network that made it diverged, or its weights are damaged"
    )]
    NotANumber {
        /// Place in the batch, from 0.
        image: usize,
        /// Channel, from 0.
        channel: usize,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// A per-channel map whose numbers are impossible.
    #[error("the per-channel pixel map is impossible: {0}")]
    Normalisation(String),
    /// Images have another number of channels than the per-channel map.
    #[error("the pixel map has mean and std for {map} channels, the images have {images} channels")]
    Channels {
        /// Channels of the map.
        map: usize,
        /// Channels of the images.
        images: usize,
    },
    /// A picture is grey or RGB, nothing else.
    #[error("a picture has 1 (grey) or 3 (RGB) channels, not {channels}")]
    NotAPicture {
        /// Channels that were given.
        channels: usize,
    },
    /// A grid or a strip of nothing.
    #[error("{0} needs at least one picture")]
    NoPictures(&'static str),
    /// Pictures of a grid differ in size or channels.
    #[error(
        "picture {index} is {width}x{height} with {channels} channels (width x height), picture 0 \
         is {first_width}x{first_height} with {first_channels}: one grid holds pictures of one kind"
    )]
    UnequalPictures {
        /// The first picture that differs.
        index: usize,
        /// Its columns.
        width: usize,
        /// Its rows.
        height: usize,
        /// Its channels.
        channels: usize,
        /// Columns of picture 0.
        first_width: usize,
        /// Rows of picture 0.
        first_height: usize,
        /// Channels of picture 0.
        first_channels: usize,
    },
    /// A grid with no columns.
    #[error("a grid needs at least 1 column")]
    NoColumns,
    /// The moments of a strip hold unequal numbers of pictures.
    #[error("moment {moment} of the strip has {given} pictures, moment 0 has {expected}")]
    UnequalMoments {
        /// The first moment that differs.
        moment: usize,
        /// Its pictures.
        given: usize,
        /// Pictures of moment 0.
        expected: usize,
    },
    /// A keyword that PNG cannot hold.
    #[error(
        "`{keyword}` cannot be a keyword of PNG metadata: 1 to 79 printable ASCII characters \
         without outer or double spaces were expected"
    )]
    Keyword {
        /// The keyword.
        keyword: String,
    },
    /// A text that PNG cannot hold.
    #[error("the PNG metadata `{keyword}` holds a NUL character, which PNG cannot store")]
    Text {
        /// The keyword of the text.
        keyword: String,
    },
    /// The folder that should hold the file is not there.
    #[error("cannot write {}: {} is not an existing folder", path.display(), folder.display())]
    NoFolder {
        /// The file to be written.
        path: PathBuf,
        /// The missing folder.
        folder: PathBuf,
    },
    /// The path ends in no file name, or is a folder.
    #[error("cannot write {}: the name of a file was expected, not a folder", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The system refused to write.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file to be written.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The system refused to read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file to be read.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that is no PNG, or a damaged one.
    #[error("{} is not a readable PNG: {reason}", path.display())]
    NotAPng {
        /// The file.
        path: PathBuf,
        /// What the decoder found.
        reason: String,
    },
    /// A PNG of a kind that [`Picture`](crate::Picture) does not hold.
    #[error("{} is a PNG of {kind}: 8-bit grey or RGB was expected", path.display())]
    PngKind {
        /// The file.
        path: PathBuf,
        /// Its kind.
        kind: String,
    },
    /// The encoder refused.
    #[error("cannot encode a PNG of {width}x{height}: {reason}")]
    Encode {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// What the encoder said.
        reason: String,
    },
    /// An animation that GIF cannot hold.
    #[error("cannot encode a GIF of {width}x{height}: {reason}")]
    EncodeGif {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// What is in the way.
        reason: String,
    },
    /// Captions that are not one for each.
    #[error("{given} captions for {expected} {what}: one for each was expected")]
    Captions {
        /// How many there are.
        given: usize,
        /// How many were expected.
        expected: usize,
        /// What they belong to.
        what: &'static str,
    },
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}
