//! What was measured on a card, as a page of Markdown: the summary, then a table for each contest.

use super::super::machine::Machine;
use super::super::page::{cell, ratio};
use super::super::statistics::Spread;
use super::contest::{Contest, Measured, Outcome};
use super::flags::Flags;
use super::work::{Device, Peer, Precision, Task, Work};

/// A page in the making.
pub(crate) struct Page<'a> {
    flags: &'a Flags,
    card: String,
    versions: String,
    /// FLOP/s.
    peaks: Vec<(Precision, f64)>,
    warnings: Vec<String>,
    summary: String,
    tables: String,
}

impl<'a> Page<'a> {
    /// A page that has no tables yet.
    pub(crate) fn new(flags: &'a Flags, card: String, versions: String) -> Self {
        Self {
            flags,
            card,
            versions,
            peaks: Vec::new(),
            warnings: Vec::new(),
            summary: String::new(),
            tables: String::new(),
        }
    }

    /// What every table of a precision is held to, in FLOP/s.
    pub(crate) fn peak(&mut self, precision: Precision, flops: f64) {
        self.peaks.push((precision, flops));
    }

    /// Something to be said against all of it.
    pub(crate) fn warn(&mut self, warning: Option<String>) {
        self.warnings.extend(warning);
        if self.flags.device == Device::Rehearsal {
            let text = "a rehearsal in small on the processor: its figures mean nothing";
            self.warnings.push(text.to_owned());
        }
        if self.flags.quick {
            self.warnings
                .push("a quick look, not for the record".to_owned());
        }
    }

    /// What was said.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Adds a contest; `flop` is what a pass costs.
    pub(crate) fn contest(&mut self, contest: &Contest, flop: f64) {
        let task = contest.task;
        let ours = match &contest.ours {
            Outcome::Measured(ours) => ours,
            Outcome::Failed(why) => {
                self.summary += &format!("| {task} | not measured: {} | | | |\n", cell(why));
                return;
            }
            // Ours is what others are held to.
            Outcome::Differs(_) => return,
        };
        let peak = self.peaks.iter().find(|(of, _)| *of == task.precision);
        let peak = peak.map(|&(_, peak)| peak);
        let gflop = flop / task.images as f64 / 1e9;
        let passes = match contest.passes {
            1 => "1 pass".to_owned(),
            many => format!("{many} passes"),
        };
        self.tables += &format!(
            "\n### {task}\n\n{gflop:.2} GFLOP an image, {passes} a turn.\n\n\
             | | images/s | passes/s | ddpm's speed / its | TFLOP/s, of the peak | memory, MiB | ddpm's memory / its | \
             tensors, set aside, MiB | outputs apart |\n|---|---|---|---|---|---|---|---|---|\n"
        );
        let row = |name: &str, measured: &Measured, against: &[String; 3]| {
            row((name, task), measured, (flop, peak), against)
        };
        self.tables += &row("ddpm", ours, &Default::default());
        let best = fastest(&contest.peers);
        for (index, (peer, outcome)) in contest.peers.iter().enumerate() {
            let name = peer.name(task.work, task.precision);
            self.tables += &match outcome {
                Outcome::Measured(theirs) => {
                    let is_best = best.is_some_and(|(place, _)| place == index);
                    let against = [
                        ratio(&theirs.seconds, &ours.seconds, is_best),
                        memory_ratio(theirs, ours),
                        format!("{:.0e}", theirs.difference),
                    ];
                    let name = match peer.compiles() {
                        true => format!("{name} (set up in {:.0} s)", theirs.set_up),
                        false => name,
                    };
                    row(&name, theirs, &against)
                }
                Outcome::Differs(apart) => format!(
                    "| {name} | not compared: its output is another | | | | | | | **{apart:.0e}** |\n"
                ),
                Outcome::Failed(why) => {
                    format!("| {name} | failed: {} | | | | | | | |\n", cell(why))
                }
            };
        }
        self.summary += &self.summed_up(
            task,
            ours,
            best.map(|(place, best)| (contest.peers[place].0, best)),
        );
    }

