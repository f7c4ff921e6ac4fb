//! One contender of `cargo xtask bench --work operations`: one operation, forward and backward, pass after pass.
//!
//! ```text
//! operation_speed prepare --operation OPERATION --folder DIR
//! operation_speed contend --operation OPERATION --as graph|plan --folder DIR --output FILE [--threads N]
//! operation_speed time [--as graph|plan] [--threads N] [--passes N] OPERATION...
//! ```
//!
//! OPERATION is `conv-BATCHxCHANNELS-HEIGHTxWIDTH-sSTRIDE`, a convolution by 3 by 3 that keeps the channels, or
//! `norm-BATCHxCHANNELS-HEIGHTxWIDTH`, GroupNorm in 32 groups with SiLU. `prepare` writes what all contenders share: `x`,
//! `weight`, `bias` and `gradient` (of the output), raw f32, little end first. A pass is the operation forward and backward
//! with gradients for all three: through candle's graph, or as a plan. `contend` writes what its first pass gave to FILE
//! (gradients of weight and bias, the output, the gradient of x), prints `ready`, and then answers lines: `go N` with the
//! seconds that N passes took, `quit` with 0. `time` is for a look without a peer: milliseconds a pass.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks to the person who started it"
)]

use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use ddpm_kernels::{
    Activation, Conv2d, Executor, Gradients, Graph, Padding, Use, conv2d, group_norm,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const GROUPS: usize = 32;
const EPS: f64 = 1e-6;

fn main() -> ExitCode {
    let typed: Vec<String> = std::env::args().skip(1).collect();
    match run(&typed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(typed: &[String]) -> Outcome<()> {
    let value = |flag: &str| {
        let place = typed.iter().position(|word| word == flag);
        let value = place.and_then(|place| typed.get(place + 1));
        value.ok_or_else(|| format!("`{flag}` is missing"))
    };
    let number = |flag: &str, otherwise: usize| match value(flag) {
        Ok(text) => text.parse(),
        Err(_) => Ok(otherwise),
    };
    let planned = || match value("--as").map(String::as_str) {
        Ok("plan") => Ok(true),
        Ok("graph") | Err(_) => Ok(false),
        Ok(other) => Err(format!("`--as` is graph or plan, not `{other}`")),
    };
    // On a thread of the pool, as the programs: else every operation waits for another thread to wake.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(number("--threads", 0)?);
    pool.build()?
        .install(|| match typed.first().map(String::as_str) {
            Some("prepare") => {
                Operation::parse(value("--operation")?)?.prepare(Path::new(value("--folder")?))
            }
            Some("contend") => {
                let operation = Operation::parse(value("--operation")?)?;
                let tensors = operation.read(Path::new(value("--folder")?))?;
                contend(
                    &operation,
                    &tensors,
                    planned()?,
                    Path::new(value("--output")?),
                )
            }
            Some("time") => {
                let passes = number("--passes", 10)?;
                let names = typed
                    .iter()
                    .filter(|word| word.contains('-') && !word.starts_with("--"));
                for name in names {
                    let operation = Operation::parse(name)?;
                    let tensors = operation.tensors()?;
                    println!(
                        "{name}: {:.2} ms",
                        time(&operation, &tensors, planned()?, passes)?
                    );
                }
                Ok(())
            }
            _ => Err("say `prepare`, `contend` or `time`".into()),
        })
}

/// What is done to a batch of images.
#[derive(Clone, Copy, Debug)]
struct Operation {
    /// A convolution's; none of a normalisation.
    stride: Option<usize>,
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
}

impl Operation {
    fn parse(text: &str) -> Outcome<Self> {
        let known = || -> Option<Self> {
            let words: Vec<&str> = text.split('-').collect();
            let (kind, sizes, stride) = match *words.as_slice() {
                ["conv", a, b, stride] => ("conv", [a, b], stride.strip_prefix('s')?.parse().ok()),
                ["norm", a, b] => ("norm", [a, b], None),
                _ => return None,
            };
            let pair = |text: &str| {
                let (a, b) = text.split_once('x')?;
                Some((a.parse::<usize>().ok()?, b.parse::<usize>().ok()?))
            };
            let ((batch, channels), (height, width)) = (pair(sizes[0])?, pair(sizes[1])?);
            let fits = (kind == "conv") == stride.is_some();
            fits.then_some(Operation {
                stride,
                batch,
                channels,
                height,
                width,
            })
        };
        known().ok_or_else(|| {
            format!("`{text}` is no operation, such as conv-32x64-28x28-s1, norm-32x128-28x28")
                .into()
        })
    }

    fn conv(&self) -> Option<Conv2d> {
        let stride = self.stride?;
        let padding = if stride == 1 {
            Padding::same(1)
        } else {
            Padding::DDPM_DOWN
        };
        Some(Conv2d::new(stride, padding))
    }

    /// Names and shapes of what a pass is given: x, weight, bias and the gradient of the output.
    fn shapes(&self) -> [(&'static str, Vec<usize>); 4] {
        let Operation {
            batch,
            channels,
            height,
            width,
            ..
        } = *self;
        let image = |height, width| vec![batch, channels, height, width];
        let (weight, stride) = match self.stride {
            Some(stride) => (vec![channels, channels, 3, 3], stride),
            None => (vec![channels], 1),
        };
        [
            ("x", image(height, width)),
            ("weight", weight),
            ("bias", vec![channels]),
            ("gradient", image(height / stride, width / stride)),
        ]
    }

    /// Numbers that are neither random nor regular, as large as those of a network.
    fn tensors(&self) -> Outcome<Vec<Tensor>> {
        let tensor = |(seed, (name, shape)): (usize, (&str, Vec<usize>))| -> Outcome<Tensor> {
            let count: usize = shape.iter().product();
            let scale = match name {
                "weight" if self.stride.is_some() => (9.0 * self.channels as f64).sqrt().recip(),
                _ => 1.0,
            };
            let mut state = seed as u64 + 1;
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f64 / f64::from(1 << 23) - 1.0) * scale
            };
            let numbers: Vec<f32> = (0..count).map(|_| next() as f32).collect();
            Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
        };
        self.shapes().into_iter().enumerate().map(tensor).collect()
    }

    fn prepare(&self, folder: &Path) -> Outcome<()> {
        std::fs::create_dir_all(folder)?;
        for ((name, _), tensor) in self.shapes().iter().zip(self.tensors()?) {
            std::fs::write(folder.join(name), bytes(&[tensor])?)?;
        }
        Ok(())
    }

    fn read(&self, folder: &Path) -> Outcome<Vec<Tensor>> {
        let read = |(name, shape): (&str, Vec<usize>)| -> Outcome<Tensor> {
            let bytes = std::fs::read(folder.join(name))?;
            let numbers = bytes
                .as_chunks()
                .0
                .iter()
                .map(|&four| f32::from_le_bytes(four));
            Ok(Tensor::from_vec(
                numbers.collect::<Vec<f32>>(),
                shape,
                &Device::Cpu,
            )?)
        };
        self.shapes().into_iter().map(read).collect()
    }
}

fn bytes(tensors: &[Tensor]) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    for tensor in tensors {
        let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
        bytes.extend(numbers.into_iter().flat_map(f32::to_le_bytes));
    }
    Ok(bytes)
}

// ---------------------------------------------------------------- the work

/// The operation in candle's graph.
struct ByGraph {
    operation: Operation,
    variables: Vec<Var>,
}

impl ByGraph {
    fn new(operation: &Operation, tensors: &[Tensor]) -> Outcome<Self> {
        let variables = tensors[..3].iter().map(Var::from_tensor);
        Ok(ByGraph {
            operation: *operation,
            variables: variables.collect::<Result<_, _>>()?,
        })
    }

    fn forward(&self) -> Outcome<Tensor> {
        let [x, weight, bias] = [0, 1, 2].map(|i| self.variables[i].as_tensor());
        Ok(match self.operation.conv() {
            Some(conv) => conv2d(x, weight, Some(bias), conv)?,
            None => group_norm(x, GROUPS, weight, bias, EPS, Activation::Silu)?,
        })
    }

    /// Gradients of weight and bias, the output, the gradient of x, for this gradient of the output.
    fn first(&self, gradient: &Tensor) -> Outcome<Vec<Tensor>> {
        let y = self.forward()?;
        let gradients = (&y * gradient)?.sum_all()?.backward()?;
        let of = |i: usize| {
            gradients
                .get(&self.variables[i])
                .cloned()
                .ok_or("no gradient")
        };
        Ok(vec![of(1)?, of(2)?, y, of(0)?])
    }

    /// Backward from the output itself, whose gradient candle then fills with ones: it takes no other.
    fn pass(&self) -> Outcome<()> {
        self.forward()?.backward()?;
        Ok(())
    }
}

/// The operation in a plan. The gradient of what a plan is given is never asked for, and the last operation of a plan is a
/// convolution: so a convolution 1 by 1 from one channel comes before it, and after a normalisation one to one channel.
struct ByPlan {
    executor: Executor,
    parameters: Vec<Tensor>,
    images: Tensor,
    vectors: Tensor,
    gradient: Tensor,
    gradients: Gradients,
}

impl ByPlan {
    fn new(operation: &Operation, tensors: &[Tensor]) -> Outcome<Self> {
        let Operation {
            batch,
            channels,
            height,
            width,
            ..
        } = *operation;
        let [before, after] = [[channels, 1, 1, 1], [1, channels, 1, 1]].map(Vec::from);
        let mut shapes = vec![
            before,
            vec![channels],
            tensors[1].dims().to_vec(),
            vec![channels],
        ];
        if operation.stride.is_none() {
            shapes.extend([after, vec![1]]);
        }
        let pointwise = Conv2d::new(1, Padding::ZERO);
        let mut graph = Graph::new(batch, shapes.clone(), 0.0);
        let x = graph.images(1, height, width);
        let x = graph.conv2d(&x, 0, 1, None, pointwise)?;
        let y = match operation.conv() {
            Some(conv) => graph.conv2d(&x, 2, 3, None, conv)?,
            None => {
                let y = graph.group_norm(&x, (GROUPS, EPS), (2, 3), None, Activation::Silu)?;
                graph.conv2d(&y, 4, 5, None, pointwise)?
            }
        };
        let (outputs, out_height, out_width) = graph.size(&y);
        let cpu = Device::Cpu;
        let parameter = |(i, shape): (usize, &Vec<usize>)| match i {
            2 | 3 => Ok(tensors[i - 1].clone()),
            _ => Tensor::ones(shape.as_slice(), DType::F32, &cpu),
        };
        let parameters = shapes.iter().enumerate().map(parameter);
        Ok(ByPlan {
            parameters: parameters.collect::<Result<_, _>>()?,
            executor: Executor::new(graph, &y, Use::Training)?,
            images: tensors[0].narrow(1, 0, 1)?.contiguous()?,
            vectors: Tensor::zeros((batch, 1), DType::F32, &cpu)?,
            gradient: Tensor::ones((batch, outputs, out_height, out_width), DType::F32, &cpu)?,
            gradients: Gradients::zeros(&shapes),
        })
    }

    fn pass(&mut self) -> Outcome<()> {
        let ByPlan {
            executor,
            parameters,
            images,
            vectors,
            gradient,
            gradients,
        } = self;
        executor.forward(parameters, images, vectors, &mut |_, _| Ok(()))?;
        executor.backward(parameters, images, gradient, gradients, false)?;
        Ok(())
    }
}

// ---------------------------------------------------------------- the conversation

/// Milliseconds a pass, the median of so many.
fn time(operation: &Operation, tensors: &[Tensor], planned: bool, passes: usize) -> Outcome<f64> {
    let mut pass = pass_of(operation, tensors, planned)?;
    let mut times = Vec::new();
    for _ in 0..passes + 2 {
        let started = Instant::now();
        pass()?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.drain(..2);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

type Pass = Box<dyn FnMut() -> Outcome<()>>;

fn pass_of(operation: &Operation, tensors: &[Tensor], planned: bool) -> Outcome<Pass> {
    if planned {
        let mut plan = ByPlan::new(operation, tensors)?;
        return Ok(Box::new(move || plan.pass()));
    }
    let graph = ByGraph::new(operation, tensors)?;
    Ok(Box::new(move || graph.pass()))
}

/// Writes what a pass gives (by graph: the tests hold plans to it), says `ready`, and passes until it is told to quit or
/// nobody is there any more.
fn contend(operation: &Operation, tensors: &[Tensor], planned: bool, output: &Path) -> Outcome<()> {
    let first = ByGraph::new(operation, tensors)?.first(&tensors[3])?;
    std::fs::write(output, bytes(&first)?)?;
    let mut pass = pass_of(operation, tensors, planned)?;
    pass()?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("go", passes)) => {
                let passes: usize = passes.parse()?;
                let started = Instant::now();
                (0..passes).try_for_each(|_| pass())?;
                println!("{}", started.elapsed().as_secs_f64());
            }
            _ if line == "quit" => {
                println!("0");
                return Ok(());
            }
            _ => return Err(format!("`{line}` is neither `go N` nor `quit`").into()),
        }
    }
    Ok(())
}
