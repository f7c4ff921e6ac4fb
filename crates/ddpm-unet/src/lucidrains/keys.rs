//! The JSON of a configuration of ours, of class [`CLASS_NAME`]: read key by key and written whole.

use serde_json::{Map, Value, json};

use super::config::{
    AttentionNorm, Halving, LucidrainsConfig, LucidrainsSettings, LucidrainsTime,
    WeightStandardization,
};
use crate::keys::{CLASS_KEY, Keys, name_of};
use crate::{Result, SampleSize};

/// What `_class_name` says; no class of diffusers is called so.
pub(crate) const CLASS_NAME: &str = "LucidrainsUnet";

impl LucidrainsConfig {
    /// Reads the keys of a `config.json` one by one.
    pub(crate) fn from_keys(keys: Map<String, Value>) -> Result<Self> {
        let mut keys = Keys::of(CLASS_NAME, keys)?;
        let defaults = LucidrainsSettings::default();
        let settings = LucidrainsSettings {
            sample_size: keys.sample_size()?,
            channels: keys.whole("channels", defaults.channels)?,
            out_channels: keys.whole("out_channels", defaults.out_channels)?,
            self_condition: keys.truth("self_condition", defaults.self_condition)?,
            init_dim: keys.whole("init_dim", defaults.init_dim)?,
            level_dims: keys.wholes("level_dims", defaults.level_dims)?,
            time: time(&mut keys)?,
            time_dim: keys.whole("time_dim", defaults.time_dim)?,
            full_attn: keys.read(
                "full_attn",
                defaults.full_attn,
                "a list of true and false",
                |value| value.as_array()?.iter().map(Value::as_bool).collect(),
            )?,
            attn_heads: keys.wholes("attn_heads", defaults.attn_heads)?,
            attn_dim_head: keys.wholes("attn_dim_head", defaults.attn_dim_head)?,
            num_mem_kv: keys.whole("num_mem_kv", defaults.num_mem_kv)?,
            resnet_block_groups: keys
                .whole_or_null("resnet_block_groups", defaults.resnet_block_groups)?,
            weight_standardization: keys.name(
                "weight_standardization",
                defaults.weight_standardization,
                &STANDARDIZATIONS,
            )?,
            attn_norm: keys.name("attn_norm", defaults.attn_norm, &ATTENTION_NORMS)?,
            attn_cosine_scale: keys.read(
                "attn_cosine_scale",
                defaults.attn_cosine_scale,
                "a number or null",
                |value| match value {
                    Value::Null => Some(None),
                    value => value.as_f64().map(Some),
                },
            )?,
            linear_attn_mean: keys.truth("linear_attn_mean", defaults.linear_attn_mean)?,
            halving: keys.name("halving", defaults.halving, &HALVINGS)?,
        };
        let known = Self::new(LucidrainsSettings::default()).map(|config| config.to_keys());
        let known = known.into_iter().flatten().map(|(key, _)| key).collect();
        keys.finish(CLASS_NAME, known)?;
        Self::new(settings)
    }

    /// Every key.
    pub(crate) fn to_keys(&self) -> Map<String, Value> {
        let settings = self.settings();
        let (time, width, theta) = match settings.time {
            LucidrainsTime::Sinusoidal { width, theta } => (SINUSOIDAL, width, json!(theta)),
            LucidrainsTime::Fourier { width } => (FOURIER, width, Value::Null),
        };
        let size = settings.sample_size;
        let pairs = [
            (CLASS_KEY, json!(CLASS_NAME)),
            (
                "sample_size",
                size.map_or(Value::Null, SampleSize::to_value),
            ),
            ("channels", json!(settings.channels)),
            ("out_channels", json!(settings.out_channels)),
            ("self_condition", json!(settings.self_condition)),
            ("init_dim", json!(settings.init_dim)),
            ("level_dims", json!(settings.level_dims)),
            ("time_embedding", json!(time)),
            ("time_width", json!(width)),
            ("theta", theta),
            ("time_dim", json!(settings.time_dim)),
            ("full_attn", json!(settings.full_attn)),
            ("attn_heads", json!(settings.attn_heads)),
            ("attn_dim_head", json!(settings.attn_dim_head)),
            ("num_mem_kv", json!(settings.num_mem_kv)),
            ("resnet_block_groups", json!(settings.resnet_block_groups)),
            (
                "weight_standardization",
                json!(name_of(&settings.weight_standardization, &STANDARDIZATIONS)),
            ),
            (
                "attn_norm",
                json!(name_of(&settings.attn_norm, &ATTENTION_NORMS)),
            ),
            ("attn_cosine_scale", json!(settings.attn_cosine_scale)),
            ("linear_attn_mean", json!(settings.linear_attn_mean)),
            ("halving", json!(name_of(&settings.halving, &HALVINGS))),
        ];
        let pairs = pairs.into_iter();
        pairs.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

const SINUSOIDAL: &str = "sinusoidal";
const FOURIER: &str = "fourier";
const STANDARDIZATIONS: [(&str, Option<WeightStandardization>); 3] = [
    ("none", None),
    ("plus", Some(WeightStandardization::Plus)),
    ("clamp", Some(WeightStandardization::Clamp)),
];
const ATTENTION_NORMS: [(&str, AttentionNorm); 3] = [
    ("rms", AttentionNorm::Rms),
    ("layer", AttentionNorm::Layer),
    ("layer_bias", AttentionNorm::LayerBias),
];
const HALVINGS: [(&str, Halving); 2] = [("pixels", Halving::Pixels), ("conv", Halving::Conv)];

fn time(keys: &mut Keys) -> Result<LucidrainsTime> {
    let fourier = keys.name(
        "time_embedding",
        false,
        &[(SINUSOIDAL, false), (FOURIER, true)],
    )?;
    let width = keys.whole("time_width", 64)?;
    if fourier {
        let none = |value: &Value| value.is_null().then_some(());
        keys.read("theta", (), "null where the frequencies are tensors", none)?;
        return Ok(LucidrainsTime::Fourier { width });
    }
    let theta = keys.number("theta", 10_000.0)?;
    Ok(LucidrainsTime::Sinusoidal { width, theta })
}
