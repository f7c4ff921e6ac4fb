//! From the start of a process to its first image, as somebody waits for it.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::programs::{Programs, answer};

/// Seconds of each round, after a warm-up that brings the files into memory.
pub(crate) struct StartUp {
    /// `ddpm-sample`.
    pub(crate) ours: Vec<f64>,
    /// A Python process with diffusers.
    pub(crate) theirs: Vec<f64>,
}

/// Lets both make an image in turns.
pub(crate) fn measure(programs: &Programs, rounds: usize, folder: &Path) -> Result<StartUp> {
    eprintln!("from the start to the first image");
    let picture = folder.join("first.png");
    let mut start_up = StartUp {
        ours: Vec::new(),
        theirs: Vec::new(),
    };
    for round in 0..=rounds {
        let begun = Instant::now();
        answer(&mut programs.our_first_image(&picture))?;
        let ours = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        answer(&mut programs.their_first_image(&picture))?;
        let theirs = begun.elapsed().as_secs_f64();
        if round > 0 {
            start_up.ours.push(ours);
            start_up.theirs.push(theirs);
            eprintln!("  round {round} of {rounds}: {ours:.2} s, diffusers {theirs:.2} s");
        }
    }
    Ok(start_up)
}
