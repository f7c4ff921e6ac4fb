//! The numbers themselves: pinned, and the same whoever asks, in whatever company.
//!
//! The literals come from `tests/golden/noise.py`, which knows nothing of this crate: plain Python
//! with its own logarithm, cosine and sine. If one of them changes, every seed anybody has noted
//! down changes its meaning.

#![allow(
    clippy::unwrap_used,
    reason = "the functions that the tests share are tests as well"
)]

use candle_core::{DType, Device, Tensor};
use ddpm_core::NoiseSource;
use ddpm_random::{
    FixedNoise, Permutation, SampleNoise, Stream, normal_batch, normal_into, sample_start,
    uniform_batch, uniform_f64, uniform_into, uniform_u64_below,
};
use ddpm_tests::device;

const SEED: u64 = 0x0123_4567_89AB_CDEF;
const IMAGE: u64 = (1 << 40) + 3;
const STEP: u64 = 5;

/// Eight normals of each stream at `SEED`, `IMAGE`, `STEP`, in the order of [`Stream::ALL`].
#[rustfmt::skip]
const NORMALS: [[f32; 8]; 10] = [
    [0.7497305, 2.4497218, 0.5375707, -1.5135325, -0.24400663, 0.8200517, 3.3098488, -1.5267923],
    [-1.0769246, -0.58552545, -2.5554636, -0.5364928, -0.9461602, -1.1125518, -0.31096897, -1.7798645],
    [-1.277544, -1.1317834, -0.7341177, 0.54751027, 1.1560807, 1.0310147, -0.9713893, 0.655274],
    [-0.7048308, -1.5879916, 0.6737934, -0.6436711, -0.45958048, 1.9384769, -1.3929448, -0.86573243],
    [-0.24289858, 0.48504862, -0.07291067, 1.0588113, 0.20793314, 0.57784414, 0.79911023, -0.5776758],
    [-0.5158972, -0.9774416, 1.222554, -0.81440645, -0.571544, 1.0684987, 0.64807355, 0.5170618],
    [0.14600122, -0.20088653, 0.8001366, 1.8699104, 0.48413724, 2.7904308, -0.92094034, -0.26547122],
    [2.237204, -1.4345192, -0.6117892, -0.14802063, 0.58032113, 0.9304328, 0.66765904, 1.0441686],
    [-0.64835525, 0.6833986, 0.586498, -0.9515669, -0.11801967, 0.32505354, 0.03245241, -0.7844356],
    [1.2555729, 0.30923468, -0.17174658, 0.16729799, 1.042659, 0.29879293, 0.67612386, 0.21152957],
];

fn normals(seed: u64, stream: Stream, image: u64, step: u64, n: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n];
    normal_into(seed, stream, image, step, &mut out).unwrap();
    out
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn normals_are_pinned_in_every_stream() {
    for (stream, expected) in Stream::ALL.into_iter().zip(NORMALS) {
        assert_eq!(
            normals(SEED, stream, IMAGE, STEP, 8),
            expected,
            "{stream:?}"
        );
    }
}

/// A million normals in one number, so that a processor or system that differs in one bit anywhere
/// is seen. This literal is ours; the compiler's optimisation levels and x86 levels agree on it.
#[test]
fn a_million_normals_are_pinned() {
    let hash = normals(SEED, Stream::TrainingNoise, 0, 0, 1 << 20)
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, z| {
            (hash ^ u64::from(z.to_bits())).wrapping_mul(0x100_0000_01B3)
        });
    assert_eq!(hash, 864_026_656_759_755_003);
}

#[test]
fn uniforms_are_pinned() {
    let mut out = [f32::NAN; 8];
    uniform_into(SEED, Stream::Dropout, IMAGE, STEP, &mut out).unwrap();
    let expected = [
        0.2210753, 0.68351644, 0.64781183, 0.8786382, 0.1374557, 0.28704888, 0.2605673, 0.588504,
    ];
    assert_eq!(out, expected);
    let drawn = uniform_f64(SEED, Stream::Timestep, IMAGE, STEP).unwrap();
    assert_eq!(drawn, 0.5792583007066863);
}

