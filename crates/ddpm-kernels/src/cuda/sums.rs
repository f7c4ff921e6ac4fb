//! Sums of planes and columns on a card: the gradient of a bias.

use candle_core::{Result, bail};

use super::launch::{Address, BLOCK, Kind, Launch, Machine, WARP, arguments, kernel, whole};

/// Rows that a block sums before partial sums are.
const SHARE: usize = 1024;

/// The sums, f32, of the columns of a matrix, of 1024 rows at a time until there is one.
pub(crate) fn column_sums<M: Machine>(
    machine: &M,
    kind: Kind,
    x: Address,
    rows: usize,
    columns: usize,
) -> Result<M::Memory> {
    column_sums_by(machine, SHARE, kind, x, rows, columns)
}

fn column_sums_by<M: Machine>(
    machine: &M,
    share: usize,
    kind: Kind,
    x: Address,
    rows: usize,
    columns: usize,
) -> Result<M::Memory> {
    let parts = rows.div_ceil(share);
    if parts > 65535 {
        bail!(
            "cuda: {rows} rows are more than a kernel can sum, expected at most {}",
            65535 * share
        );
    }
    let sums = machine.allocate(Kind::F32, parts * columns)?;
    let launch = Launch {
        grid: [whole("columns", columns)?.div_ceil(WARP), parts as u32],
        block: BLOCK,
        shared: 4 * BLOCK,
    };
    let (rows, share_argument) = (whole("rows", rows)?, whole("rows", share)?);
    machine.launch(
        kernel!(kind, "column_sums"),
        launch,
        arguments![
            x,
            machine.address(&sums),
            rows,
            columns as u32,
            share_argument
        ],
    )?;
    if parts == 1 {
        return Ok(sums);
    }
    column_sums_by(
        machine,
        share,
        Kind::F32,
        machine.address(&sums),
        parts,
        columns,
    )
}

/// The gradient of a bias, f32, from that of an output of `images` by `channels` planes of `pixels`: a number of each channel, or
/// with `own` of each channel of each image.
pub(crate) fn bias_gradient<M: Machine>(
    machine: &M,
    kind: Kind,
    g: Address,
    (images, channels, pixels): (usize, usize, usize),
    own: bool,
) -> Result<M::Memory> {
    if pixels == 1 && !own {
        return column_sums(machine, kind, g, images, channels);
    }
    let planes = images * channels;
    let sums = machine.allocate(Kind::F32, planes)?;
    machine.launch(
        kernel!(kind, "plane_sums"),
        Launch::warps(planes)?,
        arguments![
            g,
            machine.address(&sums),
            whole("planes", planes)?,
            whole("pixels", pixels)?
        ],
    )?;
    if own {
        return Ok(sums);
    }
    column_sums(machine, Kind::F32, machine.address(&sums), images, channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::oracle::{KINDS, assert_near, wave};

    #[test]
    fn columns_of_many_rows_in_any_shares() {
        let sizes = [(1, 1), (5, 31), (300, 33), (1000, 64), (2500, 3)];
        for kind in KINDS {
            for (rows, columns) in sizes {
                for share in [7, 100, 1024] {
                    check_columns(kind, rows, columns, share);
                }
            }
        }
    }

    fn check_columns(kind: Kind, rows: usize, columns: usize, share: usize) {
        let x = kept(kind, &wave(rows * columns, 1));
        let mut expected = vec![0f64; columns];
        for row in x.chunks(columns) {
            let pairs = expected.iter_mut().zip(row);
            pairs.for_each(|(sum, &x)| *sum += f64::from(x));
        }
        let ran = Host::both_ways(|host| {
            let x = host.numbers(kind, &x);
            let sums = column_sums_by(host, share, kind, host.address(&x), rows, columns)?;
            Ok(vec![sums.read()])
        });
        let Some(ran) = ran else { return };
        let what = format!("{kind:?}, {rows} x {columns} by {share}");
        assert_near(&what, &ran[0], &expected, 1e-5);
    }

    #[test]
    fn biases_of_channels_and_of_each_image() {
        let sizes = [(3, 5, 35), (1, 33, 1), (70, 3, 1), (2, 4, 1000)];
        for kind in KINDS {
            for shape in sizes {
                for own in [false, true] {
                    check_bias(kind, shape, own);
                }
            }
        }
    }

    fn check_bias(kind: Kind, shape: (usize, usize, usize), own: bool) {
        let (images, channels, pixels) = shape;
        let g = kept(kind, &wave(images * channels * pixels, 1));
        let of_plane = |plane: &[f32]| plane.iter().map(|&g| f64::from(g)).sum();
        let of_planes: Vec<f64> = g.chunks(pixels).map(of_plane).collect();
        let ran = Host::both_ways(|host| {
            let g = host.numbers(kind, &g);
            let sums = bias_gradient(host, kind, host.address(&g), shape, own)?;
            Ok(vec![sums.read()])
        });
        let Some(ran) = ran else { return };
        let over_images = |c: usize| of_planes.iter().skip(c).step_by(channels).sum();
        let expected = if own {
            of_planes.clone()
        } else {
            (0..channels).map(over_images).collect()
        };
        assert_near(
            &format!("{kind:?}, {shape:?}, {own}"),
            &ran[0],
            &expected,
            1e-5,
        );
    }
}
