//! Networks that know the data exactly, so that the right answer of a walk is known in closed form.

use crate::{NoNoise, OnSteps, Waves, formula, last, linear, numbers, process, same, start};
use candle_core::{DType, Tensor};
use ddpm_core::{NoiseSource, Prediction, Result, Schedule, Spacing, Variance, eps_from_x_0};
use ddpm_samplers::{
    Clip, DdimSettings, Direction, Process, ancestral, ddim, ddim_inversion, ddim_with,
};
use ddpm_tests::device;

const ALL: [Prediction; 4] = [
    Prediction::Noise,
    Prediction::Original,
    Prediction::Velocity,
    Prediction::PosteriorMean,
];

fn schedules() -> Vec<Schedule> {
    let long = Schedule::cosine(1000).unwrap();
    vec![
        linear(40),
        linear(1000).respaced(Spacing::Linspace, 13).unwrap(),
        linear(1000)
            .rescaled_to_zero_terminal_snr()
            .unwrap()
            .respaced(Spacing::Trailing, 20)
            .unwrap(),
        long.respaced(Spacing::Trailing, 10).unwrap(),
        long.respaced(Spacing::Leading { offset: 1 }, 7).unwrap(),
        Schedule::alpha_bar_sigmoid(25).unwrap(),
        Schedule::jsd(9).unwrap(),
        Schedule::constant(1, 0.3).unwrap(),
    ]
}

fn samplers() -> Vec<OnSteps> {
    let mut from_clipped = DdimSettings::new(0.7);
    from_clipped.direction = Direction::FromClipped;
    vec![
        OnSteps::Ancestral(Variance::FixedSmall),
        OnSteps::Ancestral(Variance::FixedLarge),
        OnSteps::Ddim(DdimSettings::new(0.0)),
        OnSteps::Ddim(DdimSettings::new(0.5)),
        OnSteps::Ddim(DdimSettings::new(1.0)),
        OnSteps::Ddim(from_clipped),
    ]
}

/// What a network that knows E[x_0 | x_t] answers, in the words of `prediction`.
fn answer(process: &Process, x_t: &Tensor, time: &[f64], x_0: &Tensor) -> Result<Tensor> {
    let schedule = &process.schedule;
    let t: Vec<_> = time
        .iter()
        .map(|&time| schedule.timestep_at_network_time(time as usize).unwrap())
        .collect();
    let eps = eps_from_x_0(schedule, x_t, &t, x_0)?;
    process.prediction.target(schedule, x_0, x_t, &t, &eps)
}

/// A data set of one image: every walk ends there, whatever the schedule, the words, the noise and the number of steps.
#[test]
fn one_image_is_always_found() {
    let image = formula(|i| (0.37 * i).sin() * 0.99)
        .to_dtype(DType::F64)
        .unwrap();
    let x_t = start().to_dtype(DType::F64).unwrap();
    struct Doubled;
    impl NoiseSource for Doubled {
        fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
            Ok(Waves.draw(draw, like)?.to_dtype(DType::F64)?)
        }
    }
    for schedule in schedules() {
        for prediction in ALL {
            if prediction == Prediction::Noise && schedule.alpha_bar(schedule.last()) == 0.0 {
                continue;
            }
            for clip in [Clip::None, Clip::Range(1.0)] {
                let process = process(schedule.clone(), prediction, clip);
                let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
                    answer(&process, x, time, &image)
                };
                for sampler in samplers() {
                    let mut noise = Doubled;
                    let end = last(sampler.of(&process).walk(&network, &x_t, &mut noise));
                    same(&end.x, &image, 1e-9);
                    same(&end.x_0_hat, &image, 1e-9);
                }
            }
        }
    }
}

/// Noise that is 1 for one image at one draw: the batch then holds all coefficients of a walk that is linear in its noise.
struct Impulses;

impl NoiseSource for Impulses {
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
        let mut noise = vec![0.0f64; like.elem_count()];
        noise[draw + 2] = 1.0;
        Ok(Tensor::from_vec(noise, like.dims(), &device())?)
    }
}

/// Mean and variance of the samples of a walk over the data N(mu, s^2), exactly: image 0 has no noise at all, image 1 has
/// x_T = 1, image k + 2 has draw k = 1.
fn moments(
    schedule: &Schedule,
    sampler: &OnSteps,
    prediction: Prediction,
    mu: f64,
    s: f64,
) -> (f64, f64) {
    let process = process(schedule.clone(), prediction, Clip::None);
    let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
        let a = schedule.alpha_bar(schedule.timestep_at_network_time(time[0] as usize).unwrap());
        // E[x_0 | x_t] of a Gaussian.
        let gain = a.sqrt() * s * s / (a * s * s + 1.0 - a);
        let x_0 = x.affine(gain, mu - gain * a.sqrt() * mu)?;
        answer(&process, x, time, &x_0)
    };
    let mut x_t = vec![0.0f64; schedule.steps() + 2];
    x_t[1] = 1.0;
    let x_t = Tensor::from_vec(x_t, (schedule.steps() + 2, 1, 1, 1), &device()).unwrap();
    let end = numbers(&last(sampler.of(&process).walk(&network, &x_t, &mut Impulses)).x);
    (end[0], end[1..].iter().map(|x| (x - end[0]).powi(2)).sum())
}

