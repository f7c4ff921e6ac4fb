//! What a convolution reads, made from what is kept.

use candle_core::Result;

use super::tiles::{Tiles, addresses, check_parts, of_parts, optional, tiled};
use super::{Images, Part, Sink};
use crate::cuda::launch::{Address, Argument, Divisor, Machine, arguments, whole};

/// A value as a convolution reads it: parts side by side along channels, then coefficients, SiLU, dropout, up-sampling and
/// zeros around, in this order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared<'a> {
    /// Of the value before up-sampling and zeros, with the channels of all parts.
    pub(crate) images: Images,
    /// One to four, all of the images' kind.
    pub(crate) parts: &'a [Part],
    /// f32 [B, C, 2]: x becomes a x + b, for each channel of each image.
    pub(crate) coefficients: Option<Address>,
    pub(crate) silu: bool,
    /// u8 [B, H, W, C], 0 for what is dropped, and the factor of what stays.
    pub(crate) mask: Option<(Address, f32)>,
    /// Each pixel becomes 2 by 2.
    pub(crate) upsampled: bool,
    /// Zeros at the top, left, bottom and right of the result.
    pub(crate) border: [usize; 4],
}

impl Prepared<'_> {
    /// The images that are written.
    pub(crate) fn result(&self) -> Images {
        let times = 1 + usize::from(self.upsampled);
        let inner = Images {
            height: times * self.images.height,
            width: times * self.images.width,
            ..self.images
        };
        with_border(inner, self.border)
    }
}

fn with_border(images: Images, [top, left, bottom, right]: [usize; 4]) -> Images {
    Images {
        height: top + images.height + bottom,
        width: left + images.width + right,
        ..images
    }
}

/// Writes the value, of [`Prepared::result`].
pub(crate) fn prepare<M: Machine>(machine: &M, prepared: &Prepared, to: Address) -> Result<()> {
    let images = prepared.images;
    let result = prepared.result();
    let parts = addresses(prepared.parts);
    let channels: Vec<usize> = parts.iter().map(|part| part.1).collect();
    check_parts("a value", images, &channels)?;
    let tiles = Tiles::of_parts(result, prepared.parts).spread();
    let width = whole("columns", result.width)?;
    let mask = prepared.mask.map(|mask| mask.0);
    let rest = arguments![
        optional(prepared.coefficients),
        prepared.silu,
        optional(mask),
        prepared.mask.map_or(1.0, |mask| mask.1),
        to,
        prepared.upsampled,
        whole("pixels", images.pixels())?,
        images.height as u32,
        images.width as u32,
        width,
        Divisor::by(width),
        whole("rows", prepared.border[0])?,
        whole("columns", prepared.border[1])?,
    ];
    let mut aligned = vec![prepared.coefficients, mask, Some(to)];
    aligned.extend(parts.iter().map(|part| part.0));
    let kernel = tiled!(tiles, "nhwc_prepare");
    let arguments = [&of_parts(&parts), rest as &[Argument]].concat();
    tiles.launch(machine, kernel, (0, 0), &aligned, &arguments)
}

/// What lies inside of a border, written or added; `images` are those inside.
pub(crate) fn cut_border<M: Machine>(
    machine: &M,
    images: Images,
    border: [usize; 4],
    from: Address,
    to: Sink,
) -> Result<()> {
    let outer = with_border(images, border);
    whole("numbers of an image", outer.pixels() * outer.channels)?;
    let tiles = Tiles::of(images).spread();
    let width = whole("columns", images.width)?;
    let arguments = arguments![
        from,
        to.at,
        to.accumulate,
        outer.pixels() as u32,
        outer.width as u32,
        width,
        Divisor::by(width),
        border[0] as u32,
        border[1] as u32,
    ];
    let kernel = tiled!(tiles, "nhwc_cut_border");
    let aligned = [Some(from), Some(to.at)];
    tiles.launch(machine, kernel, (0, 0), &aligned, arguments)
}

