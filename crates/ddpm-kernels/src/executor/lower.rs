//! From the steps of a plan to those of a card, whose library convolves what lies in memory as it is: what convolutions read is
//! made beforehand, what is added to them is added after, and everything has a place in one block of memory.
//!
//! What a convolution read is not kept for the backward pass but made again from its parts. A bias and a vector that only
//! normalisations would see are never added: they are in the normalisations' coefficients.
#![cfg_attr(not(feature = "cuda"), allow(dead_code, unreachable_pub))] // tests use not all of it

use candle_core::{Result, bail};

use super::Precision;
use super::arena::places;
use super::compile::{Draft, Id, Place, Placed, Sink, Step, Target, draft, unused};
use super::graph::{Convolve, Graph, Node, Op, Shape, Value};
use super::run::Use;
use crate::cuda::convolution::{Order, Pass, Shape as Convolution, countable, shape_of};
use crate::cuda::launch::Kind;
use crate::cuda::nhwc::Images;
use crate::cuda::nhwc::attention::{Attention, attention_gradient_scratch};
use crate::cuda::nhwc::finish::moments_length;
use crate::cuda::nhwc::norm::norm_gradient_scratch;
use crate::cuda::nhwc::sums::bias_gradient_scratch;
use crate::cuda::product::product_of;
use crate::geometry::Geometry;
use crate::{Conv2d, Padding};

/// One thing that a card does. Buffers are named by number, parameters, norms and masks as in the graph.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Moments {
        images: Images,
        x: Id,
        to: Id,
    },
    Normalise {
        norm: Normalised,
        parts: Vec<NormalisedPart>,
    },
    Prepare {
        prepared: Prepared,
        to: Id,
    },
    Convolve {
        shape: Convolution,
        x: Id,
        weight: usize,
        to: Id,
    },
    Finish {
        images: Images,
        y: Id,
        bias: usize,
        vector: Option<Id>,
        residual: Option<Id>,
        scale: f32,
        moments: Option<Id>,
    },
    Attend {
        attention: Attention,
        from: [Id; 3],
        to: Id,
        logarithms: Id,
    },
    /// to = (a + b) scale
    Sum {
        a: Id,
        b: Id,
        scale: f32,
        to: Id,
    },
    /// g = g scale
    Scale {
        g: Id,
        scale: f32,
    },
    BiasGradient {
        images: Images,
        g: Id,
        bias: usize,
        vector: Option<Sink>,
        scratch: Id,
    },
    /// As the card's library leaves it in `turned`, and from there to the parameter's own.
    WeightGradient {
        shape: Convolution,
        x: Id,
        g: Id,
        weight: usize,
        turned: Id,
    },
    InputGradient {
        shape: Convolution,
        g: Id,
        weight: usize,
        to: Id,
    },
    CutBorder {
        images: Images,
        border: [usize; 4],
        from: Id,
        to: Sink,
    },
    /// to += from
    Add {
        from: Id,
        to: Id,
    },
    Downsample {
        images: Images,
        from: Id,
        to: Id,
    },
    MaskGradient {
        images: Images,
        g: Id,
        mask: usize,
    },
    SiluGradient {
        images: Images,
        parts: Vec<(Id, usize)>,
        g: Id,
    },
    NormGradient {
        norm: Normalised,
        silu: bool,
        parts: Vec<(Id, usize)>,
        g: Id,
        to: Vec<Option<Sink>>,
        vectors: Option<Sink>,
        scratch: Id,
    },
    Part {
        images: Images,
        g: Id,
        first: usize,
        channels: usize,
        to: Sink,
    },
    AttentionGradient {
        attention: Attention,
        from: [Id; 3],
        y: Id,
        g: Id,
        logarithms: Id,
        to: [Id; 3],
        scratch: Id,
    },
}

/// A normalisation, and where what it found out lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Normalised {
    pub(super) number: usize,
    pub(super) images: Images,
    pub(super) scale_shift: Option<Id>,
    pub(super) unit: Id,
    pub(super) coefficients: Id,
}

