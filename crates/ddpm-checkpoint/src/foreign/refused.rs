//! Networks that `UNet2DModel` cannot be: what each has that it has not, by the names in the file.

use std::path::Path;

use super::{Layout, Shapes};
use crate::Error;
use crate::tensors::Tensors;

/// Why a network of this layout is not converted.
pub(super) fn refuse(shapes: &Shapes<'_>, layout: Layout) -> Error {
    let begins = |beginning: &str| shapes.of.keys().any(|name| name.starts_with(beginning));
    let mut lacks: Vec<&str> = Vec::new();
    match layout {
        Layout::Diffusers => {
            return shapes.refused(
                "its tensors have diffusers' names, whose configuration is another file: put it as \
                 unet/diffusion_pytorch_model.bin (or .safetensors) beside unet/config.json and scheduler/scheduler_config.json, \
                 and give the folder",
            );
        }
        Layout::Classifier => {
            return shapes.refused(
                "it holds a classifier of guided-diffusion, not a network that makes images",
            );
        }
        Layout::Latent => {
            return shapes.refused(
                "it holds a latent diffusion model: its images are another network's codes, which is not read",
            );
        }
        Layout::KDiffusionTransformer => {
            return shapes.refused(
                "it holds a transformer of k-diffusion (image_transformer_v1 or _v2), which is not read: of k-diffusion's networks \
                 the U-Net is, image_v1",
            );
        }
        _ => {
            lacks.push("Karras' preconditioning around it, told a noise level in place of a time");
            if begins("map_augment.") || begins("model.map_augment.") {
                lacks.push("an input for augmentations (map_augment)");
            }
            lacks.push("halving and doubling inside residual blocks by a filter, where its configuration has one");
        }
    }
    shapes.refused(format!(
        "it holds {layout}, which UNet2DModel cannot express. It has what diffusers' network has not: {}",
        lacks.join("; ")
    ))
}

/// No network was recognised.
pub(super) fn unknown(path: &Path, states: &[Box<dyn Tensors>]) -> Error {
    let names: Vec<String> = states
        .iter()
        .flat_map(|state| state.shapes().into_keys())
        .collect();
    let shown: Vec<String> = names
        .iter()
        .take(3)
        .map(|name| format!("`{}`", name.chars().take(100).collect::<String>()))
        .collect();
    let found = match names.len() {
        0 => "there are no tensors in it".to_owned(),
        count => format!(
            "its {count} tensors, {} and so on, are not under the names of a network that is known",
            shown.join(", ")
        ),
    };
    Error::unsupported(
        path,
        format!(
            "{found}; known are those of diffusers (a folder), of Ho, pesser and DDIM, of improved- and guided-diffusion, of lucidrains and of \
             k-diffusion"
        ),
    )
}
