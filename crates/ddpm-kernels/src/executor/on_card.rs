//! Carrying out a plan on a card: everything it needs lies at addresses that do not change, so that a pass is launched as a whole
//! once it has been carried out.
#![cfg_attr(not(feature = "cuda"), allow(dead_code, unreachable_pub))] // tests use not all of it

use candle_core::{Result, bail};

use super::compile::{Id, Sink};
use super::graph::{Graph, Value};
use super::lower::{Action, Lowered, Normalised, Prepared, lower};
use super::run::Use;
use super::{Needed, Precision};
use crate::cuda::convolution::Pass as Gradient;
use crate::cuda::dropout::Draws;
use crate::cuda::launch::{Address, Kind, Machine};
use crate::cuda::nhwc::attention::{attention, attention_gradient};
use crate::cuda::nhwc::elementwise::{add, downsample, part, scale, sum};
use crate::cuda::nhwc::finish::{Finish, finish, moments};
use crate::cuda::nhwc::norm::{Norm, NormGradient, NormPart, coefficients, norm_gradient};
use crate::cuda::nhwc::order::{give_out, take_in};
use crate::cuda::nhwc::prepare::{self, cut_border, prepare, silu_gradient};
use crate::cuda::nhwc::sums::bias_gradient;
use crate::cuda::nhwc::weights::{Weight, lay_out, table, turn_back};
use crate::cuda::nhwc::{self, Images, Part, mask};

/// Says what a place of dropout is drawn from.
pub type DrawsOf<'a> = dyn FnMut(usize) -> Result<Draws> + 'a;

/// A network on a machine whose memory and recordings are of these types.
pub(crate) struct Plan<Memory, Recording> {
    graph: Graph,
    lowered: Lowered,
    used: Use,
    arena: Option<Memory>,
    masks: Vec<Option<Memory>>,
    weights: Vec<LaidOut<Memory>>,
    forward: Kept<Recording>,
    backward: Kept<Recording>,
}

/// The weights of one kind as convolutions read them.
struct LaidOut<Memory> {
    kind: Kind,
    /// Those that do not lie so already: the parameter, and the numbers before it.
    places: Vec<(usize, usize)>,
    memory: Memory,
    /// Of these parameters, and whether they lie here as they are now.
    table: Option<(Vec<Address>, Memory)>,
    current: bool,
}

/// What was recorded of a pass, by the addresses outside that it speaks of.
struct Kept<Recording>(Vec<(Vec<Address>, State<Recording>)>);

enum State<Recording> {
    /// It was carried out once.
    Once,
    Recorded(Recording),
    /// The machine cannot record it.
    Never,
}

/// Sets of addresses that are kept: gradients are written or added to, the same every time.
const KEPT: usize = 2;

/// What a pass speaks of outside of the plan.
struct Outside<'a> {
    parameters: &'a [Address],
    gradients: &'a [Address],
    /// Whether gradients are added to what is there.
    accumulate: bool,
}

impl<Memory, Recording> Plan<Memory, Recording> {
    /// Plans a network that gives `output`. Nothing is allocated before the first pass.
    ///
    /// # Errors
    /// As [`super::Executor::new`]; sizes that kernels cannot count.
    pub(crate) fn new(
        mut graph: Graph,
        output: &Value,
        used: Use,
        precision: Precision,
    ) -> Result<Self> {
        let lowered = lower(&mut graph, output, used, precision)?;
        Ok(Plan {
            masks: graph.masks.iter().map(|_| None).collect(),
            graph,
            lowered,
            used,
            arena: None,
            weights: Vec::new(),
            forward: Kept(Vec::new()),
            backward: Kept(Vec::new()),
        })
    }

    /// What it takes beside its weights, with those as convolutions read them.
    pub(crate) fn memory(&self) -> Needed {
        let masks = self.graph.masks.iter().map(|mask| mask.shape.numbers());
        let weights = self.lowered.weights.iter().map(|&(weight, kind)| {
            let shape = &self.graph.parameters[weight];
            match lies_so(kind, shape) {
                true => 0,
                false => kind.bytes().saturating_mul(shape.iter().product()),
            }
        });
        let beside: usize = masks.chain(weights).fold(0, usize::saturating_add);
        let parameters = self.graph.parameters.iter();
        let numbers = parameters.map(|shape| shape.iter().product::<usize>() as u64);
        let gradients = match self.used.trains() {
            true => numbers.fold(0, u64::saturating_add).saturating_mul(4),
            false => 0,
        };
        let arena = (self.lowered.arena as u64).saturating_mul(4);
        Needed {
            activations: arena.saturating_add(beside as u64),
            gradients,
        }
    }

