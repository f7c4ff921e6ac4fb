//! Carrying out a plan: one step after the other, each on all threads.
#![allow(unsafe_code)] // buffers of one block of memory, which the plan keeps apart

use std::ops::Deref;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::Precision;
use super::compile::{Id, Kept, Place, Placed, Program, Sink, Step, compile};
use super::gradients::Gradients;
use super::graph::{Convolve, Graph, Op, Shape, Value};
use crate::aligned::Aligned;
use crate::bf16::gather::Rows;
use crate::bf16::{self, Bf16, Element};
use crate::correlate::{Addend, Bias, Correlation, LaidOut, Output};
use crate::data_gradient::DataGradient;
use crate::heads::{
    Heads, Memory as HeadsMemory, Order, View as HeadsView, ViewMut as HeadsViewMut, attend,
    attend_backward,
};
use crate::normalise::{self, Affinity, Backward, PartGradient};
use crate::packing::{Packed, Weights};
use crate::processor::Level;
use crate::simd::{per_processor, silu_slope};
use crate::source::{Affine, Data, Layout, Mask, Part, Source, Window, gather};
use crate::storage::{Shared, view};
use crate::sums::channel_sums;
use crate::tile::LANES;
use crate::weight_gradient::{Target, WeightGradient};

/// What a network is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Forward passes only, with the weights of the first one: they are laid out once.
    Inference,
    /// Forward and backward passes, with the weights as they are at each.
    Training,
    /// The same for [`Gradients::of_one_pass`]: in bf16 the gradients of weights stay in the memory that
    /// activations no longer need.
    TrainingInOnePass,
}

impl Use {
    pub(super) fn trains(self) -> bool {
        self != Use::Inference
    }
}

/// Bytes that a network takes beside its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Of activations, gradients between operations, masks, and what gradients of parameters stay in the same memory.
    pub activations: u64,
    /// Of the other parameters' gradients.
    pub gradients: u64,
}

/// A network ready to run.
pub struct Executor {
    graph: Graph,
    program: Program,
    used: Use,
    precision: Precision,
    /// Empty while gradients are kept in it elsewhere.
    arena: Aligned,
    /// Tells whose memory is whose.
    mark: Arc<()>,
    norms: Vec<NormState>,
    masks: Vec<Vec<u8>>,
    /// In inference the weights of each node, in training those of the step.
    packed: Vec<Packed>,
    halves: Vec<bf16::packing::Packed>,
    biases: Vec<Aligned>,
    /// In inference, the level of the processor that the node's weights are laid out for, if they are.
    laid_out: Vec<Option<Level>>,
}

/// What a normalisation found out in the forward pass.
#[derive(Clone, Default)]
struct NormState {
    statistics: Vec<[f32; 2]>,
    coefficients: Aligned,
}

/// Draws the mask of a place of dropout: `[B, C, H, W]`, zero for what is dropped.
pub type DrawMask<'a> = dyn FnMut(usize, &mut [u8]) -> Result<()> + 'a;

impl Executor {
    /// Plans a network that gives `output`.
    ///
    /// # Errors
    /// An output that is not a convolution's; in training a parameter that has no influence on it.
    pub fn new(graph: Graph, output: &Value, used: Use) -> Result<Self> {
        Executor::with_precision(graph, output, used, Precision::F32)
    }

    /// As [`Executor::new`], in this precision.
    ///
    /// # Errors
    /// As [`Executor::new`].
    pub fn with_precision(
        mut graph: Graph,
        output: &Value,
        used: Use,
        precision: Precision,
    ) -> Result<Self> {
        let program = compile(&mut graph, output, used, precision)?;
        let norms = graph.norms.iter().map(|norm| {
            let shape = graph.nodes[norm.parts[0]].shape;
            let channels: usize = norm
                .parts
                .iter()
                .map(|&part| graph.nodes[part].shape.channels)
                .sum();
            NormState {
                statistics: vec![[0.0; 2]; shape.images * norm.groups.count],
                coefficients: Aligned::zeros(shape.images * channels.div_ceil(LANES) * 2 * LANES),
            }
        });
        let norms = norms.collect();
        let masks = graph
            .masks
            .iter()
            .map(|mask| vec![0; mask.shape.length()])
            .collect();
        let per_node = if used == Use::Inference {
            graph.nodes.len()
        } else {
            1
        };
        Ok(Executor {
            arena: Aligned::zeros(program.arena),
            mark: Arc::new(()),
            norms,
            masks,
            packed: vec![Packed::default(); per_node],
            halves: vec![bf16::packing::Packed::default(); per_node],
            precision,
            biases: vec![Aligned::default(); per_node],
            laid_out: vec![None; per_node],
            graph,
            program,
            used,
        })
    }

    /// What such an executor takes. Nothing is allocated to find out.
    ///
    /// # Errors
    /// As [`Executor::new`].
    pub fn memory(
        mut graph: Graph,
        output: &Value,
        used: Use,
        precision: Precision,
    ) -> Result<Needed> {
        let program = compile(&mut graph, output, used, precision)?;
        let masks = graph.masks.iter().map(|mask| mask.shape.length() as u64);
        let apart = graph.parameters.iter().zip(&program.kept);
        let apart = apart.filter(|(_, kept)| used.trains() && kept.is_none());
        let sizes = apart.map(|(shape, _)| shape.iter().product::<usize>() as u64);
        let bytes = |numbers: u64| numbers.saturating_mul(4);
        Ok(Needed {
            activations: masks.fold(bytes(program.arena as u64), u64::saturating_add),
            gradients: bytes(sizes.fold(0, u64::saturating_add)),
        })
    }

    /// Lays the weights out anew at the next forward pass: they have changed.
    pub fn refresh(&mut self) {
        self.laid_out.fill(None);
    }

