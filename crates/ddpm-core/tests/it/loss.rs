//! Losses by hand, their gradients by finite differences, and weightings that mean the same for every prediction.

use crate::{at, close, every_schedule, fails, linear, numbers, tensor, wave, zero_snr};
use candle_core::{Tensor, Var};
use ddpm_core::{Loss, Prediction, Weighting, q_sample};
use ddpm_tests::device;

const ALL: [Prediction; 4] = [
    Prediction::Noise,
    Prediction::Original,
    Prediction::Velocity,
    Prediction::PosteriorMean,
];
const LOSSES: [Loss; 3] = [Loss::Mse, Loss::L1, Loss::Huber { delta: 0.5 }];

#[test]
fn losses_by_hand() {
    let output = Tensor::new(&[[[1.0f64, -2.0]], [[0.25, 3.0]]], &device()).unwrap();
    let target = output.zeros_like().unwrap();
    let check = |loss: Loss, expected: [f64; 2]| {
        let got = loss.per_image(&output, &target).unwrap();
        assert_eq!(got.dims(), [2]);
        assert_eq!(numbers(&got), expected);
    };
    check(Loss::Mse, [2.5, (0.0625 + 9.0) / 2.0]);
    check(Loss::L1, [1.5, 1.625]);
    check(
        Loss::Huber { delta: 1.0 },
        [(0.5 + 1.5) / 2.0, (0.03125 + 2.5) / 2.0],
    );
}

#[test]
fn gradients_are_finite_differences() {
    let target = wave(1.3);
    for loss in LOSSES {
        let output = Var::from_tensor(&wave(0.7)).unwrap();
        let total = |x: &Tensor| loss.per_image(x, &target).unwrap().sum_all().unwrap();
        let gradient = numbers(total(&output).backward().unwrap().get(&output).unwrap());
        let values = numbers(&output);
        for i in [1, 17, 40, 143] {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[i] += by;
                let x = Tensor::from_vec(values, output.dims(), &device()).unwrap();
                total(&x).to_scalar::<f64>().unwrap()
            };
            let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!(
                (gradient[i] - expected).abs() < 1e-8,
                "{loss:?}: {} and {expected}",
                gradient[i]
            );
        }
    }
}

#[test]
fn min_snr_weights_are_published() {
    let schedule = linear();
    let weight = |t| {
        Weighting::MinSnr { gamma: 5.0 }.weight(
            &schedule,
            Prediction::Noise,
            schedule.timestep(t).unwrap(),
        )
    };
    close(weight(1), 5.0005e-4, 1e-5);
    close(weight(101), 0.585709, 1e-6);
    for t in [251, 500, 1000] {
        assert_eq!(weight(t), 1.0);
    }
}

/// One wrong x_0 in four sets of words: the weighted squared errors are one number.
#[test]
fn a_weighting_means_the_same_for_every_prediction() {
    for (name, schedule) in every_schedule() {
        let last = schedule.steps();
        for t in [[1, last], [1 + last / 2, last.min(2)]] {
            let t = at(&schedule, t);
            if t.iter().any(|&t| schedule.alpha_bar(t) < 1e-10) {
                continue;
            }
            let (x_0, eps, guess) = (wave(0.7), wave(1.3), wave(0.4));
            let x_t = q_sample(&schedule, &x_0, &t, &eps).unwrap();
            let implied = ddpm_core::eps_from_x_0(&schedule, &x_t, &t, &guess).unwrap();
            for weighting in [
                Weighting::Snr,
                Weighting::MinSnr { gamma: 5.0 },
                Weighting::P2 { k: 1.0, gamma: 0.5 },
            ] {
                let weighted = ALL.map(|prediction| {
                    let target = prediction.target(&schedule, &x_0, &x_t, &t, &eps).unwrap();
                    let output = prediction
                        .target(&schedule, &guess, &x_t, &t, &implied)
                        .unwrap();
                    let losses = Loss::Mse.per_image(&output, &target).unwrap();
                    let weights = weighting
                        .per_image(&schedule, prediction, &t, &losses)
                        .unwrap();
                    numbers(&(losses * weights).unwrap())
                });
                for other in &weighted[1..] {
                    for (a, b) in weighted[0].iter().zip(other) {
                        assert!(
                            (a - b).abs() <= 1e-5 * a.abs(),
                            "{name}, {weighting:?}: {a} and {b}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn weights_by_their_formulas() {
    let schedule = linear();
    for t in [1, 100, 300, 1000] {
        let t = schedule.timestep(t).unwrap();
        let snr = schedule.snr(t);
        let min = snr.min(5.0);
        let gamma = Weighting::MinSnr { gamma: 5.0 };
        close(
            gamma.weight(&schedule, Prediction::Noise, t),
            min / snr,
            1e-14,
        );
        close(gamma.weight(&schedule, Prediction::Original, t), min, 1e-14);
        close(
            gamma.weight(&schedule, Prediction::Velocity, t),
            min / (snr + 1.0),
            1e-14,
        );
        close(
            Weighting::Snr.weight(&schedule, Prediction::Original, t),
            snr,
            1e-14,
        );
        let p2 = Weighting::P2 { k: 1.0, gamma: 0.5 };
        close(
            p2.weight(&schedule, Prediction::Noise, t),
            1.0 / (1.0 + snr).sqrt(),
            1e-14,
        );
        for prediction in ALL {
            assert_eq!(Weighting::Uniform.weight(&schedule, prediction, t), 1.0);
        }
    }
}

#[test]
fn weights_are_finite_where_snr_is_zero() {
    let schedule = zero_snr();
    for weighting in [
        Weighting::Uniform,
        Weighting::Snr,
        Weighting::MinSnr { gamma: 5.0 },
        Weighting::P2 { k: 1.0, gamma: 1.0 },
    ] {
        for prediction in ALL {
            for t in schedule.timesteps() {
                let weight = weighting.weight(&schedule, prediction, t);
                assert!(
                    weight.is_finite() && weight >= 0.0,
                    "{weighting:?} {prediction:?} at {t}: {weight}"
                );
            }
        }
    }
}

#[test]
fn impossible_losses_and_weightings() {
    let (schedule, x) = (linear(), wave(0.7));
    for delta in [0.0, -1.0] {
        let message = format!("Huber loss: delta is {delta}, expected a finite number above 0");
        fails(Loss::Huber { delta }.per_image(&x, &x), &message);
    }
    fails(
        Loss::Mse.per_image(&x.narrow(3, 0, 1).unwrap(), &x),
        "the output of the network has shape [2, 3, 4, 1], expected [2, 3, 4, 6] as the target",
    );
    let losses = tensor(&[1.0, 1.0]);
    let check = |weighting: Weighting, message: &str| {
        let t = at(&schedule, [1, 2]);
        fails(
            weighting.per_image(&schedule, Prediction::Noise, &t, &losses),
            message,
        );
    };
    check(
        Weighting::MinSnr { gamma: 0.0 },
        "min-SNR weighting: gamma is 0, expected a finite number above 0",
    );
    check(
        Weighting::P2 { k: 0.0, gamma: 1.0 },
        "P2 weighting: k is 0, expected a finite number above 0",
    );
    check(
        Weighting::P2 {
            k: 1.0,
            gamma: -1.0,
        },
        "P2 weighting: gamma is -1, expected a finite number of at least 0",
    );
    let one = at(&schedule, [1, 2]);
    fails(
        Weighting::Snr.per_image(&schedule, Prediction::Noise, &one[..1], &losses),
        "2 images but 1 timesteps: every image needs its own t",
    );
}
