//! What is added to the result of a convolution, and the moments of its channels.

use candle_core::Result;

use super::Images;
use super::tiles::{Tiles, optional, tiled};
use crate::cuda::launch::{Address, Machine, arguments};

/// What is added to the result of a convolution. Vectors, which are the pixels of one image, have no `vector`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    pub(crate) images: Images,
    /// f32 [C].
    pub(crate) bias: Option<Address>,
    /// f32 [B, C].
    pub(crate) vector: Option<Address>,
    /// As the result.
    pub(crate) residual: Option<Address>,
    pub(crate) scale: f32,
    /// Where the [`moments`] of the result go.
    pub(crate) moments: Option<Address>,
}

/// y = (y + bias + vector + residual) scale, in place; in the same pass the moments of the numbers as they are stored.
pub(crate) fn finish<M: Machine>(machine: &M, finish: &Finish, y: Address) -> Result<()> {
    launch(machine, finish, y, true)
}

/// Floats of the moments of images: mean and sum of squared deviations for each image, chunk of pixels and channel.
pub(crate) fn moments_length(images: Images) -> usize {
    2 * images.count * Tiles::of(images).chunks() * images.channels
}

/// The moments of the numbers of images.
pub(crate) fn moments<M: Machine>(
    machine: &M,
    images: Images,
    x: Address,
    to: Address,
) -> Result<()> {
    let nothing = Finish {
        images,
        bias: None,
        vector: None,
        residual: None,
        scale: 1.0,
        moments: Some(to),
    };
    launch(machine, &nothing, x, false)
}

