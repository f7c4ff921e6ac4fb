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
}

/// Who else does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
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

impl Work {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Train, Self::Evaluate];

    /// As flags name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Evaluate => "evaluate",
        }
    }
}

impl Peer {
    /// All of them.
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
            Self::Eager => "eager",
            Self::ChannelsLast => "channels_last",
            Self::Compile => "compile",
            Self::Onnxruntime => "onnxruntime",
            Self::Openvino => "openvino",
        }
    }

    /// Whether it can do this: two of them do not train.
    pub(crate) fn does(self, work: Work) -> bool {
        work == Work::Evaluate || !self.reads_onnx()
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
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eager => "PyTorch eager",
            Self::ChannelsLast => "PyTorch eager, channels_last",
            Self::Compile => "torch.compile",
            Self::Onnxruntime => "onnxruntime",
            Self::Openvino => "OpenVINO",
        })
    }
}
