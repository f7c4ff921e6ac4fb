//! First weights: their distribution, and that they are functions of seed and name alone.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use ddpm_random::TorchGenerator;
use ddpm_unet::{Initialisation, UNetConfig, UNetSettings, initialise, initialise_as_torch};

use crate::formula::{golden_config, golden_text, numbers};

fn config(width: usize) -> UNetConfig {
    let settings = UNetSettings {
        norm_num_groups: Some(4),
        layers_per_block: 1,
        ..UNetSettings::ho()
    };
    UNetConfig::new(settings.with_levels(&[(32, false), (width, true)])).unwrap()
}

fn drawn(
    config: &UNetConfig,
    initialisation: Initialisation,
    seed: u64,
) -> HashMap<String, Vec<f32>> {
    let drawn = initialise(config, initialisation, seed, &Device::Cpu).unwrap();
    assert_eq!(drawn.len(), config.parameters().len());
    for ((name, tensor), (expected, shape)) in drawn.iter().zip(config.parameters()) {
        assert_eq!((name, tensor.dims()), (&expected, shape.as_slice()));
    }
    drawn
        .iter()
        .map(|(name, tensor)| (name.clone(), numbers(tensor)))
        .collect()
}

/// Uniform in ±bound: within it, reaching nearly to its ends, of mean 0 and variance bound²/3.
#[track_caller]
fn check_uniform(values: &[f32], bound: f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let square = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n;
    let largest = values
        .iter()
        .map(|&v| f64::from(v).abs())
        .fold(0.0, f64::max);
    assert!(
        largest <= bound * (1.0 + 1e-6) && largest > bound * (1.0 - 20.0 / n),
        "{largest} of {bound}"
    );
    assert!(mean.abs() < 4.0 * bound / (3.0 * n).sqrt(), "mean {mean}");
    // The variance of u² for u uniform in ±1 is 4/45.
    assert!(
        (square / bound.powi(2) - 1.0 / 3.0).abs() < 4.0 * (4.0 / 45.0 / n).sqrt(),
        "variance {square}"
    );
}

#[test]
fn hos_weights_have_the_variance_of_the_mean_fan() {
    let weights = drawn(&config(64), Initialisation::Ho, 1);
    let bound = |inputs: usize, outputs: usize, scale: f64| {
        (3.0 * scale / ((inputs + outputs) as f64 / 2.0)).sqrt()
    };
    check_uniform(
        &weights["down_blocks.1.resnets.0.conv1.weight"],
        bound(32 * 9, 64 * 9, 1.0),
    );
    check_uniform(
        &weights["down_blocks.1.resnets.0.conv_shortcut.weight"],
        bound(32, 64, 1.0),
    );
    check_uniform(
        &weights["down_blocks.1.attentions.0.to_q.weight"],
        bound(64, 64, 1.0),
    );
    check_uniform(
        &weights["time_embedding.linear_1.weight"],
        bound(32, 128, 1.0),
    );
    check_uniform(&weights["conv_in.weight"], bound(27, 32 * 9, 1.0));
    for name in [
        "down_blocks.1.resnets.0.conv2.weight",
        "mid_block.resnets.1.conv2.weight",
    ] {
        check_uniform(&weights[name], bound(64 * 9, 64 * 9, 1e-10));
    }
    check_uniform(
        &weights["mid_block.attentions.0.to_out.0.weight"],
        bound(64, 64, 1e-10),
    );
    check_uniform(&weights["conv_out.weight"], bound(32 * 9, 3 * 9, 1e-10));
    for (name, values) in &weights {
        match (name.contains("norm"), name.ends_with(".weight")) {
            (true, true) => assert!(values.iter().all(|&value| value == 1.0), "{name}"),
            (_, false) => assert!(values.iter().all(|&value| value == 0.0), "{name}"),
            _ => assert!(values.iter().any(|&value| value != 0.0), "{name}"),
        }
    }
}

