//! The JSON of a configuration: diffusers' keys, read one by one and written all.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::{
    ClassEmbedType, DIFFUSERS_VERSION, DownBlock, DownsamplePadding, Error, Nonlinearity,
    Resampling, Result, SampleSize, TimeEmbeddingType, TimeScaleShift, UNetConfig, UNetSettings,
    UpBlock,
};

impl UNetConfig {
    /// Reads the keys of a `config.json` one by one.
    pub(crate) fn from_keys(keys: Map<String, Value>) -> Result<Self> {
        let mut keys = Keys::of(CLASS_NAME, keys)?;
        let defaults = UNetSettings::default();
        let settings = UNetSettings {
            sample_size: keys.sample_size()?,
            in_channels: keys.whole("in_channels", defaults.in_channels)?,
            out_channels: keys.whole("out_channels", defaults.out_channels)?,
            center_input_sample: keys.truth("center_input_sample", defaults.center_input_sample)?,
            time_embedding_type: keys.name(
                "time_embedding_type",
                defaults.time_embedding_type,
                &TIME_EMBEDDINGS,
            )?,
            time_embedding_dim: keys
                .whole_or_null("time_embedding_dim", defaults.time_embedding_dim)?,
            freq_shift: keys.whole("freq_shift", defaults.freq_shift)?,
            flip_sin_to_cos: keys.truth("flip_sin_to_cos", defaults.flip_sin_to_cos)?,
            down_block_types: keys.names(
                "down_block_types",
                defaults.down_block_types,
                &DOWN_BLOCKS,
            )?,
            mid_block: keys.name_or_null("mid_block_type", "UNetMidBlock2D")?,
            up_block_types: keys.names("up_block_types", defaults.up_block_types, &UP_BLOCKS)?,
            block_out_channels: keys.wholes("block_out_channels", defaults.block_out_channels)?,
            layers_per_block: keys.whole("layers_per_block", defaults.layers_per_block)?,
            mid_block_scale_factor: keys
                .number("mid_block_scale_factor", defaults.mid_block_scale_factor)?,
            downsample_padding: keys.downsample_padding()?,
            downsample_type: keys.resampling("downsample_type")?,
            upsample_type: keys.resampling("upsample_type")?,
            dropout: keys.number("dropout", defaults.dropout)?,
            act_fn: keys.act_fn()?,
            attention_head_dim: keys
                .whole_or_null("attention_head_dim", defaults.attention_head_dim)?,
            norm_num_groups: keys.whole_or_null("norm_num_groups", defaults.norm_num_groups)?,
            attn_norm_num_groups: keys
                .whole_or_null("attn_norm_num_groups", defaults.attn_norm_num_groups)?,
            norm_eps: keys.number("norm_eps", defaults.norm_eps)?,
            resnet_time_scale_shift: keys.name(
                "resnet_time_scale_shift",
                defaults.resnet_time_scale_shift,
                &SCALE_SHIFTS,
            )?,
            add_attention: keys.truth("add_attention", defaults.add_attention)?,
            class_embed_type: keys.class_embed_type()?,
            num_class_embeds: keys.whole_or_null("num_class_embeds", defaults.num_class_embeds)?,
            num_train_timesteps: keys
                .whole_or_null("num_train_timesteps", defaults.num_train_timesteps)?,
            rescale_residuals: keys.truth(RESCALE_RESIDUALS, defaults.rescale_residuals)?,
            attention_heads: keys.whole_or_null(ATTENTION_HEADS, defaults.attention_heads)?,
            attention_heads_up: keys
                .whole_or_null(ATTENTION_HEADS_UP, defaults.attention_heads_up)?,
            wide_shortcuts: keys.truth(WIDE_SHORTCUTS, defaults.wide_shortcuts)?,
            plain_resampling: keys.truth(PLAIN_RESAMPLING, defaults.plain_resampling)?,
            timestep_scale: keys.number(TIMESTEP_SCALE, defaults.timestep_scale)?,
            timestep_width: keys.whole_or_null(TIMESTEP_WIDTH, defaults.timestep_width)?,
        };
        keys.finish("diffusers' UNet2DModel", known_keys())?;
        Self::new(settings)
    }

