//! Blocks, layers and whole pipelines, from PyTorch's generator alone: diffusers' own expectations, without its files.

use candle_core::{Device, Tensor};
use ddpm_random::TorchGenerator;
use ddpm_samplers::{Choice, SamplerKind, SchedulerConfig};
use ddpm_unet::{
    Block, DownBlock, ResnetChange, UNet, UNetConfig, UNetSettings, UpBlock, initialise_as_torch,
    timestep_embedding,
};

use super::row::Row;

const BLOCKS: &str = "diffusers, tests/models/unets/test_unet_2d_blocks.py";
const LAYERS: &str = "diffusers, tests/models/test_layers_utils.py";
const DDPM: &str = "diffusers, tests/pipelines/ddpm/test_ddpm.py";
const DDIM: &str = "diffusers, tests/pipelines/ddim/test_ddim.py";

/// All rows of networks.
pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(down_blocks());
    rows.extend(mid_block());
    rows.extend(up_blocks());
    rows.extend(embeddings());
    rows.extend(resampling_layers());
    rows.extend(residual_layers());
    rows.extend(pipelines());
    rows
}

/// What diffusers' blocks have by default.
fn defaults() -> UNetSettings {
    UNetSettings {
        time_embedding_dim: Some(128),
        attention_head_dim: Some(1),
        norm_eps: 1e-6,
        ..UNetSettings::default()
    }
}

/// The state and the time embedding of the tests of blocks, from seed 0.
fn state_and_time(generator: &mut TorchGenerator) -> (Tensor, Tensor) {
    let mut draw = |shape: &[usize]| generator.normal(shape, &Device::Cpu).unwrap();
    (draw(&[4, 32, 32, 32]), draw(&[4, 128]))
}

/// The last three rows and columns of the last channel of the first image.
fn corner(image: &Tensor) -> Vec<f64> {
    let (_, channels, height, width) = image.dims4().unwrap();
    let plane = image.get(0).unwrap().get(channels - 1).unwrap();
    let part = plane.narrow(0, height - 3, 3).unwrap();
    numbers(&part.narrow(1, width - 3, 3).unwrap())
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let numbers = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers.into_iter().map(f64::from).collect()
}

fn down_blocks() -> Vec<Row> {
    let expected: [(DownBlock, [f64; 9]); 5] = [
        (
            DownBlock::Down,
            [
                -0.0232, -0.9869, 0.8054, -0.0637, -0.1688, -1.4264, 0.4470, -1.3394, 0.0904,
            ],
        ),
        (
            DownBlock::ResnetDown,
            [
                0.0710, 0.2410, -0.7320, -1.0757, -1.1343, 0.3540, -0.0133, -0.2576, 0.0948,
            ],
        ),
        (
            DownBlock::AttnDown,
            [
                0.0636, 0.8964, -0.6234, -1.0131, 0.0844, 0.4935, 0.3437, 0.0911, -0.2957,
            ],
        ),
        (
            DownBlock::SkipDown,
            [
                -0.0845, -0.2087, -0.2465, 0.0971, 0.1900, -0.0484, 0.2664, 0.4179, 0.5069,
            ],
        ),
        (
            DownBlock::AttnSkipDown,
            [
                0.5539, 0.1609, 0.4924, 0.0537, -0.1995, 0.4050, 0.0979, -0.2721, -0.0642,
            ],
        ),
    ];
    let of = |(kind, expected): (DownBlock, [f64; 9])| {
        let generator = &mut TorchGenerator::new(0);
        let (x, time) = state_and_time(generator);
        let skip = matches!(kind, DownBlock::SkipDown | DownBlock::AttnSkipDown);
        let image = skip.then(|| generator.normal(&[4, 3, 32, 32], &Device::Cpu).unwrap());
        let block = Block::down(&defaults(), kind, &[32], 32);
        let weights = block.initialise_as_torch(generator, &Device::Cpu).unwrap();
        let output = block.forward(&weights, &x, &time, &[], image.as_ref());
        let ours = corner(&output.unwrap().state);
        Row::slice(kind.name(), BLOCKS, &expected, &ours, 5e-3)
    };
    expected.into_iter().flat_map(of).collect()
}

fn mid_block() -> Vec<Row> {
    let expected = [
        -0.1062, 1.7248, 0.3494, 1.4569, -0.0910, -1.2421, -0.9984, 0.6736, 1.0028,
    ];
    let generator = &mut TorchGenerator::new(0);
    let (x, time) = state_and_time(generator);
    let block = Block::mid(&defaults(), 32);
    let weights = block.initialise_as_torch(generator, &Device::Cpu).unwrap();
    let output = block.forward(&weights, &x, &time, &[], None).unwrap();
    let ours = corner(&output.state);
    Row::slice("UNetMidBlock2D", BLOCKS, &expected, &ours, 5e-3)
}

