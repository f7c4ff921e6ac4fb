//! The network's configuration: the settings of diffusers' `UNet2DModel`, by its names.

use serde_json::Value;

use crate::architecture::Architecture;
use crate::checks::check;
use crate::{Error, Result};

/// The version of diffusers whose files these are: written as `_diffusers_version`.
pub const DIFFUSERS_VERSION: &str = "0.42.1";

/// What a network looks like: the keys of diffusers' `UNet2DModel`, with diffusers' defaults, and seven keys of ours.
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
    /// How the network is told the time.
    pub time_embedding_type: TimeEmbeddingType,
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
    /// What halves the image after an `AttnDownBlock2D`; the other blocks have their own way.
    pub downsample_type: Resampling,
    /// What doubles the image after an `AttnUpBlock2D`; the other blocks have their own way.
    pub upsample_type: Resampling,
    /// The share of activations dropped in training, before the second convolution of each residual block; in [0, 1).
    pub dropout: f64,
    /// The activation of residual blocks; that of the time embedding and of the output is SiLU always.
    pub act_fn: Nonlinearity,
    /// Channels of an attention head; `None` is one head as wide as its level.
    pub attention_head_dim: Option<usize>,
    /// Groups of every group normalisation; those of Skip blocks have their own. `None`, where all blocks are Skip
    /// blocks, is a quarter of the channels, at most 32.
    pub norm_num_groups: Option<usize>,
    /// Groups in the middle block's attention; `None` is `norm_num_groups`, or no normalisation with `ScaleShift`.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in every group normalisation.
    pub norm_eps: f64,
    /// How the time embedding enters a residual block.
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// How the network is told the class; `None` with `num_class_embeds` is a learned vector for each class.
    pub class_embed_type: Option<ClassEmbedType>,
    /// How many classes have learned vectors, if `class_embed_type` is `None`.
    pub num_class_embeds: Option<usize>,
    /// Steps that the model was trained with: as many times have vectors where `time_embedding_type` is learned, else
    /// it is recorded and does not change the network.
    pub num_train_timesteps: Option<usize>,
    /// Ours: whether every residual sum, of residual blocks and of attention, is divided by √2 (Song et al. 2021, and a
    /// variant of ADM's network), that of Skip blocks being divided so anyway. Written to a file only if it is true,
    /// as diffusers does not know it.
    pub rescale_residuals: bool,
    /// Ours: how many heads every attention has, however wide its level (improved-diffusion); `attention_head_dim` is
    /// then `None`. Written to a file only if it is given.
    pub attention_heads: Option<usize>,
    /// Ours: how many heads attention has on the way up, where they are not as many as elsewhere (improved-diffusion's
    /// `num_heads_upsample`); `attention_heads` is then given. Written to a file only if it is given.
    pub attention_heads_up: Option<usize>,
    /// Ours: whether the convolutions in the shortcuts of residual blocks are 3 by 3, not 1 by 1 (Ho's `conv_shortcut`).
    /// Written to a file only if it is true.
    pub wide_shortcuts: bool,
    /// Ours: whether levels that halve and double by a convolution do so without it, by means of 2 by 2 and by repetition
    /// (Ho's `resamp_with_conv` false). Written to a file only if it is true.
    pub plain_resampling: bool,
    /// Ours: what times are multiplied by before their sinusoids (improved-diffusion tells t * 1000 / T). Written to a
    /// file only if it is not 1.
    pub timestep_scale: f64,
    /// Ours: how many sinusoids tell the time, where they are not as many as the first level has channels
    /// (guided-diffusion with a first `channel_mult` other than 1). Written to a file only if it is given.
    pub timestep_width: Option<usize>,
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
    /// `ResnetDownsampleBlock2D`: residual blocks, of which the last halves (BigGAN).
    ResnetDown,
    /// `SkipDownBlock2D`: residual blocks, of which the last halves through a filter, and the filtered input image
    /// enters besides (NCSN++). The network's input has three channels.
    SkipDown,
    /// `AttnSkipDownBlock2D`: the same, attention after each block but the last.
    AttnSkipDown,
}

/// A level on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpBlock {
    /// `UpBlock2D`: residual blocks.
    Up,
    /// `AttnUpBlock2D`: residual blocks, attention after each.
    AttnUp,
    /// `ResnetUpsampleBlock2D`: residual blocks, of which the last doubles (BigGAN).
    ResnetUp,
    /// `SkipUpBlock2D`: residual blocks, of which the last doubles through a filter, and an image is put together
    /// besides (NCSN++). The network's output has three channels.
    SkipUp,
    /// `AttnSkipUpBlock2D`: the same, attention once, before the last block.
    AttnSkipUp,
}

