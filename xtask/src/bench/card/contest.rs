//! One contest on a card: every contender set up, outputs compared, then turn after turn, one on the card at a time.
//!
//! Whoever waits for its turn rests: it holds nothing of the card but its context and, PyTorch, its weights, so that what does
//! not fit beside others is measured beside them nevertheless. Before its turn it wakes and makes a pass, which is not timed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::contender::{Contender, reason};
use super::super::contest::{by_parts, passes_for, read_output};
use super::super::machine::Machine;
use super::flags::Flags;
use super::programs::Programs;
use super::work::{Peer, Task};

/// Between two turns the machine is watched.
const WATCHING: Duration = Duration::from_millis(250);

/// Bytes of the card that are used before anything was started, above which somebody else is there.
const SOMEBODY: u64 = 1 << 30;

/// What came of it.
pub(crate) struct Contest {
    pub(crate) task: Task,
    /// Passes of a turn.
    pub(crate) passes: usize,
    /// How we did.
    pub(crate) ours: Outcome,
    /// How the others did; nobody where we did nothing.
    pub(crate) peers: Vec<(Peer, Outcome)>,
}

/// What can come of a contender.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It did the work.
    Measured(Measured),
    /// It did something else: so far apart were the outputs.
    Differs(f64),
    /// It could not; why.
    Failed(String),
}

/// What a contender's turns were like.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Seconds a pass, for each round.
    pub(crate) seconds: Vec<f64>,
    /// The most memory it took, in bytes: of a card as the driver counts it, its context included; else of the host.
    pub(crate) memory: Option<u64>,
    /// What PyTorch counts of it at the most: for tensors, and set aside for them.
    pub(crate) counted: Option<[u64; 2]>,
    /// How far its first output is from ours.
    pub(crate) difference: f64,
    /// Seconds until it was ready.
    pub(crate) set_up: f64,
}

/// All that a contest needs.
pub(crate) struct Stage<'a> {
    pub(crate) flags: &'a Flags,
    pub(crate) programs: &'a Programs,
    pub(crate) folder: &'a Path,
    pub(crate) machine: &'a mut Machine,
    pub(crate) watch: &'a mut Watch,
}

/// Who asks the driver how much of the card's memory is used: one process beside all contenders.
pub(crate) struct Watch {
    process: Option<Contender>,
    warning: Option<String>,
}

/// A contender between its turns.
struct Standing {
    contender: Contender,
    /// What it holds of the card while it rests, in bytes.
    resting: Option<u64>,
    measured: Measured,
}

impl Watch {
    /// Starts it where there is a card. Where the driver says nothing, a warning says so.
    pub(crate) fn start(programs: &Programs, folder: &Path) -> Self {
        let Some(command) = programs.watch() else {
            return Self {
                process: None,
                warning: None,
            };
        };
        let complaints = folder.join("watch.stderr");
        let started = Contender::start("watch", command, &complaints, Duration::from_secs(60));
        let (process, warning) = match started {
            Ok(process) => (Some(process), None),
            Err(error) => {
                let why = reason(&format!("{error:#}"));
                (None, Some(format!("no memory is measured: {why}")))
            }
        };
        let mut watch = Self { process, warning };
        if let Some(used) = watch.ask("used").filter(|&used| used > SOMEBODY) {
            let mib = used >> 20;
            let text = format!("{mib} MiB of the card were in use before anything was started");
            watch.warning = Some(text);
        }
        watch
    }

    /// What is to be said against it.
    pub(crate) fn warning(&self) -> Option<String> {
        self.warning.clone()
    }

    fn ask(&mut self, line: &str) -> Option<u64> {
        self.process.as_mut()?.number(line).ok()
    }
}

impl Contest {
    /// Sets all up, compares, takes turns. Where ours fails there is nothing to compare with.
    pub(crate) fn hold(stage: &mut Stage<'_>, task: Task) -> Self {
        Self::between(stage, task).unwrap_or_else(|ours| Self {
            task,
            passes: 0,
            ours,
            peers: Vec::new(),
        })
    }

    fn between(stage: &mut Stage<'_>, task: Task) -> Result<Self, Outcome> {
        let output = stage.folder.join(format!("ddpm.{}", task.word()));
        let command = stage.programs.ours(task, stage.folder, &output);
        let mut ours = stage.enter("ddpm", &task.word(), command)?;
        let reference = read_output(&output).map_err(failed)?;
        let mut peers: Vec<(Peer, Result<Standing, Outcome>)> = Vec::new();
        for &peer in &stage.flags.peers {
            peers.push((peer, stage.enter_peer(peer, task, &reference)));
        }
        let mut passes = 1;
        for number in 1..=stage.flags.warm_ups {
            let fastest = stage.round(&mut ours, &mut peers, (1, true))?;
            eprintln!("  warm-up {number}: {fastest:.4} s a pass at best");
            passes = passes_for(stage.flags.turn, fastest);
        }
        let awake = peers.iter_mut().flat_map(|(_, state)| state.as_mut());
        for standing in awake.chain([&mut ours]) {
            standing.measured.seconds.clear();
        }
        for number in 1..=stage.flags.rounds {
            let fastest = stage.round(&mut ours, &mut peers, (passes, false))?;
            let of = stage.flags.rounds;
            eprintln!("  round {number} of {of}: {fastest:.4} s a pass at best");
        }
        let finish = |state: Result<Standing, Outcome>| state.and_then(Standing::finish);
        let told = |result: Result<Measured, Outcome>| {
            result.map_or_else(|outcome| outcome, Outcome::Measured)
        };
        Ok(Self {
            task,
            passes,
            ours: told(ours.finish()),
            peers: peers
                .into_iter()
                .map(|(peer, state)| (peer, told(finish(state))))
                .collect(),
        })
    }

