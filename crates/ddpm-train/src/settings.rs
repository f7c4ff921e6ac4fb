//! Settings: typed sections from TOML, laid over one another, checked before the first step.

use std::path::PathBuf;

use ddpm_data::resize::Filter;
use ddpm_data::{Color, Crop, DataSpec, Keep, Pictures};
use ddpm_image::PixelMap;
use ddpm_unet::{DeviceName, PrecisionName, UNetConfig, Use, is_a_card};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{Decay, EmaWarmUp, Error, Result};

/// Everything a training run is told. Every key has a default except `data.name`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is learnt from.
    pub data: DataSettings,
    /// The network, in the words of diffusers' `unet/config.json`.
    pub model: ModelSettings,
    /// The paper: schedule, what the network predicts, the loss.
    pub diffusion: DiffusionSettings,
    /// How the parameters move.
    pub optimizer: OptimizerSettings,
    /// The averages of the parameters that samples are drawn from.
    pub ema: EmaSettings,
    /// How long, how many at once, how often what is written.
    pub train: TrainSettings,
    /// The pictures made on the way.
    pub samples: SampleSettings,
}

/// Section `[data]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSettings {
    /// The data set, as `--data` takes it.
    pub name: String,
    /// Where to look for it first, as `--data-dir`; not with `digits` (inside the program) and `folder:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Show half of the images mirrored (left to right). Wrong for digits and letters.
    pub flip: bool,
    /// What a byte becomes on its way to the network: `minus-one-to-one`, `imagenet`, or `{ mean = [...], std = [...] }`.
    pub normalisation: Normalisation,
    /// Height and width of every image, where the data are pictures: one number, or `[height, width]`; left out, all
    /// must have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Sides>,
    /// What a picture is resized to cover before it is cropped to `size`; left out: `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cover: Option<Sides>,
    /// How pictures are resized: `area` or `bicubic`, both with antialiasing, as Pillow; left out: `area`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// What is kept of a picture of another shape: `centre`, `random` (anew in each epoch) or `stretch`; left out: `centre`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<Crop>,
    /// `rgb` or `grey`, whatever the pictures are; left out: `rgb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<Color>,
    /// What is seen through transparent pixels: `[red, green, blue]`; left out: black.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background: Option<[u8; 3]>,
    /// Leave out pictures that cannot be read, rather than refuse them all; they are named and counted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_unreadable: bool,
    /// MiB that the decoded images may take in memory; where they take more, they are streamed from `cache`. Left out:
    /// half of the memory that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Where images that do not fit into memory are kept decoded; left out: `cache` in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// `data.normalisation`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Normalisation {
    /// Numbers in [-1, 1].
    #[default]
    MinusOneToOne,
    /// The means and standard deviations of ImageNet's red, green and blue.
    Imagenet,
    /// (byte / 255 - mean) / std, one of each a channel.
    PerChannel {
        /// Means, in units of byte / 255.
        mean: Vec<f64>,
        /// Standard deviations, in units of byte / 255.
        std: Vec<f64>,
    },
}

impl Normalisation {
    /// The mapping that `ddpm-image` does and checkpoints record.
    ///
    /// # Errors
    /// A mean or deviation is impossible.
    pub fn pixel_map(&self) -> Result<PixelMap> {
        let map = match self {
            Self::MinusOneToOne => Ok(PixelMap::MinusOneToOne),
            Self::Imagenet => PixelMap::per_channel(IMAGENET_MEAN.to_vec(), IMAGENET_STD.to_vec()),
            Self::PerChannel { mean, std } => PixelMap::per_channel(mean.clone(), std.clone()),
        };
        map.map_err(|e| wrong("data.normalisation", format!("cannot be: {e}")))
    }
}

/// Of ImageNet's training images, in units of byte / 255: the numbers that its classifiers are fed with.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// Likewise.
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

impl TryFrom<Value> for Normalisation {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct PerChannel {
            mean: Vec<f64>,
            std: Vec<f64>,
        }
        const EXPECTED: &str =
            "expected `minus-one-to-one`, `imagenet`, or `{ mean = [...], std = [...] }`";
        match value {
            Value::String(name) if name == "minus-one-to-one" => Ok(Self::MinusOneToOne),
            Value::String(name) if name == "imagenet" => Ok(Self::Imagenet),
            Value::Table(_) => value
                .try_into::<PerChannel>()
                .map(|PerChannel { mean, std }| Self::PerChannel { mean, std })
                .map_err(|e| format!("{}; {EXPECTED}", e.message())),
            other => Err(format!("found {other}; {EXPECTED}")),
        }
    }
}

impl From<Normalisation> for Value {
    fn from(normalisation: Normalisation) -> Self {
        match normalisation {
            Normalisation::MinusOneToOne => "minus-one-to-one".into(),
            Normalisation::Imagenet => "imagenet".into(),
            Normalisation::PerChannel { mean, std } => {
                let pair = [("mean", mean), ("std", std)];
                Value::Table(
                    pair.map(|(key, list)| (key.to_owned(), list.into()))
                        .into_iter()
                        .collect(),
                )
            }
        }
    }
}

/// A height and a width, written as one number where they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Sides {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl TryFrom<Value> for Sides {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        let side = |value: &Value| value.as_integer().and_then(|n| usize::try_from(n).ok());
        let sides = match &value {
            Value::Array(sides) if sides.len() == 2 => (side(&sides[0]), side(&sides[1])),
            one => (side(one), side(one)),
        };
        match sides {
            (Some(height), Some(width)) => Ok(Self { height, width }),
            _ => Err(format!(
                "found {value}; expected one number of pixels, or [height, width]"
            )),
        }
    }
}

