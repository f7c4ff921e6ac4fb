//! Tests of ddpm-data through its public door.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod cifar;
mod damaged;
#[cfg(feature = "hub")]
mod fetch;
mod files;
mod folder;
mod kept;
mod odd;
mod order;
mod parquet;
mod resize;
mod tiny_imagenet;

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

/// Numbers below n, the same ones for the same seed (xorshift64).
fn below(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    }
}

/// Bytes with up to four places changed, cut out, put in, or cut off.
fn mutated(original: &[u8], below: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=below(4) {
        let place = below(bytes.len().max(1));
        match below(8) {
            _ if bytes.is_empty() => bytes.push(below(256) as u8),
            0 => bytes.truncate(place),
            1 => bytes.insert(place, below(256) as u8),
            2 => drop(bytes.remove(place)),
            3 => bytes[place] = [0, 1, 127, 128, 255][below(5)],
            _ => bytes[place] = below(256) as u8,
        }
    }
    bytes
}
