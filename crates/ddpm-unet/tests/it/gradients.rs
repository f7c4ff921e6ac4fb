//! Gradients of all parameters against torch's autograd in double precision. Recipe: `tests/golden/unet.py`.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use ddpm_unet::{DropoutAddress, UNet, UNetConfig, UNetSettings};

use crate::formula::{
    formula, formula_weights, golden, golden_classes, golden_config, golden_tensor, golden_text,
    numbers,
};

fn variables(config: &UNetConfig) -> HashMap<String, Var> {
    formula_weights(config)
        .into_iter()
        .map(|(name, tensor)| (name, Var::from_tensor(&tensor).unwrap()))
        .collect()
}

fn network(config: &UNetConfig, variables: &HashMap<String, Var>) -> UNet {
    let tensors: HashMap<String, Tensor> = variables
        .iter()
        .map(|(name, variable)| (name.clone(), variable.as_tensor().clone()))
        .collect();
    UNet::new(config, &tensors).unwrap()
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values
        .map(|value| f64::from(value).powi(2))
        .sum::<f64>()
        .sqrt()
}

#[track_caller]
fn check(case: &str) {
    let config = golden_config(case);
    let variables = variables(&config);
    let file = format!("{case}.safetensors");
    let x = golden_tensor(&file, "x");
    let time: Vec<f64> = golden_tensor(&file, "time")
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec1()
        .unwrap();
    let output = network(&config, &variables).forward(&x, &time).unwrap();
    let target = formula(&format!("input.{case}.target"), output.dims());
    let gradients = (output - target)
        .unwrap()
        .sqr()
        .unwrap()
        .mean_all()
        .unwrap()
        .backward()
        .unwrap();

    let golden = candle_core::safetensors::load(
        golden(&format!("{case}.gradients.safetensors")),
        &Device::Cpu,
    )
    .unwrap();
    assert_eq!(golden.len(), variables.len());
    let largest = golden
        .values()
        .map(|gradient| norm(numbers(gradient).into_iter()))
        .fold(0.0, f64::max);
    for (name, expected) in &golden {
        let gradient = gradients
            .get(&variables[name])
            .unwrap_or_else(|| panic!("no gradient for {name}"));
        let expected = numbers(expected);
        let difference = norm(numbers(gradient).iter().zip(&expected).map(|(a, b)| a - b));
        // Some gradients are zero in theory (a bias before a normalisation of one channel a group, keys' biases in a
        // softmax): those are held to the rounding of the network's largest gradient.
        let relative = difference / (norm(expected.into_iter()) + 1e-3 * largest);
        assert!(relative <= 2e-5, "{name}: {relative:e}");
    }
}

/// The norm of every parameter's gradient, and its product with numbers by formula.
#[track_caller]
fn check_slopes(case: &str) {
    let config = golden_config(case);
    let variables = variables(&config);
    let mut network = network(&config, &variables);
    if let Some(classes) = golden_classes(case, &config) {
        network = network.with_classes(classes).unwrap();
    }
    let file = format!("{case}.safetensors");
    let time = golden_tensor(&file, "time").to_dtype(DType::F64).unwrap();
    let output = network.forward(&golden_tensor(&file, "x"), &time.to_vec1().unwrap());
    let output = output.unwrap();
    let target = formula(&format!("input.{case}.target"), output.dims());
    let loss = (output - target)
        .unwrap()
        .sqr()
        .unwrap()
        .mean_all()
        .unwrap();
    let gradients = loss.backward().unwrap();

    let text = golden_text(&format!("{case}.slopes.txt"));
    let golden: Vec<(&str, [f64; 2])> = text
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[0], [1, 2].map(|i| words[i].parse().unwrap()))
        })
        .collect();
    assert_eq!(golden.len(), variables.len());
    let largest = golden
        .iter()
        .map(|(_, [norm, _])| *norm)
        .fold(0.0, f64::max);
    for (name, [expected_norm, expected_product]) in golden {
        let Some(gradient) = gradients.get(&variables[name]) else {
            assert_eq!((name, expected_norm), ("time_proj.weight", 0.0));
            continue;
        };
        let direction = formula(&format!("input.{name}"), gradient.dims());
        let (gradient, direction) = (numbers(gradient), numbers(&direction));
        let pairs = gradient.iter().zip(&direction);
        let product: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let length = norm(direction.iter().copied());
        let scale = expected_norm + 1e-3 * largest;
        let norm = norm(gradient.into_iter());
        assert!(
            (norm - expected_norm).abs() <= 2e-5 * scale
                && (product - expected_product).abs() <= 2e-5 * scale * length,
            "{case}: {name}: {norm} {product}, expected {expected_norm} {expected_product}"
        );
    }
}

#[test]
fn of_every_kind_of_block() {
    for case in [
        "resnet_blocks",
        "skip_blocks",
        "attention_skip_blocks",
        "attention_skip_blocks_up",
        "halved_and_doubled_by_blocks",
        "skips_into_plain_blocks",
        "classes_as_times",
        "rescaled",
    ] {
        check_slopes(case);
    }
}

#[test]
fn of_hos_conventions() {
    check("ho");
}

#[test]
fn of_scale_shift_with_heads_and_groups_of_the_attention() {
    check("attention_groups");
}

#[test]
fn every_parameter_gets_a_gradient_in_training_with_dropout() {
    let settings = UNetSettings {
        dropout: 0.2,
        norm_num_groups: Some(4),
        ..UNetSettings::ho()
    };
    let config = UNetConfig::new(settings.with_levels(&[(8, true), (12, false)])).unwrap();
    let variables = variables(&config);
    let address = DropoutAddress {
        seed: 3,
        step: 7,
        images: &[5, 6],
    };
    let x = formula("input.x", &[2, 3, 4, 6]);
    let output = network(&config, &variables)
        .forward_train(&x, &[3.0, 500.0], &address)
        .unwrap();
    let gradients = output
        .sqr()
        .unwrap()
        .mean_all()
        .unwrap()
        .backward()
        .unwrap();
    for (name, _) in config.parameters() {
        let gradient = gradients
            .get(&variables[&name])
            .unwrap_or_else(|| panic!("no gradient for {name}"));
        assert_eq!(gradient.dims(), variables[&name].dims(), "{name}");
        assert!(
            numbers(gradient).iter().all(|value| value.is_finite()),
            "{name}"
        );
    }
}

#[test]
fn a_detached_network_has_no_graph_and_follows_the_variables() {
    let config = golden_config("ho");
    let variables = variables(&config);
    let network = network(&config, &variables);
    let detached = network.detached();
    let x = formula("input.x", &[1, 1, 4, 8]);
    assert!(network.forward(&x, &[1.0]).unwrap().track_op());
    assert!(!detached.forward(&x, &[1.0]).unwrap().track_op());
    for variable in variables.values() {
        variable.set(&variable.zeros_like().unwrap()).unwrap();
    }
    assert_eq!(numbers(&detached.forward(&x, &[1.0]).unwrap()), [0.0; 32]);
}
