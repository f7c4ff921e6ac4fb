//! The network as a tree of layers and an ordered list of parameters: built once from a configuration, without numbers.
//!
//! Layers point at parameters by their place in the list. The list has the names of diffusers' `UNet2DModel` and the
//! order in which PyTorch's constructor makes (and draws) them.

use ddpm_kernels::Padding;

use crate::{
    ClassEmbedType, DownBlock, DownsamplePadding, Nonlinearity, Resampling, TimeEmbeddingType,
    TimeScaleShift, UNetSettings, UpBlock,
};

/// The whole network.
#[derive(Debug, Clone)]
pub(crate) struct Architecture {
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) conv_in: Conv,
    pub(crate) time: TimeInput,
    pub(crate) time_mlp: [Linear; 2],
    pub(crate) class: Option<ClassInput>,
    /// The activation of all residual blocks.
    pub(crate) act_fn: Nonlinearity,
    pub(crate) down: Vec<Level>,
    pub(crate) mid: Option<Mid>,
    pub(crate) up: Vec<Level>,
    pub(crate) norm_out: Norm,
    pub(crate) conv_out: Conv,
    /// How many places have dropout.
    pub(crate) dropouts: usize,
    /// Every normalisation, for checks.
    pub(crate) norms: Vec<NormPlace>,
}

/// How the time becomes the vector that the first linear map of the time embedding takes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TimeInput {
    /// Sines and cosines at fixed frequencies.
    Positional,
    /// Sines and cosines at the frequencies of this parameter, which is never learned.
    Fourier(usize),
    /// A row of this parameter.
    Learned(usize),
}

/// How the class becomes a vector that is added to the time embedding.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ClassInput {
    /// A row of this parameter.
    Table(usize),
    /// As the time, by maps of its own.
    Timestep([Linear; 2]),
    /// The caller gives the vector.
    Identity,
}

/// A normalisation's name and how its channels are divided.
#[derive(Debug, Clone)]
pub(crate) struct NormPlace {
    pub(crate) name: String,
    pub(crate) channels: usize,
    pub(crate) groups: usize,
}

/// One tensor to be learned.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) role: Role,
}

impl Parameter {
    /// Its name and shape.
    pub(crate) fn named(&self) -> (&str, &[usize]) {
        (&self.name, &self.shape)
    }
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
    /// The vectors of a table, standard normal.
    Table,
    /// Fixed frequencies, normal with deviation 16.
    Frequencies,
}

/// One resolution: residual blocks, attention after each or none, then halving or doubling except at the last.
#[derive(Debug, Clone)]
pub(crate) struct Level {
    pub(crate) layers: Vec<(Resnet, Option<Attention>)>,
    pub(crate) resample: Option<Resample>,
    /// Whether an image at this resolution runs beside the states.
    pub(crate) image: bool,
}

/// What changes the size at the end of a level.
#[derive(Debug, Clone)]
pub(crate) enum Resample {
    /// A convolution of stride 2, or after doubling.
    Conv(Conv),
    /// Nothing that is learned.
    Plain(Change),
    /// A residual block.
    Resnet(Resnet),
    /// A residual block; on the way down the filtered image enters by `conv`.
    SkipDown { resnet: Resnet, conv: Conv },
    /// A residual block; on the way up what `norm` and `conv` make of the state is added to the image.
    SkipUp {
        resnet: Resnet,
        norm: Norm,
        conv: Conv,
    },
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
    /// What it does to the size of the image.
    pub(crate) change: Option<Change>,
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

/// How a residual block changes the size, of its input and of its sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Halves by means of 2 by 2.
    Average,
    /// Doubles by repetition.
    Nearest,
    /// Halves through the filter (1, 3, 3, 1).
    FirDown,
    /// Doubles through the filter.
    FirUp,
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
    /// The width of the time embedding.
    pub(crate) fn time_width(&self) -> usize {
        self.parameters[self.time_mlp[1].bias].shape[0]
    }

