//! Many pictures on one sheet: grids of samples, strips of moments.

use crate::{Error, Picture, Result};

/// Pixels between the pictures of a grid, and around them.
pub const GRID_PADDING: usize = 2;

/// Grey level between pictures: visible beside black and white backgrounds alike.
pub const GRID_BACKGROUND: u8 = 64;

/// The pictures in reading order on a sheet ceil(√N) wide.
///
/// # Errors
/// [`Error::NoPictures`], [`Error::UnequalPictures`].
pub fn grid(pictures: &[Picture]) -> Result<Picture> {
    let root = pictures.len().isqrt();
    let columns = root + usize::from(root * root < pictures.len());
    grid_with_columns(pictures, columns.max(1))
}

/// What [`sheet`] enlarges pictures up to, in pixels a side.
pub const SHEET_SIDE: usize = 32;

/// [`grid`] for people: pictures too small to be looked at are first enlarged by whole pixels, as often as fits
/// into [`SHEET_SIDE`]: 8x8 four times, 28x28 and everything larger not at all.
///
/// # Errors
/// As [`grid`].
pub fn sheet(pictures: &[Picture]) -> Result<Picture> {
    grid(&enlarged(pictures))
}

/// [`grid_with_columns`] for people: enlarged as a [`sheet`].
///
/// # Errors
/// As [`grid_with_columns`].
pub fn sheet_with_columns(pictures: &[Picture], columns: usize) -> Result<Picture> {
    grid_with_columns(&enlarged(pictures), columns)
}

