//! Files -> u8 images and labels -> shuffled, augmented batches; the digits live in this crate.
//!
//! [`DataSpec`] is what the user wrote, [`load`] finds and reads it, [`Dataset`] is the images as u8 (height x width x
//! channels), in memory or, where they are too many, in a mapped file; and [`Feed`] is the endless order in which
//! training sees them: a function of the seed and of how many images came before, so that it never needs saving.
//!
//! | source | images | where from |
//! |---|---|---|
//! | `digits` | 1,497 + 300, 8x8x1 | inside this crate: no file, no network |
//! | `mnist`, `fashion-mnist` | 60,000 + 10,000, 28x28x1 | IDX files ([`idx`]), gzipped or not |
//! | `cifar10` | 50,000 + 10,000, 32x32x3 | six binary batches ([`cifar`]) in a folder or in their `.tar.gz`, or the Hub's parquet files |
//! | `tiny-imagenet` | 100,000 + 10,000, 64x64x3, or as [`Pictures`] says | its zip file ([`zipped`]), or the folder in it |
//! | `folder:PATH` | as [`Pictures`] says | picture files |
//! | `parquet:PATH` | as [`Pictures`] says | a column of pictures in parquet files ([`parquet`]) |
//! | `hub:OWNER/NAME` | as [`Pictures`] says | the same from the Hugging Face Hub; fetched with the feature `hub` |
//!
//! Pictures are decoded once, on all threads, and every one is made into the same kind of image ([`Pictures`]): of one
//! size, grey or colour; nothing is guessed from a picture. What does not fit into memory ([`Keep`]) goes to a file of
//! the cache, found again by the next run.
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

mod bytes_at;
mod cache;
pub mod cifar;
mod dataset;
mod error;
mod feed;
#[cfg(feature = "hub")]
mod fetch;
mod folder;
mod gather;
mod hub;
pub mod idx;
mod jpeg;
pub mod parquet;
mod picture;
mod reader;
pub mod resize;
mod rows;
mod shelf;
mod source;
mod store;
mod tar;
mod tiny_imagenet;
pub mod zipped;

pub use bytes_at::BytesAt;
pub use cache::Keep;
pub use dataset::{Dataset, Splits};
pub use error::{Error, Result};
pub use feed::{Drawn, Feed};
#[cfg(feature = "hub")]
pub use fetch::{Download, Fetching, downloads, fetch, fetch_file};
pub use folder::Skipped;
pub use picture::{Color, Crop, Pictures};
pub use source::{DataSpec, how_to_get, load, load_with, places};
