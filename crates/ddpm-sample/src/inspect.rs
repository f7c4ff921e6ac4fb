//! What a model is, for people.

use ddpm_checkpoint::{Model, Weights};
use ddpm_samplers::{Clip, SchedulerConfig, StepVariance};
use ddpm_unet::{ClassKind, NetworkConfig, SampleSize};

use crate::Failure;
use crate::request::clip;

/// One line a property: network, schedule, training, weights.
pub(crate) fn inspect(model: &Model) -> Result<String, Failure> {
    let mut lines = vec![("model", model.folder.display().to_string())];
    lines.extend(model.hub.iter().map(|hub| ("hub", hub.to_string())));
    lines.extend(network(&model.unet));
    lines.extend(diffusion(model)?);
    lines.extend(training(model));
    lines.extend(
        model
            .skipped
            .iter()
            .map(|skipped| ("skipped", skipped.reason.to_string())),
    );
    Ok(lines
        .iter()
        .map(|(name, text)| format!("{name:<12}{text}\n"))
        .collect())
}

fn network(unet: &NetworkConfig) -> Vec<(&'static str, String)> {
    let size = match unet.sample_size() {
        Some(SampleSize::Square(side)) => format!("{side}x{side}"),
        Some(SampleSize::Rectangle(h, w)) => format!("{h}x{w}"),
        None => "any size".to_owned(),
    };
    let mut lines = vec![
        ("images", format!("{} channels, {size}", unet.channels())),
        ("network", unet.to_string()),
        ("parameters", grouped(unet.parameter_count())),
    ];
    lines.extend(classes(unet).map(|text| ("classes", text)));
    let unplanned = unet.unplanned().ok().flatten();
    lines.extend(unplanned.map(|why| ("plan", format!("none on the CPU, because of {why}"))));
    lines
}

fn classes(unet: &NetworkConfig) -> Option<String> {
    Some(match unet.class_kind()? {
        ClassKind::Below(classes) => format!("{}, 0 to {}", classes, classes.saturating_sub(1)),
        ClassKind::Number => "any number".to_owned(),
        ClassKind::Vector(width) => format!("vectors of {width} numbers"),
    })
}

fn diffusion(model: &Model) -> anyhow::Result<Vec<(&'static str, String)>> {
    let (scheduler, schedule) = (&model.scheduler, model.scheduler.schedule()?);
    let (first, last) = (schedule.timestep(1)?, schedule.last());
    let betas = format!(
        "beta {:.6} to {:.6}, alpha-bar_T {:.3e}",
        schedule.beta(first),
        schedule.beta(last),
        schedule.alpha_bar(last)
    );
    Ok(vec![
        ("schedule", format!("{} steps, {betas}", schedule.steps())),
        ("prediction", prediction(scheduler)),
        ("variance", variance(scheduler.variance())),
        ("clipping", clipping(&clip(model)?)),
        ("scheduler", scheduler.class().to_string()),
        ("spacing", words(&scheduler.spacing())),
    ])
}

fn prediction(scheduler: &SchedulerConfig) -> String {
    match scheduler.prediction() {
        Some(prediction) => words(&prediction),
        None => format!("as of {}", scheduler.class()),
    }
}

fn variance(variance: StepVariance) -> String {
    match variance {
        StepVariance::Fixed(variance) => words(&variance),
        learned => words(&learned),
    }
}

fn clipping(clip: &Clip) -> String {
    match clip {
        Clip::None => "none".to_owned(),
        Clip::Range(r) => format!("to [-{r}, {r}]"),
        Clip::Dynamic { ratio, most } => {
            format!("to the {ratio} quantile, from 1 to {most}")
        }
        Clip::PerChannel(ranges) => {
            let ranges: Vec<String> = ranges
                .iter()
                .map(|(low, high)| format!("[{low:.3}, {high:.3}]"))
                .collect();
            format!("per channel to {}", ranges.join(", "))
        }
    }
}

/// `FixedLarge` -> fixed-large, `Leading { offset: 1 }` -> leading { offset: 1 }.
fn words(value: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    for (index, letter) in format!("{value:?}").chars().enumerate() {
        if letter.is_uppercase() && index > 0 {
            text.push('-');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

fn training(model: &Model) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(step) = model.step() {
        lines.push(("step", step.to_string()));
    }
    let raw = model.has_raw.then(|| Weights::Raw.to_string());
    let rates = model
        .ema_rates
        .iter()
        .map(|rate| Weights::EmaRate(rate.clone()).to_string());
    let weights: Vec<String> = [Weights::Ema.to_string()]
        .into_iter()
        .chain(raw)
        .chain(rates)
        .collect();
    lines.push(("weights", weights.join(", ")));
    if let Some(run) = &model.run {
        if let Some(data) = run.get("data").and_then(toml::Value::as_table) {
            let settings: Vec<String> = data
                .iter()
                .map(|(key, value)| format!("{key} {}", plain(value)))
                .collect();
            lines.push(("data", settings.join(", ")));
        }
        let program = run.get("run").and_then(|run| run.get("program"));
        lines.extend(program.map(|program| ("program", plain(program))));
    }
    lines
}

fn plain(value: &toml::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// 35746307 -> 35,746,307.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let lead = digits.len() % 3;
    let (head, rest) = digits.split_at(lead);
    let groups = rest
        .as_bytes()
        .chunks(3)
        .map(|three| String::from_utf8_lossy(three).into_owned());
    let parts: Vec<String> = Some(head.to_owned())
        .filter(|head| !head.is_empty())
        .into_iter()
        .chain(groups)
        .collect();
    parts.join(",")
}
