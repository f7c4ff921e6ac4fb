//! One task: every contender set up, outputs compared, then turn after turn.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::contender::{Contender, reason};
use super::flags::Flags;
use super::machine::Machine;
use super::programs::Programs;
use super::statistics::difference;
use super::work::{Peer, Precision, Task, Work};

/// Between two turns: threads that spin after work sleep after a fifth of a second, and then the machine is watched.
const SETTLING: Duration = Duration::from_millis(250);
const WATCHING: Duration = Duration::from_millis(250);

/// What came of it.
pub(crate) struct Contest {
    /// What it was about.
    pub(crate) task: Task,
    /// Passes of a turn.
    pub(crate) passes: usize,
    /// How we did.
    pub(crate) ours: Measured,
    /// How the others did.
    pub(crate) peers: Vec<(Peer, Outcome)>,
}

/// What a contender's turns were like.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Seconds a pass, for each round.
    pub(crate) seconds: Vec<f64>,
    /// The most memory it ever held, in bytes.
    pub(crate) memory: Option<u64>,
    /// How far its first output is from ours.
    pub(crate) difference: f64,
    /// Seconds until it was ready.
    pub(crate) set_up: f64,
}

/// What can come of a peer.
pub(crate) enum Outcome {
    /// It did the same work.
    Measured(Measured),
    /// It did something else: so far apart were the outputs.
    Differs(f64),
    /// It could not; why.
    Failed(String),
}

/// A contender between its turns.
struct Standing {
    contender: Contender,
    measured: Measured,
}

impl Contest {
    /// Sets all up, compares, takes turns.
    pub(crate) fn hold(
        flags: &Flags,
        programs: &Programs,
        task: Task,
        folder: &Path,
        machine: &mut Machine,
    ) -> Result<Self> {
        let output = folder.join(format!("ddpm.{}", task.word()));
        let command = programs.ours(task, flags.precision, folder, &output);
        let (contender, ready) = set_up("ddpm", || {
            let complaints = folder.join(format!("ddpm.{}.stderr", task.word()));
            Contender::start("ddpm", command, &complaints, flags.set_up)
        })?;
        let reference = read_output(&output)?;
        let mut ours = Standing::new(contender, 0.0, ready);
        let does = |peer: &&Peer| peer.does(task.work(), flags.precision);
        let able = flags.peers.iter().filter(does);
        let again = match (task.work(), flags.precision) {
            (Work::Operations, _) => Some(&Peer::Plan),
            (_, Precision::Bf16) => Some(&Peer::Float),
            (_, Precision::F32) => None,
        };
        let mut peers: Vec<(Peer, Result<Standing, Outcome>)> = again
            .into_iter()
            .chain(able)
            .map(|&peer| {
                let state = enter((flags, programs), peer, task, folder, &reference);
                (peer, state)
            })
            .collect();
        // There are many operations, and a pass is short.
        let turn = match task {
            Task::Network(..) => flags.turn,
            Task::Operation(_) => flags.turn / 4,
        };

        let mut passes = 1;
        for warm_up in 0..flags.warm_ups {
            let fastest = round(&mut ours, &mut peers, 1, machine)?;
            eprintln!("  warm-up {}: {fastest:.4} s a pass at best", warm_up + 1);
            passes = passes_for(turn, fastest);
        }
        ours.measured.seconds.clear();
        for standing in peers
            .iter_mut()
            .filter_map(|(_, state)| state.as_mut().ok())
        {
            standing.measured.seconds.clear();
        }
        for number in 1..=flags.rounds {
            let fastest = round(&mut ours, &mut peers, passes, machine)?;
            eprintln!(
                "  round {number} of {}: {fastest:.4} s a pass at best",
                flags.rounds
            );
        }
        let peers = peers.into_iter().map(|(peer, state)| {
            let outcome = state.and_then(|standing| standing.finish().map_err(failed));
            (peer, outcome.map_or_else(|why| why, Outcome::Measured))
        });
        Ok(Self {
            task,
            passes,
            peers: peers.collect(),
            ours: ours.finish()?,
        })
    }

    /// Whether some peer's output is not ours.
    pub(crate) fn differ(&self) -> bool {
        let differs = |(_, outcome): &(Peer, Outcome)| matches!(outcome, Outcome::Differs(_));
        self.peers.iter().any(differs)
    }
}

impl Standing {
    fn new(contender: Contender, difference: f64, set_up: f64) -> Self {
        Self {
            contender,
            measured: Measured {
                difference,
                set_up,
                ..Measured::default()
            },
        }
    }

    /// A turn, after a rest in which nobody works.
    fn turn(&mut self, passes: usize, machine: &mut Machine) -> Result<f64> {
        std::thread::sleep(SETTLING);
        machine.rest(WATCHING);
        let seconds = self.contender.go(passes)? / passes as f64;
        self.measured.seconds.push(seconds);
        Ok(seconds)
    }

