//! Two-dimensional convolution and its gradients: patches of the image laid out as columns, then products of matrices.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, product, product_into};
use crate::simd;
use crate::storage::{Shared, in_pieces, slice, tensor_like, view, with_scratch, written};

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
}

/// Convolves images with a bank of kernels (the cross-correlation of the learning literature) and adds a bias.
///
/// # Shapes
/// x `[B, I, H, W]`, weight `[O, I, kh, kw]`, bias `[O]`, or `[B, O]` for one of each image's own -> `[B, O, H', W']` where
/// H' = (H + top + bottom - kh) / stride + 1, rounded down, and W' likewise.
///
/// # Errors
/// Shapes that do not fit, a kernel larger than the padded image, stride 0, a type other than f32.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    crate::check::f32("conv2d", &[("x", x), ("weight", weight)])?;
    if let Some(bias) = bias {
        crate::check::f32("conv2d", &[("bias", bias)])?;
    }
    crate::check::conv2d(x, weight, bias, conv)?;
    if !x.device().is_cpu() {
        return crate::reference::conv2d(x, weight, bias, conv);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let geometry = Geometry::new(&x, &weight, conv)?;
    match bias {
        None => x.apply_op2(&weight, Convolution { geometry }),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Convolution { geometry }),
    }
}

struct Convolution {
    geometry: Geometry,
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (
            slice("conv2d", "x", x, x_layout)?,
            slice("conv2d", "weight", w, w_layout)?,
        );
        Ok((
            CpuStorage::F32(correlate(x, w, None, &self.geometry)),
            self.geometry.output_shape(),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.gradients(x, weight, None, g)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (
            slice("conv2d", "x", x, x_layout)?,
            slice("conv2d", "weight", w, w_layout)?,
        );
        let bias = slice("conv2d", "bias", b, b_layout)?;
        Ok((
            CpuStorage::F32(correlate(x, w, Some(bias), &self.geometry)),
            self.geometry.output_shape(),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, weight, Some(bias), g)
    }
}

impl Convolution {
    /// The gradients of those arguments that need one.
    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let geometry = &self.geometry;
        let g = g.contiguous()?;
        let g = view("conv2d", "the gradient", &g)?;
        let mut dx = None;
        if x.track_op() {
            let w = view("conv2d", "weight", weight)?;
            dx = Some(tensor_like(data_gradient(&g, &w, geometry), x)?);
        }
        let mut dw = None;
        if weight.track_op() {
            let x = view("conv2d", "x", x)?;
            dw = Some(tensor_like(weight_gradient(&g, &x, geometry), weight)?);
        }
        let mut db = None;
        if let Some(bias) = bias.filter(|bias| bias.track_op()) {
            db = Some(tensor_like(
                bias_gradient(&g, bias.rank() == 2, geometry),
                bias,
            )?);
        }
        Ok((dx, dw, db))
    }
}

/// The sizes of one convolution.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    batch: usize,
    inputs: usize,
    height: usize,
    width: usize,
    outputs: usize,
    kernel_height: usize,
    kernel_width: usize,
    stride: usize,
    top: usize,
    left: usize,
    output_height: usize,
    output_width: usize,
}

impl Geometry {
    fn new(x: &Tensor, weight: &Tensor, conv: Conv2d) -> Result<Geometry> {
        let (batch, outputs, output_height, output_width) =
            crate::check::conv2d(x, weight, None, conv)?;
        let (_, inputs, height, width) = x.dims4()?;
        let (_, _, kernel_height, kernel_width) = weight.dims4()?;
        let (stride, top, left) = (conv.stride, conv.padding.top, conv.padding.left);
        Ok(Geometry {
            batch,
            inputs,
            height,
            width,
            outputs,
            kernel_height,
            kernel_width,
            stride,
            top,
            left,
            output_height,
            output_width,
        })
    }

    fn output_shape(&self) -> Shape {
        Shape::from((
            self.batch,
            self.outputs,
            self.output_height,
            self.output_width,
        ))
    }

    /// Weights that each input channel has for each output channel.
    fn taps(&self) -> usize {
        self.kernel_height * self.kernel_width
    }

