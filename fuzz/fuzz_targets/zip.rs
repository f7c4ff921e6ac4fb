//! Zip archives: the directory, and the content of every file in it.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use ddpm_data::zipped::Archive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(archive) = Archive::new(Cursor::new(bytes), Path::new("fuzz")) {
        for entry in archive.entries().iter().take(1000) {
            drop(archive.content(entry));
        }
    }
});
