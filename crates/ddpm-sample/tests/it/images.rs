//! Every form of output holds the same images, and an image depends on its seed and number alone.

use candle_core::npy::NpzTensors;
use candle_core::{D, Tensor};
use ddpm_image::{Picture, PixelMap, read_png, sheet};

use crate::{House, bits, check_done, read_samples, same_images, write};

#[test]
fn every_form_holds_the_same_images() {
    let house = House::new();
    for place in ["grid.png", "all.npz", "all.safetensors", "single/"] {
        check_done(&house.sample(&format!("--out {place}")));
    }
    let samples = read_samples(&house.path("all.safetensors"));
    assert_eq!(samples.dims(), [3, 3, 4, 6]);
    let pictures = Picture::from_tensor(&samples, &PixelMap::MinusOneToOne).unwrap();
    assert_eq!(
        read_png(house.path("grid.png")).unwrap().0,
        sheet(&pictures).unwrap()
    );
    for (index, picture) in pictures.iter().enumerate() {
        let (read, texts) = read_png(house.path(&format!("single/{index:06}.png"))).unwrap();
        assert_eq!(&read, picture);
        assert!(texts.contains(&("image".to_owned(), index.to_string())));
    }
    assert_eq!(std::fs::read_dir(house.path("single")).unwrap().count(), 3);
    let npz = NpzTensors::new(house.path("all.npz")).unwrap();
    assert_eq!(npz.names(), ["arr_0"]);
    let array = npz.get("arr_0").unwrap().unwrap();
    assert_eq!(
        (array.dims(), array.dtype()),
        (&[3, 4, 6, 3][..], candle_core::DType::U8)
    );
    let bytes: Vec<u8> = pictures
        .iter()
        .flat_map(|picture| picture.pixels().to_vec())
        .collect();
    assert_eq!(array.flatten_all().unwrap().to_vec1::<u8>().unwrap(), bytes);
    assert_eq!(
        house.names(),
        ["all.npz", "all.safetensors", "grid.png", "run", "single"]
    );
}

#[test]
fn a_picture_says_how_it_was_made() {
    let house = House::new();
    check_done(&house.sample("--seed 5 --eta 0.5"));
    let (_, texts) = read_png(house.path("samples.png")).unwrap();
    let expected = [
        (
            "Software",
            concat!("ddpm-sample ", env!("CARGO_PKG_VERSION")),
        ),
        ("model", "run/checkpoints/step-00000003"),
        ("weights", "ema"),
        ("sampler", "ddim"),
        ("steps", "4"),
        ("training step", "3"),
        ("eta", "0.5"),
        ("seed", "5"),
    ];
    assert_eq!(
        texts,
        expected.map(|(key, text)| (key.to_owned(), text.to_owned()))
    );
}

#[test]
fn neither_batch_nor_threads_nor_number_change_an_image() {
    let house = House::new();
    for flags in ["", "--eta 1", "--sampler ddpm"] {
        let together = house.samples(&format!("{flags} --seed 4"));
        for other in [
            "--batch-size 1",
            "--batch-size 2",
            "--threads 1",
            "--threads 3",
        ] {
            let made = house.samples(&format!("{flags} --seed 4 {other}"));
            let what = format!("{flags} {other}");
            same_images(&what, &bits(&made), &bits(&together));
        }
        let fewer = house.samples_of(&format!("--model run --steps 4 --num 2 {flags} --seed 4"));
        let first = together.narrow(0, 0, 2).unwrap();
        same_images(flags, &bits(&fewer), &bits(&first));
    }
}

#[test]
fn another_seed_or_eta_or_sampler_or_weights_gives_other_images() {
    let house = House::new();
    let flags = [
        "",
        "--seed 1",
        "--eta 1",
        "--sampler ddpm",
        "--weights raw",
        "--steps 5",
    ];
    let all: Vec<Vec<u32>> = flags
        .iter()
        .map(|flags| {
            // A later --steps wins in no command line of ours, so it is given once.
            let steps = if flags.contains("--steps") {
                ""
            } else {
                "--steps 4"
            };
            bits(&house.samples_of(&format!("--model run --num 3 {steps} {flags}")))
        })
        .collect();
    for (i, one) in all.iter().enumerate() {
        assert!(
            all[..i].iter().all(|other| other != one),
            "{} changed nothing",
            flags[i]
        );
    }
    assert_eq!(
        all[0],
        bits(&house.samples("--seed 0 --eta 0 --sampler ddim --weights ema")),
        "the defaults"
    );
}

