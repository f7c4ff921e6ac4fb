//! The parameters of networks that are none of diffusers': named and numbered as their layers are made.

/// The parameters of a network, in order: name and shape.
#[derive(Default)]
pub(crate) struct Layers {
    pub(crate) parameters: Vec<(String, Vec<usize>)>,
}

/// The numbers of a layer's weight and bias among the parameters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    pub(crate) weight: usize,
    pub(crate) bias: usize,
}

impl Layers {
    /// One more parameter, and its number.
    pub(crate) fn parameter(&mut self, name: impl Into<String>, shape: Vec<usize>) -> usize {
        self.parameters.push((name.into(), shape));
        self.parameters.len() - 1
    }

    /// A weight of this shape, and a bias of its first side.
    pub(crate) fn affine(&mut self, name: &str, shape: Vec<usize>) -> Affine {
        let outputs = vec![shape[0]];
        Affine {
            weight: self.parameter(format!("{name}.weight"), shape),
            bias: self.parameter(format!("{name}.bias"), outputs),
        }
    }

    pub(crate) fn linear(&mut self, name: &str, from: usize, to: usize) -> Affine {
        self.affine(name, vec![to, from])
    }

    /// A convolution with a square kernel.
    pub(crate) fn conv(&mut self, name: &str, from: usize, to: usize, kernel: usize) -> Affine {
        self.affine(name, vec![to, from, kernel, kernel])
    }
}
