//! Whole walks against diffusers: golden loops made by tests/golden/samplers.py, and the numbers of its own tests.

use crate::{Waves, last, numbers, start};
use candle_core::Tensor;
use ddpm_core::{Prediction, Result, Schedule, Spacing, q_sample};
use ddpm_samplers::{
    Choice, Clip, Direction, Process, Sampler, SchedulerConfig, Step, ddim_inversion_with,
    ddim_with,
};
use ddpm_tests::device;
use serde_json::Value;

/// The golden recipe's network.
fn network(x: &Tensor, time: &[f64]) -> Result<Tensor> {
    let wave = ((x * 3.0)?.cos()? * 0.3)?;
    Ok((((x * 0.6)? + wave)? - 0.2 * (time[0] / 100.0).sin())?)
}

#[test]
fn loops_are_diffusers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../golden/loops.json")).unwrap();
    assert_eq!(cases.len(), 21);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let steps = case["steps"].as_u64().unwrap() as usize;
        let config = SchedulerConfig::from_json(&case["config"].to_string()).unwrap();
        let choice = Choice {
            eta: case["arguments"]["eta"].as_f64().unwrap_or(0.0),
            ..Choice::steps(steps)
        };
        let mut sampler = config.sampler(&choice).unwrap();
        if let Sampler::Ddim(_, settings) = &mut sampler {
            if case["arguments"]["use_clipped_model_output"] == true {
                settings.direction = Direction::FromClipped;
            }
            if name.ends_with("stride") {
                let training = config.schedule().unwrap();
                *settings = settings.clone().landing_as_diffusers(&training, steps);
            }
        }
        let mut noise = Waves;
        let walk = sampler.walk(&network, &start(), &mut noise);
        assert_eq!(walk.len(), steps, "{name}");
        let done: Vec<Step> = walk.map(|step| step.unwrap()).collect();
        let times: Vec<u64> = done.iter().take(60).map(|step| step.time as u64).collect();
        let expected: Vec<u64> = case["timesteps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t.as_u64().unwrap())
            .collect();
        assert_eq!(times, expected, "{name}");
        check(name, &done[steps / 2].x, &case["middle"]);
        check(name, &done[steps - 1].x, &case["end"]);
    }
}

/// To 1e-4, on every 7th element.
#[track_caller]
fn check(name: &str, x: &Tensor, expected: &Value) {
    let got: Vec<f64> = numbers(x).into_iter().step_by(7).collect();
    let expected: Vec<f64> = expected
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect();
    let worst = got
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    println!("{name}: {worst:e}");
    assert_eq!(got.len(), expected.len());
    assert!(
        worst <= 1e-4,
        "{name}: off by {worst:e}\n{got:?}\n{expected:?}"
    );
}

/// The sample of diffusers' scheduler tests: `arange(768).reshape(3, 8, 8, 4) / 768`, last axis first.
fn dummy_sample() -> Tensor {
    let values: Vec<f32> = (0..768).map(|i| i as f32 / 768.0).collect();
    Tensor::from_vec(values, (3, 8, 8, 4), &device())
        .unwrap()
        .permute((3, 0, 1, 2))
        .unwrap()
        .contiguous()
        .unwrap()
}

/// `arange(768).flip(-1) / 768` in the same shape.
fn dummy_noise() -> Tensor {
    let values: Vec<f32> = (0..768).rev().map(|i| i as f32 / 768.0).collect();
    Tensor::from_vec(values, (3, 8, 8, 4), &device())
        .unwrap()
        .permute((3, 0, 1, 2))
        .unwrap()
        .contiguous()
        .unwrap()
}

fn dummy_model(x: &Tensor, time: &[f64]) -> Result<Tensor> {
    Ok((x * (time[0] / (time[0] + 1.0)))?)
}

/// diffusers' tolerances: 1e-2 for the sum of absolute values, 1e-3 for their mean.
#[track_caller]
fn check_sum(x: &Tensor, sum: f64, mean: f64) {
    let got: f64 = numbers(x).iter().map(|x| x.abs()).sum();
    assert!((got - sum).abs() < 1e-2, "sum {got}, expected {sum}");
    assert!(
        (got / 768.0 - mean).abs() < 1e-3,
        "mean {}, expected {mean}",
        got / 768.0
    );
}

