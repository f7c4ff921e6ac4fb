//! Respaced schedules: which steps are kept, and that they keep their alpha-bar and network time.

use crate::{every_schedule, fails, linear};
use ddpm_core::{Schedule, Spacing};

fn times(schedule: &Schedule) -> Vec<usize> {
    schedule
        .timesteps()
        .map(|t| schedule.network_time(t) as usize)
        .collect()
}

fn steps(n: usize) -> Schedule {
    Schedule::linear(n, 1e-4, 0.02).unwrap()
}

#[track_caller]
fn check(schedule: ddpm_core::Result<Schedule>, length: usize, first: &[usize], last: &[usize]) {
    let times = times(&schedule.unwrap());
    assert_eq!(times.len(), length);
    assert!(times.starts_with(first), "{times:?}");
    assert!(times.ends_with(last), "{times:?}");
}

/// Network times as numpy computes them for diffusers.
#[test]
fn spacings_are_diffusers() {
    let leading = |offset| Spacing::Leading { offset };
    check(
        linear().respaced(leading(0), 10),
        10,
        &[0, 100, 200],
        &[900],
    );
    check(
        linear().respaced(leading(1), 5),
        5,
        &[1, 201, 401, 601, 801],
        &[801],
    );
    check(linear().respaced(leading(0), 30), 30, &[0, 33, 66], &[957]);
    check(
        linear().respaced(Spacing::Linspace, 10),
        10,
        &[0, 111, 222, 333, 444, 555, 666, 777, 888, 999],
        &[999],
    );
    check(linear().respaced(Spacing::Linspace, 1), 1, &[0], &[0]);
    check(
        linear().respaced(Spacing::Trailing, 10),
        10,
        &[99, 199],
        &[899, 999],
    );
    check(
        linear().respaced(Spacing::Trailing, 30),
        30,
        &[32, 66, 99],
        &[932, 966, 999],
    );
    check(linear().respaced(Spacing::Trailing, 1), 1, &[999], &[999]);
    // Halves go to the even number: 10 - 2.5 = 7.5 -> 8, 2.5 -> 2.
    check(
        steps(10).respaced(Spacing::Trailing, 4),
        4,
        &[1, 4, 7, 9],
        &[9],
    );
}

#[test]
fn texts_are_guided_diffusions() {
    let by = |n, text| steps(n).respaced_by_text(text);
    check(by(1000, "10"), 10, &[0, 111, 222, 333], &[999]);
    check(by(4000, "250"), 250, &[0, 16, 32, 48], &[3967, 3983, 3999]);
    check(by(1000, "ddim10"), 10, &[0, 100, 200], &[900]);
    check(by(1000, "ddim50"), 50, &[0, 20, 40], &[980]);
    check(by(1000, "ddim7"), 7, &[0, 143, 286], &[858]);
    check(by(1000, "1"), 1, &[0], &[0]);
    let three = times(&by(300, "10,15,20").unwrap());
    assert_eq!(three[..10], [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]);
    assert_eq!(three[10..12], [100, 107]);
    assert_eq!(three[12], 114);
    assert_eq!(three[24], 199);
    assert_eq!(three[25..30], [200, 205, 210, 216, 221]);
    assert_eq!((three.len(), three[44]), (45, 299));
    assert_eq!(
        by(300, " 10, 15 ,20 ").unwrap(),
        by(300, "10,15,20").unwrap()
    );
}

/// Every length of every spacing: as many steps as asked for, each with its old alpha-bar.
#[test]
fn kept_steps_keep_their_alpha_bar() {
    let long = steps(100);
    for n in 1..=100 {
        for spacing in [
            Spacing::Leading { offset: 0 },
            Spacing::Linspace,
            Spacing::Trailing,
        ] {
            let short = long.respaced(spacing, n).unwrap();
            assert_eq!(short.steps(), n);
            for t in short.timesteps() {
                let old = long
                    .timestep_at_network_time(short.network_time(t) as usize)
                    .unwrap();
                assert_eq!(short.alpha_bar(t), long.alpha_bar(old));
                let product: f64 = short.betas()[..t.get()]
                    .iter()
                    .map(|beta| 1.0 - beta)
                    .product();
                assert!((product - short.alpha_bar(t)).abs() < 1e-14);
            }
        }
    }
}

