//! Products of matrices that lie anywhere with any strides, on the calling thread.

use crate::storage::Shared;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    pub(crate) fn new(
        data: &'a [f32],
        (rows, columns): (usize, usize),
        (row_stride, column_stride): (usize, usize),
    ) -> Self {
        assert!(
            extent((rows, columns), (row_stride, column_stride)) <= data.len(),
            "matrix beyond its slice"
        );
        Matrix {
            data,
            rows,
            columns,
            row_stride,
            column_stride,
        }
    }

    /// Rows one after the other without gaps.
    pub(crate) fn row_major(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Matrix::new(data, (rows, columns), (columns, 1))
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Some of the columns.
    pub(crate) fn columns(self, first: usize, count: usize) -> Self {
        Matrix::new(
            &self.data[first * self.column_stride..],
            (self.rows, count),
            (self.row_stride, self.column_stride),
        )
    }

    /// The transpose, of the same memory.
    pub(crate) fn t(self) -> Self {
        let Matrix {
            data,
            rows,
            columns,
            row_stride,
            column_stride,
        } = self;
        Matrix {
            data,
            rows: columns,
            columns: rows,
            row_stride: column_stride,
            column_stride: row_stride,
        }
    }
}

/// A matrix to be written.
pub(crate) struct MatrixMut {
    pointer: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl MatrixMut {
    /// # Safety
    /// Nothing else reads or writes the elements of this matrix while it lives, and the memory outlives it.
    #[allow(unsafe_code)] // tasks write disjoint tiles of one output
    pub(crate) unsafe fn shared(
        memory: &Shared,
        start: usize,
        shape: (usize, usize),
        strides: (usize, usize),
    ) -> Self {
        let pointer = memory.at(start, extent(shape, strides));
        MatrixMut {
            pointer,
            rows: shape.0,
            columns: shape.1,
            row_stride: strides.0,
            column_stride: strides.1,
        }
    }
}

/// Writes scale a b into a matrix, or adds it to what is there.
pub(crate) fn product_into(into: MatrixMut, a: Matrix, b: Matrix, scale: f32, accumulate: bool) {
    assert!(
        a.columns == b.rows && into.rows == a.rows && into.columns == b.columns,
        "matrices that do not fit"
    );
    #[allow(unsafe_code)]
    // SAFETY: all three matrices lie inside of their memory (checked when they were made), their shapes fit (checked
    // above), and `into` is nobody else's by the promise of whoever made it.
    unsafe {
        gemm::gemm(
            into.rows,
            into.columns,
            a.columns,
            into.pointer,
            into.column_stride as isize,
            into.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Elements from the first to the last of a matrix, both counted.
fn extent((rows, columns): (usize, usize), (row_stride, column_stride): (usize, usize)) -> usize {
    if rows == 0 || columns == 0 {
        0
    } else {
        (rows - 1) * row_stride + (columns - 1) * column_stride + 1
    }
}
