//! Ho's network under the names of its PyTorch versions: `down.0.block.0.conv1`, `mid.attn_1.q`, `up.0.upsample.conv`.
//!
//! The levels of the way up are numbered by resolution, as those of the way down; diffusers numbers them as they are run.
//! Shortcuts that are 3 by 3 convolutions (`conv_shortcut`) and levels that change their size without one
//! (`resamp_with_conv` false) are seen in the names. One attention head, halving with padding below and to the right, sines before cosines, `norm_eps` 1e-6.

use std::collections::BTreeMap;

use ddpm_unet::{UNetConfig, UNetSettings};

use super::arch::Answers;
use super::{Arch, Conversion, Goes, Layout, Shapes};
use crate::Result;

pub(super) fn convert(shapes: &Shapes<'_>, arch: &Arch) -> Result<Conversion> {
    let levels = shapes.count("down.")?;
    let layers = shapes.count("down.0.block.")?;
    if levels == 0 || layers == 0 {
        return Err(shapes.refused("it has no residual block `down.0.block.0`"));
    }
    let mut widths = Vec::new();
    for level in 0..levels {
        let width = shapes.side(&format!("down.{level}.block.0.conv1.weight"), 0)?;
        widths.push((width, shapes.has(&format!("down.{level}.attn.0.q.weight"))));
    }
    let resampling = |level: usize| shapes.has(&format!("down.{level}.downsample.conv.weight"));
    let plain = levels > 1 && (0..levels - 1).all(|level| !resampling(level));
    let mut names = shapes.of.keys();
    let wide = names.any(|name| name.contains(".conv_shortcut."));
    let mut goes = BTreeMap::new();
    for name in shapes.of.keys() {
        if name == "logvar" {
            // Weights of DDIM's "bayesian" loss, which no image depends on.
            continue;
        }
        let to = diffusers_name(name, levels);
        let to = to.ok_or_else(|| {
            shapes.refused(format!("tensor `{name}` has no place in {}", Layout::Ho))
        })?;
        goes.insert(name.clone(), Goes::To(to));
    }

    let mut answers = Answers::new(shapes.path, Layout::Ho, arch);
    let said = answers.whole("num_channels")?;
    answers.agrees("num_channels", said, widths[0].0)?;
    let said = answers.whole("num_res_blocks")?;
    answers.agrees("num_res_blocks", said, layers)?;
    let sample_size = answers.image_size()?;
    let diffusion = answers.diffusion(false)?;
    for (key, found) in [("conv_shortcut", wide), ("resamp_with_conv", !plain)] {
        let said = answers.truth(key)?;
        answers.agrees(key, said, found)?;
    }
    let groups = answers.whole("num_groups")?.unwrap_or(32);
    if widths.iter().any(|&(width, _)| width % groups != 0) {
        answers.miss("num_groups", "N");
    }
    answers.finish()?;
    let Some((scheduler, _)) = diffusion else {
        return Err(shapes.refused("its diffusion is not known"));
    };
    let time = shapes.side("temb.dense.0.weight", 0)?;
    let settings = UNetSettings {
        sample_size,
        in_channels: shapes.side("conv_in.weight", 1)?,
        out_channels: shapes.side("conv_out.weight", 0)?,
        time_embedding_dim: (time != 4 * widths[0].0).then_some(time),
        layers_per_block: layers,
        norm_num_groups: Some(groups),
        wide_shortcuts: wide,
        plain_resampling: plain,
        add_attention: shapes.has("mid.attn_1.q.weight"),
        ..UNetSettings::ho()
    };
    Ok(Conversion {
        unet: shapes.network(UNetConfig::new(settings.with_levels(&widths)))?,
        scheduler,
        goes,
    })
}

/// diffusers' name of one of Ho's tensors in a network of so many levels.
fn diffusers_name(name: &str, levels: usize) -> Option<String> {
    let (stem, last) = name.rsplit_once('.')?;
    let parts: Vec<&str> = stem.split('.').collect();
    let mapped = match parts[..] {
        ["conv_in" | "conv_out"] => stem.to_owned(),
        ["norm_out"] => "conv_norm_out".to_owned(),
        ["temb", "dense", "0"] => "time_embedding.linear_1".to_owned(),
        ["temb", "dense", "1"] => "time_embedding.linear_2".to_owned(),
        ["mid", "block_1", part] => format!("mid_block.resnets.0.{}", resnet(part)?),
        ["mid", "block_2", part] => format!("mid_block.resnets.1.{}", resnet(part)?),
        ["mid", "attn_1", part] => format!("mid_block.attentions.0.{}", attention(part)?),
        ["down", level, "downsample", "conv"] => format!("down_blocks.{level}.downsamplers.0.conv"),
        ["up", level, "upsample", "conv"] => {
            format!("up_blocks.{}.upsamplers.0.conv", turned(level, levels)?)
        }
        [way @ ("down" | "up"), level, kind, index, part] => {
            let level = match way {
                "down" => level.parse().ok()?,
                _ => turned(level, levels)?,
            };
            let index: usize = index.parse().ok()?;
            match kind {
                "block" => format!("{way}_blocks.{level}.resnets.{index}.{}", resnet(part)?),
                "attn" => format!(
                    "{way}_blocks.{level}.attentions.{index}.{}",
                    attention(part)?
                ),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(format!("{mapped}.{last}"))
}

/// The place on the way up of a level counted from the full resolution.
fn turned(level: &str, levels: usize) -> Option<usize> {
    (levels - 1).checked_sub(level.parse().ok()?)
}

fn resnet(part: &str) -> Option<&str> {
    Some(match part {
        "norm1" | "norm2" | "conv1" | "conv2" => part,
        "temb_proj" => "time_emb_proj",
        "nin_shortcut" | "conv_shortcut" => "conv_shortcut",
        _ => return None,
    })
}

fn attention(part: &str) -> Option<&str> {
    Some(match part {
        "norm" => "group_norm",
        "q" => "to_q",
        "k" => "to_k",
        "v" => "to_v",
        "proj_out" => "to_out.0",
        _ => return None,
    })
}
