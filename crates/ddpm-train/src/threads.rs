//! Where training runs: a pool of so many threads, each with a large stack.

use crate::{Error, Result};

/// Bytes. candle walks and frees the graph of a network by recursion, one frame an operation.
const STACK: usize = 256 << 20;

/// Runs `work` in a pool of `threads` threads (0: as many as the machine has), to which everything beneath it is
/// confined. Results do not depend on the number.
///
/// # Errors
/// The system does not give so many threads.
pub fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(STACK)
        .build();
    Ok(pool
        .map_err(|e| Error::Threads(threads, e.to_string()))?
        .install(work))
}
