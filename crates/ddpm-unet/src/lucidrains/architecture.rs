//! The layers of a `Unet` of lucidrains' and its parameters, named and ordered as version 2 makes them.
//!
//! Layers point at parameters by their place in the list.

use super::config::{AttentionNorm, Halving, LucidrainsSettings, LucidrainsTime};
use crate::layers::{Affine, Layers};

/// The whole network.
#[derive(Debug, Clone)]
pub(super) struct Architecture {
    pub(super) parameters: Vec<(String, Vec<usize>)>,
    pub(super) init_conv: Affine,
    /// The frequencies of the time, where they are a tensor.
    pub(super) frequencies: Option<usize>,
    pub(super) time_mlp: [Affine; 2],
    pub(super) downs: Vec<Level>,
    pub(super) mid: (Resnet, Attention, Resnet),
    pub(super) ups: Vec<Level>,
    pub(super) final_res_block: Resnet,
    pub(super) final_conv: Affine,
}

/// One level of the way down or up.
#[derive(Debug, Clone)]
pub(super) struct Level {
    pub(super) blocks: [Resnet; 2],
    pub(super) attention: Attention,
    pub(super) resample: Resample,
}

/// What follows a level.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resample {
    /// 2x2 pixels into channels, then a 1x1 convolution.
    Pixels(Affine),
    /// A 4x4 convolution of stride 2.
    Strided(Affine),
    /// Each pixel twice both ways, then a 3x3 convolution.
    Nearest(Affine),
    /// A 3x3 convolution: the size stays.
    Same(Affine),
}

/// A residual block.
#[derive(Debug, Clone)]
pub(super) struct Resnet {
    /// The time's scale and shift.
    pub(super) mlp: Affine,
    pub(super) halves: [(Affine, Norm); 2],
    pub(super) shortcut: Option<Affine>,
}

/// A normalisation: gain, and bias where it has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Norm {
    pub(super) gain: usize,
    pub(super) bias: Option<usize>,
}

/// Attention, linear where something follows its output.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) norm: Norm,
    pub(super) memory: Option<usize>,
    pub(super) qkv: usize,
    pub(super) out: Affine,
    pub(super) linear: Option<Norm>,
    pub(super) heads: usize,
}

impl Architecture {
    pub(super) fn new(settings: &LucidrainsSettings) -> Self {
        let mut make = Maker {
            settings,
            layers: Layers::default(),
        };
        let copies = if settings.self_condition { 2 } else { 1 };
        let (first, last) = (settings.init_dim, settings.level_dims.len() - 1);
        let init_conv = make
            .layers
            .conv("init_conv", settings.channels * copies, first, 7);
        let (frequencies, told) = match settings.time {
            LucidrainsTime::Sinusoidal { width, .. } => (None, width),
            LucidrainsTime::Fourier { width } => {
                let weights = make.layers.parameter("time_mlp.0.weights", vec![width / 2]);
                (Some(weights), width + 1)
            }
        };
        let time_mlp = [
            make.layers.linear("time_mlp.1", told, settings.time_dim),
            make.layers
                .linear("time_mlp.3", settings.time_dim, settings.time_dim),
        ];
        let mut downs = Vec::new();
        for (level, (from, to)) in settings.in_out().enumerate() {
            downs.push(make.down(level, from, to, level == last));
        }
        let mut ups = Vec::new();
        for (step, (from, to)) in settings.in_out().rev().enumerate() {
            ups.push(make.up(step, from, to, step == last));
        }
        let middle = settings.level_dims[last];
        let mid = (
            make.resnet("mid_block1", middle, middle),
            make.attention("mid_attn", middle, last + 1, true),
            make.resnet("mid_block2", middle, middle),
        );
        let final_res_block = make.resnet("final_res_block", 2 * first, first);
        let final_conv = make
            .layers
            .conv("final_conv", first, settings.out_channels, 1);
        Self {
            parameters: make.layers.parameters,
            init_conv,
            frequencies,
            time_mlp,
            downs,
            mid,
            ups,
            final_res_block,
            final_conv,
        }
    }
}

/// What the parts are made with.
struct Maker<'a> {
    settings: &'a LucidrainsSettings,
    layers: Layers,
}

