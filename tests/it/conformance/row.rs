//! One expectation that somebody else published, and what this project computes.

/// A number as published, and ours.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// What is computed.
    pub(crate) what: String,
    /// Where the expectation stands.
    pub(crate) source: &'static str,
    /// The number expected.
    pub(crate) expected: f64,
    /// The number computed here.
    pub(crate) ours: f64,
    /// The difference that the source allows.
    pub(crate) tolerance: f64,
}

impl Row {
    /// One row for each number of a slice.
    pub(crate) fn slice(
        what: &str,
        source: &'static str,
        expected: &[f64],
        ours: &[f64],
        tolerance: f64,
    ) -> Vec<Row> {
        assert_eq!(expected.len(), ours.len(), "{what}");
        let numbers_of = expected.len();
        let numbers = expected.iter().zip(ours).enumerate();
        numbers
            .map(|(i, (&expected, &ours))| Row {
                what: format!("{what}, {} of {}", i + 1, numbers_of),
                source,
                expected,
                ours,
                tolerance,
            })
            .collect()
    }

    /// A row that holds to so many significant digits: to one unit of the last of them.
    pub(crate) fn digits(
        what: String,
        source: &'static str,
        expected: f64,
        ours: f64,
        digits: i32,
    ) -> Row {
        let tolerance = match expected {
            0.0 => 0.0,
            // Read from its digits, so that it prints as such.
            _ => format!("1e{}", magnitude(expected) - digits + 1)
                .parse()
                .unwrap(),
        };
        Row {
            what,
            source,
            expected,
            ours,
            tolerance,
        }
    }

    /// Our number with the digits that matter: one more than the tolerance has.
    pub(crate) fn printed(&self) -> String {
        if self.tolerance == 0.0 || self.tolerance >= 1e-6 || self.ours == 0.0 {
            return format!("{:.6}", self.ours);
        }
        let after_the_point = 1 - magnitude(self.tolerance);
        match self.ours.abs() < SMALL {
            true => {
                let digits = (after_the_point + magnitude(self.ours)).max(0) as usize;
                format!("{:.digits$e}", self.ours)
            }
            false => format!("{:.*}", after_the_point as usize, self.ours),
        }
    }

    /// Whether ours is as near as the source asks.
    pub(crate) fn holds(&self) -> bool {
        (self.ours - self.expected).abs() <= self.tolerance
    }
}

/// What is smaller is printed with an exponent.
const SMALL: f64 = 1e-5;

/// A number as the page has it.
pub(crate) fn number(x: f64) -> String {
    match x != 0.0 && x.abs() < SMALL {
        true => format!("{x:e}"),
        false => x.to_string(),
    }
}

/// The exponent of the first digit.
fn magnitude(x: f64) -> i32 {
    x.abs().log10().floor() as i32
}