    /// Takes back the memory in which gradients of the pass before are kept: to be called before the next forward pass.
    /// Without it that pass takes new memory.
    pub fn take_back(&mut self, gradients: &mut Gradients) {
        if let Some(memory) = gradients.take_back(&self.mark) {
            self.arena = memory;
        }
    }

    /// The forward pass.
    ///
    /// # Shapes
    /// images `[B, C, H, W]`, vectors `[B, D]` as recorded -> the output `[B, C', H', W']`
    ///
    /// # Errors
    /// Tensors of other shapes or types than were recorded; what `draw_mask` says.
    pub fn forward(
        &mut self,
        parameters: &[Tensor],
        images: &Tensor,
        vectors: &Tensor,
        draw_mask: &mut DrawMask<'_>,
    ) -> Result<Tensor> {
        self.check(parameters, Some(images), Some(vectors))?;
        let (images, vectors) = (images.contiguous()?, vectors.contiguous()?);
        let parameters = parameters.iter().map(|p| view("executor", "parameter", p));
        let parameters = parameters.collect::<Result<Vec<_>>>()?;
        let images = view("executor", "images", &images)?;
        let vectors = view("executor", "vectors", &vectors)?;
        if self.arena.len() < self.program.arena {
            self.arena = Aligned::zeros(self.program.arena);
        }
        let (shape, length) = self.output_shape();
        let mut output = vec![0f32; length];
        let given = Given {
            parameters: parameters.iter().map(Deref::deref).collect(),
            images: &images,
            gradient: &[],
            output: Shared::new(&mut output),
        };
        let (mut pass, program) = self.pass(given, Direction::Forward);
        for step in &program.forward {
            match step {
                Step::Vectors { node, to } => pass.vectors(*node, &vectors, *to),
                Step::Mask { mask } => pass.draw(*mask, draw_mask)?,
                Step::Normalise { norm } => pass.normalise(*norm),
                step => pass.compute(step),
            }
        }
        Tensor::from_vec(output, shape.as_slice(), &Device::Cpu)
    }

    /// The backward pass after a forward pass on the same parameters and images: the gradients of all parameters from
    /// that of the output, written or (`accumulate`) added.
    ///
    /// # Errors
    /// A network planned for inference; tensors of other shapes or types than were recorded; gradients of one pass that are
    /// to be added up, or others for a network planned for those; no forward pass since the last backward pass in which
    /// gradients were kept.
    pub fn backward(
        &mut self,
        parameters: &[Tensor],
        images: &Tensor,
        gradient: &Tensor,
        gradients: &mut Gradients,
        accumulate: bool,
    ) -> Result<()> {
        if !self.used.trains() {
            bail!("executor: a network planned for inference has no backward pass");
        }
        self.check(parameters, Some(images), None)?;
        let expected = self.output_shape().0;
        if gradient.dims() != expected || gradient.dtype() != DType::F32 {
            bail!(
                "executor: the gradient is {:?} {:?}, expected F32 {expected:?}",
                gradient.dtype(),
                gradient.dims()
            );
        }
        if !gradients
            .shapes()
            .eq(self.graph.parameters.iter().map(Vec::as_slice))
        {
            bail!("executor: the gradients are of other parameters than the network's");
        }
        if self.arena.len() < self.program.arena {
            bail!("executor: there was no forward pass before this backward pass");
        }
        gradients.begin(&self.program.halves_kept(), accumulate)?;
        let (images, gradient) = (images.contiguous()?, gradient.contiguous()?);
        let parameters = parameters.iter().map(|p| view("executor", "parameter", p));
        let parameters = parameters.collect::<Result<Vec<_>>>()?;
        let images = view("executor", "images", &images)?;
        let gradient = view("executor", "gradient", &gradient)?;
        let starts = (0..gradients.len()).map(|index| gradients.start(index));
        let starts: Vec<usize> = starts.map(|start| start.unwrap_or(usize::MAX)).collect();
        let given = Given {
            parameters: parameters.iter().map(Deref::deref).collect(),
            images: &images,
            gradient: &gradient,
            output: Shared::new(&mut []),
        };
        let (mut pass, program) = self.pass(given, Direction::Backward);
        let mut found = Found {
            memory: gradients.shared(),
            starts,
            written: vec![accumulate; parameters.len()],
        };
        for step in &program.backward {
            pass.backward_step(step, &mut found);
        }
        if program.kept.iter().any(Option::is_some) {
            gradients.lend(std::mem::take(&mut self.arena), &self.mark);
        }
        Ok(())
    }

