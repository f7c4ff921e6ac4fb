//! What was measured, as a page of Markdown.

use super::contest::{Contest, Measured, Outcome};
use super::flags::Flags;
use super::machine::Machine;
use super::start_up::StartUp;
use super::statistics::Spread;
use super::work::{Peer, Task};

/// A page in the making.
pub(crate) struct Page<'a> {
    flags: &'a Flags,
    versions: &'a str,
    /// In GFLOP/s.
    peak: f64,
    tables: String,
}

impl<'a> Page<'a> {
    /// A page that has no tables yet. `peak`, in GFLOP/s, is what every table is held to.
    pub(crate) fn new(flags: &'a Flags, versions: &'a str, peak: f64) -> Self {
        Self {
            flags,
            versions,
            peak,
            tables: String::new(),
        }
    }

    /// Adds a table; `flop` is what a pass costs.
    pub(crate) fn contest(&mut self, contest: &Contest, flop: f64) {
        let Task::Network(network, work) = contest.task else {
            return;
        };
        let batch = network.batch();
        let gflop = flop / batch as f64 / 1e9;
        let passes = match contest.passes {
            1 => "1 pass".to_owned(),
            many => format!("{many} passes"),
        };
        self.tables += &format!(
            "\n## Network {network}, {work}\n\n\
             Batch {batch}, {gflop:.2} GFLOP an image, {passes} a turn.\n\n\
             | | images/s | ddpm's speed / its | GFLOP/s, of the peak | peak memory, MiB | ddpm's memory / its | outputs apart |\n\
             |---|---|---|---|---|---|---|\n"
        );
        let seconds_to_speed = |seconds: f64| (batch as f64 / seconds, flop / seconds / 1e9);
        self.tables += &row(
            "ddpm",
            &contest.ours,
            seconds_to_speed,
            self.peak,
            &["".into(), "".into(), "".into()],
        );
        let best = fastest(contest);
        for (index, (peer, outcome)) in contest.peers.iter().enumerate() {
            self.tables += &match outcome {
                Outcome::Measured(theirs) => {
                    let ratio = ratio(&theirs.seconds, &contest.ours.seconds, best == Some(index));
                    let memory = theirs.memory.zip(contest.ours.memory);
                    let memory = memory.map(|(theirs, ours)| ours as f64 / theirs as f64);
                    let memory = memory.map_or("?".to_owned(), |ratio| format!("{ratio:.2}"));
                    let apart = format!("{:.0e}", theirs.difference);
                    let against = [ratio, memory, apart];
                    let name = match peer {
                        Peer::Compile => format!("{peer} (set up in {:.0} s)", theirs.set_up),
                        _ => peer.to_string(),
                    };
                    row(&name, theirs, seconds_to_speed, self.peak, &against)
                }
                Outcome::Differs(apart) => {
                    format!(
                        "| {peer} | not compared: its output is another | | | | | **{apart:.0e}** |\n"
                    )
                }
                Outcome::Failed(why) => format!("| {peer} | failed: {} | | | | | |\n", cell(why)),
            };
        }
    }

    /// Adds one table of all operations.
    pub(crate) fn operations(&mut self, contests: &[Contest]) {
        let Some(first) = contests.first() else {
            return;
        };
        let names = first.peers.iter().map(|(peer, _)| peer.to_string());
        let names: Vec<String> = names.collect();
        self.tables += &format!(
            "\n## Operations\n\n\
             One alone, forward and backward with gradients for x, weight and bias, from a gradient of ones; milliseconds. \
             The last ratios are to PyTorch's fastest.\n\n\
             | operation (batch x channels, pixels) | ddpm-kernels in candle's graph | {} | the graph's speed / PyTorch's | the plan's | outputs apart |\n\
             |---|---|{}---|---|---|\n",
            names.join(" | "),
            "---|".repeat(names.len()),
        );
        for contest in contests {
            self.tables += &operation_row(contest);
        }
    }

    /// Adds the table of the way to the first image.
    pub(crate) fn start_up(&mut self, start_up: &StartUp) {
        let time = |seconds: &[f64]| {
            Spread::of(seconds).map_or("?".to_owned(), |s| {
                format!("{:.2} ({:.2}-{:.2})", s.median, s.lowest, s.highest)
            })
        };
        self.tables += &format!(
            "\n## From the start of the process to the first image\n\n\
             `checkpoints/digits`, one image, 50 DDIM steps, {} threads.\n\n\
             | | seconds | ddpm's speed / its |\n|---|---|---|\n| ddpm-sample | {} | |\n| Python, DDIMPipeline | {} | {} |\n",
            self.flags.threads,
            time(&start_up.ours),
            time(&start_up.theirs),
            ratio(&start_up.theirs, &start_up.ours, true),
        );
    }

