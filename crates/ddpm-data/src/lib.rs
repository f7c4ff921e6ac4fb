//! Files -> u8 images and labels -> shuffled, augmented batches; the digits live in this crate.
//!
//! [`DataSpec`] is what the user wrote, [`load`] finds and reads it, [`Dataset`] is the images in memory as the files
//! had them (u8, height x width x channels), and [`Feed`] is the endless order in which training sees them: a function of
//! the seed and of how many images came before, so that it never needs saving.
//!
//! | source | images | where from |
//! |---|---|---|
//! | `digits` | 1,497 + 300, 8x8x1 | inside this crate: no file, no network |
//! | `mnist`, `fashion-mnist` | 60,000 + 10,000, 28x28x1 | IDX files ([`idx`]), gzipped or not |
//! | `cifar10` | 50,000 + 10,000, 32x32x3 | six binary batches ([`cifar`]) in a folder or in their `.tar.gz` |
//! | `folder:PATH` | as [`Pictures`] says | picture files; [`load_with`] |
//!
//! ```
//! use candle_core::Device;
//! use ddpm_data::{DataSpec, Feed, load};
//! use ddpm_image::PixelMap;
//!
//! let spec: DataSpec = "digits".parse()?;
//! let train = load(&spec, None)?.train;
//! assert_eq!((train.len(), train.height(), train.width(), train.channels()), (1497, 8, 8, 1));
//!
//! // The 16 images that follow the first 1,490: the batch lies across the end of the first epoch.
//! let batch = Feed::new(&train, 17, false).batch(1490, 16, &PixelMap::MinusOneToOne, &Device::Cpu)?;
//! assert_eq!(batch.dims(), [16, 1, 8, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cifar;
mod dataset;
mod error;
mod feed;
mod folder;
pub mod idx;
mod picture;
mod reader;
pub mod resize;
mod source;
mod tar;

pub use dataset::{Dataset, Splits};
pub use error::{Error, Result};
pub use feed::{Drawn, Feed};
pub use folder::Skipped;
pub use picture::{Color, Crop, Pictures};
pub use source::{DataSpec, how_to_get, load, load_with, places};
