//! The event files of a run hold what `metrics.jsonl` and `samples/` hold, each step once, by a decoder of the tests' own.

use std::collections::BTreeMap;
use std::path::Path;

use ddpm_image::read_png;
use ddpm_train::{MetricsLine, Run, Settings, on_threads, read_metrics};

use crate::tiny;

/// What stands under a tag at a step, as the bytes of its protocol buffer.
pub(crate) type Found = BTreeMap<(String, u64), Vec<u8>>;

/// Everything in the event files of a folder; a step that is there twice is a failure.
#[track_caller]
fn read(folder: &Path) -> Found {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.to_string_lossy().contains("tfevents"));
    let mut files: Vec<_> = files.collect();
    files.sort();
    let mut found = Found::new();
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            for (tag, step, value) in values(record(&mut rest)) {
                let before = found.insert((tag.clone(), step), value);
                assert!(before.is_none(), "{tag} is there twice at step {step}");
            }
        }
    }
    found
}

/// Takes a record off, and checks both sums.
fn record<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let (head, after) = rest.split_at(12);
    let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
    assert_eq!(masked(&head[..8]).to_le_bytes(), head[8..]);
    let (event, after) = after.split_at(length);
    let (sum, after) = after.split_at(4);
    assert_eq!(masked(event).to_le_bytes(), sum);
    *rest = after;
    event
}

