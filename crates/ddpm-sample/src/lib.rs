//! Algorithm 2 from the command line.
//!
//! | step | file |
//! |---|---|
//! | what was typed | [`flags`] |
//! | held against the model, the noise file and the place for the result | [`request`] |
//! | the sampler and its steps, of the flags or of the model | `scheduler`, `way` |
//! | the class of each image | `classes` |
//! | images to begin from, masks | `pictures` |
//! | x_T to x_0, batch by batch | `walk` |
//! | its moments, for animation and strip | `camera` |
//! | grid, strip, animation, single files, npz or safetensors, whole or not at all | `output` |
//! | what a model is | `inspect` |
//!
//! ```no_run
//! use clap::Parser;
//! use ddpm_sample::{Flags, run};
//!
//! let flags = Flags::parse_from(["ddpm-sample", "--num", "9", "--out", "nine.png"]);
//! println!("{}", run(flags, &|| false).unwrap());
//! ```

pub mod flags;
pub mod request;

mod camera;
mod classes;
mod inspect;
mod noise_file;
mod npz;
mod output;
mod pictures;
mod progress;
mod scheduler;
mod walk;
mod way;

use std::time::Instant;

use anyhow::Context;

pub use flags::Flags;
pub use request::Request;

use progress::Progress;

/// The name and version that results carry.
pub const PROGRAM: &str = concat!("ddpm-sample ", env!("CARGO_PKG_VERSION"));

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command asks for something that makes no sense, for this model or at all.
    #[error("{0}")]
    Usage(String),
    /// Something went wrong.
    #[error("{0}")]
    Failed(#[from] anyhow::Error),
    /// The user stopped it.
    #[error("interrupted, nothing was written")]
    Interrupted,
}

impl Failure {
    /// The exit status that says so: 2, 1 or 130.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
            Self::Interrupted => 130,
        }
    }
}

/// Does what the flags say and returns the text to print; `stop` is asked between steps.
///
/// # Errors
/// [`Failure`]; whatever it is, no half-written result is left behind.
pub fn run(flags: Flags, stop: &(dyn Fn() -> bool + Sync)) -> Result<String, Failure> {
    let threads = flags.threads.unwrap_or(0) as usize;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.with_context(|| format!("cannot start {threads} threads"))?
        .install(|| run_here(flags, stop))
}

fn run_here(flags: Flags, stop: &(dyn Fn() -> bool + Sync)) -> Result<String, Failure> {
    if flags.inspect {
        return inspect::inspect(&request::find_model(&flags)?);
    }
    if let Some(folder) = &flags.save_model {
        return request::save_model(&flags, folder);
    }
    let quiet = flags.quiet;
    let request = Request::new(flags)?;
    let progress = Progress::start(quiet, request.images, request.steps());
    request.notes.iter().for_each(|note| progress.note(note));
    let started = Instant::now();
    let (samples, film) = walk::sample(&request, &progress, stop)?;
    let (images, size) = (request.images, request.size_text());
    let place = request.write(&samples, film.as_ref())?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    let speed = images as f64 / seconds.max(1e-9);
    Ok(if quiet {
        String::new()
    } else {
        format!("{place}: {images} images of {size} in {seconds:.1} s, {speed:.2} a second")
    })
}
