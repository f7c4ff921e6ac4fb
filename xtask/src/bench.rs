//! `cargo xtask bench`: the program beside its peers on the same work, in turns, outputs compared first.
//!
//! | what | where |
//! |---|---|
//! | flags | `flags` |
//! | networks, operations, work, peers | `work` |
//! | the programs that are built and asked | `programs` |
//! | one process that works when told to, and what is said to it | `contender` |
//! | setting them up, taking turns, comparing | `contest` |
//! | a whole process from its start to the first image | `start_up` |
//! | processor, load, a neighbour's noise | `machine` |
//! | medians and differences | `statistics` |
//! | the page | `page` |
//! | all of it on an NVIDIA card (`--device cuda`) | `card` |

mod card;
mod contender;
mod contest;
mod flags;
mod machine;
mod page;
mod programs;
mod start_up;
mod statistics;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::Usage;
use contest::Contest;
use flags::Flags;
use machine::Machine;
use page::Page;
use programs::Programs;
use work::{Task, Work};

/// Outer error: wrong usage. Inner: a program could not be built, asked or measured.
pub(crate) fn run(typed: &[String]) -> Result<Result<ExitCode>, Usage> {
    if let Some(flags) = card::flags(typed)? {
        return Ok(card::measure(&flags));
    }
    let flags = Flags::parse(typed)?;
    Ok(measure(&flags))
}

fn measure(flags: &Flags) -> Result<ExitCode> {
    let mut machine = Machine::look();
    let folder = Scratch::new()?;
    let programs = Programs::build(flags)?;
    machine.watch_while_idle();
    for warning in machine.warnings() {
        eprintln!("WARNING: {warning}");
    }
    let (mut contests, mut peak) = (Vec::new(), programs.peak(flags.precision)?);
    let mut hold = |task: Task, folder: &Path| {
        eprintln!("{task}");
        Contest::hold(flags, &programs, task, folder, &mut machine)
    };
    let works = flags.works.iter().filter(|&&work| work != Work::Operations);
    let works: Vec<Work> = works.copied().collect();
    for &network in flags.networks.iter().filter(|_| !works.is_empty()) {
        let folder = folder.0.join(network.letter());
        programs.prepare(network, &folder)?;
        let flop = programs.count(&folder)?;
        for &work in &works {
            let contest = hold(Task::Network(network, work), &folder)?;
            contests.push((contest, flop.of(work)));
            // The most that was ever seen: a neighbour only ever takes away from it.
            peak = peak.max(programs.peak(flags.precision)?);
        }
    }
    let mut operations = Vec::new();
    for &operation in &flags.operations {
        if flags.works.contains(&Work::Operations) {
            let folder = folder.0.join(operation.word());
            programs.prepare_operation(operation, &folder)?;
            operations.push(hold(Task::Operation(operation), &folder)?);
        }
    }
    let mut page = Page::new(flags, programs.versions(), peak);
    for (contest, flop) in &contests {
        page.contest(contest, *flop);
    }
    page.operations(&operations);
    if flags.start_up {
        page.start_up(&start_up::measure(&programs, flags.rounds, &folder.0)?);
    }
    let text = page.text(&machine);
    print!("{text}");
    if let Some(path) = &flags.out {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let all = contests.iter().map(|(contest, _)| contest);
    let differ = all.chain(&operations).any(Contest::differ);
    Ok(ExitCode::from(u8::from(differ)))
}

/// A folder that goes with this program.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ddpm-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
