//! The layers of an `image_v1` network and its parameters, named and ordered as k-diffusion makes them.
//!
//! Layers point at parameters by their place in the list.

use super::config::{KDiffusionSettings, heads};
use crate::layers::{Affine, Layers};

/// The whole network.
#[derive(Debug, Clone)]
pub(super) struct Architecture {
    pub(super) parameters: Vec<(String, Vec<usize>)>,
    /// Frequencies, `[mapping_out / 2, 1]`.
    pub(super) frequencies: usize,
    pub(super) mapping: [Affine; 2],
    pub(super) proj_in: Affine,
    pub(super) proj_out: Affine,
    /// The way down, from the full resolution.
    pub(super) down: Vec<Level>,
    /// The way up, from the smallest resolution.
    pub(super) up: Vec<Level>,
}

/// One resolution: residual blocks, each with attention after it or without.
pub(super) type Level = Vec<(Resnet, Option<Attention>)>;

/// A residual block.
#[derive(Debug, Clone)]
pub(super) struct Resnet {
    /// What makes scale and shift of the noise level, and the convolution after its normalisation.
    pub(super) halves: [(Affine, Affine); 2],
    /// A 1x1 convolution without bias.
    pub(super) skip: Option<usize>,
}

/// Self-attention.
#[derive(Debug, Clone)]
pub(super) struct Attention {
    pub(super) norm: Affine,
    pub(super) qkv: Affine,
    pub(super) out: Affine,
    pub(super) heads: usize,
}

impl Architecture {
    pub(super) fn new(settings: &KDiffusionSettings) -> Self {
        let mut make = Maker {
            settings,
            layers: Layers::default(),
        };
        let (width, outer) = (settings.mapping_out, settings.outer_channels);
        let pixels = settings.input_channels * settings.patch_size.pow(2);
        let frequencies = make
            .layers
            .parameter("timestep_embed.weight", vec![width / 2, 1]);
        let mapping = ["mapping.0", "mapping.2"].map(|name| make.layers.linear(name, width, width));
        let proj_in = make.layers.conv("proj_in", pixels, outer, 1);
        let told = pixels + usize::from(settings.has_variance);
        let proj_out = make.layers.conv("proj_out", outer, told, 1);
        let levels = settings.channels.len();
        let above = |level: usize| match level {
            0 => outer,
            level => settings.channels[level - 1],
        };
        let mut down = Vec::new();
        for level in 0..levels {
            let name = format!("u_net.d_blocks.{level}");
            // What halves is the first of a block's parts, and has no parameters.
            let width = settings.channels[level];
            down.push(make.level(&name, 1, level, (above(level), width)));
        }
        let mut up = Vec::new();
        for (step, level) in (0..levels).rev().enumerate() {
            let name = format!("u_net.u_blocks.{step}");
            let width = settings.channels[level];
            let into = if step == 0 { width } else { 2 * width };
            up.push(make.level(&name, 0, level, (into, above(level))));
        }
        Self {
            parameters: make.layers.parameters,
            frequencies,
            mapping,
            proj_in,
            proj_out,
            down,
            up,
        }
    }
}

/// What the parts are made with.
struct Maker<'a> {
    settings: &'a KDiffusionSettings,
    layers: Layers,
}

impl Maker<'_> {
    /// A level, whose parts are counted from `first`; all but its last block give the level's channels.
    fn level(
        &mut self,
        name: &str,
        first: usize,
        level: usize,
        (from, to): (usize, usize),
    ) -> Level {
        let settings = self.settings;
        let (depth, width) = (settings.depths[level], settings.channels[level]);
        let attended = settings.self_attn_depths[level];
        let mut layers = Vec::new();
        let mut part = first;
        for index in 0..depth {
            let input = if index == 0 { from } else { width };
            let output = if index + 1 == depth { to } else { width };
            let resnet = self.resnet(&format!("{name}.{part}"), input, width, output);
            part += 1;
            let attention = attended.then(|| self.attention(&format!("{name}.{part}"), output));
            part += usize::from(attended);
            layers.push((resnet, attention));
        }
        layers
    }

    fn resnet(&mut self, name: &str, from: usize, between: usize, to: usize) -> Resnet {
        let told = self.settings.mapping_out;
        let mut half = |norm: usize, from: usize, to: usize| {
            let mapper = format!("{name}.main.{norm}.mapper");
            let conv = format!("{name}.main.{}", norm + 2);
            (
                self.layers.linear(&mapper, told, 2 * from),
                self.layers.conv(&conv, from, to, 3),
            )
        };
        let halves = [half(0, from, between), half(4, between, to)];
        let skip = (from != to).then(|| {
            self.layers
                .parameter(format!("{name}.skip.weight"), vec![to, from, 1, 1])
        });
        Resnet { halves, skip }
    }

    fn attention(&mut self, name: &str, channels: usize) -> Attention {
        let told = self.settings.mapping_out;
        Attention {
            norm: self
                .layers
                .linear(&format!("{name}.norm_in.mapper"), told, 2 * channels),
            qkv: self
                .layers
                .conv(&format!("{name}.qkv_proj"), channels, 3 * channels, 1),
            out: self
                .layers
                .conv(&format!("{name}.out_proj"), channels, channels, 1),
            heads: heads(channels),
        }
    }
}
