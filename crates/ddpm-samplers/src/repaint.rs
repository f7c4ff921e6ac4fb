//! RePaint: the unknown part of an image, painted to fit the known one by going back and forth (Lugmayr et al. 2022).

use crate::ddim::{check_eta, towards};
use crate::error::require;
use crate::levels::check_steps;
use crate::walk::{Moved, Noise};
use crate::{Manner, Process, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource, Timestep, q_sample};

/// The settings of a RePaint walk, as diffusers' `RePaintScheduler` and its pipeline have them.
#[derive(Clone, Debug)]
pub struct RePaintSettings {
    /// The image whose known part is kept: `[B, C, H, W]` or of a shape that can be repeated to it.
    pub image: Tensor,
    /// 1 where the image is known, 0 where it is to be painted; as above.
    pub known: Tensor,
    /// How much of the ancestral noise is drawn, in 0..=1: `eta`.
    pub eta: f64,
    /// How many steps a jump goes back: `jump_length`, 10 in diffusers.
    pub jump_length: usize,
    /// How often each stretch of that length is walked: `jump_n_sample`, 10 in diffusers.
    pub jump_count: usize,
}

impl RePaintSettings {
    /// The moves of a walk in so many steps: those down, each of which asks the network, and those back up.
    pub fn moves(&self, steps: usize) -> usize {
        self.path(steps).len()
    }

    /// How many draws of noise a walk in `steps` of the `of` steps of training must be handed.
    pub fn draws(&self, steps: usize, of: usize) -> usize {
        let path = self.path(steps);
        let up = path.windows(2).filter(|pair| pair[0] < pair[1]).count();
        path.len() - up + up * (of / steps.max(1))
    }

    fn path(&self, steps: usize) -> Vec<usize> {
        path(steps, self.jump_length.max(1), self.jump_count)
    }
}

/// Walks from x_T to x_0 by RePaint (Lugmayr et al. 2022, algorithm 1) in `steps` steps of the process, whose schedule is the full one.
///
/// A step forward asks the network and draws noise once; a step back up draws noise for each step of training in it.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn repaint<'a>(
    process: &'a Process,
    steps: usize,
    settings: RePaintSettings,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let schedule = &process.schedule;
    let check = check(&settings, steps, schedule.steps());
    let stride = schedule.steps() / steps.max(1);
    let path = settings.path(steps);
    let n = path.len();
    let times = path.iter().enumerate();
    let times = times.map(|(k, place)| (n - k, (place * stride) as f64));
    let mut noise = Noise::new(noise, Manner::Diffusers);
    let walk = Walk::over(times.collect(), x_t_last, move |x, left| {
        let k = n - left;
        let place = path.get(k).copied().unwrap_or(0);
        let before = k.checked_sub(1).and_then(|k| path.get(k)).copied();
        match before.filter(|before| *before < place) {
            Some(before) => back_up(process, x, before * stride, stride, &mut noise),
            None => {
                let t = schedule.timestep(place * stride + 1)?;
                paint(process, &settings, stride, (denoiser, x, t), &mut noise)
            }
        }
    });
    walk.provided(check)
}

/// The places of the walk, each a multiple of the stride: down, and `count` - 1 times back up from every multiple of `length`.
fn path(steps: usize, length: usize, count: usize) -> Vec<usize> {
    let last = steps.saturating_sub(length);
    let mut jumps: Vec<usize> = (0..steps)
        .map(|place| match place % length == 0 && place < last {
            true => count.saturating_sub(1),
            false => 0,
        })
        .collect();
    let (mut path, mut place) = (Vec::new(), steps);
    while place > 0 {
        place -= 1;
        path.push(place);
        if let Some(left) = jumps.get_mut(place).filter(|left| **left > 0) {
            *left -= 1;
            path.extend(place + 1..=place + length);
            place += length;
        }
    }
    path
}

/// One step down: the unknown part by DDIM, the known part by adding noise to the image.
fn paint(
    process: &Process,
    settings: &RePaintSettings,
    stride: usize,
    (denoiser, x, t): (&dyn Denoiser, &Tensor, Timestep),
    noise: &mut Noise,
) -> Result<Moved> {
    let schedule = &process.schedule;
    let answer = process.ask(denoiser, x, t)?;
    let x_0_hat = process.x_0_hat(x, &answer)?;
    let eps = process.eps_hat(x, &answer)?;
    let landing = t.get().checked_sub(stride).filter(|t| *t > 0);
    let landing = landing.map(|t| schedule.timestep(t)).transpose()?;
    let (before, after) = (
        schedule.alpha_bar(t),
        landing.map_or(1.0, |t| schedule.alpha_bar(t)),
    );
    let share = (1.0 - after) / (1.0 - before) * (1.0 - before / after);
    let variance = settings.eta.powi(2) * share;
    let z = noise.draw(x)?;
    let mut unknown = towards(after, variance, &x_0_hat, &eps)?;
    if t.previous().is_some() && variance > 0.0 {
        unknown = (unknown + (&z * variance.sqrt())?)?;
    }
    let image = settings.image.broadcast_as(x.shape())?;
    let known = match landing {
        Some(landing) => {
            let t = vec![landing; answer.t.len()];
            q_sample(schedule, &image.contiguous()?, &t, &z)?
        }
        None => image.contiguous()?,
    };
    let mask = settings.known.broadcast_as(x.shape())?;
    let unknown = (unknown * mask.affine(-1.0, 1.0)?)?;
    Ok(Moved {
        x: ((known * mask)? + unknown)?,
        x_0_hat,
    })
}

/// From time `from` back up by `stride` steps of training: equation 2 of Ho et al. 2020, once for each.
fn back_up(
    process: &Process,
    x: &Tensor,
    from: usize,
    stride: usize,
    noise: &mut Noise,
) -> Result<Moved> {
    let mut x = x.clone();
    for time in from..from + stride {
        let beta = process.schedule.beta(process.schedule.timestep(time + 1)?);
        let z = noise.draw(&x)?;
        x = ((x * (1.0 - beta).sqrt())? + (z * beta.sqrt())?)?;
    }
    Ok(Moved {
        x_0_hat: x.clone(),
        x,
    })
}

fn check(settings: &RePaintSettings, steps: usize, of: usize) -> Result<()> {
    check_steps(of, steps, of)?;
    check_eta(settings.eta)?;
    require(
        settings.jump_length > 0 && settings.jump_count > 0,
        "the length or the count of jumps",
        0.0,
        "at least 1",
    )
}
