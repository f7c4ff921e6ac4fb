//! The sizes of a convolution, and which pixels its forward pass and its gradients read.

use candle_core::Result;

use crate::conv::Conv2d;
use crate::source::Window;

/// One convolution of `[inputs, height, width]` to `[outputs, output_height, output_width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) kernel_height: usize,
    pub(crate) kernel_width: usize,
    pub(crate) stride: usize,
    pub(crate) top: usize,
    pub(crate) left: usize,
    pub(crate) output_height: usize,
    pub(crate) output_width: usize,
}

/// A window and the taps of the kernel that it multiplies with; its outputs are every `stride`-th row and column of the
/// image from (`row`, `column`).
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) window: Window,
    pub(crate) taps: Vec<usize>,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Geometry {
    /// # Errors
    /// Stride 0; a kernel larger than the padded image; sizes beyond all memory.
    pub(crate) fn new(
        (height, width): (usize, usize),
        (kernel_height, kernel_width): (usize, usize),
        conv: Conv2d,
    ) -> Result<Self> {
        let (output_height, output_width) =
            crate::check::conv2d_size((height, width), (kernel_height, kernel_width), conv)?;
        Ok(Geometry {
            height,
            width,
            kernel_height,
            kernel_width,
            stride: conv.stride,
            top: conv.padding.top,
            left: conv.padding.left,
            output_height,
            output_width,
        })
    }

    /// Taps of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel_height * self.kernel_width
    }

    fn kernel(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let width = self.kernel_width;
        (0..self.kernel_height).flat_map(move |y| (0..width).map(move |x| (y, x)))
    }

    /// What the forward pass and the gradient of the weights read: all taps.
    pub(crate) fn forward(&self) -> Window {
        let offset = |(y, x)| {
            (
                y as isize - self.top as isize,
                x as isize - self.left as isize,
            )
        };
        Window {
            stride: self.stride,
            offsets: self.kernel().map(offset).collect(),
            height: self.output_height,
            width: self.output_width,
        }
    }

    /// What the gradient of the image reads of the gradient of the output. With a stride s, s by s shares of the image
    /// have different taps: input i meets output o under tap k where o s + k = i + padding.
    pub(crate) fn backward(&self) -> Vec<Share> {
        let s = self.stride;
        let shares =
            (0..s.min(self.height)).flat_map(|y| (0..s.min(self.width)).map(move |x| (y, x)));
        let share = |(row, column): (usize, usize)| {
            let meets = |(y, x): &(usize, usize)| {
                (row + self.top) % s == y % s && (column + self.left) % s == x % s
            };
            let offset = |(y, x): (usize, usize)| {
                let back =
                    |at: usize, padding: usize, tap: usize| (at + padding) as isize - tap as isize;
                (
                    back(row, self.top, y).div_euclid(s as isize),
                    back(column, self.left, x).div_euclid(s as isize),
                )
            };
            let kernel: Vec<(usize, usize)> = self.kernel().filter(meets).collect();
            Share {
                taps: kernel
                    .iter()
                    .map(|(y, x)| y * self.kernel_width + x)
                    .collect(),
                window: Window {
                    stride: 1,
                    offsets: kernel.into_iter().map(offset).collect(),
                    height: (self.height - row).div_ceil(s),
                    width: (self.width - column).div_ceil(s),
                },
                row,
                column,
            }
        };
        shares.map(share).collect()
    }
}
