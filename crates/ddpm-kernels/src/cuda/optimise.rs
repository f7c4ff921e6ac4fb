//! A step of the optimiser over all parameters on a card: three launches, nothing read back.

use candle_core::Result;
#[cfg(feature = "cuda")]
use candle_core::Tensor;

#[cfg(feature = "cuda")]
use super::card::Card;
use super::launch::{Address, BLOCK, Kind, Launch, Machine, WARP, arguments, whole};
use crate::training::Numbers;
#[cfg(feature = "cuda")]
use crate::{AdamW, Averaged};

/// Elements of a block, as in optimise.cu.
const CHUNK: usize = 16384;
/// Threads of the one block that adds up the parts of the norm.
const NORM_BLOCK: u32 = 1024;

/// Where one parameter, its moments, gradient and averages lie, and how many elements each has.
pub(crate) struct Parameter {
    pub(crate) p: Address,
    pub(crate) m: Address,
    pub(crate) v: Address,
    pub(crate) g: Address,
    pub(crate) averages: Vec<Address>,
    pub(crate) elements: usize,
}

/// Moves all parameters, moments and averages in place; gives the norm of the gradients and what they were multiplied by.
pub(crate) fn optimise<M: Machine>(
    machine: &M,
    parameters: &[Parameter],
    max_norm: f64,
    numbers: &Numbers,
    decays: &[f64],
) -> Result<M::Memory> {
    let chunks: Vec<u64> = chunks(parameters);
    let table = machine.upload(&table(parameters, &chunks))?;
    let shares: Vec<u64> = decays
        .iter()
        .map(|&decay| pair(decay as f32, (1.0 - decay) as f32))
        .collect();
    let shares = machine.upload(if shares.is_empty() { &[0] } else { &shares })?;
    let (table, shares_at) = (machine.address(&table), machine.address(&shares));
    let blocks = whole("chunks of parameters", chunks.len())?;
    let parts = machine.allocate(Kind::F32, 2 * chunks.len())?;
    let told = machine.allocate(Kind::F32, 2)?;
    let (parts_at, told_at) = (machine.address(&parts), machine.address(&told));
    let (count, averages) = (whole("parameters", parameters.len())?, decays.len() as u32);
    let a_block_a_chunk = Launch {
        grid: [blocks, 1],
        block: BLOCK,
        shared: 8 * BLOCK / WARP,
    };
    machine.launch(
        "squares_of_chunks",
        a_block_a_chunk,
        arguments![table, parts_at, count, averages],
    )?;
    let one_block = Launch {
        grid: [1, 1],
        block: NORM_BLOCK,
        shared: 8 * NORM_BLOCK / WARP,
    };
    machine.launch(
        "norm_of_parts",
        one_block,
        arguments![parts_at, told_at, blocks, max_norm],
    )?;
    machine.launch(
        "adamw_of_chunks",
        Launch {
            shared: 0,
            ..a_block_a_chunk
        },
        arguments![
            table,
            told_at,
            shares_at,
            count,
            averages,
            numbers.shrink,
            numbers.step_size,
            numbers.root_correction,
            numbers.eps,
            numbers.beta2,
            numbers.one_less_beta1,
            numbers.one_less_beta2,
        ],
    )?;
    Ok(told)
}

/// The parameter and the chunk of every block.
fn chunks(parameters: &[Parameter]) -> Vec<u64> {
    let of = |(i, parameter): (usize, &Parameter)| {
        (0..parameter.elements.div_ceil(CHUNK)).map(move |chunk| (i as u64) << 32 | chunk as u64)
    };
    parameters.iter().enumerate().flat_map(of).collect()
}

/// The rows of the parameters, then the blocks.
fn table(parameters: &[Parameter], chunks: &[u64]) -> Vec<u64> {
    let row = |parameter: &Parameter| {
        let addresses = [parameter.p, parameter.m, parameter.v, parameter.g];
        let averages = parameter.averages.iter().copied();
        let addresses: Vec<Address> = addresses.into_iter().chain(averages).collect();
        let elements = parameter.elements as u64;
        addresses
            .into_iter()
            .map(|address| address.0)
            .chain([elements])
    };
    parameters
        .iter()
        .flat_map(row)
        .chain(chunks.iter().copied())
        .collect()
}

