//! Safetensors files: written in a fixed order with the same bytes every time, read one tensor at a time.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::{Error, Result};

/// A safetensors file whose header has been read and found to fit the file's length.
///
/// Tensors are read when asked for, so a large training state costs no memory until then.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: BufReader<File>,
    header: Metadata,
    data_start: u64,
    /// Of the tensor read last: memory for the next.
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Opens a file and checks its header: its JSON, every shape against its bytes, and the length of the file.
    ///
    /// # Errors
    /// When the file cannot be read, is cut short or too long, or its header is not that of a safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::read(path))?;
        let length = file.metadata().map_err(Error::read(path))?.len();
        let mut file = BufReader::new(file);
        let header_length = read_header_length(&mut file, path, length)?;
        let mut text = vec![0; header_length];
        file.read_exact(&mut text).map_err(Error::read(path))?;
        let header: Metadata = serde_json::from_slice(&text).map_err(|error| {
            Error::tensor_file(path, format!("its header does not parse: {error}"))
        })?;
        let data_start = 8 + header_length as u64;
        let expected = data_start + header.data_len() as u64;
        if length != expected {
            let reason = format!("it has {length} bytes, its header describes {expected}");
            return Err(Error::tensor_file(path, reason));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            data_start,
            bytes: Vec::new(),
        })
    }

    /// The file this was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in the order of their bytes.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.header
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.shape.clone()))
            .collect()
    }

    /// The free text that the header carries besides the tensors.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.header
            .metadata()
            .iter()
            .flatten()
            .map(|(key, text)| (key.clone(), text.clone()))
            .collect()
    }

    /// Reads one tensor as f32 on the CPU, whichever of f32, f16, bf16 and f64 it is stored in.
    ///
    /// # Errors
    /// When there is no such tensor, its type is not a floating-point one, or the file cannot be read.
    pub fn read_f32(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.read(name)?;
        match tensor.dtype() {
            DType::F32 => Ok(tensor),
            DType::F16 | DType::BF16 | DType::F64 => Ok(tensor.to_dtype(DType::F32)?),
            other => {
                let reason = format!(
                    "tensor `{name}` is {}, expected floating-point numbers",
                    other.as_str()
                );
                Err(Error::unsupported(&self.path, reason))
            }
        }
    }

    /// Reads one tensor in the type it is stored in, on the CPU.
    ///
    /// # Errors
    /// When there is no such tensor, its type is unknown to candle, or the file cannot be read.
    pub fn read(&mut self, name: &str) -> Result<Tensor> {
        let info: TensorInfo =
            self.header.info(name).cloned().ok_or_else(|| {
                Error::tensor_file(&self.path, format!("it has no tensor `{name}`"))
            })?;
        let dtype = candle_type(info.dtype).ok_or_else(|| {
            let reason = format!(
                "tensor `{name}` is of type {}, which is not read",
                info.dtype
            );
            Error::unsupported(&self.path, reason)
        })?;
        let (start, end) = info.data_offsets;
        self.bytes.resize(end - start, 0);
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .map_err(Error::read(&self.path))?;
        self.file
            .read_exact(&mut self.bytes)
            .map_err(Error::read(&self.path))?;
        Ok(Tensor::from_raw_buffer(
            &self.bytes,
            dtype,
            &info.shape,
            &Device::Cpu,
        )?)
    }
}

/// Writes tensors to a file in the order given and syncs it; equal input gives equal bytes.
///
/// `what` says in words what is being written, for errors.
///
/// # Errors
/// When a name is given twice, an element type is not among f32, f16, f64, u8, u32 and i64, or the file cannot be written.
pub fn write_tensors(
    path: &Path,
    what: &str,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let header = header_text(path, tensors, metadata)?;
    let file = File::create(path).map_err(Error::write(what, path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::write(what, path));
    put(&(header.len() as u64).to_le_bytes())?;
    put(header.as_bytes())?;
    for (_, tensor) in tensors {
        put(&little_endian(tensor)?)?;
    }
    let file = out
        .into_inner()
        .map_err(|error| Error::write(what, path)(error.into_error()))?;
    file.sync_all().map_err(Error::write(what, path))
}

/// The format's limit on its header, which also bounds what a corrupt length can make us allocate.
const LONGEST_HEADER: u64 = 100_000_000;

fn read_header_length(file: &mut impl Read, path: &Path, file_length: u64) -> Result<usize> {
    let mut bytes = [0; 8];
    if file_length < 8 {
        return Err(Error::tensor_file(
            path,
            format!("it has only {file_length} bytes"),
        ));
    }
    file.read_exact(&mut bytes).map_err(Error::read(path))?;
    let length = u64::from_le_bytes(bytes);
    if length > LONGEST_HEADER || length > file_length - 8 {
        let reason =
            format!("its header should have {length} bytes, the whole file has {file_length}");
        return Err(Error::tensor_file(path, reason));
    }
    Ok(length as usize)
}

/// The JSON header: metadata first, then each tensor, padded with spaces so that the data starts at a multiple of 8.
fn header_text(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<String> {
    let mut entries = vec![format!("\"__metadata__\":{}", json(path, metadata)?)];
    let mut seen = HashSet::new();
    let mut offset = 0;
    for (name, tensor) in tensors {
        if !seen.insert(name) || name == "__metadata__" {
            return Err(Error::Twice {
                name: name.clone(),
                path: path.to_owned(),
            });
        }
        let dtype = stored_type(tensor.dtype()).ok_or_else(|| Error::ElementType {
            name: name.clone(),
            dtype: tensor.dtype().as_str(),
            path: path.to_owned(),
        })?;
        let end = offset + tensor.elem_count() * tensor.dtype().size_in_bytes();
        let info = TensorInfo {
            dtype,
            shape: tensor.dims().to_vec(),
            data_offsets: (offset, end),
        };
        entries.push(format!("{}:{}", json(path, name)?, json(path, &info)?));
        offset = end;
    }
    let mut text = format!("{{{}}}", entries.join(","));
    while text.len() % 8 != 0 {
        text.push(' ');
    }
    Ok(text)
}

fn json(path: &Path, value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::malformed(path, error))
}

fn stored_type(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::F64 => Some(Dtype::F64),
        DType::U8 => Some(Dtype::U8),
        DType::U32 => Some(Dtype::U32),
        DType::I64 => Some(Dtype::I64),
        _ => None,
    }
}

fn candle_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::U8 => Some(DType::U8),
        Dtype::U32 => Some(DType::U32),
        Dtype::I64 => Some(DType::I64),
        _ => None,
    }
}

fn little_endian(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.detach().to_device(&Device::Cpu)?.flatten_all()?;
    Ok(match flat.dtype() {
        DType::F32 => flat
            .to_vec1::<f32>()?
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect(),
        DType::F16 => flat
            .to_vec1::<half::f16>()?
            .into_iter()
            .flat_map(half::f16::to_le_bytes)
            .collect(),
        DType::F64 => flat
            .to_vec1::<f64>()?
            .into_iter()
            .flat_map(f64::to_le_bytes)
            .collect(),
        DType::U8 => flat.to_vec1::<u8>()?,
        DType::U32 => flat
            .to_vec1::<u32>()?
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect(),
        // The header has refused every other type.
        _ => flat
            .to_vec1::<i64>()?
            .into_iter()
            .flat_map(i64::to_le_bytes)
            .collect(),
    })
}
