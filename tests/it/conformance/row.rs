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

    /// Whether ours is as near as the source asks.
    pub(crate) fn holds(&self) -> bool {
        (self.ours - self.expected).abs() <= self.tolerance
    }
}
