//! With the feature `cuda`, compiles the kernels of the folder `cuda` by nvcc; without it, nothing.
#![allow(clippy::print_stdout)] // how a build script speaks to cargo

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compute capability 9.0 (H100, H200).
const CAPABILITY: u32 = 90;
/// Newer cards compile this one for themselves when the program starts.
const FORWARD: u32 = 80;

fn main() -> Result<(), String> {
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        println!("cargo::rerun-if-changed=build.rs");
        return Ok(());
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let folder = Path::new("cuda");
    for entry in fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let out = env::var("OUT_DIR").map_err(|e| format!("OUT_DIR: {e}"))?;
    compile(
        &folder.join("kernels.cu"),
        &Path::new(&out).join("kernels.fatbin"),
    )
}

/// Code for the card asked for, and PTX, which any newer card can compile.
fn compile(source: &Path, to: &Path) -> Result<(), String> {
    let capability = capability()?;
    let forward = capability.min(FORWARD);
    let nvcc = nvcc();
    let output = Command::new(&nvcc)
        .args(["-std=c++17", "-O3", "-fatbin"])
        .arg(format!("-gencode=arch=compute_{capability},code=sm_{capability}"))
        .arg(format!("-gencode=arch=compute_{forward},code=compute_{forward}"))
        .arg("-o")
        .args([to, source])
        .output()
        .map_err(|e| {
            format!(
                "{}: {e}. The feature `cuda` needs nvcc: set NVCC or CUDA_HOME, put it on the PATH, or build by `cargo xtask cuda`",
                nvcc.display()
            )
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{} could not compile {}:\n{}",
        nvcc.display(),
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// CUDA_COMPUTE_CAP as candle has it: 90, 9.0 or 90a.
fn capability() -> Result<u32, String> {
    let Ok(text) = env::var("CUDA_COMPUTE_CAP") else {
        return Ok(CAPABILITY);
    };
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    match digits.parse() {
        Ok(capability) if capability >= 50 => Ok(capability),
        _ => Err(format!(
            "CUDA_COMPUTE_CAP is `{text}`, expected a compute capability such as 90 or 9.0"
        )),
    }
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let home = env::var_os("CUDA_HOME").or_else(|| env::var_os("CUDA_PATH"));
    let of_home = home.map(|home| Path::new(&home).join("bin/nvcc"));
    of_home
        .filter(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}
