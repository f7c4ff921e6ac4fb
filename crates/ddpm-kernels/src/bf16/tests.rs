//! Every product in bf16 against double precision, within what 8 bits leave, on shapes that are not nice.

use rayon::prelude::*;

use super::packing::Packed;
use super::weight_gradient::WeightGradient;
use super::{Bf16, Element};
use crate::conv::{Conv2d, Padding};
use crate::correlate::{Addend, Bias, Correlation, Output};
use crate::data_gradient::DataGradient;
use crate::geometry::Geometry;
use crate::packing::Weights;
use crate::processor::{Level, Products, pool_of};
use crate::source::{Affine, Data, Layout, Mask, Part, Source};
use crate::storage::Shared;
use crate::tile::LANES;
use crate::weight_gradient::Target;

/// Half a unit in the last of 8 bits, over the number.
const HALF_UNIT: f64 = 1.0 / 256.0;

fn wave(length: usize, seed: f32) -> Vec<f32> {
    let value = |i: usize| ((i as f32 * 0.37 + seed) * 1.7).sin() + 0.1;
    (0..length).into_par_iter().map(value).collect()
}

/// A convolution, and what is done to the pixels before.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    inputs: usize,
    outputs: usize,
    size: (usize, usize),
    kernel: usize,
    stride: usize,
    padding: Padding,
    prepared: bool,
    upsampled: bool,
    halves: bool,
}

fn cases() -> Vec<Case> {
    let case = |batch,
                (inputs, outputs),
                size,
                (kernel, stride),
                padding,
                (prepared, upsampled, halves)| Case {
        batch,
        inputs,
        outputs,
        size,
        kernel,
        stride,
        padding,
        prepared,
        upsampled,
        halves,
    };
    let same = Padding::same(1);
    vec![
        case(1, (1, 1), (7, 5), (3, 1), same, (false, false, false)),
        case(3, (3, 20), (5, 7), (3, 1), same, (false, false, true)),
        case(2, (17, 33), (4, 9), (3, 1), same, (true, false, true)),
        case(2, (40, 16), (3, 4), (3, 1), same, (true, true, true)),
        case(
            5,
            (48, 70),
            (6, 6),
            (1, 1),
            Padding::ZERO,
            (true, false, true),
        ),
        case(2, (33, 5), (8, 6), (3, 2), same, (false, false, true)),
        case(
            3,
            (16, 32),
            (7, 9),
            (3, 2),
            Padding::DDPM_DOWN,
            (true, false, false),
        ),
        case(1, (64, 48), (29, 31), (3, 1), same, (false, false, true)),
    ]
}

/// Channels in blocks: what lies beyond is zero.
fn blocked<E: Element>(
    case: &Case,
    channels: usize,
    size: (usize, usize),
    plain: &[f32],
) -> Vec<E> {
    let pixels = size.0 * size.1;
    let image = channels.next_multiple_of(LANES) * pixels;
    let mut to = vec![E::default(); case.batch * image];
    for (i, &x) in plain.iter().enumerate() {
        let (b, channel, pixel) = (i / (channels * pixels), i / pixels % channels, i % pixels);
        to[b * image + (channel / LANES * pixels + pixel) * LANES + channel % LANES] = E::narrow(x);
    }
    to
}

fn plain_of<E: Element>(
    case: &Case,
    channels: usize,
    size: (usize, usize),
    blocked: &[E],
) -> Vec<f32> {
    let pixels = size.0 * size.1;
    let image = channels.next_multiple_of(LANES) * pixels;
    (0..case.batch * channels * pixels)
        .map(|i| {
            let (b, channel, pixel) = (i / (channels * pixels), i / pixels % channels, i % pixels);
            blocked[b * image + (channel / LANES * pixels + pixel) * LANES + channel % LANES]
                .widen()
        })
        .collect()
}

/// All that a case works on.
struct Setting {
    case: Case,
    geometry: Geometry,
    x: Vec<f32>,
    stored: Vec<Bf16>,
    coefficients: Vec<f32>,
    kept: Vec<u8>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
    plus: Vec<Bf16>,
}

