//! The published noise schedules, each as a constructor of [`Schedule`].

use crate::{Error, Result, Schedule};
use std::f64::consts::FRAC_PI_2;

/// The published schedules. All take the number of steps T first and fail when T is 0 or a beta leaves (0, 1].
impl Schedule {
    /// beta_t rises evenly from `beta_1` to `beta_t_max`; T = 1000 from 1e-4 to 0.02 in Ho et al. 2020, section 4.
    pub fn linear(steps: usize, beta_1: f64, beta_t_max: f64) -> Result<Self> {
        Self::from_betas(&linspace(beta_1, beta_t_max, steps))
    }

    /// Ho's linear schedule, stretched so that alpha-bar_T hardly depends on T: betas times 1000 / T
    /// (guided-diffusion's `linear`; Nichol and Dhariwal 2021). T must be at least 20.
    pub fn linear_scaled(steps: usize) -> Result<Self> {
        let scale = 1000.0 / steps as f64;
        Self::linear(steps, scale * 1e-4, scale * 0.02)
    }

    /// The square roots of beta_t rise evenly: diffusers' `scaled_linear` (0.00085 to 0.012 in latent diffusion,
    /// Rombach et al. 2022).
    pub fn scaled_linear(steps: usize, beta_1: f64, beta_t_max: f64) -> Result<Self> {
        let roots = linspace(beta_1.sqrt(), beta_t_max.sqrt(), steps);
        Self::from_betas(&roots.iter().map(|root| root * root).collect::<Vec<_>>())
    }

    /// Ho's `quad`, which is the same curve as [`Schedule::scaled_linear`] (1e-4 to 0.02 in his code).
    pub fn quadratic(steps: usize, beta_1: f64, beta_t_max: f64) -> Result<Self> {
        Self::scaled_linear(steps, beta_1, beta_t_max)
    }

    /// The cosine schedule of Nichol and Dhariwal 2021, equation 17, with s = 0.008 and beta at most 0.999.
    pub fn cosine(steps: usize) -> Result<Self> {
        Self::cosine_with(steps, 0.008, 0.999)
    }

    /// The cosine schedule with its offset `s` >= 0 and its largest beta in (0, 1] (Nichol and Dhariwal 2021, equation 17):
    /// alpha-bar_t = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) * pi/2), beta_t = 1 - alpha-bar_t / alpha-bar_{t-1} cut at `max_beta`.
    pub fn cosine_with(steps: usize, s: f64, max_beta: f64) -> Result<Self> {
        check(
            "cosine schedule",
            "s",
            s,
            s >= 0.0 && s.is_finite(),
            "a finite number of at least 0",
        )?;
        let f = |u: f64| ((u + s) / (1.0 + s) * FRAC_PI_2).cos().powi(2);
        Self::from_curve("cosine schedule", steps, max_beta, f)
    }

    /// diffusers' `sigmoid` (GeoDiff, Xu et al. 2022): beta_t = beta_1 + sigmoid(-6 ... 6) (beta_T - beta_1).
    pub fn sigmoid(steps: usize, beta_1: f64, beta_t_max: f64) -> Result<Self> {
        let beta = |u: &f64| sigmoid(*u) * (beta_t_max - beta_1) + beta_1;
        Self::from_betas(
            &linspace(-6.0, 6.0, steps)
                .iter()
                .map(beta)
                .collect::<Vec<_>>(),
        )
    }

    /// alpha-bar falls like a sigmoid (Jabri et al. 2022, section 2.2; lucidrains' default): -3 to 3, tau = 1, beta at most 0.999.
    pub fn alpha_bar_sigmoid(steps: usize) -> Result<Self> {
        Self::alpha_bar_sigmoid_with(steps, -3.0, 3.0, 1.0)
    }

    /// [`Schedule::alpha_bar_sigmoid`] over the stretch `start` < `end` of the sigmoid, with temperature `tau` > 0.
    pub fn alpha_bar_sigmoid_with(steps: usize, start: f64, end: f64, tau: f64) -> Result<Self> {
        let owner = "alpha-bar sigmoid schedule";
        check(
            owner,
            "tau",
            tau,
            tau > 0.0 && tau.is_finite(),
            "a finite number above 0",
        )?;
        check(owner, "start", start, start < end, "a number below `end`")?;
        let (low, high) = (sigmoid(start / tau), sigmoid(end / tau));
        let f = |u: f64| (high - sigmoid((u * (end - start) + start) / tau)) / (high - low);
        Self::from_curve(owner, steps, 0.999, f)
    }

