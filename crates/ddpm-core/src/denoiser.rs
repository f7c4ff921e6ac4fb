//! What a walk from noise to image is handed: a network, and noise.

use crate::Result;
use candle_core::Tensor;

/// A network that looks at x_t and says what it was trained to say: noise, x_0, v or a posterior mean.
///
/// Any `Fn(&Tensor, &[f64]) -> Result<Tensor>` is one.
pub trait Denoiser {
    /// The output of the network.
    ///
    /// # Shapes
    /// `x_t`: `[B, C, H, W]`; `time`: the [network time](crate::Schedule::network_time) of each of the B images,
    /// `0..=T-1` of the schedule of training. Returns `[B, C, H, W]`.
    ///
    /// # Errors
    /// Whatever fails inside, as [`Error::Denoiser`](crate::Error::Denoiser).
    fn predict(&self, x_t: &Tensor, time: &[f64]) -> Result<Tensor>;
}

impl<F> Denoiser for F
where
    F: Fn(&Tensor, &[f64]) -> Result<Tensor>,
{
    fn predict(&self, x_t: &Tensor, time: &[f64]) -> Result<Tensor> {
        self(x_t, time)
    }
}

/// Where the standard normal noise of a random walk comes from; this crate never draws any.
///
/// x_T, where a walk starts, is handed to the walk and not drawn here.
pub trait NoiseSource {
    /// Standard normal noise of the shape, type and device of `like`; `draw` is how many draws came before in this walk.
    ///
    /// # Errors
    /// Whatever fails inside, as [`Error::Noise`](crate::Error::Noise).
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor>;

    /// A draw that is made and not used: of no account where draws have addresses, but a generator of a sequence is to move on.
    ///
    /// # Errors
    /// As [`NoiseSource::draw`].
    fn skip(&mut self, draw: usize, like: &Tensor) -> Result<()> {
        let _ = (draw, like);
        Ok(())
    }
}

/// The noise of a closure. A draw that is passed over does not reach it.
impl<F> NoiseSource for F
where
    F: FnMut(usize, &Tensor) -> Result<Tensor>,
{
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
        self(draw, like)
    }
}
