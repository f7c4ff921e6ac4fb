//! The algorithm of a `scheduler_config.json` and its settings, by class.

use crate::keys::{Keys, meaning, wrong};
use crate::{
    Curve, DpmAlgorithm, DpmSecondOrder, DpmSettings, End, Flow, Result, Rounding, SchedulerClass,
    StepVariance, UniPcKind, UniPcSettings,
};
use ddpm_core::{Spacing, Variance};
use serde_json::Value;

/// An algorithm with its settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Solver {
    Ancestral(StepVariance),
    Ddim,
    DdimInverse,
    Dpm(DpmSettings),
    DpmSinglestep(DpmSettings),
    UniPc(UniPcSettings),
    Deis {
        order: usize,
        lower_order_final: bool,
    },
    Pndm {
        skip_prk_steps: bool,
    },
    Lms,
    Euler {
        told_log_sigma: bool,
    },
    EulerAncestral,
    Heun,
    Kdpm2,
    Kdpm2Ancestral,
    ScoreSdeVe {
        snr: f64,
        corrections: usize,
        /// Where time ends, from 1 down.
        least_time: f64,
    },
    RePaint,
}

/// Which levels a file asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) spacing: Spacing,
    pub(crate) curve: Curve,
    pub(crate) end: End,
    pub(crate) sigma_min: Option<f64>,
    pub(crate) sigma_max: Option<f64>,
    pub(crate) lambda_min: f64,
    /// What diffusers does to the times of a curve.
    pub(crate) rounding: Option<Rounding>,
    /// Whether a curve goes between the ends of training also where others take those of the spacing.
    pub(crate) whole: bool,
    /// rho of the levels of an EDM class.
    pub(crate) rho: f64,
}

/// The first word of each variance is the one that is written. diffusers' other words: `fixed_small_log` comes to the same as
/// `fixed_small`; `fixed_large_log` takes the root of a logarithm there and yields NaN, and is read as what it is named for.
const VARIANCES: [(&str, StepVariance); 6] = [
    ("fixed_small", StepVariance::Fixed(Variance::FixedSmall)),
    ("fixed_large", StepVariance::Fixed(Variance::FixedLarge)),
    ("fixed_small_log", StepVariance::Fixed(Variance::FixedSmall)),
    ("fixed_large_log", StepVariance::Fixed(Variance::FixedLarge)),
    ("learned", StepVariance::Learned),
    ("learned_range", StepVariance::LearnedRange),
];

const ALGORITHMS: [(&str, DpmAlgorithm); 4] = [
    ("dpmsolver", DpmAlgorithm::Solver),
    ("dpmsolver++", DpmAlgorithm::SolverPlusPlus),
    ("sde-dpmsolver", DpmAlgorithm::Sde),
    ("sde-dpmsolver++", DpmAlgorithm::SdePlusPlus),
];

const SPACINGS: [&str; 3] = ["leading", "linspace", "trailing"];

