//! A model to give away: what the folder holds, that the numbers are the run's, and what is refused.

use std::path::Path;

use candle_core::{DType, Tensor};
use ddpm_checkpoint::{TensorFile, Weights, resolve_model};
use ddpm_train::read_metrics;

use crate::program::{check, workplace};

fn weights(model: &Path, which: &Weights) -> Vec<(String, Tensor)> {
    resolve_model(model).unwrap().load(which).unwrap().weights
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn an_exported_model_is_the_runs_in_half_the_bytes_with_its_story() {
    let folder = workplace();
    let path = folder.path();
    check(path, "--config tiny.toml --steps 6", 0, &[]);
    let text = check(
        path,
        "--export given/tiny --out runs/tiny",
        0,
        &[
            "from           runs/tiny/checkpoints/step-00000006",
            "model          given/tiny",
            "picture        given/tiny/samples.png",
        ],
    );
    let given = path.join("given/tiny");
    let mut names: Vec<_> = std::fs::read_dir(&given)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let all = [
        "README.md",
        "model_index.json",
        "run.toml",
        "samples.png",
        "scheduler",
        "unet",
    ];
    assert_eq!(names, all);

    // Every number is the run's average, rounded once.
    let (run, ours) = (path.join("runs/tiny"), weights(&given, &Weights::Ema));
    for ((name, whole), (_, half)) in weights(&run, &Weights::Ema).iter().zip(&ours) {
        let rounded = whole.to_dtype(DType::F16).unwrap();
        let rounded = rounded.to_dtype(DType::F32).unwrap();
        assert_eq!(numbers(&rounded), numbers(half), "{name}");
    }
    let mut file =
        TensorFile::open(&given.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let bias = file.read("conv_in.bias").unwrap();
    assert_eq!(bias.dtype(), DType::F16);

    // The loss is measured anew, with the rounded weights, on what the run held out.
    let measured = read_metrics(&run.join("metrics.jsonl")).unwrap();
    let of_the_run = measured.last().unwrap().held_out_loss.unwrap();
    let line = text.lines().find(|line| line.starts_with("held-out loss"));
    let of_the_model: f64 = line.unwrap()[15..].parse().unwrap();
    assert!(
        (of_the_run - of_the_model).abs() < 1e-3 * of_the_run,
        "{of_the_run} {of_the_model}"
    );

    let page = std::fs::read_to_string(given.join("README.md")).unwrap();
    for part in [
        "# tiny\n",
        "1x8x8 images",
        "6 steps of 4 images (24 images)",
        "average of rate 0.9, f16",
        "--num 4 --steps 3 --seed 0",
    ] {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    // Its settings are a recipe.
    check(
        path,
        "--config given/tiny/run.toml --dry-run --out again",
        0,
        &["rates = [0.9, 0.999]"],
    );
}

#[test]
fn an_export_keeps_every_bit_where_asked_and_overwrites_nothing() {
    let folder = workplace();
    let path = folder.path();
    check(path, "--config tiny.toml --steps 2", 0, &[]);
    let export = "--export given --out runs/tiny --dtype f32 --weights";
    check(path, &format!("{export} ema:0.999"), 0, &["given"]);
    let rate = Weights::EmaRate("0.999".into());
    let pairs = weights(&path.join("runs/tiny"), &rate)
        .into_iter()
        .zip(weights(&path.join("given"), &Weights::Ema));
    for ((name, ours), (_, given)) in pairs {
        assert_eq!(numbers(&ours), numbers(&given), "{name}");
    }
    check(
        path,
        &format!("{export} ema"),
        1,
        &["error: given already exists"],
    );
    check(
        path,
        "--export other --out runs/tiny --weights ema:0.5",
        1,
        &["no weights \"ema:0.5\"; there are ema, raw, ema:0.9, ema:0.999"],
    );
    assert!(!path.join("other").exists());
    let usage = |flags: &str, part: &str| drop(check(path, flags, 2, &[part]));
    usage(
        "--export x",
        "error: say which run to export: --export DIR --out RUN_DIR",
    );
    usage(
        "--config tiny.toml --dtype f16",
        "--dtype only goes with --export",
    );
    usage(
        "--export x --out runs/tiny --steps 3",
        "cannot be used with",
    );
    check(
        path,
        "--export x --out runs/none",
        1,
        &["error: runs/none is not a model folder: there is nothing"],
    );
}

#[test]
fn a_run_without_pictures_is_exported_without_one_and_says_so() {
    let folder = workplace();
    let path = folder.path();
    check(
        path,
        "--config tiny.toml --steps 2 --set samples.count=0",
        0,
        &[],
    );
    check(
        path,
        "--export given --out runs/tiny",
        0,
        &["picture        none: `samples.count` is 0"],
    );
    let given = path.join("given");
    assert!(!given.join("samples.png").exists());
    assert_eq!(
        weights(&given, &Weights::Ema).len(),
        weights(&path.join("runs/tiny"), &Weights::Ema).len()
    );
    let page = std::fs::read_to_string(given.join("README.md")).unwrap();
    assert!(page.contains("| picture | none: `samples.count` is 0 |"));
    assert!(!page.contains("samples.png"), "{page}");
}
