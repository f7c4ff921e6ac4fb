//! Memory that begins on a cache line, and scratch memory that threads keep.

use std::cell::RefCell;

/// Floats of one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Floats that begin on a cache line, so that a vector never lies on two.
#[derive(Clone, Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
    length: usize,
}

impl Aligned {
    /// All zeros.
    pub(crate) fn zeros(length: usize) -> Self {
        Aligned {
            lines: vec![Line([0.0; 16]); length.div_ceil(16)],
            length,
        }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        #[allow(unsafe_code)]
        // SAFETY: a line is sixteen floats and nothing else, and there are lines enough.
        unsafe {
            std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.length)
        }
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        #[allow(unsafe_code)]
        // SAFETY: as in `deref`.
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.length)
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// Floats that a loan has at least, if it is not a small one: what is asked for grows from one layer of a network to the next,
/// and memory that was outgrown is not soon of use again.
const LEAST: usize = 1 << 19;
const SMALL: usize = 1 << 14;

/// Lends `length` floats with whatever was in them; the thread keeps them for the next loan.
pub(crate) fn with_scratch<R>(length: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut scratch = SCRATCH.with_borrow_mut(|kept| take(kept, length));
    if scratch.len() < length {
        let least = if length > SMALL { LEAST } else { 0 };
        scratch = Aligned::zeros(length.max(least));
    }
    let result = work(&mut scratch[..length]);
    SCRATCH.with_borrow_mut(|kept| kept.push(scratch));
    result
}

/// The shortest that suffices, or the longest: so that loans within loans soon find what they need.
fn take(kept: &mut Vec<Aligned>, length: usize) -> Aligned {
    let sufficient = |&index: &usize| kept[index].len() >= length;
    let shortest = (0..kept.len())
        .filter(sufficient)
        .min_by_key(|&index| kept[index].len());
    let longest = || (0..kept.len()).max_by_key(|&index| kept[index].len());
    match shortest.or_else(longest) {
        Some(index) => kept.swap_remove(index),
        None => Aligned::default(),
    }
}
