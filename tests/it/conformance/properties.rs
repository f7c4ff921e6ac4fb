//! Properties that diffusers' tests and OpenAI's ask of every scheduler, asked here of all samplers by their configurations.
//!
//! Others stand where their subject is: training that stops and goes on is training that does not in ddpm-train's `resume.rs`, averages
//! and their decay in its `training.rs` and `formulas.rs`; the terms of a network that knows its data, their sum and its entropy in
//! ddpm-core's `likelihood.rs`; inversion in all words of a network, and walks that find one image, in ddpm-samplers' `oracles.rs` and
//! `solvers.rs`; files that come back as they were and classes that are switched in its `config.rs`; samples that are their seed's whatever the batch, number by number
//! in ddpm-random's `streams.rs` and from the command line in ddpm-sample's `images.rs`.

use candle_core::{DType, Device, Tensor};
use ddpm_core::{NoiseSource, Result, Schedule, Variance, prior_term, q_sample, step_term};
use ddpm_random::{SampleNoise, sample_start};
use ddpm_samplers::{Choice, Sampler, SamplerKind, SchedulerClass, SchedulerConfig, Step, Steps};

/// Unequal dimensions, so that a swapped axis is seen.
const SHAPE: (usize, usize, usize) = (2, 3, 5);

/// Leading spacing has whole times, and walks that begin below T with images as they are there.
fn config(class: &str) -> SchedulerConfig {
    let file = format!(r#"{{"_class_name": "{class}", "timestep_spacing": "leading"}}"#);
    SchedulerConfig::from_json(&file).unwrap()
}

fn of_kind(kind: SamplerKind) -> SchedulerConfig {
    config("DDPMScheduler").with_kind(kind).unwrap()
}

/// A network that no two images, times or answers have in common.
fn network(x: &Tensor, time: &[f64]) -> Result<Tensor> {
    Ok(((x * 0.7)?.sin()? + time[0] / 3000.0)?)
}

fn images(first: u64, n: usize) -> Tensor {
    let x = sample_start(5, first, n, SHAPE, &Device::Cpu).unwrap();
    x.to_dtype(DType::F64).unwrap()
}

fn noise(first_image: u64) -> SampleNoise {
    SampleNoise {
        seed: 5,
        first_image,
    }
}

fn walked(sampler: &Sampler, x: &Tensor, noise: &mut dyn NoiseSource) -> Vec<Step> {
    let walk = sampler.walk(&network, x, noise);
    walk.map(|step| step.unwrap()).collect()
}

fn end(sampler: &Sampler, x: &Tensor, noise: &mut dyn NoiseSource) -> Tensor {
    walked(sampler, x, noise).pop().unwrap().x
}

/// The greatest difference between two batches.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

fn times_of(steps: &[Step]) -> Vec<usize> {
    steps.iter().map(|step| step.time as usize).collect()
}

/// Samplers that space their levels by the times of training.
fn by_times() -> impl Iterator<Item = SamplerKind> {
    SamplerKind::all().filter(|kind| {
        let own_levels = [
            SamplerKind::Edm,
            SamplerKind::EdmDpm,
            SamplerKind::ScoreSdeVe,
        ];
        !own_levels.contains(kind)
    })
}

#[test]
fn timesteps_by_number_are_timesteps_by_name() {
    for kind in by_times() {
        let config = of_kind(kind);
        for by_number in [Choice::steps(8), Choice::steps(8).as_diffusers()] {
            let sampler = config.sampler(&by_number).unwrap();
            let steps = walked(&sampler, &images(0, 2), &mut noise(0));
            let times = match kind {
                // Their walks ask more often than they have steps.
                SamplerKind::Pndm | SamplerKind::Plms => {
                    let schedule = config.process(8).unwrap().schedule;
                    let falling = schedule.timesteps().rev();
                    falling.map(|t| schedule.network_time(t) as usize).collect()
                }
                _ => times_of(&steps),
            };
            assert_eq!(times.len(), 8, "{kind}");
            let by_name = Choice {
                steps: Steps::Times(times),
                ..by_number.clone()
            };
            let named = end(
                &config.sampler(&by_name).unwrap(),
                &images(0, 2),
                &mut noise(0),
            );
            let apart = apart(&steps.last().unwrap().x, &named);
            assert!(apart < 1e-5, "{kind}, {:?}: {apart}", by_number.manner);
        }
    }
}

/// Noise added at any t, and a network that knows it: one step brings the image back, or takes it to the lowest level of training
/// where that is the end of a walk.
#[test]
fn one_step_with_the_true_noise_brings_the_image_back() {
    let schedule = Schedule::linear(1000, 1e-4, 0.02).unwrap();
    let (x_0, eps) = (images(20, 2).tanh().unwrap(), images(10, 2));
    let network = |_: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(eps.clone()) };
    let lowest = schedule.timestep(1).unwrap();
    let lowest = q_sample(&schedule, &x_0, &[lowest; 2], &eps).unwrap();
    for kind in by_times() {
        let exact = match kind {
            SamplerKind::Dpm | SamplerKind::Deis => &lowest,
            // In the noise a step of the SDE draws some more; PNDM has no walks of one step.
            SamplerKind::DpmSde | SamplerKind::Pndm | SamplerKind::Plms => continue,
            _ => &x_0,
        };
        let unclipped = of_kind(kind);
        let unclipped = match unclipped.class().has("clip_sample") {
            true => unclipped.with("clip_sample", false).unwrap(),
            false => unclipped,
        };
        for time in [1, 17, 500, 900] {
            let t = schedule.timestep_at_network_time(time).unwrap();
            let x_t = q_sample(&schedule, &x_0, &[t; 2], &eps).unwrap();
            let choice = Choice {
                steps: Steps::Times(vec![time]),
                ..Choice::steps(1)
            };
            let sampler = unclipped.sampler(&choice).unwrap();
            let mut noise = noise(0);
            let step = sampler.walk(&network, &x_t, &mut noise).last();
            let apart = apart(&step.unwrap().unwrap().x, exact);
            assert!(apart < 1e-8, "{kind} at {time}: {apart}");
        }
    }
}

