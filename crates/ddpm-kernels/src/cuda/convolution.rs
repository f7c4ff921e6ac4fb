//! A convolution as cuDNN can be asked for it, and which of its algorithms is taken.

use candle_core::{Result, bail};

use super::launch::{Kind, whole};
use super::settings::Settings;
use crate::Conv2d;
use crate::geometry::Geometry;

/// How the numbers of images follow each other, and those of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// Channel after channel: NCHW, and weights output by input by row by column.
    Planes,
    /// Pixel after pixel: NHWC, and weights output by row by column by input.
    Pixels,
}

/// What cuDNN is told; plans are kept by it. Its padding is the same above and below, left and right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Of x, the weights and y; sums are f32.
    pub(crate) kind: Kind,
    pub(crate) order: Order,
    /// Images, channels, rows, columns; so for y.
    pub(crate) x: [u32; 4],
    /// Outputs, inputs of a group, rows, columns.
    pub(crate) weight: [u32; 4],
    pub(crate) y: [u32; 4],
    pub(crate) padding: [u32; 2],
    pub(crate) stride: u32,
    pub(crate) groups: u32,
}

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Pass {
    Forward,
    Data,
    Weights,
}

/// Zeros that are put around x beforehand, where those of both sides differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Around {
    pub(crate) planes: usize,
    pub(crate) inner: [usize; 2],
    pub(crate) outer: [usize; 2],
    pub(crate) top: i32,
    pub(crate) left: i32,
}

/// What cuDNN is told of a convolution of x `[batch, inputs, height, width]` that has been checked.
pub(crate) fn shape_of(
    kind: Kind,
    x: [usize; 4],
    weight: [usize; 4],
    conv: Conv2d,
) -> Result<(Shape, Option<Around>)> {
    let [batch, inputs, height, width] = x;
    let padding = conv.padding;
    let g = Geometry::new((height, width), (weight[2], weight[3]), conv)?;
    let y = [batch, weight[0], g.output_height, g.output_width];
    let even = padding.top == padding.bottom && padding.left == padding.right;
    let outer = [
        height + padding.top + padding.bottom,
        width + padding.left + padding.right,
    ];
    let around = Around {
        planes: batch * inputs,
        inner: [height, width],
        outer,
        top: whole("rows of padding", padding.top)? as i32,
        left: whole("columns of padding", padding.left)? as i32,
    };
    let (x, sides) = if even {
        (x, [padding.top, padding.left])
    } else {
        ([batch, inputs, outer[0], outer[1]], [0, 0])
    };
    let sizes = |of: [usize; 4]| -> Result<[u32; 4]> {
        Ok([
            whole("images or outputs", of[0])?,
            whole("channels", of[1])?,
            whole("rows", of[2])?,
            whole("columns", of[3])?,
        ])
    };
    let shape = Shape {
        kind,
        order: Order::Planes,
        x: sizes(x)?,
        weight: sizes(weight)?,
        y: sizes(y)?,
        padding: [
            whole("rows of padding", sides[0])?,
            whole("columns of padding", sides[1])?,
        ],
        stride: whole("pixels of stride", conv.stride)?,
        groups: whole("groups", conv.groups)?,
    };
    Ok((shape, (!even).then_some(around)))
}

/// An algorithm as cuDNN offers it, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// cuDNN's number of it, and of how it multiplies.
    pub(crate) algorithm: u32,
    pub(crate) math: u32,
    pub(crate) works: bool,
    pub(crate) deterministic: bool,
    pub(crate) bytes: usize,
}

/// cuDNN's number of products by single-precision multiplication and addition alone (CUDNN_FMA_MATH), and of those that are
/// single precision unless the convolution allows more (CUDNN_DEFAULT_MATH).
pub(crate) const FMA_MATH: u32 = 3;
pub(crate) const DEFAULT_MATH: u32 = 0;

/// Memory that an algorithm may need beside its arguments.
const MOST_BYTES: usize = 1 << 30;