    /// A pass over what the caller gives, and the program it follows.
    fn pass<'a>(&'a mut self, given: Given<'a>, direction: Direction) -> (Pass<'a>, &'a Program) {
        let pass = Pass {
            graph: &self.graph,
            results: match direction {
                Direction::Forward => &self.program.results,
                Direction::Backward => &self.program.results_backward,
            },
            used: self.used,
            memory: Memory::new(&mut self.arena, &self.program.buffers),
            precision: self.precision,
            norms: &mut self.norms,
            masks: &mut self.masks,
            packed: &mut self.packed,
            halves: &mut self.halves,
            biases: &mut self.biases,
            laid_out: &mut self.laid_out,
            given,
        };
        (pass, &self.program)
    }

    fn output_shape(&self) -> ([usize; 4], usize) {
        let shape = self
            .program
            .forward
            .iter()
            .rev()
            .find_map(|step| match step {
                Step::Convolve {
                    node,
                    to: Place::Outside,
                } => Some(self.graph.nodes[*node].shape),
                _ => None,
            });
        let dims = shape.map_or([0; 4], |s| [s.images, s.channels, s.height, s.width]);
        (dims, dims.iter().product())
    }

    fn check(
        &self,
        parameters: &[Tensor],
        images: Option<&Tensor>,
        vectors: Option<&Tensor>,
    ) -> Result<()> {
        if parameters.len() != self.graph.parameters.len() {
            bail!(
                "executor: {} parameters, expected {}",
                parameters.len(),
                self.graph.parameters.len()
            );
        }
        for (index, (parameter, shape)) in parameters.iter().zip(&self.graph.parameters).enumerate()
        {
            if parameter.dims() != shape.as_slice() {
                bail!(
                    "executor: parameter {index} is {:?}, expected {shape:?}",
                    parameter.dims()
                );
            }
        }
        for node in &self.graph.nodes {
            let s = node.shape;
            let (name, tensor, expected) = match node.op {
                Op::Images => (
                    "images",
                    images,
                    vec![s.images, s.channels, s.height, s.width],
                ),
                Op::Vectors => ("vectors", vectors, vec![s.width, s.channels]),
                _ => continue,
            };
            if let Some(tensor) = tensor.filter(|tensor| tensor.dims() != expected) {
                bail!(
                    "executor: {name} are {:?}, expected {expected:?}",
                    tensor.dims()
                );
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (nodes, megabytes) = (self.graph.nodes.len(), self.arena.len() >> 18);
        write!(
            f,
            "Executor of {nodes} nodes in {megabytes} MiB for {:?}",
            self.used
        )
    }
}

/// The block of memory, and where the plan has put which buffer.
struct Memory<'a> {
    floats: Shared<'a>,
    /// The same memory.
    halves: Shared<'a, Bf16>,
    buffers: &'a [Placed],
}

/// Numbers as they are stored in a buffer.
trait Stored: Element {
    fn memory<'m, 'a>(memory: &'m Memory<'a>) -> &'m Shared<'a, Self>;
    /// Numbers in the place of a float.
    const IN_A_FLOAT: usize;
}

impl Stored for f32 {
    fn memory<'m, 'a>(memory: &'m Memory<'a>) -> &'m Shared<'a, Self> {
        &memory.floats
    }
    const IN_A_FLOAT: usize = 1;
}

impl Stored for Bf16 {
    fn memory<'m, 'a>(memory: &'m Memory<'a>) -> &'m Shared<'a, Self> {
        &memory.halves
    }
    const IN_A_FLOAT: usize = 2;
}

/// Does the same with either kind of number, whichever a buffer has.
macro_rules! by_element {
    ($halves:expr, $element:ident => $body:expr) => {
        if $halves {
            type $element = Bf16;
            $body
        } else {
            type $element = f32;
            $body
        }
    };
}

impl<'a> Memory<'a> {
    fn new(floats: &'a mut [f32], buffers: &'a [Placed]) -> Self {
        let floats = Shared::new(floats);
        Memory {
            halves: floats.halves(),
            floats,
            buffers,
        }
    }

    fn is_half(&self, id: Id) -> bool {
        self.buffers[id].halves
    }

    /// Numbers before a buffer.
    fn start<E: Stored>(&self, id: Id) -> usize {
        self.buffers[id].place * E::IN_A_FLOAT
    }

    /// A buffer to read.
    fn read<E: Stored>(&self, id: Id) -> &'a [E] {
        let count = self.buffers[id].count;
        debug_assert_eq!(self.is_half(id), E::IN_A_FLOAT == 2);
        // SAFETY: `at` has seen that it lies in memory; the plan gives no other buffer of the same time this place, and
        // a step does not write what it reads but for gradients in place, for which it takes no such slice.
        unsafe { std::slice::from_raw_parts(E::memory(self).at(self.start::<E>(id), count), count) }
    }

    /// A buffer to write.
    #[allow(clippy::mut_from_ref)] // as `Shared::slice`
    fn write<E: Stored>(&self, id: Id) -> &'a mut [E] {
        let count = self.buffers[id].count;
        debug_assert_eq!(self.is_half(id), E::IN_A_FLOAT == 2);
        // SAFETY: as in `read`.
        unsafe {
            std::slice::from_raw_parts_mut(E::memory(self).at(self.start::<E>(id), count), count)
        }
    }

    /// A buffer as it is.
    fn data(&self, id: Id) -> Data<'a> {
        by_element!(self.is_half(id), E => E::data(self.read::<E>(id)))
    }
}

/// Where the gradients of parameters go.
struct Found<'a> {
    memory: Shared<'a>,
    starts: Vec<usize>,
    /// Which have been written and are to be added to.
    written: Vec<bool>,
}

impl Found<'_> {
    /// Sets or adds one element of a gradient.
    fn put(&self, parameter: usize, index: usize, value: f32) {
        let to = self.memory.at(self.starts[parameter] + index, 1);
        // SAFETY: `at` has seen that it lies in memory, and only the calling thread writes here.
        unsafe {
            let before = if self.written[parameter] {
                to.read()
            } else {
                0.0
            };
            to.write(before + value);
        }
    }
}

/// What a pass is given from outside, and where its output goes.
struct Given<'a> {
    parameters: Vec<&'a [f32]>,
    images: &'a [f32],
    /// Of the output, in the backward pass.
    gradient: &'a [f32],
    output: Shared<'a>,
}

/// Which way a pass goes.
#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

/// One pass through the network.
struct Pass<'a> {
    graph: &'a Graph,
    results: &'a [Option<Place>],
    used: Use,
    memory: Memory<'a>,
    norms: &'a mut [NormState],
    masks: &'a mut [Vec<u8>],
    packed: &'a mut [Packed],
    halves: &'a mut [bf16::packing::Packed],
    precision: Precision,
    biases: &'a mut [Aligned],
    laid_out: &'a mut [Option<Level>],
    given: Given<'a>,
}

