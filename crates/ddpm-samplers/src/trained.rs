//! How the network of a `scheduler_config.json` was trained: what every sampler must know of it, whatever its class.

use crate::keys::{Keys, wrong};
use crate::meaning::Meaning;
use crate::{Manner, Result, SchedulerClass};
use ddpm_core::{Prediction, Schedule};
use serde_json::Value;

/// The betas of training, as diffusers' `beta_schedule` and `trained_betas` say them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Betas {
    /// `linear`: [`Schedule::linear`].
    Linear {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// `scaled_linear`: [`Schedule::scaled_linear`].
    ScaledLinear {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// `squaredcos_cap_v2`: [`Schedule::cosine`].
    Cosine,
    /// `sigmoid`: [`Schedule::sigmoid`]; `DDPMScheduler` and `RePaintScheduler` alone know it.
    Sigmoid {
        /// `beta_start`.
        start: f64,
        /// `beta_end`.
        end: f64,
    },
    /// `laplace`: [`Schedule::laplace`]; `DDPMScheduler` alone knows it.
    Laplace,
    /// `exp`: alpha-bar = e^(-12 t / T); `HeunDiscreteScheduler` alone knows it.
    Exponential,
    /// `trained_betas`: any others, [`Schedule::from_betas`].
    Trained(Vec<f64>),
}

/// How a network was trained.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trained {
    /// On a schedule of steps.
    Steps(TrainedSteps),
    /// With Karras' preconditioning, at any sigma between two.
    Edm(TrainedEdm),
    /// As the score of variance exploding images, told sigma.
    Score {
        /// The least sigma.
        sigma_min: f64,
        /// The largest.
        sigma_max: f64,
    },
}

/// A schedule of steps and what a network says on it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TrainedSteps {
    pub(crate) steps: usize,
    pub(crate) betas: Betas,
    pub(crate) zero_terminal_snr: bool,
    pub(crate) prediction: Prediction,
    /// `flow_prediction`, for which [`Prediction`] has no word.
    pub(crate) flow: bool,
}

/// The preconditioning of Karras et al. 2022, and their levels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TrainedEdm {
    pub(crate) sigma_min: f64,
    pub(crate) sigma_max: f64,
    pub(crate) meaning: Meaning,
}

pub(crate) const BETA_START: f64 = 0.0001;
pub(crate) const BETA_END: f64 = 0.02;

/// More steps than any network was trained with; a broken file would ask for all memory.
const MAX_STEPS: usize = 1_000_000;

/// `posterior_mean` is our word: diffusers has none, and stops with its own message instead of sampling wrongly.
pub(crate) const PREDICTIONS: [(&str, Prediction); 4] = [
    ("epsilon", Prediction::Noise),
    ("sample", Prediction::Original),
    ("v_prediction", Prediction::Velocity),
    ("posterior_mean", Prediction::PosteriorMean),
];

impl Trained {
    pub(crate) fn read(keys: Keys) -> Result<Self> {
        match keys.class {
            SchedulerClass::EdmEuler | SchedulerClass::EdmDpmSolverMultistep => {
                Ok(Trained::Edm(TrainedEdm::read(keys)?))
            }
            SchedulerClass::ScoreSdeVe => {
                let (sigma_min, sigma_max) = sigma_range(keys)?;
                Ok(Trained::Score {
                    sigma_min,
                    sigma_max,
                })
            }
            _ => Ok(Trained::Steps(TrainedSteps::read(keys)?)),
        }
    }
}

impl TrainedEdm {
    pub(crate) fn read(keys: Keys) -> Result<Self> {
        let (sigma_min, sigma_max) = sigma_range(keys)?;
        let words = [("epsilon", 1.0), ("v_prediction", -1.0)];
        let right = |data: f64| data > 0.0 && data.is_finite();
        Ok(TrainedEdm {
            sigma_min,
            sigma_max,
            meaning: Meaning::Edm {
                data: keys.number_in("sigma_data", 0.5, right, "a finite number above 0")?,
                sign: keys.word("prediction_type", &words)?.unwrap_or(1.0),
            },
        })
    }
}

