//! Training itself: it learns, says when it breaks, and does not depend on how the batch was split or on threads.

use candle_core::{Device, Tensor};
use ddpm_data::Dataset;
use ddpm_image::PixelMap;
use ddpm_train::{Error, HeldOut, Report, Settings, Trainer, on_threads, sample};

use crate::{bits, images, tiny};

fn train(settings: &Settings, threads: usize) -> (Vec<(String, Vec<u32>)>, Vec<Report>) {
    on_threads(threads, || {
        let mut trainer = Trainer::new(settings, images(9)).unwrap();
        let reports = trainer
            .by_ref()
            .map(|report| Report {
                seconds: 0.0,
                waited: 0.0,
                ..report.unwrap()
            })
            .collect();
        (bits(&trainer.state()), reports)
    })
    .unwrap()
}

#[test]
fn two_runs_and_any_number_of_threads_agree_to_the_bit() {
    let settings = tiny("train = { steps = 4, micro_batch = 2 }");
    let one = train(&settings, 1);
    assert_eq!(one.1.len(), 4);
    assert!(one == train(&settings, 1), "two runs differ");
    assert!(one == train(&settings, 2), "1 and 2 threads differ");
    assert!(
        one != train(&tiny("train = { steps = 4, micro_batch = 2, seed = 1 }"), 1),
        "the seed changes nothing"
    );
}

#[test]
fn accumulation_is_the_undivided_batch() {
    let (_, whole) = train(&tiny("train.steps = 3"), 1);
    let (_, split) = train(&tiny("train = { steps = 3, micro_batch = 1 }"), 1);
    for (whole, split) in whole.iter().zip(&split) {
        assert!(
            (whole.loss - split.loss).abs() < 1e-5 * whole.loss,
            "{whole:?} {split:?}"
        );
        assert!(
            (whole.gradient_norm - split.gradient_norm).abs() < 1e-3 * whole.gradient_norm,
            "{whole:?} {split:?}"
        );
        assert_eq!(
            (whole.images, whole.learning_rate),
            (split.images, split.learning_rate)
        );
    }
}

#[test]
fn reports_say_what_happened() {
    let (_, reports) = train(&tiny("train = { steps = 5, batch_size = 8 }"), 1);
    for (report, step) in reports.iter().zip(1..) {
        assert_eq!((report.step, report.images), (step, 8 * step as u64));
        assert!(report.loss_by_quartile.iter().any(Option::is_some));
        let quartiles: Vec<f64> = report.loss_by_quartile.iter().flatten().copied().collect();
        let (low, high) = (
            quartiles.iter().copied().fold(f64::MAX, f64::min),
            quartiles.iter().copied().fold(0.0, f64::max),
        );
        assert!(low <= report.loss && report.loss <= high, "{report:?}");
    }
    assert_eq!(
        reports.iter().map(|r| r.learning_rate).collect::<Vec<_>>()[2..],
        [2e-3; 3]
    );
}

#[test]
fn the_first_average_is_the_first_trained_weights() {
    on_threads(1, || {
        let mut trainer = Trainer::new(&tiny("ema.rates = [0.5]"), images(9)).unwrap();
        trainer.step().unwrap();
        let state: Vec<_> = bits(&trainer.state());
        let find = |prefix: &str| {
            state
                .iter()
                .find(|(name, _)| name == &format!("{prefix}.conv_in.weight"))
                .unwrap()
                .1
                .clone()
        };
        assert_eq!(find("raw"), find("ema.0.5"));
        trainer.step().unwrap();
        let [raw, ema] = [trainer.raw_weights(), trainer.averaged_weights(0).unwrap()];
        assert_ne!(
            raw[0].1.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            ema[0].1.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        );
    })
    .unwrap();
}

/// Steps until one breaks down, which names itself and changes nothing: its error, and that in words.
pub(crate) fn breakdown(trainer: &mut Trainer) -> (Error, String) {
    let (error, before) = loop {
        let before = bits(&trainer.state());
        if let Err(error) = trainer.step() {
            break (error, before);
        }
        assert!(trainer.steps_done() < 10, "1e30 did no harm");
    };
    assert!(
        before == bits(&trainer.state()),
        "the failed step changed something"
    );
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("step {}: the ", trainer.steps_done() + 1)),
        "{text}"
    );
    (error, text)
}

