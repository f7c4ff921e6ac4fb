//! Two uniform words to two independent normals (Box and Muller 1958), bit for bit equal everywhere.
//!
//! The mathematical libraries of two systems differ in the last bit, so logarithm, sine and cosine
//! are Taylor series written out here. Only + - * / and the square root are used, which IEEE 754
//! defines to the last bit, in a fixed order and never fused; everything is f64, with one rounding
//! to f32 at the end.
//!
//! With n and m the two words, both uniform on 0..2^32:
//!
//! ```text
//! u = (n + 1/2) / 2^32                 in (0, 1), never 0 or 1
//! v = (m + 1/2) / 2^32                 an angle in turns, never on an axis
//! z_0 = sqrt(-2 ln u) cos(2 pi v),     z_1 = sqrt(-2 ln u) sin(2 pi v)
//! ```
//!
//! |z| is at most sqrt(66 ln 2) = 6.764, beyond which a normal number falls once in 7e10.

/// Two independent standard normals from two uniform words.
#[inline(always)]
pub(crate) fn box_muller(n: u32, m: u32) -> (f32, f32) {
    let radius = (2.0 * minus_ln(n)).sqrt();
    let (cos, sin) = cos_sin_of_turn(m);
    ((radius * cos) as f32, (radius * sin) as f32)
}

/// -ln((n + 1/2) / 2^32), at most 1e-11 of its value away.
///
/// u = 2^k w with w in [√½, √2); ln u = k ln 2 + ln w, and with s = (w - 1)/(w + 1)
/// ln w = 2 s (1 + s²/3 + s⁴/5 + ...), |s| <= 3 - 2√2 = 0.1716. The first term left out, s^14/15,
/// is below 1.3e-12. w - 1 is exact, so nothing cancels where u is close to 1.
#[inline(always)]
fn minus_ln(n: u32) -> f64 {
    /// Bits of 1.0, and of √½ cut to the upper half of a double.
    const ONE: u64 = 0x3FF0_0000_0000_0000;
    const HALF_ROOT: u64 = 0x3FE6_A09E_0000_0000;
    let u = (f64::from(n) + 0.5) * TWO_TO_MINUS_32;
    // Shifted so that √½ sits where 1 was, the exponent field counts the k of w in [√½, √2).
    let shifted = u.to_bits() + (ONE - HALF_ROOT);
    let k = small_integer(shifted >> 52) - 1023.0;
    let w = f64::from_bits((shifted & 0x000F_FFFF_FFFF_FFFF) + HALF_ROOT);
    let s = (w - 1.0) / (w + 1.0);
    let q = s * s;
    let series = q * (1.0 / 13.0) + 1.0 / 11.0;
    let series = q * series + 1.0 / 9.0;
    let series = q * series + 1.0 / 7.0;
    let series = q * series + 1.0 / 5.0;
    let series = q * series + 1.0 / 3.0;
    let ln_w = 2.0 * s * (q * series + 1.0);
    -(k * std::f64::consts::LN_2 + ln_w)
}

/// cos and sin of 2 pi (m + 1/2) / 2^32, each at most 1e-11 away.
///
/// The nearest axis is taken off as an integer, which is exact; what is left is an angle within
/// pi/4 of it, where the first terms left out, x^13/13! and x^14/14!, are 7e-12 and 4e-13.
#[inline(always)]
fn cos_sin_of_turn(m: u32) -> (f64, f64) {
    /// An eighth of a turn.
    const EIGHTH: u32 = 1 << 29;
    let from_eighth = m.wrapping_add(EIGHTH);
    let axis = from_eighth >> 30;
    let steps = f64::from(from_eighth & (2 * EIGHTH - 1)) - (f64::from(EIGHTH) - 0.5);
    let x = steps * (std::f64::consts::TAU * TWO_TO_MINUS_32);
    let q = x * x;
    let cos = q * (1.0 / 479_001_600.0) - 1.0 / 3_628_800.0;
    let cos = q * cos + 1.0 / 40_320.0;
    let cos = q * cos - 1.0 / 720.0;
    let cos = q * cos + 1.0 / 24.0;
    let cos = q * cos - 0.5;
    let cos = q * cos + 1.0;
    let sin = 1.0 / 362_880.0 - q * (1.0 / 39_916_800.0);
    let sin = q * sin - 1.0 / 5_040.0;
    let sin = q * sin + 1.0 / 120.0;
    let sin = q * sin - 1.0 / 6.0;
    let sin = x * (q * sin + 1.0);
    // Turned by 0, 1, 2, 3 quarters: (c, s), (-s, c), (-c, -s), (s, -c).
    let swapped = u64::from(axis & 1).wrapping_neg();
    let (cos, sin) = (cos.to_bits(), sin.to_bits());
    let change = (cos ^ sin) & swapped;
    let cos_sign = u64::from((axis ^ (axis >> 1)) & 1) << 63;
    let sin_sign = u64::from(axis >> 1) << 63;
    (
        f64::from_bits(cos ^ change ^ cos_sign),
        f64::from_bits(sin ^ change ^ sin_sign),
    )
}

