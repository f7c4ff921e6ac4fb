//! The walk over the network that only measures: shapes in the place of tensors.

use std::cell::RefCell;
use std::rc::Rc;

use ddpm_kernels::Activation;

use crate::architecture::{
    Architecture, Change, ClassInput, Conv, Linear, Norm, Parameter, time_input_width,
};
use crate::memory::{Use, bytes};
use crate::walk::{self, Operations, Told};
use crate::{Nonlinearity, Result, UNetConfig};

/// Bytes of the activations of a pass without a plan. What threads work in comes on top.
pub(crate) fn measured(
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
    let told = Told {
        time: measure.value(&[batch, time_input_width(settings)]),
        class: network.class.map(|class| {
            let width = match class {
                ClassInput::Timestep(_) => time_input_width(settings),
                _ => network.time_width(),
            };
            measure.value(&[batch, width])
        }),
    };
    let output = walk::unet(network, &mut measure, x, &told)?;
    drop((output, told));
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

    fn activate(&mut self, x: &Rc<Shaped>, _: Nonlinearity) -> Result<Rc<Shaped>> {
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

    fn change(&mut self, x: &Rc<Shaped>, change: Change) -> Result<Rc<Shaped>> {
        let side = |side: usize| match change {
            Change::Average | Change::FirDown => side / 2,
            Change::Nearest | Change::FirUp => side.saturating_mul(2),
        };
        Ok(self.value(&[x.shape[0], x.shape[1], side(x.shape[2]), side(x.shape[3])]))
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
