//! Another program's file as a model: sampled from, inspected, written as a folder, and what must be said of it.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use ddpm_checkpoint::{TensorFile, write_tensors};

use crate::{House, bits, check_done};

/// What the program prints.
#[track_caller]
fn says(house: &House, flags: &str) -> String {
    let output = house.run(flags);
    check_done(&output);
    String::from_utf8(output.stdout).unwrap()
}

/// Expects this exit status and a message with this in it.
#[track_caller]
fn refuses(house: &House, flags: &str, status: i32, part: &str) {
    let output = house.run(flags);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.contains(part), "{text}");
}

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ddpm-checkpoint/tests/golden");
    folder.canonicalize().unwrap().join(name)
}

const HO: &str = "--arch image_size=8x12 diffusion_steps=100 noise_schedule=linear num_groups=2";

#[test]
fn a_file_gives_the_images_of_the_folder_it_is_written_as() {
    let house = House::new();
    let file = golden("ho.pt");
    let said = says(
        &house,
        &format!("--model {} {HO} --save-model folder", file.display()),
    );
    assert_eq!(said.trim(), "folder: a diffusers folder, 11767 parameters");
    let walk = "--num 2 --steps 3";
    let of_file = house.samples_of(&format!("--model {} {HO} {walk}", file.display()));
    let of_folder = house.samples_of(&format!("--model folder {walk}"));
    assert_eq!(of_file.dims(), [2, 3, 8, 12]);
    assert_eq!(bits(&of_file), bits(&of_folder));

    // A run's settings go along.
    says(&house, "--model run --weights raw --save-model raw");
    assert!(house.path("raw/run.toml").is_file());
    let raw = house.samples_of("--model raw --num 2 --steps 3");
    let same = house.samples_of("--model run --weights raw --num 2 --steps 3");
    assert_eq!(bits(&raw), bits(&same));

    let told = says(
        &house,
        &format!("--model {} {HO} --inspect", file.display()),
    );
    for line in [
        "levels 4, 8 with attention; 1 layers each",
        "3 channels, 8x12",
        "100 steps",
    ] {
        assert!(told.contains(line), "{told}");
    }
}

/// Every step of training by algorithm 2 of Ho et al., as lucidrains' `p_sample_loop`, from the noise that PyTorch had.
#[test]
fn lucidrains_networks_walk_as_in_pytorch() {
    let house = House::new();
    for (file, said) in [
        ("lucidrains", "image_size=6x4"),
        ("lucidrains_self", "image_size=4x8"),
        (
            "lucidrains_learned",
            "image_size=6x4 timesteps=40 beta_schedule=linear",
        ),
    ] {
        let mut known = TensorFile::open(&golden(&format!("{file}.safetensors"))).unwrap();
        let noise = ["noise", "step_noise"].map(|name| {
            let tensor = known.read_f32(name).unwrap();
            (name.to_owned(), tensor)
        });
        let place = house.path(&format!("{file}.noise.safetensors"));
        write_tensors(&place, "a test", &noise, &Default::default()).unwrap();
        let model = golden(&format!("{file}.pt"));
        let model = format!("--model {} --arch {said}", model.display());
        let walk = format!("--sampler ddpm --noise {file}.noise.safetensors");
        let found = house.samples_of(&format!("{model} {walk}"));
        let mut near = |found: &Tensor, key: &str| {
            let expected = known.read_f32(key).unwrap();
            let off = (found - expected).unwrap().abs().unwrap();
            let off = off.flatten_all().unwrap().max(0).unwrap();
            let off = off.to_scalar::<f32>().unwrap();
            assert!(off < 1e-4, "{file} {key}: {off}");
        };
        near(&found, "end");
        // The images that the program makes of a seed.
        let images = found.dim(0).unwrap();
        let seed = format!("--sampler ddpm --rng torch --seed 5 --num {images}");
        near(&house.samples_of(&format!("{model} {seed}")), "seeded");

        let said = says(&house, &format!("{model} --save-model {file}"));
        assert!(
            said.starts_with(&format!(
                "{file}: a folder of a LucidrainsUnet, which diffusers does not load"
            )),
            "{said}"
        );
        let of_folder = house.samples_of(&format!("--model {file} {walk}"));
        assert_eq!(bits(&found), bits(&of_folder));
        // It is no model of diffusers', and says why.
        assert!(!house.path(&format!("{file}/model_index.json")).exists());
        let note =
            std::fs::read_to_string(house.path(&format!("{file}/not-a-diffusers-pipeline.md")));
        assert!(note.unwrap().contains("which diffusers does not have"));
    }
}