/// The pictures in reading order on a sheet of so many columns, or fewer if there are fewer.
///
/// # Errors
/// [`Error::NoPictures`], [`Error::NoColumns`], [`Error::UnequalPictures`].
pub fn grid_with_columns(pictures: &[Picture], columns: usize) -> Result<Picture> {
    let Some(first) = pictures.first() else {
        return Err(Error::NoPictures("a grid"));
    };
    if columns == 0 {
        return Err(Error::NoColumns);
    }
    check_equal(first, pictures)?;
    let columns = columns.min(pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let (cell_width, cell_height) = (first.width() + GRID_PADDING, first.height() + GRID_PADDING);
    let width = columns * cell_width + GRID_PADDING;
    let height = rows * cell_height + GRID_PADDING;
    let mut sheet = Picture::filled(width, height, first.channels(), GRID_BACKGROUND)?;
    for (index, picture) in pictures.iter().enumerate() {
        let left = GRID_PADDING + index % columns * cell_width;
        let top = GRID_PADDING + index / columns * cell_height;
        sheet.paste(picture, left, top);
    }
    Ok(sheet)
}

/// Pictures of any sizes beside one another, their tops in line.
///
/// # Errors
/// [`Error::NoPictures`]; [`Error::UnequalPictures`] when they differ in channels.
pub fn beside(pictures: &[Picture]) -> Result<Picture> {
    let height = pictures.iter().map(Picture::height).max();
    let Some((first, height)) = pictures.first().zip(height) else {
        return Err(Error::NoPictures("a row"));
    };
    let alike = |picture: &Picture| picture.channels() == first.channels();
    if !pictures.iter().all(alike) {
        check_equal(first, pictures)?;
    }
    let width: usize = pictures.iter().map(|p| p.width() + GRID_PADDING).sum();
    let (width, height) = (width + GRID_PADDING, height + 2 * GRID_PADDING);
    let mut row = Picture::filled(width, height, first.channels(), GRID_BACKGROUND)?;
    let mut left = GRID_PADDING;
    for picture in pictures {
        row.paste(picture, left, GRID_PADDING);
        left += picture.width() + GRID_PADDING;
    }
    Ok(row)
}

/// Time from left to right: `moments[k][i]` is image i at moment k, and stands in row i, column k.
///
/// # Errors
/// [`Error::NoPictures`], [`Error::UnequalMoments`], [`Error::UnequalPictures`].
pub fn strip(moments: &[Vec<Picture>]) -> Result<Picture> {
    let rows = moments.first().map_or(0, Vec::len);
    if rows == 0 {
        return Err(Error::NoPictures("a strip"));
    }
    if let Some((moment, given)) = moments
        .iter()
        .map(Vec::len)
        .enumerate()
        .find(|&(_, given)| given != rows)
    {
        return Err(Error::UnequalMoments {
            moment,
            given,
            expected: rows,
        });
    }
    let reading_order = (0..rows).flat_map(|row| moments.iter().map(move |moment| &moment[row]));
    grid_with_columns(&reading_order.cloned().collect::<Vec<_>>(), moments.len())
}

fn enlarged(pictures: &[Picture]) -> Vec<Picture> {
    let times = enlargement(pictures);
    pictures.iter().map(|p| p.enlarged(times)).collect()
}

/// How often pictures of this size are to be enlarged to be looked at.
pub(crate) fn enlargement(pictures: &[Picture]) -> usize {
    let side = pictures.iter().map(|p| p.width().max(p.height())).max();
    side.map_or(1, |side| (SHEET_SIDE / side).max(1))
}

pub(crate) fn check_equal(first: &Picture, pictures: &[Picture]) -> Result<()> {
    let kind = |picture: &Picture| (picture.width(), picture.height(), picture.channels());
    let (first_width, first_height, first_channels) = kind(first);
    match pictures
        .iter()
        .enumerate()
        .find(|(_, picture)| kind(picture) != kind(first))
    {
        None => Ok(()),
        Some((index, picture)) => {
            let (width, height, channels) = kind(picture);
            Err(Error::UnequalPictures {
                index,
                width,
                height,
                channels,
                first_width,
                first_height,
                first_channels,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(width: usize, height: usize, channels: usize, level: u8) -> Picture {
        Picture::filled(width, height, channels, level).unwrap()
    }

    #[test]
    fn a_grid_is_the_rounded_up_root_wide() {
        let sizes = [
            (1, 1, 1),
            (2, 2, 1),
            (3, 2, 2),
            (4, 2, 2),
            (5, 3, 2),
            (9, 3, 3),
            (10, 4, 3),
            (64, 8, 8),
            (65, 9, 8),
        ];
        for (n, columns, rows) in sizes {
            let sheet = grid(&vec![level(6, 4, 3, 9); n]).unwrap();
            assert_eq!(
                (sheet.width(), sheet.height()),
                (columns * 8 + 2, rows * 6 + 2),
                "{n}"
            );
        }
    }

    #[test]
    fn pictures_of_any_size_stand_in_a_row() {
        let pictures = [
            Picture::new(2, 1, 1, vec![1, 2]).unwrap(),
            Picture::new(1, 2, 1, vec![3, 4]).unwrap(),
        ];
        let b = GRID_BACKGROUND;
        let row = beside(&pictures).unwrap();
        assert_eq!((row.width(), row.height()), (9, 6));
        assert_eq!(row.pixels()[18..27], [b, b, 1, 2, b, b, 3, b, b]);
        assert_eq!(row.pixels()[27..36], [b, b, b, b, b, b, 4, b, b]);
        assert!(beside(&[]).is_err());
        assert!(beside(&[level(2, 2, 1, 0), level(2, 2, 3, 0)]).is_err());
    }

    #[test]
    fn a_grid_pixel_by_pixel() {
        let pictures = [
            Picture::new(2, 1, 1, vec![1, 2]).unwrap(),
            Picture::new(2, 1, 1, vec![3, 4]).unwrap(),
            Picture::new(2, 1, 1, vec![5, 6]).unwrap(),
        ];
        let b = GRID_BACKGROUND;
        let empty = [b; 10];
        let rows = [
            empty,
            empty,
            [b, b, 1, 2, b, b, 3, 4, b, b],
            empty,
            empty,
            [b, b, 5, 6, b, b, b, b, b, b],
            empty,
            empty,
        ];
        assert_eq!(grid(&pictures).unwrap().pixels(), rows.concat());
        let column = grid_with_columns(&pictures, 1).unwrap();
        assert_eq!((column.width(), column.height()), (6, 11));
        let row = grid_with_columns(&pictures, 7).unwrap();
        assert_eq!((row.width(), row.height()), (14, 5));
    }

    #[test]
    fn a_sheet_enlarges_small_pictures_and_leaves_others() {
        let sizes = [
            (8, 8, 4),
            (7, 5, 4),
            (10, 3, 3),
            (16, 16, 2),
            (17, 2, 1),
            (28, 28, 1),
            (64, 32, 1),
        ];
        for (width, height, times) in sizes {
            let made = sheet(&[level(width, height, 1, 9)]).unwrap();
            let expected = (width * times + 4, height * times + 4);
            assert_eq!((made.width(), made.height()), expected, "{width}x{height}");
        }
        let three = vec![level(10, 3, 1, 9); 3];
        let made = sheet_with_columns(&three, 2).unwrap();
        assert_eq!((made.width(), made.height()), (2 * 32 + 2, 2 * 11 + 2));
        let picture = Picture::new(2, 1, 3, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let row = [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6];
        assert_eq!(picture.enlarged(2).pixels(), [row, row].concat());
    }

    #[test]
    fn colour_stays_with_its_pixel() {
        let pictures = [
            Picture::new(1, 1, 3, vec![1, 2, 3]).unwrap(),
            Picture::new(1, 1, 3, vec![4, 5, 6]).unwrap(),
        ];
        let sheet = grid(&pictures).unwrap();
        assert_eq!((sheet.width(), sheet.height(), sheet.channels()), (8, 5, 3));
        assert_eq!(sheet.pixels()[(2 * 8 + 2) * 3..][..3], [1, 2, 3]);
        assert_eq!(sheet.pixels()[(2 * 8 + 5) * 3..][..3], [4, 5, 6]);
    }

    #[test]
    fn a_strip_has_a_row_an_image_and_a_column_a_moment() {
        let moments: Vec<Vec<Picture>> = (0..3u8)
            .map(|moment| {
                (0..2u8)
                    .map(|image| level(6, 4, 1, 10 * image + moment))
                    .collect()
            })
            .collect();
        let sheet = strip(&moments).unwrap();
        assert_eq!((sheet.width(), sheet.height()), (3 * 8 + 2, 2 * 6 + 2));
        for (image, moment) in [(0, 0), (0, 2), (1, 1)] {
            let place = (2 + image * 6) * sheet.width() + 2 + moment * 8;
            assert_eq!(sheet.pixels()[place], (10 * image + moment) as u8);
        }
    }

    #[track_caller]
    fn check_error(result: Result<Picture>, expected: &str) {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_cannot_be_a_sheet_is_refused() {
        check_error(grid(&[]), "a grid needs at least one picture");
        check_error(sheet(&[]), "a grid needs at least one picture");
        check_error(strip(&[]), "a strip needs at least one picture");
        check_error(strip(&[vec![]]), "a strip needs at least one picture");
        check_error(
            grid_with_columns(&[level(1, 1, 1, 0)], 0),
            "a grid needs at least 1 column",
        );
        check_error(
            grid(&[level(6, 4, 1, 0), level(6, 4, 1, 0), level(4, 6, 1, 0)]),
            "picture 2 is 4x6 with 1 channels (width x height), picture 0 is 6x4 with 1: \
             one grid holds pictures of one kind",
        );
        check_error(
            grid(&[level(6, 4, 1, 0), level(6, 4, 3, 0)]),
            "picture 1 is 6x4 with 3 channels (width x height), picture 0 is 6x4 with 1: \
             one grid holds pictures of one kind",
        );
        check_error(
            strip(&[vec![level(1, 1, 1, 0)], vec![]]),
            "moment 1 of the strip has 0 pictures, moment 0 has 1",
        );
    }
}
