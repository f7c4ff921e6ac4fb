//! Sums, factors, and some channels of images.

use candle_core::{Result, bail};

use super::{Images, Sink};
use crate::cuda::launch::{Address, Divisor, Kind, Launch, Machine, arguments, kernel, whole};

/// to = (a + b) scale; `to` may be a or b.
pub(crate) fn sum<M: Machine>(
    machine: &M,
    kind: Kind,
    count: usize,
    a: Address,
    b: Address,
    scale: f32,
    to: Address,
) -> Result<()> {
    let arguments = arguments![a, b, to, whole("numbers", count)?, scale];
    machine.launch(kernel!(kind, "nhwc_sum"), packs(kind, count)?, arguments)
}

/// g = g scale, in place.
pub(crate) fn scale<M: Machine>(
    machine: &M,
    kind: Kind,
    count: usize,
    g: Address,
    scale: f32,
) -> Result<()> {
    let arguments = arguments![g, whole("numbers", count)?, scale];
    machine.launch(kernel!(kind, "nhwc_scale"), packs(kind, count)?, arguments)
}

/// to = to + from, in place.
pub(crate) fn add<M: Machine>(
    machine: &M,
    kind: Kind,
    count: usize,
    from: Address,
    to: Address,
) -> Result<()> {
    sum(machine, kind, count, to, from, 1.0, to)
}

/// Sums of 2 by 2 pixels; `images` are the result's.
pub(crate) fn downsample<M: Machine>(
    machine: &M,
    images: Images,
    from: Address,
    to: Address,
) -> Result<()> {
    whole("numbers of images", 4 * images.numbers())?;
    let pack = images.kind.pack_of(&[images.channels]);
    let (packs, width) = ((images.channels / pack) as u32, images.width as u32);
    let total = images.numbers() / pack;
    machine.launch(
        kernel!(images.kind, "nhwc_downsample"),
        Launch::each(total)?,
        arguments![
            from,
            to,
            total as u32,
            packs,
            Divisor::by(packs),
            width,
            Divisor::by(width),
            pack > 1,
        ],
    )
}

/// Channels `first..first + channels` of g to a gradient of their own, written or added; `images` are those of g.
pub(crate) fn part<M: Machine>(
    machine: &M,
    images: Images,
    g: Address,
    first: usize,
    channels: usize,
    to: Sink,
) -> Result<()> {
    if first + channels > images.channels {
        bail!(
            "cuda: channels {first} to {} of images that have {}",
            first + channels,
            images.channels
        );
    }
    whole("numbers of images", images.numbers())?;
    let pack = images.kind.pack_of(&[images.channels, first, channels]);
    let packs = (channels / pack) as u32;
    let total = images.count * images.pixels() * channels / pack;
    machine.launch(
        kernel!(images.kind, "nhwc_part"),
        Launch::each(total)?,
        arguments![
            g,
            to.at,
            total as u32,
            packs,
            Divisor::by(packs),
            images.channels as u32,
            first as u32,
            to.accumulate,
            pack > 1,
        ],
    )
}

