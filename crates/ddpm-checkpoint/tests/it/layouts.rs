//! Others' networks in others' layouts: the whole forward pass against PyTorch's answer, and what must be said of them.
//!
//! `tests/golden/foreign.py` states each network anew and made the files.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use ddpm_checkpoint::{Arch, ForeignFile, Layout, Pipeline, TensorFile, Weights, resolve_model_as};
use ddpm_unet::{Classes, Network, NetworkConfig};

use crate::{assert_same, message, written_and_read};

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

const DIFFUSION: [&str; 3] = [
    "image_size=8x12",
    "diffusion_steps=1000",
    "noise_schedule=linear",
];

fn arch(more: &[&str]) -> Arch {
    Arch::new(DIFFUSION.iter().chain(more)).unwrap()
}

#[allow(clippy::result_large_err, reason = "it is the library's")]
fn convert(file: &str, arch: &Arch, weights: &Weights) -> ddpm_checkpoint::Result<Pipeline> {
    ForeignFile::open(&golden(file))?.convert(arch, weights)
}

/// What a converted network answers.
fn answer(unet: &NetworkConfig, weights: &[(String, Tensor)], known: &mut TensorFile) -> Tensor {
    let mut network = Network::new(unet, weights).unwrap();
    let list = |tensor: Tensor| -> Vec<f64> {
        let numbers = tensor.to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f64::from).collect()
    };
    if known.names().iter().any(|name| name == "classes") {
        let classes = list(known.read_f32("classes").unwrap());
        let classes = classes.iter().map(|&class| class as usize).collect();
        network = network.with_classes(Classes::Indices(classes)).unwrap();
    }
    let time = list(known.read_f32("time").unwrap());
    network
        .forward(&known.read_f32("x").unwrap(), &time)
        .unwrap()
}

/// Converts a file, compares what its network answers with PyTorch's, writes it as a folder and compares that.
#[track_caller]
fn check(file: &str, answers: &str, arch: &Arch, weights: &Weights) -> Pipeline {
    let pipeline = convert(file, arch, weights).unwrap();
    let mut known = TensorFile::open(&golden(&format!("{answers}.safetensors"))).unwrap();
    let expected = known.read_f32("y").unwrap();
    let found = answer(&pipeline.unet, &pipeline.weights, &mut known);
    assert_eq!(found.dims(), expected.dims());
    let difference = (found - &expected).unwrap().abs().unwrap();
    let most = difference.flatten_all().unwrap().max(0).unwrap();
    let size = expected.abs().unwrap().mean_all().unwrap();
    let (most, size) = (
        most.to_scalar::<f32>().unwrap(),
        size.to_scalar::<f32>().unwrap(),
    );
    assert!(most < 2e-5 && size > 0.1, "{most} of {size}");

    written_and_read(&pipeline);
    pipeline
}

#[test]
fn ho_as_pesser_wrote_it() {
    let pipeline = check("ho.pt", "ho", &arch(&["num_groups=2"]), &Weights::Ema);
    let settings = pipeline.unet.as_unet_2d().unwrap().settings();
    assert_eq!(settings.block_out_channels, [4, 8]);
    assert_eq!(settings.down_block_types[1].name(), "AttnDownBlock2D");
    assert!(pipeline.unet.beyond_diffusers().is_empty());
}

#[test]
fn ho_with_wide_shortcuts_and_without_convolutions_that_resample() {
    let said = ["num_groups=2", "conv_shortcut=true"];
    let pipeline = check("ho_variants.pt", "ho_variants", &arch(&said), &Weights::Ema);
    let settings = pipeline.unet.as_unet_2d().unwrap().settings();
    assert!(settings.wide_shortcuts && settings.plain_resampling);
    assert_eq!(pipeline.unet.beyond_diffusers().len(), 2);
    // diffusers has no such tensors, and the folder does not say that it does.
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    pipeline.save(&model).unwrap();
    let note = std::fs::read_to_string(model.join("not-a-diffusers-pipeline.md")).unwrap();
    let said =
        "`unet/` is a `UNet2DModel` that this project's programs load and diffusers does not:";
    assert!(note.contains(said), "{note}");
}

