//! Dropout: nothing at rate 0, the same masks however a batch is split, the right share and the right mean.

use candle_core::Tensor;
use ddpm_unet::{DropoutAddress, UNet, UNetConfig, UNetSettings};

use crate::formula::{formula, formula_network, max_difference, numbers};

fn network(dropout: f64) -> UNet {
    let settings = UNetSettings {
        dropout,
        norm_num_groups: 4,
        layers_per_block: 1,
        ..UNetSettings::ho()
    };
    formula_network(&UNetConfig::new(settings.with_levels(&[(8, false), (12, true)])).unwrap())
}

fn address(seed: u64, step: u64, images: &[u64]) -> DropoutAddress<'_> {
    DropoutAddress { seed, step, images }
}

#[test]
fn rate_zero_is_the_network_itself() {
    let network = network(0.0);
    let x = formula("input.x", &[2, 3, 4, 6]);
    let trained = network
        .forward_train(&x, &[3.0, 900.0], &address(1, 2, &[3, 4]))
        .unwrap();
    assert_eq!(
        numbers(&trained),
        numbers(&network.forward(&x, &[3.0, 900.0]).unwrap())
    );
}

#[test]
fn masks_do_not_depend_on_how_the_batch_is_split() {
    let network = network(0.3);
    let (x, time) = (formula("input.x", &[3, 3, 4, 6]), [3.0, 900.0, 41.0]);
    let whole = network
        .forward_train(&x, &time, &address(1, 2, &[10, 11, 12]))
        .unwrap();
    for row in 0..3 {
        let image = x.narrow(0, row, 1).unwrap();
        let alone = network
            .forward_train(&image, &time[row..=row], &address(1, 2, &[10 + row as u64]))
            .unwrap();
        assert!(max_difference(&whole.narrow(0, row, 1).unwrap(), &alone) <= 1e-6);
    }
}

#[test]
fn every_part_of_the_address_matters() {
    let network = network(0.3);
    let x = formula("input.x", &[1, 3, 4, 6]);
    let output = |address| network.forward_train(&x, &[7.0], &address).unwrap();
    let base = output(address(1, 2, &[3]));
    assert_eq!(numbers(&base), numbers(&output(address(1, 2, &[3]))));
    for other in [
        address(9, 2, &[3]),
        address(1, 3, &[3]),
        address(1, 2, &[4]),
    ] {
        assert!(max_difference(&base, &output(other)) > 1e-3, "{other:?}");
    }
    assert!(max_difference(&base, &network.forward(&x, &[7.0]).unwrap()) > 1e-3);
}

/// A network that is the sum of what its last dropout lets through: all weights 0 except that block's, so that the
/// output counts the kept activations.
#[test]
fn the_share_that_is_kept_and_its_scale_are_right() {
    let (rate, side, channels) = (0.3, 64, 4);
    let settings = UNetSettings {
        dropout: rate,
        norm_num_groups: 1,
        layers_per_block: 1,
        mid_block: false,
        out_channels: channels,
        ..UNetSettings::ho()
    };
    let config = UNetConfig::new(settings.with_levels(&[(channels, false)])).unwrap();
    // The last block's second normalisation yields 3 everywhere, its second convolution copies the mask to its output,
    // and the network's end keeps the order of values.
    let weight = |(name, shape): (String, Vec<usize>)| {
        let zeros = Tensor::zeros(
            shape.as_slice(),
            candle_core::DType::F32,
            &candle_core::Device::Cpu,
        )
        .unwrap();
        let tensor = match name.as_str() {
            "up_blocks.0.resnets.1.norm2.bias" => (zeros + 3.0).unwrap(),
            "conv_norm_out.weight" => (zeros + 1.0).unwrap(),
            "up_blocks.0.resnets.1.conv2.weight" | "conv_out.weight" => copying_kernel(&shape),
            _ => zeros,
        };
        (name, tensor)
    };
    let network = UNet::new(
        &config,
        &config
            .parameters()
            .into_iter()
            .map(weight)
            .collect::<Vec<_>>(),
    )
    .unwrap();
    let images = 8u64;
    let x = formula("input.x", &[images as usize, 3, side, side]);
    let addresses: Vec<u64> = (0..images).collect();
    let output = network
        .forward_train(&x, &vec![0.0; images as usize], &address(5, 6, &addresses))
        .unwrap();

    // Kept activations are above the mean, dropped ones below it.
    let values = numbers(&output);
    let kept = values.iter().filter(|&&value| value > 0.0).count() as f64 / values.len() as f64;
    let deviation = (rate * (1.0 - rate) / values.len() as f64).sqrt();
    assert!((kept - (1.0 - rate)).abs() < 4.0 * deviation, "{kept}");
}

/// A convolution that gives back its input: 1 in the middle of the kernel of equal channels.
fn copying_kernel(shape: &[usize]) -> Tensor {
    let (outputs, inputs) = (shape[0], shape[1]);
    let mut values = vec![0f32; outputs * inputs * 9];
    for channel in 0..outputs.min(inputs) {
        values[(channel * inputs + channel) * 9 + 4] = 1.0;
    }
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap()
}
