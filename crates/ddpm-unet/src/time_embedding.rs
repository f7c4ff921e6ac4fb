//! How the network is told the time: by sinusoids in Ho's and OpenAI's conventions, by Fourier's of its logarithm, or by a
//! row of a table.
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
//!
//! Fourier's (Song et al. 2021) are sin(2π w_i ln t), then cos(2π w_i ln t), of C_0 random frequencies w.

use std::f32::consts::PI;

use candle_core::{Device, Tensor};

use crate::{Error, Result, UNetSettings};

/// Sines and cosines of times, as a network with this width of its first level is told them.
///
/// # Shapes
/// B times -> `[B, width]`
///
/// # Errors
/// A shift that is no whole number below half the width; a device that cannot hold them.
pub fn timestep_embedding(
    time: &[f64],
    width: usize,
    freq_shift: usize,
    flip_sin_to_cos: bool,
    device: &Device,
) -> Result<Tensor> {
    if freq_shift >= width / 2 {
        return Err(Error::Value {
            key: "freq_shift".to_owned(),
            value: freq_shift.to_string(),
            supported: format!("whole numbers below {}, half the width", width / 2),
        });
    }
    Sinusoids::of(width, freq_shift, flip_sin_to_cos).rows(time, device)
}

/// The frequencies of a network, ready to be applied to times.
#[derive(Debug, Clone)]
pub(crate) struct Sinusoids {
    width: usize,
    frequencies: Vec<f32>,
    cosines_first: bool,
}

impl Sinusoids {
    pub(crate) fn new(settings: &UNetSettings) -> Self {
        Self::of(
            settings
                .timestep_width
                .unwrap_or(settings.block_out_channels[0]),
            settings.freq_shift,
            settings.flip_sin_to_cos,
        )
    }

    fn of(width: usize, freq_shift: usize, cosines_first: bool) -> Self {
        let half = width / 2;
        let log_period = -(MAX_PERIOD.ln()) as f32;
        // Only networks that use them are checked for a shift that is small enough.
        let divisor = half.saturating_sub(freq_shift) as f32;
        let frequency = |i: usize| f64::from(log_period * i as f32 / divisor).exp() as f32;
        let frequencies = (0..half).map(frequency).collect();
        Self {
            width,
            frequencies,
            cosines_first,
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

/// Sines and cosines of the logarithms of times at frequencies `[C_0]`: `[B, 2 C_0]`.
pub(crate) fn fourier_rows(time: &[f64], frequencies: &Tensor) -> Result<Tensor> {
    if let Some(t) = time.iter().find(|&&t| t <= 0.0) {
        return Err(Error::Input {
            what: "the time",
            found: t.to_string(),
            expected: "a level of noise above 0: its logarithm is told (`time_embedding_type` is \"fourier\")".to_owned(),
        });
    }
    let w: Vec<f32> = frequencies.detach().to_vec1()?;
    let mut rows = Vec::with_capacity(2 * w.len() * time.len());
    for &t in time {
        let logarithm = f64::from(t as f32).ln() as f32;
        let angles = || w.iter().map(|w| f64::from(logarithm * w * 2.0 * PI));
        rows.extend(angles().map(|angle| angle.sin() as f32));
        rows.extend(angles().map(|angle| angle.cos() as f32));
    }
    Ok(Tensor::from_vec(
        rows,
        (time.len(), 2 * w.len()),
        frequencies.device(),
    )?)
}

/// Times as rows of a table of so many.
pub(crate) fn whole_times(time: &[f64], rows: usize) -> Result<Vec<usize>> {
    let whole = |&t: &f64| match t >= 0.0 && t.fract() == 0.0 && t < rows as f64 {
        true => Ok(t as usize),
        false => Err(Error::Input {
            what: "the time",
            found: t.to_string(),
            expected: format!(
                "a whole number below {rows}, as many as have vectors (`time_embedding_type` is \"learned\")"
            ),
        }),
    };
    time.iter().map(whole).collect()
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
        let row = Sinusoids::new(&settings).rows(&[t], &Device::Cpu).unwrap();
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
