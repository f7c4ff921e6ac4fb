//! What only a card can show: with `DDPM_TEST_DEVICE=cuda`, libraries beside the host's formulas, recordings, uploads, memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;

use super::card::Card;
use super::convolution::{Order, Pass, Shape};
use super::host::library;
use super::launch::{Address, Kind, Machine};
use super::notes;
use super::settings::use_deterministic;
use crate::device::{DeviceName, Place};
use crate::upload;

/// The card as programs open it, for one test at a time: settings and notes are the whole program's.
fn place() -> Option<(MutexGuard<'static, ()>, Place)> {
    static ONE: Mutex<()> = Mutex::new(());
    let asked = std::env::var("DDPM_TEST_DEVICE").ok();
    let name = asked.filter(|asked| asked.starts_with("cuda"))?;
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    Some((
        one,
        Place::open(name.parse::<DeviceName>().unwrap()).unwrap(),
    ))
}

/// A convolution, its kernel 3 by 3 with as much padding, or 1 by 1.
fn shape(kind: Kind, order: Order, [inputs, outputs]: [u32; 2], size: u32, stride: u32) -> Shape {
    let padding = size / 2;
    let side = |side: u32| 1 + (side + 2 * padding - size) / stride;
    Shape {
        kind,
        order,
        x: [2, inputs, 6, 10],
        weight: [outputs, inputs, size, size],
        y: [2, outputs, side(6), side(10)],
        padding: [padding; 2],
        stride,
        groups: 1,
    }
}

fn count(of: [u32; 4]) -> usize {
    of.iter().map(|&size| size as usize).product()
}

/// Small whole numbers, which bf16 and TF32 hold exactly.
fn numbers(of: [u32; 4], seed: usize) -> Vec<f32> {
    let number = |i: usize| (i * i + 3 * i + seed * 101) % 17;
    (0..count(of)).map(|i| number(i) as f32 - 8.0).collect()
}

