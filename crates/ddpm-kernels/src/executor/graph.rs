//! What a network computes, recorded operation by operation. Operations that only prepare a value for the next
//! convolution stay part of the [`Value`]; the others become nodes.

use candle_core::{Result, bail};

use crate::geometry::Geometry;
use crate::normalise::Groups;
use crate::tile::LANES;
use crate::{Activation, Conv2d, Padding};

/// A network for batches of one size, being recorded.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(super) batch: usize,
    pub(super) parameters: Vec<Vec<usize>>,
    pub(super) nodes: Vec<Node>,
    pub(super) norms: Vec<Norm>,
    pub(super) masks: Vec<Mask>,
    pub(super) rate: f64,
    /// The number of the block that is being recorded.
    pub(super) block: usize,
    pub(super) recompute: bool,
}

/// What flows between operations.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// The nodes whose channels it has, one after the other.
    pub(super) parts: Vec<usize>,
    pub(super) norm: Option<usize>,
    pub(super) silu: bool,
    pub(super) mask: Option<usize>,
    pub(super) upsampled: bool,
}

/// Something that is computed and kept.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) op: Op,
    pub(super) shape: Shape,
    pub(super) block: usize,
}

/// Images of one size, or one vector for each image, which are pixels of one image side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) images: usize,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Whether they are vectors.
    pub(super) vectors: bool,
}

impl Shape {
    pub(super) fn blocks(&self) -> usize {
        self.channels.div_ceil(LANES)
    }

    /// Numbers of all images, one after the other.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn numbers(&self) -> usize {
        [self.channels, self.height, self.width]
            .into_iter()
            .fold(self.images, usize::saturating_mul)
    }

    /// Numbers of one image in blocks.
    pub(super) fn image(&self) -> usize {
        (self.blocks() * LANES)
            .saturating_mul(self.height)
            .saturating_mul(self.width)
    }

    /// Numbers of all images in blocks.
    pub(super) fn length(&self) -> usize {
        self.images.saturating_mul(self.image())
    }
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The images that the network is given.
    Images,
    /// The vectors that the network is given, one for each image.
    Vectors,
    Convolve(Convolve),
    Attend {
        query: usize,
        key: usize,
        value: usize,
        heads: usize,
    },
    /// (a + b) scale.
    Sum {
        a: usize,
        b: usize,
        scale: f32,
    },
    /// A value that something else than a convolution needs.
    Copy(Value),
    /// Nothing: a convolution that went on with a residual as another node.
    Absorbed,
}

#[derive(Clone, Debug)]
pub(super) struct Convolve {
    pub(super) from: Value,
    pub(super) weight: usize,
    pub(super) bias: usize,
    /// A vector that is added to the bias of each image.
    pub(super) vector: Option<usize>,
    /// A node that is added to the result.
    pub(super) residual: Option<usize>,
    pub(super) scale: f32,
    pub(super) geometry: Geometry,
}

#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) parts: Vec<usize>,
    pub(super) groups: Groups,
    pub(super) gamma: usize,
    pub(super) beta: usize,
    pub(super) scale_shift: Option<usize>,
}

/// What dropout is applied to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    pub(super) place: usize,
    pub(super) shape: Shape,
}

impl Graph {
    /// A network without operations, for so many images at a time, whose parameters have these shapes and which drops
    /// activations at this rate.
    pub fn new(batch: usize, parameters: Vec<Vec<usize>>, rate: f64) -> Self {
        Graph {
            batch,
            parameters,
            nodes: Vec::new(),
            norms: Vec::new(),
            masks: Vec::new(),
            rate,
            block: 0,
            recompute: false,
        }
    }

    /// Begins a block: what is recorded from here on until the next.
    pub fn begin_block(&mut self) {
        self.block += 1;
    }

    /// Of each block only what other blocks read is kept for the backward pass, which computes the rest again, to the
    /// same bits: less memory for more work.
    pub fn recompute(&mut self) {
        self.recompute = true;
    }

    /// The images `[B, C, H, W]` that the network is given.
    pub fn images(&mut self, channels: usize, height: usize, width: usize) -> Value {
        let images = self.batch;
        self.node(
            Op::Images,
            Shape {
                images,
                channels,
                height,
                width,
                vectors: false,
            },
        )
    }

    /// The vectors `[B, C]` that the network is given.
    pub fn vectors(&mut self, channels: usize) -> Value {
        let shape = self.vector_shape(channels);
        self.node(Op::Vectors, shape)
    }