#[test]
fn of_lucidrains_networks_only_what_is_true_is_said() {
    let house = House::new();
    let model = format!(
        "--model {} --arch image_size=6x4",
        golden("lucidrains.pt").display()
    );
    let told = says(&house, &format!("{model} --inspect"));
    for line in [
        "LucidrainsUnet, levels 4 with linear attention, 8 with full attention",
        "3 channels, 6x4",
        "none on the CPU, because of the attention of lucidrains' Unet",
        "ema, raw",
        "12 steps",
        "velocity",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    refuses(
        &house,
        &format!("{model} --precision bf16 --num 1"),
        2,
        "this network has the attention of lucidrains' Unet, for which there is only f32",
    );
    refuses(
        &house,
        &format!("{model} --class 1"),
        2,
        "the network knows no classes",
    );
    let said = golden("lucidrains_self.pt");
    refuses(
        &house,
        &format!(
            "--model {} --arch image_size=4x8 --sampler euler --levels karras --steps 4 --num 1",
            said.display()
        ),
        1,
        "choose ddpm or ddim",
    );
    refuses(
        &house,
        &format!("--model {} --arch image_size=4x6 --num 1", said.display()),
        1,
        "both sides must be multiples of 4",
    );
}

#[test]
fn a_list_has_raw_and_averaged_weights() {
    let house = House::new();
    let file = golden("ddim.pt");
    let said = "--arch image_size=4 diffusion_steps=100 noise_schedule=linear num_groups=2";
    let of = |weights: &str| {
        let model = format!("--model {} {said}", file.display());
        bits(&house.samples_of(&format!("{model} --num 1 --steps 2 {weights}")))
    };
    assert_eq!(of(""), of("--weights ema"));
    assert_ne!(of(""), of("--weights raw"));
}

#[test]
fn what_is_missing_or_in_vain_is_wrong_usage() {
    let house = House::new();
    let file = golden("ho.pt");
    refuses(
        &house,
        &format!("--model {}", file.display()),
        2,
        "give --arch image_size=N diffusion_steps=N noise_schedule=linear|cosine|quad|sigmoid|warmup10|warmup50|const|jsd num_groups=N",
    );
    refuses(
        &house,
        "--model run --arch num_heads=2",
        2,
        "folders say what they are",
    );
    refuses(
        &house,
        &format!("--model {} --arch heads", file.display()),
        2,
        "`heads` is not KEY=VALUE",
    );
    refuses(
        &house,
        "--model run --save-model run",
        1,
        "run already exists",
    );
}

/// The walk of its demonstrations from PyTorch's noise, as the folder that the file is written as walks it.
#[test]
fn k_diffusions_networks_walk_as_in_pytorch() {
    let house = House::new();
    let file = format!("--model {}", golden("k_diffusion.pt").display());
    let model = format!("{file} --arch image_size=8x12");
    let answers = golden("k_diffusion.answers.safetensors");
    let mut known = TensorFile::open(&answers).unwrap();
    let start = [("noise".to_owned(), known.read_f32("start").unwrap())];
    let noise = house.path("noise.safetensors");
    write_tensors(&noise, "a test", &start, &Default::default()).unwrap();
    says(&house, &format!("{model} --save-model folder"));
    for (sampler, name) in [("", "dpm"), ("--sampler heun", "heun")] {
        let walk = format!("--steps 5 --noise noise.safetensors {sampler}");
        let images = house.samples_of(&format!("{model} {walk}"));
        let expected = known.read_f32(name).unwrap();
        let off = (&images - &expected).unwrap().abs().unwrap();
        let off = off.flatten_all().unwrap().max(0).unwrap();
        let off = off.to_scalar::<f32>().unwrap();
        assert!(off < 1e-4, "{name}: {off}");
        let of_folder = house.samples_of(&format!("--model folder {walk}"));
        assert_eq!(bits(&images), bits(&of_folder));
    }
    let told = says(&house, &format!("{file} --inspect"));
    for line in [
        "KDiffusionImageV1, levels 4, 8 with attention; [1, 2] layers",
        "3 channels, 8x8",
        "none on the CPU, because of the normalisations of k-diffusion's image_v1",
    ] {
        assert!(told.contains(line), "{told}");
    }
    refuses(
        &house,
        &format!("{file} --arch num_heads=2"),
        2,
        "`num_heads` would be ignored",
    );
}

#[test]
fn a_model_of_the_hub_comes_from_the_cache_and_says_its_revision() {
    let house = House::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = house.path("cache/models--someone--tiny");
    crate::pipeline()
        .save(&repository.join("snapshots").join(commit))
        .unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    let run = |words: &str| {
        let mut command = house.command(&words.split_whitespace().collect::<Vec<_>>());
        command
            .env("HF_HUB_CACHE", "cache")
            .env("HF_HUB_OFFLINE", "1");
        command.output().unwrap()
    };
    let output = run("--model someone/tiny --num 1 --steps 2");
    check_done(&output);
    let told = String::from_utf8(output.stderr).unwrap();
    let expected =
        format!("note: someone/tiny, revision {commit} as the cache has it: HF_HUB_OFFLINE is set");
    assert!(told.contains(&expected), "{told}");
    let output = run("--model someone/tiny --inspect");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains(&format!("revision {commit}")), "{told}");
    let output = run("--model someone/else@v2");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap().trim(),
        "error: model `someone/else@v2` of the Hugging Face Hub: it is not in the cache cache/models--someone--else, and \
         HF_HUB_OFFLINE is set"
    );
    // A folder here with the owner's name: a path that is not there.
    std::fs::create_dir(house.path("runs")).unwrap();
    let output = run("--model runs/mien");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("runs/mien is not a model folder: there is nothing"),
        "{told}"
    );
}
