//! Published values of every schedule, and what must hold for all of them.

use crate::{close, every_schedule, fails, linear, zero_snr};
use ddpm_core::Schedule;

/// Relative, of values printed with that many digits.
#[track_caller]
fn check_alpha_bar(schedule: &Schedule, digits: i32, expected: &[(usize, f64)]) {
    for &(t, value) in expected {
        let got = schedule.alpha_bar(schedule.timestep(t).unwrap());
        assert!(
            (got - value).abs()
                <= 0.6 * 10f64.powi(-digits) * 10f64.powf(value.abs().log10().ceil()),
            "t = {t}: got {got:e}, expected {value:e}"
        );
    }
}

#[test]
fn linear_is_hos() {
    let schedule = linear();
    check_alpha_bar(
        &schedule,
        9,
        // t counted from 1: the tables of diffusers count from 0.
        &[
            (1, 0.9999),
            (2, 0.9997800921),
            (11, 0.9978065725),
            (101, 0.8951415909),
            (251, 0.5214230306),
            (501, 0.07779665837),
            (751, 0.003300158362),
            (1000, 4.035829765e-5),
        ],
    );
    let at = |t| schedule.timestep(t).unwrap();
    close(schedule.alpha_bar(at(500)), 0.07858724288177821, 1e-13);
    close(schedule.alpha_bar(at(1000)), 4.0358297653756754e-05, 1e-12);
    close(schedule.beta(at(1)), 1e-4, 1e-15);
    close(schedule.beta(at(1000)), 0.02, 1e-15);
    assert_eq!(schedule.beta_tilde(at(1)), 0.0);
    close(schedule.beta_tilde(at(2)), 5.4531876613021935e-05, 1e-11);
    close(schedule.beta_tilde(at(488)), 0.009791572, 1e-7);
    close(schedule.beta_tilde(at(1000)), 0.01999998352656061, 1e-13);
    close(schedule.snr(at(1)), 9999.0, 1e-10);
    close(schedule.snr(at(501)), 0.0843595, 1e-6);
    close(schedule.snr(at(1000)), 4.03599e-5, 1e-6);
}

#[test]
fn shorter_linear_schedules() {
    let check =
        |schedule: Schedule, alpha_bar_half: f64, alpha_bar_last: f64, beta_tilde: [f64; 2]| {
            let at = |t| schedule.timestep(t).unwrap();
            close(
                schedule.alpha_bar(at(schedule.steps() / 2)),
                alpha_bar_half,
                1e-7,
            );
            close(schedule.alpha_bar(schedule.last()), alpha_bar_last, 1e-6);
            close(schedule.beta_tilde(at(2)), beta_tilde[0], 1e-6);
            close(schedule.beta_tilde(schedule.last()), beta_tilde[1], 1e-6);
        };
    let unscaled = Schedule::linear(200, 1e-4, 0.02).unwrap();
    check(
        unscaled,
        0.60248031,
        1.321828e-1,
        [6.667111e-5, 1.993783e-2],
    );
    let scaled = Schedule::linear_scaled(200).unwrap();
    close(scaled.betas()[0], 5e-4, 1e-12);
    close(scaled.betas()[199], 0.1, 1e-12);
    check(scaled, 0.07665890, 3.031837e-5, [3.334445e-4, 9.999966e-2]);
    let latent = Schedule::scaled_linear(1000, 8.5e-4, 0.012).unwrap();
    check(latent, 0.27766965, 4.660099e-3, [4.263531e-4, 1.199932e-2]);
    assert_eq!(Schedule::linear_scaled(1000).unwrap(), linear());
}

#[test]
fn cosine_is_nichol_and_dhariwals() {
    let schedule = Schedule::cosine(1000).unwrap();
    check_alpha_bar(
        &schedule,
        9,
        &[
            (1, 0.9999587158),
            (2, 0.9999125759),
            (11, 0.9992789038),
            (101, 0.9715756818),
            (251, 0.8458879865),
            (501, 0.4922851724),
            (751, 0.1431786464),
            (999, 2.428766907e-6),
            (1000, 2.428766907e-9),
        ],
    );
    let at = |t| schedule.timestep(t).unwrap();
    close(schedule.beta(at(1)), 4.128422482196914e-05, 1e-10);
    close(schedule.alpha_bar(at(500)), 0.4938435904406382, 1e-13);
    close(schedule.alpha_bar(at(1000)), 2.4287669070348567e-09, 1e-11);
    close(schedule.beta_tilde(at(2)), 2.178949614569182e-05, 1e-9);
    close(schedule.beta_tilde(at(1000)), 9.989976e-1, 1e-6);
    let short = Schedule::cosine(200).unwrap();
    close(short.betas()[0], 2.549726e-4, 1e-6);
    close(short.alpha_bar(short.last()), 6.071799e-8, 1e-6);
    close(
        short.beta_tilde(short.timestep(2).unwrap()),
        1.520288e-4,
        1e-6,
    );
    close(short.beta_tilde(short.last()), 9.989394e-1, 1e-6);
}

