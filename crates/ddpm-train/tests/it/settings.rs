//! Settings: where they come from, which wins, and what is said of impossible ones.

use ddpm_data::Dataset;
use ddpm_samplers::{Betas, SchedulerConfig};
use ddpm_train::{
    Decay, Layer, Objective, PRESETS, Preset, Settings, Trainer, on_threads, sample, scheduler,
    settings::ScheduleKind,
};
use ddpm_unet::Precision;

use crate::{TINY, tiny};

#[test]
fn presets_are_complete_and_possible() {
    for preset in PRESETS {
        let settings = Settings::from_layers(&[preset.layer().unwrap()])
            .unwrap()
            .resolved();
        settings
            .check()
            .unwrap_or_else(|e| panic!("{}: {e}", preset.name));
        let headline = preset.headline();
        assert!(
            headline.starts_with(&format!("cargo xtask train {}", preset.name)),
            "{headline}"
        );
    }
    let error = Preset::named("cats").unwrap_err().to_string();
    assert_eq!(
        error,
        "no preset is called `cats`; there are: digits, fashion-mnist, mnist, cifar10, tiny-imagenet"
    );
}

/// Names, parameters (those that diffusers counts for the same configuration) and images: height, width, channels.
const PRESET_NETWORKS: [(&str, usize, (usize, usize, usize)); 5] = [
    ("digits", 701_345, (8, 8, 1)),
    ("fashion-mnist", 2_502_849, (28, 28, 1)),
    ("mnist", 2_502_849, (28, 28, 1)),
    ("cifar10", 35_746_307, (32, 32, 3)),
    ("tiny-imagenet", 56_332_675, (64, 64, 3)),
];

/// Every preset begins: a few steps and a picture of its network with fewer channels, on its data where they are.
#[test]
fn every_preset_trains_for_a_moment() {
    for (preset, (name, parameters, size)) in PRESETS.iter().zip(PRESET_NETWORKS) {
        assert_eq!(preset.name, name);
        let whole = Settings::from_layers(&[preset.layer().unwrap()])
            .unwrap()
            .resolved();
        let (height, width, channels) = size;
        let network = whole.unet_config(channels, height, width).unwrap();
        assert_eq!(network.parameter_count(), parameters, "{name}");
        let narrow: Vec<usize> = (1..=whole.model.block_out_channels.len())
            .map(|level| 8 * level)
            .collect();
        let small = format!(
            "model = {{ block_out_channels = {narrow:?}, norm_num_groups = 4{} }}
             train = {{ steps = 3, batch_size = 2, micro_batch = 1, held_out_images = 2 }}
             optimizer = {{ warm_up = 1, decay_steps = 9 }}
             samples = {{ count = 1, steps = 2 }}",
            match whole.model.attention_head_dim {
                Some(_) => ", attention_head_dim = 8, attn_norm_num_groups = 4",
                None => "",
            }
        );
        let small = match whole.optimizer.decay {
            Decay::Constant => small.replace(", decay_steps = 9", ""),
            _ => small,
        };
        let layers = [
            preset.layer().unwrap(),
            Layer::from_text("small", &small).unwrap(),
        ];
        let settings = Settings::from_layers(&layers).unwrap().resolved();
        settings.check().unwrap();
        let data = settings
            .data_spec()
            .and_then(|spec| Ok(ddpm_data::load(&spec, None)?.train));
        let data = data.unwrap_or_else(|_| {
            println!("{name}: its data are not here; on a pattern instead");
            let pixels = (0..4 * height * width * channels).map(|i| (i * i * 31 + i * 7) as u8);
            Dataset::new(name, pixels.collect(), size, None, vec![]).unwrap()
        });
        assert_eq!(
            (data.height(), data.width(), data.channels()),
            size,
            "{name}"
        );
        on_threads(2, || {
            let mut trainer = Trainer::new(&settings, data).unwrap();
            let reports: Vec<_> = trainer.by_ref().map(Result::unwrap).collect();
            assert_eq!(reports.len(), 3);
            assert!(
                reports.iter().all(|r| r.loss > 0.1 && r.loss < 3.0),
                "{name}: {reports:?}"
            );
            let network = trainer.sampling_network().unwrap();
            let drawn = sample(
                trainer.objective(),
                &network,
                &settings.samples,
                &settings.data.normalisation.pixel_map().unwrap(),
                (channels, height, width),
            );
            assert_eq!(drawn.unwrap().dims(), [1, channels, height, width]);
        })
        .unwrap();
    }
}

