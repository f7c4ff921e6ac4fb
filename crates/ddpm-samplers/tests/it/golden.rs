//! Every scheduler class in diffusers' own numbers: golden walks made by tests/golden/scheduler_walks.py.

use crate::{Waves, formula, numbers, start};
use candle_core::Tensor;
use ddpm_core::{NoiseSource, Result};
use ddpm_samplers::{
    Choice, Direction, Error, Process, RePaintSettings, Sampler, SchedulerClass, SchedulerConfig,
    Steps, repaint,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// The golden recipe's network.
fn network(x: &Tensor, time: &[f64]) -> Result<Tensor> {
    let wave = ((x * 3.0)?.cos()? * 0.3)?;
    Ok((((x * 0.6)? + wave)? - 0.2 * (time[0] / 100.0).sin())?)
}

/// With a variance of its own.
fn twice(x: &Tensor, time: &[f64]) -> Result<Tensor> {
    let variance = (((x * 5.0)?.sin()? * 0.1)? + 0.2)?;
    Ok(Tensor::cat(&[network(x, time)?, variance], 1)?)
}

/// A score that is told sigma.
fn score(x: &Tensor, sigma: &[f64]) -> Result<Tensor> {
    let eps = network(&(x / sigma[0])?, &[sigma[0] * 10.0])?;
    Ok((eps / -sigma[0])?)
}

/// The waves, counted.
struct Counted(usize);

impl NoiseSource for Counted {
    fn draw(&mut self, draw: usize, like: &Tensor) -> Result<Tensor> {
        assert_eq!(draw, self.0);
        self.0 += 1;
        Waves.draw(draw, like)
    }

    fn skip(&mut self, draw: usize, _: &Tensor) -> Result<()> {
        assert_eq!(draw, self.0);
        self.0 += 1;
        Ok(())
    }
}

fn config(case: &Value) -> SchedulerConfig {
    let mut keys = case["keys"].clone();
    keys["_class_name"] = case["cls"].clone();
    SchedulerConfig::from_json(&keys.to_string()).unwrap()
}

fn whole(list: &Value) -> Option<Vec<f64>> {
    let list = list.as_array()?.iter();
    Some(list.map(|v| v.as_f64().unwrap()).collect())
}

fn choice(case: &Value) -> Choice {
    let how = &case["how"];
    let steps = match (whole(&how["timesteps"]), whole(&how["sigmas"])) {
        (Some(times), _) => Steps::Times(times.into_iter().map(|t| t as usize).collect()),
        (_, Some(sigmas)) => Steps::Sigmas(sigmas),
        _ => Steps::Number(case["steps"].as_u64().unwrap() as usize),
    };
    Choice {
        steps,
        eta: how["eta"].as_f64().unwrap_or(0.0),
        ..Choice::steps(1).as_diffusers()
    }
}

/// The images at the end, and how often noise was drawn.
fn walked(case: &Value) -> (Tensor, usize) {
    let (config, how) = (config(case), &case["how"]);
    let mut noise = Counted(0);
    if config.class() == SchedulerClass::RePaint {
        let x = repainted(case, &config, &mut noise);
        return (x, noise.0);
    }
    let mut sampler = config.sampler(&choice(case)).unwrap();
    if let (Sampler::Ddim(_, settings), true) =
        (&mut sampler, how["use_clipped_model_output"] == true)
    {
        settings.direction = Direction::FromClipped;
    }
    let learned = case["keys"]["variance_type"]
        .as_str()
        .is_some_and(|word| word.starts_with("learned"));
    let network = match config.class() {
        SchedulerClass::ScoreSdeVe => score,
        _ if learned => twice,
        _ => network,
    };
    let x = sampler.walk(&network, &start(), &mut noise).last();
    let x = x.unwrap().unwrap().x;
    let (promised, class) = (sampler.draws(), config.class());
    assert!(promised <= noise.0, "{class}: {promised}, {}", noise.0);
    (x, noise.0)
}

fn repainted(case: &Value, config: &SchedulerConfig, noise: &mut Counted) -> Tensor {
    assert!(matches!(
        config.sampler(&choice(case)),
        Err(Error::NeedsImage)
    ));
    let process: Process = config.process(config.steps()).unwrap();
    let settings = RePaintSettings {
        image: formula(|i| (0.4 * i).cos() * 0.9),
        known: formula(|i| f64::from((0.9 * i).sin() > 0.0)),
        eta: case["how"]["eta"].as_f64().unwrap(),
        jump_length: case["how"]["jump_length"].as_u64().unwrap() as usize,
        jump_count: case["how"]["jump_n_sample"].as_u64().unwrap() as usize,
    };
    let steps = case["steps"].as_u64().unwrap() as usize;
    let walk = repaint(&process, steps, settings, &network, &start(), noise);
    walk.last().unwrap().unwrap().x
}

/// To 5e-5 of the largest number: 0.02 levels of an 8-bit image.
#[test]
fn walks_are_diffusers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../golden/walks.json")).unwrap();
    assert_eq!(cases.len(), 271);
    let mut worst: BTreeMap<&str, f64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let (x, draws) = walked(case);
        let got: Vec<f64> = numbers(&x).into_iter().step_by(7).collect();
        let expected = whole(&case["end"]).unwrap();
        let size = expected.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
        let off = got.iter().zip(&expected).map(|(a, b)| (a - b).abs() / size);
        let off = off.fold(0.0, |m: f64, x| if x > m || x.is_nan() { x } else { m });
        let of_class = worst.entry(case["cls"].as_str().unwrap()).or_default();
        *of_class = of_class.max(off);
        if !(off < 5e-5 && draws as u64 == case["draws"].as_u64().unwrap()) {
            wrong.push(format!(
                "{number}: off by {off:e}, {draws} draws for {}: {} {} {} {}",
                case["draws"], case["cls"], case["steps"], case["how"], case["keys"]
            ));
        }
    }
    println!("{worst:#?}");
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), wrong.len());
}
