//! The plan on a card, run on the host kernel by kernel, held to the processor's plan of the same network.

use candle_core::{Device, Result, Tensor};

use super::on_card::Plan;
use super::{Executor, Gradients, Graph, Precision, Use, Value};
use crate::cuda::dropout::Draws;
use crate::cuda::host::{Call, Host, Memory};
use crate::cuda::launch::{Address, Kind, Machine};
use crate::cuda::nhwc::{Images, mask};
use crate::cuda::oracle::wave;
use crate::{Activation, Conv2d, Padding};

const SAME: Conv2d = Conv2d::new(1, Padding::same(1));
const ALONE: Conv2d = Conv2d::new(1, Padding::ZERO);
const BATCH: usize = 2;
const IMAGES: [usize; 3] = [3, 4, 8];
const TOLD: usize = 5;
const RATE: f64 = 0.3;
const KEY: [u32; 2] = [7, 9];

/// A parameter of this shape.
fn parameter(graph: &mut Graph, shape: &[usize]) -> usize {
    graph.parameters.push(shape.to_vec());
    graph.parameters.len() - 1
}

fn pair(graph: &mut Graph, shape: &[usize]) -> (usize, usize) {
    (parameter(graph, shape), parameter(graph, &shape[..1]))
}

fn convolved(
    graph: &mut Graph,
    x: &Value,
    (outputs, kernel): (usize, usize),
    vector: Option<&Value>,
    conv: Conv2d,
) -> Result<Value> {
    let inputs = graph.size(x).0;
    let (weight, bias) = pair(graph, &[outputs, inputs, kernel, kernel]);
    graph.conv2d(x, weight, bias, vector, conv)
}

fn mapped(graph: &mut Graph, x: &Value, outputs: usize) -> Result<Value> {
    let inputs = graph.size(x).0;
    let (weight, bias) = pair(graph, &[outputs, inputs]);
    graph.linear(x, weight, bias)
}

fn normalised(
    graph: &mut Graph,
    x: &Value,
    groups: usize,
    scale_shift: Option<&Value>,
    activation: Activation,
) -> Result<Value> {
    let channels = graph.size(x).0;
    let (gamma, beta) = pair(graph, &[channels]);
    graph.group_norm(x, (groups, 1e-4), (gamma, beta), scale_shift, activation)
}

/// A residual block, told a vector by adding it or by scale and shift; dropout at this place.
fn block(
    graph: &mut Graph,
    x: &Value,
    told: &Value,
    outputs: usize,
    (by_scale, place): (bool, usize),
) -> Result<Value> {
    graph.begin_block();
    let h = normalised(graph, x, 4, None, Activation::Silu)?;
    let width = if by_scale { 2 * outputs } else { outputs };
    let vector = mapped(graph, told, width)?;
    let h = convolved(
        graph,
        &h,
        (outputs, 3),
        (!by_scale).then_some(&vector),
        SAME,
    )?;
    let scale_shift = by_scale.then_some(&vector);
    let h = normalised(graph, &h, 2, scale_shift, Activation::Silu)?;
    let h = graph.dropout(&h, place);
    let h = convolved(graph, &h, (outputs, 3), None, SAME)?;
    let shortcut = match graph.size(x).0 == outputs {
        true => x.clone(),
        false => convolved(graph, x, (outputs, 1), None, ALONE)?,
    };
    let sum = graph.add(&shortcut, &h)?;
    if by_scale {
        graph.divide(&sum, 1.5)
    } else {
        Ok(sum)
    }
}

fn mixed(graph: &mut Graph, x: &Value, heads: usize) -> Result<Value> {
    graph.begin_block();
    let channels = graph.size(x).0;
    let normed = normalised(graph, x, 2, None, Activation::None)?;
    let query = mapped(graph, &normed, channels)?;
    let key = mapped(graph, &normed, channels)?;
    let value = mapped(graph, &normed, channels)?;
    let h = graph.attention(&query, &key, &value, heads)?;
    let h = mapped(graph, &h, channels)?;
    graph.add(x, &h)
}

