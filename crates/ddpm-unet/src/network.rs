//! Any network that samples: diffusers' `UNet2DModel`, and others that are none.
//!
//! What only samples (`ddpm-sample`, model folders, the readers of others' files) asks a [`NetworkConfig`] and a [`Network`];
//! what trains asks for the [`UNetConfig`] in it ([`NetworkConfig::as_unet_2d`]) and says of others that it does not train them.
//!
//! A further network is
//! 1. a module with a configuration (settings that are checked; `from_keys` and `to_keys` of its JSON with a `_class_name` of
//!    its own, by [`crate::keys::Keys`]), its parameters' names and shapes, and a `forward`: [`crate::lucidrains`] is the example;
//! 2. a variant of [`NetworkConfig`] and of [`Network`] here, with an arm in each `match` below, which is all that the other
//!    crates ask: sizes, channels, names, what there is to say of plan and precision and of diffusers;
//! 3. for files of another program's: a converter in ddpm-checkpoint's `foreign`, which makes the [`NetworkConfig`], the
//!    scheduler and the new name of each tensor.

use std::fmt;

use candle_core::Tensor;
use ddpm_kernels::Precision;
use serde_json::{Map, Value};

use crate::k_diffusion::CLASS_NAME as K_DIFFUSION;
use crate::keys::{CLASS_KEY, CLASS_NAME as UNET_2D};
use crate::lucidrains::CLASS_NAME as LUCIDRAINS;
use crate::{
    ClassKind, Classes, Error, KDiffusionConfig, KDiffusionUNet, LucidrainsConfig, LucidrainsUNet,
    NamedTensors, Result, SampleSize, UNet, UNetConfig, Use,
};

/// A network's configuration, of any kind: what a model folder's `unet/config.json` says.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NetworkConfig {
    /// diffusers' `UNet2DModel`.
    UNet2D(UNetConfig),
    /// lucidrains' `Unet`.
    Lucidrains(LucidrainsConfig),
    /// k-diffusion's `image_v1`.
    KDiffusion(KDiffusionConfig),
}

/// A network with its weights, of any kind.
#[derive(Clone)]
#[non_exhaustive]
pub enum Network {
    /// diffusers' `UNet2DModel`.
    UNet2D(Box<UNet>),
    /// lucidrains' `Unet`.
    Lucidrains(Box<LucidrainsUNet>),
    /// k-diffusion's `image_v1`.
    KDiffusion(Box<KDiffusionUNet>),
}

