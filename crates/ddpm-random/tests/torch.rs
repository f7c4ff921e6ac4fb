//! PyTorch's numbers: golden calls made by `tests/golden/torch_generator.py`, and bad input.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the functions that the tests share are tests as well"
)]

use candle_core::{DType, Device, Tensor};
use ddpm_core::NoiseSource;
use ddpm_random::TorchGenerator;

/// What a call of the golden file drew: all bits, and the numbers as text would have them.
struct Drawn {
    bits: Vec<u64>,
    numbers: Vec<f64>,
}

impl Drawn {
    fn f32(n: usize, fill: impl FnOnce(&mut [f32])) -> Drawn {
        let mut out = vec![f32::NAN; n];
        fill(&mut out);
        Drawn {
            bits: out.iter().map(|x| u64::from(x.to_bits())).collect(),
            numbers: out.iter().map(|&x| f64::from(x)).collect(),
        }
    }

    fn f64(n: usize, fill: impl FnOnce(&mut [f64])) -> Drawn {
        let mut out = vec![f64::NAN; n];
        fill(&mut out);
        Drawn {
            bits: out.iter().map(|x| x.to_bits()).collect(),
            numbers: out,
        }
    }

    fn integers(out: Vec<i64>) -> Drawn {
        Drawn {
            bits: out.iter().map(|&x| x as u64).collect(),
            numbers: out.iter().map(|&x| x as f64).collect(),
        }
    }

    /// FNV-1a over the bits.
    fn digest(&self) -> String {
        let step = |h: u64, bits: &u64| (h ^ bits).wrapping_mul(0x100_0000_01B3);
        format!(
            "{:016x}",
            self.bits.iter().fold(0xCBF2_9CE4_8422_2325, step)
        )
    }
}

fn call(generator: &mut TorchGenerator, name: &str, n: usize) -> Drawn {
    let mut integers = |low, high| {
        let mut out = vec![0; n];
        generator.integers_into(low, high, &mut out).unwrap();
        Drawn::integers(out)
    };
    match name {
        "integers_10" => integers(0, 10),
        "integers_wide" => integers(-(1 << 60), 1 << 60),
        "integers_below_2_28" => integers(-5, (1 << 28) - 6),
        "integers_from_2_28" => integers(0, 1 << 28),
        "normal" => Drawn::f32(n, |out| generator.normal_into(out)),
        "normal_f64" => Drawn::f64(n, |out| generator.normal_f64_into(out)),
        "uniform" => Drawn::f32(n, |out| generator.uniform_into(out)),
        "uniform_f64" => Drawn::f64(n, |out| generator.uniform_f64_into(out)),
        "permutation" => {
            let order = generator.permutation(n).unwrap();
            Drawn::integers(order.into_iter().map(|i| i as i64).collect())
        }
        _ => panic!("{name}"),
    }
}

#[test]
fn the_numbers_are_pytorch_s() {
    let mut generator = TorchGenerator::new(0);
    let mut seed = "none";
    let file = include_str!("golden/torch.txt");
    assert_eq!(file.lines().count(), 8 * 24 + 2);
    for line in file.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == "seed" {
            seed = words[1];
            generator = TorchGenerator::new(seed.parse().unwrap());
            continue;
        }
        let drawn = call(&mut generator, words[0], words[1].parse().unwrap());
        let expected: Vec<f64> = words[3..].iter().map(|x| x.parse().unwrap()).collect();
        let end = &drawn.numbers[drawn.numbers.len() - expected.len()..];
        for (got, expected) in end.iter().zip(&expected) {
            // f32 is written with as many digits as it needs; f64 may differ in the last bits.
            let tolerance = if words[2] == "-" { 4e-16 } else { 1e-7 };
            assert!(
                (got - expected).abs() <= tolerance * expected.abs().max(1.0),
                "seed {seed}, {line}: got {got}"
            );
        }
        if words[2] != "-" {
            assert_eq!(drawn.digest(), words[2], "seed {seed}, {line}");
        }
    }
}

/// As a source of noise it goes on where it was, in the type of the images.
#[test]
fn draws_follow_one_another() {
    let device = ddpm_tests::device();
    let (mut source, mut generator) = (TorchGenerator::new(5), TorchGenerator::new(5));
    let start = source.normal(&[2, 3, 4, 6], &device).unwrap();
    let draw = source.draw(7, &start).unwrap();
    let mut expected = [0.0; 144];
    for tensor in [start, draw] {
        generator.normal_into(&mut expected);
        assert_eq!(tensor.dims(), [2, 3, 4, 6]);
        assert_eq!(
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            expected
        );
    }
    let like = Tensor::zeros((1, 3, 3), DType::F64, &device).unwrap();
    let mut expected = [0.0; 9];
    generator.normal_f64_into(&mut expected);
    let draw = source.draw(0, &like).unwrap();
    assert_eq!(
        draw.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
        expected
    );
    assert_eq!(source, generator);
}

#[test]
fn what_cannot_be_drawn_is_an_error() {
    let mut generator = TorchGenerator::new(5);
    let before = generator.clone();
    let error = generator.integers_into(3, 3, &mut [0]).unwrap_err();
    assert_eq!(error.to_string(), "there is no integer in 3..3 to draw");
    let error = generator.permutation(214_748_365).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a permutation of 214748365 integers: at most 214748364 are put in PyTorch's order"
    );
    let error = generator
        .normal(&[usize::MAX, 2], &Device::Cpu)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "a batch of shape [18446744073709551615, 2] does not fit in memory"
    );
    generator.normal_into(&mut []);
    assert!(generator.permutation(0).unwrap().is_empty());
    assert_eq!(generator, before);
}
