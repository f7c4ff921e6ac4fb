//! Images to begin from, and the mask of their known part: PNG files, or tensors.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use ddpm_checkpoint::TensorFile;
use ddpm_image::{Picture, PixelMap, read_png};

/// The image of a PNG, or `samples` of a file of tensors: `[N, C, H, W]` in the network's numbers.
///
/// # Errors
/// When the file cannot be read or holds something else; a PNG that the pixel map does not suit.
pub(crate) fn read_images(path: &Path, map: &PixelMap) -> Result<Tensor> {
    if let Some(samples) = tensor(path, "samples")? {
        return Ok(samples);
    }
    let picture = picture(path)?;
    let size = (picture.height(), picture.width(), picture.channels());
    let image = map.to_tensor(picture.pixels(), 1, size, &Device::Cpu);
    image.with_context(|| path.display().to_string())
}

/// 1 where a PNG is lighter than the middle and 0 elsewhere, or `mask` of a file of tensors: `[N, 1 or C, H, W]`.
///
/// # Errors
/// When the file cannot be read or holds something else, numbers beyond 0..=1 among it.
pub(crate) fn read_mask(path: &Path) -> Result<Tensor> {
    if let Some(mask) = tensor(path, "mask")? {
        let numbers: Vec<f32> = mask.flatten_all()?.to_vec1()?;
        let beyond = numbers.iter().find(|x| !(0.0..=1.0).contains(*x));
        return match beyond {
            None => Ok(mask),
            Some(x) => Err(anyhow!(
                "{}: `mask` holds {x}, expected 0 to 1",
                path.display()
            )),
        };
    }
    let picture = picture(path)?;
    let light = |pixel: &[u8]| {
        let sum: usize = pixel.iter().map(|&byte| usize::from(byte)).sum();
        f32::from(u8::from(2 * sum >= 255 * pixel.len()))
    };
    let known = picture.pixels().chunks(picture.channels()).map(light);
    let shape = (1, 1, picture.height(), picture.width());
    Ok(Tensor::from_vec(known.collect(), shape, &Device::Cpu)?)
}

/// Checks `[N, C, H, W]` against the number of images (or 1) and the model's shape; a mask may have one channel.
pub(crate) fn check(
    path: &Path,
    tensor: &Tensor,
    images: usize,
    (c, h, w): (usize, usize, usize),
    one_channel: bool,
) -> Result<()> {
    let fits = match *tensor.dims() {
        [n, channels, height, width] => {
            (n == 1 || n == images)
                && (channels == c || (one_channel && channels == 1))
                && (height, width) == (h, w)
        }
        _ => false,
    };
    ensure!(
        fits,
        "{}: it is {:?} as [N, C, H, W], the model makes [N, {c}, {h}, {w}]",
        path.display(),
        tensor.dims()
    );
    Ok(())
}

/// The rows `first..first + images`, or the only one for all.
pub(crate) fn rows(tensor: &Tensor, first: usize, images: usize) -> candle_core::Result<Tensor> {
    match tensor.dim(0)? {
        1 => Ok(tensor.clone()),
        _ => tensor.narrow(0, first, images)?.contiguous(),
    }
}

/// The tensor of a file of tensors, `[N, C, H, W]`; none where the path is that of a picture.
fn tensor(path: &Path, name: &str) -> Result<Option<Tensor>> {
    let ending = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    if ending.is_none_or(|ending| ending != "safetensors") {
        return Ok(None);
    }
    let mut file = TensorFile::open(path)?;
    ensure!(
        file.names().iter().any(|there| there == name),
        "{}: there is no tensor `{name}`",
        path.display()
    );
    let tensor = file.read_f32(name)?;
    ensure!(
        tensor.rank() == 4 && tensor.elem_count() > 0,
        "{}: `{name}` is {:?}, expected [N, C, H, W] with N at least 1",
        path.display(),
        tensor.dims()
    );
    Ok(Some(tensor))
}

fn picture(path: &Path) -> Result<Picture> {
    Ok(read_png(path)?.0)
}
