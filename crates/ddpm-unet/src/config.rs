//! The network's configuration, with the keys, defaults and JSON of diffusers' `UNet2DModel`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::architecture::Architecture;
use crate::{Error, Result};

/// The version of diffusers whose files these are: written as `_diffusers_version`.
pub const DIFFUSERS_VERSION: &str = "0.42.1";

/// What a network looks like: the keys of diffusers' `UNet2DModel` that this crate supports, with diffusers' defaults.
///
/// The remaining keys have one supported value each and are written with it: `time_embedding_type` "positional",
/// `downsample_type` and `upsample_type` "conv", `act_fn` "silu", `class_embed_type` and `num_class_embeds` null.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetSettings {
    /// The size of the images that the network was made for: recorded for samplers, does not change the network.
    pub sample_size: Option<SampleSize>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether the input becomes 2x - 1 first.
    pub center_input_sample: bool,
    /// Width of the time embedding; `None` is four times the first level's width.
    pub time_embedding_dim: Option<usize>,
    /// The frequencies of the time embedding are 10000^(-i/(half - freq_shift)): 1 is Ho's, 0 is OpenAI's.
    pub freq_shift: usize,
    /// Whether cosines come before sines in the time embedding: false is Ho's, true is OpenAI's.
    pub flip_sin_to_cos: bool,
    /// The way down, from the full resolution to the smallest: one entry a level.
    pub down_block_types: Vec<DownBlock>,
    /// Whether there is a middle block (`mid_block_type` "UNetMidBlock2D", otherwise null).
    pub mid_block: bool,
    /// The way up, from the smallest resolution to the full one: one entry a level.
    pub up_block_types: Vec<UpBlock>,
    /// Channels of each level, from the full resolution down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level on the way down; there is one more on the way up.
    pub layers_per_block: usize,
    /// What the middle block divides its residual sums by.
    pub mid_block_scale_factor: f64,
    /// How images are padded before they are halved.
    pub downsample_padding: DownsamplePadding,
    /// The share of activations dropped in training, before the second convolution of each residual block; in [0, 1).
    pub dropout: f64,
    /// Channels of an attention head; `None` is one head as wide as its level.
    pub attention_head_dim: Option<usize>,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Groups in the middle block's attention; `None` is `norm_num_groups`, or no normalisation with `ScaleShift`.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in every group normalisation.
    pub norm_eps: f64,
    /// How the time embedding enters a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// Steps that the model was trained with: recorded, does not change the network.
    pub num_train_timesteps: Option<usize>,
}

/// The size of an image: a number for a square, or height and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleSize {
    /// As high as wide.
    Square(usize),
    /// Height, width.
    Rectangle(usize, usize),
}

/// A level on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownBlock {
    /// `DownBlock2D`: residual blocks.
    Down,
    /// `AttnDownBlock2D`: residual blocks, attention after each.
    AttnDown,
}

/// A level on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpBlock {
    /// `UpBlock2D`: residual blocks.
    Up,
    /// `AttnUpBlock2D`: residual blocks, attention after each.
    AttnUp,
}

/// How images are padded before the strided convolution that halves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownsamplePadding {
    /// `downsample_padding` 0: one row below and one column to the right, as Ho's network.
    BottomRight,
    /// `downsample_padding` 1: one row or column on every side.
    Same,
}

/// How the time embedding enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeScaleShift {
    /// "default": added after the first convolution.
    Default,
    /// "scale_shift": scales and shifts the second normalisation, h (1 + scale) + shift.
    ScaleShift,
}

/// A configuration that a network can be built from; only checked ones exist.
///
/// It serialises as diffusers' `config.json` does, and reads the same.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    settings: UNetSettings,
}

impl Default for UNetSettings {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_dim: None,
            freq_shift: 0,
            flip_sin_to_cos: true,
            down_block_types: vec![
                DownBlock::Down,
                DownBlock::AttnDown,
                DownBlock::AttnDown,
                DownBlock::AttnDown,
            ],
            mid_block: true,
            up_block_types: vec![
                UpBlock::AttnUp,
                UpBlock::AttnUp,
                UpBlock::AttnUp,
                UpBlock::Up,
            ],
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: DownsamplePadding::Same,
            dropout: 0.0,
            attention_head_dim: Some(8),
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: TimeScaleShift::Default,
            add_attention: true,
            num_train_timesteps: None,
        }
    }
}

