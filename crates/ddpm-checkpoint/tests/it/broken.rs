//! Corrupt input: whatever byte is wrong, there is an error or a model, never a panic.

use std::fs;

use ddpm_checkpoint::{Weights, newest_whole, read_train_state, resolve_model, write_checkpoint};

use crate::{RUN_TOML, tiny_pipeline, tiny_state};

/// A fixed sequence, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

#[test]
fn no_damage_makes_it_panic() {
    let run = tempfile::tempdir().unwrap();
    let folder =
        write_checkpoint(run.path(), 1, &tiny_pipeline(0), &tiny_state(), RUN_TOML).unwrap();
    let files = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "train_state.safetensors",
        "run.toml",
    ];
    let said = std::env::var("DDPM_MUTATIONS").ok(); // a longer proof than usual
    let rounds: usize = said.and_then(|text| text.parse().ok()).unwrap_or(120);
    let mut dice = Dice(17);
    let mut errors = 0;
    for name in files {
        let path = folder.join(name);
        let whole = fs::read(&path).unwrap();
        for _ in 0..rounds {
            fs::write(&path, damaged(&whole, &mut dice)).unwrap();
            let newest = newest_whole(run.path()).unwrap();
            errors += newest.skipped.len();
            if let Ok(model) = resolve_model(&folder) {
                drop(model.load(&Weights::Ema));
                drop(model.load(&Weights::Raw));
            }
            drop(read_train_state(&folder));
        }
        fs::write(&path, &whole).unwrap();
    }
    assert!(errors > 200, "only {errors} damages were noticed");
    assert!(newest_whole(run.path()).unwrap().checkpoint.is_some());
}

/// One to three bytes changed, inserted or removed, or the end cut off; most often where a header would be.
fn damaged(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let reach = bytes.len().min(2000);
    for _ in 0..=dice.below(3) {
        let at = dice
            .below(reach.min(bytes.len()).max(1))
            .min(bytes.len().saturating_sub(1));
        match dice.below(5) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.below(256) as u8,
            2 => bytes.insert(at, b"0123456789-{}[]\",:e"[dice.below(19)]),
            3 => drop(bytes.remove(at)),
            _ => bytes.truncate(dice.below(bytes.len()).max(1)),
        }
    }
    bytes
}