    /// Every key of diffusers' class with our values, and of our own keys those that differ from the default.
    pub(crate) fn to_keys(&self) -> Map<String, Value> {
        let settings = self.settings();
        let pairs = [
            (CLASS_KEY, json!(CLASS_NAME)),
            ("_diffusers_version", json!(DIFFUSERS_VERSION)),
            ("act_fn", json!(name_of(&settings.act_fn, &NONLINEARITIES))),
            ("add_attention", json!(settings.add_attention)),
            ("attention_head_dim", json!(settings.attention_head_dim)),
            ("attn_norm_num_groups", json!(settings.attn_norm_num_groups)),
            ("block_out_channels", json!(settings.block_out_channels)),
            ("center_input_sample", json!(settings.center_input_sample)),
            (
                "class_embed_type",
                settings
                    .class_embed_type
                    .map_or(Value::Null, |it| json!(name_of(&it, &CLASS_EMBEDDINGS))),
            ),
            (
                "down_block_types",
                names_of(&settings.down_block_types, &DOWN_BLOCKS),
            ),
            (
                "downsample_padding",
                json!(settings.downsample_padding as usize),
            ),
            (
                "downsample_type",
                json!(name_of(&settings.downsample_type, &RESAMPLINGS)),
            ),
            ("dropout", json!(settings.dropout)),
            ("flip_sin_to_cos", json!(settings.flip_sin_to_cos)),
            ("freq_shift", json!(settings.freq_shift)),
            ("in_channels", json!(settings.in_channels)),
            ("layers_per_block", json!(settings.layers_per_block)),
            (
                "mid_block_scale_factor",
                whole_if_whole(settings.mid_block_scale_factor),
            ),
            (
                "mid_block_type",
                if settings.mid_block {
                    json!("UNetMidBlock2D")
                } else {
                    Value::Null
                },
            ),
            ("norm_eps", json!(settings.norm_eps)),
            ("norm_num_groups", json!(settings.norm_num_groups)),
            ("num_class_embeds", json!(settings.num_class_embeds)),
            ("num_train_timesteps", json!(settings.num_train_timesteps)),
            ("out_channels", json!(settings.out_channels)),
            (
                "resnet_time_scale_shift",
                json!(name_of(&settings.resnet_time_scale_shift, &SCALE_SHIFTS)),
            ),
            (
                "sample_size",
                settings
                    .sample_size
                    .map_or(Value::Null, SampleSize::to_value),
            ),
            ("time_embedding_dim", json!(settings.time_embedding_dim)),
            (
                "time_embedding_type",
                json!(name_of(&settings.time_embedding_type, &TIME_EMBEDDINGS)),
            ),
            (
                "up_block_types",
                names_of(&settings.up_block_types, &UP_BLOCKS),
            ),
            (
                "upsample_type",
                json!(name_of(&settings.upsample_type, &RESAMPLINGS)),
            ),
        ];
        let scale = settings.timestep_scale;
        let is = |key, said: bool| said.then_some((key, json!(true)));
        let number = |key, said: Option<usize>| said.map(|number| (key, json!(number)));
        let ours = [
            is(RESCALE_RESIDUALS, settings.rescale_residuals),
            number(ATTENTION_HEADS, settings.attention_heads),
            number(ATTENTION_HEADS_UP, settings.attention_heads_up),
            is(WIDE_SHORTCUTS, settings.wide_shortcuts),
            is(PLAIN_RESAMPLING, settings.plain_resampling),
            (scale != 1.0).then_some((TIMESTEP_SCALE, json!(scale))),
            number(TIMESTEP_WIDTH, settings.timestep_width),
        ];
        pairs
            .into_iter()
            .chain(ours.into_iter().flatten())
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

impl Serialize for UNetConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.to_keys().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for UNetConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::from_keys(Map::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl SampleSize {
    /// Height and width.
    pub fn height_width(self) -> (usize, usize) {
        match self {
            Self::Square(side) => (side, side),
            Self::Rectangle(height, width) => (height, width),
        }
    }

    pub(crate) fn to_value(self) -> Value {
        match self {
            Self::Square(side) => json!(side),
            Self::Rectangle(height, width) => json!([height, width]),
        }
    }
}

/// The class of a network, of diffusers or of ours.
pub(crate) const CLASS_KEY: &str = "_class_name";
pub(crate) const CLASS_NAME: &str = "UNet2DModel";
impl DownBlock {
    /// diffusers' name of it.
    pub fn name(self) -> &'static str {
        name_of(&self, &DOWN_BLOCKS)
    }
}

impl UpBlock {
    /// diffusers' name of it.
    pub fn name(self) -> &'static str {
        name_of(&self, &UP_BLOCKS)
    }
}

/// The keys that are ours.
const RESCALE_RESIDUALS: &str = "rescale_residuals";
const ATTENTION_HEADS: &str = "attention_heads";
const ATTENTION_HEADS_UP: &str = "attention_heads_up";
const WIDE_SHORTCUTS: &str = "wide_shortcuts";
const PLAIN_RESAMPLING: &str = "plain_resampling";
const TIMESTEP_SCALE: &str = "timestep_scale";
const TIMESTEP_WIDTH: &str = "timestep_width";
const DOWN_BLOCKS: [(&str, DownBlock); 5] = [
    ("DownBlock2D", DownBlock::Down),
    ("AttnDownBlock2D", DownBlock::AttnDown),
    ("ResnetDownsampleBlock2D", DownBlock::ResnetDown),
    ("SkipDownBlock2D", DownBlock::SkipDown),
    ("AttnSkipDownBlock2D", DownBlock::AttnSkipDown),
];
const UP_BLOCKS: [(&str, UpBlock); 5] = [
    ("UpBlock2D", UpBlock::Up),
    ("AttnUpBlock2D", UpBlock::AttnUp),
    ("ResnetUpsampleBlock2D", UpBlock::ResnetUp),
    ("SkipUpBlock2D", UpBlock::SkipUp),
    ("AttnSkipUpBlock2D", UpBlock::AttnSkipUp),
];
const TIME_EMBEDDINGS: [(&str, TimeEmbeddingType); 3] = [
    ("positional", TimeEmbeddingType::Positional),
    ("fourier", TimeEmbeddingType::Fourier),
    ("learned", TimeEmbeddingType::Learned),
];
const RESAMPLINGS: [(&str, Resampling); 2] =
    [("conv", Resampling::Conv), ("resnet", Resampling::Resnet)];
/// The first name of each is the one that is written.
const NONLINEARITIES: [(&str, Nonlinearity); 5] = [
    ("silu", Nonlinearity::Silu),
    ("swish", Nonlinearity::Silu),
    ("mish", Nonlinearity::Mish),
    ("gelu", Nonlinearity::Gelu),
    ("relu", Nonlinearity::Relu),
];
const CLASS_EMBEDDINGS: [(&str, ClassEmbedType); 2] = [
    ("timestep", ClassEmbedType::Timestep),
    ("identity", ClassEmbedType::Identity),
];
const SCALE_SHIFTS: [(&str, TimeScaleShift); 2] = [
    ("default", TimeScaleShift::Default),
    ("scale_shift", TimeScaleShift::ScaleShift),
];

/// Every key that is read.
fn known_keys() -> Vec<String> {
    let known = UNetConfig::ddpm_cifar10().to_keys();
    let known = known.into_iter().map(|(key, _)| key);
    let ours = [
        RESCALE_RESIDUALS,
        ATTENTION_HEADS,
        ATTENTION_HEADS_UP,
        WIDE_SHORTCUTS,
        PLAIN_RESAMPLING,
        TIMESTEP_SCALE,
        TIMESTEP_WIDTH,
    ];
    known.chain(ours.map(str::to_owned)).collect()
}

/// The keys of a configuration that nobody has read yet.
pub(crate) struct Keys(Map<String, Value>);

impl Keys {
    /// Those of a network of this class, without the notes that begin with `_`.
    ///
    /// # Errors
    /// `_class_name` says another class.
    pub(crate) fn of(class: &str, mut keys: Map<String, Value>) -> Result<Self> {
        let said = keys.get(CLASS_KEY).cloned();
        keys.retain(|key, _| !key.starts_with('_'));
        match said {
            Some(said) if said != class => {
                Err(unsupported(CLASS_KEY, &said, &format!("\"{class}\"")))
            }
            _ => Ok(Self(keys)),
        }
    }

