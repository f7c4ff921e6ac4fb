//! What torch.save and diffusers write: every way of storing tensors, and every name of a folder's weights.

use std::fs;
use std::path::Path;

use ddpm_checkpoint::{Pipeline, TensorFile, open_tensors};

use crate::layouts::golden;
use crate::{assert_same, message};

#[test]
fn tensors_are_read_however_they_were_stored() {
    let counted = |range: std::ops::Range<usize>| range.map(|i| i as f32).collect::<Vec<f32>>();
    // [2, 3, 4] counted on, its axes as (2, 0, 1).
    let transposed = (0..4).flat_map(|c| (0..6).map(move |ab| (4 * ab + c) as f32));
    let expected: [(&str, &[usize], Vec<f32>); 11] = [
        ("plain", &[2, 3, 4], counted(0..24)),
        ("transposed", &[4, 2, 3], transposed.collect()),
        (
            "every_other",
            &[6],
            counted(0..6).iter().map(|i| 2.0 * i + 1.0).collect(),
        ),
        ("window", &[2, 4], counted(16..24)),
        ("same_storage", &[2, 3, 4], counted(0..24)),
        ("parameter", &[2], vec![1.5, -2.5]),
        ("half", &[2], vec![0.5, 65504.0]),
        ("bfloat", &[2], vec![0.5, f32::from_bits(0x7f62_0000)]),
        ("double", &[2], vec![1e-3, 2.0]),
        ("empty", &[0, 3], vec![]),
        ("scalar", &[], vec![2.25]),
    ];
    let files = [
        "tensors",
        "tensors_old",
        "tensors_3",
        "tensors_4",
        "tensors_5",
        "tensors_big",
    ];
    for file in files.map(|name| golden(&format!("{name}.pt"))) {
        let mut tensors = open_tensors(&file).unwrap();
        assert_eq!(tensors.names().len(), 13);
        for (name, shape, numbers) in &expected {
            let tensor = tensors.read_f32(name).unwrap();
            assert_eq!(tensor.dims(), *shape, "{name}");
            let found = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(&found, numbers, "{name} of {}", file.display());
        }
        for name in ["whole_numbers", "truth"] {
            let text = message(tensors.read_f32(name), &golden(""));
            assert!(
                text.ends_with("holds whole numbers, expected floating-point ones"),
                "{text}"
            );
        }
    }
}

/// A copy of diffusers' folder with only these of its files of weights, under these names.
fn folder(weights: &[(&str, &str)]) -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let model = place.path().join("model");
    for part in ["unet", "scheduler"] {
        fs::create_dir_all(model.join(part)).unwrap();
    }
    for name in [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ] {
        fs::copy(golden("folder").join(name), model.join(name)).unwrap();
    }
    for (from, to) in weights {
        let from = golden("folder/unet").join(format!("{STEM}.{from}"));
        fs::copy(from, model.join("unet").join(format!("{STEM}.{to}"))).unwrap();
    }
    (place, model)
}

const STEM: &str = "diffusion_pytorch_model";
const PARTS: [&str; 6] = [
    "safetensors.index.parts.json",
    "parts-00001-of-00005.safetensors",
    "parts-00002-of-00005.safetensors",
    "parts-00003-of-00005.safetensors",
    "parts-00004-of-00005.safetensors",
    "parts-00005-of-00005.safetensors",
];

fn load(weights: &[(&str, &str)]) -> Vec<(String, candle_core::Tensor)> {
    let (_place, model) = folder(weights);
    Pipeline::load(&model).unwrap().weights
}

#[test]
fn every_file_of_weights_that_diffusers_writes_is_read() {
    let plain = load(&[("safetensors", "safetensors")]);
    assert_same(&load(&[("bin", "bin")]), &plain);
    // Kept in half precision, so the fp16 files are these rounded.
    let halves = load(&[("fp16.safetensors", "fp16.safetensors")]);
    let half = |weights: &[(String, candle_core::Tensor)]| -> Vec<(String, candle_core::Tensor)> {
        let round = |t: &candle_core::Tensor| {
            t.to_dtype(candle_core::DType::F16)?
                .to_dtype(candle_core::DType::F32)
        };
        weights
            .iter()
            .map(|(name, t)| (name.clone(), round(t).unwrap()))
            .collect()
    };
    assert_same(&halves, &half(&plain));
    assert_same(&load(&[("fp16.bin", "fp16.bin")]), &halves);
    // The network was in half precision before it was saved in parts.
    let parts = PARTS.map(|name| (name, name));
    assert_same(&load(&parts), &halves);
    let whole = PARTS.map(|name| {
        (
            name,
            if name.ends_with(".json") {
                "safetensors.index.json"
            } else {
                name
            },
        )
    });
    assert_same(&load(&whole), &halves);
    // A name that nobody knows, the only one.
    assert_same(&load(&[("bin", "non_ema.bin")]), &plain);
    // Whole precision before half.
    assert_same(
        &load(&[("bin", "bin"), ("fp16.safetensors", "fp16.safetensors")]),
        &plain,
    );
}

