//! Levels of noise for samplers that step in sigma: which ones a walk visits, and what the network is told there.
//!
//! sigma_t = sqrt((1 - alpha-bar_t) / alpha-bar_t) is the noise of x_t / sqrt(alpha-bar_t), x_0 + sigma_t eps: the variance exploding
//! view (Song et al. 2021, "Score-based generative modeling"; Karras et al. 2022, section 2). Walks keep the images as they are
//! everywhere here, x_t itself, and only their steps are reckoned in sigma.

use crate::curve::{beta, exponential, karras, lu};
use crate::level::Level;
use crate::meaning::{Guess, Meaning};
use crate::table::Table;
use crate::walk::Moved;
use crate::{Clip, Curve, Error, Manner, Process, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Spacing};

/// The levels of a walk, mostly falling, and the network's time at each but the last, as diffusers chooses them.
///
/// Step i of the walk, counted from 0, goes from level i to level i + 1. The times may lie between two steps of training; sigma is
/// interpolated there. Posterior means are read as those of the walk's own steps, as on a respaced schedule.
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
    /// In the order of the walk, its end the last.
    levels: Vec<Level>,
    times: Vec<f64>,
    /// The step that the walk begins with.
    first: usize,
    meaning: Meaning,
    clock: Clock,
    clip: Clip,
    /// x_T of the walk in standard deviations.
    start: f64,
    /// The images of the walk's end are handed over in the variance exploding view, as diffusers' Euler does.
    exploding: bool,
    manner: Manner,
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
    /// The lowest sigma of a curve, unless it is that of training: diffusers' `sigma_min`.
    pub sigma_min: Option<f64>,
    /// The highest sigma of a curve, unless it is that of training: diffusers' `sigma_max`.
    pub sigma_max: Option<f64>,
    /// Steps of training at a lower lambda = -ln sigma are left out: diffusers' `lambda_min_clipped`.
    pub lambda_min: f64,
    /// alpha-bar in f64, or in f32 as diffusers has it.
    pub manner: Manner,
}

/// The level that the last step ends at: diffusers' `final_sigmas_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// `zero`: the clean image.
    Zero,
    /// `sigma_min`: the first level of training.
    SigmaMin,
    /// The level that the last step starts from, so that it does nothing: `sigma_min` of diffusers' UniPC and DEIS with a curve.
    Again,
}

/// Which whole time stands for one between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// The nearer.
    Nearest,
    /// The lower.
    Down,
}

impl LevelChoice {
    /// `steps` levels as spaced, down to the clean image.
    pub fn new(steps: usize, spacing: Spacing) -> Self {
        LevelChoice {
            steps,
            spacing,
            curve: Curve::Trained,
            end: End::Zero,
            sigma_min: None,
            sigma_max: None,
            lambda_min: f64::NEG_INFINITY,
            manner: Manner::Paper,
        }
    }
}

impl Levels {
    /// The levels of diffusers' `DPMSolverMultistepScheduler`, its singlestep sister, UniPC and DEIS: whole times, one interval more
    /// than steps for linspace and leading spacing, and curves between the ends of training. `training.schedule` is the full one.
    ///
    /// # Errors
    /// When the schedule has not so many steps, or the offset of the spacing runs over its end.
    pub fn of_dpm_solver(training: &Process, choice: LevelChoice) -> Result<Self> {
        let table = Table::new(&training.schedule, choice.manner);
        let times = whole_times(&table, choice)?;
        Levels::curved(
            training,
            &table,
            choice,
            (table.last(), table.first()),
            times,
        )
    }

    /// The levels of diffusers' `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler`, `HeunDiscreteScheduler`, KDPM2 and LMS:
    /// times that need not be whole for linspace spacing, curves between the ends of the spaced ones, and a start of sigma_T eps
    /// rather than x_T unless spacing is leading. `training.schedule` is the full one.
    ///
    /// # Errors
    /// When the schedule has not so many steps, or the offset of the spacing runs over its end.
    pub fn of_euler(training: &Process, choice: LevelChoice) -> Result<Self> {
        Levels::of_euler_between(training, choice, false)
    }

