//! The run folder: ten steps are five, a stop, and five; what may change in between, and what is refused.

use std::path::{Path, PathBuf};

use ddpm_checkpoint::{list_checkpoints, read_train_state};
use ddpm_train::{Error, MetricsLine, Recorded, Run, Settings, on_threads, read_metrics};

use ddpm_unet::DeviceName;

use crate::{bits, tiny};

/// Every tensor of the newest checkpoint as bytes.
pub(crate) fn newest_bits(folder: &Path) -> (u64, Vec<(String, Vec<u32>)>) {
    let newest = list_checkpoints(folder).unwrap().pop().unwrap();
    let state = read_train_state(&newest.path).unwrap();
    (newest.step, bits(&state))
}

/// The metrics without what depends on the clock.
pub(crate) fn timeless(folder: &Path) -> Vec<MetricsLine> {
    let lines = read_metrics(&folder.join("metrics.jsonl")).unwrap();
    lines
        .into_iter()
        .map(|line| MetricsLine {
            images_per_second: 0.0,
            ..line
        })
        .collect()
}

/// Begins and goes on for `steps` steps, or to the end, then drops everything.
fn begin(folder: &Path, settings: &Settings, threads: usize, steps: usize) {
    on_threads(threads, || {
        let mut run = Run::begin(folder, settings, None).unwrap();
        for _ in 0..steps {
            run.advance().unwrap();
        }
    })
    .unwrap();
}

fn resume_to_the_end(folder: &Path, settings: &Settings, threads: usize) -> usize {
    on_threads(threads, || {
        let (mut run, skipped) = Run::resume(folder, settings).unwrap();
        assert!(skipped.is_empty());
        let from = run.trainer().steps_done();
        while !run.finished() {
            run.advance().unwrap();
        }
        from
    })
    .unwrap()
}

