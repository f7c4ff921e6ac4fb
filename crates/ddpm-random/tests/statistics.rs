//! The noise is standard normal and independent: every bound is derived, none is tuned.
//!
//! A statistic of N independent draws with mean mu and deviation sigma/√N is held to five such
//! deviations, which true noise would leave once in 1.7 million tests. Seeds are fixed, so a test
//! that passes passes always.

#![allow(
    clippy::unwrap_used,
    reason = "the functions that the tests share are tests as well"
)]

use ddpm_random::{Permutation, Stream, normal_into, uniform_into, uniform_u64_below};

/// Elements of an image, not a multiple of anything the generator works in.
const ELEMENTS: usize = 3 * 33 * 31;
const IMAGES: u64 = 400;

fn image(seed: u64, stream: Stream, image: u64, step: u64) -> Vec<f32> {
    let mut out = vec![0.0; ELEMENTS];
    normal_into(seed, stream, image, step, &mut out).unwrap();
    out
}

fn images(seed: u64, stream: Stream, first: u64, step: u64) -> Vec<f64> {
    let images = first..first + IMAGES;
    images
        .flat_map(|number| image(seed, stream, number, step))
        .map(f64::from)
        .collect()
}

/// Where the pooled noise comes from: images of one step, steps of one image, seeds.
fn pools() -> [(&'static str, Vec<f64>); 4] {
    let pool = |each: &dyn Fn(u64) -> Vec<f32>| (0..IMAGES).flat_map(each).map(f64::from).collect();
    [
        ("images", images(0, Stream::TrainingNoise, 0, 0)),
        ("steps", pool(&|step| image(1, Stream::SampleStep, 0, step))),
        (
            "seeds",
            pool(&|seed| image(seed, Stream::SampleStart, 0, 0)),
        ),
        (
            "far images",
            images(
                u64::MAX,
                Stream::TrainingNoise,
                (1 << 44) - IMAGES,
                (1 << 44) - 1,
            ),
        ),
    ]
}

#[track_caller]
fn check_within(name: &str, value: f64, expected: f64, deviation: f64) {
    let deviations = (value - expected) / deviation;
    assert!(
        deviations.abs() < 5.0,
        "{name}: {value} for {expected}, {deviations:.1} deviations"
    );
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

#[test]
fn the_first_four_moments_are_those_of_a_standard_normal() {
    for (name, z) in pools() {
        let n = z.len() as f64;
        // Var z^k = (2k-1)!! - (k even: ((k-1)!!)^2), for raw moments of N draws.
        let cases = [
            (1, 0.0, 1.0),
            (2, 1.0, 2.0),
            (3, 0.0, 15.0),
            (4, 3.0, 96.0f64),
        ];
        for (power, expected, variance) in cases {
            let moment = mean(z.iter().map(|z| z.powi(power)));
            check_within(
                &format!("{name}, z^{power}"),
                moment,
                expected,
                (variance / n).sqrt(),
            );
        }
    }
}

#[test]
fn skew_and_excess_kurtosis_are_zero() {
    for (name, z) in pools() {
        let n = z.len() as f64;
        let centre = mean(z.iter().copied());
        let moment = |power| mean(z.iter().map(|z| (z - centre).powi(power)));
        let variance = moment(2);
        check_within(name, moment(3) / variance.powf(1.5), 0.0, (6.0 / n).sqrt());
        check_within(
            name,
            moment(4) / variance.powi(2) - 3.0,
            0.0,
            (24.0 / n).sqrt(),
        );
    }
}

/// Kolmogorov and Smirnov: P(√N D > x) is about 2 exp(-2 x²), 5.7e-7 (five deviations) at 2.745.
#[test]
fn the_distribution_is_normal() {
    for (name, mut z) in pools() {
        z.sort_unstable_by(f64::total_cmp);
        let n = z.len() as f64;
        let distance = z.iter().enumerate().map(|(index, &z)| {
            let expected = normal_cdf(z);
            let (below, above) = (index as f64 / n, (index as f64 + 1.0) / n);
            (expected - below).abs().max((above - expected).abs())
        });
        let statistic = n.sqrt() * distance.fold(0.0, f64::max);
        assert!(statistic < 2.745, "{name}: {statistic}");
        // The tester is tested: a shift of a hundredth is seen.
        let shifted = z
            .iter()
            .enumerate()
            .map(|(index, &z)| normal_cdf(z + 0.01) - index as f64 / n);
        assert!(n.sqrt() * shifted.fold(0.0, f64::max) > 2.745);
    }
}

#[test]
fn the_tails_hold_what_they_should() {
    for (name, z) in pools() {
        for limit in [2.0, 3.0, 4.0, 4.5] {
            let share = 2.0 * normal_cdf(-limit);
            let expected = share * z.len() as f64;
            let beyond = z.iter().filter(|z| z.abs() > limit).count() as f64;
            check_within(
                &format!("{name} beyond {limit}"),
                beyond,
                expected,
                expected.sqrt(),
            );
        }
    }
}

/// Of independent normals, z_a z_b has variance 1 and (z_a² - 1)(z_b² - 1) has variance 4.
#[track_caller]
fn check_independent(name: &str, a: &[f64], b: &[f64]) {
    let n = a.len().min(b.len()) as f64;
    let pairs = || a.iter().zip(b);
    check_within(name, mean(pairs().map(|(a, b)| a * b)), 0.0, 1.0 / n.sqrt());
    let squares = mean(pairs().map(|(a, b)| (a * a - 1.0) * (b * b - 1.0)));
    check_within(&format!("squares: {name}"), squares, 0.0, 2.0 / n.sqrt());
}

#[test]
fn neighbours_in_every_part_of_the_address_are_independent() {
    let base = images(5, Stream::SampleStep, 0, 0);
    let others = [
        ("image + 1", images(5, Stream::SampleStep, 1, 0)),
        ("image + 2^32", images(5, Stream::SampleStep, 1 << 32, 0)),
        ("step + 1", images(5, Stream::SampleStep, 0, 1)),
        ("step + 2^32", images(5, Stream::SampleStep, 0, 1 << 32)),
        ("stream - 1", images(5, Stream::SampleStart, 0, 0)),
        ("stream + 1", images(5, Stream::HeldOut, 0, 0)),
        ("seed + 1", images(6, Stream::SampleStep, 0, 0)),
        (
            "seed + 2^32",
            images(5 + (1 << 32), Stream::SampleStep, 0, 0),
        ),
    ];
    for (name, other) in &others {
        check_independent(name, &base, other);
    }
    for lag in [1, 2, 3, 4, 5, 31, 33, 64, ELEMENTS] {
        check_independent(&format!("element + {lag}"), &base, &base[lag..]);
    }
}

/// Chi-square with k degrees of freedom has mean k and variance 2k; its right tail is heavier than
/// a normal's, so ten deviations are allowed.
#[track_caller]
fn check_equal_shares(name: &str, counts: &[u64]) {
    let degrees = counts.len() as f64 - 1.0;
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let chi_square: f64 = counts
        .iter()
        .map(|&n| (n as f64 - expected).powi(2) / expected)
        .sum();
    assert!(
        chi_square < degrees + 10.0 * (2.0 * degrees).sqrt(),
        "{name}: {chi_square}"
    );
}

#[test]
fn uniforms_fill_every_part_of_the_interval_equally() {
    let mut counts = [0; 256];
    let mut last_bits = [0; 16];
    for number in 0..IMAGES {
        let mut out = vec![0.0; ELEMENTS];
        uniform_into(2, Stream::Dropout, number, 0, &mut out).unwrap();
        for u in out {
            counts[(u * 256.0) as usize] += 1;
            last_bits[(u * 16_777_216.0) as usize % 16] += 1;
        }
    }
    check_equal_shares("first bits", &counts);
    check_equal_shares("last bits", &last_bits);
}

#[test]
fn integers_are_unbiased() {
    for n in [2, 3, 7, 10, 1000] {
        let mut counts = vec![0; n as usize];
        for number in 0..100 * n {
            counts[uniform_u64_below(3, Stream::Timestep, number, 0, n).unwrap() as usize] += 1;
        }
        check_equal_shares(&format!("below {n}"), &counts);
    }
    // Taking remainders would give the first third of this range twice as often as the others.
    let mut counts = [0; 3];
    for number in 0..30_000 {
        let drawn = uniform_u64_below(3, Stream::Timestep, number, 0, 3 << 62).unwrap();
        counts[(drawn >> 62) as usize] += 1;
    }
    check_equal_shares("below 3 · 2^62", &counts);
}

#[test]
fn every_order_is_equally_likely() {
    let mut counts = [0; 24];
    for epoch in 0..24_000 {
        let order = Permutation::new(7, epoch, 4).unwrap();
        // The place of the order among all 24, in the factorial number system.
        let rank = (0..4).fold(0, |rank, i| {
            let smaller = (i + 1..4).filter(|&j| order.get(j) < order.get(i)).count();
            rank * (4 - i) + smaller
        });
        counts[rank] += 1;
    }
    check_equal_shares("orders of 4", &counts);
    let mut firsts = [0; 10];
    (0..10_000).for_each(|seed| firsts[Permutation::new(seed, 0, 10).unwrap().get(0)] += 1);
    check_equal_shares("first of 10 by seed", &firsts);
}

/// Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + ...), which has no cancellation for x >= 0.
fn normal_cdf(x: f64) -> f64 {
    let (mut term, mut sum, mut odd) = (x.abs(), x.abs(), 1.0);
    while term > 1e-17 * sum {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    let half = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * sum;
    if x < 0.0 { 0.5 - half } else { 0.5 + half }
}