    /// The same, where a curve goes between the ends of training if it is `whole`.
    pub(crate) fn of_euler_between(
        training: &Process,
        choice: LevelChoice,
        whole: bool,
    ) -> Result<Self> {
        let table = Table::new(&training.schedule, choice.manner);
        let times = times(table.steps(), choice)?;
        let ends = match times.as_slice() {
            _ if whole => (table.last(), table.first()),
            [first, .., last] => (table.sigma(*first), table.sigma(*last)),
            [only] => (table.sigma(*only), table.sigma(*only)),
            [] => (f64::NAN, f64::NAN),
        };
        let levels = Levels::curved(training, &table, choice, ends, times)?;
        Ok(levels.exploding(choice.spacing))
    }

    /// The levels of training at these network times, falling: what diffusers makes of custom `timesteps`.
    ///
    /// # Errors
    /// When there is none, they do not fall, or one lies beyond the schedule.
    pub fn at_times(training: &Process, times: &[f64], choice: LevelChoice) -> Result<Self> {
        let table = Table::new(&training.schedule, choice.manner);
        check_times(times, table.steps())?;
        let sigmas = times.iter().map(|&t| table.sigma(t)).collect();
        Levels::new(training, &table, choice, sigmas, times.to_vec())
    }

    /// These levels, falling, the end included, with the times that training has for them: what diffusers makes of custom `sigmas`.
    ///
    /// # Errors
    /// When there are fewer than two, or they do not fall.
    pub fn at_sigmas(training: &Process, sigmas: &[f64], manner: Manner) -> Result<Self> {
        let table = Table::new(&training.schedule, manner);
        let falls = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        let (Some((&end, from)), true) = (sigmas.split_last(), falls && sigmas.len() > 1) else {
            return Err(Error::Order {
                name: "sigmas",
                expected: "two numbers of at least 0 or more of them, falling",
            });
        };
        let times = from.iter().map(|&sigma| table.time(sigma)).collect();
        let choice = LevelChoice {
            manner,
            ..LevelChoice::new(from.len(), Spacing::Trailing)
        };
        let mut levels = Levels::new(training, &table, choice, from.to_vec(), times)?;
        if let Some(last) = levels.levels.last_mut() {
            *last = Level::of_sigma(end);
        }
        Ok(levels)
    }

    /// The same for a start and an end in the variance exploding view, as diffusers' Euler family has them with this spacing.
    pub fn exploding(mut self, spacing: Spacing) -> Self {
        let sigmas = self.levels.iter().map(|level| level.sigma());
        let highest = sigmas.fold(0.0, f64::max);
        let signal = self.level(0).signal;
        self.start = match spacing {
            // Leading spacing starts below T, where x_T still holds some of the image.
            Spacing::Leading { .. } => highest.hypot(1.0) * signal,
            _ => highest * signal,
        };
        self.exploding = true;
        self
    }

    /// The same with the network told whole times, as by diffusers' DPM solvers.
    pub fn with_whole_times(mut self, rounding: Rounding) -> Self {
        for time in &mut self.times {
            *time = match rounding {
                Rounding::Nearest => time.round_ties_even(),
                Rounding::Down => time.floor(),
            };
        }
        self
    }

    /// The same with the network told ln(sigma) / 4 instead of a time: `timestep_type: continuous` of diffusers' Euler.
    pub fn with_log_sigma_times(mut self) -> Self {
        self.clock = Clock::LogSigma;
        self.times = self
            .levels
            .iter()
            .map(|&level| self.time_of(level))
            .collect();
        self.times.pop();
        self
    }

    /// The same with the network told sigma at times from 1 down to `least` rather than 0, between these ends: diffusers'
    /// `ScoreSdeVeScheduler`, whose steps go by the levels themselves.
    pub(crate) fn told_by_time(mut self, (high, low): (f64, f64), least: f64) -> Self {
        let last = self.times.len().saturating_sub(1).max(1) as f64;
        for (i, time) in self.times.iter_mut().enumerate() {
            let share = 1.0 + (least - 1.0) * i as f64 / last;
            *time = low * (high / low).powf(share);
        }
        self
    }

