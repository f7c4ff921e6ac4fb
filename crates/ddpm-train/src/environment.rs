//! What only environment variables decide, candle's own threads and the allocator's thrift: the program starts itself anew.

/// Lets candle use as many threads for elementwise operations as training uses for all else (0: as many as the machine
/// has), and lets the allocator keep the memory that one step frees for the next. A variable that the user has set stays
/// as it is. The speed changes, not a bit of the results.
///
/// The process becomes the same program with the same arguments: a running process cannot safely change its environment.
/// So nothing may have been done yet that is not to be done twice. What cannot be started anew runs on as it is.
#[cfg(unix)]
pub(crate) fn settle(threads: usize) {
    use std::os::unix::process::CommandExt;
    let is_set = |variable| std::env::var_os(variable).is_some();
    let mut missing = Vec::new();
    // Where this variable counts the threads of training, candle follows it by itself.
    let followed = threads == 0 && is_set("RAYON_NUM_THREADS");
    if !followed && !is_set(CANDLE_THREADS) {
        let count = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            _ => threads,
        };
        missing.push((CANDLE_THREADS, count.to_string()));
    }
    if !is_set(PURGE_DELAY) {
        missing.push((PURGE_DELAY, "-1".to_owned()));
    }
    if missing.is_empty() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut anew = std::process::Command::new(program);
        anew.args(std::env::args_os().skip(1));
        drop(anew.envs(missing).exec());
    }
}

/// Elsewhere no process can become another; the variables can be set by hand.
#[cfg(not(unix))]
pub(crate) fn settle(_: usize) {}

/// What candle reads when it first spreads an operation over threads.
#[cfg(unix)]
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// After how many milliseconds mimalloc gives freed memory back to the system, which then clears every page of it before
/// the next step can have it; -1 is never.
#[cfg(unix)]
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
