//! Training with everything on one device as on a card, here the CPU, operation by operation: beside the plan, and by itself.

use std::path::Path;

use candle_core::{Device, Tensor};
use ddpm_checkpoint::{list_checkpoints, read_train_state};
use ddpm_train::{
    Error, Examples, Report, Run, Settings, Trainer, memory_needed, on_threads, read_metrics,
};

use crate::program::{check, workplace};
use crate::resume::{newest_bits, timeless};
use crate::training::breakdown;
use crate::{images, tiny};

/// With dropout, two averages and accumulation, for as many steps as `more` says.
fn settings(device: &str, more: &str) -> Settings {
    let mut settings = tiny(&format!("[train]\nmicro_batch = 2\n{more}"));
    settings.train.device = device.parse().unwrap();
    settings
}

fn train(settings: &Settings) -> (Vec<Report>, Vec<(String, Vec<f32>)>) {
    on_threads(1, || {
        let mut trainer = Trainer::new(settings, images(9)).unwrap();
        let reports = trainer.by_ref().map(Result::unwrap).collect();
        let tensors = trainer.state().tensors.into_iter();
        let numbers = tensors.map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1().unwrap()));
        (reports, numbers.collect())
    })
    .unwrap()
}

#[track_caller]
fn near(what: &str, found: f64, expected: f64, tolerance: f64) {
    let apart = (found - expected).abs();
    assert!(
        apart <= tolerance * expected.abs(),
        "{what}: {found} and {expected}"
    );
}

/// Holds the tensors of two states against each other, all but the biases of keys: softmax does not see them, so that their
/// gradients are rounding alone, which Adam makes steps of.
#[track_caller]
fn near_states(found: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)]) {
    assert_eq!(found.len(), expected.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    for ((name, found), (other, expected)) in found.iter().zip(expected) {
        assert_eq!(name, other);
        if name.ends_with("to_k.bias") {
            continue;
        }
        let difference = found.iter().zip(expected).map(|(f, e)| f64::from(f - e));
        let apart = norm(&mut difference.into_iter());
        let of = norm(&mut expected.iter().map(|&e| f64::from(e))).max(1e-3);
        assert!(apart < 1e-4 * of, "{name}: {apart:e} of {of:e}");
    }
}

#[test]
fn twenty_steps_are_those_of_the_plan() {
    let more = "steps = 20";
    let (planned, expected) = train(&settings("cpu", more));
    let (reports, found) = train(&settings("cpu-graph", more));
    assert_eq!(reports.len(), 20);
    for (report, planned) in reports.iter().zip(&planned) {
        let step = planned.step;
        near(
            &format!("loss of step {step}"),
            report.loss,
            planned.loss,
            1e-5,
        );
        let norm = format!("norm of step {step}");
        near(&norm, report.gradient_norm, planned.gradient_norm, 1e-4);
        let exact = |r: &Report| (r.step, r.images, r.learning_rate);
        assert_eq!(exact(report), exact(planned));
        for (quartile, planned) in report.loss_by_quartile.iter().zip(planned.loss_by_quartile) {
            assert_eq!(quartile.is_some(), planned.is_some());
            near(
                "a quartile",
                quartile.unwrap_or(0.0),
                planned.unwrap_or(0.0),
                1e-5,
            );
        }
    }
    near_states(&found, &expected);
}

fn newest(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let newest = list_checkpoints(folder).unwrap().pop().unwrap();
    let tensors = read_train_state(&newest.path).unwrap().tensors.into_iter();
    let numbers = tensors.map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1().unwrap()));
    numbers.collect()
}

/// Goes on for `advances` calls, or to the end.
fn go(run: &mut Run, advances: usize) {
    for _ in 0..advances {
        if !run.finished() {
            run.advance().unwrap();
        }
    }
}