/// How the network is told the time t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeEmbeddingType {
    /// "positional": sines and cosines of t at fixed frequencies.
    Positional,
    /// "fourier": sines and cosines of ln t at random frequencies that are not learned; the output is divided by t.
    /// t is a noise level above 0 (NCSN++).
    Fourier,
    /// "learned": a vector for each of `num_train_timesteps` whole numbers.
    Learned,
}

/// What changes the size of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// "conv": a convolution, of stride 2 or after doubling.
    Conv,
    /// "resnet": a residual block that averages or doubles.
    Resnet,
}

/// An activation of residual blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nonlinearity {
    /// "silu": x / (1 + e^-x).
    Silu,
    /// "mish": x tanh(ln(1 + e^x)).
    Mish,
    /// "gelu": x Φ(x).
    Gelu,
    /// "relu": max(x, 0).
    Relu,
}

/// How the network is told the class, where it has no table of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassEmbedType {
    /// "timestep": as it is told the time, with layers of its own.
    Timestep,
    /// "identity": by a vector as wide as the time embedding.
    Identity,
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
            time_embedding_type: TimeEmbeddingType::Positional,
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
            downsample_type: Resampling::Conv,
            upsample_type: Resampling::Conv,
            dropout: 0.0,
            act_fn: Nonlinearity::Silu,
            attention_head_dim: Some(8),
            norm_num_groups: Some(32),
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: TimeScaleShift::Default,
            add_attention: true,
            class_embed_type: None,
            num_class_embeds: None,
            num_train_timesteps: None,
            rescale_residuals: false,
            attention_heads: None,
            attention_heads_up: None,
            wide_shortcuts: false,
            plain_resampling: false,
            timestep_scale: 1.0,
            timestep_width: None,
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
    /// Checks the settings: every width, list and group must give a network, and the blocks must fit together.
    ///
    /// # Errors
    /// [`Error::Value`], [`Error::Levels`], [`Error::Groups`], [`Error::NormGroups`] or [`Error::HeadDim`], naming the
    /// key or the layer.
    pub fn new(settings: UNetSettings) -> Result<Self> {
        check(&settings)?;
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

    /// What this network has that diffusers' `UNet2DModel` cannot express, a sentence each.
    pub fn beyond_diffusers(&self) -> Vec<&'static str> {
        let settings = &self.settings;
        let said = [
            (
                settings.rescale_residuals,
                "every residual sum of the network is divided by the square root of 2",
            ),
            (
                settings.attention_heads.is_some(),
                "attention has as many heads at every level, of as many channels as the level's width gives",
            ),
            (
                settings.attention_heads_up.is_some(),
                "attention has another number of heads on the way up (`attention_heads_up` in the network's configuration)",
            ),
            (
                settings.wide_shortcuts,
                "shortcuts of residual blocks are 3 by 3 convolutions (`wide_shortcuts` in the network's configuration)",
            ),
            (
                settings.plain_resampling,
                "levels halve and double without a convolution (`plain_resampling` in the network's configuration)",
            ),
            (
                settings.timestep_scale != 1.0,
                "the network is told the time multiplied by a factor (`timestep_scale` in its configuration)",
            ),
            (
                settings.timestep_width.is_some(),
                "the network is told the time by a number of its own of sinusoids (`timestep_width` in its configuration)",
            ),
        ];
        let said = said.into_iter().filter(|(is, _)| *is);
        said.map(|(_, sentence)| sentence).collect()
    }

    /// Whether diffusers' `UNet2DModel` has these tensors, whatever it makes of them: some keys of ours change their shapes.
    pub fn opens_in_diffusers(&self) -> bool {
        let settings = &self.settings;
        !settings.wide_shortcuts && !settings.plain_resampling && settings.timestep_width.is_none()
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
        Architecture::new(&self.settings)
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
        check_size(height, width, self.settings.block_out_channels.len())
    }
}

/// Whether images of this height and width can be halved between so many levels.
pub(crate) fn check_size(height: usize, width: usize, levels: usize) -> Result<()> {
    let factor = 1 << (levels - 1);
    if height > 0 && width > 0 && height.is_multiple_of(factor) && width.is_multiple_of(factor) {
        return Ok(());
    }
    let nearest = nearest_sizes(height, width, factor);
    Err(Error::ImageSize {
        height,
        width,
        levels,
        factor,
        nearest,
    })
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
