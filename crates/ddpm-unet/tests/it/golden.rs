//! Outputs, names, shapes and order of diffusers' UNet2DModel. Recipe: `tests/golden/unet.py`.

use candle_core::{DType, Device};
use ddpm_unet::{UNet, UNetConfig};

use crate::formula::{
    formula, golden, golden_config, golden_network, golden_tensor, golden_text, max_difference,
};

#[track_caller]
fn check(case: &str) {
    let config = golden_config(case);
    let line = |(name, shape): (String, Vec<usize>)| {
        shape
            .iter()
            .fold(name, |line, side| format!("{line} {side}"))
            + "\n"
    };
    let parameters: String = config.parameters().into_iter().map(line).collect();
    assert_eq!(
        parameters,
        golden_text(&format!("{case}.parameters.txt")),
        "names, shapes or order"
    );

    let file = format!("{case}.safetensors");
    let x = golden_tensor(&file, "x");
    assert_eq!(
        max_difference(&formula(&format!("input.{case}.x"), x.dims()), &x),
        0.0,
        "the formula itself"
    );
    let time: Vec<f64> = golden_tensor(&file, "time")
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec1()
        .unwrap();
    let network = golden_network(case);
    let expected = golden_tensor(&file, "output");
    let output = network.forward(&x, &time).unwrap();
    let difference = max_difference(&output, &expected);
    assert!(difference <= 1e-5, "{difference:e}");

    // On the device of the tests.
    let device = ddpm_tests::device();
    let network = network.to_device(&device).unwrap();
    for (how, network) in [
        ("as it goes there", network.clone()),
        ("by graph", network.by_graph()),
    ] {
        let output = network.forward(&x.to_device(&device).unwrap(), &time);
        let output = output.unwrap().to_device(&Device::Cpu).unwrap();
        let difference = max_difference(&output, &expected);
        assert!(difference <= 1e-5, "{how}: {difference:e}");
    }
}

#[test]
fn hos_conventions_on_three_levels_one_channel() {
    check("ho");
}

#[test]
fn openais_conventions_scale_shift_several_heads_not_square() {
    check("openai");
}

#[test]
fn heads_narrower_than_the_width() {
    check("heads_that_do_not_fill_the_width");
}

#[test]
fn attention_groups_of_their_own_with_scale_shift() {
    check("attention_groups");
}

#[test]
fn attention_groups_of_their_own_without_scale_shift() {
    check("attention_groups_of_the_middle");
}

#[test]
fn one_level_three_layers_centred_input_no_attention() {
    check("one_level");
}

#[test]
fn no_middle_block() {
    check("no_middle");
}

#[test]
fn divided_middle_odd_width_more_outputs_than_inputs() {
    check("divided_middle");
}

#[test]
fn attention_on_the_way_up_only_and_widths_that_shrink() {
    check("uneven");
}

#[test]
fn four_levels_cosines_first_with_a_shift() {
    check("four_levels");
}

#[test]
fn biggans_blocks_classes_from_a_table_scale_shift() {
    check("resnet_blocks");
}

#[test]
fn filtered_images_beside_the_states_and_fouriers_times() {
    check("skip_blocks");
}

#[test]
fn the_same_with_attention_relu_and_groups_of_their_own() {
    check("attention_skip_blocks");
    check("attention_skip_blocks_up");
}

#[test]
fn residual_blocks_that_halve_and_double_gelu_learned_times() {
    check("halved_and_doubled_by_blocks");
}

#[test]
fn skip_blocks_before_others_mish_classes_as_vectors() {
    check("skips_into_plain_blocks");
}

#[test]
fn classes_told_as_times() {
    check("classes_as_times");
    check("classes_as_rows_beside_fourier");
}

#[test]
fn residual_sums_over_the_square_root_of_two() {
    check("rescaled");
}

#[test]
fn a_folder_saved_by_diffusers_gives_diffusers_output() {
    let config = UNetConfig::from_json(&golden_text("saved/config.json")).unwrap();
    let weights = golden("saved/diffusion_pytorch_model.safetensors");
    let network = UNet::new(
        &config,
        &candle_core::safetensors::load(weights, &Device::Cpu).unwrap(),
    )
    .unwrap();
    let output = network
        .forward(&golden_tensor("saved/io.safetensors", "x"), &[250.0, 3.0])
        .unwrap();
    let difference = max_difference(&output, &golden_tensor("saved/io.safetensors", "output"));
    assert!(difference <= 1e-5, "{difference:e}");
}

#[test]
fn published_parameter_counts() {
    assert_eq!(UNetConfig::ddpm_cifar10().parameter_count(), 35_746_307);
    assert_eq!(UNetConfig::ddpm_256().parameter_count(), 113_673_219);
}
