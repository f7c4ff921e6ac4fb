//! lucidrains' network as a configuration: its JSON, its parameters, and what is refused. What it computes is compared with
//! PyTorch in ddpm-checkpoint, whose tests have its files.

use candle_core::{DType, Device, Tensor};
use ddpm_unet::{
    AttentionNorm, Classes, Error, Halving, LucidrainsConfig, LucidrainsSettings, LucidrainsTime,
    Network, NetworkConfig, SampleSize, UNetConfig, WeightStandardization,
};
use serde_json::Value;

/// Every key other than as `Unet(dim = 64)` has it.
fn uncommon() -> LucidrainsSettings {
    LucidrainsSettings {
        sample_size: Some(SampleSize::Rectangle(4, 8)),
        channels: 1,
        out_channels: 2,
        self_condition: true,
        init_dim: 6,
        level_dims: vec![4, 10],
        time: LucidrainsTime::Fourier { width: 8 },
        time_dim: 12,
        full_attn: vec![true, false],
        attn_heads: vec![1, 2, 3],
        attn_dim_head: vec![4, 3, 2],
        num_mem_kv: 0,
        resnet_block_groups: Some(2),
        weight_standardization: Some(WeightStandardization::Clamp),
        attn_norm: AttentionNorm::LayerBias,
        attn_cosine_scale: Some(10.0),
        linear_attn_mean: true,
        halving: Halving::Conv,
    }
}

fn zeros(config: &NetworkConfig) -> Vec<(String, Tensor)> {
    let named = config.parameters().into_iter();
    named
        .map(|(name, shape)| {
            (
                name,
                Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap(),
            )
        })
        .collect()
}

/// Counted in denoising-diffusion-pytorch: `Unet(dim = 64)` of each version.
#[test]
fn as_many_parameters_as_the_original() {
    let today = LucidrainsSettings::default();
    let groups = LucidrainsSettings {
        resnet_block_groups: Some(8),
        ..today.clone()
    };
    let linear = LucidrainsSettings {
        num_mem_kv: 0,
        full_attn: vec![false; 4],
        ..groups.clone()
    };
    let strided = LucidrainsSettings {
        attn_norm: AttentionNorm::Layer,
        halving: Halving::Conv,
        ..linear
    };
    let without_memory = LucidrainsSettings {
        num_mem_kv: 0,
        ..groups.clone()
    };
    for (settings, tensors, numbers) in [
        (today, 245, 35_711_491),          // 2.3.4
        (groups, 283, 35_719_555),         // 1.9.6
        (without_memory, 274, 35_710_339), // 1.8.9
        (strided, 276, 36_251_779),        // 0.28.0
    ] {
        let config = NetworkConfig::from(LucidrainsConfig::new(settings).unwrap());
        assert_eq!(config.parameters().len(), tensors);
        assert_eq!(config.parameter_count(), numbers);
    }
}

#[test]
fn the_json_of_a_configuration_is_read_back_by_its_class() {
    for settings in [uncommon(), LucidrainsSettings::default()] {
        let config = NetworkConfig::from(LucidrainsConfig::new(settings).unwrap());
        let text = config.to_json();
        assert!(
            text.contains("\"_class_name\": \"LucidrainsUnet\""),
            "{text}"
        );
        assert_eq!(NetworkConfig::from_json(&text).unwrap(), config);
    }
    let ours = NetworkConfig::from(UNetConfig::ddpm_cifar10());
    assert_eq!(NetworkConfig::from_json(&ours.to_json()).unwrap(), ours);
    let check = |text: &str, expected: &str| {
        let error = NetworkConfig::from_json(text).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(expected), "{text}");
    };
    check(
        r#"{"_class_name": "LucidrainsUnet", "dims": [4]}"#,
        "unknown key `dims` in the network's configuration; the keys are those of LucidrainsUnet: attn_cosine_scale, ",
    );
    check(
        r#"{"_class_name": "LucidrainsUnet", "halving": "filter"}"#,
        "`halving` is \"filter\" in the network's configuration; supported: \"pixels\", \"conv\"",
    );
    check(
        r#"{"_class_name": "LucidrainsUnet", "full_attn": [1]}"#,
        "`full_attn` is [1] in the network's configuration; supported: a list of true and false",
    );
    check(
        r#"{"_class_name": "LucidrainsUnet", "time_embedding": "fourier", "theta": 3}"#,
        "`theta` is 3 in the network's configuration; supported: null where the frequencies are tensors",
    );
    check(
        r#"{"_class_name": "UNet3DModel"}"#,
        "`_class_name` is \"UNet3DModel\" in the network's configuration; supported: \"UNet2DModel\"",
    );
    check(
        "[]",
        "the network's configuration is not a JSON object: found []",
    );
}