    /// Lays the network out, in the order of diffusers' constructor: input, time, class, way down, middle, way up,
    /// output. The settings need not have been checked, except for their lists.
    pub(crate) fn new(settings: &UNetSettings) -> Self {
        let widths = &settings.block_out_channels;
        let mut plan = Plan::new(settings);

        let conv_in = plan.conv("conv_in", settings.in_channels, widths[0], 3, Role::Weight);
        let time = plan.time_input();
        let time_mlp = plan.mlp("time_embedding");
        let class = plan.class_input();

        let down = (0..widths.len())
            .map(|level| plan.down_level(level))
            .collect();
        let width = widths[widths.len() - 1];
        let mid = settings.mid_block.then(|| plan.mid("mid_block.", width));
        let up = (0..widths.len()).map(|step| plan.up_level(step)).collect();

        let groups = settings.norm_num_groups.unwrap_or(quarter(widths[0]));
        let norm_out = plan.norm("conv_norm_out", widths[0], groups);
        let conv_out = plan.conv(
            "conv_out",
            widths[0],
            settings.out_channels,
            3,
            Role::LastWeight,
        );
        Self {
            conv_in,
            time,
            time_mlp,
            class,
            act_fn: settings.act_fn,
            down,
            mid,
            up,
            norm_out,
            conv_out,
            parameters: plan.parameters,
            dropouts: plan.dropouts,
            norms: plan.norms,
        }
    }
}

/// The channels of a level's residual blocks.
pub(crate) struct LevelShape {
    /// Channels that each block takes, in order.
    pub(crate) inputs: Vec<usize>,
    /// Of these, channels that came from the way down.
    pub(crate) skips: Vec<usize>,
    /// Channels that each block gives.
    pub(crate) width: usize,
    /// Whether the size changes at the end.
    pub(crate) resampled: bool,
    /// Whether it lies on the way up.
    pub(crate) up: bool,
}

/// The parameters laid out so far.
pub(crate) struct Plan<'a> {
    settings: &'a UNetSettings,
    time_width: usize,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) dropouts: usize,
    pub(crate) norms: Vec<NormPlace>,
}

/// What distinguishes a residual block from the others.
struct ResnetShape {
    input: usize,
    output: usize,
    groups: usize,
    groups_out: usize,
    divisor: f64,
    change: Option<Change>,
    /// A convolution in the shortcut even where the channels stay.
    shortcut: bool,
}

/// Groups of Skip blocks, and of everything where no number is given.
fn quarter(channels: usize) -> usize {
    (channels / 4).min(32)
}

/// Groups of the attention of Skip blocks.
const SKIP_ATTENTION_GROUPS: usize = 32;
/// Channels of the image beside the states, which diffusers has fixed.
pub(crate) const IMAGE_CHANNELS: usize = 3;

impl<'a> Plan<'a> {
    pub(crate) fn new(settings: &'a UNetSettings) -> Self {
        let time_width = settings
            .time_embedding_dim
            .unwrap_or(4 * settings.block_out_channels[0]);
        Self {
            settings,
            time_width,
            parameters: Vec::new(),
            dropouts: 0,
            norms: Vec::new(),
        }
    }

    fn time_input(&mut self) -> TimeInput {
        let settings = self.settings;
        let width = settings.block_out_channels[0];
        let name = "time_proj.weight".to_owned();
        match settings.time_embedding_type {
            TimeEmbeddingType::Positional => TimeInput::Positional,
            TimeEmbeddingType::Fourier => {
                TimeInput::Fourier(self.parameter(name, vec![width], Role::Frequencies))
            }
            TimeEmbeddingType::Learned => {
                let times = settings.num_train_timesteps.unwrap_or(0);
                TimeInput::Learned(self.parameter(name, vec![times, width], Role::Table))
            }
        }
    }

    fn class_input(&mut self) -> Option<ClassInput> {
        match (
            self.settings.class_embed_type,
            self.settings.num_class_embeds,
        ) {
            (None, None) => None,
            (None, Some(classes)) => {
                let shape = vec![classes, self.time_width];
                let name = "class_embedding.weight".to_owned();
                Some(ClassInput::Table(self.parameter(name, shape, Role::Table)))
            }
            (Some(ClassEmbedType::Timestep), _) => {
                Some(ClassInput::Timestep(self.mlp("class_embedding")))
            }
            (Some(ClassEmbedType::Identity), _) => Some(ClassInput::Identity),
        }
    }

    /// The two linear maps of a time embedding.
    fn mlp(&mut self, name: &str) -> [Linear; 2] {
        let input = time_input_width(self.settings);
        let (first, second) = (format!("{name}.linear_1"), format!("{name}.linear_2"));
        [
            self.linear(&first, input, self.time_width, Role::Weight),
            self.linear(&second, self.time_width, self.time_width, Role::Weight),
        ]
    }