    /// Length of a column: one patch of the input.
    fn patch(&self) -> usize {
        self.inputs * self.taps()
    }

    /// Pixels of one channel of the input.
    fn input_pixels(&self) -> usize {
        self.height * self.width
    }

    /// Pixels of one channel of the output.
    fn pixels(&self) -> usize {
        self.output_height * self.output_width
    }

    /// Whether the image is its own columns.
    fn is_pointwise(&self) -> bool {
        self.taps() == 1
            && self.stride == 1
            && (self.top, self.left) == (0, 0)
            && (self.height, self.width) == (self.output_height, self.output_width)
    }

    /// Splits all outputs into tiles whose columns fit into the second-level cache: some rows of one image, or
    /// several small images. A tile depends on the sizes of an image only, never on the batch or the threads.
    fn tiles(&self) -> Vec<Tile> {
        let (pixels, budget) = (
            self.pixels(),
            (COLUMNS_BUDGET / self.patch().max(1)).max(MIN_PIXELS),
        );
        if pixels <= MIN_PIXELS {
            let together = (budget.min(MANY_PIXELS) / pixels.max(1)).max(1);
            let starts = (0..self.batch).step_by(together);
            return starts
                .map(|image| Tile {
                    image,
                    images: together.min(self.batch - image),
                    row: 0,
                    rows: self.output_height,
                })
                .collect();
        }
        let rows = self.output_height.div_ceil(pixels.div_ceil(budget));
        let tile = |image, row: usize| Tile {
            image,
            images: 1,
            row,
            rows: rows.min(self.output_height - row),
        };
        (0..self.batch)
            .flat_map(|image| {
                (0..self.output_height)
                    .step_by(rows)
                    .map(move |row| tile(image, row))
            })
            .collect()
    }
}

/// Floats of columns that a tile may have.
const COLUMNS_BUDGET: usize = 1 << 18;
/// Pixels below which a product of matrices is inefficient.
const MIN_PIXELS: usize = 128;
/// Pixels that small images are put together to.
const MANY_PIXELS: usize = 512;

/// Some rows of the output of some images; of all rows if there are several images.
#[derive(Clone, Copy, Debug)]
struct Tile {
    image: usize,
    images: usize,
    row: usize,
    rows: usize,
}

/// y = w * x + bias.
fn correlate(x: &[f32], w: &[f32], bias: Option<&[f32]>, geometry: &Geometry) -> Vec<f32> {
    let weights = Matrix::row_major(w, geometry.outputs, geometry.patch());
    let write = |y: &mut [MaybeUninit<f32>]| {
        let memory = Shared::uninitialised(y);
        geometry
            .tiles()
            .into_par_iter()
            .with_max_len(1)
            .for_each(|tile| {
                if tile.images == 1 {
                    correlate_rows(x, weights, bias, geometry, tile, &memory);
                } else {
                    correlate_images(x, weights, bias, geometry, tile, &memory);
                }
            });
    };
    #[allow(unsafe_code)]
    // SAFETY: the tiles are all outputs, and the product writes all of each tile.
    let (y, ()) = unsafe { written(geometry.batch * geometry.outputs * geometry.pixels(), write) };
    y
}

/// Some rows of one image, written where they belong.
fn correlate_rows(
    x: &[f32],
    weights: Matrix,
    bias: Option<&[f32]>,
    geometry: &Geometry,
    tile: Tile,
    memory: &Shared,
) {
    let (pixels, patch) = (geometry.pixels(), geometry.patch());
    let (first, count) = (
        tile.row * geometry.output_width,
        tile.rows * geometry.output_width,
    );
    let start = tile.image * geometry.outputs * pixels + first;
    if let Some(bias) = bias {
        for (channel, &bias) in bias_of(bias, tile.image, geometry).iter().enumerate() {
            #[allow(unsafe_code)]
            // SAFETY: these rows of this image are this tile's, and no other slice of them is alive.
            unsafe { memory.slice(start + channel * pixels, count) }.fill(MaybeUninit::new(bias));
        }
    }
    #[allow(unsafe_code)]
    // SAFETY: these rows of this image are this tile's, and no other tile's.
    let target =
        unsafe { MatrixMut::shared(memory, start, (geometry.outputs, count), (pixels, 1)) };
    let image = &x[tile.image * geometry.inputs * geometry.input_pixels()..]
        [..geometry.inputs * geometry.input_pixels()];
    if geometry.is_pointwise() {
        let columns = Matrix::new(&image[first..], (patch, count), (pixels, 1));
        return product_into(target, weights, columns, 1.0, bias.is_some());
    }
    with_scratch(patch * count, |columns| {
        image_to_columns(image, geometry, tile.row, tile.rows, columns, count);
        product_into(
            target,
            weights,
            Matrix::row_major(columns, patch, count),
            1.0,
            bias.is_some(),
        );
    });
}

