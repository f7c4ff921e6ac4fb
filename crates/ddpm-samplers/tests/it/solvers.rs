//! Every solver by its name against what is known without diffusers: data of one image, Gaussian data, and each other.

use crate::{NoNoise, Waves, fails, formula, last, numbers, same, start};
use candle_core::{DType, Tensor};
use ddpm_core::{NoiseSource, Result};
use ddpm_samplers::{
    Choice, Clip, Manner, SamplerKind, SchedulerClass, SchedulerConfig, Step, Steps,
};

fn linear(prediction: &str) -> SchedulerConfig {
    let json = format!(
        r#"{{"_class_name": "DDPMScheduler", "prediction_type": "{prediction}", "clip_sample": false, "timestep_spacing": "trailing"}}"#
    );
    SchedulerConfig::from_json(&json).unwrap()
}

struct Doubled;

impl NoiseSource for Doubled {
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
        Ok(Waves.draw(draw, like)?.to_dtype(DType::F64)?)
    }
}

fn deterministic() -> impl Iterator<Item = SamplerKind> {
    let config = linear("epsilon");
    SamplerKind::all().filter(move |kind| {
        let sampler = config.with_kind(*kind).unwrap();
        sampler.sampler(&Choice::steps(8)).unwrap().draws() == 0
    })
}

/// A data set of one image: every sampler ends there, or with the noise of the level that it ends at.
#[test]
fn one_image_is_always_found_by_name() {
    let image = formula(|i| (0.37 * i).sin() * 0.99)
        .to_dtype(DType::F64)
        .unwrap();
    let network = |_: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(image.clone()) };
    let x_t = start().to_dtype(DType::F64).unwrap();
    // In the noise, a step of the SDE is exact only where it is small.
    let exact = SamplerKind::all().filter(|kind| *kind != SamplerKind::DpmSde);
    for kind in exact {
        let config = linear("sample").with_kind(kind).unwrap();
        for steps in [4, 5, 9, 30] {
            for choice in [Choice::steps(steps), Choice::steps(steps).as_diffusers()] {
                let sampler = config.sampler(&choice).unwrap();
                let mut noise = Doubled;
                let end = last(sampler.walk(&network, &x_t, &mut noise)).x;
                let tolerance = match kind {
                    // sigma_min of training is 0.01, at 1.4 deviations of either noise.
                    SamplerKind::Dpm | SamplerKind::Deis => 0.05,
                    SamplerKind::Pndm | SamplerKind::Plms => 0.05,
                    // Its corrector adds noise to the last level too.
                    SamplerKind::ScoreSdeVe => 0.05,
                    _ if choice.manner == Manner::Diffusers => 1e-5,
                    _ => 1e-8,
                };
                println!("{kind} {steps} {:?}", choice.manner);
                same(&end, &image, tolerance);
            }
        }
    }
}

/// For data N(0, s^2) the flow is known, and a solver of order n comes nearer by 2^n when its steps are halved; one that ends its walk
/// with a step of the first order to the clean image comes nearer at least by as much as that step does.
#[test]
fn solvers_come_to_the_flow_of_gaussian_data() {
    let s = 0.5f64;
    let config = linear("v_prediction");
    let schedule = config.schedule().unwrap();
    let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
        let levels = schedule.alpha_bars();
        let sigma = |t: usize| ((1.0 - levels[t]) / levels[t]).sqrt();
        let below = time[0].floor() as usize + 1;
        let above = (below + 1).min(1000);
        let sigma = sigma(below) + time[0].fract() * (sigma(above) - sigma(below));
        let a = 1.0 / (1.0 + sigma * sigma);
        let gain = (a * (1.0 - a)).sqrt() * (1.0 - s * s) / (a * s * s + 1.0 - a);
        Ok((x * gain)?)
    };
    let x_t = start().to_dtype(DType::F64).unwrap();
    for kind in deterministic() {
        let errors = [25, 50, 100].map(|steps| {
            let sampler = config.with_kind(kind).unwrap();
            let sampler = sampler.sampler(&Choice::steps(steps)).unwrap();
            let walk = sampler.walk(&network, &x_t, &mut NoNoise).last();
            let end = walk.unwrap().unwrap().x;
            let off = numbers(&(end - (&x_t * s).unwrap()).unwrap());
            off.iter().fold(0.0, |m: f64, e| m.max(e.abs()))
        });
        println!("{kind}: {errors:?}");
        assert!(
            errors[2] < 0.03 && errors[2] < 0.75 * errors[0],
            "{kind}: {errors:?}"
        );
    }
}