    /// A level on the way down: its first block widens, its end halves.
    fn down_level(&mut self, level: usize) -> Level {
        let settings = self.settings;
        let widths = &settings.block_out_channels;
        let before = widths[level.saturating_sub(1)];
        let layer = |layer: usize| if layer == 0 { before } else { widths[level] };
        let shape = LevelShape {
            inputs: (0..settings.layers_per_block).map(layer).collect(),
            skips: vec![0; settings.layers_per_block],
            width: widths[level],
            resampled: level + 1 < widths.len(),
            up: false,
        };
        let name = format!("down_blocks.{level}.");
        self.down(&name, settings.down_block_types[level], &shape)
    }

    pub(crate) fn down(&mut self, name: &str, kind: DownBlock, shape: &LevelShape) -> Level {
        let layers = self.layers(name, shape, kind.has_attention(), kind.is_skip());
        let end = shape.resampled.then(|| match kind {
            DownBlock::SkipDown | DownBlock::AttnSkipDown => self.skip_down(name, shape.width),
            DownBlock::ResnetDown => self.resampler(name, "downsamplers", shape.width),
            DownBlock::AttnDown if self.settings.downsample_type == Resampling::Resnet => {
                self.resampler(name, "downsamplers", shape.width)
            }
            _ if self.settings.plain_resampling => Resample::Plain(Change::Average),
            DownBlock::Down | DownBlock::AttnDown => self.strided(name, shape.width),
        });
        Level {
            layers,
            resample: end,
            image: kind.is_skip(),
        }
    }

    /// A level on the way up: each block also takes what the way down left, the last one from the level above.
    fn up_level(&mut self, step: usize) -> Level {
        let settings = self.settings;
        let widths = &settings.block_out_channels;
        let level = widths.len() - 1 - step;
        let below = widths[(level + 1).min(widths.len() - 1)];
        let above = widths[level.saturating_sub(1)];
        let last = settings.layers_per_block;
        let skip = |layer: usize| if layer == last { above } else { widths[level] };
        let running = |layer: usize| if layer == 0 { below } else { widths[level] };
        let shape = LevelShape {
            inputs: (0..=last)
                .map(|layer| running(layer) + skip(layer))
                .collect(),
            skips: (0..=last).map(skip).collect(),
            width: widths[level],
            resampled: level > 0,
            up: true,
        };
        let name = format!("up_blocks.{step}.");
        self.up(&name, settings.up_block_types[step], &shape)
    }

    pub(crate) fn up(&mut self, name: &str, kind: UpBlock, shape: &LevelShape) -> Level {
        let layers = match kind {
            UpBlock::AttnSkipUp => self.attention_at_the_end(name, shape),
            kind => self.layers(name, shape, kind == UpBlock::AttnUp, kind.is_skip()),
        };
        let end = shape.resampled.then(|| match kind {
            UpBlock::SkipUp | UpBlock::AttnSkipUp => self.skip_up(name, shape.width),
            UpBlock::ResnetUp => self.resampler(name, "upsamplers", shape.width),
            UpBlock::AttnUp if self.settings.upsample_type == Resampling::Resnet => {
                self.resampler(name, "upsamplers", shape.width)
            }
            _ if self.settings.plain_resampling => Resample::Plain(Change::Nearest),
            UpBlock::Up | UpBlock::AttnUp => {
                let name = format!("{name}upsamplers.0.conv");
                Resample::Conv(self.conv(&name, shape.width, shape.width, 3, Role::Weight))
            }
        });
        Level {
            layers,
            resample: end,
            image: kind.is_skip(),
        }
    }

    fn layers(
        &mut self,
        name: &str,
        shape: &LevelShape,
        attention: bool,
        skip: bool,
    ) -> Vec<(Resnet, Option<Attention>)> {
        let groups = if skip {
            Some(SKIP_ATTENTION_GROUPS)
        } else {
            self.settings.norm_num_groups
        };
        let divisor = self.divisor(skip);
        let mut layers = Vec::new();
        for (index, &input) in shape.inputs.iter().enumerate() {
            let groups_in = self.groups(input, skip);
            let resnet = self.layer(name, index, (input, groups_in), shape.width, skip);
            let attention = attention.then(|| {
                let name = format!("{name}attentions.{index}");
                self.attention(&name, shape.width, groups, (divisor, shape.up))
            });
            layers.push((resnet, attention));
        }
        layers
    }