#[test]
fn alpha_bar_sigmoid_is_lucidrains() {
    let schedule = Schedule::alpha_bar_sigmoid(1000).unwrap();
    let expected = [
        (1, 0.99969972),
        (101, 0.96000048),
        (251, 0.84986301),
        (501, 0.49834282),
        (751, 0.14815968),
    ];
    check_alpha_bar(&schedule, 8, &expected);
    check_alpha_bar(&schedule, 7, &[(999, 3.002792e-4), (1000, 3.002792e-7)]);
}

#[test]
fn zero_terminal_snr_moves_the_end_and_keeps_the_start() {
    let schedule = zero_snr();
    check_alpha_bar(
        &schedule,
        8,
        &[
            (1, 0.9999),
            (101, 0.89449044),
            (501, 0.075246216),
            (999, 4.2132625e-9),
        ],
    );
    assert_eq!(schedule.alpha_bar(schedule.last()), 0.0);
    assert_eq!(schedule.beta(schedule.last()), 1.0);
    assert_eq!(schedule.snr(schedule.last()), 0.0);
    close(schedule.alpha_bars()[1], linear().alpha_bars()[1], 1e-15);
    // What is zero already stays as it is.
    for (a, b) in Schedule::jsd(50)
        .unwrap()
        .rescaled_to_zero_terminal_snr()
        .unwrap()
        .alpha_bars()
        .iter()
        .zip(Schedule::jsd(50).unwrap().alpha_bars())
    {
        assert!((a - b).abs() < 1e-14);
    }
}

#[test]
fn jsd_falls_in_a_straight_line() {
    let schedule = Schedule::jsd(50).unwrap();
    for t in schedule.timesteps() {
        let expected = 1.0 - t.get() as f64 / 50.0;
        assert!((schedule.alpha_bar(t) - expected).abs() < 1e-14);
    }
    assert_eq!(schedule.alpha_bar(schedule.last()), 0.0);
}

#[test]
fn the_simple_schedules() {
    assert_eq!(
        Schedule::constant(3, 0.5).unwrap().alpha_bars(),
        [1.0, 0.5, 0.25, 0.125]
    );
    let warm_up = Schedule::warm_up(10, 0.1, 0.4, 0.4).unwrap();
    for (beta, expected) in warm_up
        .betas()
        .iter()
        .zip([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4])
    {
        close(*beta, expected, 1e-14);
    }
    let sigmoid = Schedule::sigmoid(3, 0.1, 0.3).unwrap();
    let edge = 1.0 / (1.0 + 6f64.exp());
    for (beta, expected) in sigmoid
        .betas()
        .iter()
        .zip([0.1 + 0.2 * edge, 0.2, 0.3 - 0.2 * edge])
    {
        close(*beta, expected, 1e-14);
    }
    let laplace = Schedule::laplace(1000).unwrap();
    // alpha-bar(0) = sqrt(1 / (1 + 1e-3)), since the log-SNR is -ln(1e-6) / 2 there; alpha-bar(1/2) is sqrt(1/2).
    close(
        laplace.alpha_bars()[500],
        (0.5f64).sqrt() / (1.0 / 1.001f64).sqrt(),
        1e-6,
    );
    assert_eq!(
        Schedule::quadratic(7, 0.1, 0.2).unwrap(),
        Schedule::scaled_linear(7, 0.1, 0.2).unwrap()
    );
    assert_eq!(Schedule::linear(1, 0.1, 0.2).unwrap().betas(), [0.1]);
}

