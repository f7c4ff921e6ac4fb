//! Reading and writing configurations, and what is refused.

use ddpm_unet::{
    DownBlock, DownsamplePadding, Error, SampleSize, TimeScaleShift, UNetConfig, UNetSettings,
    UpBlock,
};
use serde_json::Value;

use crate::formula::golden_text;

const GOLDEN: [&str; 19] = [
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
    "resnet_blocks",
    "skip_blocks",
    "attention_skip_blocks",
    "attention_skip_blocks_up",
    "halved_and_doubled_by_blocks",
    "skips_into_plain_blocks",
    "classes_as_times",
    "classes_as_rows_beside_fourier",
    "rescaled",
];

/// Python writes 1e-05 where serde_json writes 0.00001; nothing else differs.
#[test]
fn what_diffusers_writes_is_read_and_written_again_byte_for_byte() {
    for case in GOLDEN {
        let text = golden_text(&format!("{case}.config.json"));
        let ours = UNetConfig::from_json(&text).unwrap().to_json();
        let in_rust = text.replace("1e-05", "0.00001").replace("1e-06", "1e-6");
        // Of the names of one activation the first is written; our own key comes where it sorts.
        let in_rust = in_rust.replace("\"swish\"", "\"silu\"");
        assert_eq!(ours, in_rust, "{case}");
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&ours), value(&in_rust), "{case}");
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

const DOWN_BLOCKS: &str = r#""DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D""#;
const UP_BLOCKS: &str = r#""UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D""#;