    /// diffusers' `laplace`: the log-SNR of alpha-bar follows the quantiles of a Laplace distribution (Hang et al. 2024),
    /// alpha-bar = sqrt(snr / (1 + snr)) as diffusers has it, beta at most 0.999.
    pub fn laplace(steps: usize) -> Result<Self> {
        let f = |u: f64| {
            let centred = 0.5 - u;
            let log_snr = -0.5 * 1f64.copysign(centred) * (1.0 - 2.0 * centred.abs() + 1e-6).ln();
            sigmoid(log_snr).sqrt()
        };
        Self::from_curve("laplace schedule", steps, 0.999, f)
    }

    /// Every beta the same (Ho's `const`, 0.02 in his code).
    pub fn constant(steps: usize, beta: f64) -> Result<Self> {
        Self::from_betas(&vec![beta; steps])
    }

    /// beta_t = 1 / (T - t + 1), so that alpha-bar_t = 1 - t/T (Ho's `jsd`; Sohl-Dickstein et al. 2015, section 2.4.1).
    ///
    /// beta_T is 1 and alpha-bar_T is 0: x_T is pure noise, and a network that predicts noise has nothing to say there.
    pub fn jsd(steps: usize) -> Result<Self> {
        Self::from_betas(
            &(1..=steps)
                .rev()
                .map(|left| 1.0 / left as f64)
                .collect::<Vec<_>>(),
        )
    }

    /// beta rises evenly from `beta_1` to `beta_t_max` over the first `fraction` of the steps and stays there
    /// (Ho's `warmup10` and `warmup50`: 0.1 and 0.5).
    pub fn warm_up(steps: usize, beta_1: f64, beta_t_max: f64, fraction: f64) -> Result<Self> {
        let right = (0.0..=1.0).contains(&fraction);
        check(
            "warm-up schedule",
            "fraction",
            fraction,
            right,
            "a number in 0..=1",
        )?;
        let mut betas = linspace(beta_1, beta_t_max, (steps as f64 * fraction) as usize);
        betas.resize(steps, beta_t_max);
        Self::from_betas(&betas)
    }

    /// beta_t = 1 - f(t/T) / f((t-1)/T), cut at `max_beta`: the cut betas define alpha-bar, not f.
    fn from_curve(
        owner: &'static str,
        steps: usize,
        max_beta: f64,
        f: impl Fn(f64) -> f64,
    ) -> Result<Self> {
        let right = max_beta > 0.0 && max_beta <= 1.0;
        check(owner, "max_beta", max_beta, right, "a number in (0, 1]")?;
        let at = |t: usize| f(t as f64 / steps as f64);
        let beta = |before: usize| {
            let beta = 1.0 - at(before + 1) / at(before);
            // Not `min`, which would turn NaN into a beta: NaN is refused below.
            if beta > max_beta { max_beta } else { beta }
        };
        Self::from_betas(&(0..steps).map(beta).collect::<Vec<_>>())
    }
}

/// `n` numbers evenly from `first` to `last`, both included; `first` alone when n = 1.
fn linspace(first: f64, last: f64, n: usize) -> Vec<f64> {
    let gaps = n.saturating_sub(1).max(1) as f64;
    let at = |i: usize| {
        if i > 0 && i + 1 == n {
            last
        } else {
            first + (last - first) * (i as f64 / gaps)
        }
    };
    (0..n).map(at).collect()
}

fn sigmoid(u: f64) -> f64 {
    1.0 / (1.0 + (-u).exp())
}

fn check(
    owner: &'static str,
    name: &'static str,
    value: f64,
    right: bool,
    expected: &'static str,
) -> Result<()> {
    match right {
        true => Ok(()),
        false => Err(Error::Setting {
            owner,
            name,
            value,
            expected,
        }),
    }
}
