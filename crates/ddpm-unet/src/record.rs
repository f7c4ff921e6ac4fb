//! The walk over the network that records: every operation becomes part of a plan that ddpm-kernels' executor carries out.

use ddpm_kernels::{Activation, Conv2d, Graph, Value};

use crate::architecture::{
    Architecture, Change, Conv, Linear, Norm, Resample, TimeInput, time_input_width,
};
use crate::walk::{self, Operations, Told};
use crate::{DownBlock, Error, Nonlinearity, Result, TimeEmbeddingType, UNetConfig, UNetSettings};

impl UNetConfig {
    /// Why this network is computed without a plan: through candle's graph, operation by operation, slower, and on the CPU in f32
    /// in whatever [`Precision`](crate::Precision). The words name the settings; `None` where it goes by plan.
    ///
    /// # Errors
    /// When a plan cannot be made for another reason than what it can hold.
    pub fn unplanned(&self, used: crate::Use) -> Result<Option<String>> {
        let network = Architecture::new(self.settings());
        let (evaluated, trained) = planned(self, &network)?;
        let goes = match used {
            crate::Use::Sampling => evaluated,
            crate::Use::Training { .. } => trained,
        };
        Ok((!goes).then(|| lacking(self.settings(), &network, used)))
    }
}

/// The settings that a plan cannot hold.
fn lacking(settings: &UNetSettings, network: &Architecture, used: crate::Use) -> String {
    let mut reasons: Vec<String> = Vec::new();
    let mut lacks = |what: String| {
        if !reasons.contains(&what) {
            reasons.push(what);
        }
    };
    for (level, kind) in network.down.iter().zip(&settings.down_block_types) {
        match &level.resample {
            Some(Resample::Resnet(_)) if *kind == DownBlock::AttnDown => {
                lacks("`downsample_type` \"resnet\"".to_owned());
            }
            Some(Resample::Plain(_)) => lacks("`plain_resampling`".to_owned()),
            Some(Resample::Resnet(_) | Resample::SkipDown { .. }) => lacks(kind.name().to_owned()),
            _ => {}
        }
    }
    for (level, kind) in network.up.iter().zip(&settings.up_block_types) {
        if let Some(Resample::SkipUp { .. }) = &level.resample {
            lacks(kind.name().to_owned());
        }
    }
    if settings.act_fn != Nonlinearity::Silu {
        lacks(format!("`act_fn` {:?}", settings.act_fn).to_lowercase());
    }
    if used != crate::Use::Sampling {
        if network.class.is_some() {
            lacks("classes".to_owned());
        }
        if settings.time_embedding_type != TimeEmbeddingType::Positional {
            let kind = settings.time_embedding_type;
            lacks(format!("`time_embedding_type` {kind:?}").to_lowercase());
        }
    }
    reasons.join(", ")
}

/// Whether the network has a plan: for evaluation, and for training.
///
/// Not all operations can be recorded. A network that needs another one is walked over on tensors instead.
pub(crate) fn planned(config: &UNetConfig, network: &Architecture) -> Result<(bool, bool)> {
    let side = config.size_factor();
    match record(config, network, [1, side, side], How::default()) {
        // The vectors of learned times and of classes get no gradient by a plan, and frequencies have none.
        Ok(_) => {
            let positional = matches!(network.time, TimeInput::Positional);
            Ok((true, positional && network.class.is_none()))
        }
        Err(Error::Unplanned(_)) => Ok((false, false)),
        Err(error) => Err(error),
    }
}

/// How a network is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct How {
    /// Without it nothing is dropped.
    pub(crate) dropout: bool,
    /// The way back computes the inside of blocks again.
    pub(crate) recompute: bool,
}