    /// The line of the summary.
    fn summed_up(&self, task: Task, ours: &Measured, best: Option<(Peer, &Measured)>) -> String {
        let speed = Spread::of(&ours.seconds);
        let speed = speed.map_or("?".to_owned(), |seconds| {
            format!("{:.1}", task.images as f64 / seconds.median)
        });
        let (name, speeds, memory) = match best {
            Some((peer, best)) => (
                peer.name(task.work, task.precision),
                ratio(&best.seconds, &ours.seconds, true),
                memory_ratio(best, ours),
            ),
            None => ("nobody".to_owned(), "?".to_owned(), "?".to_owned()),
        };
        format!("| {task} | {speed} | {name} | {speeds} | {memory} |\n")
    }

    /// The whole page.
    pub(crate) fn text(&self, machine: &Machine) -> String {
        let warnings = machine.warnings();
        let warnings = warnings.iter().chain(&self.warnings);
        let warnings = warnings.map(|text| format!("\n**Warning: {text}.**\n"));
        let warnings: String = warnings.collect();
        let (about, processor) = (self.about(), &machine.processor);
        format!(
            "{}; host: {processor}; {}.\n\n{about}{warnings}\n\
             | work | ddpm, images/s | the best PyTorch | ddpm's speed / its | ddpm's memory / its |\n|---|---|---|---|---|\n\
             {}{}",
            self.card, self.versions, self.summary, self.tables
        )
    }

    /// How it was measured, and how to read it.
    fn about(&self) -> String {
        let Flags {
            rounds,
            warm_ups,
            threads,
            command,
            device,
            ..
        } = self.flags;
        let peaks: Vec<String> = self
            .peaks
            .iter()
            .map(|(precision, flops)| format!("{:.1} in {}", flops / 1e12, precision.word()))
            .collect();
        let (size, memory) = match device {
            Device::Card(_) => (
                8192,
                "what the driver says is used of the card while the contender sets up its work again and makes passes, less what \
                 was used without it: its context, its libraries and what it only sets aside included",
            ),
            Device::Rehearsal => (512, "the most that the process ever held of the host's"),
        };
        format!(
            "{rounds} rounds in turns after {warm_ups} to warm up, one contender at work at a time while the others hold no more \
             than weights; {threads} threads of the host; medians with the lowest and the highest in brackets. A ratio is the \
             median of the rounds' ratios; of speed, above 1 ddpm is faster; of memory, below 1 it is smaller. Memory is {memory}; \
             beside it what PyTorch counts itself. A training step takes its batch from the host, and keeps an average of the \
             weights. Time ends when the device is done. Convolutions take whatever algorithms are the fastest, on both sides; in \
             bf16 what is still f32 may go by TF32. The peak is PyTorch's product of {size}x{size} matrices, in TFLOP/s: {}.\n\n\
             `{command}`\n",
            peaks.join(", ")
        )
    }
}

/// A contender's row; `against` is its speed, its memory and its output beside ours.
fn row(
    (name, task): (&str, Task),
    measured: &Measured,
    (flop, peak): (f64, Option<f64>),
    [ratio, memory_ratio, apart]: &[String; 3],
) -> String {
    let Some(seconds) = Spread::of(&measured.seconds) else {
        return format!("| {name} | ? | | | | | | | |\n");
    };
    let images = |seconds: f64| task.images as f64 / seconds;
    let (median, slowest, quickest) = (
        images(seconds.median),
        images(seconds.highest),
        images(seconds.lowest),
    );
    let passes = match task.work {
        Work::Sample => format!("{:.3}", 1.0 / seconds.median),
        _ => format!("{:.2}", 1.0 / seconds.median),
    };
    let flops = flop / seconds.median;
    let share = peak.map_or(String::new(), |peak| {
        format!(", {:.0} %", 100.0 * flops / peak)
    });
    let memory = measured.memory.map(|bytes| (bytes >> 20).to_string());
    let counted = measured.counted;
    let counted = counted.map_or(String::new(), |[tensors, set_aside]| {
        format!("{}, {}", tensors >> 20, set_aside >> 20)
    });
    format!(
        "| {name} | {median:.1} ({slowest:.1}-{quickest:.1}) | {passes} | {ratio} | {:.1}{share} | {} | {memory_ratio} | \
         {counted} | {apart} |\n",
        flops / 1e12,
        memory.unwrap_or("?".to_owned()),
    )
}

