//! How much memory a network needs: its weights and what the plan of a pass sets aside, on the CPU or on a card, or, where there
//! is no plan, what the walk over it on tensors keeps.

use ddpm_kernels::{Executor, Graph, Needed, Precision, Value};

use crate::architecture::Architecture;
use crate::measure::measured;
use crate::record::{How, planned as planned_for, record};
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
        /// Whether what is inside of blocks is computed again ([`UNet::recomputing`](crate::UNet::recomputing)).
        recompute: bool,
        /// Whether the gradients are [`of one pass`](ddpm_kernels::Gradients::of_one_pass).
        in_one_pass: bool,
    },
}

/// Bytes, by what they hold. What threads gather pixels and weights in and the program itself come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The weights.
    pub parameters: u64,
    /// Their gradients, but for those that lie where activations lay; 0 in sampling.
    pub gradients: u64,
    /// Adam's two moments; 0 in sampling.
    pub moments: u64,
    /// Moving averages of the weights; 0 in sampling.
    pub averages: u64,
    /// The block that the plan of a pass lays its activations out in, and in training the gradients between operations
    /// and the masks of dropout, and where it can the gradients of weights. Without a plan: the most that is alive at once; in training the results of all
    /// operations, which the way back needs, and the gradients alive at once.
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
    /// Whether [`UNet::learn`](crate::UNet::learn) goes by plan on the CPU: plain, attention and convolution blocks with
    /// SiLU, sinusoids and no classes do. Other networks take candle's graph.
    ///
    /// # Errors
    /// None that the making of this configuration would not have had.
    pub fn learns_by_plan(&self) -> Result<bool> {
        Ok(planned_for(self, &Architecture::new(self.settings()))?.1)
    }

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
        self.memory_estimate_in(Precision::F32, batch, height, width, used)
    }

    /// As [`UNetConfig::memory_estimate`], computing in this precision; weights and what belongs to them are f32 in any.
    ///
    /// # Errors
    /// As [`UNetConfig::memory_estimate`].
    pub fn memory_estimate_in(
        &self,
        precision: Precision,
        batch: usize,
        height: usize,
        width: usize,
        used: Use,
    ) -> Result<MemoryEstimate> {
        self.check_image(height, width)?;
        let network = Architecture::new(self.settings());
        let planned = match used {
            Use::Sampling => ddpm_kernels::Use::Inference,
            Use::Training {
                in_one_pass: true, ..
            } => ddpm_kernels::Use::TrainingInOnePass,
            Use::Training { .. } => ddpm_kernels::Use::Training,
        };
        let size = [batch, height, width];
        let needed = match self.recorded(&network, size, used)? {
            Some((graph, output)) => Executor::memory(graph, &output, planned, precision)?,
            None => self.measured(&network, size, used)?,
        };
        Ok(self.beside(&needed, used))
    }

    /// As [`UNetConfig::memory_estimate`], going operation by operation through candle's graph. In bf16 activations
    /// take half of what they take in f32, and weights are there once more, rounded.
    ///
    /// # Errors
    /// As [`UNetConfig::memory_estimate`].
    pub fn memory_estimate_by_graph(
        &self,
        precision: Precision,
        batch: usize,
        height: usize,
        width: usize,
        used: Use,
    ) -> Result<MemoryEstimate> {
        self.check_image(height, width)?;
        let network = Architecture::new(self.settings());
        let mut needed = self.measured(&network, [batch, height, width], used)?;
        if precision == Precision::Bf16 {
            let rounded = bytes(&[self.parameter_count()]) / 2;
            needed.activations = needed.activations / 2 + rounded;
        }
        Ok(self.beside(&needed, used))
    }

    /// As [`UNetConfig::memory_estimate_in`], of a card's memory: by plan where the network has one for this use, otherwise by graph.
    ///
    /// # Errors
    /// As [`UNetConfig::memory_estimate`].
    pub fn memory_estimate_on_card(
        &self,
        precision: Precision,
        batch: usize,
        height: usize,
        width: usize,
        used: Use,
    ) -> Result<MemoryEstimate> {
        #[cfg(feature = "cuda")]
        if let Some(needed) = self.planned_on_card(precision, [batch, height, width], used)? {
            return Ok(self.beside(&needed, used));
        }
        self.memory_estimate_by_graph(precision, batch, height, width, used)
    }

    /// What a card's plan needs, if there is one.
    #[cfg(feature = "cuda")]
    fn planned_on_card(
        &self,
        precision: Precision,
        size: [usize; 3],
        used: Use,
    ) -> Result<Option<Needed>> {
        self.check_image(size[1], size[2])?;
        let network = Architecture::new(self.settings());
        let Some((graph, output)) = self.recorded(&network, size, used)? else {
            return Ok(None);
        };
        let planned = match used {
            Use::Sampling => ddpm_kernels::Use::Inference,
            Use::Training { .. } => ddpm_kernels::Use::Training,
        };
        let executor = ddpm_kernels::CardExecutor::new(graph, &output, planned, precision)?;
        Ok(Some(executor.memory()))
    }

    /// What a plan for this use is made of, where the network has one.
    fn recorded(
        &self,
        network: &Architecture,
        size: [usize; 3],
        used: Use,
    ) -> Result<Option<(Graph, Value)>> {
        let (evaluated, trained) = planned_for(self, network)?;
        let how = match used {
            Use::Sampling if evaluated => How::default(),
            Use::Training { recompute, .. } if trained => How {
                dropout: true,
                recompute,
            },
            _ => return Ok(None),
        };
        record(self, network, size, how).map(Some)
    }

    /// What the walk on tensors keeps, and gradients like the weights.
    fn measured(&self, network: &Architecture, size: [usize; 3], used: Use) -> Result<Needed> {
        let gradients = match used {
            Use::Sampling => 0,
            Use::Training { .. } => bytes(&[self.parameter_count()]),
        };
        Ok(Needed {
            activations: measured(self, network, size, used)?,
            gradients,
        })
    }

    /// What a pass needs, and the weights with what belongs to them.
    fn beside(&self, needed: &Needed, used: Use) -> MemoryEstimate {
        let parameters = bytes(&[self.parameter_count()]);
        let (copies, averages) = match used {
            Use::Sampling => (0, 0),
            Use::Training { averages, .. } => (1, averages as u64),
        };
        MemoryEstimate {
            parameters,
            gradients: needed.gradients,
            moments: 2 * copies * parameters,
            averages: parameters.saturating_mul(averages),
            activations: needed.activations,
        }
    }
}

/// Bytes of a shape in f32.
pub(crate) fn bytes(shape: &[usize]) -> u64 {
    shape
        .iter()
        .fold(4, |bytes, &side| bytes.saturating_mul(side as u64))
}
