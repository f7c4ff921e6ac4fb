//! Numbers of sixteen bits, eight of them for the exponent: what the processor's matrix units multiply.

use crate::source::Data;
use crate::vector::Vector;

pub(crate) mod attention;
pub(crate) mod correlate;
pub(crate) mod dot;
pub(crate) mod gather;
pub(crate) mod packing;
pub(crate) mod weight_gradient;

#[cfg(test)]
#[path = "bf16/tests.rs"]
mod products;

/// The upper half of an f32: 8 bits of precision, the range of an f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

/// How activations are stored. What is computed with them is f32 always.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    fn widen(self) -> f32;
    fn narrow(x: f32) -> Self;
    /// Numbers that are stored so, if these are.
    fn of(data: Data<'_>) -> Option<&[Self]>;
    fn data(numbers: &[Self]) -> Data<'_>;
    /// Sixteen numbers.
    ///
    /// # Safety
    /// The vector's contract.
    #[allow(unsafe_code)] // the levels' instructions
    unsafe fn load<V: Vector>(from: *const Self) -> V;
    /// As [`Element::load`].
    ///
    /// # Safety
    /// The vector's contract.
    #[allow(unsafe_code)] // as above
    unsafe fn store<V: Vector>(vector: V, to: *mut Self);
    /// Sixteen numbers as bf16.
    ///
    /// # Safety
    /// The vector's contract.
    #[inline(always)]
    #[allow(unsafe_code)] // as above
    unsafe fn copy<V: Vector>(from: *const Self, to: *mut Bf16) {
        // SAFETY: the caller's promise.
        unsafe { Self::load::<V>(from).store_halves(to) }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
    fn of(data: Data<'_>) -> Option<&[Self]> {
        match data {
            Data::Floats(data) => Some(data),
            Data::Halves(_) => None,
        }
    }
    fn data(numbers: &[Self]) -> Data<'_> {
        Data::Floats(numbers)
    }
    #[inline(always)]
    #[allow(unsafe_code)] // the caller's promise; so in all of these
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: as above.
        unsafe { V::load(from) }
    }
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn store<V: Vector>(vector: V, to: *mut Self) {
        // SAFETY: as above.
        unsafe { vector.store(to) }
    }
}

impl Element for Bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    /// To the nearest, ties to even. A NaN stays one; what is below the smallest normal number becomes a zero of its
    /// sign, as the matrix units read it. AVX512-BF16's instruction gives the same bits.
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let rounded = if x.is_nan() {
            bits | 0x40_0000
        } else {
            rounded
        };
        let rounded = if x.abs() < f32::MIN_POSITIVE {
            bits & 0x8000_0000
        } else {
            rounded
        };
        Bf16((rounded >> 16) as u16)
    }
    fn of(data: Data<'_>) -> Option<&[Self]> {
        match data {
            Data::Halves(data) => Some(data),
            Data::Floats(_) => None,
        }
    }
    fn data(numbers: &[Self]) -> Data<'_> {
        Data::Halves(numbers)
    }
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: as above.
        unsafe { V::load_halves(from) }
    }
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn store<V: Vector>(vector: V, to: *mut Self) {
        // SAFETY: as above.
        unsafe { vector.store_halves(to) }
    }
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn copy<V: Vector>(from: *const Self, to: *mut Bf16) {
        // SAFETY: as above.
        unsafe {
            to.cast::<[Bf16; 16]>()
                .write_unaligned(from.cast::<[Bf16; 16]>().read_unaligned())
        }
    }
}

/// Memory for floats as memory for twice as many halves.
pub(crate) fn halves(floats: &[f32]) -> &[Bf16] {
    #[allow(unsafe_code)]
    // SAFETY: a float is two halves, of which any bits are one.
    unsafe {
        std::slice::from_raw_parts(floats.as_ptr().cast(), 2 * floats.len())
    }
}

/// As [`halves`].
pub(crate) fn halves_mut(floats: &mut [f32]) -> &mut [Bf16] {
    #[allow(unsafe_code)]
    // SAFETY: as above; any two halves are a float.
    unsafe {
        std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), 2 * floats.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_is_to_the_nearest_and_to_even_between_two() {
        let widened = |bits: u16| Bf16(bits).widen();
        for bits in (0x0080..0x7f80u16).chain(0x8080..0xff80) {
            let (here, next) = (widened(bits), widened(bits + 1));
            assert_eq!(Bf16::narrow(here), Bf16(bits));
            if !next.is_finite() {
                continue;
            }
            let between = (f64::from(here) + f64::from(next)) / 2.0;
            assert_eq!(
                Bf16::narrow(between as f32).0,
                bits + (bits & 1),
                "{bits:x}"
            );
            let towards = |to: f32| {
                f32::from_bits(
                    (between as f32).to_bits() + u32::from(to.abs() > here.abs()) * 2 - 1,
                )
            };
            assert_eq!(Bf16::narrow(towards(next)), Bf16(bits + 1));
            assert_eq!(Bf16::narrow(towards(here)), Bf16(bits));
        }
        assert!(Bf16::narrow(f32::NAN).widen().is_nan());
        assert_eq!(Bf16::narrow(f32::INFINITY).widen(), f32::INFINITY);
        assert_eq!(Bf16::narrow(1e-40), Bf16(0));
        assert_eq!(Bf16::narrow(-0.0).widen(), 0.0);
    }
}
