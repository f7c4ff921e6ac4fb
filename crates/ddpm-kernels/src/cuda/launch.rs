//! What a kernel is launched with, and where: on a card, or in tests on the host.

use candle_core::{DType, Result, bail};

use super::convolution::{Pass, Shape};

/// Threads that run in step.
pub(crate) const WARP: u32 = 32;
/// Bytes of shared memory that every card has without being asked.
pub(crate) const SHARED_BYTES: u32 = 48 * 1024;
/// Threads of a block where each works on its own.
pub(crate) const BLOCK: u32 = 256;

/// How numbers are stored; all arithmetic is in single precision or better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    F32,
    Bf16,
}

impl Kind {
    /// Of a type that has been checked.
    pub(crate) fn of(dtype: DType) -> Result<Kind> {
        match dtype {
            DType::F32 => Ok(Kind::F32),
            DType::BF16 => Ok(Kind::Bf16),
            other => bail!("cuda: numbers are {other:?}, expected f32 or bf16"),
        }
    }

    /// Of a number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 => 2,
        }
    }

    /// Numbers that a thread loads at once, 16 bytes, as `PACK` of block.cuh.
    pub(crate) fn pack(self) -> usize {
        16 / self.bytes()
    }

    /// The same where all of these counts are multiples of it, otherwise one.
    pub(crate) fn pack_of(self, counts: &[usize]) -> usize {
        let pack = self.pack();
        let whole = counts.iter().all(|count| count.is_multiple_of(pack));
        if whole { pack } else { 1 }
    }
}

/// The kernel of a name for a kind of numbers.
macro_rules! kernel {
    ($kind:expr, $name:expr) => {
        match $kind {
            $crate::cuda::launch::Kind::F32 => $name,
            $crate::cuda::launch::Kind::Bf16 => concat!($name, "_bf16"),
        }
    };
}
pub(crate) use kernel;

/// Where kernels run. What is launched later finds what was launched before done.
pub(crate) trait Machine {
    type Memory;
    /// Launches and convolutions that were kept.
    type Recording;

    /// Memory for so many numbers, that holds nothing yet.
    fn allocate(&self, kind: Kind, count: usize) -> Result<Self::Memory>;
    /// Memory that holds these words, two floats each.
    fn upload(&self, words: &[u64]) -> Result<Self::Memory>;
    fn address(&self, memory: &Self::Memory) -> Address;
    fn launch(&self, kernel: &'static str, launch: Launch, arguments: &[Argument]) -> Result<()>;
    /// A convolution, a data gradient or a gradient of the weights: of x and W to y, of W and dL/dy to dL/dx, of x and dL/dy to
    /// dL/dW. Everything is contiguous, of the shape, its order and its kind, and the result is written whole.
    fn convolve(&self, shape: &Shape, pass: Pass, from: [Address; 2], to: Address) -> Result<()>;
    /// Keeps what `work` launches instead of launching it; nothing where the machine cannot, and then nothing was launched
    /// either. `work` allocates and uploads nothing, and has been carried out once before.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Recording>>;
    /// Launches what was kept, at the same addresses.
    fn replay(&self, recording: &Self::Recording) -> Result<()>;
}

/// An address in a machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) u64);

/// Blocks, threads of each, and bytes of shared memory of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 2],
    pub(crate) block: u32,
    pub(crate) shared: u32,
}

impl Launch {
    /// A thread for each of so many.
    pub(crate) fn each(count: usize) -> Result<Launch> {
        Ok(Launch {
            grid: [whole("blocks", count.div_ceil(BLOCK as usize))?, 1],
            block: BLOCK,
            shared: 0,
        })
    }

    /// A warp for each of so many.
    pub(crate) fn warps(count: usize) -> Result<Launch> {
        let warps = (BLOCK / WARP) as usize;
        Ok(Launch {
            grid: [whole("blocks", count.div_ceil(warps))?, 1],
            block: BLOCK,
            shared: 0,
        })
    }
}

