//! DPM-Solver, DPM-Solver++ and their stochastic sisters, multistep: Lu et al. 2022.

use crate::error::require;
use crate::integral::{Answer, Integral};
use crate::meaning::Guess;
use crate::walk::Noise;
use crate::{Levels, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource};

/// The settings of a DPM-Solver walk, as diffusers' `DPMSolverMultistepScheduler` and its singlestep sister have them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpmSettings {
    /// `algorithm_type`: which equation is solved.
    pub algorithm: DpmAlgorithm,
    /// `solver_order`, 1..=3: how many answers of the network a step uses; the first steps have fewer.
    pub order: usize,
    /// `solver_type`: how the second order is had.
    pub second_order: DpmSecondOrder,
    /// `lower_order_final`: the last two steps of a multistep walk of fewer than 15 have order 2 and 1; a singlestep walk ends with
    /// orders that fill the number of steps. A step to the clean image always has order 1.
    pub lower_order_final: bool,
    /// `euler_at_final`: the last step of a multistep walk has order 1 whatever the number of steps.
    pub euler_at_final: bool,
}

/// The equation that is solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DpmAlgorithm {
    /// `dpmsolver`: the probability flow in the noise (Lu et al. 2022, "DPM-Solver", equation 3.4). It cannot end at the clean
    /// image: the levels must end at [`End::SigmaMin`](crate::End::SigmaMin).
    Solver,
    /// `sde-dpmsolver`: the diffusion in the noise, with fresh noise at each step. It cannot end at the clean image either.
    Sde,
    /// `dpmsolver++`: the probability flow in x_0 (Lu et al. 2022, "DPM-Solver++", equation 9).
    SolverPlusPlus,
    /// `sde-dpmsolver++`: the diffusion in x_0, with fresh noise at each step ("DPM-Solver++", equation 13).
    SdePlusPlus,
}

/// The two ways to a second order; they differ by terms of the third.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DpmSecondOrder {
    /// `midpoint`.
    Midpoint,
    /// `heun`.
    Heun,
}

impl Default for DpmSettings {
    /// diffusers' defaults: `dpmsolver++`, order 2, midpoint, lower order at the end of short walks.
    fn default() -> Self {
        DpmSettings {
            algorithm: DpmAlgorithm::SolverPlusPlus,
            order: 2,
            second_order: DpmSecondOrder::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
        }
    }
}

/// Walks down the levels by DPM-Solver's multistep method (Lu et al. 2022, "DPM-Solver++", algorithm 2): diffusers'
/// `DPMSolverMultistepScheduler` and `EDMDPMSolverMultistepScheduler`.
///
/// Noise is drawn by the stochastic algorithms alone, at every step that does not end at the clean image. The third order of
/// [`DpmAlgorithm::SdePlusPlus`] has the coefficient that vanishes with the step, as in `sample_dpmpp_3m_sde` of Crowson's
/// k-diffusion; that of diffusers does not, and is had in its [manner](crate::Manner::Diffusers). When a setting is impossible for these
/// levels, the first step says so.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn dpm_solver<'a>(
    levels: &'a Levels,
    settings: DpmSettings,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    settings.walk(levels, denoiser, x_t_last, noise, move |x, latest, i| {
        let order = settings.order_at(levels, i).min(latest.len());
        let step = Integral::new(settings.algorithm, levels.step(i), levels.manner());
        let mean = step.multistep(x, &latest[..order], settings.second_order)?;
        Ok((mean, step.sigma))
    })
}

impl DpmSettings {
    /// A walk of either method: from x, the latest answers, the newest first, and i, `rule` makes the mean of where step i leads and
    /// sigma of the noise around it.
    pub(crate) fn walk<'a>(
        self,
        levels: &'a Levels,
        denoiser: &'a dyn Denoiser,
        x_t_last: &Tensor,
        noise: &'a mut dyn NoiseSource,
        mut rule: impl FnMut(&Tensor, &[Answer], usize) -> Result<(Tensor, f64)> + 'a,
    ) -> Walk<'a> {
        let stochastic = self.algorithm.is_stochastic();
        let mut noise = stochastic.then(|| Noise::new(noise, levels.manner()));
        let mut latest: Vec<Answer> = Vec::new();
        let walk = levels.walk(denoiser, x_t_last, move |x, guess, i| {
            let answer = self.algorithm.answer(guess).detach();
            latest.insert(0, (answer, levels.level(i).lambda()));
            latest.truncate(self.order);
            let (mean, sigma) = rule(x, &latest, i)?;
            match &mut noise {
                Some(noise) => noise.around(mean, sigma),
                None => Ok(mean),
            }
        });
        walk.provided(self.check(levels))
    }

    /// The order of step i, as far as there are answers enough.
    fn order_at(&self, levels: &Levels, i: usize) -> usize {
        let n = levels.steps();
        let short = self.lower_order_final && n < 15;
        match n - i {
            1 if short || levels.level(n).is_clean() || self.euler_at_final => 1,
            2 if short => self.order.min(2),
            _ => self.order,
        }
    }

    fn check(&self, levels: &Levels) -> Result<()> {
        require(
            (1..=3).contains(&self.order),
            "the order of DPM-Solver",
            self.order as f64,
            "1, 2 or 3",
        )?;
        let end = levels.level(levels.steps());
        require(
            !(self.algorithm.in_noise() && end.is_clean()),
            "sigma at the end of DPM-Solver's walk",
            end.sigma(),
            "a number above 0: DPM-Solver ends at `sigma_min`, DPM-Solver++ at `zero` as well",
        )
    }

    /// The noise that each step of a multistep walk draws.
    pub(crate) fn sigmas(&self, levels: &Levels) -> Vec<f64> {
        let steps = levels.first()..levels.steps();
        let sigma = |i| Integral::new(self.algorithm, levels.step(i), levels.manner()).sigma;
        match self.algorithm.is_stochastic() {
            true => steps.map(sigma).collect(),
            false => Vec::new(),
        }
    }
}

impl DpmAlgorithm {
    /// Whether it solves its equation in the noise rather than in x_0.
    pub(crate) fn in_noise(self) -> bool {
        matches!(self, DpmAlgorithm::Solver | DpmAlgorithm::Sde)
    }

    /// Whether it draws noise.
    pub(crate) fn is_stochastic(self) -> bool {
        matches!(self, DpmAlgorithm::Sde | DpmAlgorithm::SdePlusPlus)
    }

    /// What is integrated.
    fn answer(self, guess: &Guess) -> &Tensor {
        match self.in_noise() {
            true => &guess.eps_hat,
            false => &guess.x_0_hat,
        }
    }
}
