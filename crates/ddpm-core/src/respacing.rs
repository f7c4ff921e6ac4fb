//! Respacing: fewer steps of the same process, with the same alpha-bar at every step that is kept.

use crate::{Error, Result, Schedule, Timestep};
use std::collections::BTreeSet;

/// How to choose n of T steps (Lin et al. 2023, table 2), as in diffusers' `timestep_spacing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Network times 0, k, 2k, ... with k = floor(T/n), plus `offset`: never reaches T, kept for foreign checkpoints.
    Leading {
        /// Added to every network time; diffusers' `steps_offset`.
        offset: usize,
    },
    /// Network times evenly from 0 to T - 1, both included, rounded. (One step alone is network time 0.)
    Linspace,
    /// Network times T - 1, T - 1 - T/n, ..., rounded: starts at T, where x_T is what sampling starts from.
    Trailing,
}

impl Schedule {
    /// `steps` of this schedule's steps, chosen by `spacing`.
    ///
    /// # Errors
    /// When `steps` is 0 or more than there are; when an offset runs over the end.
    pub fn respaced(&self, spacing: Spacing, steps: usize) -> Result<Self> {
        if !(1..=self.steps()).contains(&steps) {
            return Err(Error::StepCount {
                asked: steps,
                steps: self.steps(),
            });
        }
        let times: BTreeSet<usize> = match spacing {
            Spacing::Leading { offset } => leading(self.steps(), steps, offset)?,
            Spacing::Linspace => linspace(self.steps(), steps),
            Spacing::Trailing => trailing(self.steps(), steps),
        };
        self.keeping_times(times)
    }

    /// Exactly the steps `kept`, in any order.
    ///
    /// # Errors
    /// When there is none, one lies beyond this schedule, or one is listed twice.
    pub fn respaced_at(&self, kept: &[Timestep]) -> Result<Self> {
        let mut sorted = kept.to_vec();
        sorted.sort();
        if sorted.is_empty() {
            return Err(Error::StepCount {
                asked: 0,
                steps: self.steps(),
            });
        }
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::RepeatedTimestep { t: pair[0].get() }),
            None => self.keeping(&sorted),
        }
    }

    /// guided-diffusion's `timestep_respacing`: `"250"` is 250 steps evenly with both ends, `"10,15,20"` divides the
    /// schedule into three sections with so many steps each, `"ddim50"` takes every k-th step for the smallest k that
    /// gives exactly 50.
    ///
    /// # Errors
    /// When the text is none of these, a section is asked for more steps than it has, or no stride fits.
    pub fn respaced_by_text(&self, text: &str) -> Result<Self> {
        let unreadable = || Error::RespacingText {
            text: text.to_owned(),
        };
        let number = |word: &str| word.trim().parse::<usize>().map_err(|_| unreadable());
        let times = match text.trim().strip_prefix("ddim") {
            Some(count) => strided(self.steps(), number(count)?)?,
            None => {
                let counts = text.split(',').map(number).collect::<Result<Vec<_>>>()?;
                sections(self.steps(), &counts, text)?
            }
        };
        match times.is_empty() {
            true => Err(Error::StepCount {
                asked: 0,
                steps: self.steps(),
            }),
            false => self.keeping_times(times),
        }
    }

    /// Keeps the steps at these times, counted from 0 on this schedule.
    fn keeping_times(&self, times: BTreeSet<usize>) -> Result<Self> {
        let kept: Vec<Timestep> = times
            .into_iter()
            .map(|time| Timestep::new(time + 1))
            .collect();
        self.keeping(&kept)
    }
}

fn leading(of: usize, n: usize, offset: usize) -> Result<BTreeSet<usize>> {
    let last = ((n - 1) * (of / n)).saturating_add(offset);
    match last < of {
        true => Ok((0..n).map(|i| i * (of / n) + offset).collect()),
        false => Err(Error::Offset {
            asked: n,
            steps: of,
            offset,
            last,
        }),
    }
}

fn linspace(of: usize, n: usize) -> BTreeSet<usize> {
    let gap = (of - 1) as f64 / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| round(i as f64 * gap)).collect()
}

fn trailing(of: usize, n: usize) -> BTreeSet<usize> {
    let gap = of as f64 / n as f64;
    (0..n)
        .map(|i| round(of as f64 - i as f64 * gap) - 1)
        .collect()
}

/// Every k-th step from the first, for the smallest k that keeps exactly `asked`; k stays below T, as in guided-diffusion.
fn strided(of: usize, asked: usize) -> Result<BTreeSet<usize>> {
    match (1..of).find(|&stride| of.div_ceil(stride) == asked) {
        Some(stride) => Ok((0..of).step_by(stride).collect()),
        None => Err(Error::Stride {
            asked,
            steps: of,
            nearest: nearest_strides(of, asked),
        }),
    }
}

/// The names of the closest `ddimN` on both sides of `asked` that some stride gives.
fn nearest_strides(of: usize, asked: usize) -> String {
    let counts = (1..of)
        .map(|stride| of.div_ceil(stride))
        .collect::<BTreeSet<_>>();
    let below = counts.range(..asked).next_back();
    let above = counts.range(asked..).next();
    let names: Vec<String> = below
        .into_iter()
        .chain(above)
        .map(|n| format!("ddim{n}"))
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" and ")
    }
}

/// Sections of nearly equal size, the first ones one longer, with `counts[i]` steps spread over section i, ends included.
fn sections(of: usize, counts: &[usize], text: &str) -> Result<BTreeSet<usize>> {
    let (size_of_all, longer) = (of / counts.len(), of % counts.len());
    let mut times = BTreeSet::new();
    let mut start = 0;
    for (i, &asked) in counts.iter().enumerate() {
        let size = size_of_all + usize::from(i < longer);
        if size < asked {
            return Err(Error::Section {
                section: i + 1,
                text: text.to_owned(),
                asked,
                size,
                steps: of,
            });
        }
        let stride = if asked <= 1 {
            1.0
        } else {
            (size - 1) as f64 / (asked - 1) as f64
        };
        // Added up, not multiplied: guided-diffusion's rounding depends on it.
        let places = std::iter::successors(Some(0.0), |place| Some(place + stride));
        times.extend(places.take(asked).map(|place| start + round(place)));
        start += size;
    }
    Ok(times)
}

/// To the nearest whole number, halves to the even one, as numpy and Python round.
fn round(x: f64) -> usize {
    x.round_ties_even() as usize
}
