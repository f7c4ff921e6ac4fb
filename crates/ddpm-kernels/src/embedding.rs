//! Rows of a table by number, and the table's gradient.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::storage::{slice, tensor_like, view};

/// One row of a table for each index, in their order; rows may be asked for more than once.
///
/// # Shapes
/// table `[N, D]`, indices: B numbers below N -> `[B, D]`.
///
/// # Errors
/// A table that is none, an index beyond it, a type other than f32.
pub fn embedding(table: &Tensor, indices: &[usize]) -> Result<Tensor> {
    crate::check::floats("embedding", &[("table", table)])?;
    crate::check::embedding(table, indices)?;
    if !table.device().is_cpu() {
        return crate::reference::embedding(table, indices);
    }
    table.contiguous()?.apply_op1(Rows(indices.to_vec()))
}

struct Rows(Vec<usize>);

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let data = slice("embedding", "table", table, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let mut rows = Vec::with_capacity(self.0.len() * width);
        for &index in &self.0 {
            rows.extend_from_slice(&data[index * width..][..width]);
        }
        Ok((CpuStorage::F32(rows), Shape::from((self.0.len(), width))))
    }

    /// A row gathers the gradients of all its copies, in the order of the batch.
    fn bwd(&self, table: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, width) = table.dims2()?;
        let g = g.contiguous()?;
        let g = view("embedding", "the gradient", &g)?;
        let mut gradient = vec![0f32; table.elem_count()];
        for (&index, g) in self.0.iter().zip(g.chunks_exact(width.max(1))) {
            let row = &mut gradient[index * width..][..width];
            row.iter_mut().zip(g).for_each(|(row, g)| *row += g);
        }
        tensor_like(gradient, table).map(Some)
    }
}
