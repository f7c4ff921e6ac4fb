//! The activations beside SiLU that networks of diffusers may have: ReLU, GELU and Mish.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use candle_core::cpu::erf::erf_f64;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::storage::{in_pieces, slice, tensor_like, view};

/// max(x, 0), element by element, for any shape. Its slope at 0 is 0.
///
/// # Errors
/// A type other than f32.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::Relu, crate::reference::relu)
}

/// x Φ(x) with the normal distribution function Φ, element by element, for any shape (Hendrycks and Gimpel 2016).
///
/// # Errors
/// A type other than f32.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::Gelu, crate::reference::gelu)
}

/// x tanh(ln(1 + e^x)), element by element, for any shape (Misra 2019).
///
/// # Errors
/// A type other than f32.
pub fn mish(x: &Tensor) -> Result<Tensor> {
    apply(x, Function::Mish, crate::reference::mish)
}

fn apply(
    x: &Tensor,
    function: Function,
    reference: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    crate::check::floats(function.name(), &[("x", x)])?;
    if !x.device().is_cpu() {
        return reference(x);
    }
    x.contiguous()?.apply_op1(function)
}

#[derive(Clone, Copy)]
enum Function {
    Relu,
    Gelu,
    Mish,
}

impl Function {
    /// In double precision: these are rare, and exact is simpler than fast.
    fn value(self, x: f32) -> f32 {
        if let Function::Relu = self {
            return if x < 0.0 { 0.0 } else { x };
        }
        let x = f64::from(x);
        (x * match self {
            Function::Relu => 1.0,
            Function::Gelu => 0.5 * (1.0 + erf_f64(x * FRAC_1_SQRT_2)),
            Function::Mish => softplus(x).tanh(),
        }) as f32
    }

    fn slope(self, x: f32) -> f32 {
        let x = f64::from(x);
        (match self {
            Function::Relu => f64::from(u8::from(x > 0.0)),
            // Φ + x φ
            Function::Gelu => {
                let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
                0.5 * (1.0 + erf_f64(x * FRAC_1_SQRT_2)) + x * density
            }
            // w + x (1 - w²) σ(x) with w = tanh(softplus(x))
            Function::Mish => {
                let w = softplus(x).tanh();
                w + x * (1.0 - w * w) / (1.0 + (-x).exp())
            }
        }) as f32
    }
}

/// ln(1 + e^x), also where e^x overflows.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Elements one task works on.
const CHUNK: usize = 1 << 12;

impl CustomOp1 for Function {
    fn name(&self) -> &'static str {
        match self {
            Function::Relu => "relu",
            Function::Gelu => "gelu",
            Function::Mish => "mish",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(self.name(), "x", x, layout)?;
        let (y, _) = in_pieces(x.len(), CHUNK, |i, y| {
            for (y, &x) in y.iter_mut().zip(&x[i * CHUNK..]) {
                *y = self.value(x);
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        let values = view(self.name(), "x", x)?;
        let g = view(self.name(), "the gradient", &g)?;
        let (dx, _) = in_pieces(values.len(), CHUNK, |i, dx| {
            let (x, g) = (&values[i * CHUNK..], &g[i * CHUNK..]);
            for ((dx, &x), g) in dx.iter_mut().zip(x).zip(g) {
                *dx = g * self.slope(x);
            }
        });
        tensor_like(dx, x).map(Some)
    }
}