/// A count that kernels can keep in 31 bits.
pub(crate) fn whole(what: &str, count: usize) -> Result<u32> {
    match u32::try_from(count) {
        Ok(count) if count < 1 << 31 => Ok(count),
        _ => {
            bail!("cuda: {count} {what} are more than a kernel can count, expected less than 2^31")
        }
    }
}

/// A count of images, each with blocks of its own: a launch has 65535 rows of blocks at most.
pub(crate) fn each_image(count: usize) -> Result<u32> {
    match u16::try_from(count) {
        Ok(count) => Ok(count.into()),
        Err(_) => {
            bail!("cuda: {count} images are more than a kernel can count, expected at most 65535")
        }
    }
}

/// One argument of a kernel, in the lowest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Argument(pub(crate) u64);

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Argument(address.0)
    }
}

impl From<u64> for Argument {
    fn from(long: u64) -> Self {
        Argument(long)
    }
}

impl From<u32> for Argument {
    fn from(whole: u32) -> Self {
        Argument(whole.into())
    }
}

impl From<i32> for Argument {
    fn from(whole: i32) -> Self {
        Argument(whole.cast_unsigned().into())
    }
}

impl From<bool> for Argument {
    fn from(flag: bool) -> Self {
        Argument(flag.into())
    }
}

impl From<f32> for Argument {
    fn from(float: f32) -> Self {
        Argument(float.to_bits().into())
    }
}

impl From<f64> for Argument {
    fn from(float: f64) -> Self {
        Argument(float.to_bits())
    }
}

impl From<Divisor> for Argument {
    fn from(divisor: Divisor) -> Self {
        Argument(u64::from(divisor.magic) | u64::from(divisor.shift) << 32)
    }
}

/// The arguments of a kernel, in its order and of its types.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$($crate::cuda::launch::Argument::from($argument)),*] };
}
pub(crate) use arguments;

/// How kernels divide by a number that is the same for all threads: x / d = (x m / 2^32 + x) / 2^s for x < 2^31.
///
/// Granlund and Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Divisor {
    magic: u32,
    shift: u32,
}

impl Divisor {
    /// Of a number from 1 to 2^31.
    pub(crate) fn by(divisor: u32) -> Divisor {
        let divisor = divisor.max(1);
        let shift = divisor.next_power_of_two().trailing_zeros();
        let above = (1u64 << shift) - u64::from(divisor);
        Divisor {
            magic: ((above << 32) / u64::from(divisor) + 1) as u32,
            shift,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `divide` of block.cuh.
    fn divide(x: u32, by: Divisor) -> u32 {
        let high = (u64::from(x) * u64::from(by.magic)) >> 32;
        (high as u32).checked_add(x).unwrap() >> by.shift
    }

    #[test]
    fn division_is_exact() {
        let largest = (1u32 << 31) - 1;
        let near = |x: u32| x.saturating_sub(2)..=x.saturating_add(2).min(largest);
        for divisor in (1..3000).chain(near(1 << 20)).chain(near(largest)) {
            let by = Divisor::by(divisor);
            let multiples = [1, 2, 3, 7, 1000, largest / divisor];
            let multiples = multiples.map(|n| divisor.saturating_mul(n).min(largest));
            for x in multiples.into_iter().chain([0, largest]).flat_map(near) {
                assert_eq!(divide(x, by), x / divisor, "{x} / {divisor}");
            }
        }
    }

    #[test]
    fn what_a_kernel_cannot_count_is_refused() {
        let message = Launch::each(1 << 40).unwrap_err().to_string();
        assert!(message.starts_with("cuda: 4294967296 blocks"), "{message}");
        let message = each_image(65536).unwrap_err().to_string();
        assert!(message.starts_with("cuda: 65536 images"), "{message}");
        assert_eq!(each_image(65535).unwrap(), 65535);
        assert_eq!(Launch::each(257).unwrap().grid, [2, 1]);
        assert_eq!(Launch::warps(9).unwrap().grid, [2, 1]);
    }
}
