//! What the output of a network means: x_0-hat and the noise, at any level, for networks trained in any of the known ways.

use crate::level::Level;
use crate::process::halves;
use crate::{Clip, Result};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Prediction, Schedule, posterior_weights};

/// How a network was trained to answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning {
    /// On a schedule of steps.
    Prediction(Prediction),
    /// The velocity eps - x_0 of a flow (Lipman et al. 2023).
    Flow,
    /// F of D = c_skip x + c_out F(c_in x; c_noise), at the variance exploding scale (Karras et al. 2022, table 1, "Ours").
    Edm {
        /// sigma_data.
        data: f64,
        /// -1 for diffusers' `v_prediction`, whose F has the other sign.
        sign: f64,
    },
    /// The score of the variance exploding images (Song et al. 2021, "Score-based generative modeling").
    Score,
}

/// What the network makes of the images at a level.
pub(crate) struct Guess {
    /// The clean images, clipped: `[B, C, H, W]`.
    pub(crate) x_0_hat: Tensor,
    /// The noise that x and x_0-hat imply: `[B, C, H, W]`.
    pub(crate) eps_hat: Tensor,
    /// What the network said: `[B, C, H, W]`.
    pub(crate) output: Tensor,
}

impl Meaning {
    /// Asks the network, told `time`, about x at the first level; the second is the one before it.
    pub(crate) fn guess(
        self,
        clip: &Clip,
        denoiser: &dyn Denoiser,
        x: &Tensor,
        (level, before): (Level, Level),
        time: f64,
    ) -> Result<Guess> {
        let times = vec![time; x.dims().first().copied().unwrap_or(0)];
        let seen = match self.input_scale(level) {
            1.0 => x.clone(),
            scale => (x * scale)?,
        };
        // Detached, so that weights that are being trained do not keep the graph of the whole walk alive.
        let output = denoiser.predict(&seen, &times)?.detach();
        let (output, _) = halves(x, output)?;
        let (of_x, of_output) = self.x_0_weights(level, before)?;
        let x_0_hat = match of_x {
            0.0 => (&output * of_output)?,
            of_x => ((x * of_x)? + (&output * of_output)?)?,
        };
        let direct = match (clip, self) {
            (Clip::None, Meaning::Prediction(words)) => {
                words.eps_weights((level.signal, level.noise))
            }
            _ => None,
        };
        let x_0_hat = clip.apply(&x_0_hat)?;
        let eps_hat = match direct {
            Some((0.0, 1.0)) => output.clone(),
            Some((of_x, of_output)) => ((x * of_x)? + (&output * of_output)?)?,
            // Equation 4 of Ho et al. 2020 at this level, solved for eps.
            None => ((x / level.noise)? - (&x_0_hat * (level.signal / level.noise))?)?,
        };
        Ok(Guess {
            x_0_hat,
            eps_hat,
            output,
        })
    }

    /// What the images are multiplied by before the network sees them.
    fn input_scale(self, level: Level) -> f64 {
        match self {
            Meaning::Prediction(_) | Meaning::Flow => 1.0,
            Meaning::Edm { data, .. } => 1.0 / (level.signal * level.sigma().hypot(data)),
            Meaning::Score => 1.0 / level.signal,
        }
    }

    /// The weights of x and of the output in x_0-hat.
    fn x_0_weights(self, level: Level, before: Level) -> Result<(f64, f64)> {
        let sigma = level.sigma();
        match self {
            Meaning::Prediction(words) => match words.x_0_weights((level.signal, level.noise)) {
                Some(weights) => Ok(weights),
                None => posterior_mean_weights(level, before),
            },
            Meaning::Flow => Ok((1.0, -level.noise)),
            Meaning::Edm { data, sign } => {
                let total = sigma.hypot(data);
                let (c_skip, c_out) = ((data / total).powi(2), sigma * data / total);
                Ok((c_skip / level.signal, sign * c_out))
            }
            Meaning::Score => Ok((1.0 / level.signal, sigma * sigma)),
        }
    }
}

/// Equation 7 of Ho et al. 2020 between two levels, solved for x_0.
fn posterior_mean_weights(level: Level, before: Level) -> Result<(f64, f64)> {
    let (now, then) = (level.signal.powi(2), before.signal.powi(2));
    let alpha_bars = [then, now];
    let known = if then < 1.0 {
        &alpha_bars[..]
    } else {
        &alpha_bars[1..]
    };
    let pair = Schedule::from_alpha_bars(known)?;
    let (of_x_0, of_x_t) = posterior_weights(&pair, pair.last());
    Ok((-of_x_t / of_x_0, 1.0 / of_x_0))
}