/// Multiplies a gradient in place with the derivative of SiLU at the parts: where SiLU stands without a normalisation.
pub(crate) fn silu_gradient<M: Machine>(
    machine: &M,
    images: Images,
    parts: &[Part],
    g: Address,
) -> Result<()> {
    let tiles = Tiles::of_parts(images, parts).spread();
    let parts = addresses(parts);
    let channels: Vec<usize> = parts.iter().map(|part| part.1).collect();
    check_parts("SiLU", images, &channels)?;
    let mut aligned: Vec<Option<Address>> = parts.iter().map(|part| part.0).collect();
    aligned.push(Some(g));
    let kernel = tiled!(tiles, "nhwc_silu_gradient");
    let arguments = [of_parts(&parts), vec![g.into()]].concat();
    tiles.launch(machine, kernel, (0, 0), &aligned, &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, Memory, kept};
    use crate::cuda::launch::Kind;
    use crate::cuda::nhwc::oracle::{KeptParts, bytes};
    use crate::cuda::oracle::{KINDS, allowed, assert_near, wave};

    /// Which options a value has.
    #[derive(Clone, Copy, Debug)]
    struct Options {
        coefficients: bool,
        silu: bool,
        mask: bool,
        upsampled: bool,
        border: [usize; 4],
    }

    const ALL: Options = Options {
        coefficients: true,
        silu: true,
        mask: true,
        upsampled: true,
        border: [1, 2, 3, 0],
    };
    const NONE: Options = Options {
        coefficients: false,
        silu: false,
        mask: false,
        upsampled: false,
        border: [0; 4],
    };
    const FACTOR: f32 = 1.25;

    /// Parts that are packs, and parts that are not.
    const CHANNELS: [&[usize]; 5] = [&[24], &[8, 16, 8, 24], &[3, 1, 5], &[16, 4], &[1]];

    fn images(kind: Kind, channels: &[usize]) -> Images {
        Images {
            kind,
            count: 3,
            height: 5,
            width: 7,
            channels: channels.iter().sum(),
        }
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn every_option_alone_and_all_together() {
        let alone = [
            NONE,
            Options {
                coefficients: true,
                ..NONE
            },
            Options { silu: true, ..NONE },
            Options { mask: true, ..NONE },
            Options {
                upsampled: true,
                ..NONE
            },
            Options {
                border: [2, 0, 1, 3],
                ..NONE
            },
        ];
        for kind in KINDS {
            for channels in CHANNELS {
                for options in alone.into_iter().chain([ALL]) {
                    check(images(kind, channels), channels, options);
                }
            }
        }
    }

    #[test]
    fn many_pixels_and_many_channels() {
        for kind in KINDS {
            for (height, width, channels) in [(41, 23, 8), (2, 1, 2320), (1, 3, 301)] {
                let images = Images {
                    kind,
                    count: 2,
                    height,
                    width,
                    channels,
                };
                check(images, &[channels], ALL);
            }
        }
    }

    fn check(images: Images, channels: &[usize], options: Options) {
        let kind = images.kind;
        let coefficients = wave(2 * images.count * images.channels, 5);
        let kept_or_not: Vec<u8> = wave(images.numbers(), 6)
            .iter()
            .map(|x| u8::from(*x > -0.3) * 255)
            .collect();
        let parts = KeptParts::new(images, channels, 10);
        let ran = Host::both_ways(|host| {
            let (memory, parts) = parts.upload(host);
            let ab = host.floats(&coefficients);
            let mask = bytes(host, &kept_or_not);
            let prepared = Prepared {
                images,
                parts: &parts,
                coefficients: options.coefficients.then(|| host.address(&ab)),
                silu: options.silu,
                mask: options.mask.then(|| (host.address(&mask), FACTOR)),
                upsampled: options.upsampled,
                border: options.border,
            };
            let y = host.allocate(kind, prepared.result().numbers())?;
            prepare(host, &prepared, host.address(&y))?;
            memory.iter().for_each(|memory| drop(memory.read()));
            Ok(vec![y.read()])
        });
        let Some(ran) = ran else { return };

        let times = 1 + usize::from(options.upsampled);
        let [top, left, bottom, right] = options.border;
        let mut expected = Vec::new();
        for image in 0..images.count {
            for row in 0..top + times * images.height + bottom {
                for column in 0..left + times * images.width + right {
                    let inside = (top..top + times * images.height).contains(&row)
                        && (left..left + times * images.width).contains(&column);
                    for c in 0..images.channels {
                        if !inside {
                            expected.push(0.0);
                            continue;
                        }
                        let (row, column) = ((row - top) / times, (column - left) / times);
                        let at = (image * images.height + row) * images.width + column;
                        let ab = 2 * (image * images.channels + c);
                        let mut value = f64::from(parts.whole[at * images.channels + c]);
                        if options.coefficients {
                            value = f64::from(coefficients[ab]) * value
                                + f64::from(coefficients[ab + 1]);
                        }
                        if options.silu {
                            value *= sigmoid(value);
                        }
                        if options.mask {
                            let stays = kept_or_not[at * images.channels + c] != 0;
                            value = if stays {
                                f64::from(FACTOR) * value
                            } else {
                                0.0
                            };
                        }
                        expected.push(value);
                    }
                }
            }
        }
        let what = format!("{kind:?}, {channels:?}, {options:?}");
        assert_near(&what, &ran[0], &expected, allowed(kind, 1e-6));
        for (y, expected) in ran[0].iter().zip(&expected) {
            assert_eq!(*y == 0.0, *expected == 0.0, "{what}");
        }
    }

    #[test]
    fn the_inside_of_a_border_is_written_or_added() {
        let border = [2, 1, 0, 3];
        for kind in KINDS {
            for channels in [24, 5] {
                let images = images(kind, &[channels]);
                let outer = with_border(images, border);
                let x = kept(kind, &wave(outer.numbers(), 1));
                let before = kept(kind, &wave(images.numbers(), 2));
                let ran = Host::both_ways(|host| {
                    let x = host.numbers(kind, &x);
                    let to = [host.numbers(kind, &before), host.numbers(kind, &before)];
                    for (to, accumulate) in to.iter().zip([false, true]) {
                        let at = host.address(to);
                        let to = Sink { at, accumulate };
                        cut_border(host, images, border, host.address(&x), to)?;
                    }
                    Ok(to.iter().map(Memory::read).collect())
                });
                let Some(ran) = ran else { return };
                let inside: Vec<f32> = (0..images.numbers())
                    .map(|i| {
                        let (pixel, c) = (i / channels, i % channels);
                        let (line, column) = (pixel / images.width, pixel % images.width);
                        let (image, row) = (line / images.height, line % images.height);
                        let row = image * outer.height + row + 2;
                        x[(row * outer.width + column + 1) * channels + c]
                    })
                    .collect();
                let sums: Vec<f32> = inside.iter().zip(&before).map(|(x, y)| x + y).collect();
                assert_eq!(ran[0], inside, "{kind:?}, {channels}");
                assert_eq!(ran[1], kept(kind, &sums), "{kind:?}, {channels}");
            }
        }
    }

    #[test]
    fn the_slope_of_silu_at_each_part() {
        for kind in KINDS {
            for channels in CHANNELS {
                let images = images(kind, channels);
                let parts = KeptParts::new(images, channels, 10);
                let g = kept(kind, &wave(images.numbers(), 2));
                let ran = Host::both_ways(|host| {
                    let (_memory, parts) = parts.upload(host);
                    let g = host.numbers(kind, &g);
                    silu_gradient(host, images, &parts, host.address(&g))?;
                    Ok(vec![g.read()])
                });
                let Some(ran) = ran else { return };
                let expected: Vec<f64> = parts
                    .whole
                    .iter()
                    .zip(&g)
                    .map(|(&x, &g)| {
                        let (x, s) = (f64::from(x), sigmoid(x.into()));
                        f64::from(g) * s * (1.0 + x * (1.0 - s))
                    })
                    .collect();
                let what = format!("{kind:?}, {channels:?}");
                assert_near(&what, &ran[0], &expected, allowed(kind, 1e-6));
            }
        }
    }

    #[test]
    fn parts_that_a_kernel_cannot_have_are_refused() {
        let ran = Host::both_ways(|host| {
            let images = images(Kind::F32, &[5]);
            let x = host.floats(&wave(images.numbers(), 1));
            let at = host.address(&x);
            let message = |parts: &[Part]| {
                let refused = silu_gradient(host, images, parts, at);
                refused.unwrap_err().to_string()
            };
            let one = Part { at, channels: 1 };
            let five = message(&[one; 5]);
            assert!(five.starts_with("cuda: SiLU of 5 parts, expected 1 to 4"));
            let four = message(&[one; 4]);
            let expected = "cuda: SiLU of parts with 4 channels, expected 5";
            assert!(four.starts_with(expected), "{four}");
            let images = Images {
                channels: 4,
                ..images
            };
            let between = Address(at.0 + 4);
            let parts = [Part { at, channels: 4 }];
            let refused = silu_gradient(host, images, &parts, between);
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("expected a multiple of 16"), "{refused}");
            Ok(vec![])
        });
        drop(ran);
    }
}
