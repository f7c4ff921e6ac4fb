//! A plan of every operation on everything it may be given, against the same operations on candle's graph; on the CPU, whatever
//! the device of the tests.

use candle_core::{DType, Result, Tensor, Var};
use ddpm_kernels::{
    Activation, AdamW, Conv2d, Executor, Gradients, Graph, Padding, Precision, Use, Value, optimise,
};

use crate::support::{assert_close, numbers};

const SAME: Conv2d = Conv2d::new(1, Padding::same(1));

fn shapes() -> Vec<Vec<usize>> {
    let shapes: [&[usize]; 14] = [
        &[3, 3, 3, 3],
        &[3], // 0: a convolution that keeps the images' channels
        &[3],
        &[3], // 2: a normalisation of the images themselves
        &[6, 9, 1, 1],
        &[6], // 4: of three times three channels
        &[12, 4],
        &[12], // 6: scale and shift from the vectors
        &[6],
        &[6], // 8
        &[6, 6],
        &[6], // 10: over the pixels
        &[5, 6, 3, 3],
        &[5], // 12
    ];
    shapes.iter().map(|shape| shape.to_vec()).collect()
}

/// The images are added, normalised, activated, joined and convolved as they are; sums are divided and used twice. A block begins
/// before each operation whose bit in `blocks` is set.
fn planned(graph: &mut Graph, blocks: usize) -> Result<Value> {
    let begin = |operation: usize, graph: &mut Graph| {
        if blocks >> operation & 1 == 1 {
            graph.begin_block();
        }
    };
    let x = graph.images(3, 4, 6);
    let vectors = graph.vectors(4);
    begin(0, graph);
    let h = graph.conv2d(&x, 0, 1, None, SAME)?;
    begin(1, graph);
    let h = graph.add(&x, &h)?;
    begin(2, graph);
    let h = graph.divide(&h, 2.0)?;
    begin(3, graph);
    let normed = graph.group_norm(&x, (3, 1e-5), (2, 3), None, Activation::Silu)?;
    begin(4, graph);
    let activated = graph.silu(&x);
    begin(5, graph);
    let joined = graph.concat_channels(&h, &normed)?;
    begin(6, graph);
    let joined = graph.concat_channels(&joined, &activated)?;
    begin(7, graph);
    let h = graph.conv2d(&joined, 4, 5, None, Conv2d::new(1, Padding::ZERO))?;
    begin(8, graph);
    let scale_shift = graph.linear(&vectors, 6, 7)?;
    begin(9, graph);
    let normed = graph.group_norm(&h, (2, 1e-5), (8, 9), Some(&scale_shift), Activation::None)?;
    begin(10, graph);
    let query = graph.linear(&normed, 10, 11)?;
    begin(11, graph);
    let mixed = graph.attention(&query, &normed, &h, 2)?;
    begin(12, graph);
    let h = graph.add(&h, &mixed)?;
    begin(13, graph);
    let h = graph.add(&h, &h)?;
    begin(14, graph);
    let h = graph.upsample_nearest_2x(&h);
    begin(15, graph);
    graph.conv2d(&h, 12, 13, None, SAME)
}

fn by_graph(p: &[Tensor], x: &Tensor, vectors: &Tensor) -> Result<Tensor> {
    use ddpm_kernels::{
        add, attention, concat_channels, conv2d, group_norm, linear, silu, upsample_nearest_2x,
    };
    let h = (add(x, &conv2d(x, &p[0], Some(&p[1]), SAME)?)? / 2.0)?;
    let normed = group_norm(x, 3, &p[2], &p[3], 1e-5, Activation::Silu)?;
    let joined = concat_channels(&concat_channels(&h, &normed)?, &silu(x)?)?;
    let h = conv2d(&joined, &p[4], Some(&p[5]), Conv2d::new(1, Padding::ZERO))?;
    let scale_shift = linear(vectors, &p[6], Some(&p[7]))?;
    let factor = (scale_shift.narrow(1, 0, 6)? + 1.0)?;
    let gamma = factor.broadcast_mul(&p[8])?;
    let beta = (factor.broadcast_mul(&p[9])? + scale_shift.narrow(1, 6, 6)?)?;
    let normed = group_norm(&h, 2, &gamma, &beta, 1e-5, Activation::None)?;
    let (batch, channels, height, width) = h.dims4()?;
    let rows = |x: &Tensor| x.flatten_from(2)?.transpose(1, 2)?.contiguous();
    let heads = |x: &Tensor| x.reshape((batch, (), 2, 3))?.transpose(1, 2)?.contiguous();
    let query = linear(&rows(&normed)?, &p[10], Some(&p[11]))?;
    let (query, key, value) = (heads(&query)?, heads(&rows(&normed)?)?, heads(&rows(&h)?)?);
    let mixed = attention(&query, &key, &value, 1.0 / 3f64.sqrt())?;
    let mixed = mixed
        .transpose(1, 2)?
        .reshape((batch, (), channels))?
        .transpose(1, 2)?;
    let h = add(
        &h,
        &mixed
            .contiguous()?
            .reshape((batch, channels, height, width))?,
    )?;
    let h = add(&h, &h)?;
    conv2d(&upsample_nearest_2x(&h)?, &p[12], Some(&p[13]), SAME)
}

