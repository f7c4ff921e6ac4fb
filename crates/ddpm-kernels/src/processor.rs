//! The level of the processor that the kernels are run at: found out once, or chosen for the threads of a pool.

use std::cell::Cell;
use std::sync::OnceLock;

/// What the fastest kernels may use, from what every processor has to what few have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// What the build allows: no instruction beyond the target's own.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
}

impl Level {
    /// All levels that this processor has, lowest first.
    pub fn available() -> Vec<Level> {
        [Level::Portable, Level::Avx2, Level::Avx512]
            .into_iter()
            .filter(|level| level.is_available())
            .collect()
    }

    /// The level of the calling thread: the highest one, unless the thread belongs to a [`pool`] of another.
    pub fn current() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        CHOSEN.get().unwrap_or_else(|| {
            *BEST.get_or_init(|| Level::available().pop().unwrap_or(Level::Portable))
        })
    }

    fn is_available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Level::Avx2.is_available()
            }
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 => false,
        }
    }
}

/// What multiplies numbers in bf16, from what every processor can do to what few can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Products {
    /// Additions and multiplications in f32, in the order of [`Products::Amx`] and with its results.
    Emulated,
    /// AVX512-BF16's dot products of pairs.
    Avx512,
    /// AMX's tiles.
    Amx,
}

impl Products {
    /// All that this processor has, slowest first.
    pub fn available() -> Vec<Products> {
        [Products::Emulated, Products::Avx512, Products::Amx]
            .into_iter()
            .filter(|products| products.is_available())
            .collect()
    }

    /// What the calling thread uses: the fastest, unless it belongs to a [`pool_of`] others or to one of a lower
    /// [`Level`].
    pub fn current() -> Products {
        static BEST: OnceLock<Products> = OnceLock::new();
        let best =
            || *BEST.get_or_init(|| Products::available().pop().unwrap_or(Products::Emulated));
        match (CHOSEN_PRODUCTS.get(), CHOSEN.get()) {
            (Some(products), _) => products,
            (None, Some(level)) if level < Level::Avx512 => Products::Emulated,
            _ => best(),
        }
    }

    /// Whether bf16 is faster than f32 with them.
    pub fn are_fast(self) -> bool {
        self == Products::Amx
    }

    fn is_available(self) -> bool {
        match self {
            Products::Emulated => true,
            #[cfg(target_arch = "x86_64")]
            Products::Avx512 => {
                Level::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(target_arch = "x86_64")]
            Products::Amx => Level::Avx512.is_available() && tiles_are_allowed(),
            #[cfg(not(target_arch = "x86_64"))]
            Products::Avx512 | Products::Amx => false,
        }
    }
}

/// Whether there are tiles for bf16 and the system lets this process use them, for which it has to be asked once.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[allow(unsafe_code)] // the request has no function in the standard library
fn tiles_are_allowed() -> bool {
    use std::arch::x86_64::__cpuid_count;
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        const TILES_OF_BF16: u32 = 1 << 22 | 1 << 24;
        let has_tiles = __cpuid_count(0, 0).eax >= 7
            && __cpuid_count(7, 0).edx & TILES_OF_BF16 == TILES_OF_BF16;
        let ask = || {
            const ARCH_PRCTL: usize = 158;
            const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
            const TILE_DATA: usize = 18;
            let mut result = ARCH_PRCTL;
            // SAFETY: the call reads no memory; it only grants what was asked for.
            unsafe {
                std::arch::asm!(
                    "syscall",
                    inlateout("rax") result,
                    in("rdi") ARCH_REQ_XCOMP_PERM,
                    in("rsi") TILE_DATA,
                    lateout("rcx") _,
                    lateout("r11") _,
                    options(nostack)
                );
            }
            result == 0
        };
        has_tiles && ask()
    })
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles_are_allowed() -> bool {
    false
}

thread_local! {
    static CHOSEN: Cell<Option<Level>> = const { Cell::new(None) };
    static CHOSEN_PRODUCTS: Cell<Option<Products>> = const { Cell::new(None) };
}

/// A pool of threads on which every kernel runs at one level: how tests and benchmarks reach the lower ones.
///
/// # Errors
/// A level that the processor does not have; threads that the system does not give.
pub fn pool(level: Level, threads: usize) -> candle_core::Result<rayon::ThreadPool> {
    let products = if level < Level::Avx512 {
        Products::Emulated
    } else {
        Products::current()
    };
    pool_of(level, products, threads)
}

/// As [`pool`], where numbers in bf16 are multiplied in one way.
///
/// # Errors
/// As [`pool`].
pub fn pool_of(
    level: Level,
    products: Products,
    threads: usize,
) -> candle_core::Result<rayon::ThreadPool> {
    if !level.is_available() {
        candle_core::bail!(
            "this processor has no {level:?}; it has {:?}",
            Level::available()
        );
    }
    if !products.is_available() {
        candle_core::bail!(
            "this processor has no {products:?} for bf16; it has {:?}",
            Products::available()
        );
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(move |_| {
            CHOSEN.set(Some(level));
            CHOSEN_PRODUCTS.set(Some(products));
        })
        .build()
        .map_err(candle_core::Error::wrap)
}
