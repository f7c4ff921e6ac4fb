//! The network as a tree of layers and an ordered list of parameters: built once from a configuration, without numbers.
//!
//! Layers point at parameters by their place in the list. The list has the names of diffusers' `UNet2DModel` and the
//! order in which PyTorch's constructor makes (and draws) them.

use ddpm_kernels::Padding;

use crate::{DownBlock, DownsamplePadding, TimeScaleShift, UNetConfig, UNetSettings, UpBlock};

/// The whole network.
#[derive(Debug, Clone)]
pub(crate) struct Architecture {
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) conv_in: Conv,
    pub(crate) time_1: Linear,
    pub(crate) time_2: Linear,
    pub(crate) down: Vec<Level>,
    pub(crate) mid: Option<Mid>,
    pub(crate) up: Vec<Level>,
    pub(crate) norm_out: Norm,
    pub(crate) conv_out: Conv,
    /// How many places have dropout.
    pub(crate) dropouts: usize,
}

/// One tensor to be learned.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) role: Role,
}

/// What a parameter does, as far as its first value depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A weight, `[out, in, ...]`.
    Weight,
    /// The last weight before a residual sum or before the output, which Ho et al. start near zero.
    LastWeight,
    /// The bias beside a weight of this many inputs an output.
    Bias { fan_in: usize },
    /// The factor of a normalisation.
    NormScale,
    /// The offset of a normalisation.
    NormShift,
}

/// One resolution: residual blocks, attention after each or none, then halving or doubling except at the last.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    pub(crate) layers: Vec<(Resnet, Option<Attention>)>,
    pub(crate) resample: Option<Conv>,
}

/// The middle: a residual block, attention or none, a residual block.
#[derive(Debug, Clone)]
pub(crate) struct Mid {
    pub(crate) first: Resnet,
    pub(crate) attention: Option<Attention>,
    pub(crate) second: Resnet,
}

/// A residual block that knows the time.
#[derive(Debug, Clone)]
pub(crate) struct Resnet {
    pub(crate) norm1: Norm,
    pub(crate) conv1: Conv,
    pub(crate) time: Linear,
    pub(crate) scale_shift: bool,
    pub(crate) norm2: Norm,
    /// Which place of dropout, counted in construction order.
    pub(crate) dropout: usize,
    pub(crate) conv2: Conv,
    pub(crate) shortcut: Option<Conv>,
    pub(crate) divisor: f64,
}

/// Self-attention over the pixels.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    pub(crate) norm: Option<Norm>,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) out: Linear,
    pub(crate) heads: usize,
    pub(crate) divisor: f64,
}

/// A convolution `[out, in, k, k]` with its bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conv {
    pub(crate) weight: usize,
    pub(crate) bias: usize,
    pub(crate) stride: usize,
    pub(crate) padding: Padding,
}

/// A linear map `[out, in]` with its bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear {
    pub(crate) weight: usize,
    pub(crate) bias: usize,
}

/// A group normalisation with its affine map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    pub(crate) gamma: usize,
    pub(crate) beta: usize,
}

impl Architecture {
    /// Lays the network out, in the order of diffusers' constructor: input, time, way down, middle, way up, output.
    pub(crate) fn new(config: &UNetConfig) -> Self {
        let settings = config.settings();
        let widths = &settings.block_out_channels;
        let mut plan = Plan::new(settings);

        let conv_in = plan.conv("conv_in", settings.in_channels, widths[0], 3, Role::Weight);
        let time_1 = plan.linear(
            "time_embedding.linear_1",
            widths[0],
            plan.time_width,
            Role::Weight,
        );
        let time_2 = plan.linear(
            "time_embedding.linear_2",
            plan.time_width,
            plan.time_width,
            Role::Weight,
        );

        let down = (0..widths.len())
            .map(|level| plan.down_level(level))
            .collect();
        let mid = settings.mid_block.then(|| plan.mid());
        let up = (0..widths.len()).map(|step| plan.up_level(step)).collect();

        let norm_out = plan.norm("conv_norm_out", widths[0], settings.norm_num_groups);
        let conv_out = plan.conv(
            "conv_out",
            widths[0],
            settings.out_channels,
            3,
            Role::LastWeight,
        );
        let Plan {
            parameters,
            dropouts,
            ..
        } = plan;
        Self {
            parameters,
            conv_in,
            time_1,
            time_2,
            down,
            mid,
            up,
            norm_out,
            conv_out,
            dropouts,
        }
    }
}