    /// [`crate::conv2d`] by parameters; `vector` is added to the bias of each image.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn conv2d(
        &mut self,
        x: &Value,
        weight: usize,
        bias: usize,
        vector: Option<&Value>,
        conv: Conv2d,
    ) -> Result<Value> {
        self.check("conv2d", &[x])?;
        let (inputs, height, width) = self.size(x);
        let [outputs, i, kernel_height, kernel_width] = *self.parameters[weight].as_slice() else {
            bail!(
                "conv2d: weight has shape {:?}, expected four dimensions",
                self.parameters[weight]
            );
        };
        if i != inputs || self.parameters[bias] != [outputs] || conv.groups != 1 {
            bail!(
                "conv2d: weight {:?} and bias {:?} do not fit {inputs} channels in one group",
                self.parameters[weight],
                self.parameters[bias]
            );
        }
        let geometry = Geometry::new((height, width), (kernel_height, kernel_width), conv)?;
        let vector = match vector {
            None => None,
            Some(vector) => {
                let node = self.stored(vector);
                let expected = self.vector_shape(outputs);
                if self.nodes[node].shape != expected {
                    bail!(
                        "conv2d: the vector has {:?}, expected {expected:?}",
                        self.nodes[node].shape
                    );
                }
                Some(node)
            }
        };
        Ok(self.convolved(x, (weight, bias, vector), outputs, geometry))
    }

    /// [`crate::linear`] over the channels, of images pixel by pixel.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn linear(&mut self, x: &Value, weight: usize, bias: usize) -> Result<Value> {
        self.check("linear", &[x])?;
        let (inputs, height, width) = self.size(x);
        let [outputs, i] = *self.parameters[weight].as_slice() else {
            bail!(
                "linear: weight has shape {:?}, expected two dimensions",
                self.parameters[weight]
            );
        };
        if i != inputs || self.parameters[bias] != [outputs] {
            bail!(
                "linear: weight {:?} and bias {:?} do not fit {inputs} channels",
                self.parameters[weight],
                self.parameters[bias]
            );
        }
        let geometry = Geometry::new((height, width), (1, 1), Conv2d::new(1, Padding::ZERO))?;
        Ok(self.convolved(x, (weight, bias, None), outputs, geometry))
    }

    /// [`crate::group_norm`]; with `scale_shift` `[B, 2 C]` also (1 + scale) and shift of each image's own.
    ///
    /// # Errors
    /// Channels that do not divide into groups, parameters or vectors of other shapes.
    pub fn group_norm(
        &mut self,
        x: &Value,
        (groups, eps): (usize, f64),
        (gamma, beta): (usize, usize),
        scale_shift: Option<&Value>,
        activation: Activation,
    ) -> Result<Value> {
        self.check("group_norm", &[x])?;
        let x = self.untouched(x);
        let channels = self.channels(&x);
        if groups == 0 || !channels.is_multiple_of(groups) {
            bail!("group_norm: {channels} channels do not divide into {groups} groups");
        }
        if self.parameters[gamma] != [channels] || self.parameters[beta] != [channels] {
            bail!(
                "group_norm: gamma {:?} and beta {:?}, expected [{channels}]",
                self.parameters[gamma],
                self.parameters[beta]
            );
        }
        let scale_shift = match scale_shift {
            None => None,
            Some(vectors) => {
                let node = self.stored(vectors);
                if self.nodes[node].shape != self.vector_shape(2 * channels) {
                    bail!(
                        "group_norm: scale and shift have {:?}, expected {} channels",
                        self.nodes[node].shape,
                        2 * channels
                    );
                }
                Some(node)
            }
        };
        self.norms.push(Norm {
            parts: x.parts.clone(),
            groups: Groups { count: groups, eps },
            gamma,
            beta,
            scale_shift,
        });
        Ok(Value {
            norm: Some(self.norms.len() - 1),
            silu: activation == Activation::Silu,
            ..x
        })
    }

    /// x / (1 + e^-x)
    pub fn silu(&mut self, x: &Value) -> Value {
        let x = &self.in_blocks(x);
        let x = if x.silu || x.mask.is_some() || x.upsampled {
            self.copied(x)
        } else {
            x.clone()
        };
        Value { silu: true, ..x }
    }

    /// x + y of two values of one shape.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn add(&mut self, x: &Value, y: &Value) -> Result<Value> {
        self.check("add", &[x, y])?;
        if self.size(x) != self.size(y) {
            bail!(
                "add: {:?} and {:?} (channels, height, width), expected the same",
                self.size(x),
                self.size(y)
            );
        }
        let (x, y) = (self.stored(x), self.stored(y));
        let (first, last) = (x.min(y), x.max(y));
        let shape = self.nodes[x].shape;
        let op = match &self.nodes[last].op {
            Op::Convolve(convolve)
                if convolve.residual.is_none()
                    && convolve.scale == 1.0
                    && first != last
                    && !self.is_used(last) =>
            {
                let convolve = Convolve {
                    residual: Some(first),
                    ..convolve.clone()
                };
                self.nodes[last].op = Op::Absorbed;
                Op::Convolve(convolve)
            }
            _ => Op::Sum {
                a: x,
                b: y,
                scale: 1.0,
            },
        };
        Ok(self.node(op, shape))
    }

    /// x / divisor
    ///
    /// # Errors
    /// A value that a sum has used up.
    pub fn divide(&mut self, x: &Value, divisor: f64) -> Result<Value> {
        self.check("divide", &[x])?;
        let x = self.stored(x);
        let factor = (1.0 / divisor) as f32;
        let op = match &self.nodes[x].op {
            Op::Convolve(convolve) if !self.is_used(x) => Op::Convolve(Convolve {
                scale: convolve.scale * factor,
                ..convolve.clone()
            }),
            Op::Sum { a, b, scale } if !self.is_used(x) => Op::Sum {
                a: *a,
                b: *b,
                scale: scale * factor,
            },
            _ => Op::Sum {
                a: x,
                b: x,
                scale: 0.5 * factor,
            },
        };
        let shape = self.nodes[x].shape;
        if !op.reads().contains(&x) {
            self.nodes[x].op = Op::Absorbed;
        }
        Ok(self.node(op, shape))
    }

    /// Softmax attention of each head over the pixels, scaled by 1 / √(channels of a head).
    ///
    /// # Errors
    /// Shapes that differ, heads that do not divide the channels.
    pub fn attention(
        &mut self,
        query: &Value,
        key: &Value,
        value: &Value,
        heads: usize,
    ) -> Result<Value> {
        self.check("attention", &[query, key, value])?;
        let (query, key, value) = (self.stored(query), self.stored(key), self.stored(value));
        let shape = self.nodes[query].shape;
        if self.nodes[key].shape != shape
            || self.nodes[value].shape != shape
            || heads == 0
            || !shape.channels.is_multiple_of(heads)
        {
            bail!(
                "attention: {shape:?}, {:?} and {:?} in {heads} heads",
                self.nodes[key].shape,
                self.nodes[value].shape
            );
        }
        Ok(self.node(
            Op::Attend {
                query,
                key,
                value,
                heads,
            },
            shape,
        ))
    }

    /// a then b along channels.
    ///
    /// # Errors
    /// Images of different sizes.
    pub fn concat_channels(&mut self, a: &Value, b: &Value) -> Result<Value> {
        self.check("concat_channels", &[a, b])?;
        let ((_, a_height, a_width), (_, b_height, b_width)) = (self.size(a), self.size(b));
        if (a_height, a_width) != (b_height, b_width) {
            bail!(
                "concat_channels: {a_height} by {a_width} and {b_height} by {b_width} pixels, expected the same"
            );
        }
        let (a, b) = (self.untouched(a), self.untouched(b));
        let joined = Value {
            parts: a.parts.iter().chain(&b.parts).copied().collect(),
            ..a
        };
        let whole = |node: &usize| self.nodes[*node].shape.channels.is_multiple_of(LANES);
        let before_last = &joined.parts[..joined.parts.len() - 1];
        if before_last.iter().all(whole) {
            Ok(joined)
        } else {
            Ok(self.copied(&joined))
        }
    }

    /// Each pixel becomes 2 by 2.
    pub fn upsample_nearest_2x(&mut self, x: &Value) -> Value {
        let x = &self.in_blocks(x);
        let x = if x.upsampled {
            self.copied(x)
        } else {
            x.clone()
        };
        Value {
            upsampled: true,
            ..x
        }
    }

    /// Dropout at a place of the network.
    pub fn dropout(&mut self, x: &Value, place: usize) -> Value {
        if self.rate == 0.0 {
            return x.clone();
        }
        let x = &self.in_blocks(x);
        let x = if x.mask.is_some() || x.upsampled {
            self.copied(x)
        } else {
            x.clone()
        };
        let shape = Shape {
            channels: self.channels(&x),
            ..self.nodes[x.parts[0]].shape
        };
        self.masks.push(Mask { place, shape });
        Value {
            mask: Some(self.masks.len() - 1),
            ..x
        }
    }

    /// Channels, height and width of a value.
    pub fn size(&self, x: &Value) -> (usize, usize, usize) {
        let shape = self.nodes[x.parts[0]].shape;
        let times = 1 + usize::from(x.upsampled);
        (self.channels(x), times * shape.height, times * shape.width)
    }

    pub(super) fn channels(&self, x: &Value) -> usize {
        x.parts
            .iter()
            .map(|&part| self.nodes[part].shape.channels)
            .sum()
    }

    /// The node that is this value; a new one if none is.
    pub(super) fn stored(&mut self, x: &Value) -> usize {
        let x = self.untouched(x);
        match *x.parts {
            [node] => node,
            _ => self.copied(&x).parts[0],
        }
    }

    /// The value with nothing left to be done to it, in blocks.
    fn untouched(&mut self, x: &Value) -> Value {
        let x = self.in_blocks(x);
        if x.is_untouched() { x } else { self.copied(&x) }
    }

    /// Refuses what [`Graph::add`] has used up.
    fn check(&self, op: &str, values: &[&Value]) -> Result<()> {
        let absorbed = |&part: &usize| matches!(self.nodes[part].op, Op::Absorbed);
        if values.iter().any(|value| value.parts.iter().any(absorbed)) {
            bail!("{op}: a value that was the last before a sum is used again after it");
        }
        Ok(())
    }

    /// The value without the images that the network is given: those lie channel by channel, and only a convolution reads
    /// them so.
    fn in_blocks(&mut self, x: &Value) -> Value {
        let given = |&part: &usize| matches!(self.nodes[part].op, Op::Images);
        if x.parts.iter().any(given) {
            self.copied(x)
        } else {
            x.clone()
        }
    }

    fn convolved(
        &mut self,
        x: &Value,
        (weight, bias, vector): (usize, usize, Option<usize>),
        outputs: usize,
        geometry: Geometry,
    ) -> Value {
        let shape = Shape {
            channels: outputs,
            height: geometry.output_height,
            width: geometry.output_width,
            ..self.nodes[x.parts[0]].shape
        };
        let convolve = Convolve {
            from: x.clone(),
            weight,
            bias,
            vector,
            residual: None,
            scale: 1.0,
            geometry,
        };
        self.node(Op::Convolve(convolve), shape)
    }

    fn copied(&mut self, x: &Value) -> Value {
        let (channels, height, width) = self.size(x);
        let shape = Shape {
            channels,
            height,
            width,
            ..self.nodes[x.parts[0]].shape
        };
        self.node(Op::Copy(x.clone()), shape)
    }

    fn node(&mut self, op: Op, shape: Shape) -> Value {
        let block = self.block;
        self.nodes.push(Node { op, shape, block });
        Value::of(self.nodes.len() - 1)
    }

    /// The shapes of the images and of the vectors that the network is given.
    #[cfg(feature = "cuda")]
    pub(super) fn given(&self) -> [Vec<usize>; 2] {
        let mut given = [Vec::new(), Vec::new()];
        for node in &self.nodes {
            let s = node.shape;
            match node.op {
                Op::Images => given[0] = vec![s.images, s.channels, s.height, s.width],
                Op::Vectors => given[1] = vec![s.width, s.channels],
                _ => {}
            }
        }
        given
    }

    fn vector_shape(&self, channels: usize) -> Shape {
        Shape {
            images: 1,
            channels,
            height: 1,
            width: self.batch,
            vectors: true,
        }
    }

    /// Whether any node or normalisation reads this one.
    fn is_used(&self, node: usize) -> bool {
        let by_node = |other: &Node| other.op.reads().contains(&node);
        let by_norm = |norm: &Norm| norm.parts.contains(&node) || norm.scale_shift == Some(node);
        self.nodes.iter().any(by_node) || self.norms.iter().any(by_norm)
    }

    /// The vectors that scale and shift the value that a node reads.
    pub(super) fn scale_shift_of(&self, op: &Op) -> Option<usize> {
        match op {
            Op::Convolve(Convolve { from: value, .. }) | Op::Copy(value) => {
                self.norms[value.norm?].scale_shift
            }
            _ => None,
        }
    }
}

