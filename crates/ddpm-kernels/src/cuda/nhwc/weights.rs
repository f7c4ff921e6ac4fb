//! Weights as convolutions of images pixel after pixel read them, and their gradients back.

use candle_core::{Result, bail};

use super::Sink;
use crate::cuda::launch::{
    Address, Argument, BLOCK, Divisor, Kind, Launch, Machine, arguments, kernel, whole,
};

/// Numbers of a piece, which is what a block works on, at most.
const PIECE: usize = 2048;

/// A weight f32 `[outputs, inputs, taps]` (taps = rows times columns of the kernel) and its place as `kind`
/// `[outputs, taps, inputs]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    pub(crate) from: Address,
    pub(crate) to: Address,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) taps: usize,
}

/// The words that [`lay_out`] reads; they are uploaded once ([`Machine::upload`]), by the caller.
pub(crate) fn table(weights: &[Weight]) -> Result<Vec<u64>> {
    let mut rows = Vec::new();
    let mut pieces = Vec::new();
    for (number, weight) in weights.iter().enumerate() {
        let number = u64::from(whole("weights", number)?);
        let division = weight.division()?;
        rows.extend([
            weight.from.0,
            weight.to.0,
            pair(weight.inputs, weight.taps),
            Argument::from(Divisor::by(weight.taps as u32)).0,
        ]);
        for output in (0..weight.outputs).step_by(division.rows) {
            for input in (0..weight.inputs).step_by(division.inputs) {
                let outputs = division.rows.min(weight.outputs - output);
                let inputs = division.inputs.min(weight.inputs - input);
                pieces.extend([
                    (output as u64) << 32 | number,
                    pair(input, outputs << 16 | inputs),
                ]);
            }
        }
    }
    rows.extend(pieces);
    Ok(rows)
}

/// Lays all weights of a table out, in one launch. `weights` are those that were given to [`table`].
pub(crate) fn lay_out<M: Machine>(
    machine: &M,
    kind: Kind,
    weights: &[Weight],
    table: Address,
) -> Result<()> {
    let mut pieces = 0;
    for weight in weights {
        pieces += weight.division()?.pieces;
    }
    if pieces == 0 {
        return Ok(());
    }
    let count = whole("weights", weights.len())?;
    let arguments = arguments![table, count];
    machine.launch(kernel!(kind, "nhwc_lay_out"), blocks(pieces)?, arguments)
}

/// A gradient `kind` `[outputs, taps, inputs]` back to f32 `[outputs, inputs, taps]`, written or added.
pub(crate) fn turn_back<M: Machine>(
    machine: &M,
    kind: Kind,
    outputs: usize,
    inputs: usize,
    taps: usize,
    from: Address,
    to: Sink,
) -> Result<()> {
    let weight = Weight {
        from,
        to: to.at,
        outputs,
        inputs,
        taps,
    };
    let division = weight.division()?;
    let across = inputs.div_ceil(division.inputs) as u32;
    machine.launch(
        kernel!(kind, "nhwc_turn_back"),
        blocks(division.pieces)?,
        arguments![
            from,
            to.at,
            outputs as u32,
            inputs as u32,
            taps as u32,
            Divisor::by(taps as u32),
            division.rows as u32,
            division.inputs as u32,
            across,
            Divisor::by(across),
            to.accumulate,
        ],
    )
}

/// How a weight is divided: some outputs with all inputs, or some inputs of one output.
struct Division {
    rows: usize,
    inputs: usize,
    pieces: usize,
}

impl Weight {
    fn division(&self) -> Result<Division> {
        whole(
            "numbers of a weight",
            self.outputs * self.inputs * self.taps,
        )?;
        let row = self.inputs * self.taps;
        if row == 0 || self.taps > PIECE {
            bail!(
                "cuda: a weight has {} inputs and {} taps, expected some, and at most {PIECE} taps",
                self.inputs,
                self.taps
            );
        }
        let (rows, inputs) = if row <= PIECE {
            (PIECE / row, self.inputs)
        } else {
            (1, self.share(PIECE / self.taps))
        };
        Ok(Division {
            rows,
            inputs,
            pieces: self.outputs.div_ceil(rows) * self.inputs.div_ceil(inputs),
        })
    }

    /// Inputs of a piece, as equal as can be: `most`, or less; eights of them where there is room.
    fn share(&self, most: usize) -> usize {
        let unit = if most < 8 { 1 } else { 8 };
        let pieces = self.inputs.div_ceil(most / unit * unit);
        self.inputs.div_ceil(pieces).next_multiple_of(unit)
    }
}