impl Solver {
    pub(crate) fn read(keys: Keys) -> Result<Self> {
        let order = keys.count("solver_order", 2)?;
        Ok(match keys.class {
            SchedulerClass::Ddpm => Solver::Ancestral(read_variance(keys)?),
            SchedulerClass::Ddim => Solver::Ddim,
            SchedulerClass::DdimInverse => Solver::DdimInverse,
            SchedulerClass::DpmSolverMultistep | SchedulerClass::EdmDpmSolverMultistep => {
                Solver::Dpm(read_dpm(keys, order)?)
            }
            SchedulerClass::DpmSolverSinglestep => Solver::DpmSinglestep(read_dpm(keys, order)?),
            SchedulerClass::UniPc => Solver::UniPc(read_unipc(keys, order)?),
            SchedulerClass::Deis => {
                // diffusers takes the other solvers' words for its own.
                let algorithms = ["deis", "dpmsolver", "dpmsolver++"].map(|word| (word, ()));
                keys.word("algorithm_type", &algorithms)?;
                let kinds = ["logrho", "midpoint", "heun", "bh1", "bh2"].map(|word| (word, ()));
                keys.word("solver_type", &kinds)?;
                Solver::Deis {
                    order: checked_order(order, 3)?,
                    lower_order_final: keys.flag("lower_order_final")?,
                }
            }
            SchedulerClass::Pndm => Solver::Pndm {
                skip_prk_steps: keys.flag("skip_prk_steps")?,
            },
            SchedulerClass::Lms => Solver::Lms,
            SchedulerClass::Euler | SchedulerClass::EdmEuler => Solver::Euler {
                told_log_sigma: read_told_log_sigma(keys)?,
            },
            SchedulerClass::EulerAncestral => Solver::EulerAncestral,
            SchedulerClass::Heun => Solver::Heun,
            SchedulerClass::Kdpm2 => Solver::Kdpm2,
            SchedulerClass::Kdpm2Ancestral => Solver::Kdpm2Ancestral,
            SchedulerClass::ScoreSdeVe => {
                let right = |snr: f64| snr > 0.0 && snr.is_finite();
                let within = |time: f64| (0.0..1.0).contains(&time);
                Solver::ScoreSdeVe {
                    snr: keys.number_in("snr", 0.15, right, "a finite number above 0")?,
                    corrections: keys.count("correct_steps", 1)?,
                    least_time: keys.number_in("sampling_eps", 1e-5, within, "a number in 0..1")?,
                }
            }
            SchedulerClass::RePaint => Solver::RePaint,
        })
    }
}

impl Spread {
    pub(crate) fn read(keys: Keys) -> Result<Self> {
        let curve = read_curve(keys)?;
        Ok(Spread {
            spacing: read_spacing(keys)?,
            curve,
            end: read_end(keys, curve)?,
            sigma_min: keys.number("sigma_min")?,
            sigma_max: keys.number("sigma_max")?,
            lambda_min: keys
                .number("lambda_min_clipped")?
                .unwrap_or(f64::NEG_INFINITY),
            rounding: rounding(keys, curve),
            whole: read_log_linear(keys)?,
            rho: keys.number_in("rho", 7.0, |rho| rho > 0.0, "a number above 0")?,
        })
    }
}

pub(crate) fn word_of_variance(variance: StepVariance) -> &'static str {
    let mut words = VARIANCES.iter();
    words
        .find(|(_, v)| *v == variance)
        .map_or("fixed_small", |(word, _)| word)
}

/// `timestep_spacing` and `steps_offset` of a spacing.
pub(crate) fn words_of_spacing(spacing: Spacing) -> (&'static str, usize) {
    match spacing {
        Spacing::Leading { offset } => ("leading", offset),
        Spacing::Linspace => ("linspace", 0),
        Spacing::Trailing => ("trailing", 0),
    }
}

pub(crate) fn read_variance(keys: Keys) -> Result<StepVariance> {
    // The class that is read may keep it for another.
    let said = keys
        .said
        .get("variance_type")
        .filter(|value| !value.is_null());
    match said {
        Some(value) => meaning("variance_type", value, &VARIANCES),
        None => Ok(StepVariance::Fixed(Variance::FixedSmall)),
    }
}

pub(crate) fn read_spacing(keys: Keys) -> Result<Spacing> {
    let leading = Spacing::Leading {
        offset: keys.count("steps_offset", 0)?,
    };
    let meanings = [leading, Spacing::Linspace, Spacing::Trailing];
    let words: Vec<(&str, Spacing)> = SPACINGS.into_iter().zip(meanings).collect();
    // RePaint and DPM-Solver singlestep have no choice.
    let fixed = match keys.class {
        SchedulerClass::DpmSolverSinglestep => Spacing::Linspace,
        SchedulerClass::EdmEuler | SchedulerClass::EdmDpmSolverMultistep => Spacing::Trailing,
        _ => leading,
    };
    Ok(keys.word("timestep_spacing", &words)?.unwrap_or(fixed))
}

