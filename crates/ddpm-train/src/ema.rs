//! The exponential moving average of the weights: how much of the old average each step keeps.

use serde::{Deserialize, Serialize};

/// How a young average is kept from remembering the random initialisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmaWarmUp {
    /// `min(rate, (1 + n) / (10 + n))`: the average spans about the last ninth of the training so far. With a
    /// rate of 0.9999 and none of this, after 5,000 steps six tenths of the average would still be noise.
    Ratio,
    /// `min(rate, 1 - (1 + n)^(-3/4))`: diffusers' `use_ema_warmup` with its defaults, a longer average early on.
    Power,
    /// `rate` from the second step on.
    None,
}

/// The decay that optimiser step `step` (counted from 1) applies: `ema = decay * ema + (1 - decay) * parameter`.
///
/// In the formulas of [`EmaWarmUp`] n is `step - 1`; at the first step the decay is 0, so that the average starts
/// from the first trained weights (as diffusers' `EMAModel.get_decay`).
///
/// ```
/// use ddpm_train::{EmaWarmUp, ema_decay};
/// assert_eq!(ema_decay(0.9999, EmaWarmUp::Ratio, 1), 0.0);
/// assert_eq!(ema_decay(0.9999, EmaWarmUp::Ratio, 11), 0.55);
/// assert_eq!(ema_decay(0.9999, EmaWarmUp::Ratio, 1_000_000), 0.9999);
/// ```
pub fn ema_decay(rate: f64, warm_up: EmaWarmUp, step: usize) -> f64 {
    let n = step.saturating_sub(1) as f64;
    if n == 0.0 {
        return 0.0;
    }
    match warm_up {
        EmaWarmUp::Ratio => rate.min((1.0 + n) / (10.0 + n)),
        EmaWarmUp::Power => rate.min(1.0 - (1.0 + n).powf(-0.75)),
        EmaWarmUp::None => rate,
    }
}
