//! The card as a machine: candle's memory and stream, our module of kernels.
#![allow(unsafe_code)] // kernels are launched, and memory is had before it is written

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::cuda_backend::cudarc::driver::result::{memcpy_dtoh_async, memset_d8_async};
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED_ATTRIBUTE;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{Error, Layout, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::convolution::{Pass, Shape as Convolution};
use super::launch::{Address, Argument, Kind, Launch, Machine, SHARED_BYTES};
use super::notes::{Weight, note};
use super::product::product_of;
use super::recording::{self, Recording};
use super::settings::Without;
use super::{cublas, cudnn};

/// What nvcc made of `cuda/kernels.cu`.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// Memory of the card.
pub(crate) enum Memory {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
}

/// A card. All work goes to candle's stream, in order; so addresses are enough, and memory that is given back is used again
/// only after what was launched before.
pub(crate) struct Card<'a> {
    device: &'a CudaDevice,
    loaded: Arc<Loaded>,
}

/// The module on one card, and its kernels by name.
struct Loaded {
    module: Arc<CudaModule>,
    functions: Mutex<HashMap<&'static str, Function>>,
    /// Where launches go that are kept.
    recorder: recording::Recorder,
}

/// A kernel, and the bytes of shared memory that a block of it may have.
#[derive(Clone)]
struct Function {
    function: CudaFunction,
    shared: u32,
}

impl<'a> Card<'a> {
    pub(crate) fn of(device: &'a CudaDevice) -> Result<Card<'a>> {
        static LOADED: OnceLock<Mutex<HashMap<DeviceId, Arc<Loaded>>>> = OnceLock::new();
        let mut all = LOADED
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let loaded = match all.get(&device.id()) {
            Some(loaded) => loaded.clone(),
            None => {
                let context = device.cuda_stream().context().clone();
                let module = context
                    .load_module(Ptx::from_binary(KERNELS.to_vec()))
                    .map_err(Error::wrap)?;
                let loaded = Arc::new(Loaded {
                    module,
                    functions: Mutex::default(),
                    recorder: recording::Recorder::default(),
                });
                all.insert(device.id(), loaded.clone());
                loaded
            }
        };
        Ok(Card { device, loaded })
    }

    pub(crate) fn device(&self) -> &CudaDevice {
        self.device
    }

    /// Where work goes: candle's stream, or while launches are kept, the stream that keeps them.
    pub(crate) fn stream(&self) -> Arc<CudaStream> {
        recording::stream(self.device.id()).unwrap_or_else(|| self.device.cuda_stream())
    }

    /// Whether launches are kept, and what is not a launch is an error: the message says what it would have been.
    pub(crate) fn only_launches(&self, what: &str) -> Result<()> {
        match recording::stream(self.device.id()) {
            Some(_) => bail!("cuda: {what} while launches are kept"),
            None => Ok(()),
        }
    }

    /// A kernel that may have so many bytes of shared memory.
    fn function(&self, kernel: &'static str, shared: u32) -> Result<CudaFunction> {
        let functions = &self.loaded.functions;
        let mut functions = functions.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match functions.get_mut(kernel) {
            Some(loaded) => loaded,
            None => {
                self.only_launches("a kernel was loaded")?;
                let module = &self.loaded.module;
                let function = module.load_function(kernel).map_err(Error::wrap)?;
                functions.entry(kernel).or_insert(Function {
                    function,
                    shared: SHARED_BYTES,
                })
            }
        };
        if shared > loaded.shared {
            let set = loaded
                .function
                .set_attribute(SHARED_ATTRIBUTE, shared as i32);
            set.map_err(Error::wrap)?;
            loaded.shared = shared;
        }
        Ok(loaded.function.clone())
    }

    /// What follows speaks to this card.
    pub(crate) fn bind(&self) -> Result<()> {
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().map_err(Error::wrap)
    }

    /// So many numbers from there, once all that was launched is done.
    pub(crate) fn read<T: Copy + Default>(&self, from: u64, count: usize) -> Result<Vec<T>> {
        self.only_launches("numbers were read")?;
        self.bind()?;
        let stream = self.device.cuda_stream();
        let mut numbers = vec![T::default(); count];
        // SAFETY: there are so many, as the caller knows, and they are waited for.
        unsafe { memcpy_dtoh_async(&mut numbers, from, stream.cu_stream()) }
            .map_err(Error::wrap)?;
        stream.synchronize().map_err(Error::wrap)?;
        Ok(numbers)
    }

    /// Writes to so many bytes what is no number, neither in f32 nor in bf16.
    pub(crate) fn blur(&self, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: there are so many, as the caller knows.
        unsafe { memset_d8_async(from, 0xff, bytes, self.stream().cu_stream()) }
            .map_err(Error::wrap)
    }

    /// Memory as candle's storage.
    pub(crate) fn storage(&self, memory: Memory) -> CudaStorage {
        match memory {
            Memory::F32(slice) => CudaStorage::wrap_cuda_slice(slice, self.device.clone()),
            Memory::Bf16(slice) => CudaStorage::wrap_cuda_slice(slice, self.device.clone()),
        }
    }

    /// Memory as a tensor outside of candle's graph.
    pub(crate) fn tensor(&self, memory: Memory, shape: impl Into<Shape>) -> Tensor {
        let storage = Storage::Cuda(self.storage(memory));
        Tensor::from_storage(storage, shape, BackpropOp::none(), false)
    }

    /// The same where an argument needs a gradient.
    pub(crate) fn gradient(&self, memory: Memory, of: &Tensor) -> Option<Tensor> {
        of.track_op().then(|| self.tensor(memory, of.shape()))
    }

    /// Where the elements of an argument of a custom operation lie, which are f32.
    pub(crate) fn argument(
        &self,
        op: &str,
        name: &str,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> Result<Address> {
        match self.numbers(op, name, storage, layout)? {
            (Kind::F32, place) => Ok(place),
            (Kind::Bf16, _) => bail!("{op}: {name} is bf16, expected f32"),
        }
    }

    /// Where the elements of an argument of a custom operation lie, and of which kind they are.
    pub(crate) fn numbers(
        &self,
        op: &str,
        name: &str,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> Result<(Kind, Address)> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!(
                "{op}: {name} of shape {:?} is not contiguous",
                layout.dims()
            );
        };
        let stream = self.device.cuda_stream();
        let (kind, first, bytes) = match &storage.slice {
            CudaStorageSlice::F32(slice) => (Kind::F32, slice.device_ptr(&stream).0, 4),
            CudaStorageSlice::BF16(slice) => (Kind::Bf16, slice.device_ptr(&stream).0, 2),
            _ => bail!("{op}: {name} is neither f32 nor bf16"),
        };
        Ok((kind, Address(first + bytes * start as u64)))
    }

    /// Where the elements of a tensor lie, as long as it lives.
    pub(crate) fn place(&self, op: &str, name: &str, x: &Tensor) -> Result<Address> {
        let (storage, layout) = x.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok(self.numbers(op, name, storage, layout)?.1),
            _ => bail!(
                "{op}: {name} is on {:?}, expected a CUDA device",
                x.device().location()
            ),
        }
    }
}

