//! What changes parameters in place: a step of AdamW, the moving average, and the norm and scale that clipping needs.

use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use crate::bf16::Element;
use crate::executor::Gradients;
use crate::simd::per_processor;
use crate::source::Data;
use crate::storage::view;

/// The settings of one step of Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2,
/// in the form of `torch.optim.AdamW`). With `weight_decay` 0 it is Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment, 0 <= beta1 < 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 <= beta2 < 1.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The parameter shrinks by `learning_rate * weight_decay` of itself before the step.
    pub weight_decay: f64,
    /// The number of this step, counted from 1.
    pub step: u64,
}

impl AdamW {
    /// 1 - beta1^step and 1 - beta2^step.
    pub(crate) fn bias_corrections(&self) -> (f64, f64) {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        (correction(self.beta1), correction(self.beta2))
    }
}

/// One step of AdamW in place: the parameter `p` and its moments `m` and `v` change, the gradient `g` does not.
///
/// # Shapes
/// All four the same. `p`, `m` and `v` are contiguous and do not share storage.
///
/// # Errors
/// Shapes that differ, step 0, tensors that are not contiguous f32 on the CPU.
pub fn adamw_step(p: &Tensor, m: &Tensor, v: &Tensor, g: &Tensor, adamw: &AdamW) -> Result<()> {
    crate::check::f32("adamw_step", &[("p", p), ("m", m), ("v", v), ("g", g)])?;
    crate::check::adamw_step(p, m, v, g, adamw)?;
    apart("adamw_step", &[("p", p), ("m", m), ("v", v), ("g", g)])?;
    let g = g.detach().contiguous()?;
    let g = view("adamw_step", "g", &g)?;
    in_place("adamw_step", "p", p, |p| {
        in_place("adamw_step", "m", m, |m| {
            in_place("adamw_step", "v", v, |v| {
                optimise_slices::<f32>((p, m, v), &g, 1.0, adamw, &mut []);
                Ok(())
            })
        })
    })
}

/// A moving average of all parameters: the share of itself that this step keeps, and its tensors.
#[derive(Clone, Copy, Debug)]
pub struct Averaged<'a> {
    /// As in [`ema_update`].
    pub decay: f64,
    /// One for each parameter, in order.
    pub tensors: &'a [Tensor],
}

