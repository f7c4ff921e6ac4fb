//! The sinusoids by which the network is told the time, in Ho's and OpenAI's conventions.
//!
//! With half = C_0 / 2 and the frequencies ω_i = 10000^(-i / (half - freq_shift)), a time t becomes
//!
//! | `flip_sin_to_cos` | embedding | who |
//! |---|---|---|
//! | false | sin(ω_0 t) .. sin(ω_(half-1) t), cos(ω_0 t) .. cos(ω_(half-1) t) | Ho et al., with `freq_shift` 1 |
//! | true | cos(ω_0 t) .. cos(ω_(half-1) t), sin(ω_0 t) .. sin(ω_(half-1) t) | OpenAI, with `freq_shift` 0 |
//!
//! and a zero at the end if C_0 is odd. The frequencies and angles are rounded to f32 at the places where diffusers
//! rounds them, because an angle of 999 rounded elsewhere would be another angle.

use candle_core::{Device, Tensor};

use crate::{Result, UNetSettings};

/// The frequencies of a network, ready to be applied to times.
#[derive(Debug, Clone)]
pub(crate) struct TimeEmbedding {
    width: usize,
    frequencies: Vec<f32>,
    cosines_first: bool,
}

impl TimeEmbedding {
    pub(crate) fn new(settings: &UNetSettings) -> Self {
        let width = settings.block_out_channels[0];
        let half = width / 2;
        let log_period = -(MAX_PERIOD.ln()) as f32;
        let divisor = (half - settings.freq_shift) as f32;
        let frequency = |i: usize| f64::from(log_period * i as f32 / divisor).exp() as f32;
        let frequencies = (0..half).map(frequency).collect();
        Self {
            width,
            frequencies,
            cosines_first: settings.flip_sin_to_cos,
        }
    }

    /// One row a time: `[B, C_0]`.
    pub(crate) fn rows(&self, time: &[f64], device: &Device) -> Result<Tensor> {
        let mut rows = Vec::with_capacity(time.len() * self.width);
        for &t in time {
            let angles = || {
                self.frequencies
                    .iter()
                    .map(|frequency| f64::from(t as f32 * frequency))
            };
            let (sines, cosines) = (angles().map(f64::sin), angles().map(f64::cos));
            if self.cosines_first {
                rows.extend(cosines.chain(sines).map(|x| x as f32));
            } else {
                rows.extend(sines.chain(cosines).map(|x| x as f32));
            }
            rows.extend((2 * self.frequencies.len()..self.width).map(|_| 0f32));
        }
        Ok(Tensor::from_vec(rows, (time.len(), self.width), device)?)
    }
}

/// The longest period, in steps and in units of 2π.
const MAX_PERIOD: f64 = 10_000.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// What `diffusers.models.embeddings.get_timestep_embedding(torch.tensor([t]), 7 or 6, flip, shift)` prints.
    #[track_caller]
    fn check(width: usize, flip_sin_to_cos: bool, freq_shift: usize, t: f64, expected: &[f32]) {
        let settings = UNetSettings {
            block_out_channels: vec![width],
            flip_sin_to_cos,
            freq_shift,
            ..UNetSettings::ho()
        };
        let row = TimeEmbedding::new(&settings)
            .rows(&[t], &Device::Cpu)
            .unwrap();
        let row = row.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(row.len(), expected.len());
        for (value, expected) in row.iter().zip(expected) {
            assert!((value - expected).abs() <= 1e-6, "{row:?}");
        }
    }

    #[test]
    fn ho_puts_sines_first_and_spans_the_whole_period() {
        check(
            6,
            false,
            1,
            999.0,
            &[
                -0.026460752,
                -0.53560317,
                0.09973391,
                0.9996498,
                -0.8444698,
                0.99501413,
            ],
        );
    }

    #[test]
    fn openai_puts_cosines_first() {
        check(
            6,
            true,
            0,
            999.0,
            &[
                0.9996498,
                -0.72867334,
                -0.54926467,
                -0.026460752,
                0.6848614,
                0.8356485,
            ],
        );
    }

    #[test]
    fn the_third_convention_has_sines_first_without_a_shift() {
        check(
            6,
            false,
            0,
            37.0,
            &[
                -0.6435381,
                0.9892747,
                0.0796297,
                0.76541406,
                -0.14606725,
                0.9968245,
            ],
        );
    }

    #[test]
    fn an_odd_width_ends_in_a_zero() {
        check(
            7,
            true,
            1,
            500.0,
            &[
                -0.88384926,
                0.2836622,
                0.99875027,
                -0.4677718,
                -0.9589243,
                0.04997916,
                0.0,
            ],
        );
    }

    #[test]
    fn times_may_be_fractions() {
        check(
            4,
            false,
            0,
            12.25,
            &[-0.31111935, 0.12219385, 0.95037085, 0.99250627],
        );
    }
}
