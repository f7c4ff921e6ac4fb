//! How much memory a network needs, by the same walk over it with shapes in the place of tensors.

use std::cell::RefCell;
use std::rc::Rc;

use ddpm_kernels::Activation;

use crate::architecture::{Architecture, Conv, Linear, Norm, Parameter};
use crate::walk::{self, Operations};
use crate::{Result, UNetConfig};

/// What a network is to be used for, as far as memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Calls without gradients.
    Sampling,
    /// Steps of Adam, with this many moving averages of the weights beside.
    Training {
        /// Moving averages kept.
        averages: usize,
    },
}

/// Bytes, by what they hold. An estimate: allocators, thread-local buffers and the program itself come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The weights.
    pub parameters: u64,
    /// Their gradients; 0 in sampling.
    pub gradients: u64,
    /// Adam's two moments; 0 in sampling.
    pub moments: u64,
    /// Moving averages of the weights; 0 in sampling.
    pub averages: u64,
    /// In sampling the most that is alive at once; in training the results of all operations, which the backward
    /// pass needs, plus the gradients alive at once (those of the skips, and three of the largest tensor).
    pub activations: u64,
}

impl MemoryEstimate {
    /// The sum.
    pub fn total(&self) -> u64 {
        [
            self.parameters,
            self.gradients,
            self.moments,
            self.averages,
            self.activations,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

impl UNetConfig {
    /// Estimates the memory for one batch of images of this size, everything in f32.
    ///
    /// # Errors
    /// A size that the network's depth does not suit.
    pub fn memory_estimate(
        &self,
        batch: usize,
        height: usize,
        width: usize,
        used: Use,
    ) -> Result<MemoryEstimate> {
        self.check_image(height, width)?;
        let network = Architecture::new(self);
        let parameters = bytes(&[self.parameter_count()]);
        let (copies, averages) = match used {
            Use::Sampling => (0, 0),
            Use::Training { averages } => (1, averages as u64),
        };
        Ok(MemoryEstimate {
            parameters,
            gradients: copies * parameters,
            moments: 2 * copies * parameters,
            averages: parameters.saturating_mul(averages),
            activations: activations(self, &network, [batch, height, width], used)?,
        })
    }
}

/// Walks the network with shapes.
fn activations(
    config: &UNetConfig,
    network: &Architecture,
    [batch, height, width]: [usize; 3],
    used: Use,
) -> Result<u64> {
    let settings = config.settings();
    let dropout = settings.dropout > 0.0 && used != Use::Sampling;
    let mut measure = Measure {
        parameters: &network.parameters,
        dropout,
        meter: Rc::default(),
    };
    let x = measure.value(&[batch, settings.in_channels, height, width]);
    let sinusoids = measure.value(&[batch, settings.block_out_channels[0]]);
    let output = walk::unet(network, &mut measure, x, sinusoids)?;
    drop(output);
    let meter = measure.meter.borrow();
    Ok(match used {
        Use::Sampling => meter.peak,
        Use::Training { .. } => meter
            .all
            .saturating_add(meter.joined)
            .saturating_add(meter.largest.saturating_mul(3)),
    })
}

/// Bytes of tensors made, alive and most alive so far.
#[derive(Debug, Default)]
struct Meter {
    all: u64,
    alive: u64,
    peak: u64,
    largest: u64,
    /// Bytes that concatenation joined to the way up: their gradients wait for the way down.
    joined: u64,
}

/// Counts instead of computing.
struct Measure<'a> {
    parameters: &'a [Parameter],
    dropout: bool,
    meter: Rc<RefCell<Meter>>,
}

/// The shape of a tensor that would be alive for as long as this is.
struct Shaped {
    shape: Vec<usize>,
    meter: Rc<RefCell<Meter>>,
}

impl Drop for Shaped {
    fn drop(&mut self) {
        let mut meter = self.meter.borrow_mut();
        meter.alive = meter.alive.saturating_sub(bytes(&self.shape));
    }
}

impl Measure<'_> {
    fn value(&self, shape: &[usize]) -> Rc<Shaped> {
        let size = bytes(shape);
        let mut meter = self.meter.borrow_mut();
        meter.all = meter.all.saturating_add(size);
        meter.alive = meter.alive.saturating_add(size);
        meter.peak = meter.peak.max(meter.alive);
        meter.largest = meter.largest.max(size);
        Rc::new(Shaped {
            shape: shape.to_vec(),
            meter: Rc::clone(&self.meter),
        })
    }

    fn outputs(&self, weight: usize) -> usize {
        self.parameters[weight].shape[0]
    }
}

impl Operations for Measure<'_> {
    type Value = Rc<Shaped>;

