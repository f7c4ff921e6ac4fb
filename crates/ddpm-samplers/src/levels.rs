//! Levels of noise for samplers that step in sigma: which ones a walk visits, and what the network is told there.
//!
//! sigma_t = sqrt((1 - alpha-bar_t) / alpha-bar_t) is the noise of x_t / sqrt(alpha-bar_t), x_0 + sigma_t eps: the variance exploding
//! view (Song et al. 2021, "Score-based generative modeling"; Karras et al. 2022, section 2). Walks keep the images as they are
//! everywhere here, x_t itself, and only their steps are reckoned in sigma.

use crate::process::Answer;
use crate::{Error, Process, Result};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Schedule, Spacing, Timestep, eps_from_x_0};

/// The levels of a walk: sigma_T > ... > sigma_1 >= sigma_0, and the network's time at each but the last, as diffusers chooses them.
///
/// Step t of the walk goes from sigma_t to sigma_{t-1}. The times may lie between two steps of training; sigma is interpolated there.
/// Where the schedule of training ends without any signal, its last alpha-bar is taken for 2^-24, as by diffusers. Posterior means
/// are read as those of the walk's own steps, as on a respaced schedule.
///
/// ```
/// use ddpm_core::{Prediction, Schedule, Spacing};
/// use ddpm_samplers::{Clip, LevelChoice, Levels, Process};
///
/// let training = Process {
///     schedule: Schedule::linear(1000, 1e-4, 0.02)?,
///     prediction: Prediction::Noise,
///     clip: Clip::None,
/// };
/// let levels = Levels::of_dpm_solver(&training, LevelChoice::new(20, Spacing::Trailing))?;
/// assert_eq!(levels.times()[..3], [999.0, 949.0, 899.0]);
/// assert_eq!(levels.sigmas().len(), 21);
/// # Ok::<(), ddpm_samplers::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    /// Its schedule has one step a level.
    process: Process,
    /// By t; those of t = 0 are the end of the walk.
    sigmas: Vec<f64>,
    times: Vec<f64>,
    /// x_T of the walk in standard deviations.
    start: f64,
}

/// How the levels of a walk are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LevelChoice {
    /// The number of levels to start a step from.
    pub steps: usize,
    /// Where they lie among the steps of training: diffusers' `timestep_spacing` and `steps_offset`.
    pub spacing: Spacing,
    /// Between which ends they are spread otherwise.
    pub curve: Curve,
    /// Where the last step ends.
    pub end: End,
}

/// How sigma falls from the first level to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Curve {
    /// As on the schedule of training.
    Trained,
    /// Evenly in sigma^(1/7) (equation 5 of Karras et al. 2022): diffusers' `use_karras_sigmas`.
    Karras,
}

/// The level that the last step ends at: diffusers' `final_sigmas_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// `zero`: the clean image.
    Zero,
    /// `sigma_min`: the first level of training.
    SigmaMin,
}

/// Which whole time stands for one between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// The nearer: diffusers' way but for the schedule `squaredcos_cap_v2`.
    Nearest,
    /// The lower: diffusers' way for the schedule `squaredcos_cap_v2`.
    Down,
}

/// alpha-bar where it is 0: near enough to no signal, and a number.
const ALPHA_BAR_WITHOUT_SIGNAL: f64 = 1.0 / 16_777_216.0;

impl LevelChoice {
    /// `steps` levels as spaced, down to the clean image.
    pub fn new(steps: usize, spacing: Spacing) -> Self {
        LevelChoice {
            steps,
            spacing,
            curve: Curve::Trained,
            end: End::Zero,
        }
    }
}

