//! What is measured on a card, and against whom.

use std::fmt;

/// A network with the images of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Ho et al.'s for CIFAR-10, 3x32x32, 128 images.
    M128,
    /// The same, 512 images.
    M512,
    /// Dhariwal and Nichol's for ImageNet 64x64, without classes and learned variances, 64 images.
    Adm64,
}

/// What a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Forward, squared error, backward, clipping to norm 1, AdamW, an average of the weights.
    Train,
    /// One call of the network without gradients.
    Evaluate,
    /// A walk from noise to images by DDIM.
    Sample,
}

/// What products are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32 in full.
    F32,
    /// f32, with factors rounded to 10 bits.
    Tf32,
    /// bf16 with f32 weights.
    Bf16,
}

/// PyTorch, used in a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// As it comes.
    Eager,
    /// With the channels of a pixel side by side, as all that follow.
    ChannelsLast,
    /// `torch.compile`.
    Compile,
    /// A CUDA graph.
    Graphs,
    /// A CUDA graph of what `torch.compile` makes.
    CompileGraphs,
    /// The same with `max-autotune`.
    Autotune,
}

/// Where it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// A card, `cuda` or `cuda:N`.
    Card(String),
    /// The processor, in small, the way that a card goes: `cpu-graph`.
    Rehearsal,
}

/// What one contest is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) network: Network,
    pub(crate) work: Work,
    pub(crate) precision: Precision,
    /// Images of a pass.
    pub(crate) images: usize,
    /// Steps of a walk.
    pub(crate) steps: usize,
}

impl Network {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::M128, Self::M512, Self::Adm64];

    /// As flags name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::M128 => "m128",
            Self::M512 => "m512",
            Self::Adm64 => "adm64",
        }
    }

    /// As `network_speed` names it, there and in small.
    pub(crate) fn prepared(self, device: &Device) -> &'static str {
        match (self, device) {
            (Self::Adm64, Device::Card(_)) => "adm",
            (_, Device::Card(_)) => "m",
            (Self::Adm64, Device::Rehearsal) => "small-adm",
            (_, Device::Rehearsal) => "small-m",
        }
    }

    /// Images of one training step or evaluation.
    pub(crate) fn batch(self, device: &Device) -> usize {
        match (self, device) {
            (Self::M128, Device::Card(_)) => 128,
            (Self::M512, Device::Card(_)) => 512,
            (Self::Adm64, Device::Card(_)) => 64,
            (Self::M512, Device::Rehearsal) => 4,
            (_, Device::Rehearsal) => 2,
        }
    }

    /// A walk is of as many images whatever the batch, and needs to be measured once a network.
    pub(crate) fn does(self, work: Work) -> bool {
        work != Work::Sample || self != Self::M512
    }
}

impl Work {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Train, Self::Evaluate, Self::Sample];

    /// As flags and programs name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Sample => "sample",
        }
    }
}

impl Precision {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::F32, Self::Tf32, Self::Bf16];

    /// As flags and programs name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Outputs further apart than this, relatively, are not of the same work: 24, 11 and 8 bits, through some thirty layers.
    pub(crate) fn same(self) -> f64 {
        match self {
            Self::F32 => 1e-3,
            Self::Tf32 => 2e-2,
            Self::Bf16 => 1e-1,
        }
    }
}

impl Peer {
    /// All that can be asked for.
    pub(crate) const ALL: [Self; 6] = [
        Self::Eager,
        Self::ChannelsLast,
        Self::Compile,
        Self::Graphs,
        Self::CompileGraphs,
        Self::Autotune,
    ];

    /// As flags and `card_peers.py` name it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::ChannelsLast => "channels_last",
            Self::Compile => "compile",
            Self::Graphs => "graphs",
            Self::CompileGraphs => "compile_graphs",
            Self::Autotune => "autotune",
        }
    }

    /// Whether it takes long to set up.
    pub(crate) fn compiles(self) -> bool {
        matches!(self, Self::Compile | Self::CompileGraphs | Self::Autotune)
    }

    /// Its name on the page, by what it has to do in bf16.
    pub(crate) fn name(self, work: Work, precision: Precision) -> String {
        let cast = work != Work::Train && !matches!(self, Self::Eager | Self::ChannelsLast);
        let bf16 = match (precision, cast) {
            (Precision::Bf16, true) => ", weights in bf16",
            (Precision::Bf16, false) => ", autocast",
            _ => "",
        };
        let how = match self {
            Self::Eager => "PyTorch eager",
            Self::ChannelsLast => "PyTorch eager, channels_last",
            Self::Compile => "torch.compile, channels_last",
            Self::Graphs => "CUDA graph, channels_last",
            Self::CompileGraphs => "torch.compile and CUDA graph, channels_last",
            Self::Autotune => "torch.compile (max-autotune) and CUDA graph, channels_last",
        };
        format!("{how}{bf16}")
    }
}

