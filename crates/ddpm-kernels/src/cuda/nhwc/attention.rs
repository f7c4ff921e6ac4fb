//! Softmax attention between the pixels of images, and its gradients.

use candle_core::Result;

use crate::cuda::attention::Heads;
use crate::cuda::launch::{Address, Kind, Machine};

/// softmax(scale q k') v between the pixels of each image, in heads of `size` channels each, which lie side by side: q, k, v, y
/// and their gradients are [B, pixels, heads * size] of `kind`.
///
/// bf16 goes by tensor cores where `size` is a multiple of 8 up to 256, the scale is above 0 and all places are multiples of 16
/// bytes; anything else, heads of 512 channels among it, by the kernels in floats, which end at about 700 channels a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) kind: Kind,
    pub(crate) images: usize,
    pub(crate) pixels: usize,
    pub(crate) heads: usize,
    pub(crate) size: usize,
    pub(crate) scale: f32,
}

impl Attention {
    /// Whether there are kernels for heads of this size.
    pub(crate) fn fits(&self) -> bool {
        self.sizes().fit()
    }

    fn sizes(&self) -> Heads {
        Heads {
            kind: self.kind,
            images: self.images,
            heads: self.heads,
            queries: self.pixels,
            keys: self.pixels,
            size: self.size,
            value_size: self.size,
            scale: self.scale,
        }
    }
}

/// y, and the logarithms of the sums of e^score, which the gradient needs: f32 [B, heads, pixels].
pub(crate) fn attention<M: Machine>(
    machine: &M,
    of: &Attention,
    qkv: [Address; 3],
    y: Address,
    logarithms: Address,
) -> Result<()> {
    of.sizes().attend(machine, qkv, [y, logarithms])
}

/// Floats that the gradient needs to work with.
pub(crate) fn attention_gradient_scratch(of: &Attention) -> usize {
    of.images * of.heads * of.pixels
}

