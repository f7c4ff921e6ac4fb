//! The recipes that come with the program, each a TOML text that says what it costs and gives.

use crate::{Error, Layer, Result};

/// One recipe.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// What `--preset` calls it.
    pub name: &'static str,
    /// The whole text.
    pub text: &'static str,
}

/// All recipes, the default first.
pub const PRESETS: [Preset; 5] = [
    Preset {
        name: "digits",
        text: include_str!("../presets/digits.toml"),
    },
    Preset {
        name: "fashion-mnist",
        text: include_str!("../presets/fashion-mnist.toml"),
    },
    Preset {
        name: "mnist",
        text: include_str!("../presets/mnist.toml"),
    },
    Preset {
        name: "cifar10",
        text: include_str!("../presets/cifar10.toml"),
    },
    Preset {
        name: "tiny-imagenet",
        text: include_str!("../presets/tiny-imagenet.toml"),
    },
];

impl Preset {
    /// Finds a recipe by name.
    ///
    /// # Errors
    /// No recipe is called that; the message lists those there are.
    pub fn named(name: &str) -> Result<Self> {
        PRESETS
            .into_iter()
            .find(|p| p.name == name)
            .ok_or_else(|| Error::UnknownPreset {
                name: name.into(),
                known: PRESETS.map(|p| p.name).join(", "),
            })
    }

    /// Its settings.
    pub fn layer(&self) -> Result<Layer> {
        Layer::from_text(&format!("preset {}", self.name), self.text)
    }

    /// The comment it opens with, without the `#`: one or more lines.
    pub fn headline(&self) -> String {
        let comments = self.text.lines().take_while(|l| l.starts_with('#'));
        comments
            .map(|l| l.trim_start_matches('#').trim())
            .collect::<Vec<_>>()
            .join("\n")
    }
}
