//! Times every operation, forward and with its gradients: `MIMALLOC_PURGE_DELAY=-1 cargo bench -p ddpm-kernels [-- NAME]`.
//! Memory is the programs' (mimalloc, which with this variable keeps what is freed), so that no page is faulted in anew.
#![allow(missing_docs, clippy::unwrap_used)] // the macros make functions without a word, and a benchmark fails by panicking

use std::time::Duration;

use candle_core::{Device, Shape, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ddpm_kernels::{Activation, AdamW, Averaged, Conv2d, Gradients, Padding};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Op<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;

fn wave(shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let numbers = Tensor::arange(0f32, shape.elem_count() as f32, &Device::Cpu).unwrap();
    let waves = numbers.affine(0.37, 0.1).unwrap().sin().unwrap();
    waves.reshape(shape).unwrap()
}

/// Two benchmarks, `name/forward` and `name/gradients`; the second is forward and backward from the output itself, because
/// candle's gradient of a sum costs more than many an operation. Throughput is in floating-point operations a second,
/// written as elements, or in bytes of the inputs where no products are.
fn bench(c: &mut Criterion, name: &str, operations: Option<usize>, inputs: &[Tensor], op: Op) {
    let variables: Vec<Var> = inputs
        .iter()
        .map(|x| Var::from_tensor(x).unwrap())
        .collect();
    let tracked: Vec<Tensor> = variables.iter().map(|x| x.as_tensor().clone()).collect();
    let bytes = 4 * inputs.iter().map(Tensor::elem_count).sum::<usize>() as u64;
    let throughput = |times: usize| match operations {
        Some(operations) => Throughput::Elements((times * operations) as u64),
        None => Throughput::Bytes(bytes),
    };
    let mut group = c.benchmark_group(name);
    group.throughput(throughput(1));
    group.bench_function("forward", |b| b.iter(|| op(inputs).unwrap()));
    group.throughput(throughput(3));
    group.bench_function("gradients", |b| {
        b.iter(|| op(&tracked).unwrap().backward().unwrap());
    });
    group.finish();
}

fn convolutions(c: &mut Criterion) {
    let shapes = [
        (32, 64, 28, 1),
        (32, 128, 14, 1),
        (32, 32, 28, 1),
        (16, 128, 32, 1),
        (16, 256, 16, 1),
        (32, 64, 28, 2),
        (8, 256, 8, 1),
        (16, 256, 4, 1),
    ];
    for (batch, channels, side, stride) in shapes {
        let padding = if stride == 1 {
            Padding::same(1)
        } else {
            Padding::DDPM_DOWN
        };
        let conv = Conv2d::new(stride, padding);
        let pixels = (side / stride) * (side / stride);
        bench(
            c,
            &format!("conv 3x3 stride {stride}, {batch} x {channels}, {side}x{side}"),
            Some(18 * batch * channels * channels * pixels),
            &[
                wave((batch, channels, side, side)),
                wave((channels, channels, 3, 3)),
                wave(channels),
            ],
            &|t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), conv),
        );
    }
    bench(
        c,
        "conv 1x1, 32 x 128, 28x28",
        Some(2 * 32 * 128 * 128 * 28 * 28),
        &[wave((32, 128, 28, 28)), wave((128, 128, 1, 1)), wave(128)],
        &|t| ddpm_kernels::conv2d(&t[0], &t[1], Some(&t[2]), Conv2d::new(1, Padding::ZERO)),
    );
}

fn products(c: &mut Criterion) {
    for (batch, heads, rows, size) in [(32, 1, 196, 64), (8, 1, 256, 256), (32, 8, 196, 8)] {
        let rows_of = || wave((batch, heads, rows, size));
        let scale = (size as f64).sqrt().recip();
        bench(
            c,
            &format!("attention, {batch} x {heads} heads, {rows} of {size}"),
            Some(4 * batch * heads * rows * rows * size),
            &[rows_of(), rows_of(), rows_of()],
            &|t| ddpm_kernels::attention(&t[0], &t[1], &t[2], scale),
        );
    }
    for (rows, inputs, outputs) in [(32 * 196, 64, 64), (1024, 1024, 1024), (2048, 2048, 2048)] {
        bench(
            c,
            &format!("linear, {rows} rows, {inputs} to {outputs}"),
            Some(2 * rows * inputs * outputs),
            &[wave((rows, inputs)), wave((outputs, inputs)), wave(outputs)],
            &|t| ddpm_kernels::linear(&t[0], &t[1], Some(&t[2])),
        );
    }
}