/// The parameters laid out so far.
struct Plan<'a> {
    settings: &'a UNetSettings,
    time_width: usize,
    parameters: Vec<Parameter>,
    dropouts: usize,
}

impl<'a> Plan<'a> {
    fn new(settings: &'a UNetSettings) -> Self {
        let time_width = settings
            .time_embedding_dim
            .unwrap_or(4 * settings.block_out_channels[0]);
        Self {
            settings,
            time_width,
            parameters: Vec::new(),
            dropouts: 0,
        }
    }

    /// A level on the way down: its first block widens, its last convolution halves.
    fn down_level(&mut self, level: usize) -> Level {
        let settings = self.settings;
        let widths = &settings.block_out_channels;
        let name = format!("down_blocks.{level}");
        let attention = settings.down_block_types[level] == DownBlock::AttnDown;
        let before = widths[level.saturating_sub(1)];
        let layer = |layer: usize| if layer == 0 { before } else { widths[level] };
        let inputs = (0..settings.layers_per_block)
            .map(layer)
            .collect::<Vec<_>>();
        let layers = self.layers(&name, &inputs, widths[level], attention);
        let resample = (level + 1 < widths.len()).then(|| {
            let conv = self.conv(
                &format!("{name}.downsamplers.0.conv"),
                widths[level],
                widths[level],
                3,
                Role::Weight,
            );
            let padding = match settings.downsample_padding {
                DownsamplePadding::BottomRight => Padding::DDPM_DOWN,
                DownsamplePadding::Same => Padding::same(1),
            };
            Conv {
                stride: 2,
                padding,
                ..conv
            }
        });
        Level { layers, resample }
    }

    /// A level on the way up: each block also takes what the way down left, the last one from the level above.
    fn up_level(&mut self, step: usize) -> Level {
        let settings = self.settings;
        let widths = &settings.block_out_channels;
        let level = widths.len() - 1 - step;
        let name = format!("up_blocks.{step}");
        let attention = settings.up_block_types[step] == UpBlock::AttnUp;
        let below = widths[(level + 1).min(widths.len() - 1)];
        let above = widths[level.saturating_sub(1)];
        let last = settings.layers_per_block;
        let layer = |layer: usize| {
            let running = if layer == 0 { below } else { widths[level] };
            let skip = if layer == last { above } else { widths[level] };
            running + skip
        };
        let inputs = (0..=last).map(layer).collect::<Vec<_>>();
        let layers = self.layers(&name, &inputs, widths[level], attention);
        let resample = (level > 0).then(|| {
            self.conv(
                &format!("{name}.upsamplers.0.conv"),
                widths[level],
                widths[level],
                3,
                Role::Weight,
            )
        });
        Level { layers, resample }
    }

    fn layers(
        &mut self,
        name: &str,
        inputs: &[usize],
        width: usize,
        attention: bool,
    ) -> Vec<(Resnet, Option<Attention>)> {
        let groups = Some(self.settings.norm_num_groups);
        let layer = |(index, &input): (usize, &usize)| {
            let resnet = self.resnet(&format!("{name}.resnets.{index}"), input, width, 1.0);
            let attention = attention
                .then(|| self.attention(&format!("{name}.attentions.{index}"), width, groups, 1.0));
            (resnet, attention)
        };
        inputs.iter().enumerate().map(layer).collect()
    }

