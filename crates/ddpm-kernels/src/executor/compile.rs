//! From what a network computes to what is done when: the steps of the forward pass, those of the backward pass (each
//! node's after those of all that read it), and a place in memory for whatever lives between two of them.
//!
//! Where the graph says so ([`Graph::recompute`]), what only nodes of one block read is not kept from one pass to the other:
//! the backward pass computes it again, by the same steps, before it goes through that block.

use candle_core::{Result, bail};

use super::arena::{Buffer, places};
use super::graph::{Convolve, Graph, Node, Op, Shape, Value};
use super::{Precision, Use};
use crate::bf16::weight_gradient;
use crate::tile::LANES;

/// What a plan is for: convolutions that prepare what they read pixel by pixel, and add what is added while they write; or those
/// of a library, which do neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Processor,
    #[cfg(any(test, feature = "cuda"))]
    Card,
}

/// A buffer of the program.
pub(super) type Id = usize;

/// Where an activation or its gradient lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the arena.
    Buffer(Id),
    /// What the network is given, or (as a gradient) the gradient of what it gives, with channels one after the other.
    Outside,
}

/// One thing to be done. Nodes, norms and masks are numbered as in the graph.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Takes in the vectors.
    Vectors {
        node: usize,
        to: Id,
    },
    /// Draws a mask.
    Mask {
        mask: usize,
    },
    /// Statistics and coefficients of a normalisation.
    Normalise {
        norm: usize,
    },
    Convolve {
        node: usize,
        to: Place,
    },
    Attend {
        node: usize,
        to: Id,
    },
    Sum {
        node: usize,
        to: Id,
    },
    Copy {
        node: usize,
        to: Id,
    },
    /// g = g scale.
    Scale {
        g: Id,
        scale: f32,
    },
    /// The sums of g over pixels: the gradient of the bias, and of the vector if there is one.
    BiasGradient {
        node: usize,
        g: Place,
        vector: Option<Sink>,
    },
    /// The gradient of the weight: among the gradients, or (`to`) in the arena, where it stays.
    WeightGradient {
        node: usize,
        g: Place,
        to: Option<Kept>,
    },
    /// The gradient of some of the channels that a convolution reads, from `first`.
    InputGradient {
        node: usize,
        g: Place,
        first: usize,
        channels: usize,
        to: Sink,
    },
    /// Sums 2 by 2 pixels.
    Downsample {
        from: Id,
        to: Id,
        shape: Shape,
    },
    /// Through dropout.
    MaskGradient {
        mask: usize,
        g: Id,
    },
    /// Through SiLU alone.
    SiluGradient {
        value: Value,
        g: Id,
    },
    /// Through normalisation and SiLU, to each part; and to scale and shift.
    NormGradient {
        value: Value,
        g: Id,
        to: Vec<Option<Sink>>,
        vectors: Option<Sink>,
    },
    /// Some blocks of channels of g to a part's gradient.
    Part {
        g: Id,
        shape: Shape,
        first: usize,
        part: Shape,
        to: Sink,
    },
    AttentionGradient {
        node: usize,
        g: Place,
        to: [Id; 3],
    },
    /// to += from.
    Add {
        from: Id,
        to: Id,
    },
}

/// The gradient of a weight in the arena, as bf16, and the sums that it is rounded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) gradient: Id,
    pub(super) sums: Id,
}

/// A gradient that a step writes, or adds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sink {
    pub(super) id: Id,
    pub(super) accumulate: bool,
}

/// Steps and memory.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) forward: Vec<Step>,
    /// Some of them those of the forward pass, where a result is computed again.
    pub(super) backward: Vec<Step>,
    /// Where each node's result lies in the forward pass.
    pub(super) results: Vec<Option<Place>>,
    /// The same in the backward pass.
    pub(super) results_backward: Vec<Option<Place>>,
    pub(super) buffers: Vec<Placed>,
    /// The buffers of the gradients of parameters that stay in the arena.
    pub(super) kept: Vec<Option<Id>>,
    /// Floats of the whole memory.
    pub(super) arena: usize,
}

