//! The network of improved- and guided-diffusion under its names: `input_blocks.1.0.in_layers.2`, `middle_block.1.qkv`.
//!
//! Blocks are numbered on through all levels; a level is so many residual blocks (each with attention or without) and
//! what halves or doubles, a convolution or a residual block. Query, key and value are one matrix, in one of two orders,
//! which only the user knows, as the number of heads. `norm_eps` 1e-5, cosines before sines.

use std::collections::BTreeMap;

use ddpm_unet::{DownBlock, Resampling, TimeScaleShift, UNetConfig, UNetSettings, UpBlock};

use super::arch::Answers;
use super::{Arch, Conversion, Goes, Layout, QkvOrder, Shapes};
use crate::Result;

/// How the blocks lie.
struct Levels {
    /// Residual blocks a level on the way down.
    layers: usize,
    /// Each level's channels, and whether it has attention.
    widths: Vec<(usize, bool)>,
    /// Whether residual blocks halve and double.
    updown: bool,
}

/// How query, key and value lie in one matrix.
#[derive(Clone, Copy)]
struct Heads {
    heads: HeadsOf,
    /// Another number of them on the way up.
    up: Option<usize>,
    order: QkvOrder,
}

#[derive(Clone, Copy)]
enum HeadsOf {
    Number(usize),
    Channels(usize),
}

pub(super) fn convert(shapes: &Shapes<'_>, arch: &Arch) -> Result<Conversion> {
    let levels = levels(shapes)?;
    let first = levels.widths[0].0;
    let (in_channels, out_channels) = (
        shapes.side("input_blocks.0.0.weight", 1)?,
        shapes.side("out.2.weight", 0)?,
    );
    let learned = out_channels == 2 * in_channels;
    let block = "input_blocks.1.0";
    let scale_shift = shapes.side(&format!("{block}.emb_layers.1.weight"), 0)?
        == 2 * shapes.side(&format!("{block}.out_layers.3.weight"), 0)?;
    let classes = match shapes.has("label_emb.weight") {
        true => Some(shapes.side("label_emb.weight", 0)?),
        false => None,
    };
    let told = shapes.side("time_embed.0.weight", 1)?;
    let mut answers = Answers::new(shapes.path, Layout::OpenAi, arch);
    let said = answers.whole("num_channels")?;
    answers.agrees("num_channels", said, told)?;
    let said = answers.whole("num_res_blocks")?;
    answers.agrees("num_res_blocks", said, levels.layers)?;
    for (key, found) in [
        ("learn_sigma", learned),
        ("class_cond", classes.is_some()),
        ("resblock_updown", levels.updown),
        ("use_scale_shift_norm", scale_shift),
    ] {
        let said = answers.truth(key)?;
        answers.agrees(key, said, found)?;
    }
    let sample_size = answers.image_size()?;
    let diffusion = answers.diffusion(learned)?;
    let time_scale = time_scale(&mut answers, diffusion.as_ref().map(|(_, steps)| *steps))?;
    let heads = heads(&mut answers, shapes)?;
    let groups = answers.whole("num_groups")?.unwrap_or(32);
    if levels.widths.iter().any(|&(width, _)| width % groups != 0) {
        answers.miss("num_groups", "N");
    }
    answers.finish()?;
    let (Some((scheduler, _)), Some(heads)) = (diffusion, heads) else {
        return Err(shapes.refused("its diffusion is not known"));
    };

    let mut goes = BTreeMap::new();
    let mut widths = Vec::new();
    for name in shapes.of.keys() {
        let place = place(name, &levels);
        let place = place.ok_or_else(|| {
            shapes.refused(format!(
                "tensor `{name}` has no place in {}",
                Layout::OpenAi
            ))
        })?;
        let goes_to = match place.strip_suffix(".qkv.weight").map(|at| (at, "weight")) {
            Some(at) => Some(at),
            None => place.strip_suffix(".qkv.bias").map(|at| (at, "bias")),
        };
        let goes_to = match goes_to {
            None => Goes::To(place),
            Some((attention, last)) => {
                let rows = shapes.side(name, 0)?;
                widths.push(rows / 3);
                Goes::Apart {
                    attention: attention.to_owned(),
                    last: last.to_owned(),
                    heads: heads.number(name, rows, shapes)?,
                    order: heads.order,
                }
            }
        };
        goes.insert(name.clone(), goes_to);
    }
    let time = shapes.side("time_embed.0.weight", 0)?;
    let settings = UNetSettings {
        sample_size,
        in_channels,
        out_channels,
        time_embedding_dim: (time != 4 * first).then_some(time),
        layers_per_block: levels.layers,
        norm_num_groups: Some(groups),
        attn_norm_num_groups: Some(groups),
        num_class_embeds: classes,
        resnet_time_scale_shift: match scale_shift {
            true => TimeScaleShift::ScaleShift,
            false => TimeScaleShift::Default,
        },
        timestep_scale: time_scale,
        timestep_width: (told != first).then_some(told),
        ..levels.settings()
    };
    Ok(Conversion {
        unet: shapes.network(UNetConfig::new(heads.told(settings, &widths)))?,
        scheduler,
        goes,
    })
}

