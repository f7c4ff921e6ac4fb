//! Adam and AdamW with their state in the open.

use candle_core::Tensor;
use ddpm_kernels::{AdamW, Averaged, Gradients, optimise, optimise_tensors};

use crate::Result;
use crate::settings::OptimizerSettings;

/// Adam (Kingma and Ba 2015, algorithm 1), with decoupled weight decay AdamW (Loshchilov and Hutter 2019, algorithm 2),
/// in the form and order of PyTorch's. One first and one second moment for each parameter, in the parameters' order.
#[derive(Clone, Debug)]
pub struct Adam {
    /// The running means of the gradients.
    pub m: Vec<Tensor>,
    /// The running means of the gradients' squares.
    pub v: Vec<Tensor>,
    /// How many steps were made.
    pub step: usize,
    beta_1: f64,
    beta_2: f64,
    epsilon: f64,
    weight_decay: f64,
}

impl Adam {
    /// An optimiser that has made no step yet: all moments 0.
    pub fn new(settings: &OptimizerSettings, parameters: &[Tensor]) -> Result<Self> {
        let zeros = || {
            parameters
                .iter()
                .map(Tensor::zeros_like)
                .collect::<candle_core::Result<Vec<_>>>()
        };
        Ok(Self {
            m: zeros()?,
            v: zeros()?,
            step: 0,
            beta_1: settings.beta_1,
            beta_2: settings.beta_2,
            epsilon: settings.epsilon,
            weight_decay: settings.weight_decay,
        })
    }

    /// Moves every parameter, in place, by one step along its gradient times `factor`, and every average after it.
    ///
    /// # Shapes
    /// Gradient and averages number i are shaped as `parameters[i]`; all in the order the optimiser was made with.
    pub fn step(
        &mut self,
        parameters: &[Tensor],
        gradients: &Gradients,
        factor: f64,
        learning_rate: f64,
        averages: &[Averaged<'_>],
    ) -> Result<()> {
        let step = self.next(learning_rate);
        self.step += 1;
        optimise(
            (parameters, &self.m, &self.v),
            gradients,
            factor,
            &step,
            averages,
        )?;
        Ok(())
    }

    /// As the step that comes next by [`Adam::step`], from gradients that are tensors where the parameters are, clipped there to
    /// `max_norm`; without waiting for it, and without counting it. Returns f32 `[2]`: their norm before clipping, and what they
    /// were multiplied by. Where the norm is not finite, nothing moves.
    pub fn step_by_tensors(
        &self,
        parameters: &[Tensor],
        gradients: &[Tensor],
        max_norm: f64,
        learning_rate: f64,
        averages: &[Averaged<'_>],
    ) -> Result<Tensor> {
        let step = self.next(learning_rate);
        Ok(optimise_tensors(
            (parameters, &self.m, &self.v),
            gradients,
            max_norm,
            &step,
            averages,
        )?)
    }

    /// The numbers of the next step.
    fn next(&self, learning_rate: f64) -> AdamW {
        AdamW {
            learning_rate,
            beta1: self.beta_1,
            beta2: self.beta_2,
            eps: self.epsilon,
            weight_decay: self.weight_decay,
            step: self.step as u64 + 1,
        }
    }
}