    /// Every key must have been read by now; `known` are those of `class`, which an error lists.
    pub(crate) fn finish(self, class: &'static str, known: Vec<String>) -> Result<()> {
        let Some(key) = self.0.keys().next() else {
            return Ok(());
        };
        let known: Vec<String> = known.into_iter().filter(|k| !k.starts_with('_')).collect();
        Err(Error::UnknownKey {
            key: key.clone(),
            class,
            known: known.join(", "),
        })
    }

    /// Reads a value by `read`, which returns `None` for what it does not accept.
    pub(crate) fn read<T>(
        &mut self,
        key: &str,
        default: T,
        supported: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        let Some(value) = self.0.remove(key) else {
            return Ok(default);
        };
        read(&value).ok_or_else(|| unsupported(key, &value, supported))
    }

    pub(crate) fn whole(&mut self, key: &str, default: usize) -> Result<usize> {
        self.read(key, default, "a whole number", as_whole)
    }

    pub(crate) fn whole_or_null(
        &mut self,
        key: &str,
        default: Option<usize>,
    ) -> Result<Option<usize>> {
        self.read(
            key,
            default,
            "a whole number or null",
            |value| match value {
                Value::Null => Some(None),
                value => as_whole(value).map(Some),
            },
        )
    }

    pub(crate) fn wholes(&mut self, key: &str, default: Vec<usize>) -> Result<Vec<usize>> {
        self.read(key, default, "a list of whole numbers", |value| {
            value.as_array()?.iter().map(as_whole).collect()
        })
    }

    pub(crate) fn number(&mut self, key: &str, default: f64) -> Result<f64> {
        self.read(key, default, "a number", Value::as_f64)
    }

