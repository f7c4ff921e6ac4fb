//! Dropout on a card, whose mask is drawn there: the numbers of ddpm-random at an address, to the bit.

use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape, Tensor, bail};

#[cfg(feature = "cuda")]
use super::card::Card;
use super::launch::{Address, Kind, Launch, Machine, arguments, each_image, kernel, whole};

/// Dropout of images on a CUDA device whose mask is drawn there: x / (1 - rate) where the uniform at the element's address
/// is at least `rate`, 0 elsewhere. It is what [`crate::dropout`] makes of the mask of those uniforms, bit for bit.
///
/// `key` and `counters`, one for each image, are Philox4x32-10's key and the upper three words of its counter, as
/// `ddpm_random::philox_words` gives them.
///
/// # Shapes
/// x `[B, ...]` -> the same.
///
/// # Errors
/// Not one counter for each image, a rate outside of 0 <= rate < 1, a type other than f32 or bf16, another device.
#[cfg(feature = "cuda")]
pub fn dropout_drawn(
    x: &Tensor,
    key: [u32; 2],
    counters: &[[u32; 3]],
    rate: f64,
) -> Result<Tensor> {
    crate::check::floats("dropout_drawn", &[("x", x)])?;
    if x.dims().first() != Some(&counters.len()) {
        bail!(
            "dropout_drawn: x has shape {:?} for {} counters, expected one for each image",
            x.dims(),
            counters.len()
        );
    }
    if !(0.0..1.0).contains(&rate) {
        bail!("dropout_drawn: rate is {rate}, expected 0 <= rate < 1");
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let counters = counters.to_vec();
    let draws = Draws { key, counters };
    x.contiguous()?.apply_op1(Drawn { draws, rate })
}

#[cfg(feature = "cuda")]
struct Drawn {
    draws: Draws,
    rate: f64,
}

#[cfg(feature = "cuda")]
impl Drawn {
    fn apply<'a>(
        &self,
        card: &Card<'a>,
        kind: Kind,
        x: Address,
        elements: usize,
    ) -> Result<<Card<'a> as Machine>::Memory> {
        let elements = elements / self.draws.counters.len();
        dropout(card, kind, x, elements, &self.draws, self.rate)
    }
}

