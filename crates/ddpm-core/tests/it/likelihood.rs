//! The terms of the variational bound against closed forms and published values.

use crate::{at, close, fails, linear, numbers, same, tensor, wave};
use candle_core::Tensor;
use ddpm_core::{
    Schedule, Variance, bits_per_dim, decoder_log_likelihood, log_variance_between, normal_kl,
    prior_term, q_posterior_mean, q_sample, step_term, step_term_of,
};
use ddpm_tests::device;
use std::f64::consts::LN_2;

#[test]
fn kl_is_published() {
    let kl = |m1: f64, v1: f64, m2: f64, v2: f64| {
        numbers(
            &normal_kl(
                &tensor(&[m1]),
                &tensor(&[v1]),
                &tensor(&[m2]),
                &tensor(&[v2]),
            )
            .unwrap(),
        )[0]
    };
    close(kl(1.0, 0.0, 0.0, 0.0), 0.5, 1e-15);
    close(kl(0.0, -1.0, 0.0, 1.0), 0.56766764, 1e-8);
    close(kl(0.3, -2.0, -0.2, -1.5), 0.61347646, 1e-8);
    assert_eq!(kl(0.4, -3.0, 0.4, -3.0), 0.0);
}

#[test]
fn decoder_is_published() {
    let log_likelihood = |x: f64, mean: f64, log_scale: f64| {
        numbers(
            &decoder_log_likelihood(&tensor(&[x]), &tensor(&[mean]), &tensor(&[log_scale]))
                .unwrap(),
        )[0]
    };
    close(log_likelihood(0.0, 0.0, 0.0), -5.76705747, 1e-8);
    close(log_likelihood(0.0, 0.0, -3.0), -2.76809361, 1e-8);
    close(log_likelihood(1.0, 1.0, -3.0), -0.63225758, 1e-8);
    close(log_likelihood(-1.0, -1.0, -3.0), -0.63225758, 1e-8);
    close(log_likelihood(0.5, 0.4, -2.0), -4.04096405, 1e-8);
    close(log_likelihood(0.0, 1.0, -6.0), -27.63102112, 1e-9);
}

/// Whatever mean and scale, some 8-bit value is drawn.
#[test]
fn decoder_probabilities_add_up_to_one() {
    let values: Vec<f64> = (0..256).map(|k| k as f64 / 127.5 - 1.0).collect();
    for (mean, log_scale) in [
        (0.0, 0.0),
        (0.3, -2.0),
        (-0.97, -3.5),
        (1.7, 1.0),
        (0.123, -1.0),
    ] {
        let x = tensor(&values);
        let constant = |value: f64| x.affine(0.0, value).unwrap();
        let log = decoder_log_likelihood(&x, &constant(mean), &constant(log_scale)).unwrap();
        let sum: f64 = numbers(&log).iter().map(|log| log.exp()).sum();
        close(sum, 1.0, 1e-9);
    }
}

#[test]
fn eight_bits_are_eight_bits() {
    let nats = wave(0.7).affine(0.0, 256f64.ln()).unwrap();
    let bits = numbers(&bits_per_dim(&nats).unwrap());
    assert_eq!(bits.len(), 2);
    close(bits[0], 8.0, 1e-14);
}

#[test]
fn prior_is_published() {
    let ones = wave(0.7).ones_like().unwrap();
    let term = numbers(&prior_term(&linear(), &ones).unwrap());
    assert_eq!(term.len(), 2);
    close(term[0], 2.911294542e-05, 1e-6);
    // The mean's part alone, which is alpha-bar_T / 2 nats; the variance's is the square of that.
    close(term[0], 4.0358297653756754e-05 / 2.0 / LN_2, 1e-4);
    let zero_snr = linear().rescaled_to_zero_terminal_snr().unwrap();
    assert_eq!(numbers(&prior_term(&zero_snr, &ones).unwrap()), [0.0, 0.0]);
}