#[test]
fn every_operation_reads_whatever_it_is_given() {
    let (x, vectors) = (numbers((2, 3, 4, 6), 50), numbers((2, 4), 51));
    let parameters: Vec<Var> = shapes()
        .iter()
        .enumerate()
        .map(|(seed, shape)| Var::from_tensor(&numbers(shape.as_slice(), seed as u64)).unwrap())
        .collect();
    let tensors: Vec<Tensor> = parameters.iter().map(|p| p.as_tensor().clone()).collect();
    let expected = by_graph(&tensors, &x, &vectors).unwrap();
    let weight = numbers(expected.shape(), 99);
    let store = (&expected * &weight)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();

    let mut graph = Graph::new(2, shapes(), 0.0);
    let output = planned(&mut graph, 0).unwrap();
    let mut network = Executor::new(graph.clone(), &output, Use::Training).unwrap();
    let mut gradients = Gradients::zeros(&shapes());
    let found = network
        .forward(&tensors, &x, &vectors, &mut |_, _| Ok(()))
        .unwrap();
    network
        .backward(&tensors, &x, &weight, &mut gradients, false)
        .unwrap();
    assert_close("the output", &found, &expected.detach(), 1e-5);
    for (index, parameter) in parameters.iter().enumerate() {
        let found = gradients.tensor(index).unwrap();
        assert_close(
            &format!("gradient {index}"),
            &found,
            store.get(parameter).unwrap(),
            2e-5,
        );
    }
    let mut evaluated = Executor::new(graph, &output, Use::Inference).unwrap();
    let evaluated = evaluated
        .forward(&tensors, &x, &vectors, &mut |_, _| Ok(()))
        .unwrap();
    assert_close("the evaluation", &evaluated, &expected.detach(), 1e-5);
}

/// Wherever blocks begin and end, what is computed again is what it was: gradients to the bit.
#[test]
fn blocks_of_any_size_computed_again_give_the_same_bits() {
    const OPERATIONS: usize = 16;
    let (x, vectors) = (numbers((2, 3, 4, 6), 50), numbers((2, 4), 51));
    let parameters: Vec<Tensor> = shapes()
        .iter()
        .enumerate()
        .map(|(seed, shape)| numbers(shape.as_slice(), seed as u64))
        .collect();
    let run = |blocks: Option<usize>, precision: Precision| {
        let mut graph = Graph::new(2, shapes(), 0.0);
        if blocks.is_some() {
            graph.recompute();
        }
        let output = planned(&mut graph, blocks.unwrap_or(0)).unwrap();
        let mut network =
            Executor::with_precision(graph, &output, Use::Training, precision).unwrap();
        let mut gradients = Gradients::zeros(&shapes());
        let found = network
            .forward(&parameters, &x, &vectors, &mut |_, _| Ok(()))
            .unwrap();
        let weight = numbers(found.shape(), 99);
        network
            .backward(&parameters, &x, &weight, &mut gradients, false)
            .unwrap();
        let bits = |index| {
            let gradient = gradients.get(index).unwrap();
            gradient.iter().map(|g| g.to_bits()).collect()
        };
        (0..gradients.len()).map(bits).collect::<Vec<Vec<u32>>>()
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let expected = run(None, precision);
        for blocks in (0..1 << OPERATIONS)
            .step_by(61)
            .chain([(1 << OPERATIONS) - 1])
        {
            let found = run(Some(blocks), precision);
            assert!(found == expected, "{blocks:b} in {precision:?}");
        }
    }
}

