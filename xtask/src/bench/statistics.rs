//! Medians, spreads, and how far two outputs lie apart.

/// The middle of some numbers, and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// Half of them are below, half above.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) lowest: f64,
    /// The largest.
    pub(crate) highest: f64,
}

impl Spread {
    /// `None` where there are no numbers.
    pub(crate) fn of(numbers: &[f64]) -> Option<Self> {
        let mut sorted = numbers.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
        let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self {
            median: f64::midpoint(below, above),
            lowest,
            highest,
        })
    }

    /// Of a / b, pair by pair: what two that took turns say of each other, whatever the machine did meanwhile.
    pub(crate) fn of_ratios(a: &[f64], b: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// The largest difference of two outputs, over the largest number of the second; infinite where they cannot be compared.
pub(crate) fn difference(ours: &[f32], theirs: &[f32]) -> f64 {
    let all = ours.iter().chain(theirs);
    if ours.len() != theirs.len() || ours.is_empty() || all.clone().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let largest = |numbers: &mut dyn Iterator<Item = f64>| numbers.fold(0.0, f64::max);
    let apart = largest(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).abs()));
    let scale = largest(&mut theirs.iter().map(|b| f64::from(b.abs())));
    if apart == 0.0 { 0.0 } else { apart / scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (spread.lowest, spread.median, spread.highest),
            (1.0, 2.0, 3.0)
        );
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratios_are_of_pairs() {
        // The machine halves its speed in the second round: the ratio does not notice.
        let spread = Spread::of_ratios(&[2.0, 4.0], &[1.0, 2.0]).unwrap();
        assert_eq!(
            (spread.lowest, spread.median, spread.highest),
            (2.0, 2.0, 2.0)
        );
    }

    #[test]
    fn outputs_are_compared_to_the_largest_number() {
        assert_eq!(difference(&[1.0, -4.0], &[1.0, -4.0]), 0.0);
        assert_eq!(difference(&[1.5, -4.0], &[1.0, -4.0]), 0.125);
        assert_eq!(difference(&[0.0], &[0.0]), 0.0);
        for (ours, theirs) in [
            (vec![], vec![]),
            (vec![1.0], vec![]),
            (vec![f32::NAN], vec![1.0]),
            (vec![1.0], vec![f32::NAN]),
            (vec![1.0], vec![0.0]),
        ] {
            assert_eq!(difference(&ours, &theirs), f64::INFINITY);
        }
    }
}
