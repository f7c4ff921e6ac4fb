//! Attention on a card, without the matrix of scores: by tensor cores where they fit, otherwise in floats.

use candle_core::Result;

use super::launch::{
    Address, BLOCK, Divisor, Kind, Launch, Machine, WARP, arguments, kernel, whole,
};

pub(in crate::cuda) mod tiles;

use tiles::Tiles;

/// Warps of a block.
const WARPS: usize = 8;
/// Shared memory that a block may ask for: cards of compute capability 8.6 and 8.9 have least of those since 8.0.
const MOST_SHARED: usize = 99 * 1024;

/// The sizes of attention. Heads lie side by side in the rows of an image: queries are `[images, queries, heads * size]`, keys
/// `[images, keys, heads * size]`, values `[images, keys, heads * value_size]`, outputs `[images, queries, heads * value_size]`,
/// and what is one number a query `[images, heads, queries]`. Heads one after the other are images of one head each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Of queries, keys, values, outputs and their gradients.
    pub(crate) kind: Kind,
    pub(crate) images: usize,
    /// Of one image.
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) size: usize,
    pub(crate) value_size: usize,
    pub(crate) scale: f32,
}

/// Which of the compiled kernels in floats: rows that stay a warp, and columns that stream at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) struct Variant {
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

/// The kernels that serve some heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) enum Kernels {
    Floats(Variant),
    Tiles(Tiles),
}

impl Kernels {
    /// The name and launch of the output's kernel (0), the queries' gradient's (1), or the keys' and values' (2).
    fn of(&self, heads: &Heads, kernel: usize) -> Result<(&'static str, Launch)> {
        match self {
            Kernels::Floats(variant) => Ok((
                variant.names[kernel][usize::from(heads.kind == Kind::Bf16)],
                heads.launch(variant, kernel)?,
            )),
            Kernels::Tiles(tiles) => tiles.of_kernel(heads, kernel),
        }
    }

    /// The kernel of the products of outputs and their gradients, and its lanes a query, a power of two.
    fn deltas(&self, heads: &Heads) -> (&'static str, usize) {
        let (name, wide) = match self {
            Kernels::Floats(_) => (kernel!(heads.kind, "attention_deltas"), 1),
            Kernels::Tiles(_) => ("attention_deltas_tiles", 8),
        };
        let lanes = heads.value_size.div_ceil(wide).next_power_of_two();
        (name, lanes.min(WARP as usize))
    }
}

impl Heads {
    /// Whether the rows that stay fit into shared memory, in both directions.
    pub(crate) fn fit(&self) -> bool {
        self.variant().is_some() // tiles need less
    }

    /// y, and for each query the logarithm of the sum of the exponentials of its scores. Only of heads that [`Heads::fit`].
    pub(crate) fn forward<M: Machine>(
        &self,
        machine: &M,
        q: Address,
        k: Address,
        v: Address,
    ) -> Result<(M::Memory, M::Memory)> {
        let y = machine.allocate(self.kind, self.all_queries() * self.value_size)?;
        let logarithms = machine.allocate(Kind::F32, self.all_queries())?;
        let to = [machine.address(&y), machine.address(&logarithms)];
        self.attend(machine, [q, k, v], to)?;
        Ok((y, logarithms))
    }

    /// The same, to addresses.
    pub(crate) fn attend<M: Machine>(
        &self,
        machine: &M,
        qkv: [Address; 3],
        [y, logarithms]: [Address; 2],
    ) -> Result<()> {
        let kernels = self.chosen(&[&qkv[..], &[y]].concat())?;
        self.attend_by(machine, &kernels, qkv, [y, logarithms])
    }

    pub(in crate::cuda) fn attend_by<M: Machine>(
        &self,
        machine: &M,
        kernels: &Kernels,
        [q, k, v]: [Address; 3],
        [y, logarithms]: [Address; 2],
    ) -> Result<()> {
        let [queries, keys, size, value_size, heads] = self.sizes()?;
        let (name, launch) = kernels.of(self, 0)?;
        let arguments = arguments![
            q, k, v, y, logarithms, queries, keys, size, value_size, heads, self.scale
        ];
        machine.launch(name, launch, arguments)
    }

    /// dL/dq, dL/dk and dL/dv from g = dL/dy, y and the logarithms.
    pub(crate) fn backward<M: Machine>(
        &self,
        machine: &M,
        qkv: [Address; 3],
        from: [Address; 3],
    ) -> Result<[M::Memory; 3]> {
        let deltas = machine.allocate(Kind::F32, self.all_queries())?;
        let keys = self.images * self.heads * self.keys;
        let dq = machine.allocate(self.kind, self.all_queries() * self.size)?;
        let dk = machine.allocate(self.kind, keys * self.size)?;
        let dv = machine.allocate(self.kind, keys * self.value_size)?;
        let to = [&dq, &dk, &dv].map(|memory| machine.address(memory));
        self.gradients(machine, qkv, from, to, machine.address(&deltas))?;
        Ok([dq, dk, dv])
    }