fn read_dpm(keys: Keys, order: usize) -> Result<DpmSettings> {
    // diffusers takes the other solvers' words for its own.
    let mut algorithms = ALGORITHMS.to_vec();
    algorithms.push(("deis", DpmAlgorithm::SolverPlusPlus));
    match keys.class {
        SchedulerClass::DpmSolverSinglestep => {
            algorithms.retain(|(_, algorithm)| *algorithm != DpmAlgorithm::Sde);
        }
        SchedulerClass::EdmDpmSolverMultistep => {
            algorithms.retain(|(_, algorithm)| !algorithm.in_noise());
        }
        _ => {}
    }
    let kinds = [
        ("midpoint", DpmSecondOrder::Midpoint),
        ("heun", DpmSecondOrder::Heun),
        ("logrho", DpmSecondOrder::Midpoint),
        ("bh1", DpmSecondOrder::Midpoint),
        ("bh2", DpmSecondOrder::Midpoint),
    ];
    let algorithm = keys.word("algorithm_type", &algorithms)?;
    let algorithm = algorithm.unwrap_or(DpmAlgorithm::SolverPlusPlus);
    let second_order = keys.word("solver_type", &kinds)?;
    let settings = DpmSettings {
        algorithm,
        order: checked_order(order, 3)?,
        second_order: second_order.unwrap_or(DpmSecondOrder::Midpoint),
        lower_order_final: keys.flag("lower_order_final")?,
        euler_at_final: keys.flag("euler_at_final")?,
    };
    let ends = [("zero", true), ("sigma_min", false)];
    let at_zero = keys.word("final_sigmas_type", &ends)?.unwrap_or(true);
    match algorithm.in_noise() && at_zero {
        true => Err(wrong(
            "final_sigmas_type",
            "zero",
            "`sigma_min`: `dpmsolver` and `sde-dpmsolver` cannot end at the clean image",
        )),
        false => Ok(settings),
    }
}

fn read_unipc(keys: Keys, order: usize) -> Result<UniPcSettings> {
    if let Some(other) = keys.value("solver_p") {
        return Err(wrong("solver_p", other, "null: UniPC predicts by itself"));
    }
    // diffusers takes the other solvers' words for bh2.
    let kinds = [
        ("bh1", UniPcKind::Bh1),
        ("bh2", UniPcKind::Bh2),
        ("midpoint", UniPcKind::Bh2),
        ("heun", UniPcKind::Bh2),
        ("logrho", UniPcKind::Bh2),
    ];
    let value = keys
        .value("disable_corrector")
        .unwrap_or(Value::Array(Vec::new()));
    let steps = value.as_array().and_then(|list| {
        let steps = list.iter().map(|step| usize::try_from(step.as_u64()?).ok());
        steps.collect::<Option<Vec<_>>>()
    });
    let in_x_0 = keys.flag("predict_x0")?;
    let ends = [("zero", true), ("sigma_min", false)];
    if !in_x_0 && keys.word("final_sigmas_type", &ends)? == Some(true) {
        let expected = "`sigma_min`: with `predict_x0` false UniPC cannot end at the clean image";
        return Err(wrong("final_sigmas_type", "zero", expected));
    }
    Ok(UniPcSettings {
        order: checked_order(order, 9)?,
        kind: keys.word("solver_type", &kinds)?.unwrap_or(UniPcKind::Bh2),
        in_x_0,
        lower_order_final: keys.flag("lower_order_final")?,
        without_corrector: steps
            .ok_or_else(|| wrong("disable_corrector", value, "a list of whole numbers"))?,
    })
}

fn checked_order(order: usize, most: usize) -> Result<usize> {
    match (1..=most).contains(&order) {
        true => Ok(order),
        false => Err(wrong("solver_order", order, format!("1 to {most}"))),
    }
}

/// Whether the network is told ln(sigma) / 4.
fn read_told_log_sigma(keys: Keys) -> Result<bool> {
    let words = [("discrete", false), ("continuous", true)];
    let continuous = keys.word("timestep_type", &words)?.unwrap_or(false);
    let v = keys
        .value("prediction_type")
        .is_some_and(|word| word == "v_prediction");
    Ok(continuous && v)
}

