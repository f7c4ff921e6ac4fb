//! One block of the network alone, as diffusers' classes of these names: for tests, and for other networks of such blocks.

use candle_core::{Device, Tensor};
use ddpm_random::TorchGenerator;

use crate::architecture::{Change, Level, LevelShape, Mid, Parameter, Plan, Resnet};
use crate::compute::Compute;
use crate::initialisation::drawn_as_torch;
use crate::unet::matched;
use crate::walk::{self, Operations};
use crate::{DownBlock, NamedTensors, Nonlinearity, Result, UNetSettings, UpBlock};

/// A block: its parameters' names, and what it computes with them.
///
/// Of the settings it heeds those of blocks: widths of the time embedding and of heads, groups, eps, activation and the
/// ways to halve and double. They must suit the channels: nothing is checked.
#[derive(Debug, Clone)]
pub struct Block {
    parameters: Vec<Parameter>,
    act_fn: Nonlinearity,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Down(Level),
    Mid(Box<Mid>),
    Up(Level),
    Resnet(Box<Resnet>),
}

/// What a block gives.
#[derive(Debug, Clone)]
pub struct BlockOutput {
    /// The state, `[B, C, H', W']`.
    pub state: Tensor,
    /// The image beside the states of Skip blocks.
    pub image: Option<Tensor>,
}

/// How a residual block alone changes the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResnetChange {
    /// Not at all.
    None,
    /// Halves by means of 2 by 2.
    Down,
    /// Doubles by repetition.
    Up,
    /// Halves through the filter (1, 3, 3, 1).
    FirDown,
    /// Doubles through the filter.
    FirUp,
}

impl Block {
    /// A block on the way down, which halves at its end, with a residual block for each of `inputs`.
    pub fn down(settings: &UNetSettings, kind: DownBlock, inputs: &[usize], width: usize) -> Self {
        let shape = LevelShape {
            inputs: inputs.to_vec(),
            skips: vec![0; inputs.len()],
            width,
            resampled: true,
            up: false,
        };
        Self::new(settings, |plan| Kind::Down(plan.down("", kind, &shape)))
    }

    /// The middle block.
    pub fn mid(settings: &UNetSettings, width: usize) -> Self {
        Self::new(settings, |plan| Kind::Mid(Box::new(plan.mid("", width))))
    }

    /// A block on the way up, which doubles at its end: a residual block for each pair of channels, those of the state
    /// and those that come from the way down.
    pub fn up(
        settings: &UNetSettings,
        kind: UpBlock,
        inputs: &[(usize, usize)],
        width: usize,
    ) -> Self {
        let shape = LevelShape {
            inputs: inputs.iter().map(|(state, skip)| state + skip).collect(),
            skips: inputs.iter().map(|&(_, skip)| skip).collect(),
            width,
            resampled: true,
            up: true,
        };
        Self::new(settings, |plan| Kind::Up(plan.up("", kind, &shape)))
    }

    /// A residual block; `shortcut` asks for a convolution of its input even where the channels stay.
    pub fn resnet(
        settings: &UNetSettings,
        (input, output): (usize, usize),
        shortcut: bool,
        change: ResnetChange,
    ) -> Self {
        let change = match change {
            ResnetChange::None => None,
            ResnetChange::Down => Some(Change::Average),
            ResnetChange::Up => Some(Change::Nearest),
            ResnetChange::FirDown => Some(Change::FirDown),
            ResnetChange::FirUp => Some(Change::FirUp),
        };
        Self::new(settings, |plan| {
            let resnet = plan.block("resnet", (input, output), shortcut, change);
            Kind::Resnet(Box::new(resnet))
        })
    }

    fn new(settings: &UNetSettings, lay_out: impl FnOnce(&mut Plan<'_>) -> Kind) -> Self {
        let mut plan = Plan::new(settings);
        let kind = lay_out(&mut plan);
        Self {
            parameters: plan.parameters,
            act_fn: settings.act_fn,
            kind,
        }
    }

    /// Names and shapes, in the order in which PyTorch's constructor makes them.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = (&str, &[usize])> {
        let parameters = self.parameters.iter();
        parameters.map(|parameter| (parameter.name.as_str(), parameter.shape.as_slice()))
    }

    /// First weights as PyTorch's constructor of the block draws them from its generator.
    ///
    /// # Errors
    /// A device that cannot hold them.
    pub fn initialise_as_torch(
        &self,
        generator: &mut TorchGenerator,
        device: &Device,
    ) -> Result<Vec<(String, Tensor)>> {
        drawn_as_torch(self.parameters.clone(), generator, device)
    }

    /// Evaluates the block, without dropout.
    ///
    /// # Shapes
    /// x `[B, C, H, W]`, time `[B, D]` (the time embedding before its activation), `skips` from the way down in its
    /// order, `image` `[B, 3, H, W]` for Skip blocks.
    ///
    /// # Errors
    /// Weights that are not the block's; shapes that do not fit.
    pub fn forward(
        &self,
        weights: &(impl NamedTensors + ?Sized),
        x: &Tensor,
        time: &Tensor,
        skips: &[Tensor],
        image: Option<&Tensor>,
    ) -> Result<BlockOutput> {
        let weights = matched(self.parameters.iter().map(Parameter::named), weights)?;
        let mut ops = Compute {
            weights: &weights,
            dropout: None,
        };
        let time = ops.activate(time, self.act_fn)?;
        let told = (&time, self.act_fn);
        let mut skips = skips.to_vec();
        let mut image = image.cloned();
        let (x, ops) = (x.clone(), &mut ops);
        let state = match &self.kind {
            Kind::Down(level) => walk::down(level, ops, x, told, &mut skips, &mut image),
            Kind::Mid(mid) => walk::mid(mid, ops, x, told),
            Kind::Up(level) => walk::up(level, ops, x, told, &mut skips, &mut image),
            Kind::Resnet(resnet) => walk::resnet(resnet, ops, x, told),
        }?;
        Ok(BlockOutput { state, image })
    }
}
