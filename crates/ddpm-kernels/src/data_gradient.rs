//! The gradient of a convolution with respect to its image: the gradient of the output under the weights turned round.

use crate::bf16::{self, Bf16};
use crate::correlate::{Addend, Correlation, Output};
use crate::geometry::Geometry;
use crate::packing::{Packed, Weights};
use crate::source::Source;

/// dx\[i, pixel\] = Σ over outputs and taps of w\[o, i, tap\] dy\[o, the pixels whose window has this one under the tap\].
pub(crate) struct DataGradient<'a, E = f32> {
    pub(crate) batch: usize,
    pub(crate) geometry: &'a Geometry,
    pub(crate) dy: &'a Source<'a>,
    /// From outputs to inputs.
    pub(crate) turned: Weights<'a>,
    /// Adds to what lies here, laid out as the output.
    pub(crate) plus: Option<Addend<E>>,
}

impl DataGradient<'_> {
    /// Computes the gradient, in parallel; `packed` is memory for the weights.
    ///
    /// # Safety
    /// Nothing else touches the output, and `plus` reaches as far as it, while this runs.
    #[allow(unsafe_code)] // the output is shared by tasks
    pub(crate) unsafe fn run(&self, packed: &mut Packed, output: Output<'_>) {
        for share in self.geometry.backward() {
            packed.fill(self.turned, &share.taps, &share.window);
            let correlation = Correlation {
                batch: self.batch,
                source: self.dy,
                window: &share.window,
                weights: packed,
                bias: None,
                plus: self.plus,
                scale: 1.0,
            };
            // SAFETY: the caller's promise; the shares are different pixels.
            unsafe {
                correlation.run(output.every(self.geometry.stride, share.row, share.column));
            }
        }
    }
}

impl DataGradient<'_, Bf16> {
    /// As [`DataGradient::run`], with products in bf16.
    ///
    /// # Safety
    /// As [`DataGradient::run`].
    #[allow(unsafe_code)] // the output is shared by tasks
    pub(crate) unsafe fn run_halves(
        &self,
        packed: &mut bf16::packing::Packed,
        output: Output<'_, Bf16>,
    ) {
        for share in self.geometry.backward() {
            packed.fill(self.turned, &share.taps);
            let correlation = bf16::correlate::Correlation {
                batch: self.batch,
                source: self.dy,
                window: &share.window,
                weights: packed,
                bias: None,
                plus: self.plus,
                scale: 1.0,
            };
            // SAFETY: the caller's promise; the shares are different pixels.
            unsafe {
                correlation.run(output.every(self.geometry.stride, share.row, share.column));
            }
        }
    }
}