impl From<Sides> for Value {
    fn from(sides: Sides) -> Self {
        let (height, width) = (sides.height as i64, sides.width as i64);
        if height == width {
            height.into()
        } else {
            vec![height, width].into()
        }
    }
}

/// The largest side that an image may be given; a typing error would ask for all memory.
const MAX_SIDE: usize = 4096;

impl DataSettings {
    /// What pictures are made into.
    pub fn pictures(&self) -> Pictures {
        let sides = |sides: Sides| (sides.height, sides.width);
        Pictures {
            size: self.size.map(sides),
            cover: self.cover.map(sides),
            filter: self.filter.unwrap_or_default(),
            crop: self.crop.unwrap_or_default(),
            color: self.color.unwrap_or_default(),
            background: self.background.unwrap_or_default(),
            skip_unreadable: self.skip_unreadable,
        }
    }

    /// Where decoded images are kept.
    pub fn keep(&self) -> Keep {
        Keep {
            memory: self.memory.map(|mib| mib.saturating_mul(1 << 20)),
            cache: self.cache.clone(),
        }
    }

    fn check(&self) -> Result<()> {
        for (key, sides) in [("data.size", self.size), ("data.cover", self.cover)] {
            let Some(Sides { height, width }) = sides else {
                continue;
            };
            if height.min(width) == 0 || height.max(width) > MAX_SIDE {
                let problem =
                    format!("is {height}x{width}; each side must be 1 to {MAX_SIDE} pixels");
                return Err(wrong(key, problem));
            }
        }
        let sized = self.size.is_some();
        only_with("data.filter", sized || self.filter.is_none(), "`data.size`")?;
        only_with("data.crop", sized || self.crop.is_none(), "`data.size`")?;
        only_with("data.cover", sized || self.cover.is_none(), "`data.size`")?;
        if let (Some(cover), Some(size)) = (self.cover, self.size) {
            let cropped = self.crop != Some(Crop::Stretch) || cover == size;
            only_with("data.cover", cropped, "`data.crop` `centre` or `random`")?;
            if cover.height < size.height || cover.width < size.width {
                let problem = format!(
                    "is {}x{}, smaller than `data.size` = {}x{}",
                    cover.height, cover.width, size.height, size.width
                );
                return Err(wrong("data.cover", problem));
            }
        }
        self.normalisation.pixel_map().map(drop)
    }

    /// The first key that only goes with pictures.
    fn picture_key(&self) -> Option<&'static str> {
        let given = [
            ("data.size", self.size.is_some()),
            ("data.cover", self.cover.is_some()),
            ("data.filter", self.filter.is_some()),
            ("data.crop", self.crop.is_some()),
            ("data.color", self.color.is_some()),
            ("data.background", self.background.is_some()),
            ("data.skip_unreadable", self.skip_unreadable),
            ("data.memory", self.memory.is_some()),
            ("data.cache", self.cache.is_some()),
        ];
        given
            .into_iter()
            .find_map(|(key, given)| given.then_some(key))
    }
}

/// Section `[model]`: the keys of diffusers' `UNet2DModel`; size and channels come from the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Channels of each level; the image is halved from one level to the next.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level.
    pub layers_per_block: usize,
    /// `DownBlock2D`, `AttnDownBlock2D`, `ResnetDownsampleBlock2D`, `SkipDownBlock2D` or `AttnSkipDownBlock2D` for each level.
    pub down_block_types: Vec<String>,
    /// `UpBlock2D`, `AttnUpBlock2D` and so on, from the smallest level up; left out: the mirror of `down_block_types`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_block_types: Option<Vec<String>>,
    /// Attention between the way down and the way up.
    pub add_attention: bool,
    /// Channels of one attention head; left out: a single head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_head_dim: Option<usize>,
    /// Groups of every group normalisation; must divide every level's channels.
    pub norm_num_groups: usize,
    /// Added to the variance in group normalisation.
    pub norm_eps: f64,
    /// Fraction of the activations dropped in each residual block while training.
    pub dropout: f64,
    /// 0: pad right and below before halving (DDPM); 1: all around.
    pub downsample_padding: usize,
    /// Cosines before sines in the time embedding (DDPM: no).
    pub flip_sin_to_cos: bool,
    /// 1: the frequencies divide by half - 1 (DDPM); 0: by half.
    pub freq_shift: usize,
    /// How time enters a residual block: `default` (added) or `scale_shift`.
    pub resnet_time_scale_shift: String,
    /// The activation of residual blocks: `silu`, `mish`, `gelu` or `relu`; left out: silu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_fn: Option<String>,
    /// What halves after attention blocks: `conv` or `resnet`; left out: conv.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downsample_type: Option<String>,
    /// What doubles after attention blocks: `conv` or `resnet`; left out: conv.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upsample_type: Option<String>,
    /// Width of the time embedding; left out: four times the first level's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_embedding_dim: Option<usize>,
    /// Groups of the attention in the middle; left out: `norm_num_groups`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attn_norm_num_groups: Option<usize>,
    /// What the middle divides its residual sums by; left out: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mid_block_scale_factor: Option<f64>,
    /// Divide every residual sum by the square root of 2, which diffusers does not know; left out: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescale_residuals: Option<bool>,
    /// As many heads at every level that has attention, however wide, which diffusers does not know; in place of
    /// `attention_head_dim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_heads: Option<usize>,
    /// With `attention_heads`: how many on the way up; left out: as many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_heads_up: Option<usize>,
    /// Make the convolutions of shortcuts 3 by 3, which diffusers does not know; left out: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wide_shortcuts: Option<bool>,
    /// Halve and double without convolutions, which diffusers does not know; left out: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain_resampling: Option<bool>,
    /// What the network is told in place of t is t times this, which diffusers does not know; left out: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_scale: Option<f64>,
    /// How many sinusoids tell the time, which diffusers does not know; left out: as many as the first level has channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_width: Option<usize>,
    /// How the weights begin: as Ho et al.'s or as PyTorch's.
    pub initialisation: InitialisationKind,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            block_out_channels: vec![32, 64, 128],
            layers_per_block: 2,
            down_block_types: ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]
                .map(String::from)
                .to_vec(),
            up_block_types: None,
            add_attention: true,
            attention_head_dim: None,
            norm_num_groups: 32,
            norm_eps: 1e-6,
            dropout: 0.0,
            downsample_padding: 0,
            flip_sin_to_cos: false,
            freq_shift: 1,
            resnet_time_scale_shift: "default".into(),
            act_fn: None,
            downsample_type: None,
            upsample_type: None,
            time_embedding_dim: None,
            attn_norm_num_groups: None,
            mid_block_scale_factor: None,
            rescale_residuals: None,
            attention_heads: None,
            attention_heads_up: None,
            wide_shortcuts: None,
            plain_resampling: None,
            timestep_scale: None,
            timestep_width: None,
            initialisation: InitialisationKind::Ho,
        }
    }
}

