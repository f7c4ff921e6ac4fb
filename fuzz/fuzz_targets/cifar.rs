//! CIFAR-10's batches, and the archive that they come in.
#![no_main]

use std::path::Path;

use ddpm_data::cifar;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drop(cifar::batch_from(bytes, Path::new("fuzz")));
    if let Ok(batches) = cifar::archive_from(bytes, Path::new("fuzz")) {
        assert_eq!(batches.len(), 6);
    }
});
