//! A picture file as an image of the data set: decoded, turned upright, over a background, in one colour mode and size.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::error::UnsupportedErrorKind;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use serde::{Deserialize, Serialize};

use crate::resize::{Filter, resize};
use crate::{Error, Result, jpeg};

/// What pictures are made into. Nothing is guessed from a picture: each gives the same kind of image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pictures {
    /// Height and width of every image; left out, all pictures must have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<(usize, usize)>,
    /// What a picture is resized to cover before it is cropped to `size`, at least as large; left out: `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cover: Option<(usize, usize)>,
    /// How a picture of another size is resized.
    pub filter: Filter,
    /// What happens to a picture of another shape.
    pub crop: Crop,
    /// Three channels or one.
    pub color: Color,
    /// What is seen through transparent pixels: red, green, blue.
    pub background: [u8; 3],
    /// Leave out pictures that cannot be read, rather than refuse them all.
    pub skip_unreadable: bool,
}

/// What happens to a picture whose sides are in another proportion than the image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// It is resized until it covers the image; its middle is kept.
    #[default]
    Centre,
    /// It is resized until it covers the image, and kept whole; each epoch sees another part of it.
    Random,
    /// It is stretched, and nothing is lost.
    Stretch,
}

/// The values of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Color {
    /// Red, green and blue; a grey picture has three equal ones.
    #[default]
    Rgb,
    /// One value: 0.299 red + 0.587 green + 0.114 blue (ITU-R 601), rounded as in Pillow's mode `L`.
    Grey,
}

impl Color {
    /// How many values.
    pub fn channels(self) -> usize {
        match self {
            Self::Rgb => 3,
            Self::Grey => 1,
        }
    }
}

/// An image on its way: u8, height x width x channels.
pub(crate) struct Picture {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) pixels: Vec<u8>,
}

/// Bytes that a decoded picture may take: what a header promises is not believed beyond this.
const DECODED: u64 = 512 << 20;
/// Values of a resized picture; beyond it the picture is a thread, thousands of times longer than it is wide.
const RESIZED: usize = 1 << 28;

impl Pictures {
    /// Refuses what cannot be done to any picture.
    ///
    /// # Errors
    /// [`Error::Pictures`].
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Pictures { what });
        let Some(size) = self.size else {
            return match (self.cover, self.crop) {
                (None, Crop::Centre) => Ok(()),
                _ => refuse("how to crop is said, but no size".to_owned()),
            };
        };
        let cover = self.cover.unwrap_or(size);
        if size.0 == 0 || size.1 == 0 || cover.0 < size.0 || cover.1 < size.1 {
            return refuse(format!(
                "to cover {}x{} and then to crop to {}x{}: expected sides of 1 and more, the second not larger",
                cover.0, cover.1, size.0, size.1
            ));
        }
        if self.crop == Crop::Stretch && cover != size {
            return refuse("to stretch leaves nothing to cover: expected no `cover`".to_owned());
        }
        Ok(())
    }

    /// What the bytes of a picture file become in a data set; with random crops, the whole that is cropped from.
    ///
    /// # Errors
    /// Why it cannot be read or made so, in words.
    pub fn image(&self, bytes: &[u8]) -> std::result::Result<ddpm_image::Picture, String> {
        let made = self.fit(self.decode(bytes)?)?;
        let channels = self.color.channels();
        ddpm_image::Picture::new(made.width, made.height, channels, made.pixels)
            .map_err(|error| error.to_string())
    }

    /// Decodes a file's bytes: PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF, told by the first bytes.
    ///
    /// 16 bits become round(v / 257), palettes their colours; a JPEG's note of how the camera was held is followed. What
    /// the decoder says is the error.
    pub(crate) fn decode(&self, bytes: &[u8]) -> std::result::Result<Picture, String> {
        let decoded = decode(bytes)?;
        let picture = decoded.into_rgba8();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        if width == 0 || height == 0 {
            return Err(format!("is {height}x{width} (height x width)"));
        }
        let mut pixels = Vec::with_capacity(width * height * self.color.channels());
        for rgba in picture.as_raw().chunks_exact(4) {
            let over = |c: usize| over(rgba[c], self.background[c], rgba[3]);
            let (red, green, blue) = (over(0), over(1), over(2));
            match self.color {
                Color::Rgb => pixels.extend([red, green, blue]),
                Color::Grey => pixels.push(grey(red, green, blue)),
            }
        }
        Ok(Picture {
            height,
            width,
            pixels,
        })
    }

    /// Makes a picture the size that was asked for, if one was; for random crops, one that covers it.
    pub(crate) fn fit(&self, picture: Picture) -> std::result::Result<Picture, String> {
        let Some(size) = self.size else {
            return Ok(picture);
        };
        let (from, channels) = ((picture.height, picture.width), self.color.channels());
        let covering = match self.crop {
            Crop::Centre | Crop::Random => covering(from, self.cover.unwrap_or(size)),
            Crop::Stretch => size,
        };
        let values = covering
            .0
            .saturating_mul(covering.1)
            .saturating_mul(channels);
        if values > RESIZED {
            let (h, w) = from;
            return Err(format!(
                "is {h}x{w} (height x width): too long to cover {}x{}",
                size.0, size.1
            ));
        }
        let from = (from.0, from.1, channels);
        let pixels = resize(&picture.pixels, from, covering, self.filter)
            .map_err(|error| error.to_string())?;
        if self.crop == Crop::Random {
            return Ok(Picture {
                height: covering.0,
                width: covering.1,
                pixels,
            });
        }
        Ok(middle(&pixels, covering, size, channels))
    }
}