#[test]
fn every_schedule_is_one() {
    for (name, schedule) in every_schedule() {
        assert_eq!(schedule.alpha_bars()[0], 1.0, "{name}");
        assert_eq!(schedule.alpha_bars().len(), schedule.steps() + 1, "{name}");
        for t in schedule.timesteps() {
            let (beta, beta_tilde) = (schedule.beta(t), schedule.beta_tilde(t));
            assert!(beta > 0.0 && beta <= 1.0, "{name}: beta {beta} at {t}");
            assert!(
                schedule.alpha_bar(t) < schedule.alpha_bar_previous(t),
                "{name} at {t}"
            );
            assert!(
                beta_tilde >= 0.0 && beta_tilde <= beta,
                "{name}: beta_tilde {beta_tilde} at {t}"
            );
            assert_eq!(beta_tilde == 0.0, t.get() == 1, "{name} at {t}");
            assert!(schedule.snr(t).is_finite(), "{name} at {t}");
            assert_eq!(schedule.network_time(t), (t.get() - 1) as f64, "{name}");
        }
    }
}

/// Both formulas of beta-tilde; the second is the precision-weighted one in the comments of Ho's code.
#[test]
fn two_formulas_of_beta_tilde_agree() {
    for (name, schedule) in every_schedule() {
        for t in schedule.timesteps().skip(1) {
            let precision =
                1.0 / (1.0 - schedule.alpha_bar_previous(t)) + schedule.alpha(t) / schedule.beta(t);
            let (a, b) = (schedule.beta_tilde(t), 1.0 / precision);
            assert!((a - b).abs() <= 1e-9 * b, "{name} at {t}: {a:e} and {b:e}");
        }
    }
}

/// q(x_t | x_{t-1}), one step after the other, in mean factor and variance.
#[test]
fn composed_steps_are_the_closed_form() {
    for (name, schedule) in every_schedule() {
        let (mut factor, mut variance) = (1.0, 0.0);
        for t in schedule.timesteps() {
            factor *= schedule.alpha(t).sqrt();
            variance = schedule.alpha(t) * variance + schedule.beta(t);
            // Zero terminal SNR makes its betas from its alpha-bars, whose last ones are tiny.
            assert!(
                (factor - schedule.alpha_bar(t).sqrt()).abs() < 1e-10,
                "{name} at {t}"
            );
            assert!(
                (variance - (1.0 - schedule.alpha_bar(t))).abs() < 1e-10,
                "{name} at {t}"
            );
        }
    }
}

#[test]
fn betas_and_alpha_bars_come_back() {
    let schedule = Schedule::cosine(100).unwrap();
    assert_eq!(Schedule::from_betas(schedule.betas()).unwrap(), schedule);
    let again = Schedule::from_alpha_bars(&schedule.alpha_bars()[1..]).unwrap();
    assert_eq!(again.alpha_bars(), schedule.alpha_bars());
    for (a, b) in again.betas().iter().zip(schedule.betas()) {
        close(*a, *b, 1e-10);
    }
}

#[test]
fn time_counts_from_one() {
    let schedule = linear();
    let times: Vec<usize> = schedule.timesteps().map(|t| t.get()).collect();
    assert_eq!(times, (1..=1000).collect::<Vec<_>>());
    assert_eq!(schedule.timesteps().len(), 1000);
    assert_eq!(schedule.timesteps().next_back(), Some(schedule.last()));
    assert_eq!(schedule.timestep(1).unwrap().previous(), None);
    assert_eq!(
        schedule.timestep(2).unwrap().previous(),
        Some(schedule.timestep(1).unwrap())
    );
    assert_eq!(
        schedule.alpha_bar_previous(schedule.timestep(1).unwrap()),
        1.0
    );
    assert_eq!(schedule.network_times(&[schedule.last()]).unwrap(), [999.0]);
    assert_eq!(
        schedule.timestep_at_network_time(0),
        Some(schedule.timestep(1).unwrap())
    );
    assert_eq!(schedule.timestep_at_network_time(1000), None);
    assert_eq!(schedule.timestep_at_network_time(usize::MAX), None);
    assert_eq!(schedule.last().to_string(), "1000");
}

#[test]
fn a_step_of_a_longer_schedule_has_no_numbers() {
    let (long, short) = (linear(), Schedule::linear(10, 1e-4, 0.02).unwrap());
    assert!(short.alpha_bar(long.last()).is_nan());
    assert!(short.beta(long.last()).is_nan());
    assert!(short.network_time(long.last()).is_nan());
    fails(
        short.network_times(&[long.last()]),
        "timestep 1000 is outside 1..=10",
    );
}

