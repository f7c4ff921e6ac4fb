//! q(x_t | x_{t-1}), q(x_t | x_0) and the posterior.

use crate::{SHAPE, at, close, every_schedule, fails, linear, numbers, same, wave, zero_snr};
use candle_core::DType;
use ddpm_core::{
    Prediction, posterior_weights, q_posterior_mean, q_posterior_mean_from_noise, q_sample, q_step,
};

#[test]
fn every_image_has_its_own_t() {
    let schedule = linear();
    let (x_0, eps) = (wave(0.7), wave(1.3));
    let x_t = numbers(&q_sample(&schedule, &x_0, &at(&schedule, [1, 1000]), &eps).unwrap());
    let (x_0, eps) = (numbers(&x_0), numbers(&eps));
    let per_image = SHAPE.1 * SHAPE.2 * SHAPE.3;
    let alpha_bars = [0.9999f64, 4.0358297653756754e-05];
    for i in 0..x_t.len() {
        let alpha_bar = alpha_bars[i / per_image];
        let expected = alpha_bar.sqrt() * x_0[i] + (1.0 - alpha_bar).sqrt() * eps[i];
        assert!((x_t[i] - expected).abs() < 1e-12);
    }
}

#[test]
fn one_step_after_the_other() {
    let schedule = ddpm_core::Schedule::cosine(5).unwrap();
    let (x_0, zero) = (wave(0.7), wave(0.7).zeros_like().unwrap());
    let mut x = x_0.clone();
    for t in schedule.timesteps() {
        x = q_step(&schedule, &x, &[t, t], &zero).unwrap();
        same(
            &x,
            &q_sample(&schedule, &x_0, &[t, t], &zero).unwrap(),
            1e-12,
        );
    }
    let t = at(&schedule, [3, 5]);
    let only_noise = q_step(&schedule, &zero, &t, &x_0.ones_like().unwrap()).unwrap();
    close(numbers(&only_noise)[0], schedule.beta(t[0]).sqrt(), 1e-14);
    close(
        *numbers(&only_noise).last().unwrap(),
        schedule.beta(t[1]).sqrt(),
        1e-14,
    );
}

#[test]
fn coefficients_are_cast_once() {
    let schedule = linear();
    let t = at(&schedule, [1, 500]);
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let (x_0, eps) = (
            wave(0.7).to_dtype(dtype).unwrap(),
            wave(1.3).to_dtype(dtype).unwrap(),
        );
        let x_t = q_sample(&schedule, &x_0, &t, &eps).unwrap();
        assert_eq!(x_t.dtype(), dtype);
    }
    let single = q_sample(
        &schedule,
        &wave(0.7).to_dtype(DType::F32).unwrap(),
        &t,
        &wave(1.3).to_dtype(DType::F32).unwrap(),
    );
    same(
        &single.unwrap(),
        &q_sample(&schedule, &wave(0.7), &t, &wave(1.3)).unwrap(),
        3e-7,
    );
}

#[test]
fn posterior_weights_are_published() {
    let schedule = linear();
    let check = |t, of_x_0, of_x_t| {
        let got = posterior_weights(&schedule, schedule.timestep(t).unwrap());
        close(got.0, of_x_0, 1e-7);
        close(got.1, of_x_t, 1e-7);
    };
    check(2, 0.5452915, 0.4547085);
    check(501, 0.0030580571, 0.99410435);
    check(1000, 1.2835149e-4, 0.98994868);
    for (name, schedule) in every_schedule() {
        let first = posterior_weights(&schedule, schedule.timestep(1).unwrap());
        assert_eq!(first, (1.0, 0.0), "{name}: at t = 1 the mean is x_0");
    }
}