impl Device {
    /// What `network_speed` and the trainer call it.
    pub(crate) fn ours(&self) -> &str {
        match self {
            Self::Card(name) => name,
            Self::Rehearsal => "cpu-graph",
        }
    }

    /// What PyTorch calls it.
    pub(crate) fn theirs(&self) -> &str {
        match self {
            Self::Card(name) => name,
            Self::Rehearsal => "cpu",
        }
    }

    /// Images that walk together.
    pub(crate) fn walk(&self) -> usize {
        match self {
            Self::Card(_) => 64,
            Self::Rehearsal => 2,
        }
    }

    /// Steps of their walk.
    pub(crate) fn steps(&self) -> usize {
        match self {
            Self::Card(_) => 50,
            Self::Rehearsal => 4,
        }
    }
}

impl Task {
    /// A network at work on a device.
    pub(crate) fn on(device: &Device, network: Network, work: Work, precision: Precision) -> Self {
        let (batch, walk) = (network.batch(device), device.walk());
        let (images, steps) = match work {
            Work::Sample => (walk, device.steps()),
            _ => (batch, 1),
        };
        Self {
            network,
            work,
            precision,
            images,
            steps,
        }
    }

    /// What names its files.
    pub(crate) fn word(self) -> String {
        format!("{}.{}", self.work.word(), self.precision.word())
    }

    /// How many numbers of an output of so many belong together, each with a scale of its own: loss and norm apart.
    pub(crate) fn parts(self, length: usize) -> Vec<usize> {
        match self.work {
            Work::Train => vec![1; length],
            _ => vec![length],
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = match self.network {
            Network::M128 | Network::M512 => "M",
            Network::Adm64 => "ADM 64x64",
        };
        let Self {
            precision,
            images,
            steps,
            ..
        } = self;
        let precision = match precision {
            Precision::Tf32 => "f32 by TF32",
            other => other.word(),
        };
        match self.work {
            Work::Train => write!(f, "{network}, training step of {images}, {precision}"),
            Work::Evaluate => write!(f, "{network}, evaluation of {images}, {precision}"),
            Work::Sample => write!(f, "{network}, {steps} DDIM steps of {images}, {precision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_says_what_it_is_of() {
        let card = Device::Card("cuda:1".to_owned());
        let task = |network, work, precision| Task::on(&card, network, work, precision);
        let train = task(Network::M512, Work::Train, Precision::Tf32);
        assert_eq!(train.to_string(), "M, training step of 512, f32 by TF32");
        assert_eq!((train.word().as_str(), train.steps), ("train.tf32", 1));
        assert_eq!(train.parts(2), [1, 1]);
        let walk = task(Network::M128, Work::Sample, Precision::Bf16);
        assert_eq!(walk.to_string(), "M, 50 DDIM steps of 64, bf16");
        assert_eq!(walk.parts(7), [7]);
        assert!(!Network::M512.does(Work::Sample) && Network::Adm64.does(Work::Sample));
    }

    #[test]
    fn who_has_weights_in_bf16_says_so() {
        let name = |peer: Peer, work| peer.name(work, Precision::Bf16);
        assert_eq!(name(Peer::Eager, Work::Evaluate), "PyTorch eager, autocast");
        assert_eq!(
            name(Peer::Graphs, Work::Sample),
            "CUDA graph, channels_last, weights in bf16"
        );
        assert_eq!(
            name(Peer::Graphs, Work::Train),
            "CUDA graph, channels_last, autocast"
        );
        assert_eq!(
            Peer::Compile.name(Work::Train, Precision::Tf32),
            "torch.compile, channels_last"
        );
    }
}
