//! How near samples are to the images that were learnt from, and how near other images are: a look for memorised ones.

use ddpm_data::Dataset;
use ddpm_image::Picture;
use rayon::prelude::*;

/// The nearest image of a data set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Its number in the data set.
    pub index: usize,
    /// Whether it is nearest when mirrored, left for right.
    pub mirrored: bool,
    /// The root of the mean squared difference, in levels of 0 to 255.
    pub distance: f64,
}

/// The nearest image of `data` to each picture; with `flip` the images also count mirrored, as training shows them.
/// `without[i]` is the number of an image that does not count for picture i. `None` where no image is left.
///
/// Pictures must have the data's size and channels. Of equally near images the first is taken, unmirrored before mirrored.
pub fn nearest(
    pictures: &[Picture],
    data: &Dataset,
    flip: bool,
    without: Option<&[usize]>,
) -> Vec<Option<Neighbour>> {
    let looks: Vec<[Vec<u8>; 2]> = pictures
        .iter()
        .map(|picture| [picture.pixels().to_vec(), mirrored(picture)])
        .collect();
    let looks = &looks;
    let in_part = |part: usize| {
        let mut best = vec![None; pictures.len()];
        for index in part * PART..data.len().min((part + 1) * PART) {
            let image = data.image(index);
            for (of, best) in best.iter_mut().enumerate() {
                if without.is_some_and(|without| without[of] == index) {
                    continue;
                }
                let most = best.map_or(u64::MAX, |best: Best| best.squares);
                for (turned, look) in looks[of].iter().take(1 + usize::from(flip)).enumerate() {
                    let most = best.map_or(most, |best| best.squares);
                    if let Some(squares) = squares_below(look, &image, most) {
                        *best = Some(Best {
                            squares,
                            index,
                            mirrored: turned == 1,
                        });
                    }
                }
            }
        }
        best
    };
    let nothing = || vec![None; pictures.len()];
    let nearer = |one: Vec<Option<Best>>, other: Vec<Option<Best>>| {
        let pairs = one.into_iter().zip(other);
        pairs
            .map(|(one, other)| one.into_iter().chain(other).min())
            .collect()
    };
    let best = (0..data.len().div_ceil(PART))
        .into_par_iter()
        .map(in_part)
        .reduce(nothing, nearer);
    let size = (data.height() * data.width() * data.channels()) as f64;
    let neighbour = |best: Best| Neighbour {
        index: best.index,
        mirrored: best.mirrored,
        distance: (best.squares as f64 / size).sqrt(),
    };
    best.into_iter().map(|best| best.map(neighbour)).collect()
}

/// Images that one thread looks at in a row.
const PART: usize = 512;

/// Ordered by what is nearer, then by what comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Best {
    squares: u64,
    index: usize,
    mirrored: bool,
}

/// The sum of squared differences, where it is below `most`.
fn squares_below(one: &[u8], other: &[u8], most: u64) -> Option<u64> {
    // So many squares fit into 32 bits, and it pays to stop between them.
    const RUN: usize = 256;
    let mut sum = 0;
    for (one, other) in one.chunks(RUN).zip(other.chunks(RUN)) {
        let squares = one.iter().zip(other).map(|(a, b)| {
            let difference = u32::from(a.abs_diff(*b));
            difference * difference
        });
        sum += u64::from(squares.sum::<u32>());
        if sum >= most {
            return None;
        }
    }
    Some(sum)
}

fn mirrored(picture: &Picture) -> Vec<u8> {
    let (row, channels) = (picture.width() * picture.channels(), picture.channels());
    let rows = picture.pixels().chunks_exact(row);
    rows.flat_map(|row| row.rchunks_exact(channels).flatten().copied())
        .collect()
}

/// Samples with their nearest training images, nearest first, and the distances of images that were not made by the network.
pub(super) struct Likeness {
    pub(super) pairs: Vec<Pair>,
    /// Sorted.
    pub(super) distances: Vec<f64>,
    /// Sorted: those of the images that samples are compared with.
    pub(super) others: Vec<f64>,
    pub(super) compared_with: Others,
}

/// Which images the samples are compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// Of the test split, which the network has never seen.
    HeldOut,
    /// Of the training split, each with the nearest other one: there is no test split.
    Training,
}

/// A sample and the training image nearest to it, as it is nearest.
pub(super) struct Pair {
    pub(super) sample: Picture,
    pub(super) image: Picture,
    pub(super) neighbour: Neighbour,
}

/// Compares samples with the training images, and with `held_out`, or, where there are none, with training images.
pub(super) fn likeness(
    samples: &[Picture],
    held_out: &[Picture],
    data: &Dataset,
    flip: bool,
) -> ddpm_image::Result<Likeness> {
    let mut pairs = Vec::new();
    for (sample, neighbour) in samples.iter().zip(nearest(samples, data, flip, None)) {
        let Some(neighbour) = neighbour else { continue };
        let image = picture(data, neighbour.index)?;
        let image = match neighbour.mirrored {
            true => Picture::new(
                image.width(),
                image.height(),
                image.channels(),
                mirrored(&image),
            )?,
            false => image,
        };
        pairs.push(Pair {
            sample: sample.clone(),
            image,
            neighbour,
        });
    }
    pairs.sort_by(|a, b| a.neighbour.distance.total_cmp(&b.neighbour.distance));
    let (others, compared_with) = match held_out {
        [] => {
            let some = evenly(data.len(), samples.len());
            let pictures = some.iter().map(|index| picture(data, *index));
            let pictures = pictures.collect::<ddpm_image::Result<Vec<_>>>()?;
            let others = nearest(&pictures, data, flip, Some(&some));
            (others, Others::Training)
        }
        held_out => (nearest(held_out, data, flip, None), Others::HeldOut),
    };
    let mut others: Vec<f64> = others.into_iter().flatten().map(|n| n.distance).collect();
    others.sort_by(f64::total_cmp);
    Ok(Likeness {
        distances: pairs.iter().map(|pair| pair.neighbour.distance).collect(),
        pairs,
        others,
        compared_with,
    })
}

