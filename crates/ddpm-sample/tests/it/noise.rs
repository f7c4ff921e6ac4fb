//! Noise from a file: the walk starts where it says and takes every step's noise from it.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddpm_checkpoint::write_tensors;
use ddpm_core::NoiseSource;
use ddpm_random::{SampleNoise, sample_start};

use crate::{House, bits, same_images};

/// The noise that seed 6 would have drawn for 3 images, and for each of 3 steps.
fn seeded() -> (Tensor, Tensor) {
    let noise = sample_start(6, 0, 3, (3, 4, 6), &Device::Cpu).unwrap();
    let mut source = SampleNoise {
        seed: 6,
        first_image: 0,
    };
    let steps: Vec<Tensor> = (0..3)
        .map(|draw| source.draw(draw, &noise).unwrap())
        .collect();
    (noise, Tensor::stack(&steps, 0).unwrap())
}

fn save(house: &House, tensors: &[(&str, Tensor)]) {
    let tensors: Vec<(String, Tensor)> = tensors
        .iter()
        .map(|(name, t)| ((*name).to_owned(), t.clone()))
        .collect();
    write_tensors(
        &house.path("noise.safetensors"),
        "noise",
        &tensors,
        &BTreeMap::new(),
    )
    .unwrap();
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_walk_from_a_seeds_noise_is_that_seeds_walk() {
    let house = House::new();
    let (noise, step_noise) = seeded();
    save(&house, &[("noise", noise.clone())]);
    let from_file = "--model run --steps 4 --noise noise.safetensors";
    assert_eq!(
        bits(&house.samples_of(from_file)),
        bits(&house.samples("--seed 6"))
    );
    // x_T from the file, the noise of the steps still from the seed.
    let seeded = house.samples("--seed 6 --sampler ddpm");
    assert_eq!(
        bits(&house.samples_of(&format!("{from_file} --seed 6 --sampler ddpm"))),
        bits(&seeded)
    );
    save(&house, &[("noise", noise), ("step_noise", step_noise)]);
    for batch in ["", "--batch-size 2"] {
        let made = house.samples_of(&format!("{from_file} --sampler ddpm {batch}"));
        same_images(batch, &bits(&made), &bits(&seeded));
        let seeded = house.samples("--seed 6 --eta 0.7");
        let made = house.samples_of(&format!("{from_file} --eta 0.7 {batch}"));
        same_images(batch, &bits(&made), &bits(&seeded));
    }
}

#[test]
fn a_note_tells_that_step_noise_is_not_used() {
    let house = House::new();
    let (noise, step_noise) = seeded();
    save(&house, &[("noise", noise), ("step_noise", step_noise)]);
    let err = String::from_utf8(
        house
            .run("--model run --steps 4 --noise noise.safetensors")
            .stderr,
    )
    .unwrap();
    assert!(
        err.starts_with("note: this walk draws no noise; step_noise is not used\n"),
        "{err}"
    );
}

#[test]
fn wrong_shapes_are_named() {
    let check = |tensors: &[(&str, Tensor)], flags: &str, expected: &str| {
        let house = House::new();
        save(&house, tensors);
        house.check_error(
            &format!("--model run --steps 4 --noise noise.safetensors {flags}"),
            1,
            expected,
        );
    };
    let good = || ("noise", zeros(&[2, 3, 4, 6]));
    check(
        &[("x", zeros(&[1]))],
        "",
        "error: noise.safetensors: tensor `x` is none of `noise`, `step_noise` and `classes`",
    );
    check(
        &[("step_noise", zeros(&[1, 2, 3, 4, 6]))],
        "",
        "error: noise.safetensors: there is no tensor `noise`",
    );
    check(
        &[("noise", zeros(&[3, 4, 6]))],
        "",
        "error: noise.safetensors: `noise` is [3, 4, 6], expected [N, C, H, W] with N at least 1",
    );
    check(
        &[("noise", zeros(&[2, 3, 6, 4]))],
        "",
        "error: noise.safetensors: `noise` is [2, 3, 6, 4], the model makes [N, 3, 4, 6]",
    );
    check(
        &[good(), ("step_noise", zeros(&[3, 1, 3, 4, 6]))],
        "--sampler ddpm",
        "error: noise.safetensors: `step_noise` is [3, 1, 3, 4, 6], expected [S, 2, 3, 4, 6] after `noise`",
    );
    check(
        &[good(), ("step_noise", zeros(&[2, 2, 3, 4, 6]))],
        "--sampler ddpm",
        "error: noise.safetensors: `step_noise` is [2, 2, 3, 4, 6], this walk draws 3 times",
    );
    check(
        &[("noise", zeros(&[2, 3, 4, 6]).to_dtype(DType::I64).unwrap())],
        "",
        "error: noise.safetensors: tensor `noise` is i64, expected floating-point numbers",
    );
}

#[test]
fn flags_that_the_noise_makes_void_are_refused() {
    let house = House::new();
    let (noise, step_noise) = seeded();
    let hint = "\n\nFor more information, try '--help'.";
    let flags = "--model run --steps 4 --noise noise.safetensors";
    save(&house, &[("noise", noise.clone())]);
    let expected = format!("error: --num is 4, but --noise holds the noise of 3 images{hint}");
    house.check_error(&format!("{flags} --num 4"), 2, &expected);
    let expected = format!(
        "error: --seed would be ignored: --noise is the only noise of ddim with eta 0{hint}"
    );
    house.check_error(&format!("{flags} --seed 1 --sampler ddim"), 2, &expected);
    let expected =
        format!("error: --seed would be ignored: this walk draws no noise besides --noise{hint}");
    house.check_error(&format!("{flags} --seed 1"), 2, &expected);
    let one_step = "--model run --steps 1 --noise noise.safetensors --sampler ddpm --seed 1";
    house.check_error(one_step, 2, &expected);
    save(&house, &[("noise", noise), ("step_noise", step_noise)]);
    let expected =
        format!("error: --seed would be ignored: --noise brings all the noise of the walk{hint}");
    house.check_error(&format!("{flags} --seed 1 --sampler ddpm"), 2, &expected);
}

/// The walk of a file with `set_alpha_to_one: false` ends beside the clean image, so its last step draws as well.
#[test]
fn a_walk_that_draws_at_every_step_needs_noise_for_each() {
    let house = House::new();
    let model = house.path("foreign");
    crate::pipeline().save(&model).unwrap();
    let config = model.join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replacen('{', "{\"set_alpha_to_one\": false,", 1);
    std::fs::write(&config, text).unwrap();
    let (noise, step_noise) = seeded();
    let flags = "--model foreign --noise noise.safetensors --eta 1 --steps";
    save(&house, &[("noise", noise), ("step_noise", step_noise)]);
    let expected =
        "error: noise.safetensors: `step_noise` is [3, 3, 3, 4, 6], this walk draws 4 times";
    house.check_error(&format!("{flags} 4"), 1, expected);
    house.samples_of(&format!("{flags} 3"));
}
