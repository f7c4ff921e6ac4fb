//! The pictures of a report.

use candle_core::{Device, Tensor};
use ddpm_core::q_sample;
use ddpm_image::{Film, GRID_PADDING, Picture, Timing, captioned_grid, encode_gif, sheet};
use ddpm_random::sample_start;

use super::nearest::{Likeness, Pair, evenly, likeness, picture};
use super::{Evidence, PROGRAM, Samples, Walk};
use crate::Result;

/// Rows of a strip.
const ROWS: usize = 6;
/// Columns of a strip.
const MOMENTS: usize = 9;
/// Images of an animation.
const ANIMATED: usize = 16;

/// Training images dissolving: x_t of q(x_t | x_0) (equation 4), with the noise that the samples begin from, one for
/// each row.
pub(super) fn forward(evidence: &Evidence<'_>) -> Result<Picture> {
    let (data, objective) = (evidence.data, evidence.objective);
    let chosen = evenly(data.len(), ROWS);
    let map = evidence.pixels;
    let x_0 = data.tensor(&chosen, map, &Device::Cpu)?;
    let shape = (data.channels(), data.height(), data.width());
    let seed = evidence.settings.samples.seed;
    let eps = sample_start(seed, 0, chosen.len(), shape, &Device::Cpu)?;
    let steps = objective.schedule.steps();
    let mut film = Film::new(steps, MOMENTS);
    for moment in film.kept().to_vec() {
        let x_t: Tensor = match moment {
            0 => x_0.clone(),
            t => {
                let t = vec![objective.schedule.timestep(t)?; chosen.len()];
                q_sample(&objective.schedule, &x_0, &t, &eps)?
            }
        };
        film.show(moment, moment, &x_t, map)?;
    }
    Ok(film.strip(ROWS, MOMENTS)?)
}

/// What the samples give: the way to them, the real images beside them, the nearest of these.
pub(super) fn walk(evidence: &Evidence<'_>, samples: &Samples) -> Result<Walk> {
    let data = evidence.data;
    let frames = samples.film.frames(ANIMATED)?;
    let timing = Timing::of(frames.len());
    let real = evenly(data.len(), samples.pictures.len());
    let real = real.iter().map(|index| picture(data, *index));
    let real = real.collect::<ddpm_image::Result<Vec<_>>>()?;
    Ok(Walk {
        reverse: samples.film.strip(ROWS, MOMENTS)?,
        animation: encode_gif(&frames, timing, &[("Software", PROGRAM.to_owned())])?,
        samples: sheet(&samples.pictures)?,
        real: sheet(&real)?,
        likeness: likeness(
            &samples.pictures,
            &evidence.held_out,
            data,
            evidence.settings.data.flip,
        )?,
    })
}

/// A sample and its nearest training image.
pub(super) fn pair(pair: &Pair) -> Result<Picture> {
    Ok(sheet(&[pair.sample.clone(), pair.image.clone()])?)
}

/// All pairs with their distances, nearest first.
pub(super) fn pairs(likeness: &Likeness) -> Result<Picture> {
    let pictures = likeness
        .pairs
        .iter()
        .map(pair)
        .collect::<Result<Vec<_>>>()?;
    let captions: Vec<String> = likeness
        .pairs
        .iter()
        .map(|pair| format!("{:.1}", pair.neighbour.distance))
        .collect();
    let columns = pictures.len().isqrt().max(1);
    let width = pictures.first().map_or(1, Picture::width) + GRID_PADDING;
    Ok(captioned_grid(
        &pictures,
        &captions,
        columns.min((1200 / width).max(1)),
    )?)
}
