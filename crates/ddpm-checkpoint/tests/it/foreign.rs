//! Folders that others made: early layouts, half precision, bare networks, and what is not read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use ddpm_checkpoint::{Pipeline, Weights, find_shipped, resolve_model, write_tensors};

use crate::{assert_same, message, tiny_pipeline};

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn saved(folder: &Path) -> PathBuf {
    let model = folder.join("model");
    tiny_pipeline(0).save(&model).unwrap();
    model
}

/// Changes a saved model and expects this error.
#[track_caller]
fn check_refused(change: impl FnOnce(&Path), expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let model = saved(folder.path());
    change(&model);
    assert_eq!(message(Pipeline::load(&model), &model), expected);
}

fn rewrite_weights(model: &Path, change: impl Fn(&mut Vec<(String, Tensor)>)) {
    let mut weights = tiny_pipeline(0).weights;
    change(&mut weights);
    write_tensors(
        &model.join(WEIGHTS),
        "the weights",
        &weights,
        &BTreeMap::new(),
    )
    .unwrap();
}

#[test]
fn the_flat_layout_of_early_uploads_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = saved(folder.path());
    for name in [
        "unet/config.json",
        WEIGHTS,
        "scheduler/scheduler_config.json",
    ] {
        fs::rename(
            model.join(name),
            model.join(Path::new(name).file_name().unwrap()),
        )
        .unwrap();
    }
    fs::remove_dir(model.join("unet")).unwrap();
    assert_same(
        &Pipeline::load(&model).unwrap().weights,
        &tiny_pipeline(0).weights,
    );
}

#[test]
fn a_bare_network_needs_a_scheduler_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = saved(folder.path());
    fs::remove_file(model.join("model_index.json")).unwrap();
    let read = resolve_model(&model.join("unet")).unwrap();
    assert_same(
        &read.load(&Weights::Ema).unwrap().weights,
        &tiny_pipeline(0).weights,
    );
    assert_eq!((read.step(), read.has_raw), (None, false));
    let expected = "FOLDER/unet: no weights \"raw\"; there are ema";
    assert_eq!(message(read.load(&Weights::Raw), &model), expected);
    fs::remove_dir_all(model.join("scheduler")).unwrap();
    let expected = "FOLDER/unet/scheduler_config.json is missing: without a scheduler's configuration nobody knows \
                    the network's noise schedule; put it here or into ../scheduler";
    assert_eq!(
        message(resolve_model(&model.join("unet")), &model),
        expected
    );
}

#[test]
fn half_precision_is_widened() {
    let names = [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bf16.safetensors",
    ];
    for (name, dtype) in names.into_iter().zip([DType::F16, DType::BF16]) {
        let folder = tempfile::tempdir().unwrap();
        let model = saved(folder.path());
        fs::remove_file(model.join(WEIGHTS)).unwrap();
        let halved: Vec<(String, Tensor)> = tiny_pipeline(0)
            .weights
            .into_iter()
            .map(|(name, w)| (name, w.to_dtype(dtype).unwrap()))
            .collect();
        let widened: Vec<(String, Tensor)> = halved
            .iter()
            .map(|(name, w)| (name.clone(), w.to_dtype(DType::F32).unwrap()))
            .collect();
        candle_core::safetensors::save(
            &halved.into_iter().collect(),
            model.join("unet").join(name),
        )
        .unwrap();
        assert_same(&Pipeline::load(&model).unwrap().weights, &widened);
    }
}

#[test]
fn attention_under_its_old_names_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = saved(folder.path());
    rewrite_weights(&model, |weights| {
        for (name, tensor) in weights {
            for (new, old) in [
                ("to_q", "query"),
                ("to_k", "key"),
                ("to_v", "value"),
                ("to_out.0", "proj_attn"),
            ] {
                if name.contains(&format!(".{new}.")) {
                    *name = name.replace(new, old);
                    if name.ends_with("query.weight") {
                        *tensor = tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap();
                    }
                }
            }
        }
    });
    assert_same(
        &Pipeline::load(&model).unwrap().weights,
        &tiny_pipeline(0).weights,
    );
}

#[test]
fn tensors_of_another_network_are_named() {
    let full = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let place = format!("FOLDER/{WEIGHTS}: the tensors are not this network's");
    check_refused(
        |model| rewrite_weights(model, |weights| drop(weights.remove(0))),
        &format!("{place}; missing (1): `conv_in.weight`"),
    );
    check_refused(
        |model| {
            rewrite_weights(model, |weights| {
                weights.push(("other.bias".to_owned(), full(&[2])))
            })
        },
        &format!("{place}; extra (1): `other.bias`"),
    );
    check_refused(
        |model| rewrite_weights(model, |weights| weights[1].1 = full(&[5])),
        &format!("{place}; wrong (1): `conv_in.bias` is [5], expected [4]"),
    );
    check_refused(
        |model| {
            rewrite_weights(model, |weights| {
                weights[1].1 = weights[1].1.to_dtype(DType::I64).unwrap()
            });
        },
        &format!("FOLDER/{WEIGHTS}: tensor `conv_in.bias` is i64, expected floating-point numbers"),
    );
}