/// An image of a data set as a picture.
pub(super) fn picture(data: &Dataset, index: usize) -> ddpm_image::Result<Picture> {
    let image = data.image(index).to_vec();
    Picture::new(data.width(), data.height(), data.channels(), image)
}

/// At most `count` of the numbers below `of`, evenly spread: files of folders come class by class.
pub(super) fn evenly(of: usize, count: usize) -> Vec<usize> {
    let count = count.min(of);
    (0..count).map(|k| k * of / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` images of 4 rows, 6 columns and `channels` channels that look like noise.
    fn images(n: usize, channels: usize, seed: u32) -> Vec<u8> {
        let scramble = |k: u32| {
            let k = (k ^ seed << 24).wrapping_mul(0x9e37_79b1);
            let k = (k ^ k >> 15).wrapping_mul(0x85eb_ca6b);
            (k ^ k >> 13) as u8
        };
        (0..(n * 24 * channels) as u32).map(scramble).collect()
    }

    fn data(n: usize, channels: usize) -> Dataset {
        Dataset::new(
            "noise",
            images(n, channels, 1),
            (4, 6, channels),
            None,
            vec![],
        )
        .unwrap()
    }

    /// The same by the definition.
    fn brute_force(
        picture: &Picture,
        data: &Dataset,
        flip: bool,
        without: Option<usize>,
    ) -> (f64, usize) {
        let mut best = (f64::INFINITY, 0);
        for index in (0..data.len()).filter(|index| Some(*index) != without) {
            let there = self::picture(data, index).unwrap();
            for turned in 0..=usize::from(flip) {
                let mut sum = 0.0;
                for y in 0..4 {
                    for x in 0..6 {
                        for c in 0..data.channels() {
                            let at = |p: &Picture, x: usize| {
                                f64::from(p.pixels()[(y * 6 + x) * p.channels() + c])
                            };
                            let other = if turned == 1 { 5 - x } else { x };
                            sum += (at(picture, x) - at(&there, other)).powi(2);
                        }
                    }
                }
                let distance = (sum / (24 * data.channels()) as f64).sqrt();
                if distance < best.0 {
                    best = (distance, index);
                }
            }
        }
        best
    }

    #[test]
    fn the_nearest_is_that_of_brute_force() {
        for channels in [1, 3] {
            let data = data(1100, channels); // three parts
            let pictures =
                Picture::from_bytes(&images(5, channels, 77), 5, (4, 6, channels)).unwrap();
            let without = [3, 4, 5, 6, 1099];
            for flip in [false, true] {
                for (of, found) in nearest(&pictures, &data, flip, None)
                    .into_iter()
                    .enumerate()
                {
                    let (distance, index) = brute_force(&pictures[of], &data, flip, None);
                    let found = found.unwrap();
                    assert_eq!(found.index, index, "{channels} {flip} {of}");
                    assert!((found.distance - distance).abs() < 1e-9);
                }
                let found = nearest(&pictures, &data, flip, Some(&without));
                for (of, found) in found.into_iter().enumerate() {
                    let (_, index) = brute_force(&pictures[of], &data, flip, Some(without[of]));
                    assert_eq!(found.unwrap().index, index);
                }
            }
        }
    }

    #[test]
    fn a_copy_is_found_also_when_mirrored() {
        let data = data(600, 3);
        let copy = picture(&data, 571).unwrap();
        let turned = Picture::new(6, 4, 3, mirrored(&copy)).unwrap();
        let pictures = [copy, turned.clone()];
        let found = nearest(&pictures, &data, true, None);
        let expected = |mirrored| {
            Some(Neighbour {
                index: 571,
                mirrored,
                distance: 0.0,
            })
        };
        assert_eq!(found, [expected(false), expected(true)]);
        let unturned = nearest(&pictures[1..], &data, false, None)[0].unwrap();
        assert!(unturned.distance > 10.0);

        let likeness = likeness(&pictures, &[], &data, true).unwrap();
        assert_eq!(likeness.pairs[1].image, turned, "shown as it is nearest");
        assert!(likeness.others.iter().all(|distance| *distance > 10.0));
        assert!(likeness.compared_with == Others::Training);
    }

    #[test]
    fn a_data_set_of_one_image_has_no_other() {
        let data = data(1, 1);
        let alone = picture(&data, 0).unwrap();
        assert_eq!(
            nearest(std::slice::from_ref(&alone), &data, true, Some(&[0])),
            [None]
        );
        let likeness = likeness(&[alone], &[], &data, false).unwrap();
        assert_eq!((likeness.distances, likeness.others), (vec![0.0], vec![]));
    }

    #[test]
    fn some_of_many_are_spread() {
        assert_eq!(evenly(10, 4), [0, 2, 5, 7]);
        assert_eq!(evenly(3, 9), [0, 1, 2]);
        assert!(evenly(0, 4).is_empty());
    }
}
