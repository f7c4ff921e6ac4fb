//! Reading and writing configurations, and what is refused.

use ddpm_unet::{DownsamplePadding, Error, SampleSize, TimeScaleShift, UNetConfig, UNetSettings};
use serde_json::Value;

use crate::formula::golden_text;

const GOLDEN: [&str; 10] = [
    "ho",
    "openai",
    "heads_that_do_not_fill_the_width",
    "attention_groups",
    "attention_groups_of_the_middle",
    "one_level",
    "no_middle",
    "divided_middle",
    "uneven",
    "four_levels",
];

/// Python writes 1e-05 where serde_json writes 0.00001; nothing else differs.
#[test]
fn what_diffusers_writes_is_read_and_written_again_byte_for_byte() {
    for case in GOLDEN {
        let text = golden_text(&format!("{case}.config.json"));
        let ours = UNetConfig::from_json(&text).unwrap().to_json();
        let in_rust = text.replace("1e-05", "0.00001").replace("1e-06", "1e-6");
        assert_eq!(ours, in_rust, "{case}");
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&ours), value(&text), "{case}");
    }
}

/// The keys of google/ddpm-cifar10-32, written by diffusers 0.0.4 before most keys existed.
#[test]
fn old_files_are_read() {
    let text = r#"{
        "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": null,
        "block_out_channels": [128, 256, 256, 256], "center_input_sample": false,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}"#;
    let config = UNetConfig::from_json(text).unwrap();
    let ours = UNetConfig::ddpm_cifar10();
    assert_eq!(
        config.settings(),
        &UNetSettings {
            dropout: 0.0,
            ..ours.settings().clone()
        }
    );
    assert_eq!(config.parameter_count(), 35_746_307);
}

#[test]
fn missing_keys_have_diffusers_defaults() {
    let config = UNetConfig::from_json("{}").unwrap();
    assert_eq!(config, UNetConfig::new(UNetSettings::default()).unwrap());
    let settings = config.settings();
    assert_eq!(settings.block_out_channels, [224, 448, 672, 896]);
    assert_eq!(
        (settings.attention_head_dim, settings.downsample_padding),
        (Some(8), DownsamplePadding::Same)
    );
    assert_eq!(
        (
            settings.flip_sin_to_cos,
            settings.freq_shift,
            settings.norm_eps
        ),
        (true, 0, 1e-5)
    );
}

/// `UNetConfig::new` checks; the networks that need no checking pass.
#[test]
fn the_named_networks_are_valid() {
    for config in [UNetConfig::ddpm_cifar10(), UNetConfig::ddpm_256()] {
        assert_eq!(UNetConfig::new(config.settings().clone()).unwrap(), config);
        assert_eq!(UNetConfig::from_json(&config.to_json()).unwrap(), config);
    }
}

#[test]
fn serde_reads_and_writes_the_same_keys() {
    let config = UNetConfig::ddpm_cifar10();
    let value: Value = serde_json::to_value(&config).unwrap();
    assert_eq!(value["downsample_padding"], 0);
    assert_eq!(serde_json::from_value::<UNetConfig>(value).unwrap(), config);
    let config: UNetConfig =
        toml::from_str("block_out_channels = [32, 64, 64, 64]\nsample_size = [8, 16]").unwrap();
    assert_eq!(
        config.settings().sample_size,
        Some(SampleSize::Rectangle(8, 16))
    );
    let error = toml::from_str::<UNetConfig>("layers = 2").unwrap_err();
    assert!(
        error.message().starts_with("unknown key `layers`"),
        "{error}"
    );
}

#[track_caller]
fn refused(json: &str, message: &str) {
    assert_eq!(
        UNetConfig::from_json(json).unwrap_err().to_string(),
        message
    );
}

#[test]
fn unknown_keys_are_named() {
    let error = UNetConfig::from_json(r#"{"norm_groups": 32}"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("unknown key `norm_groups` in the network's configuration; the keys are"),
        "{error}"
    );
    assert!(
        error.contains("norm_eps, norm_num_groups, num_class_embeds"),
        "{error}"
    );
}

