//! `--inpaint` and `--invert`: images in, and what is known of them kept.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use ddpm_checkpoint::{TensorFile, write_tensors};
use ddpm_image::{Picture, PixelMap, read_png, write_png};
use ddpm_random::{SampleNoise, sample_start};
use ddpm_samplers::{Choice, RePaintSettings, SchedulerClass, repaint};
use ddpm_unet::Network;

use crate::{House, bits, check_done, read_samples, same_images};

const HINT: &str = "\n\nFor more information, try '--help'.";

/// A colour picture of 4 rows and 6 columns as PNG; its left half is known.
fn pictures(house: &House) -> (Tensor, Tensor) {
    let pixels: Vec<u8> = (0..72).map(|i| (i * 37 % 251) as u8).collect();
    let picture = Picture::new(6, 4, 3, pixels.clone()).unwrap();
    write_png(house.path("old.png"), &picture, &[]).unwrap();
    let known: Vec<u8> = (0..24).map(|i| if i % 6 < 3 { 128 } else { 127 }).collect();
    let mask = Picture::new(6, 4, 1, known.clone()).unwrap();
    write_png(house.path("keep.png"), &mask, &[]).unwrap();
    let map = PixelMap::MinusOneToOne;
    let image = map.to_tensor(&pixels, 1, (4, 6, 3), &Device::Cpu).unwrap();
    let known: Vec<f32> = known
        .iter()
        .map(|&k| f32::from(u8::from(k == 128)))
        .collect();
    let known = Tensor::from_vec(known, (1, 1, 4, 6), &Device::Cpu).unwrap();
    (image, known)
}

fn save(house: &House, file: &str, name: &str, tensor: &Tensor) {
    let tensors = [(name.to_owned(), tensor.clone())];
    write_tensors(&house.path(file), "images", &tensors, &BTreeMap::new()).unwrap();
}

