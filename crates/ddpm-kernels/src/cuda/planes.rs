//! Planes of pixels on a card: twice and half the size, zeros around them or cut off, a bias.

use candle_core::Result;

use super::launch::{Address, Divisor, Kind, Launch, Machine, arguments, kernel, whole};

/// Each pixel of planes `width` wide becomes 2 by 2, times a factor.
pub(crate) fn spread_2x<M: Machine>(
    machine: &M,
    kind: Kind,
    x: Address,
    (pixels, width): (usize, usize),
    factor: f32,
) -> Result<M::Memory> {
    let y = machine.allocate(kind, 4 * pixels)?;
    two_by_two(
        machine,
        kernel!(kind, "spread_2x"),
        (x, machine.address(&y)),
        (pixels, width),
        factor,
    )?;
    Ok(y)
}

/// The sums of 2 by 2 pixels times a factor; `pixels` and `width` are those of the result.
pub(crate) fn gather_2x<M: Machine>(
    machine: &M,
    kind: Kind,
    x: Address,
    (pixels, width): (usize, usize),
    factor: f32,
) -> Result<M::Memory> {
    let y = machine.allocate(kind, pixels)?;
    two_by_two(
        machine,
        kernel!(kind, "gather_2x"),
        (x, machine.address(&y)),
        (pixels, width),
        factor,
    )?;
    Ok(y)
}

fn two_by_two<M: Machine>(
    machine: &M,
    kernel: &'static str,
    (x, y): (Address, Address),
    (pixels, width): (usize, usize),
    factor: f32,
) -> Result<()> {
    let width = whole("columns", width)?;
    let count = whole("pixels", pixels)?;
    let arguments = arguments![x, y, count, width, Divisor::by(width), factor];
    machine.launch(kernel, Launch::each(pixels)?, arguments)
}

/// y(row, column) = x(row - top, column - left), zeros outside of x: planes of `from` pixels to planes of `to`.
pub(crate) fn window<M: Machine>(
    machine: &M,
    kind: Kind,
    x: Address,
    planes: usize,
    from: [usize; 2],
    to: [usize; 2],
    (top, left): (i32, i32),
) -> Result<M::Memory> {
    let pixels = planes * to[0] * to[1];
    let y = machine.allocate(kind, pixels)?;
    let [height, width] = [whole("rows", to[0])?, whole("columns", to[1])?];
    machine.launch(
        kernel!(kind, "window"),
        Launch::each(pixels)?,
        arguments![
            x,
            machine.address(&y),
            whole("pixels", pixels)?,
            height,
            width,
            Divisor::by(height),
            Divisor::by(width),
            whole("rows", from[0])?,
            whole("columns", from[1])?,
            top,
            left,
        ],
    )?;
    Ok(y)
}

/// Adds to each plane of `pixels` of y, in place, its bias: number plane modulo `biases`.
pub(crate) fn add_bias<M: Machine>(
    machine: &M,
    kind: Kind,
    y: Address,
    bias: Address,
    (length, pixels, biases): (usize, usize, usize),
) -> Result<()> {
    let (pixels, biases) = (whole("pixels", pixels)?, whole("biases", biases)?);
    let arguments = arguments![
        y,
        bias,
        whole("elements", length)?,
        biases,
        Divisor::by(pixels),
        Divisor::by(biases),
    ];
    machine.launch(kernel!(kind, "add_bias"), Launch::each(length)?, arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::oracle::{KINDS, wave};

    const PLANES: usize = 3;

    #[test]
    fn pixels_become_squares_and_back() {
        for kind in KINDS {
            for (height, width) in [(1, 1), (5, 7), (4, 8), (9, 33)] {
                check_squares(kind, height, width);
            }
        }
    }

    fn check_squares(kind: Kind, height: usize, width: usize) {
        let plane = height * width;
        let (x, large) = (wave(PLANES * plane, 1), wave(4 * PLANES * plane, 2));
        let ran = Host::both_ways(|host| {
            let (x, large) = (host.numbers(kind, &x), host.numbers(kind, &large));
            let size = (PLANES * plane, width);
            Ok(vec![
                spread_2x(host, kind, host.address(&x), size, 0.25)?.read(),
                gather_2x(host, kind, host.address(&large), size, 0.5)?.read(),
            ])
        });
        let Some(ran) = ran else { return };
        let (x, large) = (kept(kind, &x), kept(kind, &large));
        let spread = (0..4 * PLANES * plane).map(|i| {
            let (row, column) = (i / (2 * width), i % (2 * width));
            0.25 * x[row / 2 * width + column / 2]
        });
        let gathered = (0..PLANES * plane).map(|i| {
            let at =
                |r: usize, c: usize| large[(2 * (i / width) + r) * 2 * width + 2 * (i % width) + c];
            0.5 * ((at(0, 0) + at(0, 1)) + (at(1, 0) + at(1, 1)))
        });
        let what = format!("{kind:?}, {height} x {width}");
        assert_eq!(ran[0], kept(kind, &spread.collect::<Vec<_>>()), "{what}");
        assert_eq!(ran[1], kept(kind, &gathered.collect::<Vec<_>>()), "{what}");
    }

    #[test]
    fn zeros_around_and_what_was_inside() {
        let (from, to, top, left) = ([5usize, 7usize], [9usize, 8usize], 3, 0);
        for kind in KINDS {
            let x = kept(kind, &wave(PLANES * 35, 1));
            let ran = Host::both_ways(|host| {
                let memory = host.numbers(kind, &x);
                let at = host.address(&memory);
                let padded = window(host, kind, at, PLANES, from, to, (top, left))?;
                let at = host.address(&padded);
                let back = window(host, kind, at, PLANES, to, from, (-top, -left))?;
                Ok(vec![padded.read(), back.read()])
            });
            let Some(ran) = ran else { return };
            for (i, &y) in ran[0].iter().enumerate() {
                let (plane, row, column) = (i / 72, i / 8 % 9, i % 8);
                let inside = (3..8).contains(&row) && column < 7;
                let expected = if inside {
                    x[plane * 35 + (row - 3) * 7 + column]
                } else {
                    0.0
                };
                assert_eq!(y, expected, "{kind:?}, {i}");
            }
            assert_eq!(ran[1], x, "{kind:?}");
        }
    }

    #[test]
    fn biases_reach_their_planes() {
        let sizes = [(3, 5, 35, 5), (3, 5, 35, 15), (300, 7, 1, 7), (1, 1, 1, 1)];
        for kind in KINDS {
            for (images, channels, pixels, biases) in sizes {
                let length = images * channels * pixels;
                let (y, bias) = (kept(kind, &wave(length, 1)), wave(biases, 2));
                let ran = Host::both_ways(|host| {
                    let (y, bias) = (host.numbers(kind, &y), host.floats(&bias));
                    let sizes = (length, pixels, biases);
                    add_bias(host, kind, host.address(&y), host.address(&bias), sizes)?;
                    Ok(vec![y.read()])
                });
                let Some(ran) = ran else { return };
                let sums = y
                    .iter()
                    .enumerate()
                    .map(|(i, y)| y + bias[i / pixels % biases]);
                let expected = kept(kind, &sums.collect::<Vec<_>>());
                assert_eq!(ran[0], expected, "{kind:?}, {pixels}, {biases}");
            }
        }
    }
}
