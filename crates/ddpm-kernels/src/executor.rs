//! A network run from one plan: its operations recorded once with their shapes, then carried out forward and backward in
//! one block of memory, without candle's graph and without allocating in between.
//!
//! What makes it fast is what is left out. Concatenation, normalisation, SiLU, dropout and up-sampling are never carried
//! out on their own: they are done by the convolution after them, on the few pixels that are in the cache anyway
//! ([`crate::source`]), and again by its gradient. Residual sums are added while a convolution writes its result.
//! What is kept for the backward pass is therefore the results of convolutions and attention, and nothing else.

mod arena;
#[cfg(feature = "cuda")]
mod card;
mod compile;
mod gradients;
mod graph;
#[cfg(any(test, feature = "cuda"))]
mod lower;
#[cfg(any(test, feature = "cuda"))]
mod on_card;
mod run;

#[cfg(test)]
#[path = "executor/tests/on_card.rs"]
mod on_card_tests;

/// How a network's activations are stored and what multiplies them. Parameters, statistics, and whatever is added up are f32
/// always; so are the parameters' gradients, but for [`Gradients::of_one_pass`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Activations and their gradients in bf16, half the memory; products in bf16 by
    /// [`Products`](crate::processor::Products).
    Bf16,
}

impl Precision {
    /// bf16 where this processor has units for it, otherwise f32.
    pub fn fastest() -> Self {
        if crate::processor::Products::current().are_fast() {
            Precision::Bf16
        } else {
            Precision::F32
        }
    }
}

#[cfg(feature = "cuda")]
pub use crate::cuda::dropout::Draws;
#[cfg(feature = "cuda")]
pub use card::CardExecutor;
pub use gradients::Gradients;
pub use graph::{Graph, Value};
#[cfg(feature = "cuda")]
pub use on_card::DrawsOf;
pub use run::{DrawMask, Executor, Needed, Use};