impl Program {
    /// Of each parameter whose gradient stays in the arena, the halves before it.
    pub(super) fn halves_kept(&self) -> Vec<Option<usize>> {
        let before = |id: Id| 2 * self.buffers[id].place;
        self.kept.iter().map(|kept| kept.map(before)).collect()
    }
}

/// A buffer in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    /// Floats before it.
    pub(super) place: usize,
    /// Numbers in it.
    pub(super) count: usize,
    /// Whether they are bf16, two in the place of a float.
    pub(super) halves: bool,
}

/// Plans a network that gives this value; for training also its gradient.
///
/// # Errors
/// In training a parameter that no gradient reaches.
pub(super) fn compile(
    graph: &mut Graph,
    output: &Value,
    used: Use,
    precision: Precision,
) -> Result<Program> {
    Ok(draft(graph, output, used, precision, Target::Processor)?.program(graph))
}

/// Steps, and what lies in buffers that have no place yet.
#[derive(Debug)]
#[cfg_attr(not(any(test, feature = "cuda")), allow(dead_code))] // a processor's plan needs not all of it
pub(super) struct Draft {
    pub(super) output: usize,
    pub(super) forward: Vec<Step>,
    pub(super) backward: Vec<Step>,
    /// As in [`Program`].
    pub(super) results: Vec<Option<Place>>,
    pub(super) results_backward: Vec<Option<Place>>,
    kept: Vec<Option<Id>>,
    /// How many numbers each buffer has, and whether they are halves.
    pub(super) numbers: Vec<(usize, bool)>,
    /// Which nodes the output depends on.
    pub(super) alive: Vec<bool>,
}

/// The steps of [`compile`].
///
/// # Errors
/// As [`compile`].
pub(super) fn draft(
    graph: &mut Graph,
    output: &Value,
    used: Use,
    precision: Precision,
    target: Target,
) -> Result<Draft> {
    let output = graph.stored(output);
    let alone = |node: &Node| !node.op.reads().contains(&output);
    match &graph.nodes[output].op {
        Op::Convolve(convolve)
            if convolve.residual.is_none()
                && convolve.scale == 1.0
                && graph.nodes.iter().all(alone) => {}
        _ => bail!("the last operation of a network must be a convolution that nothing else reads"),
    }
    let alive = alive(graph, output);
    let mut compiler = Compiler {
        inner: inner(graph, &alive, output),
        graph,
        output,
        forward: Vec::new(),
        backward: Vec::new(),
        results: vec![None; graph.nodes.len()],
        gradients: vec![None; graph.nodes.len()],
        numbers: Vec::new(),
        precision,
        target,
        norms_done: vec![false; graph.norms.len()],
        masks_done: vec![false; graph.masks.len()],
        reached: vec![false; graph.parameters.len()],
        keeps: used == Use::TrainingInOnePass && precision == Precision::Bf16,
        kept: vec![None; graph.parameters.len()],
        waiting: Vec::new(),
        alive,
    };
    for node in 0..=output {
        compiler.forward(node);
    }
    let results = compiler.results.clone();
    if used.trains() {
        compiler.gradients[output] = Some(Place::Outside);
        let mut block = None;
        for node in (0..=output).rev() {
            if block.replace(graph.nodes[node].block) != Some(graph.nodes[node].block) {
                compiler.recompute(graph.nodes[node].block);
            }
            compiler.backward(node);
        }
        if let Some(missed) = compiler.reached.iter().position(|reached| !reached) {
            bail!("parameter {missed} has no influence on the output");
        }
    }
    Ok(Draft {
        output,
        forward: compiler.forward,
        backward: compiler.backward,
        results,
        results_backward: compiler.results,
        kept: compiler.kept,
        numbers: compiler.numbers,
        alive: compiler.alive,
    })
}

