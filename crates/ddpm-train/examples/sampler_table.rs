//! How many network evaluations each sampler needs: the table of `docs/samplers.md`, for the shipped digits.
//!
//! ```sh
//! cargo run --release -p ddpm-train --example sampler_table [IMAGES]
//! ```
//!
//! For samplers without noise, the root mean square distance of their images to the solution of the probability flow from the same x_T
//! (Heun, 500 steps); for all, the Frechet distance between the pixels of their images and those of the training digits. Without
//! clipping, so that all solve the same equation.

#![allow(
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a program that prints, on arrays of known sizes"
)]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ddpm_checkpoint::Pipeline;
use ddpm_data::{DataSpec, Dataset};
use ddpm_image::PixelMap;
use ddpm_random::{SampleNoise, sample_start};
use ddpm_samplers::{Choice, SamplerKind, SchedulerConfig};
use ddpm_unet::Network;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Pixels of a digit.
const PIXELS: usize = 64;
const STEPS: [usize; 4] = [5, 10, 20, 50];
const SEED: u64 = 0;

fn main() -> Result<()> {
    let images = std::env::args().nth(1).map_or(Ok(256), |n| n.parse())?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/digits");
    let pipeline = Pipeline::load(&folder)?;
    let network = Network::new(&pipeline.unet, &pipeline.weights)?.frozen();
    let data = ddpm_data::load(&DataSpec::Digits, None)?;
    let unit = PixelMap::per_channel(vec![0.0], vec![1.0])?;
    let real = moments(&data.train.tensor(&all(&data.train), &unit, &Device::Cpu)?)?;
    let bench = Bench {
        scheduler: pipeline.scheduler.with("clip_sample", false)?,
        network,
        images,
        unit,
        real,
    };
    let solution = bench.walk(SamplerKind::Heun, 500)?.images;
    if let Some(test) = &data.test {
        let test = moments(&test.tensor(&all(test), &bench.unit, &Device::Cpu)?)?;
        println!(
            "unseen digits themselves: {:.2}",
            frechet(&bench.real, &test)
        );
    }
    println!("the solution: {:.2}\n", bench.distance(&solution)?);
    println!(
        "| sampler | evaluations at 5, 10, 20, 50 steps | distance to the solution | Frechet distance of pixels |"
    );
    println!("|---|---|---|---|");
    for kind in SamplerKind::all() {
        let (mut asked, mut off, mut far) = (Vec::new(), Vec::new(), Vec::new());
        for steps in STEPS {
            let walk = bench.walk(kind, steps)?;
            asked.push(walk.evaluations.to_string());
            off.push(match walk.draws {
                0 => format!("{:.4}", rms(&walk.images, &solution)?),
                _ => "noise".to_owned(),
            });
            far.push(format!("{:.2}", bench.distance(&walk.images)?));
        }
        off.dedup_by(|a, b| a == b && a == "noise");
        println!(
            "| `{kind}` | {} | {} | {} |",
            asked.join(", "),
            off.join(", "),
            far.join(", ")
        );
    }
    Ok(())
}

/// The network, and what its images are held to.
struct Bench {
    scheduler: SchedulerConfig,
    network: Network,
    images: usize,
    /// Bytes to 0..=1.
    unit: PixelMap,
    real: Moments,
}

struct Walked {
    images: Tensor,
    evaluations: usize,
    draws: usize,
}

impl Bench {
    fn walk(&self, kind: SamplerKind, steps: usize) -> Result<Walked> {
        let config = self.scheduler.with_kind(kind)?;
        let sampler = config.sampler(&Choice::steps(steps))?;
        let x_t = sample_start(SEED, 0, self.images, (1, 8, 8), &Device::Cpu)?;
        let mut noise = SampleNoise {
            seed: SEED,
            first_image: 0,
        };
        let mut images = x_t.clone();
        for step in sampler.walk(&self.network, &x_t, &mut noise) {
            images = step?.x;
        }
        Ok(Walked {
            images,
            evaluations: sampler.evaluations(),
            draws: sampler.draws(),
        })
    }

    /// The Frechet distance of images, as bytes, to the training digits.
    fn distance(&self, images: &Tensor) -> Result<f64> {
        let bytes = PixelMap::MinusOneToOne.to_u8(images)?;
        let (n, channels, height, width) = images.dims4()?;
        let size = (height, width, channels);
        let made = moments(&self.unit.to_tensor(&bytes, n, size, &Device::Cpu)?)?;
        Ok(frechet(&self.real, &made))
    }
}

