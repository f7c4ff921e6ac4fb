//! Parquet files: the footer, every kind of page, every way of packing.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use ddpm_data::parquet::Pictures;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = Pictures::new(Cursor::new(bytes), Path::new("fuzz")) {
        // A file may promise more rows than anybody has time for.
        for row in file.rows().take(1000) {
            if row.is_err() {
                break;
            }
        }
    }
});