/// `sigma_min` and `sigma_max` of a class that has defaults for both.
pub(crate) fn sigma_range(keys: Keys) -> Result<(f64, f64)> {
    let above = |sigma: f64| sigma > 0.0 && sigma.is_finite();
    let low = keys.number_in("sigma_min", 0.002, above, "a finite number above 0")?;
    let right = |sigma: f64| sigma > low && sigma.is_finite();
    let high = keys.number_in("sigma_max", 80.0, right, "a finite number above sigma_min")?;
    Ok((low, high))
}

impl TrainedSteps {
    fn read(keys: Keys) -> Result<Self> {
        let steps = keys.count("num_train_timesteps", 1000)?;
        check_steps(steps)?;
        let words = PREDICTIONS.map(|(word, prediction)| (word, (prediction, false)));
        let mut words = words.to_vec();
        if keys.class.has("use_flow_sigmas") {
            words.push(("flow_prediction", (Prediction::Velocity, true)));
        }
        let said = keys.word("prediction_type", &words)?;
        let (prediction, flow) = said.unwrap_or((Prediction::Noise, false));
        let trained = TrainedSteps {
            steps,
            betas: read_betas(keys, steps)?,
            zero_terminal_snr: keys.flag("rescale_betas_zero_snr")?,
            prediction,
            flow,
        };
        trained.schedule()?;
        Ok(trained)
    }

    /// The schedule of training.
    pub(crate) fn schedule(&self) -> Result<Schedule> {
        let schedule = match &self.betas {
            Betas::Linear { start, end } => Schedule::linear(self.steps, *start, *end),
            Betas::ScaledLinear { start, end } => Schedule::scaled_linear(self.steps, *start, *end),
            Betas::Sigmoid { start, end } => Schedule::sigmoid(self.steps, *start, *end),
            Betas::Cosine => Schedule::cosine(self.steps),
            Betas::Laplace => Schedule::laplace(self.steps),
            Betas::Exponential => Schedule::constant(self.steps, self.exponential_beta()),
            Betas::Trained(betas) if betas.len() != self.steps => {
                let expected = format!("num_train_timesteps = {} numbers", self.steps);
                let got = format!("a list of {}", betas.len());
                return Err(wrong("trained_betas", got, expected));
            }
            Betas::Trained(betas) => Schedule::from_betas(betas),
        }?;
        match self.zero_terminal_snr {
            true => Ok(schedule.rescaled_to_zero_terminal_snr()?),
            false => Ok(schedule),
        }
    }

    /// The schedule of training in either manner. Betas too small for f32 leave diffusers without a falling alpha-bar; such a schedule
    /// stays exact.
    pub(crate) fn schedule_in(&self, manner: Manner) -> Result<Schedule> {
        let exact = self.schedule()?;
        Ok(match manner {
            Manner::Paper => exact,
            Manner::Diffusers => {
                let in_f32: Vec<f64> = self.alpha_bars_in_f32(&exact);
                Schedule::from_alpha_bars(&in_f32).unwrap_or(exact)
            }
        })
    }

    /// alpha-bar as PyTorch computes it: betas in f32, their product in f64, rounded at every step.
    fn alpha_bars_in_f32(&self, exact: &Schedule) -> Vec<f64> {
        let betas: Vec<f32> = match &self.betas {
            Betas::Linear { start, end } => linspace(*start, *end, self.steps),
            Betas::ScaledLinear { start, end } => {
                let roots = linspace(start.sqrt(), end.sqrt(), self.steps);
                roots.into_iter().map(|root| root * root).collect()
            }
            Betas::Sigmoid { start, end } => {
                let (low, span) = (*start as f32, (end - start) as f32);
                let curve = linspace(-6.0, 6.0, self.steps).into_iter();
                curve
                    .map(|u| 1.0 / (1.0 + (-u).exp()) * span + low)
                    .collect()
            }
            Betas::Trained(betas) => betas.iter().map(|&beta| beta as f32).collect(),
            _ => self.exact_betas(exact),
        };
        let alphas: Vec<f32> = match self.zero_terminal_snr {
            true => rescaled(&betas),
            false => betas.iter().map(|beta| 1.0 - beta).collect(),
        };
        products(&alphas).into_iter().map(f64::from).collect()
    }