/// A thread for each pack of so many numbers.
pub(crate) fn packs(kind: Kind, count: usize) -> Result<Launch> {
    Launch::each(count.div_ceil(kind.pack()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::oracle::{KINDS, wave};

    #[test]
    fn sums_and_factors() {
        for kind in KINDS {
            for count in [1, 7, 8, 3 * 256 * 8, 2501] {
                check_flat(kind, count);
            }
        }
    }

    fn check_flat(kind: Kind, count: usize) {
        let a = kept(kind, &wave(count, 1));
        let b = kept(kind, &wave(count, 2));
        let ran = Host::both_ways(|host| {
            let [x, y, z] = [&a, &b, &b].map(|numbers| host.numbers(kind, numbers));
            let to = host.allocate(kind, count)?;
            let [at_x, at_y, at_z] = [&x, &y, &z].map(|memory| host.address(memory));
            sum(host, kind, count, at_x, at_y, 0.75, host.address(&to))?;
            add(host, kind, count, at_x, at_y)?;
            scale(host, kind, count, at_z, -0.3)?;
            Ok(vec![to.read(), x.read(), y.read(), z.read()])
        });
        let Some(ran) = ran else { return };
        let pairs = || a.iter().zip(&b);
        let sums: Vec<f32> = pairs().map(|(a, b)| (a + b) * 0.75).collect();
        let added: Vec<f32> = pairs().map(|(a, b)| a + b).collect();
        let scaled: Vec<f32> = b.iter().map(|b| b * -0.3).collect();
        let what = format!("{kind:?}, {count}");
        assert_eq!(ran[0], kept(kind, &sums), "{what}");
        assert_eq!(ran[1], a, "{what}");
        assert_eq!(ran[2], kept(kind, &added), "{what}");
        assert_eq!(ran[3], kept(kind, &scaled), "{what}");
    }

    fn images(kind: Kind, channels: usize) -> Images {
        Images {
            kind,
            count: 3,
            height: 5,
            width: 7,
            channels,
        }
    }

    #[test]
    fn squares_of_pixels_are_added_up() {
        for kind in KINDS {
            for channels in [1, 3, 8, 20, 264] {
                let images = images(kind, channels);
                let x = kept(kind, &wave(4 * images.numbers(), 1));
                let ran = Host::both_ways(|host| {
                    let (from, to) = (
                        host.numbers(kind, &x),
                        host.allocate(kind, images.numbers())?,
                    );
                    downsample(host, images, host.address(&from), host.address(&to))?;
                    Ok(vec![to.read()])
                });
                let Some(ran) = ran else { return };
                let (height, width) = (images.height, images.width);
                let expected = (0..images.numbers()).map(|i| {
                    let (channel, pixel) = (i % channels, i / channels);
                    let (image, row, column) = (
                        pixel / (height * width),
                        pixel / width % height,
                        pixel % width,
                    );
                    let at = |down: usize, right: usize| {
                        let row = image * 2 * height + 2 * row + down;
                        x[(row * 2 * width + 2 * column + right) * channels + channel]
                    };
                    (at(0, 0) + at(0, 1)) + (at(1, 0) + at(1, 1))
                });
                let expected = kept(kind, &expected.collect::<Vec<_>>());
                assert_eq!(ran[0], expected, "{images:?}");
            }
        }
    }

    #[test]
    fn some_channels_are_written_or_added() {
        for kind in KINDS {
            let parts = [(24, 8, 16), (24, 0, 8), (20, 4, 8), (7, 2, 5), (24, 3, 8)];
            for (channels, first, some) in parts {
                for accumulate in [false, true] {
                    check_part(images(kind, channels), first, some, accumulate);
                }
            }
        }
    }

    fn check_part(images: Images, first: usize, channels: usize, accumulate: bool) {
        let (kind, length) = (images.kind, images.count * images.pixels() * channels);
        let g = kept(kind, &wave(images.numbers(), 1));
        let before = kept(kind, &wave(length, 2));
        let ran = Host::both_ways(|host| {
            let g = host.numbers(kind, &g);
            let to = match accumulate {
                true => host.numbers(kind, &before),
                false => host.allocate(kind, length)?,
            };
            let at = host.address(&to);
            let sink = Sink { at, accumulate };
            part(host, images, host.address(&g), first, channels, sink)?;
            Ok(vec![to.read()])
        });
        let Some(ran) = ran else { return };
        let expected = (0..length).map(|i| {
            let taken = g[i / channels * images.channels + first + i % channels];
            taken + if accumulate { before[i] } else { 0.0 }
        });
        let expected = kept(kind, &expected.collect::<Vec<_>>());
        let what = format!("{images:?}, {first}, {channels}, {accumulate}");
        assert_eq!(ran[0], expected, "{what}");
    }

    #[test]
    fn channels_that_are_not_there_are_refused() {
        let ran = Host::both_ways(|host| {
            let sink = Sink {
                at: Address(0),
                accumulate: false,
            };
            let refused = part(host, images(Kind::F32, 7), Address(0), 3, 5, sink);
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("channels 3 to 8 of images that have 7"));
            Ok(vec![])
        });
        assert!(ran.is_none_or(|ran| ran.is_empty()));
    }
}
