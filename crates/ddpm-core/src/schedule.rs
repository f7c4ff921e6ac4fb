//! The noise schedule: beta_t, alpha_t, alpha-bar_t for t = 1..=T, and everything that follows from them alone.

use crate::{Error, Result, Timestep};

/// A variance schedule beta_1, ..., beta_T (section 2 of Ho et al. 2020), in f64.
///
/// alpha-bar is known for t = 0..=T, with alpha-bar_0 = 1, and falls at every step; alpha-bar_T may be 0
/// (zero terminal SNR), no other. A schedule knows which steps of the training schedule its own steps are, so that
/// a respaced one still tells the network the times it was trained with: see [`Schedule::network_time`].
///
/// The methods that take a [`Timestep`] return NaN when it comes from a longer schedule; functions that compute
/// tensors return [`Error::Timestep`] then.
///
/// ```
/// use ddpm_core::{Schedule, Spacing};
///
/// let schedule = Schedule::linear(1000, 1e-4, 0.02)?;
/// assert!((schedule.alpha_bar(schedule.timestep(500)?) - 0.07858724288177821).abs() < 1e-15);
///
/// let fifty = schedule.respaced(Spacing::Trailing, 50)?;
/// assert_eq!(fifty.steps(), 50);
/// assert_eq!(fifty.network_time(fifty.last()), 999.0);
/// # Ok::<(), ddpm_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Index t in 0..=T in all three tables, so that no index is ever shifted; beta_0 = 0 is never read.
    beta: Vec<f64>,
    alpha_bar: Vec<f64>,
    /// The step of the training schedule, counted from 1, that step t is.
    trained: Vec<usize>,
}

impl Schedule {
    /// The schedule with these betas, `betas[0]` being beta_1.
    ///
    /// # Errors
    /// When there is none; when one lies outside (0, 1]; when alpha-bar does not fall at every step, which is so
    /// when a beta is too small for f64 or when alpha-bar reaches 0 before the last step.
    pub fn from_betas(betas: &[f64]) -> Result<Self> {
        for (beta, t) in betas.iter().zip(1..) {
            if !(*beta > 0.0 && *beta <= 1.0) {
                return Err(Error::Beta { t, value: *beta });
            }
        }
        let mut beta = vec![0.0];
        beta.extend_from_slice(betas);
        let trained = (0..=betas.len()).collect();
        Self::checked(beta, alpha_bars(betas), trained)
    }

    /// The schedule with this alpha-bar, `alpha_bars[0]` being alpha-bar_1: beta_t = 1 - alpha-bar_t / alpha-bar_{t-1}.
    ///
    /// # Errors
    /// When there is none, or when they do not fall strictly from 1 to at least 0.
    pub fn from_alpha_bars(alpha_bars: &[f64]) -> Result<Self> {
        let mut alpha_bar = vec![1.0];
        alpha_bar.extend_from_slice(alpha_bars);
        let mut beta = vec![0.0];
        beta.extend(alpha_bar.windows(2).map(|w| 1.0 - w[1] / w[0]));
        let trained = (0..=alpha_bars.len()).collect();
        Self::checked(beta, alpha_bar, trained)
    }

    /// The number of steps T of this schedule.
    pub fn steps(&self) -> usize {
        self.alpha_bar.len() - 1
    }

    /// The step t, counted from 1.
    ///
    /// # Errors
    /// When t lies outside `1..=T`.
    pub fn timestep(&self, t: usize) -> Result<Timestep> {
        let t = Timestep::new(t);
        self.check(t)?;
        Ok(t)
    }

    /// The step that a network told `time` (counted from 0, on the training schedule) is at, if it is one of ours.
    pub fn timestep_at_network_time(&self, time: usize) -> Option<Timestep> {
        let t = self.trained.binary_search(&time.checked_add(1)?).ok()?;
        Some(Timestep::new(t))
    }

    /// The last step T, whose x_T is where sampling starts.
    pub fn last(&self) -> Timestep {
        Timestep::new(self.steps())
    }

    /// All steps 1, ..., T; `.rev()` is the order of sampling.
    pub fn timesteps(
        &self,
    ) -> impl DoubleEndedIterator<Item = Timestep> + ExactSizeIterator + use<> {
        // Not `1..=T`, which is no ExactSizeIterator.
        (0..self.steps()).map(|before| Timestep::new(before + 1))
    }

    /// beta_t, the variance that step t adds, in (0, 1].
    pub fn beta(&self, t: Timestep) -> f64 {
        value_at(&self.beta, t)
    }

    /// alpha_t = 1 - beta_t, in [0, 1).
    pub fn alpha(&self, t: Timestep) -> f64 {
        1.0 - self.beta(t)
    }

    /// alpha-bar_t, the product of alpha_1, ..., alpha_t: how much of x_0's variance is left, in [0, 1).
    pub fn alpha_bar(&self, t: Timestep) -> f64 {
        value_at(&self.alpha_bar, t)
    }