    /// The whole page.
    pub(crate) fn text(&self, machine: &Machine) -> String {
        let mut warnings = machine.warnings();
        if self.flags.quick {
            warnings.push("a quick look, not for the record".to_owned());
        }
        let warnings = warnings
            .iter()
            .map(|text| format!("\n**Warning: {text}.**\n"));
        let warnings: String = warnings.collect();
        let (processor, Self { tables, .. }) = (&machine.processor, self);
        format!("{processor}; {}{warnings}{tables}", self.about())
    }

    /// What takes part, how it was measured, and how to read it.
    fn about(&self) -> String {
        let Flags {
            threads,
            rounds,
            warm_ups,
            command,
            precision,
            ..
        } = self.flags;
        let precision = precision.word();
        format!(
            "{}.\n\n{precision}, {threads} threads, {rounds} rounds in turns after {warm_ups} to warm up, medians with the \
             lowest and the highest in brackets. A ratio is the median of the rounds' ratios; of speed, above 1 ddpm is \
             faster; of memory, below 1 it is smaller. The peak is PyTorch's product of 2048x2048 matrices: {:.0} \
             GFLOP/s.\n\n`{command}`\n",
            self.versions, self.peak
        )
    }
}

/// A contender's row; `against` is its speed, its memory and its output beside ours.
fn row(
    name: &str,
    measured: &Measured,
    speeds: impl Fn(f64) -> (f64, f64),
    peak: f64,
    [ratio, memory_ratio, apart]: &[String; 3],
) -> String {
    let Some(seconds) = Spread::of(&measured.seconds) else {
        return format!("| {name} | ? | | | | | |\n");
    };
    let (images, gflops) = speeds(seconds.median);
    let (slowest, quickest) = (speeds(seconds.highest).0, speeds(seconds.lowest).0);
    let memory = measured.memory.map(|bytes| (bytes >> 20).to_string());
    format!(
        "| {name} | {images:.1} ({slowest:.1}-{quickest:.1}) | {ratio} | {gflops:.0}, {:.0} % | {} | {memory_ratio} | {apart} |\n",
        100.0 * gflops / peak,
        memory.unwrap_or("?".to_owned()),
    )
}

fn operation_row(contest: &Contest) -> String {
    let cells = contest.peers.iter().map(|(_, outcome)| match outcome {
        Outcome::Measured(measured) => milliseconds(&measured.seconds),
        Outcome::Differs(apart) => format!("not compared: **{apart:.0e}** apart"),
        Outcome::Failed(why) => format!("failed: {}", cell(why)),
    });
    let cells: Vec<String> = cells.collect();
    let measured = |index: usize| match &contest.peers[index].1 {
        Outcome::Measured(measured) => Some(measured),
        _ => None,
    };
    let best = fastest(contest).and_then(measured);
    let plan = contest.peers.iter().position(|(peer, _)| peer.is_ours());
    let against =
        |ours: &[f64]| best.map_or("?".to_owned(), |best| ratio(&best.seconds, ours, true));
    let of_plan = plan.and_then(measured);
    let rivals = (0..contest.peers.len()).filter(|&index| Some(index) != plan);
    let apart = rivals.filter_map(measured).map(|rival| rival.difference);
    format!(
        "| {} | {} | {} | {} | {} | {:.0e} |\n",
        contest.task,
        milliseconds(&contest.ours.seconds),
        cells.join(" | "),
        against(&contest.ours.seconds),
        of_plan.map_or("?".to_owned(), |plan| against(&plan.seconds)),
        apart.fold(0.0, f64::max),
    )
}

fn milliseconds(seconds: &[f64]) -> String {
    Spread::of(seconds).map_or("?".to_owned(), |s| {
        let [median, lowest, highest] = [s.median, s.lowest, s.highest].map(|s| 1e3 * s);
        format!("{median:.1} ({lowest:.1}-{highest:.1})")
    })
}

/// How much faster we are: their seconds over ours, round by round.
pub(super) fn ratio(theirs: &[f64], ours: &[f64], bold: bool) -> String {
    let Some(ratio) = Spread::of_ratios(theirs, ours) else {
        return "?".to_owned();
    };
    let marks = if bold { "**" } else { "" };
    let Spread {
        median,
        lowest,
        highest,
    } = ratio;
    format!("{marks}{median:.2}{marks} ({lowest:.2}-{highest:.2})")
}