fn memory_ratio(theirs: &Measured, ours: &Measured) -> String {
    let both = theirs.memory.zip(ours.memory);
    let ratio = both.map(|(theirs, ours)| ours as f64 / theirs as f64);
    ratio.map_or("?".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// The peer to beat.
fn fastest(peers: &[(Peer, Outcome)]) -> Option<(usize, &Measured)> {
    let timed = peers.iter().enumerate();
    let timed = timed.filter_map(|(place, (_, outcome))| match outcome {
        Outcome::Measured(measured) => {
            Some((place, measured, Spread::of(&measured.seconds)?.median))
        }
        _ => None,
    });
    let best = timed.min_by(|a, b| a.2.total_cmp(&b.2));
    best.map(|(place, measured, _)| (place, measured))
}

#[cfg(test)]
mod tests {
    use super::super::work::Network;
    use super::*;

    fn measured(seconds: &[f64], mib: u64, counted: Option<[u64; 2]>) -> Measured {
        Measured {
            seconds: seconds.to_vec(),
            memory: Some(mib << 20),
            counted: counted.map(|both| both.map(|mib| mib << 20)),
            difference: 2e-3,
            set_up: 31.0,
        }
    }

    fn flags(line: &str) -> Flags {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Flags::parse(&words).unwrap().unwrap()
    }

    fn contest(flags: &Flags, ours: Outcome) -> Contest {
        Contest {
            task: Task::on(&flags.device, Network::M128, Work::Train, Precision::Bf16),
            passes: 4,
            ours,
            peers: vec![
                (
                    Peer::Eager,
                    Outcome::Measured(measured(&[0.5, 0.25, 0.5], 4000, Some([3000, 3500]))),
                ),
                (
                    Peer::CompileGraphs,
                    Outcome::Measured(measured(&[0.25, 0.25, 0.5], 2000, None)),
                ),
                (Peer::Graphs, Outcome::Differs(0.5)),
                (Peer::Autotune, Outcome::Failed("out of memory".to_owned())),
            ],
        }
    }

    #[test]
    fn the_best_is_bold_and_summed_up() {
        let flags = flags("--device cuda");
        let mut page = Page::new(&flags, "H200".to_owned(), "torch 2".to_owned());
        page.peak(Precision::Bf16, 80e12);
        let ours = Outcome::Measured(measured(&[0.125, 0.25, 0.125], 1000, None));
        page.contest(&contest(&flags, ours), 5e12);
        assert_eq!(
            page.summary,
            "| M, training step of 128, bf16 | 1024.0 | torch.compile and CUDA graph, channels_last, autocast | \
             **2.00** (1.00-4.00) | 0.50 |\n"
        );
        let rows: Vec<&str> = page.tables.lines().skip(7).collect();
        assert_eq!(
            rows,
            [
                "| ddpm | 1024.0 (512.0-1024.0) | 8.00 |  | 40.0, 50 % | 1000 |  |  |  |",
                "| PyTorch eager, autocast | 256.0 (256.0-512.0) | 2.00 | 4.00 (1.00-4.00) | 10.0, 12 % | 4000 | 0.25 | \
                 3000, 3500 | 2e-3 |",
                "| torch.compile and CUDA graph, channels_last, autocast (set up in 31 s) | 512.0 (256.0-512.0) | 4.00 | \
                 **2.00** (1.00-4.00) | 20.0, 25 % | 2000 | 0.50 |  | 2e-3 |",
                "| CUDA graph, channels_last, autocast | not compared: its output is another | | | | | | | **5e-1** |",
                "| torch.compile (max-autotune) and CUDA graph, channels_last, autocast | failed: out of memory | | | | | | | |",
            ]
        );
    }

    #[test]
    fn what_we_could_not_do_is_said() {
        let flags = flags("--device cuda --quick");
        let mut page = Page::new(&flags, "H200".to_owned(), "torch 2".to_owned());
        page.warn(None);
        let ours = Outcome::Failed("no | memory".to_owned());
        let contest = contest(&flags, ours);
        assert!(!contest.is_well());
        page.contest(&contest, 5e12);
        assert_eq!(
            page.summary,
            "| M, training step of 128, bf16 | not measured: no \\| memory | | | |\n"
        );
        assert_eq!(page.tables, "");
        assert_eq!(page.warnings(), ["a quick look, not for the record"]);
        let text = page.text(&Machine::look());
        assert!(
            text.starts_with("H200; host: ")
                && text.contains("`cargo xtask bench --device cuda --quick`")
        );
    }
}
