//! Normalisations and their gradients against the formulas in double precision, and these against differences.

use super::*;
use crate::cuda::host::{Host, Memory};
use crate::cuda::launch::Kind;
use crate::cuda::nhwc::finish::{moments, moments_length};
use crate::cuda::nhwc::oracle::{KeptParts, split};
use crate::cuda::oracle::{KINDS, allowed, assert_near, wave};

const EPS: f32 = 1e-3;

/// A normalisation of numbers in double precision.
#[derive(Clone, Debug)]
struct Case {
    images: Images,
    groups: usize,
    silu: bool,
    /// Of each number, bias and vector included.
    x: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    /// [B, 2 C]
    scale_shift: Vec<f64>,
}

#[derive(Default)]
struct Gradients {
    x: Vec<f64>,
    gamma: Vec<f64>,
    beta: Vec<f64>,
    scale_shift: Vec<f64>,
}

impl Case {
    fn place(&self, i: usize) -> (usize, usize) {
        let channels = self.images.channels;
        (i / (self.images.pixels() * channels), i % channels)
    }

    fn group(&self, i: usize) -> usize {
        let (image, c) = self.place(i);
        image * self.groups + c / (self.images.channels / self.groups)
    }

    /// 1 + scale and shift of a number's channel.
    fn adaptive(&self, i: usize) -> (f64, f64) {
        let ((image, c), channels) = (self.place(i), self.images.channels);
        let row = 2 * image * channels;
        let [scale, shift] = [c, channels + c].map(|c| self.scale_shift[row + c]);
        (1.0 + scale, shift)
    }

    /// Mean over each group of something of each number.
    fn group_means(&self, of: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.images.count * self.groups];
        (0..self.x.len()).for_each(|i| sums[self.group(i)] += of(i));
        let length = (self.x.len() / sums.len()) as f64;
        sums.iter().map(|sum| sum / length).collect()
    }

    /// Mean and 1 / s of each group.
    fn statistics(&self) -> Vec<(f64, f64)> {
        let means = self.group_means(|i| self.x[i]);
        let variances = self.group_means(|i| (self.x[i] - means[self.group(i)]).powi(2));
        let pairs = means.into_iter().zip(variances);
        pairs
            .map(|(mean, variance)| (mean, 1.0 / (variance + f64::from(EPS)).sqrt()))
            .collect()
    }

    fn hats(&self) -> Vec<f64> {
        let statistics = self.statistics();
        let hat = |i: usize| {
            let (mean, inverse) = statistics[self.group(i)];
            (self.x[i] - mean) * inverse
        };
        (0..self.x.len()).map(hat).collect()
    }

    fn z(&self) -> Vec<f64> {
        let z = |(i, hat): (usize, f64)| {
            let ((_, c), (scale, shift)) = (self.place(i), self.adaptive(i));
            (self.gamma[c] * hat + self.beta[c]) * scale + shift
        };
        self.hats().into_iter().enumerate().map(z).collect()
    }

    /// Σ g of the result.
    fn loss(&self, g: &[f64]) -> f64 {
        let of = |z: f64| {
            if self.silu { z / (1.0 + (-z).exp()) } else { z }
        };
        self.z().iter().zip(g).map(|(&z, g)| g * of(z)).sum()
    }

    fn gradients(&self, g: &[f64]) -> Gradients {
        let (hats, z, statistics) = (self.hats(), self.z(), self.statistics());
        let slope = |z: f64| {
            let s = 1.0 / (1.0 + (-z).exp());
            s * (1.0 + z * (1.0 - s))
        };
        let d: Vec<f64> = z
            .iter()
            .zip(g)
            .map(|(&z, g)| if self.silu { g * slope(z) } else { *g })
            .collect();
        let channels = self.images.channels;
        let mut to = Gradients {
            gamma: vec![0.0; channels],
            beta: vec![0.0; channels],
            scale_shift: vec![0.0; 2 * self.images.count * channels],
            ..Gradients::default()
        };
        for i in 0..d.len() {
            let ((image, c), (scale, _)) = (self.place(i), self.adaptive(i));
            to.gamma[c] += scale * d[i] * hats[i];
            to.beta[c] += scale * d[i];
            let row = 2 * image * channels;
            to.scale_shift[row + c] += d[i] * (self.gamma[c] * hats[i] + self.beta[c]);
            to.scale_shift[row + channels + c] += d[i];
        }
        let h = |i: usize| self.gamma[self.place(i).1] * self.adaptive(i).0 * d[i];
        let (means, with_x) = (self.group_means(h), self.group_means(|i| h(i) * hats[i]));
        let dx = |i: usize| {
            let group = self.group(i);
            statistics[group].1 * (h(i) - means[group] - hats[i] * with_x[group])
        };
        to.x = (0..d.len()).map(dx).collect();
        to
    }
}

