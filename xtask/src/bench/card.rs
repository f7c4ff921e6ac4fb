//! `cargo xtask bench --device cuda`: training, evaluation and sampling beside PyTorch on the same card.
//!
//! | what | where |
//! |---|---|
//! | flags | `flags` |
//! | networks, work, precisions, peers | `work` |
//! | what must be there, said before anything is built; the programs | `programs` |
//! | one contest: who is on the card, when, and how much of it they take | `contest` |
//! | the page | `page` |

mod contest;
mod flags;
mod page;
mod programs;
mod work;

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::Scratch;
use super::machine::Machine;
use crate::Usage;
use contest::{Contest, Stage, Watch};
use flags::Flags;
use page::Page;
use programs::Programs;
use work::Task;

/// The flags, where the device is a card.
pub(super) fn flags(typed: &[String]) -> Result<Option<Flags>, Usage> {
    Flags::parse(typed)
}

/// Measures what was asked for. The page is written after each contest: what was measured is not lost with what follows.
pub(super) fn measure(flags: &Flags) -> Result<ExitCode> {
    let mut machine = Machine::look();
    let scratch = Scratch::new()?;
    let programs = Programs::ready(flags)?;
    machine.watch_while_idle();
    let mut watch = Watch::start(&programs, &scratch.0);
    let mut page = Page::new(flags, programs.card(), programs.versions());
    for &precision in &flags.precisions {
        page.peak(precision, programs.peak(precision)?);
    }
    page.warn(watch.warning());
    for warning in machine.warnings().iter().chain(page.warnings()) {
        eprintln!("WARNING: {warning}");
    }
    let mut well = true;
    for &network in &flags.networks {
        let works: Vec<_> = flags.works.iter().filter(|&&it| network.does(it)).collect();
        if works.is_empty() {
            continue;
        }
        let folder = scratch.0.join(network.word());
        programs.prepare(network, &folder)?;
        let flop = programs.count(&folder)?;
        for work in works {
            for &precision in &flags.precisions {
                let task = Task::on(&flags.device, network, *work, precision);
                eprintln!("{task}");
                let mut stage = Stage {
                    flags,
                    programs: &programs,
                    folder: &folder,
                    machine: &mut machine,
                    watch: &mut watch,
                };
                let contest = Contest::hold(&mut stage, task);
                well &= contest.is_well();
                page.contest(&contest, flop.of(task));
                if let Some(path) = &flags.out {
                    std::fs::write(path, page.text(&machine))
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
        }
        // The largest has more than a gigabyte of weights.
        drop(std::fs::remove_dir_all(&folder));
    }
    print!("{}", page.text(&machine));
    Ok(ExitCode::from(u8::from(!well)))
}