/// Where the weights begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitialisationKind {
    /// Ho et al. 2020: fan-average uniform, the last convolution of each block almost zero.
    Ho,
    /// PyTorch's defaults, as diffusers.
    Pytorch,
    /// PyTorch's own numbers, those of `torch.manual_seed(train.seed)` and then diffusers' constructor.
    Torch,
}

/// Section `[diffusion]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffusionSettings {
    /// T, the number of steps from image to noise.
    pub timesteps: usize,
    /// The shape of beta_1 .. beta_T.
    pub schedule: ScheduleKind,
    /// beta_1, for the schedules that have one; left out: 1e-4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_start: Option<f64>,
    /// beta_T, for the schedules that have one; left out: 0.02.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_end: Option<f64>,
    /// Rescale the schedule so that x_T is noise alone (Lin et al. 2023).
    pub zero_terminal_snr: bool,
    /// What the network predicts.
    pub prediction: PredictionKind,
    /// The variance of the ancestral sampler, recorded with the model.
    pub variance: VarianceKind,
    /// How far the prediction is from its target.
    pub loss: LossKind,
    /// Where Huber's loss turns from squares to absolute values; only with `loss = "huber"`, left out: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huber_delta: Option<f64>,
    /// How much each t counts.
    pub weighting: WeightingKind,
    /// Gamma of `min-snr` (left out: 5) or `p2` (left out: 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weighting_gamma: Option<f64>,
    /// k of `p2`; left out: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weighting_k: Option<f64>,
}

impl Default for DiffusionSettings {
    fn default() -> Self {
        Self {
            timesteps: 1000,
            schedule: ScheduleKind::Linear,
            beta_start: None,
            beta_end: None,
            zero_terminal_snr: false,
            prediction: PredictionKind::Noise,
            variance: VarianceKind::FixedLarge,
            loss: LossKind::Mse,
            huber_delta: None,
            weighting: WeightingKind::Uniform,
            weighting_gamma: None,
            weighting_k: None,
        }
    }
}

/// The schedules of `ddpm_core::Schedule` that a setting can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Linear from beta_start to beta_end (Ho et al. 2020).
    Linear,
    /// Linear, 1e-4 to 0.02 scaled by 1000 / T, so that x_T is noise for any T.
    LinearScaled,
    /// Linear in the square root of beta (latent diffusion).
    ScaledLinear,
    /// The same curve by the name that Ho's code has for it.
    Quadratic,
    /// Nichol and Dhariwal 2021.
    Cosine,
    /// diffusers' `sigmoid`: beta along a sigmoid.
    Sigmoid,
    /// alpha-bar along a sigmoid (Jabri et al. 2022).
    AlphaBarSigmoid,
    /// Hang et al. 2024.
    Laplace,
    /// beta_t = 1 / (T - t + 1) (Sohl-Dickstein et al. 2015).
    Jsd,
    /// Every beta is beta_end (Ho's `const`).
    Constant,
    /// Linear over the first tenth of the steps, then beta_end (Ho's `warmup10`).
    #[serde(rename = "warm-up-10")]
    WarmUp10,
    /// Linear over the first half of the steps, then beta_end (Ho's `warmup50`).
    #[serde(rename = "warm-up-50")]
    WarmUp50,
}

impl ScheduleKind {
    fn has_beta_start(self) -> bool {
        self.has_beta_end() && self != Self::Constant
    }

    fn has_beta_end(self) -> bool {
        match self {
            Self::Linear | Self::ScaledLinear | Self::Quadratic | Self::Sigmoid => true,
            Self::Constant | Self::WarmUp10 | Self::WarmUp50 => true,
            Self::LinearScaled | Self::Cosine | Self::AlphaBarSigmoid => false,
            Self::Laplace | Self::Jsd => false,
        }
    }
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PredictionKind {
    /// The noise in x_t.
    Noise,
    /// The clean image.
    Original,
    /// v (Salimans and Ho 2022).
    Velocity,
}

/// The variance of the ancestral sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VarianceKind {
    /// beta_t.
    FixedLarge,
    /// beta-tilde_t.
    FixedSmall,
}

/// The distance between prediction and target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Mean of squares.
    Mse,
    /// Mean of absolute values.
    L1,
    /// Huber's.
    Huber,
}

/// How much each t counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightingKind {
    /// All alike (equation 14).
    Uniform,
    /// By the signal-to-noise ratio.
    Snr,
    /// Hang et al. 2023.
    MinSnr,
    /// Choi et al. 2022.
    P2,
}

