//! PNDM: pseudo numerical methods, whose steps keep to the manifold of the data (Liu et al. 2022).

use crate::level::{Level, along};
use crate::levels::check_times;
use crate::meaning::Meaning;
use crate::walk::Moved;
use crate::{Clip, Error, Manner, Process, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Prediction, Schedule};

/// Where a PNDM walk asks the network, and where each answer takes the images: diffusers' `PNDMScheduler`.
///
/// With the first steps by Runge and Kutta's method (pseudo RK4, equation 13 of Liu et al. 2022) three steps take twelve answers; without
/// them (`skip_prk_steps`) the first step is done twice, the second time with the mean of both its ends. All others take one, by
/// Adams and Bashforth's method of order four (equation 12 there).
#[derive(Clone, Debug, PartialEq)]
pub struct PndmPlan {
    asks: Vec<Ask>,
    prediction: Prediction,
    clip: Clip,
    manner: Manner,
}

/// One question to the network.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ask {
    /// What the network is told.
    time: f64,
    /// The level of the images that it sees.
    at: Level,
    /// The images that are moved: those of this level.
    from: Level,
    /// Where they go.
    to: Level,
    rule: Rule,
}

/// What is made of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// The stage 0..4 of a pseudo Runge-Kutta step.
    Stage(usize),
    /// The first of two attempts at a first step.
    Attempt,
    /// The second, from the same images.
    Again,
    /// A linear multistep with the latest answers.
    Multistep,
}

impl PndmPlan {
    /// The plan of a walk over these network times of `training.schedule`, falling; it ends at `alpha_bar_end`.
    ///
    /// # Errors
    /// When the times do not fall or lie beyond the schedule, and when there are fewer than four of them for steps by Runge and Kutta's
    /// method, or none without.
    pub fn new(
        training: &Process,
        times: &[usize],
        skip_prk_steps: bool,
        alpha_bar_end: f64,
        manner: Manner,
    ) -> Result<Self> {
        let of = training.schedule.steps();
        let whole: Vec<f64> = times.iter().map(|&t| t as f64).collect();
        check_times(&whole, of)?;
        let least = if skip_prk_steps { 1 } else { 4 };
        if times.len() < least {
            return Err(Error::StepCountOfPndm {
                asked: times.len(),
                least,
            });
        }
        let ladder = Ladder {
            schedule: &training.schedule,
            times,
            stride: of / times.len(),
            end: level(alpha_bar_end),
            manner,
        };
        let (mut asks, done) = match (skip_prk_steps, times.len()) {
            (true, 1) => (Vec::new(), 0),
            (true, _) => (ladder.two_attempts(), 1),
            (false, _) => (ladder.runge_kutta(), 3),
        };
        asks.extend((done..times.len()).map(|k| ladder.multistep(k)));
        Ok(PndmPlan {
            asks,
            prediction: training.prediction,
            clip: training.clip.clone(),
            manner,
        })
    }

    /// The number of answers that a walk takes.
    pub fn steps(&self) -> usize {
        self.asks.len()
    }

    /// What the network is told, in order.
    pub fn times(&self) -> Vec<f64> {
        self.asks.iter().map(|ask| ask.time).collect()
    }
}

/// Walks from x_T to x_0 by PNDM (Liu et al. 2022, algorithm 2): diffusers' `PNDMScheduler`. Each step takes one answer. Draws no noise.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn pndm<'a>(plan: &'a PndmPlan, denoiser: &'a dyn Denoiser, x_t_last: &Tensor) -> Walk<'a> {
    let n = plan.steps();
    let steps = plan.asks.iter().enumerate().map(|(i, a)| (n - i, a.time));
    let mut memory = Memory {
        latest: Vec::new(),
        sum: None,
        kept: x_t_last.detach(),
    };
    Walk::over(steps.collect(), x_t_last, move |x, left| {
        let Some(ask) = plan.asks.get(n - left) else {
            return Err(Error::StepCountOfPndm { asked: 0, least: 2 });
        };
        let meaning = Meaning::Prediction(plan.prediction);
        let guess = meaning.guess(&plan.clip, denoiser, x, (ask.at, ask.to), ask.time)?;
        // diffusers mixes answers as they come and reads the mixture as noise at the level of the images that are moved.
        let mixed_raw = plan.manner == Manner::Diffusers;
        let answer = match mixed_raw {
            true => guess.output.detach(),
            false => guess.eps_hat.detach(),
        };
        let (images, mixed) = memory.mixed(ask.rule, x, answer)?;
        let words = plan
            .prediction
            .eps_weights((ask.from.signal, ask.from.noise));
        let eps = match words.filter(|_| mixed_raw) {
            Some((of_x, of_output)) => ((&images * of_x)? + (mixed * of_output)?)?,
            None => mixed,
        };
        let by = ask.to.sigma() - ask.from.sigma();
        Ok(Moved {
            x: along(&images, &eps, (ask.from, ask.to), by)?,
            x_0_hat: guess.x_0_hat,
        })
    })
}

/// What a walk remembers.
struct Memory {
    /// The latest answers at the levels of the walk, the newest first.
    latest: Vec<Tensor>,
    /// The stages of the Runge-Kutta step so far, weighed.
    sum: Option<Tensor>,
    /// The images at the beginning of a step that takes several answers.
    kept: Tensor,
}

