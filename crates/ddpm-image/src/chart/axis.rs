//! An axis: which numbers it spans, where each is, and which of them are marked.

/// How numbers are laid out along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far apart.
    Linear,
    /// Equal ratios are equally far apart; only numbers above 0 are anywhere.
    Logarithmic,
}

impl Scale {
    /// Logarithmic where all numbers are above 0 and the largest is at least ten times the smallest.
    pub fn fitting(numbers: impl IntoIterator<Item = f64>) -> Scale {
        let ends = |ends: (f64, f64), x: f64| (ends.0.min(x), ends.1.max(x));
        let finite = numbers.into_iter().filter(|x| x.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        match low > 0.0 && high >= 10.0 * low {
            true => Scale::Logarithmic,
            false => Scale::Linear,
        }
    }

    /// Whether a number is anywhere on such an axis.
    pub(super) fn has(self, x: f64) -> bool {
        x.is_finite() && (self == Scale::Linear || x > 0.0)
    }

    fn apply(self, x: f64) -> f64 {
        match self {
            Scale::Linear => x,
            Scale::Logarithmic => x.log10(),
        }
    }

    fn undo(self, x: f64) -> f64 {
        match self {
            Scale::Linear => x,
            Scale::Logarithmic => 10f64.powf(x),
        }
    }
}

/// An axis on a picture.
pub(super) struct Axis {
    scale: Scale,
    /// The numbers at both ends.
    numbers: (f64, f64),
    /// The pixels at both ends.
    pixels: (f64, f64),
    /// Pixels between two marks, about.
    between: f64,
}

impl Axis {
    /// Spans the numbers, and beyond them a `margin` of their range at both ends.
    pub(super) fn over(
        numbers: impl Iterator<Item = f64>,
        scale: Scale,
        margin: f64,
        pixels: (f64, f64),
        between: f64,
    ) -> Self {
        let ends = |ends: (f64, f64), x: f64| (ends.0.min(x), ends.1.max(x));
        let all = numbers
            .map(|x| scale.apply(x))
            .fold((f64::INFINITY, f64::NEG_INFINITY), ends);
        let (low, high) = match all {
            (low, high) if low > high => (0.0, 1.0),
            (low, high) if low == high => {
                let room = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
                (low - room, high + room)
            }
            (low, high) => (low - margin * (high - low), high + margin * (high - low)),
        };
        Self {
            scale,
            numbers: (low, high),
            pixels,
            between,
        }
    }

    pub(super) fn scale(&self) -> Scale {
        self.scale
    }

