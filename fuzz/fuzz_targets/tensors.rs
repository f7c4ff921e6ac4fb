//! Files of tensors, whichever they are by their first bytes: read whole, and as another program's model.
#![no_main]

use ddpm_checkpoint::{Arch, ForeignFile, Weights, open_tensors};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("ddpm-fuzz-tensors-{}.pt", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    if let Ok(mut tensors) = open_tensors(&path) {
        for (name, shape) in tensors.shapes() {
            if let Ok(tensor) = tensors.read_f32(&name) {
                assert_eq!(tensor.dims(), shape);
            }
        }
    }
    let said = [
        "image_size=8",
        "diffusion_steps=10",
        "noise_schedule=linear",
        "num_groups=2",
    ];
    let heads = ["num_head_channels=4", "use_new_attention_order=true"];
    let lucidrains = [
        "image_size=8",
        "timesteps=10",
        "beta_schedule=cosine",
        "objective=pred_v",
    ];
    let old = ["version=1.5.4", "resnet_block_groups=2"];
    for arch in [
        Arch::new(said),
        Arch::new(said.iter().chain(&heads)),
        Arch::new(&lucidrains[..1]),
        Arch::new(lucidrains),
        Arch::new(lucidrains.iter().chain(&old)),
    ] {
        if let Ok(mut file) = ForeignFile::open(&path) {
            drop(file.convert(&arch.unwrap(), &Weights::Ema));
        }
    }
});