/// Exponential integrators of the first order are DDIM, whichever equation they solve; so is Euler's step.
#[test]
fn the_first_order_is_ddim() {
    let network =
        |x: &Tensor, time: &[f64]| -> Result<Tensor> { Ok(((x * 0.9)? + time[0] / 4000.0)?) };
    let x_t = start().to_dtype(DType::F64).unwrap();
    let times = Steps::Times(vec![990, 700, 420, 180, 40]);
    let walked = |config: &SchedulerConfig| -> Vec<Step> {
        let choice = Choice {
            steps: times.clone(),
            ..Choice::steps(1)
        };
        let sampler = config.sampler(&choice).unwrap();
        let mut noise = NoNoise;
        let walk = sampler.walk(&network, &x_t, &mut noise);
        walk.map(|step| step.unwrap()).collect()
    };
    for prediction in ["epsilon", "v_prediction", "sample"] {
        let config = linear(prediction);
        let ddim = walked(&config.with_kind(SamplerKind::Ddim).unwrap());
        for kind in [
            SamplerKind::DpmPlusPlus,
            SamplerKind::DpmPlusPlusSingle,
            SamplerKind::Dpm,
            SamplerKind::UniPc,
            SamplerKind::Deis,
        ] {
            let first = config.with_kind(kind).unwrap();
            let mut first = first.with("solver_order", 1).unwrap();
            if kind == SamplerKind::UniPc {
                first = first
                    .with("disable_corrector", vec![0, 1, 2, 3, 4])
                    .unwrap();
            }
            let steps = walked(&first);
            // The last goes elsewhere where a walk does not end at the clean image.
            for (step, ddim) in steps.iter().zip(&ddim).take(4) {
                same(&step.x, &ddim.x, 1e-9);
                assert_eq!(step.time, ddim.time);
            }
        }
    }
}

/// The linear multistep method of one answer is Euler's; a walk over one step of anything ends at x_0-hat.
#[test]
fn short_walks_end_at_what_the_network_has_in_mind() {
    let network = |x: &Tensor, _: &[f64]| -> Result<Tensor> { Ok((x * 0.4)?) };
    for kind in deterministic() {
        if matches!(
            kind,
            SamplerKind::Pndm | SamplerKind::Plms | SamplerKind::Deis | SamplerKind::Dpm
        ) {
            continue;
        }
        let config = linear("epsilon").with_kind(kind).unwrap();
        let sampler = config.sampler(&Choice::steps(1)).unwrap();
        let end = last(sampler.walk(&network, &start(), &mut NoNoise));
        let size = numbers(&end.x).iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        same(&end.x, &end.x_0_hat, 1e-4 * size);
    }
}

/// A network with Karras' preconditioning under every sampler: data of one image, D(x) = image whatever F is asked.
#[test]
fn networks_without_steps_are_walked_by_all() {
    let image = formula(|i| (0.37 * i).sin() * 0.9);
    let data = 0.5f64;
    let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
        let sigma = (4.0 * time[0]).exp();
        let total = sigma.hypot(data);
        // x here is c_in x; F = (D - c_skip x) / c_out.
        let skip = (data / total).powi(2) * total;
        Ok(((&image - (x * skip)?)? / (sigma * data / total))?)
    };
    let json = r#"{"_class_name": "EDMEulerScheduler"}"#;
    let config = SchedulerConfig::from_json(json).unwrap();
    let exact = SamplerKind::all().filter(|kind| *kind != SamplerKind::DpmSde);
    for kind in exact {
        let sampler = config.with_kind(kind).unwrap().sampler(&Choice::steps(9));
        let sampler = sampler.unwrap();
        println!("{kind}");
        let mut noise = Waves;
        let end = last(sampler.walk(&network, &start(), &mut noise)).x;
        let tolerance = match kind {
            SamplerKind::ScoreSdeVe => 0.05,
            SamplerKind::Dpm | SamplerKind::Deis => 0.01,
            _ => 2e-3,
        };
        same(&end, &image, tolerance);
    }
    fails(
        config
            .switched(SchedulerClass::Ddpm)
            .unwrap()
            .with("variance_type", "fixed_large")
            .unwrap()
            .sampler(&Choice::steps(5)),
        "DDPMScheduler works on steps of training, but the network was trained at any sigma: choose another sampler",
    );
}

/// s is the quantile, at least 1, and the largest value whatever the quantile.
#[test]
fn dynamic_thresholding() {
    let x = formula(|i| 2.0 * (0.37 * i).sin());
    let clip = |ratio: f64, most: f64| Clip::Dynamic { ratio, most }.apply(&x).unwrap();
    let largest = |x: &Tensor| numbers(x).iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    assert!((largest(&clip(0.5, 9.0)) - 1.0).abs() < 1e-6);
    same(&clip(0.5, 1.0), &x.clamp(-1f32, 1f32).unwrap(), 0.0);
    let small = (&x * 0.3).unwrap();
    let kept = Clip::Dynamic {
        ratio: 1.0,
        most: 3.0,
    }
    .apply(&small)
    .unwrap();
    same(&kept, &small, 0.0);
    fails(
        Clip::Dynamic {
            ratio: 1.5,
            most: 1.0,
        }
        .apply(&x),
        "the ratio or the largest value of dynamic thresholding is 1.5, expected a ratio in 0..=1 and a largest value above 0",
    );
}
