//! Convolutions by cuDNN: descriptors and algorithm of every shape are kept, and so is the memory that algorithms work in.
//!
//! NVIDIA, "cuDNN API reference", the functions of `cudnn_cnn`: cudnnConvolutionForward, cudnnConvolutionBackwardData,
//! cudnnConvolutionBackwardFilter; their `_v7` heuristics, and their Find functions, which measure.
#![allow(unsafe_code)] // a C library

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{from_ref, null_mut};

use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{Error, Result};

use super::card::Card;
use super::convolution::{Candidate, DEFAULT_MATH, FMA_MATH, Order, Pass, Shape, choose};
use super::launch::Address;
use super::launch::Kind;
use super::settings::Settings;

thread_local! {
    /// cuDNN's handles are for one thread each.
    static LIBRARIES: RefCell<HashMap<DeviceId, Library>> = RefCell::default();
}

/// cuDNN on one card.
struct Library {
    handle: sys::cudnnHandle_t,
    plans: HashMap<(Shape, Pass, Settings), Plan>,
    workspace: Option<CudaSlice<u8>>,
}

/// How one convolution is done.
struct Plan {
    descriptors: Descriptors,
    algorithm: Algorithm,
    bytes: usize,
}

#[derive(Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    Weights(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// A convolution, a data gradient or a gradient of the weights: of x and W to y, of W and dL/dy to dL/dx, of x and dL/dy to
/// dL/dW. Everything is contiguous, of the shape and its kind, and the result is written whole.
pub(crate) fn convolve(
    card: &Card<'_>,
    shape: &Shape,
    pass: Pass,
    from: [Address; 2],
    to: Address,
) -> Result<()> {
    card.bind()?;
    LIBRARIES.with(|libraries| {
        let mut libraries = libraries.borrow_mut();
        let id = card.device().id();
        let library = match libraries.entry(id) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(Library::open(card)?),
        };
        library.convolve(card, shape, pass, from, to)
    })
}

impl Library {
    fn open(card: &Card<'_>) -> Result<Library> {
        let handle = result::create_handle().map_err(Error::wrap)?;
        let stream = card.device().cuda_stream();
        // SAFETY: the handle was just made, and the stream is candle's.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }.map_err(Error::wrap)?;
        Ok(Library {
            handle,
            plans: HashMap::new(),
            workspace: None,
        })
    }

    fn convolve(
        &mut self,
        card: &Card<'_>,
        shape: &Shape,
        pass: Pass,
        from: [Address; 2],
        to: Address,
    ) -> Result<()> {
        let key = (*shape, pass, Settings::now());
        let plan = match self.plans.entry(key) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(self.handle, shape, pass, key.2)?),
        };
        let workspace = workspace(&mut self.workspace, card, plan.bytes)?;
        plan.run(self.handle, from, to, workspace)
            .map_err(Error::wrap)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: it is not used again. At the end of a program there may be nothing left to free.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// So many bytes, of the memory that is kept if it is large enough. What still runs in the old has it to itself: memory is
/// freed in the order of the stream.
fn workspace(
    kept: &mut Option<CudaSlice<u8>>,
    card: &Card<'_>,
    bytes: usize,
) -> Result<*mut c_void> {
    if bytes == 0 {
        return Ok(null_mut());
    }
    if kept.as_ref().is_none_or(|kept| kept.num_bytes() < bytes) {
        *kept = None;
        // SAFETY: algorithms write what they read of it.
        *kept = Some(unsafe { card.device().alloc::<u8>(bytes) }?);
    }
    let stream = card.device().cuda_stream();
    Ok(kept
        .as_ref()
        .map_or(null_mut(), |kept| kept.device_ptr(&stream).0 as *mut c_void))
}

/// What cuDNN knows of the tensors of one convolution.
struct Descriptors {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    weight: sys::cudnnFilterDescriptor_t,
    convolution: sys::cudnnConvolutionDescriptor_t,
}

