//! The memory estimate: its parts by hand, and how it grows.

use ddpm_unet::{UNetConfig, UNetSettings, Use};

/// Network S of the benchmarks: 28x28, three levels.
fn small() -> UNetConfig {
    let settings = UNetSettings {
        in_channels: 1,
        out_channels: 1,
        ..UNetSettings::ho()
    };
    UNetConfig::new(settings.with_levels(&[(32, false), (64, true), (128, false)])).unwrap()
}

#[test]
fn weights_gradients_moments_and_averages_are_copies_of_the_parameters() {
    let parameters = 4 * small().parameter_count() as u64;
    let training = small()
        .memory_estimate(2, 28, 28, Use::Training { averages: 3 })
        .unwrap();
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

/// One level of one layer without attention, by hand: 4-channel states of 2x2 from 1x2x2.
#[test]
fn activations_are_those_of_the_operations() {
    let settings = UNetSettings {
        in_channels: 1,
        out_channels: 1,
        norm_num_groups: 1,
        layers_per_block: 1,
        mid_block: false,
        ..UNetSettings::ho()
    };
    let config = UNetConfig::new(settings.with_levels(&[(4, false)])).unwrap();
    let (image, state, joined, time) = (4, 16, 32, 16);
    let resnet = |input: usize, shortcut: bool| {
        // norm1, conv1, time, time and bias, norm2, conv2, sum, and the shortcut's convolution
        input + state + 4 + 4 + state + state + state + if shortcut { state } else { 0 }
    };
    let all = image + 4 + 4 * time // x, sinusoids, time embedding
        + state // conv_in
        + resnet(state, false) // down
        + 2 * (joined + resnet(joined, true)) // up
        + state + image; // conv_norm_out, conv_out
    let skips = 2 * state;
    let training = config
        .memory_estimate(3, 2, 2, Use::Training { averages: 0 })
        .unwrap();
    assert_eq!(
        training.activations,
        3 * 4 * (all + skips + 3 * joined) as u64
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
    let training = Use::Training { averages: 1 };
    assert_eq!(estimate(6, training), 6 * estimate(1, training));
    assert_eq!(estimate(6, Use::Sampling), 6 * estimate(1, Use::Sampling));
    assert!(estimate(1, training) > 5 * estimate(1, Use::Sampling));
}

#[test]
fn dropout_keeps_its_results_and_masks() {
    let settings = UNetSettings {
        dropout: 0.1,
        ..small().settings().clone()
    };
    let with = UNetConfig::new(settings).unwrap();
    let training = Use::Training { averages: 1 };
    let more = with
        .memory_estimate(1, 28, 28, training)
        .unwrap()
        .activations
        - small()
            .memory_estimate(1, 28, 28, training)
            .unwrap()
            .activations;
    assert!(
        more > 0 && more.is_multiple_of(5),
        "results of 4 bytes and masks of 1, an element"
    );
    let sampling = |config: &UNetConfig| config.memory_estimate(1, 28, 28, Use::Sampling).unwrap();
    assert_eq!(sampling(&with), sampling(&small()));
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
