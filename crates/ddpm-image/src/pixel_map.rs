//! The only mapping between the bytes 0..=255 of an image file and the numbers a network sees.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a byte becomes a network's number, and back.
///
/// In settings and checkpoints it is written `"minus_one_to_one"` or
/// `{ per_channel = { mean = [0.5], std = [0.25] } }`; impossible numbers and unknown keys are
/// errors when read.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "UncheckedPixelMap")]
pub enum PixelMap {
    /// x = 2 · byte/255 - 1, the range [-1, 1] of the paper (section 3.3). Any number of channels.
    #[default]
    MinusOneToOne,
    /// x = (byte/255 - mean) / std with its own mean and std for every channel.
    PerChannel {
        /// Mean of each channel, in units of byte/255; finite.
        mean: Vec<f64>,
        /// Standard deviation of each channel, in units of byte/255; finite and above 0.
        std: Vec<f64>,
    },
}

impl PixelMap {
    /// The per-channel map with these numbers, checked.
    ///
    /// # Errors
    /// [`Error::Normalisation`] when the lists are empty or unequally long, a mean is not finite,
    /// or a standard deviation is not finite and above 0.
    pub fn per_channel(mean: Vec<f64>, std: Vec<f64>) -> Result<PixelMap> {
        check_normalisation(&mean, &std)?;
        Ok(PixelMap::PerChannel { mean, std })
    }

    /// Bytes of `n` images, one after the other, each in rows of columns of channels, to numbers.
    ///
    /// Every number is the exactly computed one, rounded once to f32.
    ///
    /// # Shapes
    /// `pixels`: N·H·W·C bytes, NHWC; result: f32 `[N, C, H, W]`.
    ///
    /// # Errors
    /// [`Error::PixelCount`], [`Error::Size`], [`Error::Channels`], [`Error::Normalisation`].
    pub fn to_tensor(
        &self,
        pixels: &[u8],
        n: usize,
        (height, width, channels): (usize, usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        let size = image_size(height, width, channels)?;
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
        let tables = self.tables(channels)?;
        let mut numbers = Vec::with_capacity(expected);
        for image in pixels.chunks_exact(size) {
            for (channel, table) in tables.iter().enumerate() {
                let bytes = image[channel..].iter().step_by(channels);
                numbers.extend(bytes.map(|&byte| table[usize::from(byte)]));
            }
        }
        Ok(Tensor::from_vec(
            numbers,
            (n, channels, height, width),
            device,
        )?)
    }

    /// Numbers back to bytes: u8 = round(255 · clamp(x/2 + 1/2, 0, 1)), and for a per-channel map
    /// round(255 · clamp(x · std + mean, 0, 1)).
    ///
    /// The arithmetic is f32 and ties go to the even byte, as in diffusers' pipelines, so that the
    /// same numbers give the same bytes there and here. Infinities are clamped like any number
    /// beyond the range; a pixel that is not a number (NaN) is an error, because a picture must
    /// not hide that a network diverged.
    ///
    /// # Shapes
    /// `images`: `[N, C, H, W]`, any float type, any device; result: N·H·W·C bytes, NHWC.
    ///
    /// # Errors
    /// [`Error::NotABatch`], [`Error::NotANumber`], [`Error::Channels`], [`Error::Normalisation`].
    pub fn to_u8(&self, images: &Tensor) -> Result<Vec<u8>> {
        let (n, channels, height, width) = images.dims4().map_err(|_| Error::NotABatch {
            shape: images.dims().to_vec(),
        })?;
        let lines = self.lines(channels)?;
        let numbers = images
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let plane = height * width;
        let mut bytes = vec![0; numbers.len()];
        for index in 0..n * channels {
            let (image, channel) = (index / channels, index % channels);
            let (scale, shift) = lines[channel];
            let start = image * channels * plane + channel;
            for (place, &x) in numbers[index * plane..][..plane].iter().enumerate() {
                if x.is_nan() {
                    let (row, column) = (place / width, place % width);
                    return Err(Error::NotANumber {
                        image,
                        channel,
                        row,
                        column,
                    });
                }
                bytes[start + place * channels] = to_byte(x * scale + shift);
            }
        }
        Ok(bytes)
    }

    /// The numbers of bytes 0 and 255 in every channel: what a sampler clips x_0-hat to.
    ///
    /// # Errors
    /// [`Error::Channels`] when the map is for another number of channels,
    /// [`Error::Normalisation`].
    pub fn value_range(&self, channels: usize) -> Result<Vec<(f64, f64)>> {
        match self {
            PixelMap::MinusOneToOne => Ok(vec![(-1.0, 1.0); channels]),
            PixelMap::PerChannel { mean, std } => {
                self.check(channels)?;
                let range = |(mean, std): (&f64, &f64)| (-mean / std, (1.0 - mean) / std);
                Ok(mean.iter().zip(std).map(range).collect())
            }
        }
    }

    /// Confirms that images of so many channels can be mapped.
    ///
    /// # Errors
    /// [`Error::Channels`], [`Error::Normalisation`].
    pub fn check(&self, channels: usize) -> Result<()> {
        if let PixelMap::PerChannel { mean, std } = self {
            check_normalisation(mean, std)?;
            if mean.len() != channels {
                return Err(Error::Channels {
                    map: mean.len(),
                    images: channels,
                });
            }
        }
        Ok(())
    }

    /// The number of every byte, one table a channel.
    fn tables(&self, channels: usize) -> Result<Vec<[f32; 256]>> {
        self.check(channels)?;
        let table = |number: &dyn Fn(f64) -> f64| {
            std::array::from_fn(|byte| number(byte as f64 / 255.0) as f32)
        };
        Ok(match self {
            PixelMap::MinusOneToOne => vec![table(&|unit| 2.0 * unit - 1.0); channels],
            PixelMap::PerChannel { mean, std } => {
                let pairs = mean.iter().zip(std);
                pairs
                    .map(|(mean, std)| table(&|unit| (unit - mean) / std))
                    .collect()
            }
        })
    }

    /// Scale and shift that take a number to [0, 1], one pair a channel.
    fn lines(&self, channels: usize) -> Result<Vec<(f32, f32)>> {
        self.check(channels)?;
        Ok(match self {
            PixelMap::MinusOneToOne => vec![(0.5, 0.5); channels],
            PixelMap::PerChannel { mean, std } => std
                .iter()
                .zip(mean)
                .map(|(&std, &mean)| (std as f32, mean as f32))
                .collect(),
        })
    }
}

/// What is read before it is checked.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum UncheckedPixelMap {
    MinusOneToOne,
    PerChannel { mean: Vec<f64>, std: Vec<f64> },
}