impl Maker<'_> {
    fn down(&mut self, level: usize, from: usize, to: usize, last: bool) -> Level {
        let name = format!("downs.{level}");
        Level {
            blocks: [
                self.resnet(&format!("{name}.0"), from, from),
                self.resnet(&format!("{name}.1"), from, from),
            ],
            attention: self.attention(
                &format!("{name}.2"),
                from,
                level,
                self.settings.full_attn[level],
            ),
            resample: match (last, self.settings.halving) {
                (true, _) => Resample::Same(self.layers.conv(&format!("{name}.3"), from, to, 3)),
                (false, Halving::Pixels) => {
                    Resample::Pixels(self.layers.conv(&format!("{name}.3.1"), 4 * from, to, 1))
                }
                (false, Halving::Conv) => {
                    Resample::Strided(self.layers.conv(&format!("{name}.3"), from, to, 4))
                }
            },
        }
    }

    fn up(&mut self, step: usize, from: usize, to: usize, last: bool) -> Level {
        let name = format!("ups.{step}");
        let level = self.settings.level_dims.len() - 1 - step;
        Level {
            blocks: [
                self.resnet(&format!("{name}.0"), to + from, to),
                self.resnet(&format!("{name}.1"), to + from, to),
            ],
            attention: self.attention(
                &format!("{name}.2"),
                to,
                level,
                self.settings.full_attn[level],
            ),
            resample: match last {
                true => Resample::Same(self.layers.conv(&format!("{name}.3"), to, from, 3)),
                false => Resample::Nearest(self.layers.conv(&format!("{name}.3.1"), to, from, 3)),
            },
        }
    }

    fn resnet(&mut self, name: &str, from: usize, to: usize) -> Resnet {
        let mlp = self
            .layers
            .linear(&format!("{name}.mlp.1"), self.settings.time_dim, 2 * to);
        let mut half = |number: usize, from: usize| {
            let name = format!("{name}.block{number}");
            let conv = self.layers.conv(&format!("{name}.proj"), from, to, 3);
            let norm = format!("{name}.norm");
            let norm = match self.settings.resnet_block_groups {
                None => self.pixel_norm(&norm, to, false),
                Some(_) => Norm {
                    gain: self.layers.parameter(format!("{norm}.weight"), vec![to]),
                    bias: Some(self.layers.parameter(format!("{norm}.bias"), vec![to])),
                },
            };
            (conv, norm)
        };
        let halves = [half(1, from), half(2, to)];
        let shortcut =
            (from != to).then(|| self.layers.conv(&format!("{name}.res_conv"), from, to, 1));
        Resnet {
            mlp,
            halves,
            shortcut,
        }
    }

    /// A normalisation of each pixel's channels.
    fn pixel_norm(&mut self, name: &str, channels: usize, biased: bool) -> Norm {
        let shape = vec![1, channels, 1, 1];
        Norm {
            gain: self.layers.parameter(format!("{name}.g"), shape.clone()),
            bias: biased.then(|| self.layers.parameter(format!("{name}.b"), shape)),
        }
    }

    /// The attention of a level, or of the middle, which comes after them all in the lists.
    fn attention(&mut self, name: &str, channels: usize, place: usize, full: bool) -> Attention {
        let settings = self.settings;
        let (heads, size) = (settings.attn_heads[place], settings.attn_dim_head[place]);
        let biased = settings.attn_norm == AttentionNorm::LayerBias;
        let norm = self.pixel_norm(&format!("{name}.norm"), channels, biased);
        let memory = (settings.num_mem_kv > 0).then(|| {
            let (keys, size) = match full {
                true => (settings.num_mem_kv, size),
                false => (size, settings.num_mem_kv),
            };
            self.layers
                .parameter(format!("{name}.mem_kv"), vec![2, heads, keys, size])
        });
        let hidden = heads * size;
        let qkv = self.layers.parameter(
            format!("{name}.to_qkv.weight"),
            vec![3 * hidden, channels, 1, 1],
        );
        let (out, linear) = match full {
            true => (
                self.layers
                    .conv(&format!("{name}.to_out"), hidden, channels, 1),
                None,
            ),
            false => {
                let out = self
                    .layers
                    .conv(&format!("{name}.to_out.0"), hidden, channels, 1);
                let norm = self.pixel_norm(&format!("{name}.to_out.1"), channels, biased);
                (out, Some(norm))
            }
        };
        Attention {
            norm,
            memory,
            qkv,
            out,
            linear,
            heads,
        }
    }
}