impl UNetSettings {
    /// What Ho et al.'s networks have in common where diffusers' defaults differ: one attention head, padding below
    /// and to the right, sines before cosines with `freq_shift` 1, `norm_eps` 1e-6.
    pub fn ho() -> Self {
        Self {
            attention_head_dim: None,
            downsample_padding: DownsamplePadding::BottomRight,
            flip_sin_to_cos: false,
            freq_shift: 1,
            norm_eps: 1e-6,
            ..Self::default()
        }
    }

    /// Sets one entry a level: `(channels, attention)` from the full resolution down; the way up mirrors the way down.
    pub fn with_levels(self, levels: &[(usize, bool)]) -> Self {
        let down = |&(_, attention): &(usize, bool)| {
            if attention {
                DownBlock::AttnDown
            } else {
                DownBlock::Down
            }
        };
        let up = |&(_, attention): &(usize, bool)| {
            if attention {
                UpBlock::AttnUp
            } else {
                UpBlock::Up
            }
        };
        Self {
            block_out_channels: levels.iter().map(|&(channels, _)| channels).collect(),
            down_block_types: levels.iter().map(down).collect(),
            up_block_types: levels.iter().rev().map(up).collect(),
            ..self
        }
    }
}

impl UNetConfig {
    /// Checks the settings: every width, list and group must give a network.
    ///
    /// # Errors
    /// [`Error::Value`], [`Error::Levels`], [`Error::Groups`] or [`Error::HeadDim`], naming the key.
    pub fn new(settings: UNetSettings) -> Result<Self> {
        check_lists(&settings)?;
        check_numbers(&settings)?;
        check_groups(&settings)?;
        check_heads(&settings)?;
        Ok(Self { settings })
    }

    /// Ho et al.'s CIFAR-10 network: 35,746,307 parameters, 3x32x32, dropout 0.1.
    pub fn ddpm_cifar10() -> Self {
        let levels = [(128, false), (256, true), (256, false), (256, false)];
        let sample_size = Some(SampleSize::Square(32));
        Self {
            settings: UNetSettings {
                sample_size,
                dropout: 0.1,
                ..UNetSettings::ho()
            }
            .with_levels(&levels),
        }
    }

    /// Ho et al.'s network for 256x256 images: 113,673,219 parameters.
    pub fn ddpm_256() -> Self {
        let levels = [
            (128, false),
            (128, false),
            (256, false),
            (256, false),
            (512, true),
            (512, false),
        ];
        let sample_size = Some(SampleSize::Square(256));
        Self {
            settings: UNetSettings {
                sample_size,
                ..UNetSettings::ho()
            }
            .with_levels(&levels),
        }
    }

    /// The settings, all of which have passed the checks.
    pub fn settings(&self) -> &UNetSettings {
        &self.settings
    }

