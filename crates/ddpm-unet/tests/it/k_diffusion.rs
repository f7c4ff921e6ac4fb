//! k-diffusion's `image_v1`: against PyTorch with several groups, heads and pixels a patch, and what makes it no network.

use ddpm_unet::{KDiffusionConfig, KDiffusionSettings, KDiffusionUNet, NetworkConfig, SampleSize};

use crate::formula::{formula, golden_tensor, max_difference, numbers};

/// That of tests/golden/k_diffusion.py.
fn wide() -> KDiffusionSettings {
    KDiffusionSettings {
        sample_size: Some(SampleSize::Rectangle(18, 12)),
        input_channels: 2,
        patch_size: 3,
        mapping_out: 16,
        outer_channels: 32,
        channels: vec![32, 128],
        depths: vec![1, 1],
        self_attn_depths: vec![false, true],
        ..KDiffusionSettings::default()
    }
}

#[test]
fn four_groups_and_two_heads_answer_as_pytorch() {
    let config = KDiffusionConfig::new(wide()).unwrap();
    let weights: Vec<_> = config
        .parameters()
        .into_iter()
        .map(|(name, shape)| {
            let tensor = formula(&name, &shape);
            (name, tensor)
        })
        .collect();
    let network = KDiffusionUNet::new(&config, &weights).unwrap();
    let known = |name| golden_tensor("k_diffusion.safetensors", name);
    let noise = numbers(&known("noise")).into_iter().map(f64::from);
    let y = network
        .forward(&known("x"), &noise.collect::<Vec<_>>())
        .unwrap();
    let size = numbers(&known("y"))
        .into_iter()
        .fold(0f32, |most, y| most.max(y.abs()));
    let off = max_difference(&y, &known("y"));
    assert!(off < 2e-5 * size && size > 0.1, "{off} of {size}");

    let lacking = KDiffusionUNet::new(&config, &weights[1..]);
    let text = lacking.err().unwrap().to_string();
    assert!(text.contains("timestep_embed.weight"), "{text}");
    let refused = network.forward(&known("x"), &[0.0]).unwrap_err();
    assert!(refused.to_string().contains("one for each of 2 images"));
}

#[test]
fn its_configuration_is_json_of_a_class_of_ours() {
    let config = NetworkConfig::from(KDiffusionConfig::new(wide()).unwrap());
    let json = config.to_json();
    assert!(json.contains("\"_class_name\": \"KDiffusionImageV1\""));
    assert_eq!(NetworkConfig::from_json(&json).unwrap(), config);
    assert_eq!(
        config.to_string(),
        "KDiffusionImageV1, levels 32, 128 with attention; [1, 1] layers; patches of 3x3 pixels"
    );
    assert_eq!(config.beyond_diffusers().len(), 1);
    assert!(config.unplanned().unwrap().is_some() && config.as_unet_2d().is_none());
    let other = json.replace("\"patch_size\"", "\"patches\"");
    let text = NetworkConfig::from_json(&other).unwrap_err().to_string();
    assert!(text.starts_with("unknown key `patches`"), "{text}");
}

#[test]
fn sides_are_whole_patches_of_the_smallest_level_which_has_two_at_least() {
    let config = KDiffusionConfig::new(wide()).unwrap();
    config.check_image(18, 12).unwrap();
    for (height, width, nearest) in [(6, 12, "12x12"), (20, 12, "18x12 and 24x12")] {
        let text = config.check_image(height, width).unwrap_err().to_string();
        assert!(text.contains(nearest), "{text}");
    }
    let one = KDiffusionSettings {
        channels: vec![32],
        depths: vec![2],
        self_attn_depths: vec![true],
        ..wide()
    };
    // Nothing is halved, so that nothing is mirrored.
    KDiffusionConfig::new(one)
        .unwrap()
        .check_image(3, 3)
        .unwrap();
}

#[test]
fn settings_that_make_no_network_are_named() {
    let check = |change: fn(&mut KDiffusionSettings), expected: &str| {
        let mut settings = wide();
        change(&mut settings);
        let text = KDiffusionConfig::new(settings).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    check(|s| s.depths = vec![1], "`depths`");
    check(|s| s.self_attn_depths = vec![], "`self_attn_depths`");
    check(|s| s.channels = vec![], "`channels`");
    check(|s| s.mapping_out = 7, "`mapping_out` is 7");
    check(|s| s.patch_size = 65, "`patch_size` is 65");
    check(|s| s.depths = vec![1, 0], "`depths` is 0");
    // Two groups of 32 channels, rounded down, and 67 is odd.
    check(|s| s.channels = vec![32, 67], "`channels` is 67");
    check(|s| s.outer_channels = 0, "`outer_channels` is 0");
}
