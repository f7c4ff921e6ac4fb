//! How a run looks from the terminal: a bar there, plain lines elsewhere, nothing with `--quiet`.

use std::io::IsTerminal;
use std::io::Write;
use std::time::{Duration, Instant};

use ddpm_train::{Progress, Settings};
use indicatif::{ProgressBar, ProgressStyle};

/// The display of one run.
pub(crate) struct Display {
    kind: Kind,
    limit: Limit,
    started: Instant,
    images_before: Option<u64>,
    smooth_loss: Option<f64>,
    /// Seconds that the network waited for images, and seconds of steps.
    waited: (f64, f64),
}

enum Kind {
    Quiet,
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

#[derive(Clone, Copy)]
struct Limit {
    steps: Option<usize>,
    seconds: Option<f64>,
}

/// Between plain lines.
const PAUSE: Duration = Duration::from_secs(5);

impl Display {
    pub(crate) fn new(settings: &Settings, quiet: bool) -> Self {
        let limit = Limit {
            steps: settings.train.steps,
            seconds: settings.train.minutes.map(|m| 60.0 * m),
        };
        let kind = match quiet {
            true => Kind::Quiet,
            false if std::io::stderr().is_terminal() => Kind::Bar(bar()),
            false => Kind::Lines { last: None },
        };
        Self {
            kind,
            limit,
            started: Instant::now(),
            images_before: None,
            smooth_loss: None,
            waited: (0.0, 0.0),
        }
    }

    /// Shows a step; `seconds` of training are behind the run.
    pub(crate) fn show(&mut self, progress: &Progress, seconds: f64, batch: usize) {
        let report = &progress.report;
        let before = *self
            .images_before
            .get_or_insert(report.images - batch as u64);
        let rate = (report.images - before) as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let smooth = self
            .smooth_loss
            .map_or(report.loss, |smooth| 0.95 * smooth + 0.05 * report.loss);
        self.smooth_loss = Some(smooth);
        self.waited.0 += report.waited;
        self.waited.1 += report.seconds;
        let text = self.line(progress, smooth, rate, seconds, batch);
        for warning in &progress.warnings {
            self.warn(warning);
        }
        match &mut self.kind {
            Kind::Quiet => {}
            Kind::Bar(bar) => {
                bar.set_position((1e4 * self.limit.fraction(report.step, seconds)) as u64);
                bar.set_message(text);
                if let Some(news) = news(progress) {
                    bar.println(news);
                }
            }
            Kind::Lines { last } => {
                if progress.last || last.is_none_or(|last| last.elapsed() >= PAUSE) {
                    *last = Some(Instant::now());
                    say(&text);
                }
                if let Some(news) = news(progress) {
                    say(&news);
                }
            }
        }
    }

    /// A warning is said also with `--quiet`.
    fn warn(&self, warning: &str) {
        let text = format!("warning: {warning}");
        match &self.kind {
            Kind::Bar(bar) => bar.println(text),
            Kind::Quiet | Kind::Lines { .. } => say(&text),
        }
    }

    /// Something that the user should know and that is no warning.
    pub(crate) fn note(&self, note: &str) {
        let text = format!("note: {note}");
        match &self.kind {
            Kind::Quiet => {}
            Kind::Bar(bar) => bar.println(text),
            Kind::Lines { .. } => say(&text),
        }
    }

    /// Leaves the terminal as it was.
    pub(crate) fn finish(&self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }

    fn line(
        &self,
        progress: &Progress,
        loss: f64,
        rate: f64,
        seconds: f64,
        batch: usize,
    ) -> String {
        let step = progress.report.step;
        let of = self
            .limit
            .steps
            .map_or(String::new(), |steps| format!("/{steps}"));
        let left = self.limit.seconds_left(step, seconds, rate / batch as f64);
        let waited = 100.0 * self.waited.0 / self.waited.1.max(1e-9);
        format!(
            "step {step}{of}  loss {loss:.4}  {rate:.0} images/s  {waited:.0}% waiting for data  {} left",
            clock(left)
        )
    }
}

impl Limit {
    fn fraction(&self, step: usize, seconds: f64) -> f64 {
        let by_steps = self.steps.map_or(0.0, |steps| step as f64 / steps as f64);
        let by_seconds = self.seconds.map_or(0.0, |limit| seconds / limit);
        by_steps.max(by_seconds).min(1.0)
    }

    fn seconds_left(&self, step: usize, seconds: f64, steps_per_second: f64) -> f64 {
        let by_steps = self.steps.map_or(f64::INFINITY, |steps| {
            steps.saturating_sub(step) as f64 / steps_per_second
        });
        let by_seconds = self.seconds.map_or(f64::INFINITY, |limit| limit - seconds);
        by_steps.min(by_seconds).max(0.0)
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(10_000).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

fn news(progress: &Progress) -> Option<String> {
    let mut parts = Vec::new();
    parts.extend(
        progress
            .held_out_loss
            .map(|loss| format!("held-out loss {loss:.4}")),
    );
    parts.extend(
        progress
            .picture
            .as_ref()
            .map(|path| format!("picture {}", path.display())),
    );
    parts.extend(
        progress
            .checkpoint
            .as_ref()
            .map(|path| format!("checkpoint {}", path.display())),
    );
    (!parts.is_empty()).then(|| format!("step {}: {}", progress.report.step, parts.join(", ")))
}

fn clock(seconds: f64) -> String {
    let s = seconds.min(1e9).round() as u64;
    if s >= 3600 {
        format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    } else {
        format!("{}:{:02}", s / 60, s % 60)
    }
}

/// A line on the error stream; a reader that went away is no reason to end a training.
pub(crate) fn say(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
