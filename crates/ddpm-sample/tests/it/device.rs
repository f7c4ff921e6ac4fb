//! Where the walk goes: operation by operation it comes to the same images, and what is not there is said.

use candle_core::Tensor;
use ddpm_unet::DeviceName;

use crate::House;

/// The largest difference, beside the largest number.
#[track_caller]
fn check(house: &House, flags: &str) {
    let device = ddpm_tests::named().unwrap_or(DeviceName::CpuGraph);
    let [planned, by_graph] = [DeviceName::Cpu, device]
        .map(|device| house.samples(&format!("{flags} --device {device}")));
    assert_eq!(planned.dims(), by_graph.dims());
    let largest = |x: &Tensor| {
        let sizes = x.abs().unwrap().flatten_all().unwrap();
        sizes.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    let difference = largest(&(&planned - &by_graph).unwrap());
    let of = largest(&planned).max(1.0);
    assert!(difference < 1e-4 * of, "{flags}: {difference:e} of {of}");
}

#[test]
fn the_way_of_a_card_makes_the_same_images() {
    let house = House::new();
    for flags in [
        "",
        "--sampler ddpm",
        "--sampler dpm++ --batch-size 2",
        "--rng torch",
    ] {
        check(&house, flags);
    }
}

#[test]
fn the_device_is_named_and_what_cannot_be_had_is_refused() {
    let house = House::new();
    let output = house.sample("--device cpu-graph");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains(
            "note: device cpu, operation by operation through candle's graph (cpu-graph)\n"
        ),
        "{text}"
    );
    let output = house.sample("--device cuda:977");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.starts_with("error: --device: cuda:977 cannot be had: "),
        "{text}"
    );
    let output = house.sample("--device gpu");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text.contains("`gpu` is no device, expected auto, cpu, cuda or cuda:N"),
        "{text}"
    );
    house.check_error(
        "--model run --device cpu-graph --precision bf16",
        2,
        "error: --precision bf16 cannot be had: the operations of --device cpu-graph are f32; cpu and cuda have bf16\n\nFor more information, try '--help'.",
    );
}