/// Rounded to the nearest of eight bits, to even between two.
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// The gradients of weights are the others' rounded once, pass after pass in the same memory; those of
/// biases and norms are the others' bits. An optimiser moves along
/// them as along tensors of the same numbers.
#[test]
fn gradients_of_one_pass_are_rounded_once_and_take_no_memory_of_their_own() {
    let parameters: Vec<Tensor> = shapes()
        .iter()
        .enumerate()
        .map(|(seed, shape)| numbers(shape.as_slice(), seed as u64))
        .collect();
    let network = |used| {
        let mut graph = Graph::new(2, shapes(), 0.0);
        let output = planned(&mut graph, 0).unwrap();
        let needed = Executor::memory(graph.clone(), &output, used, Precision::Bf16).unwrap();
        let network = Executor::with_precision(graph, &output, used, Precision::Bf16).unwrap();
        (network, needed)
    };
    let (mut adding, apart) = network(Use::Training);
    let (mut keeping, within) = network(Use::TrainingInOnePass);
    let mut expected = Gradients::zeros(&shapes());
    let mut found = Gradients::of_one_pass(&shapes());
    assert!(found.get(0).is_none() && found.are_of_one_pass());
    for pass in 0..3 {
        let (x, vectors) = (numbers((2, 3, 4, 6), 50 + pass), numbers((2, 4), 60 + pass));
        let weight = numbers((2, 5, 8, 12), 99 + pass);
        for (network, gradients) in [(&mut adding, &mut expected), (&mut keeping, &mut found)] {
            network.take_back(gradients);
            network
                .forward(&parameters, &x, &vectors, &mut |_, _| Ok(()))
                .unwrap();
            network
                .backward(&parameters, &x, &weight, gradients, false)
                .unwrap();
        }
        let mut all = 0.0;
        for (index, shape) in shapes().iter().enumerate() {
            let (found, expected) = (found.get(index).unwrap(), expected.get(index).unwrap());
            assert_eq!(found.len(), shape.iter().product::<usize>());
            let kept = shape.len() > 1;
            let expected = expected.iter().map(|&g| if kept { rounded(g) } else { g });
            assert!(
                expected.eq(found.iter().copied()),
                "gradient {index}, pass {pass}"
            );
            all += found.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
        }
        assert!((found.sum_of_squares() / all - 1.0).abs() < 1e-12);
    }
    assert_eq!(
        apart.gradients,
        4 * shapes()
            .iter()
            .map(|s| s.iter().product::<usize>() as u64)
            .sum::<u64>()
    );
    assert!(
        within.gradients < apart.gradients / 2,
        "{within:?} {apart:?}"
    );

    let adamw = AdamW {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 1,
    };
    let copies = |tensors: &[Tensor]| {
        tensors
            .iter()
            .map(|t| t.copy().unwrap())
            .collect::<Vec<_>>()
    };
    let zeros: Vec<Tensor> = parameters.iter().map(|p| p.zeros_like().unwrap()).collect();
    let step = |gradients: &Gradients| {
        let (p, m, v) = (copies(&parameters), copies(&zeros), copies(&zeros));
        optimise((&p, &m, &v), gradients, 0.5, &adamw, &[]).unwrap();
        let all = [p, m, v].concat().into_iter();
        all.map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
            .collect::<Vec<_>>()
    };
    let mut as_tensors = Gradients::zeros(&shapes());
    for index in 0..found.len() {
        let gradient = found.tensor(index).unwrap();
        as_tensors.set(index, &gradient, false).unwrap();
    }
    assert!(step(&found) == step(&as_tensors));
}

