//! Models that know classes: chosen, each in turn, drawn by the seed or given by a file; told to the network, and told on.

use std::collections::BTreeMap;

use candle_core::npy::NpzTensors;
use candle_core::{DType, Device, Tensor};
use ddpm_checkpoint::{Pipeline, TensorFile, write_tensors};
use ddpm_core::NoiseSource;
use ddpm_image::{Picture, PixelMap, read_png, sheet_with_columns};
use ddpm_random::sample_start;
use ddpm_samplers::{Choice, SamplerKind};
use ddpm_unet::{
    ClassEmbedType, Classes, Initialisation, Network, UNetConfig, UNetSettings, initialise,
};

use crate::{House, bits, check_done, read_samples, same_images};

const HINT: &str = "\n\nFor more information, try '--help'.";

/// The usual random network, with classes of this kind.
fn model(kind: Option<ClassEmbedType>, classes: Option<usize>) -> Pipeline {
    let plain = crate::pipeline();
    let unet = UNetConfig::new(UNetSettings {
        class_embed_type: kind,
        num_class_embeds: classes,
        ..plain.unet.as_unet_2d().unwrap().settings().clone()
    })
    .unwrap();
    let weights = initialise(&unet, Initialisation::PyTorch, 12, &Device::Cpu).unwrap();
    Pipeline::new(unet, weights.into_iter().collect(), plain.scheduler)
}

fn house(kind: Option<ClassEmbedType>, classes: Option<usize>) -> House {
    let house = House::new();
    model(kind, classes).save(&house.path("model")).unwrap();
    house
}

struct NoNoise;

impl NoiseSource for NoNoise {
    fn draw(&mut self, draw: usize, _: &Tensor) -> ddpm_core::Result<Tensor> {
        panic!("draw {draw} of a walk that needs no noise");
    }
}

/// What the library makes of the model in 4 steps for images of these classes.
fn walked(model: &Pipeline, classes: Classes, images: usize) -> Vec<u32> {
    let network = Network::new(&model.unet, &model.weights).unwrap();
    let network = network.with_classes(classes).unwrap();
    let ddim = model.scheduler.with_kind(SamplerKind::Ddim).unwrap();
    let sampler = ddim.sampler(&Choice::steps(4).as_diffusers()).unwrap();
    let x_t = sample_start(0, 0, images, (3, 4, 6), &Device::Cpu).unwrap();
    let mut noise = NoNoise;
    let walk = sampler.walk(&network, &x_t, &mut noise);
    bits(&walk.last().unwrap().unwrap().x)
}

/// The images, and the classes beside them.
fn made(house: &House, flags: &str) -> (Vec<u32>, Vec<i64>) {
    let flags = format!("--model model --steps 4 --out out.safetensors {flags}");
    check_done(&house.run(&flags));
    let mut file = TensorFile::open(&house.path("out.safetensors")).unwrap();
    let classes = file.read("classes").unwrap().to_vec1().unwrap();
    (bits(&file.read("samples").unwrap()), classes)
}

#[test]
fn the_class_that_is_asked_for_is_told_to_the_network() {
    let (house, model) = (house(None, Some(5)), model(None, Some(5)));
    for class in [0, 4] {
        let expected = walked(&model, Classes::Indices(vec![class; 3]), 3);
        for batch in ["", "--batch-size 2"] {
            let (images, classes) = made(&house, &format!("--num 3 --class {class} {batch}"));
            same_images(&format!("{class}, {batch}"), &images, &expected);
            assert_eq!(classes, [class as i64; 3]);
        }
    }
    assert_ne!(
        made(&house, "--num 3 --class 0").0,
        made(&house, "--num 3 --class 4").0
    );
}

#[test]
fn all_makes_each_class_in_turn_and_a_grid_with_a_column_for_each() {
    let (house, model) = (house(None, Some(5)), model(None, Some(5)));
    let (images, classes) = made(&house, "--num 7 --class all --batch-size 3");
    assert_eq!(classes, [0, 1, 2, 3, 4, 0, 1]);
    let indices = classes.iter().map(|&class| class as usize).collect();
    let expected = walked(&model, Classes::Indices(indices), 7);
    same_images("all", &images, &expected);
    for place in ["grid.png", "all.npz", "single/"] {
        let flags = format!("--model model --steps 4 --num 7 --class all --out {place}");
        check_done(&house.run(&flags));
    }
    let mut file = TensorFile::open(&house.path("out.safetensors")).unwrap();
    let samples = file.read("samples").unwrap();
    let pictures = Picture::from_tensor(&samples, &PixelMap::MinusOneToOne).unwrap();
    let (grid, texts) = read_png(house.path("grid.png")).unwrap();
    assert_eq!(grid, sheet_with_columns(&pictures, 5).unwrap());
    assert!(texts.contains(&("class".to_owned(), "all".to_owned())));
    let (_, texts) = read_png(house.path("single/000006.png")).unwrap();
    assert!(texts.contains(&("class".to_owned(), "1".to_owned())));
    let npz = NpzTensors::new(house.path("all.npz")).unwrap();
    let mut names = npz.names();
    names.sort_unstable();
    assert_eq!(names, ["arr_0", "arr_1"]);
    let labels = npz.get("arr_1").unwrap().unwrap();
    assert_eq!(labels.dtype(), DType::I64);
    assert_eq!(labels.to_vec1::<i64>().unwrap(), classes);
    let images = npz.get("arr_0").unwrap().unwrap();
    let bytes: Vec<u8> = pictures.iter().flat_map(|p| p.pixels().to_vec()).collect();
    assert_eq!(
        images.flatten_all().unwrap().to_vec1::<u8>().unwrap(),
        bytes
    );
    // Whole rows where no number is given: 12 of 5.
    assert_eq!(made(&house, "--class all").1.len(), 60);
}