/// improved-diffusion tells its networks t * 1000 / T unless it is told not to; with 1000 steps that is t.
fn time_scale(answers: &mut Answers<'_>, steps: Option<usize>) -> Result<f64> {
    let said = answers.truth("rescale_timesteps")?;
    match (said, steps) {
        (None, Some(steps)) if steps != 1000 => {
            answers.miss("rescale_timesteps", "true|false");
            Ok(1.0)
        }
        (Some(true), Some(steps)) => Ok(1000.0 / steps as f64),
        _ => Ok(1.0),
    }
}

/// How many heads, and in which order their rows lie, if it is said.
fn heads(answers: &mut Answers<'_>, shapes: &Shapes<'_>) -> Result<Option<Heads>> {
    let order = answers.truth("use_new_attention_order")?;
    let number = answers.whole("num_heads")?;
    let channels = answers.whole("num_head_channels")?;
    // OpenAI's programs heed it, too, only where the channels of a head are not given.
    let up = match (number, channels) {
        (Some(number), None) => answers
            .whole("num_heads_upsample")?
            .filter(|up| *up != number),
        _ => None,
    };
    let heads = match (number, channels) {
        // guided-diffusion lets the channels win where both are given.
        (_, Some(channels)) => HeadsOf::Channels(channels),
        (Some(number), None) => HeadsOf::Number(number),
        (None, None) => {
            answers.miss("num_heads", "N or num_head_channels=N");
            HeadsOf::Number(1)
        }
    };
    let unheard = number.is_none() && channels.is_none();
    // The order of one head is no question.
    let one = !unheard
        && up.is_none()
        && shapes
            .of
            .iter()
            .filter(|(name, _)| name.ends_with(".qkv.weight"))
            .all(|(_, shape)| {
                let width = shape.first().map_or(0, |rows| rows / 3);
                match heads {
                    HeadsOf::Number(number) => number == 1,
                    HeadsOf::Channels(channels) => channels == width,
                }
            });
    let order = match order {
        Some(true) => QkvOrder::KindsFirst,
        Some(false) => QkvOrder::HeadsFirst,
        None if one => QkvOrder::HeadsFirst,
        None => {
            answers.miss("use_new_attention_order", "true|false");
            return Ok(None);
        }
    };
    Ok((!unheard).then_some(Heads { heads, up, order }))
}

