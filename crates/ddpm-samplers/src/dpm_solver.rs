//! DPM-Solver, DPM-Solver++ and SDE-DPM-Solver++, multistep: Lu et al. 2022, exponential integrators in the logarithm of the SNR.

use crate::levels::Level;
use crate::walk::{Moved, Noise};
use crate::{Error, Levels, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource, Timestep};

/// The settings of a DPM-Solver walk, as diffusers' `DPMSolverMultistepScheduler` has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpmSettings {
    /// `algorithm_type`: which equation is solved.
    pub algorithm: DpmAlgorithm,
    /// `solver_order`, 1..=3: how many answers of the network a step uses; the first steps have fewer.
    pub order: usize,
    /// `solver_type`: how the second order is had.
    pub second_order: DpmSecondOrder,
    /// `lower_order_final`: the last two steps of a walk of fewer than 15 have order 2 and 1. A step to the clean image always has
    /// order 1.
    pub lower_order_final: bool,
    /// `euler_at_final`: the last step has order 1 whatever the number of steps.
    pub euler_at_final: bool,
}

/// The equation that is solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DpmAlgorithm {
    /// `dpmsolver`: the probability flow in the noise (Lu et al. 2022, "DPM-Solver", equation 3.4). It cannot end at the clean
    /// image: the levels must end at [`End::SigmaMin`](crate::End::SigmaMin).
    Solver,
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
/// `DPMSolverMultistepScheduler`.
///
/// Noise is drawn by [`DpmAlgorithm::SdePlusPlus`] alone, at every step that does not end at the clean image. Its third order has the
/// coefficient that vanishes with the step, as in `sample_dpmpp_3m_sde` of Crowson's k-diffusion; that of diffusers does not. When a
/// setting is impossible for these levels, the first step says so.
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
    let mut noise = Noise::new(noise);
    let mut answers = Answers::default();
    let walk = Walk::over(levels.walk(), x_t_last, move |x, t| {
        let x_0_hat = levels.x_0_hat(denoiser, x, t)?;
        let answer = match settings.algorithm {
            DpmAlgorithm::Solver => levels.eps_hat(x, t, &x_0_hat)?,
            _ => x_0_hat.clone(),
        };
        let (from, to) = levels.step(t);
        answers.push(answer.detach(), from, settings.order);
        let step = Integral::new(settings.algorithm, from, to);
        let order = settings.order_at(levels, t).min(answers.latest.len());
        let mean = step.mean(x, &answers, order, settings.second_order)?;
        let x = noise.around(mean, step.sigma)?;
        Ok(Moved { x, x_0_hat })
    });
    walk.provided(settings.check(levels))
}

impl DpmSettings {
    /// The order of step t, as far as there are answers enough.
    fn order_at(&self, levels: &Levels, t: Timestep) -> usize {
        let short = self.lower_order_final && levels.steps() < 15;
        let clean = levels.level(0).sigma == 0.0;
        match t.get() {
            1 if short || clean || self.euler_at_final => 1,
            2 if short => self.order.min(2),
            _ => self.order,
        }
    }

    fn check(&self, levels: &Levels) -> Result<()> {
        if !(1..=3).contains(&self.order) {
            return Err(Error::Setting {
                name: "the order of DPM-Solver",
                value: self.order as f64,
                expected: "1, 2 or 3",
            });
        }
        let end = levels.level(0).sigma;
        match self.algorithm == DpmAlgorithm::Solver && end == 0.0 {
            true => Err(Error::Setting {
                name: "sigma at the end of DPM-Solver's walk",
                value: end,
                expected: "a number above 0: DPM-Solver ends at `sigma_min`, DPM-Solver++ at `zero` as well",
            }),
            false => Ok(()),
        }
    }
}

/// The network's latest answers, the newest first, with lambda of their levels.
#[derive(Default)]
struct Answers {
    latest: Vec<(Tensor, f64)>,
}

impl Answers {
    /// Keeps `most` answers.
    fn push(&mut self, answer: Tensor, level: Level, most: usize) {
        self.latest.insert(0, (answer, level.lambda()));
        self.latest.truncate(most);
    }
}

/// One step as an integral over lambda: x' = of_x x + scale times the integral of exp(...) answer, length `length` in its exponent.
struct Integral {
    /// The step in lambda: h of Lu et al. 2022, infinite where it ends at the clean image.
    h: f64,
    /// What of x is left.
    of_x: f64,
    /// What stands before the integral.
    scale: f64,
    /// h as the exponent has it: h, 2h with noise, -h for the equation in the noise.
    length: f64,
    /// The noise to draw.
    sigma: f64,
}

impl Integral {
    fn new(algorithm: DpmAlgorithm, from: Level, to: Level) -> Self {
        let h = to.lambda() - from.lambda();
        let of_noise = to.noise() / from.noise();
        let (of_x, scale, length, sigma) = match algorithm {
            DpmAlgorithm::Solver => (to.signal() / from.signal(), to.noise(), -h, 0.0),
            DpmAlgorithm::SolverPlusPlus => (of_noise, to.signal(), h, 0.0),
            DpmAlgorithm::SdePlusPlus => {
                let sigma = to.noise() * (-(-2.0 * h).exp_m1()).max(0.0).sqrt();
                (of_noise * (-h).exp(), to.signal(), 2.0 * h, sigma)
            }
        };
        Integral {
            h,
            of_x,
            scale,
            length,
            sigma,
        }
    }

    /// x after the step but for the noise: the answers' Taylor polynomial integrated ("DPM-Solver++", equations 10 to 12).
    fn mean(
        &self,
        x: &Tensor,
        answers: &Answers,
        order: usize,
        second_order: DpmSecondOrder,
    ) -> Result<Tensor> {
        let Integral {
            h,
            of_x,
            scale,
            length,
            ..
        } = *self;
        // Levels that are the same leave the images as they are.
        if h == 0.0 {
            return Ok(x.clone());
        }
        // The integrals of 1, lambda and lambda^2/2.
        let shrunk = (-length).exp_m1();
        let phi_1 = -scale * shrunk;
        let phi_2 = scale * (shrunk / length + 1.0);
        let phi_3 = -scale * ((shrunk + length) / (length * length) - 0.5);
        let constant = |d: &Tensor| -> Result<Tensor> { Ok(((x * of_x)? + (d * phi_1)?)?) };
        match (order, answers.latest.as_slice()) {
            (3.., [(m_0, l_0), (m_1, l_1), (m_2, l_2), ..]) => {
                let (r_0, r_1) = ((l_0 - l_1) / h, (l_1 - l_2) / h);
                let near = ((m_0 - m_1)? * (1.0 / r_0))?;
                let far = ((m_1 - m_2)? * (1.0 / r_1))?;
                let bend = ((&near - far)? * (1.0 / (r_0 + r_1)))?;
                let slope = (near + (&bend * r_0)?)?;
                Ok(((constant(m_0)? + (slope * phi_2)?)? + (bend * phi_3)?)?)
            }
            (2.., [(m_0, l_0), (m_1, l_1), ..]) => {
                let slope = ((m_0 - m_1)? * (h / (l_0 - l_1)))?;
                let weight = match second_order {
                    DpmSecondOrder::Midpoint => 0.5 * phi_1,
                    DpmSecondOrder::Heun => phi_2,
                };
                Ok((constant(m_0)? + (slope * weight)?)?)
            }
            (_, [(m_0, _), ..]) => constant(m_0),
            (_, []) => Ok(x.clone()),
        }
    }
}
