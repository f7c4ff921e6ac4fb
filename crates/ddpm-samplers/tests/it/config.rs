//! `scheduler_config.json`: what diffusers wrote is read, what is read is written again, what is unknown is refused.

use crate::fails;
use ddpm_core::{Prediction, Schedule, Spacing, Variance};
use ddpm_samplers::{
    Betas, Choice, Clip, SamplerKind, SchedulerClass, SchedulerConfig, StepVariance, Steps,
};

const LINEAR: Betas = Betas::Linear {
    start: 1e-4,
    end: 0.02,
};

fn read(keys: &str) -> ddpm_samplers::Result<SchedulerConfig> {
    SchedulerConfig::from_json(&format!("{{\"_class_name\": \"DDPMScheduler\"{keys}}}"))
}

#[test]
fn missing_keys_are_diffusers_defaults() {
    let config = read("").unwrap();
    assert_eq!(config.kind(), SamplerKind::Ddpm);
    assert_eq!(config.steps(), 1000);
    assert_eq!(
        config.schedule().unwrap(),
        Schedule::linear(1000, 1e-4, 0.02).unwrap()
    );
    assert_eq!(config.prediction(), Some(Prediction::Noise));
    assert_eq!(config.variance(), StepVariance::Fixed(Variance::FixedSmall));
    assert_eq!(config.clip(), Clip::Range(1.0));
    assert_eq!(config.spacing(), Spacing::Leading { offset: 0 });
    assert!(!config.zero_terminal_snr());
    assert_eq!(config.ddim_settings(0.0).unwrap().alpha_bar_end, 1.0);
    // As `google/ddpm-cifar10-32` has it.
    let old = read(
        r#", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
        "clip_sample": true, "num_train_timesteps": 1000, "trained_betas": null, "variance_type": "fixed_large""#,
    );
    assert_eq!(
        old.unwrap().variance(),
        StepVariance::Fixed(Variance::FixedLarge)
    );
}

