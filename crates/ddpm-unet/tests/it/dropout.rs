//! Dropout in the network: nothing at rate 0, the same masks however a batch is split, every part of the address.

use ddpm_unet::{DropoutAddress, UNet, UNetConfig, UNetSettings};

use crate::formula::{formula, formula_network, max_difference, numbers};

fn network(dropout: f64) -> UNet {
    let settings = UNetSettings {
        dropout,
        norm_num_groups: Some(4),
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

#[test]
fn a_step_beyond_the_address_is_refused() {
    let x = formula("input.x", &[1, 3, 4, 6]);
    let error = network(0.3)
        .forward_train(&x, &[7.0], &address(1, u64::MAX, &[3]))
        .unwrap_err();
    assert!(
        error.to_string().ends_with("steps are below 2^44"),
        "{error}"
    );
}