const TWO_TO_MINUS_32: f64 = 1.0 / 4_294_967_296.0;

/// An integer below 2^52 as f64: put behind the point of 2^52, which vector units do as well.
#[inline(always)]
fn small_integer(integer: u64) -> f64 {
    const TWO_TO_52: u64 = 0x4330_0000_0000_0000;
    f64::from_bits(TWO_TO_52 | integer) - 4_503_599_627_370_496.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All words near the ends, near every change of branch, and a million between.
    fn words() -> impl Iterator<Item = u32> {
        let turns = (0..=8u64).map(|eighth| eighth << 29);
        // √½ · 2^k for every k, where the logarithm changes its exponent.
        let roots = (1..=32).map(|k| (f64::from(k) - 0.5).exp2() as u64);
        let powers = (0..=32).map(|k| 1u64 << k);
        let places = turns
            .chain(roots)
            .chain(powers)
            .collect::<Vec<_>>()
            .into_iter();
        let near =
            places.flat_map(|place| (0..400u64).map(move |k| (place + k).wrapping_sub(200) as u32));
        near.chain((0..1_000_000u32).map(|k| k.wrapping_mul(2_654_435_769)))
    }

    #[test]
    fn the_logarithm_is_within_1e_11_of_its_value() {
        for n in words() {
            let u = (f64::from(n) + 0.5) / 4_294_967_296.0;
            // ln_1p keeps the digits of std's logarithm where u is close to 1.
            let expected = if u < 0.5 { -u.ln() } else { -(u - 1.0).ln_1p() };
            let error = (minus_ln(n) - expected).abs() / expected;
            assert!(error < 1e-11, "n = {n}: {error:e}");
        }
    }

    #[test]
    fn cosine_and_sine_are_within_1e_11() {
        for m in words() {
            // The nearest eighth of a turn is taken off exactly, so that std is accurate as well.
            let angle = (f64::from(m) + 0.5) / 4_294_967_296.0 * std::f64::consts::TAU;
            let (cos, sin) = cos_sin_of_turn(m);
            assert!((cos - angle.cos()).abs() < 1e-11, "m = {m}: cos {cos}");
            assert!((sin - angle.sin()).abs() < 1e-11, "m = {m}: sin {sin}");
        }
    }

    #[test]
    fn normals_are_within_half_a_step_of_f32_and_a_little() {
        for (n, m) in words().zip(words().skip(77).step_by(3)) {
            let (z_0, z_1) = box_muller(n, m);
            let u = (f64::from(n) + 0.5) / 4_294_967_296.0;
            let minus_ln = if u < 0.5 { -u.ln() } else { -(u - 1.0).ln_1p() };
            let angle = (f64::from(m) + 0.5) / 4_294_967_296.0 * std::f64::consts::TAU;
            let radius = (2.0 * minus_ln).sqrt();
            for (z, exact) in [(z_0, radius * angle.cos()), (z_1, radius * angle.sin())] {
                let half_step = exact.abs() * f64::from(f32::EPSILON) / 2.0;
                let error = (f64::from(z) - exact).abs();
                assert!(
                    error <= half_step + 3e-11 * radius,
                    "n = {n}, m = {m}: {z} for {exact}"
                );
            }
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        let largest = (66.0 * std::f64::consts::LN_2).sqrt();
        assert!((f64::from(box_muller(0, 0).0) - largest).abs() < 1e-6);
        assert!((f64::from(box_muller(0, 1 << 31).0) + largest).abs() < 1e-6);
        let smallest = (2.0 * (-(0.5f64.powi(33))).ln_1p().abs()).sqrt();
        assert!((f64::from(box_muller(u32::MAX, 0).0) / smallest - 1.0).abs() < 1e-6);
        for m in [0, (1 << 30) - 1, 1 << 30, 1 << 31, 3 << 30, u32::MAX] {
            for n in [0, u32::MAX / 2, u32::MAX] {
                let (z_0, z_1) = box_muller(n, m);
                assert!(z_0.is_finite() && z_1.is_finite() && z_0 != 0.0 && z_1 != 0.0);
            }
        }
    }

    #[test]
    fn angles_are_symmetric_to_the_bit() {
        for m in words() {
            let (cos, sin) = cos_sin_of_turn(m);
            assert_eq!(cos_sin_of_turn(!m), (cos, -sin));
            assert_eq!(cos_sin_of_turn(m.wrapping_add(1 << 31)), (-cos, -sin));
            assert_eq!(cos_sin_of_turn(m.wrapping_add(1 << 30)), (-sin, cos));
        }
    }
}
