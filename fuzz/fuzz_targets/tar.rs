//! Tar archives, gzipped or not, as CIFAR-10 comes in one.
#![no_main]

use std::path::Path;

use ddpm_data::cifar;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(batches) = cifar::archive_from(bytes, Path::new("fuzz")) {
        assert_eq!(batches.len(), 6);
    }
});