/// A network of two levels with all that U-Nets are made of.
fn unet(graph: &mut Graph) -> Result<Value> {
    let [channels, height, width] = IMAGES;
    let x = graph.images(channels, height, width);
    let vectors = graph.vectors(TOLD);
    let told = mapped(graph, &vectors, 12)?;
    let told = graph.silu(&told);
    let told = mapped(graph, &told, 12)?;
    let told = graph.silu(&told);
    let first = convolved(graph, &x, (16, 3), None, SAME)?;
    let second = block(graph, &first, &told, 16, (false, 0))?;
    let down = convolved(
        graph,
        &second,
        (16, 3),
        None,
        Conv2d::new(2, Padding::DDPM_DOWN),
    )?;
    let third = block(graph, &down, &told, 32, (true, 1))?;
    let h = mixed(graph, &third, 4)?;
    let h = graph.concat_channels(&h, &down)?;
    let h = block(graph, &h, &told, 16, (false, 2))?;
    let h = graph.upsample_nearest_2x(&h);
    let h = convolved(graph, &h, (24, 3), None, SAME)?;
    let h = graph.concat_channels(&h, &first)?;
    let h = block(graph, &h, &told, 20, (true, 3))?;
    let h = normalised(graph, &h, 5, None, Activation::Silu)?;
    convolved(graph, &h, (3, 3), None, SAME)
}

/// Operations on whatever they may be given: the images themselves, odd channels, values used twice, sums of one value.
fn odd(graph: &mut Graph) -> Result<Value> {
    let [channels, height, width] = IMAGES;
    let x = graph.images(channels, height, width);
    let vectors = graph.vectors(TOLD);
    let h = convolved(graph, &x, (3, 3), None, SAME)?;
    let h = graph.add(&x, &h)?;
    let h = graph.divide(&h, 2.0)?;
    let normed = normalised(graph, &x, 3, None, Activation::Silu)?;
    let activated = graph.silu(&x);
    let joined = graph.concat_channels(&h, &normed)?;
    let joined = graph.concat_channels(&joined, &activated)?;
    let h = convolved(graph, &joined, (6, 1), None, ALONE)?;
    let scale_shift = mapped(graph, &vectors, 12)?;
    let normed = normalised(graph, &h, 2, Some(&scale_shift), Activation::None)?;
    let query = mapped(graph, &normed, 6)?;
    let mixed = graph.attention(&query, &normed, &h, 2)?;
    let h = graph.add(&h, &mixed)?;
    let h = graph.add(&h, &h)?;
    let wide = Padding {
        top: 2,
        left: 1,
        bottom: 0,
        right: 1,
    };
    let h = convolved(graph, &h, (16, 3), None, Conv2d::new(1, wide))?;
    let dropped = graph.dropout(&h, 0);
    let dropped = convolved(graph, &dropped, (16, 3), None, SAME)?;
    let h = graph.concat_channels(&h, &dropped)?; // two parts of a convolution as they are
    let h = convolved(graph, &h, (7, 3), None, Conv2d::new(2, Padding::same(1)))?;
    let h = graph.silu(&h);
    let h = graph.upsample_nearest_2x(&h);
    convolved(graph, &h, (5, 3), None, SAME)
}

type Record = fn(&mut Graph) -> Result<Value>;

/// How a network is planned.
#[derive(Clone, Copy)]
struct How {
    precision: Precision,
    recompute: bool,
    rate: f64,
}

const PLAIN: How = How {
    precision: Precision::F32,
    recompute: false,
    rate: RATE,
};

fn recorded(record: Record, how: How) -> (Graph, Value) {
    let mut graph = Graph::new(BATCH, Vec::new(), how.rate);
    if how.recompute {
        graph.recompute();
    }
    let output = record(&mut graph).unwrap();
    (graph, output)
}

