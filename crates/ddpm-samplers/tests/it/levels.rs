//! Walks over levels against diffusers (golden loops made by tests/golden/schedulers.py), against oracles, and what bad input gets.

use crate::{NoNoise, Waves, fails, formula, last, linear, numbers, process, same, start};
use candle_core::{DType, Tensor};
use ddpm_core::{NoiseSource, Prediction, Result, Schedule, Spacing};
use ddpm_samplers::{
    Clip, Curve, DpmAlgorithm, DpmSecondOrder, DpmSettings, End, LevelChoice, Levels, Process,
    Rounding, Step, Walk, ddim, dpm_solver, euler, euler_ancestral, heun,
};
use ddpm_tests::device;
use serde_json::Value;

/// The golden recipe's network.
fn network(x: &Tensor, time: &[f64]) -> Result<Tensor> {
    let wave = ((x * 3.0)?.cos()? * 0.3)?;
    Ok((((x * 0.6)? + wave)? - 0.2 * (time[0] / 100.0).sin())?)
}

fn word<'a>(config: &'a Value, key: &str) -> &'a str {
    config[key].as_str().unwrap_or("missing")
}

fn number(config: &Value, key: &str) -> f64 {
    config[key].as_f64().unwrap()
}

fn floats(values: &Value) -> Vec<f64> {
    let values = values.as_array().unwrap().iter();
    values.map(|v| v.as_f64().unwrap()).collect()
}

fn training(config: &Value) -> Process {
    let steps = config["num_train_timesteps"].as_u64().unwrap() as usize;
    let (from, to) = (number(config, "beta_start"), number(config, "beta_end"));
    let schedule = match word(config, "beta_schedule") {
        "linear" => Schedule::linear(steps, from, to),
        "scaled_linear" => Schedule::scaled_linear(steps, from, to),
        "squaredcos_cap_v2" => Schedule::cosine(steps),
        other => panic!("{other}"),
    };
    let schedule = match config["rescale_betas_zero_snr"] == true {
        true => schedule.unwrap().rescaled_to_zero_terminal_snr().unwrap(),
        false => schedule.unwrap(),
    };
    let prediction = match word(config, "prediction_type") {
        "epsilon" => Prediction::Noise,
        "v_prediction" => Prediction::Velocity,
        "sample" => Prediction::Original,
        other => panic!("{other}"),
    };
    let clip = match config["clip_sample"] == true {
        true => Clip::Range(number(config, "clip_sample_range")),
        false => Clip::None,
    };
    process(schedule, prediction, clip)
}

fn choice(config: &Value, steps: usize) -> LevelChoice {
    let spacing = match word(config, "timestep_spacing") {
        "linspace" => Spacing::Linspace,
        "trailing" => Spacing::Trailing,
        "leading" => Spacing::Leading {
            offset: config["steps_offset"].as_u64().unwrap() as usize,
        },
        other => panic!("{other}"),
    };
    let mut choice = LevelChoice::new(steps, spacing);
    if config["use_karras_sigmas"] == true {
        choice.curve = Curve::Karras;
    }
    if word(config, "final_sigmas_type") == "sigma_min" {
        choice.end = End::SigmaMin;
    }
    choice
}

fn settings(config: &Value) -> DpmSettings {
    DpmSettings {
        algorithm: match word(config, "algorithm_type") {
            "dpmsolver" => DpmAlgorithm::Solver,
            "dpmsolver++" => DpmAlgorithm::SolverPlusPlus,
            "sde-dpmsolver++" => DpmAlgorithm::SdePlusPlus,
            other => panic!("{other}"),
        },
        order: config["solver_order"].as_u64().unwrap() as usize,
        second_order: match word(config, "solver_type") {
            "midpoint" => DpmSecondOrder::Midpoint,
            "heun" => DpmSecondOrder::Heun,
            other => panic!("{other}"),
        },
        lower_order_final: config["lower_order_final"] == true,
        euler_at_final: config["euler_at_final"] == true,
    }
}

