//! DPM-Solver and DPM-Solver++, singlestep: Lu et al. 2022, methods of Runge and Kutta whose stages are the steps of the walk.

use crate::integral::Integral;
use crate::{DpmSettings, Levels, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource};

/// Walks down the levels in groups of as many steps as the order: each step of a group goes from the group's beginning to one level
/// further, with one answer of the network more (Lu et al. 2022, "DPM-Solver", algorithm 1): diffusers'
/// `DPMSolverSinglestepScheduler`.
///
/// Where the number of steps is no multiple of the order, or the walk ends at the clean image, it ends with lower orders whatever
/// `lower_order_final` says; `euler_at_final` means nothing here. Noise as in [`dpm_solver`](crate::dpm_solver). When a setting is
/// impossible for these levels, the first step says so.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn dpm_solver_singlestep<'a>(
    levels: &'a Levels,
    settings: DpmSettings,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let orders = settings.orders(levels);
    let mut beginning = x_t_last.detach();
    settings.walk(levels, denoiser, x_t_last, noise, move |x, latest, i| {
        let order = orders.get(i).copied().unwrap_or(1).min(latest.len());
        if order == 1 {
            beginning = x.clone();
        }
        let step = settings.stage(levels, i, order);
        let mean = step.singlestep(&beginning, &latest[..order], settings.second_order)?;
        Ok((mean, step.sigma))
    })
}

impl DpmSettings {
    /// From the beginning of its group to level i + 1.
    fn stage(&self, levels: &Levels, i: usize, order: usize) -> Integral {
        let ends = (levels.level(i + 1 - order), levels.level(i + 1));
        Integral::new(self.algorithm, ends, levels.manner())
    }

    /// The order of every step: 1, 2, ..., order, again and again, and lower at the end.
    fn orders(&self, levels: &Levels) -> Vec<usize> {
        let (n, order) = (levels.steps(), self.order.max(1));
        let clean = levels.level(n).is_clean();
        let mut orders: Vec<usize> = (0..n).map(|i| i % order + 1).collect();
        if (self.lower_order_final || clean || n % order != 0)
            && let Some(last) = orders.last_mut()
        {
            match (order, n % order) {
                // A full last group gives way to two smaller ones.
                (3, 0) | (2, 0) => *last = 1,
                _ => {}
            }
            if clean {
                *last = 1;
            }
        }
        orders
    }

    /// The noise that each step of a singlestep walk draws.
    pub(crate) fn singlestep_sigmas(&self, levels: &Levels) -> Vec<f64> {
        if !self.algorithm.is_stochastic() {
            return Vec::new();
        }
        let orders = self.orders(levels);
        let mut known = 0;
        let steps = levels.first()..levels.steps();
        steps
            .map(|i| {
                known += 1;
                let order = orders.get(i).copied().unwrap_or(1).min(known);
                self.stage(levels, i, order).sigma
            })
            .collect()
    }
}