fn launch<M: Machine>(machine: &M, finish: &Finish, y: Address, changes: bool) -> Result<()> {
    let tiles = Tiles::of(finish.images);
    let (tiles, shared) = match finish.moments {
        None => (tiles.spread(), (0, 0)),
        Some(_) => (tiles, (2 * tiles.lanes, tiles.lanes)),
    };
    let memory = [finish.bias, finish.vector, finish.residual, finish.moments];
    let [bias, vector, residual, moments] = memory.map(optional);
    let arguments = arguments![y, bias, vector, residual, finish.scale, changes, moments];
    let aligned = [&memory[..], &[Some(y)]].concat();
    let kernel = tiled!(tiles, "nhwc_finish");
    tiles.launch(machine, kernel, shared, &aligned, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::launch::Kind;
    use crate::cuda::oracle::{KINDS, allowed, assert_near, wave};

    fn sizes() -> Vec<Images> {
        let sizes = [
            (3, 5, 7, 24),
            (2, 33, 20, 8),
            (3, 6, 5, 3),
            (1, 4, 4, 264),
            (2, 1, 3, 2320),
            (1, 17, 31, 1),
        ];
        let of = |kind| {
            sizes.map(|(count, height, width, channels)| Images {
                kind,
                count,
                height,
                width,
                channels,
            })
        };
        KINDS.into_iter().flat_map(of).collect()
    }

    /// Mean and sum of squared deviations of each chunk, in double precision.
    fn expected_moments(images: Images, x: &[f32]) -> Vec<f64> {
        let (channels, chunk) = (images.channels, Tiles::of(images).chunk);
        let mut moments = Vec::new();
        for image in x.chunks(images.pixels() * channels) {
            for chunk in image.chunks(chunk * channels) {
                for c in 0..channels {
                    let numbers = || {
                        chunk
                            .iter()
                            .skip(c)
                            .step_by(channels)
                            .map(|&x| f64::from(x))
                    };
                    let mean = numbers().sum::<f64>() / numbers().count() as f64;
                    moments.push(mean);
                    moments.push(numbers().map(|x| (x - mean).powi(2)).sum());
                }
            }
        }
        moments
    }

    #[track_caller]
    fn assert_moments(images: Images, moments: &[f32], x: &[f32], tolerance: f64) {
        let expected = expected_moments(images, x);
        let halves = |numbers: &[f64]| -> [Vec<f64>; 2] {
            [0, 1].map(|half| numbers.iter().copied().skip(half).step_by(2).collect())
        };
        let [means, squares] = halves(&expected);
        let actual: Vec<f64> = moments.iter().map(|&x| x.into()).collect();
        let actual = halves(&actual).map(|half| half.iter().map(|&x| x as f32).collect::<Vec<_>>());
        assert_near(&format!("means of {images:?}"), &actual[0], &means, 2e-7);
        let what = format!("deviations of {images:?}");
        assert_near(&what, &actual[1], &squares, tolerance);
    }

    #[test]
    fn what_there_is_is_added_and_the_moments_are_of_what_is_stored() {
        for images in sizes() {
            for which in 0..8 {
                check(images, [which & 1 != 0, which & 2 != 0, which & 4 != 0]);
            }
        }
    }

    fn check(images: Images, [with_bias, with_vector, with_residual]: [bool; 3]) {
        let (kind, channels) = (images.kind, images.channels);
        let y = kept(kind, &wave(images.numbers(), 1));
        let residual = kept(kind, &wave(images.numbers(), 2));
        let (bias, vector) = (wave(channels, 3), wave(images.count * channels, 4));
        let ran = Host::both_ways(|host| {
            let [with, without] = [(); 2].map(|()| host.numbers(kind, &y));
            let residual = host.numbers(kind, &residual);
            let (bias, vector) = (host.floats(&bias), host.floats(&vector));
            let [first, second] =
                [(); 2].map(|()| host.allocate(Kind::F32, moments_length(images)));
            let [first, second] = [first?, second?];
            let work = Finish {
                images,
                bias: with_bias.then(|| host.address(&bias)),
                vector: with_vector.then(|| host.address(&vector)),
                residual: with_residual.then(|| host.address(&residual)),
                scale: 0.75,
                moments: Some(host.address(&first)),
            };
            finish(host, &work, host.address(&with))?;
            let plain = Finish {
                moments: None,
                ..work
            };
            finish(host, &plain, host.address(&without))?;
            let before = with.read();
            moments(host, images, host.address(&with), host.address(&second))?;
            assert_eq!(with.read(), before, "moments change nothing");
            let memory = [with, without, first, second];
            Ok(memory.iter().map(|memory| memory.read()).collect())
        });
        let Some(ran) = ran else { return };
        let added = |present: bool, x: f32| if present { f64::from(x) } else { 0.0 };
        let expected: Vec<f64> = (0..images.numbers())
            .map(|i| {
                let (image, c) = (i / (images.pixels() * channels), i % channels);
                let sum = f64::from(y[i])
                    + added(with_bias, bias[c])
                    + added(with_vector, vector[image * channels + c])
                    + added(with_residual, residual[i]);
                0.75 * sum
            })
            .collect();
        assert_near(
            &format!("{images:?}, {with_bias}, {with_vector}, {with_residual}"),
            &ran[0],
            &expected,
            allowed(kind, 1e-6),
        );
        assert_eq!(ran[0], ran[1]);
        assert_eq!(ran[2], ran[3]);
        assert_moments(images, &ran[2], &ran[0], 1e-6);
    }

    /// Squares less the square of the mean would keep two digits here.
    #[test]
    fn a_mean_far_from_zero_costs_no_digits() {
        for images in sizes()
            .into_iter()
            .filter(|images| images.kind == Kind::F32)
        {
            let x: Vec<f32> = wave(images.numbers(), 1)
                .iter()
                .map(|x| 500.0 + 1.7 * x)
                .collect();
            let ran = Host::both_ways(|host| {
                let x = host.floats(&x);
                let to = host.allocate(Kind::F32, moments_length(images))?;
                moments(host, images, host.address(&x), host.address(&to))?;
                Ok(vec![to.read()])
            });
            let Some(ran) = ran else { return };
            assert_moments(images, &ran[0], &x, 2e-6);
        }
    }

    /// The same numbers for an image, whatever the others are and how many.
    #[test]
    fn moments_of_an_image_do_not_depend_on_the_batch() {
        for images in sizes() {
            let one = Images { count: 1, ..images };
            let x = kept(images.kind, &wave(images.numbers(), 1));
            let ran = Host::both_ways(|host| {
                let of = |images: Images| -> Result<Vec<f32>> {
                    let x = host.numbers(images.kind, &x[..images.numbers()]);
                    let to = host.allocate(Kind::F32, moments_length(images))?;
                    moments(host, images, host.address(&x), host.address(&to))?;
                    Ok(to.read())
                };
                Ok(vec![of(one)?, of(images)?])
            });
            let Some(ran) = ran else { return };
            assert_eq!(ran[0], ran[1][..ran[0].len()], "{images:?}");
        }
    }
}
