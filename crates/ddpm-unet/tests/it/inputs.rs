//! Inputs: rows of a batch do not see each other, wrong ones are refused, the denoiser is the network.

use candle_core::{DType, Device, Tensor};
use ddpm_core::Denoiser;
use ddpm_unet::{Classes, DropoutAddress, UNet};

use crate::formula::{formula, formula_network, golden_config, max_difference, numbers};

fn network() -> UNet {
    formula_network(&golden_config("openai"))
}

#[test]
fn an_image_does_not_depend_on_its_batch() {
    let network = network();
    let x = formula("input.x", &[3, 3, 4, 6]);
    let together = network.forward(&x, &[999.0, 0.0, 31.5]).unwrap();
    for (row, t) in [999.0, 0.0, 31.5].into_iter().enumerate() {
        let alone = network
            .forward(&x.narrow(0, row, 1).unwrap(), &[t])
            .unwrap();
        let difference = max_difference(&together.narrow(0, row, 1).unwrap(), &alone);
        assert!(difference <= 1e-6, "{difference:e}");
    }
}

#[test]
fn the_time_matters() {
    let x = formula("input.x", &[1, 3, 4, 6]);
    let outputs = [0.0, 1.0].map(|t| network().forward(&x, &[t]).unwrap());
    assert!(max_difference(&outputs[0], &outputs[1]) > 1e-3);
}

#[test]
fn the_network_is_a_denoiser() {
    let network = network();
    let x = formula("input.x", &[2, 3, 4, 6]);
    let predicted = network.predict(&x, &[5.0, 6.0]).unwrap();
    assert_eq!(
        numbers(&predicted),
        numbers(&network.forward(&x, &[5.0, 6.0]).unwrap())
    );
    assert!(
        network
            .predict(&x, &[5.0])
            .unwrap_err()
            .to_string()
            .contains("the time is 1 times")
    );
}

#[track_caller]
fn refused(x: &Tensor, time: &[f64], message: &str) {
    assert_eq!(network().forward(x, time).unwrap_err().to_string(), message);
}

#[test]
fn wrong_inputs_are_refused_in_words() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let expected = "expected F32 [batch, 3, height, width], at least one image";
    refused(
        &zeros(&[3, 4, 6], DType::F32),
        &[1.0],
        &format!("x_t is F32 [3, 4, 6]; {expected}"),
    );
    refused(
        &zeros(&[1, 1, 4, 6], DType::F32),
        &[1.0],
        &format!("x_t is F32 [1, 1, 4, 6]; {expected}"),
    );
    refused(
        &zeros(&[1, 3, 4, 6], DType::F64),
        &[1.0],
        &format!("x_t is F64 [1, 3, 4, 6]; {expected}"),
    );
    refused(
        &zeros(&[0, 3, 4, 6], DType::F32),
        &[],
        &format!("x_t is F32 [0, 3, 4, 6]; {expected}"),
    );
    refused(
        &zeros(&[2, 3, 4, 6], DType::F32),
        &[1.0],
        "the time is 1 times; expected one for each of 2 images",
    );
    refused(
        &zeros(&[1, 3, 4, 6], DType::F32),
        &[f64::NAN],
        "the time is NaN; expected finite",
    );
    refused(
        &zeros(&[1, 3, 5, 6], DType::F32),
        &[1.0],
        "images of 5x6 (height x width) do not suit a network of 2 levels: \
         both sides must be multiples of 2; the nearest sizes that work are 4x6 and 6x6",
    );
}

#[test]
fn classes_are_demanded_counted_and_looked_at() {
    let x = formula("input.x", &[2, 2, 4, 8]);
    let network = formula_network(&golden_config("resnet_blocks"));
    let message = |result: ddpm_unet::Result<Tensor>| result.unwrap_err().to_string();
    assert_eq!(
        message(network.forward(&x, &[1.0, 2.0])),
        "the classes is missing; expected one for each image, by UNet::with_classes: the network is class-conditional"
    );
    let told = |classes| network.with_classes(classes);
    let error = |classes| told(classes).err().unwrap().to_string();
    assert_eq!(
        error(Classes::Indices(vec![1, 5])),
        "the classes is Indices([1, 5]); expected numbers below 5"
    );
    assert_eq!(
        error(Classes::Numbers(vec![1.0])),
        "the classes is Numbers([1.0]); expected Classes::Indices"
    );
    let one = told(Classes::Indices(vec![4])).unwrap();
    assert_eq!(
        message(one.forward(&x, &[1.0, 2.0])),
        "the classes is for 1 images; expected one for each of 2 images"
    );
    let without = formula_network(&golden_config("openai"));
    assert_eq!(
        without
            .with_classes(Classes::Indices(vec![0]))
            .err()
            .unwrap()
            .to_string(),
        "the classes is Indices([0]); expected none: the network is not class-conditional"
    );
    let vectors = formula_network(&golden_config("skips_into_plain_blocks"));
    let narrow = Classes::Vectors(Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap());
    assert_eq!(
        vectors.with_classes(narrow).err().unwrap().to_string(),
        "the classes is Vectors of F32 [1, 3]; expected F32 [batch, 20]"
    );
}

/// The class matters, image by image, and a network with classes is a denoiser.
#[test]
fn each_image_has_its_class() {
    let x = formula("input.x", &[1, 2, 4, 8]);
    let both = Tensor::cat(&[&x, &x], 0).unwrap();
    let network = formula_network(&golden_config("resnet_blocks"));
    let with = |classes| network.with_classes(Classes::Indices(classes)).unwrap();
    let together = with(vec![4, 1]).predict(&both, &[7.0, 7.0]).unwrap();
    for (row, class) in [4, 1].into_iter().enumerate() {
        let alone = with(vec![class]).predict(&x, &[7.0]).unwrap();
        let difference = max_difference(&together.narrow(0, row, 1).unwrap(), &alone);
        assert!(difference <= 1e-6, "{difference:e}");
    }
    let rows = [0, 1].map(|row| together.narrow(0, row, 1).unwrap());
    assert!(max_difference(&rows[0], &rows[1]) > 1e-3);
}

#[test]
fn times_beyond_a_table_or_without_a_logarithm_are_refused() {
    let refused = |case, x: &Tensor, time: &[f64]| {
        let network = formula_network(&golden_config(case));
        network.forward(x, time).unwrap_err().to_string()
    };
    let x = formula("input.x", &[1, 3, 4, 4]);
    for time in [1000.0, 0.5, -1.0] {
        assert_eq!(
            refused("halved_and_doubled_by_blocks", &x, &[time]),
            format!(
                "the time is {time}; expected a whole number below 1000, as many as have vectors \
                 (`time_embedding_type` is \"learned\")"
            )
        );
    }
    assert_eq!(
        refused("skip_blocks", &x, &[0.0]),
        "the time is 0; expected a level of noise above 0: its logarithm is told (`time_embedding_type` is \"fourier\")"
    );
}

#[test]
fn an_address_without_every_image_is_refused() {
    let x = formula("input.x", &[2, 3, 4, 6]);
    let address = DropoutAddress {
        seed: 0,
        step: 0,
        images: &[4],
    };
    assert_eq!(
        network()
            .forward_train(&x, &[1.0, 2.0], &address)
            .unwrap_err()
            .to_string(),
        "the dropout address is for 1 images; expected one index for each of 2 images"
    );
}