    /// The layers of `AttnSkipUpBlock2D`: one attention, made and used after all blocks. The groups are those that
    /// diffusers' formula gives, which misses a pair of parentheses.
    fn attention_at_the_end(
        &mut self,
        name: &str,
        shape: &LevelShape,
    ) -> Vec<(Resnet, Option<Attention>)> {
        let mut layers = Vec::new();
        for (index, (&input, &skip)) in shape.inputs.iter().zip(&shape.skips).enumerate() {
            let groups = (input - skip + skip / 4).min(32);
            let resnet = self.layer(name, index, (input, groups), shape.width, true);
            layers.push((resnet, None));
        }
        let (name, divisor) = (format!("{name}attentions.0"), self.divisor(true));
        let groups = Some(SKIP_ATTENTION_GROUPS);
        let attention = self.attention(&name, shape.width, groups, (divisor, true));
        if let Some((_, last)) = layers.last_mut() {
            *last = Some(attention);
        }
        layers
    }

    fn layer(
        &mut self,
        name: &str,
        index: usize,
        (input, groups): (usize, usize),
        output: usize,
        skip: bool,
    ) -> Resnet {
        let shape = ResnetShape {
            input,
            output,
            groups,
            groups_out: self.groups(output, skip),
            divisor: self.divisor(skip),
            change: None,
            shortcut: false,
        };
        self.resnet(&format!("{name}resnets.{index}"), &shape)
    }

    /// The convolution that halves.
    fn strided(&mut self, name: &str, width: usize) -> Resample {
        let name = format!("{name}downsamplers.0.conv");
        let padding = match self.settings.downsample_padding {
            DownsamplePadding::BottomRight => Padding::DDPM_DOWN,
            DownsamplePadding::Same => Padding::same(1),
        };
        Resample::Conv(Conv {
            stride: 2,
            padding,
            ..self.conv(&name, width, width, 3, Role::Weight)
        })
    }

    /// The residual block that halves or doubles.
    fn resampler(&mut self, name: &str, part: &str, width: usize) -> Resample {
        let change = if part == "downsamplers" {
            Change::Average
        } else {
            Change::Nearest
        };
        let shape = self.changing(width, change, false);
        Resample::Resnet(self.resnet(&format!("{name}{part}.0"), &shape))
    }

    fn skip_down(&mut self, name: &str, width: usize) -> Resample {
        let shape = self.changing(width, Change::FirDown, true);
        let resnet = self.resnet(&format!("{name}resnet_down"), &shape);
        let name = format!("{name}skip_conv");
        let conv = self.conv(&name, IMAGE_CHANNELS, width, 1, Role::Weight);
        Resample::SkipDown { resnet, conv }
    }

    fn skip_up(&mut self, name: &str, width: usize) -> Resample {
        let shape = self.changing(width, Change::FirUp, true);
        let resnet = self.resnet(&format!("{name}resnet_up"), &shape);
        let conv_name = format!("{name}skip_conv");
        let conv = self.conv(&conv_name, width, IMAGE_CHANNELS, 3, Role::LastWeight);
        let norm = self.norm(&format!("{name}skip_norm"), width, quarter(width));
        Resample::SkipUp { resnet, norm, conv }
    }

    /// A residual block that changes the size and not the channels.
    fn changing(&self, width: usize, change: Change, skip: bool) -> ResnetShape {
        ResnetShape {
            input: width,
            output: width,
            groups: self.groups(width, skip),
            groups_out: self.groups(width, skip),
            divisor: self.divisor(skip),
            change: Some(change),
            shortcut: skip,
        }
    }

    fn groups(&self, channels: usize, skip: bool) -> usize {
        match self.settings.norm_num_groups {
            Some(groups) if !skip => groups,
            _ => quarter(channels),
        }
    }

    /// What residual sums are divided by.
    fn divisor(&self, skip: bool) -> f64 {
        if skip || self.settings.rescale_residuals {
            std::f64::consts::SQRT_2
        } else {
            1.0
        }
    }