impl Descriptors {
    fn new(shape: &Shape, settings: Settings) -> std::result::Result<Descriptors, CudnnError> {
        let format = match shape.order {
            Order::Planes => sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
            Order::Pixels => sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
        };
        let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let stored = match shape.kind {
            Kind::F32 => float,
            Kind::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        let sizes = |of: [u32; 4]| of.map(|size| size as c_int);
        let [padding, stride] =
            [shape.padding, [shape.stride; 2]].map(|of| of.map(|size| size as c_int));
        let mut all = Descriptors {
            x: null_mut(),
            y: null_mut(),
            weight: null_mut(),
            convolution: null_mut(),
        };
        // SAFETY: each is set after it was made, and freed when `all` is dropped, be it early.
        unsafe {
            all.x = result::create_tensor_descriptor()?;
            result::set_tensor4d_descriptor(all.x, format, stored, sizes(shape.x))?;
            all.y = result::create_tensor_descriptor()?;
            result::set_tensor4d_descriptor(all.y, format, stored, sizes(shape.y))?;
            all.weight = result::create_filter_descriptor()?;
            result::set_filter4d_descriptor(all.weight, stored, format, sizes(shape.weight))?;
            all.convolution = result::create_convolution_descriptor()?;
            result::set_convolution2d_descriptor(
                all.convolution,
                padding[0],
                padding[1],
                stride[0],
                stride[1],
                1,
                1,
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                float,
            )?;
            result::set_convolution_group_count(all.convolution, shape.groups as i32)?;
            result::set_convolution_math_type(all.convolution, math_of(shape.kind, settings))?;
        }
        Ok(all)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: none is used again, and none was freed before.
        unsafe {
            if !self.x.is_null() {
                let _ = result::destroy_tensor_descriptor(self.x);
            }
            if !self.y.is_null() {
                let _ = result::destroy_tensor_descriptor(self.y);
            }
            if !self.weight.is_null() {
                let _ = result::destroy_filter_descriptor(self.weight);
            }
            if !self.convolution.is_null() {
                let _ = result::destroy_convolution_descriptor(self.convolution);
            }
        }
    }
}

/// With CUDNN_FMA_MATH products are as in single precision; CUDNN_DEFAULT_MATH allows TF32 since compute capability 8.0.
/// For bf16, CUDNN_TENSOR_OP_MATH allows tensor cores.
fn math_of(kind: Kind, settings: Settings) -> sys::cudnnMathType_t {
    match (kind, settings.tf32) {
        (Kind::Bf16, _) => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        (Kind::F32, true) => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        (Kind::F32, false) => sys::cudnnMathType_t::CUDNN_FMA_MATH,
    }
}

/// Algorithms that are offered at most: there are 8, 6 and 7.
const MOST_OFFERED: usize = 8;

/// What a function of cuDNN offers for a convolution, as it lists it and as [`choose`] reads it.
macro_rules! offered {
    ($function:path, $offer:ty, ($($argument:expr),*)) => {{
        let mut offers = [const { MaybeUninit::<$offer>::zeroed() }; MOST_OFFERED];
        let mut count: c_int = 0;
        // SAFETY: the descriptors are whole, and the list has as much room as is said.
        let offers: Vec<$offer> = unsafe {
            $function($($argument),*, MOST_OFFERED as c_int, &mut count, offers.as_mut_ptr().cast())
                .result()
                .map_err(Error::wrap)?;
            let count = (count.max(0) as usize).min(MOST_OFFERED);
            offers[..count].iter().map(|offer| offer.assume_init()).collect()
        };
        let candidates: Vec<Candidate> = offers
            .iter()
            .map(|offer| Candidate {
                algorithm: offer.algo as u32,
                math: offer.mathType as u32,
                works: offer.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS,
                deterministic: offer.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC,
                bytes: offer.memory,
            })
            .collect();
        (offers, candidates)
    }};
}

/// The algorithm of a pass and the way it multiplies: of what cuDNN's rules list, or what it measures.
macro_rules! chosen {
    ($shape:expr, $settings:expr, $algorithm:path, $offer:ty, $rules:path, $measured:path, $arguments:tt) => {{
        let (offers, candidates) = match $settings.deterministic {
            true => offered!($rules, $offer, $arguments),
            false => offered!($measured, $offer, $arguments),
        };
        let chosen = choose($shape.kind, &candidates, $settings)?;
        let is_it = |candidate: &Candidate| *candidate == chosen;
        let place = candidates.iter().position(is_it).unwrap_or_default();
        ($algorithm(offers[place].algo), offers[place].mathType)
    }};
}

impl Plan {
    fn new(
        handle: sys::cudnnHandle_t,
        shape: &Shape,
        pass: Pass,
        settings: Settings,
    ) -> Result<Plan> {
        let descriptors = Descriptors::new(shape, settings).map_err(Error::wrap)?;
        let Descriptors {
            x,
            y,
            weight: w,
            convolution: c,
        } = descriptors;
        let (algorithm, math) = match pass {
            Pass::Forward => chosen!(
                shape,
                settings,
                Algorithm::Forward,
                sys::cudnnConvolutionFwdAlgoPerf_t,
                sys::cudnnGetConvolutionForwardAlgorithm_v7,
                sys::cudnnFindConvolutionForwardAlgorithm,
                (handle, x, w, c, y)
            ),
            Pass::Data => chosen!(
                shape,
                settings,
                Algorithm::Data,
                sys::cudnnConvolutionBwdDataAlgoPerf_t,
                sys::cudnnGetConvolutionBackwardDataAlgorithm_v7,
                sys::cudnnFindConvolutionBackwardDataAlgorithm,
                (handle, w, y, c, x)
            ),
            Pass::Weights => chosen!(
                shape,
                settings,
                Algorithm::Weights,
                sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                sys::cudnnGetConvolutionBackwardFilterAlgorithm_v7,
                sys::cudnnFindConvolutionBackwardFilterAlgorithm,
                (handle, x, y, c, w)
            ),
        };
        // Without TF32 it stays as the descriptor was made: lists name some of those algorithms by the default.
        let math = match shape.kind == Kind::F32 && !settings.tf32 {
            true => math_of(shape.kind, settings),
            false => math,
        };
        // SAFETY: the descriptors are whole.
        let bytes = unsafe {
            result::set_convolution_math_type(c, math).map_err(Error::wrap)?;
            match algorithm {
                Algorithm::Forward(a) => {
                    result::get_convolution_forward_workspace_size(handle, x, w, c, y, a)
                }
                Algorithm::Data(a) => {
                    result::get_convolution_backward_data_workspace_size(handle, w, y, c, x, a)
                }
                Algorithm::Weights(a) => {
                    result::get_convolution_backward_filter_workspace_size(handle, x, y, c, w, a)
                }
            }
        };
        Ok(Plan {
            descriptors,
            algorithm,
            bytes: bytes.map_err(Error::wrap)?,
        })
    }