/// What comes from the way down is drawn from seed 1, and the weights after it.
fn up_blocks() -> Vec<Row> {
    let expected: [(UpBlock, [f64; 9]); 5] = [
        (
            UpBlock::Up,
            [
                -0.2041, -0.4165, -0.3022, 0.0041, -0.6628, -0.7053, 0.1928, -0.0325, 0.0523,
            ],
        ),
        (
            UpBlock::ResnetUp,
            [
                0.2287, 0.3549, -0.1346, 0.4797, -0.1715, -0.9649, 0.7305, -0.5864, -0.6244,
            ],
        ),
        (
            UpBlock::AttnUp,
            [
                0.0979, 0.1326, 0.0021, 0.0659, 0.2249, 0.0059, 0.1132, 0.5952, 0.1033,
            ],
        ),
        (
            UpBlock::SkipUp,
            [
                -0.0893, -0.1234, -0.1506, -0.0332, 0.0123, -0.0211, 0.0566, 0.0143, 0.0362,
            ],
        ),
        (
            UpBlock::AttnSkipUp,
            [
                0.0361, 0.0617, 0.2787, -0.0350, 0.0342, 0.3421, -0.0843, 0.0913, 0.3015,
            ],
        ),
    ];
    let of = |(kind, expected): (UpBlock, [f64; 9])| {
        let (x, time) = state_and_time(&mut TorchGenerator::new(0));
        let generator = &mut TorchGenerator::new(1);
        let skips = [generator.normal(&[4, 32, 32, 32], &Device::Cpu).unwrap()];
        let block = Block::up(&defaults(), kind, &[(32, 32)], 32);
        let weights = block.initialise_as_torch(generator, &Device::Cpu).unwrap();
        let output = block.forward(&weights, &x, &time, &skips, None).unwrap();
        let ours = corner(&output.state);
        Row::slice(kind.name(), BLOCKS, &expected, &ours, 5e-3)
    };
    expected.into_iter().flat_map(of).collect()
}

fn embeddings() -> Vec<Row> {
    let of = |what, shift, flip, scale: f64, expected: [f64; 9]| {
        let times: Vec<f64> = (0..128).map(|t| scale * f64::from(t)).collect();
        let rows = timestep_embedding(&times, 64, shift, flip, &Device::Cpu).unwrap();
        let part = rows.narrow(0, 23, 3).unwrap().narrow(1, 47, 3).unwrap();
        Row::slice(what, LAYERS, &expected, &numbers(&part), 1e-3)
    };
    let ho = [
        0.9646, 0.9804, 0.9892, 0.9615, 0.9787, 0.9882, 0.9582, 0.9769, 0.9872,
    ];
    let openai = [
        0.3019, 0.2280, 0.1716, 0.3146, 0.2377, 0.1790, 0.3272, 0.2474, 0.1864,
    ];
    let mut rows = of("sinusoids, freq_shift 1", 1, false, 1.0, ho);
    rows.extend(of("sinusoids, cosines first", 0, true, 1.0, openai));
    // diffusers' `scale` multiplies the angles, which is to multiply the times.
    let scaled = [
        -0.9801, -0.9464, -0.9349, -0.3952, 0.8887, -0.9709, 0.5299, -0.2853, -0.9927,
    ];
    rows.extend(of("sinusoids, scale 1000", 1, false, 1000.0, scaled));
    rows
}

fn resampling_layers() -> Vec<Row> {
    let unused = Tensor::zeros((1, 128), candle_core::DType::F32, &Device::Cpu).unwrap();
    let convolved = |block: Block, side: usize| {
        let generator = &mut TorchGenerator::new(0);
        let x = generator
            .normal(&[1, 32, side, side], &Device::Cpu)
            .unwrap();
        let weights = block.initialise_as_torch(generator, &Device::Cpu).unwrap();
        corner(
            &block
                .forward(&weights, &x, &unused, &[], None)
                .unwrap()
                .state,
        )
    };
    let up = convolved(Block::up(&defaults(), UpBlock::Up, &[], 32), 32);
    let down = convolved(Block::down(&defaults(), DownBlock::Down, &[], 32), 64);
    let x = TorchGenerator::new(0).normal(&[1, 32, 64, 64], &Device::Cpu);
    let mean = corner(&ddpm_kernels::average_pool_2x(&x.unwrap()).unwrap());
    let expected = [
        (
            "Upsample2D, convolution",
            up,
            [
                0.7145, 1.3773, 0.3492, 0.8448, 1.0839, -0.3341, 0.5956, 0.1250, -0.4841,
            ],
        ),
        (
            "Downsample2D, convolution",
            down,
            [
                0.9267, 0.5878, 0.3337, 1.2321, -0.1191, -0.3984, -0.7532, -0.0715, -0.3913,
            ],
        ),
        (
            "Downsample2D, means",
            mean,
            [
                -0.0513, -0.3889, 0.0640, 0.0836, -0.5460, -0.0341, -0.0169, -0.6967, 0.1179,
            ],
        ),
    ];
    let of = |(what, ours, expected): (&str, Vec<f64>, [f64; 9])| {
        Row::slice(what, LAYERS, &expected, &ours, 1e-3)
    };
    expected.into_iter().flat_map(of).collect()
}