    /// Reads diffusers' `unet/config.json`. Missing keys have diffusers' defaults; keys that begin with `_` are
    /// diffusers' own notes and are passed over, except that `_class_name` must be `UNet2DModel`.
    ///
    /// # Errors
    /// Unknown keys and unsupported values, by name; everything that [`UNetConfig::new`] refuses.
    pub fn from_json(text: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Self::from_keys(keys),
            Ok(other) => Err(Error::Json(format!("found {other}"))),
            Err(error) => Err(Error::Json(error.to_string())),
        }
    }

    /// The text of diffusers' `unet/config.json`: every key, sorted, two spaces deep, a newline at the end.
    pub fn to_json(&self) -> String {
        // Maps of serde_json without null keys or non-string keys always serialise.
        let text = serde_json::to_string_pretty(&Value::Object(self.to_keys())).unwrap_or_default();
        text + "\n"
    }

    /// Names and shapes of the parameters, in the order in which PyTorch's constructor of `UNet2DModel` makes them.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        Architecture::new(self)
            .parameters
            .into_iter()
            .map(|parameter| (parameter.name, parameter.shape))
            .collect()
    }

    /// How many numbers the parameters are.
    pub fn parameter_count(&self) -> usize {
        self.parameters()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// How often the image is halved, as a factor: both sides of an image must be multiples of it.
    pub fn size_factor(&self) -> usize {
        1 << (self.settings.block_out_channels.len() - 1)
    }

    /// Checks that images of this height and width suit the network's depth.
    ///
    /// # Errors
    /// [`Error::ImageSize`], which names the nearest sizes that work.
    pub fn check_image(&self, height: usize, width: usize) -> Result<()> {
        let factor = self.size_factor();
        if height > 0 && width > 0 && height.is_multiple_of(factor) && width.is_multiple_of(factor)
        {
            return Ok(());
        }
        let levels = self.settings.block_out_channels.len();
        let nearest = nearest_sizes(height, width, factor);
        Err(Error::ImageSize {
            height,
            width,
            levels,
            factor,
            nearest,
        })
    }

    /// Reads the keys of a `config.json` one by one.
    fn from_keys(keys: Map<String, Value>) -> Result<Self> {
        let mut keys = Keys(keys);
        keys.check_class_name()?;
        let defaults = UNetSettings::default();
        keys.only("time_embedding_type", json!("positional"), &["positional"])?;
        keys.only("downsample_type", json!("conv"), &["conv"])?;
        keys.only("upsample_type", json!("conv"), &["conv"])?;
        keys.only("act_fn", json!("silu"), &["silu", "swish"])?;
        keys.only("class_embed_type", Value::Null, &[])?;
        keys.only("num_class_embeds", Value::Null, &[])?;
        let settings = UNetSettings {
            sample_size: keys.sample_size()?,
            in_channels: keys.whole("in_channels", defaults.in_channels)?,
            out_channels: keys.whole("out_channels", defaults.out_channels)?,
            center_input_sample: keys.truth("center_input_sample", defaults.center_input_sample)?,
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
            dropout: keys.number("dropout", defaults.dropout)?,
            attention_head_dim: keys
                .whole_or_null("attention_head_dim", defaults.attention_head_dim)?,
            norm_num_groups: keys.whole("norm_num_groups", defaults.norm_num_groups)?,
            attn_norm_num_groups: keys
                .whole_or_null("attn_norm_num_groups", defaults.attn_norm_num_groups)?,
            norm_eps: keys.number("norm_eps", defaults.norm_eps)?,
            resnet_time_scale_shift: keys.name(
                "resnet_time_scale_shift",
                defaults.resnet_time_scale_shift,
                &SCALE_SHIFTS,
            )?,
            add_attention: keys.truth("add_attention", defaults.add_attention)?,
            num_train_timesteps: keys
                .whole_or_null("num_train_timesteps", defaults.num_train_timesteps)?,
        };
        keys.finish()?;
        Self::new(settings)
    }

    /// Every key of diffusers' class, with our values.
    fn to_keys(&self) -> Map<String, Value> {
        let settings = &self.settings;
        let pairs = [
            ("_class_name", json!(CLASS_NAME)),
            ("_diffusers_version", json!(DIFFUSERS_VERSION)),
            ("act_fn", json!("silu")),
            ("add_attention", json!(settings.add_attention)),
            ("attention_head_dim", json!(settings.attention_head_dim)),
            ("attn_norm_num_groups", json!(settings.attn_norm_num_groups)),
            ("block_out_channels", json!(settings.block_out_channels)),
            ("center_input_sample", json!(settings.center_input_sample)),
            ("class_embed_type", Value::Null),
            (
                "down_block_types",
                names_of(&settings.down_block_types, &DOWN_BLOCKS),
            ),
            (
                "downsample_padding",
                json!(settings.downsample_padding as usize),
            ),
            ("downsample_type", json!("conv")),
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
            ("num_class_embeds", Value::Null),
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
            ("time_embedding_type", json!("positional")),
            (
                "up_block_types",
                names_of(&settings.up_block_types, &UP_BLOCKS),
            ),
            ("upsample_type", json!("conv")),
        ];
        pairs
            .into_iter()
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

    fn to_value(self) -> Value {
        match self {
            Self::Square(side) => json!(side),
            Self::Rectangle(height, width) => json!([height, width]),
        }
    }
}

const CLASS_NAME: &str = "UNet2DModel";
const DOWN_BLOCKS: [(&str, DownBlock); 2] = [
    ("DownBlock2D", DownBlock::Down),
    ("AttnDownBlock2D", DownBlock::AttnDown),
];
const UP_BLOCKS: [(&str, UpBlock); 2] = [
    ("UpBlock2D", UpBlock::Up),
    ("AttnUpBlock2D", UpBlock::AttnUp),
];
const SCALE_SHIFTS: [(&str, TimeScaleShift); 2] = [
    ("default", TimeScaleShift::Default),
    ("scale_shift", TimeScaleShift::ScaleShift),
];

/// The largest width, count or size: far beyond any network, small enough that no product overflows.
const LARGEST: usize = 65_536;
/// The most levels: images would have to be multiples of 32,768.
const MOST_LEVELS: usize = 16;

/// The keys of a configuration that nobody has read yet.
struct Keys(Map<String, Value>);

impl Keys {
    fn check_class_name(&mut self) -> Result<()> {
        let class_name = self.0.get("_class_name").cloned();
        self.0.retain(|key, _| !key.starts_with('_'));
        match class_name {
            Some(name) if name != CLASS_NAME => {
                Err(unsupported("_class_name", &name, "\"UNet2DModel\""))
            }
            _ => Ok(()),
        }
    }

    /// Every key must have been read by now.
    fn finish(self) -> Result<()> {
        let Some(key) = self.0.keys().next() else {
            return Ok(());
        };
        let known: Vec<String> = UNetConfig {
            settings: UNetSettings::default(),
        }
        .to_keys()
        .into_iter()
        .map(|(key, _)| key)
        .filter(|key| !key.starts_with('_'))
        .collect();
        Err(Error::UnknownKey {
            key: key.clone(),
            known: known.join(", "),
        })
    }

    /// Reads a value by `read`, which returns `None` for what it does not accept.
    fn read<T>(
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

    /// A key of which only some names are supported, all with the same meaning.
    fn only(&mut self, key: &str, default: Value, names: &[&str]) -> Result<()> {
        let supported = if names.is_empty() {
            "null".to_owned()
        } else {
            quoted(names.iter().copied())
        };
        let accepts = |value: &Value| match value {
            Value::String(name) => names.contains(&name.as_str()),
            other => *other == default,
        };
        self.read(key, (), &supported, |value| accepts(value).then_some(()))
    }

    fn whole(&mut self, key: &str, default: usize) -> Result<usize> {
        self.read(key, default, "a whole number", as_whole)
    }

    fn whole_or_null(&mut self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
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

    fn wholes(&mut self, key: &str, default: Vec<usize>) -> Result<Vec<usize>> {
        self.read(key, default, "a list of whole numbers", |value| {
            value.as_array()?.iter().map(as_whole).collect()
        })
    }

    fn number(&mut self, key: &str, default: f64) -> Result<f64> {
        self.read(key, default, "a number", Value::as_f64)
    }

    fn truth(&mut self, key: &str, default: bool) -> Result<bool> {
        self.read(key, default, "true or false", Value::as_bool)
    }

    fn name<T: Copy>(&mut self, key: &str, default: T, table: &[(&str, T)]) -> Result<T> {
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
        let entry = |(index, value): (usize, &Value)| {
            named(value, table)
                .ok_or_else(|| unsupported(&format!("{key}[{index}]"), value, &supported))
        };
        list.iter().enumerate().map(entry).collect()
    }

    fn sample_size(&mut self) -> Result<Option<SampleSize>> {
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

fn check_lists(settings: &UNetSettings) -> Result<()> {
    let (widths, down, up) = (
        settings.block_out_channels.len(),
        settings.down_block_types.len(),
        settings.up_block_types.len(),
    );
    if widths == 0 || widths != down || widths != up {
        return Err(Error::Levels { widths, down, up });
    }
    if widths > MOST_LEVELS {
        return Err(unsupported(
            "block_out_channels",
            &json!(widths),
            &format!("at most {MOST_LEVELS} levels"),
        ));
    }
    Ok(())
}

fn check_numbers(settings: &UNetSettings) -> Result<()> {
    let widths = settings
        .block_out_channels
        .iter()
        .map(|&width| ("block_out_channels", Some(width)));
    let (height, width) = settings.sample_size.map(SampleSize::height_width).unzip();
    let wholes = [
        ("sample_size", height),
        ("sample_size", width),
        ("in_channels", Some(settings.in_channels)),
        ("out_channels", Some(settings.out_channels)),
        ("time_embedding_dim", settings.time_embedding_dim),
        ("layers_per_block", Some(settings.layers_per_block)),
        ("attention_head_dim", settings.attention_head_dim),
        ("norm_num_groups", Some(settings.norm_num_groups)),
        ("attn_norm_num_groups", settings.attn_norm_num_groups),
    ];
    for (key, value) in widths.chain(wholes) {
        if value.is_some_and(|value| !(1..=LARGEST).contains(&value)) {
            return Err(unsupported(
                key,
                &json!(value),
                &format!("whole numbers from 1 to {LARGEST}"),
            ));
        }
    }
    let half = settings.block_out_channels[0] / 2;
    if settings.freq_shift >= half {
        let supported = format!("whole numbers below {half}, half the first level's channels");
        return Err(unsupported(
            "freq_shift",
            &json!(settings.freq_shift),
            &supported,
        ));
    }
    if !(0.0..1.0).contains(&settings.dropout) {
        return Err(unsupported(
            "dropout",
            &json!(settings.dropout),
            "at least 0 and below 1",
        ));
    }
    if !(settings.norm_eps > 0.0 && settings.norm_eps.is_finite()) {
        return Err(unsupported(
            "norm_eps",
            &json!(settings.norm_eps),
            "numbers above 0",
        ));
    }
    if !(settings.mid_block_scale_factor.is_finite() && settings.mid_block_scale_factor != 0.0) {
        return Err(unsupported(
            "mid_block_scale_factor",
            &json!(settings.mid_block_scale_factor),
            "numbers except 0",
        ));
    }
    Ok(())
}

/// Every normalisation has the channels of one level, or of two levels together, so that whole levels suffice.
fn check_groups(settings: &UNetSettings) -> Result<()> {
    let groups = settings.norm_num_groups;
    for (level, &channels) in settings.block_out_channels.iter().enumerate() {
        if !channels.is_multiple_of(groups) {
            return Err(Error::Groups {
                key: "norm_num_groups",
                level,
                channels,
                groups,
            });
        }
    }
    let level = settings.block_out_channels.len() - 1;
    let channels = settings.block_out_channels[level];
    match settings.attn_norm_num_groups {
        Some(groups) if !channels.is_multiple_of(groups) => Err(Error::Groups {
            key: "attn_norm_num_groups",
            level,
            channels,
            groups,
        }),
        _ => Ok(()),
    }
}

/// A level's heads are its channels / head_dim, rounded down, and there must be one.
fn check_heads(settings: &UNetSettings) -> Result<()> {
    let Some(head_dim) = settings.attention_head_dim else {
        return Ok(());
    };
    let last = settings.block_out_channels.len() - 1;
    for (level, &channels) in settings.block_out_channels.iter().enumerate() {
        let attention = settings.down_block_types[level] == DownBlock::AttnDown
            || settings.up_block_types[last - level] == UpBlock::AttnUp
            || (level == last && settings.mid_block && settings.add_attention);
        if attention && head_dim > channels {
            return Err(Error::HeadDim {
                level,
                channels,
                head_dim,
            });
        }
    }
    Ok(())
}

fn nearest_sizes(height: usize, width: usize, factor: usize) -> String {
    let below = |side: usize| (side / factor * factor).max(factor);
    let above = |side: usize| side.div_ceil(factor).max(1).saturating_mul(factor);
    let smaller = format!("{}x{}", below(height), below(width));
    let larger = format!("{}x{}", above(height), above(width));
    if smaller == larger {
        smaller
    } else {
        format!("{smaller} and {larger}")
    }
}

fn unsupported(key: &str, value: &Value, supported: &str) -> Error {
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

fn name_of<T: PartialEq>(item: &T, table: &[(&'static str, T)]) -> &'static str {
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
