//! Two-dimensional convolution and its gradients, as an operation on candle's tensors.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use crate::affine::OnCard;
use crate::affine::{self, Affine, Gradient};
use crate::aligned::Aligned;
use crate::correlate::{Bias, Correlation, Output};
use crate::data_gradient::DataGradient;
use crate::geometry::Geometry;
use crate::packing::{Packed, Weights};
use crate::source::{Data, Layout, Part, Source};
use crate::storage::{Shared, written};
use crate::sums::channel_sums;
use crate::tile::LANES;
use crate::weight_gradient::{Target, WeightGradient};

/// Zeros added around an image before it is convolved, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// No padding.
    pub const ZERO: Padding = Padding::same(0);
    /// One row below and one column to the right: how DDPM's network halves an image with a 3 by 3 kernel of stride 2.
    pub const DDPM_DOWN: Padding = Padding {
        top: 0,
        left: 0,
        bottom: 1,
        right: 1,
    };

    /// `pixels` on every side.
    pub const fn same(pixels: usize) -> Padding {
        Padding {
            top: pixels,
            left: pixels,
            bottom: pixels,
            right: pixels,
        }
    }
}

/// How a kernel is moved over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// Pixels from one application of the kernel to the next, both ways, at least 1.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: Padding,
    /// Groups that inputs and outputs are divided into, each convolved on its own; 1 for an ordinary convolution.
    pub groups: usize,
}

impl Conv2d {
    /// An ordinary convolution: one group.
    pub const fn new(stride: usize, padding: Padding) -> Conv2d {
        Conv2d {
            stride,
            padding,
            groups: 1,
        }
    }
}

/// Convolves images with a bank of kernels (the cross-correlation of the learning literature) and adds a bias.
///
/// # Shapes
/// x `[B, I, H, W]`, weight `[O, I / groups, kh, kw]`, bias `[O]`, or `[B, O]` for one of each image's own ->
/// `[B, O, H', W']` where H' = (H + top + bottom - kh) / stride + 1, rounded down, and W' likewise.
///
/// # Errors
/// Shapes that do not fit, a kernel larger than the padded image, stride 0, a type other than f32.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    crate::check::floats("conv2d", &[("x", x), ("weight", weight)])?;
    if let Some(bias) = bias {
        crate::check::f32("conv2d", &[("bias", bias)])?;
    }
    crate::check::conv2d(x, weight, bias, conv)?;
    if !crate::check::has_own(x) {
        return crate::reference::conv2d(x, weight, bias, conv);
    }
    let (batch, inputs, height, width) = x.dims4()?;
    let (outputs, _, kernel_height, kernel_width) = weight.dims4()?;
    let convolution = Convolution {
        batch,
        inputs: inputs / conv.groups,
        outputs: outputs / conv.groups,
        groups: conv.groups,
        geometry: Geometry::new((height, width), (kernel_height, kernel_width), conv)?,
        #[cfg(feature = "cuda")]
        conv,
    };
    affine::apply(convolution, x, weight, bias)
}

/// The sizes of a convolution of tensors; inputs and outputs are those of one group.
struct Convolution {
    batch: usize,
    inputs: usize,
    outputs: usize,
    groups: usize,
    geometry: Geometry,
    #[cfg(feature = "cuda")]
    conv: Conv2d,
}

impl Affine for Convolution {
    const NAME: &'static str = "conv2d";

