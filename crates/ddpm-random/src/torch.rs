//! PyTorch's CPU generator, number for number: `torch.manual_seed` and what is drawn after it.
//!
//! ```text
//! words       MT19937, seeded with the lower 32 bits of the seed
//! f32 in [0, 1)     lower 24 bits of a word · 2^-24
//! f64 in [0, 1)     lower 53 bits of two words (the first is the upper one) · 2^-53
//! integer           a word modulo the range; two words where the range is 2^28 or more
//! normal, n < 16    pairs (u, v) of f64: r = sqrt(-2 ln(1 - v)), r cos(2 pi u), then r sin(2 pi u),
//!                   which waits, whatever else is drawn, for the next such normal, f32 or f64
//! normal, n >= 16   n uniforms of the type itself; in every whole group of 16, with j = 0..8,
//!                   r = sqrt(-2 ln(1 - u_j)), r cos(2 pi u_{j+8}) -> j, r sin(2 pi u_{j+8}) -> j + 8;
//!                   where n is no multiple of 16, the last 16 are drawn anew and treated so
//! ```
//!
//! The f32 normals of n >= 16 are those of PyTorch on x86-64 with AVX2 or AVX-512, which has
//! logarithm, sine and cosine of its own for them; here they come out the same on every system.
//! PyTorch on processors without AVX2 differs from them in last bits. All other normals take the
//! system's f64 functions, as PyTorch does.

use candle_core::{DType, Device, Tensor};
use ddpm_core::NoiseSource;

use crate::cephes;
use crate::mt19937::Mt19937;
use crate::noise::to_core;
use crate::{Error, Result};

/// PyTorch's CPU generator: a stream of numbers in the order of the calls, equal to PyTorch's bit for bit.
///
/// The counterpart of this crate's addressed noise, for those who want the images of PyTorch
/// programs seed for seed. What is drawn depends on everything drawn before it, on how many numbers
/// a call asks for, and so on the batch. As a [`NoiseSource`] it is `torch.randn` of each draw's
/// shape, in f32 or f64; for other types the f32 numbers are rounded, which is PyTorch's way only
/// for multiples of 16.
///
/// ```
/// use ddpm_random::TorchGenerator;
///
/// let mut generator = TorchGenerator::new(0); // torch.manual_seed(0)
/// let mut numbers = [0.0; 3];
/// generator.normal_into(&mut numbers); // torch.randn(3)
/// assert_eq!(numbers, [1.5409961, -0.2934289, -2.1787894]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TorchGenerator {
    words: Mt19937,
    /// The second number of a pair, for the next normal of fewer than 16.
    waiting: Option<f64>,
}

impl TorchGenerator {
    /// The generator after `torch.manual_seed(seed)` or `torch.Generator().manual_seed(seed)`.
    ///
    /// PyTorch's CPU generator uses the lower 32 bits alone: seeds that differ by 2^32 are the same,
    /// and a negative seed -s is 2^64 - s.
    pub fn new(seed: u64) -> Self {
        TorchGenerator {
            words: Mt19937::new(seed as u32),
            waiting: None,
        }
    }

    /// `torch.randn(shape)`, moved to `device`.
    ///
    /// # Shapes
    /// The result is f32 of `shape`.
    ///
    /// # Errors
    /// When the shape does not fit in memory, or the device fails.
    pub fn normal(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        let mut numbers = room(shape)?;
        self.normal_into(&mut numbers);
        Ok(Tensor::from_vec(numbers, shape, device)?)
    }

    /// `torch.randn(n)` with n the length of `out`; as of PyTorch with AVX2 or AVX-512.
    pub fn normal_into(&mut self, out: &mut [f32]) {
        self.normals(out);
    }

    /// `torch.randn(n, dtype=torch.float64)` with n the length of `out`.
    pub fn normal_f64_into(&mut self, out: &mut [f64]) {
        self.normals(out);
    }

    /// `torch.rand(n)` with n the length of `out`: in [0, 1), in steps of 2^-24.
    pub fn uniform_into(&mut self, out: &mut [f32]) {
        out.fill_with(|| f32::uniform(&mut self.words));
    }

    /// `torch.rand(n, dtype=torch.float64)` with n the length of `out`: in [0, 1), in steps of 2^-53.
    pub fn uniform_f64_into(&mut self, out: &mut [f64]) {
        out.fill_with(|| f64::uniform(&mut self.words));
    }

    /// `torch.randint(low, high, (n,))` with n the length of `out`: integers in low..high.
    ///
    /// # Errors
    /// [`Error::Integers`] when there is no integer in low..high.
    pub fn integers_into(&mut self, low: i64, high: i64, out: &mut [i64]) -> Result<()> {
        if low >= high {
            return Err(Error::Integers { low, high });
        }
        let range = high.wrapping_sub(low) as u64;
        out.fill_with(|| {
            let word = match range >= 1 << 28 {
                true => self.words.long(),
                false => u64::from(self.words.word()),
            };
            low.wrapping_add((word % range) as i64)
        });
        Ok(())
    }

