//! Dropout: masks drawn on the card, and gradients through them.

use candle_core::Result;

use super::Images;
use super::elementwise::packs;
use crate::cuda::dropout::threshold;
use crate::cuda::launch::{
    Address, Divisor, Launch, Machine, arguments, each_image, kernel, whole,
};

/// Draws the mask of dropout: byte 1 where the uniform of the element's address is at least `rate`, else 0; u8 `[B, H, W, C]`.
///
/// The number of an element within its image is that of the order `[C, H, W]`, so that the mask is the one which
/// ddpm-random gives, bit for bit. `counters` are u32 `[B, 3]` on the machine; they and the key are those of
/// [`Draws`](crate::cuda::dropout::Draws).
pub(crate) fn draw<M: Machine>(
    machine: &M,
    images: Images,
    key: [u32; 2],
    counters: Address,
    rate: f64,
    to: Address,
) -> Result<()> {
    let pixels = images.pixels();
    let rows = each_image(images.count)?;
    whole("elements of an image", images.channels * pixels)?;
    // Four elements each; where a channel does not begin with the first of four, it reaches into one draw more.
    let draws = if pixels.is_multiple_of(4) {
        pixels / 4
    } else {
        (pixels + 6) / 4
    };
    let each = Launch::each(draws * images.channels)?;
    let launch = Launch {
        grid: [each.grid[0], rows],
        ..each
    };
    machine.launch(
        "nhwc_draw",
        launch,
        arguments![
            to,
            counters,
            images.channels as u32,
            Divisor::by(images.channels as u32),
            pixels as u32,
            draws as u32,
            key[0],
            key[1],
            threshold(rate),
        ],
    )
}

