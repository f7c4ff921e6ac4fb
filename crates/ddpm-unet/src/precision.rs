//! What a person asks a network to compute in: one of the precisions by name, or whichever is the fastest here.

use std::fmt;
use std::str::FromStr;

use ddpm_kernels::Precision;
use serde::{Deserialize, Serialize};

/// A precision as settings and flags name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum PrecisionName {
    /// `auto`: bf16 where this processor has units for it, otherwise f32.
    Auto,
    /// `f32` throughout.
    F32,
    /// `bf16`: activations and products, on any processor, which without such units is slow.
    Bf16,
}

impl PrecisionName {
    /// What it comes to on this processor.
    pub fn on_this_processor(self) -> Precision {
        match self {
            Self::Auto => Precision::fastest(),
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
        }
    }
}

impl From<Precision> for PrecisionName {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for PrecisionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for PrecisionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Auto, Self::F32, Self::Bf16]
            .into_iter()
            .find(|name| name.to_string() == text)
            .ok_or_else(|| format!("`{text}` is no precision, expected auto, f32 or bf16"))
    }
}

impl From<PrecisionName> for String {
    fn from(name: PrecisionName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for PrecisionName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written_and_others_are_refused_with_what_there_is() {
        for name in [PrecisionName::Auto, PrecisionName::F32, PrecisionName::Bf16] {
            assert_eq!(name.to_string().parse(), Ok(name));
            let json = serde_json::to_string(&name).unwrap();
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<PrecisionName>(&json).unwrap(), name);
        }
        let error = "fp16".parse::<PrecisionName>().unwrap_err();
        assert_eq!(error, "`fp16` is no precision, expected auto, f32 or bf16");
        for precision in [Precision::F32, Precision::Bf16] {
            assert_eq!(
                PrecisionName::from(precision).on_this_processor(),
                precision
            );
        }
    }
}