fn residual_layers() -> Vec<Row> {
    let expected: [(&str, bool, ResnetChange, [f64; 9]); 5] = [
        (
            "ResnetBlock2D",
            false,
            ResnetChange::None,
            [
                -1.9010, -0.2974, -0.8245, -1.3533, 0.8742, -0.9645, -2.0584, 1.3387, -0.4746,
            ],
        ),
        (
            "ResnetBlock2D, shortcut",
            true,
            ResnetChange::None,
            [
                0.2226, -1.0791, -0.1629, 0.3659, -0.2889, -1.2376, 0.0582, 0.9206, 0.0044,
            ],
        ),
        (
            "ResnetBlock2D, up",
            false,
            ResnetChange::Up,
            [
                1.2130, -0.8753, -0.9027, 1.5783, -0.5362, -0.5001, 1.0726, -0.7732, -0.4182,
            ],
        ),
        (
            "ResnetBlock2D, down",
            false,
            ResnetChange::Down,
            [
                -0.3002, -0.7135, 0.1359, 0.0561, -0.7935, 0.0113, -0.1766, -0.6714, -0.0436,
            ],
        ),
        (
            "ResnetBlock2D, down by FIR",
            false,
            ResnetChange::FirDown,
            [
                -0.0934, -0.5729, 0.0909, -0.2710, -0.5044, 0.0243, -0.0665, -0.5267, -0.3136,
            ],
        ),
    ];
    let of = |(what, shortcut, change, expected): (&str, bool, ResnetChange, [f64; 9])| {
        let generator = &mut TorchGenerator::new(0);
        let mut draw = |shape: &[usize]| generator.normal(shape, &Device::Cpu).unwrap();
        let (x, time) = (draw(&[1, 32, 64, 64]), draw(&[1, 128]));
        let block = Block::resnet(&defaults(), (32, 32), shortcut, change);
        let weights = block.initialise_as_torch(generator, &Device::Cpu).unwrap();
        let output = block.forward(&weights, &x, &time, &[], None).unwrap();
        Row::slice(what, LAYERS, &expected, &corner(&output.state), 1e-3)
    };
    expected.into_iter().flat_map(of).collect()
}

/// The fast tests of both pipelines: network, x_T and noise all from seed 0, two steps.
fn pipelines() -> Vec<Row> {
    let mut rows = Row::slice(
        "DDPMPipeline, 2 steps",
        DDPM,
        &[
            0.0, 0.9996672, 0.00329116, 1.0, 0.9995991, 1.0, 0.0060907, 0.00115037, 0.0,
        ],
        &pipeline(r#"{"_class_name": "DDPMScheduler"}"#, SamplerKind::Ddpm),
        1e-2,
    );
    rows.extend(Row::slice(
        "DDIMPipeline, 2 steps",
        DDIM,
        &[0.0, 0.9979, 0.0, 0.9999, 0.9986, 0.9991, 7.106e-4, 0.0, 0.0],
        &pipeline(r#"{"_class_name": "DDIMScheduler"}"#, SamplerKind::Ddim),
        1e-3,
    ));
    rows
}

fn pipeline(scheduler: &str, kind: SamplerKind) -> Vec<f64> {
    let settings = UNetSettings {
        layers_per_block: 1,
        norm_num_groups: Some(4),
        ..UNetSettings::default()
    };
    let config = UNetConfig::new(settings.with_levels(&[(4, false), (8, true)])).unwrap();
    let weights = initialise_as_torch(&config, &mut TorchGenerator::new(0), &Device::Cpu);
    let network = UNet::new(&config, &weights.unwrap()).unwrap();

    let generator = &mut TorchGenerator::new(0);
    let x_t = generator.normal(&[1, 3, 8, 8], &Device::Cpu).unwrap();
    let scheduler = SchedulerConfig::from_json(scheduler).unwrap();
    let choice = Choice::steps(2).as_diffusers();
    let sampler = scheduler.with_kind(kind).unwrap().sampler(&choice).unwrap();
    let mut x = x_t.clone();
    for step in sampler.walk(&network, &x_t, generator) {
        x = step.unwrap().x;
    }
    let pixels = ((x * 0.5).unwrap() + 0.5).unwrap().clamp(0f32, 1f32);
    corner(&pixels.unwrap())
}