    fn mid(&mut self) -> Mid {
        let settings = self.settings;
        let width = settings.block_out_channels[settings.block_out_channels.len() - 1];
        let divisor = settings.mid_block_scale_factor;
        let groups = match settings.resnet_time_scale_shift {
            TimeScaleShift::Default => settings
                .attn_norm_num_groups
                .or(Some(settings.norm_num_groups)),
            TimeScaleShift::ScaleShift => settings.attn_norm_num_groups,
        };
        let first = self.resnet("mid_block.resnets.0", width, width, divisor);
        let attention = settings
            .add_attention
            .then(|| self.attention("mid_block.attentions.0", width, groups, divisor));
        let second = self.resnet("mid_block.resnets.1", width, width, divisor);
        Mid {
            first,
            attention,
            second,
        }
    }

    fn resnet(&mut self, name: &str, input: usize, output: usize, divisor: f64) -> Resnet {
        let groups = self.settings.norm_num_groups;
        let scale_shift = self.settings.resnet_time_scale_shift == TimeScaleShift::ScaleShift;
        let time_output = if scale_shift { 2 * output } else { output };
        let dropout = self.dropouts;
        self.dropouts += 1;
        Resnet {
            norm1: self.norm(&format!("{name}.norm1"), input, groups),
            conv1: self.conv(&format!("{name}.conv1"), input, output, 3, Role::Weight),
            time: self.linear(
                &format!("{name}.time_emb_proj"),
                self.time_width,
                time_output,
                Role::Weight,
            ),
            scale_shift,
            norm2: self.norm(&format!("{name}.norm2"), output, groups),
            dropout,
            conv2: self.conv(
                &format!("{name}.conv2"),
                output,
                output,
                3,
                Role::LastWeight,
            ),
            shortcut: (input != output).then(|| {
                self.conv(
                    &format!("{name}.conv_shortcut"),
                    input,
                    output,
                    1,
                    Role::Weight,
                )
            }),
            divisor,
        }
    }

    /// Heads of `attention_head_dim` channels, as many as fit: together they may be narrower than the level.
    fn attention(
        &mut self,
        name: &str,
        width: usize,
        groups: Option<usize>,
        divisor: f64,
    ) -> Attention {
        let head_dim = self.settings.attention_head_dim.unwrap_or(width);
        let heads = width / head_dim;
        let inner = heads * head_dim;
        Attention {
            norm: groups.map(|groups| self.norm(&format!("{name}.group_norm"), width, groups)),
            query: self.linear(&format!("{name}.to_q"), width, inner, Role::Weight),
            key: self.linear(&format!("{name}.to_k"), width, inner, Role::Weight),
            value: self.linear(&format!("{name}.to_v"), width, inner, Role::Weight),
            out: self.linear(&format!("{name}.to_out.0"), inner, width, Role::LastWeight),
            heads,
            divisor,
        }
    }

    fn conv(&mut self, name: &str, input: usize, output: usize, kernel: usize, role: Role) -> Conv {
        let weight = self.parameter(
            format!("{name}.weight"),
            vec![output, input, kernel, kernel],
            role,
        );
        let bias = self.parameter(
            format!("{name}.bias"),
            vec![output],
            Role::Bias {
                fan_in: input * kernel * kernel,
            },
        );
        Conv {
            weight,
            bias,
            stride: 1,
            padding: Padding::same(kernel / 2),
        }
    }

    fn linear(&mut self, name: &str, input: usize, output: usize, role: Role) -> Linear {
        let weight = self.parameter(format!("{name}.weight"), vec![output, input], role);
        let bias = self.parameter(
            format!("{name}.bias"),
            vec![output],
            Role::Bias { fan_in: input },
        );
        Linear { weight, bias }
    }

    fn norm(&mut self, name: &str, channels: usize, groups: usize) -> Norm {
        let gamma = self.parameter(format!("{name}.weight"), vec![channels], Role::NormScale);
        let beta = self.parameter(format!("{name}.bias"), vec![channels], Role::NormShift);
        Norm {
            groups,
            eps: self.settings.norm_eps,
            gamma,
            beta,
        }
    }

    fn parameter(&mut self, name: String, shape: Vec<usize>, role: Role) -> usize {
        self.parameters.push(Parameter { name, shape, role });
        self.parameters.len() - 1
    }
}