#[test]
fn several_variants_are_a_question() {
    let (place, model) = folder(&[("bin", "ours.bin"), ("bin", "theirs.bin")]);
    assert_eq!(
        message(Pipeline::load(&model), place.path()),
        "FOLDER/model/unet: there are only variants of the weights: ours, theirs; keep one of them, or rename it to \
         diffusion_pytorch_model.safetensors"
    );
}

#[track_caller]
fn check_index(change: impl Fn(&Path), expected: &str) {
    let (place, model) = folder(&PARTS.map(|name| (name, name)));
    change(&model.join("unet"));
    assert_eq!(message(Pipeline::load(&model), place.path()), expected);
}

#[test]
fn an_index_must_be_true() {
    let index = "FOLDER/model/unet/diffusion_pytorch_model.safetensors.index.parts.json";
    let shard = format!("{STEM}.{}", PARTS[2]);
    let rewrite = |from: &'static str, to: &'static str| {
        move |unet: &Path| {
            let path = unet.join(format!("{STEM}.{}", PARTS[0]));
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            fs::write(path, text.replacen(from, to, 1)).unwrap();
        }
    };
    check_index(
        |unet| fs::remove_file(unet.join(&shard)).unwrap(),
        &format!("FOLDER/model/unet/{shard} is missing: the index beside it places tensors in it"),
    );
    for elsewhere in ["../../../etc/passwd", "/etc/passwd", "a\\\\b", "..", ""] {
        let (place, model) = folder(&PARTS.map(|name| (name, name)));
        let path = model.join("unet").join(format!("{STEM}.{}", PARTS[0]));
        fs::write(
            &path,
            format!("{{\"weight_map\": {{\"conv_in.bias\": \"{elsewhere}\"}}}}"),
        )
        .unwrap();
        let text = message(Pipeline::load(&model), place.path());
        let expected = format!(
            "{index}: `conv_in.bias` is placed in \"{elsewhere}\", expected the name of a file beside the index"
        );
        assert_eq!(text, expected);
    }
    let whole = "expected an object with `weight_map`, from names of tensors to names of files";
    check_index(rewrite("weight_map", "map"), &format!("{index}: {whole}"));
    check_index(
        rewrite("conv_in.bias", "conv_in.bies"),
        &format!(
            "FOLDER/model/unet/{STEM}.{}: it holds `conv_in.bias`, which {index} places elsewhere or nowhere",
            PARTS[1]
        ),
    );
}

#[test]
fn what_is_no_file_of_tensors_is_named() {
    let check = |content: &[u8], expected: &str| {
        let (place, model) = folder(&[]);
        fs::write(model.join("unet").join(format!("{STEM}.bin")), content).unwrap();
        let text = message(Pipeline::load(&model), place.path());
        assert_eq!(text, format!("FOLDER/model/unet/{STEM}.bin: {expected}"));
    };
    check(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "it is the pointer that Git LFS puts in place of a file: fetch the file itself (git lfs pull)",
    );
    check(
        b"<!DOCTYPE html>",
        "it is a page of the web, not the file that was to be fetched",
    );
    check(b"", "it is empty");
    check(
        b"hello, world",
        "it is no file of tensors; read are safetensors and what torch.save writes (.bin, .pt, .pth, .ckpt)",
    );
    // A safetensors file under the name of the other.
    let (_place, model) = folder(&[("safetensors", "bin")]);
    let weights = Pipeline::load(&model).unwrap().weights;
    let file =
        TensorFile::open(&golden("folder/unet").join(format!("{STEM}.safetensors"))).unwrap();
    assert_eq!(weights.len(), file.names().len());
}