/// The forward steps.
impl<'a> Pass<'a> {
    /// A step that computes a node's result.
    fn compute(&mut self, step: &Step) {
        match step {
            Step::Convolve { node, to } => self.convolve(*node, *to),
            Step::Attend { node, to } => self.attend(*node, *to),
            Step::Sum { node, to } => self.sum(*node, *to),
            Step::Copy { node, to } => self.copy(*node, *to),
            _ => {} // the others are not of results
        }
    }

    /// `[B, C]` to pixels side by side.
    fn vectors(&mut self, node: usize, vectors: &[f32], to: Id) {
        let shape = self.graph.nodes[node].shape;
        let to = self.memory.write::<f32>(to);
        to.fill(0.0);
        for (image, vector) in vectors.chunks(shape.channels).enumerate() {
            for (channel, value) in vector.iter().enumerate() {
                to[normalise::vector_place(image, shape.width, channel)] = *value;
            }
        }
    }

    fn draw(&mut self, mask: usize, draw_mask: &mut DrawMask<'_>) -> Result<()> {
        let recorded = self.graph.masks[mask];
        let shape = recorded.shape;
        let pixels = shape.height * shape.width;
        let mut plain = vec![0; shape.images * shape.channels * pixels];
        draw_mask(recorded.place, &mut plain)?;
        let to = &mut self.masks[mask];
        for (image, plain) in plain.chunks(shape.channels * pixels).enumerate() {
            for (channel, plain) in plain.chunks(pixels).enumerate() {
                let start =
                    image * shape.image() + channel / LANES * pixels * LANES + channel % LANES;
                let to = to[start..].iter_mut().step_by(LANES);
                to.zip(plain).for_each(|(to, kept)| *to = *kept);
            }
        }
        Ok(())
    }

    fn normalise(&mut self, norm: usize) {
        let recorded = &self.graph.norms[norm];
        let source = self.parts(&recorded.parts);
        let images = self.graph.nodes[recorded.parts[0]].shape.images;
        let affinity = self.affinity(norm);
        let state = &mut self.norms[norm];
        by_element!(source.is_half(), E => {
            normalise::statistics::<E>(&source, images, recorded.groups, &mut state.statistics)
        });
        normalise::coefficients(
            &state.statistics,
            affinity,
            images,
            recorded.groups.count,
            &mut state.coefficients,
        );
    }

    fn convolve(&mut self, node: usize, to: Place) {
        let Op::Convolve(convolve) = &self.graph.nodes[node].op else {
            return;
        };
        let shape = self.graph.nodes[node].shape;
        let slot = if self.used == Use::Inference { node } else { 0 };
        self.pack(node, convolve, slot);
        let bias = self.bias(convolve, shape, slot);
        let size = (shape.channels, shape.height, shape.width);
        let outside = Output::whole(&self.given.output, Layout::Plain, size);
        match (to, self.in_halves(shape)) {
            (Place::Buffer(id), false) => {
                self.convolve_floats(convolve, bias, slot, self.blocks_at(id, size));
            }
            (Place::Outside, false) => self.convolve_floats(convolve, bias, slot, outside),
            (Place::Buffer(id), true) => {
                self.convolve_halves(convolve, bias, slot, self.blocks_at::<Bf16>(id, size));
            }
            (Place::Outside, true) => self.convolve_halves(convolve, bias, slot, outside),
        }
    }

    fn convolve_floats(&self, it: &Convolve, bias: Bias<'_>, slot: usize, output: Output<'_>) {
        let correlation = Correlation {
            batch: self.images_of(it),
            source: &self.source(&it.from),
            window: &it.geometry.forward(),
            weights: &self.packed[slot],
            bias: Some(bias),
            plus: self.residual(it, output.start),
            scale: it.scale,
        };
        // SAFETY: the plan gives the output a place of its own, or that of the residual, which is read first.
        unsafe {
            correlation.run(output);
        }
    }

    fn convolve_halves<E: Stored>(
        &self,
        it: &Convolve,
        bias: Bias<'_>,
        slot: usize,
        output: Output<'_, E>,
    ) {
        let correlation = Correlation {
            batch: self.images_of(it),
            source: &self.source(&it.from),
            window: &it.geometry.forward(),
            weights: &self.halves[slot],
            bias: Some(bias),
            plus: self.residual(it, output.start),
            scale: it.scale,
        };
        // SAFETY: as above.
        unsafe {
            correlation.run(output);
        }
    }

    /// Whether what is computed of images of this shape is multiplied in bf16.
    fn in_halves(&self, shape: Shape) -> bool {
        self.precision == Precision::Bf16 && !shape.vectors
    }

    fn images_of(&self, it: &Convolve) -> usize {
        self.graph.nodes[it.from.parts[0]].shape.images
    }

    /// What is added to a convolution's result. A residual is counted from its own beginning, an addend from that of the
    /// output's memory.
    fn residual<E: Stored>(&self, it: &Convolve, start: usize) -> Option<Addend<E>> {
        match self.results[it.residual?]? {
            Place::Buffer(id) => {
                let residual = self.memory.read::<E>(id);
                Some(Addend(residual.as_ptr().wrapping_sub(start)))
            }
            Place::Outside => None,
        }
    }

    /// Lays out the weights of a convolution, if they are not.
    fn pack(&mut self, node: usize, convolve: &Convolve, slot: usize) {
        let level = Some(Level::current());
        let before = std::mem::replace(&mut self.laid_out[slot], level);
        if self.used.trains() || before != level {
            let weights = self.weights(node, convolve);
            let taps: Vec<usize> = (0..convolve.geometry.taps()).collect();
            if self.in_halves(self.graph.nodes[node].shape) {
                self.halves[slot].fill(weights, &taps);
            } else {
                self.packed[slot].fill(weights, &taps, &convolve.geometry.forward());
            }
        }
    }