impl Machine for Card<'_> {
    type Memory = Memory;
    type Recording = Recording;

    fn allocate(&self, kind: Kind, count: usize) -> Result<Memory> {
        self.only_launches("memory was allocated")?;
        let count = count.max(1);
        // SAFETY: whoever allocates has a kernel write all of it before anything reads it.
        unsafe {
            Ok(match kind {
                Kind::F32 => Memory::F32(self.device.alloc(count)?),
                Kind::Bf16 => Memory::Bf16(self.device.alloc(count)?),
            })
        }
    }

    fn upload(&self, words: &[u64]) -> Result<Memory> {
        self.only_launches("numbers were uploaded")?;
        let halves = words
            .iter()
            .flat_map(|&word| [word as u32, (word >> 32) as u32]);
        let floats: Vec<f32> = halves.map(f32::from_bits).collect();
        Ok(Memory::F32(self.device.clone_htod(&floats)?))
    }

    fn address(&self, memory: &Memory) -> Address {
        let stream = self.device.cuda_stream();
        Address(match memory {
            Memory::F32(slice) => slice.device_ptr(&stream).0,
            Memory::Bf16(slice) => slice.device_ptr(&stream).0,
        })
    }

    fn launch(&self, kernel: &'static str, launch: Launch, arguments: &[Argument]) -> Result<()> {
        self.bind()?;
        let function = self.function(kernel, launch.shared)?;
        let config = LaunchConfig {
            grid_dim: (launch.grid[0], launch.grid[1], 1),
            block_dim: (launch.block, 1, 1),
            shared_mem_bytes: launch.shared,
        };
        let stream = self.stream();
        let mut builder = stream.launch_builder(&function);
        for argument in arguments {
            builder.arg(&argument.0);
        }
        // SAFETY: the same calls run on the host in tests, where their arguments and every access are checked.
        unsafe { builder.launch(config) }.map_err(Error::wrap)?;
        Ok(())
    }

    fn convolve(
        &self,
        shape: &Convolution,
        pass: Pass,
        from: [Address; 2],
        to: Address,
    ) -> Result<()> {
        if let Some(product) = product_of(shape, pass)
            && !Without::CUBLAS.is_set()
        {
            match cublas::multiply(self, shape.kind, &product, from, to) {
                Ok(()) => return Ok(()),
                Err(why) => {
                    let why = first_line(&why);
                    let text = format!("cuBLAS makes no {product:?}; cuDNN does: {why}");
                    note(Weight::Fallback, text);
                }
            }
        }
        cudnn::convolve(self, shape, pass, from, to)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recording>> {
        if Without::GRAPHS.is_set() {
            return Ok(None);
        }
        self.bind()?;
        match self.loaded.recorder.record(self.device, work) {
            Ok((recording, launches)) => {
                let text = format!("{launches} launches are kept as one CUDA graph");
                note(Weight::Choice, text);
                Ok(Some(recording))
            }
            Err(why) => {
                let text = format!("launched one by one, not as a CUDA graph: {why}");
                note(Weight::Fallback, text);
                Ok(None)
            }
        }
    }

    fn replay(&self, recording: &Recording) -> Result<()> {
        self.only_launches("a recording was launched")?;
        self.bind()?;
        recording.launch()
    }
}

/// An error without the trace that candle may have put under it.
pub(crate) fn first_line(error: &Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