fn there(kind: Kind, numbers: &[f32], device: &Device) -> Tensor {
    let dtype = match kind {
        Kind::F32 => DType::F32,
        Kind::Bf16 => DType::BF16,
    };
    let tensor = Tensor::new(numbers, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap().to_device(device).unwrap()
}

fn back(tensor: &Tensor) -> Vec<f32> {
    let here = tensor.to_device(&Device::Cpu).unwrap();
    here.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// By the host's own formula, in double precision, stored as f32.
fn expected(shape: &Shape, pass: Pass, a: &[f32], b: &[f32]) -> Vec<f32> {
    let shape = Shape {
        kind: Kind::F32,
        ..*shape
    };
    let [_, _, to] = sizes(&shape, pass);
    let mut result = vec![0f32; count(to)];
    let at = |of: &[f32]| Address(of.as_ptr().expose_provenance() as u64);
    let place = Address(result.as_mut_ptr().expose_provenance() as u64);
    library::convolve(&shape, pass, [at(a), at(b)], place);
    result
}

/// Of the arguments of a pass and of its result.
fn sizes(shape: &Shape, pass: Pass) -> [[u32; 4]; 3] {
    match pass {
        Pass::Forward => [shape.x, shape.weight, shape.y],
        Pass::Data => [shape.weight, shape.y, shape.x],
        Pass::Weights => [shape.x, shape.y, shape.weight],
    }
}

#[track_caller]
fn assert_near(what: &str, kind: Kind, ran: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1f32, |most, x| most.max(x.abs()));
    let tolerance = match kind {
        Kind::F32 => 1e-5 * largest,
        Kind::Bf16 => largest / 128.0,
    };
    for (i, (ran, expected)) in ran.iter().zip(expected).enumerate() {
        let near = (ran - expected).abs() <= tolerance;
        assert!(near, "{what}: {ran} at {i}, expected {expected}");
    }
}

#[test]
fn convolutions_in_both_orders_are_the_formula() {
    let Some((_one, place)) = place() else { return };
    let device = place.device();
    let card = Card::of(device.as_cuda_device().unwrap()).unwrap();
    for deterministic in [false, true] {
        use_deterministic(deterministic);
        for (channels, size, stride) in [
            ([16, 24], 3, 1),
            ([8, 32], 3, 2),
            ([3, 64], 3, 1),
            ([64, 3], 3, 1),
            ([5, 7], 3, 1),
            ([32, 16], 1, 1),
            ([3, 5], 1, 1),
            ([16, 8], 1, 2),
        ] {
            for kind in [Kind::F32, Kind::Bf16] {
                for order in [Order::Planes, Order::Pixels] {
                    let shape = shape(kind, order, channels, size, stride);
                    for pass in [Pass::Forward, Pass::Data, Pass::Weights] {
                        let [of_a, of_b, of_to] = sizes(&shape, pass);
                        let (a, b) = (numbers(of_a, 1), numbers(of_b, 2));
                        let (a_there, b_there) = (there(kind, &a, device), there(kind, &b, device));
                        let to = there(kind, &vec![f32::NAN; count(of_to)], device);
                        let at = |tensor| card.place("test", "x", tensor).unwrap();
                        // The first time it is chosen, and then it is kept.
                        for _ in 0..2 {
                            let from = [at(&a_there), at(&b_there)];
                            card.convolve(&shape, pass, from, at(&to)).unwrap();
                            let what = format!("{pass:?} {shape:?}");
                            let expected = expected(&shape, pass, &a, &b);
                            assert_near(&what, kind, &back(&to), &expected);
                        }
                    }
                }
            }
        }
    }
    notes::untold(true)
        .iter()
        .for_each(|note| println!("{note}"));
}

#[test]
fn what_was_kept_is_done_again_with_what_lies_there_now() {
    let Some((_one, place)) = place() else { return };
    let device = place.device();
    let card = Card::of(device.as_cuda_device().unwrap()).unwrap();
    for kind in [Kind::F32, Kind::Bf16] {
        let (wide, narrow) = (
            shape(kind, Order::Pixels, [16, 24], 3, 1),
            shape(kind, Order::Pixels, [24, 8], 1, 1),
        );
        let (w, v) = (numbers(wide.weight, 1), numbers(narrow.weight, 2));
        let (w_there, v_there) = (there(kind, &w, device), there(kind, &v, device));
        let x_there = there(kind, &numbers(wide.x, 3), device);
        let h_there = there(kind, &vec![f32::NAN; count(wide.y)], device);
        let y_there = there(kind, &vec![f32::NAN; count(narrow.y)], device);
        let at = |tensor| card.place("test", "x", tensor).unwrap();
        let (x_at, h_at, y_at) = (at(&x_there), at(&h_there), at(&y_there));
        let (w_at, v_at) = (at(&w_there), at(&v_there));
        let mut work = || -> Result<()> {
            card.convolve(&wide, Pass::Forward, [x_at, w_at], h_at)?;
            card.convolve(&narrow, Pass::Forward, [h_at, v_at], y_at)
        };
        work().unwrap();
        let before = back(&y_there);
        let Some(recording) = card.record(&mut work).unwrap() else {
            panic!("not kept: {:?}", notes::untold(true));
        };
        for seed in 4..7 {
            let x = numbers(wide.x, seed);
            x_there.slice_set(&there(kind, &x, device), 0, 0).unwrap();
            if seed == 4 {
                assert_eq!(back(&y_there), before, "launched while it was kept");
            }
            card.replay(&recording).unwrap();
            // h is stored as the kind has it.
            let h = expected(&wide, Pass::Forward, &x, &w);
            let h: Vec<f32> = match kind {
                Kind::F32 => h,
                Kind::Bf16 => h.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
            };
            let expected = expected(&narrow, Pass::Forward, &h, &v);
            assert_near(
                &format!("{seed} {kind:?}"),
                kind,
                &back(&y_there),
                &expected,
            );
        }
    }
}

#[test]
fn what_cannot_be_kept_is_said_and_the_card_goes_on() {
    let Some((_one, place)) = place() else { return };
    let device = place.device();
    let card = Card::of(device.as_cuda_device().unwrap()).unwrap();
    notes::untold(true);
    let mut allocates = || card.allocate(Kind::F32, 10).map(drop);
    assert!(card.record(&mut allocates).unwrap().is_none());
    assert!(card.record(&mut || Ok(())).unwrap().is_none());
    let told = notes::untold(false);
    assert!(
        told.iter()
            .any(|note| note.contains("memory was allocated while launches are kept")),
        "{told:?}"
    );
    allocates().unwrap();
    assert_eq!(back(&there(Kind::F32, &[1.0, 2.0], device)), [1.0, 2.0]);
}

#[test]
fn uploads_arrive_whole_however_many_are_under_way() {
    let Some((_one, place)) = place() else { return };
    let device = place.device();
    let tensor = |i: usize| {
        let length = 1000 + 77_777 * (i % 5);
        let numbers = (0..length).map(|j| (i * 1000 + j) as f32);
        Tensor::from_iter(numbers, &Device::Cpu).unwrap()
    };
    let sent: Vec<Tensor> = (0..60)
        .map(|i| upload(&tensor(i), device).unwrap())
        .collect();
    for (i, sent) in sent.iter().enumerate() {
        assert_eq!(back(sent), back(&tensor(i)), "{i}");
    }
    let indices = Tensor::new(&[3u32, 1, 2], &Device::Cpu).unwrap();
    let sent = upload(&indices, device).unwrap();
    assert_eq!(sent.to_vec1::<u32>().unwrap(), [3, 1, 2]);
    let halves = there(Kind::Bf16, &[1.5, -2.0], &Device::Cpu);
    assert_eq!(back(&upload(&halves, device).unwrap()), [1.5, -2.0]);
    let told = notes::untold(false);
    assert!(
        !told.iter().any(|note| note.contains("page-locked")),
        "{told:?}"
    );
}

#[test]
fn freed_memory_stays_and_counts_as_free() {
    let Some((_one, place)) = place() else { return };
    let device = place.device();
    let free = || place.card_memory().unwrap().0;
    let before = free();
    let large = Tensor::zeros(64 << 20, DType::F32, device).unwrap();
    device.synchronize().unwrap();
    let between = free();
    drop(large);
    device.synchronize().unwrap();
    let after = free();
    // A little goes to the driver's own books.
    assert!(before.abs_diff(after) < 128 << 20, "{before}, {after}");
    assert!(between + (128 << 20) < after, "{between}, {after}");
}