/// Two floats in a word.
fn pair(first: f32, second: f32) -> u64 {
    u64::from(first.to_bits()) | u64::from(second.to_bits()) << 32
}

/// The same of tensors that have been checked; gives f32 `[2]` on the card.
#[cfg(feature = "cuda")]
pub(crate) fn on_card(
    (parameters, m, v): (&[Tensor], &[Tensor], &[Tensor]),
    gradients: &[Tensor],
    max_norm: f64,
    adamw: &AdamW,
    averages: &[Averaged<'_>],
) -> Result<Tensor> {
    let Some(first) = parameters.first() else {
        candle_core::bail!("optimise: there are no parameters");
    };
    let card = Card::of(first.device().as_cuda_device()?)?;
    let place = |name, tensor| card.place("optimise", name, tensor);
    let rows = (0..parameters.len()).map(|i| {
        Ok(Parameter {
            p: place("p", &parameters[i])?,
            m: place("m", &m[i])?,
            v: place("v", &v[i])?,
            g: place("gradient", &gradients[i])?,
            averages: averages
                .iter()
                .map(|average| place("ema", &average.tensors[i]))
                .collect::<Result<_>>()?,
            elements: parameters[i].elem_count(),
        })
    });
    let rows: Vec<Parameter> = rows.collect::<Result<_>>()?;
    let decays: Vec<f64> = averages.iter().map(|average| average.decay).collect();
    let told = optimise(&card, &rows, max_norm, &Numbers::of(adamw), &decays)?;
    Ok(card.tensor(told, 2))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    #[cfg(not(feature = "cuda"))]
    use candle_core::Tensor;

    use super::*;
    use crate::cuda::host::{Host, Memory};
    use crate::cuda::oracle::{assert_near, wave};
    #[cfg(not(feature = "cuda"))]
    use crate::{AdamW, Averaged};

    const ADAMW: AdamW = AdamW {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 3,
    };
    const DECAYS: [f64; 2] = [0.9, 0.3]; // one for either form
    /// One is two chunks and a part, one just one chunk.
    const SIZES: [usize; 5] = [1, 40_000, 77, 16384, 1000];

    /// p, m, v (positive), g and the averages of a parameter.
    fn state(elements: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut all: Vec<Vec<f32>> = (0..6).map(|i| wave(elements, 10 * seed + i)).collect();
        all[2].iter_mut().for_each(|v| *v *= *v);
        all
    }

    /// After two steps, p, m, v and averages of every parameter, and what was told last.
    fn on_host(states: &[Vec<Vec<f32>>], max_norm: f64, averages: usize) -> Option<Vec<Vec<f32>>> {
        Host::both_ways(|host| {
            let memories: Vec<Vec<Memory>> = states
                .iter()
                .map(|s| s.iter().map(|x| host.floats(x)).collect())
                .collect();
            let at = |memory: &Memory| host.address(memory);
            let parameters: Vec<Parameter> = memories
                .iter()
                .zip(states)
                .map(|(of, state)| Parameter {
                    p: at(&of[0]),
                    m: at(&of[1]),
                    v: at(&of[2]),
                    g: at(&of[3]),
                    averages: of[4..4 + averages].iter().map(at).collect(),
                    elements: state[0].len(),
                })
                .collect();
            let decays = &DECAYS[..averages];
            optimise(host, &parameters, max_norm, &Numbers::of(&ADAMW), decays)?;
            let told = optimise(host, &parameters, max_norm, &Numbers::of(&ADAMW), decays)?;
            let mut all: Vec<Vec<f32>> = memories.iter().flatten().map(Memory::read).collect();
            all.push(told.read());
            Ok(all)
        })
    }

    /// The same by the CPU's operation.
    fn on_cpu(states: &[Vec<Vec<f32>>], max_norm: f64, averages: usize) -> Vec<Vec<f64>> {
        let all: Vec<Vec<Tensor>> = (0..6)
            .map(|i| {
                states
                    .iter()
                    .map(|s| Tensor::new(s[i].as_slice(), &Device::Cpu).unwrap())
                    .collect()
            })
            .collect();
        let averaged: Vec<Averaged<'_>> = (0..averages)
            .map(|i| Averaged {
                decay: DECAYS[i],
                tensors: &all[4 + i],
            })
            .collect();
        let step = || {
            crate::optimise_tensors(
                (&all[0], &all[1], &all[2]),
                &all[3],
                max_norm,
                &ADAMW,
                &averaged,
            )
        };
        step().unwrap();
        let told = step().unwrap();
        let wide = |x: &Tensor| {
            x.to_vec1::<f32>()
                .unwrap()
                .into_iter()
                .map(f64::from)
                .collect()
        };
        let by_parameter = (0..states.len()).flat_map(|p| all.iter().map(move |of| &of[p]));
        by_parameter.chain([&told]).map(wide).collect()
    }

    #[test]
    fn two_steps_are_those_of_the_cpu() {
        let states: Vec<Vec<Vec<f32>>> = SIZES
            .iter()
            .zip(0..)
            .map(|(&n, seed)| state(n, seed))
            .collect();
        for (max_norm, averages) in [(0.0, 0), (1e6, 1), (0.7, 2)] {
            let Some(ran) = on_host(&states, max_norm, averages) else {
                return;
            };
            let expected = on_cpu(&states, max_norm, averages);
            for (i, (ran, expected)) in ran.iter().zip(&expected).enumerate() {
                assert_near(&format!("clip {max_norm}, part {i}"), ran, expected, 2e-7);
            }
        }
    }

    /// So small that the 1e-6 of the factor's divisor is half of it.
    #[test]
    fn small_gradients_are_clipped_by_torchs_formula() {
        let mut states: Vec<Vec<Vec<f32>>> = vec![state(1000, 1), state(77, 2)];
        for state in &mut states {
            state[3].iter_mut().for_each(|g| *g *= 5e-8);
        }
        let Some(ran) = on_host(&states, 1e-7, 1) else {
            return;
        };
        let expected = on_cpu(&states, 1e-7, 1);
        let (ran, expected) = (&ran[ran.len() - 1], &expected[expected.len() - 1]);
        for (ran, expected) in ran.iter().zip(expected) {
            let error = (f64::from(*ran) - expected).abs();
            assert!(error <= 1e-6 * expected, "{ran}, expected {expected}");
        }
    }

    /// An average that keeps nothing of itself is the parameter, to the bit.
    #[test]
    fn an_average_that_keeps_nothing_is_the_parameter() {
        let state = state(1000, 1);
        let ran = Host::both_ways(|host| {
            let memories: Vec<Memory> = state.iter().map(|x| host.floats(x)).collect();
            let at = |i: usize| host.address(&memories[i]);
            let parameter = Parameter {
                p: at(0),
                m: at(1),
                v: at(2),
                g: at(3),
                averages: vec![at(4)],
                elements: 1000,
            };
            optimise(host, &[parameter], 0.0, &Numbers::of(&ADAMW), &[0.0])?;
            Ok(vec![memories[0].read(), memories[4].read()])
        });
        let Some(ran) = ran else { return };
        assert_eq!(ran[0], ran[1]);
        assert_ne!(ran[0], state[0]);
    }

    #[test]
    fn a_norm_that_is_not_finite_changes_nothing() {
        let mut states: Vec<Vec<Vec<f32>>> = SIZES
            .iter()
            .zip(0..)
            .map(|(&n, seed)| state(n, seed))
            .collect();
        states[1][3][20_000] = f32::NAN;
        let Some(ran) = on_host(&states, 1.0, 2) else {
            return;
        };
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        for (now, before) in ran.iter().zip(states.iter().flatten()) {
            assert_eq!(bits(now), bits(before));
        }
        assert!(ran.last().is_some_and(|told| told[0].is_nan()));
    }
}