fn pictures(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found: Vec<_> = std::fs::read_dir(folder.join("samples"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    found.sort();
    found
        .into_iter()
        .map(|path| {
            (
                path.file_name().unwrap().into(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect()
}

#[test]
fn ten_steps_are_five_a_stop_and_five() {
    let settings = tiny("train = { micro_batch = 2, held_out_every = 4 }\nsamples.every = 5");
    for threads in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
        begin(&whole, &settings, threads, 10);
        begin(&parts, &settings, threads, 7); // the checkpoint is at 5; two steps are lost and made again
        assert_eq!(resume_to_the_end(&parts, &settings, 3 - threads), 5);
        assert_eq!(newest_bits(&whole).0, 10);
        assert!(
            newest_bits(&whole) == newest_bits(&parts),
            "the weights differ"
        );
        let lines = timeless(&whole);
        assert_eq!(lines, timeless(&parts));
        assert_eq!(
            lines.iter().map(|l| l.step).collect::<Vec<_>>(),
            (1..=10).collect::<Vec<_>>()
        );
        let held_out = lines
            .iter()
            .filter(|l| l.held_out_loss.is_some())
            .map(|l| l.step);
        assert_eq!(held_out.collect::<Vec<_>>(), [4, 8, 10]);
        assert!(pictures(&whole) == pictures(&parts), "the pictures differ");
        assert_eq!(pictures(&whole)[0].0, Path::new("step-00000005.png"));
        assert_eq!(pictures(&whole).len(), 2);
    }
}

/// Dropout and accumulation, begun with every result kept and continued with blocks computed again.
#[test]
fn gradient_checkpointing_changes_no_bit_and_may_begin_with_a_resume() {
    let settings = |again: bool| {
        let text = format!("train = {{ micro_batch = 2, gradient_checkpointing = {again} }}");
        let mut settings = tiny(&text);
        settings.train.device = DeviceName::Cpu; // only the plan has it
        settings
    };
    assert!(settings(true).model.dropout > 0.0);
    let folder = tempfile::tempdir().unwrap();
    let [kept, again, both] = ["kept", "again", "both"].map(|name| folder.path().join(name));
    begin(&kept, &settings(false), 2, 10);
    begin(&again, &settings(true), 2, 10);
    begin(&both, &settings(false), 1, 7);
    assert_eq!(resume_to_the_end(&both, &settings(true), 2), 5);
    assert!(newest_bits(&again) == newest_bits(&kept));
    assert!(newest_bits(&both) == newest_bits(&kept));
    assert_eq!(timeless(&both), timeless(&kept));
}

#[test]
fn a_run_without_a_checkpoint_resumes_from_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let settings = tiny("train.steps = 3");
    begin(&whole, &settings, 1, 3);
    begin(&parts, &settings, 1, 2);
    assert_eq!(resume_to_the_end(&parts, &settings, 1), 0);
    assert!(newest_bits(&whole) == newest_bits(&parts));
    assert_eq!(timeless(&whole), timeless(&parts));
}

#[test]
fn the_newest_checkpoints_are_kept_and_a_broken_one_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let settings = tiny("train = { checkpoint_every = 2, keep_last = 2 }");
    begin(folder.path(), &settings, 1, 9);
    let steps = || {
        list_checkpoints(folder.path())
            .unwrap()
            .iter()
            .map(|c| c.step)
            .collect::<Vec<_>>()
    };
    assert_eq!(steps(), [6, 8]);
    let state = folder
        .path()
        .join("checkpoints/step-00000008/train_state.safetensors");
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    on_threads(1, || {
        let (run, skipped) = Run::resume(folder.path(), &settings).unwrap();
        assert_eq!(run.trainer().steps_done(), 6);
        assert_eq!(
            skipped
                .iter()
                .map(|s| s.checkpoint.step)
                .collect::<Vec<_>>(),
            [8]
        );
    })
    .unwrap();
    assert_eq!(timeless(folder.path()).len(), 6);
    resume_to_the_end_with_a_broken_one(folder.path(), &settings);
    assert_eq!(steps(), [8, 10]);
}

#[test]
fn where_no_checkpoint_is_whole_nothing_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = tiny("train = { checkpoint_every = 2, keep_last = 1 }");
    begin(folder.path(), &settings, 1, 3);
    let state = folder
        .path()
        .join("checkpoints/step-00000002/train_state.safetensors");
    std::fs::write(&state, b"half").unwrap();
    let before = timeless(folder.path());
    let error = Run::resume(folder.path(), &settings).err().unwrap();
    assert!(error.to_string().contains("step-00000002"), "{error}");
    assert_eq!(timeless(folder.path()), before, "the metrics are gone");
}

#[test]
fn a_run_that_lost_its_settings_has_them_from_its_newest_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let settings = tiny("");
    begin(&whole, &settings, 1, 10);
    begin(&parts, &settings, 1, 7);
    assert_eq!(Recorded::read(&parts).unwrap().from_checkpoint, None);
    std::fs::remove_file(parts.join("run.toml")).unwrap();
    let recorded = Recorded::read(&parts).unwrap();
    let checkpoint = parts.join("checkpoints/step-00000005");
    assert_eq!(recorded.from_checkpoint, Some(checkpoint.clone()));
    assert_eq!(recorded.settings, settings);
    assert_eq!(resume_to_the_end(&parts, &recorded.settings, 1), 5);
    assert!(newest_bits(&whole) == newest_bits(&parts));
    assert_eq!(Recorded::read(&parts).unwrap().from_checkpoint, None);

    std::fs::remove_file(parts.join("run.toml")).unwrap();
    for checkpoint in list_checkpoints(&parts).unwrap() {
        std::fs::remove_file(checkpoint.path.join("run.toml")).unwrap();
    }
    let error = Recorded::read(&parts).unwrap_err().to_string();
    assert!(error.contains("holds no whole checkpoint"), "{error}");
    std::fs::remove_dir_all(parts.join("checkpoints")).unwrap();
    assert!(matches!(Recorded::read(&parts), Err(Error::NoRun(_))));
}

#[test]
fn a_run_at_its_end_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let settings = tiny("train.steps = 1");
    begin(folder.path(), &settings, 1, 1);
    let error = Run::resume(folder.path(), &settings).err().unwrap();
    assert!(matches!(error, Error::Finished(_)), "{error}");
}

#[test]
fn an_update_that_breaks_the_weights_ends_the_run_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let text = "train = { checkpoint_every = 1, held_out_every = 1 }\nsamples.every = 1";
    begin(path, &tiny(text), 1, 3);
    let was = [newest_bits(path).0 as usize, timeless(path).len()];
    assert_eq!((was, pictures(path).len()), ([3, 3], 3));
    // As if the run had always had it: beyond what an f32 holds, so that the loss is finite and the next weights are not.
    let run_toml = path.join("run.toml");
    let recorded = std::fs::read_to_string(&run_toml).unwrap();
    let broken = recorded.replace("learning_rate = 0.002", "learning_rate = 1e39");
    assert_ne!(recorded, broken);
    std::fs::write(&run_toml, broken).unwrap();
    let settings = Recorded::read(path).unwrap().settings;
    on_threads(1, || {
        let (mut run, _) = Run::resume(path, &settings).unwrap();
        let error = run.advance().unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("step 4: the updated model is not finite (images "),
            "{text}"
        );
        assert!(
            text.contains("the first bad tensor is parameter `"),
            "{text}"
        );
        let Error::NotFinite { images, .. } = error else {
            panic!("{text}")
        };
        assert_eq!(images.len(), 4, "{text}");
        let kept = path.join("checkpoints/step-00000003");
        assert_eq!(run.newest_checkpoint(), Some(kept.as_path()));
        assert!(run.save().is_err(), "a broken checkpoint was written");
    })
    .unwrap();
    let is = [newest_bits(path).0 as usize, timeless(path).len()];
    assert_eq!((is, pictures(path).len()), ([3, 3], 3));
}

