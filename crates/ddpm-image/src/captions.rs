//! Sheets with words on them: strips whose columns have a time, grids whose pictures have a caption.

use crate::canvas::{Anchor, Canvas};
use crate::grid::{check_equal, enlargement};
use crate::lettering::text_width;
use crate::{Error, GRID_BACKGROUND, GRID_PADDING, Picture, Result, grid_with_columns, strip};

/// How high capitals are, in pixels.
const CAPITAL: f64 = 7.0;

/// The space that a line of words takes, in pixels.
const LINE: usize = 13;

/// Light on the grey between pictures.
const INK: u8 = 230;

/// [`strip`] for people: enlarged as a [`sheet`](crate::sheet), and with a caption above every column. The result is RGB.
///
/// # Errors
/// As [`strip`]; [`Error::Captions`] when there is not one for each moment.
pub fn captioned_strip(moments: &[Vec<Picture>], captions: &[String]) -> Result<Picture> {
    check_captions(captions, moments.len(), "moments")?;
    let times = enlargement(&moments.concat());
    let enlarged = |moment: &Vec<Picture>| moment.iter().map(|p| p.enlarged(times)).collect();
    let enlarged: Vec<Vec<Picture>> = moments.iter().map(enlarged).collect();
    let strip = strip(&enlarged)?;
    let column = enlarged[0][0].width() + GRID_PADDING;
    let mut whole = Picture::filled(
        strip.width(),
        strip.height() + LINE - GRID_PADDING,
        strip.channels(),
        GRID_BACKGROUND,
    )?;
    whole.paste(&strip, 0, LINE - GRID_PADDING);
    let mut canvas = Canvas::on(&whole);
    for (k, caption) in captions.iter().enumerate() {
        let middle = GRID_PADDING + k * column + (column - GRID_PADDING) / 2;
        let base = (middle as f64, 3.0 + CAPITAL);
        canvas.text(caption, base, CAPITAL, Anchor::Middle, [INK; 3]);
    }
    canvas.into_picture()
}

/// [`grid_with_columns`] for people: enlarged as a [`sheet`](crate::sheet), and with a caption below every picture. The
/// result is RGB.
///
/// # Errors
/// As [`grid_with_columns`]; [`Error::Captions`] when there is not one for each picture.
pub fn captioned_grid(
    pictures: &[Picture],
    captions: &[String],
    columns: usize,
) -> Result<Picture> {
    check_captions(captions, pictures.len(), "pictures")?;
    if let Some(first) = pictures.first() {
        check_equal(first, pictures)?;
    }
    let times = enlargement(pictures);
    let widest = captions
        .iter()
        .map(|caption| text_width(caption, CAPITAL).ceil() as usize + 2);
    let widest = widest.max().unwrap_or(0);
    let cell = |picture: &Picture| -> Result<Picture> {
        let picture = picture.enlarged(times);
        let (width, height) = (picture.width().max(widest), picture.height() + LINE);
        let mut cell = Picture::filled(width, height, picture.channels(), GRID_BACKGROUND)?;
        cell.paste(&picture, (width - picture.width()) / 2, 0);
        Ok(cell)
    };
    let cells = pictures.iter().map(cell).collect::<Result<Vec<_>>>()?;
    let sheet = grid_with_columns(&cells, columns)?;
    let (width, height) = (cells[0].width(), cells[0].height());
    let columns = columns.min(cells.len());
    let mut canvas = Canvas::on(&sheet);
    for (index, caption) in captions.iter().enumerate() {
        let left = GRID_PADDING + index % columns * (width + GRID_PADDING);
        let top = GRID_PADDING + index / columns * (height + GRID_PADDING);
        let base = (top + height - LINE) as f64 + 3.0 + CAPITAL;
        let middle = left as f64 + width as f64 / 2.0;
        canvas.text(caption, (middle, base), CAPITAL, Anchor::Middle, [INK; 3]);
    }
    canvas.into_picture()
}

fn check_captions(captions: &[String], expected: usize, what: &'static str) -> Result<()> {
    match captions.len() {
        given if given == expected => Ok(()),
        given => Err(Error::Captions {
            given,
            expected,
            what,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of 4 rows and 6 columns that all differ.
    fn pictures(n: usize, channels: usize) -> Vec<Picture> {
        let bytes: Vec<u8> = (0..n * 24 * channels).map(|k| (k * 5) as u8).collect();
        Picture::from_bytes(&bytes, n, (4, 6, channels)).unwrap()
    }

    /// The pixels of `part`, as RGB, found in `whole` at (left, top).
    #[track_caller]
    fn check_part(whole: &Picture, part: &Picture, left: usize, top: usize) {
        for y in 0..part.height() {
            for x in 0..part.width() {
                let at = |p: &Picture, x: usize, y: usize| -> Vec<u8> {
                    let start = (y * p.width() + x) * p.channels();
                    let pixel = &p.pixels()[start..start + p.channels()];
                    pixel.repeat(3 / p.channels())
                };
                assert_eq!(at(whole, left + x, top + y), at(part, x, y), "{x} {y}");
            }
        }
    }

    #[test]
    fn a_strip_keeps_its_pixels_below_the_captions() {
        for channels in [1, 3] {
            let all = pictures(6, channels);
            let moments = [all[0..2].to_vec(), all[2..4].to_vec(), all[4..6].to_vec()];
            let captions = ["1000", "500", "0"].map(String::from);
            let whole = captioned_strip(&moments, &captions).unwrap();
            assert_eq!(whole.channels(), 3);
            // 6x4 fits five times into 32.
            assert_eq!((whole.width(), whole.height()), (2 + 3 * 32, 13 + 2 * 22));
            for (k, moment) in moments.iter().enumerate() {
                for (row, picture) in moment.iter().enumerate() {
                    check_part(&whole, &picture.enlarged(5), 2 + 32 * k, 13 + 22 * row);
                }
            }
            let words = &whole.pixels()[..3 * whole.width() * 11];
            assert!(words.iter().any(|&p| p > 200), "no captions");
        }
    }

    #[test]
    fn a_grid_keeps_its_pixels_above_the_captions() {
        for channels in [1, 3] {
            let all = pictures(3, channels);
            let captions = ["1.5", "a long caption", ""].map(String::from);
            let whole = captioned_grid(&all, &captions, 2).unwrap();
            let cell = (text_width("a long caption", CAPITAL).ceil() as usize + 2).max(30);
            assert_eq!(whole.width(), 2 + 2 * (cell + 2));
            assert_eq!(whole.height(), 2 + 2 * (20 + 13 + 2));
            for (index, picture) in all.iter().enumerate() {
                let (column, row) = (index % 2, index / 2);
                let left = 2 + column * (cell + 2) + (cell - 30) / 2;
                check_part(&whole, &picture.enlarged(5), left, 2 + row * 35);
            }
        }
    }

    #[test]
    fn captions_that_are_missing_are_missed() {
        let error = captioned_grid(&pictures(3, 1), &["1".into()], 2).unwrap_err();
        let expected = "1 captions for 3 pictures: one for each was expected";
        assert_eq!(error.to_string(), expected);
        let error = captioned_strip(&[pictures(3, 1)], &[]).unwrap_err();
        let expected = "0 captions for 1 moments: one for each was expected";
        assert_eq!(error.to_string(), expected);
        assert!(captioned_strip(&[], &[]).is_err());
        assert!(captioned_grid(&[], &[], 2).is_err());
    }
}
