//! Attention on a card, without the matrix of scores.

use candle_core::Result;

use super::launch::{Address, Kind, Launch, Machine, WARP, arguments, kernel, whole};

/// Warps of a block.
const WARPS: usize = 8;
/// Shared memory that a block may ask for: cards of compute capability 8.6 and 8.9 have least of those since 8.0.
const MOST_SHARED: usize = 99 * 1024;

/// The sizes of attention; `heads` are counted through the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Of queries, keys, values, outputs and their gradients.
    pub(crate) kind: Kind,
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) size: usize,
    pub(crate) value_size: usize,
    pub(crate) scale: f32,
}

/// Which of the compiled kernels: rows that stay a warp, and columns that stream at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    rows: usize,
    columns: usize,
    /// By kind.
    names: [[&'static str; 2]; 3],
}

macro_rules! variant {
    (names, $name:literal, $rows:literal, $columns:literal) => {
        [
            concat!($name, $rows, "_", $columns),
            concat!($name, $rows, "_", $columns, "_bf16"),
        ]
    };
    ($rows:literal, $columns:literal) => {
        Variant {
            rows: $rows,
            columns: $columns,
            names: [
                variant!(names, "attention_", $rows, $columns),
                variant!(names, "attention_query_gradient_", $rows, $columns),
                variant!(names, "attention_key_gradient_", $rows, $columns),
            ],
        }
    };
}

const VARIANTS: [Variant; 4] = [
    variant!(4, 16),
    variant!(4, 64),
    variant!(2, 64),
    variant!(1, 64),
];

impl Heads {
    /// Whether the rows that stay fit into shared memory, in both directions.
    pub(crate) fn fit(&self) -> bool {
        self.variant().is_some()
    }

    /// The most rows at once that fit; narrow heads stream in narrow pieces.
    fn variant(&self) -> Option<Variant> {
        let narrow = self.size.max(self.value_size) <= 16;
        let candidates = if narrow {
            &VARIANTS[..1]
        } else {
            &VARIANTS[1..]
        };
        let fits = |variant: &&Variant| self.shared(variant).into_iter().max() <= Some(MOST_SHARED);
        candidates.iter().find(fits).copied()
    }

    /// Bytes of shared memory of the three kernels.
    fn shared(&self, variant: &Variant) -> [usize; 3] {
        let (rows, warp) = (WARPS * variant.rows, WARP as usize);
        let (size, value_size) = (rows * self.size, rows * self.value_size);
        let (weights, tile) = (rows * (warp + 1), warp * (variant.columns + 1));
        [
            4 * (size + value_size + weights + tile + 2 * rows),
            4 * (2 * size + value_size + weights + tile),
            4 * (2 * size + 2 * value_size + 2 * weights + tile),
        ]
    }

    fn launch(&self, variant: &Variant, kernel: usize) -> Result<Launch> {
        let staying = if kernel == 2 { self.keys } else { self.queries };
        let blocks = self.heads * staying.div_ceil(WARPS * variant.rows);
        Ok(Launch {
            grid: [whole("rows of heads", blocks)?, 1],
            block: WARPS as u32 * WARP,
            shared: whole("bytes of shared memory", self.shared(variant)[kernel])?,
        })
    }

    fn name(&self, variant: &Variant, kernel: usize) -> &'static str {
        variant.names[kernel][usize::from(self.kind == Kind::Bf16)]
    }

    fn sizes(&self) -> Result<[u32; 4]> {
        let of = |what, size| whole(what, size);
        Ok([
            of("queries", self.queries)?,
            of("keys", self.keys)?,
            of("columns", self.size)?,
            of("columns", self.value_size)?,
        ])
    }

    /// y, and for each query the logarithm of the sum of the exponentials of its scores. Only of heads that [`Heads::fit`].
    pub(crate) fn forward<M: Machine>(
        &self,
        machine: &M,
        q: Address,
        k: Address,
        v: Address,
    ) -> Result<(M::Memory, M::Memory)> {
        self.forward_by(machine, &self.chosen()?, q, k, v)
    }

    fn forward_by<M: Machine>(
        &self,
        machine: &M,
        variant: &Variant,
        q: Address,
        k: Address,
        v: Address,
    ) -> Result<(M::Memory, M::Memory)> {
        let [queries, keys, size, value_size] = self.sizes()?;
        let y = machine.allocate(self.kind, self.heads * self.queries * self.value_size)?;
        let logarithms = machine.allocate(Kind::F32, self.heads * self.queries)?;
        let (y_at, logarithms_at) = (machine.address(&y), machine.address(&logarithms));
        let arguments = arguments![
            q,
            k,
            v,
            y_at,
            logarithms_at,
            queries,
            keys,
            size,
            value_size,
            self.scale
        ];
        machine.launch(self.name(variant, 0), self.launch(variant, 0)?, arguments)?;
        Ok((y, logarithms))
    }

    /// dL/dq, dL/dk and dL/dv from g = dL/dy, y and the logarithms.
    pub(crate) fn backward<M: Machine>(
        &self,
        machine: &M,
        [q, k, v]: [Address; 3],
        [y, logarithms, g]: [Address; 3],
    ) -> Result<[M::Memory; 3]> {
        self.backward_by(machine, &self.chosen()?, [q, k, v], [y, logarithms, g])
    }

    fn backward_by<M: Machine>(
        &self,
        machine: &M,
        variant: &Variant,
        [q, k, v]: [Address; 3],
        [y, logarithms, g]: [Address; 3],
    ) -> Result<[M::Memory; 3]> {
        let [queries, keys, size, value_size] = self.sizes()?;
        let rows = self.heads * self.queries;
        let deltas = machine.allocate(Kind::F32, rows)?;
        let deltas_at = machine.address(&deltas);
        machine.launch(
            kernel!(self.kind, "attention_deltas"),
            Launch::warps(rows)?,
            arguments![y, g, deltas_at, whole("queries", rows)?, value_size],
        )?;
        let dq = machine.allocate(self.kind, rows * self.size)?;
        let arguments = arguments![
            q,
            k,
            v,
            g,
            logarithms,
            deltas_at,
            machine.address(&dq),
            queries,
            keys,
            size,
            value_size,
            self.scale
        ];
        machine.launch(self.name(variant, 1), self.launch(variant, 1)?, arguments)?;
        let dk = machine.allocate(self.kind, self.heads * self.keys * self.size)?;
        let dv = machine.allocate(self.kind, self.heads * self.keys * self.value_size)?;
        let (dk_at, dv_at) = (machine.address(&dk), machine.address(&dv));
        let arguments = arguments![
            q, k, v, g, logarithms, deltas_at, dk_at, dv_at, queries, keys, size, value_size,
            self.scale
        ];
        machine.launch(self.name(variant, 2), self.launch(variant, 2)?, arguments)?;
        Ok([dq, dk, dv])
    }

    fn chosen(&self) -> Result<Variant> {
        match self.variant() {
            Some(variant) => Ok(variant),
            None => candle_core::bail!(
                "attention: heads of {} and {} columns do not fit into shared memory",
                self.size,
                self.value_size
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};

    use super::*;
    use crate::cuda::host::{Host, Memory, kept};
    use crate::cuda::oracle::{KINDS, allowed, assert_near, wave};

    /// y, dq, dk, dv by the plain formula in double precision.
    fn expected(heads: &Heads, [q, k, v, g]: &[Vec<f32>; 4]) -> [Vec<f64>; 4] {
        let Heads {
            heads: count,
            queries,
            keys,
            size,
            value_size,
            scale,
            ..
        } = *heads;
        let tensor = |x: &[f32], rows: usize, columns: usize| {
            let x = Tensor::from_slice(x, (1, count, rows, columns), &Device::Cpu).unwrap();
            Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap()
        };
        let (q, k, v) = (
            tensor(q, queries, size),
            tensor(k, keys, size),
            tensor(v, keys, value_size),
        );
        let g = tensor(g, queries, value_size);
        let y = crate::reference::attention(&q, &k, &v, scale.into()).unwrap();
        let gradients = (&y * g.as_tensor().detach())
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let of = |x: &Var| flat(gradients.get(x).unwrap());
        [flat(&y), of(&q), of(&k), of(&v)]
    }

    fn check(heads: Heads, variant: &Variant, factor: f32) {
        for kind in KINDS {
            check_of(Heads { kind, ..heads }, variant, factor);
        }
    }

    fn check_of(heads: Heads, variant: &Variant, factor: f32) {
        let tolerance = 4e-6 * f64::from(factor).max(10.0) / 10.0; // a score is rounded at its own size
        let Heads {
            heads: count,
            queries,
            keys,
            size,
            value_size,
            ..
        } = heads;
        let larger: Vec<f32> = wave(count * queries * size, 1)
            .iter()
            .map(|x| factor * x)
            .collect();
        let inputs = [
            larger,
            wave(count * keys * size, 2),
            wave(count * keys * value_size, 3),
            wave(count * queries * value_size, 4),
        ]
        .map(|input| kept(heads.kind, &input));
        let ran = Host::both_ways(|host| {
            let memories = inputs
                .each_ref()
                .map(|input| host.numbers(heads.kind, input));
            let [q, k, v, g] = memories.each_ref().map(|memory| host.address(memory));
            let (y, logarithms) = heads.forward_by(host, variant, q, k, v)?;
            let of = [host.address(&y), host.address(&logarithms), g];
            let gradients = heads.backward_by(host, variant, [q, k, v], of)?;
            Ok([y].iter().chain(&gradients).map(Memory::read).collect())
        });
        let Some(ran) = ran else { return };
        for ((name, ran), expected) in ["y", "dq", "dk", "dv"]
            .iter()
            .zip(&ran)
            .zip(expected(&heads, &inputs))
        {
            assert_near(
                &format!("{name} of {heads:?} by {variant:?}"),
                ran,
                &expected,
                2.0 * allowed(heads.kind, tolerance), // of y, then of what is made of it
            );
        }
    }

    const HEADS: Heads = Heads {
        kind: Kind::F32,
        heads: 2,
        queries: 37,
        keys: 45,
        size: 8,
        value_size: 8,
        scale: 0.7,
    };

    #[test]
    fn narrow_heads() {
        check(HEADS, &VARIANTS[0], 3.0);
        check(
            Heads {
                queries: 1,
                keys: 1,
                size: 1,
                value_size: 3,
                ..HEADS
            },
            &VARIANTS[0],
            3.0,
        );
        check(
            Heads {
                queries: 64,
                keys: 32,
                size: 16,
                value_size: 5,
                ..HEADS
            },
            &VARIANTS[0],
            3.0,
        );
    }

    #[test]
    fn any_variant_does_any_width() {
        for variant in &VARIANTS {
            check(
                Heads {
                    heads: 1,
                    size: 70,
                    value_size: 67,
                    ..HEADS
                },
                variant,
                1.0,
            );
            check(
                Heads {
                    heads: 3,
                    queries: 9,
                    keys: 33,
                    size: 5,
                    value_size: 64,
                    ..HEADS
                },
                variant,
                1.0,
            );
        }
    }

    /// Scores to 100 either way: their exponentials alone would not fit into a float.
    #[test]
    fn large_scores() {
        check(
            Heads {
                size: 20,
                scale: 1.0,
                ..HEADS
            },
            &VARIANTS[1],
            60.0,
        );
    }

    #[test]
    fn the_variant_is_chosen_by_width() {
        let of = |size| {
            Heads {
                size,
                value_size: size,
                ..HEADS
            }
            .variant()
        };
        assert_eq!(of(16), Some(VARIANTS[0]));
        assert_eq!(of(64), Some(VARIANTS[1]));
        assert_eq!(of(256), Some(VARIANTS[2]));
        assert_eq!(of(512), Some(VARIANTS[3]));
        assert_eq!(of(1024), None);
        assert!(
            !Heads {
                size: 1024,
                value_size: 1024,
                ..HEADS
            }
            .fit()
        );
    }
}
