//! The names that a pickle may use, and what becomes of them: containers, and PyTorch's storages and tensors.

/// A name of Python's that is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// `collections.OrderedDict`, `collections.defaultdict`, `dict`.
    Dict,
    /// `set`, `torch.Size`.
    Items,
    /// `torch.device`, which becomes a text.
    Device,
    /// `torch._utils._rebuild_tensor_v2` and its predecessor.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`.
    RebuildFromType,
    /// `torch.nn.parameter.Parameter` and `torch.Tensor`, as an argument of the others.
    TensorType,
    /// `torch.FloatStorage` and its like.
    Storage(Element),
}

/// What a storage consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    F32,
    F64,
    /// No floating-point numbers: so many bytes each.
    Other(u8),
}

impl Element {
    /// In bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(size) => usize::from(size),
        }
    }
}

/// The bytes that tensors are windows of: a part of the archive with this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) key: String,
    pub(crate) element: Element,
    /// In elements.
    pub(crate) length: usize,
}

/// A tensor as a window of a storage, found to lie within what the pickle says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub(crate) storage: Storage,
    /// In elements.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    pub(crate) strides: Vec<usize>,
}

impl Class {
    /// The class of this name, if a pickle may use it.
    pub(crate) fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") => Self::Dict,
            ("builtins" | "__builtin__", "dict") => Self::Dict,
            ("builtins" | "__builtin__", "set") | ("torch", "Size") => Self::Items,
            ("torch", "device") => Self::Device,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Self::TensorType,
            ("torch" | "torch.cuda", storage) => Self::Storage(element(storage)?),
            _ => return None,
        })
    }
}

fn element(storage: &str) -> Option<Element> {
    Some(match storage {
        "FloatStorage" => Element::F32,
        "DoubleStorage" => Element::F64,
        "HalfStorage" => Element::F16,
        "BFloat16Storage" => Element::Bf16,
        "ByteStorage" | "CharStorage" | "BoolStorage" => Element::Other(1),
        "ShortStorage" => Element::Other(2),
        "IntStorage" => Element::Other(4),
        "LongStorage" => Element::Other(8),
        _ => return None,
    })
}

impl StoredTensor {
    /// A window of a storage, if it lies within it.
    ///
    /// # Errors
    /// Words that say what is wrong with it.
    pub(crate) fn new(
        storage: Storage,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() || shape.len() > MOST_AXES {
            return Err(format!(
                "a tensor has {} sizes and {} strides, expected as many of each, at most {MOST_AXES}",
                shape.len(),
                strides.len()
            ));
        }
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let steps = shape.iter().zip(&strides);
        let last = steps.clone().try_fold(offset, |at, (&d, &stride)| {
            at.checked_add(d.saturating_sub(1).checked_mul(stride)?)
        });
        // An empty tensor touches nothing; one with more numbers than its storage would be a way to ask for memory.
        let within = match (count, last) {
            (Some(0), _) => true,
            (Some(count), Some(last)) => last < storage.length && count <= storage.length,
            _ => false,
        };
        if !within {
            return Err(format!(
                "a tensor of shape {shape:?} with strides {strides:?} from {offset} on does not lie within its storage of {} numbers",
                storage.length
            ));
        }
        Ok(Self {
            storage,
            offset,
            shape,
            strides,
        })
    }

    /// How many numbers it has.
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its elements' places in the storage, first to one past the last: what has to be read.
    pub(crate) fn reach(&self) -> std::ops::Range<usize> {
        if self.count() == 0 {
            return 0..0;
        }
        let steps = self.shape.iter().zip(&self.strides);
        let last: usize = steps.map(|(&d, &stride)| (d - 1) * stride).sum();
        self.offset..self.offset + last + 1
    }

    /// Whether its numbers lie one after another.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }
}

/// Axes of a tensor.
pub(crate) const MOST_AXES: usize = 8;
