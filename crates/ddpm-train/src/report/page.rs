//! The page: HTML that needs nothing beside itself, light or dark as the reader's system, on a phone as well.

mod environment;

use std::fmt::Write;

use ddpm_image::{Chart, Picture, encode_png};
use toml::Value;

use super::nearest::{Likeness, Others};
use super::{Evidence, Shown, Walk, curves, pictures};
use crate::{MetricsLine, Result};

/// The whole page.
pub(super) fn html(evidence: &Evidence<'_>, shown: &Shown) -> Result<String> {
    let name = evidence.folder.file_name().unwrap_or_default();
    let title = escaped(&name.to_string_lossy());
    let mut sections = vec![
        section("numbers", "Numbers", &numbers(evidence, shown)),
        section("loss", "Loss", &losses(&shown.metrics)),
    ];
    match &shown.walk {
        Some(walk) => sections.extend(of_samples(evidence, walk)?),
        None => sections.push(section(
            "samples",
            "Samples",
            "<p>None were made: <code>samples.count</code> is 0.</p>",
        )),
    }
    sections.push(section("forward", "Forward", &forward(evidence, shown)?));
    sections.push(section("settings", "Settings", &settings(evidence)?));
    let environment = environment::rows(&evidence.run);
    let environment = format!(
        "{}<p>Of the machine that made this page.</p>",
        table(&environment)
    );
    sections.push(section("environment", "Environment", &environment));
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n{}</main>\n</body>\n</html>\n",
        sections.concat()
    ))
}