    /// The same begun with step `first`, counted from 0, from images that are already at that level.
    pub fn from_step(mut self, first: usize) -> Self {
        self.first = first;
        self
    }

    /// sigma of every level in the order of the walk, the end included: one number more than there are steps. For a flow, its s.
    pub fn sigmas(&self) -> Vec<f64> {
        let flow = |level: &&Level| level.signal + level.noise == 1.0 && level.noise > 0.0;
        match self.levels.first().filter(flow) {
            Some(_) => self.levels.iter().map(|level| level.noise).collect(),
            None => self.levels.iter().map(|level| level.sigma()).collect(),
        }
    }

    /// What the network is told at every step, in the order of the walk.
    pub fn times(&self) -> Vec<f64> {
        self.times.clone()
    }

    /// The number of steps of a walk from the first level.
    pub fn steps(&self) -> usize {
        self.times.len()
    }

    /// The levels of a model that does not live on a schedule, all in sigma, the end included.
    pub(crate) fn of_model(
        meaning: Meaning,
        clock: Clock,
        clip: Clip,
        sigmas: &[f64],
        manner: Manner,
    ) -> Self {
        let mut levels = Levels {
            levels: sigmas.iter().map(|&sigma| Level::of_sigma(sigma)).collect(),
            times: Vec::new(),
            first: 0,
            meaning,
            clock,
            clip,
            start: 1.0,
            exploding: true,
            manner,
        };
        let from = levels.levels.iter().take(sigmas.len().saturating_sub(1));
        levels.times = from.map(|&level| levels.time_of(level)).collect();
        levels
    }

    /// The levels of a curve between `ends`, or of `times`.
    fn curved(
        training: &Process,
        table: &Table,
        choice: LevelChoice,
        ends: (f64, f64),
        times: Vec<f64>,
    ) -> Result<Self> {
        let n = times.len();
        let ends = (
            choice.sigma_max.unwrap_or(ends.0),
            choice.sigma_min.unwrap_or(ends.1),
        );
        let sigmas = match choice.curve {
            Curve::Trained => times.iter().map(|&t| table.sigma(t)).collect(),
            Curve::Karras => karras(ends, n),
            Curve::Exponential => exponential(ends, n),
            Curve::Lu => lu(table.log_ends(), n),
            Curve::Beta => beta(ends, n),
            Curve::LogLinear => {
                let mut sigmas = exponential((table.last(), table.first()), n + 1);
                let end = sigmas.pop();
                let mut levels = Levels::new(training, table, choice, sigmas, times)?;
                levels.set_end(end.map(Level::of_sigma));
                return Ok(levels);
            }
            Curve::Flow(flow) => {
                return Levels::flowing(training, table, choice, flow.levels(table.steps(), n));
            }
            Curve::KarrasFlow => {
                let noise = karras(ends, n).iter().map(|s| s / (1.0 + s)).collect();
                return Levels::flowing(training, table, choice, noise);
            }
        };
        let times = match choice.curve {
            Curve::Trained => times,
            _ => sigmas.iter().map(|&sigma| table.time(sigma)).collect(),
        };
        Levels::new(training, table, choice, sigmas, times)
    }

    /// The levels of a flow, told by their share of T.
    fn flowing(
        training: &Process,
        table: &Table,
        choice: LevelChoice,
        noise: Vec<f64>,
    ) -> Result<Self> {
        let times = noise.iter().map(|s| s * table.steps() as f64).collect();
        let mut levels = Levels::new(training, table, choice, noise.clone(), times)?;
        let end = match choice.end {
            End::Zero => 0.0,
            End::SigmaMin => table.first(),
            End::Again => noise.last().copied().unwrap_or(f64::NAN),
        };
        let noise = noise.into_iter().chain([end]);
        levels.levels = noise.map(Level::of_flow).collect();
        Ok(levels)
    }