/// Section `[optimizer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerSettings {
    /// `adam` or `adamw`.
    pub name: OptimizerKind,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// What the learning rate does after the warm-up.
    pub decay: Decay,
    /// The step at which the decay reaches 0; left out: `train.steps` as the run began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<usize>,
    /// Memory of the gradient's mean.
    pub beta_1: f64,
    /// Memory of the gradient's square.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, AdamW's only.
    pub weight_decay: f64,
    /// The global norm that gradients are clipped to; 0: not clipped.
    pub gradient_clip: f64,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            name: OptimizerKind::Adam,
            learning_rate: 2e-4,
            warm_up: 500,
            decay: Decay::Constant,
            decay_steps: None,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            gradient_clip: 1.0,
        }
    }
}

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// Kingma and Ba 2015.
    Adam,
    /// Loshchilov and Hutter 2019: weight decay apart from the gradient.
    Adamw,
}

/// Section `[ema]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmaSettings {
    /// One average for each rate. The first is the one that samples and the saved pipeline use; none: the raw
    /// weights are used.
    pub rates: Vec<f64>,
    /// How a young average is kept from remembering the random start.
    pub warm_up: EmaWarmUp,
}

impl Default for EmaSettings {
    fn default() -> Self {
        Self {
            rates: vec![0.9999],
            warm_up: EmaWarmUp::Ratio,
        }
    }
}

/// Section `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Optimiser steps in all; left out: no limit (then `minutes` must be there).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Minutes of training in all, counted over every resume; left out: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minutes: Option<f64>,
    /// Images of one optimiser step.
    pub batch_size: usize,
    /// Images that go through the network at once; must divide `batch_size`; left out: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// The seed of everything that is drawn.
    pub seed: u64,
    /// Steps between checkpoints; 0: only at the end.
    pub checkpoint_every: usize,
    /// How many checkpoints are kept, the newest.
    pub keep_last: usize,
    /// Steps between measurements of the held-out loss; 0: only at the end.
    pub held_out_every: usize,
    /// How many images of the test split the held-out loss is measured on; 0: never measured.
    pub held_out_images: usize,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: usize,
    /// Write event files for TensorBoard.
    pub tensorboard: bool,
    /// Steps between histograms of weights and gradients in the event files; 0: none.
    pub histograms_every: usize,
    /// Make `report.html` at the end.
    pub report: bool,
    /// Threads; 0: as many as the machine has.
    pub threads: usize,
    /// Refuse to start what would not fit into memory.
    pub check_memory: bool,
    /// Where the network computes: `auto` (the first NVIDIA card that can be used, else the CPU), `cpu`, `cuda` or `cuda:N`.
    #[serde(with = "by_name")]
    pub device: DeviceName,
    /// Let a card round the factors of products to TF32, 10 bits, as its matrix units are made for: faster and rougher.
    pub tf32: bool,
    /// Have a card's convolutions give the same bits every time; without it, whichever algorithms are the fastest.
    pub deterministic: bool,
    /// What the network computes in, recorded as what it came to; weights and optimiser are f32 in any case.
    pub precision: PrecisionName,
    /// Keep of each block only what it hands on, and compute the rest again for its gradients: less memory, more time, the
    /// same model to the bit.
    pub gradient_checkpointing: bool,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            steps: None,
            minutes: None,
            batch_size: 64,
            micro_batch: None,
            seed: 0,
            checkpoint_every: 500,
            keep_last: 3,
            held_out_every: 500,
            held_out_images: 256,
            log_every: 1,
            tensorboard: true,
            histograms_every: 500,
            report: true,
            threads: 0,
            check_memory: true,
            device: DeviceName::Auto,
            tf32: false,
            deterministic: true,
            precision: PrecisionName::F32,
            gradient_checkpointing: false,
        }
    }
}

/// Section `[samples]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleSettings {
    /// Steps between pictures; 0: only at the end.
    pub every: usize,
    /// Images of a picture; 0: no pictures.
    pub count: usize,
    /// DDIM steps (eta 0).
    pub steps: usize,
    /// The seed of the noise that every picture of the run starts from.
    pub seed: u64,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self {
            every: 500,
            count: 64,
            steps: 50,
            seed: 0,
        }
    }
}

/// Keys that a resumed run may change; all others would make it another run.
const RESUMABLE: [&str; 19] = [
    "data.directory",
    "data.memory",
    "data.cache",
    "train.steps",
    "train.minutes",
    "train.checkpoint_every",
    "train.keep_last",
    "train.held_out_every",
    "train.log_every",
    "train.tensorboard",
    "train.histograms_every",
    "train.report",
    "train.threads",
    "train.check_memory",
    "train.device",
    "train.tf32",
    "train.deterministic",
    "train.gradient_checkpointing",
    "samples.every",
];

/// One source of settings: a preset, a file, a flag.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What error messages call it: `preset digits`, `my.toml`, `--steps 5`.
    pub place: String,
    table: Table,
    /// A key, as section and name, that the layers below lose.
    lifted: Option<(&'static str, &'static str)>,
}

impl Layer {
    /// Reads a whole TOML text. Errors name `place`, line and key.
    pub fn from_text(place: &str, text: &str) -> Result<Self> {
        let wrong = |e: toml::de::Error| Error::Layer {
            place: place.into(),
            problem: e.to_string().trim_end().into(),
        };
        let table = toml::from_str::<Table>(text).map_err(wrong)?;
        toml::from_str::<Settings>(text).map_err(wrong)?;
        Ok(Self {
            place: place.into(),
            table,
            lifted: None,
        })
    }

