//! What can go wrong with a configuration, its weights or an input, each naming the thing, the place and what was expected.

use std::fmt;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in this crate.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text of a configuration is not JSON, or not a JSON object.
    #[error("the network's configuration is not a JSON object: {0}")]
    Json(String),
    /// A key that networks of this class do not have.
    #[error(
        "unknown key `{key}` in the network's configuration; the keys are those of {class}: {known}"
    )]
    UnknownKey {
        /// The key as written.
        key: String,
        /// Whose keys are known.
        class: &'static str,
        /// The keys there are, separated by commas.
        known: String,
    },
    /// A key whose value this crate cannot build a network from.
    #[error("`{key}` is {value} in the network's configuration; supported: {supported}")]
    Value {
        /// The key, with the place in its list where it has one (`down_block_types[1]`).
        key: String,
        /// The value as JSON.
        value: String,
        /// What would have been accepted.
        supported: String,
    },
    /// Lists that have one entry a level differ in length.
    #[error(
        "`block_out_channels` has {widths} levels, `down_block_types` {down} and `up_block_types` {up}; \
         the three need the same number, at least 1"
    )]
    Levels {
        /// Entries of `block_out_channels`.
        widths: usize,
        /// Entries of `down_block_types`.
        down: usize,
        /// Entries of `up_block_types`.
        up: usize,
    },
    /// Groups of a normalisation that do not divide its channels.
    #[error("`{key}` is {groups}, which does not divide the {channels} channels of level {level}")]
    Groups {
        /// `norm_num_groups` or `attn_norm_num_groups`.
        key: &'static str,
        /// The level, counted from 0 at the full resolution.
        level: usize,
        /// Channels of that level.
        channels: usize,
        /// Groups asked for.
        groups: usize,
    },
    /// Groups that do not divide the channels of one layer, which are not the configuration's own.
    #[error(
        "`{name}` would have {channels} channels in {groups} groups, which do not divide them{why}"
    )]
    NormGroups {
        /// The layer.
        name: String,
        /// Its channels.
        channels: usize,
        /// Its groups.
        groups: usize,
        /// Where the groups come from.
        why: &'static str,
    },
    /// An attention head wider than its level: there would be no head at all.
    #[error(
        "`attention_head_dim` is {head_dim}, more than the {channels} channels of level {level}; at most {channels}, or null for one head"
    )]
    HeadDim {
        /// The level, counted from 0 at the full resolution.
        level: usize,
        /// Channels of that level.
        channels: usize,
        /// Width asked for.
        head_dim: usize,
    },
    /// Images whose sides the network cannot halve as often as it has to.
    #[error(
        "images of {height}x{width} (height x width) do not suit a network of {levels} levels: \
         both sides must be multiples of {factor}; the nearest sizes that work are {nearest}"
    )]
    ImageSize {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Levels of the network.
        levels: usize,
        /// 2^(levels-1).
        factor: usize,
        /// The nearest sizes that work, as text.
        nearest: String,
    },
    /// An input of the wrong shape or type.
    #[error("{what} is {found}; expected {expected}")]
    Input {
        /// Which input.
        what: &'static str,
        /// What it was.
        found: String,
        /// What it should have been.
        expected: String,
    },
    /// Something that a plan of the network cannot hold: it is walked over on tensors instead.
    #[error("a plan of the network cannot hold {0}")]
    Unplanned(&'static str),
    /// The tensors given are not the network's.
    #[error("{0}")]
    Weights(WeightsMismatch),
    /// Randomness that could not be drawn.
    #[error("{0}")]
    Random(#[from] ddpm_random::Error),
    /// A tensor operation failed.
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
}

impl From<Error> for ddpm_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(error) => ddpm_core::Error::Tensor(error),
            error => ddpm_core::Error::Denoiser(Box::new(error)),
        }
    }
}

/// How a set of tensors differs from the network's parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightsMismatch {
    /// Parameters that no tensor was given for, in construction order.
    pub missing: Vec<String>,
    /// Tensors that the network has no parameter for, sorted.
    pub extra: Vec<String>,
    /// Tensors of the wrong shape or type, each a sentence, in construction order.
    pub wrong: Vec<String>,
}

impl WeightsMismatch {
    /// True if the tensors are exactly the network's.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.wrong.is_empty()
    }
}

/// At most this many tensors are named in each list of a [`WeightsMismatch`].
const NAMED: usize = 8;

impl fmt::Display for WeightsMismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the tensors are not this network's")?;
        let lists = [
            ("missing", &self.missing, "`"),
            ("extra", &self.extra, "`"),
            ("wrong", &self.wrong, ""),
        ];
        for (title, list, quote) in lists.into_iter().filter(|(_, list, _)| !list.is_empty()) {
            let named: Vec<String> = list
                .iter()
                .take(NAMED)
                .map(|entry| format!("{quote}{entry}{quote}"))
                .collect();
            write!(out, "; {title} ({}): {}", list.len(), named.join(", "))?;
            if list.len() > NAMED {
                write!(out, " and {} more", list.len() - NAMED)?;
            }
        }
        Ok(())
    }
}