/// CRC-32C bit by bit: division by the polynomial 0x1EDC6F41, bits reversed.
fn masked(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        for bit in 0..8 {
            let odd = (crc ^ u32::from(byte >> bit)) & 1 == 1;
            crc >>= 1;
            if odd {
                crc ^= 0x1edc_6f41u32.reverse_bits();
            }
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Tag, step and value of all that an event shows.
fn values(event: &[u8]) -> Vec<(String, u64, Vec<u8>)> {
    let fields = fields(event);
    let step = fields.iter().find(|field| field.0 == 2).map_or(0, |f| f.1);
    let of = |fields: &[(u64, u64, Vec<u8>)], number: u64| -> Vec<Vec<u8>> {
        let found = fields.iter().filter(|field| field.0 == number);
        found.map(|field| field.2.clone()).collect()
    };
    let summaries = of(&fields, 5);
    let values = summaries
        .iter()
        .flat_map(|summary| of(&self::fields(summary), 1));
    values
        .map(|value| {
            let fields = self::fields(&value);
            let tag = String::from_utf8(of(&fields, 1).remove(0)).unwrap();
            let shown = fields.into_iter().find(|field| field.0 != 1).unwrap();
            (tag, step, shown.2)
        })
        .collect()
}

/// Number, integer and bytes of every field of a message.
fn fields(mut rest: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn integer(rest: &mut &[u8]) -> u64 {
        let mut x = 0;
        for shift in (0..).step_by(7) {
            let byte = rest[0];
            *rest = &rest[1..];
            x |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        x
    }
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let key = integer(&mut rest);
        let (number, length) = match key % 8 {
            0 => (integer(&mut rest), 0),
            1 => (0, 8),
            2 => (0, integer(&mut rest) as usize),
            5 => (0, 4),
            other => panic!("wire type {other}"),
        };
        fields.push((key / 8, number, rest[..length].to_vec()));
        rest = &rest[length..];
    }
    fields
}

/// That the scalars are the numbers of the lines, all of them and no others.
#[track_caller]
fn check_scalars(found: &Found, lines: &[MetricsLine]) {
    let mut expected = BTreeMap::new();
    for line in lines {
        let keys = serde_json::to_value(line).unwrap();
        for (key, value) in keys.as_object().unwrap() {
            if let (Some(x), true) = (value.as_f64(), key != "step") {
                let bytes = (x as f32).to_le_bytes().to_vec();
                expected.insert((key.clone(), line.step as u64), bytes);
            }
        }
    }
    let scalar =
        |((tag, _), value): &(&(String, u64), &Vec<u8>)| value.len() == 4 && !tag.contains('/');
    let scalars = found.iter().filter(scalar);
    let scalars: BTreeMap<_, _> = scalars
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    assert_eq!(scalars, expected);
}

fn steps_of(found: &Found, tag: &str) -> Vec<u64> {
    let of = found.keys().filter(|(of, _)| of == tag);
    of.map(|(_, step)| *step).collect()
}

fn go(folder: &Path, settings: &Settings, steps: usize, resume: bool) {
    on_threads(1, || {
        let mut run = match resume {
            false => Run::begin(folder, settings, None).unwrap(),
            true => Run::resume(folder, settings).unwrap().0,
        };
        for _ in 0..steps {
            run.advance().unwrap();
        }
    })
    .unwrap();
}

#[test]
fn tensorboard_sees_each_step_once_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let text = "train = { checkpoint_every = 4, held_out_every = 5, histograms_every = 3 }\nsamples.every = 2";
    let settings = tiny(text);
    go(path, &settings, 7, false); // as if killed after step 7: the newest checkpoint is of step 4
    go(path, &settings, 6, true);
    let lines = read_metrics(&path.join("metrics.jsonl")).unwrap();
    assert_eq!(lines.len(), 10);
    let found = read(path);
    check_scalars(&found, &lines);
    assert_eq!(steps_of(&found, "held_out_loss"), [5, 10]);

    assert_eq!(steps_of(&found, "samples"), [2, 4, 6, 8, 10]);
    let image = fields(&found[&("samples".to_owned(), 8)]);
    let (picture, _) = read_png(path.join("samples/step-00000008.png")).unwrap();
    let numbers: Vec<u64> = image[..3].iter().map(|field| field.1).collect();
    let size = [picture.height(), picture.width(), picture.channels()];
    assert_eq!(numbers, size.map(|side| side as u64));
    let copy = path.join("copy.png");
    std::fs::write(&copy, &image[3].2).unwrap();
    assert_eq!(read_png(&copy).unwrap().0, picture);

    for tag in ["weights/conv_in.weight", "gradients/conv_in.weight"] {
        assert_eq!(steps_of(&found, tag), [3, 6, 9, 10]);
    }
    let histogram = fields(&found[&("weights/conv_in.weight".to_owned(), 10)]);
    let doubles = |k: usize| -> Vec<f64> {
        let numbers = histogram[k].2.chunks_exact(8);
        numbers
            .map(|x| f64::from_le_bytes(x.try_into().unwrap()))
            .collect()
    };
    let count = 4.0 * 9.0; // four channels from one, 3x3
    assert_eq!(doubles(2), [count]);
    assert_eq!(doubles(6).iter().sum::<f64>(), count);
    let (least, greatest) = (doubles(0)[0], doubles(1)[0]);
    let limits = doubles(5);
    assert!(least < limits[0] && (limits[29] - greatest).abs() < 1e-9);
}

#[test]
fn the_histograms_are_of_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let settings =
        tiny("train = { steps = 2, histograms_every = 2, held_out_images = 0 }\nsamples.count = 0");
    let expected = on_threads(1, || {
        let mut run = Run::begin(folder.path(), &settings, None).unwrap();
        run.advance().unwrap();
        run.advance().unwrap();
        run.trainer().raw_weights()
    })
    .unwrap();
    let found = read(folder.path());
    for (name, weights) in expected {
        let numbers: Vec<f32> = weights.flatten_all().unwrap().to_vec1().unwrap();
        let histogram = fields(&found[&(format!("weights/{name}"), 2)]);
        let double = |k: usize| f64::from_le_bytes(histogram[k].2[..].try_into().unwrap());
        let sum: f64 = numbers.iter().map(|x| f64::from(*x)).sum();
        assert!((double(3) - sum).abs() < 1e-9, "{name}");
    }
}

#[test]
fn where_no_event_files_are_asked_for_there_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let settings = tiny("train = { steps = 2, tensorboard = false }");
    go(folder.path(), &settings, 2, false);
    assert!(read(folder.path()).is_empty());
}
