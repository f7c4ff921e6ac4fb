//! The page of a model folder, `README.md`: what the Hub reads of it, between two lines of dashes, and what people do.

use std::fmt::Write;

use serde_json::json;

use ddpm_unet::SampleSize;

use crate::Pipeline;
use crate::pipeline::told_apart;

/// What a page tells beyond what the model itself does.
#[derive(Debug, Clone, Default)]
pub struct Card<'a> {
    /// The model's name.
    pub title: String,
    /// The data that it was trained on.
    pub data: Option<String>,
    /// What was measured, by name.
    pub metrics: Vec<(&'a str, f64)>,
    /// A picture beside the page.
    pub picture: Option<&'a str>,
    /// The rows of a table: what, and what it is.
    pub rows: Vec<(&'a str, String)>,
    /// The settings it was trained with, as TOML.
    pub settings: Option<&'a str>,
}

impl Card<'_> {
    /// The page of a model: Markdown that can be pushed to the Hub as it is.
    pub fn text(&self, pipeline: &Pipeline) -> String {
        let mut text = format!(
            "---\n{}---\n\n# {}\n\n",
            self.metadata(pipeline),
            self.title
        );
        let channels = pipeline.unet.channels();
        let size = match pipeline.unet.sample_size().map(SampleSize::height_width) {
            Some((height, width)) => format!("{channels}x{height}x{width}"),
            None => format!("{channels} channels"),
        };
        let reasons = pipeline.reasons();
        // Writing to a String cannot fail.
        let _ = match reasons.is_empty() {
            true => writeln!(
                text,
                "A model of {size} images (channels, height, width). A diffusers folder: \
                 `DDPMPipeline.from_pretrained(\"{}\")` opens it.",
                self.title
            ),
            false => writeln!(
                text,
                "A model of {size} images (channels, height, width). {}: {}.",
                told_apart(&pipeline.unet),
                reasons.into_iter().collect::<Vec<_>>().join("; ")
            ),
        };
        if let Some(picture) = self.picture {
            let _ = writeln!(text, "\n![images of this model]({picture})");
        }
        let _ = writeln!(text, "\n| | |\n|---|---|");
        let own = [
            (
                "network",
                format!(
                    "{}, {} parameters",
                    pipeline.unet.class_name(),
                    pipeline.unet.parameter_count()
                ),
            ),
            ("scheduler", pipeline.scheduler.class().to_string()),
        ];
        let said: Vec<&str> = self.rows.iter().map(|(what, _)| *what).collect();
        let own = own.iter().filter(|(what, _)| !said.contains(what));
        for (what, is) in self.rows.iter().chain(own) {
            let _ = writeln!(text, "| {what} | {} |", is.replace(['\n', '|'], " "));
        }
        if let Some(settings) = self.settings {
            let _ = writeln!(
                text,
                "\n## Settings\n\n```toml\n{}\n```",
                settings.trim_end()
            );
        }
        text
    }

    /// YAML, with every text as JSON writes it, which is YAML too.
    fn metadata(&self, pipeline: &Pipeline) -> String {
        let (library, tag) = match pipeline.unet.as_unet_2d() {
            Some(_) => ("library_name: diffusers\n", "- diffusers\n"),
            None => ("", ""),
        };
        let mut text = format!(
            "{library}pipeline_tag: unconditional-image-generation\ntags:\n- ddpm\n{tag}- unconditional-image-generation\n"
        );
        let data = self.data.as_deref().map(|data| json!(data));
        if let Some(data) = &data {
            let _ = writeln!(text, "datasets:\n- {data}");
        }
        let measured: Vec<&(&str, f64)> = self
            .metrics
            .iter()
            .filter(|(_, value)| value.is_finite())
            .collect();
        if let (Some(data), false) = (data, measured.is_empty()) {
            let title = json!(self.title);
            let _ = writeln!(
                text,
                "model-index:\n- name: {title}\n  results:\n  - task:\n      type: unconditional-image-generation\n    \
                 dataset:\n      name: {data}\n      type: {data}\n    metrics:"
            );
            for (name, value) in measured {
                let (name, kind) = (json!(name), json!(name.replace(' ', "-")));
                let _ = writeln!(
                    text,
                    "    - type: {kind}\n      name: {name}\n      value: {value}"
                );
            }
        }
        text
    }
}