/// The noise of a walk, counted from the draws that were made before.
struct Later(SampleNoise, usize);

impl NoiseSource for Later {
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
        self.0.draw(draw + self.1, like)
    }
}

/// What a walk without memory leaves in the middle is all that the rest of it needs.
#[test]
fn a_walk_is_its_two_halves() {
    let first_order = of_kind(SamplerKind::DpmPlusPlus)
        .with("solver_order", 1)
        .unwrap();
    let memoryless = [
        SamplerKind::Ddpm,
        SamplerKind::Ddim,
        SamplerKind::Euler,
        SamplerKind::EulerAncestral,
        SamplerKind::Heun,
        SamplerKind::Kdpm2,
        SamplerKind::Kdpm2Ancestral,
    ];
    let configs = memoryless.map(of_kind).into_iter().chain([first_order]);
    for config in configs {
        for eta in [0.0, 0.6] {
            let of = |steps| {
                let choice = Choice {
                    steps,
                    eta,
                    ..Choice::steps(1)
                };
                config.sampler(&choice).unwrap()
            };
            let whole = of(Steps::Number(9));
            let steps = walked(&whole, &images(0, 2), &mut noise(0));
            let (done, left) = steps.split_at(4);
            let rest = of(Steps::Times(times_of(left)));
            // Every step of these but the last draws once, or none does.
            let drawn = if whole.draws() == 0 { 0 } else { done.len() };
            let x = end(&rest, &done[3].x, &mut Later(noise(0), drawn));
            let apart = apart(&x, &steps[8].x);
            assert!(apart < 1e-9, "{}: {apart}", config.class());
        }
    }
}

/// Alone `sde-ve` sizes its corrections by the mean over the batch, as published.
#[test]
fn a_sample_is_its_seeds_by_every_sampler() {
    for kind in SamplerKind::all().filter(|kind| *kind != SamplerKind::ScoreSdeVe) {
        let sampler = of_kind(kind).sampler(&Choice::steps(6)).unwrap();
        let together = end(&sampler, &images(0, 3), &mut noise(0));
        let alone = end(&sampler, &images(2, 1), &mut noise(2));
        let apart = apart(&together.narrow(0, 2, 1).unwrap(), &alone);
        assert_eq!(apart, 0.0, "{kind}");
    }
}