fn doubles(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// What a check is of.
#[derive(Clone, Copy, Debug)]
struct Kinds {
    images: Images,
    channels: &'static [usize],
    groups: usize,
    silu: bool,
    adaptive: bool,
    /// Whether parts have a bias, and a vector.
    shifted: [bool; 2],
    mean: f32,
}

/// All that a check is given.
struct Inputs {
    of: Kinds,
    parts: KeptParts,
    /// Of all parts side by side: [C] and [B, C].
    bias: Vec<f32>,
    vector: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    scale_shift: Vec<f32>,
}

impl Inputs {
    fn new(of: Kinds) -> Inputs {
        let images = of.images;
        let (channels, count) = (images.channels, images.count);
        let numbers = wave(images.numbers(), 1);
        // Channels of a group differ in mean and deviation.
        let spread = |(i, x): (usize, &f32)| {
            let c = (i % channels) as f32;
            of.mean + x * (1.0 + 0.1 * c.min(9.0)) + 0.2 * (c % 3.0)
        };
        let numbers: Vec<f32> = numbers.iter().enumerate().map(spread).collect();
        let times =
            |by: f32, numbers: Vec<f32>| -> Vec<f32> { numbers.iter().map(|x| by * x).collect() };
        Inputs {
            of,
            parts: KeptParts::of(images, of.channels, &numbers),
            bias: times(f32::from(u8::from(of.shifted[0])), wave(channels, 2)),
            vector: times(
                f32::from(u8::from(of.shifted[1])),
                wave(count * channels, 3),
            ),
            gamma: wave(channels, 4),
            beta: wave(channels, 5),
            scale_shift: times(
                f32::from(u8::from(of.adaptive)),
                wave(2 * count * channels, 6),
            ),
        }
    }

    fn case(&self) -> Case {
        let images = self.of.images;
        let channels = images.channels;
        let x = |(i, &x): (usize, &f32)| {
            let (image, c) = (i / (images.pixels() * channels), i % channels);
            f64::from(x) + f64::from(self.bias[c]) + f64::from(self.vector[image * channels + c])
        };
        Case {
            images,
            groups: self.of.groups,
            silu: self.of.silu,
            x: self.parts.whole.iter().enumerate().map(x).collect(),
            gamma: doubles(&self.gamma),
            beta: doubles(&self.beta),
            scale_shift: doubles(&self.scale_shift),
        }
    }
}

/// The inputs in a machine's memory, and their coefficients.
struct OnHost {
    norm: Norm,
    parts: Vec<Part>,
    unit: Memory,
    coefficients: Memory,
    _memory: Vec<Memory>,
}

impl Inputs {
    fn upload(&self, host: &Host) -> Result<OnHost> {
        let (of, images) = (self.of, self.of.images);
        let (mut memory, parts) = self.parts.upload(host);
        let mut keep = |kept: Memory| {
            let at = host.address(&kept);
            memory.push(kept);
            at
        };
        let norm = Norm {
            images,
            groups: of.groups,
            eps: EPS,
            gamma: keep(host.floats(&self.gamma)),
            beta: keep(host.floats(&self.beta)),
            scale_shift: of.adaptive.then(|| keep(host.floats(&self.scale_shift))),
        };
        let biases = split(&self.bias, of.channels);
        let vectors = split(&self.vector, of.channels);
        let mut norm_parts = Vec::new();
        for (i, &part) in parts.iter().enumerate() {
            let of_part = Images {
                channels: part.channels,
                ..images
            };
            let to = keep(host.allocate(Kind::F32, moments_length(of_part))?);
            moments(host, of_part, part.at, to)?;
            norm_parts.push(NormPart {
                part,
                moments: to,
                bias: of.shifted[0].then(|| keep(host.floats(&biases[i]))),
                vector: of.shifted[1].then(|| keep(host.floats(&vectors[i]))),
            });
        }
        let two = 2 * images.count * images.channels;
        let unit = host.allocate(Kind::F32, two)?;
        let ab = host.allocate(Kind::F32, two)?;
        let (to_unit, to_ab) = (host.address(&unit), host.address(&ab));
        coefficients(host, &norm, &norm_parts, to_unit, to_ab)?;
        Ok(OnHost {
            norm,
            parts,
            unit,
            coefficients: ab,
            _memory: memory,
        })
    }
}

/// Sizes with whole packs and without, with groups that span two parts, of few and many chunks.
fn sizes() -> Vec<Kinds> {
    let sizes: [(&[usize], usize, [usize; 3]); 10] = [
        (&[24], 3, [3, 5, 7]),
        (&[8, 16], 2, [2, 5, 7]),
        (&[8, 8, 16, 8], 5, [2, 4, 4]),
        (&[5, 4], 3, [3, 3, 5]),
        (&[3, 5], 1, [2, 33, 20]),
        (&[3, 1, 4, 4], 2, [2, 2, 3]),
        (&[16, 8], 8, [2, 33, 20]),
        (&[608], 2, [1, 3, 2]),
        (&[1600, 960], 32, [1, 1, 3]),
        (&[1], 1, [1, 17, 9]),
    ];
    let kinds = sizes.iter().enumerate().flat_map(|(i, size)| {
        KINDS.map(|kind| {
            let (channels, groups, [count, height, width]) = *size;
            Kinds {
                images: Images {
                    kind,
                    count,
                    height,
                    width,
                    channels: channels.iter().sum(),
                },
                channels,
                groups,
                silu: i % 3 != 1,
                adaptive: i % 2 == 0,
                shifted: [i % 4 < 2, i % 3 == 0],
                mean: 0.0,
            }
        })
    });
    kinds.collect()
}

#[test]
fn coefficients_make_a_mean_of_0_and_a_variance_of_1() {
    for of in sizes() {
        for shifted in [[false; 2], [true, false], [false, true], [true; 2]] {
            check_coefficients(Kinds { shifted, ..of }, 4e-6);
        }
    }
}

/// Single precision has seven digits, of which the mean takes three.
#[test]
fn a_mean_far_from_zero() {
    for of in sizes() {
        if of.images.kind == Kind::F32 {
            let far = Kinds { mean: 500.0, ..of };
            check_coefficients(far, 4e-4);
            check_gradient(far, 1e-3);
        }
    }
}

/// What unit and coefficients make of x as it is stored.
fn check_coefficients(of: Kinds, tolerance: f64) {
    let inputs = Inputs::new(of);
    let ran = Host::both_ways(|host| {
        let on = inputs.upload(host)?;
        Ok(vec![on.unit.read(), on.coefficients.read()])
    });
    let Some(ran) = ran else { return };
    let case = inputs.case();
    let applied = |pairs: &[f32]| -> Vec<f32> {
        let of = |(i, &x): (usize, &f32)| {
            let (image, c) = case.place(i);
            let at = 2 * (image * of.images.channels + c);
            (f64::from(pairs[at]) * f64::from(x) + f64::from(pairs[at + 1])) as f32
        };
        inputs.parts.whole.iter().enumerate().map(of).collect()
    };
    let what = format!("x_hat of {of:?}");
    assert_near(&what, &applied(&ran[0]), &case.hats(), tolerance);
    assert_near(
        &format!("z of {of:?}"),
        &applied(&ran[1]),
        &case.z(),
        tolerance,
    );
}

#[test]
fn gradients_are_those_of_the_formulas() {
    for of in sizes() {
        for (silu, adaptive) in [(true, true), (false, false)] {
            let of = Kinds {
                silu,
                adaptive,
                ..of
            };
            check_gradient(of, 1e-5);
        }
        check_gradient(of, 1e-5);
    }
}

fn check_gradient(of: Kinds, tolerance: f64) {
    let (images, kind) = (of.images, of.images.kind);
    let inputs = Inputs::new(of);
    let g = KeptParts::of(images, of.channels, &wave(images.numbers(), 7));
    let before = KeptParts::of(images, of.channels, &wave(images.numbers(), 8));
    let (channels, two) = (images.channels, 2 * images.count * images.channels);
    let of_affine = [wave(channels, 9), wave(channels, 10), wave(two, 11)];
    // With several parts the second has none; others are written and added in turn.
    let skipped = |part: usize| part == 1 && of.channels.len() > 2;
    let added = |part: usize| part % 2 == of.groups % 2;
    let ran = Host::both_ways(|host| {
        let on = inputs.upload(host)?;
        let memory = host.numbers(kind, &g.whole);
        let (to_parts, to) = before.upload(host);
        let sink = |part: usize, at: Address| Sink {
            at,
            accumulate: added(part),
        };
        let to: Vec<Option<Sink>> = to
            .iter()
            .enumerate()
            .map(|(i, part)| (!skipped(i)).then(|| sink(i, part.at)))
            .collect();
        let affine = of_affine.each_ref().map(|numbers| host.floats(numbers));
        let [gamma, beta, scale_shift] = affine.each_ref().map(|memory| host.address(memory));
        let scratch = host.allocate(Kind::F32, norm_gradient_scratch(images))?;
        let gradient = NormGradient {
            norm: on.norm,
            silu: of.silu,
            parts: &on.parts,
            unit: host.address(&on.unit),
            coefficients: host.address(&on.coefficients),
        };
        norm_gradient(
            host,
            &gradient,
            host.address(&memory),
            &to,
            sink(0, gamma),
            sink(1, beta),
            of.adaptive.then(|| sink(0, scale_shift)),
            host.address(&scratch),
        )?;
        scratch.read();
        assert_eq!(memory.read(), g.whole, "the gradient of the result stays");
        Ok(to_parts.iter().chain(&affine).map(Memory::read).collect())
    });
    let Some(ran) = ran else { return };

    let expected = inputs.case().gradients(&doubles(&g.whole));
    let plus = |part: usize, before: &[f32], gradient: &[f64]| -> Vec<f64> {
        let before = before
            .iter()
            .map(|&x| if added(part) { x.into() } else { 0.0 });
        before.zip(gradient).map(|(a, b)| a + b).collect()
    };
    let mut first = 0;
    for (i, &width) in of.channels.iter().enumerate() {
        let of_part = expected.x.chunks(channels);
        let of_part: Vec<f64> = of_part
            .flat_map(|pixel| pixel[first..first + width].to_vec())
            .collect();
        first += width;
        let (what, before) = (format!("dx of part {i} of {of:?}"), &before.each[i].0);
        if skipped(i) {
            assert_eq!(&ran[i], before, "{what}");
            continue;
        }
        let of_part = plus(i, before, &of_part);
        assert_near(&what, &ran[i], &of_part, allowed(kind, tolerance));
    }
    let [to_gamma, to_beta, to_scale_shift] = &ran[of.channels.len()..] else {
        panic!("three gradients")
    };
    let check = |name: &str, part: usize, i: usize, actual: &[f32], expected: &[f64]| {
        let expected = plus(part, &of_affine[i], expected);
        assert_near(&format!("{name} of {of:?}"), actual, &expected, tolerance);
    };
    check("dgamma", 0, 0, to_gamma, &expected.gamma);
    check("dbeta", 1, 1, to_beta, &expected.beta);
    if of.adaptive {
        check(
            "dscale and dshift",
            0,
            2,
            to_scale_shift,
            &expected.scale_shift,
        );
    } else {
        assert_eq!(to_scale_shift, &of_affine[2]);
    }
}

#[test]
fn the_formulas_are_those_of_differences() {
    let images = Images {
        kind: Kind::F32,
        count: 2,
        height: 2,
        width: 3,
        channels: 6,
    };
    for (groups, silu) in [(2, true), (3, false), (1, true), (6, true)] {
        let of = Kinds {
            images,
            channels: &[6],
            groups,
            silu,
            adaptive: true,
            shifted: [true; 2],
            mean: 0.0,
        };
        let case = Inputs::new(of).case();
        let g = doubles(&wave(images.numbers(), 7));
        let expected = case.gradients(&g);
        fn differences(
            case: &Case,
            g: &[f64],
            at: impl Fn(&mut Case) -> &mut Vec<f64>,
        ) -> Vec<f32> {
            let moved = |i: usize, by: f64| {
                let mut other = case.clone();
                at(&mut other)[i] += by;
                other.loss(g)
            };
            let length = at(&mut case.clone()).len();
            let slope = |i: usize| ((moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5) as f32;
            (0..length).map(slope).collect()
        }
        let near = |name: &str, actual: Vec<f32>, expected: &[f64]| {
            assert_near(&format!("{name} of {groups}"), &actual, expected, 1e-6);
        };
        near("x", differences(&case, &g, |case| &mut case.x), &expected.x);
        let of_gamma = differences(&case, &g, |case| &mut case.gamma);
        near("gamma", of_gamma, &expected.gamma);
        let of_beta = differences(&case, &g, |case| &mut case.beta);
        near("beta", of_beta, &expected.beta);
        let of_both = differences(&case, &g, |case| &mut case.scale_shift);
        near("scale and shift", of_both, &expected.scale_shift);
    }
}

#[test]
fn groups_of_several_sizes_are_refused() {
    let ran = Host::both_ways(|host| {
        let mut on = Inputs::new(sizes()[0]).upload(host)?;
        on.norm.groups = 5;
        let part = NormPart {
            part: on.parts[0],
            moments: on.parts[0].at,
            bias: None,
            vector: None,
        };
        let at = host.address(&on.unit);
        let refused = coefficients(host, &on.norm, &[part], at, at).unwrap_err();
        let expected = "cuda: 24 channels in 5 groups, expected groups of one size";
        assert!(refused.to_string().starts_with(expected), "{refused}");
        Ok(vec![])
    });
    drop(ran);
}
