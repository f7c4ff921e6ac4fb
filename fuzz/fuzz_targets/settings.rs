//! Settings: everything that is done with a TOML text before the first step, without the data.
#![no_main]

use ddpm_train::{Layer, Objective, Result, Settings, memory_needed};

libfuzzer_sys::fuzz_target!(|text: &str| drop(go_through(text)));

fn go_through(text: &str) -> Result<()> {
    let settings = Settings::from_layers(&[Layer::from_text("fuzz", text)?])?.resolved();
    settings.check()?;
    settings.check_data(1000, (3, 16, 16))?;
    Objective::new(&settings.diffusion)?;
    let config = settings.unet_config(3, 16, 16)?;
    // Plans of networks of thousands of layers take seconds, and nothing else than others.
    let layers = settings.model.layers_per_block * settings.model.block_out_channels.len();
    if layers <= 8 && settings.train.batch_size <= 64 && settings.samples.count <= 64 {
        memory_needed(&settings, &config, (16, 16))?;
    }
    settings.data_spec()?;
    // What is recorded is what was meant.
    let written = settings.to_toml()?;
    let again = Settings::from_layers(&[Layer::from_text("written", &written)?])?.resolved();
    let same = settings == again || written.contains("nan");
    assert!(same, "{written}\n{}", again.to_toml()?);
    Ok(())
}
