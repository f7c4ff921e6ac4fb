//! What is measured, and against whom.

use std::fmt;

/// A network that all contenders have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// 3.69 M parameters, 1x28x28: what ddpm-train's settings describe when nothing is said about the model.
    S,
    /// Ho et al.'s for CIFAR-10, 35.75 M parameters, 3x32x32.
    M,
}

/// What a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Forward, squared error, backward, clipping to norm 1, AdamW.
    Train,
    /// One call of the network without gradients.
    Evaluate,
    /// One operation alone, forward and backward.
    Operations,
}

/// One operation on a batch of images of some channels, which it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    kind: Kind,
    batch: usize,
    channels: usize,
    side: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 3 by 3, of this stride, with a bias.
    Convolution(usize),
    /// In 32 groups, with SiLU.
    Normalisation,
}

/// What one contest is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// A network at work (any but [`Work::Operations`]).
    Network(Network, Work),
    /// An operation alone.
    Operation(Operation),
}

/// What networks compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32 throughout.
    F32,
    /// bf16: PyTorch by autocast, OpenVINO by its hint.
    Bf16,
}

/// Who else does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// An operation of ours again, in a plan instead of candle's graph.
    Plan,
    /// A network of ours again, in f32.
    Float,
    /// PyTorch as it comes.
    Eager,
    /// PyTorch with the channels of a pixel side by side.
    ChannelsLast,
    /// `torch.compile`.
    Compile,
    /// onnxruntime.
    Onnxruntime,
    /// OpenVINO, told to stay in f32.
    Openvino,
}

impl Network {
    /// Both, the smaller first.
    pub(crate) const ALL: [Self; 2] = [Self::S, Self::M];

    /// As flags name it.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::S => "s",
            Self::M => "m",
        }
    }

    /// Images of one pass.
    pub(crate) fn batch(self) -> usize {
        match self {
            Self::S => 64,
            Self::M => 8,
        }
    }
}

impl Precision {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// As flags, `network_speed` and `peers.py` name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Outputs further apart than this, relatively, are not of the same work. In bf16 each of some thirty layers rounds to
    /// 8 bits.
    pub(crate) fn same(self) -> f64 {
        match self {
            Self::F32 => 1e-3,
            Self::Bf16 => 1e-1,
        }
    }
}

impl Work {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Train, Self::Evaluate, Self::Operations];

    /// As flags name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Operations => "operations",
        }
    }
}

impl Operation {
    /// What networks S and M are made of, by their sizes; two small ones and one of stride 2 last.
    pub(crate) const ALL: [Self; 9] = [
        Self::convolution(32, 64, 28, 1),
        Self::convolution(32, 128, 14, 1),
        Self::convolution(32, 32, 28, 1),
        Self::convolution(16, 128, 32, 1),
        Self::convolution(16, 256, 16, 1),
        Self {
            kind: Kind::Normalisation,
            batch: 32,
            channels: 128,
            side: 28,
        },
        Self::convolution(32, 64, 28, 2),
        Self::convolution(8, 256, 8, 1),
        Self::convolution(16, 256, 4, 1),
    ];

    const fn convolution(batch: usize, channels: usize, side: usize, stride: usize) -> Self {
        Self {
            kind: Kind::Convolution(stride),
            batch,
            channels,
            side,
        }
    }

    /// As `operation_speed` and `peers.py` name it.
    pub(crate) fn word(self) -> String {
        let Self {
            kind,
            batch,
            channels,
            side,
        } = self;
        let sizes = format!("{batch}x{channels}-{side}x{side}");
        match kind {
            Kind::Convolution(stride) => format!("conv-{sizes}-s{stride}"),
            Kind::Normalisation => format!("norm-{sizes}"),
        }
    }

    /// How many numbers of its output belong together: gradients of weight and bias, output, gradient of x.
    fn parts(self) -> [usize; 4] {
        let (weights, stride) = match self.kind {
            Kind::Convolution(stride) => (9 * self.channels * self.channels, stride),
            Kind::Normalisation => (self.channels, 1),
        };
        let images = |side: usize| self.batch * self.channels * side * side;
        let (before, after) = (images(self.side), images(self.side / stride));
        [weights, self.channels, after, before]
    }
}

