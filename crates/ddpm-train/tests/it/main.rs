//! Tests of training: formulas, settings, golden losses, exact resume, and the program as a user sees it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy takes the functions that tests share for library code"
)]

mod barriers;
mod by_graph;
mod events;
mod export;
mod faults;
mod formulas;
mod golden;
mod init;
mod mutations;
mod pictures;
mod program;
mod report;
mod resume;
mod settings;
mod training;

use ddpm_checkpoint::TrainState;
use ddpm_data::Dataset;
use ddpm_train::{Layer, Settings};

/// All tensors of a state, weights, moments and averages, as bits.
pub(crate) fn bits(state: &TrainState) -> Vec<(String, Vec<u32>)> {
    let bits = |tensor: &candle_core::Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    let tensors = state.tensors.iter();
    tensors
        .map(|(name, tensor)| (name.clone(), bits(tensor)))
        .collect()
}

/// A two-level network that takes milliseconds a step, on the digits, with text laid over it, on the device of the tests.
pub(crate) fn tiny(text: &str) -> Settings {
    let base = Layer::from_text("tiny", TINY).unwrap();
    let layers = [base, Layer::from_text("test", text).unwrap()];
    let mut settings = Settings::from_layers(&layers).unwrap();
    settings.train.device = ddpm_tests::device_name();
    settings.resolved()
}

pub(crate) const TINY: &str = r#"
[data]
name = "digits"
[model]
block_out_channels = [4, 8]
layers_per_block = 1
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
norm_num_groups = 2
dropout = 0.1
[diffusion]
timesteps = 50
[optimizer]
learning_rate = 2e-3
warm_up = 3
[ema]
rates = [0.9, 0.999]
[train]
steps = 10
batch_size = 4
checkpoint_every = 5
held_out_images = 6
[samples]
count = 4
steps = 3
"#;

/// `n` images of 4 rows and 6 columns and 3 channels, all different.
pub(crate) fn images(n: usize) -> Dataset {
    let pixels = (0..n * 4 * 6 * 3)
        .map(|i| (i * i * 31 + i * 7) as u8)
        .collect();
    Dataset::new("pattern", pixels, (4, 6, 3), None, vec![]).unwrap()
}
