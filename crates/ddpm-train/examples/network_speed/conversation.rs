//! The conversation with the harness: what is said, and what is done about it.
//!
//! Memory that was freed on a card stays with the process, so that whoever is to rest ends: for every time that it wakes there
//! is a process of its own, which speaks in its stead. The harness says nothing before it has its answer, so that no line is lost
//! between them.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use ddpm_train::on_threads;
use ddpm_unet::DeviceName;

use crate::Outcome;
use crate::work::{Job, Passes};

/// What a process that worked says by its exit status when it was told to rest.
const RESTS: u8 = 10;

/// Why the passes end.
enum End {
    Rest,
    Quit,
}

/// Does as the lines of the standard input say, until it is told to quit or nobody is there any more. `awake`: this is the
/// process that works until it is told to rest.
pub(crate) fn hold(job: &Job, threads: usize, awake: bool) -> Outcome<ExitCode> {
    if !awake && job.device != DeviceName::Cpu {
        return by_others(job);
    }
    let end = on_threads(threads, || {
        job.begin(|first, passes| answer(job, first, passes, awake))
    })??;
    Ok(match end {
        End::Rest => ExitCode::from(RESTS),
        End::Quit => ExitCode::SUCCESS,
    })
}

/// Has other processes work, one after the other.
fn by_others(job: &Job) -> Outcome<ExitCode> {
    let program = std::env::current_exe()?;
    loop {
        let mut works = Command::new(&program);
        works
            .args(std::env::args_os().skip(1))
            .args(["--awake", "yes"]);
        match works.status()?.code() {
            Some(code) if code == i32::from(RESTS) => println!("resting"),
            Some(0) => return Ok(ExitCode::SUCCESS),
            // It has said why.
            _ => return Ok(ExitCode::FAILURE),
        }
        match line()?.as_deref() {
            Some("wake") => {}
            Some("quit") => {
                println!("{}", std::fs::read_to_string(memory_file(job))?);
                return Ok(ExitCode::SUCCESS);
            }
            None => return Ok(ExitCode::SUCCESS),
            Some(line) => return Err(format!("`{line}` is neither `wake` nor `quit`").into()),
        }
    }
}

/// Writes what the first pass gave, says `ready`, and passes until it is told to rest or to quit.
fn answer(job: &Job, first: &[f32], passes: &mut Passes<'_>, may_rest: bool) -> Outcome<End> {
    let bytes: Vec<u8> = first.iter().copied().flat_map(f32::to_le_bytes).collect();
    std::fs::write(&job.output, bytes)?;
    println!("ready");
    while let Some(line) = line()? {
        match line.split_once(' ') {
            Some(("go", count)) => {
                let count: usize = count.parse()?;
                let started = Instant::now();
                passes(count)?;
                println!("{}", started.elapsed().as_secs_f64());
            }
            _ if line == "rest" && may_rest => {
                std::fs::write(memory_file(job), most_memory()?.to_string())?;
                return Ok(End::Rest);
            }
            _ if line == "quit" => {
                println!("{}", most_memory()?);
                return Ok(End::Quit);
            }
            _ => return Err(format!("`{line}` is none of `go N`, `rest` and `quit`").into()),
        }
    }
    Ok(End::Quit)
}

/// The next line, while there is somebody to write one.
fn line() -> Outcome<Option<String>> {
    let mut line = String::new();
    let length = std::io::stdin().lock().read_line(&mut line)?;
    Ok((length > 0).then(|| line.trim_end().to_owned()))
}

/// Where a process that rests leaves how much memory it took.
fn memory_file(job: &Job) -> PathBuf {
    let mut name = job.output.as_os_str().to_owned();
    name.push(".memory");
    name.into()
}

/// The most memory this process ever held, in bytes; 0 where the system does not say.
fn most_memory() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.map_or(Ok(0), str::parse::<u64>)? << 10)
}
