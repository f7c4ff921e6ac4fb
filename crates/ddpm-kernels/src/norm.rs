//! Group normalisation, alone or with SiLU in the same pass, and its gradients.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, bail};

#[cfg(feature = "cuda")]
use crate::cuda::{card, card::Card, launch::Kind, launch::Machine, norm::Norm};
use crate::planes::{Line, normalised, through_silu};
use crate::simd::{self, per_processor};
use crate::storage::{in_pieces, slice, tensor_like, view};

/// What follows a normalisation in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// x / (1 + e^-x).
    Silu,
}

/// Normalises each group of channels of each image to mean 0 and variance 1 (biased, plus `eps` under the root),
/// then scales by gamma, shifts by beta and applies the activation.
///
/// # Shapes
/// x `[B, C, ...]` (at least one more dimension), gamma and beta both `[C]`, or both `[B, C]` for an affine map of each
/// image's own -> the shape of x. `groups` divides C.
///
/// # Errors
/// Shapes that do not fit, groups that do not divide the channels, a type other than f32.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    crate::check::floats("group_norm", &[("x", x)])?;
    crate::check::f32("group_norm", &[("gamma", gamma), ("beta", beta)])?;
    crate::check::group_norm(x, groups, gamma, beta)?;
    if !crate::check::has_own(x) {
        return crate::reference::group_norm(x, groups, gamma, beta, eps, activation);
    }
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let pixels = x.elem_count() / (batch * channels);
    let own = gamma.rank() == 2;
    let silu = activation == Activation::Silu;
    let norm = GroupNorm {
        channels,
        pixels,
        groups,
        own,
        silu,
        eps,
        statistics: OnceLock::new(),
        #[cfg(feature = "cuda")]
        on_card: OnceLock::new(),
    };
    x.contiguous()?
        .apply_op3(&gamma.contiguous()?, &beta.contiguous()?, norm)
}

struct GroupNorm {
    channels: usize,
    pixels: usize,
    groups: usize,
    /// Whether each image has a gamma and beta of its own.
    own: bool,
    silu: bool,
    eps: f64,
    /// Mean and 1 / √(variance + eps) of each group of each image, kept for the gradient.
    statistics: OnceLock<Vec<[f32; 2]>>,
    /// The same of a card.
    #[cfg(feature = "cuda")]
    on_card: OnceLock<card::Memory>,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice("group_norm", "x", x, x_layout)?;
        let gamma = slice("group_norm", "gamma", gamma, gamma_layout)?;
        let beta = slice("group_norm", "beta", beta, beta_layout)?;
        let (y, statistics) = self.forward(x, gamma, beta);
        let _ = self.statistics.set(statistics);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        gamma: &CudaStorage,
        gamma_layout: &Layout,
        beta: &CudaStorage,
        beta_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let card = Card::of(&x.device)?;
        let (kind, x) = card.numbers("group_norm", "x", x, x_layout)?;
        let norm = self.of_batch(kind, x_layout.shape().elem_count());
        let (y, statistics) = norm.forward(
            &card,
            x,
            card.argument("group_norm", "gamma", gamma, gamma_layout)?,
            card.argument("group_norm", "beta", beta, beta_layout)?,
        )?;
        let _ = self.on_card.set(statistics);
        Ok((card.storage(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.gradients_on_card(x, gamma, beta, &g);
        }
        let (dx, dgamma, dbeta) = {
            let (x, g) = (
                view("group_norm", "x", x)?,
                view("group_norm", "the gradient", &g)?,
            );
            let (gamma, beta) = (
                view("group_norm", "gamma", gamma)?,
                view("group_norm", "beta", beta)?,
            );
            self.backward(&x, &gamma, &beta, &g)
        };
        let needed = |of: &Tensor, data| {
            if of.track_op() {
                tensor_like(data, of).map(Some)
            } else {
                Ok(None)
            }
        };
        Ok((needed(x, dx)?, needed(gamma, dgamma)?, needed(beta, dbeta)?))
    }
}

#[cfg(feature = "cuda")]
impl GroupNorm {
    /// The sizes for so many elements.
    fn of_batch(&self, kind: Kind, elements: usize) -> Norm {
        Norm {
            kind,
            batch: elements / (self.channels * self.pixels),
            channels: self.channels,
            pixels: self.pixels,
            groups: self.groups,
            own: self.own,
            silu: self.silu,
            eps: self.eps,
        }
    }

    fn gradients_on_card(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let card = Card::of(x.device().as_cuda_device()?)?;
        let Some(statistics) = self.on_card.get() else {
            bail!("group_norm: its gradient is asked for before its result");
        };
        let place = |name, tensor| card.place("group_norm", name, tensor);
        let [dx, dgamma, dbeta] = self
            .of_batch(Kind::of(x.dtype())?, x.elem_count())
            .backward(
                &card,
                place("x", x)?,
                place("gamma", gamma)?,
                place("beta", beta)?,
                card.address(statistics),
                place("the gradient", g)?,
            )?;
        Ok((
            card.gradient(dx, x),
            card.gradient(dgamma, gamma),
            card.gradient(dbeta, beta),
        ))
    }
}

impl GroupNorm {
    /// Elements of one group of one image, which lie side by side.
    fn group_length(&self) -> usize {
        self.channels / self.groups * self.pixels
    }

