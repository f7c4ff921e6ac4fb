//! What makes a configuration a network: every width, list and group, and how the blocks fit together.

use serde_json::{Value, json};

use crate::architecture::{Architecture, IMAGE_CHANNELS};
use crate::keys::unsupported;
use crate::{Error, Result, SampleSize, TimeEmbeddingType, UNetSettings, UpBlock};

/// Checks settings for [`UNetConfig::new`](crate::UNetConfig::new).
pub(crate) fn check(settings: &UNetSettings) -> Result<()> {
    check_lists(settings)?;
    check_numbers(settings)?;
    check_time(settings)?;
    check_images_beside(settings)?;
    check_groups(settings)?;
    check_heads(settings)
}

/// The largest width, count or size: far beyond any network, small enough that no product overflows.
const LARGEST: usize = 65_536;
/// The most levels: images would have to be multiples of 32,768.
const MOST_LEVELS: usize = 16;

fn check_lists(settings: &UNetSettings) -> Result<()> {
    let (widths, down, up) = (
        settings.block_out_channels.len(),
        settings.down_block_types.len(),
        settings.up_block_types.len(),
    );
    if widths == 0 || widths != down || widths != up {
        return Err(Error::Levels { widths, down, up });
    }
    if widths > MOST_LEVELS {
        return Err(unsupported(
            "block_out_channels",
            &json!(widths),
            &format!("at most {MOST_LEVELS} levels"),
        ));
    }
    Ok(())
}

fn check_numbers(settings: &UNetSettings) -> Result<()> {
    let widths = settings
        .block_out_channels
        .iter()
        .map(|&width| ("block_out_channels", Some(width)));
    let (height, width) = settings.sample_size.map(SampleSize::height_width).unzip();
    let wholes = [
        ("sample_size", height),
        ("sample_size", width),
        ("in_channels", Some(settings.in_channels)),
        ("out_channels", Some(settings.out_channels)),
        ("time_embedding_dim", settings.time_embedding_dim),
        ("layers_per_block", Some(settings.layers_per_block)),
        ("attention_head_dim", settings.attention_head_dim),
        ("attention_heads", settings.attention_heads),
        ("attention_heads_up", settings.attention_heads_up),
        ("timestep_width", settings.timestep_width),
        ("norm_num_groups", settings.norm_num_groups),
        ("attn_norm_num_groups", settings.attn_norm_num_groups),
        ("num_class_embeds", settings.num_class_embeds),
        ("num_train_timesteps", settings.num_train_timesteps),
    ];
    for (key, value) in widths.chain(wholes) {
        if value.is_some_and(|value| !(1..=LARGEST).contains(&value)) {
            return Err(unsupported(
                key,
                &json!(value),
                &format!("whole numbers from 1 to {LARGEST}"),
            ));
        }
    }
    let told = settings.timestep_width;
    let half = told.unwrap_or(settings.block_out_channels[0]) / 2;
    let positional = settings.time_embedding_type == TimeEmbeddingType::Positional;
    if positional && settings.freq_shift >= half {
        let supported = format!("whole numbers below {half}, half the first level's channels");
        return Err(unsupported(
            "freq_shift",
            &json!(settings.freq_shift),
            &supported,
        ));
    }
    if let (Some(width), false) = (told, positional) {
        let supported = "null where `time_embedding_type` is not \"positional\"";
        return Err(unsupported("timestep_width", &json!(width), supported));
    }
    if !(0.0..1.0).contains(&settings.dropout) {
        return Err(unsupported(
            "dropout",
            &json!(settings.dropout),
            "at least 0 and below 1",
        ));
    }
    if !(settings.norm_eps > 0.0 && settings.norm_eps.is_finite()) {
        return Err(unsupported(
            "norm_eps",
            &json!(settings.norm_eps),
            "numbers above 0",
        ));
    }
    if !(settings.timestep_scale > 0.0 && settings.timestep_scale.is_finite()) {
        return Err(unsupported(
            "timestep_scale",
            &json!(settings.timestep_scale),
            "numbers above 0",
        ));
    }
    if !(settings.mid_block_scale_factor.is_finite() && settings.mid_block_scale_factor != 0.0) {
        return Err(unsupported(
            "mid_block_scale_factor",
            &json!(settings.mid_block_scale_factor),
            "numbers except 0",
        ));
    }
    Ok(())
}

/// A table of times needs its length.
fn check_time(settings: &UNetSettings) -> Result<()> {
    let learned = settings.time_embedding_type == TimeEmbeddingType::Learned;
    if learned && settings.num_train_timesteps.is_none() {
        let supported = "a whole number where `time_embedding_type` is \"learned\"";
        return Err(unsupported("num_train_timesteps", &Value::Null, supported));
    }
    Ok(())
}

/// The image beside the states of Skip blocks must have the size of their states, and three channels.
fn check_images_beside(settings: &UNetSettings) -> Result<()> {
    let last = settings.block_out_channels.len() - 1;
    let (down, up) = (&settings.down_block_types, &settings.up_block_types);
    let Some(end) = (0..last).rev().find(|&level| down[level].is_skip()) else {
        return check_image_up(settings, up);
    };
    if let Some(level) = (0..end).find(|&level| !down[level].is_skip()) {
        let supported = format!("Skip blocks above level {end}, which is one and halves");
        return Err(wrong_block(
            "down_block_types",
            level,
            down[level].name(),
            &supported,
        ));
    }
    three_channels("in_channels", settings.in_channels)?;
    check_image_up(settings, up)
}

