//! Convolutions by cuDNN: descriptors and algorithm of every shape are kept, and so is the memory that algorithms work in.
//!
//! NVIDIA, "cuDNN API reference", the functions of `cudnn_cnn`: cudnnConvolutionForward, cudnnConvolutionBackwardData,
//! cudnnConvolutionBackwardFilter; their `_v7` heuristics, and their Find...Ex functions, which measure.
#![allow(unsafe_code)] // a C library

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{from_ref, null_mut};
use std::sync::Arc;

use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, result, sys};
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{Error, Result, bail};
use half::bf16;

use super::card::{Card, first_line};
use super::convolution::{
    Candidate, DEFAULT_MATH, FMA_MATH, MOST_BYTES, Order, Pass, Shape, alike, countable, fitting,
};
use super::engines::{self, Engine};
use super::launch::{Address, Kind};
use super::notes::{Weight, note};
use super::settings::{Settings, Without};

thread_local! {
    /// cuDNN's handles are for one thread each.
    static LIBRARIES: RefCell<HashMap<DeviceId, Library>> = RefCell::default();
}

/// cuDNN on one card.
struct Library {
    handle: sys::cudnnHandle_t,
    /// Where its work goes.
    stream: Arc<CudaStream>,
    plans: HashMap<(Shape, Pass, Settings), Plan>,
    workspace: Option<Arc<CudaSlice<u8>>>,
}

/// How one convolution is done: by an engine, if there is one and addresses are what it wants, otherwise by an algorithm.
struct Plan {
    engine: Option<Engine>,
    descriptors: Descriptors,
    algorithm: Algorithm,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    Weights(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// A convolution, a data gradient or a gradient of the weights: of x and W to y, of W and dL/dy to dL/dx, of x and dL/dy to
/// dL/dW. Everything is contiguous, of the shape, its order and its kind, and the result is written whole, if need be more than
/// once.
pub(crate) fn convolve(
    card: &Card<'_>,
    shape: &Shape,
    pass: Pass,
    from: [Address; 2],
    to: Address,
) -> Result<()> {
    card.bind()?;
    LIBRARIES.with_borrow_mut(|libraries| {
        let library = match libraries.entry(card.device().id()) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(Library::open(card)?),
        };
        library.convolve(card, shape, pass, from, to)
    })
}

/// The memory that algorithms work in on this thread. It is not moved while launches are kept, and never freed while somebody
/// holds it.
pub(super) fn memory(card: DeviceId) -> Option<Arc<CudaSlice<u8>>> {
    LIBRARIES.with_borrow(|libraries| libraries.get(&card)?.workspace.clone())
}

impl Library {
    fn open(card: &Card<'_>) -> Result<Library> {
        card.only_launches("cuDNN was opened")?;
        let stream = card.stream();
        let handle = result::create_handle().map_err(Error::wrap)?;
        let library = Library {
            handle,
            stream,
            plans: HashMap::new(),
            workspace: None,
        };
        library.set_stream()?;
        Ok(library)
    }

