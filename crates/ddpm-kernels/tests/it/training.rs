//! What changes parameters in place.

use candle_core::{DType, Device, Tensor, Var};
use ddpm_kernels::{ema_update, reference, scale_in_place, sum_of_squares};

use crate::support::{assert_close, numbers, values};

#[test]
fn the_average_moves_and_the_parameter_does_not() {
    let (ema, p) = (
        Var::from_tensor(&numbers((3, 5), 1)).unwrap(),
        Var::from_tensor(&numbers((3, 5), 2)).unwrap(),
    );
    let (before, p_before) = (ema.as_tensor().copy().unwrap(), values(&p));
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    ema_update(&ema, &p, 0.9).unwrap();
    assert_close(
        "ema",
        &ema,
        &reference::ema_update(&wide(&before), &wide(&p), 0.9).unwrap(),
        2e-7,
    );
    assert_eq!(values(&p), p_before);
    ema_update(&ema, &p, 0.0).unwrap();
    assert_eq!(values(&ema), p_before);
}

#[test]
fn an_average_that_has_arrived_stays() {
    let p = numbers((3, 5), 1);
    let ema = p.copy().unwrap();
    for _ in 0..100 {
        ema_update(&ema, &p, 0.9999).unwrap();
    }
    assert_eq!(values(&ema), values(&p));
}

#[test]
fn squares_are_added_in_double_precision() {
    let x = numbers((37, 1001), 1);
    let expected = reference::sum_of_squares(&x).unwrap();
    assert!((sum_of_squares(&x).unwrap() - expected).abs() <= 1e-13 * expected);
    assert_eq!(
        sum_of_squares(&x.t().unwrap().narrow(0, 0, 1).unwrap()).unwrap(),
        reference::sum_of_squares(&x.narrow(1, 0, 1).unwrap()).unwrap()
    );
    let many = Tensor::full(1f32, 1 << 25, &Device::Cpu).unwrap(); // beyond what f32 can count
    assert_eq!(sum_of_squares(&many).unwrap(), (1 << 25) as f64);
}

#[test]
fn a_part_of_a_tensor_is_scaled_alone() {
    let x = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
    scale_in_place(&x.narrow(0, 1, 1).unwrap(), 0.5).unwrap();
    assert_eq!(
        values(&x),
        [1., 1., 1., 1., 0.5, 0.5, 0.5, 0.5, 1., 1., 1., 1.]
    );
}
