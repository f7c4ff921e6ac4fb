//! Animated GIFs that say how they were made, written whole or not at all.

use std::path::Path;
use std::time::Duration;

use crate::grid::check_equal;
use crate::palette::palette;
use crate::whole_file::write_whole;
use crate::{Error, Picture, Result};

/// How long the frames of an animation are shown; GIF counts in hundredths of a second, at least two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Every frame but the last.
    pub frame: Duration,
    /// The last, before it all begins again.
    pub last: Duration,
}

impl Timing {
    /// About five seconds for so many frames, each between 0.04 and 0.5 seconds, and two more for the last.
    pub fn of(frames: usize) -> Timing {
        let hundredths = (500 / frames.max(1)).clamp(4, 50) as u64;
        Timing {
            frame: Duration::from_millis(10 * hundredths),
            last: Duration::from_secs(2),
        }
    }
}

/// Writes pictures of equal size and channels as a GIF that plays for ever, with the texts that belong to it as comments.
///
/// Grey pictures come back byte for byte, and so do those with at most 256 colours; others get the 256 colours that fit
/// each frame best. The file is written as [`write_png`](crate::write_png) writes.
///
/// # Errors
/// [`Error::NoPictures`], [`Error::UnequalPictures`], [`Error::EncodeGif`], [`Error::NoFolder`], [`Error::NotAFile`],
/// [`Error::Write`].
pub fn write_gif(
    path: impl AsRef<Path>,
    frames: &[Picture],
    timing: Timing,
    metadata: &[(&str, String)],
) -> Result<()> {
    write_whole(path.as_ref(), &encode_gif(frames, timing, metadata)?)
}

/// The bytes of the GIF that [`write_gif`] would write; equal input gives equal bytes.
///
/// # Errors
/// [`Error::NoPictures`], [`Error::UnequalPictures`], [`Error::EncodeGif`].
pub fn encode_gif(
    frames: &[Picture],
    timing: Timing,
    metadata: &[(&str, String)],
) -> Result<Vec<u8>> {
    let Some(first) = frames.first() else {
        return Err(Error::NoPictures("an animation"));
    };
    check_equal(first, frames)?;
    let (width, height) = (first.width(), first.height());
    let refuse = |reason: String| Error::EncodeGif {
        width,
        height,
        reason,
    };
    let (Ok(columns), Ok(rows)) = (u16::try_from(width), u16::try_from(height)) else {
        return Err(refuse("a side has at most 65535 pixels".into()));
    };
    encode(frames, (columns, rows), timing, metadata).map_err(|error| refuse(error.to_string()))
}

fn encode(
    frames: &[Picture],
    (width, height): (u16, u16),
    timing: Timing,
    metadata: &[(&str, String)],
) -> std::result::Result<Vec<u8>, gif::EncodingError> {
    let grey = frames.iter().all(|frame| frame.channels() == 1);
    let greys: Vec<u8> = match grey {
        true => (0..=255).flat_map(|level| [level; 3]).collect(),
        false => Vec::new(),
    };
    let mut encoder = gif::Encoder::new(Vec::new(), width, height, &greys)?;
    encoder.set_repeat(gif::Repeat::Infinite)?;
    for (keyword, text) in metadata {
        let text = format!("{keyword}: {text}");
        let blocks: Vec<&[u8]> = text.as_bytes().chunks(255).collect();
        encoder.write_raw_extension(gif::Extension::Comment.into(), &blocks)?;
    }
    for (index, picture) in frames.iter().enumerate() {
        let shown = match index + 1 == frames.len() {
            true => timing.last,
            false => timing.frame,
        };
        let mut frame = match grey {
            true => gif::Frame::from_indexed_pixels(width, height, picture.pixels(), None),
            false => {
                let (colours, indices) = palette(picture.pixels());
                gif::Frame::from_palette_pixels(width, height, indices, colours.concat(), None)
            }
        };
        frame.delay = hundredths(shown);
        encoder.write_frame(&frame)?;
    }
    encoder.into_inner()
}