    /// Where the weights of a convolution lie.
    fn weights(&self, node: usize, convolve: &Convolve) -> Weights<'a> {
        let inputs = self.graph.channels(&convolve.from);
        let size = (inputs, self.graph.nodes[node].shape.channels);
        let data = self.given.parameters[convolve.weight];
        Weights::of_kernels(data, size, convolve.geometry.taps())
    }

    /// The bias in blocks; with a vector the sums of both, for each image.
    fn bias(&mut self, convolve: &Convolve, shape: Shape, slot: usize) -> Bias<'a> {
        let bias = self.given.parameters[convolve.bias];
        let vector = convolve.vector.and_then(|vector| self.vectors_of(vector));
        let images = if vector.is_some() { shape.images } else { 1 };
        let length = shape.blocks() * images * LANES;
        let to = &mut self.biases[slot];
        if to.len() < length {
            *to = Aligned::zeros(length);
        }
        to[..length].fill(0.0);
        for (channel, bias) in bias.iter().enumerate() {
            for image in 0..images {
                let place = normalise::vector_place(image, images, channel);
                to[place] = bias + vector.map_or(0.0, |vector| vector[place]);
            }
        }
        // SAFETY: the slot's memory stays as it is until the next step.
        let data = unsafe { std::slice::from_raw_parts(to.as_ptr(), length) };
        Bias {
            data,
            image: if vector.is_some() { LANES } else { 0 },
            block: images * LANES,
        }
    }

    fn attend(&mut self, node: usize, to: Id) {
        let Some((heads, [q, k, v])) = self.heads(node) else {
            return;
        };
        let shape = self.graph.nodes[node].shape;
        // SAFETY: the plan gives the result a place of its own.
        unsafe {
            attend(&heads, q, k, v, self.heads_to(to, shape));
        }
    }

    fn sum(&mut self, node: usize, to: Id) {
        let Op::Sum { a, b, scale } = self.graph.nodes[node].op else {
            return;
        };
        let (Some(Place::Buffer(a)), Some(Place::Buffer(b))) = (self.results[a], self.results[b])
        else {
            return;
        };
        by_element!(self.memory.is_half(to), E => {
            let (a, b) = (self.memory.read::<E>(a), self.memory.read::<E>(b));
            let to = self.memory.write::<E>(to).par_chunks_mut(CHUNK);
            to.zip(a.par_chunks(CHUNK))
                .zip(b.par_chunks(CHUNK))
                .for_each(|((to, a), b)| scaled_sum(to, a, b, scale));
        });
    }

    /// Carries out what a value has in store.
    fn copy(&mut self, node: usize, to: Id) {
        let Op::Copy(value) = &self.graph.nodes[node].op else {
            return;
        };
        let shape = self.graph.nodes[node].shape;
        let source = self.source(value);
        let window = Window::pointwise(shape.height, shape.width);
        let (layout, blocks) = (window.layout(1, shape.height), shape.blocks());
        if self.memory.is_half(to) {
            let images = self.memory.write::<Bf16>(to).par_chunks_mut(shape.image());
            return images.enumerate().for_each(|(image, to)| {
                let mut rows = Rows::new(&source);
                for (index, to) in to.chunks_mut(shape.width * LANES).enumerate() {
                    let (block, row) = (index / shape.height, (index % shape.height) as isize);
                    rows.lay(&window, &layout, (image, block), row, to, (0, LANES));
                }
            });
        }
        let images = self.memory.write(to).par_chunks_mut(shape.image());
        images.enumerate().for_each(|(image, to)| {
            gather(
                &source,
                &window,
                &layout,
                image..image + 1,
                0,
                0..blocks,
                to,
            );
        });
    }
}

