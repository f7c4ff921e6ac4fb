//! The gradients of all parameters of a network: in one run of memory, or some of them in that of the plan.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};

use crate::aligned::Aligned;
use crate::bf16::{Element, halves};
use crate::source::Data;
use crate::storage::{Shared, view};
use crate::tile::LANES;
use crate::training::squares;

/// One gradient for each parameter, in the parameters' order.
///
/// Some of those of [`Gradients::of_one_pass`] lie in the memory of the plan that computed them, as bf16.
#[derive(Default)]
pub struct Gradients {
    shapes: Vec<Vec<usize>>,
    /// Those that lie here.
    data: Aligned,
    /// Empty before the first pass.
    spots: Vec<Spot>,
    of_one_pass: bool,
    lent: Option<Lent>,
}

/// Where a gradient begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    /// Among the floats here.
    Own(usize),
    /// Among the halves of the plan's memory.
    Lent(usize),
}

/// The memory of the plan that has computed these gradients, which wants it back.
struct Lent {
    memory: Aligned,
    plan: Arc<()>,
}

impl Gradients {
    /// Gradients of parameters of these shapes, all zeros. They can be added up over some passes.
    pub fn zeros(shapes: &[Vec<usize>]) -> Self {
        let mut gradients = Gradients {
            shapes: shapes.to_vec(),
            ..Gradients::default()
        };
        gradients.lay_out(&[]);
        gradients
    }

    /// Gradients of parameters of these shapes, written anew by each pass and empty before the first.
    ///
    /// A plan in bf16 keeps those of weights (not of biases and norms) in its own memory, where activations lay that are no longer
    /// needed; rounded to bf16 once, when they have been added up.
    pub fn of_one_pass(shapes: &[Vec<usize>]) -> Self {
        Gradients {
            shapes: shapes.to_vec(),
            of_one_pass: true,
            ..Gradients::default()
        }
    }

    /// Whether each pass writes them anew, so that they cannot be added up.
    pub fn are_of_one_pass(&self) -> bool {
        self.of_one_pass
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shapes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }

    /// One gradient; none before the first pass of [`Gradients::of_one_pass`].
    pub fn get(&self, index: usize) -> Option<Cow<'_, [f32]>> {
        Some(match self.data(index)? {
            Data::Floats(floats) => Cow::Borrowed(floats),
            Data::Halves(halves) => Cow::Owned(halves.iter().map(|half| half.widen()).collect()),
        })
    }

    /// One gradient as a tensor of its own.
    ///
    /// # Errors
    /// No gradient of this number.
    pub fn tensor(&self, index: usize) -> Result<Tensor> {
        match (self.get(index), self.shapes.get(index)) {
            (Some(data), Some(shape)) => Tensor::from_slice(&data, shape.as_slice(), &Device::Cpu),
            _ => bail!("gradients: there is no number {index} of {}", self.len()),
        }
    }

    /// Takes over a gradient that was computed elsewhere, or adds it.
    ///
    /// # Errors
    /// Another shape or type; adding to gradients of one pass.
    pub fn set(&mut self, index: usize, gradient: &Tensor, accumulate: bool) -> Result<()> {
        let expected = self.shapes.get(index).cloned();
        if expected.as_deref() != Some(gradient.dims()) {
            bail!(
                "gradients: number {index} is {:?}, expected {expected:?}",
                gradient.dims()
            );
        }
        let gradient = gradient.detach().contiguous()?;
        let from = view("gradients", "gradient", &gradient)?;
        self.begin(&[], accumulate)?;
        let Some(Spot::Own(start)) = self.spots.get(index) else {
            bail!("gradients: number {index} has no place");
        };
        let to = &mut self.data[*start..][..from.len()];
        if accumulate {
            crate::simd::add_assign(to, &from);
        } else {
            to.copy_from_slice(&from);
        }
        Ok(())
    }

    /// The sum of the squares of all elements of all gradients, as [`crate::sum_of_squares`].
    pub fn sum_of_squares(&self) -> f64 {
        let own = squares::<f32>(&self.data); // what lies between two gradients is zero
        let lent = (0..self.len()).filter_map(|index| match self.data(index)? {
            Data::Halves(halves) => Some(squares(halves)),
            Data::Floats(_) => None,
        });
        own + lent.sum::<f64>()
    }

    /// One gradient as it is stored.
    pub(crate) fn data(&self, index: usize) -> Option<Data<'_>> {
        let count = self.shapes.get(index)?.iter().product::<usize>();
        Some(match (*self.spots.get(index)?, &self.lent) {
            (Spot::Own(start), _) => Data::Floats(self.data.get(start..start + count)?),
            (Spot::Lent(start), Some(lent)) => {
                Data::Halves(halves(&lent.memory).get(start..start + count)?)
            }
            (Spot::Lent(_), None) => return None,
        })
    }

    /// The shapes, in order.
    pub(super) fn shapes(&self) -> impl Iterator<Item = &[usize]> {
        self.shapes.iter().map(Vec::as_slice)
    }

    /// Before a pass whose plan keeps some of them, at these halves of its memory.
    ///
    /// # Errors
    /// Gradients that are to be added up, of which a plan keeps some or each pass writes all anew.
    pub(super) fn begin(&mut self, kept: &[Option<usize>], accumulate: bool) -> Result<()> {
        if self.of_one_pass && accumulate {
            bail!("gradients: those of one pass cannot be added to");
        }
        if !self.of_one_pass && kept.iter().any(Option::is_some) {
            bail!("gradients: the network was planned for those of one pass");
        }
        if self.of_one_pass {
            self.lay_out(kept);
        }
        Ok(())
    }

    /// Gives each gradient its place: the plan's, or one here.
    fn lay_out(&mut self, kept: &[Option<usize>]) {
        let mut end = 0;
        let spot = |(index, shape): (usize, &Vec<usize>)| match kept.get(index) {
            Some(Some(start)) => Spot::Lent(*start),
            _ => {
                let start = end;
                end += shape.iter().product::<usize>().next_multiple_of(LANES);
                Spot::Own(start)
            }
        };
        let spots: Vec<Spot> = self.shapes.iter().enumerate().map(spot).collect();
        if spots != self.spots {
            self.data = Aligned::default(); // before there is another
            self.data = Aligned::zeros(end);
            self.spots = spots;
        }
    }

    /// Where a gradient that lies here begins.
    pub(super) fn start(&self, index: usize) -> Option<usize> {
        match self.spots.get(index)? {
            Spot::Own(start) => Some(*start),
            Spot::Lent(_) => None,
        }
    }

    pub(super) fn shared(&mut self) -> Shared<'_> {
        Shared::new(&mut self.data)
    }

    /// Keeps a plan's memory until it is taken back.
    pub(super) fn lend(&mut self, memory: Aligned, plan: &Arc<()>) {
        self.lent = Some(Lent {
            memory,
            plan: Arc::clone(plan),
        });
    }

    /// Gives a plan its memory back, and lets go of another's: the gradients in it are no more.
    pub(super) fn take_back(&mut self, plan: &Arc<()>) -> Option<Aligned> {
        let lent = self.lent.take()?;
        Arc::ptr_eq(&lent.plan, plan).then_some(lent.memory)
    }
}

impl std::fmt::Debug for Gradients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gradients of {} parameters", self.len())
    }
}