/// Below two hundredths of a second browsers fall back to ten.
fn hundredths(time: Duration) -> u16 {
    u16::try_from(time.as_millis() / 10)
        .unwrap_or(u16::MAX)
        .max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        frame: Duration::from_millis(70),
        last: Duration::from_millis(1500),
    };

    /// Every frame as RGB with its delay, the comments, and whether it plays for ever.
    fn decode(bytes: &[u8]) -> (Vec<(Vec<u8>, u16)>, bool) {
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(bytes).unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            let rgb = frame.buffer.chunks_exact(4).flat_map(|p| p[..3].to_vec());
            frames.push((rgb.collect(), frame.delay));
        }
        (frames, decoder.repeat() == gif::Repeat::Infinite)
    }

    #[test]
    fn grey_comes_back_byte_for_byte() {
        let frame = |shift: u8| {
            let pixels = (0..=255u8).map(|k| k.wrapping_mul(7).wrapping_add(shift));
            Picture::new(32, 8, 1, pixels.collect()).unwrap()
        };
        let frames = [frame(0), frame(3), frame(90)];
        let texts = [("seed", "5".to_string()), ("note", "ε".repeat(200))];
        let bytes = encode_gif(&frames, TIMING, &texts).unwrap();
        let (found, for_ever) = decode(&bytes);
        assert!(for_ever);
        assert_eq!(found.len(), 3);
        for (k, (rgb, delay)) in found.iter().enumerate() {
            let expected: Vec<u8> = frames[k].pixels().iter().flat_map(|&p| [p; 3]).collect();
            assert_eq!(*rgb, expected, "frame {k}");
            assert_eq!(*delay, [7, 7, 150][k]);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(text.contains("seed: 5"));
        assert_eq!(bytes, encode_gif(&frames, TIMING, &texts).unwrap());
    }

    #[test]
    fn few_colours_are_exact_and_many_are_near() {
        let few = Picture::new(6, 4, 3, (0..72).map(|k| k * 3).collect()).unwrap();
        let (found, _) = decode(&encode_gif(std::slice::from_ref(&few), TIMING, &[]).unwrap());
        assert_eq!(found[0], (few.pixels().to_vec(), 150));

        // A plane of 4096 colours: as near as its palette.
        let plane = (0..64 * 64).flat_map(|k| {
            let (x, y) = (k % 64, k / 64);
            [4 * x as u8, 4 * y as u8, (2 * x + 2 * y) as u8]
        });
        let many = Picture::new(64, 64, 3, plane.collect()).unwrap();
        let (found, _) = decode(&encode_gif(std::slice::from_ref(&many), TIMING, &[]).unwrap());
        let (colours, indices) = palette(many.pixels());
        let expected = indices.iter().flat_map(|&i| colours[usize::from(i)]);
        assert_eq!(found[0].0, expected.collect::<Vec<u8>>());
    }

    #[test]
    fn what_gif_cannot_hold_is_refused() {
        let message = |frames: &[Picture]| encode_gif(frames, TIMING, &[]).unwrap_err().to_string();
        assert!(message(&[]).contains("an animation"), "{}", message(&[]));
        let wide = Picture::new(70_000, 1, 1, vec![0; 70_000]).unwrap();
        assert_eq!(
            message(&[wide]),
            "cannot encode a GIF of 70000x1: a side has at most 65535 pixels"
        );
        let unequal = [
            Picture::new(2, 1, 1, vec![0; 2]).unwrap(),
            Picture::new(1, 2, 1, vec![0; 2]).unwrap(),
        ];
        assert!(encode_gif(&unequal, TIMING, &[]).is_err());
    }

    #[test]
    fn a_gif_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walk.gif");
        let frames = [Picture::new(2, 1, 1, vec![0, 9]).unwrap()];
        write_gif(&path, &frames, TIMING, &[]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[..6], *b"GIF89a");
        let before = std::fs::read(&path).unwrap();
        assert!(write_gif(&path, &[], TIMING, &[]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_animation_lasts_about_five_seconds() {
        let frames = [(1, 500), (9, 500), (51, 90), (101, 40), (1001, 40)];
        for (frames, milliseconds) in frames {
            assert_eq!(
                Timing::of(frames).frame,
                Duration::from_millis(milliseconds)
            );
        }
    }
}
