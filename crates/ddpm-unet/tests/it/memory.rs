//! The memory estimate: its parts by hand, and how it grows.

use ddpm_unet::{DownBlock, Precision, UNetConfig, UNetSettings, UpBlock, Use};

/// Network S of the benchmarks: 28x28, three levels.
fn small() -> UNetConfig {
    let settings = UNetSettings {
        in_channels: 1,
        out_channels: 1,
        ..UNetSettings::ho()
    };
    UNetConfig::new(settings.with_levels(&[(32, false), (64, true), (128, false)])).unwrap()
}

fn training(averages: usize) -> Use {
    Use::Training {
        averages,
        recompute: false,
        in_one_pass: false,
    }
}

#[test]
fn weights_gradients_moments_and_averages_are_copies_of_the_parameters() {
    let parameters = 4 * small().parameter_count() as u64;
    let training = small().memory_estimate(2, 28, 28, training(3)).unwrap();
    assert_eq!(training.parameters, parameters);
    assert_eq!(training.gradients, parameters);
    assert_eq!(training.moments, 2 * parameters);
    assert_eq!(training.averages, 3 * parameters);
    let sampling = small().memory_estimate(2, 28, 28, Use::Sampling).unwrap();
    assert_eq!(
        (
            sampling.parameters,
            sampling.gradients,
            sampling.moments,
            sampling.averages
        ),
        (parameters, 0, 0, 0)
    );
    assert_eq!(sampling.total(), sampling.parameters + sampling.activations);
}

/// One level of one layer without attention, by hand: 4-channel states of 2x2 from 1x2x2, each in a block of 16 channels.
#[test]
fn training_keeps_what_the_convolutions_gave_and_little_more() {
    let settings = UNetSettings {
        in_channels: 1,
        out_channels: 1,
        norm_num_groups: Some(1),
        layers_per_block: 1,
        mid_block: false,
        ..UNetSettings::ho()
    };
    let config = UNetConfig::new(settings.with_levels(&[(4, false)])).unwrap();
    let state = 3 * 4 * 16 * 4;
    let vector = 3 * 4 * 16;
    let kept = state // conv_in
        + 2 * state // the block down: its first convolution and its sum
        + 2 * (3 * state); // each block up also its joined input, whose halves fill no blocks
    // Besides, at one time: the time embedding's two layers, each block's projection, and a few gradients.
    let beside = 5 * vector + 5 * state;
    let training = config
        .memory_estimate(3, 2, 2, training(0))
        .unwrap()
        .activations;
    assert!(
        kept <= training && training <= kept + beside,
        "{kept} {training}"
    );
}

#[test]
fn network_s_takes_five_megabytes_an_image() {
    let training = training(0);
    let activations = small()
        .memory_estimate(1, 28, 28, training)
        .unwrap()
        .activations;
    assert!(
        (3_000_000..6_000_000).contains(&activations),
        "{activations}"
    );
}

#[test]
fn training_takes_more_than_sampling_and_batches_add_up() {
    let estimate = |batch, used| {
        small()
            .memory_estimate(batch, 28, 28, used)
            .unwrap()
            .activations
    };
    let training = training(1);
    assert_eq!(estimate(6, training), 6 * estimate(1, training));
    assert_eq!(estimate(6, Use::Sampling), 6 * estimate(1, Use::Sampling));
    assert!(estimate(1, training) > 3 * estimate(1, Use::Sampling));
}

/// In a batch of eight, the gradients of network M take little more than its activations leave; those that have a place of
/// their own are of biases and norms.
#[test]
fn gradients_of_one_pass_take_little_memory_in_bf16() {
    let in_one_pass = Use::Training {
        averages: 0,
        recompute: false,
        in_one_pass: true,
    };
    let of = |precision, used| {
        let estimate = UNetConfig::ddpm_cifar10().memory_estimate_in(precision, 8, 32, 32, used);
        estimate.unwrap()
    };
    let added = of(Precision::Bf16, training(0));
    let once = of(Precision::Bf16, in_one_pass);
    assert_eq!(added.gradients, added.parameters);
    assert!(once.gradients < once.parameters / 500, "{once:?}");
    let more = once.activations - added.activations;
    assert!(more < added.gradients / 5, "{once:?} {added:?}");
    // In f32 each has its own.
    let added = of(Precision::F32, training(0));
    assert_eq!(of(Precision::F32, in_one_pass), added);
}