    /// The same, to addresses; `deltas` is room for a float for each query of each head.
    pub(crate) fn gradients<M: Machine>(
        &self,
        machine: &M,
        qkv: [Address; 3],
        [y, logarithms, g]: [Address; 3],
        to: [Address; 3],
        deltas: Address,
    ) -> Result<()> {
        let kernels = self.chosen(&[&qkv[..], &[y, g], &to].concat())?;
        self.gradients_by(machine, &kernels, qkv, [y, logarithms, g], to, deltas)
    }

    pub(in crate::cuda) fn gradients_by<M: Machine>(
        &self,
        machine: &M,
        kernels: &Kernels,
        [q, k, v]: [Address; 3],
        [y, logarithms, g]: [Address; 3],
        [dq, dk, dv]: [Address; 3],
        deltas: Address,
    ) -> Result<()> {
        self.deltas(machine, kernels, [y, g], deltas)?;
        let [queries, keys, size, value_size, heads] = self.sizes()?;
        let (name, launch) = kernels.of(self, 1)?;
        let arguments = arguments![
            q, k, v, g, logarithms, deltas, dq, queries, keys, size, value_size, heads, self.scale
        ];
        machine.launch(name, launch, arguments)?;
        let (name, launch) = kernels.of(self, 2)?;
        let arguments = arguments![
            q, k, v, g, logarithms, deltas, dk, dv, queries, keys, size, value_size, heads,
            self.scale
        ];
        machine.launch(name, launch, arguments)
    }

    /// The product of each query's output and its gradient.
    fn deltas<M: Machine>(
        &self,
        machine: &M,
        kernels: &Kernels,
        [y, g]: [Address; 2],
        deltas: Address,
    ) -> Result<()> {
        let [queries, _, _, value_size, heads] = self.sizes()?;
        let count = whole("queries", self.all_queries())?;
        let (name, lanes) = kernels.deltas(self);
        let launch = Launch {
            grid: [count.div_ceil(BLOCK / lanes as u32), 1],
            block: BLOCK,
            shared: 0,
        };
        let arguments = arguments![
            y,
            g,
            deltas,
            count,
            value_size,
            lanes as u32,
            heads,
            Divisor::by(heads),
            queries,
            Divisor::by(queries),
        ];
        machine.launch(name, launch, arguments)
    }

    /// Tensor cores if they fit these sizes, and places that are all multiples of 16 bytes; otherwise floats.
    fn chosen(&self, places: &[Address]) -> Result<Kernels> {
        let aligned = places.iter().all(|place| place.0 % 16 == 0);
        if let Some(tiles) = Tiles::of(self).filter(|_| aligned) {
            return Ok(Kernels::Tiles(tiles));
        }
        match self.variant() {
            Some(variant) => Ok(Kernels::Floats(variant)),
            None => candle_core::bail!(
                "attention: heads of {} and {} columns do not fit into shared memory",
                self.size,
                self.value_size
            ),
        }
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
        let blocks = self.staying(kernel).div_ceil(WARPS * variant.rows);
        Ok(Launch {
            grid: [
                whole("rows of heads", self.images * self.heads * blocks)?,
                1,
            ],
            block: WARPS as u32 * WARP,
            shared: whole("bytes of shared memory", self.shared(variant)[kernel])?,
        })
    }

    /// Rows of a head that stay while the others stream past.
    fn staying(&self, kernel: usize) -> usize {
        if kernel == 2 { self.keys } else { self.queries }
    }

    fn all_queries(&self) -> usize {
        self.images * self.heads * self.queries
    }

    fn sizes(&self) -> Result<[u32; 5]> {
        Ok([
            whole("queries", self.queries)?,
            whole("keys", self.keys)?,
            whole("columns", self.size)?,
            whole("columns", self.value_size)?,
            whole("heads", self.heads)?,
        ])
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
            images: count,
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
            images: count,
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
            let kernels = Kernels::Floats(*variant);
            let results = [count * queries * value_size, count * queries * size]
                .into_iter()
                .chain([count * keys * size, count * keys * value_size])
                .map(|length| host.allocate(heads.kind, length))
                .collect::<Result<Vec<Memory>>>()?;
            let lines = [(); 2].map(|()| host.floats(&vec![0.0; count * queries]));
            let [logarithms, deltas] = lines.each_ref().map(|line| host.address(line));
            let [y, dq, dk, dv] = [0, 1, 2, 3].map(|i| host.address(&results[i]));
            heads.attend_by(host, &kernels, [q, k, v], [y, logarithms])?;
            let (of, to) = ([y, logarithms, g], [dq, dk, dv]);
            heads.gradients_by(host, &kernels, [q, k, v], of, to, deltas)?;
            Ok(results.iter().map(Memory::read).collect())
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
        images: 2,
        heads: 1,
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
                    images: 1,
                    size: 70,
                    value_size: 67,
                    ..HEADS
                },
                variant,
                1.0,
            );
            check(
                Heads {
                    images: 3,
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
