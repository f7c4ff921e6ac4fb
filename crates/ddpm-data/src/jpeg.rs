//! What a JPEG's markers say before it is decoded: decoders fill what a cut-off file lacks with grey, and guess at inks.

/// Start of image, end of image.
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;

/// Pixels that a byte can stand for at most: each block of 8x8 takes at least one bit (T.81, F.1.2 and G.1.2).
const PIXELS_A_BYTE: usize = 8 * 64;

/// Confirms that a file that begins as a JPEG has an end, the colours of a screen, and bytes enough for its pixels.
///
/// The markers are those of ITU-T T.81, Annex B. Other files pass.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    if !bytes.starts_with(&[0xff, SOI, 0xff]) {
        return Ok(());
    }
    let mut at = 2;
    loop {
        let Some((marker, next)) = marker(bytes, at) else {
            return Err(format!(
                "is a JPEG without an end: cut off after {} bytes",
                bytes.len()
            ));
        };
        at = next;
        if marker == EOI {
            return Ok(());
        }
        if marker == 0x01 || (0xd0..=0xd8).contains(&marker) {
            continue; // these have no content
        }
        let content = |place: usize| bytes.get(at + place).copied();
        let length = match (content(0), content(1)) {
            (Some(high), Some(low)) => usize::from(high) << 8 | usize::from(low),
            _ => continue,
        };
        // The frame headers are C0 to CF without C4, C8 and CC.
        let frame = (0xc0..=0xcf).contains(&marker) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
        if frame && content(7) == Some(4) {
            return Err(
                "is a JPEG in the four inks of a printer (CMYK), expected grey or colour: convert it first"
                    .to_owned(),
            );
        }
        let side =
            |place| Some(usize::from(content(place)?) << 8 | usize::from(content(place + 1)?));
        if let (true, Some(height), Some(width)) = (frame, side(3), side(5))
            && height * width > bytes.len().saturating_mul(PIXELS_A_BYTE)
        {
            return Err(format!(
                "promises {height}x{width} pixels (height x width), more than its {} bytes can hold: is it whole?",
                bytes.len()
            ));
        }
        at += length.max(2);
    }
}

/// The next marker from `at` on, and where its content begins. In the data of a scan, FF 00 is a value.
fn marker(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let mut at = at;
    loop {
        let found = bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        at += found + 1;
        match *bytes.get(at)? {
            0xff => {}
            0x00 => at += 1,
            marker => return Some((marker, at + 1)),
        }
    }
}