/// `betas.json` is NumPy's; what diffusers has no name for is written as its `trained_betas`.
#[test]
fn the_schedules_of_hos_and_ddims_programs() {
    let text = std::fs::read_to_string(golden("betas.json")).unwrap();
    let known: std::collections::BTreeMap<String, Vec<f64>> = serde_json::from_str(&text).unwrap();
    assert_eq!(known.len(), 6);
    for (name, betas) in known {
        let ends = ["beta_start=0.0002", "beta_end=0.03"];
        let used = match name.as_str() {
            "jsd" => &ends[..0],
            "const" => &ends[1..],
            _ => &ends[..],
        };
        let schedule = format!("noise_schedule={name}");
        let said = [
            "image_size=8",
            "diffusion_steps=24",
            "num_groups=2",
            &schedule,
        ];
        let arch = Arch::new(said.iter().chain(used)).unwrap();
        let (_, scheduler) = ForeignFile::open(&golden("ho.pt"))
            .unwrap()
            .describe(&arch)
            .unwrap();
        let found = scheduler.schedule().unwrap();
        assert_eq!(found.steps(), 24);
        for (found, beta) in found.betas().iter().zip(&betas) {
            assert!(
                (found - beta).abs() < 1e-15 * beta.max(0.1),
                "{name}: {found} {beta}"
            );
        }
        let named = matches!(name.as_str(), "quad" | "sigmoid");
        assert_eq!(scheduler.to_json().contains("\"trained_betas\": ["), !named);
        let again = ddpm_samplers::SchedulerConfig::from_json(&scheduler.to_json()).unwrap();
        assert_eq!(again, scheduler);
    }
    let refused = |said: [&str; 3]| {
        let arch = Arch::new(["image_size=8", "num_groups=2"].iter().chain(&said)).unwrap();
        message(convert("ho.pt", &arch, &Weights::Ema), &golden("")).replace("FOLDER", "")
    };
    assert_eq!(
        refused(["diffusion_steps=9", "noise_schedule=jsd", "beta_end=0.1"]),
        "--arch: `beta_end` would be ignored: ho.pt holds Ho's network (as pesser and DDIM wrote it)"
    );
    assert_eq!(
        refused(["diffusion_steps=9", "noise_schedule=exp", "num_channels=4"]),
        "--arch: `noise_schedule` is `exp`, expected one of linear, cosine, quad, sigmoid, warmup10, warmup50, const, jsd"
    );
}

#[test]
fn the_lists_of_ddims_program() {
    let arch = arch(&["num_groups=2", "num_channels=4", "num_res_blocks=2"]);
    check("ddim.pt", "ddim", &arch, &Weights::Ema);
    check("ddim.pt", "ddim_raw", &arch, &Weights::Raw);
    let model = resolve_model_as(&golden("ddim.pt"), &arch).unwrap();
    assert!(model.has_raw && model.foreign.is_some());
    let raw = model.load(&Weights::Raw).unwrap();
    assert_same(
        &raw.weights,
        &convert("ddim.pt", &arch, &Weights::Raw).unwrap().weights,
    );
    let rate = model.load(&Weights::EmaRate("0.9".to_owned()));
    let expected = "FOLDER/ddim.pt: no weights \"ema:0.9\"; there are ema, raw";
    assert_eq!(
        message(rate, &golden("")),
        expected.replace("FOLDER/", "FOLDER")
    );
}

#[test]
fn improved_diffusion_with_its_heads_and_its_4000_steps() {
    let said = [
        "image_size=8x12",
        "diffusion_steps=4000",
        "noise_schedule=cosine",
        "num_heads=2",
        "use_new_attention_order=false",
        "rescale_timesteps=true",
        "num_groups=2",
        // What the file tells may be said again.
        "learn_sigma=True",
        "class_cond=False",
        "--num_channels=4",
        "use_scale_shift_norm=true",
    ];
    let pipeline = check(
        "improved.pt",
        "improved",
        &Arch::new(said).unwrap(),
        &Weights::Ema,
    );
    let settings = pipeline.unet.as_unet_2d().unwrap().settings();
    assert_eq!(
        (settings.attention_heads, settings.timestep_scale),
        (Some(2), 0.25)
    );
    assert_eq!(settings.out_channels, 6);
    let scheduler = pipeline.scheduler.to_json();
    for part in [
        "learned_range",
        "squaredcos_cap_v2",
        "\"num_train_timesteps\": 4000",
    ] {
        assert!(scheduler.contains(part), "{scheduler}");
    }
    // diffusers has neither these heads nor this time.
    assert_eq!(pipeline.unet.beyond_diffusers().len(), 2);
}

