//! Which networks go by plan, what is said of the others, and that classes go by plan as without one.

use candle_core::{Device, Tensor, Var};
use ddpm_unet::{
    ClassEmbedType, Classes, Initialisation, NamedTensors, Precision, UNet, UNetConfig,
    UNetSettings, Use, initialise,
};

use crate::formula::{formula, golden_config, max_difference};

const TRAINING: Use = Use::Training {
    averages: 1,
    recompute: false,
    in_one_pass: false,
};

#[test]
fn what_a_plan_cannot_hold_is_named() {
    let check = |config: &UNetConfig, sampling: Option<&str>, training: Option<&str>| {
        let of = |used| config.unplanned(used).unwrap();
        assert_eq!(of(Use::Sampling).as_deref(), sampling);
        assert_eq!(of(TRAINING).as_deref(), training);
    };
    let golden = |case: &str, sampling: Option<&str>, training: Option<&str>| {
        check(&golden_config(case), sampling, training);
    };
    golden("ho", None, None);
    golden("openai", None, None);
    golden("rescaled", None, None);
    let both = |case: &str, why: &str| {
        let config = golden_config(case);
        let said = [Use::Sampling, TRAINING].map(|used| config.unplanned(used).unwrap().unwrap());
        assert!(
            said.iter().all(|said| said.contains(why)),
            "{case}: {said:?}"
        );
    };
    both("resnet_blocks", "ResnetDownsampleBlock2D");
    both("skip_blocks", "SkipDownBlock2D, SkipUpBlock2D");
    both(
        "attention_skip_blocks",
        "AttnSkipDownBlock2D, SkipUpBlock2D, `act_fn` relu",
    );
    both(
        "halved_and_doubled_by_blocks",
        "`downsample_type` \"resnet\"",
    );
    let with = |change: fn(&mut UNetSettings)| {
        let mut settings = small();
        change(&mut settings);
        UNetConfig::new(settings).unwrap()
    };
    let classes = with(|settings| settings.num_class_embeds = Some(3));
    check(&classes, None, Some("classes"));
    let learned = with(|settings| {
        settings.time_embedding_type = ddpm_unet::TimeEmbeddingType::Learned;
        settings.num_train_timesteps = Some(9);
    });
    check(&learned, None, Some("`time_embedding_type` learned"));
    let plain = with(|settings| settings.plain_resampling = true);
    let said = Some("`plain_resampling`");
    check(&plain, said, said);
    let wide = with(|settings| settings.wide_shortcuts = true);
    check(&wide, None, None);
    let mish = with(|settings| settings.act_fn = ddpm_unet::Nonlinearity::Mish);
    check(&mish, Some("`act_fn` mish"), Some("`act_fn` mish"));
    // Doubling by blocks alone is something a plan holds.
    let doubled = with(|settings| settings.upsample_type = ddpm_unet::Resampling::Resnet);
    check(&doubled, None, None);
}

/// Variables are walked over on tensors, their detached copies by plan.
#[test]
fn classes_go_by_plan_as_without_one() {
    let x = formula("input.x", &[3, 2, 4, 8]);
    let time = [7.0, 0.0, 999.0];
    let vectors = formula("input.classes", &[3, 16]);
    for (kind, count, classes) in [
        (None, Some(5), Classes::Indices(vec![4, 0, 2])),
        (
            Some(ClassEmbedType::Timestep),
            None,
            Classes::Numbers(vec![3.0, 0.5, 80.0]),
        ),
        (
            Some(ClassEmbedType::Identity),
            None,
            Classes::Vectors(vectors),
        ),
    ] {
        let config = UNetConfig::new(UNetSettings {
            class_embed_type: kind,
            num_class_embeds: count,
            ..small()
        });
        let config = config.unwrap();
        assert_eq!(config.unplanned(Use::Sampling).unwrap(), None);
        let weights = initialise(&config, Initialisation::PyTorch, 3, &Device::Cpu).unwrap();
        let variables: Vec<(String, Tensor)> = weights
            .named_tensors()
            .iter()
            .map(|(name, tensor)| {
                let variable = Var::from_tensor(tensor).unwrap();
                ((*name).to_owned(), variable.into_inner())
            })
            .collect();
        let network = UNet::new(&config, &variables).unwrap();
        let network = network.with_classes(classes).unwrap();
        let walked = network.forward(&x, &time).unwrap();
        assert!(walked.track_op());
        let planned = network.frozen().forward(&x, &time).unwrap();
        let difference = max_difference(&planned, &walked);
        assert!(difference <= 1e-5, "{kind:?}: {difference:e}");
        // In bf16 it is the plan that computes, and it is rougher.
        let rough = network.in_precision(Precision::Bf16).frozen();
        let rough = max_difference(&rough.forward(&x, &time).unwrap(), &walked);
        assert!(rough > difference && rough < 0.1, "{kind:?}: {rough:e}");
    }
}

fn small() -> UNetSettings {
    let settings = UNetSettings {
        in_channels: 2,
        out_channels: 2,
        norm_num_groups: Some(2),
        layers_per_block: 1,
        ..UNetSettings::ho()
    };
    settings.with_levels(&[(4, false), (8, true)])
}