/// Several small images side by side, then each copied where it belongs.
fn correlate_images(
    x: &[f32],
    weights: Matrix,
    bias: Option<&[f32]>,
    geometry: &Geometry,
    tile: Tile,
    memory: &Shared,
) {
    let (pixels, patch, outputs) = (geometry.pixels(), geometry.patch(), geometry.outputs);
    let count = tile.images * pixels;
    with_scratch((patch + outputs) * count, |scratch| {
        let (columns, result) = scratch.split_at_mut(patch * count);
        images_to_columns(x, geometry, tile, 0..geometry.inputs, columns);
        product(
            result,
            weights,
            Matrix::row_major(columns, patch, count),
            1.0,
            false,
        );
        let length = outputs * pixels;
        #[allow(unsafe_code)]
        // SAFETY: these images are this tile's, and no other tile's.
        let y = unsafe { memory.slice(tile.image * length, tile.images * length) };
        for (image, y) in y.chunks_exact_mut(length).enumerate() {
            let bias = bias.map(|bias| bias_of(bias, tile.image + image, geometry));
            for (channel, y) in y.chunks_exact_mut(pixels).enumerate() {
                let result = &result[channel * count + image * pixels..][..pixels];
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                y.iter_mut()
                    .zip(result)
                    .for_each(|(y, result)| _ = y.write(result + bias));
            }
        }
    });
}

/// The biases of one image, which all images share unless there is one of each image's own.
fn bias_of<'a>(bias: &'a [f32], image: usize, geometry: &Geometry) -> &'a [f32] {
    if bias.len() == geometry.outputs {
        bias
    } else {
        &bias[image * geometry.outputs..][..geometry.outputs]
    }
}

/// The columns of some channels of a tile's images, side by side.
fn images_to_columns(
    x: &[f32],
    geometry: &Geometry,
    tile: Tile,
    channels: std::ops::Range<usize>,
    columns: &mut [f32],
) {
    let count = tile.rows * geometry.output_width;
    for image in 0..tile.images {
        let start =
            ((tile.image + image) * geometry.inputs + channels.start) * geometry.input_pixels();
        let x = &x[start..][..channels.len() * geometry.input_pixels()];
        image_to_columns(
            x,
            geometry,
            tile.row,
            tile.rows,
            &mut columns[image * count..],
            tile.images * count,
        );
    }
}

/// Lays out the patches under each pixel of some output rows: row (channel, ky, kx), one column a pixel.
fn image_to_columns(
    x: &[f32],
    geometry: &Geometry,
    row: usize,
    rows: usize,
    columns: &mut [f32],
    stride: usize,
) {
    let count = rows * geometry.output_width;
    let taps = (0..geometry.kernel_height)
        .flat_map(|ky| (0..geometry.kernel_width).map(move |kx| (ky, kx)));
    let channels = || x.chunks_exact(geometry.input_pixels());
    let mut line = 0;
    if geometry.stride == 1 && geometry.width == geometry.output_width {
        // Planes can be as small as four pixels, so that where they go is worked out once for all channels.
        let shifts: Vec<Shift> = taps
            .map(|tap| Shift::new(geometry, tap, row, count))
            .collect();
        for channel in channels() {
            for shift in &shifts {
                shift.copy(
                    channel,
                    geometry.width,
                    &mut columns[line * stride..][..count],
                );
                line += 1;
            }
        }
        return;
    }
    for channel in channels() {
        for tap in taps.clone() {
            shifted_rows(
                channel,
                geometry,
                tap,
                row,
                &mut columns[line * stride..][..count],
            );
            line += 1;
        }
    }
}