    /// One key, `section.key`, with its value.
    pub fn one(place: String, key: &str, value: impl Into<Value>) -> Result<Self> {
        let Some((section, key)) = key
            .split_once('.')
            .filter(|(_, k)| !k.is_empty() && !k.contains('.'))
        else {
            return Err(Error::Layer {
                place,
                problem: format!("`{key}` is not of the form SECTION.KEY"),
            });
        };
        let inner = Table::from_iter([(key.to_string(), value.into())]);
        Ok(Self {
            place,
            table: Table::from_iter([(section.to_string(), Value::Table(inner))]),
            lifted: None,
        })
    }

    /// One `--set KEY=VALUE`; the value is TOML, or a bare word taken as a string.
    pub fn from_assignment(text: &str) -> Result<Self> {
        let place = format!("--set {text}");
        let Some((key, value)) = text.split_once('=') else {
            return Err(Error::Layer {
                place,
                problem: "expected KEY=VALUE, as in --set train.seed=1".into(),
            });
        };
        let value = value.trim();
        let parsed = toml::from_str::<Table>(&format!("v = {value}"))
            .ok()
            .and_then(|mut t| t.remove("v"));
        Self::one(
            place,
            key.trim(),
            parsed.unwrap_or_else(|| Value::String(value.into())),
        )
    }

    /// The same without these sections.
    pub fn without(mut self, sections: &[&str]) -> Self {
        for section in sections {
            self.table.remove(*section);
        }
        self
    }

    /// Takes a key out of the layers below.
    pub fn lift(place: String, section: &'static str, key: &'static str) -> Self {
        Self {
            place,
            table: Table::new(),
            lifted: Some((section, key)),
        }
    }
}

/// More steps of a schedule than anybody trains with; a typing error would ask for all memory.
const MAX_STEPS: usize = 1_000_000;
/// Deeper and wider networks than anybody trains, for the same reason.
const MAX_LEVELS: usize = 16;
const MAX_LAYERS: usize = 256;
const MAX_CHANNELS: usize = 65_536;

impl Settings {
    /// Lays the layers over one another, the last on top. An unknown key or a wrong type names the layer.
    pub fn from_layers(layers: &[Layer]) -> Result<Self> {
        let mut merged = Table::new();
        let mut settings = Self::default();
        for layer in layers {
            lay_over(&mut merged, layer);
            settings = merged
                .clone()
                .try_into()
                .map_err(|e: toml::de::Error| Error::Layer {
                    place: layer.place.clone(),
                    problem: e.to_string().trim_end().replace('\n', " "),
                })?;
        }
        Ok(settings)
    }

    /// Fills in what was left out and depends on other keys, so that the recorded settings say everything.
    pub fn resolved(mut self) -> Self {
        let d = &mut self.diffusion;
        if d.schedule.has_beta_start() {
            d.beta_start.get_or_insert(1e-4);
        }
        if d.schedule.has_beta_end() {
            d.beta_end.get_or_insert(0.02);
        }
        if d.loss == LossKind::Huber {
            d.huber_delta.get_or_insert(1.0);
        }
        match d.weighting {
            WeightingKind::MinSnr => {
                d.weighting_gamma.get_or_insert(5.0);
            }
            WeightingKind::P2 => {
                d.weighting_gamma.get_or_insert(1.0);
                d.weighting_k.get_or_insert(1.0);
            }
            WeightingKind::Uniform | WeightingKind::Snr => {}
        }
        if self.optimizer.decay != Decay::Constant && self.optimizer.decay_steps.is_none() {
            self.optimizer.decay_steps = self.train.steps;
        }
        self.train.micro_batch.get_or_insert(self.train.batch_size);
        let spec = self.data.name.parse::<DataSpec>();
        if spec.is_ok_and(|spec| spec.has_pictures()) {
            let d = &mut self.data;
            d.color.get_or_insert_default();
            d.background.get_or_insert_default();
            if let Some(size) = d.size {
                d.filter.get_or_insert_default();
                d.crop.get_or_insert_default();
                d.cover.get_or_insert(size);
            }
        }
        self.train.precision = match self.train.precision {
            PrecisionName::Auto
                if self.goes_by_graph()
                    || is_a_card(self.train.device)
                    || self.unplanned().is_some() =>
            {
                PrecisionName::F32
            }
            precision => precision.on_this_processor().into(),
        };
        let mirror = || {
            self.model
                .down_block_types
                .iter()
                .rev()
                .map(|d| mirrored(d))
                .collect()
        };
        if self.model.up_block_types.is_none() {
            self.model.up_block_types = Some(mirror());
        }
        self
    }

    /// Checks everything that can be checked without the data. Call on [resolved](Settings::resolved) settings.
    pub fn check(&self) -> Result<()> {
        if self.data.name.is_empty() {
            return Err(wrong(
                "data.name",
                "is missing: say what to learn from, as in --data digits".into(),
            ));
        }
        self.data.check()?;
        self.check_model()?;
        self.check_diffusion()?;
        self.check_optimizer()?;
        self.check_train()
    }

    /// The data set that `data.name` names. Images from elsewhere may be called anything: not part of
    /// [`Settings::check`].
    ///
    /// # Errors
    /// Nothing has that name, or `data.directory` would be ignored.
    pub fn data_spec(&self) -> Result<DataSpec> {
        let spec: DataSpec = self.data.name.parse()?;
        let found_without = match spec {
            DataSpec::Digits => Some("data that are files: digits are inside the program"),
            DataSpec::Folder(_) => Some("data that have a name: a folder is where its path says"),
            DataSpec::Parquet(_) => {
                Some("data that have a name: parquet files are where their path says")
            }
            _ => None,
        };
        if let (false, Some(key)) = (spec.has_pictures(), self.data.picture_key()) {
            let problem = format!(
                "only goes with pictures, as in folder:PATH; the images of {spec} are as their files have them"
            );
            return Err(wrong(key, problem));
        }
        if let (Some(why), Some(_)) = (found_without, &self.data.directory) {
            let problem = format!("(--data-dir) only goes with {why}");
            return Err(wrong("data.directory", problem));
        }
        Ok(spec)
    }

