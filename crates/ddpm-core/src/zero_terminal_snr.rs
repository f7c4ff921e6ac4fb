//! Zero terminal SNR: a schedule moved so that nothing of the image is left in x_T.

use crate::{Error, Result, Schedule};

impl Schedule {
    /// This schedule with alpha-bar_T = 0 and alpha-bar_1 kept: sqrt(alpha-bar) is shifted and stretched
    /// (Lin et al. 2023, algorithm 1).
    ///
    /// At T a network that predicts noise can say nothing about x_0; let it predict
    /// [v](crate::Prediction::Velocity) or [x_0](crate::Prediction::Original).
    ///
    /// # Errors
    /// When the schedule has only one step.
    pub fn rescaled_to_zero_terminal_snr(&self) -> Result<Self> {
        if self.steps() == 1 {
            return Err(Error::ZeroTerminalSnrOfOneStep);
        }
        let roots: Vec<f64> = self.timesteps().map(|t| self.alpha_bar(t).sqrt()).collect();
        let (first, last) = match (roots.first(), roots.last()) {
            (Some(first), Some(last)) => (*first, *last),
            _ => return Err(Error::NoSteps),
        };
        let moved = |root: &f64| ((root - last) * (first / (first - last))).powi(2);
        self.with_alpha_bars(&roots.iter().map(moved).collect::<Vec<_>>())
    }
}
