//! What may be traded on a card: exactness of products, and algorithms that give the same bits every time.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

static TF32: AtomicBool = AtomicBool::new(false);
static DETERMINISTIC: AtomicBool = AtomicBool::new(true);
static WITHOUT: AtomicU8 = AtomicU8::new(0);

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

/// Ways that are gone around when somebody wants to see whether one of them is at fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Without(u8);

impl Without {
    const NAMES: [(&str, Without); 4] = [
        ("graphs", Without::GRAPHS),
        ("cublas", Without::CUBLAS),
        ("engines", Without::ENGINES),
        ("pinned", Without::PINNED),
    ];
    /// Work that is launched again as it was.
    pub(crate) const GRAPHS: Without = Without(1);
    /// Convolutions by one pixel as products of matrices.
    pub(crate) const CUBLAS: Without = Without(2);
    /// Copies to the card from page-locked memory.
    pub(crate) const PINNED: Without = Without(4);
    /// cuDNN's engines.
    pub(crate) const ENGINES: Without = Without(8);

    /// For the whole program.
    pub(crate) fn set(self) {
        WITHOUT.store(self.0, Ordering::Relaxed);
    }

    /// Whether this is gone around.
    pub(crate) fn is_set(self) -> bool {
        WITHOUT.load(Ordering::Relaxed) & self.0 != 0
    }
}

impl FromStr for Without {
    type Err = String;

    /// Names with commas between; nothing is gone around without any.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Without::default();
        for name in text
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            match Self::NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, Without(bit))) => all.0 |= bit,
                None => {
                    let names = Self::NAMES.map(|(name, _)| name).join(", ");
                    return Err(format!("`{name}` is none of {names}"));
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_around_is_named() {
        let of = |text: &str| text.parse::<Without>();
        assert_eq!(of(""), Ok(Without(0)));
        assert_eq!(of("cublas"), Ok(Without::CUBLAS));
        assert_eq!(of("graphs, pinned,"), Ok(Without(5)));
        let message = of("graphs,tf32").unwrap_err();
        assert_eq!(message, "`tf32` is none of graphs, cublas, engines, pinned");
        assert!(!Without::GRAPHS.is_set());
    }

    #[test]
    fn at_first_exact_and_the_same_every_time() {
        let expected = Settings {
            tf32: false,
            deterministic: true,
        };
        assert_eq!(Settings::now(), expected);
    }
}