    /// alpha-bar_{t-1}, which is 1 at t = 1, in (0, 1].
    pub fn alpha_bar_previous(&self, t: Timestep) -> f64 {
        t.previous().map_or(1.0, |t| self.alpha_bar(t))
    }

    /// The whole table alpha-bar_0 = 1, alpha-bar_1, ..., alpha-bar_T: T + 1 numbers, indexed by t.
    pub fn alpha_bars(&self) -> &[f64] {
        &self.alpha_bar
    }

    /// beta_1, ..., beta_T: T numbers, what [`Schedule::from_betas`] takes.
    pub fn betas(&self) -> &[f64] {
        self.beta.get(1..).unwrap_or_default()
    }

    /// The signal-to-noise ratio alpha-bar_t / (1 - alpha-bar_t) (Kingma et al. 2021, equation 1), falling from large to near 0.
    pub fn snr(&self, t: Timestep) -> f64 {
        self.alpha_bar(t) / (1.0 - self.alpha_bar(t))
    }

    /// beta-tilde_t = beta_t (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t), the variance of the posterior
    /// (equation 7 of Ho et al. 2020); 0 at t = 1, between 0 and beta_t elsewhere.
    pub fn beta_tilde(&self, t: Timestep) -> f64 {
        self.beta(t) * (1.0 - self.alpha_bar_previous(t)) / (1.0 - self.alpha_bar(t))
    }

    /// The time that the network is told at step t: `0..=T-1` as by Ho and by diffusers, and on a respaced schedule
    /// the time of that step on the schedule of training.
    pub fn network_time(&self, t: Timestep) -> f64 {
        self.trained
            .get(t.get())
            .map_or(f64::NAN, |t| (t - 1) as f64)
    }

    /// [`Schedule::network_time`] of each image of a batch: what [`Denoiser::predict`](crate::Denoiser::predict) takes.
    ///
    /// # Errors
    /// When a step lies beyond this schedule.
    pub fn network_times(&self, t: &[Timestep]) -> Result<Vec<f64>> {
        t.iter()
            .map(|&t| {
                self.check(t)?;
                Ok(self.network_time(t))
            })
            .collect()
    }

    /// Keeps the steps `kept` (strictly rising) with their alpha-bar and their network times.
    pub(crate) fn keeping(&self, kept: &[Timestep]) -> Result<Self> {
        let mut beta = vec![0.0];
        let mut alpha_bar = vec![1.0];
        let mut trained = vec![0];
        let mut before = None;
        for &t in kept {
            self.check(t)?;
            let alpha_bar_before = before.map_or(1.0, |t| self.alpha_bar(t));
            // A step whose predecessor is kept too stays what it was, to the bit.
            beta.push(match t.previous() == before {
                true => self.beta(t),
                false => 1.0 - self.alpha_bar(t) / alpha_bar_before,
            });
            alpha_bar.push(self.alpha_bar(t));
            trained.extend(self.trained.get(t.get()));
            before = Some(t);
        }
        Self::checked(beta, alpha_bar, trained)
    }

    /// The same steps and network times with another alpha-bar (t = 1..=T).
    pub(crate) fn with_alpha_bars(&self, alpha_bars: &[f64]) -> Result<Self> {
        let other = Self::from_alpha_bars(alpha_bars)?;
        Self::checked(other.beta, other.alpha_bar, self.trained.clone())
    }

    /// Fails when `t` comes from a longer schedule.
    pub(crate) fn check(&self, t: Timestep) -> Result<()> {
        match (1..=self.steps()).contains(&t.get()) {
            true => Ok(()),
            false => Err(Error::Timestep {
                t: t.get(),
                steps: self.steps(),
            }),
        }
    }

    fn checked(beta: Vec<f64>, alpha_bar: Vec<f64>, trained: Vec<usize>) -> Result<Self> {
        let schedule = Schedule {
            beta,
            alpha_bar,
            trained,
        };
        if schedule.steps() == 0 {
            return Err(Error::NoSteps);
        }
        for t in schedule.timesteps() {
            let (previous, value) = (schedule.alpha_bar_previous(t), schedule.alpha_bar(t));
            if !(value < previous && value >= 0.0) {
                return Err(Error::AlphaBar {
                    t: t.get(),
                    steps: schedule.steps(),
                    previous,
                    value,
                });
            }
        }
        Ok(schedule)
    }
}

/// alpha-bar_0, ..., alpha-bar_T: the running product of 1 - beta, alpha-bar_0 = 1 (below equation 3 of Ho et al. 2020).
fn alpha_bars(betas: &[f64]) -> Vec<f64> {
    let mut alpha_bar = vec![1.0];
    alpha_bar.extend(betas.iter().scan(1.0, |product, beta| {
        *product *= 1.0 - beta;
        Some(*product)
    }));
    alpha_bar
}

fn value_at(table: &[f64], t: Timestep) -> f64 {
    table.get(t.get()).copied().unwrap_or(f64::NAN)
}