/// What needs more than time and class, and values that nobody has.
#[test]
fn unsupported_values_are_named_with_what_is_supported() {
    let cases = [
        (
            r#"{"down_block_types": ["DownBlock2D", "KDownBlock2D"]}"#,
            "down_block_types[1]",
            r#""KDownBlock2D""#,
            DOWN_BLOCKS,
        ),
        (
            r#"{"up_block_types": ["UpDecoderBlock2D"]}"#,
            "up_block_types[0]",
            r#""UpDecoderBlock2D""#,
            UP_BLOCKS,
        ),
        (
            r#"{"down_block_types": 2}"#,
            "down_block_types",
            "2",
            &format!("a list of {DOWN_BLOCKS}"),
        ),
        (
            r#"{"mid_block_type": "UNetMidBlock2DCrossAttn"}"#,
            "mid_block_type",
            r#""UNetMidBlock2DCrossAttn""#,
            r#""UNetMidBlock2D" or null"#,
        ),
        (
            r#"{"time_embedding_type": "sinusoidal"}"#,
            "time_embedding_type",
            r#""sinusoidal""#,
            r#""positional", "fourier", "learned""#,
        ),
        (
            r#"{"time_embedding_type": "learned"}"#,
            "num_train_timesteps",
            "null",
            r#"a whole number where `time_embedding_type` is "learned""#,
        ),
        (
            r#"{"downsample_type": "fir"}"#,
            "downsample_type",
            r#""fir""#,
            r#""conv", "resnet""#,
        ),
        (
            r#"{"upsample_type": 2}"#,
            "upsample_type",
            "2",
            r#""conv", "resnet""#,
        ),
        (
            r#"{"act_fn": "tanh"}"#,
            "act_fn",
            r#""tanh""#,
            r#""silu", "swish", "mish", "gelu", "relu""#,
        ),
        (
            r#"{"class_embed_type": "projection"}"#,
            "class_embed_type",
            r#""projection""#,
            r#""timestep", "identity" or null"#,
        ),
        (
            r#"{"num_class_embeds": 0}"#,
            "num_class_embeds",
            "0",
            "whole numbers from 1 to 65536",
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
            "a whole number, or null where all blocks are Skip blocks",
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
        UNetConfig::new(settings.clone().with_levels(&[(32, false), (64, true)]))
            .unwrap_err()
            .to_string(),
        "`attn_norm_num_groups` is 5, which does not divide the 64 channels of level 1"
    );
    // Where nothing has these groups they may be any.
    for settings in [
        UNetSettings {
            add_attention: false,
            ..settings.clone()
        },
        UNetSettings {
            mid_block: false,
            ..settings
        },
    ] {
        assert!(UNetConfig::new(settings.with_levels(&[(32, false), (64, true)])).is_ok());
    }
}

#[track_caller]
fn blocks_refused(settings: UNetSettings, message: &str) {
    assert_eq!(UNetConfig::new(settings).unwrap_err().to_string(), message);
}

/// diffusers fails on each of these, most of them only when the network is called.
#[test]
fn blocks_that_do_not_fit_together_are_refused() {
    use ddpm_unet::{DownBlock::*, UpBlock::*};
    let settings = |down: &[DownBlock], up: &[UpBlock]| UNetSettings {
        block_out_channels: vec![32; down.len()],
        down_block_types: down.to_vec(),
        up_block_types: up.to_vec(),
        ..UNetSettings::ho()
    };
    let plain = [Up, Up, Up];
    blocks_refused(
        settings(&[Down, SkipDown, Down], &plain),
        r#"`down_block_types[0]` is "DownBlock2D" in the network's configuration; supported: Skip blocks above level 1, which is one and halves"#,
    );
    assert!(UNetConfig::new(settings(&[SkipDown, Down, AttnSkipDown], &plain)).is_ok());
    blocks_refused(
        settings(&[Down; 3], &[Up, SkipUp, Up]),
        r#"`up_block_types[2]` is "UpBlock2D" in the network's configuration; supported: Skip blocks after entry 1, which is one"#,
    );
    assert!(UNetConfig::new(settings(&[Down; 3], &[Up, AttnUp, SkipUp])).is_ok());
    let gray = UNetSettings {
        in_channels: 1,
        out_channels: 1,
        ..settings(&[SkipDown; 3], &plain)
    };
    blocks_refused(
        gray.clone(),
        "`in_channels` is 1 in the network's configuration; supported: 3, as there are Skip blocks",
    );
    blocks_refused(
        UNetSettings {
            down_block_types: vec![Down; 3],
            up_block_types: vec![SkipUp; 3],
            ..gray
        },
        "`out_channels` is 1 in the network's configuration; supported: 3, as there are Skip blocks",
    );
    blocks_refused(
        UNetSettings {
            block_out_channels: vec![32, 20, 32],
            norm_num_groups: Some(4),
            ..settings(&[SkipDown, AttnSkipDown, Down], &plain)
        },
        "`down_blocks.1.attentions.0.group_norm` would have 20 channels in 32 groups, which do not divide them \
         (the attention of Skip blocks has 32)",
    );
    blocks_refused(
        UNetSettings {
            block_out_channels: vec![32, 18, 32],
            norm_num_groups: Some(2),
            ..settings(&[SkipDown, SkipDown, Down], &plain)
        },
        "`down_blocks.1.resnets.0.norm2` would have 18 channels in 4 groups, which do not divide them \
         (a quarter of the channels, at most 32, for Skip blocks)",
    );
}

#[test]
fn without_a_number_groups_are_a_quarter_of_the_channels() {
    use ddpm_unet::{DownBlock, UpBlock};
    let settings = UNetSettings {
        norm_num_groups: None,
        block_out_channels: vec![32, 64],
        down_block_types: vec![DownBlock::SkipDown; 2],
        up_block_types: vec![UpBlock::SkipUp; 2],
        ..UNetSettings::ho()
    };
    let config = UNetConfig::new(settings).unwrap();
    assert!(config.to_json().contains("\"norm_num_groups\": null"));
    assert_eq!(UNetConfig::from_json(&config.to_json()).unwrap(), config);
}

#[test]
fn our_own_key_is_written_only_where_it_is_set_and_diffusers_is_told() {
    let plain = UNetConfig::ddpm_cifar10();
    assert!(!plain.to_json().contains("rescale") && plain.beyond_diffusers().is_empty());
    let rescaled = UNetSettings {
        rescale_residuals: true,
        ..plain.settings().clone()
    };
    let rescaled = UNetConfig::new(rescaled).unwrap();
    assert!(rescaled.to_json().contains("\"rescale_residuals\": true"));
    assert_eq!(
        UNetConfig::from_json(&rescaled.to_json()).unwrap(),
        rescaled
    );
    assert_eq!(rescaled.beyond_diffusers().len(), 1);

    let improved = UNetSettings {
        attention_heads: Some(4),
        attention_heads_up: Some(2),
        wide_shortcuts: true,
        plain_resampling: true,
        timestep_scale: 0.25,
        timestep_width: Some(64),
        ..plain.settings().clone()
    };
    let improved = UNetConfig::new(improved).unwrap();
    let json = improved.to_json();
    assert!(json.contains("\"attention_heads\": 4") && json.contains("\"timestep_scale\": 0.25"));
    assert_eq!(UNetConfig::from_json(&json).unwrap(), improved);
    assert!(json.contains("\"timestep_width\": 64"));
    assert_eq!(improved.beyond_diffusers().len(), 6);
}

#[test]
fn our_own_keys_are_checked() {
    let check = |attention_heads, attention_head_dim, timestep_scale, expected: &str| {
        let settings = UNetSettings {
            attention_heads,
            attention_head_dim,
            timestep_scale,
            ..UNetSettings::default()
        };
        let refused = UNetConfig::new(settings.with_levels(&[(32, false), (64, true)]));
        assert_eq!(refused.unwrap_err().to_string(), expected);
    };
    check(
        Some(3),
        None,
        1.0,
        "`attention_heads` is 3 in the network's configuration; supported: what divides the 64 channels of level 1",
    );
    check(
        Some(4),
        Some(8),
        1.0,
        "`attention_heads` is [4,8] in the network's configuration; supported: null where `attention_head_dim` is given",
    );
    check(
        Some(4),
        None,
        0.0,
        "`timestep_scale` is 0.0 in the network's configuration; supported: numbers above 0",
    );
}

#[test]
fn heads_on_the_way_up_are_checked() {
    let check = |attention_heads, attention_heads_up, expected: &str| {
        let settings = UNetSettings {
            attention_heads,
            attention_heads_up: Some(attention_heads_up),
            attention_head_dim: None,
            ..UNetSettings::default()
        };
        let refused = UNetConfig::new(settings.with_levels(&[(32, true), (96, true)]));
        assert_eq!(refused.unwrap_err().to_string(), expected);
    };
    check(
        None,
        4,
        "`attention_heads_up` is 4 in the network's configuration; supported: null where `attention_heads` is null",
    );
    check(
        Some(2),
        3,
        "`attention_heads_up` is 3 in the network's configuration; supported: what divides the 32 channels of level 0",
    );
}

/// A network of 4 heads a level is that of heads of 16 channels where a level has 64; told a quarter of t, it answers as
/// at a quarter of t.
#[test]
fn our_own_keys_are_what_they_say() {
    use candle_core::{DType, Device, Tensor};
    use ddpm_unet::{Initialisation, UNet, initialise};
    let settings = |attention_heads, attention_head_dim, timestep_scale| {
        let settings = UNetSettings {
            attention_heads,
            attention_head_dim,
            timestep_scale,
            norm_num_groups: Some(4),
            ..UNetSettings::default()
        };
        UNetConfig::new(settings.with_levels(&[(8, false), (16, true)])).unwrap()
    };
    let (own, known) = (settings(Some(4), None, 0.25), settings(None, Some(4), 1.0));
    let weights = initialise(&own, Initialisation::PyTorch, 3, &Device::Cpu).unwrap();
    let x = Tensor::ones((1, 3, 4, 6), DType::F32, &Device::Cpu).unwrap();
    let answer = |config: &UNetConfig, time: f64| {
        let network = UNet::new(config, &weights).unwrap();
        let y = network.forward(&x, &[time]).unwrap();
        y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(answer(&own, 999.0), answer(&known, 249.75));
    assert_ne!(answer(&own, 999.0), answer(&known, 999.0));
}

/// Names of old files, capital letters and null, which diffusers reads as well.
#[test]
fn old_spellings_are_read() {
    let config = UNetConfig::from_json(
        r#"{"block_out_channels": [32], "down_block_types": ["UNetResAttnDownBlock2D"], "up_block_types": ["UNetResUpBlock2D"],
            "act_fn": "SiLU", "downsample_type": null}"#,
    )
    .unwrap();
    assert_eq!(config.settings().down_block_types, [DownBlock::AttnDown]);
    assert_eq!(config.settings().up_block_types, [UpBlock::Up]);
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