#[test]
fn a_breakdown_names_step_images_and_tensor_and_changes_nothing() {
    on_threads(1, || {
        let settings = tiny("optimizer = { learning_rate = 1e30, warm_up = 0 }");
        let mut trainer = Trainer::new(&settings, images(9)).unwrap();
        let (error, text) = breakdown(&mut trainer);
        assert!(
            text.contains("is not finite (images ") && text.contains("the first bad tensor is "),
            "{text}"
        );
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
fn a_bad_weight_is_named() {
    on_threads(1, || {
        let settings = tiny("");
        let mut weights = Trainer::new(&settings, images(9)).unwrap().raw_weights();
        let bad = weights
            .iter()
            .position(|(name, _)| name == "down_blocks.0.resnets.0.conv1.bias")
            .unwrap();
        weights[bad].1 = (weights[bad].1.zeros_like().unwrap() + f64::NAN).unwrap();
        let mut trainer = Trainer::with_weights(&settings, images(9), weights).unwrap();
        let text = trainer.step().unwrap_err().to_string();
        assert!(
            text.starts_with("step 1: the loss is not finite (images "),
            "{text}"
        );
        assert!(
            text.contains("the first bad tensor is parameter `down_blocks.0.resnets.0.conv1.bias`"),
            "{text}"
        );
    })
    .unwrap();
}

#[test]
fn the_held_out_loss_is_fixed() {
    on_threads(1, || {
        let mut trainer = Trainer::new(&tiny("train.seed = 5"), images(9)).unwrap();
        let other = Trainer::new(&tiny("train.seed = 5"), images(9)).unwrap();
        let [together, alone] = [4, 1].map(|n| {
            HeldOut::new(trainer.objective(), &images(20), trainer.pixels(), 7, n).unwrap()
        });
        let loss = |trainer: &Trainer, held_out: &HeldOut| {
            held_out
                .loss(trainer.objective(), &trainer.sampling_network().unwrap())
                .unwrap()
        };
        let before = loss(&trainer, &together);
        assert_eq!(before, loss(&other, &together));
        assert!((before - loss(&trainer, &alone)).abs() < 1e-6 * before);
        trainer.step().unwrap();
        trainer.step().unwrap();
        assert_ne!(before, loss(&trainer, &together));
    })
    .unwrap();
}

#[test]
fn eight_images_are_learnt_by_heart() {
    const TEXT: &str = r#"
        model = { block_out_channels = [16, 32], down_block_types = ["DownBlock2D", "AttnDownBlock2D"], norm_num_groups = 4, dropout = 0.0 }
        diffusion = { timesteps = 100, schedule = "cosine" }
        optimizer = { learning_rate = 3e-3, warm_up = 20 }
        ema.rates = [0.99]
        train = { steps = 700, batch_size = 8 }
        samples = { count = 8, steps = 20 }
    "#;
    on_threads(2, || {
        let settings = tiny(TEXT);
        let data = eight_digits();
        let mut trainer = Trainer::new(&settings, data.clone()).unwrap();
        let losses: Vec<f64> = trainer
            .by_ref()
            .map(|report| report.unwrap().loss)
            .collect();
        let last = losses[600..].iter().sum::<f64>() / 100.0;
        assert!(
            last < 0.12,
            "the last hundred losses are {last} in the mean"
        );
        let network = trainer.sampling_network().unwrap();
        let x_0 = sample(
            trainer.objective(),
            &network,
            &settings.samples,
            trainer.pixels(),
            (1, 8, 8),
        )
        .unwrap();
        let sources = data
            .tensor(
                &[0, 1, 2, 3, 4, 5, 6, 7],
                &PixelMap::MinusOneToOne,
                &Device::Cpu,
            )
            .unwrap();
        for i in 0..8 {
            let distance = nearest(&x_0.get(i).unwrap(), &sources);
            // Two different digits are some 0.5 apart.
            assert!(
                distance < 0.08,
                "sample {i} is {distance} from its nearest source"
            );
        }
    })
    .unwrap();
}

fn eight_digits() -> Dataset {
    let digits = ddpm_data::load(&"digits".parse().unwrap(), None)
        .unwrap()
        .train;
    let pixels = (0..8).flat_map(|i| digits.image(i).to_vec()).collect();
    Dataset::new("eight digits", pixels, (8, 8, 1), None, vec![]).unwrap()
}

/// Mean squared distance to the nearest of the sources, in units of [-1, 1].
fn nearest(x: &Tensor, sources: &Tensor) -> f64 {
    let distance = |i| {
        (x - sources.get(i).unwrap())
            .unwrap()
            .sqr()
            .unwrap()
            .mean_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
    };
    (0..8)
        .map(|i| f64::from(distance(i)))
        .fold(f64::MAX, f64::min)
}

/// `torch.manual_seed(5); UNet2DModel(...)`.
#[test]
fn training_begins_with_pytorchs_weights_where_it_is_told_to() {
    let settings = tiny("train.seed = 5\nmodel.initialisation = \"torch\"");
    let trainer = Trainer::new(&settings, images(9)).unwrap();
    let mut generator = ddpm_random::TorchGenerator::new(5);
    let device = candle_core::Device::Cpu;
    let expected = ddpm_unet::initialise_as_torch(trainer.config(), &mut generator, &device);
    for ((name, tensor), (_, expected)) in trainer.raw_weights().iter().zip(expected.unwrap()) {
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(tensor), values(&expected), "{name}");
    }
}