    /// The pixel of a number.
    pub(super) fn place(&self, x: f64) -> f64 {
        let (low, high) = self.numbers;
        let share = (self.scale.apply(x) - low) / (high - low);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// The pixels and words of the marked numbers.
    pub(super) fn marks(&self) -> Vec<(f64, String)> {
        let (low, high) = (
            self.scale.undo(self.numbers.0),
            self.scale.undo(self.numbers.1),
        );
        let about = ((self.pixels.1 - self.pixels.0).abs() / self.between).max(2.0);
        let numbers = match self.scale {
            Scale::Linear => linear(low, high, about),
            Scale::Logarithmic => logarithmic(low, high, about),
        };
        let mark = |x: f64| (self.place(x), words(x));
        numbers.into_iter().map(mark).collect()
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, about so many.
fn linear(low: f64, high: f64, about: f64) -> Vec<f64> {
    let rough = (high - low) / about;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
    let step = steps.into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    // Ends that are marks but for a rounding error are marks.
    let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
    // A range so small that its ends are neighbouring floats has no marks to speak of.
    let count = (last - first).clamp(0.0, 100.0) as usize;
    (0..=count)
        .map(|k| (first + k as f64) * step)
        .filter(|x| (low - 1e-6 * step..=high + 1e-6 * step).contains(x))
        .collect()
}

/// Powers of ten, with their doubles and fivefolds where there is room; where that is too few, as on a linear axis.
fn logarithmic(low: f64, high: f64, about: f64) -> Vec<f64> {
    let decades = high.log10() - low.log10();
    let mantissas: &[f64] = match about / decades {
        room if room >= 2.5 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let every = (decades / about).ceil().max(1.0) as i32;
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let powers = (first..=last).filter(|power| power.rem_euclid(every) == 0);
    let all = powers.flat_map(|power| mantissas.iter().map(move |m| m * 10f64.powi(power)));
    let marks: Vec<f64> = all.filter(|x| (low..=high).contains(x)).collect();
    match marks.len() {
        0..=2 => linear(low, high, about)
            .into_iter()
            .filter(|x| *x > 0.0)
            .collect(),
        _ => marks,
    }
}

/// A number as people write it: `0.05`, `250`, `20k`, `1.5M`, `1e-7`.
fn words(x: f64) -> String {
    let short = |x: f64| {
        let text = format!("{x:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match x.abs() {
        0.0 => "0".into(),
        size if size < 1e-4 => {
            let power = size.log10().floor();
            format!(
                "{}e{power}",
                short((x / 10f64.powf(power) * 1e3).round() / 1e3)
            )
        }
        size if size >= 1e9 => format!("{x:.1e}"),
        size if size >= 1e6 => format!("{}M", short(x / 1e6)),
        size if size >= 1e4 => format!("{}k", short(x / 1e3)),
        _ => short(x),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_numbers_inside_the_axis() {
        assert_eq!(linear(0.0, 1500.0, 6.0), [0.0, 500.0, 1000.0, 1500.0]);
        assert_eq!(linear(-0.3, 0.3, 6.0).len(), 7);
        assert_eq!(
            logarithmic(0.02, 1.1, 6.0),
            [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
        );
        assert_eq!(logarithmic(1e-6, 1.5, 4.0), [1e-6, 1e-4, 1e-2, 1.0]);
        // Less than a factor of two: as a linear axis.
        assert_eq!(logarithmic(0.11, 0.19, 4.0), linear(0.11, 0.19, 4.0));
        for (low, high) in [
            (0.0, 1e-300),
            (1.0, 1.0 + f64::EPSILON),
            (-1e9, 1e9),
            (3.0, 3.1),
        ] {
            let marks = linear(low, high, 5.0);
            assert!(marks.len() <= 12, "{low} {high}: {marks:?}");
            let room = 1e-6 * (high - low);
            assert!(marks.iter().all(|x| (low - room..=high + room).contains(x)));
        }
    }

    #[test]
    fn numbers_are_written_as_people_do() {
        let cases = [
            (0.0, "0"),
            (0.05, "0.05"),
            (0.1 + 0.2, "0.3"),
            (250.0, "250"),
            (-2.5, "-2.5"),
            (20_000.0, "20k"),
            (12_500.0, "12.5k"),
            (1_500_000.0, "1.5M"),
            (2e-5, "2e-5"),
            (1e-7, "1e-7"),
            (3e12, "3.0e12"),
        ];
        for (x, expected) in cases {
            assert_eq!(words(x), expected);
        }
    }

    #[test]
    fn the_scale_follows_the_numbers() {
        assert_eq!(Scale::fitting([1.0, 0.05, f64::NAN]), Scale::Logarithmic);
        assert_eq!(Scale::fitting([1.0, 0.5]), Scale::Linear);
        assert_eq!(Scale::fitting([1.0, 0.0]), Scale::Linear);
        assert_eq!(Scale::fitting([]), Scale::Linear);
    }

    #[test]
    fn places_are_those_of_the_formula() {
        let numbers = [0.01, 1.0].into_iter();
        let axis = Axis::over(numbers, Scale::Logarithmic, 0.0, (200.0, 0.0), 50.0);
        assert!((axis.place(0.1) - 100.0).abs() < 1e-9);
        assert!((axis.place(1.0) - 0.0).abs() < 1e-9);
        let axis = Axis::over([5.0].into_iter(), Scale::Linear, 0.0, (0.0, 100.0), 50.0);
        assert!(
            (axis.place(5.0) - 50.0).abs() < 1e-9,
            "alone, it is in the middle"
        );
    }
}
