//! What versions of lucidrains' `Unet` differ in, as settings, and what makes them a network.

use serde_json::json;

use crate::config::check_size;
use crate::keys::unsupported;
use crate::{Error, Result, SampleSize};

use super::architecture::Architecture;

/// What a `Unet` of lucidrains' looks like; the names are those of its arguments where it has some.
#[derive(Debug, Clone, PartialEq)]
pub struct LucidrainsSettings {
    /// The size of the images that the network was made for: recorded for samplers, does not change the network.
    pub sample_size: Option<SampleSize>,
    /// Channels of an image.
    pub channels: usize,
    /// Channels of the output: those of an image, or twice as many where it tells the variance.
    pub out_channels: usize,
    /// Whether the network is told, before the image, what it last took for the clean image (Chen et al. 2022,
    /// arXiv:2208.04202).
    pub self_condition: bool,
    /// Channels after the first convolution.
    pub init_dim: usize,
    /// Channels that each level hands down, from the full resolution: `dim` times `dim_mults`.
    pub level_dims: Vec<usize>,
    /// How the network is told the time.
    pub time: LucidrainsTime,
    /// Width of the time embedding.
    pub time_dim: usize,
    /// Whether a level's attention is softmax attention, one entry a level; linear otherwise. The middle's always is.
    pub full_attn: Vec<bool>,
    /// Heads of attention, one entry a level, then the middle's.
    pub attn_heads: Vec<usize>,
    /// Channels of a head, one entry a level, then the middle's.
    pub attn_dim_head: Vec<usize>,
    /// Learned keys and values that every attention has besides those of the pixels.
    pub num_mem_kv: usize,
    /// Groups of the normalisations in residual blocks; `None` is RMS normalisation of each pixel's channels.
    pub resnet_block_groups: Option<usize>,
    /// How the kernels of residual blocks are standardised.
    pub weight_standardization: Option<WeightStandardization>,
    /// The normalisation before attention, and after linear attention.
    pub attn_norm: AttentionNorm,
    /// Softmax attention between queries and keys of norm 1 over the pixels, times this; `None` is 1/sqrt(d).
    pub attn_cosine_scale: Option<f64>,
    /// Whether linear attention divides values by the number of pixels.
    pub linear_attn_mean: bool,
    /// What halves the image.
    pub halving: Halving,
}

/// How the network is told the time t.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LucidrainsTime {
    /// Sines, then cosines of t, `width` in all, at frequencies from 1 down to 1/`theta`.
    Sinusoidal {
        /// `dim`, even and at least 4.
        width: usize,
        /// `sinusoidal_pos_emb_theta`.
        theta: f64,
    },
    /// t itself, sines and cosines of t at frequencies that are a tensor of the network, learned or random.
    Fourier {
        /// `learned_sinusoidal_dim`: twice as many as frequencies.
        width: usize,
    },
}

/// Kernels with mean 0 and variance 1 (Qiao et al. 2019, arXiv:1903.10520).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightStandardization {
    /// 1e-5 is added to the variance (versions 0.27.3 to 1.7.0).
    Plus,
    /// The variance is at least 1e-5 (version 1.7.1).
    Clamp,
}

/// A normalisation of each pixel's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionNorm {
    /// To root mean square 1, times a gain (since version 1.7.0).
    Rms,
    /// To mean 0 and variance 1, times a gain.
    Layer,
    /// The same, plus a bias (before version 0.26.5).
    LayerBias,
}

/// What halves an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halving {
    /// 2x2 pixels become channels, then a 1x1 convolution (since version 0.32.0).
    Pixels,
    /// A 4x4 convolution of stride 2.
    Conv,
}

/// Settings that a network can be built from; only checked ones exist.
#[derive(Debug, Clone, PartialEq)]
pub struct LucidrainsConfig {
    settings: LucidrainsSettings,
}

impl Default for LucidrainsSettings {
    /// `Unet(dim = 64)` of version 2.
    fn default() -> Self {
        Self {
            sample_size: None,
            channels: 3,
            out_channels: 3,
            self_condition: false,
            init_dim: 64,
            level_dims: vec![64, 128, 256, 512],
            time: LucidrainsTime::Sinusoidal {
                width: 64,
                theta: 10_000.0,
            },
            time_dim: 256,
            full_attn: vec![false, false, false, true],
            attn_heads: vec![4; 5],
            attn_dim_head: vec![32; 5],
            num_mem_kv: 4,
            resnet_block_groups: None,
            weight_standardization: None,
            attn_norm: AttentionNorm::Rms,
            attn_cosine_scale: None,
            linear_attn_mean: false,
            halving: Halving::Pixels,
        }
    }
}

