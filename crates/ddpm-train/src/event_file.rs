//! TensorBoard's event files: written record by record, read back, and cut back when a run resumes.
//!
//! A record is its length (u64), the length's checksum, the event, the event's checksum; all little-endian, the checksums
//! CRC-32C, turned and shifted as TensorFlow's `lib/hash/crc32c.h` does. An event is a protocol buffer of TensorFlow's
//! `core/util/event.proto`, of which this writes the few fields that TensorBoard reads.

mod checksum;
mod message;

use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use checksum::masked_crc32c;
use message::Message;

use crate::{Error, Result};

pub use message::Histogram;

/// One thing that is shown at a step, under a tag.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// A number, kept as f32.
    Scalar(f64),
    /// A PNG.
    Image {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// 1 for grey, 3 for RGB.
        channels: usize,
        /// The file.
        png: Vec<u8>,
    },
    /// How numbers are spread.
    Histogram(Histogram),
}

/// An event file that is being written; every event is written at once and whole.
pub struct EventFile {
    path: PathBuf,
    file: File,
    /// Bytes that are whole records.
    whole: u64,
}

/// What every name of ours has; TensorBoard looks for `tfevents`.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".ddpm-train";

impl EventFile {
    /// Begins a new file in `folder` for what comes after `step`, and drops from the older ones of ours every event of a
    /// later step, so that each step is there once. A file that holds nothing more is removed.
    ///
    /// A TensorBoard that is looking on is told by the new file to forget the steps that were dropped.
    ///
    /// # Errors
    /// A file cannot be read, cut or written; the message names it.
    pub fn begin(folder: &Path, step: usize) -> Result<Self> {
        let mut newest = 0;
        for (seconds, path) in event_files(folder)? {
            cut_back(&path, step)?;
            newest = newest.max(seconds);
        }
        // Readers take the files in the order of their names, also where the clock was put back.
        let mut seconds = now().as_secs().max(newest + 1);
        let (path, file) = loop {
            let path = folder.join(format!("{PREFIX}{seconds:010}{SUFFIX}"));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => seconds += 1,
                Err(e) => return Err(Error::io("write", &path, e)),
            }
        };
        let mut begun = Self {
            path,
            file,
            whole: 0,
        };
        begun.write_event(0, version)?;
        if step > 0 {
            // `SessionLog.START`: what was shown from this step on counts no more.
            begun.write_event(step + 1, start)?;
        }
        Ok(begun)
    }

    /// Writes what is shown at a step: tags, and what stands under each.
    pub fn write(&mut self, step: usize, shown: &[(String, Shown)]) -> Result<()> {
        self.write_event(step, |event| summary(event, shown))
    }

    /// Asks the system to put what was written on the disk, before a checkpoint relies on it.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| Error::io("write", &self.path, e))
    }

    fn write_event(&mut self, step: usize, fill: impl FnOnce(&mut Message)) -> Result<()> {
        let record = record(&event(now().as_secs_f64(), step, fill));
        if let Err(error) = self.file.write_all(&record) {
            // Readers stop at half a record and would never see what follows it.
            drop(self.file.set_len(self.whole));
            return Err(Error::io("write", &self.path, error));
        }
        self.whole += record.len() as u64;
        Ok(())
    }
}

/// An event of a moment (seconds since 1970) and a step, which is left out where it is 0.
fn event(seconds: f64, step: usize, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, seconds);
    if step > 0 {
        event.number(2, step as u64);
    }
    fill(&mut event);
    event.into_bytes()
}

fn version(event: &mut Message) {
    event.text(3, "brain.Event:2");
}

fn start(event: &mut Message) {
    event.message(7, |log| log.number(1, 1));
}

fn summary(event: &mut Message, shown: &[(String, Shown)]) {
    event.message(5, |summary| {
        for (tag, shown) in shown {
            summary.message(1, |value| {
                value.text(1, tag);
                message::fill(value, shown);
            });
        }
    });
}

fn now() -> std::time::Duration {
    // Before 1970 all is 0.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc32c(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc32c(event).to_le_bytes());
    record
}

