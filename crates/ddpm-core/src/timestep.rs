//! The time of the paper: t = 1, ..., T, counted from one.

use std::fmt;

/// A step t of a diffusion process, in `1..=T` as in the paper.
///
/// Only a [`Schedule`](crate::Schedule) makes timesteps, so whoever holds one need not check it again.
/// t = 0, the clean image, is never a `Timestep`: what comes before t = 1 is [`None`].
///
/// ```
/// let schedule = ddpm_core::Schedule::linear(1000, 1e-4, 0.02)?;
/// let t = schedule.timestep(2)?;
/// assert_eq!(t.get(), 2);
/// assert_eq!(t.previous().and_then(|t| t.previous()), None);
/// # Ok::<(), ddpm_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestep(usize);

impl Timestep {
    /// The caller promises that `t` lies in `1..=T` of its schedule.
    pub(crate) fn new(t: usize) -> Self {
        Timestep(t)
    }

    /// The number t, in `1..=T`.
    pub fn get(self) -> usize {
        self.0
    }

    /// t - 1, or `None` for t = 1, whose predecessor is the clean image x_0.
    pub fn previous(self) -> Option<Timestep> {
        (self.0 > 1).then(|| Timestep(self.0 - 1))
    }
}

impl fmt::Display for Timestep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