impl Task {
    /// What names its files.
    pub(crate) fn word(self) -> String {
        match self {
            Self::Network(_, work) => work.word().to_owned(),
            Self::Operation(operation) => operation.word(),
        }
    }

    /// What a pass is.
    pub(crate) fn work(self) -> Work {
        match self {
            Self::Network(_, work) => work,
            Self::Operation(_) => Work::Operations,
        }
    }

    /// How many numbers of an output of so many belong together, each with a scale of its own.
    pub(crate) fn parts(self, length: usize) -> Vec<usize> {
        match self {
            Self::Network(_, Work::Train) => vec![1; length],
            Self::Network(..) => vec![length],
            Self::Operation(operation) => operation.parts().to_vec(),
        }
    }
}

impl Peer {
    /// All that can be asked for.
    pub(crate) const ALL: [Self; 5] = [
        Self::Eager,
        Self::ChannelsLast,
        Self::Compile,
        Self::Onnxruntime,
        Self::Openvino,
    ];

    /// As flags and `peers.py` name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Float => "float",
            Self::Eager => "eager",
            Self::ChannelsLast => "channels_last",
            Self::Compile => "compile",
            Self::Onnxruntime => "onnxruntime",
            Self::Openvino => "openvino",
        }
    }

    /// Whether it can do this: two of them only evaluate, and onnxruntime has no bf16 for processors.
    pub(crate) fn does(self, work: Work, precision: Precision) -> bool {
        let able = work == Work::Evaluate || !self.reads_onnx();
        able && (precision == Precision::F32 || self != Self::Onnxruntime)
    }

    /// Whether it is ours, and no rival.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Plan | Self::Float)
    }

    /// Whether it wants the network as an ONNX file.
    pub(crate) fn reads_onnx(self) -> bool {
        matches!(self, Self::Onnxruntime | Self::Openvino)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.letter().to_uppercase())
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training step",
            Self::Evaluate => "evaluation",
            Self::Operations => "operations",
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            batch,
            channels,
            side,
        } = self;
        match kind {
            Kind::Convolution(1) => f.write_str("convolution 3x3"),
            Kind::Convolution(stride) => write!(f, "convolution 3x3 stride {stride}"),
            Kind::Normalisation => f.write_str("GroupNorm(32) + SiLU"),
        }?;
        write!(f, ", {batch}x{channels}, {side}x{side}")
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network, work) => write!(f, "network {network}, {work}"),
            Self::Operation(operation) => write!(f, "{operation}"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "ddpm-kernels in a plan",
            Self::Float => "ddpm in f32",
            Self::Eager => "PyTorch eager",
            Self::ChannelsLast => "PyTorch eager, channels_last",
            Self::Compile => "torch.compile",
            Self::Onnxruntime => "onnxruntime",
            Self::Openvino => "OpenVINO",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_has_a_word_and_parts() {
        let word = |operation: Operation| operation.word();
        let [first, .., small] = Operation::ALL;
        assert_eq!(word(first), "conv-32x64-28x28-s1");
        assert_eq!(word(Operation::ALL[5]), "norm-32x128-28x28");
        assert_eq!(
            small.parts(),
            [9 * 256 * 256, 256, 16 * 256 * 16, 16 * 256 * 16]
        );
        let halved = Operation::convolution(2, 3, 8, 2);
        assert_eq!(halved.parts(), [81, 3, 2 * 3 * 16, 2 * 3 * 64]);
        assert_eq!(halved.to_string(), "convolution 3x3 stride 2, 2x3, 8x8");
    }

    #[test]
    fn every_number_of_a_training_step_has_its_own_scale() {
        assert_eq!(Task::Network(Network::S, Work::Train).parts(2), [1, 1]);
        assert_eq!(Task::Network(Network::S, Work::Evaluate).parts(7), [7]);
    }
}
