//! Sums of planes and columns on a card: the gradient of a bias.

use candle_core::{Result, bail};

use super::launch::{Address, BLOCK, Launch, Machine, WARP, arguments, whole};

/// Rows that a block sums before partial sums are.
const SHARE: usize = 1024;

/// The sums of the columns of a matrix, of 1024 rows at a time until there is one.
pub(crate) fn column_sums<M: Machine>(
    machine: &M,
    x: Address,
    rows: usize,
    columns: usize,
) -> Result<M::Memory> {
    column_sums_by(machine, SHARE, x, rows, columns)
}

fn column_sums_by<M: Machine>(
    machine: &M,
    share: usize,
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
    let sums = machine.allocate(parts * columns)?;
    let launch = Launch {
        grid: [whole("columns", columns)?.div_ceil(WARP), parts as u32],
        block: BLOCK,
        shared: 4 * BLOCK,
    };
    let (rows, share_argument) = (whole("rows", rows)?, whole("rows", share)?);
    machine.launch(
        "column_sums",
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
    column_sums_by(machine, share, machine.address(&sums), parts, columns)
}

/// The gradient of a bias from that of an output of `images` by `channels` planes of `pixels`: a number of each channel, or
/// with `own` of each channel of each image.
pub(crate) fn bias_gradient<M: Machine>(
    machine: &M,
    g: Address,
    (images, channels, pixels): (usize, usize, usize),
    own: bool,
) -> Result<M::Memory> {
    if pixels == 1 && !own {
        return column_sums(machine, g, images, channels);
    }
    let planes = images * channels;
    let sums = machine.allocate(planes)?;
    machine.launch(
        "plane_sums",
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
    column_sums(machine, machine.address(&sums), images, channels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::Host;
    use crate::cuda::oracle::{assert_near, wave};

    #[test]
    fn columns_of_many_rows_in_any_shares() {
        for (rows, columns) in [(1, 1), (5, 31), (300, 33), (1000, 64), (2500, 3)] {
            let x = wave(rows * columns, 1);
            let mut expected = vec![0f64; columns];
            for row in x.chunks(columns) {
                expected
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, &x)| *sum += f64::from(x));
            }
            for share in [7, 100, 1024] {
                let ran = Host::both_ways(|host| {
                    let x = host.floats(&x);
                    Ok(vec![
                        column_sums_by(host, share, host.address(&x), rows, columns)?.read(),
                    ])
                });
                let Some(ran) = ran else { return };
                assert_near(
                    &format!("{rows} x {columns} by {share}"),
                    &ran[0],
                    &expected,
                    1e-5,
                );
            }
        }
    }

    #[test]
    fn biases_of_channels_and_of_each_image() {
        for (images, channels, pixels) in [(3, 5, 35), (1, 33, 1), (70, 3, 1), (2, 4, 1000)] {
            let g = wave(images * channels * pixels, 1);
            let of_planes: Vec<f64> = g
                .chunks(pixels)
                .map(|p| p.iter().map(|&g| f64::from(g)).sum())
                .collect();
            for own in [false, true] {
                let ran = Host::both_ways(|host| {
                    let g = host.floats(&g);
                    let shape = (images, channels, pixels);
                    Ok(vec![
                        bias_gradient(host, host.address(&g), shape, own)?.read(),
                    ])
                });
                let Some(ran) = ran else { return };
                let over_images = |c: usize| of_planes.iter().skip(c).step_by(channels).sum();
                let expected = if own {
                    of_planes.clone()
                } else {
                    (0..channels).map(over_images).collect()
                };
                assert_near(
                    &format!("{images}, {channels}, {pixels}, {own}"),
                    &ran[0],
                    &expected,
                    1e-5,
                );
            }
        }
    }
}
