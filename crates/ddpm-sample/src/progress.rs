//! What is told while sampling: a bar on a terminal, a line a batch elsewhere, nothing when quiet.

use std::io::{IsTerminal, Write, stderr};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

/// Counts network evaluations of images; everything goes to standard error.
pub(crate) struct Progress {
    kind: Kind,
    images: usize,
    steps: usize,
    started: Instant,
}

enum Kind {
    Quiet,
    Lines,
    Bar(ProgressBar),
}

impl Progress {
    pub(crate) fn start(quiet: bool, images: usize, steps: usize) -> Self {
        let kind = if quiet {
            Kind::Quiet
        } else if stderr().is_terminal() {
            Kind::Bar(bar(images, steps))
        } else {
            Kind::Lines
        };
        Self {
            kind,
            images,
            steps,
            started: Instant::now(),
        }
    }

    /// Something the user should know that is no error.
    pub(crate) fn note(&self, text: &str) {
        match &self.kind {
            Kind::Quiet => {}
            Kind::Lines => line(&format!("note: {text}")),
            Kind::Bar(bar) => bar.println(format!("note: {text}")),
        }
    }

    /// One more step of so many images is done.
    pub(crate) fn stepped(&self, images: usize) {
        if let Kind::Bar(bar) = &self.kind {
            bar.inc(images as u64);
            let done = bar.position() as f64 / self.steps.max(1) as f64;
            bar.set_message(format!(
                "{:.2} images/s",
                done / self.started.elapsed().as_secs_f64().max(1e-9)
            ));
        }
    }

    /// So many images are finished.
    pub(crate) fn finished(&self, done: usize) {
        if let Kind::Lines = self.kind {
            let speed = done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
            let left = (self.images - done) as f64 / speed.max(1e-9);
            line(&format!(
                "{done} of {} images, {speed:.2} images/s, {left:.0} s left",
                self.images
            ));
        }
    }

    pub(crate) fn finish(&self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}

fn bar(images: usize, steps: usize) -> ProgressBar {
    let bar = ProgressBar::new((images as u64).saturating_mul(steps as u64));
    let style = ProgressStyle::with_template("{bar:40} {percent}%  {msg}  {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// A closed standard error is no reason to stop sampling.
fn line(text: &str) {
    drop(writeln!(stderr(), "{text}"));
}