/// Which nodes the output depends on.
fn alive(graph: &Graph, output: usize) -> Vec<bool> {
    let mut alive = vec![false; graph.nodes.len()];
    alive[output] = true;
    for node in (0..=output).rev() {
        if alive[node] {
            let op = &graph.nodes[node].op;
            let reads = op.reads().into_iter().chain(graph.scale_shift_of(op));
            reads.for_each(|read| alive[read] = true);
        }
    }
    alive
}

/// Which nodes may be forgotten after the forward pass: those that only their own block reads, where blocks are computed
/// again. What belongs to vectors is little, and stays.
fn inner(graph: &Graph, alive: &[bool], output: usize) -> Vec<bool> {
    let mut inner: Vec<bool> = graph
        .nodes
        .iter()
        .zip(alive)
        .map(|(node, alive)| {
            let computed = !matches!(node.op, Op::Images | Op::Vectors | Op::Absorbed);
            graph.recompute && computed && *alive && !node.shape.vectors
        })
        .collect();
    inner[output] = false;
    for (node, _) in graph.nodes.iter().zip(alive).filter(|(_, alive)| **alive) {
        for read in node.op.reads() {
            inner[read] &= graph.nodes[read].block == node.block;
        }
    }
    inner
}

struct Compiler<'a> {
    graph: &'a Graph,
    output: usize,
    forward: Vec<Step>,
    backward: Vec<Step>,
    /// Of the forward pass while that is planned, then of the backward pass.
    results: Vec<Option<Place>>,
    gradients: Vec<Option<Place>>,
    /// How many numbers each buffer has, and whether they are halves.
    numbers: Vec<(usize, bool)>,
    precision: Precision,
    target: Target,
    norms_done: Vec<bool>,
    masks_done: Vec<bool>,
    reached: Vec<bool>,
    /// Whether gradients of weights stay in the arena, and which do.
    keeps: bool,
    kept: Vec<Option<Id>>,
    /// Gradients of prepared values that more convolutions read: the value, its gradient, and how many are still to come.
    waiting: Vec<(Value, Id, usize)>,
    alive: Vec<bool>,
    inner: Vec<bool>,
}