#[test]
fn keeping_all_steps_changes_nothing() {
    for (name, schedule) in every_schedule() {
        let n = schedule.steps();
        let all: Vec<_> = schedule.timesteps().rev().collect();
        assert_eq!(schedule.respaced_at(&all).unwrap(), schedule, "{name}");
        for spacing in [
            Spacing::Leading { offset: 0 },
            Spacing::Linspace,
            Spacing::Trailing,
        ] {
            assert_eq!(
                schedule.respaced(spacing, n).unwrap(),
                schedule,
                "{name}, {spacing:?}"
            );
        }
        assert_eq!(
            schedule.respaced_by_text(&n.to_string()).unwrap(),
            schedule,
            "{name}"
        );
    }
}

#[test]
fn respacing_twice_still_tells_the_first_times() {
    let fifty = linear().respaced(Spacing::Trailing, 50).unwrap();
    let five = fifty.respaced(Spacing::Trailing, 5).unwrap();
    assert_eq!(times(&five), [199, 399, 599, 799, 999]);
    assert_eq!(five, linear().respaced(Spacing::Trailing, 5).unwrap());
    // Zero terminal SNR keeps the times as well.
    assert_eq!(
        times(&five.rescaled_to_zero_terminal_snr().unwrap()),
        times(&five)
    );
}

#[test]
fn impossible_respacings() {
    let schedule = linear();
    let leading = |offset| Spacing::Leading { offset };
    fails(
        schedule.respaced(Spacing::Trailing, 0),
        "cannot keep 0 of 1000 steps: the number must lie in 1..=1000",
    );
    fails(
        schedule.respaced(Spacing::Linspace, 1001),
        "cannot keep 1001 of 1000 steps: the number must lie in 1..=1000",
    );
    fails(
        schedule.respaced(leading(1), 1000),
        "leading spacing of 1000 of 1000 steps with offset 1 ends at network time 1000, beyond 999",
    );
    fails(
        schedule.respaced(leading(usize::MAX), 10),
        "leading spacing of 10 of 1000 steps with offset 18446744073709551615 ends at network time \
         18446744073709551615, beyond 999",
    );
    fails(
        schedule.respaced_by_text("ddim300"),
        "no integer stride keeps exactly 300 of 1000 steps (`ddim300`); the nearest that exist are ddim250 and ddim334",
    );
    fails(
        schedule.respaced_by_text("ddim1"),
        "no integer stride keeps exactly 1 of 1000 steps (`ddim1`); the nearest that exist are ddim2",
    );
    fails(
        schedule.respaced_by_text("10,600"),
        "section 2 of `10,600` asks for 600 steps, but holds 500 of 1000",
    );
    let expected =
        "expected a number (`250`), a list of numbers (`10,15,20`) or `ddimN` (`ddim50`)";
    for text in ["", "fast", "10,", "ddim", "ddim-5", "-3", "2.5"] {
        fails(
            schedule.respaced_by_text(text),
            &format!("cannot read respacing `{text}`: {expected}"),
        );
    }
    fails(
        schedule.respaced_by_text("0"),
        "cannot keep 0 of 1000 steps: the number must lie in 1..=1000",
    );
    fails(
        schedule.respaced_at(&[]),
        "cannot keep 0 of 1000 steps: the number must lie in 1..=1000",
    );
    let t = schedule.timestep(7).unwrap();
    fails(
        schedule.respaced_at(&[t, schedule.last(), t]),
        "timestep 7 is listed twice among the steps to keep",
    );
    fails(
        steps(10).respaced_at(&[schedule.last()]),
        "timestep 1000 is outside 1..=10",
    );
}
