//! Feeds damaged files to the readers until the time is over: `mutate idx|cifar|zip|parquet SECONDS FILE...`.
//!
//! What the fuzz targets in `fuzz/` do with a nightly compiler, this does with any, without looking for new paths: each
//! input is one of the files with some places changed. A panic ends it; the input that made it is written to
//! `mutate-NUMBER.bin`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the person who started it"
)]

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ddpm_data::parquet::Pictures;
use ddpm_data::zipped::Archive;
use ddpm_data::{cifar, idx};

fn main() -> ExitCode {
    let typed: Vec<String> = std::env::args().skip(1).collect();
    let [reader, seconds, files @ ..] = typed.as_slice() else {
        eprintln!("usage: mutate idx|cifar|zip|parquet SECONDS FILE...");
        return ExitCode::from(2);
    };
    let limit = Duration::from_secs(seconds.parse().unwrap_or(10));
    let files: Vec<Vec<u8>> = files
        .iter()
        .filter_map(|file| std::fs::read(file).ok())
        .collect();
    if files.is_empty() {
        eprintln!("none of the files can be read");
        return ExitCode::FAILURE;
    }
    let started = Instant::now();
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ started.elapsed().as_nanos() as u64);
    let (mut inputs, mut whole) = (0u64, 0u64);
    while started.elapsed() < limit {
        let bytes = mutated(&files[random.below(files.len())], &mut random);
        match catch_unwind(AssertUnwindSafe(|| read(reader, &bytes))) {
            Ok(read) => whole += u64::from(read),
            Err(_) => {
                let name = format!("mutate-{inputs}.bin");
                drop(std::fs::write(&name, &bytes));
                eprintln!("a panic after {inputs} inputs: {name}");
                return ExitCode::FAILURE;
            }
        }
        inputs += 1;
    }
    println!("{reader}: {inputs} inputs, {whole} of them read, no panic");
    ExitCode::SUCCESS
}

/// Reads bytes as a reader does; says whether they could be.
fn read(reader: &str, bytes: &[u8]) -> bool {
    let path = Path::new("mutated");
    match reader {
        "idx" => {
            idx::images_from(bytes, path, None).is_ok() | idx::labels_from(bytes, path, 10).is_ok()
        }
        "cifar" => {
            cifar::archive_from(bytes, path).is_ok() | cifar::batch_from(bytes, path).is_ok()
        }
        "zip" => Archive::new(Cursor::new(bytes), path).is_ok_and(|archive| {
            let mut entries = archive.entries().iter().take(1000);
            entries.all(|entry| archive.content(entry).is_ok())
        }),
        _ => Pictures::new(Cursor::new(bytes), path)
            .is_ok_and(|file| file.rows().take(1000).all(|row| row.is_ok())),
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Bytes with up to eight places changed, cut out, put in, copied, or cut off.
fn mutated(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=random.below(8) {
        let place = random.below(bytes.len());
        match random.below(10) {
            _ if bytes.is_empty() => bytes.push(random.below(256) as u8),
            0 => bytes.truncate(place),
            1 => bytes.insert(place, random.below(256) as u8),
            2 => drop(bytes.remove(place)),
            3 => bytes[place] = [0, 1, 127, 128, 255][random.below(5)],
            4 => bytes[place] ^= 1 << random.below(8),
            5 => {
                let n = random.below(16).min(bytes.len() - place);
                let from = random.below(bytes.len() - n + 1);
                bytes.copy_within(from..from + n, place);
            }
            _ => bytes[place] = random.below(256) as u8,
        }
    }
    bytes
}
