//! The same training as diffusers and PyTorch; recipe: tests/golden/train_20_steps.py.

use candle_core::{Device, Tensor};
use ddpm_data::Dataset;
use ddpm_kernels::Gradients;
use ddpm_train::settings::OptimizerSettings;
use ddpm_train::{Adam, Examples, Layer, Settings, Trainer, on_threads};

const GOLDEN: &str = include_str!("train_20_steps.txt");

/// The recipe's hash: a number in [-1, 1) for element i of thing k.
fn uniform(i: usize, k: usize) -> f64 {
    let mut x = ((i as u64 + 1) * 2654435761 + k as u64 * 2246822519) as u32;
    x ^= x >> 15;
    x = x.wrapping_mul(2246822519);
    x ^= x >> 13;
    f64::from(x) / 2f64.powi(31) - 1.0
}

fn tensor(shape: &[usize], k: usize, scale: f64, offset: f64) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|i| (offset + scale * uniform(i, k)) as f32)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn weight(name: &str, shape: &[usize], k: usize) -> Tensor {
    if shape.len() > 1 {
        let inputs: usize = shape[1..].iter().product();
        return tensor(shape, k, (3.0 / inputs as f64).sqrt(), 0.0);
    }
    tensor(
        shape,
        k,
        0.1,
        if name.ends_with("weight") { 1.0 } else { 0.0 },
    )
}

const SETTINGS: &str = r#"
data.name = "golden"
model = { block_out_channels = [8, 16], layers_per_block = 1, down_block_types = ["DownBlock2D", "AttnDownBlock2D"], norm_num_groups = 4 }
optimizer = { name = "adamw", learning_rate = 1e-3, warm_up = 0, weight_decay = 0.01, gradient_clip = 1.0 }
train = { steps = 20, batch_size = 4 }
"#;

fn golden_trainer() -> Trainer {
    let settings = Settings::from_layers(&[Layer::from_text("golden", SETTINGS).unwrap()])
        .unwrap()
        .resolved();
    let data = Dataset::new("golden", vec![0; 4 * 8 * 12 * 3], (8, 12, 3), None, vec![]).unwrap();
    let parameters = settings.unet_config(3, 8, 12).unwrap().parameters();
    let mut names: Vec<_> = parameters.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    let place = |name: &String| names.binary_search(name).unwrap();
    let weights = parameters
        .iter()
        .map(|(name, shape)| (name.clone(), weight(name, shape, place(name))))
        .collect();
    Trainer::with_weights(&settings, data, weights).unwrap()
}

#[test]
fn twenty_steps_have_the_losses_of_diffusers() {
    on_threads(2, || {
        let mut trainer = golden_trainer();
        for (step, line) in GOLDEN.lines().take(20).enumerate() {
            let expected: Vec<f64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            let shape = [4, 3, 8, 12];
            let time = |b| ((uniform(b, 3000 + step) + 1.0) / 2.0 * 1000.0) as usize;
            let schedule = &trainer.objective().schedule;
            let examples = Examples {
                x_0: tensor(&shape, 1000 + step, 1.0, 0.0),
                eps: tensor(&shape, 2000 + step, 3f64.sqrt(), 0.0),
                t: (0..4)
                    .map(|b| schedule.timestep(time(b) + 1).unwrap())
                    .collect(),
            };
            let report = trainer.step_on(&examples).unwrap();
            assert_eq!(report.step as f64, expected[0]);
            assert!(
                (report.loss - expected[1]).abs() < 1e-4,
                "step {}: loss {}, diffusers {line}",
                step + 1,
                report.loss
            );
            let norm = report.gradient_norm;
            assert!(
                (norm - expected[2]).abs() < 1e-3,
                "step {}: norm {norm}, diffusers {line}",
                step + 1
            );
        }
    })
    .unwrap();
}

#[track_caller]
fn check_ten_steps(line: usize, weight_decay: f64) {
    let settings = OptimizerSettings {
        beta_1: 0.8,
        beta_2: 0.95,
        epsilon: 1e-6,
        weight_decay,
        ..Default::default()
    };
    let p = [tensor(&[2, 3], 1, 1.0, 0.0)];
    let mut gradients = Gradients::zeros(&[vec![2, 3]]);
    let mut adam = Adam::new(&settings, &p).unwrap();
    for step in 0..10 {
        let gradient = tensor(&[2, 3], 10 + step, 4.0, 0.0);
        gradients.set(0, &gradient, false).unwrap();
        adam.step(&p, &gradients, 0.5, 0.05, &[]).unwrap(); // 0.5 of 4 are 2, exactly
    }
    let got = p[0].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = GOLDEN
        .lines()
        .nth(line)
        .unwrap()
        .split(' ')
        .map(|n| n.parse::<f32>().unwrap());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-6, "{got}, torch {expected}");
    }
}

#[test]
fn adamw_and_adam_are_torchs() {
    check_ten_steps(20, 0.1);
    check_ten_steps(21, 0.0);
}