    /// From sigmas and times in the order of the walk, the end not among them.
    fn new(
        training: &Process,
        table: &Table,
        choice: LevelChoice,
        mut sigmas: Vec<f64>,
        times: Vec<f64>,
    ) -> Result<Self> {
        sigmas.push(match choice.end {
            End::Zero => 0.0,
            End::SigmaMin => table.first(),
            End::Again => sigmas.last().copied().unwrap_or(f64::NAN),
        });
        if choice.manner == Manner::Diffusers {
            let in_f32 = |sigma: &mut f64| *sigma = f64::from(*sigma as f32);
            sigmas.iter_mut().for_each(in_f32);
        }
        Ok(Levels {
            levels: sigmas.into_iter().map(Level::of_sigma).collect(),
            times,
            first: 0,
            meaning: Meaning::Prediction(training.prediction),
            clock: Clock::Trained(table.clone()),
            clip: training.clip.clone(),
            start: 1.0,
            exploding: false,
            manner: choice.manner,
        })
    }

    fn set_end(&mut self, end: Option<Level>) {
        if let (Some(last), Some(end)) = (self.levels.last_mut(), end) {
            *last = end;
        }
    }

    /// The same for a network with other words.
    pub(crate) fn meaning(mut self, meaning: Meaning) -> Self {
        self.meaning = meaning;
        self
    }

    /// A walk over the levels: `rule` does step i, counted from 0, with x at level i and what the network makes of it.
    pub(crate) fn walk<'a>(
        &'a self,
        denoiser: &'a dyn Denoiser,
        x_t_last: &Tensor,
        mut rule: impl FnMut(&Tensor, &Guess, usize) -> Result<Tensor> + 'a,
    ) -> Walk<'a> {
        self.walk_unasked(x_t_last, move |x, i| {
            let guess = self.guess(denoiser, x, i)?;
            Ok(Moved {
                x: rule(x, &guess, i)?,
                x_0_hat: guess.x_0_hat,
            })
        })
    }

    /// The same for a `rule` that asks the network by itself.
    pub(crate) fn walk_unasked<'a>(
        &'a self,
        x_t_last: &Tensor,
        mut rule: impl FnMut(&Tensor, usize) -> Result<Moved> + 'a,
    ) -> Walk<'a> {
        let n = self.steps();
        let numbered = self.times.iter().enumerate().skip(self.first);
        let steps = numbered.map(|(i, &time)| (n - i, time)).collect();
        Walk::over(steps, x_t_last, move |x, left| {
            let i = n - left;
            // x_T is still the standard normal noise that it was made from.
            let moved = match i == 0 && self.start != 1.0 {
                true => rule(&(x * self.start)?, i)?,
                false => rule(x, i)?,
            };
            self.arrive(moved, i)
        })
    }

    fn arrive(&self, moved: Moved, i: usize) -> Result<Moved> {
        let signal = self.level(i + 1).signal;
        match self.exploding && i + 1 == self.steps() && signal != 1.0 {
            true => Ok(Moved {
                x: (moved.x / signal)?,
                ..moved
            }),
            false => Ok(moved),
        }
    }

    /// Level i; that of i = N is the end of the walk.
    pub(crate) fn level(&self, i: usize) -> Level {
        self.levels.get(i).copied().unwrap_or(Level {
            signal: f64::NAN,
            noise: f64::NAN,
        })
    }

    /// The levels between which step i goes.
    pub(crate) fn step(&self, i: usize) -> (Level, Level) {
        (self.level(i), self.level(i + 1))
    }

    /// The step that a walk begins with.
    pub(crate) fn first(&self) -> usize {
        self.first
    }

    /// Whose account is followed.
    pub(crate) fn manner(&self) -> Manner {
        self.manner
    }

    /// What the network makes of x at level i.
    pub(crate) fn guess(&self, denoiser: &dyn Denoiser, x: &Tensor, i: usize) -> Result<Guess> {
        let time = self.times.get(i).copied().unwrap_or(f64::NAN);
        self.guess_at(denoiser, x, self.step(i), time)
    }

    /// What the network, told `time`, makes of x at a level, of which the second is the one before it in training.
    pub(crate) fn guess_at(
        &self,
        denoiser: &dyn Denoiser,
        x: &Tensor,
        levels: (Level, Level),
        time: f64,
    ) -> Result<Guess> {
        self.meaning.guess(&self.clip, denoiser, x, levels, time)
    }

    /// What the network is told at a level, be it one of the walk's or between them.
    pub(crate) fn time_of(&self, level: Level) -> f64 {
        match &self.clock {
            Clock::Trained(table) => table.time(level.sigma()),
            Clock::LogSigma => 0.25 * level.sigma().ln(),
            Clock::Sigma => level.sigma(),
        }
    }
}