#[test]
fn weights_that_are_not_the_networks_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut pipeline = tiny_pipeline(0);
    pipeline.weights.remove(0);
    let text = message(pipeline.save(&folder.path().join("model")), folder.path());
    assert!(text.starts_with("FOLDER/model/unet/"), "{text}");
    assert!(
        text.ends_with("the tensors are not this network's; missing (1): `conv_in.weight`"),
        "{text}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn other_pipelines_networks_and_schedulers_are_refused_by_name() {
    let index = |text: &'static str| {
        move |model: &Path| fs::write(model.join("model_index.json"), text).unwrap()
    };
    check_refused(
        index(r#"{"_class_name": "StableDiffusionPipeline"}"#),
        "FOLDER/model_index.json: pipeline StableDiffusionPipeline is not supported; supported are DDPMPipeline, DDIMPipeline, PNDMPipeline, \
         ScoreSdeVePipeline, RePaintPipeline",
    );
    check_refused(
        index(r#"{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}"#),
        "FOLDER/model_index.json: unet UNet2DConditionModel is not supported; supported are UNet2DModel",
    );
    check_refused(
        index(
            r#"{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "UnCLIPScheduler"]}"#,
        ),
        &format!(
            "FOLDER/model_index.json: scheduler UnCLIPScheduler is not supported; supported are {}",
            ddpm_samplers::SchedulerClass::NAMES
                .map(|(name, _)| name)
                .join(", ")
        ),
    );
    check_refused(
        index("[1]"),
        "FOLDER/model_index.json: expected an object with `_class_name`, `unet` and `scheduler`",
    );
    check_refused(
        index(r#"{"_class_name": 3}"#),
        "FOLDER/model_index.json: `_class_name` should be a text, found 3",
    );
    check_refused(
        index(r#"{"_class_name": "DDPMPipeline", "unet": "UNet2DModel"}"#),
        "FOLDER/model_index.json: `unet` should be a library and a class, as [\"diffusers\", ...], found \"UNet2DModel\"",
    );
    check_refused(
        index("{"),
        "FOLDER/model_index.json: EOF while parsing an object at line 1 column 1",
    );
}

#[test]
fn errors_of_the_parts_name_the_file() {
    let change = |name: &'static str, from: &'static str, to: &'static str| {
        move |model: &Path| {
            let text = fs::read_to_string(model.join(name)).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(model.join(name), text.replace(from, to)).unwrap();
        }
    };
    let starts = |change: &dyn Fn(&Path), start: &str, part: &str| {
        let folder = tempfile::tempdir().unwrap();
        let model = saved(folder.path());
        change(&model);
        let text = message(Pipeline::load(&model), &model);
        assert!(text.starts_with(start) && text.contains(part), "{text}");
    };
    starts(
        &change(
            "scheduler/scheduler_config.json",
            "\"DDPMScheduler\"",
            "\"VQDiffusionScheduler\"",
        ),
        "FOLDER/scheduler/scheduler_config.json: ",
        "DDIMScheduler",
    );
    starts(
        &change(
            "scheduler/scheduler_config.json",
            "num_train_timesteps",
            "number_of_steps",
        ),
        "FOLDER/scheduler/scheduler_config.json: ",
        "number_of_steps",
    );
    starts(
        &change(
            "unet/config.json",
            "\"layers_per_block\": 1",
            "\"layers_per_block\": \"1\"",
        ),
        "FOLDER/unet/config.json: ",
        "layers_per_block",
    );
    starts(
        &change("unet/config.json", "{", "["),
        "FOLDER/unet/config.json: ",
        "",
    );
}

#[test]
fn what_is_no_model_folder_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let looked_for = "looked for checkpoints/step-*/ (a run), model_index.json, unet/config.json, \
                      config.json with diffusion_pytorch_model.safetensors";
    let check = |path: &Path, found: &str| {
        let shown = path
            .display()
            .to_string()
            .replace(&folder.path().display().to_string(), "FOLDER");
        let expected = format!("{shown} is not a model folder: {found}; {looked_for}");
        assert_eq!(message(resolve_model(path), folder.path()), expected);
    };
    check(folder.path(), "none of its files is one of a model");
    check(&folder.path().join("nothing"), "there is nothing");
}

#[test]
fn a_shipped_model_is_found_from_below() {
    let clone = tempfile::tempdir().unwrap();
    let model = clone.path().join("checkpoints/digits");
    tiny_pipeline(0).save(&model).unwrap();
    let below = clone.path().join("target/release");
    fs::create_dir_all(&below).unwrap();
    assert_eq!(
        find_shipped("digits", std::slice::from_ref(&below)).unwrap(),
        model
    );
    assert!(find_shipped("no-such-model", &[below]).is_err());
    // The clone itself also looks like a run; its model is found all the same by its own path.
    assert!(resolve_model(&model).is_ok());
}