impl LucidrainsConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Value`] or [`Error::Groups`], naming the key.
    pub fn new(settings: LucidrainsSettings) -> Result<Self> {
        check(&settings)?;
        Ok(Self { settings })
    }

    /// The settings, all of which have passed the checks.
    pub fn settings(&self) -> &LucidrainsSettings {
        &self.settings
    }

    /// Names and shapes of the parameters, as version 2 names them.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        Architecture::new(&self.settings).parameters
    }

    /// Checks that images of this height and width suit the network's depth.
    ///
    /// # Errors
    /// [`Error::ImageSize`], which names the nearest sizes that work.
    pub fn check_image(&self, height: usize, width: usize) -> Result<()> {
        check_size(height, width, self.settings.level_dims.len())
    }
}

impl LucidrainsSettings {
    /// Channels that come into each level, and those that it hands down.
    pub(super) fn in_out(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + '_ {
        let into = std::iter::once(&self.init_dim).chain(&self.level_dims);
        let pairs: Vec<_> = into.copied().zip(self.level_dims.iter().copied()).collect();
        pairs.into_iter()
    }
}

/// The largest width, count or size: far beyond any network, small enough that no product overflows.
const LARGEST: usize = 65_536;
/// The most levels: images would have to be multiples of 32,768.
const MOST_LEVELS: usize = 16;

fn check(settings: &LucidrainsSettings) -> Result<()> {
    let levels = settings.level_dims.len();
    if !(1..=MOST_LEVELS).contains(&levels) {
        let supported = format!("1 to {MOST_LEVELS} levels");
        return Err(unsupported(
            "level_dims",
            &json!(settings.level_dims),
            &supported,
        ));
    }
    check_lists(settings, levels)?;
    check_numbers(settings)?;
    check_time(settings)?;
    if let Some(groups) = settings.resnet_block_groups {
        let widths = std::iter::once(&settings.init_dim).chain(&settings.level_dims);
        for (level, &channels) in widths.enumerate() {
            if channels % groups != 0 {
                return Err(Error::Groups {
                    key: "resnet_block_groups",
                    level: level.saturating_sub(1),
                    channels,
                    groups,
                });
            }
        }
    }
    Ok(())
}

fn check_lists(settings: &LucidrainsSettings, levels: usize) -> Result<()> {
    let lengths = [
        ("full_attn", settings.full_attn.len(), levels),
        ("attn_heads", settings.attn_heads.len(), levels + 1),
        ("attn_dim_head", settings.attn_dim_head.len(), levels + 1),
    ];
    match lengths.iter().find(|(_, length, right)| length != right) {
        None => Ok(()),
        Some((key, length, right)) => Err(unsupported(
            key,
            &json!(format!("a list of {length}")),
            &format!("a list of {right}, for {levels} levels"),
        )),
    }
}

fn check_numbers(settings: &LucidrainsSettings) -> Result<()> {
    let one = |key, value| (key, Some(value));
    let (height, width) = settings.sample_size.map(SampleSize::height_width).unzip();
    let wholes = [
        ("sample_size", height),
        ("sample_size", width),
        one("channels", settings.channels),
        one("out_channels", settings.out_channels),
        one("init_dim", settings.init_dim),
        one("time_dim", settings.time_dim),
        ("resnet_block_groups", settings.resnet_block_groups),
    ];
    let lists = [
        ("level_dims", &settings.level_dims),
        ("attn_heads", &settings.attn_heads),
        ("attn_dim_head", &settings.attn_dim_head),
    ];
    let listed = lists
        .into_iter()
        .flat_map(|(key, list)| list.iter().map(move |&value| (key, Some(value))));
    for (key, value) in wholes.into_iter().chain(listed) {
        if value.is_some_and(|value| !(1..=LARGEST).contains(&value)) {
            let supported = format!("whole numbers from 1 to {LARGEST}");
            return Err(unsupported(key, &json!(value), &supported));
        }
    }
    if settings.num_mem_kv > LARGEST {
        let supported = format!("whole numbers up to {LARGEST}");
        return Err(unsupported(
            "num_mem_kv",
            &json!(settings.num_mem_kv),
            &supported,
        ));
    }
    match settings.attn_cosine_scale {
        Some(scale) if !(scale > 0.0 && scale.is_finite()) => Err(unsupported(
            "attn_cosine_scale",
            &json!(scale),
            "null or a number above 0",
        )),
        _ => Ok(()),
    }
}

fn check_time(settings: &LucidrainsSettings) -> Result<()> {
    let (width, least) = match settings.time {
        LucidrainsTime::Sinusoidal { width, theta } => {
            if !(theta > 0.0 && theta.is_finite()) {
                return Err(unsupported("theta", &json!(theta), "numbers above 0"));
            }
            (width, 4)
        }
        LucidrainsTime::Fourier { width } => (width, 2),
    };
    match width % 2 == 0 && (least..=LARGEST).contains(&width) {
        true => Ok(()),
        false => Err(unsupported(
            "time_width",
            &json!(width),
            &format!("even numbers from {least} to {LARGEST}"),
        )),
    }
}