impl Levels {
    /// The levels of diffusers' `DPMSolverMultistepScheduler`: whole times, one interval more than steps for linspace and leading
    /// spacing, and Karras' levels between the ends of training. `training.schedule` is the full one.
    ///
    /// # Errors
    /// When the schedule has not so many steps, or the offset of the spacing runs over its end.
    pub fn of_dpm_solver(training: &Process, choice: LevelChoice) -> Result<Self> {
        let table = Table::new(&training.schedule);
        let times = whole_times(table.steps(), choice)?;
        let (sigmas, times) = match choice.curve {
            Curve::Trained => (times.iter().map(|&t| table.sigma(t)).collect(), times),
            Curve::Karras => {
                let (first, last) = (table.steps() as f64 - 1.0, 0.0);
                let sigmas = karras(table.sigma(first), table.sigma(last), choice.steps);
                let times: Vec<f64> = sigmas.iter().map(|&sigma| table.time(sigma)).collect();
                (sigmas, times)
            }
        };
        Levels::new(training, &table, choice.end, sigmas, times)
    }

    /// The levels of diffusers' `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler` and `HeunDiscreteScheduler`: times that need
    /// not be whole for linspace spacing, Karras' levels between the ends of the spaced ones, and a start of sigma_T eps rather
    /// than x_T unless spacing is leading. `training.schedule` is the full one.
    ///
    /// # Errors
    /// When the schedule has not so many steps, or the offset of the spacing runs over its end.
    pub fn of_euler(training: &Process, choice: LevelChoice) -> Result<Self> {
        let table = Table::new(&training.schedule);
        let times = times(table.steps(), choice)?;
        let sigmas: Vec<f64> = times.iter().map(|&t| table.sigma(t)).collect();
        let (sigmas, times) = match (choice.curve, sigmas.as_slice()) {
            (Curve::Karras, [first, .., last]) => {
                let sigmas = karras(*first, *last, choice.steps);
                let times = sigmas.iter().map(|&sigma| table.time(sigma)).collect();
                (sigmas, times)
            }
            _ => (sigmas, times),
        };
        let mut levels = Levels::new(training, &table, choice.end, sigmas, times)?;
        if !matches!(choice.spacing, Spacing::Leading { .. }) {
            levels.start = levels.level(levels.process.schedule.steps()).noise();
        }
        Ok(levels)
    }

    /// The same with the network told whole times, as diffusers' `DPMSolverMultistepScheduler` does with Karras' levels.
    pub fn with_whole_times(mut self, rounding: Rounding) -> Self {
        // Levels that are those of training are so but for the last bits.
        const LAST_BITS: f64 = 1e-9;
        for time in &mut self.times {
            *time = match rounding {
                Rounding::Nearest => time.round_ties_even(),
                Rounding::Down => (*time + LAST_BITS).floor(),
            };
        }
        self
    }

    /// sigma of every level in the order of the walk, the end included: one number more than there are steps.
    pub fn sigmas(&self) -> Vec<f64> {
        self.sigmas.iter().rev().copied().collect()
    }

    /// What the network is told at every step, in the order of the walk.
    pub fn times(&self) -> Vec<f64> {
        self.times.iter().skip(1).rev().copied().collect()
    }

    /// The number of steps of a walk.
    pub fn steps(&self) -> usize {
        self.process.schedule.steps()
    }

    /// From sigmas and times in the order of the walk, the end not among them.
    fn new(
        training: &Process,
        table: &Table,
        end: End,
        sigmas: Vec<f64>,
        times: Vec<f64>,
    ) -> Result<Self> {
        let end = match end {
            End::Zero => 0.0,
            End::SigmaMin => table.sigma(0.0),
        };
        let rising = |last: f64, numbers: Vec<f64>| -> Vec<f64> {
            std::iter::once(last)
                .chain(numbers.into_iter().rev())
                .collect()
        };
        let sigmas = rising(end, sigmas);
        let alpha_bars: Vec<f64> = sigmas
            .iter()
            .skip(1)
            .map(|sigma| 1.0 / (1.0 + sigma * sigma))
            .collect();
        let process = Process {
            schedule: Schedule::from_alpha_bars(&alpha_bars)?,
            ..training.clone()
        };
        Ok(Levels {
            process,
            sigmas,
            times: rising(f64::NAN, times),
            start: 1.0,
        })
    }

    /// The steps of a walk in order, with what the network is told.
    pub(crate) fn walk(&self) -> Vec<(Timestep, f64)> {
        let steps = self.process.schedule.timesteps().rev();
        steps.map(|t| (t, self.time(t))).collect()
    }

