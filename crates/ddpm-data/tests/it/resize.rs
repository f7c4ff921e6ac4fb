//! Resizing: every value as Pillow has it.

use ddpm_data::resize::{Filter, resize};

fn size(text: &str) -> (usize, usize) {
    let (height, width) = text.split_once('x').unwrap();
    (height.parse().unwrap(), width.parse().unwrap())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The recipe is `tests/golden/resize.py`.
#[test]
fn every_value_is_pillows() {
    let golden = include_str!("../golden/resize.txt");
    let mut cases = 0;
    for line in golden.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let [pattern, channels, from, to, filter, expected] = words[..] else {
            panic!("{line}");
        };
        let channels: usize = channels.parse().unwrap();
        let (height, width) = size(from);
        let value = |i: usize| match pattern {
            "mixed" => (i * i * 7 + i * 13 + 5) % 256,
            _ => 255 * (i * i / 5 % 2),
        };
        let pixels: Vec<u8> = (0..height * width * channels)
            .map(|i| value(i) as u8)
            .collect();
        let filter = match filter {
            "area" => Filter::Area,
            _ => Filter::Bicubic,
        };
        let found = resize(&pixels, (height, width, channels), size(to), filter).unwrap();
        assert_eq!(
            hexadecimal(&found),
            expected,
            "{pattern} {channels} {from} {to} {filter:?}"
        );
        cases += 1;
    }
    assert_eq!(cases, 22);
}

#[test]
fn a_plain_image_stays_plain() {
    for filter in [Filter::Area, Filter::Bicubic] {
        for value in [0, 1, 127, 254, 255] {
            let out = resize(&[value; 37 * 23 * 3], (37, 23, 3), (12, 31), filter).unwrap();
            assert_eq!(out, [value; 12 * 31 * 3]);
        }
    }
}

#[test]
fn what_has_no_size_is_refused() {
    let refused = |bytes: usize, from, to| {
        resize(&vec![0; bytes], from, to, Filter::Area)
            .unwrap_err()
            .to_string()
    };
    let rest = "expected sizes of 1 and more, and height x width x channels bytes";
    assert_eq!(
        refused(0, (0, 3, 1), (2, 2)),
        format!("an image of 0x3x1 in 0 bytes to 2x2: {rest}")
    );
    assert_eq!(
        refused(3, (1, 3, 1), (2, 0)),
        format!("an image of 1x3x1 in 3 bytes to 2x0: {rest}")
    );
    assert_eq!(
        refused(5, (2, 3, 1), (2, 2)),
        format!("an image of 2x3x1 in 5 bytes to 2x2: {rest}")
    );
}