/// Numbers that a network is given.
struct Inputs {
    parameters: Vec<Vec<f32>>,
    images: Vec<f32>,
    vectors: Vec<f32>,
}

fn inputs(graph: &Graph) -> Inputs {
    let parameters = graph.parameters.iter().enumerate().map(|(seed, shape)| {
        let numbers = wave(shape.iter().product(), seed as u64);
        let inputs: usize = shape[1..].iter().product();
        let scale = (inputs as f32).sqrt();
        numbers.into_iter().map(|x| x / scale).collect()
    });
    Inputs {
        parameters: parameters.collect(),
        images: wave(BATCH * IMAGES.iter().product::<usize>(), 1001),
        vectors: wave(BATCH * TOLD, 1002),
    }
}

fn counters(place: usize) -> Vec<[u32; 3]> {
    (0..BATCH)
        .map(|image| [3, image as u32, place as u32])
        .collect()
}

fn draws(place: usize) -> Result<Draws> {
    Ok(Draws {
        key: KEY,
        counters: counters(place),
    })
}

/// The mask of a place as the processor has it, channel after channel, drawn by the card's kernel.
fn mask_of(host: &Host, place: usize, images: Images) -> Vec<u8> {
    let counters = host.upload(&draws(place).unwrap().words()).unwrap();
    let memory = host
        .allocate(Kind::F32, images.numbers().div_ceil(4))
        .unwrap();
    let (from, to) = (host.address(&counters), host.address(&memory));
    mask::draw(host, images, KEY, from, RATE, to).unwrap();
    let bytes: Vec<u8> = memory
        .read()
        .iter()
        .flat_map(|x| x.to_bits().to_le_bytes())
        .collect();
    let (pixels, channels) = (images.pixels(), images.channels);
    let mut plain = vec![0; images.numbers()];
    for (i, byte) in bytes.into_iter().take(images.numbers()).enumerate() {
        let (pixel, channel) = (i / channels, i % channels);
        plain[(pixel / pixels * channels + channel) * pixels + pixel % pixels] = byte;
    }
    plain
}

/// The output, and the gradients of all parameters from a fixed gradient of it, by the processor's plan.
fn expected(host: &Host, record: Record, how: How) -> (Vec<f32>, Vec<Vec<f32>>) {
    let (graph, output) = recorded(record, how);
    let given = inputs(&graph);
    let tensor = |numbers: &[f32], shape: &[usize]| {
        Tensor::from_slice(numbers, shape, &Device::Cpu).unwrap()
    };
    let shapes = graph.parameters.clone();
    let parameters: Vec<Tensor> = given
        .parameters
        .iter()
        .zip(&shapes)
        .map(|(numbers, shape)| tensor(numbers, shape))
        .collect();
    let [channels, height, width] = IMAGES;
    let images = tensor(&given.images, &[BATCH, channels, height, width]);
    let vectors = tensor(&given.vectors, &[BATCH, TOLD]);
    let masks: Vec<(usize, Images)> = graph
        .masks
        .iter()
        .map(|mask| (mask.place, mask.shape.of_kind(Kind::F32)))
        .collect();
    let mut draw = |place: usize, to: &mut [u8]| {
        let (_, images) = masks.iter().find(|(of, _)| *of == place).unwrap();
        to.copy_from_slice(&mask_of(host, place, *images));
        Ok(())
    };
    let mut network =
        Executor::with_precision(graph, &output, Use::Training, how.precision).unwrap();
    let y = network
        .forward(&parameters, &images, &vectors, &mut draw)
        .unwrap();
    let gradient = tensor(&wave(y.elem_count(), 1003), y.dims());
    let mut gradients = Gradients::zeros(&shapes);
    network
        .backward(&parameters, &images, &gradient, &mut gradients, false)
        .unwrap();
    let y = y.flatten_all().unwrap().to_vec1().unwrap();
    let gradients = (0..shapes.len()).map(|index| gradients.get(index).unwrap().into_owned());
    (y, gradients.collect())
}