#[test]
fn pytorchs_weights_and_biases_have_the_bound_of_the_inputs() {
    let weights = drawn(&config(64), Initialisation::PyTorch, 1);
    let bound = |inputs: usize| 1.0 / (inputs as f64).sqrt();
    for (name, inputs) in [
        ("down_blocks.1.resnets.0.conv1", 32 * 9),
        ("down_blocks.1.resnets.0.conv2", 64 * 9),
        ("down_blocks.1.resnets.0.conv_shortcut", 32),
        ("down_blocks.1.resnets.0.time_emb_proj", 128),
        ("mid_block.attentions.0.to_out.0", 64),
    ] {
        check_uniform(&weights[&format!("{name}.weight")], bound(inputs));
        let bias = &weights[&format!("{name}.bias")];
        assert!(
            bias.iter()
                .all(|&value| f64::from(value.abs()) <= bound(inputs))
        );
        assert!(
            bias.iter()
                .any(|&value| f64::from(value.abs()) > bound(inputs) / 2.0)
        );
    }
    assert!(
        weights["conv_norm_out.weight"]
            .iter()
            .all(|&value| value == 1.0)
    );
    assert!(
        weights["conv_norm_out.bias"]
            .iter()
            .all(|&value| value == 0.0)
    );
}

/// FNV-1a over the bits of each number, as in `tests/golden/unet.py`.
fn digest(values: impl IntoIterator<Item = f32>) -> String {
    let hash = values
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, value| {
            (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}")
}

/// Every kind of network, bit for bit, and the generator stands where PyTorch's does.
#[test]
fn drawn_in_pytorchs_order_from_its_generator_the_weights_are_pytorchs() {
    let text = golden_text("torchs_weights.txt");
    assert_eq!(text.lines().count(), 19);
    for line in text.lines() {
        let case = line.split(' ').next().unwrap();
        let config = golden_config(case);
        let mut generator = TorchGenerator::new(7);
        let weights = initialise_as_torch(&config, &mut generator, &Device::Cpu).unwrap();
        let mut after = [0f32; 20];
        generator.normal_into(&mut after);
        let drawn = |weights: &[(String, Tensor)]| {
            digest(weights.iter().flat_map(|(_, tensor)| numbers(tensor)))
        };
        assert_eq!(
            format!("{case} {} then {}", drawn(&weights), digest(after)),
            line
        );
        let by_seed = initialise(&config, Initialisation::Torch, 7, &Device::Cpu).unwrap();
        assert_eq!(drawn(&by_seed), drawn(&weights), "{case}");
    }
}

/// Tables and frequencies are normal in the other ways to draw.
#[test]
fn tables_are_standard_normal_and_frequencies_sixteen_times_that() {
    let weights = drawn(
        &golden_config("halved_and_doubled_by_blocks"),
        Initialisation::Ho,
        1,
    );
    let deviation = |values: &[f32]| {
        let squares = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        (squares / values.len() as f64).sqrt()
    };
    let table = deviation(&weights["time_proj.weight"]);
    assert!(
        (table - 1.0).abs() < 4.0 / (2.0 * 8000f64).sqrt(),
        "{table}"
    );
    let weights = drawn(&golden_config("skip_blocks"), Initialisation::PyTorch, 1);
    let frequencies = deviation(&weights["time_proj.weight"]);
    assert!((8.0..28.0).contains(&frequencies), "{frequencies}"); // 16 numbers
}

#[test]
fn a_parameter_depends_on_seed_and_name_alone() {
    let weights = drawn(&config(64), Initialisation::Ho, 1);
    assert_eq!(weights, drawn(&config(64), Initialisation::Ho, 1));
    assert_ne!(
        weights["conv_in.weight"],
        drawn(&config(64), Initialisation::Ho, 2)["conv_in.weight"]
    );
    // A wider second level leaves the first as it was, although it comes later in the order.
    let wider = drawn(&config(96), Initialisation::Ho, 1);
    for name in [
        "down_blocks.0.resnets.0.conv1.weight",
        "up_blocks.1.resnets.1.conv1.weight",
        "conv_out.weight",
    ] {
        assert_eq!(weights[name], wider[name], "{name}");
    }
    assert_ne!(
        weights["down_blocks.0.resnets.0.conv1.weight"],
        weights["down_blocks.0.resnets.0.conv2.weight"],
        "two tensors of one shape"
    );
}