/// A part of what is normalised: its buffer, channels and moments, and what was not added to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormalisedPart {
    pub(super) x: Id,
    pub(super) channels: usize,
    pub(super) moments: Id,
    pub(super) bias: Option<usize>,
    pub(super) vector: Option<Id>,
}

/// A value as something reads it.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) images: Images,
    pub(super) parts: Vec<(Id, usize)>,
    pub(super) coefficients: Option<Id>,
    pub(super) silu: bool,
    pub(super) mask: Option<usize>,
    pub(super) upsampled: bool,
    pub(super) border: [usize; 4],
}

/// What a card does in a pass, and its memory.
#[derive(Debug)]
pub(super) struct Lowered {
    pub(super) forward: Vec<Action>,
    pub(super) backward: Vec<Action>,
    pub(super) buffers: Vec<Placed>,
    /// Floats of the whole memory.
    pub(super) arena: usize,
    /// Where the images and the vectors are taken in before the forward pass, if it reads them.
    pub(super) given: [Option<(Images, Id)>; 2],
    pub(super) output: (Images, Id),
    /// Where the gradient of the output is taken in before the backward pass.
    pub(super) gradient: Option<Id>,
    /// The masks that are drawn before the forward pass.
    pub(super) masks: Vec<usize>,
    /// Parameters that convolutions multiply with, and in which kind.
    pub(super) weights: Vec<(usize, Kind)>,
}

/// Plans a network on a card.
///
/// # Errors
/// As [`super::compile::compile`]; sizes that kernels cannot count.
pub(super) fn lower(
    graph: &mut Graph,
    output: &Value,
    used: Use,
    precision: Precision,
) -> Result<Lowered> {
    let draft = draft(graph, output, used, precision, Target::Card)?;
    let nodes = graph.nodes.len();
    let mut lower = Lower {
        numbers: draft.numbers.clone(),
        precision,
        moments: vec![None; nodes],
        logarithms: vec![None; nodes],
        norms: vec![None; graph.norms.len()],
        masks: Vec::new(),
        weights: Vec::new(),
        given: [None; 2],
        outside: [None; 2],
        prepared: Vec::new(),
        actions: Vec::new(),
        backward: false,
        deferred: deferred(graph, &draft),
        graph,
        draft: &draft,
    };
    for step in &draft.forward {
        lower.step(step)?;
    }
    let forward = std::mem::take(&mut lower.actions);
    lower.backward = true;
    lower.prepared.clear();
    for step in &draft.backward {
        lower.step(step)?;
    }
    Ok(lower.placed(forward))
}

/// Convolutions whose results only normalisations read, as they are: what is to be added to them is left to those.
fn deferred(graph: &Graph, draft: &Draft) -> Vec<bool> {
    let convolves = |(index, node): (usize, &Node)| match &node.op {
        Op::Convolve(it) => {
            index != draft.output && it.residual.is_none() && it.scale == 1.0 && !node.shape.vectors
        }
        _ => false,
    };
    let mut deferred: Vec<bool> = graph.nodes.iter().enumerate().map(convolves).collect();
    for (node, _) in graph.nodes.iter().zip(&draft.alive).filter(|it| *it.1) {
        let normalised: &[usize] = match &node.op {
            Op::Convolve(Convolve { from: value, .. }) | Op::Copy(value)
                if value.norm.is_some() =>
            {
                &value.parts
            }
            _ => &[],
        };
        let mut reads = node.op.reads();
        for part in normalised {
            // Once, as what is normalised; what is left is read otherwise.
            if let Some(at) = reads.iter().position(|read| read == part) {
                reads.swap_remove(at);
            }
        }
        reads.into_iter().for_each(|read| deferred[read] = false);
    }
    deferred
}

