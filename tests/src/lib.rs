//! Where the tests of the house run: on the device that the variable `DDPM_TEST_DEVICE` names, on the CPU if it names none.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    reason = "only tests are served: they stop by panicking, and say what they skip"
)]

use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use ddpm_kernels::device::{DeviceName, Place};

/// What two devices may differ by in one operation, beside the largest number: the promise across devices.
const ACROSS_DEVICES: f64 = 1e-5;

/// Where tensors of tests are to be: the CPU, or one card for the whole process.
pub fn device() -> Device {
    opened().1.device().clone()
}

/// The same by name, for programs and settings.
pub fn device_name() -> DeviceName {
    opened().0
}

/// The name, if the variable is set: a test then says to a program what it else leaves to it.
pub fn named() -> Option<DeviceName> {
    std::env::var_os(VARIABLE).map(|_| device_name())
}

/// The tensor on the device of the tests; one without elements stays where it is, for a card has no memory of no bytes.
pub fn here(x: &Tensor) -> Tensor {
    if x.elem_count() == 0 {
        return x.clone();
    }
    x.to_device(&device())
        .unwrap_or_else(|why| panic!("{why}, where the tests are to run"))
}

/// What a result may be off by that is held to `on_the_cpu` there: on a card at least what is promised across devices.
pub fn tolerance(on_the_cpu: f64) -> f64 {
    match device() {
        Device::Cpu => on_the_cpu,
        _ => on_the_cpu.max(ACROSS_DEVICES),
    }
}

const VARIABLE: &str = "DDPM_TEST_DEVICE";

/// Opened once. A build that has no CUDA stays on the CPU and says so; one that has it must find the card.
fn opened() -> &'static (DeviceName, Place) {
    static OPENED: OnceLock<(DeviceName, Place)> = OnceLock::new();
    OPENED.get_or_init(|| {
        let text = std::env::var(VARIABLE).unwrap_or_else(|_| "cpu".to_owned());
        let name: DeviceName = text
            .parse()
            .unwrap_or_else(|why| panic!("{VARIABLE}: {why}"));
        match Place::open(name) {
            Ok(place) => (name, place),
            Err(why) if !ddpm_kernels::device::WITH_CUDA => {
                println!("{VARIABLE}: {why}; the CPU instead");
                (DeviceName::Cpu, Place::cpu())
            }
            Err(why) => panic!("{VARIABLE}: {why}"),
        }
    })
}