impl NetworkConfig {
    /// Reads a `config.json` of any class that is known; without `_class_name` it is diffusers' `UNet2DModel`.
    ///
    /// # Errors
    /// An unknown class, key or value, by name; settings that make no network.
    pub fn from_json(text: &str) -> Result<Self> {
        let keys: Map<String, Value> = match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => keys,
            Ok(other) => return Err(Error::Json(format!("found {other}"))),
            Err(error) => return Err(Error::Json(error.to_string())),
        };
        match keys.get(CLASS_KEY).and_then(Value::as_str) {
            Some(LUCIDRAINS) => LucidrainsConfig::from_keys(keys).map(Self::Lucidrains),
            Some(K_DIFFUSION) => KDiffusionConfig::from_keys(keys).map(Self::KDiffusion),
            // Says of any other class that it is none.
            _ => UNetConfig::from_keys(keys).map(Self::UNet2D),
        }
    }

    /// The text of `config.json`: every key, sorted, two spaces deep, a newline at the end.
    pub fn to_json(&self) -> String {
        let keys = match self {
            Self::UNet2D(config) => return config.to_json(),
            Self::Lucidrains(config) => config.to_keys(),
            Self::KDiffusion(config) => config.to_keys(),
        };
        // Maps of serde_json without null keys or non-string keys always serialise.
        serde_json::to_string_pretty(&Value::Object(keys)).unwrap_or_default() + "\n"
    }

    /// The network as diffusers' `UNet2DModel`, if it is one.
    pub fn as_unet_2d(&self) -> Option<&UNetConfig> {
        match self {
            Self::UNet2D(config) => Some(config),
            Self::Lucidrains(_) | Self::KDiffusion(_) => None,
        }
    }

    /// The name of its class, as in `config.json`.
    pub fn class_name(&self) -> &'static str {
        match self {
            Self::UNet2D(_) => UNET_2D,
            Self::Lucidrains(_) => LUCIDRAINS,
            Self::KDiffusion(_) => K_DIFFUSION,
        }
    }

    /// The size of the images that the network was made for, if it says.
    pub fn sample_size(&self) -> Option<SampleSize> {
        match self {
            Self::UNet2D(config) => config.settings().sample_size,
            Self::Lucidrains(config) => config.settings().sample_size,
            Self::KDiffusion(config) => config.settings().sample_size,
        }
    }

    /// Channels of an image.
    pub fn channels(&self) -> usize {
        match self {
            Self::UNet2D(config) => config.settings().in_channels,
            Self::Lucidrains(config) => config.settings().channels,
            Self::KDiffusion(config) => config.settings().input_channels,
        }
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        match self {
            Self::UNet2D(config) => config.settings().out_channels,
            Self::Lucidrains(config) => config.settings().out_channels,
            Self::KDiffusion(config) => config.settings().input_channels,
        }
    }

    /// How the network is told classes; `None` for an unconditional one.
    pub fn class_kind(&self) -> Option<ClassKind> {
        match self {
            Self::UNet2D(config) => config.class_kind(),
            Self::Lucidrains(_) | Self::KDiffusion(_) => None,
        }
    }

    /// Whether the network is told what it last took for the clean images: [`Network::forward_after`].
    pub fn self_conditioned(&self) -> bool {
        match self {
            Self::UNet2D(_) | Self::KDiffusion(_) => false,
            Self::Lucidrains(config) => config.settings().self_condition,
        }
    }

    /// Names and shapes of the parameters, in construction order.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::UNet2D(config) => config.parameters(),
            Self::Lucidrains(config) => config.parameters(),
            Self::KDiffusion(config) => config.parameters(),
        }
    }

    /// How many numbers the parameters are.
    pub fn parameter_count(&self) -> usize {
        let sizes = self.parameters().into_iter();
        sizes
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// Checks that images of this height and width suit the network's depth.
    ///
    /// # Errors
    /// [`Error::ImageSize`], which names the nearest sizes that work.
    pub fn check_image(&self, height: usize, width: usize) -> Result<()> {
        match self {
            Self::UNet2D(config) => config.check_image(height, width),
            Self::Lucidrains(config) => config.check_image(height, width),
            Self::KDiffusion(config) => config.check_image(height, width),
        }
    }

    /// Why the CPU computes this network without a plan, and so in f32 only; `None` where it samples by plan.
    ///
    /// # Errors
    /// As [`UNetConfig::unplanned`].
    pub fn unplanned(&self) -> Result<Option<String>> {
        match self {
            Self::UNet2D(config) => config.unplanned(Use::Sampling),
            Self::Lucidrains(_) => Ok(Some("the attention of lucidrains' Unet".to_owned())),
            Self::KDiffusion(_) => Ok(Some(
                "the normalisations of k-diffusion's image_v1".to_owned(),
            )),
        }
    }

    /// What this network has that diffusers' `UNet2DModel` cannot express, a sentence each.
    pub fn beyond_diffusers(&self) -> Vec<&'static str> {
        match self {
            Self::UNet2D(config) => config.beyond_diffusers(),
            Self::Lucidrains(_) => vec![
                "the network is lucidrains' Unet (`LucidrainsUnet` in its configuration), which diffusers does not have",
            ],
            Self::KDiffusion(_) => vec![
                "the network is k-diffusion's image_v1 (`KDiffusionImageV1` in its configuration), which diffusers does not have",
            ],
        }
    }
}

/// What people are told of it: its class and its levels.
impl fmt::Display for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.class_name();
        let with = |channels: usize, with: &str| match with {
            "" => channels.to_string(),
            with => format!("{channels} with {with}"),
        };
        match self {
            Self::UNet2D(config) => {
                let settings = config.settings();
                let levels = settings.block_out_channels.iter();
                let levels = levels.zip(&settings.down_block_types);
                let levels: Vec<String> = levels
                    .map(|(&width, block)| match block.has_attention() {
                        true => with(width, "attention"),
                        false => with(width, ""),
                    })
                    .collect();
                let (levels, layers) = (levels.join(", "), settings.layers_per_block);
                write!(f, "{class}, levels {levels}; {layers} layers each")
            }
            Self::Lucidrains(config) => {
                let settings = config.settings();
                let levels = settings.level_dims.iter().zip(&settings.full_attn);
                let levels: Vec<String> = levels
                    .map(|(&width, &full)| match full {
                        true => with(width, "full attention"),
                        false => with(width, "linear attention"),
                    })
                    .collect();
                write!(f, "{class}, levels {}", levels.join(", "))?;
                match settings.self_condition {
                    true => f.write_str("; self-conditioned"),
                    false => Ok(()),
                }
            }
            Self::KDiffusion(config) => {
                let settings = config.settings();
                let levels = settings.channels.iter().zip(&settings.self_attn_depths);
                let levels: Vec<String> = levels
                    .map(|(&width, &attention)| match attention {
                        true => with(width, "attention"),
                        false => with(width, ""),
                    })
                    .collect();
                let (levels, depths) = (levels.join(", "), &settings.depths);
                write!(f, "{class}, levels {levels}; {depths:?} layers")?;
                match settings.patch_size {
                    1 => Ok(()),
                    side => write!(f, "; patches of {side}x{side} pixels"),
                }
            }
        }
    }
}