#[test]
fn improved_diffusion_with_other_heads_on_the_way_up() {
    let said = |up: &str| {
        let up = format!("num_heads_upsample={up}");
        let said = [
            "image_size=8x4",
            "diffusion_steps=4000",
            "noise_schedule=linear",
            "rescale_timesteps=true",
            "num_heads=2",
            "num_groups=2",
            "use_new_attention_order=false",
            &up,
        ];
        Arch::new(said).unwrap()
    };
    let pipeline = check("improved_up.pt", "improved_up", &said("4"), &Weights::Ema);
    let settings = pipeline.unet.as_unet_2d().unwrap().settings();
    assert_eq!(
        (settings.attention_heads, settings.attention_heads_up),
        (Some(2), Some(4))
    );
    assert_eq!(pipeline.unet.beyond_diffusers().len(), 4);
    // As many on the way up are no case of their own.
    let same = convert("improved_up.pt", &said("2"), &Weights::Ema).unwrap();
    assert_eq!(
        same.unet
            .as_unet_2d()
            .unwrap()
            .settings()
            .attention_heads_up,
        None
    );
}

#[test]
fn improved_diffusion_without_scale_and_shift_in_an_old_file() {
    let said = arch(&["num_heads=1", "num_groups=2"]);
    let pipeline = check("improved_plain.pt", "improved_plain", &said, &Weights::Ema);
    assert!(pipeline.unet.beyond_diffusers().is_empty());
    assert_eq!(pipeline.unet.out_channels(), 1);
}

#[test]
fn guided_diffusion_with_classes_and_blocks_that_halve() {
    let said = [
        "num_head_channels=4",
        "num_groups=2",
        "use_new_attention_order=false",
    ];
    let pipeline = check("guided.pt", "guided", &arch(&said), &Weights::Ema);
    let settings = pipeline.unet.as_unet_2d().unwrap().settings();
    assert_eq!(
        settings.down_block_types[0].name(),
        "ResnetDownsampleBlock2D"
    );
    assert_eq!(settings.num_class_embeds, Some(5));
    assert!(pipeline.unet.beyond_diffusers().is_empty());
}

#[test]
fn guided_diffusion_whose_first_level_is_narrower() {
    let said = [
        "num_head_channels=4",
        "num_groups=2",
        "use_new_attention_order=false",
        "num_channels=8",
    ];
    let pipeline = check("guided_half.pt", "guided_half", &arch(&said), &Weights::Ema);
    let settings = pipeline.unet.as_unet_2d().unwrap().settings();
    assert_eq!(settings.block_out_channels, [4, 8]);
    assert_eq!(settings.timestep_width, Some(8));
    assert_eq!(pipeline.unet.beyond_diffusers().len(), 1);
}

#[test]
fn the_new_order_of_attention_is_another_network() {
    let said = [
        "num_head_channels=4",
        "num_groups=2",
        "use_new_attention_order=true",
    ];
    check(
        "guided_new_order.pt",
        "guided_new_order",
        &arch(&said),
        &Weights::Ema,
    );
    let wrong = [
        "num_head_channels=4",
        "num_groups=2",
        "use_new_attention_order=false",
    ];
    let right = convert("guided_new_order.pt", &arch(&said), &Weights::Ema).unwrap();
    let wrong = convert("guided_new_order.pt", &arch(&wrong), &Weights::Ema).unwrap();
    let name = "mid_block.attentions.0.to_k.weight";
    let of = |pipeline: Pipeline| {
        let mut weights = pipeline.weights.into_iter();
        weights
            .find(|(n, _)| n == name)
            .unwrap()
            .1
            .to_vec2::<f32>()
            .unwrap()
    };
    assert_ne!(of(right), of(wrong));
}

#[test]
fn names_in_a_safetensors_file_are_recognised_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ho.safetensors");
    let ones =
        |shape: &[usize]| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
    let tensors = [("model.temb.dense.0.weight".to_owned(), ones(&[4, 4]))];
    ddpm_checkpoint::write_tensors(&path, "a test", &tensors, &Default::default()).unwrap();
    let mut file = ForeignFile::open(&path).unwrap();
    assert_eq!(file.layout(), Layout::Ho);
    let expected = "FOLDER/ho.safetensors: it has no residual block `down.0.block.0`";
    assert_eq!(
        message(file.describe(&Arch::default()), folder.path()),
        expected
    );
}