    fn set_stream(&self) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::set_stream(self.handle, self.stream.cu_stream().cast()) }
            .map_err(Error::wrap)
    }

    fn convolve(
        &mut self,
        card: &Card<'_>,
        shape: &Shape,
        pass: Pass,
        from: [Address; 2],
        to: Address,
    ) -> Result<()> {
        let stream = card.stream();
        if stream.cu_stream() != self.stream.cu_stream() {
            self.stream = stream;
            self.set_stream()?;
        }
        let key = (*shape, pass, Settings::now());
        if let Some(plan) = self.plans.get(&key) {
            if let Some(engine) = plan.engine.as_ref().filter(|_| engines::aligned(from, to)) {
                let workspace = workspace(&mut self.workspace, card, engine.bytes)?;
                let ran = engine.run(self.handle, pass, from, to, workspace);
                return ran.map_err(Error::wrap);
            }
            let workspace = workspace(&mut self.workspace, card, plan.bytes)?;
            return plan
                .run(self.handle, from, to, workspace)
                .map_err(Error::wrap);
        }
        card.only_launches("a convolution came for the first time")?;
        let mut plan = self.first(card, key, from, to)?;
        let wanted = shape.order == Order::Pixels
            && shape.groups == 1
            && engines::aligned(from, to)
            && !Without::ENGINES.is_set();
        if wanted {
            match self.engine(card, &plan, key, from, to) {
                Ok(engine) => plan.engine = engine,
                Err(why) => {
                    let shape = described(shape, pass);
                    let text = format!("no engine of cuDNN for {shape}: {}", first_line(&why));
                    note(Weight::Fallback, text);
                    // What an engine may have left there is done again.
                    let workspace = workspace(&mut self.workspace, card, plan.bytes)?;
                    plan.run(self.handle, from, to, workspace)
                        .map_err(Error::wrap)?;
                }
            }
        }
        self.plans.insert(key, plan);
        Ok(())
    }

    /// Does a convolution of a new shape, by the first of the algorithms on offer that does it.
    fn first(
        &mut self,
        card: &Card<'_>,
        (shape, pass, settings): (Shape, Pass, Settings),
        from: [Address; 2],
        to: Address,
    ) -> Result<Plan> {
        countable(&shape)?;
        let mut plan = Plan {
            engine: None,
            descriptors: Descriptors::new(&shape, settings).map_err(Error::wrap)?,
            algorithm: Algorithm::of(pass, settings)[0],
            bytes: 0,
        };
        let mut failures = Vec::new();
        for offer in self.offers(card, &plan.descriptors, (&shape, pass, settings), from, to) {
            plan.algorithm = offer.algorithm;
            match self.attempt(card, &mut plan, offer.math, from, to) {
                Ok(()) => {
                    let text = format!(
                        "{} by cuDNN: {:?}, {:?}, {} KiB, {}",
                        described(&shape, pass),
                        offer.algorithm,
                        offer.math,
                        plan.bytes.div_ceil(1024),
                        offer.source
                    );
                    note(Weight::Choice, text);
                    return Ok(plan);
                }
                Err(why) => failures.push(format!("{:?}: {}", offer.algorithm, first_line(&why))),
            }
        }
        bail!(
            "conv2d: cuDNN has no algorithm for {} with {settings:?}: {}",
            described(&shape, pass),
            failures.join("; ")
        )
    }

    /// The engine that a convolution is to be done by from now on, if it is better than the algorithm that has just done it; it
    /// has done it then. Where results are to be the same every time it is the first that cuDNN proposes, otherwise the fastest.
    /// What an engine makes is held against what is there.
    fn engine(
        &mut self,
        card: &Card<'_>,
        plan: &Plan,
        (shape, pass, settings): (Shape, Pass, Settings),
        from: [Address; 2],
        to: Address,
    ) -> Result<Option<Engine>> {
        let proposals =
            engines::proposals(self.handle, &shape, pass, settings).map_err(Error::wrap)?;
        if proposals.is_empty() {
            let shape = described(&shape, pass);
            let text = format!("{shape}: no engine that is proposed keeps to the settings");
            note(Weight::Choice, text);
            return Ok(None);
        }
        let expected = sample(card, &shape, pass, to)?;
        let handle = self.handle;
        let room = workspace(&mut self.workspace, card, plan.bytes)?;
        let mut time = match settings.deterministic {
            true => f32::INFINITY,
            false => seconds(card, || plan.run(handle, from, to, room))?,
        };
        let (mut best, mut failures) = (None, Vec::new());
        for engine in proposals {
            let attempt = (|| {
                let room = workspace(&mut self.workspace, card, engine.bytes)?;
                let run = || engine.run(handle, pass, from, to, room);
                let (numbers, size) = extent(&shape, pass);
                card.blur(to.0, numbers * size)?;
                run().map_err(Error::wrap)?;
                if !alike(&expected, &sample(card, &shape, pass, to)?) {
                    bail!("its result is another than that of {:?}", plan.algorithm);
                }
                match settings.deterministic {
                    true => Ok(0.0),
                    false => seconds(card, run),
                }
            })();
            match attempt {
                Ok(its) if its < time => (time, best) = (its, Some(engine)),
                Ok(_) => {}
                Err(why) => failures.push(first_line(&why)),
            }
            if settings.deterministic && best.is_some() {
                break;
            }
        }
        let shape = described(&shape, pass);
        match best {
            Some(engine) => {
                let room = workspace(&mut self.workspace, card, engine.bytes)?;
                engine
                    .run(handle, pass, from, to, room)
                    .map_err(Error::wrap)?;
                let kib = engine.bytes.div_ceil(1024);
                let way = match settings.deterministic {
                    true => "the first that is proposed".to_owned(),
                    false => format!("the fastest, {:.1} us", 1e6 * time),
                };
                let text = format!("{shape} by an engine of cuDNN's, {kib} KiB, {way}");
                note(Weight::Choice, text);
                Ok(Some(engine))
            }
            None if failures.is_empty() => {
                let text = format!("{shape}: no engine is faster than {:?}", plan.algorithm);
                note(Weight::Choice, text);
                let room = workspace(&mut self.workspace, card, plan.bytes)?;
                plan.run(handle, from, to, room).map_err(Error::wrap)?;
                Ok(None)
            }
            None => bail!("{}", failures.join("; ")),
        }
    }

    fn attempt(
        &mut self,
        card: &Card<'_>,
        plan: &mut Plan,
        math: sys::cudnnMathType_t,
        from: [Address; 2],
        to: Address,
    ) -> Result<()> {
        plan.bytes = plan
            .descriptors
            .bytes(self.handle, plan.algorithm, math)
            .map_err(Error::wrap)?;
        if plan.bytes > MOST_BYTES {
            bail!("it wants {} bytes to work in", plan.bytes);
        }
        let workspace = workspace(&mut self.workspace, card, plan.bytes)?;
        plan.run(self.handle, from, to, workspace)
            .map_err(Error::wrap)
    }

    /// What may be tried for a convolution, best first: measured, or by cuDNN's rules where results are to be the same every
    /// time, and in any case the algorithms that every version has.
    fn offers(
        &self,
        card: &Card<'_>,
        descriptors: &Descriptors,
        (shape, pass, settings): (&Shape, Pass, Settings),
        from: [Address; 2],
        to: Address,
    ) -> Vec<Offer> {
        let mut offers = Vec::new();
        if !settings.deterministic {
            let room = room_to_measure(card);
            match measured(self.handle, descriptors, pass, from, to, room.as_ref()) {
                Ok(measured) => offers.extend(measured),
                Err(why) => {
                    let shape = described(shape, pass);
                    let text = format!("cuDNN measures nothing for {shape}: {why}");
                    note(Weight::Fallback, text);
                }
            }
        }
        if offers.is_empty() {
            match by_rule(self.handle, descriptors, pass) {
                Ok(by_rule) => offers.extend(by_rule),
                Err(why) => {
                    let shape = described(shape, pass);
                    let text = format!("cuDNN has no rule for {shape}: {why}");
                    note(Weight::Fallback, text);
                }
            }
        }
        let candidates: Vec<Candidate> = offers.iter().map(|offer| offer.candidate).collect();
        let own = math_of(shape.kind, settings);
        let mut fit: Vec<Offer> = fitting(shape.kind, &candidates, settings)
            .into_iter()
            .map(|place| offers[place])
            .collect();
        for offer in &mut fit {
            // Without TF32 it stays as the descriptor was made: lists name some of those algorithms by the default.
            if shape.kind == Kind::F32 && !settings.tf32 {
                offer.math = own;
            }
        }
        let always = Algorithm::of(pass, settings).into_iter();
        fit.extend(always.map(|algorithm| Offer::always(algorithm, own)));
        fit
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: it is not used again. At the end of a program there may be nothing left to free.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The numbers of a result, and the bytes of each.
fn extent(shape: &Shape, pass: Pass) -> (usize, usize) {
    let of = match pass {
        Pass::Forward => shape.y,
        Pass::Data => shape.x,
        Pass::Weights => shape.weight,
    };
    let numbers = of.iter().map(|&size| size as usize).product();
    (numbers, shape.kind.bytes())
}

/// Numbers from the begin and from the end of a result.
fn sample(card: &Card<'_>, shape: &Shape, pass: Pass, to: Address) -> Result<Vec<f32>> {
    const MOST: usize = 1 << 14;
    let (count, bytes) = extent(shape, pass);
    let read = count.min(MOST);
    let mut numbers = Vec::with_capacity(2 * read);
    for first in [0, count - read] {
        let from = to.0 + (bytes * first) as u64;
        match shape.kind {
            Kind::F32 => numbers.extend(card.read::<f32>(from, read)?),
            Kind::Bf16 => {
                let halves = card.read::<bf16>(from, read)?;
                numbers.extend(halves.into_iter().map(bf16::to_f32));
            }
        }
    }
    Ok(numbers)
}

/// How long something takes that has been done before.
fn seconds(card: &Card<'_>, run: impl Fn() -> std::result::Result<(), CudnnError>) -> Result<f32> {
    const TIMES: u16 = 5;
    let stream = card.stream();
    let moment = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    let begin = moment().map_err(Error::wrap)?;
    for _ in 0..TIMES {
        run().map_err(Error::wrap)?;
    }
    let end = moment().map_err(Error::wrap)?;
    let milliseconds = begin.elapsed_ms(&end).map_err(Error::wrap)?;
    Ok(milliseconds / 1e3 / f32::from(TIMES))
}

/// A convolution in words.
fn described(shape: &Shape, pass: Pass) -> String {
    let Shape {
        kind,
        order,
        x,
        weight,
        padding,
        stride,
        groups,
        ..
    } = shape;
    let pass = match pass {
        Pass::Forward => "the convolution",
        Pass::Data => "dL/dx of the convolution",
        Pass::Weights => "dL/dW of the convolution",
    };
    let groups = match groups {
        1 => String::new(),
        groups => format!(", {groups} groups"),
    };
    format!(
        "{pass} of x {x:?} by {weight:?}, stride {stride}, padding {padding:?}{groups}, {kind:?} in {order:?}"
    )
}

/// So many bytes, of the memory that is kept if it is large enough. What still runs in the old has it to itself: memory is
/// freed in the order of the stream.
fn workspace(
    kept: &mut Option<Arc<CudaSlice<u8>>>,
    card: &Card<'_>,
    bytes: usize,
) -> Result<*mut c_void> {
    if bytes == 0 {
        return Ok(null_mut());
    }
    if kept.as_ref().is_none_or(|kept| kept.num_bytes() < bytes) {
        card.only_launches("memory to work in was allocated")?;
        *kept = None;
        // SAFETY: algorithms write what they read of it.
        *kept = Some(Arc::new(unsafe { card.device().alloc::<u8>(bytes) }?));
    }
    Ok(kept
        .as_ref()
        .map_or(null_mut(), |kept| place_of(card, kept)))
}

fn place_of(card: &Card<'_>, memory: &CudaSlice<u8>) -> *mut c_void {
    memory.device_ptr(&card.device().cuda_stream()).0 as *mut c_void
}

/// Memory for algorithms that are measured: as much as one may have, or what there is.
fn room_to_measure(card: &Card<'_>) -> Option<(CudaSlice<u8>, *mut c_void)> {
    let sizes = std::iter::successors(Some(MOST_BYTES), |bytes| Some(bytes / 4));
    let mut sizes = sizes.take_while(|&bytes| bytes >= 1 << 22);
    // SAFETY: algorithms write what they read of it.
    let memory = sizes.find_map(|bytes| unsafe { card.device().alloc::<u8>(bytes) }.ok())?;
    let place = place_of(card, &memory);
    Some((memory, place))
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

impl Descriptors {
    /// The bytes that an algorithm works in, multiplying in this way, which it then does.
    fn bytes(
        &self,
        handle: sys::cudnnHandle_t,
        algorithm: Algorithm,
        math: sys::cudnnMathType_t,
    ) -> std::result::Result<usize, CudnnError> {
        let Descriptors {
            x,
            y,
            weight: w,
            convolution: c,
        } = *self;
        // SAFETY: the descriptors are whole.
        unsafe {
            result::set_convolution_math_type(c, math)?;
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
        }
    }
}

impl Algorithm {
    /// Those that every version has for a pass: the first always gives the same bits.
    fn of(pass: Pass, settings: Settings) -> Vec<Algorithm> {
        use sys::cudnnConvolutionBwdDataAlgo_t as ToData;
        use sys::cudnnConvolutionBwdFilterAlgo_t as ToWeights;
        use sys::cudnnConvolutionFwdAlgo_t as Forward;
        let both = match pass {
            Pass::Forward => {
                return [
                    Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
                    Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM,
                ]
                .map(Algorithm::Forward)
                .to_vec();
            }
            Pass::Data => [
                ToData::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
                ToData::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0,
            ]
            .map(Algorithm::Data),
            Pass::Weights => [
                ToWeights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
                ToWeights::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0,
            ]
            .map(Algorithm::Weights),
        };
        // The second of these adds up in any order.
        both[..if settings.deterministic { 1 } else { 2 }].to_vec()
    }
}

/// What may be tried, and who says so.
#[derive(Clone, Copy)]
struct Offer {
    algorithm: Algorithm,
    math: sys::cudnnMathType_t,
    candidate: Candidate,
    source: &'static str,
}

impl Offer {
    /// One that was not asked for.
    fn always(algorithm: Algorithm, math: sys::cudnnMathType_t) -> Offer {
        Offer {
            algorithm,
            math,
            candidate: Candidate {
                algorithm: 0,
                math: math as u32,
                works: true,
                deterministic: true,
                bytes: 0,
            },
            source: "as ever",
        }
    }
}

/// Offers at most: there are 8, 6 and 7 algorithms, in at most two ways to multiply.
const MOST_OFFERED: usize = 16;

/// What a function of cuDNN offers for a convolution.
macro_rules! offered {
    ($function:path, $offer:ty, $algorithm:path, $source:expr, ($($before:expr),*), ($($after:expr),*)) => {{
        let mut offers = [const { MaybeUninit::<$offer>::zeroed() }; MOST_OFFERED];
        let mut count: c_int = 0;
        // SAFETY: the descriptors are whole, the memory is of their shapes, and the list has as much room as is said.
        let offers: Vec<$offer> = unsafe {
            $function(
                $($before,)*
                MOST_OFFERED as c_int,
                &mut count,
                offers.as_mut_ptr().cast()
                $(, $after)*
            )
            .result()?;
            let count = (count.max(0) as usize).min(MOST_OFFERED);
            offers[..count].iter().map(|offer| offer.assume_init()).collect()
        };
        let offer = |offer: &$offer| Offer {
            algorithm: $algorithm(offer.algo),
            math: offer.mathType,
            candidate: Candidate {
                algorithm: offer.algo as u32,
                math: offer.mathType as u32,
                works: offer.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS,
                deterministic: offer.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC,
                bytes: offer.memory,
            },
            source: $source,
        };
        offers.iter().map(offer).collect()
    }};
}

/// By cuDNN's rules, without trying.
fn by_rule(
    handle: sys::cudnnHandle_t,
    descriptors: &Descriptors,
    pass: Pass,
) -> std::result::Result<Vec<Offer>, CudnnError> {
    const SOURCE: &str = "by its rules";
    let Descriptors {
        x,
        y,
        weight: w,
        convolution: c,
    } = *descriptors;
    Ok(match pass {
        Pass::Forward => offered!(
            sys::cudnnGetConvolutionForwardAlgorithm_v7,
            sys::cudnnConvolutionFwdAlgoPerf_t,
            Algorithm::Forward,
            SOURCE,
            (handle, x, w, c, y),
            ()
        ),
        Pass::Data => offered!(
            sys::cudnnGetConvolutionBackwardDataAlgorithm_v7,
            sys::cudnnConvolutionBwdDataAlgoPerf_t,
            Algorithm::Data,
            SOURCE,
            (handle, w, y, c, x),
            ()
        ),
        Pass::Weights => offered!(
            sys::cudnnGetConvolutionBackwardFilterAlgorithm_v7,
            sys::cudnnConvolutionBwdFilterAlgoPerf_t,
            Algorithm::Weights,
            SOURCE,
            (handle, x, y, c, w),
            ()
        ),
    })
}

/// By trying all, with the numbers themselves: the result is written, and will be again.
fn measured(
    handle: sys::cudnnHandle_t,
    descriptors: &Descriptors,
    pass: Pass,
    [a, b]: [Address; 2],
    to: Address,
    room: Option<&(CudaSlice<u8>, *mut c_void)>,
) -> std::result::Result<Vec<Offer>, CudnnError> {
    const SOURCE: &str = "measured";
    let Descriptors {
        x,
        y,
        weight: w,
        convolution: c,
    } = *descriptors;
    let (a, b, to) = (
        a.0 as *const c_void,
        b.0 as *const c_void,
        to.0 as *mut c_void,
    );
    let (room, bytes) = room.map_or((null_mut(), 0), |(memory, room)| {
        (*room, memory.num_bytes())
    });
    Ok(match pass {
        Pass::Forward => offered!(
            sys::cudnnFindConvolutionForwardAlgorithmEx,
            sys::cudnnConvolutionFwdAlgoPerf_t,
            Algorithm::Forward,
            SOURCE,
            (handle, x, a, w, b, c, y, to),
            (room, bytes)
        ),
        Pass::Data => offered!(
            sys::cudnnFindConvolutionBackwardDataAlgorithmEx,
            sys::cudnnConvolutionBwdDataAlgoPerf_t,
            Algorithm::Data,
            SOURCE,
            (handle, w, a, y, b, c, x, to),
            (room, bytes)
        ),
        Pass::Weights => offered!(
            sys::cudnnFindConvolutionBackwardFilterAlgorithmEx,
            sys::cudnnConvolutionBwdFilterAlgoPerf_t,
            Algorithm::Weights,
            SOURCE,
            (handle, x, a, y, b, c, w, to),
            (room, bytes)
        ),
    })
}

impl Plan {
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