fn levels(config: &Value, steps: usize) -> Levels {
    let (training, choice) = (training(config), choice(config, steps));
    if word(config, "_class_name") != "DPMSolverMultistepScheduler" {
        return Levels::of_euler(&training, choice).unwrap();
    }
    let rounding = match word(config, "beta_schedule") {
        "squaredcos_cap_v2" => Rounding::Down,
        _ => Rounding::Nearest,
    };
    let levels = Levels::of_dpm_solver(&training, choice).unwrap();
    levels.with_whole_times(rounding)
}

#[test]
fn loops_over_levels_are_diffusers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../golden/levels.json")).unwrap();
    assert_eq!(cases.len(), 30);
    for case in cases {
        let (name, config) = (case["name"].as_str().unwrap(), &case["config"]);
        let steps = case["steps"].as_u64().unwrap() as usize;
        let levels = levels(config, steps);
        let mut noise = Waves;
        let walk: Walk = match word(config, "_class_name") {
            "DPMSolverMultistepScheduler" => {
                dpm_solver(&levels, settings(config), &network, &start(), &mut noise)
            }
            "EulerDiscreteScheduler" => euler(&levels, &network, &start()),
            "EulerAncestralDiscreteScheduler" => {
                euler_ancestral(&levels, &network, &start(), &mut noise)
            }
            "HeunDiscreteScheduler" => heun(&levels, &network, &start()),
            other => panic!("{other}"),
        };
        assert_eq!(walk.len(), steps, "{name}");
        let done: Vec<Step> = walk.map(|step| step.unwrap()).collect();
        for (i, place) in floats(&case["places"]).into_iter().enumerate() {
            let place = place as usize;
            let (time, sigma) = (floats(&case["times"])[i], floats(&case["sigmas"])[i]);
            assert!((done[place].time - time).abs() < 1e-4, "{name}: {place}");
            assert!(
                (levels.sigmas()[place] / sigma - 1.0).abs() < 1e-6,
                "{name}: {place}"
            );
        }
        check(name, &done[steps / 2].x, &case["middle"]);
        let mut end = done[steps - 1].x.clone();
        if word(config, "_class_name") == "EulerDiscreteScheduler" {
            // Handed over in the variance exploding view, written down as x_t.
            let sigma: f64 = *levels.sigmas().last().unwrap();
            end = (end / sigma.hypot(1.0)).unwrap();
        }
        check(name, &end, &case["end"]);
    }
}

/// To 1e-5 of the largest, on every 7th element.
#[track_caller]
fn check(name: &str, x: &Tensor, expected: &Value) {
    let got: Vec<f64> = numbers(x).into_iter().step_by(7).collect();
    let expected = floats(expected);
    let size = expected.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
    let off = got.iter().zip(&expected).map(|(a, b)| (a - b).abs() / size);
    let worst = off.fold(0.0, f64::max);
    println!("{name}: {worst:e}");
    assert_eq!(got.len(), expected.len());
    assert!(
        worst <= 1e-5,
        "{name}: off by {worst:e}\n{got:?}\n{expected:?}"
    );
}

/// The equations that DPM-Solver solves.
const ALGORITHMS: [DpmAlgorithm; 3] = [
    DpmAlgorithm::Solver,
    DpmAlgorithm::SolverPlusPlus,
    DpmAlgorithm::SdePlusPlus,
];

/// Noise in f64.
struct Doubled;

impl NoiseSource for Doubled {
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
        Ok(Waves.draw(draw, like)?.to_dtype(DType::F64)?)
    }
}

fn dpm_settings() -> impl Iterator<Item = DpmSettings> {
    let seconds = [DpmSecondOrder::Midpoint, DpmSecondOrder::Heun];
    ALGORITHMS.into_iter().flat_map(move |algorithm| {
        (1..=3).flat_map(move |order| {
            seconds.into_iter().map(move |second_order| DpmSettings {
                algorithm,
                order,
                second_order,
                ..DpmSettings::default()
            })
        })
    })
}