    /// Betas that diffusers too computes in f64.
    fn exact_betas(&self, exact: &Schedule) -> Vec<f32> {
        let plain = TrainedSteps {
            zero_terminal_snr: false,
            ..self.clone()
        };
        let schedule = plain.schedule();
        let betas = schedule.as_ref().unwrap_or(exact).betas();
        betas.iter().map(|&beta| beta as f32).collect()
    }

    fn exponential_beta(&self) -> f64 {
        const MAX_BETA: f64 = 0.999;
        (-(-12.0 / self.steps as f64).exp_m1()).min(MAX_BETA)
    }
}

/// `torch.linspace` in f32: from both ends to the middle, with one rounding.
fn linspace(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / n.saturating_sub(1).max(1) as f32;
    let at = |i: usize| match i < n / 2 || n == 1 {
        true => (f64::from(start) + f64::from(step) * i as f64) as f32,
        false => (f64::from(end) - f64::from(step) * (n - i - 1) as f64) as f32,
    };
    (0..n).map(at).collect()
}

/// `torch.cumprod` in f32: the product is kept in f64.
fn products(factors: &[f32]) -> Vec<f32> {
    let product = factors.iter().scan(1.0f64, |product, &factor| {
        *product *= f64::from(factor);
        Some(*product as f32)
    });
    product.collect()
}

/// Lin et al. 2023, algorithm 1, in f32, through betas and back: alphas.
fn rescaled(betas: &[f32]) -> Vec<f32> {
    let alphas: Vec<f32> = betas.iter().map(|beta| 1.0 - beta).collect();
    let roots: Vec<f32> = products(&alphas).into_iter().map(f32::sqrt).collect();
    let (first, last) = match (roots.first(), roots.last()) {
        (Some(&first), Some(&last)) => (first, last),
        _ => return alphas,
    };
    let moved = roots.iter().map(|root| {
        let root = (root - last) * (first / (first - last));
        root * root
    });
    let moved: Vec<f32> = moved.collect();
    let before = std::iter::once(1.0).chain(moved.iter().copied());
    let betas = before.zip(&moved).map(|(before, now)| 1.0 - now / before);
    betas.map(|beta| 1.0 - beta).collect()
}

pub(crate) fn check_steps(steps: usize) -> Result<()> {
    match steps <= MAX_STEPS {
        true => Ok(()),
        false => {
            let expected = format!("at most {MAX_STEPS}");
            Err(wrong("num_train_timesteps", steps, expected))
        }
    }
}

fn read_betas(keys: Keys, steps: usize) -> Result<Betas> {
    let start = keys.number("beta_start")?.unwrap_or(BETA_START);
    let end = keys.number("beta_end")?.unwrap_or(BETA_END);
    let mut words = vec![
        ("linear", Betas::Linear { start, end }),
        ("scaled_linear", Betas::ScaledLinear { start, end }),
        ("squaredcos_cap_v2", Betas::Cosine),
        ("sigmoid", Betas::Sigmoid { start, end }),
        ("laplace", Betas::Laplace),
    ];
    if keys.class == SchedulerClass::Heun {
        words.push(("exp", Betas::Exponential));
    }
    let named = keys.word("beta_schedule", &words)?;
    let Some(value) = keys.value("trained_betas") else {
        return Ok(named.unwrap_or(Betas::Linear { start, end }));
    };
    let numbers = value
        .as_array()
        .and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
    match numbers {
        Some(betas) => Ok(Betas::Trained(betas)),
        None => Err(wrong(
            "trained_betas",
            value,
            format!("null or {steps} numbers"),
        )),
    }
}