    fn run(
        &self,
        handle: sys::cudnnHandle_t,
        [a, b]: [Address; 2],
        to: Address,
        workspace: *mut c_void,
    ) -> std::result::Result<(), CudnnError> {
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = (
            from_ref(&one).cast::<c_void>(),
            from_ref(&zero).cast::<c_void>(),
        );
        let (a, b, to) = (
            a.0 as *const c_void,
            b.0 as *const c_void,
            to.0 as *mut c_void,
        );
        let Descriptors {
            x,
            y,
            weight,
            convolution,
        } = self.descriptors;
        let bytes = self.bytes;
        // SAFETY: the tensors are of the descriptors' shapes, and the workspace has as many bytes as the algorithm asked for.
        unsafe {
            match self.algorithm {
                Algorithm::Forward(algorithm) => result::convolution_forward(
                    handle,
                    one,
                    x,
                    a,
                    weight,
                    b,
                    convolution,
                    algorithm,
                    workspace,
                    bytes,
                    zero,
                    y,
                    to,
                ),
                Algorithm::Data(algorithm) => result::convolution_backward_data(
                    handle,
                    one,
                    weight,
                    a,
                    y,
                    b,
                    convolution,
                    algorithm,
                    workspace,
                    bytes,
                    zero,
                    x,
                    to,
                ),
                Algorithm::Weights(algorithm) => result::convolution_backward_filter(
                    handle,
                    one,
                    x,
                    a,
                    y,
                    b,
                    convolution,
                    algorithm,
                    workspace,
                    bytes,
                    zero,
                    weight,
                    to,
                ),
            }
        }
    }
}

// The numbers that the choice knows are cuDNN's.
const _: () = assert!(sys::cudnnMathType_t::CUDNN_FMA_MATH as u32 == FMA_MATH);
const _: () = assert!(sys::cudnnMathType_t::CUDNN_DEFAULT_MATH as u32 == DEFAULT_MATH);