/// The ends of all walks over the levels that may end there.
fn ends(
    training: &Process,
    choice: LevelChoice,
    network: &dyn ddpm_core::Denoiser,
    x_t: &Tensor,
) -> Vec<(String, Tensor)> {
    let mut ends = vec![];
    let levels = Levels::of_dpm_solver(training, choice).unwrap();
    for settings in dpm_settings() {
        if settings.algorithm == DpmAlgorithm::Solver && choice.end == End::Zero {
            continue;
        }
        let end = last(dpm_solver(&levels, settings, network, x_t, &mut Doubled));
        ends.push((format!("{settings:?}"), end.x));
    }
    let levels = Levels::of_euler(training, choice).unwrap();
    let of_ancestral = last(euler_ancestral(&levels, network, x_t, &mut Doubled)).x;
    ends.push(("euler".to_owned(), last(euler(&levels, network, x_t)).x));
    ends.push(("ancestral".to_owned(), of_ancestral));
    ends.push(("heun".to_owned(), last(heun(&levels, network, x_t)).x));
    ends
}

fn choices(steps: usize) -> Vec<LevelChoice> {
    let mut choices = vec![];
    let plain = LevelChoice::new(steps, Spacing::Trailing);
    for spacing in [
        Spacing::Linspace,
        Spacing::Trailing,
        Spacing::Leading { offset: 1 },
    ] {
        for curve in [Curve::Trained, Curve::Karras] {
            for end in [End::Zero, End::SigmaMin] {
                choices.push(LevelChoice {
                    spacing,
                    curve,
                    end,
                    ..plain
                });
            }
        }
    }
    choices
}

/// A data set of one image: walks to the clean image end there, whatever the levels, the noise and the order.
#[test]
fn one_image_is_always_found_over_levels() {
    let image = formula(|i| (0.37 * i).sin() * 0.99)
        .to_dtype(DType::F64)
        .unwrap();
    let x_t = start().to_dtype(DType::F64).unwrap();
    let network = |_: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(image.clone()) };
    for schedule in [
        linear(1000),
        Schedule::cosine(1000).unwrap(),
        linear(1000).rescaled_to_zero_terminal_snr().unwrap(),
    ] {
        for steps in [1, 2, 3, 9, 20] {
            for choice in choices(steps) {
                let clip = [Clip::None, Clip::Range(1.0)][steps % 2].clone();
                let training = process(schedule.clone(), Prediction::Original, clip);
                let first = schedule.alpha_bars()[1];
                for (name, end) in ends(&training, choice, &network, &x_t) {
                    match choice.end {
                        End::Zero => same(&end, &image, 1e-9),
                        // One level of linspace is the end itself.
                        End::SigmaMin if steps == 1 => {}
                        // What noise is left there, at most the walk's 1.4 and its own of as much.
                        End::SigmaMin => same(&end, &image, 6.0 * (1.0 - first).sqrt()),
                        _ => {}
                    }
                    assert_eq!(end.dims(), image.dims(), "{name}");
                }
            }
        }
    }
}

/// For data N(0, s^2) the flow is known: x_t stays the same number of standard deviations from 0. Orders are what they say.
#[test]
fn gaussian_data_and_the_order_of_the_flow() {
    let (s, schedule) = (0.5f64, linear(1000));
    let training = process(schedule.clone(), Prediction::Velocity, Clip::None);
    let table = |time: f64| {
        let levels = schedule.alpha_bars();
        let sigma = |t: usize| ((1.0 - levels[t]) / levels[t]).sqrt();
        let below = time.floor() as usize + 1;
        let above = (below + 1).min(1000);
        sigma(below) + (time - time.floor()) * (sigma(above) - sigma(below))
    };
    // E[v | x] with alpha-bar = 1 / (1 + sigma^2).
    let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
        let a = 1.0 / (1.0 + table(time[0]).powi(2));
        let gain = (a * (1.0 - a)).sqrt() * (1.0 - s * s) / (a * s * s + 1.0 - a);
        Ok((x * gain)?)
    };
    let x_t = start().to_dtype(DType::F64).unwrap();
    let deviation = |sigma: f64| ((s * s + sigma * sigma) / (1.0 + sigma * sigma)).sqrt();
    let error = |steps: usize, walk: &dyn Fn(&Levels) -> Tensor, dpm: bool| {
        let mut choice = LevelChoice::new(steps, Spacing::Leading { offset: 0 });
        choice.end = End::SigmaMin;
        let levels = match dpm {
            true => Levels::of_dpm_solver(&training, choice).unwrap(),
            false => Levels::of_euler(&training, choice).unwrap(),
        };
        let sigmas = levels.sigmas();
        let factor = deviation(sigmas[sigmas.len() - 1]) / deviation(sigmas[0]);
        let off = (walk(&levels) - (&x_t * factor).unwrap()).unwrap();
        numbers(&off).iter().fold(0.0, |m: f64, e| m.max(e.abs()))
    };
    let mut flows: Vec<(String, f64, f64)> = vec![];
    for settings in dpm_settings().filter(|s| s.algorithm != DpmAlgorithm::SdePlusPlus) {
        let walk =
            |levels: &Levels| last(dpm_solver(levels, settings, &network, &x_t, &mut NoNoise)).x;
        flows.push((
            format!("{settings:?}"),
            error(24, &walk, true),
            error(99, &walk, true),
        ));
    }
    let first = |levels: &Levels| last(euler(levels, &network, &x_t)).x;
    let second = |levels: &Levels| last(heun(levels, &network, &x_t)).x;
    flows.push((
        "euler".to_owned(),
        error(25, &first, false),
        error(100, &first, false),
    ));
    flows.push((
        "heun".to_owned(),
        error(25, &second, false),
        error(100, &second, false),
    ));
    for (name, coarse, fine) in &flows {
        println!("{name}: {coarse:e} {fine:e}");
        assert!(*coarse < 0.2 && *fine < 0.55 * coarse, "{name}");
    }
}

