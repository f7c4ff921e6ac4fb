//! PNG files that say how they were made, written whole or not at all.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::whole_file::write_whole;
use crate::{Error, Picture, Result};

/// Writes a picture and the texts that belong to it (seed, settings) as a PNG.
///
/// The bytes go to a temporary sibling, which is synced and then renamed: `path` either keeps what
/// it held or holds the whole new picture. The folder must exist.
///
/// ASCII texts become `tEXt` chunks, all others `iTXt` (UTF-8); image viewers, `exiftool` and
/// Pillow's `Image.text` show both.
///
/// # Errors
/// [`Error::Keyword`], [`Error::Text`], [`Error::NoFolder`], [`Error::NotAFile`],
/// [`Error::Write`] (no permission, disk full), [`Error::Encode`].
pub fn write_png(
    path: impl AsRef<Path>,
    picture: &Picture,
    metadata: &[(&str, String)],
) -> Result<()> {
    write_whole(path.as_ref(), &encode_png(picture, metadata)?)
}

/// The bytes of the PNG that [`write_png`] would write; equal input gives equal bytes.
///
/// # Errors
/// [`Error::Keyword`], [`Error::Text`], [`Error::Encode`].
pub fn encode_png(picture: &Picture, metadata: &[(&str, String)]) -> Result<Vec<u8>> {
    for (keyword, text) in metadata {
        check_text(keyword, text)?;
    }
    encode(picture, metadata).map_err(|error| Error::Encode {
        width: picture.width(),
        height: picture.height(),
        reason: error.to_string(),
    })
}

