//! The numbers behind candle's tensors, and new tensors from numbers.

use std::mem::MaybeUninit;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::bf16::Bf16;

/// The elements of a contiguous f32 tensor on the CPU, borrowed.
pub(crate) struct View<G> {
    guard: G,
    range: Range<usize>,
}

/// Borrows the elements of a contiguous f32 tensor on the CPU.
pub(crate) fn view<'a>(
    op: &str,
    name: &str,
    x: &'a Tensor,
) -> Result<View<impl Deref<Target = Storage> + 'a>> {
    let (guard, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: {name} of shape {:?} is not contiguous", x.dims());
    };
    match &*guard {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(View {
            guard,
            range: start..end,
        }),
        _ => bail!(
            "{op}: {name} is {:?} on {:?}, expected f32 on the cpu",
            x.dtype(),
            x.device().location()
        ),
    }
}

impl<G: Deref<Target = Storage>> Deref for View<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            _ => &[], // `view` let nothing else in
        }
    }
}

/// The elements of an argument of a custom operation.
pub(crate) fn slice<'a>(
    op: &str,
    name: &str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else {
        bail!("{op}: {name} of shape {:?} is not f32", layout.dims());
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!(
            "{op}: {name} of shape {:?} is not contiguous",
            layout.dims()
        ),
    }
}

/// A tensor on the CPU, of these elements and the shape of `like`.
pub(crate) fn tensor_like(data: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, like.shape(), &Device::Cpu)
}

/// A gradient for an argument that needs one.
pub(crate) fn if_tracked(
    argument: &Tensor,
    gradient: impl FnOnce() -> Result<Vec<f32>>,
) -> Result<Option<Tensor>> {
    if !argument.track_op() {
        return Ok(None);
    }
    tensor_like(gradient()?, argument).map(Some)
}

/// A vector that has not been filled with zeros first: that pass, on one thread, can cost more than the work itself.
///
/// # Safety
/// `write` writes every element.
#[allow(unsafe_code)] // the point of it
pub(crate) unsafe fn written<R>(
    length: usize,
    write: impl FnOnce(&mut [MaybeUninit<f32>]) -> R,
) -> (Vec<f32>, R) {
    let mut data = Vec::with_capacity(length);
    let result = write(&mut data.spare_capacity_mut()[..length]);
    // SAFETY: the capacity is at least `length`, and all elements are written by the caller's promise.
    unsafe { data.set_len(length) };
    (data, result)
}

/// Fills a part of new memory with zeros, near to where it is then worked on.
pub(crate) fn zeroed(part: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    part.fill(MaybeUninit::new(0.0));
    #[allow(unsafe_code)]
    // SAFETY: every element was just written.
    unsafe {
        &mut *(std::ptr::from_mut(part) as *mut [f32])
    }
}

/// A vector of pieces of `piece` elements (the last may be shorter), filled in parallel; each starts as zeros.
pub(crate) fn in_pieces<R: Send>(
    length: usize,
    piece: usize,
    fill: impl Fn(usize, &mut [f32]) -> R + Sync,
) -> (Vec<f32>, Vec<R>) {
    let write = |data: &mut [MaybeUninit<f32>]| {
        data.par_chunks_mut(piece.max(1))
            .enumerate()
            .map(|(i, part)| fill(i, zeroed(part)))
            .collect()
    };
    #[allow(unsafe_code)]
    // SAFETY: `zeroed` writes every piece, and the pieces are all of the vector.
    unsafe {
        written(length, write)
    }
}

/// Memory that tasks write at once, each in its own places.
pub(crate) struct Shared<'a, T = f32> {
    pointer: *mut T,
    length: usize,
    borrow: std::marker::PhantomData<&'a mut [MaybeUninit<T>]>,
}

#[allow(unsafe_code)]
// SAFETY: whoever writes through a pointer out of it promises that no other task touches the same elements.
unsafe impl<T: Send> Send for Shared<'_, T> {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Shared {
            pointer: data.as_mut_ptr(),
            length: data.len(),
            borrow: std::marker::PhantomData,
        }
    }

    /// Memory that holds nothing yet.
    pub(crate) fn uninitialised(data: &'a mut [MaybeUninit<T>]) -> Self {
        Shared {
            pointer: data.as_mut_ptr().cast(),
            length: data.len(),
            borrow: std::marker::PhantomData,
        }
    }

    /// A pointer to an element, of which `length` must exist.
    pub(crate) fn at(&self, start: usize, length: usize) -> *mut T {
        assert!(
            start <= self.length && length <= self.length - start,
            "{length} elements from {start} of {}",
            self.length
        );
        self.pointer.wrapping_add(start)
    }
}

impl<'a> Shared<'a> {
    /// The same memory for twice as many halves.
    pub(crate) fn halves(&self) -> Shared<'a, Bf16> {
        Shared {
            pointer: self.pointer.cast(),
            length: 2 * self.length,
            borrow: std::marker::PhantomData,
        }
    }
}
