//! The work of a contender: set up on its device, a first pass, and passes as they are asked for.

use std::path::PathBuf;
use std::str::FromStr;

use candle_core::{Device, Tensor};
use ddpm_checkpoint::{Pipeline, TensorFile};
use ddpm_data::Dataset;
use ddpm_random::SampleNoise;
use ddpm_samplers::{Choice, SamplerKind, SchedulerConfig};
use ddpm_train::settings::EmaSettings;
use ddpm_train::{Examples, Objective, Settings, Trainer};
use ddpm_unet::{DeviceName, Place, PrecisionName, UNet, UNetConfig};

use crate::{Outcome, share};

/// What a pass is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A step of the trainer.
    Train,
    /// A call of the network.
    Evaluate,
    /// A walk from x_T to x_0 by DDIM.
    Sample,
}

/// What products are rounded to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    F32,
    /// f32, whose products a card may round to 10 bits.
    Tf32,
    Bf16,
}

/// What a contender was told to do.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) precision: Rounding,
    pub(crate) device: DeviceName,
    pub(crate) folder: PathBuf,
    pub(crate) output: PathBuf,
    /// DDIM steps of a walk.
    pub(crate) steps: usize,
}

/// Steps that a card makes before their losses are read, as ddpm-train lets it at the most.
const AHEAD: usize = 32;

/// Steps after which the images of a walk are compared: with a network that has learnt nothing, twenty turn rounding into other
/// images.
const COMPARED: usize = 2;

/// Makes so many passes and waits for them.
pub(crate) type Passes<'a> = dyn FnMut(usize) -> Outcome<()> + 'a;

impl Job {
    /// Sets the work up and makes its first pass; then `serve` is told what that gave, and has the passes.
    pub(crate) fn begin<R>(
        &self,
        serve: impl FnOnce(&[f32], &mut Passes<'_>) -> Outcome<R>,
    ) -> Outcome<R> {
        let pipeline = Pipeline::load(&self.folder)?;
        let mut file = TensorFile::open(&share::inputs(&self.folder))?;
        let times = file.read_f32("t")?.to_vec1::<f32>()?;
        let settings = self.settings(times.len())?;
        match self.work {
            Work::Train => {
                let objective = Objective::new(&settings.diffusion)?;
                let t = |time: &f32| objective.schedule.timestep(*time as usize + 1);
                let examples = Examples {
                    x_0: file.read_f32("x_0")?,
                    t: times.iter().map(t).collect::<Result<_, _>>()?,
                    eps: file.read_f32("eps")?,
                };
                train(&settings, pipeline.weights, &examples, serve)
            }
            Work::Evaluate => {
                let times: Vec<f64> = times.into_iter().map(f64::from).collect();
                let (network, place) = self.network(pipeline)?;
                evaluate(&network, &place, &file.read_f32("x_t")?, &times, serve)
            }
            Work::Sample => {
                let scheduler = pipeline.scheduler.clone();
                let (network, place) = self.network(pipeline)?;
                let start = file.read_f32("x_last")?;
                sample(&network, &place, &scheduler, (&start, self.steps), serve)
            }
        }
    }

    /// The settings of the folder, for steps of so many images, and for this device. Averages are kept where peers keep them.
    fn settings(&self, batch: usize) -> Outcome<Settings> {
        let mut settings = share::settings(&self.folder)?;
        if self.device != DeviceName::Cpu {
            settings.ema = EmaSettings::default();
        }
        settings.train.batch_size = batch;
        settings.train.device = self.device;
        settings.train.precision = self.precision.name();
        settings.train.tf32 = self.precision.may_use_tf32();
        settings.train.deterministic = false;
        Ok(settings.resolved())
    }

    /// The network as ddpm-sample has it.
    fn network(&self, pipeline: Pipeline) -> Outcome<(UNet, Place)> {
        let place = Place::open(self.device)?;
        place.set_products(self.precision.may_use_tf32(), false);
        let config = config_of(&pipeline)?;
        let network = UNet::new(config, &pipeline.weights)?.to_device(place.device())?;
        let network = network.in_precision(self.precision.name().on_this_processor());
        Ok(match place.goes_by_graph() {
            true => (network.by_graph().frozen(), place),
            false => (network.frozen(), place),
        })
    }
}

impl Rounding {
    fn name(self) -> PrecisionName {
        match self {
            Self::F32 | Self::Tf32 => PrecisionName::F32,
            Self::Bf16 => PrecisionName::Bf16,
        }
    }