/// What is said of pictures in floating point.
const FLOATS: &str = "holds floating-point numbers, of which nothing says which are black and white: save it with 8 or 16 bits";

/// What a decoder says, and what can be done.
fn in_words(error: &ImageError) -> String {
    match error {
        ImageError::Limits(_) => {
            let most = DECODED >> 20;
            format!("would take more than {most} MiB unpacked: make it smaller ({error})")
        }
        ImageError::Unsupported(kind) => match kind.kind() {
            UnsupportedErrorKind::Format(_) => {
                "does not begin as a PNG, JPEG, WebP, GIF, BMP or TIFF, whatever its name says"
                    .to_owned()
            }
            _ => format!(
                "is of a kind that is not read: save it in grey or RGB with 8 or 16 bits ({error})"
            ),
        },
        error => error.to_string(),
    }
}

/// A file's first picture, upright. Memory is bounded, whatever the file promises.
fn decode(bytes: &[u8]) -> std::result::Result<DynamicImage, String> {
    if bytes.is_empty() {
        return Err("is empty".to_owned());
    }
    jpeg::check(bytes)?;
    let reader = ImageReader::new(Cursor::new(bytes));
    let reader = reader
        .with_guessed_format()
        .map_err(|error| error.to_string())?;
    let read = || {
        let mut decoder = reader.into_decoder()?;
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODED);
        limits.reserve(decoder.total_bytes())?;
        decoder.set_limits(limits)?;
        let orientation = decoder.orientation()?;
        let mut picture = DynamicImage::from_decoder(decoder)?;
        picture.apply_orientation(orientation);
        Ok(picture)
    };
    // A decoder that gives up on one picture of thousands must not end a training.
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_))) => {
            Err(FLOATS.to_owned())
        }
        Ok(decoded) => decoded.map_err(|error| in_words(&error)),
        Err(_) => Err("made the decoder panic".to_owned()),
    }
}

/// The smallest size in the proportion of `from` that covers `to`, its longer side rounded down (as torchvision does).
fn covering(from: (usize, usize), to: (usize, usize)) -> (usize, usize) {
    if from.1 * to.0 >= from.0 * to.1 {
        (to.0, from.1 * to.0 / from.0)
    } else {
        (from.0 * to.1 / from.1, to.1)
    }
}

/// The middle of an image; where that is between two pixels, the one above or to the left.
fn middle(pixels: &[u8], from: (usize, usize), to: (usize, usize), channels: usize) -> Picture {
    let (top, left) = ((from.0 - to.0) / 2, (from.1 - to.1) / 2);
    let mut out = Vec::with_capacity(to.0 * to.1 * channels);
    for row in pixels.chunks_exact(from.1 * channels).skip(top).take(to.0) {
        out.extend_from_slice(&row[left * channels..(left + to.1) * channels]);
    }
    Picture {
        height: to.0,
        width: to.1,
        pixels: out,
    }
}

/// A value seen over a background through alpha, rounded.
fn over(value: u8, background: u8, alpha: u8) -> u8 {
    let (value, background, alpha) = (u32::from(value), u32::from(background), u32::from(alpha));
    ((value * alpha + background * (255 - alpha) + 127) / 255) as u8
}

/// Pillow's `L`: weights in 65536ths.
fn grey(red: u8, green: u8, blue: u8) -> u8 {
    let sum = 19595 * u32::from(red) + 38470 * u32::from(green) + 7471 * u32::from(blue);
    ((sum + 0x8000) >> 16) as u8
}