/// A graph keeps the result of every operation, a plan what convolutions gave.
#[test]
fn a_graph_keeps_more_than_a_plan() {
    let config = small();
    let planned = config.memory_estimate(3, 28, 28, training(2)).unwrap();
    let by_graph = config
        .memory_estimate_by_graph(Precision::F32, 3, 28, 28, training(2))
        .unwrap();
    assert!(
        by_graph.activations > 3 * planned.activations / 2,
        "{planned:?} {by_graph:?}"
    );
    assert_eq!(
        planned.total() - planned.activations,
        by_graph.total() - by_graph.activations
    );
}

/// Network M of the benchmarks is the paper's for CIFAR-10.
#[test]
fn blocks_computed_again_take_three_fifths_of_the_memory() {
    let again = Use::Training {
        averages: 0,
        recompute: true,
        in_one_pass: false,
    };
    let cifar10 = UNetConfig::ddpm_cifar10();
    for (name, config, side) in [("S", small(), 28), ("M", cifar10, 32)] {
        for precision in [Precision::F32, Precision::Bf16] {
            let activations = |used| {
                let estimate = config.memory_estimate_in(precision, 3, side, side, used);
                estimate.unwrap().activations as f64
            };
            let (kept, again) = (activations(training(0)), activations(again));
            assert!(
                again < 0.62 * kept,
                "{name} in {precision:?}: {kept} {again}"
            );
        }
    }
}

#[test]
fn dropout_keeps_its_masks() {
    let settings = UNetSettings {
        dropout: 0.1,
        ..small().settings().clone()
    };
    let with = UNetConfig::new(settings).unwrap();
    let training = training(1);
    let more = with
        .memory_estimate(1, 28, 28, training)
        .unwrap()
        .activations
        - small()
            .memory_estimate(1, 28, 28, training)
            .unwrap()
            .activations;
    let masks = 5 * 32 * 28 * 28 + 5 * 64 * 14 * 14 + 7 * 128 * 7 * 7; // a byte for each activation before a second convolution
    assert_eq!(more, masks);
    let sampling = |config: &UNetConfig| config.memory_estimate(1, 28, 28, Use::Sampling).unwrap();
    assert_eq!(sampling(&with), sampling(&small()));
}

/// Without a plan every result is kept in training, and the image beside the states counts.
#[test]
fn networks_without_a_plan_are_measured() {
    let plain = UNetSettings {
        norm_num_groups: Some(4),
        layers_per_block: 1,
        mid_block: false,
        ..UNetSettings::ho()
    }
    .with_levels(&[(16, false), (16, false)]);
    let filtered = UNetSettings {
        down_block_types: vec![DownBlock::SkipDown; 2],
        up_block_types: vec![UpBlock::SkipUp; 2],
        ..plain.clone()
    };
    let config = UNetConfig::new(filtered).unwrap();
    let estimate = |batch, used| {
        let estimate = config.memory_estimate(batch, 8, 12, used).unwrap();
        estimate.activations
    };
    let training = training(1);
    assert_eq!(estimate(6, training), 6 * estimate(1, training));
    assert_eq!(estimate(6, Use::Sampling), 6 * estimate(1, Use::Sampling));
    // Each of the six residual blocks keeps at least two normalised states, two convolved ones and a sum.
    let state = 4 * 16 * 8 * 12;
    assert!(estimate(1, training) > 5 * (3 * state + 3 * state / 4));
    assert!(estimate(1, training) > 3 * estimate(1, Use::Sampling));
    assert!(estimate(1, Use::Sampling) > 3 * state);
}

#[test]
fn a_size_that_does_not_suit_is_refused() {
    let error = small()
        .memory_estimate(1, 30, 28, Use::Sampling)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("images of 30x28"), "{error}");
}

/// Sizes without sense give a large number, not a panic.
#[test]
fn absurd_sizes_saturate() {
    for side in [1 << 31, usize::MAX / 4 * 4] {
        for used in [
            Use::Sampling,
            Use::Training {
                averages: usize::MAX,
                recompute: false,
                in_one_pass: false,
            },
            Use::Training {
                averages: usize::MAX,
                recompute: true,
                in_one_pass: false,
            },
        ] {
            assert_eq!(
                small()
                    .memory_estimate(usize::MAX, side, side, used)
                    .unwrap()
                    .total(),
                u64::MAX
            );
        }
    }
}