    /// What little is f32 beside bf16 need not be better than that.
    fn may_use_tf32(self) -> bool {
        self != Self::F32
    }
}

fn config_of(pipeline: &Pipeline) -> Outcome<&UNetConfig> {
    let config = pipeline.unet.as_unet_2d();
    Ok(config.ok_or("the network is no UNet2DModel")?)
}

fn train<R>(
    settings: &Settings,
    weights: Vec<(String, Tensor)>,
    examples: &Examples,
    serve: impl FnOnce(&[f32], &mut Passes<'_>) -> Outcome<R>,
) -> Outcome<R> {
    let mut trainer = Trainer::with_weights(settings, data_for(examples)?, weights)?;
    let first = trainer.step_on(examples)?;
    let first = [first.loss as f32, first.gradient_norm as f32];
    serve(&first, &mut |passes| {
        for made in (0..passes).step_by(AHEAD) {
            trainer.steps_on(examples, AHEAD.min(passes - made))?;
        }
        Ok(())
    })
}

fn evaluate<R>(
    network: &UNet,
    place: &Place,
    x_t: &Tensor,
    times: &[f64],
    serve: impl FnOnce(&[f32], &mut Passes<'_>) -> Outcome<R>,
) -> Outcome<R> {
    let x_t = x_t.to_device(place.device())?;
    let first = network.forward(&x_t, times)?.flatten_all()?.to_vec1()?;
    serve(&first, &mut |passes| {
        for _ in 0..passes {
            network.forward(&x_t, times)?;
        }
        Ok(place.device().synchronize()?)
    })
}

fn sample<R>(
    network: &UNet,
    place: &Place,
    scheduler: &SchedulerConfig,
    (start, steps): (&Tensor, usize),
    serve: impl FnOnce(&[f32], &mut Passes<'_>) -> Outcome<R>,
) -> Outcome<R> {
    let choice = Choice::steps(steps).as_diffusers();
    let sampler = scheduler.with_kind(SamplerKind::Ddim)?.sampler(&choice)?;
    let walk = |steps: usize| -> Outcome<Tensor> {
        let mut noise = SampleNoise {
            seed: 0,
            first_image: 0,
        };
        let start = start.to_device(place.device())?;
        let mut x = start.clone();
        for step in sampler.walk(network, &start, &mut noise).take(steps) {
            x = step?.x;
        }
        Ok(x.to_device(&Device::Cpu)?)
    };
    let first = walk(COMPARED)?.flatten_all()?.to_vec1()?;
    serve(&first, &mut |passes| {
        (0..passes).try_for_each(|_| walk(steps).map(drop))
    })
}

/// A trainer wants data to draw from; here it is given its examples, so that these are blank.
fn data_for(examples: &Examples) -> Outcome<Dataset> {
    let (batch, channels, height, width) = examples.x_0.dims4()?;
    let blank = vec![0; batch * channels * height * width];
    let size = (height, width, channels);
    Ok(Dataset::new("noise", blank, size, None, vec![])?)
}

impl FromStr for Work {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "train" => Ok(Self::Train),
            "evaluate" => Ok(Self::Evaluate),
            "sample" => Ok(Self::Sample),
            _ => Err(format!(
                "there is no work `{text}`: train, evaluate, sample"
            )),
        }
    }
}

impl FromStr for Rounding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "tf32" => Ok(Self::Tf32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("there is no precision `{text}`: f32, tf32, bf16")),
        }
    }
}
