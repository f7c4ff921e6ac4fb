//! A run that begins from a model: the weights are the model's, the rest is new, and what does not fit is named.

use std::path::Path;

use ddpm_checkpoint::{Weights, read_train_state, resolve_model};
use ddpm_train::{Init, Run, Settings, on_threads, settings::ScheduleKind};

use crate::program::{check, workplace};
use crate::resume::{newest_bits, timeless};
use crate::{bits, tiny};

/// A run of six steps in `runs/tiny`.
fn trained() -> tempfile::TempDir {
    let folder = workplace();
    check(folder.path(), "--config tiny.toml --steps 6", 0, &[]);
    folder
}

/// The weights of a model, and all tensors of a checkpoint, by name.
fn weights_bits(model: &Path, which: &Weights) -> Vec<(String, Vec<u32>)> {
    let tensors = resolve_model(model).unwrap().load(which).unwrap().weights;
    bits(&ddpm_checkpoint::TrainState {
        tensors,
        ..Default::default()
    })
}

#[test]
fn the_weights_are_the_models_and_everything_else_is_new() {
    let folder = trained();
    let path = folder.path();
    for (flags, which) in [("", Weights::Ema), ("--weights raw", Weights::Raw)] {
        let out = format!("new-{which}");
        check(
            path,
            &format!("--config tiny.toml --init runs/tiny {flags} --steps 2 --out {out}"),
            0,
            &["begins", "step-00000002"],
        );
        let begun = path.join(&out).join("checkpoints/step-00000000");
        let state = bits(&read_train_state(&begun).unwrap());
        for (name, model) in weights_bits(&path.join("runs/tiny"), &which) {
            for part in ["raw", "ema.0.9", "ema.0.999"] {
                let name = format!("{part}.{name}");
                let found = state.iter().find(|(n, _)| *n == name).unwrap();
                assert!(found.1 == model, "{name}");
            }
        }
        let moments = state.iter().filter(|(name, _)| name.starts_with("adam."));
        assert!(moments.flat_map(|(_, bits)| bits).all(|bits| *bits == 0));
        let said = std::fs::read_to_string(path.join(&out).join("run.toml")).unwrap();
        let story = format!("init = \"runs/tiny/checkpoints/step-00000006, {which}, step 6\"");
        assert!(said.contains(&story), "{said}");
        assert_eq!(timeless(&path.join(&out)).len(), 2);
    }
}

#[test]
fn it_resumes_to_the_bit_also_from_before_its_first_step() {
    let folder = trained();
    let init = Init::read(&folder.path().join("runs/tiny"), &Weights::Ema).unwrap();
    let settings = tiny("train = { steps = 5, checkpoint_every = 3 }");
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    on_threads(1, || {
        let finish = |mut run: Run| {
            while !run.finished() {
                run.advance().unwrap();
            }
        };
        finish(Run::begin_from(&whole, &settings, None, &init).unwrap());
        let mut run = Run::begin_from(&parts, &settings, None, &init).unwrap();
        run.advance().unwrap();
        drop(run); // one step is lost
        let (run, _) = Run::resume(&parts, &settings).unwrap();
        assert_eq!(run.trainer().steps_done(), 0);
        finish(run);
    })
    .unwrap();
    assert!(newest_bits(&whole) == newest_bits(&parts));
    assert_eq!(timeless(&whole), timeless(&parts));
    let said = std::fs::read_to_string(parts.join("run.toml")).unwrap();
    assert!(said.contains("init = "), "{said}");
}

#[test]
fn network_and_schedule_are_the_models_whatever_the_preset_has() {
    let folder = trained();
    let path = folder.path();
    let text = check(
        path,
        "--preset digits --init runs/tiny --out new --dry-run",
        0,
        &[
            "block_out_channels = [4, 8]",
            "timesteps = 50",
            "learning_rate = 0.001",
        ],
    );
    assert!(text.contains("norm_num_groups = 2"), "{text}");
    check(
        path,
        "--init runs/tiny --data digits --steps 1 --batch-size 2 --out bare",
        0,
        &["step 1/1"],
    );
    check(
        path,
        "--preset digits --init runs/tiny --set model.block_out_channels=[4,12] --out other",
        2,
        &[
            "error: `model.block_out_channels` is [4,12], but [4,8] in runs/tiny: --init takes the network from the model",
        ],
    );
    check(
        path,
        "--resume --init runs/tiny --out runs/tiny",
        2,
        &["cannot be used with"],
    );
    check(
        path,
        "--preset digits --init none --out other",
        1,
        &["error: none is not a model folder"],
    );
    check(
        path,
        "--preset digits --weights raw",
        2,
        &["error: --weights only goes with --init and --export"],
    );
    assert!(!path.join("other").exists());
}

#[test]
fn a_folder_that_others_wrote_says_its_schedule_itself() {
    let folder = trained();
    let path = folder.path();
    let set = "--set diffusion.schedule=cosine --set diffusion.prediction=velocity";
    check(
        path,
        &format!("--config tiny.toml --steps 1 --out cosine {set}"),
        0,
        &[],
    );
    check(path, "--export given --out cosine --dtype f32", 0, &[]);
    std::fs::remove_file(path.join("given/run.toml")).unwrap();
    let ours = Init::read(&path.join("cosine"), &Weights::Ema).unwrap();
    let theirs = Init::read(&path.join("given"), &Weights::Ema).unwrap();
    let [ours, theirs] = [ours, theirs].map(|init| {
        let settings = Settings::from_layers(&[init.layer().clone()]).unwrap();
        settings.resolved()
    });
    assert_eq!(theirs.diffusion.schedule, ScheduleKind::Cosine);
    assert_eq!(ours.diffusion, theirs.diffusion);
    // Dropout is no part of the network.
    assert_eq!(
        ours.model.block_out_channels,
        theirs.model.block_out_channels
    );
}

#[test]
fn a_run_whose_learning_rate_came_to_zero_says_how_to_go_on() {
    let folder = workplace();
    let path = folder.path();
    check(
        path,
        "--config tiny.toml --steps 5 --set optimizer.decay=cosine",
        0,
        &[],
    );
    let init = "--init RUN --out NEW_RUN";
    check(
        path,
        "--resume --out runs/tiny --steps 9",
        2,
        &["goes beyond `optimizer.decay_steps` = 5", init],
    );
    check(
        path,
        "--resume --out runs/tiny",
        1,
        &[
            "its learning rate came to 0 at step 5",
            "--init runs/tiny --out NEW_RUN",
        ],
    );
    check(
        path,
        "--config tiny.toml --init runs/tiny --steps 2 --out more",
        0,
        &[],
    );
}
