//! The network with its weights: what it is made from, and its two calls, with and without dropout.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use ddpm_kernels::{Gradients, Precision};

use crate::architecture::{Architecture, ClassInput, Parameter, TimeInput};
use crate::classes::Classes;
use crate::compute::Compute;
use crate::dropout::{Dropout, check_address};
use crate::engine::{Engine, Inputs};
use crate::error::WeightsMismatch;
use crate::record::planned;
use crate::time_embedding::{Sinusoids, fourier_rows, whole_times};
use crate::walk::Told;
use crate::{DropoutAddress, Error, Result, UNetConfig, walk};

/// DDPM's U-Net: x_t and the time in, what it was trained to predict out.
#[derive(Clone)]
pub struct UNet {
    config: UNetConfig,
    network: Arc<Architecture>,
    sinusoids: Sinusoids,
    weights: Vec<Tensor>,
    classes: Option<Classes>,
    /// Whether there is a plan for evaluation on the CPU, and one for training.
    planned: (bool, bool),
    engine: Engine,
}

impl UNet {
    /// Builds the network from tensors by name, as diffusers' files name them.
    ///
    /// The tensors are used as they are: those of a `Var` get gradients and follow its changes, detached ones cost
    /// no graph.
    ///
    /// # Errors
    /// [`Error::Weights`], which names every tensor that is missing, extra, of the wrong shape or not f32.
    pub fn new(config: &UNetConfig, weights: &(impl NamedTensors + ?Sized)) -> Result<Self> {
        let network = Architecture::new(config.settings());
        let weights = matched(network.parameters.iter().map(Parameter::named), weights)?;
        Ok(Self {
            config: config.clone(),
            sinusoids: Sinusoids::new(config.settings()),
            planned: planned(config, &network)?,
            network: Arc::new(network),
            weights,
            classes: None,
            engine: Engine::default(),
        })
    }

    /// Builds the network from candle's own holder of parameters: a safetensors file, a sub-folder of a larger
    /// model's names, or fresh variables.
    ///
    /// # Errors
    /// What the builder says when it has no tensor of a name and shape. Tensors beyond the network's are not noticed.
    pub fn from_var_builder(config: &UNetConfig, builder: &VarBuilder<'_>) -> Result<Self> {
        let weights = config.parameters().into_iter().map(|(name, shape)| {
            let tensor = builder.get(shape, &name)?;
            Ok((name, tensor))
        });
        Self::new(config, &weights.collect::<Result<Vec<_>>>()?)
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Names and tensors, in construction order.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.network
            .parameters
            .iter()
            .map(|parameter| parameter.name.as_str())
            .zip(&self.weights)
    }

    /// The same network, told these classes at each of its calls: one for each image of the batch. What a
    /// class-conditional network needs before it is evaluated, trained or handed to a sampler.
    ///
    /// # Errors
    /// A network without classes, or of another kind; a class that it does not have.
    pub fn with_classes(&self, classes: Classes) -> Result<Self> {
        classes.check(&self.network)?;
        Ok(Self {
            classes: Some(classes),
            ..self.clone()
        })
    }

    /// The same network on the same storage without a graph: it follows the weights of a network in training.
    pub fn detached(&self) -> Self {
        Self {
            weights: self.weights.iter().map(Tensor::detach).collect(),
            engine: self.engine.afresh(),
            ..self.clone()
        }
    }

    /// The same network for evaluation alone: on the CPU its weights are laid out at the first call, once, and stay
    /// what they were then. What sampling wants.
    pub fn frozen(&self) -> Self {
        Self {
            engine: self.engine.frozen(),
            ..self.detached()
        }
    }

    /// The same network on the same storage, computing in this precision. On the CPU bf16 is for networks that go by plan
    /// (evaluation of detached weights, [`UNet::learn`]), elsewhere all is f32: [`UNetConfig::unplanned`] says why. On a
    /// CUDA device images lie in bf16 between operations, and weights are rounded for each product; they stay f32.
    pub fn in_precision(&self, precision: Precision) -> Self {
        Self {
            engine: self.engine.in_precision(precision),
            ..self.clone()
        }
    }