    fn finish(self) -> Result<Measured> {
        Ok(Measured {
            memory: self.contender.quit()?,
            ..self.measured
        })
    }
}

/// Starts a peer and compares what its first pass gave.
fn enter(
    (flags, programs): (&Flags, &Programs),
    peer: Peer,
    task: Task,
    folder: &Path,
    reference: &[f32],
) -> Result<Standing, Outcome> {
    let output = folder.join(format!("{}.{}", peer.word(), task.word()));
    let complaints = folder.join(format!("{}.{}.stderr", peer.word(), task.word()));
    let (contender, ready) = set_up(peer, || {
        let command = programs.peer(peer, task, flags.precision, folder, &output)?;
        Contender::start(peer.word(), command, &complaints, flags.set_up)
    })
    .map_err(failed)?;
    let theirs = read_output(&output).map_err(failed)?;
    let apart = by_parts(&task.parts(reference.len()), reference, &theirs);
    if apart <= flags.precision.same() {
        Ok(Standing::new(contender, apart, ready))
    } else {
        Err(Outcome::Differs(apart))
    }
}

/// The largest difference of two outputs whose parts have so many numbers, and each its own scale.
pub(super) fn by_parts(lengths: &[usize], ours: &[f32], theirs: &[f32]) -> f64 {
    if ours.len() != theirs.len() || ours.len() != lengths.iter().sum::<usize>() {
        return f64::INFINITY;
    }
    let (mut largest, mut start) = (0f64, 0);
    for &length in lengths {
        let part = start..start + length;
        largest = largest.max(difference(&ours[part.clone()], &theirs[part]));
        start += length;
    }
    largest
}

/// Starts a contender and says how long that took.
fn set_up(
    name: impl std::fmt::Display,
    start: impl FnOnce() -> Result<Contender>,
) -> Result<(Contender, f64)> {
    let begun = Instant::now();
    let contender = start();
    let seconds = begun.elapsed().as_secs_f64();
    match &contender {
        Ok(_) => eprintln!("  {name}: ready after {seconds:.1} s"),
        Err(error) => eprintln!("  {name}: failed after {seconds:.1} s: {error:#}"),
    }
    contender.map(|contender| (contender, seconds))
}

/// Everybody's turn; the seconds of the fastest pass. A peer that dies is out.
fn round(
    ours: &mut Standing,
    peers: &mut [(Peer, Result<Standing, Outcome>)],
    passes: usize,
    machine: &mut Machine,
) -> Result<f64> {
    let mut fastest = ours.turn(passes, machine)?;
    for (_, state) in peers {
        let Ok(standing) = state else { continue };
        match standing.turn(passes, machine) {
            Ok(seconds) => fastest = fastest.min(seconds),
            Err(error) => *state = Err(failed(error)),
        }
    }
    Ok(fastest)
}

fn failed(error: anyhow::Error) -> Outcome {
    Outcome::Failed(reason(&format!("{error:#}")))
}

/// How many passes make a turn of about this length for the fastest.
pub(super) fn passes_for(turn: Duration, fastest: f64) -> usize {
    // Lengths are seconds and fractions of them: the number is small.
    (turn.as_secs_f64() / fastest).round().clamp(1.0, 1000.0) as usize
}

/// Raw f32, little end first.
pub(super) fn read_output(path: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    numbers(&bytes).ok_or_else(|| anyhow!("{} is no list of f32", path.display()))
}

fn numbers(bytes: &[u8]) -> Option<Vec<f32>> {
    let (fours, rest) = bytes.as_chunks::<4>();
    let numbers = fours.iter().map(|&four| f32::from_le_bytes(four));
    rest.is_empty().then(|| numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_whole_numbers_of_f32() {
        let bytes = [1.5_f32, -2.0].map(f32::to_le_bytes).concat();
        assert_eq!(numbers(&bytes), Some(vec![1.5, -2.0]));
        assert_eq!(numbers(&bytes[1..]), None);
    }

    #[test]
    fn every_part_has_its_own_scale() {
        let (ours, theirs) = ([100.0, 1.0, 2.0], [100.0, 1.5, 2.0]);
        assert_eq!(by_parts(&[1, 2], &ours, &theirs), 0.25);
        assert_eq!(by_parts(&[3], &ours, &theirs), 0.005);
        assert_eq!(by_parts(&[2], &ours, &theirs), f64::INFINITY);
        assert_eq!(by_parts(&[3], &ours, &theirs[..2]), f64::INFINITY);
    }

    #[test]
    fn a_turn_has_a_pass_at_least() {
        let turn = Duration::from_secs(2);
        for (fastest, passes) in [(0.5, 4), (0.9, 2), (30.0, 1), (1e-9, 1000)] {
            assert_eq!(passes_for(turn, fastest), passes, "{fastest}");
        }
    }
}
