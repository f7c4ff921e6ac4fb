//! What is written is read back, bit for bit, and the same thing is written as the same bytes.

use ddpm_checkpoint::{
    Card, Pipeline, Weights, read_run_toml, read_train_state, resolve_model, write_checkpoint,
};

use crate::{RUN_TOML, assert_same, message, tiny_pipeline, tiny_state};

#[test]
fn a_pipeline_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let pipeline = tiny_pipeline(0);
    pipeline.save(&model).unwrap();
    let read = Pipeline::load(&model).unwrap();
    assert_eq!(read.unet, pipeline.unet);
    assert_eq!(read.scheduler, pipeline.scheduler);
    assert_eq!(read.beyond_diffusers, Vec::<String>::new());
    assert_same(&read.weights, &pipeline.weights);
    assert_eq!(
        message(pipeline.save(&model), folder.path()),
        "FOLDER/model already exists"
    );
}

#[test]
fn a_checkpoint_is_read_back() {
    let run = tempfile::tempdir().unwrap();
    let (pipeline, state) = (tiny_pipeline(0), tiny_state());
    let folder = write_checkpoint(run.path(), 1000, &pipeline, &state, RUN_TOML).unwrap();
    assert_eq!(folder, run.path().join("checkpoints/step-00001000"));
    let read = read_train_state(&folder).unwrap();
    assert_same(&read.tensors, &state.tensors);
    assert_eq!(read.counters, state.counters);
    assert_eq!(
        read_run_toml(&folder).unwrap(),
        RUN_TOML.parse::<toml::Table>().unwrap()
    );
    assert_same(&Pipeline::load(&folder).unwrap().weights, &pipeline.weights);
}

#[test]
fn equal_content_gives_equal_bytes() {
    let runs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let files = runs.each_ref().map(|run| {
        let folder =
            write_checkpoint(run.path(), 7, &tiny_pipeline(0), &tiny_state(), RUN_TOML).unwrap();
        [
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
            "train_state.safetensors",
            "run.toml",
        ]
        .map(|name| std::fs::read(folder.join(name)).unwrap())
    });
    assert_eq!(files[0], files[1]);
}

#[test]
fn other_libraries_read_the_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let pipeline = tiny_pipeline(0);
    pipeline.save(&model).unwrap();
    let bytes = std::fs::read(model.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in &pipeline.weights {
        let expected: Vec<u8> = tensor
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        assert_eq!(read.tensor(name).unwrap().shape(), tensor.dims());
        assert_eq!(read.tensor(name).unwrap().data(), expected);
    }
}

#[test]
fn the_weights_asked_for_are_the_weights_read() {
    let run = tempfile::tempdir().unwrap();
    write_checkpoint(run.path(), 1000, &tiny_pipeline(0), &tiny_state(), RUN_TOML).unwrap();
    let model = resolve_model(run.path()).unwrap();
    assert_eq!(model.step(), Some(1000));
    assert_eq!(model.ema_rates, ["0.9", "0.999"]);
    for (text, seed) in [
        ("ema", 0),
        ("raw", 1),
        ("ema:0.9", 4),
        ("ema:0.999", 5),
        ("ema:0.9990", 5),
    ] {
        let weights: Weights = text.parse().unwrap();
        assert_same(
            &model.load(&weights).unwrap().weights,
            &tiny_pipeline(seed).weights,
        );
    }
    let none = model.load(&"ema:0.5".parse().unwrap());
    let expected = "FOLDER/checkpoints/step-00001000: no weights \"ema:0.5\"; there are ema, raw, ema:0.9, ema:0.999";
    assert_eq!(message(none, run.path()), expected);
    let no_rates = ["ema:0", "ema:1", "ema:-0.9", "ema:NaN", "ema:inf"];
    for text in ["", "EMA", "ema:", "ema:x", "average"]
        .into_iter()
        .chain(no_rates)
    {
        let expected =
            format!("weights {text:?} is not one of ema, raw, ema:RATE (such as ema:0.9999)");
        assert_eq!(text.parse::<Weights>().unwrap_err().to_string(), expected);
    }
}

#[test]
fn what_diffusers_cannot_express_is_no_pipeline_of_diffusers() {
    let run = tempfile::tempdir().unwrap();
    let mut pipeline = tiny_pipeline(0);
    pipeline.beyond_diffusers = vec!["pixels are normalised per channel".to_owned()];
    let folder = write_checkpoint(run.path(), 1, &pipeline, &tiny_state(), RUN_TOML).unwrap();
    assert!(!folder.join("model_index.json").exists());
    let note = std::fs::read_to_string(folder.join("not-a-diffusers-pipeline.md")).unwrap();
    assert!(
        note.ends_with("\n- pixels are normalised per channel\n"),
        "{note}"
    );
    let read = resolve_model(run.path())
        .unwrap()
        .load(&Weights::Ema)
        .unwrap();
    assert_eq!(read.beyond_diffusers, pipeline.beyond_diffusers);
    assert_same(&read.weights, &pipeline.weights);
}

/// What the Hub reads of a page is between two lines of dashes; Python's `ModelCard` reads this text.
#[test]
fn a_folder_has_a_page_that_the_hub_can_read() {
    let folder = tempfile::tempdir().unwrap();
    tiny_pipeline(0)
        .save(&folder.path().join("clouds"))
        .unwrap();
    let page = std::fs::read_to_string(folder.path().join("clouds/README.md")).unwrap();
    assert_eq!(
        page,
        "---\nlibrary_name: diffusers\npipeline_tag: unconditional-image-generation\ntags:\n- ddpm\n- diffusers\n\
         - unconditional-image-generation\n---\n\n# clouds\n\nA model of 3x4x6 images (channels, height, width). A \
         diffusers folder: `DDPMPipeline.from_pretrained(\"clouds\")` opens it.\n\n| | |\n|---|---|\n| network | \
         UNet2DModel, 11767 parameters |\n| scheduler | DDPMScheduler |\n"
    );

    let card = Card {
        title: "a \"title\": of words".to_owned(),
        data: Some("folder:pictures".to_owned()),
        metrics: vec![("held-out loss", 0.125), ("broken", f64::NAN)],
        picture: Some("samples.png"),
        rows: vec![("training", "one | two\nthree".to_owned())],
        settings: Some("[data]\nname = \"x\"\n"),
    };
    let mut pipeline = tiny_pipeline(0);
    pipeline.beyond_diffusers = vec!["pixels are normalised per channel".to_owned()];
    let page = card.text(&pipeline);
    for part in [
        "datasets:\n- \"folder:pictures\"\n",
        "model-index:\n- name: \"a \\\"title\\\": of words\"\n  results:\n",
        "    metrics:\n    - type: \"held-out-loss\"\n      name: \"held-out loss\"\n      value: 0.125\n---\n",
        "no pipeline of diffusers makes its images: pixels are normalised per channel.\n",
        "![images of this model](samples.png)\n",
        "| training | one   two three |\n",
        "## Settings\n\n```toml\n[data]\nname = \"x\"\n```\n",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
}

#[test]
fn a_checkpoint_has_a_page_with_its_runs_name_and_settings() {
    let run = tempfile::tempdir().unwrap();
    let run = run.path().join("clouds");
    let run_toml = "[data]\nname = \"digits\"\n";
    let folder = write_checkpoint(&run, 7, &tiny_pipeline(0), &tiny_state(), run_toml).unwrap();
    let page = std::fs::read_to_string(folder.join("README.md")).unwrap();
    for part in [
        "# clouds\n",
        "datasets:\n- \"digits\"\n",
        "| training | 7 steps |",
        "name = \"digits\"",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
}