/// The backward steps.
impl Pass<'_> {
    fn backward_step(&mut self, step: &Step, found: &mut Found<'_>) {
        match step {
            Step::Scale { g, scale } => by_element!(self.memory.is_half(*g), E => {
                let g = self.memory.write::<E>(*g).par_chunks_mut(CHUNK);
                g.for_each(|g| scale_all(g, *scale));
            }),
            Step::BiasGradient { node, g, vector } => self.bias_gradient(*node, *g, *vector, found),
            Step::WeightGradient { node, g, to } => self.weight_gradient(*node, *g, *to, found),
            Step::InputGradient {
                node,
                g,
                first,
                channels,
                to,
            } => {
                self.input_gradient(*node, *g, (*first, *channels), *to);
            }
            Step::Downsample { from, to, shape } => self.downsample(*from, *to, *shape),
            Step::MaskGradient { mask, g } => {
                let scale = self.mask_scale();
                by_element!(self.memory.is_half(*g), E => {
                    let g = self.memory.write::<E>(*g).par_chunks_mut(CHUNK);
                    g.zip(self.masks[*mask].par_chunks(CHUNK))
                        .for_each(|(g, kept)| drop_gradient(g, kept, scale));
                });
            }
            Step::SiluGradient { value, g } => by_element!(self.memory.is_half(*g), E => {
                self.silu_gradient::<E>(value, *g);
            }),
            Step::NormGradient {
                value,
                g,
                to,
                vectors,
            } => by_element!(self.memory.is_half(*g), E => {
                self.norm_gradient::<E>(value, *g, to, *vectors, found);
            }),
            Step::Part {
                g,
                shape,
                first,
                part,
                to,
            } => by_element!(self.memory.is_half(*g), E => {
                self.part::<E>(*g, *shape, *first, *part, *to);
            }),
            Step::AttentionGradient { node, g, to } => self.attention_gradient(*node, *g, *to),
            Step::Add { from, to } => {
                by_element!(self.memory.is_half(*to), E => {
                    let (from, to) = (self.memory.read::<E>(*from), self.memory.write::<E>(*to));
                    to.par_chunks_mut(CHUNK)
                        .zip(from.par_chunks(CHUNK))
                        .for_each(|(to, from)| add_all(to, from));
                });
            }
            step => self.compute(step), // again
        }
    }

    /// Sums over pixels of each channel of each image; over the images they are the gradient of the bias.
    fn bias_gradient(
        &mut self,
        node: usize,
        g: Place,
        vector: Option<Sink>,
        found: &mut Found<'_>,
    ) {
        let Op::Convolve(Convolve { bias, .. }) = &self.graph.nodes[node].op else {
            return;
        };
        let shape = self.graph.nodes[node].shape;
        let dy = self.gradient_source(node, g);
        let sums = channel_sums(&dy, shape.images);
        for channel in 0..shape.channels {
            let of_images = sums.iter().map(|sums| sums[channel]);
            found.put(*bias, channel, of_images.sum::<f64>() as f32);
        }
        found.written[*bias] = true;
        if let Some(sink) = vector {
            let to = self.memory.write::<f32>(sink.id);
            for (image, sums) in sums.iter().enumerate() {
                for (channel, &sum) in sums.iter().enumerate() {
                    let to = &mut to[normalise::vector_place(image, shape.images, channel)];
                    *to = sum as f32 + if sink.accumulate { *to } else { 0.0 };
                }
            }
        }
    }

    fn weight_gradient(&self, node: usize, g: Place, to: Option<Kept>, found: &mut Found<'_>) {
        let Op::Convolve(convolve) = &self.graph.nodes[node].op else {
            return;
        };
        let (source, dy) = (self.source(&convolve.from), self.gradient_source(node, g));
        let shape = self.graph.nodes[node].shape;
        let window = &convolve.geometry.forward();
        let (batch, source, dy) = (shape.images, &source, &dy);
        let in_halves = bf16::weight_gradient::WeightGradient {
            batch,
            source,
            window,
            dy,
        };
        let in_floats = WeightGradient {
            batch,
            source,
            window,
            dy,
        };
        let taps = convolve.geometry.taps();
        let (start, accumulate) = match to {
            Some(_) => (0, false),
            None => (
                found.starts[convolve.weight],
                found.written[convolve.weight],
            ),
        };
        let places: Vec<usize> = (start..start + taps).collect();
        let target = Target {
            memory: &found.memory,
            taps: &places,
            input: taps,
            output: taps * source.channels(),
            accumulate,
        };
        // SAFETY: nothing else is written while this step runs; the plan gives what is kept a place of its own.
        unsafe {
            match to {
                Some(Kept { gradient, sums }) if self.in_halves(shape) => {
                    in_halves.run_in_halves(self.memory.write(sums), self.memory.write(gradient));
                }
                Some(Kept { gradient, sums }) => {
                    let sums = self.memory.write::<f32>(sums);
                    let memory = &Shared::new(sums);
                    in_floats.run(Target { memory, ..target });
                    let gradient = self.memory.write::<Bf16>(gradient);
                    let sums = sums.par_chunks(CHUNK);
                    sums.zip(gradient.par_chunks_mut(CHUNK))
                        .for_each(|(sums, gradient)| narrow_all(sums, gradient));
                }
                None if self.in_halves(shape) => in_halves.run(target),
                None => in_floats.run(target),
            }
        }
        found.written[convolve.weight] = true;
    }

    /// The gradient of some of the channels that a convolution reads: its weights turned round over the gradient.
    fn input_gradient(&mut self, node: usize, g: Place, channels: (usize, usize), to: Sink) {
        if self.in_halves(self.graph.nodes[node].shape) {
            let mut packed = std::mem::take(&mut self.halves[0]);
            self.input_gradient_by::<Bf16, _>(node, g, channels, to, &mut packed);
            self.halves[0] = packed;
        } else {
            let mut packed = std::mem::take(&mut self.packed[0]);
            self.input_gradient_by::<f32, _>(node, g, channels, to, &mut packed);
            self.packed[0] = packed;
        }
    }

    /// As [`Pass::input_gradient`], with weights laid out in `packed`.
    fn input_gradient_by<E: Stored, W: LaidOut<E>>(
        &self,
        node: usize,
        g: Place,
        (first, channels): (usize, usize),
        to: Sink,
        packed: &mut W,
    ) {
        let Op::Convolve(convolve) = &self.graph.nodes[node].op else {
            return;
        };
        let geometry = &convolve.geometry;
        let gradient = DataGradient {
            batch: self.graph.nodes[node].shape.images,
            geometry,
            dy: &self.gradient_source(node, g),
            turned: self.weights(node, convolve).turned(first, channels),
            plus: to
                .accumulate
                .then(|| Addend(E::memory(&self.memory).at(0, 0).cast_const())),
        };
        let size = (channels, geometry.height, geometry.width);
        // SAFETY: the plan gives the gradient a place of its own.
        unsafe {
            gradient.run(packed, self.blocks_at::<E>(to.id, size));
        }
    }

    fn downsample(&mut self, from: Id, to: Id, shape: Shape) {
        let row = shape.width * LANES;
        by_element!(self.memory.is_half(to), E => {
            let (from, to) = (self.memory.read::<E>(from), self.memory.write::<E>(to));
            to.par_chunks_mut(row)
                .zip(from.par_chunks(4 * row))
                .for_each(|(to, from)| {
                    let (upper, lower) = from.split_at(2 * row);
                    sum_of_four(to, upper, lower);
                });
        });
    }

    fn silu_gradient<E: Stored>(&mut self, value: &Value, g: Id) {
        let x = self.parts(&value.parts);
        let shape = self.graph.nodes[value.parts[0]].shape;
        let plane = shape.height * shape.width * LANES;
        let blocks = x.blocks();
        let planes = self.memory.write::<E>(g).par_chunks_mut(plane).enumerate();
        planes.for_each(|(task, g)| {
            if let Some(x) = x.plane::<E>(task / blocks, task % blocks) {
                silu_gradient(g, x);
            }
        });
    }

    fn norm_gradient<E: Stored>(
        &mut self,
        value: &Value,
        g: Id,
        to: &[Option<Sink>],
        vectors: Option<Sink>,
        found: &mut Found<'_>,
    ) {
        let Some(norm) = value.norm else {
            return;
        };
        let recorded = &self.graph.norms[norm];
        let shape = self.graph.nodes[value.parts[0]].shape;
        let x = self.parts(&value.parts);
        let affinity = self.affinity(norm);
        let state = &self.norms[norm];
        let backward = Backward {
            x: &x,
            batch: shape.images,
            groups: recorded.groups.count,
            silu: value.silu,
            statistics: &state.statistics,
            coefficients: &state.coefficients,
            affinity,
        };
        let shared: Vec<Option<Shared<'_, E>>> = to
            .iter()
            .map(|sink| sink.map(|sink| Shared::new(self.memory.write::<E>(sink.id))))
            .collect();
        let parts = shared
            .iter()
            .zip(to)
            .zip(&value.parts)
            .map(|((memory, sink), &part)| {
                Some(PartGradient {
                    memory: memory.as_ref()?,
                    image: self.graph.nodes[part].shape.image(),
                    accumulate: sink.as_ref()?.accumulate,
                })
            });
        let parts: Vec<Option<PartGradient<'_, E>>> = parts.collect();
        // SAFETY: the plan gives each gradient a place of its own.
        let sums = unsafe { backward.run(self.memory.write::<E>(g), &parts) };
        let mut conditioned =
            vectors.map(|sink| (self.memory.write::<f32>(sink.id), sink.accumulate));
        let channels = affinity.gamma.len();
        normalise::affine_gradients(
            &sums,
            affinity,
            shape.images,
            |channel, gamma, beta| {
                found.put(recorded.gamma, channel, gamma);
                found.put(recorded.beta, channel, beta);
            },
            |image, channel, scale, shift| {
                if let Some((to, accumulate)) = &mut conditioned {
                    for (channel, value) in [(channel, scale), (channels + channel, shift)] {
                        let to = &mut to[normalise::vector_place(image, shape.images, channel)];
                        *to = value + if *accumulate { *to } else { 0.0 };
                    }
                }
            },
        );
        found.written[recorded.gamma] = true;
        found.written[recorded.beta] = true;
    }

    /// Some channels of a gradient to a part's own.
    fn part<E: Stored>(&mut self, g: Id, shape: Shape, first: usize, part: Shape, to: Sink) {
        let (g, to_data) = (self.memory.read::<E>(g), self.memory.write::<E>(to.id));
        let pixels = shape.height * shape.width;
        to_data
            .par_chunks_mut(part.image())
            .enumerate()
            .for_each(|(image, to_data)| {
                for channel in 0..part.blocks() * LANES {
                    let from = first + channel;
                    let inside = channel < part.channels;
                    let from = &g[image * shape.image()
                        + from / LANES * pixels * LANES * usize::from(inside)..];
                    let lane = (first + channel) % LANES;
                    let to_data = to_data[channel / LANES * pixels * LANES + channel % LANES..]
                        .iter_mut()
                        .step_by(LANES);
                    for (pixel, to_data) in to_data.take(pixels).enumerate() {
                        let value = if inside {
                            from[pixel * LANES + lane].widen()
                        } else {
                            0.0
                        };
                        let before = if to.accumulate { to_data.widen() } else { 0.0 };
                        *to_data = E::narrow(value + before);
                    }
                }
            });
    }

    fn attention_gradient(&mut self, node: usize, g: Place, to: [Id; 3]) {
        let Some((heads, [q, k, v])) = self.heads(node) else {
            return;
        };
        let (Place::Buffer(g), shape) = (g, self.graph.nodes[node].shape) else {
            return;
        };
        let g = self.heads_of(g, shape);
        let [dq, dk, dv] = to.map(|id| self.heads_to(id, shape));
        // SAFETY: the plan gives each gradient a place of its own.
        unsafe {
            attend_backward(&heads, q, k, v, g, dq, dk, dv);
        }
    }
}