#[test]
fn a_run_goes_on_to_the_bit_where_it_was_and_within_rounding_on_another_device() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts, moved, planned] =
        ["whole", "parts", "moved", "planned"].map(|name| folder.path().join(name));
    let (graph, cpu) = (settings("cpu-graph", ""), settings("cpu", ""));
    on_threads(1, || {
        go(&mut Run::begin(&whole, &graph, None).unwrap(), 10);
        go(&mut Run::begin(&planned, &cpu, None).unwrap(), 10);
        go(&mut Run::begin(&parts, &graph, None).unwrap(), 7);
        go(&mut Run::resume(&parts, &graph).unwrap().0, 10);
        go(&mut Run::begin(&moved, &cpu, None).unwrap(), 7);
        go(&mut Run::resume(&moved, &graph).unwrap().0, 10);
    })
    .unwrap();
    assert_eq!(newest_bits(&whole).0, 10);
    assert!(
        newest_bits(&whole) == newest_bits(&parts),
        "the weights differ"
    );
    assert_eq!(timeless(&whole), timeless(&parts));
    near_states(&newest(&moved), &newest(&planned));
    let held_out = |folder: &Path| {
        let lines = read_metrics(&folder.join("metrics.jsonl")).unwrap();
        lines.last().unwrap().held_out_loss.unwrap()
    };
    near(
        "the held-out loss",
        held_out(&whole),
        held_out(&planned),
        1e-4,
    );
}

/// Steps that are not told of are made without waiting; what is told of the others is the same.
#[test]
fn steps_made_ahead_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [each, ahead] = ["each", "ahead"].map(|name| folder.path().join(name));
    let more = "steps = 12\ncheckpoint_every = 0\nheld_out_every = 0\nhistograms_every = 0";
    let each_told = settings("cpu-graph", more);
    let few_told = settings("cpu-graph", &format!("{more}\nlog_every = 5"));
    let steps = on_threads(1, || {
        go(&mut Run::begin(&each, &each_told, None).unwrap(), 12);
        let mut run = Run::begin(&ahead, &few_told, None).unwrap();
        let mut steps = Vec::new();
        while !run.finished() {
            steps.push(run.advance().unwrap().report.step);
        }
        steps
    })
    .unwrap();
    // After a second nobody is kept waiting, so that a slow machine may see more of them.
    assert!(
        [5, 10, 12].iter().all(|step| steps.contains(step)),
        "{steps:?}"
    );
    assert!(newest_bits(&each) == newest_bits(&ahead));
    let told = timeless(&ahead);
    let expected: Vec<_> = timeless(&each)
        .into_iter()
        .filter(|line| [5, 10, 12].contains(&line.step))
        .collect();
    assert_eq!(told, expected);
}

/// Several steps on examples from outside are those made one by one, wherever.
#[test]
fn steps_on_the_same_examples_are_those_made_one_by_one() {
    for device in ["cpu", "cpu-graph"] {
        let mut settings = settings(device, "steps = 9");
        settings.train.micro_batch = None;
        let made = |at_once: bool| {
            on_threads(1, || {
                let mut trainer = Trainer::new(&settings, images(9)).unwrap();
                let examples = examples(&trainer);
                let one_by_one = |trainer: &mut Trainer| -> Vec<Report> {
                    let step = |_| trainer.step_on(&examples).unwrap();
                    (0..3).map(step).collect()
                };
                let reports = match at_once {
                    true => trainer.steps_on(&examples, 3).unwrap(),
                    false => one_by_one(&mut trainer),
                };
                assert!(trainer.steps_on(&examples, 0).unwrap().is_empty());
                let told = |r: &Report| (r.step, r.loss, r.gradient_norm, r.images);
                let weights = trainer.raw_weights().into_iter();
                let numbers = weights.map(|(_, w)| w.flatten_all().unwrap().to_vec1().unwrap());
                (
                    reports.iter().map(told).collect::<Vec<_>>(),
                    numbers.collect::<Vec<Vec<f32>>>(),
                )
            })
            .unwrap()
        };
        let (found, expected) = (made(true), made(false));
        assert_eq!(found.0, expected.0, "{device}");
        assert!(found.1 == expected.1, "{device}: other weights");
        assert_eq!(found.0.last().unwrap().0, 3);
    }
}

