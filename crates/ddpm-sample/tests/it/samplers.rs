//! Every sampler by its name on one model, and flags that one of them would ignore.

use ddpm_samplers::SamplerKind;

use crate::{House, bits, check_done};

const HINT: &str = "\n\nFor more information, try '--help'.";

/// A network that was never trained is no judge of images; that all of them are made, and are not all the same, is.
#[test]
fn every_sampler_makes_images_of_any_model() {
    let house = House::new();
    crate::pipeline().save(&house.path("foreign")).unwrap();
    let mut seen = Vec::new();
    for kind in SamplerKind::all() {
        for model in ["run", "foreign"] {
            let made = house.samples_of(&format!(
                "--model {model} --num 2 --steps 8 --sampler {kind}"
            ));
            let numbers: Vec<f32> = made.flatten_all().unwrap().to_vec1().unwrap();
            assert!(
                numbers.iter().all(|x| x.is_finite()),
                "{kind} of {model}: {numbers:?}"
            );
            seen.push(bits(&made));
        }
    }
    seen.sort();
    seen.dedup();
    assert!(
        seen.len() > 30,
        "{} of {}",
        seen.len(),
        2 * SamplerKind::all().len()
    );
}

#[test]
fn settings_reach_the_sampler() {
    let house = House::new();
    let made = |flags: &str| bits(&house.samples(&format!("--sampler {flags}")));
    let plain = made("dpm++");
    for flags in [
        "dpm++ --order 1",
        "dpm++ --levels karras",
        "dpm++ --levels exponential",
        "dpm++ --spacing leading",
    ] {
        assert_ne!(made(flags), plain, "{flags}");
    }
    assert_eq!(made("dpm++ --order 2 --spacing trailing"), plain);
    assert_eq!(made("dpm++2m"), plain);
    // Its own times in words.
    let at = |flags: &str| bits(&house.samples_of(&format!("--model run --num 3 {flags}")));
    assert_eq!(at("--sampler dpm++ --timesteps 99,74,49,24"), plain);
    assert_eq!(
        at("--sampler ddim --timesteps 99,74,49,24"),
        at("--steps 4")
    );
    assert_ne!(at("--sampler euler --sigmas 3,1,0.2,0"), plain);
}

#[test]
fn what_a_sampler_would_ignore_is_wrong_usage() {
    let house = House::new();
    let usage = |flags: &str, text: &str| {
        house.check_error(
            &format!("--model run {flags}"),
            2,
            &format!("error: {text}{HINT}"),
        )
    };
    usage(
        "--sampler euler --order 2",
        "--order would be ignored: the sampler euler has nothing of the kind",
    );
    usage(
        "--sampler ddpm --levels karras",
        "--levels karras would be ignored: the sampler ddpm has nothing of the kind",
    );
    usage(
        "--sampler dpm++2s --spacing trailing",
        "--spacing would be ignored: the sampler dpm++2s has nothing of the kind",
    );
    usage(
        "--sampler dpm++ --levels karras --spacing trailing",
        "--spacing would be ignored: with --levels dpm++ goes between the ends of training",
    );
    usage(
        "--sampler euler --no-clip",
        "--no-clip would be ignored: the sampler euler has nothing of the kind",
    );
    usage(
        "--sampler unipc --eta 0.5",
        "--eta belongs to the sampler ddim; unipc would ignore it",
    );
    usage(
        "--sampler dpm++ --order 4",
        "scheduler configuration: `solver_order` is 4, expected 1 to 3",
    );
    usage(
        "--timesteps 5,6",
        "the timesteps must be at least one number, fall, and lie in 0..100",
    );
    usage(
        "--sampler ddpm --sigmas 3,0",
        "DDPMScheduler works on steps of training: give it timesteps, not sigmas",
    );
    for flags in [
        "--timesteps 5,3 --steps 2",
        "--sigmas 5,0 --levels karras",
        "--rng torch --noise x.safetensors",
        "--levels round",
    ] {
        let output = house.run(&format!("--model run {flags}"));
        assert_eq!(output.status.code(), Some(2), "{flags}");
    }
}

/// diffusers' folders are walked by their own scheduler, but for the slow one.
#[test]
fn a_folder_says_which_sampler_it_is_for() {
    let house = House::new();
    let model = house.path("foreign");
    crate::pipeline().save(&model).unwrap();
    let config = model.join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let made = |flags: &str| {
        bits(&house.samples_of(&format!("--model foreign --num 2 --steps 8 {flags}")))
    };
    assert_eq!(made(""), made("--sampler ddim"));
    let heun = text.replace("DDPMScheduler", "HeunDiscreteScheduler");
    std::fs::write(&config, heun).unwrap();
    assert_eq!(made(""), made("--sampler heun"));
    assert_ne!(made(""), made("--sampler ddim"));
    let output = house.run("--model foreign --inspect");
    check_done(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("scheduler   HeunDiscreteScheduler\n"),
        "{text}"
    );
}