    /// `torch.randperm(n)`: the integers 0..n in random order.
    ///
    /// # Errors
    /// [`Error::Order`] for more than 214,748,364 integers, where PyTorch has another rule.
    pub fn permutation(&mut self, n: usize) -> Result<Vec<usize>> {
        const LIMIT: usize = (u32::MAX / 20) as usize;
        if n > LIMIT {
            return Err(Error::Order { n, most: LIMIT });
        }
        let mut order: Vec<usize> = (0..n).collect();
        for place in 0..n.saturating_sub(1) {
            let further = self.words.word() as usize % (n - place);
            order.swap(place, place + further);
        }
        Ok(order)
    }

    fn normals<T: Normal>(&mut self, out: &mut [T]) {
        if out.len() < GROUP {
            out.fill_with(|| T::rounded(self.normal_of_a_pair()));
            return;
        }
        out.fill_with(|| T::uniform(&mut self.words));
        let (groups, rest) = out.as_chunks_mut::<GROUP>();
        groups.iter_mut().for_each(box_muller);
        if !rest.is_empty()
            && let Some(last) = out.last_chunk_mut::<GROUP>()
        {
            last.fill_with(|| T::uniform(&mut self.words));
            box_muller(last);
        }
    }

    /// The normal that waits, or the first of a new pair (Box and Muller 1958).
    fn normal_of_a_pair(&mut self) -> f64 {
        if let Some(waiting) = self.waiting.take() {
            return waiting;
        }
        let turn = f64::uniform(&mut self.words);
        let radius = (-2.0 * (-f64::uniform(&mut self.words)).ln_1p()).sqrt();
        let angle = std::f64::consts::TAU * turn;
        self.waiting = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

impl NoiseSource for TorchGenerator {
    /// The next numbers, whatever `draw` says: a generator has no addresses.
    fn draw(&mut self, _draw: usize, like: &Tensor) -> ddpm_core::Result<Tensor> {
        let noise = match like.dtype() {
            DType::F64 => room(like.dims()).and_then(|mut numbers| {
                self.normal_f64_into(&mut numbers);
                Ok(Tensor::from_vec(numbers, like.dims(), like.device())?)
            }),
            _ => self.normal(like.dims(), like.device()),
        };
        Ok(noise.map_err(to_core)?.to_dtype(like.dtype())?)
    }

    fn skip(&mut self, draw: usize, like: &Tensor) -> ddpm_core::Result<()> {
        self.draw(draw, like).map(drop)
    }
}

/// Numbers that are turned into normals together.
const GROUP: usize = 16;

/// The two types of normals, and what PyTorch does differently for them.
trait Normal: Copy {
    /// The next uniform in [0, 1).
    fn uniform(words: &mut Mt19937) -> Self;
    fn rounded(number: f64) -> Self;
    /// Two normals from two uniforms: with cosine, with sine.
    fn pair(u: Self, v: Self) -> (Self, Self);
}

impl Normal for f32 {
    fn uniform(words: &mut Mt19937) -> f32 {
        (words.word() & 0x00FF_FFFF) as f32 / 16_777_216.0
    }

    fn rounded(number: f64) -> f32 {
        number as f32
    }

    fn pair(u: f32, v: f32) -> (f32, f32) {
        let radius = (-2.0 * cephes::ln(1.0 - u)).sqrt();
        let (sin, cos) = cephes::sin_cos(std::f32::consts::TAU * v);
        // PyTorch adds the mean, 0, which leaves no -0.
        (radius * cos + 0.0, radius * sin + 0.0)
    }
}

impl Normal for f64 {
    fn uniform(words: &mut Mt19937) -> f64 {
        (words.long() & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }

    fn rounded(number: f64) -> f64 {
        number
    }

    fn pair(u: f64, v: f64) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - u).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        (radius * cos + 0.0, radius * sin + 0.0)
    }
}

/// 16 uniforms to 16 normals in place.
fn box_muller<T: Normal>(numbers: &mut [T; GROUP]) {
    for j in 0..GROUP / 2 {
        (numbers[j], numbers[j + GROUP / 2]) = T::pair(numbers[j], numbers[j + GROUP / 2]);
    }
}

/// Zeros for a tensor of this shape.
fn room<T: Clone + Default>(shape: &[usize]) -> Result<Vec<T>> {
    let too_large = || Error::Shape {
        shape: shape.to_vec(),
    };
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let count = count.ok_or_else(too_large)?;
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(count).map_err(|_| too_large())?;
    numbers.resize(count, T::default());
    Ok(numbers)
}
