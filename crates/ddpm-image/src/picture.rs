//! A picture that can be looked at: grey or RGB bytes with a width and a height.

use candle_core::Tensor;

use crate::pixel_map::image_size;
use crate::{Error, PixelMap, Result};

/// A grey or RGB picture: bytes in rows, columns, channels (HWC).
///
/// Whoever holds one knows that its sides are at least 1, that it has 1 or 3 channels, and that
/// it has exactly width · height · channels bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A picture from its bytes, HWC.
    ///
    /// # Errors
    /// [`Error::NotAPicture`] for other than 1 or 3 channels, [`Error::Size`] when a side is 0,
    /// [`Error::PixelCount`] when the number of bytes is another.
    pub fn new(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Result<Picture> {
        let expected = picture_size(width, height, channels)?;
        if pixels.len() != expected {
            let given = pixels.len();
            return Err(Error::PixelCount {
                given,
                n: 1,
                height,
                width,
                channels,
                expected,
            });
        }
        Ok(Picture {
            width,
            height,
            channels,
            pixels,
        })
    }

    /// The pictures in `n` images' bytes, NHWC, as data sets hold them.
    ///
    /// # Errors
    /// As [`Picture::new`].
    pub fn from_bytes(
        pixels: &[u8],
        n: usize,
        (height, width, channels): (usize, usize, usize),
    ) -> Result<Vec<Picture>> {
        let size = picture_size(width, height, channels)?;
        let expected = n.checked_mul(size).ok_or(Error::Size {
            height,
            width,
            channels,
        })?;
        if pixels.len() != expected {
            let given = pixels.len();
            return Err(Error::PixelCount {
                given,
                n,
                height,
                width,
                channels,
                expected,
            });
        }
        let picture = |bytes: &[u8]| Picture {
            width,
            height,
            channels,
            pixels: bytes.to_vec(),
        };
        Ok(pixels.chunks_exact(size).map(picture).collect())
    }

    /// The pictures of a batch of samples.
    ///
    /// # Shapes
    /// `images`: `[N, C, H, W]` with C of 1 or 3, in the numbers of `map`; result: N pictures.
    ///
    /// # Errors
    /// As [`Picture::new`] and [`PixelMap::to_u8`].
    pub fn from_tensor(images: &Tensor, map: &PixelMap) -> Result<Vec<Picture>> {
        let (n, channels, height, width) = images.dims4().map_err(|_| Error::NotABatch {
            shape: images.dims().to_vec(),
        })?;
        picture_size(width, height, channels)?;
        Picture::from_bytes(&map.to_u8(images)?, n, (height, width, channels))
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 for grey, 3 for RGB.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes, HWC.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The picture with every pixel a square of `times` by `times` pixels.
    pub(crate) fn enlarged(&self, times: usize) -> Picture {
        let row = self.width * self.channels;
        let mut pixels = Vec::with_capacity(self.pixels.len() * times * times);
        for line in self.pixels.chunks_exact(row) {
            let wide: Vec<u8> = line
                .chunks_exact(self.channels)
                .flat_map(|pixel| pixel.repeat(times))
                .collect();
            pixels.extend(wide.repeat(times));
        }
        Picture {
            width: self.width * times,
            height: self.height * times,
            channels: self.channels,
            pixels,
        }
    }

    /// A picture of one grey level.
    pub(crate) fn filled(
        width: usize,
        height: usize,
        channels: usize,
        level: u8,
    ) -> Result<Picture> {
        let size = picture_size(width, height, channels)?;
        Ok(Picture {
            width,
            height,
            channels,
            pixels: vec![level; size],
        })
    }

    /// Copies a smaller picture of equal channels in, its corner at (left, top); it must fit.
    pub(crate) fn paste(&mut self, picture: &Picture, left: usize, top: usize) {
        let row = picture.width * picture.channels;
        for (y, bytes) in picture.pixels.chunks_exact(row).enumerate() {
            let start = ((top + y) * self.width + left) * self.channels;
            self.pixels[start..start + row].copy_from_slice(bytes);
        }
    }
}

/// Bytes of a picture; an error when it cannot be one.
fn picture_size(width: usize, height: usize, channels: usize) -> Result<usize> {
    if channels != 1 && channels != 3 {
        return Err(Error::NotAPicture { channels });
    }
    image_size(height, width, channels)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_batch_becomes_pictures_in_order() {
        for channels in [1, 3] {
            let bytes: Vec<u8> = (0..2 * 4 * 6 * channels).map(|k| k as u8).collect();
            let pictures = Picture::from_bytes(&bytes, 2, (4, 6, channels)).unwrap();
            let map = PixelMap::MinusOneToOne;
            let x = map
                .to_tensor(&bytes, 2, (4, 6, channels), &Device::Cpu)
                .unwrap();
            assert_eq!(Picture::from_tensor(&x, &map).unwrap(), pictures);
            assert_eq!(pictures.len(), 2);
            assert_eq!((pictures[1].width(), pictures[1].height()), (6, 4));
            assert_eq!(pictures[1].channels(), channels);
            assert_eq!(pictures[1].pixels(), &bytes[4 * 6 * channels..]);
        }
    }

    #[track_caller]
    fn check_error<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let no_channels = "a picture has 1 (grey) or 3 (RGB) channels, not 4";
        check_error(Picture::new(2, 3, 4, vec![0; 24]), no_channels);
        check_error(Picture::from_bytes(&[0; 24], 1, (2, 3, 4)), no_channels);
        let x = Tensor::zeros((1, 4, 2, 3), DType::F32, &Device::Cpu).unwrap();
        check_error(
            Picture::from_tensor(&x, &PixelMap::MinusOneToOne),
            no_channels,
        );
        check_error(
            Picture::new(2, 0, 1, vec![]),
            "images of 0x2 with 1 channels: every side must be at least 1 and the whole must fit in memory",
        );
        check_error(
            Picture::new(2, 3, 1, vec![0; 7]),
            "7 pixel values cannot be 1 images of 3x2 with 1 channels: 6 were expected",
        );
        check_error(
            Picture::from_bytes(&[0; 7], 2, (3, 2, 1)),
            "7 pixel values cannot be 2 images of 3x2 with 1 channels: 12 were expected",
        );
        let flat = Tensor::zeros((1, 2, 3), DType::F32, &Device::Cpu).unwrap();
        check_error(
            Picture::from_tensor(&flat, &PixelMap::MinusOneToOne),
            "a tensor of shape [1, 2, 3] is not a batch of images: [N, C, H, W] was expected",
        );
    }
}