impl Heads {
    /// How many heads a matrix of so many rows, query, key and value, has.
    fn number(self, name: &str, rows: usize, shapes: &Shapes<'_>) -> Result<usize> {
        let width = rows / 3;
        let heads = match (self.heads, self.up) {
            (_, Some(up)) if name.starts_with("output_blocks.") => HeadsOf::Number(up),
            (heads, _) => heads,
        };
        let number = match heads {
            HeadsOf::Number(number) => number,
            HeadsOf::Channels(channels) => width / channels,
        };
        let channels = width.checked_div(number).unwrap_or(0);
        if rows.is_multiple_of(3) && channels > 0 && channels * number == width {
            return Ok(number);
        }
        let said = match heads {
            HeadsOf::Number(number) => format!("{number} heads"),
            HeadsOf::Channels(channels) => format!("heads of {channels} channels"),
        };
        Err(shapes.refused(format!(
            "`{name}` has {rows} rows, a third of which {said} do not divide"
        )))
    }

    /// The settings that tell a network of these widths of attention its heads: by diffusers' key where it can.
    fn told(self, settings: UNetSettings, widths: &[usize]) -> UNetSettings {
        match self.heads {
            HeadsOf::Channels(channels) => UNetSettings {
                attention_head_dim: Some(channels),
                ..settings
            },
            HeadsOf::Number(number) => {
                let all_alike = widths.windows(2).all(|pair| pair[0] == pair[1]);
                let channels = widths.first().map(|width| width / number);
                match (number, all_alike) {
                    _ if self.up.is_some() => UNetSettings {
                        attention_head_dim: None,
                        attention_heads: Some(number),
                        attention_heads_up: self.up,
                        ..settings
                    },
                    (1, _) => UNetSettings {
                        attention_head_dim: None,
                        ..settings
                    },
                    (_, true) => UNetSettings {
                        attention_head_dim: channels,
                        ..settings
                    },
                    _ => UNetSettings {
                        attention_head_dim: None,
                        attention_heads: Some(number),
                        ..settings
                    },
                }
            }
        }
    }
}

/// Counts blocks: the way up tells how many levels there are, as each but the last ends in what doubles.
fn levels(shapes: &Shapes<'_>) -> Result<Levels> {
    let (inputs, outputs) = (
        shapes.count("input_blocks.")?,
        shapes.count("output_blocks.")?,
    );
    let doubled = |part: &str| {
        let ends = |block: usize| {
            (1..3).any(|at| shapes.has(&format!("output_blocks.{block}.{at}.{part}")))
        };
        (0..outputs).filter(|&block| ends(block)).count()
    };
    let (by_conv, by_block) = (doubled("conv.weight"), doubled("in_layers.0.weight"));
    let number = by_conv + by_block + 1;
    let layers = (outputs / number).saturating_sub(1);
    let fits = outputs % number == 0 && layers > 0 && inputs == number * (layers + 1);
    if !fits || (by_conv > 0 && by_block > 0) {
        return Err(shapes.refused(format!(
            "{inputs} input blocks and {outputs} output blocks, of which {} double, make no whole levels; read are \
             networks with convolutions or residual blocks that halve and double (conv_resample true)",
            by_conv + by_block
        )));
    }
    let mut widths = Vec::new();
    for level in 0..number {
        let block = 1 + level * (layers + 1);
        let width = shapes.side(&format!("input_blocks.{block}.0.out_layers.3.weight"), 0)?;
        widths.push((
            width,
            shapes.has(&format!("input_blocks.{block}.1.qkv.weight")),
        ));
    }
    Ok(Levels {
        layers,
        widths,
        updown: by_block > 0,
    })
}

impl Levels {
    /// The settings that all networks of this layout have in common, and those of the levels.
    fn settings(&self) -> UNetSettings {
        let settings = UNetSettings {
            norm_eps: 1e-5,
            ..UNetSettings::default()
        };
        let settings = settings.with_levels(&self.widths);
        if !self.updown {
            return settings;
        }
        let down = |block: DownBlock| match block {
            DownBlock::Down => DownBlock::ResnetDown,
            other => other,
        };
        let up = |block: UpBlock| match block {
            UpBlock::Up => UpBlock::ResnetUp,
            other => other,
        };
        UNetSettings {
            down_block_types: settings.down_block_types.iter().map(|&b| down(b)).collect(),
            up_block_types: settings.up_block_types.iter().map(|&b| up(b)).collect(),
            downsample_type: Resampling::Resnet,
            upsample_type: Resampling::Resnet,
            ..settings
        }
    }
}