fn resume_to_the_end_with_a_broken_one(folder: &Path, settings: &Settings) {
    on_threads(1, || {
        let (mut run, _) = Run::resume(folder, settings).unwrap();
        while !run.finished() {
            run.advance().unwrap();
        }
    })
    .unwrap();
}

#[test]
fn more_steps_may_be_asked_for_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    begin(folder.path(), &tiny("train.steps = 2"), 1, 2);
    let more = tiny(
        "train = { steps = 4, threads = 2, checkpoint_every = 1, keep_last = 9, log_every = 2 }\nsamples.every = 3",
    );
    assert_eq!(resume_to_the_end(folder.path(), &more, 1), 2);
    assert_eq!(newest_bits(folder.path()).0, 4);
    assert_eq!(Recorded::read(folder.path()).unwrap().settings, more);
    let refused = |text: &str| {
        Run::resume(folder.path(), &tiny(text))
            .err()
            .unwrap()
            .to_string()
    };
    for (text, told) in [
        (
            "train.batch_size = 2",
            "`train.batch_size` is 4 in the run that is to be resumed, and 2 now; ",
        ),
        (
            "train.seed = 1",
            "`train.seed` is 0 in the run that is to be resumed, and 1 now; ",
        ),
        (
            "optimizer.learning_rate = 1.0",
            "`optimizer.learning_rate` is 0.002 in the run that is to be resumed, and 1.0 now; ",
        ),
        (
            "ema.rates = [0.9]",
            "`ema.rates` is [0.9, 0.999] in the run that is to be resumed, and [0.9] now; ",
        ),
        (
            "diffusion.huber_delta = 1.0",
            "`diffusion.huber_delta` is unset in the run that is to be resumed, and 1.0 now; ",
        ),
        (
            "data.name = \"mnist\"",
            "`data.name` is \"digits\" in the run that is to be resumed, and \"mnist\" now; ",
        ),
    ] {
        let error = refused(text);
        assert!(error.starts_with(told), "{error}");
        assert!(
            error.ends_with(
                "may change only steps, minutes, cadences, threads, device and the place of the data"
            ),
            "{error}"
        );
    }
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_and_one_without_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let error = Run::resume(&path, &tiny("")).err().unwrap().to_string();
    assert_eq!(
        error,
        format!(
            "nothing to resume in `{}`: it has neither run.toml nor a whole checkpoint; start a run without --resume",
            path.display()
        )
    );
    begin(&path, &tiny("train.steps = 1"), 1, 1);
    let error = Run::begin(&path, &tiny("train.steps = 1"), None)
        .err()
        .unwrap()
        .to_string();
    let expected = format!(
        "`{}` already holds a run; continue it with --resume, or choose another folder with --out",
        path.display()
    );
    assert_eq!(error, expected);
}

#[test]
fn other_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let settings = tiny("train.steps = 1");
    begin(folder.path(), &settings, 1, 1);
    let path = folder.path().join("run.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let hash = Recorded::read(folder.path()).unwrap().data_sha256;
    std::fs::write(&path, text.replace(&hash, "0123")).unwrap();
    let error = Run::resume(folder.path(), &settings)
        .err()
        .unwrap()
        .to_string();
    let expected = format!(
        "the data set digits has sha256 {hash}, but the run was started on 0123: it cannot be continued on other data. \
         To go on with these on purpose, begin a new run from its weights: --init {} --out NEW_RUN",
        folder.path().display()
    );
    assert_eq!(error, expected);
}

#[test]
fn a_state_of_another_network_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let settings = tiny("train.steps = 1");
    begin(folder.path(), &settings, 1, 1);
    let checkpoint = list_checkpoints(folder.path()).unwrap().pop().unwrap().path;
    on_threads(1, || {
        let refused = |text: &str| {
            let data = ddpm_data::load(&"digits".parse().unwrap(), None)
                .unwrap()
                .train;
            let mut other = ddpm_train::Trainer::new(&tiny(text), data).unwrap();
            let error = other
                .load_state(read_train_state(&checkpoint).unwrap(), &checkpoint)
                .unwrap_err()
                .to_string();
            error
                .strip_prefix(&format!("{}: ", checkpoint.display()))
                .unwrap()
                .to_string()
        };
        assert!(refused("model.block_out_channels = [4, 6]").contains("` is ["));
        assert!(
            refused("model.layers_per_block = 2").ends_with("is missing from the training state")
        );
        assert_eq!(
            refused("ema.rates = [0.9]"),
            "tensor `ema.0.999.conv_in.bias` belongs to nothing in this run"
        );
    })
    .unwrap();
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Run::begin(&file.join("run"), &tiny(""), None)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.starts_with(&format!(
            "cannot make the folder `{}`: ",
            file.join("run").display()
        )),
        "{error}"
    );
}
