//! Lines, dots and letters on a picture, with smooth edges.

use crate::lettering::{strokes, text_width};
use crate::{Picture, Result};

/// Red, green and blue.
pub(crate) type Colour = [u8; 3];

/// A picture that is being drawn on; coordinates are pixels, (0, 0) the top left corner of the first.
pub(crate) struct Canvas {
    width: usize,
    height: usize,
    /// RGB.
    pixels: Vec<u8>,
    /// How much of each pixel the stroke being drawn covers; all 0 between strokes.
    coverage: Vec<f32>,
}

/// Where a text stands relative to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    pub(crate) fn new(width: usize, height: usize, colour: Colour) -> Self {
        Self {
            width,
            height,
            pixels: colour.repeat(width * height),
            coverage: vec![0.0; width * height],
        }
    }

    /// A canvas with a picture on it.
    pub(crate) fn on(picture: &Picture) -> Self {
        let pixels = match picture.channels() {
            1 => picture.pixels().iter().flat_map(|&p| [p; 3]).collect(),
            _ => picture.pixels().to_vec(),
        };
        Self {
            width: picture.width(),
            height: picture.height(),
            coverage: vec![0.0; picture.width() * picture.height()],
            pixels,
        }
    }

    pub(crate) fn into_picture(self) -> Result<Picture> {
        Picture::new(self.width, self.height, 3, self.pixels)
    }

    /// A connected line; one that overlaps itself is not darker there.
    pub(crate) fn line(
        &mut self,
        points: &[(f64, f64)],
        thickness: f64,
        colour: Colour,
        opacity: f64,
    ) {
        let reach = thickness / 2.0 + 0.5;
        let mut touched = Vec::new();
        // The first point once more, so that a single one is a dot.
        let first = points.first().map(|point| (*point, *point));
        let segments = points.windows(2).map(|pair| (pair[0], pair[1]));
        for (a, b) in segments.chain(first) {
            let columns = range(a.0.min(b.0) - reach, a.0.max(b.0) + reach, self.width);
            for y in range(a.1.min(b.1) - reach, a.1.max(b.1) + reach, self.height) {
                for x in columns.clone() {
                    let centre = (x as f64 + 0.5, y as f64 + 0.5);
                    let covered = (reach - distance(centre, a, b)).clamp(0.0, 1.0) as f32;
                    let place = y * self.width + x;
                    if covered > self.coverage[place] {
                        if self.coverage[place] == 0.0 {
                            touched.push(place);
                        }
                        self.coverage[place] = covered;
                    }
                }
            }
        }
        for place in touched {
            let share = f64::from(std::mem::take(&mut self.coverage[place])) * opacity;
            for (pixel, ink) in self.pixels[3 * place..][..3].iter_mut().zip(colour) {
                let mixed = f64::from(*pixel) + share * (f64::from(ink) - f64::from(*pixel));
                *pixel = mixed.round() as u8;
            }
        }
    }

    /// A filled circle.
    pub(crate) fn dot(&mut self, centre: (f64, f64), radius: f64, colour: Colour) {
        self.line(&[centre], 2.0 * radius, colour, 1.0);
    }

    /// A line of text on the base line `y`, its capitals `height` high.
    pub(crate) fn text(
        &mut self,
        text: &str,
        (x, y): (f64, f64),
        height: f64,
        anchor: Anchor,
        colour: Colour,
    ) {
        let width = text_width(text, height);
        let left = match anchor {
            Anchor::Start => x,
            Anchor::Middle => x - width / 2.0,
            Anchor::End => x - width,
        };
        let place = |(dx, dy)| (left + dx, y - height + dy);
        for stroke in strokes(text, height) {
            let stroke: Vec<(f64, f64)> = stroke.into_iter().map(place).collect();
            self.line(&stroke, height / 8.0, colour, 1.0);
        }
    }

    /// A line of text that reads upwards, its middle at the point.
    pub(crate) fn upright_text(
        &mut self,
        text: &str,
        (x, y): (f64, f64),
        height: f64,
        colour: Colour,
    ) {
        let start = y + text_width(text, height) / 2.0;
        let place = |(dx, dy)| (x - height + dy, start - dx);
        for stroke in strokes(text, height) {
            let stroke: Vec<(f64, f64)> = stroke.into_iter().map(place).collect();
            self.line(&stroke, height / 8.0, colour, 1.0);
        }
    }
}