/// The program's painting is the library's walk, whatever the batch, and keeps the known part to the last bit.
#[test]
fn what_is_known_is_kept_and_the_rest_is_the_librarys_walk() {
    let house = House::new();
    crate::pipeline().save(&house.path("foreign")).unwrap();
    let (image, known) = pictures(&house);
    let paint = "--model foreign --inpaint old.png --mask keep.png --steps 10 --jumps 3,2 --eta 0.5 --seed 4";
    let made = house.samples_of(&format!("{paint} --num 3"));
    let pipeline = crate::pipeline();
    let network = Network::new(&pipeline.unet, &pipeline.weights).unwrap();
    let config = pipeline
        .scheduler
        .switched(SchedulerClass::RePaint)
        .unwrap();
    let choice = Choice::steps(10).as_diffusers();
    let process = config.whole_process(&choice).unwrap();
    let x_t = sample_start(4, 0, 3, (3, 4, 6), &Device::Cpu).unwrap();
    let settings = RePaintSettings {
        image: image.clone(),
        known: known.clone(),
        eta: 0.5,
        jump_length: 3,
        jump_count: 2,
    };
    // Three jumps of three steps, each up and down again.
    assert_eq!(settings.moves(10), 10 + 3 * 3 * 2);
    assert_eq!(settings.draws(10, 100), 19 + 9 * 10);
    let mut noise = SampleNoise {
        seed: 4,
        first_image: 0,
    };
    let walk = repaint(&process, 10, settings, &network, &x_t, &mut noise);
    let expected = walk.last().unwrap().unwrap().x;
    same_images("the walk", &bits(&made), &bits(&expected));
    let others = house.samples_of(&format!("{paint} --num 3 --batch-size 2"));
    same_images("of another batch", &bits(&others), &bits(&made));
    let known = known.broadcast_as(made.shape()).unwrap();
    let image = image.broadcast_as(made.shape()).unwrap();
    let off = ((&made - &image).unwrap() * &known).unwrap().abs().unwrap();
    assert_eq!(off.max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    // One image where no number is given; the picture says what it was made of.
    check_done(&house.run(&format!("{paint} --out one.png")));
    let (_, texts) = read_png(house.path("one.png")).unwrap();
    for (key, text) in [
        ("sampler", "repaint"),
        ("inpainted", "old.png"),
        ("mask", "keep.png"),
        ("jumps", "3,2"),
    ] {
        assert!(
            texts.contains(&(key.to_owned(), text.to_owned())),
            "{texts:?}"
        );
    }
    // The same from tensors, one mask an image.
    let two = Tensor::cat(&[&image.narrow(0, 0, 1).unwrap(); 2], 0).unwrap();
    save(&house, "two.safetensors", "samples", &two);
    let masks = Tensor::cat(&[&known.narrow(0, 0, 1).unwrap(); 2], 0).unwrap();
    save(&house, "masks.safetensors", "mask", &masks);
    let flags = paint
        .replace("old.png", "two.safetensors")
        .replace("keep.png", "masks.safetensors");
    let first = made.narrow(0, 0, 2).unwrap();
    same_images(
        "the first two",
        &bits(&house.samples_of(&flags)),
        &bits(&first),
    );
}

/// There and back again: DDIM's noise for an image makes that image.
#[test]
fn inverted_images_come_back() {
    let house = House::new();
    // What is clipped cannot be undone, and an untrained network leaves [-1, 1].
    let made = house.samples_of("--model run --num 3 --steps 50 --no-clip");
    save(&house, "made.safetensors", "samples", &made);
    let steps = "--model run --steps 100 --no-clip";
    let invert = format!("{steps} --invert made.safetensors --batch-size 2 --out x.safetensors");
    check_done(&house.run(&invert));
    let mut file = TensorFile::open(&house.path("x.safetensors")).unwrap();
    assert_eq!(file.names(), ["noise"]);
    let noise = file.read("noise").unwrap();
    assert_eq!(noise.dims(), [3, 3, 4, 6]);
    let again = house.samples_of(&format!("{steps} --noise x.safetensors"));
    let off = (&again - &made).unwrap().abs().unwrap();
    let worst: f32 = off.max_all().unwrap().to_scalar().unwrap();
    let other = house.samples_of("--model run --num 3 --steps 100 --seed 5 --no-clip");
    let apart = (other - &made).unwrap().abs().unwrap().mean_all().unwrap();
    let apart: f32 = apart.to_scalar().unwrap();
    println!("back within {worst}, others are {apart} apart");
    assert!(worst < 0.1 * apart, "{worst} of {apart}");
}

#[test]
fn images_that_do_not_fit_are_named() {
    let house = House::new();
    pictures(&house);
    let failed = |flags: &str, text: &str| {
        house.check_error(
            &format!("--model run {flags}"),
            1,
            &format!("error: {text}"),
        );
    };
    let wide = Picture::new(4, 6, 3, vec![0; 72]).unwrap();
    write_png(house.path("wide.png"), &wide, &[]).unwrap();
    failed(
        "--inpaint wide.png --mask keep.png",
        "wide.png: it is [1, 3, 6, 4] as [N, C, H, W], the model makes [N, 3, 4, 6]",
    );
    failed(
        "--inpaint keep.png --mask keep.png",
        "keep.png: it is [1, 1, 4, 6] as [N, C, H, W], the model makes [N, 3, 4, 6]",
    );
    let beyond = Tensor::full(2f32, (1, 1, 4, 6), &Device::Cpu).unwrap();
    save(&house, "beyond.safetensors", "mask", &beyond);
    failed(
        "--inpaint old.png --mask beyond.safetensors",
        "beyond.safetensors: `mask` holds 2, expected 0 to 1",
    );
    save(&house, "other.safetensors", "x", &beyond);
    failed(
        "--invert other.safetensors --out x.safetensors",
        "other.safetensors: there is no tensor `samples`",
    );
    let usage = |flags: &str, text: &str| {
        house.check_error(
            &format!("--model run {flags}"),
            2,
            &format!("error: {text}{HINT}"),
        );
    };
    usage(
        "--invert old.png",
        "--invert makes noise, which goes into --out FILE.safetensors, not samples.png",
    );
    let zeros = Tensor::zeros((2, 3, 4, 6), DType::F32, &Device::Cpu).unwrap();
    save(&house, "zeros.safetensors", "samples", &zeros);
    usage(
        "--invert zeros.safetensors --num 3 --out x.safetensors",
        "--num is 3, but --invert holds 2 images",
    );
    usage(
        "--inpaint zeros.safetensors --mask keep.png --num 3",
        "--num is 3, but --inpaint and --mask hold 2 images",
    );
    usage(
        "--inpaint old.png --mask keep.png --steps 101",
        "--steps is 101, but the model's schedule has only 100 steps",
    );
    for flags in [
        "--inpaint old.png",
        "--mask keep.png",
        "--jumps 2,2",
        "--inpaint old.png --mask keep.png --jumps 0,2",
        "--inpaint old.png --mask keep.png --sampler ddim",
        "--invert old.png --inpaint old.png --mask keep.png",
        "--invert old.png --seed 3",
    ] {
        let output = house.run(&format!("--model run {flags}"));
        assert_eq!(output.status.code(), Some(2), "{flags}");
    }
    assert!(read_samples_fails(&house));
}

/// Nothing was written meanwhile.
fn read_samples_fails(house: &House) -> bool {
    !house.path("samples.png").exists() && !house.path("x.safetensors").exists()
}

/// Folders whose scheduler needs an image say so, or make new images by DDIM and say that.
#[test]
fn folders_that_need_an_image_say_so() {
    let house = House::new();
    let model = house.path("foreign");
    crate::pipeline().save(&model).unwrap();
    let config = model.join("scheduler/scheduler_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let ddim = bits(&house.samples_of("--model foreign --num 2 --steps 5 --sampler ddim"));
    for (class, flag, does) in [
        (
            "RePaintScheduler",
            "--inpaint IMAGE --mask IMAGE",
            "paints in an image (--inpaint)",
        ),
        (
            "DDIMInverseScheduler",
            "--invert IMAGE",
            "goes from an image to noise (--invert)",
        ),
    ] {
        std::fs::write(&config, text.replace("DDPMScheduler", class)).unwrap();
        let output = house.run("--model foreign --num 2 --steps 5 --out out.safetensors");
        check_done(&output);
        let said = String::from_utf8(output.stderr).unwrap();
        let note = format!("note: the model's {class} {does}; new images are made by ddim\n");
        assert!(said.contains(&note), "{said}");
        assert_eq!(bits(&read_samples(&house.path("out.safetensors"))), ddim);
        let error = format!(
            "error: the model's {class} needs an image: give {flag}, or another --sampler{HINT}"
        );
        house.check_error("--model foreign --num 2 --steps 5 --rng torch", 2, &error);
    }
}