impl Op {
    /// The nodes that it reads (those of a normalisation beside).
    pub(super) fn reads(&self) -> Vec<usize> {
        match self {
            Op::Images | Op::Vectors | Op::Absorbed => Vec::new(),
            Op::Convolve(convolve) => {
                let mut reads = convolve.from.parts.clone();
                reads.extend(convolve.vector);
                reads.extend(convolve.residual);
                reads
            }
            Op::Attend {
                query, key, value, ..
            } => vec![*query, *key, *value],
            Op::Sum { a, b, .. } => vec![*a, *b],
            Op::Copy(value) => value.parts.clone(),
        }
    }

    /// Those of them that its gradients depend on: what is only added has no part in them.
    pub(super) fn reads_for_gradients(&self) -> Vec<usize> {
        match self {
            Op::Convolve(Convolve { from: value, .. }) => value.parts.clone(),
            Op::Sum { .. } => Vec::new(),
            op => op.reads(),
        }
    }
}

impl Value {
    fn of(node: usize) -> Self {
        Value {
            parts: vec![node],
            norm: None,
            silu: false,
            mask: None,
            upsampled: false,
        }
    }

    /// Whether it is its parts as they are.
    pub(super) fn is_untouched(&self) -> bool {
        self.norm.is_none() && !self.silu && self.mask.is_none() && !self.upsampled
    }
}