    /// Checks the settings against the data: `images` of height x width x channels.
    pub fn check_data(
        &self,
        images: usize,
        (channels, height, width): (usize, usize, usize),
    ) -> Result<()> {
        if self.train.batch_size > images {
            let (batch, name) = (self.train.batch_size, &self.data.name);
            return Err(wrong(
                "train.batch_size",
                format!("is {batch}, but {name} has only {images} images"),
            ));
        }
        self.data
            .normalisation
            .pixel_map()?
            .check(channels)
            .map_err(|e| {
                wrong(
                    "data.normalisation",
                    format!("does not fit {}: {e}", self.data.name),
                )
            })?;
        let config = self.unet_config(channels, height, width)?;
        if self.train.gradient_checkpointing && !config.learns_by_plan()? {
            let problem = "is for networks that are trained by a plan: plain, attention and convolution blocks with SiLU";
            return Err(wrong("train.gradient_checkpointing", problem.into()));
        }
        if let (PrecisionName::Bf16, Some(why)) = (self.train.precision, self.unplanned()) {
            let problem =
                format!("is bf16, but the network has {why}, for which there is only f32");
            return Err(wrong("train.precision", problem));
        }
        config.check_image(height, width).map_err(|e| {
            wrong(
                "model.block_out_channels",
                format!("does not fit the images of {}: {e}", self.data.name),
            )
        })
    }

    /// Whether an optimiser step is a single pass, whose gradients are not added up.
    pub(crate) fn one_pass_a_step(&self) -> bool {
        let train = &self.train;
        train.micro_batch.unwrap_or(train.batch_size) >= train.batch_size
    }

    /// What of the network makes its training go operation by operation instead of by plan, in words
    /// ([`UNetConfig::unplanned`]); none where it goes by plan, or where the settings make no network.
    pub fn unplanned(&self) -> Option<String> {
        let halvings = self.model.block_out_channels.len().saturating_sub(1);
        let side = 1usize.checked_shl(halvings.try_into().ok()?)?;
        let config = self.unet_config(3, side, side).ok()?;
        let training = Use::Training {
            averages: 0,
            recompute: false,
            in_one_pass: false,
        };
        config.unplanned(training).ok()?
    }