/// A picture and its texts (`tEXt` first, then `iTXt`, each in file order) from a PNG file.
///
/// # Errors
/// [`Error::Read`], [`Error::NotAPng`], [`Error::PngKind`] for other than 8-bit grey or RGB.
pub fn read_png(path: impl AsRef<Path>) -> Result<(Picture, Vec<(String, String)>)> {
    let path = path.as_ref();
    let not_a_png = |reason: String| Error::NotAPng {
        path: path.to_path_buf(),
        reason,
    };
    let file = File::open(path).map_err(|source| Error::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let mut reader = png::Decoder::new(BufReader::new(file))
        .read_info()
        .map_err(|error| not_a_png(error.to_string()))?;
    let channels = match reader.output_color_type() {
        (png::ColorType::Grayscale, png::BitDepth::Eight) => 1,
        (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
        (color, depth) => {
            let kind = format!("{}-bit {color:?}", depth as u8);
            return Err(Error::PngKind {
                path: path.to_path_buf(),
                kind,
            });
        }
    };
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| not_a_png("it is too large".into()))?;
    let mut pixels = vec![0; size];
    let frame = reader
        .next_frame(&mut pixels)
        .map_err(|error| not_a_png(error.to_string()))?;
    reader
        .finish()
        .map_err(|error| not_a_png(error.to_string()))?;
    let picture = Picture::new(
        frame.width as usize,
        frame.height as usize,
        channels,
        pixels,
    )?;
    let info = reader.info();
    let mut texts = Vec::new();
    for chunk in &info.uncompressed_latin1_text {
        texts.push((chunk.keyword.clone(), chunk.text.clone()));
    }
    for chunk in &info.utf8_text {
        let text = chunk
            .get_text()
            .map_err(|error| not_a_png(error.to_string()))?;
        texts.push((chunk.keyword.clone(), text));
    }
    Ok((picture, texts))
}

fn encode(
    picture: &Picture,
    metadata: &[(&str, String)],
) -> std::result::Result<Vec<u8>, png::EncodingError> {
    // A side that does not fit becomes 0, which the encoder refuses.
    let side = |side: usize| u32::try_from(side).unwrap_or(0);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side(picture.width()), side(picture.height()));
    let grey = picture.channels() == 1;
    encoder.set_color(if grey {
        png::ColorType::Grayscale
    } else {
        png::ColorType::Rgb
    });
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in metadata {
        let (keyword, text) = (keyword.to_string(), text.clone());
        if text.is_ascii() {
            encoder.add_text_chunk(keyword, text)?;
        } else {
            encoder.add_itxt_chunk(keyword, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.pixels())?;
    writer.finish()?;
    Ok(bytes)
}

/// PNG's rules for keywords (section 11.3.4.2 of the specification), narrowed to ASCII.
fn check_text(keyword: &str, text: &str) -> Result<()> {
    let printable = keyword
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    let spaced = keyword.trim() == keyword && !keyword.contains("  ");
    if !(1..=79).contains(&keyword.len()) || !printable || !spaced {
        return Err(Error::Keyword {
            keyword: keyword.to_string(),
        });
    }
    if text.contains('\0') {
        return Err(Error::Text {
            keyword: keyword.to_string(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn grey() -> Picture {
        Picture::new(6, 4, 1, (0..24).map(|k| k * 10).collect()).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn what_a_killed_process_left_behind_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        for count in 0..2000 {
            let name = format!(".ddpm-image.{}.{count}.tmp", std::process::id());
            fs::write(folder.path().join(name), b"half").unwrap();
        }
        let picture = Picture::new(1, 1, 1, vec![7]).unwrap();
        let path = folder.path().join("a.png");
        write_png(&path, &picture, &[]).unwrap();
        assert_eq!(read_png(&path).unwrap().0, picture);
    }

    #[test]
    fn a_picture_and_its_texts_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let rgb = Picture::new(6, 4, 3, (0..72).map(|k| k * 3).collect()).unwrap();
        let long = "line one\nline two = \"quoted\"\n".repeat(500);
        let texts = [
            ("seed", u64::MAX.to_string()),
            ("settings", long),
            ("empty", String::new()),
            ("Title", "Zahlen, die es nie gab – ∑ ε".to_string()),
        ];
        for (name, picture) in [("grey.png", grey()), ("rgb.png", rgb)] {
            let path = folder.path().join(name);
            write_png(&path, &picture, &texts).unwrap();
            let (again, found) = read_png(&path).unwrap();
            assert_eq!(again, picture);
            let expected: Vec<_> = texts
                .iter()
                .map(|(key, text)| (key.to_string(), text.clone()))
                .collect();
            assert_eq!(found, expected);
        }
        assert_eq!(
            names(folder.path()).len(),
            2,
            "a temporary file was left behind"
        );
    }

    #[test]
    fn equal_input_gives_equal_bytes() {
        let texts = [("seed", "1".to_string())];
        let bytes = encode_png(&grey(), &texts).unwrap();
        assert_eq!(bytes, encode_png(&grey(), &texts).unwrap());
        assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
    }

    #[test]
    fn an_old_file_is_replaced_whole_or_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.png");
        fs::write(&path, "what was there before").unwrap();
        assert!(write_png(&path, &grey(), &[("", String::new())]).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"what was there before");
        write_png(&path, &grey(), &[]).unwrap();
        assert_eq!(read_png(&path).unwrap(), (grey(), vec![]));
        assert_eq!(names(folder.path()), ["samples.png"]);
    }

    #[test]
    fn a_missing_folder_is_named_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere");
        let path = missing.join("samples.png");
        let message = write_png(&path, &grey(), &[]).unwrap_err().to_string();
        let (path, missing_name) = (path.display(), missing.display());
        assert_eq!(
            message,
            format!("cannot write {path}: {missing_name} is not an existing folder")
        );
        assert!(!missing.exists());
        // A file where a folder should be.
        fs::write(&missing, "").unwrap();
        let again = write_png(missing.join("samples.png"), &grey(), &[])
            .unwrap_err()
            .to_string();
        assert_eq!(again, message);
    }

    #[test]
    fn a_folder_is_not_a_file() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            folder.path().to_path_buf(),
            PathBuf::from("/"),
            PathBuf::from(""),
        ] {
            let message = write_png(&path, &grey(), &[]).unwrap_err().to_string();
            let expected = "the name of a file was expected, not a folder";
            assert_eq!(
                message,
                format!("cannot write {}: {expected}", path.display())
            );
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_systems_refusal_names_the_path() {
        // Nobody, not even root, makes files in /proc.
        let message = write_png("/proc/samples.png", &grey(), &[])
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("cannot write /proc/samples.png: "),
            "{message}"
        );
    }

    #[test]
    fn impossible_texts_are_refused() {
        for keyword in [
            "",
            " seed",
            "seed ",
            "a  b",
            "größe",
            "a\nb",
            &"k".repeat(80),
        ] {
            let message = encode_png(&grey(), &[(keyword, String::new())])
                .unwrap_err()
                .to_string();
            assert_eq!(
                message,
                format!(
                    "`{keyword}` cannot be a keyword of PNG metadata: 1 to 79 printable ASCII \
                     characters without outer or double spaces were expected"
                )
            );
        }
        encode_png(&grey(), &[(&"k".repeat(79), String::new())]).unwrap();
        let message = encode_png(&grey(), &[("seed", "1\0".to_string())])
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "the PNG metadata `seed` holds a NUL character, which PNG cannot store"
        );
    }

    #[test]
    fn what_is_no_picture_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let check = |start: &str| {
            let message = read_png(&path).unwrap_err().to_string();
            let start = start.replace("{}", &path.display().to_string());
            assert!(message.starts_with(&start), "{message}");
        };
        check("cannot read {}: ");
        fs::write(&path, "hello").unwrap();
        check("{} is not a readable PNG: ");
        let whole = encode_png(&grey(), &[]).unwrap();
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        check("{} is not a readable PNG: ");
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(png::ColorType::Rgba);
        encoder
            .write_header()
            .unwrap()
            .write_image_data(&[1, 2, 3, 4])
            .unwrap();
        fs::write(&path, bytes).unwrap();
        check("{} is a PNG of 8-bit Rgba: 8-bit grey or RGB was expected");
    }
}
