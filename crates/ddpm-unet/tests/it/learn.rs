//! The pass by plan against candle's graph of the same network: outputs and the gradients of all parameters.

use candle_core::{Device, Tensor, Var};
use ddpm_kernels::Gradients;
use ddpm_kernels::processor::{self, Level};
use ddpm_unet::{DropoutAddress, Error, Precision, TimeScaleShift, UNet, UNetConfig, UNetSettings};

use crate::formula::{
    formula, formula_weights, golden_classes, golden_config, golden_tensor, numbers,
};

fn settings() -> UNetSettings {
    let settings = UNetSettings {
        norm_num_groups: Some(4),
        ..UNetSettings::ho()
    };
    settings.with_levels(&[(8, false), (16, true)])
}

/// Norm of the difference, over the norm of what is expected plus a thousandth of the largest such norm.
fn differences(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> Vec<f64> {
    let norm =
        |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = expected
        .iter()
        .map(|x| norm(&mut x.iter().copied()))
        .collect();
    let largest = norms.iter().copied().fold(0.0, f64::max);
    let pairs = actual.iter().zip(expected).zip(norms);
    pairs
        .map(|((a, e), of)| norm(&mut a.iter().zip(e).map(|(a, e)| a - e)) / (of + 1e-3 * largest))
        .collect()
}

#[track_caller]
fn check(name: &str, config: &UNetConfig, [batch, height, width]: [usize; 3]) {
    let weights: Vec<(String, Tensor)> = config
        .parameters()
        .into_iter()
        .map(|(name, _)| {
            let all = formula_weights(config);
            let tensor = all.into_iter().find(|(other, _)| *other == name).unwrap().1;
            (name, Var::from_tensor(&tensor).unwrap().into_inner())
        })
        .collect();
    let network = UNet::new(config, &weights).unwrap();
    let channels = config.settings().in_channels;
    let x = formula(&format!("input.{name}"), &[batch, channels, height, width]);
    let time: Vec<f64> = (0..batch).map(|image| (37 * image + 5) as f64).collect();
    let images: Vec<u64> = (0..batch as u64).map(|image| image + 11).collect();
    let dropout = DropoutAddress {
        seed: 3,
        step: 2,
        images: &images,
    };

    let output = network.forward_train(&x, &time, &dropout).unwrap();
    let weight = formula("output.weight", output.dims());
    let store = (&output * &weight)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let expected: Vec<Vec<f32>> = weights
        .iter()
        .map(|(_, tensor)| numbers(store.get(tensor).unwrap()))
        .collect();

    let shapes: Vec<Vec<usize>> = config
        .parameters()
        .into_iter()
        .map(|(_, shape)| shape)
        .collect();
    let mut gradients = Gradients::zeros(&shapes);
    let mut planned = None;
    for accumulate in [false, true] {
        let gradient_of = |output: &Tensor| {
            planned = Some(output.clone());
            Ok::<_, Error>(weight.clone())
        };
        network
            .learn(
                &x,
                &time,
                &dropout,
                (&mut gradients, accumulate),
                gradient_of,
            )
            .unwrap();
        let times = if accumulate { 2.0 } else { 1.0 };
        let found: Vec<Vec<f32>> = (0..gradients.len())
            .map(|index| {
                gradients
                    .get(index)
                    .unwrap()
                    .iter()
                    .map(|g| g / times)
                    .collect()
            })
            .collect();
        for (difference, (parameter, _)) in differences(&found, &expected).into_iter().zip(&weights)
        {
            assert!(
                difference < 2e-5,
                "{name}: {parameter} differs by {difference:e}"
            );
        }
    }
    // On the device of the tests: by graph on the CPU, which is what is expected, and by plan on a card.
    let device = ddpm_tests::device();
    let allowed = if device.is_cpu() { 0.0 } else { 2e-5 };
    let there = network.to_device(&device).unwrap();
    let mut tensors = Vec::new();
    for times in [1.0, 2.0] {
        let gradient_of = |_: &Tensor| Ok::<_, Error>(ddpm_tests::here(&weight));
        there
            .learn_on_device(
                &ddpm_tests::here(&x),
                &time,
                &dropout,
                &mut tensors,
                gradient_of,
            )
            .unwrap();
        let found: Vec<Vec<f32>> = tensors
            .iter()
            .map(|gradient| numbers(&(gradient / times).unwrap()))
            .collect();
        for (difference, (parameter, _)) in differences(&found, &expected).into_iter().zip(&weights)
        {
            assert!(
                difference <= allowed,
                "{name}: {parameter} differs by {difference:e} on the device, {times} times"
            );
        }
    }
    let (planned, output) = (numbers(&planned.unwrap()), numbers(&output.detach()));
    let difference = differences(&[planned], &[output])[0];
    assert!(
        difference < 1e-5,
        "{name}: the output differs by {difference:e}"
    );
}

#[test]
fn every_kind_of_network_learns_what_candles_graph_says() {
    for case in [
        "ho",
        "openai",
        "uneven",
        "divided_middle",
        "attention_groups",
        "heads_that_do_not_fill_the_width",
    ] {
        let config = golden_config(case);
        let side = 1 << (config.settings().block_out_channels.len() - 1);
        check(case, &config, [3, 4 * side, 3 * side]);
    }
}

/// Networks without a plan, on weights that are no variables: the same gradients as from variables by candle's graph.
#[test]
fn networks_without_a_plan_learn_too() {
    for case in [
        "resnet_blocks",
        "skip_blocks",
        "halved_and_doubled_by_blocks",
        "classes_as_times",
    ] {
        let config = golden_config(case);
        let weights = formula_weights(&config);
        let file = format!("{case}.safetensors");
        let (x, target) = (golden_tensor(&file, "x"), golden_tensor(&file, "output"));
        let time = golden_tensor(&file, "time");
        let time: Vec<f64> = time
            .to_dtype(candle_core::DType::F64)
            .unwrap()
            .to_vec1()
            .unwrap();
        let told = |network: UNet| match golden_classes(case, &config) {
            Some(classes) => network.with_classes(classes).unwrap(),
            None => network,
        };
        let images: Vec<u64> = (0..time.len() as u64).collect();
        let dropout = DropoutAddress {
            seed: 3,
            step: 2,
            images: &images,
        };

        let variables: Vec<(String, Tensor)> = weights
            .iter()
            .map(|(name, tensor)| {
                let variable = Var::from_tensor(tensor).unwrap();
                (name.clone(), variable.into_inner())
            })
            .collect();
        let by_graph = told(UNet::new(&config, &variables).unwrap());
        let output = by_graph.forward_train(&x, &time, &dropout).unwrap();
        let store = (output * &target)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();

        let network = told(UNet::new(&config, &weights).unwrap());
        let shapes: Vec<Vec<usize>> = config.parameters().into_iter().map(|p| p.1).collect();
        let mut gradients = Gradients::zeros(&shapes);
        for accumulate in [false, true] {
            let gradient_of = |_: &Tensor| Ok::<_, Error>(target.clone());
            let to = (&mut gradients, accumulate);
            network.learn(&x, &time, &dropout, to, gradient_of).unwrap();
            let times = if accumulate { 2.0 } else { 1.0 };
            for (index, (name, variable)) in variables.iter().enumerate() {
                let found: Vec<f32> = gradients.get(index).unwrap().to_vec();
                let expected = match store.get(variable) {
                    Some(gradient) => numbers(gradient),
                    None => {
                        assert_eq!(name, "time_proj.weight");
                        vec![0.0; found.len()]
                    }
                };
                assert!(
                    found.iter().zip(&expected).all(|(a, b)| *a == b * times),
                    "{case}: {name}"
                );
            }
        }
    }
}

#[test]
fn dropout_and_odd_channels_too() {
    let with = UNetSettings {
        dropout: 0.2,
        ..settings()
    };
    check("dropout", &UNetConfig::new(with).unwrap(), [2, 6, 10]);
    let shifted = UNetSettings {
        dropout: 0.3,
        resnet_time_scale_shift: TimeScaleShift::ScaleShift,
        mid_block_scale_factor: 2.0,
        in_channels: 1,
        out_channels: 5,
        norm_num_groups: Some(3),
        ..UNetSettings::ho()
    };
    let config =
        UNetConfig::new(shifted.with_levels(&[(9, false), (21, true), (33, false)])).unwrap();
    check("odd", &config, [1, 12, 4]);
}

/// The trainer relies on it: a loss that is not finite must leave the gradients alone.
#[test]
fn an_error_of_the_loss_comes_back_and_nothing_is_written() {
    let config = UNetConfig::new(settings()).unwrap();
    let weights: Vec<(String, Tensor)> = formula_weights(&config).into_iter().collect();
    let network = UNet::new(&config, &weights).unwrap();
    let shapes: Vec<Vec<usize>> = config
        .parameters()
        .into_iter()
        .map(|(_, shape)| shape)
        .collect();
    let mut gradients = Gradients::zeros(&shapes);
    let x = Tensor::zeros((1, 3, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let dropout = DropoutAddress {
        seed: 1,
        step: 0,
        images: &[0],
    };
    let refused = |_: &Tensor| Err(Error::Json("no".into()));
    let error = network
        .learn(&x, &[1.0], &dropout, (&mut gradients, false), refused)
        .unwrap_err();
    assert!(error.to_string().contains("no"), "{error}");
    assert!(
        (0..gradients.len()).all(|index| gradients.get(index).unwrap().iter().all(|&g| g == 0.0))
    );
}

/// Output and gradients of one pass, as bits.
fn pass(
    network: &UNet,
    x: &Tensor,
    time: &[f64],
    config: &UNetConfig,
) -> (Vec<u32>, Vec<Vec<u32>>) {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let shapes: Vec<Vec<usize>> = config
        .parameters()
        .into_iter()
        .map(|(_, shape)| shape)
        .collect();
    let mut gradients = Gradients::zeros(&shapes);
    let images: Vec<u64> = (0..time.len() as u64).collect();
    let dropout = DropoutAddress {
        seed: 3,
        step: 2,
        images: &images,
    };
    let mut output = Vec::new();
    let gradient_of = |y: &Tensor| {
        output = bits(&numbers(y));
        Ok::<_, Error>(formula("output.weight", y.dims()))
    };
    network
        .learn(x, time, &dropout, (&mut gradients, false), gradient_of)
        .unwrap();
    let evaluated = numbers(&network.frozen().forward(x, time).unwrap());
    assert_eq!(output, bits(&evaluated), "training and evaluation differ");
    (
        output,
        (0..gradients.len())
            .map(|index| bits(&gradients.get(index).unwrap()))
            .collect(),
    )
}

/// A network whose convolutions go by Winograd's tiles and by direct loops, with odd channels and two sizes of tile.
#[test]
fn threads_and_place_in_the_batch_change_no_bit_at_any_level() {
    let settings = UNetSettings {
        norm_num_groups: Some(3),
        in_channels: 1,
        out_channels: 2,
        ..UNetSettings::ho()
    };
    let config = UNetConfig::new(settings.with_levels(&[(18, false), (33, true)])).unwrap();
    let weights: Vec<(String, Tensor)> = formula_weights(&config).into_iter().collect();
    let network = UNet::new(&config, &weights).unwrap();
    let x = formula("input.threads", &[3, 1, 14, 10]);
    let time = [5.0, 700.0, 99.0];
    for level in Level::available() {
        let on = |threads: usize| {
            let pool = processor::pool(level, threads).unwrap();
            pool.install(|| pass(&network, &x, &time, &config))
        };
        let once = on(1);
        assert!(
            once == on(2) && once == on(7),
            "{level:?}: threads change the result"
        );
        let alone = processor::pool(level, 2).unwrap().install(|| {
            numbers(
                &network
                    .forward(&x.narrow(0, 1, 1).unwrap(), &time[1..2])
                    .unwrap(),
            )
        });
        let alone: Vec<u32> = alone.iter().map(|x| x.to_bits()).collect();
        let each = once.0.len() / 3;
        assert_eq!(
            alone,
            once.0[each..2 * each],
            "{level:?}: the batch changes an image"
        );
    }
}

/// Output, gradients and evaluation of a network in a precision.
fn in_precision(
    network: &UNet,
    precision: Precision,
    [batch, height, width]: [usize; 3],
) -> [Vec<Vec<f32>>; 2] {
    let network = network.in_precision(precision);
    let config = network.config();
    let x = formula(
        "input.bf16",
        &[batch, config.settings().in_channels, height, width],
    );
    let time: Vec<f64> = (0..batch).map(|image| (37 * image + 5) as f64).collect();
    let images: Vec<u64> = (0..batch as u64).collect();
    let shapes: Vec<Vec<usize>> = config.parameters().into_iter().map(|(_, s)| s).collect();
    let mut gradients = Gradients::zeros(&shapes);
    let dropout = DropoutAddress {
        seed: 3,
        step: 2,
        images: &images,
    };
    let mut output = Vec::new();
    let gradient_of = |found: &Tensor| {
        output = numbers(found);
        Ok::<_, Error>(formula("output.weight", found.dims()))
    };
    network
        .learn(&x, &time, &dropout, (&mut gradients, false), gradient_of)
        .unwrap();
    let found = (0..gradients.len()).map(|i| gradients.get(i).unwrap().to_vec());
    let evaluated = numbers(&network.frozen().forward(&x, &time).unwrap());
    [vec![output, evaluated], found.collect()]
}

/// bf16 rounds to 8 bits: each of some thirty layers adds errors of at most 1/256 of what it passes on, of which most
/// cancel; what is held to here is a fiftieth forward and a tenth back, where the errors of both ways meet.
#[test]
fn bf16_differs_from_f32_by_its_rounding_only() {
    for case in ["ho", "openai", "uneven", "attention_groups"] {
        let config = golden_config(case);
        let network = UNet::new(&config, &formula_weights(&config)).unwrap();
        let [outputs, gradients] = in_precision(&network, Precision::Bf16, [3, 16, 8]);
        let [expected, expected_gradients] = in_precision(&network, Precision::F32, [3, 16, 8]);
        for difference in differences(&outputs, &expected) {
            assert!(
                difference < 0.02,
                "{case}: the output differs by {difference}"
            );
        }
        let of_gradients = differences(&gradients, &expected_gradients);
        for (difference, (name, _)) in of_gradients.iter().zip(config.parameters()) {
            assert!(*difference < 0.1, "{case}: {name} differs by {difference}");
        }
        assert!(outputs != expected, "{case}: bf16 was not used");
    }
}

/// The gradients of two batches, one added to the other, as bits.
fn gradient_bits(network: &UNet, [batch, height, width]: [usize; 3]) -> Vec<Vec<u32>> {
    let config = network.config();
    let channels = config.settings().in_channels;
    let shapes: Vec<Vec<usize>> = config.parameters().into_iter().map(|(_, s)| s).collect();
    let mut gradients = Gradients::zeros(&shapes);
    let time: Vec<f64> = (0..batch).map(|image| (37 * image + 5) as f64).collect();
    for micro_batch in 0..2 {
        let images: Vec<u64> = (0..batch)
            .map(|i| (micro_batch * batch + i) as u64)
            .collect();
        let x = formula(
            &format!("input.{micro_batch}"),
            &[batch, channels, height, width],
        );
        let dropout = DropoutAddress {
            seed: 3,
            step: 2,
            images: &images,
        };
        let gradient_of = |found: &Tensor| Ok::<_, Error>(formula("output.weight", found.dims()));
        network
            .learn(
                &x,
                &time,
                &dropout,
                (&mut gradients, micro_batch > 0),
                gradient_of,
            )
            .unwrap();
    }
    let bits = |i| {
        gradients
            .get(i)
            .unwrap()
            .iter()
            .map(|g| g.to_bits())
            .collect()
    };
    (0..gradients.len()).map(bits).collect()
}

#[test]
fn blocks_computed_again_give_the_same_gradients_to_the_bit() {
    for case in [
        "ho",
        "openai",
        "uneven",
        "divided_middle",
        "attention_groups",
        "heads_that_do_not_fill_the_width",
    ] {
        for dropout in [0.0, 0.3] {
            let settings = UNetSettings {
                dropout,
                ..golden_config(case).settings().clone()
            };
            let config = UNetConfig::new(settings).unwrap();
            assert!(config.learns_by_plan().unwrap(), "{case}");
            let network = UNet::new(&config, &formula_weights(&config)).unwrap();
            let side = 1 << (config.settings().block_out_channels.len() - 1);
            for precision in [Precision::F32, Precision::Bf16] {
                let network = network.in_precision(precision);
                let size = [3, 4 * side, 3 * side];
                let kept = gradient_bits(&network, size);
                let again = gradient_bits(&network.recomputing(true), size);
                assert!(again == kept, "{case}, dropout {dropout}, {precision:?}");
            }
        }
    }
}

/// Bits of everything, on so many threads.
fn bits_in_bf16(network: &UNet, batch: usize, threads: usize) -> Vec<Vec<u32>> {
    let pool = processor::pool(Level::current(), threads).unwrap();
    let all = pool.install(|| in_precision(network, Precision::Bf16, [batch, 16, 8]));
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect();
    all.into_iter().flatten().map(bits).collect()
}

#[test]
fn bf16_gives_the_same_bits_on_any_number_of_threads_and_in_any_batch() {
    let config = golden_config("ho");
    let network = UNet::new(&config, &formula_weights(&config)).unwrap();
    let expected = bits_in_bf16(&network, 3, 1);
    for threads in [2, 7] {
        assert!(
            bits_in_bf16(&network, 3, threads) == expected,
            "{threads} threads"
        );
    }
    let alone = bits_in_bf16(&network, 1, 2);
    for which in [0, 1] {
        assert_eq!(
            alone[which],
            expected[which][..alone[which].len()],
            "alone and among three"
        );
    }
}