#[test]
fn what_a_file_does_not_say_is_asked_for_by_name() {
    let place = golden("");
    let asked = |file: &str, said: &[&str]| {
        let text = message(
            convert(file, &Arch::new(said).unwrap(), &Weights::Ema),
            &place,
        );
        text.replace("FOLDER", "")
    };
    assert_eq!(
        asked("guided.pt", &[]),
        "guided.pt holds a network of OpenAI's improved- or guided-diffusion, which does not say image_size (the \
         images' side, N or HxW), diffusion_steps (the steps that it was trained with), noise_schedule (the name of the schedule of its betas), \
         num_heads (attention heads), use_new_attention_order (true or false), num_groups (groups of a normalisation); \
         give --arch image_size=N diffusion_steps=N noise_schedule=linear|cosine num_heads=N or num_head_channels=N \
         use_new_attention_order=true|false num_groups=N"
    );
    assert_eq!(
        asked("ho.pt", &["image_size=8", "num_groups=2"]),
        "ho.pt holds Ho's network (as pesser and DDIM wrote it), which does not say diffusion_steps (the steps that it was \
         trained with), noise_schedule (the name of the schedule of its betas); give --arch diffusion_steps=N \
         noise_schedule=linear|cosine|quad|sigmoid|warmup10|warmup50|const|jsd"
    );
    let of_4000 = [
        "image_size=8",
        "diffusion_steps=4000",
        "noise_schedule=cosine",
        "num_heads=2",
        "num_groups=2",
    ];
    let text = asked("improved.pt", &of_4000);
    assert!(
        text.ends_with(
            "give --arch rescale_timesteps=true|false use_new_attention_order=true|false"
        ),
        "{text}"
    );
}

#[test]
fn what_is_said_in_vain_or_wrongly_is_refused() {
    let place = golden("");
    let said = |file: &str, said: &[&str]| match Arch::new(DIFFUSION.iter().chain(said)) {
        Err(error) => error.to_string(),
        Ok(arch) => message(convert(file, &arch, &Weights::Ema), &place).replace("FOLDER", ""),
    };
    let check = |file: &str, more: &[&str], expected: &str| assert_eq!(said(file, more), expected);
    check(
        "ho.pt",
        &["num_groups=2", "num_heads=4"],
        "--arch: `num_heads` would be ignored: ho.pt holds Ho's network (as pesser and DDIM wrote it)",
    );
    check(
        "guided.pt",
        &["num_heads=1", "num_groups=2", "class_cond=false"],
        "--arch: `class_cond` is given as false, but in guided.pt it is true",
    );
    check(
        "ho.pt",
        &["image_size=9"],
        "--arch: `image_size` is given twice",
    );
    check(
        "ho.pt",
        &["num_groups=two"],
        "--arch: `num_groups` is `two`, expected a whole number from 1 to 65536",
    );
    check(
        "ho_variants.pt",
        &["num_groups=2", "resamp_with_conv=true"],
        "--arch: `resamp_with_conv` is given as true, but in ho_variants.pt it is false",
    );
    check(
        "improved_up.pt",
        &[
            "num_head_channels=2",
            "num_groups=2",
            "num_heads_upsample=4",
            "use_new_attention_order=0",
        ],
        "--arch: `num_heads_upsample` would be ignored: improved_up.pt holds a network of OpenAI's improved- or \
         guided-diffusion",
    );
    check(
        "improved_up.pt",
        &[
            "num_heads=2",
            "num_groups=2",
            "num_heads_upsample=3",
            "use_new_attention_order=0",
        ],
        "improved_up.pt: `output_blocks.0.1.qkv.bias` has 24 rows, a third of which 3 heads do not divide",
    );
    check(
        "ho.pt",
        &["num_groups"],
        "--arch: `num_groups` is not KEY=VALUE",
    );
    check(
        "guided.pt",
        &["num_heads=3", "num_groups=2", "use_new_attention_order=0"],
        "guided.pt: `input_blocks.3.1.qkv.bias` has 24 rows, a third of which 3 heads do not divide",
    );
    let text = said("ho.pt", &["heads=3"]);
    assert!(
        text.starts_with("--arch: `heads` is not one of image_size, noise_schedule"),
        "{text}"
    );
    let folder = resolve_model_as(&golden("folder"), &arch(&[]));
    assert_eq!(
        message(folder, &place),
        "--arch: it would be ignored: FOLDERfolder is not a file; folders say what they are"
    );
}

#[test]
fn networks_that_diffusers_cannot_express_are_refused_by_what_they_have() {
    let refused = |file: &str| message(convert(file, &arch(&[]), &Weights::Ema), &golden(""));
    let text = refused("folder/unet/diffusion_pytorch_model.bin");
    assert!(
        text.contains("its tensors have diffusers' names, whose configuration is another file"),
        "{text}"
    );
    let text = refused("tensors.pt");
    assert!(
        text.contains("are not under the names of a network that is known; known are"),
        "{text}"
    );
}