#[cfg(feature = "cuda")]
impl CustomOp1 for Drawn {
    fn name(&self) -> &'static str {
        "dropout_drawn"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("dropout_drawn: x is on the cpu, expected a CUDA device; `dropout` takes a mask")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let card = Card::of(&x.device)?;
        let (kind, x) = card.numbers("dropout_drawn", "x", x, layout)?;
        let y = self.apply(&card, kind, x, layout.shape().elem_count())?;
        Ok((card.storage(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let card = Card::of(x.device().as_cuda_device()?)?;
        let g = g.contiguous()?;
        let place = card.place("dropout_drawn", "the gradient", &g)?;
        let dx = self.apply(&card, Kind::of(x.dtype())?, place, x.elem_count())?;
        Ok(card.gradient(dx, x))
    }
}

/// What the masks of a place of dropout are drawn from: Philox4x32-10's key, and the upper three words of the counter of each image.
#[cfg_attr(not(feature = "cuda"), allow(unreachable_pub))]
pub struct Draws {
    /// The key.
    pub key: [u32; 2],
    /// One for each image.
    pub counters: Vec<[u32; 3]>,
}

impl Draws {
    /// The counters as kernels read them, u32 [B, 3]: what [`Machine::upload`] is given.
    pub(crate) fn words(&self) -> Vec<u64> {
        let halves: Vec<u32> = self.counters.iter().flatten().copied().collect();
        let upper = |pair: &[u32]| pair.get(1).copied().unwrap_or(0);
        let pairs = halves.chunks(2);
        pairs
            .map(|pair| u64::from(pair[0]) | u64::from(upper(pair)) << 32)
            .collect()
    }
}

/// x / (1 - rate) where u >= rate and 0 elsewhere, u = 2^-24 times the upper 24 bits of the element's word. The gradient is the
/// same of the output's gradient.
pub(crate) fn dropout<M: Machine>(
    machine: &M,
    kind: Kind,
    x: Address,
    elements: usize,
    draws: &Draws,
    rate: f64,
) -> Result<M::Memory> {
    let images = draws.counters.len();
    let rows = each_image(images)?;
    let counters = machine.upload(&draws.words())?;
    let y = machine.allocate(kind, images * elements)?;
    let launch = Launch::each(elements.div_ceil(4))?;
    let launch = Launch {
        grid: [launch.grid[0], rows],
        ..launch
    };
    machine.launch(
        kernel!(kind, "dropout"),
        launch,
        arguments![
            x,
            machine.address(&y),
            machine.address(&counters),
            whole("elements of an image", elements)?,
            draws.key[0],
            draws.key[1],
            threshold(rate),
            (1.0 / (1.0 - rate)) as f32,
        ],
    )?;
    Ok(y)
}

/// k 2^-24 >= rate exactly where k is at least this: both sides are exact in double precision.
pub(crate) fn threshold(rate: f64) -> u32 {
    (rate * f64::from(1 << 24)).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, kept};
    use crate::cuda::oracle::{KINDS, wave};
    use ddpm_random::Stream;

    /// The mask as ddpm-unet draws it on the CPU.
    fn mask(seed: u64, image: u64, step: u64, elements: usize, rate: f64) -> Vec<bool> {
        let mut uniform = vec![0f32; elements];
        ddpm_random::uniform_into(seed, Stream::Dropout, image, step, &mut uniform).unwrap();
        uniform.into_iter().map(|u| f64::from(u) >= rate).collect()
    }

    #[test]
    fn masks_are_those_of_the_cpu() {
        for kind in KINDS {
            for elements in [1, 3, 4, 1021, 2000] {
                for rate in [0.0, 0.1, 0.3, 0.5, 0.999_999_9] {
                    check(kind, elements, rate);
                }
            }
        }
    }

    fn check(kind: Kind, elements: usize, rate: f64) {
        let (seed, step) = (0x0123_4567_89AB_CDEF, (1 << 40) + 77);
        let images = [0, 5, (1 << 43) + 12345];
        let mut x = kept(kind, &wave(images.len() * elements, 1));
        x[0] = f32::INFINITY;
        let of = |image| ddpm_random::philox_words(seed, Stream::Dropout, image, step).unwrap();
        let words = images.map(of);
        let draws = Draws {
            key: words[0].0,
            counters: words.map(|(_, counter)| counter).to_vec(),
        };
        let ran = Host::both_ways(|host| {
            let x = host.numbers(kind, &x);
            let y = dropout(host, kind, host.address(&x), elements, &draws, rate)?;
            Ok(vec![y.read()])
        });
        let Some(ran) = ran else { return };
        let masks = images
            .iter()
            .flat_map(|&image| mask(seed, image, step, elements, rate));
        let scale = (1.0 / (1.0 - rate)) as f32;
        let expected = x
            .iter()
            .zip(masks)
            .map(|(x, kept)| if kept { x * scale } else { 0.0 });
        let expected = kept(kind, &expected.collect::<Vec<_>>());
        assert_eq!(ran[0], expected, "{kind:?}, {elements}, {rate}");
    }

    /// A rate that is just one element's uniform keeps that element.
    #[test]
    fn a_uniform_equal_to_the_rate_is_kept() {
        let mut uniform = [0f32; 40];
        ddpm_random::uniform_into(3, Stream::Dropout, 5, 7, &mut uniform).unwrap();
        let words = ddpm_random::philox_words(3, Stream::Dropout, 5, 7).unwrap();
        let draws = Draws {
            key: words.0,
            counters: vec![words.1],
        };
        for (i, &rate) in uniform.iter().enumerate() {
            let ran = Host::both_ways(|host| {
                let x = host.floats(&[1.0; 40]);
                let rate = f64::from(rate);
                let y = dropout(host, Kind::F32, host.address(&x), 40, &draws, rate)?;
                Ok(vec![y.read()])
            });
            let Some(ran) = ran else { return };
            let kept = ran[0].iter().map(|&y| y > 0.0);
            assert!(kept.eq(uniform.iter().map(|&u| u >= rate)), "{i}, {rate}");
        }
    }

    #[test]
    fn thresholds_are_exact() {
        for rate in [0.0, 1e-9, 0.1, 0.25, 0.3, 1.0 / 3.0, 0.5, 1.0 - 1e-9] {
            let least = threshold(rate);
            let kept = |k: u32| f64::from(k as f32 * 2f32.powi(-24)) >= rate;
            assert!(least == 1 << 24 || kept(least), "{rate}");
            assert!(least == 0 || !kept(least - 1), "{rate}");
        }
    }
}