/// What one tap of the kernel sees at each pixel of some output rows, zero beyond the edges.
fn shifted_rows(
    channel: &[f32],
    geometry: &Geometry,
    (ky, kx): (usize, usize),
    row: usize,
    into: &mut [f32],
) {
    let (width, output_width) = (geometry.width, geometry.output_width);
    let (first, last) = columns_inside(geometry, kx);
    for (oy, into) in (row..).zip(into.chunks_exact_mut(output_width)) {
        let y = oy * geometry.stride + ky;
        if y < geometry.top || y - geometry.top >= geometry.height {
            into.fill(0.0);
            continue;
        }
        let line = &channel[(y - geometry.top) * width..][..width];
        into[..first].fill(0.0);
        into[last..].fill(0.0);
        if first < last {
            let start = first * geometry.stride + kx - geometry.left;
            let inside = &mut into[first..last];
            match geometry.stride {
                1 => inside.copy_from_slice(&line[start..][..last - first]),
                stride => inside
                    .iter_mut()
                    .zip(line[start..].iter().step_by(stride))
                    .for_each(|(into, &x)| *into = x),
            }
        }
    }
}

/// What one tap of the kernel sees where input and output are equally wide: one piece of the plane as it is, zeros
/// before and after it, and zeros in the columns where its rows wrapped around.
#[derive(Clone, Copy)]
struct Shift {
    /// Zeros before the piece.
    before: usize,
    /// The piece of the plane.
    start: usize,
    length: usize,
    /// The columns that lie inside of the image: first, and one after the last.
    inside: (usize, usize),
}

impl Shift {
    /// For `count` output pixels from the output row `row` on.
    fn new(geometry: &Geometry, (ky, kx): (usize, usize), row: usize, count: usize) -> Shift {
        let width = geometry.width;
        let shift = (row + ky) as isize * width as isize + kx as isize
            - (geometry.top * width + geometry.left) as isize;
        let before = usize::try_from(-shift).unwrap_or(0).min(count);
        let start = usize::try_from(shift)
            .unwrap_or(0)
            .min(geometry.input_pixels());
        Shift {
            before,
            start,
            length: (count - before).min(geometry.input_pixels() - start),
            inside: columns_inside(geometry, kx),
        }
    }

    fn copy(&self, channel: &[f32], width: usize, into: &mut [f32]) {
        let piece = &channel[self.start..][..self.length];
        let (zeros, rest) = into.split_at_mut(self.before);
        let (copied, beyond) = rest.split_at_mut(self.length);
        zeros.fill(0.0);
        copied.copy_from_slice(piece);
        beyond.fill(0.0);
        // Column by column: a row has one or two such pixels, too few to fill them row by row.
        for column in (0..self.inside.0).chain(self.inside.1..width) {
            let pixels = into.iter_mut().skip(column).step_by(width);
            pixels.for_each(|pixel| *pixel = 0.0);
        }
    }
}

/// The output columns, first and one after the last, at which tap `kx` lies inside of the image.
fn columns_inside(geometry: &Geometry, kx: usize) -> (usize, usize) {
    let first = geometry
        .left
        .saturating_sub(kx)
        .div_ceil(geometry.stride)
        .min(geometry.output_width);
    let last = (geometry.width + geometry.left)
        .saturating_sub(kx)
        .div_ceil(geometry.stride)
        .min(geometry.output_width);
    (first, last.max(first))
}

/// dL/dx from g = dL/dy.
fn data_gradient(g: &[f32], w: &[f32], geometry: &Geometry) -> Vec<f32> {
    let reaches = geometry.top < geometry.kernel_height && geometry.left < geometry.kernel_width;
    if geometry.stride == 1 && reaches {
        data_gradient_by_correlation(g, w, geometry)
    } else {
        data_gradient_by_columns(g, w, geometry)
    }
}