#[test]
fn impossible_schedules() {
    fails(
        Schedule::from_betas(&[]),
        "a schedule needs at least one step, but T is 0",
    );
    fails(
        Schedule::cosine(0),
        "a schedule needs at least one step, but T is 0",
    );
    fails(
        Schedule::linear(0, 1e-4, 0.02),
        "a schedule needs at least one step, but T is 0",
    );
    fails(
        Schedule::linear_scaled(0),
        "a schedule needs at least one step, but T is 0",
    );
    fails(
        Schedule::jsd(0),
        "a schedule needs at least one step, but T is 0",
    );
    fails(
        Schedule::warm_up(0, 0.1, 0.2, 0.5),
        "a schedule needs at least one step, but T is 0",
    );
    fails(
        Schedule::from_betas(&[0.1, 0.0]),
        "beta is 0 at t = 2, but every beta must lie in (0, 1]",
    );
    fails(
        Schedule::from_betas(&[1.5]),
        "beta is 1.5 at t = 1, but every beta must lie in (0, 1]",
    );
    fails(
        Schedule::from_betas(&[f64::NAN]),
        "beta is NaN at t = 1, but every beta must lie in (0, 1]",
    );
    fails(
        Schedule::linear_scaled(10),
        "beta is 1.1155555555555556 at t = 6, but every beta must lie in (0, 1]",
    );
    fails(
        Schedule::from_betas(&[0.1, 1.0, 0.1]),
        "alpha_bar must fall at every step, but goes from 0e0 to 0e0 at t = 3 of 3 (only the last step may reach 0)",
    );
    fails(
        Schedule::from_betas(&[1e-20]),
        "alpha_bar must fall at every step, but goes from 1e0 to 1e0 at t = 1 of 1 (only the last step may reach 0)",
    );
    fails(
        Schedule::from_alpha_bars(&[0.5, 0.6]),
        "alpha_bar must fall at every step, but goes from 5e-1 to 6e-1 at t = 2 of 2 (only the last step may reach 0)",
    );
    fails(
        Schedule::cosine_with(10, -1.0, 0.999),
        "cosine schedule: s is -1, expected a finite number of at least 0",
    );
    fails(
        Schedule::cosine_with(10, 0.008, 0.0),
        "cosine schedule: max_beta is 0, expected a number in (0, 1]",
    );
    fails(
        Schedule::alpha_bar_sigmoid_with(10, 3.0, -3.0, 1.0),
        "alpha-bar sigmoid schedule: start is 3, expected a number below `end`",
    );
    fails(
        Schedule::alpha_bar_sigmoid_with(10, -3.0, 3.0, 0.0),
        "alpha-bar sigmoid schedule: tau is 0, expected a finite number above 0",
    );
    // So far up the sigmoid that f64 sees it flat: 0 / 0.
    fails(
        Schedule::alpha_bar_sigmoid_with(100, 40.0, 50.0, 1.0),
        "beta is NaN at t = 1, but every beta must lie in (0, 1]",
    );
    fails(
        Schedule::alpha_bar_sigmoid_with(100, f64::NEG_INFINITY, 3.0, 1.0),
        "beta is NaN at t = 1, but every beta must lie in (0, 1]",
    );
    fails(
        Schedule::alpha_bar_sigmoid_with(100, f64::NAN, 3.0, 1.0),
        "alpha-bar sigmoid schedule: start is NaN, expected a number below `end`",
    );
    fails(
        Schedule::from_alpha_bars(&[0.5, f64::NAN]),
        "alpha_bar must fall at every step, but goes from 5e-1 to NaN at t = 2 of 2 (only the last step may reach 0)",
    );
    fails(
        Schedule::warm_up(10, 0.1, 0.2, 1.5),
        "warm-up schedule: fraction is 1.5, expected a number in 0..=1",
    );
    fails(linear().timestep(0), "timestep 0 is outside 1..=1000");
    fails(linear().timestep(1001), "timestep 1001 is outside 1..=1000");
    fails(
        Schedule::constant(1, 0.5)
            .unwrap()
            .rescaled_to_zero_terminal_snr(),
        "zero terminal SNR needs a schedule of at least 2 steps, because it keeps the first and moves the last",
    );
}