struct Lower<'a> {
    graph: &'a Graph,
    draft: &'a Draft,
    precision: Precision,
    /// Of the draft's buffers and those that come beside: how many numbers, and whether they are halves.
    numbers: Vec<(usize, bool)>,
    /// Of each node, once they have been taken.
    moments: Vec<Option<Id>>,
    logarithms: Vec<Option<Id>>,
    norms: Vec<Option<Normalised>>,
    masks: Vec<usize>,
    weights: Vec<(usize, Kind)>,
    given: [Option<(Images, Id)>; 2],
    /// The output, and its gradient.
    outside: [Option<Id>; 2],
    /// What this pass has prepared.
    prepared: Vec<(Value, [usize; 4], Id)>,
    actions: Vec<Action>,
    backward: bool,
    deferred: Vec<bool>,
}

impl Lower<'_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Vectors { node, to } => self.given[1] = Some((self.images_of(*node), *to)),
            Step::Mask { mask } => self.masks.push(*mask),
            Step::Normalise { norm } => self.normalise(*norm),
            Step::Convolve { node, to } => return self.convolve(*node, *to),
            Step::Attend { node, to } => return self.attend(*node, *to),
            Step::Sum { node, to } => {
                if let Op::Sum { a, b, scale } = self.graph.nodes[*node].op {
                    let (a, b) = (self.result(a), self.result(b));
                    self.actions.push(Action::Sum {
                        a,
                        b,
                        scale,
                        to: *to,
                    });
                }
            }
            Step::Copy { node, to } => {
                if let Op::Copy(value) = &self.graph.nodes[*node].op {
                    let prepared = self.as_read(value, [0; 4]);
                    self.actions.push(Action::Prepare { prepared, to: *to });
                }
            }
            Step::WeightGradient { node, g, .. } => return self.weight_gradient(*node, *g),
            Step::InputGradient { node, g, to, .. } => return self.input_gradient(*node, *g, *to),
            step => self.gradient(step),
        }
        Ok(())
    }

    /// The steps of the backward pass that are no convolutions.
    fn gradient(&mut self, step: &Step) {
        let action = match step {
            Step::Scale { g, scale } => Action::Scale {
                g: *g,
                scale: *scale,
            },
            Step::BiasGradient { node, g, vector } => {
                let Op::Convolve(convolve) = &self.graph.nodes[*node].op else {
                    return;
                };
                let images = self.images_of(*node);
                Action::BiasGradient {
                    images,
                    g: self.gradient_at(*g),
                    bias: convolve.bias,
                    vector: *vector,
                    scratch: self.reserve(bias_gradient_scratch(images), false),
                }
            }
            Step::Add { from, to } => Action::Add {
                from: *from,
                to: *to,
            },
            Step::Downsample { from, to, shape } => Action::Downsample {
                images: self.images(*shape),
                from: *from,
                to: *to,
            },
            Step::MaskGradient { mask, g } => Action::MaskGradient {
                images: self.images(self.graph.masks[*mask].shape),
                g: *g,
                mask: *mask,
            },
            Step::SiluGradient { value, g } => Action::SiluGradient {
                images: self.images_of_value(value),
                parts: self.parts(value),
                g: *g,
            },
            Step::NormGradient {
                value,
                g,
                to,
                vectors,
            } => {
                let Some(norm) = value.norm.and_then(|norm| self.norms[norm]) else {
                    return;
                };
                Action::NormGradient {
                    norm,
                    silu: value.silu,
                    parts: self.parts(value),
                    g: *g,
                    to: to.clone(),
                    vectors: *vectors,
                    scratch: self.reserve(norm_gradient_scratch(norm.images), false),
                }
            }
            Step::Part {
                g,
                shape,
                first,
                part,
                to,
            } => Action::Part {
                images: self.images(*shape),
                g: *g,
                first: *first,
                channels: part.channels,
                to: *to,
            },
            Step::AttentionGradient { node, g, to } => {
                let Some((attention, from)) = self.attention(*node) else {
                    return;
                };
                Action::AttentionGradient {
                    attention,
                    from,
                    y: self.result(*node),
                    g: self.gradient_at(*g),
                    logarithms: self.logarithms_of(*node, &attention),
                    to: *to,
                    scratch: self.reserve(attention_gradient_scratch(&attention), false),
                }
            }
            _ => return,
        };
        self.actions.push(action);
    }

    fn normalise(&mut self, norm: usize) {
        let recorded = &self.graph.norms[norm];
        let parts: Vec<NormalisedPart> = recorded
            .parts
            .iter()
            .map(|&part| self.normalised(part))
            .collect();
        let first = self.images_of(recorded.parts[0]);
        let images = Images {
            channels: parts.iter().map(|part| part.channels).sum(),
            ..first
        };
        let length = 2 * images.count * images.channels;
        let norm = Normalised {
            number: norm,
            images,
            scale_shift: recorded.scale_shift.map(|vectors| self.result(vectors)),
            unit: self.reserve(length, false),
            coefficients: self.reserve(length, false),
        };
        self.norms[norm.number] = Some(norm);
        self.actions.push(Action::Normalise { norm, parts });
    }

    /// A node as a normalisation reads it, its moments taken if they were not.
    fn normalised(&mut self, node: usize) -> NormalisedPart {
        let images = self.images_of(node);
        let x = self.result(node);
        let moments = match self.moments[node] {
            Some(moments) => moments,
            None => {
                let to = self.reserve(moments_length(images), false);
                self.moments[node] = Some(to);
                self.actions.push(Action::Moments { images, x, to });
                to
            }
        };
        let (bias, vector) = match &self.graph.nodes[node].op {
            Op::Convolve(it) if self.deferred[node] => (Some(it.bias), it.vector),
            _ => (None, None),
        };
        NormalisedPart {
            x,
            channels: images.channels,
            moments,
            bias,
            vector: vector.map(|vector| self.result(vector)),
        }
    }

    fn convolve(&mut self, node: usize, to: Place) -> Result<()> {
        let Op::Convolve(convolve) = &self.graph.nodes[node].op else {
            return Ok(());
        };
        let (shape, border) = self.convolution(node, convolve)?;
        let x = self.read(&convolve.from, border);
        let images = self.images_of(node);
        let to = match to {
            Place::Buffer(id) => id,
            Place::Outside => self.outside(0, images),
        };
        let weight = convolve.weight;
        if !self.weights.contains(&(weight, shape.kind)) {
            self.weights.push((weight, shape.kind));
        }
        self.actions.push(Action::Convolve {
            shape,
            x,
            weight,
            to,
        });
        if self.deferred[node] {
            return Ok(());
        }
        let normalised = self
            .graph
            .norms
            .iter()
            .any(|norm| norm.parts.contains(&node));
        let moments = (normalised && !self.backward && !self.graph.nodes[node].shape.vectors)
            .then(|| self.reserve(moments_length(images), false));
        if moments.is_some() {
            self.moments[node] = moments;
        }
        let vector = convolve.vector.map(|vector| self.result(vector));
        let residual = convolve.residual.map(|residual| self.result(residual));
        self.actions.push(Action::Finish {
            images,
            y: to,
            bias: convolve.bias,
            vector,
            residual,
            scale: convolve.scale,
            moments,
        });
        Ok(())
    }

    fn attend(&mut self, node: usize, to: Id) -> Result<()> {
        let Some((attention, from)) = self.attention(node) else {
            return Ok(());
        };
        if !attention.fits() {
            bail!(
                "attention: heads of {} channels are more than a card's kernels hold",
                attention.size
            );
        }
        let logarithms = self.logarithms_of(node, &attention);
        self.actions.push(Action::Attend {
            attention,
            from,
            to,
            logarithms,
        });
        Ok(())
    }

    fn weight_gradient(&mut self, node: usize, g: Place) -> Result<()> {
        let Op::Convolve(convolve) = &self.graph.nodes[node].op else {
            return Ok(());
        };
        let (shape, border) = self.convolution(node, convolve)?;
        let x = self.read(&convolve.from, border);
        let count = self.graph.parameters[convolve.weight].iter().product();
        let turned = self.reserve(count, shape.kind == Kind::Bf16);
        let g = self.gradient_at(g);
        self.actions.push(Action::WeightGradient {
            shape,
            x,
            g,
            weight: convolve.weight,
            turned,
        });
        Ok(())
    }

    /// The gradient of what a convolution reads, through the zeros around it, and to what is there already.
    fn input_gradient(&mut self, node: usize, g: Place, to: Sink) -> Result<()> {
        let Op::Convolve(convolve) = &self.graph.nodes[node].op else {
            return Ok(());
        };
        let (shape, border) = self.convolution(node, convolve)?;
        let g = self.gradient_at(g);
        let direct = border == [0; 4] && !to.accumulate;
        let whole = match direct {
            true => to.id,
            false => {
                let numbers = shape.x.iter().map(|&size| size as usize).product();
                self.reserve(numbers, shape.kind == Kind::Bf16)
            }
        };
        let weight = convolve.weight;
        self.actions.push(Action::InputGradient {
            shape,
            g,
            weight,
            to: whole,
        });
        if border != [0; 4] {
            let images = Images {
                kind: shape.kind,
                count: shape.x[0] as usize,
                height: convolve.geometry.height,
                width: convolve.geometry.width,
                channels: shape.x[1] as usize,
            };
            self.actions.push(Action::CutBorder {
                images,
                border,
                from: whole,
                to,
            });
        } else if to.accumulate {
            self.actions.push(Action::Add {
                from: whole,
                to: to.id,
            });
        }
        Ok(())
    }

    /// The buffer of a value as a convolution with these zeros around it reads it; made where it is not one already.
    fn read(&mut self, value: &Value, border: [usize; 4]) -> Id {
        if let [part] = *value.parts
            && value.is_untouched()
            && border == [0; 4]
        {
            return self.result(part);
        }
        let made = self
            .prepared
            .iter()
            .find(|(of, around, _)| of == value && *around == border);
        if let Some((.., id)) = made {
            return *id;
        }
        let prepared = self.as_read(value, border);
        let images = prepared.images;
        let times = 1 + usize::from(value.upsampled);
        let [top, left, bottom, right] = border;
        let rows = times * images.height + top + bottom;
        let columns = times * images.width + left + right;
        let numbers = images.count * images.channels * rows * columns;
        let to = self.reserve(numbers, images.kind == Kind::Bf16);
        self.actions.push(Action::Prepare { prepared, to });
        self.prepared.push((value.clone(), border, to));
        to
    }

    fn as_read(&mut self, value: &Value, border: [usize; 4]) -> Prepared {
        Prepared {
            images: self.images_of_value(value),
            parts: self.parts(value),
            coefficients: value
                .norm
                .and_then(|norm| self.norms[norm])
                .map(|norm| norm.coefficients),
            silu: value.silu,
            mask: value.mask,
            upsampled: value.upsampled,
            border,
        }
    }

    /// What the card's library is told of a convolution, and the zeros that it does not know of.
    fn convolution(&self, node: usize, convolve: &Convolve) -> Result<(Convolution, [usize; 4])> {
        let y = self.graph.nodes[node].shape;
        let geometry = &convolve.geometry;
        let channels = self.graph.channels(&convolve.from);
        let x = [y.images, channels, geometry.height, geometry.width];
        let kernel = [geometry.kernel_height, geometry.kernel_width];
        let weight = [y.channels, channels, kernel[0], kernel[1]];
        let conv = Conv2d::new(geometry.stride, padding(geometry));
        let kind = self.kind(y);
        let (shape, around) = shape_of(kind, x, weight, conv)?;
        let order = Order::Pixels;
        let shape = Convolution { order, ..shape };
        if product_of(&shape, Pass::Forward).is_none() {
            countable(&shape)?;
        }
        let zeros = conv.padding;
        let border = match around {
            Some(_) => [zeros.top, zeros.left, zeros.bottom, zeros.right],
            None => [0; 4],
        };
        Ok((shape, border))
    }

    fn attention(&mut self, node: usize) -> Option<(Attention, [Id; 3])> {
        let Op::Attend {
            query,
            key,
            value,
            heads,
        } = self.graph.nodes[node].op
        else {
            return None;
        };
        let images = self.images_of(node);
        let size = images.channels / heads;
        let attention = Attention {
            kind: images.kind,
            images: images.count,
            pixels: images.pixels(),
            heads,
            size,
            scale: (1.0 / (size as f64).sqrt()) as f32,
        };
        Some((attention, [query, key, value].map(|node| self.result(node))))
    }

    fn logarithms_of(&mut self, node: usize, of: &Attention) -> Id {
        if let Some(id) = self.logarithms[node] {
            return id;
        }
        let id = self.reserve(of.images * of.heads * of.pixels, false);
        self.logarithms[node] = Some(id);
        id
    }

    fn parts(&mut self, value: &Value) -> Vec<(Id, usize)> {
        let channels = |node: usize| self.graph.nodes[node].shape.channels;
        let sizes: Vec<usize> = value.parts.iter().map(|&part| channels(part)).collect();
        value
            .parts
            .iter()
            .map(|&part| self.result(part))
            .zip(sizes)
            .collect()
    }

    /// Where a node's result lies in this pass.
    fn result(&mut self, node: usize) -> Id {
        let results = match self.backward {
            false => &self.draft.results,
            true => &self.draft.results_backward,
        };
        match results[node] {
            Some(Place::Buffer(id)) => id,
            _ => self.images_given(node),
        }
    }

    /// The images that the network is given.
    fn images_given(&mut self, node: usize) -> Id {
        if let Some((_, id)) = self.given[0] {
            return id;
        }
        let images = self.images_of(node);
        let id = self.reserve(images.numbers(), images.kind == Kind::Bf16);
        self.given[0] = Some((images, id));
        id
    }

    fn gradient_at(&mut self, g: Place) -> Id {
        match g {
            Place::Buffer(id) => id,
            Place::Outside => self.outside(1, self.images_of(self.draft.output)),
        }
    }

    fn outside(&mut self, which: usize, images: Images) -> Id {
        if let Some(id) = self.outside[which] {
            return id;
        }
        let id = self.reserve(images.numbers(), images.kind == Kind::Bf16);
        self.outside[which] = Some(id);
        id
    }

    fn reserve(&mut self, count: usize, halves: bool) -> Id {
        self.numbers.push((count, halves));
        self.numbers.len() - 1
    }

    fn kind(&self, shape: Shape) -> Kind {
        match self.precision {
            Precision::Bf16 if !shape.vectors => Kind::Bf16,
            _ => Kind::F32,
        }
    }

    fn images(&self, shape: Shape) -> Images {
        shape.of_kind(self.kind(shape))
    }

    fn images_of(&self, node: usize) -> Images {
        self.images(self.graph.nodes[node].shape)
    }

    /// Of a value before it is up-sampled.
    fn images_of_value(&self, value: &Value) -> Images {
        Images {
            channels: self.graph.channels(value),
            ..self.images_of(value.parts[0])
        }
    }

    /// Finds a place for each buffer.
    fn placed(self, forward: Vec<Action>) -> Lowered {
        let mut buffers = unused(&self.numbers);
        for (time, action) in forward.iter().chain(&self.actions).enumerate() {
            for id in action.touches() {
                buffers[id].is_used_at(time);
            }
        }
        // What is taken in before a pass is there when it begins.
        for (_, id) in self.given.iter().flatten() {
            buffers[*id].is_used_at(0);
        }
        if let Some(id) = self.outside[1] {
            buffers[id].is_used_at(forward.len());
        }
        // What no action touches needs no memory.
        let untouched = |buffer: &&mut super::arena::Buffer| buffer.first == usize::MAX;
        buffers
            .iter_mut()
            .filter(untouched)
            .for_each(|buffer| buffer.length = 0);
        let (places, arena) = places(&buffers);
        let placed = places.iter().zip(&self.numbers);
        let placed = placed.map(|(&place, &(count, halves))| Placed {
            place,
            count,
            halves,
        });
        let output = self.images_of(self.draft.output);
        Lowered {
            buffers: placed.collect(),
            arena,
            output: (output, self.outside[0].unwrap_or_default()),
            gradient: self.outside[1],
            given: self.given,
            forward,
            backward: self.actions,
            masks: self.masks,
            weights: self.weights,
        }
    }
}