/// All bytes, equally often: a network that knows no more than that pays eight bits a pixel at least, one that knows less more, and
/// no term is ever below 0.
#[test]
fn the_bound_pays_for_every_bit() {
    let bytes: Vec<f64> = (0..256).map(|byte| f64::from(byte) / 127.5 - 1.0).collect();
    let x_0 = Tensor::from_slice(&bytes, (1, 1, 8, 32), &Device::Cpu).unwrap();
    let schedule = Schedule::linear_scaled(60).unwrap();
    for variance in [Variance::FixedSmall, Variance::FixedLarge] {
        let exact = bound(&schedule, variance, &x_0, &|x, alpha_bar| {
            posterior_mean(&bytes, x, alpha_bar)
        });
        let black = bound(&schedule, variance, &x_0, &|_, _| 0.0);
        let naive = bound(&schedule, variance, &x_0, &|x, _| x.clamp(-1.0, 1.0));
        // The steps are few and coarse, so that it pays for some bits that there are not.
        assert!((8.0..12.0).contains(&exact), "{variance:?}: {exact}");
        assert!(
            naive > exact && black > exact,
            "{exact}, {naive} and {black}"
        );
    }
}

/// The mean over four draws of noise of all terms together, in bits per dimension, for a network that sees each pixel and alpha-bar.
fn bound(
    schedule: &Schedule,
    variance: Variance,
    x_0: &Tensor,
    guess: &dyn Fn(f64, f64) -> f64,
) -> f64 {
    let only = |x: Tensor| x.to_vec1::<f64>().unwrap()[0];
    let mut total = only(prior_term(schedule, x_0).unwrap());
    assert!(total >= 0.0);
    for t in schedule.timesteps() {
        for draw in 0..4 {
            let eps = noise(9).draw(4 * t.get() + draw, x_0).unwrap();
            let x_t = q_sample(schedule, x_0, &[t], &eps).unwrap();
            let pixels = x_t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let guesses = pixels.into_iter().map(|x| guess(x, schedule.alpha_bar(t)));
            let guesses = Tensor::from_iter(guesses, &Device::Cpu);
            let guesses = guesses.unwrap().reshape(x_0.dims()).unwrap();
            let term = only(step_term(schedule, variance, x_0, &x_t, &[t], &guesses).unwrap());
            assert!(term >= 0.0, "{term} at {t}");
            total += term / 4.0;
        }
    }
    total
}

/// E[x_0 | x_t] where x_0 is each of these values equally often.
fn posterior_mean(values: &[f64], x_t: f64, alpha_bar: f64) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for value in values {
        let distance = x_t - alpha_bar.sqrt() * value;
        let weight = (-0.5 * distance * distance / (1.0 - alpha_bar)).exp();
        sum += weight * value;
        weights += weight;
    }
    sum / weights
}

/// `DDIMInverseScheduler` and then the `DDIMScheduler` of the same file, with a network that knows Gaussian data.
#[test]
fn there_and_back_is_near_the_same_image() {
    let s = 0.5f64;
    let schedule = Schedule::linear(1000, 1e-4, 0.02).unwrap();
    let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
        let t = schedule.timestep_at_network_time(time[0] as usize).unwrap();
        let a = schedule.alpha_bar(t);
        Ok((x * ((1.0 - a).sqrt() / (a * s * s + 1.0 - a)))?)
    };
    let up = config("DDIMInverseScheduler")
        .with("clip_sample", false)
        .unwrap();
    let down = up.switched(SchedulerClass::Ddim).unwrap();
    let x_0 = (images(0, 2) * s).unwrap();
    let errors = [50, 200].map(|steps| {
        let walk = |config: &SchedulerConfig, x: &Tensor| {
            let sampler = config.sampler(&Choice::steps(steps)).unwrap();
            let mut noise = noise(0);
            let end = sampler.walk(&network, x, &mut noise).last();
            end.unwrap().unwrap().x
        };
        apart(&walk(&down, &walk(&up, &x_0)), &x_0)
    });
    assert!(
        errors[1] < 0.03 && errors[1] < 0.5 * errors[0],
        "{errors:?}"
    );
}