    pub(crate) fn mid(&mut self, name: &str, width: usize) -> Mid {
        let settings = self.settings;
        let divisor = self.divisor(false) * settings.mid_block_scale_factor;
        let own = self.groups(width, false);
        let groups = match settings.resnet_time_scale_shift {
            TimeScaleShift::Default => settings.attn_norm_num_groups.or(Some(own)),
            TimeScaleShift::ScaleShift => settings.attn_norm_num_groups,
        };
        let shape = ResnetShape {
            input: width,
            output: width,
            groups: own,
            groups_out: own,
            divisor,
            change: None,
            shortcut: false,
        };
        let first = self.resnet(&format!("{name}resnets.0"), &shape);
        let attention = settings.add_attention.then(|| {
            let name = format!("{name}attentions.0");
            self.attention(&name, width, groups, (divisor, false))
        });
        let second = self.resnet(&format!("{name}resnets.1"), &shape);
        Mid {
            first,
            attention,
            second,
        }
    }

    /// A residual block alone, with the settings' groups.
    pub(crate) fn block(
        &mut self,
        name: &str,
        (input, output): (usize, usize),
        shortcut: bool,
        change: Option<Change>,
    ) -> Resnet {
        let shape = ResnetShape {
            input,
            output,
            groups: self.groups(input, false),
            groups_out: self.groups(output, false),
            divisor: self.divisor(false),
            change,
            shortcut,
        };
        self.resnet(name, &shape)
    }

    fn resnet(&mut self, name: &str, shape: &ResnetShape) -> Resnet {
        let (input, output) = (shape.input, shape.output);
        let scale_shift = self.settings.resnet_time_scale_shift == TimeScaleShift::ScaleShift;
        let time_output = if scale_shift { 2 * output } else { output };
        let dropout = self.dropouts;
        self.dropouts += 1;
        let kernel = if self.settings.wide_shortcuts { 3 } else { 1 };
        let part = |part: &str| format!("{name}.{part}");
        let time_name = part("time_emb_proj");
        Resnet {
            norm1: self.norm(&part("norm1"), input, shape.groups),
            change: shape.change,
            conv1: self.conv(&part("conv1"), input, output, 3, Role::Weight),
            time: self.linear(&time_name, self.time_width, time_output, Role::Weight),
            scale_shift,
            norm2: self.norm(&part("norm2"), output, shape.groups_out),
            dropout,
            conv2: self.conv(&part("conv2"), output, output, 3, Role::LastWeight),
            shortcut: (shape.shortcut || input != output)
                .then(|| self.conv(&part("conv_shortcut"), input, output, kernel, Role::Weight)),
            divisor: shape.divisor,
        }
    }

    /// Heads of `attention_head_dim` channels, as many as fit: together they may be narrower than the level.
    fn attention(
        &mut self,
        name: &str,
        width: usize,
        groups: Option<usize>,
        (divisor, up): (f64, bool),
    ) -> Attention {
        let settings = self.settings;
        let own = settings.attention_heads_up.filter(|_| up);
        let (heads, head_dim) = match own.or(settings.attention_heads) {
            Some(heads) => (heads, width / heads),
            None => {
                let head_dim = settings.attention_head_dim.unwrap_or(width);
                (width / head_dim, head_dim)
            }
        };
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
        self.norms.push(NormPlace {
            name: name.to_owned(),
            channels,
            groups,
        });
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

/// Width of what the time embedding's first linear map takes.
pub(crate) fn time_input_width(settings: &UNetSettings) -> usize {
    let width = settings.block_out_channels[0];
    match settings.time_embedding_type {
        TimeEmbeddingType::Positional => settings.timestep_width.unwrap_or(width),
        TimeEmbeddingType::Learned => width,
        TimeEmbeddingType::Fourier => 2 * width,
    }
}

impl DownBlock {
    /// Whether it has attention.
    pub fn has_attention(self) -> bool {
        matches!(self, DownBlock::AttnDown | DownBlock::AttnSkipDown)
    }

    /// Whether the input image enters it besides.
    pub(crate) fn is_skip(self) -> bool {
        matches!(self, DownBlock::SkipDown | DownBlock::AttnSkipDown)
    }
}

impl UpBlock {
    /// Whether it has attention.
    pub fn has_attention(self) -> bool {
        matches!(self, UpBlock::AttnUp | UpBlock::AttnSkipUp)
    }

    /// Whether an image is put together beside it.
    pub(crate) fn is_skip(self) -> bool {
        matches!(self, UpBlock::SkipUp | UpBlock::AttnSkipUp)
    }
}