/// What a pass of the card's plan leaves: the output, then the gradients.
fn ran(host: &Host, record: Record, how: How, passes: usize, accumulate: bool) -> Vec<Vec<f32>> {
    let (graph, output) = recorded(record, how);
    let given = inputs(&graph);
    let parameters: Vec<Memory> = given.parameters.iter().map(|it| host.floats(it)).collect();
    let at: Vec<Address> = parameters
        .iter()
        .map(|memory| host.address(memory))
        .collect();
    let (images, vectors) = (host.floats(&given.images), host.floats(&given.vectors));
    let mut plan: Plan<Memory, Vec<Call>> =
        Plan::new(graph, &output, Use::Training, how.precision).unwrap();
    let outputs = plan.output().numbers();
    let gradient = host.floats(&wave(outputs, 1003));
    let y = host.allocate(Kind::F32, outputs).unwrap();
    let gradients: Vec<Memory> = given
        .parameters
        .iter()
        .map(|it| host.allocate(Kind::F32, it.len()).unwrap())
        .collect();
    let to: Vec<Address> = gradients
        .iter()
        .map(|memory| host.address(memory))
        .collect();
    for pass in 0..passes {
        let from = [host.address(&images), host.address(&vectors)];
        plan.forward(host, &at, from, &mut draws, host.address(&y))
            .unwrap();
        let adds = accumulate && pass > 0;
        plan.backward(host, &at, host.address(&gradient), &to, adds)
            .unwrap();
    }
    [&y].into_iter()
        .chain(&gradients)
        .map(Memory::read)
        .collect()
}

/// Largest difference over the largest expected number (or over 1, if all are smaller).
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected
        .iter()
        .fold(1f64, |scale, &x| scale.max(f64::from(x).abs()));
    let apart = |(&a, &b): (&f32, &f32)| {
        let apart = (f64::from(a) - f64::from(b)).abs();
        if apart.is_finite() {
            apart / scale
        } else {
            f64::INFINITY
        }
    };
    found.iter().zip(expected).map(apart).fold(0.0, f64::max)
}

/// The root of the sum of squares.
fn length(of: &[f32]) -> f64 {
    of.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let apart = found.iter().zip(expected).map(|(a, b)| a - b);
    length(&apart.collect::<Vec<_>>())
}

fn bits(all: &[Vec<f32>]) -> Vec<Vec<u32>> {
    all.iter()
        .map(|one| one.iter().map(|x| x.to_bits()).collect())
        .collect()
}

const NETWORKS: [(&str, Record); 2] = [("unet", unet), ("odd", odd)];

/// In f32, for any order of threads, and with blocks that are computed again.
#[test]
fn a_network_computes_and_learns_as_on_the_processor() {
    for (name, record) in NETWORKS {
        let held = std::cell::OnceCell::new();
        let Some(found) = Host::both_ways(|host| {
            held.get_or_init(|| expected(host, record, PLAIN));
            Ok(ran(host, record, PLAIN, 1, false))
        }) else {
            return;
        };
        let (y, gradients) = held.into_inner().unwrap();
        let apart = difference(&found[0], &y);
        assert!(apart < 1e-5, "{name}: the output is {apart} apart");
        for (index, (found, expected)) in found[1..].iter().zip(&gradients).enumerate() {
            let apart = difference(found, expected);
            assert!(apart < 2e-5, "{name}: gradient {index} is {apart} apart");
        }
    }
}