/// Both forms of the posterior mean, where x_0 is what x_t and eps imply.
#[test]
fn posterior_from_image_and_from_noise_agree() {
    for (name, schedule) in every_schedule() {
        if schedule.steps() < 20 {
            continue;
        }
        for t in [1, 2, 10, schedule.steps() / 2, schedule.steps()] {
            let t = at(&schedule, [t, 1 + t / 2]);
            if schedule.alpha_bar(t[0]) < 1e-12 {
                continue; // x_0 from noise is lost in rounding, or undefined
            }
            let (x_t, eps) = (wave(0.7), wave(1.3));
            let x_0 = Prediction::Noise
                .x_0_hat(&schedule, &x_t, &t, &eps)
                .unwrap();
            let from_image = q_posterior_mean(&schedule, &x_0, &x_t, &t).unwrap();
            let from_noise = q_posterior_mean_from_noise(&schedule, &x_t, &eps, &t).unwrap();
            let largest = numbers(&from_noise)
                .iter()
                .fold(1.0, |m: f64, x| m.max(x.abs()));
            for (a, b) in numbers(&from_image).iter().zip(numbers(&from_noise)) {
                assert!((a - b).abs() < 1e-9 * largest, "{name}: {a} and {b}");
            }
        }
    }
}

/// The posterior by Bayes' rule, from the product of two Gaussians.
#[test]
fn posterior_is_bayes_rule() {
    let schedule = ddpm_core::Schedule::cosine(50).unwrap();
    for t in schedule.timesteps().skip(1) {
        let (alpha, beta) = (schedule.alpha(t), schedule.beta(t));
        let before = schedule.alpha_bar_previous(t);
        let (x_0, x_t) = (0.3, -0.8);
        // q(x_t | x_{t-1}) as a Gaussian in x_{t-1}, times q(x_{t-1} | x_0).
        let (p, q) = (alpha / beta, 1.0 / (1.0 - before));
        let mean = (p * x_t / alpha.sqrt() + q * before.sqrt() * x_0) / (p + q);
        let weights = posterior_weights(&schedule, t);
        assert!((weights.0 * x_0 + weights.1 * x_t - mean).abs() < 1e-10);
        close(schedule.beta_tilde(t), 1.0 / (p + q), 1e-9);
    }
}

#[test]
fn where_nothing_of_the_image_is_left() {
    let schedule = zero_snr();
    let t = at(&schedule, [1000, 999]);
    let (x_0, eps) = (wave(0.7), wave(1.3));
    let x_t = q_sample(&schedule, &x_0, &t, &eps).unwrap();
    same(&x_t.get(0).unwrap(), &eps.get(0).unwrap(), 0.0);
    let mean = q_posterior_mean(&schedule, &x_0, &x_t, &t).unwrap();
    assert!(numbers(&mean).iter().all(|x| x.is_finite()));
    fails(
        q_posterior_mean_from_noise(&schedule, &x_t, &eps, &t),
        "the posterior mean from noise is not defined at t = 1000, where alpha_bar is 0 and x_t holds nothing of the image: \
         use q_posterior_mean with x_0",
    );
}

#[test]
fn tensors_that_do_not_fit() {
    let schedule = linear();
    let (x_0, eps) = (wave(0.7), wave(1.3));
    let t = at(&schedule, [1, 2]);
    fails(
        q_sample(&schedule, &x_0, &t, &eps.transpose(2, 3).unwrap()),
        "eps has shape [2, 3, 6, 4], expected [2, 3, 4, 6] as x_0",
    );
    fails(
        q_sample(&schedule, &x_0, &t[..1], &eps),
        "2 images but 1 timesteps: every image needs its own t",
    );
    fails(
        q_step(&schedule, &x_0, &[], &eps),
        "2 images but 0 timesteps: every image needs its own t",
    );
    let long = ddpm_core::Schedule::cosine(4000).unwrap();
    fails(
        q_sample(&schedule, &x_0, &at(&long, [1, 4000]), &eps),
        "timestep 4000 is outside 1..=1000",
    );
    fails(
        q_posterior_mean(&schedule, &x_0, &eps.narrow(0, 0, 1).unwrap(), &t),
        "x_t has shape [1, 3, 4, 6], expected [2, 3, 4, 6] as x_0",
    );
}