/// With stride 1 it is again a correlation: of g, with every kernel turned by half a turn and inputs for outputs.
fn data_gradient_by_correlation(g: &[f32], w: &[f32], geometry: &Geometry) -> Vec<f32> {
    let (inputs, outputs, taps) = (geometry.inputs, geometry.outputs, geometry.taps());
    let block = CHANNELS * outputs * taps; // some inputs at a time: their kernels lie together in `w`
    let (turned, _) = in_pieces(w.len(), block, |block, turned| {
        for output in 0..outputs {
            let kernels = &w[(output * inputs + block * CHANNELS) * taps..];
            for (turned, kernel) in turned
                .chunks_exact_mut(outputs * taps)
                .zip(kernels.chunks_exact(taps))
            {
                let turned = &mut turned[output * taps..][..taps];
                turned
                    .iter_mut()
                    .zip(kernel.iter().rev())
                    .for_each(|(turned, &w)| *turned = w);
            }
        }
    });
    let backward = Geometry {
        inputs: outputs,
        outputs: inputs,
        height: geometry.output_height,
        width: geometry.output_width,
        output_height: geometry.height,
        output_width: geometry.width,
        top: geometry.kernel_height - 1 - geometry.top,
        left: geometry.kernel_width - 1 - geometry.left,
        ..*geometry
    };
    correlate(g, &turned, None, &backward)
}

/// Input channels that one task of the gradients works on.
const CHANNELS: usize = 16;

/// The gradient of the columns, added up where the patches overlap: by image and block of input channels.
fn data_gradient_by_columns(g: &[f32], w: &[f32], geometry: &Geometry) -> Vec<f32> {
    let (inputs, outputs, pixels, input_pixels) = (
        geometry.inputs,
        geometry.outputs,
        geometry.pixels(),
        geometry.input_pixels(),
    );
    let (taps, patch) = (geometry.taps(), geometry.patch());
    let rows_at_once = (COLUMNS_BUDGET / (CHANNELS * taps * geometry.output_width).max(1)).max(1);
    let at_once = largest_divisor(inputs, CHANNELS); // so that no block crosses from one image to the next
    let (dx, _) = in_pieces(
        geometry.batch * inputs * input_pixels,
        at_once * input_pixels,
        |block, dx| {
            let (image, channel) = (block * at_once / inputs, block * at_once % inputs);
            let lines = at_once * taps;
            let kernels = Matrix::new(&w[channel * taps..], (outputs, lines), (patch, 1)).t();
            for row in (0..geometry.output_height).step_by(rows_at_once) {
                let count = rows_at_once.min(geometry.output_height - row) * geometry.output_width;
                let g = Matrix::new(
                    &g[image * outputs * pixels + row * geometry.output_width..],
                    (outputs, count),
                    (pixels, 1),
                );
                with_scratch(lines * count, |columns| {
                    product(columns, kernels, g, 1.0, false);
                    add_columns(columns, count, geometry, row, dx);
                });
            }
        },
    );
    dx
}

/// The largest divisor of n that is at most `limit`.
fn largest_divisor(n: usize, limit: usize) -> usize {
    (1..=limit.min(n))
        .rev()
        .find(|divisor| n.is_multiple_of(*divisor))
        .unwrap_or(1)
}

/// Adds columns of `count` pixels back to the pixels they were taken from.
fn add_columns(columns: &[f32], count: usize, geometry: &Geometry, row: usize, dx: &mut [f32]) {
    let (width, taps) = (geometry.width, geometry.taps());
    for (line, columns) in columns.chunks_exact(count).enumerate() {
        let (channel, ky, kx) = (
            line / taps,
            line % taps / geometry.kernel_width,
            line % geometry.kernel_width,
        );
        let dx = &mut dx[channel * geometry.input_pixels()..][..geometry.input_pixels()];
        let (first, last) = columns_inside(geometry, kx);
        for (oy, columns) in (row..).zip(columns.chunks_exact(geometry.output_width)) {
            let y = oy * geometry.stride + ky;
            if first == last || y < geometry.top || y - geometry.top >= geometry.height {
                continue;
            }
            let start = (y - geometry.top) * width + first * geometry.stride + kx - geometry.left;
            let pixels = dx[start..].iter_mut().step_by(geometry.stride);
            pixels
                .zip(&columns[first..last])
                .for_each(|(dx, column)| *dx += column);
        }
    }
}