/// A pass is carried out, then recorded and launched, then launched again: the same bits each time, and with blocks computed again.
#[test]
fn passes_that_were_recorded_are_what_they_were() {
    let Some(host) = Host::ahead() else { return };
    for (name, record) in NETWORKS {
        for precision in [Precision::F32, Precision::Bf16] {
            let how = How { precision, ..PLAIN };
            let once = bits(&ran(&host, record, how, 1, false));
            for passes in [2, 3] {
                let again = bits(&ran(&host, record, how, passes, false));
                assert!(once == again, "{name}, {precision:?}, pass {passes}");
            }
            let how = How {
                recompute: true,
                ..how
            };
            let computed_again = bits(&ran(&host, record, how, 1, false));
            assert!(once == computed_again, "{name}, {precision:?}, recomputed");
        }
    }
}

/// The first pass writes, four others add; those that add are recorded apart.
#[test]
fn gradients_of_more_passes_add_up() {
    let Some(host) = Host::ahead() else { return };
    let once = ran(&host, unet, PLAIN, 1, false);
    let five = ran(&host, unet, PLAIN, 5, true);
    assert_eq!(bits(&once[..1]), bits(&five[..1]));
    for (index, (one, five)) in once[1..].iter().zip(&five[1..]).enumerate() {
        let expected: Vec<f32> = one.iter().map(|x| 5.0 * x).collect();
        let apart = difference(five, &expected);
        assert!(apart < 1e-6, "gradient {index} is {apart} apart");
    }
}

/// bf16 is as far from f32 as the processor's bf16 is: each rounds what lies between operations to eight bits, at other places.
/// What is little beside the whole gradient may be off by a ten-thousandth of that: the gradient of attention's scores is a
/// difference of numbers that are nearly equal, of which one comes from a rounded result (and a key's bias has none at all).
#[test]
fn halves_are_as_exact_as_on_the_processor() {
    let Some(host) = Host::ahead() else { return };
    for (name, record) in NETWORKS {
        let how = How {
            precision: Precision::Bf16,
            ..PLAIN
        };
        let (y, exact) = expected(&host, record, PLAIN);
        let (y_of_processor, of_processor) = expected(&host, record, how);
        let found = ran(&host, record, how, 1, false);
        let (apart, usual) = (distance(&found[0], &y), distance(&y_of_processor, &y));
        assert!(
            apart < 2.0 * usual + 4e-3 * length(&y),
            "{name}: the output is {apart} apart, the processor's {usual}"
        );
        let all = length(&exact.concat());
        for (index, exact) in exact.iter().enumerate() {
            let usual = distance(&of_processor[index], exact);
            let apart = distance(&found[index + 1], exact);
            let allowed = (2.0 * usual + 4e-3 * length(exact)).max(1e-4 * all);
            assert!(
                apart < allowed,
                "{name}: gradient {index} is {apart} apart, the processor's {usual}"
            );
        }
    }
}

