//! What the tests of kernels share: inputs, and comparison with double precision.

use super::launch::Kind;

pub(crate) const KINDS: [Kind; 2] = [Kind::F32, Kind::Bf16];

/// What a result of this kind may be off by, if its arithmetic is off by `tolerance`: bf16 rounds to eight bits.
pub(crate) fn allowed(kind: Kind, tolerance: f64) -> f64 {
    match kind {
        Kind::F32 => tolerance,
        Kind::Bf16 => tolerance + 2f64.powi(-8),
    }
}

/// Numbers in [-1, 1] from a linear congruential generator.
pub(crate) fn wave(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// Differences of at most `tolerance` of the largest expected value, or of 1 if all are smaller.
#[track_caller]
pub(crate) fn assert_near(what: &str, actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1f64, |scale, x| scale.max(x.abs()));
    for (i, (&a, e)) in actual.iter().zip(expected).enumerate() {
        let near = (f64::from(a) - e).abs() <= tolerance * scale;
        assert!(near, "{what}: element {i} is {a}, expected {e}");
    }
}