    /// The network's configuration for images of this shape.
    pub fn unet_config(&self, channels: usize, height: usize, width: usize) -> Result<UNetConfig> {
        let m = &self.model;
        let sample_size = if height == width {
            serde_json::json!(height)
        } else {
            serde_json::json!([height, width])
        };
        let ups = m.up_block_types.clone();
        let ups = ups.unwrap_or_else(|| {
            m.down_block_types
                .iter()
                .rev()
                .map(|d| mirrored(d))
                .collect()
        });
        let mut json = serde_json::json!({
            "sample_size": sample_size, "in_channels": channels, "out_channels": channels,
            "block_out_channels": m.block_out_channels, "layers_per_block": m.layers_per_block,
            "down_block_types": m.down_block_types, "up_block_types": ups,
            "add_attention": m.add_attention, "attention_head_dim": m.attention_head_dim,
            "norm_num_groups": m.norm_num_groups, "norm_eps": m.norm_eps, "dropout": m.dropout,
            "downsample_padding": m.downsample_padding,
            "flip_sin_to_cos": m.flip_sin_to_cos,
            "freq_shift": m.freq_shift, "resnet_time_scale_shift": m.resnet_time_scale_shift,
        });
        // What is left out has diffusers' default.
        let given = [
            ("act_fn", m.act_fn.clone().map(Into::into)),
            ("downsample_type", m.downsample_type.clone().map(Into::into)),
            ("upsample_type", m.upsample_type.clone().map(Into::into)),
            ("time_embedding_dim", m.time_embedding_dim.map(Into::into)),
            (
                "attn_norm_num_groups",
                m.attn_norm_num_groups.map(Into::into),
            ),
            (
                "mid_block_scale_factor",
                m.mid_block_scale_factor.map(Into::into),
            ),
            ("rescale_residuals", m.rescale_residuals.map(Into::into)),
            ("attention_heads", m.attention_heads.map(Into::into)),
            ("attention_heads_up", m.attention_heads_up.map(Into::into)),
            ("wide_shortcuts", m.wide_shortcuts.map(Into::into)),
            ("plain_resampling", m.plain_resampling.map(Into::into)),
            ("timestep_scale", m.timestep_scale.map(Into::into)),
            ("timestep_width", m.timestep_width.map(Into::into)),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                json[key] = value;
            }
        }
        UNetConfig::from_json(&json.to_string()).map_err(|e| wrong("model", e.to_string()))
    }

    /// The first key (with both values) that differs from `other` and that a resumed run may not change.
    pub fn first_forbidden_change(&self, other: &Self) -> Result<Option<(String, String, String)>> {
        let (old, new) = (self.to_table()?, other.to_table()?);
        let sections: Vec<_> = old.keys().collect();
        for section in sections {
            let inner = |t: &Table| {
                t.get(section)
                    .and_then(Value::as_table)
                    .cloned()
                    .unwrap_or_default()
            };
            let (old, new) = (inner(&old), inner(&new));
            let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
            keys.sort();
            for key in keys {
                let name = format!("{section}.{key}");
                if old.get(key) != new.get(key) && !RESUMABLE.contains(&name.as_str()) {
                    let show = |t: &Table| t.get(key).map_or("unset".into(), Value::to_string);
                    return Ok(Some((name, show(&old), show(&new))));
                }
            }
        }
        Ok(None)
    }

    /// The settings as a TOML table, section by section.
    pub fn to_table(&self) -> Result<Table> {
        Table::try_from(self).map_err(|e| Error::Layer {
            place: "settings".into(),
            problem: e.to_string(),
        })
    }

    /// The settings as TOML text.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Layer {
            place: "settings".into(),
            problem: e.to_string(),
        })
    }

    fn check_model(&self) -> Result<()> {
        let m = &self.model;
        let levels = m.block_out_channels.len();
        if levels == 0 || m.block_out_channels.contains(&0) {
            return Err(wrong(
                "model.block_out_channels",
                "needs at least one level and no zeros".into(),
            ));
        }
        for (key, n, most) in [
            ("model.block_out_channels", levels, MAX_LEVELS),
            ("model.layers_per_block", m.layers_per_block, MAX_LAYERS),
        ] {
            if n > most {
                return Err(wrong(key, format!("is {n} deep, expected at most {most}")));
            }
        }
        if let Some(c) = m.block_out_channels.iter().find(|c| **c > MAX_CHANNELS) {
            let problem = format!("has a level of {c} channels, expected at most {MAX_CHANNELS}");
            return Err(wrong("model.block_out_channels", problem));
        }
        let same_length = |key: &str, n: usize| {
            let text =
                format!("has {n} entries, but `model.block_out_channels` has {levels} levels");
            if n == levels {
                Ok(())
            } else {
                Err(wrong(key, text))
            }
        };
        same_length("model.down_block_types", m.down_block_types.len())?;
        if let Some(ups) = &m.up_block_types {
            same_length("model.up_block_types", ups.len())?;
        }
        let groups = m.norm_num_groups;
        if let Some(c) = m
            .block_out_channels
            .iter()
            .find(|c| groups == 0 || !c.is_multiple_of(groups))
        {
            return Err(wrong(
                "model.norm_num_groups",
                format!("is {groups}, which does not divide the {c} channels of a level"),
            ));
        }
        at_least_1("model.layers_per_block", m.layers_per_block)?;
        in_range(
            "model.dropout",
            m.dropout,
            (0.0..1.0).contains(&m.dropout),
            "at least 0 and below 1",
        )
    }

    fn check_diffusion(&self) -> Result<()> {
        let d = &self.diffusion;
        at_least_1("diffusion.timesteps", d.timesteps)?;
        if d.timesteps > MAX_STEPS {
            let problem = format!("is {}, expected at most {MAX_STEPS}", d.timesteps);
            return Err(wrong("diffusion.timesteps", problem));
        }
        let (start, end) = (d.schedule.has_beta_start(), d.schedule.has_beta_end());
        for (key, beta, has) in [
            ("diffusion.beta_start", d.beta_start, start),
            ("diffusion.beta_end", d.beta_end, end),
        ] {
            let Some(beta) = beta else { continue };
            only_with(key, has, "a `diffusion.schedule` that has one")?;
            in_range(
                key,
                beta,
                beta > 0.0 && beta <= 1.0,
                "above 0 and at most 1",
            )?;
        }
        if let Some(delta) = d.huber_delta {
            only_with(
                "diffusion.huber_delta",
                d.loss == LossKind::Huber,
                "`diffusion.loss = \"huber\"`",
            )?;
            in_range(
                "diffusion.huber_delta",
                delta,
                delta > 0.0 && delta.is_finite(),
                "above 0",
            )?;
        }
        if let Some(gamma) = d.weighting_gamma {
            let has_gamma = matches!(d.weighting, WeightingKind::MinSnr | WeightingKind::P2);
            only_with(
                "diffusion.weighting_gamma",
                has_gamma,
                "`diffusion.weighting` `min-snr` or `p2`",
            )?;
            in_range(
                "diffusion.weighting_gamma",
                gamma,
                gamma > 0.0 && gamma.is_finite(),
                "above 0",
            )?;
        }
        if let Some(k) = d.weighting_k {
            only_with(
                "diffusion.weighting_k",
                d.weighting == WeightingKind::P2,
                "`diffusion.weighting = \"p2\"`",
            )?;
            in_range(
                "diffusion.weighting_k",
                k,
                k > 0.0 && k.is_finite(),
                "above 0",
            )?;
        }
        Ok(())
    }

    fn check_optimizer(&self) -> Result<()> {
        let o = &self.optimizer;
        let finite_positive = |x: f64| x > 0.0 && x.is_finite();
        in_range(
            "optimizer.learning_rate",
            o.learning_rate,
            finite_positive(o.learning_rate),
            "above 0",
        )?;
        in_range(
            "optimizer.epsilon",
            o.epsilon,
            finite_positive(o.epsilon),
            "above 0",
        )?;
        for (key, beta) in [
            ("optimizer.beta_1", o.beta_1),
            ("optimizer.beta_2", o.beta_2),
        ] {
            in_range(
                key,
                beta,
                (0.0..1.0).contains(&beta),
                "at least 0 and below 1",
            )?;
        }
        for (key, x) in [
            ("optimizer.weight_decay", o.weight_decay),
            ("optimizer.gradient_clip", o.gradient_clip),
        ] {
            in_range(key, x, x >= 0.0 && x.is_finite(), "at least 0")?;
        }
        if o.weight_decay != 0.0 {
            only_with(
                "optimizer.weight_decay",
                o.name == OptimizerKind::Adamw,
                "`optimizer.name = \"adamw\"`",
            )?;
        }
        match (o.decay, o.decay_steps) {
            (Decay::Constant, Some(_)) => only_with(
                "optimizer.decay_steps",
                false,
                "a decaying `optimizer.decay`",
            )?,
            (Decay::Constant, None) => {}
            (_, None) => {
                let text = "is missing: a decaying learning rate needs a length; give it, or `train.steps`";
                return Err(wrong("optimizer.decay_steps", text.into()));
            }
            (_, Some(n)) if n <= o.warm_up => {
                let text = format!(
                    "is {n}, which is not above `optimizer.warm_up` = {}",
                    o.warm_up
                );
                return Err(wrong("optimizer.decay_steps", text));
            }
            (_, Some(n)) if self.train.steps.is_none() => {
                let text = format!(
                    "is missing: after `optimizer.decay_steps` = {n} the learning rate is 0; give at most that many"
                );
                return Err(wrong("train.steps", text));
            }
            (_, Some(n)) if self.train.steps.is_some_and(|steps| steps > n) => {
                let text = format!(
                    "goes beyond `optimizer.decay_steps` = {n}, where the learning rate is 0; \
                     a new run can go on from its weights: --init RUN --out NEW_RUN"
                );
                return Err(wrong("train.steps", text));
            }
            (_, Some(_)) => {}
        }
        for rate in &self.ema.rates {
            in_range(
                "ema.rates",
                *rate,
                *rate > 0.0 && *rate < 1.0,
                "above 0 and below 1",
            )?;
        }
        let mut rates = self.ema.rates.clone();
        rates.sort_by(f64::total_cmp);
        match rates.windows(2).find(|w| w[0] == w[1]) {
            Some(pair) => Err(wrong("ema.rates", format!("holds {} twice", pair[0]))),
            None => Ok(()),
        }
    }

    /// What candle's graph cannot do is said, not left out.
    fn check_device(&self) -> Result<()> {
        if !self.goes_by_graph() {
            return Ok(());
        }
        let (t, device) = (&self.train, self.train.device);
        if t.precision == PrecisionName::Bf16 {
            let problem = format!(
                "is bf16, and `train.device` is {device}, whose operations are f32: --device cpu and a card have bf16"
            );
            return Err(wrong("train.precision", problem));
        }
        if t.gradient_checkpointing {
            let problem = format!(
                "is for plans, and with `train.device` = {device} there is none; a smaller train.micro_batch also takes less memory"
            );
            return Err(wrong("train.gradient_checkpointing", problem));
        }
        Ok(())
    }

    /// Whether the network goes operation by operation because of the device.
    pub(crate) fn goes_by_graph(&self) -> bool {
        self.train.device == DeviceName::CpuGraph
    }

    fn check_train(&self) -> Result<()> {
        let t = &self.train;
        match (t.steps, t.minutes) {
            (Some(0), _) => return Err(wrong("train.steps", "is 0; at least 1 is needed".into())),
            (None, None) => {
                return Err(wrong(
                    "train.steps",
                    "is missing: say when to stop, with --steps or --minutes".into(),
                ));
            }
            _ => {}
        }
        if let Some(minutes) = t.minutes {
            in_range(
                "train.minutes",
                minutes,
                minutes > 0.0 && minutes.is_finite(),
                "above 0",
            )?;
        }
        at_least_1("train.batch_size", t.batch_size)?;
        let micro = t.micro_batch.unwrap_or(t.batch_size);
        if micro == 0 || !t.batch_size.is_multiple_of(micro) {
            return Err(wrong(
                "train.micro_batch",
                format!(
                    "is {micro}, which does not divide `train.batch_size` = {}",
                    t.batch_size
                ),
            ));
        }
        for (key, seed) in [("train.seed", t.seed), ("samples.seed", self.samples.seed)] {
            if i64::try_from(seed).is_err() {
                return Err(wrong(
                    key,
                    format!("is {seed}; at most {} can be recorded", i64::MAX),
                ));
            }
        }
        self.check_device()?;
        at_least_1("train.keep_last", t.keep_last)?;
        at_least_1("train.log_every", t.log_every)?;
        at_least_1("samples.steps", self.samples.steps)?;
        if self.samples.steps > self.diffusion.timesteps {
            let text = format!(
                "is {}, more than `diffusion.timesteps` = {}",
                self.samples.steps, self.diffusion.timesteps
            );
            return Err(wrong("samples.steps", text));
        }
        Ok(())
    }
}