    /// Channels, height and width of the output, and how many.
    pub(crate) fn output(&self) -> Images {
        self.lowered.output.0
    }

    /// Lays the weights out anew at the next forward pass: they have changed.
    pub(crate) fn refresh(&mut self) {
        for weights in &mut self.weights {
            weights.current = false;
        }
    }

    /// The forward pass: of images f32 `[B, C, H, W]` and vectors f32 `[B, D]` to the output f32 `[B, C', H', W']`.
    pub(crate) fn forward<M: Machine<Memory = Memory, Recording = Recording>>(
        &mut self,
        machine: &M,
        parameters: &[Address],
        [images, vectors]: [Address; 2],
        draws: &mut DrawsOf<'_>,
        output: Address,
    ) -> Result<()> {
        self.allocate(machine)?;
        if self.used.trains() {
            self.refresh();
        }
        self.lay_out(machine, parameters)?;
        let [given_images, given_vectors] = self.lowered.given;
        if let Some((of, id)) = given_images {
            take_in(machine, of, images, self.at(machine, id))?;
        }
        if let Some((of, id)) = given_vectors {
            take_in(machine, one_by_one(of), vectors, self.at(machine, id))?;
        }
        self.draw(machine, draws)?;
        let outside = Outside {
            parameters,
            gradients: &[],
            accumulate: false,
        };
        let mut kept = std::mem::replace(&mut self.forward, Kept(Vec::new()));
        let key = parameters.to_vec();
        let done = kept.go(machine, key, &mut || {
            self.carry_out(machine, &self.lowered.forward, &outside)
        });
        self.forward = kept;
        done?;
        let (images, id) = self.lowered.output;
        give_out(machine, images, self.at(machine, id), output)
    }

    /// The backward pass after a forward pass: from the gradient of the output to those of all parameters, written or added.
    pub(crate) fn backward<M: Machine<Memory = Memory, Recording = Recording>>(
        &mut self,
        machine: &M,
        parameters: &[Address],
        gradient: Address,
        gradients: &[Address],
        accumulate: bool,
    ) -> Result<()> {
        let Some(id) = self.lowered.gradient.filter(|_| self.used.trains()) else {
            bail!("executor: a network planned for inference has no backward pass");
        };
        if self.arena.is_none() {
            bail!("executor: there was no forward pass before this backward pass");
        }
        take_in(
            machine,
            self.lowered.output.0,
            gradient,
            self.at(machine, id),
        )?;
        let outside = Outside {
            parameters,
            gradients,
            accumulate,
        };
        let mut key = [parameters, gradients].concat();
        key.push(Address(accumulate.into()));
        let mut kept = std::mem::replace(&mut self.backward, Kept(Vec::new()));
        let done = kept.go(machine, key, &mut || {
            self.carry_out(machine, &self.lowered.backward, &outside)
        });
        self.backward = kept;
        done
    }

    fn allocate<M: Machine<Memory = Memory>>(&mut self, machine: &M) -> Result<()> {
        if self.arena.is_some() {
            return Ok(());
        }
        for &mask in &self.lowered.masks {
            let numbers = self.graph.masks[mask].shape.numbers();
            self.masks[mask] = Some(machine.allocate(Kind::F32, numbers.div_ceil(4))?);
        }
        self.weights.clear(); // of an attempt that found no room
        for kind in [Kind::F32, Kind::Bf16] {
            let mut places = Vec::new();
            let mut numbers = 0usize;
            for &(weight, _) in self.lowered.weights.iter().filter(|it| it.1 == kind) {
                let shape = &self.graph.parameters[weight];
                if !lies_so(kind, shape) {
                    places.push((weight, numbers));
                    numbers += shape.iter().product::<usize>().next_multiple_of(ALIGNED);
                }
            }
            if numbers > 0 {
                self.weights.push(LaidOut {
                    kind,
                    places,
                    memory: machine.allocate(kind, numbers)?,
                    table: None,
                    current: false,
                });
            }
        }
        self.arena = Some(machine.allocate(Kind::F32, self.lowered.arena)?);
        Ok(())
    }

