//! What `--inspect` says about a model.

use crate::{House, check_done};

#[test]
fn a_run_is_described() {
    let house = House::new();
    let output = house.run("--model run --inspect");
    check_done(&output);
    let expected = "\
model       run/checkpoints/step-00000003
images      3 channels, 4x6
network     UNet2DModel, levels 4, 8 with attention; 1 layers each
parameters  PARAMETERS
schedule    100 steps, beta 0.001000 to 0.200000, alpha-bar_T 2.039e-5
prediction  noise
variance    fixed-large
clipping    to [-1, 1]
scheduler   DDPMScheduler
spacing     trailing
step        3
weights     ema, raw
data        name digits
program     ddpm-train 0.1.0
";
    let parameters = crate::unet().parameter_count().to_string();
    let parameters = format!(
        "{},{}",
        &parameters[..parameters.len() - 3],
        &parameters[parameters.len() - 3..]
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, expected.replace("PARAMETERS", &parameters));
}