const STYLE: &str = "
:root { color-scheme: light dark; --ground: #fff; --text: #222; --quiet: #666; --rule: #ddd; --panel: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --text: #e4e4e4; --quiet: #a0a0a0; --rule: #383c42; --panel: #1f2226; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.7rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid var(--rule); padding-bottom: 0.2rem; }
h3 { font-size: 1rem; margin: 1rem 0 0.3rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.95rem; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.6rem 0.25rem 0; border-bottom: 1px solid var(--rule); }
th { font-weight: normal; color: var(--quiet); width: 14rem; max-width: 45vw; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
figure { margin: 0.8rem 0; }
figcaption { color: var(--quiet); font-size: 0.9rem; max-width: 46rem; }
.plot { overflow-x: auto; }
.plot svg { min-width: 480px; width: 100%; height: auto; display: block; }
img { image-rendering: pixelated; display: block; max-width: 100%; height: auto; }
.side { display: flex; flex-wrap: wrap; gap: 16px; }
.side figure { flex: 1 1 280px; margin: 0; min-width: 0; }
.side img, .wide img { width: 100%; }
.film img { width: 22rem; }
.columns { columns: 24rem; column-gap: 2rem; }
.columns div { break-inside: avoid; padding-bottom: 0.8rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 10px; }
.pairs figure { margin: 0; background: var(--panel); padding: 6px; border-radius: 4px; }
.pairs img { width: 100%; }
.pairs figcaption { font-size: 0.8rem; }
";

/// How far the run has come, and how good it is.
fn numbers(evidence: &Evidence<'_>, shown: &Shown) -> String {
    let counts = &evidence.counts;
    let (images, size) = (evidence.data.len(), evidence.data);
    let passes = counts.images as f64 / images as f64;
    let mut rows = vec![
        row(
            "data",
            format!(
                "{}: {} images of {}x{}, {}",
                size.name(),
                grouped(images as u64),
                size.height(),
                size.width(),
                if size.channels() == 1 {
                    "grey"
                } else {
                    "colour"
                }
            ),
        ),
        row("parameters", grouped(counts.parameters as u64)),
        row(
            "optimiser steps",
            format!(
                "{}, of {} images",
                grouped(counts.step),
                evidence.settings.train.batch_size
            ),
        ),
        row(
            "images seen",
            format!(
                "{}: the data {} times",
                grouped(counts.images),
                some_digits(passes)
            ),
        ),
        row("time in training", clock(counts.seconds)),
    ];
    rows.extend(left_out(&evidence.run));
    rows.extend(speed(&shown.metrics));
    rows.extend(loss_rows(&shown.metrics));
    if let Some(walk) = &shown.walk {
        let middle = |numbers: &[f64]| numbers.get(numbers.len() / 2).copied();
        let likeness = &walk.likeness;
        if let (Some(of_samples), Some(of_others)) =
            (middle(&likeness.distances), middle(&likeness.others))
        {
            let numbers = format!(
                "{of_samples:.1} for samples, {of_others:.1} for {}; half are nearer",
                others(likeness)
            );
            rows.push(row("distance to the nearest training image", numbers));
        }
    }
    if let Some(path) = &counts.checkpoint {
        rows.push(row("checkpoint", path.display().to_string()));
    }
    table(&rows)
}

/// The line of pictures that could not be read, where there are some.
fn left_out(run: &toml::Table) -> Option<(String, String)> {
    let skipped = run.get("skipped")?.as_table()?;
    let count = skipped.get("pictures")?.as_integer()?;
    let text = format!("{count}, which could not be read: run.skipped in run.toml names them");
    Some(row("pictures left out", text))
}

/// The line of the middle speed: pictures and checkpoints are not in it.
fn speed(metrics: &[MetricsLine]) -> Option<(String, String)> {
    let mut speeds: Vec<f64> = metrics.iter().map(|line| line.images_per_second).collect();
    speeds.sort_by(f64::total_cmp);
    let middle = speeds.get(speeds.len() / 2)?;
    Some(row("images a second, median", format!("{middle:.1}")))
}

fn loss_rows(metrics: &[MetricsLine]) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let losses: Vec<(f64, f64)> = metrics
        .iter()
        .map(|line| (line.step as f64, line.loss))
        .filter(|(_, loss)| loss.is_finite())
        .collect();
    if let Some((step, loss)) = curves::smoothed(&losses).last() {
        rows.push(row("loss, smoothed", format!("{loss:.4} at step {step}")));
    }
    let held_out = metrics
        .iter()
        .filter_map(|line| Some((line.step, line.held_out_loss?)));
    let held_out: Vec<(usize, f64)> = held_out.collect();
    let best = held_out.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    match (held_out.last(), best) {
        (Some(last), Some(best)) => {
            let text = format!(
                "{:.4} at step {}; lowest {:.4} at step {}",
                last.1, last.0, best.1, best.0
            );
            rows.push(row("held-out loss", text));
        }
        _ => rows.push(row(
            "held-out loss",
            "not measured: the data has no test split, or train.held_out_images is 0".into(),
        )),
    }
    rows
}

fn losses(metrics: &[MetricsLine]) -> String {
    let about = "The loss of a step depends on which t it happened to draw; the held-out loss is measured on the same images, t \
                 and noise every time, with the averaged weights.";
    format!(
        "{}<p>{about}</p>{}",
        plot(&curves::loss(metrics, "every line of metrics.jsonl")),
        plot(&curves::quarters(metrics))
    )
}

/// The sections that need samples.
fn of_samples(evidence: &Evidence<'_>, walk: &Walk) -> Result<Vec<String>> {
    let settings = &evidence.settings.samples;
    let made = format!(
        "From the averaged weights, by DDIM in {} steps, seed {}; none was picked.",
        settings.steps, settings.seed
    );
    let side = format!(
        "<div class=\"side\">{}{}</div>",
        figure("", &png(&walk.samples)?, "samples", "Samples. "),
        figure(
            "",
            &png(&walk.real)?,
            "training images",
            "Training images, evenly spread over the data."
        )
    );
    let strip = figure(
        "wide",
        &png(&walk.reverse)?,
        "six samples appearing from noise",
        "From noise (left) to image (right), a row each; the number is t.",
    );
    let animation = figure(
        "film",
        &data_uri("image/gif", &walk.animation),
        "samples appearing from noise",
        "The same as an animation.",
    );
    Ok(vec![
        section(
            "samples",
            "Samples beside real images",
            &format!("<p>{made}</p>{side}"),
        ),
        section("reverse", "Reverse", &format!("{strip}{animation}")),
        section(
            "nearest",
            "Nearest training images",
            &nearest(evidence, walk)?,
        ),
    ])
}

fn nearest(evidence: &Evidence<'_>, walk: &Walk) -> Result<String> {
    let likeness = &walk.likeness;
    let flips = match evidence.settings.data.flip {
        true => ", which also count mirrored, as training shows them",
        false => "",
    };
    let mut html = format!(
        "<p>Does the network make new images, or repeat those it has seen? The distance is the root of the mean squared \
         difference of all values, in levels of 0 to 255, to the nearest of {} training images{flips}. {}</p>{}<p>{}</p>\
         <div class=\"pairs\">",
        grouped(evidence.data.len() as u64),
        compared(likeness),
        plot(&curves::distances(likeness)),
        "Every sample (left) beside its nearest training image (right), the nearest pair first:",
    );
    for pair in &likeness.pairs {
        let turned = if pair.neighbour.mirrored {
            ", mirrored"
        } else {
            ""
        };
        let words = format!(
            "{:.1}: image {}{turned}",
            pair.neighbour.distance, pair.neighbour.index
        );
        let both = png(&pictures::pair(pair)?)?;
        html.push_str(&figure(
            "",
            &both,
            "a sample and its nearest training image",
            &words,
        ));
    }
    html.push_str("</div>");
    Ok(html)
}

/// What the distances mean.
fn compared(likeness: &Likeness) -> String {
    let Some(nearest) = likeness.others.first() else {
        return "There are no other images to compare with.".into();
    };
    let nearer = likeness.distances.iter().filter(|d| *d < nearest).count();
    let copies = likeness.distances.iter().filter(|d| **d == 0.0).count();
    format!(
        "The same is measured for {} {}. {nearer} of {} samples are nearer to a training image than every one of those; {copies} \
         are equal to one. Samples that were copies would lie far below the grey line; blurred ones lie below it as well, because \
         what is blurred is near to everything.",
        likeness.others.len(),
        others(likeness),
        likeness.distances.len(),
    )
}

fn others(likeness: &Likeness) -> &'static str {
    match likeness.compared_with {
        Others::HeldOut => "held-out images, which the network has never seen",
        Others::Training => {
            "training images, each with the nearest other one (there are no held-out images)"
        }
    }
}