/// What steps read.
impl<'a> Pass<'a> {
    /// A node's vectors, if they lie in the arena.
    fn vectors_of(&self, node: usize) -> Option<&'a [f32]> {
        match self.results[node]? {
            Place::Buffer(id) => Some(self.memory.read(id)),
            Place::Outside => None,
        }
    }

    /// A buffer as the place of images in blocks.
    fn blocks_at<E: Stored>(&self, id: Id, size: (usize, usize, usize)) -> Output<'_, E> {
        Output {
            start: self.memory.start::<E>(id),
            ..Output::whole(E::memory(&self.memory), Layout::Blocked, size)
        }
    }

    /// The activations of some nodes, one after the other, as they are.
    fn parts(&self, nodes: &[usize]) -> Source<'a> {
        let shape = self.graph.nodes[nodes[0]].shape;
        let part = |&node: &usize| {
            let shape = self.graph.nodes[node].shape;
            match self.results[node] {
                Some(Place::Buffer(id)) => Part {
                    data: self.memory.data(id),
                    layout: Layout::Blocked,
                    channels: shape.channels,
                    image: shape.image(),
                },
                _ => Part {
                    data: Data::Floats(self.given.images),
                    layout: Layout::Plain,
                    channels: shape.channels,
                    image: shape.channels * shape.height * shape.width,
                },
            }
        };
        Source {
            parts: nodes.iter().map(part).collect(),
            height: shape.height,
            width: shape.width,
            affine: None,
            mask: None,
            upsampled: false,
        }
    }

    /// A value, with all that is done to it on the way.
    fn source<'s>(&'s self, value: &Value) -> Source<'s> {
        let coefficients = value.norm.map(|norm| &*self.norms[norm].coefficients);
        Source {
            affine: (coefficients.is_some() || value.silu).then_some(Affine {
                coefficients,
                silu: value.silu,
            }),
            mask: value.mask.map(|mask| Mask {
                kept: &self.masks[mask],
                scale: self.mask_scale(),
            }),
            upsampled: value.upsampled,
            ..self.parts(&value.parts)
        }
    }

    fn mask_scale(&self) -> f32 {
        (1.0 / (1.0 - self.graph.rate)) as f32
    }

    /// The gradient of a convolution's output.
    fn gradient_source(&self, node: usize, g: Place) -> Source<'a> {
        let shape = self.graph.nodes[node].shape;
        let part = match g {
            Place::Buffer(id) => Part {
                data: self.memory.data(id),
                layout: Layout::Blocked,
                channels: shape.channels,
                image: shape.image(),
            },
            Place::Outside => Part {
                data: Data::Floats(self.given.gradient),
                layout: Layout::Plain,
                channels: shape.channels,
                image: shape.channels * shape.height * shape.width,
            },
        };
        Source::plain(part, shape.height, shape.width)
    }

    fn affinity(&self, norm: usize) -> Affinity<'a> {
        let norm = &self.graph.norms[norm];
        Affinity {
            gamma: self.given.parameters[norm.gamma],
            beta: self.given.parameters[norm.beta],
            scale_shift: norm
                .scale_shift
                .and_then(|vectors| self.vectors_of(vectors)),
        }
    }

    fn heads(&self, node: usize) -> Option<(Heads, [HeadsView<'_>; 3])> {
        let Op::Attend {
            query,
            key,
            value,
            heads,
        } = self.graph.nodes[node].op
        else {
            return None;
        };
        let shape = self.graph.nodes[node].shape;
        let size = shape.channels / heads;
        let pixels = shape.height * shape.width;
        let of = |node: usize| match self.results[node] {
            Some(Place::Buffer(id)) => Some(self.heads_of(id, shape)),
            _ => None,
        };
        let heads = Heads {
            batch: shape.images,
            heads,
            queries: pixels,
            keys: pixels,
            size,
            value_size: size,
            scale: (1.0 / (size as f64).sqrt()) as f32,
        };
        Some((heads, [of(query)?, of(key)?, of(value)?]))
    }
}