impl From<UNetConfig> for NetworkConfig {
    fn from(config: UNetConfig) -> Self {
        Self::UNet2D(config)
    }
}

impl From<KDiffusionConfig> for NetworkConfig {
    fn from(config: KDiffusionConfig) -> Self {
        Self::KDiffusion(config)
    }
}

impl From<LucidrainsConfig> for NetworkConfig {
    fn from(config: LucidrainsConfig) -> Self {
        Self::Lucidrains(config)
    }
}

impl Network {
    /// Builds the network from tensors by the names of [`NetworkConfig::parameters`].
    ///
    /// # Errors
    /// [`Error::Weights`], which names every tensor that is missing, extra, of the wrong shape or not f32.
    pub fn new(config: &NetworkConfig, weights: &(impl NamedTensors + ?Sized)) -> Result<Self> {
        Ok(match config {
            NetworkConfig::UNet2D(config) => Self::UNet2D(Box::new(UNet::new(config, weights)?)),
            NetworkConfig::Lucidrains(config) => {
                Self::Lucidrains(Box::new(LucidrainsUNet::new(config, weights)?))
            }
            NetworkConfig::KDiffusion(config) => {
                Self::KDiffusion(Box::new(KDiffusionUNet::new(config, weights)?))
            }
        })
    }

    /// The same network for evaluation alone: [`UNet::frozen`]; others are no other way.
    pub fn frozen(self) -> Self {
        match self {
            Self::UNet2D(network) => Self::UNet2D(Box::new(network.frozen())),
            other => other,
        }
    }

    /// The same network without a plan: [`UNet::by_graph`]; others never have one.
    pub fn by_graph(self) -> Self {
        match self {
            Self::UNet2D(network) => Self::UNet2D(Box::new(network.by_graph())),
            other => other,
        }
    }

    /// The same network computing in this precision: [`UNet::in_precision`]. Those without a plan
    /// ([`NetworkConfig::unplanned`]) compute in f32 in any.
    pub fn in_precision(self, precision: Precision) -> Self {
        match self {
            Self::UNet2D(network) => Self::UNet2D(Box::new(network.in_precision(precision))),
            other => other,
        }
    }

    /// The same network, told these classes: [`UNet::with_classes`].
    ///
    /// # Errors
    /// A network without classes, or of another kind; a class that it does not have.
    pub fn with_classes(&self, classes: Classes) -> Result<Self> {
        match self {
            Self::UNet2D(network) => Ok(Self::UNet2D(Box::new(network.with_classes(classes)?))),
            Self::Lucidrains(_) | Self::KDiffusion(_) => Err(Error::Input {
                what: "the classes",
                found: format!("{classes:?}"),
                expected: "none: the network is not class-conditional".to_owned(),
            }),
        }
    }

    /// Evaluates the network.
    ///
    /// # Shapes
    /// x_t `[B, channels, H, W]` f32, time: one an image -> `[B, out_channels, H, W]`
    ///
    /// # Errors
    /// An input of another shape or type; a size that the network's depth does not suit; classes that are missing.
    pub fn forward(&self, x_t: &Tensor, time: &[f64]) -> Result<Tensor> {
        self.forward_after(x_t, time, None)
    }

    /// As [`Network::forward`], where the network last took `x_0_hat` for the clean images: for those that are told it
    /// ([`NetworkConfig::self_conditioned`]).
    ///
    /// # Errors
    /// As [`Network::forward`]; an x_0-hat that is not of x_t's shape, or that the network is not told.
    pub fn forward_after(
        &self,
        x_t: &Tensor,
        time: &[f64],
        x_0_hat: Option<&Tensor>,
    ) -> Result<Tensor> {
        match (self, x_0_hat) {
            (Self::Lucidrains(network), x_0_hat) => network.forward(x_t, time, x_0_hat),
            (Self::UNet2D(network), None) => network.forward(x_t, time),
            (Self::KDiffusion(network), None) => network.forward(x_t, time),
            (Self::UNet2D(_) | Self::KDiffusion(_), Some(x_0_hat)) => Err(Error::Input {
                what: "x_0_hat",
                found: format!("{:?}", x_0_hat.dims()),
                expected: "none: the network is not told it".to_owned(),
            }),
        }
    }
}

impl ddpm_core::Denoiser for Network {
    fn predict(&self, x_t: &Tensor, time: &[f64]) -> ddpm_core::Result<Tensor> {
        Ok(self.forward(x_t, time)?)
    }
}
