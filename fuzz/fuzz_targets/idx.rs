//! MNIST's files, gzipped or not: images or labels, or an error.
#![no_main]

use std::path::Path;

use ddpm_data::idx;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(images) = idx::images_from(bytes, Path::new("fuzz"), None) {
        assert_eq!(images.pixels.len(), images.n * images.height * images.width);
    }
    if let Ok(labels) = idx::labels_from(bytes, Path::new("fuzz"), 10) {
        assert!(labels.iter().all(|label| *label < 10));
    }
});