/// The first that works in a gigabyte and keeps to the settings. Products of bf16 are exact in tensor cores too.
pub(crate) fn choose(
    kind: Kind,
    candidates: &[Candidate],
    settings: Settings,
) -> Result<Candidate> {
    let fits = |candidate: &&Candidate| {
        candidate.works
            && candidate.bytes <= MOST_BYTES
            && (candidate.deterministic || !settings.deterministic)
            && (settings.tf32
                || kind == Kind::Bf16
                || [FMA_MATH, DEFAULT_MATH].contains(&candidate.math))
    };
    match candidates.iter().find(fits) {
        Some(candidate) => Ok(*candidate),
        None => bail!(
            "conv2d: cuDNN has no algorithm for this shape with {settings:?}: it offers {candidates:?}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Padding;

    #[test]
    fn equal_padding_is_left_to_cudnn() {
        let conv = Conv2d::new(1, Padding::same(1));
        let (shape, around) = shape_of(Kind::F32, [2, 3, 5, 7], [8, 3, 3, 3], conv).unwrap();
        assert_eq!(around, None);
        assert_eq!((shape.x, shape.y), ([2, 3, 5, 7], [2, 8, 5, 7]));
        assert_eq!((shape.padding, shape.stride), ([1, 1], 1));
        let wide = Padding {
            top: 0,
            bottom: 0,
            left: 2,
            right: 2,
        };
        let (shape, around) =
            shape_of(Kind::F32, [2, 3, 5, 7], [8, 3, 1, 5], Conv2d::new(2, wide)).unwrap();
        assert_eq!(
            (around, shape.padding, shape.y),
            (None, [0, 2], [2, 8, 3, 4])
        );
    }

    #[test]
    fn other_padding_is_put_around_beforehand() {
        let conv = Conv2d {
            groups: 3,
            ..Conv2d::new(2, Padding::DDPM_DOWN)
        };
        let (shape, around) = shape_of(Kind::F32, [2, 3, 8, 6], [9, 1, 3, 3], conv).unwrap();
        let expected = Around {
            planes: 6,
            inner: [8, 6],
            outer: [9, 7],
            top: 0,
            left: 0,
        };
        assert_eq!(around, Some(expected));
        assert_eq!((shape.x, shape.padding), ([2, 3, 9, 7], [0, 0]));
        assert_eq!((shape.y, shape.groups), ([2, 9, 4, 3], 3));
    }

    /// cuDNN's own formula: 1 + (x + 2 padding - kernel) / stride, rounded down.
    #[test]
    fn cudnn_makes_the_same_output() {
        for (conv, size) in [
            (Conv2d::new(1, Padding::same(1)), 3),
            (Conv2d::new(2, Padding::DDPM_DOWN), 3),
            (
                Conv2d::new(
                    3,
                    Padding {
                        top: 4,
                        left: 1,
                        bottom: 0,
                        right: 2,
                    },
                ),
                4,
            ),
            (Conv2d::new(2, Padding::ZERO), 1),
        ] {
            for side in 4..12 {
                let (shape, _) =
                    shape_of(Kind::F32, [1, 2, side, side + 3], [5, 2, size, size], conv).unwrap();
                for axis in 0..2 {
                    let padded = shape.x[2 + axis] + 2 * shape.padding[axis];
                    let outputs = 1 + (padded - shape.weight[2 + axis]) / shape.stride;
                    assert_eq!(shape.y[2 + axis], outputs, "{conv:?}, {side}");
                }
            }
        }
    }

    #[test]
    fn the_first_that_keeps_to_the_settings() {
        let of = |algorithm, math, works, deterministic, bytes| Candidate {
            algorithm,
            math,
            works,
            deterministic,
            bytes,
        };
        let offered = [
            of(0, FMA_MATH, false, true, 0),
            of(1, 1, true, false, 0),
            of(2, 1, true, true, 0),
            of(3, FMA_MATH, true, true, MOST_BYTES + 1),
            of(4, DEFAULT_MATH, true, false, 0),
            of(5, FMA_MATH, true, true, MOST_BYTES),
        ];
        let chosen = |tf32, deterministic| {
            choose(
                Kind::F32,
                &offered,
                Settings {
                    tf32,
                    deterministic,
                },
            )
            .map(|c| c.algorithm)
            .ok()
        };
        let halves = Settings {
            tf32: false,
            deterministic: true,
        };
        assert_eq!(
            choose(Kind::Bf16, &offered, halves)
                .map(|c| c.algorithm)
                .ok(),
            Some(2)
        );
        assert_eq!(chosen(true, false), Some(1));
        assert_eq!(chosen(true, true), Some(2));
        assert_eq!(chosen(false, false), Some(4));
        assert_eq!(chosen(false, true), Some(5));
        let none = choose(
            Kind::F32,
            &offered[..4],
            Settings {
                tf32: false,
                deterministic: true,
            },
        )
        .unwrap_err();
        assert!(
            none.to_string().contains("no algorithm for this shape"),
            "{none}"
        );
    }
}