/// The zeros around the image that a convolution reads: as many below and to the right as above and to the left, where that
/// makes the same output.
fn padding(geometry: &Geometry) -> Padding {
    let g = geometry;
    let (top, left) = (g.top, g.left);
    let even = |size: usize, kernel: usize, before: usize| {
        (size + 2 * before)
            .checked_sub(kernel)
            .map(|rest| rest / g.stride + 1)
    };
    let both = (
        even(g.height, g.kernel_height, top),
        even(g.width, g.kernel_width, left),
    );
    if both == (Some(g.output_height), Some(g.output_width)) {
        return Padding {
            top,
            left,
            bottom: top,
            right: left,
        };
    }
    let after = |output: usize, kernel: usize, before: usize, size: usize| {
        ((output - 1) * g.stride + kernel).saturating_sub(before + size)
    };
    Padding {
        top,
        left,
        bottom: after(g.output_height, g.kernel_height, top, g.height),
        right: after(g.output_width, g.kernel_width, left, g.width),
    }
}

impl Shape {
    /// Images of this shape on a card.
    pub(super) fn of_kind(self, kind: Kind) -> Images {
        Images {
            kind,
            count: self.images,
            height: self.height,
            width: self.width,
            channels: self.channels,
        }
    }
}

impl Action {
    /// The buffers that it reads or writes.
    fn touches(&self) -> Vec<Id> {
        let of_norm = |norm: &Normalised| {
            let mut ids = vec![norm.unit, norm.coefficients];
            ids.extend(norm.scale_shift);
            ids
        };
        match self {
            Action::Moments { x, to, .. } => vec![*x, *to],
            Action::Normalise { norm, parts } => {
                let mut ids = of_norm(norm);
                for part in parts {
                    ids.extend([part.x, part.moments]);
                    ids.extend(part.vector);
                }
                ids
            }
            Action::Prepare { prepared, to } => {
                let mut ids: Vec<Id> = prepared.parts.iter().map(|part| part.0).collect();
                ids.extend(prepared.coefficients);
                ids.push(*to);
                ids
            }
            Action::Convolve { x, to, .. } => vec![*x, *to],
            Action::Finish {
                y,
                vector,
                residual,
                moments,
                ..
            } => {
                let optional = [vector, residual, moments];
                [*y].into_iter()
                    .chain(optional.into_iter().copied().flatten())
                    .collect()
            }
            Action::Attend {
                from,
                to,
                logarithms,
                ..
            } => from.iter().copied().chain([*to, *logarithms]).collect(),
            Action::Sum { a, b, to, .. } => vec![*a, *b, *to],
            Action::Scale { g, .. } | Action::MaskGradient { g, .. } => vec![*g],
            Action::BiasGradient {
                g, vector, scratch, ..
            } => [*g, *scratch]
                .into_iter()
                .chain(vector.map(|sink| sink.id))
                .collect(),
            Action::WeightGradient { x, g, turned, .. } => vec![*x, *g, *turned],
            Action::InputGradient { g, to, .. } => vec![*g, *to],
            Action::CutBorder { from, to, .. } => vec![*from, to.id],
            Action::Add { from, to } | Action::Downsample { from, to, .. } => vec![*from, *to],
            Action::SiluGradient { parts, g, .. } => {
                parts.iter().map(|part| part.0).chain([*g]).collect()
            }
            Action::NormGradient {
                norm,
                parts,
                g,
                to,
                vectors,
                scratch,
                ..
            } => {
                let sinks = to.iter().flatten().chain(vectors).map(|sink| sink.id);
                let parts = parts.iter().map(|part| part.0);
                let ids = of_norm(norm).into_iter().chain(parts).chain(sinks);
                ids.chain([*g, *scratch]).collect()
            }
            Action::Part { g, to, .. } => vec![*g, to.id],
            Action::AttentionGradient {
                from,
                y,
                g,
                logarithms,
                to,
                scratch,
                ..
            } => {
                let ids = from.iter().chain(to).copied();
                ids.chain([*y, *g, *logarithms, *scratch]).collect()
            }
        }
    }
}