fn read_curve(keys: Keys) -> Result<Curve> {
    let flags = [
        ("use_karras_sigmas", Curve::Karras),
        ("use_exponential_sigmas", Curve::Exponential),
        ("use_beta_sigmas", Curve::Beta),
    ];
    let mut set = Vec::new();
    for (flag, curve) in flags {
        if keys.flag(flag)? {
            set.push((flag, curve));
        }
    }
    if let [(one, _), (other, _), ..] = set.as_slice() {
        return Err(wrong(other, true, format!("false: `{one}` is set")));
    }
    // diffusers lets this one go beside the others, behind Karras' and before the rest.
    if keys.flag("use_lu_lambdas")? && set.first().is_none_or(|(_, c)| *c != Curve::Karras) {
        set = vec![("use_lu_lambdas", Curve::Lu)];
    }
    let log_linear = read_log_linear(keys)?;
    let schedules = [
        ("karras", Curve::Karras),
        ("exponential", Curve::Exponential),
    ];
    let of_edm = keys.word("sigma_schedule", &schedules)?;
    let curve = set.first().map(|(_, curve)| *curve).or(of_edm);
    match (curve, keys.flag("use_flow_sigmas")?) {
        (None, true) => Ok(Curve::Flow(read_flow(keys)?)),
        (Some(Curve::Karras), true) if keys.class == SchedulerClass::UniPc => Ok(Curve::KarrasFlow),
        (Some(_), true) => Err(wrong(
            "use_flow_sigmas",
            true,
            "false: another curve of sigmas is set",
        )),
        (None, false) if log_linear => Ok(Curve::LogLinear),
        (curve, false) => Ok(curve.unwrap_or(Curve::Trained)),
    }
}

/// Of Euler alone: levels interpolated in the logarithm, over all of training.
fn read_log_linear(keys: Keys) -> Result<bool> {
    let words = [("linear", false), ("log_linear", true)];
    Ok(keys.word("interpolation_type", &words)?.unwrap_or(false))
}

fn read_flow(keys: Keys) -> Result<Flow> {
    if keys.flag("use_dynamic_shifting")? {
        let expected = "false: the shift for an image's size is not known here";
        return Err(wrong("use_dynamic_shifting", true, expected));
    }
    let shift = keys.number_in("flow_shift", 1.0, |k| k > 0.0, "a number above 0")?;
    let terminal = keys.number("shift_terminal")?;
    match terminal {
        Some(terminal) if !(0.0..1.0).contains(&terminal) => {
            Err(wrong("shift_terminal", terminal, "a number in 0..1"))
        }
        terminal => Ok(Flow {
            shift,
            from_one: keys.class == SchedulerClass::UniPc,
            terminal,
        }),
    }
}

fn read_end(keys: Keys, curve: Curve) -> Result<End> {
    let at_last = match (keys.class, curve) {
        // The last level again, where there is a curve.
        (SchedulerClass::UniPc | SchedulerClass::Deis, Curve::Trained) => End::SigmaMin,
        (SchedulerClass::UniPc | SchedulerClass::Deis | SchedulerClass::EdmEuler, _) => End::Again,
        _ => End::SigmaMin,
    };
    if keys.class == SchedulerClass::Deis {
        return Ok(at_last);
    }
    let words = [("zero", End::Zero), ("sigma_min", at_last)];
    Ok(keys.word("final_sigmas_type", &words)?.unwrap_or(End::Zero))
}

fn rounding(keys: Keys, curve: Curve) -> Option<Rounding> {
    let nearest_of_all = match keys.class {
        SchedulerClass::DpmSolverMultistep => {
            let cosine = keys.value("beta_schedule");
            cosine.is_none_or(|schedule| schedule != "squaredcos_cap_v2")
        }
        SchedulerClass::DpmSolverSinglestep | SchedulerClass::UniPc | SchedulerClass::Deis => true,
        SchedulerClass::Kdpm2 | SchedulerClass::Kdpm2Ancestral => {
            return (curve == Curve::Karras).then_some(Rounding::Nearest);
        }
        _ => return None,
    };
    match curve {
        Curve::Trained => None,
        Curve::Karras | Curve::Lu if nearest_of_all => Some(Rounding::Nearest),
        _ => Some(Rounding::Down),
    }
}