    pub(crate) fn truth(&mut self, key: &str, default: bool) -> Result<bool> {
        self.read(key, default, "true or false", Value::as_bool)
    }

    pub(crate) fn name<T: Copy>(
        &mut self,
        key: &str,
        default: T,
        table: &[(&str, T)],
    ) -> Result<T> {
        self.read(
            key,
            default,
            &quoted(table.iter().map(|&(name, _)| name)),
            |value| named(value, table),
        )
    }

    /// True for the one name that is supported, false for null.
    fn name_or_null(&mut self, key: &str, name: &str) -> Result<bool> {
        self.read(
            key,
            true,
            &format!("\"{name}\" or null"),
            |value| match value {
                Value::Null => Some(false),
                value => (value == name).then_some(true),
            },
        )
    }

    /// A list of names; the error points at the entry.
    fn names<T: Copy>(
        &mut self,
        key: &str,
        default: Vec<T>,
        table: &[(&str, T)],
    ) -> Result<Vec<T>> {
        let supported = quoted(table.iter().map(|&(name, _)| name));
        let list = match self.0.remove(key) {
            None => return Ok(default),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(unsupported(key, &other, &format!("a list of {supported}"))),
        };
        // Old names, which diffusers still reads: UNetResDownBlock2D for DownBlock2D.
        let modern = |value: &Value| {
            let name = value.as_str()?.trim_start_matches("UNetRes");
            named(&json!(name), table)
        };
        let entry = |(index, value): (usize, &Value)| {
            modern(value).ok_or_else(|| unsupported(&format!("{key}[{index}]"), value, &supported))
        };
        list.iter().enumerate().map(entry).collect()
    }

    /// Null is what diffusers takes for a convolution.
    fn resampling(&mut self, key: &str) -> Result<Resampling> {
        self.read(
            key,
            Resampling::Conv,
            &quoted(RESAMPLINGS.iter().map(|&(name, _)| name)),
            |value| match value {
                Value::Null => Some(Resampling::Conv),
                value => named(value, &RESAMPLINGS),
            },
        )
    }

    /// In any case of letters, as diffusers.
    fn act_fn(&mut self) -> Result<Nonlinearity> {
        self.read(
            "act_fn",
            Nonlinearity::Silu,
            &quoted(NONLINEARITIES.iter().map(|&(name, _)| name)),
            |value| named(&json!(value.as_str()?.to_lowercase()), &NONLINEARITIES),
        )
    }

    fn class_embed_type(&mut self) -> Result<Option<ClassEmbedType>> {
        let names = quoted(CLASS_EMBEDDINGS.iter().map(|&(name, _)| name));
        self.read(
            "class_embed_type",
            None,
            &format!("{names} or null"),
            |value| match value {
                Value::Null => Some(None),
                value => named(value, &CLASS_EMBEDDINGS).map(Some),
            },
        )
    }

    pub(crate) fn sample_size(&mut self) -> Result<Option<SampleSize>> {
        self.read(
            "sample_size",
            None,
            "a whole number, [height, width] or null",
            |value| match value {
                Value::Null => Some(None),
                Value::Array(sides) => match sides.as_slice() {
                    [height, width] => Some(Some(SampleSize::Rectangle(
                        as_whole(height)?,
                        as_whole(width)?,
                    ))),
                    _ => None,
                },
                value => as_whole(value).map(|side| Some(SampleSize::Square(side))),
            },
        )
    }

    fn downsample_padding(&mut self) -> Result<DownsamplePadding> {
        self.read(
            "downsample_padding",
            DownsamplePadding::Same,
            "0 or 1",
            |value| match as_whole(value)? {
                0 => Some(DownsamplePadding::BottomRight),
                1 => Some(DownsamplePadding::Same),
                _ => None,
            },
        )
    }
}

pub(crate) fn unsupported(key: &str, value: &Value, supported: &str) -> Error {
    Error::Value {
        key: key.to_owned(),
        value: value.to_string(),
        supported: supported.to_owned(),
    }
}

fn as_whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|value| usize::try_from(value).ok())
}

fn named<T: Copy>(value: &Value, table: &[(&str, T)]) -> Option<T> {
    table
        .iter()
        .find(|(name, _)| value == name)
        .map(|&(_, item)| item)
}

pub(crate) fn name_of<T: PartialEq>(item: &T, table: &[(&'static str, T)]) -> &'static str {
    // Each table lists every variant of its type.
    table
        .iter()
        .find(|(_, candidate)| candidate == item)
        .map_or("", |&(name, _)| name)
}

fn names_of<T: PartialEq>(items: &[T], table: &[(&'static str, T)]) -> Value {
    items.iter().map(|item| name_of(item, table)).collect()
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

/// diffusers' default is the whole number 1.
fn whole_if_whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        json!(value as i64)
    } else {
        json!(value)
    }
}
