//! CIFAR-10's batches, gzipped or not.
#![no_main]

use std::path::Path;

use ddpm_data::cifar;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(cifar::batch_from(bytes, Path::new("fuzz")));
});
