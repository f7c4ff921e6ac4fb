//! A network that is evaluated again and again takes its memory once. Alone in its program, which counts allocations.
#![allow(unsafe_code, clippy::unwrap_used)] // a counting allocator; a test

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use ddpm_unet::{Initialisation, UNet, UNetConfig, UNetSettings, initialise};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, with a count beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_evaluation_allocates_its_result_and_next_to_nothing_else() {
    let settings = UNetSettings {
        in_channels: 1,
        out_channels: 1,
        ..UNetSettings::ho()
    };
    let config = UNetConfig::new(settings.with_levels(&[(32, false), (64, true)])).unwrap();
    let weights = initialise(&config, Initialisation::PyTorch, 1, &Device::Cpu).unwrap();
    let network = UNet::new(&config, &weights).unwrap().frozen();
    let x = Tensor::zeros((8, 1, 28, 28), DType::F32, &Device::Cpu).unwrap();
    let evaluate = || {
        let before = ALLOCATED.load(Ordering::Relaxed);
        network.forward(&x, &[3.0; 8]).unwrap();
        ALLOCATED.load(Ordering::Relaxed) - before
    };
    let first = evaluate();
    // A thread that gets its largest task late keeps memory for it then.
    let steady = (0..8).map(|_| evaluate()).min().unwrap();
    assert!(
        first > 10_000_000,
        "the first call lays out weights and activations: {first}"
    );
    assert!(steady < 500_000, "{steady} bytes were allocated again");
}