    /// Where in gamma and beta the channels of a group begin, counted through the batch.
    fn affine_start(&self, group: usize) -> usize {
        let first = group * (self.channels / self.groups);
        if self.own {
            first
        } else {
            first % self.channels
        }
    }

    fn forward(&self, x: &[f32], gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<[f32; 2]>) {
        let length = self.group_length();
        in_pieces(x.len(), length, |group, y| {
            let (x, ahead) = x[group * length..].split_at(length);
            let [mean, inverse] = statistics(x, self.eps);
            let channels = y
                .chunks_exact_mut(self.pixels)
                .zip(x.chunks_exact(self.pixels));
            // While this group is computed, the next one comes from memory.
            let mut ahead = ahead.chunks(self.pixels);
            for ((y, x), channel) in channels.zip(self.affine_start(group)..) {
                let line = Line {
                    mean,
                    scale: inverse * gamma[channel],
                    shift: beta[channel],
                };
                normalised(y, x, line, self.silu, ahead.next().unwrap_or_default());
            }
            [mean, inverse]
        })
    }

    /// dL/dx, dL/dgamma and dL/dbeta from g = dL/dy.
    fn backward(
        &self,
        x: &[f32],
        gamma: &[f32],
        beta: &[f32],
        g: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let length = self.group_length();
        let known = self.statistics.get();
        let per_group = self.channels / self.groups;
        let (dx, per_channel) = in_pieces(x.len(), length, |group, dx| {
            let (x, g) = (
                &x[group * length..][..length],
                &g[group * length..][..length],
            );
            let statistics = known.map_or_else(|| statistics(x, self.eps), |known| known[group]);
            let affine_start = self.affine_start(group);
            let (gamma, beta) = (
                &gamma[affine_start..][..per_group],
                &beta[affine_start..][..per_group],
            );
            self.backward_group(x, g, statistics, gamma, beta, dx)
        });
        let (dgamma, dbeta): (Vec<f32>, Vec<f32>) = per_channel.into_iter().flatten().unzip();
        if self.own {
            (dx, dgamma, dbeta)
        } else {
            (dx, self.over_batch(&dgamma), self.over_batch(&dbeta))
        }
    }

    /// dγ and dβ of each channel of a group, and dx.
    ///
    /// With x̂ = (x - μ) / s and h = dL/d(γ x̂ + β): dγ = Σ h x̂, dβ = Σ h, dx = (γ h - mean(γ h) - x̂ mean(γ h x̂)) / s.
    fn backward_group(
        &self,
        x: &[f32],
        g: &[f32],
        [mean, inverse]: [f32; 2],
        gamma: &[f32],
        beta: &[f32],
        dx: &mut [f32],
    ) -> Vec<(f32, f32)> {
        let mut affine_gradients = Vec::with_capacity(gamma.len());
        let (mut mean_h, mut mean_h_x) = (0f64, 0f64);
        for (channel, (x, g)) in x
            .chunks_exact(self.pixels)
            .zip(g.chunks_exact(self.pixels))
            .enumerate()
        {
            let h = &mut dx[channel * self.pixels..][..self.pixels];
            let line = Line {
                mean,
                scale: inverse * gamma[channel],
                shift: beta[channel],
            };
            let [sum_h, sum_h_x] = through_silu(h, x, g, line, self.silu);
            let sum_h_x = sum_h_x * f64::from(inverse);
            mean_h += f64::from(gamma[channel]) * sum_h;
            mean_h_x += f64::from(gamma[channel]) * sum_h_x;
            affine_gradients.push((sum_h_x as f32, sum_h as f32));
        }
        let length = x.len() as f64;
        let inverse = f64::from(inverse);
        // dx = scale h - slope (x - μ) - shift
        let slope = (mean_h_x / length * inverse * inverse) as f32;
        let shift = (mean_h / length * inverse) as f32;
        for (channel, (x, dx)) in x
            .chunks_exact(self.pixels)
            .zip(dx.chunks_exact_mut(self.pixels))
            .enumerate()
        {
            let scale = (inverse * f64::from(gamma[channel])) as f32;
            input_gradient(dx, x, mean, scale, slope, shift);
        }
        affine_gradients
    }

    /// Sums per image and channel to sums per channel, image after image.
    fn over_batch(&self, per_image: &[f32]) -> Vec<f32> {
        let channel_sum = |channel: usize| {
            per_image
                .iter()
                .skip(channel)
                .step_by(self.channels)
                .map(|&x| f64::from(x))
                .sum::<f64>()
        };
        (0..self.channels)
            .map(|channel| channel_sum(channel) as f32)
            .collect()
    }
}

/// Mean and 1 / √(variance + eps).
fn statistics(x: &[f32], eps: f64) -> [f32; 2] {
    let length = x.len() as f64;
    let mean = simd::sum(x) / length;
    let rounded = mean as f32;
    let offset = mean - f64::from(rounded); // Σ (x - rounded)² = Σ (x - mean)² + n offset²
    let variance =
        (simd::sum_of_squared_differences(x, rounded) / length - offset * offset).max(0.0);
    [rounded, (1.0 / (variance + eps).sqrt()) as f32]
}

per_processor! {
    fn input_gradient(dx: &mut [f32], x: &[f32], mean: f32, scale: f32, slope: f32, shift: f32) {
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = scale * *dx - slope * (x - mean) - shift;
        }
    }
}
