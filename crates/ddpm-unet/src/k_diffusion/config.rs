//! The settings of an `image_v1` network, and what makes them a network.

use serde_json::json;

use crate::keys::unsupported;
use crate::{Error, Result, SampleSize};

use super::architecture::Architecture;

/// What an `image_v1` network of k-diffusion's looks like; the names are those of its configuration where it has some.
#[derive(Debug, Clone, PartialEq)]
pub struct KDiffusionSettings {
    /// The size of the images that the network was made for: recorded for samplers, does not change the network.
    pub sample_size: Option<SampleSize>,
    /// Channels of an image.
    pub input_channels: usize,
    /// So many by so many pixels become channels first.
    pub patch_size: usize,
    /// Whether one channel more comes out, which told the variance in training and is left out here.
    pub has_variance: bool,
    /// Width of what the noise level becomes.
    pub mapping_out: usize,
    /// Channels between the first 1x1 convolution and the first level, and before the last one.
    pub outer_channels: usize,
    /// Channels of each level, from the full resolution down.
    pub channels: Vec<usize>,
    /// Residual blocks of each level, on the way down as on the way up.
    pub depths: Vec<usize>,
    /// Whether a level has attention, after each of its blocks.
    pub self_attn_depths: Vec<bool>,
}

/// Settings that a network can be built from; only checked ones exist.
#[derive(Debug, Clone, PartialEq)]
pub struct KDiffusionConfig {
    settings: KDiffusionSettings,
}

impl Default for KDiffusionSettings {
    /// A network for small images.
    fn default() -> Self {
        Self {
            sample_size: None,
            input_channels: 3,
            patch_size: 1,
            has_variance: false,
            mapping_out: 256,
            outer_channels: 128,
            channels: vec![128, 256],
            depths: vec![2, 2],
            self_attn_depths: vec![false, true],
        }
    }
}

impl KDiffusionConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Value`], naming the key.
    pub fn new(settings: KDiffusionSettings) -> Result<Self> {
        check(&settings)?;
        Ok(Self { settings })
    }

    /// The settings, all of which have passed the checks.
    pub fn settings(&self) -> &KDiffusionSettings {
        &self.settings
    }

    /// Names and shapes of the parameters, as k-diffusion names them.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        Architecture::new(&self.settings).parameters
    }

    /// Checks that images of this height and width suit the patches and the depth: the smallest level has at least two
    /// pixels each way where there is one to be doubled, as its edges are mirrored.
    ///
    /// # Errors
    /// [`Error::ImageSize`], which names the nearest sizes that work.
    pub fn check_image(&self, height: usize, width: usize) -> Result<()> {
        let levels = self.settings.channels.len();
        let factor = self.settings.patch_size << (levels - 1);
        let least = if levels > 1 { 2 * factor } else { factor };
        let fits = |side: usize| side >= least && side.is_multiple_of(factor);
        if fits(height) && fits(width) {
            return Ok(());
        }
        let below = |side: usize| (side / factor * factor).max(least);
        let above = |side: usize| side.div_ceil(factor).saturating_mul(factor).max(least);
        let smaller = format!("{}x{}", below(height), below(width));
        let larger = format!("{}x{}", above(height), above(width));
        Err(Error::ImageSize {
            height,
            width,
            levels,
            factor,
            nearest: match smaller == larger {
                true => smaller,
                false => format!("{smaller} and {larger}"),
            },
        })
    }
}

/// Channels of a group of every normalisation.
const GROUP_SIZE: usize = 32;
/// Channels of a head of attention.
const HEAD_SIZE: usize = 64;
/// The largest width, count or size: far beyond any network, small enough that no product overflows.
const LARGEST: usize = 65_536;
/// The most levels: images would have to be multiples of 32,768.
const MOST_LEVELS: usize = 16;
/// The largest side of a patch.
const LARGEST_PATCH: usize = 64;
/// The most residual blocks of a level.
const DEEPEST: usize = 1024;

/// Groups of a normalisation of so many channels.
pub(super) fn groups(channels: usize) -> usize {
    (channels / GROUP_SIZE).max(1)
}

/// Heads of attention of so many channels.
pub(super) fn heads(channels: usize) -> usize {
    (channels / HEAD_SIZE).max(1)
}

fn check(settings: &KDiffusionSettings) -> Result<()> {
    let levels = settings.channels.len();
    if !(1..=MOST_LEVELS).contains(&levels) {
        let supported = format!("1 to {MOST_LEVELS} levels");
        return Err(unsupported("channels", &json!(levels), &supported));
    }
    let lengths = [
        ("depths", settings.depths.len()),
        ("self_attn_depths", settings.self_attn_depths.len()),
    ];
    if let Some((key, length)) = lengths.into_iter().find(|(_, length)| *length != levels) {
        let supported = format!("a list of {levels}, for as many levels");
        return Err(unsupported(
            key,
            &json!(format!("a list of {length}")),
            &supported,
        ));
    }
    let (height, width) = settings.sample_size.map(SampleSize::height_width).unzip();
    let wholes = [
        ("sample_size", height, LARGEST),
        ("sample_size", width, LARGEST),
        ("input_channels", Some(settings.input_channels), LARGEST),
        ("patch_size", Some(settings.patch_size), LARGEST_PATCH),
        ("mapping_out", Some(settings.mapping_out), LARGEST),
    ];
    let depths = settings
        .depths
        .iter()
        .map(|&n| ("depths", Some(n), DEEPEST));
    for (key, value, most) in wholes.into_iter().chain(depths) {
        if value.is_some_and(|value| !(1..=most).contains(&value)) {
            let supported = format!("whole numbers from 1 to {most}");
            return Err(unsupported(key, &json!(value), &supported));
        }
    }
    if !settings.mapping_out.is_multiple_of(2) {
        let value = json!(settings.mapping_out);
        return Err(unsupported("mapping_out", &value, "even numbers"));
    }
    check_widths(settings)
}

/// Groups and heads must divide the channels.
fn check_widths(settings: &KDiffusionSettings) -> Result<()> {
    let outer = [("outer_channels", settings.outer_channels)];
    let widths = settings.channels.iter().map(|&width| ("channels", width));
    for (key, width) in outer.into_iter().chain(widths) {
        let whole = (1..=LARGEST).contains(&width);
        if !whole || !width.is_multiple_of(groups(width)) || !width.is_multiple_of(heads(width)) {
            let supported = format!(
                "whole numbers from 1 to {LARGEST} that their groups of {GROUP_SIZE} and heads of {HEAD_SIZE} channels, \
                 rounded down in number, divide"
            );
            return Err(unsupported(key, &json!(width), &supported));
        }
    }
    Ok(())
}
