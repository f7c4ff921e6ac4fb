//! Convolutions by one pixel, whose images lie pixel after pixel, are products of matrices: which ones, as cuBLAS counts.
//!
//! Row after row, with a row for each pixel of each image: Y = X Wᵀ, dX = dY W and dW = dYᵀ X, for X `[pixels, inputs]`,
//! W `[outputs, inputs]`, Y `[pixels, outputs]`. cuBLAS reads column after column, which is the transpose: Yᵀ = W Xᵀ,
//! dXᵀ = Wᵀ dYᵀ, dWᵀ = Xᵀ dY.

use super::convolution::{Order, Pass, Shape};

/// C = op(A) op(B), column after column: op(A) is m by k, op(B) k by n, C m by n, and the columns of A, B and C as they lie are
/// `columns` long (BLAS calls it the leading dimension).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    /// Which of the arguments of the pass A is, and B.
    pub(crate) from: [usize; 2],
    /// Whether op turns them.
    pub(crate) turned: [bool; 2],
    pub(crate) m: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) columns: [i32; 3],
}

/// The product that a pass is, if it is one.
pub(crate) fn product_of(shape: &Shape, pass: Pass) -> Option<Product> {
    let plain = shape.order == Order::Pixels
        && shape.weight[2..] == [1, 1]
        && shape.padding == [0, 0]
        && shape.stride == 1
        && shape.groups == 1;
    if !plain {
        return None;
    }
    let [images, inputs, height, width] = shape.x;
    let pixels = images.checked_mul(height)?.checked_mul(width)?;
    let size = |of: u32| i32::try_from(of).ok().filter(|&of| of > 0);
    let (pixels, inputs, outputs) = (size(pixels)?, size(inputs)?, size(shape.weight[0])?);
    Some(match pass {
        // of x and W
        Pass::Forward => Product {
            from: [1, 0],
            turned: [true, false],
            m: outputs,
            n: pixels,
            k: inputs,
            columns: [inputs, inputs, outputs],
        },
        // of W and dY
        Pass::Data => Product {
            from: [0, 1],
            turned: [false, false],
            m: inputs,
            n: pixels,
            k: outputs,
            columns: [inputs, outputs, inputs],
        },
        // of x and dY
        Pass::Weights => Product {
            from: [0, 1],
            turned: [false, true],
            m: inputs,
            n: outputs,
            k: pixels,
            columns: [inputs, outputs, inputs],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::library;
    use crate::cuda::launch::{Address, Kind};

    /// As the reference BLAS defines it.
    fn gemm(product: &Product, arguments: [&[f32]; 2], c: &mut [f32]) {
        let [a, b] = product.from.map(|which| arguments[which]);
        let [a_columns, b_columns, c_columns] = product.columns.map(|length| length as usize);
        let (m, n, k) = (product.m as usize, product.n as usize, product.k as usize);
        let at = |of: &[f32], columns: usize, turned: bool, row: usize, column: usize| match turned
        {
            false => {
                assert!(row < columns);
                of[column * columns + row]
            }
            true => {
                assert!(column < columns);
                of[row * columns + column]
            }
        };
        for column in 0..n {
            for row in 0..m {
                let terms = (0..k).map(|i| {
                    at(a, a_columns, product.turned[0], row, i)
                        * at(b, b_columns, product.turned[1], i, column)
                });
                assert!(row < c_columns);
                c[column * c_columns + row] = terms.sum();
            }
        }
    }

    fn shape() -> Shape {
        Shape {
            kind: Kind::F32,
            order: Order::Pixels,
            x: [2, 5, 3, 4],
            weight: [7, 5, 1, 1],
            y: [2, 7, 3, 4],
            padding: [0, 0],
            stride: 1,
            groups: 1,
        }
    }

    /// Small whole numbers, so that every sum is exact in whatever order.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| (i * 37 + seed * 101) % 17;
        (0..count).map(|i| number(i) as f32 - 8.0).collect()
    }

    #[test]
    fn a_product_is_the_convolution() {
        let (x, w, y) = (2 * 5 * 12, 7 * 5, 2 * 7 * 12);
        for (pass, [a, b], to) in [
            (Pass::Forward, [x, w], y),
            (Pass::Data, [w, y], x),
            (Pass::Weights, [x, y], w),
        ] {
            let (a, b) = (numbers(a, 1), numbers(b, 2));
            let product = product_of(&shape(), pass).unwrap();
            let mut products = vec![f32::NAN; to];
            gemm(&product, [&a, &b], &mut products);
            let mut expected = vec![f32::NAN; to];
            let at = |of: &[f32]| Address(of.as_ptr().expose_provenance() as u64);
            let place = Address(expected.as_mut_ptr().expose_provenance() as u64);
            library::convolve(&shape(), pass, [at(&a), at(&b)], place);
            assert_eq!(products, expected, "{pass:?}");
        }
    }

    #[test]
    fn others_are_none() {
        let others = [
            Shape {
                order: Order::Planes,
                ..shape()
            },
            Shape {
                weight: [7, 5, 1, 3],
                padding: [0, 1],
                ..shape()
            },
            Shape {
                padding: [1, 1],
                y: [2, 7, 5, 6],
                ..shape()
            },
            Shape {
                stride: 2,
                y: [2, 7, 2, 2],
                ..shape()
            },
            Shape {
                x: [2, 10, 3, 4],
                weight: [8, 5, 1, 1],
                y: [2, 8, 3, 4],
                groups: 2,
                ..shape()
            },
            Shape {
                x: [1 << 20, 5, 1 << 6, 1 << 6],
                ..shape()
            },
            Shape {
                x: [0, 5, 3, 4],
                ..shape()
            },
        ];
        for shape in others {
            for pass in [Pass::Forward, Pass::Data, Pass::Weights] {
                assert_eq!(product_of(&shape, pass), None, "{shape:?}");
            }
        }
    }
}