/// Weights are laid out once, until they are said to have changed.
#[test]
fn an_evaluation_lays_the_weights_out_when_told() {
    let Some(host) = Host::ahead() else { return };
    let how = How { rate: 0.0, ..PLAIN };
    let (graph, output) = recorded(unet, how);
    let given = inputs(&graph);
    let mut parameters: Vec<Memory> = given.parameters.iter().map(|it| host.floats(it)).collect();
    let at: Vec<Address> = parameters
        .iter()
        .map(|memory| host.address(memory))
        .collect();
    let (images, vectors) = (host.floats(&given.images), host.floats(&given.vectors));
    let mut plan: Plan<Memory, Vec<Call>> =
        Plan::new(graph, &output, Use::Inference, how.precision).unwrap();
    let y = host.allocate(Kind::F32, plan.output().numbers()).unwrap();
    let evaluate = |plan: &mut Plan<Memory, Vec<Call>>| {
        let from = [host.address(&images), host.address(&vectors)];
        plan.forward(&host, &at, from, &mut draws, host.address(&y))
            .unwrap();
        y.read()
    };
    let first = evaluate(&mut plan);
    let last_weight = given.parameters.len() - 2;
    parameters[last_weight].fill(0.0);
    assert_eq!(evaluate(&mut plan), first, "the weights were read anew");
    plan.refresh();
    let bias = &given.parameters[last_weight + 1];
    let pixels = first.len() / BATCH / bias.len();
    for (i, y) in evaluate(&mut plan).iter().enumerate() {
        assert_eq!(
            *y,
            bias[i / pixels % bias.len()],
            "a convolution by zeros is its bias"
        );
    }
    let error = plan.backward(&host, &at, host.address(&y), &[], false);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("planned for inference"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(host) = Host::ahead() else { return };
    let (graph, output) = recorded(unet, PLAIN);
    let given = inputs(&graph);
    let parameters: Vec<Memory> = given.parameters.iter().map(|it| host.floats(it)).collect();
    let at: Vec<Address> = parameters
        .iter()
        .map(|memory| host.address(memory))
        .collect();
    let mut plan: Plan<Memory, Vec<Call>> =
        Plan::new(graph, &output, Use::Training, PLAIN.precision).unwrap();
    let early = plan
        .backward(&host, &at, at[0], &at, false)
        .unwrap_err()
        .to_string();
    assert!(early.contains("no forward pass before"), "{early}");
    let mut short = |_| {
        Ok(Draws {
            key: KEY,
            counters: vec![[0; 3]],
        })
    };
    let (images, vectors) = (host.floats(&given.images), host.floats(&given.vectors));
    let from = [host.address(&images), host.address(&vectors)];
    let error = plan
        .forward(&host, &at, from, &mut short, at[0])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("1 images are drawn for, expected 2"),
        "{error}"
    );
}

/// Found when the network is planned, not at its first pass.
#[test]
fn heads_that_are_too_wide_are_refused() {
    let wide = |graph: &mut Graph| {
        let x = graph.images(3, 2, 2);
        let h = convolved(graph, &x, (1024, 1), None, ALONE)?;
        let h = mixed(graph, &h, 1)?;
        convolved(graph, &h, (3, 1), None, ALONE)
    };
    let (graph, output) = recorded(wide, PLAIN);
    let plan = Plan::<Memory, Vec<Call>>::new(graph, &output, Use::Inference, Precision::F32);
    let error = plan.unwrap_err().to_string();
    assert!(error.contains("heads of 1024 channels"), "{error}");
}

/// Found when the network is planned too.
#[test]
fn more_numbers_than_can_be_counted_are_refused() {
    let mut graph = Graph::new(1 << 22, Vec::new(), 0.0);
    let output = unet(&mut graph).unwrap();
    let plan = Plan::<Memory, Vec<Call>>::new(graph, &output, Use::Inference, Precision::F32);
    let error = plan.unwrap_err().to_string();
    assert!(
        error.contains("expected less than 2^31: smaller batches"),
        "{error}"
    );
}

/// What is needed is what is allocated; computing blocks again takes less, bf16 too.
#[test]
fn memory_is_known_before_it_is_taken() {
    let needed = |how: How| {
        let (graph, output) = recorded(unet, how);
        let plan: Plan<Memory, Vec<Call>> =
            Plan::new(graph, &output, Use::Training, how.precision).unwrap();
        plan.memory()
    };
    let plain = needed(PLAIN);
    let again = needed(How {
        recompute: true,
        ..PLAIN
    });
    let halves = needed(How {
        precision: Precision::Bf16,
        ..PLAIN
    });
    assert!(again.activations < plain.activations, "{plain:?} {again:?}");
    assert!(
        halves.activations < plain.activations,
        "{plain:?} {halves:?}"
    );
    let (graph, _) = recorded(unet, PLAIN);
    let numbers: usize = graph
        .parameters
        .iter()
        .map(|shape| shape.iter().product::<usize>())
        .sum();
    assert_eq!(plain.gradients, 4 * numbers as u64);
}
