//! The network on a card by plan: as on the CPU, one executor for each size of batch and use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor};
use ddpm_kernels::{CardExecutor, Draws, Use, Value};

use super::{Engine, Inputs};
use crate::dropout::Dropout;

/// The executors of a network, and the gradients that they write. Clones share them.
#[derive(Clone, Default)]
pub(super) struct OnCard(Arc<Mutex<State>>);

impl OnCard {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    executors: super::Planned<CardExecutor>,
    /// Always the same memory: passes that were recorded write there.
    gradients: Vec<Tensor>,
}

impl Engine {
    /// As [`Engine::forward`], where the weights and x are on a card.
    pub(crate) fn forward_on_card(&self, it: &Inputs<'_>) -> crate::Result<Tensor> {
        let mut state = self.on_card.lock();
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
        let mut state = self.on_card.lock();
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
        let plan = |graph, output: &Value| CardExecutor::new(graph, output, used, self.precision);
        self.with_one_of(&mut state.executors, it, (used, dropout), plan, run)
    }
}

fn zeros_like(weights: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
    let zeros = |weight: &Tensor| Tensor::zeros(weight.shape(), DType::F32, weight.device());
    weights.iter().map(zeros).collect()
}
