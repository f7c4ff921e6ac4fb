//! sigma on the schedule of training, by network time, and back.

use crate::Manner;
use ddpm_core::Schedule;

/// sigma_t = sqrt((1 - alpha-bar_t) / alpha-bar_t) by network time 0..T-1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table {
    sigmas: Vec<f64>,
    logs: Vec<f64>,
    manner: Manner,
}

/// alpha-bar where it is 0: near enough to no signal, and a number.
const ALPHA_BAR_WITHOUT_SIGNAL: f64 = 1.0 / 16_777_216.0;

/// The smallest sigma that has a time.
const LEAST: f64 = 1e-10;

impl Table {
    /// Where the schedule ends without any signal, its last alpha-bar is taken for 2^-24, as by diffusers.
    pub(crate) fn new(training: &Schedule, manner: Manner) -> Self {
        let sigma = |t| {
            let alpha_bar = match training.alpha_bar(t) {
                0.0 => ALPHA_BAR_WITHOUT_SIGNAL,
                alpha_bar => alpha_bar,
            };
            match manner {
                Manner::Paper => ((1.0 - alpha_bar) / alpha_bar).sqrt(),
                Manner::Diffusers => {
                    let alpha_bar = alpha_bar as f32;
                    f64::from(((1.0 - alpha_bar) / alpha_bar).sqrt())
                }
            }
        };
        Table::of_sigmas(training.timesteps().map(sigma).collect(), manner)
    }

    /// The table of these sigmas, rising with time.
    pub(crate) fn of_sigmas(sigmas: Vec<f64>, manner: Manner) -> Self {
        let logs = sigmas.iter().map(|sigma| match manner {
            Manner::Paper => sigma.ln(),
            Manner::Diffusers => f64::from(sigma.ln() as f32),
        });
        Table {
            logs: logs.collect(),
            sigmas,
            manner,
        }
    }

    /// T.
    pub(crate) fn steps(&self) -> usize {
        self.sigmas.len()
    }

    /// The sigma of time 0.
    pub(crate) fn first(&self) -> f64 {
        self.sigmas.first().copied().unwrap_or(f64::NAN)
    }

    /// The sigma of time T - 1.
    pub(crate) fn last(&self) -> f64 {
        self.sigmas.last().copied().unwrap_or(f64::NAN)
    }

    /// ln sigma of time T - 1 and of time 0.
    pub(crate) fn log_ends(&self) -> (f64, f64) {
        let end = |log: Option<&f64>| log.copied().unwrap_or(f64::NAN);
        (end(self.logs.last()), end(self.logs.first()))
    }

    /// sigma at a time, linear between the steps of training.
    pub(crate) fn sigma(&self, time: f64) -> f64 {
        let below = time.floor();
        let at = |i: f64| self.sigmas.get(i as usize).copied();
        match (at(below), at(below + 1.0)) {
            (Some(low), Some(high)) => low + (time - below) * (high - low),
            (low, _) => low.unwrap_or(f64::NAN),
        }
    }

    /// The time of a sigma, linear in ln sigma between the steps of training, from 0 to T - 1.
    pub(crate) fn time(&self, sigma: f64) -> f64 {
        let log = sigma.max(LEAST).ln();
        let below = self.logs.iter().rposition(|&l| l <= log).unwrap_or(0);
        let below = below.min(self.steps().saturating_sub(2));
        match self.logs.get(below..below + 2) {
            Some(&[low, high]) => {
                let gap = match self.manner {
                    Manner::Paper => high - low,
                    Manner::Diffusers => f64::from(high as f32 - low as f32),
                };
                below as f64 + ((log - low) / gap).clamp(0.0, 1.0)
            }
            _ => 0.0,
        }
    }

    /// How many times lie at lambda below `lambda`, the noisiest of the schedule.
    pub(crate) fn below_lambda(&self, lambda: f64) -> usize {
        self.sigmas.iter().filter(|s| -s.ln() < lambda).count()
    }
}