impl Compiler<'_> {
    fn buffer(&mut self, shape: Shape) -> Id {
        // What belongs to vectors is little, and goes into every image.
        let halves = self.precision == Precision::Bf16 && !shape.vectors;
        let count = match self.target {
            Target::Processor => shape.length(),
            #[cfg(any(test, feature = "cuda"))]
            Target::Card => shape.numbers(),
        };
        self.reserve(count, halves)
    }

    fn reserve(&mut self, count: usize, halves: bool) -> Id {
        self.numbers.push((count, halves));
        self.numbers.len() - 1
    }

    fn forward(&mut self, node: usize) {
        if !self.alive[node] {
            return;
        }
        let graph = self.graph;
        let shape = graph.nodes[node].shape;
        match &graph.nodes[node].op {
            Op::Absorbed => {}
            Op::Images => self.results[node] = Some(Place::Outside),
            Op::Vectors => {
                let to = self.result(node, shape);
                self.forward.push(Step::Vectors { node, to });
            }
            op => {
                if let Op::Convolve(Convolve { from: value, .. }) | Op::Copy(value) = op {
                    self.prepare(value);
                }
                let step = self.computed(node);
                self.forward.extend(step);
            }
        }
    }

    /// The step that computes a node's result, which has its place from now on.
    fn computed(&mut self, node: usize) -> Option<Step> {
        let graph = self.graph;
        let shape = graph.nodes[node].shape;
        Some(match &graph.nodes[node].op {
            Op::Images | Op::Vectors | Op::Absorbed => return None,
            Op::Convolve(convolve) => {
                let to = if node == self.output {
                    Place::Outside
                } else {
                    match convolve
                        .residual
                        .filter(|&residual| self.ends_here(residual, node))
                    {
                        Some(residual) => self.results[residual].unwrap_or(Place::Outside),
                        None => Place::Buffer(self.buffer(shape)),
                    }
                };
                self.results[node] = Some(to);
                Step::Convolve { node, to }
            }
            Op::Attend { .. } => {
                let to = self.result(node, shape);
                Step::Attend { node, to }
            }
            Op::Sum { .. } => {
                let to = self.result(node, shape);
                Step::Sum { node, to }
            }
            Op::Copy(_) => {
                let to = self.result(node, shape);
                Step::Copy { node, to }
            }
        })
    }

    /// Computes again what a block has forgotten and its gradients need, or what that needs in turn. Normalisations and
    /// masks are still what they were.
    fn recompute(&mut self, block: usize) {
        let graph = self.graph;
        let mut needed = Vec::new();
        for node in (0..=self.output).rev() {
            if !self.inner[node] || graph.nodes[node].block != block {
                continue;
            }
            let read = |(index, other): (usize, &Node)| {
                let again = needed.contains(&index) && other.op.reads().contains(&node);
                again || (self.alive[index] && other.op.reads_for_gradients().contains(&node))
            };
            if graph.nodes.iter().enumerate().any(read) {
                needed.push(node);
            }
        }
        for node in needed.into_iter().rev() {
            let step = self.computed(node);
            self.backward.extend(step);
        }
    }

    fn result(&mut self, node: usize, shape: Shape) -> Id {
        let id = self.buffer(shape);
        self.results[node] = Some(Place::Buffer(id));
        id
    }

    /// Whether a result may be overwritten by the node that adds it: nothing else reads it then or later.
    fn ends_here(&self, residual: usize, node: usize) -> bool {
        if self.target != Target::Processor {
            return false;
        }
        let graph = self.graph;
        let reads = |other: &Node| {
            other
                .op
                .reads()
                .iter()
                .filter(|&&read| read == residual)
                .count()
        };
        let readers = graph.nodes.iter().map(reads).sum::<usize>();
        let normalised = graph
            .norms
            .iter()
            .any(|norm| norm.parts.contains(&residual));
        let buffer = matches!(self.results[residual], Some(Place::Buffer(_)));
        // Another block's result is still needed as it was, where this node is computed again.
        let at_hand = !graph.recompute || graph.nodes[residual].block == graph.nodes[node].block;
        readers == 1 && !normalised && buffer && at_hand && reads(&graph.nodes[node]) == 1
    }

    /// Steps that a value needs before it can be read.
    fn prepare(&mut self, value: &Value) {
        if let Some(norm) = value.norm
            && !std::mem::replace(&mut self.norms_done[norm], true)
        {
            self.forward.push(Step::Normalise { norm });
        }
        if let Some(mask) = value.mask
            && !std::mem::replace(&mut self.masks_done[mask], true)
        {
            self.forward.push(Step::Mask { mask });
        }
    }

    /// The steps that lead from the gradient of a node to those of what it reads.
    fn backward(&mut self, node: usize) {
        let Some(g) = self.gradients[node] else {
            return;
        };
        let graph = self.graph;
        let shape = graph.nodes[node].shape;
        match &graph.nodes[node].op {
            Op::Images | Op::Vectors | Op::Absorbed => {}
            Op::Convolve(convolve) => {
                self.scale(g, convolve.scale);
                let vector = convolve.vector.map(|vector| self.sink(vector));
                self.backward.push(Step::BiasGradient { node, g, vector });
                let to = self.kept(node, convolve);
                self.backward.push(Step::WeightGradient { node, g, to });
                self.reached[convolve.weight] = true;
                self.reached[convolve.bias] = true;
                self.input_gradient(node, &convolve.from, g);
                if let Some(residual) = convolve.residual {
                    self.hand_on(residual, g);
                }
            }
            Op::Attend {
                query, key, value, ..
            } => {
                let to = [(); 3].map(|()| self.buffer(shape));
                self.backward.push(Step::AttentionGradient { node, g, to });
                for (node, id) in [query, key, value].into_iter().zip(to) {
                    self.hand_on(*node, Place::Buffer(id));
                }
            }
            Op::Sum { a, b, scale } => {
                self.scale(g, *scale);
                if let Place::Buffer(id) = g {
                    let to = self.sink(*a);
                    self.backward.push(Step::Part {
                        g: id,
                        shape,
                        first: 0,
                        part: shape,
                        to,
                    });
                }
                self.hand_on(*b, g);
            }
            Op::Copy(value) => {
                if let Place::Buffer(id) = g {
                    self.through(value, id);
                }
            }
        }
    }

    /// Where the gradient of a weight stays in the arena, if no other node adds to it.
    fn kept(&mut self, node: usize, convolve: &Convolve) -> Option<Kept> {
        let of_weight =
            |other: &&Node| matches!(&other.op, Op::Convolve(it) if it.weight == convolve.weight);
        let graph = self.graph;
        if !self.keeps || graph.nodes.iter().filter(of_weight).count() > 1 {
            return None;
        }
        let count = graph.parameters[convolve.weight].iter().product();
        let gradient = self.reserve(count, true);
        self.kept[convolve.weight] = Some(gradient);
        let (shape, inputs) = (graph.nodes[node].shape, graph.channels(&convolve.from));
        let sums = match shape.vectors {
            true => count, // they are added up in f32
            false => {
                let taps = convolve.geometry.taps();
                weight_gradient::sums(shape.images, inputs, shape.channels, taps)
            }
        };
        let sums = self.reserve(sums, false);
        Some(Kept { gradient, sums })
    }

    /// The gradient of a sum that is scaled. (The last operation, whose gradient comes from outside, is not.)
    fn scale(&mut self, g: Place, scale: f32) {
        if let Place::Buffer(g) = g
            && scale != 1.0
        {
            self.backward.push(Step::Scale { g, scale });
        }
    }

    fn needs_gradient(&self, node: usize) -> bool {
        !matches!(self.graph.nodes[node].op, Op::Images | Op::Vectors)
    }

    /// Where a contribution to a node's gradient goes.
    fn sink(&mut self, node: usize) -> Sink {
        if let Some(Place::Buffer(id)) = self.gradients[node] {
            return Sink {
                id,
                accumulate: true,
            };
        }
        let id = self.buffer(self.graph.nodes[node].shape);
        self.gradients[node] = Some(Place::Buffer(id));
        Sink {
            id,
            accumulate: false,
        }
    }

    /// Gives a gradient that nobody reads any more to a node: as its own, or to be added.
    fn hand_on(&mut self, node: usize, g: Place) {
        if !self.needs_gradient(node) {
            return;
        }
        match (self.gradients[node], g) {
            (None, Place::Buffer(_)) => self.gradients[node] = Some(g),
            (Some(Place::Buffer(to)), Place::Buffer(from)) => {
                self.backward.push(Step::Add { from, to })
            }
            _ => {}
        }
    }

    /// From the gradient of a convolution's output to those of the parts of its input.
    fn input_gradient(&mut self, node: usize, from: &Value, g: Place) {
        let of_parts = from.parts.iter().any(|&part| self.needs_gradient(part));
        if !of_parts && from.norm.is_none() {
            return;
        }
        if from.is_untouched() && (self.target == Target::Processor || from.parts.len() == 1) {
            let mut first = 0;
            for &part in &from.parts {
                let channels = self.graph.nodes[part].shape.channels;
                if self.needs_gradient(part) {
                    let to = self.sink(part);
                    self.backward.push(Step::InputGradient {
                        node,
                        g,
                        first,
                        channels,
                        to,
                    });
                }
                first += channels;
            }
            return;
        }
        self.whole_input_gradient(node, from, g);
    }

    /// The gradient of a prepared value: of all convolutions that read it, before it goes on to the parts.
    fn whole_input_gradient(&mut self, node: usize, from: &Value, g: Place) {
        let channels = self.graph.channels(from);
        let found = self.waiting.iter().position(|(value, ..)| value == from);
        let index = found.unwrap_or_else(|| {
            let (_, height, width) = self.graph.size(from);
            let shape = Shape {
                channels,
                height,
                width,
                ..self.graph.nodes[from.parts[0]].shape
            };
            let id = self.buffer(shape);
            self.waiting.push((from.clone(), id, self.readers(from)));
            self.waiting.len() - 1
        });
        let (_, id, to_come) = &mut self.waiting[index];
        *to_come -= 1;
        let (id, last) = (*id, *to_come == 0);
        let to = Sink {
            id,
            accumulate: found.is_some(),
        };
        self.backward.push(Step::InputGradient {
            node,
            g,
            first: 0,
            channels,
            to,
        });
        if last {
            self.waiting.swap_remove(index);
            self.through(from, id);
        }
    }

    /// Convolutions on the way to the output that read this value.
    fn readers(&self, value: &Value) -> usize {
        let reads =
            |node: &Node| matches!(&node.op, Op::Convolve(convolve) if convolve.from == *value);
        let nodes = self.graph.nodes.iter().zip(&self.alive);
        nodes.filter(|(node, alive)| **alive && reads(node)).count()
    }

    /// From the gradient of a value to those of its parts.
    fn through(&mut self, value: &Value, mut g: Id) {
        let shape = Shape {
            channels: self.graph.channels(value),
            ..self.graph.nodes[value.parts[0]].shape
        };
        if value.upsampled {
            let to = self.buffer(shape);
            self.backward.push(Step::Downsample { from: g, to, shape });
            g = to;
        }
        if let Some(mask) = value.mask {
            self.backward.push(Step::MaskGradient { mask, g });
        }
        if let Some(norm) = value.norm {
            let norm = &self.graph.norms[norm];
            self.reached[norm.gamma] = true;
            self.reached[norm.beta] = true;
            let vectors = norm.scale_shift.map(|vectors| self.sink(vectors));
            let to = value
                .parts
                .iter()
                .map(|&part| self.needs_gradient(part).then(|| self.sink(part)));
            let to = to.collect();
            self.backward.push(Step::NormGradient {
                value: value.clone(),
                g,
                to,
                vectors,
            });
            return;
        }
        if value.silu {
            self.backward.push(Step::SiluGradient {
                value: value.clone(),
                g,
            });
        }
        if let [part] = *value.parts {
            return self.hand_on(part, Place::Buffer(g));
        }
        let mut first = 0;
        for &part in &value.parts {
            let of_part = self.graph.nodes[part].shape;
            if self.needs_gradient(part) {
                let to = self.sink(part);
                self.backward.push(Step::Part {
                    g,
                    shape,
                    first,
                    part: of_part,
                    to,
                });
            }
            first += of_part.channels;
        }
    }
}

