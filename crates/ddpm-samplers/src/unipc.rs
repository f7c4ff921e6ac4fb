//! UniPC: a predictor, and a corrector that asks the network no more often (Zhao et al. 2023).

use crate::error::require;
use crate::level::Level;
use crate::{Levels, Result, Walk};
use candle_core::Tensor;
use ddpm_core::Denoiser;

/// The settings of a UniPC walk, as diffusers' `UniPCMultistepScheduler` has them.
#[derive(Clone, Debug, PartialEq)]
pub struct UniPcSettings {
    /// `solver_order`, at least 1: how many answers of the network a step uses; the first steps have fewer.
    pub order: usize,
    /// `solver_type`.
    pub kind: UniPcKind,
    /// `predict_x0`: the equation in x_0, or the one in the noise, which cannot end at the clean image.
    pub in_x_0: bool,
    /// `lower_order_final`: the last steps have no higher order than there are steps left. A step to the clean image always has order 1.
    pub lower_order_final: bool,
    /// `disable_corrector`: the steps, counted from 0, whose result is not corrected.
    pub without_corrector: Vec<usize>,
}

/// B(h) of Zhao et al. 2023, section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UniPcKind {
    /// `bh1`: B(h) = h.
    Bh1,
    /// `bh2`: B(h) = e^h - 1.
    Bh2,
}

impl Default for UniPcSettings {
    /// diffusers' defaults: order 2, `bh2`, in x_0, lower order at the end.
    fn default() -> Self {
        UniPcSettings {
            order: 2,
            kind: UniPcKind::Bh2,
            in_x_0: true,
            lower_order_final: true,
            without_corrector: Vec::new(),
        }
    }
}

/// Walks down the levels by UniPC (Zhao et al. 2023, algorithms 5 to 8): diffusers' `UniPCMultistepScheduler`.
///
/// The answer of the network at a level first corrects the step that led there, then predicts the next. Draws no noise. When a setting
/// is impossible for these levels, the first step says so.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn unipc<'a>(
    levels: &'a Levels,
    settings: UniPcSettings,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
) -> Walk<'a> {
    let check = settings.check(levels);
    let mut before: Option<(Tensor, usize)> = None;
    let mut latest: Vec<Tensor> = Vec::new();
    let walk = levels.walk(denoiser, x_t_last, move |x, guess, i| {
        let answer = match settings.in_x_0 {
            true => &guess.x_0_hat,
            false => &guess.eps_hat,
        };
        let x = match before.take() {
            Some((x_before, order)) if !settings.without_corrector.contains(&(i - 1)) => {
                let step = Difference::new(&settings, levels, i - 1, order);
                step.corrected(&x_before, &latest, answer)?
            }
            _ => x.clone(),
        };
        latest.insert(0, answer.detach());
        latest.truncate(settings.order);
        let order = settings.order_at(levels, i).min(latest.len());
        let step = Difference::new(&settings, levels, i, order);
        let moved = step.predicted(&x, &latest)?;
        before = Some((x.detach(), order));
        Ok(moved)
    });
    walk.provided(check)
}

impl UniPcSettings {
    fn order_at(&self, levels: &Levels, i: usize) -> usize {
        let left = levels.steps() - i;
        match self.lower_order_final {
            true => self.order.min(left),
            false if left == 1 && levels.level(i + 1).is_clean() => 1,
            false => self.order,
        }
    }

    fn check(&self, levels: &Levels) -> Result<()> {
        require(self.order > 0, "the order of UniPC", 0.0, "at least 1")?;
        require(
            self.in_x_0 || !levels.level(levels.steps()).is_clean(),
            "sigma at the end of UniPC's walk in the noise",
            0.0,
            "a number above 0: with `predict_x0` false it ends at `sigma_min`",
        )
    }
}

/// One step from a level to the next with the differences of the latest answers.
struct Difference {
    /// What of x is left, and what of the newest answer is added.
    of_x: f64,
    of_answer: f64,
    /// What stands before the differences.
    scale: f64,
    /// r_k of Zhao et al. 2023: where the older answers lie, in steps.
    places: Vec<f64>,
    /// The right side of equation 11 there.
    right: Vec<f64>,
    /// The step in lambda.
    h: f64,
}

