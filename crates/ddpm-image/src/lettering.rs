//! Letters of strokes: no font file, any size; printable ASCII, and a box for everything else.

/// Units from one letter to the next beyond its own width.
const GAP: f64 = 2.0;

/// Units from the top of a capital letter to the line it stands on.
const CAPITAL: f64 = 6.0;

/// The polylines of a text whose capitals are `height` high and whose first letter's top left corner is the origin;
/// points are (x, y) with y downwards. A polyline of equal points is a dot.
pub(crate) fn strokes(text: &str, height: f64) -> Vec<Vec<(f64, f64)>> {
    let unit = height / CAPITAL;
    let mut lines = Vec::new();
    let mut left = 0.0;
    for letter in text.chars() {
        let points = |line: &str| -> Vec<(f64, f64)> {
            let digits: Vec<f64> = line.bytes().map(|d| f64::from(d - b'0')).collect();
            let pairs = digits.chunks_exact(2);
            pairs.map(|p| ((left + p[0]) * unit, p[1] * unit)).collect()
        };
        lines.extend(glyph(letter).split_whitespace().map(points));
        left += width(letter) + GAP;
    }
    lines
}

/// How wide a text is whose capitals are `height` high.
pub(crate) fn text_width(text: &str, height: f64) -> f64 {
    let units: f64 = text.chars().map(|letter| width(letter) + GAP).sum();
    (units - GAP).max(0.0) * height / CAPITAL
}

fn width(letter: char) -> f64 {
    match letter {
        ' ' => 2.0,
        '0'..='9' => 4.0,
        _ => {
            let xs = glyph(letter)
                .split_whitespace()
                .flat_map(|line| line.bytes().step_by(2));
            xs.max().map_or(0.0, |x| f64::from(x - b'0'))
        }
    }
}

/// Polylines on a grid, two digits a point: x from 0, y from 0 (top of a capital) over 2 (top of an `x`) and 6 (the line) to
/// 8 (foot of a `g`).
fn glyph(letter: char) -> &'static str {
    match letter {
        ' ' => "",
        '!' => "0004 0606",
        '"' => "0002 2022",
        '#' => "1016 3036 0242 0444",
        '$' => "413010010213334445361605 2026",
        '%' => "0640 0010110100 3545463635",
        '&' => "460201102031320405162644",
        '\'' => "0002",
        '(' => "10020416",
        ')' => "00121406",
        '*' => "2125 0244 4204",
        '+' => "0343 2125",
        ',' => "0607",
        '-' => "0333",
        '.' => "0606",
        '/' => "0640",
        '0' => "103041453616050110",
        '1' => "112026",
        '2' => "01103041420646",
        '3' => "0110304142334445361605 2333",
        '4' => "36300444",
        '5' => "40000312324345361605",
        '6' => "413010010516364544331304",
        '7' => "004016",
        '8' => "13020110304142331304051636454433",
        '9' => "051636454130100102133342",
        ':' => "0202 0606",
        ';' => "0202 0607",
        '<' => "310335",
        '=' => "0242 0444",
        '>' => "013305",
        '?' => "01103041422324 2626",
        '@' => "3212143432 344441301001051646",
        'A' => "062046 1434",
        'B' => "00063645443303 3342413000",
        'C' => "4130100105163645",
        'D' => "00062644422000",
        'E' => "40000646 0333",
        'F' => "400006 0333",
        'G' => "41301001051636454323",
        'H' => "0006 4046 0343",
        'I' => "0006",
        'J' => "3035261605",
        'K' => "0006 400346",
        'L' => "000646",
        'M' => "0600234046",
        'N' => "06004640",
        'O' => "103041453616050110",
        'P' => "06003041423303",
        'Q' => "103041453616050110 2446",
        'R' => "06003041423303 2346",
        'S' => "413010010213334445361605",
        'T' => "0040 2026",
        'U' => "000516364540",
        'V' => "002640",
        'W' => "0016325660",
        'X' => "0046 0640",
        'Y' => "002340 2326",
        'Z' => "00400646",
        '[' => "10000616",
        '\\' => "0046",
        ']' => "00101606",
        '^' => "022042",
        '_' => "0747",
        '`' => "0011",
        'a' => "4246 4332120305163645",
        'b' => "0006 0312324345361605",
        'c' => "4332120305163645",
        'd' => "4046 4332120305163645",
        'e' => "04444332120305163645",
        'f' => "30201116 0232",
        'g' => "4247381807 4332120305163645",
        'h' => "0006 0312324346",
        'i' => "0206 0000",
        'j' => "22271808 2020",
        'k' => "0006 320436",
        'l' => "000516",
        'm' => "0206 0312223336 3342526366",
        'n' => "0206 0312324346",
        'o' => "123243453616050312",
        'p' => "0208 0312324345361605",
        'q' => "4248 4332120305163645",
        'r' => "0206 031232",
        's' => "43321203143445361605",
        't' => "10152636 0232",
        'u' => "0205163645 4246",
        'v' => "022642",
        'w' => "0216335662",
        'x' => "0246 0642",
        'y' => "0226 4218",
        'z' => "02420646",
        '{' => "20111203141526",
        '|' => "0007",
        '}' => "00111223141506",
        '~' => "04133443",
        _ => "0040460600",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_letter_is_drawn_inside_its_box() {
        let box_of_the_unknown = glyph('é');
        for letter in (b'!'..=b'~').map(char::from) {
            assert_ne!(glyph(letter), box_of_the_unknown, "{letter} is missing");
            for line in glyph(letter).split_whitespace() {
                assert!(line.len() >= 4 && line.len() % 2 == 0, "{letter}: {line}");
                let pairs: Vec<&[u8]> = line.as_bytes().chunks(2).collect();
                let inside =
                    |p: &&[u8]| (b'0'..=b'6').contains(&p[0]) && (b'0'..=b'8').contains(&p[1]);
                assert!(pairs.iter().all(inside), "{letter}: {line}");
            }
        }
        let mut all: Vec<&str> = (b'!'..=b'~').map(|b| glyph(b.into())).collect();
        all.sort_unstable();
        all.dedup();
        assert!(all.len() >= 92, "letters look alike: {}", all.len());
    }

    #[test]
    fn a_text_is_as_wide_as_its_strokes() {
        for text in ["0.25", "held-out loss", "Wj", "i"] {
            let right = strokes(text, 12.0)
                .concat()
                .into_iter()
                .map(|(x, _)| x)
                .fold(0.0, f64::max);
            assert!((text_width(text, 12.0) - right).abs() < 1e-9, "{text}");
        }
        assert_eq!(text_width("", 12.0), 0.0);
        assert_eq!(text_width("10", 6.0), 10.0);
    }
}
