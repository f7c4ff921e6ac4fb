//! Page-locked memory: a few buffers for each card, used in turn.
#![allow(unsafe_code)] // memory of the driver's

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, DevicePtrMut, DeviceRepr, PinnedHostSlice, result, sys,
};
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaDevice, CudaStorage, Device, Error, Result, Storage, Tensor};

use super::ring::{Copies, Ring};
use crate::cuda::card::first_line;
use crate::cuda::notes::{Weight, note};
use crate::cuda::settings::Without;

/// Images and noise of six passes: so far the host may be ahead.
const BUFFERS: usize = 12;
/// Buffers are whole multiples of this.
const GRAIN: usize = 64 << 10;
/// What is larger goes to a card once, if at all.
const LARGEST: usize = 256 << 20;

/// Whether it failed once.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// The tensor on a card, if it goes to one from the host and can go this way.
pub(super) fn upload(x: &Tensor, device: &Device) -> Option<Tensor> {
    let Device::Cuda(card) = device else {
        return None;
    };
    let bytes = x.elem_count().checked_mul(x.dtype().size_in_bytes())?;
    let fits = (1..LARGEST).contains(&bytes) && x.device().is_cpu() && !x.track_op();
    if !fits || Without::PINNED.is_set() || GIVEN_UP.load(Ordering::Relaxed) {
        return None;
    }
    match copied(x, card) {
        Ok(copied) => copied,
        Err(why) => {
            GIVEN_UP.store(true, Ordering::Relaxed);
            let why = first_line(&why);
            let text = format!("uploaded from ordinary memory, not from page-locked: {why}");
            note(Weight::Fallback, text);
            None
        }
    }
}

/// None where numbers are of a kind that is not uploaded this way.
fn copied(x: &Tensor, card: &CudaDevice) -> Result<Option<Tensor>> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        return Ok(None);
    };
    let there = match storage {
        CpuStorage::U8(numbers) => sent(&numbers[start..end], card)?,
        CpuStorage::U32(numbers) => sent(&numbers[start..end], card)?,
        CpuStorage::I64(numbers) => sent(&numbers[start..end], card)?,
        CpuStorage::BF16(numbers) => sent(&numbers[start..end], card)?,
        CpuStorage::F32(numbers) => sent(&numbers[start..end], card)?,
        CpuStorage::F64(numbers) => sent(&numbers[start..end], card)?,
        _ => return Ok(None),
    };
    let there = Storage::Cuda(there);
    let shape = x.shape().clone();
    Ok(Some(Tensor::from_storage(
        there,
        shape,
        BackpropOp::none(),
        false,
    )))
}

fn sent<T: DeviceRepr + CudaDType>(numbers: &[T], card: &CudaDevice) -> Result<CudaStorage> {
    // SAFETY: plain numbers, read as the bytes that they are.
    let bytes: &[u8] = unsafe {
        std::slice::from_raw_parts(numbers.as_ptr().cast(), std::mem::size_of_val(numbers))
    };
    // SAFETY: it is written whole below, before anything that is launched later reads it.
    let mut there = unsafe { card.alloc::<T>(numbers.len()) }?;
    let stream = card.cuda_stream();
    let locked = Locked(stream.context().clone());
    let mut rings = rings();
    let ring = rings.entry(card.id()).or_insert_with(|| Ring::new(BUFFERS));
    let mut buffer = ring.take(&locked, bytes.len())?;
    let filled = buffer.as_mut_slice().map_err(Error::wrap)?;
    filled[..bytes.len()].copy_from_slice(bytes);
    {
        let (to, _told) = there.device_ptr_mut(&stream);
        // SAFETY: both are large enough; the buffer is left alone until the copy has arrived.
        unsafe { result::memcpy_htod_async(to, &filled[..bytes.len()], stream.cu_stream()) }
            .map_err(Error::wrap)?;
    }
    // An event that sleeps while it is waited for, and does not spin.
    let flags = Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC);
    match stream.record_event(flags) {
        Ok(arrival) => ring.give(buffer, arrival),
        Err(why) => {
            // When it will have arrived is not known.
            std::mem::forget(buffer);
            return Err(Error::wrap(why));
        }
    }
    Ok(CudaStorage::wrap_cuda_slice(there, card.clone()))
}

/// The buffers of each card. They stay to the end of the program.
fn rings() -> std::sync::MutexGuard<'static, HashMap<DeviceId, Ring<Locked>>> {
    static RINGS: OnceLock<Mutex<HashMap<DeviceId, Ring<Locked>>>> = OnceLock::new();
    let rings = RINGS.get_or_init(Mutex::default);
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that the driver has locked.
struct Locked(Arc<CudaContext>);

impl Copies for Locked {
    type Buffer = PinnedHostSlice<u8>;
    type Arrival = CudaEvent;

    fn buffer(&self, bytes: usize) -> Result<PinnedHostSlice<u8>> {
        // SAFETY: it is written before it is read.
        unsafe {
            self.0
                .alloc_pinned_with_flags(bytes.next_multiple_of(GRAIN), 0)
        }
        .map_err(Error::wrap)
    }

    fn bytes(&self, buffer: &PinnedHostSlice<u8>) -> usize {
        buffer.len()
    }

    fn has_arrived(&self, arrival: &CudaEvent) -> Result<bool> {
        self.0.bind_to_thread().map_err(Error::wrap)?;
        arrival.try_is_complete().map_err(Error::wrap)
    }

    fn wait(&self, arrival: &CudaEvent) -> Result<()> {
        arrival.synchronize().map_err(Error::wrap)
    }
}
