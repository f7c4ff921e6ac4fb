//! Launches that are kept as a CUDA graph: captured on a stream of their own, launched again on candle's.
//!
//! NVIDIA, "CUDA driver API", stream management (cuStreamBeginCapture_v2 and what may not be called meanwhile,
//! cuThreadExchangeStreamCaptureMode) and graph management (cuGraphInstantiateWithFlags, cuGraphLaunch).
//!
//! The stream is not candle's, so that nothing that candle does meanwhile, on whatever thread, comes into the graph or breaks it.
//! The capture is thread-local: what could break it from this thread is refused by the driver, and other threads go on.
#![allow(unsafe_code)] // graphs have owners here that the driver does not know

use std::cell::RefCell;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as THREAD_LOCAL;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, result, sys};
use candle_core::cuda_backend::{CudaDevice, DeviceId};
use candle_core::{Error, Result};

use super::card::first_line;
use super::{cublas, cudnn};

thread_local! {
    /// The card whose launches this thread keeps, and the stream that keeps them.
    static KEEPING: RefCell<Option<(DeviceId, Arc<CudaStream>)>> = const { RefCell::new(None) };
}

/// The stream that keeps a card's launches on this thread, if they are kept.
pub(super) fn stream(card: DeviceId) -> Option<Arc<CudaStream>> {
    KEEPING.with_borrow(|keeping| match keeping {
        Some((id, stream)) if *id == card => Some(stream.clone()),
        _ => None,
    })
}

/// Keeps launches of one card. The stream stays: libraries may remember it.
#[derive(Default)]
pub(super) struct Recorder(Mutex<Option<Arc<CudaStream>>>);

/// A graph that can be launched, and the memory that its launches use besides what they are told.
pub(crate) struct Recording {
    // In this order: the graph is gone before the memory.
    graph: Mutex<Graph>,
    _memory: Vec<Arc<CudaSlice<u8>>>,
}

struct Graph {
    executable: sys::CUgraphExec,
    stream: Arc<CudaStream>,
}

// SAFETY: a graph may be launched and destroyed from any thread, by one at a time.
unsafe impl Send for Graph {}

impl Recorder {
    /// What `work` launches, and how many launches it is; or why it cannot be kept, and then none was launched.
    pub(super) fn record(
        &self,
        device: &CudaDevice,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> std::result::Result<(Recording, usize), String> {
        if KEEPING.with_borrow(Option::is_some) {
            return Err("launches are kept already".to_owned());
        }
        let mut recorder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match &*recorder {
            Some(stream) => stream.clone(),
            None => {
                let made = device.cuda_stream().context().new_stream();
                let made = made.map_err(|e| format!("no stream for it: {e}"))?;
                recorder.insert(made).clone()
            }
        };
        let mut capture = Capture::begin(device.id(), stream)?;
        let done = work();
        let captured = capture.end();
        // What went wrong at first says more than that the capture broke off.
        done.map_err(|e| first_line(&e))?;
        let captured = captured?;
        let launches = captured.nodes()?;
        if launches == 0 {
            return Err("nothing was launched".to_owned());
        }
        let executable = captured.instantiate()?;
        let graph = Graph {
            executable,
            stream: device.cuda_stream(),
        };
        let memory = [cudnn::memory(device.id()), cublas::memory(device.id())];
        let recording = Recording {
            graph: Mutex::new(graph),
            _memory: memory.into_iter().flatten().collect(),
        };
        Ok((recording, launches))
    }
}

impl Recording {
    pub(super) fn launch(&self) -> Result<()> {
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the graph is whole, and the stream is of its context.
        unsafe { result::graph::launch(graph.executable, graph.stream.cu_stream()) }
            .map_err(Error::wrap)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // It may still run. At the end of a program there may be nothing left to wait for or to destroy.
        let _ = self.stream.synchronize();
        // SAFETY: it is not used again.
        let _ = unsafe { result::graph::exec_destroy(self.executable) };
    }
}

/// A stream that keeps what is launched there. It is ended in any case: a stream left in it could do nothing any more.
struct Capture {
    stream: Arc<CudaStream>,
    open: bool,
}

impl Capture {
    fn begin(card: DeviceId, stream: Arc<CudaStream>) -> std::result::Result<Capture, String> {
        // SAFETY: the stream is alive, and nobody else's.
        unsafe { result::stream::begin_capture(stream.cu_stream(), THREAD_LOCAL) }
            .map_err(|e| format!("no capture begins: {e}"))?;
        KEEPING.set(Some((card, stream.clone())));
        Ok(Capture { stream, open: true })
    }

    fn end(&mut self) -> std::result::Result<Captured, String> {
        KEEPING.set(None);
        self.open = false;
        // SAFETY: the stream is alive, and this is the thread that began.
        let graph = unsafe { result::stream::end_capture(self.stream.cu_stream()) }
            .map_err(|e| format!("the capture broke off: {e}"))?;
        match graph.is_null() {
            true => Err("the capture broke off".to_owned()),
            false => Ok(Captured(graph)),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.open {
            let _ = self.end();
        }
    }
}

/// What a graph that can be launched is made of.
struct Captured(sys::CUgraph);

impl Captured {
    fn nodes(&self) -> std::result::Result<usize, String> {
        let mut count = 0;
        // SAFETY: the graph is whole; without a list, only their number is given.
        unsafe { sys::cuGraphGetNodes(self.0, null_mut(), &raw mut count) }
            .result()
            .map_err(|e| format!("the graph is not readable: {e}"))?;
        Ok(count)
    }

    fn instantiate(&self) -> std::result::Result<sys::CUgraphExec, String> {
        // SAFETY: the graph is whole.
        unsafe { result::graph::instantiate(self.0, sys::CUgraphInstantiate_flags(0)) }
            .map_err(|e| format!("it does not become a graph: {e}"))
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: it is not used again; what was made of it stays.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}
