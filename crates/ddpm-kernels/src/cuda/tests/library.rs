//! On the host, what a card leaves to cuDNN: convolutions and their gradients, term by term in double precision.
#![allow(unsafe_code)] // memory at addresses, as a library is given it

use crate::bf16::{Bf16, Element};
use crate::cuda::convolution::{Order, Pass, Shape};
use crate::cuda::launch::{Address, Kind};

/// As [`crate::cuda::launch::Machine::convolve`].
pub(in crate::cuda) fn convolve(shape: &Shape, pass: Pass, [a, b]: [Address; 2], to: Address) {
    let numbers = |of: [u32; 4]| of.iter().map(|&size| size as usize).product::<usize>();
    let (x, w, y) = (numbers(shape.x), numbers(shape.weight), numbers(shape.y));
    let (of_a, of_b, of_to) = match pass {
        Pass::Forward => (x, w, y),
        Pass::Data => (w, y, x),
        Pass::Weights => (x, y, w),
    };
    let (a, b) = (read(shape.kind, a, of_a), read(shape.kind, b, of_b));
    let mut sums = vec![0f64; of_to];
    terms(shape, |x, w, y| match pass {
        Pass::Forward => sums[y] += a[x] * b[w],
        Pass::Data => sums[x] += a[w] * b[y],
        Pass::Weights => sums[w] += a[x] * b[y],
    });
    write(shape.kind, to, &sums);
}

/// Every product of a convolution: the places of the numbers of x, W and y that it connects.
fn terms(shape: &Shape, mut term: impl FnMut(usize, usize, usize)) {
    let all = |of: [u32; 4]| of.map(|size| size as usize);
    let (x, w, y) = (all(shape.x), all(shape.weight), all(shape.y));
    let [padding_rows, padding_columns] = shape.padding.map(|size| size as usize);
    let stride = shape.stride as usize;
    let outputs = y[1] / shape.groups as usize; // of a group
    let place = |of: [usize; 4], [n, c, row, column]: [usize; 4]| match shape.order {
        Order::Planes => ((n * of[1] + c) * of[2] + row) * of[3] + column,
        Order::Pixels => ((n * of[2] + row) * of[3] + column) * of[1] + c,
    };
    for (image, output, row, column) in indices(y) {
        for (_, input, kernel_row, kernel_column) in indices([1, w[1], w[2], w[3]]) {
            let from_row = (stride * row + kernel_row).checked_sub(padding_rows);
            let from_column = (stride * column + kernel_column).checked_sub(padding_columns);
            let (Some(from_row), Some(from_column)) = (from_row, from_column) else {
                continue;
            };
            if from_row < x[2] && from_column < x[3] {
                let channel = output / outputs * w[1] + input;
                term(
                    place(x, [image, channel, from_row, from_column]),
                    place(w, [output, input, kernel_row, kernel_column]),
                    place(y, [image, output, row, column]),
                );
            }
        }
    }
}

fn indices(of: [usize; 4]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let [a, b, c, d] = of;
    (0..a * b * c * d).map(move |i| (i / (b * c * d), i / (c * d) % b, i / d % c, i % d))
}

fn read(kind: Kind, at: Address, count: usize) -> Vec<f64> {
    // SAFETY: as for a library, the caller says how much is there.
    unsafe {
        match kind {
            Kind::F32 => std::slice::from_raw_parts(at.0 as *const f32, count)
                .iter()
                .map(|&x| x.into())
                .collect(),
            Kind::Bf16 => std::slice::from_raw_parts(at.0 as *const Bf16, count)
                .iter()
                .map(|x| x.widen().into())
                .collect(),
        }
    }
}

fn write(kind: Kind, at: Address, numbers: &[f64]) {
    // SAFETY: as above.
    unsafe {
        match kind {
            Kind::F32 => std::slice::from_raw_parts_mut(at.0 as *mut f32, numbers.len())
                .iter_mut()
                .zip(numbers)
                .for_each(|(to, &x)| *to = x as f32),
            Kind::Bf16 => std::slice::from_raw_parts_mut(at.0 as *mut Bf16, numbers.len())
                .iter_mut()
                .zip(numbers)
                .for_each(|(to, &x)| *to = Bf16::narrow(x as f32)),
        }
    }
}

mod tests {
    use super::*;
    use crate::Conv2d;
    use crate::cuda::convolution::shape_of;
    use crate::cuda::oracle::{assert_near, wave};
    use candle_core::{Device, Tensor, Var};

    /// Held to candle's convolution and its gradients.
    #[test]
    #[allow(clippy::disallowed_methods)] // candle's own is what it is held to
    fn it_is_candles_convolution() {
        let cpu = &Device::Cpu;
        let (x, w) = ([2, 3, 5, 7], [4, 3, 3, 3]);
        let tensor = |shape: [usize; 4], seed| {
            Var::from_vec(wave(shape.iter().product(), seed), &shape, cpu).unwrap()
        };
        let (x_of, w_of) = (tensor(x, 1), tensor(w, 2));
        let conv = Conv2d::new(2, crate::Padding::same(1));
        let y_of = x_of.conv2d(&w_of, 1, 2, 1, 1).unwrap();
        let g_of = tensor([2, 4, 3, 4], 3);
        let store = y_of
            .mul(&g_of)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let (mut shape, _) = shape_of(Kind::F32, x, w, conv).unwrap();
        for order in [Order::Planes, Order::Pixels] {
            shape.order = order;
            let flat = |t: &Tensor| {
                let t = match order {
                    Order::Planes => t.clone(),
                    Order::Pixels => t.permute((0, 2, 3, 1)).unwrap(),
                };
                t.contiguous()
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
            };
            let at = |of: &[f32]| Address(of.as_ptr().expose_provenance() as u64);
            let check = |pass, a: &Tensor, b: &Tensor, expected: &Tensor| {
                let (a, b, expected) = (flat(a), flat(b), flat(expected));
                let mut to = vec![0f32; expected.len()];
                let place = Address(to.as_mut_ptr().expose_provenance() as u64);
                convolve(&shape, pass, [at(&a), at(&b)], place);
                let expected: Vec<f64> = expected.iter().map(|&x| x.into()).collect();
                assert_near(&format!("{pass:?} {order:?}"), &to, &expected, 1e-6);
            };
            check(Pass::Forward, &x_of, &w_of, &y_of);
            check(Pass::Data, &w_of, &g_of, store.get(&x_of).unwrap());
            check(Pass::Weights, &x_of, &g_of, store.get(&w_of).unwrap());
        }
    }
}