/// dL/dq, dL/dk and dL/dv, written over what `to` holds, from g = dL/dy and what [`attention`] gave.
pub(crate) fn attention_gradient<M: Machine>(
    machine: &M,
    of: &Attention,
    qkv: [Address; 3],
    y: Address,
    g: Address,
    logarithms: Address,
    to: [Address; 3],
    scratch: Address,
) -> Result<()> {
    of.sizes()
        .gradients(machine, qkv, [y, logarithms, g], to, scratch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::attention::Kernels;
    use crate::cuda::attention::tiles::Tiles;
    use crate::cuda::host::{Host, Memory, kept};
    use crate::cuda::oracle::{KINDS, wave};

    /// What rounding to bf16 changes, at most, of a number.
    const HALF_UNIT: f64 = 1.0 / 256.0;
    const NAMES: [&str; 5] = ["y", "the logarithms", "dq", "dk", "dv"];

    const OF: Attention = Attention {
        kind: Kind::F32,
        images: 2,
        pixels: 37,
        heads: 2,
        size: 16,
        scale: 0.25,
    };

    /// What should come out, and what it may be off by.
    #[derive(Clone)]
    struct Expected {
        numbers: Vec<f64>,
        allowed: Vec<f64>,
    }

    impl Expected {
        fn new(length: usize) -> Expected {
            Expected {
                numbers: vec![0.0; length],
                allowed: vec![0.0; length],
            }
        }

        fn add(&mut self, i: usize, number: f64, off: f64) {
            self.numbers[i] += number;
            self.allowed[i] += off;
        }

        /// The result itself is rounded.
        fn rounded(mut self, half_unit: f64) -> Expected {
            for (allowed, number) in self.allowed.iter_mut().zip(&self.numbers) {
                *allowed += (number.abs() + *allowed) * half_unit + 1e-30;
            }
            self
        }
    }

    /// y, logarithms, dq, dk and dv by the formula in double precision.
    ///
    /// Each may be off by what its roundings come to, term by term. With h half a unit of the kind, to which probabilities and
    /// gradients of scores are rounded before they multiply, and results once more: of y = sum p v that is h sum p |v| + h |y|. The
    /// product of y, so rounded, and g is off by so much times |g|, and so is each p (dp - delta) by p times that, besides its own
    /// rounding. Floats add what a score of its size loses, times `FLOATS`.
    fn expected(of: &Attention, [q, k, v, g]: &[Vec<f32>; 4]) -> [Expected; 5] {
        const FLOATS: f64 = 1.0 / (1 << 22) as f64;
        let half_unit = match of.kind {
            Kind::F32 => f64::EPSILON * (1u64 << 28) as f64, // 2^-24
            Kind::Bf16 => HALF_UNIT,
        };
        let Attention {
            images,
            pixels,
            heads,
            size,
            ..
        } = *of;
        let scale = f64::from(of.scale);
        let [mut y, mut dq, mut dk, mut dv] =
            [(); 4].map(|()| Expected::new(images * pixels * heads * size));
        let mut logarithms = Expected::new(images * heads * pixels);
        for (image, head) in (0..images).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let at = |row: usize, c: usize| ((image * pixels + row) * heads + head) * size + c;
            let dot = |a: &[f32], i: usize, b: &[f32], j: usize| -> (f64, f64) {
                (0..size).fold((0.0, 0.0), |(sum, most), c| {
                    let term = f64::from(a[at(i, c)]) * f64::from(b[at(j, c)]);
                    (sum + term, most + term.abs())
                })
            };
            for i in 0..pixels {
                let scores: Vec<(f64, f64)> = (0..pixels)
                    .map(|j| dot(q, i, k, j))
                    .map(|(sum, most)| (scale * sum, scale * most))
                    .collect();
                let most = scores.iter().fold(f64::MIN, |most, s| most.max(s.0));
                let total: f64 = scores.iter().map(|s| (s.0 - most).exp()).sum();
                let logarithm = most + total.ln();
                // What a score is off by, in floats, so is e^score over itself, and their sum.
                let off = FLOATS * (8.0 + scores.iter().fold(0.0, |off, s| s.1.max(off)));
                logarithms.add((image * heads + head) * pixels + i, logarithm, 2.0 * off);
                let p: Vec<f64> = scores.iter().map(|s| (s.0 - logarithm).exp()).collect();
                let of_p = half_unit + 4.0 * off;
                for (j, p) in p.iter().enumerate() {
                    for c in 0..size {
                        let (v, g) = (f64::from(v[at(j, c)]), f64::from(g[at(i, c)]));
                        y.add(at(i, c), p * v, of_p * p * v.abs());
                        dv.add(at(j, c), p * g, of_p * p * g.abs());
                    }
                }
                let (mut delta, mut of_delta) = (0.0, 0.0);
                for c in 0..size {
                    let (y, off) = (y.numbers[at(i, c)], y.allowed[at(i, c)]);
                    let g = f64::from(g[at(i, c)]);
                    delta += y * g;
                    of_delta += (off + (half_unit + FLOATS) * (y.abs() + off)) * g.abs();
                }
                for (j, p) in p.iter().enumerate() {
                    let (dp, most) = dot(g, i, v, j);
                    let ds = p * (dp - delta);
                    let of_ds = p * (of_delta + FLOATS * most) + of_p * ds.abs();
                    for c in 0..size {
                        let (q, k) = (f64::from(q[at(i, c)]), f64::from(k[at(j, c)]));
                        dq.add(at(i, c), scale * ds * k, scale * of_ds * k.abs());
                        dk.add(at(j, c), scale * ds * q, scale * of_ds * q.abs());
                    }
                }
            }
        }
        [
            y.rounded(half_unit),
            logarithms.rounded(0.0),
            dq.rounded(half_unit),
            dk.rounded(half_unit),
            dv.rounded(half_unit),
        ]
    }

    /// What comes out of the kernels that are chosen, or of these.
    fn ran(
        of: &Attention,
        inputs: &[Vec<f32>; 4],
        kernels: Option<Kernels>,
    ) -> Option<Vec<Vec<f32>>> {
        Host::both_ways(|host| {
            let places = |memories: &[Memory]| -> Vec<Address> {
                memories.iter().map(|memory| host.address(memory)).collect()
            };
            let inputs = inputs.each_ref().map(|x| host.numbers(of.kind, x));
            let lines = of.images * of.heads * of.pixels;
            assert_eq!(attention_gradient_scratch(of), lines);
            let results = [lines * of.size, lines, lines * of.size, lines * of.size]
                .into_iter()
                .chain([lines * of.size, lines])
                .enumerate()
                .map(|(i, length)| match NAMES.get(i) {
                    Some(&"the logarithms") | None => host.allocate(Kind::F32, length),
                    _ => host.allocate(of.kind, length),
                })
                .collect::<Result<Vec<Memory>>>()?;
            let (from, to) = (places(&inputs), places(&results));
            let (qkv, g) = ([from[0], from[1], from[2]], from[3]);
            let (y, logarithms, scratch) = (to[0], to[1], to[5]);
            let to = [to[2], to[3], to[4]];
            if let Some(kernels) = kernels {
                let heads = of.sizes();
                heads.attend_by(host, &kernels, qkv, [y, logarithms])?;
                heads.gradients_by(host, &kernels, qkv, [y, logarithms, g], to, scratch)?;
            } else {
                attention(host, of, qkv, y, logarithms)?;
                attention_gradient(host, of, qkv, y, g, logarithms, to, scratch)?;
            }
            Ok(results[..5].iter().map(Memory::read).collect())
        })
    }

    #[track_caller]
    fn check_inputs(of: &Attention, inputs: &[Vec<f32>; 4], kernels: Option<Kernels>) {
        let inputs = inputs.each_ref().map(|x| kept(of.kind, x));
        let Some(ran) = ran(of, &inputs, kernels) else {
            return;
        };
        for ((name, ran), expected) in NAMES.iter().zip(&ran).zip(expected(of, &inputs)) {
            assert_eq!(ran.len(), expected.numbers.len());
            for (i, &x) in ran.iter().enumerate() {
                let (e, allowed) = (expected.numbers[i], expected.allowed[i]);
                assert!(
                    (f64::from(x) - e).abs() <= allowed,
                    "{name} of {of:?} by {kernels:?}: element {i} is {x}, expected {e} within {allowed}"
                );
            }
        }
    }

    fn waves(of: &Attention, factor: f32) -> [Vec<f32>; 4] {
        let length = of.images * of.pixels * of.heads * of.size;
        let mut inputs = [1, 2, 3, 4].map(|seed| wave(length, seed));
        inputs[0].iter_mut().for_each(|x| *x *= factor);
        inputs
    }

    /// The kernels of tensor cores, in blocks of up to so many warps.
    fn tiles(of: &Attention, warps: usize) -> Kernels {
        let mut tiles = Tiles::of(&of.sizes()).unwrap();
        tiles.warps = warps;
        Kernels::Tiles(tiles)
    }

    #[test]
    fn heads_of_many_sizes() {
        for kind in KINDS {
            for (size, pixels) in [(8, 16), (16, 37), (24, 65), (40, 33), (64, 70), (128, 45)] {
                let of = Attention {
                    kind,
                    size,
                    pixels,
                    ..OF
                };
                check_inputs(&of, &waves(&of, 4.0), None);
            }
        }
    }

    #[test]
    fn wide_heads() {
        for (kind, size) in [(Kind::Bf16, 256), (Kind::Bf16, 160), (Kind::F32, 160)] {
            let of = Attention {
                kind,
                size,
                images: 1,
                pixels: 35,
                ..OF
            };
            check_inputs(&of, &waves(&of, 1.0), None);
        }
    }

    /// Sizes that tensor cores do not take.
    #[test]
    fn odd_heads() {
        for (size, heads) in [(5, 3), (1, 2), (12, 1)] {
            let of = Attention {
                kind: Kind::Bf16,
                size,
                heads,
                ..OF
            };
            assert_eq!(Tiles::of(&of.sizes()), None);
            check_inputs(&of, &waves(&of, 4.0), None);
        }
    }

    /// Warps share what streams: more than two turns of it, with rows left over.
    #[test]
    fn blocks_of_several_warps() {
        for (size, pixels, warps) in [(16, 200, 4), (32, 150, 3), (64, 131, 2), (128, 150, 4)] {
            let of = Attention {
                kind: Kind::Bf16,
                images: 1,
                heads: if size == 16 { 3 } else { 1 },
                size,
                pixels,
                ..OF
            };
            check_inputs(&of, &waves(&of, 2.0), Some(tiles(&of, warps)));
        }
    }

    #[test]
    fn few_pixels() {
        for kind in KINDS {
            for pixels in [1, 2, 15] {
                let of = Attention {
                    kind,
                    pixels,
                    heads: 3,
                    ..OF
                };
                check_inputs(&of, &waves(&of, 4.0), None);
            }
        }
    }

    /// Scores to 80 either way: their exponentials alone would not fit into a float.
    #[test]
    fn large_scores() {
        for kind in KINDS {
            let of = Attention {
                kind,
                pixels: 70,
                scale: 1.0,
                ..OF
            };
            let inputs = waves(&of, 32.0);
            check_inputs(&of, &inputs, None);
            let of = Attention { scale: 1e-3, ..of };
            check_inputs(&of, &inputs, None);
        }
    }

    /// No query, so all keys count the same; then keys and queries all alike, with scores so far below 0 that e^-score, as it would
    /// be of a key that is not there, is no float.
    #[test]
    fn equal_scores() {
        for kind in KINDS {
            let of = Attention {
                kind,
                pixels: 67,
                ..OF
            };
            let mut inputs = waves(&of, 0.0);
            check_inputs(&of, &inputs, None);
            inputs[0].fill(8.0);
            inputs[1].fill(-4.0);
            check_inputs(&of, &inputs, None);
        }
    }

    /// One key, in the last and in the first of the tiles, outweighs all others, for every query.
    #[test]
    fn a_key_that_outweighs_the_others() {
        for kind in KINDS {
            for key in [66, 3] {
                let of = Attention {
                    kind,
                    pixels: 67,
                    ..OF
                };
                let mut inputs = waves(&of, 1.0);
                inputs[0].iter_mut().for_each(|x| *x = 1.0 + x.abs());
                let row = of.heads * of.size;
                for image in 0..of.images {
                    let first = (image * of.pixels + key) * row;
                    inputs[1][first..first + row].fill(12.0);
                }
                check_inputs(&of, &inputs, None);
            }
        }
    }

    /// What a candle tensor that begins in the middle of another gives: tensor cores cannot take it.
    #[test]
    fn places_that_are_no_multiples_of_16_bytes() {
        let of = Attention {
            kind: Kind::Bf16,
            images: 1,
            pixels: 17,
            ..OF
        };
        let inputs = waves(&of, 2.0).map(|x| kept(of.kind, &x));
        let ran = Host::both_ways(|host| {
            let after = |x: &Vec<f32>| [&[0.0], &x[..]].concat();
            let [q, k, v, _] = inputs.each_ref().map(|x| host.numbers(of.kind, &after(x)));
            let qkv = [&q, &k, &v].map(|memory| Address(host.address(memory).0 + 2));
            let y = host.allocate(of.kind, inputs[0].len())?;
            let logarithms = host.allocate(Kind::F32, attention_gradient_scratch(&of))?;
            let (y_at, logarithms_at) = (host.address(&y), host.address(&logarithms));
            attention(host, &of, qkv, y_at, logarithms_at)?;
            Ok(vec![y.read(), logarithms.read()])
        });
        let Some(ran) = ran else { return };
        for (ran, expected) in ran.iter().zip(expected(&of, &inputs)) {
            for (i, &x) in ran.iter().enumerate() {
                assert!((f64::from(x) - expected.numbers[i]).abs() <= expected.allowed[i]);
            }
        }
    }

    #[test]
    fn tensor_cores_take_bf16_of_sizes_that_fit() {
        let takes = |of: &Attention| Tiles::of(&of.sizes()).is_some();
        let of = Attention {
            kind: Kind::Bf16,
            ..OF
        };
        assert!(takes(&of) && takes(&Attention { size: 256, ..of }));
        assert!(!takes(&OF) && !takes(&Attention { scale: -0.5, ..of }));
        for size in [264, 512, 12] {
            assert!(!takes(&Attention { size, ..of }), "{size}");
            assert!(Attention { size, ..of }.fits(), "{size}");
        }
        assert!(!Attention { size: 1024, ..of }.fits());
    }
}
