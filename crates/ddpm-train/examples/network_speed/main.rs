//! One contender of `cargo xtask bench`: this house's network at work, pass after pass, as the programs run it.
//!
//! ```text
//! network_speed prepare --network s|m|adm|small-m|small-adm --batch N --folder DIR [--walk N]
//! network_speed contend --work train|evaluate|sample --folder DIR --output FILE [--threads N]
//!                       [--precision f32|tf32|bf16] [--device cpu|cuda[:N]|cpu-graph] [--steps N]
//! network_speed look --device cuda[:N]
//! ```
//!
//! `prepare` fills an empty folder with what all contenders share: the network as diffusers keeps it, weights included,
//! its settings, and `inputs.safetensors` (x_0, x_t, eps, t as the network is told it, and x_T for as many images as `--walk`
//! says). `contend` writes what its first pass gave to FILE as raw f32, little end first (the prediction; of a training step its
//! loss and the gradient's norm; of a walk of `--steps` DDIM steps where it is after two), prints `ready`, and then answers lines: `go N`
//! with the seconds that N passes took, `rest` (not on `cpu`) with `resting` once it holds nothing of the device, `wake` with
//! `ready`, `quit` with the most memory it ever held, in bytes. `look` says which device it is.
//!
//! | what | where |
//! |---|---|
//! | the network and the inputs of all contenders | `share` |
//! | the work, on any device | `work` |
//! | the conversation | `conversation` |
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the person who started it"
)]

mod conversation;
#[path = "../../src/environment.rs"]
mod environment;
mod share;
mod work;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use ddpm_unet::{DeviceName, Place};

use crate::work::Job;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let typed: Vec<String> = std::env::args().skip(1).collect();
    match run(&typed) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(typed: &[String]) -> Outcome<ExitCode> {
    let flags = Flags(typed);
    let device: DeviceName = flags.value("--device").unwrap_or("cpu").parse()?;
    match typed.first().map(String::as_str) {
        Some("prepare") => share::prepare(
            flags.value("--network")?,
            flags.value("--batch")?.parse()?,
            flags.value("--walk").unwrap_or("0").parse()?,
            &PathBuf::from(flags.value("--folder")?),
        )?,
        Some("contend") => return contend(&flags, device),
        Some("look") => println!("{}", Place::open(device)?),
        _ => return Err("say `prepare`, `contend` or `look`".into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn contend(flags: &Flags<'_>, device: DeviceName) -> Outcome<ExitCode> {
    let threads = flags.value("--threads").unwrap_or("0").parse()?;
    let job = Job {
        work: flags.value("--work")?.parse()?,
        precision: flags.value("--precision").unwrap_or("f32").parse()?,
        device,
        folder: flags.value("--folder")?.into(),
        output: flags.value("--output")?.into(),
        steps: flags.value("--steps").unwrap_or("50").parse()?,
    };
    // As the programs: ddpm-train settles its environment, ddpm-sample takes it as it is.
    if job.work == work::Work::Train {
        environment::settle(threads);
    }
    conversation::hold(&job, threads, flags.value("--awake").is_ok())
}

/// A command line: pairs of flag and value.
struct Flags<'a>(&'a [String]);

impl<'a> Flags<'a> {
    fn value(&self, flag: &str) -> Outcome<&'a str> {
        let place = self.0.iter().position(|word| word == flag);
        let value = place.and_then(|place| self.0.get(place + 1));
        Ok(value
            .ok_or_else(|| format!("`{flag}` is missing"))?
            .as_str())
    }
}