impl Difference {
    fn new(settings: &UniPcSettings, levels: &Levels, i: usize, order: usize) -> Self {
        let (from, to): (Level, Level) = levels.step(i);
        let h = to.lambda() - from.lambda();
        let length = if settings.in_x_0 { -h } else { h };
        let (of_x, scale) = match settings.in_x_0 {
            true => (to.noise / from.noise, to.signal),
            false => (to.signal / from.signal, to.noise),
        };
        let phi_1 = length.exp_m1();
        let size = match settings.kind {
            UniPcKind::Bh1 => length,
            UniPcKind::Bh2 => phi_1,
        };
        let place = |k: usize| (levels.level(i - k).lambda() - from.lambda()) / h;
        // phi_{k+1}(h) h k! / B(h) for k = 1, 2, ...
        let mut phi = phi_1 / length - 1.0;
        let mut factorial = 1.0;
        let mut right = Vec::new();
        for k in 1..=order {
            right.push(phi * factorial / size);
            factorial *= k as f64 + 1.0;
            phi = phi / length - 1.0 / factorial;
        }
        Difference {
            of_x,
            of_answer: -scale * phi_1,
            scale: -scale * size,
            places: (1..order).map(place).collect(),
            right,
            h,
        }
    }

    /// Algorithm 6 of Zhao et al. 2023: to the next level with the answers known.
    fn predicted(&self, x: &Tensor, answers: &[Tensor]) -> Result<Tensor> {
        let weights = match self.places.len() {
            0 => Vec::new(),
            // The degenerate case in which B(h) leaves the weight free (appendix D.1 there).
            1 => vec![0.5],
            n => solve(&self.places, self.right.get(..n).unwrap_or_default()),
        };
        self.moved(x, answers, &weights, None)
    }

    /// Algorithm 5 there: the same step done again with the answer at its end.
    fn corrected(&self, x: &Tensor, answers: &[Tensor], there: &Tensor) -> Result<Tensor> {
        let mut places = self.places.clone();
        places.push(1.0);
        let mut weights = match places.len() {
            1 => vec![0.5],
            _ => solve(&places, &self.right),
        };
        let last = weights.pop().unwrap_or(0.0);
        self.moved(x, answers, &weights, Some((there, last)))
    }

    fn moved(
        &self,
        x: &Tensor,
        answers: &[Tensor],
        weights: &[f64],
        there: Option<(&Tensor, f64)>,
    ) -> Result<Tensor> {
        let Some((newest, older)) = answers.split_first().filter(|_| self.h != 0.0) else {
            // Levels that are the same leave the images as they are.
            return Ok(x.clone());
        };
        let mut moved = ((x * self.of_x)? + (newest * self.of_answer)?)?;
        for ((answer, weight), place) in older.iter().zip(weights).zip(&self.places) {
            moved = (moved + ((answer - newest)? * (self.scale * weight / place))?)?;
        }
        match there {
            Some((answer, weight)) => Ok((moved + ((answer - newest)? * (self.scale * weight))?)?),
            None => Ok(moved),
        }
    }
}

/// The weights w with sum_k w_k places_k^n = right_n for n = 0, 1, ...: equation 11 of Zhao et al. 2023, by Gauss' elimination.
fn solve(places: &[f64], right: &[f64]) -> Vec<f64> {
    let n = places.len();
    let power = |n: usize, place: &f64| place.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut rows: Vec<Vec<f64>> = right
        .iter()
        .take(n)
        .enumerate()
        .map(|(row, right)| {
            let powers = places.iter().map(|place| power(row, place));
            powers.chain([*right]).collect()
        })
        .collect();
    for pivot in 0..n {
        let size = |row: &usize| {
            rows.get(*row)
                .and_then(|r| r.get(pivot))
                .map_or(0.0, |v| v.abs())
        };
        let best = (pivot..n).max_by(|a, b| size(a).total_cmp(&size(b)));
        rows.swap(pivot, best.unwrap_or(pivot));
        let (above, below) = rows.split_at_mut(pivot + 1);
        let Some(row) = above.last() else { break };
        for other in below {
            let factor = other[pivot] / row[pivot];
            other
                .iter_mut()
                .zip(row)
                .for_each(|(o, r)| *o -= factor * r);
        }
    }
    let mut weights = vec![0.0; n];
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| rows[row][k] * weights[k]).sum();
        weights[row] = (rows[row][n] - known) / rows[row][row];
    }
    weights
}