#[test]
fn what_is_no_configuration_is_refused() {
    refused(
        "[1]",
        "the network's configuration is not a JSON object: found [1]",
    );
    let error = UNetConfig::from_json("{").unwrap_err().to_string();
    assert!(
        error.starts_with("the network's configuration is not a JSON object: EOF"),
        "{error}"
    );
    refused(
        r#"{"_class_name": "UNet2DConditionModel"}"#,
        r#"`_class_name` is "UNet2DConditionModel" in the network's configuration; supported: "UNet2DModel""#,
    );
}

/// Everything that diffusers has and this crate lacks, and values that nobody has.
#[test]
fn unsupported_values_are_named_with_what_is_supported() {
    let cases = [
        (
            r#"{"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}"#,
            "down_block_types[1]",
            r#""SkipDownBlock2D""#,
            r#""DownBlock2D", "AttnDownBlock2D""#,
        ),
        (
            r#"{"up_block_types": ["ResnetUpsampleBlock2D"]}"#,
            "up_block_types[0]",
            r#""ResnetUpsampleBlock2D""#,
            r#""UpBlock2D", "AttnUpBlock2D""#,
        ),
        (
            r#"{"down_block_types": 2}"#,
            "down_block_types",
            "2",
            r#"a list of "DownBlock2D", "AttnDownBlock2D""#,
        ),
        (
            r#"{"mid_block_type": "UNetMidBlock2DCrossAttn"}"#,
            "mid_block_type",
            r#""UNetMidBlock2DCrossAttn""#,
            r#""UNetMidBlock2D" or null"#,
        ),
        (
            r#"{"time_embedding_type": "fourier"}"#,
            "time_embedding_type",
            r#""fourier""#,
            r#""positional""#,
        ),
        (
            r#"{"downsample_type": "resnet"}"#,
            "downsample_type",
            r#""resnet""#,
            r#""conv""#,
        ),
        (
            r#"{"upsample_type": "resnet"}"#,
            "upsample_type",
            r#""resnet""#,
            r#""conv""#,
        ),
        (
            r#"{"act_fn": "gelu"}"#,
            "act_fn",
            r#""gelu""#,
            r#""silu", "swish""#,
        ),
        (
            r#"{"class_embed_type": "timestep"}"#,
            "class_embed_type",
            r#""timestep""#,
            "null",
        ),
        (
            r#"{"num_class_embeds": 10}"#,
            "num_class_embeds",
            "10",
            "null",
        ),
        (
            r#"{"resnet_time_scale_shift": "ada_group"}"#,
            "resnet_time_scale_shift",
            r#""ada_group""#,
            r#""default", "scale_shift""#,
        ),
        (
            r#"{"downsample_padding": 2}"#,
            "downsample_padding",
            "2",
            "0 or 1",
        ),
        (
            r#"{"sample_size": [3, 4, 5]}"#,
            "sample_size",
            "[3,4,5]",
            "a whole number, [height, width] or null",
        ),
        (
            r#"{"sample_size": 0}"#,
            "sample_size",
            "0",
            "whole numbers from 1 to 65536",
        ),
        (
            r#"{"in_channels": -1}"#,
            "in_channels",
            "-1",
            "a whole number",
        ),
        (
            r#"{"in_channels": 0}"#,
            "in_channels",
            "0",
            "whole numbers from 1 to 65536",
        ),
        (
            r#"{"out_channels": 65537}"#,
            "out_channels",
            "65537",
            "whole numbers from 1 to 65536",
        ),
        (
            r#"{"layers_per_block": 0}"#,
            "layers_per_block",
            "0",
            "whole numbers from 1 to 65536",
        ),
        (
            r#"{"norm_num_groups": null}"#,
            "norm_num_groups",
            "null",
            "a whole number",
        ),
        (
            r#"{"norm_num_groups": 0}"#,
            "norm_num_groups",
            "0",
            "whole numbers from 1 to 65536",
        ),
        (
            r#"{"attention_head_dim": "8"}"#,
            "attention_head_dim",
            r#""8""#,
            "a whole number or null",
        ),
        (
            r#"{"block_out_channels": [32, 1.5]}"#,
            "block_out_channels",
            "[32,1.5]",
            "a list of whole numbers",
        ),
        (
            r#"{"center_input_sample": 1}"#,
            "center_input_sample",
            "1",
            "true or false",
        ),
        (
            r#"{"dropout": 1.0}"#,
            "dropout",
            "1.0",
            "at least 0 and below 1",
        ),
        (r#"{"dropout": "much"}"#, "dropout", r#""much""#, "a number"),
        (r#"{"norm_eps": 0}"#, "norm_eps", "0.0", "numbers above 0"),
        (
            r#"{"mid_block_scale_factor": 0}"#,
            "mid_block_scale_factor",
            "0.0",
            "numbers except 0",
        ),
        (
            r#"{"freq_shift": 112}"#,
            "freq_shift",
            "112",
            "whole numbers below 112, half the first level's channels",
        ),
    ];
    for (json, key, value, supported) in cases {
        refused(
            json,
            &format!("`{key}` is {value} in the network's configuration; supported: {supported}"),
        );
    }
}

#[test]
fn lists_of_different_lengths_are_named() {
    refused(
        r#"{"block_out_channels": [32, 64]}"#,
        "`block_out_channels` has 2 levels, `down_block_types` 4 and `up_block_types` 4; \
         the three need the same number, at least 1",
    );
    let deep = UNetSettings::default().with_levels(&[(32, false); 17]);
    assert_eq!(
        UNetConfig::new(deep).unwrap_err().to_string(),
        "`block_out_channels` is 17 in the network's configuration; supported: at most 16 levels"
    );
    assert!(matches!(
        UNetConfig::new(UNetSettings::default().with_levels(&[])),
        Err(Error::Levels { .. })
    ));
}

#[test]
fn groups_must_divide_channels() {
    let settings = UNetSettings::ho().with_levels(&[(32, false), (48, true)]);
    assert_eq!(
        UNetConfig::new(settings).unwrap_err().to_string(),
        "`norm_num_groups` is 32, which does not divide the 48 channels of level 1"
    );
    let settings = UNetSettings {
        attn_norm_num_groups: Some(5),
        ..UNetSettings::ho()
    };
    assert_eq!(
        UNetConfig::new(settings.with_levels(&[(32, false), (64, true)]))
            .unwrap_err()
            .to_string(),
        "`attn_norm_num_groups` is 5, which does not divide the 64 channels of level 1"
    );
}

#[test]
fn heads_must_fit_where_there_is_attention() {
    let settings = UNetSettings {
        attention_head_dim: Some(64),
        ..UNetSettings::default()
    };
    assert_eq!(
        UNetConfig::new(settings.clone().with_levels(&[(32, true), (64, false)]))
            .unwrap_err()
            .to_string(),
        "`attention_head_dim` is 64, more than the 32 channels of level 0; at most 32, or null for one head"
    );
    assert!(UNetConfig::new(settings.clone().with_levels(&[(32, false), (64, true)])).is_ok());
    let middle = settings.with_levels(&[(32, false)]);
    assert!(matches!(
        UNetConfig::new(middle.clone()),
        Err(Error::HeadDim {
            level: 0,
            channels: 32,
            head_dim: 64
        })
    ));
    assert!(
        UNetConfig::new(UNetSettings {
            add_attention: false,
            ..middle.clone()
        })
        .is_ok()
    );
    assert!(
        UNetConfig::new(UNetSettings {
            mid_block: false,
            ..middle
        })
        .is_ok()
    );
}

#[test]
fn sizes_that_do_not_suit_the_depth_are_told_the_nearest_that_do() {
    let config = UNetConfig::ddpm_cifar10();
    assert_eq!(config.size_factor(), 8);
    assert!(config.check_image(32, 48).is_ok());
    let message = |height, width| config.check_image(height, width).unwrap_err().to_string();
    assert_eq!(
        message(28, 32),
        "images of 28x32 (height x width) do not suit a network of 4 levels: \
         both sides must be multiples of 8; the nearest sizes that work are 24x32 and 32x32"
    );
    assert!(message(45, 3).ends_with("the nearest sizes that work are 40x8 and 48x8"));
    assert!(message(0, 8).ends_with("the nearest sizes that work are 8x8"));
}

#[test]
fn swish_is_silu_and_scale_shift_is_read() {
    let config =
        UNetConfig::from_json(r#"{"act_fn": "swish", "resnet_time_scale_shift": "scale_shift"}"#)
            .unwrap();
    assert_eq!(
        config.settings().resnet_time_scale_shift,
        TimeScaleShift::ScaleShift
    );
    assert!(config.to_json().contains(r#""act_fn": "silu""#));
}
