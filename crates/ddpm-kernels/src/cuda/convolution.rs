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
        planes: batch.saturating_mul(inputs),
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

/// An algorithm as cuDNN offers it; offers come fastest first.
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
pub(crate) const MOST_BYTES: usize = 1 << 30;

/// The places of those that work in a gigabyte and keep to the settings, in their order. Products of bf16 are exact in tensor
/// cores too.
pub(crate) fn fitting(kind: Kind, candidates: &[Candidate], settings: Settings) -> Vec<usize> {
    let fits = |candidate: &Candidate| {
        candidate.works
            && candidate.bytes <= MOST_BYTES
            && (candidate.deterministic || !settings.deterministic)
            && (settings.tf32
                || kind == Kind::Bf16
                || [FMA_MATH, DEFAULT_MATH].contains(&candidate.math))
    };
    let all = candidates.iter().enumerate();
    all.filter_map(|(place, candidate)| fits(candidate).then_some(place))
        .collect()
}

/// What cuDNN notes of an engine's numbers: it multiplies in matrix units, rounds its factors beforehand, adds up in less than
/// f32, adds up in any order.
pub(crate) const TENSOR_CORE: u32 = 0;
pub(crate) const DOWN_CONVERTED: u32 = 1;
pub(crate) const REDUCED_SUMS: u32 = 2;
pub(crate) const IN_ANY_ORDER: u32 = 4;
/// And of its ways: it can be put into a CUDA graph directly. Others need a compiler at run time, other layouts or libraries.
pub(crate) const NATIVE_GRAPHS: u32 = 3;

/// Whether an engine with these notes keeps to the settings.
pub(crate) fn admits(kind: Kind, numbers: &[u32], ways: &[u32], settings: Settings) -> bool {
    let allowed = |note: &u32| match *note {
        TENSOR_CORE => kind == Kind::Bf16 || settings.tf32,
        DOWN_CONVERTED | REDUCED_SUMS => false,
        IN_ANY_ORDER => !settings.deterministic,
        _ => true,
    };
    numbers.iter().all(allowed) && ways.iter().all(|&way| way == NATIVE_GRAPHS)
}

/// How far apart neighbours along images, channels, rows and columns lie; so for weights.
pub(crate) fn strides(order: Order, [_, channels, rows, columns]: [u32; 4]) -> [i64; 4] {
    let [channels, rows, columns] = [channels, rows, columns].map(i64::from);
    match order {
        Order::Planes => [channels * rows * columns, rows * columns, columns, 1],
        Order::Pixels => [channels * rows * columns, 1, channels * columns, channels],
    }
}

/// Whether two samples of a result are the same but for rounding.
pub(crate) fn alike(one: &[f32], other: &[f32]) -> bool {
    let largest = one.iter().fold(0f32, |most, x| most.max(x.abs()));
    let near = |(x, y): (&f32, &f32)| (x - y).abs() <= 0.02 * largest;
    one.len() == other.len() && one.iter().zip(other).all(near)
}

/// cuDNN finds its way in a tensor by 31 bits.
pub(crate) fn countable(shape: &Shape) -> Result<()> {
    for (name, of) in [
        ("x", shape.x),
        ("the weights", shape.weight),
        ("y", shape.y),
    ] {
        let sizes = of.iter().map(|&size| u64::from(size));
        let numbers = sizes.fold(1, u64::saturating_mul);
        if numbers >= 1 << 31 {
            bail!(
                "conv2d: {numbers} numbers of {name} {of:?} are more than cuDNN can count, expected less than 2^31: smaller batches"
            );
        }
    }
    Ok(())
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
    fn those_that_keep_to_the_settings() {
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
        let fitting = |kind, tf32, deterministic| {
            let settings = Settings {
                tf32,
                deterministic,
            };
            fitting(kind, &offered, settings)
        };
        assert_eq!(fitting(Kind::Bf16, false, true), [2, 5]);
        assert_eq!(fitting(Kind::F32, true, false), [1, 2, 4, 5]);
        assert_eq!(fitting(Kind::F32, true, true), [2, 5]);
        assert_eq!(fitting(Kind::F32, false, false), [4, 5]);
        assert_eq!(fitting(Kind::F32, false, true), [5]);
    }

    #[test]
    fn engines_that_keep_to_the_settings() {
        let of = |tf32, deterministic| Settings {
            tf32,
            deterministic,
        };
        let exact = of(false, true);
        assert!(admits(Kind::F32, &[], &[], exact));
        assert!(admits(Kind::F32, &[9, 5], &[NATIVE_GRAPHS], exact));
        assert!(!admits(Kind::F32, &[TENSOR_CORE], &[], exact));
        assert!(admits(Kind::F32, &[TENSOR_CORE], &[], of(true, true)));
        assert!(admits(Kind::Bf16, &[TENSOR_CORE], &[], exact));
        assert!(!admits(
            Kind::Bf16,
            &[TENSOR_CORE, IN_ANY_ORDER],
            &[],
            exact
        ));
        assert!(admits(Kind::Bf16, &[IN_ANY_ORDER], &[], of(false, false)));
        for never in [DOWN_CONVERTED, REDUCED_SUMS] {
            assert!(!admits(Kind::Bf16, &[never], &[], of(true, false)));
        }
        // Compiled when it is first used.
        assert!(!admits(Kind::Bf16, &[], &[NATIVE_GRAPHS, 0], exact));
    }

    #[test]
    fn strides_reach_every_number_once() {
        let sizes = [2, 3, 4, 5];
        for (order, first) in [
            (Order::Planes, [60, 20, 5, 1]),
            (Order::Pixels, [60, 1, 15, 3]),
        ] {
            let strides = strides(order, sizes);
            assert_eq!(strides, first);
            let mut places: Vec<i64> = Vec::new();
            for n in 0..120i64 {
                let at = [n / 60, n / 20 % 3, n / 5 % 4, n % 5];
                places.push(at.iter().zip(strides).map(|(i, stride)| i * stride).sum());
            }
            places.sort_unstable();
            assert_eq!(places, Vec::from_iter(0..120));
        }
    }

    #[test]
    fn alike_is_but_for_rounding() {
        assert!(alike(&[100.0, 1.0, -50.0], &[101.0, 0.0, -49.0]));
        assert!(!alike(&[100.0, 1.0, -50.0], &[1.0, 100.0, -50.0]));
        assert!(!alike(&[1.0, 2.0], &[1.0, f32::NAN]));
        assert!(!alike(&[f32::NAN], &[1.0]));
        assert!(!alike(&[1.0], &[]));
    }

    #[test]
    fn what_cudnn_cannot_count_is_refused() {
        let conv = Conv2d::new(1, Padding::same(1));
        let shape = |images| shape_of(Kind::Bf16, [images, 64, 64, 64], [128, 64, 3, 3], conv);
        assert!(countable(&shape(4095).unwrap().0).is_ok());
        let message = countable(&shape(4096).unwrap().0).unwrap_err().to_string();
        assert!(
            message.starts_with("conv2d: 2147483648 numbers of y [4096, 128, 64, 64] are more"),
            "{message}"
        );
        let absurd = shape_of(
            Kind::F32,
            [1 << 30, 3, 1 << 30, 1 << 30],
            [3, 3, 3, 3],
            conv,
        );
        assert!(countable(&absurd.unwrap().0).is_err());
        assert!(shape(usize::MAX).is_err());
    }
}
