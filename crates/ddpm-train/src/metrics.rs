//! `metrics.jsonl`: one JSON object a line, cut back when a run resumes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::replace_file;
use crate::{Error, Report, Result};

/// One line: a step, and what was measured at it. A number that is missing was not measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// The optimiser step, from 1.
    pub step: usize,
    /// The step's loss, averaged over its images.
    pub loss: f64,
    /// The loss of the images with t in the first quarter of 1..=T, the nearly clean ones.
    pub loss_q1: Option<f64>,
    /// The second quarter.
    pub loss_q2: Option<f64>,
    /// The third quarter.
    pub loss_q3: Option<f64>,
    /// The last quarter, almost noise.
    pub loss_q4: Option<f64>,
    /// The global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Images the run has trained on so far.
    pub images: u64,
    /// Images a second since the line before.
    pub images_per_second: f64,
    /// The loss of the averaged weights on images never trained on, at fixed t and noise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_out_loss: Option<f64>,
}

impl MetricsLine {
    /// The line of a step.
    pub fn new(report: &Report, images_per_second: f64, held_out_loss: Option<f64>) -> Self {
        let [loss_q1, loss_q2, loss_q3, loss_q4] = report.loss_by_quartile;
        Self {
            step: report.step,
            loss: report.loss,
            loss_q1,
            loss_q2,
            loss_q3,
            loss_q4,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            images: report.images,
            images_per_second,
            held_out_loss,
        }
    }
}

/// The open file; every line is written at once and whole. What a full disk refuses is kept and written later.
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// Bytes that are whole lines.
    whole: u64,
    /// Lines that the disk has refused so far.
    refused: String,
}

impl Metrics {
    /// Opens `path` for appending, after dropping every line of a step later than `step` and any broken line.
    ///
    /// # Errors
    /// The file cannot be read or written; the message names it.
    pub fn open_at(path: &Path, step: usize) -> Result<Self> {
        let kept = match std::fs::read(path) {
            // What a power cut left need not be text.
            Ok(bytes) => cut_back(&String::from_utf8_lossy(&bytes), step),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        replace_file(path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|e| Error::io("write", path, e))?;
        Ok(Self {
            path: path.into(),
            file,
            whole: kept.len() as u64,
            refused: String::new(),
        })
    }

    /// Appends one line, after those that were refused before.
    ///
    /// # Errors
    /// The disk refuses: the file ends with a whole line, and the next call tries again with this one too.
    pub fn write(&mut self, line: &MetricsLine) -> Result<()> {
        let text = serde_json::to_string(line);
        let text = text.map_err(|e| Error::io("write", &self.path, e.into()))?;
        self.refused.push_str(&text);
        self.refused.push('\n');
        self.flush()
    }

    /// Puts what was written, and what was refused before, on the disk, before a checkpoint relies on it.
    ///
    /// # Errors
    /// The disk refuses; nothing is lost before the end of the process.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file
            .sync_data()
            .map_err(|e| Error::io("write", &self.path, e))
    }

    fn flush(&mut self) -> Result<()> {
        if self.refused.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(self.refused.as_bytes());
        if let Err(error) = written {
            // Half a line is nothing; should cutting it off fail as well, reading drops it.
            drop(self.file.set_len(self.whole));
            return Err(Error::io("write", &self.path, error));
        }
        self.whole += self.refused.len() as u64;
        self.refused.clear();
        Ok(())
    }
}

/// Reads every line.
///
/// # Errors
/// The file cannot be read, or a line is not one of ours.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsLine>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let parse = |line| serde_json::from_str(line).map_err(|e| Error::io("read", path, e.into()));
    text.lines().map(parse).collect()
}

/// Reads the lines that are whole: one that is being written, or was when the power went, is passed over.
pub(crate) fn whole_lines(path: &Path) -> Result<Vec<MetricsLine>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let whole = |line| serde_json::from_str(line).ok();
    Ok(text.lines().filter_map(whole).collect())
}

fn cut_back(text: &str, step: usize) -> String {
    let belongs =
        |line: &&str| serde_json::from_str::<MetricsLine>(line).is_ok_and(|l| l.step <= step);
    text.lines()
        .filter(belongs)
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: usize, held_out_loss: Option<f64>) -> MetricsLine {
        let report = Report {
            step,
            loss: 0.125,
            loss_by_quartile: [Some(0.5), None, Some(0.25), Some(0.1)],
            gradient_norm: 1.5,
            learning_rate: 2e-4,
            images: 8 * step as u64,
            seconds: 0.5,
            waited: 0.0,
        };
        MetricsLine::new(&report, 16.0, held_out_loss)
    }

    #[test]
    fn lines_come_back_and_are_cut_back_to_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open_at(&path, 0).unwrap();
        for step in 1..=4 {
            metrics
                .write(&line(step, (step == 2).then_some(0.75)))
                .unwrap();
        }
        drop(metrics);
        let mut text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .contains("\"held_out_loss\":0.75"),
            "{text}"
        );
        assert!(
            text.lines().next().unwrap().contains("\"loss_q2\":null"),
            "{text}"
        );
        text.push_str("{\"step\":3,\"los"); // what a power cut leaves
        std::fs::write(&path, text).unwrap();

        let mut metrics = Metrics::open_at(&path, 3).unwrap();
        metrics.write(&line(4, None)).unwrap();
        let lines = read_metrics(&path).unwrap();
        assert_eq!(
            lines,
            [
                line(1, None),
                line(2, Some(0.75)),
                line(3, None),
                line(4, None)
            ]
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn lines_that_a_full_disk_refuses_are_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open_at(&path, 0).unwrap();
        metrics.write(&line(1, None)).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut metrics.file, full);
        for step in 2..=3 {
            let error = metrics.write(&line(step, None)).unwrap_err().to_string();
            assert!(
                error.ends_with("No space left on device (os error 28)"),
                "{error}"
            );
        }
        assert!(metrics.sync().is_err());
        metrics.file = disk;
        metrics.write(&line(4, None)).unwrap();
        let steps: Vec<_> = read_metrics(&path)
            .unwrap()
            .iter()
            .map(|l| l.step)
            .collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = Metrics::open_at(Path::new("/nowhere/metrics.jsonl"), 0)
            .err()
            .unwrap();
        assert_eq!(
            error.to_string(),
            "cannot write `/nowhere/metrics.jsonl.tmp`: No such file or directory (os error 2)"
        );
    }
}