    fn lay_out<M: Machine<Memory = Memory>>(
        &mut self,
        machine: &M,
        parameters: &[Address],
    ) -> Result<()> {
        for laid_out in &mut self.weights {
            let places = laid_out.places.iter();
            let from: Vec<Address> = places.map(|&(weight, _)| parameters[weight]).collect();
            let of_these = laid_out.table.as_ref().is_some_and(|(of, _)| *of == from);
            if of_these && laid_out.current {
                continue;
            }
            laid_out.current = false; // until it is done
            let weights: Vec<Weight> = laid_out
                .places
                .iter()
                .map(|&(weight, before)| {
                    let (outputs, inputs, taps) = sizes(&self.graph.parameters[weight]);
                    let before = (laid_out.kind.bytes() * before) as u64;
                    Weight {
                        from: parameters[weight],
                        to: Address(machine.address(&laid_out.memory).0 + before),
                        outputs,
                        inputs,
                        taps,
                    }
                })
                .collect();
            if !of_these {
                laid_out.table = Some((from, machine.upload(&table(&weights)?)?));
            }
            if let Some((_, table)) = &laid_out.table {
                lay_out(machine, laid_out.kind, &weights, machine.address(table))?;
                laid_out.current = true;
            }
        }
        Ok(())
    }

    fn draw<M: Machine<Memory = Memory>>(
        &self,
        machine: &M,
        draws: &mut DrawsOf<'_>,
    ) -> Result<()> {
        for &number in &self.lowered.masks {
            let recorded = self.graph.masks[number];
            let shape = recorded.shape;
            let Some(memory) = &self.masks[number] else {
                continue;
            };
            let drawn = draws(recorded.place)?;
            if drawn.counters.len() != shape.images {
                bail!(
                    "executor: {} images are drawn for, expected {}",
                    drawn.counters.len(),
                    shape.images
                );
            }
            let counters = machine.upload(&drawn.words())?;
            let images = shape.of_kind(Kind::F32); // a mask has none
            let (from, to) = (machine.address(&counters), machine.address(memory));
            mask::draw(machine, images, drawn.key, from, self.graph.rate, to)?;
        }
        Ok(())
    }

    fn at<M: Machine<Memory = Memory>>(&self, machine: &M, id: Id) -> Address {
        let base = self
            .arena
            .as_ref()
            .map_or(Address(0), |arena| machine.address(arena));
        Address(base.0 + 4 * self.lowered.buffers[id].place as u64)
    }

    /// Where a parameter lies as convolutions read it.
    fn weight<M: Machine<Memory = Memory>>(
        &self,
        machine: &M,
        parameters: &[Address],
        weight: usize,
        kind: Kind,
    ) -> Address {
        let laid_out = self
            .weights
            .iter()
            .filter(|it| it.kind == kind)
            .find_map(|it| {
                let (_, before) = it.places.iter().find(|(of, _)| *of == weight)?;
                let base = machine.address(&it.memory);
                Some(Address(base.0 + (kind.bytes() * before) as u64))
            });
        laid_out.unwrap_or(parameters[weight])
    }

    fn carry_out<M: Machine<Memory = Memory, Recording = Recording>>(
        &self,
        machine: &M,
        actions: &[Action],
        outside: &Outside<'_>,
    ) -> Result<()> {
        let mut written = vec![outside.accumulate; outside.gradients.len()];
        let mut pass = Pass {
            plan: self,
            machine,
            outside,
            written: &mut written,
        };
        actions.iter().try_for_each(|action| pass.carry_out(action))
    }
}

impl<Memory, Recording> std::fmt::Debug for Plan<Memory, Recording> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (nodes, megabytes) = (self.graph.nodes.len(), self.lowered.arena >> 18);
        write!(f, "Plan of {nodes} nodes in {megabytes} MiB of a card")
    }
}

