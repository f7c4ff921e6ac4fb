//! A pickle in a file of PyTorch's that is whole around it, with one storage of four numbers.
#![no_main]

use ddpm_checkpoint::open_tensors;

/// PyTorch's mark, its version, an empty account of the system: three pickles.
const BEFORE: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
/// The list of storages, which is "0", its length and its numbers.
const AFTER: &[u8] = b"\x80\x02]X\x01\0\0\x000a.\x04\0\0\0\0\0\0\0aaaabbbbccccdddd";

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("ddpm-fuzz-pickle-{}.pt", std::process::id()));
    std::fs::write(&path, [BEFORE, bytes, AFTER].concat()).unwrap();
    if let Ok(mut tensors) = open_tensors(&path) {
        for name in tensors.names() {
            drop(tensors.read_f32(&name));
        }
    }
});
