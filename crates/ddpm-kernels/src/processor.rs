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

thread_local! {
    static CHOSEN: Cell<Option<Level>> = const { Cell::new(None) };
}

/// A pool of threads on which every kernel runs at one level: how tests and benchmarks reach the lower ones.
///
/// # Errors
/// A level that the processor does not have; threads that the system does not give.
pub fn pool(level: Level, threads: usize) -> candle_core::Result<rayon::ThreadPool> {
    if !level.is_available() {
        candle_core::bail!(
            "this processor has no {level:?}; it has {:?}",
            Level::available()
        );
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .start_handler(move |_| CHOSEN.set(Some(level)))
        .build()
        .map_err(candle_core::Error::wrap)
}