#[test]
fn left_out_steps_are_fifty_for_ddim_and_all_for_ddpm() {
    let house = House::new();
    let pairs = [
        ("", "--steps 50"),
        ("--sampler ddpm", "--sampler ddpm --steps 100"),
    ];
    for (short, long) in pairs {
        let (short, long) = (
            house.samples_of(&format!("--model run --num 1 {short}")),
            house.samples_of(&format!("--model run --num 1 {long}")),
        );
        assert_eq!(bits(&short), bits(&long));
    }
}

#[test]
fn images_of_a_model_normalised_per_channel_come_back_to_bytes() {
    let house = House::new();
    let pixels = "{ per_channel = { mean = [0.5, 0.4, 0.3], std = [0.25, 0.2, 0.5] } }";
    write(
        &house.path("run"),
        4,
        &format!("[run]\npixels = {pixels}\n"),
    );
    let samples = house.samples("");
    let map = PixelMap::per_channel(vec![0.5, 0.4, 0.3], vec![0.25, 0.2, 0.5]).unwrap();
    for (channel, (low, high)) in map.value_range(3).unwrap().into_iter().enumerate() {
        let values = samples
            .narrow(1, channel, 1)
            .unwrap()
            .flatten_all()
            .unwrap();
        let extremes = [
            values.min(D::Minus1).unwrap(),
            values.max(D::Minus1).unwrap(),
        ];
        let [min, max] = extremes.map(|x: Tensor| f64::from(x.to_scalar::<f32>().unwrap()));
        assert!(
            min >= low - 1e-6 && max <= high + 1e-6,
            "channel {channel}: {min}..{max} in {low}..{high}"
        );
    }
    check_done(&house.sample("--out grid.png"));
    let expected = sheet(&Picture::from_tensor(&samples, &map).unwrap()).unwrap();
    assert_eq!(read_png(house.path("grid.png")).unwrap().0, expected);
}

#[test]
fn quiet_says_nothing_and_otherwise_the_result_is_named() {
    let house = House::new();
    let output = house.sample("--quiet");
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b""[..], &b""[..])
    );
    let output = house.sample("--batch-size 2");
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(
        out.starts_with("samples.png: 3 images of 3x4x6 in "),
        "{out}"
    );
    assert!(
        err.starts_with("note: device ") && err.contains("\n2 of 3 images, "),
        "{err}"
    );
    assert!(err.contains("\n3 of 3 images, "), "{err}");
}

#[test]
fn a_half_written_newer_checkpoint_is_passed_over_with_a_note() {
    let house = House::new();
    std::fs::create_dir(house.path("run/checkpoints/step-00000009")).unwrap();
    let err = String::from_utf8(house.sample("").stderr).unwrap();
    let expected = "note: skipped a checkpoint that is not whole: run/checkpoints/step-00000009/model_index.json is missing";
    assert!(err.starts_with(expected), "{err}");
}

#[test]
fn images_in_bf16_are_those_of_f32_but_for_the_grain_of_a_picture() {
    let house = House::new();
    let digits = concat!(env!("CARGO_MANIFEST_DIR"), "/../../checkpoints/digits");
    let flags = format!("--model {digits} --num 16 --steps 20 --seed 3");
    let f32 = house.samples_of(&format!("{flags} --precision f32"));
    std::fs::remove_file(house.path("out.safetensors")).unwrap();
    let bf16 = house.samples_of(&format!("{flags} --precision bf16"));
    let apart = (f32 - bf16).unwrap().abs().unwrap().mean_all().unwrap();
    let apart = apart.to_scalar::<f32>().unwrap();
    // A picture knows 256 levels, from -1 to 1: 2/255 is the step from one to the next.
    assert!(apart > 0.0 && apart < 2.0 / 255.0, "{apart}");
}