#[test]
fn integers_are_pinned() {
    let cases = [
        (1, 0),
        (2, 1),
        (10, 5),
        (1000, 579),
        (1 << 32, 2487895457),
        (3 << 62, 8014072219281098021),
        (u64::MAX, 10685429625708130694),
    ];
    for (n, expected) in cases {
        let drawn = uniform_u64_below(SEED, Stream::Timestep, IMAGE, STEP, n).unwrap();
        assert_eq!(drawn, expected, "below {n}");
    }
    // A quarter of the words is passed over for this n.
    let expected = [
        5291391963304245725,
        13415965695780054321,
        11978134481105188747,
        7192571479464727585,
        7275139152024689262,
        5120943003261697650,
        10909225935090249770,
        997418232290941633,
    ];
    for (image, expected) in expected.into_iter().enumerate() {
        let drawn = uniform_u64_below(SEED, Stream::Timestep, image as u64, 0, 3 << 62).unwrap();
        assert_eq!(drawn, expected);
    }
}

#[test]
fn the_order_of_an_epoch_is_pinned() {
    let order = Permutation::new(SEED, 2, 12).unwrap();
    assert_eq!(order.as_slice(), [0, 11, 5, 10, 2, 9, 4, 3, 7, 8, 1, 6]);
    assert_eq!(
        (order.get(1), order.len(), order.is_empty()),
        (11, 12, false)
    );
    assert!(Permutation::new(SEED, 2, 0).unwrap().is_empty());
    assert_eq!(Permutation::new(SEED, 2, 1).unwrap().as_slice(), [0]);
}

#[test]
fn an_order_visits_every_image_once() {
    for n in [2, 3, 10, 1797, 60_000] {
        let orders = [(1, 0), (1, 1), (2, 0)].map(|(seed, epoch)| {
            let order = Permutation::new(seed, epoch, n).unwrap();
            let mut sorted = order.as_slice().to_vec();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n));
            order
        });
        if n >= 10 {
            assert!(orders[0] != orders[1] && orders[0] != orders[2] && orders[1] != orders[2]);
        }
    }
}

#[test]
fn fewer_elements_are_the_first_of_many() {
    // 16,384 elements are one task, 64 one group, 4 one block.
    let many = normals(1, Stream::SampleStart, 2, 3, 40_007);
    for n in [
        0, 1, 2, 3, 4, 5, 63, 64, 65, 784, 3072, 16_383, 16_384, 16_385, 32_769,
    ] {
        assert_eq!(
            normals(1, Stream::SampleStart, 2, 3, n),
            many[..n],
            "{n} elements"
        );
    }
    let mut uniforms = vec![f32::NAN; 40_007];
    uniform_into(1, Stream::Dropout, 2, 3, &mut uniforms).unwrap();
    let mut few = vec![f32::NAN; 16_387];
    uniform_into(1, Stream::Dropout, 2, 3, &mut few).unwrap();
    assert_eq!(few, uniforms[..16_387]);
    assert!(uniforms.iter().all(|u| (0.0..1.0).contains(u)));
}

