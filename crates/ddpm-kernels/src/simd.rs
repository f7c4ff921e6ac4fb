//! Loops compiled once for each level of the processor, sums in an order that never changes, and an exponential.

/// Declares functions whose body is compiled for each level of the processor, the one of the calling thread being run.
///
/// No level fuses a product with a sum, so that all give the same bits.
macro_rules! per_processor {
    ($($(#[$meta:meta])* fn $name:ident $(<$generic:ident: $bound:ident>)? ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$meta])*
        pub(crate) fn $name $(<$generic: $bound>)? ($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn any $(<$generic: $bound>)? ($($argument: $type),*) $(-> $result)? $body

            match $crate::processor::Level::current() {
                #[cfg(target_arch = "x86_64")]
                $crate::processor::Level::Avx512 => {
                    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                    fn avx512 $(<$generic: $bound>)? ($($argument: $type),*) $(-> $result)? {
                        any($($argument),*)
                    }
                    #[allow(unsafe_code)]
                    // SAFETY: a level is only ever chosen of those that the processor has.
                    unsafe { avx512($($argument),*) }
                }
                #[cfg(target_arch = "x86_64")]
                $crate::processor::Level::Avx2 => {
                    #[target_feature(enable = "avx2")]
                    fn avx2 $(<$generic: $bound>)? ($($argument: $type),*) $(-> $result)? {
                        any($($argument),*)
                    }
                    #[allow(unsafe_code)]
                    // SAFETY: as above.
                    unsafe { avx2($($argument),*) }
                }
                _ => any($($argument),*),
            }
        }
    )*};
}
pub(crate) use per_processor;

/// Declares functions that run `body::name::<V, ...>`, compiled for each level of the processor, with the vectors of the one
/// of the calling thread. Unlike [`per_processor`] a level rounds a product and a sum at once where it can.
macro_rules! per_vector {
    ($($(#[$meta:meta])* fn $name:ident $([$($generic:ident: $bound:path),+])? ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {$(
        $(#[$meta])*
        #[allow(unsafe_code)] // the levels' instructions
        pub(crate) fn $name $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
            unsafe fn avx512_bf16 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
                // SAFETY: the level's instructions are there.
                unsafe { body::$name::<$crate::vector::Avx512Bf16 $($(, $generic)+)?>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
                // SAFETY: as above.
                unsafe { body::$name::<$crate::vector::Avx512 $($(, $generic)+)?>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2 $(<$($generic: $bound),+>)? ($($argument: $type),*) $(-> $result)? {
                // SAFETY: as above.
                unsafe { body::$name::<$crate::vector::Avx2 $($(, $generic)+)?>($($argument),*) }
            }
            // SAFETY: a level is only ever chosen of those that the processor has; so are the products.
            unsafe {
                use $crate::processor::{Level, Products};
                match (Level::current(), Products::current()) {
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512, Products::Emulated) => avx512 $(::<$($generic),+>)? ($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512, _) => avx512_bf16 $(::<$($generic),+>)? ($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx2, _) => avx2 $(::<$($generic),+>)? ($($argument),*),
                    _ => body::$name::<$crate::vector::Portable $($(, $generic)+)?>($($argument),*),
                }
            }
        }
    )*};
}
pub(crate) use per_vector;

/// Running sums kept side by side.
const LANES: usize = 16;
/// Elements summed in single precision before the sums go on in double.
const RUN: usize = 1024;

per_processor! {
    /// Σ x.
    fn sum(x: &[f32]) -> f64 {
        sum_of(x, x, |x, _| x)
    }

    /// Σ (x - mean)².
    fn sum_of_squared_differences(x: &[f32], mean: f32) -> f64 {
        sum_of(x, x, |x, _| (x - mean) * (x - mean))
    }

    /// y += x.
    fn add_assign(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }
}

/// Σ f(x, y) over two slices of one length, always in the same order.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0f64;
    for (x, y) in x.chunks(RUN).zip(y.chunks(RUN)) {
        let mut sums = [0f32; LANES];
        let (x_lanes, y_lanes) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        for ((sum, &x), &y) in sums
            .iter_mut()
            .zip(x_lanes.remainder())
            .zip(y_lanes.remainder())
        {
            *sum = f(x, y);
        }
        for (x, y) in x_lanes.zip(y_lanes) {
            for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
                *sum += f(x, y);
            }
        }
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total
}

/// The largest of all, or -infinity of none; NaN is passed over.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut most = [f32::NEG_INFINITY; LANES];
    let whole = x.chunks_exact(LANES);
    for (most, &x) in most.iter_mut().zip(whole.remainder()) {
        *most = larger(*most, x);
    }
    for x in whole {
        for (most, &x) in most.iter_mut().zip(x) {
            *most = larger(*most, x);
        }
    }
    most.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// e^x to about two units in the last place: 2^n e^r by Cephes' polynomial. Beyond ±87 it stays at its last value; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4; // ln 2 in two parts
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_3e-1;
    let e_r = p * r * r + r + 1.0;
    let power = f32::from_bits(
        shifted
            .to_bits()
            .wrapping_sub(ROUNDER.to_bits())
            .wrapping_add(127)
            << 23,
    );
    e_r * power
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The derivative of x / (1 + e^-x).
#[inline(always)]
pub(crate) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_the_libraries_to_three_units_in_the_last_place() {
        for i in -8_700_000..=8_800_000 {
            let x = i as f32 * 1e-5;
            let truth = f64::from(x).exp();
            let error = (f64::from(exp(x)) - truth).abs() / truth;
            assert!(
                error < 3.0 * f64::from(f32::EPSILON),
                "exp({x}) is off by {error:e}"
            );
        }
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(-1000.0), exp(-87.0));
    }

    #[test]
    fn sum_is_exact_on_integers() {
        let x: Vec<f32> = (0..5003).map(|i| (i % 7) as f32).collect();
        assert_eq!(sum(&x), x.iter().map(|&x| f64::from(x)).sum::<f64>());
        assert_eq!(sum(&[]), 0.0);
        assert_eq!(largest(&x), 6.0);
        assert_eq!(largest(&[-3.0, -1.0, -2.0]), -1.0);
    }
}
