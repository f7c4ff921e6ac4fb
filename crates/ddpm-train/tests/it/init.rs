//! A run that begins from a model: the weights are the model's, the rest is new, and what does not fit is named.

use std::path::Path;

use ddpm_checkpoint::{Arch, Weights, read_train_state, resolve_model};
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
    let init = Init::read(
        &folder.path().join("runs/tiny"),
        &Arch::default(),
        &Weights::Ema,
    )
    .unwrap();
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
    let ours = Init::read(&path.join("cosine"), &Arch::default(), &Weights::Ema).unwrap();
    let theirs = Init::read(&path.join("given"), &Arch::default(), &Weights::Ema).unwrap();
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
    // A network that is sampled from and not trained.
    let config = path.join("given/unet/config.json");
    std::fs::write(config, "{\"_class_name\": \"LucidrainsUnet\"}").unwrap();
    let error = Init::read(&path.join("given"), &Arch::default(), &Weights::Ema).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("its network is a LucidrainsUnet, which is sampled from but not trained here; trained are UNet2DModels"),
        "{error}"
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

/// A folder with the settings of `tiny.toml` but for network and diffusion, which a model brings.
fn without_a_network() -> tempfile::TempDir {
    let folder = workplace();
    let text = std::fs::read_to_string(folder.path().join("tiny.toml")).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    table.retain(|section, _| !["model", "diffusion"].contains(&section));
    std::fs::write(folder.path().join("rest.toml"), table.to_string()).unwrap();
    folder
}

/// A file of another program's begins a run, with what it has beyond diffusers: its checkpoints keep that, go on to the
/// bit, and give their images.
#[test]
fn another_programs_file_begins_a_run() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ddpm-checkpoint/tests/golden");
    let folder = without_a_network();
    let path = folder.path();
    let openai = "image_size=8 diffusion_steps=40 noise_schedule=cosine num_groups=2 num_heads=2 num_heads_upsample=4 \
                  use_new_attention_order=false rescale_timesteps=true";
    let ho = "image_size=8 diffusion_steps=50 noise_schedule=warmup10 num_groups=2";
    let keys = [
        "attention_heads = 2",
        "attention_heads_up = 4",
        "timestep_scale = 25.0",
        "timestep_width = 8",
        "schedule = \"cosine\"",
    ];
    let ho_keys = [
        "wide_shortcuts = true",
        "plain_resampling = true",
        "schedule = \"warm-up-10\"",
        "beta_end = 0.02",
    ];
    for (file, arch, keys) in [
        ("improved_up.pt", openai, &keys[..]),
        ("ho_variants.pt", ho, &ho_keys[..]),
    ] {
        let file = golden.join(file);
        let init = format!("--config rest.toml --init {} --arch {arch}", file.display());
        check(
            path,
            &format!("{init} --steps 3 --out whole"),
            0,
            &["step 3/3"],
        );
        check(path, &format!("{init} --steps 1 --out parts"), 0, &[]);
        check(
            path,
            "--resume --steps 3 --out parts",
            0,
            &["goes on after step 1"],
        );
        let newest = |run: &str| newest_bits(&path.join(run));
        assert!(newest("whole") == newest("parts"));
        let said = std::fs::read_to_string(path.join("parts/run.toml")).unwrap();
        for key in keys {
            assert!(said.contains(key), "{key}: {said}");
        }
        // The weights before the first step are the file's, and the network is the same one.
        let arch = Arch::new(arch.split_whitespace()).unwrap();
        let mut given = ddpm_checkpoint::ForeignFile::open(&file).unwrap();
        let given = given.convert(&arch, &Weights::Ema).unwrap();
        let begun = path.join("whole/checkpoints/step-00000000");
        let begun = resolve_model(&begun).unwrap();
        let [ours, theirs] =
            [&begun.unet, &given.unet].map(|unet| unet.as_unet_2d().unwrap().settings());
        let mut settings = ours.clone();
        assert_eq!(begun.unet.beyond_diffusers(), given.unet.beyond_diffusers());
        settings.dropout = theirs.dropout;
        settings.sample_size = theirs.sample_size;
        assert_eq!(&settings, theirs);
        let schedules = [&begun.scheduler, &given.scheduler].map(|s| s.schedule().unwrap());
        assert_eq!(schedules[0], schedules[1]);
        let same = begun.load(&Weights::Raw).unwrap().weights;
        for ((name, a), (_, b)) in same.iter().zip(&given.weights) {
            let [a, b] = [a, b].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            assert_eq!(a, b, "{name}");
        }
        for run in ["whole", "parts"] {
            std::fs::remove_dir_all(path.join(run)).unwrap();
        }
    }
}

#[test]
fn what_another_programs_file_cannot_begin_is_said() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ddpm-checkpoint/tests/golden");
    let folder = without_a_network();
    let said = |flags: &str, status, expected: &str| {
        let flags = flags.replace("FILES", &golden.display().to_string());
        let flags = format!("--config rest.toml --out new --steps 1 {flags}");
        check(folder.path(), &flags, status, &[expected]);
    };
    said(
        "--init FILES/ho.pt",
        2,
        "ho.pt holds Ho's network (as pesser and DDIM wrote it), which does not say image_size",
    );
    said(
        "--init FILES/ho.pt --arch size=8",
        2,
        "error: --arch: `size` is not one of image_size",
    );
    said("--arch image_size=8", 2, "--init <MODEL>");
    let improved =
        "image_size=8 diffusion_steps=1000 noise_schedule=linear num_groups=2 num_heads=2";
    said(
        &format!("--init FILES/improved.pt --arch {improved} use_new_attention_order=false"),
        1,
        "its network has `out_channels` = 6, which the settings of a training cannot say",
    );
    said(
        "--init FILES/ho_variants.pt --arch image_size=8 diffusion_steps=9 noise_schedule=jsd num_groups=2",
        2,
        "`diffusion.prediction` cannot be `noise` with this schedule",
    );
    said(
        "--init FILES/k_diffusion.pt",
        1,
        "its network is a KDiffusionImageV1, which is sampled from but not trained here",
    );
    assert!(!folder.path().join("new").exists());
}
