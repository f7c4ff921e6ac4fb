//! What all contenders share: a network with its weights, and the inputs of a pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use ddpm_checkpoint::{Pipeline, write_tensors};
use ddpm_core::Timestep;
use ddpm_random::{Stream, normal_batch, sample_start, uniform_batch, uniform_u64_below};
use ddpm_train::{Examples, Layer, Objective, Settings, scheduler};
use ddpm_unet::{Initialisation, initialise};

use crate::Outcome;

/// PyTorch's AdamW with its defaults, gradients clipped to norm 1, no averages; what the peers do too.
const TRAINING: &str = r#"
data.name = "noise"
ema.rates = []
[optimizer]
name = "adamw"
learning_rate = 1e-4
warm_up = 0
weight_decay = 0.01
gradient_clip = 1.0
[train]
steps = 1000000
"#;

/// Ho et al.'s for CIFAR-10, without dropout.
const M: &str = r#"
[model]
block_out_channels = [128, 256, 256, 256]
down_block_types = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
"#;

/// The same in small.
const SMALL_M: &str = r#"
[model]
block_out_channels = [32, 64, 64, 64]
down_block_types = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
"#;

/// Dhariwal and Nichol's for ImageNet 64x64 as `UNet2DModel` has it, without classes, learned variances and dropout: three
/// residual blocks a level, which halve and double too, attention in heads of 64 channels from 32x32 down, and the time as
/// scales and shifts.
const ADM: &str = r#"
[model]
block_out_channels = [192, 384, 576, 768]
attention_head_dim = 64
layers_per_block = 3
down_block_types = ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
downsample_type = "resnet"
upsample_type = "resnet"
resnet_time_scale_shift = "scale_shift"
attn_norm_num_groups = 32
norm_eps = 1e-5
downsample_padding = 1
flip_sin_to_cos = true
freq_shift = 0
"#;

/// The seed of weights and inputs.
const SEED: u64 = 0;

/// Writes the network and the inputs of one pass, and x_T of the images that `walk` down to x_0.
pub(crate) fn prepare(network: &str, batch: usize, walk: usize, folder: &Path) -> Outcome<()> {
    let small_adm = ADM
        .replace("[192, 384, 576, 768]", "[32, 64, 96, 128]")
        .replace("attention_head_dim = 64", "attention_head_dim = 32");
    let (model, channels, side) = match network {
        // The settings' own network.
        "s" => ("", 1, 28),
        "m" => (M, 3, 32),
        "adm" => (ADM, 3, 64),
        "small-m" => (SMALL_M, 3, 16),
        "small-adm" => (small_adm.as_str(), 3, 16),
        other => {
            let known = "s, m, adm, small-m, small-adm";
            return Err(format!("there is no network `{other}`: {known}").into());
        }
    };
    let text = format!("{TRAINING}{model}");
    let layer = Layer::from_text("network_speed", &text)?;
    let settings = Settings::from_layers(&[layer])?.resolved();
    let config = settings.unet_config(channels, side, side)?;
    let objective = Objective::new(&settings.diffusion)?;
    let weights = initialise(&config, Initialisation::PyTorch, SEED, &Device::Cpu)?;
    let noise = scheduler(&objective, &settings.diffusion, &Default::default())?;
    Pipeline::new(config, weights, noise).save(folder)?;
    std::fs::write(settings_file(folder), text)?;

    let shape = (channels, side, side);
    let examples = draw(&objective, batch, shape)?;
    let times: Vec<f32> = objective
        .network_times(&examples.t)
        .into_iter()
        .map(|time| time as f32)
        .collect();
    let mut tensors = vec![
        ("x_t", objective.x_t(&examples)?),
        ("x_0", examples.x_0),
        ("eps", examples.eps),
        ("t", Tensor::from_vec(times, batch, &Device::Cpu)?),
    ];
    if walk > 0 {
        let start = sample_start(SEED, 0, walk, shape, &Device::Cpu)?;
        tensors.push(("x_last", start));
    }
    let named: Vec<_> = tensors
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect();
    write_tensors(&inputs(folder), "the inputs", &named, &BTreeMap::new())?;
    Ok(())
}

/// The tensors of one pass.
pub(crate) fn inputs(folder: &Path) -> PathBuf {
    folder.join("inputs.safetensors")
}

/// The settings that describe the network and its training.
pub(crate) fn settings(folder: &Path) -> Outcome<Settings> {
    let text = std::fs::read_to_string(settings_file(folder))?;
    let layer = Layer::from_text("settings.toml", &text)?;
    Ok(Settings::from_layers(&[layer])?)
}

fn settings_file(folder: &Path) -> PathBuf {
    folder.join("settings.toml")
}

/// Images of no meaning, a t for each, and noise.
fn draw(objective: &Objective, batch: usize, shape: (usize, usize, usize)) -> Outcome<Examples> {
    let images: Vec<u64> = (0..batch as u64).collect();
    let steps = objective.schedule.steps() as u64;
    let t = |image: &u64| -> Outcome<Timestep> {
        let before = uniform_u64_below(SEED, Stream::Timestep, *image, 0, steps)?;
        Ok(objective.schedule.timestep(before as usize + 1)?)
    };
    let cpu = Device::Cpu;
    Ok(Examples {
        x_0: uniform_batch(SEED, Stream::SampleStart, &images, 0, shape, &cpu)?
            .affine(2.0, -1.0)?,
        t: images.iter().map(t).collect::<Outcome<_>>()?,
        eps: normal_batch(SEED, Stream::TrainingNoise, &images, 0, shape, &cpu)?,
    })
}
