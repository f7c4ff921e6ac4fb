//! Convolutions by cuDNN's engines: a graph of one operation, done by one of those that its heuristics propose.
//!
//! NVIDIA, "cuDNN backend API": descriptors are made, told their attributes and finished. Engines are the newer way into cuDNN;
//! kernels for Hopper's matrix units are reached by it.
#![allow(unsafe_code)] // a C library

use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::rc::Rc;

use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, sys};
use sys::cudnnBackendAttributeName_t as Name;
use sys::cudnnBackendAttributeType_t as Type;
use sys::cudnnBackendDescriptorType_t as Sort;
use sys::cudnnBackendHeurMode_t as Mode;

use super::convolution::{MOST_BYTES, Pass, Shape, admits, strides};
use super::launch::{Address, Kind};
use super::settings::Settings;

type Result<T> = std::result::Result<T, CudnnError>;

/// Engines that are tried for a convolution at most.
const MOST_TRIED: usize = 12;
/// Proposals that are read of a list at most.
const MOST_READ: usize = 32;
/// Addresses that engines work on are multiples of this.
const ALIGNED: u64 = 16;
/// What tensors are called: x, W and y.
const NAMES: [i64; 3] = [1, 2, 3];

/// One way to do a convolution.
pub(super) struct Engine {
    plan: Descriptor,
    pub(super) bytes: usize,
    // What it was made of may be what it is made of.
    _configuration: Rc<Descriptor>,
    _operation: Rc<Operation>,
}

/// Whether an engine may be asked to work on these.
pub(super) fn aligned(from: [Address; 2], to: Address) -> bool {
    let all = [from[0], from[1], to];
    all.iter().all(|address| address.0 % ALIGNED == 0)
}

/// Engines that keep to the settings, best first.
pub(super) fn proposals(
    handle: sys::cudnnHandle_t,
    shape: &Shape,
    pass: Pass,
    settings: Settings,
) -> Result<Vec<Engine>> {
    let operation = Rc::new(Operation::new(handle, shape, pass)?);
    let mut engines = Vec::new();
    for mode in [Mode::CUDNN_HEUR_MODE_A, Mode::CUDNN_HEUR_MODE_FALLBACK] {
        for configuration in operation.configurations(mode).unwrap_or_default() {
            if engines.len() == MOST_TRIED {
                return Ok(engines);
            }
            let fits = notes(&configuration)
                .is_ok_and(|(numbers, ways)| admits(shape.kind, &numbers, &ways, settings));
            if fits {
                engines.extend(Engine::new(handle, &operation, configuration).ok());
            }
        }
    }
    engines.retain(|engine| engine.bytes <= MOST_BYTES);
    Ok(engines)
}

