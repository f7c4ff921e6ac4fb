//! Settings and run folders with random damage: whatever is wrong there, an error or a run, never a panic or a flood.

use std::time::{Duration, Instant};

use ddpm_train::{
    Init, Layer, Metrics, Objective, PRESETS, Recorded, Run, Settings, memory_needed, on_threads,
};

use crate::{TINY, tiny};

/// A fixed sequence, so that a failure can be had again; `DDPM_MUTATIONS=100000` makes it longer.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % n.max(1)
    }
}

fn rounds(usual: usize) -> usize {
    let said = std::env::var("DDPM_MUTATIONS").ok();
    said.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// What people and disks put into settings.
const WORDS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "1e308",
    "1e-308",
    "nan",
    "inf",
    "18446744073709551615",
    "9223372036854775807",
    "[]",
    "[0]",
    "\"\"",
    "true",
    "[model]\n",
    "steps = 2\n",
    "=",
    "\"ResnetDownsampleBlock2D\"",
    "\"SkipDownBlock2D\"",
    "\"cosine\"",
    "\"scale_shift\"",
    "4294967296",
    "\u{fffd}",
    "\n",
    "# ",
];

/// One to four pieces changed, inserted, doubled or taken out.
fn damaged(whole: &str, dice: &mut Dice) -> String {
    let mut bytes = whole.as_bytes().to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(6) {
            0 => bytes[at] = dice.below(256) as u8,
            1 => drop(bytes.splice(at..at, WORDS[dice.below(WORDS.len())].bytes())),
            2 => {
                // A value gives way to another.
                let end = at + bytes[at..].iter().position(|b| *b == b'\n').unwrap_or(0);
                let start = at
                    + bytes[at..end]
                        .iter()
                        .position(|b| *b == b'=')
                        .map_or(0, |i| i + 1);
                drop(bytes.splice(start..end, WORDS[dice.below(WORDS.len())].bytes()));
            }
            3 => drop(bytes.drain(at..(at + dice.below(20)).min(bytes.len()))),
            4 => {
                let end = (at + dice.below(60)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = dice.below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            _ => bytes.truncate(at.max(1)),
        }
        if bytes.is_empty() {
            bytes.push(b' ');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn no_settings_make_it_panic_or_take_all_memory() {
    let recorded = tiny("").to_toml().unwrap();
    let mut texts: Vec<&str> = PRESETS.iter().map(|preset| preset.text).collect();
    texts.extend([TINY, recorded.as_str()]);
    let mut dice = Dice(3);
    let (mut possible, mut slowest) = (0, Duration::ZERO);
    for round in 0..rounds(600) {
        let text = damaged(texts[round % texts.len()], &mut dice);
        let began = Instant::now();
        possible += usize::from(go_through(&text).is_ok());
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?} for\n{text}");
        slowest = slowest.max(took);
    }
    println!("{possible} possible, the slowest took {slowest:?}");
    assert!(possible > 20, "only {possible} were possible");
}

/// Everything that is done with settings before the first step, without the data.
fn go_through(text: &str) -> ddpm_train::Result<()> {
    let settings = Settings::from_layers(&[Layer::from_text("damaged", text)?])?.resolved();
    settings.check()?;
    settings.check_data(1000, (3, 16, 16))?;
    Objective::new(&settings.diffusion)?;
    let config = settings.unet_config(3, 16, 16)?;
    assert!(config.parameter_count() > 0);
    if settings.train.batch_size <= 64 && settings.samples.count <= 64 {
        memory_needed(&settings, &config, (16, 16))?;
    }
    settings.data_spec()?;
    settings.to_toml().map(drop)
}

#[test]
fn no_run_folder_makes_it_panic() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = tiny("train = { steps = 4, checkpoint_every = 2 }\nsamples.count = 0");
    let finish = || {
        let mut begun = Run::begin(&run, &settings, None).unwrap();
        while !begun.finished() {
            begun.advance().unwrap();
        }
    };
    on_threads(1, finish).unwrap();
    let mut dice = Dice(5);
    let mut read = 0;
    for name in [
        "run.toml",
        "metrics.jsonl",
        "checkpoints/step-00000004/run.toml",
    ] {
        let path = run.join(name);
        let whole = std::fs::read_to_string(&path).unwrap();
        for _ in 0..rounds(200) {
            std::fs::write(&path, damaged(&whole, &mut dice)).unwrap();
            read += usize::from(Recorded::read(&run).is_ok());
            drop(Init::read(
                &run,
                &ddpm_checkpoint::Arch::default(),
                &ddpm_checkpoint::Weights::Raw,
            ));
            if name == "metrics.jsonl" {
                Metrics::open_at(&path, 3).unwrap();
                let kept = ddpm_train::read_metrics(&path).unwrap();
                assert!(kept.iter().all(|line| line.step <= 3));
            }
        }
        std::fs::write(&path, &whole).unwrap();
    }
    assert!(read > 0);
}
