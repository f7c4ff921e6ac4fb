//! A walk from noise to image, seen at some of its moments.

use candle_core::Tensor;

use crate::{Picture, PixelMap, Result, captioned_strip, sheet};

/// The pictures of some moments of a walk, evenly spread, the first (x_T) and the last (x_0) among them.
///
/// A walk of S steps has S + 1 moments. A film is shown every one of them, batch after batch, and keeps those it is for.
#[derive(Debug, Clone)]
pub struct Film {
    kept: Vec<usize>,
    moments: Vec<Moment>,
}

/// One moment of a walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moment {
    /// The time t of x_t; 0 for the finished images.
    pub time: usize,
    /// The images then, in the order in which they were shown.
    pub pictures: Vec<Picture>,
}

impl Film {
    /// For a walk of so many steps; keeps at most so many moments, but the first and the last always.
    pub fn new(steps: usize, at_most: usize) -> Film {
        let kept = spread(steps + 1, at_most);
        Film {
            moments: vec![Moment::default(); kept.len()],
            kept,
        }
    }

    /// The moments that are kept.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// Takes the images of a moment (0 is x_T, and S is x_0) and its time, if that moment is kept.
    ///
    /// # Shapes
    /// `images`: `[B, C, H, W]`, in the numbers of `map`.
    ///
    /// # Errors
    /// As [`Picture::from_tensor`].
    pub fn show(
        &mut self,
        moment: usize,
        time: usize,
        images: &Tensor,
        map: &PixelMap,
    ) -> Result<()> {
        if let Ok(place) = self.kept.binary_search(&moment) {
            let kept = &mut self.moments[place];
            kept.time = time;
            kept.pictures.extend(Picture::from_tensor(images, map)?);
        }
        Ok(())
    }

    /// What was kept, x_T first.
    pub fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// The first `images` images, a row each, time from left to right and named above every column; of at most so many
    /// moments.
    ///
    /// # Errors
    /// As [`captioned_strip`].
    pub fn strip(&self, images: usize, at_most: usize) -> Result<Picture> {
        let moments = spread(self.moments.len(), at_most);
        let moments: Vec<&Moment> = moments.iter().map(|&m| &self.moments[m]).collect();
        let shown = |moment: &&Moment| {
            let shown = images.min(moment.pictures.len());
            moment.pictures[..shown].to_vec()
        };
        let pictures: Vec<Vec<Picture>> = moments.iter().map(shown).collect();
        let times: Vec<String> = moments.iter().map(|m| m.time.to_string()).collect();
        captioned_strip(&pictures, &times)
    }

    /// The first `images` images of every moment as a [`sheet`]: the frames of an animation.
    ///
    /// # Errors
    /// As [`sheet`].
    pub fn frames(&self, images: usize) -> Result<Vec<Picture>> {
        let frame = |moment: &Moment| sheet(&moment.pictures[..images.min(moment.pictures.len())]);
        self.moments.iter().map(frame).collect()
    }
}

/// At most `at_most` of the numbers below `of`, evenly spread, 0 and the last always among them.
fn spread(of: usize, at_most: usize) -> Vec<usize> {
    let last = of.saturating_sub(1);
    let gaps = at_most.max(2).min(of).saturating_sub(1);
    let place = |k: usize| (k * last + gaps / 2).checked_div(gaps).unwrap_or(0);
    (0..=gaps).map(place).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn moments_are_spread_from_first_to_last() {
        assert_eq!(spread(51, 6), [0, 10, 20, 30, 40, 50]);
        assert_eq!(spread(5, 9), [0, 1, 2, 3, 4]);
        assert_eq!(spread(51, 0), [0, 50]);
        assert_eq!(spread(2, 9), [0, 1]);
        assert_eq!(spread(1, 9), [0]);
        for of in 2..200 {
            for at_most in 2..20 {
                let places = spread(of, at_most);
                assert_eq!(places.len(), at_most.min(of));
                assert_eq!((places[0], *places.last().unwrap()), (0, of - 1));
                let gaps: Vec<usize> = places.windows(2).map(|w| w[1] - w[0]).collect();
                let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
                assert!(
                    *least >= 1 && most - least <= 1,
                    "{of} {at_most}: {places:?}"
                );
            }
        }
    }

    #[test]
    fn batches_join_and_moments_keep_their_time() {
        let map = PixelMap::MinusOneToOne;
        let images = |first: u8, n: usize| {
            let bytes: Vec<u8> = (0..n * 2 * 3).map(|k| first + k as u8).collect();
            let x = map.to_tensor(&bytes, n, (2, 3, 1), &Device::Cpu).unwrap();
            (x, Picture::from_bytes(&bytes, n, (2, 3, 1)).unwrap())
        };
        let mut film = Film::new(4, 3);
        let mut expected = vec![Vec::new(); 3];
        for (batch, n) in [(0u8, 2), (1, 1)] {
            for moment in 0..=4usize {
                let (x, pictures) = images(50 * batch + 10 * moment as u8, n);
                film.show(moment, 100 - 25 * moment, &x, &map).unwrap();
                if moment % 2 == 0 {
                    expected[moment / 2].extend(pictures);
                }
            }
        }
        let times: Vec<usize> = film.moments().iter().map(|m| m.time).collect();
        assert_eq!(times, [100, 50, 0]);
        for (moment, expected) in film.moments().iter().zip(&expected) {
            assert_eq!(&moment.pictures, expected);
        }
        assert_eq!(film.frames(9).unwrap()[1], sheet(&expected[1]).unwrap());
        assert_eq!(
            film.frames(1).unwrap()[2],
            sheet(&expected[2][..1]).unwrap()
        );
        let two = [expected[0][..2].to_vec(), expected[2][..2].to_vec()];
        let strip = captioned_strip(&two, &["100".into(), "0".into()]).unwrap();
        assert_eq!(film.strip(2, 2).unwrap(), strip);
    }
}