impl Engine {
    fn new(
        handle: sys::cudnnHandle_t,
        operation: &Rc<Operation>,
        configuration: Descriptor,
    ) -> Result<Engine> {
        let plan = Descriptor::new(Sort::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set(
            Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
            Type::CUDNN_TYPE_HANDLE,
            &[handle],
        )?;
        plan.set_to(
            Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
            &configuration,
        )?;
        plan.finish()?;
        let mut bytes = [0i64];
        plan.get(
            Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
            Type::CUDNN_TYPE_INT64,
            &mut bytes,
        )?;
        Ok(Engine {
            plan,
            bytes: usize::try_from(bytes[0]).unwrap_or(usize::MAX),
            _configuration: Rc::new(configuration),
            _operation: operation.clone(),
        })
    }

    /// As the pass of a convolution; all addresses are aligned, and the memory to work in has as many bytes as are wanted.
    pub(super) fn run(
        &self,
        handle: sys::cudnnHandle_t,
        pass: Pass,
        [a, b]: [Address; 2],
        to: Address,
        workspace: *mut c_void,
    ) -> Result<()> {
        let [x, w, y] = match pass {
            Pass::Forward => [a, b, to],
            Pass::Data => [to, a, b],
            Pass::Weights => [a, to, b],
        };
        let pack = Descriptor::new(Sort::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        pack.set(
            Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
            Type::CUDNN_TYPE_VOID_PTR,
            &[x, w, y].map(|address| address.0 as *mut c_void),
        )?;
        pack.set(
            Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS,
            Type::CUDNN_TYPE_INT64,
            &NAMES,
        )?;
        pack.set(
            Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE,
            Type::CUDNN_TYPE_VOID_PTR,
            &[workspace],
        )?;
        pack.finish()?;
        // SAFETY: both are finished, and the addresses are of the shape's tensors.
        unsafe { sys::cudnnBackendExecute(handle, self.plan.0, pack.0) }.result()
    }
}

/// A graph of one convolution. What it is made of lives as long.
struct Operation {
    graph: Descriptor,
    _parts: [Descriptor; 5],
}

impl Operation {
    fn new(handle: sys::cudnnHandle_t, shape: &Shape, pass: Pass) -> Result<Operation> {
        let x = tensor(shape, NAMES[0], shape.x)?;
        let w = tensor(shape, NAMES[1], shape.weight)?;
        let y = tensor(shape, NAMES[2], shape.y)?;
        let convolution = convolution(shape)?;
        let operation = match pass {
            Pass::Forward => operation(
                Sort::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                (
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                ),
                &[
                    (
                        Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                        &convolution,
                    ),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, &x),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, &w),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, &y),
                ],
            ),
            Pass::Data => operation(
                Sort::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                (
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                ),
                &[
                    (
                        Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                        &convolution,
                    ),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, &w),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, &y),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, &x),
                ],
            ),
            Pass::Weights => operation(
                Sort::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                (
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                ),
                &[
                    (
                        Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                        &convolution,
                    ),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, &x),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, &y),
                    (Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, &w),
                ],
            ),
        }?;
        let graph = Descriptor::new(Sort::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.set(
            Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
            Type::CUDNN_TYPE_HANDLE,
            &[handle],
        )?;
        graph.set_to(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operation)?;
        graph.finish()?;
        Ok(Operation {
            graph,
            _parts: [x, w, y, convolution, operation],
        })
    }

    /// What cuDNN proposes.
    fn configurations(&self, mode: Mode) -> Result<Vec<Descriptor>> {
        let heuristics = Descriptor::new(Sort::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        heuristics.set_to(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &self.graph)?;
        heuristics.set(
            Name::CUDNN_ATTR_ENGINEHEUR_MODE,
            Type::CUDNN_TYPE_HEUR_MODE,
            &[mode],
        )?;
        heuristics.finish()?;
        let there = heuristics.count(
            Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
            Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
        )?;
        let mut configurations = (0..there.min(MOST_READ))
            .map(|_| Descriptor::new(Sort::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
            .collect::<Result<Vec<_>>>()?;
        let mut places: Vec<_> = configurations.iter().map(|one| one.0).collect();
        let count = heuristics.get(
            Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
            Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
            &mut places,
        )?;
        configurations.truncate(count);
        Ok(configurations)
    }
}

fn tensor(shape: &Shape, name: i64, sizes: [u32; 4]) -> Result<Descriptor> {
    let tensor = Descriptor::new(Sort::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    let stored = match shape.kind {
        Kind::F32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
        Kind::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
    };
    let whole = |name, numbers: &[i64]| tensor.set(name, Type::CUDNN_TYPE_INT64, numbers);
    tensor.set(
        Name::CUDNN_ATTR_TENSOR_DATA_TYPE,
        Type::CUDNN_TYPE_DATA_TYPE,
        &[stored],
    )?;
    whole(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &sizes.map(i64::from))?;
    whole(
        Name::CUDNN_ATTR_TENSOR_STRIDES,
        &strides(shape.order, sizes),
    )?;
    whole(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[name])?;
    whole(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNED as i64])?;
    tensor.finish()?;
    Ok(tensor)
}

fn convolution(shape: &Shape) -> Result<Descriptor> {
    let convolution = Descriptor::new(Sort::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
    let whole = |name, numbers: &[i64]| convolution.set(name, Type::CUDNN_TYPE_INT64, numbers);
    convolution.set(
        Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE,
        Type::CUDNN_TYPE_DATA_TYPE,
        &[sys::cudnnDataType_t::CUDNN_DATA_FLOAT],
    )?;
    convolution.set(
        Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
        Type::CUDNN_TYPE_CONVOLUTION_MODE,
        &[sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION],
    )?;
    let padding = shape.padding.map(i64::from);
    whole(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2])?;
    whole(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1, 1])?;
    whole(
        Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES,
        &[shape.stride.into(); 2],
    )?;
    whole(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &padding)?;
    whole(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &padding)?;
    convolution.finish()?;
    Ok(convolution)
}

/// An operation on descriptors: the result is written, and nothing is added to it.
fn operation(
    sort: Sort,
    (alpha, beta): (Name, Name),
    parts: &[(Name, &Descriptor)],
) -> Result<Descriptor> {
    let operation = Descriptor::new(sort)?;
    for (name, part) in parts {
        operation.set_to(*name, part)?;
    }
    operation.set(alpha, Type::CUDNN_TYPE_FLOAT, &[1f32])?;
    operation.set(beta, Type::CUDNN_TYPE_FLOAT, &[0f32])?;
    operation.finish()?;
    Ok(operation)
}

/// What is to be known of an engine's numbers and of its ways, by cuDNN's numbers: a newer one may know more than are named here.
fn notes(configuration: &Descriptor) -> Result<(Vec<u32>, Vec<u32>)> {
    let engine = Descriptor::new(Sort::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
    configuration.get(
        Name::CUDNN_ATTR_ENGINECFG_ENGINE,
        Type::CUDNN_TYPE_BACKEND_DESCRIPTOR,
        &mut [engine.0],
    )?;
    let read = |name, of, most: u32| {
        let mut notes = vec![0u32; most as usize];
        let count = engine.get(name, of, &mut notes)?;
        notes.truncate(count);
        Ok(notes)
    };
    Ok((
        read(
            Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
            Type::CUDNN_TYPE_NUMERICAL_NOTE,
            sys::cudnnBackendNumericalNote_t::CUDNN_NUMERICAL_NOTE_TYPE_COUNT as u32,
        )?,
        read(
            Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
            Type::CUDNN_TYPE_BEHAVIOR_NOTE,
            sys::cudnnBackendBehaviorNote_t::CUDNN_BEHAVIOR_NOTE_TYPE_COUNT as u32,
        )?,
    ))
}

/// Something that cuDNN keeps for us.
struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Descriptor {
    fn new(sort: Sort) -> Result<Descriptor> {
        let mut made = null_mut();
        // SAFETY: cuDNN writes one place.
        unsafe { sys::cudnnBackendCreateDescriptor(sort, &raw mut made) }.result()?;
        Ok(Descriptor(made))
    }

    /// An attribute of values of the type that is named.
    fn set<T>(&self, name: Name, of: Type, values: &[T]) -> Result<()> {
        let count = values.len() as i64;
        // SAFETY: there are so many values, which are copied.
        unsafe {
            sys::cudnnBackendSetAttribute(self.0, name, of, count, values.as_ptr().cast()).result()
        }
    }

    /// An attribute that is another descriptor.
    fn set_to(&self, name: Name, other: &Descriptor) -> Result<()> {
        let place = from_ref(&other.0).cast();
        let of = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        // SAFETY: it is one.
        unsafe { sys::cudnnBackendSetAttribute(self.0, name, of, 1, place).result() }
    }

    /// How many values an attribute has.
    fn count(&self, name: Name, of: Type) -> Result<usize> {
        let mut count = 0i64;
        // SAFETY: without room for them, only their number is given.
        unsafe { sys::cudnnBackendGetAttribute(self.0, name, of, 0, &raw mut count, null_mut()) }
            .result()?;
        Ok(count.max(0) as usize)
    }

    /// Writes an attribute's values, as many as there is room for, and says how many that are.
    fn get<T>(&self, name: Name, of: Type, values: &mut [T]) -> Result<usize> {
        let room = values.len() as i64;
        let mut count = 0i64;
        let place = values.as_mut_ptr().cast();
        // SAFETY: there is so much room.
        unsafe { sys::cudnnBackendGetAttribute(self.0, name, of, room, &raw mut count, place) }
            .result()?;
        Ok((count.max(0) as usize).min(values.len()))
    }

    fn finish(&self) -> Result<()> {
        // SAFETY: it is one.
        unsafe { sys::cudnnBackendFinalize(self.0) }.result()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

// The notes that `admits` knows are cuDNN's.
const _: () = {
    use sys::cudnnBackendBehaviorNote_t as Way;
    use sys::cudnnBackendNumericalNote_t as Number;
    assert!(Number::CUDNN_NUMERICAL_NOTE_TENSOR_CORE as u32 == super::convolution::TENSOR_CORE);
    assert!(
        Number::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS as u32
            == super::convolution::DOWN_CONVERTED
    );
    assert!(
        Number::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION as u32
            == super::convolution::REDUCED_SUMS
    );
    assert!(
        Number::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC as u32 == super::convolution::IN_ANY_ORDER
    );
    assert!(
        Way::CUDNN_BEHAVIOR_NOTE_SUPPORTS_CUDA_GRAPH_NATIVE_API as u32
            == super::convolution::NATIVE_GRAPHS
    );
};