impl Pass<'_> {
    fn heads_of(&self, id: Id, shape: Shape) -> HeadsView<'_> {
        HeadsView {
            data: self.memory.data(id),
            order: Order::Blocked,
            image: shape.image(),
        }
    }

    fn heads_to(&self, id: Id, shape: Shape) -> HeadsViewMut<'_> {
        let (memory, start) = if self.memory.is_half(id) {
            let memory = HeadsMemory::Halves(&self.memory.halves);
            (memory, self.memory.start::<Bf16>(id))
        } else {
            let memory = HeadsMemory::Floats(&self.memory.floats);
            (memory, self.memory.start::<f32>(id))
        };
        HeadsViewMut {
            memory,
            start,
            order: Order::Blocked,
            image: shape.image(),
        }
    }
}

/// Elements that one task of an element-wise step works on.
const CHUNK: usize = 1 << 14;

per_processor! {
    fn scaled_sum<E: Element>(to: &mut [E], a: &[E], b: &[E], scale: f32) {
        for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
            *to = E::narrow((a.widen() + b.widen()) * scale);
        }
    }

    fn scale_all<E: Element>(to: &mut [E], scale: f32) {
        for to in to {
            *to = E::narrow(to.widen() * scale);
        }
    }

    fn narrow_all(from: &[f32], to: &mut [Bf16]) {
        for (from, to) in from.iter().zip(to) {
            *to = Bf16::narrow(*from);
        }
    }

    fn add_all<E: Element>(to: &mut [E], from: &[E]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = E::narrow(to.widen() + from.widen());
        }
    }

    /// Sums of 2 by 2 pixels of two rows.
    fn sum_of_four<E: Element>(to: &mut [E], upper: &[E], lower: &[E]) {
        let (to, _) = to.as_chunks_mut::<LANES>();
        let (upper, _) = upper.as_chunks::<LANES>();
        let (lower, _) = lower.as_chunks::<LANES>();
        for ((to, upper), lower) in to.iter_mut().zip(upper.chunks_exact(2)).zip(lower.chunks_exact(2)) {
            let two = |pixels: &[[E; LANES]], lane: usize| pixels[0][lane].widen() + pixels[1][lane].widen();
            for (lane, to) in to.iter_mut().enumerate() {
                *to = E::narrow(two(upper, lane) + two(lower, lane));
            }
        }
    }

    fn silu_gradient<E: Element>(g: &mut [E], x: &[E]) {
        for (g, x) in g.iter_mut().zip(x) {
            *g = E::narrow(g.widen() * silu_slope(x.widen()));
        }
    }

    fn drop_gradient<E: Element>(g: &mut [E], kept: &[u8], scale: f32) {
        for (g, &kept) in g.iter_mut().zip(kept) {
            *g = if kept == 0 { E::default() } else { E::narrow(g.widen() * scale) };
        }
    }
}