    fn output_shape(&self) -> Shape {
        let g = &self.geometry;
        Shape::from((
            self.batch,
            self.groups * self.outputs,
            g.output_height,
            g.output_width,
        ))
    }

    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let g = &self.geometry;
        let (window, taps): (_, Vec<usize>) = (g.forward(), (0..g.taps()).collect());
        let padded = bias.map(|bias| self.padded(bias));
        self.filled(
            self.outputs * g.output_height * g.output_width,
            |group, memory| {
                let source = self.inputs_of(x, group);
                let blocks = self.outputs.div_ceil(LANES);
                let bias = padded.as_ref().map(|bias| Bias {
                    data: &bias[group * blocks * LANES..],
                    image: if bias.len() == self.groups * blocks * LANES {
                        0
                    } else {
                        self.groups * blocks * LANES
                    },
                    block: LANES,
                });
                let shape = (self.outputs, g.output_height, g.output_width);
                let output = self.output(memory, group, shape);
                Packed::lend(|packed| {
                    packed.fill(self.weights(weight, group), &taps, &window);
                    let correlation = Correlation {
                        batch: self.batch,
                        source: &source,
                        window: &window,
                        weights: packed,
                        bias,
                        plus: None,
                        scale: 1.0,
                    };
                    #[allow(unsafe_code)]
                    // SAFETY: the memory is the output's, and these channels are this group's.
                    unsafe {
                        correlation.run(output);
                    }
                });
            },
        )
    }

    fn input_gradient(&self, dy: Gradient<'_>, weight: &[f32]) -> Vec<f32> {
        let g = &self.geometry;
        self.filled(self.inputs * g.height * g.width, |group, memory| {
            let gradient = DataGradient {
                batch: self.batch,
                geometry: g,
                dy: &self.gradient_of(dy, group),
                turned: self.weights(weight, group).turned(0, self.inputs),
                plus: None,
            };
            let output = self.output(memory, group, (self.inputs, g.height, g.width));
            #[allow(unsafe_code)]
            // SAFETY: the memory is the gradient's, and these channels are this group's.
            unsafe {
                Packed::lend(|packed| gradient.run(packed, output));
            }
        })
    }

    fn weight_gradient(&self, dy: Gradient<'_>, x: &[f32]) -> Vec<f32> {
        let g = &self.geometry;
        let taps: Vec<usize> = (0..g.taps()).collect();
        let length = self.outputs * self.inputs * g.taps();
        let write = |dw: &mut [_]| {
            let memory = Shared::uninitialised(dw);
            for group in 0..self.groups {
                let (source, dy) = (self.inputs_of(x, group), self.gradient_of(dy, group));
                let gradient = WeightGradient {
                    batch: self.batch,
                    source: &source,
                    window: &g.forward(),
                    dy: &dy,
                };
                let places: Vec<usize> = taps.iter().map(|tap| group * length + tap).collect();
                let target = Target {
                    memory: &memory,
                    taps: &places,
                    input: g.taps(),
                    output: self.inputs * g.taps(),
                    accumulate: false,
                };
                #[allow(unsafe_code)]
                // SAFETY: the memory is the gradient's, and these weights are this group's.
                unsafe {
                    gradient.run(target);
                }
            }
        };
        #[allow(unsafe_code)]
        // SAFETY: the gradient of every group writes all its weights.
        let (dw, ()) = unsafe { written(self.groups * length, write) };
        dw
    }

    fn laid_out_length(&self) -> usize {
        self.batch * self.groups * self.gradient_image()
    }

    /// Groups, images, blocks of channels.
    fn lay_out(&self, dy: &[f32], to: &mut [f32]) {
        let groups = to.chunks_mut(self.batch * self.gradient_image());
        for (group, to) in groups.enumerate() {
            self.outputs_of(dy, group).copy_blocks(to);
        }
    }

    fn bias_gradient(&self, dy: &[f32], biases: usize) -> Vec<f32> {
        let channels = self.groups * self.outputs;
        let (height, width) = (self.geometry.output_height, self.geometry.output_width);
        let all = Source::plain(
            Part {
                data: Data::Floats(dy),
                layout: Layout::Plain,
                channels,
                image: channels * height * width,
            },
            height,
            width,
        );
        let sums = channel_sums(&all, self.batch);
        if biases == self.batch * channels && self.batch > 1 {
            let of_images = sums.iter().flat_map(|sums| &sums[..channels]);
            return of_images.map(|&sum| sum as f32).collect();
        }
        let of = |channel: usize| sums.iter().map(|sums| sums[channel]).sum::<f64>() as f32;
        (0..channels).map(of).collect()
    }

    #[cfg(feature = "cuda")]
    fn forward_on_card(
        &self,
        x: OnCard<'_>,
        weight: OnCard<'_>,
        bias: Option<OnCard<'_>>,
    ) -> Result<CudaStorage> {
        crate::cuda::conv::forward(self.conv, x, weight, bias)
    }

    #[cfg(feature = "cuda")]
    fn gradients_on_card(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        crate::cuda::conv::gradients(self.conv, x, weight, bias, g)
    }
}

