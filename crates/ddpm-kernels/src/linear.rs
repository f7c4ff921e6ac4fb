//! A fully connected layer and its gradients.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, product_into};
use crate::simd;
use crate::storage::{Shared, slice, tensor_like, view, written};

/// x Wᵀ + b over the last dimension.
///
/// # Shapes
/// x `[..., inputs]`, weight `[outputs, inputs]`, bias `[outputs]` -> `[..., outputs]`.
///
/// # Errors
/// Shapes that do not fit, a type other than f32.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    crate::check::f32("linear", &[("x", x), ("weight", weight)])?;
    if let Some(bias) = bias {
        crate::check::f32("linear", &[("bias", bias)])?;
    }
    let (inputs, outputs) = crate::check::linear(x, weight, bias)?;
    if !x.device().is_cpu() {
        return crate::reference::linear(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let linear = Linear {
        rows: x.elem_count() / inputs,
        inputs,
        outputs,
    };
    match bias {
        None => x.apply_op2(&weight, linear),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, linear),
    }
}

/// Rows and outputs that one task works on, constants, so that sums do not depend on the number of threads.
const ROWS: usize = 128;
const OUTPUTS: usize = 128;
/// Rows that the gradient of the weights adds up before partial sums are added.
const SUMMED_ROWS: usize = 1024;

struct Linear {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (
            slice("linear", "x", x, x_layout)?,
            slice("linear", "weight", w, w_layout)?,
        );
        Ok((
            CpuStorage::F32(self.forward(x, w, None)),
            self.output_shape(x_layout),
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

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
            slice("linear", "x", x, x_layout)?,
            slice("linear", "weight", w, w_layout)?,
        );
        let bias = slice("linear", "bias", b, b_layout)?;
        Ok((
            CpuStorage::F32(self.forward(x, w, Some(bias))),
            self.output_shape(x_layout),
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

impl Linear {
    fn output_shape(&self, x_layout: &Layout) -> Shape {
        let mut dims = x_layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.outputs;
        }
        Shape::from(dims)
    }

    /// The gradients of those arguments that need one.
    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let g = view("linear", "the gradient", &g)?;
        let mut dx = None;
        if x.track_op() {
            let w = view("linear", "weight", weight)?;
            let w = Matrix::row_major(&w, self.outputs, self.inputs);
            dx = Some(tensor_like(rows_times(&g, self.rows, w, None), x)?);
        }
        let mut dw = None;
        if weight.track_op() {
            dw = Some(tensor_like(
                self.weight_gradient(&g, &view("linear", "x", x)?),
                weight,
            )?);
        }
        let mut db = None;
        if let Some(bias) = bias.filter(|bias| bias.track_op()) {
            db = Some(tensor_like(self.bias_gradient(&g), bias)?);
        }
        Ok((dx, dw, db))
    }

    /// x wᵀ + bias.
    fn forward(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        rows_times(
            x,
            self.rows,
            Matrix::row_major(w, self.outputs, self.inputs).t(),
            bias,
        )
    }

    /// gᵀ x: by block of outputs and chunk of rows, the chunks added in order.
    fn weight_gradient(&self, g: &[f32], x: &[f32]) -> Vec<f32> {
        let Linear {
            rows,
            inputs,
            outputs,
        } = *self;
        let (blocks, chunks) = (outputs.div_ceil(OUTPUTS), rows.div_ceil(SUMMED_ROWS));
        let mut parts = vec![0.0; chunks * outputs * inputs];
        let memory = Shared::new(&mut parts);
        (0..blocks * chunks)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| {
                let (output, row) = (task % blocks * OUTPUTS, task / blocks * SUMMED_ROWS);
                let (width, count) = (OUTPUTS.min(outputs - output), SUMMED_ROWS.min(rows - row));
                let start = (task / blocks * outputs + output) * inputs;
                #[allow(unsafe_code)]
                // SAFETY: these outputs of this part are this task's, and no other's.
                let target =
                    unsafe { MatrixMut::shared(&memory, start, (width, inputs), (inputs, 1)) };
                let g = Matrix::new(&g[row * outputs + output..], (count, width), (outputs, 1));
                product_into(
                    target,
                    g.t(),
                    Matrix::row_major(&x[row * inputs..], count, inputs),
                    1.0,
                    false,
                );
            });
        let rest = parts.split_off(outputs * inputs);
        rest.chunks_exact(outputs * inputs)
            .for_each(|part| simd::add_assign(&mut parts, part));
        parts
    }

    /// The sum of the rows of g, row after row in double precision.
    fn bias_gradient(&self, g: &[f32]) -> Vec<f32> {
        let sums = g.par_chunks(SUMMED_ROWS * self.outputs).map(|rows| {
            let mut sums = vec![0f64; self.outputs];
            for row in rows.chunks_exact(self.outputs) {
                sums.iter_mut()
                    .zip(row)
                    .for_each(|(sum, &g)| *sum += f64::from(g));
            }
            sums
        });
        let sums: Vec<Vec<f64>> = sums.collect();
        (0..self.outputs)
            .map(|output| sums.iter().map(|sums| sums[output]).sum::<f64>() as f32)
            .collect()
    }
}

/// Rows times a matrix, plus a bias on each row: by block of rows and of columns.
fn rows_times(x: &[f32], rows: usize, w: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let (inputs, outputs) = w.shape();
    let write = |y: &mut [MaybeUninit<f32>]| {
        let memory = Shared::uninitialised(y);
        let blocks = outputs.div_ceil(OUTPUTS);
        (0..blocks * rows.div_ceil(ROWS))
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| {
                let (output, row) = (task % blocks * OUTPUTS, task / blocks * ROWS);
                let (width, count) = (OUTPUTS.min(outputs - output), ROWS.min(rows - row));
                let start = row * outputs + output;
                if let Some(bias) = bias {
                    for row in 0..count {
                        #[allow(unsafe_code)]
                        // SAFETY: this tile is this task's, and no other slice of it is alive.
                        let y = unsafe { memory.slice(start + row * outputs, width) };
                        y.iter_mut()
                            .zip(&bias[output..])
                            .for_each(|(y, &bias)| _ = y.write(bias));
                    }
                }
                #[allow(unsafe_code)]
                // SAFETY: this tile is this task's, and no other's.
                let target =
                    unsafe { MatrixMut::shared(&memory, start, (count, width), (outputs, 1)) };
                let x = Matrix::row_major(&x[row * inputs..], count, inputs);
                product_into(target, x, w.columns(output, width), 1.0, bias.is_some());
            });
    };
    #[allow(unsafe_code)]
    // SAFETY: the tiles are all outputs, and the product writes all of each tile.
    let (y, ()) = unsafe { written(rows * outputs, write) };
    y
}