    /// x as it is at step t, when x_T is still the standard normal noise that it was made from.
    pub(crate) fn begin(&self, x: &Tensor, t: Timestep) -> Result<Tensor> {
        match t == self.process.schedule.last() && self.start != 1.0 {
            true => Ok((x * self.start)?),
            false => Ok(x.clone()),
        }
    }

    /// The level that step t starts from; that of t = 0 is the end of the walk.
    pub(crate) fn level(&self, t: usize) -> Level {
        Level {
            sigma: self.sigmas.get(t).copied().unwrap_or(f64::NAN),
        }
    }

    /// The levels between which step t goes.
    pub(crate) fn step(&self, t: Timestep) -> (Level, Level) {
        let after = t.previous().map_or(0, Timestep::get);
        (self.level(t.get()), self.level(after))
    }

    /// x_0-hat for x at the level of step t, clipped.
    pub(crate) fn x_0_hat(
        &self,
        denoiser: &dyn Denoiser,
        x: &Tensor,
        t: Timestep,
    ) -> Result<Tensor> {
        self.process.x_0_hat(x, &self.ask(denoiser, x, t)?)
    }

    /// The noise that x at the level of step t and x_0-hat imply.
    pub(crate) fn eps_hat(&self, x: &Tensor, t: Timestep, x_0_hat: &Tensor) -> Result<Tensor> {
        let t = vec![t; x.dims().first().copied().unwrap_or(0)];
        Ok(eps_from_x_0(&self.process.schedule, x, &t, x_0_hat)?)
    }

    fn ask(&self, denoiser: &dyn Denoiser, x: &Tensor, t: Timestep) -> Result<Answer> {
        self.process.ask_at(denoiser, x, t, self.time(t))
    }

    fn time(&self, t: Timestep) -> f64 {
        self.times.get(t.get()).copied().unwrap_or(f64::NAN)
    }
}

/// One level of noise: x = signal x_0 + noise eps with signal^2 + noise^2 = 1 and sigma = noise / signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Level {
    pub(crate) sigma: f64,
}

impl Level {
    /// alpha_t of Lu et al. 2022, sqrt(alpha-bar): 1 at the clean image.
    pub(crate) fn signal(self) -> f64 {
        1.0 / self.sigma.hypot(1.0)
    }

    /// sigma_t of Lu et al. 2022, sqrt(1 - alpha-bar): 0 at the clean image.
    pub(crate) fn noise(self) -> f64 {
        self.sigma * self.signal()
    }

    /// lambda_t of Lu et al. 2022, half the logarithm of the signal-to-noise ratio: infinite at the clean image.
    pub(crate) fn lambda(self) -> f64 {
        -self.sigma.ln()
    }
}

/// x at the level `from`, with its distance from x_0-hat in the variance exploding view shortened to a `share`, at the scale of the
/// level `to`: x'/signal' = x_0-hat + share (x/signal - x_0-hat). With share = sigma'/sigma this is Euler's step of equation 3 of
/// Karras et al. 2022.
pub(crate) fn straight(
    x: &Tensor,
    x_0_hat: &Tensor,
    (from, to): (Level, Level),
    share: f64,
) -> Result<Tensor> {
    let of_x = share * to.signal() / from.signal();
    let of_x_0 = (1.0 - share) * to.signal();
    Ok(((x * of_x)? + (x_0_hat * of_x_0)?)?)
}

/// sigma on the schedule of training, by network time 0..T-1.
struct Table {
    sigmas: Vec<f64>,
}

impl Table {
    fn new(training: &Schedule) -> Self {
        let sigma = |t| match training.alpha_bar(t) {
            0.0 => ALPHA_BAR_WITHOUT_SIGNAL,
            alpha_bar => alpha_bar,
        };
        let sigmas = training.timesteps().map(sigma);
        Table {
            sigmas: sigmas.map(|a| ((1.0 - a) / a).sqrt()).collect(),
        }
    }

    fn steps(&self) -> usize {
        self.sigmas.len()
    }

