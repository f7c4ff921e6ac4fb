//! The network by plan, on the CPU here: one executor for each size of batch and use, made when first needed.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::{Executor, Gradients, Graph, Precision, Use, Value};

#[cfg(feature = "cuda")]
mod card;

use crate::architecture::Architecture;
use crate::dropout::Dropout;
use crate::record::{How, record};
use crate::{Result, UNetConfig};

/// The executors of a network. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Engine {
    planned: Arc<Mutex<Planned<Executor>>>,
    /// The weights stay as they are at the first pass.
    frozen: bool,
    precision: Precision,
    /// Whether training computes the inside of blocks again on the way back.
    recompute: bool,
    /// Those of a card.
    #[cfg(feature = "cuda")]
    on_card: card::OnCard,
}

/// Executors and what they were planned for, the last used first.
type Planned<T> = Vec<(Key, T)>;

/// What a plan depends on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    size: [usize; 3],
    used: Use,
    how: How,
}

/// Plans that are kept: the usual size of batch and the last, smaller one.
const KEPT: usize = 2;

/// What a pass works on.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a UNetConfig,
    pub(crate) network: &'a Architecture,
    pub(crate) weights: &'a [Tensor],
    /// `[B, C, H, W]`
    pub(crate) x: &'a Tensor,
    pub(crate) sinusoids: &'a Tensor,
}

impl Engine {
    /// One that computes alike and shares no executors.
    pub(crate) fn afresh(&self) -> Self {
        Engine {
            precision: self.precision,
            recompute: self.recompute,
            ..Engine::default()
        }
    }

    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        Engine {
            precision,
            ..self.afresh()
        }
    }

    /// How images lie between the operations of candle's graph: as the precision says on a card, f32 everywhere else.
    pub(crate) fn stored_on(&self, device: &Device) -> DType {
        match self.precision {
            Precision::Bf16 if device.is_cuda() => DType::BF16,
            _ => DType::F32,
        }
    }

    pub(crate) fn recomputing(&self, recompute: bool) -> Self {
        Engine {
            recompute,
            ..self.afresh()
        }
    }

    /// One whose weights are laid out once.
    pub(crate) fn frozen(&self) -> Self {
        Engine {
            frozen: true,
            ..self.afresh()
        }
    }

    pub(crate) fn forward(&self, it: &Inputs<'_>) -> Result<Tensor> {
        self.with(it, (Use::Inference, None), |executor| {
            if !self.frozen {
                executor.refresh();
            }
            Ok(executor.forward(it.weights, it.x, it.sinusoids, &mut |_, _| Ok(()))?)
        })
    }

    /// Forward, then backward from what `gradient_of` makes of the output.
    pub(crate) fn learn<E: From<crate::Error>>(
        &self,
        it: &Inputs<'_>,
        dropout: Option<&Dropout<'_>>,
        (gradients, accumulate): (&mut Gradients, bool),
        gradient_of: impl FnOnce(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<(), E> {
        let used = match gradients.are_of_one_pass() {
            true => Use::TrainingInOnePass,
            false => Use::Training,
        };
        self.with(it, (used, dropout), |executor| {
            executor.take_back(gradients);
            let mut draw = |place: usize, mask: &mut [u8]| match dropout {
                Some(dropout) => dropout.draw(place, mask).map_err(candle_core::Error::wrap),
                None => Ok(()),
            };
            let output = executor
                .forward(it.weights, it.x, it.sinusoids, &mut draw)
                .map_err(crate::Error::from)?;
            let gradient = gradient_of(&output)?;
            executor
                .backward(it.weights, it.x, &gradient, gradients, accumulate)
                .map_err(crate::Error::from)?;
            Ok(())
        })
    }

    fn with<R, E: From<crate::Error>>(
        &self,
        it: &Inputs<'_>,
        (used, dropout): (Use, Option<&Dropout<'_>>),
        run: impl FnOnce(&mut Executor) -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        // A panic in a pass leaves nothing behind that the next one reads.
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let plan =
            |graph, output: &Value| Executor::with_precision(graph, output, used, self.precision);
        self.with_one_of(&mut planned, it, (used, dropout), plan, run)
    }

    /// With the executor for a pass, which is planned if it is none of these.
    fn with_one_of<T, R, E: From<crate::Error>>(
        &self,
        planned: &mut Planned<T>,
        it: &Inputs<'_>,
        (used, dropout): (Use, Option<&Dropout<'_>>),
        plan: impl FnOnce(Graph, &Value) -> candle_core::Result<T>,
        run: impl FnOnce(&mut T) -> std::result::Result<R, E>,
    ) -> std::result::Result<R, E> {
        let (batch, _, height, width) = it.x.dims4().map_err(crate::Error::from)?;
        let key = Key {
            size: [batch, height, width],
            used,
            how: How {
                dropout: dropout.is_some(),
                recompute: used != Use::Inference && self.recompute,
            },
        };
        let index = planned.iter().position(|(of, _)| *of == key);
        let (key, mut executor) = match index {
            Some(index) => planned.remove(index),
            None => {
                planned.truncate(KEPT - 1);
                let (graph, output) = record(it.config, it.network, key.size, key.how)?;
                (key, plan(graph, &output).map_err(crate::Error::from)?)
            }
        };
        let result = run(&mut executor);
        planned.insert(0, (key, executor));
        result
    }
}
