//! Whose account is followed where diffusers' schedulers and the papers behind them differ.

/// Two accounts of the same algorithms. They agree but for the points below.
///
/// | | papers | diffusers |
/// |---|---|---|
/// | alpha-bar | f64 | f32, sigma too |
/// | DDIM, PNDM: the level a step lands on | that of the walk's next step | that of floor(T / N) steps of training earlier |
/// | ancestral noise of the last step | none | some, unless it is at time 0 |
/// | draws that are multiplied by 0 | not made | made: they move a generator on |
/// | network time at levels between those of training | between | rounded or cut to whole numbers by some schedulers |
/// | SDE-DPM-Solver++ of order 3 | the coefficient that vanishes with the step | one that does not |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Manner {
    /// The papers', exactly.
    #[default]
    Paper,
    /// diffusers', as it is: for its images, number for number.
    Diffusers,
}
