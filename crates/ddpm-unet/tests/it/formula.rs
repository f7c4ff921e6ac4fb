//! Weights and inputs made from names, exactly as `tests/golden/unet.py` makes them, so that none need be stored.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use ddpm_unet::{ClassEmbedType, Classes, UNet, UNetConfig};

/// A file of golden values.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The text of a golden file.
pub(crate) fn golden_text(name: &str) -> String {
    std::fs::read_to_string(golden(name)).unwrap()
}

/// A tensor of a golden file.
pub(crate) fn golden_tensor(file: &str, name: &str) -> Tensor {
    candle_core::safetensors::load(golden(file), &Device::Cpu).unwrap()[name].clone()
}

/// The configuration of a golden case.
pub(crate) fn golden_config(case: &str) -> UNetConfig {
    UNetConfig::from_json(&golden_text(&format!("{case}.config.json"))).unwrap()
}

/// All parameters of a network by formula.
pub(crate) fn formula_weights(config: &UNetConfig) -> Vec<(String, Tensor)> {
    let parameters = config.parameters().into_iter();
    parameters
        .map(|(name, shape)| {
            let tensor = formula(&name, &shape);
            (name, tensor)
        })
        .collect()
}

/// A network whose parameters are made by formula.
pub(crate) fn formula_network(config: &UNetConfig) -> UNet {
    UNet::new(config, &formula_weights(config)).unwrap()
}

/// The classes of a golden case, in the form that its network takes.
pub(crate) fn golden_classes(case: &str, config: &UNetConfig) -> Option<Classes> {
    let settings = config.settings();
    let numbers = match (settings.class_embed_type, settings.num_class_embeds) {
        (None, None) => return None,
        _ => golden_tensor(&format!("{case}.safetensors"), "classes"),
    };
    let whole = |numbers: &Tensor| {
        let numbers = numbers.to_vec1::<f32>().unwrap();
        numbers.iter().map(|&number| number as usize).collect()
    };
    Some(match settings.class_embed_type {
        None => Classes::Indices(whole(&numbers)),
        Some(ClassEmbedType::Timestep) => Classes::Numbers(
            numbers
                .to_dtype(candle_core::DType::F64)
                .unwrap()
                .to_vec1()
                .unwrap(),
        ),
        Some(ClassEmbedType::Identity) => Classes::Vectors(numbers),
    })
}

/// The network of a golden case with weights by formula, told its classes.
pub(crate) fn golden_network(case: &str) -> UNet {
    let config = golden_config(case);
    let network = formula_network(&config);
    match golden_classes(case, &config) {
        Some(classes) => network.with_classes(classes).unwrap(),
        None => network,
    }
}

/// splitmix64 of (FNV-1a of the name + i), 24 bits, uniform in [-1, 1) times a bound.
pub(crate) fn formula(name: &str, shape: &[usize]) -> Tensor {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let (bound, offset) = if name.starts_with("input.") {
        (2f32, 0f32)
    } else if shape.len() > 1 {
        (
            (1.5 / (shape[1..].iter().product::<usize>() as f64).sqrt()) as f32,
            0.0,
        )
    } else {
        (
            0.25,
            f32::from(u8::from(name.contains("norm") && name.ends_with(".weight"))),
        )
    };
    let value = |i: u64| {
        let mut z = hash.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let u = (z >> 40) as f32 / 8_388_608.0 - 1.0;
        u * bound + offset
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
        .map(value)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All numbers of a tensor.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference of two tensors of one shape.
#[track_caller]
pub(crate) fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    numbers(a)
        .iter()
        .zip(numbers(b))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| if d.is_nan() { d } else { max.max(d) })
}