    /// The same network on the same storage, whose [`UNet::learn`] keeps only what blocks hand to one another and computes
    /// what is inside of them again on the way back (gradient checkpointing: Chen et al. 2016, arXiv:1604.06174). The
    /// gradients are the same to the bit; a step takes less memory and more time. Only where the network goes by plan
    /// ([`UNetConfig::learns_by_plan`]).
    pub fn recomputing(&self, recompute: bool) -> Self {
        Self {
            engine: self.engine.recomputing(recompute),
            ..self.clone()
        }
    }

    /// The same network on the same storage, going operation by operation through candle's graph, as networks without a plan do:
    /// slower, on the CPU in f32, and the same within rounding.
    pub fn by_graph(&self) -> Self {
        Self {
            planned: (false, false),
            ..self.clone()
        }
    }

    /// The same network, detached, with its weights on this device.
    ///
    /// # Errors
    /// The device has no room.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let moved = self.weights.iter().map(|w| w.detach().to_device(device));
        Ok(Self {
            weights: moved.collect::<candle_core::Result<_>>()?,
            engine: self.engine.afresh(),
            ..self.clone()
        })
    }

    /// The device that its weights are on.
    pub fn device(&self) -> &Device {
        self.weights.first().map_or(&Device::Cpu, Tensor::device)
    }

    /// Evaluates the network, without dropout.
    ///
    /// # Shapes
    /// x_t `[B, in_channels, H, W]` f32, time: one an image, 0..T-1 (a level of noise above 0 where the time embedding is
    /// Fourier's) -> `[B, out_channels, H, W]`
    ///
    /// # Errors
    /// An input of another shape or type; a size that the network's depth does not suit; classes that are missing or
    /// not one for each image.
    pub fn forward(&self, x_t: &Tensor, time: &[f64]) -> Result<Tensor> {
        self.evaluate(x_t, time, None)
    }

    /// Evaluates the network with dropout at the configured rate; at rate 0 it is [`UNet::forward`].
    ///
    /// # Errors
    /// As [`UNet::forward`]; an address that does not have one index an image.
    pub fn forward_train(
        &self,
        x_t: &Tensor,
        time: &[f64],
        dropout: &DropoutAddress<'_>,
    ) -> Result<Tensor> {
        check_address(dropout, time.len())?;
        self.evaluate(x_t, time, self.dropout(dropout))
    }

    /// Dropout at an address, if the network has any.
    fn dropout<'a>(&self, address: &DropoutAddress<'a>) -> Option<Dropout<'a>> {
        let rate = self.config.settings().dropout;
        (rate > 0.0).then_some(Dropout {
            address: *address,
            rate,
            places: self.network.dropouts,
        })
    }

    /// One pass forward and back: the gradients of all weights from what `gradient_of` makes of the output, dL/d output,
    /// written or (`accumulate`) added to what is there. The weights need not be variables. On the CPU it goes by plan,
    /// without candle's graph, for networks of plain, attention and convolution blocks with SiLU, sinusoids and no
    /// classes; others, and other devices (but see [`UNet::learn_on_device`]), take candle's graph, which keeps every result.
    ///
    /// `gradient_of` must not ask this network, or a clone of it, for anything: by plan it would wait for itself.
    ///
    /// The frequencies of Fourier's time embedding are not learned: their gradient is 0.
    ///
    /// # Shapes
    /// x_t as [`UNet::forward`]; `gradient_of` is given the output and returns a tensor of its shape; `gradients` are of
    /// [`UNetConfig::parameters`].
    ///
    /// # Errors
    /// As [`UNet::forward_train`]; what `gradient_of` says, before anything is written.
    pub fn learn<E: From<Error>>(
        &self,
        x_t: &Tensor,
        time: &[f64],
        dropout: &DropoutAddress<'_>,
        (gradients, accumulate): (&mut Gradients, bool),
        gradient_of: impl FnOnce(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<(), E> {
        if !x_t.device().is_cpu() || !self.planned.1 {
            let found = self.graph_gradients(x_t, time, dropout, gradient_of)?;
            for (index, gradient) in found.iter().enumerate() {
                let gradient = gradient.to_device(&Device::Cpu).map_err(Error::from)?;
                let taken = gradients.set(index, &gradient, accumulate);
                taken.map_err(Error::from)?;
            }
            return Ok(());
        }
        check_address(dropout, time.len())?;
        let (x, told) = self.prepared(x_t, time)?;
        let dropout = self.dropout(dropout);
        let inputs = self.inputs(&x, &told.time);
        self.engine.learn(
            &inputs,
            dropout.as_ref(),
            (gradients, accumulate),
            gradient_of,
        )
    }

    /// As [`UNet::learn`], with gradients that stay where the weights are: one for each, in order. On a card it goes by plan where
    /// the CPU would; elsewhere operation by operation through candle's graph.
    ///
    /// An empty list is filled; gradients that are there are added to. By plan they are the same memory every time: a call with an
    /// empty list writes over what an earlier one gave.
    ///
    /// # Errors
    /// As [`UNet::learn`].
    pub fn learn_on_device<E: From<Error>>(
        &self,
        x_t: &Tensor,
        time: &[f64],
        dropout: &DropoutAddress<'_>,
        gradients: &mut Vec<Tensor>,
        gradient_of: impl FnOnce(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<(), E> {
        #[cfg(feature = "cuda")]
        if x_t.device().is_cuda() && self.planned.1 {
            check_address(dropout, time.len())?;
            let (x, told) = self.prepared(x_t, time)?;
            let dropout = self.dropout(dropout);
            let inputs = self.inputs(&x, &told.time);
            let engine = &self.engine;
            return engine.learn_on_card(&inputs, dropout.as_ref(), gradients, gradient_of);
        }
        let found = self
            .by_graph()
            .graph_gradients(x_t, time, dropout, gradient_of)?;
        if gradients.is_empty() {
            *gradients = found;
            return Ok(());
        }
        for (sum, found) in gradients.iter_mut().zip(&found) {
            *sum = sum.add(found).map_err(Error::from)?;
        }
        Ok(())
    }

    /// The gradients of all weights by candle's graph, where the weights are.
    fn graph_gradients<E: From<Error>>(
        &self,
        x_t: &Tensor,
        time: &[f64],
        dropout: &DropoutAddress<'_>,
        gradient_of: impl FnOnce(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Vec<Tensor>, E> {
        let network = self.on_variables()?;
        let output = network.forward_train(x_t, time, dropout)?;
        let gradient = gradient_of(&output.detach())?;
        Ok(network.gradients_through(&output, &gradient)?)
    }

    /// The same network on variables: its own where they are some, copies of the others.
    fn on_variables(&self) -> Result<Self> {
        let variable = |weight: &Tensor| match weight.is_variable() {
            true => Ok(weight.clone()),
            false => Ok(Var::from_tensor(weight)?.into_inner()),
        };
        Ok(Self {
            weights: self.weights.iter().map(variable).collect::<Result<_>>()?,
            ..self.clone()
        })
    }

    /// The gradients of the weights from that of the output.
    fn gradients_through(&self, output: &Tensor, gradient: &Tensor) -> Result<Vec<Tensor>> {
        let mut store = (output * gradient)?.sum_all()?.backward()?;
        let mut gradients = Vec::with_capacity(self.weights.len());
        for (index, weight) in self.weights.iter().enumerate() {
            gradients.push(match store.remove(weight) {
                Some(found) => found,
                None if matches!(self.network.time, TimeInput::Fourier(at) if at == index) => {
                    weight.zeros_like()?
                }
                None => {
                    let name = &self.network.parameters[index].name;
                    return Err(candle_core::Error::Msg(format!(
                        "`{name}` got no gradient: it is no variable"
                    ))
                    .into());
                }
            });
        }
        Ok(gradients)
    }

    fn inputs<'a>(&'a self, x: &'a Tensor, sinusoids: &'a Tensor) -> Inputs<'a> {
        Inputs {
            config: &self.config,
            network: &self.network,
            weights: &self.weights,
            x,
            sinusoids,
        }
    }

    /// The image and what else the walk begins with.
    fn prepared(&self, x_t: &Tensor, time: &[f64]) -> Result<(Tensor, Told<Tensor>)> {
        self.check_input(x_t, time)?;
        let told = Told {
            time: self.vectors(&self.scaled(time), x_t.device())?,
            class: self.told_classes(time.len(), x_t.device())?,
        };
        let x = if self.config.settings().center_input_sample {
            x_t.affine(2.0, -1.0)?
        } else {
            x_t.clone()
        };
        Ok((x, told))
    }

    /// Times as the network is told them, rounded as PyTorch rounds their product.
    fn scaled(&self, time: &[f64]) -> Vec<f64> {
        let scale = self.config.settings().timestep_scale;
        let scaled = |&t: &f64| match scale == 1.0 {
            true => t,
            false => f64::from(t as f32 * scale as f32),
        };
        time.iter().map(scaled).collect()
    }

    /// Times (or classes, where they are told the same way) as the first linear map takes them.
    fn vectors(&self, numbers: &[f64], device: &Device) -> Result<Tensor> {
        match self.network.time {
            TimeInput::Positional => self.sinusoids.rows(numbers, device),
            TimeInput::Fourier(at) => fourier_rows(numbers, &self.weights[at]),
            TimeInput::Learned(at) => {
                let table = &self.weights[at];
                let rows = whole_times(numbers, table.dim(0)?)?;
                Ok(ddpm_kernels::embedding(table, &rows)?)
            }
        }
    }

    /// What the network is told about the classes, if it has any.
    fn told_classes(&self, batch: usize, device: &Device) -> Result<Option<Tensor>> {
        let Some(input) = &self.network.class else {
            return Ok(None);
        };
        let Some(classes) = &self.classes else {
            return Err(Error::Input {
                what: "the classes",
                found: "missing".to_owned(),
                expected:
                    "one for each image, by UNet::with_classes: the network is class-conditional"
                        .to_owned(),
            });
        };
        classes.check_count(batch)?;
        Ok(Some(match (input, classes) {
            (ClassInput::Table(at), Classes::Indices(indices)) => {
                ddpm_kernels::embedding(&self.weights[*at], indices)?
            }
            (_, Classes::Vectors(vectors)) => vectors.to_device(device)?,
            (_, classes) => self.vectors(&classes.numbers(), device)?,
        }))
    }

    /// The vectors that a plan begins with: of the time, or where there are classes the finished embedding of both.
    fn embedded(&self, told: Told<Tensor>) -> Result<Tensor> {
        if told.class.is_none() {
            return Ok(told.time);
        }
        let mut compute = Compute {
            weights: &self.weights,
            dropout: None,
        };
        walk::time_embedding(&self.network, &mut compute, &told)
    }

    fn evaluate(&self, x_t: &Tensor, time: &[f64], dropout: Option<Dropout<'_>>) -> Result<Tensor> {
        let (x, told) = self.prepared(x_t, time)?;
        let tracked = x.track_op() || self.weights.iter().any(Tensor::track_op);
        let by_plan = self.planned.0 && !tracked && dropout.is_none();
        let output = if by_plan && x.device().is_cpu() {
            self.engine
                .forward(&self.inputs(&x, &self.embedded(told)?))?
        } else {
            #[cfg(feature = "cuda")]
            if by_plan && x.device().is_cuda() {
                return self.divided(self.forward_on_card(&x, told)?, time);
            }
            let mut compute = Compute {
                weights: &self.weights,
                dropout,
            };
            let x = x.to_dtype(self.engine.stored_on(x.device()))?;
            walk::unet(&self.network, &mut compute, x, &told)?.to_dtype(DType::F32)?
        };
        self.divided(output, time)
    }

    /// The output of the last operation as the network gives it: with Fourier's embedding over the level of noise.
    fn divided(&self, output: Tensor, time: &[f64]) -> Result<Tensor> {
        match self.network.time {
            TimeInput::Fourier(_) => divided_by(&output, time),
            _ => Ok(output),
        }
    }

    #[cfg(feature = "cuda")]
    fn forward_on_card(&self, x: &Tensor, told: Told<Tensor>) -> Result<Tensor> {
        let embedded = self.embedded(told)?;
        self.engine.forward_on_card(&self.inputs(x, &embedded))
    }

    fn check_input(&self, x_t: &Tensor, time: &[f64]) -> Result<()> {
        let (height, width) = size_of_input(x_t, time, self.config.settings().in_channels)?;
        self.config.check_image(height, width)
    }
}

impl ddpm_core::Denoiser for UNet {
    fn predict(&self, x_t: &Tensor, time: &[f64]) -> ddpm_core::Result<Tensor> {
        Ok(self.forward(x_t, time)?)
    }
}

/// Each image of `[B, C, H, W]` divided by its time.
fn divided_by(output: &Tensor, time: &[f64]) -> Result<Tensor> {
    let time: Vec<f32> = time.iter().map(|&t| t as f32).collect();
    let time = Tensor::from_vec(time, (output.dim(0)?, 1, 1, 1), output.device())?;
    Ok(output.broadcast_div(&time)?)
}

/// Tensors by name, however they are kept.
pub trait NamedTensors {
    /// All names and tensors.
    fn named_tensors(&self) -> Vec<(&str, &Tensor)>;
}

impl NamedTensors for [(String, Tensor)] {
    fn named_tensors(&self) -> Vec<(&str, &Tensor)> {
        self.iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect()
    }
}

impl NamedTensors for Vec<(String, Tensor)> {
    fn named_tensors(&self) -> Vec<(&str, &Tensor)> {
        self.as_slice().named_tensors()
    }
}

impl<S> NamedTensors for HashMap<String, Tensor, S> {
    fn named_tensors(&self) -> Vec<(&str, &Tensor)> {
        self.iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect()
    }
}

impl NamedTensors for BTreeMap<String, Tensor> {
    fn named_tensors(&self) -> Vec<(&str, &Tensor)> {
        self.iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect()
    }
}

/// Height and width of images that a network of so many channels is given, with a time for each.
///
/// # Errors
/// [`Error::Input`]: no images, of another shape or type; another number of times than images, or times that are no numbers.
pub(crate) fn size_of_input(x_t: &Tensor, time: &[f64], channels: usize) -> Result<(usize, usize)> {
    let wrong = |what, found, expected| {
        Err(Error::Input {
            what,
            found,
            expected,
        })
    };
    match *x_t.dims() {
        [batch, c, height, width] if batch > 0 && c == channels && x_t.dtype() == DType::F32 => {
            if time.len() != batch {
                let found = format!("{} times", time.len());
                return wrong("the time", found, format!("one for each of {batch} images"));
            }
            if let Some(t) = time.iter().find(|t| !t.is_finite()) {
                return wrong("the time", t.to_string(), "finite".to_owned());
            }
            Ok((height, width))
        }
        _ => wrong(
            "x_t",
            format!("{:?} {:?}", x_t.dtype(), x_t.dims()),
            format!("F32 [batch, {channels}, height, width], at least one image"),
        ),
    }
}

/// The tensors in construction order, or everything that is wrong with them.
pub(crate) fn matched<'a>(
    parameters: impl Iterator<Item = (&'a str, &'a [usize])>,
    weights: &(impl NamedTensors + ?Sized),
) -> Result<Vec<Tensor>> {
    let mut given = BTreeMap::new();
    let mut mismatch = WeightsMismatch::default();
    for (name, tensor) in weights.named_tensors() {
        if given.insert(name, tensor).is_some() {
            mismatch.wrong.push(format!("`{name}` is given twice"));
        }
    }
    let mut tensors = Vec::new();
    for (name, shape) in parameters {
        let Some(tensor) = given.remove(name) else {
            mismatch.missing.push(name.to_owned());
            continue;
        };
        if tensor.dims() != shape {
            mismatch.wrong.push(format!(
                "`{name}` is {:?}, expected {shape:?}",
                tensor.dims(),
            ));
        } else if tensor.dtype() != DType::F32 {
            mismatch
                .wrong
                .push(format!("`{name}` is {:?}, expected F32", tensor.dtype()));
        }
        tensors.push(tensor.clone());
    }
    mismatch.extra.extend(given.into_keys().map(str::to_owned));
    if mismatch.is_empty() {
        Ok(tensors)
    } else {
        Err(Error::Weights(mismatch))
    }
}