/// How a network is told of a level.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Clock {
    /// By the step of training, or a number between two.
    Trained(Table),
    /// ln(sigma) / 4: c_noise of Karras et al. 2022, table 1.
    LogSigma,
    /// sigma itself.
    Sigma,
}

/// The times of diffusers' Euler and Heun schedulers, falling.
fn times(of: usize, choice: LevelChoice) -> Result<Vec<f64>> {
    check_steps(of, choice.steps, of)?;
    let n = choice.steps;
    let last = (of - 1) as f64;
    let gap = last / n.saturating_sub(1).max(1) as f64;
    // diffusers keeps these times in f32.
    let exactly = |time: f64| match choice.manner {
        Manner::Paper => time,
        Manner::Diffusers => f64::from(time as f32),
    };
    match choice.spacing {
        // diffusers' single level of linspace is the cleanest; there is nothing to take away from noise then.
        Spacing::Linspace if n == 1 => Ok(vec![0.0]),
        Spacing::Linspace => Ok((0..n).rev().map(|i| exactly(i as f64 * gap)).collect()),
        Spacing::Leading { offset } => leading(of, n, 0, of / n, offset),
        Spacing::Trailing => Ok(trailing(of, n, of)),
    }
}

/// The times of diffusers' DPM solvers, falling: time 0 is an end of linspace and leading spacing, and left out.
fn whole_times(table: &Table, choice: LevelChoice) -> Result<Vec<f64>> {
    let (n, all) = (choice.steps, table.steps());
    let of = all - table.below_lambda(choice.lambda_min).min(all);
    match choice.spacing {
        Spacing::Trailing => {
            check_steps(all, n, all)?;
            Ok(trailing(all, n, of))
        }
        Spacing::Linspace => {
            check_steps(all, n, of.saturating_sub(1))?;
            let gap = (of - 1) as f64 / n as f64;
            let times = (1..=n).rev().map(|i| (i as f64 * gap).round_ties_even());
            Ok(times.collect())
        }
        Spacing::Leading { offset } => {
            check_steps(all, n, of.saturating_sub(1))?;
            leading(all, n, 1, of / (n + 1), offset)
        }
    }
}

/// Every (of / n)th time from `from` - 1 down: n of them where `from` is `of`.
fn trailing(of: usize, n: usize, from: usize) -> Vec<f64> {
    let gap = of as f64 / n as f64;
    (0..n)
        .map(|i| (from as f64 - i as f64 * gap).round_ties_even() - 1.0)
        .filter(|&time| time >= 0.0)
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

/// Fails unless 1..=`most` steps are asked for, of a schedule of so many.
pub(crate) fn check_steps(steps: usize, asked: usize, most: usize) -> Result<()> {
    match (1..=most).contains(&asked) {
        true => Ok(()),
        false => Err(Error::StepCount { asked, steps, most }),
    }
}

/// Fails unless the times fall from below `steps` to at least 0.
pub(crate) fn check_times(times: &[f64], steps: usize) -> Result<()> {
    let within = |time: &f64| (0.0..steps as f64).contains(time);
    match !times.is_empty() && times.iter().all(within) && times.windows(2).all(|t| t[0] > t[1]) {
        true => Ok(()),
        false => Err(Error::Times { steps }),
    }
}