impl TryFrom<UncheckedPixelMap> for PixelMap {
    type Error = Error;

    fn try_from(unchecked: UncheckedPixelMap) -> Result<PixelMap> {
        match unchecked {
            UncheckedPixelMap::MinusOneToOne => Ok(PixelMap::MinusOneToOne),
            UncheckedPixelMap::PerChannel { mean, std } => PixelMap::per_channel(mean, std),
        }
    }
}

/// Values of one image; an error when a side is 0 or the product overflows.
pub(crate) fn image_size(height: usize, width: usize, channels: usize) -> Result<usize> {
    height
        .checked_mul(width)
        .and_then(|plane| plane.checked_mul(channels))
        .filter(|&size| size > 0)
        .ok_or(Error::Size {
            height,
            width,
            channels,
        })
}

/// round(255 · clamp(unit, 0, 1)), ties to even.
fn to_byte(unit: f32) -> u8 {
    (255.0 * unit.clamp(0.0, 1.0)).round_ties_even() as u8
}

fn check_normalisation(mean: &[f64], std: &[f64]) -> Result<()> {
    let refuse = |reason: String| Err(Error::Normalisation(reason));
    if mean.is_empty() || mean.len() != std.len() {
        let (mean, std) = (mean.len(), std.len());
        return refuse(format!(
            "it has {mean} means and {std} stds, one of each a channel was expected"
        ));
    }
    if let Some((channel, mean)) = mean.iter().enumerate().find(|(_, mean)| !mean.is_finite()) {
        return refuse(format!("mean {mean} of channel {channel} is not finite"));
    }
    // Below the smallest normal f32 the division would leave the range of the tensor.
    let usable = |std: f64| std.is_finite() && std >= f64::from(f32::MIN_POSITIVE);
    if let Some((channel, std)) = std.iter().enumerate().find(|&(_, &std)| !usable(std)) {
        return refuse(format!(
            "std {std} of channel {channel} is not finite and above 0"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Device = Device::Cpu;

    fn per_channel() -> PixelMap {
        // The numbers that ImageNet classifiers use.
        PixelMap::per_channel(vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]).unwrap()
    }

    /// Bytes that differ in every place of [2, 4, 6, 3] NHWC.
    fn bytes() -> Vec<u8> {
        (0..2 * 4 * 6 * 3).map(|k| (k * 7 % 256) as u8).collect()
    }

    #[test]
    fn every_byte_survives_the_round_trip() {
        let all: Vec<u8> = (0..=255).collect();
        let map = PixelMap::MinusOneToOne;
        let x = map.to_tensor(&all, 1, (16, 16, 1), &CPU).unwrap();
        assert_eq!(map.to_u8(&x).unwrap(), all);
        let all: Vec<u8> = (0..=255)
            .flat_map(|byte| [byte, 255 - byte, byte ^ 85])
            .collect();
        let x = per_channel().to_tensor(&all, 1, (16, 16, 3), &CPU).unwrap();
        assert_eq!(per_channel().to_u8(&x).unwrap(), all);
    }

    #[test]
    fn the_numbers_are_those_of_the_formula() {
        let map = PixelMap::MinusOneToOne;
        let x = map
            .to_tensor(&[0, 51, 102, 255], 1, (1, 4, 1), &CPU)
            .unwrap();
        assert_eq!(
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [-1.0, -0.6, -0.2, 1.0]
        );
        let map = PixelMap::per_channel(vec![0.5, 0.2], vec![0.25, 0.4]).unwrap();
        let x = map
            .to_tensor(&[0, 0, 255, 255], 2, (1, 1, 2), &CPU)
            .unwrap();
        assert_eq!(
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [-2.0, -0.5, 2.0, 2.0]
        );
        assert_eq!(map.value_range(2).unwrap(), [(-2.0, 2.0), (-0.5, 2.0)]);
        assert_eq!(
            PixelMap::MinusOneToOne.value_range(3).unwrap(),
            [(-1.0, 1.0); 3]
        );
    }

    #[test]
    fn axes_go_from_nhwc_to_nchw_and_back() {
        for map in [PixelMap::MinusOneToOne, per_channel()] {
            let x = map.to_tensor(&bytes(), 2, (4, 6, 3), &CPU).unwrap();
            assert_eq!(x.dims(), [2, 3, 4, 6]);
            let rows = x.to_dtype(DType::F64).unwrap();
            let byte = f64::from(bytes()[((4 + 2) * 6 + 5) * 3 + 1]) / 255.0;
            let (low, high) = map.value_range(3).unwrap()[1];
            let expected = low + byte * (high - low);
            let got = rows
                .get(1)
                .unwrap()
                .get(1)
                .unwrap()
                .get(2)
                .unwrap()
                .get(5)
                .unwrap();
            assert!((got.to_scalar::<f64>().unwrap() - expected).abs() < 1e-6);
            assert_eq!(map.to_u8(&x).unwrap(), bytes());
            // A transposed, not contiguous view has the same bytes.
            let view = x
                .transpose(2, 3)
                .unwrap()
                .contiguous()
                .unwrap()
                .transpose(2, 3)
                .unwrap();
            assert_eq!(map.to_u8(&view).unwrap(), bytes());
            assert_eq!(map.to_u8(&rows).unwrap(), bytes());
        }
    }

    #[test]
    fn a_constant_byte_round_trips_through_other_float_types() {
        let x = Tensor::full(1.0f32, (1, 1, 2, 2), &CPU)
            .unwrap()
            .to_dtype(DType::BF16)
            .unwrap();
        assert_eq!(PixelMap::MinusOneToOne.to_u8(&x).unwrap(), [255; 4]);
    }

    #[test]
    fn numbers_beyond_the_range_are_clamped_and_ties_go_to_even() {
        let values = [
            -7.0,
            f32::NEG_INFINITY,
            -1.0,
            -0.0,
            0.0,
            1.0,
            1.5,
            f32::INFINITY,
            f32::MAX,
        ];
        let x = Tensor::new(&values, &CPU)
            .unwrap()
            .reshape((1, 1, 3, 3))
            .unwrap();
        let bytes = PixelMap::MinusOneToOne.to_u8(&x).unwrap();
        assert_eq!(bytes, [0, 0, 0, 128, 128, 255, 255, 255, 255]);
        // 2·unit - 1 with 255·unit = 0.5 exactly: to the even 0, as numpy rounds.
        let map = PixelMap::per_channel(vec![0.0], vec![1.0]).unwrap();
        let ties: Vec<f32> = (0..255)
            .map(|byte| (byte as f32 + 0.5) / 255.0)
            .filter(|unit| (255.0 * unit).fract() == 0.5)
            .collect();
        assert!(ties.len() > 100);
        let x = Tensor::new(ties.as_slice(), &CPU)
            .unwrap()
            .reshape((1, 1, 1, ties.len()))
            .unwrap();
        assert!(map.to_u8(&x).unwrap().iter().all(|byte| byte % 2 == 0));
    }

    #[test]
    fn a_nan_is_an_error_that_names_its_place() {
        let mut numbers = vec![0f32; 2 * 3 * 4 * 6];
        numbers[((3 + 2) * 4 + 1) * 6 + 5] = f32::NAN;
        let x = Tensor::from_vec(numbers, (2, 3, 4, 6), &CPU).unwrap();
        let message = PixelMap::MinusOneToOne.to_u8(&x).unwrap_err().to_string();
        assert!(
            message
                .starts_with("image 1 of the batch is not a number at channel 2, row 1, column 5"),
            "{message}"
        );
    }

    #[track_caller]
    fn check_error<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }

    #[test]
    fn errors_name_what_was_expected() {
        let map = PixelMap::MinusOneToOne;
        check_error(
            map.to_tensor(&[0; 5], 1, (2, 3, 1), &CPU),
            "5 pixel values cannot be 1 images of 2x3 with 1 channels: 6 were expected",
        );
        check_error(
            map.to_tensor(&[], 0, (0, 3, 1), &CPU),
            "images of 0x3 with 1 channels: every side must be at least 1 and the whole must fit in memory",
        );
        check_error(
            map.to_tensor(&[], 1, (usize::MAX, 3, 1), &CPU),
            &format!(
                "images of {}x3 with 1 channels: every side must be at least 1 and the whole must fit in memory",
                usize::MAX
            ),
        );
        let flat = Tensor::zeros((2, 3), DType::F32, &CPU).unwrap();
        check_error(
            map.to_u8(&flat),
            "a tensor of shape [2, 3] is not a batch of images: [N, C, H, W] was expected",
        );
        let expected = "the pixel map has mean and std for 3 channels, the images have 1 channels";
        check_error(
            per_channel().to_tensor(&[0; 6], 1, (2, 3, 1), &CPU),
            expected,
        );
        check_error(per_channel().value_range(1), expected);
        let grey = Tensor::zeros((1, 1, 2, 2), DType::F32, &CPU).unwrap();
        check_error(per_channel().to_u8(&grey), expected);
    }

    #[test]
    fn impossible_per_channel_numbers_are_refused() {
        let prefix = "the per-channel pixel map is impossible: ";
        let cases: [(&[f64], &[f64], &str); 5] = [
            (
                &[],
                &[],
                "it has 0 means and 0 stds, one of each a channel was expected",
            ),
            (
                &[0.5],
                &[0.5, 0.5],
                "it has 1 means and 2 stds, one of each a channel was expected",
            ),
            (
                &[0.5, f64::NAN],
                &[0.5, 0.5],
                "mean NaN of channel 1 is not finite",
            ),
            (
                &[0.5],
                &[0.0],
                "std 0 of channel 0 is not finite and above 0",
            ),
            (
                &[0.5],
                &[-1.0],
                "std -1 of channel 0 is not finite and above 0",
            ),
        ];
        for (mean, std, expected) in cases {
            let (mean, std) = (mean.to_vec(), std.to_vec());
            check_error(
                PixelMap::per_channel(mean.clone(), std.clone()),
                &format!("{prefix}{expected}"),
            );
            // A map written by hand is checked when it is used.
            let by_hand = PixelMap::PerChannel { mean, std };
            check_error(
                by_hand.to_tensor(&[0], 1, (1, 1, 1), &CPU),
                &format!("{prefix}{expected}"),
            );
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Settings {
        pixels: PixelMap,
    }

    #[test]
    fn settings_hold_the_map() {
        for (map, text) in [
            (PixelMap::MinusOneToOne, "pixels = \"minus_one_to_one\"\n"),
            (
                PixelMap::per_channel(vec![0.5, 0.25], vec![0.5, 1.0]).unwrap(),
                "[pixels.per_channel]\nmean = [0.5, 0.25]\nstd = [0.5, 1.0]\n",
            ),
        ] {
            let settings = Settings { pixels: map };
            assert_eq!(toml::to_string(&settings).unwrap(), text);
            assert_eq!(toml::from_str::<Settings>(text).unwrap(), settings);
        }
        let text = "pixels = { per_channel = { mean = [0.5], std = [0.0] } }";
        let message = toml::from_str::<Settings>(text).unwrap_err().to_string();
        assert!(
            message.contains("std 0 of channel 0 is not finite and above 0"),
            "{message}"
        );
        let text = "pixels = { per_channel = { mean = [0.5], std = [1.0], dev = [1.0] } }";
        let message = toml::from_str::<Settings>(text).unwrap_err().to_string();
        assert!(
            message.contains("dev, available keys: mean, std"),
            "{message}"
        );
        let message = toml::from_str::<Settings>("pixels = \"zero_to_one\"")
            .unwrap_err()
            .to_string();
        assert!(message.contains("minus_one_to_one"), "{message}");
    }
}
