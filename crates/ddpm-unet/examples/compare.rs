//! Compares this network with networks saved by diffusers: `cargo run --example compare -- FOLDER`, where every folder
//! in FOLDER holds `config.json`, `diffusion_pytorch_model.safetensors` and `io.safetensors` (x, time, classes if any,
//! output), or the configuration alone of a network that diffusers cannot build, which must be refused.
//! `tests/golden/unet_sweep.py` writes such folders at random. Each line is the greatest difference, over the greatest
//! output where that is above 1, and the folder; exit status 1 if one is above 1e-4 or none was refused that should be.

#![allow(clippy::print_stdout, reason = "a program that prints its findings")]

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::{DType, Device, Tensor};
use ddpm_unet::{ClassEmbedType, Classes, UNet, UNetConfig};

/// The greatest difference that is no fault.
const TOLERANCE: f64 = 1e-4;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: compare FOLDER")?;
    let mut networks: Vec<PathBuf> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    networks.sort();
    let mut worst = 0f64;
    for network in &networks {
        let (difference, words) = judge(network)?;
        println!("{difference:9.2e}  {}  {words}", network.display());
        worst = match difference.is_nan() {
            true => f64::INFINITY,
            false => worst.max(difference),
        };
    }
    println!("{worst:9.2e}  the largest of {}", networks.len());
    Ok(ExitCode::from(u8::from(worst > TOLERANCE)))
}

fn judge(folder: &Path) -> Result<(f64, String), Box<dyn Error>> {
    let text = std::fs::read_to_string(folder.join("config.json"))?;
    let config = UNetConfig::from_json(&text);
    if !folder.join("io.safetensors").is_file() {
        return Ok(match config {
            Err(error) => (0.0, format!("refused: {error}")),
            Ok(_) => (f64::INFINITY, "diffusers cannot build it".to_owned()),
        });
    }
    let config = config?;
    Ok((compare(folder, &config)?, blocks(&config)))
}

fn blocks(config: &UNetConfig) -> String {
    let settings = config.settings();
    let down = settings.down_block_types.iter().map(|block| block.name());
    let up = settings.up_block_types.iter().map(|block| block.name());
    down.chain(up).collect::<Vec<_>>().join(" ")
}

/// The largest difference between our output and diffusers'.
fn compare(folder: &Path, config: &UNetConfig) -> Result<f64, Box<dyn Error>> {
    let load = |file: &str| candle_core::safetensors::load(folder.join(file), &Device::Cpu);
    let weights: HashMap<String, Tensor> = load("diffusion_pytorch_model.safetensors")?;
    let io = load("io.safetensors")?;
    let tensor = |name: &str| io.get(name).ok_or(format!("no `{name}` in io.safetensors"));
    let time: Vec<f64> = tensor("time")?.to_dtype(DType::F64)?.to_vec1()?;
    let mut network = UNet::new(config, &weights)?;
    if let Some(classes) = io.get("classes") {
        network = network.with_classes(told(config, classes)?)?;
    }
    let (output, expected) = (network.forward(tensor("x")?, &time)?, tensor("output")?);
    let most = |x: &Tensor| -> candle_core::Result<f64> {
        Ok(f64::from(
            x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?,
        ))
    };
    Ok(most(&(output - expected)?)? / most(expected)?.max(1.0))
}

/// Classes in the form that the network takes.
fn told(config: &UNetConfig, classes: &Tensor) -> candle_core::Result<Classes> {
    Ok(match config.settings().class_embed_type {
        Some(ClassEmbedType::Identity) => Classes::Vectors(classes.clone()),
        Some(ClassEmbedType::Timestep) => {
            Classes::Numbers(classes.to_dtype(DType::F64)?.to_vec1()?)
        }
        None => {
            let classes: Vec<f32> = classes.to_vec1()?;
            Classes::Indices(classes.into_iter().map(|class| class as usize).collect())
        }
    })
}
