//! The gradient of a convolution with respect to its image: the gradient of the output under the weights turned round.

use crate::correlate::{Addend, Correlation, LaidOut, Output};
use crate::geometry::Geometry;
use crate::packing::Weights;
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

impl<E: Copy> DataGradient<'_, E> {
    /// Computes the gradient, in parallel; `packed` is memory for the weights, and decides what multiplies.
    ///
    /// # Safety
    /// Nothing else touches the output, and `plus` reaches as far as it, while this runs.
    #[allow(unsafe_code)] // the output is shared by tasks
    pub(crate) unsafe fn run<W: LaidOut<E>>(&self, packed: &mut W, output: Output<'_, E>) {
        for share in self.geometry.backward() {
            packed.fill(self.turned, &share.taps, &share.window);
            let correlation = Correlation {
                batch: self.batch,
                source: self.dy,
                window: &share.window,
                weights: &*packed,
                bias: None,
                plus: self.plus,
                scale: 1.0,
            };
            let output = output.every(self.geometry.stride, share.row, share.column);
            // SAFETY: the caller's promise; the shares are different pixels.
            unsafe {
                W::correlate(&correlation, output);
            }
        }
    }
}