/// g = factor g where the mask is not 0, else 0; in place.
pub(crate) fn mask_gradient<M: Machine>(
    machine: &M,
    images: Images,
    g: Address,
    mask: Address,
    factor: f32,
) -> Result<()> {
    let count = images.numbers();
    let arguments = arguments![g, mask, whole("numbers", count)?, factor];
    machine.launch(
        kernel!(images.kind, "nhwc_mask_gradient"),
        packs(images.kind, count)?,
        arguments,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::dropout::Draws;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::launch::Kind;
    use crate::cuda::oracle::{KINDS, wave};
    use ddpm_random::Stream;

    const SEED: u64 = 0x0123_4567_89AB_CDEF;
    const STEP: u64 = (1 << 40) + 77;
    const IMAGES: [u64; 3] = [0, 5, (1 << 43) + 12345];

    /// The uniforms as ddpm-unet draws them on the CPU, moved to `[H, W, C]`.
    fn uniforms(image: u64, channels: usize, pixels: usize) -> Vec<f32> {
        let mut uniform = vec![0f32; channels * pixels];
        ddpm_random::uniform_into(SEED, Stream::Dropout, image, STEP, &mut uniform).unwrap();
        let at = |i: usize| uniform[i % channels * pixels + i / channels];
        (0..channels * pixels).map(at).collect()
    }

    fn images(channels: usize, height: usize, width: usize) -> Images {
        Images {
            kind: Kind::F32,
            count: IMAGES.len(),
            height,
            width,
            channels,
        }
    }

    /// The bytes of a mask; nothing where there is no compiler.
    fn drawn(images: Images, rate: f64) -> Option<Vec<u8>> {
        let of = |image| ddpm_random::philox_words(SEED, Stream::Dropout, image, STEP).unwrap();
        let words = IMAGES.map(of);
        let draws = Draws {
            key: words[0].0,
            counters: words.map(|(_, counter)| counter).to_vec(),
        };
        let ran = Host::both_ways(|host| {
            let counters = host.upload(&draws.words())?;
            let mask = host.allocate(Kind::F32, images.numbers().div_ceil(4))?;
            let (from, to) = (host.address(&counters), host.address(&mask));
            draw(host, images, draws.key, from, rate, to)?;
            Ok(vec![mask.read()])
        })?;
        let mut bytes: Vec<u8> = ran[0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let beyond = bytes.split_off(images.numbers());
        let untouched = 0x7fc0_0badu32.to_le_bytes();
        assert_eq!(
            beyond,
            untouched[4 - beyond.len()..],
            "written beyond the mask"
        );
        Some(bytes)
    }

    #[test]
    fn masks_are_those_of_the_cpu() {
        // Channels that begin anywhere in four elements: pixels are 0, 1, 2 and 3 modulo 4; few, and many draws.
        let sizes = [
            (8, 2, 6),
            (5, 3, 7),
            (6, 5, 2),
            (7, 3, 5),
            (3, 1, 1),
            (70, 7, 7),
            (1, 9, 11),
            (33, 1, 2),
        ];
        for (channels, height, width) in sizes {
            for rate in [0.0, 0.1, 0.5, 0.999_999_9] {
                let images = images(channels, height, width);
                let Some(ran) = drawn(images, rate) else {
                    return;
                };
                let expected = IMAGES
                    .iter()
                    .flat_map(|&image| uniforms(image, channels, images.pixels()))
                    .map(|u| u8::from(f64::from(u) >= rate));
                let expected: Vec<u8> = expected.collect();
                assert!(ran == expected, "{images:?}, {rate}");
            }
        }
    }

    /// A rate that is just one element's uniform keeps that element.
    #[test]
    fn a_uniform_equal_to_the_rate_is_kept() {
        let uniform = uniforms(IMAGES[0], 3, 10);
        for (i, &rate) in uniform.iter().enumerate() {
            let Some(ran) = drawn(images(3, 2, 5), rate.into()) else {
                return;
            };
            let expected = uniform.iter().map(|&u| u8::from(u >= rate));
            assert!(ran[..30].iter().copied().eq(expected), "{i}, {rate}");
        }
    }

    #[test]
    fn gradients_pass_where_the_mask_lets_them() {
        for kind in KINDS {
            for (count, channels) in [(3, 5), (1, 16), (2, 700), (1, 1)] {
                let images = Images {
                    kind,
                    count,
                    height: 1,
                    width: 3,
                    channels,
                };
                check(images);
            }
        }
    }

    fn check(images: Images) {
        let (kind, length) = (images.kind, images.numbers());
        let mut g = kept(kind, &wave(length, 1));
        g[0] = f32::INFINITY; // dropped
        let mask: Vec<u8> = (0..length).map(|i| u8::from(i * i % 3 == 1)).collect();
        let mut bytes = mask.clone();
        bytes.resize(length.next_multiple_of(8), 9);
        let words = bytes.chunks_exact(8);
        let words = words.map(|b| b.iter().rev().fold(0, |all, &b| all << 8 | u64::from(b)));
        let words: Vec<u64> = words.collect();
        let ran = Host::both_ways(|host| {
            let (g, mask) = (host.numbers(kind, &g), host.upload(&words)?);
            mask_gradient(host, images, host.address(&g), host.address(&mask), 1.25)?;
            Ok(vec![g.read()])
        });
        let Some(ran) = ran else { return };
        let expected = g.iter().zip(&mask);
        let expected = expected.map(|(g, &kept)| if kept == 0 { 0.0 } else { 1.25 * g });
        let expected = kept(kind, &expected.collect::<Vec<_>>());
        assert_eq!(ran[0], expected, "{images:?}");
    }

    #[test]
    fn more_images_than_a_kernel_counts_are_refused() {
        let ran = Host::both_ways(|host| {
            let many = Images {
                count: 65536,
                ..images(1, 1, 1)
            };
            let refused = draw(host, many, [0, 0], Address(0), 0.5, Address(0));
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("65536 images"), "{message}");
            Ok(vec![])
        });
        assert!(ran.is_none_or(|ran| ran.is_empty()));
    }
}
