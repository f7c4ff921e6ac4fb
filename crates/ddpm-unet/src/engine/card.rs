//! The network on a card by plan: as on the CPU, one executor for each size of batch and use.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
use ddpm_kernels::{CardExecutor, Draws, Use};

use super::{Engine, Inputs, KEPT, Key};
use crate::dropout::Dropout;
use crate::record::{How, record};

/// The executors of a network, and the gradients that they write. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Planned(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    executors: Vec<(Key, CardExecutor)>,
    /// Always the same memory: passes that were recorded write there.
    gradients: Vec<Tensor>,
}

impl Engine {
    /// As [`Engine::forward`], where the weights and x are on a card.
    pub(crate) fn forward_on_card(&self, it: &Inputs<'_>) -> crate::Result<Tensor> {
        let mut state = self
            .on_card
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.with_card(&mut state, it, (Use::Inference, None), |executor| {
            if !self.frozen {
                executor.refresh();
            }
            let mut none = |place: usize| {
                candle_core::bail!("dropout at place {place} of a network that is evaluated")
            };
            Ok(executor.forward(it.weights, it.x, it.sinusoids, &mut none)?)
        })
    }

    /// As [`Engine::learn`], where the weights and x are on a card. An empty list of gradients is filled with tensors that the next
    /// call with an empty list writes again; others are added to.
    pub(crate) fn learn_on_card<E: From<crate::Error>>(
        &self,
        it: &Inputs<'_>,
        dropout: Option<&Dropout<'_>>,
        gradients: &mut Vec<Tensor>,
        gradient_of: impl FnOnce(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<(), E> {
        let mut state = self
            .on_card
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let accumulate = !gradients.is_empty();
        if !accumulate {
            if state.gradients.is_empty() {
                state.gradients = zeros_like(it.weights).map_err(crate::Error::from)?;
            }
            gradients.clone_from(&state.gradients);
        }
        self.with_card(&mut state, it, (Use::Training, dropout), |executor| {
            let mut draws = |place: usize| match dropout {
                Some(dropout) => {
                    let (key, counters) = dropout.words(place).map_err(candle_core::Error::wrap)?;
                    Ok(Draws { key, counters })
                }
                None => candle_core::bail!("dropout at place {place} was not asked for"),
            };
            let output = executor
                .forward(it.weights, it.x, it.sinusoids, &mut draws)
                .map_err(crate::Error::from)?;
            let gradient = gradient_of(&output)?;
            executor
                .backward(it.weights, &gradient, gradients, accumulate)
                .map_err(crate::Error::from)?;
            Ok(())
        })
    }

    fn with_card<R, E: From<crate::Error>>(
        &self,
        state: &mut State,
        it: &Inputs<'_>,
        (used, dropout): (Use, Option<&Dropout<'_>>),
        run: impl FnOnce(&mut CardExecutor) -> std::result::Result<R, E>,
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
        let executors = &mut state.executors;
        let index = executors.iter().position(|(of, _)| *of == key);
        let mut found = match index {
            Some(index) => executors.remove(index),
            None => {
                executors.truncate(KEPT - 1);
                let (graph, output) = record(it.config, it.network, key.size, key.how)?;
                let executor = CardExecutor::new(graph, &output, used, self.precision)
                    .map_err(crate::Error::from)?;
                (key, executor)
            }
        };
        let result = run(&mut found.1);
        executors.insert(0, found);
        result
    }
}

fn zeros_like(weights: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
    let zeros = |weight: &Tensor| Tensor::zeros(weight.shape(), DType::F32, weight.device());
    weights.iter().map(zeros).collect()
}