/// Tasks that the gradient of the weights is divided into, roughly: a constant, so that sums do not depend on threads.
const WEIGHT_TASKS: usize = 16;

/// dL/dw from g = dL/dy: by block of input channels, and by chunk of the batch where there are few channels.
fn weight_gradient(g: &[f32], x: &[f32], geometry: &Geometry) -> Vec<f32> {
    let (inputs, outputs, taps, patch) = (
        geometry.inputs,
        geometry.outputs,
        geometry.taps(),
        geometry.patch(),
    );
    let width = 2 * CHANNELS;
    let blocks = inputs.div_ceil(width).max(1);
    let tiles = Geometry {
        inputs: width.min(inputs),
        ..*geometry
    }
    .tiles();
    let chunk = tiles.len().div_ceil(WEIGHT_TASKS.div_ceil(blocks)).max(1);
    let chunks: Vec<&[Tile]> = tiles.chunks(chunk).collect();
    let mut parts = vec![0.0; chunks.len().max(1) * outputs * patch];
    let memory = Shared::new(&mut parts);
    (0..blocks * chunks.len())
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (block, part) = (task % blocks, task / blocks);
            let channels = block * width..((block + 1) * width).min(inputs);
            let lines = channels.len() * taps;
            for (i, &tile) in chunks[part].iter().enumerate() {
                let start = part * outputs * patch + channels.start * taps;
                #[allow(unsafe_code)]
                // SAFETY: the weights of these channels in this part are this task's, and no other's.
                let target =
                    unsafe { MatrixMut::shared(&memory, start, (outputs, lines), (patch, 1)) };
                add_weight_gradient(target, g, x, geometry, tile, channels.clone(), i > 0);
            }
        });
    let parts_after_first = parts.split_off(outputs * patch);
    let mut dw = parts;
    const PIECE: usize = 1 << 12;
    dw.par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(piece, dw)| {
            for part in parts_after_first.chunks_exact(outputs * patch) {
                simd::add_assign(dw, &part[piece * PIECE..][..dw.len()]);
            }
        });
    dw
}

/// Adds one tile's part of the gradient of the weights of some input channels.
fn add_weight_gradient(
    target: MatrixMut,
    g: &[f32],
    x: &[f32],
    geometry: &Geometry,
    tile: Tile,
    channels: std::ops::Range<usize>,
    accumulate: bool,
) {
    let (outputs, pixels) = (geometry.outputs, geometry.pixels());
    let (lines, each) = (
        channels.len() * geometry.taps(),
        tile.rows * geometry.output_width,
    );
    let count = tile.images * each;
    with_scratch((lines + outputs) * count, |scratch| {
        let (columns, copied) = scratch.split_at_mut(lines * count);
        images_to_columns(x, geometry, tile, channels, columns);
        let g_of = |image: usize| {
            &g[(tile.image + image) * outputs * pixels + tile.row * geometry.output_width..]
        };
        let g = if tile.images == 1 {
            Matrix::new(g_of(0), (outputs, count), (pixels, 1))
        } else {
            for image in 0..tile.images {
                for (channel, copied) in copied.chunks_exact_mut(count).enumerate() {
                    copied[image * each..][..each]
                        .copy_from_slice(&g_of(image)[channel * pixels..][..each]);
                }
            }
            Matrix::row_major(copied, outputs, count)
        };
        product_into(
            target,
            g,
            Matrix::row_major(columns, lines, count).t(),
            1.0,
            accumulate,
        );
    });
}

/// dL/dbias from g = dL/dy: the sum over pixels of each channel, and over images unless each has a bias of its own.
fn bias_gradient(g: &[f32], own: bool, geometry: &Geometry) -> Vec<f32> {
    let (outputs, pixels) = (geometry.outputs, geometry.pixels());
    if own {
        return g
            .par_chunks_exact(pixels)
            .map(|g| simd::sum(g) as f32)
            .collect();
    }
    let of_channel = |channel: usize| {
        let images = (0..geometry.batch)
            .map(|image| simd::sum(&g[(image * outputs + channel) * pixels..][..pixels]));
        images.sum::<f64>() as f32
    };
    (0..outputs).into_par_iter().map(of_channel).collect()
}