/// With beta-tilde the KL is a squared distance of means; with beta_t it has the part of the variances too.
#[test]
fn middle_terms_by_hand() {
    let schedule = linear();
    let t = at(&schedule, [2, 700]);
    let (x_0, eps, guess) = (wave(0.7), wave(1.3), wave(0.4));
    let x_t = q_sample(&schedule, &x_0, &t, &eps).unwrap();
    for variance in [Variance::FixedSmall, Variance::FixedLarge] {
        let got = numbers(&step_term(&schedule, variance, &x_0, &x_t, &t, &guess).unwrap());
        for (i, &t) in t.iter().enumerate() {
            let (weight, _) = ddpm_core::posterior_weights(&schedule, t);
            let image = |x: &Tensor| numbers(&x.get(i).unwrap());
            let errors: Vec<f64> = image(&x_0)
                .iter()
                .zip(image(&guess))
                .map(|(a, b)| (a - b).powi(2))
                .collect();
            let mean_square = errors.iter().sum::<f64>() / errors.len() as f64 * weight * weight;
            let (true_variance, sigma) = (schedule.beta_tilde(t), variance.at(&schedule, t));
            let ratio = true_variance / sigma;
            let nats = 0.5 * (ratio - 1.0 - ratio.ln() + mean_square / sigma);
            close(got[i], nats / LN_2, 1e-9);
        }
    }
}

#[test]
fn a_perfect_network_pays_nothing_in_the_middle() {
    let schedule = Schedule::cosine(20).unwrap();
    let (x_0, eps) = (wave(0.7), wave(1.3));
    for t in schedule.timesteps().skip(1) {
        let x_t = q_sample(&schedule, &x_0, &[t, t], &eps).unwrap();
        let term = step_term(&schedule, Variance::FixedSmall, &x_0, &x_t, &[t, t], &x_0).unwrap();
        assert!(numbers(&term).iter().all(|bits| bits.abs() < 1e-12));
        let larger = step_term(&schedule, Variance::FixedLarge, &x_0, &x_t, &[t, t], &x_0).unwrap();
        assert!(numbers(&larger).iter().all(|bits| *bits > 0.0));
    }
}

#[test]
fn the_first_step_pays_the_decoder() {
    let schedule = linear();
    let t = at(&schedule, [1, 2]);
    let x_0 = wave(0.7);
    let x_t = q_sample(&schedule, &x_0, &t, &wave(1.3)).unwrap();
    let got = numbers(&step_term(&schedule, Variance::FixedLarge, &x_0, &x_t, &t, &x_0).unwrap());
    // beta-tilde_2, since beta-tilde_1 is 0, for both kinds of variance.
    let log_scale = x_0
        .affine(0.0, 0.5 * 5.4531876613021935e-05f64.ln())
        .unwrap();
    let log = decoder_log_likelihood(&x_0, &x_0, &log_scale).unwrap();
    close(got[0], -numbers(&bits_per_dim(&log).unwrap())[0], 1e-9);
    let small = numbers(&step_term(&schedule, Variance::FixedSmall, &x_0, &x_t, &t, &x_0).unwrap());
    assert_eq!(small[0], got[0]);
}

/// Mean and variance given directly, as by a network that learned its variance.
#[test]
fn a_learned_variance_is_priced_the_same() {
    let schedule = linear();
    let t = at(&schedule, [1, 300]);
    let (x_0, guess) = (wave(0.7), wave(0.4));
    let x_t = q_sample(&schedule, &x_0, &t, &wave(1.3)).unwrap();
    let mean = q_posterior_mean(&schedule, &guess, &x_t, &t).unwrap();
    let small = log_variance_between(&schedule, &x_0.zeros_like().unwrap(), &t).unwrap();
    let got = step_term_of(&schedule, &x_0, &x_t, &t, &mean, &small).unwrap();
    same(
        &got,
        &step_term(&schedule, Variance::FixedSmall, &x_0, &x_t, &t, &guess).unwrap(),
        1e-9,
    );
    let large = log_variance_between(&schedule, &x_0.ones_like().unwrap(), &t).unwrap();
    let expected: Vec<f64> = t.iter().map(|&t| schedule.beta(t).ln()).collect();
    let at_image = |i: usize| numbers(&large.get(i).unwrap())[0];
    close(at_image(0), expected[0], 1e-12);
    close(at_image(1), expected[1], 1e-12);
}

#[test]
fn variances_of_sampling_and_of_likelihood() {
    let schedule = linear();
    let at = |t| schedule.timestep(t).unwrap();
    assert_eq!(Variance::FixedLarge.at(&schedule, at(1000)), 0.02);
    assert_eq!(Variance::FixedSmall.at(&schedule, at(1)), 0.0);
    for variance in [Variance::FixedLarge, Variance::FixedSmall] {
        assert_eq!(
            variance.of_likelihood(&schedule, at(1)),
            schedule.beta_tilde(at(2))
        );
        assert_eq!(
            variance.of_likelihood(&schedule, at(2)),
            variance.at(&schedule, at(2))
        );
    }
    let one = Schedule::constant(1, 0.25).unwrap();
    assert_eq!(Variance::FixedSmall.of_likelihood(&one, one.last()), 0.25);
}