    fn conv2d(&mut self, x: &Rc<Shaped>, conv: &Conv) -> Result<Rc<Shaped>> {
        let kernel = self.parameters[conv.weight].shape[2];
        let padding = conv.padding;
        let side = |side: usize, padding: usize| {
            side.saturating_add(padding).saturating_sub(kernel) / conv.stride + 1
        };
        let height = side(x.shape[2], padding.top + padding.bottom);
        let width = side(x.shape[3], padding.left + padding.right);
        Ok(self.value(&[x.shape[0], self.outputs(conv.weight), height, width]))
    }

    fn conv2d_plus(
        &mut self,
        x: &Rc<Shaped>,
        conv: &Conv,
        plus: &Rc<Shaped>,
    ) -> Result<Rc<Shaped>> {
        let _bias = self.value(&plus.shape);
        self.conv2d(x, conv)
    }

    fn linear(&mut self, x: &Rc<Shaped>, linear: &Linear) -> Result<Rc<Shaped>> {
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(self.outputs(linear.weight));
        Ok(self.value(&shape))
    }

    fn group_norm(&mut self, x: &Rc<Shaped>, _: &Norm, _: Activation) -> Result<Rc<Shaped>> {
        Ok(self.value(&x.shape))
    }

    fn group_norm_scale_shift(
        &mut self,
        x: &Rc<Shaped>,
        norm: &Norm,
        _: &Rc<Shaped>,
        activation: Activation,
    ) -> Result<Rc<Shaped>> {
        self.group_norm(x, norm, activation)
    }

    fn silu(&mut self, x: &Rc<Shaped>) -> Result<Rc<Shaped>> {
        Ok(self.value(&x.shape))
    }

    fn add(&mut self, x: &Rc<Shaped>, _: &Rc<Shaped>) -> Result<Rc<Shaped>> {
        Ok(self.value(&x.shape))
    }

    fn divide(&mut self, x: &Rc<Shaped>, _: f64) -> Result<Rc<Shaped>> {
        Ok(self.value(&x.shape))
    }

    fn pixels_as_rows(&mut self, x: &Rc<Shaped>) -> Result<Rc<Shaped>> {
        Ok(self.value(&[
            x.shape[0],
            x.shape[2].saturating_mul(x.shape[3]),
            x.shape[1],
        ]))
    }

    fn rows_as_pixels(&mut self, _: &Rc<Shaped>, like: &Rc<Shaped>) -> Result<Rc<Shaped>> {
        Ok(self.value(&like.shape))
    }

    /// Queries, keys and values head by head, one matrix of probabilities, the mixture and its rows put together.
    fn attention(
        &mut self,
        query: &Rc<Shaped>,
        _: &Rc<Shaped>,
        _: &Rc<Shaped>,
        heads: usize,
    ) -> Result<Rc<Shaped>> {
        let pixels = query.shape[1];
        let _split = [0; 3].map(|_| self.value(&query.shape));
        let _probabilities = self.value(&[query.shape[0], heads, pixels, pixels]);
        let _mixed = self.value(&query.shape);
        Ok(self.value(&query.shape))
    }

    fn concat_channels(&mut self, a: &Rc<Shaped>, b: &Rc<Shaped>) -> Result<Rc<Shaped>> {
        let mut meter = self.meter.borrow_mut();
        meter.joined = meter.joined.saturating_add(bytes(&b.shape));
        drop(meter);
        Ok(self.value(&[a.shape[0], a.shape[1] + b.shape[1], a.shape[2], a.shape[3]]))
    }

    fn upsample_nearest_2x(&mut self, x: &Rc<Shaped>) -> Result<Rc<Shaped>> {
        Ok(self.value(&[
            x.shape[0],
            x.shape[1],
            x.shape[2].saturating_mul(2),
            x.shape[3].saturating_mul(2),
        ]))
    }

    /// The result and the mask, a byte an element.
    fn dropout(&mut self, x: &Rc<Shaped>, _: usize) -> Result<Rc<Shaped>> {
        if !self.dropout {
            return Ok(Rc::clone(x));
        }
        let mask = self.value(&[bytes(&x.shape) as usize / 16]);
        let output = self.value(&x.shape);
        drop(mask);
        Ok(output)
    }
}

/// Bytes of a tensor of f32.
fn bytes(shape: &[usize]) -> u64 {
    shape
        .iter()
        .fold(4, |bytes, &side| bytes.saturating_mul(side as u64))
}