#[test]
fn every_key_is_read() {
    let config = read(
        r#", "num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.03, "beta_schedule": "scaled_linear",
        "variance_type": "fixed_small_log", "clip_sample": true, "clip_sample_range": 2, "prediction_type": "v_prediction",
        "timestep_spacing": "linspace", "rescale_betas_zero_snr": true, "thresholding": false,
        "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3, "steps_offset": 0, "skip_prk_steps": null, "_other": 7"#,
    )
    .unwrap();
    let expected = Schedule::scaled_linear(100, 0.001, 0.03)
        .unwrap()
        .rescaled_to_zero_terminal_snr()
        .unwrap();
    assert_eq!(config.schedule().unwrap(), expected);
    assert_eq!(
        (config.prediction(), config.clip()),
        (Some(Prediction::Velocity), Clip::Range(2.0))
    );
    let process = config.process(7).unwrap();
    assert_eq!(
        process.schedule,
        expected.respaced(Spacing::Linspace, 7).unwrap()
    );
    assert_eq!(
        (process.prediction, process.clip),
        (Prediction::Velocity, Clip::Range(2.0))
    );
    let schedule = |word: &str| {
        read(&format!(r#", "beta_schedule": "{word}""#))
            .unwrap()
            .schedule()
            .unwrap()
    };
    assert_eq!(
        schedule("squaredcos_cap_v2"),
        Schedule::cosine(1000).unwrap()
    );
    assert_eq!(
        schedule("sigmoid"),
        Schedule::sigmoid(1000, 1e-4, 0.02).unwrap()
    );
    assert_eq!(schedule("laplace"), Schedule::laplace(1000).unwrap());
    let ddim = SchedulerConfig::from_json(
        r#"{"_class_name": "DDIMScheduler", "set_alpha_to_one": false, "steps_offset": 1}"#,
    );
    let ddim = ddim.unwrap();
    assert_eq!(ddim.kind(), SamplerKind::Ddim);
    assert_eq!(ddim.spacing(), Spacing::Leading { offset: 1 });
    assert_eq!(ddim.ddim_settings(0.0).unwrap().alpha_bar_end, 0.9999);
    assert_eq!(
        read(r#", "clip_sample": false"#).unwrap().clip(),
        Clip::None
    );
}

#[test]
fn round_trips() {
    let strange = Schedule::alpha_bar_sigmoid(50).unwrap();
    let all_betas = [
        LINEAR,
        Betas::ScaledLinear {
            start: 0.00085,
            end: 0.012,
        },
        Betas::Cosine,
        Betas::Sigmoid {
            start: 1e-4,
            end: 0.02,
        },
        Betas::Laplace,
        Betas::Trained(strange.betas().to_vec()),
    ];
    let predictions = [
        Prediction::Noise,
        Prediction::Original,
        Prediction::Velocity,
        Prediction::PosteriorMean,
    ];
    for betas in all_betas {
        for prediction in predictions {
            for (variance, clip) in [
                (Variance::FixedLarge, Clip::Range(1.0)),
                (Variance::FixedSmall, Clip::None),
            ] {
                let config =
                    SchedulerConfig::ddpm(betas.clone(), 50, prediction, variance, clip).unwrap();
                assert_eq!(config.spacing(), Spacing::Trailing);
                let offset = config.with_spacing(Spacing::Leading { offset: 1 }).unwrap();
                for config in [
                    config.clone(),
                    config.with_zero_terminal_snr().unwrap(),
                    offset,
                ] {
                    let again = SchedulerConfig::from_json(&config.to_json()).unwrap();
                    assert_eq!(again, config);
                    assert_eq!(again.schedule().unwrap(), config.schedule().unwrap());
                }
            }
        }
    }
    let ddim = r#"{"_class_name": "DDIMScheduler", "set_alpha_to_one": false, "variance_type": "fixed_large"}"#;
    let ddim = SchedulerConfig::from_json(ddim).unwrap();
    assert_eq!(SchedulerConfig::from_json(&ddim.to_json()).unwrap(), ddim);
}

#[test]
fn the_file_as_it_is_written() {
    let config = SchedulerConfig::ddpm(
        LINEAR,
        1000,
        Prediction::Noise,
        Variance::FixedLarge,
        Clip::Range(1.0),
    )
    .unwrap();
    let expected = r#"{
  "_class_name": "DDPMScheduler",
  "_diffusers_version": "0.42.1",
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "beta_start": 0.0001,
  "clip_sample": true,
  "clip_sample_range": 1.0,
  "dynamic_thresholding_ratio": 0.995,
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "rescale_betas_zero_snr": false,
  "sample_max_value": 1.0,
  "steps_offset": 0,
  "thresholding": false,
  "timestep_spacing": "trailing",
  "trained_betas": null,
  "variance_type": "fixed_large"
}
"#;
    assert_eq!(config.to_json(), expected);
    assert_eq!(config.beyond_diffusers(), None);
}

/// A full walk needs no spacing, so an offset cannot run over its end.
#[test]
fn a_full_walk_takes_every_step() {
    let config = read(r#", "steps_offset": 1, "num_train_timesteps": 20"#).unwrap();
    assert_eq!(
        config.process(20).unwrap().schedule,
        config.schedule().unwrap()
    );
    fails(
        config.process(21),
        "cannot keep 21 of 20 steps: the number must lie in 1..=20",
    );
}

#[test]
fn what_cannot_be_expressed() {
    fails(
        SchedulerConfig::ddpm(
            LINEAR,
            10,
            Prediction::Noise,
            Variance::FixedLarge,
            Clip::PerChannel(vec![(0.0, 1.0)]),
        ),
        "diffusers' scheduler configuration cannot express clipping that differs between channels",
    );
    let means = SchedulerConfig::ddpm(
        LINEAR,
        10,
        Prediction::PosteriorMean,
        Variance::FixedLarge,
        Clip::None,
    )
    .unwrap();
    assert_eq!(
        means.beyond_diffusers(),
        Some("the network predicts posterior means, for which diffusers has no prediction_type")
    );
    fails(
        SchedulerConfig::ddpm(
            Betas::Cosine,
            0,
            Prediction::Noise,
            Variance::FixedLarge,
            Clip::None,
        ),
        "a schedule needs at least one step, but T is 0",
    );
}

/// JSON would make null of them, and null is the default.
#[test]
fn numbers_that_a_file_cannot_hold() {
    let ddpm = |steps: usize, clip: Clip| {
        SchedulerConfig::ddpm(LINEAR, steps, Prediction::Noise, Variance::FixedLarge, clip)
    };
    for (range, shown) in [
        (f64::INFINITY, "inf"),
        (f64::NAN, "NaN"),
        (0.0, "0"),
        (-1.0, "-1"),
    ] {
        let message = format!(
            "scheduler configuration: `clip_sample_range` is {shown}, expected a finite number above 0"
        );
        fails(ddpm(10, Clip::Range(range)), &message);
    }
    for steps in [1_000_001, usize::MAX] {
        let message = format!(
            "scheduler configuration: `num_train_timesteps` is {steps}, expected at most 1000000"
        );
        fails(ddpm(steps, Clip::None), &message);
    }
}

/// An offset is only added where a walk is shorter than training.
#[test]
fn the_largest_offset_is_no_overflow() {
    let config = read(r#", "steps_offset": 18446744073709551615"#).unwrap();
    fails(
        config.process(50),
        "leading spacing of 50 of 1000 steps with offset 18446744073709551615 ends at network time \
         18446744073709551615, beyond 999",
    );
    assert!(config.process(1000).is_ok());
}

#[test]
fn files_that_make_no_sense() {
    fails(
        read(r#", "sigma_least": 0.02"#),
        "scheduler configuration: unknown key `sigma_least` for DDPMScheduler",
    );
    let check = |keys: &str, message: &str| {
        fails(read(keys), &format!("scheduler configuration: {message}"))
    };
    check(
        r#", "beta_start": "small""#,
        "`beta_start` is \"small\", expected a number",
    );
    check(
        r#", "num_train_timesteps": 10.5"#,
        "`num_train_timesteps` is 10.5, expected a whole number of at least 0",
    );
    check(
        r#", "clip_sample": 1"#,
        "`clip_sample` is 1, expected true or false",
    );
    check(
        r#", "clip_sample_range": 0"#,
        "`clip_sample_range` is 0, expected a finite number above 0",
    );
    check(
        r#", "num_train_timesteps": 1000001"#,
        "`num_train_timesteps` is 1000001, expected at most 1000000",
    );
    check(
        r#", "thresholding": true, "sample_max_value": 0"#,
        "`sample_max_value` is 0, expected a finite number above 0",
    );
    check(
        r#", "prediction_type": "flow""#,
        "`prediction_type` is \"flow\", expected one of `epsilon`, `sample`, `v_prediction`, `posterior_mean`",
    );
    check(
        r#", "variance_type": "fixed""#,
        "`variance_type` is \"fixed\", expected one of `fixed_small`, `fixed_large`, `fixed_small_log`, `fixed_large_log`, `learned`, \
         `learned_range`",
    );
    check(
        r#", "beta_schedule": "warm""#,
        "`beta_schedule` is \"warm\", expected one of `linear`, `scaled_linear`, `squaredcos_cap_v2`, `sigmoid`, `laplace`",
    );
    check(
        r#", "timestep_spacing": "wide""#,
        "`timestep_spacing` is \"wide\", expected one of `leading`, `linspace`, `trailing`",
    );
    check(
        r#", "trained_betas": [0.1, "x"]"#,
        "`trained_betas` is [0.1,\"x\"], expected null or 1000 numbers",
    );
    check(
        r#", "trained_betas": [0.1, 0.2]"#,
        "`trained_betas` is a list of 2, expected num_train_timesteps = 1000 numbers",
    );
    fails(
        read(r#", "beta_end": 2"#),
        "beta is 1.001050950950951 at t = 501, but every beta must lie in (0, 1]",
    );
    fails(
        read(r#", "num_train_timesteps": 0"#),
        "a schedule needs at least one step, but T is 0",
    );
    let message = |json: &str| SchedulerConfig::from_json(json).unwrap_err().to_string();
    let missing = message("{}");
    let beginning = "scheduler configuration: `_class_name` is missing, expected one of `DDPMScheduler`, `DDIMScheduler`, ";
    assert!(missing.starts_with(beginning), "{missing}");
    let other = message(r#"{"_class_name": "VQDiffusionScheduler"}"#);
    let beginning = "scheduler configuration: `_class_name` is \"VQDiffusionScheduler\", expected one of `DDPMScheduler`, ";
    assert!(other.starts_with(beginning), "{other}");
    let error = SchedulerConfig::from_json("{\"_class_name\": ")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "scheduler configuration: EOF while parsing a value at line 1 column 16"
    );
}

fn class(name: &str, keys: &str) -> ddpm_samplers::Result<SchedulerConfig> {
    SchedulerConfig::from_json(&format!("{{\"_class_name\": \"{name}\"{keys}}}"))
}

/// What is written has every key of the class, and is read as the same.
#[test]
fn every_class_comes_back_as_it_was() {
    for (name, expected) in SchedulerClass::NAMES {
        let config = class(name, "").unwrap();
        assert_eq!(config.class(), expected);
        assert_eq!(expected.name(), name);
        let again = SchedulerConfig::from_json(&config.to_json()).unwrap();
        assert_eq!(again, config, "{name}");
        assert!(config.to_json().contains("\"num_train_timesteps\""));
    }
    let heun = class("HeunDiscreteScheduler", "").unwrap();
    let expected = Schedule::linear(1000, 0.00085, 0.012).unwrap();
    assert_eq!(heun.schedule().unwrap(), expected);
    assert_eq!(heun.spacing(), Spacing::Linspace);
}

/// As diffusers' `from_config`: what both classes know is kept, a key of the other class comes back with it, a default does not.
#[test]
fn switching_the_class_keeps_what_the_file_says() {
    let file =
        r#", "beta_end": 0.03, "variance_type": "fixed_large", "timestep_spacing": "trailing""#;
    let ddpm = class("DDPMScheduler", file).unwrap();
    let unipc = ddpm.switched(SchedulerClass::UniPc).unwrap();
    assert_eq!(unipc.spacing(), Spacing::Trailing);
    assert_eq!(unipc.schedule().unwrap(), ddpm.schedule().unwrap());
    let there = SchedulerConfig::from_json(&unipc.to_json()).unwrap();
    assert_eq!(there.switched(SchedulerClass::Ddpm).unwrap(), ddpm);
    // Said by nobody, so each class has its own.
    let plain = class("DDPMScheduler", "").unwrap();
    assert_eq!(plain.spacing(), Spacing::Leading { offset: 0 });
    let euler = plain.switched(SchedulerClass::Euler).unwrap();
    assert_eq!(euler.spacing(), Spacing::Linspace);
    // The network was trained as the file says, whatever the class it is run with has for a default.
    let heun = plain.switched(SchedulerClass::Heun).unwrap();
    assert_eq!(heun.schedule().unwrap(), plain.schedule().unwrap());
    for kind in SamplerKind::all() {
        let config = ddpm.with_kind(kind).unwrap();
        assert_eq!(config.kind(), kind);
        assert!(config.sampler(&Choice::steps(8)).is_ok(), "{kind}");
    }
}

#[test]
fn pythons_infinities_are_read() {
    let keys =
        r#", "lambda_min_clipped": -Infinity, "solver_order": 3, "_note": "-Infinity \" NaN""#;
    let config = class("DPMSolverMultistepScheduler", keys).unwrap();
    assert_eq!(config.kind(), SamplerKind::DpmPlusPlus3);
    assert!(!config.to_json().contains("Infinity"));
    assert_eq!(
        SchedulerConfig::from_json(&config.to_json()).unwrap(),
        config
    );
}

#[test]
fn solvers_that_make_no_sense() {
    let check = |name: &str, keys: &str, message: &str| {
        fails(
            class(name, keys),
            &format!("scheduler configuration: {message}"),
        )
    };
    let dpm = "DPMSolverMultistepScheduler";
    check(
        dpm,
        r#", "algorithm_type": "dpmsolver""#,
        "`final_sigmas_type` is zero, expected `sigma_min`: `dpmsolver` and `sde-dpmsolver` cannot end at the clean image",
    );
    check(
        dpm,
        r#", "use_karras_sigmas": true, "use_beta_sigmas": true"#,
        "`use_beta_sigmas` is true, expected false: `use_karras_sigmas` is set",
    );
    check(
        dpm,
        r#", "solver_order": 4"#,
        "`solver_order` is 4, expected 1 to 3",
    );
    check(
        dpm,
        r#", "use_flow_sigmas": true, "use_dynamic_shifting": true"#,
        "`use_dynamic_shifting` is true, expected false: the shift for an image's size is not known here",
    );
    check(
        "UniPCMultistepScheduler",
        r#", "solver_p": 3"#,
        "`solver_p` is 3, expected null: UniPC predicts by itself",
    );
    check(
        "EDMEulerScheduler",
        r#", "sigma_max": 0.001"#,
        "`sigma_max` is 0.001, expected a finite number above sigma_min",
    );
    let flow = class(dpm, r#", "prediction_type": "flow_prediction""#).unwrap();
    fails(
        flow.sampler(&Choice::steps(5)),
        "scheduler configuration: `prediction_type` is flow_prediction, expected another: without `use_flow_sigmas` there is no flow",
    );
    let euler = class("EulerDiscreteScheduler", "").unwrap();
    fails(
        euler.with("solver_order", 3),
        "scheduler configuration: unknown key `solver_order` for EulerDiscreteScheduler",
    );
}

#[test]
fn steps_of_ones_own() {
    let at = |config: &SchedulerConfig, steps: Steps| {
        let choice = Choice {
            steps,
            ..Choice::steps(1)
        };
        config.sampler(&choice)
    };
    let ddpm = class("DDPMScheduler", "").unwrap();
    let wrong = "the timesteps must be at least one number, fall, and lie in 0..1000";
    for times in [vec![], vec![1, 2], vec![5, 5], vec![1000, 3]] {
        fails(at(&ddpm, Steps::Times(times.clone())), wrong);
        let dpm = ddpm.with_kind(SamplerKind::DpmPlusPlus).unwrap();
        fails(at(&dpm, Steps::Times(times)), wrong);
    }
    fails(
        at(&ddpm, Steps::Sigmas(vec![3.0, 0.0])),
        "DDPMScheduler works on steps of training: give it timesteps, not sigmas",
    );
    let karras = ddpm
        .with_kind(SamplerKind::Euler)
        .unwrap()
        .with("use_karras_sigmas", true)
        .unwrap();
    fails(
        at(&karras, Steps::Times(vec![7, 3])),
        "timesteps of one's own and a curve of sigmas (karras, exponential, beta, lu, flow) exclude each other",
    );
    let euler = ddpm.with_kind(SamplerKind::Euler).unwrap();
    fails(
        at(&euler, Steps::Sigmas(vec![3.0, 4.0])),
        "the sigmas must be two numbers of at least 0 or more of them, falling",
    );
    let pndm = ddpm.with_kind(SamplerKind::Pndm).unwrap();
    fails(
        pndm.sampler(&Choice::steps(3)),
        "3 steps of PNDM: expected at least 4, which its first steps need",
    );
}
