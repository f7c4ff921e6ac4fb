//! The learning rate of each optimiser step: a warm-up, then constant, cosine or linear decay.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// It stays as it is (Ho et al. 2020).
    Constant,
    /// Half a cosine, from the full rate to 0.
    Cosine,
    /// A straight line, from the full rate to 0.
    Linear,
}

/// The learning rate as a function of the step alone, so that a resumed run needs no state for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The full rate.
    pub peak: f64,
    /// Steps of linear warm-up; the first step takes `peak / warm_up`, step `warm_up` takes `peak`.
    pub warm_up: usize,
    /// What happens after the warm-up.
    pub decay: Decay,
    /// The step at which a decaying rate ends (ignored by [`Decay::Constant`]).
    pub decay_steps: usize,
}

impl LearningRate {
    /// The rate of optimiser step `step`, counted from 1.
    ///
    /// While `step <= warm_up` it is `peak * step / warm_up`. After that, with
    /// `s = (step - 1 - warm_up) / (decay_steps - warm_up)`, cosine is `peak * (1 + cos(pi s)) / 2` and linear is
    /// `peak * (1 - s)`: the first decayed step has the full rate, the last a little more than 0.
    ///
    /// ```
    /// use ddpm_train::{Decay, LearningRate};
    /// let rate = LearningRate { peak: 2e-4, warm_up: 4, decay: Decay::Linear, decay_steps: 8 };
    /// assert_eq!(rate.at(1), 0.5e-4);
    /// assert_eq!(rate.at(5), 2e-4);
    /// assert_eq!(rate.at(7), 1e-4);
    /// ```
    pub fn at(&self, step: usize) -> f64 {
        if step <= self.warm_up {
            return self.peak * step as f64 / self.warm_up as f64;
        }
        let length = self.decay_steps.saturating_sub(self.warm_up).max(1);
        let progress = ((step - 1 - self.warm_up) as f64 / length as f64).min(1.0);
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => self.peak * (1.0 - progress),
        }
    }
}