#[test]
fn later_layers_win() {
    let layers = [
        Layer::from_text("preset", TINY).unwrap(),
        Layer::from_text("file", "train = { batch_size = 8, seed = 1 }").unwrap(),
        Layer::one("--seed 2".into(), "train.seed", 2).unwrap(),
        Layer::from_assignment("train.seed=3").unwrap(),
        Layer::from_assignment("data.name=mnist").unwrap(),
        Layer::from_assignment("diffusion.schedule = \"cosine\"").unwrap(),
        Layer::from_assignment("ema.rates=[0.5]").unwrap(),
        Layer::one("--minutes 2".into(), "train.minutes", 2.0).unwrap(),
        Layer::lift("--minutes".into(), "train", "steps"),
    ];
    let settings = Settings::from_layers(&layers).unwrap();
    assert_eq!(
        (
            settings.train.seed,
            settings.train.batch_size,
            settings.train.checkpoint_every
        ),
        (3, 8, 5)
    );
    assert_eq!(
        (settings.train.steps, settings.train.minutes),
        (None, Some(2.0))
    );
    assert_eq!(
        (settings.data.name.as_str(), settings.diffusion.schedule),
        ("mnist", ScheduleKind::Cosine)
    );
    assert_eq!(settings.ema.rates, [0.5]);
}

