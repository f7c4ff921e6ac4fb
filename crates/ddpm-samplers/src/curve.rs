//! How sigma falls from the first level of a walk to the last: the spacings that do not follow the schedule of training.

/// A curve of sigmas.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Curve {
    /// As on the schedule of training.
    Trained,
    /// Evenly in sigma^(1/7) (equation 5 of Karras et al. 2022): diffusers' `use_karras_sigmas`.
    Karras,
    /// Evenly in ln sigma: diffusers' `use_exponential_sigmas`.
    Exponential,
    /// By the quantiles of a Beta(0.6, 0.6) distribution (Lee et al. 2024): diffusers' `use_beta_sigmas`.
    Beta,
    /// Evenly in lambda = -ln sigma (Lu et al. 2022): diffusers' `use_lu_lambdas`.
    Lu,
    /// Evenly in ln sigma by diffusers' EulerDiscreteScheduler with `interpolation_type: log_linear`: over all of training, one level more.
    LogLinear,
    /// Noise of a flow, x = (1 - s) x_0 + s eps (Lipman et al. 2023): diffusers' `use_flow_sigmas`.
    Flow(Flow),
    /// s = sigma / (1 + sigma) of a flow with Karras' sigmas: diffusers' UniPC with both flags.
    KarrasFlow,
}

/// The levels s of a flow, shifted to k s / (1 + (k - 1) s).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flow {
    /// k, `flow_shift`.
    pub shift: f64,
    /// From 1 down to above 1/T, as UniPC has them, or from 1 - 1/T down to above 0, as the others do.
    pub from_one: bool,
    /// The last level, to which the others are stretched: UniPC's `shift_terminal`.
    pub terminal: Option<f64>,
}

/// rho of Karras et al. 2022, table 1.
const RHO: f64 = 7.0;

/// `steps` levels from `first` down to `last`, evenly in sigma^(1/rho): equation 5 of Karras et al. 2022.
pub(crate) fn karras_with(rho: f64, (first, last): (f64, f64), steps: usize) -> Vec<f64> {
    let (high, low) = (first.powf(1.0 / rho), last.powf(1.0 / rho));
    let level = |u: f64| (high + u * (low - high)).powf(rho);
    between((first, last), steps, level)
}

/// Karras' levels with rho = 7.
pub(crate) fn karras(ends: (f64, f64), steps: usize) -> Vec<f64> {
    karras_with(RHO, ends, steps)
}

/// `steps` levels from `first` down to `last`, evenly in the logarithm.
pub(crate) fn exponential((first, last): (f64, f64), steps: usize) -> Vec<f64> {
    let (high, low) = (first.ln(), last.ln());
    between((first, last), steps, |u| (high + u * (low - high)).exp())
}

/// `steps` levels between these logarithms of sigma.
pub(crate) fn lu((high, low): (f64, f64), steps: usize) -> Vec<f64> {
    let logs = between((high, low), steps, |u| high + u * (low - high));
    logs.into_iter().map(f64::exp).collect()
}

/// `steps` levels from `first` down to `last` by the quantiles of Beta(0.6, 0.6), dense at both ends.
pub(crate) fn beta((first, last): (f64, f64), steps: usize) -> Vec<f64> {
    let level = |u: f64| last + beta_quantile(1.0 - u) * (first - last);
    between((first, last), steps, level)
}

impl Flow {
    /// `steps` levels of a flow trained in `of` steps.
    pub(crate) fn levels(self, of: usize, steps: usize) -> Vec<f64> {
        // diffusers keeps pure noise a little away from 1, where lambda is infinite.
        const LEAST_SIGNAL: f64 = 1e-6;
        // As numpy spaces them: diffusers cuts times to whole numbers, where the last bit counts.
        let end = 1.0 / of as f64;
        let gap = (end - 1.0) / steps as f64;
        let place = |k: usize| match k == steps {
            true => end,
            false => k as f64 * gap + 1.0,
        };
        let level = |i: usize| {
            let s = match self.from_one {
                true => place(i),
                false => 1.0 - place(steps - i),
            };
            self.shift * s / (1.0 + (self.shift - 1.0) * s)
        };
        let mut levels: Vec<f64> = (0..steps).map(level).collect();
        if let (Some(terminal), Some(&last)) = (self.terminal, levels.last()) {
            let scale = (1.0 - last) / (1.0 - terminal);
            levels
                .iter_mut()
                .for_each(|s| *s = 1.0 - (1.0 - *s) / scale);
        }
        if let (true, Some(first)) = (self.from_one, levels.first_mut())
            && (*first - 1.0).abs() < LEAST_SIGNAL
        {
            *first -= LEAST_SIGNAL;
        }
        levels
    }
}

/// `level` at 0, ..., 1, the ends exactly, so that a walk may end at its last level.
fn between((first, last): (f64, f64), steps: usize, level: impl Fn(f64) -> f64) -> Vec<f64> {
    let gap = 1.0 / steps.saturating_sub(1).max(1) as f64;
    let at = |i| match i {
        0 => first,
        i if i + 1 == steps => last,
        i => level(i as f64 * gap),
    };
    (0..steps).map(at).collect()
}

/// x with I_x(a, a) = p for a = 0.6, by halving the interval.
fn beta_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (0.0f64, 1.0f64);
    if p <= low || p >= high {
        return p.clamp(low, high);
    }
    // The distribution is symmetric; the lower half keeps small quantiles exact.
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    while high - low > f64::EPSILON * high {
        let middle = 0.5 * (low + high);
        if middle == low || middle == high {
            break;
        }
        match beta_share(middle) < p {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// I_x(a, a) for a = 0.6 and x in [0, 1/2], by the series x^a / a sum_k (1 - a)_k / k! a / (a + k) x^k over B(a, a).
fn beta_share(x: f64) -> f64 {
    const A: f64 = 0.6;
    let (mut term, mut sum) = (1.0, 1.0 / A);
    for k in 1..200 {
        let k = f64::from(k);
        term *= x * (k - A) / k;
        sum += term / (A + k);
    }
    // I_{1/2} = 1/2 by symmetry, which gives B(a, a).
    x.powf(A) * sum / COMPLETE
}

/// B(0.6, 0.6) = Gamma(0.6)^2 / Gamma(1.2).
const COMPLETE: f64 = 2.415_344_208_002_472_3;