fn ten_steps(beta_start: f64, prediction: Prediction) -> Process {
    let schedule = Schedule::linear(1000, beta_start, 0.02).unwrap();
    let schedule = schedule
        .respaced(Spacing::Leading { offset: 0 }, 10)
        .unwrap();
    Process {
        schedule,
        prediction,
        clip: Clip::Range(1.0),
    }
}

fn ddim_end(process: &Process, x_t: &Tensor, alpha_bar_end: f64) -> Tensor {
    let mut settings = ddpm_samplers::DdimSettings::new(0.0);
    settings.alpha_bar_end = alpha_bar_end;
    last(ddim_with(
        process,
        settings,
        &dummy_model,
        x_t,
        &mut crate::NoNoise,
    ))
    .x
}

#[test]
fn ddim_as_in_diffusers_tests() {
    let x = dummy_sample();
    check_sum(
        &ddim_end(&ten_steps(1e-4, Prediction::Noise), &x, 1.0),
        172.0067,
        0.223967,
    );
    check_sum(
        &ddim_end(&ten_steps(1e-4, Prediction::Velocity), &x, 1.0),
        52.5302,
        0.0684,
    );
    let wide = ten_steps(0.01, Prediction::Noise);
    check_sum(&ddim_end(&wide, &x, 1.0), 149.8295, 0.1951);
    check_sum(&ddim_end(&wide, &x, 1.0 - 0.01), 149.0784, 0.1941);
}

/// From the middle: noise added at the 9th of ten timesteps, and the last two steps done.
#[test]
fn ddim_from_the_middle_as_in_diffusers_tests() {
    let mut process = ten_steps(1e-4, Prediction::Noise);
    let t = process.schedule.timestep(2).unwrap();
    let x = q_sample(&process.schedule, &dummy_sample(), &[t; 4], &dummy_noise()).unwrap();
    process.schedule = process
        .schedule
        .respaced_at(&[process.schedule.timestep(1).unwrap(), t])
        .unwrap();
    check_sum(&ddim_end(&process, &x, 1.0), 354.5418, 0.4616);
}

#[test]
fn inversion_as_in_diffusers_tests() {
    let x = dummy_sample();
    let end = |process: &Process, alpha_bar_start| {
        last(ddim_inversion_with(
            process,
            alpha_bar_start,
            &dummy_model,
            &x,
        ))
        .x
    };
    check_sum(
        &end(&ten_steps(1e-4, Prediction::Noise), 1.0),
        671.6816,
        0.8746,
    );
    check_sum(
        &end(&ten_steps(1e-4, Prediction::Velocity), 1.0),
        1394.2185,
        1.8154,
    );
    check_sum(
        &end(&ten_steps(0.01, Prediction::Noise), 1.0),
        539.9622,
        0.7031,
    );
    check_sum(
        &end(&ten_steps(0.01, Prediction::Noise), 1.0 - 0.01),
        542.6722,
        0.7066,
    );
}

/// `_get_variance` of diffusers' tests, times counted from 0 there.
#[test]
fn variances_as_in_diffusers_tests() {
    let schedule = crate::linear(1000);
    let at = |time: usize| schedule.timestep_at_network_time(time).unwrap();
    let check = |got: f64, expected: f64| {
        assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}")
    };
    check(schedule.beta_tilde(at(0)), 0.0);
    check(schedule.beta_tilde(at(487)), 0.00979);
    check(schedule.beta_tilde(at(999)), 0.02);
    let jump = |from: usize, to: usize| {
        let two = schedule.respaced_at(&[at(to), at(from)]).unwrap();
        two.beta_tilde(two.last())
    };
    check(jump(420, 400), 0.14771);
    check(jump(980, 960), 0.32460);
    check(jump(487, 486), 0.00979);
    check(jump(999, 998), 0.02);
}