impl Convolution {
    /// The channels of one group of the input.
    fn inputs_of<'a>(&self, x: &'a [f32], group: usize) -> Source<'a> {
        let (height, width) = (self.geometry.height, self.geometry.width);
        self.channels(x, group, self.inputs, (height, width))
    }

    /// Floats of one image and group of the gradient of the output in blocks.
    fn gradient_image(&self) -> usize {
        let g = &self.geometry;
        self.outputs.next_multiple_of(LANES) * g.output_height * g.output_width
    }

    /// The channels of one group of the gradient of the output, in blocks if it was laid out.
    fn gradient_of<'a>(&self, dy: Gradient<'a>, group: usize) -> Source<'a> {
        let Some(blocks) = dy.laid_out else {
            return self.outputs_of(dy.plain, group);
        };
        let part = Part {
            data: Data::Floats(&blocks[group * self.batch * self.gradient_image()..]),
            layout: Layout::Blocked,
            channels: self.outputs,
            image: self.gradient_image(),
        };
        Source::plain(
            part,
            self.geometry.output_height,
            self.geometry.output_width,
        )
    }

    /// The channels of one group of the output or its gradient.
    fn outputs_of<'a>(&self, dy: &'a [f32], group: usize) -> Source<'a> {
        let (height, width) = (self.geometry.output_height, self.geometry.output_width);
        self.channels(dy, group, self.outputs, (height, width))
    }

    fn channels<'a>(
        &self,
        data: &'a [f32],
        group: usize,
        channels: usize,
        (height, width): (usize, usize),
    ) -> Source<'a> {
        let part = Part {
            data: Data::Floats(&data[group * channels * height * width..]),
            layout: Layout::Plain,
            channels,
            image: self.groups * channels * height * width,
        };
        Source::plain(part, height, width)
    }

    fn weights<'a>(&self, weight: &'a [f32], group: usize) -> Weights<'a> {
        let (size, taps) = ((self.inputs, self.outputs), self.geometry.taps());
        Weights::of_kernels(
            &weight[group * self.outputs * self.inputs * taps..],
            size,
            taps,
        )
    }

    fn output<'a>(
        &self,
        memory: &'a Shared<'a>,
        group: usize,
        shape: (usize, usize, usize),
    ) -> Output<'a> {
        let whole = Output::whole(memory, Layout::Plain, shape);
        Output {
            start: group * whole.image,
            image: self.groups * whole.image,
            ..whole
        }
    }

    /// The bias of each group (of each image) in whole blocks.
    fn padded(&self, bias: &[f32]) -> Aligned {
        let length = self.outputs.next_multiple_of(LANES);
        let mut padded = Aligned::zeros(bias.len() / self.outputs * length);
        for (to, from) in padded.chunks_mut(length).zip(bias.chunks(self.outputs)) {
            to[..self.outputs].copy_from_slice(from);
        }
        padded
    }

    /// A tensor of so many floats for each group of each image, which `fill` writes group by group.
    fn filled(&self, length: usize, fill: impl Fn(usize, &Shared<'_>)) -> Vec<f32> {
        let write = |data: &mut [_]| {
            let memory = Shared::uninitialised(data);
            (0..self.groups).for_each(|group| fill(group, &memory));
        };
        #[allow(unsafe_code)]
        // SAFETY: a correlation writes every output of its channels, and the shares are all pixels.
        let (data, ()) = unsafe { written(self.batch * self.groups * length, write) };
        data
    }
}