/// Without a choice the seed draws: an image keeps its class in any batch and number, and over many all classes come.
#[test]
fn the_seed_draws_where_nobody_chooses() {
    let (house, model) = (house(None, Some(5)), model(None, Some(5)));
    let (images, classes) = made(&house, "--num 40");
    let indices: Vec<usize> = classes.iter().map(|&class| class as usize).collect();
    let expected = walked(&model, Classes::Indices(indices), 40);
    same_images("drawn", &images, &expected);
    for class in 0..5 {
        assert!(classes.contains(&class), "{classes:?}");
    }
    assert_eq!(made(&house, "--num 9 --batch-size 4").1, classes[..9]);
    assert_ne!(made(&house, "--num 40 --seed 1").1, classes);
    let output = house.run("--model model --steps 2 --num 2");
    let text = String::from_utf8(output.stderr).unwrap();
    let note =
        "note: each image is of a class that the seed draws; --class N or --class all chooses\n";
    assert!(text.contains(note), "{text}");
}

#[test]
fn a_file_brings_classes_of_any_kind() {
    let noise = sample_start(0, 0, 2, (3, 4, 6), &Device::Cpu).unwrap();
    let save = |house: &House, classes: Tensor| {
        let tensors = [
            ("noise".to_owned(), noise.clone()),
            ("classes".to_owned(), classes),
        ];
        let path = house.path("noise.safetensors");
        write_tensors(&path, "noise", &tensors, &BTreeMap::new()).unwrap();
    };
    let flags = "--model model --steps 4 --out out.safetensors --noise noise.safetensors";
    let result = |house: &House| {
        check_done(&house.run(flags));
        let mut file = TensorFile::open(&house.path("out.safetensors")).unwrap();
        bits(&file.read("samples").unwrap())
    };
    let numbers = Tensor::new(&[3i64, 1], &Device::Cpu).unwrap();
    let house_of = house(None, Some(5));
    save(&house_of, numbers.clone());
    let expected = walked(&model(None, Some(5)), Classes::Indices(vec![3, 1]), 2);
    same_images("indices", &result(&house_of), &expected);
    let times = house(Some(ClassEmbedType::Timestep), None);
    save(&times, numbers);
    let model_of = model(Some(ClassEmbedType::Timestep), None);
    let expected = walked(&model_of, Classes::Numbers(vec![3.0, 1.0]), 2);
    same_images("numbers", &result(&times), &expected);
    let vectors = house(Some(ClassEmbedType::Identity), None);
    let told = sample_start(9, 0, 2, (1, 1, 16), &Device::Cpu).unwrap();
    let told = told.reshape((2, 16)).unwrap();
    save(&vectors, told.clone());
    let model_of = model(Some(ClassEmbedType::Identity), None);
    let expected = walked(&model_of, Classes::Vectors(told), 2);
    same_images("vectors", &result(&vectors), &expected);
    assert_eq!(
        read_samples(&vectors.path("out.safetensors")).dims(),
        [2, 3, 4, 6]
    );
    // Wrong ones.
    let wrong = |house: &House, classes: Tensor, text: &str| {
        save(house, classes);
        std::fs::remove_file(house.path("out.safetensors")).ok();
        house.check_error(flags, 1, &format!("error: {text}"));
    };
    let of = |numbers: &[f32]| Tensor::new(numbers, &Device::Cpu).unwrap();
    wrong(
        &house_of,
        of(&[1.0, 5.0]),
        "the tensor `classes` of --noise: it holds 5, expected whole numbers from 0 to 4",
    );
    wrong(
        &house_of,
        of(&[1.0, 2.0, 3.0]),
        "noise.safetensors: `classes` is [3], expected one for each of 2 images",
    );
    wrong(
        &vectors,
        of(&[1.0, 2.0]),
        "the tensor `classes` of --noise: it is [2], expected [N, 16]",
    );
}

#[test]
fn classes_that_make_no_sense_are_wrong_usage() {
    let usage = |house: &House, flags: &str, text: &str| {
        let flags = format!("--model model --steps 4 {flags}");
        house.check_error(&flags, 2, &format!("error: {text}{HINT}"));
    };
    let five = house(None, Some(5));
    usage(
        &five,
        "--class 5",
        "--class is 5; the classes of the network go from 0 to 4",
    );
    usage(
        &five,
        "--class all --num 4",
        "--class all makes at least one image of each of 5 classes, but only 4 are asked for",
    );
    usage(
        &five,
        "--rng torch",
        "the network knows 5 classes, and --rng torch draws none: give --class N or --class all",
    );
    let none = House::new();
    crate::pipeline().save(&none.path("model")).unwrap();
    usage(
        &none,
        "--class 0",
        "--class would be ignored: the network knows no classes",
    );
    let times = house(Some(ClassEmbedType::Timestep), None);
    let text = "the network is told its class by any number (`class_embed_type` \"timestep\") and does not say how many there are: give --class N";
    usage(&times, "", text);
    usage(&times, "--class all", text);
    let vectors = house(Some(ClassEmbedType::Identity), None);
    usage(
        &vectors,
        "--class 1",
        "the network is told its class by 16 numbers (`class_embed_type` \"identity\"): give --noise with a tensor `classes`, f32 [N, 16]",
    );
    for wrong in ["-1", "1.5", "every", ""] {
        let output = five.run_words(&["--model", "model", "--class", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    let output = five.run("--model model --inspect");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("classes     5, 0 to 4\n"), "{text}");
}