impl Setting {
    fn new(case: Case) -> Self {
        let times = 1 + usize::from(case.upsampled);
        let conv = Conv2d::new(case.stride, case.padding);
        let seen = (times * case.size.0, times * case.size.1);
        let geometry = Geometry::new(seen, (case.kernel, case.kernel), conv).unwrap();
        let pixels = case.size.0 * case.size.1;
        let out = geometry.output_height * geometry.output_width;
        let blocks = case.inputs.div_ceil(LANES);
        let mut x = wave(case.batch * case.inputs * pixels, 0.0);
        if case.halves {
            x = x.into_iter().map(|x| Bf16::narrow(x).widen()).collect();
        }
        let mut coefficients = wave(case.batch * blocks * 2 * LANES, 5.0);
        // The lanes beyond the channels are mapped to zero, as a normalisation does it.
        for (i, c) in coefficients.iter_mut().enumerate() {
            let channel = i / (2 * LANES) % blocks * LANES + i % LANES;
            if channel >= case.inputs {
                *c = 0.0
            }
        }
        let image = case.outputs.next_multiple_of(LANES) * out;
        Setting {
            stored: blocked(&case, case.inputs, case.size, &x),
            kept: (0..case.batch * blocks * pixels * LANES)
                .map(|i| u8::from(i % 5 != 0))
                .collect(),
            coefficients,
            weights: wave(case.outputs * case.inputs * geometry.taps(), 1.0),
            bias: wave(case.outputs.next_multiple_of(LANES), 2.0),
            dy: wave(case.batch * case.outputs * out, 3.0),
            plus: wave(case.batch * image, 4.0)
                .into_iter()
                .map(Bf16::narrow)
                .collect(),
            x,
            case,
            geometry,
        }
    }

    fn source(&self) -> Source<'_> {
        let (case, pixels) = (&self.case, self.case.size.0 * self.case.size.1);
        let part = if case.halves {
            Part {
                data: Data::Halves(&self.stored),
                layout: Layout::Blocked,
                channels: case.inputs,
                image: case.inputs.next_multiple_of(LANES) * pixels,
            }
        } else {
            Part {
                data: Data::Floats(&self.x),
                layout: Layout::Plain,
                channels: case.inputs,
                image: case.inputs * pixels,
            }
        };
        Source {
            affine: case.prepared.then_some(Affine {
                coefficients: Some(&self.coefficients),
                silu: true,
            }),
            mask: case.prepared.then_some(Mask {
                kept: &self.kept,
                scale: 1.25,
            }),
            upsampled: case.upsampled,
            ..Source::plain(part, case.size.0, case.size.1)
        }
    }

    fn gradient(&self) -> Source<'_> {
        let (height, width) = (self.geometry.output_height, self.geometry.output_width);
        let part = Part {
            data: Data::Floats(&self.dy),
            layout: Layout::Plain,
            channels: self.case.outputs,
            image: self.case.outputs * height * width,
        };
        Source::plain(part, height, width)
    }

    fn weights_of(&self) -> Weights<'_> {
        Weights::of_kernels(
            &self.weights,
            (self.case.inputs, self.case.outputs),
            self.geometry.taps(),
        )
    }

    /// The pixel that a tap sees, as f32 has it.
    fn pixel(&self, image: usize, channel: usize, y: isize, x: isize) -> f64 {
        let (case, (height, width)) = (&self.case, self.case.size);
        let shift = usize::from(case.upsampled);
        if y < 0 || x < 0 || y as usize >= height << shift || x as usize >= width << shift {
            return 0.0;
        }
        let pixel = (y as usize >> shift) * width + (x as usize >> shift);
        let value = f64::from(self.x[(image * case.inputs + channel) * height * width + pixel]);
        if !case.prepared {
            return value;
        }
        let blocks = case.inputs.div_ceil(LANES);
        let block = image * blocks + channel / LANES;
        let place = block * 2 * LANES + channel % LANES;
        let z = value * f64::from(self.coefficients[place])
            + f64::from(self.coefficients[place + LANES]);
        let kept = self.kept[(block * height * width + pixel) * LANES + channel % LANES];
        f64::from(kept) * 1.25 * z / (1.0 + (-z).exp())
    }

    /// f(image, output, input, tap, output pixel, what the tap sees) for all that is multiplied.
    fn each(&self, mut f: impl FnMut(usize, usize, usize, usize, usize, f64)) {
        let (case, g) = (&self.case, &self.geometry);
        for image in 0..case.batch {
            for input in 0..case.inputs {
                for tap in 0..g.taps() {
                    for pixel in 0..g.output_height * g.output_width {
                        let (y, x) = (
                            pixel / g.output_width * g.stride,
                            pixel % g.output_width * g.stride,
                        );
                        let y = (y + tap / g.kernel_width) as isize - g.top as isize;
                        let x = (x + tap % g.kernel_width) as isize - g.left as isize;
                        let seen = self.pixel(image, input, y, x);
                        for output in 0..case.outputs {
                            f(image, output, input, tap, pixel, seen);
                        }
                    }
                }
            }
        }
    }
}