impl<Recording> Kept<Recording> {
    /// Does the work: the first time as it is, then as it was recorded.
    fn go<M: Machine<Recording = Recording>>(
        &mut self,
        machine: &M,
        key: Vec<Address>,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let Some(index) = self.0.iter().position(|(of, _)| *of == key) else {
            work()?;
            self.0.truncate(KEPT - 1);
            self.0.insert(0, (key, State::Once));
            return Ok(());
        };
        let state = &mut self.0[index].1;
        if let State::Once = state {
            *state = match machine.record(work)? {
                Some(recording) => State::Recorded(recording),
                None => State::Never,
            };
        }
        match state {
            State::Recorded(recording) => machine.replay(recording),
            State::Once | State::Never => work(),
        }
    }
}

/// Numbers that weights begin at multiples of.
const ALIGNED: usize = 64;

/// Outputs, inputs and taps of a weight.
fn sizes(shape: &[usize]) -> (usize, usize, usize) {
    let at = |axis: usize| shape.get(axis).copied().unwrap_or(1);
    (at(0), at(1), at(2) * at(3))
}

/// Whether a parameter lies as convolutions read it.
fn lies_so(kind: Kind, shape: &[usize]) -> bool {
    kind == Kind::F32 && sizes(shape).2 == 1
}

/// Vectors, the pixels of one image, as images of a pixel each: they come one after the other, and are not turned.
fn one_by_one(vectors: Images) -> Images {
    Images {
        count: vectors.width,
        width: 1,
        ..vectors
    }
}

/// One pass through the network.
struct Pass<'a, M: Machine> {
    plan: &'a Plan<M::Memory, M::Recording>,
    machine: &'a M,
    outside: &'a Outside<'a>,
    /// Parameters whose gradients are to be added to.
    written: &'a mut [bool],
}

