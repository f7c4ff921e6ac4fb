//! Protocol buffers by hand: the fields of TensorFlow's `event.proto`, `summary.proto` and `histogram.proto` that are used.

use super::Shown;

/// A message that is being written, field by field.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

/// Wire types.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;

impl Message {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn number(&mut self, field: u64, x: u64) {
        self.key(field, VARINT);
        self.varint(x);
    }

    pub(super) fn double(&mut self, field: u64, x: f64) {
        self.key(field, EIGHT_BYTES);
        self.0.extend(x.to_le_bytes());
    }

    pub(super) fn text(&mut self, field: u64, text: &str) {
        self.block(field, text.as_bytes());
    }

    pub(super) fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.block(field, &inner.0);
    }

    fn float(&mut self, field: u64, x: f32) {
        self.key(field, FOUR_BYTES);
        self.0.extend(x.to_le_bytes());
    }

    fn block(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn doubles(&mut self, field: u64, numbers: &[f64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.block(field, &bytes);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn varint(&mut self, mut x: u64) {
        while x >= 128 {
            self.0.push(x as u8 | 128);
            x >>= 7;
        }
        self.0.push(x as u8);
    }
}

/// Fills a `Summary.Value`, whose tag is there already.
pub(super) fn fill(value: &mut Message, shown: &Shown) {
    match shown {
        Shown::Scalar(x) => value.float(2, *x as f32),
        Shown::Image {
            width,
            height,
            channels,
            png,
        } => value.message(4, |image| {
            image.number(1, *height as u64);
            image.number(2, *width as u64);
            image.number(3, *channels as u64);
            image.block(4, png);
        }),
        Shown::Histogram(histogram) => value.message(5, |message| {
            message.double(1, histogram.least);
            message.double(2, histogram.greatest);
            message.double(3, histogram.count);
            message.double(4, histogram.sum);
            message.double(5, histogram.sum_of_squares);
            message.doubles(6, &histogram.limits);
            message.doubles(7, &histogram.counts);
        }),
    }
}

/// How numbers are spread over thirty parts of equal width, as many as TensorBoard itself makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    least: f64,
    greatest: f64,
    count: f64,
    sum: f64,
    sum_of_squares: f64,
    /// The right end of every part.
    limits: Vec<f64>,
    /// How many numbers are in every part.
    counts: Vec<f64>,
}

impl Histogram {
    /// The spread of these numbers; `None` where one of them is not finite, or there are none.
    pub fn of(numbers: &[f32]) -> Option<Self> {
        const PARTS: usize = 30;
        let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut sum, mut sum_of_squares) = (0.0, 0.0);
        for x in numbers.iter().map(|x| f64::from(*x)) {
            (least, greatest) = (least.min(x), greatest.max(x));
            sum += x;
            sum_of_squares += x * x;
        }
        if !sum_of_squares.is_finite() || numbers.is_empty() {
            return None;
        }
        // Equal numbers are in the middle of parts that are as small as can be told apart.
        let (low, high) = match greatest > least {
            true => (least, greatest),
            false => {
                let room = 1e-6 * (1.0 + least.abs());
                (least - room, least + room)
            }
        };
        let width = (high - low) / PARTS as f64;
        let mut counts = vec![0.0; PARTS];
        for x in numbers.iter().map(|x| f64::from(*x)) {
            // Casts stop at 0; the greatest number is in the last part.
            counts[(((x - low) / width) as usize).min(PARTS - 1)] += 1.0;
        }
        Some(Self {
            least: low,
            greatest: high,
            count: numbers.len() as f64,
            sum,
            sum_of_squares,
            limits: (1..=PARTS).map(|k| low + k as f64 * width).collect(),
            counts,
        })
    }
}

/// The step of an event; 0 where none is written, `None` where it is no message.
pub(super) fn step(event: &[u8]) -> Option<u64> {
    let mut step = 0;
    let mut rest = event;
    while !rest.is_empty() {
        if let (2, number, _) = field(&mut rest)? {
            step = number;
        }
    }
    Some(step)
}

/// Takes the next field off a message: which it is, its number if it is one, its bytes if it has some.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, u64, &'a [u8])> {
    let key = varint(rest)?;
    let (number, length) = match key & 7 {
        VARINT => (varint(rest)?, 0),
        EIGHT_BYTES => (0, 8),
        FOUR_BYTES => (0, 4),
        LENGTH => (0, usize::try_from(varint(rest)?).ok()?),
        _ => return None,
    };
    Some((key >> 3, number, take(rest, length)?))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut x = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        x |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(x);
        }
    }
    None
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// The scalars of an event.
#[cfg(test)]
pub(super) fn scalars(event: &[u8]) -> Vec<(String, f32)> {
    let inside = |mut message: &[u8], of: u64| -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !message.is_empty() {
            let (field, _, bytes) = field(&mut message).unwrap();
            if field == of {
                found.push(bytes.to_vec());
            }
        }
        found
    };
    let summaries = inside(event, 5);
    let values = summaries.iter().flat_map(|summary| inside(summary, 1));
    let scalar = |value: Vec<u8>| {
        let number = inside(&value, 2).pop()?;
        let tag = String::from_utf8(inside(&value, 1).pop()?).ok()?;
        Some((tag, f32::from_le_bytes(number.try_into().ok()?)))
    };
    values.filter_map(scalar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_as_many_bytes_as_they_need() {
        for x in [0, 1, 127, 128, 300, u64::MAX] {
            let mut message = Message::default();
            message.number(2, x);
            assert_eq!(step(&message.into_bytes()), Some(x));
        }
        // The example of the protocol's documentation: 150 in field 1.
        let mut message = Message::default();
        message.number(1, 150);
        assert_eq!(message.into_bytes(), [0x08, 0x96, 0x01]);
        let mut message = Message::default();
        message.text(2, "testing");
        assert_eq!(message.into_bytes(), b"\x12\x07testing");
        for broken in [
            &[0x10][..],
            &[0x10, 0x80],
            &[0x12, 5, 1],
            &[0x13],
            &[0xff; 11],
        ] {
            assert_eq!(step(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_histogram_counts_every_number_once() {
        let numbers: Vec<f32> = (0..=300).map(|k| k as f32 / 10.0 - 10.0).collect();
        let histogram = Histogram::of(&numbers).unwrap();
        assert_eq!((histogram.least, histogram.greatest), (-10.0, 20.0));
        assert_eq!(histogram.limits.len(), 30);
        assert_eq!(histogram.limits[29], 20.0);
        assert_eq!(histogram.counts.iter().sum::<f64>(), 301.0);
        assert!(
            histogram.counts[..29]
                .iter()
                .all(|n| (9.0..=11.0).contains(n)),
            "{histogram:?}"
        );
        assert!((histogram.sum - 1505.0).abs() < 1e-3);
        let equal = Histogram::of(&[3.0; 5]).unwrap();
        assert_eq!(equal.counts.iter().sum::<f64>(), 5.0);
        assert!(equal.least < 3.0 && equal.greatest > 3.0);
        assert_eq!(Histogram::of(&[]), None);
        assert_eq!(Histogram::of(&[1.0, f32::NAN]), None);
        assert_eq!(Histogram::of(&[f32::INFINITY]), None);
    }
}