/// Forward (to f32 and to bf16 with a sum), dx and dw.
fn run(setting: &Setting) -> [Vec<f32>; 4] {
    let (case, g) = (&setting.case, &setting.geometry);
    let out = (g.output_height, g.output_width);
    let mut packed = Packed::default();
    let taps: Vec<usize> = (0..g.taps()).collect();
    packed.fill(setting.weights_of(), &taps);
    let bias = Bias {
        data: &setting.bias,
        image: 0,
        block: LANES,
    };
    let mut plain = vec![f32::NAN; setting.dy.len()];
    let mut sum = setting.plus.clone();
    let at = sum.as_ptr();
    let image = case.inputs.next_multiple_of(LANES) * g.height * g.width;
    let mut dx = vec![Bf16::narrow(f32::NAN); case.batch * image];
    let mut dw = vec![f32::NAN; setting.weights.len()];
    #[allow(unsafe_code)]
    // SAFETY: the results are this function's.
    unsafe {
        let (source, window) = (&setting.source(), &g.forward());
        let memory = Shared::new(&mut plain);
        Correlation {
            batch: case.batch,
            source,
            window,
            weights: &packed,
            bias: Some(bias),
            plus: None,
            scale: 1.0,
        }
        .run(Output::whole(
            &memory,
            Layout::Plain,
            (case.outputs, out.0, out.1),
        ));
        let memory = Shared::new(&mut sum);
        Correlation {
            batch: case.batch,
            source,
            window,
            weights: &packed,
            bias: None,
            plus: Some(Addend(at)),
            scale: 0.5,
        }
        .run(Output::whole(
            &memory,
            Layout::Blocked,
            (case.outputs, out.0, out.1),
        ));
        let memory = Shared::new(&mut dx);
        let turned = setting.weights_of().turned(0, case.inputs);
        DataGradient {
            batch: case.batch,
            geometry: g,
            dy: &setting.gradient(),
            turned,
            plus: None,
        }
        .run(
            &mut packed,
            Output::whole(&memory, Layout::Blocked, (case.inputs, g.height, g.width)),
        );
        let memory = Shared::new(&mut dw);
        let target = Target {
            memory: &memory,
            taps: &taps,
            input: g.taps(),
            output: g.taps() * case.inputs,
            accumulate: false,
        };
        WeightGradient {
            batch: case.batch,
            source,
            window,
            dy: &setting.gradient(),
        }
        .run(target);
    }
    let mut halves = vec![Bf16(0); dw.len()];
    let length = super::weight_gradient::sums(case.batch, case.inputs, case.outputs, g.taps());
    WeightGradient {
        batch: case.batch,
        source: &setting.source(),
        window: &g.forward(),
        dy: &setting.gradient(),
    }
    .run_in_halves(&mut vec![f32::NAN; length], &mut halves);
    let narrowed = dw.iter().map(|&dw| Bf16::narrow(dw));
    assert!(halves.into_iter().eq(narrowed), "{case:?}");
    [
        plain,
        plain_of(case, case.outputs, out, &sum),
        plain_of(case, case.inputs, (g.height, g.width), &dx),
        dw,
    ]
}