/// The same on the way up, where the image begins at the first Skip block that doubles.
fn check_image_up(settings: &UNetSettings, up: &[UpBlock]) -> Result<()> {
    let last = up.len() - 1;
    let Some(start) = (0..last).find(|&step| up[step].is_skip()) else {
        return Ok(());
    };
    if let Some(step) = (start..=last).find(|&step| !up[step].is_skip()) {
        let supported = format!("Skip blocks after entry {start}, which is one");
        return Err(wrong_block(
            "up_block_types",
            step,
            up[step].name(),
            &supported,
        ));
    }
    three_channels("out_channels", settings.out_channels)
}

fn three_channels(key: &str, channels: usize) -> Result<()> {
    if channels == IMAGE_CHANNELS {
        return Ok(());
    }
    let supported = format!("{IMAGE_CHANNELS}, as there are Skip blocks");
    Err(unsupported(key, &json!(channels), &supported))
}

fn wrong_block(key: &str, entry: usize, name: &str, supported: &str) -> Error {
    unsupported(&format!("{key}[{entry}]"), &json!(name), supported)
}

/// The channels of every normalisation must be a multiple of its groups.
fn check_groups(settings: &UNetSettings) -> Result<()> {
    let Some(groups) = settings.norm_num_groups else {
        check_no_groups(settings)?;
        return check_every_norm(settings);
    };
    // Every normalisation of the other blocks has the channels of one level, or of two levels together.
    let last = settings.block_out_channels.len() - 1;
    for (level, &channels) in settings.block_out_channels.iter().enumerate() {
        let own = settings.down_block_types[level].is_skip()
            && settings.up_block_types[last - level].is_skip();
        let used = !own || level == 0 || (level == last && settings.mid_block);
        if used && !channels.is_multiple_of(groups) {
            return Err(Error::Groups {
                key: "norm_num_groups",
                level,
                channels,
                groups,
            });
        }
    }
    let channels = settings.block_out_channels[last];
    let attention = settings.mid_block && settings.add_attention;
    match settings.attn_norm_num_groups {
        Some(groups) if attention && !channels.is_multiple_of(groups) => Err(Error::Groups {
            key: "attn_norm_num_groups",
            level: last,
            channels,
            groups,
        }),
        _ => check_every_norm(settings),
    }
}

/// Without a number of groups only Skip blocks know theirs.
fn check_no_groups(settings: &UNetSettings) -> Result<()> {
    let down = settings
        .down_block_types
        .iter()
        .all(|block| block.is_skip());
    if down && settings.up_block_types.iter().all(|block| block.is_skip()) {
        return Ok(());
    }
    let supported = "a whole number, or null where all blocks are Skip blocks";
    Err(unsupported("norm_num_groups", &Value::Null, supported))
}

fn check_every_norm(settings: &UNetSettings) -> Result<()> {
    for norm in Architecture::new(settings).norms {
        let (channels, groups) = (norm.channels, norm.groups);
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::NormGroups {
                why: if norm.name.contains(".attentions.") {
                    " (the attention of Skip blocks has 32)"
                } else {
                    " (a quarter of the channels, at most 32, for Skip blocks)"
                },
                name: norm.name,
                channels,
                groups,
            });
        }
    }
    Ok(())
}

/// A level's heads are its channels / head_dim, rounded down, and there must be one.
fn check_heads(settings: &UNetSettings) -> Result<()> {
    if let Some(heads) = settings.attention_heads {
        return check_heads_of_ours(settings, heads);
    }
    if let Some(up) = settings.attention_heads_up {
        let supported = "null where `attention_heads` is null";
        return Err(unsupported("attention_heads_up", &json!(up), supported));
    }
    let Some(head_dim) = settings.attention_head_dim else {
        return Ok(());
    };
    match attended(settings).find(|&(_, channels)| head_dim > channels) {
        None => Ok(()),
        Some((level, channels)) => Err(Error::HeadDim {
            level,
            channels,
            head_dim,
        }),
    }
}

/// A number of heads must divide every level that has attention.
fn check_heads_of_ours(settings: &UNetSettings, heads: usize) -> Result<()> {
    if let Some(head_dim) = settings.attention_head_dim {
        let supported = "null where `attention_head_dim` is given";
        let value = json!([heads, head_dim]);
        return Err(unsupported("attention_heads", &value, supported));
    }
    let last = settings.block_out_channels.len() - 1;
    let up = settings.attention_heads_up.unwrap_or(heads);
    for (level, channels) in attended(settings) {
        let climbs = settings.up_block_types[last - level].has_attention();
        let (key, heads) = match channels.is_multiple_of(heads) {
            false => ("attention_heads", heads),
            true if climbs && !channels.is_multiple_of(up) => ("attention_heads_up", up),
            true => continue,
        };
        let supported = format!("what divides the {channels} channels of level {level}");
        return Err(unsupported(key, &json!(heads), &supported));
    }
    Ok(())
}

/// The levels that have attention, and their channels.
fn attended(settings: &UNetSettings) -> impl Iterator<Item = (usize, usize)> {
    let last = settings.block_out_channels.len() - 1;
    let levels = settings.block_out_channels.iter().copied().enumerate();
    levels.filter(move |&(level, _)| {
        settings.down_block_types[level].has_attention()
            || settings.up_block_types[last - level].has_attention()
            || (level == last && settings.mid_block && settings.add_attention)
    })
}