/// The plan of a network for batches of one size, and its output.
///
/// # Errors
/// [`Error::Unplanned`] for what cannot be recorded.
pub(crate) fn record(
    config: &UNetConfig,
    network: &Architecture,
    [batch, height, width]: [usize; 3],
    how: How,
) -> Result<(Graph, Value)> {
    let settings = config.settings();
    let shapes = network.parameters.iter().map(|p| p.shape.clone()).collect();
    let rate = if how.dropout { settings.dropout } else { 0.0 };
    let mut record = Record(Graph::new(batch, shapes, rate));
    if how.recompute {
        record.0.recompute();
    }
    let x = record.0.images(settings.in_channels, height, width);
    let output = if network.class.is_some() {
        // A plan has one input of vectors: here the embedding of time and class, made before (`UNet::embedded`).
        let embedding = record.0.vectors(network.time_width());
        walk::unet_with(network, &mut record, x, &embedding)?
    } else {
        let time = record.0.vectors(time_input_width(settings));
        let told = Told { time, class: None };
        walk::unet(network, &mut record, x, &told)?
    };
    Ok((record.0, output))
}

struct Record(Graph);

impl Record {
    fn convolve(&mut self, x: &Value, conv: &Conv, plus: Option<&Value>) -> Result<Value> {
        let how = Conv2d::new(conv.stride, conv.padding);
        Ok(self.0.conv2d(x, conv.weight, conv.bias, plus, how)?)
    }

    fn normalise(
        &mut self,
        x: &Value,
        norm: &Norm,
        scale_shift: Option<&Value>,
        activation: Activation,
    ) -> Result<Value> {
        let (groups, affine) = ((norm.groups, norm.eps), (norm.gamma, norm.beta));
        Ok(self
            .0
            .group_norm(x, groups, affine, scale_shift, activation)?)
    }
}

impl Operations for Record {
    type Value = Value;

    fn begin_block(&mut self) {
        self.0.begin_block();
    }

    fn conv2d(&mut self, x: &Value, conv: &Conv) -> Result<Value> {
        self.convolve(x, conv, None)
    }

    fn conv2d_plus(&mut self, x: &Value, conv: &Conv, plus: &Value) -> Result<Value> {
        self.convolve(x, conv, Some(plus))
    }

    fn linear(&mut self, x: &Value, linear: &Linear) -> Result<Value> {
        Ok(self.0.linear(x, linear.weight, linear.bias)?)
    }

    fn group_norm(&mut self, x: &Value, norm: &Norm, activation: Activation) -> Result<Value> {
        self.normalise(x, norm, None, activation)
    }

    fn group_norm_scale_shift(
        &mut self,
        x: &Value,
        norm: &Norm,
        scale_shift: &Value,
        activation: Activation,
    ) -> Result<Value> {
        self.normalise(x, norm, Some(scale_shift), activation)
    }

    fn activate(&mut self, x: &Value, function: Nonlinearity) -> Result<Value> {
        match function {
            Nonlinearity::Silu => Ok(self.0.silu(x)),
            _ => Err(Error::Unplanned("activations other than SiLU")),
        }
    }

    fn add(&mut self, x: &Value, y: &Value) -> Result<Value> {
        Ok(self.0.add(x, y)?)
    }

    fn divide(&mut self, x: &Value, divisor: f64) -> Result<Value> {
        Ok(self.0.divide(x, divisor)?)
    }

    /// The channels of a pixel lie side by side already.
    fn pixels_as_rows(&mut self, x: &Value) -> Result<Value> {
        Ok(x.clone())
    }

    fn rows_as_pixels(&mut self, x: &Value, _: &Value) -> Result<Value> {
        Ok(x.clone())
    }

    fn attention(
        &mut self,
        query: &Value,
        key: &Value,
        value: &Value,
        heads: usize,
    ) -> Result<Value> {
        Ok(self.0.attention(query, key, value, heads)?)
    }

    fn concat_channels(&mut self, a: &Value, b: &Value) -> Result<Value> {
        Ok(self.0.concat_channels(a, b)?)
    }

    fn upsample_nearest_2x(&mut self, x: &Value) -> Result<Value> {
        Ok(self.0.upsample_nearest_2x(x))
    }

    fn change(&mut self, _: &Value, _: Change) -> Result<Value> {
        Err(Error::Unplanned("other ways to halve and double"))
    }

    fn dropout(&mut self, x: &Value, place: usize) -> Result<Value> {
        Ok(self.0.dropout(x, place))
    }
}