#[test]
fn resolved_settings_come_back_from_their_text() {
    let settings =
        tiny("diffusion = { weighting = \"p2\", loss = \"huber\" }\noptimizer.decay = \"cosine\"");
    let text = settings.to_toml().unwrap();
    for said in [
        "beta_start = 0.0001",
        "huber_delta = 1.0",
        "weighting_k = 1.0",
        "decay_steps = 10",
        "micro_batch = 4",
    ] {
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
    let again = Settings::from_layers(&[Layer::from_text("again", &text).unwrap()]).unwrap();
    assert_eq!(again, settings);
    assert_eq!(again.resolved(), settings);
}

#[track_caller]
fn check_text(text: &str, expected: &[&str]) {
    let error = Layer::from_text("my.toml", text).unwrap_err().to_string();
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn unknown_keys_and_wrong_types_name_file_and_line() {
    check_text(
        "[train]\nbatch_size = 4\nstepz = 5\n",
        &["my.toml: ", "line 3", "unknown field `stepz`", "`steps`"],
    );
    check_text(
        "[trian]\n",
        &["my.toml: ", "line 1", "unknown field `trian`", "`train`"],
    );
    check_text(
        "train.steps = \"many\"",
        &["my.toml: ", "invalid type: string \"many\", expected usize"],
    );
    check_text("train.steps = ", &["my.toml: ", "line 1"]);
    check_text(
        "diffusion.schedule = \"line\"",
        &["unknown variant `line`", "`linear`"],
    );
}

#[track_caller]
fn check_assignment(text: &str, expected: &[&str]) {
    let layers = Layer::from_assignment(text)
        .map(|layer| vec![Layer::from_text("tiny", TINY).unwrap(), layer]);
    let error = layers
        .and_then(|layers| Settings::from_layers(&layers))
        .unwrap_err()
        .to_string();
    for part in expected {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn wrong_assignments_name_themselves() {
    check_assignment(
        "train.steps=abc",
        &[
            "--set train.steps=abc: invalid type: string \"abc\", expected usize",
            "train.steps",
        ],
    );
    check_assignment("train.steps=-1", &["--set train.steps=-1: ", "-1"]);
    check_assignment(
        "train.step=5",
        &["--set train.step=5: unknown field `step`"],
    );
    check_assignment(
        "steps=5",
        &["--set steps=5: `steps` is not of the form SECTION.KEY"],
    );
    check_assignment("train.steps", &["--set train.steps: expected KEY=VALUE"]);
    check_assignment("train.=5", &["is not of the form SECTION.KEY"]);
    check_assignment("train.a.b=5", &["is not of the form SECTION.KEY"]);
}

#[track_caller]
fn check_refused(text: &str, expected: &str) {
    let settings = tiny(text);
    let error = settings
        .check()
        .and_then(|()| settings.check_data(5, (3, 4, 6)))
        .unwrap_err()
        .to_string();
    assert!(error.contains(expected), "{expected:?} is not in {error:?}");
}

#[test]
fn impossible_settings_are_found_before_the_first_step() {
    check_refused(
        "data.name = \"\"",
        "`data.name` is missing: say what to learn from, as in --data digits",
    );
    check_refused(
        "train.steps = 0",
        "`train.steps` is 0; at least 1 is needed",
    );
    check_refused(
        "train.minutes = 0.0",
        "`train.minutes` is 0; it must be above 0",
    );
    check_refused(
        "train.batch_size = 0",
        "`train.batch_size` is 0; at least 1 is needed",
    );
    check_refused(
        "train.batch_size = 6",
        "`train.batch_size` is 6, but digits has only 5 images",
    );
    check_refused(
        "train.micro_batch = 3",
        "`train.micro_batch` is 3, which does not divide `train.batch_size` = 4",
    );
    check_refused(
        "train.keep_last = 0",
        "`train.keep_last` is 0; at least 1 is needed",
    );
    check_refused(
        "diffusion.timesteps = 0",
        "`diffusion.timesteps` is 0; at least 1 is needed",
    );
    check_refused(
        "diffusion.beta_start = 0.0",
        "`diffusion.beta_start` is 0; it must be above 0 and at most 1",
    );
    check_refused(
        "diffusion.beta_end = 1.5",
        "`diffusion.beta_end` is 1.5; it must be above 0 and at most 1",
    );
    check_refused(
        "diffusion = { schedule = \"cosine\", beta_end = 0.5 }",
        "`diffusion.beta_end` only goes with a `diffusion.schedule`",
    );
    check_refused(
        "diffusion = { schedule = \"constant\", beta_start = 0.5 }",
        "`diffusion.beta_start` only goes with a `diffusion.schedule`",
    );
    check_refused(
        "diffusion.huber_delta = 1.0",
        "`diffusion.huber_delta` only goes with `diffusion.loss = \"huber\"`",
    );
    check_refused(
        "diffusion.weighting_gamma = 5.0",
        "`diffusion.weighting_gamma` only goes with",
    );
    check_refused(
        "samples.steps = 51",
        "`samples.steps` is 51, more than `diffusion.timesteps` = 50",
    );
    check_refused(
        "model.norm_num_groups = 3",
        "`model.norm_num_groups` is 3, which does not divide the 4 channels of a level",
    );
    check_refused(
        "model.block_out_channels = []",
        "`model.block_out_channels` needs at least one level",
    );
    check_refused(
        "model.block_out_channels = [4]",
        "`model.down_block_types` has 2 entries, but `model.block_out_channels` has 1 level",
    );
    check_refused(
        "model.dropout = 1.0",
        "`model.dropout` is 1; it must be at least 0 and below 1",
    );
    check_refused(
        "model.down_block_types = [\"DownBlock2D\", \"KDownBlock2D\"]",
        "KDownBlock2D",
    );
    check_refused(
        "optimizer.learning_rate = 0.0",
        "`optimizer.learning_rate` is 0; it must be above 0",
    );
    check_refused(
        "optimizer.beta_2 = 1.0",
        "`optimizer.beta_2` is 1; it must be at least 0 and below 1",
    );
    check_refused(
        "optimizer = { name = \"adamw\", beta_1 = 1.0 }",
        "`optimizer.beta_1` is 1; it must be at least 0 and below 1",
    );
    check_refused(
        "optimizer.weight_decay = 0.1",
        "`optimizer.weight_decay` only goes with `optimizer.name = \"adamw\"`",
    );
    check_refused(
        "optimizer.decay_steps = 9",
        "`optimizer.decay_steps` only goes with a decaying `optimizer.decay`",
    );
    check_refused(
        "optimizer = { decay = \"linear\", decay_steps = 2 }",
        "`optimizer.decay_steps` is 2, which is not above `optimizer.warm_up` = 3",
    );
    check_refused(
        "optimizer = { decay = \"linear\", decay_steps = 9 }",
        "`train.steps` goes beyond `optimizer.decay_steps` = 9",
    );
    check_refused(
        "ema.rates = [1.0]",
        "`ema.rates` is 1; it must be above 0 and below 1",
    );
    check_refused(
        "ema.rates = [0.0, 0.9]",
        "`ema.rates` is 0; it must be above 0 and below 1",
    );
    check_refused(
        "diffusion.timesteps = 1000000000000",
        "`diffusion.timesteps` is 1000000000000, expected at most 1000000",
    );
    check_refused("ema.rates = [0.5, 0.9, 0.5]", "`ema.rates` holds 0.5 twice");
}

#[test]
fn an_image_that_the_depth_does_not_divide_is_refused_with_the_sizes_that_work() {
    let error = tiny("").check_data(100, (1, 7, 8)).unwrap_err().to_string();
    assert!(
        error.starts_with("`model.block_out_channels` does not fit the images of digits: "),
        "{error}"
    );
    assert!(error.contains("6x8") && error.contains("8x8"), "{error}");
}

#[test]
fn a_decay_without_a_length_is_refused() {
    let layers = [
        Layer::from_text("tiny", TINY).unwrap(),
        Layer::from_text("test", "train.minutes = 1.0\noptimizer.decay = \"cosine\"").unwrap(),
        Layer::lift("--minutes".into(), "train", "steps"),
    ];
    let error = Settings::from_layers(&layers)
        .unwrap()
        .resolved()
        .check()
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(
            "`optimizer.decay_steps` is missing: a decaying learning rate needs a length"
        ),
        "{error}"
    );
}

#[test]
fn a_decay_goes_with_minutes_only_below_a_number_of_steps() {
    let error = |text: &str| {
        let layers = [
            Layer::from_text("tiny", TINY).unwrap(),
            Layer::from_text("test", text).unwrap(),
            Layer::lift("--minutes".into(), "train", "steps"),
        ];
        let settings = Settings::from_layers(&layers).unwrap().resolved();
        settings.check().unwrap_err().to_string()
    };
    let decay = "train.minutes = 1.0\noptimizer = { decay = \"cosine\", decay_steps = 50 }";
    assert_eq!(
        error(decay),
        "`train.steps` is missing: after `optimizer.decay_steps` = 50 the learning rate is 0; give at most that many"
    );
    let both = tiny("train.minutes = 1.0\noptimizer.decay = \"cosine\"");
    both.check().unwrap();
    assert_eq!(both.optimizer.decay_steps, Some(10));
}

#[test]
fn every_schedule_is_told_to_those_who_sample() {
    for (name, by_name) in [
        ("linear", true),
        ("linear-scaled", false),
        ("scaled-linear", true),
        ("quadratic", true),
        ("cosine", true),
        ("sigmoid", true),
        ("alpha-bar-sigmoid", false),
        ("laplace", true),
        ("jsd", false),
        ("constant", false),
        ("warm-up-10", false),
        ("warm-up-50", false),
    ] {
        let text = format!("diffusion = {{ schedule = \"{name}\", prediction = \"velocity\" }}");
        let settings = tiny(&text);
        settings.check().unwrap();
        let objective = Objective::new(&settings.diffusion).unwrap();
        let told = scheduler(&objective, &settings.diffusion, &Default::default()).unwrap();
        let told = SchedulerConfig::from_json(&told.to_json()).unwrap();
        assert_eq!(told.schedule().unwrap(), objective.schedule, "{name}");
        let trained = matches!(told.betas(), Some(Betas::Trained(_)));
        assert_eq!(trained, !by_name, "{name}");
    }
    let betas = |name: &str| {
        let settings = tiny(&format!("diffusion.schedule = \"{name}\""));
        let objective = Objective::new(&settings.diffusion).unwrap();
        objective.schedule.betas().to_vec()
    };
    assert_eq!(betas("constant"), [0.02; 50]);
    assert_eq!(betas("warm-up-10")[4..], [0.02; 46]);
    assert!(betas("warm-up-50")[23] < 0.02 && betas("warm-up-50")[24..] == [0.02; 26]);
    assert_eq!(betas("quadratic"), betas("scaled-linear"));
}

#[test]
fn data_that_are_no_files_have_no_folder() {
    let error = |text: &str| tiny(text).data_spec().unwrap_err().to_string();
    assert_eq!(
        error("data.directory = \"somewhere\""),
        "`data.directory` (--data-dir) only goes with data that are files: digits are inside the program"
    );
    assert_eq!(
        error("data.name = \"cats\""),
        "data set `cats`: unknown; this version reads digits, mnist, fashion-mnist, cifar10, tiny-imagenet, \
         folder:PATH, parquet:PATH and hub:OWNER/NAME"
    );
    let mnist = tiny("data = { name = \"mnist\", directory = \"somewhere\" }");
    assert_eq!(mnist.data_spec().unwrap(), ddpm_data::DataSpec::Mnist);
}

#[test]
fn noise_cannot_be_predicted_where_nothing_else_is_left() {
    let error = Objective::new(&tiny("diffusion.zero_terminal_snr = true").diffusion)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("`diffusion.prediction` cannot be `noise` with this schedule"),
        "{error}"
    );
    let d = tiny("diffusion = { zero_terminal_snr = true, prediction = \"velocity\", weighting = \"min-snr\" }").diffusion;
    Objective::new(&d).unwrap();
}

/// Blocks and keys beyond the plain network reach it, and what does not fit is refused before the first step.
#[test]
fn the_network_may_have_other_blocks() {
    let text = r#"
        model = { block_out_channels = [4, 8], down_block_types = ["ResnetDownsampleBlock2D", "AttnDownBlock2D"], act_fn = "mish",
            upsample_type = "resnet", rescale_residuals = true, mid_block_scale_factor = 2.0, norm_num_groups = 2 }"#;
    let settings = tiny(text);
    settings.check().unwrap();
    let config = settings.unet_config(1, 8, 8).unwrap();
    let network = config.settings();
    let ups: Vec<&str> = network.up_block_types.iter().map(|up| up.name()).collect();
    assert_eq!(ups, ["AttnUpBlock2D", "ResnetUpsampleBlock2D"]);
    assert!(network.rescale_residuals && network.mid_block_scale_factor == 2.0);
    assert_eq!(config.beyond_diffusers().len(), 1);
    let json = config.to_json();
    assert!(
        json.contains("\"act_fn\": \"mish\"") && json.contains("\"upsample_type\": \"resnet\"")
    );
    let error = tiny("model.act_fn = \"tanh\"")
        .unet_config(1, 8, 8)
        .unwrap_err();
    assert!(
        error.to_string().contains("`act_fn` is \"tanh\""),
        "{error}"
    );
}

#[test]
fn only_networks_with_a_plan_compute_blocks_again() {
    let checked = |model: &str| {
        let text = format!("train.gradient_checkpointing = true\nmodel.down_block_types = {model}");
        tiny(&text).check_data(99, (1, 8, 8))
    };
    checked("[\"DownBlock2D\", \"AttnDownBlock2D\"]").unwrap();
    assert_eq!(
        checked("[\"ResnetDownsampleBlock2D\", \"DownBlock2D\"]")
            .unwrap_err()
            .to_string(),
        "`train.gradient_checkpointing` is for networks that are trained by a plan: plain, attention and convolution \
         blocks with SiLU"
    );
}

/// A network without a plan trains, and its loss falls.
#[test]
fn a_network_without_a_plan_trains() {
    let settings = tiny(
        r#"model = { block_out_channels = [4, 8], down_block_types = ["ResnetDownsampleBlock2D", "DownBlock2D"], norm_num_groups = 2 }"#,
    );
    let mut trainer = ddpm_train::Trainer::new(&settings, crate::images(9)).unwrap();
    let losses: Vec<f64> = (0..30).map(|_| trainer.step().unwrap().loss).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[20..]) < mean(&losses[..10]), "{losses:?}");
}

/// Networks that no plan can hold train in f32 whatever the processor, and are not promised bf16.
#[test]
fn bf16_is_for_networks_that_go_by_plan() {
    let with = |model: &str| {
        let layers = [
            Layer::from_text("tiny", TINY).unwrap(),
            Layer::from_text("more", model).unwrap(),
        ];
        Settings::from_layers(&layers).unwrap().resolved()
    };
    let plain = with("train = { precision = \"bf16\" }");
    assert_eq!(plain.unplanned(), None);
    plain.check_data(100, (1, 8, 8)).unwrap();
    let gelu = "model = { act_fn = \"gelu\" }\n";
    let auto = with(&format!("{gelu}train = {{ precision = \"auto\" }}"));
    assert_eq!(auto.unplanned().unwrap(), "`act_fn` gelu");
    assert_eq!(auto.train.precision.on_this_processor(), Precision::F32);
    auto.check_data(100, (1, 8, 8)).unwrap();
    let asked = with(&format!("{gelu}train = {{ precision = \"bf16\" }}"));
    assert_eq!(
        asked.check_data(100, (1, 8, 8)).unwrap_err().to_string(),
        "`train.precision` is bf16, but the network has `act_fn` gelu, for which there is only f32"
    );
}
