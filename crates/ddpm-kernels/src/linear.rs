//! A fully connected layer and its gradients.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::affine::OnCard;
use crate::affine::{self, Affine, Gradient};
use crate::correlate::{Bias, Correlation, Output};
use crate::packing::{Packed, Weights};
use crate::source::{Data, Layout, Part, Source, Window};
use crate::storage::{Shared, written};
use crate::tile::LANES;
use crate::weight_gradient::{Target, WeightGradient};

/// x Wᵀ + b over the last dimension.
///
/// # Shapes
/// x `[..., inputs]`, weight `[outputs, inputs]`, bias `[outputs]` -> `[..., outputs]`.
///
/// # Errors
/// Shapes that do not fit, a type other than f32.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    crate::check::floats("linear", &[("x", x), ("weight", weight)])?;
    if let Some(bias) = bias {
        crate::check::f32("linear", &[("bias", bias)])?;
    }
    let (inputs, outputs) = crate::check::linear(x, weight, bias)?;
    if !crate::check::has_own(x) {
        return crate::reference::linear(x, weight, bias);
    }
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = outputs;
    }
    let linear = Linear {
        rows: x.elem_count() / inputs,
        inputs,
        outputs,
        shape,
    };
    affine::apply(linear, x, weight, bias)
}

/// Rows that are taken for an image of one row of pixels: they divide into the tiles of the inner loop. A constant, so that
/// sums do not depend on the number of threads.
const WIDTH: usize = 56;
/// Rows that the gradient of the bias adds up before partial sums are added.
const SUMMED_ROWS: usize = 1024;

struct Linear {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// Of the output.
    shape: Vec<usize>,
}

/// Rows as images: where the first one begins, how many there are, and how many pixels each has.
#[derive(Clone, Copy)]
struct Images {
    first: usize,
    count: usize,
    width: usize,
}

impl Affine for Linear {
    const NAME: &'static str = "linear";

    fn output_shape(&self) -> Shape {
        Shape::from(self.shape.as_slice())
    }

    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let weights = Weights::of_kernels(weight, (self.inputs, self.outputs), 1);
        let mut padded = bias.map_or(Vec::new(), <[f32]>::to_vec);
        padded.resize(self.outputs.next_multiple_of(LANES), 0.0);
        let bias = bias.map(|_| Bias {
            data: &padded,
            image: 0,
            block: LANES,
        });
        self.rows_times(x, weights, bias)
    }

    fn input_gradient(&self, g: Gradient<'_>, weight: &[f32]) -> Vec<f32> {
        let weights = Weights::of_kernels(weight, (self.inputs, self.outputs), 1);
        self.rows_times(g.plain, weights.turned(0, self.inputs), None)
    }

    fn weight_gradient(&self, g: Gradient<'_>, x: &[f32]) -> Vec<f32> {
        let write = |dw: &mut [_]| {
            let memory = Shared::uninitialised(dw);
            for (i, images) in self.images().enumerate() {
                let (x, dy) = (images.of(x, self.inputs), images.of(g.plain, self.outputs));
                let gradient = WeightGradient {
                    batch: images.count,
                    source: &x,
                    window: &images.window(),
                    dy: &dy,
                };
                let target = Target {
                    memory: &memory,
                    taps: &[0],
                    input: 1,
                    output: self.inputs,
                    accumulate: i > 0,
                };
                #[allow(unsafe_code)]
                // SAFETY: the memory is the gradient's, and this call's alone.
                unsafe {
                    gradient.run(target);
                }
            }
        };
        #[allow(unsafe_code)]
        // SAFETY: the gradient of the first images writes all weights, and there are some.
        let (dw, ()) = unsafe { written(self.outputs * self.inputs, write) };
        dw
    }

    /// The sum of the rows of g, row after row in double precision.
    fn bias_gradient(&self, g: &[f32], _: usize) -> Vec<f32> {
        let sums = g.par_chunks(SUMMED_ROWS * self.outputs).map(|rows| {
            let mut sums = vec![0f64; self.outputs];
            for row in rows.chunks_exact(self.outputs) {
                let pairs = sums.iter_mut().zip(row);
                pairs.for_each(|(sum, &g)| *sum += f64::from(g));
            }
            sums
        });
        let sums: Vec<Vec<f64>> = sums.collect();
        let of = |output: usize| sums.iter().map(|sums| sums[output]).sum::<f64>() as f32;
        (0..self.outputs).map(of).collect()
    }

    #[cfg(feature = "cuda")]
    fn forward_on_card(
        &self,
        x: OnCard<'_>,
        weight: OnCard<'_>,
        bias: Option<OnCard<'_>>,
    ) -> Result<CudaStorage> {
        crate::cuda::linear::forward((self.rows, self.inputs, self.outputs), x, weight, bias)
    }

    #[cfg(feature = "cuda")]
    fn gradients_on_card(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        crate::cuda::linear::gradients((self.rows, self.inputs, self.outputs), x, weight, bias, g)
    }
}

impl Linear {
    /// All rows: images of WIDTH, and one of the rest.
    fn images(&self) -> impl Iterator<Item = Images> + use<> {
        let (count, rest) = (self.rows / WIDTH, self.rows % WIDTH);
        let whole = Images {
            first: 0,
            count,
            width: WIDTH,
        };
        let rest = Images {
            first: count * WIDTH,
            count: usize::from(rest > 0),
            width: rest,
        };
        [whole, rest].into_iter().filter(|images| images.count > 0)
    }

    /// Each row times the weights, plus a bias.
    fn rows_times(&self, x: &[f32], weights: Weights<'_>, bias: Option<Bias<'_>>) -> Vec<f32> {
        let (inputs, outputs) = (weights.inputs.0, weights.outputs.0);
        let window = Images {
            first: 0,
            count: 1,
            width: self.rows.min(WIDTH),
        }
        .window();
        let write = |y: &mut [_]| {
            let memory = Shared::uninitialised(y);
            Packed::lend(|packed| {
                packed.fill(weights, &[0], &window);
                for images in self.images() {
                    let correlation = Correlation {
                        batch: images.count,
                        source: &images.of(x, inputs),
                        window: &images.window(),
                        weights: packed,
                        bias,
                        plus: None,
                        scale: 1.0,
                    };
                    let shape = (outputs, 1, images.width);
                    let output = Output {
                        start: images.first * outputs,
                        ..Output::whole(&memory, Layout::Rows, shape)
                    };
                    #[allow(unsafe_code)]
                    // SAFETY: the memory is new, and these rows are this call's alone.
                    unsafe {
                        correlation.run(output);
                    }
                }
            });
        };
        #[allow(unsafe_code)]
        // SAFETY: a correlation writes all outputs of its images, and these are all rows.
        let (y, ()) = unsafe { written(self.rows * outputs, write) };
        y
    }
}

impl Images {
    /// These rows of a tensor of so many channels.
    fn of<'a>(&self, data: &'a [f32], channels: usize) -> Source<'a> {
        let part = Part {
            data: Data::Floats(&data[self.first * channels..]),
            layout: Layout::Rows,
            channels,
            image: self.width * channels,
        };
        Source::plain(part, 1, self.width)
    }

    fn window(&self) -> Window {
        Window::pointwise(1, self.width)
    }
}
