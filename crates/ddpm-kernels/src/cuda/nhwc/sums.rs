//! Sums of gradients over pixels: those of biases and of vectors.

use candle_core::{Result, bail};

use super::tiles::{Tiles, tiled};
use super::{Images, Sink};
use crate::cuda::launch::{Address, BLOCK, Launch, Machine, arguments, each_image, whole};

/// Rows that a thread sums before more threads do.
const ROWS: usize = 8;
/// Threads that sum one column, at most.
const LANES: usize = 32;
/// Rows of chunks, of all images, that are summed at once if nobody asks for those of each image.
const FEW: usize = 256;

/// Floats that [`bias_gradient`] works with.
pub(crate) fn bias_gradient_scratch(images: Images) -> usize {
    images.count * images.channels * (Tiles::of(images).chunks() + 1)
}

/// The sums of g over the pixels: those of all images, f32 [C], and of each, f32 [B, C], if there is a `vector`.
pub(crate) fn bias_gradient<M: Machine>(
    machine: &M,
    images: Images,
    g: Address,
    bias: Sink,
    vector: Option<Sink>,
    scratch: Address,
) -> Result<()> {
    if images.numbers() == 0 {
        bail!("cuda: the gradient of the bias of nothing");
    }
    let tiles = Tiles::of(images);
    let kernel = tiled!(tiles, "nhwc_chunk_sums");
    let aligned = [Some(g), Some(scratch)];
    let shared = (tiles.lanes, 0);
    let arguments = arguments![g, scratch];
    tiles.launch(machine, kernel, shared, &aligned, arguments)?;

    let (count, channels, chunks) = (images.count, images.channels, tiles.chunks());
    let of = |matrices: usize, rows: usize| Columns {
        rows,
        columns: channels,
        half: channels,
        matrices,
    };
    let write = |at: Address| Sink {
        at,
        accumulate: false,
    };
    if vector.is_none() && count * chunks <= FEW {
        return sum_rows(machine, of(1, count * chunks), scratch, bias, None);
    }
    let mut of_images = scratch;
    if let Some(vector) = vector {
        sum_rows(machine, of(count, chunks), scratch, vector, None)?;
        if !vector.accumulate {
            of_images = vector.at;
        }
    }
    if of_images == scratch && chunks > 1 {
        of_images = Address(scratch.0 + 4 * (count * chunks * channels) as u64);
        sum_rows(machine, of(count, chunks), scratch, write(of_images), None)?;
    }
    sum_rows(machine, of(1, count), of_images, bias, None)
}

/// Matrices one after the other, whose columns are summed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Sums of columns from here on go elsewhere; then there is one matrix.
    pub(super) half: usize,
    pub(super) matrices: usize,
}

/// The sums of the columns of f32 matrices, each matrix's behind those of the one before; the second half of the columns to
/// `second`.
pub(super) fn sum_rows<M: Machine>(
    machine: &M,
    columns: Columns,
    x: Address,
    first: Sink,
    second: Option<Sink>,
) -> Result<()> {
    let lanes = (columns.rows / ROWS).next_power_of_two().min(LANES);
    let width = BLOCK / lanes as u32;
    let second = second.unwrap_or(first);
    let launch = Launch {
        grid: [
            whole("columns", columns.columns)?.div_ceil(width),
            each_image(columns.matrices)?,
        ],
        block: BLOCK,
        shared: 4 * BLOCK,
    };
    machine.launch(
        "nhwc_sum_rows",
        launch,
        arguments![
            x,
            whole("rows", columns.rows)?,
            columns.columns as u32,
            width,
            columns.half as u32,
            first.at,
            first.accumulate,
            second.at,
            second.accumulate,
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::host::{Host, Memory, kept};
    use crate::cuda::launch::Kind;
    use crate::cuda::oracle::{KINDS, assert_near, wave};

    #[test]
    fn biases_of_all_images_and_vectors_of_each() {
        let sizes = [
            (3, 5, 7, 24),
            (2, 33, 20, 8),
            (3, 33, 20, 5),
            (300, 1, 1, 3),
            (1, 1, 530, 48),
            (2, 1, 3, 2320),
            (1, 17, 31, 1),
        ];
        for kind in KINDS {
            for (count, height, width, channels) in sizes {
                let images = Images {
                    kind,
                    count,
                    height,
                    width,
                    channels,
                };
                for (with_vector, add_vector) in [(false, false), (true, false), (true, true)] {
                    for add_bias in [false, true] {
                        check(images, add_bias, with_vector, add_vector);
                    }
                }
            }
        }
    }

    fn check(images: Images, add_bias: bool, with_vector: bool, add_vector: bool) {
        let (kind, channels) = (images.kind, images.channels);
        let g = kept(kind, &wave(images.numbers(), 1));
        let before = [wave(channels, 2), wave(images.count * channels, 3)];
        let ran = Host::both_ways(|host| {
            let g = host.numbers(kind, &g);
            let to = before.each_ref().map(|numbers| host.floats(numbers));
            let scratch = host.allocate(Kind::F32, bias_gradient_scratch(images))?;
            let sink = |memory: &Memory, accumulate| Sink {
                at: host.address(memory),
                accumulate,
            };
            bias_gradient(
                host,
                images,
                host.address(&g),
                sink(&to[0], add_bias),
                with_vector.then(|| sink(&to[1], add_vector)),
                host.address(&scratch),
            )?;
            scratch.read();
            Ok(to.iter().map(Memory::read).collect())
        });
        let Some(ran) = ran else { return };
        let start = |add: bool, before: &[f32]| -> Vec<f64> {
            let of = |&x: &f32| if add { f64::from(x) } else { 0.0 };
            before.iter().map(of).collect()
        };
        let mut bias = start(add_bias, &before[0]);
        let mut vector = start(add_vector || !with_vector, &before[1]);
        for (i, &g) in g.iter().enumerate() {
            let (image, c) = (i / (images.pixels() * channels), i % channels);
            bias[c] += f64::from(g);
            if with_vector {
                vector[image * channels + c] += f64::from(g);
            }
        }
        let what = format!("{images:?}, {add_bias}, {with_vector}, {add_vector}");
        assert_near(&format!("bias of {what}"), &ran[0], &bias, 2e-6);
        assert_near(&format!("vector of {what}"), &ran[1], &vector, 2e-6);
    }
}