/// Devices in files.
mod by_name {
    use ddpm_unet::DeviceName;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(device: &DeviceName, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(device)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<DeviceName, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

fn lay_over(below: &mut Table, layer: &Layer) {
    if let Some((section, key)) = layer.lifted
        && let Some(Value::Table(section)) = below.get_mut(section)
    {
        section.remove(key);
    }
    for (section, value) in &layer.table {
        match (below.get_mut(section), value) {
            (Some(Value::Table(below)), Value::Table(above)) => below.extend(above.clone()),
            (_, value) => {
                below.insert(section.clone(), value.clone());
            }
        }
    }
}

fn mirrored(down: &str) -> String {
    down.replace("Down", "Up").replace("down", "up")
}

fn wrong(key: &str, problem: String) -> Error {
    Error::Setting {
        key: key.into(),
        problem,
    }
}

fn at_least_1(key: &str, n: usize) -> Result<()> {
    if n == 0 {
        Err(wrong(key, "is 0; at least 1 is needed".into()))
    } else {
        Ok(())
    }
}

fn in_range(key: &str, value: f64, holds: bool, expected: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(wrong(key, format!("is {value}; it must be {expected}")))
    }
}

fn only_with(key: &str, holds: bool, what: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(wrong(key, format!("only goes with {what}")))
    }
}
