//! The JSON of a configuration of ours, of class [`CLASS_NAME`]: read key by key and written whole.

use serde_json::{Map, Value, json};

use super::config::{KDiffusionConfig, KDiffusionSettings};
use crate::keys::{CLASS_KEY, Keys};
use crate::{Result, SampleSize};

/// What `_class_name` says; no class of diffusers is called so.
pub(crate) const CLASS_NAME: &str = "KDiffusionImageV1";

impl KDiffusionConfig {
    /// Reads the keys of a `config.json` one by one.
    pub(crate) fn from_keys(keys: Map<String, Value>) -> Result<Self> {
        let mut keys = Keys::of(CLASS_NAME, keys)?;
        let defaults = KDiffusionSettings::default();
        let settings = KDiffusionSettings {
            sample_size: keys.sample_size()?,
            input_channels: keys.whole("input_channels", defaults.input_channels)?,
            patch_size: keys.whole("patch_size", defaults.patch_size)?,
            has_variance: keys.truth("has_variance", defaults.has_variance)?,
            mapping_out: keys.whole("mapping_out", defaults.mapping_out)?,
            outer_channels: keys.whole("outer_channels", defaults.outer_channels)?,
            channels: keys.wholes("channels", defaults.channels)?,
            depths: keys.wholes("depths", defaults.depths)?,
            self_attn_depths: keys.read(
                "self_attn_depths",
                defaults.self_attn_depths,
                "a list of true and false",
                |value| value.as_array()?.iter().map(Value::as_bool).collect(),
            )?,
        };
        let known = Self::new(KDiffusionSettings::default()).map(|config| config.to_keys());
        let known = known.into_iter().flatten().map(|(key, _)| key).collect();
        keys.finish(CLASS_NAME, known)?;
        Self::new(settings)
    }

    /// Every key.
    pub(crate) fn to_keys(&self) -> Map<String, Value> {
        let settings = self.settings();
        let size = settings.sample_size;
        let pairs = [
            (CLASS_KEY, json!(CLASS_NAME)),
            (
                "sample_size",
                size.map_or(Value::Null, SampleSize::to_value),
            ),
            ("input_channels", json!(settings.input_channels)),
            ("patch_size", json!(settings.patch_size)),
            ("has_variance", json!(settings.has_variance)),
            ("mapping_out", json!(settings.mapping_out)),
            ("outer_channels", json!(settings.outer_channels)),
            ("channels", json!(settings.channels)),
            ("depths", json!(settings.depths)),
            ("self_attn_depths", json!(settings.self_attn_depths)),
        ];
        let pairs = pairs.into_iter();
        pairs.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}