impl<M: Machine> Pass<'_, M> {
    fn carry_out(&mut self, action: &Action) -> Result<()> {
        let machine = self.machine;
        match action {
            Action::Moments { images, x, to } => {
                moments(machine, *images, self.at(*x), self.at(*to))
            }
            Action::Normalise { norm, parts } => {
                let parts: Vec<NormPart> = parts
                    .iter()
                    .map(|part| NormPart {
                        part: self.part((part.x, part.channels)),
                        moments: self.at(part.moments),
                        bias: part.bias.map(|bias| self.outside.parameters[bias]),
                        vector: part.vector.map(|vector| self.at(vector)),
                    })
                    .collect();
                let (unit, to) = (self.at(norm.unit), self.at(norm.coefficients));
                coefficients(machine, &self.norm(norm), &parts, unit, to)
            }
            Action::Prepare { prepared, to } => self.prepare(prepared, self.at(*to)),
            Action::Convolve {
                shape,
                x,
                weight,
                to,
            } => {
                let from = [self.at(*x), self.weight(*weight, shape.kind)];
                machine.convolve(shape, Gradient::Forward, from, self.at(*to))
            }
            Action::Finish {
                images,
                y,
                bias,
                vector,
                residual,
                scale,
                moments,
            } => {
                let what = Finish {
                    images: *images,
                    bias: Some(self.outside.parameters[*bias]),
                    vector: vector.map(|id| self.at(id)),
                    residual: residual.map(|id| self.at(id)),
                    scale: *scale,
                    moments: moments.map(|id| self.at(id)),
                };
                finish(machine, &what, self.at(*y))
            }
            Action::Attend {
                attention: of,
                from,
                to,
                logarithms,
            } => {
                let from = from.map(|id| self.at(id));
                attention(machine, of, from, self.at(*to), self.at(*logarithms))
            }
            Action::Sum { a, b, scale, to } => {
                let (kind, count) = self.numbers(*to);
                sum(
                    machine,
                    kind,
                    count,
                    self.at(*a),
                    self.at(*b),
                    *scale,
                    self.at(*to),
                )
            }
            action => self.go_back(action),
        }
    }

    /// The actions of the backward pass alone: of convolutions.
    fn go_back(&mut self, action: &Action) -> Result<()> {
        let machine = self.machine;
        match action {
            Action::BiasGradient {
                images,
                g,
                bias,
                vector,
                scratch,
            } => {
                let bias = self.gradient(*bias);
                let vector = vector.map(|sink| self.sink(sink));
                bias_gradient(
                    machine,
                    *images,
                    self.at(*g),
                    bias,
                    vector,
                    self.at(*scratch),
                )
            }
            Action::WeightGradient {
                shape,
                x,
                g,
                weight,
                turned,
            } => {
                let (from, turned) = ([self.at(*x), self.at(*g)], self.at(*turned));
                machine.convolve(shape, Gradient::Weights, from, turned)?;
                let (outputs, inputs, taps) = sizes(&self.plan.graph.parameters[*weight]);
                let to = self.gradient(*weight);
                turn_back(machine, shape.kind, outputs, inputs, taps, turned, to)
            }
            Action::InputGradient {
                shape,
                g,
                weight,
                to,
            } => {
                let from = [self.weight(*weight, shape.kind), self.at(*g)];
                machine.convolve(shape, Gradient::Data, from, self.at(*to))
            }
            Action::CutBorder {
                images,
                border,
                from,
                to,
            } => cut_border(machine, *images, *border, self.at(*from), self.sink(*to)),
            Action::Add { from, to } => {
                let (kind, count) = self.numbers(*to);
                add(machine, kind, count, self.at(*from), self.at(*to))
            }
            action => self.go_back_between(action),
        }
    }

    /// And of what is between convolutions.
    fn go_back_between(&mut self, action: &Action) -> Result<()> {
        let machine = self.machine;
        match action {
            Action::Scale { g, scale: by } => {
                let (kind, count) = self.numbers(*g);
                scale(machine, kind, count, self.at(*g), *by)
            }
            Action::Downsample { images, from, to } => {
                downsample(machine, *images, self.at(*from), self.at(*to))
            }
            Action::MaskGradient {
                images,
                g,
                mask: of,
            } => {
                let (mask, factor) = self.mask(*of);
                mask::mask_gradient(machine, *images, self.at(*g), mask, factor)
            }
            Action::SiluGradient { images, parts, g } => {
                silu_gradient(machine, *images, &self.parts(parts), self.at(*g))
            }
            Action::NormGradient {
                norm,
                silu,
                parts,
                g,
                to,
                vectors,
                scratch,
            } => {
                let recorded = &self.plan.graph.norms[norm.number];
                let (gamma, beta) = (self.gradient(recorded.gamma), self.gradient(recorded.beta));
                let parts = self.parts(parts);
                let of = NormGradient {
                    norm: self.norm(norm),
                    silu: *silu,
                    parts: &parts,
                    unit: self.at(norm.unit),
                    coefficients: self.at(norm.coefficients),
                };
                let to: Vec<Option<nhwc::Sink>> = to
                    .iter()
                    .map(|sink| sink.map(|sink| self.sink(sink)))
                    .collect();
                let vectors = vectors.map(|sink| self.sink(sink));
                let scratch = self.at(*scratch);
                norm_gradient(
                    machine,
                    &of,
                    self.at(*g),
                    &to,
                    gamma,
                    beta,
                    vectors,
                    scratch,
                )
            }
            Action::Part {
                images,
                g,
                first,
                channels,
                to,
            } => part(
                machine,
                *images,
                self.at(*g),
                *first,
                *channels,
                self.sink(*to),
            ),
            Action::AttentionGradient {
                attention: of,
                from,
                y,
                g,
                logarithms,
                to,
                scratch,
            } => {
                let (from, to) = (from.map(|id| self.at(id)), to.map(|id| self.at(id)));
                let (y, g) = (self.at(*y), self.at(*g));
                let (logarithms, scratch) = (self.at(*logarithms), self.at(*scratch));
                attention_gradient(machine, of, from, y, g, logarithms, to, scratch)
            }
            _ => Ok(()), // those of `carry_out` and `go_back`
        }
    }

    fn prepare(&self, it: &Prepared, to: Address) -> Result<()> {
        let parts = self.parts(&it.parts);
        let prepared = prepare::Prepared {
            images: it.images,
            parts: &parts,
            coefficients: it.coefficients.map(|id| self.at(id)),
            silu: it.silu,
            mask: it.mask.map(|mask| self.mask(mask)),
            upsampled: it.upsampled,
            border: it.border,
        };
        prepare(self.machine, &prepared, to)
    }

    fn at(&self, id: Id) -> Address {
        self.plan.at(self.machine, id)
    }

    fn weight(&self, weight: usize, kind: Kind) -> Address {
        self.plan
            .weight(self.machine, self.outside.parameters, weight, kind)
    }

    /// Where the gradient of a parameter goes, which is from then on added to.
    fn gradient(&mut self, parameter: usize) -> nhwc::Sink {
        nhwc::Sink {
            at: self.outside.gradients[parameter],
            accumulate: std::mem::replace(&mut self.written[parameter], true),
        }
    }

    fn sink(&self, sink: Sink) -> nhwc::Sink {
        nhwc::Sink {
            at: self.at(sink.id),
            accumulate: sink.accumulate,
        }
    }

    fn part(&self, (id, channels): (Id, usize)) -> Part {
        Part {
            at: self.at(id),
            channels,
        }
    }

    fn parts(&self, parts: &[(Id, usize)]) -> Vec<Part> {
        parts.iter().map(|&part| self.part(part)).collect()
    }

    fn norm(&self, norm: &Normalised) -> Norm {
        let recorded = &self.plan.graph.norms[norm.number];
        Norm {
            images: norm.images,
            groups: recorded.groups.count,
            eps: recorded.groups.eps as f32,
            gamma: self.outside.parameters[recorded.gamma],
            beta: self.outside.parameters[recorded.beta],
            scale_shift: norm.scale_shift.map(|id| self.at(id)),
        }
    }

    /// A mask, and the factor of what it keeps.
    fn mask(&self, mask: usize) -> (Address, f32) {
        let memory = self.plan.masks[mask].as_ref();
        let at = memory.map_or(Address(0), |memory| self.machine.address(memory));
        (at, (1.0 / (1.0 - self.plan.graph.rate)) as f32)
    }

    /// Of a buffer.
    fn numbers(&self, id: Id) -> (Kind, usize) {
        let buffer = &self.plan.lowered.buffers[id];
        match buffer.halves {
            true => (Kind::Bf16, buffer.count),
            false => (Kind::F32, buffer.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::cuda::convolution::{Pass, Shape};
    use crate::cuda::launch::{Argument, Launch};

    /// A machine that says what it is asked to record and to launch again, and may be unable to.
    struct Told {
        records: bool,
        story: RefCell<String>,
    }

    impl Machine for Told {
        type Memory = ();
        type Recording = usize;

        fn allocate(&self, _: Kind, _: usize) -> Result<()> {
            Ok(())
        }

        fn upload(&self, _: &[u64]) -> Result<()> {
            Ok(())
        }

        fn address(&self, _: &()) -> Address {
            Address(0)
        }

        fn launch(&self, _: &'static str, _: Launch, _: &[Argument]) -> Result<()> {
            Ok(())
        }

        fn convolve(&self, _: &Shape, _: Pass, _: [Address; 2], _: Address) -> Result<()> {
            Ok(())
        }

        fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<usize>> {
            self.story.borrow_mut().push_str("record:");
            if self.records {
                work()?;
            }
            Ok(self.records.then_some(7))
        }

        fn replay(&self, recording: &usize) -> Result<()> {
            *self.story.borrow_mut() += &format!("replay{recording} ");
            Ok(())
        }
    }

    /// What passes come to, at these addresses one after the other.
    fn story(records: bool, addresses: &[u64]) -> String {
        let machine = Told {
            records,
            story: RefCell::default(),
        };
        let mut kept = Kept(Vec::new());
        for &address in addresses {
            let key = vec![Address(address)];
            let mut work = || {
                *machine.story.borrow_mut() += &format!("work{address} ");
                Ok(())
            };
            kept.go(&machine, key, &mut work).unwrap();
        }
        machine.story.into_inner()
    }

    #[test]
    fn a_pass_is_carried_out_then_recorded_then_launched_again() {
        let told = "work1 record:work1 replay7 replay7 ";
        assert_eq!(story(true, &[1, 1, 1]), told);
    }

    #[test]
    fn other_addresses_are_another_pass_and_two_are_kept() {
        let told = "work1 work2 record:work1 replay7 record:work2 replay7 replay7 replay7 ";
        assert_eq!(story(true, &[1, 2, 1, 2, 1, 2]), told);
        let told = "work1 record:work1 replay7 work2 work3 work1 ";
        assert_eq!(story(true, &[1, 1, 2, 3, 1]), told);
    }

    #[test]
    fn what_cannot_be_recorded_is_carried_out_every_time() {
        let told = "work1 record:work1 work1 work1 ";
        assert_eq!(story(false, &[1, 1, 1, 1]), told);
    }
}
