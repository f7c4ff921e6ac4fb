//! One level of noise, and what moving straight from one to another does to the images.

use crate::Result;
use candle_core::Tensor;

/// x = signal x_0 + noise eps. Walks over the levels of a schedule have signal^2 + noise^2 = 1; flows have signal + noise = 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Level {
    /// alpha_t of Lu et al. 2022, sqrt(alpha-bar): 1 at the clean image.
    pub(crate) signal: f64,
    /// sigma_t of Lu et al. 2022, sqrt(1 - alpha-bar): 0 at the clean image.
    pub(crate) noise: f64,
}

impl Level {
    /// The level of variance 1 at which noise / signal is sigma.
    pub(crate) fn of_sigma(sigma: f64) -> Self {
        let signal = 1.0 / sigma.hypot(1.0);
        Level {
            signal,
            noise: sigma * signal,
        }
    }

    /// The level of a flow with so much noise.
    pub(crate) fn of_flow(noise: f64) -> Self {
        Level {
            signal: 1.0 - noise,
            noise,
        }
    }

    /// noise / signal: the noise of x / signal, the variance exploding view (Karras et al. 2022, section 2).
    pub(crate) fn sigma(self) -> f64 {
        self.noise / self.signal
    }

    /// lambda_t of Lu et al. 2022, half the logarithm of the signal-to-noise ratio: infinite at the clean image.
    pub(crate) fn lambda(self) -> f64 {
        self.signal.ln() - self.noise.ln()
    }

    /// Whether nothing but the image is left.
    pub(crate) fn is_clean(self) -> bool {
        self.noise == 0.0
    }
}

/// x at the level `from`, moved by `by` along eps in the variance exploding view and scaled to the level `to`:
/// x'/signal' = x/signal + by eps. With by = sigma' - sigma this is Euler's step of equation 3 of Karras et al. 2022.
pub(crate) fn along(
    x: &Tensor,
    eps: &Tensor,
    (from, to): (Level, Level),
    by: f64,
) -> Result<Tensor> {
    Ok(((x * (to.signal / from.signal))? + (eps * (by * to.signal))?)?)
}

/// x at the level `from`, moved along several eps, the k-th by `by(k)`: x'/signal' = x/signal + sum_k by(k) eps_k, as [`along`] for one.
pub(crate) fn along_all(
    x: &Tensor,
    eps: &[Tensor],
    (from, to): (Level, Level),
    by: impl Fn(usize) -> f64,
) -> Result<Tensor> {
    let mut moved = (x * (to.signal / from.signal))?;
    for (k, eps) in eps.iter().enumerate() {
        moved = along(&moved, eps, (to, to), by(k))?;
    }
    Ok(moved)
}

/// x at the level `from`, with its distance from x_0-hat in the variance exploding view shortened to a `share`, at the scale of the
/// level `to`: x'/signal' = x_0-hat + share (x/signal - x_0-hat). With share = sigma'/sigma this is [`along`] by sigma' - sigma, without
/// the difference of large numbers on the way to the clean image.
pub(crate) fn straight(
    x: &Tensor,
    x_0_hat: &Tensor,
    (from, to): (Level, Level),
    share: f64,
) -> Result<Tensor> {
    let of_x = share * to.signal / from.signal;
    let of_x_0 = (1.0 - share) * to.signal;
    Ok(((x * of_x)? + (x_0_hat * of_x_0)?)?)
}
