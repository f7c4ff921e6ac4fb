//! What may be traded on a card: exactness of products, and algorithms that give the same bits every time.

use std::sync::atomic::{AtomicBool, Ordering};

static TF32: AtomicBool = AtomicBool::new(false);
static DETERMINISTIC: AtomicBool = AtomicBool::new(true);

/// Whether products of convolutions and matrices may round their factors to TF32 (10 bits of fraction instead of 23). At
/// first they may not. It holds for the whole program.
pub fn use_tf32(allowed: bool) {
    TF32.store(allowed, Ordering::Relaxed);
    #[cfg(feature = "cuda")]
    candle_core::cuda::set_gemm_reduced_precision_f32(allowed);
}

/// Whether cuDNN's convolutions take only algorithms that give the same bits every time, chosen by its own rules and so the
/// same one every time; at first they do. Else each is measured when its shape first comes, and the fastest is taken. The
/// kernels of this crate always give the same bits. It holds for the whole program.
pub fn use_deterministic(wanted: bool) {
    DETERMINISTIC.store(wanted, Ordering::Relaxed);
}

/// Both, as a convolution finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    pub(crate) tf32: bool,
    pub(crate) deterministic: bool,
}

impl Settings {
    pub(crate) fn now() -> Settings {
        Settings {
            tf32: TF32.load(Ordering::Relaxed),
            deterministic: DETERMINISTIC.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_first_exact_and_the_same_every_time() {
        let expected = Settings {
            tf32: false,
            deterministic: true,
        };
        assert_eq!(Settings::now(), expected);
    }
}