impl Memory {
    /// The images to move and the answer to move them by.
    fn mixed(&mut self, rule: Rule, x: &Tensor, answer: Tensor) -> Result<(Tensor, Tensor)> {
        match rule {
            Rule::Stage(stage) => {
                if stage == 0 {
                    self.kept = x.detach();
                    self.latest.insert(0, answer.clone());
                }
                let weight = if stage == 0 || stage == 3 { 6.0 } else { 3.0 };
                let share = (&answer / weight)?;
                let sum = match self.sum.take() {
                    Some(sum) => (sum + share)?,
                    None => share,
                };
                if stage == 3 {
                    return Ok((self.kept.clone(), sum));
                }
                self.sum = Some(sum);
                Ok((self.kept.clone(), answer))
            }
            Rule::Attempt => {
                self.kept = x.detach();
                self.latest.insert(0, answer.clone());
                Ok((x.clone(), answer))
            }
            Rule::Again => {
                let mean = match self.latest.first() {
                    Some(first) => ((first + answer)? * 0.5)?,
                    None => answer,
                };
                Ok((self.kept.clone(), mean))
            }
            Rule::Multistep => {
                self.latest.insert(0, answer);
                self.latest.truncate(4);
                Ok((x.clone(), adams_bashforth(&self.latest)?))
            }
        }
    }
}

/// The mean of the latest answers over the next step of equal size (equation 12 of Liu et al. 2022; lower orders for fewer answers).
fn adams_bashforth(latest: &[Tensor]) -> Result<Tensor> {
    let weights: &[f64] = match latest.len() {
        1 => &[1.0],
        2 => &[3.0 / 2.0, -1.0 / 2.0],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    };
    let mut sum: Option<Tensor> = None;
    for (answer, &weight) in latest.iter().zip(weights) {
        let term = (answer * weight)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    sum.ok_or(Error::StepCountOfPndm { asked: 0, least: 2 })
}

/// The levels of a walk among those of training.
struct Ladder<'a> {
    schedule: &'a Schedule,
    /// Falling.
    times: &'a [usize],
    /// floor(T / the number of times).
    stride: usize,
    end: Level,
    manner: Manner,
}

impl Ladder<'_> {
    /// The level of a time; that of times before 0 is the end of the walk.
    fn level(&self, time: Option<usize>) -> Level {
        let t = time.and_then(|time| self.schedule.timestep_at_network_time(time));
        t.map_or(self.end, |t| level(self.schedule.alpha_bar(t)))
    }

    fn time(&self, k: usize) -> usize {
        self.times.get(k).copied().unwrap_or(0)
    }

    /// The time that the step from time k lands on: the next of the walk, or a stride below as diffusers has it.
    fn landing(&self, k: usize) -> Option<usize> {
        match self.manner {
            Manner::Paper => self.times.get(k + 1).copied(),
            Manner::Diffusers => self.time(k).checked_sub(self.stride),
        }
    }

    fn multistep(&self, k: usize) -> Ask {
        let from = self.level(Some(self.time(k)));
        Ask {
            time: self.time(k) as f64,
            at: from,
            from,
            to: self.level(self.landing(k)),
            rule: Rule::Multistep,
        }
    }

    fn two_attempts(&self) -> Vec<Ask> {
        let (first, second) = (self.time(0), self.time(1));
        let from = self.level(Some(first));
        let there = self.level(self.landing(0));
        let attempt = Ask {
            time: first as f64,
            at: from,
            from,
            to: there,
            rule: Rule::Attempt,
        };
        // diffusers moves from a stride above the second time to it.
        let (from, to) = match self.manner {
            Manner::Paper => (from, there),
            Manner::Diffusers => (
                self.level(Some(second + self.stride)),
                self.level(Some(second)),
            ),
        };
        let again = Ask {
            time: second as f64,
            at: there,
            from,
            to,
            rule: Rule::Again,
        };
        vec![attempt, again]
    }

    /// Three steps of four stages: at the beginning, twice in the middle, at the end.
    fn runge_kutta(&self) -> Vec<Ask> {
        let half = self.stride / 2;
        let mut asks = Vec::new();
        for k in 0..3 {
            let (start, end) = (self.time(k), self.time(k + 1));
            let middle = match self.manner {
                Manner::Paper => end + (start - end) / 2,
                Manner::Diffusers => end + half,
            };
            let near = match self.manner {
                Manner::Paper => middle,
                Manner::Diffusers => start.saturating_sub(half),
            };
            let far = match self.manner {
                Manner::Paper => end,
                Manner::Diffusers => middle - half,
            };
            let landings = [near, middle, far, end];
            let mut at = self.level(Some(start));
            for (stage, time) in [start, middle, middle, end].into_iter().enumerate() {
                let to = self.level(landings.get(stage).copied());
                asks.push(Ask {
                    time: time as f64,
                    at,
                    from: self.level(Some(start)),
                    to,
                    rule: Rule::Stage(stage),
                });
                at = to;
            }
        }
        asks
    }
}

/// The level of this alpha-bar; where there is no signal at all, as little as diffusers' solvers take for it.
fn level(alpha_bar: f64) -> Level {
    const LEAST: f64 = 1.0 / 16_777_216.0;
    let alpha_bar = if alpha_bar == 0.0 { LEAST } else { alpha_bar };
    Level {
        signal: alpha_bar.sqrt(),
        noise: (1.0 - alpha_bar).sqrt(),
    }
}