#[test]
fn a_batch_is_its_images_one_by_one() {
    let images = [7, 0, 1 << 43, 7, 5];
    let shape = (3, 4, 6);
    let batch = normal_batch(9, Stream::TrainingNoise, &images, 2, shape, &device()).unwrap();
    assert_eq!(
        (batch.dims(), batch.dtype()),
        (&[5, 3, 4, 6][..], DType::F32)
    );
    let masks = uniform_batch(9, Stream::Dropout, &images, 2, shape, &device()).unwrap();
    for (row, &image) in images.iter().enumerate() {
        let alone = normals(9, Stream::TrainingNoise, image, 2, 72);
        assert_eq!(numbers(&batch.get(row).unwrap()), alone);
        let mut alone = [f32::NAN; 72];
        uniform_into(9, Stream::Dropout, image, 2, &mut alone).unwrap();
        assert_eq!(numbers(&masks.get(row).unwrap()), alone);
    }
    let none = normal_batch(9, Stream::TrainingNoise, &[], 2, shape, &Device::Cpu).unwrap();
    assert_eq!(none.dims(), [0, 3, 4, 6]);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let images: Vec<u64> = (0..37).collect();
    let draw = || {
        let batch = normal_batch(4, Stream::SampleStart, &images, 0, (3, 20, 30), &device());
        (
            numbers(&batch.unwrap()),
            normals(4, Stream::Initialisation, 1, 0, 100_001),
        )
    };
    let [one, two, seven] = [1, 2, 7].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(draw)
    });
    assert!(one == two && one == seven);
}

#[test]
fn every_part_of_the_address_matters() {
    let base = normals(1, Stream::SampleStep, 1, 1, 8);
    let others = [
        normals(2, Stream::SampleStep, 1, 1, 8),
        normals(1 + (1 << 32), Stream::SampleStep, 1, 1, 8),
        normals(1, Stream::SampleStart, 1, 1, 8),
        normals(1, Stream::SampleStep, 2, 1, 8),
        normals(1, Stream::SampleStep, 1 + (1 << 32), 1, 8),
        normals(1, Stream::SampleStep, 1, 2, 8),
        normals(1, Stream::SampleStep, 1, 1 + (1 << 32), 8),
    ];
    for (index, other) in others.iter().enumerate() {
        assert!(base.iter().all(|z| !other.contains(z)), "part {index}");
        assert!(
            others[..index].iter().all(|earlier| earlier != other),
            "part {index}"
        );
    }
}

#[test]
fn a_sample_is_its_own_whatever_the_batch() {
    let like = |n| Tensor::zeros((n, 3, 4, 6), DType::F32, &device()).unwrap();
    let all = sample_start(3, 10, 4, (3, 4, 6), &device()).unwrap();
    let steps = SampleNoise {
        seed: 3,
        first_image: 10,
    }
    .draw(2, &like(4))
    .unwrap();
    assert_eq!(steps.dims(), [4, 3, 4, 6]);
    for row in 0..4u64 {
        let alone = sample_start(3, 10 + row, 1, (3, 4, 6), &device()).unwrap();
        assert_eq!(numbers(&alone), numbers(&all.get(row as usize).unwrap()));
        assert_eq!(
            numbers(&alone),
            normals(3, Stream::SampleStart, 10 + row, 0, 72)
        );
        let mut noise = SampleNoise {
            seed: 3,
            first_image: 10 + row,
        };
        let alone = noise.draw(2, &like(1)).unwrap();
        assert_eq!(numbers(&alone), numbers(&steps.get(row as usize).unwrap()));
        assert_eq!(
            numbers(&alone),
            normals(3, Stream::SampleStep, 10 + row, 2, 72)
        );
    }
}

#[test]
fn noise_has_the_type_and_shape_of_the_images() {
    let mut noise = SampleNoise {
        seed: 3,
        first_image: 0,
    };
    for dtype in [DType::F64, DType::BF16] {
        let like = Tensor::zeros((2, 5), dtype, &device()).unwrap();
        let drawn = noise.draw(0, &like).unwrap();
        assert_eq!((drawn.dtype(), drawn.dims()), (dtype, &[2, 5][..]));
    }
}