/// The pixels between two coordinates that are on the canvas.
fn range(low: f64, high: f64, side: usize) -> std::ops::Range<usize> {
    // Casts of floats stop at the ends of the integer's range.
    let low = low.floor().max(0.0) as usize;
    low..(high.ceil().max(0.0) as usize).min(side)
}

/// From a point to the nearest point of the segment a b.
fn distance(p: (f64, f64), a: (f64, f64), b: (f64, f64)) -> f64 {
    let (dx, dy) = (b.0 - a.0, b.1 - a.1);
    let length = dx * dx + dy * dy;
    let along = match length > 0.0 {
        true => (((p.0 - a.0) * dx + (p.1 - a.1) * dy) / length).clamp(0.0, 1.0),
        false => 0.0,
    };
    (p.0 - a.0 - along * dx).hypot(p.1 - a.1 - along * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHITE: Colour = [255; 3];
    const INK: Colour = [0, 100, 200];

    #[test]
    fn a_line_covers_what_it_covers() {
        let mut canvas = Canvas::new(6, 4, WHITE);
        // One pixel thick, along the middle of row 1, twice over the same pixels.
        canvas.line(&[(1.5, 1.5), (4.5, 1.5), (1.5, 1.5)], 1.0, INK, 1.0);
        let picture = canvas.into_picture().unwrap();
        for (place, pixel) in picture.pixels().chunks(3).enumerate() {
            let inked = place / 6 == 1 && (1..=4).contains(&(place % 6));
            let expected = if inked { INK } else { WHITE };
            assert_eq!(pixel, expected, "{place}");
        }
        let mut canvas = Canvas::new(6, 4, WHITE);
        canvas.line(&[(1.5, 2.0), (4.5, 2.0)], 1.0, INK, 0.5); // between two rows: half on each
        let picture = canvas.into_picture().unwrap();
        let pixel = &picture.pixels()[3 * (6 + 2)..][..3];
        assert_eq!(pixel, [191, 216, 241]);
    }

    #[test]
    fn what_leaves_the_canvas_is_cut_off() {
        let mut canvas = Canvas::new(5, 3, WHITE);
        canvas.line(&[(-1e9, 1.5), (1e9, 1.5)], 1.0, INK, 1.0);
        canvas.dot((-20.0, 400.0), 3.0, INK);
        canvas.text("outside", (30.0, -9.0), 9.0, Anchor::Start, INK);
        let picture = canvas.into_picture().unwrap();
        assert_eq!(picture.pixels()[3 * 5..3 * 10], INK.repeat(5));
        assert_eq!(picture.pixels()[..15], WHITE.repeat(5));
    }

    #[test]
    fn a_text_stands_where_it_should() {
        for (anchor, left, right) in [
            (Anchor::Start, 20, 30),
            (Anchor::Middle, 15, 25),
            (Anchor::End, 10, 20),
        ] {
            let mut canvas = Canvas::new(40, 20, WHITE);
            canvas.text("10", (20.0, 15.0), 6.0, anchor, INK);
            let picture = canvas.into_picture().unwrap();
            let inked = picture.pixels().chunks(3).enumerate();
            let places = inked.filter(|(_, p)| *p != WHITE).map(|(place, _)| place);
            let (xs, ys): (Vec<usize>, Vec<usize>) = places.map(|p| (p % 40, p / 40)).unzip();
            assert!(xs.iter().min().unwrap().abs_diff(left) <= 1, "{anchor:?}");
            assert!(xs.iter().max().unwrap().abs_diff(right) <= 1, "{anchor:?}");
            assert!(ys.iter().min().unwrap().abs_diff(9) <= 1);
            assert!(ys.iter().max().unwrap().abs_diff(15) <= 1);
        }
    }
}