/// A block a piece.
fn blocks(pieces: usize) -> Result<Launch> {
    Ok(Launch {
        grid: [whole("pieces of weights", pieces)?, 1],
        block: BLOCK,
        shared: 4 * PIECE as u32,
    })
}

/// Two numbers of 32 bits, which have been checked, in a word.
fn pair(upper: usize, lower: usize) -> u64 {
    (upper as u64) << 32 | lower as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, Memory, kept};
    use crate::cuda::oracle::{KINDS, wave};

    /// Outputs, inputs, taps: few and many inputs, pieces of several outputs and of parts of one, odd and even.
    const SIZES: [[usize; 3]; 9] = [
        [5, 3, 9],
        [130, 6, 9],
        [3, 700, 9],
        [2, 515, 9],
        [7, 1, 1],
        [3, 2100, 1],
        [4, 96, 4],
        [2, 11, 1000],
        [1, 3, 2048],
    ];

    /// `[outputs, inputs, taps]` to `[outputs, taps, inputs]`.
    fn laid_out([outputs, inputs, taps]: [usize; 3], w: &[f32]) -> Vec<f32> {
        let mut all = Vec::new();
        for output in 0..outputs {
            for tap in 0..taps {
                all.extend((0..inputs).map(|input| w[(output * inputs + input) * taps + tap]));
            }
        }
        all
    }

    fn weight([outputs, inputs, taps]: [usize; 3], from: Address, to: Address) -> Weight {
        Weight {
            from,
            to,
            outputs,
            inputs,
            taps,
        }
    }

    #[test]
    fn one_launch_lays_all_weights_out() {
        let numbers = |seed: usize| wave(SIZES[seed].iter().product(), seed as u64);
        let weights: Vec<Vec<f32>> = (0..SIZES.len()).map(numbers).collect();
        for kind in KINDS {
            let ran = Host::both_ways(|host| {
                let from: Vec<Memory> = weights.iter().map(|w| host.floats(w)).collect();
                let to = weights.iter().map(|w| host.allocate(kind, w.len()));
                let to: Vec<Memory> = to.collect::<Result<_>>()?;
                let of = |i: usize| weight(SIZES[i], host.address(&from[i]), host.address(&to[i]));
                let all: Vec<Weight> = (0..SIZES.len()).map(of).collect();
                let table = host.upload(&table(&all)?)?;
                lay_out(host, kind, &all, host.address(&table))?;
                Ok(to.iter().map(Memory::read).collect())
            });
            let Some(ran) = ran else { return };
            for ((size, w), ran) in SIZES.iter().zip(&weights).zip(&ran) {
                let expected = kept(kind, &laid_out(*size, w));
                assert!(*ran == expected, "{kind:?}, {size:?}");
            }
        }
    }

    #[test]
    fn gradients_come_back_written_or_added() {
        for kind in KINDS {
            for size in SIZES {
                for accumulate in [false, true] {
                    check(kind, size, accumulate);
                }
            }
        }
    }

    fn check(kind: Kind, size: [usize; 3], accumulate: bool) {
        let [outputs, inputs, taps] = size;
        let length = outputs * inputs * taps;
        let (g, before) = (kept(kind, &wave(length, 1)), wave(length, 2));
        let ran = Host::both_ways(|host| {
            let from = host.numbers(kind, &g);
            let to = match accumulate {
                true => host.floats(&before),
                false => host.allocate(Kind::F32, length)?,
            };
            let at = host.address(&to);
            let sink = Sink { at, accumulate };
            turn_back(host, kind, outputs, inputs, taps, host.address(&from), sink)?;
            Ok(vec![to.read()])
        });
        let Some(ran) = ran else { return };
        let before = |i: usize| if accumulate { before[i] } else { 0.0 };
        let expected = (0..length).map(|i| {
            let (output, input, tap) = (i / (inputs * taps), i / taps % inputs, i % taps);
            before(i) + g[(output * taps + tap) * inputs + input]
        });
        let expected: Vec<f32> = expected.collect();
        assert!(ran[0] == expected, "{kind:?}, {size:?}, {accumulate}");
    }

    #[test]
    fn nothing_is_laid_out_by_no_launch() {
        let ran = Host::both_ways(|host| {
            lay_out(host, Kind::F32, &[], Address(0))?;
            Ok(vec![])
        });
        assert!(ran.is_none_or(|ran| ran.is_empty()));
    }

    #[test]
    fn a_kernel_beyond_all_pieces_is_refused() {
        let message = table(&[weight([1, 1, 2049], Address(0), Address(0))]).unwrap_err();
        let message = message.to_string();
        assert!(message.contains("2049 taps, expected"), "{message}");
    }
}