/// Two images, ramps of a kind, at two times.
fn examples(trainer: &Trainer) -> Examples {
    let data = trainer.data();
    let shape = (2, data.channels(), data.height(), data.width());
    let ramp = |factor: f64| {
        let count = (shape.0 * shape.1 * shape.2 * shape.3) as u32;
        let numbers = Tensor::arange(0, count, &Device::Cpu).unwrap();
        let numbers = numbers.to_dtype(candle_core::DType::F32).unwrap();
        let waves = (numbers * factor).unwrap().sin().unwrap();
        waves.reshape(shape).unwrap()
    };
    let schedule = &trainer.objective().schedule;
    Examples {
        x_0: ramp(0.1),
        t: [3, 40].map(|t| schedule.timestep(t).unwrap()).to_vec(),
        eps: ramp(7.3),
    }
}

#[test]
fn a_breakdown_names_its_step_and_moves_nothing() {
    on_threads(1, || {
        let mut settings = settings("cpu-graph", "steps = 12");
        settings.optimizer.learning_rate = 1e30;
        settings.optimizer.warm_up = 0;
        let mut trainer = Trainer::new(&settings, images(9)).unwrap();
        let (error, text) = breakdown(&mut trainer);
        let Error::NotFinite { images, .. } = error else {
            panic!("{text}")
        };
        assert!(
            !images.is_empty() && images.iter().all(|i| *i < 9),
            "{images:?}"
        );
    })
    .unwrap();
}

#[test]
fn what_a_graph_cannot_do_is_refused_before_the_first_step() {
    for (more, expected) in [
        (
            "precision = \"bf16\"",
            "`train.precision` is bf16, and `train.device` is cpu-graph, whose operations are f32",
        ),
        (
            "gradient_checkpointing = true",
            "`train.gradient_checkpointing` is for plans, and with `train.device` = cpu-graph there is none",
        ),
    ] {
        let error = Trainer::new(&settings("cpu-graph", more), images(9))
            .err()
            .unwrap();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    let mut auto = settings("cpu-graph", "");
    auto.train.precision = "auto".parse().unwrap();
    assert_eq!(auto.resolved().train.precision.to_string(), "f32");
}

/// A graph keeps every result, a plan those of convolutions only.
#[test]
fn memory_is_estimated_for_the_way_that_is_gone() {
    let needed = |device: &str| {
        let mut settings = settings(device, "batch_size = 128");
        settings.train.micro_batch = Some(128);
        let config = settings.unet_config(1, 8, 8).unwrap();
        memory_needed(&settings, &config, (8, 8)).unwrap() as f64
    };
    let (planned, by_graph) = (needed("cpu"), needed("cpu-graph"));
    assert!(by_graph > planned + 2e6, "{planned} {by_graph}");
}

#[test]
fn the_program_says_where_it_trains_and_refuses_what_is_not_there() {
    let folder = workplace();
    let path = folder.path();
    let run = "--config tiny.toml --steps 2 --set train.micro_batch=4";
    let expected = "device cpu, operation by operation through candle's graph (cpu-graph)";
    check(
        path,
        &format!("{run} --device cpu-graph --out g"),
        0,
        &[expected],
    );
    check(
        path,
        &format!("{run} --device cpu --out c"),
        0,
        &["device cpu\n"],
    );
    // A run may go on elsewhere.
    check(
        path,
        "--resume --out c --steps 3 --device cpu-graph",
        0,
        &[expected, "goes on after step 2"],
    );
    let unknown = "`gpu` is no device, expected auto, cpu, cuda or cuda:N";
    check(
        path,
        &format!("{run} --device gpu --out x"),
        2,
        &["--device \"gpu\"", unknown],
    );
    let far = format!("{run} --device cuda:977 --out x");
    check(
        path,
        &far,
        1,
        &["error: --device: cuda:977 cannot be had: "],
    );
    assert!(!path.join("x").exists());
    check(
        path,
        &format!("{run} --device cpu-graph --dry-run"),
        0,
        &["device = \"cpu-graph\"", "# device      cpu, operation"],
    );
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_make_one_with_it() {
    let folder = workplace();
    let run = "--config tiny.toml --steps 1";
    let why = "this build has no CUDA; `cargo xtask cuda` makes one that has";
    let auto = format!("{run} --device auto");
    check(folder.path(), &auto, 0, &[&format!("device cpu: {why}")]);
    let text = check(
        folder.path(),
        &format!("{run} --out y --device cuda"),
        1,
        &[why],
    );
    assert!(
        text.contains("error: --device: cuda cannot be had: "),
        "{text}"
    );
}
