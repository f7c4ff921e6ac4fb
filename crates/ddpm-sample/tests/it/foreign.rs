//! Folders that others saved get diffusers' images, ours get DDIM as it is in the paper.

use candle_core::{Device, Tensor};
use ddpm_checkpoint::Pipeline;
use ddpm_core::NoiseSource;
use ddpm_random::sample_start;
use ddpm_samplers::{Choice, SamplerKind};
use ddpm_unet::{Network, Nonlinearity, UNetConfig, UNetSettings};

use crate::{House, bits, check_done, pipeline, same_images};

/// DDIM with eta = 0 draws nothing.
struct NoNoise;

impl NoiseSource for NoNoise {
    fn draw(&mut self, draw: usize, _: &Tensor) -> ddpm_core::Result<Tensor> {
        panic!("draw {draw} of a walk that needs no noise");
    }
}

/// What the library makes of the same model in so many of its 100 steps.
fn walked(steps: usize, as_diffusers: bool) -> Vec<u32> {
    let pipeline = pipeline();
    let network = Network::new(&pipeline.unet, &pipeline.weights).unwrap();
    let ddim = pipeline.scheduler.with_kind(SamplerKind::Ddim).unwrap();
    let choice = match as_diffusers {
        true => Choice::steps(steps).as_diffusers(),
        false => Choice::steps(steps),
    };
    let sampler = ddim.sampler(&choice).unwrap();
    let x_t = sample_start(0, 0, 2, (3, 4, 6), &Device::Cpu).unwrap();
    let mut noise = NoNoise;
    let walk = sampler.walk(&network, &x_t, &mut noise);
    bits(&walk.last().unwrap().unwrap().x)
}

/// diffusers goes down by floor(T / N) = 3 where the next of 30 steps is 3 or 4 away; with 20 steps both are 5, and only its f32 differs.
#[test]
fn ddim_lands_as_in_diffusers_only_for_what_diffusers_saved() {
    let house = House::new();
    pipeline().save(&house.path("foreign")).unwrap();
    let made = |model: &str, steps: usize| {
        house.samples_of(&format!("--model {model} --num 2 --steps {steps}"))
    };
    same_images("ours", &bits(&made("run", 30)), &walked(30, false));
    same_images("foreign", &bits(&made("foreign", 30)), &walked(30, true));
    let apart = |steps: usize| {
        let off = (made("foreign", steps) - made("run", steps)).unwrap();
        let worst = off.abs().unwrap().max_all().unwrap();
        worst.to_scalar::<f32>().unwrap()
    };
    assert!(apart(30) > 1e-3, "{}", apart(30));
    assert!(apart(20) < 1e-4, "{}", apart(20));
}

/// What no plan holds goes operation by operation and in f32, which is said; bf16 cannot be had for it.
#[test]
fn networks_without_a_plan_are_named() {
    let house = House::new();
    let plain = pipeline();
    let unet = UNetConfig::new(UNetSettings {
        act_fn: Nonlinearity::Gelu,
        ..plain.unet.as_unet_2d().unwrap().settings().clone()
    });
    let model = Pipeline::new(unet.unwrap(), plain.weights, plain.scheduler);
    model.save(&house.path("foreign")).unwrap();
    let said = |flags: &str| {
        let output = house.run(&format!(
            "--device cpu --model foreign --num 2 --steps 2 {flags}"
        ));
        check_done(&output);
        String::from_utf8(output.stderr).unwrap()
    };
    let note = "note: the network has `act_fn` gelu: it goes operation by operation, slower than others of its size";
    assert!(said("").contains(&format!("{note}\n")), "{}", said(""));
    let auto = said("--precision auto");
    assert!(auto.contains(&format!("{note}, and in f32\n")), "{auto}");
    let error = "error: --precision bf16 cannot be had: this network has `act_fn` gelu, for which there is only f32\n\nFor more information, try '--help'.";
    house.check_error("--device cpu --model foreign --precision bf16", 2, error);
    let output = house.run("--model foreign --inspect");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = "plan        none on the CPU, because of `act_fn` gelu\n";
    assert!(text.contains(line), "{text}");
    // Those that have one say nothing of it, and may be asked for bf16.
    plain_model_says_nothing(&house);
}

fn plain_model_says_nothing(house: &House) {
    let output = house.run("--device cpu --model run --num 2 --steps 2 --precision bf16");
    check_done(&output);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("operation by operation"), "{text}");
}