fn passes(c: &mut Criterion) {
    let x = || wave((32, 128, 28, 28));
    bench(
        c,
        "GroupNorm(32) + SiLU, 32 x 128, 28x28",
        None,
        &[x(), wave(128), wave(128)],
        &|t| ddpm_kernels::group_norm(&t[0], 32, &t[1], &t[2], 1e-6, Activation::Silu),
    );
    bench(c, "silu, 32 x 128, 28x28", None, &[x()], &|t| {
        ddpm_kernels::silu(&t[0])
    });
    bench(
        c,
        "upsample, 32 x 128, 14x14",
        None,
        &[wave((32, 128, 14, 14))],
        &|t| ddpm_kernels::upsample_nearest_2x(&t[0]),
    );
    bench(c, "add, 32 x 128, 28x28", None, &[x(), x()], &|t| {
        ddpm_kernels::add(&t[0], &t[1])
    });
    bench(
        c,
        "concat, 32 x (128 + 128), 28x28",
        None,
        &[x(), x()],
        &|t| ddpm_kernels::concat_channels(&t[0], &t[1]),
    );
    let mask = x().ge(0f32).unwrap();
    bench(c, "dropout, 32 x 128, 28x28", None, &[x()], &|t| {
        ddpm_kernels::dropout(&t[0], &mask, 0.1)
    });
    let elementwise: [(&str, Op); 6] = [
        ("relu, 32 x 128, 28x28", &|t| ddpm_kernels::relu(&t[0])),
        ("gelu, 32 x 128, 28x28", &|t| ddpm_kernels::gelu(&t[0])),
        ("mish, 32 x 128, 28x28", &|t| ddpm_kernels::mish(&t[0])),
        ("average pool, 32 x 128, 28x28", &|t| {
            ddpm_kernels::average_pool_2x(&t[0])
        }),
        ("filtered halving, 32 x 128, 28x28", &|t| {
            ddpm_kernels::fir_downsample_2x(&t[0])
        }),
        ("filtered doubling, 32 x 128, 28x28", &|t| {
            ddpm_kernels::fir_upsample_2x(&t[0])
        }),
    ];
    for (name, op) in elementwise {
        bench(c, name, None, &[x()], op);
    }
    let indices: Vec<usize> = (0..256).map(|i| i * 37 % 1000).collect();
    bench(
        c,
        "embedding, 256 of 1000 rows of 512",
        None,
        &[wave((1000, 512))],
        &|t| ddpm_kernels::embedding(&t[0], &indices),
    );
}

/// What changes parameters in place: as many as network S has, in tensors of a million.
fn training(c: &mut Criterion) {
    let shapes = vec![vec![1 << 20]; 4];
    let tensors = || -> Vec<Tensor> { shapes.iter().map(|shape| wave(shape.as_slice())).collect() };
    let (p, m, ema) = (tensors(), tensors(), tensors());
    let v: Vec<Tensor> = tensors().iter().map(|x| x.sqr().unwrap()).collect();
    let mut gradients = Gradients::zeros(&shapes);
    for (i, g) in tensors().iter().enumerate() {
        gradients.set(i, g, false).unwrap();
    }
    let adamw = AdamW {
        learning_rate: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 10,
    };
    let mut group = c.benchmark_group("in place, 4 x 2^20");
    group.bench_function("optimise, one average", |b| {
        let averages = [Averaged {
            decay: 0.999,
            tensors: &ema,
        }];
        b.iter(|| {
            ddpm_kernels::optimise((&p, &m, &v), &gradients, 0.5, &adamw, &averages).unwrap()
        });
    });
    group.bench_function("adamw_step", |b| {
        let g = gradients.tensor(0).unwrap();
        b.iter(|| ddpm_kernels::adamw_step(&p[0], &m[0], &v[0], &g, &adamw).unwrap());
    });
    group.bench_function("ema_update", |b| {
        b.iter(|| ddpm_kernels::ema_update(&ema[0], &p[0], 0.999).unwrap());
    });
    group.bench_function("sum_of_squares", |b| {
        b.iter(|| ddpm_kernels::sum_of_squares(&p[0]).unwrap());
    });
    group.bench_function("scale_in_place", |b| {
        b.iter(|| ddpm_kernels::scale_in_place(&m[0], 1.0).unwrap());
    });
    group.finish();
}

criterion_group! {
    name = operations;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = convolutions, products, passes, training
}
criterion_main!(operations);
