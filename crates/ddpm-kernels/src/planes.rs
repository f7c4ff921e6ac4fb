//! The inner loops of a normalisation over the pixels of one channel, at each level of the processor.
#![allow(unsafe_code)] // the levels' instructions

use crate::simd::per_vector;
use crate::tile::LANES;
use crate::vector::Vector;

/// z = (x - mean) scale + shift.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) mean: f32,
    pub(crate) scale: f32,
    pub(crate) shift: f32,
}

per_vector! {
    /// y = silu(z), or z itself. `soon` is what is read next, a plane of as many pixels or none: it is fetched meanwhile.
    fn normalised(y: &mut [f32], x: &[f32], line: Line, silu: bool, soon: &[f32]);

    /// h = g silu'(z), or g itself; Σ h and Σ h (x - mean).
    fn through_silu(h: &mut [f32], x: &[f32], g: &[f32], line: Line, silu: bool) -> [f64; 2];
}

/// Vectors summed in single precision before the sums go on in double.
const RUN: usize = 64;

mod body {
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn normalised<V: Vector>(
        y: &mut [f32],
        x: &[f32],
        line: Line,
        silu: bool,
        soon: &[f32],
    ) {
        let length = y.len().min(x.len());
        // SAFETY: reads and writes end with the shorter slice.
        unsafe {
            for start in (0..length).step_by(LANES) {
                let (x, y) = (x.as_ptr().add(start), y.as_mut_ptr().add(start));
                let count = length - start;
                if start < soon.len() {
                    fetch(soon.as_ptr().add(start));
                }
                let mut z = z_of::<V>(load::<V>(x, count), line);
                if silu {
                    z = z.mul(z.sigmoid());
                }
                store(z, y, count);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn through_silu<V: Vector>(
        h: &mut [f32],
        x: &[f32],
        g: &[f32],
        line: Line,
        silu: bool,
    ) -> [f64; 2] {
        let length = h.len().min(x.len()).min(g.len());
        let mut totals = [0f64; 2];
        // SAFETY: reads and writes end with the shortest slice.
        unsafe {
            let (mean, one) = (V::splat(line.mean), V::splat(1.0));
            for run in (0..length).step_by(RUN * LANES) {
                let mut sums = [V::zero(); 2];
                for start in (run..length.min(run + RUN * LANES)).step_by(LANES) {
                    let count = length - start;
                    let x = load::<V>(x.as_ptr().add(start), count);
                    let mut of_z = load::<V>(g.as_ptr().add(start), count);
                    if silu {
                        let z = z_of::<V>(x, line);
                        let s = z.sigmoid();
                        let slope = s.mul(one.fused(z, one.sub(s)));
                        of_z = of_z.mul(slope);
                    }
                    store(of_z, h.as_mut_ptr().add(start), count);
                    sums[0] = sums[0].add(of_z);
                    sums[1] = sums[1].fused(of_z, x.sub(mean));
                }
                for (total, sum) in totals.iter_mut().zip(sums) {
                    let mut lanes = [0f32; LANES];
                    sum.store(lanes.as_mut_ptr());
                    for lane in lanes {
                        *total += f64::from(lane);
                    }
                }
            }
        }
        totals
    }

    #[inline(always)]
    unsafe fn z_of<V: Vector>(x: V, line: Line) -> V {
        // SAFETY: the caller's promise; so in all of these.
        unsafe {
            let from_mean = x.sub(V::splat(line.mean));
            V::splat(line.shift).fused(from_mean, V::splat(line.scale))
        }
    }

    /// Sixteen floats, or the few that are left and zeros.
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32, count: usize) -> V {
        // SAFETY: as above.
        unsafe {
            if count >= LANES {
                V::load(from)
            } else {
                V::load_some(from, count)
            }
        }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(vector: V, to: *mut f32, count: usize) {
        // SAFETY: as above.
        unsafe {
            if count >= LANES {
                vector.store(to);
            } else {
                vector.store_some(to, count);
            }
        }
    }

    /// Asks for a cache line that is read soon.
    #[inline(always)]
    unsafe fn fetch(from: *const f32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every processor has the instruction, and it touches nothing.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(from.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::{Level, pool};

    const LINE: Line = Line {
        mean: 0.3,
        scale: 1.7,
        shift: -0.2,
    };

    fn wave(length: usize, step: f32) -> Vec<f32> {
        (0..length).map(|i| 3.0 * (i as f32 * step).sin()).collect()
    }

    #[test]
    fn planes_of_any_length_at_every_level() {
        for level in Level::available() {
            for length in [1, 15, 16, 17, 1024, 3001] {
                pool(level, 1).unwrap().install(|| check(length));
            }
        }
    }

    fn check(length: usize) {
        let (x, g) = (wave(length, 0.37), wave(length, 0.91));
        let (mut y, mut h) = (vec![0f32; length], vec![0f32; length]);
        for silu in [false, true] {
            normalised(&mut y, &x, LINE, silu, &x[..length / 2]);
            let sums = through_silu(&mut h, &x, &g, LINE, silu);
            let mut expected = [0f64; 2];
            for i in 0..length {
                let from_mean = f64::from(x[i]) - f64::from(LINE.mean);
                let z = from_mean * f64::from(LINE.scale) + f64::from(LINE.shift);
                let s = 1.0 / (1.0 + (-z).exp());
                let (value, slope) = if silu {
                    (z * s, s * (1.0 + z * (1.0 - s)))
                } else {
                    (z, 1.0)
                };
                let of_z = f64::from(g[i]) * slope;
                assert!(
                    (f64::from(y[i]) - value).abs() < 2e-6,
                    "{length}, {silu}, {i}"
                );
                assert!(
                    (f64::from(h[i]) - of_z).abs() < 2e-6,
                    "{length}, {silu}, {i}"
                );
                expected[0] += of_z;
                expected[1] += of_z * from_mean;
            }
            for (sum, expected) in sums.into_iter().zip(expected) {
                let most = 1e-6 * length as f64;
                assert!(
                    (sum - expected).abs() < most,
                    "{length}, {silu}: {sum}, {expected}"
                );
            }
        }
    }
}
