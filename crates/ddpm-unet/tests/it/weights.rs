//! Tensors that are not the network's.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddpm_unet::{Error, UNet, UNetConfig};

use crate::formula::{formula_weights, golden_config};

fn weights() -> (UNetConfig, BTreeMap<String, Tensor>) {
    let config = golden_config("no_middle");
    let weights = formula_weights(&config).into_iter().collect();
    (config, weights)
}

#[test]
fn parameters_come_back_in_construction_order() {
    let (config, weights) = weights();
    let network = UNet::new(&config, &weights).unwrap();
    assert_eq!(network.config(), &config);
    let expected = config.parameters();
    assert_eq!(network.parameters().len(), expected.len());
    for ((name, tensor), (expected_name, shape)) in network.parameters().zip(&expected) {
        assert_eq!(
            (name, tensor.dims()),
            (expected_name.as_str(), shape.as_slice())
        );
    }
}

#[test]
fn missing_extra_and_wrong_tensors_are_named_in_one_error() {
    let (config, mut weights) = weights();
    weights.remove("conv_in.bias");
    weights.insert(
        "class_embedding.weight".into(),
        Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap(),
    );
    weights.insert(
        "conv_out.bias".into(),
        Tensor::zeros((3, 1), DType::F32, &Device::Cpu).unwrap(),
    );
    weights.insert(
        "conv_norm_out.bias".into(),
        Tensor::zeros(8, DType::F16, &Device::Cpu).unwrap(),
    );
    assert_eq!(
        UNet::new(&config, &weights).err().unwrap().to_string(),
        "the tensors are not this network's; missing (1): `conv_in.bias`; extra (1): `class_embedding.weight`; \
         wrong (2): `conv_norm_out.bias` is F16, expected F32, `conv_out.bias` is [3, 1], expected [3]"
    );
}

#[test]
fn many_are_counted_and_all_are_in_the_error() {
    let (config, _) = weights();
    let error = UNet::new(&config, &BTreeMap::new()).err().unwrap();
    let count = config.parameters().len();
    let text = error.to_string();
    assert!(text.starts_with(&format!(
        "the tensors are not this network's; missing ({count}): `conv_in.weight`, "
    )));
    assert!(text.ends_with(&format!("and {} more", count - 8)), "{text}");
    assert!(matches!(error, Error::Weights(mismatch) if mismatch.missing.len() == count));
}

#[test]
fn a_tensor_given_twice_is_refused() {
    let (config, _) = weights();
    let mut twice = formula_weights(&config);
    twice.push(twice[0].clone());
    let text = UNet::new(&config, &twice).err().unwrap().to_string();
    assert_eq!(
        text,
        "the tensors are not this network's; wrong (1): `conv_in.weight` is given twice"
    );
}

#[test]
fn candles_holder_of_parameters_gives_the_same_network() {
    let (config, weights) = weights();
    let x_t = Tensor::zeros((2, 3, 8, 12), DType::F32, &Device::Cpu).unwrap();
    let x_t = x_t.narrow(1, 0, config.settings().in_channels).unwrap();
    let expected = UNet::new(&config, &weights).unwrap();
    let expected = expected.forward(&x_t, &[3.0, 40.0]).unwrap();

    let prefixed = weights.into_iter();
    let mut prefixed: std::collections::HashMap<String, Tensor> = prefixed
        .map(|(name, tensor)| (format!("unet.{name}"), tensor))
        .collect();
    let builder = |tensors| candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let network = UNet::from_var_builder(&config, &builder(prefixed.clone()).pp("unet")).unwrap();
    let output = network.forward(&x_t, &[3.0, 40.0]).unwrap();
    let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(bits(&output), bits(&expected));

    prefixed.remove("unet.conv_out.bias");
    let error = UNet::from_var_builder(&config, &builder(prefixed).pp("unet"));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("unet.conv_out.bias"), "{error}");
}