/// diffusers' name of one of OpenAI's tensors, but for `qkv`, which is three.
fn place(name: &str, levels: &Levels) -> Option<String> {
    let (stem, last) = name.rsplit_once('.')?;
    let (head, rest) = stem.split_once('.').unwrap_or((stem, ""));
    let mapped = match (head, rest) {
        ("time_embed", "0") => "time_embedding.linear_1".to_owned(),
        ("time_embed", "2") => "time_embedding.linear_2".to_owned(),
        ("label_emb", "") => "class_embedding".to_owned(),
        ("input_blocks", "0.0") => "conv_in".to_owned(),
        ("out", "0") => "conv_norm_out".to_owned(),
        ("out", "2") => "conv_out".to_owned(),
        ("middle_block", rest) => {
            let (index, part) = rest.split_once('.')?;
            match index {
                "0" => format!("mid_block.resnets.0.{}", resnet(part)?),
                "1" => format!("mid_block.attentions.0.{}", attention(part)?),
                "2" => format!("mid_block.resnets.1.{}", resnet(part)?),
                _ => return None,
            }
        }
        ("input_blocks", rest) => down(rest, levels)?,
        ("output_blocks", rest) => up(rest, levels)?,
        _ => return None,
    };
    Some(format!("{mapped}.{last}"))
}

fn down(rest: &str, levels: &Levels) -> Option<String> {
    let (block, rest) = rest.split_once('.')?;
    let (index, part) = rest.split_once('.').unwrap_or((rest, ""));
    let block = block.parse::<usize>().ok()?.checked_sub(1)?;
    let (level, layer) = (block / (levels.layers + 1), block % (levels.layers + 1));
    let name = format!("down_blocks.{level}");
    Some(match (index, layer == levels.layers) {
        ("0", true) if part == "op" => format!("{name}.downsamplers.0.conv"),
        ("0", true) => format!("{name}.downsamplers.0.{}", resnet(part)?),
        ("0", false) => format!("{name}.resnets.{layer}.{}", resnet(part)?),
        ("1", false) => format!("{name}.attentions.{layer}.{}", attention(part)?),
        _ => return None,
    })
}

fn up(rest: &str, levels: &Levels) -> Option<String> {
    let (block, rest) = rest.split_once('.')?;
    let (index, part) = rest.split_once('.')?;
    let block: usize = block.parse().ok()?;
    let (step, layer) = (block / (levels.layers + 1), block % (levels.layers + 1));
    let name = format!("up_blocks.{step}");
    Some(match (index, resnet(part), attention(part)) {
        ("0", Some(part), _) => format!("{name}.resnets.{layer}.{part}"),
        ("1", _, Some(part)) => format!("{name}.attentions.{layer}.{part}"),
        ("1" | "2", Some(part), _) => format!("{name}.upsamplers.0.{part}"),
        ("1" | "2", ..) if part == "conv" => format!("{name}.upsamplers.0.conv"),
        _ => return None,
    })
}

fn resnet(part: &str) -> Option<&'static str> {
    Some(match part {
        "in_layers.0" => "norm1",
        "in_layers.2" => "conv1",
        "emb_layers.1" => "time_emb_proj",
        "out_layers.0" => "norm2",
        "out_layers.3" => "conv2",
        "skip_connection" => "conv_shortcut",
        _ => return None,
    })
}

fn attention(part: &str) -> Option<&'static str> {
    Some(match part {
        "norm" => "group_norm",
        "qkv" => "qkv",
        "proj_out" => "to_out.0",
        _ => return None,
    })
}