/// Data N(0, 1): with sigma_t^2 = beta_t every x_t is N(0, 1) exactly, and the last step, which adds no noise, leaves alpha-bar_1.
#[test]
fn standard_normal_data_and_large_variance() {
    for schedule in [
        linear(100),
        Schedule::cosine(30).unwrap(),
        linear(1000).respaced(Spacing::Trailing, 20).unwrap(),
    ] {
        for prediction in ALL {
            let (mean, variance) = moments(
                &schedule,
                &OnSteps::Ancestral(Variance::FixedLarge),
                prediction,
                0.0,
                1.0,
            );
            let first = schedule.alpha_bar(schedule.timestep(1).unwrap());
            assert!(mean.abs() < 1e-9);
            assert!((variance - first).abs() < 1e-9, "{variance} and {first}");
        }
    }
}

/// Data N(mu, s^2) and DDIM with eta = 0: each step multiplies the distance from the mean by a known factor.
#[test]
fn gaussian_data_and_ddim() {
    let (mu, s) = (0.4, 0.3f64);
    for schedule in [
        linear(100),
        Schedule::cosine(30).unwrap(),
        linear(1000).respaced(Spacing::Trailing, 20).unwrap(),
    ] {
        let (mut factor, mut mean) = (1.0, 0.0);
        for t in schedule.timesteps().rev() {
            let (a, b) = (schedule.alpha_bar(t), schedule.alpha_bar_previous(t));
            let variance = a * s * s + 1.0 - a;
            let step = ((a * b).sqrt() * s * s + ((1.0 - a) * (1.0 - b)).sqrt()) / variance;
            mean = b.sqrt() * mu + step * (mean - a.sqrt() * mu);
            factor *= step;
        }
        for prediction in [
            Prediction::Original,
            Prediction::Velocity,
            Prediction::PosteriorMean,
            Prediction::Noise,
        ] {
            let got = moments(
                &schedule,
                &OnSteps::Ddim(DdimSettings::new(0.0)),
                prediction,
                mu,
                s,
            );
            assert!((got.0 - mean).abs() < 1e-6, "{} and {mean}", got.0);
            assert!(
                (got.1 - factor * factor).abs() < 1e-6,
                "{} and {}",
                got.1,
                factor * factor
            );
        }
    }
}

/// With more and more steps every sampler draws from the data: its mean and its variance.
#[test]
fn gaussian_data_in_the_limit() {
    let (mu, s) = (0.4, 0.5f64);
    let long = Schedule::cosine(400).unwrap();
    for sampler in samplers() {
        let errors = [50, 100, 200, 400].map(|steps| {
            let schedule = long.respaced(Spacing::Trailing, steps).unwrap();
            let (mean, variance) = moments(&schedule, &sampler, Prediction::Velocity, mu, s);
            (mean - mu).abs().max((variance - s * s).abs())
        });
        assert!(
            errors
                .windows(2)
                .all(|pair| pair[1] < pair[0] || pair[1] < 1e-3),
            "{sampler:?}: {errors:?}"
        );
        assert!(errors[3] < 0.01, "{sampler:?}: {errors:?}");
    }
}

/// eta = 1 adds noise of variance beta-tilde_t at every step but the last.
#[test]
fn ddim_with_eta_one_has_the_posterior_variance() {
    struct Constant(f64);
    impl NoiseSource for Constant {
        fn draw(&mut self, _: usize, like: &Tensor) -> Result<Tensor> {
            Ok(like.affine(0.0, self.0)?)
        }
    }
    let zero = |x: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(x.zeros_like()?) };
    let schedule = linear(1000).respaced(Spacing::Trailing, 20).unwrap();
    let process = process(schedule, Prediction::Velocity, Clip::None);
    let x_t = start().to_dtype(DType::F64).unwrap();
    for (eta, share) in [(1.0, 1.0), (0.5, 0.25)] {
        let (mut with, mut without) = (Constant(1.0), Constant(0.0));
        let mut x_t = x_t.clone();
        let mut schedule = process.schedule.clone();
        // One step at a time from the same x_t.
        while schedule.steps() > 1 {
            let mut here = process.clone();
            here.schedule = schedule.clone();
            let a = ddim(&here, eta, &zero, &x_t, &mut with)
                .next()
                .unwrap()
                .unwrap();
            let b = ddim(&here, eta, &zero, &x_t, &mut without)
                .next()
                .unwrap()
                .unwrap();
            let added = (numbers(&a.x)[5] - numbers(&b.x)[5]).powi(2);
            let expected = share * schedule.beta_tilde(schedule.last());
            assert!(
                (added - expected).abs() < 1e-12 * (1.0 + expected),
                "{added} and {expected}"
            );
            let kept: Vec<_> = schedule.timesteps().take(schedule.steps() - 1).collect();
            schedule = schedule.respaced_at(&kept).unwrap();
            x_t = b.x;
        }
    }
}

