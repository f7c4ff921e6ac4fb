//! Files of tensors, whichever they are: safetensors whole or in shards, or PyTorch's own, told apart by what is in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Tensor;

use crate::shards::Shards;
use crate::tensor_file::TensorFile;
use crate::torch_file::TorchFile;
use crate::{Error, Result};

/// Tensors by name, read when asked for.
pub trait Tensors {
    /// The file, for errors.
    fn path(&self) -> &Path;
    /// Names and shapes of all of them.
    fn shapes(&self) -> BTreeMap<String, Vec<usize>>;
    /// One as f32 on the CPU, whichever of f32, f16, bf16 and f64 it is stored in.
    ///
    /// # Errors
    /// There is none of this name, it holds other numbers, or the file cannot be read.
    fn read_f32(&mut self, name: &str) -> Result<Tensor>;
    /// Names of all of them, sorted.
    fn names(&self) -> Vec<String> {
        self.shapes().into_keys().collect()
    }
}

/// What a file is by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    /// A zip archive or a bare pickle.
    Torch,
    /// `NAME.index.json`.
    Index,
}

impl Format {
    /// Looks at the first bytes of a file.
    ///
    /// # Errors
    /// It cannot be read, or is none of these; a pointer of Git LFS or a page of the web in its place is named.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        let file = File::open(path).map_err(Error::read(path))?;
        let mut file = file.take(64);
        file.read_to_end(&mut start).map_err(Error::read(path))?;
        let is_index = path.to_string_lossy().ends_with(".json");
        let refused = |what: &str| Err(Error::unsupported(path, what));
        match start.as_slice() {
            // The length of its header may begin as a pickle does.
            [_, _, _, _, 0, 0, 0, 0, b'{', ..] => Ok(Self::Safetensors),
            [b'P', b'K', 3, 4, ..] | [0x80, ..] => Ok(Self::Torch),
            [b'{', ..] if is_index => Ok(Self::Index),
            _ if start.starts_with(b"version https://git-lfs") => refused(
                "it is the pointer that Git LFS puts in place of a file: fetch the file itself (git lfs pull)",
            ),
            [b'<', ..] => refused("it is a page of the web, not the file that was to be fetched"),
            [] => refused("it is empty"),
            _ if path.extension().is_some_and(|e| e == "safetensors") => Ok(Self::Safetensors),
            _ => refused(
                "it is no file of tensors; read are safetensors and what torch.save writes (.bin, .pt, .pth, .ckpt)",
            ),
        }
    }
}

/// Opens a file of tensors: safetensors, the index of several files, or what torch.save writes, where it is one dict of
/// tensors.
///
/// # Errors
/// The file is none of these, is damaged, or is a pickle that wants more than tensors and containers.
pub fn open_tensors(path: &Path) -> Result<Box<dyn Tensors>> {
    Ok(match Format::of(path)? {
        Format::Safetensors => Box::new(TensorFile::open(path)?),
        Format::Torch => Box::new(TorchFile::open(path)?.only_state()?),
        Format::Index => Box::new(Shards::open(path)?),
    })
}

impl Tensors for TensorFile {
    fn path(&self) -> &Path {
        self.path()
    }

    fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.shapes()
    }

    fn read_f32(&mut self, name: &str) -> Result<Tensor> {
        self.read_f32(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of safetensors begins with the length of its header, whose lowest byte may be any.
    #[test]
    fn a_header_of_any_length_is_one_of_safetensors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        for length in (0x08..0x4_00u64).step_by(8) {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend(format!("{:1$}", "{}", length as usize).bytes());
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(Format::of(&path).unwrap(), Format::Safetensors, "{length}");
        }
        std::fs::write(
            &path,
            [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20],
        )
        .unwrap();
        assert_eq!(Format::of(&path).unwrap(), Format::Torch);
    }
}
