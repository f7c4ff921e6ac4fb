//! Pixels <-> tensors; grids, strips, plots, PNG, GIF.
//!
//! | I have | I want | |
//! |---|---|---|
//! | bytes of a data set | the numbers a network sees | [`PixelMap::to_tensor`] |
//! | samples | bytes | [`PixelMap::to_u8`] |
//! | samples | pictures | [`Picture::from_tensor`] |
//! | pictures | one sheet, ceil(√N) wide | [`grid`], [`grid_with_columns`] |
//! | tiny pictures | the same, enlarged until they can be seen | [`sheet`], [`sheet_with_columns`] |
//! | pictures of several moments | time from left to right | [`strip`] |
//! | pictures of any sizes | a row | [`beside`] |
//! | the same with words | what is what | [`captioned_strip`], [`captioned_grid`] |
//! | a walk from noise to image | its strip, the frames of its animation | [`Film`] |
//! | pictures of equal size | an animated GIF that says how it was made | [`write_gif`], [`encode_gif`] |
//! | numbers | a plot, as a picture or as SVG | [`Chart`] |
//! | a picture | a PNG that says how it was made | [`write_png`], [`encode_png`], [`read_png`] |
//!
//! [`PixelMap`] is the one place where 0..=255 becomes a network's number and back; checkpoints
//! record it. u8 is round(255 · clamp(x/2 + 1/2)); infinities are clamped, NaN is an error.
//!
//! ```
//! use candle_core::Device;
//! use ddpm_image::{PixelMap, Picture, grid, read_png, write_png};
//!
//! // Two grey images of 2 rows and 3 columns, as a data set holds them.
//! let bytes = [0, 51, 102, 153, 204, 255, 255, 204, 153, 102, 51, 0];
//! let map = PixelMap::MinusOneToOne;
//! let x = map.to_tensor(&bytes, 2, (2, 3, 1), &Device::Cpu)?; // [2, 1, 2, 3], in [-1, 1]
//! assert_eq!(map.to_u8(&x)?, bytes);
//!
//! let sheet = grid(&Picture::from_tensor(&x, &map)?)?;
//! let path = std::env::temp_dir().join(format!("ddpm-image-{}.png", std::process::id()));
//! write_png(&path, &sheet, &[("seed", "17".to_string())])?;
//! let (again, texts) = read_png(&path)?;
//! assert_eq!(again, sheet);
//! assert_eq!(texts, [("seed".to_string(), "17".to_string())]);
//! # std::fs::remove_file(&path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod canvas;
mod captions;
mod chart;
mod error;
mod film;
mod gif_file;
mod grid;
mod lettering;
mod palette;
mod picture;
mod pixel_map;
mod png_file;
mod whole_file;

pub use captions::{captioned_grid, captioned_strip};
pub use chart::{Chart, Look, Scale, Series};
pub use error::{Error, Result};
pub use film::{Film, Moment};
pub use gif_file::{Timing, encode_gif, write_gif};
pub use grid::{
    GRID_BACKGROUND, GRID_PADDING, SHEET_SIDE, beside, grid, grid_with_columns, sheet,
    sheet_with_columns, strip,
};
pub use picture::Picture;
pub use pixel_map::PixelMap;
pub use png_file::{encode_png, read_png, write_png};