/// Euler's steps are DDIM's, where the levels are.
#[test]
fn euler_is_ddim() {
    let training = process(linear(1000), Prediction::Noise, Clip::None);
    let spacing = Spacing::Leading { offset: 3 };
    let levels = Levels::of_euler(&training, LevelChoice::new(20, spacing)).unwrap();
    let short = process(
        training.schedule.respaced(spacing, 20).unwrap(),
        Prediction::Noise,
        Clip::None,
    );
    let x_t = start().to_dtype(DType::F64).unwrap();
    let by_ddim = last(ddim(&short, 0.0, &network, &x_t, &mut NoNoise)).x;
    same(&last(euler(&levels, &network, &x_t)).x, &by_ddim, 1e-10);
    let by_ddim = last(ddim(&short, 1.0, &network, &x_t, &mut Doubled)).x;
    let by_euler = last(euler_ancestral(&levels, &network, &x_t, &mut Doubled)).x;
    same(&by_euler, &by_ddim, 1e-10);
}

#[test]
fn impossible_levels_and_settings_are_errors() {
    let training = process(linear(10), Prediction::Noise, Clip::None);
    let of = |steps, spacing| Levels::of_dpm_solver(&training, LevelChoice::new(steps, spacing));
    fails(
        of(10, Spacing::Linspace),
        "10 steps of a schedule of 10: expected 1..=9",
    );
    fails(
        of(0, Spacing::Trailing),
        "0 steps of a schedule of 10: expected 1..=10",
    );
    assert!(of(4, Spacing::Leading { offset: 3 }).is_err());
    fails(
        Levels::of_euler(&training, LevelChoice::new(11, Spacing::Linspace)),
        "11 steps of a schedule of 10: expected 1..=10",
    );
    let levels = of(4, Spacing::Trailing).unwrap();
    let mut settings = DpmSettings {
        order: 4,
        ..DpmSettings::default()
    };
    let first = |settings| {
        let mut noise = NoNoise;
        let mut walk = dpm_solver(&levels, settings, &network, &start(), &mut noise);
        walk.next().unwrap()
    };
    fails(
        first(settings),
        "the order of DPM-Solver is 4, expected 1, 2 or 3",
    );
    settings.order = 2;
    settings.algorithm = DpmAlgorithm::Solver;
    fails(
        first(settings),
        "sigma at the end of DPM-Solver's walk is 0, expected a number above 0: DPM-Solver ends at `sigma_min`, \
         DPM-Solver++ at `zero` as well",
    );
    let x_t = Tensor::zeros((1, 1, 2, 2), DType::F32, &device()).unwrap();
    let wrong = |x: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(x.narrow(3, 0, 1)?) };
    assert!(euler(&levels, &wrong, &x_t).next().unwrap().is_err());
}
