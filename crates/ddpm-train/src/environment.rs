//! candle's own threads, which it counts by an environment variable alone: the program starts itself anew with it.

/// Lets candle use as many threads for elementwise operations as training uses for all else (0: as many as the machine
/// has), unless the user has set the variable. The number changes the speed, not a bit of the results.
///
/// The process becomes the same program with the same arguments: a running process cannot safely change its environment.
/// So nothing may have been done yet that is not to be done twice. What cannot be started anew runs on as it is.
#[cfg(unix)]
pub(crate) fn follow(threads: usize) {
    use std::os::unix::process::CommandExt;
    let is_set = |variable| std::env::var_os(variable).is_some();
    // Where the second one counts the threads of training, candle follows it by itself.
    if is_set(VARIABLE) || threads == 0 && is_set("RAYON_NUM_THREADS") {
        return;
    }
    let count = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        _ => threads,
    };
    if let Ok(program) = std::env::current_exe() {
        let mut anew = std::process::Command::new(program);
        anew.args(std::env::args_os().skip(1));
        drop(anew.env(VARIABLE, count.to_string()).exec());
    }
}

/// Elsewhere no process can become another; the variable can be set by hand.
#[cfg(not(unix))]
pub(crate) fn follow(_: usize) {}

/// What candle reads when it first spreads an operation over threads.
#[cfg(unix)]
const VARIABLE: &str = "CANDLE_NUM_THREADS";
