//! One step of DPM-Solver as an integral over lambda, the logarithm of the signal-to-noise ratio, halved.

use crate::level::Level;
use crate::{DpmAlgorithm, DpmSecondOrder, Manner, Result};
use candle_core::Tensor;

/// An answer of the network, and lambda where it was had.
pub(crate) type Answer = (Tensor, f64);

/// x' = of_x x + scale times the integral of exp(...) answer over a step in lambda, and noise (Lu et al. 2022, "DPM-Solver++",
/// equations 8 and 13).
pub(crate) struct Integral {
    /// The step in lambda: h of Lu et al. 2022, infinite where it ends at the clean image.
    h: f64,
    /// What of x is left.
    of_x: f64,
    /// The integral of 1.
    phi_1: f64,
    /// The integral of lambda.
    phi_2: f64,
    /// The integral of lambda^2 / 2.
    phi_3: f64,
    /// The noise to draw.
    pub(crate) sigma: f64,
}

impl Integral {
    pub(crate) fn new(algorithm: DpmAlgorithm, (from, to): (Level, Level), manner: Manner) -> Self {
        let h = to.lambda() - from.lambda();
        let of_noise = to.noise / from.noise;
        let of_signal = to.signal / from.signal;
        // What stands before the integral, and h as its exponent has it.
        let (of_x, scale, length, sigma) = match algorithm {
            DpmAlgorithm::Solver => (of_signal, to.noise, -h, 0.0),
            DpmAlgorithm::Sde => {
                let sigma = to.noise * (2.0 * h).exp_m1().max(0.0).sqrt();
                (of_signal, 2.0 * to.noise, -h, sigma)
            }
            DpmAlgorithm::SolverPlusPlus => (of_noise, to.signal, h, 0.0),
            DpmAlgorithm::SdePlusPlus => {
                let sigma = to.noise * (-(-2.0 * h).exp_m1()).max(0.0).sqrt();
                (of_noise * (-h).exp(), to.signal, 2.0 * h, sigma)
            }
        };
        let shrunk = (-length).exp_m1();
        // diffusers' third order of the SDE has a sign that leaves this integral at -scale for a step of length 0.
        let slip = match (algorithm, manner) {
            (DpmAlgorithm::SdePlusPlus, Manner::Diffusers) => scale,
            _ => 0.0,
        };
        Integral {
            h,
            of_x,
            phi_1: -scale * shrunk,
            phi_2: scale * (shrunk / length + 1.0),
            phi_3: -scale * ((shrunk + length) / (length * length) - 0.5) - slip,
            sigma,
        }
    }

    /// x after a step but for the noise, with the polynomial through the latest answers, the newest first, as many as the order has
    /// ("DPM-Solver++", equations 10 to 12).
    pub(crate) fn multistep(
        &self,
        x: &Tensor,
        answers: &[Answer],
        second_order: DpmSecondOrder,
    ) -> Result<Tensor> {
        match answers {
            [(m_0, l_0), (m_1, l_1), (m_2, l_2)] => {
                let (r_0, r_1) = ((l_0 - l_1) / self.h, (l_1 - l_2) / self.h);
                let near = ((m_0 - m_1)? * (1.0 / r_0))?;
                let far = ((m_1 - m_2)? * (1.0 / r_1))?;
                let bend = ((&near - far)? * (1.0 / (r_0 + r_1)))?;
                let slope = (near + (&bend * r_0)?)?;
                self.after(x, m_0, [(slope, self.phi_2), (bend, self.phi_3)])
            }
            [(m_0, l_0), (m_1, l_1)] => {
                let slope = ((m_0 - m_1)? * (self.h / (l_0 - l_1)))?;
                self.after(x, m_0, [(slope, self.of_slope(second_order))])
            }
            [(m_0, _)] => self.after(x, m_0, []),
            _ => Ok(x.clone()),
        }
    }

    /// x after a group of singlesteps but for the noise: the answers, the newest first, were all had within the step, the last at its
    /// beginning ("DPM-Solver", algorithms 1, 4 and 5).
    pub(crate) fn singlestep(
        &self,
        x: &Tensor,
        answers: &[Answer],
        second_order: DpmSecondOrder,
    ) -> Result<Tensor> {
        match answers {
            [(m_0, l_0), (m_1, l_1), (m_2, l_2)] => {
                let (r_0, r_1) = ((l_0 - l_2) / self.h, (l_1 - l_2) / self.h);
                let near = ((m_1 - m_2)? * (1.0 / r_1))?;
                let far = ((m_0 - m_2)? * (1.0 / r_0))?;
                if second_order == DpmSecondOrder::Midpoint {
                    return self.after(x, m_2, [(far, self.phi_2)]);
                }
                let slope = (((&near * r_0)? - (&far * r_1)?)? * (1.0 / (r_0 - r_1)))?;
                let bend = ((far - near)? * (2.0 / (r_0 - r_1)))?;
                self.after(x, m_2, [(slope, self.phi_2), (bend, self.phi_3)])
            }
            [(m_0, l_0), (m_1, l_1)] => {
                let r_0 = (l_0 - l_1) / self.h;
                let slope = ((m_0 - m_1)? * (1.0 / r_0))?;
                self.after(x, m_1, [(slope, self.of_slope(second_order))])
            }
            [(m_0, _)] => self.after(x, m_0, []),
            _ => Ok(x.clone()),
        }
    }

    /// x after the step but for the noise: of the answer at the beginning, and of its slope and bend, each with its integral.
    fn after<const N: usize>(
        &self,
        x: &Tensor,
        answer: &Tensor,
        terms: [(Tensor, f64); N],
    ) -> Result<Tensor> {
        // Levels that are the same leave the images as they are.
        if self.h == 0.0 {
            return Ok(x.clone());
        }
        let mut moved = ((x * self.of_x)? + (answer * self.phi_1)?)?;
        for (term, integral) in terms {
            moved = (moved + (term * integral)?)?;
        }
        Ok(moved)
    }

    /// What stands for the integral of lambda at the second order.
    fn of_slope(&self, second_order: DpmSecondOrder) -> f64 {
        match second_order {
            DpmSecondOrder::Midpoint => 0.5 * self.phi_1,
            DpmSecondOrder::Heun => self.phi_2,
        }
    }
}
