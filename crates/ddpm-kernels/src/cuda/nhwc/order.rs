//! Images from channel after channel to pixel after pixel, and back.

use candle_core::Result;

use super::Images;
use crate::cuda::launch::{Address, BLOCK, Divisor, Launch, Machine, arguments, kernel, whole};

/// Numbers that a block takes at most, and channels.
const TILE: usize = 2048;
const TILE_CHANNELS: usize = 64;

/// f32 `[B, C, H, W]` -> `images.kind` `[B, H, W, C]`.
pub(crate) fn take_in<M: Machine>(
    machine: &M,
    images: Images,
    from: Address,
    to: Address,
) -> Result<()> {
    let name = kernel!(images.kind, "nhwc_take_in");
    by_tiles(machine, name, images, from, to)
}

/// The other way, to f32.
pub(crate) fn give_out<M: Machine>(
    machine: &M,
    images: Images,
    from: Address,
    to: Address,
) -> Result<()> {
    let name = kernel!(images.kind, "nhwc_give_out");
    by_tiles(machine, name, images, from, to)
}

fn by_tiles<M: Machine>(
    machine: &M,
    kernel: &'static str,
    images: Images,
    from: Address,
    to: Address,
) -> Result<()> {
    whole("numbers of images", images.numbers())?;
    let pixels = images.pixels();
    let channels = images.channels.clamp(1, TILE_CHANNELS);
    let most = (TILE / channels + 1).next_power_of_two() / 2; // the power of two that is not above TILE / channels
    let pixels_of_tile = most.min(pixels.next_power_of_two());
    let across = pixels.div_ceil(pixels_of_tile);
    let down = images.channels.div_ceil(channels);
    let launch = Launch {
        grid: [whole("tiles", images.count * across * down)?, 1],
        block: BLOCK,
        shared: 4 * (channels * (pixels_of_tile + 1)) as u32,
    };
    machine.launch(
        kernel,
        launch,
        arguments![
            from,
            to,
            images.channels as u32,
            pixels as u32,
            channels as u32,
            pixels_of_tile.trailing_zeros(),
            Divisor::by(channels as u32),
            Divisor::by(across as u32),
            Divisor::by(down as u32),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::launch::Kind;
    use crate::cuda::oracle::{KINDS, wave};

    #[test]
    fn channels_move_to_the_inside_and_back() {
        let sizes = [
            (1, 3, 5, 7),
            (3, 1, 9, 4),
            (2, 4, 33, 65), // more pixels than a tile
            (2, 6, 1, 2),
            (3, 70, 3, 11), // more channels than a tile
            (1, 131, 8, 8),
            (2, 64, 8, 4), // just one tile
            (5, 33, 1, 1),
        ];
        for kind in KINDS {
            for (count, channels, height, width) in sizes {
                check(Images {
                    kind,
                    count,
                    height,
                    width,
                    channels,
                });
            }
        }
    }

    fn check(images: Images) {
        let (kind, length) = (images.kind, images.numbers());
        let x = wave(length, 1);
        let inside = kept(kind, &wave(length, 2));
        let ran = Host::both_ways(|host| {
            let (from, back) = (host.floats(&x), host.numbers(kind, &inside));
            let to = host.allocate(kind, length)?;
            take_in(host, images, host.address(&from), host.address(&to))?;
            let out = host.allocate(Kind::F32, length)?;
            give_out(host, images, host.address(&back), host.address(&out))?;
            Ok(vec![to.read(), out.read()])
        });
        let Some(ran) = ran else { return };
        let (channels, pixels) = (images.channels, images.pixels());
        let mut taken = vec![0.0; length];
        let mut given = vec![0.0; length];
        for image in 0..images.count {
            for channel in 0..channels {
                for pixel in 0..pixels {
                    let outside = (image * channels + channel) * pixels + pixel;
                    let within = (image * pixels + pixel) * channels + channel;
                    taken[within] = x[outside];
                    given[outside] = inside[within];
                }
            }
        }
        assert_eq!(ran[0], kept(kind, &taken), "in: {images:?}");
        assert_eq!(ran[1], given, "out: {images:?}");
    }
}
