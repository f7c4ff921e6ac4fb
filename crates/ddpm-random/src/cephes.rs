//! Logarithm, sine and cosine of f32 as PyTorch's vectorised normal numbers have them, bit for bit.
//!
//! The polynomials are those of Moshier's Cephes library in the order of evaluation of Pommier's
//! `sse_mathfun` and Garberoglio's `avx_mathfun`, where PyTorch's compiler fuses every product that
//! is only added to something. Here each fused operation is written out as one; `f32::mul_add`
//! rounds once on every processor.

/// ln x for x in [2^-126, infinity).
pub(crate) fn ln(x: f32) -> f32 {
    const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const SERIES: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    /// ln 2 in two parts, the upper with so few bits that its multiples are exact.
    const LN_2_UPPER: f32 = 355.0 / 512.0;
    const LN_2_REST: f32 = -2.121_944_4e-4;
    // x = 2^k w with w in [½, 1), then in [√½, √2).
    let bits = x.to_bits();
    let k = (bits >> 23) as i32 - 126;
    let w = f32::from_bits((bits & 0x007F_FFFF) | 0x3F00_0000);
    let (k, s) = match w < ROOT_HALF {
        true => ((k - 1) as f32, (w - 1.0) + w),
        false => (k as f32, w - 1.0),
    };
    let q = s * s;
    let y = polynomial(&SERIES, s) * s;
    let y = y.mul_add(q, k * LN_2_REST) - 0.5 * q;
    k.mul_add(LN_2_UPPER, s + y)
}

/// (sin x, cos x) for x in [0, 8192).
pub(crate) fn sin_cos(x: f32) -> (f32, f32) {
    const FOUR_OVER_PI: f32 = 4.0 / std::f32::consts::PI;
    /// pi/4 in three parts, the first two with so few bits that their multiples are exact.
    const EIGHTHS: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];
    const SINE: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COSINE: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    // The nearest even number of eighths of a turn is taken off.
    let eighths = ((x * FOUR_OVER_PI) as i32 + 1) & !1;
    let y = eighths as f32;
    let r = EIGHTHS.iter().fold(x, |r, eighth| y.mul_add(-eighth, r));
    let q = r * r;
    let cosine = polynomial(&COSINE, q) * q;
    let cosine = cosine.mul_add(q, -0.5 * q) + 1.0;
    let sine = (polynomial(&SINE, q) * q).mul_add(r, r);
    // Turned by 0, 1, 2, 3 quarters.
    match (eighths >> 1) & 3 {
        0 => (sine, cosine),
        1 => (cosine, -sine),
        2 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// Horner's rule, the highest power first, every step fused.
fn polynomial(coefficients: &[f32], x: f32) -> f32 {
    coefficients.iter().fold(0.0, |y, &c| y.mul_add(x, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 24-bit uniform that the generator can hand over, against f64.
    #[test]
    fn they_are_the_functions_of_their_names() {
        for k in (1..=1u32 << 24).step_by(7) {
            let u = k as f32 / 16_777_216.0;
            let exact = f64::from(u).ln();
            assert!((f64::from(ln(u)) - exact).abs() <= 2e-7 * exact.abs().max(1e-7));
            let angle = std::f32::consts::TAU * u;
            let (sin, cos) = sin_cos(angle);
            let exact = f64::from(angle).sin_cos();
            assert!((f64::from(sin) - exact.0).abs() < 2e-7);
            assert!((f64::from(cos) - exact.1).abs() < 2e-7);
        }
    }
}