/// The event files of ours in a folder, with the second in their names.
fn event_files(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let io = |e| Error::io("read", folder, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let seconds = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        if let Some(seconds) = seconds.and_then(|seconds| seconds.parse().ok()) {
            files.push((seconds, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// Cuts a file off before its first event of a later step, or the first record that is not whole: steps only grow in a
/// file. One that is left with nothing to show is removed.
fn cut_back(path: &Path, step: usize) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let length = file.metadata().map_err(|e| Error::io("read", path, e))?;
    let records = Records {
        reader: BufReader::new(file),
        left: length.len(),
    };
    let (mut end, mut kept) = (0, 0);
    for event in records {
        if message::step(&event).is_none_or(|of| of > step as u64) {
            break;
        }
        end += event.len() as u64 + 16;
        kept += 1;
    }
    if kept <= 1 {
        // Nothing, or the version alone.
        return std::fs::remove_file(path).map_err(|e| Error::io("remove", path, e));
    }
    if end < length.len() {
        let file = OpenOptions::new().write(true).open(path);
        file.and_then(|file| {
            file.set_len(end)?;
            file.sync_all()
        })
        .map_err(|e| Error::io("write", path, e))?;
    }
    Ok(())
}

/// The events of a file up to the first record that is not whole.
struct Records<R> {
    reader: R,
    /// Bytes that are still to come, so that a damaged length asks for no more memory than there are bytes.
    left: u64,
}

impl<R: Read> Iterator for Records<R> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let head = self.bytes(12)?;
        let (length, sum) = head.split_at(8);
        if masked_crc32c(length).to_le_bytes() != *sum {
            return None;
        }
        let event = self.bytes(u64::from_le_bytes(length.try_into().ok()?))?;
        let sum = self.bytes(4)?;
        (masked_crc32c(&event).to_le_bytes() == *sum).then_some(event)
    }
}

impl<R: Read> Records<R> {
    fn bytes(&mut self, count: u64) -> Option<Vec<u8>> {
        self.left = self.left.checked_sub(count)?;
        let mut bytes = vec![0; usize::try_from(count).ok()?];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(tag: &str, x: f64) -> (String, Shown) {
        (tag.into(), Shown::Scalar(x))
    }

    /// Step and simple scalars of every event of every file, in the order in which a reader takes them.
    fn read(folder: &Path) -> Vec<(u64, Vec<(String, f32)>)> {
        let mut events = Vec::new();
        for (_, path) in event_files(folder).unwrap() {
            let bytes = std::fs::read(&path).unwrap();
            let left = bytes.len() as u64;
            let reader = &bytes[..];
            for event in (Records { reader, left }) {
                let scalars = message::scalars(&event);
                if !scalars.is_empty() {
                    events.push((message::step(&event).unwrap(), scalars));
                }
            }
        }
        events
    }

    fn steps(folder: &Path) -> Vec<u64> {
        read(folder).into_iter().map(|(step, _)| step).collect()
    }

    #[test]
    fn records_are_those_of_tensorboards_writer() {
        let image = Shown::Image {
            width: 6,
            height: 4,
            channels: 3,
            png: (0..200).collect(),
        };
        let histogram = Histogram::of(&[-1.0, 0.0625, 0.53125, 2.0]).unwrap();
        let weights = "weights/conv_in.weight".into();
        let shown = [
            (
                301,
                vec![scalar("loss", 0.125), scalar("learning_rate", 2e-4)],
            ),
            (1000, vec![("samples".into(), image)]),
            (1000, vec![(weights, Shown::Histogram(histogram))]),
        ];
        let when = 1.7e9 + 0.25;
        let mut records = vec![
            record(&event(when, 0, version)),
            record(&event(when, 301, start)),
        ];
        records.extend(
            shown
                .iter()
                .map(|(step, shown)| record(&event(when, *step, |event| summary(event, shown)))),
        );
        let golden: Vec<&str> = include_str!("event_file/golden.txt")
            .lines()
            .skip(1)
            .collect();
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        for (record, golden) in records.iter().zip(&golden) {
            assert_eq!(hex(record), *golden);
        }
        assert_eq!(golden.len(), 5);
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::begin(folder.path(), 0).unwrap();
        file.write(1, &[scalar("loss", 0.5), scalar("rate", 2e-4)])
            .unwrap();
        file.write(300, &[scalar("loss", 0.25)]).unwrap();
        file.sync().unwrap();
        let expected = vec![
            (1, vec![("loss".into(), 0.5), ("rate".into(), 2e-4f32)]),
            (300, vec![("loss".into(), 0.25)]),
        ];
        assert_eq!(read(folder.path()), expected);
    }

    #[test]
    fn every_step_is_there_once_after_a_resume() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let write = |from: usize, to: usize| {
            let mut file = EventFile::begin(path, from).unwrap();
            for step in from + 1..=to {
                file.write(step, &[scalar("loss", step as f64)]).unwrap();
            }
        };
        let until = |last: u64| (1..=last).collect::<Vec<_>>();
        write(0, 7); // killed after 7, its checkpoint is of step 4
        write(4, 9);
        assert_eq!(steps(path), until(9));
        write(6, 6); // twice from the same checkpoint: the one that wrote nothing leaves nothing
        write(6, 8);
        assert_eq!(steps(path), until(8));
        assert_eq!(event_files(path).unwrap().len(), 3);
        write(3, 3); // further back: files of later steps only are gone
        assert_eq!(steps(path), until(3));
        assert_eq!(event_files(path).unwrap().len(), 2);
        write(0, 2);
        assert_eq!(steps(path), until(2));
        assert_eq!(event_files(path).unwrap().len(), 1);
    }

    #[test]
    fn a_broken_end_is_cut_off_and_what_others_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let mut file = EventFile::begin(path, 0).unwrap();
        for step in 1..=5 {
            file.write(step, &[scalar("loss", 1.0)]).unwrap();
        }
        let name = event_files(path).unwrap()[0].1.clone();
        let whole = std::fs::read(&name).unwrap();
        let foreign = path.join("events.out.tfevents.1.elsewhere");
        std::fs::write(&foreign, b"not ours").unwrap();
        for cut in 1..whole.len() {
            std::fs::write(&name, &whole[..cut]).unwrap();
            cut_back(&name, 5).unwrap();
            assert!(!name.exists() || std::fs::read(&name).unwrap().len() <= cut);
        }
        let mut wrong = whole.clone();
        let place = whole.len() - 20; // in the last event
        wrong[place] ^= 1;
        std::fs::write(&name, &wrong).unwrap();
        cut_back(&name, 5).unwrap();
        assert_eq!(steps(path), [1, 2, 3, 4]);
        // A length that asks for the moon.
        wrong = whole.clone();
        wrong.extend(u64::MAX.to_le_bytes());
        wrong.extend(masked_crc32c(&u64::MAX.to_le_bytes()).to_le_bytes());
        std::fs::write(&name, &wrong).unwrap();
        cut_back(&name, 5).unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), whole);
        assert_eq!(std::fs::read(&foreign).unwrap(), b"not ours");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_full_disk_refuses_leaves_the_file_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::begin(folder.path(), 0).unwrap();
        file.write(1, &[scalar("loss", 1.0)]).unwrap();
        // Half a record arrives, and then the disk is full.
        file.file.write_all(&[7; 9]).unwrap();
        let path = file.path.clone();
        file.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = file.write(2, &[scalar("loss", 2.0)]).unwrap_err();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(error.is_the_disks() && error.to_string().contains(name));
        file.file = OpenOptions::new().append(true).open(&path).unwrap();
        file.file.set_len(file.whole).unwrap();
        file.write(3, &[scalar("loss", 3.0)]).unwrap();
        assert_eq!(steps(folder.path()), [1, 3]);
    }

    #[test]
    fn names_grow_also_where_the_clock_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::begin(folder.path(), 0).unwrap();
        file.write(1, &[scalar("loss", 1.0)]).unwrap();
        let (_, path) = event_files(folder.path()).unwrap().remove(0);
        let future = folder.path().join(format!("{PREFIX}9000000000{SUFFIX}"));
        std::fs::rename(path, &future).unwrap();
        EventFile::begin(folder.path(), 1).unwrap();
        let files = event_files(folder.path()).unwrap();
        assert_eq!(files[0].1, future);
        assert_eq!(files[1].0, 9_000_000_001);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = EventFile::begin(Path::new("/nowhere"), 0).err().unwrap();
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }
}