/// The whole bound of data that the model knows exactly, x_0 ~ N(0, 1) rounded to 8 bits: no less than the entropy,
/// and close to it when the steps are many, because the exact posterior has variance beta_t.
#[test]
fn the_bound_is_no_less_than_the_entropy() {
    let schedule = Schedule::linear(1000, 1e-4, 0.02).unwrap();
    // Quantiles of N(0, s^2), one a pixel, and for the noise another order of them.
    let s = 0.25;
    let n = 512;
    let quantile = |i: usize| {
        // Bisection of the tanh approximation is enough here.
        let p = (i as f64 + 0.5) / n as f64;
        let cdf = |x: f64| {
            0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        };
        let (mut low, mut high) = (-6.0, 6.0);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if cdf(middle) < p {
                low = middle
            } else {
                high = middle
            }
        }
        low
    };
    let rounded = |x: f64| ((s * x * 127.5).round() / 127.5).clamp(-1.0, 1.0);
    let pixels: Vec<f64> = (0..n).map(|i| rounded(quantile(i))).collect();
    let x_0 = Tensor::from_vec(pixels, (1, 1, 16, 32), &device()).unwrap();
    let mut total = numbers(&prior_term(&schedule, &x_0).unwrap())[0];
    for t in schedule.timesteps() {
        let shuffled: Vec<f64> = (0..n)
            .map(|i| quantile((i * 197 + 31 * t.get()) % n))
            .collect();
        let eps = Tensor::from_vec(shuffled, x_0.dims(), &device()).unwrap();
        let x_t = q_sample(&schedule, &x_0, &[t], &eps).unwrap();
        let a = schedule.alpha_bar(t);
        let x_0_hat = (&x_t * (a.sqrt() * s * s / (a * s * s + 1.0 - a))).unwrap();
        let term = numbers(
            &step_term(&schedule, Variance::FixedLarge, &x_0, &x_t, &[t], &x_0_hat).unwrap(),
        )[0];
        assert!(term >= 0.0, "L_{{t-1}} is negative at {t}");
        total += term;
    }
    // Entropy of N(0, s^2) in bins of 1/127.5, in bits.
    let entropy =
        0.5 * (2.0 * std::f64::consts::PI * std::f64::consts::E * s * s).log2() + 127.5f64.log2();
    assert!(
        total > entropy - 0.01 && total < entropy + 0.5,
        "bound {total}, entropy {entropy}"
    );
}

#[test]
fn terms_that_do_not_fit() {
    let schedule = linear();
    let t = at(&schedule, [1, 2]);
    let (x, wrong) = (wave(0.7), wave(0.7).narrow(1, 0, 1).unwrap());
    fails(
        step_term(&schedule, Variance::FixedSmall, &x, &x, &t, &wrong),
        "x_t has shape [2, 3, 4, 6], expected [2, 1, 4, 6] as x_0",
    );
    fails(
        step_term_of(&schedule, &x, &x, &t, &wrong, &x),
        "the mean of p has shape [2, 1, 4, 6], expected [2, 3, 4, 6] as x_0",
    );
    fails(
        step_term_of(&schedule, &x, &x, &t, &x, &wrong),
        "the log-variance of p has shape [2, 1, 4, 6], expected [2, 3, 4, 6] as x_0",
    );
    fails(
        normal_kl(&x, &wrong, &x, &x),
        "log_variance_1 has shape [2, 1, 4, 6], expected [2, 3, 4, 6] as mean_1",
    );
    fails(
        decoder_log_likelihood(&x, &wrong, &x),
        "mean has shape [2, 1, 4, 6], expected [2, 3, 4, 6] as x_0",
    );
    fails(
        step_term(&schedule, Variance::FixedSmall, &x, &x, &t[..1], &x),
        "2 images but 1 timesteps: every image needs its own t",
    );
    fails(
        log_variance_between(&schedule, &x, &t[..1]),
        "2 images but 1 timesteps: every image needs its own t",
    );
}