/// The peer to beat.
fn fastest(contest: &Contest) -> Option<usize> {
    let seconds = |outcome: &Outcome| match outcome {
        Outcome::Measured(measured) => Some(Spread::of(&measured.seconds)?.median),
        _ => None,
    };
    let peers = contest.peers.iter().enumerate();
    let peers = peers.filter(|(_, (peer, _))| !peer.is_ours());
    let timed = peers.filter_map(|(index, (_, outcome))| Some((index, seconds(outcome)?)));
    timed
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(index, _)| index)
}

/// Text that does not end its cell.
pub(super) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::super::work::{Network, Operation, Work};
    use super::*;

    fn measured(seconds: &[f64], mib: u64, difference: f64) -> Measured {
        Measured {
            seconds: seconds.to_vec(),
            memory: Some(mib << 20),
            difference,
            set_up: 12.0,
        }
    }

    fn flags() -> Flags {
        Flags::parse(&["--threads".to_owned(), "2".to_owned()]).unwrap()
    }

    #[test]
    fn the_peer_to_beat_is_bold_and_what_was_not_measured_has_no_ratio() {
        let flags = flags();
        let mut page = Page::new(&flags, "ddpm 1, torch 2", 100.0);
        let contest = Contest {
            task: Task::Network(Network::M, Work::Evaluate),
            passes: 4,
            ours: measured(&[1.0, 2.0, 1.0], 100, 0.0),
            peers: vec![
                (
                    Peer::Eager,
                    Outcome::Measured(measured(&[3.0, 5.0, 2.0], 150, 2e-6)),
                ),
                (
                    Peer::Compile,
                    Outcome::Measured(measured(&[2.0, 4.0, 1.0], 200, 0.0)),
                ),
                (Peer::Onnxruntime, Outcome::Differs(0.5)),
                (Peer::Openvino, Outcome::Failed("a | b".to_owned())),
            ],
        };
        page.contest(&contest, 40e9);
        let rows: Vec<&str> = page.tables.lines().skip(7).collect();
        assert_eq!(
            rows,
            [
                "| ddpm | 8.0 (4.0-8.0) |  | 40, 40 % | 100 |  |  |",
                "| PyTorch eager | 2.7 (1.6-4.0) | 2.50 (2.00-3.00) | 13, 13 % | 150 | 0.67 | 2e-6 |",
                "| torch.compile (set up in 12 s) | 4.0 (2.0-8.0) | **2.00** (1.00-2.00) | 20, 20 % | 200 | 0.50 | 0e0 |",
                "| onnxruntime | not compared: its output is another | | | | | **5e-1** |",
                "| OpenVINO | failed: a \\| b | | | | | |",
            ]
        );
    }

    #[test]
    fn operations_are_rows_of_one_table_and_a_plan_is_no_rival() {
        let flags = flags();
        let mut page = Page::new(&flags, "ddpm 1, torch 2", 100.0);
        page.operations(&[]);
        assert_eq!(page.tables, "");
        let contest = Contest {
            task: Task::Operation(Operation::ALL[0]),
            passes: 4,
            ours: measured(&[0.02, 0.04, 0.02], 100, 0.0),
            peers: vec![
                (
                    Peer::Plan,
                    Outcome::Measured(measured(&[0.01, 0.02, 0.01], 100, 0.0)),
                ),
                (
                    Peer::Eager,
                    Outcome::Measured(measured(&[0.03, 0.05, 0.02], 150, 2e-6)),
                ),
                (Peer::Compile, Outcome::Failed("no compiler".to_owned())),
            ],
        };
        page.operations(&[contest]);
        assert_eq!(
            page.tables.lines().last(),
            Some(
                "| convolution 3x3, 32x64, 28x28 | 20.0 (20.0-40.0) | 10.0 (10.0-20.0) | 30.0 (20.0-50.0) | \
                 failed: no compiler | **1.25** (1.00-1.50) | **2.50** (2.00-3.00) | 2e-6 |"
            )
        );
    }

    #[test]
    fn the_way_to_the_first_image_is_a_ratio_too() {
        let flags = flags();
        let mut page = Page::new(&flags, "ddpm 1, torch 2", 100.0);
        page.start_up(&StartUp {
            ours: vec![0.25, 0.5, 0.25],
            theirs: vec![5.0, 5.0, 6.0],
        });
        let rows: Vec<&str> = page.tables.lines().skip(7).collect();
        assert_eq!(
            rows,
            [
                "| ddpm-sample | 0.25 (0.25-0.50) | |",
                "| Python, DDIMPipeline | 5.00 (5.00-6.00) | **20.00** (10.00-24.00) |",
            ]
        );
    }
}
