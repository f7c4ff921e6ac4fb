//! Learning rate, EMA decay and clipping against their published values.

use ddpm_train::{Decay, EmaWarmUp, LearningRate, clip_factor, ema_decay};

#[track_caller]
fn check_rates(decay: Decay, expected: &[(usize, f64)]) {
    let rate = LearningRate {
        peak: 2e-4,
        warm_up: 10,
        decay,
        decay_steps: 110,
    };
    for &(step, expected) in expected {
        let got = rate.at(step);
        assert!(
            (got - expected).abs() < 1e-12,
            "{decay:?} at step {step}: {got}, expected {expected}"
        );
    }
}

#[test]
fn the_learning_rate_warms_up_and_decays() {
    let warm_up = [(1, 0.2e-4), (5, 1e-4), (10, 2e-4), (11, 2e-4)];
    for decay in [Decay::Constant, Decay::Cosine, Decay::Linear] {
        check_rates(decay, &warm_up);
    }
    check_rates(Decay::Constant, &[(1_000_000, 2e-4)]);
    check_rates(
        Decay::Linear,
        &[
            (36, 1.5e-4),
            (61, 1e-4),
            (110, 2e-6),
            (111, 0.0),
            (500, 0.0),
        ],
    );
    // cos(pi / 4) and cos(3 pi / 4)
    let root = std::f64::consts::FRAC_1_SQRT_2;
    check_rates(
        Decay::Cosine,
        &[
            (36, 1e-4 * (1.0 + root)),
            (61, 1e-4),
            (86, 1e-4 * (1.0 - root)),
            (111, 0.0),
        ],
    );
}

#[test]
fn without_warm_up_the_first_step_has_the_full_rate() {
    let rate = LearningRate {
        peak: 1.0,
        warm_up: 0,
        decay: Decay::Linear,
        decay_steps: 4,
    };
    assert_eq!(
        [1, 2, 3, 4].map(|step| rate.at(step)),
        [1.0, 0.75, 0.5, 0.25]
    );
}

#[test]
fn ema_decay_is_diffusers() {
    // diffusers' EMAModel.get_decay(optimization_step), use_ema_warmup with inv_gamma 1 and power 3/4, and without.
    let power = [
        (1, 0.0),
        (2, 0.405396),
        (11, 0.834440),
        (101, 0.968612),
        (1001, 0.994381),
    ];
    let ratio = [
        (1, 0.0),
        (2, 0.181818),
        (11, 0.55),
        (101, 0.918182),
        (1001, 0.991089),
    ];
    for (warm_up, values) in [(EmaWarmUp::Power, power), (EmaWarmUp::Ratio, ratio)] {
        for (step, expected) in values {
            let got = ema_decay(0.9999, warm_up, step);
            assert!(
                (got - expected).abs() < 1e-6,
                "{warm_up:?} at step {step}: {got}, expected {expected}"
            );
        }
        assert_eq!(ema_decay(0.5, warm_up, 1001), 0.5);
    }
    assert_eq!(
        [1, 2, 3].map(|step| ema_decay(0.9, EmaWarmUp::None, step)),
        [0.0, 0.9, 0.9]
    );
}

#[test]
fn clipping_is_torchs() {
    assert_eq!(clip_factor(3.0, 1.5), 1.5 / (3.0 + 1e-6));
    assert_eq!(clip_factor(1.0 - 1e-6, 1.0), 1.0);
    assert_eq!(clip_factor(1e9, 0.0), 1.0);
}
