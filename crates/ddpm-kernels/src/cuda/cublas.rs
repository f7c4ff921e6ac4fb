//! Products of matrices by cuBLAS, in memory of its own, so that they can be kept for a graph and give the same bits every time.
//!
//! NVIDIA, "cuBLAS library": cublasGemmEx, cublasSetWorkspace and, on reproducibility, "Results reproducibility".
#![allow(unsafe_code)] // a C library

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::ptr::from_ref;
use std::sync::Arc;

use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{Error, Result};

use super::card::Card;
use super::launch::{Address, Kind};
use super::product::Product;
use super::settings::Settings;

/// What NVIDIA advises for an H100, which wants the most.
const WORKSPACE_BYTES: usize = 32 << 20;

thread_local! {
    /// A handle is for one thread at a time.
    static LIBRARIES: RefCell<HashMap<DeviceId, Library>> = RefCell::default();
}

/// cuBLAS on one card.
struct Library {
    handle: sys::cublasHandle_t,
    /// Where its work goes.
    stream: Arc<CudaStream>,
    workspace: Arc<CudaSlice<u8>>,
    place: *mut c_void,
}

/// A product of two of the arguments of a convolution; everything is of the kind, sums are f32, and the result is written whole.
pub(super) fn multiply(
    card: &Card<'_>,
    kind: Kind,
    product: &Product,
    from: [Address; 2],
    to: Address,
) -> Result<()> {
    card.bind()?;
    LIBRARIES.with_borrow_mut(|libraries| {
        let library = match libraries.entry(card.device().id()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(Library::open(card)?),
        };
        library.multiply(card, kind, product, from, to)
    })
}

/// The memory that products are made in on this thread. It is never moved.
pub(super) fn memory(card: DeviceId) -> Option<Arc<CudaSlice<u8>>> {
    LIBRARIES.with_borrow(|libraries| Some(libraries.get(&card)?.workspace.clone()))
}

impl Library {
    fn open(card: &Card<'_>) -> Result<Library> {
        card.only_launches("cuBLAS was opened")?;
        // SAFETY: cuBLAS writes what it reads of it.
        let workspace = unsafe { card.device().alloc::<u8>(WORKSPACE_BYTES) }?;
        let place = workspace.device_ptr(&card.device().cuda_stream()).0 as *mut c_void;
        let library = Library {
            handle: result::create_handle().map_err(Error::wrap)?,
            stream: card.stream(),
            workspace: Arc::new(workspace),
            place,
        };
        library.set_stream()?;
        // Parts of a sum in bf16 are added in f32 too.
        let math = sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle was just made.
        unsafe { sys::cublasSetMathMode(library.handle, math) }
            .result()
            .map_err(Error::wrap)?;
        Ok(library)
    }

    /// A new stream takes the memory away, so that it is given again.
    fn set_stream(&self) -> Result<()> {
        // SAFETY: all are alive.
        unsafe {
            result::set_stream(self.handle, self.stream.cu_stream().cast())
                .and_then(|()| {
                    sys::cublasSetWorkspace_v2(self.handle, self.place, WORKSPACE_BYTES).result()
                })
                .map_err(Error::wrap)
        }
    }

    fn multiply(
        &mut self,
        card: &Card<'_>,
        kind: Kind,
        product: &Product,
        from: [Address; 2],
        to: Address,
    ) -> Result<()> {
        let stream = card.stream();
        if stream.cu_stream() != self.stream.cu_stream() {
            self.stream = stream;
            self.set_stream()?;
        }
        let stored = match kind {
            Kind::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Kind::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let summed = match (kind, Settings::now().tf32) {
            (Kind::F32, true) => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let [turned_a, turned_b] = product.turned.map(|turned| match turned {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        });
        let [a, b] = product.from.map(|which| from[which].0 as *const c_void);
        let [a_columns, b_columns, c_columns] = product.columns;
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the matrices are of the product's sizes.
        unsafe {
            result::gemm_ex(
                self.handle,
                turned_a,
                turned_b,
                product.m,
                product.n,
                product.k,
                from_ref(&one).cast(),
                a,
                stored,
                a_columns,
                b,
                stored,
                b_columns,
                from_ref(&zero).cast(),
                to.0 as *mut c_void,
                stored,
                c_columns,
                summed,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(Error::wrap)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: it is not used again. At the end of a program there may be nothing left to free.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
