//! The gradients of all parameters of a network, in one run of memory.

use candle_core::{Device, Result, Tensor, bail};

use crate::aligned::Aligned;
use crate::storage::{Shared, view};
use crate::tile::LANES;

/// One gradient for each parameter, in the parameters' order.
#[derive(Default)]
pub struct Gradients {
    data: Aligned,
    places: Vec<(usize, Vec<usize>)>,
}

impl Gradients {
    /// Gradients of parameters of these shapes, all zeros.
    pub fn zeros(shapes: &[Vec<usize>]) -> Self {
        let mut end = 0;
        let place = |shape: &Vec<usize>| {
            let start = end;
            end += shape.iter().product::<usize>().next_multiple_of(LANES);
            (start, shape.clone())
        };
        let places = shapes.iter().map(place).collect();
        Gradients {
            data: Aligned::zeros(end),
            places,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// One gradient.
    pub fn get(&self, index: usize) -> Option<&[f32]> {
        let (start, shape) = self.places.get(index)?;
        self.data
            .get(*start..start + shape.iter().product::<usize>())
    }

    /// One gradient, to be changed.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut [f32]> {
        let (start, shape) = self.places.get(index)?;
        self.data
            .get_mut(*start..start + shape.iter().product::<usize>())
    }

    /// One gradient as a tensor of its own.
    ///
    /// # Errors
    /// No gradient of this number.
    pub fn tensor(&self, index: usize) -> Result<Tensor> {
        match (self.get(index), self.places.get(index)) {
            (Some(data), Some((_, shape))) => {
                Tensor::from_slice(data, shape.as_slice(), &Device::Cpu)
            }
            _ => bail!("gradients: there is no number {index} of {}", self.len()),
        }
    }

    /// Takes over a gradient that was computed elsewhere, or adds it.
    ///
    /// # Errors
    /// Another shape or type.
    pub fn set(&mut self, index: usize, gradient: &Tensor, accumulate: bool) -> Result<()> {
        let expected = self.places.get(index).map(|(_, shape)| shape.clone());
        if expected.as_deref() != Some(gradient.dims()) {
            bail!(
                "gradients: number {index} is {:?}, expected {expected:?}",
                gradient.dims()
            );
        }
        let gradient = gradient.detach().contiguous()?;
        let from = view("gradients", "gradient", &gradient)?;
        let to = self.get_mut(index).unwrap_or_default();
        if accumulate {
            crate::simd::add_assign(to, &from);
        } else {
            to.copy_from_slice(&from);
        }
        Ok(())
    }

    /// The sum of the squares of all elements of all gradients, as [`crate::sum_of_squares`].
    pub fn sum_of_squares(&self) -> f64 {
        crate::training::squares(&self.data) // what lies between two gradients is zero
    }

    /// The shapes, in order.
    pub(super) fn shapes(&self) -> impl Iterator<Item = &[usize]> {
        self.places.iter().map(|(_, shape)| shape.as_slice())
    }

    pub(super) fn start(&self, index: usize) -> usize {
        self.places[index].0
    }

    pub(super) fn shared(&mut self) -> Shared<'_> {
        Shared::new(&mut self.data)
    }
}

impl std::fmt::Debug for Gradients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gradients of {} parameters", self.len())
    }
}