impl Draft {
    /// Finds how long each buffer lives, and a place for it.
    fn program(self, graph: &Graph) -> Program {
        let forward = self.forward.iter().map(|step| (step, &self.results));
        let backward = self.backward.iter();
        let backward = backward.map(|step| (step, &self.results_backward));
        let mut buffers = unused(&self.numbers);
        for (time, (step, results)) in forward.chain(backward).enumerate() {
            for id in touched(graph, step, results) {
                buffers[id].is_used_at(time);
            }
        }
        for &id in self.kept.iter().flatten() {
            buffers[id].last = usize::MAX; // until the next pass
        }
        let (places, arena) = places(&buffers);
        Program {
            forward: self.forward,
            backward: self.backward,
            kept: self.kept,
            results: self.results,
            results_backward: self.results_backward,
            buffers: places
                .iter()
                .zip(&self.numbers)
                .map(|(&place, &(count, halves))| Placed {
                    place,
                    count,
                    halves,
                })
                .collect(),
            arena,
        }
    }
}

/// Buffers of so many numbers that no step has touched yet.
pub(super) fn unused(numbers: &[(usize, bool)]) -> Vec<Buffer> {
    let buffer = |&(count, halves): &(usize, bool)| {
        let length = if halves { count.div_ceil(2) } else { count };
        Buffer {
            length: length.div_ceil(LANES).saturating_mul(LANES),
            first: usize::MAX,
            last: 0,
        }
    };
    numbers.iter().map(buffer).collect()
}