#[test]
fn gradients_of_one_pass_are_neither_added_up_nor_mistaken() {
    let shapes = [vec![3, 3, 3, 3], vec![3]];
    let tensors = [numbers((3, 3, 3, 3), 1), numbers(3, 2)];
    let (x, vectors) = (numbers((1, 3, 4, 4), 3), numbers((1, 1), 1));
    let network = |used| {
        let mut graph = Graph::new(1, shapes.to_vec(), 0.0);
        let x = graph.images(3, 4, 4);
        let y = graph.conv2d(&x, 0, 1, None, SAME).unwrap();
        Executor::with_precision(graph, &y, used, Precision::Bf16).unwrap()
    };
    let mut keeping = network(Use::TrainingInOnePass);
    let forward = |network: &mut Executor| {
        network
            .forward(&tensors, &x, &vectors, &mut |_, _| Ok(()))
            .unwrap()
    };
    let dy = forward(&mut keeping);
    let mut refused = |gradients: &mut Gradients, accumulate, why: &str| {
        let error = keeping.backward(&tensors, &x, &dy, gradients, accumulate);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let mut others = Gradients::zeros(&shapes);
    refused(&mut others, false, "planned for those of one pass");
    let mut gradients = Gradients::of_one_pass(&shapes);
    refused(&mut gradients, true, "cannot be added to");
    keeping
        .backward(&tensors, &x, &dy, &mut gradients, false)
        .unwrap();
    let again = keeping.backward(&tensors, &x, &dy, &mut gradients, false);
    let again = again.unwrap_err().to_string();
    assert!(again.contains("no forward pass before"), "{again}");
    let first = gradients.get(0).unwrap().into_owned();

    // Another network's pass lets go of the memory; the first one finds itself new.
    let mut other = network(Use::TrainingInOnePass);
    other.take_back(&mut gradients);
    assert!(gradients.get(0).is_none() && gradients.get(1).is_some());
    for network in [&mut other, &mut keeping] {
        network.take_back(&mut gradients);
        let dy = forward(network);
        network
            .backward(&tensors, &x, &dy, &mut gradients, false)
            .unwrap();
        assert_eq!(*gradients.get(0).unwrap(), *first);
    }

    // Gradients that were computed elsewhere have room as well, but are not added either.
    gradients.set(0, &tensors[0], false).unwrap();
    assert_eq!(gradients.tensor(0).unwrap().dims(), [3, 3, 3, 3]);
    let error = gradients.set(0, &tensors[0], true).unwrap_err().to_string();
    assert!(error.contains("cannot be added to"), "{error}");

    // A weight of two convolutions gets its gradient from both: it is added up apart.
    let mut graph = Graph::new(1, shapes.to_vec(), 0.0);
    let x = graph.images(3, 4, 4);
    let y = graph.conv2d(&x, 0, 1, None, SAME).unwrap();
    let y = graph.conv2d(&y, 0, 1, None, SAME).unwrap();
    let needed = Executor::memory(graph, &y, Use::TrainingInOnePass, Precision::Bf16).unwrap();
    assert_eq!(needed.gradients, 4 * (81 + 3));
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = |made: Result<Executor>| made.unwrap_err().to_string();
    let mut graph = Graph::new(1, vec![vec![3, 3, 3, 3], vec![3], vec![4, 3]], 0.0);
    let x = graph.images(3, 4, 4);
    let wrong = graph.conv2d(&x, 2, 1, None, SAME).unwrap_err().to_string();
    assert!(
        wrong.contains("weight has shape [4, 3], expected four dimensions"),
        "{wrong}"
    );
    let y = graph.conv2d(&x, 0, 1, None, SAME).unwrap();
    let unused = error(Executor::new(graph.clone(), &y, Use::Training));
    assert!(unused.contains("parameter 2 has no influence"), "{unused}");
    let last = graph.conv2d(&y, 0, 1, None, SAME).unwrap();
    let sum = graph.add(&y, &last).unwrap();
    let used_up = graph.silu(&last);
    let twice = graph.add(&used_up, &x).unwrap_err().to_string();
    assert!(twice.contains("used again"), "{twice}");
    let no_convolution = error(Executor::new(graph, &sum, Use::Inference));
    assert!(
        no_convolution.contains("must be a convolution"),
        "{no_convolution}"
    );

    let mut graph = Graph::new(1, vec![vec![3, 3, 3, 3], vec![3]], 0.0);
    let x = graph.images(3, 4, 4);
    let y = graph.conv2d(&x, 0, 1, None, SAME).unwrap();
    let mut network = Executor::new(graph, &y, Use::Inference).unwrap();
    let tensors = [numbers((3, 3, 3, 3), 1), numbers(3, 2)];
    let small = Tensor::zeros((1, 3, 4, 3), DType::F32, &candle_core::Device::Cpu).unwrap();
    let vectors = numbers((1, 1), 1);
    let shape = network
        .forward(&tensors, &small, &vectors, &mut |_, _| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(
        shape.contains("images are [1, 3, 4, 3], expected [1, 3, 4, 4]"),
        "{shape}"
    );
    let mut gradients = Gradients::zeros(&[vec![3, 3, 3, 3], vec![3]]);
    let backward = network
        .backward(&tensors, &small, &small, &mut gradients, false)
        .unwrap_err()
        .to_string();
    assert!(backward.contains("planned for inference"), "{backward}");
}