/// The noise that is left of x_t and the noise that is drawn make up the level that a step lands on, wherever the walk ends.
#[test]
fn ddim_lands_on_the_level_it_aims_at() {
    struct Constant(f64);
    impl NoiseSource for Constant {
        fn draw(&mut self, _: usize, like: &Tensor) -> Result<Tensor> {
            Ok(like.affine(0.0, self.0)?)
        }
    }
    let black = |x: &Tensor, _: &[f64]| -> Result<Tensor> { Ok(x.zeros_like()?) };
    for schedule in schedules() {
        let first = schedule.alpha_bars()[1];
        for (alpha_bar_end, eta) in [
            (1.0, 1.0),
            (first, 1.0),
            (first, 0.4),
            (0.5 * (1.0 + first), 1.0),
        ] {
            let mut settings = DdimSettings::new(eta);
            settings.alpha_bar_end = alpha_bar_end;
            // Step t is the first of a walk over the first t steps; x_t is all noise, 1.
            for t in schedule.timesteps() {
                let kept: Vec<_> = schedule.timesteps().take(t.get()).collect();
                let here = schedule.respaced_at(&kept).unwrap();
                let process = process(here, Prediction::Original, Clip::None);
                let root = (1.0 - schedule.alpha_bar(t)).sqrt();
                let x_t = Tensor::full(root, (1, 1, 1, 1), &device()).unwrap();
                let [left, both] = [0.0, 1.0].map(|z| {
                    let mut noise = Constant(z);
                    let walk = ddim_with(&process, settings.clone(), &black, &x_t, &mut noise);
                    let step = walk.into_iter().next().unwrap().unwrap();
                    numbers(&step.x)[0]
                });
                let after = t
                    .previous()
                    .map_or(alpha_bar_end, |t| schedule.alpha_bar(t));
                let level = left.powi(2) + (both - left).powi(2);
                assert!(both >= left, "{left} and {both} at {t}");
                assert!(
                    (level - (1.0 - after)).abs() < 1e-12,
                    "{level} and {after} at {t}"
                );
            }
        }
    }
}

/// DDIM with eta = 1 and the ancestral walk with beta-tilde are the same walk.
#[test]
fn ddim_with_eta_one_is_ancestral() {
    let network =
        |x: &Tensor, time: &[f64]| -> Result<Tensor> { Ok(((x * 0.9)? + time[0] / 4000.0)?) };
    for prediction in ALL {
        let schedule = linear(1000).respaced(Spacing::Trailing, 25).unwrap();
        let process = process(schedule, prediction, Clip::None);
        let (mut a, mut b) = (Waves, Waves);
        let ddim = last(ddim(&process, 1.0, &network, &start(), &mut a));
        let ancestral = last(ancestral(
            &process,
            Variance::FixedSmall,
            &network,
            &start(),
            &mut b,
        ));
        let size = numbers(&ddim.x)
            .iter()
            .fold(1.0, |m: f64, x| m.max(x.abs()));
        same(&ddim.x, &ancestral.x, 2e-4 * size);
    }
}

/// There and back: the error falls with the number of steps, for a network that knows Gaussian data, in all words.
#[test]
fn inversion_and_back() {
    let s = 0.5f64;
    let x_0 = formula(|i| (0.37 * i).sin() * 0.8)
        .to_dtype(DType::F64)
        .unwrap();
    let long = Schedule::cosine(1000).unwrap();
    for prediction in ALL {
        let errors = [25, 100, 400].map(|steps| {
            let schedule = long
                .respaced(Spacing::Leading { offset: 0 }, steps)
                .unwrap();
            let process = process(schedule, prediction, Clip::None);
            let network = |x: &Tensor, time: &[f64]| -> Result<Tensor> {
                let t = process
                    .schedule
                    .timestep_at_network_time(time[0] as usize)
                    .unwrap();
                let a = process.schedule.alpha_bar(t);
                let x_0 = (x * (a.sqrt() * s * s / (a * s * s + 1.0 - a)))?;
                answer(&process, x, time, &x_0)
            };
            let x_t = last(ddim_inversion(&process, &network, &x_0)).x;
            let back = last(ddim(&process, 0.0, &network, &x_t, &mut NoNoise)).x;
            let errors = numbers(&(back - &x_0).unwrap());
            errors.iter().fold(0.0, |m: f64, e| m.max(e.abs()))
        });
        println!("{prediction:?} {errors:?}");
        assert!(
            errors[2] < 0.02 && errors[1] < 0.6 * errors[0] && errors[2] < 0.6 * errors[1],
            "{prediction:?}: {errors:?}"
        );
    }
}