/// A whole optimiser step over all parameters, in one pass through the memory of each: the gradient is scaled by `factor`
/// (clipping), the parameter and its moments move by [`adamw_step`], then every average by [`ema_update`]. The
/// gradients do not change.
///
/// # Shapes
/// As many moments, gradients and averages as parameters, each shaped as its parameter; all contiguous and apart.
///
/// # Errors
/// As [`adamw_step`] and [`ema_update`], before anything has changed.
pub fn optimise(
    (parameters, m, v): (&[Tensor], &[Tensor], &[Tensor]),
    gradients: &Gradients,
    factor: f64,
    adamw: &AdamW,
    averages: &[Averaged<'_>],
) -> Result<()> {
    check_step((parameters, m, v), gradients.len(), adamw, averages)?;
    for (i, p) in parameters.iter().enumerate() {
        if gradients.data(i).is_none_or(|g| g.len() != p.elem_count()) {
            bail!("optimise: gradient {i} is not shaped as p, {:?}", p.dims());
        }
    }
    for i in 0..parameters.len() {
        if let Some(g) = gradients.data(i) {
            optimise_parameter((parameters, m, v), i, g, factor as f32, adamw, averages)?;
        }
    }
    Ok(())
}

/// A whole optimiser step from gradients that are tensors, on the device where they are: their global norm, clipping to
/// `max_norm` (0: none) as `torch.nn.utils.clip_grad_norm_` does, then [`optimise`]. The gradients do not change.
///
/// Gives f32 `[2]` on the device: the norm before clipping, and the factor `min(1, max_norm / (norm + 1e-6))` that the
/// gradients were multiplied by. On a CUDA device nothing waits for the host. Where the norm is not finite, neither
/// parameters nor moments nor averages change.
///
/// # Shapes
/// As many moments, gradients and averages as parameters, each shaped as its parameter; all but the gradients contiguous
/// and apart, all on one device.
///
/// # Errors
/// As [`optimise`], before anything has changed.
pub fn optimise_tensors(
    (parameters, m, v): (&[Tensor], &[Tensor], &[Tensor]),
    gradients: &[Tensor],
    max_norm: f64,
    adamw: &AdamW,
    averages: &[Averaged<'_>],
) -> Result<Tensor> {
    check_step((parameters, m, v), gradients.len(), adamw, averages)?;
    let Some(device) = parameters.first().map(Tensor::device) else {
        bail!("optimise: there are no parameters");
    };
    for (i, (p, g)) in parameters.iter().zip(gradients).enumerate() {
        crate::check::f32("optimise", &[("gradient", g)])?;
        crate::check::same_shape("optimise", ("p", p), ("gradient", g))?;
        if !g.device().same_device(device) || !p.device().same_device(device) {
            bail!(
                "optimise: parameter or gradient {i} is not on {:?}, where the first is",
                device.location()
            );
        }
    }
    let gradients: Vec<Tensor> = gradients
        .iter()
        .map(|g| g.detach().contiguous())
        .collect::<Result<_>>()?;
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return crate::cuda::optimise::on_card(
            (parameters, m, v),
            &gradients,
            max_norm,
            adamw,
            averages,
        );
    }
    let squares = gradients.iter().map(sum_of_squares).sum::<Result<f64>>()?;
    let norm = squares.sqrt();
    let factor = clip_factor(norm, max_norm);
    if norm.is_finite() {
        for (i, g) in gradients.iter().enumerate() {
            let g = view("optimise", "gradient", g)?;
            let g = Data::Floats(&g);
            optimise_parameter((parameters, m, v), i, g, factor as f32, adamw, averages)?;
        }
    }
    Tensor::new(&[norm as f32, factor as f32], device)
}

/// What gradients of this global norm are multiplied by, as `torch.nn.utils.clip_grad_norm_`:
/// `min(1, max_norm / (norm + 1e-6))`. A `max_norm` of 0 means no clipping.
///
/// ```
/// assert_eq!(ddpm_kernels::clip_factor(0.5, 1.0), 1.0);
/// assert!((ddpm_kernels::clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
/// assert_eq!(ddpm_kernels::clip_factor(4.0, 0.0), 1.0);
/// ```
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 {
        (max_norm / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}

/// What both ways to make a step demand before anything changes.
fn check_step(
    (parameters, m, v): (&[Tensor], &[Tensor], &[Tensor]),
    gradients: usize,
    adamw: &AdamW,
    averages: &[Averaged<'_>],
) -> Result<()> {
    let count = parameters.len();
    let lists = [m.len(), v.len(), gradients];
    if lists
        .into_iter()
        .chain(averages.iter().map(|a| a.tensors.len()))
        .any(|length| length != count)
    {
        bail!("optimise: the lists differ in length, expected {count} each");
    }
    for i in 0..count {
        let (p, m, v) = (&parameters[i], &m[i], &v[i]);
        let mut named = vec![("p", p), ("m", m), ("v", v)];
        named.extend(averages.iter().map(|average| ("ema", &average.tensors[i])));
        crate::check::f32("optimise", &named)?;
        crate::check::adamw_step(p, m, v, p, adamw)?;
        for average in averages {
            crate::check::ema_update(&average.tensors[i], p, average.decay)?;
        }
        apart("optimise", &named)?;
    }
    Ok(())
}

/// One parameter's share of a step.
fn optimise_parameter(
    (parameters, m, v): (&[Tensor], &[Tensor], &[Tensor]),
    i: usize,
    g: Data<'_>,
    factor: f32,
    adamw: &AdamW,
    averages: &[Averaged<'_>],
) -> Result<()> {
    let of: Vec<(f64, &Tensor)> = averages.iter().map(|a| (a.decay, &a.tensors[i])).collect();
    in_place("optimise", "p", &parameters[i], |p| {
        in_place("optimise", "m", &m[i], |m| {
            in_place("optimise", "v", &v[i], |v| {
                with_all(&of, Vec::new(), &mut |averages| {
                    let moved = (&mut *p, &mut *m, &mut *v);
                    match g {
                        Data::Floats(g) => optimise_slices(moved, g, factor, adamw, averages),
                        Data::Halves(g) => optimise_slices(moved, g, factor, adamw, averages),
                    }
                })
            })
        })
    })
}

/// A moving average's share and elements.
type AverageSlice<'a> = (f64, &'a mut [f32]);

/// Opens tensor after tensor for writing, then works on all of them.
fn with_all(
    rest: &[(f64, &Tensor)],
    mut open: Vec<AverageSlice<'_>>,
    work: &mut (dyn FnMut(&mut [AverageSlice<'_>]) + Send),
) -> Result<()> {
    let Some(((decay, tensor), rest)) = rest.split_first() else {
        work(&mut open);
        return Ok(());
    };
    in_place("optimise", "ema", tensor, |ema| {
        let mut all: Vec<AverageSlice<'_>> = open
            .iter_mut()
            .map(|(decay, open)| (*decay, &mut **open))
            .collect();
        all.push((*decay, ema));
        with_all(rest, all, work)
    })
}

/// One parameter, some elements at a time: each comes into the cache once.
fn optimise_slices<E: Element>(
    (p, m, v): (&mut [f32], &mut [f32], &mut [f32]),
    g: &[E],
    factor: f32,
    adamw: &AdamW,
    averages: &mut [AverageSlice<'_>],
) {
    let numbers = Numbers::of(adamw);
    let mut of_chunks: Vec<Vec<AverageSlice<'_>>> =
        (0..p.len().div_ceil(CHUNK)).map(|_| Vec::new()).collect();
    for (decay, average) in averages {
        for (of_chunk, average) in of_chunks.iter_mut().zip(average.chunks_mut(CHUNK)) {
            of_chunk.push((*decay, average));
        }
    }
    let chunks = p
        .par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .zip(g.par_chunks(CHUNK))
        .zip(of_chunks);
    chunks.for_each(|((((p, m), v), g), averages)| {
        adamw_piece(p, m, v, g, factor, &numbers);
        for (decay, average) in averages {
            move_towards(average, p, decay as f32, (1.0 - decay) as f32);
        }
    });
}

/// ema = decay ema + (1 - decay) p, in place.
///
/// # Shapes
/// Both the same; `ema` is contiguous and does not share storage with `p`.
///
/// # Errors
/// Shapes that differ, a decay outside of 0..=1, tensors that are not contiguous f32 on the CPU.
pub fn ema_update(ema: &Tensor, p: &Tensor, decay: f64) -> Result<()> {
    crate::check::f32("ema_update", &[("ema", ema), ("p", p)])?;
    crate::check::ema_update(ema, p, decay)?;
    apart("ema_update", &[("ema", ema), ("p", p)])?;
    let p = p.detach().contiguous()?;
    let p = view("ema_update", "p", &p)?;
    let (keep, take) = (decay as f32, (1.0 - decay) as f32);
    in_place("ema_update", "ema", ema, |ema| {
        ema.par_chunks_mut(CHUNK)
            .zip(p.par_chunks(CHUNK))
            .for_each(|(ema, p)| {
                move_towards(ema, p, keep, take);
            });
        Ok(())
    })
}

/// The sum of the squares of all elements, added in double precision and in an order that never changes.
///
/// # Errors
/// A type other than f32.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    crate::check::f32("sum_of_squares", &[("x", x)])?;
    let x = x.detach().contiguous()?;
    if !x.device().is_cpu() {
        return crate::reference::sum_of_squares(&x);
    }
    Ok(squares::<f32>(&view("sum_of_squares", "x", &x)?))
}

/// Chunk by chunk, in order.
pub(crate) fn squares<E: Element>(x: &[E]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(sum_of_squares_slice::<E>).collect();
    parts.iter().sum()
}

/// x = factor x, in place.
///
/// # Errors
/// A tensor that is not contiguous f32 on the CPU.
pub fn scale_in_place(x: &Tensor, factor: f64) -> Result<()> {
    crate::check::f32("scale_in_place", &[("x", x)])?;
    let factor = factor as f32;
    in_place("scale_in_place", "x", x, |x| {
        x.par_chunks_mut(CHUNK)
            .for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
        Ok(())
    })
}

/// Elements one task works on: a constant, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

per_processor! {
    /// Sixteen running sums, added up at the end in order.
    fn sum_of_squares_slice<E: Element>(x: &[E]) -> f64 {
        let mut sums = [0f64; 16];
        let whole = x.chunks_exact(16);
        for (sum, x) in sums.iter_mut().zip(whole.remainder()) {
            *sum = f64::from(x.widen()) * f64::from(x.widen());
        }
        for x in whole {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += f64::from(x.widen()) * f64::from(x.widen());
            }
        }
        sums.iter().sum()
    }

    /// keep ema + take p for weights that add up to 1, written so that either is exact when its weight is 1.
    fn move_towards(ema: &mut [f32], p: &[f32], keep: f32, take: f32) {
        if take < 0.5 {
            for (ema, p) in ema.iter_mut().zip(p) {
                *ema += take * (p - *ema);
            }
        } else {
            for (ema, p) in ema.iter_mut().zip(p) {
                *ema = p - keep * (p - *ema);
            }
        }
    }

    fn adamw_piece<E: Element>(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[E], factor: f32, numbers: &Numbers) {
        let Numbers { shrink, step_size, root_correction, eps, beta2, one_less_beta1, one_less_beta2 } = *numbers;
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g.widen() * factor;
            *m += one_less_beta1 * (g - *m); // torch's lerp
            *v = *v * beta2 + one_less_beta2 * g * g;
            let denominator = v.sqrt() / root_correction + eps;
            *p = *p * shrink - step_size * (*m / denominator);
        }
    }
}

/// The settings of a step as the loop over elements wants them.
pub(crate) struct Numbers {
    pub(crate) shrink: f32,
    pub(crate) step_size: f32,
    pub(crate) root_correction: f32,
    pub(crate) eps: f32,
    pub(crate) beta2: f32,
    pub(crate) one_less_beta1: f32,
    pub(crate) one_less_beta2: f32,
}

impl Numbers {
    /// m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g², p = p (1 - lr wd) - lr m̂ / (√v̂ + eps), in torch's order.
    pub(crate) fn of(adamw: &AdamW) -> Self {
        let (m_correction, v_correction) = adamw.bias_corrections();
        Numbers {
            shrink: (1.0 - adamw.learning_rate * adamw.weight_decay) as f32,
            step_size: (adamw.learning_rate / m_correction) as f32,
            root_correction: v_correction.sqrt() as f32,
            eps: adamw.eps as f32,
            beta2: adamw.beta2 as f32,
            one_less_beta1: (1.0 - adamw.beta1) as f32,
            one_less_beta2: (1.0 - adamw.beta2) as f32,
        }
    }
}

/// Refuses tensors that share memory: candle would wait for its own lock for ever.
fn apart(op: &str, tensors: &[(&str, &Tensor)]) -> Result<()> {
    let address = |x: &Tensor| std::ptr::from_ref(&*x.storage_and_layout().0).addr();
    for (i, (name, x)) in tensors.iter().enumerate() {
        if let Some((other, _)) = tensors[..i]
            .iter()
            .find(|(_, other)| address(other) == address(x))
        {
            bail!("{op}: {other} and {name} share their memory");
        }
    }
    Ok(())
}

/// Hands the elements of a tensor to `change`, which may write them.
fn in_place<F: FnOnce(&mut [f32]) -> Result<()> + Send>(
    op: &'static str,
    name: &'static str,
    x: &Tensor,
    change: F,
) -> Result<()> {
    x.inplace_op1(&InPlace {
        op,
        argument: name,
        change: Mutex::new(Some(change)),
    })
}

struct InPlace<F> {
    op: &'static str,
    argument: &'static str,
    change: Mutex<Option<F>>,
}

impl<F: FnOnce(&mut [f32]) -> Result<()> + Send> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (op, name) = (self.op, self.argument);
        let CpuStorage::F32(data) = storage else {
            bail!("{op}: {name} is not f32");
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!(
                "{op}: {name} of shape {:?} is not contiguous",
                layout.dims()
            );
        };
        match self.change.lock().ok().and_then(|mut change| change.take()) {
            Some(change) => change(&mut data[start..end]),
            None => bail!("{op}: {name} was written twice"),
        }
    }
}
