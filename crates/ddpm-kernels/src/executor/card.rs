//! The plan on a card for candle's tensors.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::graph::{Graph, Value};
use super::on_card::{DrawsOf, Plan};
use super::run::Use;
use super::{Needed, Precision};
use crate::cuda::card::{Card, Memory};
use crate::cuda::launch::{Address, Kind, Machine};
use crate::cuda::recording::Recording;

/// A network ready to run on a CUDA device: as [`Executor`](crate::Executor), with parameters, images and gradients in the card's
/// memory, where nothing waits for the host. A pass is carried out once, and from then on launched as a whole, a CUDA graph.
#[derive(Debug)]
pub struct CardExecutor {
    plan: Plan<Memory, Recording>,
    shapes: Vec<Vec<usize>>,
    /// Images `[B, C, H, W]` and vectors `[B, D]`.
    given: [Vec<usize>; 2],
}

impl CardExecutor {
    /// Plans a network that gives `output`. The card's memory is taken at the first pass.
    ///
    /// # Errors
    /// An output that is not a convolution's; in training a parameter that has no influence on it; sizes that kernels cannot count.
    pub fn new(graph: Graph, output: &Value, used: Use, precision: Precision) -> Result<Self> {
        let shapes = graph.parameters.clone();
        let given = graph.given();
        Ok(CardExecutor {
            plan: Plan::new(graph, output, used, precision)?,
            shapes,
            given,
        })
    }

    /// What it takes of the card's memory beside the weights. Nothing is allocated to find out.
    pub fn memory(&self) -> Needed {
        self.plan.memory()
    }

    /// Lays the weights out anew at the next forward pass: they have changed.
    pub fn refresh(&mut self) {
        self.plan.refresh();
    }

    /// The forward pass. `draws` says what the masks of a place of dropout are drawn from.
    ///
    /// # Shapes
    /// images `[B, C, H, W]`, vectors `[B, D]` as recorded, f32 -> the output `[B, C', H', W']`
    ///
    /// # Errors
    /// Tensors of other shapes or types than were recorded, or not on one CUDA device; what `draws` says.
    pub fn forward(
        &mut self,
        parameters: &[Tensor],
        images: &Tensor,
        vectors: &Tensor,
        draws: &mut DrawsOf<'_>,
    ) -> Result<Tensor> {
        let card = Card::of(images.device().as_cuda_device()?)?;
        let parameters = self.parameters(&card, "parameter", parameters)?;
        let (images, vectors) = (images.contiguous()?, vectors.contiguous()?);
        let from = [
            placed(&card, "images", &images, &self.given[0])?,
            placed(&card, "vectors", &vectors, &self.given[1])?,
        ];
        let of = self.plan.output();
        let output = card.allocate(Kind::F32, of.numbers())?;
        let to = card.address(&output);
        self.plan.forward(&card, &parameters, from, draws, to)?;
        Ok(card.tensor(output, (of.count, of.channels, of.height, of.width)))
    }

    /// The backward pass after a forward pass on the same parameters and images: the gradients of all parameters from that of the
    /// output, written into these tensors or (`accumulate`) added to them.
    ///
    /// # Errors
    /// A network planned for inference; tensors of other shapes or types than were recorded, or not on one CUDA device.
    pub fn backward(
        &mut self,
        parameters: &[Tensor],
        gradient: &Tensor,
        gradients: &[Tensor],
        accumulate: bool,
    ) -> Result<()> {
        let card = Card::of(gradient.device().as_cuda_device()?)?;
        let parameters = self.parameters(&card, "parameter", parameters)?;
        let gradients = self.parameters(&card, "gradient", gradients)?;
        let of = self.plan.output();
        let gradient = gradient.contiguous()?;
        let shape = [of.count, of.channels, of.height, of.width];
        let from = placed(&card, "the gradient", &gradient, &shape)?;
        self.plan
            .backward(&card, &parameters, from, &gradients, accumulate)
    }

    /// Where tensors of the parameters' shapes lie.
    fn parameters(&self, card: &Card<'_>, what: &str, all: &[Tensor]) -> Result<Vec<Address>> {
        if all.len() != self.shapes.len() {
            bail!(
                "executor: {} {what}s, expected {}",
                all.len(),
                self.shapes.len()
            );
        }
        let places = all.iter().zip(&self.shapes);
        places
            .map(|(tensor, shape)| placed(card, what, tensor, shape))
            .collect()
    }
}

/// Where a tensor of this shape in f32 lies on the card, as long as it lives.
fn placed(card: &Card<'_>, name: &str, tensor: &Tensor, shape: &[usize]) -> Result<Address> {
    if tensor.dims() != shape || tensor.dtype() != DType::F32 {
        bail!(
            "executor: {name} is {:?} {:?}, expected F32 {shape:?}",
            tensor.dtype(),
            tensor.dims()
        );
    }
    match tensor.device() {
        Device::Cuda(device) if device.id() == card.device().id() => {}
        other => bail!(
            "executor: {name} is on {:?}, expected the card of the images",
            other.location()
        ),
    }
    card.place("executor", name, tensor)
}