fn forward(evidence: &Evidence<'_>, shown: &Shown) -> Result<String> {
    let about = format!(
        "Training images dissolving: x_t for some t up to {} (equation 4), one noise for each row.",
        evidence.objective.schedule.steps()
    );
    let picture = png(&shown.forward)?;
    Ok(figure(
        "wide",
        &picture,
        "training images dissolving into noise",
        &about,
    ))
}

/// Section by section as in `run.toml`.
fn settings(evidence: &Evidence<'_>) -> Result<String> {
    let mut html = String::from("<div class=\"columns\">");
    for (name, section) in evidence.settings.to_table()? {
        let keys = section.as_table().into_iter().flatten();
        let rows: Vec<(String, String)> = keys
            .map(|(key, value)| {
                let text = match value {
                    Value::String(text) => text.clone(),
                    value => value.to_string(),
                };
                row(key, text)
            })
            .collect();
        // Writing into a string cannot fail.
        let (name, rows) = (escaped(&name), table(&rows));
        let _ = write!(html, "<div><h3>{name}</h3>{rows}</div>");
    }
    html.push_str("</div>");
    Ok(html)
}

fn section(id: &str, heading: &str, body: &str) -> String {
    format!("<section id=\"{id}\">\n<h2>{heading}</h2>\n{body}\n</section>\n")
}

fn row(name: &str, text: String) -> (String, String) {
    (name.to_owned(), text)
}

fn table(rows: &[(String, String)]) -> String {
    let row = |(name, text): &(String, String)| {
        format!(
            "<tr><th>{}</th><td>{}</td></tr>",
            escaped(name),
            escaped(text)
        )
    };
    format!(
        "<table>{}</table>",
        rows.iter().map(row).collect::<String>()
    )
}

fn plot(chart: &Chart) -> String {
    format!("<div class=\"plot\">{}</div>", chart.svg(720, 400))
}

fn figure(class: &str, source: &str, alt: &str, caption: &str) -> String {
    format!(
        "<figure class=\"{class}\"><img src=\"{source}\" alt=\"{alt}\"><figcaption>{}</figcaption></figure>",
        escaped(caption)
    )
}

fn png(picture: &Picture) -> Result<String> {
    Ok(data_uri("image/png", &encode_png(picture, &[])?))
}

fn data_uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", base64(bytes))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |k: usize| u32::from(three.get(k).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for k in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * k) & 63) as usize];
            text.push(if k <= three.len() { letter.into() } else { '=' });
        }
    }
    text
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

/// One digit after the point; below 1 the first two that are not 0.
fn some_digits(x: f64) -> String {
    if x <= 0.0 || x >= 0.995 {
        return format!("{x:.1}");
    }
    let zeros = (-x.log10()).floor().min(9.0) as usize;
    format!("{x:.0$}", zeros + 2)
}

/// 1234567 as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

fn clock(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e9).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn numbers_and_times_are_written_for_people() {
        let digits = [0.0, 0.0321, 0.5, 0.994, 12.34].map(some_digits);
        assert_eq!(digits, ["0.0", "0.032", "0.50", "0.99", "12.3"]);
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(clock(59.4), "59 s");
        assert_eq!(clock(124.0), "2 min 4 s");
        assert_eq!(clock(7260.0), "2 h 1 min");
        assert_eq!(escaped("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
    }
}