#[test]
fn fixed_noise_is_given_in_order() {
    let tensor = |value: f32| Tensor::full(value, (2, 3, 4, 6), &device()).unwrap();
    let mut noise = FixedNoise(vec![tensor(1.0), tensor(2.0)]);
    let like = tensor(0.0);
    assert_eq!(
        numbers(&noise.draw(1, &like).unwrap()),
        numbers(&tensor(2.0))
    );
    assert_eq!(
        numbers(&noise.draw(0, &like).unwrap()),
        numbers(&tensor(1.0))
    );
    let double = noise.draw(0, &like.to_dtype(DType::F64).unwrap()).unwrap();
    assert_eq!(double.dtype(), DType::F64);
    check_core_error(
        noise.draw(2, &like),
        "draw 2 (from 0) asks for more than the 2 draws of fixed noise",
    );
    let other = Tensor::zeros((2, 3, 6, 4), DType::F32, &device()).unwrap();
    check_core_error(
        noise.draw(1, &other),
        "fixed noise of draw 1 has shape [2, 3, 4, 6], the images have shape [2, 3, 6, 4]",
    );
}

#[track_caller]
fn check_core_error<T: std::fmt::Debug>(result: ddpm_core::Result<T>, expected: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, ddpm_core::Error::Noise(_)));
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[track_caller]
fn check_error<T: std::fmt::Debug>(result: ddpm_random::Result<T>, expected: &str) {
    assert_eq!(result.unwrap_err().to_string(), expected);
}

#[test]
fn what_has_no_address_is_an_error() {
    let limit = 1 << 44;
    let image = "image 17592186044416 has no noise: image numbers are below 2^44";
    let step = "step 17592186044416 has no noise: steps are below 2^44";
    let cpu = &Device::Cpu;
    check_error(normal_into(0, Stream::HeldOut, limit, 0, &mut []), image);
    check_error(normal_into(0, Stream::HeldOut, 0, limit, &mut []), step);
    check_error(uniform_into(0, Stream::HeldOut, limit, 0, &mut []), image);
    check_error(uniform_f64(0, Stream::HeldOut, 0, limit), step);
    check_error(uniform_u64_below(0, Stream::HeldOut, limit, 0, 5), image);
    check_error(
        uniform_u64_below(0, Stream::HeldOut, 0, 0, 0),
        "there is no integer below 0 to draw",
    );
    check_error(
        normal_batch(0, Stream::HeldOut, &[0, limit], 0, (1, 2, 3), cpu),
        image,
    );
    check_error(
        uniform_batch(0, Stream::HeldOut, &[0], limit, (1, 2, 3), cpu),
        step,
    );
    check_error(
        normal_batch(0, Stream::HeldOut, &[0], 0, (usize::MAX, 2, 3), cpu),
        "a batch of shape [1, 18446744073709551615, 2, 3] does not fit in memory",
    );
    check_error(
        normal_batch(0, Stream::HeldOut, &[0], 0, (1 << 20, 1 << 15, 1), cpu),
        "34359738368 elements of one image and step: at most 2^34 have noise",
    );
    check_error(Permutation::new(0, limit, 2), step);
    let beyond = "2 images from number 17592186044415 on: image numbers are below 2^44";
    check_error(sample_start(0, limit - 1, 2, (1, 2, 3), cpu), beyond);
    sample_start(0, limit - 1, 1, (1, 2, 3), cpu).unwrap();
    let like = Tensor::zeros((2, 3), DType::F32, cpu).unwrap();
    check_core_error(
        SampleNoise {
            seed: 0,
            first_image: limit - 1,
        }
        .draw(0, &like),
        beyond,
    );
    check_core_error(
        SampleNoise {
            seed: 0,
            first_image: u64::MAX,
        }
        .draw(0, &like),
        "2 images from number 18446744073709551615 on: image numbers are below 2^44",
    );
    let scalar = Tensor::new(1f32, cpu).unwrap();
    check_core_error(
        SampleNoise {
            seed: 0,
            first_image: 0,
        }
        .draw(0, &scalar),
        "noise is drawn for batches: a tensor of at least one axis was expected, not a scalar",
    );
}