/// Whatever a key says, it is a network or an error.
#[test]
fn no_value_of_a_key_makes_it_panic() {
    let config = NetworkConfig::from(LucidrainsConfig::new(uncommon()).unwrap());
    let whole: serde_json::Map<String, Value> = serde_json::from_str(&config.to_json()).unwrap();
    let values = "null -1 0 1 7 65536 65537 18446744073709551615 1e300 true \"x\" [] [0] [1,1] [1,1,1] [65536,65536,65536] {}";
    let mut networks = 0;
    for key in whole.keys() {
        for value in values.split(' ') {
            let mut keys = whole.clone();
            keys.insert(key.clone(), serde_json::from_str(value).unwrap());
            let text = Value::Object(keys).to_string();
            if let Ok(config) = NetworkConfig::from_json(&text) {
                assert!(config.parameter_count() > 0);
                networks += 1;
            }
        }
    }
    assert!(networks > 20, "{networks}");
}

#[test]
fn settings_that_make_no_network_are_named() {
    let check = |change: &dyn Fn(&mut LucidrainsSettings), expected: &str| {
        let mut settings = uncommon();
        change(&mut settings);
        let text = LucidrainsConfig::new(settings).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    check(&|s| s.level_dims = vec![], "`level_dims` is []");
    check(&|s| s.level_dims = vec![4; 17], "1 to 16 levels");
    check(&|s| s.level_dims[1] = 0, "`level_dims` is 0");
    check(&|s| s.channels = 0, "`channels` is 0");
    check(&|s| s.time_dim = 1 << 20, "`time_dim` is 1048576");
    check(
        &|s| s.full_attn = vec![true],
        "\"a list of 1\" in the network's configuration; supported: a list of 2",
    );
    check(&|s| s.attn_heads[2] = 0, "`attn_heads` is 0");
    check(
        &|s| s.attn_dim_head = vec![1, 1],
        "a list of 3, for 2 levels",
    );
    check(&|s| s.num_mem_kv = 1 << 40, "`num_mem_kv` is");
    check(
        &|s| s.resnet_block_groups = Some(4),
        "`resnet_block_groups` is 4, which does not divide the 6 channels of level 0",
    );
    check(
        &|s| s.attn_cosine_scale = Some(f64::NAN),
        "`attn_cosine_scale` is null",
    );
    check(
        &|s| s.time = LucidrainsTime::Fourier { width: 7 },
        "`time_width` is 7 in the network's configuration; supported: even numbers from 2",
    );
    let time = |width, theta| LucidrainsTime::Sinusoidal { width, theta };
    check(&|s| s.time = time(2, 1e4), "even numbers from 4");
    check(&|s| s.time = time(8, 0.0), "`theta` is 0.0");
}

#[test]
fn inputs_that_it_cannot_take_are_named() {
    let config = NetworkConfig::from(LucidrainsConfig::new(uncommon()).unwrap());
    let network = Network::new(&config, &zeros(&config)).unwrap();
    let x = |shape: [usize; 4]| Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
    let y = network.forward(&x([2, 1, 4, 6]), &[3.0, 0.0]).unwrap();
    assert_eq!(y.dims(), [2, 2, 4, 6]);
    assert!(config.self_conditioned() && config.class_kind().is_none());
    assert!(config.unplanned().unwrap().is_some());

    let told = |error: Error| error.to_string();
    let error = network.forward(&x([1, 3, 4, 4]), &[0.0]).unwrap_err();
    assert_eq!(
        told(error),
        "x_t is F32 [1, 3, 4, 4]; expected F32 [batch, 1, height, width], at least one image"
    );
    let error = network.forward(&x([1, 1, 4, 4]), &[]).unwrap_err();
    assert_eq!(
        told(error),
        "the time is 0 times; expected one for each of 1 images"
    );
    let error = network.forward(&x([1, 1, 4, 5]), &[0.0]).unwrap_err();
    assert!(told(error).contains("both sides must be multiples of 2"));
    let last = x([1, 1, 4, 2]);
    let error = network.forward_after(&x([1, 1, 4, 4]), &[0.0], Some(&last));
    assert_eq!(
        told(error.unwrap_err()),
        "x_0_hat is F32 [1, 1, 4, 2]; expected F32 [1, 1, 4, 4]"
    );
    let error = network
        .with_classes(Classes::Indices(vec![0]))
        .err()
        .unwrap();
    assert!(told(error).contains("the network is not class-conditional"));

    let mut weights = zeros(&config);
    weights.pop();
    let error = Network::new(&config, &weights).err().unwrap();
    assert_eq!(
        told(error),
        "the tensors are not this network's; missing (1): `final_conv.bias`"
    );
}

#[test]
fn diffusers_network_is_not_told_its_last_guess() {
    let settings = ddpm_unet::UNetSettings {
        norm_num_groups: Some(2),
        ..ddpm_unet::UNetSettings::ho()
    };
    let config = UNetConfig::new(settings.with_levels(&[(4, false)])).unwrap();
    let config = NetworkConfig::from(config);
    let network = Network::new(&config, &zeros(&config)).unwrap();
    let x = Tensor::zeros((1, 3, 2, 2), DType::F32, &Device::Cpu).unwrap();
    assert!(network.forward(&x, &[0.0]).is_ok());
    let error = network.forward_after(&x, &[0.0], Some(&x)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "x_0_hat is [1, 3, 2, 2]; expected none: the network is not told it"
    );
}