/// The buffers that a step reads or writes.
fn touched(graph: &Graph, step: &Step, results: &[Option<Place>]) -> Vec<Id> {
    let of = |node: usize| results[node];
    let of_value = |value: &Value| {
        let mut nodes = value.parts.clone();
        nodes.extend(value.norm.and_then(|norm| graph.norms[norm].scale_shift));
        nodes
    };
    let mut nodes: Vec<usize> = Vec::new();
    let mut places: Vec<Place> = Vec::new();
    match step {
        Step::Vectors { to, .. } => places.push(Place::Buffer(*to)),
        Step::Mask { .. } => {}
        Step::Normalise { norm } => {
            nodes.extend(&graph.norms[*norm].parts);
            nodes.extend(graph.norms[*norm].scale_shift);
        }
        Step::Convolve { node, to } => {
            nodes.extend(graph.nodes[*node].op.reads());
            places.push(*to);
        }
        Step::Attend { node, to } | Step::Sum { node, to } | Step::Copy { node, to } => {
            nodes.extend(graph.nodes[*node].op.reads());
            places.push(Place::Buffer(*to));
        }
        Step::Scale { g, .. } => places.push(Place::Buffer(*g)),
        Step::BiasGradient { g, vector, .. } => {
            places.push(*g);
            places.extend(vector.map(|sink| Place::Buffer(sink.id)));
        }
        Step::WeightGradient { node, g, to } => {
            let buffers = to.iter().flat_map(|kept| [kept.gradient, kept.sums]);
            places.extend(buffers.map(Place::Buffer));
            if let Op::Convolve(convolve) = &graph.nodes[*node].op {
                nodes.extend(&convolve.from.parts);
            }
            places.push(*g);
        }
        Step::InputGradient { g, to, .. } => places.extend([*g, Place::Buffer(to.id)]),
        Step::Downsample { from, to, .. } | Step::Add { from, to } => {
            places.extend([Place::Buffer(*from), Place::Buffer(*to)]);
        }
        Step::MaskGradient { g, .. } => places.push(Place::Buffer(*g)),
        Step::SiluGradient { value, g } => {
            nodes.extend(of_value(value));
            places.push(Place::Buffer(*g));
        }
        Step::NormGradient {
            value,
            g,
            to,
            vectors,
        } => {
            nodes.extend(of_value(value));
            places.push(Place::Buffer(*g));
            let sinks = to.iter().flatten().chain(vectors);
            places.extend(sinks.map(|sink| Place::Buffer(sink.id)));
        }
        Step::Part { g, to, .. } => places.extend([Place::Buffer(*g), Place::Buffer(to.id)]),
        Step::AttentionGradient { node, g, to } => {
            nodes.extend(graph.nodes[*node].op.reads());
            places.push(*g);
            places.extend(to.map(Place::Buffer));
        }
    }
    places.extend(nodes.into_iter().filter_map(of));
    let id = |place| match place {
        Place::Buffer(id) => Some(id),
        Place::Outside => None,
    };
    places.into_iter().filter_map(id).collect()
}
