//! Compares this network with networks saved by diffusers: `cargo run --example compare -- FOLDER`, where every folder
//! in FOLDER holds `config.json`, `diffusion_pytorch_model.safetensors` and `io.safetensors` (x, time, output).
//! `tests/golden/unet_sweep.py` writes such folders at random.

#![allow(clippy::print_stdout, reason = "a program that prints its findings")]

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ddpm_unet::{UNet, UNetConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: compare FOLDER")?;
    let mut networks: Vec<PathBuf> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    networks.sort();
    let mut worst = 0f32;
    for network in &networks {
        let difference = compare(network)?;
        println!("{difference:9.2e}  {}", network.display());
        worst = if difference.is_nan() {
            difference
        } else {
            worst.max(difference)
        };
    }
    println!("{worst:9.2e}  the largest of {}", networks.len());
    Ok(())
}

/// The largest difference between our output and diffusers'.
fn compare(folder: &Path) -> Result<f32, Box<dyn Error>> {
    let load = |file: &str| candle_core::safetensors::load(folder.join(file), &Device::Cpu);
    let config = UNetConfig::from_json(&std::fs::read_to_string(folder.join("config.json"))?)?;
    let weights: HashMap<String, Tensor> = load("diffusion_pytorch_model.safetensors")?;
    let io = load("io.safetensors")?;
    let tensor = |name: &str| io.get(name).ok_or(format!("no `{name}` in io.safetensors"));
    let time: Vec<f64> = tensor("time")?.to_dtype(DType::F64)?.to_vec1()?;
    let output = UNet::new(&config, &weights)?.forward(tensor("x")?, &time)?;
    Ok((output - tensor("output")?)?
        .abs()?
        .flatten_all()?
        .max(0)?
        .to_scalar()?)
}