/// The four results in double precision, each with the sum of the sizes of its products.
fn exact(setting: &Setting) -> [Vec<[f64; 2]>; 4] {
    let (case, g) = (&setting.case, &setting.geometry);
    let out = g.output_height * g.output_width;
    let mut y = vec![[0f64; 2]; setting.dy.len()];
    let mut dx = vec![[0f64; 2]; case.batch * case.inputs * g.height * g.width];
    let mut dw = vec![[0f64; 2]; setting.weights.len()];
    let add = |to: &mut [f64; 2], product: f64| {
        to[0] += product;
        to[1] += product.abs();
    };
    setting.each(|image, output, input, tap, pixel, seen| {
        let of_w = (output * case.inputs + input) * g.taps() + tap;
        let of_y = (image * case.outputs + output) * out + pixel;
        let (w, dy) = (
            f64::from(setting.weights[of_w]),
            f64::from(setting.dy[of_y]),
        );
        add(&mut y[of_y], seen * w);
        add(&mut dw[of_w], seen * dy);
        let row = (pixel / g.output_width * g.stride + tap / g.kernel_width).checked_sub(g.top);
        let column = (pixel % g.output_width * g.stride + tap % g.kernel_width).checked_sub(g.left);
        if let (Some(row), Some(column)) = (row, column)
            && row < g.height
            && column < g.width
        {
            add(
                &mut dx[((image * case.inputs + input) * g.height + row) * g.width + column],
                dy * w,
            );
        }
    });
    let plus = plain_of(
        case,
        case.outputs,
        (g.output_height, g.output_width),
        &setting.plus,
    );
    let sum = y
        .iter()
        .zip(plus)
        .map(|([y, size], plus)| [(y + f64::from(plus)) * 0.5, size * 0.5]);
    let with_bias = y
        .iter()
        .enumerate()
        .map(|(i, [y, size])| [y + f64::from(setting.bias[i / out % case.outputs]), *size]);
    [with_bias.collect(), sum.collect(), dx, dw]
}

#[test]
fn products_are_those_of_double_precision_but_for_what_eight_bits_leave() {
    for case in cases() {
        let setting = Setting::new(case);
        let found = pool_of(Level::current(), Products::current(), 2)
            .unwrap()
            .install(|| run(&setting));
        for (which, (found, expected)) in found.iter().zip(exact(&setting)).enumerate() {
            // Both factors are rounded once, sums of n products n times to f32, and what is stored as bf16 once more.
            let stored = if which == 1 || which == 2 {
                HALF_UNIT
            } else {
                0.0
            };
            let count = case.batch * (case.inputs + case.outputs) * setting.geometry.taps() * 900;
            let of_sums = (count as f64).sqrt() * f64::from(f32::EPSILON);
            for (i, (found, [exact, size])) in found.iter().zip(expected).enumerate() {
                let bound = size * (2.0 * HALF_UNIT + HALF_UNIT * HALF_UNIT + of_sums)
                    + exact.abs() * stored * (1.0 + 4.0 * HALF_UNIT)
                    + size * stored * 4.0 * HALF_UNIT
                    + 1e-6;
                let error = (f64::from(*found) - exact).abs();
                assert!(
                    error <= bound,
                    "{case:?}, result {which}, {i}: {found} for {exact}: {error:e} > {bound:e}"
                );
            }
        }
    }
}

#[test]
fn neither_threads_nor_how_tiles_are_emulated_change_a_bit() {
    let bits = |results: [Vec<f32>; 4]| {
        results.map(|r| r.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    for case in cases() {
        let setting = Setting::new(case);
        for products in Products::available() {
            let of = |level, threads| {
                bits(
                    pool_of(level, products, threads)
                        .unwrap()
                        .install(|| run(&setting)),
                )
            };
            let level = if products == Products::Emulated {
                Level::Portable
            } else {
                Level::Avx512
            };
            let expected = of(level, 1);
            for threads in [2, 7] {
                assert!(
                    of(level, threads) == expected,
                    "{case:?} {products:?} on {threads} threads"
                );
            }
            if products == Products::Amx {
                let emulated = pool_of(Level::Avx512, Products::Emulated, 2)
                    .unwrap()
                    .install(|| run(&setting));
                assert!(
                    bits(emulated) == expected,
                    "{case:?}: the emulation differs"
                );
            }
        }
        // SiLU is rounded once less where products and sums are fused.
        for level in Level::available().into_iter().filter(|_| !case.prepared) {
            let of = pool_of(level, Products::Emulated, 2)
                .unwrap()
                .install(|| run(&setting));
            let portable = pool_of(Level::Portable, Products::Emulated, 1)
                .unwrap()
                .install(|| run(&setting));
            assert!(bits(of) == bits(portable), "{case:?} at {level:?}");
        }
    }
}