    /// Whether ours was measured and nobody's output is another.
    pub(crate) fn is_well(&self) -> bool {
        let differs = |(_, outcome): &(Peer, Outcome)| matches!(outcome, Outcome::Differs(_));
        matches!(self.ours, Outcome::Measured(_)) && !self.peers.iter().any(differs)
    }
}

impl Stage<'_> {
    /// Starts a contender, which makes its first pass, and lets it rest.
    fn enter(&mut self, name: &str, task: &str, command: Command) -> Result<Standing, Outcome> {
        let complaints = self.folder.join(format!("{name}.{task}.stderr"));
        let before = self.watch.ask("used");
        let begun = Instant::now();
        let started = Contender::start(name, command, &complaints, self.flags.set_up);
        let rested = started.and_then(|mut contender| contender.rest().map(|()| contender));
        let seconds = begun.elapsed().as_secs_f64();
        match &rested {
            Ok(_) => eprintln!("  {name}: ready after {seconds:.1} s"),
            Err(error) => eprintln!("  {name}: failed after {seconds:.1} s: {error:#}"),
        }
        let contender = rested.map_err(failed)?;
        let used = before.zip(self.watch.ask("used"));
        Ok(Standing {
            contender,
            resting: used.map(|(before, after)| after.saturating_sub(before)),
            measured: Measured {
                set_up: seconds,
                ..Measured::default()
            },
        })
    }

    /// The same of a peer, whose first output is compared.
    fn enter_peer(
        &mut self,
        peer: Peer,
        task: Task,
        reference: &[f32],
    ) -> Result<Standing, Outcome> {
        let output = self.folder.join(format!("{}.{}", peer.word(), task.word()));
        let command = self.programs.peer(peer, task, self.folder, &output);
        let mut standing = self.enter(peer.word(), &task.word(), command)?;
        let theirs = read_output(&output).map_err(failed)?;
        let apart = by_parts(&task.parts(reference.len()), reference, &theirs);
        if apart > task.precision.same() {
            return Err(Outcome::Differs(apart));
        }
        standing.measured.difference = apart;
        Ok(standing)
    }

    /// Everybody's turn; the seconds of the fastest pass. A peer that dies is out.
    fn round(
        &mut self,
        ours: &mut Standing,
        peers: &mut [(Peer, Result<Standing, Outcome>)],
        how: (usize, bool),
    ) -> Result<f64, Outcome> {
        let mut fastest = self.turn(ours, how).map_err(failed)?;
        for (_, state) in peers {
            let Ok(standing) = state else { continue };
            match self.turn(standing, how) {
                Ok(seconds) => fastest = fastest.min(seconds),
                Err(error) => *state = Err(failed(error)),
            }
        }
        Ok(fastest)
    }

    /// So many passes of one that wakes for them; its memory is watched if asked for, which could disturb it.
    fn turn(&mut self, standing: &mut Standing, (passes, watched): (usize, bool)) -> Result<f64> {
        self.machine.rest(WATCHING);
        let before = if watched {
            self.watch.ask("begin")
        } else {
            None
        };
        standing.contender.wake(self.flags.set_up)?;
        let seconds = standing.contender.go(passes)? / passes as f64;
        let most = before.and_then(|_| self.watch.ask("end"));
        standing.contender.rest()?;
        standing.measured.seconds.push(seconds);
        let taken = taken(standing.resting, before, most);
        standing.measured.memory = standing.measured.memory.max(taken);
        Ok(seconds)
    }
}

impl Standing {
    fn finish(self) -> Result<Measured, Outcome> {
        let numbers = self.contender.quit_with_numbers().map_err(failed)?;
        let mut measured = self.measured;
        match *numbers.as_slice() {
            [_, tensors, set_aside] => measured.counted = Some([tensors, set_aside]),
            // Without a card it is the host's memory that is taken.
            [host] if self.resting.is_none() => measured.memory = Some(host).filter(|&b| b > 0),
            _ => {}
        }
        Ok(measured)
    }
}

/// What a contender took of a card in its turn: what it holds when it rests, and what came on top.
fn taken(resting: Option<u64>, before: Option<u64>, most: Option<u64>) -> Option<u64> {
    let ((resting, before), most) = resting.zip(before).zip(most)?;
    Some(resting + most.saturating_sub(before))
}

fn failed(error: anyhow::Error) -> Outcome {
    Outcome::Failed(reason(&format!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_rests_and_what_comes_on_top() {
        assert_eq!(taken(Some(500), Some(2000), Some(9000)), Some(7500));
        assert_eq!(taken(Some(500), Some(2000), Some(1900)), Some(500));
        assert_eq!(taken(None, Some(2000), Some(9000)), None);
        assert_eq!(taken(Some(500), Some(2000), None), None);
    }
}
