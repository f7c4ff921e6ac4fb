//! Measures the operations against candle's own, interleaved: `cargo run --release -p ddpm-kernels --example ops [ROUNDS]`.
#![allow(clippy::print_stdout, clippy::disallowed_methods)] // a measuring program prints, and candle's operations are the peer

use std::time::Instant;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, Var};
use ddpm_kernels::{Activation, Conv2d, Padding, reference};

fn main() -> Result<()> {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(5);
    println!(
        "{:44} {:>9} {:>9} {:>8} {:>9} {:>9} {:>8}",
        "ms, best", "forward", "candle's", "ratio", "fwd+bwd", "candle's", "ratio"
    );
    let shapes = [
        (32, 64, 28, 1),
        (32, 128, 14, 1),
        (32, 32, 28, 1),
        (16, 128, 32, 1),
        (16, 256, 16, 1),
        (32, 64, 28, 2),
        (16, 256, 4, 1),
    ];
    for (batch, channels, side, stride) in shapes {
        let padding = if stride == 1 {
            Padding::same(1)
        } else {
            Padding::DDPM_DOWN
        };
        let conv = Conv2d::new(stride, padding);
        let inputs = [
            wave((batch, channels, side, side))?,
            wave((channels, channels, 3, 3))?,
            wave(channels)?,
        ];
        let pixels = (side / stride) * (side / stride);
        let flops = 18.0 * (batch * channels * channels * pixels) as f64;
        measure(
            &format!("conv 3x3 stride {stride}, {batch} x {channels}, {side}x{side}"),
            Some(flops),
            rounds,
            &inputs,
            &|t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), conv),
            &|t| reference::conv2d(&t[0], &t[1], Some(&t[2]), conv),
        )?;
    }
    let pointwise = Conv2d::new(1, Padding::ZERO);
    measure(
        "conv 1x1, 32 x 128, 28x28",
        Some(2.0 * (32 * 128 * 128 * 28 * 28) as f64),
        rounds,
        &[
            wave((32, 128, 28, 28))?,
            wave((128, 128, 1, 1))?,
            wave(128)?,
        ],
        &|t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), pointwise),
        &|t| reference::conv2d(&t[0], &t[1], Some(&t[2]), pointwise),
    )?;
    measure(
        "GroupNorm(32) + SiLU, 32 x 128, 28x28",
        None,
        rounds,
        &[wave((32, 128, 28, 28))?, wave(128)?, wave(128)?],
        &|t| ddpm_kernels::group_norm(&t[0], 32, &t[1], &t[2], 1e-6, Activation::Silu),
        &|t| reference::group_norm(&t[0], 32, &t[1], &t[2], 1e-6, Activation::Silu),
    )?;
    measure(
        "attention, 32 x 8 heads, 196 of 8",
        Some(4.0 * (32 * 8 * 196 * 196 * 8) as f64),
        rounds,
        &[
            wave((32, 8, 196, 8))?,
            wave((32, 8, 196, 8))?,
            wave((32, 8, 196, 8))?,
        ],
        &|t| ddpm_kernels::attention(&t[0], &t[1], &t[2], 0.35),
        &|t| reference::attention(&t[0], &t[1], &t[2], 0.35),
    )?;
    measure(
        "linear, 32 x 196 rows, 64 to 64",
        Some(2.0 * (32 * 196 * 64 * 64) as f64),
        rounds,
        &[wave((32, 196, 64))?, wave((64, 64))?, wave(64)?],
        &|t| ddpm_kernels::linear(&t[0], &t[1], Some(&t[2])),
        &|t| reference::linear(&t[0], &t[1], Some(&t[2])),
    )?;
    let x = [wave((32, 128, 28, 28))?];
    measure(
        "silu, 32 x 128, 28x28",
        None,
        rounds,
        &x,
        &|t| ddpm_kernels::silu(&t[0]),
        &|t| t[0].silu(),
    )?;
    let x = [wave((32, 128, 14, 14))?];
    let up = |t: &[Tensor]| ddpm_kernels::upsample_nearest_2x(&t[0]);
    measure("upsample, 32 x 128, 14x14", None, rounds, &x, &up, &|t| {
        t[0].upsample_nearest2d(28, 28)
    })?;
    let pair = [wave((32, 128, 28, 28))?, wave((32, 128, 28, 28))?];
    measure(
        "add, 32 x 128, 28x28",
        None,
        rounds,
        &pair,
        &|t| ddpm_kernels::add(&t[0], &t[1]),
        &|t| &t[0] + &t[1],
    )?;
    let cat = |t: &[Tensor]| ddpm_kernels::concat_channels(&t[0], &t[1]);
    measure(
        "concat, 32 x (128 + 128), 28x28",
        None,
        rounds,
        &pair,
        &cat,
        &|t| Tensor::cat(&[&t[0], &t[1]], 1),
    )
}

fn wave(shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::arange(0f32, shape.elem_count() as f32, &Device::Cpu)?
        .affine(0.37, 0.1)?
        .sin()?
        .reshape(shape)
}

type Op<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// One line: two warm-ups, then ours and candle's in turn.
fn measure(
    what: &str,
    flops: Option<f64>,
    rounds: usize,
    inputs: &[Tensor],
    ours: Op,
    candles: Op,
) -> Result<()> {
    let variables = inputs
        .iter()
        .map(Var::from_tensor)
        .collect::<Result<Vec<_>>>()?;
    let tracked: Vec<Tensor> = variables.iter().map(|x| x.as_tensor().clone()).collect();
    let gradient = wave(ours(inputs)?.shape())?;
    let forward = |op: Op| milliseconds(|| op(inputs).map(drop));
    let both = |op: Op| {
        milliseconds(|| {
            op(&tracked)?
                .apply_op1(Given(gradient.clone()))?
                .backward()
                .map(drop)
        })
    };
    let mut times = [const { Vec::new() }; 4];
    for round in 0..rounds + 1 {
        let now = [
            forward(ours)?,
            forward(candles)?,
            both(ours)?,
            both(candles)?,
        ];
        if round > 0 {
            times
                .iter_mut()
                .zip(now)
                .for_each(|(times, now)| times.push(now));
        }
    }
    let [ours, candles, ours_both, candles_both] = times.map(best);
    let rate = flops.map_or(String::new(), |flops| {
        format!(
            "  {:.0} GFLOP/s forward, {:.0} with gradients",
            flops / ours / 1e6,
            3.0 * flops / ours_both / 1e6
        )
    });
    println!(
        "{what:44} {ours:9.2} {candles:9.2} {:8.1} {ours_both:9.2} {candles_both:9.2} {:8.1}{rate}",
        candles / ours,
        candles_both / ours_both
    );
    Ok(())
}

/// A loss that costs nothing and whose gradient is given.
struct Given(Tensor);

impl CustomOp1 for Given {
    fn name(&self) -> &'static str {
        "given"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

fn milliseconds(work: impl Fn() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The least of all: other programs only ever add to a time.
fn best(times: Vec<f64>) -> f64 {
    times.into_iter().fold(f64::INFINITY, f64::min)
}
