//! SiLU on a card.

use candle_core::Result;

use super::launch::{Address, Kind, Launch, Machine, arguments, kernel};

/// Blocks at most: beyond them a thread takes more than one element.
const BLOCKS: u32 = 1 << 16;

/// x / (1 + e^-x)
pub(crate) fn silu<M: Machine>(
    machine: &M,
    kind: Kind,
    x: Address,
    length: usize,
) -> Result<M::Memory> {
    let y = machine.allocate(kind, length)?;
    let arguments = arguments![x, machine.address(&y), length as u64];
    machine.launch(
        kernel!(kind, "silu"),
        some_blocks(length, BLOCKS),
        arguments,
    )?;
    Ok(y)
}

/// g times the derivative at x
pub(crate) fn silu_gradient<M: Machine>(
    machine: &M,
    kind: Kind,
    x: Address,
    g: Address,
    length: usize,
) -> Result<M::Memory> {
    let dx = machine.allocate(kind, length)?;
    let arguments = arguments![x, g, machine.address(&dx), length as u64];
    machine.launch(
        kernel!(kind, "silu_gradient"),
        some_blocks(length, BLOCKS),
        arguments,
    )?;
    Ok(dx)
}

fn some_blocks(length: usize, most: u32) -> Launch {
    let each = Launch::each(length.max(1));
    let grid = each.map_or(most, |launch| launch.grid[0].min(most));
    Launch {
        grid: [grid, 1],
        block: super::launch::BLOCK,
        shared: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::oracle::{KINDS, allowed, assert_near, wave};

    #[test]
    fn silu_and_its_slope() {
        KINDS.into_iter().for_each(check);
    }

    fn check(kind: Kind) {
        let length = 1001; // at two blocks, three elements a thread at most
        let x: Vec<f32> = wave(length, 1).iter().map(|x| 100.0 * x * x * x).collect();
        let (x, g) = (kept(kind, &x), kept(kind, &wave(length, 2)));
        let ran = Host::both_ways(|host| {
            let (x, g) = (host.numbers(kind, &x), host.numbers(kind, &g));
            let (x, g) = (host.address(&x), host.address(&g));
            let few = host.allocate(kind, length)?;
            let arguments = arguments![x, host.address(&few), length as u64];
            host.launch(kernel!(kind, "silu"), some_blocks(length, 2), arguments)?;
            Ok(vec![
                silu(host, kind, x, length)?.read(),
                silu_gradient(host, kind, x, g, length)?.read(),
                few.read(),
            ])
        });
        let Some(ran) = ran else { return };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let wide = x.iter().map(|&x| f64::from(x));
        let values: Vec<f64> = wide.clone().map(|x| x * sigmoid(x)).collect();
        let slope = |x: f64| sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
        let slopes: Vec<f64> = wide
            .zip(&g)
            .map(|(x, &g)| f64::from(g) * slope(x))
            .collect();
        assert_near("silu", &ran[0], &values, allowed(kind, 2e-7));
        assert_near("its gradient", &ran[1], &slopes, allowed(kind, 1e-6));
        assert_eq!(ran[2], ran[0]);
    }
}