fn all(data: &Dataset) -> Vec<usize> {
    (0..data.len()).collect()
}

fn rms(a: &Tensor, b: &Tensor) -> Result<f64> {
    let off = (a - b)?.to_dtype(DType::F64)?.sqr()?.mean_all()?;
    Ok(off.to_scalar::<f64>()?.sqrt())
}

type Matrix = Vec<[f64; PIXELS]>;

/// Mean and covariance of pixels in 0..=1.
struct Moments {
    mean: [f64; PIXELS],
    covariance: Matrix,
}

/// Of images `[N, 1, 8, 8]` in 0..=1.
fn moments(images: &Tensor) -> Result<Moments> {
    let rows: Vec<Vec<f64>> = images.flatten_from(1)?.to_dtype(DType::F64)?.to_vec2()?;
    let n = rows.len() as f64;
    let mut mean = [0.0; PIXELS];
    let mut covariance = vec![[0.0; PIXELS]; PIXELS];
    for row in &rows {
        (0..PIXELS).for_each(|i| mean[i] += row[i] / n);
    }
    for row in &rows {
        for i in 0..PIXELS {
            for j in 0..PIXELS {
                covariance[i][j] += (row[i] - mean[i]) * (row[j] - mean[j]) / (n - 1.0);
            }
        }
    }
    Ok(Moments { mean, covariance })
}

/// |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2) (Heusel et al. 2017, equation 6).
fn frechet(a: &Moments, b: &Moments) -> f64 {
    let apart: f64 = (0..PIXELS).map(|i| (a.mean[i] - b.mean[i]).powi(2)).sum();
    let trace = |m: &Matrix| (0..PIXELS).map(|i| m[i][i]).sum::<f64>();
    let (values, vectors) = eigen(a.covariance.clone());
    let root = |i: usize, j: usize| -> f64 {
        let term = |k: usize| vectors[i][k] * values[k].max(0.0).sqrt() * vectors[j][k];
        (0..PIXELS).map(term).sum()
    };
    let mut half = vec![[0.0; PIXELS]; PIXELS];
    (0..PIXELS).for_each(|i| (0..PIXELS).for_each(|j| half[i][j] = root(i, j)));
    let inner = product(&product(&half, &b.covariance), &half);
    let roots: f64 = eigen(inner).0.iter().map(|v| v.max(0.0).sqrt()).sum();
    apart + trace(&a.covariance) + trace(&b.covariance) - 2.0 * roots
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let mut c = vec![[0.0; PIXELS]; PIXELS];
    for i in 0..PIXELS {
        for (k, row) in b.iter().enumerate() {
            (0..PIXELS).for_each(|j| c[i][j] += a[i][k] * row[j]);
        }
    }
    c
}

/// Eigenvalues and, in columns, eigenvectors of a symmetric matrix, by Jacobi's rotations.
fn eigen(mut m: Matrix) -> (Vec<f64>, Matrix) {
    const SWEEPS: usize = 12;
    let mut vectors = vec![[0.0; PIXELS]; PIXELS];
    (0..PIXELS).for_each(|i| vectors[i][i] = 1.0);
    for _ in 0..SWEEPS {
        for p in 0..PIXELS {
            for q in p + 1..PIXELS {
                if m[p][q].abs() < 1e-18 {
                    continue;
                }
                let theta = (m[q][q] - m[p][p]) / (2.0 * m[p][q]);
                let tangent = 1f64.copysign(theta) / (theta.abs() + theta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                rotate(&mut m, &mut vectors, (p, q), (cosine, tangent * cosine));
            }
        }
    }
    ((0..PIXELS).map(|i| m[i][i]).collect(), vectors)
}

fn rotate(m: &mut Matrix, vectors: &mut Matrix, (p, q): (usize, usize), (c, s): (f64, f64)) {
    for row in m.iter_mut().chain(vectors.iter_mut()) {
        let (a, b) = (row[p], row[q]);
        (row[p], row[q]) = (c * a - s * b, s * a + c * b);
    }
    let (above, below) = m.split_at_mut(q);
    for (a, b) in above[p].iter_mut().zip(below[0].iter_mut()) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
}