    /// sigma at a time, linear between the steps of training.
    fn sigma(&self, time: f64) -> f64 {
        let below = time.floor();
        let at = |i: f64| self.sigmas.get(i as usize).copied();
        match (at(below), at(below + 1.0)) {
            (Some(low), Some(high)) => low + (time - below) * (high - low),
            (low, _) => low.unwrap_or(f64::NAN),
        }
    }

    /// The time of a sigma, linear in ln sigma between the steps of training, from 0 to T - 1.
    fn time(&self, sigma: f64) -> f64 {
        let above = self.sigmas.partition_point(|&s| s <= sigma);
        let below = above.saturating_sub(1).min(self.steps().saturating_sub(2));
        match self.sigmas.get(below..below + 2) {
            Some(&[low, high]) => {
                below as f64 + ((sigma / low).ln() / (high / low).ln()).clamp(0.0, 1.0)
            }
            _ => 0.0,
        }
    }
}

/// Karras' levels from `first` down to `last`: equation 5 of Karras et al. 2022 with rho = 7.
fn karras(first: f64, last: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (high, low) = (first.powf(1.0 / RHO), last.powf(1.0 / RHO));
    let gap = 1.0 / steps.saturating_sub(1).max(1) as f64;
    // The ends exactly, so that a walk may end at its last level.
    let level = |i| match i {
        0 => first,
        i if i + 1 == steps => last,
        i => (high + i as f64 * gap * (low - high)).powf(RHO),
    };
    (0..steps).map(level).collect()
}

/// The times of diffusers' Euler and Heun schedulers, falling.
fn times(of: usize, choice: LevelChoice) -> Result<Vec<f64>> {
    check_steps(of, choice.steps, of)?;
    let n = choice.steps;
    let last = (of - 1) as f64;
    let gap = last / n.saturating_sub(1).max(1) as f64;
    match choice.spacing {
        // diffusers' single level of linspace is the cleanest; there is nothing to take away from noise then.
        Spacing::Linspace if n == 1 => Ok(vec![0.0]),
        Spacing::Linspace => Ok((0..n).rev().map(|i| i as f64 * gap).collect()),
        Spacing::Leading { offset } => leading(of, n, 0, of / n, offset),
        Spacing::Trailing => Ok(trailing(of, n)),
    }
}

/// The times of diffusers' DPM solvers, falling: time 0 is an end of linspace and leading spacing, and left out.
fn whole_times(of: usize, choice: LevelChoice) -> Result<Vec<f64>> {
    let n = choice.steps;
    match choice.spacing {
        Spacing::Trailing => {
            check_steps(of, n, of)?;
            Ok(trailing(of, n))
        }
        Spacing::Linspace => {
            check_steps(of, n, of - 1)?;
            let gap = (of - 1) as f64 / n as f64;
            let times = (1..=n).rev().map(|i| (i as f64 * gap).round_ties_even());
            Ok(times.collect())
        }
        Spacing::Leading { offset } => {
            check_steps(of, n, of - 1)?;
            leading(of, n, 1, of / (n + 1), offset)
        }
    }
}

fn trailing(of: usize, n: usize) -> Vec<f64> {
    let gap = of as f64 / n as f64;
    (0..n)
        .map(|i| (of as f64 - i as f64 * gap).round_ties_even() - 1.0)
        .collect()
}

/// n multiples of `gap` from the `first` on, with the offset, falling.
fn leading(of: usize, n: usize, first: usize, gap: usize, offset: usize) -> Result<Vec<f64>> {
    let last = ((first + n - 1) * gap).saturating_add(offset);
    if last >= of {
        return Err(ddpm_core::Error::Offset {
            asked: n,
            steps: of,
            offset,
            last,
        }
        .into());
    }
    let times = (first..first + n).rev().map(|i| (i * gap + offset) as f64);
    Ok(times.collect())
}

fn check_steps(steps: usize, asked: usize, most: usize) -> Result<()> {
    match (1..=most).contains(&asked) {
        true => Ok(()),
        false => Err(Error::StepCount { asked, steps, most }),
    }
}
