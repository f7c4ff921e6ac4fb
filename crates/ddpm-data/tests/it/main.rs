//! Tests of ddpm-data through its public door.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod cifar;
mod damaged;
mod files;
mod folder;
mod order;
mod resize;

use std::io::Write;

/// An IDX file: magic number, dimensions, values.
fn idx(magic: u32, dimensions: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(
        dimensions
            .iter()
            .flat_map(|dimension| dimension.to_be_bytes()),
    );
    bytes.extend_from_slice(values);
    bytes
}

/// The same bytes, gzipped.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
